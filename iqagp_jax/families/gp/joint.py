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
| z, J        | `Seen`          | (n, E), (n, E, 3N); one set for every atom                             |
| z, dz/dR    | `Distances`     | the same without zeros, for all atoms, where they see inverse distances |
| v_A, 1/l_A^2| `Process`       | (G, a) for G groups of a atoms                                         |
| p           | `Process`       | (P, N)                                                                 |
| M           |                 | observations of one geometry                                           |
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from math import isqrt
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cholesky
from scipy.linalg.blas import dtrsm

from iqagp_jax.families.gp.distances import Distances
from iqagp_jax.families.gp.features import InverseDistances
from iqagp_jax.families.gp.kernels import Radial
from iqagp_jax.families.gp.local import LocalProcess, Together
from iqagp_jax.families.gp.regression import squared_distances
from iqagp_jax.machine.devices import one_blas_thread
from iqagp_jax.machine.precision import Array

TARGETS = ("atomic_energies", "energy", "forces")

TILE = 2**20
"""Covariances that are made at a time, 8 MB: more would leave the caches, fewer cost more calls."""

FEWEST = 8
"""Geometries of a tile's sides at least: with fewer there is nothing to be gained from vectors."""

BLOCK = 1024
"""Rows and columns of a matrix that are taken together while it is made symmetric, or its factor is made."""


class Seen(NamedTuple):
    """What the kernel sees of n geometries, for each of N atoms; of inverse distances it is `distances.Distances`."""

    z: Array
    """(N, n, E) embedded features, unit length scale"""
    jacobian: Array
    """(N, n, E, 3N) derivatives of z with respect to the positions, 1/angstrom"""

    def embedded(self, kernel):
        """As the atoms' ``kernel`` embeds them."""

        def one_atom(kernel, x, jacobian):
            return kernel.embed(x), jax.vmap(jax.jacfwd(kernel.embed))(x) @ jacobian

        return Seen(*jax.vmap(one_atom)(kernel, *self))

    def covariances(self, process, right, wanted):
        """Of this set's observations with those of another, {(target, target): (M, M', n, m)} for all that are ``wanted``.

        One atom after the other; there are no images.
        """
        shared = [pair for pair in wanted if "atomic_energies" not in pair]

        def of_atom(atom):
            variance, inverse_square, left, right = atom
            radial = process.radial_parts(variance, inverse_square, left.z, right.z, wanted)
            return _of_atom([part[0] for part in radial], left, right, wanted)

        def add_atom(sums, atom):
            new = of_atom(atom)
            return {pair: sums[pair] + new.pop(pair) for pair in shared}, new

        atoms = process.variance, process.inverse_square, self, right
        shapes = jax.eval_shape(of_atom, jax.tree.map(lambda leaf: leaf[0], atoms))
        sums, own = jax.lax.scan(add_atom, {pair: jnp.zeros(shapes[pair].shape) for pair in shared}, atoms)
        for pair, part in own.items():
            if pair == ("atomic_energies", "atomic_energies"):
                sums[pair] = part[:, 0] * np.eye(len(part))[..., None, None]
            else:
                sums[pair] = part[:, 0] if pair[0] == "atomic_energies" else part[:, :, 0].swapaxes(0, 1)
        return sums


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["variance", "inverse_square", "permutations", "columns", "local"],
    meta_fields=["radial"],
)
@dataclass(frozen=True)
class Process:
    """The prior. Groups of atoms times atoms of a group are the molecule's atoms in their order: one group, or N of one."""

    radial: type[Radial]
    """kind of `kernels.Radial`: profile, slope and curvature"""
    variance: Array
    """v_A, (G, a) eV^2"""
    inverse_square: Array
    """1 / l_A^2, (G, a)"""
    permutations: Array
    """p, (P, N); the identity alone where there is no symmetry"""
    columns: Array
    """(P, E), z(R[p]) = z(R)[columns]"""
    local: LocalProcess | None = None
    """of the atoms' surroundings, where they count"""

    @classmethod
    def of(cls, kernel, features, variance, permutations=None, local=None):
        """The process of the atoms' ``kernel`` (arrays with the atoms first) with v (N,), grouped as `seen` does.

        ``local`` is the `local.Local` beside it, if there is any.
        """
        radial, n = type(kernel), len(variance)
        permutations = np.arange(n)[None] if permutations is None else permutations
        if isinstance(features, InverseDistances):
            inverse_square = (kernel.lengthscale[:1] / kernel.lengthscale)[None] ** 2
            beside = local and local.process(variance)
            return cls(radial, variance[None], inverse_square, permutations, features.columns(permutations), beside)
        columns = np.arange(jax.eval_shape(lambda r: kernel.embed(features(r)), jnp.zeros((n, 3))).shape[-1])
        return cls(radial, variance[:, None], np.ones((n, 1)), permutations, columns[None])

    def radial_parts(self, variance, inverse_square, left, right, wanted):
        """v phi, v phi' / l^2 and v phi'' / l^4 of a group, (a, n, m) each; the two first points are (n, E) and (m, E).

        Where no atom's own energy is in one of the ``wanted`` pairs of targets, a = 1, their sum.
        """
        scaled = squared_distances(left, right) * inverse_square[:, None, None]
        v, w = variance[:, None, None], inverse_square[:, None, None]
        kinds = self.radial.profile, self.radial.slope, self.radial.curvature
        parts = [v * w**k * kind(scaled) for k, kind in enumerate(kinds)]
        return parts if any("atomic_energies" in pair for pair in wanted) else [part.sum(0, keepdims=True) for part in parts]


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


