"""Certified averages: weights, free energies and error bars where theory knows them, and what does not count."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from test_verdict import FRAMES, HYDROXYL, make_run

from iqagp_jax.units import BOLTZMANN, KCAL_MOL
from iqagp_jax.verdict import certified, truth
from iqagp_jax.verdict.assess import Seen, _certified

THERMAL = BOLTZMANN * 300.0 / KCAL_MOL
"""kT at 300 K, kcal/mol."""


def relabelled(run, difference, every=1):
    """Every so many frames of a run with the reference's energies: E_ref - E_model (F, R) in kcal/mol."""
    frame, replica = (x.ravel() for x in np.meshgrid(np.arange(0, FRAMES, every), np.arange(len(run.lives)), indexing="ij"))
    kept = frame < run.lives[replica]
    frame, replica = frame[kept], replica[kept]
    zeros = np.zeros(len(frame))
    return truth.Frames(replica, frame, zeros.astype(bool), zeros, zeros, -difference[frame, replica], zeros)


def test_gaussian_differences_have_a_closed_form():
    """Of N(mu, s^2): F = mu - s^2 / 2kT, N exp(-(s/kT)^2) of N frames; x that correlates with it is moved by -cov / kT."""
    x = np.random.default_rng(0).normal(size=6000)
    replica, slope, offset = np.repeat(np.arange(30), 200), 0.5 * THERMAL, 3.0
    difference = offset + slope * x
    weights = np.exp(certified.log_weights(difference, 300.0))
    mean, error = certified.weighted_mean(x, weights, replica)
    assert abs(mean + 0.5) < 3 * error and 0.01 < error < 0.03
    gap, its_error = certified.free_energy(difference, replica, 300.0)
    assert abs(gap - (offset - slope**2 / 2 / THERMAL)) < 3 * its_error and 0 < its_error < 0.01
    expected = certified.expected_sample_size(6000, slope, 300.0)
    assert expected == pytest.approx(6000 * np.exp(-0.25))
    assert certified.effective_sample_size(weights) == pytest.approx(expected, rel=0.05)
    assert certified.free_energy(difference + 1e4, replica, 300.0)[0] == pytest.approx(gap + 1e4)  # nothing overflows


def test_an_oscillator_has_the_fluctuations_of_another_force_constant():
    """<x^2> = kT / k, from 8000 samples of a softer one; and a bond length has the mean of the reference's."""
    soft, stiff = THERMAL / 0.05**2, 1.3 * THERMAL / 0.05**2
    x = np.random.default_rng(1).normal(0, 0.05, (FRAMES, 20))
    difference = 0.5 * (stiff - soft) * x**2
    replica = np.tile(np.arange(20), FRAMES)
    weights = np.exp(certified.log_weights(difference.ravel(), 300.0))
    mean, error = certified.weighted_mean(x.ravel() ** 2, weights, replica)
    assert abs(mean - THERMAL / stiff) < 3 * error and error < 0.03 * mean
    assert abs(x.var() - THERMAL / stiff) > 10 * error
    run = make_run([FRAMES] * 20, 1.0 + x)
    run = replace(run, trajectory=replace(run.trajectory, temperatures=np.full((FRAMES, 20), 290.0)))
    # Stiffer, and 0.02 A longer: the partition functions differ by the force constants alone.
    difference = 0.5 * stiff * (x - 0.02) ** 2 - 0.5 * soft * x**2
    (found,) = certified.certify(run, relabelled(run, difference), HYDROXYL)
    assert found.certified and found.early == 20 * FRAMES // 5 and found.frames == 20 * FRAMES * 4 // 5
    assert abs(found.free_energy - 0.5 * THERMAL * np.log(1.3)) < 3 * found.free_energy_error < 0.1
    averages = {average.name: average for average in found.averages}
    bond = averages["bond O1-H2"]
    assert abs(bond.reference - 1.02) < 3 * bond.reference_error < 0.01
    assert abs(bond.model - 1.0) < 3 * bond.model_error < 0.01
    assert averages["temperature"].reference == pytest.approx(290.0)
    assert averages["owner of H2: O1"].reference == 1 and averages["owner of H2: O1"].reference_error == 1 / 20
    assert [each.replica for each in found.free_energies] == list(range(20))
    assert abs(np.mean([each.difference for each in found.free_energies]) - found.free_energy) < 0.02
    assert found.effective_sample_size / found.frames == pytest.approx(0.84, abs=0.02)  # <w>^2 / <w^2> of this pair
    assert "F(reference) - F(model) is 0.0" in found.sentence and "300 K, 6400 frames of 20 replicas" in found.sentence


def test_replicas_are_blocks():
    """Two hundred copies of a replica's one value know no more than one."""
    values = np.random.default_rng(2).normal(size=9)
    many, replica = np.repeat(values, 200), np.repeat(np.arange(9), 200)
    mean, error = certified.weighted_mean(many, np.ones(1800), replica)
    assert (mean, error) == pytest.approx((values.mean(), values.std(ddof=1) / 3))


def test_frames_before_a_failure_do_not_count():
    difference = np.random.default_rng(3).normal(0, 0.1, (FRAMES, 4))
    run = make_run([FRAMES, FRAMES, FRAMES, 200])  # the last fails at 1000 fs
    frames = relabelled(run, difference)
    awful = replace(frames, energy_error=frames.energy_error.copy(), final=frames.final.copy())
    late = (frames.replica == 3) & (frames.frame > 180)
    awful.energy_error[late] = 500.0
    awful.final[(frames.replica == 2) & (frames.frame == 300)] = True
    awful.energy_error[awful.final] = 500.0
    (calm,), (found,) = (certified.certify(run, each, HYDROXYL) for each in (frames, awful))
    assert calm.before_failure == 19 and found.before_failure == 20 and found.frames == calm.frames - 1
    assert found.certified and found.free_energy == pytest.approx(calm.free_energy, abs=1e-3)
    assert "20 before failures" in found.left_out and f"{found.early} from the beginning" in found.left_out


