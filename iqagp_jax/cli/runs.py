"""Replicas of a model, and their trajectories."""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import typer

from iqagp_jax.cli.console import MOST, console, only_with, output_file, table, then, track

UNSOUND = 3
"""Exit status of a run that cannot be believed, where that was asked for."""

LARGE = 3000
"""Observations whose covariance is factored in seconds."""

FAILURES_SHOWN = 20

Strict = Annotated[
    bool, typer.Option("--strict", help="Exit with status 3 where a run cannot be believed: where a warning tells so.")
]
ThermostatName = Literal["nose-hoover", "langevin"]
PrecisionName = Literal["float64", "float32"]


def simulate(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Model file.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; where it holds this run already, it goes on.")],
    temperature: Annotated[list[float], typer.Option(help="K; repeat it to spread the replicas over several.")] = [500.0],
    replicas: Annotated[int, typer.Option(min=1, max=MOST, help="Number of replicas.")] = 50,
    time: Annotated[float, typer.Option(help="Length of each run in ps; a finished run can be made longer.")] = 10.0,
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
    precision: Annotated[
        PrecisionName, typer.Option(help="Of the arithmetic within the model; float32 for exploration.")
    ] = "float64",
    max_uncertainty: Annotated[
        float | None, typer.Option(help="Stop a replica whose energy has a larger standard deviation, kcal/mol.")
    ] = None,
    uncertainty_interval: Annotated[float, typer.Option(help="Time between two looks at it in fs.")] = 5.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Use so many cores only, each for its share of the replicas.")
    ] = None,
    distributed: Annotated[
        bool,
        typer.Option("--distributed", help="One of several processes, started by srun or mpirun, that share the replicas."),
    ] = False,
    momenta: Annotated[
        bool, typer.Option("--momenta", help="Keep momenta in every frame, for exports with velocities; twice the disk.")
    ] = False,
    keep_compiled: Annotated[
        bool, typer.Option("--keep-compiled", help="Keep compiled programs in your cache folder: the next run starts sooner.")
    ] = False,
    strict: Strict = False,
):
    """Run many replicas of the molecule at constant temperature and report which of them broke.

    Stopped or killed, the same command goes on where it was, with the very numbers of a run that was not.
    """
    import jax
    import numpy as np

    from iqagp_jax.data.extxyz import load_dataset
    from iqagp_jax.dynamics.ensembles import Langevin, NoseHoover
    from iqagp_jax.dynamics.folder import look
    from iqagp_jax.dynamics.run import UncertaintyLimit
    from iqagp_jax.dynamics.run import simulate as drive
    from iqagp_jax.dynamics.starts import at_rest, starts
    from iqagp_jax.machine import devices
    from iqagp_jax.modelfile import load_model
    from iqagp_jax.potential import rounding_error
    from iqagp_jax.units import KCAL_MOL

    only_with(
        context,
        dataset=("dataset" in start, "--start dataset"),
        displacement=("displaced" in start, "--start displaced"),
        stretch=("stretched" in start, "--start stretched"),
        thermostat_time=(thermostat == "nose-hoover", "--thermostat nose-hoover"),
        friction=(thermostat == "langevin", "--thermostat langevin"),
        uncertainty_interval=(max_uncertainty is not None, "--max-uncertainty"),
    )
    look(out)
    devices.use_cores(threads)
    if distributed:
        jax.distributed.initialize()
    if keep_compiled:
        devices.keep_compiled()
    kinds = [start[k % len(start)] for k in range(replicas)]
    # The kinds of start take turns first, so that every temperature gets each of them.
    temperatures = np.array([temperature[k // len(start) % len(temperature)] for k in range(replicas)])
    loaded = load_model(model)
    data = load_dataset(dataset) if dataset else None
    limit = None
    if max_uncertainty is not None:
        limit = UncertaintyLimit(variance_told(loaded, model), max_uncertainty * KCAL_MOL, uncertainty_interval)
    rest = at_rest(loaded)
    begin = starts(loaded, kinds, data=data, displacement=displacement, stretch=stretch, seed=seed, rest=rest)
    if precision == "float32":
        energy, force = rounding_error(loaded, begin, precision)
        console.print(f"float32: errors up to {1000 * energy:.2g} meV and {1000 * force:.2g} meV/Å at the starts")
    run = drive(
        loaded,
        rest.system,
        begin,
        out,
        temperature=temperatures,
        time=time,
        timestep=timestep,
        thermostat=NoseHoover(thermostat_time) if thermostat == "nose-hoover" else Langevin(friction),
        seed=seed,
        frame_interval=frame_interval,
        uncertainty_limit=limit,
        kinds=kinds,
        dtype=precision,
        model={"path": str(model.resolve()), "sha256": hashlib.sha256(model.read_bytes()).hexdigest()},
        momenta=momenta,
    )
    print_replicas(run)
    draw_replicas(run, out)
    then(f"iqagp robustness {out} --out {out}-verdict --reference {reference_name(loaded)}")
    if strict and run.concerns:
        raise typer.Exit(UNSOUND)


def variance_told(loaded, model):
    """The variance of a model's energy as a function of positions, which tells what it waits for when first called."""
    from functools import cache

    import numpy as np

    from iqagp_jax.machine.progress import in_words
    from iqagp_jax.potential import uncertainty

    def unknown():
        return ValueError(
            f"expected a model that knows the variance of its energy for --max-uncertainty, found none in {model}; leave the"
            " option out"
        )

    known = uncertainty(loaded)
    if known is None:
        raise unknown()

    @cache
    def prepared():
        observed = getattr(loaded, "observed", None)
        size = 0 if observed is None else np.count_nonzero(observed)
        if size > LARGE:
            console.print(f"uncertainty: factoring the covariance of {size} observations, {8 * size**2 / 2**30:.1f} GiB ...")
            console.print(f"{in_words(loaded.seconds_to_know())}; Ctrl-C is safe")
        if known.energy is None:
            raise unknown()
        return known.energy

    return lambda positions: prepared()(positions)


def reference_name(loaded):
    """The reference for `iqagp robustness` that can label what a model learned, as far as it tells."""
    level = getattr(getattr(loaded, "made_by", None), "level", None)
    method = getattr(level, "method", "")
    return "xtb" if method == "GFN2-xTB" else "dft" if method else "none"


def print_replicas(run):
    """Table of survival, temperature and energy, a line for each kind of start and temperature, and one for all."""
    import numpy as np

    from iqagp_jax.units import KCAL_MOL

    means = run.mean_temperatures(0.5)
    energies = (run.energies - np.nanmin(run.energies)) / KCAL_MOL
    later = energies[len(energies) // 2 :]

    def row(name, target, chosen):
        heat, energy = (x[np.isfinite(x)] for x in (means[chosen], later[:, chosen]))
        return (
            *(name, target, f"{run.survived[chosen].sum()}/{len(chosen)}"),
            f"{heat.mean():.0f}" if heat.size else "-",
            f"{np.median(energy):.1f}" if energy.size else "-",
            f"{np.nanmax(energies[:, chosen]):.1f}" if np.isfinite(energies[:, chosen]).any() else "-",
        )

    rows = [row(kind, f"{target:g}", run.group(target, kind)) for target, kind in run.groups]
    if len(rows) > 1:
        rows.append(row("all", "", np.arange(len(run.survived))))
    table(
        f"replicas, {run.times[-1] / 1000:g} ps; K and kcal/mol, means over the second half",
        ["start", "K", "alive", "mean K", "median E", "max E"],
        rows,
    )
    failed = np.flatnonzero(~run.survived)
    if len(failed):
        shown = [(int(k), run.kinds[k], f"{run.target_temperatures[k]:g}", run.failure_reasons[k]) for k in failed]
        table("failed replicas", ["replica", "start", "K", "reason"], shown[:FAILURES_SHOWN])
    if len(failed) > FAILURES_SHOWN:
        console.print(f"and {len(failed) - FAILURES_SHOWN} more, in {run.directory / 'failures.extxyz'}")
    drifts = 1000 * run.energy_drifts
    if np.isfinite(drifts).any():
        worst = drifts[np.nanargmax(np.abs(drifts))]
        console.print(f"drift of the conserved energy: {np.nanmedian(drifts):.2g} meV/ps in the median, {worst:.2g} at worst")
    console.print(f"{run.ms_per_step_per_replica:.3f} ms per step and replica; trajectory in {run.directory}")


def draw_replicas(run, folder):
    """Pictures of a run: temperature and energy against time, at most 2000 frames of it, and survival by kind of start."""
    from iqagp_jax import plots

    thinned = slice(None, None, len(run.times) // 2000 + 1)
    series = (run.times[thinned], run.temperatures[thinned], run.energies[thinned])
    plots.temperature_and_energy(*series, run.target_temperatures).savefig(folder / "temperature-energy.png")
    plots.survival(run.times, run.failure_times, run.kinds).savefig(folder / "survival.png")


def bench(
    atoms: Annotated[list[int], typer.Option(min=2, max=10_000, help="Atoms of the synthetic molecules; repeatable.")] = [19],
    train: Annotated[list[int], typer.Option(min=2, max=100_000, help="Training points; repeatable.")] = [1000],
    replicas: Annotated[list[int], typer.Option(min=1, max=MOST, help="Replicas; repeatable.")] = [1, 100],
    float32: Annotated[bool, typer.Option(help="Also in float32.")] = True,
    joint: Annotated[
        bool, typer.Option("--joint", "--forces", help="Models of energies and forces on inverse distances, not of energies.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Use so many cores only.")] = None,
    peers: Annotated[bool, typer.Option(help="Also time other programs that are installed.")] = True,
    peer: Annotated[list[str], typer.Option(help="An ASE calculator, by name or as module:Class; repeatable.")] = [],
    dft: Annotated[bool, typer.Option("--dft", help="Also time the reference method, for scale.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
):
    """Time steps of dynamics on this machine against the floor that its own arithmetic sets, and other programs beside them."""
    import itertools
    import json

    from iqagp_jax import bench as benchmark
    from iqagp_jax.machine.devices import use_cores

    json_file = json_file and output_file(json_file)
    use_cores(threads)
    features = "inverse-distances" if joint else "alf"
    sizes = itertools.product(atoms, train, ["float64", "float32"] if float32 else ["float64"], replicas)
    cases = [benchmark.Case(n_atoms, n, count, name, features, joint) for n_atoms, n, name, count in sizes]
    report = benchmark.run(cases, peer, peers, dft, lambda cases: track(cases, "timing"))
    if json_file:
        json_file.write_text(json.dumps(report, indent=1))
    print_bench(report)
    then("iqagp simulate MODEL --out RUN --replicas N, with as many replicas as were fast")


def print_bench(report):
    """Tables of what `bench.run` found."""
    cores = f"{report['machine']['cpus']} cores, {len(report['machine']['devices'])} devices"
    peaks = [(name, peak["gflops"], peak["gexp"]) for name, peak in report["peaks"].items()]
    table(f"this machine, {cores}", ["precision", "matrix product, GFLOP/s", "exponential, 1e9/s"], peaks)
    header = ["atoms", "points", "replicas", "bits", "µs", "spread", "floor", "share", "GiB"]
    rows = [
        (
            *(row["case"][name] for name in ("atoms", "train", "replicas")),
            row["case"]["dtype"].removeprefix("float"),
            1000 * row["ms"],
            f"{(row['ms_greatest'] - row['ms_least']) / row['ms']:.0%}",
            1000 * row["floor_ms"],
            f"{row['share_of_floor']:.0%}",
            round(row["memory_gib"], 2),
        )
        for row in report["rows"]
    ]
    table("NVT dynamics, microseconds a step and replica", header, rows)
    for found in report["float32_errors"]:
        energy, force = 1000 * found["energy_eV"], 1000 * found["force_eV_angstrom"]
        console.print(f"float32, {found['case']['atoms']} atoms: errors up to {energy:.2g} meV, {force:.2g} meV/Å")
    if report["peers"]:
        rows = [
            (p["name"], p["replicas"], 1000 * p["ms"], f"{(p['ms_greatest'] - p['ms_least']) / p['ms']:.0%}")
            for p in report["peers"]
        ]
        table("energy and forces of malondialdehyde, microseconds a geometry", ["program", "at a time", "µs", "spread"], rows)


def export(
    directory: Annotated[Path, typer.Argument(help="Folder of a trajectory.")],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help=".extxyz (ASE, OVITO), .h5md or .h5 (H5MD: MDAnalysis, znh5md), .trr, .dcd or .xtc (MDAnalysis, mdtraj).",
        ),
    ],
    replica: Annotated[int | None, typer.Option(min=0, help="Export one replica only.")] = None,
    each: Annotated[bool, typer.Option("--each", help="One file a replica: NAME-0000 and following.")] = False,
    forces: Annotated[bool, typer.Option(help="Make forces by the model of the run, where the file holds them.")] = True,
    model: Annotated[Path | None, typer.Option(help="That model's file, where the run does not name it.")] = None,
):
    """Write a trajectory for other programs: times, positions, velocities, forces, energies, temperatures.

    What a kind of file cannot hold is told. Velocities are there if `iqagp simulate --momenta` kept them. All but .extxyz get a
    topology beside them: a PDB file of the same name.
    """
    from iqagp_jax.dynamics.folder import read_description
    from iqagp_jax.dynamics.record import system_told
    from iqagp_jax.dynamics.trajectory import load_trajectory
    from iqagp_jax.formats import trajectories

    trajectory, description, target = load_trajectory(directory), read_description(directory) or {}, output_file(output)
    system = system_told(description) if description else None
    trajectories.chosen(trajectory, target, replica, each)
    known = None
    if forces and trajectories.holds_forces(target):
        known = forces_told(directory, description, trajectory, system, model)
    written = trajectories.export(trajectory, target, replica, each=each, system=system, forces=known)
    for sentence in trajectories.left_out(trajectory, target, replica, each):
        console.print(sentence)
    if target.suffix != ".extxyz":
        console.print(f"topology in {target.with_suffix('.pdb')}")
    console.print(f"{written} frames in {target.with_stem(f'{target.stem}-NNNN') if each else output}")
    then(f"iqagp robustness {directory} --out {directory}-verdict --reference none")


def forces_told(directory, description, trajectory, system, model):
    """Forces at the frames by the model of a run; None, and why, where the run does not name it or it is another one by now."""
    from iqagp_jax.dynamics.forces import forces_at_frames
    from iqagp_jax.modelfile import load_model

    if model is None:
        try:
            model = model_of(description, directory, None)
        except ValueError as error:
            console.print(f"no forces: {error}")
            return None
    precision = description.get("precision", "float64")
    return forces_at_frames(load_model(model), trajectory, system, precision)


def model_of(description, directory, path):
    """The model file of a run: the one given, or the one that its description names."""
    if path:
        return path
    told = description.get("model")
    if told is None:
        raise ValueError(f"expected a run that names its model, found none in {directory}; give the file by --model")
    path = Path(told["path"])
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != told["sha256"]:
        found = "another file" if path.is_file() else "no file"
        raise ValueError(f"expected the model that drove the run in {directory}, found {found} at {path}; name it by --model")
    return path
