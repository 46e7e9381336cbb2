"""Frames that do not fit the others: atoms in another order, judged by their bonds, atoms far away, geometries that come"
" twice."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from iqagp_jax.machine.warn import warn
from iqagp_jax.system.geometry import bond_graph, pair_distances, sum_of_radii

FAR = 10
"""Bonds that an atom's surroundings reach."""

SMALL = 40
"""Atoms of molecules in which two of different elements are sought that have changed places, at most."""

OFF = (0.25, 0.4)
"""A bond is at its length that differs by less from the usual one, as a share, and far from it by more."""

FARTHER = (5.0, 20.0)
"""A frame is odd that is so many times, and by so much (angstrom), larger than others are."""

ONE_PLACE, CRUSHED = 1e-3, 0.35
"""Distances, in sums of covalent radii, of two atoms in one place, and of two that no dynamics brings together."""

MANY = 10
"""Frames from which on geometries that come twice are told."""

REPEATED = 0.05
"""Share of the frames that may come twice."""

MOST_NAMED = 5
"""Frames that a sentence names."""


def tell_exchanged(species: Sequence[str], positions: np.ndarray, name: str) -> None:
    """Warn of frames in which equal atoms have each other's places: another order of the atoms, which would be learned as a
    shape.

    An atom's surroundings are its element and those of the atoms that it is bonded to, and so on. Where all surroundings of
    most frames are there, at other atoms, these are exchanged. A hydrogen may go to another atom, as in a proton transfer:
    where all bonds that differ are hydrogens', they are exchanged only if each has the place of another one.

    Parameters
    ----------
    species: (N,) chemical symbols, those of each frame.
    positions: (n, N, 3), angstrom.
    """
    graphs = [bond_graph(species, r) for r in positions]
    number = Counter(graph.tobytes() for graph in graphs)
    usual = next(graph for graph in graphs if graph.tobytes() == number.most_common(1)[0][0])
    kept = _surroundings(species, usual)
    found = {graph.tobytes(): _exchanged(species, usual, kept, graph) for graph in graphs}
    moved = [found[graph.tobytes()] for graph in graphs]
    if len(species) <= SMALL:
        bonds = np.argwhere(np.triu(usual))
        lengths = np.median(np.linalg.norm(positions[:, bonds[:, 0]] - positions[:, bonds[:, 1]], axis=-1), axis=0)
        moved = [atoms or _other_elements(species, bonds, lengths, r) for atoms, r in zip(moved, positions, strict=True)]
    if frames := [k for k, atoms in enumerate(moved) if atoms]:
        atoms = ", ".join(f"{species[a]}{a + 1}" for a in moved[frames[0]])
        warn(
            f"{name}: expected the atoms in one order in all frames, found {atoms} in each other's places, by their bonds, in"
            f" {_named(frames)} of {len(graphs)}; put the atoms of these frames in the order of the others"
        )


def tell_odd(species: Sequence[str], positions: np.ndarray, name: str) -> None:
    """Warn of geometries (n, N, 3) that are many times larger than the others, of atoms within each other, and of many that
    come twice.

    Raises ValueError, in a sentence, for two atoms in one place.
    """
    nearest = np.array([_nearest(species, r) for r in positions])
    if (nearest < ONE_PLACE).any():
        k = int(nearest.argmin())
        raise ValueError(f"{name}: expected one atom in a place, found two in frame {k}; remove that frame")
    crushed = np.flatnonzero(nearest < CRUSHED).tolist()
    if 0 < len(crushed) < len(positions) / 2 or (crushed and len(positions) == 1):
        warn(
            f"{name}: two atoms are at {nearest[crushed[0]]:.2f} sums of their covalent radii in {_named(crushed)}; remove"
            " what is no geometry of the molecule"
        )
    sizes = np.linalg.norm(positions - positions.mean(1, keepdims=True), axis=-1).max(1)
    usual = np.median(sizes)
    if frames := np.flatnonzero(sizes > np.maximum(FARTHER[0] * usual, usual + FARTHER[1])).tolist():
        warn(
            f"{name}: an atom is {sizes[frames[0]]:.0f} angstrom from the others' middle in {_named(frames)}, where"
            f" {usual:.1f} is usual; remove what is no geometry of the molecule"
        )
    twice = len(positions) - len({r.tobytes() for r in positions})
    if len(positions) >= MANY and twice > REPEATED * len(positions):
        warn(f"{name}: {twice} of {len(positions)} frames repeat the geometry of an earlier one; give each once")


def _nearest(species: Sequence[str], positions: np.ndarray) -> float:
    """The least distance of two atoms, in sums of covalent radii; infinite for one atom."""
    relative = pair_distances(positions) / sum_of_radii(species)
    return float(relative[np.triu_indices(len(species), 1)].min(initial=np.inf))


def _named(frames: Sequence[int]) -> str:
    more = f" and {len(frames) - MOST_NAMED} more" if len(frames) > MOST_NAMED else ""
    return f"frame{'s' * (len(frames) > 1)} {', '.join(map(str, frames[:MOST_NAMED]))}{more}"


def _other_elements(species: Sequence[str], bonds: np.ndarray, lengths: np.ndarray, positions: np.ndarray) -> list[int]:
    """Two atoms of different elements whose exchange brings all ``bonds`` (B, 2) to their usual ``lengths`` (B,) from far"
    " away."""
    distances = pair_distances(positions)

    def off(order: np.ndarray) -> float:
        return float(np.abs(distances[order[bonds[:, 0]], order[bonds[:, 1]]] / lengths - 1).max(initial=0.0))

    own = np.arange(len(species))
    if off(own) < OFF[1]:
        return []
    for i, j in combinations(range(len(species)), 2):
        if species[i] != species[j]:
            order = own.copy()
            order[[i, j]] = j, i
            if off(order) < OFF[0]:
                return [i, j]
    return []


def _surroundings(species: Sequence[str], bonded: np.ndarray) -> list[int]:
    """What tells atoms of different surroundings apart, (N,) numbers that may be compared between frames."""
    told = [hash(symbol) for symbol in species]
    for _ in range(min(len(species), FAR)):
        told = [hash((told[a], tuple(sorted(told[b] for b in np.flatnonzero(bonded[a]))))) for a in range(len(species))]
    return told


def _exchanged(species: Sequence[str], usual: np.ndarray, kept: Sequence[int], bonded: np.ndarray) -> list[int]:
    """Atoms whose surroundings are another's in the usual graph, where the two graphs are the same but for the atoms' order."""
    differ = usual != bonded
    if not differ.any() or usual.sum() != bonded.sum():
        return []
    found = _surroundings(species, bonded)
    if Counter(found) != Counter(kept):
        return []
    hydrogen = np.array(species) == "H"
    if not differ[np.ix_(~hydrogen, ~hydrogen)].any():
        before, now = (Counter(graph[a].tobytes() for a in np.flatnonzero(hydrogen)) for graph in (usual, bonded))
        if before != now:
            return []
    return [a for a in range(len(species)) if found[a] != kept[a]]
