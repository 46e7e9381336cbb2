"""Survival beside truth: frames of the model's own trajectories, relabelled, for every temperature and kind of start."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from iqagp_jax.system.failure import near
from iqagp_jax.system.system import System
from iqagp_jax.units import KCAL_MOL
from iqagp_jax.verdict.parts import Grade, Part

if TYPE_CHECKING:
    from iqagp_jax.verdict.replicas import Run

BARS = (0.5, 2.0)
"""What median and 95th percentile of |dE| should stay below, kcal/mol."""

SHARE = 0.95
"""Of the replicas, that must survive for a fair survival; all for a good one."""

FALSE_BASIN = 5.0
"""A surviving replica is wrong in the end if the median |dE| of the later half of its frames is above this, kcal/mol."""

FINAL = 100.0
"""Time before a failure (fs) whose frames are relabelled too."""

FINAL_FRAMES = 10
"""Frames of it, for so many replicas at most."""

NONE_SEEN = 3.0
"""After a time t without a failure the rate is below this / t, with 95% confidence (doi:10.1001/jama.1983.03330370053031)."""

RATE = 0.01
"""Failures per replica-ps that must be ruled out at every temperature before survival has a grade: lives of 100 ps in the mean.

That takes `NONE_SEEN` / `RATE` = 300 replica-ps without a failure, what the default protocol runs: 10 replicas of 10 ps from
each of three kinds of start. Six replicas of 1 ps rule out no more than a failure every 2 ps."""

FRAMES = 60
"""Labelled frames that must be there at every temperature before truth has a grade.

The bar of the 95th percentile claims that less than 5% of all frames err by more. `NONE_SEEN` / 0.05 = 60 frames show that, if
none of them does; of fewer frames the percentile is hardly more than the largest error."""


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
    """(M,) its standard deviation by the model, eV; NaN where it has none"""
    energy_error: np.ndarray
    """(M,) model minus reference, kcal/mol"""
    force_error: np.ndarray
    """(M,) root mean square over the components, kcal/mol/angstrom"""


@dataclass(frozen=True)
class Spread:
    """Absolute errors of some frames, in kcal/mol or kcal/mol/angstrom."""

    median: float
    p95: float
    """95th percentile"""
    max: float

    @classmethod
    def of(cls, errors: np.ndarray) -> "Spread | None":
        """Of errors (M,), NaN where there is no label; None where none has one."""
        errors = np.abs(errors[np.isfinite(errors)])
        return cls(float(np.median(errors)), float(np.quantile(errors, 0.95)), float(errors.max())) if len(errors) else None

    @classmethod
    def worst(cls, spreads: Iterable["Spread"]) -> "Spread | None":
        """The largest median, the largest percentile and the largest error of several; None of none."""
        each = [(s.median, s.p95, s.max) for s in spreads]
        return cls(*map(max, zip(*each, strict=True))) if each else None


def columns(name: str, spread: Spread | None) -> dict[str, float | None]:
    """A `Spread` as part of a row: ``name_median``, ``name_p95`` and ``name_max``, None where it is None."""
    return {f"{name}_{key}": getattr(spread, key, None) for key in ("median", "p95", "max")}


@dataclass(frozen=True)
class Failure:
    """How a replica ended."""

    replica: int
    time_ps: float
    reason: str


@dataclass(frozen=True)
class Group:
    """The replicas at one temperature from one kind of start; None for what was not labelled.

    Errors are of the frames taken evenly, not of those before failures.
    """

    temperature: float
    """K"""
    start: str
    replicas: int
    survived: int
    """by the failure rule"""
    right: int | None
    """of the survivors, those in no false basin"""
    reacted: int
    """of the survivors, those whose bonds are not the minimum's in the end"""
    reacted_right: int | None
    """of these, those that are right"""
    frames: int
    """given to the reference"""
    without_label: int | None
    """that it cannot calculate"""
    de: Spread | None
    """energies, kcal/mol"""
    df: Spread | None
    """forces, kcal/mol/angstrom"""
    failures: tuple[Failure, ...]

    def as_dict(self) -> dict[str, Any]:
        """A row of ``robustness.json``."""
        row = {"temperature_K": self.temperature, "start": self.start}
        counted = ("replicas", "survived", "right", "reacted", "reacted_right", "frames", "without_label")
        row |= {name: getattr(self, name) for name in counted}
        failures = [asdict(failure) for failure in self.failures]
        return {**row, **columns("de", self.de), **columns("df", self.df), "failures": failures}


