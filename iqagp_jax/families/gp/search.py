"""The search for hyperparameters: what is maximised, from where, and by which optimiser.

| loss           | maximised, for every atom by itself                                                  |
| -------------- | ------------------------------------------------------------------------------------ |
| `concentrated` | log marginal likelihood at its best signal variance                                  |
| `marginal`     | log marginal likelihood at signal variance 1 in the unit of the data                  |
| `hold-out`     | minus ln of the root mean square error on every fifth point, held out of the training |

Several starts: the likeliest of many `random_starts`. Transfer learning (seeding and relaxing): the search is made on
``n_seed`` points, then goes on from its result on all, an idea of the FFLUX group.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iqagp_jax.families.gp import regression
from iqagp_jax.families.options import check, option
from iqagp_jax.machine.devices import one_blas_thread

LOSSES = ("concentrated", "marginal", "hold-out")

OPTIMISERS = ("lbfgs", "adam")

START_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Without random starts the optimisation begins at the best of these multiples of `initial_lengthscales`."""

RANDOM_FACTORS = (0.3, 30.0)
"""Random starts lie between these multiples of `initial_lengthscales`, one for all features, evenly in its logarithm."""

SCATTER = 2.0
"""Every feature's length scale then has a multiple of its own, between 1/SCATTER and SCATTER in the last start, 1 in the first.

Length scales drawn by themselves over all of `RANDOM_FACTORS` led to worse optima of 300 points of glycine's C1 (51 features):
ln L from 1498 to 1519, these to 1520 to 1522 from six starts; of 450 points both to 2343 to 2345.
"""

SCREENED = 8
"""Random starts are the likeliest of so many times their number, an evaluation each where a search takes hundreds."""

FAR = 20.0
"""A feature whose length scale is so many times `initial_lengthscales` hardly matters; see `log_weights`."""

NEVER = 1e-6
"""Share of the weight at FAR that a feature keeps where it would have none, so that its length scale has a logarithm."""

HOLD_OUT = 5
"""Every so manieth point is held out."""

MEMORY = 40
"""Steps that L-BFGS remembers: with dozens of length scales, most of them hardly felt, more than usual pay."""

ADAM_RATE = 0.05
"""Adam's steps in the logarithm of the length scales."""


@dataclass(frozen=True)
class Search:
    """How hyperparameters are found; see the module's table for ``loss``.

    Without random starts there is one, at the best of `START_FACTORS`. An atom has converged when ``patience`` steps on end
    raise its objective by less than ``tolerance``: near the optimum of a nearly singular covariance one step may fail by
    rounding. ``n_seed`` points of the first search are spread evenly over the training set.
    """

    loss: str = option("concentrated", "What is optimised; `search.py` has the formulas.", names=LOSSES)
    optimiser: str = option("lbfgs", "Optimiser, from optax.", names=OPTIMISERS)
    max_steps: int = option(40, "Steps of the optimiser at most; 0 keeps the best start.", least=0, most=10**6)
    n_starts: int = option(
        0,
        "Random starts; 0: one start at a likely multiple of the spread.",
        least=0,
        most=1000,
        flag="random-starts",
        once="starts",
    )
    seed: int = option(0, "Seed of the random starts.", least=0)
    tolerance: float = option(0.01, "An atom has converged when steps raise its objective by less.", least=0, flag=None)
    patience: int = option(1, "So many steps on end.", least=1, flag=None)
    n_seed: int | None = option(
        None, "Fit on so many geometries first, then relax on all.", least=2 * HOLD_OUT, flag="transfer"
    )

    def __post_init__(self):
        check(self)


class Found(NamedTuple):
    """What a search found for each of N atoms from each of S starts."""

    parameters: jax.Array
    """(N, P) the best"""
    trace: jax.Array
    """(steps + 1, N) of the best start's objective"""
    values: jax.Array
    """(S, N) best objective of every start"""
    evaluations: jax.Array
    """(S, N) evaluations of the objective and its gradient"""


