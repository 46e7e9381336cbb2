"""Malondialdehyde's proton transfer at 1000 K: a model trained on GFN2-xTB beside the dynamics of GFN2-xTB itself.

    python scripts/proton_transfer.py --out transfer

Labels the embedded geometries with GFN2-xTB, trains on them, teaches the model what it knows least of its own hot runs until
all survive and are right, and asks for a verdict from the equilibrium, whose report holds all distributions and rates. Prints
those of the transfer, d(O-H) - d(H...O), and the model's errors on frames of the reference's own dynamics, tautomer by
tautomer. The same command goes on in its folder.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from dialect import parsed

from iqagp_jax import energy_and_forces, fit_gp, load_dataset, load_model, save_dataset, save_model
from iqagp_jax.active import learn
from iqagp_jax.cli.console import output_folder, table, track
from iqagp_jax.dynamics.record import Run
from iqagp_jax.labels.executors import Processes
from iqagp_jax.machine.devices import use_cores
from iqagp_jax.references.xtb import XTB, relabelled
from iqagp_jax.units import KCAL_MOL
from iqagp_jax.verdict import Protocol, judge
from iqagp_jax.verdict.structure import states

TEMPERATURE = 1000.0

LESSONS = Protocol((TEMPERATURE, 1500.0), ("equilibrium",), replicas=16, time=50.0, frame_interval=5.0)
"""Of the model's education: longer and hotter than it is then judged."""

FRAMES = 200
"""Frames of the reference's dynamics that the model's errors are taken over."""


def main():
    arguments = {
        "--out": {"type": Path, "help": "folder; the same command goes on with it"},
        "--replicas": {"type": int, "help": "of the model and of GFN2-xTB, each"},
        "--time": {"type": float, "help": "ps of each replica"},
        "--n-train": {"type": int, "help": "embedded geometries of the first model; by default as `iqagp train`"},
        "--max-steps": {"type": int, "help": "of its search for hyperparameters"},
        "--rounds": {"type": int, "help": "of lessons at most"},
        "--workers": {"type": int, "help": "processes of GFN2-xTB"},
    }
    usual = {"replicas": 20, "time": 20.0, "n_train": None, "max_steps": 40, "rounds": 5}
    usual |= {"workers": os.cpu_count() or 1}
    short = {"out": None, "replicas": 2, "time": 0.2, "n_train": 20, "max_steps": 0, "rounds": 0, "workers": 1}
    options = parsed(__doc__, arguments, usual, short)
    use_cores()
    out = output_folder(options.out)
    path, labels = out / "model.safetensors", out / "labels.extxyz"
    if not path.exists():
        data = load_dataset("malondialdehyde").split("train")[: options.n_train]
        save_dataset(relabelled(data, XTB(data.species)), labels)
        save_model(fit_gp(load_dataset(labels), n_train=options.n_train, max_steps=options.max_steps), path)
    many = {"replicas": options.replicas, "reference_replicas": options.replicas}
    long = {"time": options.time, "reference_time": options.time}
    protocol = Protocol((TEMPERATURE,), ("equilibrium",), frames=4 if options.short else FRAMES, **many, **long)
    lessons = replace(LESSONS, replicas=2, time=0.1, frames=2) if options.short else LESSONS
    with Processes(options.workers) as pool:
        reference = XTB(load_model(path).species, pool=pool)
        first, taught = load_model(path), out / "lessons"
        model, _ = learn(first, load_dataset(labels), taught, reference, lessons, options.rounds, refit=False, progress=track)
        verdict = judge(model, out / "verdict", reference, protocol, "trained on GFN2-xTB", track)
        errors = by_tautomer(model, Run.open(out / "verdict" / "reference"), reference)
    (ensemble,) = verdict.ensemble.rows
    shown = [d for d in ensemble.distributions if d.name.startswith(("transfer", "contact"))]
    table(
        "Jensen-Shannon distance of the distributions",
        ["coordinate", "distance", "error", "95% by chance"],
        [(d.name, d.distance, d.error, d.chance) for d in shown],
    )
    table(
        f"{options.replicas} replicas of {options.time:g} ps each, {TEMPERATURE:g} K",
        ["", "model", "error", "GFN2-xTB", "error", "difference in errors"],
        [
            (f"{c.name}, {c.unit}", c.model, c.model_error, c.reference, c.reference_error, c.difference_in_errors)
            for c in ensemble.counted
        ],
    )
    table("errors on frames of GFN2-xTB's dynamics", ["who owns the proton", "frames", "kcal/mol", "kcal/mol/Å"], errors)


def by_tautomer(model, run, reference):
    """(owner of the proton, frames, mean |dE|, mean |dF|) on frames of the reference's dynamics, drawn evenly."""
    positions = run.trajectory.positions
    ((_, names, series),) = [s for s in states(model.species, model.reference, positions) if s[0].startswith("owner of H9")]
    frames = np.linspace(1, len(positions) - 1, max(2, FRAMES // positions.shape[1])).astype(int)
    chosen, owners = positions[frames].reshape(-1, *positions.shape[2:]), series[frames].ravel()
    energies, forces = reference.labels(chosen)
    mine = energy_and_forces(model)(chosen)
    wrong = np.abs(mine[0] - energies) / KCAL_MOL, np.abs(mine[1] - forces).mean((1, 2)) / KCAL_MOL
    return [
        (names[o], int((owners == o).sum()), *(float(np.nanmean(w[owners == o])) for w in wrong))
        for o in np.unique(owners[owners >= 0])
    ]


if __name__ == "__main__":
    main()
