"""Initial geometries of replicas: at the potential's minimum, from a dataset, displaced, or with one X-H bond stretched."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from iqagp_jax.data.dataset import Dataset
from iqagp_jax.dynamics.checks import check_integer, check_starts, require_positive
from iqagp_jax.dynamics.minimise import Minimum, minimise
from iqagp_jax.potential import energy_fn, potential_of, system_of
from iqagp_jax.system.failure import FailureRule, Status, covalent_bonds, failure_status
from iqagp_jax.system.geometry import bond_graph, graph_distances, moved_side, pair_distances
from iqagp_jax.system.system import System

STARTS = ("equilibrium", "dataset", "displaced", "stretched")

AT_REST = 0.01
"""A minimum has forces below this, eV/angstrom."""

CLOSEST_START = 1.2
"""Random starts with two atoms nearer than this multiple of what is a contact are drawn again."""

MAX_REDRAWS = 1000
"""Draws of one random start before its amplitude is refused."""


class Rest(NamedTuple):
    """Where a potential of one molecule holds it at rest."""

    system: System
    """at the minimum, or as the potential was given it where that leads to none; its failure rule is the potential's"""
    is_minimum: bool
    found: Minimum
    """what the search found"""


def at_rest(potential: Any, energy: Any = None, system: System | None = None) -> Rest:
    """The minimum next to the best training geometry of a potential of one molecule, and with it the one failure rule.

    No minimum is what forces of more than 0.01 eV/angstrom are left at, and what is broken by the rule of the training
    geometry. ``energy`` is its `energy_fn` where there is one already, ``system`` where it begins if not at that geometry.
    """
    system = system_of(potential_of(potential), system)
    found = minimise(energy or energy_fn(potential, system=system), system.positions)
    # NaN is not at rest.
    still = bool(found.max_force <= AT_REST) and bool(failure_status(system.failure_rule, found.positions) == Status.ALIVE)
    return Rest(system.at(np.asarray(found.positions)) if still else system, still, found)


def equilibrium(potential: Any, rest: Rest | None = None) -> np.ndarray:
    """The minimum (N, 3) of the potential nearest to its best training geometry; ValueError where there is none."""
    system, is_minimum, found = rest or at_rest(potential)
    if not is_minimum:
        raise ValueError(
            f"the model has no minimum near its best training geometry (largest force {float(found.max_force):.3g}"
            f" eV/angstrom after {int(found.steps)} steps); train it on more geometries or start from dataset frames"
        )
    return system.positions


def random_displacements(
    rule: FailureRule, positions: np.ndarray, amplitude: float, replicas: int, seed: int = 0
) -> tuple[np.ndarray, int]:
    """Starts (R, N, 3) with every coordinate moved by up to ``amplitude`` either way, uniformly, and the redraws it took.

    A draw that fails by the rule, or has atoms close to contact, is drawn again. Start k depends on ``seed`` and k only.

    Parameters
    ----------
    rule: `failure.failure_rule` of the molecule.
    positions: (N, 3), angstrom.
    amplitude: angstrom.
    replicas: number of starts R.
    seed: a non-negative integer.
    """
    require_positive("an amplitude in angstrom", amplitude)
    check_integer("replicas", replicas, 1)
    check_integer("a seed", seed, 0)
    positions = check_starts(np.asarray(positions)[None], rule.species)[0]
    draws = [_random_start(rule, positions, amplitude, np.random.default_rng([seed, k])) for k in range(replicas)]
    return np.array([start for start, _ in draws]), sum(redraws for _, redraws in draws)


