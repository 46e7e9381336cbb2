"""Memory and time of energies and forces learned jointly, and what a model's file weighs; of this code and of one before it.

    python scripts/memory_table.py --out memory                                     # covariances and fits, no comparison
    python scripts/memory_table.py --out memory --before ../older --n-train 60      # beside a checkout of an older version

Every figure is of a process of its own, one after the other, of either version in turns: CPU time, so that other programs on
the same cores matter less, and the greatest memory of the process. Molecules are made by RDKit, their frames and labels by
dynamics of GFN2-xTB at 400 K, kept in the folder --out.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from dialect import ROOT, parsed

SMILES = {"acetylacetone": "CC(=O)/C=C(/C)O", "3BPA": "Nc1ncccc1OCc1ccccc1"}

GAP = 10
"""Femtoseconds between two frames."""

SPARE = 40
"""Frames that a fit does not see, and that it is tested on."""

COVARIANCES = {"9 atoms, 2 images": (9, 2), "15, 36": (15, 36), "19, 18": (19, 18), "27, 8": (27, 8)}


def frames(molecule, n, folder):
    """The file of n frames of a molecule with their labels, made where it is not there."""
    path = folder / f"{molecule}-{n}.extxyz"
    if path.exists():
        return path
    from ase import Atoms, units
    from ase.md.langevin import Langevin
    from ase.optimize import BFGS
    from rdkit import Chem
    from rdkit.Chem import AllChem

    from iqagp_jax import save_dataset
    from iqagp_jax.data.dataset import Dataset
    from iqagp_jax.references.xtb import xtb

    made, rng = Chem.AddHs(Chem.MolFromSmiles(SMILES[molecule])), np.random.default_rng(0)
    rests = []
    for k in AllChem.EmbedMultipleConfs(made, 6, randomSeed=1):
        atoms = Atoms([a.GetSymbol() for a in made.GetAtoms()], made.GetConformer(k).GetPositions(), calculator=xtb())
        BFGS(atoms, logfile=None).run(0.05, 100)
        rests.append(atoms)
    atoms = min(rests, key=lambda a: a.get_potential_energy())
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * np.sqrt(400 * units.kB * atoms.get_masses())[:, None])
    dynamics = Langevin(atoms, units.fs, temperature_K=400, friction=0.02 / units.fs, rng=rng, fixcm=False)
    dynamics.run(20 * GAP)
    seen = []
    for _ in range(n):
        dynamics.run(GAP)
        seen.append((atoms.positions.copy(), atoms.get_potential_energy(), atoms.get_forces()))
    positions, energy, forces = (np.array(part) for part in zip(*(seen[k] for k in rng.permutation(n)), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    save_dataset(Dataset(tuple(atoms.symbols), positions, energy=energy, forces=forces), path)
    return path


def covariances(n_atoms, n_images, turns):
    """Milliseconds of all covariances of about 1200 observations and of their gradient, which a search takes; MiB beside."""
    import jax
    import jax.numpy as jnp

    from iqagp_jax.bench import Case, starts, synthetic_model
    from iqagp_jax.families.gp import joint
    from iqagp_jax.families.gp.kernels import Matern92

    model = synthetic_model(Case(n_atoms, 2, features="inverse-distances", forces=True))
    rng, targets, n = np.random.default_rng(0), ("energy", "forces"), 1200 // (1 + 3 * n_atoms)
    shuffled = [rng.permutation(n_atoms) for _ in range(n_images - 1)]
    permutations = np.array([np.arange(n_atoms), *shuffled])

    with jax.enable_x64(True):
        seen = joint.seen(model.features, jnp.asarray(starts(model, n)))

        def total(length, seen, along):
            kernel = Matern92(length * jnp.ones(n_atoms))
            process = joint.Process.of(kernel, model.features, jnp.ones(n_atoms), permutations)
            points = joint.embedded(kernel, seen)
            return (joint.covariance(process, points, points, targets) * along).sum()

        along = rng.normal(size=2 * (n, 1 + 3 * n_atoms))
        found = {}
        for name, function in (("covariances, ms", total), ("gradient, ms", jax.grad(total))):
            program = jax.jit(function).lower(5.0, seen, along).compile()
            spent = []
            for _ in range(turns + 1):
                began = time.process_time()
                jax.block_until_ready(program(5.0, seen, along))
                spent.append(1e3 * (time.process_time() - began))
            found[name] = float(np.median(spent[1:]))
            found[name.replace("ms", "MiB")] = program.memory_analysis().temp_size_in_bytes / 2**20
    return found


def fit(file, n, max_steps):
    """CPU seconds and greatest memory of a whole fit of the first n frames, the size of its file, and errors on the rest."""
    from iqagp_jax import energy_and_forces, fit_gp, load_dataset, save_model

    data, began = load_dataset(file), time.process_time()
    unseen = data[n:]
    model = fit_gp(data[:n], n_train=n, max_steps=max_steps)
    seconds, path = time.process_time() - began, Path(f"{file}.model")
    greatest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    save_model(model, path)
    energy, forces = energy_and_forces(model)(unseen.positions)
    return {
        "images": len(model.permutations),
        "matrix, GiB": 8 * model.observed.sum() ** 2 / 2**30,
        "greatest, GiB": greatest,
        "CPU s": seconds,
        "file, MB": path.stat().st_size / 1e6,
        "energy MAE, meV": 1e3 * np.abs(energy - unseen.energy).mean(),
        "force MAE, meV/A": 1e3 * np.abs(forces - unseen.forces).mean(),
    }


def measured(task, checkout):
    """What `covariances` or `fit` gives in a process of its own that imports the package of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OPENBLAS_NUM_THREADS": "1"}
    environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    call = [sys.executable, __file__, "--task", json.dumps(task)]
    return json.loads(subprocess.run(call, capture_output=True, text=True, check=True, env=environment).stdout.splitlines()[-1])


def main():
    arguments = {
        "--out": {"type": Path, "help": "folder of the frames"},
        "--before": {"type": Path, "help": "checkout of an older version"},
        "--molecule": {"action": "append", "choices": sorted(SMILES)},
        "--n-train": {"type": int},
        "--max-steps": {"type": int},
        "--turns": {"type": int},
    }
    usual = {"molecule": list(SMILES), "n_train": 60, "max_steps": 40, "turns": 5, "before": None}
    short = {"out": None, "n_train": 6, "max_steps": 0, "turns": 1, "molecule": ["acetylacetone"]}
    options = parsed(__doc__, arguments, usual, short)
    from iqagp_jax.cli.console import table

    checkouts = {"now": ROOT, **({"before": options.before.resolve()} if options.before else {})}
    few = dict(list(COVARIANCES.items())[:1]) if options.short else COVARIANCES
    tasks = {name: ("covariances", *sizes, options.turns) for name, sizes in few.items()}
    kinds = {"covariances of about 1200 observations": tasks}
    fits = {}
    for molecule in options.molecule:
        path = frames(molecule, options.n_train + (4 if options.short else SPARE), options.out)
        fits[f"{molecule}, {options.n_train} frames"] = ("fit", str(path), options.n_train, options.max_steps)
    kinds["fits"] = fits
    for title, tasks in kinds.items():
        rows = []
        for name, task in tasks.items():
            found = {version: measured(task, checkout) for version, checkout in checkouts.items()}
            rows += [(name, version, *figures.values()) for version, figures in found.items()]
        table(title, ["", "version", *next(iter(found.values()))], rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--task"]:  # one of its own processes
        what, *given = json.loads(sys.argv[2])
        print(json.dumps({"covariances": covariances, "fit": fit}[what](*given)))
    else:
        main()
