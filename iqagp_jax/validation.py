"""How good a model is on labelled geometries it has not seen: errors, calibration of its uncertainty, report."""

from dataclasses import asdict, dataclass

import numpy as np

from iqagp_jax.potential import Model, energy_and_forces, energy_variance, force_variance
from iqagp_jax.potential import atomic_energies as plain_atomic_energies
from iqagp_jax.units import KCAL_MOL

BATCH = 64
"""Geometries predicted at once."""


@dataclass(frozen=True)
class Errors:
    """Mean absolute, root mean square and largest absolute error."""

    mae: float
    rmse: float
    max: float

    @classmethod
    def of(cls, error):
        """From an array of errors, in the errors' unit; NaN where there is no reference, None if that is everywhere."""
        error = error[np.isfinite(error)]
        if not error.size:
            return None
        return cls(float(np.abs(error).mean()), float(np.sqrt((error**2).mean())), float(np.abs(error).max()))


@dataclass(frozen=True)
class Calibration:
    """Whether errors are as large as predicted."""

    within_one_sigma: float
    """share of errors below one predicted standard deviation; 0.68 if calibrated"""
    within_two_sigma: float
    """the same for two standard deviations; 0.95 if calibrated"""
    rank_correlation: float | None
    """Spearman's correlation of the absolute error and the predicted standard deviation; None of fewer than three"""

    @classmethod
    def of(cls, error, variance):
        """From errors and predicted variances in one unit and its square; NaN where there is no reference."""
        known = np.isfinite(error)
        if not known.any():
            return None
        error, sigma = np.abs(error[known]), np.sqrt(variance[known])
        correlation = spearman(error, sigma) if len(error) > 2 else None
        return cls(float((error < sigma).mean()), float((error < 2 * sigma).mean()), correlation)


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for a dataset; eV and angstrom, n geometries of N atoms."""

    energy: np.ndarray
    """(n,)"""
    forces: np.ndarray
    """(n, N, 3)"""
    variance: np.ndarray
    """(n,) predictive variance of the molecular energy, eV^2"""
    force_variance: np.ndarray
    """(n, N, 3) predictive variance of the force components, (eV/angstrom)^2; NaN for imported models"""
    atomic_energies: np.ndarray | None = None
    """(n, N), of a model that has learned them"""


@dataclass(frozen=True)
class Validation:
    """Errors in kcal/mol and kcal/mol/angstrom, absolute energies compared (no offset is removed); None without labels."""

    n_train: int
    n_test: int
    energy: Errors | None
    forces: Errors | None
    atomic_energies: dict[str, Errors] | None
    energy_calibration: Calibration | None
    force_calibration: Calibration | None

    def as_dict(self):
        """Plain numbers, ready for JSON."""
        return asdict(self)


def predict(model, positions):
    """`Predictions` for geometries (n, N, 3) in angstrom."""
    import jax

    fast, variance = energy_and_forces(model), energy_variance(model)
    of_forces = force_variance(model) if isinstance(model, Model) else lambda batch: np.full(batch.shape, np.nan)
    # A model of the molecule's energy divides it among the atoms as it likes.
    learned = not isinstance(model, Model) or "atomic_energies" in model.targets
    with jax.enable_x64(True):
        # One after the other: the plain formula takes differences from all training points, images and features at once.
        plain = jax.jit(lambda batch: jax.lax.map(lambda r: plain_atomic_energies(model, r), batch))
        parts = []
        for start in range(0, len(positions), BATCH):
            # The last batch is filled up, so that one compiled shape serves all.
            batch = positions[np.minimum(np.arange(start, start + BATCH), len(positions) - 1)]
            parts.append((*fast(batch), variance(batch), of_forces(batch), *([plain(batch)] if learned else [])))
    return Predictions(
        *(np.concatenate([np.asarray(part) for part in of_all])[: len(positions)] for of_all in zip(*parts, strict=True))
    )


def atom_labels(species):
    """C1, H2, ...: species and position in the input, counted from one."""
    return [f"{s}{k}" for k, s in enumerate(species, 1)]


def validate(model, dataset, predictions=None):
    """Compare a model with a labelled `Dataset`; returns a `Validation`.

    Raises ValueError where the dataset's atoms are not the model's.
    """
    if dataset.species != model.species:
        raise ValueError(
            f"expected the atoms {' '.join(model.species)} of the model, found {' '.join(dataset.species)} in the dataset"
        )
    predictions = predictions or predict(model, dataset.positions)
    error = (predictions.energy - dataset.energy) / KCAL_MOL
    atoms = forces = force_calibration = None
    if dataset.atomic_energies is not None and predictions.atomic_energies is not None:
        by_atom = (predictions.atomic_energies - dataset.atomic_energies) / KCAL_MOL
        if np.isfinite(by_atom).any():
            atoms = {label: Errors.of(by_atom[:, k]) for k, label in enumerate(atom_labels(dataset.species))}
    if dataset.forces is not None:
        force_error = predictions.forces - dataset.forces
        forces = Errors.of(force_error / KCAL_MOL)
        if np.isfinite(predictions.force_variance).all():
            force_calibration = Calibration.of(force_error, predictions.force_variance)
    return Validation(
        n_train=model.n_train,
        n_test=len(dataset),
        energy=Errors.of(error),
        forces=forces,
        atomic_energies=atoms,
        energy_calibration=Calibration.of(error, predictions.variance / KCAL_MOL**2),
        force_calibration=force_calibration,
    )


def spearman(a, b):
    """Spearman's rank correlation of two arrays (n,) without ties."""
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])
