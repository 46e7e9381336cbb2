"""The joint process against a dense textbook formula, written with jax's derivatives of the plain kernel."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqagp_jax.families.gp import joint
from iqagp_jax.families.gp.features import InverseDistances
from iqagp_jax.families.gp.kernels import RBF, Matern52

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(0)
N = 4
R = np.array([[0.0, 0, 0], [1.2, 0, 0], [-0.5, 0.9, 0.1], [0.3, 0.4, 1.1]]) + 0.1 * RNG.normal(size=(5, N, 3))
FEATURES = InverseDistances(N)
LENGTH, VARIANCE = np.array([0.8, 1.1, 1.4, 0.9]), np.array([2.0, 0.5, 1.0, 3.0])
IDENTITY = np.arange(N)[None]


def process(kernel):
    """With z = x, as `points` gives it."""
    return joint.Process(kernel, VARIANCE[None], 1 / LENGTH[None] ** 2, IDENTITY, FEATURES.columns(IDENTITY))


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
    return joint.seen(FEATURES, positions)


def first_atom(positions):
    return FEATURES(positions)[0]


ALL = [("atomic_energies", "energy", "forces"), ("atomic_energies", "forces"), ("energy", "forces"), ("forces",), ("energy",)]


@pytest.mark.parametrize("kernel", [RBF, Matern52])
@pytest.mark.parametrize("targets", ALL)
def test_covariance_is_the_textbooks(kernel, targets):
    found = joint.covariance(process(kernel), points(R[:2]), points(R[2:]), targets)
    for i in range(2):
        for j in range(3):
            expected = textbook(kernel, R[i], R[2 + j], targets)
            np.testing.assert_allclose(found[i, :, j], expected, atol=1e-10)


def test_groups_of_one_atom_each_are_the_same():
    """With a set of features for every atom, scaled beforehand, as with length scales for every feature."""
    targets = ("atomic_energies", "energy", "forces")
    z, jacobian = (jax.vmap(f)(R)[None] for f in (first_atom, jax.jacrev(first_atom)))
    dense = joint.Seen(z, jacobian.reshape(*z.shape, 3 * N))
    apart = joint.embedded(Matern52(LENGTH), joint.Seen(*(jnp.repeat(part, N, axis=0) for part in dense)))
    alone = joint.Process(Matern52, VARIANCE[:, None], np.ones((N, 1)), IDENTITY, np.arange(6)[None])
    together = joint.covariance(process(Matern52), points(R), points(R), targets)
    np.testing.assert_allclose(joint.covariance(alone, apart, apart, targets), together, atol=1e-10)


@pytest.mark.parametrize("tile", [1, 169 * 6, 10**6])
def test_matrix_in_tiles(tile, monkeypatch):
    monkeypatch.setattr(joint, "TILE", tile)
    monkeypatch.setattr(joint, "FEWEST", 1)
    monkeypatch.setattr(joint, "BLOCK", 10)
    targets, kept = ("energy", "forces"), RNG.random(65) < 0.8
    noise = RNG.random(13)
    whole = joint.covariance(process(Matern52), points(R), points(R), targets).reshape(65, 65) + np.diag(np.tile(noise, 5))
    tiled = joint.covariance_matrix(process(Matern52), points(R), targets, noise, kept)
    np.testing.assert_allclose(tiled, whole[np.ix_(kept, kept)], rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(tiled, tiled.T)


@pytest.mark.parametrize("block", [6, 20])
def test_factor_in_blocks(block):
    root = RNG.normal(size=(20, 20))
    matrix = root @ root.T + np.eye(20)
    np.testing.assert_allclose(joint.factorise(matrix.copy(), block=block), np.linalg.cholesky(matrix), rtol=1e-10, atol=1e-13)
    matrix[10, 10] = -1.0
    with pytest.raises(np.linalg.LinAlgError):
        joint.factorise(matrix, block=block)


@pytest.mark.parametrize("known", [7, 12, 20])
def test_factor_goes_on_from_what_is_known(known):
    root = RNG.normal(size=(20, 20))
    matrix = root @ root.T + np.eye(20)
    whole = np.linalg.cholesky(matrix)
    begun = np.asfortranarray(np.tril(matrix))
    begun[:known, :known] = whole[:known, :known]
    np.testing.assert_allclose(joint.factorise(begun, known, block=6), whole, rtol=1e-10, atol=1e-13)


def test_noise_is_a_share_of_what_varies():
    """A constant added to the energies' covariance, however large, leaves it as it was."""
    covariance = joint.covariance(process(Matern52), points(R), points(R), ("energy", "forces"))
    shares = joint.of_each((1e-2, 1e-3), ("energy", "forces"), N)
    drawn = np.random.default_rng(0).multivariate_normal(np.zeros(65), covariance.reshape(65, 65), 20_000).reshape(-1, 5, 13)
    expected = drawn.var(axis=1).mean(0)
    expected[1:] = np.repeat(expected[1:].reshape(N, 3).mean(1), 3)  # no direction is another's better

    def noise(matrix, permutations):
        return joint.noise_variance(matrix, shares, ("energy", "forces"), permutations)

    np.testing.assert_allclose(noise(covariance, IDENTITY), shares * expected, rtol=0.05)
    np.testing.assert_allclose(noise(covariance + 1e3, IDENTITY), noise(covariance, IDENTITY), rtol=1e-6)
    expected[7:] = np.tile(expected[7:].reshape(2, 3).mean(0), 2)
    swap = np.array([[0, 1, 2, 3], [0, 1, 3, 2]])
    np.testing.assert_allclose(noise(covariance, swap), shares * expected, rtol=0.05)


