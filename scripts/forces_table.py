"""The tables of learning from forces.

    python scripts/forces_table.py malondialdehyde        # targets, symmetry and features at 120 and 300 geometries
    python scripts/forces_table.py ethanol                # rMD17 beside sGDML (pip install sgdml) on the same 50 and 300 frames
    python scripts/forces_table.py ethanol --n-train 1000 --sigma 20
    python scripts/forces_table.py modes                  # ethanol's normal-mode scans: picture and largest error
    python scripts/forces_table.py cost                   # prediction with forces in the training against without
    python scripts/forces_table.py glycine                # capped glycine, 300 geometries
    python scripts/forces_table.py size                   # aspirin by GFN2-xTB: seconds and memory, with the matrix and without

Errors are mean absolute ones on frames of a run of their own, energies compared absolutely; hyperparameters are found from
training data only. Reference data are looked for in ../shared/reference or $IQAGP_REFERENCE. sGDML's length scale is the best
of several on the test frames themselves, which favours it, and its constant energy offset is that of the training frames.
"""

import multiprocessing
import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import numpy as np
from dialect import parsed, reference_files

from iqagp_jax import energy_and_forces, fit_gp, load_dataset, validate
from iqagp_jax.bench import timed
from iqagp_jax.units import KCAL_MOL

SIZES = {"malondialdehyde": (120, 300), "ethanol": (50, 300), "modes": (300,), "cost": (160,), "glycine": (300,)}
SIZES |= {"size": (300, 1000)}
"""Training geometries of the tables."""

TARGETS = ("atomic_energies", "forces"), ("energy", "forces"), ("forces",)

MOST_FOR_CHOLESKY = 500
"""Frames of ethanol; the matrix of 1000 takes 6 GiB."""

MODES = ("test_norm_mode_874", "test_norm_mode_3005")


def timed_fit(data, n, **options):
    began = time.perf_counter()
    model = fit_gp(data, n_train=n, **options)
    return model, time.perf_counter() - began


def report(label, model, test, seconds):
    """A row: errors in kcal/mol, calibration of energy and forces, seconds of the fit."""
    result = validate(model, test)
    calibrations = (result.energy_calibration, result.force_calibration)
    shares = " | ".join(
        f"{100 * c.within_one_sigma:.0f}, {100 * c.within_two_sigma:.0f}, {c.rank_correlation:.2f}" for c in calibrations
    )
    print(f"| {label} | {result.energy.mae:.3f} | {result.forces.mae:.3f} | {shares} | {seconds:.0f} |", flush=True)


HEADER = """| model | energy, kcal/mol | forces, kcal/mol/A | energy: % in 1, 2 sigma, rank correlation | forces | fit, s |
| --- | --- | --- | --- | --- | --- |"""


def malondialdehyde(sizes, options):
    data = load_dataset("malondialdehyde")
    test = data.split("test_500K")
    print(HEADER)
    if options.short:
        model, seconds = timed_fit(data, sizes[0], targets=TARGETS[0], symmetry=True, max_steps=0)
        return report(f"{sizes[0]}, {' + '.join(TARGETS[0])}, symmetry".replace("_", " "), model, test[:20], seconds)
    for n in sizes:
        for targets in TARGETS:
            for symmetry in (False, True):
                model, seconds = timed_fit(data, n, targets=targets, symmetry=symmetry)
                label = f"{n}, {' + '.join(targets)}{', symmetry' * symmetry}".replace("_", " ")
                report(label, model, test, seconds)
    for extra in ({}, {"mirror": True}):
        model, seconds = timed_fit(data, sizes[0], features="alf", targets=TARGETS[0], **extra)
        report(f"{sizes[0]}, ALF, atomic energies + forces{''.join(f', {name}' for name in extra)}", model, test, seconds)


def ethanol(sizes, options):
    """Errors in meV and meV/angstrom, ours and sGDML's."""
    reference = reference_files("ethanol_rmd17", options.short)
    data, test = (load_dataset(reference / f"{name}.xyz") for name in ("train", "test_MD"))
    print("| frames | program | energy, meV | forces, meV/A | training, s |\n| --- | --- | --- | --- | --- |")
    for n in sizes:
        print_errors(n, *alone(ours, data, test, n))
        best = min((sgdml(data[:n], test, sigma) for sigma in options.sigma), key=lambda row: np.abs(row[2]).mean())
        print_errors(n, *best)


