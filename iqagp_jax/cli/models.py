"""From labelled geometries to models, and how good they are."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from iqagp_jax.cli.console import PartitionName, console, only_with, output_file, output_folder, table, then, track
from iqagp_jax.cli.options import of_kind, taking
from iqagp_jax.families.fflux.options import AtomOptions
from iqagp_jax.families.gp.options import GPOptions
from iqagp_jax.families.so3krates.options import SO3kratesOptions
from iqagp_jax.system.elements import check_species
from iqagp_jax.units import KCAL_MOL

Family = Literal["gp", "so3krates"]

EnergyKey = Annotated[str | None, typer.Option(help="Name of the energy (eV) in the file; REF_energy, else energy.")]
ForcesKey = Annotated[str | None, typer.Option(help="Name of the forces (eV/Å) in the file; REF_forces, else forces.")]
MEANS_TO_COMPARE = ("min", "mf1", "mf5", "mf1+born-mayer", "mf5+born-mayer", "mf1+zbl", "mf5+zbl")
CONVENTION_HELP = "How .model files are read: wrap, half-periodic, relative-noise, gls-mean; repeatable. The error says which."


@taking(GPOptions, SO3kratesOptions)
def train(
    context: typer.Context,
    datasets: Annotated[
        list[str],
        typer.Argument(
            help="Embedded dataset or extxyz file; several: levels of theory, the cheapest first, with so3krates molecules."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Model file, .safetensors.")],
    family: Annotated[Family, typer.Option(help="Gaussian processes, or a neural network.")] = "gp",
    base: Annotated[Path | None, typer.Option(help="Model file beneath, to which the difference is learned.")] = None,
    compare_means: Annotated[
        bool, typer.Option("--compare-means", help="First print the log likelihood of prior means, the chosen one among them.")
    ] = False,
    partition: Annotated[PartitionName | None, typer.Option(help="Another partition's atomic energies of the dataset.")] = None,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    **options,
):
    """Fit a model to atomic energies, energies or forces: one Gaussian process per atom, or a network (docs/so3krates.md).

    Of several levels of theory Gaussian processes learn one over the other. Options of the other family are refused.
    """
    from iqagp_jax.data.extxyz import load_dataset

    kinds = {"gp": GPOptions, "so3krates": SO3kratesOptions}
    given = of_kind(context, kinds[family], kinds.values(), options, f"--family {family}")
    of_processes = family == "gp", "--family gp"
    only_with(context, base=of_processes, compare_means=of_processes)
    output = output_file(output)
    data = [load_dataset(name, energy_key, forces_key) for name in datasets]
    if family == "gp":
        train_gp(data, output, GPOptions(**given), base, compare_means, partition)
    else:
        train_so3krates(data, output, given, partition)
    tested = next((name for name, each in zip(reversed(datasets), reversed(data), strict=True) if test_splits(each)), None)
    then(f"iqagp validate {output} {tested or 'TEST.extxyz'}")


def train_gp(levels, output, options, base, compare_means, partition):
    """Fit Gaussian processes to datasets of rising levels of theory, print what was learned, draw the likelihood."""
    from iqagp_jax.modelfile import load_model, save_model
    from iqagp_jax.plots import likelihood_trace

    model: Any = None if base is None else load_model(base)
    check_levels(levels, model)
    if partition:
        levels[-1] = levels[-1].with_partition(partition)
    resolved = resolved_in_turn(levels, options, model)
    if partition and "atomic_energies" not in resolved[-1].learned:
        found = " and ".join(resolved[-1].learned)
        raise ValueError(f"expected --partition where atomic energies are learned, found {found}; leave it out")
    if compare_means:
        if model or levels[1:]:
            raise ValueError("expected --compare-means of one dataset without a base, found more; leave it out")
        print_means(levels[0], resolved[0])
    for data, chosen in zip(levels, resolved, strict=True):
        model = learn(data, chosen, model)
    save_model(model, output)
    likelihood_trace(model).savefig(output.with_suffix(".trace.png"))
    table(
        f"{output}: {' and '.join(model.targets)} of {model.n_train} geometries, prior mean {model.made_by.options.prior_mean}",
        ["atoms", "signal, eV"],
        signals(model),
    )


def train_so3krates(molecules, output, options, partition):
    """Train one network on datasets of molecules, with checkpoints in a folder beside the output; draw how it learned."""
    from iqagp_jax.families.so3krates.train import fit_so3krates
    from iqagp_jax.modelfile import save_model
    from iqagp_jax.plots import learning

    if partition:
        molecules = [data.with_partition(partition) for data in molecules]
    for data in molecules:
        console.print(f"{' '.join(data.species)}: {counted(data.split('train') if 'train' in data.splits else data)}")
    folder = output.with_suffix(".training")
    data = molecules[0] if len(molecules) == 1 else tuple(molecules)
    model = fit_so3krates(data, folder=folder, progress=True, **options)
    save_model(model, output)
    learning(model.trace).savefig(output.with_suffix(".trace.png"))
    best = model.trace[model.trace[:, 3].argmin() if np.isfinite(model.trace[:, 3]).any() else model.trace[:, 2].argmin()]
    table(
        f"{output}: {' and '.join(model.made_by.targets)} of {model.n_train} geometries, best after {best[0]:.0f} steps",
        ["validation error of", "MAE"],
        [("energy, kcal/mol", best[2] / KCAL_MOL), ("forces, kcal/mol/Å", best[3] / KCAL_MOL)],
    )
    console.print(f"{folder} holds the state of the training, for the same command only; delete it to train anew")


def check_levels(levels, base):
    """ValueError, in a sentence, unless datasets are of the same atoms, each of another level than what is beneath."""
    from iqagp_jax.data.level import Level
    from iqagp_jax.system.elements import same_atoms

    known = Level() if base is None or base.made_by is None else base.made_by.level
    for data in levels:
        same_atoms(levels[0].species, data.species, "another dataset")
        if known.method and known.same_energies(data.level):
            raise ValueError(
                f"expected another level of theory than the one beneath, found {known} in both; join datasets of one level"
            )
        known = data.level


def resolved_in_turn(levels, options, base):
    """Options of every level of theory, the first over a base or None; what is wrong with any is told before work begins."""
    from iqagp_jax.validation import learned_atomic_energies

    only_sum, found = None if base is None else not learned_atomic_energies(base), []
    for data in levels:
        found.append(options.resolved(data, only_sum))
        only_sum = "atomic_energies" not in found[-1].learned
    return found


def learn(data, options, base):
    """A model of a dataset over a base, None for none, told beforehand and afterwards."""
    from iqagp_jax.families.gp.fit import fit_gp

    train = data.split("train") if data.splits else data
    over = "" if base is None else ", their difference to the base"
    console.print(f"learning {' and '.join(options.learned)} of {' '.join(data.species)}{over}: {counted(train)}")
    model = fit_gp(data, base=base, progress=lambda steps: track(steps, "hyperparameters"), **vars(options))
    console.print(f"learned from {counted(train[: model.n_train], options.learned)}; {symmetry_of(model)}")
    return model


def signals(model):
    """Rows of what atoms' energies vary by (eV), those that are the same in one."""
    from iqagp_jax.validation import atom_labels

    rows: dict[float, list[str]] = {}
    for name, variance in zip(atom_labels(model.species), model.signal_variance, strict=True):
        rows.setdefault(float(variance**0.5), []).append(name)
    return [("each" if len(rows) == 1 else " ".join(names), signal) for signal, names in rows.items()]


