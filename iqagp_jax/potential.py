"""The potential: positions (N, 3) in angstrom -> atomic energies (N,) in eV, and everything that follows from them.

The molecular energy is the sum of the atomic energies and the forces are minus its gradient. The plain formula is
`atomic_energies`; `energy_fn` and `energy_and_forces` are the same numbers by matrix products, tested against it.

The functions here take a `Model` or anything else that keeps the contract: an object with ``species``, called with
positions and giving atomic energies, such as `atomwise.Atomwise`.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from scipy.linalg import cholesky

from iqagp_jax import gp, joint
from iqagp_jax.features import ALF, InverseDistances
from iqagp_jax.kernels import Kernel, Radial


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "features",
        "kernel",
        "mean",
        "train_features",
        "weights",
        "directions",
        "train_positions",
        "signal_variance",
        "residual",
        "reference",
        "trace",
    ],
    meta_fields=["species", "noise", "targets", "provenance"],
)
@dataclass(frozen=True)
class Model:
    """One Gaussian process per atom, E_A(R) = m_A(R) + sum_i w_Ai k_A(x, x_i) + b_Ai . dk_A(x, x_i)/dx_i. A frozen pytree.

    x = f_A(R) and x_i = f_A(R_i) are features. Every array of ``kernel`` has the atoms as its first axis.
    """

    species: tuple[str, ...]
    features: ALF | InverseDistances
    kernel: Kernel
    mean: Callable
    train_features: np.ndarray
    """(N, n, D)"""
    weights: np.ndarray
    """(N, n) eV"""
    signal_variance: np.ndarray
    """(N,) eV^2"""
    residual: np.ndarray | None
    """(N, n) eV, training atomic energies minus prior mean, where there are any"""
    reference: np.ndarray
    """(N, 3) angstrom, the training geometry of lowest energy: defines the bonds and equilibrium starts"""
    trace: np.ndarray
    """(steps, N) log likelihood of every atom while the hyperparameters were fitted"""
    noise: float
    """noise variance as a share of the signal variance"""
    directions: np.ndarray | None = None
    """(N, n, D) b, eV times the features' units; None for a model that has not seen forces"""
    train_positions: np.ndarray | None = None
    """(n, N, 3) angstrom, kept by a model of several targets"""
    targets: tuple[str, ...] = ("atomic_energies",)
    """what it was fitted to, of `joint.TARGETS`"""
    provenance: tuple[tuple[str, str], ...] = field(default=())
    """where the model came from, as (name, value) pairs"""

    @property
    def n_train(self):
        """Number of training points of each atom."""
        return self.weights.shape[1]


def atomic_energies(model, positions):
    """Atomic energies (N,) in eV of one configuration (N, 3) in angstrom, by the plain formula."""
    with jax.enable_x64(True):
        positions = _double(model, positions)
        if not isinstance(model, Model):
            return _exact(model(positions))

        def one_atom(kernel, point, train, w, directions):
            if directions is None:
                return jax.vmap(lambda x: kernel(point, x))(train) @ w

            def one_point(x, w, b):
                value, along = jax.jvp(partial(kernel, point), (x,), (b,))
                return w * value + along

            return jax.vmap(one_point)(train, w, directions).sum()

        trained = (model.train_features, model.weights, model.directions)
        deviation = jax.vmap(one_atom)(model.kernel, model.features(positions), *trained)
        return _exact(model.mean(positions) + deviation)


def energy_fn(model):
    """Molecular energy as a function of positions: (N, 3) angstrom -> scalar eV, in float64.

    Works under jit, vmap and grad; ``-jax.grad(energy_fn(model))`` are the forces in eV/angstrom. Second derivatives
    are exact too. Where JAX's 64-bit mode is off, positions and gradients that JAX itself holds in float32 are used
    with a warning; the arithmetic in between stays float64.
    """

    training = _training(model)

    @jax.custom_jvp
    def energy(positions):
        with jax.enable_x64(True):
            return _energy_and_gradient(model, training, _double(model, positions))[0]

    @energy.defjvp
    def energy_jvp(primals, tangents):
        (positions,), (direction,) = primals, tangents
        with jax.enable_x64(True):
            value, gradient = _energy_and_gradient(model, training, _double(model, positions))
            return value, jnp.sum(gradient * direction.astype(gradient.dtype))

    return energy


