"""Labels, and campaigns that make many of them: a folder with a plan, each finished label on disk before the next begins."""

import hashlib
import json
import re
import time
import tomllib
import traceback
import warnings
from collections import defaultdict, deque
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, ground_state_magnetic_moments
from ase.io import iread
from ase.io.extxyz import XYZError
from ase.io.formats import UnknownFileTypeError

from iqagp_jax.data.dataset import DECIMALS, ORIGIN, Dataset
from iqagp_jax.labels.executors import Jobs
from iqagp_jax.machine.files import BROKEN_FILE, write_atomically
from iqagp_jax.machine.lock import owned, owner, stop_requested
from iqagp_jax.units import BOHR, HARTREE

MAX_REMAINDER = 0.5e-3
"""Largest accepted difference between the sum of the raw atomic energies and the total energy, in hartree."""

MAX_MISSING_ELECTRONS = 0.002
"""Largest accepted difference between the sum of the atomic populations and the electron number."""

PLAN = "plan.toml"

PLAN_COMMENT = """\
# `iqagp campaign start` goes on with this plan. The dataset gets the atomic energies of the first partition, or none where
# there is no partition, in less time; a geometry is set aside after so many attempts that failed. With another level of
# theory all labels are made anew.
"""

RECENT = 100
"""Labels that the rate of a campaign is the average of."""


@dataclass(frozen=True)
class Level:
    """Level of theory and partitions of a label; the first partition gives the dataset's atomic energies, none gives none.

    With ``multipoles`` the label holds the atomic moments too: e bohr^l, along the axes of the geometry. Without
    ``forces`` it lacks those, which a set of another partition at the same level has already.
    """

    xc: str = "b3lyp"
    basis: str = "6-31+g(d,p)"
    charge: int = 0
    spin: int = 0
    partitions: tuple[str, ...] = ("becke", "hirshfeld")
    multipoles: bool = False
    forces: bool = True

    def describe(self):
        """Level of theory and programs in words, as written into datasets."""
        from iqagp_jax.labels.iqa import ATOM_GRID
        from iqagp_jax.labels.scf import AUXILIARY_BASIS, is_cartesian

        grid = f"grid {ATOM_GRID['light']}/{ATOM_GRID['heavy']} nwchem-pruned"
        functions = "cartesian" if is_cartesian(self.basis) else "spherical"
        return {
            "level_of_theory": f"{self.xc}/{self.basis} {functions}, density fitting {AUXILIARY_BASIS}, {grid}",
            "programs": f"pyscf {version('pyscf')}",
        }


def label_geometry(species, positions, level):
    """One label: a JSON-ready dict in eV and angstrom, or a dict with ``rejected`` and the reason.

    The raw atomic energies of every partition are kept in ``raw``; ``remainder`` is what they lack of the total.
    """
    from iqagp_jax.labels import iqa, scf
    from iqagp_jax.labels.partitions import PARTITIONS

    try:
        mol = scf.build_molecule(species, positions, level.basis, level.charge, level.spin)
        tolerance = scf.FOR_ATOMS if level.partitions else scf.FOR_FORCES
        mf = scf.converge(scf.mean_field(mol, level.xc), tolerance)
        atoms = iqa.integrate_atoms(mf, {name: PARTITIONS[name] for name in level.partitions})
    except scf.LabelError as reason:
        return {"rejected": str(reason)}
    for name, integrals in atoms.items():
        remainder = mf.e_tot - integrals.energy.sum()
        missing = mol.nelectron - integrals.population.sum()
        if abs(remainder) > MAX_REMAINDER:
            return {"rejected": f"{name} atomic energies miss the total by {remainder * 1e3:.3f} mHa (limit 0.5)"}
        if abs(missing) > MAX_MISSING_ELECTRONS:
            return {"rejected": f"{name} populations miss {missing:.4f} electrons (limit {MAX_MISSING_ELECTRONS})"}
    label = {
        "programs": f"{level.describe()['programs']}, iqagp_jax {version('iqagp-jax')}",
        "energy": mf.e_tot * HARTREE,
        "raw": {name: (a.energy * HARTREE).tolist() for name, a in atoms.items()},
        "remainder": {name: float(mf.e_tot - a.energy.sum()) * HARTREE for name, a in atoms.items()},
        "charges": {name: (mol.atom_charges() - a.population).tolist() for name, a in atoms.items()},
    }
    if level.forces:
        label["forces"] = (scf.forces(mf) * HARTREE / BOHR).tolist()
    if level.multipoles:
        label["multipoles"] = {name: a.multipoles.tolist() for name, a in atoms.items()}
    return label


