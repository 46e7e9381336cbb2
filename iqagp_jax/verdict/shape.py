"""The shape of a potential: bonds, bends and torsions scanned, atoms pulled away, beside the reference.

A hole, where the model lies far below the reference at an energy that hot dynamics reaches, is found here in minutes, before
any run falls into it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from iqagp_jax.system.geometry import bond_graph, moved_side, pair_distances
from iqagp_jax.system.system import System
from iqagp_jax.units import KCAL_MOL
from iqagp_jax.validation import atom_labels
from iqagp_jax.verdict.parts import Grade, Part
from iqagp_jax.verdict.truth import FALSE_BASIN, Spread, columns, two_figures

LENGTHS = np.linspace(0.6, 2.0, 15)
"""Of scanned bonds, in units of the one at rest."""

ANGLES = np.arange(60.0, 180.0, 15.0)
"""Of scanned bends, degrees."""

TURNS = np.arange(15.0, 360.0, 15.0)
"""By which torsions are turned, degrees."""

PULLS = np.arange(0.5, 4.5, 0.5)
"""By which single atoms are pulled away, angstrom."""

REACH = 40.0
"""Energies so far above the minimum are within reach, kcal/mol.

At 1000 K such a barrier is crossed some 10 exp(-E / kT) times per ps, once in 50 microseconds."""

SCANNED = 5000
"""Geometries of scans that a cheap reference labels at most: all, of molecules of some 80 atoms."""

KINDS = {"bond": "Å", "bend": "°", "torsion": "°", "atom": "Å"}
"""What is scanned, and in which unit."""


@dataclass(frozen=True)
class Scan:
    """One coordinate of a molecule through its range, the others as they are at rest."""

    kind: str
    """bond, bend, torsion or atom"""
    name: str
    values: Float[np.ndarray, "p"]
    """of the coordinate; by how much it was turned or pulled, of a torsion or an atom"""
    positions: Float[np.ndarray, "p n 3"]
    """angstrom"""


@dataclass(frozen=True)
class Profile:
    """A `Scan` with energies by the model and the reference, in kcal/mol above the reference's at rest; NaN where unknown."""

    scan: Scan
    model: Float[np.ndarray, "p"]
    reference: Float[np.ndarray, "p"]
    labelled: np.ndarray
    """(p,) bool, given to the reference"""
    floor: float
    """the model's energy at rest"""

    @property
    def within_reach(self) -> np.ndarray:
        """(p,) where the model or the reference is within `REACH`, of what was given to the reference."""
        return self.labelled & ((self.model < self.floor + REACH) | (self.reference < REACH))

    @property
    def depth(self) -> np.ndarray:
        """(p,) by how much the model lies below the reference where the model is within reach; -inf elsewhere.

        Where the reference has no energy at all, the model should be beyond reach: infinitely deep.
        """
        reachable = self.labelled & (self.model < self.floor + REACH)
        return np.where(reachable, np.nan_to_num(self.reference, nan=np.inf) - self.model, -np.inf)


@dataclass(frozen=True)
class Scanned:
    """All scans of one kind; energies in kcal/mol."""

    kind: str
    scans: int
    geometries: int
    """given to the reference"""
    without_label: int
    """that it cannot calculate"""
    within_reach: int
    de: Spread | None
    """|dE| of those within reach"""
    deepest: float | None
    """by how much the model lies below the reference at most; None where it is within reach nowhere"""
    where: str
    """of the deepest"""

    def as_dict(self) -> dict[str, Any]:
        """A row of ``robustness.json``, in which a depth without end is None beside its place."""
        counted = ("kind", "scans", "geometries", "without_label", "within_reach")
        depth = None if self.deepest is None or np.isinf(self.deepest) else self.deepest
        told = {name: getattr(self, name) for name in counted}
        return {**told, **columns("de", self.de), "deepest": depth, "where": self.where}


@dataclass(frozen=True)
class Points:
    """What the shape rests on."""

    geometries: int
    """of all scans"""
    labelled: int
    """with an energy by the reference"""


def scans(system: System) -> tuple[Scan, ...]:
    """All scans of a molecule at rest; bonds of rings and bends with one are not among them, atoms in rings are pulled.

    Geometries with atoms in contact are left out: a replica that comes there has failed, by the rule of `system.failure`.
    """
    made = [Scan(kind, *found) for kind, make in _MADE.items() for found in make(system)]
    apart = [pair_distances(scan.positions) + np.diag(np.full(len(system), np.inf)) for scan in made]
    free = [(distances > system.failure_rule.contact).all((1, 2)) for distances in apart]
    return tuple(
        replace(scan, values=scan.values[kept], positions=scan.positions[kept])
        for scan, kept in zip(made, free, strict=True)
        if kept.any()
    )


