"""SO3krates: laws of the network, both layouts of pairs, training that goes on with the same bits."""

from dataclasses import replace
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REFERENCE, SPECIES, cheaper, make_dataset, rotation

from iqagp_jax import energy_and_forces, load_model, save_model, validate
from iqagp_jax.data.dataset import Dataset
from iqagp_jax.families.gp.means import BornMayer
from iqagp_jax.families.so3krates import train
from iqagp_jax.families.so3krates.batches import Beneath, Order, buckets_of
from iqagp_jax.families.so3krates.model import ALL_PAIRS, SO3krates, repulsion_energies
from iqagp_jax.families.so3krates.neighbours import NearPairs, all_pairs
from iqagp_jax.families.so3krates.network import Network, Pairs
from iqagp_jax.families.so3krates.options import SO3kratesOptions
from iqagp_jax.families.so3krates.train import Training, fit_so3krates
from iqagp_jax.potential import bind
from iqagp_jax.system.system import System
from iqagp_jax.units import KCAL_MOL

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


def small(**changed):
    """Options of a training of a moment."""
    return {
        "steps": 6,
        "width": 8,
        "heads": 2,
        "layers": 1,
        "degrees": (1,),
        "batch": 3,
        "validate_every": 2,
        "seed": 1,
    } | changed


class Killed(BaseException):
    """As SIGKILL: nothing that the training could answer."""


