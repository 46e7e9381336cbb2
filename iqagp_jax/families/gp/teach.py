"""A joint process conditioned on observations, and on more of them: what the model knows grows, its hyperparameters stay."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.spatial.distance import cdist

from iqagp_jax.families.gp import joint
from iqagp_jax.families.gp.means import residuals
from iqagp_jax.families.gp.model import Model
from iqagp_jax.system.geometry import pair_distances


@dataclass(frozen=True)
class Fitted:
    """A joint process conditioned on observations, which others can be added to; the hyperparameters stay as they are."""

    model: Model
    process: joint.Process
    noise: np.ndarray
    """(M,) with the process, at the variance that ``factor`` was made with"""
    y: np.ndarray
    """(m,) observations minus prior mean, those that there are"""
    factor: np.ndarray
    """(m, m) lower Cholesky factor of their covariance, noise included"""

    @classmethod
    def of(cls, model):
        """The prior of a model of forces or energies: its hyperparameters, conditioned on nothing."""
        nothing = {"positions": np.zeros((0, len(model.species), 3)), "observed": np.zeros(0, bool), "weights": np.zeros(0)}
        prior = replace(model, points=None, joint=replace(model.learned_jointly, **nothing, directions=None))
        return cls(prior, model.process, model.learned_jointly.noise_variance, np.zeros(0), np.zeros((0, 0)))

    def add(self, dataset):
        """Conditioned on the geometries of a `Dataset` too, by a block update of the factor.

        With the old factor L, B the covariance of the new observations with the old and C that of the new ones, the new
        rows of the factor are X = B L^-T and the factor of C - X X^T.

        Raises ValueError, in a sentence, for other atoms, for geometries without a target, where the factor would not fit into
        memory, and where there is none.
        """
        model, targets, known = self.model, self.model.targets, self.model.learned_jointly
        _check(dataset, model)
        with jax.enable_x64(True):
            y = joint.observations(targets, *residuals(dataset, model.mean))
            kept = np.isfinite(y)
            joint.check_memory(len(self.y) + kept.sum())
            factor = self._with_covariances(dataset, kept)
            try:
                factor = joint.factorise(factor, known=len(self.y))
            except np.linalg.LinAlgError:
                raise ValueError(_singular(model, dataset)) from None
            data = replace(
                known,
                positions=np.concatenate([known.positions, dataset.positions]),
                observed=np.concatenate([known.observed, kept]),
            )
            y = np.concatenate([self.y, y[kept]])
            return Fitted(replace(model, joint=data), self.process, self.noise, y, factor)._weighted()

    def energy_covariance(self, positions):
        """Posterior covariance (B, B) of the molecular energies at positions (B, N, 3), eV^2."""
        model, energy = self.model, ("energy",)
        with jax.enable_x64(True):
            here, train = (self._see(r) for r in (positions, model.learned_jointly.positions))
            prior = joint.covariance_rows(self.process, here, here, energy)
            known = {"kept_right": model.learned_jointly.observed, "right_targets": model.targets}
            cross = joint.covariance_rows(self.process, here, train, energy, **known)
            half = solve_triangular(self.factor, cross.T, lower=True, check_finite=False)
            # The model's variances are the process's, scaled.
            scale = float(model.signal_variance[0] / self.process.variance.ravel()[0])
            covariance = scale * (prior - half.T @ half)
            own = np.maximum(np.diag(covariance), np.finfo(float).tiny)
            wider = np.sqrt(model.learned_jointly.of_errors("energy", own, scale * np.diag(prior), positions) / own)
            return wider[:, None] * covariance * wider

    def _see(self, positions):
        """The `joint.Seen` of positions (n, N, 3)."""
        return jax.jit(self.model.see)(jnp.asarray(positions))

    def _with_covariances(self, dataset, kept):
        """The factor, below it the covariance of the new observations that are ``kept`` with the old, and with each other."""
        known, old, targets = self.model.learned_jointly, len(self.y), self.model.targets
        new = self._see(dataset.positions)
        matrix = np.zeros((old + kept.sum(), old + kept.sum()), order="F")
        matrix[:old, :old] = self.factor
        if old:
            there = self._see(known.positions), targets, targets
            joint.fill(matrix[old:, :old], self.process, new, *there, kept, known.observed)
        joint.fill(matrix[old:, old:], self.process, new, new, targets, targets, kept, kept, lower=True)
        matrix[(np.arange(old, len(matrix)),) * 2] += np.tile(self.noise, len(dataset))[kept]
        return matrix

    def _weighted(self):
        w = cho_solve((self.factor, True), self.y, check_finite=False)
        return replace(self, model=with_weights(self.model, self.process, self.noise, self.y, w))


def with_weights(model, process, noise, y, w):
    """The model of observations y (m,) with the weights w (m,), and the signal variances at their maximum-likelihood value."""
    data = model.learned_jointly
    scale = y @ w / len(y)
    weights = np.zeros(len(data.observed))
    weights[data.observed] = w / scale
    data = replace(data, weights=weights, noise_variance=scale * noise)
    return jax.device_get(replace(model, signal_variance=scale * np.asarray(process.variance).ravel(), joint=data))


def _check(dataset, model):
    """ValueError, in a sentence, for geometries that a model cannot be taught."""
    if dataset.species != model.species:
        raise ValueError(f"expected the atoms {' '.join(model.species)}, found {' '.join(dataset.species)}")
    lacking = {target for target in model.targets if getattr(dataset, target) is None}
    if "energy" in model.targets:  # which stands in for them
        lacking -= {"atomic_energies"}
    if lacking:
        raise ValueError(f"expected geometries with {', '.join(model.targets)}, found none of {', '.join(lacking)}; label them")


def _singular(model, dataset):
    """The sentence for a covariance matrix that has no factor, with the two geometries that are most alike."""
    known = np.concatenate([model.learned_jointly.positions, dataset.positions])
    distances = pair_distances(known).reshape(len(known), -1)
    apart = cdist(distances, distances) + np.diag(np.full(len(known), np.inf))
    i, j = np.unravel_index(apart.argmin(), apart.shape)
    return (
        f"the covariance matrix of {' '.join(model.species)} is not positive definite: are there duplicate geometries?"
        f" The nearest are numbers {i} and {j}, their distances differ by {apart[i, j]:.1e} angstrom; remove one or raise the"
        " noise"
    )
