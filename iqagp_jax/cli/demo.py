"""The main job on embedded data: train, validate, relax a stretched bond, drive fifty hot replicas, report."""

import json
import time

import numpy as np

from iqagp_jax import plots
from iqagp_jax.cli.console import console, output_folder, then, track
from iqagp_jax.cli.models import validate_split
from iqagp_jax.cli.runs import draw_replicas, print_replicas
from iqagp_jax.data.extxyz import load_dataset
from iqagp_jax.dynamics.run import simulate
from iqagp_jax.dynamics.starts import at_rest, hydrogen_bonds_to_stretch, restoring_force, starts
from iqagp_jax.families.gp.fit import fit_gp
from iqagp_jax.machine.files import write_atomically
from iqagp_jax.modelfile import save_model
from iqagp_jax.potential import energy_and_forces
from iqagp_jax.system.geometry import pair_distances
from iqagp_jax.units import KCAL_MOL
from iqagp_jax.validation import atom_labels

DATASET = "malondialdehyde"
SMILES = r"O=C/C=C\O"
N_TRAIN = 400
TEMPERATURE = 500.0
REPLICAS = 50
PICOSECONDS = 5.0
STRETCH = 1.5
KINDS = ["equilibrium"] * 25 + ["displaced"] * 13 + ["stretched"] * 12


def run_demo(out):
    """Do everything and write model, pictures, trajectory and ``report.json`` to the folder ``out``."""
    out = output_folder(out)
    if (out / "report.json").exists() or any((out / "trajectory").glob("*.npz")):
        raise ValueError(f"expected an empty folder, found an earlier demo in {out}; remove it or give another --out")
    data = load_dataset(DATASET)
    console.print(f"[bold]{DATASET}[/bold]: {len(data)} geometries, {data.level}")

    began = time.perf_counter()
    model = fit_gp(data, n_train=N_TRAIN, progress=lambda s: track(s, "hyperparameters"))
    train_seconds = time.perf_counter() - began
    save_model(model, out / "model.safetensors")
    plots.likelihood_trace(model).savefig(out / "likelihood.png")
    console.print(f"trained on {model.n_train} geometries in {train_seconds:.0f} s")

    validation = validate_split(model, data.split("test_500K"), "test_500K", out, "model")
    rest = at_rest(model)
    positions = starts(model, KINDS, stretch=STRETCH, rest=rest)
    stretched = stretched_bond(model, positions)
    folder = out / "trajectory"
    run = simulate(model, rest.system, positions, folder, temperature=TEMPERATURE, time=PICOSECONDS, kinds=KINDS)
    print_replicas(run)
    relaxed = relaxation(model, run.trajectory, stretched, out)
    draw_replicas(run, out)
    report = {
        "n_train": model.n_train,
        "energy_mae_kcal_mol": validation.energy.mae,
        "force_mae_kcal_mol_A": validation.forces.mae,
        "atomic_mae_kcal_mol": {atom: error.mae for atom, error in validation.atomic_energies.items()},
        "replicas": REPLICAS,
        "survived": int(run.survived.sum()),
        "temperature_target_K": TEMPERATURE,
        "temperature_mean_K": float(np.nanmean(run.mean_temperatures(0.5))),
        "ms_per_step_per_replica": run.ms_per_step_per_replica,
        "train_seconds": train_seconds,
        **stretched,
        **relaxed,
    }
    write_atomically(out / "report.json", json.dumps(report, indent=1))
    console.print(f"model, pictures, trajectory and report.json are in {out}")
    then(f"iqagp make '{SMILES}' --level gfn2-xtb --budget 15min --out {out / 'make'}")


def stretched_bond(model, positions):
    """The stretched O-H bond and the force along it at the start, in kcal/mol/angstrom; positive pulls the hydrogen back."""
    k = KINDS.index("stretched")
    heavy, hydrogen = hydrogen_bonds_to_stretch(model.species, positions[0])[0]
    forces = np.asarray(energy_and_forces(model)(positions[k][None])[1][0])
    force = restoring_force(positions[k], forces, heavy, hydrogen) / KCAL_MOL
    labels = atom_labels(model.species)
    name = f"{labels[heavy]}-{labels[hydrogen]}"
    console.print(f"{name} at {STRETCH:.2f} Å: restoring force {force:.0f} kcal/mol/Å")
    return {"stretched_bond": name, "restoring_force_kcal_mol_A": force}


def relaxation(model, trajectory, stretched, out):
    """When the stretched hydrogen is bound again: for 60 fs on end within 1.2 angstrom of an oxygen.

    In malondialdehyde either oxygen may take it up: the proton transfer is chemistry.
    """
    _, hydrogen = hydrogen_bonds_to_stretch(model.species, model.reference)[0]
    labels = atom_labels(model.species)
    oxygens = [k for k, s in enumerate(model.species) if s == "O"]
    distances = pair_distances(trajectory.positions[:, KINDS.index("stretched")])[:, hydrogen, oxygens]
    bound = np.any(distances < 1.2, axis=1, keepdims=True)[:, 0]
    settled = [k for k in range(len(bound) - 3) if bound[k : k + 4].all()]
    when = float(trajectory.times[settled[0]]) if settled else None
    named = {f"{labels[o]}-{labels[hydrogen]}": distances[:, k] for k, o in enumerate(oxygens)}
    plots.bond_relaxation(
        trajectory.times, named, f"{stretched['stretched_bond']} stretched to {STRETCH} Å, {TEMPERATURE:g} K"
    ).savefig(out / "relaxation.png")
    console.print(
        f"{labels[hydrogen]} " + ("never bound again" if when is None else f"bound to an oxygen again after {when:g} fs")
    )
    return {"relaxation_fs": when}
