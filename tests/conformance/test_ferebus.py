"""FEREBUS' and DL_FFLUX's own files (../shared/reference): read, their numbers are reproduced.

`scripts/ferebus_table.py` prints the whole table, with fits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.io import read

from iqagp_jax import (
    Electrostatics,
    PerMolecule,
    Sum,
    System,
    electrostatics,
    energy_and_forces,
    fit_gp,
    load_model,
    save_model,
    simulate,
)
from iqagp_jax.families.fflux import files as ferebus
from iqagp_jax.families.fflux.fit import by_ferebus, fit_atom
from iqagp_jax.families.gp import regression as gp
from iqagp_jax.system.cells import unwrapped
from iqagp_jax.system.geometry import whole_molecules
from iqagp_jax.units import HARTREE, KJ_MOL

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture
def water(reference_folder):
    return reference_folder / "ferebus/water"


def likelihood(model, concentrated):
    covariance = gp.covariance_matrix(model.kernel, model.x, model.noise)
    constant = model.n_train / 2 * (1 + np.log(2 * np.pi)) if concentrated else 0.0  # FEREBUS leaves it out
    return gp.log_likelihood(covariance, model.residual, concentrated, concentrated) + constant


@pytest.mark.parametrize(("kind", "value"), [("marginal", 348.91457), ("concentrated", 453.36193)])
def test_likelihoods(water, kind, value):
    model = ferebus.read_model(water / f"WATER_iqa_O1.{kind}.model")
    assert abs(likelihood(model, kind == "concentrated") - value) < 1e-3


def errors(model, path):
    x, y = ferebus.property_of(path, "iqa")
    return (ferebus.predict(model, x) - y) * HARTREE / KJ_MOL


def test_validation_error_and_features_of_glycine(reference_folder):
    folder = reference_folder / "ferebus/glycine"
    model = ferebus.read_model(folder / "GLYCINE_iqa_C1.marginal.model")
    error = errors(model, folder / "GLYCINE_C1_VALIDATION_SET.csv")
    assert abs(np.sqrt(np.mean(error**2)) - 0.862) < 0.001
    assert abs(np.abs(error).mean() - 0.671) < 0.001
    # Geometry from features and back: the prediction at the positions is that at the features.
    positions = ferebus.geometries(model.x[:3], model.frame, model.n_atoms)
    there = np.array([model(r) for r in positions]) / HARTREE
    np.testing.assert_allclose(there, ferebus.predict(model, model.x[:3]), rtol=0, atol=1e-8)


def test_validation_error_of_water(water):
    error = errors(ferebus.read_model(water / "WATER_iqa_O1.marginal.model"), water / "WATER_O1_VALIDATION_SET.csv")
    assert abs(np.sqrt(np.mean(error**2)) - 0.199) < 0.001
    assert abs(np.abs(error).mean() - 0.095) < 0.001


def test_box_of_water(reference_folder):
    """Step 0 of DL_FFLUX's run, its column divided by 262550 where the program multiplied by 262549.9638285."""
    model = ferebus.read_folder(reference_folder / "dlfflux_water")
    box = read(reference_folder / "dlfflux_water/CONFIG", format="dlp4")
    molecules = whole_molecules(box.positions, box.cell.array, 3)
    energies, forces = energy_and_forces(model)(molecules)
    assert len(molecules) == 343
    assert abs(energies.sum() / HARTREE + 26226.8745205857 * 262550 / 262549.9638285) < 1e-6
    assert np.abs(forces.sum(1)).max() < 1e-9


class Charges:
    """Point charges, as moments of rank 0."""

    species, frames = ("O", "H", "H"), ((0, 1, 2), (1, 0, 2), (2, 0, 1))

    def __call__(self, positions):
        return np.array([[-0.8], [0.4], [0.4]])


