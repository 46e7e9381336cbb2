"""Atomic moments of labels: a density with known moments, PySCF's own molecular moments, and the way into a dataset."""

from itertools import product

import jax
import numpy as np
import pytest
from ase import Atoms
from conftest import rotation
from pyscf.scf.jk import get_jk
from scipy.sparse import csr_array

from iqagp_jax.data.extxyz import load_dataset, save_dataset
from iqagp_jax.electrostatics import global_moments, interaction_energy, local_moments
from iqagp_jax.families.gp.features import ALF
from iqagp_jax.labels import fuzzy, iqa, scf
from iqagp_jax.labels.campaign import collect
from iqagp_jax.labels.label import label_geometry, label_key
from iqagp_jax.labels.multipoles import atomic_moments
from iqagp_jax.labels.plan import LabelPlan
from iqagp_jax.system.harmonics import component_names, solid_harmonics, translated
from iqagp_jax.units import BOHR, HARTREE

WATER = np.array([[0.1, 0.0, 0.1173], [0.0, 0.7572, -0.4692], [0.2, -0.7972, -0.4692]])
PLAN = LabelPlan(basis="6-31g", multipoles=True)
FRAMES = ((0, 1, 2), (1, 0, 2), (2, 0, 1))

FUZZY = {"becke": fuzzy.becke, "hirshfeld": fuzzy.hirshfeld}


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_a_spherical_density_has_the_moments_of_a_point(offset):
    """One Gaussian electron beside each of two nuclei; Gauss-Hermite points integrate its moments exactly."""
    nodes, weights = np.polynomial.hermite.hermgauss(8)
    grid = np.array(list(product(nodes, repeat=3)))
    volume = np.prod(list(product(weights, repeat=3)), axis=1) / np.pi**1.5
    nuclei, charges = np.array([[1.0, 2.0, -4.0], [-3.0, 0.5, 5.0]]) + offset, np.array([1, 3])
    beside = np.array([[0.7, -0.2, 0.4], [-0.1, 1.3, 0.6]])
    coords = (grid + (nuclei + beside)[:, None]).reshape(-1, 3)
    share = np.kron(np.eye(2), volume * np.exp((grid**2).sum(1)))
    density = np.tile(np.exp(-(grid**2).sum(1)), 2)
    expected = -solid_harmonics(beside, 4)
    expected[:, 0] += charges
    for weights in (share, csr_array(share)):
        # About the origin the moments are 10^4 times larger than about the nuclei.
        np.testing.assert_allclose(atomic_moments(coords, weights, density, nuclei, charges), expected, atol=1e-10)


@pytest.fixture(scope="module")
def water():
    return scf.converge(scf.mean_field(scf.build_molecule("OHH", WATER, "6-31g"), "b3lyp"))


@pytest.mark.labels
def test_atoms_share_the_molecules_moments(water):
    mol, dm = water.mol, water.make_rdm1()
    second = np.einsum("xyij,ji->xy", mol.intor("int1e_rr").reshape(3, 3, mol.nao, mol.nao), dm)
    dipole = mol.atom_charges() @ mol.atom_coords() - np.einsum("xij,ji->x", mol.intor("int1e_r"), dm)
    quadrupole = np.einsum("a,ax,ay->xy", mol.atom_charges(), mol.atom_coords(), mol.atom_coords()) - second
    expected = {"q00": 0.0, "q10": dipole[2], "q11c": dipole[0], "q11s": dipole[1]}
    expected["q20"] = 1.5 * quadrupole[2, 2] - 0.5 * np.trace(quadrupole)
    expected["q21c"], expected["q21s"] = np.sqrt(3) * quadrupole[2, :2]
    expected["q22c"] = np.sqrt(0.75) * (quadrupole[0, 0] - quadrupole[1, 1])
    expected["q22s"] = np.sqrt(3) * quadrupole[0, 1]
    for atoms in iqa.integrate_atoms(water, FUZZY).values():
        found = translated(atoms.multipoles, mol.atom_coords()).sum(0)[:9]
        # The grid's own error, as of the populations.
        np.testing.assert_allclose(found, [expected[name] for name in component_names(2)], atol=2e-4)
        np.testing.assert_allclose(atoms.multipoles[:, 0], mol.atom_charges() - atoms.population, atol=1e-12)


