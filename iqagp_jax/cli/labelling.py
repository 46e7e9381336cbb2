"""From a molecule to labelled geometries: sampling, labels, campaigns."""

import inspect
import os
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from iqagp_jax.cli.console import MOST, console, only_with, output_file, table, then, track

XTB_METHOD = "gfn2-xtb"

HOTTEST = 1e5
"""K: no molecule is left there."""

# Spelled out because type checkers and typer read it.
ExecutorName = Literal["processes", "submitit", "dask"]

Geometries = Annotated[Path | None, typer.Argument(help="XYZ or extxyz file of one molecule's geometries.")]
Xc = Annotated[str | None, typer.Option(hidden=True)]
Basis = Annotated[str | None, typer.Option(hidden=True)]
Partition = Annotated[
    list[str] | None,
    typer.Option(
        help="Atoms (becke, hirshfeld, qtaim), repeatable; the dataset gets the first ones' energies. Default: becke and"
        " hirshfeld; none: no atoms, in less time."
    ),
]
Charge = Annotated[int | None, typer.Option(help="Total charge. Default: 0.")]
Spin = Annotated[int | None, typer.Option(min=0, help="Number of unpaired electrons. Default: 0.")]
Multipoles = Annotated[bool | None, typer.Option(help="Also atomic multipole moments up to the hexadecapole. Default: no.")]
Forces = Annotated[bool | None, typer.Option(help="Also forces. Default: yes; not needed where `collect --beside` adds them.")]
Executor = Annotated[ExecutorName, typer.Option(help="Processes of this machine, Slurm jobs, or a Dask scheduler.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, max=MOST, help="Processes, jobs or Dask tasks at a time; one per core or Dask worker by default."),
]
Batch = Annotated[int, typer.Option(min=1, max=MOST, help="Geometries that a worker is given at a time, say 20 for Slurm.")]
Job = Annotated[
    list[str] | None,
    typer.Option(help="NAME=VALUE for submitit, as timeout_min=240, mem_gb=8, slurm_partition=short; repeatable."),
]
Scheduler = Annotated[str | None, typer.Option(help="Address of the Dask scheduler, as tcp://host:8786.")]


def counts(values, what):
    """Parse 'temperature:number' options into a dict of K to counts; the single value 'none' gives an empty one."""
    result: dict[float, int] = {}
    if list(values) == ["none"]:
        return result
    for value in values:
        try:
            temperature, number = (kind(text) for kind, text in zip((float, int), value.split(":"), strict=True))
        except ValueError:
            raise typer.BadParameter(f"expected {what} as TEMPERATURE:NUMBER, for example 500:200, found {value!r}") from None
        if not (0 < temperature < HOTTEST and 0 < number <= MOST):
            raise typer.BadParameter(f"expected {what} at 0 to {HOTTEST:g} K and 1 to {MOST:,} geometries, found {value!r}")
        if temperature in result:
            raise typer.BadParameter(f"expected each temperature of {what} once, found {value!r} again")
        result[temperature] = number
    return result


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
    displaced: Annotated[
        int, typer.Option(min=0, max=MOST, help="Training geometries with all atoms displaced at random.")
    ] = 40,
    bond: Annotated[int, typer.Option(min=0, max=MOST, help="Training geometries with one bond stretched or compressed.")] = 50,
    contact: Annotated[
        int, typer.Option(min=0, max=MOST, help="Training geometries with a compressed nonbonded contact.")
    ] = 60,
    test: Annotated[
        list[str], typer.Option(help="Test geometries from runs of their own, TEMPERATURE(K):NUMBER; repeatable.")
    ] = ["500:200", "1000:100"],
    runs: Annotated[int, typer.Option(min=1, max=MOST, help="Runs per temperature.")] = 10,
    charge: Annotated[int, typer.Option(help="Total charge.")] = 0,
    spin: Annotated[int, typer.Option(min=0, help="Number of unpaired electrons.")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 2, help="Seed of all random numbers.")] = 0,
):
    """By GFN2-xTB make geometries that are worth labelling: metadynamics, hot dynamics, distortions, test runs.

    It may be killed at any moment: finished runs are kept in OUTPUT.parts, and the same command goes on with them.
    """
    from ase.io import write

    from iqagp_jax import sampling
    from iqagp_jax.dynamics.metadynamics import parse_variable
    from iqagp_jax.labels.plan import check_state
    from iqagp_jax.machine.files import checksum
    from iqagp_jax.machine.parts import kept_in
    from iqagp_jax.references.xtb import xtb
    from iqagp_jax.system.elements import check_electrons

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
    starts = sampling.starting_geometries(molecule, seed=seed)
    symbols = starts[0].get_chemical_symbols()
    check_electrons(symbols, charge, spin)
    check_state(starts, charge, spin)
    variables = variable and tuple(parse_variable(text, len(symbols)) for text in variable)
    positions = {str(k): atoms.positions.round(6) for k, atoms in enumerate(starts)}
    options = {"molecule": f"{molecule} {checksum(' '.join(symbols), positions)[:8]}", "charge": charge, "spin": spin}
    options |= {"seed": seed, "variable": variable, **asdict(plan)}
    folder = output.with_name(output.name + ".parts")
    with kept_in(folder, options) as parts, going_on(parts):
        frames, dropped = sampled(starts, plan, partial(xtb, charge, spin), variables, seed, parts)
    write(output, frames, format="extxyz")
    table(
        f"{len(frames)} geometries in {output}",
        ["split", "source", "number"],
        [(*key, number) for key, number in sorted(sampling.census(frames).items())],
    )
    if dropped:
        table("dropped", ["reason", "number"], sorted(dropped.items()))
    then(f"iqagp label {output} -o {output.with_name(output.stem + '-labelled.extxyz')}")


