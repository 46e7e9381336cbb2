"""The runs that a verdict judges: where replicas begin, how they are driven, and what is kept of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
from ase import Atoms

from iqagp_jax.dynamics import soundness
from iqagp_jax.dynamics.checks import check_starts, check_temperatures, multiple, require_positive
from iqagp_jax.dynamics.folder import CHECKPOINT, DESCRIPTION, TOLERANCE
from iqagp_jax.dynamics.minimise import minimise
from iqagp_jax.dynamics.record import Run
from iqagp_jax.dynamics.run import probes, simulate
from iqagp_jax.dynamics.starts import at_rest, random_displacements, stretched
from iqagp_jax.machine.progress import in_words
from iqagp_jax.potential import energy_and_forces, energy_fn
from iqagp_jax.system.elements import same_atoms
from iqagp_jax.system.failure import Status, failure_status
from iqagp_jax.system.system import System
from iqagp_jax.verdict.structure import same_structure

KINDS = ("equilibrium", "displaced", "stretched")

BASINS = "basins"
"""Starts at minima that a protocol names."""

DRAWN = 2
"""Displaced starts drawn for each that is wanted, as the reference may not keep all of them together."""


def as_minima(geometries: Sequence[Atoms]) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Positions (M, N, 3) of ASE atoms as a `Protocol` holds them."""
    return tuple(tuple(map(tuple, atoms.positions.tolist())) for atoms in geometries)


@dataclass(frozen=True)
class Protocol:
    """What is run: ``replicas`` for every temperature and kind of start, each ``time`` long."""

    temperatures: tuple[float, ...] = (300.0, 1000.0)
    """K"""
    kinds: tuple[str, ...] = KINDS
    replicas: int = 10
    time: float = 10.0
    """ps"""
    timestep: float = 0.5
    """fs"""
    frame_interval: float = 5.0
    """fs; alarms are raised no more often"""
    displacement: float = 0.25
    """largest displacement of a coordinate in displaced starts, angstrom"""
    stretch: float = 1.5
    """length of the bond to hydrogen in stretched starts, angstrom"""
    frames: int = 50
    """frames relabelled for every temperature and kind of start, at least"""
    reference_replicas: int = 10
    """replicas of the reference's own dynamics at every temperature, from equilibrium; 0 for none"""
    reference_time: float = 10.0
    """their length, ps"""
    seed: int = 0
    scan_points: int = 0
    """geometries of scans that the reference labels at most, see `shape`; 0 for no scans"""
    minima: tuple[tuple[tuple[float, ...], ...], ...] = ()
    """(M, N, 3), angstrom, the lowest first: where starts in ``basins`` begin, in turn"""

    no_ensemble: ClassVar[str] = "no reference dynamics"
    """why there is none to compare with, if so"""

    @property
    def words(self) -> str:
        """What is run, in words."""
        many = f"{self.replicas} replicas for every temperature and kind of start"
        return f"{many}, {self.time:g} ps each, Nose-Hoover chain without total and angular momentum"

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.kinds) - {*KINDS, BASINS}):
            raise ValueError(f"expected starts among {', '.join((*KINDS, BASINS))}, found {', '.join(unknown)}")
        if self.replicas < 1 or self.frames < 1 or not self.temperatures or not self.kinds:
            raise ValueError("expected at least one replica, frame, temperature and kind of start; correct the options")
        if (BASINS in self.kinds) != bool(self.minima):
            raise ValueError(
                "expected minima with starts in basins, and with these alone, found one without the other; give both"
            )
        if self.scan_points < 0:
            raise ValueError(f"expected a number of scanned geometries, or 0 for none, found {self.scan_points}")
        if self.reference_replicas < 0 or self.reference_replicas == 1:
            raise ValueError(
                "expected at least two reference replicas, whose scatter is the error bar, or 0 for none; found"
                f" {self.reference_replicas}"
            )
        check_temperatures(self.temperatures, len(self.temperatures))
        require_positive("a displacement in angstrom", self.displacement)
        require_positive("a stretched bond length in angstrom", self.stretch)
        multiple("frame interval", self.frame_interval, "timestep", self.timestep)
        multiple("time", 1000 * self.time, "frame interval", self.frame_interval)
        if self.reference_replicas:
            multiple("reference time", 1000 * self.reference_time, "frame interval", self.frame_interval)


