"""Models of forces: the posterior is the textbook's, and forces are worth more than energies."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import rotation
from test_cli import iqagp
from test_joint import ALL

from iqagp_jax import (
    energy_and_forces,
    energy_fn,
    energy_shares,
    energy_variance,
    fit_gp,
    force_variance,
    leave_one_out,
    load_dataset,
    load_model,
    predictive_variance,
    save_dataset,
    save_model,
    validate,
)
from iqagp_jax.data.dataset import concatenate
from iqagp_jax.families.gp import fit_joint, iterative, joint
from iqagp_jax.families.gp import model as model_of_gp
from iqagp_jax.families.gp.features import InverseDistances, pair_weights
from iqagp_jax.families.gp.options import GPOptions
from iqagp_jax.families.gp.problem import Problem, evenly
from iqagp_jax.families.gp.teach import Fitted
from iqagp_jax.units import KCAL_MOL
from iqagp_jax.validation import predict

BOTH = ("atomic_energies", "forces")


@pytest.fixture(scope="module")
def few(dataset):
    return dataset[:6]


@pytest.mark.parametrize(
    ("features", "targets"),
    [*(("inverse-distances", targets) for targets in (*ALL, BOTH[:1])), ("alf", BOTH), ("alf", BOTH[:1])],
)
def test_posterior_is_the_textbooks(features, targets, few, test_set):
    """Energy, its variance and the forces' variance from the dense formula, covariances by automatic differentiation."""
    model = fit_gp(few, features, prior_mean="mf1", targets=targets, max_steps=0, noise=1e-6, symmetry=False)
    n_atoms, at = len(model.species), test_set.positions[0]

    @jax.jit
    def covariances(r, q):
        def cov(atom, r, q):
            kernel = jax.tree.map(lambda leaf: leaf[atom], model.kernel)
            return model.signal_variance[atom] * kernel(model.features(r)[atom], model.features(q)[atom])

        def total(r, q):
            return sum(cov(atom, r, q) for atom in range(n_atoms))

        atoms = range(n_atoms)
        energies = jax.numpy.diag(jax.numpy.stack([cov(a, r, q) for a in atoms]))
        slopes = -jax.numpy.stack([jax.grad(cov, 2)(a, r, q).ravel() for a in atoms])
        back = -jax.numpy.stack([jax.grad(cov, 1)(a, r, q).ravel() for a in atoms]).T
        forces = jax.jacfwd(jax.grad(total, 0), 1)(r, q).reshape(3 * n_atoms, -1)
        return energies, slopes, back, forces

    def block(r, q, rows, columns):
        energies, slopes, back, forces = (np.asarray(x) for x in covariances(r, q))
        table = {
            "atomic_energies": {"atomic_energies": energies, "energy": energies.sum(1, keepdims=True), "forces": slopes},
            "forces": {"atomic_energies": back, "energy": back.sum(1, keepdims=True), "forces": forces},
        }
        table["energy"] = {k: v.sum(0, keepdims=True) for k, v in table["atomic_energies"].items()}
        return np.block([[table[a][b] for b in joint.TARGETS if b in columns] for a in joint.TARGETS if a in rows])

    with jax.enable_x64(True):
        r = few.positions
        k = np.block([[block(a, b, targets, targets) for b in r] for a in r])
        k += np.diag(1e-6 * np.diag(k) if targets == BOTH[:1] else np.tile(model.noise_variance, len(r)))
        cross = np.concatenate([block(at, b, ("energy",), targets) for b in r], axis=1)[0]
        mean = model.mean.first if targets == ("forces",) else model.mean
        prior = np.array([mean(x) for x in r])
        y = joint.observations(targets, few.atomic_energies - prior, few.energy - prior.sum(1), few.forces)
        # Beside all atomic energies their sum is no observation.
        known = np.isfinite(y)
        k, cross, y = k[np.ix_(known, known)], cross[known], y[known]
        expected = cross @ np.linalg.solve(k, y)
        variance = block(at, at, ("energy",), ("energy",))[0, 0] - cross @ np.linalg.solve(k, cross)
        cross = np.concatenate([block(at, b, ("forces",), targets) for b in r], axis=1)[:, known]
        of_forces = np.diag(block(at, at, ("forces",), ("forces",)) - cross @ np.linalg.solve(k, cross.T))
    found = energy_and_forces(model)(at[None])[0][0] - np.sum(model.mean(at))
    scale = model.signal_variance.sum()
    assert found == pytest.approx(expected, abs=1e-8 * np.sqrt(scale) + 1e-8 * abs(expected))
    assert energy_variance(model)(at[None])[0] == pytest.approx(variance, abs=1e-8 * scale)
    np.testing.assert_allclose(force_variance(model)(at[None])[0].ravel(), of_forces, atol=1e-7 * of_forces.max())


