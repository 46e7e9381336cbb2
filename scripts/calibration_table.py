"""The tables of wrong labels and of the uncertainty.

    python scripts/calibration_table.py malondialdehyde     # both
    python scripts/calibration_table.py capped-glycine --n-train 100 --no-symmetry
    python scripts/calibration_table.py malondialdehyde --n-train 200 --no-runs    # wrong labels, and stored sets only

All labels are GFN2-xTB's, those of the dataset's geometries and of the frames of the model's own runs. "Process alone"
are the variances of the same model without its `ErrorScale`. A wrong label is shifted by 1 eV, that of another geometry, or has
forces of another geometry; exchanged energies that differ by less than 1 kcal/mol are none.
"""

import tempfile
import time
import warnings
from dataclasses import replace

import numpy as np
from dialect import parsed

from iqagp_jax import System, energy_and_forces, fit_gp, load_dataset, simulate
from iqagp_jax.families.gp.left_out import LeftOut
from iqagp_jax.families.gp.teach import Fitted
from iqagp_jax.families.gp.wrong_labels import wrong_labels
from iqagp_jax.potential import energy_variance, force_variance
from iqagp_jax.references.xtb import XTB, relabelled
from iqagp_jax.units import KCAL_MOL
from iqagp_jax.validation import Calibration

WAYS = ("shifted", "exchanged", "forces")

PULLS = (0.3, 0.6, 1.0, 1.5, 2.5, 4.0, 8.0)
"""Angstrom by which each atom is pulled away."""


def spoiled(data, way, many, rng):
    """With ``many`` wrong labels, two at least where they are exchanged; and which they are."""
    energy, forces = data.energy.copy(), data.forces.copy()
    frames = rng.choice(len(data), max(many, 1 + (way == "exchanged")), replace=False)
    if way == "shifted":
        energy[frames] += 1.0
    elif way == "exchanged":
        energy[frames] = energy[np.roll(frames, 1)]
        frames = frames[np.abs(energy - data.energy)[frames] > KCAL_MOL]
    else:
        forces[frames] = forces[(frames + 7) % len(data)]
    return replace(data, energy=energy, forces=forces), {(int(k), "forces" if way == "forces" else "energy") for k in frames}


def errors(model, test):
    energy, forces = energy_and_forces(model)(test.positions)
    return np.abs(energy - test.energy).mean() / KCAL_MOL, np.abs(forces - test.forces).mean() / KCAL_MOL


