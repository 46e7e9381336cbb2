"""Fitting to forces: hyperparameters on a subset, weights from all observations by one Cholesky factor, or by conjugate
gradients where its matrix would not fit.

Inverse distances have one length scale for all atoms, so that a step of dynamics costs one exponential a training point, and
are weighted by `features.pair_weights` of the mean distances, with one decay for all, with ``pair_weights="orbits"`` times a
factor of every orbit of pairs that permutations exchange; atoms differ in their variance v_A, where atomic energies are
learned. Atomic local frames have a length scale for every feature of every atom. All these maximise the joint likelihood of
geometries whose observations number at most `SUBSET`, times a weak prior. Then the length scales are multiplied by the least
of `STRETCHES` whose error on geometries left out of these is at most `AS_GOOD` above the least, with the best of `NOISES`
unless a noise is given: surfaces are smoother than a Matern process, whose likelihood prefers scales that predict worse. These
geometries stand evenly among all in the order of their energies, so that the order of the data does not matter. The weights
are those of all.

`fit_local` finds what a process of the atoms' surroundings has, where it is asked for; all else stays as it was found without.

With symmetry the covariance is summed over the images of a geometry, and equivalent atoms share their hyperparameters (inverse
distances, see `joint`), or the training data are copied (atomic local frames, whose kernels differ from atom to atom): then
energies of equal geometries are equal as far as the data say so.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cholesky

from iqagp_jax.families.gp import iterative, joint, regression
from iqagp_jax.families.gp.check import check_labels
from iqagp_jax.families.gp.features import ALF, InverseDistances, pair_weights
from iqagp_jax.families.gp.fit_local import with_surroundings
from iqagp_jax.families.gp.left_out import left_out
from iqagp_jax.families.gp.local import Local
from iqagp_jax.families.gp.means import ConstantMean, SumOfMeans, residuals
from iqagp_jax.families.gp.model import JointData, Model
from iqagp_jax.families.gp.problem import Problem, evenly
from iqagp_jax.families.gp.search import initial_lengthscales, maximise, search_hyperparameters
from iqagp_jax.families.gp.teach import Fitted, with_weights
from iqagp_jax.families.gp.wrong_labels import checked
from iqagp_jax.potential import energy_and_forces
from iqagp_jax.system.geometry import pair_distances
from iqagp_jax.system.symmetry import orbits

SUBSET = 1200
"""Observations that hyperparameters and noise are chosen by, at most. Twice as many, with more noise to choose from, led to
longer length scales for capped glycine, of the kind that does not survive (docs/measurements/2026-11-learning-curves.md)."""

LENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""The search begins at the likeliest of these multiples of the shape."""

STRETCHES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Multiples of the likeliest length scales that are tried on geometries left out."""

AS_GOOD = 0.1
"""Share by which the error on geometries left out may exceed the least one for a shorter length scale: within it a process with
a short one is as good where there are data, and falls back on its prior mean where there are none; one with a long one digs
holes there (docs/active.md)."""

DECAYS = (2.0, 4.0, 8.0)
"""Decays of the pairs' weights that the search begins at, angstrom."""

NOISES = (1e-6, 1e-7, 1e-8)
"""Shares of the variance among the geometries that are tried as noise; the hyperparameters are searched at the first, and
conjugate gradients, whose steps grow with its inverse, have no other."""

HYPERPRIOR = 1.5
"""Standard deviation of ln v and ln l about the middle of the starts: many length scales, fitted to a subset of the data, would
else run away where the likelihood hardly changes, to covariances too constant for a Cholesky factor."""

OWN_WEIGHTS = 0.25
"""Standard deviation of the logarithm of what an orbit of pairs has of its own in its weight, beside distance and decay."""


