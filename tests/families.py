"""What every family of potentials must keep: the suite that each runs through.

A family's tests inherit `Suite` and give the fixture ``potential``, a small one of the molecule of `conftest`, and say what is
not so of it. How to add a family: `docs`, and `iqagp_jax/families/pairs` as the smallest example.
"""

import json
import multiprocessing
import pickle

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from conftest import REFERENCE, SPECIES, make_dataset, rotation

from iqagp_jax import (
    atomic_energies,
    energy_and_forces,
    energy_fn,
    energy_shares,
    load_model,
    load_trajectory,
    save_model,
    simulate,
    validate,
)
from iqagp_jax.ase_calculator import IQAGP
from iqagp_jax.dynamics import record
from iqagp_jax.potential import Potential, energy_variance, force_variance, predictive_variance, uncertainty
from iqagp_jax.system.system import System
from iqagp_jax.verdict import Protocol, judge

POSITIONS = REFERENCE + 0.05 * np.random.default_rng(7).normal(size=(3, *REFERENCE.shape))

FORCE_STEP = 2e-3
"""Of differences of fourth order, angstrom; energies have noise of some 1e-8 eV where weights are large."""


def energy_elsewhere(pickled):
    """Energy of atoms by a calculator, both from a pickle, in another process."""
    calculator, atoms = pickle.loads(pickled)
    atoms.calc = calculator
    return atoms.get_potential_energy()


