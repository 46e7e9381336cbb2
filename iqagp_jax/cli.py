"""The command line: one command a task, each a thin door to the library."""

import json
import os
import sys
from contextlib import contextmanager
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
LossName = Literal["concentrated", "marginal", "hold-out"]
OptimiserName = Literal["lbfgs", "adam"]
CONVENTION_HELP = "How .model files are read: wrap, half-periodic, relative-noise, gls-mean; repeatable. The error says which."
PartitionName = Literal["becke", "hirshfeld", "qtaim"]
ExecutorName = Literal["processes", "submitit", "dask"]


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
    """Parse 'temperature:number' options into a dict of K to counts; the single value 'none' gives an empty one."""
    result = {}
    if list(values) == ["none"]:
        return result
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
    metadynamics: Annotated[
        list[str], typer.Option(help="Training geometries from metadynamics, TEMPERATURE(K):NUMBER, or none; repeatable.")
    ] = ["300:100", "600:150"],
    variable: Annotated[
        list[str] | None,
        typer.Option(
            help="Biased variable: dihedral(i,j,k,l), distance(i,j) or transfer(donor,H,acceptor), atoms from 0;"
            " repeatable. By default torsions about single bonds and intramolecular proton transfers."
        ),
    ] = None,
    thermal: Annotated[
        list[str], typer.Option(help="Training geometries from Langevin dynamics, TEMPERATURE(K):NUMBER; repeatable.")
    ] = ["300:70", "500:180", "700:190", "1000:150", "1500:60"],
    displaced: Annotated[int, typer.Option(help="Training geometries with all atoms displaced at random.")] = 40,
    bond: Annotated[int, typer.Option(help="Training geometries with one bond stretched or compressed.")] = 50,
    contact: Annotated[int, typer.Option(help="Training geometries with a compressed nonbonded contact.")] = 60,
    test: Annotated[
        list[str], typer.Option(help="Test geometries from runs of their own, TEMPERATURE(K):NUMBER; repeatable.")
    ] = ["500:200", "1000:100"],
    runs: Annotated[int, typer.Option(min=1, help="Runs per temperature.")] = 10,
    charge: Annotated[int, typer.Option(help="Total charge.")] = 0,
    spin: Annotated[int, typer.Option(min=0, help="Number of unpaired electrons.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 0,
):
    """Make geometries to be labelled by GFN2-xTB: metadynamics, hot dynamics, distorted geometries, test runs."""
    from ase.io import write

    from iqagp_jax import sampling
    from iqagp_jax.metadynamics import choose_variables, parse_variable

    output = output_file(output)
    plan = sampling.SamplingPlan(
        counts(metadynamics, "--metadynamics"),
        counts(thermal, "--thermal"),
        displaced,
        bond,
        contact,
        counts(test, "--test"),
        runs=runs,
    )
    make_calculator = partial(sampling.xtb, charge, spin)
    minima = sampling.distinct_minima(sampling.starting_geometries(molecule, seed=seed), make_calculator())
    symbols, positions = minima[0].get_chemical_symbols(), minima[0].get_positions()
    if variable:
        variables = tuple(parse_variable(text, len(symbols)) for text in variable)
    else:
        variables = choose_variables(symbols, positions)
    if plan.metadynamics and variables:
        names = [f"{v.name}({','.join(symbols[a] + str(a) for a in v.atoms)})" for v in variables]
        console.print(f"{len(minima)} minima to start from; biased variables: {', '.join(names)}")
    frames, dropped = sampling.sample(minima, plan, make_calculator, variables, seed, track)
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
    multipoles: Annotated[bool, typer.Option(help="Also atomic multipole moments up to the hexadecapole.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes of one thread each; one per core by default.")] = None,
):
    """Label geometries with energies, forces and IQA atomic energies by PySCF. Run it again to go on after a stop."""
    from iqagp_jax.labels.campaign import Campaign, Level, write_plan
    from iqagp_jax.labels.executors import Processes

    output = output_file(output)
    folder = output.with_name(output.name + ".labels")
    others = [p for p in Level.partitions if p != partition]
    write_plan(folder, geometries, Level(xc, basis, charge, spin, (partition, *others), multipoles))
    campaign, workers = Campaign.load(folder), workers or os.cpu_count() or 1
    with Processes(workers) as executor:
        campaign.run(executor, workers, progress=lambda items, total: track(items, "labelling", total))
    if campaign.missing:
        console.print(f"stopped with {len(campaign.missing)} labels missing; run it again to go on")
    else:
        write_dataset(campaign, output)


def write_dataset(campaign, output):
    """Write what a campaign has finished as a dataset, and print what it lacks."""
    from iqagp_jax.dataset import save_dataset

    dataset, rejected = campaign.dataset()
    save_dataset(dataset, output)
    console.print(f"{len(dataset)} labelled geometries in {output}")
    if rejected:
        table("rejected", ["geometry", "reason"], rejected)


campaign_app = typer.Typer(no_args_is_help=True, help="Label many geometries in a folder that survives every crash.")
app.add_typer(campaign_app, name="campaign")