def turned(
    positions: Float[np.ndarray, "n 3"], moved: np.ndarray, centre: np.ndarray, axis: np.ndarray, degrees: float
) -> Float[np.ndarray, "n 3"]:
    """Positions with the atoms ``moved`` (N,) turned about an axis through ``centre``, by Rodrigues' formula."""
    axis, angle = axis / np.linalg.norm(axis), np.radians(degrees)
    arms = positions - centre
    around = arms * np.cos(angle) + np.cross(axis, arms) * np.sin(angle) + np.outer(arms @ axis, axis) * (1 - np.cos(angle))
    return np.where(moved[:, None], centre + around, positions)


def _bonds(system: System) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """A bond's smaller side is moved along it."""
    labels, r = atom_labels(system.species), system.positions
    for i, j, side in _open_bonds(system):
        along = r[j] - r[i]
        length = np.linalg.norm(along)
        yield (
            _named(labels, min(i, j), max(i, j)),
            length * LENGTHS,
            np.array([r + np.outer(side, (x - 1) * along) for x in LENGTHS]),
        )


def _bends(system: System) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The smaller branch of two at an atom is turned in their plane; of a straight angle in any."""
    labels, r = atom_labels(system.species), system.positions
    branches: dict[int, list[tuple[int, np.ndarray]]] = {}
    for i, j, side in _open_bonds(system):
        branches.setdefault(i, []).append((j, side))
        branches.setdefault(j, []).append((i, ~side))
    for centre, found in branches.items():
        for (i, other), (k, side) in combinations(found, 2):
            if side.sum() > other.sum():
                i, k, side = k, i, other
            u, v = r[i] - r[centre], r[k] - r[centre]
            axis = np.cross(u, v)
            if np.linalg.norm(axis) < 1e-3 * np.linalg.norm(u) * np.linalg.norm(v):
                axis = np.cross(u, np.eye(3)[np.abs(u).argmin()])
            now = np.degrees(np.arctan2(np.linalg.norm(np.cross(u, v)), u @ v))
            yield (
                _named(labels, min(i, k), centre, max(i, k)),
                ANGLES,
                np.array([turned(r, side, r[centre], axis, a - now) for a in ANGLES]),
            )


def _torsions(system: System) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """About a bond with more atoms at both ends the smaller side is turned."""
    labels, r = atom_labels(system.species), system.positions
    for i, j, side in _open_bonds(system):
        if side.sum() > 1:
            made = np.array([turned(r, side, r[i], r[j] - r[i], a) for a in TURNS])
            yield f"about {_named(labels, min(i, j), max(i, j))}", TURNS, made


def _pulled(system: System) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Each atom alone away from the mean of its neighbours, or out of their plane where it lies amid them."""
    labels, r, bonded = atom_labels(system.species), system.positions, bond_graph(system.species, system.positions)
    for k, neighbours in enumerate(bonded):
        others = r[neighbours] if neighbours.any() else np.delete(r, k, axis=0)
        away = r[k] - others.mean(0)
        if np.linalg.norm(away) < 0.3:
            away = np.linalg.svd(others - others.mean(0))[2][-1]
        step = np.outer(np.arange(len(r)) == k, away / np.linalg.norm(away))
        yield labels[k], PULLS, np.array([r + x * step for x in PULLS])


def _named(labels: Sequence[str], *atoms: int) -> str:
    return "-".join(labels[k] for k in atoms)


_MADE: dict[str, Callable] = {"bond": _bonds, "bend": _bends, "torsion": _torsions, "atom": _pulled}


def _open_bonds(system: System) -> Iterator[tuple[int, int, np.ndarray]]:
    """Bonds (i, j) outside rings with the atoms (N,) on j's side, which has no more than i's."""
    bonded = bond_graph(system.species, system.positions)
    for i, j in np.argwhere(np.triu(bonded)).tolist():
        here, there = moved_side(bonded, j, i), moved_side(bonded, i, j)
        if (here & there).any() or not (here | there).all():
            continue  # a ring, or a molecule in pieces
        yield (i, j, there) if there.sum() <= here.sum() else (j, i, here)


