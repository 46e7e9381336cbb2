"""Wave function files written by PySCF are read back as the calculation that they came from."""

import re

import numpy as np
import pytest
from pyscf import gto
from pyscf import scf as pyscf_scf
from pyscf.tools import molden, wfn_format

from iqagp_jax.data.level import Level
from iqagp_jax.labels import fuzzy, iqa, scf
from iqagp_jax.labels.wavefunction import label_wavefunctions, read_wavefunction
from iqagp_jax.units import HARTREE

WATER = np.array([[0.03, 0.0, 0.1173], [0.0, 0.7572, -0.4692], [0.0, -0.7572, -0.4692]])

FUZZY = {"becke": fuzzy.becke, "hirshfeld": fuzzy.hirshfeld}


def converged(basis, xc, charge=0, spin=0):
    return scf.converge(scf.mean_field(scf.build_molecule("OHH", WATER, basis, charge, spin), xc))


def write_wfn(mf, path, energy=0.0):
    """PySCF's .wfn file of the occupied orbitals, those of the second spin behind those of the first."""
    mo, occ = np.asarray(mf.mo_coeff), np.asarray(mf.mo_occ)
    if mo.ndim == 3:
        mo, occ = np.concatenate(mo, axis=1), np.concatenate(occ)
    with open(path, "w") as file:
        wfn_format.write_mo(file, mf.mol, mo[:, occ > 0], np.zeros((occ > 0).sum()), occ[occ > 0])
    path.write_text(path.read_text().replace("ENERGY =        0.0000000000", f"ENERGY = {energy:20.10f}"))


@pytest.fixture(scope="module")
def water():
    return converged("def2-svp", "pbe")


@pytest.fixture
def wfn(water, tmp_path):
    write_wfn(water, tmp_path / "water.wfn", water.e_tot)
    return tmp_path / "water.wfn"


@pytest.fixture
def molden_file(water, tmp_path):
    molden.from_scf(water, str(tmp_path / "water.molden"))
    return tmp_path / "water.molden"


@pytest.mark.parametrize(
    ("basis", "xc", "charge", "spin"),
    [("6-31g(d)", "b3lyp", 0, 0), ("cc-pvtz", "hf", 0, 0), ("def2-svp", "b3lyp", 1, 1)],
    ids=["cartesian d", "spherical f", "open shell"],
)
def test_molden_gives_the_same_atomic_energies(tmp_path, basis, xc, charge, spin):
    mf = converged(basis, xc, charge, spin)
    molden.from_scf(mf, str(tmp_path / "water.molden"))
    read = read_wavefunction(tmp_path / "water.molden", xc, charge, spin)
    expected, found = (iqa.integrate_atoms(m, FUZZY) for m in (mf, read))
    assert read.e_tot == pytest.approx(mf.e_tot, abs=1e-8)
    for name in expected:
        np.testing.assert_allclose(found[name].energy, expected[name].energy, atol=1e-8)


@pytest.mark.parametrize(("basis", "charge", "spin"), [("cc-pvtz", 0, 0), ("def2-svp", 1, 1)])
def test_wfn_gives_the_same_atomic_energies(tmp_path, basis, charge, spin):
    mf = converged(basis, "b3lyp", charge, spin)
    write_wfn(mf, tmp_path / "water.wfn", mf.e_tot)
    read = read_wavefunction(tmp_path / "water.wfn", "b3lyp", charge, spin)
    expected, found = (iqa.integrate_atoms(m, {"becke": fuzzy.becke})["becke"] for m in (mf, read))
    # The file holds eight digits.
    for name in ("kinetic", "nucleus_electrons", "electrons_nuclei", "population"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-6)
    # Cartesian primitives are fitted with Cartesian auxiliary functions, of which there are more.
    np.testing.assert_allclose(found.energy, expected.energy, atol=5e-5)


def test_wfn_primitives_up_to_h(tmp_path):
    shells = [[degree, [0.6 + 0.2 * degree, 1.0]] for degree in range(6)]
    mol = gto.M(atom=[["H", (0, 0, 0)], ["H", (0.3, 0.5, 1.1)]], unit="Bohr", basis={"H": shells}, verbose=0)
    mf = pyscf_scf.RHF(mol).run(conv_tol=1e-12)
    write_wfn(mf, tmp_path / "hydrogen.wfn")
    read = read_wavefunction(tmp_path / "hydrogen.wfn", "hf")
    for operator in ("int1e_ovlp", "int1e_kin", "int1e_nuc"):
        expected, found = (np.sum(m.mol.intor(operator) * m.make_rdm1()) for m in (mf, read))
        assert found == pytest.approx(expected, abs=1e-6), operator


