"""What counts as a broken molecule: the failure rule for replicas of a known molecule, and its words.

A replica has failed when one of these holds, checked in this order:

1. the energy, a position, momentum or force is not finite;
2. two atoms are in contact: nearer than 0.65 sums of covalent radii (0.99 angstrom for C-C, 1.81 for I-I), or than 0.85 of
   their bond where that is shorter, but in any case than 0.5 angstrom;
3. a bond of the reference geometry has twice its length there, or more, unless another has formed: one of its atoms
   is held by an atom (within 1.6 sums of covalent radii) that it was not near in the reference (1.35), and the molecule has
   not come apart into more pieces. An atom that lay between 1.35 and 1.6 at rest, as across a ring, must come within 1.35
   to count. That is chemistry, not failure; whether it is true, only relabelled energies tell;
4. the molecule is distorted beyond what chemistry does: see below;
5. the kinetic temperature has been above three times the target for 1 ps on end;
6. if asked, the standard deviation of the energy is above a limit (`run.UncertaintyLimit`).

Of several molecules each has rules 3 and 4 for itself: bonds, partners, pieces and sums are its own.

Rule 4 counts neighbours. A pair of atoms counts as one within 1.2 sums of covalent radii, not beyond 1.5, and linearly in the
squared distance in between; C_i is the sum for an atom. With n = sum_i C_i / 2 of the molecule at rest it is distorted where

- an atom has more neighbours than its valence and a bond that is being exchanged: C_i is 1.5 above what it is at rest and
  above 2 (H, F), 3 (O), 4 (C, N) or 6 (all else);
- too many bonds have been lost or formed: sum_i abs(C_i - C_i at rest) / 2 > min(1.75 + n / 8, (n + 1) / 2), one at least. A
  transferred proton makes 1, an opened ring 1, an electrocyclic reaction 1 to 2;
- its B bonds are crushed: the squared shares by which they are too short sum to more than (B + 1) / 40, or are torn: the shares
  by which they are too long, each half at most, sum to more than half of the limit above and B / 20.

The limits rest on 18,000 geometries: all embedded ones (hot, compressed, stretched, up to 8 eV above the minimum) and GFN2-xTB
dynamics of 52 molecules at 1000 K and of ten at 2000 to 3000 K, proton transfers, opened rings and an SN2 complex among
them. None that holds together fails; of random heaps of the atoms of a molecule of nine atoms hardly any pass. In a molecule of
two to five atoms many heaps are mere hot geometries (docs/measurements/2026-11-failure-rule.md).

Rules 3 to 5 rest for the first 0.1 ps, in which a distorted start may still relax. Rule 2 does not.
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
"""Any two atoms nearer than this (angstrom) have collapsed onto each other."""

CONTACT, CONTACT_OF_BOND = 0.65, 0.85
"""Also those within this multiple of the sum of covalent radii, or of a short bond: hot bonds reach 0.69 and 0.87."""

FULL, NONE = 1.2, 1.5
"""A pair counts as neighbours within the first multiple of the sum of covalent radii, not beyond the second."""

VALENCE = {"H": 2, "F": 2, "O": 3, "C": 4, "N": 4}
"""Neighbours that an atom may have for long: a shared proton has two, hydronium three."""

VALENCE_OF_OTHERS = 6

EXCHANGED = 1.5
"""How many more it may have while bonds are exchanged."""

CHANGED, CHANGED_SHARE = 1.75, 1 / 8
"""Bonds that may be lost or formed, and what is added for each bond of the molecule."""

CRUSHED, CRUSHED_SHARE = 0.025, 0.025
"""What the squares of the bonds' compressions may sum to, and what is added for each bond."""

TORN_SHARE = 1 / 20
"""Stretch that hot bonds have on average."""

HOT_RATIO = 3.0
"""Multiple of the target temperature above which a replica is hot."""

HOT_TIME = 1000.0
"""How long (fs) a replica may stay hot."""

GRACE_TIME = 100.0
"""How long (fs) after the start the rules on bonds and temperature rest."""


class Status(IntEnum):
    """State of a replica; every value but ``ALIVE`` is a failure."""

    ALIVE = 0
    NON_FINITE = 1
    CONTACT = 2
    BROKEN_BOND = 3
    OVERHEATED = 4
    UNCERTAIN = 5
    DISTORTED = 6


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
    coordination: np.ndarray | None = None
    """(N,) neighbours of each atom there; None in the rule of runs that began before 2026-12, which knew neither rule 4 nor the
    elements in rule 2"""

    @property
    def together(self):
        """(N, N) which atoms are of one molecule; a scalar where all are."""
        numbers = np.array(self.molecules)
        return numbers[:, None] == numbers if self.molecules else np.True_

    @property
    def contact(self):
        """(N, N) distances below which two atoms are in contact, angstrom."""
        limit = np.full(self.near_at_rest.shape, CONTACT_DISTANCE)
        if self.coordination is not None:
            limit = CONTACT * sum_of_radii(self.species)
            i, j = self.bonds.T
            limit[i, j] = limit[j, i] = np.minimum(limit[i, j], CONTACT_OF_BOND * self.lengths)
        return np.maximum(limit, CONTACT_DISTANCE)

    @property
    def members(self):
        """(M, N) which atoms are of which molecule."""
        numbers = np.array(self.molecules or len(self.species) * (0,))
        return numbers == np.arange(numbers.max() + 1)[:, None]

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
    held, count = near(species, reference, HELD), np.asarray(neighbours(species, reference))
    return FailureRule(tuple(species), bonds, lengths, at_rest, held, tuple(map(int, molecules)), count)


