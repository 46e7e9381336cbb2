"""The report of a verdict: one HTML file that opens anywhere, pictures within it."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from html import escape
from io import BytesIO
from typing import Any

from matplotlib.figure import Figure

from iqagp_jax.system.system import System
from iqagp_jax.units import KCAL_MOL
from iqagp_jax.verdict import alarm, certified, ensemble, shape, truth
from iqagp_jax.verdict.assess import Verdict
from iqagp_jax.verdict.certified import Certified
from iqagp_jax.verdict.ensemble import Compared
from iqagp_jax.verdict.truth import Group, columns, significant
from iqagp_jax.verdict.turning import turning

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; display: block; overflow-x: auto }
pre { white-space: pre-wrap }
th, td { border-bottom: 1px solid #ddd; padding: .25em .7em; text-align: right }
th:first-child, td:first-child { text-align: left }
img { max-width: 100%; display: block; margin: 1em 0 }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 1em }
.tile { border-radius: 8px; padding: .8em 1em; color: white }
.tile b { display: block; font-size: 12px; text-transform: uppercase; letter-spacing: .06em }
.good { background: #1a7f37 } .fair { background: #b08000 } .poor { background: #b2182b } .unknown { background: #777 }
.concerns { border-left: 6px solid #b2182b; padding: .3em 1em; margin: 1em 0 }
.tile small { display: block; margin-top: .5em; opacity: .85 }
.note { color: #555; font-size: 13px }
"""

MOST = 10
"""Coordinates in the table of distances, the farthest apart first."""


def html(
    verdict: Verdict,
    figures: Mapping[str, Figure],
    system: System | None = None,
    made_by: Mapping[str, str] | None = None,
) -> str:
    """The page, from a verdict and its pictures by the names of their files.

    ``system`` at rest is drawn, and what the page was ``made_by`` told, see `colophon`.
    """
    title = escape(f"Verdict on {verdict.model}")
    elements = [
        f"<h1>{title}</h1>",
        note(f"Trained on: {verdict.theory}. Held to: {verdict.reference}."),
        tiles(verdict),
        *concerns(verdict),
        turning(system.species, [system.positions]) if system else "",
        pictures(figures, "overview"),
        *survival_section(verdict),
        pictures(figures, "survival"),
        *failures(verdict.survival.rows),
        *(truth_section(verdict.truth.rows, pictures(figures, "truth")) if verdict.reference != "none" else []),
        *shape_section(verdict, pictures(figures, "shape")),
        *certified_section(verdict.certified),
        *ensemble_section(verdict, figures),
        *warning_section(verdict),
        pictures(figures, "warning"),
        *(["<h2>How it was made</h2>", table(("", ""), made_by.items())] if made_by else []),
    ]
    return document(title, elements)


def document(title: str, elements: Iterable[str]) -> str:
    """A page, one file that opens anywhere, of elements of which the empty ones are left out."""
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en">{head}' + "\n".join(filter(None, elements))


def tiles(verdict: Verdict) -> str:
    """Grades and sentences of the five parts beside each other."""
    protocol = verdict.protocol
    looked_at = f"runs of {protocol.time:g} ps at {', '.join(f'{t:g}' for t in protocol.temperatures)} K"
    each = (
        f'<div class="tile {part.grade}"><b>{name}: {part.grade}</b>{escape(part.sentence)}'
        f"<small>{'scans from the minimum' if name == 'shape' else looked_at}</small></div>"
        for name, part in verdict.parts()
    )
    return f'<div class="tiles">{"".join(each)}</div>'