def found_labels(model, train, numbers):
    """The table of wrong labels that are added to a model of right ones: its hyperparameters are those of right labels."""
    prior, rng = Fitted.of(replace(model, joint=replace(model.joint, error_scale=None))), np.random.default_rng(0)
    began = time.process_time()
    fitted = prior.add(train)
    took = time.process_time() - began
    began = time.process_time()
    right = wrong_labels(fitted)
    print(f"\nof {len(train)} geometries, all right: named {len(right)}; {time.process_time() - began:.1f} CPU s,")
    print(f"covariance and factor {took:.1f}\n\n| wrong labels | number | named | right ones named | least ratio |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for way in WAYS:
        for many in numbers:
            data, wrong = spoiled(train, way, many, rng)
            found = wrong_labels(prior.add(data))
            named = {(label.geometry, label.target) for label in found}
            least = min((label.medians for label in found), default=np.nan)
            print(f"| {way} | {len(wrong)} | {len(named & wrong)} | {len(named - wrong)} | {least:.1f} |", flush=True)


def robust_errors(train, test, many, options):
    """The table of test errors of whole fits of wrong labels, hyperparameters included."""
    print(f"\n| {len(train)} geometries, {many} wrong | MAE, kcal/mol and kcal/mol/A | robust |\n| --- | --- | --- |")
    print(f"| none | {told(errors(fit_gp(train, **options), test))} | |")
    for way in WAYS:
        data, _ = spoiled(train, way, many, np.random.default_rng(1))
        each = [told(errors(fit_gp(data, robust=robust, **options), test)) for robust in (False, True)]
        print(f"| {way} | {' | '.join(each)} |", flush=True)


def told(pair):
    return f"{pair[0]:.3f}, {pair[1]:.2f}"


def pulled(reference):
    """Each atom pulled away from the molecule's centre."""
    away = reference - reference.mean(0)
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    geometries = np.repeat(reference[None], len(reference) * len(PULLS), axis=0)
    for k, (atom, length) in enumerate((a, p) for a in range(len(reference)) for p in PULLS):
        geometries[k, atom] += length * away[atom]
    return geometries


def own_runs(model, train, temperature, ps, frames):
    """Frames of replicas that the model itself drives, alive and evenly at random."""
    with tempfile.TemporaryDirectory() as folder:
        starts = train.positions[train.thermal][:12]
        system = System(model.species, model.reference)
        run = simulate(
            model, system, starts, f"{folder}/run", temperature=temperature, time=ps, progress=False, frame_interval=20.0
        )
        alive = np.array(run.trajectory.alive)
        alive[:2] = False
        positions = np.array(run.trajectory.positions)[alive]
    return positions[np.random.default_rng(0).permutation(len(positions))[:frames]]


def calibration(model, sets, reference):
    plain = replace(model, joint=replace(model.joint, error_scale=None))
    print("\n| set | n | MAE, kcal/mol | energy: % in 1, 2, beyond 3 sigma, rank | forces | energy, process alone | forces |")
    print("| --- | ---: | ---: | --- | --- | --- | --- |")
    for name, positions in sets.items():
        energy, forces = reference.labels(positions)
        known = np.isfinite(energy)
        positions, energy, forces = positions[known], energy[known], forces[known]
        off, off_forces = (a - b for a, b in zip(energy_and_forces(model)(positions), (energy, forces), strict=True))
        shares = []
        for potential in (model, plain):
            for error, variance in ((off, energy_variance), (off_forces, force_variance)):
                found = Calibration.of(error, variance(potential)(positions))
                beyond = 100 * found.beyond_three_sigma
                within = f"{100 * found.within_one_sigma:.0f}, {100 * found.within_two_sigma:.0f}"
                shares.append(f"{within}, {beyond:.1f}, {found.rank_correlation:.2f}")
        print(f"| {name} | {len(positions)} | {np.abs(off).mean() / KCAL_MOL:.2f} | {' | '.join(shares)} |", flush=True)


def main():
    options = parsed(
        __doc__,
        {
            "dataset": {"nargs": "?"},
            "--n-train": {"type": int},
            "--time": {"type": float},
            "--frames": {"type": int},
            "--no-symmetry": {"action": "store_true"},
            "--no-runs": {"action": "store_true"},
            "--no-fits": {"action": "store_true"},
        },
        {"dataset": "malondialdehyde", "n_train": 200, "time": 2.0, "frames": 80},
        {"n_train": 50, "time": 0.08, "frames": 4, "no_fits": True, "no_symmetry": True},
    )
    warnings.filterwarnings("ignore", "labels are far|forces read|.*not learned")
    whole = load_dataset(options.dataset)
    reference = XTB(whole.species)
    pool, test = whole.split("train"), relabelled(whole.split("test_500K")[: options.frames], reference)
    train = relabelled(pool[: options.n_train], reference)
    given = {"max_steps": 0, "symmetry": not options.no_symmetry}
    model = fit_gp(train, **given)
    print(f"{options.dataset}, {len(train)} geometries by GFN2-xTB, {given}; left-out residuals of {len(train)} geometries:")
    left = LeftOut.of(Fitted.of(model).add(train))
    for target in model.targets:
        residual, sigma = left.of_geometries(target)
        print(f"{target}: median {np.median(residual) / KCAL_MOL:.3f}, largest over its sigma {(residual / sigma).max():.1f}")
    found_labels(model, train, (1,) if options.short else (1, 2, 10))
    if not options.no_fits:
        robust_errors(train, test, 10, given)
    rest = pool[options.n_train :]
    sets = {"500 K": test.positions, "distorted by hand or by failing models": rest.positions[~rest.thermal][: options.frames]}
    if "test_1000K" in whole.splits:
        sets["1000 K"] = whole.split("test_1000K").positions[: options.frames]
    if not options.no_runs:
        for temperature in (500.0,) if options.short else (500.0, 1000.0):
            sets[f"own run, {temperature:.0f} K"] = own_runs(model, train, temperature, options.time, options.frames)
    sets["one atom pulled by 0.3 to 8 A"] = pulled(np.asarray(model.reference))[: options.frames]
    calibration(model, sets, reference)


if __name__ == "__main__":
    main()
