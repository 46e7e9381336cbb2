"""Wave functions of other programs, read from ``.wfn`` and ``.molden`` files as PySCF mean fields.

`read_wavefunction` gives what `iqagp_jax.labels.iqa.integrate_atoms` integrates: a molecule, its occupied orbitals, a
functional and density fitting. Orbitals are taken as they are; no self-consistent field is run.

A ``.wfn`` file (AIMPAC's format; Gaussian, GAMESS, ORCA, Molpro, PySCF and others write it) holds every orbital over
bare Cartesian primitives about the nuclei, in bohr,

    phi_i(r) = sum_k c_ik x^a y^b z^c exp(-zeta_k r^2),

which become the functions of an uncontracted Cartesian basis, whose own normalisation the coefficients are divided by.
A ``.molden`` file is read by PySCF's own reader.
"""

import re
import warnings
from importlib.metadata import version
from itertools import combinations_with_replacement
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from pyscf import gto
from pyscf.tools import molden

from iqagp_jax.data.dataset import Dataset
from iqagp_jax.data.level import Level
from iqagp_jax.data.text import TextFile
from iqagp_jax.labels import iqa, scf
from iqagp_jax.labels.label import MAX_MISSING_ELECTRONS, MAX_REMAINDER
from iqagp_jax.labels.partitions import PARTITIONS
from iqagp_jax.labels.plan import check_functional
from iqagp_jax.system.geometry import pair_distances
from iqagp_jax.units import BOHR, HARTREE

PRIMITIVES = (
    *("", "x", "y", "z"),
    *("xx", "yy", "zz", "xy", "xz", "yz"),
    *("xxx", "yyy", "zzz", "xxy", "xxz", "yyz", "xyy", "xzz", "yzz", "xyz"),
    *("xxxx", "yyyy", "zzzz", "xxxy", "xxxz", "xyyy", "yyyz", "xzzz", "yzzz"),
    *("xxyy", "xxzz", "yyzz", "xxyz", "xyyz", "xyzz"),
    *reversed(["".join(c) for c in combinations_with_replacement("xyz", 5)]),
)
"""Angular factors of the primitive types 1, 2, 3 ... 56 of a ``.wfn`` file, s to h."""

MAX_OVERLAP_ERROR = 1e-5
"""Largest accepted deviation of the orbitals' overlap from the unit matrix: files hold 7 or 8 digits."""

MAX_ENERGY_DIFFERENCE = 1e-3
"""Largest accepted difference in hartree between the energy of the orbitals and the file's, for density fitting and grid."""


NEAREST = 0.1
"""Least distance of two atoms, in bohr."""

EXPONENTS = (1e-8, 1e12)
"""Between these (1/bohr^2) lie the exponents of all basis sets, by far."""


def label_wavefunctions(paths, xc=None, partitions=("becke", "hirshfeld"), charge=0, spin=0):
    """The `Dataset` of wave function files, geometries of one molecule, without forces; see `read_wavefunction`.

    The first partition gives the atomic energies. Hirshfeld's free atoms are computed in the file's basis, for a
    ``.wfn`` file that of its bare primitives. Raises ValueError where the atomic energies or populations miss their
    sums as a campaign's labels must not.
    """
    if not paths:
        raise ValueError("expected at least one wave function file, found none")
    unknown = [name for name in partitions if name not in PARTITIONS]
    if unknown or not partitions:
        raise ValueError(f"expected partitions among {', '.join(PARTITIONS)}, found {', '.join(unknown) or 'none'}")
    fields = [read_wavefunction(path, xc, charge, spin) for path in paths]
    species = fields[0].mol.elements
    extra: dict[str, list[Any]] = {f"{name}_{what}": [] for name in partitions for what in ("energies", "charges", "remainder")}
    for path, mf in zip(paths, fields, strict=True):
        if mf.mol.elements != species or mf.xc != fields[0].xc:
            raise ValueError(
                f"{path}: expected {' '.join(species)} with {fields[0].xc} as in {paths[0]}, found"
                f" {' '.join(mf.mol.elements)} with {mf.xc}"
            )
        for name, atoms in iqa.integrate_atoms(mf, {name: PARTITIONS[name] for name in partitions}).items():
            remainder, missing = mf.e_tot - atoms.energy.sum(), mf.mol.nelectron - atoms.population.sum()
            if abs(remainder) > MAX_REMAINDER or abs(missing) > MAX_MISSING_ELECTRONS:
                raise ValueError(
                    f"{path}: {name} atoms miss {remainder * 1e3:.3f} mHa and {missing:.4f} electrons of the total"
                )
            extra[f"{name}_energies"].append(atoms.energy * HARTREE)
            extra[f"{name}_charges"].append(mf.mol.atom_charges() - atoms.population)
            extra[f"{name}_remainder"].append(remainder * HARTREE)
    return Dataset(
        species=tuple(species),
        positions=np.array([mf.mol.atom_coords() for mf in fields]) * BOHR,
        energy=np.array([mf.e_tot for mf in fields]) * HARTREE,
        extra={name: np.array(values) for name, values in extra.items()},
        level=Level(
            f"{fields[0].xc} of read orbitals, density fitting {scf.fitting_of(species)}",
            charge=charge,
            spin=spin,
            programs=f"pyscf {version('pyscf')}",
        ),
    ).with_partition(partitions[0])


