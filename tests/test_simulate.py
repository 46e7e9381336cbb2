"""Replicas: starts, the bookkeeping of runs and failures, the files, and what is refused."""

import os
import signal
import threading
import time
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqagp_jax.dynamics import starts as beginnings
from iqagp_jax.dynamics.ensembles import (
    Dynamics,
    Langevin,
    NoseHoover,
    bound_energy,
    kinetic_energy_parts,
    kinetic_temperature,
    remove_rigid_motion,
)
from iqagp_jax.dynamics.run import simulate
from iqagp_jax.dynamics.starts import random_displacements, stretch_bond
from iqagp_jax.dynamics.trajectory import load_trajectory
from iqagp_jax.machine.files import checksum
from iqagp_jax.system.elements import masses_of
from iqagp_jax.system.failure import Status, failure_rule, failure_status
from iqagp_jax.system.system import System
from iqagp_jax.units import BOLTZMANN, TIME_UNIT

SPECIES = ("C", "H", "H", "F")
GEOMETRY = np.array([[0.0, 0.0, 0.1], [0.95, 0.5, 0.0], [-0.95, 0.5, 0.0], [0.0, -1.3, 0.0]])
PAIRS = np.triu_indices(4, 1)
LENGTHS = np.linalg.norm(GEOMETRY[PAIRS[0]] - GEOMETRY[PAIRS[1]], axis=1)
MASSES = masses_of(SPECIES)
SYSTEM = System.of(SPECIES, GEOMETRY, spin=1)
RULE = SYSTEM.failure_rule
STARTS = GEOMETRY[None].repeat(3, 0)


def energy(positions):
    """Springs between all atoms."""
    distances = jnp.sqrt(((positions[PAIRS[0]] - positions[PAIRS[1]]) ** 2).sum(1))
    return 10.0 * ((distances - LENGTHS) ** 2).sum()


def fragile(positions):
    """A spring molecule that knows nothing of a first bond shorter than 0.85 angstrom, 0.22 less than at rest."""
    bond = jnp.sqrt(((positions[0] - positions[1]) ** 2).sum())
    return energy(positions) * jnp.where(bond < 0.85, jnp.nan, 1.0)


def dynamics_of(energy_fn, thermostat):
    return Dynamics(bound_energy(energy_fn), SYSTEM, thermostat, 0.5, RULE)


def run(directory, energy_fn=energy, starts=STARTS, **options):
    defaults = {"temperature": [300.0, 500.0, 900.0], "time": 0.06, "frame_interval": 5.0, "frames_per_piece": 5}
    return simulate(energy_fn, RULE, starts, directory, **(defaults | {"progress": False} | options))


@pytest.fixture(scope="module")
def reference_run(tmp_path_factory):
    return run(tmp_path_factory.mktemp("reference") / "run")


@pytest.fixture(scope="module")
def trajectory(reference_run):
    return load_trajectory(reference_run.directory)


# Momenta and temperatures


def test_rigid_and_internal_motion_are_told_apart():
    """K = M V^2/2 + omega I omega/2 + K_vib: each part alone, then all in one."""
    with jax.enable_x64(True):
        centred = GEOMETRY - MASSES @ GEOMETRY / MASSES.sum()
        drift = MASSES[:, None] * np.array([0.1, -0.2, 0.3])
        spin = MASSES[:, None] * np.cross([0.3, 0.1, -0.2], centred)
        random = np.random.default_rng(0).normal(size=(4, 3))
        internal = remove_rigid_motion(GEOMETRY, random, MASSES)
        parts = [kinetic_energy_parts(GEOMETRY, p, MASSES) for p in (drift, spin, internal, drift + spin + internal)]
        kinetic = [(p**2 / MASSES[:, None]).sum() / 2 for p in (drift, spin, internal)]
    np.testing.assert_allclose(parts[:3], np.diag(kinetic), atol=1e-14)
    np.testing.assert_allclose(parts[3], kinetic, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(internal).sum(0), 0, atol=1e-14)
    np.testing.assert_allclose(np.cross(GEOMETRY, internal).sum(0), 0, atol=1e-14)


def test_removal_leaves_what_does_not_move_rigidly():
    with jax.enable_x64(True):
        once = remove_rigid_motion(GEOMETRY, np.random.default_rng(0).normal(size=(4, 3)), MASSES)
        np.testing.assert_allclose(remove_rigid_motion(GEOMETRY, once, MASSES), once, atol=1e-14)


