"""What all scripts share: two sets of defaults, one of them a form of seconds, and the folder of the reference files.

Options are named as those of `iqagp`: --time in ps, --temperature and --start repeatable, --n-train, --replicas, --out. Every
script runs with --short alone, which `.ci/scripts` asks of it.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

SMALL_MODEL = ROOT / "tests/golden/alf.safetensors"
"""Formaldehyde, 16 geometries."""


def parsed(doc, arguments, usual, short):
    """The options of a script: what is not given is as in ``usual``, with --short first of all as in ``short``.

    What only ``short`` has a default of is asked for in the usual form. A folder --out is a new one in the short form.

    Args:
        doc: of the script.
        arguments: {name or flag: keywords of `argparse.ArgumentParser.add_argument`}.
        usual, short: {name: default}.
    """
    told = f"by default: {_spelled(usual)}\nwith --short: {_spelled(short)}"
    parser = argparse.ArgumentParser(description=doc, epilog=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, keywords in arguments.items():
        parser.add_argument(name, **keywords)
    parser.add_argument("--short", action="store_true", help="small sizes: all that the script is for, in seconds")
    options = parser.parse_args()
    absent = {name for name, value in vars(options).items() if value is None or value == []}
    if not options.short and (asked := [name for name in short if name in absent and name not in usual]):
        parser.error(f"expected {', '.join(asked)}, found none; give it, or --short for a form of seconds")
    for name, value in (usual | (short if options.short else {})).items():
        if name in absent or getattr(options, name) is False:
            setattr(options, name, value)
    if options.short and getattr(options, "out", "") is None:
        options.out = Path(tempfile.mkdtemp(prefix="iqagp-short-"), "out")
    return options


def _spelled(defaults):
    """Defaults as one would give them."""
    known = {name: value for name, value in defaults.items() if value not in (None, ())}
    return ", ".join(f"{name.replace('_', '-')} {value}" for name, value in known.items())


def reference_files(name, short):
    """The folder ``name`` of the reference files; None, after a sentence, where a short form finds none, else the end."""
    folder = Path(os.environ.get("IQAGP_REFERENCE", ROOT.parent / "shared" / "reference")) / name
    if folder.is_dir():
        return folder
    found_none = f"expected reference files in {folder}, found none; set IQAGP_REFERENCE to the folder that holds {name}"
    if not short:
        sys.exit(found_none)
    print(f"left out: {found_none}", flush=True)
    return None
