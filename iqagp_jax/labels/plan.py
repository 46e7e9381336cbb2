"""The plan of a campaign: what its labels hold, at which level of theory; read, checked and written as plan.toml."""

import json
import re
import tomllib
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.io import iread
from ase.io.extxyz import XYZError
from ase.io.formats import UnknownFileTypeError

from iqagp_jax.data.dataset import ORIGIN
from iqagp_jax.data.extxyz import split_off_free_atoms, whole_positions
from iqagp_jax.data.level import Level
from iqagp_jax.data.order import tell_odd
from iqagp_jax.data.state import STATE, state_of_frames
from iqagp_jax.data.text import check_counts
from iqagp_jax.machine.files import BROKEN_FILE, output_folder, write_atomically
from iqagp_jax.machine.lock import owned
from iqagp_jax.system.elements import check_electrons, same_atoms

PLAN = "plan.toml"

COUPLED_CLUSTER = "ccsd(t)"
"""The one method that is no mean field: `coupled_cluster` makes its labels."""

PLAN_COMMENT = """\
# `iqagp label --campaign FOLDER` goes on with this plan. The dataset gets the atomic energies of the first partition, or none
# where there is no partition, in less time; a geometry is set aside after so many attempts that failed. With another level of
# theory all labels are made anew.
"""


@dataclass(frozen=True)
class LabelPlan:
    """What is calculated for a label; the first partition gives the dataset's atomic energies, none gives none.

    ``xc`` is a functional, ``hf`` or ``ccsd(t)``, which gives energies alone; see `coupled_cluster`. With ``multipoles`` the
    label holds the atomic moments too: e bohr^l, along the axes of the geometry. Without ``forces`` it lacks those, which a
    set of another partition at the same level has already.
    """

    xc: str = "b3lyp"
    basis: str = "6-31+g(d,p)"
    charge: int = 0
    spin: int = 0
    """number of unpaired electrons"""
    partitions: tuple[str, ...] = ("becke", "hirshfeld")
    multipoles: bool = False
    forces: bool = True

    @property
    def is_coupled_cluster(self) -> bool:
        """Whether labels are energies alone, by CCSD(T)."""
        return self.xc.lower() == COUPLED_CLUSTER

    @property
    def level(self) -> Level:
        """Level of theory of the labels of atoms up to krypton, and the program that makes them."""
        return self.level_of(())

    def level_of(self, species: Sequence[str]) -> Level:
        """Level of theory of the labels of these atoms, and the program that makes them."""
        from iqagp_jax.labels import coupled_cluster
        from iqagp_jax.labels.iqa import ATOM_GRID, LAST_WITH_CORE
        from iqagp_jax.labels.scf import fitting_of, is_cartesian

        functions = "cartesian" if is_cartesian(self.basis) else "spherical"
        sizes = ["light", "heavy"] + ["heaviest"] * any(atomic_numbers[s] > LAST_WITH_CORE for s in species)
        grid = f"grid {'/'.join(str(ATOM_GRID[size]) for size in sizes)} nwchem-pruned"
        details = f"{functions}, density fitting {fitting_of(species, self.basis)}, {grid}"
        # In a file a blank ends them: `Level.of_words`.
        method, basis = ("".join(words.split()) for words in (self.xc, self.basis))
        if self.is_coupled_cluster:
            details = coupled_cluster.details(basis)
        return Level(method, basis, details, self.charge, self.spin, programs=f"pyscf {version('pyscf')}")


def read_plan(folder: str | Path) -> tuple[Path, LabelPlan, int]:
    """(file of geometries, plan, attempts) of a campaign. Raises ValueError, in a sentence, for nonsense."""
    path = Path(folder) / PLAN
    if not path.is_file():
        raise FileNotFoundError(f"expected a campaign with a {path}, found none; name a file of geometries to begin one")
    try:
        plan = tomllib.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not TOML ({error}); mend it") from error
    examples = {"geometries": "geometries.extxyz", **asdict(LabelPlan()), "attempts": 3}
    for key, value in plan.items():
        if key not in examples:
            raise ValueError(f"{path}: expected entries among {', '.join(examples)}, found {key!r}")
        if type(value) is list and all(type(item) is str for item in value):
            plan[key] = value = tuple(value)
        if type(value) is not type(examples[key]):
            raise ValueError(f"{path}: expected {key} like {json.dumps(examples[key])}, found {value!r}")
    if "geometries" not in plan:
        raise ValueError(f"{path}: expected the name of a file of geometries, found no entry 'geometries'")
    if Path(plan["geometries"]).name != plan["geometries"] or plan["geometries"] in ("", ".."):
        raise ValueError(f"{path}: expected the name of a file of geometries in this folder, found {plan['geometries']!r}")
    attempts = plan.pop("attempts", 3)
    if attempts < 1:
        raise ValueError(f"{path}: expected attempts of at least 1, found {attempts}")
    return path.with_name(plan.pop("geometries")), LabelPlan(**plan), attempts


