"""Atomic local frames, and lengths and angles whose gradients stay finite: pure JAX functions of one configuration."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from iqagp_jax.machine.precision import Array

TINY = 1e-24
"""Added under roots whose argument may vanish (angstrom^2), so that gradients stay finite."""


def norm(v: Float[Array, "*batch 3"]) -> Float[Array, "*batch"]:
    """Length of vectors (..., 3) whose gradient is finite, zero, at the origin."""
    return jnp.sqrt(jnp.sum(v * v, -1) + TINY)


@jax.custom_jvp
def angle(sine: Float[Array, "*batch"] | float, cosine: Float[Array, "*batch"] | float) -> Float[Array, "*batch"]:
    """atan2 in (-pi, pi] whose gradient is finite, zero, at the origin; to two roundings, at a third of XLA's time."""
    x, y = jnp.abs(cosine), jnp.abs(sine)
    long, short = jnp.maximum(x, y), jnp.minimum(x, y)
    # tan(a - pi/4) = (tan a - 1) / (tan a + 1) brings what is above pi/8 below it.
    steep = short > _TAN * long
    t = jnp.where(steep, short - long, short) / jnp.maximum(jnp.where(steep, short + long, long), TINY)
    a = t * jnp.polyval(jnp.asarray(_ARCTAN, t.dtype), t * t, unroll=len(_ARCTAN)) + jnp.where(steep, np.pi / 4, 0.0)
    a = jnp.where(y > x, np.pi / 2 - a, a)
    a = jnp.where(cosine < 0, np.pi - a, a)
    return jnp.where(sine < 0, -a, a)


@angle.defjvp
def _angle_jvp(primals, tangents):
    (sine, cosine), (d_sine, d_cosine) = primals, tangents
    square = sine * sine + cosine * cosine
    at_origin = square < TINY
    slope = (cosine * d_sine - sine * d_cosine) / jnp.where(at_origin, 1.0, square)
    return angle(sine, cosine), jnp.where(at_origin, 0.0, slope)


_TAN = math.tan(math.pi / 8)


def _arctan_coefficients():
    """Highest power first, of arctan(t) / t in t^2 up to tan(pi/8)^2: the Chebyshev interpolant, exact to 1e-16."""
    polynomial = np.polynomial.Chebyshev.interpolate(lambda z: np.arctan(np.sqrt(z)) / np.sqrt(z), 12, [0, _TAN**2])
    return polynomial.convert(kind=np.polynomial.Polynomial).coef[::-1]


_ARCTAN = _arctan_coefficients()


def axes(to_x: Float[Array, "3"], to_xy: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """Axes (3, 3) of an atomic local frame: e_x to the x-axis atom, e_y towards the xy-plane atom, e_z = e_x x e_y."""
    e_x = to_x / norm(to_x)
    in_plane = to_xy - (to_xy @ e_x) * e_x
    e_y = in_plane / norm(in_plane)
    return jnp.stack([e_x, e_y, jnp.cross(e_x, e_y)])


def local_frame(positions: Float[Array, "n 3"], centre, x_axis, xy_plane) -> Float[Array, "3 3"]:
    """The `axes` of the frame of three atoms."""
    return axes(positions[x_axis] - positions[centre], positions[xy_plane] - positions[centre])


def alf_features(positions: Float[Array, "n 3"], frame, others) -> Float[Array, "d"]:
    """Atomic-local-frame features of one atom, (3N - 6,), as FFLUX defines them (doi:10.1021/ct500416k).

    ``frame`` = (centre, x-axis, xy-plane) atom, ``others`` (N - 3,) the remaining ones. In order: the distances to the
    x-axis and the xy-plane atom (angstrom), the angle chi in [0, pi] between them, then for each other atom its
    spherical coordinates in the frame: r (angstrom), theta = acos(e_z.d / r) in [0, pi], phi = atan2(e_y.d, e_x.d).
    """
    return in_frame(positions.T @ incidence_of(jnp.array(frame), others, positions.dtype))


def incidence_of(frame, others, dtype):
    """The matrix (N, N - 1) that takes positions (3, N) to their differences from the frame's centre.

    A matrix product takes differences, and their derivatives back to atoms, faster than indexing does.
    """
    atom, ends = np.arange(len(others) + 3)[:, None], jnp.concatenate([frame[1:], others])
    return (atom == ends).astype(dtype) - (atom == frame[0]).astype(dtype)


def in_frame(differences: Float[Array, "3 n"]) -> Float[Array, "d"]:
    """`alf_features` from the differences (3, N - 1) of the x-axis, the xy-plane and the other atoms from the centre."""
    to_x, to_xy = differences[:, 0], differences[:, 1]
    chi = angle(norm(jnp.cross(to_x, to_xy)), to_x @ to_xy)
    x, y, z = axes(to_x, to_xy) @ differences[:, 2:]
    in_plane = x * x + y * y
    r, theta = jnp.sqrt(in_plane + z * z + TINY), angle(jnp.sqrt(in_plane + TINY), z)
    spherical = jnp.stack([r, theta, angle(y, x)], axis=1)
    return jnp.concatenate([jnp.stack([norm(to_x), norm(to_xy), chi]), spherical.ravel()])


def alf_positions(features: Float[Array, "d"], frame, others) -> Float[Array, "n 3"]:
    """Inverse of `alf_features`: positions (N, 3) in the atom's own frame, centre at the origin."""
    n_atoms = len(others) + 3
    r_x, r_xy, chi = features[:3]
    r, theta, phi = features[3:].reshape(-1, 3).T
    _, x_axis, xy_plane = frame
    positions = jnp.zeros((n_atoms, 3), features.dtype)
    positions = positions.at[x_axis, 0].set(r_x)
    positions = positions.at[xy_plane, :2].set(r_xy * jnp.stack([jnp.cos(chi), jnp.sin(chi)]))
    spherical = jnp.stack([jnp.sin(theta) * jnp.cos(phi), jnp.sin(theta) * jnp.sin(phi), jnp.cos(theta)], 1)
    return positions.at[others].set(r[:, None] * spherical)


def alf_geometries(points, frame, others) -> np.ndarray:
    """`alf_positions` (n, N, 3) of many features (n, D), in float64 whatever JAX's mode."""
    with jax.enable_x64(True):
        return np.asarray(jax.vmap(lambda x: alf_positions(x, frame, np.asarray(others, int)))(jnp.asarray(points, float)))