def sampled(starts, plan, make_calculator, variables, seed, parts):
    """The geometries of `sampling.sample` from what ``starts`` relax to, and what was dropped, with bars."""
    from iqagp_jax import sampling
    from iqagp_jax.dynamics.metadynamics import choose_variables

    minima = sampling.distinct_minima(starts, make_calculator, parts, lambda items: track(items, "minima"))
    symbols, positions = minima[0].get_chemical_symbols(), minima[0].get_positions()
    variables = variables or choose_variables(symbols, positions)
    if plan.metadynamics and variables:
        names = [f"{v.name}({','.join(symbols[a] + str(a) for a in v.atoms)})" for v in variables]
        minimum = "minimum" if len(minima) == 1 else "minima"
        console.print(f"{len(minima)} {minimum} to start from; biased variables: {', '.join(names)}")
    return sampling.sample(minima, plan, make_calculator, variables, seed, parts, progress=True)


@contextmanager
def going_on(parts):
    """Ctrl-C ends with what is kept, and how to go on."""
    if parts.kept:
        console.print(f"going on with what is finished, {len(parts.kept)} of its parts, in {parts.folder}")
    try:
        yield
    except KeyboardInterrupt:
        console.print(
            f"stopped: what is finished, {len(parts.kept)} of its parts, is kept in {parts.folder}; the same command goes on"
        )
        raise typer.Exit(130) from None


