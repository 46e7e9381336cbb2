"""The finished labels of a folder: KEY.json each, or packed into one compressed file; KEY.failed for those set aside."""

import json
import lzma
import os
import re
from pathlib import Path
from typing import Any

from iqagp_jax.machine.files import BROKEN_FILE, checksum, rename_durably, write_atomically

PACK = "labels.jsonl.xz"
"""A line for every label, [key, text of its file], in the order of the keys: the same labels are the same bytes. The last line
tells a checksum of them all, which packs of before 2026-12 lack."""


class Labels:
    """What a folder holds of labels, by their keys: always as it is now, also while other processes label or pack.

    A KEY.json counts more than a packed label of that name.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._packed: dict[str, str] = {}
        self._stamp: tuple[int, ...] = ()

    def __contains__(self, key: str) -> bool:
        return self._file(key).exists() or key in self.packed

    def get(self, key: str) -> dict[str, Any] | None:
        """The label, as a rejected one if it was set aside; None where there is neither."""
        text = self._text(key)
        if text is not None:
            return _parsed(text, key, self.folder)
        return {"rejected": self._failed(key).read_text().partition("\n")[0]} if self.is_set_aside(key) else None

    def is_set_aside(self, key: str) -> bool:
        """Whether it was given up, and not made after all by a worker that outlived its campaign."""
        return self._failed(key).exists() and key not in self

    @property
    def packed(self) -> dict[str, str]:
        """Texts of the packed labels, read once for every pack that there is."""
        try:
            now = os.stat(self.folder / PACK)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ValueError(f"expected packed labels in {self.folder / PACK}, found what cannot be read ({error})") from error
        stamp = now.st_ino, now.st_size, now.st_mtime_ns
        if stamp != self._stamp:
            self._packed, self._stamp = read_pack(self.folder / PACK), stamp
        return self._packed

    def _text(self, key: str) -> str | None:
        # Packing writes the pack before it removes files: who looks in this order misses none.
        try:
            return self._file(key).read_text(errors="replace")
        except FileNotFoundError:
            return self.packed.get(key)
        except OSError as error:
            what = "a folder" if self._file(key).is_dir() else f"what cannot be read ({error})"
            raise ValueError(f"expected a label in {self._file(key)}, found {what}; remove it to label anew") from error

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _failed(self, key: str) -> Path:
        return self.folder / f"{key}.failed"


def pack(folder: str | Path) -> tuple[int, int]:
    """Pack every KEY.json of a folder, beside what is packed already; returns the numbers of all and of the new ones.

    Files are removed once the pack is on disk and read back; whatever happens before leaves both or the files alone. The
    caller owns the folder. Raises ValueError, in a sentence, for a damaged pack or label.
    """
    folder = Path(folder)
    files = [path for path in folder.glob("*.json") if re.fullmatch("[0-9a-f]{20}", path.stem)]
    loose = {path.stem: path.read_text(errors="replace") for path in files if path.is_file()}
    for key, text in loose.items():
        _parsed(text, key, folder)
    texts = {**Labels(folder).packed, **loose}
    if loose:
        fresh = folder / f"{PACK}.new"
        write_atomically(fresh, _compressed(texts))
        if read_pack(fresh) != texts:
            raise OSError(f"{fresh} does not read back as what was written; the labels are left as they were")
        rename_durably(fresh, folder / PACK)
        for key in loose:
            (folder / f"{key}.json").unlink(missing_ok=True)
    return len(texts), len(loose)


def read_pack(path: Path) -> dict[str, str]:
    """{key: text of the label} of a pack. Raises ValueError, in a sentence, for one that is cut off or damaged."""
    try:
        lines = [json.loads(line) for line in lzma.decompress(path.read_bytes()).decode().splitlines()]
        told = lines.pop()["checksum"] if lines and isinstance(lines[-1], dict) else None
        texts = dict(lines)
        if not all(isinstance(word, str) for pair in texts.items() for word in pair) or len(texts) < len(lines):
            raise ValueError("lines that are no pairs of a label's name and its text")
        if told not in (None, checksum(json.dumps(texts), {})):
            raise ValueError("its checksum is wrong")
        return texts
    except (TypeError, RecursionError, *BROKEN_FILE) as error:
        raise ValueError(
            f"expected labels packed by `iqagp campaign pack` in {path}, found a damaged file ({error}); take it from a copy,"
            " or remove it and label again"
        ) from error


def _compressed(texts: dict[str, str]) -> bytes:
    ordered = {key: texts[key] for key in sorted(texts)}
    entries = [*map(list, ordered.items()), {"checksum": checksum(json.dumps(ordered), {})}]
    lines = "".join(f"{json.dumps(entry)}\n" for entry in entries)
    return lzma.compress(lines.encode(), preset=9 | lzma.PRESET_EXTREME)


def _parsed(text: str, key: str, folder: Path) -> dict[str, Any]:
    """A label; that its numbers make sense `label.check_label` says, which knows the plan."""
    try:
        label = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"expected a label in {folder / key}.json, found no JSON ({error}); remove it to label anew"
        ) from error
    if not isinstance(label, dict) or not ("energy" in label or isinstance(label.get("rejected"), str)):
        raise ValueError(
            f"expected a label with its energy, or why it was rejected, in {folder / key}.json, found {text[:40]}; remove it to"
            " label anew"
        )
    return label
