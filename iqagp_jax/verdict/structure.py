"""What a chemist would look at: bonds, angles, torsions, who owns a hydrogen, and the backbone of a peptide.

Functions of positions (..., N, 3) in angstrom, NumPy; angles in degrees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from iqagp_jax.dynamics.metadynamics import Dihedral, Transfer, choose_variables
from iqagp_jax.system.coordinates import angle, dihedral, distance, transfer
from iqagp_jax.system.geometry import bond_graph, pair_distances
from iqagp_jax.validation import atom_labels

CONFORMERS = {"cis": 0.0, "gauche+": 75.0, "trans": 180.0, "gauche-": -75.0}
"""Centres of the classes of a torsion, degrees."""

TORSION_MARGIN = 20.0
"""A torsion changes its class only when another's centre is nearer by so many degrees: no counting of what turns back."""

OWNER_MARGIN = 0.2
"""A hydrogen changes its owner only when another heavy atom is nearer by this (angstrom)."""


@dataclass(frozen=True)
class Coordinate:
    """An internal coordinate: positions (..., N, 3) -> (...)."""

    name: str
    kind: str
    """bond, angle, dihedral, contact or transfer"""
    atoms: tuple[int, ...]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        match self.kind:
            case "angle":
                return np.degrees(angle(positions, *self.atoms))
            case "dihedral":
                return np.degrees(dihedral(positions, *self.atoms))
            case "transfer":
                return transfer(positions, *self.atoms)
        return distance(positions, *self.atoms)

    @property
    def unit(self) -> str:
        """degree or angstrom"""
        return "°" if self.kind in ("angle", "dihedral") else "Å"


def coordinates(species: Sequence[str], reference: np.ndarray) -> list[Coordinate]:
    """All bonds and angles of the reference geometry, a dihedral a bond, hydrogen bonds and their transfers."""
    bonded, labels = bond_graph(species, reference), atom_labels(species)
    found = []

    def add(kind: str, *atoms: int, joint: str = "-") -> None:
        found.append(Coordinate(f"{kind} {joint.join(labels[a] for a in atoms)}", kind, atoms))

    for i, j in np.argwhere(np.triu(bonded)).tolist():
        add("bond", i, j)
    for j in range(len(species)):
        for i, k in combinations(np.flatnonzero(bonded[j]).tolist(), 2):
            add("angle", i, j, k)
    for j, k in np.argwhere(np.triu(bonded)).tolist():
        # The heaviest neighbour on either side stands for the torsion.
        ends = [
            sorted((a for a in np.flatnonzero(bonded[m]).tolist() if a not in (j, k)), key=lambda a: species[a] == "H")
            for m in (j, k)
        ]
        if all(ends):
            add("dihedral", ends[0][0], j, k, ends[1][0])
    for variable in choose_variables(species, reference):
        if isinstance(variable, Transfer):
            add("transfer", *variable.atoms)
            add("contact", variable.atoms[0], variable.atoms[2], joint="...")
    return found


def states(species: Sequence[str], reference: np.ndarray, positions: np.ndarray) -> list[tuple[str, list[str], np.ndarray]]:
    """Categorical series of a trajectory (F, R, N, 3): [(name, [names of the states], states (F, R) as integers)].

    Who owns each hydrogen that is bonded to N or O or ever leaves its atom, and the class of each torsion about a single
    bond. A state lasts until another is clearly nearer (`OWNER_MARGIN`, `TORSION_MARGIN`); -1 where positions are NaN.
    """
    labels, bonded = atom_labels(species), bond_graph(species, reference)
    heavy = [a for a, s in enumerate(species) if s != "H"]
    found = []
    for h in (a for a, s in enumerate(species) if s == "H" and heavy):
        away = np.stack([distance(positions, h, a) for a in heavy], axis=-1)
        series = settled(away, OWNER_MARGIN)
        polar = any(species[a] in "NO" for a in np.flatnonzero(bonded[h]).tolist())
        seen = np.unique(series[series >= 0])
        if len(seen) > 1 or polar:
            found.append((f"owner of {labels[h]}", [labels[a] for a in heavy], series))
    for variable in choose_variables(species, reference):
        if isinstance(variable, Dihedral):
            value = np.degrees(dihedral(positions, *variable.atoms))
            turns = np.stack([np.abs((value - c + 180) % 360 - 180) for c in CONFORMERS.values()], axis=-1)
            name = "torsion " + "-".join(labels[a] for a in variable.atoms)
            found.append((name, list(CONFORMERS), settled(turns, TORSION_MARGIN)))
    return found


def settled(away: np.ndarray, margin: float) -> np.ndarray:
    """States (F, R) from how far (F, R, K) each replica is from each state: another one must be nearer by ``margin``."""
    finite = np.isfinite(away).all(-1)
    series = np.full(away.shape[:2], -1)
    now = np.full(away.shape[1], -1)
    for frame, (far, valid) in enumerate(zip(np.where(finite[..., None], away, np.inf), finite, strict=True)):
        nearest = far.argmin(1)
        here = far[np.arange(len(far)), now]
        change = valid & ((now < 0) | (far.min(1) + margin < here))
        now = np.where(change, nearest, now)
        series[frame] = np.where(valid, now, -1)
    return series


def backbone(
    species: Sequence[str], reference: np.ndarray
) -> list[tuple[tuple[int, int, int, int], tuple[int, int, int, int]]]:
    """(phi, psi) atoms of every residue: (C', N, CA, C') and (N, CA, C', N), found from the bonds; empty for no peptide."""
    bonded = bond_graph(species, reference)

    def neighbours(a: int, symbol: str) -> list[int]:
        return [b for b in np.flatnonzero(bonded[a]).tolist() if species[b] == symbol]

    carbonyls = [
        c
        for c, s in enumerate(species)
        if s == "C" and neighbours(c, "N") and any(bonded[o].sum() == 1 for o in neighbours(c, "O"))
    ]
    found = []
    for carbonyl in carbonyls:
        for alpha in neighbours(carbonyl, "C"):
            for nitrogen in neighbours(alpha, "N"):
                before = [c for c in neighbours(nitrogen, "C") if c in carbonyls and c != carbonyl]
                if before and alpha not in carbonyls:
                    phi = (before[0], nitrogen, alpha, carbonyl)
                    found.append((phi, (nitrogen, alpha, carbonyl, neighbours(carbonyl, "N")[0])))
    return found


def same_structure(first: np.ndarray, second: np.ndarray, tolerance: float = 0.3) -> bool:
    """Whether all distances of two geometries (N, 3) agree within ``tolerance`` angstrom."""
    return bool(np.abs(pair_distances(first) - pair_distances(second)).max() < tolerance)
