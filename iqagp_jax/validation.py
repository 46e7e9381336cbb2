"""How good a model is on labelled geometries it has not seen: errors, calibration of its uncertainty, report."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import jax
import numpy as np
from scipy.spatial import cKDTree

from iqagp_jax.data.scale import FORCES, check_units
from iqagp_jax.machine.warn import warn
from iqagp_jax.potential import bind, energy_and_forces, potential_of, uncertainty
from iqagp_jax.system.elements import same_atoms
from iqagp_jax.system.system import System
from iqagp_jax.units import KCAL_MOL

BATCH = 64
"""Geometries predicted at once, at most."""

ALIKE = 0.9
"""Cosine of forces and predictions from which on their sizes are compared."""

OUTLYING, PRECISE, FEW = 100.0, 0.01, 4
"""Medians that an error is beyond all others by, kcal/mol that a median counts as at least, and errors that have one."""

BINS = 5
"""Groups of errors by their predicted deviation."""

NEAR = 0.2
"""Logarithm by which a factor may miss one between units."""

SAME = 2e-4
"""Distances of a geometry that differ by less (angstrom) are those of another one: files have four decimals at least."""


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
class SigmaBin:
    """Errors of similar predicted deviations."""

    sigma: float
    """median of the predicted standard deviations, in the errors' unit"""
    mae: float
    """mean absolute error"""
    beyond_three_sigma: float
    """share of errors above three standard deviations; 0.003 if they are normal"""


