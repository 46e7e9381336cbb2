"""AIMAll's results (version 19): ``.int``, the integrals of one atom, and ``.sum``, those of a molecule.

Energies are in hartree, lengths in bohr, charges and populations in e, as in `iqagp_jax.labels.iqa`, so that
``getattr(read_sum(path), name) - getattr(integrals, name)`` compares a component of its `AtomicIntegrals`;
`dataset_from_aimall` gives eV and angstrom. AIMAll's own names of the IQA energies are the keys of ``components``:

| AIMAll                          | here                                    |
| ------------------------------- | --------------------------------------- |
| T(A)                            | ``kinetic``                             |
| Vne(A,Mol)/2                    | ``nucleus_electrons`` / 2               |
| Ven(A,Mol)/2                    | ``electrons_nuclei`` / 2                |
| VeeC(A,A) + VeeC(A,A')/2        | ``coulomb`` / 2                         |
| VeeX(A,A) + VeeX(A,A')/2        | ``exchange_correlation``                |
| Vnn(A,Mol)/2                    | ``nuclear_repulsion`` / 2               |
| E_IQA(A), E_IQA_Intra(A), E_IQA_Inter(A) | ``energy``, ``intra``, ``inter`` |
"""

import re
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from iqagp_jax.data.dataset import Dataset
from iqagp_jax.data.level import Level
from iqagp_jax.data.text import TextFile
from iqagp_jax.system.elements import parse_atom
from iqagp_jax.units import BOHR, HARTREE

MAX_REMAINDER = 1e-3
"""Largest accepted difference between the sum of the atomic energies and the molecular energy of a label, in hartree."""

ROUNDING = 1e-5
"""Difference in hartree that sums of printed energies may have."""

CHARGES = 0.01
"""Difference in e that integrated charges may have from what they sum to."""

REQUIRED = (
    *("E_IQA(A)", "E_IQA_Intra(A)", "E_IQA_Inter(A)", "T(A)", "Vne(A,Mol)/2", "Ven(A,Mol)/2", "Vnn(A,Mol)/2"),
    *("VeeC(A,A)", "VeeC(A,A')/2", "VeeX(A,A)", "VeeX(A,A')/2"),
)
"""Energies that every result must hold."""


class IQAEnergies:
    """IQA energies by the names of `iqagp_jax.labels.iqa.AtomicIntegrals`, from ``components``."""

    components: dict

    @property
    def kinetic(self):
        """T_A, of the Hamiltonian form (K)."""
        return self.components["T(A)"]

    @property
    def nucleus_electrons(self):
        """Nucleus A with all electrons."""
        return 2 * self.components["Vne(A,Mol)/2"]

    @property
    def electrons_nuclei(self):
        """Electrons of A with all nuclei."""
        return 2 * self.components["Ven(A,Mol)/2"]

    @property
    def coulomb(self):
        """Electrons of A with all electrons, classical."""
        return 2 * (self.components["VeeC(A,A)"] + self.components["VeeC(A,A')/2"])

    @property
    def exchange_correlation(self):
        """Exchange-correlation energy of the functional in A."""
        return self.components["VeeX(A,A)"] + self.components["VeeX(A,A')/2"]

    @property
    def nuclear_repulsion(self):
        """Nucleus A with all other nuclei."""
        return 2 * self.components["Vnn(A,Mol)/2"]

    @property
    def energy(self):
        """E_IQA of the atom as the file states it."""
        return self.components["E_IQA(A)"]

    @property
    def intra(self):
        """The atom's own part of ``energy``."""
        return self.components["E_IQA_Intra(A)"]

    @property
    def inter(self):
        """Half of the interactions with the other atoms: ``energy`` - ``intra``."""
        return self.components["E_IQA_Inter(A)"]


@dataclass(frozen=True)
class AIMAllAtom(IQAEnergies):
    """One atom of an ``.int`` file: numbers in hartree, bohr and e."""

    name: str
    """element and number, as in O1"""
    version: str
    model: str
    """as in Restricted B3LYP"""
    total_energy: float
    """of the molecule, from the wave function file"""
    charge: float
    population: float
    laplacian: float
    """L, minus a quarter of the integrated Laplacian of the density: zero but for the error of the integration"""
    moments: dict[str, float]
    """q00, q10, q11c ... q55s in e bohr^l: real spherical moments about the nucleus along the file's axes, q00 the charge"""
    components: dict[str, float]


@dataclass(frozen=True)
class AIMAllMolecule(IQAEnergies):
    """A molecule of N atoms: arrays in hartree, bohr and e."""

    names: tuple[str, ...]
    version: str
    model: str
    total_energy: float
    """from the wave function file"""
    virial_ratio: float
    """-V/T of the wave function"""
    nuclear_charges: np.ndarray
    """(N,)"""
    positions: np.ndarray
    """(N, 3) bohr"""
    charges: np.ndarray
    """(N,)"""
    laplacian: np.ndarray
    """(N,), see `AIMAllAtom`"""
    components: dict[str, np.ndarray]
    """each (N,)"""
    moments: dict[str, np.ndarray] | None = None
    """each (N,), see `AIMAllAtom`; only with the .int files"""

    @property
    def population(self):
        """Electrons of every atom, (N,)."""
        return self.nuclear_charges - self.charges

    @property
    def species(self):
        """Elements of the atoms."""
        return tuple(chemical_symbols[round(z)] for z in self.nuclear_charges)


