"""Models of forces: the posterior is the textbook's, and forces are worth more than energies."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from test_cli import iqagp
from test_joint import ALL

from iqagp_jax import (
    atomic_energies,
    energy_and_forces,
    energy_fn,
    energy_variance,
    fit_gp,
    fit_joint,
    joint,
    leave_one_out,
    load_dataset,
    load_model,
    predictive_variance,
    save_dataset,
    save_model,
    validate,
)

BOTH = ("atomic_energies", "forces")


@pytest.fixture(scope="module")
def few(dataset):
    return dataset[:6]


@pytest.mark.parametrize(("features", "targets"), [*(("inverse-distances", t) for t in ALL), ("alf", BOTH)])
def test_posterior_is_the_textbooks(features, targets, few, test_set):
    """Mean and variance of the molecular energy from the dense formula, covariances by automatic differentiation."""
    model = fit_gp(few, features, prior_mean="mf1", targets=targets, max_steps=2, noise=1e-6)
    n_atoms, at = len(model.species), test_set.positions[0]

    @jax.jit
    def covariances(r, q):
        def cov(atom, r, q):
            kernel = jax.tree.map(lambda leaf: leaf[atom], model.kernel)
            return model.signal_variance[atom] * kernel(model.features(r)[atom], model.features(q)[atom])

        def total(r, q):
            return sum(cov(atom, r, q) for atom in range(n_atoms))

        atoms = range(n_atoms)
        energies = jax.numpy.diag(jax.numpy.stack([cov(a, r, q) for a in atoms]))
        slopes = -jax.numpy.stack([jax.grad(cov, 2)(a, r, q).ravel() for a in atoms])
        back = -jax.numpy.stack([jax.grad(cov, 1)(a, r, q).ravel() for a in atoms]).T
        forces = jax.jacfwd(jax.grad(total, 0), 1)(r, q).reshape(3 * n_atoms, -1)
        return energies, slopes, back, forces

    def block(r, q, rows, columns):
        energies, slopes, back, forces = (np.asarray(x) for x in covariances(r, q))
        table = {
            "atomic_energies": {"atomic_energies": energies, "energy": energies.sum(1, keepdims=True), "forces": slopes},
            "forces": {"atomic_energies": back, "energy": back.sum(1, keepdims=True), "forces": forces},
        }
        table["energy"] = {k: v.sum(0, keepdims=True) for k, v in table["atomic_energies"].items()}
        return np.block([[table[a][b] for b in joint.TARGETS if b in columns] for a in joint.TARGETS if a in rows])

    with jax.enable_x64(True):
        r = few.positions
        k = np.block([[block(a, b, targets, targets) for b in r] for a in r])
        k += 1e-6 * np.diag(np.diag(k))
        cross = np.concatenate([block(at, b, ("energy",), targets) for b in r], axis=1)[0]
        mean = model.mean.first if targets == ("forces",) else model.mean
        prior = np.array([mean(x) for x in r])
        y = joint.observations(targets, few.atomic_energies - prior, few.energy - prior.sum(1), few.forces)
        expected = cross @ np.linalg.solve(k, y)
        variance = block(at, at, ("energy",), ("energy",))[0, 0] - cross @ np.linalg.solve(k, cross)
    found = energy_and_forces(model)(at[None])[0][0] - np.sum(model.mean(at))
    scale = model.signal_variance.sum()
    assert found == pytest.approx(expected, abs=1e-8 * np.sqrt(scale) + 1e-8 * abs(expected))
    assert energy_variance(model)(at[None])[0] == pytest.approx(variance, abs=1e-8 * scale)


def test_fast_path_forces_and_second_derivatives(few, test_set):
    model = fit_gp(few, targets=BOTH, max_steps=3)
    energies, forces = energy_and_forces(model)(test_set.positions)
    np.testing.assert_allclose(energies, [atomic_energies(model, r).sum() for r in test_set.positions], atol=1e-8)
    step = 1e-4 * np.random.default_rng(0).normal(size=test_set.positions[0].shape)
    up, down = (float(energy_fn(model)(test_set.positions[0] + s * step)) for s in (1, -1))
    # The energies are sums of large weights, rounded to about 1e-9 eV.
    assert (down - up) / 2 == pytest.approx(float((forces[0] * step).sum()), abs=1e-8)


def test_forces_teach_more_than_energies():
    data = load_dataset("malondialdehyde")
    with_forces, without = (fit_gp(data, n_train=30, targets=targets, max_steps=10) for targets in (BOTH, BOTH[:1]))
    test = data.split("test_500K")[:50]
    assert validate(with_forces, test).forces.mae < 0.4 * validate(without, test).forces.mae


def test_forces_alone_know_the_energy_up_to_a_constant_which_is_the_data_s(dataset):
    model = fit_gp(dataset, n_train=20, targets=("forces",))
    difference = energy_and_forces(model)(dataset.positions[:20])[0] - dataset.energy[:20]
    assert np.mean(difference) == pytest.approx(0, abs=1e-8)
    assert np.std(difference) < 0.1 * np.std(dataset.energy[:20])


def test_variances_know_what_is_known(few):
    model = fit_gp(few, targets=BOTH)
    here, far = energy_variance(model)(np.stack([few.positions[0], 3 * few.positions[0]]))
    assert here < 1e-3 * far < model.signal_variance.sum()
    assert predictive_variance(model)(few.positions).shape == (6, len(few.species))


def test_the_file_holds_it_bit_for_bit(few, test_set, tmp_path):
    model = fit_gp(few, targets=BOTH, max_steps=2)
    save_model(model, tmp_path / "m.safetensors")
    back = load_model(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(*(energy_and_forces(m)(test_set.positions)[1] for m in (model, back)))
    assert back.targets == BOTH


def test_gradients_instead_of_forces_are_noticed(few):
    with pytest.warns(UserWarning, match="are they gradients"):
        fit_gp(replace(few, forces=-few.forces), targets=BOTH, max_steps=5)


def test_command_line(dataset, tmp_path):
    save_dataset(dataset[:10], tmp_path / "d.extxyz")
    options = ("--targets", "energy,forces", "--max-steps", 2)
    assert iqagp("train", tmp_path / "d.extxyz", "-o", tmp_path / "m.safetensors", *options) == 0
    assert load_model(tmp_path / "m.safetensors").targets == ("energy", "forces")


def test_bad_input_gets_a_sentence(few, monkeypatch):
    with pytest.raises(ValueError, match=r"expected targets among .* found heat"):
        fit_gp(few, targets=("heat",))
    with pytest.raises(ValueError, match="expected a dataset with forces, found none"):
        fit_gp(replace(few, forces=None), targets=BOTH)
    with pytest.raises(ValueError, match="expected one start and a likelihood"):
        fit_gp(few, targets=BOTH, loss="hold-out")
    with pytest.raises(ValueError, match="expected a model of atomic energies alone"):
        leave_one_out(fit_gp(few, targets=BOTH, max_steps=0))
    monkeypatch.setattr(fit_joint.os, "sysconf", lambda name: 100)
    with pytest.raises(ValueError, match=r"observations of 6 geometries, which need 0 GiB where the machine has 0"):
        fit_gp(few, targets=BOTH)
    duplicated = few[np.array([0, 0, 1])]
    monkeypatch.undo()
    with pytest.raises(ValueError, match="duplicate geometries"):
        fit_gp(duplicated, targets=BOTH, noise=1e-17, max_steps=0)
