"""Quantum-chemical labels of water in a small basis: identities that hold exactly, and levels that are refused."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms

from iqagp_jax.labels import fuzzy, iqa, scf
from iqagp_jax.labels.campaign import collect
from iqagp_jax.labels.label import label_geometry, label_key
from iqagp_jax.labels.plan import LabelPlan, check
from iqagp_jax.units import BOHR, HARTREE, KCAL_MOL

WATER = np.array([[0.0, 0.0, 0.1173], [0.0, 0.7572, -0.4692], [0.0, -0.7572, -0.4692]])
PLAN = LabelPlan(basis="6-31g")
FUZZY = {"becke": fuzzy.becke, "hirshfeld": fuzzy.hirshfeld}


def converged(xc="b3lyp", spin=0, charge=0):
    return scf.converge(scf.mean_field(scf.build_molecule("OHH", WATER, "6-31g", charge, spin), xc))


@pytest.fixture(scope="module")
def water():
    return converged()


@pytest.mark.parametrize(
    ("xc", "spin", "charge"), [("b3lyp", 0, 0), ("hf", 0, 0), ("tpss", 0, 0), ("lda,vwn", 0, 0), ("b3lyp", 1, 1)]
)
def test_atomic_energies_sum_to_the_total(xc, spin, charge):
    mf = converged(xc, spin, charge)
    for atoms in iqa.integrate_atoms(mf, FUZZY).values():
        assert atoms.energy.sum() == pytest.approx(mf.e_tot, abs=1e-4)
        assert atoms.population.sum() == pytest.approx(mf.mol.nelectron, abs=1e-4)


def test_atomic_energies_are_smooth_along_a_bond():
    """Short form of scripts/iqa_table.py's row: noise would be learned as forces."""
    lengths, energies = np.linspace(0.92, 1.0, 9), []
    for length in lengths:
        mol = scf.build_molecule("OHH", [[0, 0, 0], [length, 0, 0], [-0.24, 0.93, 0]], "6-31+g(d,p)")
        mf = scf.converge(scf.mean_field(mol, "b3lyp"))
        energies.append(iqa.integrate_atoms(mf, {"becke": fuzzy.becke})["becke"].energy)
    x = (lengths - 0.96) / 0.08
    fit = np.polynomial.polynomial.polyfit(x, energies, 4)
    residual = np.array(energies) - np.polynomial.polynomial.polyval(x, fit).T
    assert 1e6 * np.sqrt(np.mean(residual**2, axis=0)).max() < 0.05  # microhartree


def test_a_lone_electron_is_labelled_by_hartree_fock():
    label = label_geometry(["H"], [[0.0, 0.0, 0.0]], LabelPlan("hf", "6-31g", spin=1))
    assert label["energy"] == pytest.approx(-0.498233 * HARTREE, abs=1e-5)  # of this basis, in any textbook


def test_energy_and_forces_need_no_atoms():
    full, lean = (label_geometry("OHH", WATER, replace(PLAN, partitions=p)) for p in (("becke",), ()))
    assert lean["energy"] == pytest.approx(full["energy"], abs=1e-7)
    np.testing.assert_allclose(lean["forces"], full["forces"], atol=1e-4)
    dataset, rejected = collect([Atoms("OHH", WATER)], [lean], replace(PLAN, partitions=()), {})
    assert dataset.atomic_energies is None and not rejected
    np.testing.assert_array_equal(dataset.forces[0], lean["forces"])


@pytest.mark.parametrize(("xc", "spin"), [("b3lyp", 0), ("b3lyp", 1)])
def test_cycles_on_a_coarse_grid_lead_to_the_fine_ones_energy(xc, spin):
    found = converged(xc, spin, spin)
    plain = scf.mean_field(found.mol, xc)
    plain.grids, plain.conv_tol, plain.conv_tol_grad = iqa.atom_grids(found.mol), 1e-11, 1e-6
    plain.kernel()
    assert found.e_tot == pytest.approx(plain.e_tot, abs=1e-9)
    assert found.cycles <= 2  # not that the fine grid's own cycles did it all


def test_pyscf_multiplies_matrices_with_kernels_of_this_processor():
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("a processor without AVX2")
    script = """
import ctypes, os, iqagp_jax.labels.scf
assert "OPENBLAS_CORETYPE" not in os.environ  # nor for the OpenBLAS of processes that this one starts
library = next(line.split()[-1] for line in open("/proc/self/maps") if "pyscf/lib/libopenblas" in line)
name = ctypes.CDLL(library).openblas_get_corename
name.restype = ctypes.c_char_p
print(name().decode())
"""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    told = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() in ("Haswell", "Zen", "SkylakeX")


