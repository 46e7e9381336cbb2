"""Gaussian processes of single atoms, each with a frame, a kernel and data of its own, and molecules made of them.

What the models of other programs need: every atom may have its own number of training points and its own kernel, and
data stay in the units they came in, so that hyperparameters and weights are kept to the last digit. For models of
this package, where all atoms share one structure, see `potential.Model`.
"""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax import gp
from iqagp_jax.features import alf_features
from iqagp_jax.kernels import Kernel


def is_length(d):
    """Mask (D,) of the ALF features that are distances; the others are angles."""
    column = np.arange(d)
    return (column < 2) | ((column > 2) & (column % 3 == 0))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PolynomialMean:
    """m(x) = y_0 + sum_d beta_d (x_d - x_0d)^order, a constant where there are no beta."""

    offset: np.ndarray
    """y_0, scalar"""
    slopes: np.ndarray
    """beta, (D,); zeros for a constant"""
    origin: np.ndarray
    """x_0, (D,)"""
    order: int = field(default=1, metadata={"static": True})

    def __call__(self, x):
        """(..., D) -> (...)"""
        return self.offset + ((x - self.origin) ** self.order) @ self.slopes


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["kernel", "mean", "x", "y", "weights", "x_scaling", "y_scaling", "units"],
    meta_fields=["frame", "n_atoms", "noise", "labels"],
)
@dataclass(frozen=True)
class AtomGP:
    """One property of one atom, y(x) = a + b [m(x') + k(x', X') w], x' = (x - c) / d, on its ALF features x.

    ``x_scaling`` = (c, d) and ``y_scaling`` = (a, b) standardise the data, (0, 1) where they are used as they are.
    """

    frame: tuple[int, int, int]
    """(centre, x-axis, xy-plane) atom, from 0"""
    n_atoms: int
    kernel: Kernel
    mean: PolynomialMean
    x: np.ndarray
    """(n, 3N - 6) training features in their own units"""
    y: np.ndarray
    """(n,) training values in their own unit"""
    weights: np.ndarray
    """(n,) w = (K + noise)^-1 ((y - a) / b - m(X'))"""
    x_scaling: tuple[np.ndarray, np.ndarray]
    y_scaling: tuple[np.ndarray, np.ndarray]
    units: tuple[np.ndarray, np.ndarray]
    """(D,) unit of every feature in angstrom or radian; unit of y (eV for an energy in hartree)"""
    noise: float
    labels: tuple[tuple[str, str], ...] = ()
    """what else is known: names of system, atom and property, the program, its likelihood"""

    @property
    def n_train(self):
        """Number of training points."""
        return len(self.y)

    def features(self, positions):
        """Features (3N - 6,) of positions (N, 3) in angstrom, in the units of ``x``."""
        others = jnp.array([a for a in range(self.n_atoms) if a not in self.frame], dtype=int)
        return alf_features(positions, self.frame, others) / self.units[0]

    def scaled(self, x):
        """x' = (x - c) / d."""
        return (x - self.x_scaling[0]) / self.x_scaling[1]

    @property
    def residual(self):
        """(y - a) / b - m(X'), (n,)."""
        return (self.y - self.y_scaling[0]) / self.y_scaling[1] - self.mean(self.scaled(self.x))

    def predict(self, x):
        """The property, in the unit of ``y``, at features (m, D): (m,)."""
        points = self.scaled(x)
        deviation = gp.predict(self.kernel, self.scaled(self.x), self.weights, points)
        return self.y_scaling[0] + self.y_scaling[1] * (self.mean(points) + deviation)

    def __call__(self, positions):
        """The property of one geometry (N, 3) in angstrom: eV for energies, else in the unit of ``y``; in 64-bit mode."""
        gp.require_float64()
        return self.units[1] * self.predict(self.features(positions)[None])[0]

    def factor(self):
        """Lower Cholesky factor of K + noise."""
        return jnp.linalg.cholesky(gp.covariance_matrix(self.kernel, self.scaled(self.x), self.noise))

    def variance(self, factor, positions):
        """Predictive variance of one geometry, at the signal variance r^T w / n: eV^2 for energies."""
        s2 = self.residual @ self.weights / self.n_train
        point = self.scaled(self.features(positions))[None]
        variance = gp.predictive_variance(self.kernel, self.scaled(self.x), factor, s2, point)[0]
        return variance * (self.units[1] * self.y_scaling[1]) ** 2


@partial(jax.tree_util.register_dataclass, data_fields=["atoms", "reference"], meta_fields=["species", "provenance"])
@dataclass(frozen=True)
class Atomwise:
    """A molecule of `AtomGP`: positions (N, 3) in angstrom -> one property of every atom (N,), eV for energies."""

    species: tuple[str, ...]
    atoms: tuple[AtomGP, ...]
    reference: np.ndarray
    """(N, 3) angstrom, a training geometry of low energy: defines the bonds and equilibrium starts"""
    provenance: tuple[tuple[str, str], ...] = ()

    @property
    def n_train(self):
        """Largest number of training points of an atom."""
        return max(atom.n_train for atom in self.atoms)

    def __call__(self, positions):
        """(N, 3) angstrom -> (N,)"""
        return jnp.stack([atom(positions) for atom in self.atoms])

    def variances(self):
        """A function of one geometry that gives the atoms' predictive variances (N,), from factors made once."""
        factors = [jax.jit(AtomGP.factor)(atom) for atom in self.atoms]

        def at(positions):
            return jnp.stack([a.variance(f, positions) for a, f in zip(self.atoms, factors, strict=True)])

        return at


@partial(jax.tree_util.register_dataclass, data_fields=["components"], meta_fields=[])
@dataclass(frozen=True)
class Moments:
    """Multipole moments of a molecule's atoms by Gaussian processes, in e bohr^l in the atomic local frames.

    ``electrostatics.energy_fn(moments, moments.frames)`` is the energy between such molecules.
    """

    components: tuple[Atomwise, ...]
    """one for each of ``harmonics.component_names``: 1, 4, 9, 16 or 25"""

    @property
    def frames(self):
        """(centre, x-axis, xy-plane) atom of every atom."""
        return tuple(atom.frame for atom in self.components[0].atoms)

    def __call__(self, positions):
        """(N, 3) angstrom -> (N, (L+1)^2)"""
        return jnp.stack([component(positions) for component in self.components], axis=-1)
