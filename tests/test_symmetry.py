"""The permutations that leave a molecule's energy as it is."""

import time

import numpy as np
import pytest
from ase.build import molecule

from iqagp_jax import load_dataset
from iqagp_jax.data.dataset import Dataset
from iqagp_jax.families.gp import joint
from iqagp_jax.families.gp.options import GPOptions
from iqagp_jax.families.gp.problem import Problem
from iqagp_jax.system import symmetry
from iqagp_jax.system.symmetry import Group


def group_of(name):
    atoms = molecule(name)
    return symmetry.permutations(atoms.get_chemical_symbols(), atoms.positions)


def is_group(permutations):
    """Closed, with the identity first: then a finite set has inverses too."""
    group = {tuple(p) for p in permutations.tolist()}
    closed = {tuple(np.array(p)[list(q)].tolist()) for p in group for q in group} == group
    return closed and permutations[0].tolist() == list(range(permutations.shape[1])) and len(group) == len(permutations)


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("H2O", 2),
        ("CH3Cl", 3 * 2),  # rotations, and reflections that turn over the only centre there is
        ("C2H6", 2 * 3 * 3 * 2),
        ("CH3CH2OH", 6),  # a rotation of the methyl group, with or without the mirror that swaps both hydrogens of CH2
        ("CH4", 24),
    ],
)
def test_order_of_the_group(name, order):
    assert len(group_of(name)) == order


def test_it_is_a_group_of_permutations_of_equal_atoms():
    group = group_of("C2H6")
    species = np.array(molecule("C2H6").get_chemical_symbols())
    assert is_group(group)
    assert all((species[p] == species).all() for p in group)


def test_a_proton_transfer_swaps_the_halves_of_malondialdehyde():
    data = load_dataset("malondialdehyde")
    best = data.positions[np.argmin(data.energy)]
    found = symmetry.permutations(data.species, best)
    np.testing.assert_array_equal(found, [np.arange(9), [4, 3, 2, 1, 0, 7, 6, 5, 8]])
    np.testing.assert_array_equal(symmetry.orbits(found), [0, 1, 2, 1, 0, 3, 4, 3, 5])
    assert Group.of(data.species, best).order == 2
    # With the hydrogen on the far side of its oxygen no acceptor is in reach.
    away = best.copy()
    away[8] = 2 * away[0 if np.linalg.norm(away[8] - away[0]) < 1.2 else 4] - away[8]
    assert len(symmetry.permutations(data.species, away)) == 1


def octahedron():
    return ("S", *6 * "F"), 1.56 * np.array([[0, 0, 0], *np.eye(3), *-np.eye(3)])


def waters(n):
    water = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    return tuple(n * "OHH"), np.concatenate([water + np.array([0, 0, 3.0 * k]) for k in range(n)])


def buckminsterfullerene():
    """The even permutations of (0, 1, 3g), (1, 2 + g, 2g) and (g, 2, 2g + 1) with all signs, g the golden ratio."""
    g = (1 + 5**0.5) / 2
    corners = np.array([[0, 1, 3 * g], [1, 2 + g, 2 * g], [g, 2, 2 * g + 1]])
    signs = 1 - 2 * np.array(list(np.ndindex(2, 2, 2)))
    turned = np.concatenate([np.roll(corners, k, axis=1) for k in range(3)])
    return 60 * ("C",), 0.72 * np.unique((turned[:, None] * signs).round(9).reshape(-1, 3), axis=0)


def substituted(centres, axes, frame):
    """Methyl groups at ``centres`` that point along ``axes``, joined to the ``frame``'s (symbol, position)."""
    species, positions = [symbol for symbol, _ in frame], [position for _, position in frame]
    for centre, axis in zip(centres, axes, strict=True):
        axis = axis / np.linalg.norm(axis)
        side = np.cross(axis, [0.3, 0.5, 0.81] if abs(axis[2]) < 0.9 else [1.0, 0.2, 0.1])
        side /= np.linalg.norm(side)
        other = np.cross(axis, side)
        species += ["C", "H", "H", "H"]
        around = [np.cos(t) * side + np.sin(t) * other for t in 2 * np.pi * np.arange(3) / 3]
        positions += [centre, *(centre + 0.363 * axis + 1.027 * a for a in around)]
    return tuple(species), np.array(positions)