@pytest.mark.labels
def test_far_molecules_interact_as_their_moments(water):
    """First-order electrostatics of two undeformed water molecules from PySCF's integrals, 12 bohr apart."""
    mol, dm, charges = water.mol, water.make_rdm1(), water.mol.atom_charges()
    far = mol.copy().set_geom_(mol.atom_coords() + 12 * np.array([0.2, 0.3, 0.933]), unit="Bohr")
    exact = np.sum(dm * get_jk((mol, mol, far, far), dm, scripts="ijkl,lk->ij", intor="int2e", aosym="s4"))
    for electrons, nuclei in ((mol, far), (far, mol)):
        for centre, charge in zip(nuclei.atom_coords(), charges, strict=True):
            with electrons.with_rinv_origin(centre):
                exact -= charge * np.sum(electrons.intor("int1e_rinv") * dm)
    exact += np.sum(charges[:, None] * charges / np.linalg.norm(mol.atom_coords()[:, None] - far.atom_coords(), axis=-1))

    positions, molecule = np.concatenate([mol.atom_coords(), far.atom_coords()]) * BOHR, np.repeat([0, 1], 3)
    for atoms in iqa.integrate_atoms(water, FUZZY).values():
        moments = np.tile(atoms.multipoles, (2, 1))
        with jax.enable_x64(True):
            energies = [jax.jit(interaction_energy)(positions, moments[:, :n], molecule) / HARTREE for n in (1, 25)]
        # Ranks above 4 and overlap are what is missing.
        assert energies[1] == pytest.approx(exact, rel=1e-4)
        assert energies[0] != pytest.approx(exact, rel=0.5)


def test_local_moments_do_not_turn_with_the_molecule():
    moments = np.random.default_rng(0).normal(size=(3, 25))
    with jax.enable_x64(True):
        there = WATER @ rotation(4).T + 1.0
        turned = global_moments(moments, FRAMES, there)
        np.testing.assert_allclose(local_moments(turned, FRAMES, there), moments, atol=1e-13)
    # The x axis of atom 0's frame points to atom 1.
    charge = solid_harmonics(WATER[1] - WATER[0], 4)
    with jax.enable_x64(True):
        local = local_moments(np.tile(charge, (3, 1)), FRAMES, WATER)[0]
    distance = np.linalg.norm(WATER[1] - WATER[0])
    np.testing.assert_allclose(local[:4], [1, 0, distance, 0], atol=1e-13)


@pytest.mark.labels
def test_labels_bring_moments_into_the_dataset(tmp_path):
    label = label_geometry("OHH", WATER, PLAN)
    mirror = label_geometry("OHH", WATER * [1, 1, -1], PLAN)
    data, _ = collect([Atoms("OHH", positions=WATER)], [label], PLAN, {})
    save_dataset(data, tmp_path / "water.extxyz")
    read = load_dataset(tmp_path / "water.extxyz")
    for name in PLAN.partitions:
        moments = read.extra[f"{name}_multipoles"]
        np.testing.assert_allclose(moments, [label["multipoles"][name]], atol=1e-8)
        np.testing.assert_allclose(moments[..., 0], read.extra[f"{name}_charges"], atol=2e-8)
        # Grids do not turn with the molecule to the last digit.
        np.testing.assert_allclose(read.mirrored().extra[f"{name}_multipoles"], [mirror["multipoles"][name]], atol=1e-4)
    frames = ALF.choose("OHH", data.positions).frames
    with jax.enable_x64(True):
        local = jax.vmap(local_moments, (0, None, 0))(data.extra["becke_multipoles"], frames, data.positions)
    odd = [k for k, name in enumerate(component_names(4)) if (int(name[1]) - int(name[2])) % 2]
    # A planar molecule lies in the xy planes of its frames, where nothing odd in z is left.
    np.testing.assert_allclose(local[..., odd], 0, atol=1e-4)


def test_labels_without_moments_keep_their_names():
    old = LabelPlan(basis="6-31g")
    water = [[0.0, 0.0, 0.1173], [0.0, 0.7572, -0.4692], [0.0, -0.7572, -0.4692]]
    assert label_key("OHH", water, old) == "049eb4969388df447d1a"
    assert label_key("OHH", water, PLAN) != label_key("OHH", water, old)
