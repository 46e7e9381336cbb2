"""What was made: the page and its numbers, from the last verdict, the clock and the model's errors on unseen geometries."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from iqagp_jax.data.extxyz import load_dataset
from iqagp_jax.families.gp.model import Model
from iqagp_jax.labels.plan import read_geometries
from iqagp_jax.machine.files import write_atomically
from iqagp_jax.potential import energy_and_forces
from iqagp_jax.units import KCAL_MOL
from iqagp_jax.validation import unseen, validate
from iqagp_jax.verdict import digest
from iqagp_jax.verdict.colophon import colophon
from iqagp_jax.verdict.report import document, embedded, note, table
from iqagp_jax.verdict.turning import turning

if TYPE_CHECKING:
    from iqagp_jax.making.recipe import Recipe
    from iqagp_jax.making.stages import Making

PARTS = ("survival", "truth", "shape")
"""Of a verdict, that make a potential one to be trusted; the others are told."""


def write_report(making: "Making", model: Model, minima: list[Atoms]) -> dict[str, Any]:
    """Write ``report.html`` and ``report.json``; returns what the latter holds."""
    last = last_round(making.out / "exam")
    verdict = json.loads((last / "robustness.json").read_text())
    told: dict[str, Any] = {
        "molecule": making.recipe.molecule,
        "recipe": asdict(making.recipe),
        "standing": standing(verdict),
        "seen": seen(verdict, len(minima)),
        "not_for": not_for(verdict),
        "temperatures": by_temperature(verdict),
        "minima_kcal_mol": relative_energies(model, minima),
        "errors": errors_of(making, model),
        "geometries": model.n_train,
        "labels": labels_of(making),
        "seconds": making.clock.stages,
        "verdict": str((last / "report.html").relative_to(making.out)),
        "made_by": colophon(digest(model)) | {"command": command_of(making.recipe, making.out)},
    }
    told = json.loads(json.dumps(told, allow_nan=False))
    write_atomically(making.out / "report.json", json.dumps(told, indent=1))
    write_atomically(making.out / "report.html", html(told, verdict, making.out, minima))
    return told


def last_round(folder: Path) -> Path:
    """The folder of the last verdict of `active.learn`."""
    return folder / f"round-{json.loads((folder / 'rounds.json').read_text())[-1]['round']}"


def seen(verdict: dict[str, Any], minima: int) -> list[str]:
    """What the runs of a verdict showed, a sentence for every temperature."""
    used = min([minima, verdict["protocol"]["replicas"], *(start["used"] for start in verdict["starts"])])
    begun = "its minimum" if minima == 1 else f"{used} of {minima} minima" if used < minima else f"{minima} minima"
    time = verdict["protocol"]["time"]
    sentences = []
    for row in by_temperature(verdict):
        found = f"{row['temperature_K']:g} K from {begun}: {row['survived']} of {row['replicas']} replicas lived {time:g} ps"
        if row["failures_per_ps_below"] is not None:
            found += f", fewer than {row['failures_per_ps_below']:.2g} failures per ps (95% sure)"
        if row["de_median"] is not None:
            found += (
                f"; {row['frames']} frames err by {row['de_median']:.2g} kcal/mol in the median, {row['de_max']:.2g} at most"
            )
        sentences.append(found)
    return sentences


def standing(verdict: dict[str, Any]) -> str:
    """Whether what was seen is proof: ``good``, ``flawed``, or ``unknown`` where it is too little to tell."""
    survival, truth, shape = (verdict["verdict"][name] for name in PARTS)
    if "good" not in (survival["grade"], survival["so_far"]) or "good" not in (truth["grade"], truth["so_far"]):
        return "flawed"
    if shape["grade"] == "poor":
        return "flawed"
    return "good" if survival["grade"] == truth["grade"] == "good" else "unknown"


STANDINGS = {
    "good": "No flaw was found, and the runs were long enough to find one.",
    "unknown": "Nothing is proved: no flaw was found, but the runs or their labels are too few to tell.",
    "flawed": "Nothing yet: the last verdict found a flaw.",
}


def not_for(verdict: dict[str, Any]) -> list[str]:
    """What it has not been shown to be good for, a sentence each."""
    parts, temperatures = verdict["verdict"], verdict["protocol"]["temperatures"]
    flaws = [f"{name} is {part['grade']}: {part['sentence']}" for name, part in parts.items() if part["grade"] != "good"]
    return [
        *flaws,
        f"above {max(temperatures):g} K, for longer than {verdict['protocol']['time']:g} ps, or where no replica went",
        "reactions and dissociation beyond those that the runs saw, other charges and spins, other molecules,"
        " the same atoms in another order",
        f"anything that {verdict['level_of_theory']} itself is wrong about",
    ]


def by_temperature(verdict: dict[str, Any]) -> list[dict[str, Any]]:
    """Survival and errors at every temperature, over all kinds of start."""
    found = []
    for lived in verdict["verdict"]["survival"]["evidence"]:
        rows = [row for row in verdict["rows"] if row["temperature_K"] == lived["temperature_K"]]
        worst = {key: max((r[key] for r in rows if r[key] is not None), default=None) for key in ERRORS}
        found.append(
            {
                "temperature_K": lived["temperature_K"],
                "survived": sum(row["survived"] for row in rows),
                "replicas": lived["replicas"],
                "replica_ps": lived["replica_ps"],
                "failures_per_ps_below": lived["failure_rate_below"],
                "frames": sum(row["frames"] for row in rows),
                **worst,
            }
        )
    return found


ERRORS = ("de_median", "de_p95", "de_max", "df_median")
"""Of relabelled frames, kcal/mol and kcal/mol/angstrom."""


def relative_energies(model: Model, minima: list[Atoms]) -> list[float]:
    """The model's at the minima of GFN2-xTB, above the lowest of these, kcal/mol."""
    energies = np.asarray(energy_and_forces(model)(np.array([atoms.positions for atoms in minima]))[0])
    return [float(e) for e in (energies - energies.min()) / KCAL_MOL]


