"""The one table of constants (CODATA 2022, doi:10.1103/RevModPhys.97.025002).

Every public door of the package speaks eV, angstrom, amu, femtosecond and kelvin. Hartree and bohr appear only
inside readers, writers and labels. Molecular dynamics runs in the unit system eV, angstrom, amu, whose unit of time is
``TIME_UNIT`` femtoseconds.
"""

HARTREE = 27.211386245981
"""One hartree in eV."""

BOHR = 0.529177210544
"""One bohr in angstrom."""

KCAL_MOL = 4184 / 6.02214076e23 / 1.602176634e-19
"""One kcal/mol in eV."""

KJ_MOL = KCAL_MOL / 4.184
"""One kJ/mol in eV."""

BOLTZMANN = 8.617333262e-5
"""Boltzmann's constant in eV/K."""

AMU = 1.66053906892e-27
"""One atomic mass unit in kg."""

TIME_UNIT = (AMU / 1.602176634e-19) ** 0.5 * 1e-10 * 1e15
"""sqrt(amu angstrom^2 / eV), the unit of time of eV-angstrom-amu dynamics, in fs (about 10.18)."""
