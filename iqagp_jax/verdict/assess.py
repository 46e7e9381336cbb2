"""From a run to a verdict: what is looked at in it, what is found, and its pictures."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from iqagp_jax.data.level import Level
from iqagp_jax.potential import energy_and_forces, uncertainty
from iqagp_jax.system.system import System
from iqagp_jax.verdict import alarm, certified, ensemble, pictures, shape, truth
from iqagp_jax.verdict.alarm import Followed, Warned, Windows
from iqagp_jax.verdict.certified import Certified
from iqagp_jax.verdict.ensemble import Compared, Sampled
from iqagp_jax.verdict.parts import Part
from iqagp_jax.verdict.replicas import Distorted, Driven, Found, Protocol
from iqagp_jax.verdict.shape import NO_SHAPE, Points, Profile, Scanned
from iqagp_jax.verdict.structure import backbone
from iqagp_jax.verdict.truth import Frames, Group, Labelled, Lived


@dataclass(frozen=True)
class Verdict:
    """What `verdict.judge` found of a model."""

    model: str
    """its name"""
    level: Level
    """that it was trained on"""
    charge: int
    spin: int
    """number of unpaired electrons"""
    reference: str
    """what labelled its frames; ``none`` where nothing did"""
    protocol: Protocol | Found
    """what was run"""
    equilibrium: str
    """which geometry its own minimum is, in words"""
    starts: tuple[Distorted, ...]
    """what became of the distorted starts"""
    survival: Part[Group, Lived]
    truth: Part[Group, Labelled]
    """the same rows as of survival"""
    ensemble: Part[Compared, Sampled]
    warning: Part[Warned, Followed]
    """without rows where the potential has no uncertainty"""
    shape: Part[Scanned, Points] = NO_SHAPE
    reference_failures: tuple[str, ...] | None = None
    """why replicas of the reference failed; None where there were none to fail"""
    concerns: tuple[str, ...] = ()
    """why the runs that it rests on cannot be believed, see `dynamics.soundness`"""
    certified: tuple[Certified, ...] = ()
    """averages as the reference has them, at every temperature; empty without a reference"""
    scans: tuple[Profile, ...] = ()
    """what the shape rests on"""

    def parts(self) -> Iterator[tuple[str, Part]]:
        """The five parts by their names, in order."""
        for name in ("survival", "truth", "shape", "ensemble", "warning"):
            yield name, getattr(self, name)

    @property
    def good(self) -> bool:
        """Whether all five parts are good."""
        return all(part.good for _, part in self.parts())

    @property
    def theory(self) -> str:
        """The level of theory that the model was trained on, in words; ``not told`` where it is not."""
        return str(self.level) if self.level.theory else "not told"

    def as_dict(self) -> dict[str, Any]:
        """What ``robustness.json`` holds: dicts, lists, numbers, texts and None only."""
        (warned,), (followed,) = self.warning.rows or (Warned(0),), self.warning.evidence
        return {
            "model": self.model,
            "level_of_theory": self.theory,
            "charge": self.charge,
            "spin": self.spin,
            "reference": self.reference,
            "protocol": asdict(self.protocol),
            "equilibrium": self.equilibrium,
            "starts": [asdict(start) for start in self.starts],
            "rows": [group.as_dict() for group in self.survival.rows],
            "shape": [scanned.as_dict() for scanned in self.shape.rows],
            "ensemble": [compared.as_dict() for compared in self.ensemble.rows],
            "reference_failures": None if self.reference_failures is None else list(self.reference_failures),
            "concerns": list(self.concerns),
            "warning": {**asdict(warned), **asdict(followed)},
            "certified": [found.as_dict() for found in self.certified],
            "verdict": {name: part.as_dict() for name, part in self.parts()},
        }


@dataclass(frozen=True)
class Seen:
    """What was looked at in a run."""

    frames: Frames
    """with the labels of the reference"""
    windows: tuple[Windows, Windows] | None
    """before failures and calm, followed by the uncertainty; None where the potential has none"""
    reference: str
    """what labelled the frames; ``none`` where nothing did"""
    scans: tuple[Profile, ...] = ()

    @property
    def labelled(self) -> bool:
        """Whether there was something to label them."""
        return self.reference != "none"


def variance_of(potential: Any, system: System) -> Callable[[Any], Any] | None:
    """The variance of the energy, positions (B, N, 3) -> (B,) eV^2; None where the potential does not know it."""
    found = uncertainty(potential, system)
    return found and found.energy


def look(potential: Any, driven: Driven, reference: Any, progress: Callable, dtype: Any = np.float64) -> Seen:
    """Label frames of the run by the reference, if there is one, and follow the uncertainty through it."""
    run, protocol, system = driven.run, driven.protocol, driven.system
    chosen = truth.choose_frames(run, protocol.frames)
    positions = run.trajectory.positions[chosen[1], chosen[0]]
    variance = variance_of(potential, system)
    sure = np.full(len(positions), np.nan)
    predicted = *energy_and_forces(potential, dtype, system)(positions), sure if variance is None else variance(positions)
    labels = sure, np.full(positions.shape, np.nan)
    if reference is not None:
        labels = reference.labels(positions, progress=lambda items, total: progress(items, "relabelling", total))
    windows = None if variance is None else alarm.windows(run, variance, protocol.seed)
    scans: tuple[Profile, ...] = ()
    if reference is not None and protocol.scan_points:
        scans = shape.compare(
            system,
            lambda r: energy_and_forces(potential, dtype, system)(r)[0],
            lambda r: reference.labels(r, progress=lambda items, total: progress(items, "scans", total))[0],
            protocol.scan_points,
            variance,
        )
    name = "none" if reference is None else reference.name
    return Seen(truth.compare(chosen, predicted, labels), windows, name, scans)


def assess(potential: Any, driven: Driven, seen: Seen, name: str = "a model") -> Verdict:
    """The verdict on a potential, from what was looked at in its run."""
    run, system, beside = driven.run, driven.system, driven.reference
    groups = truth.groups(run, seen.frames, system, seen.labelled)
    compared = tuple(ensemble.compare(system, run, beside, t) for t in driven.protocol.temperatures) if beside else ()
    parts = {
        "survival": truth.survival(groups, run),
        "truth": truth.truth(groups),
        "ensemble": ensemble.ensemble(compared, driven.protocol.no_ensemble),
        "warning": alarm.warning(run, seen.frames, *seen.windows) if seen.windows else alarm.no_warning(run),
    }
    return Verdict(
        name,
        potential.made_by.level if potential.made_by else Level(),
        system.charge,
        system.spin,
        seen.reference,
        driven.protocol,
        driven.equilibrium,
        driven.starts,
        **_as_sound_as_their_runs(parts, driven),
        shape=shape.shape(seen.scans) if seen.scans else NO_SHAPE,
        reference_failures=tuple(filter(None, beside.failure_reasons)) if beside else None,
        concerns=tuple(f"{name}: {sentence}" for name, run in driven.runs.items() for sentence in run.concerns),
        certified=_certified(driven, seen),
        scans=seen.scans,
    )


def _certified(driven: Driven, seen: Seen) -> tuple[Certified, ...]:
    """Certified averages, where there are labels; a run that cannot be believed is no sample of the model's ensemble."""
    if not seen.labelled:
        return ()
    found = certified.certify(driven.run, seen.frames, driven.system)
    return tuple(replace(at, missing="since the run is unsound", averages=()) for at in found) if driven.run.concerns else found


