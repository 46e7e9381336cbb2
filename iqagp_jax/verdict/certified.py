"""Certified averages: what frames of the model's run, relabelled, say of the reference's own ensemble.

A run of the model at temperature T visits geometries x with the probability exp(-E_model(x) / kT). Each counts with the weight

    w(x) = exp(-(E_ref(x) - E_model(x) - <E_ref - E_model>) / kT),

and then they are a sample of the reference's ensemble: <A>_ref = <w A> / <w>, averages over the model's run. The free energies
differ by (Zwanzig, doi:10.1063/1.1740409)

    F_ref - F_model = -kT ln <exp(-(E_ref - E_model) / kT)>.

Of N frames the weights leave (sum w)^2 / sum w^2, the effective sample size. Where the error is Gaussian with a standard
deviation sigma it is about N exp(-(sigma / kT)^2). Frames of one replica are correlated: every replica is one block, and the
scatter of the blocks is the error bar.

Counted are the frames taken evenly, at one temperature from all kinds of start, after the first `ensemble.EQUILIBRATION` of the
run. Those within `truth.FINAL` before a failure are not, since a failure had them chosen; nor are those without a label.
"""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from iqagp_jax.system.system import System
from iqagp_jax.units import BOLTZMANN, KCAL_MOL
from iqagp_jax.verdict.ensemble import EQUILIBRATION, mean_and_error
from iqagp_jax.verdict.structure import coordinates, states
from iqagp_jax.verdict.truth import FINAL, Frames, significant, two_figures

if TYPE_CHECKING:
    from iqagp_jax.verdict.replicas import Run

SMALLEST = 10.0
"""Effective sample size below which nothing is certified: the error bar of an average over fewer is a third of the spread or
more, and itself wrong by a quarter. It leaves no frame with half of the weight, which needs a size below 4."""

WEIGHTLESS = 0.01
"""Frames with less than this of the mean weight are where the reference does not go: in a hole of the model, say."""

LARGE = 0.5
"""Share of all weight that is worth a word if one frame has it."""

BLIND_SPOT = (
    "Regions that the run never visited say nothing: a basin that no replica found is in neither column, however deep it is for"
    " the reference. Starts in every basin cover it."
)
"""What no weights can mend."""

ACCEPTED = 0.1
"""Error of an energy that `tau_acc` does not count, eV."""

ACCUMULATED = 10 * ACCEPTED
"""What the errors beyond may add up to, eV."""

INTERVAL = 50.0
"""Time between the errors that are added up, fs."""

CAP = 1000.0
"""`tau_acc` is followed no longer, fs."""


@dataclass(frozen=True)
class Average:
    """Of the model's frames as they are, and as the reference has them, each with its standard error."""

    name: str
    unit: str
    model: float
    model_error: float
    reference: float
    reference_error: float


@dataclass(frozen=True)
class Accumulated:
    """`tau_acc` at one temperature."""

    ps: float
    """mean over replicas"""
    error: float | None
    """its standard error; None of one replica"""
    replicas: int
    at_cap: int
    """of them, those that reach `CAP`"""
    spacing_ps: float
    """median time between frames; above `INTERVAL` each stands for the whole time since the one before"""


@dataclass(frozen=True)
class FreeEnergy:
    """F_ref - F_model of one replica's frames, kcal/mol."""

    replica: int
    frames: int
    difference: float


@dataclass(frozen=True)
class Certified:
    """What the frames at one temperature certify. Energies in kcal/mol; None where no frame can tell."""

    temperature_K: float
    replicas: int
    frames: int
    """that count"""
    without_label: int
    """that do not, since the reference cannot calculate them"""
    early: int
    """that do not, since they are from the beginning of the run"""
    before_failure: int
    """that do not, since a failure follows, or chose them"""
    effective_sample_size: float
    expected_sample_size: float
    """of Gaussian errors"""
    largest_weight: float
    """share of all weight that one frame has"""
    weightless: int
    """frames of those that count, see `WEIGHTLESS`"""
    missing: str
    """why nothing is certified, and what would do; empty where it is"""
    mean_difference: float | None = None
    """of E_ref - E_model over the model's frames"""
    sigma: float | None = None
    """its standard deviation"""
    free_energy: float | None = None
    """F_ref - F_model of all frames together"""
    free_energy_error: float | None = None
    """its standard error"""
    free_energies: tuple[FreeEnergy, ...] = ()
    averages: tuple[Average, ...] = ()
    """none where nothing is certified"""
    tau_acc: Accumulated | None = None

    @property
    def certified(self) -> bool:
        """Whether averages are."""
        return not self.missing

    @property
    def left_out(self) -> str:
        """Frames that do not count and why, in words; empty where all do."""
        each = (
            (self.without_label, "without a label"),
            (self.early, "from the beginning"),
            (self.before_failure, "before failures"),
        )
        return ", ".join(f"{n} {why}" for n, why in each if n)

    @property
    def sentence(self) -> str:
        """Temperature, number, and what they certify or lack."""
        out = f" (left out: {self.left_out})" if self.left_out else ""
        told = f"{self.temperature_K:g} K, {self.frames} frames of {self.replicas} replicas{out}"
        if self.frames:
            told += f" count as {two_figures(self.effective_sample_size)} of the reference's"
            expected = self.expected_sample_size
            told += f" ({two_figures(expected) if expected > 1 else 'less than 1'} by the spread of the errors)"
        if self.weightless:
            told += f", {self.weightless} for nothing, since the reference does not go there"
        if self.missing:
            return f"{told}: averages cannot be certified, {self.missing}"
        return f"{told}; F(reference) - F(model) is {self.free_energy:.3f} ± {self.free_energy_error:.3f} kcal/mol"

    def as_dict(self) -> dict[str, Any]:
        """A row of ``certified`` in ``robustness.json``."""
        return {**asdict(self), "certified": self.certified, "sentence": self.sentence, "blind_spot": BLIND_SPOT}


