"""The paper's table in our hands, with the truth beside it: prior means x temperatures x kinds of start.

    python scripts/robustness_table.py malondialdehyde --out table --reference dft --starts equilibrium displaced --frames 20

Models of atomic energies alone on atomic local frames, one for each prior mean, each judged by the verdict from equilibrium
and from displaced and stretched starts. Everything is kept in the folder: the same command goes on where it was stopped.
Label the dataset's geometries with GFN2-xTB first (`--xtb`) to have the truth in minutes instead of days; atomic energies are
then equal shares of the molecule's.
"""

import argparse
import os
from contextlib import nullcontext
from pathlib import Path

from iqagp_jax import fit_gp, load_dataset, load_model, save_model
from iqagp_jax.cli.console import output_folder, table, track
from iqagp_jax.labels.executors import Processes
from iqagp_jax.verdict import Protocol, judge
from iqagp_jax.verdict.references import XTB, reference_of, relabelled
from iqagp_jax.verdict.replicas import KINDS

MEANS = ("min", "mf1", "mf2", "mf3", "mf4", "mf5")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reference", choices=("xtb", "dft", "none"), required=True)
    parser.add_argument("--xtb", action="store_true", help="label the geometries with GFN2-xTB first")
    parser.add_argument("--means", nargs="+", default=MEANS)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[300.0, 500.0, 700.0, 1000.0], help="K")
    parser.add_argument("--starts", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--replicas", type=int, default=20)
    parser.add_argument("--picoseconds", type=float, default=20.0)
    parser.add_argument("--frames", type=int, default=50, help="relabelled, a temperature and kind of start")
    parser.add_argument("--n-train", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    out, data = output_folder(options.out), load_dataset(options.dataset)
    targets = ("atomic_energies",)
    if options.xtb:
        data, targets = relabelled(data, XTB(data.species)), ("energy",)
    protocol = Protocol(
        tuple(options.temperatures),
        tuple(options.starts),
        replicas=options.replicas,
        time=options.picoseconds,
        frames=options.frames,
        reference_replicas=0,
    )
    rows = []
    for mean in options.means:
        folder = output_folder(out / mean)
        path = folder / "model.safetensors"
        if not path.exists():
            fitted = fit_gp(data, "alf", prior_mean=mean, n_train=options.n_train, targets=targets)
            save_model(fitted, path)
        model = load_model(path)
        with nullcontext() if options.reference == "none" else Processes(options.workers) as pool:
            reference = reference_of(options.reference, model, folder / "labels", pool=pool, workers=options.workers)
            facts = judge(model, folder, reference, protocol, f"{options.dataset}, {mean}", track)
        for row in facts["rows"]:
            errors = ["-" if row[key] is None else row[key] for key in ("right", "de_median", "de_p95", "de_max")]
            survived = f"{row['survived']}/{row['replicas']}"
            rows.append((mean, f"{row['temperature_K']:g}", row["start"], survived, *errors))
    header = ["prior mean", "K", "start", "survived", "right", "median |dE|, kcal/mol", "95%", "max"]
    table(f"{options.dataset}: {options.picoseconds:g} ps, held to {options.reference}", header, rows)


if __name__ == "__main__":
    main()