def seen(features, positions, local=None):
    """What a kernel sees of the features of positions (n, N, 3) as they are, before it embeds them.

    With inverse distances all atoms see the same up to the order of the columns, and so they do with an isotropic kernel: one
    group, `Distances`; else `Seen`. With a `local.Local` beside it is `local.Together`.
    """
    if isinstance(features, InverseDistances):
        distances = Distances(*(part[None] for part in jax.vmap(features.with_slopes)(positions)))
        return distances if local is None else Together(distances, local.see(positions))
    x = jax.lax.map(features, positions, batch_size=64)
    jacobian = jax.lax.map(jax.jacfwd(features), positions, batch_size=8)
    return Seen(x.swapaxes(0, 1), jacobian.reshape(*x.shape, -1).swapaxes(0, 1))


def embedded(kernel, points):
    """What was `seen` as the atoms' ``kernel`` embeds it, that of each group's first atom."""
    return points.embedded(jax.tree.map(lambda leaf: leaf[: len(points.z)], kernel))


def covariance(process, left, right, targets, right_targets=None):
    """Covariance of the observations of two sets of geometries, (n, M, m, M').

    ``right_targets`` are those of the right set, where they are others.
    """
    rows, columns = ([target for target in TARGETS if target in chosen] for chosen in (targets, right_targets or targets))
    table = left.covariances(process, right, tuple(product(rows, columns)))
    return jnp.concatenate([jnp.concatenate([table[r, c] for c in columns], axis=1) for r in rows]).transpose(2, 0, 3, 1)


def _of_atom(radial, left, right, wanted):
    """The blocks (M, M', n, m) of one atom's energy and of what it adds to the forces; U and V as above."""
    profile, slope, curvature = radial
    blocks = dict.fromkeys(wanted, profile[None, None])
    if not any("forces" in pair for pair in wanted):
        return blocks
    u = jnp.einsum("ie,iex->xi", left.z, left.jacobian)[:, :, None] - jnp.einsum("iex,je->xij", left.jacobian, right.z)
    v = jnp.einsum("ie,jex->xij", left.z, right.jacobian) - jnp.einsum("je,jex->xj", right.z, right.jacobian)[:, None]
    for pair in wanted:
        if pair == ("forces", "forces"):
            jacobians = jnp.einsum("iex,jey->xyij", left.jacobian, right.jacobian)
            blocks[pair] = -2 * slope * jacobians - 4 * curvature * u[:, None] * v
        elif "forces" in pair:
            blocks[pair] = 2 * slope * v[None] if pair[1] == "forces" else -2 * slope * u[:, None]
    return blocks


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
    rows = weights.reshape(n, count(targets, n_atoms))
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
def _tile(process, left, right, targets, right_targets):
    block = covariance(process, left, right, targets, right_targets)
    return block.reshape(block.shape[0] * block.shape[1], -1)


