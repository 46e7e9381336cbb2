"""Finished parts of long work, kept in a folder, so that the work may be killed at any moment and goes on."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iqagp_jax.machine.archives import BROKEN_ARCHIVE, packed, unpacked
from iqagp_jax.machine.files import clear_unfinished, output_folder, write_atomically
from iqagp_jax.machine.lock import owned

OPTIONS = "options.json"

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Parts:
    """Parts of one piece of work; without a ``folder`` nothing is kept."""

    folder: Path | None = None

    def part(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """What ``make`` gives, or what it gave once.

        Raises ValueError, in a sentence, for a file that is damaged.
        """
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.npz"
        if path.exists():
            return _read(path)
        made = {key: np.asarray(value) for key, value in make().items()}
        write_atomically(path, packed(made, name))
        return made

    @property
    def kept(self) -> list[str]:
        """Names of the parts that there are."""
        return [] if self.folder is None else sorted(path.stem for path in self.folder.glob("*.npz"))


NOTHING_KEPT = Parts()


@contextmanager
def kept_in(folder: Path, options: Mapping[str, Any]) -> Iterator[Parts]:
    """The `Parts` in a folder, which this process then owns.

    ``options``, plain data, are all that the parts depend on. Raises ValueError, in a sentence, where the folder has parts of
    other options, or is another process'.
    """
    folder = output_folder(folder)
    with owned(folder):
        clear_unfinished(folder)
        path, mine = folder / OPTIONS, json.loads(json.dumps(options))
        if path.exists():
            _same(mine, _options_of(path), folder)
        else:
            write_atomically(path, json.dumps(mine, indent=1))
        yield Parts(folder)


def _options_of(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not whole ({error}); delete the folder, and its parts are made again") from error
    if not isinstance(found, dict):
        raise ValueError(f"expected options in {path}, found {type(found).__name__}; delete the folder")
    return found


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Which options here are others than there, in words; empty where none is."""
    other = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    return "; ".join(f"{name} {theirs.get(name)} there, {mine.get(name)} here" for name in other)


def _same(mine: dict[str, Any], theirs: dict[str, Any], folder: Path) -> None:
    if told := differences(mine, theirs):
        raise ValueError(
            f"expected the options that the parts in {folder} were made with, found others ({told}); give the same, another"
            " output, or delete the folder"
        )


def _read(path: Path) -> Arrays:
    try:
        return unpacked(path, path.stem, required=True)[0]
    except BROKEN_ARCHIVE as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and it is made again") from error