def read_int(path):
    """The `AIMAllAtom` of an ``.int`` file.

    Raises ValueError with file, line and reason where the file is cut off, lacks a section, holds something else than
    finite numbers, or where its energies do not sum to E_IQA or its electrons and charge not to the nuclear charge;
    FileNotFoundError where there is no file.
    """
    file = TextFile(path)
    file.find("AIMInt is Done")
    results = file.find("Results of the basin integration:")
    charge = _value(file, "q =", results)
    section = file.find("Real Spherical Harmonic Moments")
    moments = _named_numbers(file, section)
    if len(moments) != isqrt(len(moments)) ** 2:
        raise file.error(section, f"expected (l + 1)^2 moments up to a degree l, found {len(moments)}; was a line lost?")
    atom = AIMAllAtom(
        name=file.lines[file.find("Integration is over atom")].split()[-1],
        version=_version(file),
        model=_model(file),
        total_energy=_value(file, "The molecular energy from the wfn file ="),
        charge=charge,
        population=_value(file, "N =", results),
        laplacian=_value(file, "L =", results),
        # Q[2,1,c] -> q21c; the electrons' charge becomes the atom's.
        moments={"q" + re.sub(r"\W", "", name[1:]): value for name, value in moments.items()} | {"q00": charge},
        components=_named_numbers(file, _iqa_section(file)),
    )
    _check(file, atom)
    nuclear = _nuclear_charge(file, results, atom.name)
    if abs(atom.population + charge - nuclear) > ROUNDING or atom.population < 0:
        raise file.error(
            file.find("q =", results),
            f"expected electrons and charge that sum to {nuclear} of {atom.name}, found {atom.population:g} and {charge:g}",
        )
    return atom


def read_sum(path, folder=None):
    """The `AIMAllMolecule` of a ``.sum`` file, with the moments of the atoms' ``.int`` files where ``folder`` holds them.

    Raises ValueError as `read_int` does, and where the ``.int`` files belong to another geometry than the ``.sum``;
    FileNotFoundError where one is missing.
    """
    file = TextFile(path)
    file.find("Total time for AIMSum")
    table = file.find("Nuclear Charges and Cartesian Coordinates:")
    names, nuclei = _table(file, table, wanted=("Charge", "X", "Y", "Z"))
    for name, charge in zip(names, nuclei["Charge"], strict=True):
        if charge != (expected := _nuclear_charge(file, table, name)):
            raise file.error(
                file.find(f"{name} ", table, at_start=True),
                f"expected the nuclear charge {expected} of {name}, found {charge:g}; core potentials are not partitioned",
            )
    _, properties = _table(file, file.find("Some Atomic Properties:"), names, ("q(A)", "L(A)"))
    components = {}
    for k in range(_iqa_section(file), len(file.lines)):
        if "IQA" in file.lines[k] and file.lines[k].endswith("Components:"):
            components.update(_table(file, k, names)[1])
    molecule = AIMAllMolecule(
        names=names,
        version=_version(file),
        model=_model(file),
        total_energy=_value(file, "Molecular energy E(Mol) from the wfn file:"),
        virial_ratio=_value(file, "Molecular virial ratio (-V(Mol)/T(Mol)) from the wfn file:"),
        nuclear_charges=nuclei["Charge"],
        positions=np.stack([nuclei[axis] for axis in "XYZ"], axis=1),
        charges=properties["q(A)"],
        laplacian=properties["L(A)"],
        components=components,
    )
    _check(file, molecule)
    total = "Molecular charge q(Mol) from the wfn file:"
    excess = molecule.charges.sum() - _value(file, total)
    if abs(excess) > CHARGES:
        raise file.error(file.find(total), f"expected this as the sum of the atomic charges, found {excess:g} e more")
    if folder is None:
        return molecule
    atoms = [read_int(Path(folder) / f"{name.lower()}.int") for name in names]
    for name, atom, energy, charge in zip(names, atoms, molecule.energy, molecule.charges, strict=True):
        if abs(atom.energy - energy) > ROUNDING or abs(atom.charge - charge) > ROUNDING or atom.name != name:
            raise ValueError(
                f"expected E_IQA({name}) = {energy:.6f} and q({name}) = {charge:.6f} in {folder} as in {path}, found"
                f" {atom.energy:.6f} and {atom.charge:.6f} of {atom.name}; give the folder of the same geometry"
            )
    if other := [atom.name for atom in atoms if atom.moments.keys() != atoms[0].moments.keys()]:
        raise ValueError(f"expected the moments of {names[0]} for every atom in {folder}, found others of {', '.join(other)}")
    return replace(molecule, moments={q: np.array([atom.moments[q] for atom in atoms]) for q in atoms[0].moments})


