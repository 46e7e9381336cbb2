"""Whether a run can be believed: what no right run of a molecule does, in sentences.

A replica that lives proves nothing: a thermostat holds a molecule together whose forces are wrong. Four things are held to
limits, each far from what good runs of ours show, and to error bars that the run has itself:

| what                  | limit                                                                                         |
| --------------------- | --------------------------------------------------------------------------------------------- |
| kinetic temperature   | its mean is off by `SIGMAS` error bars beyond `BIAS` and what the time step explains            |
| conserved energy      | it drifts by `DRIFT` kT per ps and degree of freedom, or swings as the potential energy does    |
| potential energy      | beyond the training energies by `RANGES` times their range and kT for every degree of freedom   |
| fastest vibration     | a period below `FASTEST`, or of less than `STEPS` time steps                                    |

Survivors only are looked at: that the others failed is told already. Langevin dynamics conserves nothing that is followed.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtrit

from iqagp_jax.units import BOLTZMANN, TIME_UNIT

if TYPE_CHECKING:
    from iqagp_jax.dynamics.record import Run

SIGMAS = 5.0
"""Error bars of a normal distribution: 6e-7 of right runs are beyond; fewer samples get wider ones, of Student's t."""

BIAS = 0.02
"""Share by which a mean temperature may be off: chains of small molecules do not visit all there is."""

FORGOTTEN = 5.0
"""A thermostat has forgotten the start after so many of its own times: the length of a block, whose mean is a sample."""

BLOCKS = 50
"""At most."""

INDEPENDENT = 10
"""As so many samples the frames of a replica count, at most, where the error of a slope is asked for."""

DRIFT = 0.01
"""kT per ps and degree of freedom. Runs of ours drift by 1e-6 to 1e-4."""

MOVED = 0.1
"""A drift counts once it has come to this share of kT for every degree of freedom and the range of the potential energy."""

SWING = 0.15
"""The conserved energy may fluctuate by this share of what potential and kinetic energy do; (w dt)^2 / 8 is right."""

RANGES = 3.0
"""Ranges of the training energies."""

FASTEST = 5.0
"""fs. No molecule has a vibration of a shorter period: 7.6 fs of H2 is the shortest of all."""

STEPS = 6.0
"""Time steps in a period: the squares of amplitudes read 27% too large then, (w dt)^2 / 4."""

SUSPECT = 8.0
"""Time steps in a period, at most, where the step is named as the likely cause of heat and drift."""

WANTED = 10.0
"""Time steps in a period that are advised."""

NOT_CONSERVED = "the forces are not the gradient of the energy, or the time step is too long"

DISPLACED = 2e-3
"""Angstrom, of the atom that moves the most where a force constant is measured."""


@dataclass(frozen=True)
class Course:
    """What is judged of a run: its surviving replicas, without their geometries."""

    times: np.ndarray
    """(F,) fs"""
    temperatures: np.ndarray
    """(F, R) K"""
    energies: np.ndarray
    """(F, R) potential energies, eV"""
    conserved: np.ndarray
    """(F, R) eV; NaN where nothing is followed"""
    targets: np.ndarray
    """(R,) K"""
    freedom: int
    """degrees of freedom"""
    memory: float
    """fs, the thermostat's own time"""
    timestep: float
    """fs"""
    bias: float
    """share by which a right mean temperature may be off, beside its error bar"""

    @classmethod
    def of(cls, run: "Run") -> "Course":
        """Of a `Run`, finished or not."""
        told, alive = run.description, run.survived
        langevin = told["thermostat"] == "Langevin"
        memory = 1000 / told["thermostat_friction"] if langevin else np.sqrt(2) * np.pi * told["thermostat_time"]
        # Langevin dynamics reads low by (w dt)^2 / 4, a chain does not.
        bias = BIAS + ((np.pi * run.timestep / run.shortest_period) ** 2 if langevin and run.shortest_period else 0.0)
        freedom = 3 * len(run.system) if langevin else run.system.degrees_of_freedom
        heat, energies, conserved = (x[:, alive] for x in (run.temperatures, run.energies, run.conserved_energies))
        targets = run.target_temperatures[alive]
        return cls(run.times, heat, energies, conserved, targets, freedom, memory, run.timestep, bias)

    @property
    def heat(self) -> np.ndarray:
        """(R,) f kT, eV: what the replicas' degrees of freedom hold together, kinetic and potential."""
        return self.freedom * BOLTZMANN * self.targets


