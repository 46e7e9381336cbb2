"""The failure rule: what breaks a molecule, what does not, and in which words."""

import time

import ase.build
import jax
import numpy as np
import pytest

from iqagp_jax.system.failure import Status, covalent_bonds, failure_reason, failure_rule, failure_status, hot_steps, pieces
from iqagp_jax.units import KCAL_MOL

WATER = ("O", "H", "H")
RING = ("O", "H", "O")  # a proton between two oxygens, on the first by name


def water(first=0.97, second=0.97):
    return np.array([[0.0, 0.0, 0.0], [first, 0.0, 0.0], [0.0, second, 0.0]])


def proton(distance, between=2.6):
    return np.array([[0.0, 0.0, 0.0], [distance, 0.0, 0.0], [between, 0.0, 0.0]])


def test_bonds_of_ethanol():
    ethanol = ase.build.molecule("CH3CH2OH")
    symbols = ethanol.get_chemical_symbols()
    bonds = covalent_bonds(symbols, ethanol.positions)
    assert sorted("".join(sorted(symbols[i] + symbols[j])) for i, j in bonds) == ["CC"] + 5 * ["CH"] + ["CO", "HO"]


def test_atoms_without_bonds_only_fail_by_contact():
    far_apart = np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    rule = failure_rule(("Ar", "Ar"), far_apart)
    assert rule.bonds.shape == (0, 2)
    assert failure_status(rule, far_apart) == Status.ALIVE
    assert failure_status(rule, 0.1 * far_apart) == Status.CONTACT


@pytest.mark.parametrize(
    ("positions", "elapsed", "hot_time", "status"),
    [
        (water(), np.inf, 0.0, Status.ALIVE),
        (water(first=1.93), np.inf, 0.0, Status.ALIVE),
        (water(first=1.95), np.inf, 0.0, Status.BROKEN_BOND),
        (water(first=1.95), 100.0, 0.0, Status.ALIVE),
        (water(first=1.95), 100.5, 0.0, Status.BROKEN_BOND),
        (water(first=0.75), np.inf, 0.0, Status.ALIVE),
        (water(first=0.64), np.inf, 0.0, Status.DISTORTED),
        (water(first=0.64), 100.0, 0.0, Status.ALIVE),
        (water(first=0.62), np.inf, 0.0, Status.CONTACT),
        (water(first=0.49), 0.5, 0.0, Status.CONTACT),
        (water(first=0.49, second=3.0), np.inf, 0.0, Status.CONTACT),
        (water(first=np.nan), 0.5, 0.0, Status.NON_FINITE),
        (water(first=np.inf), np.inf, 0.0, Status.NON_FINITE),
        (water(), np.inf, 999.5, Status.ALIVE),
        (water(), np.inf, 1000.0, Status.OVERHEATED),
        (water(), 100.0, 1000.0, Status.ALIVE),
    ],
)
def test_status(positions, elapsed, hot_time, status):
    rule = failure_rule(WATER, water())
    with jax.enable_x64(True):
        assert failure_status(rule, positions, elapsed, hot_time) == status


def test_transfer_of_hydrogen_is_chemistry():
    rule = failure_rule(RING, proton(0.8))
    with jax.enable_x64(True):
        assert failure_status(rule, proton(1.65)) == Status.ALIVE  # 0.95 from the other oxygen
        assert failure_status(rule, proton(1.65, between=3.18)) == Status.ALIVE  # 1.53: a hot bond that formed still holds
        assert failure_status(rule, proton(1.65, between=3.22)) == Status.BROKEN_BOND  # 1.57: it has been lost
        # Two hydrogens that leave together have each other, but the molecule is in two pieces.
        assert failure_status(failure_rule(WATER, water()), proton(1.95)) == Status.BROKEN_BOND


def test_a_bond_may_break_if_another_forms_and_nothing_comes_apart():
    chain = np.array([[0.0, 0.0, 0.0], [1.4, 0.0, 0.0], [4.1, 0.0, 0.0]])
    rule = failure_rule(("O", "C", "O"), chain)
    assert failure_status(rule, np.array([[0.0, 0, 0], [2.9, 0, 0], [4.1, 0, 0]])) == Status.ALIVE  # carbon changes partner
    assert failure_status(rule, np.array([[0.0, 0, 0], [2.9, 0, 0], [5.2, 0, 0]])) == Status.BROKEN_BOND
    methane = ase.build.molecule("CH4")
    rule, leaving = failure_rule(tuple(methane.get_chemical_symbols()), methane.positions), methane.positions.copy()
    leaving[1], leaving[2] = [0, 0, 2.5], [0, 0, 3.24]  # a hydrogen molecule: each atom has a new partner, yet both are lost
    assert failure_status(rule, leaving) == Status.BROKEN_BOND


def test_a_torn_ring_is_broken_although_it_stays_in_one_piece():
    def helix(step, radius, pitch):
        turn = np.radians(step) * np.arange(6)
        return np.stack([radius * np.cos(turn), radius * np.sin(turn), pitch * np.arange(6)], axis=1)

    rule = failure_rule(6 * ("C",), helix(60, 1.40, 0.0))
    assert failure_status(rule, helix(60, 1.40, 0.0)) == Status.ALIVE
    # Bonds of 1.40 A, angles of 118 degrees, so those across the ring are as near as they were; the ends are 3.1 A apart.
    assert failure_status(rule, helix(70, 1.096, 0.616)) == Status.BROKEN_BOND
    # An atom of another molecule at one of its ends is no new partner.
    lone, there = np.array([[0.0, 0.0, 20.0]]), helix(70, 1.096, 0.616)
    rule = failure_rule(7 * ("C",), np.concatenate([helix(60, 1.40, 0.0), lone]), (0, 0, 0, 0, 0, 0, 1))
    assert failure_status(rule, np.concatenate([there, there[:1] - [0.0, 0.0, 1.5]])) == Status.BROKEN_BOND


