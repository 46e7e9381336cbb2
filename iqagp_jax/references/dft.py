"""Density functional theory as a reference: a campaign that may take days."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import write

from iqagp_jax.data.dataset import DECIMALS
from iqagp_jax.labels.campaign import Campaign
from iqagp_jax.labels.executors import Processes
from iqagp_jax.labels.plan import LabelPlan, write_plan
from iqagp_jax.references.xtb import XTB


class DFT:
    """Density functional theory by PySCF: labels are a `Campaign`, which goes on where it was stopped.

    Every set of geometries has its own folder in ``folder``, named by a digest of them. ``pool`` is any executor of
    ``concurrent.futures``; with None processes come and go with each set.

    Distorted starts are relaxed by GFN2-xTB: it takes seconds, and tells as well what holds together.
    """

    def __init__(self, plan: LabelPlan, species: Sequence[str], folder: str | Path, pool: Executor | None, workers: int):
        self.relax = XTB(species, plan.charge, plan.spin, pool).relax
        self.name, self.plan, self.species = str(plan.level_of(species)), plan, tuple(species)
        self.folder, self.pool, self.workers = Path(folder), pool, workers

    def labels(
        self, positions: np.ndarray, progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items
    ) -> tuple[np.ndarray, np.ndarray]:
        """Energies (n,) in eV and forces (n, N, 3) in eV/angstrom of geometries (n, N, 3); NaN where a label was rejected.

        Raises RuntimeError where the campaign was asked to stop.
        """
        positions = np.round(positions, DECIMALS)
        folder = self.folder / hashlib.sha256(positions.tobytes()).hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)
        frames = folder.with_suffix(".extxyz")
        write(frames, [Atoms(self.species, positions=r) for r in positions], format="extxyz")
        write_plan(folder, frames, self.plan)
        campaign = Campaign.load(folder)
        with nullcontext(self.pool) if self.pool else Processes(self.workers) as pool:
            campaign.run(pool, self.workers, progress=progress, free_atoms=False)
        if lacking := campaign.lacking(campaign.tasks):
            raise RuntimeError(f"stopped with {len(lacking)} labels missing; run the same command again to go on")
        none = {"energy": np.nan, "forces": np.full((len(self.species), 3), np.nan)}
        found = [campaign.labels.get(task.key) for task in campaign.tasks]
        labels = [label if label and "rejected" not in label else none for label in found]
        return np.array([label["energy"] for label in labels]), np.array([label["forces"] for label in labels])
