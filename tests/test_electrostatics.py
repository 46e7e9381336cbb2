"""Interaction of multipoles: closed forms, Cartesian tensors, point charges, and forces of flexible molecules."""

from itertools import product
from math import comb, factorial, prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rotation

from iqagp_jax.electrostatics import energy_and_forces, energy_fn, interaction_energy
from iqagp_jax.system.harmonics import component_names, solid_harmonics, sphere
from iqagp_jax.units import BOHR, HARTREE

NAMES = component_names(4)
FRAMES = ((0, 1, 2), (1, 0, 2), (2, 0, 1))
WATER = np.array([[0.0, 0.0, 0.1173], [0.0, 0.7572, -0.4692], [0.0, -0.7572, -0.4692]])
CLUSTER = np.stack([WATER @ rotation(k).T + shift for k, shift in enumerate(3.0 * np.eye(3))])


def in_hartree(positions, moments, molecule):
    """`interaction_energy` in atomic units."""
    with jax.enable_x64(True):
        return interaction_energy(positions * BOHR, jnp.asarray(moments), jnp.asarray(molecule)) / HARTREE


def flexible(positions):
    """Made-up moments (3, 25) of water's size that depend on all distances."""
    size = np.random.default_rng(1).normal(size=(3, 25)) * 0.5
    separation = jnp.sqrt(jnp.sum((positions[:, None] - positions) ** 2, -1) + jnp.eye(3))
    return size * (1 + 0.3 * jnp.sin(separation.sum(1)[:, None] * jnp.arange(1.0, 26) / 5))


def charges(positions):
    """The same up to rank 0, which compiles fast."""
    return flexible(positions)[:, :1]


def test_closed_forms():
    """Stone's table of T for two sites on the z axis, R = R_B - R_A along +z."""
    along = {(f"q{i}0", f"q{j}0"): (-1) ** j * comb(i + j, i) for i, j in product(range(5), repeat=2)}
    table = {
        **along,
        ("q11c", "q11c"): 1,
        ("q11s", "q11s"): 1,
        ("q21c", "q21c"): -4,
        ("q22s", "q22s"): 1,
        ("q11c", "q21c"): -(3**0.5),
    }
    distance = 5.0
    positions = np.array([[0.3, -1.0, 0.2], [0.3, -1.0, 0.2 + distance]])
    moments = np.array([[np.eye(25)[NAMES.index(name)] for name in pair] for pair in table])
    with jax.enable_x64(True):
        found = jax.vmap(lambda q: in_hartree(positions, q, [0, 1]))(moments)
    expected = [value / distance ** (int(a[1]) + int(b[1]) + 1) for (a, b), value in table.items()]
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def derivatives_of_inverse_distance(r, order):
    """d^(i+j+k) (1/r) / dx^i dy^j dz^k for i + j + k <= order, by the recursion of Hermite Coulomb integrals."""
    start = {
        (m, (0, 0, 0)): (-1) ** m * prod(range(2 * m - 1, 0, -2)) / np.linalg.norm(r) ** (2 * m + 1) for m in range(order + 1)
    }
    for total in range(1, order + 1):
        for t in product(range(total + 1), repeat=3):
            if sum(t) == total:
                axis = next(a for a in range(3) if t[a])
                once = tuple(n - (a == axis) for a, n in enumerate(t))
                twice = tuple(n - 2 * (a == axis) for a, n in enumerate(t))
                for m in range(order + 1 - total):
                    start[m, t] = r[axis] * start[m + 1, once] + (once[axis] and once[axis] * start[m + 1, twice])
    return {t: value for (m, t), value in start.items() if m == 0}


def test_equals_a_double_loop_over_cartesian_tensors():
    """U = sum_ab (-1)^|a| / (a! b!) M_a M_b d^(a+b) (1/R), M_a = sum_i q_i x^a; traces drop out as 1/R is harmonic."""
    rng = np.random.default_rng(2)
    molecule = np.array([0, 0, 1, 1, 1, 2])
    centres = 6 * np.eye(3)[molecule] + rng.normal(size=(6, 3))
    points, charges = rng.normal(size=(6, 12, 3)), rng.normal(size=(6, 12))
    powers = [t for t in product(range(5), repeat=3) if sum(t) <= 4]
    cartesian = [
        {t: q @ np.prod(r**t, axis=1) / prod(map(factorial, t)) for t in powers} for r, q in zip(points, charges, strict=True)
    ]
    expected = 0.0
    for a, b in product(range(6), repeat=2):
        if molecule[a] < molecule[b]:
            slopes = derivatives_of_inverse_distance(centres[b] - centres[a], 8)
            for s, t in product(powers, repeat=2):
                both = tuple(np.add(s, t).tolist())
                expected += (-1) ** sum(s) * cartesian[a][s] * cartesian[b][t] * slopes[both]
    moments = np.einsum("ai,aik->ak", charges, solid_harmonics(points, 4))
    assert in_hartree(centres, moments, molecule) == pytest.approx(expected, rel=1e-10)


