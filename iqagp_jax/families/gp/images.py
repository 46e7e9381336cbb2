"""Products with all images of a training geometry for the price of a few.

A permutation p of equal atoms turns a geometry's features z, one for every pair of atoms, into those of an image, z_p = z[c_p].
Some permutations move the atoms of one orbit only, such as the rotations g, h of two methyl groups; any other is one of a few
t followed by such, p = t g h. A pair of atoms of which g moves none is the same in all images that differ in g only. So
products with a vector u are sums over the classes C of pairs with atoms of the same orbits,

    u . z_p = sum_C d_C[t and those of g, h that move C]        d_C[.] = sum_{e in C} u_e z[c_p(e)]

For capped glycine, 19 atoms and 18 = 2 x 3 x 3 permutations, the d_C are 767 products of numbers instead of 18 x 171.

| symbol | array               | shape                                                                     |
| ------ | ------------------- | ------------------------------------------------------------------------- |
| P      | ``Images.count``    | images of a geometry, the product of ``Images.shape``                     |
| z      | what `spread` gives | of every class (..., columns, rows n) for n geometries, a row for every t, g, h that matters |
| u      |                     | (..., E), its columns in ``Images.order``, class after class              |
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import prod
from operator import getitem

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.system.symmetry import orbits

WORTH = 2
"""Images are taken apart only where it makes so many times fewer products: sums of many small ones cost, too."""


@jax.tree_util.register_static
@dataclass(frozen=True)
class Images:
    """How the images of a geometry follow from each other, and the columns of its features fall into classes."""

    shape: tuple[int, ...]
    """how many t, g, h, ... there are"""
    number: tuple[int, ...]
    """which of the permutations (P,) is t g h, the last running fastest"""
    order: tuple[int, ...]
    """columns (E,), class after class"""
    classes: tuple[tuple[int, tuple[int, ...]], ...]
    """of every class how many columns it has, and its part of ``shape``: 1 in place of what does not move it"""

    @classmethod
    def of(cls, permutations, pairs):
        """Of features of the ``pairs`` (E, 2) of atoms; one image and one class where more make no fewer products."""
        orbit = orbits(permutations)
        moved = permutations != np.arange(len(orbit))
        own = {k: permutations[~moved[:, orbit != k].any(1)] for k in range(orbit.max() + 1)}
        own = {k: elements for k, elements in own.items() if len(elements) > 1}
        number, seen = [], {tuple(p): k for k, p in enumerate(permutations.tolist())}
        for p in permutations:
            if tuple(p.tolist()) in seen:
                number += [seen.pop(tuple(reduce(getitem, rest, p).tolist())) for rest in product(*own.values())]
        shape = (len(number) // prod(map(len, own.values())), *map(len, own.values()))
        members = defaultdict(list)
        for e, pair in enumerate(pairs):
            felt = moved[:, pair].any(), *(k in orbit[pair] for k in own)
            members[tuple(size if here else 1 for size, here in zip(shape, felt, strict=True))].append(e)
        if WORTH * sum(len(columns) * prod(rows) for rows, columns in members.items()) > len(permutations) * len(pairs):
            return cls.none(len(pairs))
        order = tuple(e for columns in members.values() for e in columns)
        return cls(shape, tuple(number), order, tuple((len(columns), rows) for rows, columns in members.items()))

    @classmethod
    def none(cls, size):
        """Points that are not images, of E features."""
        return cls((), (0,), tuple(range(size)), ((size, ()),))

    @property
    def count(self):
        """P."""
        return len(self.number)

    def _by_class(self):
        """Of every class the slice of its columns, and its part of ``shape``."""
        start = 0
        for size, rows in self.classes:
            yield slice(start, start + size), rows
            start += size

    def spread(self, z):
        """Of every class (..., columns, rows n) from the features (..., P, n, E) of all images; both orders are ours."""
        *batch, _, n, _ = z.shape
        z, parts = z.reshape(*batch, *self.shape, n, z.shape[-1]), []
        for here, rows in self._by_class():
            different = z[(..., *(slice(size) for size in rows), slice(None), here)]
            parts.append(jnp.moveaxis(different, -1, len(batch)).reshape(*batch, here.stop - here.start, -1))
        return tuple(parts)

    def dot(self, u, z):
        """u . z_p for u (..., E): (..., P n)."""
        batch = u.shape[:-1]
        classes = zip(z, self._by_class(), strict=True)
        return sum((u[..., here] @ part).reshape(*batch, *rows, -1) for part, (here, rows) in classes).reshape(*batch, -1)

    def pull(self, w, z):
        """sum_p w_p z_p for w (..., P n): (..., E), the transpose of `dot`."""
        batch = w.shape[:-1]
        # Otherwise XLA would evaluate all that leads to w anew for every class.
        w = jax.lax.optimization_barrier(w).reshape(*batch, *self.shape, -1)
        slopes = []
        for part, (_, rows) in zip(z, self._by_class(), strict=True):
            by_row = w
            for axis, (size, kept) in enumerate(zip(self.shape, rows, strict=True), start=len(batch)):
                if kept < size:
                    by_row = sum(jnp.split(by_row, size, axis))
            slopes.append(by_row.reshape(*batch, -1) @ part.T)
        return jnp.concatenate(slopes, axis=-1)
