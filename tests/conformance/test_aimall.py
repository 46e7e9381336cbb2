"""AIMAll's water (../shared/reference/aimall_water): its files are read, and its wave functions give its energies."""

from dataclasses import fields

import numpy as np
import pytest
from ase.io import read
from pyscf import dft

from iqagp_jax.data.extxyz import load_dataset, save_dataset
from iqagp_jax.formats.aimall import dataset_from_aimall, read_int, read_sum
from iqagp_jax.labels import fuzzy, iqa
from iqagp_jax.labels.wavefunction import read_wavefunction
from iqagp_jax.units import HARTREE

COMPONENTS = [f.name for f in fields(iqa.AtomicIntegrals) if f.name not in ("exact_exchange", "multipoles")]


@pytest.fixture(params=["0000", "0001"])
def folder(request, reference_folder):
    return reference_folder / "aimall_water" / request.param


@pytest.fixture
def molecule(folder):
    return read_sum(folder / f"WATER_MONOMER{folder.name}.sum", folder)


@pytest.fixture
def copied(reference_folder, tmp_path):
    """Files that may be broken."""
    for path in (reference_folder / "aimall_water/0000").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_atomic_energies_sum_to_the_molecular_energy(molecule):
    assert molecule.model == "Restricted B3LYP"
    # 5 microhartree: what the integration left of it; the largest |L| is 3e-5.
    assert molecule.energy.sum() == pytest.approx(molecule.total_energy, abs=5e-6)
    assert molecule.population.sum() == pytest.approx(10, abs=1e-5)
    np.testing.assert_allclose(molecule.energy, molecule.intra + molecule.inter, atol=1e-8)
    assert np.abs(molecule.laplacian).max() < 1e-4


def test_atoms_and_molecule_agree(folder, molecule):
    for k, name in enumerate(molecule.names):
        atom = read_int(folder / f"{name.lower()}.int")
        for key in ("energy", "intra", "inter", "charge", "laplacian", *COMPONENTS):
            whole = molecule.charges if key == "charge" else getattr(molecule, key)
            assert getattr(atom, key) == pytest.approx(whole[k], abs=1e-8), key
        assert molecule.moments["q00"][k] == atom.charge


def test_moments_are_real_solid_harmonics(folder):
    # The file's Cartesian moments -<xy>, -<xx>, -<yy> of O1 make Q[2,2].
    lines = (folder / "o1.int").read_text().splitlines()
    cartesian = {axes: float(line.split("=")[1]) for line in lines for axes in ("xx", "yy", "xy") if f"-<Rho*{axes}> " in line}
    moments = read_int(folder / "o1.int").moments
    assert moments["q22c"] == pytest.approx(np.sqrt(3) / 2 * (cartesian["xx"] - cartesian["yy"]), abs=1e-8)
    assert moments["q22s"] == pytest.approx(np.sqrt(3) * cartesian["xy"], abs=1e-8)
    assert len(moments) == 36


def test_dataset(molecule, folder, tmp_path):
    save_dataset(dataset_from_aimall([molecule, molecule]), tmp_path / "water.extxyz")
    data = load_dataset(tmp_path / "water.extxyz")
    np.testing.assert_allclose(data.positions[1], read(folder / f"WATER_MONOMER{folder.name}.xyz").positions, atol=2e-8)
    np.testing.assert_allclose(data.extra["qtaim_energies"][0], molecule.energy * HARTREE, atol=1e-7)
    assert data.energy[0] == pytest.approx(molecule.total_energy * HARTREE)
    assert data.level["partition"] == "qtaim"


def test_wave_function_has_aimalls_energies(folder, molecule):
    mf = read_wavefunction(folder / f"WATER_MONOMER{folder.name}.wfn")
    exact = dft.RKS(mf.mol, xc="b3lyp")
    exact.grids.level = 5
    exact.mo_coeff, exact.mo_occ = mf.mo_coeff, mf.mo_occ
    density = exact.make_rdm1()
    assert exact.energy_tot(density) == pytest.approx(molecule.total_energy, abs=2e-6)
    kinetic = np.sum(mf.mol.intor("int1e_kin") * density)
    # The virial ratio belongs to the file's energy and the orbitals' kinetic energy; the file holds nine digits.
    assert 1 - molecule.total_energy / kinetic == pytest.approx(molecule.virial_ratio, abs=1e-7)

    atoms = iqa.integrate_atoms(mf, {"becke": fuzzy.becke})["becke"]
    np.testing.assert_allclose(atoms.nucleus_electrons, molecule.nucleus_electrons, atol=1e-7)
    np.testing.assert_allclose(atoms.nuclear_repulsion, molecule.nuclear_repulsion, atol=1e-7)
    # Other atoms, the same molecule: density fitting and grid leave 0.1 mHa.
    for name in ("kinetic", "electrons_nuclei", "coulomb", "exchange_correlation", "population", "energy"):
        assert getattr(atoms, name).sum() == pytest.approx(getattr(molecule, name).sum(), abs=1e-4), name


