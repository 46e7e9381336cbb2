"""From a molecule to a trusted potential: the stages of `make`, each an existing tool that goes on where it was stopped.

| file in the folder                  | what                                                                     |
| ----------------------------------- | ------------------------------------------------------------------------ |
| ``recipe.json``, ``clock.json``     | what is made, and the seconds that every stage has taken                  |
| ``minima.extxyz``                   | minima by GFN2-xTB, the lowest first                                      |
| ``geometries.extxyz``               | sampled by GFN2-xTB around them, with their labels                        |
| ``cheap/``, ``taught.safetensors``  | a model of these labels, taught by its own runs, see `active`             |
| ``first.extxyz``, ``labels/``       | dear labels of geometries that the cheap model chose; the campaigns       |
| ``exam/``                           | verdicts on the potential, and what it was taught by them                 |
| ``model.safetensors``               | the potential                                                             |
| ``dataset.extxyz``                  | what it learned                                                           |
| ``report.html``, ``report.json``    | what it is good for, what not, what it cost                               |
"""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from iqagp_jax import sampling
from iqagp_jax.active import learn, least_variance
from iqagp_jax.data.dataset import DECIMALS, Dataset
from iqagp_jax.data.extxyz import load_dataset, save_dataset, unlabelled, write_frames
from iqagp_jax.dynamics.metadynamics import choose_variables
from iqagp_jax.dynamics.record import Run
from iqagp_jax.families.gp.fit import fit_gp
from iqagp_jax.families.gp.model import Model
from iqagp_jax.families.gp.teach import Fitted
from iqagp_jax.labels.plan import check, check_state, read_geometries
from iqagp_jax.machine.files import checksum, clear_unfinished, output_folder, write_atomically
from iqagp_jax.machine.lock import owned
from iqagp_jax.machine.parts import differences, kept_in
from iqagp_jax.machine.progress import in_words
from iqagp_jax.making.page import write_report
from iqagp_jax.making.recipe import ROUNDS, Clock, Recipe
from iqagp_jax.modelfile import load_model, save_model
from iqagp_jax.potential import energy_and_forces
from iqagp_jax.references.dft import DFT
from iqagp_jax.references.xtb import XTB, relabelled, xtb
from iqagp_jax.system.elements import check_electrons
from iqagp_jax.system.geometry import proton_transfers, sum_of_radii
from iqagp_jax.units import KCAL_MOL
from iqagp_jax.verdict.replicas import as_minima
from iqagp_jax.verdict.truth import choose_frames

WINDOW = 10.0
"""Minima up to this energy above the lowest are basins of the molecule, kcal/mol."""

CANDIDATES = 1500
"""Geometries among which those of the first dear labels are chosen."""

HIGHEST = 60.0
"""Geometries with a higher energy above the minimum get no dear label, kcal/mol."""

CHEAP_SHARE, TEACHING_SHARE = 0.25, 0.6
"""Of the time, that the model of GFN2-xTB may take before the next stage: beneath another level, and where it is all."""

TIMED = 4
"""Dear labels that are made first, to see how many there is time for."""

TICK = 5.0
"""Seconds between two writings of the clock."""

TEACHING_ROUNDS = 8
EXAM_ROUNDS = 8

Progress = Callable[..., Iterable]


