from dataclasses import astuple, replace
from io import BytesIO

import numpy as np
import pytest
from conftest import make_dataset, rotation
from scipy.stats import spearmanr

from iqagp_jax import energy_and_forces, fit_gp, validate
from iqagp_jax.cli import models
from iqagp_jax.data.dataset import concatenate
from iqagp_jax.plots import likelihood_trace, predicted_against_true, s_curve
from iqagp_jax.units import BOHR, HARTREE, KCAL_MOL
from iqagp_jax.validation import Calibration, Predictions, check_forces, compared, predict, seen, spearman


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
    with pytest.warns(UserWarning, match="all 30 geometries are among those that the model was trained on"):
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
    assert result.energy_calibration.beyond_three_sigma == 0
    bins = result.energy_calibration.bins
    assert len(bins) == 5
    assert [b.sigma for b in bins] == sorted(b.sigma for b in bins)
    assert np.mean([b.mae for b in bins]) == pytest.approx(np.abs(drawn - predictions.energy).mean() / KCAL_MOL)


def test_bins_count_what_is_beyond_three_sigma():
    error, sigma = np.repeat([1.0, 10.0], 40), np.repeat([1.0, 2.0], 40)
    found = Calibration.of(error, sigma**2)
    assert found.beyond_three_sigma == 0.5 and [b.beyond_three_sigma for b in found.bins] == [0, 0, 0.5, 1, 1]
    assert len(Calibration.of(error[:5], sigma[:5]).bins) == 1


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


def written_to_four_decimals(positions):
    return positions.round(4)


@pytest.mark.parametrize(
    "options",
    [
        {"targets": ("energy", "forces")},
        {"targets": ("atomic_energies",)},
        {"features": "alf", "targets": ("atomic_energies",)},
        {"features": "alf", "targets": ("atomic_energies",), "mirror": True, "symmetry": True},
    ],
    ids=["joint", "inverse distances", "local frames", "copies"],
)
def test_training_geometries_are_known_again(dataset, test_set, options):
    fitted = fit_gp(dataset[:12], max_steps=0, **options)
    both = np.concatenate([dataset.positions[:12], test_set.positions[:8]])
    turned = both @ rotation(3) + 2.0
    for positions in (turned, turned * [1, 1, -1], turned[:, [0, 1, 3, 2]], written_to_four_decimals(turned)):
        assert seen(fitted, positions).tolist() == 12 * [True] + 8 * [False]
    assert not seen(fitted, both + 0.002 * np.eye(4)[:, :3]).any()


def test_training_geometries_are_left_out_of_a_test(model, dataset, test_set):
    both = concatenate([test_set[:10], dataset[:60], test_set[10:]])
    alone = validate(model, test_set)
    with pytest.warns(UserWarning, match="60 of 90 geometries are among those that the model was trained on, .* are left out"):
        found = validate(model, both)
    assert found.n_test == 30
    with pytest.warns(UserWarning, match="60 of 90 geometries"):
        again = validate(model, both, predict(model, both.positions))
    for errors in (found, again):  # but for rounding: other geometries were in the same batches
        assert astuple(errors.energy) == pytest.approx(astuple(alone.energy), rel=1e-6)
        assert astuple(errors.forces) == pytest.approx(astuple(alone.forces), rel=1e-6)


def test_potentials_without_training_geometries_know_none(test_set):
    class Nothing:
        species = test_set.species

    assert not seen(Nothing(), test_set.positions).any()


def test_forces_are_not_given_variances_where_there_are_none(few_joint, test_set):
    """They cost many times what the forces cost."""
    bare = replace(test_set[:15], forces=None, atomic_energies=None)
    asked = predict(few_joint, bare.positions, bare)
    assert asked.force_variance is None and asked.atomic_energies is None and asked.variance is not None
    np.testing.assert_allclose(asked.variance, predict(few_joint, bare.positions).variance)
    steps = []
    predict(few_joint, bare.positions, bare, lambda batches: steps.extend(batches) or batches)
    assert steps == [0]


@pytest.fixture(scope="module")
def few_joint():
    return fit_gp(make_dataset(8, seed=1), max_steps=0)


def test_captions_count_the_labels(few_joint):
    data = make_dataset(8, seed=1)
    forces = data.forces.copy()
    forces[5:] = np.nan
    data = replace(data, forces=forces, atomic_energies=None)
    assert models.counted(data) == "8 geometries, 8 with energy, 5 with forces"
    assert models.counted(replace(data, energy=np.full(8, np.nan), forces=None)) == "8 geometries, none with labels"
    assert models.symmetry_of(few_joint) == "2 permutations of equal atoms have the same energy"


@pytest.mark.parametrize(
    ("factor", "sentence"),
    [
        (-1.0, "forces are .* times those that the model predicts of the opposite sign, as gradients are; expected minus"),
        (BOHR / HARTREE, "forces are 0.019.* times those that the model predicts, as if they were in hartree/bohr"),
        (-1 / KCAL_MOL, "of the opposite sign, as gradients are, as if they were in kcal/mol/angstrom"),
    ],
)
def test_forces_in_other_units_than_the_models_are_told(test_set, factor, sentence):
    predictions = Predictions(test_set.energy, test_set.forces + 0.1)
    check_forces(test_set, predictions)  # a warning would be an error here
    with pytest.warns(UserWarning, match=sentence):
        check_forces(replace(test_set, forces=factor * test_set.forces), predictions)
    check_forces(replace(test_set, forces=factor * test_set.forces[::-1]), predictions)  # a bad model is no other unit


def test_a_label_of_another_geometry_is_named(model, test_set):
    result = validate(model, test_set)
    assert result.energy.max < 100 * result.energy.mae
    wrong = replace(test_set, energy=np.where(np.arange(len(test_set)) == 7, test_set.energy + 40.0, test_set.energy))
    with pytest.warns(UserWarning, match=r"energy of geometry 7 is \d+ kcal/mol off where .* and so are 0 others"):
        validate(model, wrong)


def test_forces_far_beyond_all_others_are_told(distance_model, test_set):
    wrong = replace(test_set, forces=test_set.forces + 20.0 * (np.arange(len(test_set)) == 7)[:, None, None])
    with pytest.warns(UserWarning, match=r"the root mean square force of geometry 7 is .* kcal/mol/angstrom off"):
        compared(distance_model, wrong, predict(distance_model, wrong.positions))
