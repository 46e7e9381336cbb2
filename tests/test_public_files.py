"""Files as their owners have them: each is learned from, or one sentence says why not and what to do."""

import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from iqagp_jax import fit_gp, load_dataset
from iqagp_jax.data.text import TextFile
from iqagp_jax.units import BOHR, HARTREE, KCAL_MOL

WATER = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
N = 6


def surface():
    """N geometries of water, their energies (eV) and forces by springs, two of them as stiff as its bonds are."""
    positions = WATER + 0.04 * np.random.default_rng(0).normal(size=(N, 3, 3))
    energies, forces = np.full(N, -76.4 * HARTREE), np.zeros((N, 3, 3))
    for i, j, k in ((0, 1, 48.0), (0, 2, 48.0), (1, 2, 6.0)):
        apart = positions[:, j] - positions[:, i]
        length = np.linalg.norm(apart, axis=1)
        stretch = length - np.linalg.norm(WATER[j] - WATER[i])
        pull = (k * stretch / length)[:, None] * apart
        energies += 0.5 * k * stretch**2
        forces[:, i], forces[:, j] = forces[:, i] + pull, forces[:, j] - pull
    return positions, energies, forces


POSITIONS, ENERGIES, FORCES = surface()


def frames(info=lambda k: {}, arrays=lambda k: {}):
    found = []
    for k, positions in enumerate(POSITIONS):
        atoms = Atoms("OHH", positions=positions, info=info(k))
        for name, values in arrays(k).items():
            atoms.arrays[name] = np.asarray(values)
        found.append(atoms)
    return found


def saved(path, atoms):
    write(path, atoms)
    return path


def learns(data):
    """Whether a fit to it works, with all that it has."""
    model = fit_gp(data, max_steps=0)
    return model.targets


def is_right(data):
    np.testing.assert_allclose(data.energy, ENERGIES, rtol=1e-6)
    np.testing.assert_allclose(data.forces, FORCES, atol=1e-3)
    return True


def test_mace(tmp_path):
    free = [Atoms(s, info={"REF_energy": e, "config_type": "IsolatedAtom"}) for s, e in (("H", -13.6), ("O", -2041.8))]
    found = frames(
        lambda k: {"REF_energy": ENERGIES[k], "config_type": "Default", "head": "Default", "REF_dipole": [0.1, 0.2, 0.3]},
        lambda k: {"REF_forces": FORCES[k]},
    )
    with pytest.warns(UserWarning, match=r"left out of the dataset: REF_dipole \(no number or word\)$"):
        data = load_dataset(saved(tmp_path / "mace.xyz", [*free, *found]))
    assert is_right(data) and data.free_atoms == {"H": -13.6, "O": -2041.8}
    assert learns(data) == ("energy", "forces")


def test_mace_with_keys_of_its_own(tmp_path):
    path = saved(tmp_path / "d.xyz", frames(lambda k: {"DFT_energy": ENERGIES[k]}, lambda k: {"DFT_forces": FORCES[k]}))
    with pytest.raises(ValueError, match=r"give --energy-key DFT_energy, in eV"):
        load_dataset(path)
    assert is_right(load_dataset(path, "DFT_energy"))


def test_nequip(tmp_path):
    found = frames()
    for k, atoms in enumerate(found):
        atoms.calc = SinglePointCalculator(atoms, energy=ENERGIES[k], forces=FORCES[k])
    assert is_right(load_dataset(saved(tmp_path / "d.extxyz", found)))


def test_trajectories_of_ase_are_converted_by_the_line_that_is_told(tmp_path):
    found = frames()
    for k, atoms in enumerate(found):
        atoms.calc = SinglePointCalculator(atoms, energy=ENERGIES[k], forces=FORCES[k])
    with pytest.raises(ValueError, match=r"it is a trajectory of ASE; convert it: python -c") as told:
        load_dataset(saved(tmp_path / "d.traj", found))
    run(told, tmp_path)
    assert is_right(load_dataset(tmp_path / "d.extxyz"))


