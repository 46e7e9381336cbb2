"""Campaigns: folders that make many labels, each on disk before the next begins, and the datasets that come of them."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, ground_state_magnetic_moments

from iqagp_jax.data.dataset import DECIMALS, ORIGIN, Dataset
from iqagp_jax.labels.executors import Jobs
from iqagp_jax.labels.label import check_label, tell_t1
from iqagp_jax.labels.pack import Labels, pack
from iqagp_jax.labels.plan import (
    PLAN,
    LabelPlan,
    check,
    check_state,
    owned_by_a_campaign,
    read_geometries,
    read_plan,
    write_plan,
)
from iqagp_jax.labels.queue import Queue, Task, label_to_files
from iqagp_jax.machine.lock import owner, stop_requested
from iqagp_jax.machine.warn import warn

RECENT = 100
"""Labels that the rate of a campaign is the average of."""


@dataclass(frozen=True)
class Campaign:
    """A folder of labels: plan.toml, the geometries, and `Labels`, finished or set aside.

    Who wants a label tried again deletes its KEY.failed. Another level in the plan gives the labels other keys.
    """

    folder: Path
    geometries: list[Atoms]
    plan: LabelPlan
    attempts: int

    @classmethod
    def load(cls, folder: str | Path) -> "Campaign":
        """The campaign of a folder. Raises ValueError, in a sentence, where its plan is nonsense."""
        file, plan, attempts = read_plan(folder)
        geometries = read_geometries(file)
        check_state(geometries, plan.charge, plan.spin)
        return cls(Path(folder), geometries, plan, attempts)

    @cached_property
    def labels(self) -> Labels:
        """What there is of labels, by the keys of tasks."""
        return Labels(self.folder)

    def label(self, task: Task) -> dict[str, Any] | None:
        """What there is of a task's label; None where it is not made. ValueError, in a sentence, where it makes no sense."""
        label = self.labels.get(task.key)
        if label and "rejected" not in label:
            try:
                check_label(label, task.species, task.plan)
            except ValueError as error:
                raise ValueError(f"label {task.key} in {self.folder}: {error}; remove it to label anew") from error
        return label

    @cached_property
    def tasks(self) -> list[Task]:
        """One for every geometry, in their order."""
        return [Task.of(atoms, self.plan, self.folder) for atoms in self.geometries]

    @cached_property
    def free_atoms(self) -> dict[str, Task]:
        """One for every element, by its symbol: the free atom at the same level of theory."""
        tasks = {}
        for symbol in sorted(set(self.geometries[0].get_chemical_symbols())):
            spin = round(ground_state_magnetic_moments[atomic_numbers[symbol]])
            atom = Atoms([symbol], positions=np.zeros((1, 3)))
            tasks[symbol] = Task.of(atom, replace(self.plan, charge=0, spin=spin), self.folder)
        return tasks

    def run(
        self,
        executor: Executor,
        workers: int,
        batch: int = 1,
        progress: Callable[[Iterable[Task], int], Iterable[Task]] = lambda items, total: items,
        free_atoms: bool = True,
    ) -> None:
        """Make the missing labels, ``workers`` tasks of ``batch`` geometries at a time, until all are made or it is stopped.

        Without ``free_atoms`` those of the geometries alone.

        ``executor`` is any of ``concurrent.futures``. Killing this process or a worker at any moment loses the labels in
        flight only; a stop finishes them, and cancels jobs that have not begun. Raises RuntimeError where workers do
        nothing but die.
        """
        check(self.geometries, self.plan)
        with owned_by_a_campaign(self.folder):
            missing = self.missing if free_atoms else self.lacking(self.tasks)
            for _ in progress(self._run(missing, executor, workers, batch), len(missing)):
                pass

    def _run(self, missing: list[Task], executor: Executor, workers: int, batch: int) -> Iterator[Task]:
        """Yield every task that comes to its end."""
        queue = Queue(missing, self.attempts, 10 * workers)
        running: dict[Future[dict[Path, str]], list[Task]] = {}
        while True:
            if stop_requested(self.folder):
                if isinstance(executor, Jobs):
                    executor.cancel_pending()
                queue.clear()
            while len(running) < workers and (chunk := queue.take(batch, alone=not running)):
                running[executor.submit(label_to_files, chunk)] = chunk
            if not running:
                return
            for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                chunk = running.pop(future)
                outcomes: dict[Path, Any]
                try:
                    outcomes = future.result()
                except Exception as death:  # the worker's, as label_to_files returns those of geometries
                    outcomes = {task.path: "" for task in chunk if task.path.exists()}
                    in_flight = [task.path for task in chunk if task.path not in outcomes][:1]
                    outcomes |= dict.fromkeys(in_flight, death)
                yield from (task for task in chunk if queue.put_back(task, outcomes.get(task.path)))

    def dataset(self) -> tuple[Dataset, list[tuple[Any, str]]]:
        """`collect` of what is finished so far."""
        atoms = {symbol: self.label(task) for symbol, task in self.free_atoms.items()}
        energies = {symbol: label["energy"] for symbol, label in atoms.items() if label and "energy" in label}
        labels = [self.label(task) for task in self.tasks]
        dataset, rejected = collect(self.geometries, labels, self.plan, energies)
        if lacking := [symbol for symbol, label in atoms.items() if label is None]:
            warn(
                f"no energy of a free atom {' or '.join(lacking)} is in {self.folder}: the dataset is without; run the campaign"
                " again to make it"
            )
        bad = [(f"free {symbol}", label["rejected"]) for symbol, label in atoms.items() if label and "rejected" in label]
        return dataset, bad + rejected

    @property
    def missing(self) -> list[Task]:
        """The tasks that are neither made nor set aside, free atoms first, equal geometries once."""
        return self.lacking((*self.free_atoms.values(), *self.tasks))

    def lacking(self, tasks: Iterable[Task]) -> list[Task]:
        """Those of some tasks that are neither made nor set aside, equal ones once."""
        different = {task.path: task for task in tasks}.values()
        return [task for task in different if not (task.key in self.labels or self.labels.is_set_aside(task.key))]

    def pack(self) -> tuple[int, int]:
        """`pack` the finished labels. Raises ValueError where a process owns the folder."""
        with owned_by_a_campaign(self.folder):
            return pack(self.folder)

    def progress(self) -> "Progress":
        """How far it is, also while it runs."""
        labels = [self.label(task) for task in self.tasks]
        failed = sum(self.labels.is_set_aside(task.key) for task in self.tasks)
        rejected = sum("rejected" in label for label in labels if label) - failed
        made = sum(label is not None for label in labels) - rejected - failed
        now, running = time.time(), owner(self.folder)
        lock = self.folder / "lock"  # written by every owner; a copied folder has none
        began = lock.stat().st_mtime if lock.exists() else now
        times = sorted(path.stat().st_mtime for path in {task.path for task in self.tasks} if path.exists())
        recent = [began, *(t for t in times if t > began)][-RECENT - 1 :]
        rate = end = None
        if len(recent) > 1:
            rate = (len(recent) - 1) / ((now if running else recent[-1]) - recent[0])
            end = datetime.fromtimestamp(now + len(self.missing) / rate) if running else None
        return Progress(len(labels), made, rejected, failed, running, stop_requested(self.folder), rate, end)


