"""Which atoms are learned best? Models of one molecule's geometries with the atomic energies of several partitions.

    python scripts/partitions.py --out partitions.json                                # becke, hirshfeld, equal
    python scripts/partitions.py --out qtaim.json --dataset malondialdehyde-qtaim --n-train 250 --n-train 500 --n-train 975 \
        --partition becke --partition hirshfeld --partition qtaim --partition equal

Every model is one Gaussian process per atom, trained on atomic energies alone, prior mean mf5; `equal` gives
every atom the same share of the molecular energy, so that its atoms know nothing of their surroundings' share. Errors are
mean absolute ones on geometries of independent runs; `atoms` is the mean over the atoms. The file keeps every model's
`Validation`: run it again to go on, or for the table alone.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from dialect import parsed

from iqagp_jax import fit_gp, load_dataset, validate
from iqagp_jax.machine.files import write_atomically
from iqagp_jax.units import KCAL_MOL

TESTS = ("test_500K", "test_1000K")


def with_equal_shares(data):
    """A partition ``equal``: every atom has the same share of the total energy."""
    shares = np.repeat(data.energy[:, None] / len(data.species), len(data.species), axis=1)
    return replace(data, extra={**data.extra, "equal_energies": shares})


def learn(data, features, n_train, **search):
    """Errors of one model on the test sets, the spread of what it learned (kcal/mol), and the CPU time of the fit."""
    start = time.process_time()
    model = fit_gp(data, features, n_train=n_train, targets=("atomic_energies",), prior_mean="mf5", **search)
    seconds = time.process_time() - start
    spread = data.split("train")[:n_train].atomic_energies.std(0) / KCAL_MOL
    tests = {name: validate(model, data.split(name)).as_dict() for name in TESTS if name in data.splits}
    return {"spread": spread.tolist(), "seconds": seconds, **tests}


def main():
    arguments = {
        "--out": {"type": Path, "help": "file of the results, continued if it is there"},
        "--dataset": {},
        "--partition": {"action": "append", "help": "repeatable"},
        "--features": {"action": "append", "help": "repeatable"},
        "--n-train": {"type": int, "action": "append", "help": "repeatable"},
        "--max-steps": {"type": int, "help": "of a search for hyperparameters"},
    }
    usual = {"dataset": "malondialdehyde", "partition": ["becke", "hirshfeld", "equal"], "max_steps": 40}
    usual |= {"features": ["inverse-distances", "alf"], "n_train": [250, 500, 1000]}
    short = {"out": None, "partition": ["hirshfeld", "equal"], "features": ["alf"], "n_train": [20], "max_steps": 0}
    options = parsed(__doc__, arguments, usual, short)
    stored = json.loads(options.out.read_text()) if options.out.exists() else {}
    data = with_equal_shares(load_dataset(options.dataset))
    results = stored.setdefault(f"{options.dataset}, {len(data)} geometries", {})
    for n_train in options.n_train:
        for features in options.features:
            for partition in options.partition:
                key = f"{features} {n_train} {partition}"
                if key not in results:
                    results[key] = learn(data.with_partition(partition), features, n_train, max_steps=options.max_steps)
                    write_atomically(options.out, json.dumps(stored, indent=1))
    print("| features | geometries | partition | spread | energy | forces | atoms | energy | forces | atoms |")
    print("| --- " * 10 + "|")
    for key, result in results.items():
        features, n_train, partition = key.split()
        cells = [f"{np.mean(result['spread']):.1f}"]
        for test in TESTS:
            if test not in result:
                cells += ["-"] * 3
                continue
            e = result[test]
            atoms = np.mean([error["mae"] for error in e["atomic_energies"].values()])
            cells += [f"{e['energy']['mae']:.3f}", f"{e['forces']['mae']:.2f}", f"{atoms:.3f}"]
        print("|", " | ".join([features, n_train, partition, *cells]), "|")


if __name__ == "__main__":
    main()
