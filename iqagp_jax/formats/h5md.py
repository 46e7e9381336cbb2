"""H5MD files (doi:10.1016/j.cpc.2014.01.018, https://www.nongnu.org/h5md/h5md.html) that MDAnalysis and znh5md read, by h5py.

Every replica is a group ``replica_0000`` of particles and one of observables. The elements of a group share ``step``, the
number of the frame, and ``time``. Units stand at the data, as attributes.

The two programs differ. MDAnalysis wants ``velocity`` and ``force`` in units that it knows, among them angstrom/ps and
kJ/mol/angstrom, and reads the first group alone. znh5md wants ``species`` and ``box/edges`` at every frame, reads no units, and
takes numbers for ASE's. So momenta and forces stand there in ASE's units too. ``ASE_ENTRY_ORIGIN`` tells znh5md where in ASE's
atoms something belongs.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers

from iqagp_jax.units import KJ_MOL

OBSERVABLES = {"energy": ("potential_energy", "eV", "calc"), "temperature": ("temperature", "K", "info")}
"""Scalars of a `trajectories.Life` -> name in H5MD, unit, what znh5md takes them for; others are in eV and keep their names."""

CHUNK_BYTES = 2**16
"""What is unpacked at once."""


class Group:
    """A group of an HDF5 file, of elements that all have a value at every one of the same times (F,) in fs."""

    def __init__(self, file: Any, path: str, times: np.ndarray):
        self.group = file.require_group(path)
        self.times = times
        self._clock: dict[str, Any] = {}

    def constant(self, value: Any) -> np.ndarray:
        """What is the same at all times, (F, ...)."""
        return np.broadcast_to(value, (len(self.times), *np.shape(value)))

    def add(self, name: str, values: np.ndarray, unit: str | None, origin: str | None = None) -> None:
        """An element with values (F, ...)."""
        element = self.group.create_group(name)
        chunks = (np.clip(CHUNK_BYTES // values[0].nbytes, 1, len(values)), *values.shape[1:])
        value = element.create_dataset("value", data=values, chunks=chunks, compression="gzip", shuffle=True)
        if not self._clock:
            self._clock["step"] = element.create_dataset("step", data=np.arange(len(self.times)))
            self._clock["time"] = element.create_dataset("time", data=self.times)
            self._clock["time"].attrs["unit"] = "fs"
        else:
            element["step"], element["time"] = self._clock["step"], self._clock["time"]
        if unit:
            value.attrs["unit"] = unit
        if origin:
            element.attrs["ASE_ENTRY_ORIGIN"] = origin


def write_h5md(path: Path, lives: Sequence[Any]) -> None:
    """Write `trajectories.Life` of one replica or several."""
    import h5py

    with h5py.File(path, "w") as file:
        about = file.create_group("h5md")
        about.attrs["version"] = np.array([1, 1])
        about.create_group("author").attrs.update({"name": "N/A", "email": "N/A"})
        about.create_group("creator").attrs.update({"name": "iqagp_jax", "version": version("iqagp-jax")})
        for life in lives:
            _write_replica(file, life)


def _write_replica(file: Any, life: Any) -> None:
    """One group of particles and one of observables."""
    name = f"replica_{life.replica:04d}"
    particles, observables = Group(file, f"particles/{name}", life.times), Group(file, f"observables/{name}", life.times)
    particles.add("position", life.positions, "Angstrom", "atoms")
    particles.add("species", particles.constant([atomic_numbers[symbol] for symbol in life.species]), None, "atoms")
    particles.add("mass", particles.constant(life.masses), "u", "arrays")
    if life.momenta is not None:
        # MDAnalysis 2.8 takes angstrom/fs for 1e-6 of what they are.
        particles.add("velocity", 1000 * life.velocities, "Angstrom ps-1", "info")
        particles.add("momenta", life.momenta, "u+1/2 eV+1/2", "arrays")
    if life.forces is not None:
        particles.add("force", life.forces / KJ_MOL, "kJ mol-1 Angstrom-1", "info")
        particles.add("forces", life.forces, "eV Angstrom-1", "calc")
    walls = np.zeros((3, 3)) if life.cell is None else life.cell
    box = Group(file, f"particles/{name}/box", life.times)
    box.add("edges", box.constant(walls), "Angstrom")
    box.group.attrs.update({"dimension": 3, "boundary": ["none" if life.cell is None else "periodic"] * 3})
    for scalar, values in life.scalars.items():
        called, unit, origin = OBSERVABLES.get(scalar, (scalar, "eV", "info"))
        observables.add(called, values, unit, origin)
    observables.add("time", life.times, "fs", "info")
    observables.add("replica", observables.constant(life.replica), None, "info")
