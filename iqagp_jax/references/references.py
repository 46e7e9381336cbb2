"""The reference that a model is held to: GFN2-xTB at once, density functional theory as a campaign that may take days.

Energies are absolute, in eV, from the program that made the model's training labels: no constant is taken away.
"""

import hashlib
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from threading import Lock

import jax
import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed
from ase.data import atomic_numbers, ground_state_magnetic_moments
from ase.io import write
from ase.optimize import BFGS

from iqagp_jax.data.dataset import DECIMALS
from iqagp_jax.sampling import xtb

CHUNK = 8
"""Geometries that a process is given at a time."""

RELAXED = 0.05
"""A start counts as relaxed with forces below this, eV/angstrom."""

RELAX_STEPS = 300
"""Steps that it may take."""

XTB_LEVEL = "GFN2-xTB"


class XTB:
    """GFN2-xTB by tblite, in milliseconds a geometry; ``pool`` is any executor of ``concurrent.futures``, or None."""

    name = XTB_LEVEL

    def __init__(self, species, charge=0, spin=0, pool=None):
        self.system = tuple(species), charge, spin
        self.programs = f"tblite {version('tblite')}"
        self._map = map if pool is None else pool.map
        self._alone = pool is None

    def labels(self, positions, progress=lambda items, total: items):
        """Energies (n,) in eV and forces (n, N, 3) in eV/angstrom of geometries (n, N, 3); NaN where the SCF fails."""
        chunks = [positions[k : k + CHUNK] for k in range(0, len(positions), CHUNK)]
        parts = list(progress(self._map(partial(_labels, self.system, fresh=True), chunks), len(chunks)))
        return tuple(np.concatenate([part[k] for part in parts]) for k in range(2))

    def free_atoms(self):
        """Energies of the free atoms, {symbol: eV}, with the unpaired electrons of their ground states."""
        spins = {s: round(ground_state_magnetic_moments[atomic_numbers[s]]) for s in sorted(set(self.system[0]))}
        return {s: float(XTB((s,), spin=spin).labels(np.zeros((1, 1, 3)))[0][0]) for s, spin in spins.items()}

    def relax(self, positions):
        """Geometries (n, N, 3) relaxed, and which of them did so (n,): its SCF converged, and so did the relaxation."""
        ends, relaxed = zip(*self._map(partial(_relax, self.system), list(positions)), strict=True)
        return np.array(ends), np.array(relaxed)

    def energy_fn(self):
        """Energy (N, 3) angstrom -> eV as a JAX function with a gradient, for the integrators that drive models.

        It leaves JAX for the program at every step, with all replicas at once. Where the SCF fails it is NaN. Its SCF begins
        at the last step's wave function, so a run that was stopped goes on to 1e-8 eV, not bit for bit.
        """
        n_atoms = len(self.system[0])
        # Devices call from threads, which tblite does not bear; processes do.
        one_at_a_time = Lock() if self._alone else nullcontext()

        def outside(bits):
            positions = np.asarray(bits).view(np.float64)[..., 0]
            flat = positions.reshape(-1, n_atoms, 3)
            size = len(flat) if self._alone else CHUNK
            chunks = [flat[k : k + size] for k in range(0, len(flat), size)]
            with one_at_a_time:
                parts = list(self._map(partial(_labels, self.system), chunks))
            energies, forces = (np.concatenate([part[k] for part in parts]) for k in range(2))
            energies = energies.reshape(positions.shape[:-2])
            return tuple(a[..., None].view(np.uint32) for a in (energies, -forces.reshape(positions.shape)))

        def evaluate(positions):
            # As bits, since JAX calls from a thread of its own, where 64-bit mode is off and floats would be rounded.
            bits = jax.lax.bitcast_convert_type(positions, np.uint32)
            shapes = jax.ShapeDtypeStruct((2,), np.uint32), jax.ShapeDtypeStruct((n_atoms, 3, 2), np.uint32)
            results = jax.pure_callback(outside, shapes, bits, vmap_method="broadcast_all")
            return tuple(jax.lax.bitcast_convert_type(bits, np.float64) for bits in results)

        @jax.custom_jvp
        def energy(positions):
            return evaluate(positions)[0]

        @energy.defjvp
        def energy_jvp(primals, tangents):
            value, gradient = evaluate(primals[0])
            return value, (gradient * tangents[0]).sum()

        return energy


_calculators: dict[tuple, object] = {}