def concerns(verdict: Verdict) -> list[str]:
    """Why the runs cannot be believed, if so."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in verdict.concerns)
    return [f'<div class="concerns"><b>The runs cannot be believed</b><ul>{items}</ul></div>'] if items else []


def survival_section(verdict: Verdict) -> list[str]:
    """Who survived, and how long it was looked at."""
    rows = verdict.survival.rows
    return [
        "<h2>Survival</h2>",
        note(
            f"{verdict.protocol.words}. Equilibrium starts: {verdict.equilibrium}. A replica fails by the rule of"
            " system/failure.py: positions not finite, a contact, a bond twice its length without another that forms, a"
            " molecule distorted beyond chemistry, or three times the temperature for 1 ps. Right: survived, and the median"
            f" |dE| of the later half of its frames is at most {truth.FALSE_BASIN:g} kcal/mol. Reacted: other neighbours in the"
            " end than in the minimum."
        ),
        *(
            note(
                f"{start.start} starts: {start.used} of {start.drawn} drawn are used: GFN2-xTB relaxes them to a whole"
                f" molecule. From {start.same_end} of them the model relaxes to the same structure."
            )
            for start in verdict.starts
        ),
        table(
            ("start", "K", "survived", "right", "reacted", "reacted and right"),
            [
                (row.start, row.temperature, f"{row.survived}/{row.replicas}", row.right, row.reacted, row.reacted_right)
                for row in rows
            ],
        ),
        table(
            ("K", "replica-ps lived", "failures", "failures per ps below, 95% sure", "replicas", "ps"),
            map(astuple, verdict.survival.evidence),
        ),
    ]


def failures(rows: Sequence[Group]) -> list[str]:
    """The table of failed replicas, or that there is none."""
    found = [
        (f"{row.start} {row.temperature:g} K, replica {failure.replica}", f"{failure.time_ps:.3f} ps", failure.reason)
        for row in rows
        for failure in row.failures
    ]
    return [table(("failed", "after", "reason"), found) if found else note("No replica failed.")]


def truth_section(rows: Sequence[Group], picture: str) -> list[str]:
    """Errors of relabelled frames."""
    names = [name.replace("_", " ") for key in ("de", "df") for name in columns(key, None)]
    errors = [
        (r.start, r.temperature, r.frames, r.without_label, *columns("de", r.de).values(), *columns("df", r.df).values())
        for r in rows
    ]
    return [
        "<h2>Truth</h2>",
        note(
            "Frames taken evenly along the model's own trajectories, labelled by the reference. dE is model minus"
            " reference, absolute energies, no constant taken away, in kcal/mol; dF is the root mean square over force"
            " components of a frame, in kcal/mol/Å."
        ),
        table(("start", "K", "frames", "no label", *names), errors),
        picture,
    ]


def shape_section(verdict: Verdict, picture: str) -> list[str]:
    """Scans beside the reference."""
    if not verdict.shape.rows:
        return []
    counted, spreads = ("kind", "scans", "geometries", "without_label", "within_reach"), ("median |dE|", "95%", "max")
    rows = [
        (*(getattr(row, name) for name in counted), *columns("de", row.de).values(), row.deepest, row.where)
        for row in verdict.shape.rows
    ]
    return [
        "<h2>Shape</h2>",
        note(
            "From the model's minimum bonds are brought to 0.6 to 2 times their length, bends to 60 to 165 degrees, torsions"
            " turned in full, single atoms pulled away by 0.5 to 4 Å; rings stay as they are, no atoms come in contact. Errors,"
            f" in kcal/mol, are of the geometries that the model or the reference has within {shape.REACH:g} kcal/mol of the"
            " minimum. Deepest: by how much the model lies below the reference where its own energy is within reach; more than"
            f" {truth.FALSE_BASIN:g} kcal/mol is a hole."
        ),
        table(("scans of", "number", "geometries", "no label", "within reach", *spreads, "deepest", "there"), rows),
        picture,
    ]


def certified_section(found: Sequence[Certified]) -> list[str]:
    """Averages as the reference has them, and what they rest on."""
    if not found:
        return []
    kinds = ("replicas", "frames", "no label", "beginning", "before failures", "effective size", "expected", "weightless")
    energies = ("mean", "sigma", "F(ref) - F(model)", "error")
    taus = [(at.temperature_K, t.ps, t.error, f"{t.at_cap}/{t.replicas}", t.spacing_ps) for at in found if (t := at.tau_acc)]
    return [
        "<h2>Certified averages</h2>",
        note(
            "Frames of the model's runs, each with the weight exp(-(E_ref - E_model) / kT), are a sample of the reference's"
            " ensemble. Effective size: (sum w)² / sum w², so many of them are left; expected is N exp(-(sigma / kT)²),"
            " of Gaussian errors. Weightless: frames where the reference does not go, in holes of the model, say."
            f" Nothing is certified below {certified.SMALLEST:g}. Energies in kcal/mol: mean and spread of E_ref - E_model, and"
            " the free-energy difference by Zwanzig's formula. Errors are standard errors, a replica a block."
        ),
        note(certified.BLIND_SPOT),
        *(f'<p class="certified">{escape(at.sentence)}.</p>' for at in found),
        table(("K", *kinds, *energies), [_certified_row(at) for at in found]),
        *(element for at in found if at.averages for element in _averages(at)),
        note(
            f"tau_acc (doi:10.1039/D1SC01825F): every {certified.INTERVAL:g} fs what |dE| has above {certified.ACCEPTED:g} eV"
            f" is added, until the sum exceeds {certified.ACCUMULATED:g} eV; {certified.CAP / 1000:g} ps at most. Where"
            " labelled frames are farther apart, each stands for the time since the one before."
        )
        if taus
        else "",
        table(("K", "tau_acc, ps", "error", "at the cap", "ps between frames"), taus) if taus else "",
    ]


def _certified_row(at: Certified) -> tuple:
    counts = at.replicas, at.frames, at.without_label, at.early, at.before_failure
    sizes = at.effective_sample_size, at.expected_sample_size if at.expected_sample_size > 1 else "< 1", at.weightless
    return (at.temperature_K, *counts, *sizes, at.mean_difference, at.sigma, at.free_energy, at.free_energy_error)


def _averages(at: Certified) -> list[str]:
    """Temperature and populations, and of the distances and angles those that the weights move most."""
    inner = [a for a in at.averages if a.unit in ("Å", "°")]
    moved = sorted(inner, key=lambda a: -abs(a.reference - a.model) / max(a.reference_error, 1e-12))[:MOST]
    rows = [*(a for a in at.averages if a not in inner), *moved]
    header = ("average", "unit", "model", "error", "as the reference has it", "error")
    return [
        f"<h3>{at.temperature_K:g} K, as the reference has it</h3>",
        note(f"Of {len(inner)} distances and angles the {len(moved)} that change most; robustness.json has all."),
        table(header, [(a.name, a.unit, *(_in_figures(x, a.unit) for x in astuple(a)[2:])) for a in rows]),
    ]


def _in_figures(number: float, unit: str) -> str:
    """A number with as many figures as its unit asks for."""
    return f"{number:.4f}" if unit == "Å" else f"{number:.2f}" if unit == "°" else significant(number, 3)


def ensemble_section(verdict: Verdict, figures: Mapping[str, Figure]) -> list[str]:
    """Distributions, populations and rates beside the reference's."""
    found = verdict.ensemble.rows
    if not found:
        return ["<h2>Ensemble</h2>", note("No reference dynamics was run."), pictures(figures, "ramachandran")]
    lines = (
        f"{s.temperature_K:g} K: {s.model_replicas} replicas of the model and {s.reference_replicas} of the reference through"
        f" {s.ps:.3g} ps"
        for s in verdict.ensemble.evidence
    )
    failed = verdict.reference_failures
    return [
        "<h2>Ensemble</h2>",
        note(
            "Model dynamics against the reference's own, by the same integrator, thermostat and treatment of rotation, from"
            " equilibrium starts. Both are seen through the same time, that of the shorter run without its first"
            f" {100 * ensemble.EQUILIBRATION:.0f}% ({'; '.join(lines)}). Jensen-Shannon distance (0 the same, 1 no overlap),"
            " its bootstrap error over replicas, and the 95th percentile of what chance would give two samples of one ensemble."
        ),
        note(f"Replicas of the reference that failed: {len(failed)} ({'; '.join(failed)}).") if failed else "",
        *(element for compared in found for element in comparison(compared, figures)),
        pictures(figures, "ramachandran"),
    ]