def run(told, folder):
    """Do what a sentence says: the line of Python that it ends with."""
    script = str(told.value).split("python -c ")[1].strip('"')
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)


@pytest.mark.parametrize(
    "names",
    [
        {"R": "R", "z": "z", "E": "E", "F": "F"},  # sGDML, NequIP
        {"R": "coords", "z": "nuclear_charges", "E": "energies", "F": "forces"},  # rMD17
    ],
    ids=["sgdml", "rmd17"],
)
@pytest.mark.parametrize("columns", [1, 0], ids=["(n, 1)", "(n,)"])
def test_archives_are_converted_by_the_line_that_is_told(tmp_path, names, columns):
    arrays = {"R": POSITIONS, "z": np.array([8, 1, 1]), "E": ENERGIES / KCAL_MOL, "F": FORCES / KCAL_MOL}
    if columns:
        arrays["E"] = arrays["E"][:, None]
    np.savez(tmp_path / "d.npz", **{names[key]: values for key, values in arrays.items()}, theory="unknown")
    with pytest.raises(ValueError, match=r"it is a NumPy archive of .*; convert it, u being its energy unit") as told:
        load_dataset(tmp_path / "d.npz")
    run(told, tmp_path)
    assert is_right(load_dataset(tmp_path / "d.extxyz"))


def test_sgdml_as_text(tmp_path):
    lines = []
    for k in range(N):
        lines += ["3", f"{ENERGIES[k] / KCAL_MOL}"]
        rows = np.concatenate([POSITIONS[k], FORCES[k] / KCAL_MOL], axis=1)
        lines += [f"{s} {' '.join(map(str, row))}" for s, row in zip("OHH", rows, strict=True)]
    (tmp_path / "d.xyz").write_text("\n".join(lines) + "\n")
    with pytest.raises(
        ValueError, match=r"as comment; write it as energy=... in eV .* Properties=species:S:1:pos:R:3:forces:R:3"
    ):
        load_dataset(tmp_path / "d.xyz")


def test_kcal_mol_throughout_is_learned_and_named(tmp_path):
    info, arrays = (lambda k: {"energy": ENERGIES[k] / KCAL_MOL}), (lambda k: {"forces": FORCES[k] / KCAL_MOL})
    data = load_dataset(saved(tmp_path / "d.xyz", frames(info, arrays)))
    with pytest.warns(UserWarning, match=r"with energies in kcal/mol and forces in kcal/mol/angstrom, and not in eV"):
        assert learns(data) == ("energy", "forces")


def test_orca(tmp_path):
    unit = HARTREE / BOHR
    path = saved(
        tmp_path / "d.xyz", frames(lambda k: {"energy": ENERGIES[k] / HARTREE}, lambda k: {"forces": FORCES[k] / unit})
    )
    with pytest.warns(UserWarning, match=r"with energies in hartree and forces in hartree/bohr, and not in eV"):
        learns(load_dataset(path))
    lines = []
    for k in range(N):
        lines += ["3", f"Coordinates from ORCA-job opt E {ENERGIES[k] / HARTREE:.12f}"]
        lines += [f"  {s} {' '.join(map(str, r))}" for s, r in zip("OHH", POSITIONS[k], strict=True)]
    (tmp_path / "orca_trj.xyz").write_text("\n".join(lines) + "\n")
    with pytest.raises(
        ValueError, match=r"comments of ORCA, whose number -76.* is the energy in hartree; write it as energy=-207"
    ) as told:
        load_dataset(tmp_path / "orca_trj.xyz")
    assert f"energy={ENERGIES[0]:.4f}" in str(told.value)


