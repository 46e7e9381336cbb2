"""Fitting to forces: hyperparameters on a subset, weights from all observations by one Cholesky factor.

Every atom has a variance v_A and length scales: one for inverse distances (isotropic), one for every feature of an atomic local
frame. They maximise the joint likelihood of the first geometries whose observations number at most `SUBSET`, times a weak
prior; then all length scales are multiplied by the one of `STRETCHES` with the least error on geometries left out of that
subset: surfaces are smoother than a Matern process, whose likelihood prefers scales that predict worse. The weights are those
of all.

With symmetry equivalent atoms share their hyperparameters, and the covariance is summed over the images of a geometry (inverse
distances, see `joint`) or the training data are copied (atomic local frames, whose kernels differ from atom to atom).
"""

import os
import warnings
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.spatial.distance import cdist

from iqagp_jax import gp, joint
from iqagp_jax.features import InverseDistances
from iqagp_jax.geometry import pair_distances
from iqagp_jax.hyperparameters import initial_lengthscales, maximise, search_hyperparameters
from iqagp_jax.kernels import Matern52
from iqagp_jax.means import ConstantMean, SumOfMeans
from iqagp_jax.potential import Model, energy_and_forces
from iqagp_jax.symmetry import orbits
from iqagp_jax.units import BOHR, HARTREE, KCAL_MOL

SUBSET = 1200
"""Observations that the hyperparameters are fitted to, at most."""

START_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""The search begins at the likeliest of these multiples of the shape."""

STRETCHES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Multiples of the likeliest length scales that are tried on geometries left out."""

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
    unknown = sorted(set(targets) - set(joint.TARGETS))
    if unknown or not targets:
        raise ValueError(f"expected targets among {', '.join(joint.TARGETS)}, found {', '.join(unknown) or 'none'}")
    return tuple(target for target in joint.TARGETS if target in targets)


