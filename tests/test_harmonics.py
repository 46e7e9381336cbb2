"""Solid harmonics against SciPy's complex ones, and moments against the charges that have them."""

import jax
import numpy as np
import pytest
from conftest import rotation
from scipy.special import sph_harm_y

from iqagp_jax.system.harmonics import component_names, rotated, solid_harmonics, sphere, translated

RNG = np.random.default_rng(0)
POINTS, CHARGES = RNG.normal(size=(40, 3)), RNG.normal(size=40)


def stone(name, points):
    """One component at points (n, 3) by Stone's definition: R_lmc + i R_lms = (-1)^m sqrt(2) R_lm for m > 0."""
    rank, m = int(name[1]), int(name[2])
    r = np.linalg.norm(points, axis=1)
    theta, phi = np.arccos(points[:, 2] / r), np.arctan2(points[:, 1], points[:, 0])
    racah = np.sqrt(4 * np.pi / (2 * rank + 1)) * r**rank * sph_harm_y(rank, m, theta, phi)
    part = racah.imag if name.endswith("s") else racah.real
    return part if m == 0 else (-1) ** m * np.sqrt(2) * part


def test_harmonics_are_stones():
    expected = np.stack([stone(name, POINTS) for name in component_names(8)], axis=1)
    np.testing.assert_allclose(solid_harmonics(POINTS, 8), expected, atol=1e-11)
    with jax.enable_x64(True):
        np.testing.assert_allclose(jax.jit(solid_harmonics, static_argnums=1)(POINTS, 8), expected, atol=1e-11)


def test_quadrature_is_exact_to_its_degree_and_no_further():
    nodes, weights = sphere(8)
    means = weights @ solid_harmonics(nodes, 10)
    np.testing.assert_allclose(means[:81], np.eye(1, 81)[0], atol=1e-14)
    assert np.abs(means[81:]).max() > 0.01


@pytest.mark.parametrize("max_rank", [0, 1, 4, 5])
def test_moments_turn_and_move_with_their_charges(max_rank):
    moments = CHARGES @ solid_harmonics(POINTS, max_rank)
    turns = np.stack([rotation(1), -rotation(2)])
    for turn, found in zip(turns, rotated(np.stack([moments, moments]), turns), strict=True):
        np.testing.assert_allclose(found, CHARGES @ solid_harmonics(POINTS @ turn.T, max_rank), atol=1e-11)
    shift = np.array([1.0, -0.5, 2.0])
    expected = CHARGES @ solid_harmonics(POINTS + shift, max_rank)
    np.testing.assert_allclose(translated(moments, shift), expected, atol=1e-11 * np.abs(expected).max())


def test_a_wrong_number_of_moments_gets_a_sentence():
    with pytest.raises(ValueError, match=r"expected 1, 4, 9, 16 or 25 moments .* found 24"):
        rotated(np.zeros((3, 24)), np.eye(3))
