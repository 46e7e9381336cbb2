"""What is to be made of a molecule, as data, and the clock that tells how long it may take."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path

from iqagp_jax.dynamics.checks import check_temperatures, require_positive
from iqagp_jax.labels.plan import LabelPlan
from iqagp_jax.machine.files import write_atomically
from iqagp_jax.sampling import SamplingPlan
from iqagp_jax.verdict import Protocol
from iqagp_jax.verdict.replicas import BASINS
from iqagp_jax.verdict.shape import SCANNED

GFN2 = "gfn2-xtb"

KINDS = (BASINS, "displaced", "stretched")
"""Of starts in the verdicts that teach; the exam begins in the basins."""

FRAMES = 60
"""Relabelled at every temperature where labels are cheap: what a grade needs, see `verdict.truth`."""

TEACHING_PS = 15.0
"""Lives of the replicas that teach; 7 of each kind make 315 replica-ps at every temperature, what a grade needs."""

SAMPLED = SamplingPlan(
    metadynamics={600.0: 60},
    thermal={500.0: 40, 1000.0: 60, 1500.0: 20},
    displaced=25,
    bond=30,
    contact=35,
    test={500.0: 40, 1000.0: 40},
    runs=2,
)
"""What the cheap model learns first; one run from every minimum where there are more."""

INTERVALS = 5.0, 10.0, 25.0, 50.0, 125.0, 250.0, 500.0
"""Between frames of an exam, fs: the first of which it has at most `MOST_FRAMES`."""

MOST_FRAMES = 5000

FIRST = 1 / 3
"""Of the dear labels, made before the first run of the model; the others are frames of its runs."""

ROUNDS = 4
"""Exams in which the other dear labels are made."""


@dataclass(frozen=True)
class Recipe:
    """What `make` makes; with the same recipe it goes on in its folder."""

    molecule: str
    """SMILES, or a geometry file"""
    level: str = "b3lyp/6-31+g(d,p)"
    """FUNCTIONAL/BASIS as PySCF names them, or gfn2-xtb"""
    temperatures: tuple[float, ...] = (300.0, 500.0, 700.0, 1000.0)
    """K, at which the potential is to be trusted"""
    replicas: int = 20
    """of the exam at every temperature"""
    time: float = 20.0
    """ps, length of the exam"""
    labels: int = 150
    """by the dear level at most"""
    local: bool = False
    """whether models have a process of atoms' surroundings, see `families.gp.local`"""
    charge: int = 0
    spin: int = 0
    """number of unpaired electrons"""
    seed: int = 0

    def __post_init__(self) -> None:
        check_temperatures(self.temperatures, len(self.temperatures))
        require_positive("a time in ps", self.time)
        if self.replicas < 1:
            raise ValueError(f"expected at least one replica, found {self.replicas}")
        if not self.is_cheap and self.labels < 3 * ROUNDS * len(self.temperatures):
            raise ValueError(
                f"expected at least {3 * ROUNDS * len(self.temperatures)} labels for {len(self.temperatures)} temperatures,"
                f" found {self.labels}; allow more"
            )
        if not self.is_cheap and self.plan.is_coupled_cluster:
            raise ValueError(
                f"expected a level of theory with forces, found {self.level}, which gives energies alone; make a potential of a"
                " functional, then `iqagp train` the difference over it"
            )

    @property
    def is_cheap(self) -> bool:
        """Whether GFN2-xTB is all that is wanted."""
        return self.level.lower() == GFN2

    @property
    def plan(self) -> LabelPlan:
        """Of the dear labels. ValueError, in a sentence, where the level is none."""
        functional, _, basis = self.level.partition("/")
        if not (functional and basis):
            raise ValueError(f"expected a level as b3lyp/6-31+g(d,p), or {GFN2}, found {self.level!r}")
        return LabelPlan(functional, basis, self.charge, self.spin, partitions=())

    @property
    def first(self) -> int:
        """Dear labels before the first run."""
        return round(FIRST * self.labels)

    @property
    def frames(self) -> int:
        """Labelled in an exam at every temperature, so that all rounds keep within the labels."""
        return FRAMES if self.is_cheap else (self.labels - self.first) // (ROUNDS * len(self.temperatures))

    def sampling(self, minima: int, atoms: int, biased: bool) -> SamplingPlan:
        """The geometries to make around so many ``minima``; metadynamics where there is something to be ``biased``.

        Of two atoms none are in contact: their bond is compressed as it is.
        """
        contact, biasing = SAMPLED.contact if atoms > 2 else 0, SAMPLED.metadynamics if biased else {}
        return replace(SAMPLED, runs=max(SAMPLED.runs, minima), metadynamics=biasing, contact=contact)

    def teaching(self, minima: tuple, species: tuple[str, ...]) -> Protocol:
        """Of the verdicts that teach by cheap labels; no bond is stretched where there is no hydrogen."""
        kinds = KINDS if "H" in species else KINDS[:2]
        return Protocol(
            self.temperatures,
            kinds,
            replicas=max(7, len(minima)),
            time=TEACHING_PS,
            frames=-(-FRAMES // len(kinds)),
            reference_replicas=0,
            seed=self.seed,
            scan_points=SCANNED,
            minima=minima,
        )

    def exam(self, minima: tuple) -> Protocol:
        """Of the verdicts that the potential has to pass, other runs than those that taught it.

        Where labels are dear there are as many replicas as labels for their last frames, each as much longer.
        """
        replicas, frames = max(self.replicas, len(minima)), self.frames
        if not self.is_cheap:
            replicas = min(self.frames, self.replicas)
            frames -= frames % replicas  # each replica has as many
        fs = 1000 * self.time * max(1.0, self.replicas / replicas)
        interval = next(each for each in INTERVALS if fs / each <= MOST_FRAMES or each == INTERVALS[-1])
        return Protocol(
            self.temperatures,
            (BASINS,),
            replicas=replicas,
            time=ceil(fs / interval) * interval / 1000,
            frame_interval=interval,
            frames=frames,
            reference_replicas=0,
            seed=self.seed + 1000,
            scan_points=SCANNED if self.is_cheap else 0,
            minima=minima,
        )


@dataclass
class Clock:
    """How long was worked in a folder, however often it was stopped, and how long it may take."""

    path: Path
    budget: float | None
    """s; None for no end"""
    stages: dict[str, float] = field(default_factory=dict)
    """seconds spent so far in each"""

    def __post_init__(self) -> None:
        self._stage, self._since = "", time.monotonic()
        if self.path.exists():
            self.stages = json.loads(self.path.read_text())

    @property
    def spent(self) -> float:
        """Seconds."""
        return sum(self.stages.values())

    @property
    def left(self) -> float:
        """Seconds, infinite where there is no end; as of the last tick."""
        return float("inf") if self.budget is None else self.budget - self.spent

    @property
    def taken(self) -> float:
        """Seconds that the stage has taken, all calls together, as of the last tick."""
        return self.stages[self._stage]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What is done in the block counts as spent in this stage."""
        self._stage, self._since = name, time.monotonic()
        try:
            yield
        finally:
            self.tick()

    def tick(self, least: float = 0.0) -> None:
        """Write down what the stage has taken until now, if that is ``least`` seconds or more since the last time."""
        now = time.monotonic()
        if now - self._since < least:
            return
        self.stages[self._stage] = self.stages.get(self._stage, 0.0) + now - self._since
        self._since = now
        write_atomically(self.path, json.dumps(self.stages, indent=1))

    def __str__(self) -> str:
        end = "" if self.budget is None else f" of {self.budget / 60:.0f}"
        return f"{self.spent / 60:.0f}{end} min spent"
