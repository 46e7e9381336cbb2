"""From a molecule to a trusted potential, in one command."""

import os
from pathlib import Path
from typing import Annotated

import typer

from iqagp_jax.cli.console import MOST, console, only_with, output_folder, table, then, track
from iqagp_jax.cli.verdicts import Workers


def make(
    context: typer.Context,
    molecule: Annotated[str, typer.Argument(help="SMILES string, or a geometry file (.xyz, .extxyz).")],
    out: Annotated[Path, typer.Option(help="Folder of all that is made; the same command goes on with it.")],
    level: Annotated[str, typer.Option(help="FUNCTIONAL/BASIS as PySCF names them, or gfn2-xtb.")] = "b3lyp/6-31+g(d,p)",
    budget: Annotated[
        str | None, typer.Option(help="Time of work, as 8h, 90min or 1h30min, all calls together. Default: until it is good.")
    ] = None,
    temperature: Annotated[list[float], typer.Option(help="K, at which it is to be trusted; repeatable.")] = [
        300.0,
        500.0,
        700.0,
        1000.0,
    ],
    replicas: Annotated[
        int, typer.Option(min=1, max=MOST, help="Replicas of an exam at a temperature; beyond gfn2-xtb fewer.")
    ] = 20,
    time: Annotated[float, typer.Option(help="Length of its runs in ps.")] = 20.0,
    labels: Annotated[int, typer.Option(min=1, max=MOST, help="Labels by FUNCTIONAL/BASIS at most.")] = 150,
    local: Annotated[
        bool, typer.Option("--local", help="Learn atoms' surroundings too: half the error, steps ten times as dear and more.")
    ] = False,
    charge: Annotated[int, typer.Option(help="Total charge.")] = 0,
    spin: Annotated[int, typer.Option(min=0, help="Number of unpaired electrons.")] = 0,
    workers: Workers = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 2, help="Seed of all random numbers.")] = 0,
):
    """Make a potential of a molecule: minima, geometries, labels, models, runs, lessons, a verdict; untouched.

    GFN2-xTB is learned first, until runs of its model show no flaw; then the difference to LEVEL, from labels of geometries
    that this model chose and of frames of the potential's own runs. It may be killed at any moment.
    """
    from iqagp_jax.labels.executors import Processes
    from iqagp_jax.machine import devices
    from iqagp_jax.machine.progress import in_seconds
    from iqagp_jax.making.page import STANDINGS, next_of
    from iqagp_jax.making.recipe import Recipe
    from iqagp_jax.making.stages import make

    seconds = None if budget is None else in_seconds(budget)
    recipe = Recipe(molecule, level, tuple(temperature), replicas, time, labels, local, charge, spin, seed)
    only_with(context, labels=(not recipe.is_cheap, "a level of FUNCTIONAL/BASIS"))
    devices.use_cores()
    out, workers = output_folder(out), workers or os.cpu_count() or 1
    with Processes(workers) as pool:
        told = make(recipe, out, pool, workers, seconds, track, console.print)
    table(
        f"{out / 'model.safetensors'}, held to {recipe.level}; errors of frames of its own runs in kcal/mol",
        ["K", "survived", "replica-ps", "frames", "median |dE|", "95%", "max"],
        [
            (
                *(f"{r['temperature_K']:g}", f"{r['survived']}/{r['replicas']}", r["replica_ps"], r["frames"]),
                *("-" if r[key] is None else r[key] for key in ("de_median", "de_p95", "de_max")),
            )
            for r in told["temperatures"]
        ],
    )
    console.print(f"[bold]{told['standing']}[/bold]: {STANDINGS[told['standing']]}")
    for sentence in told["seen"]:
        console.print(f"[bold]seen[/bold]: {sentence}")
    for sentence in told["not_for"]:
        console.print(f"[bold]not shown[/bold]: {sentence}")
    console.print(f"{out / 'report.html'}")
    then(next_of(out))
