"""Covariances of energies and forces where atoms see inverse distances: a pair of atoms moves two atoms, not all of them.

The features z_ab of a geometry's pairs and their derivatives G[a, b] = dz_ab/dR_a = -dz_ab/dR_b are a symmetric and an
antisymmetric table of the atoms. With J = dz/dR, an image p of geometry j, whose pair ab is the original's p(a) p(b), and q
the inverse of p, sums over pairs in `joint` are sums over the partners of an atom, and J_i^T J_j is like a graph's Laplacian:

    U[a] = sum_b G_i[a, b] (z_i[a, b] - z_j[p(a), p(b)])           V[c] = sum_d G_j[c, d] (z_i[q(c), q(d)] - z_j[c, d])
    (J_i^T J_j)[a, c] = -G_i[a, q(c)] G_j[p(a), c]^T               + sum_b G_i[a, b] G_j[p(a), p(b)]^T where c = p(a)

with all derivatives those with respect to the original's atoms. So a pair of geometries costs some (3N)^2 operations an image,
where products of Jacobians cost N (N - 1) / 2 times as many, and no Jacobian is ever made.

Geometries come last in all arrays, where processors work on several numbers at once:

| symbol         | array        | shape                                                                  |
| -------------- | ------------ | ---------------------------------------------------------------------- |
| z, G           | ``z``, ``g`` | (N, N, n), (N, N, 3, n)                                                |
| U, V           | ``u``, ``v`` | (N, 3, n, m)                                                           |
| cov(F_i, F_j)  | ``forces``   | (N, N, 3, 3, n, m), atoms of the left geometry and of the right one    |
| v_A phi, ...   | ``profile``, ``slope``, ``curvature`` | (a, n, m), see `joint.Process.radial_parts`   |
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.machine.precision import Array


class Distances(NamedTuple):
    """Inverse distances of n geometries, which all atoms see: one group of atoms, where other features have several."""

    z: Array
    """(1, n, E) of pairs (a, b), a < b, row by row; unit length scale"""
    slopes: Array
    """(1, n, E, 3) dz/dR_a, 1/angstrom; dz/dR_b is minus that"""

    def weighted(self, weights):
        """With every pair multiplied by its weight (E,)."""
        return Distances(self.z * weights, self.slopes * weights[:, None])

    def embedded(self, kernel):
        """As a kernel embeds them that treats every feature by itself; the first axis of its arrays is that of groups."""

        def one_group(kernel, z, slopes):
            return kernel.embed(z), jax.vmap(lambda s: jax.jvp(kernel.embed, (z,), (s,))[1], -1, -1)(slopes)

        return Distances(*jax.vmap(one_group)(kernel, *self))

    def covariances(self, process, right, wanted):
        """Of this set's observations with those of another, {(target, target): (M, M', n, m)} for all that are ``wanted``.

        Summed over the images of the other set by the permutations of a `joint.Process`.
        """
        n_atoms = process.permutations.shape[1]
        here, there = _tables(self, n_atoms), _tables(right, n_atoms)
        own = process.variance[0], process.inverse_square[0]

        # Nothing that is made for an image is kept for derivatives: it would be as many times the matrix as there are images.
        @jax.checkpoint
        def add_image(sums, image):
            permutation, columns = image
            radial = process.radial_parts(*own, self.z[0], right.z[0][:, columns], wanted)
            return _add(sums, permutation, radial, here, there), None

        shapes = {"atomic_energies": (n_atoms,), "energy": (1,), "forces": (3 * n_atoms,)}
        n_m = self.z.shape[1], right.z.shape[1]
        nothing = {pair: jnp.zeros((*shapes[pair[0]], *shapes[pair[1]], *n_m)) for pair in wanted}
        if ("forces", "forces") in wanted:
            nothing["forces", "forces"] = jnp.zeros((n_atoms, n_atoms, 3, 3, *n_m))
        sums = jax.lax.scan(add_image, nothing, (process.permutations, process.columns))[0]
        if ("forces", "forces") in wanted:
            forces = sums["forces", "forces"].swapaxes(1, 2)
            sums["forces", "forces"] = forces.reshape(3 * n_atoms, 3 * n_atoms, *n_m)
        return sums


def _tables(seen, n_atoms):
    """z (N, N, n) and G (N, N, 3, n)."""
    a, b = np.triu_indices(n_atoms, 1)
    number, sign = np.zeros((2, n_atoms, n_atoms), int)
    number[a, b] = number[b, a] = np.arange(len(a))
    sign[a, b], sign[b, a] = 1, -1
    z = jnp.abs(sign)[..., None] * seen.z[0].T[number]
    return z, sign[..., None, None] * seen.slopes[0].transpose(1, 2, 0)[number]


def _add(sums, permutation, radial, left, right):
    """Sums with the covariance of one image added."""
    (profile, slope, curvature), inverse, atoms = radial, jnp.argsort(permutation), np.arange(len(permutation))
    targets = {target for pair in sums for target in pair}
    new: dict[tuple[str, str], Array] = {}
    if "atomic_energies" in targets:
        new |= {
            ("atomic_energies", "energy"): profile[:, None],
            ("energy", "atomic_energies"): profile[None],
        }
    if "energy" in targets:
        new["energy", "energy"] = profile.sum(0)[None, None]
    if "forces" in targets:
        (z_i, g_i), (z_j, g_j) = left, right
        z_p, z_q = z_j[permutation][:, permutation], z_i[inverse][:, inverse]
        u = jnp.einsum("abxi,abi->axi", g_i, z_i)[..., None] - jnp.einsum("abxi,abj->axij", g_i, z_p)
        v = jnp.einsum("cdyj,cdi->cyij", g_j, z_q) - jnp.einsum("cdyj,cdj->cyj", g_j, z_j)[:, :, None]
        n_m = u.shape[2:]
        flat_u, flat_v = u.reshape(-1, *n_m), v.reshape(-1, *n_m)
        new |= {
            ("atomic_energies", "forces"): 2 * slope[:, None] * flat_v,
            ("energy", "forces"): 2 * slope.sum(0) * flat_v[None],
            ("forces", "atomic_energies"): -2 * slope * flat_u[:, None],
            ("forces", "energy"): -2 * slope.sum(0) * flat_u[:, None],
        }
    total = {pair: sums[pair] + new[pair] for pair in sums if pair in new}
    if ("atomic_energies", "atomic_energies") in sums:
        own = sums["atomic_energies", "atomic_energies"]
        total["atomic_energies", "atomic_energies"] = own.at[atoms, permutation].add(profile)
    if ("forces", "forces") in sums:
        of_right = g_j[permutation]
        s, c = 2 * slope.sum(0), 4 * curvature.sum(0)
        product = g_i[:, inverse][:, :, :, None, :, None] * of_right[:, :, None, :, None]
        forces = sums["forces", "forces"] + s * product - c * u[:, None, :, None] * v[None, :, None]
        diagonal = jnp.einsum("abxi,abyj->axyij", g_i, of_right[:, permutation])
        total["forces", "forces"] = forces.at[atoms, permutation].add(-s * diagonal)
    return total
