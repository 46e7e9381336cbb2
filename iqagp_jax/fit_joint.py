"""Fitting to forces: hyperparameters on a subset, weights from all observations by one Cholesky factor.

Every atom has a variance v_A and a length scale l_A, a multiple of a shape: one number for inverse distances (isotropic), the
spread of every feature for atomic local frames. They maximise the joint likelihood of the first geometries whose
observations number at most `SUBSET`; the weights are those of all.
"""

import os
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cho_factor, cho_solve

from iqagp_jax import gp, joint
from iqagp_jax.features import InverseDistances
from iqagp_jax.hyperparameters import initial_lengthscales, maximise, search_hyperparameters
from iqagp_jax.means import ConstantMean, SumOfMeans
from iqagp_jax.potential import Model, energy_and_forces

SUBSET = 1200
"""Observations that the hyperparameters are fitted to, at most."""

START_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""The search begins at the likeliest of these multiples of the shape."""


def check_targets(targets):
    """The targets in the order of `joint.TARGETS`; ValueError, in a sentence, where there are others, or none."""
    unknown = sorted(set(targets) - set(joint.TARGETS))
    if unknown or not targets:
        raise ValueError(f"expected targets among {', '.join(joint.TARGETS)}, found {', '.join(unknown) or 'none'}")
    return tuple(target for target in joint.TARGETS if target in targets)


def fit_joint(train, features, kernel, mean, targets, noise, search, mirror, made_by, progress):
    """A `Model` of the ``train`` dataset's ``targets``; see `fit.fit_gp`, which calls this.

    ``kernel`` maps length scales (N, D) or (N,) to the kernel of all atoms.
    """
    if search.loss == "hold-out" or search.n_starts or search.n_seed:
        raise ValueError("expected one start and a likelihood for forces; leave loss, starts, transfer out")
    if missing := [target for target in targets if getattr(train, target) is None]:
        raise ValueError(f"expected a dataset with {', '.join(missing)}, found none; choose other targets")
    n, n_atoms = len(train), len(train.species)
    per_geometry = joint.count(targets, n_atoms)
    copies = [train, train.mirrored()] if mirror else [train]
    positions = jnp.asarray(np.concatenate([copy.positions for copy in copies]))
    _check_memory(len(positions) * per_geometry, len(positions))

    points = jax.jit(jax.vmap(features))(positions).swapaxes(0, 1)
    residuals = [_residuals(copy, mean) for copy in copies]
    atomic, energy, forces = residuals[0]
    shape = _shape(atomic, features, kernel, points[:, :n], noise, search)
    embed = joint.embedding(kernel(shape), features)
    radial = type(kernel(shape))
    seen = jax.jit(lambda r: joint.embedded(embed, r))(positions)
    y = np.concatenate([joint.observations(targets, *parts) for parts in residuals])

    def scales(parameters):
        return joint.Scales(*(p.reshape(len(seen.z), -1) for p in jnp.split(jnp.exp(parameters), 2)))

    def likelihood(parameters, z, jacobian, y):
        subset = joint.Points(z, jacobian)
        covariance = joint.covariance(radial, scales(parameters), subset, subset, targets).reshape(len(y), len(y))
        covariance = covariance + noise * jnp.diag(jnp.diag(covariance))
        return gp.log_likelihood(covariance, y, search.loss == "concentrated")

    k = min(n, max(2, SUBSET // per_geometry))
    data = (seen.z[None, :, :k], seen.jacobian[None, :, :k], jnp.asarray(y[None, : k * per_geometry]))
    starts = jnp.stack([jnp.concatenate([jnp.zeros(n_atoms), jnp.full(n_atoms, -2 * np.log(f))]) for f in START_FACTORS])
    found = maximise(likelihood, data, starts[:, None], search, progress)
    best = found.parameters[0]
    if {"forces"} < set(targets):  # forces alone are as likely with either sign
        flipped = joint.observations(targets, atomic, energy, forces - 2 * train.forces)[: k * per_geometry]
        other = float(jax.jit(likelihood)(best, *(d[0] for d in data[:2]), jnp.asarray(flipped)))
        if other > found.values.max():
            gain = (other - found.values.max()) / (k * per_geometry)
            warnings.warn(
                f"with the opposite sign the forces would be likelier, by {gain:.2f} in ln L an observation: are they"
                " gradients? Change their sign in the dataset",
                stacklevel=3,
            )

    weights, variance = _solve(radial, scales(best), seen, targets, noise, y, train.species)
    a, directions = joint.expansion(jnp.asarray(weights), variance, features, positions, targets)
    fitted = kernel(shape * np.exp(-0.5 * np.asarray(best[n_atoms:])).reshape(-1, *[1] * (shape.ndim - 1)))
    residual = None if atomic is None else np.concatenate([parts[0] for parts in residuals]).T
    model = jax.device_get(
        Model(
            species=train.species,
            features=features,
            kernel=fitted,
            mean=mean,
            train_features=points,
            weights=a,
            signal_variance=variance,
            residual=residual,
            reference=train.positions[np.argmin(train.energy)],
            trace=jnp.repeat(found.trace, n_atoms, axis=1) / n_atoms,
            noise=noise,
            directions=directions if "forces" in targets else None,
            train_positions=positions,
            targets=targets,
            provenance=tuple({**train.level, **made_by}.items()),
        )
    )
    return model if targets != ("forces",) else _with_energies(model, train)


def _with_energies(model, train):
    """A model of forces alone, whose energy is known up to a constant, at the mean energy of its training geometries."""
    missing = np.mean(train.energy - energy_and_forces(model)(train.positions)[0]) / len(train.species)
    return replace(model, mean=SumOfMeans(model.mean, ConstantMean(np.full(len(train.species), missing))))


def _shape(atomic, features, kernel, points, noise, search):
    """Length scales up to a factor: (N,) for isotropic features, else (N, D) from the atomic energies alone or the spread."""
    if isinstance(features, InverseDistances):
        return np.full(len(points), np.sqrt(np.var(points[0], axis=0).sum()))
    if atomic is None:
        return np.asarray(initial_lengthscales(points, features.angular))
    residual = jnp.asarray(atomic.T)
    found = search_hyperparameters(lambda p: kernel(jnp.exp(p)), noise, search, points, residual, features.angular)
    return np.exp(np.asarray(found.parameters))


def _residuals(data, mean):
    """Atomic energies, energy and forces minus those of the prior mean; None where the data have none."""
    positions = jnp.asarray(data.positions)
    prior = np.asarray(jax.jit(jax.vmap(mean))(positions))
    slope = np.asarray(jax.jit(jax.vmap(jax.grad(lambda r: mean(r).sum())))(positions))
    atomic = None if data.atomic_energies is None else data.atomic_energies - prior
    return atomic, data.energy - prior.sum(1), None if data.forces is None else data.forces + slope


def _solve(radial, scales, points, targets, noise, y, species):
    """Weights (n M,) and the atoms' signal variances (N,), scaled to their maximum-likelihood value."""
    matrix = joint.covariance_matrix(radial, scales, points, targets, noise)
    try:
        factor = cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
    except np.linalg.LinAlgError:
        raise ValueError(
            f"the covariance matrix of {' '.join(species)} is not positive definite: are there duplicate geometries?"
            " Remove them or raise the noise"
        ) from None
    weights = cho_solve(factor, y, check_finite=False)
    scale = y @ weights / len(y)
    return weights / scale, np.asarray(scales.variance).ravel() * scale


def _check_memory(size, n):
    """MemoryError's sentence before the run: the matrix of ``size`` observations must fit."""
    needed = 8 * size**2
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > 0.9 * available:
        raise ValueError(
            f"expected a covariance matrix that fits into memory, found {size} observations of {n} geometries, which need"
            f" {needed / 2**30:.0f} GiB where the machine has {available / 2**30:.0f}; train on fewer geometries"
        )
