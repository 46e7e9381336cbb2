"""The permutations that leave a molecule's energy as it is."""

import numpy as np
import pytest
from ase.build import molecule

from iqagp_jax import load_dataset
from iqagp_jax.system import symmetry


def group_of(name):
    atoms = molecule(name)
    return symmetry.permutations(atoms.get_chemical_symbols(), atoms.positions)


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
    group = {tuple(p) for p in group_of("C2H6")}
    species = np.array(molecule("C2H6").get_chemical_symbols())
    assert {tuple(np.array(p)[list(q)]) for p in group for q in group} == group
    assert all((species[list(p)] == species).all() for p in group)


def test_a_proton_transfer_swaps_the_halves_of_malondialdehyde():
    data = load_dataset("malondialdehyde")
    best = data.positions[np.argmin(data.energy)]
    found = symmetry.permutations(data.species, best)
    np.testing.assert_array_equal(found, [np.arange(9), [4, 3, 2, 1, 0, 7, 6, 5, 8]])
    np.testing.assert_array_equal(symmetry.orbits(found), [0, 1, 2, 1, 0, 3, 4, 3, 5])
    # With the hydrogen on the far side of its oxygen no acceptor is in reach.
    away = best.copy()
    away[8] = 2 * away[0 if np.linalg.norm(away[8] - away[0]) < 1.2 else 4] - away[8]
    assert len(symmetry.permutations(data.species, away)) == 1


def test_too_many_get_a_sentence():
    ethane = molecule("C2H6")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="expected at most 10 permutations"):
        patch.setattr(symmetry, "MOST", 10)
        symmetry.permutations(ethane.get_chemical_symbols(), ethane.positions)
