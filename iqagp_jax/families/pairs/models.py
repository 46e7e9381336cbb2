"""Morse potentials: of a molecule's bonds and near pairs, and of any atoms within a cut-off, by a neighbour list.

    V(r) = D (1 - exp(-a (r - r0)))^2 - D    (P. M. Morse, doi:10.1103/PhysRev.34.57), shared equally by the two atoms

They are examples of the contract in `potential`: what is static, what is bound, what is kept from step to step.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.data.content import SMALLEST, numbers, one_molecule
from iqagp_jax.potential import Bound, MadeBy, OfOneMolecule
from iqagp_jax.system.elements import check_species
from iqagp_jax.system.frames import norm
from iqagp_jax.system.geometry import pair_distances

SKIN = 0.5
"""Neighbours are listed up to this (angstrom) beyond the cut-off, and anew once an atom has moved by half of it."""

SPARE = 1.25
"""Room of a list, in multiples of the largest number of neighbours at hand."""


def morse(r, depth, steepness, rest):
    """V(r) in eV of distances r (angstrom), depth D (eV), steepness a (1/angstrom) and r0 (angstrom)."""
    return depth * ((1 - jnp.exp(-steepness * (r - rest))) ** 2 - 1)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["reference", "depth", "steepness"],
    meta_fields=["species", "made_by"],
)
@dataclass(frozen=True)
class BondedMorse(OfOneMolecule):
    """Every pair of a molecule's atoms at rest as in its reference geometry: it holds together, no more is true of it."""

    species: tuple[str, ...]
    reference: np.ndarray
    """(N, 3) angstrom: the minimum"""
    depth: np.ndarray
    """(N, N) D, eV"""
    steepness: np.ndarray
    """scalar a, 1/angstrom"""
    made_by: MadeBy = MadeBy()

    @classmethod
    def of(cls, system, depth=2.0, steepness=1.5):
        """Of a system: bonds are ``depth`` eV deep, all other pairs a tenth of it."""
        n = len(system)
        bonded = np.zeros((n, n), bool)
        bonded[tuple(system.bonds.T)] = True
        deep = np.where(bonded | bonded.T, depth, 0.1 * depth)
        return cls(system.species, system.positions, deep, np.array(steepness))

    def check_content(self):
        """ValueError, in a sentence, unless its numbers are those of its atoms and make sense: of one that was read."""
        n_atoms = one_molecule(self.species, self.reference)
        numbers("depths", self.depth, (n_atoms, n_atoms), least=0)
        numbers("steepness", self.steepness, (), SMALLEST)

    def bind(self, system, dtype=np.float64):
        """All pairs: nothing is kept from step to step."""
        i, j = np.triu_indices(len(self.species), 1)
        rest = pair_distances(self.reference)[i, j]
        depth = np.asarray(self.depth)[i, j]

        def energies(positions, aux):
            half = 0.5 * morse(norm(positions[i] - positions[j]), depth, self.steepness, rest)
            return jnp.zeros(len(positions)).at[i].add(half).at[j].add(half), aux

        return Bound(energies)

    def uncertainty(self, system):
        """None: it has none."""
        return None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Neighbours:
    """A list with room for K neighbours of every atom."""

    number: jax.Array
    """(N, K) of the neighbours, N where there is none"""
    positions: jax.Array
    """(N, 3) angstrom, where the list was made"""
    overflowed: jax.Array
    """scalar bool"""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["depth", "steepness", "rest", "cutoff"],
    meta_fields=["elements", "made_by"],
)
@dataclass(frozen=True)
class NeighbourMorse:
    """One Morse potential between all atoms of some elements nearer than a cut-off, smooth there: of no molecule."""

    elements: tuple[str, ...]
    depth: np.ndarray
    """D, eV"""
    steepness: np.ndarray
    """a, 1/angstrom"""
    rest: np.ndarray
    """r0, angstrom"""
    cutoff: np.ndarray
    """angstrom"""
    made_by: MadeBy = MadeBy()

    def check_content(self):
        """As of `BondedMorse`."""
        check_species(self.elements)
        for name in ("depth", "steepness", "rest", "cutoff"):
            numbers(name, getattr(self, name), (), SMALLEST)

    def check(self, system):
        """ValueError for other elements, and for a cell."""
        if other := sorted(set(system.species) - set(self.elements)):
            raise ValueError(f"expected atoms among {' '.join(self.elements)}, found {' '.join(other)}; take another")
        if system.cell is not None:
            raise ValueError("expected a system without walls, found a cell; leave the cell out")

    def bind(self, system, dtype=np.float64):
        """With a list that has room for the neighbours at hand, and some more."""
        radius = self.cutoff + SKIN

        def listed(r, room):
            square = sum((x[:, None] - x) ** 2 for x in r.T)
            near = (square < radius**2) & ~np.eye(len(r), dtype=bool)
            nearest = jnp.argsort(~near, axis=1, stable=True)[:, :room]
            number = jnp.where(jnp.take_along_axis(near, nearest, 1), nearest, len(r))
            return Neighbours(number, r, near.sum(1).max() > room)

        def refreshed(r, aux):
            moved = ((r - aux.positions) ** 2).sum(1).max() > (0.5 * SKIN) ** 2
            new = jax.tree.map(lambda a, b: jnp.where(moved, a, b), listed(r, aux.number.shape[1]), aux)
            return replace(new, overflowed=new.overflowed | aux.overflowed)

        def energies(r, aux):
            aux = refreshed(jax.lax.stop_gradient(r), aux)
            there = aux.number < len(r)
            apart = jnp.where(there[..., None], r[:, None] - r[jnp.minimum(aux.number, len(r) - 1)], self.cutoff)
            d = norm(apart)
            smooth = jnp.where(there & (d < self.cutoff), (1 - (d / self.cutoff) ** 2) ** 3, 0.0)
            return 0.5 * (smooth * morse(d, self.depth, self.steepness, self.rest)).sum(1), aux

        def with_room(positions):
            most = (pair_distances(np.asarray(positions)) < radius).sum(-1).max()
            room = max(1, min(int(SPARE * most), len(system) - 1))
            with jax.enable_x64(True):
                return jax.device_get(listed(jnp.asarray(positions[0], dtype=np.float64), room))

        return Bound(energies, with_room(system.positions[None]), overflowed=lambda aux: aux.overflowed, enlarged=with_room)

    def uncertainty(self, system):
        """None: it has none."""
        return None