def near(species, positions, factor=NEAR):
    """Which atoms of a geometry (N, 3) in angstrom hold together, (N, N): every atom with itself and those near it."""
    return _squares(positions) < (factor * sum_of_radii(species)) ** 2


def neighbours(species, positions):
    """C_i of every atom of a geometry (N, 3) in angstrom, (N,): how many neighbours it has, see the module's docstring."""
    ratio = _squares(positions) / sum_of_radii(species) ** 2
    counts = ((NONE**2 - ratio) / (NONE**2 - FULL**2)).clip(0.0, 1.0)
    return counts.sum(1) - 1  # itself


def distortion(rule, positions):
    """How far a geometry (N, 3) is distorted, (4,) as shares of the limits of rule 4: crowded, changed, crushed and torn.

    Those of the atom or the molecule that is worst.
    """
    members, at_rest = rule.members, rule.coordination
    n, n_bonds = members @ at_rest / 2, members[:, rule.bonds[:, 0]].sum(1)
    changes = np.maximum(np.minimum(CHANGED + CHANGED_SHARE * n, (n + 1) / 2), 1)
    now = neighbours(rule.species, positions)
    valence = [VALENCE.get(symbol, VALENCE_OF_OTHERS) for symbol in rule.species]
    strain = _distances(positions, rule.bonds) / rule.lengths - 1

    def of_molecules(of_bonds):
        return members[:, rule.bonds[:, 0]] @ of_bonds

    return jnp.stack(
        [
            (now / (np.maximum(valence, at_rest) + EXCHANGED)).max(),
            (members @ jnp.abs(now - at_rest) / 2 / changes).max(),
            (of_molecules(jnp.minimum(strain, 0) ** 2) / (CRUSHED + CRUSHED_SHARE * n_bonds)).max(),
            (of_molecules(strain.clip(0, 0.5)) / (changes / 2 + TORN_SHARE * n_bonds)).max(),
        ]
    )


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
    failures = {
        Status.NON_FINITE: ~jnp.isfinite(positions).all(),
        Status.CONTACT: (_squares(positions) < _off_diagonal(rule.contact**2)).any(),
        Status.BROKEN_BOND: after_grace & _broken(rule, positions).any(),
        Status.DISTORTED: after_grace & (rule.coordination is not None and (distortion(rule, positions) > 1).any()),
        Status.OVERHEATED: after_grace & (hot_time >= HOT_TIME),
    }
    holds = jnp.stack(list(failures.values()))
    first = jnp.array(list(failures), dtype=np.int32)[holds.argmax()]
    return jnp.where(holds.any(), first, np.int32(Status.ALIVE))


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
            pairs = _all_pairs(rule)
            distances, limits = _distances(positions, pairs), rule.contact[pairs[:, 0], pairs[:, 1]]
            worst = (distances / limits).argmin()
            first, second = _labels(rule, pairs[worst])
            reason = f"atoms {first} and {second} {distances[worst]:.2f} A apart, limit {limits[worst]:.2f} A"
        case Status.BROKEN_BOND:
            lengths = _distances(positions, rule.bonds)
            broken, (i, j) = _broken(rule, positions), rule.bonds.T
            numbers = np.array([atomic_numbers[s] for s in rule.species])
            lost = broken & ~_new_partner(rule, positions)[np.where(numbers[i] < numbers[j], i, j)]
            worst = np.where(lost if lost.any() else broken, lengths / rule.lengths, 0.0).argmax()
            bond = "-".join(_labels(rule, rule.bonds[worst]))
            reason = f"bond {bond} {lengths[worst]:.2f} A, reference {rule.lengths[worst]:.2f} A"
        case Status.DISTORTED:
            reason = _distorted(rule, positions)
        case Status.OVERHEATED:
            reason = f"temperature {temperature:.0f} K, above three times the target of {target:.0f} K for 1 ps"
        case Status.UNCERTAIN:
            reason = f"uncertainty of the energy {uncertainty / KCAL_MOL:.3g} kcal/mol, limit {largest / KCAL_MOL:.3g} kcal/mol"
    return f"{reason}, at {elapsed / 1000:.7g} ps"


def _distorted(rule, positions):
    """Rule 4 in words: what exceeds its limit the most."""
    shares = np.asarray(distortion(rule, positions))
    now, kind = np.asarray(neighbours(rule.species, positions)), shares.argmax()
    if kind == 0:
        valence = [VALENCE.get(symbol, VALENCE_OF_OTHERS) for symbol in rule.species]
        atom = (now / np.maximum(valence, rule.coordination)).argmax()
        return f"atom {_labels(rule, [atom])[0]} has {now[atom]:.1f} neighbours, {rule.coordination[atom]:.1f} in the reference"
    what = ("", "too many bonds lost or formed", "bonds crushed", "bonds torn")[kind]
    return f"{what}, {shares[kind]:.2f} times the limit"


def _labels(rule, atoms):
    return [f"{rule.species[k]}{k + 1}" for k in atoms]


def _all_pairs(rule):
    return np.stack(np.triu_indices(len(rule.species), 1), axis=1)


def _distances(positions, pairs):
    return ((positions[pairs[:, 0]] - positions[pairs[:, 1]]) ** 2).sum(-1) ** 0.5


def _squares(positions):
    """Squared distances of all pairs, (N, N); a component at a time, which XLA does seven times faster than all three."""
    return sum((x[:, None] - x) ** 2 for x in positions.T)


def _off_diagonal(matrix):
    return np.where(np.eye(len(matrix), dtype=bool), 0.0, matrix)


def _broken(rule, positions):
    """Which bonds (B,) are broken without another to make up for it."""
    too_long = _distances(positions, rule.bonds) >= BOND_STRETCH * rule.lengths
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
