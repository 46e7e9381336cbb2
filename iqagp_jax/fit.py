"""Fitting: from a dataset to a model, hyperparameters by maximising the log marginal likelihood."""

from functools import partial
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iqagp_jax import gp
from iqagp_jax.features import FEATURES
from iqagp_jax.kernels import RBF, Joint, Matern52, Periodic, Select
from iqagp_jax.means import constant_mean
from iqagp_jax.potential import Model

KERNELS = ("matern52", "rbf", "rbf-periodic")

DEFAULT_KERNEL = {"inverse-distances": "matern52", "alf": "rbf-periodic"}

NOISE = 1e-8
"""Noise variance as a share of the signal variance; see `fit_gp`."""

START_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""The optimisation starts from the likeliest of these multiples of `initial_lengthscales`."""

CONVERGED = 0.01
"""An atom is converged when a step raises its log likelihood by less than this."""


def build_kernel(name, lengthscale, angular):
    """The kernel ``name`` with one length scale a feature (D,); ``angular`` (D,) marks features of period 2 pi."""
    if name not in KERNELS:
        raise ValueError(f"expected a kernel among {', '.join(KERNELS)}, found {name!r}")
    if name == "rbf-periodic":
        straight, around = (tuple(np.flatnonzero(mask).tolist()) for mask in (~angular, angular))
        return Joint(
            Select(RBF(lengthscale[..., np.array(straight, dtype=int)]), straight),
            Select(Periodic(lengthscale[..., np.array(around, dtype=int)]), around),
        )
    if angular.any():
        raise ValueError(f"kernel {name!r} would tear the angles of these features at +-pi; use 'rbf-periodic'")
    return {"rbf": RBF, "matern52": Matern52}[name](lengthscale)


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


def maximise_likelihood(objective, data, starts, max_steps, progress=lambda steps: steps):
    """Maximise ``objective(parameters, *data)`` for every atom at once by L-BFGS (optax), (N, P) from (S, N, P).

    Every atom begins at its best of the S starts. An atom that has converged is left alone while the others go on.
    Returns the best parameters and the trace (steps + 1, N) of the objective.
    """

    def loss(parameters, *data):
        return -objective(parameters, *data)

    optimiser = optax.lbfgs(memory_size=15, linesearch=optax.scale_by_zoom_linesearch(max_linesearch_steps=12))

    def one_step(arguments):
        done, parameters, state, data = arguments

        def advance(operand):
            parameters, state = operand
            value, gradient = optax.value_and_grad_from_state(loss)(parameters, *data, state=state)
            updates, state = optimiser.update(
                gradient, state, parameters, value=value, grad=gradient, value_fn=lambda p: loss(p, *data)
            )
            return optax.apply_updates(parameters, updates), state, -optax.tree.get(state, "value")

        def stay(operand):
            return *operand, -optax.tree.get(operand[1], "value")

        return jax.lax.cond(done, stay, advance, (parameters, state))

    step = jax.jit(lambda *arguments: jax.lax.map(one_step, arguments))
    evaluate = jax.jit(lambda p, d: jax.lax.map(lambda a: objective(a[0], *a[1]), (p, d)))
    candidates = jnp.stack([evaluate(s, data) for s in starts])
    start = starts[candidates.argmax(0), jnp.arange(starts.shape[1])]
    values = candidates.max(0)
    state = jax.vmap(optimiser.init)(start)
    best, best_values, parameters = start, values, start
    trace, done = [values], jnp.zeros(len(start), bool)
    for _ in progress(range(max_steps)):
        parameters, state, values = step(done, parameters, state, data)
        better = values > best_values
        best = jnp.where(better[:, None], parameters, best)
        done |= ~(values - trace[-1] > CONVERGED)
        best_values = jnp.where(better, values, best_values)
        trace.append(values)
        if done.all():
            break
    return best, jnp.stack(trace)


def fit_gp(
    dataset,
    features="inverse-distances",
    kernel=None,
    prior_mean="mf5",
    n_train=None,
    noise=NOISE,
    max_steps=40,
    n_hyper=None,
    mirror=False,
    progress=lambda steps: steps,
):
    """Fit one Gaussian process per atom to the atomic energies of a `Dataset`; returns a `Model`.

    The hyperparameters (a length scale per feature and the signal variance of every atom) maximise the log marginal
    likelihood of the training data. The noise is fixed at ``noise`` times the signal variance: labels of a converged
    calculation have next to none, and a likelihood that may choose it explains what the kernel cannot by noise (it
    drove the variance to 1e-3 of the signal and made forces worse in our trials).

    Parameters
    ----------
    features: "inverse-distances" or "alf" (atomic local frames).
    kernel: "matern52" (default for inverse distances), "rbf", "rbf-periodic" (default for alf).
    prior_mean: a name of `means.PRIOR_MEANS`, or a pure JAX function (N, 3) angstrom -> (N,) eV.
    n_train: use the first n frames of the training split; all by default.
    max_steps: L-BFGS steps at most; 0 keeps the likeliest of the starting length scales.
    n_hyper: fit the hyperparameters on the first so many training frames (all by default); weights always use all.
    mirror: add the mirror image of every training geometry, which has the same energies but other ALF features, to
        the data that the weights are fitted to; the hyperparameters see the originals only.
    progress: wraps the range of optimisation steps, as a progress bar does.

    Raises ValueError for unknown names, too few geometries, or a dataset without atomic energies.
    """
    train = _training_frames(dataset, n_train)
    if features not in FEATURES:
        raise ValueError(f"expected features among {', '.join(FEATURES)}, found {features!r}")
    if not 0 < noise < 1:
        raise ValueError(f"expected a noise between 0 and 1 (a share of the signal variance), found {noise}")
    kernel = kernel or DEFAULT_KERNEL[features]
    chosen = FEATURES[features].choose(train.species, train.positions)
    with jax.enable_x64(True):
        mean = (
            prior_mean
            if callable(prior_mean)
            else constant_mean(prior_mean, train.atomic_energies, train.thermal, train.species, train.free_atoms)
        )
        positions = np.concatenate([train.positions, train.mirrored().positions]) if mirror else train.positions
        energies = np.concatenate([train.atomic_energies] * (2 if mirror else 1))
        prior = jax.jit(jax.vmap(mean))(jnp.asarray(positions))
        residual = (jnp.asarray(energies) - prior).T
        points = jax.jit(jax.vmap(chosen))(jnp.asarray(positions)).swapaxes(0, 1)

        def build(log_lengthscale):
            return build_kernel(kernel, jnp.exp(log_lengthscale), chosen.angular)

        def objective(log_lengthscale, x, r):
            return gp.log_likelihood(gp.covariance_matrix(build(log_lengthscale), x, noise), r, True)

        scales = jnp.log(jnp.array(START_FACTORS))
        starts = jnp.log(initial_lengthscales(points, chosen.angular)) + scales[:, None, None]
        # Mirror copies would bias the likelihood: that twins agree is no evidence of smoothness.
        subset = slice(None, n_hyper or len(train))
        best, trace = maximise_likelihood(objective, (points[:, subset], residual[:, subset]), starts, max_steps, progress)
        made_by = {
            "kernel": kernel,
            "prior_mean": getattr(prior_mean, "__name__", prior_mean),
            "program": f"iqagp_jax {version('iqagp-jax')}, jax {jax.__version__}",
        }
        return condition(train, chosen, build(best), mean, points, residual, noise, trace, made_by)


@partial(jax.jit, static_argnums=3)
def _solve(kernel, points, residual, noise):
    def one_atom(arguments):
        k, x, r = arguments
        factor = jnp.linalg.cholesky(gp.covariance_matrix(k, x, noise))
        return gp.weights(factor, r), gp.signal_variance(factor, r)

    return jax.lax.map(one_atom, (kernel, points, residual))


def condition(train, features, kernel, mean, points, residual, noise, trace, provenance):
    """The model at given hyperparameters: weights and signal variances from one Cholesky factor per atom.

    Raises ValueError where a covariance matrix is not positive definite, as with duplicate geometries.
    """
    weights, variance = _solve(kernel, points, residual, noise)
    if not np.isfinite(weights).all():
        atom = int(np.argwhere(~np.isfinite(np.asarray(weights)))[0, 0])
        raise ValueError(
            f"the covariance matrix of atom {train.species[atom]}{atom + 1} is not positive definite: are there"
            " duplicate geometries? Remove them or raise the noise"
        )
    # NumPy arrays in the model: JAX's own would lose half their digits in arithmetic outside its 64-bit mode.
    return jax.device_get(
        Model(
            species=train.species,
            features=features,
            kernel=kernel,
            mean=mean,
            train_features=points,
            weights=weights,
            signal_variance=variance,
            residual=residual,
            reference=train.positions[np.argmin(train.energy)],
            trace=trace,
            noise=noise,
            provenance=tuple({**train.level, **provenance}.items()),
        )
    )


def _training_frames(dataset, n_train):
    """The first n frames of the training split (of everything where there are no splits), checked."""
    train = dataset.split("train") if dataset.splits else dataset
    if train.atomic_energies is None:
        raise ValueError("expected a dataset with atomic energies (per-atom array REF_atomic_energies), found none")
    n = len(train) if n_train is None else n_train
    if not 2 <= n <= len(train):
        raise ValueError(f"expected between 2 and {len(train)} training geometries, the size of the split, found {n}")
    return train[:n]
