"""The potential as an ASE calculator."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes

from iqagp_jax.machine.forks import computing
from iqagp_jax.modelfile import load_model
from iqagp_jax.potential import (
    Uncertainty,
    atomic_energies,
    energy_and_forces,
    energy_shares,
    potential_of,
    system_of,
    uncertainty,
)
from iqagp_jax.system.cells import unwrapped
from iqagp_jax.system.elements import same_atoms
from iqagp_jax.system.system import System


class IQAGP(Calculator):
    """``energy``, ``forces`` and atomic ``energies`` of a potential (eV, eV/angstrom) for ASE.

    A potential that learned the molecule's energy alone has no atomic ``energies``; how it divides the energy all the same is
    ``get_property("energy_shares", atoms)``. The predicted standard deviations of a potential that knows them are
    ``get_property("energy_std", atoms)`` and ``get_property("forces_std", atoms)``. It can be pickled: what was compiled stays
    behind.

    A molecule that lies across the walls of a periodic cell is put together first, which changes no force; there is no
    interaction with its images.
    """

    implemented_properties = [  # noqa: RUF012 (a list in ASE's base class)
        "energy",
        "free_energy",
        "forces",
        "energies",
        "energy_shares",
        "energy_std",
        "forces_std",
    ]

    def __init__(self, model: Any, system: System | None = None):
        """``model``: a potential, as `fit_gp` or `load_model` gives it, or the path of a model file.

        ``system`` is the `System` it is used for, by default the molecule that the potential is of; the atoms must be its in
        its order.
        """
        super().__init__()
        self.model = potential_of(load_model(model) if isinstance(model, str | Path) else model)
        self.system = system_of(self.model, system)

    def __getstate__(self) -> dict[str, Any]:
        compiled = ("_energy_and_forces", "_uncertainty")
        return {name: value for name, value in vars(self).items() if name not in compiled}

    @cached_property
    def _energy_and_forces(self) -> Callable:
        return energy_and_forces(self.model, system=self.system)

    @cached_property
    def _uncertainty(self) -> Uncertainty | None:
        return uncertainty(self.model, self.system)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill ``results``.

        Raises ValueError, in a sentence, where the atoms are not the model's or are a crystal, PropertyNotImplementedError
        for atomic energies and uncertainties that the potential does not know, RuntimeError in a forked child of a process
        that has computed.
        """
        super().calculate(atoms, properties, system_changes)
        computing()
        if self.atoms is None:
            raise ValueError("expected Atoms to calculate, found none; give them to the calculator")
        positions = self._whole(self.atoms)
        energy, forces = self._energy_and_forces(positions[None])
        self.results = {"energy": float(energy[0]), "free_energy": float(energy[0]), "forces": np.asarray(forces[0])}
        if "energies" in properties:
            self.results["energies"] = self._energies(positions)
        if "energy_shares" in properties:
            self.results["energy_shares"] = np.asarray(energy_shares(self.model, positions, self.system))
        if "energy_std" in properties:
            self.results["energy_std"] = float(self._variance("energy")(positions[None])[0] ** 0.5)
        if "forces_std" in properties:
            self.results["forces_std"] = np.asarray(self._variance("forces")(positions[None])[0] ** 0.5)

    def _energies(self, positions: np.ndarray) -> np.ndarray:
        """Atomic energies (N,) in eV, which not every potential has."""
        try:
            return np.asarray(atomic_energies(self.model, positions, self.system))
        except ValueError as error:
            raise PropertyNotImplementedError(str(error)) from error

    def _whole(self, atoms: Atoms) -> np.ndarray:
        """Positions (N, 3) in angstrom of the system's atoms, its molecules whole."""
        same_atoms(self.system.species, atoms.get_chemical_symbols(), "the Atoms")
        if not (atoms.pbc & atoms.cell.any(1)).any():
            return atoms.get_positions()
        # The bonds at rest as well, as heat may have stretched them beyond what counts as one.
        cell, bonds = atoms.cell.array, self.system.bonds
        positions, molecules = unwrapped(self.system.species, atoms.positions, cell, atoms.pbc, bonds)
        if self.system.cell is None and molecules.any():
            raise ValueError(
                f"expected one molecule in a periodic cell, found {molecules.max() + 1}: this potential would leave out their"
                " interaction with images; set atoms.pbc = False for these atoms alone"
            )
        return positions

    def _variance(self, of: str) -> Callable:
        variance: Callable | None = None if self._uncertainty is None else getattr(self._uncertainty, of)
        if variance is None:
            raise PropertyNotImplementedError(f"this potential does not know the uncertainty of its {of}")
        return variance
