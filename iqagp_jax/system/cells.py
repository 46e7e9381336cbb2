"""Molecules in periodic cells: put together across the walls, or refused where there is no molecule to put together."""

from collections.abc import Sequence
from itertools import product

import numpy as np

from iqagp_jax.system.geometry import BOND_FACTOR, sum_of_radii


def unwrapped(
    species: Sequence[str],
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray | Sequence[int] = (True, True, True),
    bonds: np.ndarray | Sequence[tuple[int, int]] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N, 3) in angstrom with every molecule whole, and the number of each atom's molecule (N,), from 0.

    Atom j in the image R_j + n A is bonded to atom i where it is nearer than 1.25 sums of covalent radii, as in
    `geometry.bond_graph`. A walk over the bonds puts each atom into the image in which it is bonded to the one before; the
    first atom of each molecule stays where it is. A molecule may be larger than half the cell.

    Parameters
    ----------
    species: (N,) chemical symbols.
    positions: (N, 3), angstrom.
    cell: (3, 3) lattice vectors A as rows, angstrom.
    pbc: along which of them there are images; a vector of zeros has none.
    bonds: (B, 2) pairs that are bonded however far they are apart, each by its nearest image: those of a molecule at rest,
        which heat may have stretched.

    Raises ValueError, in a sentence, for numbers that are not finite, vectors that lie in a plane, and atoms that are bonded
    to their own image through a wall, as in a crystal.
    """
    positions, walls = np.asarray(positions, dtype=np.float64), lattice(cell, pbc)
    if not np.isfinite(positions).all():
        raise ValueError("expected finite positions in angstrom, found a NaN or infinity; check the geometry")
    neighbours: list[list[tuple[int, np.ndarray]]] = [[] for _ in species]
    for i, j, image in (*_bonds(species, positions, walls), *_nearest(positions, walls, bonds)):
        neighbours[i].append((j, image))
        neighbours[j].append((i, -image))
    images, molecules = np.zeros((len(species), len(walls)), int), np.full(len(species), -1)
    for start in range(len(species)):
        if molecules[start] < 0:
            molecules[start] = molecules.max() + 1
            _walk(start, neighbours, images, molecules, species)
    return positions + images @ walls, molecules


def lattice(cell: np.ndarray, pbc: np.ndarray | Sequence[int]) -> np.ndarray:
    """The lattice vectors (D, 3) in angstrom along which there are images, D from 0 to 3.

    Raises ValueError, in a sentence, where they are not finite or do not span D dimensions.
    """
    cell = np.asarray(cell, dtype=np.float64)
    walls = cell[np.asarray(pbc, bool) & (cell != 0).any(1)]
    if not np.isfinite(walls).all() or np.linalg.matrix_rank(walls, tol=1e-3) < len(walls):
        raise ValueError(f"expected lattice vectors that span a volume, found {cell.tolist()}; correct the cell")
    return walls


def _walk(start, neighbours, images, molecules, species):
    """Give all atoms that bonds join to ``start`` its molecule's number, and the images in which they are bonded."""
    ahead = [start]
    while ahead:
        i = ahead.pop()
        for j, image in neighbours[i]:
            if molecules[j] < 0:
                molecules[j], images[j] = molecules[start], images[i] + image
                ahead.append(j)
            elif (images[j] != images[i] + image).any():
                raise ValueError(
                    f"expected molecules in the cell, found atom {species[j]}{j + 1} bonded to its own image through a wall:"
                    " a crystal, or a cell too small for its molecule; potentials here are of molecules, so take a molecule,"
                    ' or set pbc to "F F F" where the cell means nothing'
                )


def _bonds(species, positions, walls):
    """Bonds (i, j, image (D,) of j) by covalent radii, each of them in at least one of its two directions."""
    limits = BOND_FACTOR * sum_of_radii(species)
    apart, nearest = _by_coordinates(positions[:, None] - positions, walls)
    for step in _steps(limits.max(), walls):
        bonded = np.linalg.norm(apart - step @ walls, axis=-1) < limits
        if not step.any():
            np.fill_diagonal(bonded, False)
        for i, j in np.argwhere(bonded):
            yield int(i), int(j), nearest[i, j] + step


def _nearest(positions, walls, bonds):
    """(i, j, nearest image (D,) of j) of pairs (B, 2)."""
    for i, j in np.asarray(bonds, int).reshape(-1, 2):
        apart, image = _by_coordinates(positions[i] - positions[j], walls)
        steps = _steps(np.linalg.norm(apart), walls)
        yield int(i), int(j), image + steps[np.linalg.norm(apart - steps @ walls, axis=-1).argmin()]


def _by_coordinates(apart, walls):
    """Differences (..., 3) of which each lattice coordinate is at most a half, and the images (..., D) that make them so."""
    images = np.round(apart @ np.linalg.pinv(walls)).astype(int)
    return apart - images @ walls, images


def _steps(distance, walls):
    """Images (S, D) beside that by coordinates in which an atom may be nearer than ``distance``.

    n images on, it is at least n - 1/2 spacings of the lattice planes away.
    """
    reach = np.floor(distance * np.linalg.norm(np.linalg.pinv(walls), axis=0) + 0.5).astype(int)
    return np.array(list(product(*(range(-n, n + 1) for n in reach))), int)
