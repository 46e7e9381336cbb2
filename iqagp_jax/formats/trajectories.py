"""Trajectories for other programs: extxyz (ASE, OVITO) and H5MD (MDAnalysis, VMD) through znh5md."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write


def replica_frames(trajectory: Any, replica: int) -> Iterator[Atoms]:
    """ASE atoms of one replica while it was alive, with ``replica``, ``time`` (fs) and the model's energy (eV)."""
    for k in range(len(trajectory.times)):
        if trajectory.alive[k, replica]:
            atoms = Atoms(trajectory.species, positions=trajectory.positions[k, replica])
            atoms.calc = SinglePointCalculator(atoms, energy=float(trajectory.energies[k, replica]))
            atoms.info.update(replica=replica, time=float(trajectory.times[k]))
            yield atoms


def export(trajectory: Any, path: Path, replica: int | None = None) -> int:
    """Write all replicas, or one, to a ``.extxyz`` or ``.h5`` file; returns the number of frames written.

    Frames after a replica's failure hold no geometry and are left out. In H5MD every replica is a particles group.
    """
    if path.suffix not in (".extxyz", ".h5"):
        raise ValueError(f"expected an output ending in .extxyz or .h5, found {path.name!r}")
    n_replicas = len(trajectory.target_temperatures)
    if replica is not None and not (isinstance(replica, int | np.integer) and 0 <= replica < n_replicas):
        raise ValueError(f"expected a replica from 0 to {n_replicas - 1}, found {replica!r}; choose one of them")
    chosen = range(n_replicas) if replica is None else [replica]
    frames = {r: list(replica_frames(trajectory, r)) for r in chosen}
    if path.suffix == ".extxyz":
        write(path, [atoms for group in frames.values() for atoms in group], format="extxyz")
    else:
        import znh5md

        path.unlink(missing_ok=True)
        step = float(trajectory.times[1] - trajectory.times[0]) if len(trajectory.times) > 1 else 1.0
        for r, group in frames.items():
            znh5md.IO(path, particles_group=f"replica_{r:04d}", timestep=step).extend(group)
    return sum(map(len, frames.values()))
