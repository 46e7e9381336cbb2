"""Whether atoms stand in one order in all frames, judged by their bonds."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from iqagp_jax.machine.warn import warn
from iqagp_jax.system.geometry import bond_graph

FAR = 10
"""Bonds that an atom's surroundings reach."""

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
    moved = {graph.tobytes(): _exchanged(species, usual, kept, graph) for graph in graphs if number[graph.tobytes()]}
    frames = [k for k, graph in enumerate(graphs) if moved[graph.tobytes()]]
    if frames:
        atoms = ", ".join(f"{species[a]}{a + 1}" for a in moved[graphs[frames[0]].tobytes()])
        more = f" and {len(frames) - MOST_NAMED} more" if len(frames) > MOST_NAMED else ""
        warn(
            f"{name}: expected the atoms in one order in all frames, found {atoms} in each other's places, by their bonds, in"
            f" frame{'s' * (len(frames) > 1)} {', '.join(map(str, frames[:MOST_NAMED]))}{more} of {len(graphs)}; put the"
            " atoms of"
            " these frames in the order of the others"
        )


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
