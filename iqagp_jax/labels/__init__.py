"""Labels by PySCF: a mean field, atoms, their energies, and campaigns of many geometries."""

import os
from pathlib import Path

# PySCF's wheels bring OpenBLAS 0.3.3, which takes any processor made after 2018 for one of 2007: its matrix products are then
# two to four times slower. It reads this when PySCF is imported.
_cpuinfo = Path("/proc/cpuinfo")
if _cpuinfo.exists() and {"avx2", "fma"} <= set(_cpuinfo.read_text().split()):
    os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")