@dataclass(frozen=True)
class Lived:
    """What survival at one temperature rests on."""

    temperature_K: float
    replica_ps: float
    """lived by all replicas together"""
    failures: int
    failure_rate_below: float | None
    """per replica-ps, with 95% confidence, where none was seen; see `NONE_SEEN`"""
    replicas: int
    ps: float
    """length of the run"""

    @property
    def words(self) -> str:
        """Temperature, number and rate."""
        rate = "" if self.failure_rate_below is None else f", fewer than {two_figures(self.failure_rate_below)} failures per ps"
        return f"{self.temperature_K:g} K: {self.replicas - self.failures} of {self.replicas}{rate}"

    @property
    def missing(self) -> str:
        """What must be run to rule out `RATE`, in words; empty where enough was."""
        lacking = NONE_SEEN / RATE - self.replica_ps
        if lacking < 1e-6:
            return ""
        return f"{math.ceil(lacking)} more replica-ps at {self.temperature_K:g} K"


@dataclass(frozen=True)
class Labelled:
    """What truth rests on."""

    frames: int
    """along the runs, with a label"""


def choose_frames(run: "Run", frames_per_group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(replica, frame, final) of the frames to relabel: evenly along every replica's life, and before its failure."""
    chosen: list[tuple[int, int, bool]] = []
    for replica, life in enumerate(run.lives.tolist()):
        mates = len(run.group(run.target_temperatures[replica], run.kinds[replica]))
        share = -(-frames_per_group // mates)
        evenly = np.unique(np.linspace(0, life - 1, share + 1)[1:].round().astype(int)) if life else np.zeros(0, int)
        chosen += [(replica, k, False) for k in evenly.tolist()]
    times = run.trajectory.times
    for replica in np.flatnonzero(np.isfinite(run.failure_times))[:FINAL_FRAMES].tolist():
        last = np.flatnonzero((times > run.failure_times[replica] - FINAL) & run.trajectory.alive[:, replica])
        some = last[np.unique(np.linspace(0, len(last) - 1, FINAL_FRAMES).round().astype(int))] if len(last) else []
        chosen += [(replica, k, True) for k in some]
    if not chosen:
        raise ValueError(f"expected a replica that is alive in a frame, found none of {len(run.lives)}; look at its energies")
    replicas, frames, final = zip(*chosen, strict=True)
    return np.array(replicas), np.array(frames), np.array(final)


def compare(
    chosen: tuple[np.ndarray, np.ndarray, np.ndarray],
    predicted: tuple[np.ndarray, np.ndarray, np.ndarray],
    labels: tuple[np.ndarray, np.ndarray],
) -> Frames:
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


def is_right(frames: Frames, replica: int) -> bool:
    """Whether a replica was right in the end (see `FALSE_BASIN`); False where the reference has no label there."""
    mine = np.flatnonzero((frames.replica == replica) & ~frames.final)
    later = np.abs(frames.energy_error[mine[len(mine) // 2 :]])
    return bool(len(later) and np.median(np.nan_to_num(later, nan=np.inf)) <= FALSE_BASIN)


def has_reacted(run: "Run", system: System, replica: int) -> bool:
    """Whether a replica's last frame has other near neighbours than the system at rest: bonds broken, or formed."""
    last = run.trajectory.positions[run.lives[replica] - 1, replica]
    return not np.array_equal(near(system.species, last), near(system.species, system.positions))


def groups(run: "Run", frames: Frames, system: System, has_reference: bool) -> tuple[Group, ...]:
    """The table, a `Group` for every temperature and kind of start; ``system`` at rest."""
    return tuple(_group(run, frames, system, has_reference, *group) for group in run.groups)


def _group(run: "Run", frames: Frames, system: System, has_reference: bool, temperature: float, kind: str) -> Group:
    members = run.group(temperature, kind)
    failed = np.isfinite(run.failure_times[members])
    mine = np.isin(frames.replica, members) & ~frames.final
    right = {k for k in members[~failed] if is_right(frames, k)}
    reacted = {k for k in members[~failed] if has_reacted(run, system, k)}
    return Group(
        temperature,
        kind,
        replicas=len(members),
        survived=int((~failed).sum()),
        right=len(right) if has_reference else None,
        reacted=len(reacted),
        reacted_right=len(right & reacted) if has_reference else None,
        frames=int(mine.sum()) if has_reference else 0,
        without_label=int(np.isnan(frames.energy_error[mine]).sum()) if has_reference else None,
        de=Spread.of(frames.energy_error[mine]),
        df=Spread.of(frames.force_error[mine]),
        failures=tuple(Failure(int(k), float(run.failure_times[k]) / 1000, run.failure_reasons[k]) for k in members[failed]),
    )


def survival(rows: tuple[Group, ...], run: "Run") -> Part[Group, Lived]:
    """The first part of the verdict."""
    replicas, survived = sum(row.replicas for row in rows), sum(row.survived for row in rows)
    share = survived / replicas
    grade: Grade = "good" if share == 1 else "fair" if share >= SHARE else "poor"
    evidence = tuple(_lived(run, temperature) for temperature in dict.fromkeys(row.temperature for row in rows))
    sentence = f"{survived} of {replicas} replicas survived {evidence[0].ps:g} ps"
    sentence += f" ({'; '.join(lived.words for lived in evidence)})"
    missing = ", ".join(filter(None, (lived.missing for lived in evidence)))
    need = (
        f"too little to rule out {RATE:g} failures per ps (95% sure), which takes {missing} without a failure"
        if missing
        else ""
    )
    return Part(grade, sentence, rows, evidence).short_of(need)


def _lived(run: "Run", temperature: float) -> Lived:
    ends = run.failure_times[run.target_temperatures == temperature]
    failures = int(np.isfinite(ends).sum())
    picoseconds = float(np.where(np.isfinite(ends), ends, run.trajectory.times[-1]).sum() / 1000)
    bound = None if failures else NONE_SEEN / picoseconds
    return Lived(temperature, picoseconds, failures, bound, len(ends), float(run.trajectory.times[-1] / 1000))


def truth(rows: tuple[Group, ...]) -> Part[Group, Labelled]:
    """The second part of the verdict."""
    lost = sum(row.without_label or 0 for row in rows)
    worst = Spread.worst(row.de for row in rows if row.de)
    evidence = (Labelled(sum(row.frames for row in rows) - lost),)
    if not worst:
        return Part("unknown", f"the reference can calculate none of {lost} frames" if lost else "no reference", rows, evidence)
    median, high = worst.median, worst.p95
    survived, right = sum(row.survived for row in rows), sum(row.right or 0 for row in rows)
    good = median < BARS[0] and high < BARS[1] and right == survived and not lost
    fair = median < BARS[1] and high < 5 * BARS[1] and not any(row.frames for row in rows if not row.de)
    labelled: dict[float, int] = dict.fromkeys((row.temperature for row in rows), 0)
    for row in rows:
        labelled[row.temperature] += row.frames - (row.without_label or 0)
    sentence = f"{', '.join(f'{n} frames at {t:g} K' for t, n in labelled.items())}; "
    sentence += f"worst row: median |dE| {two_figures(median)}, 95% {two_figures(high)} kcal/mol;"
    sentence += f" {right} of {survived} survivors are right"
    sentence += f"; {lost} frames that the reference cannot calculate" * bool(lost)
    missing = ", ".join(f"{FRAMES - n} more at {t:g} K" for t, n in labelled.items() if n < FRAMES)
    need = f"too few to show that 95% of all frames are right, which takes {missing} (--frames)" if missing else ""
    return Part("good" if good else "fair" if fair else "poor", sentence, rows, evidence).short_of(need)


def significant(number: float, n: int) -> str:
    """A number in n significant figures, or as a whole one, never with an exponent where it is large."""
    return f"{number:.{n}g}" if abs(number) < 10**n - 0.5 else f"{number:.0f}"


def two_figures(number: float) -> str:
    """A number in two `significant` figures."""
    return significant(number, 2)
