"""Joint Gaussian process of atomic energies, total energies and forces of one molecule.

Every atom's energy is a Gaussian process of its own, E_A(R) = m_A(R) + g_A(z_A(R)), cov(g_A, g_A') = v_A phi(s / l_A^2),
s = |z - z'|^2. The total energy is their sum and the forces are minus its gradient, so that all observations are jointly
Gaussian. With d = z_i - z_j, J_i = dz/dR at geometry i (E, 3N), U = J_i^T d, V = J_j^T d and phi', phi'' the slope and the
curvature of the profile,

    cov(E_A,i, E_A,j) = v_A phi                     cov(E_A,i, F_j) =  2 v_A phi' V / l_A^2
    cov(F_i, F_j) = sum_A v_A (-2 phi' J_i^T J_j / l_A^2 - 4 phi'' U V^T / l_A^4)

and what concerns the total energy is summed over the atoms (Chmiela et al., doi:10.1126/sciadv.1603015, for the forces;
Rasmussen and Williams, section 9.4, for derivatives). Observations of a geometry stand together, in the order of
`TARGETS`: N atomic energies, one energy, 3N force components, those of them that are asked for.

Symmetry: where permutations p of equal atoms leave the energy as it is, E(R[p]) = E(R), the covariance is summed over the
images R_j[p] of one of its geometries (Chmiela et al., doi:10.1038/s41467-018-06169-2), for kernels that are the same for
equivalent atoms. That is what copies of the training data would amount to, at the cost of the originals.

| symbol      | array           | shape                                                                  |
| ----------- | --------------- | ---------------------------------------------------------------------- |
| z, J        | `Seen`          | (n, E), (n, E, 3N); one set for every group of atoms that see the same |
| v_A, 1/l_A^2| `Process`       | (G, a) for G groups of a atoms                                         |
| p           | `Process`       | (P, N)                                                                 |
| M           |                 | observations of one geometry                                           |
"""

import os
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cholesky, solve_triangular

from iqagp_jax.families.gp.features import InverseDistances
from iqagp_jax.families.gp.regression import squared_distances
from iqagp_jax.machine.precision import Array

TARGETS = ("atomic_energies", "energy", "forces")


class Seen(NamedTuple):
    """What the kernel sees of n geometries, for each of G groups of atoms."""

    z: Array
    """(G, n, E) embedded features, unit length scale"""
    jacobian: Array
    """(G, n, E, 3N) derivatives of z with respect to the positions, 1/angstrom"""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["variance", "inverse_square", "permutations", "columns"],
    meta_fields=["radial"],
)
@dataclass(frozen=True)
class Process:
    """The prior. Groups of atoms times atoms of a group are the molecule's atoms in their order."""

    radial: type
    """kind of `kernels.Radial`: profile, slope and curvature"""
    variance: Array
    """v_A, (G, a) eV^2"""
    inverse_square: Array
    """1 / l_A^2, (G, a)"""
    permutations: Array
    """p, (P, N); the identity alone where there is no symmetry"""
    columns: Array
    """(P, E), z(R[p]) = z(R)[columns]"""

    @classmethod
    def of(cls, kernel, features, variance, permutations=None):
        """The process of the atoms' ``kernel`` (arrays with the atoms first) with v (N,), grouped as `seen` does."""
        radial, n = type(kernel), len(variance)
        permutations = np.arange(n)[None] if permutations is None else permutations
        if isinstance(features, InverseDistances):
            inverse_square = (kernel.lengthscale[:1] / kernel.lengthscale)[None] ** 2
            return cls(radial, variance[None], inverse_square, permutations, features.columns(permutations))
        columns = np.arange(jax.eval_shape(lambda r: kernel.embed(features(r)), jnp.zeros((n, 3))).shape[-1])
        return cls(radial, variance[:, None], np.ones((n, 1)), permutations, columns[None])


def count(targets, n_atoms):
    """Observations M of one geometry."""
    return sum({"atomic_energies": n_atoms, "energy": 1, "forces": 3 * n_atoms}[target] for target in targets)


def _columns(targets, n_atoms):
    """(target, where its observations stand among the M of a geometry), in order."""
    start = 0
    for target in (t for t in TARGETS if t in targets):
        stop = start + count((target,), n_atoms)
        yield target, slice(start, stop)
        start = stop