def dataset_from_aimall(molecules):
    """The `Dataset` (eV, angstrom) of `AIMAllMolecule` results, geometries of one molecule, without forces.

    Raises ValueError where the species or models differ, and where the atomic energies miss the molecular energy by
    more than `MAX_REMAINDER`, as they do for a functional that AIMAll does not know.
    """
    if not molecules:
        raise ValueError("expected at least one AIMAll result, found none")
    first = molecules[0]
    for k, molecule in enumerate(molecules):
        for what in ("species", "model"):
            expected, found = getattr(first, what), getattr(molecule, what)
            if found != expected:
                raise ValueError(f"expected the {what} {expected} in every AIMAll result, found {found} in result {k}")
        remainder = molecule.total_energy - molecule.energy.sum()
        if abs(remainder) > MAX_REMAINDER:
            raise ValueError(
                f"the atomic energies of AIMAll result {k} miss the molecular energy by {remainder * 1e3:.3f} mHa"
                f" (limit {MAX_REMAINDER * 1e3:g}); integrate it more accurately, with a functional that AIMAll knows"
            )
    energy = np.array([m.total_energy for m in molecules])
    raw = np.array([m.energy for m in molecules])
    return Dataset(
        species=first.species,
        positions=np.array([m.positions for m in molecules]) * BOHR,
        energy=energy * HARTREE,
        extra={
            "qtaim_energies": raw * HARTREE,
            "qtaim_charges": np.array([m.charges for m in molecules]),
            "qtaim_remainder": (energy - raw.sum(1)) * HARTREE,
        },
        level=Level.of_words(first.model, programs=f"AIMAll {first.version}"),
    ).with_partition("qtaim")


def _check(file, result):
    """Raise where energies are missing or do not sum to E_IQA."""
    section = _iqa_section(file)
    missing = [name for name in REQUIRED if name not in result.components]
    if missing:
        raise file.error(section, f"expected the IQA energies {', '.join(REQUIRED)}, found no {', '.join(missing)}")
    halves = result.nucleus_electrons + result.electrons_nuclei + result.coulomb + result.nuclear_repulsion
    difference = np.max(np.abs(result.energy - (result.kinetic + halves / 2 + result.exchange_correlation)))
    if not difference <= ROUNDING:
        raise file.error(section, f"expected components that sum to E_IQA, found a difference of {difference:.3g} hartree")
    difference = np.max(np.abs(result.energy - result.intra - result.inter))
    if not difference <= ROUNDING:
        raise file.error(
            section, f"expected E_IQA_Intra and E_IQA_Inter that sum to E_IQA, found a difference of {difference:.3g}"
        )


def _nuclear_charge(file, line, name):
    """That of the element in an atom's name such as O1."""
    try:
        symbol, _ = parse_atom(name)
    except ValueError:
        raise file.error(line, f"expected an atom named by its element and a number, as O1, found {name!r}") from None
    return atomic_numbers[symbol]


def _version(file):
    return file.lines[file.find("(Version ")].split("(Version ")[1].split(",")[0]


def _model(file):
    return " ".join(file.lines[file.find("Model:")].split()[1:])


def _iqa_section(file):
    for k, line in enumerate(file.lines):
        if line.startswith(("IQA Energy Components", "IQA Atomic Energy Components")):
            return k
    raise file.error(len(file.lines), "expected IQA energy components, found none; run AIMAll with -encomp=3 or 4")


def _value(file, label, start=0):
    """The number behind a label."""
    line = file.find(label, start)
    return file.number(line, (file.lines[line].split(label)[1].split() or [""])[0])


def _named_numbers(file, start):
    """name -> number from the lines ``name = number`` between line ``start`` and the next empty one."""
    numbers = {}
    for k in range(start, len(file.lines)):
        if not file.lines[k].strip():
            break
        if "=" in file.lines[k]:
            # Some energies have two names, as in Vneen(A,A)/2 = Vne(A,A); the last is also the one of the .sum.
            *_, name, number = file.lines[k].split("=")
            numbers[name.strip()] = file.number(k, number.strip())
    return numbers


def _table(file, start, expected=None, wanted=()):
    """Names (N,) and column -> (N,) array of the first table of atoms behind line ``start``; errors if not as expected."""
    header = file.find("Atom ", start, at_start=True)
    columns = file.lines[header].removeprefix("Atom A").removeprefix("Atom").split()
    if lacking := [name for name in wanted if name not in columns]:
        raise file.error(header, f"expected columns {', '.join(wanted)}, found no {', '.join(lacking)}")
    rows = {}
    for k in range(header + 2, len(file.lines)):
        if not file.lines[k].strip("- "):
            break
        name, *tokens = file.lines[k].split()
        if len(tokens) != len(columns):
            raise file.error(k, f"expected {len(columns)} numbers ({' '.join(columns)}), found {len(tokens)}")
        if name in rows:
            raise file.error(k, f"expected one row for each atom, found another of {name}")
        rows[name] = [file.number(k, token) for token in tokens]
    names = tuple(rows)
    if not names or names != (expected or names):
        raise file.error(
            header, f"expected a row for {' '.join(expected or ['every atom'])}, found {' '.join(names) or 'none'}"
        )
    return names, dict(zip(columns, np.array(list(rows.values())).T, strict=True))
