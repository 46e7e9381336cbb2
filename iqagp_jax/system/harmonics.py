"""Real solid harmonics and multipole moments in Stone's convention; NumPy or JAX arrays in, the same kind out.

With r = (x, y, z) and Racah's normalisation (A. J. Stone, The Theory of Intermolecular Forces, 2nd ed., appendix B,
doi:10.1093/acprof:oso/9780199672394.001.0001)

    R_l0 = r^l P_l(cos theta),    R_lmc, R_lms = sqrt(2 (l-m)!/(l+m)!) r^l P_l^m(cos theta) (cos m phi, sin m phi)

(P_l^m without the phase (-1)^m) and the moments of charges q_i are Q_lk = sum_i q_i R_lk(r_i). Moments are in atomic
units, e bohr^l, as in AIMAll's .int files and FFLUX' models.

| rank | symbol in the equations       | name                      | R_lk                                                     |
| ---- | ----------------------------- | ------------------------- | -------------------------------------------------------- |
| 0    | Q_00, charge                  | q00                       | 1                                                        |
| 1    | Q_10, Q_11c, Q_11s, dipole    | q10, q11c, q11s           | z, x, y                                                  |
| 2    | Q_20 ... Q_22s, quadrupole    | q20, q21c, q21s           | (3z^2-r^2)/2, sqrt(3) xz, sqrt(3) yz                     |
|      |                               | q22c, q22s                | sqrt(3)/2 (x^2-y^2), sqrt(3) xy                          |
| 3    | Q_30 ... Q_33s, octupole      | q30, q31c, ..., q33s      | (5z^3-3zr^2)/2, sqrt(3/8) x(5z^2-r^2), ...               |
| 4    | Q_40 ... Q_44s, hexadecapole  | q40, q41c, ..., q44s      | (35z^4-30z^2r^2+3r^4)/8, ...                             |

The names in this order index the last axis of every array of moments, ((L+1)^2,) for ranks up to L.
"""

import math
from functools import cache

import numpy as np
from jaxtyping import Array, Float


def component_names(max_rank):
    """("q00", "q10", "q11c", "q11s", "q20", ...) up to rank ``max_rank``: what an array of moments holds, in order."""
    orders = [(l, f"{m}{part}") for l in range(max_rank + 1) for m in range(l + 1) for part in ("cs" if m else ("",))]
    return tuple(f"q{l}{m}" for l, m in orders)


def rank(moments):
    """The highest rank L of an array of moments (..., (L+1)^2); ValueError where the last axis is of another length."""
    n = np.shape(moments)[-1]
    if math.isqrt(n) ** 2 != n:
        raise ValueError(f"expected 1, 4, 9, 16 or 25 moments (q00, q10, q11c, ...) for each atom, found {n}")
    return math.isqrt(n) - 1


def solid_harmonics(points: Float[Array | np.ndarray, "*batch 3"], max_rank: int) -> Float[Array | np.ndarray, "*batch k"]:
    """R_lk at points (..., 3), as (..., (max_rank+1)^2), by recursion over the rank: polynomials, smooth everywhere.

    With c, s the two components of order m = l - 1 in rank l - 1 and x, y, z, r of the point:
    sqrt(l^2 - m^2) R_lm = (2l - 1) z R_l-1,m - sqrt((l-1)^2 - m^2) r^2 R_l-2,m for m < l, and
    (R_llc, R_lls) = sqrt(1 - 1/2l) (x c - y s, x s + y c), without the root for l = 1.
    """
    xp = points.__array_namespace__()
    x, y, z = xp.moveaxis(points, -1, 0)
    r2 = x * x + y * y + z * z
    c, s = xp.ones_like(z), xp.zeros_like(z)
    before = last = c[None]
    ranks = [last]
    for l in range(1, max_rank + 1):
        m = ((np.arange(2 * l - 1) + 1) // 2).reshape(-1, *np.ones(z.ndim, dtype=int))
        lower = ((2 * l - 1) * z * last - np.sqrt((l - 1) ** 2 - m**2) * r2 * before) / np.sqrt(l**2 - m**2)
        step = 1.0 if l == 1 else math.sqrt(1 - 0.5 / l)
        c, s = step * (x * c - y * s), step * (x * s + y * c)
        highest = xp.stack([c, s])
        # There is no R_l-2,m for the orders of rank l - 1 alone: any rows do, as their factor is zero.
        before, last = xp.concat([last, highest]), xp.concat([lower, highest])
        ranks.append(last)
    return xp.moveaxis(xp.concat(ranks), 0, -1)


@cache
def sphere(degree):
    """Nodes (n, 3) and weights (n,) of a product quadrature on the unit sphere, exact for polynomials up to ``degree``.

    Gauss-Legendre in cos theta times equal steps in phi; the weights sum to 1.
    """
    z, weights = np.polynomial.legendre.leggauss(degree // 2 + 1)
    phi = 2 * np.pi * np.arange(degree + 1) / (degree + 1)
    s = np.sqrt(1 - z * z)[:, None]
    nodes = np.stack(np.broadcast_arrays(s * np.cos(phi), s * np.sin(phi), z[:, None]), -1).reshape(-1, 3)
    return nodes, np.repeat(weights / 2 / (degree + 1), degree + 1)


@cache
def _sphere_charges(max_rank):
    """Nodes (n, 3) in bohr and the matrix ((L+1)^2, n) that turns moments into charges on them with those moments.

    R_lk and R_l'k' are orthogonal on the unit sphere with norm 1/(2l+1), so q_i = w_i sum_lk (2l+1) Q_lk R_lk(r_i).
    """
    nodes, weights = sphere(2 * max_rank)
    norm = np.concatenate([np.full(2 * l + 1, 2 * l + 1) for l in range(max_rank + 1)])
    return nodes, (solid_harmonics(nodes, max_rank) * weights[:, None] * norm).T


def rotated(moments, rotation):
    """Moments (..., (L+1)^2) of the same charges turned by orthogonal matrices ``rotation`` (..., 3, 3): r -> rotation r.

    Exact and smooth in the matrix: charges on a sphere that have these moments are turned and integrated again. With
    the axes of a local frame as rows (`features.local_frame`), ``rotated(q, axes)`` are the moments in that frame, and
    ``rotated(q, axes.T)`` takes them back.
    """
    nodes, charges = _sphere_charges(rank(moments))
    turned = nodes @ rotation.mT
    return ((moments @ charges)[..., None, :] @ solid_harmonics(turned, rank(moments)))[..., 0, :]


def translated(moments, shift):
    """Moments (..., (L+1)^2) of the same charges all moved by ``shift`` (..., 3) in bohr.

    Moments about another origin are ``translated(moments, old_origin - new_origin)``.
    """
    nodes, charges = _sphere_charges(rank(moments))
    moved = nodes + shift[..., None, :]
    return ((moments @ charges)[..., None, :] @ solid_harmonics(moved, rank(moments)))[..., 0, :]
