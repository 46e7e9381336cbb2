"""What a page was made by: date, versions, command, and the model's own mark."""

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("iqagp-jax", "jax", "jaxlib", "jax-md", "numpy", "ase")


def colophon(mark: str) -> dict[str, str]:
    """Lines of a page's end: what, and its value. ``mark`` is the SHA-256 of the model's arrays."""
    program, *arguments = sys.argv
    by_hand = Path(program).name in ("iqagp", "__main__.py")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **({"command": shlex.join(["iqagp", *arguments])} if by_hand else {}),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "model, SHA-256": mark,
    }
