"""Warning: did the model's own uncertainty rise before its error did?"""

from dataclasses import dataclass

import numpy as np

from iqagp_jax.validation import spearman

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


@dataclass(frozen=True)
class Windows:
    """Stretches of trajectories with the model's standard deviation frame by frame."""

    replica: np.ndarray
    """(W,)"""
    frames: np.ndarray
    """(W, F) numbers in the trajectory"""
    sigma: np.ndarray
    """(W, F) eV"""


def windows(run, energy_variance, seed=0):
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
    for temperature in dict.fromkeys(run.temperatures):
        able = np.flatnonzero((run.temperatures == temperature) & (quiet >= 0))
        wanted = -(-WINDOWS // len(set(run.temperatures)))
        calm += [(k, rng.integers(quiet[k] + 1)) for k in np.resize(rng.permutation(able), wanted if len(able) else 0)]

    def followed(beginnings):
        replica = np.array([k for k, _ in beginnings], dtype=int)
        first = np.array([f for _, f in beginnings], dtype=int).reshape(-1, 1)
        frames = np.clip(first + np.arange(length), 0, None)
        sigma = [np.sqrt(energy_variance(run.trajectory.positions[f, k])) for f, k in zip(frames, replica, strict=True)]
        return Windows(replica, frames, np.array(sigma).reshape(frames.shape))

    # A replica that failed early is followed from its first frame, which stands in for those before.
    return followed([(k, lives[k] - length) for k in before]), followed(calm)


def warning(run, frames, before, calm):
    """The fourth part of the verdict as a dict; None for what cannot be known."""
    labelled = np.isfinite(frames.energy_error)
    correlation = None
    if labelled.sum() > 2:
        correlation = spearman(np.abs(frames.energy_error[labelled]), frames.sigma[labelled])
    times = run.trajectory.times
    interval = times[1] - times[0]
    found = {
        "rank_correlation": correlation,
        "frames": int(labelled.sum()),
        "threshold_eV": None,
        "failures": int(np.isfinite(run.failure_times).sum()),
        "failures_followed": len(before.replica),
        "announced": None,
        "false_alarms_per_ps": None,
        "calm_ps": calm.sigma.size * interval / 1000,
    }
    if not len(calm.replica):
        return found
    threshold = THRESHOLD * np.quantile(calm.sigma, 0.99)
    over = calm.sigma > threshold
    raised = over & ~np.concatenate([np.zeros((len(over), 1), bool), over[:, :-1]], axis=1)
    found |= {"threshold_eV": float(threshold), "false_alarms_per_ps": float(raised.sum() / found["calm_ps"])}
    if len(before.replica):
        ahead = run.failure_times[before.replica][:, None] - times[before.frames] >= AHEAD
        found["announced"] = float(((before.sigma > threshold) & ahead).any(1).mean())
    return found