def energy_and_forces(model):
    """Energies and forces of many replicas: (B, N, 3) angstrom -> (B,) eV and (B, N, 3) eV/angstrom.

    Two matrix products and one exponential per atom; compiled once per shape.
    """

    training = _training(model)

    @jax.jit
    def batched(positions):
        energies, gradients = jax.vmap(partial(_energy_and_gradient, model, training))(positions)
        return energies, -gradients

    def apply(positions):
        with jax.enable_x64(True):
            return _exact(batched(_double(model, positions, batch=True)))

    return apply


def _training(model):
    """What the fast path knows of the training points of each atom before any geometry comes.

    For radial kernels the embedded points z - c (N, n, E), their squared norms and their centre c (N, E): squared
    distances are differences of large numbers, so they are taken about the centre; and, after forces, the embedded
    directions b (N, n, E) and b.(z - c). Else the features as they are.
    """
    if not isinstance(model, Model):
        return None
    if not isinstance(model.kernel, Radial):
        return model.train_features

    def one_atom(arguments):
        kernel, train, directions = arguments
        z = kernel.embed(train)
        centre = z.mean(0)
        z = z - centre
        if directions is None:
            return z, (z * z).sum(1), centre
        b = jax.jvp(kernel.embed, (train,), (directions,))[1]
        return z, (z * z).sum(1), centre, b, (b * z).sum(1)

    with jax.enable_x64(True):
        return jax.lax.map(one_atom, (model.kernel, model.train_features, model.directions))


def _deviation(kernel, training, w, point):
    """Posterior minus prior mean of one atom at one point (D,): a matrix product under vmap where the kernel is radial."""
    if not isinstance(kernel, Radial):
        return jax.vmap(lambda x: kernel(point, x))(training) @ w
    z, squares, centre, *along = training
    u = kernel.embed(point) - centre
    s = jnp.maximum(squares - 2 * z @ u + u @ u, 0.0)
    if not along:
        return w @ kernel.profile(s)
    b, offsets = along
    # d/dz_i of profile(|u - z_i|^2) along b_i
    return w @ kernel.profile(s) - 2 * kernel.slope(s) @ (b @ u - offsets)


def _energy_and_gradient(model, training, positions):
    """Energy and its gradient (N, 3) for float64 positions (N, 3).

    The derivative goes through the features by their vector-Jacobian product, and within an atom is taken before the
    next atom begins, so that no array holds all atoms' covariances.
    """
    if not isinstance(model, Model):
        return jax.value_and_grad(lambda r: model(r).sum())(positions)
    features, pull_back = jax.vjp(model.features, positions)

    def one_atom(arguments):
        kernel, points, w, x = arguments
        return jax.value_and_grad(partial(_deviation, kernel, points, w))(x)

    deviations, slopes = jax.lax.map(one_atom, (model.kernel, training, model.weights, features))
    prior, prior_gradient = jax.value_and_grad(lambda r: model.mean(r).sum())(positions)
    return prior + deviations.sum(), prior_gradient + pull_back(slopes)[0]


def predictive_variance(model):
    """Posterior variances as a function of positions (B, N, 3) -> (B, N) eV^2, one for every atomic energy."""
    return _prepared(model, lambda atomic, total: atomic)


def energy_variance(model):
    """Posterior variance of the molecular energy as a function of positions: (B, N, 3) -> (B,) eV^2.

    The sum of the atoms' where their processes are independent; after forces or total energies, which the atoms share,
    their covariances count too.
    """
    return _prepared(model, lambda atomic, total: total)


def _prepared(model, choose):
    with jax.enable_x64(True):
        if not isinstance(model, Model):
            at = model.variances()
            batched = jax.vmap(lambda r: (at(r), at(r).sum()))
        elif model.targets == ("atomic_energies",):
            batched = _model_variances(model)
        else:
            batched = _joint_variances(model)
        compiled = jax.jit(lambda positions: choose(*batched(positions)))

    def apply(positions):
        with jax.enable_x64(True):
            return _exact(compiled(_double(model, positions, batch=True)))

    return apply