def _as_sound_as_their_runs(parts: dict[str, Any], driven: Driven) -> dict[str, Any]:
    """The parts, of which none is good that rests on a run which cannot be believed; to survive such a run tells nothing."""
    if driven.run.concerns:
        survival = parts["survival"].at_most("poor", "but the run is unsound, and to survive it tells nothing")
        others = {name: parts[name].at_most("fair", "but the run is unsound") for name in ("truth", "ensemble", "warning")}
        parts = {"survival": survival, **others}
    if driven.reference and driven.reference.concerns:
        parts["ensemble"] = parts["ensemble"].at_most("fair", "but the reference's run is unsound")
    return parts


def draw(verdict: Verdict, driven: Driven, seen: Seen) -> dict[str, Figure]:
    """All pictures by the name of their file."""
    run, runs = driven.run, driven.runs
    figures = {"overview": pictures.survival_and_truth(verdict.survival.rows), "survival": pictures.survival_curves(run)}
    if seen.labelled:
        figures["truth"] = pictures.errors(run, seen.frames)
    if seen.scans:
        figures["shape"] = pictures.scans(seen.scans)
    for compared in verdict.ensemble.rows:
        if compared.distributions:
            figures[f"ensemble-{compared.temperature:g}K"] = pictures.distributions(
                compared.distributions, compared.temperature
            )
    if residues := backbone(driven.system.species, driven.system.positions):
        for temperature in driven.protocol.temperatures:
            figures[f"ramachandran-{temperature:g}K"] = pictures.ramachandran(residues, temperature, runs)
    if seen.windows:
        (warned,), (before, _) = verdict.warning.rows, seen.windows
        figures["warning"] = pictures.uncertainty(run, seen.frames, before, warned.threshold_eV)
    return figures
