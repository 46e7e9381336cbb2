"""Pictures of a verdict: each function returns a figure."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from iqagp_jax.plots import BLUE, GREY, ORANGE, RED, panels
from iqagp_jax.system.coordinates import dihedral
from iqagp_jax.units import KCAL_MOL
from iqagp_jax.verdict.alarm import Windows
from iqagp_jax.verdict.ensemble import Distribution, after_equilibration
from iqagp_jax.verdict.shape import KINDS as UNITS
from iqagp_jax.verdict.shape import REACH, Profile
from iqagp_jax.verdict.truth import BARS, Frames, Group, two_figures

if TYPE_CHECKING:
    from iqagp_jax.verdict.replicas import Run

SMALLEST = 1e-3
"""Errors are drawn no smaller than this, kcal/mol, on logarithmic axes."""


def survival_and_truth(rows: Sequence[Group]) -> Figure:
    """Two matrices of temperature and start: who survived, and how wrong the survivors' and others' frames are."""
    temperatures = list(dict.fromkeys(row.temperature for row in rows))
    kinds = list(dict.fromkeys(row.start for row in rows))
    figure, left, right = panels(2, 1.2 + 0.55 * len(temperatures))
    alive, wrong, worse = (np.full((len(temperatures), len(kinds)), np.nan) for _ in range(3))
    for row in rows:
        at = temperatures.index(row.temperature), kinds.index(row.start)
        alive[at] = 100 * row.survived / row.replicas
        if row.de:
            wrong[at], worse[at] = max(row.de.median, SMALLEST), row.de.p95
    # A potential that loses two of five is as bad as can be.
    left.imshow(alive, cmap="RdYlGn", vmin=60, vmax=100, aspect="auto", alpha=0.7)
    right.imshow(wrong, cmap="RdYlGn_r", norm=LogNorm(0.05, 20), aspect="auto", alpha=0.7)
    for (i, j), share in np.ndenumerate(alive):
        median, high = float(wrong[i, j]), float(worse[i, j])
        error = f"{two_figures(median)}, 95% {two_figures(high)}" if np.isfinite(median) else "not known"
        left.text(j, i, f"{share:.0f}%" if np.isfinite(share) else "", ha="center", va="center", fontsize=9)
        right.text(j, i, error, ha="center", va="center", fontsize=8)
    for ax, title in ((left, "survived"), (right, "|dE| of relabelled frames, kcal/mol: median (colour) and 95%")):
        ax.set_xticks(range(len(kinds)), kinds, fontsize=8)
        ax.set_yticks(range(len(temperatures)), [f"{t:g} K" for t in temperatures], fontsize=8)
        ax.set_title(title, fontsize=9)
    return figure


def rounds(told: Sequence[Mapping[str, Any]]) -> Figure:
    """Active learning: survivors, and the worst errors of a verdict, against training geometries; see `active`."""
    figure, left, right = panels(2)
    geometries = [row["geometries"] for row in told]
    for key, style, colour in (("survived", "o-", BLUE), ("right", "o--", ORANGE)):
        shares = [np.nan if row[key] is None else 100 * row[key] / row["replicas"] for row in told]
        left.plot(geometries, shares, style, color=colour, label=key)
    left.set(xlabel="training geometries", ylabel="replicas, %", ylim=(-3, 105))
    left.legend(fontsize=8, frameon=False)
    names = {"de_median": "median", "de_p95": "95%", "de_max": "largest"}
    for (key, name), colour in zip(names.items(), (BLUE, ORANGE, RED), strict=True):
        right.plot(geometries, [np.nan if row[key] is None else row[key] for row in told], "o-", color=colour, label=name)
    for bar, colour in zip(BARS, (BLUE, ORANGE), strict=True):
        right.axhline(bar, color=colour, lw=0.8, ls="--")
    right.set(xlabel="training geometries", ylabel="|dE| of the worst row, kcal/mol")
    _logarithmic(right, any(row["de_max"] for row in told), "nothing relabelled")
    right.legend(fontsize=8, frameon=False)
    return figure


def survival_curves(run: "Run") -> Figure:
    """Share of living replicas against time, a panel a temperature and a line a kind of start."""
    temperatures = sorted(set(run.target_temperatures))
    figure, *axes = panels(len(temperatures), 2.6)
    times = run.trajectory.times / 1000
    colours = dict(zip(dict.fromkeys(run.kinds), cycle((BLUE, ORANGE, RED, GREY)), strict=False))
    for ax, temperature in zip(axes, temperatures, strict=True):
        for kind in dict.fromkeys(run.kinds[run.target_temperatures == temperature]):
            alive = run.trajectory.alive[:, run.group(temperature, kind)].mean(1)
            # The run ends early where none is left.
            ax.plot(times, 100 * alive, color=colours[kind], lw=1.5, label=kind)
        ax.set(xlabel="time, ps", ylabel="alive, %", ylim=(-3, 105), title=f"{temperature:g} K")
        ax.legend(fontsize=7, frameon=False)
    return figure


def errors(run: "Run", frames: Frames) -> Figure:
    """Relabelled frames: |dE| of every frame by temperature and start, and the model's energy against the reference's."""
    figure, left, right = panels(2)
    rng = np.random.default_rng(0)
    groups = run.groups
    temperatures = sorted(set(run.target_temperatures))
    shades = dict(zip(temperatures, np.linspace(0.25, 0.95, len(temperatures)), strict=True))
    for x, (temperature, kind) in enumerate(groups):
        mine = np.isin(frames.replica, run.group(temperature, kind)) & ~frames.final & np.isfinite(frames.energy_error)
        error = np.maximum(np.abs(frames.energy_error[mine]), SMALLEST)
        left.plot(x + rng.uniform(-0.25, 0.25, len(error)), error, ".", color=BLUE, ms=3, alpha=0.5)
        if len(error):
            left.plot([x - 0.35, x + 0.35], [np.median(error)] * 2, color=RED, lw=2)
    for bar, name in zip(BARS, ("median", "95%"), strict=True):
        left.axhline(bar, color=GREY, lw=0.8, ls="--")
        left.text(len(groups) - 0.5, bar, f" {name} bar", fontsize=7, color=GREY, va="bottom", ha="right")
    left.set(yscale="log", ylabel="|dE|, kcal/mol")
    left.set_xticks(range(len(groups)), [f"{k} {t:g} K" for t, k in groups], rotation=60, ha="right", fontsize=7)
    left.set_title("frames of the model's own runs (red: median)", fontsize=9)
    kept = np.isfinite(frames.energy_error)
    reference = frames.energy[kept] / KCAL_MOL - frames.energy_error[kept]
    if len(reference):
        zero = reference.min()
        colours = [shades[t] for t in run.target_temperatures[frames.replica[kept]]]
        right.scatter(reference - zero, frames.energy[kept] / KCAL_MOL - zero, c=colours, cmap="inferno", s=6, vmin=0, vmax=1)
        limits = [0, (reference - zero).max()]
        right.plot(limits, limits, color=GREY, lw=0.8)
    right.set(xlabel="reference energy, kcal/mol", ylabel="model energy, kcal/mol")
    right.set_title("same zero for both; lighter is hotter; also frames before failures", fontsize=8)
    return figure


def scans(found: Sequence[Profile], most: int = 8) -> Figure:
    """The scans on which the model errs most within reach, beside the reference."""

    def worst(profile: Profile) -> float:
        error = np.abs(profile.model - profile.reference)[profile.within_reach]
        return float(np.nan_to_num(error, nan=np.inf).max(initial=0.0))

    chosen = sorted(found, key=lambda profile: -worst(profile))[:most]
    figure = Figure(figsize=(2.4 * 4, 2.3 * -(-len(chosen) // 4)), layout="constrained", dpi=150)
    axes = figure.subplots(-(-len(chosen) // 4), 4, squeeze=False).ravel()
    for ax in axes[len(chosen) :]:
        ax.set_axis_off()
    for ax, profile in zip(axes, chosen, strict=False):
        known = np.isfinite(profile.reference)
        ax.plot(profile.scan.values[known], profile.reference[known], "-", color=GREY, lw=3, alpha=0.5, label="reference")
        ax.plot(profile.scan.values, profile.model, ".-", color=BLUE, lw=1, ms=4, label="model")
        ax.set(ylim=(min(-5.0, profile.model.min(initial=0.0)), 2 * REACH), xlabel=UNITS[profile.scan.kind])
        ax.set_title(f"{profile.scan.kind} {profile.scan.name}", fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=7)
    axes[0].set_ylabel("kcal/mol")
    axes[0].legend(fontsize=7, frameon=False)
    return figure


def distributions(found: Sequence[Distribution], temperature: float, most: int = 6) -> Figure:
    """The coordinates whose distributions are farthest apart at one temperature."""
    worst = sorted(found, key=lambda d: -d.distance)[:most]
    figure, *axes = panels(len(worst), 2.8)
    figure.set_size_inches(2.6 * len(worst), 2.8)
    for ax, d in zip(axes, worst, strict=True):
        middle = (d.edges[1:] + d.edges[:-1]) / 2
        ax.fill_between(middle, d.reference, step="mid", color=GREY, alpha=0.4, label="reference")
        ax.step(middle, d.model, where="mid", color=BLUE, lw=1.5, label="model")
        ax.set_title(f"{d.name}\nJS {d.distance:.2f} ({d.error:.2f}), chance {d.chance:.2f}", fontsize=7)
        ax.set_xlabel(d.unit, fontsize=8)
        ax.set_yticks([])
        ax.tick_params(labelsize=7)
    axes[0].legend(fontsize=7, frameon=False)
    figure.suptitle(f"{temperature:g} K", fontsize=9)
    return figure


def uncertainty(run: "Run", frames: Frames, before: Windows, threshold: float | None) -> Figure:
    """The model's standard deviation against its error, and sigma in the time before failures."""
    figure, left, right = panels(2)
    kept = np.isfinite(frames.energy_error)
    for final, colour, name in ((False, BLUE, "along the runs"), (True, RED, "before failures")):
        mine = kept & (frames.final == final)
        error, sigma = (np.maximum(np.abs(x[mine]), SMALLEST) for x in (frames.energy_error, frames.sigma / KCAL_MOL))
        if mine.any():
            left.plot(sigma, error, ".", color=colour, ms=4, alpha=0.6, label=name)
            left.legend(fontsize=7, frameon=False)
    left.set(xlabel="the model's sigma, kcal/mol", ylabel="|dE|, kcal/mol")
    _logarithmic(left, bool(kept.any()), "nothing relabelled", x=True)
    times = run.trajectory.times
    for replica, numbers, sigma in zip(before.replica, before.frames, before.sigma, strict=True):
        to_failure = times[numbers] - run.failure_times[replica]
        right.plot(to_failure, np.maximum(sigma / KCAL_MOL, SMALLEST), color=RED, lw=0.6, alpha=0.6)
    if threshold is not None and len(before.replica):
        right.axhline(threshold / KCAL_MOL, color="black", lw=1, ls="--", label="alarm")
        right.legend(fontsize=7, frameon=False)
    right.set(xlabel="time to failure, fs", ylabel="sigma, kcal/mol")
    _logarithmic(right, len(before.replica) > 0, "no failures")
    return figure