class Family(NamedTuple):
    """The processes that are searched: a vector of hyperparameters says which.

    It holds logarithms, relative to what the data spread by: of inverse distances v_A for every class of equivalent atoms, the
    length scale, the decay of the weights and, where asked for, a factor for every orbit of equivalent pairs; of local frames
    v_A and the length scales for every class.
    """

    features: ALF | InverseDistances
    kernel: Callable
    """length scales (N,) or (N, D) -> kernel of all atoms"""
    permutations: np.ndarray
    classes: np.ndarray
    """(N,) number of the class of every atom, from 0: atoms of a class share their hyperparameters"""
    spread: np.ndarray
    """of inverse distances (E,), else the length scales (N, D) up to a factor"""
    distances: np.ndarray | None
    """(E,) mean over the data and their images, angstrom; None for other features"""
    by_orbits: bool = False
    """whether orbits of pairs have factors of their own"""

    @property
    def n_classes(self):
        """Of equivalent atoms."""
        return int(self.classes.max()) + 1

    @property
    def orbits(self):
        """(E,) number of the orbit of every pair of atoms: pairs of an orbit, which permutations exchange, weigh the same."""
        assert isinstance(self.features, InverseDistances)  # which alone have pairs
        return orbits(self.features.columns(self.permutations))

    @property
    def n_factors(self):
        """Of orbits of pairs."""
        return int(self.orbits.max()) + 1 if self.by_orbits else 0

    @property
    def starts(self):
        """The beginnings of the search (S, P), and which of the P hyperparameters are ln l."""
        if self.distances is None:
            is_length = np.tile([False] + self.spread.shape[1] * [True], self.n_classes)
            return np.log(LENGTHS)[:, None] * is_length, is_length
        n_orbits = self.n_factors
        is_length = np.array(self.n_classes * [False] + [True, False] + n_orbits * [False])
        begin, end = self.n_classes * [0.0], n_orbits * [0.0]
        return np.array([[*begin, *np.log(both), *end] for both in product(LENGTHS, DECAYS)]), is_length

    @property
    def deviations(self):
        """Standard deviations (P,) of the weak prior of the hyperparameters about the mean of the starts."""
        n = self.starts[0].shape[1]
        return np.where(np.arange(n) < n - self.n_factors, HYPERPRIOR, OWN_WEIGHTS)

    def weights(self, parameters):
        """Of the inverse distances, (E,)."""
        plain = pair_weights(self.distances, jnp.exp(parameters[self.n_classes + 1]))
        return plain * jnp.exp(parameters[self.n_classes + 2 :][self.orbits]) if self.by_orbits else plain

    def process(self, parameters, seen):
        """The process, its points and its kernel; ``seen`` are those of features without weights."""
        if self.distances is None:
            each = parameters.reshape(-1, 1 + self.spread.shape[1])[self.classes]
            variance, kernel = jnp.exp(each[:, 0]), self.kernel(self.spread * jnp.exp(each[:, 1:]))
        else:
            weights = self.weights(parameters)
            seen = seen.weighted(weights)
            variance, length = jnp.exp(parameters[: self.n_classes])[self.classes], jnp.linalg.norm(self.spread * weights)
            kernel = self.kernel(length * jnp.exp(parameters[self.n_classes]) * jnp.ones(len(variance)))
        process = joint.Process.of(kernel, self.features, variance, self.permutations)
        return process, joint.embedded(kernel, seen), kernel

    def stretched(self, parameters, factor):
        """Hyperparameters with all length scales multiplied."""
        return parameters + np.log(factor) * self.starts[1]


