"""Hessians, frequencies and thermochemistry, beside formulas and ASE; the two commands."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write
from ase.thermochemistry import IdealGasThermo
from ase.vibrations import Vibrations
from conftest import REFERENCE, SPECIES
from test_cli import iqagp

from iqagp_jax import energy_fn, load_model, save_model
from iqagp_jax.ase_calculator import IQAGP
from iqagp_jax.dynamics.minimise import minimise
from iqagp_jax.dynamics.normal_modes import PLANCK, NormalModes, hessian
from iqagp_jax.families.pairs.models import BondedMorse
from iqagp_jax.system.system import System

HERE = System(SPECIES, REFERENCE)
MORSE = BondedMorse.of(HERE)


@pytest.fixture(scope="module")
def rest(distance_model):
    return np.asarray(minimise(energy_fn(distance_model), distance_model.reference, 1000, 1e-6).positions)


def test_a_diatomic_has_the_frequency_of_its_spring():
    """nu = sqrt(k / mu) / 2 pi c, k by the second derivative along the bond, in another unit system."""
    molecule = System(("C", "O"), np.array([[0.0, 0, 0], [0.3, 0.2, 1.1]]))
    model = BondedMorse.of(molecule)
    energy = energy_fn(model)
    along = (molecule.positions[1] - molecule.positions[0]) / np.linalg.norm(molecule.positions[1] - molecule.positions[0])
    step = 1e-3
    moved = [float(energy(molecule.positions + np.outer([0, 1], x * along))) for x in (-step, 0, step)]
    spring = (moved[0] - 2 * moved[1] + moved[2]) / step**2 * 1.602176634e-19 / 1e-20  # N/m
    mass = 12.011 * 15.999 / (12.011 + 15.999) * 1.66053906892e-27
    expected = np.sqrt(spring / mass) / (2 * np.pi * 2.99792458e10)
    modes = NormalModes.of(model, molecule.positions)
    assert modes.is_linear and modes.wavenumbers == pytest.approx([expected], rel=1e-4)
    assert modes.zero_point_energy == pytest.approx(6.62607015e-34 * 2.99792458e10 * expected / 2 / 1.602176634e-19, rel=1e-4)


def test_hessian_and_frequencies_are_those_of_finite_differences(distance_model, rest, tmp_path):
    atoms = Atoms(SPECIES, positions=rest, calculator=IQAGP(distance_model))
    by_ase = Vibrations(atoms, name=str(tmp_path / "vib"), delta=0.002, nfree=4)
    by_ase.run()
    differences = by_ase.get_vibrations()
    second = hessian(distance_model, rest)
    np.testing.assert_allclose(second, differences.get_hessian_2d(), atol=1e-3 * np.abs(second).max())
    modes = NormalModes.of(distance_model, rest)
    assert len(modes.wavenumbers) == 6 and not modes.is_linear
    np.testing.assert_allclose(modes.wavenumbers, differences.get_frequencies().real[-6:], rtol=2e-3, atol=3)
    np.testing.assert_allclose(modes.vibrations.get_frequencies().real[-6:], modes.wavenumbers, rtol=1e-3, atol=3)
    masses = modes.system.masses
    np.testing.assert_allclose((masses[:, None] * modes.modes**2).sum((1, 2)), 1.0)
    np.testing.assert_allclose(np.einsum("a,kai->ki", masses, modes.modes), 0, atol=1e-9)  # none moves the whole


def test_a_molecule_that_is_not_quite_straight_is_linear():
    """Two bends of O-C-O, not a bend and a third rotation."""
    straight = np.array([[0.0, 0, 0], [0, 0, 1.16], [0, 0, 2.32]])
    bent = straight + np.array([[0.0, 0, 0], [2e-5, 0, 0], [0, 0, 0]])
    modes = NormalModes.of(BondedMorse.of(System(("O", "C", "O"), straight)), bent)
    assert modes.is_linear and len(modes.wavenumbers) == 4
    with pytest.raises(ValueError, match="expected one molecule of two atoms or more"):
        NormalModes.of(BondedMorse.of(System(("He",), np.zeros((1, 3)))), np.zeros((1, 3)))


def test_thermochemistry_is_ases(distance_model, rest):
    modes = NormalModes.of(distance_model, rest)
    gas = IdealGasThermo(list(PLANCK * modes.wavenumbers), "nonlinear", -1.0, modes.atoms, 2, 0.0)
    found = modes.thermochemistry(-1.0, 400.0, 5e4, symmetry_number=2)
    assert found["free_energy"] == pytest.approx(gas.get_gibbs_energy(400.0, 5e4, verbose=False))
    assert found["enthalpy"] - 400.0 * found["entropy"] == pytest.approx(found["free_energy"])
    assert found["free_energy"] > modes.thermochemistry(-1.0, 400.0, 5e4)["free_energy"]  # k T ln 2 of fewer orientations


def test_off_a_minimum_a_frequency_is_imaginary():
    far = REFERENCE + np.array([[0, 0, 0], [0, 0, 0], [0, 0, 0], 1.2 * (REFERENCE[3] - REFERENCE[1])])
    modes = NormalModes.of(MORSE, far)
    assert modes.wavenumbers[0] < -100 and len(modes.real) < 6
    assert np.isfinite(list(modes.thermochemistry(0.0).values())).all()


def test_many_are_relaxed_as_each_alone(distance_model, rest):
    energy, rng = energy_fn(distance_model), np.random.default_rng(3)
    starts = rest + 0.03 * rng.normal(size=(3, *rest.shape))
    together = minimise(energy, starts, 500, 1e-5)
    for k, start in enumerate(starts):
        alone = minimise(energy, start, 500, 1e-5)
        assert together.energy[k] == pytest.approx(alone.energy, abs=1e-9) and together.max_force[k] <= 1e-5
        assert together.steps[k] == alone.steps


def test_commands(distance_model, rest, tmp_path, capsys):
    model, out = tmp_path / "m.safetensors", tmp_path / "minima.extxyz"
    save_model(distance_model, model)
    starts = rest + 0.03 * np.random.default_rng(3).normal(size=(4, *rest.shape))
    write(tmp_path / "starts.extxyz", [Atoms(SPECIES, positions=r) for r in starts])
    assert iqagp("relax", model, tmp_path / "starts.extxyz", "-o", out) == 0
    said = capsys.readouterr().out
    assert "1 different minima from 4 geometries" in said and f"next: iqagp frequencies {model} --geometry {out}" in said
    (found,) = read(out, ":")
    assert found.get_potential_energy() == pytest.approx(float(energy_fn(load_model(model))(rest)), abs=1e-4)
    assert iqagp("frequencies", model, "--geometry", out, "--json", tmp_path / "f.json") == 0
    said, told = capsys.readouterr().out, json.loads((tmp_path / "f.json").read_text())
    assert "6 vibrations of CH2O" in said and "ideal gas at 298.15 K" in said and "no stationary point" not in said
    np.testing.assert_allclose(told["wavenumbers_per_cm"], NormalModes.of(distance_model, rest).wavenumbers, atol=0.5)
    write(tmp_path / "bent.xyz", Atoms(SPECIES, positions=starts[0]))
    assert iqagp("frequencies", model, "--geometry", tmp_path / "bent.xyz", "--no-relax") == 0
    assert "no stationary point" in capsys.readouterr().out
    write(tmp_path / "other.xyz", Atoms("NCHH", positions=starts[0]))
    assert iqagp("relax", model, tmp_path / "other.xyz", "-o", out) == 2
    assert iqagp("relax", model, tmp_path / "starts.extxyz", "-o", out, "--max-steps", "1") == 2
    assert "found none of 4" in capsys.readouterr().err
