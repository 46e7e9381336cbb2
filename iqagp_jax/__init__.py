"""iqagp_jax: Gaussian-process potentials of atomic energies in JAX, trained, tested and driven hot."""

from importlib.metadata import version

from iqagp_jax.compose import PerMolecule, Sum
from iqagp_jax.data.dataset import Dataset
from iqagp_jax.data.extxyz import embedded_datasets, load_dataset, save_dataset
from iqagp_jax.dynamics.run import simulate
from iqagp_jax.dynamics.trajectory import load_trajectory
from iqagp_jax.electrostatics import Electrostatics
from iqagp_jax.families.gp.fit import fit_gp
from iqagp_jax.families.gp.model import Model, leave_one_out
from iqagp_jax.modelfile import load_model, save_model
from iqagp_jax.potential import (
    atomic_energies,
    energy_and_forces,
    energy_fn,
    energy_shares,
    energy_variance,
    force_variance,
    predictive_variance,
)
from iqagp_jax.system.system import System
from iqagp_jax.validation import validate

__all__ = [
    "Dataset",
    "Electrostatics",
    "Model",
    "PerMolecule",
    "Sum",
    "System",
    "atomic_energies",
    "embedded_datasets",
    "energy_and_forces",
    "energy_fn",
    "energy_shares",
    "energy_variance",
    "fit_gp",
    "force_variance",
    "leave_one_out",
    "load_dataset",
    "load_model",
    "load_trajectory",
    "predictive_variance",
    "save_dataset",
    "save_model",
    "simulate",
    "validate",
]

__version__ = version("iqagp-jax")
