from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import make_dataset

from iqagp_jax import fit, fit_gp
from iqagp_jax.fit import DEFAULT_KERNEL, KERNELS, default_targets
from iqagp_jax.means import CONSTANTS, constant_mean
from iqagp_jax.symmetry import permutations


def test_likelihood_rises_for_every_atom(model):
    trace = np.asarray(model.trace)
    assert (trace.max(0) > trace[0]).all()


def test_hyperparameters_are_a_maximum(dataset):
    """Moving one length scale by 5% either way from the optimum lowers the likelihood."""
    from iqagp_jax import gp
    from iqagp_jax.kernels import Matern52

    fitted = fit_gp(dataset, "inverse-distances", prior_mean="mf1", max_steps=200, targets=("atomic_energies",))
    with jax.enable_x64(True):
        best = jax.numpy.asarray(fitted.kernel.lengthscale[0])

        def likelihood(lengthscale):
            covariance = gp.covariance_matrix(Matern52(lengthscale), fitted.train_features[0], fitted.noise)
            return float(gp.log_likelihood(covariance, fitted.residual[0], True))

        at_best = likelihood(best)
        for d in range(len(best)):
            for factor in (0.95, 1.05):
                assert likelihood(best.at[d].multiply(factor)) < at_best + 0.05


@pytest.mark.parametrize("name", CONSTANTS)
def test_prior_means_are_their_formulas(name):
    energies = np.array([[1.0, 5.0], [3.0, 6.0], [100.0, 50.0]])
    thermal = np.array([True, True, False])
    found = constant_mean(name, energies, thermal, ("H", "O"), {"H": -13.0, "O": -2000.0}).values
    expected = {
        "zero": [0, 0],
        "min": [1, 5],
        "mf1": [2, 5.5],
        "mf2": [3, 6],
        "mf3": [5, 7],
        "mf4": [-13, -2000],
        "mf5": [13, 11],
    }[name]
    np.testing.assert_allclose(found, expected)


def test_far_away_the_model_is_its_prior_mean(model, dataset):
    from iqagp_jax import atomic_energies

    np.testing.assert_allclose(atomic_energies(model, dataset.positions[0] * 5), model.mean.values, rtol=1e-3)


def test_first_n_training_frames_are_used(dataset):
    assert fit_gp(dataset, n_train=20, max_steps=0).n_train == 20


def test_stored_training_split_is_used():
    parts = [make_dataset(12, 1, "train"), make_dataset(5, 2, "test_500K")]
    joined = parts[0].__class__(
        parts[0].species,
        *(np.concatenate([getattr(p, k) for p in parts]) for k in ("positions", "energy", "forces", "atomic_energies")),
        origin={k: np.concatenate([p.origin[k] for p in parts]) for k in parts[0].origin},
    )
    assert fit_gp(joined, max_steps=0).n_train == 12


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"features": "soap"}, "expected features among inverse-distances, alf"),
        ({"kernel": "cosine"}, "expected a kernel among"),
        ({"features": "alf", "kernel": "matern52"}, "would tear the angles"),
        ({"prior_mean": "mf6"}, "expected a prior mean among"),
        ({"n_train": 1000}, "expected between 2 and 80 training geometries"),
        ({"noise": 0.0}, "expected a noise between 0 and 1"),
        ({"targets": ()}, "expected targets among"),
        ({"n_hyper": 10}, "expected n_hyper where atomic energies alone"),
    ],
)
def test_bad_options_get_a_sentence(dataset, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        fit_gp(dataset, **options)


def test_missing_free_atoms_get_a_sentence(dataset):
    with pytest.raises(ValueError, match="needs the free-atom energies of C, H, O"):
        fit_gp(replace(dataset, free_atoms={}), prior_mean="mf4")


def test_missing_atomic_energies_get_a_sentence(dataset):
    with pytest.raises(ValueError, match="expected a dataset with atomic_energies"):
        fit_gp(replace(dataset, atomic_energies=None), targets=("atomic_energies",))


def test_duplicate_geometries_without_noise_get_a_sentence(dataset):
    doubled = dataset[np.zeros(40, dtype=int)]
    with pytest.raises(ValueError, match="not positive definite"):
        fit_gp(doubled, "inverse-distances", prior_mean="mf2", max_steps=0, noise=1e-17, targets=("atomic_energies",))


def test_defaults_learn_what_there_is(dataset):
    """Atomic energies and forces, with symmetry, where they are; else what is left."""
    few = dataset[:4]
    fitted = fit_gp(few, max_steps=0)
    assert fitted.targets == ("atomic_energies", "energy", "forces")
    np.testing.assert_array_equal(fitted.permutations, permutations(few.species, fitted.reference))
    assert len(fit_gp(few, max_steps=0, symmetry=False).permutations) == 1
    assert dict(fitted.provenance)["prior_mean"] == "mf5+born-mayer"
    local = fit_gp(few, "alf", max_steps=0, targets=("atomic_energies",))
    assert dict(local.provenance)["prior_mean"] == "mf5"
    nothing = np.full_like(few.atomic_energies, np.nan)
    assert default_targets(replace(few, atomic_energies=nothing)) == ("energy", "forces")
    assert default_targets(replace(few, forces=None)) == ("atomic_energies",)
    assert default_targets(replace(few, forces=None, atomic_energies=None)) == ("energy",)
    assert default_targets(few, "cg") == ("energy", "forces")


def test_more_observations_than_fit_into_a_minute_are_left_out_and_told(dataset, monkeypatch):
    per_geometry = 4 * len(dataset.species)
    monkeypatch.setattr(fit, "MOST", 5 * per_geometry + 1)
    with pytest.warns(UserWarning, match="from the first 5 of 80 training geometries"):
        assert fit_gp(dataset, max_steps=0).n_train == 5
    assert fit_gp(dataset, n_train=6, max_steps=0).n_train == 6


def test_default_kernels_exist():
    assert set(DEFAULT_KERNEL.values()) <= set(KERNELS)
