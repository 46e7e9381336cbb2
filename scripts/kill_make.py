"""SIGKILL at random moments of `iqagp make`: does the folder go on, is any label lost or made twice?

    python scripts/kill_make.py --out killed

Water by HF/STO-3G over GFN2-xTB, or --molecule by --level. The command is begun again after each kill, and let finish after the
last. Every label that was there at a kill must be there in the end as it was; no geometry may have two. Exit code 1 otherwise.
"""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from ase.io import read
from dialect import parsed

from iqagp_jax.cli.console import output_folder


def main():
    arguments = {
        "--molecule": {"help": "SMILES"},
        "--level": {},
        "--labels": {"type": int},
        "--time": {"type": float, "help": "ps of the exam's replicas"},
        "--out": {"type": Path, "help": "folder"},
        "--kills": {"type": int},
        "--longest": {"type": float, "help": "s between two kills at most"},
        "--lives": {"type": int, "help": "after the last kill; 0: the folder is left as it is"},
        "--seed": {"type": int, "help": "of the moments"},
    }
    usual = {
        "molecule": "O",
        "level": "hf/sto-3g",
        "labels": 24,
        "time": 2.0,
        "kills": 10,
        "longest": 60.0,
        "lives": 1,
        "seed": 0,
    }
    short = usual | {"out": None, "kills": 2, "longest": 8.0, "lives": 0}
    options = parsed(__doc__, arguments, usual, short)
    out, moments = output_folder(options.out), random.Random(options.seed)
    command = ["make", options.molecule, "--out", str(out), "--level", options.level, "--labels", str(options.labels)]
    command += ["--time", str(options.time), "--temperature", "400"]
    seen, kills = {}, 0
    while kills < options.kills:
        process = subprocess.Popen([sys.executable, "-m", "iqagp_jax", *command], start_new_session=True)
        time.sleep(moments.uniform(1.0, options.longest))
        if process.poll() is not None:
            break
        kills += 1
        process.send_signal(signal.SIGKILL)
        process.wait()
        lost = changed(seen)
        seen |= {path: path.read_bytes() for path in kept(out)}
        print(f"kill {kills}: {len(seen)} labels and parts are there, {len(lost)} of those before lost or changed", flush=True)
        if lost:
            sys.exit(1)
    if options.lives:
        subprocess.run([sys.executable, "-m", "iqagp_jax", *command], check=True)
    lost = changed(seen)
    twice = repeated(out)
    ended = (out / "report.json").exists()
    print(f"{kills} kills: {len(lost)} labels or parts lost or changed, {twice} geometries labelled twice, report: {ended}")
    sys.exit(bool(lost or twice or kills < options.kills or (options.lives and not ended)))


def kept(out):
    """Files that are written once: labels, and parts of the sampling."""
    return [*out.glob("labels/*/*.json"), *out.glob("sampling/*.npz")]


def changed(seen):
    """Those of files with their content that are gone or have another."""
    return [path for path, content in seen.items() if not path.exists() or path.read_bytes() != content]


def repeated(out):
    """How many geometries are in two sets of labels."""
    frames = [atoms for path in out.glob("labels/*.extxyz") for atoms in read(path, ":")]
    count = Counter(np.round(atoms.positions, 6).tobytes() for atoms in frames)
    return sum(n > 1 for n in count.values())


if __name__ == "__main__":
    main()
