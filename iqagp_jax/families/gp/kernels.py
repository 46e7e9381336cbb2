"""Kernels: frozen pytrees whose leaves are their hyperparameters, ``kernel(x, y)`` for two single points.

Every radial kernel is a profile of a squared distance in an embedding, k(x, y) = g(|z(x) - z(y)|^2). With

    4 sin^2(d / 2) = (cos a - cos b)^2 + (sin a - sin b)^2,   d = a - b,

the periodic kernel is one too, and a product of squared exponentials stays one: that is what lets predictions be two
matrix products and one exponential.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.data.content import SMALLEST, numbers
from iqagp_jax.machine.precision import Array

_pytree = partial(jax.tree_util.register_dataclass)

SMOOTHER = 4.0
"""Length scale of the smooth part of `TwoScales`, in those of the rough part."""

LARGER = 1000.0
"""Its variance, in those of the rough part."""


class Kernel:
    """k(x, y) of two points (D,); kernels add and multiply."""

    __call__: ClassVar[Callable[..., Any]]

    check_fit: ClassVar[Callable[..., Any]]
    """(front, D): ValueError, in a sentence, unless its arrays are of shape ``front``, then D where every feature has one, and
    make sense; for points (D,). Asked where a kernel was read from a file."""

    def __add__(self, other):
        return Sum(self, other)

    def __mul__(self, other):
        if isinstance(self, SquaredExponential) and isinstance(other, SquaredExponential):
            return Joint(self, other)
        return Product(self, other)


class Radial(Kernel):
    """k(x, y) = profile(s), s = |embed(x) - embed(y)|^2; ``slope`` and ``curvature`` are d/ds and d^2/ds^2 of the profile."""

    embed: ClassVar[Callable[..., Any]]
    profile: ClassVar[Callable[..., Any]]
    slope: ClassVar[Callable[..., Any]]
    curvature: ClassVar[Callable[..., Any]]

    def __call__(self, x, y):
        difference = self.embed(x) - self.embed(y)
        return self.profile(difference @ difference)


class SquaredExponential(Radial):
    """A radial kernel with the profile exp(-s/2), s the squared distance in the embedding."""

    @staticmethod
    def profile(s):
        """exp(-s/2)"""
        return jnp.exp(-0.5 * s)

    @staticmethod
    def slope(s):
        """-1/2 exp(-s/2)"""
        return -0.5 * jnp.exp(-0.5 * s)

    @staticmethod
    def curvature(s):
        """1/4 exp(-s/2)"""
        return 0.25 * jnp.exp(-0.5 * s)


@dataclass(frozen=True)
class Scaled:
    """The embedding of kernels that see every feature in units of its length scale."""

    lengthscale: Array
    """scalar or (D,), in the features' units"""

    def embed(self, x):
        """z = x / l"""
        return x / self.lengthscale

    def check_fit(self, front, d):
        """See `Kernel`."""
        _check_lengthscale(self, front, d)


def _check_lengthscale(kernel, front, d):
    """One for all features, or one a feature (D,), infinite where that is not felt."""
    one = np.ndim(kernel.lengthscale) == len(front)
    numbers("length scales", kernel.lengthscale, front if one else (*front, d), SMALLEST, infinite=not one)


@_pytree
@dataclass(frozen=True)
class RBF(Scaled, SquaredExponential):
    """exp(-1/2 sum_d (x_d - y_d)^2 / l_d^2); FEREBUS' theta_d is 1 / (2 l_d^2)."""


@_pytree
@dataclass(frozen=True)
class Periodic(SquaredExponential):
    """exp(-1/2 sum_d 4 sin^2((x_d - y_d) / 2) / l_d^2), period 2 pi; FEREBUS' theta_d is 1 / (2 l_d^2)."""

    lengthscale: Array
    """scalar or (D,), in radian for small angles"""

    def embed(self, x):
        """z = (cos x, sin x) / l"""
        return jnp.concatenate([jnp.cos(x) / self.lengthscale, jnp.sin(x) / self.lengthscale], axis=-1)

    def check_fit(self, front, d):
        """See `Kernel`."""
        _check_lengthscale(self, front, d)


@_pytree
@dataclass(frozen=True)
class Matern52(Scaled, Radial):
    """(1 + a + a^2/3) exp(-a), a = sqrt(5 sum_d (x_d - y_d)^2 / l_d^2) (Rasmussen and Williams, eq. 4.17)."""

    @staticmethod
    def profile(s):
        """(1 + a + a^2/3) exp(-a), a = sqrt(5 s)"""
        return _matern52(s)

    @staticmethod
    def slope(s):
        """-5/6 (1 + a) exp(-a)"""
        return _matern52_slope(s)

    @staticmethod
    def curvature(s):
        """25/12 exp(-a)"""
        # Infinitely steep at zero, where covariances multiply it by zero: their gradients must not see that.
        here = s == 0
        return 25 / 12 * jnp.exp(-jnp.where(here, 0.0, jnp.sqrt(5 * jnp.where(here, 1.0, s))))