CampaignFolder = Annotated[Path, typer.Argument(help="Folder of the campaign.")]


@campaign_app.command()
def start(
    folder: CampaignFolder,
    geometries: Annotated[Path | None, typer.Argument(help="XYZ or extxyz file; begins a campaign in the folder.")] = None,
    xc: Annotated[str | None, typer.Option(help="Functional as PySCF names it, or hf [b3lyp].")] = None,
    basis: Annotated[str | None, typer.Option(help="Basis set as PySCF names it [6-31+g(d,p)].")] = None,
    partition: Annotated[
        list[str] | None, typer.Option(help="Atoms, repeatable; the dataset gets the first ones' energies [both].")
    ] = None,
    charge: Annotated[int | None, typer.Option(help="Total charge [0].")] = None,
    spin: Annotated[int | None, typer.Option(min=0, help="Number of unpaired electrons [0].")] = None,
    multipoles: Annotated[bool | None, typer.Option(help="Also atomic multipole moments [no].")] = None,
    executor: Annotated[ExecutorName, typer.Option(help="Processes of this machine, Slurm jobs, or a Dask scheduler.")] = (
        "processes"
    ),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, jobs or Dask tasks at a time; one per core or Dask worker by default.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Geometries that a worker is given at a time, say 20 for Slurm.")] = 1,
    job: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE for submitit, as timeout_min=240, mem_gb=8, slurm_partition=short; repeatable."),
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of the Dask scheduler, as tcp://host:8786.")] = None,
):
    """Begin a campaign with a file of geometries, or go on with one as its plan.toml says, until all is labelled.

    Run it in the background or in a batch job. It may be killed at any moment; Ctrl-C abandons the labels in flight.
    """
    from iqagp_jax.labels.campaign import begin

    level = {
        "xc": xc,
        "basis": basis,
        "charge": charge,
        "spin": spin,
        "partitions": partition and tuple(partition),
        "multipoles": multipoles,
    }
    campaign = begin(folder, geometries, **{name: value for name, value in level.items() if value is not None})
    with executor_of(executor, folder, workers, parameters(job or []), scheduler) as (pool, at_a_time):
        campaign.run(pool, at_a_time, batch, lambda items, total: track(items, "labelling", total))
    print_status(campaign)


@contextmanager
def executor_of(name, folder, workers, job, scheduler):
    """The executor that the options name, and how many tasks it is given at a time."""
    from iqagp_jax.labels import executors

    if name == "dask":
        if scheduler is None:
            raise ValueError("expected the address of a running Dask scheduler; give it with --scheduler")
        with executors.dask_workers(scheduler) as (pool, threads):
            yield pool, workers or threads
        return
    workers = workers or os.cpu_count() or 1
    submitit = name == "submitit"
    with executors.submitit_jobs(folder / "jobs", workers, job) if submitit else executors.Processes(workers) as pool:
        yield pool, workers


def parameters(values):
    """Parse 'name=value' options; whole numbers become int."""
    pairs = [value.partition("=") for value in values]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise typer.BadParameter(f"expected --job NAME=VALUE, for example mem_gb=8, found {wrong[0]!r}")
    return {name: int(value) if value.isdigit() else value for name, _, value in pairs}


@campaign_app.command()
def status(folder: CampaignFolder):
    """Labels made, rejected and set aside, their rate, and the estimated end; also while it runs."""
    from iqagp_jax.labels.campaign import Campaign

    print_status(Campaign.load(folder))


def print_status(campaign):
    """Table of a campaign's state, and of the geometries set aside."""
    now = campaign.status()
    rows = [
        ("geometries", now.total),
        ("labelled", now.made),
        ("rejected", now.rejected),
        ("failed", now.failed),
        ("labels an hour", "-" if now.rate is None else f"{3600 * now.rate:.0f}"),
        ("estimated end", "-" if now.end is None else f"{now.end:%Y-%m-%d %H:%M}"),
        ("owner", (now.owner or "none, does not run") + ", stopping" * (now.stopping and now.owner is not None)),
    ]
    table(None, ["campaign", str(campaign.folder)], rows)
    failed = [(k, task.label["rejected"]) for k, task in enumerate(campaign.tasks) if task.is_set_aside]
    if failed:
        table(f"set aside; the tracebacks are in {campaign.folder}/*.failed", ["geometry", "reason"], failed)


@campaign_app.command()
def stop(folder: CampaignFolder):
    """Ask a running campaign to stop: it finishes the labels in flight and begins no others."""
    from iqagp_jax.labels.lock import request_stop

    console.print(f"{request_stop(folder)} will stop once the labels in flight are finished")


