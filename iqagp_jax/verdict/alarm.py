"""Warning: did the model's own uncertainty rise before its error did?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from iqagp_jax.validation import spearman
from iqagp_jax.verdict.parts import Grade, Part

if TYPE_CHECKING:
    from iqagp_jax.verdict.replicas import Run
    from iqagp_jax.verdict.truth import Frames

WINDOW = 500.0
"""Stretches of a trajectory (fs) in which the uncertainty is followed frame by frame."""

WINDOWS = 20
"""So many before failures, and so many calm ones, at most."""

CALM = 1000.0
"""A calm window ends at least so long (fs) before its replica fails."""

AHEAD = 10.0
"""A failure is announced if the alarm is raised at least so long (fs) before it."""

THRESHOLD = 2.0
"""The alarm is raised at this multiple of the 99th percentile of sigma over the calm windows."""

ANNOUNCED = (0.9, 0.5)
"""Share of the failures that a good and a fair warning announces."""

FOLLOWED = 10
"""Failures that must have been followed before the warning has a grade: nine of ten are told from all by ten or more."""


@dataclass(frozen=True)
class Windows:
    """Stretches of trajectories with the model's standard deviation frame by frame."""

    replica: np.ndarray
    """(W,)"""
    frames: np.ndarray
    """(W, F) numbers in the trajectory"""
    sigma: np.ndarray
    """(W, F) eV"""


@dataclass(frozen=True)
class Warned:
    """What the uncertainty told; None for what cannot be known."""

    frames: int
    """with a label and an uncertainty"""
    rank_correlation: float | None = None
    """of sigma and the absolute error of the energy over these frames"""
    threshold_eV: float | None = None
    """of the alarm"""
    announced: float | None = None
    """share of the failures followed"""
    false_alarms_per_ps: float | None = None


@dataclass(frozen=True)
class Followed:
    """How much of the run was looked at frame by frame."""

    failures: int
    failures_followed: int = 0
    calm_ps: float = 0.0
    """replica-ps, at all temperatures"""


def windows(run: "Run", energy_variance: Callable, seed: int = 0) -> tuple[Windows, Windows]:
    """(before failures, calm): `Windows` of both kinds, chosen at random, by ``energy_variance`` (B, N, 3) -> (B,)."""
    rng = np.random.default_rng([seed, 1])
    times, lives = run.trajectory.times, run.lives
    interval = times[1] - times[0]
    length = int(min(max(WINDOW // interval, 1), len(times) - 1))
    failed = np.flatnonzero(np.isfinite(run.failure_times) & (lives > 0))
    before = rng.permutation(failed)[:WINDOWS]
    # As many calm windows at each temperature.
    quiet = np.where(np.isfinite(run.failure_times), lives - int(CALM // interval), lives) - length
    calm = []
    for temperature in dict.fromkeys(run.target_temperatures):
        able = np.flatnonzero((run.target_temperatures == temperature) & (quiet >= 0))
        wanted = -(-WINDOWS // len(set(run.target_temperatures)))
        calm += [(k, rng.integers(quiet[k] + 1)) for k in np.resize(rng.permutation(able), wanted if len(able) else 0)]

    def followed(beginnings: list[tuple[int, int]]) -> Windows:
        replica = np.array([k for k, _ in beginnings], dtype=int)
        first = np.array([f for _, f in beginnings], dtype=int).reshape(-1, 1)
        frames = np.clip(first + np.arange(length), 0, None)
        sigma = [np.sqrt(energy_variance(run.trajectory.positions[f, k])) for f, k in zip(frames, replica, strict=True)]
        return Windows(replica, frames, np.array(sigma).reshape(frames.shape))

    # A replica that failed early is followed from its first frame, which stands in for those before.
    return followed([(k, lives[k] - length) for k in before]), followed(calm)


def warning(run: "Run", frames: "Frames", before: Windows, calm: Windows) -> Part[Warned, Followed]:
    """The fourth part of the verdict, from what was followed before failures and in calm stretches."""
    failures = int(np.isfinite(run.failure_times).sum())
    times = run.trajectory.times
    calm_ps = float(calm.sigma.size * (times[1] - times[0]) / 1000)
    threshold = announced = false_alarms = None
    if len(calm.replica):
        threshold = float(THRESHOLD * np.quantile(calm.sigma, 0.99))
        false_alarms = float(_rises(calm.sigma > threshold) / calm_ps)
        if len(before.replica):
            ahead = run.failure_times[before.replica][:, None] - times[before.frames] >= AHEAD
            announced = float(((before.sigma > threshold) & ahead).any(1).mean())
    told = Warned(*_correlation(frames), threshold, announced, false_alarms)
    grade, sentence = _grade(told, failures)
    seen = len(before.replica)
    missing = f"{seen} failures followed, and a share needs {FOLLOWED}" if seen < FOLLOWED else ""
    return Part(grade, sentence, (told,), (Followed(failures, seen, calm_ps),)).short_of(missing)


def no_warning(run: "Run") -> Part[Warned, Followed]:
    """The fourth part where there is no uncertainty to warn by."""
    followed = Followed(int(np.isfinite(run.failure_times).sum()))
    return Part("unknown", "this potential has no uncertainty", (), (followed,))


def _correlation(frames: "Frames") -> tuple[int, float | None]:
    """Number of the frames with a label, and the rank correlation of sigma and error over them."""
    labelled = np.isfinite(frames.energy_error)
    if labelled.sum() < 3:
        return int(labelled.sum()), None
    return int(labelled.sum()), spearman(np.abs(frames.energy_error[labelled]), frames.sigma[labelled])


def _rises(over: np.ndarray) -> int:
    """How often rows (W, F) of booleans become true."""
    return int((over & ~np.concatenate([np.zeros((len(over), 1), bool), over[:, :-1]], axis=1)).sum())


def _grade(told: Warned, failures: int) -> tuple[Grade, str]:
    """Grade and sentence."""
    if told.announced is None or told.false_alarms_per_ps is None:
        return "unknown", "no calm stretch to set a threshold by" if failures else "no failure to announce"
    calm = told.false_alarms_per_ps <= 1
    good, fair = (calm and told.announced >= bar for bar in ANNOUNCED)
    sentence = f"{100 * told.announced:.0f}% of failures announced, {told.false_alarms_per_ps:.2g} false alarms per ps"
    return "good" if good else "fair" if fair else "poor", sentence
