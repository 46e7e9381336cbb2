"""The command line: one command a task, each a thin door to the library."""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Gaussian-process potentials of atomic energies: make data, train, validate, simulate.",
)
console = Console()
progress_console = Console(stderr=True)

# Spelled out because type checkers and typer read them; a test holds them to the registries they repeat.
FeatureName = Literal["inverse-distances", "alf"]
KernelName = Literal["matern52", "rbf", "rbf-periodic"]
PriorMeanName = Literal["zero", "min", "mf1", "mf2", "mf3", "mf4", "mf5"]
ThermostatName = Literal["nose-hoover", "langevin"]
PartitionName = Literal["becke", "hirshfeld", "qtaim"]


def main():
    """Run the command line; bad input is answered by one sentence and exit code 2.

    The environment variable IQAGP_TRACEBACK shows the traceback instead.
    """
    try:
        app()
    except (ValueError, OSError, RuntimeError, TypeError, ImportError) as error:
        if os.environ.get("IQAGP_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def track(items, description, total=None):
    """Iterate with a progress bar on stderr."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=progress_console) as bar:
        yield from bar.track(items, description=description, total=total)


def table(title, header, rows):
    """Print a small table."""
    printed = Table(title=title, title_justify="left", title_style="bold")
    for k, name in enumerate(header):
        printed.add_column(name, justify="left" if k == 0 else "right")
    for row in rows:
        printed.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row))
    console.print(printed)


def counts(values, what):
    """Parse 'temperature:number' options into a dict of K to counts."""
    result = {}
    for value in values:
        try:
            temperature, number = value.split(":")
            result[float(temperature)] = int(number)
        except ValueError:
            raise typer.BadParameter(f"expected {what} as TEMPERATURE:NUMBER, for example 500:200, found {value!r}") from None
    return result


def output_folder(path):
    """The folder, made if necessary; a sentence where it cannot be written."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".iqagp-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"expected a writable folder, found {path} ({error.strerror}); choose another") from error
    return path


def output_file(path):
    """The path, if its folder exists and is writable and it is no folder itself."""
    path = Path(path)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"expected a file in a writable folder, found {path}; choose another name")
    return path