def seen(features, positions):
    """`Seen` of the features of positions (n, N, 3) as they are, before a kernel embeds them.

    With inverse distances all atoms see the same up to the order of the columns, and so they do with an isotropic kernel: one
    group, else N.
    """

    def groups(r):
        return features(r)[: 1 if isinstance(features, InverseDistances) else None]

    x = jax.lax.map(groups, positions, batch_size=64)
    jacobian = jax.lax.map(jax.jacrev(groups), positions, batch_size=64)
    return Seen(x.swapaxes(0, 1), jacobian.reshape(*x.shape, -1).swapaxes(0, 1))


def embedded(kernel, points):
    """`Seen` as the atoms' ``kernel`` embeds those of the plain features, that of each group's first atom."""
    kernel = jax.tree.map(lambda leaf: leaf[: len(points.z)], kernel)

    def one_group(kernel, x, jacobian):
        slopes = jax.vmap(jax.jacfwd(kernel.embed))(x)
        return kernel.embed(x), slopes @ jacobian

    return Seen(*jax.vmap(one_group)(kernel, *points))


def covariance(process, left, right, targets, right_targets=None):
    """Covariance of the observations of two sets of geometries, (n, M, m, M').

    ``right_targets`` are those of the right set, where they are others.
    """
    blocks = partial(_blocks, process, left, rows_of=targets, columns_of=right_targets or targets)

    @jax.checkpoint
    def add_image(total, image):
        permutation, columns = image
        # Derivatives of an image are taken with respect to the original: only the rows of its Jacobian change places.
        image = Seen(right.z[..., columns], right.jacobian[:, :, columns])
        return total + blocks(image, permutation), None

    if len(process.permutations) == 1:
        return blocks(right, process.permutations[0])
    empty = jax.eval_shape(blocks, right, process.permutations[0])
    images = (process.permutations, process.columns)
    return jax.lax.scan(add_image, jnp.zeros(empty.shape, empty.dtype), images)[0]


def _blocks(process, left, right, permutation, rows_of, columns_of):
    """The covariance with one image of the right set."""
    targets = {*rows_of, *columns_of}
    of_group = partial(_group, process.radial, targets)
    groups = jax.lax.map(lambda a: of_group(*a), (process.variance, process.inverse_square, left, right))
    flat: list[Any] = [None if g is None else g.reshape(-1, *g.shape[2:]) for g in groups[:3]]
    energies, energy_force, force_energy = flat
    table: dict[tuple[str, str], Any] = {}
    if "atomic_energies" in targets:
        table |= _of_atomic_energies(energies, permutation)
    if "energy" in targets:
        table["energy", "energy"] = energies.sum(0)[:, None, :, None]
    if "forces" in targets:
        table |= _of_forces(energy_force, force_energy, groups[3].sum(0))

    def in_order(chosen):
        return [target for target in TARGETS if target in chosen]

    rows = ([table[row, column] for column in in_order(columns_of)] for row in in_order(rows_of))
    return jnp.concatenate([jnp.concatenate(row, axis=3) for row in rows], axis=1)


def _of_atomic_energies(energies, permutation):
    """The blocks (n, M, m, M') that atomic energies have with energies, by their two targets, from (N, n, m)."""
    n_atoms, n, m = energies.shape
    own = jnp.zeros((n, n_atoms, m, n_atoms)).at[:, np.arange(n_atoms), :, permutation].set(energies)
    return {
        ("atomic_energies", "atomic_energies"): own,
        ("atomic_energies", "energy"): energies.transpose(1, 0, 2)[..., None],
        ("energy", "atomic_energies"): energies.transpose(1, 2, 0)[:, None],
    }


def _of_forces(energy_force, force_energy, forces):
    """The blocks (n, M, m, M') that forces have, by their two targets, from (a, n, m, 3N), (a, n, 3N, m), (n, 3N, m, 3N).

    With atomic energies a = N; where only their sum is asked for a may be 1.
    """
    return {
        ("atomic_energies", "forces"): energy_force.transpose(1, 0, 2, 3),
        ("energy", "forces"): energy_force.sum(0)[:, None],
        ("forces", "atomic_energies"): force_energy.transpose(1, 2, 3, 0),
        ("forces", "energy"): force_energy.sum(0)[..., None],
        ("forces", "forces"): forces,
    }