def test_splits(data):
    """Names of the stored splits that are not for training."""
    return [name for name in data.splits if name != "train"]


def counted(data, targets=("atomic_energies", "energy", "forces")):
    """How many geometries of a dataset have which of the labels, in words."""
    having = {target: label_count(getattr(data, target)) for target in targets}
    told = (f"{n} with {target.replace('_', ' ')}" for target, n in having.items() if n)
    return f"{len(data)} geometries, {', '.join(told) or 'none with labels'}"


def label_count(values):
    """How many geometries have a label, whole or in part."""
    return 0 if values is None else int(np.isfinite(values).reshape(len(values), -1).any(1).sum())


def symmetry_of(model):
    """How many permutations of equal atoms a model's energy is the same for, in words."""
    n = model.copies // (2 if model.made_by.options.mirror else 1)
    if model.permutations is not None:
        n = max(n, len(model.permutations))
    if n > 1:
        return f"{n} permutations of equal atoms have the same energy"
    wanted = model.made_by.options.symmetry
    return "no permutation of equal atoms was found" if wanted else "equal atoms are told apart (--symmetry changes that)"


def print_means(data, options):
    """Table of the log likelihood per data point of prior means, and a warning where one varies sharply amid the data."""
    from iqagp_jax.families.gp import compare

    chosen, names = options.prior_mean, dict.fromkeys((*MEANS_TO_COMPARE, options.prior_mean))
    others = {**vars(options), "n_hyper": None, "n_seed": None}
    del others["prior_mean"]
    likelihoods = compare.compare_means(data, names, progress=lambda names: track(list(names), "prior means"), **others)
    rows = [(name + " (chosen)" * (name == chosen), f"{value:.3f}") for name, value in likelihoods.items()]
    table(f"prior means, at most {compare.COMPARED} training geometries", ["prior mean", "ln L per point"], rows)
    for name in compare.too_sharp(likelihoods):
        console.print(
            f"[bold]warning[/bold]: {name} lies more than {compare.SHARP:g} below a constant: it varies sharply where the data"
            " are, and the model pays for it with its forces; choose another"
        )


