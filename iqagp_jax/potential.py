"""The potential: positions (N, 3) in angstrom -> atomic energies (N,) in eV, and everything that follows from them.

The molecular energy is the sum of the atomic energies and the forces are minus its gradient. The plain formula is
`atomic_energies`; `energy_fn` and `energy_and_forces` are the same numbers by matrix products, tested against it.

The functions here take a `Model` or anything else that keeps the contract: an object with ``species``, called with
positions and giving atomic energies, such as `atomwise.Atomwise`.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from iqagp_jax import gp, inference, joint
from iqagp_jax.features import ALF, InverseDistances
from iqagp_jax.kernels import Kernel, Radial

COVARIANCES = 2**22
"""Covariances of geometries with the training data, for their variances, that are in memory at a time: 32 MB, several times."""


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
        "permutations",
        "observed",
        "noise_variance",
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
    noise: float | tuple[float, ...]
    """noise variance as a share of the signal variance, or one share for each of ``targets``"""
    directions: np.ndarray | None = None
    """(N, n, D) b, eV times the features' units; None for a model that has not seen forces"""
    train_positions: np.ndarray | None = None
    """(n, N, 3) angstrom, kept by a model of several targets"""
    permutations: np.ndarray | None = None
    """(P, N) permutations of equal atoms that its covariance is summed over; the training points are all images"""
    observed: np.ndarray | None = None
    """(n M,) bool, which of the observations of a model of several targets there were"""
    noise_variance: np.ndarray | None = None
    """(M,) noise of a geometry's observations in a model of several targets, eV^2 and (eV/angstrom)^2"""
    targets: tuple[str, ...] = ("atomic_energies",)
    """what it was fitted to, of `joint.TARGETS`"""
    provenance: tuple[tuple[str, str], ...] = field(default=())
    """where the model came from, as (name, value) pairs"""

    @property
    def n_train(self):
        """Number of training geometries, their mirrored or permuted copies not counted."""
        return self.weights.shape[1] // self.copies // (1 if self.permutations is None else len(self.permutations))

    @property
    def copies(self):
        """How many times it has each training geometry, mirrored or permuted copies and the geometry itself."""
        return int(dict(self.provenance).get("copies", 1))

    @property
    def process(self):
        """The `joint.Process` of a model of several targets."""
        return joint.Process.of(self.kernel, self.features, self.signal_variance, self.permutations)

    def see(self, positions):
        """`joint.Points` of positions (n, N, 3) in such a model."""
        return joint.embedded(self.kernel, joint.seen(self.features, positions))

    @cached_property
    def known(self):
        """What variances of a model of several targets need: `joint.Points` of what it was trained on, and the Cholesky factor
        of all observations.

        Made when they are first asked for, and kept: they are the most expensive thing about a model.
        """
        joint.check_memory(np.count_nonzero(self.observed))
        with jax.enable_x64(True):
            seen = jax.jit(self.see)(self.train_positions)
            matrix = joint.covariance_matrix(self.process, seen, self.targets, self.noise_variance, self.observed)
            return seen, jnp.asarray(joint.factorise(matrix))


def atomic_energies(model, positions):
    """Atomic energies (N,) in eV of one configuration (N, 3) in angstrom, by the plain formula."""
    with jax.enable_x64(True):
        positions = _double(model, positions)
        return _exact(_plain(model, positions))


def energy_fn(model, dtype=np.float64):
    """Molecular energy as a function of positions: (N, 3) angstrom -> scalar eV, in float64.

    Works under jit, vmap and grad, and is fast there: many geometries under vmap become matrix products.
    ``-jax.grad(energy_fn(model))`` are the forces in eV/angstrom. Second derivatives are exact too. Where JAX's 64-bit
    mode is off, positions and gradients that JAX itself holds in float32 are used with a warning; the arithmetic in between
    stays float64.

    Parameters
    ----------
    dtype: of the arithmetic within a `Model`'s Gaussian processes. float32 is faster and less exact, see `rounding_error`;
        positions, energies and forces are float64 even then.
    """
    value_and_gradient = _value_and_gradient(model, dtype)

    @jax.custom_jvp
    def energy(positions):
        with jax.enable_x64(True):
            return value_and_gradient(_double(model, positions))[0]

    @energy.defjvp
    def energy_jvp(primals, tangents):
        (positions,), (direction,) = primals, tangents
        with jax.enable_x64(True):
            value, gradient = value_and_gradient(_double(model, positions))
            return value, jnp.sum(gradient * direction.astype(gradient.dtype))

    return energy