def _logarithmic(ax: Axes, has_data: bool, without: str, x: bool = False) -> None:
    """Logarithmic axes, which need data; a word where there are none."""
    if has_data:
        ax.set(yscale="log", **({"xscale": "log"} if x else {}))
    else:
        ax.text(0.5, 0.5, without, transform=ax.transAxes, ha="center", color=GREY)
        ax.set_axis_off()


def ramachandran(
    residues: Sequence[tuple[tuple[int, int, int, int], tuple[int, int, int, int]]],
    temperature: float,
    runs: Mapping[str, "Run"],
) -> Figure:
    """phi and psi of every residue: ``runs`` {name: Run} beside each other, as many frames of each through the same time."""
    figure, *axes = panels(len(runs), 4.0)
    end = min(run.trajectory.times[-1] for run in runs.values())
    seen = [after_equilibration(run, temperature, end) for run in runs.values()]
    frames = [positions[np.isfinite(positions).all((2, 3))] for positions in seen]
    most = min((len(positions) for positions in frames if len(positions)), default=0)
    for ax, name, positions in zip(axes, runs, frames, strict=True):
        positions = positions[np.linspace(0, len(positions), min(most, len(positions)), endpoint=False).astype(int)]
        for phi, psi in residues:
            ax.plot(*(np.degrees(dihedral(positions, *atoms)) for atoms in (phi, psi)), ".", ms=2, alpha=0.5)
        ax.set(xlim=(-180, 180), ylim=(-180, 180), xlabel="phi, °", ylabel="psi, °", aspect="equal")
        ax.set_title(f"{name}, {temperature:g} K, {len(positions)} frames", fontsize=9)
    return figure
