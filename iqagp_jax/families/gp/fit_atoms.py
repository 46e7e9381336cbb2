"""Fitting every atom's process by itself, to atomic energies: hyperparameters by their likelihood, weights by one factor."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.families.gp import regression
from iqagp_jax.families.gp.check import check_labels
from iqagp_jax.families.gp.model import Model, Points
from iqagp_jax.families.gp.options import NOISE
from iqagp_jax.families.gp.problem import Problem
from iqagp_jax.families.gp.search import Found, search_hyperparameters


def fit_atoms(problem: Problem, progress) -> Model:
    """A `Model` of atomic energies alone; see `fit.fit_gp`, which calls this."""
    check_labels(problem.train, problem.options.learned)
    # Copies would bias the likelihood: that twins agree is no evidence of smoothness.
    subset = slice(None, problem.options.n_hyper or len(problem.train))
    points, residual = (array[:, subset] for array in observed(problem))
    seen = problem.options.search, points, residual, problem.features.angular
    return conditioned(problem, search_hyperparameters(_build(problem), _noise(problem), *seen, progress=progress))


def observed(problem: Problem):
    """What every atom's process sees: features (N, n, D) of the training geometries and copies, and residuals (N, n) in eV."""
    positions = jnp.asarray(problem.copies.positions)
    prior = jax.jit(jax.vmap(problem.mean))(positions)
    points = jax.jit(jax.vmap(problem.features))(positions).swapaxes(0, 1)
    return points, (jnp.asarray(problem.copies.atomic_energies) - prior).T


def conditioned(problem: Problem, found: Found) -> Model:
    """The `Model` at log length scales (N, D) that were found."""
    points, residual = observed(problem)
    kernel, noise = _build(problem)(found.parameters), _noise(problem)
    weights, variance = _solve(kernel, points, residual, noise)
    _check(weights, problem.train)
    # NumPy arrays in the model: JAX's own would lose half their digits in arithmetic outside its 64-bit mode.
    return jax.device_get(
        Model(
            species=problem.train.species,
            features=problem.features,
            kernel=kernel,
            mean=problem.mean,
            points=Points(points, weights),
            signal_variance=variance,
            residual=residual,
            reference=problem.train.positions[problem.train.lowest],
            trace=np.asarray(found.trace),
            noise=noise,
            made_by=problem.made_by,
        )
    )


def _build(problem):
    return lambda log_lengthscale: problem.kernel(jnp.exp(log_lengthscale))


def _noise(problem):
    return problem.options.shares or NOISE


@partial(jax.jit, static_argnums=3)
def _solve(kernel, points, residual, noise):
    """Weights (N, n) and signal variances (N,) at given hyperparameters, from one Cholesky factor an atom."""

    def one_atom(arguments):
        k, x, r = arguments
        factor = jnp.linalg.cholesky(regression.covariance_matrix(k, x, noise))
        return regression.weights(factor, r), regression.signal_variance(factor, r)

    return jax.lax.map(one_atom, (kernel, points, residual))


def _check(weights, train):
    """ValueError, in a sentence, where a covariance matrix was not positive definite."""
    lost = np.argwhere(~np.isfinite(np.asarray(weights)))
    if len(lost):
        atom = int(lost[0, 0])
        raise ValueError(
            f"the covariance matrix of atom {train.species[atom]}{atom + 1} is not positive definite: are there"
            " duplicate geometries? Remove them or raise the noise"
        )
