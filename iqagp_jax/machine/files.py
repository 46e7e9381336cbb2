"""Files that are either absent or whole, whatever happens while they are written, and the folders they go to."""

import hashlib
import lzma
import os
import socket
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

BROKEN_FILE = (ValueError, KeyError, IndexError, EOFError, StopIteration, OSError, lzma.LZMAError, zlib.error)
"""What readers raise at files that are cut off, corrupt or something else."""


UNFINISHED = ".iqagp-unfinished"
"""How the names of our temporary files end. Nothing else in a folder is ours to delete."""


def write_atomically(path, data):
    """Write ``data`` (bytes or text) to ``path``: into a neighbour first, then renamed, both flushed to disk."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{_writer()}{UNFINISHED}")
    with open(temporary, "wb") as stream:
        stream.write(data.encode() if isinstance(data, str) else data)
        stream.flush()
        os.fsync(stream.fileno())
    rename_durably(temporary, path)


def rename_durably(old, new):
    """Give a file the name ``new``, which it may take from another, and flush that to disk."""
    os.replace(old, new)
    folder = os.open(Path(new).parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def clear_unfinished(folder):
    """Delete the temporary files that crashed processes left in a folder."""
    for path in Path(folder).glob(f".*{UNFINISHED}"):
        if path.is_file():
            path.unlink(missing_ok=True)


def checksum(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256, hexadecimal, of a text and of arrays with their names, types and shapes."""
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _writer():
    """What tells processes apart that write to one folder, perhaps from several machines."""
    return f"{socket.gethostname()}.{os.getpid()}"


def output_file(path):
    """The path of a file that can be written; a sentence where its folder is none or cannot be, or something else is there."""
    path = Path(path)
    if path.parent.exists() and not path.parent.is_dir():
        raise ValueError(f"expected a file in a folder, found {path}, where {path.parent} is a file; choose another name")
    if path.exists() and not path.is_file():
        raise ValueError(f"expected a file in a writable folder, found {path}, which is no file; choose another name")
    try:
        _touch_in(path.parent)
    except OSError as error:
        raise ValueError(
            f"expected a file in a writable folder, found {path} ({error.strerror}); choose another name"
        ) from error
    return path


def _touch_in(folder):
    """Make a file in a folder and delete it: what permissions promise may still fail."""
    probe = folder / f".{_writer()}{UNFINISHED}"
    probe.touch()
    probe.unlink(missing_ok=True)


def output_folder(path):
    """The folder, made if necessary; a sentence where it cannot be written."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        _touch_in(path)
    except OSError as error:
        raise ValueError(f"expected a writable folder, found {path} ({error.strerror}); choose another") from error
    return path
