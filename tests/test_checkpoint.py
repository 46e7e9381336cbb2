"""Runs that are killed, go on, are made longer, or are refused because they are others."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.io import read
from jax.experimental.compilation_cache import compilation_cache
from test_simulate import GEOMETRY, SPECIES, at, energy, rewrite, run

from iqagp_jax.dynamics import folder as checkpoint
from iqagp_jax.dynamics import replicas, trajectory
from iqagp_jax.dynamics.ensembles import Langevin
from iqagp_jax.dynamics.folder import NOTES, check_same_run
from iqagp_jax.dynamics.run import UncertaintyLimit
from iqagp_jax.dynamics.starts import stretch_bond
from iqagp_jax.dynamics.trajectory import load_trajectory, read_pieces
from iqagp_jax.machine import files
from iqagp_jax.machine.lock import owned
from iqagp_jax.system.failure import Status
from iqagp_jax.units import KCAL_MOL

running = sys.modules[UncertaintyLimit.__module__]

CACHE = {
    "jax_compilation_cache_dir": None,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """All runs here share what they compile, which is most of their work; gives the environment of processes that do."""
    before = {name: jax.config._read(name) for name in CACHE}
    settings = CACHE | {"jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled"))}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield os.environ | {name.upper(): str(value) for name, value in settings.items()}
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def changed(folder, **changes):
    """The arrays of a checkpoint, some of them others, and its old checksum."""
    with np.load(folder / "checkpoint.npz") as archive:
        return {**{name: archive[name] for name in archive.files}, **changes}


def pieces(folder):
    return {path.name: path.read_bytes() for path in folder.glob("trajectory-*.npz")}


def steps_begun_from(folder):
    """Step of every time the run in a folder began or went on, from its log."""
    lines = (folder / "run.log").read_text().splitlines()
    return [int(line.split()[-3]) for line in lines if "begins at step" in line or "goes on from step" in line]


def silent(positions):
    """A spring molecule whose energy, not its forces, is NaN where the first bond is below 0.85 angstrom."""
    bond = jnp.sqrt(((positions[0] - positions[1]) ** 2).sum())
    return jnp.where(bond < 0.85, jnp.nan, energy(positions))


FAILING = {
    "energy_fn": silent,
    "starts": np.stack([GEOMETRY, stretch_bond(SPECIES, GEOMETRY, 0, 1, 1.6), GEOMETRY]),
    "temperature": 300.0,
    "thermostat": Langevin(),
    "seed": 3,
}
"""Replica 1 swings back too far."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("failed") / "run", **FAILING)


# Stops at any moment

LONG = {"temperature": 400.0, "time": 20.0, "frame_interval": 10.0, "frames_per_piece": 150}
"""40,000 steps"""


def test_killed_run_writes_the_bytes_of_an_undisturbed_one(tmp_path, compiled_once):
    """SIGKILL at two random moments, with a checkpoint every 20 ms so that it may fall into one."""
    run(tmp_path / "undisturbed", **LONG)
    folder = tmp_path / "killed"
    program = (
        "import sys; from test_simulate import run; from test_checkpoint import LONG, running;"
        "running.CHECKPOINT_SECONDS = 0.02; run(sys.argv[1], **LONG)"
    )
    command = [sys.executable, "-c", program, folder]

    def step():
        return int(np.load(folder / "checkpoint.npz")["step"]) if (folder / "checkpoint.npz").exists() else 0

    for _ in range(2):
        begun = step()
        process = subprocess.Popen(command, cwd=Path(__file__).parent, env=compiled_once)
        while step() == begun:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(random.uniform(0.0, 0.2))
        process.kill()
        process.wait()
    subprocess.run(command, cwd=Path(__file__).parent, env=compiled_once, check=True)
    begun = steps_begun_from(folder)
    assert len(begun) == 3 and 0 == begun[0] < begun[1] < begun[2] < 40_000
    assert pieces(folder) == pieces(tmp_path / "undisturbed")


