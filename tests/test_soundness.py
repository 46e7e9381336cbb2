"""Runs that cannot be believed are told, and good ones of any length and seed are not."""

import json
import warnings
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REFERENCE, SPECIES
from scipy.signal import lfilter
from test_cli import iqagp

from iqagp_jax import fit_gp, save_model, simulate
from iqagp_jax.dynamics import soundness
from iqagp_jax.dynamics.record import Run
from iqagp_jax.dynamics.soundness import Course
from iqagp_jax.families.pairs.models import BondedMorse
from iqagp_jax.potential import Bound, bind
from iqagp_jax.system.system import System
from iqagp_jax.verdict import Part, Protocol, judge, judge_run

MOLECULE = System.of(SPECIES, REFERENCE)
MORSE = BondedMorse.of(MOLECULE, depth=4.5, steepness=2.0)
STARTS = np.repeat(REFERENCE[None], 8, axis=0)
OPTIONS = {"temperature": 300.0, "frame_interval": 10.0, "progress": False}


def course(rng, frames=100, replicas=4, freedom=6, interval=20.0, forgets=22.0, **changes):
    """Of a right run: 2K/kT is chi-squared with f degrees of freedom, and forgets within 22 fs."""
    kept = np.exp(-interval / forgets)
    noise = rng.normal(size=(frames, replicas, freedom))
    noise[1:] *= np.sqrt(1 - kept**2)
    heat = (lfilter([1.0], [1.0, -kept], noise, axis=0) ** 2).mean(-1)
    flat = rng.normal(0, 1e-4, heat.shape)
    times = interval * np.arange(frames)
    potential = (rng.normal(size=(*heat.shape, freedom)) ** 2).sum(-1) * 0.013
    made = Course(times, 300.0 * heat, potential, flat, np.full(replicas, 300.0), freedom, 44.0, 0.5, soundness.BIAS)
    return replace(made, **changes)


def found(made, training=None, period=10.0):
    return [
        *soundness.temperature(made),
        *soundness.conservation(made),
        *soundness.energies(made, training),
        *soundness.vibration(made.timestep, period),
    ]


# Good runs


@pytest.mark.parametrize(("frames", "replicas"), [(3, 1), (12, 4), (25, 1), (60, 2), (250, 1)])
@pytest.mark.parametrize("freedom", [1, 21])
def test_right_runs_of_any_length_are_silent(frames, replicas, freedom):
    """600 seeds each: fewer than one in a thousand of all is told off."""
    rng = np.random.default_rng(frames)
    for _ in range(600):
        assert not found(course(rng, frames, replicas, freedom), (0.0, 0.5))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    kinds = ["equilibrium"] * 4 + ["stretched"] * 4
    begin = STARTS + 0.1 * np.random.default_rng(0).normal(size=STARTS.shape) * (np.arange(8) > 3)[:, None, None]
    return simulate(MORSE, MOLECULE, begin, tmp_path_factory.mktemp("good") / "run", time=1.0, kinds=kinds, **OPTIONS)


def test_a_good_run_and_any_part_of_it_has_no_concern(good):
    assert good.concerns == () and "warning" not in (good.directory / "run.log").read_text()
    whole = Course.of(good)
    assert 8.0 < good.shortest_period < 12.0 and whole.memory == pytest.approx(np.sqrt(2) * np.pi * 10)
    for frames in range(2, 101, 7):
        for k in range(8):
            series = ("temperatures", "energies", "conserved")
            part = {name: getattr(whole, name)[: frames + 1, k : k + 1] for name in series}
            assert not found(replace(whole, times=whole.times[: frames + 1], targets=whole.targets[k : k + 1], **part))


def test_the_shortest_period_is_that_of_the_hessian(good):
    bound, _ = bind(MORSE)
    with jax.enable_x64(True):
        hessian = jax.hessian(lambda r: bound.energies(r.reshape(-1, 3), ())[0].sum())(jnp.asarray(REFERENCE.ravel()))
    root = np.repeat(np.sqrt(MOLECULE.masses), 3)
    stiffest = np.linalg.eigvalsh(np.asarray(hessian) / np.outer(root, root)).max()
    assert good.shortest_period == pytest.approx(2 * np.pi / np.sqrt(stiffest) * soundness.TIME_UNIT, rel=0.02)
    assert soundness.shortest_period(lambda r: np.full(r.shape, np.nan), REFERENCE, MOLECULE.masses, 2) is None
    assert soundness.shortest_period(np.zeros_like, REFERENCE, MOLECULE.masses, 2) is None


