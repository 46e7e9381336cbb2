"""Temperatures of replicas of a trained model: the mean over all, and each replica's own vibrations.

    iqagp train malondialdehyde -o model.safetensors
    python scripts/temperatures.py model.safetensors --picoseconds 20

For every target temperature: the mean kinetic temperature over the replicas by the 3N-6 formula with its standard
error, and how far single replicas' vibrational temperatures lie from the target in units of their own error bars (from
blocks of 1 ps), as a root mean square that is about 1 for an honest ensemble.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from iqagp_jax import energy_fn, load_model, load_trajectory, simulate
from iqagp_jax.dynamics.starts import starts
from iqagp_jax.system.failure import failure_rule
from iqagp_jax.units import BOLTZMANN


def vibrational_temperatures(trajectory):
    """2 K_vib / (3N - 6) k of every frame and replica, (frames, R) in K."""
    count = 3 * len(trajectory.species) - 6
    return 2 * trajectory.kinetic_energies[..., 2] / (count * BOLTZMANN)


def block_errors(series, blocks):
    """Standard error of the mean of each column of ``series`` (frames, R) from the scatter of ``blocks`` block means."""
    length = len(series) // blocks
    means = series[: blocks * length].reshape(blocks, length, -1).mean(1)
    return means.std(0, ddof=1) / np.sqrt(blocks)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[300.0, 500.0, 1000.0], help="K")
    parser.add_argument("--replicas", type=int, default=20)
    parser.add_argument("--picoseconds", type=float, default=20.0)
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    options = parser.parse_args()
    model = load_model(options.model)
    begin = starts(model, ["equilibrium"] * options.replicas)
    print("target K   survived   mean K (standard error)   deviation %   rms of single replicas, own error bars")
    for target in options.temperatures:
        with tempfile.TemporaryDirectory() as folder:
            result = simulate(
                energy_fn(model),
                failure_rule(model.species, model.reference),
                begin,
                folder,
                temperature=target,
                time=options.picoseconds,
                timestep=options.timestep,
                frame_interval=5.0,
            )
            series = vibrational_temperatures(load_trajectory(folder))[:, result.survived]
        series = series[len(series) // 10 :]
        means, errors = series.mean(0), block_errors(series, round(0.9 * options.picoseconds))
        mean, error = means.mean(), means.std(ddof=1) / np.sqrt(len(means))
        score = np.sqrt(np.mean(((means - target) / errors) ** 2))
        print(
            f"{target:8g}   {result.survived.sum():3d}/{options.replicas}   {mean:10.1f} ({error:.1f})"
            f"   {100 * (mean / target - 1):11.2f}   {score:10.2f}"
        )


if __name__ == "__main__":
    main()