def test_wfn_primitive_listed_twice(tmp_path):
    half = (2 / np.pi) ** 0.75 / 2
    (tmp_path / "helium.wfn").write_text(
        f"""one Gaussian, in two halves
GAUSSIAN              1 MOL ORBITALS      2 PRIMITIVES        1 NUCLEI
  He   1    (CENTRE  1)   0.00000000  0.00000000  0.00000000  CHARGE =  2.0
CENTRE ASSIGNMENTS    1  1
TYPE ASSIGNMENTS      1  1
EXPONENTS  0.1000000D+01 0.1000000D+01
MO    1     MO 0.0        OCC NO =    2.0000000  ORB. ENERGY =   -0.500000
  {half:.8f}D+00  {half:.8f}D+00
END DATA
 TOTAL ENERGY =        0.000000000000 THE VIRIAL(-V/T)=   0.00000000
"""
    )
    mf = read_wavefunction(tmp_path / "helium.wfn", "hf")
    # The kinetic energy of an electron in a Gaussian is 3/2 zeta.
    assert np.sum(mf.mol.intor("int1e_kin") * mf.make_rdm1()) == pytest.approx(3, abs=1e-6)


def test_broken_spin_symmetry(tmp_path):
    mol = scf.build_molecule("HH", [[0, 0, 0], [0, 0, 2.5]], "def2-svp")
    mf = pyscf_scf.UKS(mol, xc="b3lyp").density_fit(auxbasis=scf.AUXILIARY_BASIS)
    mf.grids = iqa.atom_grids(mol)
    mf.kernel(np.array([np.diag(np.arange(mol.nao) < 5), np.diag(np.arange(mol.nao) >= 5)]) * 0.2)
    assert mf.spin_square()[0] > 0.5
    molden.from_scf(mf, str(tmp_path / "hydrogen.molden"))
    assert read_wavefunction(tmp_path / "hydrogen.molden", "b3lyp").e_tot == pytest.approx(mf.e_tot, abs=1e-8)


def test_label_is_a_dataset(wfn, molden_file, water):
    data = label_wavefunctions([wfn, molden_file], "pbe", ("becke",))
    np.testing.assert_allclose(data.energy, water.e_tot * HARTREE, atol=1e-5)
    np.testing.assert_allclose(data.positions, [WATER, WATER], atol=1e-7)
    np.testing.assert_allclose(data.atomic_energies.sum(1), data.energy, atol=1e-9)
    assert data.forces is None
    assert data.level["partition"] == "becke"
    assert data.level.same_energies(Level.of_words(data.level.theory))


def test_labels_of_an_ion_tell_its_charge_and_spin(tmp_path):
    mol = scf.build_molecule("HH", [[0, 0, 0], [0, 0, 1.06]], "6-31g", 1, 1)
    molden.from_scf(scf.mean_field(mol, "hf").run(), str(tmp_path / "ion.molden"))
    level = label_wavefunctions([tmp_path / "ion.molden"], "hf", ("becke",), charge=1, spin=1).level
    assert (level.charge, level.spin) == (1, 1)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("END DATA", "", "'END DATA', found the end of the file"),
        ("MO  3 ", "", "expected orbital 3 of 5"),
        ("OCC NO =   2.0000", "OCC NO =   1.9876", "found 1.9876; natural orbitals"),
        ("CHARGE = 8.0", "CHARGE = 6.0", "line 3: expected an element with its nuclear charge, found O with 6; core pot"),
        ("EXPONENTS  2.2661768E+03", "EXPONENTS  *************", r"line \d+: expected a number, found '\*"),
        ("1.0480921E+00", "1.3480921E+00", "expected orthonormal orbitals"),
        (
            "TYPE ASSIGNMENTS      1",
            "TYPE ASSIGNMENTS     99",
            "expected a number from 1 to 56 in the type assignments, found '99'",
        ),
        ("GAUSSIAN", "SLATER", "line 2: expected 'GAUSSIAN"),
        ("EXPONENTS  2.2661768E+03", "EXPONENTS  0.0000000E+00", r"line \d+: expected exponents of Gaussians.* found 0"),
        ("EXPONENTS  2.2661768E+03", "EXPONENTS -2.2661768E+03", r"line \d+: expected exponents of Gaussians.* found -2266"),
        ("EXPONENTS  2.2661768E+03", "EXPONENTS  2.266176E+300", r"expected exponents of Gaussians.* found 2.26618e\+300"),
        ("CHARGE = 8.0", "CHARGE = 200.", "line 3: expected an element with its nuclear charge, found O with 200"),
        ("CHARGE = 8.0", "CHARGE = 0.5", "line 3: expected an element with its nuclear charge, found O with 0.5"),
        ("OCC NO =   2.0000", "OCC NO =   -1.000", "found -1; natural orbitals"),
        (
            "CENTRE ASSIGNMENTS    1",
            "CENTRE ASSIGNMENTS    9",
            "expected a number from 1 to 3 in the centre assignments, found '9'",
        ),
        (" 3 NUCLEI", " 0 NUCLEI", "expected orbitals, primitives and nuclei, found 5, 39 and 0"),
        (" 3 NUCLEI", " 9 NUCLEI", "expected a nucleus with its position and charge"),
    ],
)
def test_broken_wfn_gets_a_sentence(wfn, old, new, sentence):
    text = wfn.read_text()
    assert old in text
    wfn.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=sentence):
        read_wavefunction(wfn, "pbe")