def fit_joint(train, features, kernel, mean, targets, noise, search, copies, permutations, made_by, progress):
    """A `Model` of the ``train`` dataset's ``targets``; see `fit.fit_gp`, which calls this.

    ``kernel`` maps length scales (N, D) or (N,) to the kernel of all atoms. ``copies`` of the training data, themselves
    first, are what is conditioned on; ``permutations`` (P, N) are those that the covariance is summed over.
    """
    if search.loss == "hold-out" or search.n_starts or search.n_seed:
        raise ValueError("expected one start and a likelihood for forces; leave loss, starts, transfer out")
    n_atoms, n_classes = len(train.species), orbits(permutations).max() + 1
    _check_memory(copies, targets)
    n, _ = subset(train, targets)
    points = jax.jit(jax.vmap(features))(jnp.asarray(train.positions)).swapaxes(0, 1)
    residuals = _residuals(train, mean)
    shape = _shape(residuals[0], features, kernel, points, noise, search)
    residuals = [None if part is None else part[:n] for part in residuals]
    y = joint.observations(targets, *residuals)
    kept = np.isfinite(y)
    shares = joint.of_each(noise, targets, n_atoms)

    def process(parameters, seen):
        """The process, its points and length scales, from ln v and ln l / shape of every class of equivalent atoms."""
        parameters = jnp.asarray(parameters).reshape(n_classes, -1)[orbits(permutations)]
        lengths = shape * jnp.exp(parameters[:, 1:].reshape(shape.shape))
        unscaled = joint.Process.of(kernel(lengths), features, jnp.exp(parameters[:, 0]), permutations)
        return unscaled, joint.embedded(kernel(lengths), seen), lengths

    def covariance(parameters, seen):
        prior, embedded, _ = process(parameters, seen)
        return joint.with_noise(joint.covariance(prior, embedded, embedded, targets), shares)[np.ix_(kept, kept)]

    def posterior(parameters, seen, y):
        likelihood = gp.log_likelihood(covariance(parameters, seen), y, search.loss == "concentrated")
        return likelihood - 0.5 * jnp.sum(((parameters - starts.mean(0)) / HYPERPRIOR) ** 2)

    starts = np.zeros((len(START_FACTORS), n_classes, 1 + shape[0].size))
    starts[:, :, 1:] = np.log(START_FACTORS)[:, None, None]
    starts = starts.reshape(len(starts), -1)
    seen = jax.jit(partial(joint.seen, features))(jnp.asarray(train.positions[:n]))
    if {"forces"} < set(targets) and n >= ENOUGH_TO_JUDGE:  # forces alone are as likely with either sign
        _check_forces(train[:n], targets)
    data = (jax.tree.map(lambda array: array[None], seen), jnp.asarray(y[None, kept]))
    found = maximise(posterior, data, jnp.asarray(starts)[:, None], search, progress)

    stretched = [found.parameters[0] + np.log(f) * (starts[1] > starts[0]) for f in STRETCHES]
    compiled = jax.jit(covariance)
    errors = [_left_out_error(np.asarray(compiled(p, seen)), y, kept, targets, n_atoms) for p in stretched]
    best, embedded, lengths = process(stretched[int(np.argmin(errors))], seen)
    prior = Model(
        species=train.species,
        features=features,
        kernel=kernel(np.asarray(lengths)),
        mean=mean,
        train_features=np.zeros((n_atoms, 0, points.shape[-1])),
        weights=np.zeros((n_atoms, 0)),
        signal_variance=np.asarray(best.variance).ravel(),
        residual=None,
        reference=train.positions[np.nanargmin(train.energy)],
        trace=np.repeat(found.trace, n_atoms, axis=1) / n_atoms,
        noise=noise,
        noise_variance=np.asarray(joint.noise_variance(joint.covariance(best, embedded, embedded, targets), shares)),
        train_positions=np.zeros((0, n_atoms, 3)),
        targets=targets,
        permutations=permutations,
        provenance=tuple({**train.level, **made_by}.items()),
    )
    model = Fitted.of(prior).add(copies).model
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
        process = joint.Process.of(model.kernel, model.features, model.signal_variance, model.permutations)
        n_atoms, _, n_features = model.train_features.shape
        prior = replace(
            model,
            train_features=np.zeros((n_atoms, 0, n_features)),
            weights=np.zeros((n_atoms, 0)),
            directions=None,
            train_positions=np.zeros((0, n_atoms, 3)),
            observed=np.zeros(0, bool),
        )
        return cls(prior, process, model.noise_variance, np.zeros(0), np.zeros((0, 0)))

    def add(self, dataset):
        """Conditioned on the geometries of a `Dataset` too, by a block update of the factor.

        With the old factor L, B the covariance of the new observations with the old and C that of the new ones, the new
        rows of the factor are X = B L^-T and the factor of C - X X^T.
        """
        model, targets = self.model, self.model.targets
        if dataset.species != model.species:
            raise ValueError(f"expected the atoms {' '.join(model.species)}, found {' '.join(dataset.species)}")
        with jax.enable_x64(True):
            y = joint.observations(targets, *_residuals(dataset, model.mean))
            kept = np.isfinite(y)
            see = jax.jit(lambda r: joint.embedded(model.kernel, joint.seen(model.features, r)))
            new = see(jnp.asarray(dataset.positions))
            corner = joint.covariance_matrix(self.process, new, targets, self.noise, kept)
            rows = np.zeros((len(corner), 0))
            if len(self.y):
                old = see(jnp.asarray(model.train_positions))
                rows = joint.covariance_rows(self.process, new, old, targets, kept, model.observed)
                rows = solve_triangular(self.factor, rows.T, lower=True, overwrite_b=True, check_finite=False).T
                corner -= rows @ rows.T
            try:
                # Symmetric, hence its transpose, in the order that LAPACK overwrites.
                corner = cholesky(corner.T, lower=True, overwrite_a=True, check_finite=False)
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

    def _weighted(self):
        """With the weights in the model, and the signal variances at their maximum-likelihood value."""
        model = self.model
        w = cho_solve((self.factor, True), self.y, check_finite=False)
        scale = self.y @ w / len(self.y)
        weights = np.zeros(len(model.observed))
        weights[model.observed] = w / scale
        variance = scale * np.asarray(self.process.variance).ravel()
        positions = jnp.asarray(model.train_positions)
        a, directions = jax.jit(joint.expansion, static_argnums=(3, 4))(
            jnp.asarray(weights), variance, positions, model.features, model.targets, model.permutations
        )
        seen = jax.jit(jax.vmap(model.features))(joint.images(positions, model.permutations)).swapaxes(0, 1)
        fitted = replace(
            model,
            train_features=seen,
            weights=a,
            directions=directions if "forces" in model.targets else None,
            signal_variance=variance,
            noise_variance=scale * self.noise,
        )
        return replace(self, model=jax.device_get(fitted))