def check(geometries, level):
    """ValueError, in a sentence, where geometries (ASE atoms) cannot be labelled at this level at all."""
    from pyscf.gto.basis import BasisNotFoundError

    from iqagp_jax.labels import scf
    from iqagp_jax.labels.partitions import PARTITIONS

    if not geometries:
        raise ValueError("expected at least one geometry to label, found none")
    species = geometries[0].get_chemical_symbols()
    for k, atoms in enumerate(geometries):
        if atoms.get_chemical_symbols() != species:
            raise ValueError(
                f"expected the atoms {' '.join(species)} in every geometry, found"
                f" {' '.join(atoms.get_chemical_symbols())} in geometry {k}"
            )
        if not np.isfinite(atoms.get_positions()).all():
            raise ValueError(f"expected finite positions, found a NaN or infinity in geometry {k}; remove it")
    for key in ORIGIN:
        known = [key in atoms.info for atoms in geometries]
        if any(known) and not all(known):
            raise ValueError(
                f"expected {key} of every geometry or of none, found none of geometry {known.index(False)}; a dataset without"
                " would mix training and test frames: add it there"
            )
    if not set(level.partitions) <= set(PARTITIONS):
        raise ValueError(f"expected partitions among {', '.join(PARTITIONS)}, found {', '.join(level.partitions)}")
    if not level.partitions and not level.forces:
        raise ValueError("expected partitions or forces to label, found neither; name a partition or set forces = true")
    if level.multipoles and not level.partitions:
        raise ValueError("expected a partition into the atoms whose multipoles are wanted, found none; name one")
    check_electrons(geometries[0], level.charge, level.spin)
    check_functional(level.xc)
    elements = sorted(set(species))
    for basis in (level.basis, scf.AUXILIARY_BASIS):
        try:
            with warnings.catch_warnings(action="ignore"):  # PySCF's advice where to look for the basis
                scf.build_molecule(species, geometries[0].get_positions(), basis, level.charge, level.spin)
        except (BasisNotFoundError, KeyError, OSError, ValueError) as error:
            raise ValueError(f"basis {basis!r} is not there for all of {' '.join(elements)}") from error
    if heavy := [symbol for symbol in elements if scf.has_core_potential(level.basis, symbol)]:
        raise ValueError(
            f"basis {level.basis!r} leaves the core of {' '.join(heavy)} to an effective potential, which is not partitioned"
            " into atoms; choose an all-electron basis"
        )


def check_electrons(atoms, charge, spin):
    """ValueError, in a sentence, where ASE atoms with this charge cannot have so many unpaired electrons."""
    electrons = int(atoms.numbers.sum()) - charge
    if (electrons - spin) % 2 or not 0 <= spin <= electrons:
        raise ValueError(
            f"{electrons} electrons cannot have {spin} unpaired ones; set --charge and --spin (unpaired electrons)"
        )


def check_functional(xc):
    """ValueError, in a sentence, for a functional that PySCF does not know or that is not partitioned into atoms."""
    from pyscf.dft import libxc

    if xc.lower() == "hf":
        return
    try:
        libxc.parse_xc(xc)
    except (KeyError, ValueError) as error:
        raise ValueError(f"expected a functional that PySCF knows, found {xc!r}") from error
    if re.search(r"-(d[234]|vv10|nl)", xc.lower()):
        raise ValueError(f"{xc} has a dispersion correction, which is not partitioned into atoms; leave it out")
    if libxc.rsh_coeff(xc)[0] or libxc.is_nlc(xc):
        raise ValueError(
            f"{xc} has range-separated exchange or non-local correlation, which is not partitioned into"
            " atoms; choose an LDA, GGA, meta-GGA or global hybrid"
        )


def label_key(species, positions, level):
    """Name of a label: a hash of geometry and level; what made it is told in the label itself (``programs``)."""
    # Labels that were made before there were these settings keep their names.
    later = {"multipoles": False, "forces": True}
    settings = {name: value for name, value in asdict(level).items() if name not in later or value != later[name]}
    content = json.dumps([list(species), np.round(positions, DECIMALS).tolist(), settings])
    return hashlib.sha256(content.encode()).hexdigest()[:20]


