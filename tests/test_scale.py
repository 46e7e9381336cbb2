"""Units on an absolute scale: what every molecule has in common tells eV from other units; odd but true sets are left alone."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_dataset

from iqagp_jax import fit_gp, load_dataset, validate
from iqagp_jax.data.dataset import Dataset
from iqagp_jax.data.scale import (
    ENERGIES,
    EXPECTED,
    FORCES,
    all_electrons,
    check_units,
    likeliest_units,
    relative_spread,
    stiffness,
)
from iqagp_jax.system.geometry import pair_distances

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def malondialdehyde():
    return load_dataset("malondialdehyde")


def given_in(data, energy, forces):
    """The labels in other units."""
    of_forces = None if data.forces is None else data.forces / FORCES[forces]
    return replace(data, energy=data.energy / ENERGIES[energy], forces=of_forces, atomic_energies=None)


def relative(data):
    return replace(data, energy=data.energy - np.nanmin(data.energy), atomic_energies=None)


def without_forces(data):
    return replace(data, forces=None)


def tight_binding(data):
    """Energies of valence electrons alone, a fourteenth of all."""
    return replace(data, energy=data.energy - 13 / 14 * data.energy.mean(), atomic_energies=None)


@pytest.mark.parametrize("name", ["malondialdehyde", "malondialdehyde-qtaim", "capped-glycine"])
@pytest.mark.parametrize("n", [2, 6, 20, 100, 2000])
def test_true_labels_are_left_alone(name, n):
    data = load_dataset(name)
    part = data[RNG.permutation(len(data))[:n]]
    for change in (replace, relative, tight_binding):
        for labels in (change(part), without_forces(change(part))):
            check_units(labels)  # a warning would be an error here


@pytest.mark.parametrize("seed", range(4))
def test_soft_model_potentials_are_left_alone(seed):
    for n in (2, 5, 10, 40):
        assert likeliest_units(make_dataset(n, seed))[0] == EXPECTED


@pytest.mark.parametrize("n", [5, 20, 200])
@pytest.mark.parametrize(
    ("energy", "forces"), [("kcal/mol", "kcal/mol/angstrom"), ("kJ/mol", "kJ/mol/angstrom"), ("hartree", "hartree/bohr")]
)
def test_other_units_throughout_are_named(malondialdehyde, n, energy, forces):
    data = malondialdehyde[RNG.permutation(len(malondialdehyde))[:n]]
    for change in (replace, relative, tight_binding):
        with pytest.warns(UserWarning, match=f"with energies in {energy} and forces in {forces}, and not in eV") as told:
            check_units(given_in(change(data), energy, forces))
        assert f"multiply energies by {ENERGIES[energy]:.6g} and forces by {FORCES[forces]:.6g}" in str(told[0].message)
    with pytest.warns(UserWarning, match=f"with energies in {energy}, and not"):
        check_units(without_forces(given_in(data, energy, forces)))


def test_gradients_are_told_where_energies_are_too_few_to_judge(malondialdehyde):
    with pytest.warns(UserWarning, match="as gradients do; expected forces, minus the gradient"):
        check_units(replace(malondialdehyde[:6], forces=-malondialdehyde.forces[:6]))


def test_fits_and_validations_say_so_before_anything_else(malondialdehyde):
    wrong = given_in(malondialdehyde[:12], "kcal/mol", "kcal/mol/angstrom")
    with pytest.warns(
        UserWarning, match="labels are those of a molecule with energies in kcal/mol and forces in kcal/mol/angstrom"
    ):
        model = fit_gp(wrong, max_steps=0, symmetry=False)
    with pytest.warns(UserWarning, match="labels are those of a molecule with energies in kcal/mol"):
        fit_gp(replace(wrong, forces=None), max_steps=0, symmetry=False, targets=("energy",))
    with pytest.warns(UserWarning, match="labels are those of a molecule with energies in kcal/mol"):
        validate(model, given_in(malondialdehyde[100:110], "kcal/mol", "kcal/mol/angstrom"))


def test_what_is_no_label_is_refused(malondialdehyde):
    data = malondialdehyde[:12]
    with pytest.raises(ValueError, match="expected forces, found zeros in all geometries"):
        fit_gp(replace(data, forces=0 * data.forces), targets=("energy", "forces"))
    with pytest.raises(ValueError, match="expected labels, found no energy in 12 geometries"):
        fit_gp(replace(data, energy=np.full(12, np.nan)), targets=("energy",))
    helium = Dataset(("He",), np.zeros((3, 1, 3)), np.array([-79.0, -79.1, -79.2]))
    with pytest.raises(ValueError, match="expected a molecule of two atoms at least, found He alone"):
        fit_gp(helium)


def test_force_constants_are_those_of_a_spring():
    """Springs of 40 eV/angstrom^2 between hydrogens and oxygen: -dE/dR gives them back, and bonds make all of the energy."""
    rest = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    positions = rest + 0.03 * RNG.normal(size=(60, 3, 3))
    lengths = pair_distances(positions)[:, 0, 1:]
    stretch = lengths - 0.96
    along = (positions[:, 1:] - positions[:, :1]) / lengths[..., None]
    on_hydrogens = -40.0 * stretch[..., None] * along
    forces = np.concatenate([-on_hydrogens.sum(1, keepdims=True), on_hydrogens], axis=1)
    water = Dataset(("O", "H", "H"), positions, -2080 + 20 * (stretch**2).sum(1), forces)
    assert stiffness(water) == pytest.approx(40.0, rel=1e-6)
    assert relative_spread(water) == pytest.approx(40 / 35, rel=0.3)
    assert stiffness(water[:3]) is None and relative_spread(water[:3]) is None


@pytest.mark.parametrize(
    ("symbol", "hartree"), [("C", -37.845), ("O", -75.067), ("Si", -289.359), ("Cl", -460.148), ("Br", -2572.44)]
)
def test_free_atoms_are_those_of_accurate_calculations(symbol, hartree):
    """Chakravorty and others (doi:10.1103/PhysRevA.47.3649); bromine by Hartree-Fock."""
    assert all_electrons([symbol]) / ENERGIES["hartree"] == pytest.approx(hartree, rel=0.01)


def test_nothing_is_said_of_molecules_without_hydrogen_or_with_one_frame():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for species, length, energy in (("II", 2.67, -590.0), ("NN", 1.1, -2980.0), ("CO", 1.13, -3083.0), ("HH", 0.74, -31.9)):
            shift = 0.03 * RNG.normal(size=20)
            positions = np.zeros((20, 2, 3))
            positions[:, 1, 0] = length + shift
            check_units(Dataset(tuple(species), positions, energy + 20 * shift**2))
            check_units(Dataset(tuple(species), positions[:1], np.array([energy])))
