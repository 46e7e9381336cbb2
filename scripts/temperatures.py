"""Temperatures of replicas of a trained model: the mean over all, and each replica's own vibrations.

    iqagp train malondialdehyde -o model.safetensors
    python scripts/temperatures.py model.safetensors --time 20 --temperature 300 --temperature 1000

For every target temperature: the mean kinetic temperature over the replicas by the 3N-6 formula with its standard
error, and how far single replicas' vibrational temperatures lie from the target in units of their own error bars (from
blocks of 1 ps), as a root mean square that is about 1 for an honest ensemble.
"""

import tempfile
from pathlib import Path

import numpy as np
from dialect import SMALL_MODEL, parsed

from iqagp_jax import load_model, simulate
from iqagp_jax.dynamics.starts import at_rest, starts
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
    arguments = {
        "model": {"type": Path, "nargs": "?"},
        "--temperature": {"type": float, "action": "append", "help": "K; repeatable"},
        "--replicas": {"type": int},
        "--time": {"type": float, "help": "ps of each replica"},
        "--timestep": {"type": float, "help": "fs"},
        "--seed": {"type": int, "help": "of the momenta"},
    }
    usual = {"temperature": [300.0, 500.0, 1000.0], "replicas": 20, "time": 20.0, "timestep": 0.5, "seed": 0}
    short = {"model": SMALL_MODEL, "temperature": [300.0, 500.0], "replicas": 4, "time": 3.0}
    options = parsed(__doc__, arguments, usual, short)
    model = load_model(options.model)
    rest = at_rest(model)
    begin = starts(model, ["equilibrium"] * options.replicas, rest=rest)
    run = {"time": options.time, "timestep": options.timestep, "seed": options.seed, "frame_interval": 5.0}
    print("target K   survived   mean K (standard error)   deviation %   rms of single replicas, own error bars")
    for target in options.temperature:
        with tempfile.TemporaryDirectory() as folder:
            found = simulate(model, rest.system, begin, folder, temperature=target, **run)
            series = vibrational_temperatures(found.trajectory)[:, found.survived]
        series = series[len(series) // 10 :]
        means, errors = series.mean(0), block_errors(series, round(0.9 * options.time))
        mean, error = means.mean(), means.std(ddof=1) / np.sqrt(len(means))
        score = np.sqrt(np.mean(((means - target) / errors) ** 2))
        print(
            f"{target:8g}   {found.survived.sum():3d}/{options.replicas}   {mean:10.1f} ({error:.1f})"
            f"   {100 * (mean / target - 1):11.2f}   {score:10.2f}"
        )


if __name__ == "__main__":
    main()