def read_wavefunction(path, xc=None, charge=0, spin=0):
    """A PySCF mean field with the orbitals of a ``.wfn`` or ``.molden`` file; ``e_tot`` (hartree) is computed from them.

    ``xc`` is the functional of the orbitals in PySCF's words, ``hf`` for Hartree-Fock; where it is None, the one that a
    ``.wfn`` file names for AIMAll. ``charge`` and ``spin`` (unpaired electrons) say what the file does not: which of its
    singly occupied orbitals are of which spin, and whether all orbitals are there.

    Raises ValueError, in a sentence, for a broken file, an unknown functional, natural orbitals of a correlated wave
    function, another number of electrons, effective core potentials, orbitals that are not orthonormal, and an energy
    that is not the ``.wfn`` file's. A ``.molden`` file holds no energy that could tell a wrong functional.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".wfn", ".molden"):
        raise ValueError(f"expected a wave function file that ends in .wfn or .molden, found {str(path)!r}")
    mol, coefficients, occupations, energy, named = (_read_wfn if suffix == ".wfn" else _read_molden)(path)
    _check_molecule(path, mol)
    xc = xc or named
    if not xc:
        raise ValueError(f"{path} does not name its functional; give xc, as in xc='b3lyp' or xc='hf'")
    check_functional(xc)
    alpha, beta = _spin_orbitals(path, coefficients, occupations, (mol.tot_electrons() - charge + spin) // 2)
    electrons, unpaired = alpha.shape[1] + beta.shape[1], alpha.shape[1] - beta.shape[1]
    if (electrons, unpaired) != (mol.tot_electrons() - charge, spin):
        raise ValueError(
            f"{path}: expected {mol.tot_electrons() - charge} electrons, {spin} of them unpaired, for charge {charge} and spin"
            f" {spin}, found {electrons} and {unpaired}; set charge and spin; orbitals of core potentials are not partitioned"
        )
    overlap = mol.intor("int1e_ovlp")
    for orbitals in (alpha, beta):
        error = np.max(np.abs(orbitals.T @ overlap @ orbitals - np.eye(orbitals.shape[1])), initial=0.0)
        if not error <= MAX_OVERLAP_ERROR:
            raise ValueError(
                f"{path}: expected orthonormal orbitals, found an overlap wrong by {error:.2g}; is the file whole, is spin"
                f" {spin} right, and does its program normalise basis functions as the format asks?"
            )
    mf = _mean_field(mol, xc, charge, spin, alpha, beta)
    if not np.isfinite(mf.e_tot):
        raise ValueError(f"{path}: expected orbitals with an energy, found {mf.e_tot}; is the file whole?")
    if energy and abs(mf.e_tot - energy) > MAX_ENERGY_DIFFERENCE:
        raise ValueError(
            f"{path}: expected an energy of {energy:.6f} hartree as the file says, found {mf.e_tot:.6f} for its orbitals"
            f" with {xc}; give the functional they were made with"
        )
    return mf


def _check_molecule(path, mol):
    """ValueError, in a sentence, for atoms in one place, and for Gaussians that are none."""
    near = pair_distances(mol.atom_coords()) + np.eye(mol.natm) * NEAREST
    if not (near >= NEAREST).all():
        raise ValueError(
            f"{path}: expected atoms at least {NEAREST} bohr from each other, found {near.min():g}; is the file whole?"
        )
    least, most = EXPONENTS
    for exponent in (x for shell in range(mol.nbas) for x in mol.bas_exp(shell)):
        if not least < exponent < most:
            raise ValueError(
                f"{path}: expected exponents between {least:g} and {most:g}, found {exponent:g}; is the file whole?"
            )


def _mean_field(mol, xc, charge, spin, alpha, beta):
    mol.charge, mol.spin = charge, spin
    mf = scf.mean_field(mol, xc)
    mf.xc = xc
    if alpha is beta:
        mf.mo_coeff, mf.mo_occ = alpha, np.full(alpha.shape[1], 2.0)
    else:
        if spin == 0:
            mf = mf.to_uhf() if xc.lower() == "hf" else mf.to_uks()
        columns = max(alpha.shape[1], beta.shape[1])
        padded = [np.pad(c, ((0, 0), (0, columns - c.shape[1]))) for c in (alpha, beta)]
        mf.mo_coeff = np.array(padded)
        mf.mo_occ = np.array([np.arange(columns) < c.shape[1] for c in (alpha, beta)]).astype(float)
    if hasattr(mf, "grids"):
        mf.grids = iqa.atom_grids(mol)
    mf.e_tot = mf.energy_tot()
    mf.converged = True
    return mf


def _spin_orbitals(path, coefficients, occupations, n_alpha):
    """Occupied orbitals (nao, nocc) of both spins, one array for both where all are doubly occupied.

    ``occupations`` is a pair for the two spins, or one array of both, where orbitals that are all singly occupied are
    those of the first spin, ``n_alpha`` of them, and then those of the second.
    """
    every = np.concatenate(occupations) if isinstance(occupations, tuple) else occupations
    allowed = (0, 1) if isinstance(occupations, tuple) else (0, 1, 2)
    strange = every[~(np.abs(every[:, None] - allowed).min(1) <= 1e-6)]
    if len(strange):
        raise ValueError(
            f"{path}: expected the occupations of a single determinant ({', '.join(map(str, allowed))}), found {strange[0]:g};"
            " natural orbitals of a correlated wave function are not partitioned"
        )
    if isinstance(occupations, tuple):
        return tuple(c[:, n > 0.5] for c, n in zip(coefficients, occupations, strict=True))
    occupied, double = coefficients[:, occupations > 0.5], coefficients[:, occupations > 1.5]
    if occupied.shape == double.shape:
        return occupied, occupied
    if double.shape[1]:
        return occupied, double
    return occupied[:, :n_alpha], occupied[:, n_alpha:]


def _read_wfn(path):
    """Molecule of bare primitives, orbitals (nao, n), occupations (n,), energy, and the functional for AIMAll or ''."""
    file = TextFile(path)
    end = file.find("END DATA")
    counts = re.match(r"\s*(\w+)\s+(\d+) MOL ORBITALS\s+(\d+) PRIMITIVES\s+(\d+) NUCLEI\s*(\S*)", file.line(1))
    if not counts or counts[1] not in ("GAUSSIAN", "GTO"):
        raise file.error(1, f"expected 'GAUSSIAN ... MOL ORBITALS ... PRIMITIVES ... NUCLEI', found {file.lines[1].strip()!r}")
    n_orbitals, n_primitives, n_atoms = (int(count) for count in counts.group(2, 3, 4))
    if not (n_orbitals and n_primitives and n_atoms):
        raise file.error(1, f"expected orbitals, primitives and nuclei, found {n_orbitals}, {n_primitives} and {n_atoms}")

    atoms = []
    for k in range(2, 2 + n_atoms):
        nucleus = re.match(r"\s*([A-Za-z]+).*\(CENTRE.*?\)(.*)CHARGE\s*=\s*(\S+)", file.line(k))
        # Fixed columns leave no space between two coordinates below -100.
        position = re.findall(r"[-+]?\d*\.\d+", nucleus[2]) if nucleus else []
        if not nucleus or len(position) != 3:
            raise file.error(k, f"expected a nucleus with its position and charge, found {file.lines[k].strip()!r}")
        _check_charge(file, k, nucleus[1], file.number(k, nucleus[3]))
        atoms.append((f"{nucleus[1].capitalize()}{k - 1}", [float(x) for x in position]))

    line = 2 + n_atoms
    centres, line = _integers(file, line, "CENTRE ASSIGNMENTS", n_primitives, n_atoms)
    types, line = _integers(file, line, "TYPE ASSIGNMENTS", n_primitives, len(PRIMITIVES))
    exponents, line = _numbers(file, line, "EXPONENTS", n_primitives)
    if odd := [exponent for exponent in exponents if not EXPONENTS[0] < exponent < EXPONENTS[1]]:
        raise file.error(line - 1, f"expected exponents of Gaussians, which are positive, found {odd[0]:g}")
    occupations: list[float] = []
    orbitals: list[list[float]] = []
    for _ in range(n_orbitals):
        found = re.match(r"\s*MO\b.*OCC NO\s*=\s*(\S+)", file.line(line))
        if not found:
            raise file.error(line, f"expected orbital {len(orbitals) + 1} of {n_orbitals}, found {file.lines[line].strip()!r}")
        occupations.append(file.number(line, found[1]))
        coefficients, line = _numbers(file, line + 1, "", n_primitives)
        orbitals.append(coefficients)
    energy = file.find("ENERGY", end)
    value = re.search(r"ENERGY\s*=\s*(\S+)", file.lines[energy])
    mol, functions, factors = _primitive_basis(atoms, centres, types, exponents)
    mo = np.zeros((mol.nao, n_orbitals))
    # A primitive that stands in several contracted functions is listed several times.
    np.add.at(mo, functions, np.array(orbitals).T / factors[:, None])
    return mol, mo, np.array(occupations), file.number(energy, value[1] if value else ""), counts[5].lower()


def _primitive_basis(atoms, centres, types, exponents):
    """Uncontracted Cartesian molecule; the function of it that each primitive is, and the factor of that function."""
    degrees = [len(PRIMITIVES[kind - 1]) for kind in types]
    shells: dict[str, list[Any]] = {symbol: [] for symbol, _ in atoms}
    for centre, degree, exponent in dict.fromkeys(zip(centres, degrees, exponents, strict=True)):
        shells[atoms[centre - 1][0]].append([degree, [exponent, 1.0]])
    mol = gto.M(atom=atoms, unit="Bohr", basis=shells, cart=True, spin=None, verbose=0)
    offsets = {
        (mol.bas_atom(k) + 1, mol.bas_angular(k), float(mol.bas_exp(k)[0])): offset
        for k, offset in enumerate(mol.ao_loc_nr()[:-1])
    }
    overlap = mol.intor("int1e_ovlp").diagonal()
    functions, factors = [], []
    for centre, degree, exponent, kind in zip(centres, degrees, exponents, types, strict=True):
        offset = offsets[centre, degree, exponent]
        components = ["".join(c) for c in combinations_with_replacement("xyz", degree)]
        functions.append(offset + components.index(PRIMITIVES[kind - 1]))
        # int x^2l exp(-2 zeta r^2) = (2l)! / l! / (8 zeta)^l (pi / 2 zeta)^(3/2), and a shell's first function is x^l.
        bare = factorial(2 * degree) / factorial(degree) / (8 * exponent) ** degree * (np.pi / (2 * exponent)) ** 1.5
        factors.append(np.sqrt(overlap[offset] / bare))
    return mol, np.array(functions), np.array(factors)


def _integers(file, line, label, count, largest):
    """``count`` numbers from 1 to ``largest`` in fixed columns of three behind a label, and the line after them."""
    values: list[int] = []
    while len(values) < count:
        text = file.line(line)
        fields = [text[k : k + 3] for k in range(20, len(text.rstrip()), 3)]
        if not text.startswith(label) or not fields:
            raise file.error(line, f"expected {count} {label.lower()}, found {len(values)}")
        for field in fields:
            if not field.strip().isdecimal() or not 1 <= int(field) <= largest:
                raise file.error(line, f"expected a number from 1 to {largest} in the {label.lower()}, found {field.strip()!r}")
            values.append(int(field))
        line += 1
    return values, line


def _numbers(file, line, label, count):
    """``count`` numbers behind a label, and the line after them."""
    values: list[float] = []
    while len(values) < count:
        tokens = file.line(line).removeprefix(label).split()
        if not file.lines[line].startswith(label) or not tokens:
            raise file.error(line, f"expected {count} {label.lower() or 'coefficients'}, found {len(values)}")
        values += [file.number(line, token) for token in tokens]
        line += 1
    if len(values) > count:
        raise file.error(line - 1, f"expected {count} {label.lower() or 'coefficients'}, found {len(values)}")
    return values, line


def _check_charge(file, line, symbol, charge):
    number = atomic_numbers.get(symbol.capitalize())
    if not number or charge != number:
        raise file.error(
            line,
            f"expected an element with its nuclear charge, found {symbol} with {charge:g}; core potentials, whose"
            " core electrons the orbitals lack, and ghost atoms are not partitioned",
        )


def _read_molden(path):
    """Molecule, orbitals, occupations of PySCF's reader, each a pair where the file has both spins; no energy or functional."""
    file = TextFile(path)
    sections = {}
    for k, line in enumerate(file.lines):
        found = re.match(r"\s*\[(.+?)\]", line)
        if found:
            sections[found[1].strip().upper()] = k
    for name in ("ATOMS", "GTO", "MO"):
        if name not in sections:
            raise file.error(len(file.lines), f"expected a section [{name}], found none; was the file cut off?")
    for name in ("CORE", "PSEUDO"):
        if name in sections:
            raise file.error(sections[name], "core potentials, whose core electrons the orbitals lack, are not partitioned")
    for k in range(sections["ATOMS"] + 1, sections["GTO"]):
        tokens = file.lines[k].split()
        if not tokens or tokens[0].startswith("["):
            break
        if len(tokens) != 6:
            raise file.error(k, f"expected element, number, charge and position of an atom, found {file.lines[k].strip()!r}")
        _check_charge(file, k, re.sub(r"\d", "", tokens[0]), file.number(k, tokens[2]))
    for k in range(sections["GTO"] + 1, len(file.lines)):
        tokens = file.lines[k].split()
        if tokens and tokens[0].startswith("["):
            break
        if len(tokens) == 2 and re.match(r"[-+.\d]", tokens[0]) and not file.number(k, tokens[0]) > 0:
            raise file.error(k, f"expected exponents of Gaussians, which are positive, found {tokens[0]}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # NumPy's, at what is no number
            mol, _, mo, occupations, _, _ = molden.load(path)
        occupations = tuple(map(np.asarray, occupations)) if isinstance(mo, tuple) else np.asarray(occupations)
    except Exception as error:  # whatever a broken file makes PySCF do
        raise ValueError(f"{path} is not a molden file that PySCF can read ({error!r}); was it cut off?") from error
    pairs = zip(mo, occupations, strict=True) if isinstance(mo, tuple) else [(mo, occupations)]
    if any(c.shape[1] != len(n) for c, n in pairs):
        raise ValueError(f"{path}: expected an occupation of every orbital, found less or more; was the file cut off?")
    spherical = {2: {"5D", "5D7F", "5D10F"}, 3: {"5D", "5D7F", "7F"}, 4: {"9G"}}
    for degree in {mol.bas_angular(k) for k in range(mol.nbas)} - {0, 1}:
        if mol.cart == bool(spherical[degree] & sections.keys()):
            raise ValueError(f"{path}: expected d, f and g functions that are all Cartesian or all spherical, found a mixture")
    return mol, mo, occupations, None, ""
