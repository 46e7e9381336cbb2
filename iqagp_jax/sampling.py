"""Geometries worth labelling: metadynamics, hot dynamics, distorted bonds and compressed contacts, by GFN2-xTB.

Every geometry says in its ``info`` where it comes from: ``source`` (metadynamics, thermal, displaced, bond, contact),
``split`` (train, test_500K, ...), ``temperature`` (K), ``run`` and ``time`` (fs).

The work is done in parts, a run each, and what is kept of them (`machine.parts`) is not done again. A part's random numbers are
its own, so that the geometries are the same whether the work was interrupted or not.
"""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
from ase.md.langevin import Langevin
from ase.optimize import BFGS

from iqagp_jax.dynamics.metadynamics import Hills, WellTempered, choose_variables
from iqagp_jax.labels.plan import check_geometries, read_geometries
from iqagp_jax.machine.parts import NOTHING_KEPT, Arrays, Parts
from iqagp_jax.machine.progress import progress_bar
from iqagp_jax.machine.warn import warn
from iqagp_jax.references.xtb import xtb as xtb
from iqagp_jax.system.geometry import bond_graph, graph_distances, moved_side, pair_distances, sum_of_radii
from iqagp_jax.units import KCAL_MOL

TIMESTEP = 0.5
"""Integration step of the sampling dynamics in fs."""

FRICTION = 0.01
"""Langevin friction in 1/fs."""

EQUILIBRATION = 1000.0
"""Discarded beginning of every run in fs."""

HILL_SPACING = 25.0
"""Time between two hills of metadynamics in fs."""

METADYNAMICS_SPACING = 50.0
"""Time between two frames of metadynamics in fs."""

STRIDES = 10
"""Strides of the equilibration, after each of which the progress is shown."""

RELAX_STEPS = 1000
"""Of the relaxation of a starting geometry, at most."""

TRIES = 20
"""Distorted geometries are tried so many times their number, at most."""

SAME_GEOMETRY = 1e-3
"""Geometries whose distances all agree within this (angstrom) are one."""

SAME_ENERGY = 0.1
"""Minima whose energies agree within this (kcal/mol) are one: conformers and their mirror images."""

MAX_CONFORMER_ENERGY = 6.0
"""Runs start from the minima up to this energy (kcal/mol) above the lowest."""

MAX_DISTORTION_ENERGY = 150.0
"""Distorted geometries above this energy over the minimum (kcal/mol) are dropped: no dynamics goes there."""


@dataclass(frozen=True)
class SamplingPlan:
    """How many geometries of which source.

    ``metadynamics`` and ``thermal`` map temperature (K) to the number of training geometries; ``test`` maps
    temperature to the number of test geometries, which come from unbiased runs of their own and are not selected.
    ``runs`` trajectories are started per temperature, those of metadynamics going on with each other's hills.
    Training frames lie at least ``train_spacing`` fs apart, test frames ``test_spacing`` fs. ``pool_factor`` times
    the wanted number of frames is generated before farthest-point selection.
    """

    metadynamics: dict[float, int]
    thermal: dict[float, int]
    displaced: int
    bond: int
    contact: int
    test: dict[float, int]
    runs: int = 10
    train_spacing: float = 20.0
    test_spacing: float = 100.0
    pool_factor: int = 3

    @property
    def dynamics(self):
        """All dynamics, as `Dynamics`, in the order in which they are made."""
        test = [Dynamics("test", t, n, self.test_spacing, self.runs, 1) for t, n in self.test.items()]
        wanted = [("metadynamics", METADYNAMICS_SPACING, 3), ("thermal", self.train_spacing, 0)]
        return test + [
            Dynamics(source, t, self.pool_factor * n, spacing, self.runs, stream)
            for source, spacing, stream in wanted
            for t, n in getattr(self, source).items()
        ]

    @property
    def candidates(self):
        """How many distorted geometries of each kind are made before the selection."""
        return {source: self.pool_factor * getattr(self, source) for source in DISTORTIONS}

    @property
    def steps(self):
        """Calculations of energy and forces, as many as can be foreseen."""
        return sum(d.runs * d.steps for d in self.dynamics) + sum(self.candidates.values())