class Task(NamedTuple):
    """A label to be made, and its file."""

    species: list[str]
    positions: np.ndarray
    """(N, 3) angstrom, rounded as in datasets"""
    level: Level
    path: Path

    @classmethod
    def of(cls, atoms, level, folder):
        """The task of ASE atoms; its file is named after everything that determines the label."""
        species, positions = atoms.get_chemical_symbols(), np.round(atoms.get_positions(), DECIMALS)
        return cls(species, positions, level, folder.resolve() / f"{label_key(species, positions, level)}.json")

    @property
    def failed(self):
        """The file of a label set aside: a sentence, then the tracebacks."""
        return self.path.with_suffix(".failed")

    @property
    def label(self):
        """The label, as a rejected one if it was set aside; None where there is neither."""
        if self.path.exists():
            return json.loads(self.path.read_text())
        return {"rejected": self.failed.read_text().partition("\n")[0]} if self.is_set_aside else None

    @property
    def is_set_aside(self):
        """Whether it was given up, and not made after all by a worker that outlived its campaign."""
        return self.failed.exists() and not self.path.exists()


def label_to_files(tasks):
    """Make labels, each on disk before the next begins; returns {path: traceback, or an empty text where it is made}.

    This is what workers run. It passes over labels that are there: jobs may outlive the campaign that submitted them.
    """
    from iqagp_jax.labels.scf import single_thread

    single_thread()
    outcomes = {}
    for task in tasks:
        if stop_requested(task.path.parent):
            break
        if not task.path.exists():
            try:
                label = label_geometry(task.species, task.positions, task.level)
            except Exception:  # whatever a geometry makes a program do
                outcomes[task.path] = traceback.format_exc()
                continue
            write_atomically(task.path, json.dumps(label))
        outcomes[task.path] = ""
    return outcomes


class Queue:
    """The tasks not in flight and what went wrong with them.

    A label that raises an exception ``attempts`` times is set aside. One whose worker died is not at fault: only after
    ``attempts`` deaths is it tried with nothing beside it, after all others, and after as many more set aside.
    Where ``patience`` workers die one after another the fault is elsewhere: RuntimeError.
    """

    def __init__(self, tasks, attempts, patience):
        self.attempts, self.patience = attempts, patience
        self.waiting, self.suspects = deque(tasks), deque()
        self.tracebacks, self.deaths = defaultdict(list), defaultdict(list)
        self.deaths_in_a_row = 0

    def take(self, n, alone):
        """Up to ``n`` tasks to begin with; a suspect only if nothing else is in flight (``alone``)."""
        if self.waiting:
            return [self.waiting.popleft() for _ in range(min(n, len(self.waiting)))]
        return [self.suspects.popleft()] if alone and self.suspects else []

    def clear(self):
        """Begin with no more tasks."""
        self.waiting.clear()
        self.suspects.clear()

    def put_back(self, task, outcome):
        """Take a task back from a worker; returns whether that was its end.

        ``outcome`` is that of `label_to_files`, the exception of the worker that died of it, or None if it was not begun.
        """
        tracebacks, deaths = self.tracebacks[task.path], self.deaths[task.path]
        if isinstance(outcome, Exception):
            deaths.append(outcome)
            self.deaths_in_a_row += 1
            if self.deaths_in_a_row == self.patience:
                raise RuntimeError(f"{self.patience} workers died one after another, lastly: {outcome}; mend that, start again")
        elif outcome:
            tracebacks.append(outcome)
        if len(tracebacks) == self.attempts:
            reason = f"failed {len(tracebacks)} times, lastly: {tracebacks[-1].splitlines()[-1]}"
        elif len(deaths) == 2 * self.attempts:
            reason = f"its worker died {len(deaths)} times, lastly with nothing beside it: {deaths[-1]}"
        elif outcome != "":
            (self.suspects if len(deaths) >= self.attempts else self.waiting).append(task)
            return False
        if outcome:
            write_atomically(task.failed, "\n\n".join([reason, *tracebacks]))
        self.deaths_in_a_row = 0
        return True


