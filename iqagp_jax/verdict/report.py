"""The report of a verdict: one HTML file that opens anywhere, pictures within it."""

import base64
from html import escape
from io import BytesIO

from iqagp_jax.units import KCAL_MOL
from iqagp_jax.verdict import alarm, ensemble, truth
from iqagp_jax.verdict.pictures import BARS, two_figures

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px }
th, td { border-bottom: 1px solid #ddd; padding: .25em .7em; text-align: right }
th:first-child, td:first-child { text-align: left }
img { max-width: 100%; display: block; margin: 1em 0 }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 1em }
.tile { border-radius: 8px; padding: .8em 1em; color: white }
.tile b { display: block; font-size: 12px; text-transform: uppercase; letter-spacing: .06em }
.good { background: #1a7f37 } .fair { background: #b08000 } .poor { background: #b2182b } .unknown { background: #777 }
.note { color: #555; font-size: 13px }
"""

SHARE = 0.95
"""Of the replicas, that must survive for a fair survival; all for a good one."""

BEYOND = (0.05, 0.15)
"""Jensen-Shannon distances of a good and of a fair ensemble exceed what chance gives by at most this."""

TELLING = 0.3
"""Where chance alone gives distances above this the runs are too short to tell."""

ERRORS = (3.0, 5.0)
"""Populations and rates of a good and of a fair ensemble differ by at most so many standard errors."""

ANNOUNCED = (0.9, 0.5)
"""Share of the failures that a good and a fair warning announces."""


def grade(facts):
    """{part: (grade, sentence)} with the grades good, fair, poor and unknown, from what `judge` found."""
    rows, replicas = facts["rows"], sum(row["replicas"] for row in facts["rows"])
    survived = sum(row["survived"] for row in rows)
    share = survived / replicas
    parts = {
        "survival": (
            "good" if share == 1 else "fair" if share >= SHARE else "poor",
            f"{survived} of {replicas} replicas survived",
        )
    }
    labelled = [row for row in rows if row["de_median"] is not None]
    lost = sum(row["without_label"] or 0 for row in rows)
    if not labelled:
        parts["truth"] = ("unknown", f"the reference can calculate none of {lost} frames" if lost else "no reference")
    else:
        median, high = (max(row[key] for row in labelled) for key in ("de_median", "de_p95"))
        right = sum(row["right"] for row in rows)
        good = median < BARS[0] and high < BARS[1] and right == survived and not lost
        fair = median < BARS[1] and high < 5 * BARS[1] and not any(row["frames"] for row in rows if row not in labelled)
        sentence = (
            f"worst row: median |dE| {two_figures(median)}, 95% {two_figures(high)} kcal/mol;"
            f" {right} of {survived} survivors are right"
        )
        sentence += f"; {lost} frames that the reference cannot calculate" * bool(lost)
        parts["truth"] = ("good" if good else "fair" if fair else "poor", sentence)
    parts["ensemble"] = grade_ensemble(facts["ensemble"])
    found = facts["warning"]
    if found["announced"] is None:
        why = "no failure to announce" if not found["failures"] else "no calm stretch to set a threshold by"
        parts["warning"] = ("unknown", why)
    else:
        calm = found["false_alarms_per_ps"] <= 1
        level = [calm and found["announced"] >= bar for bar in ANNOUNCED]
        sentence = (
            f"{100 * found['announced']:.0f}% of failures announced, {found['false_alarms_per_ps']:.2g} false alarms per ps"
        )
        parts["warning"] = ("good" if level[0] else "fair" if level[1] else "poor", sentence)
    return parts


def grade_ensemble(found):
    """Grade and sentence of the ensemble part."""
    if not any(at["distributions"] for at in found):
        return "unknown", "no reference dynamics"
    everything = [d for at in found for d in at["distributions"]]
    farthest = max(everything, key=lambda d: d["distance"] - d["chance"])
    beyond, chance = farthest["distance"] - farthest["chance"], max(d["chance"] for d in everything)
    scores = [abs(c["difference_in_errors"]) for at in found for c in at["counted"] if c["difference_in_errors"] is not None]
    largest = max(scores, default=0.0)
    good, fair = (beyond <= b and largest <= e for b, e in zip(BEYOND, ERRORS, strict=True))
    sentence = f"distance of {farthest['name']} {farthest['distance']:.2f}, by chance {farthest['chance']:.2f};"
    sentence += f" populations and rates within {largest:.1f} standard errors"
    if missing := [f"{at['temperature_K']:g} K" for at in found if not at["distributions"]]:
        sentence += f"; no replicas to compare at {', '.join(missing)}"
        good = False
    if good and chance > TELLING:
        return "unknown", f"the runs are too short to tell: chance alone gives distances of {chance:.2f}"
    return "good" if good else "fair" if fair else "poor", sentence


def table(header, rows):
    """An HTML table."""

    def cell(value, tag="td"):
        text = "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
        return f"<{tag}>{escape(text)}</{tag}>"

    lines = ["".join(cell(name, "th") for name in header), *("".join(map(cell, row)) for row in rows)]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def image(figure):
    """A figure as an element of the page."""
    stream = BytesIO()
    figure.savefig(stream, format="png")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}">'


def note(text):
    """A paragraph in small print."""
    return f'<p class="note">{escape(text)}</p>'


def html(facts, figures):
    """The page, from the facts of `judge` and its figures {name: Figure}."""
    parts = facts["verdict"]
    tiles = "".join(
        f'<div class="tile {part["grade"]}"><b>{name}: {part["grade"]}</b>{escape(part["sentence"])}</div>'
        for name, part in parts.items()
    )
    protocol = facts["protocol"]

    def pictures(beginning):
        return "".join(image(figure) for name, figure in figures.items() if name.startswith(beginning))

    failures = [
        (f"{row['start']} {row['temperature_K']:g} K, replica {f['replica']}", f"{f['time_ps']:.3f} ps", f["reason"])
        for row in facts["rows"]
        for f in row["failures"]
    ]
    survival = [
        (
            row["start"],
            row["temperature_K"],
            f"{row['survived']}/{row['replicas']}",
            row["right"],
            row["reacted"],
            row["reacted_right"],
        )
        for row in facts["rows"]
    ]
    keys = ("de_median", "de_p95", "de_max", "df_median", "df_p95", "df_max")
    errors = [
        (row["start"], row["temperature_K"], row["frames"], row["without_label"], *(row[k] for k in keys))
        for row in facts["rows"]
    ]
    sections = [
        f"<h1>Verdict on {escape(facts['model'])}</h1>",
        note(f"Trained on: {facts['level_of_theory']}. Held to: {facts['reference']}."),
        f'<div class="tiles">{tiles}</div>',
        image(figures["overview"]),
        "<h2>Survival</h2>",
        note(
            f"{protocol['replicas']} replicas for every temperature and kind of start, {protocol['time']:g} ps each,"
            " Nose-Hoover chain without total and angular momentum."
            f" Equilibrium starts: {facts['equilibrium']}. A replica fails by the rule of robustness.py: positions not finite,"
            " a contact below 0.5 Å, a bond twice its length without another that forms, or three times the temperature for"
            " 1 ps. Right: survived, and the median |dE| of the later half of its frames is at most"
            f" {truth.FALSE_BASIN:g} kcal/mol. Reacted: other neighbours in the end than in the minimum."
        ),
        *(
            note(
                f"{start['start']} starts: {start['used']} of {start['drawn']} drawn are used: GFN2-xTB relaxes them to a whole"
                f" molecule. From {start['same_end']} of them the model relaxes to the same structure."
            )
            for start in facts["starts"]
        ),
        table(("start", "K", "survived", "right", "reacted", "reacted and right"), survival),
        pictures("survival"),
        table(("failed", "after", "reason"), failures) if failures else note("No replica failed."),
    ]
    if facts["reference"] != "none":
        sections += [
            "<h2>Truth</h2>",
            note(
                "Frames taken evenly along the model's own trajectories, labelled by the reference. dE is model minus"
                " reference, absolute energies, no constant taken away, in kcal/mol; dF is the root mean square over force"
                " components of a frame, in kcal/mol/Å."
            ),
            table(("start", "K", "frames", "no label", *(k.replace("_", " ") for k in keys)), errors),
            pictures("truth"),
        ]
    sections += ["<h2>Ensemble</h2>", *ensemble_section(facts, pictures), "<h2>Warning</h2>"]
    found = facts["warning"]
    threshold = "none" if found["threshold_eV"] is None else f"{found['threshold_eV'] / KCAL_MOL:.3g} kcal/mol"
    sections += [
        note(
            f"Alarm: sigma of the energy above {alarm.THRESHOLD:g} times its 99th percentile over calm stretches ({threshold})."
            f" A failure is announced if that happens in the {alarm.WINDOW:g} fs before it, at least {alarm.AHEAD:g} fs ahead."
            " False alarms are counted when sigma rises above it in calm stretches, which no failure follows within"
            f" {alarm.CALM / 1000:g} ps ({found['calm_ps']:.3g} ps followed, at all temperatures)."
        ),
        table(
            ("", ""),
            [
                ("rank correlation of sigma and |dE|", found["rank_correlation"]),
                ("failures, followed", f"{found['failures']}, {found['failures_followed']}"),
                ("announced, share", found["announced"]),
                ("false alarms per ps", found["false_alarms_per_ps"]),
            ],
        ),
        pictures("warning"),
    ]
    title = escape(f"Verdict on {facts['model']}")
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>' + "\n".join(
        sections
    )


def ensemble_section(facts, pictures):
    """Elements of the ensemble part."""
    protocol = facts["protocol"]
    if not facts["ensemble"]:
        return [note("No reference dynamics was run."), pictures("ramachandran")]
    elements = [
        note(
            f"Model dynamics against {protocol['reference_replicas']} replicas of reference dynamics,"
            f" {protocol['reference_time']:g} ps each at every temperature, by the same integrator, thermostat and treatment of"
            " rotation, from equilibrium starts. Both are seen through the same time, that of the shorter run without"
            f" its first {100 * ensemble.EQUILIBRATION:.0f}%. Jensen-Shannon distance (0 the same, 1 no overlap), its bootstrap"
            " error over replicas, and the 95th percentile of what chance would give two samples of one ensemble."
        )
    ]
    if failures := facts["reference_failures"]:
        elements.append(note(f"Replicas of the reference that failed: {len(failures)} ({'; '.join(failures)})."))
    for at in facts["ensemble"]:
        temperature = at["temperature_K"]
        worst = sorted(at["distributions"], key=lambda d: -d["distance"])[:10]
        elements += [
            f"<h3>{temperature:g} K</h3>",
            pictures(f"ensemble-{temperature:g}K"),
            table(
                ("coordinate", "distance", "error", "chance"),
                [(d["name"], d["distance"], d["error"], d["chance"]) for d in worst],
            ),
            table(
                ("population or rate", "unit", "model", "error", "reference", "error", "difference in errors"),
                [
                    tuple(
                        c[k]
                        for k in (
                            "name",
                            "unit",
                            "model",
                            "model_error",
                            "reference",
                            "reference_error",
                            "difference_in_errors",
                        )
                    )
                    for c in at["counted"]
                ],
            ),
        ]
    return [*elements, pictures("ramachandran")]