def test_a_training_that_is_killed_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)
    data, written = make_dataset(9, seed=1), []
    undisturbed = fit_so3krates(data, **small())
    write = train._write

    def write_and_die(*arguments):
        write(*arguments)
        written.append(arguments)
        if len(written) in (1, 4):
            raise Killed

    monkeypatch.setattr(train, "_write", write_and_die)
    for _ in range(2):
        with pytest.raises(Killed):
            fit_so3krates(data, folder=tmp_path / "t", **small())
    back = fit_so3krates(data, folder=tmp_path / "t", **small())
    assert len(written) == 6
    for name, model in (("a", undisturbed), ("b", back)):
        save_model(model, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert back.trace.shape == (3, 4) and back.n_train == 8
    assert (
        set(back.made_by.targets) == {"atomic_energies", "energy", "forces"} and back.made_by.options.repulsion == "born-mayer"
    )
    with pytest.raises(
        ValueError, match=r"expected the options that the parts in .* were made with, found others \(batch 3 there"
    ):
        fit_so3krates(data, folder=tmp_path / "t", **small(batch=4))
    (tmp_path / "t" / train.CHECKPOINT).write_bytes(b"PK" + bytes(100))
    with pytest.raises(ValueError, match=r"checkpoint.npz is damaged .*; delete it, and the training begins anew"):
        fit_so3krates(data, folder=tmp_path / "t", **small())


def water(n):
    """n geometries of another molecule, without atomic energies or forces."""
    positions = np.array([[0.0, 0.0, 0.1], [0.76, 0.0, -0.5], [-0.76, 0.0, -0.5]])
    positions = positions + 0.05 * np.random.default_rng(4).normal(size=(n, 3, 3))
    return Dataset(("O", "H", "H"), positions, -25.0 + 3 * (np.linalg.norm(positions[:, 0] - positions[:, 1], axis=1) - 1) ** 2)


def test_several_molecules_in_one_model(tmp_path):
    formaldehyde = replace(make_dataset(9, seed=1), atomic_energies=None)
    model = fit_so3krates((formaldehyde, water(7)), **small(steps=4))
    assert model.elements == ("C", "H", "O") and model.n_train == 14
    # Two energies are told apart by three shifts, to which the network adds what varies.
    shift = Beneath.of([formaldehyde, water(7)], "none", 5.0).shift
    assert shift[[8, 6, 1, 1]].sum() == pytest.approx(formaldehyde.energy.mean(), abs=1e-9)
    assert shift[[8, 1, 1]].sum() == pytest.approx(water(7).energy.mean(), abs=1e-9)
    save_model(model, tmp_path / "m.safetensors")
    back = load_model(tmp_path / "m.safetensors")
    for data in (formaldehyde, water(7)):
        system = System.of(data.species, data.positions[0])
        energies = energy_and_forces(back, system=system)(data.positions)[0]
        np.testing.assert_allclose(energies, data.energy, atol=30.0)
    assert validate(back, water(3)).energy.mae < 30 / KCAL_MOL
    with pytest.raises(ValueError, match="expected atoms among the elements C H O that the model learned, found S"):
        validate(back, replace(water(3), species=("S", "H", "H")))


def test_batches_are_padded_graphs(plain):
    """What a batch of molecules of two sizes gives is what each gives alone; a bucket holds no pair beyond the cutoff."""
    beneath = Beneath(np.zeros(100), 1.0, "none", 5.0)
    each = [beneath.frames(data) for data in (make_dataset(2, seed=1), water(3))]
    assert sum(map(len, buckets_of(each))) == 5
    padded = each[1].padded(6, 11)
    network = plain.network.in_precision(np.float64)
    energy, forces, atomic = padded.predicted(network, np.zeros(100))
    expected, slopes = jax.vmap(jax.value_and_grad(lambda r: network(np.array([8, 1, 1]), all_pairs(r)).sum()))(
        water(3).positions
    )
    np.testing.assert_allclose(energy, expected, atol=1e-12)
    np.testing.assert_allclose(forces[:, :3], -slopes, atol=1e-12)
    assert not np.asarray(forces[:, 3:]).any() and not np.asarray(atomic[:, 3:]).any()


def test_order_is_of_seed_and_step_alone():
    order = Order((7, 4), 3, seed=5)
    steps = [(k, tuple(chosen)) for k, chosen in islice(order.from_step(0), 12)]
    assert steps[8:] == [(k, tuple(chosen)) for k, chosen in islice(order.from_step(8), 4)]
    assert order.steps == 5 and sorted({n for k, chosen in steps[:5] if k == 0 for n in chosen}) == list(range(7))
    assert steps[:5] != steps[5:10]


def test_rate_and_average():
    training = Training.of((make_dataset(5, seed=1),), SO3kratesOptions(**small()).resolved((make_dataset(5, seed=1),)))
    rates = [training.rate(p) for p in (0.0, 0.005, 0.01, 0.5, 1.0)]
    np.testing.assert_allclose(rates, [0, 1e-3, 2e-3, 1e-3, 0], rtol=1e-2, atol=1e-12)
    now = training.begin()
    states = list(training.going_on(now))
    # After two steps the average is that of their networks, weights d (1 - d) and 1 - d over 1 - d^2.
    d, (one, two) = training.options.average, [s.network.embedding for s in states[:2]]
    average = (d * (1 - d) * one + (1 - d) * two) / (1 - d**2)
    np.testing.assert_allclose(states[1].average.embedding / (1 - d**2), average, rtol=1e-3, atol=1e-6)
    assert states[1].trace.shape == (1, 4) and states[-1].least <= states[1].least


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"budget": 60.0, "steps": 5}, "expected a budget or steps, found both"),
        ({"targets": ("charges",)}, "expected targets among atomic_energies, energy, forces, which the data have"),
        ({"width": 9}, "expected features that 2 heads and 1 degrees divide, found 9"),
        ({"n_validation": 9}, "expected more labelled training geometries of O C H H than the 9 for validation"),
        ({"learning_rate": 1e30}, "expected finite errors of the validation geometries"),
    ],
)
def test_options_of_a_training_get_a_sentence(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        fit_so3krates(make_dataset(9, seed=1), **small(**given))


def test_another_level_gets_a_sentence():
    with pytest.raises(ValueError, match="expected datasets of one level of theory"):
        fit_so3krates((make_dataset(5, seed=1), cheaper(make_dataset(5, seed=2))), steps=1)
