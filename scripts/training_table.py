"""How long the hyperparameters of all atoms of capped glycine take, and how near they come to the best of long searches.

    python scripts/training_table.py                # 1000 points, 19 atoms, 51 features of atomic local frames
    python scripts/training_table.py --starts 5     # also so many random starts to their end, beside which the first is held

Geometries of campaigns/glycine with the atomic energies of GFN2-xTB (tblite), which cost milliseconds: the search only sees
numbers of the right kind.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from ase.io import read

from iqagp_jax import Dataset, fit_gp
from iqagp_jax.cli.console import table, track
from iqagp_jax.sampling import xtb
from iqagp_jax.validation import atom_labels

GEOMETRIES = Path(__file__).parent.parent / "campaigns/glycine/geometries.extxyz"

LONG = {"max_steps": 400, "tolerance": 1e-3, "patience": 3}
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
    """(log likelihoods of the atoms, seconds) of a fit of energies alone on atomic local frames."""
    began = time.perf_counter()
    model = fit_gp(data, "alf", prior_mean="mf5", targets=("atomic_energies",), **search)
    return model.trace[-1], time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--starts", type=int, default=0, help="random starts of long searches")
    options = parser.parse_args()
    data = labelled(read(GEOMETRIES, f":{options.points}"))
    found, seconds = fitted(data)
    print(f"{len(data.species)} atoms, {len(data)} points: {seconds:.0f} s with the default search, compilation included")
    if options.starts:
        seeds = track(range(options.starts), "long searches", options.starts)
        long = np.array([fitted(data, n_starts=1, seed=k, **LONG)[0] for k in seeds])
        best, worst = long.max(0), long.min(0)
        rows = list(zip(atom_labels(data.species), found, best, best - found, worst, strict=True))
        table("log likelihood", ["atom", "default", "best of the long searches", "short of it by", "worst of them"], rows)
        print(f"short by {(best - found).max():.2f} at most")


if __name__ == "__main__":
    main()