def alone(function, *arguments):
    """The result of a function called in a process of its own, which keeps no memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def ours(data, test, n):
    """(name, energy errors, force errors, training seconds) of our symmetric model of the first n frames."""
    solver = "cholesky" if n <= MOST_FOR_CHOLESKY else "cg"
    model, seconds = timed_fit(data, n, targets=("energy", "forces"), symmetry=True, solver=solver)
    energies, forces = in_batches(energy_and_forces(model), test.positions)
    return f"iqagp_jax, {solver}", energies - test.energy, forces - test.forces, seconds


def in_batches(predict, positions, size=100):
    parts = [predict(positions[start : start + size]) for start in range(0, len(positions), size)]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def print_errors(n, program, energy, forces, seconds):
    figures = f"{1000 * np.abs(energy).mean():.2f} | {1000 * np.abs(forces).mean():.1f} | {seconds:.0f}"
    print(f"| {n} | {program} | {figures} |", flush=True)


def sgdml(data, test, sigma):
    """(name, energy errors, force errors, training seconds) of sGDML's symmetric model with one length scale."""
    from ase.data import atomic_numbers

    vars(np)["in1d"] = np.isin  # sGDML 1.0.3 asks for it, NumPy 2.4 no longer has it
    from sgdml.predict import GDMLPredict
    from sgdml.train import GDMLTrain

    def dataset(part):
        known = {"code_version": "1.0.3", "name": "ethanol", "theory": "unknown", "e_unit": "eV", "r_unit": "Ang"}
        return {
            "type": "d",
            "md5": str(len(part)),
            **{key: np.array(value) for key, value in known.items()},
            "z": np.array([atomic_numbers[s] for s in part.species], dtype=np.uint8),
            "R": part.positions,
            "E": part.energy,
            "F": part.forces,
        }

    began = time.perf_counter()
    trainer = GDMLTrain(use_torch=False)
    # Validation frames are asked for but not used here: the best length scale is chosen on the test frames.
    task = trainer.create_task(dataset(data), len(data), dataset(test), 10, sig=sigma, use_sym=True)
    model = trainer.train(task)
    seconds = time.perf_counter() - began
    energies, forces = GDMLPredict(model).predict(test.positions.reshape(len(test), -1))
    return f"sGDML, sigma {sigma}", energies - test.energy, forces.reshape(test.forces.shape) - test.forces, seconds


def modes(sizes, options):
    """Energies along two normal modes, predicted and reference, with two standard deviations."""
    from matplotlib.figure import Figure

    from iqagp_jax import energy_variance

    reference = reference_files("ethanol_rmd17", options.short)
    data = load_dataset(reference / "train.xyz")
    model, _ = timed_fit(data, sizes[0], targets=("energy", "forces"), symmetry=True)
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=150)
    for ax, name in zip(figure.subplots(1, 2), MODES, strict=True):
        scan = load_dataset(reference / f"{name}.xyz")
        energies, _ = in_batches(energy_and_forces(model), scan.positions)
        zero = scan.energy.min()
        step = np.linalg.norm(scan.positions - scan.positions[scan.energy.argmin()], axis=(1, 2))
        step *= np.where(np.arange(len(scan)) < scan.energy.argmin(), -1, 1)
        spread = 2 * np.sqrt(energy_variance(model)(scan.positions))
        ax.fill_between(step, *(1000 * (energies - zero + s * spread) for s in (-1, 1)), color="#1f5fa8", alpha=0.2, lw=0)
        ax.plot(step, 1000 * (scan.energy - zero), "o", ms=3, color="#7f7f7f", label="PBE/def2-SVP")
        ax.plot(step, 1000 * (energies - zero), color="#1f5fa8", label=f"{sizes[0]} frames, with 2 sigma")
        ax.set(xlabel="displacement, Å", ylabel="energy, meV", title=f"{name.rsplit('_', 1)[1]} 1/cm")
        ax.legend(frameon=False, fontsize=8)
        error = 1000 * np.abs(energies - scan.energy).max()
        print(f"{name}: largest error {error:.1f} of {1000 * np.ptp(scan.energy):.0f} meV")
    figure.savefig("ethanol-modes.png")
    print("picture: ethanol-modes.png")


