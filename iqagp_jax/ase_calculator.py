"""The potential as an ASE calculator."""

from ase.calculators.calculator import Calculator, all_changes

from iqagp_jax.potential import atomic_energies, energy_and_forces, energy_variance, force_variance


class IQAGP(Calculator):
    """``energy``, ``forces`` and atomic ``energies`` of a model (eV, eV/angstrom) for ASE.

    Its predicted standard deviations are ``get_property("energy_std", atoms)`` and ``get_property("forces_std", atoms)``.
    """

    implemented_properties = [  # noqa: RUF012 (a list in ASE's base class)
        "energy",
        "free_energy",
        "forces",
        "energies",
        "energy_std",
        "forces_std",
    ]

    def __init__(self, model):
        """``model`` as `fit_gp` or `load_model` gives it; the atoms must be the model's in its order."""
        super().__init__()
        self.model = model
        self._energy_and_forces = energy_and_forces(model)
        self._variances = {}

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Fill ``results``; raises ValueError where the atoms are not the model's."""
        super().calculate(atoms, properties, system_changes)
        found = tuple(self.atoms.get_chemical_symbols())
        if found != self.model.species:
            raise ValueError(
                f"expected the atoms {' '.join(self.model.species)} of the model in this order, found {' '.join(found)}"
            )
        positions = self.atoms.get_positions()
        energy, forces = self._energy_and_forces(positions[None])
        self.results = {"energy": float(energy[0]), "free_energy": float(energy[0]), "forces": forces[0].__array__()}
        if "energies" in properties:
            self.results["energies"] = atomic_energies(self.model, positions).__array__()
        if "energy_std" in properties:
            self.results["energy_std"] = float(self._variance(energy_variance)(positions[None])[0] ** 0.5)
        if "forces_std" in properties:
            self.results["forces_std"] = self._variance(force_variance)(positions[None])[0].__array__() ** 0.5

    def _variance(self, of):
        """A variance function of the model, made once: it holds a factor of the whole covariance."""
        if of not in self._variances:
            self._variances[of] = of(self.model)
        return self._variances[of]
