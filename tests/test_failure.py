"""The failure rule on molecules: heaps of atoms, crushed and torn ones fail; what hot molecules do does not."""

import jax
import numpy as np
import pytest
from ase.build import molecule

from iqagp_jax import load_dataset
from iqagp_jax.dynamics.record import description_of, rule_of
from iqagp_jax.system.failure import Status, distortion, failure_reason, failure_rule, failure_status

NAMES = ("malondialdehyde", "malondialdehyde-qtaim", "malondialdehyde-ccsd-t", "capped-glycine")


def statuses(rule, geometries):
    with jax.enable_x64(True):
        return np.asarray(jax.jit(jax.vmap(lambda r: failure_status(rule, r)))(np.asarray(geometries)))


@pytest.fixture(scope="module")
def embedded():
    return {name: load_dataset(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_all_embedded_geometries_are_alive(embedded, name):
    """Hot, compressed and stretched ones too, up to 8 eV above the minimum, and proton transfers."""
    data = embedded[name]
    rule = failure_rule(data.species, data.positions[data.lowest])
    assert not statuses(rule, data.positions).any()


MOLECULES = ("CH3CH2OH", "C3H9C", "CH3CH2Cl", "C6H6", "CH3COOH", "C4H4NH")


@pytest.mark.parametrize("name", ["malondialdehyde", "CH3CH2OH", "C6H6"])
def test_a_random_heap_of_atoms_is_no_molecule(embedded, name):
    """40 of 40 were alive in a cube of 1.6 A, as each broken bond was made good by some atom nearby."""
    rng = np.random.default_rng(0)
    if name in embedded:
        data = embedded[name]
        rule = failure_rule(data.species, data.positions[data.lowest])
    else:
        rule = failure_rule(molecule(name).get_chemical_symbols(), molecule(name).positions)
    heaps = [rng.uniform(0, side, (100, len(rule.species), 3)) for side in (1.6, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0)]
    assert (statuses(rule, np.concatenate(heaps)) == 0).sum() <= 1


def diatomic(symbols, length):
    return tuple(symbols.split()), np.array([[0.0, 0, 0], [length, 0, 0]])


CRUSHED = [(m.get_chemical_symbols(), m.positions) for m in map(molecule, (*MOLECULES, "SiH4", "BF3", "SH2", "H2O", "SO2"))]
CRUSHED += [diatomic("I I", 2.66), diatomic("Na Cl", 2.36), diatomic("Li F", 1.56), diatomic("C O", 1.13)]


@pytest.mark.parametrize(("species", "positions"), CRUSHED)
def test_crushed_and_exploded_molecules_fail(species, positions):
    rule = failure_rule(species, positions)
    crushed = [0.5, 0.6, 0.7] + (len(rule.bonds) > 1) * [0.79]
    exploded = [2.0, 3.0, 10.0] + (len(rule.bonds) > 1) * [1.5]
    assert (statuses(rule, [k * positions for k in (*crushed, *exploded)]) > 0).all()
    assert not statuses(rule, [k * positions for k in (0.9, 0.95, 1.0, 1.05, 1.1)]).any()


@pytest.mark.parametrize(
    ("symbols", "rest", "close"), [("C C", 1.2, 0.55), ("I I", 2.66, 0.6), ("N N", 1.1, 0.7), ("H H", 0.74, 0.49)]
)
def test_a_contact_depends_on_the_elements(symbols, rest, close):
    rule = failure_rule(*diatomic(symbols, rest))
    assert statuses(rule, [diatomic(symbols, close)[1]]) == Status.CONTACT
    assert not statuses(rule, [diatomic(symbols, 0.9 * rest)[1]]).any()


def test_a_short_bond_is_no_contact():
    """That of Cr2, 1.68 A, is 0.60 of the sum of covalent radii."""
    rule = failure_rule(*diatomic("Cr Cr", 1.68))
    assert list(statuses(rule, [diatomic("Cr Cr", r)[1] for r in (1.55, 1.40)])) == [Status.ALIVE, Status.CONTACT]


CYCLOBUTENE = molecule("cyclobutene")
BUTADIENE = np.array(
    [
        [0.0, -0.73, 0.65],
        [0.0, 0.73, 0.65],
        [0.0, -1.52, -0.41],
        [0.0, 1.52, -0.41],
        [0.0, -1.16, 1.65],
        [0.0, 1.16, 1.65],
        [0.0, -2.60, -0.32],
        [0.0, -1.11, -1.41],
        [0.0, 1.11, -1.41],
        [0.0, 2.60, -0.32],
    ]
)
"""cis, its atoms in the order of the ring's"""


def test_a_ring_may_open():
    ring = CYCLOBUTENE.positions
    rule = failure_rule(CYCLOBUTENE.get_chemical_symbols(), ring)
    assert not statuses(rule, [ring + t * (BUTADIENE - ring) for t in np.linspace(0, 1, 11)]).any()


def test_a_methyl_group_may_be_exchanged():
    """Cl- + CH3Br: the carbon has three hydrogens and two halogens halfway."""
    hydrogens = 1.07 * np.array([[np.cos(t), np.sin(t), 0] for t in 2 * np.pi * np.arange(3) / 3])

    def complex_at(chlorine, bromine, tilt):
        ends = [[0, 0, 0], *(hydrogens + np.array([0, 0, tilt])), [0, 0, -chlorine], [0, 0, bromine]]
        return np.array(ends, float)

    species = ("C", "H", "H", "H", "Cl", "Br")
    rule = failure_rule(species, complex_at(3.0, 1.97, -0.35))
    assert not statuses(rule, [complex_at(*x) for x in ((2.6, 2.1, -0.2), (2.3, 2.45, 0.0), (1.9, 2.9, 0.25))]).any()


def test_a_crowd_fails_in_a_large_molecule_too():
    """Where few bonds of all change: three hydrogens that leave their carbons for one other."""
    ring = molecule("C6H6")
    rule = failure_rule(ring.get_chemical_symbols(), ring.positions)
    crowded = ring.positions.copy()
    crowded[[7, 8, 11]] = crowded[0] + 1.1 * np.array([[0, 0, 1], [0, 0, -1], [0.6, 0.6, 0.5]])
    shares = np.asarray(distortion(rule, crowded))
    assert shares[0] > 1
    assert statuses(rule, [crowded]) > 0


@pytest.mark.parametrize(
    ("geometry", "said"),
    [
        (lambda r: 0.79 * r, "bonds crushed, 1."),
        (lambda r: 1.3 * r, "bonds torn, 1."),
        (lambda r: 1.5 * r, "too many bonds lost or formed, 2."),
    ],
)
def test_a_distortion_has_a_reason(geometry, said):
    ethanol = molecule("CH3CH2OH")
    rule = failure_rule(ethanol.get_chemical_symbols(), ethanol.positions)
    there = geometry(ethanol.positions)
    assert statuses(rule, [there]) == Status.DISTORTED
    reason = failure_reason(rule, Status.DISTORTED, there, 500.0, 300.0, 300.0)
    assert reason.startswith(said) and reason.endswith(" times the limit, at 0.5 ps")


def test_the_rule_of_an_older_run_is_kept():
    """Contacts at 0.5 A whatever the elements, and no rule on distortions."""
    species, positions = diatomic("C C", 1.2)
    told = description_of(failure_rule(species, positions))
    now = rule_of(told)
    np.testing.assert_array_equal(now.coordination, failure_rule(species, positions).coordination)
    then = rule_of({name: value for name, value in told.items() if name != "coordination"})
    for rule, status in ((now, Status.CONTACT), (then, Status.ALIVE)):
        assert statuses(rule, [diatomic("C C", 0.55)[1]]) == status
    assert "coordination" not in description_of(then)