def errors_of(making: "Making", model: Model) -> dict[str, dict[str, float]]:
    """Mean absolute errors on unseen geometries of GFN2-xTB, of the model of it: kcal/mol and kcal/mol/angstrom."""
    data = load_dataset(making.out / "geometries.extxyz")
    cheap = model if making.recipe.is_cheap else model.base
    tests = {name: unseen(cheap, data.split(name)) for name in data.splits if name != "train"}
    found = {name: validate(cheap, test) for name, test in tests.items()}
    return {
        name: {"geometries": len(tests[name]), "energy": told.energy.mae, "forces": told.forces.mae}
        for name, told in found.items()
    }


def labels_of(making: "Making") -> dict[str, int]:
    """Geometries that were sampled and labelled by GFN2-xTB, and all labels of another level, for learning and judging."""
    sampled = load_dataset(making.out / "geometries.extxyz")
    dear = sum(len(read_geometries(path)) for path in (making.out / "labels").glob("*.extxyz"))
    return {"gfn2-xtb, sampled": len(sampled), **({} if making.recipe.is_cheap else {making.recipe.level: dear})}


def command_of(recipe: "Recipe", out: Path) -> str:
    """What makes it again."""
    temperatures = " ".join(f"--temperature {t:g}" for t in recipe.temperatures)
    options = f"--level {quote(recipe.level)} {temperatures} --replicas {recipe.replicas} --time {recipe.time:g}"
    if not recipe.is_cheap:
        options += f" --labels {recipe.labels}"
    if recipe.local:
        options += " --local"
    if recipe.charge or recipe.spin:
        options += f" --charge {recipe.charge} --spin {recipe.spin}"
    return f"iqagp make {quote(recipe.molecule)} --out {quote(str(out))} {options} --seed {recipe.seed}"


def html(told: dict[str, Any], verdict: dict[str, Any], out: Path, minima: list[Atoms]) -> str:
    """The page, one file that opens anywhere."""
    title = f"A potential of {escape(told['molecule'])} ({minima[0].get_chemical_formula()})"
    species = minima[0].get_chemical_symbols()
    elements = [
        f"<h1>{title}</h1>",
        note(f"{verdict['level_of_theory']}. Made {told['made_by']['date'][:16].replace('T', ' ')} UTC."),
        turning(species, [atoms.positions for atoms in minima]),
        '<div class="tiles">',
        *(
            f'<div class="tile {part["grade"]}"><b>{name}: {part["grade"]}</b>{escape(part["sentence"])}</div>'
            for name, part in verdict["verdict"].items()
        ),
        "</div>",
        "<h2>What it is good for</h2>",
        note(STANDINGS[told["standing"]]),
        _list(told["seen"]),
        table(
            ("K", "survived", "replica-ps", "failures per ps below", "frames", "median |dE|", "95%", "max", "median dF"),
            [
                (
                    *(r["temperature_K"], f"{r['survived']}/{r['replicas']}", r["replica_ps"], r["failures_per_ps_below"]),
                    *(r["frames"], *(r[key] for key in ERRORS)),
                )
                for r in told["temperatures"]
            ],
        ),
        note("dE, dF: of frames of the potential's own runs, relabelled by the reference; kcal/mol, absolute, and kcal/mol/Å."),
        f'<p><a href="{escape(told["verdict"])}">The whole verdict</a></p>',
        "<h2>What it has not been shown to be good for</h2>",
        _list(told["not_for"]),
        "<h2>Minima</h2>",
        note("Of GFN2-xTB; energies of the potential there, kcal/mol above the lowest."),
        table(("minimum", "energy"), list(enumerate(told["minima_kcal_mol"], 1))),
        "<h2>Unseen geometries</h2>",
        note("Of GFN2-xTB's own dynamics, and the model of it: mean absolute errors, kcal/mol and kcal/mol/Å."),
        table(
            ("split", "geometries", "energy", "forces"),
            [(name, e["geometries"], e["energy"], e["forces"]) for name, e in told["errors"].items()],
        ),
        "<h2>How it learned</h2>",
        *(embedded((out / name / "rounds.png").read_bytes()) for name in ("cheap", "exam")),
        "<h2>What it cost</h2>",
        table(("stage", "minutes"), [(name, seconds / 60) for name, seconds in told["seconds"].items()]),
        table(("labels", "number"), list(told["labels"].items())),
        "<h2>Again, and on</h2>",
        f"<pre>{escape(told['made_by']['command'])}\n{escape(next_of(out))}</pre>",
        table(("", ""), told["made_by"].items()),
    ]
    return document(title, elements)


def next_of(out: Path) -> str:
    """What to do with the potential."""
    temperature = json.loads((out / "recipe.json").read_text())["temperatures"][-1]
    return f"iqagp simulate {quote(str(out / 'model.safetensors'))} --temperature {temperature:g} --replicas 50 --out run"


def _list(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"
