"""A joint process conditioned on observations, and on more of them: what the model knows grows, its hyperparameters stay."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.spatial.distance import cdist

from iqagp_jax.families.gp import joint
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
        n_atoms, _, n_features = model.train_features.shape
        nothing = {"positions": np.zeros((0, n_atoms, 3)), "observed": np.zeros(0, bool), "directions": None}
        prior = replace(
            model,
            train_features=np.zeros((n_atoms, 0, n_features)),
            weights=np.zeros((n_atoms, 0)),
            joint=replace(model.learned_jointly, **nothing),
        )
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
            new = self._see(dataset.positions)
            corner = joint.covariance_matrix(self.process, new, targets, self.noise, kept)
            rows = np.zeros((len(corner), 0))
            if len(self.y):
                rows = joint.covariance_rows(self.process, new, self._see(known.positions), targets, kept, known.observed)
                rows = solve_triangular(self.factor, rows.T, lower=True, overwrite_b=True, check_finite=False).T
                corner -= rows @ rows.T
            try:
                corner = joint.factorise(corner)
            except np.linalg.LinAlgError:
                raise ValueError(_singular(model, dataset)) from None
            data = replace(
                known,
                positions=np.concatenate([known.positions, dataset.positions]),
                observed=np.concatenate([known.observed, kept]),
            )
            y, factor = np.concatenate([self.y, y[kept]]), self._grown(rows, corner)
            return Fitted(replace(model, joint=data), self.process, self.noise, y, factor)._weighted()

    def energy_covariance(self, positions):
        """Posterior covariance (B, B) of the molecular energies at positions (B, N, 3), eV^2."""
        model, energy = self.model, ("energy",)
        with jax.enable_x64(True):
            here, train = (self._see(r) for r in (positions, model.learned_jointly.positions))
            prior = joint.covariance_rows(self.process, here, here, energy, rows=64)
            known = {"kept_right": model.learned_jointly.observed, "right_targets": model.targets}
            cross = joint.covariance_rows(self.process, here, train, energy, rows=64, **known)
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

    def _grown(self, rows, corner):
        """The factor with new rows, of which ``corner`` is the part below and to the right."""
        old = len(self.y)
        if not old:
            return corner
        factor = np.zeros((old + len(corner), old + len(corner)), order="F")
        factor[:old, :old], factor[old:, :old], factor[old:, old:] = self.factor, rows, corner
        return factor

    def _weighted(self):
        w = cho_solve((self.factor, True), self.y, check_finite=False)
        return replace(self, model=with_weights(self.model, self.process, self.noise, self.y, w))


def with_weights(model, process, noise, y, w):
    """The model of observations y (m,) with the weights w (m,), and the signal variances at their maximum-likelihood value."""
    data = model.learned_jointly
    scale = y @ w / len(y)
    weights = np.zeros(len(data.observed))
    weights[data.observed] = w / scale
    variance = scale * np.asarray(process.variance).ravel()
    positions = jnp.asarray(data.positions)
    expand = jax.jit(joint.expansion, static_argnums=(2, 3))
    a, b = expand(jnp.asarray(weights), positions, model.features, model.targets, data.permutations)
    directions = variance[:, None, None] * b if "forces" in model.targets else None
    fitted = replace(
        model,
        train_features=jax.jit(jax.vmap(model.features))(joint.images(positions, data.permutations)).swapaxes(0, 1),
        weights=variance[:, None] * a,
        signal_variance=variance,
        joint=replace(data, directions=directions, noise_variance=scale * noise),
    )
    return jax.device_get(fitted)


def residuals(data, mean):
    """Atomic energies, energy and forces minus those of the prior mean; NaN where the data have none."""
    positions = jnp.asarray(data.positions)
    prior = np.asarray(jax.jit(jax.vmap(mean))(positions))
    slope = np.asarray(jax.jit(jax.vmap(jax.grad(lambda r: mean(r).sum())))(positions))
    atomic, forces = (np.nan if part is None else part for part in (data.atomic_energies, data.forces))
    return atomic - prior, data.energy - prior.sum(1), forces + slope


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
