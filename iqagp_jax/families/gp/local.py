"""A process of atoms' surroundings, shared by all atoms of an element, beside that of the molecule's inverse distances.

The molecule's energy has a part that is a sum over atoms A of one function of their `environments` q_A for each element e,

    E_A(R) += g_e(q_A(R)),    cov(g_e(q), g_e(q')) = v exp(-|q - q'|^2 / 2 l^2)

so that an atom learns from all atoms of its element in all geometries, whatever is far away; and no permutations are needed,
for equal atoms see the same. Covariances are those of `joint` summed over pairs of atoms of an element, A of the left geometry
and B of the right one: with z = q / l, J = dz/dR (d, 3N), d = z_A - z_B, U = J_A^T d and V = J_B^T d,

    cov(F_i, F_j) = v sum_AB (-2 phi' J_A^T J_B - 4 phi'' U V^T)

where the first product is made once an atom A, of J_A with the sum over B. Covariances of both processes add, and so do their
predictions, by the same weights of the observations (Rasmussen and Williams, section 2.7, for sums; Bartok and Csanyi,
doi:10.1002/qua.24927, for processes of atoms' surroundings learned from the sum).
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.data.content import SMALLEST, numbers
from iqagp_jax.families.gp.distances import Distances
from iqagp_jax.families.gp.environments import Environments
from iqagp_jax.families.gp.kernels import RBF
from iqagp_jax.families.gp.regression import squared_distances
from iqagp_jax.machine.precision import Array


@partial(jax.tree_util.register_dataclass, data_fields=["variance"], meta_fields=["groups"])
@dataclass(frozen=True)
class LocalProcess:
    """The prior of the parts g_e."""

    variance: Array
    """v, eV^2"""
    groups: tuple[tuple[int, ...], ...]
    """the numbers of each element's atoms"""


@partial(jax.tree_util.register_dataclass, data_fields=["environments", "lengthscale", "share"], meta_fields=[])
@dataclass(frozen=True)
class Local:
    """What a model has of it."""

    environments: Environments
    lengthscale: np.ndarray
    """l (), in units of what the surroundings of an element spread by"""
    share: np.ndarray
    """v / mean over the atoms of the other process' v_A, ()"""

    def of(self, lengthscale, share):
        """With another length scale and share."""
        return replace(self, lengthscale=np.asarray(lengthscale), share=np.asarray(share))

    def process(self, signal_variance):
        """The `LocalProcess` beside one of these variances (N,)."""
        return LocalProcess(self.share * signal_variance.mean(), self.environments.groups)

    def __call__(self, positions):
        """z = q / l of every atom, (N, d)."""
        return self.environments(positions) / jnp.asarray(self.lengthscale, positions.dtype)

    def see(self, positions):
        """`Surroundings` of positions (n, N, 3)."""
        z = jax.lax.map(self, positions, batch_size=64)
        slopes = jax.lax.map(jax.jacfwd(self), positions, batch_size=8)
        return Surroundings(z[None], slopes.reshape(*z.shape, -1)[None])

    def atomic_energies(self, points, positions):
        """E_A (N,) of positions (N, 3), from what `expansion` gives: the plain formula."""
        z, same = self(positions), np.zeros((positions.shape[0],) * 2)
        for group in self.environments.groups:
            same[np.ix_(group, group)] = 1.0

        def of_pair(here, there, a, b):
            """sum_i a_i k(here, there_i) + b_i . dk(here, there_i)/dthere_i"""

            def of_point(x, a, b):
                value, along = jax.jvp(lambda x: RBF.profile(((here - x) ** 2).sum()), (x,), (b,))
                return a * value + along

            return jax.vmap(of_point)(there, a, b).sum()

        pairs = jax.vmap(jax.vmap(of_pair, (None, 0, 0, 0)), (0, None, None, None))
        return (same * pairs(z, *points)).sum(1)

    def check_fit(self, species):
        """ValueError, in a sentence, unless it is of these atoms; for what was read from a file."""
        self.environments.check_fit(species)
        numbers("length scale of surroundings", self.lengthscale, (), SMALLEST)
        numbers("share of surroundings", self.share, (), least=0)