@app.command()
def sample(
    molecule: Annotated[str, typer.Argument(help="SMILES string, or a geometry file (.xyz, .extxyz).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="extxyz file of the geometries.")],
    thermal: Annotated[
        list[str], typer.Option(help="Training geometries from Langevin dynamics, TEMPERATURE(K):NUMBER; repeatable.")
    ] = ["300:120", "500:330", "700:190", "1000:150", "1500:60"],
    displaced: Annotated[int, typer.Option(help="Training geometries with all atoms displaced at random.")] = 40,
    bond: Annotated[int, typer.Option(help="Training geometries with one bond stretched or compressed.")] = 50,
    contact: Annotated[int, typer.Option(help="Training geometries with a compressed nonbonded contact.")] = 60,
    test: Annotated[
        list[str], typer.Option(help="Test geometries from runs of their own, TEMPERATURE(K):NUMBER; repeatable.")
    ] = ["500:200", "1000:100"],
    runs: Annotated[int, typer.Option(min=1, help="Langevin runs per temperature.")] = 10,
    charge: Annotated[int, typer.Option(help="Total charge.")] = 0,
    spin: Annotated[int, typer.Option(min=0, help="Number of unpaired electrons.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 0,
):
    """Make geometries to be labelled: GFN2-xTB dynamics at several temperatures, distorted geometries, test runs."""
    from ase.io import write

    from iqagp_jax import sampling

    output = output_file(output)
    plan = sampling.SamplingPlan(counts(thermal, "--thermal"), displaced, bond, contact, counts(test, "--test"), runs=runs)
    make_calculator = partial(sampling.xtb, charge, spin)
    minimum = sampling.lowest_minimum(sampling.starting_geometries(molecule, seed=seed), make_calculator())
    frames, dropped = sampling.sample(minimum, plan, make_calculator, seed, track)
    write(output, frames, format="extxyz")
    table(
        f"{len(frames)} geometries in {output}",
        ["split", "source", "number"],
        [(*key, number) for key, number in sorted(sampling.census(frames).items())],
    )
    if dropped:
        table("dropped", ["reason", "number"], sorted(dropped.items()))


@app.command()
def label(
    geometries: Annotated[Path, typer.Argument(help="XYZ or extxyz file of one molecule's geometries.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="extxyz dataset; labels are kept in OUTPUT.labels/.")],
    xc: Annotated[str, typer.Option(help="Functional as PySCF names it, or hf.")] = "b3lyp",
    basis: Annotated[str, typer.Option(help="Basis set as PySCF names it.")] = "6-31+g(d,p)",
    partition: Annotated[PartitionName, typer.Option(help="Atoms whose energies the dataset gets.")] = "becke",
    charge: Annotated[int, typer.Option(help="Total charge.")] = 0,
    spin: Annotated[int, typer.Option(min=0, help="Number of unpaired electrons.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes of one thread each; one per core by default.")] = None,
):
    """Label geometries with energies, forces and IQA atomic energies by PySCF. Run it again to go on after a stop."""
    from ase.io import iread

    from iqagp_jax.dataset import save_dataset
    from iqagp_jax.labels import campaign

    if not geometries.is_file():
        raise FileNotFoundError(f"expected a file of geometries, found nothing at {str(geometries)!r}")
    output = output_file(output)
    # Free atoms are labelled anew with the geometries.
    frames = [atoms for atoms in iread(geometries) if atoms.info.get("config_type") != "IsolatedAtom"]
    others = [p for p in campaign.Level.partitions if p != partition]
    level = campaign.Level(xc, basis, charge, spin, (partition, *others))
    campaign.check(frames, level)
    folder = output_folder(output.with_name(output.name + ".labels"))
    free_atoms = campaign.free_atom_energies(frames[0].get_chemical_symbols(), level, folder)
    labels = campaign.label_geometries(frames, level, folder, workers, lambda items, total: track(items, "labelling", total))
    dataset, rejected = campaign.collect(frames, labels, level, free_atoms)
    save_dataset(dataset, output)
    console.print(f"{len(dataset)} labelled geometries in {output}")
    if rejected:
        table("rejected", ["geometry", "reason"], rejected)


@app.command()
def train(
    dataset: Annotated[str, typer.Argument(help="Embedded dataset (malondialdehyde) or an extxyz file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Model file, .safetensors.")],
    features: Annotated[FeatureName, typer.Option(help="What an atom sees of the others.")] = "inverse-distances",
    kernel: Annotated[KernelName | None, typer.Option(help="Default: matern52, for alf rbf-periodic.")] = None,
    prior_mean: Annotated[PriorMeanName, typer.Option(help="Energy far from the data; `means.py` has the formulas.")] = "mf5",
    n_train: Annotated[int | None, typer.Option(help="Use the first so many training geometries.")] = None,
    noise: Annotated[float, typer.Option(help="Noise variance as a share of the signal variance.")] = 1e-8,
    max_steps: Annotated[int, typer.Option(min=0, help="L-BFGS steps on the likelihood at most.")] = 40,
    n_hyper: Annotated[int | None, typer.Option(help="Fit hyperparameters on the first so many geometries.")] = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="Add mirror images of the training geometries.")] = False,
    partition: Annotated[PartitionName | None, typer.Option(help="Another partition's atomic energies of the dataset.")] = None,
):
    """Fit one Gaussian process per atom, hyperparameters by maximum likelihood."""
    from iqagp_jax.dataset import load_dataset
    from iqagp_jax.fit import fit_gp
    from iqagp_jax.modelfile import save_model
    from iqagp_jax.plots import likelihood_trace
    from iqagp_jax.validation import atom_labels

    output = output_file(output)
    data = load_dataset(dataset)
    data = data.with_partition(partition) if partition else data
    model = fit_gp(
        data,
        features,
        kernel,
        prior_mean,
        n_train,
        noise,
        max_steps,
        n_hyper,
        mirror,
        progress=lambda steps: track(steps, "hyperparameters"),
    )
    save_model(model, output)
    likelihood_trace(model).savefig(output.with_suffix(".trace.png"))
    table(
        f"{output}: {model.n_train} training points an atom, prior mean {prior_mean}",
        ["atom", "ln L per point", "signal, eV"],
        [
            (name, float(model.trace[:, k].max() / model.n_train), float(model.signal_variance[k] ** 0.5))
            for k, name in enumerate(atom_labels(model.species))
        ],
    )


@app.command()
def validate(
    model: Annotated[Path, typer.Argument(help="Model file.")],
    dataset: Annotated[str, typer.Argument(help="Embedded dataset or an extxyz file.")],
    split: Annotated[list[str] | None, typer.Option(help="Stored splits to test on; all but train by default.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers to this file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures; the model's by default.")] = None,
):
    """Errors of a model on labelled geometries it has not seen; energies are compared absolutely."""
    from iqagp_jax.dataset import load_dataset
    from iqagp_jax.modelfile import load_model

    loaded, data = load_model(model), load_dataset(dataset)
    folder = output_folder(out or model.parent)
    names = split or [name for name in data.splits if name != "train"]
    parts = {name: data.split(name) for name in names} or {"all": data}
    report = {name: validate_split(loaded, part, name, folder, model.stem) for name, part in parts.items()}
    if json_file:
        from iqagp_jax.files import write_atomically

        write_atomically(json_file, json.dumps({name: result.as_dict() for name, result in report.items()}, indent=1))


def validate_split(model, data, name, folder, stem):
    """Validate on one split, print its table and draw its pictures; returns the `Validation`."""
    from iqagp_jax import plots, validation

    predictions = validation.predict(model, data.positions)
    result = validation.validate(model, data, predictions)
    rows = [("molecular energy, kcal/mol", *vars(result.energy).values())]
    if result.forces:
        rows.append(("forces, kcal/mol/Å", *vars(result.forces).values()))
    rows += [(f"energy of {atom}, kcal/mol", *vars(e).values()) for atom, e in (result.atomic_energies or {}).items()]
    table(
        f"{name}: {len(data)} geometries, {result.n_train} training points",
        ["error of", "MAE", "RMSE", "max"],
        rows,
    )
    console.print(
        f"predicted uncertainty: {100 * result.within_one_sigma:.0f}% within 1 sigma (68 expected),"
        f" {100 * result.within_two_sigma:.0f}% within 2 (95), rank correlation with the error {result.rank_correlation:.2f}"
    )
    plots.s_curve(data, predictions).savefig(folder / f"{stem}-{name}-s-curve.png")
    plots.predicted_against_true(data, predictions).savefig(folder / f"{stem}-{name}-predicted.png")
    return result


@app.command()
def simulate(
    model: Annotated[Path, typer.Argument(help="Model file.")],
    out: Annotated[Path, typer.Option(help="Folder of the trajectory, without one so far.")],
    temperature: Annotated[list[float], typer.Option(help="K; repeat it to spread the replicas over several.")] = [500.0],
    replicas: Annotated[int, typer.Option(min=1, help="Number of replicas.")] = 50,
    time: Annotated[float, typer.Option(help="Length of each run in ps.")] = 10.0,
    timestep: Annotated[float, typer.Option(help="Integration step in fs.")] = 0.5,
    frame_interval: Annotated[float, typer.Option(help="Time between recorded frames in fs.")] = 20.0,
    thermostat: Annotated[ThermostatName, typer.Option(help="Thermostat.")] = "nose-hoover",
    thermostat_time: Annotated[float, typer.Option(help="Nose-Hoover coupling time in fs.")] = 10.0,
    friction: Annotated[float, typer.Option(help="Langevin friction in 1/ps.")] = 10.0,
    start: Annotated[
        list[str],
        typer.Option(help="Kinds of start, dealt out in turn: equilibrium, dataset, displaced, stretched; repeatable."),
    ] = ["equilibrium"],
    dataset: Annotated[str | None, typer.Option(help="Dataset for --start dataset.")] = None,
    displacement: Annotated[
        float, typer.Option(help="Largest displacement per coordinate of --start displaced, angstrom.")
    ] = 0.25,
    stretch: Annotated[float, typer.Option(help="Length of the X-H bond of --start stretched, angstrom.")] = 1.5,
    seed: Annotated[int, typer.Option(min=0, help="Seed; replica k has the same momenta whatever their number.")] = 0,
):
    """Run many replicas of the molecule at constant temperature and report which of them broke."""
    import numpy as np

    from iqagp_jax.dataset import load_dataset
    from iqagp_jax.modelfile import load_model
    from iqagp_jax.potential import energy_fn
    from iqagp_jax.robustness import failure_rule
    from iqagp_jax.simulate import Langevin, NoseHoover
    from iqagp_jax.simulate import simulate as run
    from iqagp_jax.starts import starts

    kinds = [start[k % len(start)] for k in range(replicas)]
    # The kinds of start take turns first, so that every temperature gets each of them.
    temperatures = np.array([temperature[k // len(start) % len(temperature)] for k in range(replicas)])
    loaded = load_model(model)
    data = load_dataset(dataset) if dataset else None
    result = run(
        energy_fn(loaded),
        failure_rule(loaded.species, loaded.reference),
        starts(loaded, kinds, data=data, displacement=displacement, stretch=stretch, seed=seed),
        out,
        temperature=temperatures,
        time=time,
        timestep=timestep,
        thermostat=NoseHoover(thermostat_time) if thermostat == "nose-hoover" else Langevin(friction),
        seed=seed,
        frame_interval=frame_interval,
    )
    print_replicas(result, kinds, temperatures)
    draw_replicas(result, kinds, temperatures, out)


def print_replicas(result, kinds, temperatures, each=True):
    """Table of survival, temperature and energy, a line a replica, or a line for each kind of start and temperature."""
    import numpy as np

    from iqagp_jax.units import KCAL_MOL

    groups = [
        (kind, f"{target:g}", k) if each else (kind, f"{target:g}")
        for k, (kind, target) in enumerate(zip(kinds, temperatures, strict=True))
    ]
    means = result.mean_temperatures(0.5)
    energies = (result.energies - np.nanmin(result.energies)) / KCAL_MOL
    rows = []
    for group in dict.fromkeys(groups):
        chosen = np.array([g == group for g in groups])
        half = energies[len(energies) // 2 :, chosen]
        heat, energy = means[chosen][np.isfinite(means[chosen])], half[np.isfinite(half)]
        rows.append(
            (
                " ".join(map(str, group[:1] + group[2:])),
                group[1],
                f"{result.survived[chosen].sum()}/{chosen.sum()}",
                f"{heat.mean():.0f}" if heat.size else "-",
                f"{np.median(energy):.1f}" if energy.size else "-",
                f"{np.nanmax(energies[:, chosen]):.1f}",
            )
        )
    table(
        f"replicas, {result.times[-1] / 1000:g} ps; temperature and median energy over the second half",
        ["start", "target K", "survived", "mean K", "median E, kcal/mol", "max E, kcal/mol"],
        rows,
    )
    failures = [(k, reason) for k, reason in enumerate(result.failure_reasons) if reason]
    if failures:
        table("failed replicas", ["replica", "reason"], failures)
    console.print(f"{result.ms_per_step_per_replica:.3f} ms per step and replica; trajectory in {result.directory}")


def draw_replicas(result, kinds, temperatures, folder):
    """Pictures of a run: temperature and energy against time, and survival by kind of start."""
    from iqagp_jax import plots

    plots.temperature_and_energy(result.times, result.temperatures, result.energies, temperatures).savefig(
        folder / "temperature-energy.png"
    )
    plots.survival(result.times, result.failure_times, kinds).savefig(folder / "survival.png")


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(help="Folder of a trajectory.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A .extxyz file, or a .h5 file in H5MD format.")],
    replica: Annotated[int | None, typer.Option(min=0, help="Export one replica only.")] = None,
):
    """Write a trajectory as extxyz or H5MD, one file a replica where H5MD needs it, for ASE, MDAnalysis and friends."""
    from iqagp_jax.formats import trajectories
    from iqagp_jax.trajectory import load_trajectory

    written = trajectories.export(load_trajectory(directory), output_file(output), replica)
    console.print(f"{written} frames in {output}")


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("iqagp-demo")):
    """The main job on embedded data: train, validate, fifty replicas at 500 K, pictures and a report."""
    from iqagp_jax.demo import run_demo

    run_demo(out)