@pytest.mark.parametrize(
    ("thermostat", "atoms", "count"), [(NoseHoover(), 4, 6), (NoseHoover(), 3, 3), (NoseHoover(), 2, 1), (Langevin(), 4, 12)]
)
def test_initial_momenta_are_a_maxwell_boltzmann_sample(thermostat, atoms, count):
    """2K/kT of the start is chi-squared with f degrees of freedom: mean f, variance 2f, sample variances 8f(f+6)."""
    n = 4000
    system, masses = System(SPECIES[:atoms], GEOMETRY[:atoms]), MASSES[:atoms]
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.PRNGKey(0), n)
        draw = jax.vmap(lambda key: thermostat.initial_momenta(key, system, system.positions, jnp.float64(0.03)))
        momenta = np.asarray(jax.jit(draw)(keys))
    twice = (momenta**2 / masses[:, None]).sum((1, 2)) / 0.03
    assert thermostat.degrees_of_freedom(system) == count
    assert abs(twice.mean() - count) < 4 * np.sqrt(2 * count / n)
    assert abs(twice.var() - 2 * count) < 4 * np.sqrt(8 * count * (count + 6) / n)
    assert kinetic_temperature(momenta[0], masses, count) == pytest.approx(twice[0] * 0.03 / BOLTZMANN / count)


def test_replica_does_not_depend_on_the_number_of_replicas():
    dynamics = dynamics_of(energy, NoseHoover())
    with jax.enable_x64(True):
        start = jax.jit(jax.vmap(lambda k: dynamics.start(7, k, jnp.asarray(GEOMETRY), jnp.float64(300.0)).dynamics.momentum))
        few, many = start(np.arange(2)), start(np.arange(5))
    np.testing.assert_array_equal(few, many[:2])
    assert len(np.unique(many[:, 0, 0])) == 5


def test_friction_slows_free_atoms():
    """dp/dt = -gamma p where there is neither force nor temperature: after 0.5 fs at 10/ps, p = exp(-0.005) p0."""
    dynamics = dynamics_of(lambda x: 0.0 * x.sum(), Langevin(friction=10.0))
    with jax.enable_x64(True):
        cold = jnp.float64(1e-30)
        replica = jax.jit(dynamics.start)(0, 0, GEOMETRY, cold)
        moving = replica._replace(dynamics=replica.dynamics.set(momentum=jnp.ones((4, 3))))
        np.testing.assert_allclose(jax.jit(dynamics.step)(moving, cold).dynamics.momentum, np.exp(-0.005), rtol=1e-12)


def test_a_start_without_energy_has_no_frame():
    dynamics = dynamics_of(fragile, NoseHoover())
    short = GEOMETRY * np.array([[1.0, 1, 1], [0.7, 0.7, 0.7], [1, 1, 1], [1, 1, 1]])
    with jax.enable_x64(True):
        for start, alive in ((GEOMETRY, True), (short, False)):
            frame = dynamics.observe(dynamics.start(0, 0, jnp.asarray(start), jnp.float64(300.0)), jnp.float64(300.0))
            assert frame.alive == alive == np.isfinite(frame.energies) == np.isfinite(frame.positions).all()


# Runs


def test_run_has_the_promised_frames(reference_run, trajectory):
    assert trajectory.positions.shape == (13, 3, 4, 3)
    assert trajectory.positions.dtype == np.float64
    np.testing.assert_array_equal(trajectory.times, 5.0 * np.arange(13))
    np.testing.assert_array_equal(trajectory.positions[0], GEOMETRY[None].repeat(3, 0))
    np.testing.assert_array_equal(trajectory.positions[-1], reference_run.positions)
    np.testing.assert_array_equal(trajectory.temperatures, reference_run.temperatures)
    np.testing.assert_array_equal(trajectory.energies, reference_run.energies)
    assert tuple(trajectory.species) == SPECIES
    assert list(trajectory.target_temperatures) == [300.0, 500.0, 900.0]
    assert trajectory.alive.all() and reference_run.survived.all()
    assert reference_run.failure_reasons == ("", "", "")
    assert np.isnan(reference_run.failure_times).all()


