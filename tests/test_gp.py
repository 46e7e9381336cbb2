"""Against textbook formulas written with explicit inverses, and SciPy's multivariate normal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from iqagp_jax.families.gp import regression
from iqagp_jax.families.gp.kernels import RBF, Matern52

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(1)
X, NEW = RNG.normal(size=(15, 3)), RNG.normal(size=(6, 3))
R = np.sin(X).sum(1)
NOISE = 1e-4
KERNEL = Matern52(jnp.array([1.0, 2.0, 1.5]))


def rbf(a, b, length=1.3):
    return np.exp(-0.5 * ((a[:, None] - b) ** 2).sum(-1) / length**2)


K = rbf(X, X) + NOISE * np.eye(len(X))
FACTOR = np.linalg.cholesky(K)


def test_log_likelihood_is_the_log_density():
    expected = multivariate_normal(np.zeros(len(X)), K).logpdf(R)
    np.testing.assert_allclose(regression.log_likelihood(K, R), expected, rtol=1e-10)


def test_concentrated_likelihood_is_the_log_density_at_the_best_signal_variance():
    s2 = R @ np.linalg.inv(K) @ R / len(R)
    densities = [multivariate_normal(np.zeros(len(X)), f * s2 * K).logpdf(R) for f in (0.9, 1.0, 1.1)]
    np.testing.assert_allclose(regression.log_likelihood(K, R, True), densities[1], rtol=1e-10)
    assert densities[1] > max(densities[0], densities[2])
    np.testing.assert_allclose(regression.signal_variance(FACTOR, R), s2, rtol=1e-9)


@pytest.mark.parametrize("concentrated", [False, True])
def test_likelihood_gradient_is_the_difference_quotient(concentrated):
    def value(log_length):
        return regression.log_likelihood(
            regression.covariance_matrix(Matern52(jnp.exp(log_length)), jnp.asarray(X), NOISE), R, concentrated
        )

    at, step = jnp.array([0.1, 0.5, 0.3]), 1e-5
    quotient = [(value(at + step * e) - value(at - step * e)) / (2 * step) for e in jnp.eye(3)]
    np.testing.assert_allclose(jax.grad(value)(at), quotient, rtol=1e-6)


def test_likelihood_gradient_needs_no_large_array():
    points = jnp.asarray(RNG.normal(size=(40, 25)))

    def value(lengthscale):
        return regression.log_likelihood(regression.covariance_matrix(RBF(lengthscale), points, NOISE), jnp.ones(40))

    shapes = {v.aval.shape for eqn in jax.make_jaxpr(jax.grad(value))(jnp.ones(25)).eqns for v in eqn.outvars}
    assert max(np.prod(s) for s in shapes) == 40 * 40


@pytest.mark.parametrize("n", [1, 65, 200])
def test_inverse_by_halves_is_the_inverse(n):
    half = RNG.normal(size=(n, n)) + n * np.eye(n)
    np.testing.assert_allclose(regression.inverse(jnp.linalg.cholesky(half @ half.T)) @ half @ half.T, np.eye(n), atol=1e-10)


def test_prediction_and_variance_are_the_textbooks():
    inverse = np.linalg.inv(K)
    cross = rbf(NEW, X)
    s2 = 2.5
    kernel = RBF(jnp.asarray(1.3))
    w = regression.weights(FACTOR, R)
    np.testing.assert_allclose(regression.predict(kernel, X, w, NEW), cross @ inverse @ R, rtol=1e-8)
    expected = s2 * (1 - np.einsum("ij,jk,ik->i", cross, inverse, cross))
    np.testing.assert_allclose(
        regression.predictive_variance(kernel, jnp.asarray(X), FACTOR, s2, jnp.asarray(NEW)), expected, rtol=1e-7
    )


def test_leave_one_out_equals_refitting_without_the_point():
    errors, precision = regression.leave_one_out(FACTOR, R)
    for i in range(len(X)):
        rest = np.arange(len(X)) != i
        gain = K[i, rest] @ np.linalg.inv(K[np.ix_(rest, rest)])
        np.testing.assert_allclose(errors[i], R[i] - gain @ R[rest], rtol=1e-6)
        np.testing.assert_allclose(1 / precision[i], K[i, i] - gain @ K[rest, i], rtol=1e-6)