def covariance_rows(process, left, right, targets, kept=None, kept_right=None, right_targets=None):
    """The covariance of the observations of two sets of geometries as a NumPy matrix.

    ``right_targets`` are those of the right ones, where they are others.
    ``kept`` and ``kept_right`` (n M,) bool choose among the observations; all by default.
    """
    right_targets, n_atoms = right_targets or targets, process.permutations.shape[1]
    kept = np.ones(left.z.shape[1] * count(targets, n_atoms), bool) if kept is None else kept
    kept_right = np.ones(right.z.shape[1] * count(right_targets, n_atoms), bool) if kept_right is None else kept_right
    matrix = np.empty((kept.sum(), kept_right.sum()))
    fill(matrix, process, left, right, targets, right_targets, kept, kept_right)
    return matrix


def fill(matrix, process, left, right, targets, right_targets, kept, kept_right, lower=False):
    """Write the covariance that `covariance_rows` has into a matrix; of a symmetric one, where it is ``lower``, half.

    Made in tiles of some `TILE` numbers: beside the matrix there is never more than a few of them. Of a lower triangle those
    tiles are left out that lie above the diagonal.
    """
    (left, right), n_atoms = jax.device_get((left, right)), process.permutations.shape[1]
    n, m, per_row, per_column = left.z.shape[1], right.z.shape[1], count(targets, n_atoms), count(right_targets, n_atoms)
    row, column = (np.concatenate([[0], np.cumsum(chosen)]) for chosen in (kept, kept_right))
    pairs = max(1, TILE // (per_row * per_column))
    tall = max(FEWEST, isqrt(pairs) // 2)
    for rows, columns in product(_parts(n, tall), _parts(m, max(FEWEST, pairs // tall))):
        if lower and columns.start >= rows.stop:
            continue
        here, there = (jax.tree.map(lambda a, k=k: a[:, k], of) for of, k in ((left, rows), (right, columns)))
        tile = np.asarray(_tile(process, here, there, targets, right_targets))
        i, j = (slice(k * part.start, k * part.stop) for k, part in ((per_row, rows), (per_column, columns)))
        matrix[row[i.start] : row[i.stop], column[j.start] : column[j.stop]] = tile[kept[i]][:, kept_right[j]]


def _parts(n, size):
    """Slices of at most ``size`` of n geometries; all are of one size, compiled once, so that the last may begin earlier."""
    return [slice(max(0, stop - size), stop) for stop in (*range(size, n, size), n) if n]


def covariance_matrix(process, points, targets, noise, kept=None):
    """The covariance matrix of all observations of geometries, or those ``kept``, with the variances ``noise`` (M,) added."""
    noise = np.tile(noise, points.z.shape[1])
    kept = np.ones(len(noise), bool) if kept is None else kept
    matrix = np.empty((kept.sum(), kept.sum()), order="F")
    fill(matrix, process, points, points, targets, targets, kept, kept, lower=True)
    for part in _parts(len(matrix), BLOCK):
        matrix[: part.start, part] = matrix[part, : part.start].T
        matrix[part, part] = np.tril(matrix[part, part]) + np.tril(matrix[part, part], -1).T
    matrix[np.diag_indices(len(matrix))] += noise[kept]
    return matrix


def factorise(matrix, known=0, block=None):
    """The lower Cholesky factor of a symmetric matrix, which is overwritten; LinAlgError where it has none.

    The first ``known`` rows are those of the factor already. Columns are made ``block`` at a time, by default `BLOCK`, from the
    left: OpenBLAS 0.3.30's own factor, multithreaded, crashes at 16,300 rows (at 14,000 it does not). Products share the cores
    by rows: threads of OpenBLAS wait for each other in busy loops, and beside other programs take up to five times as long.
    """
    block = block or BLOCK
    factor = matrix if matrix.flags.f_contiguous else matrix.T  # the order that LAPACK overwrites
    size = len(factor)
    edges = [*range(0, known, block), *range(known, size, block), size]
    with one_blas_thread() as threads, ThreadPoolExecutor(threads) as pool:
        for start, stop in pairwise(edges):
            here, done, first = slice(start, stop), slice(0, start), max(start, known)

            def subtract(row, here=here, done=done):
                rows = slice(row, row + block)
                factor[rows, here] -= (factor[here, done] @ factor[rows, done].T).T

            for _ in pool.map(subtract, range(first, size, block)):
                pass
            if first == start:
                factor[here, here] = cholesky(factor[here, here], lower=True, check_finite=False)
                factor[done, here] = 0.0
            for row in range(max(stop, known), size, block):
                rows = slice(row, row + block)
                factor[rows, here] = dtrsm(1.0, factor[here, here], factor[rows, here], side=1, lower=1, trans_a=1)
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
