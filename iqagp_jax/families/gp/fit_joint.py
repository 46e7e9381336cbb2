"""Fitting to forces: hyperparameters on a subset, weights from all observations by one Cholesky factor, or by conjugate
gradients where its matrix would not fit.

Inverse distances have one length scale for all atoms, so that a step of dynamics costs one exponential a training point, and
are weighted by `features.pair_weights` of the mean distances, with one decay for all; atoms differ in their variance v_A, where
atomic energies are learned. Atomic local frames have a length scale for every feature of every atom. All these maximise the
joint likelihood of the first geometries whose observations number at most `SUBSET`, times a weak prior. Then the length scales
are multiplied by the least of `STRETCHES` whose error on geometries left out of that subset is at most `TOLERANCE` above the
least, with the best of `NOISES` unless the noise is given: surfaces are smoother than a Matern process, whose likelihood
prefers scales that predict worse. The weights are those of all.

With symmetry the covariance is summed over the images of a geometry, and equivalent atoms share their hyperparameters (inverse
distances, see `joint`), or the training data are copied (atomic local frames, whose kernels differ from atom to atom): then
energies of equal geometries are equal as far as the data say so.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.spatial.distance import cdist

from iqagp_jax.families.gp import iterative, joint
from iqagp_jax.families.gp import regression as gp
from iqagp_jax.families.gp.features import ALF, InverseDistances, pair_weights
from iqagp_jax.families.gp.kernels import Matern52
from iqagp_jax.families.gp.means import ConstantMean, SumOfMeans
from iqagp_jax.families.gp.model import Model
from iqagp_jax.families.gp.search import initial_lengthscales, maximise, search_hyperparameters
from iqagp_jax.potential import energy_and_forces
from iqagp_jax.system.geometry import pair_distances
from iqagp_jax.system.symmetry import orbits
from iqagp_jax.units import BOHR, HARTREE, KCAL_MOL

SUBSET = 1200
"""Observations that the hyperparameters are fitted to, at most."""

START_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""The search begins at the likeliest of these multiples of the shape."""

STRETCHES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Multiples of the likeliest length scales that are tried on geometries left out."""

TOLERANCE = 0.1
"""Share by which the error on geometries left out may exceed the least one for a shorter length scale: within it a process with
a short one is as good where there are data, and falls back on its prior mean where there are none; one with a long one digs
holes there (docs/active.md)."""

DECAYS = (2.0, 4.0, 8.0)
"""Decays of the pairs' weights that the search begins at, angstrom."""

NOISES = (1e-6, 1e-7, 1e-8)
"""Shares of the variance among the geometries that are tried as noise; the hyperparameters are searched at the first, and
conjugate gradients, whose steps grow with its inverse, have no other."""

ENOUGH_TO_JUDGE = 10
"""Geometries from which on units and sign of the forces are judged."""

NOISE_OF_THE_CHECK = 1e-6
"""Share of the variance, when units and sign of the forces are judged."""

HYPERPRIOR = 1.5
"""Standard deviation of ln v and ln l about the middle of the starts: many length scales, fitted to a subset of the data, would
else run away where the likelihood hardly changes, to covariances too constant for a Cholesky factor."""

FORCE_UNITS = {
    "in kcal/mol/angstrom": KCAL_MOL,
    "in hartree/bohr": HARTREE / BOHR,
    "in eV/bohr": 1 / BOHR,
    "in hartree/angstrom": HARTREE,
    "in eV/angstrom and the energies in kcal/mol": 1 / KCAL_MOL,
    "in eV/angstrom and the energies in hartree": 1 / HARTREE,
}
"""What forces and energies may be given in by mistake, and the factor of the forces that makes the two agree."""