def test_molecules_are_whole_each_for_itself():
    """A proton that moves within its molecule is chemistry; one that goes to another is a broken bond."""

    def apart(proton, gap=5.0):
        """O-H...O, all of one molecule or with the last oxygen a molecule of its own, and a water beyond the gap."""
        return np.concatenate([[[0.0, 0.0, 0.0], [proton, 0.0, 0.0], [2.6, 0.0, 0.0]], water() + np.array([0.0, 0.0, gap])])

    species = ("O", "H", "O", *WATER)
    within, between = (failure_rule(species, apart(0.8), numbers) for numbers in ((0, 0, 0, 1, 1, 1), (0, 0, 1, 2, 2, 2)))
    assert failure_status(within, apart(1.65)) == Status.ALIVE
    assert failure_status(between, apart(0.8)) == Status.ALIVE
    assert failure_status(between, apart(1.65)) == Status.BROKEN_BOND
    reason = failure_reason(between, Status.BROKEN_BOND, apart(1.65), 500.0, 300.0, 300.0)
    assert reason == "bond O1-H2 1.65 A, reference 0.80 A, at 0.5 ps"
    # Molecules may come as near to each other as no two atoms may.
    assert failure_status(between, apart(0.8, gap=1.2)) == Status.ALIVE
    assert failure_status(between, apart(0.8, gap=0.4)) == Status.CONTACT


def test_a_box_of_waters_is_checked_fast():
    """100 waters within 5 ms, once compiled; 0.2 ms on a quiet machine."""
    grid = 3.1 * np.array(list(np.ndindex(5, 5, 4)), float)
    box = (grid[:, None] + water()).reshape(-1, 3)
    rule = failure_rule(100 * WATER, box, np.repeat(np.arange(100), 3))
    broken = box.copy()
    broken[-1] += [0.0, 2.0, 0.0]
    check = jax.jit(lambda r: failure_status(rule, r))
    assert [int(check(r)) for r in (box, broken)] == [Status.ALIVE, Status.BROKEN_BOND]
    took = []
    for _ in range(20):
        began = time.perf_counter()
        check(box).block_until_ready()
        took.append(time.perf_counter() - began)
    assert min(took) < 5e-3


def test_pieces():
    two = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]], dtype=bool)
    assert pieces(two) == 2
    assert pieces(np.eye(3, dtype=bool)) == 3


def test_status_under_jit_and_vmap_is_that_of_each_configuration():
    rule = failure_rule(WATER, water())
    batch = np.array([water(), water(first=1.95), water(first=0.4), water(second=np.nan)])
    with jax.enable_x64(True):
        found = jax.jit(jax.vmap(lambda x: failure_status(rule, x)))(batch)
    assert list(found) == [Status.ALIVE, Status.BROKEN_BOND, Status.CONTACT, Status.NON_FINITE]


def test_hot_steps_count_on_end_and_after_the_grace():
    count = 0
    for temperature, elapsed, expected in [(2000, 50, 0), (2000, 101, 1), (1501, 102, 2), (1500, 103, 0), (2000, 104, 1)]:
        count = hot_steps(count, temperature, 500.0, elapsed)
        assert count == expected


@pytest.mark.parametrize(
    ("status", "positions", "reason"),
    [
        (Status.ALIVE, water(), ""),
        (Status.NON_FINITE, water(), "energy, positions, momenta or forces not finite, at 1.2345 ps"),
        (Status.CONTACT, water(second=0.411), "atoms O1 and H3 0.41 A apart, limit 0.63 A, at 1.2345 ps"),
        (Status.BROKEN_BOND, water(second=2.311), "bond O1-H3 2.31 A, reference 0.97 A, at 1.2345 ps"),
        (Status.OVERHEATED, water(), "temperature 1650 K, above three times the target of 500 K for 1 ps, at 1.2345 ps"),
        (Status.UNCERTAIN, water(), "uncertainty of the energy 5.3 kcal/mol, limit 5 kcal/mol, at 1.2345 ps"),
    ],
)
def test_reason(status, positions, reason):
    said = failure_reason(
        failure_rule(WATER, water()), status, positions, 1234.5, 1650.2, 500.0, 5.3 * KCAL_MOL, 5.0 * KCAL_MOL
    )
    assert said == reason


def test_reason_names_the_bond_that_broke_not_the_transferred_one():
    reference = np.array([[0.0, 0.0, 0.0], [0.8, 0.0, 0.0], [2.6, 0.0, 0.0], [2.6, 0.97, 0.0]])
    positions = np.array([[0.0, 0.0, 0.0], [1.9, 0.0, 0.0], [2.6, 0.0, 0.0], [2.6, 2.0, 0.0]])
    rule = failure_rule(("O", "H", "O", "H"), reference)
    assert failure_reason(rule, Status.BROKEN_BOND, positions, 500.0, 300.0, 300.0).startswith("bond O3-H4 2.00 A")


@pytest.mark.parametrize(
    ("species", "reference", "sentence"),
    [
        (("O", "H", "Q"), water(), "expected chemical symbols as species, found 'Q'"),
        (("O", "H"), water(), "found shape .3, 3."),
        (WATER, water(first=np.nan), "1 non-finite"),
    ],
)
def test_bad_reference_is_refused(species, reference, sentence):
    with pytest.raises(ValueError, match=sentence):
        failure_rule(species, reference)
