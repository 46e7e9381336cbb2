"""What counts as a broken molecule: the failure rule for replicas of a known molecule, and its words.

A replica has failed when one of these holds, checked in this order:

1. a position, momentum or force is not finite;
2. two atoms are nearer than 0.5 angstrom;
3. a bond of the reference geometry is longer than twice its reference length, unless it is a bond between hydrogen and
   a heavy atom and the hydrogen is within 1.3 angstrom of another heavy atom: a transfer is chemistry, not failure;
4. the kinetic temperature has been above three times the target for 1 ps on end.

Rules 3 and 4 rest for the first 0.1 ps, in which a distorted start may still relax. Rule 2 does not: starts nearer than
0.6 angstrom are never drawn, and no physical repulsion lets atoms closer than 0.5 angstrom.
"""

from dataclasses import dataclass
from enum import IntEnum

import jax.numpy as jnp
import numpy as np
from ase.data import atomic_numbers

from iqagp_jax.geometry import bond_graph

BOND_STRETCH = 2.0
"""A bond is broken beyond this multiple of its reference length."""

TRANSFER_DISTANCE = 1.3
"""A hydrogen this near (angstrom) to another heavy atom has been transferred, not lost."""

CONTACT_DISTANCE = 0.5
"""Atoms nearer than this (angstrom) have collapsed onto each other."""

HOT_RATIO = 3.0
"""Multiple of the target temperature above which a replica is hot."""

HOT_TIME = 1000.0
"""How long (fs) a replica may stay hot."""

GRACE_TIME = 100.0
"""How long (fs) after the start the rules on bonds and temperature rest."""


class Status(IntEnum):
    """State of a replica; every value but ``ALIVE`` is a failure, in the order of the rules."""

    ALIVE = 0
    NON_FINITE = 1
    CONTACT = 2
    BROKEN_BOND = 3
    OVERHEATED = 4


@dataclass(frozen=True)
class FailureRule:
    """The molecule that must stay whole, as `failure_rule` reads it from a reference geometry."""

    species: tuple[str, ...]
    bonds: np.ndarray
    """(B, 2) indices i < j of bonded atoms"""
    lengths: np.ndarray
    """(B,) reference bond lengths, angstrom"""


def covalent_bonds(species, positions):
    """Pairs i < j of bonded atoms, (B, 2), of one geometry (N, 3) in angstrom; see `geometry.bond_graph`."""
    return np.argwhere(np.triu(bond_graph(species, positions)))


def failure_rule(species, reference):
    """The failure rule of the molecule whose geometry at rest is ``reference`` (N, 3) in angstrom.

    Raises ValueError, in a sentence, for unknown species and for a reference of another shape or with NaN.
    """
    if unknown := [s for s in species if atomic_numbers.get(s, 0) < 1]:
        raise ValueError(f"expected chemical symbols as species, found {unknown[0]!r}; correct it")
    reference = np.asarray(reference, dtype=np.float64)
    if reference.shape != (len(species), 3) or not np.isfinite(reference).all():
        raise ValueError(
            f"expected a finite reference geometry of shape ({len(species)}, 3), found shape {reference.shape} with"
            f" {np.sum(~np.isfinite(reference))} non-finite numbers; give one row in angstrom for each atom"
        )
    bonds = covalent_bonds(species, reference)
    return FailureRule(tuple(species), bonds, _distances(reference, bonds))


def failure_status(rule, positions, elapsed=np.inf, hot_time=0.0):
    """One of `Status` as an integer scalar, for one configuration; a pure JAX function.

    Parameters
    ----------
    rule: from `failure_rule`.
    positions: (N, 3), angstrom.
    elapsed: fs since the start; by default the grace is over.
    hot_time: fs on end that the replica has been hot, from `hot_steps`.

    Momenta and forces are not seen here; that they are finite is the caller's part.
    """
    positions = jnp.asarray(positions)
    after_grace = elapsed > GRACE_TIME
    failures = [
        ~jnp.isfinite(positions).all(),
        (_distances(positions, _all_pairs(rule)) < CONTACT_DISTANCE).any(),
        after_grace & _broken(rule, positions).any(),
        after_grace & (hot_time >= HOT_TIME),
    ]
    # A status is one more than the index of its rule.
    first = jnp.argmax(jnp.stack(failures), axis=0) + 1
    return jnp.where(jnp.stack(failures).any(), first, 0).astype(jnp.int32)


def hot_steps(previous, temperature, target, elapsed):
    """Number of steps on end, after the grace, with a temperature (K) above three times the target (K)."""
    return jnp.where((temperature > HOT_RATIO * target) & (elapsed > GRACE_TIME), previous + 1, 0)


def failure_reason(rule, status, positions, elapsed, temperature, target):
    """The reason of a failure in words, such as ``bond C1-H5 2.31 A, reference 1.09 A, at 1.235 ps``; '' if alive.

    Parameters
    ----------
    rule: from `failure_rule`.
    status: from `failure_status`.
    positions: (N, 3) of the failed configuration, angstrom.
    elapsed: time of the failure, fs.
    temperature: kinetic temperature of the failed configuration, K.
    target: temperature of the thermostat, K.
    """
    match Status(status):
        case Status.ALIVE:
            return ""
        case Status.NON_FINITE:
            reason = "positions, momenta or forces not finite"
        case Status.CONTACT:
            distances = _distances(positions, _all_pairs(rule))
            first, second = _labels(rule, _all_pairs(rule)[distances.argmin()])
            reason = f"atoms {first} and {second} {distances.min():.2f} A apart, limit {CONTACT_DISTANCE:.2f} A"
        case Status.BROKEN_BOND:
            lengths = _distances(positions, rule.bonds)
            worst = np.where(_broken(rule, positions), lengths / rule.lengths, 0.0).argmax()
            bond = "-".join(_labels(rule, rule.bonds[worst]))
            reason = f"bond {bond} {lengths[worst]:.2f} A, reference {rule.lengths[worst]:.2f} A"
        case Status.OVERHEATED:
            reason = f"temperature {temperature:.0f} K, above three times the target of {target:.0f} K for 1 ps"
    return f"{reason}, at {elapsed / 1000:.7g} ps"


def _labels(rule, atoms):
    return [f"{rule.species[k]}{k + 1}" for k in atoms]


def _all_pairs(rule):
    return np.stack(np.triu_indices(len(rule.species), 1), axis=1)


def _distances(positions, pairs):
    return ((positions[pairs[:, 0]] - positions[pairs[:, 1]]) ** 2).sum(-1) ** 0.5


def _broken(rule, positions):
    """Which bonds (B,) are broken, transfers of hydrogen excepted."""
    too_long = _distances(positions, rule.bonds) > BOND_STRETCH * rule.lengths
    return too_long & ~_transferred(rule, positions)


def _transferred(rule, positions):
    """For which bonds (B,) between hydrogen and a heavy atom the hydrogen is near a heavy atom.

    Another one than its own where the bond is too long: twice a bond length is more than 1.3 angstrom.
    """
    i, j = rule.bonds.T
    is_hydrogen = np.array(rule.species) == "H"
    hydrogen = np.where(is_hydrogen[i], i, j)
    distances = ((positions[hydrogen][:, None] - positions[None]) ** 2).sum(-1) ** 0.5
    near_heavy = ((distances < TRANSFER_DISTANCE) & ~is_hydrogen).any(-1)
    return near_heavy & (is_hydrogen[i] != is_hydrogen[j])
