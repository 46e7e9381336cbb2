"""Labels by PySCF: a mean field, atoms, their energies, and campaigns of many geometries."""

import os
from importlib.util import find_spec
from pathlib import Path

# PySCF's wheels bring OpenBLAS 0.3.3, which takes any processor made after 2018 for one of 2007: its matrix products are then
# two to four times slower. It reads this when PySCF is imported. It is taken back because NumPy's OpenBLAS reads it too, in
# processes that this one starts: one that goes on with this one's dynamics would round otherwise.
_cpuinfo = Path("/proc/cpuinfo")
if (
    "OPENBLAS_CORETYPE" not in os.environ
    and find_spec("pyscf")
    and _cpuinfo.exists()
    and {"avx2", "fma"} <= set(_cpuinfo.read_text().split())
):
    os.environ["OPENBLAS_CORETYPE"] = "Haswell"
    import pyscf.lib  # noqa: F401

    del os.environ["OPENBLAS_CORETYPE"]
