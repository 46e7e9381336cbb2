"""Scans of bonds, bends, torsions and single atoms: what is made, and that holes are found."""

import numpy as np
import pytest
from conftest import REFERENCE, SPECIES, pair_energies
from test_verdict import Exact

from iqagp_jax.system.coordinates import angle, dihedral, distance
from iqagp_jax.system.geometry import pair_distances
from iqagp_jax.system.system import System
from iqagp_jax.units import KCAL_MOL
from iqagp_jax.verdict import Protocol, judge, pictures, shape

HERE = System(SPECIES, REFERENCE)


def peroxide():
    """H-O-O-H with a torsion of 110 degrees."""
    turn = np.radians(110.0)
    ends = [[-0.2, 0.95, 0.0], [1.65, 0.95 * np.cos(turn), 0.95 * np.sin(turn)]]
    return System(("O", "O", "H", "H"), np.array([[0.0, 0, 0], [1.45, 0, 0], *ends]))


def exact(positions):
    return np.array([pair_energies(r).sum() for r in positions])


def test_each_scan_moves_what_its_name_says_and_nothing_else():
    system = peroxide()
    found = {(scan.kind, scan.name): scan for scan in shape.scans(system)}
    assert [kind for kind, _ in found] == ["bond"] * 3 + ["bend"] * 2 + ["torsion"] + ["atom"] * 4
    bond = found["bond", "O1-O2"]
    np.testing.assert_allclose(distance(bond.positions, 0, 1), bond.values)
    np.testing.assert_allclose(bond.values[[0, -1]], np.array([0.6, 2.0]) * 1.45)
    bend = found["bend", "O2-O1-H3"]
    np.testing.assert_allclose(np.degrees(angle(bend.positions, 1, 0, 2)), bend.values)
    turn = found["torsion", "about O1-O2"]
    turned = np.degrees(dihedral(turn.positions, 2, 0, 1, 3)) - np.degrees(dihedral(system.positions, 2, 0, 1, 3))
    np.testing.assert_allclose(np.abs(np.exp(1j * np.radians(turned)).imag), np.abs(np.sin(np.radians(turn.values))), atol=1e-9)
    assert len(turn.values) == 23
    rest = pair_distances(system.positions)
    for scan, inner in ((bond, [(0, 2), (1, 3)]), (bend, [(0, 1), (0, 2), (1, 3)]), (turn, [(0, 1), (0, 2), (1, 3), (1, 2)])):
        for i, j in inner:
            np.testing.assert_allclose(pair_distances(scan.positions)[:, i, j], rest[i, j])
    pulled = found["atom", "H4"]
    np.testing.assert_array_equal(pulled.positions[:, :3], np.repeat(system.positions[None, :3], 8, axis=0))
    np.testing.assert_allclose(np.linalg.norm(pulled.positions[:, 3] - system.positions[3], axis=-1), pulled.values)


def test_no_atoms_come_in_contact():
    """A replica that gets there has failed, whatever its energy: C-H bonds begin at 0.7 of their length."""
    found = {scan.name: scan for scan in shape.scans(HERE)}
    apart = np.concatenate([pair_distances(scan.positions)[:, *np.triu_indices(4, 1)] for scan in found.values()])
    assert (apart > HERE.failure_rule.contact[np.triu_indices(4, 1)]).all()
    length = np.linalg.norm(REFERENCE[1] - REFERENCE[2])
    assert found["C2-H3"].values[0] == pytest.approx(0.7 * length) and len(found["C2-H3"].values) == 14


def test_rings_are_left_as_they_are():
    """Cyclopropane's C-C bonds are no scans, its C-H bonds and all atoms are."""
    around = np.radians([0.0, 120.0, 240.0])
    carbon = 0.87 * np.stack([np.cos(around), np.sin(around), np.zeros(3)], axis=-1)
    hydrogen = np.concatenate([1.67 * carbon + [0, 0, z] for z in (0.91, -0.91)])
    found = shape.scans(System((*"CCC", *"HHHHHH"), np.concatenate([carbon, hydrogen])))
    kinds = [scan.kind for scan in found]
    assert (kinds.count("bond"), kinds.count("torsion"), kinds.count("atom")) == (6, 0, 9)


def test_a_hole_is_found_and_named():
    length = np.linalg.norm(REFERENCE[0] - REFERENCE[1]) * shape.LENGTHS[5]

    def hollow(positions):
        bond = np.linalg.norm(positions[:, 0] - positions[:, 1], axis=-1)
        return exact(positions) - 9 * KCAL_MOL * np.exp(-(((bond - length) / 0.03) ** 2))

    sound = shape.shape(shape.compare(HERE, exact, exact, 1000))
    assert sound.grade == "good" and sound.sentence.endswith("no hole")
    found = shape.compare(HERE, hollow, exact, 1000)
    part = shape.shape(found)
    assert part.grade == "poor" and part.sentence.endswith(f"a hole 9 kcal/mol deep, bond O1-C2 at {length:.3g} Å")
    (place,) = shape.holes(found, 150.0)
    assert np.linalg.norm(place[0] - place[1]) == pytest.approx(length)
    assert len(shape.holes(found, 0.1)) == 0  # too high to be learned


def test_where_the_reference_has_no_energy_the_model_must_not_go():
    def lost(positions):
        energies = exact(positions)
        return np.where(energies > energies.min() + 10 * KCAL_MOL, np.nan, energies)

    part = shape.shape(shape.compare(HERE, exact, lost, 1000))
    assert part.grade == "poor" and "a hole where the reference has no energy" in part.sentence
    assert all(row.as_dict()["deepest"] is None for row in part.rows if row.deepest == np.inf)


def test_of_many_geometries_the_least_certain_within_reach_are_labelled():
    asked = []

    def labels(positions):
        asked.append(positions)
        return exact(positions)

    unsure = {"variance": lambda r: np.linalg.norm(r[:, 0] - r[:, 1], axis=-1)}
    found = shape.compare(HERE, exact, labels, 12, **unsure)
    every = np.concatenate([REFERENCE[None], *(profile.scan.positions for profile in found)])
    within = every[exact(every) <= exact(every)[0] + shape.REACH * KCAL_MOL]
    bonds = np.sort(unsure["variance"](within))
    assert len(asked[0]) == 12 and sum(profile.labelled.sum() for profile in found) == 11  # and the one at rest
    np.testing.assert_allclose(np.sort(unsure["variance"](asked[0][1:])), bonds[-11:])


def test_the_verdict_has_it(distance_model, tmp_path):
    protocol = Protocol((100.0,), ("equilibrium",), 2, 0.1, frames=2, scan_points=500)
    found = judge(distance_model, tmp_path, Exact(), protocol)
    assert found.shape.grade in ("good", "fair", "poor") and found.shape.evidence[0].labelled > 50
    assert {row["kind"] for row in found.as_dict()["shape"]} >= {"bond", "bend", "atom"}
    assert "<h2>Shape</h2>" in (tmp_path / "report.html").read_text() and (tmp_path / "shape.png").exists()
    assert len(pictures.scans(found.scans).axes) >= 4
