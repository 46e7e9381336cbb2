"""Active learning: what is chosen, that it helps, and that a stopped run goes on."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_dataset
from test_cli import iqagp
from test_verdict import Exact

from iqagp_jax import energy_and_forces, energy_variance, fit_gp, load_dataset, load_model, save_dataset, save_model, validate
from iqagp_jax.active import learn, least_variance, most_uncertain
from iqagp_jax.data.dataset import DECIMALS
from iqagp_jax.dynamics.record import Run
from iqagp_jax.families.gp.teach import Fitted
from iqagp_jax.references.xtb import XTB, relabelled
from iqagp_jax.units import KCAL_MOL
from iqagp_jax.verdict import Protocol, judge, truth

TARGETS = ("energy", "forces")


@pytest.fixture(scope="module")
def small(dataset):
    """A model of four geometries, which does not know the molecule."""
    return fit_gp(dataset, n_train=4, targets=TARGETS, prior_mean="mf5+born-mayer", max_steps=0)


def test_the_most_uncertain_given_the_others():
    """Against variances conditioned on all that were chosen, by the textbook; a twin is never chosen."""
    root = np.random.default_rng(0).normal(size=(6, 6))
    covariance = root @ root.T
    covariance = covariance[np.ix_([0, 1, 2, 3, 4, 5, 2], [0, 1, 2, 3, 4, 5, 2])]
    chosen = []
    for _ in range(4):
        cross, known = covariance[:, chosen], covariance[np.ix_(chosen, chosen)]
        chosen.append(int((np.diag(covariance) - np.einsum("ij,ji->i", cross, np.linalg.solve(known, cross.T))).argmax()))
    assert most_uncertain(covariance, 4) == chosen
    assert len(most_uncertain(np.ones((5, 5)), 3)) == 1


def test_covariance_of_energies_is_what_a_known_energy_explains(dataset, test_set):
    """Conditioned on the energy of one more geometry, variances fall by c^2 / (v + noise)."""
    four, one = dataset[:4], replace(test_set[:1], forces=np.full((1, 4, 3), np.nan))
    fitted = Fitted.of(fit_gp(four, targets=TARGETS, max_steps=0)).add(four)
    covariance = fitted.energy_covariance(test_set.positions)
    before = energy_variance(fitted.model)(test_set.positions)
    np.testing.assert_allclose(np.diag(covariance), before, rtol=1e-6, atol=1e-9 * before.max())
    added = fitted.add(one).model
    scale = added.signal_variance[0] / fitted.model.signal_variance[0]
    expected = before - covariance[0] ** 2 / (covariance[0, 0] + fitted.model.noise_variance[0])
    after = energy_variance(added)(test_set.positions) / scale
    np.testing.assert_allclose(after, expected, rtol=1e-6, atol=1e-8 * before.max())


def test_least_variance_takes_what_tells_most_about_all():
    """Of two groups and a loner the middle of the larger one first; against variances by the textbook."""
    x = np.array([0.0, 0.1, 0.2, 0.3, 5.0, 5.1, 20.0])
    covariance = np.exp(-0.5 * (x[:, None] - x) ** 2)
    first, second, third = least_variance(covariance, 3)
    assert first in (1, 2) and second in (4, 5) and third == 6
    left = [np.trace(covariance - np.outer(covariance[:, k], covariance[k]) / covariance[k, k]) for k in range(len(x))]
    assert left[first] == pytest.approx(min(left), rel=1e-9)


@pytest.fixture(scope="module")
def taught(small, dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("active")
    protocol = Protocol((300.0,), ("equilibrium", "displaced"), 2, 0.2, displacement=0.05, frames=10)
    arguments = small, dataset, out, Exact(), protocol
    return arguments, *learn(*arguments, rounds=1, per_round=8, refit=False)


def test_a_taught_model_knows_better(taught, small):
    (_, _, out, _, _), model, told = taught
    assert [row["geometries"] for row in told] == [4, 12]
    assert told[1]["de_median"] < 0.5 * told[0]["de_median"]
    hot = make_dataset(20, seed=5)
    assert validate(model, hot).energy.mae < validate(small, hot).energy.mae
    new = load_dataset(out / "round-0.extxyz")
    assert len(new) == 8 and set(new.origin["source"]) == {"active"}
    np.testing.assert_allclose(new.energy, Exact().labels(new.positions, None)[0], atol=1e-8)
    whole, learned = load_dataset(out / "dataset.extxyz"), model.train_positions
    assert len(whole) == 80 + 8
    assert {r.tobytes() for r in whole.positions[:12]} == {r.tobytes() for r in np.round(learned, DECIMALS)}
    assert not np.array_equal(whole.positions[:12], np.round(learned, DECIMALS))  # in random order
    np.testing.assert_array_equal(load_model(out / "model.safetensors").weights, model.weights)
    assert json.loads((out / "rounds.json").read_text()) == told and (out / "rounds.png").exists()


def test_it_goes_on_where_it_was_stopped(taught, monkeypatch):
    arguments, model, told = taught
    (arguments[2] / "model.safetensors").unlink()
    again, rows = learn(*arguments, rounds=1, per_round=8, refit=False)
    np.testing.assert_array_equal(again.weights, model.weights)
    assert rows == told
    with pytest.raises(ValueError, match="take another folder"):
        learn(*arguments, rounds=1, per_round=9, refit=False)


def test_what_was_taught_can_be_taught_again(taught, tmp_path):
    """From what the folder holds, where the geometries of the model come in another order."""
    (_, _, out, reference, protocol), _, told = taught
    model, dataset = load_model(out / "model.safetensors"), load_dataset(out / "dataset.extxyz")
    _, (row,) = learn(model, dataset, tmp_path, reference, replace(protocol, seed=protocol.seed + 1), rounds=0)
    assert row["geometries"] == 12
    assert row["de_median"] == pytest.approx(told[1]["de_median"], rel=1e-4)


def test_hyperparameters_can_be_fitted_again(taught, tmp_path):
    """To what was labelled too; the run goes on from the model that was made."""
    (*arguments, reference, protocol), plain, _ = taught
    arguments[2] = tmp_path
    options = {"rounds": 1, "per_round": 8}
    model, told = learn(*arguments, reference, protocol, **options)
    assert [row["geometries"] for row in told] == [4, 12]
    assert abs(np.log(model.kernel.lengthscale / plain.kernel.lengthscale)).min() > 0.01
    assert model.made_by.options.prior_mean == "mf5+born-mayer"
    assert model.targets == plain.targets and len(model.permutations) == len(plain.permutations)
    first = load_dataset(tmp_path / "dataset.extxyz")[:12]
    np.testing.assert_array_equal(np.round(model.train_positions, DECIMALS), first.positions)
    again, rows = learn(*arguments, reference, protocol, **options)
    np.testing.assert_array_equal(again.weights, model.weights)
    assert rows == told


def test_it_ends_where_no_flaw_is_found(taught, tmp_path, monkeypatch):
    """Runs too short for a good grade prove nothing, and there is nothing to learn from them either."""
    (model, dataset, _, reference, protocol), _, _ = taught

    def without_flaw(*arguments, **options):
        found = judge(*arguments, **options)
        parts = {name: replace(getattr(found, name), grade="unknown", so_far="good") for name in ("survival", "truth")}
        return replace(found, **parts)

    monkeypatch.setattr("iqagp_jax.active.judge", without_flaw)
    _, (row,) = learn(model, dataset, tmp_path, reference, protocol, rounds=1, per_round=8)
    assert row["survival"] == row["truth"] == "unknown"


def test_truth_can_wait_until_all_survive(taught, tmp_path):
    """What is found by then is the same."""
    (model, dataset, _, reference, protocol), _, told = taught
    _, rows = learn(model, dataset, tmp_path, reference, protocol, rounds=1, per_round=8, truth_last=True, refit=False)
    assert rows[0]["survival"] != "good" and rows[0]["truth"] == "unknown" and rows[0]["right"] is rows[0]["de_median"] is None
    assert rows[1] == told[1]


def test_frames_that_were_relabelled_can_be_the_lessons(taught, tmp_path, monkeypatch):
    """No others are labelled then; and the caller's clock ends the rounds."""
    monkeypatch.setattr("iqagp_jax.active.is_flawless", lambda verdict: False)
    (_, _, out, *_), model, _ = taught
    dataset = load_dataset(out / "dataset.extxyz")
    protocol, told = Protocol((100.0,), ("equilibrium",), 2, 0.05, frames=6), []
    options = {"rounds": 1, "per_round": 2, "refit": False, "learn_relabelled": True, "energy_window": 1e3}
    _, (first, *_) = learn(model, dataset, tmp_path / "all", Exact(), protocol, **options)
    lessons = load_dataset(tmp_path / "all" / "round-0.extxyz")
    run = Run.open(tmp_path / "all" / "round-0" / "model")
    replica, frame, _ = truth.choose_frames(run, 6)
    np.testing.assert_allclose(lessons.positions, run.trajectory.positions[frame, replica], atol=10.0**-DECIMALS)
    np.testing.assert_allclose(lessons.energy, Exact().labels(lessons.positions, None)[0], atol=1e-6)
    options["enough"] = lambda rows: told.extend(rows) or True
    _, rows = learn(model, dataset, tmp_path / "ended", Exact(), protocol, **options)
    assert rows == [first] == told


