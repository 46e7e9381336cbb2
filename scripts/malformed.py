"""Malformed inputs at every door, each with a seed: is there a traceback, a wait without end, a wrong acceptance?

    python scripts/malformed.py --seed 0 --count 1500 --out malformed.json
    python scripts/malformed.py --door convert --door train --count 100

Every door has good input, made once, and the result of it. An input is a copy of that, damaged in a named way, or the command
with an option of nonsense. It is right to refuse it in a sentence of ours (exit code 2), to tell of it and go on, or to give
the result of the good input. Exit code 1 where an input ends in a traceback or in Python's own words, takes more than a minute,
or changes the result without a word.
"""

import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from dialect import parsed, reference_files

LIMIT = 60
"""Seconds that an input may take."""

MEMORY = 16 * 2**30
"""Bytes of addresses that the process may have, lest a count of nonsense take the machine's memory."""

RIGHT = "refused", "told", "harmless"
WRONG = "traceback", "hang", "accepted"
TOLD = re.compile("warning|rejected|left out|set aside|dropped|failed|not (all )?used", re.IGNORECASE)


@dataclass(frozen=True)
class Door:
    """Where input comes in: good input, what is done with it, and the ways to damage it."""

    make: callable
    """fills the current folder with good input"""
    words: str
    """of the command line, for good input"""
    damages: dict
    """kind -> function of a `random.Random` that damages the current folder; it may return other words"""
    results: tuple = ()
    """patterns of the files that come out; none where no good input is run and all damage must be refused or told"""
    call: callable = None
    """what is done with the words, by default the command line"""
    needs: str = ""
    """folder of the reference files that it needs"""


# What comes of one input, in a process that has imported everything.


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


def is_a_sentence(error):
    """Whether an error was raised in words of ours, or of the command line's parser, and not by Python or a library."""
    if error is None or type(error).__module__.startswith(("click", "typer")):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = "iqagp_jax" in last.filename and (last.line or "").startswith("raise")
    return ours or bool(re.search("expected .*found", str(error), re.DOTALL))


