"""Ways to damage input. A kind of files has a dict of them: name -> function of the path and a `random.Random`."""

import json
import lzma
import re
import struct
from functools import partial
from pathlib import Path

import numpy as np


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


DECIMAL = re.compile(r"[-+]?\d+\.\d+(?:[eEdD][-+]?\d+)?")


def _number(value, row=""):
    """Another value for a decimal number in one of the lines that begin so, or for any number where there is none."""

    def change(text, chance):
        lines = re.finditer(f"(?m)^{row}.*$", text)
        found = [number for line in lines for number in DECIMAL.finditer(text, line.start(), line.end())]
        one = chance.choice(found or list(re.finditer(r"\d+", text)))
        return text[: one.start()] + value + text[one.end() :]

    return _text(change)


def _lines(change):
    """A list of lines, changed at a random place that is no blank line."""

    def changed(text, chance):
        lines = text.splitlines()
        k = chance.choice([k for k, line in enumerate(lines) if line.strip()])
        lines[k : k + 1] = change(lines[k])
        return "\n".join(lines) + "\n"

    return _text(changed)


NO_NUMBERS = "NaN", "inf", "1e300", "-1e300", "abc", "", "1.2.3", "1,5", "****"
NUMBERS = {f"number {v or 'lost'}": _number(v) for v in NO_NUMBERS}
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


def damaged_json(value, chance, other="any"):
    """A tree with another value, or one of `VALUES`, or none, in a random place."""
    holders = [(value, key) for key in _keys(value)]
    for holder, key in holders:
        holders.extend((holder[key], deeper) for deeper in _keys(holder[key]))
    other = chance.choice(VALUES) if other == "any" else other
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
    **{f"structure {json.dumps(v)}": _model(partial(_structure, v)) for v in VALUES},
    **{f"tensor {way}": _model(partial(_tensors, way)) for way in WAYS if way != "type"},
    "length scale 0": _model(partial(_length_scale, 0.0)),
    "length scale -1": _model(partial(_length_scale, -1.0)),
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


def _swaps(told):
    """Damages of a text: one "old => new" a line."""
    pairs = [line.strip().replace("\\n", "\n").split(" =>") for line in told.strip().splitlines()]
    return {f"{old.strip()} =>{new}".replace("\n", "|"): _renamed(old, new[1:]) for old, new in pairs}


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


def _cell(column, value):
    """Another value in one row of a csv file."""

    def change(text, chance):
        rows = [line.split(",") for line in text.splitlines()]
        chance.choice(rows[1:])[column] = value
        return "".join(f"{','.join(row)}\n" for row in rows)

    return _text(change)


def _degrees(text, chance):
    head, *rows = [line.split(",") for line in text.splitlines()]
    return "".join(f"{','.join(row)}\n" for row in (head, *([*r[:3], str(np.degrees(float(r[3]))), *r[4:]] for r in rows)))


CSV = {name: kind for name, kind in TEXT.items() if name not in ("line lost", "line twice")}  # other data, but no worse
CSV |= {f"distance {v}": _cell(1, v) for v in ("0.0", "-1.8", "1e200", "")}
CSV |= {f"angle {v}": _cell(3, v) for v in ("9.0", "-0.5", "110.0")}
CSV |= {f"iqa {v}": _cell(4, v) for v in ("0.0", "75.0", "1e200", "-75.1 -75.2")}
CSV |= _swaps("""
    , => ;
    f1,f2,f3 => f3,f2,f1
    f1,f2,f3 => f1,f1,f3
    iqa => energy
    -75. => -2045.
""")
CSV |= {"degrees": _text(_degrees), "last number cut": _bytes(lambda data, chance: data[: -chance.randrange(2, 12)])}


def _second_model(system, element, path, chance):
    """Another model of the oxygen beside its own; the first one's last line is another, as something of it must."""
    text = path.with_name("MOLECULE_iqa_O1.model").read_text()
    other = text.replace("MOLECULE", system).replace("atom O", f"atom {element}")
    path.with_name(f"{system}_iqa_{element}1.model").write_text(other)
    path.write_text(path.read_text() + "\n")


FEREBUS = (
    TEXT
    | _swaps("""
        theta => tetha
        type rbf => type cubic
        property iqa => property q00
        units.x bohr => units.x angstrom
        units.y Ha => units.y eV
        scaling.x none => scaling.x standardise
        ALF 1 => ALF 2
        atom O1 => atom Xx1
        atom O1 => atom S1
        [weights] =>
        name MOLECULE => name OTHER
        number_of_training_points 12 => number_of_training_points 11
        nugget 1e-08 => nugget -1
    """)
    | {
        "name => MOLECULE_q00_O1.model": lambda path, chance: path.rename(path.with_name("MOLECULE_q00_O1.model")),
        "two of one atom =>": partial(_second_model, "MOLECULE", "S"),
        "of another molecule =>": partial(_second_model, "AMMONIA", "N"),
    }
)

XYZ = TEXT | _swaps(r"""
    O 0 => X 0
    O 0 => 8 0
    O 0 => Qq 0
    3\n => 4\n
    3\n => 2\n
    3\n => 0\n
    3\n => -3\n
    0.96 0.0 => 0.0 0.0
    0.96 0.0 => 500.0 0.0
    0.96 => 0.01
    3\n\n => 3\ncharge=1\n
    3\n\n => 3\nspin=up\n
    3\n\n => 3\nLattice="1 0 0 0 1 0 0 0 1" pbc="T T T"\n
    3\n\n => 3\nLattice="1 0 0"\n
    3\n\n => 3\nProperties=species:S:1:pos:R:2\n
""")