def test_fast_path_forces_and_second_derivatives(few, test_set):
    model = fit_gp(few, targets=BOTH, max_steps=0, prior_mean="mf5", symmetry=False)
    energies, forces = energy_and_forces(model)(test_set.positions)
    np.testing.assert_allclose(energies, [energy_shares(model, r).sum() for r in test_set.positions], atol=1e-8)
    step = 1e-4 * np.random.default_rng(0).normal(size=test_set.positions[0].shape)
    up, down = (float(energy_fn(model)(test_set.positions[0] + s * step)) for s in (1, -1))
    # The energies are sums of large weights, rounded to about 1e-9 eV.
    assert (down - up) / 2 == pytest.approx(float((forces[0] * step).sum()), abs=1e-8)


def test_forces_teach_more_than_energies():
    data = load_dataset("malondialdehyde")
    with_forces, without = (fit_gp(data, n_train=30, targets=targets, max_steps=10) for targets in (BOTH, BOTH[:1]))
    test = data.split("test_500K")[:50]
    assert validate(with_forces, test).forces.mae < 0.4 * validate(without, test).forces.mae


def test_forces_alone_know_the_energy_up_to_a_constant_which_is_the_data_s(dataset):
    model = fit_gp(dataset, n_train=20, targets=("forces",), prior_mean="mf5", symmetry=False)
    difference = energy_and_forces(model)(dataset.positions[:20])[0] - dataset.energy[:20]
    assert np.mean(difference) == pytest.approx(0, abs=1e-8)
    assert np.std(difference) < 0.1 * np.std(dataset.energy[:20])


def test_variances_know_what_is_known(few):
    model = fit_gp(few, targets=BOTH, max_steps=0)
    here, far = energy_variance(model)(np.stack([few.positions[0], 3 * few.positions[0]]))
    assert here < 1e-3 * far < model.signal_variance.sum()
    assert predictive_variance(model)(few.positions).shape == (6, len(few.species))


def test_variances_share_a_factor_and_are_the_same_in_chunks(few, test_set, monkeypatch):
    model, factorise, made = fit_gp(few, targets=BOTH, max_steps=0), joint.factorise, []
    monkeypatch.setattr(joint, "factorise", lambda matrix: made.append(matrix) or factorise(matrix))
    whole = predict(model, test_set.positions[:5])
    # The rounding of the prior variance is 1e-5 of what the data leave of it.
    monkeypatch.setattr(model_of_gp, "COVARIANCES", 1)
    for name in ("variance", "force_variance"):
        np.testing.assert_allclose(*(getattr(p, name) for p in (whole, predict(model, test_set.positions[:5]))), rtol=1e-4)
    assert len(made) == 1


