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

| symbol      | array           | shape                                                                  |
| ----------- | --------------- | ---------------------------------------------------------------------- |
| z, J        | `Points`        | (n, E), (n, E, 3N); one set for every group of atoms that see the same |
| v_A, 1/l_A^2| `Scales`        | (G, a) for G groups of a atoms                                         |
| M           |                 | observations of one geometry                                           |
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.features import InverseDistances
from iqagp_jax.gp import squared_distances

TARGETS = ("atomic_energies", "energy", "forces")


class Points(NamedTuple):
    """What the kernel sees of n geometries, for each of G groups of atoms."""

    z: jax.Array
    """(G, n, E) embedded features, unit length scale"""
    jacobian: jax.Array
    """(G, n, E, 3N) derivatives of z with respect to the positions, 1/angstrom"""


class Scales(NamedTuple):
    """Hyperparameters of the atoms of each group; groups times atoms a are the molecule's atoms in their order."""

    variance: jax.Array
    """v_A, (G, a) eV^2"""
    inverse_square: jax.Array
    """1 / l_A^2, (G, a)"""


def count(targets, n_atoms):
    """Observations M of one geometry."""
    return sum({"atomic_energies": n_atoms, "energy": 1, "forces": 3 * n_atoms}[target] for target in targets)


def embedding(kernel, features):
    """The function positions (N, 3) -> z (G, E) of the atoms' ``kernel`` (arrays with the atoms first).

    With isotropic inverse distances all atoms see the same up to the order of the columns: one group, else N.
    """
    if isinstance(features, InverseDistances):
        return lambda positions: jax.tree.map(lambda leaf: leaf[0], kernel).embed(features(positions)[:1])
    return lambda positions: jax.vmap(lambda k, x: k.embed(x))(kernel, features(positions))


def scales(kernel, features, variance):
    """`Scales` of the atoms' ``kernel`` and signal variances (N,), as `embedding` groups them."""
    if isinstance(features, InverseDistances):
        return Scales(variance[None], (kernel.lengthscale[:1] / kernel.lengthscale)[None] ** 2)
    return Scales(variance[:, None], np.ones((len(variance), 1)))


def embedded(embed, positions):
    """`Points` of positions (n, N, 3); ``embed`` maps positions (N, 3) to (G, E)."""
    z = jax.lax.map(embed, positions, batch_size=64)
    jacobian = jax.lax.map(jax.jacrev(embed), positions, batch_size=64)
    return Points(z.swapaxes(0, 1), jacobian.reshape(*z.shape, -1).swapaxes(0, 1))


def covariance(radial, scales, left, right, targets, right_targets=None):
    """Covariance of the observations of two sets of geometries, (n, M, m, M'); ``radial`` has profile, slope, curvature.

    ``right_targets`` are those of the right set, where they are others.
    """
    rows_of, columns_of = targets, right_targets or targets
    targets = {*rows_of, *columns_of}
    groups = jax.lax.map(lambda a: _group(radial, *a), (scales, left, right))
    rows = {}
    if "atomic_energies" in targets or "energy" in targets:
        energies, gradients, transposed = (_atoms_first(g) for g in groups[:3])
        n_atoms, n, m = energies.shape
    if "atomic_energies" in targets:
        own = jnp.zeros((n, n_atoms, m, n_atoms)).at[:, np.arange(n_atoms), :, np.arange(n_atoms)].set(energies)
        rows["atomic_energies"] = [own, energies.transpose(1, 0, 2)[..., None], gradients.transpose(1, 0, 2, 3)]
    if "energy" in targets:
        rows["energy"] = [energies.transpose(1, 2, 0)[:, None], energies.sum(0)[:, None, :, None], gradients.sum(0)[:, None]]
    if "forces" in targets:
        forces = groups[3].sum(0)
        rows["forces"] = [None, None, forces]
        if "atomic_energies" in targets:
            rows["forces"][0] = transposed.transpose(1, 2, 3, 0)
        if "energy" in targets:
            rows["forces"][1] = transposed.sum(0)[..., None]
    columns = [k for k, target in enumerate(TARGETS) if target in columns_of]
    chosen = [rows[target] for target in TARGETS if target in rows_of]
    return jnp.concatenate([jnp.concatenate([row[k] for k in columns], axis=3) for row in chosen], axis=1)


