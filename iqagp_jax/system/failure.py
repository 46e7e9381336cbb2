"""What counts as a broken molecule: the failure rule for replicas of a known molecule, and its words.

A replica has failed when one of these holds, checked in this order:

1. the energy, a position, momentum or force is not finite;
2. two atoms are nearer than 0.5 angstrom;
3. a bond of the reference geometry is longer than twice its reference length, unless another has formed: one of its atoms
   is held by an atom (within 1.6 sums of covalent radii) that it was not near in the reference (1.35), and the molecule has
   not come apart into more pieces. An atom that lay between 1.35 and 1.6 at rest, as across a ring, must come within 1.35
   to count. That is chemistry, not failure; whether it is true, only relabelled energies tell;
4. the kinetic temperature has been above three times the target for 1 ps on end;
5. if asked, the standard deviation of the energy is above a limit (`run.UncertaintyLimit`).

Of several molecules each has rule 3 for itself: bonds, partners and pieces within it.

Rules 3 and 4 rest for the first 0.1 ps, in which a distorted start may still relax. Rule 2 does not: starts nearer than
0.6 angstrom are never drawn, and no physical repulsion lets atoms closer than 0.5 angstrom.
"""

from dataclasses import dataclass
from enum import IntEnum

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_numbers

from iqagp_jax.system.elements import check_species, members_of
from iqagp_jax.system.geometry import bond_graph, sum_of_radii
from iqagp_jax.units import KCAL_MOL

BOND_STRETCH = 2.0
"""A bond is broken beyond this multiple of its reference length."""

NEAR = 1.35
"""Two atoms within this multiple of the sum of their covalent radii hold together: 1.31 angstrom for O-H, 2.05 for C-C."""

HELD = 1.6
"""A bond that formed holds up to this multiple: hot O-H bonds reach 1.31 angstrom now and then, but hardly 1.55."""

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
    UNCERTAIN = 5


@dataclass(frozen=True)
class FailureRule:
    """The molecules that must stay whole, as `failure_rule` reads them from a reference geometry."""

    species: tuple[str, ...]
    bonds: np.ndarray
    """(B, 2) indices i < j of bonded atoms"""
    lengths: np.ndarray
    """(B,) reference bond lengths, angstrom"""
    near_at_rest: np.ndarray
    """(N, N) which atoms are near each other in the reference, themselves included"""
    held_at_rest: np.ndarray
    """(N, N) which are within `HELD` there"""
    molecules: tuple[int, ...] = ()
    """(N,) number of each atom's molecule; empty where all are one"""

    @property
    def together(self):
        """(N, N) which atoms are of one molecule; a scalar where all are."""
        numbers = np.array(self.molecules)
        return numbers[:, None] == numbers if self.molecules else np.True_

    @property
    def groups(self):
        """Atoms (M, n) of all molecules of n atoms, for every n: what `pieces` takes side by side."""
        members = members_of(self.molecules, len(self.species))
        return [np.array([m for m in members if len(m) == n]) for n in sorted(set(map(len, members)))]


def covalent_bonds(species, positions):
    """Pairs i < j of bonded atoms, (B, 2), of one geometry (N, 3) in angstrom; see `geometry.bond_graph`."""
    return np.argwhere(np.triu(bond_graph(species, positions)))


def failure_rule(species, reference, molecules=()):
    """The failure rule of the molecules whose geometry at rest is ``reference`` (N, 3) in angstrom.

    ``molecules`` (N,) numbers each atom's molecule, empty where all are one.

    Raises ValueError, in a sentence, for unknown species and for a reference of another shape or with NaN.
    """
    check_species(species)
    reference = np.asarray(reference, dtype=np.float64)
    if reference.shape != (len(species), 3) or not np.isfinite(reference).all():
        raise ValueError(
            f"expected a finite reference geometry of shape ({len(species)}, 3), found shape {reference.shape} with"
            f" {np.sum(~np.isfinite(reference))} non-finite numbers; give one row in angstrom for each atom"
        )
    numbers = np.array(tuple(molecules) or len(species) * (0,))
    bonds = covalent_bonds(species, reference)
    bonds = bonds[numbers[bonds[:, 0]] == numbers[bonds[:, 1]]]
    lengths, at_rest = _distances(reference, bonds), near(species, reference)
    return FailureRule(tuple(species), bonds, lengths, at_rest, near(species, reference, HELD), tuple(map(int, molecules)))


def near(species, positions, factor=NEAR):
    """Which atoms of a geometry (N, 3) in angstrom hold together, (N, N): every atom with itself and those near it."""
    return _squares(positions) < (factor * sum_of_radii(species)) ** 2


@jax.jit  # reasons of failures ask outside of compiled code, where the loop would be compiled anew each time
def pieces(joined):
    """Number of pieces that a molecule is in, from which atoms hold together (N, N), as of `near`; a pure JAX function."""

    def through(k, reach):
        return reach | (reach[:, k][:, None] & reach[k])

    reach = jax.lax.fori_loop(0, len(joined), through, jnp.asarray(joined))
    # Every atom counts with its share of its piece.
    return jnp.round((1 / reach.sum(1)).sum()).astype(int)