@dataclass(frozen=True)
class Dynamics:
    """Runs of one kind (test, metadynamics, thermal) at one temperature (K), which together give ``count`` frames."""

    kind: str
    temperature: float
    count: int
    spacing: float
    """between frames, fs"""
    runs: int
    stream: int
    """of random numbers"""

    @property
    def per_run(self):
        """Frames of a run."""
        return -(-self.count // self.runs)

    @property
    def steps(self):
        """Integration steps of a run."""
        return round(EQUILIBRATION / TIMESTEP) + self.per_run * round(self.spacing / TIMESTEP)

    @property
    def n_hills(self):
        """Room for the hills of all runs."""
        return self.runs * round((EQUILIBRATION + self.per_run * self.spacing) / HILL_SPACING + 2)

    def __str__(self):
        return f"{self.kind} at {self.temperature:g} K"


def starting_geometries(molecule, n_conformers=20, seed=0):
    """ASE atoms to start from: conformers of a SMILES string by RDKit, or the geometries of a file that ASE reads."""
    if Path(molecule).suffix:
        if not Path(molecule).is_file():
            raise FileNotFoundError(f"expected a SMILES string or an existing geometry file, found {molecule!r}")
        geometries = read_geometries(Path(molecule))
        check_geometries(geometries)
        for k, atoms in enumerate(geometries):
            _is_one_molecule(atoms, f"geometry {k} of {molecule}")
        return geometries
    from rdkit import Chem
    from rdkit.Chem.rdDistGeom import EmbedMultipleConfs

    parsed = Chem.MolFromSmiles(molecule)
    if parsed is None or not parsed.GetNumAtoms():
        raise ValueError(f"expected a SMILES string or a geometry file, found {molecule!r}, which RDKit cannot parse")
    parsed = Chem.AddHs(parsed)
    # RDKit multiplies the seed by the conformer's number: zero would give the same one every time.
    conformers = EmbedMultipleConfs(parsed, n_conformers, randomSeed=seed + 1)
    if not len(conformers):
        raise ValueError(f"RDKit found no geometry for the SMILES {molecule!r}; give an .xyz file instead")
    symbols = [a.GetSymbol() for a in parsed.GetAtoms()]
    return [Atoms(symbols, positions=parsed.GetConformer(c).GetPositions()) for c in conformers]


def formal_charge(molecule):
    """The charge that a SMILES string says; None of a file."""
    if Path(molecule).suffix:
        return None
    from rdkit import Chem

    return Chem.GetFormalCharge(Chem.MolFromSmiles(molecule))


def minimise(atoms, calculator, fmax=0.005):
    """A copy of ``atoms`` relaxed to forces below ``fmax`` eV/angstrom."""
    relaxed = atoms.copy()
    relaxed.calc = calculator
    if not BFGS(relaxed, logfile=None).run(fmax=fmax, steps=RELAX_STEPS):
        raise RuntimeError(f"a geometry did not relax to {fmax} eV/angstrom in {RELAX_STEPS} steps; start nearer a minimum")
    return relaxed


def distinct_minima(
    geometries,
    make_calculator,
    parts=NOTHING_KEPT,
    progress=lambda items: items,
    window=MAX_CONFORMER_ENERGY,
    name="minimum",
):
    """The different minima to which the geometries relax, lowest first, up to ``window`` kcal/mol above it.

    ``progress`` wraps the geometries, as a progress bar does. What ``parts`` keep, by the ``name``, is not relaxed again.
    """

    def minimum(atoms):
        try:
            relaxed = minimise(atoms, make_calculator())
        except RuntimeError:
            return {"positions": atoms.positions, "energy": np.array(np.inf)}
        return {"positions": relaxed.positions, "energy": np.array(relaxed.get_potential_energy())}

    relaxed = []
    for k, atoms in enumerate(progress(geometries)):
        found = parts.part(f"{name}-{k}", lambda atoms=atoms: minimum(atoms))
        relaxed.append((float(found["energy"]) / KCAL_MOL, Atoms(atoms.symbols, positions=found["positions"])))
    if lost := sum(np.isinf(energy) for energy, _ in relaxed):
        told = f"{lost} of {len(relaxed)} starting geometries did not relax in {RELAX_STEPS} steps"
        if lost == len(relaxed):
            raise RuntimeError(f"{told}; start nearer a minimum")
        warn(f"{told}, and are left out")
        relaxed = [pair for pair in relaxed if np.isfinite(pair[0])]
    relaxed.sort(key=lambda pair: pair[0])
    energies = np.array([energy for energy, _ in relaxed])
    new = np.diff(energies, prepend=-np.inf) > SAME_ENERGY
    return [relaxed[k][1] for k in np.flatnonzero(new & (energies < energies[0] + window))]


class Biased(Calculator):
    """An ASE calculator with the bias of `WellTempered` metadynamics on top; ``hills`` grow with `deposit`."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 (ASE's own declaration)
    atoms: Any

    def __init__(self, calculator, bias, hills):
        super().__init__()
        self.calculator, self.bias, self.hills = calculator, bias, hills

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Energy (eV) and forces (eV/angstrom) with the bias."""
        super().calculate(atoms, properties, system_changes)
        with jax.enable_x64(True):
            energy, gradient = _bias_and_gradient(self.bias, self.atoms.positions, self.hills)
        self.results = {
            "energy": self.calculator.get_potential_energy(self.atoms) + float(energy),
            "forces": self.calculator.get_forces(self.atoms) - np.asarray(gradient),
        }

    def deposit(self):
        """Leave a hill where the atoms are."""
        if int(self.hills.n_hills) == len(self.hills.heights):
            raise RuntimeError(f"expected at most {len(self.hills.heights)} hills; make room for more with `no_hills`")
        with jax.enable_x64(True):
            self.hills = _deposit(self.bias, self.hills, self.atoms.positions)
        self.results = {}


_bias_and_gradient = jax.jit(jax.value_and_grad(lambda bias, r, hills: bias(r, hills), argnums=1), static_argnums=0)
_deposit = jax.jit(lambda bias, hills, r: bias.deposit(hills, r), static_argnums=0)


def langevin(atoms, calculator, temperature, n_frames, spacing, rng, stepped=lambda steps: None):
    """Positions of ``n_frames`` frames ``spacing`` fs apart of one Langevin run at ``temperature`` K.

    A `Biased` calculator gets a hill every `HILL_SPACING` fs, also in the equilibration. ASE's default ``fixcm=True``
    runs hot on a small molecule; the centre of mass is left free to diffuse. ``stepped`` is told of steps that were made.
    """
    moving = atoms.copy()
    moving.calc = calculator
    spreads = np.sqrt(moving.get_masses() * units.kB * temperature)
    moving.set_momenta(rng.standard_normal((len(moving), 3)) * spreads[:, None])
    dynamics = Langevin(
        moving, TIMESTEP * units.fs, temperature_K=temperature, friction=FRICTION / units.fs, fixcm=False, rng=rng
    )
    if isinstance(calculator, Biased):
        dynamics.attach(calculator.deposit, interval=round(HILL_SPACING / TIMESTEP))
    for _ in range(STRIDES):
        dynamics.run(round(EQUILIBRATION / TIMESTEP / STRIDES))
        stepped(round(EQUILIBRATION / TIMESTEP / STRIDES))
    frames = []
    for _ in range(n_frames):
        dynamics.run(round(spacing / TIMESTEP))
        stepped(round(spacing / TIMESTEP))
        frames.append(moving.get_positions())
    return frames


def is_whole(species, positions):
    """Whether all atoms hang together in one covalently bonded molecule and none sits on another."""
    distances = pair_distances(positions) + 10 * np.eye(len(species))
    joined = bond_graph(species, positions) | hold_together(distances, species)
    return distances.min() > 0.5 and np.isfinite(graph_distances(joined)).all()


def hold_together(distances, species):
    """Pairs within 1.6 sums of covalent radii: still one molecule, if a stretched one."""
    return distances < 1.6 * sum_of_radii(species)


def displaced(positions, species, rng):
    """Every coordinate moved by a normal deviate of 0.05 to 0.2 angstrom."""
    return positions + rng.uniform(0.05, 0.2) * rng.normal(size=positions.shape)


def distorted_bond(positions, species, rng):
    """One random bond stretched or compressed to 0.75 to 1.5 times its length, moving one side of the molecule."""
    bonded = bond_graph(species, positions)
    i, j = rng.permutation(rng.choice(np.argwhere(bonded)))
    factor = rng.uniform(0.75, 1.5)
    return positions + np.outer(moved_side(bonded, i, j), (factor - 1) * (positions[j] - positions[i]))


def compressed_contact(positions, species, rng):
    """Two atoms at least three bonds apart pushed nearer than they were, to 0.7 to 1.8 sums of covalent radii.

    The others follow with half the displacement for every bond between, so that the push bends the molecule rather
    than breaking one bond.
    """
    separation = graph_distances(bond_graph(species, positions))
    pairs = np.argwhere(separation >= 3)
    if not len(pairs):
        pairs = np.argwhere(separation == 2)
    i, j = rng.choice(pairs)
    axis = positions[j] - positions[i]
    distance = np.linalg.norm(axis)
    radii = sum_of_radii(species)[i, j]
    target = rng.uniform(0.7, min(1.8, distance / radii)) * radii
    follow = 0.5 ** separation[i] - 0.5 ** separation[j]
    push = (distance - target) / (follow[i] - follow[j])
    return positions + np.outer(follow * push, axis / distance)


DISTORTIONS = {"displaced": displaced, "bond": distorted_bond, "contact": compressed_contact}


def inverse_distances(positions):
    """1/r of all pairs, (n, N(N-1)/2) from positions (n, N, 3)."""
    i, j = np.triu_indices(positions.shape[1], 1)
    return 1 / pair_distances(positions)[:, i, j]


def farthest_points(features, n, rng):
    """Indices of ``n`` rows of ``features`` (m, D), each farthest from those chosen before; the first is random."""
    chosen = [int(rng.integers(len(features)))]
    distance = np.linalg.norm(features - features[chosen[0]], axis=1)
    while len(chosen) < n:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(features - features[chosen[-1]], axis=1))
    return np.array(chosen)