def check_targets(targets):
    """The targets in the order of `joint.TARGETS`; ValueError, in a sentence, where there are others, or none."""
    if isinstance(targets, str):
        raise ValueError(f"expected a tuple of targets, found the word {targets!r}; write ({targets!r},)")
    unknown = sorted(set(targets) - set(joint.TARGETS))
    if unknown or not targets:
        raise ValueError(f"expected targets among {', '.join(joint.TARGETS)}, found {', '.join(unknown) or 'none'}")
    return tuple(target for target in joint.TARGETS if target in targets)


class Family(NamedTuple):
    """The processes that are searched: a vector of hyperparameters says which.

    It holds logarithms, relative to what the data spread by: of inverse distances v_A for every class of equivalent atoms, the
    length scale and the decay of the weights; of local frames v_A and the length scales for every class.
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

    @property
    def starts(self):
        """The beginnings of the search (S, P), and which of the P hyperparameters are ln l."""
        n_classes = self.classes.max() + 1
        if self.distances is None:
            is_length = np.tile([False] + self.spread.shape[1] * [True], n_classes)
            return np.log(START_FACTORS)[:, None] * is_length, is_length
        is_length = np.array(n_classes * [False] + [True, False])
        return np.array([[*n_classes * [0.0], *np.log(both)] for both in product(START_FACTORS, DECAYS)]), is_length

    def weights(self, parameters):
        """Of the inverse distances, (E,)."""
        return pair_weights(self.distances, jnp.exp(parameters[-1]))

    def process(self, parameters, seen):
        """The process, its points and its kernel; ``seen`` are those of features without weights."""
        if self.distances is None:
            each = parameters.reshape(-1, 1 + self.spread.shape[1])[self.classes]
            variance, kernel = jnp.exp(each[:, 0]), self.kernel(self.spread * jnp.exp(each[:, 1:]))
        else:
            weights = self.weights(parameters)
            seen = joint.Points(seen.z * weights, seen.jacobian * weights[:, None])
            variance, length = jnp.exp(parameters[:-2])[self.classes], jnp.linalg.norm(self.spread * weights)
            kernel = self.kernel(length * jnp.exp(parameters[-2]) * jnp.ones(len(variance)))
        process = joint.Process.of(kernel, self.features, variance, self.permutations)
        return process, joint.embedded(kernel, seen), kernel


def fit_joint(train, features, kernel, mean, targets, noise, search, copies, permutations, solver, made_by, progress):
    """A `Model` of the ``train`` dataset's ``targets``; see `fit.fit_gp`, which calls this.

    ``kernel`` maps length scales (N, D) or (N,) to the kernel of all atoms. ``copies`` of the training data, themselves
    first, are what is conditioned on; ``permutations`` (P, N) are those that the covariance is summed over.
    """
    if search.loss == "hold-out" or search.n_starts or search.n_seed:
        raise ValueError(
            "expected one start and a likelihood for forces; leave loss, starts, transfer out, or learn atomic energies alone"
        )
    n_atoms = len(train.species)
    if solver == "cholesky":
        labels = (copies.atomic_energies, copies.energy, copies.forces)
        joint.check_memory(np.isfinite(joint.observations(targets, *labels)).sum())
    n, _ = subset(train, targets)
    if {"forces"} < set(targets) and n >= ENOUGH_TO_JUDGE:  # forces alone are as likely with either sign
        _check_forces(train[:n], targets)
    residuals = _residuals(train, mean)
    family = _family(train, features, kernel, permutations, targets, residuals[0], noise, search)
    seen = jax.jit(partial(joint.seen, features))(jnp.asarray(train.positions[:n]))
    y = joint.observations(targets, *(part[:n] for part in residuals))
    kept = np.isfinite(y)
    noises = (noise,) if noise is not None else NOISES if solver == "cholesky" else NOISES[:1]
    shares = [joint.of_each(share, targets, n_atoms) for share in noises]

    def covariance(parameters, seen):
        process, points, _ = family.process(parameters, seen)
        return joint.covariance(process, points, points, targets)

    def posterior(parameters, seen, y):
        matrix = joint.with_noise(covariance(parameters, seen), shares[0], targets, permutations)[np.ix_(kept, kept)]
        likelihood = gp.log_likelihood(matrix, y, search.loss == "concentrated")
        return likelihood - 0.5 * jnp.sum(((parameters - starts.mean(0)) / HYPERPRIOR) ** 2)

    starts, is_length = family.starts
    data = (jax.tree.map(lambda array: array[None], seen), jnp.asarray(y[None, kept]))
    found = maximise(posterior, data, jnp.asarray(starts)[:, None], search, progress)

    def left_out_error(stretch, k):
        matrix = joint.with_noise(covariances[stretch], shares[k], targets, permutations)[np.ix_(kept, kept)]
        return _left_out_error(np.asarray(matrix), y, kept, targets, n_atoms)

    stretched = {f: found.parameters[0] + np.log(f) * is_length for f in STRETCHES}
    compiled = jax.jit(covariance)
    covariances = {f: compiled(parameters, seen) for f, parameters in stretched.items()}
    row, k = shortest_as_good([[left_out_error(f, k) for k in range(len(noises))] for f in STRETCHES], len(targets))
    stretch = STRETCHES[row]
    best, _, fitted_kernel = jax.device_get(family.process(stretched[stretch], seen))
    if family.distances is not None:
        features = replace(features, weights=tuple(family.weights(stretched[stretch]).tolist()))
    prior = Model(
        species=train.species,
        features=features,
        kernel=fitted_kernel,
        mean=mean,
        train_features=np.zeros((n_atoms, 0, len(features.angular))),
        weights=np.zeros((n_atoms, 0)),
        signal_variance=best.variance.ravel(),
        residual=None,
        reference=train.positions[train.lowest],
        trace=np.repeat(found.trace, n_atoms, axis=1) / n_atoms,
        noise=noises[k],
        noise_variance=np.asarray(joint.noise_variance(covariances[stretch], shares[k], targets, permutations)),
        train_positions=np.zeros((0, n_atoms, 3)),
        targets=targets,
        permutations=permutations,
        made_by=made_by,
    )
    model = Fitted.of(prior).add(copies).model if solver == "cholesky" else _iteratively(prior, copies, progress)
    return model if targets != ("forces",) else _with_energies(model, train)


@dataclass(frozen=True)
class Fitted:
    """A joint process conditioned on observations, which others can be added to; the hyperparameters stay as they are."""

    model: Model
    process: joint.Process
    noise: np.ndarray
    """(M,) with the process, at the variance that ``factor`` was made with"""
    y: np.ndarray
    """(m,) observations minus prior mean, those that there are"""
    factor: np.ndarray
    """(m, m) lower Cholesky factor of their covariance, noise included"""

    @classmethod
    def of(cls, model):
        """The prior of a model of forces or energies: its hyperparameters, conditioned on nothing."""
        n_atoms, _, n_features = model.train_features.shape
        prior = replace(
            model,
            train_features=np.zeros((n_atoms, 0, n_features)),
            weights=np.zeros((n_atoms, 0)),
            directions=None,
            train_positions=np.zeros((0, n_atoms, 3)),
            observed=np.zeros(0, bool),
        )
        return cls(prior, model.process, model.noise_variance, np.zeros(0), np.zeros((0, 0)))

    def add(self, dataset):
        """Conditioned on the geometries of a `Dataset` too, by a block update of the factor.

        With the old factor L, B the covariance of the new observations with the old and C that of the new ones, the new
        rows of the factor are X = B L^-T and the factor of C - X X^T.
        """
        model, targets = self.model, self.model.targets
        if dataset.species != model.species:
            raise ValueError(f"expected the atoms {' '.join(model.species)}, found {' '.join(dataset.species)}")
        lacking = {target for target in targets if getattr(dataset, target) is None}
        if "energy" in targets:  # which stands in for them
            lacking -= {"atomic_energies"}
        if lacking:
            raise ValueError(f"expected geometries with {', '.join(targets)}, found none of {', '.join(lacking)}; label them")
        with jax.enable_x64(True):
            y = joint.observations(targets, *_residuals(dataset, model.mean))
            kept = np.isfinite(y)
            joint.check_memory(len(self.y) + kept.sum())
            new = self._see(dataset.positions)
            corner = joint.covariance_matrix(self.process, new, targets, self.noise, kept)
            rows = np.zeros((len(corner), 0))
            if len(self.y):
                old = self._see(model.train_positions)
                rows = joint.covariance_rows(self.process, new, old, targets, kept, model.observed)
                rows = solve_triangular(self.factor, rows.T, lower=True, overwrite_b=True, check_finite=False).T
                corner -= rows @ rows.T
            try:
                corner = joint.factorise(corner)
            except np.linalg.LinAlgError:
                raise ValueError(_singular(model, dataset)) from None
            factor = corner
            if len(self.y):
                size = len(self.y) + len(corner)
                factor = np.zeros((size, size), order="F")
                factor[: len(self.y), : len(self.y)] = self.factor
                factor[len(self.y) :, : len(self.y)], factor[len(self.y) :, len(self.y) :] = rows, corner
            joined = replace(
                model,
                train_positions=np.concatenate([model.train_positions, dataset.positions]),
                observed=np.concatenate([model.observed, kept]),
            )
            return Fitted(joined, self.process, self.noise, np.concatenate([self.y, y[kept]]), factor)._weighted()

    def energy_covariance(self, positions):
        """Posterior covariance (B, B) of the molecular energies at positions (B, N, 3), eV^2."""
        model, energy = self.model, ("energy",)
        with jax.enable_x64(True):
            here, train = (self._see(r) for r in (positions, model.train_positions))
            prior = joint.covariance_rows(self.process, here, here, energy, rows=64)
            known = {"kept_right": model.observed, "right_targets": model.targets}
            cross = joint.covariance_rows(self.process, here, train, energy, rows=64, **known)
            half = solve_triangular(self.factor, cross.T, lower=True, check_finite=False)
            # The model's variances are the process's, scaled.
            return float(model.signal_variance[0] / self.process.variance.ravel()[0]) * (prior - half.T @ half)

    def _see(self, positions):
        """The `joint.Points` of positions (n, N, 3)."""
        return jax.jit(self.model.see)(jnp.asarray(positions))

    def _weighted(self):
        w = cho_solve((self.factor, True), self.y, check_finite=False)
        return replace(self, model=_with_weights(self.model, self.process, self.noise, self.y, w))


def _with_weights(model, process, noise, y, w):
    """The model of observations y (m,) with the weights w (m,), and the signal variances at their maximum-likelihood value."""
    scale = y @ w / len(y)
    weights = np.zeros(len(model.observed))
    weights[model.observed] = w / scale
    variance = scale * np.asarray(process.variance).ravel()
    positions = jnp.asarray(model.train_positions)
    expand = jax.jit(joint.expansion, static_argnums=(2, 3))
    a, b = expand(jnp.asarray(weights), positions, model.features, model.targets, model.permutations)
    fitted = replace(
        model,
        train_features=jax.jit(jax.vmap(model.features))(joint.images(positions, model.permutations)).swapaxes(0, 1),
        weights=variance[:, None] * a,
        directions=variance[:, None, None] * b if "forces" in model.targets else None,
        signal_variance=variance,
        noise_variance=scale * noise,
    )
    return jax.device_get(fitted)


def _iteratively(prior, data, progress):
    """The ``prior`` model conditioned on a `Dataset` without a covariance matrix; see `iterative`."""
    process = Fitted.of(prior).process
    y = joint.observations(prior.targets, *_residuals(data, prior.mean))
    model = replace(prior, train_positions=data.positions, observed=np.isfinite(y))
    y = y[model.observed]
    system = (process, model.features, model.kernel, data.positions, model.targets, prior.noise_variance, y, model.observed)
    return _with_weights(model, process, prior.noise_variance, y, iterative.solve(*system, progress))


def _with_energies(model, train):
    """A model of forces alone, whose energy is known up to a constant, at the mean energy of its training geometries."""
    missing = np.nanmean(train.energy - energy_and_forces(model)(train.positions)[0]) / len(train.species)
    return replace(model, mean=SumOfMeans(model.mean, ConstantMean(np.full(len(train.species), missing))))


def _family(train, features, kernel, permutations, targets, atomic, noise, search):
    """What to search: length scales in proportion to the features' spread, or for frames to a fit of atomic energies alone."""
    positions = jnp.asarray(train.positions)
    points = jax.jit(jax.vmap(features))(positions).swapaxes(0, 1)
    classes = orbits(permutations)
    if isinstance(features, InverseDistances):
        a, b = features.pairs[0].T
        if "atomic_energies" not in targets:
            classes = np.zeros_like(classes)
        distances = pair_distances(np.asarray(joint.images(positions, permutations))).mean(0)[a, b]
        return Family(features, kernel, permutations, classes, np.std(points[0], axis=0), distances)
    if not np.isfinite(atomic).all() or np.ndim(noise):
        spread = np.asarray(initial_lengthscales(points, features.angular))
    else:
        build, share = lambda p: kernel(jnp.exp(p)), NOISES[0] if noise is None else noise
        found = search_hyperparameters(build, share, search, points, jnp.asarray(atomic.T), features.angular)
        spread = np.exp(np.asarray(found.parameters))
    return Family(features, kernel, permutations, classes, spread, None)