def initial_lengthscales(features, angular):
    """Length scales of sqrt(D) standard deviations of each feature, (N, D) from features (N, n, D).

    An angle's deviation is that of its point on the unit circle.
    """
    spread = jnp.where(
        angular,
        jnp.sqrt(jnp.var(jnp.cos(features), axis=1) + jnp.var(jnp.sin(features), axis=1)),
        jnp.std(features, axis=1),
    )
    return jnp.sqrt(features.shape[-1]) * jnp.maximum(spread, 1e-3)


def random_starts(lengthscales, n, seed):
    """Logarithms of ``n`` random sets of length scales around (N, D) given ones: (n, N, D)."""
    rng, (low, high) = np.random.default_rng(seed), np.log(RANDOM_FACTORS)
    spread = low + (high - low) * (np.arange(n) + 0.5) / n
    common = np.stack([rng.permutation(spread) for _ in lengthscales], axis=1)[..., None]
    own = np.log(SCATTER) * np.linspace(0, 1, n)[:, None, None] * rng.uniform(-1, 1, (n, *lengthscales.shape))
    return jnp.log(lengthscales) + common + own


def log_weights(coordinates):
    """ln w of the coordinates p that are searched: w^2 = sinh^2 p + NEVER^2, and a feature's length scale is FAR l_0 / w.

    Where a feature matters p is the logarithm of its weight, up to a constant and sign. One that does not ends at p = 0; in
    the logarithm it would run away to -infinity, which takes as many steps again, and stay where the gradient vanishes
    although it should come back.
    """
    return 0.5 * jnp.log(jnp.sinh(coordinates) ** 2 + NEVER**2)


def objective(build, noise, loss, free_mean=False):
    """The function (parameters (P,), x (n, D), residual (n,)) -> scalar to be maximised.

    ``build(parameters)`` gives the kernel. With ``free_mean`` a concentrated likelihood also takes its best constant mean.
    """

    def likelihood(parameters, x, residual):
        covariance = regression.covariance_matrix(build(parameters), x, noise)
        return regression.log_likelihood(covariance, residual, loss == "concentrated", free_mean and loss == "concentrated")

    def hold_out(parameters, x, residual):
        if len(x) < HOLD_OUT:
            raise ValueError(f"expected at least {HOLD_OUT} points, of which hold-out holds one out, found {len(x)}")
        held = np.arange(len(x)) % HOLD_OUT == HOLD_OUT - 1
        kernel = build(parameters)
        factor = jnp.linalg.cholesky(regression.covariance_matrix(kernel, x[~held], noise))
        error = regression.predict(kernel, x[~held], regression.weights(factor, residual[~held]), x[held]) - residual[held]
        return -0.5 * jnp.log(jnp.mean(error**2))

    return hold_out if loss == "hold-out" else likelihood


