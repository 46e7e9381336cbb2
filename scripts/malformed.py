"""Malformed inputs at every door, each with a seed: is there a traceback, a wait without end, a wrong acceptance?

    python scripts/malformed.py --seed 0 --count 1500 --out malformed.json
    python scripts/malformed.py --door convert --door train --count 100

Every door has good input, made once, and the result of it. An input is a copy of that, damaged in a named way, or the command
with an option of nonsense. It is right to refuse it in a sentence of ours (exit code 2), to tell of it and go on, or to give
the result of the good input. Exit code 1 where an input ends in a traceback or in Python's own words, takes more than a minute,
or changes the result without a word.
"""

import json
import math
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from dialect import parsed, reference_files
from doors.judge import RIGHT, WRONG
from doors.table import DOORS
from doors.workplace import Workplace

QUICK = "train", "convert options", "train-atom", "train-atom options", "model, calculator", "AIMAll", "wfn", "molden"
"""Doors of seconds, of the short form."""


def inputs(names, count, seed, part):
    """(door, kind, seed of its own), ``count`` in all, in proportion to the kinds of damage that a door knows and its share."""
    of_door = {name: [kind for kind in DOORS[name].damages if part in kind] for name in names}
    weights = {name: DOORS[name].share * len(kinds) for name, kinds in of_door.items()}
    found = []
    for name, kinds in of_door.items():
        random.Random(f"{seed} {name}").shuffle(kinds)
        n = math.ceil(count * weights[name] / sum(weights.values()))
        found += [(name, kinds[k % len(kinds)], f"{seed} {name} {k}") for k in range(n)]
    return found


def table(rows):
    """Counts of each door as markdown."""
    header = "door", "inputs", *RIGHT, *WRONG
    lines = [header, ("---",) * len(header)]
    for name in dict.fromkeys(row["door"] for row in rows):
        found = Counter(row["found"] for row in rows if row["door"] == name)
        lines.append((name, found.total(), *(found[what] for what in RIGHT + WRONG)))
    found = Counter(row["found"] for row in rows)
    lines.append(("all", found.total(), *(found[what] for what in RIGHT + WRONG)))
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def try_all(workplace, names, options, rows):
    """Add to ``rows`` what became of every input, a dict each, and tell it on the way."""
    began = time.time()
    for name in names:
        found, said = workplace.ask(name, None, 0, limit=600)
        if found != "made":
            raise RuntimeError(f"good input of {name}: {found} {said}")
    asked = inputs(names, options.count, options.seed, options.kind)
    print(f"good input of {len(names)} doors after {time.time() - began:.0f} s; {len(asked)} inputs", flush=True)
    for k, (name, kind, seed) in enumerate(asked):
        before = time.time()
        found, said = workplace.ask(name, kind, seed)
        rows.append({"door": name, "kind": kind, "seed": seed, "found": found, "said": said, "s": time.time() - before})
        if found not in RIGHT or (k + 1) % 50 == 0:
            told = f", {found}: {kind} | {said}" if found not in RIGHT else ""
            print(f"{k + 1} of {len(asked)}, {time.time() - began:.0f} s, {name}{told}", flush=True)


def main():
    arguments = {
        "--door": {"action": "append", "choices": list(DOORS), "help": "repeatable; all by default"},
        "--kind": {"help": "only kinds of damage whose name contains this"},
        "--count": {"type": int, "help": "inputs in all"},
        "--seed": {"type": int},
        "--out": {"type": Path, "help": "a JSON file of every input and what became of it"},
    }
    usual = {"door": list(DOORS), "kind": "", "count": 1500, "seed": 0, "out": None}
    options = parsed(__doc__, arguments, usual, {"door": QUICK, "count": 80, "out": None})
    names = [name for name in options.door if not DOORS[name].needs or reference_files(DOORS[name].needs, short=True)]
    rows, home = [], tempfile.TemporaryDirectory(prefix="iqagp-malformed-")
    with home, Workplace(Path(home.name)) as workplace, suppress(KeyboardInterrupt):  # what there is by then is told
        try_all(workplace, names, options, rows)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))
    print(table(rows))
    sys.exit(len(rows) < options.count or any(row["found"] not in RIGHT for row in rows))


if __name__ == "__main__":
    main()