def sample(minima, plan, make_calculator, variables=None, seed=0, parts=NOTHING_KEPT, progress=False, pool=None):
    """Training and test geometries around ``minima`` (lowest first) after ``plan``.

    Returns a list of ASE atoms and a count of what was dropped, by reason. The training geometries come in training
    order: the sources are interleaved at random in their shares, so the first n are a smaller set of the same kind.
    Runs start from the minima in turn. ``make_calculator`` is called for every run, as a calculator that remembers its
    last wave function would make runs depend on one another. Metadynamics biases the collective ``variables``, by
    default those of `metadynamics.choose_variables`. What ``parts`` keep is not made again. ``progress`` shows a bar.
    Runs that do not need each other's hills are shared by the processes of a ``pool``, if there is one.
    """
    if variables is None:
        variables = choose_variables(minima[0].get_chemical_symbols(), minima[0].get_positions())
    _check(plan, minima[0], variables)
    rng, dropped = np.random.default_rng([seed, 2]), Counter[str]()
    with progress_bar(plan.steps, progress) as (show, tell):
        work = _Work(minima, tuple(variables), make_calculator, seed, parts, _Shown(show), tell, pool)
        elsewhere = [work.elsewhere(dynamics) for dynamics in plan.dynamics]
        made = {d: work.run(d, dropped, runs) for d, runs in zip(plan.dynamics, elsewhere, strict=True)}
        test = [
            _tagged(atoms, source="thermal", split=f"test_{d.temperature:g}K")
            for d in made
            for atoms in made[d][: d.count]
            if d.kind == "test"
        ]
        training = [d for d in made if d.kind != "test"]
        groups = [select(made[d], d.count // plan.pool_factor, rng) for d in training]
        pool = [atoms for d in training for atoms in made[d]]
        for source, count in plan.candidates.items():
            if count:
                groups.append(select(work.distort(source, pool, count, dropped), count // plan.pool_factor, rng))
    frames = [_tagged(a, split="train") for a in interleave(groups, rng)] + test
    kept = without_duplicates(frames)
    if len(kept) < len(frames):
        dropped["duplicate"] = len(frames) - len(kept)
    return kept, +dropped


def _is_one_molecule(atoms, name):
    """ValueError, in a sentence, unless they hang together."""
    if len(atoms) < 2 or not is_whole(atoms.get_chemical_symbols(), atoms.get_positions()):
        raise ValueError(f"expected one molecule of at least two atoms, found one atom or pieces in {name}; give another")


def _check(plan, molecule, variables):
    """ValueError, in a sentence, for a plan that this molecule, an ASE atoms, does not allow."""
    _is_one_molecule(molecule, str(molecule.symbols))
    if plan.metadynamics and not variables:
        raise ValueError(
            "expected torsions about single bonds or a hydrogen bond to bias, found none in this molecule;"
            " give collective variables or do without metadynamics"
        )
    if not plan.dynamics:
        raise ValueError("expected geometries from metadynamics, hot dynamics or test runs, found none planned; ask for some")
    if any(plan.candidates.values()) and not (plan.metadynamics or plan.thermal):
        raise ValueError(
            "expected geometries from metadynamics or hot dynamics to distort, found none planned; ask for some, or for none"
            " that are displaced, with a distorted bond or with a near contact"
        )
    if plan.contact and len(molecule) < 3:
        raise ValueError(f"expected atoms two bonds apart for near contacts, found {molecule.symbols}; ask for no contacts")


class _Shown:
    """The steps that were made, on a bar."""

    def __init__(self, show):
        self.show, self.made = show, 0

    def __call__(self, steps, what=""):
        self.made += steps
        self.show(completed=self.made, **{"description": what} if what else {})


@dataclass(frozen=True)
class _Work:
    """What all parts of a sampling share."""

    minima: list[Atoms]
    variables: tuple
    make_calculator: Callable
    seed: int
    parts: Parts
    stepped: _Shown
    tell: Callable
    pool: Executor | None = None

    @property
    def species(self):
        return self.minima[0].get_chemical_symbols()

    def run(self, dynamics, dropped, elsewhere):
        """Frames of all runs of a `Dynamics` that are one molecule; some are made ``elsewhere``, see there."""
        bias = WellTempered(self.variables, dynamics.temperature)
        with jax.enable_x64(True):
            hills = bias.no_hills(dynamics.n_hills)
        whole = []
        for run in range(dynamics.runs):
            before = self.stepped.made
            self.stepped(0, f"{dynamics}, run {run + 1} of {dynamics.runs}")
            here = partial(self._one_run, dynamics, run, bias, hills)
            made = self.parts.part(_name(dynamics, run), elsewhere[run].result if run in elsewhere else here)
            self.stepped(before + dynamics.steps - self.stepped.made)  # also of a run that was kept
            if dynamics.kind == "metadynamics":
                with jax.enable_x64(True):
                    hills = Hills(*(jax.numpy.asarray(made[name]) for name in Hills._fields))
            for k, positions in enumerate(made["positions"]):
                time = EQUILIBRATION + (k + 1) * dynamics.spacing
                info = {"source": dynamics.kind, "temperature": dynamics.temperature, "run": run, "time": time}
                whole.append(Atoms(self.species, positions=positions, info=info))
        found = [atoms for atoms in whole if is_whole(self.species, atoms.positions)]
        if lost := len(whole) - len(found):
            dropped[f"{dynamics.kind}: dissociated at {dynamics.temperature:g} K"] += lost
        self.tell(f"{dynamics}: {len(found)} frames from {dynamics.runs} run{'s' * (dynamics.runs > 1)}")
        return found

    def elsewhere(self, dynamics):
        """Runs by their numbers as futures of the pool, where there is one and they need no hills."""
        if self.pool is None or dynamics.kind == "metadynamics":
            return {}
        lacking = [run for run in range(dynamics.runs) if _name(dynamics, run) not in self.parts.kept]
        return {run: self.pool.submit(_unbiased_run, *self._of_run(dynamics, run)) for run in lacking}

    def _of_run(self, dynamics, run):
        """Where a run starts, its calculator's maker, and what its random numbers are of."""
        of_random = [self.seed, dynamics.stream, round(dynamics.temperature), run]
        return self.minima[run % len(self.minima)], dynamics, self.make_calculator, of_random

    def _one_run(self, dynamics, run, bias, hills) -> Arrays:
        start, _, make_calculator, of_random = self._of_run(dynamics, run)
        if dynamics.kind != "metadynamics":
            return _unbiased_run(start, dynamics, make_calculator, of_random, self.stepped)
        biased = Biased(make_calculator(), bias, hills)
        return {**_run(start, dynamics, biased, of_random, self.stepped), **biased.hills._asdict()}

    def distort(self, source, pool, count, dropped):
        """``count`` geometries of a ``pool`` distorted, if so many can be made."""
        self.stepped(0, f"distorted: {source}")
        before = self.stepped.made
        made = self.parts.part(source, partial(self._distorted, source, pool, count))
        self.stepped(before + count - self.stepped.made)
        tries, torn, high = (int(made[name]) for name in ("tries", "torn", "high"))
        dropped[f"{source}: not one molecule"] += torn
        dropped[f"{source}: more than {MAX_DISTORTION_ENERGY:g} kcal/mol above the minimum"] += high
        enough = "were enough for" if len(made["origin"]) == count else "gave"
        self.tell(f"distorted ({source}): {tries} of at most {TRIES * count} tries {enough} {len(made['origin'])} geometries")
        return [
            Atoms(self.species, positions=positions, info={**pool[k].info, "source": source})
            for positions, k in zip(made["positions"], made["origin"], strict=True)
        ]

    def _distorted(self, source, pool, count) -> Arrays:
        rng = np.random.default_rng([self.seed, 4, list(DISTORTIONS).index(source)])
        floor = xtb_energy(self.minima[0], self.make_calculator())
        positions: list[np.ndarray] = []
        origin: list[int] = []
        lost, tries = Counter[str](), 0
        while len(positions) < count and tries < TRIES * count:
            tries += 1
            k = int(rng.integers(len(pool)))
            candidate = Atoms(self.species, positions=DISTORTIONS[source](pool[k].positions, self.species, rng))
            if not is_whole(self.species, candidate.positions):
                lost["torn"] += 1
            elif xtb_energy(candidate, self.make_calculator()) - floor > MAX_DISTORTION_ENERGY * KCAL_MOL:
                lost["high"] += 1
            else:
                positions.append(candidate.positions)
                origin.append(k)
                self.stepped(1)
        found = np.array(positions).reshape(-1, len(self.species), 3)
        return {
            "positions": found,
            "origin": np.array(origin, dtype=int),
            "tries": np.array(tries),
            "torn": np.array(lost["torn"]),
            "high": np.array(lost["high"]),
        }


def _unbiased_run(start, dynamics, make_calculator, of_random, stepped=lambda steps: None) -> Arrays:
    return _run(start, dynamics, make_calculator(), of_random, stepped)


def _run(start, dynamics, calculator, of_random, stepped) -> Arrays:
    """Frames of one run of a `Dynamics`."""
    shape = dynamics.temperature, dynamics.per_run, dynamics.spacing
    frames = langevin(start, calculator, *shape, np.random.default_rng(of_random), stepped)
    return {"positions": np.array(frames).reshape(-1, len(start), 3)}


def _name(dynamics, run):
    """Of a run's part."""
    return f"{dynamics.kind}-{dynamics.temperature}K-{run}"


def select(pool, count, rng):
    """``count`` geometries far from each other."""
    if len(pool) < count:
        raise RuntimeError(f"only {len(pool)} of {count} geometries could be made; raise the temperatures or the pool factor")
    positions = np.array([a.get_positions() for a in pool])
    return [pool[i] for i in farthest_points(inverse_distances(positions), count, rng)]


def without_duplicates(frames):
    """The frames without those whose distances all agree with an earlier one's within `SAME_GEOMETRY`."""
    i, j = np.triu_indices(len(frames[0]), 1)
    distances = pair_distances(np.array([a.get_positions() for a in frames]))[:, i, j]
    kept: list[int] = []
    for k, d in enumerate(distances):
        if not len(kept) or np.abs(distances[kept] - d).max(1).min() > SAME_GEOMETRY:
            kept.append(k)
    return [frames[k] for k in kept]


def interleave(groups, rng):
    """One list of all groups, mixed at random in their proportions; within its group an item keeps its place."""
    ranked = [((k + rng.uniform()) / len(group), n, k) for n, group in enumerate(groups) for k in range(len(group))]
    return [groups[n][k] for _, n, k in sorted(ranked)]


def census(frames):
    """How many frames there are of each (split, source at temperature)."""
    return Counter((a.info["split"], f"{a.info['source']} {a.info['temperature']:g} K") for a in frames)


def _tagged(atoms, **info):
    sampler = f"GFN2-xTB (tblite {version('tblite')}), Langevin dynamics by ase {version('ase')}, iqagp sample"
    return Atoms(atoms, info={**atoms.info, **info, "sampler": sampler})


def xtb_energy(atoms, calculator):
    """Energy in eV; infinite where the SCF does not converge, as at geometries nobody should label."""
    probe = atoms.copy()
    probe.calc = calculator
    try:
        return probe.get_potential_energy()
    except CalculationFailed:
        return np.inf