def _group(radial, targets, variance, inverse_square, left, right):
    """Blocks of one group: per atom energy-energy (a, n, m), energy-force (a, n, m, X), force-energy (a, n, X, m); forces.

    Where no atom's own energy is asked for, a = 1, their sum.
    """
    scaled = squared_distances(left.z, right.z) * inverse_square[:, None, None]
    v, w = variance[:, None, None], inverse_square[:, None, None]
    profile, slope, curvature = v * radial.profile(scaled), v * w * radial.slope(scaled), v * w * w * radial.curvature(scaled)
    if "atomic_energies" not in targets:
        profile, slope, curvature = (x.sum(0, keepdims=True) for x in (profile, slope, curvature))
    return profile, *(_with_forces(slope, curvature, left, right) if "forces" in targets else 3 * (None,))


def _with_forces(slope, curvature, left, right):
    """Energy-force, force-energy and force-force blocks from v phi' / l^2 and v phi'' / l^4 (a, n, m); U and V as above."""
    u = jnp.einsum("ie,iex->ix", left.z, left.jacobian)[:, :, None] - jnp.einsum("iex,je->ixj", left.jacobian, right.z)
    v = jnp.einsum("ie,jex->ijx", left.z, right.jacobian) - jnp.einsum("je,jex->jx", right.z, right.jacobian)
    energy_force, force_energy = 2 * slope[..., None] * v, -2 * slope[:, :, None, :] * u
    product = jnp.einsum("iex,jey->ixjy", left.jacobian, right.jacobian)
    forces = -2 * slope.sum(0)[:, None, :, None] * product
    forces -= 4 * (curvature.sum(0)[:, None] * u)[..., None] * v[:, None]
    return energy_force, force_energy, forces


def observations(targets, atomic_energies, energy, forces):
    """The vector (n M,) of the observations asked for, from residuals (n, N), (n,) and (n, N, 3), NaN where there is none.

    Where all atomic energies are known and asked for the energy, their sum, says nothing more: it is NaN.
    """
    if "atomic_energies" in targets:
        energy = np.where(np.isfinite(atomic_energies).all(1), np.nan, energy)
    parts = {"atomic_energies": atomic_energies, "energy": energy, "forces": forces}
    chosen = [parts[target].reshape(len(parts[target]), -1) for target in TARGETS if target in targets]
    return np.concatenate(chosen, axis=1).ravel()


def images(positions, permutations):
    """Arrays (n, N, ...) permuted by each of ``permutations`` (P, N), all by the first p before the next: (P n, N, ...)."""
    return jnp.swapaxes(positions[:, permutations], 0, 1).reshape(-1, *positions.shape[1:])


def expansion(weights, positions, features, targets, permutations):
    """What weights (n M,) of the observations amount to as coefficients of the kernel and of its derivatives.

    g_A(x) = v_A sum_i (a_Ai k_A(x, x_i) + b_Ai . dk_A(x, x_i)/dx_i) with kernels of unit variance and x_i the ``features`` of
    the `images` of ``positions`` (n, N, 3): a (N, P n) in 1/eV and b (N, P n, D) in the features' units over eV.
    b_Ai = -dx_A/dR f_i, f_i the weights of the forces.
    """
    n, n_atoms, _ = positions.shape
    rows = weights.reshape(n, -1)
    a, force_weights = jnp.zeros((n, n_atoms)), jnp.zeros((n, n_atoms, 3))
    for target, columns in _columns(targets, n_atoms):
        if target == "forces":
            force_weights = rows[:, columns].reshape(n, n_atoms, 3)
        else:
            a = a + rows[:, columns]
    a = images(a, permutations)
    moved = (images(positions, permutations), images(force_weights, permutations))
    along = jax.vmap(lambda r, f: jax.jvp(features, (r,), (f,))[1])(*moved)
    return a.T, -along.swapaxes(0, 1)


@partial(jax.jit, static_argnums=(3, 4))
def _rows(process, left, right, targets, right_targets):
    block = covariance(process, left, right, targets, right_targets)
    return block.reshape(block.shape[0] * block.shape[1], -1)