def test_temperatures_and_energies_are_those_of_the_frames(reference_run, trajectory):
    last = kinetic_temperature(reference_run.momenta[1], MASSES, 6)
    assert reference_run.temperatures[-1, 1] == pytest.approx(last, rel=1e-12)
    total = trajectory.kinetic_energies.sum(-1)
    np.testing.assert_allclose(total, trajectory.temperatures * 6 * BOLTZMANN / 2, rtol=1e-12)
    with jax.enable_x64(True):
        assert trajectory.energies[-1, 2] == pytest.approx(float(energy(trajectory.positions[-1, 2])), rel=1e-12)


def test_conserved_energies_are_conserved_to_the_square_of_the_timestep(tmp_path):
    def scatter(timestep):
        result = run(tmp_path / str(timestep), timestep=timestep, thermostat=NoseHoover(20.0), time=0.2)
        frames = load_trajectory(result.directory)
        return frames.conserved_energies.std(0).max(), (frames.energies + frames.kinetic_energies.sum(-1)).std(0).max()

    (long, exchanged), (short, _) = scatter(0.5), scatter(0.25)
    assert long < 0.05 * exchanged
    assert short == pytest.approx(long / 4, rel=0.15)


def test_energy_drifts_are_slopes(reference_run, trajectory):
    slopes = np.polyfit(trajectory.times / 1000, trajectory.conserved_energies, 1)[0]
    np.testing.assert_allclose(reference_run.energy_drifts, slopes, rtol=1e-6)


def test_langevin_dynamics_conserves_nothing_that_is_followed(failing_run):
    assert np.isnan(failing_run.energy_drifts).all()


def test_momentum_and_angular_momentum_stay_zero(reference_run):
    momenta, positions = reference_run.momenta, reference_run.positions
    scale = np.abs(momenta).max()
    assert np.abs(momenta.sum(1)).max() < 1e-11 * scale
    assert np.abs(np.cross(positions, momenta).sum(1)).max() < 1e-11 * scale


def test_mean_temperatures_of_the_second_half(reference_run):
    np.testing.assert_allclose(reference_run.mean_temperatures(since=0.5), reference_run.temperatures[6:].mean(0))


def test_state_is_in_double_precision(reference_run):
    state = reference_run.state
    for name in ("position", "force", "chain.momentum", "chain.mass"):
        assert state[f"replicas.dynamics.{name}"].dtype == np.float64
    tau = NoseHoover().time / TIME_UNIT
    np.testing.assert_allclose(
        state["replicas.dynamics.chain.mass"][:, 0], 6 * BOLTZMANN * np.array([300, 500, 900]) * tau**2, rtol=1e-7
    )


def test_global_precision_is_untouched(reference_run):
    assert jnp.ones(1).dtype == jnp.float32


def test_same_seed_writes_the_same_bytes(reference_run, tmp_path):
    run(tmp_path)
    names = sorted(p.name for p in reference_run.directory.glob("*.npz") if p.stem != "checkpoint")
    assert names == [f"trajectory-000{k}.npz" for k in range(3)]
    for name in names:
        assert (tmp_path / name).read_bytes() == (reference_run.directory / name).read_bytes()
        with zipfile.ZipFile(tmp_path / name) as archive:
            assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.fixture(scope="module")
def failing_run(tmp_path_factory):
    """Replica 1 swings back into NaN, 2 is given a collapsed contact, and 0 lives."""
    starts = np.stack([GEOMETRY, stretch_bond(SPECIES, GEOMETRY, 0, 1, 1.6), GEOMETRY])
    starts[2, 2] = starts[2, 1] - [0.4, 0.0, 0.0]
    return run(tmp_path_factory.mktemp("failing"), fragile, starts, seed=3, thermostat=Langevin(), temperature=300.0)


def test_failures_are_reported_and_leave_the_others_alone(failing_run, tmp_path):
    assert failing_run.survived.tolist() == [True, False, False]
    assert failing_run.failure_reasons[1].startswith("energy, positions, momenta or forces not finite, at 0.00")
    assert failing_run.failure_reasons[2] == "atoms H2 and H3 0.47 A apart, limit 0.50 A, at 0.0005 ps"
    assert failing_run.failure_times[2] == 0.5
    assert np.isfinite(failing_run.positions).all() and np.isfinite(failing_run.momenta).all()
    alone = run(tmp_path, fragile, GEOMETRY[None], seed=3, thermostat=Langevin(), temperature=300.0)
    np.testing.assert_allclose(alone.positions[0], failing_run.positions[0], rtol=1e-10)


