"""Trajectories for other programs.

| ending        | is read by                | beside positions and times it holds                     |
| ------------- | ------------------------- | ------------------------------------------------------- |
| ``.extxyz``   | ASE, OVITO                | momenta, forces, energies, temperatures                 |
| ``.h5md .h5`` | MDAnalysis, znh5md        | velocities, forces, energies, temperatures; in 64 bits  |
| ``.trr``      | MDAnalysis, mdtraj, OVITO | velocities, forces; in 32 bits                          |
| ``.xtc``      | MDAnalysis, mdtraj, OVITO | nothing; rounded to 1e-5 angstrom                       |
| ``.dcd``      | MDAnalysis, mdtraj        | nothing; in 32 bits; mdtraj reads no times              |

All but extxyz get a topology beside them: a PDB file of the same name. MDAnalysis writes ``.trr``, ``.dcd`` and ``.xtc``, which
hold one replica a file.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import iread, write

from iqagp_jax.formats.h5md import write_h5md
from iqagp_jax.system.system import System
from iqagp_jax.units import KJ_MOL, TIME_UNIT

OF_MDANALYSIS = {".trr": ("velocities", "forces"), ".dcd": (), ".xtc": ()}
"""Endings that MDAnalysis writes, and what they hold beside positions and times."""

H5MD = (".h5md", ".h5")

XTC_DIGITS = 6
"""Decimals in nm that ``.xtc`` keeps."""

MOST_NAMES = 999
"""Atoms of one element in a molecule that four letters of a PDB file can tell apart."""


@dataclass(frozen=True)
class Life:
    """One replica while it was alive: F frames of N atoms."""

    replica: int
    species: np.ndarray
    """(N,)"""
    masses: np.ndarray
    """(N,) amu"""
    cell: np.ndarray | None
    """(3, 3) angstrom; None without walls"""
    times: np.ndarray
    """(F,) fs"""
    positions: np.ndarray
    """(F, N, 3) angstrom"""
    momenta: np.ndarray | None
    """(F, N, 3) sqrt(amu eV)"""
    forces: np.ndarray | None
    """(F, N, 3) eV/angstrom"""
    scalars: dict[str, np.ndarray]
    """name -> (F,) or (F, K): energies in eV, temperature in K"""

    @classmethod
    def of(cls, trajectory: Any, replica: int, system: System | None = None, forces: Any = None) -> "Life":
        """Replica number ``replica`` of a `Trajectory`; ``forces`` (frames, R, N, 3) where they are known."""
        alive = trajectory.alive[:, replica]

        def living(array: Any) -> Any:
            return None if array is None else array[alive, replica]

        scalars = {
            "energy": living(trajectory.energies),
            "temperature": living(trajectory.temperatures),
            "kinetic_energies": living(trajectory.kinetic_energies),
            "conserved_energy": living(trajectory.conserved_energies),
        }
        if not np.isfinite(scalars["conserved_energy"]).all():
            del scalars["conserved_energy"]  # of Langevin dynamics, which conserves nothing
        atoms = trajectory.species, trajectory.masses, None if system is None else system.cell
        arrays = living(trajectory.positions), living(trajectory.momenta), living(forces)
        return cls(int(replica), *atoms, trajectory.times[alive], *arrays, scalars)

    @property
    def velocities(self) -> np.ndarray | None:
        """(F, N, 3) angstrom/fs."""
        return None if self.momenta is None else self.momenta / (self.masses[:, None] * TIME_UNIT)

    def atoms(self) -> Iterator[Atoms]:
        """ASE atoms of every frame, with energy, forces, momenta, and in ``info`` ``replica``, ``time`` (fs) and the rest."""
        for k, positions in enumerate(self.positions):
            atoms = Atoms(self.species, positions, masses=self.masses, cell=self.cell, pbc=self.cell is not None)
            if self.momenta is not None:
                atoms.set_momenta(self.momenta[k])
            told = {name: values[k] for name, values in self.scalars.items()}
            known = {"energy": float(told.pop("energy"))}
            if self.forces is not None:
                known["forces"] = self.forces[k]
            atoms.calc = SinglePointCalculator(atoms, **known)
            atoms.info.update(replica=self.replica, time=float(self.times[k]), **told)
            yield atoms


def export(
    trajectory: Any,
    path: Path,
    replica: int | None = None,
    *,
    each: bool = False,
    system: System | None = None,
    forces: np.ndarray | None = None,
) -> int:
    """Write all replicas of a `Trajectory`, or one, in the format of the path's ending; returns the number of frames written.

    Frames after a replica's failure hold no geometry and are left out; so is a replica without frames. What a format cannot
    hold or nobody knows is left out, see `left_out`. A topology that is there already, of the same elements, is kept.

    Parameters
    ----------
    trajectory: the frames.
    path: see the module for endings.
    replica: its number; all by default.
    each: one file a replica, ``NAME-0000`` and following, instead of one for all.
    system: `System` of the atoms, whose cell and molecules are told too.
    forces: (frames, R, N, 3), eV/angstrom, see `forces.forces_at_frames`.

    Raises ValueError, in a sentence, for other endings, replicas that there are not, and several in a file that holds one.
    """
    lives = [Life.of(trajectory, r, system, forces) for r in chosen(trajectory, path, replica, each)]
    lives = [life for life in lives if len(life.times)]
    if not lives:
        raise ValueError("expected a replica that was alive in one frame or more, found none; there is nothing to export")
    groups = {path.with_stem(f"{path.stem}-{life.replica:04d}"): [life] for life in lives} if each else {path: lives}
    if path.suffix != ".extxyz":
        write_topology(path.with_suffix(".pdb"), next(lives[0].atoms()), system)
    for file, group in groups.items():
        if path.suffix == ".extxyz":
            write(file, [atoms for life in group for atoms in life.atoms()], format="extxyz")
        elif path.suffix in H5MD:
            write_h5md(file, group)
        else:
            _write_by_mdanalysis(file, group[0])
    return sum(len(life.times) for life in lives)


def left_out(trajectory: Any, path: Path, replica: int | None = None, each: bool = False) -> list[str]:
    """What an `export` does not hold though one may look for it, a sentence each; forces aside."""
    held = OF_MDANALYSIS.get(path.suffix)
    sentences = []
    if held is not None:
        missing = ["energies", "temperatures", *(name for name in ("velocities", "forces") if name not in held)]
        sentences.append(f"{path.suffix} holds no {', '.join(missing[:-1])} or {missing[-1]}; .h5md and .extxyz do")
    if trajectory.momenta is None and (held is None or held):
        sentences.append("no velocities: the run kept no momenta; `iqagp simulate --momenta` does")
    replicas = chosen(trajectory, path, replica, each)
    sentences += [f"no frame of replica {r}: it was never alive in one" for r in replicas if not trajectory.alive[:, r].any()]
    if path.suffix in H5MD and len(replicas) > 1 and not each:
        sentences.append(
            "MDAnalysis reads the first replica of such a file alone, until any failed; --each writes one file a replica"
        )
    return sentences


def holds_forces(path: Path) -> bool:
    """Whether a file of this ending holds forces."""
    return "forces" in OF_MDANALYSIS.get(path.suffix, ("forces",))


def _check_ending(path: Path) -> None:
    endings = (".extxyz", *H5MD, *OF_MDANALYSIS)
    if path.suffix not in endings:
        raise ValueError(f"expected an output ending in one of {' '.join(endings)}, found {path.name!r}")
    needed = "MDAnalysis" if path.suffix in OF_MDANALYSIS else "h5py" if path.suffix in H5MD else None
    if needed:
        try:
            __import__(needed)
        except ImportError as error:
            raise ValueError(
                f"expected {needed} for {path.suffix}, found none ({error}); pip install 'iqagp-jax[export]', or export .extxyz"
            ) from error


def chosen(trajectory: Any, path: Path, replica: int | None = None, each: bool = False) -> list[int]:
    """The numbers of the replicas that `export` takes; ValueError, in a sentence, where it cannot write them."""
    _check_ending(path)
    count = len(trajectory.target_temperatures)
    if replica is not None and not (isinstance(replica, int | np.integer) and 0 <= replica < count):
        raise ValueError(f"expected a replica from 0 to {count - 1}, found {replica!r}; choose one of them")
    replicas = list(range(count)) if replica is None else [int(replica)]
    if path.suffix in OF_MDANALYSIS and len(replicas) > 1 and not each:
        raise ValueError(
            f"expected one replica for {path.suffix}, which holds no more, found {count}; choose one by --replica, or write one"
            " file a replica by --each"
        )
    return replicas


def write_topology(path: Path, atoms: Atoms, system: System | None = None) -> None:
    """A PDB file of atoms, every molecule a residue with names of its own; one of the same elements that is there is kept."""
    if path.exists():
        try:
            there = list(next(iread(path, format="proteindatabank")).symbols)
        except Exception as error:  # whatever ASE's reader meets in a file of somebody else
            raise ValueError(f"expected a topology or none, found something else in {path} ({error}); move it away") from error
        if there != list(atoms.symbols):
            raise ValueError(f"expected a topology of these atoms or none, found others in {path}; move it away")
        return
    residues = np.zeros(len(atoms), int) if system is None or not system.molecules else np.array(system.molecules)
    named = atoms.copy()
    named.set_array("residuenumbers", residues % 9999 + 1)
    named.set_array("atomtypes", np.array(_names(atoms.get_chemical_symbols(), residues), dtype="U4"))
    write(path, named, format="proteindatabank")


def _names(symbols: list[str], residues: np.ndarray) -> list[str]:
    """C1, C2, H1 ...: mdtraj takes the second atom of a name in a residue for another place of the first."""
    counts: dict[tuple[int, str], int] = {}
    names = []
    for symbol, residue in zip(symbols, residues.tolist(), strict=True):
        number = counts[residue, symbol] = counts.get((residue, symbol), 0) + 1
        names.append(f"{symbol}{number}")
    if max(map(len, names)) > 4:
        raise ValueError(f"expected names of four letters for a PDB file, found {max(names, key=len)}; export .extxyz")
    return names


def _write_by_mdanalysis(path: Path, life: Life) -> None:
    """One replica as ``.trr``, ``.dcd`` or ``.xtc``; MDAnalysis speaks angstrom, ps and kJ/mol."""
    import MDAnalysis

    if life.cell is not None and np.triu(life.cell, 1).any():
        raise ValueError(
            f"expected the first lattice vector along x and the second in the xy plane for {path.suffix}, found"
            f" {life.cell.tolist()}, which its lengths and angles do not tell; export .extxyz"
        )
    holds = OF_MDANALYSIS[path.suffix]
    velocities = life.velocities if "velocities" in holds else None
    forces = life.forces if "forces" in holds else None
    given = {"trajectory": True, "velocities": velocities is not None, "forces": forces is not None}
    universe = MDAnalysis.Universe.empty(len(life.species), **given)
    frame = universe.trajectory.ts
    options: dict[str, Any] = {"precision": XTC_DIGITS} if path.suffix == ".xtc" else {}
    if path.suffix == ".dcd":  # whose head alone tells times
        options["dt"] = (life.times[1] - life.times[0]) / 1000 if len(life.times) > 1 else 1.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No dimensions set")  # a molecule without walls has none
        with MDAnalysis.Writer(str(path), n_atoms=len(life.species), **options) as writer:
            for k, positions in enumerate(life.positions):
                frame.frame, frame.time, frame.positions = k, life.times[k] / 1000, positions
                if life.cell is not None:
                    frame.triclinic_dimensions = life.cell
                if velocities is not None:
                    frame.velocities = 1000 * velocities[k]
                if forces is not None:
                    frame.forces = forces[k] / KJ_MOL
                writer.write(universe.atoms)
