"""Survival beside truth: frames of the model's own trajectories, relabelled, for every temperature and kind of start."""

from dataclasses import dataclass

import numpy as np

from iqagp_jax.system.failure import near
from iqagp_jax.units import KCAL_MOL

FALSE_BASIN = 5.0
"""A surviving replica is wrong in the end if the median |dE| of the later half of its frames is above this, kcal/mol."""

FINAL = 100.0
"""Time before a failure (fs) whose frames are relabelled too."""

FINAL_FRAMES = 10
"""Frames of it, for so many replicas at most."""


@dataclass(frozen=True)
class Frames:
    """M frames of a run with the model's and the reference's labels; NaN where the reference has none."""

    replica: np.ndarray
    """(M,)"""
    frame: np.ndarray
    """(M,) number in the trajectory"""
    final: np.ndarray
    """(M,) bool, taken because the replica failed soon after"""
    energy: np.ndarray
    """(M,) model, eV"""
    sigma: np.ndarray
    """(M,) its standard deviation by the model, eV"""
    energy_error: np.ndarray
    """(M,) model minus reference, kcal/mol"""
    force_error: np.ndarray
    """(M,) root mean square over the components, kcal/mol/angstrom"""


def choose_frames(run, frames_per_group):
    """(replica, frame, final) of the frames to relabel: evenly along every replica's life, and before its failure."""
    chosen = []
    for replica, life in enumerate(run.lives):
        mates = len(run.group(run.temperatures[replica], run.kinds[replica]))
        share = -(-frames_per_group // mates)
        evenly = np.linspace(0, life - 1, share + 1)[1:].round().astype(int) if life else []
        chosen += [(replica, k, False) for k in np.unique(evenly)]
    times = run.trajectory.times
    for replica in np.flatnonzero(np.isfinite(run.failure_times))[:FINAL_FRAMES]:
        last = np.flatnonzero((times > run.failure_times[replica] - FINAL) & run.trajectory.alive[:, replica])
        some = last[np.unique(np.linspace(0, len(last) - 1, FINAL_FRAMES).round().astype(int))] if len(last) else []
        chosen += [(replica, k, True) for k in some]
    replica, frame, final = (np.array(column) for column in zip(*chosen, strict=True))
    return replica, frame, final


def compare(chosen, predicted, labels):
    """`Frames` from what was `chosen`, the model's (energy, forces, variance) and the reference's (energy, forces)."""
    energy, forces, variance = predicted
    difference = (forces - labels[1]) / KCAL_MOL
    return Frames(
        *chosen,
        energy=energy,
        sigma=np.sqrt(variance),
        energy_error=(energy - labels[0]) / KCAL_MOL,
        force_error=np.sqrt((difference**2).mean((1, 2))),
    )


def spread(name, errors):
    """Median, 95th percentile and maximum of absolute errors; None where there are none."""
    errors = np.abs(errors[np.isfinite(errors)])
    values = (np.median(errors), np.quantile(errors, 0.95), errors.max()) if len(errors) else (None,) * 3
    keys = (f"{name}_median", f"{name}_p95", f"{name}_max")
    return {key: None if value is None else float(value) for key, value in zip(keys, values, strict=True)}


def is_right(frames, replica):
    """Whether a replica was right in the end (see `FALSE_BASIN`); False where the reference has no label there."""
    mine = np.flatnonzero((frames.replica == replica) & ~frames.final)
    later = np.abs(frames.energy_error[mine[len(mine) // 2 :]])
    return bool(len(later) and np.median(np.nan_to_num(later, nan=np.inf)) <= FALSE_BASIN)


def has_reacted(run, species, minimum, replica):
    """Whether a replica's last frame has other near neighbours than the minimum: bonds broken, or formed."""
    last = run.trajectory.positions[run.lives[replica] - 1, replica]
    return not np.array_equal(near(species, last), near(species, minimum))


def rows(run, frames, species, minimum, has_reference):
    """The table, a dict for every temperature and kind of start; errors in kcal/mol and kcal/mol/angstrom.

    ``de_*`` and ``df_*`` are of the frames taken evenly, not of those before failures. ``survived`` is by the failure rule,
    ``right`` those of them that are in no false basin, ``reacted`` those whose bonds are not the minimum's in the end,
    ``reacted_right`` those of these that are right.
    """
    table = []
    for temperature, kind in run.groups:
        members = run.group(temperature, kind)
        alive = [k for k in members if np.isnan(run.failure_times[k])]
        mine = np.isin(frames.replica, members) & ~frames.final
        right = [k for k in alive if is_right(frames, k)]
        reacted = [k for k in alive if has_reacted(run, species, minimum, k)]
        failures = [
            {"replica": int(k), "time_ps": float(run.failure_times[k]) / 1000, "reason": run.reasons[k]}
            for k in members
            if np.isfinite(run.failure_times[k])
        ]
        table.append(
            {
                "temperature_K": temperature,
                "start": kind,
                "replicas": len(members),
                "survived": len(alive),
                "right": len(right) if has_reference else None,
                "reacted": len(reacted),
                "reacted_right": len(set(right) & set(reacted)) if has_reference else None,
                "frames": int(mine.sum()) if has_reference else 0,
                "without_label": int(np.isnan(frames.energy_error[mine]).sum()) if has_reference else None,
                **spread("de", frames.energy_error[mine]),
                **spread("df", frames.force_error[mine]),
                "failures": failures,
            }
        )
    return table