def test_components_sum_to_pyscfs_own_integrals(water):
    atoms = iqa.integrate_atoms(water, {"becke": fuzzy.becke})["becke"]
    dm, mol = water.make_rdm1(), water.mol
    coulomb = water.get_j()
    expected = {
        "kinetic": np.sum(mol.intor("int1e_kin") * dm),
        "nucleus_electrons": np.sum(mol.intor("int1e_nuc") * dm),
        "electrons_nuclei": np.sum(mol.intor("int1e_nuc") * dm),
        "coulomb": np.sum(coulomb * dm),
        "nuclear_repulsion": 2 * mol.energy_nuc(),
    }
    for name, value in expected.items():
        assert getattr(atoms, name).sum() == pytest.approx(value, abs=2e-4), name


def test_auxiliary_potential_is_the_coulomb_integral(water):
    from pyscf import gto

    points = np.random.default_rng(0).normal(size=(20, 3)) * 3
    found = iqa.auxiliary_potential(water.with_df.auxmol)(points)
    expected = gto.intor_cross("int2c2e", water.with_df.auxmol, gto.fakemol_for_charges(points))
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_equivalent_hydrogens_are_equal(water):
    for atoms in iqa.integrate_atoms(water, FUZZY).values():
        assert atoms.energy[1] == pytest.approx(atoms.energy[2], abs=1e-5)


def test_partition_weights_share_every_point(water):
    wave = iqa.WaveFunction(water)
    _, volume, _ = wave.grid
    for partition in FUZZY.values():
        weights = partition(wave).weights
        np.testing.assert_allclose(weights.sum(0), volume, atol=1e-12)
        assert (weights * np.sign(volume)).min() >= 0  # some points of an angular grid have negative weights


def test_forces_are_differences_of_the_energy(water):
    step = 1e-3
    energies = []
    for sign in (1, -1):
        moved = WATER.copy()
        moved[1, 1] += sign * step
        energies.append(scf.converge(scf.mean_field(scf.build_molecule("OHH", moved, "6-31g"), "b3lyp")).e_tot)
    quotient = -(energies[0] - energies[1]) / (2 * step) * BOHR
    assert scf.forces(water)[1, 1] == pytest.approx(quotient, abs=2e-6)


def test_label_is_in_electronvolt_and_balanced(water):
    label = label_geometry("OHH", WATER, PLAN)
    assert label["energy"] == pytest.approx(water.e_tot * HARTREE, abs=1e-6)
    frames = [Atoms("OHH", positions=WATER)]
    data, rejected = collect(frames, [label], PLAN, {})
    assert not rejected
    np.testing.assert_allclose(data.atomic_energies.sum(1), data.energy, atol=1e-9)
    assert data.level["partition"] == "becke"


def test_bad_labels_are_rejected_with_their_reason(monkeypatch):
    monkeypatch.setattr("iqagp_jax.labels.label.MAX_REMAINDER", 1e-12)
    reason = label_geometry("OHH", WATER, PLAN)["rejected"]
    assert "atomic energies miss the total" in reason
    frames = [Atoms("OHH", positions=WATER)] * 2
    good = {"energy": 1.0, "forces": [[0.0] * 3] * 3, "raw": {}, "charges": {}, "remainder": {}}
    for name in PLAN.partitions:
        good["raw"][name], good["charges"][name], good["remainder"][name] = [0.0] * 3, [0.0] * 3, 0.0
    data, rejected = collect(frames, [{"rejected": reason}, good], PLAN, {})
    assert len(data) == 1
    assert rejected == [(0, reason)]


def test_pople_sets_are_cartesian_as_elsewhere_however_they_are_spelled():
    cartesian = ("6-31g(d,p)", "6-31+G*", "631+g(d,p)", "6_31g*", "3-21g", "4-31g")
    assert all(map(scf.is_cartesian, cartesian))
    assert not any(map(scf.is_cartesian, ("6-311g(d,p)", "6-311++G**", "6311g*", "def2-svp", "aug-cc-pvdz", "sto-3g")))


def test_a_restricted_open_shell_has_its_electrons():
    mf = SimpleNamespace(mo_coeff=np.eye(4), mo_occ=np.array([2.0, 2.0, 1.0, 0.0]))
    assert [orbitals.shape for orbitals in iqa.occupied_orbitals(mf)] == [(4, 3), (4, 2)]