def test_point_charges_converge_to_their_multipoles():
    """Charges on spheres of radius e with the given moments up to rank 4 and none of ranks 5 and 6: error of order e^3."""
    rng = np.random.default_rng(3)
    centres, molecule = np.array([[0.0, 0, 0], [1.5, 0, 0], [3.0, 4.0, 1.0], [2.0, 5.5, 1.0]]), np.array([0, 0, 1, 1])
    moments = rng.normal(size=(4, 25))
    nodes, weights = sphere(10)
    ranks = np.array([int(name[1]) for name in NAMES])

    def with_charges(radius):
        charges = np.einsum("ak,nk,n->an", moments * (2 * ranks + 1) / radius**ranks, solid_harmonics(nodes, 4), weights)
        near, far = ((centres[molecule == m, None] + radius * nodes).reshape(-1, 3) for m in (0, 1))
        distance = np.linalg.norm(near[:, None] - far, axis=-1)
        return charges[molecule == 0].ravel() @ (1 / distance) @ charges[molecule == 1].ravel()

    exact = float(in_hartree(centres, moments, molecule))
    error = np.array([abs(with_charges(radius) - exact) for radius in (0.4, 0.2, 0.1)])
    assert np.all(error[:-1] / error[1:] > 2**2.5)
    assert error[-1] < 1e-6 * abs(exact)


@pytest.fixture(scope="module")
def cluster():
    """Energy and forces as a function of three flexible water molecules."""
    return energy_and_forces(flexible, FRAMES)


def test_forces_are_differences_of_the_energy(cluster):
    _, forces = cluster(CLUSTER)
    step, quotient = 1e-3, np.zeros_like(CLUSTER)
    for index in np.ndindex(*CLUSTER.shape):
        shift = np.zeros_like(CLUSTER)
        shift[index] = step
        one, two = ((cluster(CLUSTER - k * shift)[0] - cluster(CLUSTER + k * shift)[0]) / (2 * k * step) for k in (1, 2))
        # Richardson's extrapolation removes the quotient's own error of order h^2.
        quotient[index] = (4 * one - two) / 3
    np.testing.assert_allclose(forces, quotient, atol=1e-8 * np.abs(forces).max())


def test_invariance_and_balance(cluster):
    energy, forces = cluster(CLUSTER)
    turn = rotation(7)
    turned_energy, turned_forces = cluster((CLUSTER @ turn.T + [1.0, -2.0, 3.0])[[2, 0, 1]])
    assert turned_energy == pytest.approx(energy, rel=1e-12)
    scale = np.abs(forces).max()
    np.testing.assert_allclose(turned_forces, (forces @ turn.T)[[2, 0, 1]], atol=1e-11 * scale)
    np.testing.assert_allclose(forces.sum((0, 1)), 0, atol=1e-12 * scale)
    np.testing.assert_allclose(np.cross(CLUSTER, forces).sum((0, 1)), 0, atol=1e-11 * scale)


def test_one_molecule_has_no_electrostatics_of_its_own():
    energy, forces = energy_and_forces(charges, FRAMES)(CLUSTER[:1])
    assert energy == 0
    assert not forces.any()


def test_gradients_without_64_bit_mode_warn_and_are_right():
    exact = energy_and_forces(charges, FRAMES)(CLUSTER)[1]
    with pytest.warns(UserWarning, match="64-bit mode is off"):
        gradient = jax.grad(energy_fn(charges, FRAMES))(jnp.asarray(CLUSTER, dtype=jnp.float32))
    np.testing.assert_allclose(-gradient, exact, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("positions", [CLUSTER[0], CLUSTER[:, :2]])
def test_bad_positions_get_a_sentence(cluster, positions):
    with pytest.raises(ValueError, match=r"expected positions of shape \(molecules, 3, 3\)"):
        cluster(positions)
