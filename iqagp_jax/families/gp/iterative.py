"""Weights of more observations than have room for their covariance matrix: preconditioned conjugate gradients.

(K + D) w = y for the covariance K of all observations and their noise D is solved with products K v alone. Such a product is
what a model with the weights v predicts at its own training geometries, so it costs as much as one step of so many replicas,
and no element of K is ever kept. In units of the noise, K' = D^-1/2 K D^-1/2 + 1, the preconditioner is Nystrom's: the columns
C of some observations of every geometry, drawn at random, with C_1 their own rows give U = C L^-T, C_1 = L L^T, and

    (U U^T + 1)^-1 v = v - U (1 + U^T U)^-1 U^T v

(Chmiela et al., doi:10.1126/sciadv.adf0873, who solve for forces so). All observations of a few geometries would be as many
columns, but took three times the steps for capped glycine.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular
from scipy.sparse.linalg import LinearOperator, cg

from iqagp_jax.families.gp import fast, joint

LEFT_OVER = 0.1
"""Root mean square of what is left of the observations, in standard deviations of their noise."""

COLUMNS = 6000
"""Observations in the preconditioner, at most."""

SHARE = 4
"""and at most the observations over so many."""

MOST_STEPS = 2000


def predictor(process, features, kernel, positions, targets):
    """What weights v (m M,) of the observations of ``train`` (m, N, 3) predict at positions (n, N, 3), (train, v) -> (n M,).

    For targets "energy" and "forces" and for atoms that see the same, in float64.
    """
    positions = jnp.asarray(positions)
    trained = fast.of_observations(process, features, kernel, targets)

    @jax.jit
    def predict(train, v):
        points = trained(train, v)
        evaluate = fast.in_chunks(partial(fast.evaluate, features, points), fast.at_a_time(points))
        energies, gradients = evaluate(positions)
        parts = {"energy": energies[:, None], "forces": -gradients.reshape(len(positions), -1)}
        return jnp.concatenate([parts[target] for target in joint.TARGETS if target in targets], axis=1).ravel()

    return predict


def solve(process, features, kernel, positions, targets, noise, y, kept, progress=lambda steps: steps):
    """Weights (m,) of the ``kept`` (n M,) bool observations y (m,) with the noise variances ``noise`` (M,).

    ``progress`` wraps the range of steps, as a progress bar does.

    Raises ValueError where `MOST_STEPS` do not suffice.
    """
    predict = predictor(process, features, kernel, positions, targets)
    deviation = np.sqrt(np.tile(noise, len(positions))[kept])

    def times(v):
        whole = np.zeros(len(kept))
        whole[kept] = v.ravel() / deviation
        return np.asarray(predict(positions, whole))[kept] / deviation + v.ravel()

    conditioner = LinearOperator((len(y), len(y)), _preconditioner(predict, positions, kept, deviation))
    operator, target = LinearOperator((len(y), len(y)), times), y / deviation
    steps = iter(progress(range(MOST_STEPS)))
    options = {"rtol": 0, "atol": LEFT_OVER * np.sqrt(len(y)), "maxiter": MOST_STEPS}
    w, failed = cg(operator, target, conditioner @ target, M=conditioner, callback=lambda _: next(steps), **options)
    if failed:
        left = np.sqrt(np.mean((target - times(w)) ** 2))
        raise ValueError(
            f"expected conjugate gradients to leave {LEFT_OVER} noise deviations of the observations, found {left:.2g} after"
            f" {MOST_STEPS} steps: are there duplicate geometries? Raise the noise"
        )
    return w / deviation


def _preconditioner(predict, positions, kept, deviation):
    """The function v -> (U U^T + 1)^-1 v of the module's formula."""
    n, per_geometry = len(positions), len(kept) // len(positions)
    size = max(1, min(COLUMNS, len(deviation) // SHARE))
    drawn = np.sort(np.random.default_rng(0).choice(len(deviation), size, replace=False))
    geometry, observation = np.divmod(np.flatnonzero(kept)[drawn], per_geometry)
    counts = np.bincount(geometry, minlength=n)
    columns_of = jax.jit(jax.vmap(predict, (None, 0)))
    u = np.empty((size, len(deviation)))
    for j in np.flatnonzero(counts):
        here = geometry == j
        units = np.eye(per_geometry)[np.resize(observation[here], counts.max())]  # one shape, compiled once
        u[here] = np.asarray(columns_of(positions[j : j + 1], units))[: counts[j], kept]
    u /= deviation
    u /= deviation[drawn, None]
    corner = u[:, drawn] + np.eye(size)  # the noise keeps it positive definite
    u = solve_triangular(cholesky(corner, lower=True), u, lower=True, overwrite_b=True, check_finite=False)
    inner = cho_factor(np.eye(size) + u @ u.T, lower=True, overwrite_a=True, check_finite=False)
    return lambda v: v - u.T @ cho_solve(inner, u @ v)