def concerns(run: "Run") -> tuple[str, ...]:
    """What is unsound of a run, a sentence each; empty for one that can be believed."""
    course = Course.of(run)
    motion, energy = [], []
    if len(course.targets) and len(course.times) > 2:
        motion, energy = [*temperature(course), *conservation(course)], energies(course, run.training_energies)
    return (*motion, *energy, *vibration(course.timestep, run.shortest_period, bool(motion)))


def warn(run: "Run", stacklevel: int = 3) -> None:
    """A warning for each of a run's concerns."""
    for sentence in run.concerns:
        warnings.warn(f"{run.directory}: {sentence}", stacklevel=stacklevel)


def temperature(course: Course) -> list[str]:
    """A sentence for each target temperature whose replicas have another mean kinetic temperature."""
    seen = course.times >= max(0.5 * course.times[-1], FORGOTTEN * course.memory)
    span = seen.sum() * (course.times[1] - course.times[0])
    blocks = int(min(span / (FORGOTTEN * course.memory), seen.sum(), BLOCKS))
    if not blocks:
        return []
    told = []
    for target in np.unique(course.targets):
        of_target = course.temperatures[seen][:, course.targets == target] / target - 1
        mean, error = mean_and_error_bar(of_target, blocks)
        # Whatever scatters, a right run is one sample of the canonical ensemble for each replica, or more where it is longer:
        # 2K/kT is chi-squared with f degrees of freedom.
        error = min(error, np.sqrt(2 / course.freedom / of_target.shape[1] / max(blocks / 2, 1)))
        if abs(mean) > course.bias + SIGMAS * error:
            told.append(
                f"the mean kinetic temperature is {target * (1 + mean):.0f} K where {target:g} K were asked for (error bar"
                f" {target * error:.1f} K)"
            )
    return told


def mean_and_error_bar(series: np.ndarray, blocks: int) -> tuple[float, float]:
    """Mean of deviations (F, R) as shares of what is right, and the error bar that it would have if it were right.

    The larger one of those by the scatter of blocks of time and of replicas, so that neither correlated frames nor replicas
    that do not mix are taken for many samples. So wide, by Student's t, that `SIGMAS` of it are as improbable as of a normal
    distribution. Temperatures that are too low scatter by as much less: theirs is taken in proportion.
    """
    mean = float(series.mean())
    sample = np.array([block.mean(0) for block in np.array_split(series, blocks)])
    if sample.size < 2:
        return mean, np.inf
    tail = 2.87e-7  # of a normal distribution beyond five standard deviations, on either side
    error = sample.std(ddof=1) / np.sqrt(sample.size) * float(stdtrit(sample.size - 1, 1 - tail)) / SIGMAS
    if series.shape[1] > 1:
        error = max(error, sample.mean(0).std(ddof=1) / np.sqrt(series.shape[1]))
    return mean, float(error) / min(max(1 + mean, 1e-3), 1)


def conservation(course: Course) -> list[str]:
    """A sentence where the energy that dynamics must conserve drifts or swings."""
    if not np.isfinite(course.conserved).all():
        return []
    picoseconds = (course.times - course.times.mean()) / 1000
    mean = course.conserved.mean(0)
    slopes = picoseconds @ (course.conserved - mean) / (picoseconds @ picoseconds)
    residual = (course.conserved - mean - np.outer(picoseconds, slopes)).std(0)
    error = residual / picoseconds.std() / np.sqrt(min(INDEPENDENT, len(picoseconds)))
    # Few frames of a stretched bond may all show it stretched: they have to tell the more.
    few = max(INDEPENDENT / len(picoseconds), 1.0) ** 2
    moved = np.abs(slopes) * np.ptp(picoseconds) > few * MOVED * (course.heat + np.ptp(course.energies, axis=0))
    drifting = (np.abs(slopes) > DRIFT * course.heat) & (np.abs(slopes) > SIGMAS * error) & moved
    exchanged = course.energies.std(0) + course.heat / np.sqrt(2 * course.freedom)
    swinging = (course.conserved.std(0) > few * SWING * exchanged) & ~drifting
    told = []
    if drifting.any():
        worst = np.abs(slopes).argmax()
        told.append(
            f"the conserved energy of {drifting.sum()} of {len(slopes)} replicas drifts, at worst by {1000 * slopes[worst]:.2g}"
            f" meV/ps, {abs(slopes[worst]) / course.heat[worst]:.2g} kT per ps and degree of freedom where {DRIFT:g} is much:"
            f" {NOT_CONSERVED}"
        )
    if swinging.any():
        worst = (course.conserved.std(0) / exchanged).argmax()
        told.append(
            f"the conserved energy of {swinging.sum()} of {len(slopes)} replicas fluctuates, at worst by"
            f" {1000 * course.conserved[:, worst].std():.2g} meV beside {1000 * course.energies[:, worst].std():.2g} meV of the"
            f" potential energy: {NOT_CONSERVED}"
        )
    return told