def test_frames_without_a_label_are_told():
    run = make_run([FRAMES] * 3)
    frames = relabelled(run, np.zeros((FRAMES, 3)), every=10)
    frames.energy_error[frames.frame == 350] = np.nan
    (found,) = certified.certify(run, frames, HYDROXYL)
    assert (found.without_label, found.frames, found.replicas) == (3, 93, 3) and "3 without a label" in found.sentence
    assert found.effective_sample_size == pytest.approx(93) and found.certified
    nothing = replace(frames, energy_error=np.full(len(frames.frame), np.nan))
    (found,) = certified.certify(run, nothing, HYDROXYL)
    assert not found.certified and found.frames == 0 and found.tau_acc is None and found.free_energy is None
    assert found.sentence.endswith("averages cannot be certified, since no frame is left to count: run longer, or relabel more")


def test_too_small_an_effective_sample_size_certifies_nothing():
    run = make_run([FRAMES] * 4)
    difference = np.random.default_rng(4).normal(0, 4 * THERMAL, (FRAMES, 4))
    (found,) = certified.certify(run, relabelled(run, difference, every=8), HYDROXYL)
    assert found.effective_sample_size < 10 and not found.certified and found.averages == ()
    assert "averages cannot be certified, which takes 10" in found.sentence
    width = THERMAL * np.sqrt(np.log(found.frames / 10))  # N exp(-(s / kT)^2) = 10
    assert f"or take a model whose errors spread by less than {width:.2g} kcal/mol" in found.sentence
    difference[:] = 0.0
    difference[392, 0] = -20 * THERMAL
    (one,) = certified.certify(run, relabelled(run, difference, every=8), HYDROXYL)
    assert one.effective_sample_size == pytest.approx(1) and "one frame has 100% of the weight" in one.missing
    difference[:] = 0.0
    difference[100:200, 0] = 20 * THERMAL  # a hole of the model
    (hole,) = certified.certify(run, relabelled(run, difference, every=8), HYDROXYL)
    assert hole.certified and hole.weightless == hole.frames - round(hole.effective_sample_size) == 12
    assert f"(less than 1 by the spread of the errors), {hole.weightless} for nothing, since the reference" in hole.sentence
    (few,) = certified.certify(run, relabelled(run, np.zeros((FRAMES, 4)), every=190), HYDROXYL)
    assert few.frames == 8 and few.missing == "which takes 10: relabel about 10 frames"
    alone = make_run([FRAMES])
    (single,) = certified.certify(alone, relabelled(alone, np.zeros((FRAMES, 1))), HYDROXYL)
    assert single.missing == "as one replica has no error bar: run two or more" and single.free_energy_error is None


def test_an_unsound_run_certifies_nothing():
    run = make_run([FRAMES] * 3)
    seen = Seen(relabelled(run, np.zeros((FRAMES, 3))), None, "toy")
    for concerns in ((), ("too hot",)):
        driven = SimpleNamespace(run=SimpleNamespace(**vars(run), concerns=concerns), system=HYDROXYL)
        (found,) = _certified(driven, seen)
        assert (found.certified, found.averages != ()) == (not concerns, not concerns)
    assert _certified(driven, replace(seen, reference="none")) == ()


def of_mlp_train(errors):
    """tau_acc as mlp-train counts it: frames every 50 fs, 0.1 eV for each free, until more than 1 eV is spent; at most 1 ps."""
    spent, time = 0.0, 0.0
    for error in errors:
        time, spent = time + 50.0, spent + max(abs(error) - 0.1, 0)
        if spent > 1.0 or time >= 1000.0:
            return time
    raise AssertionError("give more errors")


def test_tau_acc_is_that_of_mlp_train():
    rng = np.random.default_rng(5)
    times = 50.0 * np.arange(1, 31)
    for width in (0.05, 0.2, 0.4, 1.0, 5.0):
        errors = rng.normal(0, width, 30)
        assert certified.tau_acc(times, errors) == of_mlp_train(errors)
    assert certified.tau_acc(times, np.full(30, 0.6)) == of_mlp_train([0.6] * 30) == 150.0
    assert certified.tau_acc(times, np.full(30, 0.6), end=120.0) == 120.0
    # One frame a ps stands for all of it.
    assert certified.tau_acc(np.array([2000.0]), np.array([0.6])) == 150.0
    assert certified.tau_acc(np.array([2000.0]), np.array([0.09])) == 1000.0
    assert certified.tau_acc(np.array([100.0, 150.0]), np.array([0.1, np.nan])) == 150.0


def test_tau_acc_of_replicas_has_an_error_bar():
    run = make_run([FRAMES, FRAMES, 30])  # the last fails at 150 fs
    errors = np.zeros((FRAMES, 3))
    errors[:, 1] = 0.6 / KCAL_MOL
    (found,) = certified.certify(run, relabelled(run, errors, every=10), HYDROXYL)
    tau = found.tau_acc
    assert (tau.replicas, tau.at_cap, tau.spacing_ps) == (3, 1, 0.05)
    assert (tau.ps, tau.error) == pytest.approx((1.3 / 3, np.std([1.0, 0.15, 0.15], ddof=1) / np.sqrt(3)))
