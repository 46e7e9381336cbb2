"""Whether numbers are in the units that they are read in, judged by what all molecules have in common.

Lengths: the nearest neighbour of an atom is a sum of covalent radii away. Energies: their mean is at most that of the free
atoms with all electrons, of which a formula tells enough; and bonds that vary cost what bonds cost. Forces: a hydrogen is held
by its bond with some 35 eV/angstrom^2, in all molecules within a factor of three.

What leaves electrons out (tight binding, pseudopotentials), and energies relative to free atoms or to a minimum, may have any
mean below that of all electrons: of such only the bonds tell the unit.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from ase.data import atomic_numbers
from scipy.sparse.csgraph import connected_components

from iqagp_jax.data.dataset import Dataset
from iqagp_jax.machine.warn import warn
from iqagp_jax.system.geometry import BOND_FACTOR, pair_distances, sum_of_radii
from iqagp_jax.units import BOHR, HARTREE, KCAL_MOL, KJ_MOL

FRAMES = 200
"""Frames that are looked at, at most."""

ENOUGH = 5
"""Frames from which on force constants and spreads are estimated."""

LENGTHS = {"bohr": BOHR, "nanometre": 10.0, "picometre": 0.01, "angstrom that was divided by 1.89 twice": 1 / BOHR}
"""What lengths may be given in by mistake, and the unit in angstrom."""

BONDED = (0.8, 1.3)
"""Distances of bonded atoms at rest, in sums of covalent radii."""

FAR_OFF = (0.65, 1.72)
"""Beyond these the nearest neighbours of half of all atoms are at no distance of molecules."""

NOBLE = ("He", "Ne", "Ar", "Kr", "Xe", "Rn")
"""Free atoms whose nearest neighbours are far away."""

ENERGIES = {"eV": 1.0, "kcal/mol": KCAL_MOL, "kJ/mol": KJ_MOL, "hartree": HARTREE, "meV": 1e-3, "cm^-1": 1.239842e-4}
"""Units of energy in eV."""

FORCES = {f"{unit}/angstrom": value for unit, value in ENERGIES.items()} | {
    f"{unit}/bohr": ENERGIES[unit] / BOHR for unit in ("hartree", "kcal/mol", "eV")
}
"""Units of forces in eV/angstrom."""

RARE = ("meV", "cm^-1")
"""Units that are met together only."""

USUAL = {unit: f"{unit}/angstrom" for unit in ENERGIES} | {"hartree": "hartree/bohr"}
"""Forces that are met beside energies; what is not costs `UNUSUAL`, and so do `RARE` units."""

UNUSUAL = 2.0
"""Logarithm of how much less often units are met."""

STIFFNESS = 35.0
"""Force constant of a bond to hydrogen, eV/angstrom^2: O-H 49, C-H 31, Si-H 17, Na-H 5."""

STIFFNESS_SPREAD = (1.1, 0.7)
"""Standard deviation of its logarithm, below and above."""

SPREAD = 1.7
"""Spread of energies in multiples of what bonds make of it: three coordinates an atom, one of them a bond."""

SPREAD_SPREAD = (1.3, 0.9)
"""Standard deviation of its logarithm, below and above."""

FLOOR = 0.02
"""Spread of energies, eV, that shapes of unchanged bonds have, as in a scan of torsions."""

BOUND_HYDROGEN = -0.57
"""Energy of a hydrogen in a molecule, hartree."""

PRECISION = 0.02
"""Relative error of the energy of all electrons by the formula, and by small basis sets."""

VALENCE = 0.03
"""Probability per ln of an energy that leaves electrons out, where that of all electrons together has a half."""

SURE = 5.0
"""Logarithm of how much likelier another unit must be."""


class Units(NamedTuple):
    """What energies and forces of a file may be in."""

    energy: str
    forces: str

    @property
    def factor(self) -> float:
        """That of the forces which makes both agree, if they are read in eV and eV/angstrom."""
        return FORCES[self.forces] / ENERGIES[self.energy]


EXPECTED = Units("eV", "eV/angstrom")

UNITS = [
    units
    for units in map(Units._make, product(ENERGIES, FORCES))
    if units.forces.rpartition("/")[0] == units.energy or not any(rare in unit for unit in units for rare in RARE)
]
"""All that are looked at."""


def check_lengths(species: Sequence[str], positions: np.ndarray) -> None:
    """Warn where positions (n, N, 3) are those of a molecule in another unit, and of none in angstrom."""
    counted = [k for k, symbol in enumerate(species) if symbol not in NOBLE]
    if len(counted) < 2:
        return
    positions = np.asarray(positions)[_some(len(positions)), :][:, counted]
    relative = pair_distances(positions) / sum_of_radii([species[k] for k in counted])
    relative[:, np.arange(len(counted)), np.arange(len(counted))] = np.inf
    middle = np.median(relative.min(-1))
    if FAR_OFF[0] < middle < FAR_OFF[1] or not np.isfinite(middle):
        return
    for unit, value in LENGTHS.items():
        pieces = np.median([connected_components(value * frame < BONDED[1])[0] for frame in relative])
        if BONDED[0] < middle * value < BONDED[1] and pieces <= max(1, len(counted) // 3):
            warn(
                f"positions are those of a molecule if they are in {unit}, and not in angstrom: atoms are {middle:.2f} sums of"
                f" covalent radii from their nearest neighbours (about 1 expected); multiply them by {value:.6g}"
            )
            return


def all_electrons(species: Sequence[str]) -> float:
    """Energy in eV of free atoms, all electrons counted, E = -0.768745 Z^(7/3) + Z^2/2 - 0.2699 Z^(5/3) hartree for each.

    Thomas and Fermi's with the corrections of Scott and Schwinger (doi:10.1103/PhysRevA.24.2353), within 1%. Hydrogen, of
    which a bond is a large share, counts as in molecules.
    """
    z = np.array([atomic_numbers[s] for s in species], dtype=float)
    each = -0.768745 * z ** (7 / 3) + z**2 / 2 - 0.2699 * z ** (5 / 3)
    return float(np.where(z == 1, BOUND_HYDROGEN, each).sum() * HARTREE)


def check_units(data: Dataset, factor: float | None = None) -> None:
    """Warn where energies and forces are likelier in other units than eV and eV/angstrom, or forces to be gradients.

    Parameters
    ----------
    factor: that of the forces which makes energies and forces agree, where it is known.
    """
    units, evidence = likeliest_units(data, factor)
    if units != EXPECTED:
        has_energy, has_forces = _has(data)
        read = [f"energies in {units.energy}"] * has_energy + [f"forces in {units.forces}"] * has_forces
        by = [f"energies by {ENERGIES[units.energy]:.6g}"] * has_energy + [f"forces by {FORCES[units.forces]:.6g}"] * has_forces
        warn(
            f"labels are those of a molecule with {' and '.join(read)}, and not in eV and eV/angstrom: {evidence}; multiply"
            f" {' and '.join(by)}"
        )
    elif factor is None and (k := stiffness(data)) is not None and k < -STIFFNESS / 5:
        warn(
            f"forces push hydrogens out of their bonds, by {-k:.0f} eV/angstrom^2, as gradients do; expected forces, minus the"
            " gradient, in eV/angstrom: change their sign"
        )


def likeliest_units(data: Dataset, factor: float | None = None) -> tuple[Units, str]:
    """The `UNITS` that labels are in, and why, in words; those expected unless others are surely likelier.

    ``factor`` as in `check_units`: units that are not of this factor are none of theirs.
    """
    judges, told = _judges(data)
    has_energy, has_forces = _has(data)
    possible = [u for u in UNITS if factor is None or np.isclose(u.factor, factor, rtol=1e-3)]
    if not has_forces or not has_energy:  # the other says nothing
        possible = [u for u in possible if u.forces == f"{u.energy}/angstrom" or not has_energy]
    score = {u: sum(judge(u) for judge in judges) for u in possible}
    best = max(score, key=score.__getitem__, default=EXPECTED)
    sure = EXPECTED not in score or score[best] - score[EXPECTED] > SURE
    return (best if sure else EXPECTED), ", ".join(told)


def _has(data: Dataset) -> tuple[bool, bool]:
    """Whether there are energies, and forces."""
    energy, forces = _energy(data), data.forces
    return bool(np.isfinite(energy).any()), forces is not None and bool(np.isfinite(forces).any())


def _energy(data: Dataset) -> np.ndarray:
    if data.atomic_energies is None:
        return data.energy
    return np.where(np.isfinite(data.energy), data.energy, data.atomic_energies.sum(1))


def _judges(data: Dataset) -> tuple[list[Callable[[Units], float]], list[str]]:
    """Log probabilities of units by all that the data allow to judge by, and what that is in words."""
    judges: list[Callable[[Units], float]] = [_log_of_use]
    told: list[str] = []
    energy = _energy(data)
    if np.isfinite(energy).any():
        share = np.nanmean(energy) / all_electrons(data.species)
        judges.append(lambda u: _log_of_mean(share * ENERGIES[u.energy]))
        told.append(f"energies are {share:.3g} times those of the free atoms with all electrons")
    if (spread := relative_spread(data)) is not None:
        few = 1 + 2 * ENOUGH / len(data)
        judges.append(lambda u: _log_normal(spread * ENERGIES[u.energy], SPREAD, SPREAD_SPREAD) / few)
        told.append(f"they vary by {spread:.3g} times what bonds make of it (about 2 expected)")
    if (k := stiffness(data)) is not None:
        judges.append(lambda u: _log_normal(abs(k) * FORCES[u.forces], STIFFNESS, STIFFNESS_SPREAD))
        told.append(f"forces hold hydrogens by {abs(k):.3g} eV/angstrom^2 (about 35 expected)")
    return judges, told


def _log_of_use(units: Units) -> float:
    return -UNUSUAL * ((units.forces != USUAL[units.energy]) + (units.energy in RARE))


def _log_normal(value: float, middle: float, spread: tuple[float, float]) -> float:
    away = np.log(max(value, 1e-12) / middle)
    return -0.5 * (away / spread[int(away > 0)]) ** 2


def _log_of_mean(share: float) -> float:
    """Of a mean energy as a share of that of all electrons: near 1, or anything below."""
    whole = 0.5 / (PRECISION * np.sqrt(2 * np.pi)) * np.exp(-0.5 * ((share - 1) / PRECISION) ** 2)
    return float(np.log(whole + (VALENCE if share < 1 + 5 * PRECISION else 1e-12)))


def stiffness(data: Dataset) -> float | None:
    """Force constant of bonds to hydrogen in the units of the forces over angstrom, the median of all; None where none tells.

    Minus the slope of a hydrogen's force along its bond against the bond's length, where this is near its median.
    """
    if data.forces is None:
        return None
    known = np.flatnonzero(np.isfinite(data.forces).all((1, 2)))[:FRAMES]
    if len(known) < ENOUGH:
        return None
    positions, forces = data.positions[known], data.forces[known]
    found = []
    for i, j in _bonds(data.species, positions):
        for hydrogen, other in ((i, j), (j, i)):
            if data.species[hydrogen] != "H":
                continue
            apart = positions[:, hydrogen] - positions[:, other]
            length = np.linalg.norm(apart, axis=1)
            along = (forces[:, hydrogen] * apart).sum(1) / length
            near = np.abs(length / np.median(length) - 1) < 0.15
            if near.sum() >= ENOUGH and length[near].std() > 1e-3:
                found.append(-np.polyfit(length[near] - length[near].mean(), along[near], 1)[0])
    return float(np.median(found)) if found else None


def relative_spread(data: Dataset) -> float | None:
    """Spread of the energies in multiples of that of sum_bonds k/2 (d - <d>)^2, both as medians; None where none tells."""
    energy = _energy(data)
    known = np.flatnonzero(np.isfinite(energy))[:FRAMES]
    bonds = _bonds(data.species, data.positions[known]) if len(known) >= ENOUGH else []
    if not bonds:
        return None
    lengths = pair_distances(data.positions[known])[:, *np.array(bonds).T]
    model = 0.5 * STIFFNESS * ((lengths - np.median(lengths, axis=0)) ** 2).sum(1)

    def deviation(values: np.ndarray) -> float:
        return float(np.median(np.abs(values - np.median(values))))

    return deviation(energy[known]) / max(deviation(model), FLOOR)


def _bonds(species: Sequence[str], positions: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, that are bonded in most of the geometries (n, N, 3)."""
    near = np.median(pair_distances(positions), axis=0) < BOND_FACTOR * sum_of_radii(species)
    return [(int(i), int(j)) for i, j in np.argwhere(np.triu(near, 1))]


def _some(n: int) -> np.ndarray:
    """Numbers of frames, spread over all."""
    return np.unique(np.linspace(0, n - 1, min(n, FRAMES)).astype(int))
