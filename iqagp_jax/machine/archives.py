"""Arrays in NumPy's ``.npz`` files, without pickle and with a checksum of them."""

import io
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from iqagp_jax.machine.files import BROKEN_FILE, checksum

# A bit more or less in the head of an archive may ask for a password (RuntimeError) or an unknown compression.
BROKEN_ARCHIVE = (TypeError, AttributeError, RuntimeError, BadZipFile, *BROKEN_FILE)
"""What reading and taking apart truncated or altered archives, and other people's, raises."""


def packed(arrays: Mapping[str, np.ndarray], of: str = "", **beside: np.generic) -> memoryview:
    """The bytes of an archive: what is told ``beside``, a checksum of the arrays and of the text ``of``, and the arrays."""
    data = io.BytesIO()
    np.savez(data, allow_pickle=False, **beside, checksum=np.bytes_(checksum(of, arrays)), **arrays)  # type: ignore[arg-type]
    return data.getbuffer()


def unpacked(
    path: str | Path, of: str = "", beside: tuple[str, ...] = (), required: bool = False
) -> tuple[dict[str, np.ndarray], ...]:
    """(arrays, what is told ``beside`` them) of an archive that `packed` made.

    Raises one of `BROKEN_ARCHIVE` where it is damaged. Those of before 2026-12 tell no checksum, which may be ``required``.
    """
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    told = arrays.pop("checksum", None)
    apart = {name: arrays.pop(name) for name in beside}
    if (told is not None or required) and (told is None or told.item() != checksum(of, arrays).encode()):
        raise ValueError("its checksum is wrong")
    return arrays, apart
