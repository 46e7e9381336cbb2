import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gamma, kv

from iqagp_jax.families.gp.kernels import RBF, Joint, Matern52, Matern92, Periodic, Product, Select, TwoScales, covariance
from iqagp_jax.families.gp.regression import cross_covariance

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(0)
X, Y = RNG.uniform(-3, 3, (12, 4)), RNG.uniform(-3, 3, (7, 4))
LENGTH = np.array([0.7, 1.3, 2.0, 0.9])


def pairs(function):
    return np.array([[function(x - y) for y in Y] for x in X])


def test_rbf_is_its_formula():
    expected = pairs(lambda d: np.exp(-0.5 * np.sum((d / LENGTH) ** 2)))
    np.testing.assert_allclose(covariance(RBF(LENGTH), X, Y), expected, rtol=1e-12)


def test_periodic_is_its_formula_and_has_period_two_pi():
    expected = pairs(lambda d: np.exp(-np.sum(4 * np.sin(d / 2) ** 2 / (2 * LENGTH**2))))
    np.testing.assert_allclose(covariance(Periodic(LENGTH), X, Y), expected, rtol=1e-12)
    np.testing.assert_allclose(covariance(Periodic(LENGTH), X + 2 * np.pi, Y), expected, rtol=1e-10)


def test_product_of_squared_exponentials_is_one_in_the_joint_embedding():
    rbf, periodic = Select(RBF(LENGTH[:2]), (0, 1)), Select(Periodic(LENGTH[2:]), (2, 3))
    joint = rbf * periodic
    assert isinstance(joint, Joint)
    np.testing.assert_allclose(covariance(joint, X, Y), covariance(rbf, X, Y) * covariance(periodic, X, Y), rtol=1e-12)


def test_sums_and_products_compose():
    kernel = RBF(1.0) + Matern52(2.0) * Periodic(1.5)
    assert isinstance(kernel.second, Product)
    expected = covariance(RBF(1.0), X, Y) + covariance(Matern52(2.0), X, Y) * covariance(Periodic(1.5), X, Y)
    np.testing.assert_allclose(covariance(kernel, X, Y), expected, rtol=1e-12)
    np.testing.assert_allclose(cross_covariance(kernel, X, Y), expected, rtol=1e-12)


@pytest.mark.parametrize(("kernel", "nu"), [(Matern52, 5 / 2), (Matern92, 9 / 2)])
def test_matern_is_the_bessel_formula(kernel, nu):
    """Rasmussen and Williams, eq. 4.14; slope and curvature by automatic differentiation of each other."""
    s = RNG.uniform(1e-3, 10, 50)
    a = np.sqrt(2 * nu * s)
    np.testing.assert_allclose(kernel.profile(s), 2 ** (1 - nu) / gamma(nu) * a**nu * kv(nu, a), rtol=1e-12)
    for function, derivative in ((kernel.profile, kernel.slope), (kernel.slope, kernel.curvature)):
        numerical = (function(s + 1e-6) - function(s - 1e-6)) / 2e-6
        np.testing.assert_allclose(derivative(s), numerical, rtol=1e-5)
        np.testing.assert_allclose(jax.vmap(jax.grad(function))(s), derivative(s), rtol=1e-14)


@pytest.mark.parametrize("kernel", [Matern92, TwoScales])
def test_third_derivative(kernel):
    s = RNG.uniform(1e-3, 10, 50)
    numerical = (kernel.curvature(s + 1e-6) - kernel.curvature(s - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.vmap(jax.grad(kernel.curvature))(s), numerical, rtol=1e-5)


def test_two_scales_are_a_rough_surface_upon_a_smooth_one():
    both = (covariance(Matern92(LENGTH), X, Y) + 1000 * covariance(RBF(4 * LENGTH), X, Y)) / 1001
    np.testing.assert_allclose(covariance(TwoScales(LENGTH), X, Y), both, rtol=1e-12)
    s = RNG.uniform(1e-3, 10, 50)
    for function, derivative in ((TwoScales.profile, TwoScales.slope), (TwoScales.slope, TwoScales.curvature)):
        np.testing.assert_allclose(jax.vmap(jax.grad(function))(s), derivative(s), rtol=1e-12)


KERNELS = [
    *(kind(LENGTH) for kind in (RBF, Periodic, Matern52, Matern92, TwoScales)),
    RBF(LENGTH) * Periodic(LENGTH),
    RBF(LENGTH) + Matern52(LENGTH),
]


@pytest.mark.parametrize("kernel", KERNELS)
def test_matrix_product_form_equals_the_plain_formula(kernel):
    np.testing.assert_allclose(cross_covariance(kernel, X, Y), covariance(kernel, X, Y), atol=1e-13)


@pytest.mark.parametrize("kernel", KERNELS)
def test_positive_definite(kernel):
    assert np.linalg.eigvalsh(covariance(kernel, X, X)).min() > 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradient_vanishes_at_coinciding_points(kernel):
    np.testing.assert_allclose(jax.grad(kernel)(jnp.asarray(X[0]), jnp.asarray(X[0])), 0, atol=1e-12)
