"""Every geometry predicted from all others, by the factor of all: how far its labels are off, and how far they may be.

With K = L L^T the covariance of all observations y, noise included, and i those of one geometry, what y_i is off the prediction
of all other geometries, and the covariance of that, are

    e_i = ([K^-1]_ii)^-1 [K^-1 y]_i        cov(e_i) = s2 ([K^-1]_ii)^-1

(Rasmussen and Williams, section 5.4.2, in blocks), s2 the signal variance. [K^-1]_ii = [L^-1]_i^T [L^-1]_i, where [L^-1]_i are
columns of L^-1. They are made a stripe at a time, so that neither K^-1 nor L^-1 is ever whole: as many operations as the factor
itself took, all in products of matrices.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.linalg import cho_solve, solve_triangular

from iqagp_jax.families.gp import joint
from iqagp_jax.families.gp.model import refuse_copies

WIDTH = 512
"""Observations of a stripe, about."""


@dataclass(frozen=True)
class LeftOut:
    """What the m observations of n geometries are off what all other geometries predict; units are eV and eV/angstrom."""

    residual: np.ndarray
    """e (m,), observed minus predicted"""
    covariance: tuple[np.ndarray, ...]
    """of each geometry (M_i, M_i), with the noise of its labels"""
    geometry: np.ndarray
    """(m,) number of the geometry, rising"""
    target: np.ndarray
    """(m,) which of `joint.TARGETS`, by name"""
    scale: float
    """s2, by which the covariances of the fit's factor are multiplied"""

    @classmethod
    def of(cls, fitted):
        """Of a `teach.Fitted`.

        Raises ValueError, in a sentence, for a model of mirrored or permuted copies, where a copy stays in.
        """
        refuse_copies(fitted.model)
        geometry, target = places(fitted.model)
        residual, blocks = left_out(fitted.factor, fitted.y, np.bincount(geometry, minlength=len(fitted.model.train_positions)))
        scale = fitted.model.signal_variance[0] / np.asarray(fitted.process.variance).ravel()[0]
        return cls(residual, tuple(scale * block for block in blocks), geometry, target, scale)

    @property
    def sigma(self):
        """(m,) standard deviations that were predicted for the residuals."""
        return np.sqrt(np.concatenate([np.diag(block) for block in self.covariance]))

    def of_target(self, target, chosen):
        """(residual, sigma) of the observations of one of the targets, among those ``chosen`` (m,) bool.

        Where atomic energies are learned the energy is their sum, of geometries that have all of them.
        """
        here, sigma = self.target == target, self.sigma
        if target == "energy" and not here.any():
            return self._sums(chosen)
        return self.residual[here & chosen], sigma[here & chosen]

    def _sums(self, chosen):
        """(residual, sigma) of the sums of atomic energies."""
        ends = np.cumsum([len(block) for block in self.covariance])
        found = []
        for end, block in zip(ends, self.covariance, strict=True):
            geometry = slice(end - len(block), end)
            atomic = self.target[geometry] == "atomic_energies"
            if atomic.any() and chosen[geometry][atomic].all():
                found.append((self.residual[geometry][atomic].sum(), np.sqrt(block[np.ix_(atomic, atomic)].sum())))
        return tuple(np.array(found).reshape(-1, 2).T)

    def of_geometries(self, target):
        """(residual, sigma) of one of the targets, (n,): root mean squares over a geometry's observations, NaN without any.

        Not the residual in the metric of its covariance: neither translations nor rotations change a prediction, so that
        the covariance of forces is the noise alone along six directions, and in them labels are off by their own rounding.
        """
        here = self.target == target
        n, counts = len(self.covariance), np.bincount(self.geometry[here], minlength=len(self.covariance))

        def rms(values):
            squares = np.bincount(self.geometry[here], values[here] ** 2, n)
            return np.sqrt(np.divide(squares, counts, out=np.full(n, np.nan), where=counts > 0))

        return rms(self.residual), rms(self.sigma)


def places(model):
    """(number of the geometry, target) of each of the m observations of a model of several targets."""
    observed, n_atoms = model.learned_jointly.observed, len(model.species)
    targets = joint.of_each(np.array(model.targets), model.targets, n_atoms)
    n = len(observed) // len(targets)
    return np.repeat(np.arange(n), len(targets))[observed], np.tile(targets, n)[observed]


def left_out(factor, y, sizes):
    """(e (m,), the n blocks ([K^-1]_ii)^-1) of observations y (m,), ``sizes`` (n,) of each geometry, by the factor L (m, m)."""
    weights = np.split(cho_solve((factor, True), y, check_finite=False), np.cumsum(sizes)[:-1])
    blocks = [np.linalg.inv(block) for block in precisions(factor, sizes)]
    return np.concatenate([block @ w for block, w in zip(blocks, weights, strict=True)]), blocks


def precisions(factor, sizes):
    """The n diagonal blocks [K^-1]_ii (M_i, M_i) of the inverse of K = L L^T, from its lower factor L (m, m)."""
    blocks = []
    stripes = _stripes(sizes)
    for k, geometries in enumerate(stripes):
        columns = _columns_of_inverse(factor, [_span(sizes, g) for g in stripes[k:]])
        square = columns.T @ columns
        ends = np.cumsum(sizes[geometries])
        blocks += [square[e - s : e, e - s : e] for s, e in zip(sizes[geometries], ends, strict=True)]
    return blocks


def _columns_of_inverse(factor, spans):
    """Columns of L^-1 (m - start, width), those of the first of ``spans``, which divide the rows from there on."""
    start, width = spans[0].start, spans[0].stop - spans[0].start
    columns = np.empty((len(factor) - start, width))
    for rows in spans:
        done = rows.start - start
        right = -factor[rows, start : rows.start] @ columns[:done] if done else np.eye(width)
        columns[done : rows.stop - start] = solve_triangular(factor[rows, rows], right, lower=True, check_finite=False)
    return columns


def _stripes(sizes):
    """Geometries in turn, as slices, so many that their observations are about `WIDTH`."""
    number = np.cumsum(sizes) // WIDTH
    edges = [0, *(np.flatnonzero(np.diff(number)) + 1), len(sizes)]
    return [slice(a, b) for a, b in pairwise(edges)]


def _span(sizes, geometries):
    """The observations of a slice of geometries."""
    start = int(np.sum(sizes[: geometries.start]))
    return slice(start, start + int(np.sum(sizes[geometries])))
