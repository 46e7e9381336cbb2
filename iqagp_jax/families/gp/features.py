"""Features of an atom's surroundings: pure JAX functions of one configuration.

Both kinds are invariant under translation and rotation and finite, with finite gradients, for planar and collinear
geometries. They are frozen pytrees: ``features(positions)`` takes (N, 3) angstrom and gives (N, D), one row an atom.
"""

from dataclasses import dataclass
from functools import partial
from itertools import combinations, permutations

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.data.content import SMALLEST, numbers
from iqagp_jax.system.frames import TINY, alf_geometries, in_frame, incidence_of, norm
from iqagp_jax.system.geometry import bond_graph, graph_distances

MIN_FRAME_SINE = 0.3
"""An atomic local frame is good while the sine of its angle stays above this in all geometries (about 17 degrees)."""

LINEAR_SINE = 0.05
"""Below this (3 degrees) it turns wildly with the least motion."""


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
            make = jax.vmap(partial(incidence_of, dtype=positions.dtype), out_axes=1)
            incidence = make(jnp.array(self.frames), jnp.array(self.others))
        differences = jnp.tensordot(positions.T, incidence, 1)
        return jax.vmap(in_frame, 1)(differences)

    def geometries(self, points):
        """Positions (n, N, 3) in the first atom's frame from its features (n, D)."""
        return alf_geometries(points, self.frames[0], self.others[0])

    @property
    def others(self):
        """For every atom the atoms outside its frame, ascending, (N, N - 3)."""
        n = len(self.frames)
        return np.array([[b for b in range(n) if b not in frame] for frame in self.frames], dtype=int).reshape(n, -1)

    def check_fit(self, n_atoms):
        """ValueError, in a sentence, unless there is a frame for each of so many atoms; for what was read from a file."""
        frames = numbers("atomic local frames", self.frames, (n_atoms, 3), least=0, kinds="iu")
        if (frames >= n_atoms).any() or (frames[:, 0] != np.arange(n_atoms)).any() or any(len(set(f)) < 3 for f in self.frames):
            raise ValueError(f"expected three different atoms as frame of each of {n_atoms}, found {self.frames}")

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

    def with_slopes(self, positions):
        """w/r (D,) of the first atom's pairs (a, b) at positions (N, 3), and their derivatives (D, 3) with respect to R_a.

        Those with respect to R_b are minus these, all others are zero.
        """
        x, (a, b) = self.of_pairs(positions, self.pairs[0]), self.pairs[0].T
        apart = positions[a] - positions[b]
        return x, -(x / norm(apart) ** 2)[:, None] * apart

    def geometries(self, points):
        """Positions (n, N, 3), of either hand, from the first atom's features (n, D).

        Classical scaling: of the squared distances, less the means of their rows and columns, -1/2 are scalar products.
        """
        a, b = self.pairs[0].T
        weights = 1.0 if self.weights is None else np.array(self.weights)
        square = np.zeros((len(points), self.n_atoms, self.n_atoms))
        square[:, a, b] = square[:, b, a] = (weights / np.asarray(points)) ** 2
        centred = square - square.mean(1, keepdims=True) - square.mean(2, keepdims=True) + square.mean((1, 2), keepdims=True)
        values, vectors = np.linalg.eigh(-0.5 * centred)
        # Two atoms have two axes.
        flat = np.zeros((len(points), self.n_atoms, max(0, 3 - self.n_atoms)))
        return np.concatenate([flat, vectors[:, :, -3:] * np.sqrt(np.maximum(values[:, None, -3:], 0.0))], axis=2)

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

    def check_fit(self, n_atoms):
        """ValueError, in a sentence, unless they are of so many atoms; for what was read from a file."""
        if self.n_atoms != n_atoms:
            raise ValueError(f"expected features of {n_atoms} atoms, found those of {self.n_atoms}")
        if self.weights is not None:
            numbers("weights of pairs", self.weights, (n_atoms * (n_atoms - 1) // 2,), SMALLEST)

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