def write_plan(folder: str | Path, geometries: str | Path, plan: LabelPlan, attempts: int = 3) -> None:
    """Make a folder a campaign: a copy of the file ``geometries``, and the plan; both replace what was there.

    Raises ValueError, in a sentence, where the geometries cannot be labelled so; nothing is written then.
    """
    geometries = Path(geometries)
    check(read_geometries(geometries), plan)
    folder = Path(output_folder(folder))
    entries = {"geometries": geometries.name, **asdict(plan), "attempts": attempts}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in entries.items()]
    with owned_by_a_campaign(folder):
        write_atomically(folder / geometries.name, geometries.read_bytes())
        write_atomically(folder / PLAN, PLAN_COMMENT + "".join(lines))


def owned_by_a_campaign(folder: str | Path) -> AbstractContextManager[None]:
    """Own the folder of a campaign while the block runs. Raises ValueError, in a sentence, where a process owns it."""
    return owned(folder, "campaign", f"`iqagp campaign stop {folder}` stops it")


def read_geometries(path: Path) -> list[Atoms]:
    """ASE atoms of a file of geometries without its free atoms, which are labelled anew; molecules in cells put together."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of geometries, found nothing at {str(path)!r}")
    if path.suffix in (".xyz", ".extxyz"):
        check_counts(path)
    try:
        frames = list(iread(path))
    except (
        XYZError,
        UnknownFileTypeError,
        TypeError,
        AttributeError,
        AssertionError,
        RuntimeError,
        *BROKEN_FILE,
    ) as error:
        raise ValueError(f"{path} is not a whole file of geometries ({error}); was it cut off?") from error
    frames = split_off_free_atoms(frames, str(path))[1]
    if any((atoms.pbc & atoms.cell.any(1)).any() for atoms in frames):
        check_geometries(frames)
        for atoms, positions in zip(frames, whole_positions(frames, str(path)), strict=True):
            atoms.positions, atoms.pbc = positions, False
    return frames


def geometries_of(path: Path, species: Sequence[str]) -> list[Atoms]:
    """`read_geometries` of a file that must be of these atoms in this order, or ValueError, in a sentence."""
    found = read_geometries(path)
    for atoms in found:
        same_atoms(species, atoms.get_chemical_symbols(), str(path))
    return found


def check(geometries: list[Atoms], plan: LabelPlan) -> None:
    """ValueError, in a sentence, where geometries cannot be labelled after this plan at all."""
    from iqagp_jax.labels.partitions import PARTITIONS

    check_geometries(geometries)
    if not set(plan.partitions) <= set(PARTITIONS):
        raise ValueError(f"expected partitions among {', '.join(PARTITIONS)}, found {', '.join(plan.partitions)}")
    if plan.is_coupled_cluster:
        check_coupled_cluster(geometries, plan)
        return
    if not plan.partitions and not plan.forces:
        raise ValueError("expected partitions or forces to label, found neither; name a partition or set forces = true")
    if plan.multipoles and not plan.partitions:
        raise ValueError("expected a partition into the atoms whose multipoles are wanted, found none; name one")
    check_electrons(geometries[0].get_chemical_symbols(), plan.charge, plan.spin)
    check_state(geometries, plan.charge, plan.spin)
    check_functional(plan.xc)
    check_basis(geometries[0], plan)


def check_coupled_cluster(geometries: list[Atoms], plan: LabelPlan) -> None:
    """ValueError, in a sentence, where geometries cannot have energies by CCSD(T), or more is asked for than those."""
    from iqagp_jax.labels import coupled_cluster

    if plan.partitions or plan.multipoles or plan.forces:
        wanted = ["forces"] * plan.forces + ["multipoles"] * plan.multipoles + [f"{p} atoms" for p in plan.partitions]
        raise ValueError(
            f"{plan.xc} gives energies alone, found {', '.join(wanted)} asked for; set partitions = [], multipoles = false and"
            " forces = false (--partition none --no-forces)"
        )
    species = geometries[0].get_chemical_symbols()
    check_electrons(species, plan.charge, plan.spin)
    check_state(geometries, plan.charge, plan.spin)
    coupled_cluster.check(species, geometries[0].get_positions(), plan.basis, plan.charge, plan.spin)


def check_geometries(geometries: list[Atoms]) -> None:
    """ValueError, in a sentence, unless all are finite, of the same atoms, and tell the same of where they came from."""
    if not geometries:
        raise ValueError("expected at least one geometry to label, found none")
    species = geometries[0].get_chemical_symbols()
    for k, atoms in enumerate(geometries):
        if atoms.get_chemical_symbols() != species:
            raise ValueError(
                f"expected the atoms {' '.join(species)} in every geometry, found"
                f" {' '.join(atoms.get_chemical_symbols())} in geometry {k}"
            )
        if not np.isfinite(atoms.get_positions()).all():
            raise ValueError(f"expected finite positions, found a NaN or infinity in geometry {k}; remove it")
    tell_odd(species, np.array([atoms.get_positions() for atoms in geometries]), "geometries")
    for key in ORIGIN:
        known = [key in atoms.info for atoms in geometries]
        if any(known) and not all(known):
            raise ValueError(
                f"expected {key} of every geometry or of none, found none of geometry {known.index(False)}; a dataset without"
                " would mix training and test frames: add it there"
            )


def check_state(geometries: list[Atoms], charge: int, spin: int) -> None:
    """ValueError, in a sentence, where geometries tell another charge or spin than they would be given."""
    if not any(key.lower() in STATE for atoms in geometries for key in atoms.info):
        return
    told = state_of_frames(geometries, "geometries")
    if told != (charge, spin):
        raise ValueError(
            f"expected charge {told[0]} and {told[1]} unpaired electrons, as the geometries tell, found {charge} and {spin};"
            f" give --charge {told[0]} --spin {told[1]}"
        )


def check_functional(xc: str) -> None:
    """ValueError, in a sentence, for a functional that PySCF does not know or that is not partitioned into atoms."""
    from pyscf.dft import libxc

    if xc.lower() == "hf":
        return
    try:
        libxc.parse_xc(xc)
    except (KeyError, ValueError) as error:
        raise ValueError(f"expected a functional that PySCF knows, hf or {COUPLED_CLUSTER}, found {xc!r}") from error
    if re.search(r"-(d[234]|vv10|nl)", xc.lower()):
        raise ValueError(f"{xc} has a dispersion correction, which is not partitioned into atoms; leave it out")
    if libxc.rsh_coeff(xc)[0] or libxc.is_nlc(xc):
        raise ValueError(
            f"{xc} has range-separated exchange or non-local correlation, which is not partitioned into"
            " atoms; choose an LDA, GGA, meta-GGA or global hybrid"
        )


def check_basis(atoms: Atoms, plan: LabelPlan) -> None:
    """ValueError, in a sentence, for a basis set that PySCF lacks for one of the atoms or that leaves out its core."""
    from pyscf.gto.basis import BasisNotFoundError

    from iqagp_jax.labels import scf

    species = atoms.get_chemical_symbols()
    elements = sorted(set(species))
    for basis in (plan.basis, scf.AUXILIARY_BASIS):
        try:
            with warnings.catch_warnings(action="ignore"):  # PySCF's advice where to look for the basis
                scf.build_molecule(species, atoms.get_positions(), basis, plan.charge, plan.spin)
        except (BasisNotFoundError, KeyError, OSError, ValueError) as error:
            raise ValueError(f"basis {basis!r} is not there for all of {' '.join(elements)}") from error
    if plan.partitions and (heavy := [symbol for symbol in elements if scf.has_core_potential(plan.basis, symbol)]):
        raise ValueError(
            f"basis {plan.basis!r} leaves the core of {' '.join(heavy)} to an effective potential, which is not partitioned"
            " into atoms; choose an all-electron basis, or no partition (energies and forces alone)"
        )
