"""Labels to be made: tasks, what a worker does with them, and the queue that decides when one is set aside."""

import json
import traceback
from collections import defaultdict, deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms

from iqagp_jax.data.dataset import DECIMALS
from iqagp_jax.labels.label import label_geometry, label_key
from iqagp_jax.labels.plan import LabelPlan
from iqagp_jax.machine.files import write_atomically
from iqagp_jax.machine.lock import stop_requested


class Task(NamedTuple):
    """A label to be made, and its file."""

    species: list[str]
    positions: np.ndarray
    """(N, 3) angstrom, rounded as in datasets"""
    plan: LabelPlan
    path: Path

    @classmethod
    def of(cls, atoms: Atoms, plan: LabelPlan, folder: Path) -> "Task":
        """The task of ASE atoms; its file is named after everything that determines the label."""
        species, positions = atoms.get_chemical_symbols(), np.round(atoms.get_positions(), DECIMALS)
        return cls(species, positions, plan, folder.resolve() / f"{label_key(species, positions, plan)}.json")

    @property
    def key(self) -> str:
        """Name of the label."""
        return self.path.stem

    @property
    def failed(self) -> Path:
        """The file of a label set aside: a sentence, then the tracebacks."""
        return self.path.with_suffix(".failed")


def label_to_files(tasks: Iterable[Task]) -> dict[Path, str]:
    """Make labels, each on disk before the next begins; returns {path: traceback, or an empty text where it is made}.

    This is what workers run. It passes over labels that are there: jobs may outlive the campaign that submitted them.
    """
    from iqagp_jax.labels.scf import single_thread

    single_thread()
    outcomes = {}
    for task in tasks:
        if stop_requested(task.path.parent):
            break
        if not task.path.exists():
            try:
                label = label_geometry(task.species, task.positions, task.plan)
            except Exception:  # whatever a geometry makes a program do
                outcomes[task.path] = traceback.format_exc()
                continue
            write_atomically(task.path, json.dumps(label))
        outcomes[task.path] = ""
    return outcomes


class Queue:
    """The tasks not in flight and what went wrong with them.

    A label that raises an exception ``attempts`` times is set aside. One whose worker died is not at fault: only after
    ``attempts`` deaths is it tried with nothing beside it, after all others, and after as many more set aside.
    Where ``patience`` workers die one after another the fault is elsewhere: RuntimeError.
    """

    def __init__(self, tasks: Iterable[Task], attempts: int, patience: int):
        self.attempts, self.patience = attempts, patience
        self.waiting, self.suspects = deque(tasks), deque[Task]()
        self.tracebacks: dict[Path, list[str]] = defaultdict(list)
        self.deaths: dict[Path, list[Exception]] = defaultdict(list)
        self.deaths_in_a_row = 0

    def take(self, n: int, alone: bool) -> list[Task]:
        """Up to ``n`` tasks to begin with; a suspect only if nothing else is in flight (``alone``)."""
        if self.waiting:
            return [self.waiting.popleft() for _ in range(min(n, len(self.waiting)))]
        return [self.suspects.popleft()] if alone and self.suspects else []

    def clear(self) -> None:
        """Begin with no more tasks."""
        self.waiting.clear()
        self.suspects.clear()

    def put_back(self, task: Task, outcome: str | Exception | None) -> bool:
        """Take a task back from a worker; returns whether that was its end.

        ``outcome`` is that of `label_to_files`, the exception of the worker that died of it, or None if it was not begun.
        """
        tracebacks, deaths = self.tracebacks[task.path], self.deaths[task.path]
        if isinstance(outcome, Exception):
            deaths.append(outcome)
            self.deaths_in_a_row += 1
            if self.deaths_in_a_row == self.patience:
                raise RuntimeError(f"{self.patience} workers died one after another, lastly: {outcome}; mend that, start again")
        elif outcome:
            tracebacks.append(outcome)
        if len(tracebacks) == self.attempts:
            reason = f"failed {len(tracebacks)} times, lastly: {tracebacks[-1].splitlines()[-1]}"
        elif len(deaths) == 2 * self.attempts:
            reason = f"its worker died {len(deaths)} times, lastly with nothing beside it: {deaths[-1]}"
        elif outcome != "":
            (self.suspects if len(deaths) >= self.attempts else self.waiting).append(task)
            return False
        if outcome:
            write_atomically(task.failed, "\n\n".join([reason, *tracebacks]))
        self.deaths_in_a_row = 0
        return True
