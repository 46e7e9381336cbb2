"""Sums of potentials, one potential for each molecule, and neighbour lists within them."""

import jax
import numpy as np
import pytest
from conftest import REFERENCE, SPECIES

from iqagp_jax import electrostatics, energy_and_forces, energy_fn, load_model, save_model
from iqagp_jax.compose import PerMolecule, Sum
from iqagp_jax.data.level import Level
from iqagp_jax.electrostatics import Electrostatics
from iqagp_jax.families.pairs.models import BondedMorse, NeighbourMorse
from iqagp_jax.potential import MadeBy, atomic_energies, uncertainty
from iqagp_jax.system.system import System

WATER = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
ARGON = NeighbourMorse(("Ar",), np.array(0.01), np.array(1.5), np.array(3.8), np.array(6.0))


class Charges:
    """Point charges of a water in its frames, as moments of rank 0."""

    species, frames = ("O", "H", "H"), ((0, 1, 2), (1, 0, 2), (2, 0, 1))

    def __call__(self, positions):
        return np.array([[-0.8], [0.4], [0.4]])


def waters(n, seed=0):
    """A line of n waters that turn on the way, the atoms of each scattered over the list by elements: O ... H ..."""
    rng, places = np.random.default_rng(seed), []
    for m in range(n):
        q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        places.append(WATER @ q + [3.2 * m, 0.3 * m, 0.0] + 0.02 * rng.normal(size=(3, 3)))
    each = np.array(places)
    order = [(m, 0) for m in range(n)] + [(m, k) for m in range(n) for k in (1, 2)]
    positions = np.array([each[m, k] for m, k in order])
    return System.of(["OHH"[k] for _, k in order], positions, molecules=[m for m, _ in order]), each


def water():
    return BondedMorse.of(System.of("OHH", WATER))


def test_energy_of_molecules_is_the_sum_of_theirs():
    system, each = waters(4)
    inside, forces = energy_and_forces(PerMolecule(water()), system=system)(system.positions[None])
    of_each, their_forces = energy_and_forces(water())(each)
    np.testing.assert_allclose(inside[0], of_each.sum(), rtol=1e-14)
    for m, atoms in enumerate(system.members):
        np.testing.assert_allclose(forces[0, atoms], their_forces[m], atol=1e-12)


def test_molecules_of_several_kinds():
    other = BondedMorse.of(System.of(SPECIES, REFERENCE))
    positions = np.concatenate([WATER, 5.0 + REFERENCE, WATER - 5.0]) + 0.01
    system = System.of([*"OHH", *SPECIES, *"OHH"], positions, molecules=[0] * 3 + [1] * 4 + [2] * 3)
    each = [
        atomic_energies(water(), positions[:3]),
        atomic_energies(other, positions[3:7]),
        atomic_energies(water(), positions[7:]),
    ]
    np.testing.assert_allclose(atomic_energies(PerMolecule(water(), other), positions, system), np.concatenate(each))
    with pytest.raises(ValueError, match="found O C H H as molecule 1"):
        energy_fn(PerMolecule(water()), system=system)


def test_box_of_water_is_a_sum():
    """Monomers and electrostatics, atom by atom: what the two give alone; forces by differences."""
    system, each = waters(3)
    box = Sum(PerMolecule(water()), Electrostatics(Charges()))
    energy = energy_fn(box, system=system)
    with jax.enable_x64(True):
        between = float(electrostatics.energy_fn(Charges(), Charges.frames)(each))
        alone = energy_and_forces(water())(each)[0].sum() + between
        assert float(energy(system.positions)) == pytest.approx(float(alone), rel=1e-13)
        gradient = np.asarray(jax.grad(energy)(system.positions))
        step = np.zeros_like(system.positions)
        step[4, 1] = 1e-5
        difference = (energy(system.positions + step) - energy(system.positions - step)) / 2e-5
    assert gradient[4, 1] == pytest.approx(float(difference), abs=1e-6)
    assert atomic_energies(box, system.positions, system).sum() == pytest.approx(float(alone), rel=1e-13)
    with pytest.raises(ValueError, match="expected a cluster for electrostatics without a cut-off, found a cell"):
        energy_fn(box, system=System.of(system.species, system.positions, cell=30 * np.eye(3), molecules=system.molecules))


def test_charged_systems_of_molecules_are_refused():
    system, _ = waters(2)
    ion = System.of(system.species, system.positions, charge=2, molecules=system.molecules)
    with pytest.raises(ValueError, match="nobody tells which molecule"):
        energy_fn(PerMolecule(water()), system=ion)