# Wrong ones


def told_by(what, folder, **options):
    with pytest.warns(UserWarning) as told:
        run = simulate(what, MOLECULE, STARTS, folder, **OPTIONS | {"time": 0.3} | options)
    assert [str(w.message) for w in told] == [f"{folder}: {sentence}" for sentence in run.concerns]
    assert all(w.filename == __file__ for w in told)
    assert [line.split("warning: ")[1] for line in (folder / "run.log").read_text().splitlines() if "warning" in line] == list(
        run.concerns
    )
    return run


def test_labels_in_another_unit_make_vibrations_that_no_molecule_has(tmp_path):
    """kcal/mol taken for eV: all forces are 23 times too large."""
    run = told_by(replace(MORSE, depth=23.06 * MORSE.depth), tmp_path / "run", timestep=0.25)
    assert any("no molecule has one below 7.6 fs, that of H2: look at the units of the labels" in c for c in run.concerns)
    assert run.survived.all()
    # Again, and it is told again, but logged once.
    told_by(replace(MORSE, depth=23.06 * MORSE.depth), tmp_path / "run", timestep=0.25)


@pytest.mark.parametrize("error", ["too large", "turning"])
def test_forces_that_are_not_the_gradient_are_told_by_the_conserved_energy(tmp_path, error):
    bound, _ = bind(MORSE)

    def fast(positions, aux):
        (energy, gradient), aux = bound.energy_and_gradient(positions, aux)
        wrong = 1.5 * gradient if error == "too large" else gradient - 0.5 * jnp.cross(positions, jnp.array([0.0, 0.0, 1.0]))
        return (energy, wrong), aux

    run = told_by(Bound(bound.energies, fast=fast), tmp_path / "run")
    (sentence, *_) = (c for c in run.concerns if "conserved energy" in c)
    assert "forces are not the gradient of the energy" in sentence
    assert ("fluctuates" if error == "too large" else "drifts") in sentence


def test_a_too_long_step_is_told_as_what_it_is(tmp_path):
    run = told_by(MORSE, tmp_path / "run", timestep=2.0)
    assert run.concerns[-1].startswith("the time step of 2 fs") and run.concerns[-1].endswith("take 0.5 fs")
    assert soundness.vibration(1.3, 9.0) == []  # seven steps
    (sentence,) = soundness.vibration(1.3, 9.0, unsound=True)
    assert sentence.startswith("the time step of 1.3 fs is the likely cause: the fastest vibration has a period of 9 fs")
    assert "reads its amplitudes 28% too large" in soundness.vibration(1.6, 9.55)[0]
    assert soundness.vibration(2.0, None) == []


def test_another_temperature_than_was_asked_for_is_told():
    rng = np.random.default_rng(0)
    for frames, replicas, share in ((100, 4, 1.5), (2000, 4, 1.1), (2000, 4, 0.9), (500, 1, 2.0)):
        made = course(rng, frames, replicas, 21)
        (sentence,) = found(replace(made, temperatures=share * made.temperatures))
        assert sentence.startswith("the mean kinetic temperature is") and "where 300 K were asked for" in sentence
    # The scatter of four replicas of 334 to 2042 K would excuse any mean.
    wild = np.array([334.0, 700.0, 1200.0, 2042.0]) / 300
    made = course(rng, 100, 4, 21)
    assert soundness.temperature(replace(made, temperatures=wild * made.temperatures))
    # Of two temperatures one is right.
    made = course(rng, 200, 4, 21, targets=np.array([300.0, 300.0, 200.0, 200.0]))
    (sentence,) = soundness.temperature(made)
    assert "where 200 K were asked for" in sentence


