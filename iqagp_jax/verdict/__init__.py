"""The verdict on a model: does it survive, is it right, does it go where the reference goes, does it warn of its errors?

`judge` drives replicas of the model, labels frames of them with the reference, drives the reference itself, and writes one
report. Everything is kept in one folder: the same call goes on where it was stopped, another one is refused.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np

from iqagp_jax.machine.files import write_atomically
from iqagp_jax.potential import energy_and_forces, energy_fn, energy_variance
from iqagp_jax.references.xtb import XTB
from iqagp_jax.system.failure import failure_rule
from iqagp_jax.verdict import alarm, ensemble, pictures, report, truth
from iqagp_jax.verdict.replicas import Protocol, choose_starts, minimum_of, run_replicas
from iqagp_jax.verdict.structure import backbone

__all__ = ["Protocol", "claim", "digest", "judge"]


def judge(model, out, reference=None, protocol=None, name="a model", progress=lambda items, what, total: items, relabel=True):
    """Judge a model and write ``report.html``, ``robustness.json`` and pictures to the folder ``out``.

    Args:
        model: what `load_model` reads or `fit_gp` makes.
        reference: `references.XTB`, `references.DFT` or None; only the first one has dynamics to compare with.
        protocol: a `Protocol`.
        name: what the report calls the model.
        progress: wraps iterables, as a progress bar does; gets a word for what is done, and their length.
        relabel: whether the reference labels frames; else it only chooses starts, and the same call with it goes on from there.

    Returns what is written to ``robustness.json``. Raises ValueError, in a sentence, where the folder holds another verdict.
    """
    protocol, out = protocol or Protocol(), Path(out)
    claim(out, model, reference, protocol)
    dynamic = reference if isinstance(reference, XTB) else None
    energy = energy_fn(model)
    minimum, equilibrium = minimum_of(model, energy)
    starts, told = choose_starts(model, energy, minimum, protocol, reference)
    rule = failure_rule(model.species, minimum)
    run = run_replicas(energy, rule, starts, protocol, out / "model", protocol.time, protocol.seed)

    chosen = truth.choose_frames(run, protocol.frames)
    positions = run.trajectory.positions[chosen[1], chosen[0]]
    variance = energy_variance(model)
    predicted = *energy_and_forces(model)(positions), variance(positions)
    if reference is None or not relabel:
        labels = np.full(len(positions), np.nan), np.full(positions.shape, np.nan)
    else:
        labels = reference.labels(positions, progress=lambda items, total: progress(items, "relabelling", total))
    frames = truth.compare(chosen, predicted, labels)

    runs, compared = {"model": run}, []
    if dynamic and protocol.reference_replicas and "equilibrium" in protocol.kinds:
        begin = {"equilibrium": np.repeat(minimum[None], protocol.reference_replicas, axis=0)}
        # Other momenta than the model's, so that the two samples are independent.
        runs["reference"] = run_replicas(
            dynamic.energy_fn(), rule, begin, protocol, out / "reference", protocol.reference_time, protocol.seed + 1
        )
        compared = [(t, *ensemble.compare(model.species, minimum, *runs.values(), t)) for t in protocol.temperatures]

    before, calm = alarm.windows(run, variance, protocol.seed)
    warned = alarm.warning(run, frames, before, calm)
    facts = {
        "model": name,
        "level_of_theory": dict(model.provenance).get("level_of_theory", "not told"),
        "reference": reference.name if reference and relabel else "none",
        "protocol": asdict(protocol),
        "equilibrium": equilibrium,
        "starts": told,
        "rows": truth.rows(run, frames, model.species, minimum, reference is not None and relabel),
        "ensemble": [
            {
                "temperature_K": t,
                "distributions": [
                    {"name": d.name, "distance": d.distance, "error": d.error, "chance": d.chance} for d in distributions
                ],
                "counted": counted,
            }
            for t, distributions, counted in compared
        ],
        "reference_failures": [reason for reason in runs["reference"].reasons if reason] if "reference" in runs else None,
        "warning": warned,
    }
    facts["verdict"] = {part: {"grade": g, "sentence": s} for part, (g, s) in report.grade(facts).items()}
    figures = _figures(model, minimum, runs, frames, compared, before, facts)
    for key, figure in figures.items():
        figure.savefig(out / f"{key}.png")
    write_atomically(out / "report.html", report.html(facts, figures))
    write_atomically(out / "robustness.json", json.dumps(facts, indent=1, allow_nan=False))
    return facts


def digest(model):
    """What tells a model from others, a hexadecimal number."""
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(model))).hexdigest()


def claim(out, model, reference, protocol, **options):
    """Write down what the folder ``out`` is for, or ValueError, in a sentence, where it is for something else."""
    name = reference.name if reference else "none"
    settings = json.dumps({"model": digest(model), "reference": name, **options, **asdict(protocol)}, indent=1)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "settings.json"
    if path.exists() and path.read_text() != settings:
        raise ValueError(f"expected the model and options of {path}, found others; take another folder")
    write_atomically(path, settings)


def _figures(model, minimum, runs, frames, compared, before, facts):
    """All pictures by the name of their file."""
    run = runs["model"]
    figures = {"overview": pictures.survival_and_truth(facts["rows"]), "survival": pictures.survival_curves(run)}
    if facts["reference"] != "none":
        figures["truth"] = pictures.errors(run, frames)
    for temperature, distributions, _ in compared:
        if distributions:
            figures[f"ensemble-{temperature:g}K"] = pictures.distributions(distributions, temperature)
    if residues := backbone(model.species, minimum):
        for temperature in facts["protocol"]["temperatures"]:
            figures[f"ramachandran-{temperature:g}K"] = pictures.ramachandran(residues, temperature, runs)
    figures["warning"] = pictures.uncertainty(run, frames, before, facts["warning"]["threshold_eV"])
    return figures
