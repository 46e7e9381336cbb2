"""What a cheap level of theory beneath a dear one saves: directly, over a model of GFN2-xTB, over GFN2-xTB itself.

    python scripts/levels_table.py                                     # capped glycine, 25 to 200 geometries of B3LYP
    python scripts/levels_table.py --dataset malondialdehyde --counts 20 --counts 50
    python scripts/levels_table.py --joint                             # co-kriging beside it: one process of both levels

Errors are mean absolute ones at the test geometries at 500 K, in kcal/mol and kcal/mol/A. Geometries are drawn at random from
the training split; those of a row are part of those of the next. GFN2-xTB labels all of them anew (needs tblite).
"""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import jax
import numpy as np
from dialect import parsed
from scipy.linalg import cho_factor, cho_solve

from iqagp_jax import energy_and_forces, fit_gp, load_dataset
from iqagp_jax.data.level import Level
from iqagp_jax.families.gp import joint
from iqagp_jax.families.gp.means import residuals
from iqagp_jax.references.xtb import XTB
from iqagp_jax.units import KCAL_MOL

USUAL = {"dataset": "capped-glycine", "counts": (25, 50, 100, 200), "cheap": 250, "tests": 100, "seed": 0}
SHORT = {"dataset": "malondialdehyde", "counts": (10,), "cheap": 12, "tests": 5, "max_steps": 0}

RATIOS = (0.9, 0.95, 1.0, 1.05, 1.1)
"""of the dear level's energies to the cheap one's, that co-kriging chooses among"""


def main():
    arguments = {
        "--dataset": {"help": "embedded, with a split test_500K"},
        "--counts": {"type": int, "action": "append", "help": "geometries of the dear level; repeatable"},
        "--cheap": {"type": int, "help": "geometries of GFN2-xTB that the model beneath learns"},
        "--tests": {"type": int, "help": "test geometries"},
        "--seed": {"type": int},
        "--max-steps": {"type": int, "help": "of the search for hyperparameters"},
        "--joint": {"action": "store_true", "help": "also one process of both levels"},
        "--local": {"action": "store_true", "help": "with the atoms' surroundings in all models"},
    }
    options = parsed(__doc__, arguments, {**USUAL, "max_steps": 40, "local": False}, SHORT)
    data = replace(load_dataset(options.dataset), atomic_energies=None, extra={})
    train, test = data.split("train"), data.split("test_500K")[: options.tests]
    order = np.random.default_rng(options.seed).permutation(len(train))
    most = max(*options.counts, options.cheap)
    train = train[order[:most]]
    (low_train, low_test) = labelled([train, test])
    cheap = low_train[np.random.default_rng(options.seed + 1).permutation(most)[: options.cheap]]
    steps = {"max_steps": options.max_steps, "local": options.local}
    began = time.process_time()
    base = fit_gp(cheap, n_train=options.cheap, **steps)
    spent = time.process_time() - began
    print(f"{options.cheap} geometries of GFN2-xTB, {spent:.0f} CPU s: {shown(base, low_test)} of GFN2-xTB itself\n")
    columns = ["directly", "over a model of GFN2-xTB", "over GFN2-xTB", *["one process of both levels"] * options.joint]
    print(f"| geometries | {' | '.join(columns)} |\n|{' --- |' * (1 + len(columns))}", flush=True)
    for n in options.counts:
        few = train[:n]
        over = fit_gp(few, base=base, **steps)
        row = [shown(fit_gp(few, **steps), test), shown(over, test)]
        row.append(shown(fit_gp(less(few, low_train[:n]), prior_mean="mf1", **steps), less(test, low_test)))
        if options.joint:
            row.append(cokriged(base, over, cheap, few, test))
        print(f"| {n} | {' | '.join(row)} |", flush=True)


def labelled(datasets):
    """The same geometries by GFN2-xTB."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        reference = XTB(datasets[0].species, pool=pool)
        labels = [reference.labels(data.positions) for data in datasets]
    level = Level(method="GFN2-xTB")
    return [replace(d, energy=e, forces=f, level=level) for d, (e, f) in zip(datasets, labels, strict=True)]


def less(high, low):
    """What is left of the dear labels by the cheap ones of the same geometries."""
    return replace(high, energy=high.energy - low.energy, forces=high.forces - low.forces)


def shown(model, test):
    energies, forces = energy_and_forces(model)(test.positions)
    return told(energies - test.energy, forces - test.forces)


def told(energy, forces):
    return f"{np.abs(energy).mean() / KCAL_MOL:.3f}, {np.abs(forces).mean() / KCAL_MOL:.3f}"


def cokriged(base, over, cheap, few, test):
    """Errors of co-kriging, E_high = c + r E_low + d, both processes with the hyperparameters that they have in ``over``.

    All labels of both levels are conditioned on at once (Kennedy and O'Hagan, doi:10.1093/biomet/87.1.1), where a model over a
    base conditions first the one, then the other; r is the likeliest of `RATIOS`.
    """
    with jax.enable_x64(True):
        return max((_conditioned(r, base, over, cheap, few, test) for r in RATIOS), key=lambda found: found[0])[1]


def _conditioned(r, base, over, cheap, few, test):
    """(log likelihood, errors) of the joint process with this r."""

    def rows(model, left, right):
        return joint.covariance_rows(model.process, *(jax.jit(model.see)(d.positions) for d in (left, right)), base.targets)

    def beneath(data):
        """r m_low, as observations."""
        nothing = replace(data, energy=0 * data.energy, forces=0 * data.forces)
        return -r * joint.observations(base.targets, *residuals(nothing, base.mean))

    def observed(data):
        return joint.observations(base.targets, None, data.energy, data.forces)

    def constant(data):
        c = np.mean(few.energy - r * energy_and_forces(base)(few.positions)[0])
        return observed(replace(data, energy=0 * data.energy + c, forces=0 * data.forces))

    noise = [np.tile(m.joint.noise_variance, len(d)) for m, d in ((base, cheap), (over, few))]
    corner = r**2 * rows(base, few, few) + rows(over, few, few)
    across = r * rows(base, few, cheap)
    matrix = np.block([[rows(base, cheap, cheap), across.T], [across, corner]]) + np.diag(np.concatenate(noise))
    y = joint.observations(base.targets, *residuals(cheap, base.mean)), observed(few) - beneath(few) - constant(few)
    factor, y = cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False), np.concatenate(y)
    weights = cho_solve(factor, y)
    cross = np.hstack([r * rows(base, test, cheap), r**2 * rows(base, test, few) + rows(over, test, few)])
    errors = (cross @ weights + beneath(test) + constant(test) - observed(test)).reshape(len(test), -1)
    return -0.5 * y @ weights - np.log(np.diag(factor[0])).sum(), f"{told(errors[:, 0], errors[:, 1:])} (r {r:g})"


if __name__ == "__main__":
    main()