class Chosen(NamedTuple):
    """What a fit goes on with."""

    parameters: jax.Array
    """of a `Family`"""
    noise: float | tuple[float, ...]
    """shares of what the process varies by, one for all targets or one for each"""
    covariance: jax.Array
    """of the sample, (n, M, n, M)"""
    local: Local | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """Geometries of a `Problem`, evenly among all, by which hyperparameters and noise are chosen."""

    problem: Problem
    family: Family
    positions: np.ndarray
    """(n, N, 3) angstrom"""
    seen: joint.Seen
    y: np.ndarray
    """(n M,) observations minus prior mean, NaN where there is none"""
    noises: tuple
    """to choose among: shares of what the process varies by, one for all targets or one for each"""

    @classmethod
    def of(cls, problem):
        """At most `SUBSET` observations of a problem's, and the processes to search among."""
        options, train = problem.options, problem.train[evenly(problem.train, problem.options.learned, SUBSET)]
        check_labels(train, options.learned)
        seen = jax.jit(partial(joint.seen, problem.features))(jnp.asarray(train.positions))
        y = joint.observations(options.learned, *residuals(train, problem.mean))
        chosen = NOISES if options.solver == "cholesky" else NOISES[:1]
        noises = chosen if options.shares is None else (options.shares,)
        return cls(problem, _family(problem), train.positions, seen, y, noises)

    @cached_property
    def kept(self):
        """(n M,) bool, which observations there are."""
        return np.isfinite(self.y)

    @property
    def targets(self):
        """Of the problem."""
        return self.problem.options.learned

    @cached_property
    def shares(self):
        """Of every noise those of the observations of a geometry (M,)."""
        return [joint.of_each(share, self.targets, len(self.problem.train.species)) for share in self.noises]

    def covariance(self, parameters, seen):
        """Of all observations, (n, M, n, M)."""
        process, points, _ = self.family.process(parameters, seen)
        return joint.covariance(process, points, points, self.targets)

    def matrix(self, covariance, shares):
        """Of the observations that there are, (m, m), with noise of ``shares`` (M,)."""
        whole = joint.with_noise(covariance, shares, self.targets, self.problem.permutations)
        return whole[np.ix_(self.kept, self.kept)]

    def likeliest(self, progress):
        """What `maximise` found: the hyperparameters at the first noise, by likelihood times a weak prior."""
        search, (starts, _), deviations = self.problem.options.search, self.family.starts, self.family.deviations

        def posterior(parameters, seen, y):
            matrix = self.matrix(self.covariance(parameters, seen), self.shares[0])
            likelihood = regression.log_likelihood(matrix, y, search.loss == "concentrated")
            return likelihood - 0.5 * jnp.sum(((parameters - starts.mean(0)) / deviations) ** 2)

        data = (jax.tree.map(lambda array: array[None], self.seen), jnp.asarray(self.y[None, self.kept]))
        return maximise(posterior, data, jnp.asarray(starts)[:, None], search, progress)

    def smoothest(self, parameters):
        """The `Chosen` of `STRETCHES` and noises that leave the least error."""
        compiled, n_atoms = jax.jit(self.covariance), len(self.problem.train.species)
        stretched = [self.family.stretched(parameters, factor) for factor in STRETCHES]
        covariances = [compiled(p, self.seen) for p in stretched]

        def left_out_error(covariance, k):
            matrix = np.asarray(self.matrix(covariance, self.shares[k]))
            return _left_out_error(matrix, self.y, self.kept, self.targets, n_atoms)

        errors = [[left_out_error(covariance, k) for k in range(len(self.noises))] for covariance in covariances]
        row, k = shortest_as_good(errors, len(self.targets))
        return Chosen(stretched[row], self.noises[k], covariances[row])


def fit_joint(problem: Problem, progress) -> Model:
    """A `Model` of energies of the molecule or forces; see `fit.fit_gp`, which calls this."""
    targets, copies = problem.options.learned, problem.copies
    by_factor = problem.options.solver == "cholesky"
    if by_factor:
        labels = (copies.atomic_energies, copies.energy, copies.forces)
        joint.check_memory(np.isfinite(joint.observations(targets, *labels)).sum())
        model = checked(partial(_searched, progress=progress), problem)
    else:
        model = _iteratively(_searched(problem, progress), copies, progress)
    return model if targets != ("forces",) else _with_energies(model, problem.train)


def _searched(problem, progress):
    """The `Model` of the hyperparameters that are found, conditioned on nothing."""
    sample = Sample.of(problem)
    found = sample.likeliest(progress)
    chosen = sample.smoothest(found.parameters[0])
    return _prior(sample, with_surroundings(sample, chosen) if problem.options.local else chosen, found.trace)


def _prior(sample, chosen, trace):
    """The `Model` of `Chosen` hyperparameters, conditioned on nothing."""
    problem, family = sample.problem, sample.family
    n_atoms, features = len(problem.train.species), problem.features
    process, _, kernel = jax.device_get(family.process(chosen.parameters, sample.seen))
    if family.distances is not None:
        features = replace(features, weights=tuple(family.weights(chosen.parameters).tolist()))
    shares = joint.of_each(chosen.noise, sample.targets, n_atoms)
    noise = joint.noise_variance(chosen.covariance, shares, sample.targets, problem.permutations)
    return Model(
        species=problem.train.species,
        features=features,
        kernel=kernel,
        mean=problem.mean,
        points=None,
        signal_variance=process.variance.ravel(),
        residual=None,
        reference=problem.train.positions[problem.train.lowest],
        trace=np.repeat(trace, n_atoms, axis=1) / n_atoms,
        noise=chosen.noise,
        targets=sample.targets,
        made_by=problem.made_by,
        joint=JointData(
            np.zeros((0, n_atoms, 3)), problem.permutations, np.zeros(0, bool), np.asarray(noise), weights=np.zeros(0)
        ),
        local=chosen.local,
    )


