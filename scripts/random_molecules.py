"""Molecules drawn at random, each from its SMILES to a potential of GFN2-xTB by `iqagp make`: how many pass, and why not.

    python scripts/random_molecules.py --out molecules

The list: groups of drug-like molecules joined to rings and chains by RDKit, 9 to 24 atoms of C, H, N and O, 60 of them by
--list-seed; --draw of these are taken by --seed. One passes where all replicas of its exam live and every labelled frame is
within 1 kcal/mol. The table is in ``table.json``; the same command goes on with what is lacking.
"""

import json
from itertools import product
from pathlib import Path

import numpy as np
from dialect import parsed
from rdkit import Chem

from iqagp_jax.cli.console import output_folder, table, track
from iqagp_jax.labels.executors import Processes
from iqagp_jax.machine import devices
from iqagp_jax.machine.files import write_atomically
from iqagp_jax.making.recipe import Recipe
from iqagp_jax.making.stages import make

CORES = (
    "c1ccccc1{}",
    "c1ccncc1{}",
    "c1ccoc1{}",
    "c1c[nH]cc1{}",
    "C1CC1{}",
    "C1CCCC1{}",
    "C1COCCN1{}",
    "C=C{}",
    "CC{}",
    "CCC{}",
    "N{}",
)
"""Where groups are put."""

GROUPS = (
    "C(=O)N",
    "C(=O)O",
    "C(=O)NC",
    "C(=O)OC",
    "CO",
    "CN",
    "C#N",
    "C=O",
    "OC",
    "NC(C)=O",
    "CC(=O)N",
    "CC(N)=O",
    "C(N)=O",
    "NC",
)

LISTED, ATOMS = 60, range(9, 25)

WITHIN = 1.0
"""kcal/mol, of every labelled frame."""


def main():
    arguments = {
        "--out": {"type": Path, "help": "folder; the same command goes on with it"},
        "--draw": {"type": int, "help": "molecules"},
        "--list-seed": {"type": int},
        "--seed": {"type": int},
        "--temperature": {"type": float, "action": "append", "help": "K; repeatable"},
        "--replicas": {"type": int},
        "--time": {"type": float, "help": "ps of each"},
        "--budget": {"type": float, "help": "s for each molecule"},
        "--workers": {"type": int},
    }
    usual = {"draw": 12, "list_seed": 0, "seed": 1, "temperature": [500.0], "replicas": 20, "time": 50.0, "budget": 7200.0}
    usual |= {"workers": 2}
    # The list alone: the smallest potential takes a minute, and tests make one.
    short = {"out": None, "draw": 0, "list_seed": 0, "seed": 1}
    options = parsed(__doc__, arguments, usual, short)
    listed = molecules(options.list_seed)
    drawn = [listed[k] for k in np.random.default_rng(options.seed).permutation(len(listed))[: options.draw]]
    print(f"{len(listed)} molecules, {', '.join(listed[:4])}, ...; drawn: {', '.join(drawn) or 'none'}")
    devices.use_cores()
    out, rows = output_folder(options.out), []
    for number, smiles in enumerate(drawn):
        rows.append(outcome(smiles, out / f"molecule-{number}", options))
        write_atomically(out / "table.json", json.dumps(rows, indent=1))
    table(
        f"{sum(row['passed'] for row in rows)} of {len(rows)} pass",
        ["molecule", "atoms", "minima", "passed", "survived", "median |dE|", "max", "geometries", "min", "why not"],
        [tuple(row.values()) for row in rows],
    )


def molecules(seed):
    """SMILES (60) of different molecules of the allowed sizes."""
    made = {Chem.CanonSmiles(core.format(group)) for core, group in product(CORES, GROUPS)}
    fitting = sorted(s for s in made if Chem.AddHs(Chem.MolFromSmiles(s)).GetNumAtoms() in ATOMS)
    return [fitting[k] for k in np.random.default_rng(seed).permutation(len(fitting))[:LISTED]]


def outcome(smiles, folder, options):
    """A row of the table."""
    recipe = Recipe(smiles, "gfn2-xtb", tuple(options.temperature), options.replicas, options.time)
    row = {"molecule": smiles, "atoms": Chem.AddHs(Chem.MolFromSmiles(smiles)).GetNumAtoms()}
    try:
        with Processes(options.workers) as pool:
            told = make(recipe, folder, pool, options.workers, options.budget, track, print)
    except (ValueError, RuntimeError) as error:
        unknown = dict.fromkeys(("survived", "median", "max", "geometries", "min"), "-")
        return row | {"minima": "-", "passed": False} | unknown | {"why": str(error)}
    at = told["temperatures"]
    alive = sum(t["survived"] for t in at), sum(t["replicas"] for t in at)
    median, worst = (max((t[key] for t in at if t[key] is not None), default=np.inf) for key in ("de_median", "de_max"))
    passed = alive[0] == alive[1] and worst < WITHIN
    row |= {"minima": len(told["minima_kcal_mol"]), "passed": passed, "survived": f"{alive[0]}/{alive[1]}"}
    row |= {"median": median, "max": worst, "geometries": told["geometries"]}
    row |= {"min": sum(told["seconds"].values()) / 60}
    return row | {"why": "" if passed else next(iter(told["not_for"]))}


if __name__ == "__main__":
    main()