@dataclass
class Making:
    """A molecule on its way: its folder, its recipe, and the hands that work."""

    out: Path
    recipe: Recipe
    starts: list[Atoms]
    clock: Clock
    pool: Executor
    workers: int
    progress: Progress
    say: Callable[[str], Any]

    def minima(self) -> list[Atoms]:
        """All minima within `WINDOW`: of conformers, and of what a proton transfer makes of them."""
        path, recipe = self.out / "minima.extxyz", self.recipe
        if not path.exists():
            with self.clock.stage("minima"), self._parts() as parts:
                calculator = partial(xtb, recipe.charge, recipe.spin)
                shown = partial(self.progress, description="minima")
                found = sampling.distinct_minima(self.starts, calculator, parts, shown, WINDOW)
                if moved := [after for atoms in found for after in proton_moved(atoms)]:
                    shown = partial(self.progress, description="tautomers")
                    again = partial(sampling.distinct_minima, window=WINDOW, name="tautomer")
                    found = again([*found, *moved], calculator, parts, shown)
                whole = [a for a in found if sampling.is_whole(a.get_chemical_symbols(), a.positions)]
                if not whole:
                    raise ValueError(f"expected a molecule that GFN2-xTB holds together, found pieces of {recipe.molecule}")
                if torn := len(found) - len(whole):
                    self.say(f"{torn} of {len(found)} minima are in pieces, and left out")
                write_frames(whole, path)
        found = read_geometries(path)
        self.say(f"{len(found)} minima within {WINDOW:g} kcal/mol")
        return found

    def sampled(self, minima: list[Atoms]) -> Dataset:
        """Geometries around the minima with labels by GFN2-xTB, their splits stored."""
        path, recipe = self.out / "geometries.extxyz", self.recipe
        if not path.exists():
            with self.clock.stage("sampling"), self._parts() as parts:
                variables = choose_variables(minima[0].get_chemical_symbols(), minima[0].get_positions())
                plan = recipe.sampling(len(minima), len(minima[0]), bool(variables))
                calculator = partial(xtb, recipe.charge, recipe.spin)
                frames, dropped = sampling.sample(minima, plan, calculator, variables, recipe.seed, parts, True, self.pool)
                bare = unlabelled(frames, "what was sampled")
                labelling = partial(self._track, description="labelling")
                data = relabelled(bare, self.cheap_reference(bare.species), labelling)
                dropped["no label by GFN2-xTB"] = len(bare) - len(data)
                told = ", ".join(f"{n} {reason}" for reason, n in sorted((+dropped).items()))
                self.say(f"{len(data)} geometries sampled" + (f"; dropped: {told}" if told else ""))
                save_dataset(data, path)
        return load_dataset(path)

    def cheap(self, data: Dataset, minima: list[Atoms]) -> tuple[Model, Dataset]:
        """A model of GFN2-xTB that its own runs have taught, and what it learned; as it was when the next stage began."""
        path, reference = self.out / "taught.safetensors", self.cheap_reference(data.species)
        if not path.exists():
            with self.clock.stage("cheap model"):
                model = self._fitted(self.out / "cheap.safetensors", data)
                protocol = self.recipe.teaching(as_minima(minima), data.species)
                model, _ = self._taught("cheap", model, data, reference, protocol, TEACHING_ROUNDS)
                save_model(model, path)
        return load_model(path), load_dataset(self.out / "cheap" / "dataset.extxyz")

    def first_labels(self, model: Model, learned: Dataset) -> Dataset:
        """Dear labels of geometries that the cheap model learned or visited, those that tell most about all."""
        path, listed = self.out / "first.extxyz", self.out / "first-geometries.extxyz"
        if not path.exists():
            with self.clock.stage("first labels"):
                shown = partial(self._track, description="first labels")
                labels = partial(self.reference(learned.species).labels, progress=shown)
                if not listed.exists():
                    chosen = self._chosen(model, learned)
                    write_frames([Atoms(learned.species, positions=r) for r in chosen], listed)
                chosen = np.array([atoms.positions for atoms in read_geometries(listed)])
                labels(chosen[:TIMED])
                chosen = chosen[: self._affordable()]
                made = [labels(part) for part in (chosen[:TIMED], chosen[TIMED:]) if len(part)]
                energy, forces = (np.concatenate(each) for each in zip(*made, strict=True))
                level = replace(self.recipe.plan.level_of(learned.species), sampler=learned.level.sampler)
                origin = {"source": np.full(len(chosen), "first"), "split": np.full(len(chosen), "train")}
                data = Dataset(learned.species, chosen, energy, forces, origin=origin, level=level)
                if lost := int(np.isnan(energy).sum()):
                    self.say(f"{lost} of {len(energy)} labels were rejected")
                save_dataset(data[np.isfinite(energy)], path)
        return load_dataset(path)

    def _chosen(self, model: Model, learned: Dataset) -> np.ndarray:
        """Geometries (n, N, 3) for the first labels, those first that tell most about all."""
        candidates = self._candidates(model, learned)
        return candidates[least_variance(Fitted.of(model).energy_covariance(candidates), self.recipe.first)]

    def _affordable(self) -> int:
        """How many first labels fit into half of what is left, as long as the first `TIMED` took; as it was decided once."""
        decided = self.out / "first.json"
        if not decided.exists():
            self.clock.tick()
            each = self.clock.taken / TIMED
            n = int(min(self.recipe.first, max(TIMED, self.clock.left / 2 / each)))
            self.say(f"{n} labels by {self.recipe.level} first, {in_words(n * each)}")
            write_atomically(decided, json.dumps(n))
        return json.loads(decided.read_text())

    def over(self, cheap: Model, data: Dataset) -> Model:
        """A model of the difference between the dear labels and the cheap model."""
        with self.clock.stage("difference"):
            return self._fitted(self.out / "difference.safetensors", data, cheap)

    def exam(self, model: Model, data: Dataset, minima: list[Atoms]) -> tuple[Model, Dataset]:
        """Verdicts by longer runs, and lessons, until one has no flaw, or labels or time are spent."""
        with self.clock.stage("exam"):
            protocol = self.recipe.exam(as_minima(minima))
            options: dict[str, Any] = {}
            if not self.recipe.is_cheap:
                each = protocol.frames * len(protocol.temperatures)
                options = {"truth_last": True, "learn_relabelled": True, "per_round": each}
            reference = self.reference(data.species)
            rounds = EXAM_ROUNDS if self.recipe.is_cheap else ROUNDS - 1
            return self._taught("exam", model, data, reference, protocol, rounds, **options)

    def cheap_reference(self, species: tuple[str, ...]) -> XTB:
        """GFN2-xTB."""
        return XTB(species, self.recipe.charge, self.recipe.spin, self.pool)

    def reference(self, species: tuple[str, ...]) -> XTB | DFT:
        """What the potential is held to."""
        if self.recipe.is_cheap:
            return self.cheap_reference(species)
        return DFT(self.recipe.plan, species, self.out / "labels", self.pool, self.workers)

    def _taught(
        self, name: str, model: Model, data: Dataset, reference: Any, protocol: Any, rounds: int, **options: Any
    ) -> tuple[Model, Dataset]:
        """`active.learn` in a folder of that name, which ends in time for another round."""
        # What comes after the cheap model needs time too.
        share = 1.0 if name == "exam" else TEACHING_SHARE if self.recipe.is_cheap else CHEAP_SHARE
        judged = False

        def enough(told: list[dict[str, Any]]) -> bool:
            nonlocal judged
            judged = True
            self.clock.tick()
            taken = self.clock.taken
            each, row = taken / len(told), told[-1]
            right = "" if row["right"] is None else f", {row['right']} right"
            error = "" if row["de_median"] is None else f", worst median |dE| {row['de_median']:.2g} kcal/mol"
            self.say(
                f"{name}, round {row['round']}: {row['survived']} of {row['replicas']} survived{right}{error};"
                f" {self.clock}, a round takes {in_words(each)}"
            )
            return share * self.clock.left - (1 - share) * taken < each

        out = self.out / name
        options |= {"progress": self._ticking, "enough": enough}
        try:
            learned, _ = learn(model, data, out, reference, protocol, rounds, **options)
        except (ValueError, RuntimeError) as error:
            if not judged:
                raise
            self.say(f"{name} ended before its time: {error}")
            learned = load_model(out / "model.safetensors")
        return learned, load_dataset(out / "dataset.extxyz")

    def _fitted(self, path: Path, data: Dataset, base: Model | None = None) -> Model:
        if not path.exists():
            steps = partial(self.progress, description="hyperparameters")
            # GFN2-xTB has geometries where its SCF ends in another state: they must not bend what all others say.
            save_model(fit_gp(data, base=base, local=self.recipe.local, robust=True, progress=steps), path)
        return load_model(path)

    def _candidates(self, model: Model, learned: Dataset) -> np.ndarray:
        """Positions (n, N, 3): what the cheap model learned, and frames of its last runs, none of them high in energy."""
        last = sorted((self.out / "cheap").glob("round-*/model"), key=lambda path: int(path.parent.name[6:]))[-1]
        run = Run.open(last)
        replica, frame, _ = choose_frames(run, CANDIDATES // max(len(run.groups), 1))
        visited = np.round(run.trajectory.positions[frame, replica], DECIMALS)
        highest = np.nanmin(learned.energy) + HIGHEST * KCAL_MOL  # labels that were left out are NaN
        low = learned.energy < highest
        visited = visited[np.asarray(energy_and_forces(model)(visited)[0]) < highest]
        train = learned.positions[low & (learned.origin["split"] == "train")]
        every = np.concatenate([train, visited])
        return every[np.random.default_rng(self.recipe.seed).permutation(len(every))[:CANDIDATES]]

    def _parts(self) -> Any:
        recipe = asdict(self.recipe)
        return kept_in(self.out / "sampling", {name: recipe[name] for name in ("molecule", "charge", "spin", "seed")})

    def _track(self, items: Iterable, total: int, description: str) -> Iterable:
        return self._ticking(items, description, total)

    def _ticking(self, items: Iterable, description: str, total: int) -> Iterable:
        """A bar; what was done by a process that is killed counts as spent."""
        for item in self.progress(items, description, total):
            yield item
            self.clock.tick(least=TICK)


def make(
    recipe: Recipe,
    out: str | Path,
    pool: Executor,
    workers: int = 1,
    budget: float | None = None,
    progress: Progress = lambda items, description, total=None: items,
    say: Callable[[str], Any] = lambda line: None,
) -> dict[str, Any]:
    """Make a potential of a molecule in a folder, or go on there; the table above tells what is in it.

    Args:
        recipe: what is made.
        pool: executor of ``concurrent.futures`` for labels, ``workers`` at a time.
        budget: seconds of work, all calls together. No round of lessons is begun that would not end within it; each stage has
            one verdict, whatever the time.
        progress: wraps iterables, as a progress bar does; gets a word for what is done, and their length.
        say: gets a line of what was found, at every stage.

    Returns what ``report.json`` holds.

    Raises ValueError, in a sentence, where the folder holds another recipe, for a level that PySCF does not know, and for a
    charge or electrons that the molecule cannot have.
    """
    folder = output_folder(Path(out))
    with owned(folder):
        clear_unfinished(folder)
        starts = sampling.starting_geometries(recipe.molecule, seed=recipe.seed)
        check_molecule(recipe, starts)
        claim(folder, recipe, starts)
        making = Making(folder, recipe, starts, Clock(folder / "clock.json", budget), pool, workers, progress, say)
        minima = making.minima()
        data = making.sampled(minima)
        model, learned = making.cheap(data, minima)
        if not recipe.is_cheap:
            learned = making.first_labels(model, learned)
            model = making.over(model, learned)
        model, learned = making.exam(model, learned, minima)
        save_model(model, folder / "model.safetensors")
        save_dataset(learned, folder / "dataset.extxyz")
        return write_report(making, model, minima)


def check_molecule(recipe: Recipe, starts: list[Atoms]) -> None:
    """ValueError, in a sentence, before anything is made: for charges and electrons that cannot be, and levels unknown."""
    check_electrons(starts[0].get_chemical_symbols(), recipe.charge, recipe.spin)
    check_state(starts, recipe.charge, recipe.spin)
    charge = sampling.formal_charge(recipe.molecule)
    if charge not in (None, recipe.charge):
        raise ValueError(f"expected the charge of {recipe.molecule}, {charge}, found {recipe.charge}; give --charge {charge}")
    if not recipe.is_cheap:
        check(starts, recipe.plan)


def claim(out: Path, recipe: Recipe, starts: list[Atoms]) -> None:
    """Write down what a folder is for, or ValueError, in a sentence, where it is for something else."""
    path, told = out / "recipe.json", json.loads(json.dumps(asdict(recipe)))
    species = " ".join(starts[0].get_chemical_symbols())
    told["geometries"] = checksum(species, {str(k): atoms.positions.round(3) for k, atoms in enumerate(starts)})[:16]
    if path.exists() and (other := differences(told, json.loads(path.read_text()))):
        raise ValueError(f"expected the recipe of {path}, found another ({other}); give the same, or another --out")
    write_atomically(path, json.dumps(told, indent=1))


def proton_moved(atoms: Atoms) -> list[Atoms]:
    """What a molecule becomes when a hydrogen in reach of an acceptor goes over to it, its bond as long as radii say."""
    species, found = atoms.get_chemical_symbols(), []
    radii = sum_of_radii(species)
    for _, hydrogen, acceptor in proton_transfers(species, atoms.positions):
        moved = atoms.copy()
        away = moved.positions[hydrogen] - moved.positions[acceptor]
        moved.positions[hydrogen] = moved.positions[acceptor] + radii[hydrogen, acceptor] * away / np.linalg.norm(away)
        found.append(moved)
    return found