def test_slopes_are_the_derivatives():
    """Of weighted distances, through a kernel's embedding."""
    weighted = InverseDistances(N, tuple(0.5 + np.arange(6.0)))
    found = joint.embedded(Matern52(np.full(N, 0.7)), joint.seen(weighted, jnp.asarray(R)))
    z, jacobian = (jax.vmap(f)(R) for f in (lambda r: weighted(r)[0] / 0.7, jax.jacrev(lambda r: weighted(r)[0] / 0.7)))
    a, b = weighted.pairs[0].T
    expected, pair = np.zeros_like(jacobian), np.arange(6)
    expected[:, pair, a], expected[:, pair, b] = found.slopes[0], -found.slopes[0]
    np.testing.assert_allclose(found.z[0], z, rtol=1e-14)
    np.testing.assert_allclose(expected, jacobian, rtol=1e-12, atol=1e-14)


def test_image_by_image_or_at_once():
    """With symmetry, the covariance of geometries is the sum over images of the right one, their observations put back."""
    permutations = np.array([[0, 1, 2, 3], [0, 2, 3, 1], [0, 3, 1, 2]])
    same = np.array([0, 1, 1, 1])
    alike = replace(process(Matern52), variance=VARIANCE[None, same], inverse_square=1 / LENGTH[None, same] ** 2)
    symmetric = replace(alike, permutations=permutations, columns=FEATURES.columns(permutations))
    targets = ("atomic_energies", "energy", "forces")
    found = joint.covariance(symmetric, points(R[:2]), points(R[2:]), targets)
    expected = 0.0
    for p in permutations:
        order = np.concatenate([p, [4], 5 + (3 * p[:, None] + np.arange(3)).ravel()])
        expected += joint.covariance(alike, points(R[:2]), points(R[2:][:, p]), targets)[..., np.argsort(order)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("targets", ALL)
def test_expansion_is_covariance_times_weights(targets):
    """g_A from coefficients of the kernel and its derivative, at a new geometry, is cov(E_A, observations) w."""
    w = RNG.normal(size=len(R) * joint.count(targets, N))
    a, b = (
        VARIANCE.reshape(-1, *[1] * (part.ndim - 1)) * part
        for part in joint.expansion(jnp.array(w), R, FEATURES, targets, IDENTITY)
    )
    new = R[0] + 0.05 * RNG.normal(size=(N, 3))
    covariance = joint.covariance(process(Matern52), points(new[None]), points(R), ("atomic_energies",), targets)[0]
    x, x_train = FEATURES(new), jax.vmap(FEATURES)(R)
    for atom in range(N):
        kernel = Matern52(LENGTH[atom])
        total = 0.0
        for i in range(len(R)):
            value, slope = jax.jvp(lambda y, k=kernel, here=x[atom]: k(here, y), (x_train[i, atom],), (b[atom, i],))
            total += a[atom, i] * value + slope
        assert total == pytest.approx(float(covariance[atom].ravel() @ w), abs=1e-9)
