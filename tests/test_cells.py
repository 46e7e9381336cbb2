"""Molecules in periodic cells: put together across walls along periodic axes only, crystals refused."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from iqagp_jax.system.cells import unwrapped

SKEW = np.array([[9.0, 0.0, 0.0], [4.0, 8.0, 0.0], [-3.0, 2.5, 8.5]])


def distances(positions):
    return np.linalg.norm(positions[:, None] - positions, axis=-1)


def scattered(atoms, seed):
    """Every atom in an image of its own."""
    images = np.random.default_rng(seed).integers(-3, 4, size=(len(atoms), 3)) * atoms.pbc
    return atoms.positions + images @ atoms.cell.array


@pytest.mark.parametrize("cell", [np.eye(3) * 9.0, SKEW], ids=["cubic", "skew"])
def test_scattered_molecule_is_whole_again(cell):
    ethanol = molecule("CH3CH2OH", cell=cell, pbc=True)
    positions, molecules = unwrapped(ethanol.symbols, scattered(ethanol, 1), cell)
    np.testing.assert_allclose(distances(positions), distances(ethanol.positions), atol=1e-12)
    assert (molecules == 0).all()


def test_a_molecule_may_be_longer_than_half_its_cell():
    butadiene = molecule("butadiene")
    length = np.ptp(butadiene.positions, axis=0).max() + 2.5
    assert distances(butadiene.positions).max() > length / 2
    butadiene.set_cell(np.eye(3) * length)
    butadiene.pbc = True
    positions, _ = unwrapped(butadiene.symbols, scattered(butadiene, 2), butadiene.cell.array)
    np.testing.assert_allclose(distances(positions), distances(butadiene.positions), atol=1e-12)


def test_whole_molecules_stay_where_they_are_bit_for_bit():
    ethanol = molecule("CH3CH2OH", cell=np.eye(3) * 9.0, pbc=True)
    np.testing.assert_array_equal(unwrapped(ethanol.symbols, ethanol.positions, ethanol.cell.array)[0], ethanol.positions)


def test_every_molecule_is_whole_and_numbered():
    water = molecule("H2O")
    apart = [water.positions + shift for shift in ([0, 0, 0], [4.0, 0, 0], [0, 4.0, 3.0])]
    box = Atoms("OHH" * 3, positions=np.concatenate(apart), cell=np.eye(3) * 8.0, pbc=True)
    order = np.random.default_rng(0).permutation(9)
    positions, molecules = unwrapped(box[order].symbols, scattered(box, 3)[order], box.cell.array)
    np.testing.assert_array_equal(molecules, np.unique(order // 3, return_index=True)[1].argsort().argsort()[order // 3])
    for number in range(3):
        found = distances(positions[molecules == number])
        np.testing.assert_allclose(np.sort(found.ravel()), np.sort(distances(water.positions).ravel()), atol=1e-12)


def test_only_periodic_axes_have_images():
    hydrogen = np.array([[0.2, 0.0, 0.0], [7.46, 0.0, 0.0]])
    cell = np.eye(3) * 8.0
    for pbc, whole in (((1, 0, 0), True), ((0, 1, 1), False)):
        positions, molecules = unwrapped("HH", hydrogen, cell, pbc)
        assert (molecules.max() == 0) == whole
        assert np.isclose(distances(positions)[0, 1], 0.74 if whole else 7.26)
    # A vector of zeros has no images, whatever the flag says.
    positions, molecules = unwrapped("HH", hydrogen, np.diag([8.0, 0.0, 0.0]), (1, 1, 1))
    assert molecules.max() == 0 and np.isclose(distances(positions)[0, 1], 0.74)
    assert unwrapped("HH", hydrogen, np.zeros((3, 3)), (1, 1, 1))[1].tolist() == [0, 1]


def test_known_bonds_hold_stretched_molecules_together():
    stretched = np.array([[0.5, 0.0, 0.0], [8.9, 0.0, 0.0]])  # 1.6 angstrom through the wall
    assert unwrapped("HH", stretched, np.eye(3) * 10)[1].tolist() == [0, 1]
    positions, molecules = unwrapped("HH", stretched, np.eye(3) * 10, bonds=[(0, 1)])
    assert molecules.tolist() == [0, 0]
    np.testing.assert_allclose(positions[1], [-1.1, 0, 0], atol=1e-12)


VERY_SKEW = np.array([[4.0, 0.0, 0.0], [11.9, 1.5, 0.0], [0.0, 0.0, 9.0]])


def shortest(apart, cell):
    """Distance of the nearest image, looked for among all near ones."""
    steps = np.stack(np.meshgrid(np.arange(-40, 41), np.arange(-40, 41), np.arange(-2, 3)), -1)
    return np.linalg.norm(apart + steps @ cell, axis=-1).min()


def test_bonds_are_found_in_a_very_skew_cell():
    """Lattice coordinates of a half, as of two of these, are not those of the nearest image."""
    rng = np.random.default_rng(0)
    apart = rng.normal(size=(40, 3))
    apart = apart / np.linalg.norm(apart, axis=1)[:, None] * np.repeat([0.65, 0.75], 20)[:, None]  # helium's limit: 0.70
    for k, r in enumerate(apart + rng.integers(-2, 3, size=(40, 3)) @ VERY_SKEW):
        pair = np.array([np.zeros(3), r])
        positions, molecules = unwrapped(["He", "He"], pair, VERY_SKEW)
        assert molecules.tolist() == ([0, 0] if k < 20 else [0, 1])
        assert k >= 20 or np.isclose(distances(positions)[0, 1], 0.65)
        known = unwrapped(["He", "He"], pair, VERY_SKEW, bonds=[(0, 1)])[0]
        assert np.isclose(distances(known)[0, 1], shortest(r, VERY_SKEW))


def test_the_nearest_image_of_a_known_bond_in_a_very_skew_cell():
    for r in np.random.default_rng(1).uniform(-9, 9, size=(60, 3)):
        if shortest(r, VERY_SKEW) > 0.7:
            known = unwrapped(["He", "He"], np.array([np.zeros(3), r]), VERY_SKEW, bonds=[(0, 1)])[0]
            assert np.isclose(distances(known)[0, 1], shortest(r, VERY_SKEW))


@pytest.mark.parametrize(
    "crystal",
    [
        bulk("NaCl", "rocksalt", a=5.64),
        bulk("Cu", cubic=True),
        Atoms("C2", positions=[[0, 0, 0], [1.3, 0, 0]], cell=[2.6, 9, 9], pbc=True),  # a chain along one axis
    ],
    ids=["NaCl", "Cu", "carbyne"],
)
def test_crystals_are_refused(crystal):
    with pytest.raises(ValueError, match="bonded to its own image through a wall: a crystal"):
        unwrapped(crystal.symbols, crystal.positions, crystal.cell.array, crystal.pbc)


def test_a_chain_without_images_along_itself_is_a_molecule():
    chain = Atoms("C2", positions=[[0, 0, 0], [1.3, 0, 0]], cell=[2.6, 9, 9])
    assert unwrapped(chain.symbols, chain.positions, chain.cell.array, (0, 1, 1))[1].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("positions", "cell", "sentence"),
    [
        (np.full((2, 3), np.nan), np.eye(3) * 9, "expected finite positions"),
        (np.zeros((2, 3)), np.array([[9.0, 0, 0], [9.0, 0, 0], [0, 0, 9.0]]), "lattice vectors that span a volume"),
        (np.zeros((2, 3)), np.full((3, 3), np.inf), "lattice vectors that span a volume"),
    ],
)
def test_nonsense_gets_a_sentence(positions, cell, sentence):
    with pytest.raises(ValueError, match=sentence):
        unwrapped("HH", positions, cell)
