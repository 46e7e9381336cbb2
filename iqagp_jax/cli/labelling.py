"""From a molecule to labelled geometries: sampling, labels, campaigns."""

import os
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from iqagp_jax.cli.console import PartitionName, console, only_with, output_file, table, track

# Spelled out because type checkers and typer read it.
ExecutorName = Literal["processes", "submitit", "dask"]


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
    """By GFN2-xTB make geometries that are worth labelling: metadynamics, hot dynamics, distortions, test runs."""
    from ase.io import write

    from iqagp_jax import sampling
    from iqagp_jax.dynamics.metadynamics import choose_variables, parse_variable

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


def label_xtb(
    geometries: Annotated[Path, typer.Argument(help="XYZ or extxyz file of one molecule's geometries.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="extxyz dataset.")],
    charge: Annotated[int, typer.Option(help="Total charge.")] = 0,
    spin: Annotated[int, typer.Option(min=0, help="Number of unpaired electrons.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one per core by default.")] = None,
):
    """Label geometries with energies and forces by GFN2-xTB, in seconds: for trials, and for verdicts held to xtb."""
    from iqagp_jax.data.extxyz import save_dataset, unlabelled
    from iqagp_jax.labels.campaign import check_electrons, read_geometries
    from iqagp_jax.labels.executors import Processes
    from iqagp_jax.references.references import XTB, relabelled

    output, frames = output_file(output), read_geometries(geometries)
    bare = unlabelled(frames, str(geometries))
    check_electrons(frames[0], charge, spin)
    with Processes(workers or os.cpu_count() or 1) as pool:
        reference = XTB(bare.species, charge, spin, pool)
        dataset = relabelled(bare, reference, lambda items, total: track(items, "labelling", total))
    save_dataset(dataset, output)
    console.print(f"{len(dataset)} labelled geometries in {output}")
    if lacking := len(bare) - len(dataset):
        console.print(f"[bold]warning[/bold]: {lacking} left out, since the SCF of GFN2-xTB did not converge")


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


campaign_app = typer.Typer(no_args_is_help=True, help="Label many geometries in a folder that survives every crash.")

CampaignFolder = Annotated[Path, typer.Argument(help="Folder of the campaign.")]


@campaign_app.command()
def start(
    context: typer.Context,
    folder: CampaignFolder,
    geometries: Annotated[Path | None, typer.Argument(help="XYZ or extxyz file; begins a campaign in the folder.")] = None,
    xc: Annotated[str | None, typer.Option(help="Functional as PySCF names it, or hf. Default: b3lyp.")] = None,
    basis: Annotated[str | None, typer.Option(help="Basis set as PySCF names it. Default: 6-31+g(d,p).")] = None,
    partition: Annotated[
        list[str] | None,
        typer.Option(
            help="Atoms, repeatable; the dataset gets the first ones' energies. Default: becke and hirshfeld; none: no atoms."
        ),
    ] = None,
    charge: Annotated[int | None, typer.Option(help="Total charge. Default: 0.")] = None,
    spin: Annotated[int | None, typer.Option(min=0, help="Number of unpaired electrons. Default: 0.")] = None,
    multipoles: Annotated[bool | None, typer.Option(help="Also atomic multipole moments. Default: no.")] = None,
    forces: Annotated[
        bool | None, typer.Option(help="Also forces. Default: yes; not needed where `collect --beside` adds them.")
    ] = None,
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

    only_with(context, job=(executor == "submitit", "--executor submitit"), scheduler=(executor == "dask", "--executor dask"))
    level = {
        "xc": xc,
        "basis": basis,
        "charge": charge,
        "spin": spin,
        "partitions": partition and (() if partition == ["none"] else tuple(partition)),
        "multipoles": multipoles,
        "forces": forces,
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
    from iqagp_jax.machine.lock import request_stop

    console.print(f"{request_stop(folder)} will stop once the labels in flight are finished")


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
