"""Forces at the frames of a trajectory, which keeps none, by the potential that drove it."""

from typing import Any

import numpy as np

from iqagp_jax.dynamics.trajectory import Trajectory
from iqagp_jax.potential import energy_and_forces
from iqagp_jax.system.system import System

SAME = {"float64": 1e-6, "float32": 1e-2}
"""Energies (eV) of one potential agree within this, in whatever company they are computed."""

FEWEST = 32
"""Geometries in one go, if there were fewer replicas."""


def forces_at_frames(
    potential: Any, trajectory: Trajectory, system: System | None = None, dtype: Any = np.float64
) -> np.ndarray:
    """Forces (frames, R, N, 3) in eV/angstrom, NaN where a replica is not alive.

    Parameters
    ----------
    potential: what drove the trajectory.
    trajectory: its frames.
    system: `System` of the atoms, by default the molecule that the potential is of.
    dtype: of the arithmetic within the potential, as in the run.

    Raises ValueError, in a sentence, where the potential gives other energies than the trajectory tells.
    """
    evaluate = energy_and_forces(potential, dtype, system)
    positions, told = trajectory.positions[trajectory.alive], trajectory.energies[trajectory.alive]
    forces = np.full(trajectory.positions.shape, np.nan)
    found, energies = np.empty(positions.shape), np.empty(told.shape)
    batch = max(len(trajectory.target_temperatures), FEWEST)
    for k in range(0, len(positions), batch):
        here = slice(k, min(k + batch, len(positions)))
        # Filled up with repetitions: one compilation serves all.
        some = evaluate(np.resize(positions[here], (batch, *positions.shape[1:])))
        energies[here], found[here] = (np.asarray(values)[: len(told[here])] for values in some)
    if not np.allclose(energies, told, rtol=0, atol=SAME[np.dtype(dtype).name]):
        raise ValueError(
            "expected the potential that drove the trajectory, found one whose energies of its frames differ by up to"
            f" {np.nanmax(np.abs(energies - told)):.2g} eV; give the model file of the run"
        )
    forces[trajectory.alive] = found
    return forces
