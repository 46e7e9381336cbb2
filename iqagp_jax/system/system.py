"""A system: which atoms, where, with which charge. What follows from that is made here and nowhere else."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import jax
import numpy as np

from iqagp_jax.system.elements import check_electrons, check_species, masses_of, members_of
from iqagp_jax.system.failure import FailureRule, failure_rule
from iqagp_jax.system.symmetry import permutations


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["positions", "cell"],
    meta_fields=["species", "charge", "spin", "molecules"],
)
@dataclass(frozen=True)
class System:
    """N atoms. Made by `System.of`, which answers nonsense in a sentence. A frozen pytree; positions and cell are data."""

    species: tuple[str, ...]
    """(N,) chemical symbols"""
    positions: np.ndarray
    """(N, 3) angstrom: the geometry at rest, which defines the bonds"""
    charge: int = 0
    """of all atoms together, e"""
    spin: int = 0
    """number of unpaired electrons"""
    cell: np.ndarray | None = None
    """(3, 3) lattice vectors as rows, angstrom; None without walls"""
    molecules: tuple[int, ...] = ()
    """(N,) number of each atom's molecule, from 0; empty where all are one"""

    @classmethod
    def of(
        cls,
        species: Sequence[str],
        positions: np.ndarray | Sequence[Sequence[float]],
        charge: int = 0,
        spin: int = 0,
        cell: np.ndarray | Sequence[Sequence[float]] | None = None,
        molecules: np.ndarray | Sequence[int] = (),
    ) -> "System":
        """A system whose parts fit together.

        Raises ValueError, in a sentence, for unknown symbols, positions of another shape or with NaN, unpaired electrons
        that the number of electrons does not allow, a flat cell, and molecule numbers that are not 0 to M - 1.
        """
        species, positions = tuple(map(str, species)), np.asarray(positions, dtype=np.float64)
        check_species(species)
        if positions.shape != (len(species), 3) or not np.isfinite(positions).all():
            raise ValueError(
                f"expected finite positions of shape ({len(species)}, 3) in angstrom for the atoms {' '.join(species)}, found"
                f" shape {positions.shape} with {np.sum(~np.isfinite(positions))} numbers that are not finite"
            )
        check_electrons(species, charge, spin)
        walls = None if cell is None else np.asarray(cell, dtype=np.float64)
        if walls is not None and (walls.shape != (3, 3) or not abs(np.linalg.det(walls)) > 1e-3):
            raise ValueError(f"expected a cell of three lattice vectors that span a volume, found {walls.tolist()}")
        numbers = tuple(int(m) for m in molecules)
        if numbers and (len(numbers) != len(species) or set(numbers) != set(range(max(numbers) + 1))):
            raise ValueError(
                f"expected a molecule's number, from 0 without gaps, for each of {len(species)} atoms, found {len(numbers)}"
                f" numbers with {len(set(numbers))} values from {min(numbers)} to {max(numbers)}"
            )
        return cls(species, positions, int(charge), int(spin), walls, numbers if len(set(numbers)) > 1 else ())

    def at(self, positions: np.ndarray) -> "System":
        """The same atoms at other positions (N, 3)."""
        return replace(self, positions=np.asarray(positions, dtype=np.float64))

    def __len__(self) -> int:
        return len(self.species)

    @property
    def is_alone(self) -> bool:
        """Whether it is one molecule without walls: momentum and angular momentum are then its own."""
        return self.cell is None and not self.molecules

    @property
    def degrees_of_freedom(self) -> int:
        """3N - 6 of one molecule alone (1 of two atoms), 3N - 3 in a cluster or a cell; 3N of a thermostat that moves all."""
        return max(3 * len(self) - (6 if self.is_alone else 3), 1)

    @property
    def masses(self) -> np.ndarray:
        """(N,) amu, natural abundance."""
        return masses_of(self.species)

    @property
    def members(self) -> tuple[np.ndarray, ...]:
        """The atoms of every molecule, in their order."""
        return members_of(self.molecules, len(self))

    @cached_property
    def bonds(self) -> np.ndarray:
        """(B, 2) indices i < j of bonded atoms, within molecules."""
        return self.failure_rule.bonds

    @cached_property
    def permutations(self) -> np.ndarray:
        """(P, N) permutations of equal atoms that the energy cannot tell apart, the identity first; see `symmetry`."""
        if self.molecules:
            raise ValueError("expected one molecule to look for symmetry in, found several; ask each of them")
        return permutations(self.species, self.positions)

    @cached_property
    def failure_rule(self) -> FailureRule:
        """When it counts as broken; see `failure`."""
        return failure_rule(self.species, self.positions, self.molecules)
