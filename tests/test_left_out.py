"""Residuals of geometries left out are those of fits without them, with their covariances."""

from dataclasses import replace

import numpy as np
import pytest

from iqagp_jax import energy_and_forces, energy_variance, fit_gp, force_variance
from iqagp_jax.families.gp import left_out
from iqagp_jax.families.gp.left_out import LeftOut
from iqagp_jax.families.gp.teach import Fitted


def test_blocks_of_the_inverse_are_the_textbook_s(monkeypatch):
    """In stripes of few geometries, of different sizes, one without any observation."""
    monkeypatch.setattr(left_out, "WIDTH", 10)
    rng = np.random.default_rng(0)
    sizes = np.array([3, 1, 4, 0, 5, 9, 2, 6, 5, 3])
    ends, m = np.cumsum(sizes), sizes.sum()
    root, y = rng.normal(size=(m, m)), rng.normal(size=m)
    covariance = root @ root.T + np.eye(m)
    residual, blocks = left_out.left_out(np.linalg.cholesky(covariance), y, sizes)
    for end, size, block in zip(ends, sizes, blocks, strict=True):
        own, others = np.arange(end - size, end), np.setdiff1d(np.arange(m), np.arange(end - size, end))
        known = np.linalg.solve(covariance[np.ix_(others, others)], covariance[np.ix_(others, own)])
        np.testing.assert_allclose(residual[own], y[own] - y[others] @ known, rtol=1e-9)
        np.testing.assert_allclose(block, covariance[np.ix_(own, own)] - covariance[np.ix_(own, others)] @ known, rtol=1e-8)


@pytest.mark.parametrize("targets", [("energy", "forces"), ("energy",)])
def test_a_fit_without_a_geometry_is_off_by_its_residual(dataset, targets):
    """The variance, too, but for the noise of labels and a signal variance that is all data's."""
    few = dataset[:7]
    prior = Fitted.of(fit_gp(few, targets=targets, max_steps=0, noise=1e-4))
    found = LeftOut.of(prior.add(few))
    without = prior.add(few[np.arange(7) != 3]).model
    scale = prior.add(few).model.signal_variance[0] / without.signal_variance[0]
    energy, forces = energy_and_forces(without)(few.positions[3:4])
    residual, sigma = found.of_geometries("energy")
    noise = scale * without.noise_variance
    np.testing.assert_allclose(residual[3], abs(few.energy[3] - energy[0]), rtol=1e-6)
    np.testing.assert_allclose(sigma[3] ** 2, scale * energy_variance(without)(few.positions[3:4])[0] + noise[0], rtol=1e-6)
    residual, sigma = found.of_geometries("forces")
    if "forces" not in targets:
        assert np.isnan(residual).all() and np.isnan(sigma).all()
        return
    np.testing.assert_allclose(residual[3], np.sqrt(np.mean((few.forces[3] - forces[0]) ** 2)), rtol=1e-5)
    variance = scale * force_variance(without)(few.positions[3:4])[0].ravel() + noise[1:]
    np.testing.assert_allclose(sigma[3] ** 2, variance.mean(), rtol=1e-5)


def test_observations_that_are_missing_are_no_residuals(dataset):
    few = replace(dataset[:6], energy=np.where(np.arange(6) == 5, np.nan, dataset.energy[:6]))
    found = LeftOut.of(Fitted.of(fit_gp(few, targets=("energy", "forces"), max_steps=0)).add(few))
    assert len(found.residual) == 6 * 13 - 1 and [len(block) for block in found.covariance] == 5 * [13] + [12]
    assert np.isnan(found.of_geometries("energy")[0]).tolist() == 5 * [False] + [True]
