import inspect
from dataclasses import fields, replace

import jax
import numpy as np
import pytest
from conftest import make_dataset

from iqagp_jax import fit_gp, leave_one_out
from iqagp_jax.families.gp import compare, problem, regression
from iqagp_jax.families.gp.fit import fit_again
from iqagp_jax.families.gp.kernels import Matern52
from iqagp_jax.families.gp.means import CONSTANTS, constant_mean
from iqagp_jax.families.gp.options import GPOptions, default_targets
from iqagp_jax.system.symmetry import permutations


def test_likelihood_rises_for_every_atom(model):
    trace = np.asarray(model.trace)
    assert (trace.max(0) > trace[0]).all()


def test_hyperparameters_are_a_maximum(dataset):
    """Moving one length scale by 5% either way from the optimum lowers the likelihood."""
    fitted = fit_gp(dataset, "inverse-distances", prior_mean="mf1", max_steps=200, targets=("atomic_energies",))
    with jax.enable_x64(True):
        best = jax.numpy.asarray(fitted.kernel.lengthscale[0])

        def likelihood(lengthscale):
            covariance = regression.covariance_matrix(Matern52(lengthscale), fitted.train_features[0], fitted.noise)
            return float(regression.log_likelihood(covariance, fitted.residual[0], True))

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
        ({"kernel": "cosine"}, "expected kernel among"),
        ({"features": "alf", "kernel": "matern52"}, "would tear the angles"),
        ({"prior_mean": "mf6"}, "expected a prior mean among"),
        ({"n_train": 1000}, "expected between 2 and 80 training geometries"),
        ({"noise": 0.0}, "expected a noise between 0 and 1"),
        ({"targets": ()}, "expected targets among"),
        ({"n_hyper": 10}, "expected n_hyper where atomic energies alone"),
        ({"n_hyper": 1}, "expected n_hyper of at least 2"),
        ({"targets": "forces"}, "expected a tuple of targets, found the word 'forces'"),
        ({"kernel": "rbf-periodic"}, "expected a kernel of one length scale for inverse distances"),
        ({"mirror": True}, "expected mirror=True with features 'alf' only"),
        ({"n_train": 4, "targets": ("atomic_energies",), "loss": "hold-out"}, "expected at least 5 points"),
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
    assert fitted.made_by.options.prior_mean == "mf5+born-mayer"
    local = fit_gp(few, "alf", max_steps=0, targets=("atomic_energies",))
    assert local.made_by.options.prior_mean == "mf5"
    nothing = np.full_like(few.atomic_energies, np.nan)
    assert default_targets(replace(few, atomic_energies=nothing)) == ("energy", "forces")
    assert default_targets(replace(few, forces=None)) == ("atomic_energies",)
    assert default_targets(replace(few, forces=None, atomic_energies=None)) == ("energy",)
    assert default_targets(few, "cg") == ("energy", "forces")
    split = replace(few, atomic_energies=few.atomic_energies.copy(), origin={"split": np.array(["train"] * 3 + ["test"])})
    split.atomic_energies[:3] = np.nan
    assert default_targets(split) == ("energy", "forces")


def test_the_first_geometries_may_lack_atomic_energies(dataset):
    late = replace(dataset[:8], atomic_energies=dataset.atomic_energies[:8].copy())
    late.atomic_energies[:4] = np.nan
    model = fit_gp(late, n_train=4, max_steps=0)
    shares = model.mean(late.positions[0] * 100).sum()
    assert shares == pytest.approx(
        fit_gp(replace(late, atomic_energies=None), n_train=4, max_steps=0).mean(late.positions[0] * 100).sum()
    )
    with pytest.raises(ValueError, match="expected energies for the prior mean mf5, found none in the training geometries"):
        fit_gp(replace(late, energy=np.full(8, np.nan)), n_train=4, max_steps=0, targets=("forces",))


def test_a_noise_may_be_given_by_name(dataset):
    options = {"targets": ("atomic_energies",), "max_steps": 0}
    models = [fit_gp(dataset[:10], noise=noise, **options) for noise in (1e-7, {"atomic_energies": 1e-7})]
    np.testing.assert_array_equal(models[0].weights, models[1].weights)


def test_fitting_again_keeps_a_noise_that_was_given(dataset):
    noise = {"energy": 1e-5, "forces": 1e-4}
    model = fit_gp(dataset[:4], targets=("energy", "forces"), noise=noise, max_steps=0)
    assert fit_again(model, dataset[:5]).noise == model.noise == (1e-5, 1e-4)
    chosen = fit_gp(dataset[:4], targets=("energy", "forces"), max_steps=0)
    assert [m.made_by.options.noise for m in (model, chosen)] == [tuple(noise.items()), None]


def test_copies_are_told_and_not_counted(dataset):
    model = fit_gp(dataset[:8], "alf", targets=("atomic_energies",), mirror=True, max_steps=0)
    assert model.n_train == 8 and model.weights.shape[1] == 16
    with pytest.raises(ValueError, match="expected a model without mirrored or permuted copies"):
        leave_one_out(model)
    with pytest.raises(ValueError, match="expected a model without mirrored or permuted copies"):
        fit_again(model, dataset[:8])


def test_prior_means_are_compared_by_likelihoods_of_the_points_seen(dataset):
    options = {"targets": ("atomic_energies",), "max_steps": 0}
    few = compare.compare_means(dataset[:10], ["mf1"], **options)["mf1"]
    assert compare.compare_means(dataset, ["mf1"], n_hyper=10, **options)["mf1"] == pytest.approx(few, rel=0.2)
    with pytest.raises(ValueError, match="expected a likelihood to compare prior means by"):
        compare.compare_means(dataset, ["mf1"], loss="hold-out", **options)


def test_more_observations_than_fit_into_a_minute_are_left_out_and_told(dataset, monkeypatch):
    per_geometry = 4 * len(dataset.species)
    monkeypatch.setattr(problem, "MOST", 5 * per_geometry + 1)
    with pytest.warns(UserWarning, match="from the first 5 of 80 training geometries"):
        assert fit_gp(dataset, max_steps=0).n_train == 5
    assert fit_gp(dataset, n_train=6, max_steps=0).n_train == 6


def test_options_are_told_and_others_refused(dataset):
    names = list(inspect.signature(fit_gp).parameters)
    assert names[:9] == ["dataset", "features", "kernel", "prior_mean", "n_train", "noise", "max_steps", "n_hyper", "mirror"]
    assert names[-2:] == ["base", "progress"] and set(names[1:-2]) == {f.name for f in fields(GPOptions)}
    with pytest.raises(TypeError, match=r"expected options among features, kernel, .* patience, .*, found steps"):
        fit_gp(dataset, steps=3)
    with pytest.raises(TypeError, match="found features twice"):
        fit_gp(dataset, "alf", features="alf")


@pytest.mark.parametrize("features", ["inverse-distances", "alf"])
@pytest.mark.parametrize("targets", [None, ("atomic_energies",), ("energy",)])
def test_resolved_options_leave_nothing_open_and_stay(features, targets, dataset):
    resolved = GPOptions(features, targets=targets).resolved(dataset)
    assert None not in (resolved.kernel, resolved.prior_mean, resolved.targets, resolved.symmetry)
    assert resolved.resolved(dataset) == resolved