def compare(
    system: System,
    energies: Callable[[np.ndarray], np.ndarray],
    labels: Callable[[np.ndarray], np.ndarray],
    most: int,
    variance: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[Profile, ...]:
    """Scans of a molecule at rest by the model's ``energies`` and the reference's ``labels``, both (p, N, 3) -> (p,) eV.

    Of more than ``most`` geometries those are labelled that the model has within reach, the least certain first where it knows
    its ``variance``.
    """
    found = scans(system)
    every = np.concatenate([system.positions[None], *(scan.positions for scan in found)])
    model = np.asarray(energies(every))
    order = _first(model, every, variance)[: max(most, 1)]
    reference, labelled = np.full(len(every), np.nan), np.zeros(len(every), bool)
    reference[order], labelled[order] = labels(every[order]), True
    zero = reference[0] if np.isfinite(reference[0]) else model[0]
    model, reference = (model - zero) / KCAL_MOL, (reference - zero) / KCAL_MOL
    ends = 1 + np.cumsum([0, *(len(scan.values) for scan in found)])
    pieces = [slice(*ends[k : k + 2]) for k in range(len(found))]
    return tuple(
        Profile(scan, model[p], reference[p], labelled[p], float(model[0])) for scan, p in zip(found, pieces, strict=True)
    )


def _first(model: np.ndarray, every: np.ndarray, variance: Callable | None) -> np.ndarray:
    """Numbers of geometries in the order in which they are worth a label, the one at rest first."""
    beyond = model > model[0] + REACH * KCAL_MOL
    unsure = np.zeros(len(model)) if variance is None else np.nan_to_num(variance(every), nan=np.inf)
    order = np.lexsort((-unsure, beyond))
    return np.concatenate([[0], order[order != 0]])


def shape(found: tuple[Profile, ...]) -> Part[Scanned, Points]:
    """The part of the verdict: good where nothing within reach is wrong, poor where there is a hole."""
    rows = tuple(_row(kind, mine) for kind in KINDS if (mine := [c for c in found if c.scan.kind == kind]))
    labelled = sum(row.geometries - row.without_label for row in rows)
    evidence = (Points(sum(len(c.model) for c in found), labelled),)
    worst = Spread.worst(row.de for row in rows if row.de)
    deep = [row for row in rows if row.deepest is not None]
    hole = max(deep, key=lambda row: row.deepest, default=None)  # type: ignore[arg-type, return-value]
    reached = sum(row.within_reach for row in rows)
    sentence = f"{reached} of {labelled} geometries of scans within {REACH:g} kcal/mol of the minimum"
    if worst is None:
        if hole is None or hole.deepest is None or hole.deepest <= FALSE_BASIN:
            return Part("unknown", "no geometry of a scan is within reach", rows, evidence)
        return Part("poor", f"{sentence}, where the reference has no energy", rows, evidence)
    sentence += f"; worst kind: median |dE| {two_figures(worst.median)}, 95% {two_figures(worst.p95)} kcal/mol"
    if hole is None or hole.deepest is None or hole.deepest <= FALSE_BASIN:
        grade: Grade = "good" if worst.p95 <= FALSE_BASIN else "fair"
        return Part(grade, f"{sentence}; no hole", rows, evidence)
    depth = "where the reference has no energy" if np.isinf(hole.deepest) else f"{two_figures(hole.deepest)} kcal/mol deep"
    return Part("poor", f"{sentence}; a hole {depth}, {hole.kind} {hole.where}", rows, evidence)


def holes(found: tuple[Profile, ...], window: float) -> np.ndarray:
    """Where to teach a model with holes, (h, N, 3): the deepest place of every scan that has one.

    It is looked for where the reference has an energy, at most ``window`` kcal/mol above the one at rest.
    """
    depths = [np.where(profile.reference < window, profile.depth, -np.inf) for profile in found]
    deep = [(profile, depth) for profile, depth in zip(found, depths, strict=True) if depth.max() > FALSE_BASIN]
    return np.array([profile.scan.positions[depth.argmax()] for profile, depth in deep])


NO_SHAPE: Part[Scanned, Points] = Part("unknown", "no scans", (), (Points(0, 0),))
"""Where nothing was scanned."""


def _row(kind: str, found: list[Profile]) -> Scanned:
    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(profile, name) for profile in found])

    reference, labelled, depth = joined("reference"), joined("labelled"), joined("depth")
    places = [f"{profile.scan.name} at {x:.3g} {KINDS[kind]}" for profile in found for x in profile.scan.values]
    reachable = depth.max() > -np.inf
    return Scanned(
        kind,
        scans=len(found),
        geometries=int(labelled.sum()),
        without_label=int(np.isnan(reference[labelled]).sum()),
        within_reach=int(joined("within_reach").sum()),
        de=Spread.of((joined("model") - reference)[joined("within_reach")]),
        deepest=float(depth.max()) if reachable else None,
        where=places[int(depth.argmax())] if reachable else "",
    )