def energies(course: Course, training: tuple[float, float] | None) -> list[str]:
    """A sentence where the potential energies are far from all that the potential learned, (lowest, highest) in eV."""
    if training is None:
        return []
    lowest, highest = training
    allowed = RANGES * (highest - lowest) + course.heat
    # Starts may lie high; a hole is one however briefly a replica is in it.
    above = np.median(course.energies[len(course.energies) // 2 :], axis=0) - highest
    below = lowest - course.energies.min(0)
    return [
        f"the potential energy of {(far > allowed).sum()} of {len(allowed)} replicas is {far.max():.3g} eV {words} training"
        f" energy, and all these lie within {highest - lowest:.2g} eV: the potential is where it has learned nothing"
        for far, words in ((below, "below the lowest"), (above, "above the highest"))
        if (far > allowed).any()
    ]


def vibration(timestep: float, period: float | None, unsound: bool = False) -> list[str]:
    """A sentence where the fastest vibration, of ``period`` fs, is faster than any molecule's or than the time step bears."""
    if not period:
        return []
    if period < FASTEST:
        return [
            f"the fastest vibration has a period of {period:.2g} fs, and no molecule has one below 7.6 fs, that of H2: look at"
            " the units of the labels that the potential learned"
        ]
    steps = period / timestep
    if steps >= (SUSPECT if unsound else STEPS):
        return []
    cause = "is the likely cause" if unsound else f"reads its amplitudes {100 * (np.pi / steps) ** 2:.0f}% too large"
    return [
        f"the time step of {timestep:g} fs {cause}: the fastest vibration has a period of {period:.2g} fs, {steps:.1f} steps;"
        f" take {advised(period):g} fs"
    ]


def advised(period: float) -> float:
    """A time step in fs for a shortest period in fs, a handy number."""
    return next((step for step in (2.0, 1.0, 0.5, 0.25, 0.2, 0.1, 0.05) if step <= period / WANTED), 0.02)


def shortest_period(forces: Callable, rest: np.ndarray, masses: np.ndarray, batch: int, iterations: int = 12) -> float | None:
    """Shortest period in fs of a vibration about a geometry: 2 pi / w, w^2 the largest eigenvalue of M^-1/2 H M^-1/2.

    By the power method, ``batch`` times at random, on H v = -dF/dv by finite differences; None where forces are not finite.

    Parameters
    ----------
    forces: positions (batch, N, 3) in angstrom -> (batch, N, 3) in eV/angstrom.
    rest: (N, 3) angstrom.
    masses: (N,) amu.
    """
    root = np.sqrt(masses)[:, None]
    at_rest = np.repeat(rest[None], batch, axis=0)
    before = np.asarray(forces(at_rest))
    vectors = np.random.default_rng(0).normal(size=at_rest.shape)
    for _ in range(iterations):
        vectors /= np.linalg.norm(vectors, axis=(1, 2), keepdims=True)
        steps = DISPLACED / np.abs(vectors / root).max((1, 2), keepdims=True)
        after = (before - np.asarray(forces(at_rest + steps * vectors / root))) / steps / root
        squares = (vectors * after).sum((1, 2))
        vectors = after
        if not (np.isfinite(squares).all() and vectors.any((1, 2)).all()):
            return None
    stiffest = squares.max()
    return float(2 * np.pi / np.sqrt(stiffest) * TIME_UNIT) if stiffest > 0 else None
