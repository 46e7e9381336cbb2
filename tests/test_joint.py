"""The joint process against a dense textbook formula, written with jax's derivatives of the plain kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqagp_jax import joint
from iqagp_jax.features import InverseDistances
from iqagp_jax.kernels import RBF, Matern52

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(0)
N = 4
R = np.array([[0.0, 0, 0], [1.2, 0, 0], [-0.5, 0.9, 0.1], [0.3, 0.4, 1.1]]) + 0.1 * RNG.normal(size=(5, N, 3))
FEATURES = InverseDistances(N)
LENGTH, VARIANCE = np.array([0.8, 1.1, 1.4, 0.9]), np.array([2.0, 0.5, 1.0, 3.0])
SCALES = joint.Scales(VARIANCE[None], 1 / LENGTH[None] ** 2)


def textbook(kernel, a, b, targets):
    """Covariance (M, M) of the observations of two geometries by automatic differentiation."""

    def cov(atom, r, q):
        return VARIANCE[atom] * kernel(LENGTH[atom])(FEATURES(r)[atom], FEATURES(q)[atom])

    def total(r, q):
        return sum(cov(atom, r, q) for atom in range(N))

    atoms = range(N)
    ee = np.diag([cov(k, a, b) for k in atoms])
    et = np.array([[cov(k, a, b)] for k in atoms])
    ef = np.array([-jax.grad(cov, 2)(k, a, b).ravel() for k in atoms])
    fe = np.array([-jax.grad(cov, 1)(k, a, b).ravel() for k in atoms]).T
    ff = jax.jacfwd(jax.grad(total, 0), 1)(a, b).reshape(3 * N, 3 * N)
    table = {
        ("atomic_energies", "atomic_energies"): ee,
        ("atomic_energies", "energy"): et,
        ("atomic_energies", "forces"): ef,
        ("energy", "atomic_energies"): et.T,
        ("energy", "energy"): et.sum(keepdims=True),
        ("energy", "forces"): ef.sum(0, keepdims=True),
        ("forces", "atomic_energies"): fe,
        ("forces", "energy"): fe.sum(1, keepdims=True),
        ("forces", "forces"): ff,
    }
    chosen = [t for t in joint.TARGETS if t in targets]
    return np.block([[table[s, t] for t in chosen] for s in chosen])


def points(positions):
    return joint.embedded(lambda r: FEATURES(r)[:1], positions)


ALL = [("atomic_energies", "energy", "forces"), ("atomic_energies", "forces"), ("energy", "forces"), ("forces",), ("energy",)]


@pytest.mark.parametrize("kernel", [RBF, Matern52])
@pytest.mark.parametrize("targets", ALL)
def test_covariance_is_the_textbooks(kernel, targets):
    found = joint.covariance(kernel, SCALES, points(R[:2]), points(R[2:]), targets)
    for i in range(2):
        for j in range(3):
            expected = textbook(kernel, R[i], R[2 + j], targets)
            np.testing.assert_allclose(found[i, :, j], expected, atol=1e-10)


def test_groups_of_one_atom_each_are_the_same():
    """With a set of features for every atom, scaled beforehand, as with length scales for every feature."""
    targets = ("atomic_energies", "forces")
    apart = joint.embedded(lambda r: FEATURES(r) / LENGTH[:, None], R)
    scales = joint.Scales(VARIANCE[:, None], np.ones((N, 1)))
    together = joint.covariance(Matern52, SCALES, points(R), points(R), targets)
    np.testing.assert_allclose(joint.covariance(Matern52, scales, apart, apart, targets), together, atol=1e-10)


def test_matrix_in_stripes():
    targets = ("energy", "forces")
    whole = joint.covariance(Matern52, SCALES, points(R), points(R), targets).reshape(65, 65)
    striped = joint.covariance_matrix(Matern52, SCALES, points(R), targets, 1e-3, rows=2)
    np.testing.assert_allclose(striped, whole + 1e-3 * np.diag(np.diag(whole)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("targets", ALL)
def test_expansion_is_covariance_times_weights(targets):
    """g_A from coefficients of the kernel and its derivative, at a new geometry, is cov(E_A, observations) w."""
    w = RNG.normal(size=len(R) * joint.count(targets, N))
    a, b = joint.expansion(jnp.array(w), VARIANCE, FEATURES, R, targets)
    new = R[0] + 0.05 * RNG.normal(size=(N, 3))
    covariance = joint.covariance(Matern52, SCALES, points(new[None]), points(R), ("atomic_energies",), targets)[0]
    x, x_train = FEATURES(new), jax.vmap(FEATURES)(R)
    for atom in range(N):
        kernel = Matern52(LENGTH[atom])
        total = 0.0
        for i in range(len(R)):
            value, slope = jax.jvp(lambda y, k=kernel, here=x[atom]: k(here, y), (x_train[i, atom],), (b[atom, i],))
            total += a[atom, i] * value + slope
        assert total == pytest.approx(float(covariance[atom].ravel() @ w), abs=1e-9)
