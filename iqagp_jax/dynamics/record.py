"""A run is one folder: what is written to it while it goes on, and what is read from it, on the way or later."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from iqagp_jax.dynamics import soundness
from iqagp_jax.dynamics.ensembles import Frame
from iqagp_jax.dynamics.folder import (
    DESCRIPTION,
    log,
    read_checkpoint,
    read_description,
    read_failures,
    save_checkpoint,
    save_failures,
)
from iqagp_jax.dynamics.replicas import RunState
from iqagp_jax.dynamics.trajectory import Recorder, Trajectory, load_trajectory, read_pieces
from iqagp_jax.system.failure import FailureRule, Status
from iqagp_jax.system.system import System


class Run:
    """One folder of R replicas: what `simulate` returns, and `Run.open` reads, of a run on its way too."""

    directory: Path
    description: dict[str, Any]
    """``run.json``: all options"""
    state: dict[str, np.ndarray]
    """``checkpoint.npz``: arrays that the rest of the run follows from; of a failed replica the configuration that failed, or
    its last finite one"""

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        state, description = read_checkpoint(self.directory), read_description(self.directory)
        if state is None or description is None:
            raise ValueError(
                f"expected the folder of a run, found no {DESCRIPTION} with a checkpoint in {self.directory}; `iqagp simulate`"
                " and `simulate` make one"
            )
        self.state, self.description = state, description

    @classmethod
    def open(cls, directory: str | Path) -> "Run":
        """The run in a folder, finished or not. ValueError, in a sentence, where there is none or it is damaged."""
        return cls(directory)

    def __repr__(self) -> str:
        return f"Run.open({str(self.directory)!r})"

    @cached_property
    def system(self) -> System:
        """Its atoms, at rest; where only a failure rule was given, and in folders of before 2026-12, at the first start."""
        return system_told(self.description)

    @cached_property
    def rule(self) -> FailureRule:
        """When a replica had failed."""
        return rule_of(self.description)

    @property
    def starts(self) -> np.ndarray:
        """(R, N, 3) angstrom."""
        return np.array(self.description["starts"])

    @cached_property
    def kinds(self) -> np.ndarray:
        """(R,) names of the kinds of start, "start" where none was told."""
        kinds = self.description.get("kinds")
        # Verdicts of before 2026-12 told them in a file of their own.
        outcome = self.directory / "outcome.json"
        if kinds is None and outcome.exists():
            kinds = json.loads(outcome.read_text())["kinds"]
        return np.array(kinds or ["start"] * len(self.target_temperatures))

    @property
    def target_temperatures(self) -> np.ndarray:
        """(R,) K, of the thermostats."""
        return np.array(self.description["temperatures_K"])

    @property
    def timestep(self) -> float:
        """fs"""
        return float(self.description["timestep_fs"])

    @property
    def finished(self) -> bool:
        """Whether it is as long as was asked for, or no replica is left."""
        steps = round(1000 * self.description["time_ps"] / self.timestep)
        return bool(self.state["step"] >= steps or not self.survived.any())

    def group(self, temperature: float, kind: str) -> np.ndarray:
        """Numbers of the replicas at a temperature (K) from a kind of start."""
        return np.flatnonzero((self.target_temperatures == temperature) & (self.kinds == kind))

    @property
    def groups(self) -> list[tuple[float, str]]:
        """All (temperature, kind) in order."""
        return list(dict.fromkeys(zip(self.target_temperatures.tolist(), self.kinds.tolist(), strict=True)))

    @cached_property
    def trajectory(self) -> Trajectory:
        """All frames."""
        return load_trajectory(self.directory)

    @property
    def times(self) -> np.ndarray:
        """(frames,) fs."""
        return self._series["times"]

    @property
    def temperatures(self) -> np.ndarray:
        """(frames, R) K, NaN where not alive."""
        return self._series["temperatures"]

    @property
    def energies(self) -> np.ndarray:
        """(frames, R) potential energy, eV, NaN where not alive."""
        return self._series["energies"]

    @property
    def conserved_energies(self) -> np.ndarray:
        """(frames, R) eV, see `Trajectory.conserved_energies`."""
        return self._series["conserved_energies"]

    @property
    def lives(self) -> np.ndarray:
        """(R,) frames that each replica was alive in."""
        return self._series["alive"].sum(0)

    @property
    def energy_drifts(self) -> np.ndarray:
        """(R,) slopes of `Trajectory.conserved_energies` in eV/ps while alive, by least squares; NaN where there is none."""
        times, energies = self.times[:, None] / 1000, self.conserved_energies
        known = np.isfinite(energies)
        count = np.maximum(known.sum(0), 1)
        t = np.where(known, times - np.where(known, times, 0).sum(0) / count, 0)
        with np.errstate(invalid="ignore"):
            return (t * np.nan_to_num(energies)).sum(0) / (t * t).sum(0)

    @cached_property
    def _series(self) -> dict[str, np.ndarray]:
        """Without positions, which may be too many for the memory."""
        names = ("times", "temperatures", "energies", "conserved_energies", "alive")
        columns = [[getattr(piece, name) for name in names] for piece in read_pieces(self.directory)]
        return {name: np.concatenate(column) for name, column in zip(names, zip(*columns, strict=True), strict=True)}

    def mean_temperatures(self, since: float = 0.0) -> np.ndarray:
        """Mean kinetic temperature (R,) in K over the frames with the replica alive; NaN where it has none left.

        Parameters
        ----------
        since: share of the run to leave out at the beginning, 0.5 for the second half.
        """
        window = self.temperatures[self.times >= since * self.times[-1]]
        frames = np.isfinite(window).sum(0)
        return np.where(frames > 0, np.nansum(window, axis=0) / np.maximum(frames, 1), np.nan)

    @property
    def status(self) -> np.ndarray:
        """(R,) `failure.Status`."""
        return self.state["replicas.status"]

    @property
    def survived(self) -> np.ndarray:
        """(R,) bool."""
        return self.status == Status.ALIVE

    @property
    def failure_times(self) -> np.ndarray:
        """(R,) fs, NaN for survivors."""
        return np.where(self.survived, np.nan, self.state["replicas.steps"] * self.timestep)

    @cached_property
    def failure_reasons(self) -> tuple[str, ...]:
        """(R,) in words, empty for survivors."""
        told = read_failures(self.directory)
        if missing := [int(k) for k in np.flatnonzero(~self.survived) if k not in told]:
            raise ValueError(f"expected why replica {missing[0]} failed, found nothing in {self.directory}; restore its files")
        return tuple("" if survived else told[k] for k, survived in enumerate(self.survived))

    @property
    def positions(self) -> np.ndarray:
        """Final positions (R, N, 3) in angstrom."""
        return self.state["replicas.dynamics.position"]

    @property
    def momenta(self) -> np.ndarray:
        """Final momenta (R, N, 3) in sqrt(amu eV)."""
        return self.state["replicas.dynamics.momentum"]

    @property
    def shortest_period(self) -> float | None:
        """Of a vibration of the potential where the molecule rests, fs; None where it is not known, as in folders of before."""
        return self.description.get("shortest_period_fs")

    @property
    def training_energies(self) -> tuple[float, float] | None:
        """Lowest and highest energy, eV, of the geometries that the potential learned; None where it does not tell them."""
        told = self.description.get("training_energies_eV")
        return told and (told[0], told[1])

    @cached_property
    def concerns(self) -> tuple[str, ...]:
        """Why it cannot be believed, a sentence each; empty where nothing speaks against it. See `soundness`."""
        return soundness.concerns(self)

    @property
    def ms_per_step_per_replica(self) -> float:
        """Wall time without compilation; NaN before the first step."""
        steps = int(self.state["step"]) * len(self.target_temperatures)
        return 1000 * float(self.state["seconds"]) / steps if steps else np.nan


def system_told(description: dict[str, Any]) -> System:
    """The atoms that a description tells of, at rest where it tells that, else at the first start."""
    cell = description.get("cell")
    return System(
        tuple(description["species"].split()),
        np.array(description.get("at_rest", description["starts"][0])),
        description.get("charge", 0),
        description.get("spin", 0),
        None if cell is None else np.array(cell),
        tuple(description.get("molecules", ())),
    )


def rule_of(description: dict[str, Any]) -> FailureRule:
    """The failure rule that a description tells: of a run that began with an older one, that."""
    species, molecules = tuple(description["species"].split()), tuple(description.get("molecules", ()))
    bonds = np.array(description["bonds"], dtype=int).reshape(-1, 2)

    def mask(pairs: Any) -> np.ndarray:
        if not molecules:
            return np.array(pairs)
        matrix = np.eye(len(species), dtype=bool)
        i, j = np.array(pairs, dtype=int).reshape(-1, 2).T
        matrix[i, j] = matrix[j, i] = True
        return matrix

    lengths = np.array(description["bond_lengths"], dtype=float)
    told = description.get("coordination")
    coordination = None if told is None else np.array(told, dtype=float)
    return FailureRule(species, bonds, lengths, mask(description["near"]), mask(description["held"]), molecules, coordination)


def description_of(rule: FailureRule) -> dict[str, Any]:
    """What `rule_of` reads; of several molecules the pairs within them that are near each other, as most are not."""

    def told(matrix: np.ndarray) -> list:
        return np.argwhere(np.triu(matrix & rule.together, 1)).tolist() if rule.molecules else matrix.tolist()

    description = {
        "species": " ".join(rule.species),
        "bonds": rule.bonds.tolist(),
        "bond_lengths": rule.lengths.tolist(),
        "near": told(rule.near_at_rest),
        "held": told(rule.held_at_rest),
    }
    if rule.coordination is not None:
        description["coordination"] = rule.coordination.tolist()
    return description | ({"molecules": list(rule.molecules)} if rule.molecules else {})


@dataclass(frozen=True)
class Record:
    """What a run leaves in its folder on the way: frames, failures, checkpoints, the log."""

    directory: Path
    species: tuple[str, ...]
    recorder: Recorder | None
    """None in all processes but the first"""
    say: Callable[[str], Any]
    momenta: bool = False
    """whether frames keep them"""

    def tell(self, line: str) -> None:
        """Say a line and add it to the log."""
        if self.recorder:
            log(self.directory, line)
        self.say(line)

    def frame(self, time: float, frame: Frame) -> None:
        """Add a frame at a time in fs."""
        kept = jax.device_get(frame)._asdict()
        if not self.momenta:
            del kept["momenta"]
        if self.recorder:
            self.recorder.record(times=np.float64(time), **kept)

    def failures(self, failures: list[dict[str, Any]]) -> None:
        """Keep the geometries that failed."""
        if self.recorder:
            save_failures(self.directory, self.species, failures)

    def checkpoint(self, state: RunState) -> None:
        """Write all that the rest of the run follows from, frames first."""
        if self.recorder:
            self.recorder.flush()
            save_checkpoint(self.directory, state)
