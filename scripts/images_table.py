"""What products shared by the images of training geometries save: capped glycine, 18 permutations of equal atoms.

    python scripts/images_table.py   # 200 geometries, 3600 training points, energies and forces of 50 geometries and of one

CPU time of one thread, with every image's own products and with shared ones (`families.gp.images`), in turns in one process.
"""

import time
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ase.io import read
from dialect import ROOT, parsed

from iqagp_jax.bench import Case, synthetic_model
from iqagp_jax.cli.console import table
from iqagp_jax.families.gp import fast, images, joint
from iqagp_jax.system import symmetry

GEOMETRIES = ROOT / "campaigns/glycine/geometries.extxyz"

TARGETS = ("energy", "forces")


def model_of(frames):
    """A model with the images of ASE's frames as training points and small random weights: its forces mean nothing."""
    positions, species = np.stack([atoms.positions for atoms in frames]), tuple(frames[0].symbols)
    empty = synthetic_model(Case(len(species), 2, features="inverse-distances", forces=True))
    weights = 1e-4 * np.random.default_rng(0).normal(size=len(frames) * joint.count(TARGETS, len(species)))
    made_of = {"positions": positions, "permutations": symmetry.permutations(species, positions[0]), "weights": weights}
    return replace(empty, species=species, points=None, joint=replace(empty.joint, **made_of, directions=None))


def compiled(model, positions, worth):
    """Energies and gradients of positions (B, N, 3) as a call, where images are taken apart if so many times fewer are made."""
    images.WORTH, usual = worth, images.WORTH
    points = fast.prepare(model, np.float64)
    images.WORTH = usual
    deviation = fast.deviation(partial(fast.evaluate, model.features))[1]
    evaluate = jax.jit(jax.vmap(partial(deviation, points))).lower(positions).compile()
    return lambda: jax.block_until_ready(evaluate(positions))


def main():
    arguments = {"--n-train": {"type": int, "help": "geometries"}, "--turns": {"type": int}}
    options = parsed(__doc__, arguments, {"n_train": 200, "turns": 15}, {"n_train": 10, "turns": 2})
    frames = read(GEOMETRIES, f":{options.n_train}")
    model, rows = model_of(frames), []
    with jax.enable_x64(True):
        for count in (50, 1):
            positions = jnp.asarray(np.stack([frames[k % len(frames)].positions for k in range(count)]))
            calls = {"apart": compiled(model, positions, np.inf), "shared": compiled(model, positions, images.WORTH)}
            spent = {name: [] for name in calls}
            for _ in range(options.turns + 1):
                for name, call in calls.items():
                    began = time.process_time()
                    call()
                    spent[name].append(1e6 * (time.process_time() - began) / count)
            apart, shared = (np.median(spent[name][1:]) for name in ("apart", "shared"))
            rows.append((count, apart, shared, apart / shared))
    header = ["geometries at a time", "products apart, us a geometry", "shared", "times as fast"]
    table(f"{model.weights.shape[1]} training points, {len(model.species)} atoms", header, rows)


if __name__ == "__main__":
    main()