def test_frames_after_a_failure_are_marked(failing_run):
    frames = load_trajectory(failing_run.directory)
    np.testing.assert_array_equal(frames.alive, frames.times[:, None] < [np.inf, *failing_run.failure_times[1:]])
    for values in (frames.positions, frames.energies, frames.temperatures, frames.kinetic_energies):
        finite = np.isfinite(values).reshape(*frames.alive.shape, -1)
        np.testing.assert_array_equal(finite.all(-1), frames.alive)
    assert np.isfinite(failing_run.mean_temperatures()).all()
    assert np.isfinite(failing_run.mean_temperatures(since=0.5)).tolist() == [True, False, False]


def test_run_ends_where_no_replica_is_left(tmp_path):
    start = stretch_bond(SPECIES, GEOMETRY, 0, 1, 0.84)
    result = run(tmp_path, fragile, start[None], temperature=300.0, time=1000.0)
    assert result.times.tolist() == [0.0, 5.0]
    np.testing.assert_array_equal(result.positions[0], start)


def test_overheating_and_broken_bonds_wait_for_their_time():
    """A step from given counters: 999.5 fs hot is alive, one step more is not; a broken bond is seen after the grace."""
    dynamics = dynamics_of(lambda x: 0.0 * x.sum(), Langevin())
    with jax.enable_x64(True):
        start, step = jax.jit(dynamics.start), jax.jit(dynamics.step)
        cold, hot = jnp.float64(1.0), jnp.float64(2000.0)
        replica = start(0, 0, GEOMETRY, hot)
        for steps, count, status in [(4000, 1998, 0), (4000, 1999, Status.OVERHEATED), (100, 1999, 0)]:
            given = replica._replace(steps=jnp.asarray(steps), hot_steps=jnp.asarray(count))
            assert step(given, cold).status == status
        broken = stretch_bond(SPECIES, GEOMETRY, 0, 3, 3.5)
        for steps, status in [(199, 0), (200, Status.BROKEN_BOND)]:
            given = start(0, 0, broken, cold)._replace(steps=jnp.asarray(steps))
            assert step(given, cold).status == status


def test_ctrl_c_leaves_the_frames_so_far(tmp_path):
    def interrupt():
        while not (tmp_path / "trajectory-0000.npz").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"stopped at .* ps; the frames are in"):
        run(tmp_path, time=1e6)
    thread.join()
    assert signal.getsignal(signal.SIGINT) is handler
    frames = load_trajectory(tmp_path)
    np.testing.assert_array_equal(frames.times, 5.0 * np.arange(len(frames.times)))
    assert not list(tmp_path.glob(".*"))


# Refusals


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": 0.0}, "expected temperatures in K above zero, found 0.0"),
        ({"temperature": np.nan}, "expected temperatures in K above zero, found nan"),
        ({"temperature": [300.0, 400.0]}, "one for each of 3 replicas, found shape .2,."),
        ({"time": -1.0}, "expected a time in ps above zero, found -1.0"),
        ({"time": 0.0601}, "expected the time to be a multiple of the frame interval .5 fs., found 60.1 fs; take 60 fs"),
        ({"time": 1e300}, "expected a time of at most 1e.15 frame intervals, found 1e.303 fs; give a shorter one"),
        ({"time": "5"}, "expected a time in ps above zero, found '5'"),
        ({"timestep": np.inf}, "expected a timestep in fs above zero, found inf"),
        ({"timestep": 0.3}, "frame interval to be a multiple of the timestep .0.3 fs., found 5 fs; take 5.1 fs"),
        ({"frame_interval": 0.0}, "expected a frame interval in fs above zero"),
        ({"seed": -1}, "expected a seed as an integer not below 0, found -1"),
        ({"seed": 1.5}, "expected a seed as an integer"),
        ({"frames_per_piece": 0}, "expected frames per piece as an integer not below 1"),
        ({"thermostat": "berendsen"}, "expected NoseHoover.. or Langevin.. as thermostat, found 'berendsen'"),
        ({"starts": GEOMETRY}, "found .4, 3.; give one row for each of the atoms C H H F"),
        ({"starts": GEOMETRY[None, :3]}, "expected starts of shape .replicas, 4, 3."),
        ({"starts": np.full((3, 4, 3), np.nan)}, "expected finite positions"),
        ({"energy_fn": lambda x: x}, "expected an energy function that returns a float64 scalar"),
        ({"energy_fn": lambda x: energy(x).astype(jnp.float32)}, "expected an energy function that returns a float64 scalar"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_numpy_numbers_are_numbers(tmp_path):
    whole = {"timestep": np.int64(1), "frame_interval": np.int64(5), "time": np.float32(0.25), "temperature": np.int64(300)}
    assert run(tmp_path, **whole).survived.all()


def test_bad_thermostats_are_refused():
    with pytest.raises(ValueError, match="expected a thermostat time in fs above zero, found 0"):
        NoseHoover(time=0)
    with pytest.raises(ValueError, match="expected a friction in 1/ps above zero, found nan"):
        Langevin(friction=np.nan)


def test_linear_molecules_need_langevin_dynamics(tmp_path):
    linear = np.array([[-1.2, 0.0, 0.0], [0.0, 0.0, 0.0], [1.2, 0.0, 0.0]])
    rule = failure_rule(("O", "C", "O"), linear)
    with pytest.raises(ValueError, match="found start 0 linear; use Langevin"):
        simulate(energy, rule, linear[None], tmp_path, temperature=300.0, time=1.0)


def test_folder_must_be_writable_and_free(pieces, tmp_path):
    with pytest.raises(
        ValueError, match=r"expected an empty folder or a run to go on with, found a trajectory without run.json"
    ):
        run(pieces)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"expected a writable folder, found .*file.* \(Not a directory\)"):
        run(tmp_path / "file" / "run")