def _residuals(data, mean):
    """Atomic energies, energy and forces minus those of the prior mean; NaN where the data have none."""
    positions = jnp.asarray(data.positions)
    prior = np.asarray(jax.jit(jax.vmap(mean))(positions))
    slope = np.asarray(jax.jit(jax.vmap(jax.grad(lambda r: mean(r).sum())))(positions))
    atomic, forces = (np.nan if part is None else part for part in (data.atomic_energies, data.forces))
    return atomic - prior, data.energy - prior.sum(1), forces + slope


def subset(train, targets, most=SUBSET):
    """How many of the first geometries together have at most ``most`` observations, two at least; and how many observations."""
    observed = np.isfinite(joint.observations(targets, train.atomic_energies, train.energy, train.forces))
    seen = np.cumsum(observed.reshape(len(train), -1).sum(1))
    n = max(2, int((seen <= most).sum()))
    return n, int(seen[n - 1])


def shortest_as_good(errors, n_targets):
    """(row, column) of the shortest length scale that is as good as any, and its best noise.

    ``errors`` (length scales, noises) are those of `_left_out_error`, the length scales in rising order: the first row whose
    least error is within `TOLERANCE` of the least of all, in the geometric mean of the targets.
    """
    errors = np.asarray(errors)
    row = int((errors.min(1) <= errors.min() + n_targets * np.log1p(TOLERANCE)).argmax())
    return row, int(errors[row].argmin())


