"""Internal coordinates, of positions (..., N, 3) in angstrom that NumPy or JAX holds: (...) in angstrom and radian.

Those of JAX have finite gradients everywhere, in a straight line too.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.system import frames


def distance(positions: Any, i: int, j: int) -> Any:
    """Distance |r_j - r_i| of two atoms, angstrom."""
    return _length(_from_to(positions, i, j))


def angle(positions: Any, i: int, j: int, k: int) -> Any:
    """Angle i-j-k at atom j, radian in [0, pi]."""
    first, last = _from_to(positions, j, i), _from_to(positions, j, k)
    return _angle(_length(_cross(first, last)), _dot(first, last))


def dihedral(positions: Any, i: int, j: int, k: int, m: int) -> Any:
    """Dihedral angle i-j-k-m, radian in (-pi, pi], clockwise positive seen along the middle bond (IUPAC).

    With a = r_j - r_i, b = r_k - r_j, c = r_m - r_k: tan = |b| a.(b x c) / ((a x b).(b x c)), by the signs of both.
    """
    first, axis, last = (_from_to(positions, *pair) for pair in ((i, j), (j, k), (k, m)))
    left, right = _cross(first, axis), _cross(axis, last)
    return _angle(_length(axis) * _dot(first, right), _dot(left, right))


def transfer(positions: Any, donor: int, hydrogen: int, acceptor: int) -> Any:
    """Proton-transfer coordinate d(donor, H) - d(acceptor, H), angstrom: negative while the donor has the hydrogen."""
    return distance(positions, donor, hydrogen) - distance(positions, acceptor, hydrogen)


def _from_to(positions: Any, i: int, j: int) -> Any:
    return positions[..., j, :] - positions[..., i, :]


def _dot(a: Any, b: Any) -> Any:
    return (a * b).sum(-1)


def _cross(a: Any, b: Any) -> Any:
    return (jnp if isinstance(a, jax.Array) else np).cross(a, b)


def _length(a: Any) -> Any:
    return frames.norm(a) if isinstance(a, jax.Array) else np.linalg.norm(a, axis=-1)


def _angle(sine: Any, cosine: Any) -> Any:
    return frames.angle(sine, cosine) if isinstance(sine, jax.Array) else np.arctan2(sine, cosine)