@pytest.mark.parametrize("change", [lambda text: text.replace("\n", "\r\n"), lambda text: text.replace("E+0", "D+0")])
def test_other_line_ends_and_exponents_are_read(copied, change):
    path = copied / "o1.int"
    expected = read_int(path)
    path.write_bytes(change(path.read_text()).encode())
    assert read_int(path) == expected


@pytest.mark.parametrize(
    ("name", "old", "new", "sentence"),
    [
        ("o1.int", "AIMInt is Done", "", r"o1.int, line \d+: expected a line with 'AIMInt is Done', found the end"),
        (
            "o1.int",
            "IQA Energy Components",
            "Energy",
            "expected IQA energy components, found none; run AIMAll with -encomp=3 or 4",
        ),
        (
            "o1.int",
            "E_IQA(A)                          = -7.54",
            "E_IQA(A) = -7.55",
            "components that sum to E_IQA, found a difference",
        ),
        (
            "o1.int",
            "VeeX(A,A)                         = -8.70",
            "VeeX(A,A) = NaN0",
            r"line \d+: expected a number, found 'NaN0",
        ),
        (
            "o1.int",
            "          L = -2.8725236559E-05",
            "          L = ****************",
            r"line \d+: expected a number, found '\*\*",
        ),
        ("o1.int", "Vnn(A,Mol)/2 ", "Vnn", r"found no Vnn\(A,Mol\)/2"),
        ("WATER_MONOMER0000.sum", "Total time for AIMSum", "", "expected a line with 'Total time for AIMSum'"),
        ("WATER_MONOMER0000.sum", "\nH3       -4.86", "\nH4       -4.86", "expected a row for O1 H2 H3, found O1 H2 H4"),
        ("WATER_MONOMER0000.sum", "-4.8619221042E-01", "", r"line \d+: expected 8 numbers .* found 7"),
        ("WATER_MONOMER0000.sum", "H3         1.0", "H3         nan", r"line \d+: expected a number, found 'nan'"),
        ("WATER_MONOMER0000.sum", "O1         8.0", "O1         9.0", "line 39: expected the nuclear charge 8 of O1, found 9"),
        (
            "WATER_MONOMER0000.sum",
            "O1         8.0",
            "O1         0.5",
            "line 39: expected the nuclear charge 8 of O1, found 0.5",
        ),
        (
            "WATER_MONOMER0000.sum",
            "O1         8.0",
            "O1       200.0",
            "line 39: expected the nuclear charge 8 of O1, found 200",
        ),
        ("WATER_MONOMER0000.sum", "O1         8.0", "Q1         8.0", "expected an atom named by its element and a number"),
        (
            "WATER_MONOMER0000.sum",
            "\nH3         1.0",
            "\nH2         1.0",
            "expected one row for each atom, found another of H2",
        ),
        (
            "WATER_MONOMER0000.sum",
            "Atom A          q(A)",
            "Atom A          p(A)",
            r"expected columns q\(A\), L\(A\), found no q",
        ),
        ("WATER_MONOMER0000.sum", "O1       -1.0519", "O1       -9.0519", "as the sum of the atomic charges, found -8 e more"),
        ("o1.int", "q = -1.0519", "q = -0.0519", r"line 128: expected electrons and charge that sum to 8 of O1, found 9.05"),
        (
            "o1.int",
            "E_IQA_Intra(A)                    = -7",
            "E_IQA_Intra(A) = -6",
            "expected E_IQA_Intra and E_IQA_Inter that sum",
        ),
    ],
)
def test_broken_file_gets_a_sentence(copied, name, old, new, sentence):
    path = copied / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=sentence):
        read_int(path) if path.suffix == ".int" else read_sum(path)


@pytest.mark.parametrize("name", ["o1.int", "WATER_MONOMER0000.sum"])
def test_what_is_cut_off_or_something_else_gets_a_sentence(copied, name):
    path = copied / name
    read_it, whole = read_int if path.suffix == ".int" else read_sum, path.read_bytes()
    for size in (0, 1, 60, *range(300, len(whole) - 300, len(whole) // 20)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"line \d+: expected"):
            read_it(path)
    path.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(ValueError, match="expected a text file, found a binary one"):
        read_it(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="expected a text file, found nothing at"):
        read_it(path)
    path.mkdir()
    with pytest.raises(FileNotFoundError, match="expected a text file, found a folder at"):
        read_it(path)


def test_a_missing_atom_gets_a_sentence(copied):
    (copied / "h3.int").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected a text file, found nothing at '.*h3.int'"):
        read_sum(copied / "WATER_MONOMER0000.sum", copied)


def test_atoms_of_another_geometry_get_a_sentence(reference_folder):
    folder = reference_folder / "aimall_water"
    with pytest.raises(ValueError, match="give the folder of the same geometry"):
        read_sum(folder / "0000/WATER_MONOMER0000.sum", folder / "0001")


def test_atomic_energies_that_miss_the_total_get_a_sentence(copied):
    path = copied / "WATER_MONOMER0000.sum"
    path.write_text(path.read_text().replace("from the wfn file:  -7.6421710687E+01", "from the wfn file:  -7.6431710687E+01"))
    with pytest.raises(ValueError, match=r"miss the molecular energy by -10\.003 mHa"):
        dataset_from_aimall([read_sum(path)])