@dataclass(frozen=True)
class Campaign:
    """A folder of labels: plan.toml, the geometries, KEY.json for every finished label, KEY.failed for one set aside.

    Who wants a label tried again deletes its KEY.failed. Another level in the plan gives the labels other keys.
    """

    folder: Path
    geometries: list[Atoms]
    level: Level
    attempts: int

    @classmethod
    def load(cls, folder):
        """The campaign of a folder. Raises ValueError, in a sentence, where its plan is nonsense."""
        file, level, attempts = read_plan(folder)
        return cls(Path(folder), read_geometries(file), level, attempts)

    @cached_property
    def tasks(self):
        """One for every geometry, in their order."""
        return [Task.of(atoms, self.level, self.folder) for atoms in self.geometries]

    @cached_property
    def free_atoms(self):
        """One for every element, by its symbol: the free atom at the same level of theory."""
        tasks = {}
        for symbol in sorted(set(self.geometries[0].get_chemical_symbols())):
            spin = round(ground_state_magnetic_moments[atomic_numbers[symbol]])
            atom = Atoms([symbol], positions=np.zeros((1, 3)))
            tasks[symbol] = Task.of(atom, replace(self.level, charge=0, spin=spin), self.folder)
        return tasks

    def run(self, executor, workers, batch=1, progress=lambda items, total: items):
        """Make the missing labels, ``workers`` tasks of ``batch`` geometries at a time, until all are made or it is stopped.

        ``executor`` is any of ``concurrent.futures``. Killing this process or a worker at any moment loses the labels in
        flight only; a stop finishes them, and cancels jobs that have not begun. Raises RuntimeError where workers do
        nothing but die.
        """
        check(self.geometries, self.level)
        with _owned(self.folder):
            missing = self.missing
            for _ in progress(self._run(missing, executor, workers, batch), len(missing)):
                pass

    def _run(self, missing, executor, workers, batch):
        """Yield every task that comes to its end."""
        queue, running = Queue(missing, self.attempts, 10 * workers), {}
        while True:
            if stop_requested(self.folder):
                if isinstance(executor, Jobs):
                    executor.cancel_pending()
                queue.clear()
            while len(running) < workers and (chunk := queue.take(batch, alone=not running)):
                running[executor.submit(label_to_files, chunk)] = chunk
            if not running:
                return
            for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                chunk = running.pop(future)
                try:
                    outcomes = future.result()
                except Exception as death:  # the worker's, as label_to_files returns those of geometries
                    outcomes = {task.path: "" for task in chunk if task.path.exists()}
                    in_flight = [task.path for task in chunk if task.path not in outcomes][:1]
                    outcomes |= dict.fromkeys(in_flight, death)
                yield from (task for task in chunk if queue.put_back(task, outcomes.get(task.path)))

    def dataset(self):
        """`collect` of what is finished so far."""
        atoms = {symbol: task.label for symbol, task in self.free_atoms.items()}
        energies = {symbol: label["energy"] for symbol, label in atoms.items() if label and "energy" in label}
        dataset, rejected = collect(self.geometries, [task.label for task in self.tasks], self.level, energies)
        bad = [(f"free {symbol}", label["rejected"]) for symbol, label in atoms.items() if label and "rejected" in label]
        return dataset, bad + rejected

    @property
    def missing(self):
        """The tasks that are neither made nor set aside, free atoms first, equal geometries once."""
        tasks = {task.path: task for task in (*self.free_atoms.values(), *self.tasks)}.values()
        return [task for task in tasks if not (task.path.exists() or task.is_set_aside)]

    def status(self):
        """How far it is, also while it runs."""
        labels = [task.label for task in self.tasks]
        failed = sum(task.is_set_aside for task in self.tasks)
        rejected = sum("rejected" in label for label in labels if label) - failed
        made = sum(label is not None for label in labels) - rejected - failed
        now, running = time.time(), owner(self.folder)
        lock = self.folder / "lock"  # written by every owner; a copied folder has none
        began = lock.stat().st_mtime if lock.exists() else now
        times = sorted(path.stat().st_mtime for path in {task.path for task in self.tasks} if path.exists())
        recent = [began, *(t for t in times if t > began)][-RECENT - 1 :]
        rate = end = None
        if len(recent) > 1:
            rate = (len(recent) - 1) / ((now if running else recent[-1]) - recent[0])
            end = datetime.fromtimestamp(now + len(self.missing) / rate) if running else None
        return Status(len(labels), made, rejected, failed, running, stop_requested(self.folder), rate, end)


@dataclass(frozen=True)
class Status:
    """State of a campaign in numbers of geometries."""

    total: int
    made: int
    rejected: int
    """labels that are no good: no convergence, or atoms that do not sum to the molecule"""
    failed: int
    """set aside"""
    owner: str | None
    """the process that runs it, None where it does not run"""
    stopping: bool
    rate: float | None
    """labels a second, of the last hundred that were finished since the last start; None before the first"""
    end: datetime | None
    """estimated end, None where it does not run"""


def begin(folder, geometries=None, **level):
    """Begin a campaign in a folder with the file ``geometries`` and the entries of `Level`, or go on with the one there.

    Raises ValueError where it is there and its plan or geometries are others.
    """
    if geometries and not (Path(folder) / PLAN).exists():
        write_plan(folder, geometries, Level(**level))
    campaign = Campaign.load(folder)
    for name, value in level.items():
        planned = getattr(campaign.level, name)
        if value != planned:
            raise ValueError(f"expected {name} {planned} as in {campaign.folder / PLAN}, found {value}; choose another folder")
    if geometries and Path(geometries).read_bytes() != read_plan(folder)[0].read_bytes():
        raise ValueError(f"expected the geometries of {campaign.folder}, found others in {geometries}; choose another folder")
    return campaign