class PowerCutError(Exception):
    """The end of a process in a test."""


def test_power_cut_at_any_write_changes_nothing(failed, tmp_path, monkeypatch):
    """A run with noise and a failure ends before or after its n-th write, again and again, and goes on in other chunks."""
    monkeypatch.setattr(running, "CHECKPOINT_SECONDS", 0.0)
    lasting = trajectory.write_atomically
    left, lost = 0, False

    def write(path, data):
        nonlocal left
        left -= 1
        if left or not lost:
            lasting(path, data)
        if left == 0:
            raise PowerCutError

    monkeypatch.setattr(trajectory, "write_atomically", write)
    monkeypatch.setattr(checkpoint, "write_atomically", write)
    # A run writes its description, a checkpoint and the log, then in turn a piece and a checkpoint, sometimes failures.
    for left, lost in [(2, True), (4, False), (5, True), (8, False), (11, True), (12, False)]:  # noqa: B007 (write reads both)
        monkeypatch.setattr(replicas, "CHUNK_SECONDS", 1e-4 * left)
        with pytest.raises(PowerCutError):
            run(tmp_path, **FAILING)
    left = 0
    result = run(tmp_path, **FAILING)
    assert len(set(steps_begun_from(tmp_path))) > 3
    assert pieces(tmp_path) == pieces(failed.directory)
    assert (tmp_path / "failures.extxyz").read_bytes() == (failed.directory / "failures.extxyz").read_bytes()
    assert result.failure_reasons == failed.failure_reasons
    np.testing.assert_array_equal(result.temperatures, failed.temperatures)
    assert not list(tmp_path.glob(".*"))


def test_finished_run_is_given_back_at_once(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.directory.iterdir() if path.name != "lock"}
    again = run(finished.directory, progress=True)
    assert "finished already: step 120, 3 of 3 replicas alive" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again.ms_per_step_per_replica == finished.ms_per_step_per_replica
    np.testing.assert_array_equal(again.momenta, finished.momenta)
    np.testing.assert_array_equal(again.energies, finished.energies)


def test_longer_run_has_the_bytes_of_one_that_was_long_from_the_start(finished, tmp_path):
    run(tmp_path, time=0.03)
    run(tmp_path, time=0.06)
    assert steps_begun_from(tmp_path) == [0, 60]
    assert pieces(tmp_path) == pieces(finished.directory)
    with pytest.raises(ValueError, match=r"found a different time ps \(0.06 there, 0.03 here\)"):
        run(tmp_path, time=0.03)


# Other runs, and damage


def test_another_run_is_refused(finished):
    with pytest.raises(ValueError, match=r"found a different seed \(0 there, 1 here\), potential; repeat its command"):
        run(finished.directory, lambda x: 1.001 * energy(x), seed=1)


def test_every_option_tells_runs_apart(finished):
    description = json.loads((finished.directory / "run.json").read_text())
    check_same_run(finished.directory, description)
    for name, value in description.items():
        if name in NOTES:
            continue
        other = (np.array(value) + 0.001).tolist() if isinstance(value, list) else 0.25
        with pytest.raises(ValueError, match=f"found a different {name.replace('_', ' ')}"):
            check_same_run(finished.directory, description | {name: other})
    rounded = {"starts": (np.array(description["starts"]) + 1e-9).tolist()}
    check_same_run(finished.directory, description | rounded)
    with pytest.raises(ValueError, match="found a different starts"):
        check_same_run(finished.directory, description | {"starts": description["starts"][:2]})


