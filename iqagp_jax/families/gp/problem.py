"""What a fit begins with: the training data, what atoms see of them, the prior mean, and all options."""

import warnings
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version

import jax
import numpy as np

from iqagp_jax.data.dataset import Dataset, concatenate
from iqagp_jax.families.gp import joint
from iqagp_jax.families.gp.features import ALF, FEATURES, InverseDistances
from iqagp_jax.families.gp.kernels import build_kernel
from iqagp_jax.families.gp.means import Base, SumOfMeans, less, named_mean
from iqagp_jax.families.gp.options import ATOMIC, GPOptions
from iqagp_jax.machine.warn import warn
from iqagp_jax.potential import MadeBy, energy_and_forces
from iqagp_jax.system import symmetry
from iqagp_jax.system.geometry import pair_distances
from iqagp_jax.units import KCAL_MOL

ALIKE = 1e-4
"""Energies (eV) of a base at images of a geometry that differ by less are equal."""

MOST = 15_000
"""Observations of several targets that are learned by default, at most: a matrix of 1.8 GB, a minute on two cores."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What is fitted to what, all options `GPOptions.resolved`."""

    options: GPOptions
    train: Dataset
    images: np.ndarray
    """(P, N) permutations of equal atoms that the energy is the same for, the identity alone without symmetry"""
    features: ALF | InverseDistances
    base: Base | None = None
    """what is beneath, to which the difference is learned"""

    @classmethod
    def of(cls, dataset: Dataset, options: GPOptions, base: Base | None = None) -> "Problem":
        """The training data of a dataset, and the features that suit them.

        Raises ValueError, in a sentence, for an atom alone, and where there is too little to learn.
        """
        most = np.inf if options.solver == "cg" else MOST // (2 if options.mirror else 1)
        train = training_frames(dataset, options.n_train, options.learned, most)
        features = FEATURES[options.features].choose(train.species, train.positions)
        problem = cls(options, train, identity(train), features, base)
        if not options.symmetry:
            return problem
        most = symmetry.MOST if problem.is_summed else problem.most_copies
        problem = replace(problem, images=symmetry.permutations(train.species, train.positions[train.lowest], most))
        if base is not None:
            _tell_asymmetry(base.potential, train.positions[0], problem.images)
        return problem

    @property
    def most_copies(self) -> int:
        """How many permuted copies of the training data have room for their covariance, `symmetry.MOST` at most."""
        rows = first_of(self.train, self.options.learned, np.inf)[1]
        if not self.options.is_joint:  # every atom's process has a matrix of its own
            rows = len(self.train)
        rows *= 2 if self.options.mirror else 1
        return next((n for n in range(symmetry.MOST, 1, -1) if joint.fits(n * rows)), 1)

    @property
    def is_summed(self) -> bool:
        """Whether the covariance is summed over the images; else copies of the data stand for them."""
        return self.options.is_joint and isinstance(self.features, InverseDistances)

    @property
    def permutations(self) -> np.ndarray:
        """(P, N) that the covariance is summed over."""
        return self.images if self.is_summed else identity(self.train)

    @cached_property
    def copies(self) -> Dataset:
        """What is conditioned on: the training data, then their permuted and mirrored copies, which have the same energies."""
        permuted = _permuted(self.train, identity(self.train) if self.is_summed else self.images)
        return concatenate([*permuted, *(copy.mirrored() for copy in permuted)] if self.options.mirror else permuted)

    @cached_property
    def mean(self):
        """The prior mean, a function of positions (N, 3): (N,) eV."""
        chosen, train = self.options.prior_mean, self.train
        if not callable(chosen):
            left = less(train, self.base) if self.base else train
            chosen = named_mean(chosen, concatenate(_permuted(left, self.images)))
        return SumOfMeans(chosen, self.base) if self.base else chosen

    @property
    def kernel(self):
        """Length scales (..., D) or, where all atoms share theirs, (N,) -> the kernel."""
        return partial(build_kernel, self.options.kernel, angular=self.features.angular)

    @property
    def made_by(self) -> MadeBy:
        """Where the model comes from."""
        program = f"iqagp_jax {version('iqagp-jax')}, jax {jax.__version__}"
        copies = len(self.copies) // len(self.train)
        return MadeBy(self.train.level, self.options.learned, self.options.told(), copies, program)


def identity(train: Dataset) -> np.ndarray:
    """The permutation (1, N) that changes nothing."""
    return np.arange(len(train.species))[None]


def _tell_asymmetry(potential, positions, images):
    """Warn where a potential beneath has other energies at the images (P, N) of positions (N, 3)."""
    energies = energy_and_forces(potential)(positions[images])[0]
    if (spread := np.ptp(energies)) > ALIKE:
        warn(
            f"the base has energies {spread / KCAL_MOL:.2g} kcal/mol apart among {len(images)} orders of equal atoms in"
            " one geometry, and so will the model over it; take a base that was trained with symmetry"
        )


def _permuted(train, images):
    return [train, *(train.permuted(p) for p in images[1:])]


def training_frames(dataset, n_train, targets, most=np.inf):
    """The first n frames of the training split (of everything where there are no splits), checked.

    Without ``n_train`` all, or as many as have at most ``most`` observations of several targets, with a warning.
    """
    if len(dataset.species) < 2:
        raise ValueError(
            f"expected a molecule of two atoms at least, found {dataset.species[0]} alone, which has nothing to learn"
        )
    train = dataset.split("train") if dataset.splits else dataset
    for target in targets:
        if getattr(train, target) is None:
            raise ValueError(f"expected a dataset with {target} (REF_{target} in its file), found none; choose other targets")
    n = len(train) if n_train is None else n_train
    if not 2 <= n <= len(train):
        raise ValueError(f"expected between 2 and {len(train)} training geometries, the size of the split, found {n}")
    if n_train is None and targets != ATOMIC:
        n = first_of(train, targets, most)[0]
        if n < len(train):
            warnings.warn(
                f"learned from the first {n} of {len(train)} training geometries, which hold at most {most:,} numbers of"
                f" {' and '.join(targets)}; n_train={len(train)} (--n-train) takes all of them",
                stacklevel=4,
            )
    train = train[:n]
    if targets == ATOMIC and (lacking := ~np.isfinite(train.atomic_energies).all(1)).any():
        raise ValueError(
            f"expected atomic energies of all training geometries, found none for {lacking.sum()} of {n}; learn energy or"
            " forces too, where any may be missing, or remove those geometries"
        )
    return train


def observations_of_each(train, targets):
    """How many observations each geometry has, (n,)."""
    known = np.isfinite(joint.observations(targets, train.atomic_energies, train.energy, train.forces))
    return known.reshape(len(train), -1).sum(1)


def evenly(train, targets, most):
    """Numbers of geometries that stand evenly among all in the order of their energies, of ``most`` observations together, two
    geometries at least; in whatever order the data come, they are the same.
    """
    order = np.lexsort((pair_distances(train.positions).mean((1, 2)), train.energy))
    each = observations_of_each(train, targets)
    for n in range(min(len(train), int(most // max(1, each.min()))), 2, -1):
        chosen = order[((np.arange(n) + 0.5) * len(train) / n).astype(int)]
        if each[chosen].sum() <= most:
            return chosen
    return order[[0, -1]]


def first_of(train, targets, most):
    """How many of the first geometries together have at most ``most`` observations, two at least; and how many observations."""
    seen = np.cumsum(observations_of_each(train, targets))
    n = max(2, int((seen <= most).sum()))
    return n, int(seen[n - 1])