def test_atoms_in_one_place_get_a_sentence(wfn):
    lines = wfn.read_text().splitlines(keepends=True)
    lines[4] = lines[3].replace("2    (CENTRE  2)", "3    (CENTRE  3)")
    wfn.write_text("".join(lines))
    with pytest.raises(ValueError, match=r"expected atoms at least 0.1 bohr from each other, found 0"):
        read_wavefunction(wfn, "pbe")


@pytest.mark.parametrize("suffix", ["wfn", "molden"])
def test_what_is_cut_off_or_something_else_gets_a_sentence(suffix, wfn, molden_file, water, tmp_path):
    path = wfn if suffix == "wfn" else molden_file
    whole = path.read_bytes()
    for size in (0, 1, 60, 200, *range(300, len(whole) - 300, len(whole) // 9)):
        path.write_bytes(whole[:size])
        try:
            energy = read_wavefunction(path, "pbe").e_tot
        except ValueError as error:
            assert re.search("expected|cut off", str(error))
        else:  # of a molden file only empty orbitals were lost
            assert suffix == "molden" and energy == pytest.approx(water.e_tot, abs=1e-6)
    path.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(ValueError, match="expected"):
        read_wavefunction(path, "pbe")
    with pytest.raises(FileNotFoundError, match="expected a text file, found nothing at"):
        read_wavefunction(tmp_path / f"none.{suffix}", "pbe")
    (tmp_path / f"folder.{suffix}").mkdir()
    with pytest.raises(FileNotFoundError, match="expected a text file, found a folder at"):
        read_wavefunction(tmp_path / f"folder.{suffix}", "pbe")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("[GTO]", "", r"expected a section \[GTO\], found none"),
        ("[MO]", "[core]\n1 : 2\n[MO]", "core potentials, whose core electrons"),
        ("[5d]", "[6d]", "found a mixture"),
        ("Occup=    2.00000", "Occup=    0.00000", "expected 10 electrons, 0 of them unpaired.* found 8 and 0"),
        ("Ene=", "Ene= two", "is not a molden file that PySCF can read"),
        ("Occup=    2.00000", "Occup=    nan", "expected the occupations of a single determinant"),
        ("1   8", "1   200", "expected an element with its nuclear charge, found O with 200"),
        ("2266.1767785", "0.0", r"line \d+: expected exponents of Gaussians, which are positive, found 0"),
        ("2266.176", "-2266.176", r"line \d+: expected exponents of Gaussians, which are positive, found -2266"),
    ],
)
def test_broken_molden_gets_a_sentence(molden_file, old, new, sentence):
    text = molden_file.read_text()
    assert old in text
    molden_file.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=sentence):
        read_wavefunction(molden_file, "pbe")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "does not name its functional; give xc"),
        ({"xc": "pbe0"}, "give the functional they were made with"),
        ({"xc": "wb97x"}, "range-separated exchange"),
        ({"xc": "pbe", "charge": 1, "spin": 1}, "expected 9 electrons, 1 of them unpaired"),
    ],
)
def test_what_the_file_does_not_say_must_be_right(wfn, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_wavefunction(wfn, **options)