def test_the_file_holds_it_bit_for_bit(few, test_set, tmp_path):
    model = fit_gp(few, targets=BOTH, max_steps=0)
    save_model(model, tmp_path / "m.safetensors")
    back = load_model(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(*(energy_and_forces(m)(test_set.positions)[1] for m in (model, back)))
    assert back.targets == BOTH


@pytest.mark.parametrize(
    ("factor", "sentence"),
    [(-1.0, "as they are, with the opposite sign: are they gradients"), (1 / KCAL_MOL, "in kcal/mol/angstrom would agree")],
)
def test_wrong_signs_and_units_are_noticed(factor, sentence):
    data = load_dataset("malondialdehyde")[:20]
    with pytest.warns(UserWarning, match=sentence):
        fit_gp(replace(data, forces=factor * data.forces), targets=("energy", "forces"), max_steps=0)


def test_forces_without_any_energy_are_not_judged():
    data = load_dataset("malondialdehyde")[:12]
    nothing = replace(data, energy=np.full(12, np.nan), atomic_energies=None)
    fit_gp(nothing, targets=("energy", "forces"), prior_mean="zero", max_steps=0)  # a warning would be an error here


def test_command_line(dataset, tmp_path):
    save_dataset(dataset[:10], tmp_path / "d.extxyz")
    options = ("--targets", "energy,forces", "--max-steps", 2)
    assert iqagp("train", tmp_path / "d.extxyz", "-o", tmp_path / "m.safetensors", *options) == 0
    assert load_model(tmp_path / "m.safetensors").targets == ("energy", "forces")


def test_bad_input_gets_a_sentence(few, monkeypatch):
    with pytest.raises(ValueError, match=r"expected targets among .* found heat"):
        fit_gp(few, targets=("heat",))
    with pytest.raises(ValueError, match=r"expected a dataset with forces .* found none"):
        fit_gp(replace(few, forces=None), targets=BOTH)
    with pytest.raises(ValueError, match="expected one start and a likelihood"):
        fit_gp(few, targets=BOTH, loss="hold-out")
    with pytest.raises(ValueError, match="expected a model of atomic energies alone"):
        leave_one_out(fit_gp(few, targets=BOTH, max_steps=0))
    with pytest.raises(ValueError, match="expected solver among cholesky, cg, found 'lu'"):
        fit_gp(few, targets=BOTH, solver="lu")
    with pytest.raises(ValueError, match="expected inverse distances, and energy or forces as targets, for solver 'cg'"):
        fit_gp(few, targets=BOTH, solver="cg")
    fitted = Fitted.of(fit_gp(few, targets=BOTH, max_steps=0))
    monkeypatch.setattr(joint.os, "sysconf", lambda name: 100)
    with pytest.raises(ValueError, match=r"found 96 observations, which need 0 GiB of 0; .* solver='cg'"):
        fitted.add(few)
    with pytest.raises(ValueError, match=r"found 96 observations, which need 0 GiB of 0; .* solver='cg'"):
        fit_gp(few, targets=BOTH)
    duplicated = few[np.array([0, 0, 1])]
    monkeypatch.undo()
    with pytest.raises(ValueError, match="duplicate geometries"):
        fit_gp(duplicated, targets=BOTH, noise=1e-17, max_steps=0)


def swapped(positions):
    """The fixture's molecule with its hydrogens exchanged."""
    return positions[..., [0, 1, 3, 2], :]


def test_symmetric_models_do_not_tell_equal_atoms_apart(few, test_set):
    plain, symmetric = (fit_gp(few, targets=BOTH, max_steps=0, symmetry=s) for s in (False, True))
    twins = test_set.positions[:5], swapped(test_set.positions[:5])
    here, there = (energy_and_forces(symmetric)(r) for r in twins)
    np.testing.assert_allclose(here[0], there[0], atol=1e-9)
    np.testing.assert_allclose(swapped(here[1]), there[1], atol=1e-8)
    apart = [energy_and_forces(plain)(r)[0] for r in twins]
    assert np.abs(apart[0] - apart[1]).max() > 1e-3


@pytest.mark.parametrize(("features", "targets"), [("inverse-distances", BOTH[:1]), ("alf", BOTH)])
def test_copies_are_learned_like_the_originals(features, targets, few):
    """Where kernels differ from atom to atom."""
    model = fit_gp(few, features, targets=targets, max_steps=0, symmetry=True)
    assert model.weights.shape[1] == 12
    for copy in (few.positions, swapped(few.positions)):
        np.testing.assert_allclose(energy_and_forces(model)(copy)[0], few.energy, atol=1e-3 * np.std(few.energy))  # the noise


def test_the_sum_over_images_is_what_copies_are(few, test_set):
    """Conditioned on a geometry under the summed covariance, or on all its copies under the plain one: the same mean."""
    model = fit_gp(few, targets=BOTH, max_steps=0, symmetry=True)
    prior = Fitted.of(replace(model, joint=replace(model.joint, permutations=np.arange(4)[None])))
    copies = concatenate([few, few.permuted(np.array([0, 1, 3, 2]))])
    with_copies = prior.add(copies).model
    for a, b in zip(*(energy_and_forces(m)(test_set.positions) for m in (model, with_copies)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7 * np.abs(a).max())


def test_turned_training_geometries_teach_the_same(few, test_set):
    turned = replace(few, positions=few.positions @ rotation(1).T, forces=few.forces @ rotation(1).T)
    models = [fit_gp(data, targets=BOTH, max_steps=0) for data in (few, turned)]
    for a, b in zip(*(energy_and_forces(m)(test_set.positions) for m in models), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7 * np.abs(a).max())


def test_noise_and_weights_come_from_the_data(few):
    model = fit_gp(few, targets=BOTH, max_steps=0, symmetry=True)
    assert model.noise in fit_joint.NOISES
    weights = InverseDistances(4, tuple(range(6))).columns(model.permutations)  # pairs that change places
    # Alike but for the order in which their distances are summed.
    np.testing.assert_allclose(*np.array(model.features.weights)[weights], rtol=1e-14)
    assert len(np.unique(np.round(model.features.weights, 12))) == 4
    assert fit_gp(few, targets=BOTH, max_steps=0, noise=1e-5).noise == 1e-5


@pytest.mark.usefixtures("x64")
def test_pairs_of_an_orbit_weigh_the_same_and_others_have_weights_of_their_own(few):
    """Of formaldehyde two pairs of C and H, and two of O and H, change places."""
    options = {"targets": ("energy", "forces"), "pair_weights": "orbits"}
    problem = Problem.of(few, GPOptions(**options).resolved(few))
    family = fit_joint._family(problem)
    (first, *_), is_length = family.starts
    assert len(first) == len(family.deviations) == 1 + 2 + 4 and is_length.sum() == 1
    plain = family.weights(first)
    np.testing.assert_allclose(plain, pair_weights(family.distances, np.exp(first[2])), rtol=1e-14)
    for orbit in range(4):
        ratio = family.weights(first + 0.5 * (np.arange(7) == 3 + orbit)) / plain
        np.testing.assert_allclose(ratio, np.where(family.orbits == orbit, np.exp(0.5), 1.0), rtol=1e-14)
    assert sorted(np.bincount(family.orbits)) == [1, 1, 2, 2]
    weights = np.array(fit_gp(few, **options, max_steps=1).features.weights)
    decays = np.log(weights / family.distances) / family.distances
    assert np.ptp(decays) > 0.01 * np.abs(decays).max()


def test_the_order_of_the_data_does_not_matter(dataset, test_set, monkeypatch):
    """Where hyperparameters and noise are chosen by a part of the data."""
    monkeypatch.setattr(fit_joint, "SUBSET", 60)
    data, shuffled = dataset[:16], np.random.default_rng(0).permutation(16)
    options = {"targets": ("energy", "forces"), "max_steps": 0}
    a, b = (energy_and_forces(fit_gp(part, **options))(test_set.positions) for part in (data, data[shuffled]))
    np.testing.assert_allclose(a[0], b[0], atol=1e-7)
    np.testing.assert_allclose(a[1], b[1], atol=1e-6)


def test_a_sample_stands_evenly_among_all_energies(dataset):
    missing = replace(dataset, forces=np.where(np.arange(80)[:, None, None] % 2, np.nan, dataset.forces))
    for data, most in ((dataset, 130), (missing, 130), (dataset, 1e6)):
        chosen = evenly(data, ("energy", "forces"), most)
        observed = np.isfinite(data.forces[chosen]).sum() + len(chosen)
        assert observed <= most and (len(chosen) == 80 or observed > most - 26)
        ranks = np.sort(np.argsort(np.argsort(data.energy))[chosen])
        assert np.ptp(np.diff(ranks)) <= 1
        shuffled = np.random.default_rng(0).permutation(80)
        assert (shuffled[evenly(data[shuffled], ("energy", "forces"), most)] == chosen).all()
    assert len(evenly(dataset, ("energy", "forces"), 1)) == 2


@pytest.mark.parametrize("targets", [("energy", "forces"), ("forces",)])
def test_conjugate_gradients_find_the_factor_s_weights(targets, dataset, test_set, monkeypatch):
    """Also where an observation is missing."""
    monkeypatch.setattr(iterative, "LEFT_OVER", 1e-6)
    forces = dataset.forces[:20].copy()
    forces[3] = np.nan
    data, options = replace(dataset[:20], forces=forces), {"targets": targets, "symmetry": True, "max_steps": 0}
    factor, iterated = (fit_gp(data, solver=solver, **options) for solver in ("cholesky", "cg"))
    assert iterated.train_features.shape[1] == 40
    for a, b in zip(*(energy_and_forces(m)(test_set.positions) for m in (factor, iterated)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max())
    monkeypatch.setattr(iterative, "MOST_STEPS", 2)
    with pytest.raises(ValueError, match=r"expected conjugate gradients to leave .* found .* after 2 steps"):
        fit_gp(data, solver="cg", **options)


def test_what_a_geometry_lacks_is_left_out(few, test_set):
    """Geometries with different observations, against the joint process of those rows alone."""
    targets = ("atomic_energies", "energy", "forces")
    atomic, energy, forces = few.atomic_energies.copy(), few.energy.copy(), few.forces.copy()
    atomic[[0, 3, 4]], energy[[1, 2, 5]], forces[[2, 4]] = np.nan, np.nan, np.nan
    data = replace(few, atomic_energies=atomic, energy=energy, forces=forces)
    model = fit_gp(data, targets=targets, max_steps=0, prior_mean="mf5", symmetry=False)
    process = joint.Process.of(model.kernel, model.features, model.signal_variance)
    with jax.enable_x64(True):
        points = [joint.embedded(model.kernel, joint.seen(model.features, d.positions)) for d in (few, test_set)]
        k = np.array(joint.covariance(process, points[0], points[0], targets)).reshape(6 * 17, -1)
        cross = np.array(joint.covariance(process, points[1], points[0], ("energy",), targets)).reshape(30, -1)
        prior, slope = np.asarray(model.mean(few.positions[0])), 0.0
    k += np.diag(np.tile(model.noise_variance, 6))
    y = joint.observations(targets, atomic - prior, energy - prior.sum(), forces + slope)
    known = np.isfinite(y)
    assert known.sum() == 3 * 4 + 3 + 4 * 12
    expected = prior.sum() + cross[:, known] @ np.linalg.solve(k[np.ix_(known, known)], y[known])
    np.testing.assert_allclose(energy_and_forces(model)(test_set.positions)[0], expected, rtol=0, atol=1e-7)


def test_added_geometries_are_as_if_there_from_the_start(dataset, test_set):
    targets, parts = ("energy", "forces"), (dataset[:5], dataset[5:8])
    prior = Fitted.of(fit_gp(parts[0], targets=targets, max_steps=0))
    grown, whole = prior.add(parts[0]).add(parts[1]).model, prior.add(dataset[:8]).model
    for a, b in zip(*(energy_and_forces(m)(test_set.positions) for m in (grown, whole)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)
    # 3e6 eV^2 from energies that vary by 1: rounding is 2e-8 of it on one processor, below 1e-8 on another.
    np.testing.assert_allclose(grown.signal_variance, whole.signal_variance, rtol=1e-6)
    with pytest.raises(ValueError, match="expected the atoms O C H H, found N C H H"):
        prior.add(replace(dataset[:2], species=("N", "C", "H", "H")))
    with pytest.raises(ValueError, match="expected geometries with energy, forces, found none of forces"):
        prior.add(replace(dataset[:2], forces=None))


def test_an_energy_counts_where_atomic_energies_are_missing(few, test_set):
    """As an observation of its own where it is added to a model of atomic energies, and not at all where they are known."""
    every = ("atomic_energies", "energy", "forces")
    with_energy, without = (fit_gp(few, targets=t, max_steps=0, prior_mean="mf5", noise=1e-10) for t in (every, BOTH))
    np.testing.assert_allclose(*(energy_and_forces(m)(test_set.positions)[1] for m in (with_energy, without)), atol=1e-5)
    assert with_energy.observed.sum() == without.observed.sum() == 6 * 16
    nothing = np.full_like(test_set.forces[:2], np.nan)
    known, more = Fitted.of(with_energy).add(few), replace(test_set[:2], atomic_energies=None, forces=nothing)
    taught = known.add(more).model
    assert taught.observed.sum() == 6 * 16 + 2
    before, after = (np.abs(energy_and_forces(m)(more.positions)[0] - more.energy).max() for m in (known.model, taught))
    assert after < 2 * np.sqrt(taught.noise_variance[4]) < 0.2 * before
    with pytest.raises(ValueError, match="found none of atomic_energies"):
        Fitted.of(without).add(more)


def test_a_short_length_scale_is_taken_where_it_is_as_good():
    less = 2 * np.log(1.1)  # a tenth, in the mean of two targets
    chosen = fit_joint.shortest_as_good
    assert chosen([[0.0, 0.1], [-0.99 * less, 0.0]], 2) == (0, 0)
    assert chosen([[0.0, 0.1], [-1.01 * less, 0.0]], 2) == (1, 0)
    assert chosen([[0.1, 0.0], [0.3, 0.2]], 2) == (0, 1)
    assert chosen([[np.inf, np.inf], [0.1, 0.0]], 1) == (1, 1)


def test_error_of_geometries_left_out_is_that_of_fits_without_them():
    """Three geometries of two atomic energies and six force components, one force missing."""
    rng, targets, n_atoms = np.random.default_rng(0), ("atomic_energies", "forces"), 2
    root = rng.normal(size=(24, 24))
    matrix, y, kept = root @ root.T + np.eye(24), rng.normal(size=24), np.arange(24) != 12
    geometry, is_force = np.repeat(np.arange(3), 8), np.tile(np.arange(8) > 1, 3)
    errors = np.full(24, np.nan)
    for k in range(3):
        out, others = (geometry == k) & kept, (geometry != k) & kept
        errors[out] = y[out] - matrix[np.ix_(out, others)] @ np.linalg.solve(matrix[np.ix_(others, others)], y[others])
    expected = 0.0
    for kind in (is_force, ~is_force):
        expected += np.log(np.mean([np.sqrt(np.nanmean(errors[kind & (geometry == k)] ** 2)) for k in range(3)]))
    found = fit_joint._left_out_error(matrix[np.ix_(kept, kept)], y, kept, targets, n_atoms)
    assert found == pytest.approx(expected, rel=1e-10)
    assert fit_joint._left_out_error(-np.eye(23), y, kept, targets, n_atoms) == np.inf
