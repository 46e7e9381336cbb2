"""Features of an atom's surroundings: pure JAX functions of one configuration.

Both kinds are invariant under translation and rotation and finite, with finite gradients, for planar and collinear
geometries. They are frozen pytrees: ``features(positions)`` takes (N, 3) angstrom and gives (N, D), one row an atom.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import combinations, permutations

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.geometry import bond_graph, graph_distances

TINY = 1e-24
"""Added under roots whose argument may vanish (angstrom^2), so that gradients stay finite."""

MIN_FRAME_SINE = 0.3
"""An atomic local frame is good while the sine of its angle stays above this in all geometries (about 17 degrees)."""

LINEAR_SINE = 0.05
"""Below this (3 degrees) it turns wildly with the least motion."""


def norm(v):
    """Length of vectors (..., 3) whose gradient is finite, zero, at the origin."""
    return jnp.sqrt(jnp.sum(v * v, -1) + TINY)


@jax.custom_jvp
def angle(sine, cosine):
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


def axes(to_x, to_xy):
    """Axes (3, 3) of an atomic local frame: e_x to the x-axis atom, e_y towards the xy-plane atom, e_z = e_x x e_y."""
    e_x = to_x / norm(to_x)
    in_plane = to_xy - (to_xy @ e_x) * e_x
    e_y = in_plane / norm(in_plane)
    return jnp.stack([e_x, e_y, jnp.cross(e_x, e_y)])


def local_frame(positions, centre, x_axis, xy_plane):
    """The `axes` of the frame of three atoms."""
    return axes(positions[x_axis] - positions[centre], positions[xy_plane] - positions[centre])


def alf_features(positions, frame, others):
    """Atomic-local-frame features of one atom, (3N - 6,), as FFLUX defines them (doi:10.1021/ct500416k).

    ``frame`` = (centre, x-axis, xy-plane) atom, ``others`` (N - 3,) the remaining ones. In order: the distances to the
    x-axis and the xy-plane atom (angstrom), the angle chi in [0, pi] between them, then for each other atom its
    spherical coordinates in the frame: r (angstrom), theta = acos(e_z.d / r) in [0, pi], phi = atan2(e_y.d, e_x.d).
    """
    return _in_frame(positions.T @ _incidence(jnp.array(frame), others, positions.dtype))


def _incidence(frame, others, dtype):
    """The matrix (N, N - 1) that takes positions (3, N) to their differences from the frame's centre.

    A matrix product takes differences, and their derivatives back to atoms, faster than indexing does.
    """
    atom, ends = np.arange(len(others) + 3)[:, None], jnp.concatenate([frame[1:], others])
    return (atom == ends).astype(dtype) - (atom == frame[0]).astype(dtype)


def _in_frame(differences):
    """`alf_features` from the differences (3, N - 1) of the x-axis, the xy-plane and the other atoms from the centre."""
    to_x, to_xy = differences[:, 0], differences[:, 1]
    chi = angle(norm(jnp.cross(to_x, to_xy)), to_x @ to_xy)
    x, y, z = axes(to_x, to_xy) @ differences[:, 2:]
    in_plane = x * x + y * y
    r, theta = jnp.sqrt(in_plane + z * z + TINY), angle(jnp.sqrt(in_plane + TINY), z)
    spherical = jnp.stack([r, theta, angle(y, x)], axis=1)
    return jnp.concatenate([jnp.stack([norm(to_x), norm(to_xy), chi]), spherical.ravel()])


def alf_positions(features, frame, others):
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


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["frames"])
@dataclass(frozen=True)
class ALF:
    """Atomic-local-frame features of all atoms; ``frames`` holds (centre, x-axis, xy-plane) for every atom.

    Not mirror-invariant: reflection turns every theta into pi - theta. The energy is; see `dataset.mirrored`.
    """

    frames: tuple[tuple[int, int, int], ...]

    name = "alf"

    def __call__(self, positions):
        """(N, 3) angstrom -> (N, 3N - 6), angstrom and radian."""
        # A constant of the program: a single replica would else spend a tenth of its steps on making it anew.
        with jax.ensure_compile_time_eval():
            make = jax.vmap(partial(_incidence, dtype=positions.dtype), out_axes=1)
            incidence = make(jnp.array(self.frames), jnp.array(self.others))
        differences = jnp.tensordot(positions.T, incidence, 1)
        return jax.vmap(_in_frame, 1)(differences)

    @property
    def others(self):
        """For every atom the atoms outside its frame, ascending, (N, N - 3)."""
        n = len(self.frames)
        return np.array([[b for b in range(n) if b not in frame] for frame in self.frames], dtype=int).reshape(n, -1)

    @property
    def angular(self):
        """Mask (3N - 6,) of the columns with period 2 pi (the phi)."""
        column = np.arange(3 * len(self.frames) - 6)
        return (column > 2) & (column % 3 == 2)

    @classmethod
    def choose(cls, species, positions):
        """The best frame of every atom for geometries (n, N, 3): near atoms, heavy first, never nearly collinear.

        Raises ValueError for fewer than three atoms and for a linear molecule.
        """
        if len(species) < 3:
            raise ValueError(f"atomic local frames need at least 3 atoms, found {len(species)}; use inverse distances")
        positions = np.asarray(positions)
        separation = graph_distances(bond_graph(species, positions[0]))
        return cls(tuple(_choose_frame(a, species, positions, separation) for a in range(len(species))))


def _choose_frame(centre, species, positions, separation):
    from ase.data import atomic_numbers

    def preference(pair):
        return [(species[b] == "H", separation[centre, b], -atomic_numbers[species[b]], b) for b in pair]

    candidates = sorted(permutations([b for b in range(len(species)) if b != centre], 2), key=preference)
    directions = positions - positions[:, centre : centre + 1]
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True) + TINY
    best, best_sine = None, -1.0
    for x_axis, xy_plane in candidates:
        sine = np.linalg.norm(np.cross(directions[:, x_axis], directions[:, xy_plane]), axis=-1).min()
        if sine > MIN_FRAME_SINE:
            return centre, x_axis, xy_plane
        if sine > best_sine:
            best, best_sine = (centre, x_axis, xy_plane), sine
    if best_sine < LINEAR_SINE:
        raise ValueError(
            f"expected three atoms that are never in line for the local frame of atom {centre + 1}, found a sine of"
            f" {best_sine:.2g} at best; take inverse distances for a linear molecule"
        )
    return best


def inverse_distances(positions, pairs):
    """1/r (...) in 1/angstrom of ``pairs`` (..., 2) of the atoms at positions (N, 3)."""
    atom = np.arange(len(positions))
    # A matrix product takes differences, and their derivatives back to atoms, many times faster than indexing does.
    incidence = (pairs[..., :1] == atom).astype(float) - (pairs[..., 1:] == atom)
    return 1 / norm(jnp.asarray(incidence, positions.dtype) @ positions)


def pair_weights(distances, decay):
    """w = d exp(-d / decay) of distances d in angstrom: w/r is felt in proportion to the relative change of near pairs."""
    return distances * jnp.exp(-distances / decay)


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["n_atoms", "weights"])
@dataclass(frozen=True)
class InverseDistances:
    """w/r of all pairs of atoms, for each atom first its own N - 1 pairs, then those among the others."""

    n_atoms: int
    weights: tuple[float, ...] | None = None
    """w of the first atom's pairs; 1 by default"""

    name = "inverse-distances"

    def __call__(self, positions):
        """(N, 3) angstrom -> (N, N (N - 1) / 2), 1/angstrom times the unit of w."""
        return self.of_pairs(positions, self.pairs)

    def of_pairs(self, positions, pairs):
        """w/r (...) of ``pairs`` (..., 2) of the atoms at positions (N, 3)."""
        x = inverse_distances(positions, pairs)
        if self.weights is None:
            return x
        return x * jnp.asarray(np.array(self.weights)[self._numbers[pairs[..., 0], pairs[..., 1]]], x.dtype)

    @property
    def pairs(self):
        """(N, N (N - 1) / 2, 2) atom pairs in the order of the columns."""
        result = []
        for a in range(self.n_atoms):
            others = [b for b in range(self.n_atoms) if b != a]
            result.append([(a, b) for b in others] + list(combinations(others, 2)))
        return np.array(result, dtype=int)

    def columns(self, permutations):
        """The first atom's features of permuted positions, f(R[p]) = f(R)[columns], (P, D) for permutations (P, N)."""
        pairs = self.pairs[0]
        return self._numbers[permutations[:, pairs[:, 0]], permutations[:, pairs[:, 1]]]

    @property
    def _numbers(self):
        """The first atom's column of every pair, (N, N)."""
        a, b = self.pairs[0].T
        number = np.zeros((self.n_atoms, self.n_atoms), dtype=int)
        number[a, b] = number[b, a] = np.arange(len(a))
        return number

    @property
    def angular(self):
        """Mask of the columns with period 2 pi: none."""
        return np.zeros(self.n_atoms * (self.n_atoms - 1) // 2, dtype=bool)

    @classmethod
    def choose(cls, species, positions):
        """Nothing to choose: the features of a molecule of these atoms."""
        return cls(len(species))


FEATURES = {kind.name: kind for kind in (InverseDistances, ALF)}
"""Kinds of features by the name that `fit_gp` and the command line take."""
