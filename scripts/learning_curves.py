"""Errors by the number of training geometries, of energies and forces with symmetry, at 500 K (ethanol: rMD17).

    python scripts/learning_curves.py   # all sets; hours on two cores
    python scripts/learning_curves.py --set glycine-difference --n-train 25 --n-train 50

A difference is that of the labels, DFT, to GFN2-xTB. Mean absolute errors with their standard errors over the test geometries,
kcal/mol and kcal/mol/angstrom, of ethanol meV and meV/angstrom. With --shuffles the training split comes in so many orders, and
every row stands for another choice of training geometries.
"""

import time
from dataclasses import replace

import numpy as np
from dialect import parsed, reference_files

from iqagp_jax import energy_and_forces, fit_gp, load_dataset
from iqagp_jax.references.xtb import XTB
from iqagp_jax.units import KCAL_MOL

SIZES = {
    "glycine": (100, 200, 400),
    "glycine-difference": (25, 50, 100, 200),
    "malondialdehyde": (20, 50, 100, 200),
    "malondialdehyde-difference": (20, 50, 100, 200),
    "ethanol": (50, 300),
}

EMBEDDED = {"glycine": "capped-glycine", "malondialdehyde": "malondialdehyde"}

AT_A_TIME = 100
"""Test geometries."""


def read(name, n_test, short):
    """(training split, test set, units of a kilocalorie per mole or a millielectronvolt), None without reference files."""
    if name == "ethanol":
        folder = reference_files("ethanol_rmd17", short)
        return folder and (load_dataset(folder / "train.xyz"), load_dataset(folder / "test_MD.xyz")[:n_test], 1e-3)
    molecule, *difference = name.split("-")
    data = load_dataset(EMBEDDED[molecule])
    sets = data.split("train"), data.split("test_500K")[:n_test]
    return *(map(beyond_xtb, sets) if difference else sets), KCAL_MOL


def beyond_xtb(data):
    """A dataset with the difference of its labels to those of GFN2-xTB."""
    energy, forces = XTB(data.species).labels(data.positions)
    return replace(data, energy=data.energy - energy, forces=data.forces - forces, atomic_energies=None)


def errors(model, test, unit):
    """Mean absolute errors of energies and forces and their standard errors over the geometries, as a text each."""
    predict, parts = energy_and_forces(model), range(0, len(test), AT_A_TIME)
    energy, forces = map(np.concatenate, zip(*(predict(test.positions[k : k + AT_A_TIME]) for k in parts), strict=True))
    each = np.abs(energy - test.energy) / unit, np.abs(forces - test.forces).mean((1, 2)) / unit
    return [f"{e.mean():.2f} +- {e.std() / np.sqrt(len(e)):.2f}" for e in each]


def main():
    arguments = {
        "--set": {"action": "append", "choices": list(SIZES), "dest": "sets"},
        "--n-train": {"type": int, "action": "append", "help": "geometries, repeatable"},
        "--n-test": {"type": int},
        "--kernel": {"help": "as `iqagp train` takes it"},
        "--pair-weights": {"help": "as `iqagp train` takes them"},
        "--local": {"action": "store_true", "help": "with a process of the atoms' surroundings beside that of the molecule"},
        "--shuffles": {"type": int, "help": "orders of the training split, the file's own first"},
        "--max-steps": {"type": int},
    }
    usual = {"sets": list(SIZES), "n_train": None, "n_test": 1000, "kernel": "matern92", "pair_weights": "decay"}
    usual |= {"shuffles": 1, "max_steps": 40, "local": False}
    short = {"sets": ["malondialdehyde-difference"], "n_train": [6], "n_test": 4, "max_steps": 1}
    options = parsed(__doc__, arguments, usual, short)
    print("| set | geometries | energy | forces | noise | fit, s |\n| --- | --- | --- | --- | --- | --- |")
    for name in options.sets:
        found = read(name, options.n_test, options.short)
        if found is None:
            continue
        train, test, unit = found
        orders = [np.arange(len(train)), *map(np.random.default_rng(0).permutation, (options.shuffles - 1) * [len(train)])]
        for n in options.n_train or SIZES[name]:
            for order in orders:
                began = time.perf_counter()
                # Born-Mayer's wall varies more among bonds than a difference of two levels does.
                mean = "mf1" if "difference" in name else None
                chosen = {name: getattr(options, name) for name in ("kernel", "pair_weights", "local", "max_steps")}
                model = fit_gp(train[order[:n]], n_train=n, targets=("energy", "forces"), prior_mean=mean, **chosen)
                seconds = time.perf_counter() - began
                noise = " ".join(f"{share:g}" for share in np.ravel(model.noise))
                row = name, f"{n}", *errors(model, test, unit), noise, f"{seconds:.0f}"
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