@dataclass(frozen=True)
class Progress:
    """How far a campaign is, in numbers of geometries."""

    total: int
    made: int
    rejected: int
    """labels that are no good: no convergence, or atoms that do not sum to the molecule"""
    failed: int
    """set aside"""
    owner: str | None
    """the process that runs it, None where it does not run"""
    stopping: bool
    rate: float | None
    """labels a second, of the last hundred that were finished since the last start or packing; None before the first"""
    end: datetime | None
    """estimated end, None where it does not run"""


def begin(folder: str | Path, geometries: str | Path | None = None, **plan: Any) -> Campaign:
    """Begin a campaign in a folder with the file ``geometries`` and entries of `LabelPlan`, or go on with the one there.

    Raises ValueError where it is there and its plan or geometries are others.
    """
    if geometries and not (Path(folder) / PLAN).exists():
        write_plan(folder, geometries, LabelPlan(**plan))
    campaign = Campaign.load(folder)
    for name, value in plan.items():
        planned = getattr(campaign.plan, name)
        if value != planned:
            raise ValueError(f"expected {name} {planned} as in {campaign.folder / PLAN}, found {value}; choose another folder")
    if geometries and Path(geometries).read_bytes() != read_plan(folder)[0].read_bytes():
        raise ValueError(f"expected the geometries of {campaign.folder}, found others in {geometries}; choose another folder")
    return campaign


def collect(
    geometries: list[Atoms], labels: list[dict[str, Any] | None], plan: LabelPlan, free_atoms: dict[str, float]
) -> tuple[Dataset, list[tuple[Any, str]]]:
    """The `Dataset` of the accepted labels and a list (number of the geometry, reason) of the rejected ones.

    A label that is not made yet is None.
    """
    rejected = [(k, label["rejected"]) for k, label in enumerate(labels) if label and "rejected" in label]
    kept = [(atoms, label) for atoms, label in zip(geometries, labels, strict=True) if label and "rejected" not in label]
    if not kept:
        reason = f"the first was rejected because {rejected[0][1]}" if rejected else "none is finished"
        raise ValueError(f"expected at least one good label to make a dataset of, found none; {reason}")
    infos = [atoms.info for atoms, _ in kept]
    extra = {}
    if plan.is_coupled_cluster:
        extra["t1_diagnostic"] = np.array([label["t1_diagnostic"] for _, label in kept])
        tell_t1(extra["t1_diagnostic"])
    for name in plan.partitions:
        extra[f"{name}_energies"] = np.array([label["raw"][name] for _, label in kept])
        extra[f"{name}_charges"] = np.array([label["charges"][name] for _, label in kept])
        extra[f"{name}_remainder"] = np.array([label["remainder"][name] for _, label in kept])
        if plan.multipoles:
            extra[f"{name}_multipoles"] = np.array([label["multipoles"][name] for _, label in kept])
    dataset = Dataset(
        species=tuple(geometries[0].get_chemical_symbols()),
        positions=np.round([atoms.get_positions() for atoms, _ in kept], DECIMALS),
        energy=np.array([label["energy"] for _, label in kept]),
        forces=np.array([label["forces"] for _, label in kept]) if plan.forces else None,
        origin={key: np.array([info[key] for info in infos]) for key in ORIGIN if all(key in i for i in infos)},
        extra=extra,
        level=replace(
            plan.level_of(geometries[0].get_chemical_symbols()),
            programs="; ".join(sorted({label.get("programs", plan.level.programs) for _, label in kept})),
            # The geometries may be a dataset's, whose level of theory and partition were others.
            sampler=infos[0].get("sampler", ""),
        ),
        free_atoms=free_atoms,
    )
    return (dataset.with_partition(plan.partitions[0]) if plan.partitions else dataset), rejected
