"""What an atom sees of the atoms around it, whichever molecule they belong to: pure JAX functions of one configuration.

The representation is that of FCHL19 (Christensen et al., J. Chem. Phys. 152, 044107 (2020), doi:10.1063/1.5126701), with its
numbers, but for the angle. For an atom i, elements e and f, and radii R_s evenly up to the cutoff r_c,

    G_e(s)    = sum_j  f(r_ij) r_ij^-1.8 exp(-(ln R_s - mu)^2 / 2 w) / (R_s sqrt(2 pi w))
                mu = -w / 2 + ln r_ij,  w = ln(1 + ETA_PAIRS / r_ij^2)
    G_ef(s,t) = sum_jk f(r_ij) f(r_ik) f(r_jk) (1 + 3 cos i cos j cos k) / (r_ij r_ik r_jk)^0.57
                SCALE exp(-ETA_TRIPLES ((r_ij + r_ik) / 2 - R_s)^2) T_t(cos i)
    f(r)      = (1 + cos(pi r / r_c)) / 2, zero beyond

over the atoms j of element e, and pairs of atoms j, k of elements e and f; cos i is that of the angle at i. T_t are Chebyshev's
polynomials of degree 0, 1, 2, where FCHL19 has cos i and sin i: the sine has no derivative where three atoms stand in line, and
the polynomials err less (ethanol, 50 geometries: forces 40 instead of 44 meV/A, docs/measurements/2026-11-environments.md).

Among the surroundings that an element's atoms have in the training data these numbers vary along few directions. `Environments`
keeps those, and the length of what they leave out, so that surroundings of another kind are never taken for known ones.
"""

from dataclasses import dataclass
from functools import partial
from itertools import combinations, combinations_with_replacement

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.data.content import numbers
from iqagp_jax.machine.precision import Array

CUTOFF = 8.0
"""r_c, angstrom."""

RADII_OF_PAIRS, ETA_PAIRS, POWER_OF_PAIRS = 24, 0.32, 1.8

RADII_OF_TRIPLES, ETA_TRIPLES, POWER_OF_TRIPLES = 20, 2.7, 0.57

SCALE = 6 * 13.4 * np.exp(-0.5 * np.pi**2) * np.sqrt(ETA_TRIPLES / np.pi)
"""Weight of triples beside pairs: three times FCHL19's, with what its angle's width and its Gaussians contribute. It makes the
labels likelier, and forces err by 38.5 instead of 40 meV/A (ethanol, 50 geometries)."""

DEGREES = 3
"""Chebyshev's polynomials."""

DIRECTIONS = 64
"""Kept at most. Of ethanol 64 err by 1% more than all 312, 32 by 7%."""

NEAR = 0.01
"""Lengths of what is left out, in units of the spread, that count as none."""


def representation(species, positions):
    """G_e(s) and G_ef(s, t) of every atom, (N, D), from positions (N, 3) in angstrom."""
    elements = sorted(set(species))
    of_element = np.equal.outer(species, elements).astype(float)
    n, alone = len(species), np.eye(len(species), dtype=bool)
    apart = positions[:, None] - positions
    r = jnp.sqrt(jnp.where(alone, 1.0, (apart**2).sum(-1)))
    near = jnp.where(alone | (r > CUTOFF), 0.0, 0.5 + 0.5 * jnp.cos(np.pi * r / CUTOFF))
    pairs = jnp.einsum("ijs,je->ies", _of_pairs(r, near), of_element).reshape(n, -1)
    if n < 3:
        return pairs
    return jnp.concatenate([pairs, _of_triples(r, near, *_triples(species, elements))], axis=1)