class Surroundings(NamedTuple):
    """What atoms see of n geometries; the first axis is there for `joint`, which slices the second."""

    z: Array
    """(1, n, N, d)"""
    jacobian: Array
    """(1, n, N, d, 3N) dz/dR, 1/angstrom"""

    def covariances(self, process, right, wanted):
        """Of this set's observations with those of another, {(target, target): (M, M', n, m)} for all that are ``wanted``."""
        n, n_atoms = self.z.shape[1:3]
        size = {"atomic_energies": n_atoms, "energy": 1, "forces": 3 * n_atoms}
        sums = {(a, b): jnp.zeros((size[a], size[b], n, right.z.shape[1])) for a, b in wanted}
        for group in map(np.array, process.groups):
            there = right.z[0][:, group], right.jacobian[0][:, group]

            def add_atom(sums, atom, group=group, there=there):
                blocks = _of_atom((self.z[0][:, atom], self.jacobian[0][:, atom]), there, wanted)
                for (a, b), block in blocks.items():
                    rows, columns = atom[None] if a == "atomic_energies" else None, group if b == "atomic_energies" else None
                    sums = {**sums, (a, b): _plus(sums[a, b], process.variance * block, rows, columns)}
                return sums, None

            sums = jax.lax.scan(add_atom, sums, group)[0]
        return sums


def _plus(total, block, rows, columns):
    """A table with a block added in these rows and columns, None for all."""
    if rows is None:
        return total + block if columns is None else total.at[:, columns].add(block)
    return total.at[rows].add(block) if columns is None else total.at[rows[:, None], columns].add(block)


def _of_atom(left, right, wanted):
    """Blocks of unit variance of one atom A of n geometries, z (n, d) and J (n, d, 3N), with the b atoms of its element in m
    others, (m, b, d) and (m, b, d, 3N): (1, 1 or b or 3N, n, m), (3N, ..., n, m)."""
    (x, j), (y, k) = left, right
    s = squared_distances(x, y.reshape(-1, y.shape[-1])).reshape(len(x), *y.shape[:2])
    profile, slope, curvature = RBF.profile(s), RBF.slope(s), RBF.curvature(s)
    targets, blocks = {target for pair in wanted for target in pair}, {}
    if "forces" in targets:
        u = jnp.einsum("ndx,nd->nx", j, x)[:, :, None, None] - jnp.einsum("ndx,mbd->nxmb", j, y)
        v = jnp.einsum("nd,mbdy->nmby", x, k) - jnp.einsum("mbd,mbdy->mby", y, k)
    for a, b in wanted:
        if (a, b) == ("forces", "forces"):
            of_right = jnp.einsum("nmb,mbdy->nmdy", -2 * slope, k)
            blocks[a, b] = jnp.einsum("ndx,nmdy->xynm", j, of_right)
            blocks[a, b] += jnp.einsum("nxmb,nmby->xynm", u, -4 * curvature[..., None] * v)
        elif a == "forces":
            each = jnp.moveaxis(-2 * slope[:, None] * u, (1, 3), (0, 1))
            blocks[a, b] = each if b == "atomic_energies" else each.sum(1, keepdims=True)
        elif b == "forces":
            blocks[a, b] = jnp.einsum("nmb,nmby->ynm", 2 * slope, v)[None]
        else:
            each = jnp.moveaxis(profile, 2, 0)[None]
            blocks[a, b] = each if b == "atomic_energies" else each.sum(1, keepdims=True)
    return blocks


class Together(NamedTuple):
    """What is seen of n geometries where surroundings count, too: covariances are those of both processes."""

    distances: Distances
    surroundings: Surroundings

    @property
    def z(self):
        """The features of all pairs, (1, n, E)."""
        return self.distances.z

    def weighted(self, weights):
        """With every pair multiplied by its weight (E,)."""
        return self._replace(distances=self.distances.weighted(weights))

    def embedded(self, kernel):
        """As a kernel of the inverse distances embeds them."""
        return self._replace(distances=self.distances.embedded(kernel))

    def covariances(self, process, right, wanted):
        """Of this set's observations with those of another, {(target, target): (M, M', n, m)} for all that are ``wanted``."""
        whole = self.distances.covariances(process, right.distances, wanted)
        local = self.surroundings.covariances(process.local, right.surroundings, wanted)
        return {pair: whole[pair] + local[pair] for pair in wanted}