@dataclass(frozen=True)
class Found:
    """A run that was there before anyone thought of a verdict: what is known of it, and what is looked at."""

    temperatures: tuple[float, ...]
    """K"""
    kinds: tuple[str, ...]
    time: float
    """ps, as far as it came"""
    timestep: float
    """fs"""
    frame_interval: float
    """fs"""
    thermostat: str
    frames: int = 50
    """relabelled for every temperature and kind of start, at least"""
    seed: int = 0
    """of the choice of calm stretches"""
    scan_points: int = 0
    """geometries of scans that the reference labels at most; 0 for no scans"""

    no_ensemble: ClassVar[str] = "a run that was there has no reference dynamics beside it"

    @classmethod
    def of(cls, run: Run, frames: int, seed: int, scan_points: int = 0) -> "Found":
        """Of a run; ValueError, in a sentence, where it is too short to look at."""
        if len(run.times) < 2:
            raise ValueError(f"expected a run of two frames or more, found {len(run.times)} in {run.directory}; let it go on")
        if frames < 1:
            raise ValueError(f"expected one frame or more to relabel, found {frames}")
        told = run.description
        temperatures = tuple(dict.fromkeys(run.target_temperatures.tolist()))
        timestep, interval = told["timestep_fs"], told["frame_interval_fs"]
        time = float(run.times[-1]) / 1000
        kinds, looked = tuple(dict.fromkeys(run.kinds)), (frames, seed, scan_points)
        return cls(temperatures, kinds, time, timestep, interval, told["thermostat"], *looked)

    @property
    def words(self) -> str:
        """What was run, in words."""
        return f"A run that was there, {self.time:g} ps with a {self.thermostat} thermostat"


@dataclass(frozen=True)
class Distorted:
    """What became of the distorted starts of one kind."""

    start: str
    drawn: int
    used: int
    """that the reference keeps together"""
    same_end: int
    """of those, that the model relaxes to the structure that the reference relaxes them to"""


@dataclass(frozen=True)
class Driven:
    """Runs to be judged."""

    protocol: Protocol | Found
    run: Run
    system: System
    """at the model's minimum"""
    equilibrium: str
    """what that is, in words"""
    starts: tuple[Distorted, ...] = ()
    reference: Run | None = None
    """its own dynamics, to compare with"""

    @property
    def runs(self) -> dict[str, Run]:
        """All of them by name."""
        return {"model": self.run, **({"reference": self.reference} if self.reference else {})}


def drive(
    potential: Any,
    system: System,
    directory: Path,
    protocol: Protocol,
    reference: Any = None,
    say: Callable[[str], Any] = lambda line: None,
) -> Driven:
    """Run the replicas of a protocol, and the reference's own where it has dynamics; or go on with them.

    The runs are in the folders ``model`` and ``reference`` of ``directory``. ``say`` is told beforehand what the reference's
    will cost.
    """
    energy = energy_fn(potential, system=system)
    system, equilibrium = minimum_of(potential, system, energy)
    starts, told = choose_starts(energy, system, protocol, reference)
    has_dynamics = hasattr(reference, "energy_fn") and protocol.reference_replicas and "equilibrium" in protocol.kinds
    if has_dynamics and (cost := cost_of_reference(reference, system, protocol, directory / "reference")):
        say(cost)
    run = run_replicas(potential, system, starts, protocol, directory / "model", protocol.time, protocol.seed)
    beside = None
    if has_dynamics:
        begin = {"equilibrium": np.repeat(system.positions[None], protocol.reference_replicas, axis=0)}
        # Other momenta than the model's, so that the two samples are independent.
        options = protocol, directory / "reference", protocol.reference_time, protocol.seed + 1
        beside = run_replicas(reference.energy_fn(), system, begin, *options)
    return Driven(protocol, run, system, equilibrium, told, beside)


def cost_of_reference(reference: Any, system: System, protocol: Protocol, directory: Path) -> str:
    """What the dynamics of the reference will take, in words, by a label of all its replicas; empty where it is there."""
    replicas = protocol.reference_replicas * len(protocol.temperatures)
    steps = round(1000 * protocol.reference_time / protocol.timestep)
    if _begun(directory):
        steps -= int(Run.open(directory).state["step"])
    if steps <= 0:
        return ""
    begin = np.repeat(system.positions[None], replicas, axis=0)
    for _ in range(2):  # the first time its processes have to begin
        began = perf_counter()
        reference.labels(begin, progress=lambda items, total: items)
    return (
        f"dynamics of {reference.name}: {steps} steps of {replicas} replicas, {in_words((perf_counter() - began) * steps)}"
        " by a timed label; --reference-replicas 0 leaves it out"
    )


