"""One folder of a run: read when it is open, gone on with since the code before, and driven by any potential and system."""

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import REFERENCE, SPECIES, make_dataset
from test_checkpoint import compiled_once  # noqa: F401 (all runs here share what they compile)
from test_cli import iqagp

from iqagp_jax import energy_fn, fit_gp, load_model, load_trajectory, save_model, simulate
from iqagp_jax.cli import console, runs
from iqagp_jax.compose import PerMolecule, Sum
from iqagp_jax.dynamics import replicas
from iqagp_jax.dynamics.record import Run, description_of, rule_of
from iqagp_jax.dynamics.starts import at_rest, starts
from iqagp_jax.families.pairs.models import BondedMorse, NeighbourMorse
from iqagp_jax.formats.trajectories import export
from iqagp_jax.potential import bind
from iqagp_jax.system.failure import failure_rule
from iqagp_jax.system.system import System

GOLDEN = Path(__file__).parent / "golden"


# Runs of the code before


@pytest.fixture(scope="module")
def forces_model():
    return load_model(GOLDEN / "forces.safetensors")


AS_BEFORE = {"temperature": [20, 40, 500], "frame_interval": 5.0, "seed": 3, "frames_per_piece": 8, "progress": False}


@pytest.mark.parametrize("door", ["function and rule", "potential and system"])
def test_a_run_of_the_code_before_goes_on(forces_model, tmp_path, door):
    """With the numbers that code made, and its failure rule of the best training geometry, whatever the rule is now."""
    shutil.copytree(GOLDEN / "short", tmp_path / "run")
    model, begin = forces_model, make_dataset(16, seed=1).positions[:3]
    what = model, System.of(SPECIES, 1.01 * REFERENCE)
    if door == "function and rule":
        what = energy_fn(model), failure_rule(model.species, model.reference)
    for _ in range(2):
        longer = simulate(*what, begin, tmp_path / "run", time=0.1, **AS_BEFORE)
    expected = load_trajectory(GOLDEN / "long")
    for name, values in vars(expected).items():
        if values is None:
            assert getattr(longer.trajectory, name) is None
        elif values.dtype.kind == "U":
            np.testing.assert_array_equal(getattr(longer.trajectory, name), values)
        else:
            # jax 0.10 gives the numbers to 1e-9. Others round otherwise, which dynamics makes grow: 3e-9 by jax 0.12. A run of
            # another rule, seed or energy would differ by far more than the second limit.
            within = 1e-9 if jax.__version__.startswith("0.10.") else 1e-7
            np.testing.assert_allclose(getattr(longer.trajectory, name), values, rtol=within, atol=within)
    assert longer.failure_reasons == Run.open(GOLDEN / "long").failure_reasons
    assert longer.rule.lengths.tolist() == Run.open(GOLDEN / "short").rule.lengths.tolist()
    assert sorted(longer.state) == sorted(Run.open(GOLDEN / "long").state)


def test_a_folder_of_the_code_before_is_open(forces_model, tmp_path):
    found = Run.open(shutil.copytree(GOLDEN / "short", tmp_path / "run"))
    assert (found.system.species, found.system.charge, found.system.spin, found.system.cell) == (SPECIES, 0, 0, None)
    assert found.finished and found.survived.tolist() == [True, True, False]
    assert found.failure_times.tolist()[2] == 40.5 and np.isnan(found.failure_times[:2]).all()
    assert found.failure_reasons == ("", "", "atoms H3 and H4 0.07 A apart, limit 0.50 A, at 0.0405 ps")
    assert found.lives.tolist() == [11, 11, 9] == found.trajectory.alive.sum(0).tolist()
    assert found.groups == [(20.0, "start"), (40.0, "start"), (500.0, "start")]
    np.testing.assert_array_equal(found.times, found.trajectory.times)
    rule = failure_rule(forces_model.species, forces_model.reference)
    np.testing.assert_allclose(found.rule.lengths, rule.lengths, atol=1e-12)
    np.testing.assert_array_equal(found.rule.near_at_rest, rule.near_at_rest)
    # A verdict of that time told the kinds in a file of its own.
    (tmp_path / "run" / "outcome.json").write_text(json.dumps({"kinds": ["equilibrium", "stretched", "stretched"]}))
    assert Run.open(tmp_path / "run").group(500.0, "stretched").tolist() == [2]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda d: shutil.rmtree(d), "expected the folder of a run, found no run.json with a checkpoint in"),
        (lambda d: (d / "checkpoint.npz").unlink(), "expected the folder of a run"),
        (lambda d: (d / "run.json").write_text("[]"), "expected the description of a run, found"),
        (lambda d: (d / "run.json").write_text("{}"), "expected the description of a run, found something else"),
        (lambda d: (d / "failures.extxyz").unlink(), "expected why replica 2 failed, found nothing in"),
    ],
)
def test_a_folder_that_holds_no_whole_run_gets_a_sentence(tmp_path, spoil, sentence):
    shutil.copytree(GOLDEN / "short", tmp_path / "run")
    spoil(tmp_path / "run")
    with pytest.raises(ValueError, match=sentence):
        _ = Run.open(tmp_path / "run").failure_reasons