def label(
    context: typer.Context,
    geometries: Geometries = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="extxyz dataset, written once all is labelled.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="FUNCTIONAL/BASIS as PySCF names them, the functional may be hf; ccsd(t)/BASIS: energies alone, as"
            " ccsd(t)/cc-pvdz+mp2/cbs(tq); or gfn2-xtb: energies and forces alone, in seconds. Default: b3lyp/6-31+g(d,p)."
        ),
    ] = None,
    campaign: Annotated[
        Path | None,
        typer.Option(help="Folder of the labels, which keeps its plan. Default: OUTPUT.labels, which does not."),
    ] = None,
    partition: Partition = None,
    charge: Charge = None,
    spin: Spin = None,
    multipoles: Multipoles = None,
    forces: Forces = None,
    executor: Executor = "processes",
    workers: Workers = None,
    batch: Batch = 1,
    job: Job = None,
    scheduler: Scheduler = None,
    xc: Xc = None,
    basis: Basis = None,
):
    """Label geometries with energies, forces and IQA atomic energies, by PySCF; by CCSD(T) with energies; or by GFN2-xTB.

    Run it again to go on: it may be killed at any moment. With --campaign FOLDER alone it goes on as the plan.toml there says.
    Ctrl-C abandons the labels in flight.
    """
    from iqagp_jax.labels.campaign import begin
    from iqagp_jax.labels.plan import LabelPlan, write_plan

    if method is not None and method.lower() == XTB_METHOD:
        useless = ("campaign", "partition", "multipoles", "forces", "executor", "batch", "job", "scheduler", "xc", "basis")
        only_with(context, **dict.fromkeys(useless, (False, "a functional and basis")))
        label_by_xtb(geometries, output, charge or 0, spin or 0, workers)
        then(train_on(output))
        return
    only_with(context, **used_by(executor))
    if xc or basis:
        other_spelling("--xc and --basis", f"--method {xc or LabelPlan.xc}/{basis or LabelPlan.basis}")
    if output is not None:
        output = output_file(output)
    plan = planned(method, xc, basis, partition, charge, spin, multipoles, forces)
    if campaign is not None:
        folder = campaign
    elif output is not None:
        folder = output.with_name(output.name + ".labels")
        if len(plan.get("partitions", ())) == 1:  # fuzzy atoms beside others cost next to nothing
            plan["partitions"] += tuple(p for p in LabelPlan.partitions if p not in plan["partitions"])
        if geometries is not None:
            write_plan(folder, geometries, LabelPlan(**plan))
    else:
        raise ValueError("expected a dataset to write or a folder to keep labels in, found neither; give -o or --campaign")
    running = begin(folder, geometries, **plan)
    make_labels(running, executor_of(executor, folder, workers, parameters(job or []), scheduler), batch)
    if campaign:
        print_progress(running)
    if running.missing:
        console.print(f"stopped with {len(running.missing)} labels missing; run it again to go on")
        then(f"iqagp label --campaign {folder}" + (f" -o {output}" if output else ""))
    elif output:
        write_dataset(running, output)
        then(train_on(output))
    else:
        then(f"iqagp campaign collect {folder} -o labelled.extxyz")


def label_by_xtb(geometries, output, charge, spin, workers):
    """Label a file of geometries with energies and forces by GFN2-xTB."""
    from iqagp_jax.data.extxyz import save_dataset, unlabelled
    from iqagp_jax.labels.executors import Processes
    from iqagp_jax.labels.plan import check_state, read_geometries
    from iqagp_jax.references.xtb import XTB, relabelled

    if geometries is None or output is None:
        raise ValueError("expected GEOMETRIES and a dataset to write, found not both; give a file of geometries and -o")
    output = output_file(output)
    frames = read_geometries(geometries)
    check_state(frames, charge, spin)
    bare = unlabelled(frames, str(geometries))
    with Processes(workers or os.cpu_count() or 1) as pool:
        reference = XTB(bare.species, charge, spin, pool)
        dataset = relabelled(bare, reference, lambda items, total: track(items, "labelling", total))
    save_dataset(dataset, output)
    console.print(f"{len(dataset)} labelled geometries in {output}")
    if lacking := len(bare) - len(dataset):
        console.print(f"[bold]warning[/bold]: {lacking} left out, since the SCF of GFN2-xTB did not converge")


def label_xtb(
    geometries: Geometries,
    output: Annotated[Path, typer.Option("-o", "--output", help="extxyz dataset.")],
    charge: Charge = 0,
    spin: Spin = 0,
    workers: Workers = None,
):
    """Another spelling of `iqagp label --method gfn2-xtb`."""
    other_spelling("iqagp label-xtb", f"iqagp label GEOMETRIES -o OUTPUT --method {XTB_METHOD}")
    label_by_xtb(geometries, output, charge, spin, workers)
    then(train_on(output))


def train_on(dataset):
    """The command that learns a dataset."""
    return f"iqagp train {dataset} -o {dataset.stem}.safetensors"


def other_spelling(old, new):
    """Tell how something is spelled from now on."""
    console.print(f"{old}: written {new} from now on; the next version knows that alone", markup=False)


def planned(method, xc, basis, partition, charge, spin, multipoles, forces):
    """Entries of `LabelPlan` that the options give."""
    from iqagp_jax.labels.plan import LabelPlan

    if method:
        functional, _, basis_set = method.partition("/")
        if not (functional and basis_set):
            raise ValueError(f"expected --method FUNCTIONAL/BASIS, as b3lyp/6-31+g(d,p), or {XTB_METHOD}, found {method!r}")
        if xc or basis:
            raise ValueError(f"expected one level of theory, found --method {method} beside --xc or --basis; leave those out")
        xc, basis = functional, basis_set
    if xc and LabelPlan(xc).is_coupled_cluster:  # energies alone, unless it is asked for what it has not
        partition, forces = partition or ["none"], forces or False
    entries = {
        "xc": xc,
        "basis": basis,
        "charge": charge,
        "spin": spin,
        "partitions": partition and (() if partition == ["none"] else tuple(partition)),
        "multipoles": multipoles,
        "forces": forces,
    }
    return {name: value for name, value in entries.items() if value is not None}


