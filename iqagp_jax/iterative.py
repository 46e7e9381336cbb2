"""Weights of more observations than have room for their covariance matrix: preconditioned conjugate gradients.

(K + D) w = y for the covariance K of all observations and their noise D is solved with products K v alone. Such a product is
what a model with the weights v predicts at its own training geometries, so it costs as much as one step of so many replicas,
and no element of K is ever kept. In units of the noise, K' = D^-1/2 K D^-1/2 + 1, the preconditioner is Nystrom's: the columns
C of the first geometries with C_1 their own rows give U = C L^-T, C_1 = L L^T, and

    (U U^T + 1)^-1 v = v - U (1 + U^T U)^-1 U^T v

(Chmiela et al., doi:10.1126/sciadv.adf0873, who solve for forces so).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular
from scipy.sparse.linalg import LinearOperator, cg

from iqagp_jax import inference, joint

TOLERANCE = 0.1
"""Root mean square of what is left of the observations, in standard deviations of their noise."""

COLUMNS = 4000
"""Observations in the preconditioner, at most."""

SHARE = 4
"""and at most the observations over so many."""

MOST_STEPS = 2000


def product(process, features, kernel, positions, targets):
    """The function v -> K v for weights v (n M,) of all observations of positions (n, N, 3).

    For targets "energy" and "forces" and for atoms that see the same, in float64.
    """
    positions, variance, n_atoms = jnp.asarray(positions), process.variance[0], positions.shape[1]

    def first_atom(r):
        return features.of_pairs(r, features.pairs[:1])

    own = jax.tree.map(lambda leaf: leaf[:1], kernel)
    z = jax.vmap(lambda r: own.embed(first_atom(r)))(joint.images(positions, process.permutations)).swapaxes(0, 1)
    centre = z.mean(1)
    z = (z - centre[:, None]).swapaxes(1, 2)
    points = inference.Points(own, z, (z * z).sum(1), centre, None, process.inverse_square, None, None, process.variance)

    @jax.jit
    def apply(points, v):
        a, slopes = joint.expansion(v, positions, first_atom, targets, process.permutations)
        b = (slopes / own.lengthscale[:, None, None]).swapaxes(1, 2)
        weighted = points._replace(weights=(variance[:, None] * a)[None], directions=b, offsets=(b * points.z).sum(1))
        evaluate = inference.in_chunks(partial(inference.evaluate, features, weighted), points.z.shape[2])
        energies, gradients = evaluate(positions)
        parts = {"energy": energies[:, None], "forces": -gradients.reshape(-1, 3 * n_atoms)}
        return jnp.concatenate([parts[target] for target in joint.TARGETS if target in targets], axis=1).ravel()

    return lambda v: np.asarray(apply(points, jnp.asarray(v)))


def solve(process, features, kernel, positions, targets, noise, y, kept, progress=lambda steps: steps):
    """Weights (m,) of the ``kept`` (n M,) bool observations y (m,) with the noise variances ``noise`` (M,).

    ``progress`` wraps the range of steps, as a progress bar does.

    Raises ValueError where `MOST_STEPS` do not suffice.
    """
    times_k = product(process, features, kernel, positions, targets)
    deviation = np.sqrt(np.tile(noise, len(positions))[kept])

    def times(v):
        whole = np.zeros(len(kept))
        whole[kept] = v.ravel() / deviation
        return times_k(whole)[kept] / deviation + v.ravel()

    per_geometry = len(kept) // len(positions)
    n = max(1, min(COLUMNS, len(y) // SHARE) // per_geometry)
    first = kept[: n * per_geometry]
    see = jax.jit(lambda r: joint.embedded(kernel, joint.seen(features, r)))
    points = see(jnp.asarray(positions))
    inducing = jax.tree.map(lambda leaf: leaf[:, :n], points)
    columns = joint.covariance_rows(process, points, inducing, targets, kept, first)
    columns /= deviation[:, None]
    columns /= deviation[: first.sum()]
    corner = columns[: first.sum()] + np.eye(first.sum())  # the noise keeps it positive definite
    u = solve_triangular(cholesky(corner, lower=True), columns.T, lower=True, overwrite_b=True, check_finite=False)
    inner = cho_factor(np.eye(len(u)) + u @ u.T, lower=True, overwrite_a=True, check_finite=False)
    conditioner = LinearOperator((len(y), len(y)), lambda v: v - u.T @ cho_solve(inner, u @ v))
    operator, target = LinearOperator((len(y), len(y)), times), y / deviation
    steps = iter(progress(range(MOST_STEPS)))
    options = {"rtol": 0, "atol": TOLERANCE * np.sqrt(len(y)), "maxiter": MOST_STEPS}
    w, failed = cg(operator, target, conditioner @ target, M=conditioner, callback=lambda _: next(steps), **options)
    if failed:
        left = np.sqrt(np.mean((target - times(w)) ** 2))
        raise ValueError(
            f"expected conjugate gradients to leave {TOLERANCE} noise deviations of the observations, found {left:.2g} after"
            f" {MOST_STEPS} steps: are there duplicate geometries? Raise the noise"
        )
    return w / deviation