@campaign_app.command()
def collect(
    folder: CampaignFolder,
    output: Annotated[Path, typer.Option("-o", "--output", help="extxyz dataset.")],
):
    """Write the labels finished so far as a dataset; also while it runs."""
    from iqagp_jax.labels.campaign import Campaign

    write_dataset(Campaign.load(folder), output_file(output))


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
    loss: Annotated[LossName, typer.Option(help="What is optimised; `hyperparameters.py` has the formulas.")] = "concentrated",
    optimiser: Annotated[OptimiserName, typer.Option(help="Optimiser, from optax.")] = "lbfgs",
    starts: Annotated[int, typer.Option(min=0, help="Random starts; 0: one start at a likely multiple of the spread.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random starts.")] = 0,
    transfer: Annotated[int | None, typer.Option(help="Fit on so many geometries first, then relax on all.")] = None,
    targets: Annotated[
        str,
        typer.Option(help="What is learned, with commas between: atomic_energies, energy, forces."),
    ] = "atomic_energies",
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
        loss=loss,
        optimiser=optimiser,
        n_starts=starts,
        seed=seed,
        n_seed=transfer,
        targets=tuple(targets.split(",")),
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
def train_atom(
    training_set: Annotated[Path, typer.Argument(help="FEREBUS csv file: features f1, f2, ... and properties.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="FEREBUS .model file.")],
    alf: Annotated[str, typer.Option(help="Atomic local frame: centre, x-axis and xy-plane atom, from 1, as in 1,2,4.")],
    atom: Annotated[str, typer.Option(help="Name of the atom, as in C1.")],
    system: Annotated[str, typer.Option(help="Name of the molecule.")] = "MOLECULE",
    property: Annotated[str, typer.Option(help="Column to learn: iqa, q00, ...")] = "iqa",
    kernel: Annotated[Literal["rbf", "rbf-periodic"], typer.Option(help="rbf as FEREBUS, or with periodic phi.")] = "rbf",
    loss: Annotated[LossName, typer.Option(help="What is optimised; `hyperparameters.py` has the formulas.")] = "marginal",
    optimiser: Annotated[OptimiserName, typer.Option(help="Optimiser, from optax.")] = "lbfgs",
    max_steps: Annotated[int, typer.Option(min=0, help="Optimisation steps at most.")] = 500,
    starts: Annotated[int, typer.Option(min=1, help="Random starts; the best is kept.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the starts.")] = 0,
    transfer: Annotated[int | None, typer.Option(help="Fit on so many points first, then relax on all.")] = None,
    validation_set: Annotated[Path | None, typer.Option(help="Csv file to test the model on.")] = None,
):
    """Fit one property of one atom to a FEREBUS training set and write it as a .model file."""
    import numpy as np

    from iqagp_jax.fit import fit_atom
    from iqagp_jax.formats import ferebus
    from iqagp_jax.validation import Errors

    output = output_file(output)
    x, y = ferebus.property_of(training_set, property)
    frame = ferebus.parse_frame(alf, x.shape[1] // 3 + 2)
    labels = (("name", system), ("atom", atom), ("property", property))
    model, found = fit_atom(
        x,
        y,
        frame,
        labels,
        kernel,
        progress=lambda steps: track(steps, "hyperparameters"),
        loss=loss,
        optimiser=optimiser,
        max_steps=max_steps,
        n_starts=starts,
        seed=seed,
        n_seed=transfer,
    )
    ferebus.write_model(model, output)
    table(
        f"{output}: {model.n_train} training points",
        ["start", loss, "evaluations"],
        [(k + 1, f"{v:.5f}", n) for k, (v, n) in enumerate(zip(found.values[:, 0], found.evaluations[:, 0], strict=True))],
    )
    if validation_set:
        x, y = ferebus.property_of(validation_set, property)
        error = Errors.of(np.asarray(ferebus.predict(model, x)) - y)
        table(f"{validation_set}: {len(y)} points", ["error of", "MAE", "RMSE", "max"], [(property, *vars(error).values())])


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Folder of FEREBUS .model files, or a model of ours.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Model file, .safetensors; or a folder for .model files.")],
    property: Annotated[str, typer.Option(help="Which property's models to read from a folder: iqa, q00, ...")] = "iqa",
    system: Annotated[str, typer.Option(help="Name of the molecule in .model files made from a model of ours.")] = "MOLECULE",
    convention: Annotated[list[str] | None, typer.Option(help=CONVENTION_HELP)] = None,
    accept_weights: Annotated[
        bool, typer.Option("--accept-weights", help="Take the weights of .model files as they are, reproduced or not.")
    ] = False,
):
    """Convert FEREBUS .model files to a model of ours, or a model of ours to .model files."""
    from iqagp_jax.formats import ferebus
    from iqagp_jax.modelfile import load_model, save_model

    if source.is_dir():
        model = ferebus.read_folder(source, property, tuple(convention or ()), accept_weights)
        save_model(model, output_file(output))
        console.print(f"{output}: {property} of {' '.join(model.species)}, up to {model.n_train} training points an atom")
    else:
        if convention or accept_weights:
            raise ValueError("expected --convention and --accept-weights with a folder of .model files; leave them out")
        paths = ferebus.write_folder(load_model(source), output_folder(output), system)
        console.print(f"{len(paths)} files in {output}, {paths[0].name} first")


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