def comparison(compared: Compared, figures: Mapping[str, Figure]) -> list[str]:
    """The ensemble at one temperature."""
    worst = sorted(compared.distributions, key=lambda d: -d.distance)[:MOST]
    return [
        f"<h3>{compared.temperature:g} K</h3>",
        pictures(figures, f"ensemble-{compared.temperature:g}K"),
        table(("coordinate", "distance", "error", "chance"), [(d.name, d.distance, d.error, d.chance) for d in worst]),
        table(
            ("population or rate", "unit", "model", "error", "reference", "error", "difference in errors"),
            map(astuple, compared.counted),
        ),
    ]


def warning_section(verdict: Verdict) -> list[str]:
    """What the uncertainty told."""
    if not verdict.warning.rows:
        return ["<h2>Warning</h2>", note(f"Unknown: {verdict.warning.sentence}.")]
    (warned,), (followed,) = verdict.warning.rows, verdict.warning.evidence
    threshold = "none" if warned.threshold_eV is None else f"{warned.threshold_eV / KCAL_MOL:.3g} kcal/mol"
    return [
        "<h2>Warning</h2>",
        note(
            f"Alarm: sigma of the energy above {alarm.THRESHOLD:g} times its 99th percentile over calm stretches ({threshold})."
            f" A failure is announced if that happens in the {alarm.WINDOW:g} fs before it, at least {alarm.AHEAD:g} fs ahead."
            " False alarms are counted when sigma rises above it in calm stretches, which no failure follows within"
            f" {alarm.CALM / 1000:g} ps ({followed.calm_ps:.3g} ps followed, at all temperatures)."
        ),
        table(
            ("", ""),
            [
                ("rank correlation of sigma and |dE|", warned.rank_correlation),
                ("failures, followed", f"{followed.failures}, {followed.failures_followed}"),
                ("announced, share", warned.announced),
                ("false alarms per ps", warned.false_alarms_per_ps),
            ],
        ),
    ]


def table(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """An HTML table."""

    def cell(value: Any, tag: str = "td") -> str:
        text = "-" if value is None else significant(value, 3) if isinstance(value, float) else str(value)
        return f"<{tag}>{escape(text)}</{tag}>"

    lines = ["".join(cell(name, "th") for name in header), *("".join(map(cell, row)) for row in rows)]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def pictures(figures: Mapping[str, Figure], beginning: str) -> str:
    """Elements of all figures whose names begin so."""
    return "".join(image(figure) for name, figure in figures.items() if name.startswith(beginning))


def image(figure: Figure) -> str:
    """A figure as an element of the page."""
    stream = BytesIO()
    figure.savefig(stream, format="png")
    return embedded(stream.getvalue())


def embedded(png: bytes) -> str:
    """A picture as an element of the page."""
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def note(text: str) -> str:
    """A paragraph in small print."""
    return f'<p class="note">{escape(text)}</p>'