def _model_variances(model):
    factors = jax.lax.map(
        lambda a: jnp.linalg.cholesky(gp.covariance_matrix(a[0], a[1], model.noise)),
        (model.kernel, model.train_features),
    )

    def batched(positions):
        points = jax.vmap(model.features)(positions).swapaxes(0, 1)
        atoms = (model.kernel, model.train_features, factors, model.signal_variance, points)
        variances = jax.lax.map(lambda a: gp.predictive_variance(*a), atoms).T
        return variances, variances.sum(1)

    return batched


def _joint_variances(model):
    """Of a joint process: cov(E, E) - |L^-1 cov(observations, E)|^2 with the factor L of all observations."""
    embed, radial = joint.embedding(model.kernel, model.features), type(model.kernel)
    train = jax.jit(lambda r: joint.embedded(embed, r))(model.train_positions)
    scales = joint.scales(model.kernel, model.features, model.signal_variance)
    matrix = joint.covariance_matrix(radial, scales, train, model.targets, model.noise)
    factor = jnp.asarray(cholesky(matrix, lower=True, overwrite_a=True, check_finite=False))

    def batched(positions):
        new = joint.embedded(embed, positions)
        cross = joint.covariance(radial, scales, new, train, ("atomic_energies",), model.targets)
        n, n_atoms = cross.shape[:2]
        half = solve_triangular(factor, cross.reshape(n * n_atoms, -1).T, lower=True).reshape(-1, n, n_atoms)
        atomic = model.signal_variance - (half**2).sum(0)
        total = model.signal_variance.sum() - (half.sum(2) ** 2).sum(0)
        return jnp.maximum(atomic, 0.0), jnp.maximum(total, 0.0)

    return batched


def leave_one_out(model):
    """Leave-one-out residuals (N, n) of the training atomic energies and their standard deviations, both in eV.

    Raises ValueError for a model of forces or total energies, where no observation stands alone.
    """
    if not isinstance(model, Model) or model.targets != ("atomic_energies",):
        raise ValueError("expected a model of atomic energies alone to leave one out; validate this one on a test set")

    def one_atom(arguments):
        kernel, train, residual, s2 = arguments
        factor = jnp.linalg.cholesky(gp.covariance_matrix(kernel, train, model.noise))
        error, precision = gp.leave_one_out(factor, residual)
        return error, jnp.sqrt(s2 / precision)

    with jax.enable_x64(True):
        return _exact(jax.lax.map(one_atom, (model.kernel, model.train_features, model.residual, model.signal_variance)))


def check_positions(species, positions, batch=False):
    """Positions as an array; ValueError, in a sentence, if they are not (N, 3), or (B, N, 3), finite angstrom."""
    shape = np.shape(positions)
    expected = (len(species), 3)
    if shape[-2:] != expected or len(shape) != 2 + batch:
        wanted = ("(replicas, " if batch else "(") + f"{len(species)}, 3)"
        raise ValueError(
            f"expected positions of shape {wanted} for the atoms {' '.join(species)}, found {shape};"
            " give the atoms of the model in its order"
        )
    if not isinstance(positions, jax.core.Tracer) and not np.isfinite(np.asarray(positions)).all():
        raise ValueError("expected finite positions in angstrom, found a NaN or infinity; check the geometry")
    return positions


def _exact(results):
    """Results as NumPy arrays, unless JAX is tracing: JAX's own would turn float32 where its 64-bit mode is off."""
    return jax.tree.map(lambda x: x if isinstance(x, jax.core.Tracer) else np.asarray(x), results)


def _double(model, positions, batch=False):
    return double(check_positions(model.species, positions, batch))


def double(positions):
    """Positions in float64, to be called in 64-bit mode; a warning where JAX itself held them in float32."""
    if isinstance(positions, jax.Array) and positions.dtype != jnp.float64:
        warnings.warn(
            f"positions are {positions.dtype}: JAX's 64-bit mode is off, so they and their gradients are rounded to"
            " about 1e-7; use `with jax.enable_x64(True):` or JAX_ENABLE_X64=1 for float64 throughout",
            stacklevel=4,
        )
    return jnp.asarray(positions, dtype=jnp.float64)
