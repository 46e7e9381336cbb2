"""One Gaussian process: y(x) ~ GP(m(x), s2 [k(x, x') + noise delta]), its likelihood and its posterior.

Formulas follow Rasmussen and Williams, "Gaussian Processes for Machine Learning" (MIT Press 2006), chapters 2 and 5.
``residual`` is y - m(x), so the prior mean is subtracted before and added after. All arrays are float64.

| symbol | name                | what                                                       |
| ------ | ------------------- | ---------------------------------------------------------- |
| K      | `covariance_matrix` | k(x_i, x_j) + noise delta_ij, unit signal variance         |
| L      | ``factor``          | lower Cholesky factor of K                                 |
| r      | ``residual``        | y - m(x)                                                   |
| w      | `weights`           | K^-1 r                                                     |
| s2     | `signal_variance`   | r^T K^-1 r / n, its maximum-likelihood value               |
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Float

from iqagp_jax.families.gp.kernels import Kernel, Radial, covariance
from iqagp_jax.machine.precision import Array

SMALL = 64
"""Rows up to which `inverse` does not halve a matrix."""


def squared_distances(a: Float[Array, "n e"], b: Float[Array, "m e"]) -> Float[Array, "n m"]:
    """|a_i - b_j|^2 of points (n, E) and (m, E) through one matrix product, (n, m); never negative.

    Both are centred on b first: distances are differences of large numbers here.
    """
    centre = b.mean(0)
    a, b = a - centre, b - centre
    return jnp.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T, 0.0)


def cross_covariance(kernel: Kernel, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """k(x_i, y_j), (n, m), from points (n, D) and (m, D); a matrix product for radial kernels."""
    if isinstance(kernel, Radial):
        return kernel.profile(squared_distances(kernel.embed(x), kernel.embed(y)))
    return covariance(kernel, x, y)


def covariance_matrix(kernel: Kernel, x: Float[Array, "n d"], noise: float) -> Float[Array, "n n"]:
    """K = k(x_i, x_j) + noise delta_ij, (n, n)."""
    return cross_covariance(kernel, x, x) + noise * jnp.eye(len(x), dtype=x.dtype)


def weights(factor: Float[Array, "n n"], residual: Float[Array, "n"]) -> Float[Array, "n"]:
    """w = K^-1 r, (n,)."""
    return cho_solve((factor, True), residual)


def inverse(factor: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """K^-1, (n, n), by halves: with L = [[A, 0], [B, C]], T = B A^-1 and S = (C C^T)^-1,

        K^-1 = [[(A A^T)^-1 + T^T S T, -T^T S], [-S T, S]].

    Half the time of solving for the columns of the identity, and nearly all of it in products of matrices.
    """
    n = len(factor)
    if n <= SMALL:
        half = solve_triangular(factor, jnp.eye(n, dtype=factor.dtype), lower=True)
        return half.T @ half
    m = n // 2
    a, b, c = factor[:m, :m], factor[m:, :m], factor[m:, m:]
    s, transposed = inverse(c), solve_triangular(a, b.T, lower=True, trans=1)
    corner = -transposed @ s
    return jnp.block([[inverse(a) - corner @ transposed.T, corner], [corner.T, s]])


def signal_variance(factor: Float[Array, "n n"], residual: Float[Array, "n"]) -> Float[Array, ""]:
    """s2 = r^T K^-1 r / n."""
    return residual @ weights(factor, residual) / len(residual)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def log_likelihood(covariance, residual, concentrated=False, free_mean=False):
    """Log marginal likelihood of residuals r (n,) with covariance s2 K, K (n, n) given, a scalar:

        -1/2 r^T K^-1 r / s2 - 1/2 ln|K| - n/2 ln s2 - n/2 ln 2 pi

    with s2 = 1, or, if ``concentrated``, at its maximum s2 = r^T K^-1 r / n. With ``free_mean`` the best constant,
    `generalised_least_squares_mean`, is subtracted from r first. The derivative with respect to K,
    1/2 (w w^T / s2 - K^-1), is given in closed form: with it the gradient with respect to every hyperparameter is a
    handful of matrix products, and no array of size dimensions x n x n exists.
    """
    return _log_likelihood(covariance, residual, concentrated, free_mean)[0]


def _log_likelihood(covariance, residual, concentrated, free_mean):
    factor = jnp.linalg.cholesky(covariance, symmetrize_input=False)
    if free_mean:
        residual = residual - generalised_least_squares_mean(factor, residual)
    w, n = weights(factor, residual), len(residual)
    square = residual @ w
    s2 = square / n if concentrated else jnp.ones_like(square)
    value = -0.5 * (square / s2 + n * jnp.log(2 * jnp.pi * s2)) - jnp.log(jnp.diag(factor)).sum()
    return value, (factor, w, s2)


def _log_likelihood_gradient(concentrated, free_mean, saved, cotangent):
    # At the maximum over s2 and the mean the likelihood does not change with them, so all kinds share one derivative.
    factor, w, s2 = saved
    return 0.5 * cotangent * (jnp.outer(w, w) / s2 - inverse(factor)), -cotangent * w / s2


log_likelihood.defvjp(_log_likelihood, _log_likelihood_gradient)


def generalised_least_squares_mean(factor: Float[Array, "n n"], y: Float[Array, "n"]) -> Float[Array, ""]:
    """The constant m = 1^T K^-1 y / 1^T K^-1 1 that maximises the likelihood of y (n,)."""
    ones = weights(factor, jnp.ones_like(y))
    return ones @ y / ones.sum()


def predict(kernel, x_train, w, x):
    """Posterior mean minus prior mean at points (m, D): k(x, x_train) w, (m,)."""
    return cross_covariance(kernel, x, x_train) @ w


def predictive_variance(kernel, x_train, factor, s2, x):
    """Posterior variance of the noise-free function at points (m, D): s2 (k(x, x) - |L^-1 k(x_train, x)|^2), (m,)."""
    half = solve_triangular(factor, cross_covariance(kernel, x_train, x), lower=True)
    prior = jax.vmap(lambda point: kernel(point, point))(x)
    return s2 * jnp.maximum(prior - (half * half).sum(0), 0.0)


def leave_one_out(factor, residual):
    """Leave-one-out residuals y_i - mu_-i and the diagonal of K^-1 (their variances are s2 / diagonal), both (n,).

    From the factor of all points (Rasmussen and Williams, eqs. 5.10 to 5.12): r_i = w_i / [K^-1]_ii.
    """
    half = solve_triangular(factor, jnp.eye(len(residual), dtype=residual.dtype), lower=True)
    precision = (half * half).sum(0)
    return weights(factor, residual) / precision, precision
