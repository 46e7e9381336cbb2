"""Distorted starts: the first force on a stretched bond, and where the molecule is 1 ps later, beside the reference.

    python scripts/distorted_starts.py default.safetensors --reference dft --out distorted

Every bond to hydrogen is stretched to 1.5 angstrom, and random geometries have all coordinates displaced by up to 0.25. Those
that the reference keeps together (`verdict.replicas.choose_starts`) run for 1 ps. Told are the restoring forces of model and
reference on the stretched hydrogens, when these are first within 1.2 angstrom of a heavy atom again, and how many replicas
relax at the end to the structure that the reference relaxes them to. The same command goes on in its folder.
"""

import os
from pathlib import Path

import numpy as np
from dialect import parsed

from iqagp_jax import energy_and_forces, energy_fn, fit_gp, load_dataset, load_model
from iqagp_jax.cli.console import console, output_folder, table, track
from iqagp_jax.dynamics.minimise import minimise
from iqagp_jax.dynamics.starts import hydrogen_bonds_to_stretch, restoring_force
from iqagp_jax.labels.executors import Processes
from iqagp_jax.machine import devices
from iqagp_jax.references.choose import reference_of
from iqagp_jax.references.xtb import XTB, relabelled
from iqagp_jax.system.geometry import pair_distances
from iqagp_jax.units import KCAL_MOL
from iqagp_jax.validation import atom_labels
from iqagp_jax.verdict import Protocol, claim
from iqagp_jax.verdict.replicas import choose_starts, minimum_of, run_replicas
from iqagp_jax.verdict.structure import same_structure

BOUND = 1.2
"""angstrom"""


def main():
    arguments = {
        "model": {"type": Path, "nargs": "?"},
        "--out": {"type": Path, "help": "folder; the same command goes on with it"},
        "--reference": {"choices": ("xtb", "dft")},
        "--temperature": {"type": float, "help": "K"},
        "--replicas": {"type": int, "help": "of displaced starts, and stretched bonds at most"},
        "--time": {"type": float, "help": "ps of each replica"},
        "--workers": {"type": int, "help": "processes of the reference"},
        "--seed": {"type": int},
    }
    usual = {"temperature": 300.0, "replicas": 20, "time": 1.0, "workers": os.cpu_count() or 1, "seed": 0}
    short = {"model": Path("model.safetensors"), "out": None, "reference": "xtb", "replicas": 2, "time": 0.1, "workers": 1}
    options = parsed(__doc__, arguments, usual, short)
    devices.use_cores()
    model, out = small_model() if options.short else load_model(options.model), output_folder(options.out)
    kinds = "displaced", "stretched"
    protocol = Protocol((options.temperature,), kinds, options.replicas, time=options.time, seed=options.seed)
    with Processes(options.workers) as pool:
        reference = reference_of(options.reference, model, out / "labels", pool=pool, workers=options.workers)
        claim(out, model, reference, protocol)
        energy = energy_fn(model)
        rest, _ = minimum_of(model, model.system)
        starts, told = choose_starts(energy, rest, protocol, reference)
        # Where fewer bonds than replicas were kept, they take turns: with other momenta, but each is labelled once.
        stretched = np.unique(starts["stretched"], axis=0)
        labels = reference.labels(stretched, progress=lambda items, total: track(items, "labels", total))
        run = run_replicas(model, rest, starts, protocol, out / "model", protocol.time, protocol.seed)
        last = run.trajectory.positions[-1]
        alive = np.isfinite(last).all((1, 2))
        ends = np.full(last.shape, np.nan)
        ends[alive], _ = reference.relax(last[alive])
    same = np.array([a and same_structure(minimise(energy, r).positions, e) for a, r, e in zip(alive, last, ends, strict=True)])
    forces = energy_and_forces(model)(stretched)[1], labels[1]
    names, rows = atom_labels(model.species), []
    for k, start in enumerate(stretched):
        heavy, hydrogen = stretched_bond(model.species, rest.positions, start)
        mine = run.kinds == "stretched"
        mine[mine] = (starts["stretched"] == start).all((1, 2))
        pulls = (restoring_force(start, f[k], heavy, hydrogen) / KCAL_MOL for f in forces)
        rows.append([f"{names[heavy]}-{names[hydrogen]}", *pulls, bound_again(model.species, run.trajectory, mine, hydrogen)])
    header = [f"stretched to {protocol.stretch:g} A", "model", reference.name.split(" ")[0], "bound again, fs"]
    table(f"{options.model}, {options.temperature:g} K: restoring force in kcal/mol/A", header, rows)
    for kind in protocol.kinds:
        mine = run.kinds == kind
        [kept] = [t for t in told if t.start == kind]
        console.print(
            f"{kind}: {kept.used} of {kept.drawn} starts kept by the reference; of {mine.sum()} replicas"
            f" {alive[mine].sum()} live through {options.time:g} ps and {same[mine].sum()} relax from there to where the"
            " reference does"
        )


def small_model():
    """Of a few geometries of malondialdehyde with labels of GFN2-xTB, for the short form."""
    data = load_dataset("malondialdehyde").split("train")[:20]
    return fit_gp(relabelled(data, XTB(data.species)), max_steps=0)


def stretched_bond(species, minimum, start):
    """Which bond to hydrogen was stretched in a start: (heavy atom, hydrogen)."""
    longer = pair_distances(start) - pair_distances(minimum)
    return max(hydrogen_bonds_to_stretch(species, minimum), key=lambda bond: longer[bond])


def bound_again(species, trajectory, replicas, hydrogen):
    """The latest time, fs, at which a hydrogen of ``replicas`` (R,) first came within `BOUND` of a heavy atom."""
    heavy = [k for k, symbol in enumerate(species) if symbol != "H"]
    bound = (pair_distances(trajectory.positions[:, replicas])[..., hydrogen, heavy] < BOUND).any(-1)
    return float(trajectory.times[bound.argmax(0)].max()) if bound.any(0).all() else "never"


if __name__ == "__main__":
    main()