def _labels(system, positions, fresh=False):
    """Labels of a few geometries. In dynamics the wave function of the step before is a good guess; labels start afresh."""
    species, charge, spin = system
    energies, forces = np.full(len(positions), np.nan), np.full(positions.shape, np.nan)
    for k, geometry in enumerate(positions):
        if fresh or system not in _calculators:
            _calculators[system] = xtb(charge, spin)
        atoms = Atoms(species, positions=geometry, calculator=_calculators[system])
        try:
            energies[k], forces[k] = atoms.get_potential_energy(), atoms.get_forces()
        except CalculationFailed:
            del _calculators[system]
    return energies, forces


def _relax(system, positions):
    species, charge, spin = system
    atoms = Atoms(species, positions=positions, calculator=xtb(charge, spin))
    try:
        relaxed = BFGS(atoms, logfile=None).run(fmax=RELAXED, steps=RELAX_STEPS)
    except CalculationFailed:
        return positions, False
    return atoms.positions, bool(relaxed)


class DFT:
    """Density functional theory by PySCF: labels are a `Campaign`, which goes on where it was stopped.

    Every set of geometries has its own folder in ``folder``, named by a digest of them.

    Distorted starts are relaxed by GFN2-xTB: it takes seconds, and tells as well what holds together.
    """

    def __init__(self, level, species, folder, pool, workers):
        self.relax = XTB(species, level.charge, level.spin, pool).relax
        self.name, self.level, self.species = level.describe()["level_of_theory"], level, tuple(species)
        self.folder, self.pool, self.workers = Path(folder), pool, workers

    def labels(self, positions, progress=lambda items, total: items):
        """Energies (n,) in eV and forces (n, N, 3) in eV/angstrom of geometries (n, N, 3); NaN where a label was rejected.

        Raises RuntimeError where the campaign was asked to stop.
        """
        from iqagp_jax.labels.campaign import Campaign, write_plan

        positions = np.round(positions, DECIMALS)
        folder = self.folder / hashlib.sha256(positions.tobytes()).hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)
        frames = folder.with_suffix(".extxyz")
        write(frames, [Atoms(self.species, positions=r) for r in positions], format="extxyz")
        write_plan(folder, frames, self.level)
        campaign = Campaign.load(folder)
        campaign.run(self.pool, self.workers, progress=progress)
        if campaign.missing:
            raise RuntimeError(f"stopped with {len(campaign.missing)} labels missing; run the same command again to go on")
        none = {"energy": np.nan, "forces": np.full((len(self.species), 3), np.nan)}
        labels = [none if "rejected" in task.label else task.label for task in campaign.tasks]
        return np.array([label["energy"] for label in labels]), np.array([label["forces"] for label in labels])


def reference_of(name, model, folder, charge=0, spin=0, pool=None, workers=1):
    """The reference ``xtb`` or ``dft`` for a model, or None for ``none``.

    Raises ValueError, in a sentence, where the model was trained on something else: absolute energies would not compare.
    """
    told = dict(model.provenance).get("level_of_theory", "not told")
    if name == "none":
        return None
    if name == "xtb":
        if XTB_LEVEL not in told:
            raise ValueError(f"expected a model trained on {XTB_LEVEL}, found one of {told}; take --reference dft or none")
        return XTB(model.species, charge, spin, pool)
    from iqagp_jax.labels.campaign import Level

    xc, _, basis = told.split(" ")[0].partition("/")
    level = Level(xc, basis, charge, spin, partitions=())
    if not basis or level.describe()["level_of_theory"] != told:
        raise ValueError(f"expected a model trained on labels of `iqagp label`, found one of {told}; take another --reference")
    return DFT(level, model.species, folder, pool, workers)


def relabelled(dataset, reference, progress=lambda items, total: items):
    """A `Dataset` of the same geometries with the energies and forces of an `XTB`; those without a label are left out.

    Raises ValueError, in a sentence, where none has a label.
    """
    energy, forces = reference.labels(dataset.positions, progress)
    if not np.isfinite(energy).any():
        raise ValueError(f"expected geometries that {reference.name} can label, found none of {len(energy)}; look at them")
    labels = {"energy": energy, "forces": forces, "atomic_energies": None, "extra": {}, "free_atoms": reference.free_atoms()}
    sampler = {"sampler": dataset.level["sampler"]} if "sampler" in dataset.level else {}
    level = {"level_of_theory": reference.name, "programs": reference.programs, **sampler}
    return replace(dataset, **labels, level=level)[np.isfinite(energy)]
