"""CCSD(T) from tens of energies: the difference to B3LYP, learned over a model of B3LYP; errors, and the proton's barrier.

    python scripts/coupled_cluster.py

The embedded `malondialdehyde-ccsd-t` has energies of training geometries in the order in which they were chosen, of an
independent test (`scripts/coupled_cluster_geometries.py`), and of stationary points: the minimum and the saddle of a model of
B3LYP, then those of a sum. A Gaussian process learns E(CCSD(T)) minus the energy of a model of the embedded B3LYP labels, of
energies alone, around the mean difference. It learns the stationary points first, all but the last two, which show the barrier
of CCSD(T) where a sum has its own. `docs/measurements/2026-11-coupled-cluster.md` has the tables.
"""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from ase.io import write
from coupled_cluster_geometries import frame, stationary_points
from dialect import parsed

from iqagp_jax import energy_and_forces, energy_fn, fit_gp, load_dataset, load_model, save_model
from iqagp_jax.cli.console import table
from iqagp_jax.data.dataset import concatenate
from iqagp_jax.units import KCAL_MOL

NEAR = 60 * KCAL_MOL
"""Above the minimum: what the model beneath learns of."""

USUAL = 600
"""Geometries that it learns: two GB of covariance."""

NOISE = 1e-3
"""A share of the difference's variance: the model of B3LYP errs by some hundredths of a kcal/mol, a difference by one."""


def main():
    arguments = {
        "--labels": {"help": "dataset of energies by CCSD(T)"},
        "--model": {"type": Path, "help": "of B3LYP; fitted and written there if it is not there"},
        "--n-base": {"type": int, "help": "geometries of that"},
        "--n-train": {"type": int, "action": "append", "help": "energies to learn; repeatable"},
        "--append-to": {"type": Path, "help": "geometries that get the minimum and the saddle of the last sum, to label them"},
    }
    usual = {"labels": "malondialdehyde-ccsd-t", "model": None, "n_base": USUAL, "n_train": [10, 20, 40, 62]}
    usual |= {"append_to": None}
    options = parsed(__doc__, arguments, usual, {"n_base": 12, "n_train": [6]})
    labels = load_dataset(options.labels)
    with TemporaryDirectory() as folder:
        beneath = of_b3lyp(options.model or Path(folder, "model.safetensors"), options.n_base)
    points, test = labels.split("stationary"), labels.split("test")
    train = concatenate([points[: max(2, len(points) - 2)], labels.split("train")])
    numbers = sorted({min(n, len(train)) for n in options.n_train})
    sums = {n: learned_over(beneath, train[:n]) for n in numbers}
    print("standard deviations, kcal/mol:")
    print(f"difference of {len(train)} training geometries {spread(beneath, train):.2f}, of {len(test)} of the test", end=" ")
    print(f"{spread(beneath, test):.2f}, their energies {np.std(test.energy) / KCAL_MOL:.1f}")
    shifted = [("B3LYP's model and the mean difference", *errors(beneath, test, np.mean(above(beneath, train))))]
    rows = shifted + [(f"and of {n} energies", *errors(model, test)) for n, model in sums.items()]
    table("energies of the test, kcal/mol", ["model", "mean |error|", "root mean square", "largest"], rows)
    rows = barriers(points, beneath, sums)
    table("barrier of the proton transfer, kcal/mol", ["potential, geometries", "barrier"], rows)
    if options.append_to:
        found = zip(("minimum", "saddle"), stationary_points(sums[numbers[-1]]), strict=True)
        named = [frame(labels.species, r, f"{name} of {numbers[-1]} energies", "stationary") for name, r in found]
        write(options.append_to, named, format="extxyz", append=True)


def of_b3lyp(path, n_base):
    """The model beneath: of energies and forces, and so of more geometries than with atomic energies."""
    if not path.exists():
        train = load_dataset("malondialdehyde").split("train")
        near = train[train.energy < train.energy.min() + NEAR]
        quick = {"max_steps": 0} if n_base < USUAL else {}
        save_model(fit_gp(near, n_train=n_base, targets=("energy", "forces"), **quick), path)
    return load_model(path)


def above(model, data):
    """What energies exceed a model's by, (n,) eV."""
    return data.energy - np.asarray(energy_and_forces(model)(data.positions)[0])


def spread(model, data):
    """Of the difference, kcal/mol."""
    return float(np.std(above(model, data))) / KCAL_MOL


def learned_over(beneath, train):
    """A model of energies over the one beneath."""
    quick = {"max_steps": 0} if len(train) < 10 else {}
    return fit_gp(replace(train, origin={}), base=beneath, targets=("energy",), noise=NOISE, **quick)


def errors(model, test, shift=0.0):
    """(mean |error|, root mean square, largest), kcal/mol."""
    wrong = np.abs(above(model, test) - shift) / KCAL_MOL
    return float(wrong.mean()), float(np.sqrt((wrong**2).mean())), float(wrong.max())


def barriers(points, beneath, sums):
    """(name, kcal/mol) of models between their own points, and of CCSD(T) between the points that were labelled."""
    rows = []
    for name, model in {"B3LYP's model": beneath, **{f"sum of {n} energies": model for n, model in sums.items()}}.items():
        low, high = (float(energy_fn(model)(r)) for r in stationary_points(model))
        rows.append((f"{name}, its own", (high - low) / KCAL_MOL))
    for k in range(0, len(points) - 1, 2):
        minimum, saddle = points.energy[k : k + 2]
        source = points.origin["source"][k].removeprefix("minimum").removeprefix(" of ")
        rows.append((f"CCSD(T), those of {f'the sum of {source}' if source else 'B3LYP'}", (saddle - minimum) / KCAL_MOL))
    return rows


if __name__ == "__main__":
    main()