def test_uncertainty_of_a_sum_is_none_where_a_part_has_none(distance_model):
    both = Sum(distance_model, BondedMorse.of(System.of(SPECIES, REFERENCE)))
    assert uncertainty(both) is None
    twice, once = uncertainty(Sum(distance_model, distance_model)), uncertainty(distance_model)
    positions = REFERENCE + 0.03 * np.random.default_rng(0).normal(size=(3, 4, 3))
    for of in ("energy", "atomic_energies", "forces"):
        np.testing.assert_allclose(getattr(twice, of)(positions), 2 * getattr(once, of)(positions), rtol=1e-12)


def test_variances_of_molecules(distance_model):
    positions = np.concatenate([REFERENCE, 9.0 + REFERENCE]) + 0.02
    system = System.of(2 * SPECIES, positions, molecules=[0] * 4 + [1] * 4)
    found, one = uncertainty(PerMolecule(distance_model), system), uncertainty(distance_model)
    np.testing.assert_allclose(found.energy(positions[None])[0], one.energy(positions.reshape(2, 4, 3)).sum())
    np.testing.assert_allclose(found.forces(positions[None])[0], one.forces(positions.reshape(2, 4, 3)).reshape(8, 3))
    np.testing.assert_allclose(
        found.atomic_energies(positions[None])[0], one.atomic_energies(positions.reshape(2, 4, 3)).ravel()
    )


def cluster(n, spacing=3.8):
    side = np.arange(3) * spacing
    return np.array(np.meshgrid(side, side, side)).reshape(3, -1).T[:n]


def test_overflow_never_returns_a_number():
    loose, tight = cluster(18, 5.0), cluster(18, 2.6)
    system = System.of(["Ar"] * 18, loose)
    bound = ARGON.bind(system)
    with jax.enable_x64(True):
        (energy, gradient), aux = bound.energy_and_gradient(tight, bound.aux)
        assert bool(bound.overflowed(aux)) and np.isnan(energy) and np.isnan(gradient).all()
        (_, _), after = bound.energy_and_gradient(loose, aux)
        assert bool(bound.overflowed(after))  # once it has, it stays so
        (energy, _), aux = bound.energy_and_gradient(tight, bound.enlarged(tight[None]))
        assert not bool(bound.overflowed(aux))
    # The doors that may leave JAX enlarge by themselves; a function under jit cannot.
    assert energy_and_forces(ARGON, system=system)(np.array([loose, tight]))[0][1] == pytest.approx(float(energy), rel=1e-14)
    with jax.enable_x64(True):
        assert np.isnan(energy_fn(ARGON, system=system)(tight))


def test_neighbour_list_gives_what_all_pairs_give():
    positions = cluster(18) + 0.1 * np.random.default_rng(1).normal(size=(18, 3))
    apart = np.linalg.norm(positions[:, None] - positions, axis=-1)[np.triu_indices(18, 1)]
    value = 0.01 * ((1 - np.exp(-1.5 * (apart - 3.8))) ** 2 - 1) * np.where(apart < 6.0, (1 - (apart / 6.0) ** 2) ** 3, 0.0)
    system = System.of(["Ar"] * 18, positions)
    assert energy_and_forces(ARGON, system=system)(positions[None])[0][0] == pytest.approx(value.sum(), rel=1e-12)
    with pytest.raises(ValueError, match="expected atoms among Ar, found Kr"):
        energy_fn(ARGON, system=System.of(["Kr"] * 18, positions))
    with pytest.raises(ValueError, match="expected a system for a potential that is not of one molecule"):
        energy_fn(ARGON)


def test_neighbour_lists_within_a_sum():
    loose, tight = cluster(18, 5.0), cluster(18, 2.6)
    system = System.of(["Ar"] * 18, loose)
    once, twice = (energy_and_forces(p, system=system)(np.array([loose, tight])) for p in (ARGON, Sum(ARGON, ARGON)))
    for one, two in zip(once, twice, strict=True):
        np.testing.assert_allclose(two, 2 * one, rtol=1e-12)


def test_files(tmp_path, distance_model):
    both = Sum(distance_model, PerMolecule(BondedMorse.of(System.of(SPECIES, REFERENCE))))
    save_model(both, tmp_path / "sum.safetensors")
    back = load_model(tmp_path / "sum.safetensors")
    assert isinstance(back, Sum) and isinstance(back.parts[1], PerMolecule)
    np.testing.assert_array_equal(energy_and_forces(back)(REFERENCE[None])[0], energy_and_forces(both)(REFERENCE[None])[0])


def test_parts_that_agree_tell_their_level():
    def made(level):
        return BondedMorse(SPECIES, REFERENCE, np.ones((4, 4)), np.array(1.0), MadeBy(level))

    assert Sum(made(Level("hf")), made(Level("HF"))).made_by.level == Level("hf")
    assert Sum(made(Level("hf")), made(Level("hf", charge=1))).made_by is None