def neopentane():
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5
    return substituted(1.53 * corners, corners, [("C", np.zeros(3))])


def mesitylene():
    ring = np.array([[np.cos(t), np.sin(t), 0.0] for t in np.pi * np.arange(6) / 3])
    frame = [("C", 1.4 * r) for r in ring] + [("H", 2.48 * r) for r in ring[1::2]]
    return substituted(2.91 * ring[::2], ring[::2], frame)


def isobutane():
    atoms = molecule("isobutane")
    return tuple(atoms.get_chemical_symbols()), atoms.positions


@pytest.mark.parametrize(
    ("what", "order", "used", "classes"),
    [
        (isobutane, 162, 81, 4),  # a methyl group's rotations, three times, and that of all three
        (neopentane, 1944, 81, 9),
        (mesitylene, 324, 81, 5),
        (octahedron, 720, 48, 2),  # rotations and reflections of the octahedron
        (lambda: waters(4), 384, 64, 4),
        (lambda: waters(8), 2**8 * 40320, 64, None),
        (buckminsterfullerene, 120, 60, 1),  # its rotations
    ],
)
def test_a_subgroup_of_a_large_group_is_used(what, order, used, classes):
    """Told by the caller's own clock too: the whole group of C60 was looked for through a minute."""
    species, positions = what()
    began = time.perf_counter()
    group = Group.of(species, positions)
    assert group.order == order
    with pytest.warns(UserWarning, match=f"^{used} of {order} permutations of equal atoms are used, made of \\("):
        found = symmetry.permutations(species, positions)
    assert time.perf_counter() - began < 10  # a second on a quiet machine
    assert len(found) == used == group.within().order <= symmetry.MOST
    assert is_group(found)
    assert all((np.array(species)[p] == species).all() for p in found)
    if classes:
        assert symmetry.orbits(found).max() + 1 == classes
    np.testing.assert_array_equal(group.within().permutations, found)


def test_a_subgroup_as_small_as_asked():
    ethane = molecule("C2H6")
    species = ethane.get_chemical_symbols()
    for most in (36, 35, 10, 8, 2, 1):
        found = Group.of(species, ethane.positions).within(most)
        assert found.order == len(found.permutations) <= most
        assert is_group(found.permutations)
    assert Group.of(species, ethane.positions).within(36).order == 36
    with pytest.warns(UserWarning, match=r"9 of 36 permutations .* made of \(H3 H4 H5\), \(H6 H7 H8\); at most 10 are"):
        symmetry.permutations(species, ethane.positions, 10)


def test_a_flat_centre_has_no_hands():
    """Four neighbours in a plane, as of xenon tetrafluoride, whose handedness would be that of noise."""
    square = 1.94 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0.001]])
    assert Group.of(("Xe", *4 * "F"), square).order == 24


def test_neopentane_is_learned_by_default():
    """It was refused, by a symmetry that the user never asked for."""
    species, positions = neopentane()
    some = positions + np.random.default_rng(0).normal(0, 0.02, (3, *positions.shape))
    data = Dataset(species, some, energy=np.array([0.0, 0.1, 0.2]), forces=np.zeros_like(some))
    with pytest.warns(UserWarning, match="81 of 1944 permutations"):
        problem = Problem.of(data, GPOptions().resolved(data))
    assert len(problem.permutations) == 81


def test_copies_of_the_data_have_room(monkeypatch):
    """Local frames are learned from permuted copies: as many as fit into memory."""
    species, positions = neopentane()
    some = positions + np.random.default_rng(0).normal(0, 0.02, (3, *positions.shape))
    data = Dataset(species, some, np.zeros(3), atomic_energies=np.zeros((3, 17)))
    options = GPOptions(features="alf", symmetry=True).resolved(data)
    monkeypatch.setattr(joint, "fits", lambda size: size <= 3 * 30)
    with pytest.warns(UserWarning, match="27 of 1944 permutations"):
        problem = Problem.of(data, options)
    assert len(problem.copies) == 3 * 27