def test_a_call_that_goes_on_keeps_what_was_taught(taught, tmp_path, monkeypatch):
    """Also where there is no time left: rounds that were gone on from are not asked about again, nor written anew."""
    arguments, model, told = taught
    shutil.copytree(arguments[2], tmp_path / "again")
    again = arguments[0], arguments[1], tmp_path / "again", *arguments[3:]
    asked = []
    found, rows = learn(*again, rounds=1, per_round=8, refit=False, enough=lambda rows: asked.append(len(rows)) or True)
    assert rows == told and asked == [2] and json.loads((tmp_path / "again" / "rounds.json").read_text()) == told
    np.testing.assert_array_equal(found.weights, model.weights)


def test_holes_are_learned(small, dataset, tmp_path):
    protocol = Protocol((100.0,), ("equilibrium",), 1, 0.1, frames=2, scan_points=500)
    model, rows = learn(small, dataset, tmp_path, Exact(), protocol, rounds=1, per_round=2, refit=False)
    lessons = load_dataset(tmp_path / "round-0.extxyz")
    from_scans = lessons[lessons.origin["source"] == "scan"]
    assert rows[0]["shape"] == "poor" and len(from_scans) > 1 and len(lessons) - len(from_scans) == 2
    before, after = (energy_and_forces(m)(from_scans.positions)[0] for m in (small, model))
    depth = from_scans.energy - before
    assert (depth > 5 * KCAL_MOL).all() and (np.abs(from_scans.energy - after) < 0.2 * depth).all()