@pytest.mark.parametrize(
    ("species", "plan", "sentence"),
    [
        ("OHH", {"charge": 1}, "9 electrons cannot have 0 unpaired ones"),
        ("OHH", {"xc": "superb3lyp"}, "expected a functional that PySCF knows"),
        ("OHH", {"xc": "wb97x"}, "range-separated exchange"),
        ("OHH", {"xc": "b3lyp-d3bj"}, "has a dispersion correction"),
        ("OHH", {"basis": "6-31+g(7d)"}, "is not there for all of H O"),
        ("OHH", {"spin": 12}, "10 electrons cannot have 12 unpaired ones"),
        ("OHH", {"basis": "6-31g", "charge": 12}, "-2 electrons cannot have 0 unpaired ones"),
        ("UHH", {"basis": "6-31g"}, "is not there for all of H U"),
        ("UHH", {"basis": "ano"}, "basis 'def2-universal-jkfit' is not there for all of H U"),
        ("IHHH", {"basis": "def2-svp"}, "leaves the core of I to an effective potential"),
        ("IHHH", {"basis": "lanl2dz", "partitions": ("becke",)}, "or no partition"),
    ],
)
def test_impossible_plans_get_a_sentence(species, plan, sentence):
    with pytest.raises(ValueError, match=sentence):
        check([Atoms(species, positions=np.eye(4, 3)[: len(Atoms(species))])], LabelPlan(**{"basis": "6-31g", **plan}))


# Heavy atoms


def hydrogen_iodide(basis, length):
    return scf.build_molecule("HI", [[0, 0, 0], [0, 0, length]], basis)


@pytest.mark.parametrize(("basis", "electrons"), [("3-21g", 54), ("def2-svp", 26)])
def test_a_heavy_atom_is_fitted_with_or_without_its_core(basis, electrons):
    """HI in 3-21G was 8 hartree off, and a stretch by a tenth of an angstrom 1.4 kcal/mol: the fit lacked its core."""
    errors = []
    for length in (1.609, 1.709):
        mol = hydrogen_iodide(basis, length)
        assert mol.nelectron == electrons
        exact = mol.RHF().run(conv_tol=1e-9).e_tot
        errors.append(scf.converge(scf.mean_field(mol, "hf"), scf.FOR_FORCES).e_tot - exact)
    assert abs(errors[0]) < 1e-3
    assert abs(errors[1] - errors[0]) * HARTREE < 0.005 * KCAL_MOL


def test_atoms_of_a_heavy_molecule_sum_to_the_total():
    plan = LabelPlan("hf", "3-21g", partitions=("becke",), forces=False)
    label = label_geometry("HI", np.array([[0, 0, 0], [0, 0, 1.609]]), plan)
    assert abs(label["remainder"]["becke"]) < 0.5e-3 * HARTREE
    assert sum(label["charges"]["becke"]) == pytest.approx(0, abs=1e-4)
    level = plan.level_of("HI")
    assert "even-tempered on I, grid (50, 302)/(75, 302)/(125, 302)" in str(level)
    assert not level.same_energies(plan.level) and plan.level_of("OHH") == plan.level
    dataset, _ = collect([Atoms("HI", [[0, 0, 0], [0, 0, 1.609]])], [label], plan, {})
    assert dataset.level.same_energies(level)


def test_a_core_potential_gives_energies_and_forces_but_no_atoms():
    mol = hydrogen_iodide("def2-svp", 1.609)
    label = label_geometry("HI", mol.atom_coords() * BOHR, LabelPlan("hf", "def2-svp", partitions=()))
    assert label["energy"] == pytest.approx(mol.RHF().run().e_tot * HARTREE, abs=1e-3)
    assert label["forces"][0][2] == pytest.approx(-label["forces"][1][2], abs=1e-4)
    check([Atoms("HI", mol.atom_coords() * BOHR)], LabelPlan("hf", "def2-svp", partitions=()))
    with pytest.raises(ValueError, match="leaves cores to an effective potential"):
        iqa.WaveFunction(scf.mean_field(mol, "hf"))


def test_labels_of_heavy_atoms_are_made_anew():
    """Those of before were fitted wrongly; all others keep their names."""
    assert label_key("OHH", WATER, PLAN) == "049eb4969388df447d1a"
    assert label_key("HI", WATER[:2], PLAN) != "8be867d3e851861ec571"
