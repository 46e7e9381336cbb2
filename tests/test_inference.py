"""The fast path: the plain formula's numbers, whatever is batched, chunked, shared or differentiated."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqagp_jax import energy_and_forces, energy_fn, energy_shares
from iqagp_jax.bench import Case, starts, synthetic_model
from iqagp_jax.families.gp import fast, images, joint
from iqagp_jax.families.gp.kernels import Matern92
from iqagp_jax.families.gp.model import Points
from iqagp_jax.potential import rounding_error

CASES = {
    "alf": Case(4, 12),
    "inverse distances": Case(4, 12, features="inverse-distances"),
    "forces, alf": Case(4, 12, forces=True),
    "forces, shared": Case(4, 12, features="inverse-distances", forces=True),
    "forces, two length scales": Case(4, 12, features="inverse-distances", forces=True),
}


def model_of(name):
    """A small model with weights of order one, so that differences of 1e-10 are seen."""
    model = synthetic_model(CASES[name])
    data = model.joint and replace(model.joint, directions=1e3 * model.joint.directions)
    kernel = Matern92(np.array([5.0, 6.0, 5.0, 6.0])) if "two" in name else model.kernel
    points = Points(model.train_features, 1e3 * model.weights)
    return replace(model, kernel=kernel, points=points, joint=data)


def model_with_images(worth, monkeypatch):
    """Two groups of three atoms that rotate, turned over where two more change places: 18 images of 7 geometries."""
    monkeypatch.setattr(images, "WORTH", worth)
    model = synthetic_model(Case(10, 7, features="inverse-distances", forces=True))
    turns = [np.roll([0, 1, 2], k) for k in range(3)]
    kept, over = ([0, 1, 2], [6, 7]), ([0, 2, 1], [7, 6])
    group = [[*a[way], *(b[way] + 3), *pair, 8, 9] for a in turns for b in turns for way, pair in (kept, over)]
    permutations, targets = np.array(group), ("energy", "forces")
    train = starts(model, 7, seed=1)
    weights = np.random.default_rng(2).normal(size=7 * joint.count(targets, 10))
    data = replace(model.joint, positions=train, permutations=permutations, weights=weights, directions=None)
    return replace(model, points=None, joint=data)


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("block", [1024, 20])
def test_products_shared_by_images_change_nothing(count, block, x64, monkeypatch):
    monkeypatch.setattr(fast, "BLOCK", block)  # 20: of two geometries each, the last filled up
    model = model_with_images(1, monkeypatch)
    positions = jnp.asarray(starts(model, count))
    points = fast.prepare(model, np.float64)
    assert points.images.shape == (2, 3, 3) and len(points.images.order) == 45
    assert points.squares.shape == ((1, 126) if block == 1024 else (4, 36))
    expected, gradients = jax.jit(jax.vmap(jax.value_and_grad(plain(model))))(positions)
    energies, forces = energy_and_forces(model)(positions)
    np.testing.assert_allclose(energies, expected, rtol=1e-12)
    np.testing.assert_allclose(forces, -gradients, atol=1e-11 * np.abs(gradients).max())
    apart = model_with_images(1e9, monkeypatch)
    assert fast.prepare(apart, np.float64).images.count == 1
    np.testing.assert_allclose(energy_and_forces(apart)(positions)[1], forces, atol=1e-11 * np.abs(gradients).max())


def plain(model):
    return lambda positions: energy_shares(model, positions).sum()


@pytest.mark.parametrize("name", CASES)
def test_energies_and_forces_are_the_plain_formulas(name, x64):
    model = model_of(name)
    positions = jnp.asarray(starts(model, 3))
    energies, forces = energy_and_forces(model)(positions)
    expected, gradients = jax.jit(jax.vmap(jax.value_and_grad(plain(model))))(positions)
    assert np.abs(gradients).max() > 1e-3
    np.testing.assert_allclose(energies, expected, atol=1e-11)
    np.testing.assert_allclose(forces, -gradients, atol=1e-11)


def along(gradient, positions, direction):
    return jax.jvp(gradient, (positions,), (direction,))[1]


@pytest.mark.parametrize("name", ["inverse distances", "forces, shared"])
def test_second_derivatives_are_the_plain_formulas(name, x64):
    """Forward over reverse, under vmap and outside it, and reverse over reverse."""
    model = model_of(name)
    positions = jnp.asarray(starts(model, 3))
    direction = jnp.asarray(np.random.default_rng(4).normal(size=(3, 4, 3)))
    slow, quick = jax.grad(plain(model)), jax.grad(energy_fn(model))
    expected = jax.jit(jax.vmap(lambda r, d: along(slow, r, d)))(positions, direction)
    assert np.abs(expected).max() > 1e-3
    inside = jax.jit(jax.vmap(lambda r, d: along(quick, r, d)))(positions, direction)
    outside = jax.jit(lambda r, d: along(jax.vmap(quick), r, d))(positions, direction)
    reverse = jax.jit(jax.grad(lambda r: jnp.sum(jax.vmap(quick)(r) * direction)))(positions)
    for found in (inside, outside, reverse):
        np.testing.assert_allclose(found, expected, atol=1e-10)


def test_atoms_that_differ_in_scale_only_are_one_group(x64):
    """As those of a fit do that see inverse distances with one length scale each; with one for every feature they do not."""
    model = model_of("forces, shared")
    shares = np.array([1.0, 0.5, 2.0, 3.0])
    scaled = replace(model, joint=replace(model.joint, directions=shares[:, None, None] * model.directions))
    lengthscale = 5.0 + np.arange(24.0).reshape(4, 6) / 24
    apart = replace(scaled, kernel=Matern92(lengthscale))
    positions = jnp.asarray(starts(model, 2))
    for case, groups in ((scaled, 1), (apart, 4)):
        assert len(fast.prepare(case, np.float64).squares) == groups
        expected, gradients = jax.vmap(jax.value_and_grad(plain(case)))(positions)
        energies, forces = energy_and_forces(case)(positions)
        np.testing.assert_allclose(energies, expected, atol=1e-11)
        np.testing.assert_allclose(forces, -gradients, atol=1e-11)


def test_models_may_be_traced_and_mapped_over(x64):
    """A model is data: under a trace nothing can be looked up in its arrays, and the numbers are the same."""
    model = model_of("forces, shared")
    positions, factors = jnp.asarray(starts(model, 2)), jnp.array([1.0, 2.0])

    def energies(factor, positions):
        data = replace(model.joint, directions=factor * model.directions)
        scaled = replace(model, joint=data, points=Points(model.train_features, factor * model.weights))
        return energy_fn(scaled)(positions)

    expected = factors * jax.vmap(energy_fn(model))(positions)
    np.testing.assert_allclose(jax.jit(jax.vmap(energies))(factors, positions), expected, atol=1e-11)
    np.testing.assert_allclose(jax.jit(energies)(2.0, positions[1]), expected[1], atol=1e-11)


def test_models_of_observations_may_be_traced_too(x64, monkeypatch):
    """Their training points are made within the trace; those that are asked for within one and are constants are kept."""
    model = model_with_images(1, monkeypatch)
    positions = jnp.asarray(starts(model, 1)[0])
    expected = jax.jit(plain(model))(positions)
    assert isinstance(model.weights, np.ndarray)

    def energy(factor, positions):
        return energy_fn(replace(model, joint=replace(model.joint, weights=factor * model.joint.weights)))(positions)

    np.testing.assert_allclose(jax.jit(energy)(2.0, positions), 2 * expected, rtol=1e-12)


def test_chunks_change_nothing(monkeypatch):
    model = model_of("inverse distances")
    positions = starts(model, 11)
    energies, forces = energy_and_forces(model)(positions)
    monkeypatch.setattr(fast, "CHUNK", 1)
    monkeypatch.setattr(fast, "FEWEST", 4)  # three chunks, of which the last is filled up
    for found, expected in zip(energy_and_forces(model)(positions), (energies, forces), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("count", [1, 3])
def test_blocks_change_nothing(name, count, monkeypatch):
    """Three blocks of 11 training points, the last filled up, for one geometry and for several."""
    model = model_of(name)
    data = model.joint and replace(model.joint, directions=model.directions[:, :11])
    fewer = replace(model, points=Points(model.train_features[:, :11], model.weights[:, :11]), joint=data)
    model, positions = fewer, starts(model, count)
    expected = energy_and_forces(model)(positions)
    monkeypatch.setattr(fast, "BLOCK", 5)
    with jax.enable_x64(True):
        blocks = fast.prepare(model, np.float64)
    assert blocks.squares.shape == (3 * len(blocks.centre), 4)
    for found, value in zip(energy_and_forces(model)(positions), expected, strict=True):
        np.testing.assert_allclose(found, value, atol=1e-11)


def test_float32_is_near_and_said_to_be(x64):
    model = model_of("inverse distances")
    positions = starts(model, 5)
    energy, force = rounding_error(model, positions, np.float32)
    assert 1e-9 < energy < 1e-4 and 1e-9 < force < 1e-3  # eps of float32 times 48 weights of order 0.1
    value = jax.eval_shape(energy_fn(model, np.float32), jax.ShapeDtypeStruct((4, 3), jnp.float64))
    assert value.dtype == jnp.float64


def test_fast_angles_are_arctan2(x64):
    from iqagp_jax.system.frames import angle

    around = np.linspace(-np.pi, np.pi, 2001)
    sine, cosine = np.sin(around), np.cos(around)
    np.testing.assert_allclose(angle(sine, cosine), np.arctan2(sine, cosine), atol=1e-15)
    assert angle(0.0, 0.0) == 0
    assert jax.grad(angle, (0, 1))(0.0, 0.0) == (0, 0)