@taking(AtomOptions, n_starts=1)
def train_atom(
    training_set: Annotated[Path, typer.Argument(help="FEREBUS csv file: features f1, f2, ... and properties.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="FEREBUS .model file.")],
    alf: Annotated[str, typer.Option(help="Atomic local frame: centre, x-axis and xy-plane atom, from 1, as in 1,2,4.")],
    atom: Annotated[str, typer.Option(help="Name of the atom, as in C1.")],
    system: Annotated[str, typer.Option(help="Name of the molecule.")] = "MOLECULE",
    property: Annotated[str, typer.Option(help="Column to learn: iqa, q00, ...")] = "iqa",
    validation_set: Annotated[Path | None, typer.Option(help="Csv file to test the model on.")] = None,
    **options,
):
    """Fit one property of one atom to a FEREBUS training set and write it as a .model file."""
    from iqagp_jax.families.fflux import files as ferebus
    from iqagp_jax.families.fflux.fit import fit_atom
    from iqagp_jax.validation import Errors

    output = output_file(output)
    unseen = validation_set and ferebus.property_of(validation_set, property)
    x, y = ferebus.property_of(training_set, property)
    frame = ferebus.parse_frame(alf, x.shape[1] // 3 + 2)
    check_names(system, atom, frame[0])
    labels = (("name", system), ("atom", atom), ("property", property))
    model, found = fit_atom(x, y, frame, labels, progress=lambda steps: track(steps, "hyperparameters"), **options)
    ferebus.write_model(model, output)
    print_starts(output, options["loss"], model.n_train, found)
    if unseen:
        x, y = unseen
        error = Errors.of(np.asarray(ferebus.predict(model, x)) - y)
        table(f"{validation_set}: {len(y)} points", ["error of", "MAE", "RMSE", "max"], [(property, *vars(error).values())])
    then(f"iqagp convert {output.parent} -o {system.lower()}.safetensors" + f" --property {property}" * (property != "iqa"))


def check_names(system, atom=None, centre=0):
    """ValueError, in a sentence, for names that no .model file can have, and an atom that is not its frame's ``centre``."""
    if not re.fullmatch(r"[^\s/]+", system):
        raise ValueError(f"expected --system as one word that can be in a file's name, found {system!r}")
    if atom is None:
        return
    parts = re.fullmatch(r"([A-Z][a-z]?)(\d+)", atom)
    if not parts or int(parts[2]) != centre + 1:
        raise ValueError(f"expected --atom as an element and the first number of --alf, as in O{centre + 1}, found {atom!r}")
    check_species([parts[1]])


def print_starts(output, loss, n_train, found):
    """Table of what the search found from every start, a concentrated likelihood also as FEREBUS' files have it."""
    from iqagp_jax.families.fflux.fit import by_ferebus

    title, values = f"{output}: {n_train} training points", [float(value) for value in found.values[:, 0]]
    columns = {"marginal": ["ln L"], "concentrated": ["ln L", "ln L by FEREBUS"], "hold-out": ["-ln RMSE"]}[loss]
    rows = [
        (str(k), *(f"{v:.5f}" for v in (value, by_ferebus(value, loss, n_train))[: len(columns)]), int(evaluations))
        for k, (value, evaluations) in enumerate(zip(values, found.evaluations[:, 0], strict=True), 1)
    ]
    table(title, ["start", *columns, "evaluations"], rows)
    if loss == "marginal":
        console.print("ln L: marginal log likelihood at signal variance 1, with its constant, as in FEREBUS' files")
    elif loss == "concentrated":
        left_out = by_ferebus(0.0, loss, n_train)
        console.print(
            f"ln L: log likelihood at the best mean and signal variance, with its constant; FEREBUS' files leave out"
            f" n/2 (1 + ln 2 pi) = {left_out:.5f}"
        )


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
        then(f"iqagp simulate {output} --out run" if property == "iqa" else f"iqagp convert {output} -o {output.stem}-files")
    else:
        if convention or accept_weights:
            raise ValueError("expected --convention and --accept-weights with a folder of .model files; leave them out")
        check_names(system)
        paths = ferebus.write_folder(load_model(source), output_folder(output), system)
        console.print(f"{len(paths)} files in {output}, {paths[0].name} first")
        then(f"iqagp convert {output} -o again.safetensors")


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
    names = split or test_splits(data)
    parts = {name: data.split(name) for name in names} or {"all": data}
    report = {name: validate_split(loaded, part, name, folder, model.stem) for name, part in parts.items()}
    if json_file:
        from iqagp_jax.machine.files import write_atomically

        write_atomically(json_file, json.dumps({name: result.as_dict() for name, result in report.items()}, indent=1))
    then(f"iqagp simulate {model} --out RUN")


def validate_split(model, data, name, folder, stem):
    """Validate on one split, print its table and draw its pictures; returns the `Validation`."""
    from iqagp_jax import plots, validation
    from iqagp_jax.data.scale import check_units

    validation.check_atoms(model, data)
    data = validation.unseen(model, data)
    check_units(data)
    predictions = validation.predict(model, data.positions, data, lambda steps: track(steps, f"predicting {name}"))
    result = validation.compared(model, data, predictions)
    told = {"molecular energy, kcal/mol": result.energy, "forces, kcal/mol/Å": result.forces}
    told |= {f"energy of {atom}, kcal/mol": errors for atom, errors in (result.atomic_energies or {}).items()}
    table(
        f"{name}: {counted(data)}" + ("" if result.n_train is None else f", {result.n_train} training points"),
        ["error of", "MAE", "RMSE", "max"],
        [(what, *vars(errors).values()) for what, errors in told.items() if errors],
    )
    by_target = (("energy", "kcal/mol", result.energy_calibration), ("forces", "kcal/mol/Å", result.force_calibration))
    for what, unit, calibration in by_target:
        if calibration:
            rank = calibration.rank_correlation
            console.print(
                f"predicted uncertainty of the {what}: {100 * calibration.within_one_sigma:.0f}% within 1 sigma (68 expected),"
                f" {100 * calibration.within_two_sigma:.0f}% within 2 (95), rank correlation with the error"
                f" {'unknown' if rank is None else format(rank, '.2f')}"
            )
            table(
                f"{what} by predicted sigma, {unit}",
                ["sigma", "MAE", "beyond 3 sigma"],
                [(f"{b.sigma:.3g}", f"{b.mae:.3g}", f"{100 * b.beyond_three_sigma:.0f}%") for b in calibration.bins],
            )
    plots.s_curve(data, predictions).savefig(folder / f"{stem}-{name}-s-curve.png")
    plots.predicted_against_true(data, predictions).savefig(folder / f"{stem}-{name}-predicted.png")
    return result
