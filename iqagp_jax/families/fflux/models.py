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

from iqagp_jax.data.content import SMALLEST, numbers, one_molecule
from iqagp_jax.families.gp import regression
from iqagp_jax.families.gp.kernels import Kernel
from iqagp_jax.machine.precision import double, exact, require_float64
from iqagp_jax.potential import Bound, MadeBy, OfOneMolecule, Uncertainty, check_positions
from iqagp_jax.system.frames import alf_features, alf_geometries
from iqagp_jax.system.harmonics import rank
from iqagp_jax.units import BOHR


def is_length(d):
    """Mask (D,) of the ALF features that are distances; the others are angles."""
    column = np.arange(d)
    return (column < 2) | ((column > 2) & (column % 3 == 0))


SHORTEST, FARTHEST = 0.2, 1e4
"""No two atoms of a training geometry are nearer, none are farther from each other (bohr)."""

ROUNDING = 1e-5
"""By which angles that programs print may leave their range (radian)."""


def odd_feature(x):
    """(row, column, what was expected) of the first of ALF features (n, 3N - 6) in bohr and radian that no geometry has.

    None where all are sensible. The angle in the frame and theta lie between 0 and pi, phi within a turn either way.
    """
    column = np.arange(x.shape[1])
    around = (column > 2) & (column % 3 == 2)
    least = np.where(is_length(x.shape[1]), SHORTEST, np.where(around, -2 * np.pi, 0) - ROUNDING)
    most = np.where(is_length(x.shape[1]), FARTHEST, np.where(around, 2 * np.pi, np.pi) + ROUNDING)
    odd = np.argwhere(~((x >= least) & (x <= most)))
    if not len(odd):
        return None
    row, k = odd[0]
    if is_length(x.shape[1])[k]:
        return row, k, f"a distance in bohr from {SHORTEST:g} to {FARTHEST:g}"
    degrees = (
        ", in degrees?" if np.abs(x[:, k]).max() <= 360 and (np.abs(x[:, ~is_length(x.shape[1])]) > 10).mean() > 0.5 else ""
    )
    return row, k, f"an angle in radian from {'-2 pi to 2 pi' if around[k] else '0 to pi'}{degrees}"


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

    def check_content(self):
        """ValueError, in a sentence, unless all arrays are of one atom's features, finite, and make sense: when it was read."""
        frame = numbers("an atomic local frame", self.frame, (3,), least=0, kinds="iu")
        if len(set(self.frame)) < 3 or (frame >= self.n_atoms).any():
            raise ValueError(f"expected three different ones of {self.n_atoms} atoms as a frame, found {self.frame}")
        n, d = numbers("training features", self.x, (None, 3 * self.n_atoms - 6)).shape
        if odd := odd_feature(self.x * self.units[0] / np.where(is_length(d), BOHR, 1.0)):
            row, column, wanted = odd
            raise ValueError(
                f"expected {wanted} as feature {column + 1}, found {self.x[row, column]:g} in training point {row}"
            )
        self.kernel.check_fit((), d)
        for name, shape in (("offset", ()), ("slopes", (d,)), ("origin", (d,))):
            numbers(f"{name} of the mean", getattr(self.mean, name), shape)
        numbers("training values", self.y, (n,))
        numbers("weights", self.weights, (n,))
        for what, of, shape in (("features", self.x_scaling, (d,)), ("values", self.y_scaling, ())):
            centre, width = of
            numbers(f"means of {what}", centre, shape)
            numbers(f"standard deviations of {what}", width, shape, SMALLEST)
        numbers("units of features", self.units[0], (d,), SMALLEST)
        numbers("the unit of values", self.units[1], (), SMALLEST)
        numbers("a nugget", self.noise, (), least=0)
        if not all(isinstance(word, str) for label in self.labels for word in label):
            raise ValueError(f"expected words as labels, found {self.labels}")

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

    def check_content(self):
        """ValueError, in a sentence, unless there is one model of each atom: of a potential that was read."""
        n_atoms = one_molecule(self.species, self.reference)
        found = [(type(atom).__name__, atom.n_atoms, atom.frame[0]) for atom in self.atoms]
        if found != [("AtomGP", n_atoms, a) for a in range(n_atoms)]:
            raise ValueError(f"expected one model for each of {n_atoms} atoms, found {len(found)} or those of others")

    @property
    def n_train(self):
        """Largest number of training points of an atom."""
        return max(atom.n_train for atom in self.atoms)

    @property
    def train_geometries(self):
        """(n, N, 3) angstrom, of the training geometries of all atoms, up to rotations."""

        def of(atom):
            others = [a for a in range(atom.n_atoms) if a not in atom.frame]
            return alf_geometries(np.asarray(atom.x) * atom.units[0], atom.frame, others)

        return np.concatenate([of(atom) for atom in self.atoms])

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

    def check_content(self):
        """ValueError, in a sentence, unless all moments up to some rank are of the same atoms in the same frames."""
        rank(np.zeros(len(self.components)))
        first = self.components[0]
        for component in self.components:
            if component.species != first.species or [a.frame for a in component.atoms] != [a.frame for a in first.atoms]:
                raise ValueError("expected all moments of the same atoms in the same frames, found others")

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
