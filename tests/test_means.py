"""Prior means that know physics: their formulas, their shape, their names, their file, and how they are judged."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SPECIES, make_dataset

from iqagp_jax import fit_gp, load_model, save_model
from iqagp_jax.families.gp.compare import compare_means, too_sharp
from iqagp_jax.families.gp.means import ZBL, BornMayer, named_mean, pair_means
from iqagp_jax.units import KCAL_MOL

TOGETHER = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.2, 0.0, 0.0]])


def pair(distance):
    return np.array([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])


def test_born_mayer_is_its_formula(x64):
    # Cordero's radii: C 0.76, O 0.66
    found = BornMayer.of(("C", "O"))(pair(1.3))
    expected = 40 * KCAL_MOL * np.exp(-(1.3 - 0.8 * 1.42) / 0.2)
    np.testing.assert_allclose(found, expected / 2, rtol=3e-4)  # the core shifts the distance by 4e-5 angstrom


def test_zbl_is_the_universal_potential(x64):
    # Two carbons 1 angstrom apart, by hand: a = 0.8854 * 0.529177 / (2 * 6^0.23) = 0.155145 angstrom, x = 6.44559,
    # phi = 0.50986 * 0.0023029 + 0.28022 * 0.0745015 + 0.02817 * 0.272652 = 0.0297316
    found = ZBL.of(("C", "C"))(pair(1.0)).sum()
    np.testing.assert_allclose(found, 36 * 14.399645 * 0.0297316, rtol=5e-4)  # the core costs 2e-4


@pytest.mark.parametrize("kind", [BornMayer, ZBL])
def test_repulsions_are_finite_and_smooth_where_atoms_coincide(kind, x64):
    mean = kind.of(("C", "O", "H"))
    energy = lambda r: mean(r).sum()  # noqa: E731
    gradient, hessian = jax.grad(energy)(TOGETHER), jax.hessian(energy)(TOGETHER)
    assert energy(TOGETHER) > energy(TOGETHER + np.eye(3) * 0.3) > 0
    assert np.isfinite(gradient).all() and np.isfinite(hessian).all()
    np.testing.assert_allclose(gradient[0, 1:], 0.0, atol=1e-12)


@pytest.mark.parametrize("kind", [BornMayer, ZBL])
def test_repulsions_vanish_far_away_and_repel(kind, x64):
    mean = kind.of(("O", "H"))
    energies = jnp.array([mean(pair(d)).sum() for d in np.linspace(0.1, 6, 60)])
    assert (jnp.diff(energies) < 0).all()
    assert energies[-1] < 1e-3


def test_a_sum_has_the_constant_of_what_the_repulsion_leaves(dataset, x64):
    mean = named_mean("mf5+born-mayer", dataset)
    left = dataset.atomic_energies - jax.vmap(BornMayer.of(SPECIES))(dataset.positions)
    expected = left.max(0) + 5 * (left.max(0) - left.min(0))
    np.testing.assert_allclose(mean(100 * dataset.positions[0]), expected, rtol=1e-12)


def test_without_atomic_energies_every_atom_has_its_share(dataset, x64):
    mean = named_mean("zbl+mf1", replace(dataset, atomic_energies=None))
    predicted = jax.vmap(mean)(dataset.positions).sum(1)
    np.testing.assert_allclose(np.mean(predicted - dataset.energy), 0.0, atol=1e-9)


@pytest.mark.parametrize("name", ["mf6", "mf1+mf5", "zbl+zbl", "mf1 + zbl", ""])
def test_bad_names_get_a_sentence(dataset, name):
    with pytest.raises(ValueError, match="expected a prior mean among zero, min, mf1"):
        named_mean(name, dataset)


def test_models_with_repulsions_are_saved_and_read(dataset, tmp_path):
    few = dataset[:8]
    model = fit_gp(few, prior_mean="mf1+born-mayer+zbl", max_steps=0, targets=("energy", "forces"))
    save_model(model, tmp_path / "m.safetensors")
    back = load_model(tmp_path / "m.safetensors")
    assert back.made_by.options.prior_mean == "mf1+born-mayer+zbl"
    with jax.enable_x64(True):
        here, there = (jax.jit(jax.vmap(m.mean))(few.positions * 0.5) for m in (model, back))
    np.testing.assert_array_equal(here, there)


def test_a_wall_amid_the_data_is_warned_of():
    def wall(positions):
        # carbon and oxygen meet it about their mean distance
        return pair_means(lambda r: 0.2 * jnp.exp((1.2 - r) / 0.01), positions)

    found = compare_means(make_dataset(20, seed=3), ["mf1", wall], max_steps=1)
    assert too_sharp(found) == [wall]


def test_a_class_of_ones_own_is_told_by_its_name(dataset):
    model = fit_gp(dataset[:10], prior_mean=BornMayer.of(SPECIES), max_steps=0)
    assert model.made_by.options.prior_mean == "BornMayer"