def _begun(directory: Path) -> bool:
    return all((directory / name).exists() for name in (DESCRIPTION, CHECKPOINT))


def run_replicas(
    potential: Any,
    system: System,
    starts: dict[str, np.ndarray],
    protocol: Protocol,
    directory: Path,
    time: float,
    seed: int,
) -> Run:
    """Run replicas from ``starts`` {kind: (n, N, 3)} at all temperatures, or read what an earlier call finished.

    ``potential`` is any that `simulate` takes, ``system`` is at its minimum, ``time`` in ps.
    """
    # What is finished is read without a potential made ready for it.
    if _begun(directory) and (run := Run.open(directory)).finished:
        soundness.warn(run)
        return run
    temperatures = protocol.temperatures
    return simulate(
        potential,
        system,
        np.concatenate([starts[kind] for _ in temperatures for kind in starts]),
        directory,
        temperature=np.repeat(temperatures, sum(len(s) for s in starts.values())),
        time=time,
        timestep=protocol.timestep,
        frame_interval=protocol.frame_interval,
        seed=seed,
        kinds=[kind for _ in temperatures for kind in starts for _ in starts[kind]],
    )


def minimum_of(potential: Any, system: System, energy: Callable | None = None) -> tuple[System, str]:
    """The system at the potential's minimum next to where it is, or there if there is none; and which it is, in words."""
    rest = at_rest(potential, energy, system)
    if rest.is_minimum:
        return rest.system, "the model's minimum next to its best training geometry"
    return rest.system, "the best training geometry, as the model leads from it to no minimum"


def drove(potential: Any, system: System, run: Run) -> Any:
    """In which precision a potential drove a run; ValueError, in a sentence, where it was another potential."""
    same_atoms(system.species, run.system.species)
    told, precision = run.description["potential"], run.description.get("precision")
    # Folders of before 2026-12 do not tell the precision.
    for dtype in map(np.dtype, [precision] if precision else ["float64", "float32"]):
        energies, _ = energy_and_forces(potential, dtype, system)(probes(run.starts))
        if np.allclose(energies, told, rtol=0, atol=TOLERANCE, equal_nan=True):
            return dtype
    raise ValueError(
        f"expected the potential that drove the run in {run.directory}, found one with other energies near its starts; give the"
        " model of that run"
    )


def choose_starts(
    energy: Callable, system: System, protocol: Protocol, reference: Any
) -> tuple[dict[str, np.ndarray], tuple[Distorted, ...]]:
    """Starts {kind: (replicas, N, 3)} and what is to be said of them, a `Distorted` for each kind of distorted start.

    Displaced and stretched starts are relaxed with GFN2-xTB (``reference``, which has ``relax``) and kept where it keeps
    the molecule together: the relaxation converges, and its end is no failure by the rule of `robustness`. Those kept are
    also relaxed by the model; ``same_end`` counts how many reach the reference's structure, all distances within 0.3
    angstrom. Without a reference all are kept.
    """
    rule, minimum, n = system.failure_rule, system.positions, protocol.replicas
    candidates = {
        "equilibrium": lambda: minimum[None],
        "displaced": lambda: random_displacements(rule, minimum, protocol.displacement, DRAWN * n, protocol.seed)[0],
        "stretched": lambda: stretched(system.species, minimum, protocol.stretch)[:n],
        BASINS: lambda: check_starts(np.array(protocol.minima), system.species)[:n],
    }
    starts: dict[str, np.ndarray] = {}
    told = []
    for kind in protocol.kinds:
        drawn = candidates[kind]()
        if kind != "equilibrium" and reference is not None:
            ends, relaxed = reference.relax(drawn)
            kept = np.flatnonzero([r and failure_status(rule, e) == Status.ALIVE for e, r in zip(ends, relaxed, strict=True)])[
                :n
            ]
            mine = [np.asarray(minimise(energy, start).positions) for start in drawn[kept]]
            same = sum(same_structure(a, b) for a, b in zip(mine, ends[kept], strict=True))
            told.append(Distorted(kind, len(drawn), len(kept), same))
            if not len(kept):
                raise ValueError(f"the reference keeps none of {len(drawn)} {kind} starts together; distort them less")
            drawn = drawn[kept]
        starts[kind] = np.resize(drawn, (n, *minimum.shape))
    return starts, tuple(told)
