"""A potential beneath a Gaussian process, which learns the difference."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import REFERENCE, SPECIES, cheaper, make_dataset
from typer.testing import CliRunner

from iqagp_jax import energy_and_forces, fit_gp, load_model, predictive_variance, save_model
from iqagp_jax.cli import app
from iqagp_jax.compose import Sum
from iqagp_jax.data.extxyz import save_dataset
from iqagp_jax.families.gp.fit import fit_again
from iqagp_jax.families.gp.means import Base, residuals
from iqagp_jax.families.gp.options import GPOptions
from iqagp_jax.families.gp.teach import Fitted
from iqagp_jax.families.pairs.models import BondedMorse
from iqagp_jax.potential import atomic_energies, bind, uncertainty
from iqagp_jax.system.system import System
from iqagp_jax.units import KCAL_MOL

FEW = make_dataset(6, seed=4)


@pytest.fixture(scope="module")
def base():
    """Of 40 cheap geometries, with their forces."""
    return fit_gp(cheaper(make_dataset(40, seed=3)), max_steps=10, targets=("energy", "forces"))


@pytest.fixture(scope="module")
def over(base):
    """Six dear geometries over it."""
    return fit_gp(FEW, base=base, max_steps=10)


def errors(potential, data):
    energies, forces = energy_and_forces(potential)(data.positions)
    return np.abs(energies - data.energy).mean() / KCAL_MOL, np.abs(forces - data.forces).mean() / KCAL_MOL


def test_few_dear_labels_over_many_cheap_ones(base, over, test_set):
    directly = errors(fit_gp(FEW, max_steps=10, targets=("energy", "forces")), test_set)
    found = errors(over, test_set)
    assert all(mine < 0.7 * theirs for mine, theirs in zip(found, directly, strict=True))
    assert over.base.made_by == base.made_by and over.made_by.options.prior_mean == "mf1"


def test_is_the_base_plus_what_the_process_of_the_difference_says(base, over, test_set):
    beneath, whole = energy_and_forces(base)(test_set.positions), energy_and_forces(over)(test_set.positions)
    alone = energy_and_forces(replace(over, mean=over.mean.first))(test_set.positions)
    for total, below, difference in zip(whole, beneath, alone, strict=True):
        np.testing.assert_allclose(total, below + difference, atol=1e-9)


def test_what_a_base_leaves(base):
    with jax.enable_x64(True):
        _, energy, forces = residuals(FEW, Base(base))
    below = energy_and_forces(base)(FEW.positions)
    np.testing.assert_allclose(energy, FEW.energy - below[0], atol=1e-9)
    np.testing.assert_allclose(forces, FEW.forces - below[1], atol=1e-9)


def test_variances_add(base, over):
    for of in ("energy", "forces"):
        alone = getattr(uncertainty(replace(over, mean=over.mean.first)), of)(FEW.positions)
        total, below = (getattr(uncertainty(p), of)(FEW.positions) for p in (over, base))
        np.testing.assert_allclose(total, alone + below, rtol=1e-9)


def test_a_base_that_does_not_know_its_variance_counts_as_exact():
    over = fit_gp(FEW, base=BondedMorse.of(System.of(SPECIES, REFERENCE)), max_steps=0, symmetry=False)
    alone = predictive_variance(replace(over, mean=over.mean.first))(FEW.positions)
    np.testing.assert_array_equal(predictive_variance(over)(FEW.positions), alone)


def test_the_energy_over_a_base_without_atomic_energies_is_divided(over, test_set, tmp_path):
    assert over.targets == ("energy", "forces") and over.made_by.targets == ("atomic_energies", "energy", "forces")
    found = np.array([atomic_energies(over, r) for r in test_set.positions])
    np.testing.assert_allclose(found.sum(1), energy_and_forces(over)(test_set.positions)[0], atol=1e-9)
    own = np.array([atomic_energies(over.division.atoms, r) for r in test_set.positions])
    worse, better = (np.abs(e - test_set.atomic_energies).mean() for e in (own, found))
    assert better < worse < np.abs(test_set.atomic_energies - FEW.atomic_energies.mean(0)).mean()
    save_model(over, tmp_path / "m.safetensors")
    np.testing.assert_array_equal(
        atomic_energies(load_model(tmp_path / "m.safetensors"), REFERENCE), atomic_energies(over, REFERENCE)
    )


def test_variances_of_divided_energies(over):
    known, own = uncertainty(over), uncertainty(over.division.atoms)
    w = over.division.shares
    assert w.sum() == pytest.approx(1.0)
    # The covariance of what the atoms have and of the energy, put through the formula of `Division` as a matrix.
    for k, (atoms, energy) in enumerate(zip(own.atomic_energies(FEW.positions), known.energy(FEW.positions), strict=True)):
        linear = np.hstack([np.eye(4) - w[:, None], w[:, None]])
        expected = np.diag(linear @ np.diag([*atoms, energy]) @ linear.T)
        np.testing.assert_allclose(known.atomic_energies(FEW.positions)[k], expected, rtol=1e-9)


def test_atomic_energies_over_those_of_the_base(test_set):
    base = fit_gp(cheaper(make_dataset(30, seed=3)), max_steps=0)
    over = fit_gp(FEW, base=base, max_steps=0)
    assert over.targets == ("atomic_energies", "energy", "forces") and not bind(over)[0].only_sum
    found = np.array([atomic_energies(over, r) for r in test_set.positions])
    below = np.array([atomic_energies(base, r) for r in test_set.positions])
    assert np.abs(found - test_set.atomic_energies).mean() < np.abs(below - test_set.atomic_energies).mean()
    np.testing.assert_allclose(found.sum(1), energy_and_forces(over)(test_set.positions)[0], atol=1e-9)


def test_lessons_and_another_fit_keep_the_base(base, over, test_set):
    lessons = test_set[:10]
    with jax.enable_x64(True):
        taught = Fitted.of(over).add(FEW).add(lessons).model
    again = fit_again(over, lessons)
    for model in (taught, again):
        assert model.base is not None and errors(model, test_set[10:]) < errors(over, test_set[10:])


def test_three_levels_in_one_file(over, test_set, tmp_path):
    dearest = replace(make_dataset(5, seed=8), forces=None, atomic_energies=None)
    dearest = replace(dearest, energy=dearest.energy + 1.0)
    whole = fit_gp(dearest, base=over, max_steps=0)
    assert whole.targets == ("energy",)
    energies = energy_and_forces(whole)(test_set.positions)[0]
    assert np.abs(energies - 1.0 - test_set.energy).mean() < 2 * errors(over, test_set)[0] * KCAL_MOL
    save_model(whole, tmp_path / "three.safetensors")
    back = load_model(tmp_path / "three.safetensors")
    np.testing.assert_array_equal(energy_and_forces(back)(test_set.positions)[0], energies)


def test_sums_may_be_beneath(base):
    morse = BondedMorse.of(System.of(SPECIES, REFERENCE))
    over = fit_gp(FEW, base=Sum(base, morse), max_steps=0, symmetry=False)
    assert errors(over, FEW)[0] < 0.1


def test_a_base_that_tells_equal_atoms_apart_is_told():
    frames = fit_gp(cheaper(make_dataset(20, seed=3)), "alf", max_steps=0, targets=("atomic_energies",))
    with pytest.warns(UserWarning, match="kcal/mol apart among 2 orders of equal atoms"):
        fit_gp(FEW, base=frames, max_steps=0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"targets": ("atomic_energies",)}, "expected a base that learned atomic energies"),
        ({"prior_mean": "mf4"}, "expected a prior mean of a difference, found mf4"),
        ({"base": fit_gp}, "expected a potential"),
    ],
)
def test_what_cannot_be(base, options, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        fit_gp(FEW, **{"base": base, **options})


def test_atomic_energies_that_the_data_lack_are_not_learned_over_a_base(base):
    with pytest.raises(ValueError, match="expected a dataset with atomic_energies"):
        fit_gp(replace(FEW, atomic_energies=None), base=base, targets=("atomic_energies", "energy", "forces"))


def test_a_base_of_another_molecule_or_charge(base):
    with pytest.raises(ValueError, match="expected the atoms O C H H of the model, found C O H H"):
        fit_gp(replace(FEW, species=("C", "O", "H", "H")), base=base)
    with pytest.raises(ValueError, match="expected a base of charge -2"):
        fit_gp(replace(FEW, level=replace(FEW.level, charge=-2)), base=base)


def test_options_over_a_base_are_told_before_work():
    without_forces = replace(FEW, forces=None)
    assert GPOptions().resolved(without_forces, only_sum=True).learned == ("atomic_energies", "energy")
    assert GPOptions().resolved(without_forces, only_sum=False).learned == ("atomic_energies",)


def run(*arguments, code=0):
    """What a command prints, on one line."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert (result.exit_code, type(result.exception)) == ((0, type(None)) if not code else (1, ValueError)), result.output
    return " ".join((result.output + str(result.exception)).split())


def test_command_line(tmp_path):
    low, high = tmp_path / "low.extxyz", tmp_path / "high.extxyz"
    save_dataset(cheaper(make_dataset(20, seed=3)), low)
    save_dataset(FEW, high)
    out = tmp_path / "m.safetensors"
    options = ("--max-steps", 0, "--targets", "energy,forces")
    told = run("train", low, high, "-o", out, *options)
    assert "their difference to the base: 6 geometries" in told
    assert load_model(out).base is not None
    run("train", high, "-o", tmp_path / "n.safetensors", "--base", out, *options)
    assert load_model(tmp_path / "n.safetensors").base.base is not None
    assert "expected another level of theory" in run("train", low, low, "-o", out, code=1)
