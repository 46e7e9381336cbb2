"""SIGKILL at random moments of `iqagp simulate`: are the trajectory's pieces those of an undisturbed run, byte for byte?

    python scripts/kill_run.py --time 100 --replicas 8 --kills 10

Trains a small model of malondialdehyde (or takes --model), runs it undisturbed, then runs the same command again and
again, killed each time after a random number of seconds, until it has been killed often enough and is let finish. Exit
code 1 where a byte differs.
"""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from dialect import SMALL_MODEL, parsed

IQAGP = [sys.executable, "-m", "iqagp_jax"]

OFTEN = [
    sys.executable,
    "-c",
    "import importlib, iqagp_jax.cli;"
    "importlib.import_module('iqagp_jax.dynamics.run').CHECKPOINT_SECONDS = 0.2;"
    "iqagp_jax.cli.main()",
]
"""The same program with a checkpoint every 0.2 s: on a fast machine the whole run takes less than ten lives of 3 s."""


def step_of(folder):
    """Step of the checkpoint in a folder, 0 where there is none."""
    path = folder / "checkpoint.npz"
    return int(np.load(path)["step"]) if path.exists() else 0


def killed_after(command, folder, seconds):
    """Run a command and kill it so long after its first new checkpoint; False if it finished before."""
    begun, process = step_of(folder), subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while step_of(folder) == begun and process.poll() is None:
        time.sleep(0.02)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


def main():
    arguments = {
        "--model": {"type": Path, "help": "a model file; by default one of 100 geometries is trained"},
        "--time": {"type": float, "help": "ps of each replica"},
        "--replicas": {"type": int},
        "--kills": {"type": int},
        "--thermostat": {},
        "--threads": {"type": int, "help": "of a run; by default all cores"},
        "--seed": {"type": int, "help": "of the moments"},
    }
    usual = {"model": None, "time": 100.0, "replicas": 8, "kills": 10, "thermostat": "nose-hoover", "threads": None, "seed": 0}
    # With seed 3 the moments leave most of the run for the last life, also on a machine that is faster by then.
    short = {"model": SMALL_MODEL, "time": 40.0, "replicas": 4, "kills": 3, "threads": 1, "seed": 3}
    options = parsed(__doc__, arguments, usual, short)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = options.model or work / "model.safetensors"
        if not options.model:
            subprocess.run([*IQAGP, "train", "malondialdehyde", "-o", model, "--n-train", "100"], check=True)
        run = ["simulate", model, "--replicas", options.replicas, "--time", options.time]
        run += ["--frame-interval", 10, "--thermostat", options.thermostat]
        run += ["--threads", options.threads] if options.threads else []
        run = [str(word) for word in run]
        undisturbed, disturbed = work / "undisturbed", work / "killed"
        subprocess.run([*IQAGP, *run, "--out", undisturbed], check=True)
        seconds = float(np.load(undisturbed / "checkpoint.npz")["seconds"])
        moments = random.Random(options.seed)
        kills = 0
        # Half of the run is left for the last life on average.
        while kills < options.kills and killed_after(
            [*OFTEN, *run, "--out", disturbed], disturbed, moments.uniform(0, seconds / options.kills)
        ):
            kills += 1
            print(f"kill {kills}: checkpoint at step {step_of(disturbed)}", flush=True)
        subprocess.run([*IQAGP, *run, "--out", disturbed], check=True)
        print((disturbed / "run.log").read_text())
        names = sorted(path.name for path in undisturbed.glob("trajectory-*.npz"))
        same = names == sorted(path.name for path in disturbed.glob("trajectory-*.npz")) and all(
            (undisturbed / name).read_bytes() == (disturbed / name).read_bytes() for name in names
        )
    print(f"{kills} kills, {options.time:g} ps, {len(names)} pieces:", "the same bytes" if same else "OTHER BYTES")
    sys.exit(not (same and kills == options.kills))


if __name__ == "__main__":
    main()
