"""Files that are either absent or whole, whatever happens while they are written, and the folders they go to."""

import lzma
import os
import socket
import zlib
from pathlib import Path

BROKEN_FILE = (ValueError, KeyError, IndexError, EOFError, StopIteration, OSError, lzma.LZMAError, zlib.error)
"""What readers raise at files that are cut off, corrupt or something else."""


def write_atomically(path, data):
    """Write ``data`` (bytes or text) to ``path``: into a neighbour first, then renamed, both flushed to disk."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{_writer()}")
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


def _writer():
    """What tells processes apart that write to one folder, perhaps from several machines."""
    return f"{socket.gethostname()}.{os.getpid()}"


def output_folder(path):
    """The folder, made if necessary; a sentence where it cannot be written."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".iqagp-probe.{_writer()}"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"expected a writable folder, found {path} ({error.strerror}); choose another") from error
    return path
