"""Imported before JAX and the package: what one test compiles serves others, and shapes in signatures are checked."""

import hashlib
import os
import platform
from pathlib import Path

from jaxtyping import install_import_hook

# Programs are shared between tests, processes and runs on processors of one kind. They are run, so the folder is the user's.
_told = Path("/proc/cpuinfo")
_lines = _told.read_text().splitlines() if _told.exists() else [platform.processor()]
_processor = hashlib.sha256("".join(sorted({x for x in _lines if x.startswith(("flags", "model name"))})).encode()).hexdigest()

_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache / "iqagp_jax-tests" / _processor[:12]))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # it warns of tuning hints as if they were instructions
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

SHAPES = ("system", "electrostatics", "families.gp.regression")
"""Modules whose signatures' shapes are checked, by the tests alone."""

install_import_hook([f"iqagp_jax.{name}" for name in SHAPES], "beartype.beartype")
