"""Surroundings of atoms, and the process of them, against loops and derivatives of the plain kernel."""

from dataclasses import replace
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REFERENCE, SPECIES, make_dataset, rotation

from iqagp_jax import energy_and_forces, fit_gp, load_model, save_model
from iqagp_jax.families.gp import environments, fit_joint, fit_local, joint
from iqagp_jax.families.gp.environments import CUTOFF, Environments, representation
from iqagp_jax.families.gp.kernels import Matern92
from iqagp_jax.families.gp.local import Local
from iqagp_jax.families.gp.options import GPOptions
from iqagp_jax.families.gp.problem import Problem

pytestmark = pytest.mark.usefixtures("x64")

DATA = make_dataset(12, seed=4)
TARGETS = ("atomic_energies", "energy", "forces")
LOCAL = Local(Environments.of(SPECIES, DATA.positions), np.array(0.7), np.array(0.3))


def cutoff(r):
    return 0.5 + 0.5 * np.cos(np.pi * r / CUTOFF) if r < CUTOFF else 0.0


def by_loops(species, positions):
    """The formulas of `environments`, one number after the other."""
    elements = sorted(set(species))
    kinds = [(e, f) for k, e in enumerate(elements) for f in elements[k:]]
    rows = []
    for i, here in enumerate(positions):
        others = [j for j in range(len(species)) if j != i]
        pairs, triples = np.zeros((len(elements), 24)), np.zeros((len(kinds), 20, 3))
        for j in others:
            r = np.linalg.norm(here - positions[j])
            w = np.log(1 + 0.32 / r**2)
            for s, radius in enumerate(CUTOFF * np.arange(1, 25) / 24):
                gauss = np.exp(-((np.log(radius) + w / 2 - np.log(r)) ** 2) / (2 * w)) / (radius * np.sqrt(2 * np.pi * w))
                pairs[elements.index(species[j]), s] += cutoff(r) * r**-1.8 * gauss
        for j, k in combinations(others, 2):
            corners = positions[[i, j, k]]
            sides = [np.linalg.norm(corners[a] - corners[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
            cosines = []
            for a in range(3):
                one, two = corners[(a + 1) % 3] - corners[a], corners[(a + 2) % 3] - corners[a]
                cosines.append(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
            weight = np.prod([cutoff(r) for r in sides]) * (1 + 3 * np.prod(cosines)) / np.prod(sides) ** 0.57
            kind = kinds.index(tuple(sorted((species[j], species[k]))))
            for s, radius in enumerate(CUTOFF * np.arange(1, 21) / 20):
                radial = environments.SCALE * np.exp(-2.7 * (0.5 * (sides[0] + sides[1]) - radius) ** 2)
                triples[kind, s] += weight * radial * np.array([1.0, cosines[0], 2 * cosines[0] ** 2 - 1])
        rows.append(np.concatenate([pairs.ravel(), triples.ravel()]))
    return np.array(rows)


@pytest.mark.parametrize("species", [("O", "C", "H", "H"), ("C", "C", "C", "C"), ("H", "O", "C", "H")])
def test_representation_is_the_formula(species):
    stretched = REFERENCE * np.array([1.0, 3.0, 1.0])  # one pair beyond the cutoff
    stretched[3, 0] += 9.0
    for positions in (REFERENCE, stretched):
        found = representation(species, positions)
        assert found.shape == (4, environments.size(species))
        np.testing.assert_allclose(found, by_loops(species, positions), rtol=1e-9, atol=1e-12)


def test_two_atoms_and_atoms_in_line():
    assert representation(("H", "H"), REFERENCE[:2]).shape == (2, environments.size(("H", "H")))
    line = np.array([[0.0, 0, 0], [1.1, 0, 0], [2.3, 0, 0]])
    slopes = jax.jit(jax.jacfwd(partial(representation, ("O", "C", "O"))))(line)
    assert np.isfinite(slopes).all()
    assert np.abs(slopes).max() > 0.1


def test_equal_surroundings_are_equal():
    turn, order = rotation(3), np.array([3, 1, 0, 2])
    species = tuple(np.array(SPECIES)[order])
    moved = Environments(species, LOCAL.environments.middle, LOCAL.environments.axes)(1.5 - REFERENCE[order] @ turn.T)
    np.testing.assert_allclose(moved, LOCAL.environments(REFERENCE)[order], atol=1e-10)


def test_surroundings_of_another_kind_are_seen_by_what_is_left_out():
    """Two geometries teach one direction an element; what is at right angles to it comes as a length."""
    few = Environments.of(SPECIES, DATA.positions[:2])
    at_home, elsewhere = few(DATA.positions[0]), few(DATA.positions[0] + np.eye(4, 3))
    np.testing.assert_allclose(at_home[0, -1], environments.NEAR, rtol=1e-6)  # of oxygen there is one
    assert elsewhere[0, -1] > 0.5
    g = representation(SPECIES, DATA.positions[0] + np.eye(4, 3))[0] - few.middle[2]
    spread = np.sqrt(((representation(SPECIES, DATA.positions[0])[0] - few.middle[2]) ** 2).sum())
    np.testing.assert_allclose((elsewhere[0] ** 2).sum() - environments.NEAR**2, (g**2).sum() / spread**2, rtol=1e-8)


def kernel(a, b):
    return jnp.exp(-0.5 * ((a - b) ** 2).sum())


SAME = np.equal.outer(SPECIES, SPECIES).astype(float)


def of_pairs(r, q):
    """cov(E_A(r), E_B(q)) of unit variance, (N, N)."""
    return SAME * jax.vmap(jax.vmap(kernel, (None, 0)), (0, None))(LOCAL(r), LOCAL(q))


@pytest.fixture(scope="module")
def textbook():
    """All blocks for the first two geometries by derivatives of the plain kernel."""
    r, q = DATA.positions[:2]
    with jax.enable_x64(True):
        energies = of_pairs(r, q)
        left = -jax.jit(jax.jacfwd(lambda x: of_pairs(x, q).sum(0)))(r).reshape(4, 12)
        right = -jax.jit(jax.jacfwd(lambda x: of_pairs(r, x).sum(1)))(q).reshape(4, 12)
        both = jax.jit(jax.jacfwd(jax.grad(lambda r, q: of_pairs(r, q).sum()), 1))(r, q).reshape(12, 12)
        return {
            ("atomic_energies", "atomic_energies"): energies,
            ("atomic_energies", "energy"): energies.sum(1, keepdims=True),
            ("energy", "atomic_energies"): energies.sum(0, keepdims=True),
            ("energy", "energy"): energies.sum(keepdims=True),
            ("atomic_energies", "forces"): right,
            ("energy", "forces"): right.sum(0, keepdims=True),
            ("forces", "atomic_energies"): left.T,
            ("forces", "energy"): left.T.sum(1, keepdims=True),
            ("forces", "forces"): both,
        }


@pytest.mark.parametrize("targets", [TARGETS, ("energy", "forces"), ("forces",), ("atomic_energies", "forces")])
def test_covariance_is_the_textbooks(targets, textbook):
    process = LOCAL.process(np.array([1.0, 2.0, 3.0, 4.0]))
    assert process.variance == pytest.approx(0.3 * 2.5)
    see = jax.jit(LOCAL.see)
    found = joint.covariance(process, see(DATA.positions[:1]), see(DATA.positions[1:2]), targets)
    expected = np.block([[np.asarray(textbook[a, b]) for b in targets] for a in targets])
    np.testing.assert_allclose(found[0, :, 0], 0.75 * expected, rtol=1e-8, atol=1e-9)


@pytest.fixture(scope="module")
def model():
    return fit_gp(make_dataset(14, seed=1), max_steps=3, local=True)


def test_prediction_is_covariance_times_weights(model):
    """Also in batches of matrix products, and of the atoms' energies."""
    new, data, see = DATA.positions[:5], model.joint, jax.jit(model.see)
    cross = joint.covariance(model.process, see(new), see(data.positions), TARGETS, model.targets)
    weights = data.weights.reshape(len(data.positions), -1)
    expected = np.einsum("imjk,jk->im", cross, weights)
    prior = jax.vmap(model.mean)(new)
    atomic = jax.jit(jax.vmap(model.atomic_energies))(new)
    np.testing.assert_allclose(atomic, prior + expected[:, :4], atol=1e-8)
    energy, forces = energy_and_forces(model)(new)
    np.testing.assert_allclose(energy, (prior + expected[:, :4]).sum(1), atol=1e-8)
    slopes = jax.vmap(jax.grad(lambda r: model.mean(r).sum()))(new)
    np.testing.assert_allclose(forces, expected[:, 5:].reshape(5, 4, 3) - slopes, atol=1e-7)


def test_part_of_the_surroundings_counts(model):
    without = replace(model, local=None)
    new = DATA.positions[:5]
    assert np.abs(energy_and_forces(model)(new)[1] - energy_and_forces(without)(new)[1]).max() > 1e-3


def test_directions_without_labels_have_no_covariance():
    """A likelihood along translations and rotations would be that of the noise."""
    problem = Problem.of(DATA, GPOptions(targets=("energy", "forces"), max_steps=0).resolved(DATA))
    seen = joint.embedded(Matern92(np.ones(4)), joint.seen(problem.features, DATA.positions))
    process = joint.Process.of(Matern92(np.ones(4)), problem.features, np.ones(4))
    matrix = joint.covariance_rows(process, seen, seen, ("energy", "forces"))
    kept = np.ones(len(matrix), bool)
    kept[13] = False  # an energy
    kept[30] = False  # a force: all directions of its geometry count then
    internal = fit_local._internal(DATA.positions, kept, ("energy", "forces")).toarray()
    assert internal.shape == (len(matrix) - 2, 12 * 7 - 1 - 1 + 6)
    np.testing.assert_allclose(internal.T @ internal, np.eye(internal.shape[1]), atol=1e-12)
    lost = np.eye(len(internal)) - internal @ internal.T
    np.testing.assert_allclose(matrix[np.ix_(kept, kept)] @ lost, 0.0, atol=1e-10)


def test_likeliest_surroundings_are_taken(monkeypatch):
    """With surroundings that explain nothing beside the molecule the smallest share is the likeliest."""
    data = make_dataset(14, seed=1)
    options = GPOptions(targets=("energy", "forces"), local=True, max_steps=0).resolved(data)
    sample = fit_joint.Sample.of(Problem.of(data, options))
    chosen = sample.smoothest(sample.likeliest(lambda steps: steps).parameters[0])
    found = fit_local.with_surroundings(sample, chosen)
    assert set(found.noise) <= {n * s for n in fit_local.NOISES for s in (1.0, fit_local.OF_ENERGIES)}
    monkeypatch.setattr(fit_local, "_of_surroundings", lambda *a, **k: 1e-3 * jnp.eye(14 * 13).reshape(14, 13, 14, 13))
    monkeypatch.setattr(fit_local, "_varied", lambda *a: 1.0)
    worse = fit_local.with_surroundings(sample, chosen)
    assert worse.local.share == min(fit_local.RATIOS)
    assert worse.local.lengthscale == fit_local.LENGTHS[0]


def test_file_holds_it_and_must_make_sense(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    there, here = (energy_and_forces(m)(DATA.positions)[0] for m in (load_model(path), model))
    np.testing.assert_array_equal(there, here)
    other = replace(model.local.environments, species=("O", "C", "H", "C"))
    for damaged, sentence in (
        (replace(model.local, share=np.array(-1.0)), "share of surroundings"),
        (replace(model.local, lengthscale=np.array(0.0)), "length scale of surroundings"),
        (replace(model.local, environments=other), "expected the surroundings of O C H H"),
        (replace(model.local, environments=replace(model.local.environments, middle=np.zeros((3, 5)))), "mean surroundings"),
    ):
        save_model(replace(model, local=damaged), path)
        with pytest.raises(ValueError, match=sentence):
            load_model(path)


@pytest.mark.parametrize(
    "other", [{"features": "alf"}, {"solver": "cg", "targets": ("energy", "forces")}, {"targets": ("atomic_energies",)}]
)
def test_what_does_not_go_together(other):
    with pytest.raises(ValueError, match="expected local=True for forces or energies"):
        fit_gp(DATA, local=True, **other)