def _with_energies(model, train):
    """A model of forces alone, whose energy is known up to a constant, at the mean energy of its training geometries."""
    missing = np.nanmean(train.energy - energy_and_forces(model)(train.positions)[0]) / len(train.species)
    return replace(model, mean=SumOfMeans(model.mean, ConstantMean(np.full(len(train.species), missing))))


def _shape(atomic, features, kernel, points, noise, search):
    """Length scales up to a factor: (N,) for isotropic features, else (N, D) from the atomic energies alone or the spread."""
    if isinstance(features, InverseDistances):
        return np.full(len(points), np.sqrt(np.var(points[0], axis=0).sum()))
    if atomic is None or not np.isfinite(atomic).all() or np.ndim(noise):
        return np.asarray(initial_lengthscales(points, features.angular))
    found = search_hyperparameters(lambda p: kernel(jnp.exp(p)), noise, search, points, jnp.asarray(atomic.T), features.angular)
    return np.exp(np.asarray(found.parameters))


def _residuals(data, mean):
    """Atomic energies, energy and forces minus those of the prior mean; None where the data have none."""
    positions = jnp.asarray(data.positions)
    prior = np.asarray(jax.jit(jax.vmap(mean))(positions))
    slope = np.asarray(jax.jit(jax.vmap(jax.grad(lambda r: mean(r).sum())))(positions))
    atomic = None if data.atomic_energies is None else data.atomic_energies - prior
    return atomic, data.energy - prior.sum(1), None if data.forces is None else data.forces + slope


def subset(train, targets):
    """How many of the first geometries together have at most `SUBSET` observations, two at least; and how many observations."""
    arrays = [getattr(train, target).reshape(len(train), -1) for target in targets]
    seen = np.cumsum(sum(np.isfinite(array).sum(1) for array in arrays))
    n = max(2, int((seen <= SUBSET).sum()))
    return n, int(seen[n - 1])


def _left_out_error(covariance, y, kept, targets, n_atoms):
    """Sum over the targets of ln of the mean square error of geometries predicted from the others.

    With K the covariance of the observations and i those of a geometry, the errors are ([K^-1]_ii)^-1 [K^-1 y]_i (Rasmussen and
    Williams, section 5.4.2, in blocks). Infinite where K has no factor.
    """
    try:
        factor = cholesky(covariance, lower=True)
    except np.linalg.LinAlgError:
        return np.inf
    inverse = cho_solve((factor, True), np.eye(len(factor)))
    weights, kinds = inverse @ y[kept], joint.of_each(np.arange(len(targets)), targets, n_atoms)
    n = len(kept) // len(kinds)
    geometry, kind = np.repeat(np.arange(n), len(kinds))[kept], np.tile(kinds, n)[kept]
    blocks = [np.flatnonzero(geometry == i) for i in np.unique(geometry)]
    errors = np.concatenate([np.linalg.solve(inverse[np.ix_(block, block)], weights[block]) for block in blocks])
    return sum(np.log(np.mean(errors[kind == k] ** 2)) for k in np.unique(kind))


def _check_forces(data, targets):
    """Warn where the forces would be likelier with the other sign, or in other units.

    Judged by the likeliest of a few Matern-5/2 processes on inverse distances about the mean of the data, whatever the model
    and its prior mean. With forces c F the log likelihood at its best variance is -m/2 ln q(c) - ln|L| + m_F ln |c| up to a
    constant, q the quadratic form of the observations, of which m_F of m are forces.
    """
    energies = [None if e is None else e - np.nanmean(e, axis=0) for e in (data.atomic_energies, data.energy)]
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
        return joint.with_noise(joint.covariance(process, points, points, targets), NOISE_OF_THE_CHECK)

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


def _check_memory(data, targets):
    """MemoryError's sentence before the run: the matrix of all observations must fit."""
    size = len(data) * joint.count(targets, len(data.species))
    needed = 8 * size**2
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > 0.9 * available:
        raise ValueError(
            f"expected a covariance matrix that fits into memory, found {size} observations of {len(data)} geometries, which"
            f" need {needed / 2**30:.0f} GiB where the machine has {available / 2**30:.0f}; train on fewer geometries"
        )
