"""What SO3krates costs a step, and how well it learns: docs/measurements/2026-11-so3krates.md.

    python scripts/so3krates_table.py                                                 # step costs
    python scripts/so3krates_table.py --file train.extxyz --test test.extxyz --budget 900   # and errors after so many seconds

CPU time of energies and forces in float32 on one core, a replica each: 9, 19 and, 56 atoms, then
boxes of water with a neighbour list. Networks are random: what they cost does not depend on that. GFN2-xTB beside them.
"""

import os
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from dialect import parsed, reference_files
from safetensors.numpy import load_file

from iqagp_jax import validate
from iqagp_jax.cli.console import table
from iqagp_jax.data.extxyz import load_dataset
from iqagp_jax.families.so3krates.model import SO3krates
from iqagp_jax.families.so3krates.network import Network
from iqagp_jax.families.so3krates.train import fit_so3krates
from iqagp_jax.potential import bind
from iqagp_jax.references.xtb import xtb
from iqagp_jax.system.system import System
from iqagp_jax.units import KCAL_MOL

SMALL = partial(Network.random, features=64, layers=2, heads=4)
PAPER = partial(Network.random, features=132, layers=3, heads=4, degrees=(1, 2, 3))


def molecules(short):
    """Name -> system, of rising size."""
    found = {}
    for name in ("malondialdehyde", "capped-glycine"):
        data = load_dataset(name)
        found[name] = System.of(data.species, data.positions[data.lowest])
    if folder := reference_files("so3krates", short):
        read = load_file(folder / "small_dha.safetensors")
        found["docosahexaenoic acid"] = System.of([chemical_symbols[z] for z in read["species"]], read["positions"])
    return found


def water(count):
    """A cell of so many waters at the density of the liquid, on a grid, turned at random."""
    edge, side = (count / 0.0334) ** (1 / 3), int(np.ceil(count ** (1 / 3)))
    places = np.argwhere(np.ones((side,) * 3))[:count] * edge / side
    one, rng = np.array([[0.0, 0.0, 0.0], [0.76, 0.0, 0.59], [-0.76, 0.0, 0.59]]), np.random.default_rng(0)
    turns = np.linalg.qr(rng.normal(size=(count, 3, 3)))[0]
    positions = (places[:, None] + one @ turns).reshape(-1, 3)
    return System.of("OHH" * count, positions, cell=edge * np.eye(3), molecules=np.repeat(np.arange(count), 3))


def milliseconds(call, replicas, turns):
    """CPU time of a call for each replica: the least and the median of several turns."""
    call()
    spent = []
    for _ in range(turns):
        began = time.process_time()
        call()
        spent.append(1000 * (time.process_time() - began) / replicas)
    return min(spent), float(np.median(spent))


def cost(system, network, replicas, turns):
    """`milliseconds` of energies and forces of a network, as a step of dynamics asks for them."""
    elements = tuple(sorted(set(system.species)))
    potential = SO3krates(network(np.random.default_rng(0)), np.ones(100), np.zeros(100), elements)
    noise = 0.02 * np.random.default_rng(1).normal(size=(replicas, len(system), 3))
    bound, _ = bind(potential, system, np.float32)
    with jax.enable_x64(True):
        positions = jnp.asarray(system.positions + noise)
        room = bound.enlarged(np.asarray(positions)) if bound.enlarged else bound.aux
        kept = jax.tree.map(lambda a: np.broadcast_to(a, (replicas, *np.shape(a))), room)
        evaluate = jax.jit(jax.vmap(bound.energy_and_gradient)).lower(positions, kept).compile()
        repeats = max(1, 200 // (replicas * len(system)))

        def call():
            for _ in range(repeats):
                jax.block_until_ready(evaluate(positions, kept))

        return milliseconds(call, replicas * repeats, turns)


def by_xtb(system, turns):
    """`milliseconds` of GFN2-xTB, geometry after geometry; None where tblite is not installed."""
    try:
        atoms, rng = Atoms(system.species, system.positions, calculator=xtb()), np.random.default_rng(2)
    except ImportError:
        return None

    def call():
        atoms.set_positions(system.positions + 0.02 * rng.normal(size=system.positions.shape))
        atoms.get_forces()

    return milliseconds(call, 1, turns)


def learned(options):
    """Prints errors of a model after a training."""
    data, test = load_dataset(options.file), load_dataset(options.test)
    began = time.process_time()
    model = fit_so3krates(data, budget=options.budget, n_validation=50, progress=True)
    found = validate(model, test)
    rows = [
        (name, f"{1000 * KCAL_MOL * errors.mae:.1f}", f"{1000 * KCAL_MOL * errors.rmse:.1f}")
        for name, errors in (("energy, meV", found.energy), ("forces, meV/Å", found.forces))
    ]
    told = f"{options.budget:g} s of wall time, {time.process_time() - began:.0f} s of CPU, {model.trace[-1, 0]:.0f} steps"
    table(
        f"{options.file}, {model.n_train} geometries: {told}; {found.n_test} test geometries", ["error of", "MAE", "RMSE"], rows
    )


def main():
    arguments = {
        "--file": {"help": "training geometries"},
        "--test": {"help": "test geometries"},
        "--budget": {"type": float, "help": "seconds of training"},
        "--turns": {"type": int},
    }
    options = parsed(__doc__, arguments, {"budget": 900.0, "turns": 9}, {"budget": 5.0, "turns": 1})
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    rows = []
    for name, system in list(molecules(options.short).items())[: 1 if options.short else None]:
        xtb = by_xtb(system, options.turns)
        for label, network in (("small", SMALL), ("paper's", PAPER)):
            for replicas in (1,) if options.short else (1, 64):
                least, median = cost(system, network, replicas, options.turns)
                beside = "-" if xtb is None else f"{xtb[1]:.2f}"
                rows.append((name, len(system), label, replicas, f"{median:.2f}", f"{least:.2f}", beside))
    for count in () if options.short else (80, 160, 320):
        system = water(count)
        least, median = cost(system, SMALL, 1, options.turns)
        rows.append((f"{count} waters", len(system), "small", 1, f"{median:.2f}", f"{least:.2f}", "-"))
    table("CPU ms a replica", ["system", "atoms", "network", "replicas", "median", "least", "GFN2-xTB"], rows)
    if options.file:
        learned(options)


if __name__ == "__main__":
    main()
