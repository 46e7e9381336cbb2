"""The verdict on a model: does it survive, is it right, has it holes, does it go where the reference goes, does it warn?

`judge` drives replicas of the model, labels frames of them with the reference, drives the reference itself, and writes one
report; `judge_run` does so with a run that is there. Everything is kept in one folder: the same call goes on where it was
stopped, another one is refused.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np

from iqagp_jax.dynamics import soundness
from iqagp_jax.dynamics.folder import DESCRIPTION
from iqagp_jax.machine.files import output_folder, write_atomically
from iqagp_jax.potential import energy_and_forces, potential_of, system_of
from iqagp_jax.system.system import System
from iqagp_jax.verdict import report
from iqagp_jax.verdict.assess import Verdict, assess, draw, look, variance_of
from iqagp_jax.verdict.colophon import colophon
from iqagp_jax.verdict.parts import Part
from iqagp_jax.verdict.replicas import Driven, Found, Protocol, Run, drive, drove, minimum_of

__all__ = ["Part", "Protocol", "Verdict", "claim", "digest", "judge", "judge_run"]

Progress = Callable[[Iterable, str, int], Iterable]
"""wraps iterables, as a progress bar does; gets a word for what is done, and their length"""


def _silent(items: Iterable, what: str, total: int) -> Iterable:
    return items


def judge(
    model: Any,
    out: str | Path,
    reference: Any = None,
    protocol: Protocol | None = None,
    name: str = "a model",
    progress: Progress = _silent,
    relabel: bool = True,
    system: System | None = None,
    say: Callable[[str], Any] = lambda line: None,
) -> Verdict:
    """Judge a model and write ``report.html``, ``robustness.json`` and pictures to the folder ``out``.

    Args:
        model: any potential, or what `potential.potential_of` takes for one.
        reference: `references.XTB`, `references.DFT` or None; only the first one has dynamics to compare with.
        protocol: a `Protocol`.
        name: what the report calls the model.
        progress: wraps iterables, as a progress bar does; gets a word for what is done, and their length.
        relabel: whether the reference labels frames; else it only chooses starts, and the same call with it goes on from there.
        system: the molecule at rest, where the potential is not of one molecule.
        say: gets a line on what the reference's dynamics will cost, before anything runs.

    Returns the `Verdict`, whose ``as_dict`` is written to ``robustness.json``. Warns where a run cannot be believed, see
    `dynamics.soundness`: no part but the shape is good. Raises ValueError, in a sentence, where the folder holds another
    verdict, and before anything runs where the model cannot be judged.
    """
    (potential, system), protocol, out = _ready(model, system), protocol or Protocol(), Path(out)
    claim(out, potential, reference, protocol, system)
    driven = drive(potential, system, out, protocol, reference, say)
    return _written(potential, out, driven, reference if relabel else None, name, progress)


def judge_run(
    model: Any,
    run: str | Path | Run,
    out: str | Path,
    reference: Any = None,
    frames: int = 50,
    seed: int = 0,
    name: str = "a model",
    progress: Progress = _silent,
    scan_points: int = 0,
) -> Verdict:
    """Judge a model by a run of it that is there, as `dynamics.run.simulate` or `iqagp simulate` left it in its folder.

    Args:
        model: the potential that drove it.
        run: the folder, or the `Run`. Its temperatures and kinds of start make the rows of the verdict.
        frames: relabelled for every temperature and kind of start, at least.
        seed: of the choice of calm stretches.
        scan_points: geometries of scans that the reference labels at most; 0 for no scans.

    The others are as for `judge`, and so is what it writes. No dynamics of the reference is run, so the ensemble is unknown.

    Raises ValueError, in a sentence, where another potential drove the run: this one must give the energies that it tells of.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    potential, found, out = potential_of(model), Found.of(run, frames, seed, scan_points), Path(out)
    potential, system = _ready(potential, getattr(potential, "system", run.system))
    dtype = drove(potential, system, run)
    claim(out, potential, reference, found, system, run=hashlib.sha256((run.directory / DESCRIPTION).read_bytes()).hexdigest())
    soundness.warn(run)
    driven = Driven(found, run, *minimum_of(potential, system))
    return _written(potential, out, driven, reference, name, progress, dtype)


def _ready(model: Any, system: System | None) -> tuple[Any, System]:
    """The potential and its molecule; what cannot be judged is said here, before dynamics is paid for."""
    potential = potential_of(model)
    system = system_of(potential, system)
    if not system.is_alone:
        raise ValueError(f"expected one molecule without walls to judge, found {len(system.members)}; judge each by itself")
    if variance := variance_of(potential, system):
        variance(system.positions[None])
    return potential, system


def _written(
    potential: Any, out: Path, driven: Driven, reference: Any, name: str, progress: Progress, dtype: Any = np.float64
) -> Verdict:
    """The verdict on what was driven, after report and pictures are in the folder."""
    seen = look(potential, driven, reference, progress, dtype)
    verdict = assess(potential, driven, seen, name)
    figures = draw(verdict, driven, seen)
    for key, figure in figures.items():
        figure.savefig(out / f"{key}.png")
    made_by = colophon(digest(potential, driven.system))
    write_atomically(out / "report.html", report.html(verdict, figures, driven.system, made_by))
    write_atomically(out / "robustness.json", json.dumps(verdict.as_dict(), indent=1, allow_nan=False))
    return verdict


def digest(model: Any, system: System | None = None) -> str:
    """What tells a potential from others, a hexadecimal number: of its arrays, or where it has none, of some energies."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(model)]
    if not leaves or any(leaf.dtype == object for leaf in leaves):
        potential = potential_of(model)
        positions = system_of(potential, system).positions
        probes = positions + np.random.default_rng(0).uniform(-0.1, 0.1, (8, *positions.shape))
        leaves = [np.round(energy_and_forces(potential)(probes)[0], 6)]
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()


def claim(
    out: Path, model: Any, reference: Any, protocol: Protocol | Found, system: System | None = None, **options: Any
) -> None:
    """Write down what the folder ``out`` is for, or ValueError, in a sentence, where it is for something else.

    ``options`` are written down too; ``system`` is of a potential that is not of one molecule.
    """
    name = reference.name if reference else "none"
    settings = {"model": digest(model, system), "reference": name, **options, **asdict(protocol)}
    told, path = json.loads(json.dumps(settings)), output_folder(out) / "settings.json"
    # What an older version did not know was as it is by default.
    usual = {field.name: field.default for field in fields(protocol) if field.default in (0, ())}
    if path.exists() and json.loads(json.dumps(usual)) | json.loads(path.read_text()) != told:
        raise ValueError(f"expected the model and options of {path}, found others; take another folder")
    write_atomically(path, json.dumps(told, indent=1))
