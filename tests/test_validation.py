from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from scipy.stats import spearmanr

from iqagp_jax import energy_and_forces, fit_gp, validate
from iqagp_jax.plots import likelihood_trace, predicted_against_true, s_curve
from iqagp_jax.units import KCAL_MOL
from iqagp_jax.validation import predict, spearman


def test_errors_are_those_of_the_predictions(model, test_set):
    result = validate(model, test_set)
    energies, forces = energy_and_forces(model)(test_set.positions)
    error = (energies - test_set.energy) / KCAL_MOL
    assert result.energy.mae == pytest.approx(np.abs(error).mean())
    assert result.energy.rmse == pytest.approx(np.sqrt(np.mean(error**2)))
    assert result.energy.max == pytest.approx(np.abs(error).max())
    assert result.forces.mae == pytest.approx(np.abs(forces - test_set.forces).mean() / KCAL_MOL)
    assert list(result.atomic_energies) == ["O1", "C2", "H3", "H4"]


def test_atomic_energies_that_were_not_learned_are_not_judged(test_set):
    learned_molecule = fit_gp(test_set, targets=("energy",), max_steps=0)
    assert test_set.atomic_energies is not None
    assert validate(learned_molecule, test_set).atomic_energies is None
    assert len(s_curve(test_set, predict(learned_molecule, test_set.positions)).axes[0].lines) == 2


def test_what_has_no_label_is_not_judged(model, test_set):
    nothing = np.full(len(test_set), np.nan)
    forces_only = replace(test_set, energy=nothing, atomic_energies=np.full_like(test_set.atomic_energies, np.nan))
    predictions = predict(model, test_set.positions)
    result = validate(model, forces_only, predictions)
    assert result.energy is result.atomic_energies is result.energy_calibration is None
    assert result.forces == validate(model, test_set, predictions).forces
    for picture in (s_curve, predicted_against_true):
        picture(forces_only, predictions).savefig(BytesIO())
    assert validate(model, test_set[:1]).energy_calibration.rank_correlation is None


def test_an_offset_is_not_forgiven(model, test_set):
    shifted = replace(test_set, energy=test_set.energy + KCAL_MOL, atomic_energies=None)
    assert validate(model, shifted).energy.mae == pytest.approx(1.0, abs=0.3)


def test_calibration_of_a_perfect_gaussian(model, test_set):
    predictions = predict(model, test_set.positions)
    sigma = np.sqrt(predictions.variance)
    drawn = predictions.energy + sigma * np.tile([0.5, 1.5, 2.5], 10)
    result = validate(model, replace(test_set, energy=drawn, atomic_energies=None), predictions)
    assert result.energy_calibration.within_one_sigma == pytest.approx(1 / 3)
    assert result.energy_calibration.within_two_sigma == pytest.approx(2 / 3)


def test_spearman_is_scipys():
    a, b = np.random.default_rng(0).normal(size=(2, 50))
    assert spearman(a, a + b) == pytest.approx(spearmanr(a, a + b).statistic)


def test_other_atoms_get_a_sentence(model, test_set):
    with pytest.raises(ValueError, match="expected the atoms O C H H of the model, found N C H H"):
        validate(model, replace(test_set, species=("N", "C", "H", "H")))


def test_pictures_hold_every_point(model, test_set):
    predictions = predict(model, test_set.positions)
    energies = predicted_against_true(test_set, predictions).axes[0].lines[1]
    assert len(energies.get_xdata()) == len(test_set)
    assert len(s_curve(test_set, predictions).axes[0].lines) == 4 + 1 + 1
    assert len(likelihood_trace(model).axes[0].lines) == 4