class TooHigh(Exact):
    """Labels that no window around the training energies holds."""

    def labels(self, positions, progress):
        energies, forces = super().labels(positions, progress)
        return energies + 1000.0, forces


def test_other_models_and_datasets_get_a_sentence(small, distance_model, dataset, test_set, tmp_path):
    with pytest.raises(ValueError, match="found one of atomic energies, which the reference"):
        learn(distance_model, dataset, tmp_path, Exact())
    protocol = Protocol((300.0,), ("equilibrium",), 1, 0.1, frames=2)
    with pytest.raises(ValueError, match="within the energy window, found none of 2"):
        learn(small, dataset, tmp_path / "window", TooHigh(), protocol, 1, 2)
    for limit in ({"energy_window": -10.0}, {"max_uncertainty": np.nan}):
        with pytest.raises(ValueError, match=r"expected .* in eV above zero, found"):
            learn(small, dataset, tmp_path / "nonsense", Exact(), protocol, 1, 2, **limit)
    with pytest.raises(ValueError, match="an uncertainty of at most 1e-06 kcal/mol, found none of"):
        learn(small, dataset, tmp_path / "sure", Exact(), protocol, 1, 2, max_uncertainty=1e-6 * KCAL_MOL)
    with pytest.raises(ValueError, match="with the 4 training geometries of the model, found one without 4 of them"):
        learn(small, test_set, tmp_path, Exact())
    unnamed = replace(small, made_by=replace(small.made_by, options=replace(small.made_by.options, prior_mean="my_wall")))
    with pytest.raises(ValueError, match="found 'my_wall'"):
        learn(unnamed, dataset, tmp_path, Exact())
    lost = replace(dataset, origin={"split": np.full(len(dataset), "test")})
    with pytest.raises(ValueError, match="found one without 4 of them"):
        learn(small, lost, tmp_path, Exact())
    with pytest.raises(ValueError, match="expected a dataset of"):
        learn(small, replace(dataset, species=dataset.species[::-1]), tmp_path, Exact())


@pytest.mark.labels
def test_command_line(dataset, tmp_path, capsys):
    data = relabelled(dataset[:6], XTB(dataset.species))
    save_dataset(data, tmp_path / "data.extxyz")
    save_model(fit_gp(data, targets=TARGETS, max_steps=0), tmp_path / "model.safetensors")
    run = ["active", tmp_path / "model.safetensors", tmp_path / "data.extxyz", "--out", tmp_path / "out", "--workers", "1"]
    few = ["--replicas", "1", "--time", "0.05", "--start", "equilibrium", "--frames", "2", "--per-round", "3", "--rounds", "1"]
    assert iqagp(*run, *few, "--reference", "xtb") == 0
    assert "geometries" in capsys.readouterr().out
    assert len(load_model(tmp_path / "out" / "model.safetensors").train_positions) in (6, 9)
    assert iqagp(*run, *few, "--reference", "dft") == 2
    assert "found one of GFN2-xTB" in capsys.readouterr().err
