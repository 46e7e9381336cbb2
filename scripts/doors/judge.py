"""What came of one input: what was said, by whom, and whether the result is another."""

import io
import json
import re
import sys
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np

RIGHT = "refused", "told", "harmless"
WRONG = "traceback", "hang", "accepted"
OUTRIGHT = re.compile(r" =>|'(nan|abc|nope|None|é|-inf|-1e300|1,5|1\.5|500|[^' ]*:[^' ]*)'$")
"""Kinds of damage that are to be told of or refused even where they change nothing: what a file says, an option of nonsense."""

TOLD = re.compile(
    r"warning(?!.* encountered in)|rejected|left out|set aside|dropped|failed (?!▕)|geometries, .* with ", re.IGNORECASE
)
"""In what tells of something odd or counts labels; not NumPy's own words."""


def command(words):
    """The command line in this process."""
    from iqagp_jax.cli import main

    sys.argv = ["iqagp", *words]
    main()


def outcome_of(call, words):
    """(exit status, all that was said, the error or None) of a call, as `iqagp_jax.cli.main` would end it."""
    said, error, status = io.StringIO(), None, 0
    with redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_: print(f"warning: {message}")
        try:
            call(words)
        except SystemExit as end:
            status, error = end.code or 0, end.__context__
        except (ValueError, OSError, RuntimeError, TypeError, ImportError) as found:
            status, error = 2, found
            print(f"error: {found}")
        except BaseException as found:  # whatever else it is: a user sees a traceback
            status, error = "traceback", found
            traceback.print_exc()
    return status, said.getvalue(), error


def is_a_sentence(error, said=""):
    """Whether an error was told in words of ours, or of the command line's parser, and not by Python or a library."""
    if error is None or type(error).__module__.startswith(("click", "typer")) or "error: expected a file that can" in said:
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = "iqagp_jax" in last.filename and (last.line or "").startswith("raise")
    return ours or bool(re.search("expected .*found", str(error), re.DOTALL))


def judged(call, words, results, good, kind):
    """(one of `RIGHT` and `WRONG`, what was said) of an input."""
    status, said, error = outcome_of(call, words)
    if status == 2:
        return ("refused" if is_a_sentence(error, said) else "traceback"), f"error: {error}"[:400] + _where(error)
    if status not in (0, 3):
        return "traceback", f"{type(error).__name__}: {error}"[-300:] + _where(error)
    new = [line for line in said.splitlines() if TOLD.search(line) and (not good or line not in good[1])]
    if new:
        return "told", " ".join(new)[:400]
    harmless = good and not OUTRIGHT.search(kind) and same(result_of(results), good[0])
    return ("harmless" if harmless else "accepted"), _end(said)


def _end(said):
    lines = [line for line in said.strip().splitlines() if line.strip()]
    return " ".join(lines)[-400:]


def _where(error):
    if error is None or not error.__traceback__ or is_a_sentence(error):
        return ""
    ours = [f for f in traceback.extract_tb(error.__traceback__) if "iqagp_jax" in f.filename]
    return "".join(f" [{Path(f.filename).name}:{f.lineno}]" for f in ours[-2:])


def result_of(patterns):
    """All words and numbers in the files that came out."""
    paths = sorted(path for pattern in patterns for path in Path().glob(pattern))
    return [leaf for path in paths for leaf in (path.name, *_leaves(_read(path)))]


def _read(path):
    from safetensors.numpy import load_file

    if path.suffix == ".npz":
        return dict(np.load(path))
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return re.split(r"[\s=,\"]+", path.read_text())


def _leaves(value):
    if isinstance(value, dict):
        return [leaf for name in sorted(value) if not re.search("seconds|ms_per", name) for leaf in _leaves(value[name])]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    return np.ravel(value).tolist() if isinstance(value, np.ndarray) else [value]


def same(found, expected):
    """Whether two results are one but for rounding."""

    def close(a, b):
        try:
            return bool(np.isclose(float(a), float(b), rtol=1e-6, atol=1e-9, equal_nan=True))
        except (TypeError, ValueError):
            return a == b

    return len(found) == len(expected) and all(a == b or close(a, b) for a, b in zip(found, expected, strict=True))
