import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from conftest import REFERENCE, SPECIES, make_dataset, pair_energies, rotation

from iqagp_jax import atomic_energies, energy_and_forces, energy_fn, fit_gp, leave_one_out, predictive_variance
from iqagp_jax.ase_calculator import IQAGP
from iqagp_jax.dynamics.minimise import minimise

START = REFERENCE + 0.05 * np.random.default_rng(5).normal(size=(4, 3))


@pytest.fixture(params=["model", "distance_model"])
def any_model(request):
    return request.getfixturevalue(request.param)


def test_predicts_unseen_geometries(any_model, test_set):
    energies, forces = energy_and_forces(any_model)(test_set.positions)
    assert np.abs(energies - test_set.energy).mean() < 0.05 * test_set.energy.std()
    assert np.abs(forces - test_set.forces).mean() < 0.2 * test_set.forces.std()


def test_fast_path_equals_the_plain_formula(any_model, test_set):
    energies, forces = energy_and_forces(any_model)(test_set.positions)
    with jax.enable_x64(True):
        positions = jnp.asarray(test_set.positions)
        plain = jax.vmap(lambda r: atomic_energies(any_model, r).sum())
        np.testing.assert_allclose(energies, plain(positions), atol=1e-7)
        plain_forces = -jax.grad(lambda r: plain(r).sum())(positions)
        np.testing.assert_allclose(forces, plain_forces, atol=1e-7)
        single = jax.vmap(energy_fn(any_model))(positions)
        np.testing.assert_allclose(single, energies, atol=1e-9)


def test_forces_are_central_differences_of_the_energy(any_model):
    energy, step = energy_fn(any_model), 1e-4
    with jax.enable_x64(True):
        positions = jnp.asarray(START)
        gradient = jax.grad(energy)(positions)

        def quotient(h):
            shifts = h * jnp.eye(12).reshape(12, 4, 3)
            values = jax.vmap(lambda s: energy(positions + s) - energy(positions - s))(shifts)
            return values.reshape(4, 3) / (2 * h)

        # Richardson's extrapolation removes the quotient's own error of order h^2.
        best = (4 * quotient(step) - quotient(2 * step)) / 3
    np.testing.assert_allclose(gradient, best, atol=1e-6 * np.abs(gradient).max())


def test_second_derivatives_are_differences_of_the_gradient(any_model):
    gradient, step = jax.grad(energy_fn(any_model)), 1e-4
    with jax.enable_x64(True):
        positions, shift = jnp.asarray(START), jnp.zeros((4, 3)).at[1, 2].set(step)
        hessian = jax.hessian(energy_fn(any_model))(positions)
        quotient = (gradient(positions + shift) - gradient(positions - shift)) / (2 * step)
    np.testing.assert_allclose(hessian[..., 1, 2], quotient, atol=1e-5 * np.abs(hessian).max())


def test_invariant_under_rotation_and_translation(any_model):
    here, there = START, START @ rotation(3).T + [4.0, 5.0, -6.0]
    energies, forces = energy_and_forces(any_model)(np.stack([here, there]))
    np.testing.assert_allclose(energies[1], energies[0], atol=1e-9)
    np.testing.assert_allclose(forces[1], forces[0] @ rotation(3).T, atol=1e-8)


def test_forces_and_torques_sum_to_zero(any_model):
    _, forces = energy_and_forces(any_model)(START[None])
    np.testing.assert_allclose(forces[0].sum(0), 0, atol=1e-10)
    np.testing.assert_allclose(np.cross(START, forces[0]).sum(0), 0, atol=1e-10)


def test_reordering_the_atoms_of_model_and_input_changes_nothing(dataset, any_model):
    order = [2, 0, 3, 1]
    kind = any_model.features.name
    shuffled = type(dataset)(
        tuple(SPECIES[k] for k in order),
        dataset.positions[:, order],
        dataset.energy,
        None,
        dataset.atomic_energies[:, order],
        free_atoms=dataset.free_atoms,
    )
    fits = [fit_gp(d, kind, prior_mean="mf1", max_steps=0, targets=("atomic_energies",)) for d in (dataset, shuffled)]
    energies = [energy_and_forces(fits[0])(START[None])[0], energy_and_forces(fits[1])(START[order][None])[0]]
    np.testing.assert_allclose(energies[1], energies[0], atol=1e-7)