# Trajectories


@pytest.fixture
def pieces(reference_run, tmp_path):
    for path in reference_run.directory.glob("trajectory-*.npz"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_leftovers_of_a_crash_are_ignored(pieces, trajectory):
    (pieces / ".trajectory-0003.npz.partial").write_bytes(b"half")
    np.testing.assert_array_equal(load_trajectory(pieces).positions, trajectory.positions)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda d: [p.unlink() for p in d.iterdir()], "expected trajectory-0000.npz and following in .*, found none"),
        (lambda d: (d / "trajectory-0001.npz").unlink(), "trajectory-0001.npz is missing"),
        (lambda d: (d / "trajectory-0001.npz").write_bytes(b""), "trajectory-0001.npz damaged"),
        (lambda d: os.truncate(d / "trajectory-0002.npz", 900), "trajectory-0002.npz damaged"),
        (lambda d: np.savez(d / "trajectory-0002.npz", positions=np.zeros(3)), "trajectory-0002.npz damaged"),
        (lambda d: np.savez(d / "trajectory-0002.npz", format_version=1), "expected trajectory format 2, found 1"),
        (lambda d: (d / "trajectory-0002.npz").rename(d / "trajectory-0003.npz"), "trajectory-0002.npz is missing"),
        (lambda d: (d / "trajectory-0002.npz").write_bytes((d / "trajectory-0000.npz").read_bytes()), "of one run"),
    ],
)
def test_spoilt_trajectories_are_refused(pieces, spoil, sentence):
    spoil(pieces)
    with pytest.raises(ValueError, match=sentence):
        load_trajectory(pieces)


