"""How long the hyperparameters of all atoms of capped glycine take, and how near they come to the best of long searches.

    python scripts/training_table.py                # 1000 points, 19 atoms, 51 features of atomic local frames
    python scripts/training_table.py --random-starts 5     # also so many to their end, beside which the first is held
    python scripts/training_table.py --random-starts 5 --keep long.npz --search n_starts=3     # another search beside those

Geometries of campaigns/glycine with the atomic energies of GFN2-xTB (tblite), which cost milliseconds: the search only sees
numbers of the right kind.
"""

import time
from pathlib import Path

import numpy as np
from ase.io import read
from dialect import ROOT, parsed

from iqagp_jax import Dataset, fit_gp
from iqagp_jax.cli.console import table, track
from iqagp_jax.sampling import xtb
from iqagp_jax.validation import atom_labels

GEOMETRIES = ROOT / "campaigns/glycine/geometries.extxyz"

LONG = {"tolerance": 1e-3, "patience": 3}
"""Options of a search to its end."""


def labelled(frames):
    """The `Dataset` of ASE's frames with atomic energies of GFN2-xTB."""
    energies = []
    for atoms in track(frames, "GFN2-xTB", len(frames)):
        atoms.calc = xtb(charge=0, spin=0)
        energies.append(atoms.get_potential_energies())
    positions, energies = np.stack([atoms.positions for atoms in frames]), np.stack(energies)
    return Dataset(tuple(frames[0].symbols), positions, energies.sum(1), atomic_energies=energies)


def fitted(data, **search):
    """(log likelihoods of the atoms, seconds, CPU seconds) of a fit of energies alone on atomic local frames."""
    began = np.array([time.perf_counter(), time.process_time()])
    model = fit_gp(data, "alf", prior_mean="mf5", targets=("atomic_energies",), **search)
    return model.trace[-1], *(np.array([time.perf_counter(), time.process_time()]) - began)


def long_searches(data, starts, keep, max_steps):
    """Log likelihoods (starts, N) of random starts to their end, kept in the file ``keep``."""
    found = list(np.load(keep)["values"]) if keep and keep.exists() else []
    for seed in track(range(len(found), starts), "long searches", starts - len(found)):
        found.append(fitted(data, n_starts=1, seed=seed, max_steps=max_steps, **LONG)[0])
        if keep:
            np.savez(keep, values=found)
    return np.array(found[:starts])


def option(text):
    """Name and value of an option of `Search`, NAME=VALUE."""
    name, value = text.split("=")
    return name, float(value) if "." in value else int(value)


def main():
    arguments = {
        "--n-train": {"type": int},
        "--random-starts": {"type": int, "help": "of long searches"},
        "--max-steps": {"type": int, "help": "of a long search"},
        "--keep": {"type": Path, "help": "file of the long searches"},
        "--search": {"type": option, "action": "append", "help": "an option of the search, as max_steps=60; repeatable"},
    }
    usual = {"n_train": 1000, "random_starts": 0, "max_steps": 400, "search": []}
    short = {"n_train": 20, "random_starts": 1, "max_steps": 3, "search": [("max_steps", 2)]}
    options = parsed(__doc__, arguments, usual, short)
    data = labelled(read(GEOMETRIES, f":{options.n_train}"))
    found, seconds, cpu = fitted(data, **dict(options.search))
    size = f"{len(data.species)} atoms, {len(data)} points"
    print(f"{size}: {seconds:.0f} s, {cpu:.0f} s of CPU time, compilation included, {dict(options.search) or 'default search'}")
    if options.random_starts:
        long = long_searches(data, options.random_starts, options.keep, options.max_steps)
        best, worst = long.max(0), long.min(0)
        short = best - found
        rows = list(zip(atom_labels(data.species), found, best, short, worst, strict=True))
        table("log likelihood", ["atom", "found", "best of the long searches", "short of it by", "worst of them"], rows)
        print(f"short by {np.median(short):.2f} (median), {short.max():.2f} (at most), {(short < 0.5).sum()} atoms within 0.5")


if __name__ == "__main__":
    main()
