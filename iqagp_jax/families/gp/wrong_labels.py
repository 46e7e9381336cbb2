"""Labels that are not their geometry's, found by the factor of a fit.

A label is a geometry's energy, its forces or its atomic energies. What it is off the prediction of all other geometries, over
the standard deviation of that (root mean squares over its numbers), is judged by its ratio to the median of all labels of the
kind: neither the scale of the process nor a few wrong labels change that. Energies of geometries whose forces are off as much
are not wrong but far from all others, so theirs are divided by the forces' ratio where that is above one.

A wrong label spoils the predictions of its neighbours, too. So geometries are set aside, those first whose label w_s,
w = K^-1 y, takes most of the quadratic form, w_s^T ([K^-1]_ss)^-1 w_s; all others are judged without them, by

    K^-1 - [K^-1]_:s ([K^-1]_ss)^-1 [K^-1]_s:        w - [K^-1]_:s ([K^-1]_ss)^-1 w_s

(a greedy search as that of Ament et al., arXiv:2410.24222, for whole labels). Then labels that agree with all that are left are
taken back, the best half at a time. What remains is wrong.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_solve

from iqagp_jax.families.gp.error_scale import ErrorScale
from iqagp_jax.families.gp.left_out import LeftOut, places
from iqagp_jax.families.gp.teach import Fitted
from iqagp_jax.machine.warn import warn

FAR = 8.0
"""A label is wrong whose ratio is so many medians. Of labels that were right the largest were 6 (contacts of a difference of
levels) and 4 (thermal geometries)."""

PRECISE = 1e-3
"""Share of what labels of a kind spread by that counts as their deviation at least: less than `FAR` times that does no harm."""

SUSPECTED = {"energy": 4.0, "forces": 2.0, "atomic_energies": 2.0}
"""Geometries are set aside with labels from so many medians on; an energy is one number, and scatters more."""

ENOUGH, FEW = 50, 20
"""Geometries from which on labels are judged, since of fewer (24) a right one was 8 medians off; and those that have an
`error_scale.ErrorScale`."""

SHARE = 25
"""One of so many geometries is set aside at a time, at most."""

MOST = 3
"""and one of so many in all."""

ROUNDS = 3
"""Fits that are looked through, at most."""

UNITS = {"energy": "eV", "atomic_energies": "eV", "forces": "eV/angstrom"}


@dataclass(frozen=True)
class WrongLabel:
    """A label that is far from what all right ones predict."""

    geometry: int
    """number among the training geometries, from 0"""
    target: str
    """which of `joint.TARGETS`"""
    residual: float
    """root mean square over its numbers, eV or eV/angstrom"""
    sigma: float
    """that was expected, in the scale that half of all labels keep to"""
    medians: float
    """the ratio of both, over the median of all"""


def checked(search, problem):
    """The `Model` of a `problem.Problem`, with its `error_scale.ErrorScale`; and a warning that names wrong labels.

    ``search`` finds the hyperparameters of a problem, as a `Model` conditioned on nothing. Where wrong labels are found they
    are searched again without these, and all labels are judged once more: wrong ones spoil hyperparameters, too. With the
    option ``robust`` the model is the one without wrong labels. Models of fewer than `FEW` geometries, and of copies, are left
    as they are.
    """
    robust, found, clean = problem.options.robust, (), problem
    for k in range(ROUNDS):
        fitted = Fitted.of(search(clean)).add(problem.copies)
        if k == 0:
            trusting = fitted
        if len(fitted.model.train_positions) < FEW or fitted.model.copies > 1:
            return fitted.model
        left = LeftOut.of(fitted)
        before, found = found, wrong_labels(fitted, left)
        if _places(found) == _places(before):
            break
        clean = replace(problem, train=without(problem.train, found))
    if found:
        done = "they are left out" if robust else "robust=True (--robust) leaves such labels out"
        warn(f"{_told(found)}; see whether they are their own, and the order of the atoms; {done}")
        fitted = Fitted.of(fitted.model).add(clean.copies) if robust else trusting
        left = LeftOut.of(fitted)
    model = fitted.model
    scale = ErrorScale.of(left, model.species, model.train_positions, found)
    return replace(model, joint=replace(model.learned_jointly, error_scale=scale))


def _places(wrong):
    return [(label.geometry, label.target) for label in wrong]


def _told(wrong):
    """The sentence that names them."""
    each = (
        f"{w.target.replace('_', ' ')} of geometry {w.geometry} ({w.residual:.2g} {UNITS[w.target]}, {w.sigma:.2g} expected)"
        for w in wrong
    )
    return f"labels are far from what all other training geometries, counted from 0, predict: {', '.join(each)}"


def without(dataset, wrong):
    """A `Dataset` with NaN for each `WrongLabel`; atomic energies take their sum along."""
    labels = {name: labels.copy() for name in UNITS if (labels := getattr(dataset, name)) is not None}
    for label in wrong:
        for name in (label.target, "energy")[: 2 if label.target == "atomic_energies" else 1]:
            labels[name][label.geometry] = np.nan
    return replace(dataset, **labels)


def as_seen(model, dataset):
    """The training geometries of a model, a `Dataset` in its order, with NaN for labels that ``robust`` left out."""
    geometry, target = places(model)
    seen = {name: np.isin(np.arange(len(dataset)), geometry[target == name]) for name in model.targets}
    if "atomic_energies" in seen and "energy" in seen:  # their sum, which is not seen twice
        seen["energy"] |= seen["atomic_energies"]
    labels = {name: values.copy() for name in seen if (values := getattr(dataset, name)) is not None}
    for name, values in labels.items():
        values[~seen[name]] = np.nan
    return replace(dataset, **labels)


def wrong_labels(fitted, left=None):
    """The `WrongLabel` of a `teach.Fitted`, in the order of its geometries; none of fewer than `ENOUGH`.

    ``left`` is its `left_out.LeftOut`, where known.
    """
    n = len(fitted.model.train_positions)
    if n < ENOUGH:
        return ()
    aside = _Aside(fitted, left or LeftOut.of(fitted))
    judged = _set_aside(aside)
    judged = _take_back(aside, judged)
    return tuple(
        WrongLabel(int(i), target, float(judged.residual[k, i]), float(judged.sigma[k, i]), float(judged.ratio[k, i]))
        for i in range(n)
        for k, target in enumerate(aside.targets)
        if judged.ratio[k, i] >= FAR
    )


@dataclass(frozen=True)
class _Judged:
    """Of every kind of label and geometry, (K, n); NaN where there is none."""

    residual: np.ndarray
    sigma: np.ndarray
    ratio: np.ndarray
    """to the median, of the residual over sigma"""
    suspicion: np.ndarray
    """to the median, of what a label takes of the quadratic form, over `SUSPECTED`; NaN of those set aside"""


class _Aside:
    """Observations of a fit of which some are set aside: ``out`` (m,)."""

    def __init__(self, fitted, left):
        self.fitted, self.geometry, target = fitted, left.geometry, left.target
        self.targets = [t for t in fitted.model.targets if (target == t).any()]
        self.kind = np.array([self.targets.index(t) for t in target])
        self.n = len(fitted.model.train_positions)
        self.sizes = np.bincount(self.geometry, minlength=self.n)
        self.blocks = [np.linalg.inv(block / left.scale) for block in left.covariance]
        self.weights = self._solve(fitted.y)
        labels = [fitted.y[self.kind == k] for k in range(len(self.targets))]
        self.spread = [np.median(np.abs(y - np.median(y))) for y in labels]
        self.out = np.zeros(len(fitted.y), bool)
        self.known = np.zeros(0, int)
        self.columns = np.zeros((len(fitted.y), 0))

    def _solve(self, right):
        return cho_solve((self.fitted.factor, True), right, check_finite=False)

    def of(self, kind, geometries):
        """Mask (m,) of the labels of a kind, of geometries that a mask (n,) selects."""
        return (self.kind == kind) & geometries[self.geometry]

    def put(self, out):
        """Set other observations aside."""
        new = np.setdiff1d(np.flatnonzero(out), self.known)
        if len(new):
            units = np.zeros((len(out), len(new)))
            units[new, np.arange(len(new))] = 1.0
            self.columns = np.concatenate([self.columns, self._solve(units)], axis=1)
            self.known = np.concatenate([self.known, new])
        self.out = out

    def judged(self):
        """`_Judged` by the observations that are not set aside."""
        chosen = self.out[self.known]
        aside, columns = self.known[chosen], self.columns[:, chosen]
        covariance = np.linalg.inv(columns[aside])
        off = covariance @ self.weights[aside]
        weights, shares = self.weights - columns @ off, columns @ covariance
        residual, sigma, taken = np.full((3, len(self.targets), self.n), np.nan)

        def note(i, kinds, error, block):
            for k in set(kinds):
                residual[k, i] = np.sqrt(np.mean(error[kinds == k] ** 2))
                sigma[k, i] = np.sqrt(np.mean(np.diag(block)[kinds == k]))

        ends = np.cumsum(self.sizes)
        for i, (end, size) in enumerate(zip(ends, self.sizes, strict=True)):
            here = np.arange(end - size, end)
            left = here[~self.out[here]]
            if len(left):
                own = left - here[0]
                precision = self.blocks[i][np.ix_(own, own)] - shares[left] @ columns[left].T
                block, kinds = np.linalg.inv(precision), self.kind[left]
                note(i, kinds, block @ weights[left], block)
                for k in set(kinds):
                    w, part = weights[left][kinds == k], precision[np.ix_(kinds == k, kinds == k)]
                    taken[k, i] = np.sqrt(w @ np.linalg.solve(part, w) / len(w))
        for i in np.unique(self.geometry[aside]):
            own = np.flatnonzero(self.geometry[aside] == i)
            note(i, self.kind[aside[own]], off[own], covariance[np.ix_(own, own)])
        return self._compared(residual, sigma, taken)

    def _compared(self, residual, sigma, taken):
        """With medians of what is not set aside; sigma in the scale that residuals have."""
        for k, target in enumerate(self.targets):
            gone = np.isin(np.arange(self.n), self.geometry[self.out & (self.kind == k)])
            sigma[k] *= np.nanmedian(np.where(gone, np.nan, residual[k] / sigma[k]))
            sigma[k] = np.maximum(sigma[k], PRECISE * self.spread[k])
            taken[k] /= np.nanmedian(taken[k]) * SUSPECTED[target]
        ratio = residual / sigma
        if "forces" in self.targets:
            forces = ratio[self.targets.index("forces")]
            far = np.where(forces < FAR, np.maximum(1.0, forces), 1.0)
            ratio = np.where([[t == "forces"] for t in self.targets], ratio, ratio / far)
        return _Judged(residual, sigma, ratio, taken)


def _set_aside(aside):
    """Set geometries aside until no label is suspicious."""
    while True:
        judged = aside.judged()
        worst = np.nan_to_num(judged.suspicion).max(0)
        gone = len(np.unique(aside.geometry[aside.out]))
        if worst.max() < 1 or gone > aside.n // MOST:
            return judged
        first = np.argsort(-worst)[: max(1, aside.n // SHARE)]
        first = first[worst[first] >= max(1.0, 0.6 * worst.max())]
        aside.put(aside.out | np.isin(aside.geometry, first))


def _take_back(aside, judged):
    """Take labels back that agree with all others, until those that are set aside are the wrong ones."""
    for _ in range(4 * aside.n.bit_length()):
        far = judged.ratio >= FAR
        wrong = np.logical_or.reduce([aside.of(k, far[k]) for k in range(len(far))])
        if (wrong == aside.out).all():
            break
        agree = np.unique(np.stack([aside.kind, aside.geometry], 1)[aside.out & ~wrong], axis=0)
        order = np.argsort([judged.ratio[k, i] for k, i in agree])
        back = np.zeros_like(far)
        back[tuple(agree[order[: (len(agree) + 1) // 2]].T)] = True
        aside.put((aside.out | wrong) & ~np.logical_or.reduce([aside.of(k, back[k]) for k in range(len(back))]))
        judged = aside.judged()
    return judged