def rewrite(path, **changes):
    """Write a piece or checkpoint anew with some arrays replaced, or left out where they are None; its checksum fits."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays.update({name: change(arrays[name]) if callable(change) else change for name, change in changes.items()})
    arrays = {name: array for name, array in arrays.items() if array is not None}
    version = {name: arrays.pop(name) for name in ("format_version",) if name in arrays}
    arrays.pop("checksum", None)
    np.savez(path, checksum=np.bytes_(checksum("", arrays)), **version, **arrays)


def at(index, value):
    def change(array):
        array[index] = value
        return array

    return change


SPOILT = {
    "NaN while alive": ({"positions": at((0, 0), np.nan)}, "expected finite numbers as positions of what is alive, found nan"),
    "1e300 while alive": ({"energies": at((0, 0), 1e300)}, r"as energies of what is alive, found 1e\+300"),
    "below zero kelvin": ({"temperatures": at((0, 0), -5.0)}, "as temperatures of what is alive, found -5"),
    "numbers of the dead": (
        {"alive": at((slice(None), 0), False)},
        "expected no positions of a replica that failed, found numbers",
    ),
    "alive again": ({"alive": at((0, 0), False)}, "expected replicas to stay as they failed, found one alive again"),
    "alive in numbers": ({"alive": lambda a: a.astype(float)}, "expected yes or no as which replicas are alive"),
    "times in whole numbers": ({"times": lambda a: a.astype(int)}, "expected numbers as times, found an array of int64"),
    "no positions": ({"positions": None}, "positions"),
    "an array too many": ({"more": np.zeros(3)}, "more"),
    "fewer energies": ({"energies": lambda a: a[:-1]}, "expected energies of shape"),
    "masses of two": ({"masses": lambda a: a[:2]}, "expected masses of shape"),
    "no mass": ({"masses": at(0, 0.0)}, "as masses, found 0"),
    "no element": ({"species": at(0, "X")}, "expected chemical symbols as species, found 'X'"),
    "times NaN": ({"times": at(0, np.nan)}, "as times, found nan"),
    "a scalar": ({"times": np.float64(3.0)}, "unsized object"),
    "words": ({"positions": np.array("none")}, "expected positions of shape"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_numbers_that_make_no_sense_are_refused(what, pieces):
    changes, sentence = SPOILT[what]
    rewrite(pieces / "trajectory-0001.npz", **changes)
    with pytest.raises(ValueError, match=f"found .*trajectory-0001.npz damaged .*{sentence}"):
        load_trajectory(pieces)


def test_a_piece_tells_a_checksum(pieces, trajectory):
    path = pieces / "trajectory-0001.npz"
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez(path, **{**arrays, "energies": arrays["energies"] + 1e-9})
    with pytest.raises(ValueError, match="its checksum is wrong"):
        load_trajectory(pieces)
    del arrays["checksum"]
    np.savez(path, **arrays)  # one of before 2026-12
    np.testing.assert_array_equal(load_trajectory(pieces).positions, trajectory.positions)


def test_altered_bytes_are_noticed(pieces):
    path = pieces / "trajectory-0001.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load_trajectory(pieces)


# Starts


def test_random_displacements_are_whole_bounded_and_reproducible():
    starts, redraws = random_displacements(RULE, GEOMETRY, 0.5, 40, seed=1)
    assert starts.shape == (40, 4, 3)
    assert 0.4 < np.abs(starts - GEOMETRY).max() <= 0.5
    assert redraws > 0
    assert np.linalg.norm(starts[:, PAIRS[0]] - starts[:, PAIRS[1]], axis=2).min() >= 0.6
    assert (jax.vmap(lambda x: failure_status(RULE, x))(starts) == Status.ALIVE).all()
    np.testing.assert_array_equal(random_displacements(RULE, GEOMETRY, 0.5, 2, seed=1)[0], starts[:2])


def test_hopeless_amplitudes_are_refused(monkeypatch):
    monkeypatch.setattr(beginnings, "MAX_REDRAWS", 20)
    with pytest.raises(ValueError, match="expected an amplitude that leaves the molecule whole, found 50 angstrom"):
        random_displacements(RULE, GEOMETRY, 50.0, 1)


@pytest.mark.parametrize(("i", "j"), [(0, 1), (1, 0)])
def test_stretched_bond_moves_the_smaller_side_along_itself(i, j):
    stretched = stretch_bond(SPECIES, GEOMETRY, i, j, 1.5)
    assert np.linalg.norm(stretched[1] - stretched[0]) == pytest.approx(1.5)
    np.testing.assert_array_equal(stretched[[0, 2, 3]], GEOMETRY[[0, 2, 3]])
    np.testing.assert_allclose(np.cross(stretched[1] - GEOMETRY[0], GEOMETRY[1] - GEOMETRY[0]), 0.0, atol=1e-12)


def test_stretched_bond_leaves_a_second_molecule_alone():
    pair = np.concatenate([GEOMETRY, GEOMETRY + 8.0])
    stretched = stretch_bond(2 * SPECIES, pair, 0, 1, 1.5)
    np.testing.assert_array_equal(np.delete(stretched, 1, 0), np.delete(pair, 1, 0))


def test_bonds_that_are_none_or_in_rings_are_not_stretched():
    with pytest.raises(ValueError, match="found none between atoms 1 and 3"):
        stretch_bond(SPECIES, GEOMETRY, 1, 3, 1.5)
    triangle = 1.5 * np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.8660254, 0.0]])
    with pytest.raises(ValueError, match="expected a bond outside rings"):
        stretch_bond(("C", "C", "C"), triangle, 0, 1, 1.7)
