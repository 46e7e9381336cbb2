"""Gaussian processes of single atoms, each with a frame, a kernel and data of its own, and molecules made of them.

What the models of other programs need: every atom may have its own number of training points and its own kernel, and
data stay in the units they came in, so that hyperparameters and weights are kept to the last digit. For models of
this package, where all atoms share one structure, see `gp.model`.
"""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.families.gp import regression
from iqagp_jax.families.gp.kernels import Kernel
from iqagp_jax.machine.precision import double, exact, require_float64
from iqagp_jax.potential import Bound, MadeBy, OfOneMolecule, Uncertainty, check_positions
from iqagp_jax.system.frames import alf_features


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
        deviation = regression.predict(self.kernel, self.scaled(self.x), self.weights, points)
        return self.y_scaling[0] + self.y_scaling[1] * (self.mean(points) + deviation)

    def __call__(self, positions):
        """The property of one geometry (N, 3) in angstrom: eV for energies, else in the unit of ``y``; in 64-bit mode."""
        require_float64()
        return self.units[1] * self.predict(self.features(positions)[None])[0]

    def factor(self):
        """Lower Cholesky factor of K + noise."""
        return jnp.linalg.cholesky(regression.covariance_matrix(self.kernel, self.scaled(self.x), self.noise))

    def variance(self, factor, positions):
        """Predictive variance of one geometry, at the signal variance r^T w / n: eV^2 for energies."""
        s2 = self.residual @ self.weights / self.n_train
        point = self.scaled(self.features(positions))[None]
        variance = regression.predictive_variance(self.kernel, self.scaled(self.x), factor, s2, point)[0]
        return variance * (self.units[1] * self.y_scaling[1]) ** 2


def told(labels):
    """`MadeBy` from the labels of an atom's model."""
    learned = {"iqa": "atomic_energies"}.get(labels.get("property", ""), labels.get("property", ""))
    return MadeBy(targets=(learned,), program=labels.get("program", ""))


@partial(jax.tree_util.register_dataclass, data_fields=["atoms", "reference"], meta_fields=["species", "made_by"])
@dataclass(frozen=True)
class Atomwise(OfOneMolecule):
    """A molecule of `AtomGP`: positions (N, 3) in angstrom -> one property of every atom (N,), eV for energies."""

    species: tuple[str, ...]
    atoms: tuple[AtomGP, ...]
    reference: np.ndarray
    """(N, 3) angstrom, a training geometry of low energy: defines the bonds and equilibrium starts"""
    made_by: MadeBy = MadeBy()

    @classmethod
    def from_fields(cls, fields):
        """From what a file holds; one of before 2026-12 tells where the model came from in pairs of words."""
        if "provenance" in fields:
            fields = {**fields, "made_by": told(dict(fields["provenance"]))}
            del fields["provenance"]
        return cls(**fields)

    @property
    def n_train(self):
        """Largest number of training points of an atom."""
        return max(atom.n_train for atom in self.atoms)

    def __call__(self, positions):
        """(N, 3) angstrom -> (N,)"""
        return jnp.stack([atom(positions) for atom in self.atoms])

    def check(self, system):
        """ValueError, in a sentence, for other atoms, and where the atoms' property is no energy."""
        super().check(system)
        if other := [name for name in self.made_by.targets if name not in ("atomic_energies", "")]:
            raise ValueError(
                f"expected models of atomic energies (iqa) as a potential, found models of {' and '.join(other)}; call them for"
                " that property, or make `Moments` of models of multipoles"
            )

    def bind(self, system, dtype=np.float64):
        """The atoms as they are: each has a kernel and data of its own, so there is nothing to prepare."""
        return Bound(lambda positions, aux: (self(positions), aux))

    def uncertainty(self, system):
        """Variances of the atomic energies, and their sum; those of forces are not known."""

        def prepare(target):
            if target == "forces":
                return None
            with jax.enable_x64(True):
                at = self.variances()
                batched = jax.jit(jax.vmap(at))

            def apply(positions):
                with jax.enable_x64(True):
                    found = batched(double(check_positions(self.species, positions, batch=True)))
                    return exact(found if target == "atomic_energies" else found.sum(1, keepdims=True))

            return apply

        return Uncertainty(prepare)

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
    def species(self):
        """(N,) chemical symbols."""
        return self.components[0].species

    @property
    def frames(self):
        """(centre, x-axis, xy-plane) atom of every atom."""
        return tuple(atom.frame for atom in self.components[0].atoms)

    def __call__(self, positions):
        """(N, 3) angstrom -> (N, (L+1)^2)"""
        return jnp.stack([component(positions) for component in self.components], axis=-1)
