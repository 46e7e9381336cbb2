"""Geometries of malondialdehyde that are worth an energy by CCSD(T): chosen by a model of B3LYP, with an independent test.

    python scripts/coupled_cluster_geometries.py --out campaigns/malondialdehyde-ccsd-t/geometries.extxyz

Candidates for training are the embedded training geometries and frames of the model's own runs at 1500 K, all within 40
kcal/mol of the minimum. Each is chosen given those before: the one that lessens the mean variance of all candidates' energies
most, under the prior of the model (Cohn, doi:10.1016/0893-6080(95)00137-9). The test is drawn at random from the embedded test
splits, as many from each of equal bins of energy. The file begins with the model's minimum and its saddle of the proton
transfer; then training geometries, in the order of the choice, and test geometries take turns, so that a campaign that is
stopped leaves some of both.
"""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.io import write
from dialect import parsed

from iqagp_jax import energy_and_forces, energy_fn, fit_gp, load_dataset, load_model, save_model, simulate
from iqagp_jax.active import least_variance
from iqagp_jax.cli.console import output_file
from iqagp_jax.dynamics.minimise import minimise
from iqagp_jax.families.gp.teach import Fitted
from iqagp_jax.units import KCAL_MOL

HIGHEST = 40 * KCAL_MOL
"""Above the minimum."""

HOT = 1500.0
"""K, of the model's runs."""

BINS = 5
"""Of the test's energies."""


def main():
    arguments = {
        "--out": {"type": Path, "help": "extxyz file of the geometries"},
        "--model": {"type": Path, "help": "of B3LYP; fitted and written there if it is not there"},
        "--n-train": {"type": int, "help": "geometries to choose"},
        "--n-test": {"type": int, "help": "geometries of the test"},
        "--n-base": {"type": int, "help": "geometries of the model; by default as `iqagp train`"},
        "--replicas": {"type": int, "help": "of the model's runs"},
        "--time": {"type": float, "help": "ps of each"},
        "--seed": {"type": int, "help": "of the runs and of the test"},
    }
    usual = {"n_train": 60, "n_test": 30, "n_base": None, "replicas": 8, "time": 4.0, "seed": 24, "model": None}
    short = {"out": None, "n_train": 4, "n_test": 5, "n_base": 12, "replicas": 2, "time": 0.02, "seed": 24}
    options = parsed(__doc__, arguments, usual, short)
    out = output_file(options.out)
    data = load_dataset("malondialdehyde")
    with TemporaryDirectory() as folder:
        model = base(data, options.model or Path(folder, "model.safetensors"), options.n_base)
        minimum, saddle = stationary_points(model)
        pool, sources = candidates(model, data.split("train"), float(energy_fn(model)(minimum)), Path(folder, "run"), options)
    chosen = least_variance(Fitted.of(model).energy_covariance(pool), options.n_train)
    test = evenly(data[data.origin["split"] != "train"], options.n_test, data.energy.min(), options.seed)
    frames = [frame(data.species, r, "saddle" if k else "minimum", "stationary") for k, r in enumerate((minimum, saddle))]
    train = [frame(data.species, pool[k], sources[k], "train") for k in chosen]
    frames += taking_turns(train, [frame(data.species, r, "thermal", "test") for r in test])
    write(out, frames, format="extxyz")
    print(f"{len(frames)} geometries in {out}: {len(train)} of {len(pool)} candidates, {len(test)} of the test")
    print("sources:", ", ".join(f"{name} {(sources[chosen] == name).sum()}" for name in sorted(set(sources[chosen]))))


def base(data, path, n_base):
    """The model of B3LYP."""
    if not path.exists():
        save_model(fit_gp(data, n_train=n_base, **({"max_steps": 0} if n_base else {})), path)
    return load_model(path)


def stationary_points(model):
    """The minimum and the saddle of the proton transfer, (N, 3) angstrom each.

    The saddle is symmetric: Newton's method begins at the mean of the minimum and its image with the proton transferred.
    """
    energy = energy_fn(model)
    minimum = np.asarray(minimise(energy, model.system.positions, max_force=1e-4).positions)
    (image,) = (p for p in replace(model.system, positions=minimum).permutations if p[0] != 0)
    other = minimum[image] - minimum[image].mean(0)
    here = minimum - minimum.mean(0)
    u, _, v = np.linalg.svd(other.T @ here)
    return minimum, saddle_near(energy, (here + other @ u @ v) / 2)


def saddle_near(energy, positions, steps=50):
    """Newton's method, without the six modes of the molecule as a whole; RuntimeError unless it ends at a saddle."""
    with jax.enable_x64(True):
        gradient, hessian = jax.jit(jax.grad(energy)), jax.jit(jax.hessian(energy))
        for _ in range(steps):
            slope = np.asarray(gradient(jnp.asarray(positions))).ravel()
            curvature, modes = np.linalg.eigh(np.asarray(hessian(jnp.asarray(positions))).reshape(len(slope), -1))
            if np.abs(slope).max() < 1e-6:
                break
            inner = np.argsort(np.abs(curvature))[6:]
            step = -modes[:, inner] @ (modes[:, inner].T @ slope / curvature[inner])
            positions = positions + (step * min(1, 0.1 / np.abs(step).max())).reshape(positions.shape)
    if np.abs(slope).max() >= 1e-6 or (curvature < -0.1).sum() != 1:
        raise RuntimeError(f"expected a saddle, found a slope of {np.abs(slope).max():g} and modes {curvature[:8]}")
    return positions


def candidates(model, train, floor, folder, options):
    """Positions (n, N, 3) within reach of the minimum and their sources (n,)."""
    near = train[(train.energy < train.energy.min() + HIGHEST) & train.thermal]
    rng = np.random.default_rng(options.seed)
    starts = near.positions[rng.choice(len(near), options.replicas, replace=False)]
    temperatures = {"temperature": HOT, "time": options.time, "frame_interval": 20.0, "seed": options.seed, "progress": False}
    run = simulate(model, model.system, starts, folder, **temperatures)
    frames = run.trajectory.positions[1:].reshape(-1, *starts.shape[1:])
    energies = np.asarray(energy_and_forces(model)(frames)[0])
    hot = frames[np.isfinite(energies) & (energies < floor + HIGHEST)]
    allowed = train.energy < train.energy.min() + HIGHEST
    sources = [f"embedded {s}" for s in train.origin["source"][allowed]] + ["hot run"] * len(hot)
    return np.concatenate([train.positions[allowed], hot]), np.array(sources)


def evenly(test, n, lowest, seed):
    """Positions (n, N, 3) drawn at random, as many from every bin of energy as it has, the rest from the fullest."""
    bins = np.floor((test.energy - lowest) / HIGHEST * BINS).astype(int)
    rng = np.random.default_rng(seed)
    drawn = [k for b in range(BINS) for k in rng.permutation(np.flatnonzero(bins == b))[: n // BINS]]
    left = np.setdiff1d(np.flatnonzero(bins < BINS), drawn)
    drawn += rng.permutation(left)[: n - len(drawn)].tolist()
    return test.positions[rng.permutation(drawn)]


def taking_turns(train, test):
    """Test geometries spread evenly among the first two thirds of the training ones."""
    places = [(k, t) for k, t in enumerate(train)]
    places += [((k + 0.5) * len(train) * 2 / 3 / len(test), t) for k, t in enumerate(test)]
    return [t for _, t in sorted(places, key=lambda place: place[0])]


def frame(species, positions, source, split):
    """For an extxyz file."""
    return Atoms(species, positions=np.round(positions, 8), info={"source": source, "split": split})


if __name__ == "__main__":
    main()