def test_folder_has_one_owner(finished):
    with owned(finished.directory), pytest.raises(ValueError, match=f"a running simulation .process {os.getpid()} on"):
        run(finished.directory)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda d: (d / "run.json").write_text("[]"), "expected the description of a run"),
        (lambda d: (d / "checkpoint.npz").unlink(), "expected checkpoint.npz beside the trajectory in"),
        (lambda d: os.truncate(d / "checkpoint.npz", 900), "expected a whole checkpoint, found .* damaged"),
        (lambda d: np.savez(d / "checkpoint.npz", step=3), "expected a checkpoint of this version, found another replicas"),
        (lambda d: (d / "trajectory-0001.npz").unlink(), "trajectory-0001.npz is missing"),
        (lambda d: os.truncate(d / "trajectory-0002.npz", 900), "trajectory-0002.npz damaged"),
        (lambda d: rewrite(d / "checkpoint.npz", **{"replicas.status": at(0, 9)}), "expected a status from 0 to 6"),
        (lambda d: rewrite(d / "checkpoint.npz", **{"replicas.status": at(0, -1)}), "as status, found -1"),
        (
            lambda d: rewrite(d / "checkpoint.npz", **{"replicas.dynamics.position": at((1, 0), np.nan)}),
            "as replicas.dynamics.position of what is alive, found nan",
        ),
        (lambda d: rewrite(d / "checkpoint.npz", **{"replicas.dynamics.momentum": at(0, 1e300)}), "momentum of what is alive"),
        (lambda d: rewrite(d / "checkpoint.npz", step=np.int64(-3)), "as step, found -3"),
        (lambda d: rewrite(d / "checkpoint.npz", step=None), "expected a checkpoint of this version, found another step"),
        (lambda d: np.savez(d / "checkpoint.npz", **changed(d, seconds=np.float64(7))), "damaged .its checksum is wrong"),
        (lambda d: (d / "run.log").unlink() or (d / "run.log").mkdir(), "expected a file run.log in .*, found a folder"),
        (lambda d: (d / "failures.extxyz").write_bytes(b"\xff\x00" * 99), "expected the geometries that failed, found"),
        (lambda d: (d / "failures.extxyz").write_text("1\n\nO 0 0 0\n"), "expected the geometries that failed, found"),
    ],
)
def test_spoilt_runs_do_not_go_on(finished, tmp_path, spoil, sentence):
    for path in finished.directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    spoil(tmp_path)
    before = pieces(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path)
    assert pieces(tmp_path) == before


def test_a_checkpoint_without_a_checksum_is_read(finished, tmp_path):
    np.savez(tmp_path / "checkpoint.npz", **{k: v for k, v in changed(finished.directory).items() if k != "checksum"})
    there, here = (checkpoint.read_checkpoint(folder) for folder in (finished.directory, tmp_path))
    assert there.keys() == here.keys() and "checksum" not in here


DESCRIPTIONS = {
    "no time": {"time_ps": None},
    "time in words": {"time_ps": "long"},
    "no step": {"timestep_fs": 0.0},
    "NaN kelvin": {"temperatures_K": [float("nan")] * 3},
    "two temperatures of three": {"temperatures_K": [300.0] * 2},
    "no element": {"species": "O Xx H"},
    "species a number": {"species": 3},
    "starts NaN": {"starts": [[[float("nan")] * 3] * 3] * 3},
    "starts of two atoms": {"starts": [[[0.0] * 3] * 2] * 3},
    "no starts": {"starts": []},
    "a bond to nowhere": {"bonds": [[0, 9]]},
    "a length too few": {"bond_lengths": []},
    "near": {"near": [[True]]},
    "molecules": {"molecules": [0]},
    "a flat cell": {"cell": [[1.0] * 3]},
    "kinds": {"kinds": ["start"]},
}


@pytest.mark.parametrize("what", DESCRIPTIONS)
def test_a_description_that_makes_no_sense_gets_a_sentence(what, finished, tmp_path):
    told = json.loads((finished.directory / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(told))
    assert checkpoint.read_description(tmp_path) == told
    (tmp_path / "run.json").write_text(json.dumps({**told, **DESCRIPTIONS[what]}))
    with pytest.raises(ValueError, match=r"expected the description of a run, found .*; restore it"):
        checkpoint.read_description(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"3", b"{}", b'{"time_ps": 1', b"\xff\xfe\x00", b"[" * 100_000])
