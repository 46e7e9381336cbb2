"""Variances in the light of geometries left out, and far from all others."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy.sparse.csgraph import minimum_spanning_tree

from iqagp_jax import energy_variance, fit_gp, force_variance, load_model, save_model
from iqagp_jax.families.gp import error_scale, joint
from iqagp_jax.families.gp.error_scale import ErrorScale, widest_gap
from iqagp_jax.families.gp.teach import Fitted


@pytest.fixture(scope="module")
def learned(dataset):
    return fit_gp(dataset[:20], targets=("energy", "forces"), max_steps=0, symmetry=False)


def test_the_widest_gap_is_the_longest_edge_of_the_shortest_tree():
    rng = np.random.default_rng(0)
    positions, radii = rng.normal(size=(4, 9, 3)), 1 + rng.random((9, 9))
    radii = radii + radii.T
    distances = np.linalg.norm(positions[:, :, None] - positions[:, None], axis=-1) / radii
    expected = [minimum_spanning_tree(d).toarray().max() for d in distances]
    np.testing.assert_allclose(widest_gap(radii, positions), expected, rtol=1e-6)


def test_factor_and_power_are_those_of_the_errors():
    rng = np.random.default_rng(0)
    sigma = np.exp(rng.normal(size=4000))
    factor, power, unit, tested = error_scale._fitted(2 * sigma**1.3 * rng.normal(size=4000), sigma)
    assert power == pytest.approx(1.3, abs=0.02)
    assert factor * unit ** (1 - power) == pytest.approx(2, rel=0.06)
    assert np.mean(sigma < tested) == pytest.approx(0.9, abs=1e-3)
    assert error_scale._fitted(np.ones(5), np.ones(5))[:3] == (1.0, 1.0, 1.0)


def test_sigma_grows_faster_beyond_what_was_tested():
    scale = ErrorScale(np.full(3, 2.0), np.ones(3), np.ones(3), np.full(3, 4.0), np.ones((2, 2)), np.array(1.0))
    together = np.array([[[0.0, 0, 0], [1.0, 0, 0]]] * 3)
    found = scale.variance("energy", np.array([1.0, 16.0, 256.0]), np.full(3, 1e6), together)
    np.testing.assert_allclose(found, [4.0, 64.0, 4096.0], rtol=1e-6)


def test_a_model_keeps_its_scale(learned, test_set, tmp_path):
    """Its file, and one that was taught more; the covariance of energies is the variances'."""
    scale = learned.joint.error_scale
    assert isinstance(scale, ErrorScale) and not np.allclose(scale.factor[1:], 1)
    save_model(learned, tmp_path / "m.safetensors")
    read = load_model(tmp_path / "m.safetensors")
    for of in (energy_variance, force_variance):
        np.testing.assert_array_equal(of(read)(test_set.positions[:3]), of(learned)(test_set.positions[:3]))
    taught = Fitted.of(learned).add(test_set[:20])
    np.testing.assert_array_equal(taught.model.joint.error_scale.factor, scale.factor)
    variance = np.diag(taught.energy_covariance(test_set.positions[20:23]))
    np.testing.assert_allclose(variance, energy_variance(taught.model)(test_set.positions[20:23]), rtol=1e-4)


def test_the_variance_is_the_prior_s_where_an_atom_has_left(learned):
    far = np.repeat(learned.reference[None], 2, axis=0)
    far[:, 3] += np.array([[4.0], [8.0]]) * far[0, 3] / np.linalg.norm(far[0, 3])
    with jax.enable_x64(True):
        seen = learned.see(far)
        prior = np.diag(joint.covariance(learned.process, seen, seen, ("energy",))[:, 0, :, 0])
    np.testing.assert_allclose(energy_variance(learned)(far), prior, rtol=1e-6)
    own = replace(learned, joint=replace(learned.joint, error_scale=None))
    assert (energy_variance(own)(far) < 0.9 * prior).all()
