"""Internal coordinates against ASE's, held by NumPy and by JAX."""

import jax
import numpy as np
import pytest
from ase import Atoms

from iqagp_jax.system.coordinates import angle, dihedral, distance, transfer

POSITIONS = np.random.default_rng(0).normal(size=(5, 3, 4, 3))


def by_ase(name, atoms, positions):
    """Of positions (F, R, 4, 3), in angstrom and degrees."""
    flat = [getattr(Atoms("C4", r), f"get_{name}")(*atoms) for r in positions.reshape(-1, 4, 3)]
    return np.reshape(flat, positions.shape[:2])


@pytest.mark.parametrize("held_by", [np.asarray, jax.numpy.asarray])
def test_they_are_those_of_ase(held_by, x64):
    positions = held_by(POSITIONS)
    np.testing.assert_allclose(distance(positions, 0, 2), by_ase("distance", (0, 2), POSITIONS), atol=1e-10)
    np.testing.assert_allclose(np.degrees(angle(positions, 1, 0, 2)), by_ase("angle", (1, 0, 2), POSITIONS), atol=1e-9)
    turned = np.degrees(dihedral(positions, 2, 0, 1, 3))  # ASE's are from 0 to 360
    np.testing.assert_allclose(turned % 360, by_ase("dihedral", (2, 0, 1, 3), POSITIONS), atol=1e-9)
    expected = by_ase("distance", (3, 1), POSITIONS) - by_ase("distance", (0, 1), POSITIONS)
    np.testing.assert_allclose(transfer(positions, 3, 1, 0), expected, atol=1e-10)
    assert all(isinstance(x, type(positions)) for x in (distance(positions, 0, 2), dihedral(positions, 2, 0, 1, 3)))


def test_slopes_are_finite_in_a_straight_line(x64):
    line = np.arange(4.0)[:, None] * np.array([1.0, 0.0, 0.0])
    for coordinate, atoms in ((distance, (0, 1)), (angle, (0, 1, 2)), (dihedral, (0, 1, 2, 3)), (distance, (1, 1))):
        assert np.isfinite(jax.grad(coordinate)(line, *atoms)).all()