def test_spice(tmp_path):
    path = saved(
        tmp_path / "d.xyz",
        frames(
            lambda k: {
                "dft_total_energy": ENERGIES[k] / HARTREE,
                "formation_energy": (ENERGIES[k] + 2070) / HARTREE,
                "smiles": "O",
            },
            lambda k: {
                "dft_total_gradient": -FORCES[k] / HARTREE * BOHR,
                "mbis_charges": np.ones(3),
                "mbis_dipoles": np.ones((3, 3)),
            },
        ),
    )
    with pytest.raises(ValueError, match=r"is it dft_total_energy[?] Then give --energy-key dft_total_energy, in eV"):
        load_dataset(path)
    with pytest.warns(
        UserWarning, match=r"not learned: dft_total_gradient, formation_energy, mbis_dipoles; forces are minus the"
    ):
        data = load_dataset(path, "dft_total_energy")
    with pytest.warns(UserWarning, match=r"labels are those of a molecule with energies in hartree, and not in eV"):
        assert learns(data) == ("energy",)


def test_qm7x(tmp_path):
    path = saved(tmp_path / "d.xyz", frames(lambda k: {"ePBE0+MBD": ENERGIES[k]}, lambda k: {"totFOR": FORCES[k]}))
    with pytest.raises(ValueError, match=r"no frame has energy \(the first one's keys: ePBE0\+MBD, totFOR\); give the name"):
        load_dataset(path)
    with pytest.warns(UserWarning, match=r"not learned: totFOR$"):
        assert load_dataset(path, "ePBE0+MBD").forces is None
    assert is_right(load_dataset(path, "ePBE0+MBD", "totFOR"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\x89HDF\r\n\x1a\n" + 90 * b"\0", "it is an HDF5 file; write each geometry as ase.Atoms"),
        (b"\x93NUMPY\x01\0" + 90 * b"\0", "it is a NumPy array; write each geometry as ase.Atoms"),
        (b"SQLite format 3\0" + 90 * b"\0", "it is a database of ASE; convert it: python -c"),
        (b"PK\x03\x04" + 90 * b"\0", "it is a zip archive; unpack it first"),
        (90 * b"\x01\0", "it is a binary file"),
        (b"", "it is empty; was it cut off"),
        (
            b"f1,f2,iqa\n1,2,3\n",
            "expected the number of atoms in its first line, found 'f1,f2,iqa'; if it is an output that ASE",
        ),
        (b'{"energies": [1.0]}', "expected the number of atoms in its first line, found"),
    ],
)
def test_other_files_are_told_what_they_are(tmp_path, content, sentence):
    (tmp_path / "d.extxyz").write_bytes(content)
    with pytest.raises(ValueError, match=r"d.extxyz is not a whole extxyz file") as told:
        load_dataset(tmp_path / "d.extxyz")
    assert sentence in str(told.value)
    assert "write('d.extxyz', read('d.extxyz'" not in str(told.value)


@pytest.mark.parametrize("written", ["utf-8-sig", "utf-16", "latin-1"])
def test_text_in_other_encodings_is_read(tmp_path, written):
    path = saved(tmp_path / "d.xyz", frames(lambda k: {"REF_energy": ENERGIES[k]}, lambda k: {"REF_forces": FORCES[k]}))
    path.write_bytes(path.read_text().replace("REF_energy", 'unit="Å" REF_energy').encode(written))
    assert is_right(load_dataset(path))


def test_text_of_other_programs_is_text(tmp_path):
    (tmp_path / "binary.int").write_bytes(90 * b"\x01\0")
    for name, sentence in (
        ("", "found a folder at"),
        ("nothing.int", "found nothing at"),
        ("binary.int", "found a binary one at"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=f"expected a text file, {sentence}"):
            TextFile(tmp_path / name)
    for encoding in ("utf-8-sig", "utf-16", "latin-1"):
        (tmp_path / "a.int").write_bytes("Å 1\r\nb\n".encode(encoding))
        assert TextFile(tmp_path / "a.int").lines == ["Å 1", "b"]