def test_what_is_no_description_gets_a_sentence(content, tmp_path):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match="expected the description of a run, found"):
        checkpoint.read_description(tmp_path)
    with pytest.raises(ValueError, match="expected the description of a run, found"):
        check_same_run(tmp_path, {"time_ps": 1.0})


# Failures


def test_energy_that_is_not_finite_is_a_failure(failed):
    """Where the forces are finite too; the geometry that has no energy is kept."""
    assert failed.survived.tolist() == [True, False, True]
    assert failed.failure_reasons[1].startswith("energy, positions, momenta or forces not finite, at 0.00")
    atoms = read(failed.directory / "failures.extxyz", index=":")
    assert [a.info["replica"] for a in atoms] == [1]
    assert atoms[0].info["time"] == failed.failure_times[1]
    assert atoms[0].info["reason"] == failed.failure_reasons[1]
    np.testing.assert_allclose(atoms[0].positions, failed.positions[1], atol=1e-7)  # digits of the file
    assert atoms[0].get_distance(0, 1) < 0.85
    assert f"replica 1 failed: {failed.failure_reasons[1]}" in (failed.directory / "run.log").read_text()


def test_replica_stops_where_its_energy_is_too_uncertain(tmp_path):
    """A standard deviation in eV of how many angstrom the first bond is from its start, looked at every 1.5 fs."""

    def deviation(positions):
        bond = np.linalg.norm(np.asarray(positions)[..., 0, :] - positions[..., 1, :], axis=-1)
        return abs(bond - np.linalg.norm(GEOMETRY[0] - GEOMETRY[1]))

    largest = 1.5 * KCAL_MOL
    limit = UncertaintyLimit(lambda r: deviation(r) ** 2, largest, 1.5)
    result = run(tmp_path / "limited", frame_interval=1.5, uncertainty_limit=limit)
    looked_at = load_trajectory(run(tmp_path / "free", frame_interval=1.5).directory)
    uncertain = deviation(looked_at.positions) > largest
    assert result.survived.tolist() == (~uncertain.any(0)).tolist() != [True] * 3
    for k in np.flatnonzero(~result.survived):
        assert result.status[k] == Status.UNCERTAIN
        assert result.failure_times[k] == looked_at.times[uncertain[:, k]][0]
        assert "kcal/mol, limit 1.5 kcal/mol, at 0.0" in result.failure_reasons[k]
        np.testing.assert_array_equal(result.positions[k], looked_at.positions[uncertain[:, k], k][0])
    frames = load_trajectory(result.directory)
    np.testing.assert_array_equal(frames.alive, ~(frames.times[:, None] >= result.failure_times))


# Pieces


def test_trajectory_is_read_piece_by_piece(finished):
    whole, parts = load_trajectory(finished.directory), list(read_pieces(finished.directory))
    assert [len(part.times) for part in parts] == [5, 5, 3]
    np.testing.assert_array_equal(np.concatenate([part.positions for part in parts]), whole.positions)


def test_a_run_deletes_nothing_that_it_has_not_written(tmp_path, monkeypatch):
    """Files of the user's own that look like temporary ones, and folders, stay; what a crash left goes."""
    others = [".notes.2024.txt", ".bashrc.1", f".draft{files.UNFINISHED}.txt"]
    for name in others:
        (tmp_path / name).write_text("the user's")
    (tmp_path / ".venv.3.11").mkdir()
    with monkeypatch.context() as crash, pytest.raises(PowerCutError):
        crash.setattr(files, "rename_durably", _cut_power)
        files.write_atomically(tmp_path / "run.json", "half")
    assert len(list(tmp_path.glob(f".*{files.UNFINISHED}"))) == 1
    checkpoint.describe(tmp_path, {"time_ps": 1.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, ".venv.3.11", "run.json"])


def _cut_power(old, new):
    raise PowerCutError