def size(species):
    """D."""
    e = len(set(species))
    return e * RADII_OF_PAIRS + (e * (e + 1) // 2 * RADII_OF_TRIPLES * DEGREES if len(species) > 2 else 0)


def size_of_triples(n_atoms):
    """Gaussians of all triples of a molecule: what the representation costs."""
    return max(1, n_atoms * (n_atoms - 1) * (n_atoms - 2) // 2 * RADII_OF_TRIPLES)


def _radii(count):
    return CUTOFF * np.arange(1, count + 1) / count


def _of_pairs(r, near):
    """(N, N, s)"""
    radii, width = _radii(RADII_OF_PAIRS), jnp.log1p(ETA_PAIRS / r**2)[..., None]
    middle = jnp.log(r)[..., None] - width / 2
    profile = jnp.exp(-((np.log(radii) - middle) ** 2) / (2 * width)) / (radii * jnp.sqrt(2 * np.pi * width))
    return (near * r**-POWER_OF_PAIRS)[..., None] * profile


def _triples(species, elements):
    """Atoms i, j, k (N, T) of all pairs j, k beside an atom i, and 1 at the pair's elements (N, T, P)."""
    n = len(species)
    others = np.array([list(combinations([b for b in range(n) if b != a], 2)) for a in range(n)])
    kinds = list(combinations_with_replacement(elements, 2))
    kind = np.array([[kinds.index(tuple(sorted((species[j], species[k])))) for j, k in row] for row in others])
    i = np.broadcast_to(np.arange(n)[:, None], kind.shape)
    return (i, *np.moveaxis(others, 2, 0)), np.eye(len(kinds))[kind]


def _of_triples(r, near, atoms, kinds):
    """(N, P s t)"""
    sides = tuple((atoms[a], atoms[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    (ij, ik, jk), inside = (r[side] for side in sides), jnp.prod(jnp.stack([near[side] for side in sides]), axis=0)
    at_i, at_j, at_k = _cosine(ij, ik, jk), _cosine(ij, jk, ik), _cosine(ik, jk, ij)
    weight = SCALE * inside * (1 + 3 * at_i * at_j * at_k) / (ij * ik * jk) ** POWER_OF_TRIPLES
    radial = jnp.exp(-ETA_TRIPLES * (0.5 * (ij + ik)[..., None] - _radii(RADII_OF_TRIPLES)) ** 2)
    angular = jnp.stack([jnp.ones_like(at_i), at_i, 2 * at_i**2 - 1], axis=-1)
    weighted = weight[..., None, None] * kinds[..., None] * angular[:, :, None]
    return jnp.einsum("its,itpa->ipsa", radial, weighted).reshape(len(r), -1)


def _cosine(a, b, opposite):
    """Of the angle between sides a and b of a triangle."""
    return (a**2 + b**2 - opposite**2) / (2 * a * b)


@partial(jax.tree_util.register_dataclass, data_fields=["middle", "axes"], meta_fields=["species"])
@dataclass(frozen=True)
class Environments:
    """The surroundings of every atom, in units of what those of its element spread by: (N, 3) angstrom -> (N, d + 1).

    With c = (G - middle) / spread of an atom of element e the first d numbers are q = A_e c, the rows of A_e at right angles
    and of length one, and the last is sqrt(|c|^2 - |q|^2 + NEAR^2).
    """

    species: tuple[str, ...]
    middle: Array
    """(elements, D) mean over the training data; elements in the order of the alphabet"""
    axes: Array
    """(elements, d, D), A_e / spread, rows of the length 1 / spread; rows of zeros where the data vary along fewer"""

    @classmethod
    def of(cls, species, positions):
        """What the surroundings of each element's atoms vary along most, among geometries (n, N, 3)."""
        g = np.asarray(jax.lax.map(partial(representation, species), jnp.asarray(positions), batch_size=16))
        middle, axes = [], []
        for element in sorted(set(species)):
            points = g[:, np.equal(species, element)].reshape(-1, g.shape[2])
            middle.append(points.mean(0))
            centred = points - middle[-1]
            lengths, directions = np.linalg.svd(centred, full_matrices=False)[1:]
            felt = lengths[:DIRECTIONS] > np.finfo(float).eps * np.sqrt((points**2).sum())
            axes.append(np.zeros((DIRECTIONS, g.shape[2])))
            axes[-1][: felt.sum()] = directions[: felt.sum()] / np.sqrt((centred**2).sum(1).mean()) if felt.any() else 0.0
        return cls(tuple(species), np.array(middle), np.array(axes))

    @property
    def groups(self):
        """The numbers of each element's atoms, in the order of the alphabet."""
        return tuple(tuple(np.flatnonzero(np.equal(self.species, e)).tolist()) for e in sorted(set(self.species)))

    def __call__(self, positions):
        """(N, 3) angstrom -> (N, d + 1)."""
        g = representation(self.species, positions)
        parts = [self._of_element(k, g[np.array(group)]) for k, group in enumerate(self.groups)]
        return jnp.concatenate(parts)[np.argsort(np.concatenate(self.groups))]

    def _of_element(self, k, g):
        axes, centred = jnp.asarray(self.axes[k], g.dtype), g - jnp.asarray(self.middle[k], g.dtype)
        inverse_spread = jnp.sqrt((axes**2).sum(1).max())
        q = centred @ axes.T
        left_out = (centred**2).sum(1) * inverse_spread**2 - (q**2).sum(1)
        return jnp.concatenate([q, jnp.sqrt(left_out + NEAR**2)[:, None]], axis=1)

    def check_fit(self, species):
        """ValueError, in a sentence, unless they are of these atoms; for what was read from a file."""
        if self.species != species:
            raise ValueError(f"expected the surroundings of {' '.join(species)}, found those of {' '.join(self.species)}")
        shape = len(set(species)), size(species)
        numbers("mean surroundings", self.middle, shape)
        numbers("directions of surroundings", self.axes, (shape[0], None, shape[1]))