# The square root has no derivative at zero, but the profile and its slope do: those are given.
@jax.custom_jvp
def _matern52(s):
    a = jnp.sqrt(5 * s)
    return (1 + a + a * a / 3) * jnp.exp(-a)


@jax.custom_jvp
def _matern52_slope(s):
    a = jnp.sqrt(5 * s)
    return -5 / 6 * (1 + a) * jnp.exp(-a)


_matern52.defjvps(lambda ds, value, s: Matern52.slope(s) * ds)
_matern52_slope.defjvps(lambda ds, value, s: Matern52.curvature(s) * ds)


@_pytree
@dataclass(frozen=True)
class Matern92(Scaled, Radial):
    """(1 + a + 3a^2/7 + 2a^3/21 + a^4/105) exp(-a), a = 3 sqrt(sum_d (x_d - y_d)^2 / l_d^2).

    Rasmussen and Williams, eq. 4.16.
    """

    @staticmethod
    def profile(s):
        """(1 + a + 3a^2/7 + 2a^3/21 + a^4/105) exp(-a), a = 3 sqrt(s)"""
        return _matern92(s)

    @staticmethod
    def slope(s):
        """-9/14 (1 + a + 2a^2/5 + a^3/15) exp(-a)"""
        return _matern92_slope(s)

    @staticmethod
    def curvature(s):
        """81/140 (1 + a + a^2/3) exp(-a)"""
        return _matern92_curvature(s)


@jax.custom_jvp
def _matern92(s):
    a = 3 * jnp.sqrt(s)
    return (1 + a * (1 + a * (3 / 7 + a * (2 / 21 + a / 105)))) * jnp.exp(-a)


@jax.custom_jvp
def _matern92_slope(s):
    a = 3 * jnp.sqrt(s)
    return -9 / 14 * (1 + a * (1 + a * (2 / 5 + a / 15))) * jnp.exp(-a)


@jax.custom_jvp
def _matern92_curvature(s):
    a = 3 * jnp.sqrt(s)
    return 81 / 140 * (1 + a * (1 + a / 3)) * jnp.exp(-a)


def _matern92_third(s):
    a = 3 * jnp.sqrt(s)
    return -243 / 280 * (1 + a) * jnp.exp(-a)


_matern92.defjvps(lambda ds, value, s: Matern92.slope(s) * ds)
_matern92_slope.defjvps(lambda ds, value, s: Matern92.curvature(s) * ds)
_matern92_curvature.defjvps(lambda ds, value, s: _matern92_third(s) * ds)


@_pytree
@dataclass(frozen=True)
class TwoScales(Scaled, Radial):
    """(k(x, y) + A exp(-|x - y|^2 / 2 (L l)^2)) / (1 + A), k a Matern92 of length scale l.

    A smooth surface of `SMOOTHER` = L times the length scale and `LARGER` = A times the variance, and a rough one on it.
    """

    @staticmethod
    def profile(s):
        """(phi(s) + A exp(-s / 2 L^2)) / (1 + A), phi that of `Matern92`"""
        return _with_smooth(0, _matern92(s), s)

    @staticmethod
    def slope(s):
        """d/ds of it"""
        return _with_smooth(1, _matern92_slope(s), s)

    @staticmethod
    def curvature(s):
        """d^2/ds^2 of it"""
        return _with_smooth(2, _matern92_curvature(s), s)


def _with_smooth(k, rough, s):
    """The k-th derivative of the profile from that of its rough part."""
    sharpness = -0.5 / SMOOTHER**2
    return (rough + LARGER * sharpness**k * jnp.exp(sharpness * s)) / (1 + LARGER)


class _OfColumns:
    """What kernels of some columns share."""

    kernel: Any
    columns: tuple[int, ...]

    def check_fit(self, front, d):
        """See `Kernel`."""
        columns = numbers("columns of a kernel", self.columns, (None,), least=0, kinds="iu")
        if len(set(self.columns)) != len(columns) or (columns >= d).any():
            raise ValueError(f"expected different columns from 0 to {d - 1} for a kernel, found {self.columns}")
        self.kernel.check_fit(front, len(columns))


class _OfTwo:
    """What sums and products of kernels share."""

    first: Any
    second: Any

    def check_fit(self, front, d):
        """See `Kernel`."""
        self.first.check_fit(front, d)
        self.second.check_fit(front, d)


@partial(jax.tree_util.register_dataclass, data_fields=["kernel"], meta_fields=["columns"])
@dataclass(frozen=True)
class Select(_OfColumns, SquaredExponential):
    """A squared-exponential kernel that sees only some ``columns`` of the features."""

    kernel: SquaredExponential
    columns: tuple[int, ...]

    def embed(self, x):
        """The kernel's embedding of the selected columns."""
        return self.kernel.embed(x[..., np.array(self.columns, dtype=int)])