def write_plan(folder, geometries, level, attempts=3):
    """Make a folder a campaign: a copy of the file ``geometries``, and the plan; both replace what was there.

    Raises ValueError, in a sentence, where the geometries cannot be labelled at this level; nothing is written then.
    """
    folder, geometries = Path(folder), Path(geometries)
    check(read_geometries(geometries), level)
    folder.mkdir(parents=True, exist_ok=True)
    plan = {"geometries": geometries.name, **asdict(level), "attempts": attempts}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in plan.items()]
    with _owned(folder):
        write_atomically(folder / geometries.name, geometries.read_bytes())
        write_atomically(folder / PLAN, PLAN_COMMENT + "".join(lines))


def _owned(folder):
    return owned(folder, "campaign", f"`iqagp campaign stop {folder}` stops it")


def read_geometries(path):
    """ASE atoms of a file of geometries without its free atoms, which are labelled anew."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of geometries, found nothing at {str(path)!r}")
    try:
        frames = list(iread(path))
    except (XYZError, UnknownFileTypeError, *BROKEN_FILE) as error:
        raise ValueError(f"{path} is not a whole file of geometries ({error}); was it cut off?") from error
    return [atoms for atoms in frames if atoms.info.get("config_type") != "IsolatedAtom"]


def read_plan(folder):
    """(file of geometries, level, attempts) of a campaign. Raises ValueError, in a sentence, for nonsense."""
    path = Path(folder) / PLAN
    if not path.is_file():
        raise FileNotFoundError(f"expected a campaign with a {path}, found none; name a file of geometries to begin one")
    try:
        plan = tomllib.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not TOML ({error}); mend it") from error
    examples = {"geometries": "geometries.extxyz", **asdict(Level()), "attempts": 3}
    for key, value in plan.items():
        if key not in examples:
            raise ValueError(f"{path}: expected entries among {', '.join(examples)}, found {key!r}")
        if type(value) is list and all(type(item) is str for item in value):
            plan[key] = value = tuple(value)
        if type(value) is not type(examples[key]):
            raise ValueError(f"{path}: expected {key} like {json.dumps(examples[key])}, found {value!r}")
    if "geometries" not in plan:
        raise ValueError(f"{path}: expected the name of a file of geometries, found no entry 'geometries'")
    attempts = plan.pop("attempts", 3)
    if attempts < 1:
        raise ValueError(f"{path}: expected attempts of at least 1, found {attempts}")
    return path.with_name(plan.pop("geometries")), Level(**plan), attempts


def collect(geometries, labels, level, free_atoms):
    """The `Dataset` of the accepted labels and a list (number of the geometry, reason) of the rejected ones.

    A label that is not made yet is None.
    """
    rejected = [(k, label["rejected"]) for k, label in enumerate(labels) if label and "rejected" in label]
    kept = [(atoms, label) for atoms, label in zip(geometries, labels, strict=True) if label and "rejected" not in label]
    if not kept:
        reason = f"the first was rejected because {rejected[0][1]}" if rejected else "none is finished"
        raise ValueError(f"expected at least one good label to make a dataset of, found none; {reason}")
    infos = [atoms.info for atoms, _ in kept]
    extra = {}
    for name in level.partitions:
        extra[f"{name}_energies"] = np.array([label["raw"][name] for _, label in kept])
        extra[f"{name}_charges"] = np.array([label["charges"][name] for _, label in kept])
        extra[f"{name}_remainder"] = np.array([label["remainder"][name] for _, label in kept])
        if level.multipoles:
            extra[f"{name}_multipoles"] = np.array([label["multipoles"][name] for _, label in kept])
    dataset = Dataset(
        species=tuple(geometries[0].get_chemical_symbols()),
        positions=np.round([atoms.get_positions() for atoms, _ in kept], DECIMALS),
        energy=np.array([label["energy"] for _, label in kept]),
        forces=np.array([label["forces"] for _, label in kept]) if level.forces else None,
        origin={key: np.array([info[key] for info in infos]) for key in ORIGIN if all(key in i for i in infos)},
        extra=extra,
        level={
            **level.describe(),
            "programs": "; ".join(sorted({label.get("programs", level.describe()["programs"]) for _, label in kept})),
            # The geometries may be a dataset's, whose level of theory and partition were others.
            **({"sampler": infos[0]["sampler"]} if "sampler" in infos[0] else {}),
        },
        free_atoms=free_atoms,
    )
    return (dataset.with_partition(level.partitions[0]) if level.partitions else dataset), rejected