def _left_out_error(covariance, y, kept, targets, n_atoms):
    """Sum over the targets of ln of the mean over geometries of the root mean square error, each predicted from the others.

    With K the covariance of the observations and i those of a geometry, the errors are ([K^-1]_ii)^-1 [K^-1 y]_i (Rasmussen and
    Williams, section 5.4.2, in blocks). A mean square over all would be that of the few most distorted geometries. Infinite
    where K has no factor.
    """
    try:
        factor = cholesky(covariance, lower=True)
    except np.linalg.LinAlgError:
        return np.inf
    inverse = cho_solve((factor, True), np.eye(len(factor)))
    weights, kinds = inverse @ y[kept], joint.of_each(np.arange(len(targets)), targets, n_atoms)
    n = len(kept) // len(kinds)
    geometry, kind = np.repeat(np.arange(n), len(kinds))[kept], np.tile(kinds, n)[kept]
    errors = np.empty(len(factor))
    for i in np.unique(geometry):
        block = np.flatnonzero(geometry == i)
        errors[block] = np.linalg.solve(inverse[np.ix_(block, block)], weights[block])

    def of_geometries(k):
        return [np.sqrt(np.mean(errors[(kind == k) & (geometry == i)] ** 2)) for i in np.unique(geometry[kind == k])]

    return sum(np.log(np.mean(of_geometries(k))) for k in np.unique(kind))