def covariance_rows(process, left, right, targets, kept=None, kept_right=None, rows=8, right_targets=None):
    """The covariance of the observations of two sets of geometries as a NumPy matrix.

    ``right_targets`` are those of the right ones, where they are others.
    ``kept`` and ``kept_right`` (n M,) bool choose among the observations; all by default. Made ``rows`` geometries at a
    time: beside the matrix itself there is never more than such a stripe.
    """
    n, m = left.z.shape[1], right.z.shape[1]
    per_geometry = count(targets, process.variance.size)
    kept = np.ones(n * per_geometry, bool) if kept is None else kept
    right_targets = right_targets or targets
    kept_right = np.ones(m * count(right_targets, process.variance.size), bool) if kept_right is None else kept_right
    matrix = np.empty((kept.sum(), kept_right.sum()))
    before = np.concatenate([[0], np.cumsum(kept)])
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        first = max(0, stop - rows)  # one shape, compiled once
        stripe = jax.tree.map(lambda a, first=first, stop=stop: a[:, first:stop], left)
        block = np.asarray(_rows(process, stripe, right, targets, right_targets))
        here = slice(first * per_geometry, stop * per_geometry)
        matrix[before[here.start] : before[here.stop]] = block[kept[here]][:, kept_right]
    return matrix


def covariance_matrix(process, points, targets, noise, kept=None, rows=8):
    """The covariance matrix of all observations of geometries, or those ``kept``, with the variances ``noise`` (M,) added."""
    noise = np.tile(noise, points.z.shape[1])
    matrix = covariance_rows(process, points, points, targets, kept, kept, rows)
    matrix[np.diag_indices(len(matrix))] += noise if kept is None else noise[kept]
    return matrix


def factorise(matrix, block=4096):
    """The lower Cholesky factor of a symmetric matrix, which is overwritten; LinAlgError where it has none.

    ``block`` columns at a time, from the left: OpenBLAS 0.3.30's own, multithreaded, crashes at 16,300 (at 14,000 it does not).
    """
    factor = matrix.T  # the same, in the order that LAPACK overwrites
    for start in range(0, len(factor), block):
        here, done = slice(start, start + block), slice(0, start)
        factor[start:, here] -= factor[start:, done] @ factor[here, done].T
        factor[here, here] = cholesky(factor[here, here], lower=True, overwrite_a=True, check_finite=False)
        below = slice(start + block, None)
        factor[below, here] = solve_triangular(factor[here, here], factor[below, here].T, lower=True, check_finite=False).T
        factor[done, here] = 0.0
    return factor


def noise_variance(covariance, shares, targets, permutations):
    """The noise (M,), ``shares`` (M,) of what the process varies by among the geometries of a covariance (n, M, n, M).

    Not of its variance, which for long length scales is mostly a common constant. The same for equivalent atoms, and for the
    three components of a force: else predictions would not turn with the molecule.
    """
    each = jnp.einsum("imjm->mij", covariance)
    varied, n_atoms = jnp.trace(each, axis1=1, axis2=2) / len(covariance) - each.mean((1, 2)), permutations.shape[1]
    parts = []
    for target, columns in _columns(targets, n_atoms):
        part = varied[columns]
        if target != "energy":
            of_atoms = part.reshape(n_atoms, -1).mean(1)[permutations].mean(0)
            part = jnp.repeat(of_atoms, len(part) // n_atoms)
        parts.append(part)
    return shares * jnp.concatenate(parts)


def with_noise(covariance, shares, targets, permutations):
    """A covariance (n, M, n, M) as a matrix (n M, n M) with its `noise_variance` added."""
    noise = jnp.tile(noise_variance(covariance, shares, targets, permutations), len(covariance))
    return covariance.reshape(len(noise), -1) + jnp.diag(noise)


def fits(size):
    """Whether a matrix of ``size`` observations fits into this machine's memory."""
    return 8 * size**2 <= 0.9 * _memory()


def check_memory(size):
    """ValueError, in a sentence, where a matrix of ``size`` observations would not fit into this machine's memory."""
    if not fits(size):
        raise ValueError(
            f"expected a covariance matrix that fits into memory, found {size} observations, which need"
            f" {8 * size**2 / 2**30:.0f} GiB of {_memory() / 2**30:.0f}; take fewer geometries, or solver='cg' to learn energy"
            " and forces without the matrix (and without uncertainties)"
        )


def _memory():
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def of_each(values, targets, n_atoms):
    """A value for each target, or one for all, repeated for every observation of a geometry: (M,)."""
    return np.repeat(np.broadcast_to(values, len(targets)), [count((target,), n_atoms) for target in targets])
