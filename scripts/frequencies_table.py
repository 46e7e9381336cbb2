"""Frequencies of a model beside its own reference's, at the model's minimum.

    python scripts/frequencies_table.py malondialdehyde --out frequencies

The model is the default one of the embedded dataset, or --model. The reference's Hessian is of central differences of its
forces, 6 N labels that are kept in the folder, where they are of density functional theory: the same command goes on.
"""

import json
from pathlib import Path

import numpy as np
from dialect import parsed

from iqagp_jax import energy_fn, fit_gp, load_dataset, load_model, save_model
from iqagp_jax.cli.console import output_folder, table, track
from iqagp_jax.dynamics.minimise import minimise
from iqagp_jax.dynamics.normal_modes import NormalModes
from iqagp_jax.labels.executors import Processes
from iqagp_jax.machine.files import write_atomically
from iqagp_jax.references.choose import reference_of
from iqagp_jax.references.xtb import XTB, relabelled


def main():
    arguments = {
        "dataset": {"nargs": "?"},
        "--model": {"type": Path, "help": "of this dataset; fitted and written to the folder if it is not given"},
        "--out": {"type": Path, "help": "folder; the same command goes on with it"},
        "--reference": {
            "choices": ("xtb", "dft"),
            "help": "xtb: the geometries are labelled anew, and a model of these is fitted",
        },
        "--n-train": {"type": int},
        "--step": {"type": float, "help": "of the differences, angstrom"},
        "--workers": {"type": int},
    }
    usual = {"model": None, "reference": "dft", "n_train": None, "step": 0.005, "workers": 2}
    short = {"dataset": "malondialdehyde", "out": None, "reference": "xtb", "n_train": 40, "step": 0.005, "workers": 1}
    options = parsed(__doc__, arguments, usual, short)
    out = output_folder(options.out)
    with Processes(options.workers) as pool:
        path = options.model or out / "model.safetensors"
        if not path.exists():
            save_model(fitted(options, pool), path)
        model = load_model(path)
        reference = reference_of(options.reference, model, out / "labels", pool=pool, workers=options.workers)
        rest = np.asarray(minimise(energy_fn(model), model.reference, 2000, 1e-5).positions)
        mine, theirs = NormalModes.of(model, rest), by_differences(reference, model, rest, options.step)
        left = float(np.linalg.norm(reference.labels(rest[None])[1][0], axis=-1).max())
    rows = [(str(k), a, b, a - b) for k, (a, b) in enumerate(zip(mine.wavenumbers, theirs.wavenumbers, strict=True), 1)]
    table(f"{path}, 1/cm, beside {reference.name}", ["mode", "model", "reference", "difference"], rows)
    error = np.abs(mine.wavenumbers - theirs.wavenumbers)
    told = {"mean": float(error.mean()), "largest": float(error.max()), "model": mine.wavenumbers.tolist()}
    told |= {"reference": theirs.wavenumbers.tolist(), "largest_force_of_the_reference_eV_A": left}
    write_atomically(out / "frequencies.json", json.dumps(told, indent=1))
    print(f"mean |difference| {error.mean():.2f}, largest {error.max():.2f} 1/cm")


def fitted(options, pool):
    """The model of the dataset, labelled anew where GFN2-xTB is the reference."""
    data = load_dataset(options.dataset)
    if options.reference == "xtb":
        data = relabelled(data.split("train")[: options.n_train], XTB(data.species, pool=pool))
    return fit_gp(data, n_train=options.n_train, **({"max_steps": 5} if options.short else {}))


def by_differences(reference, model, rest, step):
    """`NormalModes` of a reference, by central differences of its forces."""
    moved = step * np.eye(rest.size).reshape(-1, *rest.shape)
    shown = {"progress": lambda items, total: track(items, "labelling", total)}
    _, forces = reference.labels(np.concatenate([rest + moved, rest - moved]), **shown)
    there, back = forces.reshape(2, rest.size, rest.size)
    second = -(there - back) / (2 * step)
    return NormalModes.from_hessian((second + second.T) / 2, model.system.at(rest))


if __name__ == "__main__":
    main()
