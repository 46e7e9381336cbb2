"""The ensemble: where the model's dynamics goes, and how often, against the reference's own dynamics.

Both are driven by the same integrator, thermostat and treatment of rotation, and seen through the same stretch of time after
the same start. Every replica is one independent sample: error bars come from the scatter of replicas, so correlations in time
do not matter.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from iqagp_jax.system.system import System
from iqagp_jax.verdict.parts import Grade, Part
from iqagp_jax.verdict.structure import Coordinate, coordinates, states

if TYPE_CHECKING:
    from iqagp_jax.verdict.replicas import Run

EQUILIBRATION = 0.2
"""Share of the shorter run that is left out at the beginning of both."""

BINS = 40
"""Of a distribution, over the range of model and reference together."""

RESAMPLED = 200
"""Bootstrap samples and permutations."""

BEYOND = (0.05, 0.15)
"""Jensen-Shannon distances of a good and of a fair ensemble exceed what chance gives by at most this."""

TELLING = 0.3
"""Where chance alone gives distances above this the runs are too short to tell."""

ERRORS = (3.0, 5.0)
"""Populations and rates of a good and of a fair ensemble differ by at most so many standard errors."""


@dataclass(frozen=True)
class Distribution:
    """One coordinate at one temperature: normalised histograms, and how far they are apart."""

    name: str
    unit: str
    edges: np.ndarray
    """(B + 1,)"""
    model: np.ndarray
    """(B,)"""
    reference: np.ndarray
    """(B,)"""
    distance: float
    """Jensen-Shannon, 0 for the same and 1 for no overlap"""
    error: float
    """its standard deviation, by bootstrap over replicas"""
    chance: float
    """95th percentile of the distance if model and reference were the same, by permutation of the replicas"""


@dataclass(frozen=True)
class Counted:
    """A population or rate at one temperature, each with its standard error; None for what is unknown."""

    name: str
    unit: str
    model: float | None
    model_error: float | None
    reference: float | None
    reference_error: float | None
    difference_in_errors: float | None


@dataclass(frozen=True)
class Sampled:
    """What the ensemble at one temperature rests on."""

    temperature_K: float
    model_replicas: int
    """that lived long enough to be seen"""
    reference_replicas: int
    ps: float
    """through which each of them was seen"""


@dataclass(frozen=True)
class Compared:
    """Model and reference at one temperature; no distributions where no replica of either lived long enough."""

    temperature: float
    distributions: tuple[Distribution, ...]
    counted: tuple[Counted, ...]
    sampled: Sampled

    def as_dict(self) -> dict[str, Any]:
        """A row of ``robustness.json``, of the histograms how far they are apart only."""
        distances = [{key: getattr(d, key) for key in ("name", "distance", "error", "chance")} for d in self.distributions]
        return {
            "temperature_K": self.temperature,
            "distributions": distances,
            "counted": [asdict(counted) for counted in self.counted],
        }


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> Any:
    """Jensen-Shannon distance (doi:10.1109/18.61115), base 2, of histograms (..., B): sqrt(H((p + q)/2) - (H(p) + H(q))/2)."""

    def entropy(x: np.ndarray) -> Any:
        return -(x * np.log2(np.where(x > 0, x, 1.0))).sum(-1)

    p, q = (x / np.maximum(x.sum(-1, keepdims=True), 1) for x in (p, q))
    return np.sqrt(np.maximum(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2, 0.0))


def distribution(coordinate: Coordinate, model: np.ndarray, reference: np.ndarray, rng: np.random.Generator) -> Distribution:
    """Compare a coordinate's values, NaN where a replica is dead: ``model`` (F, R) and ``reference`` (F', R')."""
    both = np.concatenate([model.ravel(), reference.ravel()])
    low, high = (-180.0, 180.0) if coordinate.kind == "dihedral" else (np.nanmin(both), np.nanmax(both))
    edges = np.linspace(low, high, BINS + 1)

    def per_replica(values: np.ndarray) -> np.ndarray:
        return np.array([np.histogram(v[np.isfinite(v)], edges)[0] for v in values.T], dtype=float)

    mine, theirs = per_replica(model), per_replica(reference)
    pooled = np.concatenate([mine, theirs])

    def drawn(n: int, total: int) -> np.ndarray:
        return rng.multinomial(n, np.full(total, 1 / total), RESAMPLED)

    shuffled = np.array([rng.permutation(len(pooled)) for _ in range(RESAMPLED)])
    chance = jensen_shannon(pooled[shuffled[:, : len(mine)]].sum(1), pooled[shuffled[:, len(mine) :]].sum(1))
    resampled = jensen_shannon(drawn(len(mine), len(mine)) @ mine, drawn(len(theirs), len(theirs)) @ theirs)
    p, q = mine.sum(0), theirs.sum(0)
    return Distribution(
        coordinate.name,
        coordinate.unit,
        edges,
        p / max(p.sum(), 1),
        q / max(q.sum(), 1),
        float(jensen_shannon(p, q)),
        float(resampled.std(ddof=1)),
        float(np.quantile(chance, 0.95)),
    )