def _atoms_first(group):
    """(G, a, ...) -> (N, ...)"""
    return group.reshape(-1, *group.shape[2:])


def _group(radial, scales, left, right):
    """Blocks of one group: per atom energy-energy (a, n, m), energy-force (a, n, m, X), force-energy (a, n, X, m); forces."""
    square = squared_distances(left.z, right.z)
    scaled = square * scales.inverse_square[:, None, None]
    v, w = scales.variance[:, None, None], scales.inverse_square[:, None, None]
    slope, curvature = v * w * radial.slope(scaled), v * w * w * radial.curvature(scaled)
    u = jnp.einsum("ie,iex->ix", left.z, left.jacobian)[:, :, None] - jnp.einsum("iex,je->ixj", left.jacobian, right.z)
    v_right = jnp.einsum("ie,jex->ijx", left.z, right.jacobian) - jnp.einsum("je,jex->jx", right.z, right.jacobian)
    energy_force = 2 * slope[..., None] * v_right
    force_energy = -2 * slope[:, :, None, :] * u
    product = jnp.einsum("iex,jey->ixjy", left.jacobian, right.jacobian)
    forces = -2 * slope.sum(0)[:, None, :, None] * product
    forces -= 4 * (curvature.sum(0)[:, None] * u)[..., None] * v_right[:, None]
    return v * radial.profile(scaled), energy_force, force_energy, forces


def observations(targets, atomic_energies, energy, forces):
    """The vector (n M,) of the observations asked for, from residuals (n, N), (n,) and (n, N, 3) where they are."""
    parts = {"atomic_energies": atomic_energies, "energy": energy, "forces": forces}
    chosen = [parts[target].reshape(len(parts[target]), -1) for target in TARGETS if target in targets]
    return np.concatenate(chosen, axis=1).ravel()


def expansion(weights, variance, features, positions, targets):
    """What weights (n M,) of the observations amount to as coefficients of the kernel and of its derivatives.

    g_A(x) = sum_i a_Ai k_A(x, x_i) + b_Ai . dk_A(x, x_i)/dx_i with kernels of unit variance and x = ``features`` of
    ``positions`` (n, N, 3): a (N, n) in eV and b (N, n, D) in eV times the features' units. b_Ai = -v_A dx_A/dR f_i, f_i
    the weights of the forces.
    """
    n, n_atoms, _ = positions.shape
    rows, start = weights.reshape(n, -1), 0
    a, force_weights = jnp.zeros((n, n_atoms)), jnp.zeros((n, n_atoms, 3))
    for target in TARGETS:
        if target not in targets:
            continue
        size = count((target,), n_atoms)
        part, start = rows[:, start : start + size], start + size
        if target == "forces":
            force_weights = part.reshape(n, n_atoms, 3)
        else:
            a = a + part
    along = jax.vmap(lambda r, f: jax.jvp(features, (r,), (f,))[1])(positions, force_weights)
    return variance[:, None] * a.T, -variance[:, None, None] * along.swapaxes(0, 1)


@partial(jax.jit, static_argnums=(0, 4))
def _rows(radial, scales, left, right, targets):
    block = covariance(radial, scales, left, right, targets)
    return block.reshape(block.shape[0] * block.shape[1], -1)


def covariance_matrix(radial, scales, points, targets, noise, rows=8):
    """The covariance matrix (n M, n M) of all observations, each diagonal entry times 1 + noise, as a NumPy array.

    Made ``rows`` geometries at a time: beside the matrix itself there is never more than such a stripe.
    """
    n = points.z.shape[1]
    size = n * count(targets, scales.variance.size)
    matrix = np.empty((size, size))
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        first = max(0, stop - rows)  # one shape, compiled once
        left = jax.tree.map(lambda a, first=first, stop=stop: a[:, first:stop], points)
        block = np.asarray(_rows(radial, scales, left, points, targets))
        matrix[first * size // n : stop * size // n] = block
    matrix[np.diag_indices(size)] *= 1 + noise
    return matrix
