"""The verdict on a model."""

import json
import os
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from iqagp_jax.cli.console import MOST, console, only_with, output_folder, table, then, track
from iqagp_jax.cli.models import EnergyKey, ForcesKey
from iqagp_jax.cli.runs import UNSOUND, Strict, model_of

ReferenceName = Literal["xtb", "dft", "none"]


Temperatures = Annotated[list[float], typer.Option("--temperature", help="K; repeatable.")]
Starts = Annotated[
    list[str], typer.Option("--start", help="Kinds of start: equilibrium, displaced, stretched, basins; repeatable.")
]
Minima = Annotated[
    Path | None,
    typer.Option(help="XYZ or extxyz file of minima, the lowest first: starts in basins begin there, in turn."),
]
Replicas = Annotated[int, typer.Option(min=1, max=MOST, help="Replicas for every temperature and kind of start.")]
Time = Annotated[float, typer.Option(help="Length of each run in ps.")]
Timestep = Annotated[float, typer.Option(help="Integration step in fs.")]
FrameInterval = Annotated[float, typer.Option(help="Time between frames in fs, at which uncertainty is looked at.")]
Displacement = Annotated[float, typer.Option(help="Largest displacement per coordinate of displaced starts, Å.")]
Stretch = Annotated[float, typer.Option(help="Length of the X-H bond of stretched starts, Å.")]
Frames = Annotated[int, typer.Option(min=1, max=MOST, help="Frames relabelled for every temperature and kind of start.")]
Charge = Annotated[int | None, typer.Option(help="Total charge, for the reference. Default: the model's.")]
Spin = Annotated[int | None, typer.Option(min=0, help="Number of unpaired electrons, for the reference. Default: the model's.")]
ScanPoints = Annotated[
    int | None,
    typer.Option(min=0, help="Geometries of scans labelled at most; 0 for no scans. Default: all by xtb, none by dft."),
]
Workers = Annotated[int | None, typer.Option(min=1, max=10_000, help="Processes of the reference; one per core by default.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")]

OUTCOME = ("survived", "right", "median |dE|", "95%", "max")

OF_NEW_RUNS = (
    *("temperature", "start", "replicas", "time", "timestep", "frame_interval", "displacement", "stretch"),
    *("reference_replicas", "reference_time", "minima"),
)
"""Options that a run which is there has chosen."""

TEMPERATURES = [300.0, 1000.0]
KINDS = ["equilibrium", "displaced", "stretched"]