def test_box_of_water_is_a_potential_and_is_driven(reference_folder, tmp_path):
    """The same number by `Sum(PerMolecule(water), Electrostatics(moments))`, as a cluster; two frames of a run of it."""
    water = ferebus.read_folder(reference_folder / "dlfflux_water")
    box = read(reference_folder / "dlfflux_water/CONFIG", format="dlp4")
    species = box.get_chemical_symbols()
    positions, molecules = unwrapped(species, box.positions, box.cell.array, box.pbc)
    system = System.of(species, positions, molecules=molecules)
    inside = energy_and_forces(PerMolecule(water), system=system)(positions[None])[0][0]
    assert abs(inside / HARTREE + 26226.8745205857 * 262550 / 262549.9638285) < 1e-6
    potential = Sum(PerMolecule(water), Electrostatics(Charges()))
    run = simulate(
        potential, system, positions[None], tmp_path, temperature=300.0, time=0.002, frame_interval=1.0, progress=False
    )
    assert run.survived.all() and run.temperatures.shape == (3, 1)
    assert abs(run.temperatures[0, 0] / 300.0 - 1) < 0.1  # 3084 degrees of freedom: drawn to 2.5%
    with jax.enable_x64(True):
        between = float(electrostatics.energy_fn(Charges(), Charges.frames)(positions.reshape(343, 3, 3)))
    assert abs(run.energies[0, 0] - inside - between) < 1e-6


def test_round_trip(reference_folder, tmp_path):
    """.model to our file and back: predictions to 1e-8 hartree, hyperparameters to 1e-14."""
    model = ferebus.read_folder(reference_folder / "dlfflux_water")
    save_model(model, tmp_path / "water.safetensors")
    ferebus.write_folder(load_model(tmp_path / "water.safetensors"), tmp_path)
    back = ferebus.read_folder(tmp_path)
    for one, two in zip(model.atoms, back.atoms, strict=True):
        np.testing.assert_allclose(two.kernel.kernel.lengthscale, one.kernel.kernel.lengthscale, rtol=1e-14)
        np.testing.assert_allclose(ferebus.predict(two, one.x + 0.01), ferebus.predict(one, one.x + 0.01), rtol=0, atol=1e-8)


def test_our_fit_of_water_is_no_worse(water):
    """From random starts: the likelihood of FEREBUS' hyperparameters at least, its validation error at most."""
    x, y = ferebus.property_of(water / "WATER_O1_TRAINING_SET.csv", "iqa")
    labels = (("name", "WATER"), ("atom", "O1"), ("property", "iqa"))
    model, found = fit_atom(x, y, (0, 1, 2), labels, n_starts=3, seed=1)
    theirs = ferebus.read_model(water / "WATER_iqa_O1.marginal.model")
    assert found.values.max() >= likelihood(theirs, False)
    assert jnp.sqrt(jnp.mean(errors(model, water / "WATER_O1_VALIDATION_SET.csv") ** 2)) < 0.1994


@pytest.mark.parametrize("seed", [0, 1])
def test_every_start_finds_the_top(water, seed):
    """Of the concentrated likelihood; of starts drawn at random for every feature by itself, one in five ended 40 below it."""
    x, y = ferebus.property_of(water / "WATER_O1_TRAINING_SET.csv", "iqa")
    labels = (("name", "WATER"), ("atom", "O1"), ("property", "iqa"))
    found = fit_atom(x, y, (0, 1, 2), labels, loss="concentrated", n_starts=5, seed=seed)[1]
    theirs = likelihood(ferebus.read_model(water / "WATER_iqa_O1.concentrated.model"), True)
    assert by_ferebus(found.values.min(), "concentrated", len(x)) > theirs - 1e-3


def test_training_sets_of_all_atoms_are_a_dataset(water):
    """Three atoms' files, rebuilt into molecules, and a model of them by fit_gp; a wrong frame is noticed."""
    paths = {"O1": "WATER_O1_EXAMPLE_TRAINING_SET.csv", "H2": "WATER_H2_TRAINING_SET.csv", "H3": "WATER_H3_TRAINING_SET.csv"}
    paths = {name: water / path for name, path in paths.items()}
    frames = {"O1": "1,2,3", "H2": "2,1,3", "H3": "3,1,2"}
    data = ferebus.dataset_from_csv(paths, frames)
    assert data.species == ("O", "H", "H")
    assert len(data) == 59
    model = fit_gp(data, prior_mean="mf1", n_train=40)
    error = energy_and_forces(model)(data.positions[40:])[0] - data.energy[40:]
    assert np.sqrt(np.mean(error**2)) < 0.05 * data.energy.std()
    with pytest.raises(ValueError, match="in the frame 2,3,1, found others"):
        ferebus.dataset_from_csv(paths, {**frames, "H2": "2,3,1"})
    with pytest.raises(ValueError, match="expected a file and a frame for every atom"):
        ferebus.dataset_from_csv({"O1": paths["O1"], "H3": paths["H3"]}, frames)
