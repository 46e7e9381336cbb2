"""From labelled geometries to models, and how good they are."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from iqagp_jax.cli.console import PartitionName, console, only_with, output_file, output_folder, table, track

# Spelled out because type checkers and typer read them; a test holds them to the registries they repeat.
FeatureName = Literal["inverse-distances", "alf"]
KernelName = Literal["matern52", "matern92", "rbf", "rbf-periodic"]
SolverName = Literal["cholesky", "cg"]
LossName = Literal["concentrated", "marginal", "hold-out"]
OptimiserName = Literal["lbfgs", "adam"]
EnergyKey = Annotated[str | None, typer.Option(help="Name of the energy (eV) in the file; REF_energy, else energy.")]
ForcesKey = Annotated[str | None, typer.Option(help="Name of the forces (eV/Å) in the file; REF_forces, else forces.")]
MEANS_TO_COMPARE = ("min", "mf1", "mf5", "mf1+born-mayer", "mf5+born-mayer", "mf1+zbl", "mf5+zbl")
CONVENTION_HELP = "How .model files are read: wrap, half-periodic, relative-noise, gls-mean; repeatable. The error says which."


def train(
    dataset: Annotated[str, typer.Argument(help="Embedded dataset (malondialdehyde or -qtaim) or an extxyz file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Model file, .safetensors.")],
    features: Annotated[FeatureName, typer.Option(help="What an atom sees of the others.")] = "inverse-distances",
    kernel: Annotated[
        KernelName | None, typer.Option(help="Default: matern52, with forces matern92, for alf rbf-periodic.")
    ] = None,
    prior_mean: Annotated[
        str | None,
        typer.Option(
            help="Energy far from the data: min, mf1 to mf5, zero, born-mayer, zbl; + joins them, see `means.py`. Default:"
            " mf5+born-mayer, for alf mf5."
        ),
    ] = None,
    compare_means: Annotated[
        bool, typer.Option("--compare-means", help="First print the log likelihood of prior means, the chosen one among them.")
    ] = False,
    n_train: Annotated[
        int | None,
        typer.Option(help="Use the first so many training geometries. Default: all, with forces up to 15,000 numbers."),
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option(
            help="Noise variance, a share of the signal's; one a target: energy=1e-8,forces=1e-6. Default: see `fit_gp`."
        ),
    ] = None,
    max_steps: Annotated[int, typer.Option(min=0, help="Steps of the optimiser at most.")] = 40,
    n_hyper: Annotated[int | None, typer.Option(min=2, help="Fit hyperparameters on the first so many geometries.")] = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="With alf: add mirror images of the training geometries.")] = False,
    loss: Annotated[LossName, typer.Option(help="What is optimised; `hyperparameters.py` has the formulas.")] = "concentrated",
    optimiser: Annotated[OptimiserName, typer.Option(help="Optimiser, from optax.")] = "lbfgs",
    starts: Annotated[int, typer.Option(min=0, help="Random starts; 0: one start at a likely multiple of the spread.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random starts.")] = 0,
    transfer: Annotated[int | None, typer.Option(help="Fit on so many geometries first, then relax on all.")] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            help="What is learned, with commas between: atomic_energies, energy, forces. Default: atomic energies (where there"
            " are none, energies) and forces, if the dataset has them."
        ),
    ] = None,
    partition: Annotated[PartitionName | None, typer.Option(help="Another partition's atomic energies of the dataset.")] = None,
    symmetry: Annotated[
        bool | None,
        typer.Option(
            "--symmetry/--no-symmetry",
            help="Equal energies for permutations of equal atoms: methyl hydrogens, tautomers. Default: where forces or"
            " energies of the molecule are learned from inverse distances.",
        ),
    ] = None,
    solver: Annotated[SolverName, typer.Option(help="cg: more energies and forces than fit into memory.")] = "cholesky",
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
):
    """Fit one Gaussian process per atom to atomic energies, energies or forces; hyperparameters by likelihood."""
    from iqagp_jax.data.extxyz import load_dataset
    from iqagp_jax.families.gp.fit import DEFAULT_MEAN, default_targets, fit_gp
    from iqagp_jax.modelfile import save_model
    from iqagp_jax.plots import likelihood_trace
    from iqagp_jax.validation import atom_labels

    output, prior_mean = output_file(output), DEFAULT_MEAN[features] if prior_mean is None else prior_mean
    data = load_dataset(dataset, energy_key, forces_key)
    data = data.with_partition(partition) if partition else data
    learned = default_targets(data, solver) if targets is None else tuple(targets.split(","))
    if partition and "atomic_energies" not in learned:
        raise ValueError(f"expected --partition where atomic energies are learned, found {' and '.join(learned)}; leave it out")
    options = {
        "features": features,
        "kernel": kernel,
        "n_train": n_train,
        "noise": noise and shares(noise),
        "max_steps": max_steps,
        "mirror": mirror,
        "loss": loss,
        "optimiser": optimiser,
        "n_starts": starts,
        "seed": seed,
        "targets": learned,
        "symmetry": symmetry,
        "solver": solver,
    }
    if compare_means:
        print_means(data, prior_mean, options)
    model = fit_gp(
        data,
        prior_mean=prior_mean,
        n_hyper=n_hyper,
        n_seed=transfer,
        progress=lambda steps: track(steps, "hyperparameters"),
        **options,
    )
    save_model(model, output)
    likelihood_trace(model).savefig(output.with_suffix(".trace.png"))
    table(
        f"{output}: {' and '.join(model.targets)} of {model.n_train} geometries, prior mean {prior_mean}",
        ["atom", "signal, eV"],
        [
            (name, float(variance**0.5))
            for name, variance in zip(atom_labels(model.species), model.signal_variance, strict=True)
        ],
    )


def shares(noise):
    """Parse a noise: a number, or target=number with commas between."""
    try:
        if "=" not in noise:
            return float(noise)
        return {target: float(share) for target, share in (part.split("=") for part in noise.split(","))}
    except ValueError:
        raise typer.BadParameter(f"expected --noise as 1e-8 or energy=1e-8,forces=1e-6, found {noise!r}") from None


def print_means(data, chosen, options):
    """Table of the log likelihood per data point of prior means, and a warning where one varies sharply amid the data."""
    from iqagp_jax.families.gp import fit

    names = dict.fromkeys((*MEANS_TO_COMPARE, chosen))
    likelihoods = fit.compare_means(data, names, progress=lambda names: track(list(names), "prior means"), **options)
    rows = [(name + " (chosen)" * (name == chosen), f"{value:.3f}") for name, value in likelihoods.items()]
    table(f"prior means, at most {fit.COMPARED} training geometries", ["prior mean", "ln L per point"], rows)
    for name in fit.too_sharp(likelihoods):
        console.print(
            f"[bold]warning[/bold]: {name} lies more than {fit.SHARP:g} below a constant: it varies sharply where the data"
            " are, and the model pays for it with its forces; choose another"
        )


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

    from iqagp_jax.families.fflux import files as ferebus
    from iqagp_jax.families.fflux.fit import fit_atom
    from iqagp_jax.validation import Errors

    output = output_file(output)
    unseen = validation_set and ferebus.property_of(validation_set, property)
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
    if unseen:
        x, y = unseen
        error = Errors.of(np.asarray(ferebus.predict(model, x)) - y)
        table(f"{validation_set}: {len(y)} points", ["error of", "MAE", "RMSE", "max"], [(property, *vars(error).values())])


def convert(
    context: typer.Context,
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
    from iqagp_jax.families.fflux import files as ferebus
    from iqagp_jax.modelfile import load_model, save_model

    only_with(
        context,
        property=(source.is_dir(), "a folder of .model files"),
        system=(not source.is_dir(), "a model of ours"),
    )
    if source.is_dir():
        model = ferebus.read_folder(source, property, tuple(convention or ()), accept_weights)
        save_model(model, output_file(output))
        console.print(f"{output}: {property} of {' '.join(model.species)}, up to {model.n_train} training points an atom")
    else:
        if convention or accept_weights:
            raise ValueError("expected --convention and --accept-weights with a folder of .model files; leave them out")
        paths = ferebus.write_folder(load_model(source), output_folder(output), system)
        console.print(f"{len(paths)} files in {output}, {paths[0].name} first")


def validate(
    model: Annotated[Path, typer.Argument(help="Model file.")],
    dataset: Annotated[str, typer.Argument(help="Embedded dataset or an extxyz file.")],
    split: Annotated[list[str] | None, typer.Option(help="Stored splits to test on; all but train by default.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers to this file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures; the model's by default.")] = None,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
):
    """Errors of a model on labelled geometries it has not seen; energies are compared absolutely."""
    from iqagp_jax.data.extxyz import load_dataset
    from iqagp_jax.modelfile import load_model

    json_file = json_file and output_file(json_file)
    loaded, data = load_model(model), load_dataset(dataset, energy_key, forces_key)
    folder = output_folder(out or model.parent)
    names = split or [name for name in data.splits if name != "train"]
    parts = {name: data.split(name) for name in names} or {"all": data}
    report = {name: validate_split(loaded, part, name, folder, model.stem) for name, part in parts.items()}
    if json_file:
        from iqagp_jax.machine.files import write_atomically

        write_atomically(json_file, json.dumps({name: result.as_dict() for name, result in report.items()}, indent=1))


def validate_split(model, data, name, folder, stem):
    """Validate on one split, print its table and draw its pictures; returns the `Validation`."""
    from iqagp_jax import plots, validation

    predictions = validation.predict(model, data.positions)
    result = validation.validate(model, data, predictions)
    told = {"molecular energy, kcal/mol": result.energy, "forces, kcal/mol/Å": result.forces}
    told |= {f"energy of {atom}, kcal/mol": errors for atom, errors in (result.atomic_energies or {}).items()}
    table(
        f"{name}: {len(data)} geometries, {result.n_train} training points",
        ["error of", "MAE", "RMSE", "max"],
        [(what, *vars(errors).values()) for what, errors in told.items() if errors],
    )
    for what, calibration in (("energy", result.energy_calibration), ("forces", result.force_calibration)):
        if calibration:
            rank = calibration.rank_correlation
            console.print(
                f"predicted uncertainty of the {what}: {100 * calibration.within_one_sigma:.0f}% within 1 sigma (68 expected),"
                f" {100 * calibration.within_two_sigma:.0f}% within 2 (95), rank correlation with the error"
                f" {'unknown' if rank is None else format(rank, '.2f')}"
            )
    plots.s_curve(data, predictions).savefig(folder / f"{stem}-{name}-s-curve.png")
    plots.predicted_against_true(data, predictions).savefig(folder / f"{stem}-{name}-predicted.png")
    return result