def robustness(
    context: typer.Context,
    judged: Annotated[Path, typer.Argument(metavar="MODEL|RUN", help="Model file, or a folder that `iqagp simulate` filled.")],
    out: Annotated[Path, typer.Option(help="Folder of the verdict; the same command goes on with it.")],
    reference: Annotated[ReferenceName, typer.Option(help="What the model is held to: the method it was trained on, or none.")],
    temperature: Temperatures = TEMPERATURES,
    start: Starts = KINDS,
    replicas: Replicas = 10,
    time: Time = 10.0,
    timestep: Timestep = 0.5,
    frame_interval: FrameInterval = 5.0,
    displacement: Displacement = 0.25,
    stretch: Stretch = 1.5,
    frames: Frames = 50,
    minima: Minima = None,
    scan_points: ScanPoints = None,
    reference_replicas: Annotated[int, typer.Option(min=0, max=MOST, help="Replicas of xtb's own dynamics; 0 for none.")] = 10,
    reference_time: Annotated[float, typer.Option(help="Their length in ps.")] = 10.0,
    charge: Charge = None,
    spin: Spin = None,
    workers: Workers = None,
    seed: Seed = 0,
    model: Annotated[Path | None, typer.Option(help="Model file of a RUN, where the run does not name it.")] = None,
    strict: Strict = False,
):
    """Judge a model: who survives, how wrong it is, whether it goes where the reference goes, and whether it warns.

    Of a MODEL replicas are run, of a RUN those that it holds are judged. Writes report.html, robustness.json and pictures. With
    dft the labels are a campaign, which may be stopped.
    """
    from iqagp_jax.dynamics.record import Run
    from iqagp_jax.machine import devices
    from iqagp_jax.modelfile import load_model
    from iqagp_jax.verdict import Protocol, judge, judge_run
    from iqagp_jax.verdict.certified import BLIND_SPOT

    new = not judged.is_dir()
    only_with(context, model=(not new, "the folder of a run"), **dict.fromkeys(OF_NEW_RUNS, (new, "a model file")))
    driven = reference == "xtb" and "equilibrium" in start, "--reference xtb and --start equilibrium"
    if new:
        only_with(context, reference_replicas=driven, reference_time=driven, **starts_used(start))
    only_with(context, scan_points=(reference != "none", "--reference xtb or dft"))
    scan_points = scanned(scan_points, reference, out)
    devices.use_cores()
    run = None if new else Run.open(judged)
    path = model_of(run.description, judged, model) if run else judged
    loaded, out = load_model(path), output_folder(out)
    with held_to(reference, loaded, out / "labels", charge, spin, workers) as teacher:
        if run:
            verdict = judge_run(loaded, run, out, teacher, frames, seed, path.name, track, scan_points)
        else:
            protocol = Protocol(
                temperatures=tuple(temperature),
                kinds=tuple(start),
                replicas=replicas,
                time=time,
                timestep=timestep,
                frame_interval=frame_interval,
                displacement=displacement,
                stretch=stretch,
                frames=frames,
                reference_replicas=reference_replicas if driven[0] else 0,
                reference_time=reference_time,
                seed=seed,
                scan_points=scan_points,
                minima=minima_of(minima, loaded.species),
            )
            verdict = judge(loaded, out, teacher, protocol, path.name, track, say=console.print)
    table(
        f"{judged}, {verdict.protocol.time:g} ps, held to {verdict.reference}; errors in kcal/mol of {frames} frames or more"
        " a row",
        ["start", "K", *OUTCOME],
        [(row["start"], f"{row['temperature_K']:g}", *outcome(row)) for row in verdict.as_dict()["rows"]],
    )
    for name, part in verdict.parts():
        console.print(f"[bold]{name}[/bold]: {part.grade}, {part.sentence}")
    for certified in verdict.certified:
        console.print(f"[bold]certified[/bold]: {certified.sentence}")
    if verdict.certified:
        console.print(BLIND_SPOT)
    console.print(f"{out / 'report.html'}")
    then(after_verdict(verdict, path, out, reference))
    if strict and verdict.concerns:
        raise typer.Exit(UNSOUND)


def after_verdict(verdict, model, out, reference):
    """What to type next: teach a model what it lacks where it can be taught, or look."""
    taught = reference != "none" and not (verdict.survival.flawless and verdict.truth.flawless)
    if taught and not verdict.concerns:
        return f"iqagp active {model} DATASET --out {out}-taught --reference {reference}"
    return f"xdg-open {out / 'report.html'}"