def test_langevin_dynamics_may_read_low_by_its_step_and_no_more():
    series = dict.fromkeys(("temperatures", "energies", "conserved_energies"), np.zeros((3, 2)))
    run = SimpleNamespace(
        description={"thermostat": "Langevin", "thermostat_friction": 10.0},
        **{"survived": np.ones(2, bool), "shortest_period": 9.0, "timestep": 1.0, "system": MOLECULE, "times": np.arange(3.0)},
        **{"target_temperatures": np.full(2, 300.0), **series},
    )
    made = Course.of(run)
    assert made.freedom == 12 and made.memory == 100.0
    assert made.bias == pytest.approx(soundness.BIAS + (np.pi / 9) ** 2)


def test_energies_beyond_all_that_was_learned_are_told():
    rng = np.random.default_rng(0)
    made, training = course(rng), (0.0, 0.3)
    assert not soundness.energies(made, training) and not soundness.energies(made, None)
    (above,) = soundness.energies(replace(made, energies=made.energies + 5.0), training)
    assert "eV above the highest training energy" in above
    hole = made.energies.copy()
    hole[50, 1] = -2.0
    (below,) = soundness.energies(replace(made, energies=hole), training)
    assert below.startswith("the potential energy of 1 of 4 replicas is 2 eV below the lowest training energy")
    high = made.energies.copy()
    high[:10] += 20.0  # where it started
    assert not soundness.energies(replace(made, energies=high), training)


def test_training_energies_are_those_of_the_model(tmp_path, dataset):
    model = fit_gp(dataset, n_train=12, targets=("energy", "forces"), max_steps=0)
    run = simulate(model, model.system, model.train_positions[:2], tmp_path, **OPTIONS | {"temperature": 50.0, "time": 0.02})
    learned = [dataset.energy[np.abs(dataset.positions - r).max((1, 2)).argmin()] for r in model.train_positions]
    assert run.training_energies == pytest.approx((min(learned), max(learned)), abs=0.05)
    assert run.concerns == ()


# What they lead to


def test_no_part_of_a_verdict_on_an_unsound_run_is_good(tmp_path):
    protocol = Protocol((300.0,), ("equilibrium",), 2, 0.2, timestep=2.0, frame_interval=10.0, frames=4)
    with pytest.warns(UserWarning, match="the time step of 2 fs"):
        verdict = judge(MORSE, tmp_path, protocol=protocol)
    assert verdict.concerns and all(c.startswith("model: ") for c in verdict.concerns)
    assert (verdict.survival.grade, verdict.survival.good) == ("poor", False)
    assert verdict.survival.sentence.startswith("2 of 2 replicas survived 0.2 ps")
    assert verdict.survival.sentence.endswith("; but the run is unsound, and to survive it tells nothing")
    assert json.loads((tmp_path / "robustness.json").read_text())["concerns"] == list(verdict.concerns)
    assert "The runs cannot be believed" in (tmp_path / "report.html").read_text()
    with pytest.warns(UserWarning, match="the time step of 2 fs"):
        again = judge(MORSE, tmp_path, protocol=protocol)
    assert again.concerns == verdict.concerns
    with pytest.warns(UserWarning, match="the time step of 2 fs"):
        assert judge_run(MORSE, tmp_path / "model", tmp_path / "again").survival.grade == "poor"


def test_a_grade_never_rises():
    for grade, expected in (("good", "fair"), ("fair", "fair"), ("poor", "poor"), ("unknown", "unknown")):
        assert Part(grade, "so", (), ()).at_most("fair", "but").grade == expected
    assert Part("good", "so", (), ()).at_most("fair", "but").sentence == "so; but"


def test_strict_commands_exit_with_three(tmp_path, capsys):
    save_model(MORSE, tmp_path / "m.safetensors")
    common = ("--time", 0.1, "--timestep", 2, "--frame-interval", 10, "--temperature", 300, "--replicas", 2)
    run = ("simulate", tmp_path / "m.safetensors", "--out", tmp_path / "run", *common)
    judged = ("robustness", tmp_path / "run", "--out", tmp_path / "verdict", "--reference", "none")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert [iqagp(*run), iqagp(*run, "--strict"), iqagp(*judged), iqagp(*judged, "--strict")] == [0, 3, 0, 3]
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("the time step of 2 fs") >= 4 and "survival: poor" in told
    assert told.count("next: iqagp robustness") == 2
    assert Run.open(tmp_path / "run").concerns