def test_alf_models_see_reflections_and_mirror_copies_mend_it(dataset):
    # All training geometries are bent to one side of the plane.
    bent = REFERENCE + np.array([[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0.8]])
    positions = bent + 0.05 * np.random.default_rng(0).normal(size=(40, 4, 3))
    atomic = np.array([pair_energies(r) for r in positions])
    one_side = replace(dataset[:40], positions=positions, energy=atomic.sum(1), atomic_energies=atomic, forces=None)
    pair = np.stack([bent, bent * [1, 1, -1]])
    one_sided = energy_and_forces(fit_gp(one_side, "alf", prior_mean="mf5", max_steps=0))(pair)[0]
    mended = energy_and_forces(fit_gp(one_side, "alf", prior_mean="mf5", max_steps=0, mirror=True))(pair)[0]
    assert abs(one_sided[1] - one_sided[0]) > 1e-3
    assert abs(mended[1] - mended[0]) < 1e-6


def test_variance_vanishes_on_training_points_and_is_the_prior_far_away(model, dataset):
    variance = predictive_variance(model)(np.stack([dataset.positions[0], REFERENCE * 3]))
    assert (np.asarray(variance[0]) < 1e-4 * model.signal_variance).all()
    np.testing.assert_allclose(variance[1], model.signal_variance, rtol=0.2)


def test_leave_one_out_residuals_predict_the_test_error(model, test_set):
    loo, sigma = leave_one_out(model)
    error = energy_and_forces(model)(test_set.positions)[0] - test_set.energy
    assert 0.2 < np.abs(loo.sum(0)).mean() / np.abs(error).mean() < 5
    assert sigma.shape == loo.shape == (4, 80)


def test_ase_calculator(model):
    atoms = Atoms(SPECIES, positions=START, calculator=IQAGP(model))
    energies, forces = energy_and_forces(model)(START[None])
    assert atoms.get_potential_energy() == pytest.approx(float(energies[0]), abs=1e-10)
    np.testing.assert_allclose(atoms.get_forces(), forces[0], atol=1e-10)
    np.testing.assert_allclose(atoms.get_potential_energies().sum(), energies[0], atol=1e-8)
    wrong = Atoms("OCHO", positions=START, calculator=IQAGP(model))
    with pytest.raises(ValueError, match="O C H H of the model"):
        wrong.get_potential_energy()


def test_no_geometries_have_no_energies(model):
    energies, forces = energy_and_forces(model)(np.zeros((0, 4, 3)))
    assert energies.shape == (0,) and forces.shape == (0, 4, 3)


def test_a_minimum_takes_a_step_at_least(model):
    with pytest.raises(ValueError, match="expected at least one step, found max_steps=0"):
        minimise(energy_fn(model), REFERENCE, max_steps=0)


def test_minimum_has_no_forces(model):
    minimum = minimise(energy_fn(model), START, max_force=1e-4)
    _, forces = energy_and_forces(model)(np.asarray(minimum.positions)[None])
    assert np.linalg.norm(forces[0], axis=-1).max() < 1e-4
    assert minimum.energy < energy_and_forces(model)(START[None])[0][0]


@pytest.mark.parametrize(
    ("positions", "sentence"),
    [
        (np.zeros((5, 3)), r"expected positions of shape \(4, 3\)"),
        (np.full((4, 3), np.nan), "expected finite positions"),
    ],
)
def test_bad_positions_get_a_sentence(model, positions, sentence):
    with pytest.raises(ValueError, match=sentence):
        energy_fn(model)(positions)


def test_gradients_without_64_bit_mode_warn_and_are_right(model):
    exact = energy_and_forces(model)(START[None])[1][0]
    with pytest.warns(UserWarning, match="64-bit mode is off"):
        gradient = jax.grad(energy_fn(model))(jnp.asarray(START, dtype=jnp.float32))
    np.testing.assert_allclose(-gradient, exact, atol=1e-5 * np.abs(exact).max())


def test_importing_changes_no_global_setting():
    code = "import jax; a = dict(jax.config.values); import iqagp_jax; assert dict(jax.config.values) == a"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_user_defined_prior_mean(dataset):
    def harmonic(positions):
        stretch = jnp.linalg.norm(positions - positions.mean(0), axis=1)
        return 0.1 * (stretch - 1.0) ** 2 - 10.0

    fitted = fit_gp(dataset, "alf", prior_mean=harmonic, max_steps=3, targets=("atomic_energies",))
    far = REFERENCE * 4
    with jax.enable_x64(True):
        np.testing.assert_allclose(atomic_energies(fitted, far), harmonic(jnp.asarray(far)), atol=1e-6)


def test_make_dataset_is_what_the_tests_believe():
    data = make_dataset(3, seed=0)
    np.testing.assert_allclose(data.atomic_energies.sum(1), data.energy)
