"""The verdict on a model."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from iqagp_jax.cli.console import console, output_folder, table, track

ReferenceName = Literal["xtb", "dft", "none"]


def robustness(
    model: Annotated[Path, typer.Argument(help="Model file.")],
    out: Annotated[Path, typer.Option(help="Folder of the verdict; the same command goes on with it.")],
    reference: Annotated[ReferenceName, typer.Option(help="What the model is held to: the method it was trained on, or none.")],
    temperature: Annotated[list[float], typer.Option(help="K; repeatable.")] = [300.0, 1000.0],
    start: Annotated[list[str], typer.Option(help="Kinds of start: equilibrium, displaced, stretched; repeatable.")] = [
        "equilibrium",
        "displaced",
        "stretched",
    ],
    replicas: Annotated[int, typer.Option(min=1, help="Replicas for every temperature and kind of start.")] = 10,
    time: Annotated[float, typer.Option(help="Length of each run in ps.")] = 10.0,
    timestep: Annotated[float, typer.Option(help="Integration step in fs.")] = 0.5,
    frame_interval: Annotated[float, typer.Option(help="Time between frames in fs, at which uncertainty is looked at.")] = 5.0,
    displacement: Annotated[float, typer.Option(help="Largest displacement per coordinate of displaced starts, Å.")] = 0.25,
    stretch: Annotated[float, typer.Option(help="Length of the X-H bond of stretched starts, Å.")] = 1.5,
    frames: Annotated[int, typer.Option(min=1, help="Frames relabelled for every temperature and kind of start.")] = 50,
    reference_replicas: Annotated[int, typer.Option(min=0, help="Replicas of xtb's own dynamics; 0 for none.")] = 10,
    reference_time: Annotated[float, typer.Option(help="Their length in ps.")] = 10.0,
    charge: Annotated[int, typer.Option(help="Total charge, for the reference.")] = 0,
    spin: Annotated[int, typer.Option(min=0, help="Number of unpaired electrons, for the reference.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes of the reference; one per core by default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 0,
):
    """Judge a model: who survives, how wrong it is, whether it goes where the reference goes, and whether it warns.

    Writes report.html, robustness.json and pictures. With dft the labels are a campaign, which may be stopped.
    """
    from iqagp_jax.labels.executors import Processes
    from iqagp_jax.modelfile import load_model
    from iqagp_jax.verdict import Protocol, judge
    from iqagp_jax.verdict.references import reference_of

    loaded, out = load_model(model), output_folder(out)
    protocol = Protocol(
        tuple(temperature),
        tuple(start),
        replicas,
        time,
        timestep,
        frame_interval,
        displacement,
        stretch,
        frames,
        reference_replicas,
        reference_time,
        seed,
    )
    workers = workers or os.cpu_count() or 1
    alone = reference == "none" or (reference == "xtb" and workers == 1)
    with nullcontext() if alone else Processes(workers) as pool:
        held_to = reference_of(reference, loaded, out / "labels", charge, spin, pool, workers)
        facts = judge(loaded, out, held_to, protocol, model.name, track)
    table(
        f"{model}, held to {facts['reference']}; errors in kcal/mol of {frames} frames or more a row",
        ["start", "K", "survived", "right", "median |dE|", "95%", "max"],
        [
            (
                row["start"],
                f"{row['temperature_K']:g}",
                f"{row['survived']}/{row['replicas']}",
                *("-" if row[key] is None else row[key] for key in ("right", "de_median", "de_p95", "de_max")),
            )
            for row in facts["rows"]
        ],
    )
    for part, found in facts["verdict"].items():
        console.print(f"[bold]{part}[/bold]: {found['grade']}, {found['sentence']}")
    console.print(f"{out / 'report.html'}")