def energy_and_forces(model, dtype=np.float64):
    """Energies and forces of many replicas: (B, N, 3) angstrom -> (B,) eV and (B, N, 3) eV/angstrom.

    Two matrix products and one exponential per atom; compiled once per shape. ``dtype`` as in `energy_fn`.
    """
    batched = jax.jit(jax.vmap(_value_and_gradient(model, dtype)))

    def apply(positions):
        with jax.enable_x64(True):
            energies, gradients = _exact(batched(_double(model, positions, batch=True)))
            return energies, -gradients

    return apply


def rounding_error(model, positions, dtype):
    """Largest differences of energies (eV) and force components (eV/angstrom) at positions (B, N, 3) from those in float64."""
    exact, found = (energy_and_forces(model, kind)(positions) for kind in (np.float64, dtype))
    return tuple(float(np.abs(a - b).max()) for a, b in zip(exact, found, strict=True))


def _plain(model, positions):
    if not isinstance(model, Model):
        return model(positions)

    def one_atom(kernel, point, train, w, directions):
        if directions is None:
            return jax.vmap(lambda x: kernel(point, x))(train) @ w

        def one_point(x, w, b):
            value, along = jax.jvp(partial(kernel, point), (x,), (b,))
            return w * value + along

        return jax.vmap(one_point)(train, w, directions).sum()

    # XLA would work on constants of their size while it compiles.
    trained = jax.lax.optimization_barrier((model.train_features, model.weights, model.directions))
    return model.mean(positions) + jax.vmap(one_atom)(model.kernel, model.features(positions), *trained)


def _value_and_gradient(model, dtype):
    """Energy and its gradient (N, 3) as a function of float64 positions (N, 3), under vmap of many at a time.

    Derivatives of it, which are second derivatives of the energy, take the same formulas without the chunks.
    """
    if not isinstance(model, Model) or not isinstance(model.kernel, Radial):
        return jax.value_and_grad(lambda r: _plain(model, r).sum())
    with jax.enable_x64(True):
        points = inference.prepare(model, np.dtype(dtype))
    prior = jax.value_and_grad(lambda r: model.mean(r).sum())
    one, many = (partial(deviation, points) for deviation in inference.deviation(model.features))

    @jax.custom_jvp
    def value_and_gradient(positions):
        return jax.tree.map(jnp.add, prior(positions), many(positions))

    @value_and_gradient.defjvp
    def derivative(primals, tangents):
        plain = jax.jvp(lambda r: jax.tree.map(jnp.add, prior(r), one(r)), primals, tangents)
        return value_and_gradient(*primals), plain[1]

    return value_and_gradient


def predictive_variance(model):
    """Posterior variances as a function of positions (B, N, 3) -> (B, N) eV^2, one for every atomic energy."""
    return _prepared(model, "atomic_energies")


def energy_variance(model):
    """Posterior variance of the molecular energy as a function of positions: (B, N, 3) -> (B,) eV^2.

    The sum of the atoms' where their processes are independent; after forces or total energies, which the atoms share,
    their covariances count too.
    """
    variance = _prepared(model, "energy")
    return lambda positions: variance(positions)[:, 0]


def force_variance(model):
    """Posterior variance of the force components as a function of positions: (B, N, 3) -> (B, N, 3) (eV/angstrom)^2."""
    variance = _prepared(model, "forces")
    return lambda positions: variance(positions).reshape(np.shape(positions))


