"""GFN2-xTB (doi:10.1021/acs.jctc.8b01176) by tblite: labels, relaxation and dynamics at once, in milliseconds a geometry."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Executor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from threading import Lock
from typing import Any

import jax
import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator
from ase.data import atomic_numbers, ground_state_magnetic_moments
from ase.optimize import BFGS

from iqagp_jax.data.dataset import Dataset
from iqagp_jax.data.level import Level
from iqagp_jax.system.elements import check_electrons

CHUNK = 8
"""Geometries that a process is given at a time."""

RELAXED = 0.05
"""A start counts as relaxed with forces below this, eV/angstrom."""

RELAX_STEPS = 300
"""Steps that it may take."""


def xtb(charge: int = 0, spin: int = 0) -> Calculator:
    """GFN2-xTB as an ASE calculator; ``spin`` is the number of unpaired electrons.

    It takes one thread unless OMP_NUM_THREADS says more: a molecule of 20 atoms takes milliseconds, and threads that wait for
    each other only burn the cores.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from tblite.ase import TBLite

    return TBLite(method="GFN2-xTB", charge=charge, multiplicity=spin + 1, verbosity=0)


class XTB:
    """GFN2-xTB as a reference; ``pool`` is any executor of ``concurrent.futures``, or None.

    Raises ValueError, in a sentence, for a charge and a number of unpaired electrons ``spin`` that the atoms cannot have.
    """

    def __init__(self, species: Sequence[str], charge: int = 0, spin: int = 0, pool: Executor | None = None):
        check_electrons(species, charge, spin)
        self.system = tuple(species), charge, spin
        self.level = Level("GFN2-xTB", charge=charge, spin=spin, programs=f"tblite {version('tblite')}")
        self.name = str(self.level)
        self._map = map if pool is None else pool.map
        self._alone = pool is None

    def labels(
        self, positions: np.ndarray, progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items
    ) -> tuple[np.ndarray, ...]:
        """Energies (n,) in eV and forces (n, N, 3) in eV/angstrom of geometries (n, N, 3); NaN where the SCF fails."""
        chunks = [positions[k : k + CHUNK] for k in range(0, max(len(positions), 1), CHUNK)]
        parts = list(progress(self._map(partial(_labels, self.system, fresh=True), chunks), len(chunks)))
        return tuple(np.concatenate([part[k] for part in parts]) for k in range(2))

    def free_atoms(self) -> dict[str, float]:
        """Energies of the free atoms, {symbol: eV}, with the unpaired electrons of their ground states."""
        spins = {s: round(ground_state_magnetic_moments[atomic_numbers[s]]) for s in sorted(set(self.system[0]))}
        return {s: float(XTB((s,), spin=spin).labels(np.zeros((1, 1, 3)))[0][0]) for s, spin in spins.items()}

    def relax(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Geometries (n, N, 3) relaxed, and which of them did so (n,): its SCF converged, and so did the relaxation."""
        ends, relaxed = zip(*self._map(partial(_relax, self.system), list(positions)), strict=True)
        return np.array(ends), np.array(relaxed)

    def energy_fn(self) -> Callable[[Any], Any]:
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
                try:
                    parts = list(self._map(partial(_labels, self.system), chunks))
                except CancelledError:
                    # Ended, as by Ctrl-C: JAX is to end the steps that it has begun at once, and quietly.
                    parts = [(np.full(len(chunk), np.nan), np.full(chunk.shape, np.nan)) for chunk in chunks]
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


def relabelled(
    dataset: Dataset, reference: XTB, progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items
) -> Dataset:
    """A `Dataset` of the same geometries with the energies and forces of an `XTB`; those without a label are left out.

    Raises ValueError, in a sentence, where none has a label.
    """
    energy, forces = reference.labels(dataset.positions, progress)
    if not np.isfinite(energy).any():
        raise ValueError(f"expected geometries that {reference.name} can label, found none of {len(energy)}; look at them")
    level = replace(reference.level, sampler=dataset.level.sampler)
    bare = replace(dataset, energy=energy, forces=forces, atomic_energies=None, extra={}, level=level)
    return replace(bare, free_atoms=reference.free_atoms())[np.isfinite(energy)]