@dataclass(frozen=True)
class Calibration:
    """Whether errors are as large as predicted."""

    within_one_sigma: float
    """share of errors below one predicted standard deviation; 0.68 if calibrated"""
    within_two_sigma: float
    """the same for two standard deviations; 0.95 if calibrated"""
    rank_correlation: float | None
    """Spearman's correlation of the absolute error and the predicted standard deviation; None of fewer than three"""
    beyond_three_sigma: float = 0.0
    """share of errors above three standard deviations"""
    bins: tuple[SigmaBin, ...] = ()
    """in rising order of the predicted deviation, as many errors in each; fewer than `BINS` where there are few errors"""

    @classmethod
    def of(cls, error, variance):
        """From errors and predicted variances in one unit and its square; NaN where there is no reference."""
        known = np.isfinite(error)
        if not known.any():
            return None
        error, sigma = np.abs(error[known]), np.sqrt(variance[known])
        correlation = spearman(error, sigma) if len(error) > 2 else None
        one, two = (float((error < k * sigma).mean()) for k in (1, 2))
        parts = np.array_split(np.argsort(sigma), max(1, min(BINS, len(error) // FEW)))
        bins = [
            SigmaBin(float(np.median(sigma[k])), float(error[k].mean()), float((error[k] > 3 * sigma[k]).mean())) for k in parts
        ]
        return cls(one, two, correlation, float((error > 3 * sigma).mean()), tuple(bins))


@dataclass(frozen=True)
class Predictions:
    """A potential's predictions for a dataset; eV and angstrom, n geometries of N atoms; None for what it does not know."""

    energy: np.ndarray
    """(n,)"""
    forces: np.ndarray
    """(n, N, 3)"""
    variance: np.ndarray | None = None
    """(n,) predictive variance of the molecular energy, eV^2"""
    force_variance: np.ndarray | None = None
    """(n, N, 3) predictive variance of the force components, (eV/angstrom)^2"""
    atomic_energies: np.ndarray | None = None
    """(n, N), of a potential that has learned them"""

    def __getitem__(self, index):
        """Those of the geometries that ``index`` selects."""
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: values[index] for name, values in known.items() if values is not None})


@dataclass(frozen=True)
class Validation:
    """Errors in kcal/mol and kcal/mol/angstrom, absolute energies compared (no offset is removed); None without labels."""

    n_train: int | None
    """training geometries; None of a potential that does not tell"""
    n_test: int
    energy: Errors | None
    forces: Errors | None
    atomic_energies: dict[str, Errors] | None
    energy_calibration: Calibration | None
    force_calibration: Calibration | None

    def as_dict(self):
        """Plain numbers, ready for JSON."""
        return asdict(self)


def predict(model, positions, dataset=None, progress=lambda steps: steps):
    """`Predictions` for geometries (n, N, 3) in angstrom.

    Parameters
    ----------
    dataset: of labels that they will be compared with; what it has no labels of, beside energies and forces, is left out: the
        variances of forces cost many times what the forces do.
    progress: wraps the range of batches, as a progress bar does.
    """
    functions: dict[str, Any] = {}
    parts: dict[str, list[Any]] = {}
    n = len(positions)
    batch = min(BATCH, n)
    for k in progress(range(-(-n // batch))):
        # Made when the bar is there: variances may need a factor of all observations, which takes a minute.
        functions = functions or _asked(model, dataset)
        # The last batch is filled up, so that one compiled shape serves all.
        here = positions[np.minimum(np.arange(k * batch, (k + 1) * batch), n - 1)]
        for name, of in functions.items():
            parts.setdefault(name, []).append(of(here))
    energy, forces = (np.concatenate(part)[:n] for part in zip(*parts.pop("both"), strict=True))
    return Predictions(energy, forces, **{name: np.concatenate(part)[:n] for name, part in parts.items()})


def _asked(model, dataset):
    """The functions of a batch of geometries that `Predictions` are made of, by name; without what there are no labels of."""
    system = _system(model, dataset)
    known = uncertainty(model, system)
    asked = {
        "both": energy_and_forces(model, system=system),
        "variance": known and known.energy,
        "force_variance": known and _wanted(dataset, "forces") and known.forces,
    }
    if learned_atomic_energies(model, system) and _wanted(dataset, "atomic_energies"):
        asked["atomic_energies"] = _one_by_one(model, system)
    return {name: of for name, of in asked.items() if of}


def _system(model, dataset):
    """The system of a dataset for a potential of any; None for one of a molecule, which knows its own."""
    if dataset is None or hasattr(potential_of(model), "system"):
        return None
    return System.of(dataset.species, dataset.positions[dataset.lowest], dataset.level.charge, dataset.level.spin)


def _wanted(dataset, target):
    """Whether a dataset, where one is given, has any label of a kind."""
    if dataset is None:
        return True
    values = getattr(dataset, target)
    return values is not None and bool(np.isfinite(values).any())


def seen(model, positions):
    """Mask (n,) of geometries (n, N, 3) that a model was trained on.

    Rotated ones, mirror images and those with equal atoms in another order count: they have the same sorted distances of every
    two elements. Nothing is known of a model that does not hold its training geometries.
    """
    trained = getattr(model, "train_geometries", None)
    if trained is None or not len(trained) or not len(positions):
        return np.zeros(len(positions), bool)
    known, asked = (_sorted_distances(model.species, np.asarray(r)) for r in (trained, positions))
    return np.isfinite(cKDTree(known).query(asked, distance_upper_bound=SAME, p=np.inf)[0])


def _sorted_distances(species, positions):
    """Distances (n, N (N - 1) / 2) of all pairs, those of every two elements in rising order."""
    a, b = np.triu_indices(len(species), 1)
    distances = np.linalg.norm(positions[:, a] - positions[:, b], axis=-1)
    kinds = np.array([" ".join(sorted((species[i], species[j]))) for i, j in zip(a, b, strict=True)])
    return np.concatenate([np.sort(distances[:, kinds == kind], axis=1) for kind in sorted(set(kinds))], axis=1)


def unseen(model, dataset):
    """The geometries of a `Dataset` that a model was not trained on, with a warning where some are left out.

    All of them, with another warning, where it was trained on each.
    """
    known = seen(model, dataset.positions)
    if known.all() and len(known):
        warn(
            f"all {len(known)} geometries are among those that the model was trained on: errors are those of the fit, and say"
            " nothing about others"
        )
        return dataset
    if known.any():
        warn(
            f"{known.sum()} of {len(known)} geometries are among those that the model was trained on, rotations, mirror images"
            " and the order of equal atoms aside; they are left out"
        )
        return dataset[~known]
    return dataset


def _one_by_one(model, system):
    """The plain formula for many geometries: it takes differences from all training points, images and features at once."""
    bound, _ = bind(model, system)

    @jax.jit
    def plain(batch, aux):
        return jax.lax.map(lambda r: bound.energies(r, aux)[0], batch)

    def apply(batch):
        with jax.enable_x64(True):
            return np.asarray(plain(batch, bound.enlarged(batch) if bound.enlarged else bound.aux))

    return apply


def learned_atomic_energies(model, system=None):
    """Whether a potential learned atomic energies; one of the molecule's energy divides it among the atoms as it likes."""
    return not bind(model, system)[0].only_sum


def atom_labels(species):
    """C1, H2, ...: species and position in the input, counted from one."""
    return [f"{s}{k}" for k, s in enumerate(species, 1)]


def validate(model, dataset, predictions=None):
    """Compare a model with a labelled `Dataset`; returns a `Validation` on geometries that it was not trained on, see `unseen`.

    ``predictions`` are those of all geometries of the dataset, where they are known.

    Raises ValueError where the dataset's atoms are not the model's.
    """
    check_atoms(model, dataset)
    check_units(dataset)
    whole, dataset = dataset, unseen(model, dataset)
    if predictions is None:
        predictions = predict(model, dataset.positions, dataset)
    elif len(dataset) < len(whole):
        predictions = predictions[~seen(model, whole.positions)]
    return compared(model, dataset, predictions)


def check_atoms(model, dataset):
    """ValueError, in a sentence, where a model cannot speak of the atoms of a `Dataset`."""
    potential = potential_of(model)
    if (system := _system(potential, dataset)) is None:
        same_atoms(potential.system.species, dataset.species, "the dataset")
    else:
        potential.check(system)


def check_forces(dataset, predictions):
    """Warn where forces are those predicted times a factor between units, or minus them."""
    if dataset.forces is None:
        return
    known = np.isfinite(dataset.forces)
    found, expected = dataset.forces[known], predictions.forces[known]
    sizes = np.linalg.norm(found), np.linalg.norm(expected)
    if not min(sizes) > 0 or abs(found @ expected) < ALIKE * np.prod(sizes):
        return
    slope = float(found @ expected / sizes[1] ** 2)
    unit = next((unit for unit, value in FORCES.items() if abs(np.log(abs(slope) * value)) < NEAR), "")
    if slope < 0 or unit not in ("", "eV/angstrom"):
        sign = " of the opposite sign, as gradients are" * (slope < 0)
        told = f", as if they were in {unit}" * (unit not in ("", "eV/angstrom"))
        warn(
            f"forces are {abs(slope):.3g} times those that the model predicts{sign}{told}; expected minus the gradient, in"
            " eV/angstrom: convert the dataset, or take another model"
        )


def tell_outliers(error, of="energy", unit="kcal/mol"):
    """Warn of errors (n,) in kcal/mol, NaN where there is no label, that are far beyond all others: labels may be another's.

    ``of`` and ``unit`` name what else they are errors of.
    """
    size = np.abs(error)
    known = np.isfinite(size)
    if known.sum() < FEW:
        return
    median = np.median(size[known])
    if frames := np.flatnonzero(known & (size > OUTLYING * max(median, PRECISE))).tolist():
        warn(
            f"the {of} of geometry {frames[0]} is {size[frames[0]]:.3g} {unit} off where {median:.2g} is the median of"
            f" {known.sum()}, and so are {len(frames) - 1} others; see whether their labels, and the order of their atoms, are"
            " their own"
        )


def compared(model, dataset, predictions):
    """The `Validation` of a model by its predictions for all geometries of a `Dataset`."""
    check_forces(dataset, predictions)
    error = (predictions.energy - dataset.energy) / KCAL_MOL
    tell_outliers(error)
    atoms = forces = energy_calibration = force_calibration = None
    if predictions.variance is not None:
        energy_calibration = Calibration.of(error, predictions.variance / KCAL_MOL**2)
    if dataset.atomic_energies is not None and predictions.atomic_energies is not None:
        by_atom = (predictions.atomic_energies - dataset.atomic_energies) / KCAL_MOL
        if np.isfinite(by_atom).any():
            atoms = {label: Errors.of(by_atom[:, k]) for k, label in enumerate(atom_labels(dataset.species))}
    if dataset.forces is not None:
        force_error = (predictions.forces - dataset.forces) / KCAL_MOL
        tell_outliers(np.sqrt((force_error**2).mean((1, 2))), "root mean square force", "kcal/mol/angstrom")
        forces = Errors.of(force_error)
        if predictions.force_variance is not None:
            force_calibration = Calibration.of(force_error, predictions.force_variance / KCAL_MOL**2)
    return Validation(
        n_train=getattr(model, "n_train", None),
        n_test=len(dataset),
        energy=Errors.of(error),
        forces=forces,
        atomic_energies=atoms,
        energy_calibration=energy_calibration,
        force_calibration=force_calibration,
    )


def spearman(a, b):
    """Spearman's rank correlation of two arrays (n,) without ties."""
    first, second = (np.argsort(np.argsort(x)) for x in (a, b))
    return float(np.corrcoef(first, second)[0, 1])
