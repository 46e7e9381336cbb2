"""Distances, bonds and bond graphs of molecular geometries, in NumPy."""

from collections.abc import Sequence

import numpy as np
from ase.data import atomic_numbers, covalent_radii
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

FARTHEST = 1e6
"""Angstrom; coordinates beyond are none: differences of them would have lost their digits."""

BOND_FACTOR = 1.25
"""Two atoms are bonded when nearer than this factor times the sum of their covalent radii."""

HYDROGEN_BOND = 2.2
"""A hydrogen nearer than this (angstrom) to an acceptor in the same molecule may be transferred."""


def sum_of_radii(species: Sequence[str]) -> Float[np.ndarray, "n n"]:
    """Sums of covalent radii (Cordero, doi:10.1039/B801115J, as in ase.data) of all pairs, (N, N) in angstrom."""
    radii = covalent_radii[[atomic_numbers[s] for s in species]]
    return radii[:, None] + radii


def pair_distances(positions: Float[np.ndarray, "*batch n 3"]) -> Float[np.ndarray, "*batch n n"]:
    """Distances of all pairs, (..., N, N) in angstrom, NumPy."""
    return np.linalg.norm(positions[..., :, None, :] - positions[..., None, :, :], axis=-1)


def bond_graph(species: Sequence[str], positions: ArrayLike) -> Bool[np.ndarray, "n n"]:
    """Symmetric boolean adjacency matrix (N, N) of the covalent bonds of one geometry (N, 3) in angstrom."""
    bonded = pair_distances(np.asarray(positions)) < BOND_FACTOR * sum_of_radii(species)
    np.fill_diagonal(bonded, False)
    return bonded


def proton_transfers(species: Sequence[str], positions: ArrayLike) -> list[tuple[int, int, int]]:
    """Intramolecular transfers (donor, hydrogen, acceptor) among nitrogen and oxygen that one geometry has in reach."""
    bonded, distances = bond_graph(species, positions), pair_distances(np.asarray(positions))
    separation, polar = graph_distances(bonded), np.isin(species, ["N", "O"])
    return [
        (int(donor), int(hydrogen), int(acceptor))
        for hydrogen in np.flatnonzero(np.asarray(species) == "H")
        for donor in np.flatnonzero(bonded[hydrogen] & polar)
        for acceptor in np.flatnonzero(polar & (separation[hydrogen] > 3) & (distances[hydrogen] < HYDROGEN_BOND))
    ]


def graph_distances(bonded: Bool[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Number of bonds on the shortest path between every two atoms, (N, N); inf where there is none."""
    steps = np.where(bonded, 1.0, np.inf)
    np.fill_diagonal(steps, 0.0)
    for k in range(len(steps)):
        steps = np.minimum(steps, steps[:, k, None] + steps[None, k])
    return steps


def moved_side(bonded: Bool[np.ndarray, "n n"], i: int | np.integer, j: int | np.integer) -> Bool[np.ndarray, "n"]:
    """Atoms on j's side of the bond i-j as a boolean (N,); j alone where the bond is part of a ring."""
    cut = bonded.copy()
    cut[i, j] = cut[j, i] = False
    side = np.isfinite(graph_distances(cut)[j])
    return np.arange(len(bonded)) == j if side[i] else side


def whole_molecules(positions: ArrayLike, cell: ArrayLike, n_atoms: int) -> Float[np.ndarray, "m n 3"]:
    """Molecules (M, n_atoms, 3) from the atoms (M n_atoms, 3) of a periodic box, each atom in the image nearest its first.

    ``cell`` (3, 3) holds the lattice vectors as rows; consecutive ``n_atoms`` atoms are one molecule, which must be
    smaller than half the box.
    """
    positions, cell = np.asarray(positions), np.asarray(cell)
    if len(positions) % n_atoms:
        raise ValueError(f"expected a multiple of {n_atoms} atoms, the size of the molecule, found {len(positions)}")
    molecules = positions.reshape(-1, n_atoms, 3)
    fractional = (molecules - molecules[:, :1]) @ np.linalg.inv(cell)
    return molecules[:, :1] + (fractional - np.round(fractional)) @ cell