@partial(jax.tree_util.register_dataclass, data_fields=["kernel"], meta_fields=["columns"])
@dataclass(frozen=True)
class Restrict(_OfColumns, Kernel):
    """Any kernel that sees only some ``columns`` of the features; for squared exponentials `Select` is faster."""

    kernel: Kernel
    columns: tuple[int, ...]

    def __call__(self, x, y):
        columns = np.array(self.columns, dtype=int)
        return self.kernel(x[columns], y[columns])


@_pytree
@dataclass(frozen=True)
class RBFCyclic(Kernel):
    """exp(-1/2 sum_d w_d(x_d - y_d)^2 / l_d^2), w_d wrapping to half a period either way: FEREBUS' ``rbf-cyclic``.

    Not smooth half a period away, where a difference jumps from one end to the other.
    """

    lengthscale: Array
    """scalar or (D,), in the features' units"""
    period: Array
    """(D,), inf where a feature is not cyclic"""

    def __call__(self, x, y):
        cyclic = jnp.isfinite(self.period)
        period = jnp.where(cyclic, self.period, 1.0)
        difference = x - y
        difference = difference - jnp.where(cyclic, period * jnp.round(difference / period), 0.0)
        return jnp.exp(-0.5 * jnp.sum((difference / self.lengthscale) ** 2))

    def check_fit(self, front, d):
        """See `Kernel`."""
        _check_lengthscale(self, front, d)
        numbers("periods", self.period, (*front, d), SMALLEST, infinite=True)


@partial(jax.tree_util.register_dataclass, data_fields=["scale"], meta_fields=["order"])
@dataclass(frozen=True)
class Linear(Kernel):
    """sum_d (x_d y_d)^order / c_d; FEREBUS' ``linear``."""

    scale: Array
    """c, (D,), in the features' units to the power 2 order"""
    order: int = 1

    def __call__(self, x, y):
        return jnp.sum((x * y) ** self.order / self.scale)

    def check_fit(self, front, d):
        """See `Kernel`."""
        numbers("the order of a linear kernel", self.order, (), least=1, kinds="iu")
        numbers("scales of a linear kernel", self.scale, (*front, d), SMALLEST, infinite=True)


@_pytree
@dataclass(frozen=True)
class Constant(Kernel):
    """The same covariance between all points."""

    value: Array

    def __call__(self, x, y):
        return self.value

    def check_fit(self, front, d):
        """See `Kernel`."""
        numbers("a constant covariance", self.value, front, least=0)


@_pytree
@dataclass(frozen=True)
class Joint(_OfTwo, SquaredExponential):
    """Product of two squared exponentials: one squared exponential in the joined embedding."""

    first: SquaredExponential
    second: SquaredExponential

    def embed(self, x):
        """Both embeddings, one after the other."""
        return jnp.concatenate([self.first.embed(x), self.second.embed(x)], axis=-1)


@_pytree
@dataclass(frozen=True)
class Sum(_OfTwo, Kernel):
    """k1(x, y) + k2(x, y)"""

    first: Kernel
    second: Kernel

    def __call__(self, x, y):
        return self.first(x, y) + self.second(x, y)


@_pytree
@dataclass(frozen=True)
class Product(_OfTwo, Kernel):
    """k1(x, y) k2(x, y)"""

    first: Kernel
    second: Kernel

    def __call__(self, x, y):
        return self.first(x, y) * self.second(x, y)


def covariance(kernel, x, y):
    """Matrix k(x_i, y_j), (n, m), from points (n, D) and (m, D)."""
    return jax.vmap(lambda a: jax.vmap(lambda b: kernel(a, b))(y))(x)


NAMES = ("matern52", "matern92", "matern92+rbf", "rbf", "rbf-periodic")
"""By which `build_kernel` knows them."""


SIMPLE: dict[str, Any] = {"rbf": RBF, "matern52": Matern52, "matern92": Matern92, "matern92+rbf": TwoScales}
"""Those of them that are the same function of every feature."""


def name_of(kernel: Kernel) -> str:
    """The name by which `build_kernel` makes such a kernel; empty where none does."""
    return next((name for name, kind in (*SIMPLE.items(), ("rbf-periodic", Joint)) if type(kernel) is kind), "")


def build_kernel(name, lengthscale, angular):
    """The kernel ``name`` with one length scale a feature (D,); ``angular`` (D,) marks features of period 2 pi."""
    if name not in NAMES:
        raise ValueError(f"expected kernel among {', '.join(NAMES)}, found {name!r}")
    if name == "rbf-periodic":
        straight, around = (tuple(np.flatnonzero(mask).tolist()) for mask in (~angular, angular))
        return Joint(
            Select(RBF(lengthscale[..., np.array(straight, dtype=int)]), straight),
            Select(Periodic(lengthscale[..., np.array(around, dtype=int)]), around),
        )
    if angular.any():
        raise ValueError(f"kernel {name!r} would tear the angles of these features at +-pi; use 'rbf-periodic'")
    return SIMPLE[name](lengthscale)
