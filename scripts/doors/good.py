"""Good input, and what is done with it where that is no command. Most is of water in springs, which costs nothing."""

import os
import shutil
from pathlib import Path

import numpy as np
from dialect import reference_files

from doors.judge import command, outcome_of

HARTREE, BOHR = 27.211386, 0.529177

SHORT = "--replicas 2 --time 0.02 --frame-interval 5 --temperature 300 --start equilibrium --seed 1"
SIMULATE = f"simulate model.safetensors --out run {SHORT}"
HOT = SIMULATE.replace("--temperature 300", "--temperature 300 --temperature 300000")
ROBUSTNESS = f"robustness model.safetensors --out verdict --reference none --workers 1 {SHORT}"
LEARN = (
    "active xtb.safetensors xtb.extxyz --out rounds --reference xtb --rounds 1 --per-round 2 --frames 2 --workers 1"
    f" --max-uncertainty 1000 --energy-window 1000 {SHORT}"
)

REST = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])


def energies(positions):
    """Atomic energies (n, 3), eV, of geometries (n, 3, 3) of water, near those of B3LYP."""
    pairs = ((0, 1, 26.0, 0.96), (0, 2, 26.0, 0.96), (1, 2, 5.0, 1.52))
    shares = np.tile([-2046.0, -16.5, -16.5], (len(positions), 1))
    for i, j, strength, rest in pairs:
        spring = strength * (np.linalg.norm(positions[:, i] - positions[:, j], axis=1) - rest) ** 2
        shares[:, i] += spring / 2
        shares[:, j] += spring / 2
    return shares


def forces(positions, step=1e-5):
    """Forces (n, 3, 3) by central differences."""
    found = np.zeros_like(positions)
    for atom, axis in np.ndindex(3, 3):
        shift = np.zeros((3, 3))
        shift[atom, axis] = step
        found[:, atom, axis] = (energies(positions - shift) - energies(positions + shift)).sum(1) / (2 * step)
    return found


def dataset(path, n, seed):
    """An extxyz file of n labelled geometries."""
    from iqagp_jax.data.dataset import Dataset
    from iqagp_jax.data.extxyz import save_dataset

    positions = np.round(REST + 0.06 * np.random.default_rng(seed).normal(size=(n, 3, 3)), 8)
    atoms = energies(positions)
    free = {"O": -2041.0, "H": -13.6}
    save_dataset(Dataset(("O", "H", "H"), positions, atoms.sum(1), forces(positions), atoms, free_atoms=free), path)


def to_train():
    dataset("data.extxyz", 12, 1)


def to_test():
    dataset("test.extxyz", 6, 2)


def made(path, *words):
    """A file or folder that a command makes of datasets, made once for all doors and copied here."""
    known = Path("../base", path).absolute()
    if not known.exists():
        here = Path.cwd()
        known.parent.mkdir(exist_ok=True)
        os.chdir(known.parent)
        for fill in (water_xyz, to_train, to_test):
            fill()
        status, said, _ = outcome_of(command, [str(word) for word in words])
        os.chdir(here)
        if status:
            raise RuntimeError(said)
    (shutil.copytree if known.is_dir() else shutil.copy)(known, path)


def model(path="model.safetensors", *words):
    made(path, "train", "data.extxyz", "-o", path, "--max-steps", 0, *words)


def local_frames():
    model("alf.safetensors", "--features", "alf", "--targets", "atomic_energies")


def of_ferebus():
    local_frames()
    made("ferebus", "convert", "alf.safetensors", "-o", "ferebus")
    Path("alf.safetensors").unlink()


def to_validate():
    model()
    to_test()


def csv():
    """A FEREBUS training set of the oxygen of water."""
    positions = REST + 0.06 * np.random.default_rng(3).normal(size=(20, 3, 3))
    bonds = (positions[:, 1:] - positions[:, :1]) / BOHR
    lengths = np.linalg.norm(bonds, axis=2)
    angles = np.arccos((bonds[:, 0] * bonds[:, 1]).sum(1) / lengths.prod(1))
    rows = np.column_stack([lengths, angles, energies(positions)[:, 0] / HARTREE])
    lines = [",f1,f2,f3,iqa", *(f"{k},{','.join(f'{x:.10f}' for x in row)}" for k, row in enumerate(rows))]
    Path("o1.csv").write_text("\n".join(lines) + "\n")


def water_xyz():
    Path("water.xyz").write_text("3\n\nO 0.0 0.0 0.0\nH 0.96 0.0 0.0\nH -0.24 0.93 0.0\n")


def campaign():
    made(
        "labels", "label", "water.xyz", "--campaign", "labels", "--method", "hf/sto-3g", "--partition", "becke", "--workers", 1
    )


def packed():
    campaign()
    outcome_of(command, ["campaign", "pack", "labels"])


def a_run():
    model()
    made("run", *HOT.split())


def a_verdict():
    model()
    made("verdict", *ROBUSTNESS.split())


def of_xtb():
    """A dataset and a model of GFN2-xTB."""
    made("xtb.extxyz", "label", "test.extxyz", "-o", "xtb.extxyz", "--method", "gfn2-xtb", "--workers", 1)
    made("xtb.safetensors", "train", "xtb.extxyz", "-o", "xtb.safetensors", "--max-steps", 0)


def rounds():
    of_xtb()
    made("rounds", *LEARN.split())


# What is no command.


def saved(**arrays):
    """What comes of a call from Python."""
    np.savez("out.npz", **{name: np.asarray(array) for name, array in arrays.items()})


def calculate(words):
    from ase import Atoms

    from iqagp_jax.ase_calculator import IQAGP

    atoms = Atoms("OHH", positions=REST, calculator=IQAGP(words[0]))
    saved(energy=atoms.get_potential_energy(), forces=atoms.get_forces())


def aimall(words):
    from iqagp_jax.formats.aimall import dataset_from_aimall, read_sum

    molecule = read_sum(words[0], words[1])
    data = dataset_from_aimall([molecule])
    saved(energies=data.atomic_energies, positions=data.positions, **data.extra, **molecule.moments)


def of_aimall():
    for path in (reference_files("aimall_water", short=True) / "0000").iterdir():
        if path.suffix in (".int", ".sum"):
            shutil.copy(path, path.name.lower().replace("water_monomer0000", "water"))


def wavefunctions(words):
    from iqagp_jax.labels.wavefunction import read_wavefunction

    field = read_wavefunction(words[0], "hf")
    saved(
        energy=field.e_tot,
        density=field.make_rdm1(),
        overlap=field.mol.intor("int1e_ovlp"),
        kinetic=field.mol.intor("int1e_kin"),
        charges=field.mol.atom_charges(),
        positions=field.mol.atom_coords(),
    )


def of_pyscf():
    """Wave functions of water in a minimal basis."""
    from pyscf.tools import molden, wfn_format

    from iqagp_jax.labels import scf

    field = scf.converge(scf.mean_field(scf.build_molecule("OHH", REST, "sto-3g", 0, 0), "hf"))
    occupied = field.mo_occ > 0
    with open("water.wfn", "w") as file:
        wfn_format.write_mo(file, field.mol, field.mo_coeff[:, occupied], field.mo_energy[occupied], field.mo_occ[occupied])
    text = Path("water.wfn").read_text()
    Path("water.wfn").write_text(text.replace("ENERGY =        0.0000000000", f"ENERGY = {field.e_tot:20.10f}"))
    molden.from_scf(field, "water.molden")
    Path("water.wfx").write_text("<Title>\n water\n</Title>\n<Number of Nuclei>\n 3\n</Number of Nuclei>\n")