def log_weights(difference: np.ndarray, temperature: float) -> np.ndarray:
    """ln w (M,) of E_ref - E_model (M,) in kcal/mol at a temperature in K, but for a constant."""
    return -(difference - difference.mean()) * KCAL_MOL / (BOLTZMANN * temperature)


def effective_sample_size(weights: np.ndarray) -> float:
    """(sum w)^2 / sum w^2 (Kong's) of weights (M,)."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def expected_sample_size(frames: int, sigma: float, temperature: float) -> float:
    """N exp(-(sigma / kT)^2), sigma in kcal/mol, T in K."""
    return frames * math.exp(-((sigma * KCAL_MOL / (BOLTZMANN * temperature)) ** 2))


def weighted_mean(values: np.ndarray, weights: np.ndarray, replica: np.ndarray) -> tuple[float, float]:
    """Mean of ``values`` (M,) by ``weights`` (M,), and its standard error with every ``replica`` (M,) as one block."""
    _, block = np.unique(replica, return_inverse=True)
    total = np.bincount(block, weights)
    means = np.bincount(block, weights * values) / np.where(total > 0, total, 1.0)
    return mean_and_error(means, total)


def free_energy(difference: np.ndarray, replica: np.ndarray, temperature: float) -> tuple[float, float]:
    """F_ref - F_model in kcal/mol and its standard error, from E_ref - E_model (M,) in kcal/mol; blocks as `weighted_mean`."""
    thermal = BOLTZMANN * temperature / KCAL_MOL
    exponents = -difference / thermal
    highest = exponents.max()
    mean, error = weighted_mean(np.exp(exponents - highest), np.ones(len(difference)), replica)
    return float(-thermal * (math.log(mean) + highest)), float(thermal * error / mean)


def tau_acc(times: np.ndarray, errors: np.ndarray, end: float = np.inf) -> float:
    """Time (fs) until the errors of a replica's energies, beyond what is accepted, have added up to ten times that.

    As in mlp-train (mlptrain/loss/tau.py of duartegroup/mlp-train; Young, Johnston-Wood, Deringer and Duarte, Chem. Sci. 2021,
    12, 10944, doi:10.1039/D1SC01825F): every `INTERVAL` of 50 fs

        max(|E_ref - E_model| - 0.1 eV, 0)

    is added, and the time when the sum exceeds 1 eV is told, of 1 ps at most. A frame without a label ends it. Frames that
    are 50 fs apart give theirs exactly; where they are farther apart, each stands for all the time since the one before.

    ``times`` (M,) of frames in fs after the start, ``errors`` (M,) in eV, NaN without a label; ``end`` of the replica in fs.
    """
    spent = before = 0.0
    most = min(CAP, end)
    for time, error in zip(times.tolist(), errors.tolist(), strict=True):
        if not math.isfinite(error):
            return min(time, most)
        excess = max(abs(error) - ACCEPTED, 0.0)
        added = excess * (time - before) / INTERVAL
        if spent + added > ACCUMULATED:
            intervals = (before + (ACCUMULATED - spent) / excess * INTERVAL) / INTERVAL
            return min((math.floor(intervals + 1e-9) + 1) * INTERVAL, most)
        spent, before = spent + added, time
    return most


def accumulated(run: "Run", frames: Frames, temperature: float) -> Accumulated | None:
    """`tau_acc` of the replicas at a temperature; None where none has a frame with a label."""
    mine = np.flatnonzero(~frames.final & (run.target_temperatures[frames.replica] == temperature))
    if not np.isfinite(frames.energy_error[mine]).any():
        return None
    found, spacings = [], []
    for replica in np.unique(frames.replica[mine]).tolist():
        its = mine[frames.replica[mine] == replica]
        times = run.trajectory.times[frames.frame[its]]
        end = run.failure_times[replica]
        found.append(tau_acc(times, frames.energy_error[its] * KCAL_MOL, end if np.isfinite(end) else np.inf))
        spacings += np.diff(times, prepend=0.0).tolist()
    taus = np.array(found) / 1000
    error = float(taus.std(ddof=1) / math.sqrt(len(taus))) if len(taus) > 1 else None
    return Accumulated(float(taus.mean()), error, len(taus), int((taus >= CAP / 1000).sum()), float(np.median(spacings)) / 1000)


def certify(run: "Run", frames: Frames, system: System) -> tuple[Certified, ...]:
    """`Certified` at every temperature of a run, from its relabelled ``frames``; ``system`` at rest."""
    return tuple(_at(run, frames, system, temperature) for temperature in dict.fromkeys(run.target_temperatures.tolist()))


def _at(run: "Run", frames: Frames, system: System, temperature: float) -> Certified:
    """At one temperature."""
    times = run.trajectory.times
    mine = run.target_temperatures[frames.replica] == temperature
    # NaN, of no failure, is never within.
    failing = mine & (frames.final | (run.failure_times[frames.replica] - times[frames.frame] < FINAL))
    early = mine & ~failing & (times[frames.frame] < EQUILIBRATION * times[-1])
    lost = mine & ~failing & ~early & ~np.isfinite(frames.energy_error)
    used = np.flatnonzero(mine & ~failing & ~early & ~lost)
    replica, frame = frames.replica[used], frames.frame[used]
    many = len(np.unique(replica))
    counted = temperature, many, len(used), int(lost.sum()), int(early.sum()), int(failing.sum())
    tau = accumulated(run, frames, temperature)
    if not len(used):
        return Certified(
            *counted, 0.0, 0.0, 0.0, 0, "since no frame is left to count: run longer, or relabel more", tau_acc=tau
        )
    difference = -frames.energy_error[used]
    exponents = log_weights(difference, temperature)
    weights = np.exp(exponents - exponents.max())
    sigma, mean = float(difference.std(ddof=1)) if len(used) > 1 else 0.0, float(difference.mean())
    sizes = effective_sample_size(weights), expected_sample_size(len(used), sigma, temperature)
    largest, weightless = float(weights.max() / weights.sum()), int((weights < WEIGHTLESS * weights.mean()).sum())
    missing = _missing(len(used), many, sizes[0], largest, temperature)
    gap, error = free_energy(difference, replica, temperature)
    blocks = {int(k): difference[replica == k] for k in np.unique(replica)}
    each = tuple(FreeEnergy(k, len(d), free_energy(d, np.zeros(len(d)), temperature)[0]) for k, d in blocks.items())
    averages = () if missing else _averages(run, system, replica, frame, weights)
    energies = mean, sigma, gap, None if math.isnan(error) else error
    return Certified(
        *counted, *sizes, largest, weightless, missing, *energies, free_energies=each, averages=averages, tau_acc=tau
    )


def _missing(frames: int, replicas: int, size: float, largest: float, temperature: float) -> str:
    """Why nothing is certified, and what would do; empty where nothing is missing."""
    if size < SMALLEST:
        why = f"which takes {SMALLEST:g}" + f" (one frame has {100 * largest:.0f}% of the weight)" * (largest > LARGE)
        needed = f"about {significant(math.ceil(SMALLEST * frames / size), 2)} frames"
        if frames <= SMALLEST:
            return f"{why}: relabel {needed}"
        width = two_figures(BOLTZMANN * temperature / KCAL_MOL * math.sqrt(math.log(frames / SMALLEST)))
        return f"{why}: relabel {needed}, or take a model whose errors spread by less than {width} kcal/mol"
    return "as one replica has no error bar: run two or more" if replicas < 2 else ""


def _averages(run: "Run", system: System, replica: np.ndarray, frame: np.ndarray, weights: np.ndarray) -> tuple[Average, ...]:
    """Distances, angles, populations and the temperature of frames with their weights."""
    positions, ones = run.trajectory.positions[frame, replica], np.ones(len(frame))

    def average(name: str, unit: str, values: np.ndarray, at_least: float = 0.0) -> Average:
        each = (weighted_mean(values, w, replica) for w in (ones, weights))
        return Average(name, unit, *(x for mean, error in each for x in (mean, error or at_least)))

    found: list[Average] = []
    for coordinate in coordinates(system.species, system.positions):
        if coordinate.kind in ("bond", "contact", "angle"):
            found.append(average(coordinate.name, coordinate.unit, coordinate(positions)))
    # A weight belongs to a geometry, not to its past: each frame is a trajectory of its own, in the state that is nearest.
    for name, names, series in states(system.species, system.positions, positions[None]):
        for state in np.unique(series):
            # Where replicas do not differ the error is what one of them could make, as in `ensemble.population`.
            share = (series[0] == state).astype(float)
            found.append(average(f"{name}: {names[state]}", "share of time", share, 1 / len(np.unique(replica))))
    found.append(average("temperature", "K", run.trajectory.temperatures[frame, replica]))
    return tuple(found)
