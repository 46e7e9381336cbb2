"""A model of malondialdehyde that was taught what it lacked: 300 embedded geometries and what active learning labelled.

    python scripts/taught_model.py taught            # taught.extxyz and taught.safetensors, errors on the test sets
    iqagp active taught.safetensors taught.extxyz --out verdict --reference dft --per-round 20 --temperature 700 \\
        --temperature 1000 --replicas 10 --time 20 --frames 6 --truth-last

The labels in campaigns/malondialdehyde-active are those of two rounds of `iqagp active` on the model of the 300 alone (700,
1000 and 1500 K, 10 replicas of each kind of start for 10 ps, 50 geometries a round). docs/active.md tells what was found.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from iqagp_jax import energy_and_forces, fit_gp, load_dataset, save_dataset, save_model
from iqagp_jax.dataset import concatenate
from iqagp_jax.units import KCAL_MOL

LABELS = Path(__file__).parents[1] / "campaigns" / "malondialdehyde-active" / "labels.extxyz"

EMBEDDED = 300


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", type=Path, help="of the dataset and model that are written, without ending")
    name = parser.parse_args().name
    data = load_dataset("malondialdehyde")
    train = data.split("train")[:EMBEDDED]
    parts = [train, load_dataset(LABELS), *(data.split(split) for split in data.splits if split != "train")]
    parts = [replace(part, extra={}, origin={key: part.origin[key] for key in ("source", "split")}) for part in parts]
    taught = replace(concatenate(parts), level=data.level, free_atoms=data.free_atoms)
    save_dataset(taught, name.with_suffix(".extxyz"))
    options = {"targets": ("energy", "forces"), "symmetry": True, "prior_mean": "mf5+born-mayer"}
    for label, n in (("300 embedded", EMBEDDED), ("and those taught", len(taught.split("train")))):
        model = fit_gp(taught, n_train=n, **options)
        for split in taught.splits:
            if split != "train":
                test = taught.split(split)
                energy, forces = energy_and_forces(model)(test.positions)
                errors = (np.abs(energy - test.energy).mean() / KCAL_MOL, np.abs(forces - test.forces).mean() / KCAL_MOL)
                print(f"{label}, {split}: {errors[0]:.3f} kcal/mol, {errors[1]:.3f} kcal/mol/A", flush=True)
    save_model(model, name.with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
