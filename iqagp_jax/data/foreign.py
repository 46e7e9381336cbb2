"""The text of an extxyz file, whatever wrote it; and for other files what they are, and how to make extxyz of them."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from iqagp_jax.data.text import UTF16, decoded
from iqagp_jax.machine.files import BROKEN_FILE

COMPRESSED: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
}
"""How compressed files begin, whatever their names."""

BY_ASE = {
    b"- of Ulm": "a trajectory of ASE",
    b"AFFormat": "a trajectory of ASE",
    b"SQLite format 3": "a database of ASE",
    b"CDF": "a NetCDF file",
}
"""How files begin that ASE can read."""

BINARY = {b"\x89HDF": "an HDF5 file", b"\x93NUMPY": "a NumPy array", b"\x80": "a pickle"}
"""How others begin."""

ARRAYS = {
    "numbers": ("z", "Z", "nuclear_charges", "atomic_numbers", "numbers", "species"),
    "positions": ("R", "coords", "positions", "coordinates", "pos"),
    "energy": ("E", "energies", "energy"),
    "forces": ("F", "forces", "force"),
}
"""Names of arrays in NumPy archives: sGDML's and NequIP's, rMD17's, and others'."""


def text_of(path: Path) -> str:
    """The text of a file, decompressed; a mark of its encoding is left out, what is no UTF-8 is read as Latin-1.

    Raises ValueError, in a sentence, for a file that is cut off, and for one that is no text, with a line that converts it.
    """
    content = path.read_bytes()
    for begin, decompress in COMPRESSED.items():
        if content.startswith(begin):
            try:
                content = decompress(content)
            except BROKEN_FILE as error:
                raise ValueError(f"{path} is not a whole extxyz file ({error}); was it cut off?") from error
            break
    if not content.startswith(UTF16) and (told := _binary(content, path)):
        raise ValueError(f"{path} is not a whole extxyz file: {told}")
    return decoded(content)


def check_text(text: str, path: Path) -> None:
    """ValueError, in a sentence, for text that does not begin with a number of atoms."""
    first = text.lstrip().partition("\n")[0].strip()
    if not first:
        raise ValueError(f"{path} is not a whole extxyz file: it is empty; was it cut off?")
    if not first.isdigit():
        raise ValueError(
            f"{path} is not a whole extxyz file: expected the number of atoms in its first line, found {first[:60]!r}; if it"
            f" is an output that ASE can read, convert it: {_by_ase(path)}"
        )


def _converted(path: Path) -> str:
    """Name of an extxyz file that takes the place of none."""
    return f"{path.stem}{'-converted' * (path.suffix == '.extxyz')}.extxyz"


def _by_ase(path: Path) -> str:
    return f"python -c \"from ase.io import read, write; write('{_converted(path)}', read('{path.name}', ':'))\""


def _binary(content: bytes, path: Path) -> str:
    """What a file is that is no text, and how it is converted; '' for text."""
    if content.startswith(b"PK\x03\x04"):
        return _archive(content, path)
    for begin, what in BY_ASE.items():
        if content.startswith(begin):
            return f"it is {what}; convert it: {_by_ase(path)}"
    what = next((what for begin, what in BINARY.items() if content.startswith(begin)), "")
    if not what and b"\0" in content:
        what = "a binary file"
    return what and (
        f"it is {what}; write each geometry as ase.Atoms(symbols, positions in angstrom), with info['REF_energy'] in eV and"
        f" arrays['REF_forces'] in eV/angstrom, and all of them by ase.io.write('{_converted(path)}', frames)"
    )


def _archive(content: bytes, path: Path) -> str:
    """The same for a zip file, which NumPy's archives are."""
    try:
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            held = list(arrays)
    except (BadZipFile, *BROKEN_FILE):
        return "it is a zip archive; unpack it first"
    name = {what: next((n for n in names if n in held), None) for what, names in ARRAYS.items()}
    told = f"it is a NumPy archive of {', '.join(held[:12])}"
    if not (name["numbers"] and name["positions"] and name["energy"]):
        return (
            f"{told}; expected atomic numbers, positions and energies there to convert it; write the frames with ase.io.write"
        )
    return (
        f"{told}; convert it, u being its energy unit in eV (here kcal/mol, as in sGDML's and rMD17's files) and lengths in"
        " angstrom:"
        f" python -c \"import numpy, ase, ase.io; d = numpy.load('{path.name}'); u = 0.0433641;"
        f" ase.io.write('{_converted(path)}', {_frames(name)})\""
    )


def _frames(name: dict[str, str | None]) -> str:
    """A list of ASE atoms of such an archive ``d``, as it is written in Python."""
    atoms = f"ase.Atoms(d['{name['numbers']}'], r, info={{'REF_energy': float(e * u)}})"
    arrays = f"d['{name['positions']}'], d['{name['energy']}'].ravel()"
    if not name["forces"]:
        return f"[{atoms} for r, e in zip({arrays})]"
    return f"[(a := {atoms}).set_array('REF_forces', f * u) or a for r, e, f in zip({arrays}, d['{name['forces']}'])]"
