"""Pairs of near atoms: all of a small molecule, or those of jax-md's neighbour list, in a periodic cell or without walls.

The list has room for so many pairs. Where it has become too small is a flag of its own; `potential.Bound` makes of it that no
number is returned, and whoever runs dynamics makes it larger outside jit and repeats the steps.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.families.so3krates.network import Pairs
from iqagp_jax.system.system import System

SKIN = 0.5
"""Neighbours are listed up to this (angstrom) beyond the cutoff, and anew once an atom has moved by half of it."""

SPARE = 1.2
"""Room of a list, in multiples of the largest number of pairs at hand."""


def all_pairs(positions: Any) -> Pairs:
    """Every pair of atoms at positions (N, 3)."""
    i, j = np.triu_indices(len(positions), 1)
    return Pairs(i, j, positions[j] - positions[i], np.ones(len(i), bool))


class NearPairs:
    """Pairs of a system's atoms within a cutoff, by a list that is kept from step to step."""

    def __init__(self, system: System, cutoff: float):
        """Raises ValueError, in a sentence, for a cell in which an atom sees a neighbour in two images."""
        from jax_md import partition, space  # which computes when it is imported: after `devices.use_cores`

        self.cutoff, self.n_atoms = cutoff, len(system)
        if system.cell is None:
            self.displacement = displacement = space.free()[0]
        else:
            _check_walls(system.cell, cutoff + SKIN)
            self.displacement, displacement = (_within(system.cell, dtype) for dtype in (np.float64, np.float32))
        # Without jax-md's cells: their room would be a second thing to overflow. All distances are looked at for a new list.
        self.lists = partition.neighbor_list(
            displacement,
            1.0,
            cutoff,
            SKIN,
            disable_cell_list=True,
            format=partition.NeighborListFormat.OrderedSparse,
        )

    def __call__(self, positions: Any, kept: Any) -> tuple[Pairs, Any]:
        """The pairs at positions (N, 3), and the list, made anew where atoms have moved."""
        kept = _refreshed(jax.lax.stop_gradient(positions).astype(np.float32), kept)
        there = kept.idx[0] < self.n_atoms
        i, j = jnp.minimum(kept.idx, self.n_atoms - 1)
        return Pairs(i, j, jax.vmap(self.displacement)(positions[j], positions[i]), there), kept

    def with_room(self, positions: np.ndarray) -> Any:
        """A list for the first of positions (R, N, 3) with room for the pairs of each."""
        with jax.enable_x64(True):
            most = int(jax.lax.map(self._count, jnp.asarray(positions, np.float64)).max())
            # In steps of N: what is compiled for one list then serves the next.
            room = min(-(-int(SPARE * most) // self.n_atoms) + 1, (self.n_atoms - 1) // 2 + 1) * self.n_atoms
        first = positions[0].astype(np.float32)
        with jax.enable_x64(False):
            small = self.lists.allocate(first)
            empty = jnp.full((2, room), self.n_atoms, small.idx.dtype)
            large = replace(small, idx=empty, max_occupancy=room, reference_position=first + SKIN)
            return jax.device_get(_updated(first, large))

    def _count(self, positions: Any) -> Any:
        """How many pairs a list would have."""
        of_all = jax.vmap(jax.vmap(self.displacement, (None, 0)), (0, None))
        apart = of_all(positions, positions)
        return (((apart**2).sum(-1) < (self.cutoff + SKIN) ** 2).sum() - self.n_atoms) // 2


def overflowed(kept: Any) -> Any:
    """Whether a list had too little room, once."""
    return kept.did_buffer_overflow


@jax.custom_batching.custom_vmap
def _refreshed(positions: Any, kept: Any) -> Any:
    """A list made anew where an atom has moved too far."""
    return _updated(positions, kept)


def _updated(positions: Any, kept: Any) -> Any:
    # jax-md counts in 32-bit integers, and in 64-bit mode puts 64-bit ones among them, which JAX will refuse.
    with jax.enable_x64(False):
        return kept.update(positions)


@_refreshed.def_vmap
def _refreshed_together(count: int, batched: Any, positions: Any, kept: Any) -> tuple[Any, Any]:
    """Of replicas: the same for each, but no list is made while none is needed; a vmap alone would make all at every step."""

    def of_each(value: Any, has_axis: bool) -> Any:
        return value if has_axis else jnp.broadcast_to(value, (count, *jnp.shape(value)))

    positions, kept = (jax.tree.map(of_each, *both) for both in zip((positions, kept), batched, strict=True))
    moved = ((positions - kept.reference_position) ** 2).sum(-1)
    needed = moved.max() > 0.99 * (0.5 * SKIN) ** 2
    after = jax.lax.cond(needed, jax.vmap(_updated), lambda _, k: k, positions, kept)
    return after, jax.tree.map(lambda _: True, after)


def _within(cell: np.ndarray, dtype: Any) -> Callable[[Any, Any], Any]:
    """(R_j, R_i) -> R_j - R_i to the nearest image."""
    from jax_md import space

    return space.periodic_general(cell.T.astype(dtype), fractional_coordinates=False)[0]


def _check_walls(cell: np.ndarray, reach: float) -> None:
    """ValueError, in a sentence, for a cell of which planes are nearer to each other than twice what an atom sees."""
    apart = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    if apart.min() < 2 * reach:
        raise ValueError(
            f"expected a cell whose planes are {2 * reach:g} angstrom apart or more, so that no atom sees another one twice,"
            f" found {apart.min():.3g}; repeat the cell"
        )
