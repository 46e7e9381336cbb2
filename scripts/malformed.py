"""Malformed inputs at every door, each with a seed: is there a traceback, a wait without end, a wrong acceptance?

    python scripts/malformed.py --seed 0 --count 1500 --out malformed.json
    python scripts/malformed.py --door convert --door train --count 100

Every door has good input, made once, and the result of it. An input is a copy of that, damaged in a named way, or the command
with an option of nonsense. It is right to refuse it in a sentence of ours (exit code 2), to tell of it and go on, or to give
the result of the good input. Exit code 1 where an input ends in a traceback or in Python's own words, takes more than a minute,
or changes the result without a word.
"""

import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from dialect import parsed, reference_files
from doors.judge import RIGHT, WRONG
from doors.table import DOORS
from doors.workplace import Workplace


def inputs(names, count, seed):
    """(door, kind, seed of its own), ``count`` in all, the kinds of each door in turn."""
    found = []
    for k, name in enumerate(names):
        n = count // len(names) + (k < count % len(names))
        kinds = list(DOORS[name].damages)
        random.Random(f"{seed} {name}").shuffle(kinds)
        found += [(name, kinds[i % len(kinds)], f"{seed} {name} {i}") for i in range(n)]
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


def main():
    arguments = {
        "--door": {"action": "append", "choices": list(DOORS), "help": "repeatable; all by default"},
        "--count": {"type": int, "help": "inputs in all"},
        "--seed": {"type": int},
        "--out": {"type": Path, "help": "a JSON file of every input and what became of it"},
    }
    usual = {"door": list(DOORS), "count": 1500, "seed": 0, "out": None}
    options = parsed(__doc__, arguments, usual, {"count": 80, "out": None})
    began, rows = time.time(), []
    with tempfile.TemporaryDirectory(prefix="iqagp-malformed-") as home:
        (Path(home) / "run").mkdir()
        workplace = Workplace(Path(home))
        names = [name for name in options.door if not DOORS[name].needs or reference_files(DOORS[name].needs, short=True)]
        for name in names:
            found, said = workplace.ask(name, None, 0, limit=600)
            print(f"{time.time() - began:.0f} s: good input of {name}: {found} {said}", flush=True)
        asked = inputs(names, options.count, options.seed)
        for k, (name, kind, seed) in enumerate(asked):
            before = time.time()
            found, said = workplace.ask(name, kind, seed)
            rows.append({"door": name, "kind": kind, "seed": seed, "found": found, "said": said, "s": time.time() - before})
            if found not in RIGHT or (k + 1) % 50 == 0:
                told = f"{found}: {kind} | {said}" if found not in RIGHT else ""
                print(f"{k + 1} of {len(asked)}, {time.time() - began:.0f} s, {name} {told}", flush=True)
        workplace.close()
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))
    print(table(rows))
    sys.exit(any(row["found"] not in RIGHT for row in rows))


if __name__ == "__main__":
    main()