def mean_and_error(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Weighted mean over replicas and its standard error (ratio estimator); ``values`` and ``weights`` (R,)."""
    mean = (values * weights).sum() / weights.sum()
    n = len(values)
    if n < 2:
        return float(mean), float("nan")
    deviation = weights / weights.mean() * (values - mean)
    return float(mean), float(np.sqrt((deviation**2).sum() / (n * (n - 1))))


def difference(mine: tuple[float, float], theirs: tuple[float, float]) -> float | None:
    """Difference of two (mean, standard error) in standard errors; None where one is unknown."""
    error = np.hypot(mine[1], theirs[1])
    return float((mine[0] - theirs[0]) / error) if np.isfinite(error) else None


def population(series: np.ndarray, state: int) -> tuple[float, float]:
    """Share of the time in a state and its standard error, from a series (F, R) of `structure.states`.

    Where replicas do not differ the error is what one of them could make.
    """
    life = (series >= 0).sum(0)
    lived = life > 0
    mean, error = mean_and_error((series == state).sum(0)[lived] / life[lived], life[lived].astype(float))
    return mean, error or 1 / lived.sum()


def transitions(series: np.ndarray, interval: float) -> tuple[float, float]:
    """Changes of state per ps and their standard error, NaN where no replica lived for two frames; ``interval`` fs.

    Where the scatter of replicas says less, or there is one replica, the error is Poisson's, of at least one event.
    """
    life = (series >= 0).sum(0)
    lived = life > 1
    if not lived.any():
        return np.nan, np.nan
    changes = ((series[1:] != series[:-1]) & (series[1:] >= 0)).sum(0)[lived]
    picoseconds = (life[lived] - 1) * interval / 1000
    mean, error = mean_and_error(changes / picoseconds, picoseconds)
    return mean, float(np.fmax(error, np.sqrt(max(changes.sum(), 1)) / picoseconds.sum()))


def after_equilibration(run: "Run", temperature: float, end: float | None = None) -> np.ndarray:
    """Positions (F, R, N, 3) of the equilibrium replicas at a temperature, from `EQUILIBRATION` of ``end`` to ``end`` (fs).

    Dead replicas are NaN; by default ``end`` is that of the run.
    """
    times = run.trajectory.times
    end = times[-1] if end is None else end
    seen = (times >= EQUILIBRATION * end) & (times <= end)
    return run.trajectory.positions[seen][:, run.group(temperature, "equilibrium")]


def compare(system: System, model: "Run", reference: "Run", temperature: float, seed: int = 0) -> Compared:
    """Distributions, populations and rates at one temperature, model `Run` against reference `Run` with equal frame intervals.

    Both through the same stretch of time: replicas of 100 ps are better samples than those of 12 ps, which no permutation of
    them may mix up, and molecules that have not yet left their start all sit where the reference's do. ``system`` at rest.
    """
    rng = np.random.default_rng([seed, round(temperature)])
    end = float(min(run.trajectory.times[-1] for run in (model, reference)))
    mine, theirs = (after_equilibration(run, temperature, end) for run in (model, reference))
    lived, beside = (int(np.isfinite(positions).any((0, 2, 3)).sum()) for positions in (mine, theirs))
    sampled = Sampled(temperature, lived, beside, (1 - EQUILIBRATION) * end / 1000)
    if not (lived and beside):
        return Compared(temperature, (), (), sampled)
    distributions = tuple(distribution(c, c(mine), c(theirs), rng) for c in coordinates(system.species, system.positions))
    # The states of both at once, lest a hydrogen that moves in one of them only be overlooked in the other.
    together = states(system.species, system.positions, np.concatenate([mine, theirs], axis=1))
    interval = float(np.diff(model.trajectory.times[:2])[0])
    counted = []
    for name, names, series in together:
        parts = series[:, : mine.shape[1]], series[:, mine.shape[1] :]
        for state in np.unique(series[series >= 0]):
            values = [population(part, state) for part in parts]
            counted.append(told(f"{name}: {names[state]}", "share of time", values))
        values = [transitions(part, interval) for part in parts]
        counted.append(told(f"{name}: changes", "per ps", values))
    return Compared(temperature, distributions, tuple(counted), sampled)


def told(name: str, unit: str, values: Sequence[tuple[float, float]]) -> Counted:
    """A row of the table from two (mean, standard error), the model's and the reference's; None for what is unknown."""
    (mine, my_error), (theirs, their_error) = ((x if np.isfinite(x) else None for x in pair) for pair in values)
    return Counted(name, unit, mine, my_error, theirs, their_error, difference(*values))


def ensemble(found: tuple[Compared, ...], without: str = "no reference dynamics") -> Part[Compared, Sampled]:
    """The third part of the verdict; ``without`` is why nothing was compared, if so."""
    evidence = tuple(compared.sampled for compared in found)
    grade, sentence = _grade(found, without)
    return Part(grade, sentence, found, evidence)


def _grade(found: tuple[Compared, ...], without: str) -> tuple[Grade, str]:
    """Grade and sentence."""
    everything = [d for compared in found for d in compared.distributions]
    if not everything:
        return "unknown", without
    farthest = max(everything, key=lambda d: d.distance - d.chance)
    beyond, chance = farthest.distance - farthest.chance, max(d.chance for d in everything)
    differences = (counted.difference_in_errors for compared in found for counted in compared.counted)
    largest = max((abs(d) for d in differences if d is not None), default=0.0)
    good, fair = (beyond <= b and largest <= e for b, e in zip(BEYOND, ERRORS, strict=True))
    sentence = f"distance of {farthest.name} {farthest.distance:.2f}, by chance {farthest.chance:.2f};"
    sentence += f" populations and rates within {largest:.1f} standard errors"
    if missing := [f"{compared.temperature:g} K" for compared in found if not compared.distributions]:
        sentence += f"; no replicas to compare at {', '.join(missing)}"
        good = False
    if good and chance > TELLING:
        return "unknown", f"the runs are too short to tell: chance alone gives distances of {chance:.2f}"
    return "good" if good else "fair" if fair else "poor", sentence
