"""The runs that a verdict judges: where replicas begin, how they are driven, and what is kept of them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iqagp_jax.dynamics.checks import check_temperatures, multiple, require_positive
from iqagp_jax.dynamics.minimise import minimise
from iqagp_jax.dynamics.run import simulate
from iqagp_jax.dynamics.starts import at_rest, random_displacements, stretched
from iqagp_jax.dynamics.trajectory import Trajectory, load_trajectory
from iqagp_jax.machine.files import write_atomically
from iqagp_jax.system.failure import Status, failure_rule, failure_status
from iqagp_jax.verdict.structure import same_structure

KINDS = ("equilibrium", "displaced", "stretched")

DRAWN = 2
"""Displaced starts drawn for each that is wanted, as the reference may not keep all of them together."""


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

    def __post_init__(self):
        if unknown := sorted(set(self.kinds) - set(KINDS)):
            raise ValueError(f"expected starts among {', '.join(KINDS)}, found {', '.join(unknown)}")
        if self.replicas < 1 or self.frames < 1 or not self.temperatures or not self.kinds:
            raise ValueError("expected at least one replica, frame, temperature and kind of start; correct the options")
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
class Run:
    """R replicas after their run."""

    trajectory: Trajectory
    temperatures: np.ndarray
    """(R,) K"""
    kinds: np.ndarray
    """(R,) names"""
    failure_times: np.ndarray
    """(R,) fs, NaN for survivors"""
    reasons: tuple[str, ...]

    def group(self, temperature, kind):
        """Numbers of the replicas at a temperature from a kind of start."""
        return np.flatnonzero((self.temperatures == temperature) & (self.kinds == kind))

    @property
    def groups(self):
        """All (temperature, kind) in order."""
        return list(dict.fromkeys(zip(self.temperatures.tolist(), self.kinds.tolist(), strict=True)))

    @property
    def lives(self):
        """Frames (R,) that each replica was alive in."""
        return self.trajectory.alive.sum(0)


def run_replicas(energy, rule, starts, protocol, directory, time, seed):
    """Run replicas from ``starts`` {kind: (n, N, 3)} at all temperatures, or read what an earlier call finished: a `Run`."""
    directory, temperatures = Path(directory), protocol.temperatures
    kinds = [kind for _ in temperatures for kind in starts for _ in starts[kind]]
    targets = np.repeat(temperatures, sum(len(s) for s in starts.values()))
    outcome = directory / "outcome.json"
    if not outcome.exists():
        result = simulate(
            energy,
            rule,
            np.concatenate([starts[kind] for _ in temperatures for kind in starts]),
            directory,
            temperature=targets,
            time=time,
            timestep=protocol.timestep,
            frame_interval=protocol.frame_interval,
            seed=seed,
            kinds=kinds,
        )
        facts = {
            "kinds": kinds,
            "failure_times": [None if np.isnan(t) else float(t) for t in result.failure_times],
            "reasons": result.failure_reasons,
            "ms_per_step_per_replica": result.ms_per_step_per_replica,
        }
        write_atomically(outcome, json.dumps(facts))
    return load_run(directory)


def load_run(directory):
    """The `Run` that `run_replicas` left in a folder."""
    directory = Path(directory)
    facts, trajectory = json.loads((directory / "outcome.json").read_text()), load_trajectory(directory)
    failure_times = np.array(facts["failure_times"], dtype=float)
    return Run(trajectory, trajectory.target_temperatures, np.array(facts["kinds"]), failure_times, tuple(facts["reasons"]))


def minimum_of(model, energy):
    """The model's minimum next to its best training geometry, (N, 3), or that geometry if there is none; and which it is."""
    rest = at_rest(model, energy)
    if not rest.is_minimum:
        return rest.system.positions, "the best training geometry, as the model leads from it to no minimum"
    return rest.system.positions, "the model's minimum next to its best training geometry"


def choose_starts(model, energy, minimum, protocol, reference):
    """Starts {kind: (replicas, N, 3)} and what is to be said of them, a dict for each kind of distorted start.

    Displaced and stretched starts are relaxed with GFN2-xTB (``reference``, which has ``relax``) and kept where it keeps
    the molecule together: the relaxation converges, and its end is no failure by the rule of `robustness`. Those kept are
    also relaxed by the model; ``same_end`` counts how many reach the reference's structure, all distances within 0.3
    angstrom. Without a reference all are kept.
    """
    rule = failure_rule(model.species, minimum)
    n = protocol.replicas
    candidates = {
        "equilibrium": lambda: minimum[None],
        "displaced": lambda: random_displacements(rule, minimum, protocol.displacement, DRAWN * n, protocol.seed)[0],
        "stretched": lambda: stretched(model.species, minimum, protocol.stretch)[:n],
    }
    starts, told = {}, []
    for kind in protocol.kinds:
        drawn = candidates[kind]()
        if kind != "equilibrium" and reference is not None:
            ends, relaxed = reference.relax(drawn)
            kept = np.flatnonzero([r and failure_status(rule, e) == Status.ALIVE for e, r in zip(ends, relaxed, strict=True)])[
                :n
            ]
            mine = [minimise(energy, start).positions for start in drawn[kept]]
            same = sum(same_structure(a, b) for a, b in zip(mine, ends[kept], strict=True))
            told.append({"start": kind, "drawn": len(drawn), "used": len(kept), "same_end": same})
            if not len(kept):
                raise ValueError(f"the reference keeps none of {len(drawn)} {kind} starts together; distort them less")
            drawn = drawn[kept]
        starts[kind] = np.resize(drawn, (n, *minimum.shape))
    return starts, told
