"""Model files made by the code before potentials had a contract: they load, and what they say has not changed."""

from pathlib import Path

import numpy as np
import pytest

from iqagp_jax import energy_and_forces, energy_shares, load_model
from iqagp_jax.potential import uncertainty
from iqagp_jax.verdict import digest

FOLDER = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", ["alf", "forces", "mirrored", "fflux"])
def test_old_models_say_what_they_said(name):
    """The same bits on the machine that made them, elsewhere the same numbers.

    A variance is what the data leave of the prior's, so it is as exact as that is.
    """
    model = load_model(FOLDER / f"{name}.safetensors")
    with np.load(FOLDER / "predictions.npz") as kept:
        said = {key.removeprefix(f"{name}_"): kept[key] for key in kept if key.startswith(f"{name}_")}
        positions = kept["positions"]
    energies, forces = energy_and_forces(model)(positions)
    variances = uncertainty(model)
    found = {
        "energy": energies,
        "forces": forces,
        "atomic_energies": np.array([energy_shares(model, r) for r in positions]),
        "variance": variances.energy(positions),
        "atomic_variance": variances.atomic_energies(positions),
    }
    if variances.forces is not None:
        found["force_variance"] = variances.forces(positions)
    assert set(found) == set(said)
    prior = np.sum(getattr(model, "signal_variance", 1.0))
    for key, value in said.items():
        tolerance = 1e-10 * (prior if "variance" in key else 1.0)
        if key == "atomic_energies":
            tolerance = 3e-8  # the plain formula sums numbers of 1e7, whose last digits another compiler rounds otherwise
        np.testing.assert_allclose(found[key], value, rtol=1e-10, atol=tolerance, err_msg=key)


@pytest.mark.parametrize(
    ("name", "begins"), [("alf", "a390be31"), ("forces", "526c7571"), ("mirrored", "1ee83cab"), ("fflux", "bed1c659")]
)
def test_verdicts_begun_with_old_models_go_on(name, begins):
    """Their folders know a model by a digest of its arrays in their order."""
    assert digest(load_model(FOLDER / f"{name}.safetensors")).startswith(begins)