def active(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Model file, trained on forces.")],
    dataset: Annotated[str, typer.Argument(help="The dataset it was trained on: embedded, or an extxyz file.")],
    out: Annotated[Path, typer.Option(help="Folder of all rounds; the same command goes on with it.")],
    reference: Annotated[Literal["xtb", "dft"], typer.Option(help="The method it was trained on, which labels and judges.")],
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="At most so many times is the model taught.")] = 5,
    per_round: Annotated[int, typer.Option(min=1, max=MOST, help="Geometries labelled each time.")] = 50,
    max_uncertainty: Annotated[
        float, typer.Option(help="Frames whose energies have a larger standard deviation are not labelled, kcal/mol.")
    ] = 10.0,
    energy_window: Annotated[
        float, typer.Option(help="Labels so far above the lowest training energy are dropped, kcal/mol.")
    ] = 150.0,
    truth_last: Annotated[
        bool, typer.Option("--truth-last", help="Relabel frames only once all replicas survive: for an expensive reference.")
    ] = False,
    refit: Annotated[
        bool,
        typer.Option("--refit/--no-refit", help="After every round fit prior mean and hyperparameters again, or keep them."),
    ] = True,
    temperature: Temperatures = TEMPERATURES,
    start: Starts = KINDS,
    replicas: Replicas = 10,
    time: Time = 10.0,
    timestep: Timestep = 0.5,
    frame_interval: FrameInterval = 5.0,
    displacement: Displacement = 0.25,
    stretch: Stretch = 1.5,
    frames: Frames = 50,
    minima: Minima = None,
    scan_points: ScanPoints = None,
    charge: Charge = None,
    spin: Spin = None,
    workers: Workers = None,
    seed: Seed = 0,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    strict: Strict = False,
):
    """Judge a model and teach it what it knows least of its own runs, in turn, until it survives and is right.

    Writes a verdict for every round, the grown dataset, the last model and a picture of the rounds.
    """
    from iqagp_jax.active import learn
    from iqagp_jax.data.extxyz import load_dataset
    from iqagp_jax.machine import devices
    from iqagp_jax.modelfile import load_model
    from iqagp_jax.units import KCAL_MOL
    from iqagp_jax.verdict import Protocol

    only_with(context, **starts_used(start))
    devices.use_cores()
    loaded, out, data = load_model(model), output_folder(out), load_dataset(dataset, energy_key, forces_key)
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
        0,
        seed=seed,
        scan_points=scanned(scan_points, reference, out),
        minima=minima_of(minima, loaded.species),
    )
    with held_to(reference, loaded, out / "labels", charge, spin, workers) as teacher:
        limits = (max_uncertainty * KCAL_MOL, energy_window * KCAL_MOL)
        _, told = learn(loaded, data, out, teacher, protocol, rounds, per_round, *limits, truth_last, refit, track)
    table(
        f"{out / 'model.safetensors'}, held to {reference}; errors in kcal/mol, of the worst temperature and kind of start",
        ["round", "geometries", *OUTCOME],
        [(row["round"], row["geometries"], *outcome(row)) for row in told],
    )
    then(f"iqagp simulate {out / 'model.safetensors'} --out {out / 'run'}")
    if strict and told[-1]["concerns"]:
        raise typer.Exit(UNSOUND)


def starts_used(start):
    """For `only_with`: the options that distorted starts alone need."""
    return {
        "displacement": ("displaced" in start, "--start displaced"),
        "stretch": ("stretched" in start, "--start stretched"),
        "minima": ("basins" in start, "--start basins"),
    }


def scanned(scan_points, reference, out):
    """How many geometries of scans are labelled at most, where nothing was said all by xtb and none by others.

    None where the folder ``out`` was begun by a version that made no scans: it goes on as it was.
    """
    from iqagp_jax.verdict.shape import SCANNED

    if scan_points is not None:
        return scan_points
    settings = out / "settings.json"
    older = settings.exists() and "scan_points" not in json.loads(settings.read_text())
    return SCANNED if reference == "xtb" and not older else 0


def minima_of(path, species):
    """Positions of a file's geometries of these atoms, as a `Protocol` holds them; none of no file."""
    from iqagp_jax.labels.plan import geometries_of
    from iqagp_jax.verdict.replicas import as_minima

    return () if path is None else as_minima(geometries_of(path, species))


def outcome(row):
    """The cells under `OUTCOME`, from a row of a verdict or of a round."""
    errors = ("-" if row[key] is None else row[key] for key in ("right", "de_median", "de_p95", "de_max"))
    return f"{row['survived']}/{row['replicas']}", *errors


@contextmanager
def held_to(name, model, folder, charge, spin, workers):
    """The reference of a model, with processes of its own where it has use for them."""
    from iqagp_jax.labels.executors import Processes
    from iqagp_jax.references.choose import reference_of

    workers = workers or os.cpu_count() or 1
    alone = name == "none" or (name == "xtb" and workers == 1)
    with nullcontext() if alone else Processes(workers) as pool:
        yield reference_of(name, model, folder, charge, spin, pool, workers)