class Suite:
    """Laws of any `Potential` of one molecule; no case here knows which family it is."""

    mirrored = True
    """whether the energy of a mirror image is the same"""
    permuted = True
    """whether equal atoms may change places"""
    uncertain = True
    """whether it knows variances of energies; of forces if it says "forces" """
    in_file = True
    """whether it is data, which a model file can hold"""
    temperature = 30.0
    """of runs that stay together, K"""

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls):
        raise NotImplementedError("give the family's potential of the molecule in conftest")

    def test_contract(self, potential):
        assert isinstance(potential, Potential)
        potential.check(System.of(SPECIES, REFERENCE))
        bound = potential.bind(System.of(SPECIES, REFERENCE))
        with jax.enable_x64(True):
            energies, aux = bound.energies(REFERENCE, bound.aux)
        assert energies.shape == (4,) and jax.tree.structure(aux) == jax.tree.structure(bound.aux)

    @pytest.mark.parametrize(
        ("system", "sentence"),
        [
            (System.of("NCHH", REFERENCE, spin=1), "expected the atoms O C H H of the model, found N C H H"),
            (System.of(SPECIES, REFERENCE, charge=-2), "expected charge 0 and 0 unpaired electrons"),
            (System.of(SPECIES, REFERENCE, spin=2), "expected charge 0 and 0 unpaired electrons"),
            (System.of(SPECIES, REFERENCE, cell=9 * np.eye(3)), "expected one molecule without walls"),
        ],
    )
    def test_other_systems_get_a_sentence(self, potential, system, sentence):
        with pytest.raises(ValueError, match=sentence):
            energy_fn(potential, system=system)

    def test_forces_are_the_gradient(self, potential):
        energies, forces = energy_and_forces(potential)(POSITIONS)
        steps = FORCE_STEP * np.eye(12).reshape(12, 4, 3)
        ahead, back, far_ahead, far_back = (
            energy_and_forces(potential)(POSITIONS[0] + k * steps)[0] for k in (1.0, -1.0, 2.0, -2.0)
        )
        slopes = (8 * (ahead - back) - (far_ahead - far_back)) / (12 * FORCE_STEP)
        np.testing.assert_allclose(forces[0], -slopes.reshape(4, 3), rtol=1e-5, atol=3e-5)
        with jax.enable_x64(True):
            by_grad = -np.asarray(jax.jit(jax.grad(energy_fn(potential)))(POSITIONS[1]))
        np.testing.assert_allclose(by_grad, forces[1], atol=1e-9)
        np.testing.assert_allclose([energy_shares(potential, r).sum() for r in POSITIONS], energies, atol=1e-9)

    def test_nothing_holds_a_molecule_in_place(self, potential):
        energies, forces = energy_and_forces(potential)(POSITIONS)
        np.testing.assert_allclose(forces.sum(1), 0.0, atol=1e-9)
        turn = rotation(3)
        turned, of_turned = energy_and_forces(potential)(POSITIONS @ turn.T + [1.0, -2.0, 3.0])
        np.testing.assert_allclose(turned, energies, atol=1e-9)
        np.testing.assert_allclose(of_turned, forces @ turn.T, atol=1e-8)

    def test_mirror_image(self, potential):
        image = energy_and_forces(potential)(POSITIONS * [1.0, 1.0, -1.0])[0]
        assert np.allclose(image, energy_and_forces(potential)(POSITIONS)[0], atol=1e-9) == self.mirrored

    def test_equal_atoms_change_places(self, potential):
        swapped = energy_and_forces(potential)(POSITIONS[:, [0, 1, 3, 2]])[0]
        assert np.allclose(swapped, energy_and_forces(potential)(POSITIONS)[0], atol=1e-9) == self.permuted

    def test_float64_whatever_the_global_mode(self, potential):
        assert not jax.config.jax_enable_x64
        energies, forces = energy_and_forces(potential)(POSITIONS)
        assert energies.dtype == forces.dtype == np.float64
        assert energy_shares(potential, POSITIONS[0]).dtype == np.float64

    def test_atomic_energies_are_told_where_they_mean_something(self, potential):
        shares = energy_shares(potential, POSITIONS[0])
        np.testing.assert_array_equal(atomic_energies(potential, POSITIONS[0]), shares)
        np.testing.assert_array_equal(
            Atoms(SPECIES, POSITIONS[0], calculator=IQAGP(potential)).get_potential_energies(), shares
        )

    def test_uncertainty_or_none(self, potential):
        known = uncertainty(potential)
        assert (known is not None) == bool(self.uncertain)
        if known is None:
            for variance in (energy_variance, force_variance, predictive_variance):
                with pytest.raises(ValueError, match="expected a potential that knows the variance"):
                    variance(potential)
            return
        assert known.energy(POSITIONS).shape == (3,) and known.atomic_energies(POSITIONS).shape == (3, 4)
        assert (known.energy(POSITIONS) >= 0).all()
        assert (known.forces is not None) == (self.uncertain == "forces")
        if known.forces:
            assert known.forces(POSITIONS).shape == (3, 4, 3)

    def test_file(self, potential, tmp_path):
        if not self.in_file:
            with pytest.raises(TypeError, match="which a model file cannot hold"):
                save_model(potential, tmp_path / "model.safetensors")
            return
        save_model(potential, tmp_path / "model.safetensors")
        back = load_model(tmp_path / "model.safetensors")
        assert back.made_by == potential.made_by
        for mine, theirs in zip(energy_and_forces(back)(POSITIONS), energy_and_forces(potential)(POSITIONS), strict=True):
            np.testing.assert_array_equal(mine, theirs)

    def test_calculator_here_and_elsewhere(self, potential):
        atoms, calculator = Atoms(SPECIES, POSITIONS[0]), IQAGP(potential)
        atoms.calc = calculator
        energies, forces = energy_and_forces(potential)(POSITIONS)
        assert atoms.get_potential_energy() == pytest.approx(energies[0], abs=1e-6)
        np.testing.assert_allclose(atoms.get_forces(), forces[0], atol=1e-6)
        if not self.uncertain:
            with pytest.raises(PropertyNotImplementedError, match="does not know the uncertainty"):
                calculator.get_property("energy_std", atoms)
        # After use: what was compiled must not be in the way.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(energy_elsewhere, (pickle.dumps((calculator, Atoms(SPECIES, POSITIONS[1]))),))
        assert found == pytest.approx(energies[1], abs=1e-6)

    def test_run_that_is_killed_goes_on_with_the_same_bytes(self, potential, tmp_path, monkeypatch):
        monkeypatch.setattr("iqagp_jax.dynamics.run.CHECKPOINT_SECONDS", 0.0)
        monkeypatch.setattr("iqagp_jax.dynamics.replicas.CHUNK_SECONDS", 1e-9)
        system = System.of(SPECIES, REFERENCE)
        options = {"temperature": self.temperature, "time": 0.02, "frame_interval": 5.0, "progress": False, "seed": 4}

        def run(folder):
            return simulate(potential, system, POSITIONS[:2], tmp_path / folder, **options)

        undisturbed, saved = run("undisturbed"), []

        def die(*arguments):
            saved.append(arguments)
            if len(saved) == 4:
                raise SystemError("killed")
            return save(*arguments)

        save = record.save_checkpoint
        monkeypatch.setattr(record, "save_checkpoint", die)
        with pytest.raises(SystemError):
            run("killed")
        monkeypatch.setattr(record, "save_checkpoint", save)
        back = run("killed")
        assert back.survived.all() and undisturbed.survived.all()
        bytes_of = [(tmp_path / name / "trajectory-0000.npz").read_bytes() for name in ("undisturbed", "killed")]
        assert bytes_of[0] == bytes_of[1]
        assert load_trajectory(tmp_path / "killed").positions.shape == (5, 2, 4, 3)

    def test_validate(self, potential):
        result = validate(potential, make_dataset(5, seed=3))
        assert np.isfinite([result.energy.mae, result.forces.mae]).all()
        assert (result.energy_calibration is not None) == bool(self.uncertain)
        json.dumps(result.as_dict())

    def test_verdict(self, potential, tmp_path):
        protocol = Protocol((self.temperature,), ("equilibrium",), 2, 0.02, frames=2, reference_replicas=0)
        found = judge(potential, tmp_path / "verdict", None, protocol)
        assert found.survival.flawless and found.survival.grade == found.truth.grade == "unknown"
        assert found.warning.grade == "unknown"
        assert self.uncertain or "no uncertainty" in found.warning.sentence
        assert (tmp_path / "verdict" / "report.html").stat().st_size > 1000
