"""The paper's table in our hands, with the truth beside it: prior means x temperatures x kinds of start.

    python scripts/robustness_table.py malondialdehyde --out table --reference dft --start equilibrium --start displaced

Models of atomic energies alone on atomic local frames, one for each prior mean. First all replicas run, from equilibrium and
from displaced or stretched starts; then the last frames of survivors are labelled: a survivor whose energy is wrong by more
than 5 kcal/mol is in a false basin. Everything is kept in the folder: the same command goes on where it was stopped.
Label the dataset's geometries with GFN2-xTB first (`--xtb`) to have the truth in minutes instead of hours; the molecule's
energy is then learned, as there are no atomic ones.
"""

import json
import os
from pathlib import Path

import numpy as np
from dialect import parsed

from iqagp_jax import energy_fn, fit_gp, load_dataset, load_model, save_model
from iqagp_jax.cli.console import output_folder, table, track
from iqagp_jax.labels.executors import Processes
from iqagp_jax.machine import devices
from iqagp_jax.machine.files import write_atomically
from iqagp_jax.potential import energy_and_forces
from iqagp_jax.references.choose import reference_of
from iqagp_jax.references.xtb import XTB, relabelled
from iqagp_jax.units import KCAL_MOL
from iqagp_jax.verdict import Protocol, claim
from iqagp_jax.verdict.replicas import KINDS, choose_starts, minimum_of, run_replicas
from iqagp_jax.verdict.truth import FALSE_BASIN, Spread, columns

MEANS = ["min", "mf1", "mf2", "mf3", "mf4", "mf5"]


def main():
    arguments = {
        "dataset": {"nargs": "?"},
        "--out": {"type": Path, "help": "folder; the same command goes on with it"},
        "--reference": {"choices": ("xtb", "dft", "none")},
        "--xtb": {"action": "store_true", "help": "label the geometries with GFN2-xTB first"},
        "--prior-mean": {"action": "append", "help": "repeatable"},
        "--temperature": {"type": float, "action": "append", "help": "K; repeatable"},
        "--start": {"choices": KINDS, "action": "append", "help": "kinds of start; repeatable"},
        "--replicas": {"type": int, "help": "for every temperature and kind of start"},
        "--time": {"type": float, "help": "ps of each replica"},
        "--frame-interval": {"type": float, "help": "fs"},
        "--survivors": {"type": int, "help": "labelled at most, for a temperature and kind of start"},
        "--n-train": {"type": int},
        "--max-steps": {"type": int, "help": "of a search for hyperparameters"},
        "--workers": {"type": int, "help": "processes of the reference"},
        "--seed": {"type": int},
    }
    usual = {"prior_mean": MEANS, "temperature": [300.0, 500.0, 700.0, 1000.0], "start": KINDS, "replicas": 20, "time": 20.0}
    usual |= {"frame_interval": 100.0, "survivors": 10, "n_train": 1000, "max_steps": 40, "workers": os.cpu_count() or 1}
    usual |= {"seed": 0}
    # Some femtoseconds, which a model of so few energies survives.
    short = {"dataset": "malondialdehyde", "out": None, "reference": "xtb", "xtb": True, "prior_mean": ["mf5"]}
    short |= {"temperature": [300.0], "start": ["equilibrium", "displaced"], "replicas": 2, "time": 0.004, "survivors": 1}
    short |= {"frame_interval": 2.0, "n_train": 200, "max_steps": 0, "workers": 1}
    options = parsed(__doc__, arguments, usual, short)
    devices.use_cores()
    out, data = output_folder(options.out), load_dataset(options.dataset)
    targets = ("atomic_energies",)
    if options.xtb:
        data, targets = relabelled(data.split("train")[: options.n_train], XTB(data.species)), ("energy",)
    long = {"replicas": options.replicas, "time": options.time, "frame_interval": options.frame_interval, "seed": options.seed}
    protocol = Protocol(tuple(options.temperature), tuple(options.start), **long)
    fitted = {"n_train": options.n_train, "max_steps": options.max_steps}
    runs = {}
    with Processes(options.workers) as pool:
        for mean in options.prior_mean:
            folder = output_folder(out / mean)
            path = folder / "model.safetensors"
            if not path.exists():
                save_model(fit_gp(data, "alf", prior_mean=mean, targets=targets, **fitted), path)
            model = load_model(path)
            reference = reference_of(options.reference, model, folder / "labels", pool=pool, workers=options.workers)
            claim(folder, model, reference, protocol, dataset=options.dataset, n_train=options.n_train, xtb=options.xtb)
            runs[mean] = model, reference, driven(model, folder, protocol, reference)
        rows = [row for mean in runs for row in judged(mean, *runs[mean], options.survivors)]
    write_atomically(out / "table.json", json.dumps(rows, indent=1))
    header = ["prior mean", "K", "start", "survived", "labelled", "right", "median |dE|, kcal/mol", "95%", "max"]
    cells = [["-" if value is None else f"{value:g}" if key == "K" else value for key, value in row.items()] for row in rows]
    table(f"{options.dataset}: {options.time:g} ps, held to {options.reference}", header, cells)


def driven(model, folder, protocol, reference):
    """The `Run` of a model's replicas from equilibrium and the distorted starts that the reference keeps together."""
    rest, _ = minimum_of(model, model.system)
    starts, _ = choose_starts(energy_fn(model), rest, protocol, reference)
    return run_replicas(model, rest, starts, protocol, folder / "model", protocol.time, protocol.seed)


def judged(mean, model, reference, run, most):
    """Rows of the table, one for every temperature and kind of start, with the errors of survivors' last frames."""
    groups = {group: run.group(*group) for group in run.groups}
    alive = {group: members[np.isnan(run.failure_times[members])] for group, members in groups.items()}
    looked_at = {group: members[:most] if reference else members[:0] for group, members in alive.items()}
    last = run.trajectory.positions[-1, np.concatenate(list(looked_at.values()))]
    errors = np.zeros(0)
    if len(last):
        labels, _ = reference.labels(last, progress=lambda items, total: track(items, f"labels, {mean}", total))
        errors = (energy_and_forces(model)(last)[0] - labels) / KCAL_MOL
    parts = np.split(errors, np.cumsum([len(members) for members in looked_at.values()])[:-1])
    for (temperature, kind), own in zip(groups, parts, strict=True):
        members = groups[temperature, kind]
        yield {
            "prior_mean": mean,
            "K": temperature,
            "start": kind,
            "survived": f"{len(alive[temperature, kind])}/{len(members)}",
            "labelled": len(own),
            # A frame without a label (the SCF did not converge) is none that is right.
            "right": int((np.abs(own) <= FALSE_BASIN).sum()),
            **columns("de", Spread.of(own)),
        }


if __name__ == "__main__":
    main()
