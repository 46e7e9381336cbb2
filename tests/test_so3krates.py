"""SO3krates: laws of the network, both layouts of pairs, training that goes on with the same bits."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REFERENCE, SPECIES, rotation

from iqagp_jax import energy_and_forces
from iqagp_jax.families.gp.means import BornMayer
from iqagp_jax.families.so3krates.model import ALL_PAIRS, SO3krates, repulsion_energies
from iqagp_jax.families.so3krates.neighbours import NearPairs, all_pairs
from iqagp_jax.families.so3krates.network import Network, Pairs
from iqagp_jax.potential import bind
from iqagp_jax.system.system import System

pytestmark = pytest.mark.usefixtures("x64")


def potential_with(seed=3, scale=0.3, repulsion="none", **options):
    """An untrained network of H, C and O."""
    network = Network.random(np.random.default_rng(seed), 16, options.pop("layers", 2), 2, **options)
    return SO3krates(network, np.full(100, scale), np.arange(100.0), ("H", "C", "O"), repulsion)


@pytest.fixture(scope="module")
def potential():
    """With all that can be chosen."""
    chosen = {"norms": True, "residual": True, "degrees": (1, 2, 3, 4), "radial_basis": "bernstein", "neighbours": 3.0}
    return potential_with(layers=1, repulsion="zbl", **chosen)


@pytest.fixture(scope="module")
def plain():
    return potential_with(layers=1, degrees=(1,))


def test_rotation_reflection_permutation_translation(potential):
    order = np.array([2, 0, 3, 1])
    turn = rotation(5) * [1.0, 1.0, -1.0]
    system = System.of(SPECIES, REFERENCE)
    moved = System.of([SPECIES[k] for k in order], (REFERENCE @ turn.T + [3.0, -50.0, 7.0])[order])
    (energy, forces), (of_moved, forces_of_moved) = (
        energy_and_forces(potential, system=s)(s.positions[None]) for s in (system, moved)
    )
    np.testing.assert_allclose(of_moved, energy, rtol=0, atol=1e-10)
    np.testing.assert_allclose(forces_of_moved[0], (forces[0] @ turn.T)[order], rtol=0, atol=1e-10)
    assert np.abs(forces).max() > 0.1


PAIR = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.2]])


def chain(n, seed=0):
    """n carbons in a zigzag, in any directions."""
    rng = np.random.default_rng(seed)
    return System.of("C" * n, np.cumsum(0.5 + rng.random((n, 3)), axis=0))


def test_a_neighbour_list_gives_what_all_pairs_do(plain):
    system = chain(ALL_PAIRS + 1)
    replicas = system.positions + 0.02 * np.random.default_rng(1).normal(size=(2, *system.positions.shape))
    replicas[1] += 3.0  # far from where the list was made
    bound, _ = bind(plain, system)
    found = jax.jit(jax.vmap(bound.energy_and_gradient, in_axes=(0, None)))(replicas, bound.aux)[0]

    def of_all_pairs(positions):
        return (0.3 * plain.network.in_precision(np.float64)(np.full(len(system), 6), all_pairs(positions)) + 6.0).sum()

    expected = jax.jit(lambda rs: jax.lax.map(jax.value_and_grad(of_all_pairs), rs))(replicas)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-10)


def test_a_list_that_is_too_small_gives_no_number(plain):
    system = chain(ALL_PAIRS + 1)
    bound, _ = bind(plain, system)
    near = jnp.asarray(0.3 * system.positions)
    (energy, gradient), kept = jax.jit(bound.energy_and_gradient)(near, bound.aux)
    assert bool(bound.overflowed(kept)) and np.isnan(energy) and np.isnan(gradient).all()
    pairs = NearPairs(system, 5.0)
    assert bool(bound.overflowed(pairs(jnp.asarray(system.positions), kept)[1]))  # it stays so
    larger = bound.enlarged(np.stack([system.positions, near]))
    assert not bool(bound.overflowed(pairs(near, larger)[1]))


def test_lists_of_replicas_are_those_of_each(plain):
    near = NearPairs(chain(12), 5.0)
    places = np.stack([chain(12).positions, chain(12).positions + 0.01, chain(12, 1).positions])
    kept = near.with_room(places)
    several = jax.tree.map(lambda a: np.broadcast_to(a, (3, *np.shape(a))), kept)
    together = jax.vmap(near)(places, several)[1]
    for k, place in enumerate(places):
        each = near(jnp.asarray(place), kept)[1]
        np.testing.assert_array_equal(together.idx[k], each.idx)
    np.testing.assert_array_equal(together.reference_position[1], kept.reference_position)
    assert (together.reference_position[2] != kept.reference_position).any()


def test_a_periodic_cell(plain):
    """A molecule through the walls, and moved by a lattice vector, has the energy that it has alone."""
    cell = np.array([[12.0, 0.0, 0.0], [2.0, 12.0, 0.0], [0.0, 1.0, 13.0]])
    system = System.of(SPECIES, REFERENCE, cell=cell)
    through = REFERENCE + np.array([11.5, 0.2, 0.1])
    through[1:] -= cell[0]
    alone = energy_and_forces(plain, system=System.of(SPECIES, REFERENCE))(REFERENCE[None])
    energies, forces = energy_and_forces(plain, system=system)(np.stack([REFERENCE, through]))
    np.testing.assert_allclose(energies, alone[0][0], atol=1e-10)
    np.testing.assert_allclose(forces, np.repeat(alone[1], 2, axis=0), atol=1e-10)
    with pytest.raises(ValueError, match="expected a cell whose planes are 11 angstrom apart or more"):
        bind(plain, System.of(SPECIES, REFERENCE, cell=9 * np.eye(3)))


def test_repulsion_is_that_of_the_prior_means():
    near = 0.6 * REFERENCE
    found = repulsion_energies("born-mayer", SPECIES, all_pairs(near), 5.0)
    np.testing.assert_allclose(found, BornMayer.of(SPECIES)(near), rtol=1e-12)
    apart = Pairs(np.array([0, 0]), np.array([1, 1]), np.array([[4.999, 0, 0], [5.001, 0, 0]]), np.ones(2, bool))
    assert 0 < repulsion_energies("zbl", SPECIES, apart, 5.0)[0] < 1e-8


def test_what_it_cannot_speak_of_gets_a_sentence(plain):
    with pytest.raises(ValueError, match="expected atoms among the elements H C O that the model learned, found N in N O"):
        plain.check(System.of("NO", PAIR, spin=1))
    with pytest.raises(ValueError, match="expected charge 0 and 0 unpaired electrons"):
        plain.check(System.of("CO", PAIR, charge=2))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"degrees": (2, 1)}, "expected degrees among 1, 2, 3, 4, each once and rising"),
        ({"cutoff": -1.0}, "expected finite numbers of at least 1e-15 as cutoff"),
        ({"radial_basis": "sinc"}, "expected a radial basis among exp-gaussian, bernstein"),
        ({"degrees": (1, 2, 3)}, "expected features that 2 heads and 3 degrees divide, found 16; take a multiple of 6"),
        ({"basis_size": 31}, r"expected network.layers.features.radial.first.kernel of shape \(1, 31, 16\)"),
        ({"embedding": np.full((100, 16), np.nan)}, "expected finite numbers as embedding"),
    ],
)
def test_content_of_a_file_gets_a_sentence(plain, change, sentence):
    plain.check_content()
    with pytest.raises(ValueError, match=sentence):
        replace(plain.network, **change).check_content()
