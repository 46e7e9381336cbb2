"""Labels that are not their geometry's are named, and left out by `robust`; right ones are not."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import pair_energies, pair_forces

from iqagp_jax import Dataset, energy_and_forces, fit_gp
from iqagp_jax.families.gp import wrong_labels as module
from iqagp_jax.families.gp.teach import Fitted
from iqagp_jax.families.gp.wrong_labels import without, wrong_labels

BOTH = ("energy", "forces")


@pytest.fixture(scope="module")
def prior(dataset):
    return Fitted.of(fit_gp(dataset[:10], targets=BOTH, max_steps=0, symmetry=False))


def spoiled(dataset, how, frames):
    """With wrong labels of ``frames``."""
    energy, forces = dataset.energy.copy(), dataset.forces.copy()
    if how == "shifted":
        energy[frames] += 1.0
    elif how == "exchanged":
        energy[frames] = energy[np.roll(frames, 1)]
    else:
        forces[frames] = forces[np.array(frames) + 1]
    return replace(dataset, energy=energy, forces=forces)


def named(found):
    return [(label.geometry, label.target) for label in found]


@pytest.mark.parametrize("how", ["shifted", "exchanged", "forces"])
@pytest.mark.parametrize("frames", [[3, 20], [1, 5, 9, 13]])
def test_wrong_labels_are_found_and_no_others(dataset, prior, how, frames):
    found = wrong_labels(prior.add(spoiled(dataset, how, frames)))
    assert named(found) == [(k, "forces" if how == "forces" else "energy") for k in frames]
    assert all(label.residual > module.FAR * label.sigma for label in found)


def test_right_labels_are_not_wrong(dataset, prior):
    """Not those far from all others either: geometries that are three times as distorted."""
    rng = np.random.default_rng(0)
    positions = dataset.positions[:4] + 0.2 * rng.normal(size=(4, 4, 3))
    energy = np.array([pair_energies(r).sum() for r in positions])
    far = Dataset(dataset.species, positions, energy, np.array([pair_forces(r) for r in positions]))
    assert wrong_labels(prior.add(dataset).add(far)) == ()


def test_few_labels_are_not_judged(dataset, prior):
    assert wrong_labels(prior.add(spoiled(dataset[: module.ENOUGH - 1], "shifted", [3]))) == ()


def test_atomic_energies_take_their_sum_along(dataset):
    label = module.WrongLabel(3, "atomic_energies", 1.0, 0.1, 10.0)
    left = without(dataset, (label, module.WrongLabel(5, "forces", 1.0, 0.1, 10.0)))
    assert np.flatnonzero(np.isnan(left.energy)).tolist() == [3]
    assert np.isnan(left.atomic_energies[3]).all() and np.isfinite(left.forces[3]).all() and np.isnan(left.forces[5]).all()
    assert np.isfinite(dataset.energy).all()


def test_labels_that_were_left_out_stay_out(dataset, prior):
    """Of a model that is taught more, all labels are its own."""
    wrong = [module.WrongLabel(k, target, 1.0, 0.1, 10.0) for k, target in ((3, "forces"), (5, "energy"))]
    missing = without(dataset[:20], wrong)
    seen = module.as_seen(prior.add(missing).model, dataset[:20])
    np.testing.assert_array_equal(seen.energy, missing.energy)
    np.testing.assert_array_equal(seen.forces, missing.forces)


def test_a_fit_warns_and_robust_leaves_them_out(dataset, test_set):
    few = dataset[:50]
    wrong, options = (
        replace(few, energy=few.energy + 0.1 * (np.arange(50) == 25)),
        {"targets": BOTH, "max_steps": 0, "symmetry": False},
    )
    sentence = r"predict: energy of geometry 25 \(.* eV, .* expected\)"
    with pytest.warns(UserWarning, match=sentence + ".*robust=True"):
        trusting = fit_gp(wrong, **options)
    with pytest.warns(UserWarning, match=sentence + ".*they are left out"):
        robust = fit_gp(wrong, robust=True, **options)
    assert trusting.observed.sum() == robust.observed.sum() + 1 == 50 * 13
    errors = [np.abs(energy_and_forces(m)(test_set.positions)[0] - test_set.energy).mean() for m in (trusting, robust)]
    assert errors[1] < 0.8 * errors[0]
    with pytest.raises(ValueError, match="expected robust=True for forces or energies of the molecule"):
        fit_gp(few, robust=True, solver="cg", targets=BOTH)