def cost(sizes, _):
    """Energy and forces of 100 replicas, per training point, of models of the same features and kernel."""
    data = load_dataset("malondialdehyde")
    starts = data.split("test_500K").positions[:100]
    seconds = {}
    for targets in (("atomic_energies",), ("atomic_energies", "forces")):
        predict = energy_and_forces(fit_gp(data, n_train=sizes[0], targets=targets, symmetry=False, max_steps=0))
        seconds[targets] = timed(lambda predict=predict: predict(starts))
        print(f"{' + '.join(targets)}: {', '.join(f'{1e3 * t:.2f}' for t in seconds[targets])} ms, median, least and greatest")
    without, with_forces = (timing.median for timing in seconds.values())
    print(f"with forces over without, {sizes[0]} geometries, 100 replicas: {with_forces / without:.2f} (bar 2.5)")


def glycine(sizes, _):
    data = load_dataset("capped-glycine")
    test = data.split("test_500K")
    print(HEADER)
    for symmetry in (False, True):
        model, seconds = timed_fit(data, sizes[0], targets=("energy", "forces"), symmetry=symmetry)
        report(f"{sizes[0]}, energy + forces{', symmetry' * symmetry}", model, test, seconds)


def size(sizes, _):
    """Aspirin by GFN2-xTB."""
    path = Path("aspirin-xtb.extxyz")
    if not path.is_file():
        sample_aspirin(path)
    print("| geometries | observations | matrix, GiB | solver | energy, kcal/mol | forces, kcal/mol/A | fit, s | peak, GiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for n in sizes:
        for solver in ("cholesky", "cg"):
            print(alone(size_row, path, n, solver), flush=True)


def size_row(path, n, solver):
    data = load_dataset(path)
    observations = n * (1 + 3 * len(data.species))
    label = f"| {n} | {observations} | {8 * observations**2 / 2**30:.1f} | {solver} |"
    try:
        model, seconds = timed_fit(data, n, targets=("energy", "forces"), symmetry=True, solver=solver)
    except ValueError as error:
        return f"{label} {error} |"
    test = data.split("test")
    energies, forces = in_batches(energy_and_forces(model), test.positions)
    errors = (np.abs(energies - test.energy).mean() / KCAL_MOL, np.abs(forces - test.forces).mean() / KCAL_MOL)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"{label} {errors[0]:.3f} | {errors[1]:.3f} | {seconds:.0f} | {peak:.1f} |"


def sample_aspirin(path):
    """1000 training and 100 test frames of two runs at 500 K, 10 fs apart, with GFN2-xTB's energies and forces."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    from iqagp_jax import sampling

    calculator = sampling.xtb()
    start = sampling.minimise(sampling.starting_geometries("CC(=O)Oc1ccccc1C(=O)O", 1)[0], calculator)
    frames = []
    for seed, (split, n) in enumerate((("train", 1000), ("test", 100))):
        for positions in sampling.langevin(start, calculator, 500.0, n, 10.0, np.random.default_rng(seed)):
            atoms = Atoms(start.symbols, positions=positions, info={"split": split}, calculator=calculator)
            known = SinglePointCalculator(atoms, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
            frames.append(Atoms(atoms.symbols, positions=positions, info=atoms.info, calculator=known))
    write(path, frames, format="extxyz")


def main():
    tables = {table.__name__: table for table in (malondialdehyde, ethanol, modes, cost, glycine, size)}
    arguments = {
        "table": {"choices": tables, "nargs": "?"},
        "--n-train": {"type": int, "action": "append", "help": "geometries, repeatable; by default those of the docs' tables"},
        "--sigma": {"type": int, "action": "append", "help": "sGDML's length scales; repeatable"},
    }
    short = {"table": "malondialdehyde", "n_train": [20]}
    options = parsed(__doc__, arguments, {"n_train": None, "sigma": [5, 10, 20, 40, 80]}, short)
    print(f"{os.cpu_count()} CPUs, jax {jax.__version__}")
    tables[options.table](options.n_train or SIZES[options.table], options)


if __name__ == "__main__":
    main()