def _prepared(model, target):
    """The variance of one target of `joint.TARGETS`, flat for each geometry, compiled."""
    with jax.enable_x64(True):
        independent = not isinstance(model, Model) or model.targets == ("atomic_energies",)
        batched, known = (_independent_variances if independent else _joint_variances)(model, target)
        compiled = jax.jit(batched)

    def apply(positions):
        with jax.enable_x64(True):
            # An argument: XLA would work on constants of its size while it compiles, in many times their memory.
            return _exact(compiled(known, _double(model, positions, batch=True)))

    return apply


def _independent_variances(model, target):
    """Of atoms that share no observation: the energy's and the forces' variances are sums over the atoms."""
    if not isinstance(model, Model):
        if target == "forces":
            raise ValueError("expected a model of this package for the variance of its forces, found an imported one")
        at = model.variances()
        return lambda _, positions: _total(jax.vmap(at)(positions), target), None
    factors = jax.lax.map(
        lambda a: jnp.linalg.cholesky(gp.covariance_matrix(a[0], a[1], model.noise)),
        (model.kernel, model.train_features),
    )
    atoms = (model.kernel, model.train_features, factors, model.signal_variance)

    def energies(atoms, positions):
        points = jax.vmap(model.features)(positions).swapaxes(0, 1)
        variances = jax.lax.map(lambda a: gp.predictive_variance(*a[0], a[1]), (atoms, points)).T
        return _total(variances, target)

    def forces(atoms, positions):
        def slopes(kernel, train, factor, variance, x):
            along = jax.vmap(jax.grad(kernel), (None, 0))(x, train)
            half = solve_triangular(factor, along, lower=True)
            return variance * (jax.jacfwd(jax.grad(kernel, 0), 1)(x, x) - half.T @ half)

        jacobian = jax.jacfwd(model.features)(positions).reshape(*atoms[1].shape[::2], -1)
        covariances = jax.lax.map(lambda a: slopes(*a[0], a[1]), (atoms, model.features(positions)))
        return jnp.einsum("adx,ade,aex->x", jacobian, covariances, jacobian)

    return (jax.vmap(forces, (None, 0)) if target == "forces" else energies), atoms


def _total(variances, target):
    """(B, N) as they are, or their sum (B, 1) for the energy."""
    return variances if target == "atomic_energies" else variances.sum(1, keepdims=True)


def _joint_variances(model, target):
    """Of a joint process: var(t) - |L^-1 cov(observations, t)|^2 with the factor L of all observations."""
    process, n_atoms = model.process, len(model.species)
    most = max(1, COVARIANCES // (model.observed.size * joint.count((target,), n_atoms)))

    def prior(positions):
        here = model.see(positions[None])
        own = joint.covariance(process, here, here, (target,))[0, :, 0]
        return jnp.diag(own)

    def of_few(known, positions):
        train, factor = known
        new = model.see(positions)
        cross = joint.covariance(process, new, train, (target,), model.targets)
        n, size = cross.shape[:2]
        half = solve_triangular(factor, cross.reshape(n * size, -1)[:, model.observed].T, lower=True)
        explained = (half**2).sum(0).reshape(n, size)
        return jnp.maximum(jax.vmap(prior)(positions) - explained, 0.0)

    return lambda known, positions: inference.in_chunks(partial(of_few, known), most)(positions), model.known


def refuse_copies(model):
    """ValueError for a `Model` of mirrored or permuted copies, which must not be taken for geometries of their own."""
    if model.copies > 1:
        raise ValueError(
            "expected a model without mirrored or permuted copies of its geometries, found one with; train it on inverse"
            " distances, or without mirror and symmetry"
        )


def leave_one_out(model):
    """Leave-one-out residuals (N, n) of the training atomic energies and their standard deviations, both in eV.

    Raises ValueError for a model of forces or total energies, where no observation stands alone, and for one of copied
    geometries, where a copy stays in.
    """
    if not isinstance(model, Model) or model.targets != ("atomic_energies",):
        raise ValueError("expected a model of atomic energies alone to leave one out; validate this one on a test set")

    refuse_copies(model)

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