def used_by(executor):
    """For `only_with`: the options that some executors alone need."""
    return {
        "job": (executor == "submitit", "--executor submitit"),
        "scheduler": (executor == "dask", "--executor dask"),
    }


def make_labels(campaign, workplace, batch):
    """Make the labels that a campaign lacks, by an `executor_of`."""
    with workplace as (pool, at_a_time):
        campaign.run(pool, at_a_time, batch, lambda items, total: track(items, "labelling", total))


def write_dataset(campaign, output, known=None):
    """Write what a campaign has finished as a dataset, on top of a known one of its geometries, and print what it lacks."""
    from iqagp_jax.data.dataset import beside
    from iqagp_jax.data.extxyz import load_dataset, save_dataset

    dataset, rejected = campaign.dataset()
    if known:
        dataset = beside(load_dataset(known), dataset)
    save_dataset(dataset, output)
    console.print(f"{len(dataset)} labelled geometries in {output}")
    if rejected:
        table("rejected", ["geometry", "reason"], rejected)


campaign_app = typer.Typer(no_args_is_help=True, help="Folders of many labels, which `iqagp label --campaign` makes.")

CampaignFolder = Annotated[Path, typer.Argument(help="Folder of the campaign.")]


def start(context, folder, **options):
    """Another spelling of `iqagp label --campaign FOLDER`."""
    other_spelling("iqagp campaign start", "iqagp label GEOMETRIES --campaign FOLDER --method FUNCTIONAL/BASIS")
    label(context, campaign=folder, **options)


def _parameters_of_start():
    """Those of `label` but for what it did not have, and the folder first."""
    context, *rest = inspect.signature(label).parameters.values()
    folder = inspect.Parameter("folder", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=CampaignFolder)
    return [context, folder, *(p for p in rest if p.name not in ("output", "method", "campaign"))]


start.__signature__ = inspect.Signature(_parameters_of_start())  # type: ignore[attr-defined]
campaign_app.command(hidden=True)(start)


@campaign_app.command()
def pack(folder: CampaignFolder):
    """Put the finished labels into one compressed file, which all commands read as they read single ones."""
    from iqagp_jax.labels.campaign import Campaign
    from iqagp_jax.labels.pack import PACK

    packed, new = Campaign.load(folder).pack()
    console.print(f"{packed} labels in {folder / PACK}, {new} of them new")
    then(f"iqagp campaign collect {folder} -o labelled.extxyz")


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

    campaign = Campaign.load(folder)
    print_progress(campaign)
    if not campaign.missing:
        then(f"iqagp campaign collect {folder} -o labelled.extxyz")
    elif campaign.progress().owner:
        then(f"iqagp campaign stop {folder}")
    else:
        then(f"iqagp label --campaign {folder}")


def print_progress(campaign):
    """Table of a campaign's state, and of the geometries set aside."""
    now = campaign.progress()
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
    labels = campaign.labels
    failed = [(k, labels.get(t.key)["rejected"]) for k, t in enumerate(campaign.tasks) if labels.is_set_aside(t.key)]
    if failed:
        table(f"set aside; the tracebacks are in {campaign.folder}/*.failed", ["geometry", "reason"], failed)


@campaign_app.command()
def stop(folder: CampaignFolder):
    """Ask a running campaign to stop: it finishes the labels in flight and begins no others."""
    from iqagp_jax.machine.lock import request_stop

    console.print(f"{request_stop(folder)} will stop once the labels in flight are finished")
    then(f"iqagp campaign status {folder}")


@campaign_app.command()
def collect(
    folder: CampaignFolder,
    output: Annotated[Path, typer.Option("-o", "--output", help="extxyz dataset.")],
    beside: Annotated[
        str | None, typer.Option(help="Dataset of the same geometries, whose energies, forces and other partitions are kept.")
    ] = None,
):
    """Write the labels finished so far as a dataset; also while it runs."""
    from iqagp_jax.labels.campaign import Campaign

    write_dataset(Campaign.load(folder), output_file(output), beside)
    then(train_on(output))
