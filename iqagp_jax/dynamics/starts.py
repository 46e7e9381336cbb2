"""Initial geometries of replicas: at the model's minimum, from a dataset, displaced, or with one X-H bond stretched."""

import numpy as np

from iqagp_jax.dynamics.minimise import minimise
from iqagp_jax.dynamics.run import random_displacements, stretch_bond
from iqagp_jax.potential import energy_fn
from iqagp_jax.system.failure import covalent_bonds, failure_rule

STARTS = ("equilibrium", "dataset", "displaced", "stretched")


def equilibrium(model):
    """The minimum (N, 3) of the model nearest to its best training geometry; ValueError where it finds none."""
    minimum = minimise(energy_fn(model), model.reference)
    if not np.isfinite(minimum.max_force) or minimum.max_force > 0.01:
        raise ValueError(
            f"the model has no minimum near its best training geometry (largest force {float(minimum.max_force):.3g}"
            f" eV/angstrom after {int(minimum.steps)} steps); train it on more geometries or start from dataset frames"
        )
    return np.asarray(minimum.positions)


def hydrogen_bonds_to_stretch(species, positions):
    """Pairs (heavy atom, hydrogen) of all X-H bonds, those of oxygen and nitrogen first."""
    pairs = [(i, j) if species[j] == "H" else (j, i) for i, j in covalent_bonds(species, positions)]
    pairs = [(int(i), int(j)) for i, j in pairs if (species[i] == "H") != (species[j] == "H")]
    return sorted(pairs, key=lambda pair: (species[pair[0]] not in "ON", pair))


def stretched(species, minimum, length):
    """The minimum (N, 3) with each of its B bonds to hydrogen at ``length`` angstrom, O-H and N-H first: (B, N, 3)."""
    bonds = hydrogen_bonds_to_stretch(species, minimum)
    if not bonds:
        raise ValueError(f"expected a bond to hydrogen to stretch, found none in {' '.join(species)}")
    return np.array([stretch_bond(species, minimum, *bond, length) for bond in bonds])


def restoring_force(positions, forces, heavy, hydrogen):
    """The part of the force on a hydrogen that points to a heavy atom, from positions and forces (N, 3), in their unit."""
    axis = positions[heavy] - positions[hydrogen]
    return float(forces[hydrogen] @ axis / np.linalg.norm(axis))


def starts(model, kinds, *, data=None, displacement=0.25, stretch=1.5, seed=0):
    """One start for each of ``kinds`` (R names of `STARTS`): (R, N, 3) in angstrom.

    Args:
        data: `Dataset` whose frames ``dataset`` starts take at random, without repetition while they last.
        displacement: largest displacement of a coordinate in ``displaced`` starts, angstrom.
        stretch: length of the stretched bond, angstrom; the X-H bonds take turns, O-H and N-H first.
        seed: a non-negative integer.
    """
    if unknown := sorted(set(kinds) - set(STARTS)):
        raise ValueError(f"expected starts among {', '.join(STARTS)}, found {', '.join(unknown)}")
    number = {kind: [k for k, name in enumerate(kinds) if name == kind] for kind in STARTS}
    minimum = equilibrium(model) if set(kinds) - {"dataset"} else None
    result = np.empty((len(kinds), len(model.species), 3))
    result[number["equilibrium"]] = minimum
    if number["dataset"]:
        result[number["dataset"]] = _frames(model, data, len(number["dataset"]), seed)
    if number["displaced"]:
        rule = failure_rule(model.species, minimum)
        result[number["displaced"]], _ = random_displacements(rule, minimum, displacement, len(number["displaced"]), seed)
    if number["stretched"]:
        turns = stretched(model.species, minimum, stretch)
        result[number["stretched"]] = np.resize(turns, (len(number["stretched"]), *minimum.shape))
    return result


def _frames(model, data, n, seed):
    if data is None:
        raise ValueError("expected a dataset for starts from dataset frames, found none; name one with --dataset")
    if data.species != model.species:
        raise ValueError(
            f"expected the atoms {' '.join(model.species)} of the model, found {' '.join(data.species)} in the dataset"
        )
    thermal = data.positions[data.thermal]
    if not len(thermal):
        raise ValueError(f"expected thermal frames to start from, found none among the dataset's {len(data)}; give another")
    order = np.random.default_rng([seed, len(thermal)]).permutation(len(thermal))
    return thermal[np.resize(order, n)]
