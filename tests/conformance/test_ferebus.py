"""FEREBUS' water model (../shared/reference/ferebus/water): our kernels at its hyperparameters give its numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from iqagp_jax import gp
from iqagp_jax.kernels import RBF
from iqagp_jax.units import HARTREE, KJ_MOL

pytestmark = pytest.mark.usefixtures("x64")


def section(text, name, columns):
    """Numbers of one section of a .model file."""
    body = text.split(f"[{name}]\n")[1].split("[")[0]
    return np.array(body.split(), dtype=float).reshape(-1, columns)


@pytest.fixture
def water(reference_folder):
    text = (reference_folder / "ferebus/water/WATER_iqa_O1.marginal.model").read_text()
    theta = np.array(text.split("theta ")[1].splitlines()[0].split(), dtype=float)
    mean = float(text.split("value ")[1].split()[0])
    x, y = section(text, "training_data.x", 3), section(text, "training_data.y", 1)[:, 0]
    return RBF(jnp.asarray(1 / np.sqrt(2 * theta))), x, y, mean, section(text, "weights", 1)[:, 0]


def test_marginal_likelihood(water):
    kernel, x, y, mean, _ = water
    covariance = gp.covariance_matrix(kernel, x, 1e-10)
    assert abs(gp.log_likelihood(covariance, y - mean) - 348.91457) < 1e-3


def test_validation_error(water, reference_folder):
    kernel, x, y, mean, file_weights = water
    rows = np.loadtxt(reference_folder / "ferebus/water/WATER_O1_VALIDATION_SET.csv", delimiter=",", skiprows=1)
    covariance = gp.covariance_matrix(kernel, x, 1e-10)
    ours = gp.weights(jnp.linalg.cholesky(covariance), y - mean)
    for w in (file_weights, ours):
        error = (mean + gp.predict(kernel, x, w, rows[:, 1:4]) - rows[:, 4]) * HARTREE / KJ_MOL
        assert abs(np.sqrt(np.mean(error**2)) - 0.199) < 0.001