def judged(call, words, results, good):
    """(one of `RIGHT` and `WRONG`, what was said) of an input."""
    status, said, error = outcome_of(call, words)
    if status == 2:
        return ("refused" if is_a_sentence(error) else "traceback"), _end(said) + _where(error)
    if status not in (0, 3):
        return "traceback", _end(said)
    # One line may have wrapped differently: what is new is looked for without line ends.
    new = [line for line in said.splitlines() if TOLD.search(line) and (not good or line not in good[1])]
    if new:
        return "told", " ".join(new)[:400]
    return ("harmless" if good and same(result_of(results), good[0]) else "accepted"), _end(said)


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

    jax.config.update("jax_compilation_cache_dir", str(home / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    devices.use_cores(1)
    while (asked := pipe.recv()) is not None:
        pipe.send(answer(home, *asked))


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
    found = judged(door.call or command, door.words.split() if words is None else words, door.results, known)
    os.chdir(home)
    shutil.rmtree(folder, ignore_errors=True)
    matplotlib.pyplot.close("all")
    return found


class Workplace:
    """A process that answers; killed and replaced where it does not."""

    def __init__(self, home):
        self.home, self.process = home, None

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
            if self.pipe.poll(limit):
                return self.pipe.recv()
            found = "hang", f"no end after {limit} s"
        except EOFError:
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


# Damage. A kind of files is a dict: name -> function of the path and a `random.Random`.


def _bytes(change):
    return lambda path, chance: path.write_bytes(change(path.read_bytes(), chance))


def _text(change):
    return lambda path, chance: path.write_text(change(path.read_text(), chance))


def _garbled(data, chance):
    k = chance.randrange(len(data))
    return data[:k] + chance.choice([b"\0", b"\xff", b"?", b"x", b"]"]) + data[k + 1 :]


def _flipped(data, chance):
    k = chance.randrange(len(data))
    return data[:k] + bytes([data[k] ^ 1 << chance.randrange(8)]) + data[k + 1 :]


def _folder(path, chance):
    path.unlink()
    path.mkdir()


BYTES = {
    "cut": _bytes(lambda data, chance: data[: chance.randrange(1, len(data) - 1)]),
    "byte": _bytes(_garbled),
    "empty": _bytes(lambda data, chance: b""),
    "binary": _bytes(lambda data, chance: chance.randbytes(500)),
    "folder": _folder,
    "missing": lambda path, chance: path.unlink(),
    "link to itself": lambda path, chance: (path.unlink(), path.symlink_to(path.name)),
}


def _number(value):
    """Another value for one of the decimal numbers of a text."""

    def change(text, chance):
        found = chance.choice(list(re.finditer(r"[-+]?\d+\.\d+(?:[eEdD][-+]?\d+)?", text)))
        return text[: found.start()] + value + text[found.end() :]

    return _text(change)


def _lines(change):
    """A list of lines, changed at a random place that is no blank line."""

    def changed(text, chance):
        lines = text.splitlines()
        k = chance.choice([k for k, line in enumerate(lines) if line.strip()])
        lines[k : k + 1] = change(lines[k])
        return "\n".join(lines) + "\n"

    return _text(changed)


NUMBERS = {f"number {v or 'lost'}": _number(v) for v in ("NaN", "inf", "1e300", "-1e300", "abc", "", "1.2.3", "1,5", "****")}
ENCODINGS = {
    "utf-16": _bytes(lambda data, chance: data.decode().encode("utf-16")),
    "byte order mark": _bytes(lambda data, chance: b"\xef\xbb\xbf" + data),
    "latin-1": _bytes(lambda data, chance: data.replace(b"\n", "\u00e9\n".encode("latin-1"), 1)),
    "windows": _bytes(lambda data, chance: data.replace(b"\n", b"\r\n")),
    "old mac": _bytes(lambda data, chance: data.replace(b"\n", b"\r")),
}
LINES = {
    "line lost": _lines(lambda line: []),
    "line twice": _lines(lambda line: [line, line]),
    "last word lost": _lines(lambda line: [line.rpartition(" ")[0]]),
    "word more": _lines(lambda line: [line + " 0.5"]),
}
TEXT = BYTES | ENCODINGS | NUMBERS | LINES

VALUES = None, [], {}, "text", 0, -1, 1e300, float("nan"), [[1]], True, 10**30, "lost"


def damaged_json(value, chance, other=None):
    """A tree with another value, or one of `VALUES`, or none, in a random place."""
    holders = [(value, key) for key in _keys(value)]
    for holder, key in holders:
        holders.extend((holder[key], deeper) for deeper in _keys(holder[key]))
    other = chance.choice(VALUES) if other is None else other
    if not holders or chance.random() < 0.05:
        return other
    holder, key = chance.choice(holders)
    if other == "lost":
        del holder[key]
    else:
        holder[key] = other if holder[key] != other else "other"
    return value


def _keys(value):
    return list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()


def _json(other, text, chance):
    return json.dumps(damaged_json(json.loads(text), chance, other))


JSON = BYTES | {f"value {json.dumps(v)}": _text(partial(_json, v)) for v in VALUES}


WAYS = "lost", "shape", "type", "more", "nan", "inf", "1e300", "negative"


def damaged_arrays(arrays, chance, way):
    """Arrays by name, one of them damaged in one of the `WAYS`."""
    arrays = {name: np.array(array) for name, array in arrays.items()}
    numbers = [name for name, array in sorted(arrays.items()) if array.dtype.kind == "f" and array.size]
    name = chance.choice(numbers if way in WAYS[4:] else sorted(arrays))
    array = arrays[name]
    if way == "lost":
        del arrays[name]
    elif way == "more":
        arrays["another"] = np.zeros(3)
    elif way == "shape":
        arrays[name] = array[:-1] if array.ndim else array[None]
    elif way == "type":
        arrays[name] = array.astype("U9") if array.dtype.kind == "i" else np.zeros(array.shape, "int64")
    else:
        k = chance.randrange(array.size)
        array.flat[k] = -abs(array.flat[k]) - 1e5 if way == "negative" else float(way)
    return arrays


def _npz(way, path, chance):
    arrays = damaged_arrays(dict(np.load(path)), chance, way)
    np.savez(path, **arrays)


NPZ = BYTES | {f"array {way}": partial(_npz, way) for way in WAYS}


def _model(change):
    """A model file of the first format, which has no checksum, after a change of (structure, tensors)."""

    def changed(path, chance):
        from safetensors import safe_open
        from safetensors.numpy import save_file

        with safe_open(path, framework="numpy") as file:
            header = json.loads(file.metadata()["iqagp"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        header, tensors = change({"format": "iqagp-model-1", "structure": header["structure"]}, tensors, chance)
        save_file(tensors, path, {"iqagp": json.dumps(header)})

    return changed


def _header(change):
    """Another header of a safetensors file."""

    def changed(data, chance):
        size = struct.unpack("<Q", data[:8])[0]
        header = json.dumps(change(json.loads(data[8 : 8 + size]), chance)).encode()
        return struct.pack("<Q", len(header)) + header + data[8 + size :]

    return _bytes(changed)


def _with_metadata(value):
    return _header(lambda header, chance: header | {"__metadata__": {"iqagp": value}})


def _structure(other, header, tensors, chance):
    return header | {"structure": damaged_json(header["structure"], chance, other)}, tensors


def _tensors(way, header, tensors, chance):
    return header, damaged_arrays(tensors, chance, way)


def _length_scale(factor, header, tensors, chance):
    return header, {name: array * factor if "scale" in name else array for name, array in tensors.items()}


MODEL = BYTES | {
    "bit": _bytes(_flipped),
    "header": _header(damaged_json),
    "structure": _model(lambda h, t, chance: (h | {"structure": damaged_json(h["structure"], chance)}, t)),
    "tensors": _model(lambda h, t, chance: (h, damaged_arrays(t, chance))),
    "length scale": _model(
        lambda h, t, chance: (h, {n: a * chance.choice([0, -1]) if "scale" in n else a for n, a in t.items()})
    ),
    "checksum": _with_metadata(json.dumps({"format": "iqagp-model-2", "checksum": "0" * 64, "structure": {}})),
    **{f"metadata {v[:9]}": _with_metadata(v) for v in ("[]", "3", "null", '"text"', "{", "", '{"format": "iqagp-model-1"}')},
}


def _frames(change):
    """extxyz frames after a change of the list, or of one of them: ``change(frames, one, chance)``."""

    def changed(path, chance):
        from ase.io import read, write

        frames = read(path, ":")
        labelled = [atoms for atoms in frames if len(atoms) > 1]
        change(labelled, chance.choice(labelled), chance)
        write(path, frames, format="extxyz")

    return changed


def _info(value):
    return _frames(lambda frames, one, chance: one.info.update(REF_energy=value))


def _scaled(energy=1.0, forces=1.0, positions=1.0):
    def change(frames, one, chance):
        for atoms in frames:
            atoms.info["REF_energy"] *= energy
            atoms.arrays["REF_forces"] *= forces
            atoms.positions *= positions

    return _frames(change)


def _renamed(old, new, all_of_them=True):
    return _text(lambda text, chance: text.replace(old, new, -1 if all_of_them else 1))


def _exchanged(frames, one, chance):
    one.positions[[0, 1]] = one.positions[[1, 0]]


def _outlier(frames, one, chance):
    one.arrays["REF_forces"][chance.randrange(3), chance.randrange(3)] = chance.choice([1e6, np.nan, -1e4])


EXTXYZ = TEXT | {
    **{f"energy {v}": _info(v) for v in (0.0, 2079.0, -1e9, float("nan"), "high", True)},
    "force": _frames(_outlier),
    "no forces in one": _frames(lambda frames, one, chance: one.arrays.pop("REF_forces")),
    "no energy in one": _frames(lambda frames, one, chance: one.info.pop("REF_energy")),
    "hartree": _scaled(energy=1 / 27.2114),
    "kcal/mol": _scaled(energy=23.06, forces=23.06),
    "hartree/bohr": _scaled(forces=1 / 51.42),
    "gradients": _scaled(forces=-1),
    "bohr": _scaled(positions=1.8897),
    "no forces": _scaled(forces=0),
    "two atoms exchanged": _frames(_exchanged),
    "atoms on top": _frames(lambda frames, one, chance: one.positions.__setitem__(1, one.positions[2])),
    "one far away": _frames(lambda frames, one, chance: one.positions.__setitem__(1, 500.0)),
    "element": _frames(lambda frames, one, chance: one.numbers.__setitem__(0, 16)),
    "charge of one": _frames(lambda frames, one, chance: one.info.update(charge=1)),
    "spin of text": _frames(lambda frames, one, chance: one.info.update(spin="up")),
    "crystal": _frames(lambda frames, one, chance: (one.set_cell([1.2] * 3), one.set_pbc(True))),
    "energy renamed": _renamed("REF_energy", "dft_energy"),
    "one energy renamed": _renamed("REF_energy", "dft_energy", False),
    "forces renamed": _renamed("REF_forces", "gradient"),
    "unknown element": _renamed("O  ", "Qq "),
    "twice": _text(lambda text, chance: text + text),
}


def of(path, kinds):
    """Damages of a door by ``kinds`` of damage to a file, or to one of those that a pattern gives."""

    def damage(kind, chance):
        kind(chance.choice(sorted(Path().glob(path))), chance)

    return {f"{path}: {name}": partial(damage, kind) for name, kind in kinds.items()}


NUMBER = "", "nan", "inf", "-inf", "-1e300", "1e300", "abc", "1,5", "-1"
NONSENSE = {
    "number": NUMBER,
    "positive": (*NUMBER, "0"),
    "integer": ("", "nan", "1.5", "1e300", "abc", "-1", "99999999999999999999"),
    "count": ("", "nan", "1.5", "1e300", "abc", "-1", "0", "99999999999999999999"),
    "charge": ("", "nan", "1.5", "abc", "1", "1000", "-1000"),
    "word": ("", "nope", "nan", "0", "-1", "None", "\u00e9"),
    "file": ("", ".", "nowhere", "nowhere/at/all", "/dev/null", "/proc/version"),
    "new file": ("", ".", "nowhere/at/all", "/proc/x", "/dev/null/x"),
    "share": ("", "500", "500:", ":3", "500:x", "nan:3", "inf:1", "-5:3", "0:3", "500:-1", "1e300:1", "500:1.5", "500:3:3"),
}


def options(words, told):
    """Damages of a door by options of nonsense: ``told`` is "--time positive --start word ...", ``words`` the command's."""
    words, told = words.split(), told.split()
    found = {}
    for option, kind in zip(told[::2], told[1::2], strict=True):
        for value in NONSENSE[kind.replace("-", " ")]:
            given = list(words)
            if option in given:
                given[given.index(option) + 1] = value
            elif option.isdigit():
                given[int(option)] = value
            else:
                given += [option, value]
            found[f"{option} {value!r}"] = partial(lambda given, chance: given, given)
    others = {"unknown option": [*words, "--nonsense"], "one word more": [*words, "more"], "no words": words[:1]}
    return found | {name: partial(lambda given, chance: given, given) for name, given in others.items()}


def contradictions(words, *told):
    """Damages of a door by options that contradict each other or the command."""
    return {t: partial(lambda given, chance: given, [*words.split(), *t.split()]) for t in told}


# Doors, with water in springs: what they know of it is cheap.

REST = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])


def energies(positions):
    """Atomic energies (n, 3), eV, of geometries (n, 3, 3) of water, near those of B3LYP."""
    pairs = ((0, 1, 26.0, 0.96), (0, 2, 26.0, 0.96), (1, 2, 5.0, 1.52))
    shares = np.tile([-2046.0, -16.5, -16.5], (len(positions), 1))
    for i, j, strength, rest in pairs:
        spring = strength * (np.linalg.norm(positions[:, i] - positions[:, j], axis=1) - rest) ** 2
        shares[:, i] += spring / 2
        shares[:, j] += spring / 2
    return shares


def forces(positions, step=1e-5):
    """Forces (n, 3, 3) by central differences."""
    found = np.zeros_like(positions)
    for atom, axis in np.ndindex(3, 3):
        shift = np.zeros((3, 3))
        shift[atom, axis] = step
        found[:, atom, axis] = (energies(positions - shift) - energies(positions + shift)).sum(1) / (2 * step)
    return found


def dataset(path, n, seed):
    """An extxyz file of n labelled geometries."""
    from iqagp_jax.data.dataset import Dataset
    from iqagp_jax.data.extxyz import save_dataset

    positions = np.round(REST + 0.06 * np.random.default_rng(seed).normal(size=(n, 3, 3)), 8)
    atoms = energies(positions)
    free = {"O": -2041.0, "H": -13.6}
    save_dataset(Dataset(("O", "H", "H"), positions, atoms.sum(1), forces(positions), atoms, free_atoms=free), path)


def made(path, *words):
    """A file or folder that a command makes of datasets, made once for all doors and copied here."""
    known = Path("../base", path).absolute()
    if not known.exists():
        here = Path.cwd()
        known.parent.mkdir(exist_ok=True)
        os.chdir(known.parent)
        dataset("data.extxyz", 12, 1)
        dataset("test.extxyz", 6, 2)
        status, said, _ = outcome_of(command, [str(word) for word in words])
        os.chdir(here)
        if status:
            raise RuntimeError(said)
    (shutil.copytree if known.is_dir() else shutil.copy)(known, path)


def model(path="model.safetensors", *words):
    made(path, "train", "data.extxyz", "-o", path, "--max-steps", 0, *words)


def local_frames():
    model("alf.safetensors", "--features", "alf", "--targets", "atomic_energies")


def of_ferebus():
    local_frames()
    made("ferebus", "convert", "alf.safetensors", "-o", "ferebus")
    Path("alf.safetensors").unlink()


def to_validate():
    model()
    dataset("test.extxyz", 6, 2)


TRAIN = "train data.extxyz -o out.safetensors --max-steps 0"
VALIDATE = "validate model.safetensors test.extxyz --json out.json --out pictures"
CONVERT = "convert ferebus -o out.safetensors"
KEYS = "--energy-key word --forces-key word"
FIT = (
    "--max-steps integer --n-hyper count --noise positive --random-starts integer --seed integer --loss word --optimiser word"
    " --kernel word --transfer count"
)

DOORS = {
    "train": Door(partial(dataset, "data.extxyz", 12, 1), TRAIN, of("data.extxyz", EXTXYZ), ("out.safetensors",)),
    "train options": Door(
        partial(dataset, "data.extxyz", 12, 1),
        TRAIN,
        options(
            TRAIN,
            f"1 file -o new-file {FIT} {KEYS} --features word --prior-mean word --targets word --n-train count --solver word"
            " --partition word",
        )
        | contradictions(
            TRAIN,
            "--features alf --symmetry",
            "--features alf --targets forces",
            "--mirror",
            "--noise energy=1e-8,energy=1e-6",
            "--noise energy=1e-8,charge=1",
            "--noise energy=nan",
            "--noise energy=",
            "--targets energy,,forces",
            "--targets energy,energy",
            "--n-train 2",
            "--n-hyper 500",
            "--partition becke",
            "--kernel rbf-periodic",
            "--prior-mean mf5+",
            "--prior-mean mf5+mf1",
            "--solver cg --loss hold-out",
        ),
        ("out.safetensors",),
    ),
    "validate": Door(to_validate, VALIDATE, of("test.extxyz", EXTXYZ), ("out.json",)),
    "model file": Door(to_validate, VALIDATE, of("model.safetensors", MODEL), ("out.json",)),
    "convert": Door(of_ferebus, CONVERT, of("ferebus/*.model", TEXT), ("out.safetensors",)),
}


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
            if found in WRONG or (k + 1) % 50 == 0:
                told = f"{found}: {kind} | {said}" if found in WRONG else ""
                print(f"{k + 1} of {len(asked)}, {time.time() - began:.0f} s, {name} {told}", flush=True)
        workplace.close()
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))
    print(table(rows))
    sys.exit(any(row["found"] in WRONG for row in rows))


if __name__ == "__main__":
    main()
