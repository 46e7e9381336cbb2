"""The ensemble: where the model's dynamics goes, and how often, against the reference's own dynamics.

Both are driven by the same integrator, thermostat and treatment of rotation, and seen through the same stretch of time after
the same start. Every replica is one independent sample: error bars come from the scatter of replicas, so correlations in time
do not matter.
"""

from dataclasses import dataclass

import numpy as np

from iqagp_jax.verdict.structure import coordinates, states

EQUILIBRATION = 0.2
"""Share of the shorter run that is left out at the beginning of both."""

BINS = 40
"""Of a distribution, over the range of model and reference together."""

RESAMPLED = 200
"""Bootstrap samples and permutations."""


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


def jensen_shannon(p, q):
    """Jensen-Shannon distance (doi:10.1109/18.61115), base 2, of histograms (..., B): sqrt(H((p + q)/2) - (H(p) + H(q))/2)."""

    def entropy(x):
        return -(x * np.log2(np.where(x > 0, x, 1.0))).sum(-1)

    p, q = (x / np.maximum(x.sum(-1, keepdims=True), 1) for x in (p, q))
    return np.sqrt(np.maximum(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2, 0.0))


def distribution(coordinate, model, reference, rng):
    """Compare a coordinate's values, NaN where a replica is dead: ``model`` (F, R) and ``reference`` (F', R')."""
    both = np.concatenate([model.ravel(), reference.ravel()])
    limits = (-180.0, 180.0) if coordinate.kind == "dihedral" else (np.nanmin(both), np.nanmax(both))
    edges = np.linspace(*limits, BINS + 1)

    def per_replica(values):
        return np.array([np.histogram(v[np.isfinite(v)], edges)[0] for v in values.T], dtype=float)

    mine, theirs = per_replica(model), per_replica(reference)
    pooled = np.concatenate([mine, theirs])

    def drawn(n, total):
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


def mean_and_error(values, weights):
    """Weighted mean over replicas and its standard error (ratio estimator); ``values`` and ``weights`` (R,)."""
    mean = (values * weights).sum() / weights.sum()
    n = len(values)
    if n < 2:
        return float(mean), float("nan")
    deviation = weights / weights.mean() * (values - mean)
    return float(mean), float(np.sqrt((deviation**2).sum() / (n * (n - 1))))


def difference(mine, theirs):
    """Difference of two (mean, standard error) in standard errors; None where one is unknown."""
    error = np.hypot(mine[1], theirs[1])
    return float((mine[0] - theirs[0]) / error) if np.isfinite(error) else None


def population(series, state):
    """Share of the time in a state and its standard error, from a series (F, R) of `structure.states`.

    Where replicas do not differ the error is what one of them could make.
    """
    life = (series >= 0).sum(0)
    lived = life > 0
    mean, error = mean_and_error((series == state).sum(0)[lived] / life[lived], life[lived].astype(float))
    return mean, error or 1 / lived.sum()


def transitions(series, interval):
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


def after_equilibration(run, temperature, end=None):
    """Positions (F, R, N, 3) of the equilibrium replicas at a temperature, from `EQUILIBRATION` of ``end`` to ``end`` (fs).

    Dead replicas are NaN; by default ``end`` is that of the run.
    """
    times = run.trajectory.times
    end = times[-1] if end is None else end
    seen = (times >= EQUILIBRATION * end) & (times <= end)
    return run.trajectory.positions[seen][:, run.group(temperature, "equilibrium")]


def compare(species, minimum, model, reference, temperature, seed=0):
    """Distributions, populations and rates at one temperature, model `Run` against reference `Run` with equal frame intervals.

    Both through the same stretch of time: replicas of 100 ps are better samples than those of 12 ps, which no permutation of
    them may mix up, and molecules that have not yet left their start all sit where the reference's do.

    Returns a list of `Distribution` and a list of dicts, one a state or rate, with means, standard errors and their
    difference in standard errors, None where unknown; both empty where no replica of either lives so long.
    """
    rng = np.random.default_rng([seed, round(temperature)])
    end = min(run.trajectory.times[-1] for run in (model, reference))
    mine, theirs = (after_equilibration(run, temperature, end) for run in (model, reference))
    if not all(np.isfinite(positions).any() for positions in (mine, theirs)):
        return [], []
    distributions = [distribution(c, c(mine), c(theirs), rng) for c in coordinates(species, minimum)]
    # The states of both at once, lest a hydrogen that moves in one of them only be overlooked in the other.
    together = states(species, minimum, np.concatenate([mine, theirs], axis=1))
    counted = []
    interval = float(np.diff(model.trajectory.times[:2])[0])
    for name, names, series in together:
        parts = series[:, : mine.shape[1]], series[:, mine.shape[1] :]
        for state in np.unique(series[series >= 0]):
            values = [population(part, state) for part in parts]
            counted.append(told(f"{name}: {names[state]}", "share of time", values))
        values = [transitions(part, interval) for part in parts]
        counted.append(told(f"{name}: changes", "per ps", values))
    return distributions, counted


def told(name, unit, values):
    """A row of the table from two (mean, standard error), the model's and the reference's; None for what is unknown."""
    (mine, my_error), (theirs, their_error) = ((x if np.isfinite(x) else None for x in pair) for pair in values)
    return {
        "name": name,
        "unit": unit,
        "model": mine,
        "model_error": my_error,
        "reference": theirs,
        "reference_error": their_error,
        "difference_in_errors": difference(*values),
    }
