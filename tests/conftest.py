"""Fixtures: a small molecule whose atomic energies are known in closed form, and a model of it."""

import os
from dataclasses import replace
from pathlib import Path

import before  # noqa: F401
import jax
import numpy as np
import pytest

from iqagp_jax.data.dataset import Dataset
from iqagp_jax.data.level import Level
from iqagp_jax.families.gp.fit import fit_gp

SPECIES = ("O", "C", "H", "H")
"""Formaldehyde-like, with one hydrogen out of the plane, so that reflection changes it."""

REFERENCE = np.array([[0.0, 0.0, 0.0], [1.2, 0.0, 0.0], [1.8, 0.9, 0.1], [1.75, -0.85, 0.3]])


@pytest.fixture(autouse=True, scope="module")
def forget_compiled():
    """What a module compiled is of no use to the next, and two processes would hold 4 GB each of it in the end."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Float64 for tests of the pure functions; the public doors must do without."""
    with jax.enable_x64(True):
        yield


def pair_energies(positions):
    """Atomic energies (N,): half of every Morse-like pair term, a smooth function with the right symmetries."""
    distance = np.linalg.norm(positions[:, None] - positions, axis=-1) + np.eye(len(positions))
    rest = np.linalg.norm(REFERENCE[:, None] - REFERENCE, axis=-1) + np.eye(len(positions))
    terms = (1 - np.exp(-1.5 * (distance - rest))) ** 2
    np.fill_diagonal(terms, 0.0)
    return 0.5 * terms.sum(1) - 10.0


def pair_forces(positions, step=1e-5):
    """Forces (N, 3) of `pair_energies` by central differences."""
    forces = np.zeros_like(positions)
    for index in np.ndindex(*positions.shape):
        shift = np.zeros_like(positions)
        shift[index] = step
        forces[index] = (pair_energies(positions - shift).sum() - pair_energies(positions + shift).sum()) / (2 * step)
    return forces


def make_dataset(n, seed, split=None):
    """n geometries displaced by 0.08 angstrom, with exact labels."""
    rng = np.random.default_rng(seed)
    positions = REFERENCE + 0.08 * rng.normal(size=(n, 4, 3))
    energies = np.array([pair_energies(r) for r in positions])
    origin = {"source": np.array(["thermal"] * n)}
    if split:
        origin["split"] = np.array([split] * n)
    forces = np.array([pair_forces(r) for r in positions])
    return Dataset(SPECIES, positions, energies.sum(1), forces, energies, origin, free_atoms={"C": 0.0, "H": 0.0, "O": 0.0})


def cheaper(dataset):
    """The same geometries at a level of theory that has nine tenths of the energy above -40 eV."""
    energy, atomic = 0.9 * (dataset.energy + 40.0) - 40.0, 0.9 * (dataset.atomic_energies + 10.0) - 10.0
    level = Level(method="cheaper")
    return replace(dataset, energy=energy, forces=0.9 * dataset.forces, atomic_energies=atomic, level=level)


@pytest.fixture(scope="session")
def dataset():
    """80 training geometries."""
    return make_dataset(80, seed=1)


@pytest.fixture(scope="session")
def test_set():
    """30 unseen geometries."""
    return make_dataset(30, seed=2)


@pytest.fixture(scope="session")
def model(dataset):
    """ALF model with prior mean mf5."""
    return fit_gp(dataset, "alf", prior_mean="mf5", max_steps=15, targets=("atomic_energies",))


@pytest.fixture(scope="session")
def distance_model(dataset):
    """Inverse-distance model with a Matern kernel."""
    return fit_gp(dataset, "inverse-distances", prior_mean="mf1", max_steps=10, targets=("atomic_energies",))


@pytest.fixture(scope="session")
def reference_folder():
    """The folder of other programs' numbers."""
    folder = Path(os.environ.get("IQAGP_REFERENCE", Path(__file__).parents[2] / "shared" / "reference"))
    if not folder.is_dir():
        pytest.skip(f"reference data not found at {folder}")
    return folder


def rotation(seed):
    """A random proper rotation (3, 3)."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))