def _iteratively(prior, data, progress):
    """The ``prior`` model conditioned on a `Dataset` without a covariance matrix; see `iterative`."""
    process, noise = Fitted.of(prior).process, prior.joint.noise_variance
    y = joint.observations(prior.targets, *residuals(data, prior.mean))
    observed = np.isfinite(y)
    model, y = replace(prior, joint=replace(prior.joint, positions=data.positions, observed=observed)), y[observed]
    system = (process, model.features, model.kernel, data.positions, model.targets, noise, y, observed)
    return with_weights(model, process, noise, y, iterative.solve(*system, progress))


def _with_energies(model, train):
    """A model of forces alone, whose energy is known up to a constant, at the mean energy of its training geometries."""
    missing = np.nanmean(train.energy - energy_and_forces(model)(train.positions)[0]) / len(train.species)
    return replace(model, mean=SumOfMeans(model.mean, ConstantMean(np.full(len(train.species), missing))))


def _family(problem):
    """What to search: length scales in proportion to the features' spread, or for frames to a fit of atomic energies alone."""
    features, permutations, options = problem.features, problem.permutations, problem.options
    positions = jnp.asarray(problem.train.positions)
    points = jax.jit(jax.vmap(features))(positions).swapaxes(0, 1)
    classes = orbits(permutations)
    if isinstance(features, InverseDistances):
        a, b = features.pairs[0].T
        if "atomic_energies" not in options.learned:
            classes = np.zeros_like(classes)
        distances = pair_distances(np.asarray(joint.images(positions, permutations))).mean(0)[a, b]
        by_orbits = options.pair_weights == "orbits"
        return Family(features, problem.kernel, permutations, classes, np.std(points[0], axis=0), distances, by_orbits)
    atomic = residuals(problem.train, problem.mean)[0]
    if not np.isfinite(atomic).all() or np.ndim(options.shares):
        spread = np.asarray(initial_lengthscales(points, features.angular))
    else:
        share = NOISES[0] if options.shares is None else options.shares
        data = points, jnp.asarray(atomic.T), features.angular
        found = search_hyperparameters(lambda p: problem.kernel(jnp.exp(p)), share, options.search, *data)
        spread = np.exp(np.asarray(found.parameters))
    return Family(features, problem.kernel, permutations, classes, spread, None)


def shortest_as_good(errors, n_targets):
    """(row, column) of the shortest length scale that is as good as any, and its best noise.

    ``errors`` (length scales, noises) are those of `_left_out_error`, the length scales in rising order: the first row whose
    least error is within `AS_GOOD` of the least of all, in the geometric mean of the targets.
    """
    errors = np.asarray(errors)
    row = int((errors.min(1) <= errors.min() + n_targets * np.log1p(AS_GOOD)).argmax())
    return row, int(errors[row].argmin())


def _left_out_error(covariance, y, kept, targets, n_atoms):
    """Sum over the targets of ln of the mean over geometries of the root mean square error, each predicted from the others.

    The errors are those of `left_out`. A mean square over all would be that of the few most distorted geometries. Infinite
    where the covariance has no factor.
    """
    try:
        factor = cholesky(covariance, lower=True)
    except np.linalg.LinAlgError:
        return np.inf
    kinds = joint.of_each(np.arange(len(targets)), targets, n_atoms)
    n = len(kept) // len(kinds)
    geometry, kind = np.repeat(np.arange(n), len(kinds))[kept], np.tile(kinds, n)[kept]
    errors, _ = left_out(factor, y[kept], np.bincount(geometry, minlength=n))

    def of_geometries(k):
        return [np.sqrt(np.mean(errors[(kind == k) & (geometry == i)] ** 2)) for i in np.unique(geometry[kind == k])]

    return sum(np.log(np.mean(of_geometries(k))) for k in np.unique(kind))
