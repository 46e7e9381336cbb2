"""The long tables of the benchmark, and their picture: cost against replicas, training points and atoms.

    python scripts/speed_table.py --out speed/           # float64, all cores: about 8 minutes
    python scripts/speed_table.py --out speed/ --threads 1 --threads 2 --precision float64 --precision float32

Every size runs in a process of its own, so that its peak memory is its own. Writes ``speed.json`` and ``speed.png``, prints a
line a size and the exponents of cost against size, fitted by least squares to the three greatest sizes.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

from dialect import parsed
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from iqagp_jax import bench

SWEEPS = {
    "replicas": ("replicas", (1, 3, 10, 30, 100, 300, 1000)),
    "training points": ("train", (250, 500, 1000, 2000, 4000)),
    "atoms": ("atoms", (9, 19, 30, 42)),
}

SHORT = {"replicas": ("replicas", (1, 4)), "training points": ("train", (50, 100)), "atoms": ("atoms", (5, 9))}
"""Of a step of few atoms and points, timed for a moment."""

SMALL = {"atoms": 5, "train": 50, "replicas": 4}

ONE = """
import dataclasses, json, sys
from iqagp_jax import bench
from iqagp_jax.machine import devices
case, threads, short = json.loads(sys.argv[1])
if short:
    bench.RUNS, bench.SECONDS, bench.MATRIX = 2, 0.01, 256
devices.use_cores(threads)
case = bench.Case(**case)
print(json.dumps(bench.measure(case, bench.peaks(case.dtype)).as_dict()))
"""


@cache
def measure(case, threads, short):
    """A row of the table, from a process of its own."""
    found = subprocess.run(
        [sys.executable, "-c", ONE, json.dumps([asdict(case), threads, short])], check=True, capture_output=True, text=True
    )
    row = {**json.loads(found.stdout), "threads": threads}
    print(
        f"{case.atoms:3d} atoms {case.train:5d} points {case.replicas:5d} replicas {case.dtype} {threads} threads:"
        f" {row['ms']:.4f} ms ({row['ms_least']:.4f} - {row['ms_greatest']:.4f}), {row['share_of_floor']:.0%} of the floor,"
        f" {row['memory_gib']:.2f} GiB",
        flush=True,
    )
    return row


def draw(rows, path, sweeps):
    """Milliseconds a step: of all replicas together against their number, per replica against points and atoms."""
    figure = Figure(figsize=(13, 4), layout="constrained", dpi=120)
    for axes, (title, (name, sizes)) in zip(figure.subplots(1, 3), sweeps.items(), strict=True):
        for kind in sorted({(row["threads"], row["case"]["dtype"]) for row in rows}):
            chosen = [r for r in rows if r["sweep"] == title and (r["threads"], r["case"]["dtype"]) == kind]
            scale = [r["case"]["replicas"] if name == "replicas" else 1 for r in chosen]
            x = [r["case"][name] for r in chosen]
            y, low, high = ([s * r[k] for s, r in zip(scale, chosen, strict=True)] for k in ("ms", "ms_least", "ms_greatest"))
            # with few replicas or points other things than the arithmetic count
            slope = bench.exponent(x[-3:], y[-3:])
            label = f"{kind[1]}, {kind[0]} threads: size^{slope:.2f}"
            print(f"{title}: {label}")
            axes.plot(x, y, "o-", label=label)
            axes.fill_between(x, low, high, alpha=0.2)
            axes.plot(x, [s * r["floor_ms"] for s, r in zip(scale, chosen, strict=True)], "k:", linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel=title, ylabel="ms a step" + (" and replica" if name != "replicas" else ""))
        axes.set_xticks(sizes, sizes)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend(frameon=False)
    figure.suptitle("NVT step of 19 atoms, 1000 training points, 100 replicas, one of them varied; dotted: floor")
    figure.savefig(path)


def main():
    arguments = {
        "--out": {"type": Path, "help": "folder"},
        "--threads": {"type": int, "action": "append", "help": "repeatable; by default all cores"},
        "--precision": {"action": "append", "choices": ["float64", "float32"], "help": "repeatable"},
    }
    usual = {"threads": [len(os.sched_getaffinity(0))], "precision": ["float64"]}
    options = parsed(__doc__, arguments, usual, {"out": None, "threads": [1]})
    sweeps, base = (SHORT, SMALL) if options.short else (SWEEPS, {})
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for threads in options.threads:
        for dtype in options.precision:
            for title, (name, sizes) in sweeps.items():
                for size in sizes:
                    row = measure(bench.Case(**base | {"dtype": dtype, name: size}), threads, options.short)
                    rows.append({**row, "sweep": title})
                    (options.out / "speed.json").write_text(json.dumps(rows, indent=1))
    draw(rows, options.out / "speed.png", sweeps)


if __name__ == "__main__":
    main()