AIMALL = (
    TEXT
    | {f"number {v or 'lost'} of an atom": _number(v, r"(?:O1|H2|H3) |Q\[") for v in NO_NUMBERS}
    | _swaps("""
        O1         8.0 => O1         9.0
        H2         1.0 => H2         0.5
        H3 => H2
        H3 => X3
        E(Mol) from => E(Other) from
        -7.6421710687E+01 => -4.7E+04
        Total time for AIMSum =>
    """)
)

WFN = (
    TEXT
    | _swaps("""
        CHARGE = 8.0 => CHARGE = 200.0
        CHARGE = 8.0 => CHARGE = -8.0
        CHARGE = 8.0 => CHARGE =  1.0
        MO  1                     OCC NO =   2.0 => MO  1                     OCC NO =   5.0
        MO  1                     OCC NO =   2.0 => MO  1                     OCC NO =  -2.0
        MO  1                     OCC NO =   2.0 => MO  1                     OCC NO =   1.0
        3 NUCLEI => 4 NUCLEI
        3 NUCLEI => 2 NUCLEI
        5 MOL => 4 MOL
        END DATA =>
        GAUSSIAN => SLATER
        O    1  => Xx   1
        O    1  => H    1
    """)
    | {"an exponent of 0": _text(lambda text, chance: re.sub(r"(EXPONENTS\s+)\S+", r"\g<1>0.0000000E+00", text, count=1))}
)


def _packed(change):
    """Another text of a pack without the line of its checksum, as the first packs were."""

    def changed(data, chance):
        lines = [line for line in lzma.decompress(data).decode().splitlines(True) if len(json.loads(line)) == 2]
        return lzma.compress(change("".join(lines), chance).encode())

    return _bytes(changed)


def _label(other, text, chance):
    """A label of nonsense in a pack."""
    rows = [json.loads(line) for line in text.splitlines()]
    row = chance.choice(rows)
    row[1] = json.dumps(damaged_json(json.loads(row[1]), chance, other))
    return "".join(json.dumps(row) + "\n" for row in rows)


PACKED = BYTES | {
    **{f"label {json.dumps(v)}": _packed(partial(_label, v)) for v in VALUES},
    "row lost": _packed(lambda text, chance: "".join(text.splitlines(True)[1:])),
    "row twice": _packed(lambda text, chance: text.splitlines(True)[0] + text),
    "row of three": _packed(lambda text, chance: '["a", "b", "c"]\n' + text),
    "row of null": _packed(lambda text, chance: text + "null\n"),
    "not compressed": _bytes(lambda data, chance: lzma.decompress(data)),
}


def of(path, kinds):
    """Damages of a door by ``kinds`` of damage to a file, or to one of those that a pattern gives."""

    def damage(kind, chance):
        files = {file: file.read_bytes() for file in sorted(Path().glob(path))}
        for file in chance.sample(list(files), len(files)):
            kind(file, chance)
            if not file.is_file() or file.read_bytes() != files[file]:
                return
        raise RuntimeError("expected damage, found none")

    return {f"{path}: {name}": partial(damage, kind) for name, kind in kinds.items()}


NUMBER = "", "nan", "inf", "-inf", "-1e300", "1e300", "abc", "1,5", "-1"
NONSENSE = {
    "number": NUMBER,
    "positive": (*NUMBER, "0"),
    "name": ("", "two words"),
    "integer": ("", "nan", "1.5", "1e300", "abc", "-1", "99999999999999999999"),
    "count": ("", "nan", "1.5", "1e300", "abc", "-1", "0", "99999999999999999999"),
    "charge": ("", "nan", "1.5", "abc", "1", "1000", "-1000"),
    "word": ("", "nope", "nan", "0", "-1", "None", "\u00e9"),
    "file": ("", ".", "nowhere", "nowhere/at/all", "/dev/null", "/proc/version"),
    "new-file": ("", ".", "nowhere/at/all", "/proc/x", "/dev/null/x"),
    "new-folder": ("/proc/x", "/dev/null/x", "/dev/null"),
    "share": ("", "500", "500:", ":3", "500:x", "nan:3", "inf:1", "-5:3", "0:3", "500:-1", "1e300:1", "500:1.5", "500:3:3"),
}


def options(words, told, others=""):
    """Damages of a door by options of nonsense.

    ``words`` are the command; ``told`` is "--time positive --start word", numbers standing for arguments; ``others`` are whole
    groups of options, with semicolons between, that contradict each other or the command.
    """
    found, given = {}, words.split()
    for option, kind in zip(told.split()[::2], told.split()[1::2], strict=True):
        for value in NONSENSE[kind]:
            found[f"{given[0]} {option} {value!r}"] = _with(given, option, value)
    for group in filter(None, map(str.strip, others.split(";"))):
        found[f"{given[0]} {group}"] = given + group.split()
    found[f"{given[0]} --nonsense"] = [*given, "--nonsense"]
    found[f"{given[0]}, one word more"] = [*given, "more"]
    return {name: partial(lambda instead, chance: instead, instead) for name, instead in found.items()}


def _with(words, option, value):
    if option.isdigit() or option in words:
        k = int(option) if option.isdigit() else words.index(option) + 1
        return [*words[:k], value, *words[k + 1 :]]
    return [*words, option, value]