def _check_forces(data, targets):
    """Warn where the forces would be likelier with the other sign, or in other units.

    Judged by the likeliest of a few Matern-5/2 processes on inverse distances about the mean of the data, whatever the model
    and its prior mean. With forces c F the log likelihood at its best variance is -m/2 ln q(c) - ln|L| + m_F ln |c| up to a
    constant, q the quadratic form of the observations, of which m_F of m are forces.
    """
    if not any(e is not None and np.isfinite(e).any() for e in (data.atomic_energies, data.energy)):
        return  # forces alone are as likely with either sign
    energies = [e if e is None or np.isnan(e).all() else e - np.nanmean(e, axis=0) for e in (data.atomic_energies, data.energy)]
    y = joint.observations(targets, *energies, data.forces)
    kept = np.isfinite(y)
    is_force = np.tile(joint.of_each([t == "forces" for t in targets], targets, len(data.species)), len(data))
    of_forces, rest = np.where(is_force, y, 0.0)[kept], np.where(is_force, 0.0, y)[kept]
    m, m_forces = len(rest), np.isfinite(data.forces).sum()
    factors = [sign * c for c in (1.0, *FORCE_UNITS.values()) for sign in (1, -1)]
    values = np.full(len(factors), -np.inf)
    n_atoms = len(data.species)
    features = InverseDistances(n_atoms)
    seen = joint.seen(features, jnp.asarray(data.positions))
    spread = np.full(n_atoms, np.sqrt(np.var(seen.z[0], axis=0).sum()))

    @jax.jit
    def covariance_at(lengthscale):
        kernel = Matern52(lengthscale)
        points = joint.embedded(kernel, seen)
        process = joint.Process.of(kernel, features, np.ones(n_atoms))
        return joint.with_noise(
            joint.covariance(process, points, points, targets), NOISE_OF_THE_CHECK, targets, process.permutations
        )

    for multiple in START_FACTORS:
        factor = cholesky(np.asarray(covariance_at(spread * multiple))[np.ix_(kept, kept)], lower=True)
        a, b = (solve_triangular(factor, part, lower=True) for part in (rest, of_forces))
        quadratic = np.array([np.sum((a + c * b) ** 2) for c in factors])
        here = -0.5 * m * np.log(quadratic) - np.log(np.diag(factor)).sum() + m_forces * np.log(np.abs(factors))
        values = np.maximum(values, here / m)
    best = factors[values.argmax()]
    if best != 1.0:
        unit = next((name for name, c in FORCE_UNITS.items() if c == abs(best)), "as they are")
        sign = ", with the opposite sign: are they gradients?" if best < 0 else ""
        warnings.warn(
            f"forces read as {unit}{sign} would agree better with the energies, by {values.max() - values[0]:.2f} in ln L an"
            " observation; expected energies in eV and forces, minus the gradient, in eV/angstrom: convert the dataset",
            stacklevel=4,
        )


def _singular(model, dataset):
    """The sentence for a covariance matrix that has no factor, with the two geometries that are most alike."""
    known = np.concatenate([model.train_positions, dataset.positions])
    distances = pair_distances(known).reshape(len(known), -1)
    apart = cdist(distances, distances) + np.diag(np.full(len(known), np.inf))
    i, j = np.unravel_index(apart.argmin(), apart.shape)
    return (
        f"the covariance matrix of {' '.join(model.species)} is not positive definite: are there duplicate geometries?"
        f" The nearest are numbers {i} and {j}, their distances differ by {apart[i, j]:.1e} angstrom; remove one or raise the"
        " noise"
    )