@one_blas_thread()
def maximise(objective, data, starts, search, progress=lambda steps: steps):
    """Maximise ``objective(parameters, *data)`` for every atom by itself, from the best of starts (S, N, P): a `Found`.

    ``data`` has the atoms as its first axis. An atom that has converged is left alone while the others go on.
    """
    n_atoms, n_starts = len(starts[0]), max(search.n_starts, 1) if search.max_steps else 1
    if len(starts) > n_starts or not search.max_steps:
        evaluate = jax.jit(lambda p, d: jax.lax.map(lambda a: objective(a[0], *a[1]), (p, d)))
        candidates = jnp.nan_to_num(jnp.stack([evaluate(s, data) for s in starts]), nan=-jnp.inf)
        likeliest = jnp.argsort(-candidates, axis=0)[:n_starts], jnp.arange(n_atoms)
        starts = starts[likeliest]
        if not search.max_steps:
            return Found(starts[0], candidates[likeliest], candidates[likeliest], jnp.full((1, n_atoms), len(candidates)))
    n_starts = len(starts)

    def loss(parameters, *data):
        return -objective(parameters, *data)

    if search.optimiser == "lbfgs":
        # By default the first trial is the last step's share of a quasi-Newton step, which may stay below a tenth for good.
        linesearch = optax.scale_by_zoom_linesearch(max_linesearch_steps=12, initial_guess_strategy="one")
        optimiser = optax.lbfgs(memory_size=MEMORY, linesearch=linesearch)
        value_and_gradient = optax.value_and_grad_from_state(loss)
    else:
        optimiser = optax.with_extra_args_support(optax.adam(ADAM_RATE))

        def value_and_gradient(parameters, *data, state):
            return jax.value_and_grad(loss)(parameters, *data)

    def advance(atom, parameters, state):
        here = jax.tree.map(lambda array: array[atom], data)
        value, gradient = value_and_gradient(parameters, *here, state=state)
        updates, state = optimiser.update(
            gradient, state, parameters, value=value, grad=gradient, value_fn=lambda p: loss(p, *here)
        )
        evaluations = optax.tree.get(state, "num_linesearch_steps", 1)
        return -value, parameters, optax.apply_updates(parameters, updates), state, evaluations

    def one_step(arguments):
        done, atom, parameters, state = arguments

        def stay(atom, parameters, state):
            return jnp.full((), -jnp.inf), parameters, parameters, state, 0

        return jax.lax.cond(done, stay, advance, atom, parameters, state)

    step = jax.jit(lambda *arguments: jax.lax.map(one_step, arguments))
    parameters = starts.reshape(n_starts * n_atoms, -1)
    atom = jnp.tile(jnp.arange(n_atoms), n_starts)
    state = jax.vmap(optimiser.init)(parameters)
    best, best_values = parameters, jnp.full(len(atom), -jnp.inf)
    done, trace = jnp.zeros(len(atom), bool), []
    stalled, evaluations = jnp.zeros(len(atom), int), jnp.zeros(len(atom), int)
    # The value at the end of a step is known at the beginning of the next, so there is one step more.
    for _ in progress(range(search.max_steps + 1)):
        values, at, parameters, state, made = step(done, atom, parameters, state)
        evaluations += made
        better = values > best_values
        stalled = jnp.where(values > best_values + search.tolerance, 0, stalled + 1)
        best = jnp.where(better[:, None], at, best)
        best_values = jnp.where(better, values, best_values)
        trace.append(best_values)
        done |= (stalled >= search.patience) & (search.optimiser == "lbfgs")
        if done.all():
            break
    values = best_values.reshape(n_starts, n_atoms)
    winner = values.argmax(0), jnp.arange(n_atoms)
    return Found(
        best.reshape(n_starts, n_atoms, -1)[winner],
        jnp.stack(trace).reshape(len(trace), n_starts, n_atoms)[:, *winner],
        values,
        evaluations.reshape(n_starts, n_atoms),
    )


def search_hyperparameters(build, noise, search, points, residual, angular, free_mean=False, progress=lambda steps: steps):
    """Best log length scales of every atom for points (N, n, D) and residuals (N, n): a `Found`."""
    goal = objective(build, noise, search.loss, free_mean)
    lengthscales = initial_lengthscales(points, angular)
    far = jnp.log(FAR * lengthscales)

    def climbed(points, residual, coordinates):
        def at(coordinates, x, residual, far):
            return goal(far - log_weights(coordinates), x, residual)

        return maximise(at, (points, residual, far), coordinates, search, progress)

    if search.n_starts:
        starts = random_starts(lengthscales, SCREENED * search.n_starts, search.seed)
    else:
        starts = jnp.log(lengthscales) + jnp.log(jnp.array(START_FACTORS))[:, None, None]
    coordinates = jnp.arcsinh(jnp.exp(far - starts))
    if search.n_seed is not None:
        subset = np.unique(np.linspace(0, points.shape[1] - 1, min(search.n_seed, points.shape[1])).round().astype(int))
        coordinates = climbed(points[:, subset], residual[:, subset], coordinates).parameters[None]
    found = climbed(points, residual, coordinates)
    return found._replace(parameters=far - log_weights(found.parameters))
