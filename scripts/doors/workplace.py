"""A process of its own for the inputs, which has imported everything and may be killed at any moment."""

import os
import pickle
import random
import resource
import shutil
import signal
import traceback
from contextlib import suppress
from multiprocessing import get_context

from doors.judge import command, judged, outcome_of, result_of
from doors.table import DOORS

LIMIT = 60
"""Seconds that an input may take on a machine of which a core is free."""

MEMORY = 8 * 2**30
"""Bytes of addresses that the process may have, lest a count of nonsense take the machine's memory."""


def serve(pipe, home):
    """Answer (door, kind, seed) by `judged` until there is no more; the process may be killed at any moment."""
    os.setpgrp()
    os.nice(5)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", COLUMNS="400", TF_CPP_MIN_LOG_LEVEL="3", MPLBACKEND="agg")
    os.environ.pop("IQAGP_TRACEBACK", None)
    for stream in (1, 2):  # what is not Python's: xTB, XLA
        os.dup2(os.open(home / "noise", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    import jax

    from iqagp_jax.machine import devices

    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(home / "compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    devices.use_cores(1)
    while True:
        asked = pipe.recv()
        try:
            pipe.send(answer(home, *asked))
        except Exception:  # a mistake of this script, or good input that was refused
            pipe.send(("not made", traceback.format_exc()))


def answer(home, name, kind, seed):
    """What became of one input; without kind the good input is made and run, and what was said is returned."""
    import matplotlib.pyplot

    door, good = DOORS[name], home / name
    if kind is None:
        good.mkdir()
        os.chdir(good)
        door.make()
        shutil.copytree(good, home / "run" / name)
        os.chdir(home / "run" / name)
        said = outcome_of(door.call or command, door.words.split()) if door.results else (0, "", None)
        (home / f"{name}.good").write_bytes(pickle.dumps((result_of(door.results), said[1].splitlines())))
        matplotlib.pyplot.close("all")
        return ("made", "") if said[0] in (0, 3) else ("not made", said[1])
    folder = home / "run" / f"{name}-{seed}"
    shutil.copytree(good, folder)
    os.chdir(folder)
    words = door.damages[kind](random.Random(seed))
    known = pickle.loads((home / f"{name}.good").read_bytes()) if door.results else None
    found = judged(door.call or command, door.words.split() if words is None else words, door.results, known, kind)
    os.chdir(home)
    shutil.rmtree(folder, ignore_errors=True)
    matplotlib.pyplot.close("all")
    return found


class Workplace:
    """A process that answers; killed and replaced where it does not."""

    def __init__(self, home):
        self.home, self.process = home, None
        (home / "run").mkdir()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def ask(self, *question, limit=LIMIT):
        """`answer`, or "hang", or "traceback" where the process died."""
        if self.process is None:
            context = get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=serve, args=(theirs, self.home))
            self.process.start()
            theirs.close()
            limit += LIMIT
        self.pipe.send(question)
        try:
            limit *= max(1, os.getloadavg()[0] / os.cpu_count())
            if self.pipe.poll(limit):
                return self.pipe.recv()
            found = "hang", f"no end after {limit:.0f} s"
        except (EOFError, OSError):
            found = "traceback", "the process died"
        self.close()
        return found

    def close(self):
        """End the process and those that it started."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.join()
            self.process = None