# Any potential, any system

WATER = System.of(("O", "H", "H"), [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
ABOVE = np.array([0.0, 0.0, 3.0])
PAIR = System.of(2 * WATER.species, np.concatenate([WATER.positions, WATER.positions + ABOVE]), molecules=(0, 0, 0, 1, 1, 1))
MORSE = BondedMorse.of(WATER)
TWICE = Sum(PerMolecule(MORSE), NeighbourMorse(("O", "H"), np.array(0.01), np.array(1.0), np.array(3.0), np.array(5.0)))
BRIEF = {"temperature": 200.0, "time": 0.02, "frame_interval": 5.0, "progress": False}


@pytest.fixture(scope="module")
def pair_run(tmp_path_factory):
    kinds = ["equilibrium", "displaced"]
    folder = tmp_path_factory.mktemp("pair") / "run"
    return simulate(TWICE, PAIR, np.repeat(PAIR.positions[None], 2, axis=0), folder, kinds=kinds, **BRIEF)


def test_a_run_goes_on_with_the_rule_that_it_began_with(pair_run, tmp_path):
    """Of before contacts knew the elements, but with its geometry at rest."""
    folder = shutil.copytree(pair_run.directory, tmp_path / "run")
    told = json.loads((folder / "run.json").read_text())
    assert told.pop("coordination") == pair_run.rule.coordination.tolist()
    (folder / "run.json").write_text(json.dumps(told))
    again = simulate(TWICE, PAIR, pair_run.starts, folder, kinds=pair_run.kinds, **BRIEF)
    assert again.rule.coordination is None and "coordination" not in json.loads((folder / "run.json").read_text())


def test_a_run_tells_its_system_and_its_starts(pair_run):
    found = Run.open(pair_run.directory)
    assert found.kinds.tolist() == ["equilibrium", "displaced"] and found.groups == [
        (200.0, "equilibrium"),
        (200.0, "displaced"),
    ]
    assert (found.system.molecules, found.system.species) == (PAIR.molecules, PAIR.species)
    np.testing.assert_array_equal(found.system.positions, PAIR.positions)
    assert found.finished and found.system.degrees_of_freedom == 15
    assert {tuple(bond) for bond in found.rule.bonds} == {(0, 1), (0, 2), (3, 4), (3, 5)}
    np.testing.assert_array_equal(found.rule.lengths, PAIR.failure_rule.lengths)
    for name in ("near_at_rest", "held_at_rest"):
        here, there = (getattr(rule, name) & rule.together for rule in (found.rule, PAIR.failure_rule))
        np.testing.assert_array_equal(here, there)


def test_several_molecules_have_3n_minus_3_degrees_of_freedom(pair_run):
    """The momentum is removed, the angular momentum left; the temperature counts what moves."""
    momenta, masses = pair_run.momenta, PAIR.masses
    scale = np.abs(momenta).max()
    assert np.abs(momenta.sum(1)).max() < 1e-11 * scale
    assert (np.linalg.norm(np.cross(pair_run.positions, momenta).sum(1), axis=-1) > 0.01 * scale).all()
    kinetic = (momenta**2 / masses[:, None]).sum((1, 2)) / 2
    np.testing.assert_allclose(pair_run.temperatures[-1], 2 * kinetic / (15 * 8.617333262e-5), rtol=1e-6)


def test_what_a_run_tells_tells_runs_apart(pair_run):
    begin = np.repeat(PAIR.positions[None], 2, axis=0)
    with pytest.raises(ValueError, match="found a different kinds; repeat its command"):
        simulate(TWICE, PAIR, begin, pair_run.directory, kinds=["equilibrium", "stretched"], **BRIEF)
    with pytest.raises(ValueError, match="found a different at rest"):
        simulate(TWICE, PAIR.at(PAIR.positions + [[0.01, 0, 0]] * 6), begin, pair_run.directory, **BRIEF)
    # Who does not tell the kinds does not lose them.
    assert simulate(TWICE, PAIR, begin, pair_run.directory, **BRIEF).kinds.tolist() == ["equilibrium", "displaced"]
    with pytest.raises(ValueError, match="expected the name of a kind of start for each of 2 replicas, found 'start'"):
        simulate(TWICE, PAIR, begin, pair_run.directory, kinds="start", **BRIEF)


def test_every_kind_of_potential_is_driven_alike(tmp_path):
    """A potential, one bound already, the smaller contract, and an energy function."""

    class Smaller:
        species, reference = MORSE.species, MORSE.reference

        def __call__(self, positions):
            return bind(MORSE)[0].energies(positions, ())[0]

    ways = [(MORSE, WATER), (bind(MORSE)[0], WATER), (Smaller(), WATER), (energy_fn(MORSE), WATER.failure_rule)]
    found = [
        simulate(what, system, WATER.positions[None], tmp_path / str(k), **BRIEF).trajectory.positions
        for k, (what, system) in enumerate(ways)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("what", "system", "options", "sentence"),
    [
        (
            energy_fn(MORSE),
            WATER,
            {"dtype": "float32"},
            "expected a potential that is not bound yet where a dtype is asked for",
        ),
        (MORSE, PAIR, {}, "expected the atoms O H H"),
        (MORSE, System(WATER.species, WATER.positions, -1), {}, "expected charge 0 and 0 unpaired electrons"),
        (MORSE, "water", {}, "expected a System or a failure rule, found str"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, what, system, options, sentence):
    begin = getattr(system, "positions", WATER.positions)[None]
    with pytest.raises(ValueError, match=sentence):
        simulate(what, system, begin, tmp_path / "run", **BRIEF, **options)
    assert not (tmp_path / "run").exists()


# A neighbour list that overflows

GRID = 5.0 * np.array([[x, y, z] for x in range(2) for y in range(2) for z in range(3)], float)
CLUSTER = System.of(12 * ("He",), GRID, molecules=range(12))
STICKY = NeighbourMorse(("He",), np.array(0.1), np.array(1.0), np.array(3.0), np.array(6.0))
SPREAD = GRID + np.random.default_rng(0).normal(0, 0.1, (2, 12, 3))
CONTRACTING = {"temperature": 50.0, "time": 0.5, "frame_interval": 50.0, "seed": 1, "progress": False, "frames_per_piece": 4}


@pytest.fixture(scope="module")
def contracted(tmp_path_factory):
    return simulate(STICKY, CLUSTER, SPREAD, tmp_path_factory.mktemp("contracted") / "run", **CONTRACTING)


def test_no_number_is_made_with_a_list_that_is_too_small(contracted, tmp_path):
    """The run is that of a list which was large enough from the start."""
    bound = STICKY.bind(CLUSTER)
    expected = simulate(replace(bound, aux=bound.enlarged(GRID[None] / 2)), CLUSTER, SPREAD, tmp_path, **CONTRACTING)
    assert "enlarged_at.0" in contracted.state and "enlarged_at.0" not in expected.state
    assert contracted.survived.all() and np.isfinite(contracted.energies).all()
    for name in ("positions", "energies", "temperatures"):
        np.testing.assert_allclose(getattr(contracted.trajectory, name), getattr(expected.trajectory, name), rtol=0, atol=1e-9)


def test_a_stopped_run_has_the_bytes_of_one_that_was_not_whatever_was_enlarged(contracted, tmp_path, monkeypatch):
    """Stops before and after the list overflowed, and chunks of other lengths."""
    monkeypatch.setattr(replicas, "CHUNK_SECONDS", 1e-4)
    for time in (0.1, 0.45, 0.5):
        again = simulate(STICKY, CLUSTER, SPREAD, tmp_path, **CONTRACTING | {"time": time})
    assert [p.read_bytes() for p in sorted(tmp_path.glob("trajectory-*"))] == [
        p.read_bytes() for p in sorted(contracted.directory.glob("trajectory-*"))
    ]
    assert again.state.keys() == contracted.state.keys()
    for name in again.state.keys() - {"seconds"}:
        np.testing.assert_array_equal(again.state[name], contracted.state[name])


# The command line


@pytest.fixture(scope="module")
def morse_file(tmp_path_factory):
    save_model(MORSE, path := tmp_path_factory.mktemp("morse") / "morse.safetensors")
    return path


def test_the_command_line_takes_any_potential_and_tells_where_it_is_from(morse_file, tmp_path):
    command = ("simulate", morse_file, "--out", tmp_path / "run", "--replicas", 2, "--time", 0.02)
    assert iqagp(*command, "--start", "equilibrium", "--start", "stretched") == 0
    found = Run.open(tmp_path / "run")
    assert found.kinds.tolist() == ["equilibrium", "stretched"]
    assert found.description["model"]["path"] == str(morse_file.resolve()) and len(found.description["model"]["sha256"]) == 64
    # One failure rule for one model: that of its minimum.
    np.testing.assert_allclose(found.rule.lengths, at_rest(MORSE).system.failure_rule.lengths, atol=1e-6)
    np.testing.assert_allclose(found.system.positions, starts(MORSE, ["equilibrium"])[0], atol=1e-6)


def test_a_potential_without_uncertainty_has_none_to_stop_at(morse_file, tmp_path, capsys):
    assert iqagp("simulate", morse_file, "--out", tmp_path / "run", "--max-uncertainty", 5) == 2
    assert "knows the variance of its energy for --max-uncertainty" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["run.json", "checkpoint.npz", "trajectory-0000.npz"])
def test_what_is_damaged_is_told_before_a_model_is_even_read(pair_run, tmp_path, capsys, name):
    shutil.copytree(pair_run.directory, tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=f"expected .*{name}"):
        simulate(None, PAIR, PAIR.positions[None], tmp_path / "run", **BRIEF)
    assert iqagp("simulate", "no-such-model.safetensors", "--out", tmp_path / "run") == 2
    assert name in capsys.readouterr().err


def test_what_an_uncertainty_waits_for_is_told_once_and_after_all_options_are_checked(tmp_path, capsys, monkeypatch, dataset):
    model = fit_gp(dataset, n_train=40, targets=("energy", "forces"), max_steps=0)
    save_model(model, tmp_path / "m.safetensors")
    monkeypatch.setattr(runs, "LARGE", 100)
    command = ("simulate", tmp_path / "m.safetensors", "--out", tmp_path / "run", "--max-uncertainty", 50, "--temperature", 50)
    assert iqagp(*command, "--time", 0.0123) == 2
    assert "factoring" not in capsys.readouterr().out and not (tmp_path / "run").exists()
    assert iqagp(*command, "--time", 0.02, "--replicas", 2) == 0
    told = capsys.readouterr().out
    assert told.count("factoring the covariance of 520 observations, 0.0 GiB") == 1
    assert re.search(r"about \d+ (s|min); Ctrl-C is safe", told)
    assert iqagp(*command, "--time", 0.02, "--replicas", 2) == 0
    assert "factoring" not in capsys.readouterr().out


def test_no_replica_is_exported_that_there_is_not(pair_run, tmp_path):
    for replica in (-1, 2, 0.5, "0"):
        with pytest.raises(ValueError, match="expected a replica from 0 to 1, found"):
            export(pair_run.trajectory, tmp_path / "all.extxyz", replica)
    assert export(pair_run.trajectory, tmp_path / "one.extxyz", np.int64(1)) == 5


def test_the_table_of_replicas_has_a_row_a_start_and_temperature(pair_run, monkeypatch):
    """And one for all; single replicas where they failed."""
    shown = io.StringIO()
    for module in (console, runs):
        terminal = console.Printer(file=shown, width=80, force_terminal=True, color_system=None)
        monkeypatch.setattr(module, "console", terminal)
    runs.print_replicas(pair_run)
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    rows = [" ".join(line.replace("│", " ").split()) for line in lines]
    assert [sum(row.startswith(name) for row in rows) for name in ("equilibrium 200 1/1", "displaced 200 1/1", "all 2/2")] == [
        1
    ] * 3
    runs.print_replicas(Run.open(GOLDEN / "short"))
    told = shown.getvalue()
    assert "failed replicas" in told and "atoms H3 and H4 0.07 A apart" in told


def test_a_rule_of_several_molecules_is_told_by_its_pairs():
    description = json.loads(json.dumps(description_of(PAIR.failure_rule)))
    assert description["near"] == [[0, 1], [0, 2], [3, 4], [3, 5]]
    assert rule_of(description).molecules == PAIR.molecules


@pytest.mark.parametrize("shape", ["a slope", "a kink"])
def test_the_rest_of_a_model_without_a_minimum_is_its_training_geometry(shape):
    class Rough:
        species, reference = WATER.species, WATER.positions

        def __call__(self, positions):
            return positions[:, 0] if shape == "a slope" else abs(positions - WATER.positions - 0.01).sum(1)

    rest = at_rest(Rough())
    assert not rest.is_minimum
    np.testing.assert_array_equal(rest.system.positions, WATER.positions)
    with pytest.raises(ValueError, match="the model has no minimum near its best training geometry"):
        starts(Rough(), ["equilibrium"])