def failure_status(rule, positions, elapsed=np.inf, hot_time=0.0):
    """One of `Status` as an integer scalar, for one configuration; a pure JAX function.

    Parameters
    ----------
    rule: from `failure_rule`.
    positions: (N, 3), angstrom.
    elapsed: fs since the start; by default the grace is over.
    hot_time: fs on end that the replica has been hot, from `hot_steps`.

    Energy, momenta and forces are not seen here; that they are finite, and the energy certain, is the caller's part.
    """
    positions = jnp.asarray(positions)
    after_grace = elapsed > GRACE_TIME
    failures = [
        ~jnp.isfinite(positions).all(),
        (_squares(positions) + np.eye(len(positions)) < CONTACT_DISTANCE**2).any(),
        after_grace & _broken(rule, positions).any(),
        after_grace & (hot_time >= HOT_TIME),
    ]
    # A status is one more than the index of its rule.
    first = jnp.argmax(jnp.stack(failures), axis=0) + 1
    return jnp.where(jnp.stack(failures).any(), first, 0).astype(jnp.int32)


def hot_steps(previous, temperature, target, elapsed):
    """Number of steps on end, after the grace, with a temperature (K) above three times the target (K)."""
    return jnp.where((temperature > HOT_RATIO * target) & (elapsed > GRACE_TIME), previous + 1, 0)


def failure_reason(rule, status, positions, elapsed, temperature, target, uncertainty=np.nan, largest=np.nan):
    """The reason of a failure in words, such as ``bond C1-H5 2.31 A, reference 1.09 A, at 1.235 ps``; '' if alive.

    Parameters
    ----------
    rule: from `failure_rule`.
    status: from `failure_status`.
    positions: (N, 3) of the failed configuration, angstrom.
    elapsed: time of the failure, fs.
    temperature: kinetic temperature of the failed configuration, K.
    target: temperature of the thermostat, K.
    uncertainty, largest: standard deviation of the energy and its limit, eV.
    """
    match Status(status):
        case Status.ALIVE:
            return ""
        case Status.NON_FINITE:
            reason = "energy, positions, momenta or forces not finite"
        case Status.CONTACT:
            distances = _distances(positions, _all_pairs(rule))
            first, second = _labels(rule, _all_pairs(rule)[distances.argmin()])
            reason = f"atoms {first} and {second} {distances.min():.2f} A apart, limit {CONTACT_DISTANCE:.2f} A"
        case Status.BROKEN_BOND:
            lengths = _distances(positions, rule.bonds)
            broken, (i, j) = _broken(rule, positions), rule.bonds.T
            numbers = np.array([atomic_numbers[s] for s in rule.species])
            lost = broken & ~_new_partner(rule, positions)[np.where(numbers[i] < numbers[j], i, j)]
            worst = np.where(lost if lost.any() else broken, lengths / rule.lengths, 0.0).argmax()
            bond = "-".join(_labels(rule, rule.bonds[worst]))
            reason = f"bond {bond} {lengths[worst]:.2f} A, reference {rule.lengths[worst]:.2f} A"
        case Status.OVERHEATED:
            reason = f"temperature {temperature:.0f} K, above three times the target of {target:.0f} K for 1 ps"
        case Status.UNCERTAIN:
            reason = f"uncertainty of the energy {uncertainty / KCAL_MOL:.3g} kcal/mol, limit {largest / KCAL_MOL:.3g} kcal/mol"
    return f"{reason}, at {elapsed / 1000:.7g} ps"


def _labels(rule, atoms):
    return [f"{rule.species[k]}{k + 1}" for k in atoms]


def _all_pairs(rule):
    return np.stack(np.triu_indices(len(rule.species), 1), axis=1)


def _distances(positions, pairs):
    return ((positions[pairs[:, 0]] - positions[pairs[:, 1]]) ** 2).sum(-1) ** 0.5


def _squares(positions):
    """Squared distances of all pairs, (N, N); a component at a time, which XLA does seven times faster than all three."""
    return sum((x[:, None] - x) ** 2 for x in positions.T)


def _broken(rule, positions):
    """Which bonds (B,) are broken without another to make up for it."""
    too_long = _distances(positions, rule.bonds) > BOND_STRETCH * rule.lengths
    whole, new = _whole(rule, near(rule.species, positions, HELD)), _new_partner(rule, positions)
    return too_long & ~((new[rule.bonds[:, 0]] | new[rule.bonds[:, 1]]) & whole)


def _whole(rule, held):
    """Whether the molecule of each bond is in no more pieces than in the reference, (B,), or a scalar where all are of one.

    ``held`` (N, N) says which atoms hold together.
    """
    if not rule.molecules:
        return pieces(held) <= pieces(rule.near_at_rest)
    whole = jnp.zeros(len(rule.species), bool)
    for atoms in rule.groups:
        square = atoms[:, :, None], atoms[:, None, :]
        now, then = (jax.vmap(pieces)(x[square]) for x in (held, jnp.asarray(rule.near_at_rest)))
        whole = whole.at[atoms].set((now <= then)[:, None])
    return whole[rule.bonds[:, 0]]


def _new_partner(rule, positions):
    """Which atoms (N,) are held by an atom of their molecule that they were not near in the reference."""
    closer = near(rule.species, positions) | (near(rule.species, positions, HELD) & ~rule.held_at_rest)
    return (closer & ~rule.near_at_rest & rule.together).any(1)