def _random_start(
    rule: FailureRule, positions: np.ndarray, amplitude: float, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    i, j = np.triu_indices(len(positions), 1)
    closest = CLOSEST_START * rule.contact[i, j]
    for redraws in range(MAX_REDRAWS):
        start = positions + rng.uniform(-amplitude, amplitude, size=positions.shape)
        if (pair_distances(start)[i, j] >= closest).all() and failure_status(rule, start) == Status.ALIVE:
            return start, redraws
    raise ValueError(
        f"expected an amplitude that leaves the molecule whole, found {amplitude:g} angstrom, which broke it in"
        f" {MAX_REDRAWS} draws; take a smaller one"
    )


def stretch_bond(species: Sequence[str], positions: np.ndarray, i: int, j: int, length: float) -> np.ndarray:
    """A copy of ``positions`` (N, 3) with the bond of atoms i and j ``length`` angstrom long, its smaller side moved."""
    require_positive("a bond length in angstrom", length)
    positions = check_starts(np.asarray(positions)[None], species)[0]
    bonded = bond_graph(species, positions)
    sides = moved_side(bonded, i, j), moved_side(bonded, j, i)
    molecule = np.isfinite(graph_distances(bonded)[i])
    if not bonded[i, j] or (sides[0] | sides[1] != molecule).any():
        raise ValueError(f"expected a bond outside rings, found none between atoms {i} and {j}; choose two other atoms")
    if sides[0].sum() > sides[1].sum():
        i, j, sides = j, i, sides[::-1]
    axis = positions[j] - positions[i]
    return positions + np.outer(sides[0], (length / np.linalg.norm(axis) - 1) * axis)


def hydrogen_bonds_to_stretch(species: Sequence[str], positions: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (heavy atom, hydrogen) of all X-H bonds, those of oxygen and nitrogen first."""
    pairs = [(i, j) if species[j] == "H" else (j, i) for i, j in covalent_bonds(species, positions)]
    pairs = [(int(i), int(j)) for i, j in pairs if (species[i] == "H") != (species[j] == "H")]
    return sorted(pairs, key=lambda pair: (species[pair[0]] not in "ON", pair))


def stretched(species: Sequence[str], minimum: np.ndarray, length: float) -> np.ndarray:
    """The minimum (N, 3) with each of its B bonds to hydrogen at ``length`` angstrom, O-H and N-H first: (B, N, 3)."""
    bonds = hydrogen_bonds_to_stretch(species, minimum)
    if not bonds:
        raise ValueError(f"expected a bond to hydrogen to stretch, found none in {' '.join(species)}")
    return np.array([stretch_bond(species, minimum, *bond, length) for bond in bonds])


def restoring_force(positions: np.ndarray, forces: np.ndarray, heavy: int, hydrogen: int) -> float:
    """The part of the force on a hydrogen that points to a heavy atom, from positions and forces (N, 3), in their unit."""
    axis = positions[heavy] - positions[hydrogen]
    return float(forces[hydrogen] @ axis / np.linalg.norm(axis))


def starts(
    model: Any,
    kinds: Sequence[str],
    *,
    data: Dataset | None = None,
    displacement: float = 0.25,
    stretch: float = 1.5,
    seed: int = 0,
    rest: Rest | None = None,
) -> np.ndarray:
    """One start for each of ``kinds`` (R names of `STARTS`): (R, N, 3) in angstrom.

    Args:
        model: any potential of one molecule.
        data: `Dataset` whose frames ``dataset`` starts take at random, without repetition while they last.
        displacement: largest displacement of a coordinate in ``displaced`` starts, angstrom.
        stretch: length of the stretched bond, angstrom; the X-H bonds take turns, O-H and N-H first.
        seed: a non-negative integer.
        rest: what `at_rest` says of the model, where it has been asked already.
    """
    if unknown := sorted(set(kinds) - set(STARTS)):
        raise ValueError(f"expected starts among {', '.join(STARTS)}, found {', '.join(unknown)}")
    species = system_of(potential_of(model)).species
    number = {kind: [k for k, name in enumerate(kinds) if name == kind] for kind in STARTS}
    result = np.empty((len(kinds), len(species), 3))
    if number["dataset"]:
        result[number["dataset"]] = _frames(species, data, len(number["dataset"]), seed)
    if set(kinds) <= {"dataset"}:
        return result
    rest = rest or at_rest(model)
    minimum = equilibrium(model, rest)
    result[number["equilibrium"]] = minimum
    if n := len(number["displaced"]):
        result[number["displaced"]], _ = random_displacements(rest.system.failure_rule, minimum, displacement, n, seed)
    if n := len(number["stretched"]):
        result[number["stretched"]] = np.resize(stretched(species, minimum, stretch), (n, *minimum.shape))
    return result


def _frames(species: tuple[str, ...], data: Dataset | None, n: int, seed: int) -> np.ndarray:
    if data is None:
        raise ValueError("expected a dataset for starts from dataset frames, found none; name one with --dataset")
    if tuple(data.species) != species:
        raise ValueError(f"expected the atoms {' '.join(species)} of the model, found {' '.join(data.species)} in the dataset")
    thermal = data.positions[data.thermal]
    if not len(thermal):
        raise ValueError(f"expected thermal frames to start from, found none among the dataset's {len(data)}; give another")
    order = np.random.default_rng([seed, len(thermal)]).permutation(len(thermal))
    return thermal[np.resize(order, n)]
