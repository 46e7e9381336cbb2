"""The potential as an ASE calculator."""

from functools import cached_property
from pathlib import Path

from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes

from iqagp_jax.machine.forks import computing
from iqagp_jax.modelfile import load_model
from iqagp_jax.potential import atomic_energies, energy_and_forces, potential_of, system_of, uncertainty
from iqagp_jax.system.elements import same_atoms


class IQAGP(Calculator):
    """``energy``, ``forces`` and atomic ``energies`` of a potential (eV, eV/angstrom) for ASE.

    Its predicted standard deviations are ``get_property("energy_std", atoms)`` and ``get_property("forces_std", atoms)``, of
    a potential that knows them. It can be pickled: what was compiled stays behind.
    """

    implemented_properties = [  # noqa: RUF012 (a list in ASE's base class)
        "energy",
        "free_energy",
        "forces",
        "energies",
        "energy_std",
        "forces_std",
    ]

    def __init__(self, model, system=None):
        """``model``: a potential, as `fit_gp` or `load_model` gives it, or the path of a model file.

        ``system`` is the `System` it is used for, by default the molecule that the potential is of; the atoms must be its in
        its order.
        """
        super().__init__()
        self.model = potential_of(load_model(model) if isinstance(model, str | Path) else model)
        self.system = system_of(self.model, system)

    def __getstate__(self):
        compiled = ("_energy_and_forces", "_uncertainty")
        return {name: value for name, value in vars(self).items() if name not in compiled}

    @cached_property
    def _energy_and_forces(self):
        return energy_and_forces(self.model, system=self.system)

    @cached_property
    def _uncertainty(self):
        return uncertainty(self.model, self.system)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Fill ``results``; raises ValueError where the atoms are not the model's."""
        super().calculate(atoms, properties, system_changes)
        computing()
        same_atoms(self.system.species, self.atoms.get_chemical_symbols(), "the Atoms")
        positions = self.atoms.get_positions()
        energy, forces = self._energy_and_forces(positions[None])
        self.results = {"energy": float(energy[0]), "free_energy": float(energy[0]), "forces": forces[0].__array__()}
        if "energies" in properties:
            self.results["energies"] = atomic_energies(self.model, positions, self.system).__array__()
        for name, of in (("energy_std", "energy"), ("forces_std", "forces")):
            if name in properties:
                deviation = self._variance(of)(positions[None])[0] ** 0.5
                self.results[name] = float(deviation) if of == "energy" else deviation.__array__()

    def _variance(self, of):
        variance = self._uncertainty and getattr(self._uncertainty, of)
        if variance is None:
            raise PropertyNotImplementedError(f"this potential does not know the uncertainty of its {of}")
        return variance
