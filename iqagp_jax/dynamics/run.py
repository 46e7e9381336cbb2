"""Many replicas of one molecule at constant temperature, under jit and vmap: runs that go on after any stop.

`dynamics` has the equations of motion, `checkpoint` and `trajectory` the files. Units: K, ps and fs as said, angstrom, eV.
"""

import signal
import threading
import time as clock
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.dynamics.ensembles import (
    Dynamics,
    Langevin,
    NoseHoover,
    Replica,
    inertia,
    kinetic_temperature,
    masses_of,
    require_positive,
)
from iqagp_jax.dynamics.folder import check_same_run, describe, load_checkpoint, log, save_checkpoint, save_failures
from iqagp_jax.dynamics.trajectory import Recorder, read_pieces
from iqagp_jax.machine.devices import agreed, compiled, meet
from iqagp_jax.machine.files import output_folder
from iqagp_jax.machine.lock import owned
from iqagp_jax.machine.progress import progress_bar
from iqagp_jax.system.failure import Status, failure_reason, failure_status
from iqagp_jax.system.geometry import bond_graph, graph_distances, moved_side, pair_distances

CLOSEST_START = 0.6
"""Random starts with two atoms nearer than this (angstrom) are drawn again."""

MAX_REDRAWS = 1000
"""Draws of one random start before its amplitude is refused."""

LINEAR = 1e-4
"""A start is linear if its smallest moment of inertia is below this share of its largest."""

CHECKPOINT_SECONDS = 3.0
"""Wall time between two checkpoints."""

CHUNK_SECONDS = 0.5
"""Wall time of the steps made in one go, between which Ctrl-C and checkpoints take effect."""

PIECE_BYTES = 8e6
"""Size of a trajectory piece where the number of its frames is not given."""

PROBE_DISPLACEMENT = 0.1
"""A potential is recognised by its energies of the starts displaced by up to this (angstrom) in every coordinate."""


@dataclass(frozen=True)
class UncertaintyLimit:
    """Stops a replica where the standard deviation of the molecular energy is above ``largest``, or is NaN."""

    variance: Callable
    """positions (R, N, 3) in angstrom -> (R,) eV^2, such as `potential.energy_variance` gives"""
    largest: float
    """eV"""
    interval: float = 5.0
    """fs between two looks, a multiple of the timestep"""

    def __post_init__(self):
        require_positive("a largest uncertainty in eV", self.largest)

    def deviations(self, positions):
        """Standard deviations (R,) in eV at positions (R, N, 3)."""
        return np.sqrt(np.asarray(self.variance(positions)))

    def stop(self, replicas):
        """The replicas, those stopped whose energy is too uncertain."""
        status = np.asarray(replicas.status)
        certain = self.deviations(replicas.dynamics.position) <= self.largest
        return replicas._replace(status=np.where(certain | (status != Status.ALIVE), status, np.int32(Status.UNCERTAIN)))


class RunState(NamedTuple):
    """All that the future of a run depends on, and the wall time it has taken; what a checkpoint holds."""

    replicas: Replica
    step: np.int64
    seconds: np.float64


@dataclass(frozen=True)
class SimulationResult:
    """What became of R replicas; their frames are in ``directory``, for `trajectory.load_trajectory`."""

    directory: Path
    replicas: Replica
    """final state; of a failed replica the configuration that failed, or its last finite one"""
    failure_times: np.ndarray
    """(R,) fs, NaN for survivors"""
    failure_reasons: tuple[str, ...]
    """in words, one a replica, empty for survivors"""
    ms_per_step_per_replica: float
    """wall time without compilation"""

    @property
    def times(self):
        """(frames,) fs."""
        return self._series[0]

    @property
    def temperatures(self):
        """(frames, R) K, NaN where not alive."""
        return self._series[1]

    @property
    def energies(self):
        """(frames, R) potential energy, eV, NaN where not alive."""
        return self._series[2]

    @property
    def energy_drifts(self):
        """(R,) slopes of `Trajectory.conserved_energies` in eV/ps while alive, by least squares; NaN where there is none."""
        times, energies = self.times[:, None] / 1000, self._series[3]
        known = np.isfinite(energies)
        count = np.maximum(known.sum(0), 1)
        t = np.where(known, times - np.where(known, times, 0).sum(0) / count, 0)
        with np.errstate(invalid="ignore"):
            return (t * np.nan_to_num(energies)).sum(0) / (t * t).sum(0)

    @cached_property
    def _series(self):
        """Read from the folder when they are asked for: the run itself keeps nothing that grows with time."""
        names = ("times", "temperatures", "energies", "conserved_energies")
        columns = [[getattr(piece, name) for name in names] for piece in read_pieces(self.directory)]
        return [np.concatenate(column) for column in zip(*columns, strict=True)]

    @property
    def survived(self):
        """(R,) bool."""
        return np.asarray(self.replicas.status) == Status.ALIVE

    @property
    def positions(self):
        """Final positions (R, N, 3) in angstrom."""
        return np.asarray(self.replicas.dynamics.position)

    @property
    def momenta(self):
        """Final momenta (R, N, 3) in sqrt(amu eV)."""
        return np.asarray(self.replicas.dynamics.momentum)

    def mean_temperatures(self, since=0.0):
        """Mean kinetic temperature (R,) in K over the frames with the replica alive; NaN where it has none left.

        Parameters
        ----------
        since: share of the run to leave out at the beginning, 0.5 for the second half.
        """
        window = self.temperatures[self.times >= since * self.times[-1]]
        frames = np.isfinite(window).sum(0)
        return np.where(frames > 0, np.nansum(window, axis=0) / np.maximum(frames, 1), np.nan)


def simulate(
    energy_fn,
    rule,
    starts,
    directory,
    *,
    temperature,
    time,
    timestep=0.5,
    thermostat=None,
    seed=0,
    frame_interval=20.0,
    frames_per_piece=None,
    uncertainty_limit=None,
    progress=True,
):
    """Run R replicas at constant temperature and stream their frames to ``directory``; or go on where it was stopped.

    Frames are taken at 0, ``frame_interval``, 2 ``frame_interval``, ... A replica that breaks ``rule``, checked at every
    step, is frozen, its geometry kept in ``failures.extxyz``, and the others go on; the run ends early where none is
    left. The random numbers of replica k depend on ``seed`` and k only, not on the other replicas.

    The same call on the same machine, with as many JAX devices, gives the same bits, stopped on the way or not. Every 3 s
    all that the rest of the run follows from goes to a checkpoint: whatever ends the run (Ctrl-C, SIGKILL, power loss),
    the same call goes on from there. One with a longer ``time`` makes the run longer, one with any other difference is
    refused. ``run.log`` in the folder tells what happened. `checkpoint` describes the files.

    The replicas are spread over all of JAX's devices; `devices.use_cores` makes one of every core. Of several processes,
    each of which makes the same call, only the first writes.

    Parameters
    ----------
    energy_fn: positions (N, 3) in angstrom -> energy in eV, in float64, a pure JAX function.
    rule: `robustness.failure_rule` of the molecule; it also knows the species.
    starts: (R, N, 3), angstrom.
    directory: folder of the run, new or with this run in it.
    temperature: K, one for all or one a replica.
    time: ps, a multiple of ``frame_interval``.
    timestep: fs.
    thermostat: `NoseHoover`, the default, or `Langevin`.
    seed: a non-negative integer.
    frame_interval: fs, a multiple of ``timestep``.
    frames_per_piece: frames a file; by default as many as make 8 MB.
    uncertainty_limit: `UncertaintyLimit` that replicas must keep, or None.
    progress: whether to show a progress bar and what goes to the log, on stderr.

    Returns a `SimulationResult`; at once where the run is finished.

    Raises ValueError, in a sentence, where an option is not what it should be or the folder holds another run.
    """
    thermostat = NoseHoover() if thermostat is None else thermostat
    starts = _check_starts(starts, rule.species)
    targets = check_temperatures(temperature, len(starts))
    frame_steps = multiple("frame interval", frame_interval, "timestep", timestep)
    require_positive("a time in ps", time)
    n_frames = multiple("time", 1000 * time, "frame interval", frame_interval)
    check_integer("a seed", seed, 0)
    if frames_per_piece is None:
        frames_per_piece = max(round(PIECE_BYTES / (8 * len(starts) * (3 * len(rule.species) + 5))), 1)
    check_integer("frames per piece", frames_per_piece, 1)
    _check_thermostat(thermostat, rule.species, starts)
    look_steps = n_frames * frame_steps
    if uncertainty_limit is not None:
        look_steps = multiple("uncertainty interval", uncertainty_limit.interval, "timestep", timestep)
    schedule = _Schedule(frame_steps, look_steps, n_frames * frame_steps)
    dynamics = Dynamics(energy_fn, rule, thermostat, timestep)

    with jax.enable_x64(True):
        _check_energy_fn(energy_fn, starts[0])
        directory = output_folder(directory)
        start = partial(jax.jit(jax.vmap(dynamics.start, in_axes=(None, 0, 0, 0))), seed, np.arange(len(starts)))
        begin = RunState(start(starts, targets), np.int64(0), np.float64(0.0))
        advance = _compiled_advance(dynamics, begin.replicas, targets)
        probes = starts + np.random.default_rng(0).uniform(-PROBE_DISPLACEMENT, PROBE_DISPLACEMENT, starts.shape)
        description = {
            "time_ps": float(time),
            "timestep_fs": float(timestep),
            "temperatures_K": targets.tolist(),
            "thermostat": type(thermostat).__name__,
            **{f"thermostat_{name}": float(value) for name, value in vars(thermostat).items()},
            "seed": int(seed),
            "frame_interval_fs": float(frame_interval),
            "frames_per_piece": int(frames_per_piece),
            "uncertainty_limit_eV": uncertainty_limit and float(uncertainty_limit.largest),
            "uncertainty_interval_fs": uncertainty_limit and float(uncertainty_limit.interval),
            "replicas": len(starts),
            "devices": len(jax.devices()),
            "species": " ".join(rule.species),
            "bonds": rule.bonds.tolist(),
            "bond_lengths": rule.lengths.tolist(),
            "near": rule.near.tolist(),
            "held": rule.held.tolist(),
            "starts": starts.tolist(),
            "potential": np.asarray(advance(start(probes, targets), 0)[1].energies).tolist(),
        }
        check_same_run(directory, description)
        first = jax.process_index() == 0
        with (
            owned(directory, "simulation") if first else nullcontext(),
            progress_bar(n_frames, progress and first) as (show, say),
            _deferred_interrupt() as interrupted,
        ):
            found = load_checkpoint(directory, begin)
            meet("all have read what there is")
            if first:
                describe(directory, description)
                if found is None:
                    save_checkpoint(directory, begin)
            state = loaded = found or begin
            per_run = {"species": np.array(rule.species), "masses": masses_of(rule.species), "target_temperatures": targets}
            if first:
                recorder = Recorder(directory, frames_per_piece, per_run, state.step // frame_steps + 1 if state.step else 0)

            def tell(line):
                if first:
                    log(directory, line)
                say(line)

            def record(state, frame):
                frame = jax.device_get(frame)
                if first:
                    recorder.record(times=np.float64(state.step // frame_steps * frame_interval), **frame._asdict())

            def save(state):
                if first:
                    recorder.flush()
                    save_checkpoint(directory, state)

            alive, saved_at = _alive(state.replicas), clock.monotonic()
            if schedule.over(state):
                say(f"finished already: step {state.step}, {alive.sum()} of {len(alive)} replicas alive")
            else:
                tell(f"{'goes on from' if state.step else 'begins at'} step {state.step} of {schedule.last}")
            if state.step == 0:
                record(state, advance(state.replicas, 0)[1])
            for state, frame in _chunks(advance, uncertainty_limit, schedule, loaded):
                before, alive = alive, _alive(state.replicas)
                if (before != alive).any():
                    failures = _failures(dynamics, state.replicas, targets, uncertainty_limit)
                    if first:
                        save_failures(directory, rule.species, failures)
                    for failure in failures:
                        if before[failure["replica"]]:
                            tell(f"replica {failure['replica']} failed: {failure['reason']}")
                if state.step % frame_steps == 0:
                    record(state, frame)
                show(
                    completed=state.step // frame_steps,
                    description=f"simulating, {alive.sum()} of {len(alive)} replicas alive",
                )
                stop = agreed(interrupted())
                if over := schedule.over(state):
                    tell(f"finished at step {state.step}: {alive.sum()} of {len(alive)} replicas alive")
                elif stop:
                    tell(f"stopped by Ctrl-C at step {state.step}; the same command goes on from there")
                if over or stop or clock.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    save(state)
                    saved_at = clock.monotonic()
                if stop:
                    raise KeyboardInterrupt(f"stopped at {state.step * timestep / 1000:g} ps; the frames are in {directory}")
            meet("all is written")

        replicas = jax.device_get(state.replicas)
        reasons = {f["replica"]: f["reason"] for f in _failures(dynamics, replicas, targets, uncertainty_limit)}
    return SimulationResult(
        directory=directory,
        replicas=replicas,
        failure_times=np.where(_alive(replicas), np.nan, replicas.steps * timestep),
        failure_reasons=tuple(reasons.get(k, "") for k in range(len(starts))),
        ms_per_step_per_replica=1000 * state.seconds / (state.step * len(starts)),
    )


class _Schedule(NamedTuple):
    """When something is due, in steps."""

    frame: int
    """between frames"""
    look: int
    """between looks at the uncertainty"""
    last: int

    def over(self, state):
        """Whether the run is at its end, or at a frame with no replica alive."""
        return state.step >= self.last or (state.step % self.frame == 0 and not _alive(state.replicas).any())


def _compiled_advance(dynamics, replicas, targets):
    """A function of replicas and a number of steps that gives what `Dynamics.advance` does, spread over devices."""
    # Every replica is told how many steps: what is spread over devices has one value a replica.
    several = compiled(
        lambda r, targets, steps: dynamics.advance(r, targets, steps[0]), replicas, targets, np.ones(len(targets), int)
    )
    return lambda replicas, steps: several(replicas, targets, np.full(len(targets), steps))


def _chunks(advance, limit, schedule, state):
    """The states of a run on its way to the end, each with its `Frame`: at all frames and looks, else twice a second or so.

    The next steps are asked for before the last are done: no device waits for another one, or for the caller.
    """
    most, began = 1, clock.perf_counter()

    def launched(replicas, step):
        steps = min(most, schedule.frame - step % schedule.frame, schedule.look - step % schedule.look, schedule.last - step)
        return (step + steps, *advance(replicas, steps))

    coming = launched(state.replicas, state.step)
    while not schedule.over(state):
        step, replicas, frame = coming
        if limit and step % schedule.look == 0:
            replicas, frame = advance(agreed(limit.stop(replicas)), 0)
        coming = launched(replicas, step)
        jax.block_until_ready((replicas, frame))
        now = clock.perf_counter()
        spent, began = now - began, now
        # Doubled at most: the first chunks are short, and one may have been held up by something else.
        most = int(agreed(max(1, min(2 * most, int((step - state.step) * CHUNK_SECONDS / spent)))))
        state = RunState(replicas, step, state.seconds + spent)
        yield state, frame


def _alive(replicas):
    return np.asarray(replicas.status) == Status.ALIVE


def _failures(dynamics, replicas, targets, limit):
    """Of every failed replica its number, time in fs, reason in words and geometry (N, 3)."""
    replicas = jax.device_get(replicas)
    state, masses = replicas.dynamics, masses_of(dynamics.rule.species)
    count = dynamics.thermostat.degrees_of_freedom(len(masses))
    deviations, largest = np.full(len(targets), np.nan), np.nan
    if limit:
        deviations, largest = limit.deviations(state.position), limit.largest
    failures = []
    for k in np.flatnonzero(~_alive(replicas)):
        time = float(replicas.steps[k] * dynamics.timestep)
        temperature = kinetic_temperature(state.momentum[k], masses, count)
        reason = failure_reason(
            dynamics.rule, replicas.status[k], state.position[k], time, temperature, targets[k], deviations[k], largest
        )
        failures.append({"replica": int(k), "time": time, "reason": reason, "positions": state.position[k]})
    return failures


def random_displacements(rule, positions, amplitude, replicas, seed=0):
    """Starts (R, N, 3) with every coordinate moved by up to ``amplitude`` either way, uniformly, and the redraws it took.

    A draw with atoms nearer than 0.6 angstrom or a broken bond is drawn again. Start k depends on ``seed`` and k only.

    Parameters
    ----------
    rule: `robustness.failure_rule` of the molecule.
    positions: (N, 3), angstrom.
    amplitude: angstrom.
    replicas: number of starts R.
    seed: a non-negative integer.
    """
    require_positive("an amplitude in angstrom", amplitude)
    check_integer("replicas", replicas, 1)
    check_integer("a seed", seed, 0)
    positions = _check_starts(np.asarray(positions)[None], rule.species)[0]
    draws = [_random_start(rule, positions, amplitude, np.random.default_rng([seed, k])) for k in range(replicas)]
    return np.array([start for start, _ in draws]), sum(redraws for _, redraws in draws)


def stretch_bond(species, positions, i, j, length):
    """A copy of ``positions`` (N, 3) with the bond of atoms i and j ``length`` angstrom long, its smaller side moved."""
    require_positive("a bond length in angstrom", length)
    positions = _check_starts(np.asarray(positions)[None], species)[0]
    bonded = bond_graph(species, positions)
    sides = moved_side(bonded, i, j), moved_side(bonded, j, i)
    molecule = np.isfinite(graph_distances(bonded)[i])
    if not bonded[i, j] or (sides[0] | sides[1] != molecule).any():
        raise ValueError(f"expected a bond outside rings, found none between atoms {i} and {j}; choose two other atoms")
    if sides[0].sum() > sides[1].sum():
        i, j, sides = j, i, sides[::-1]
    axis = positions[j] - positions[i]
    return positions + np.outer(sides[0], (length / np.linalg.norm(axis) - 1) * axis)


def _random_start(rule, positions, amplitude, rng):
    pairs = np.triu_indices(len(positions), 1)
    for redraws in range(MAX_REDRAWS):
        start = positions + rng.uniform(-amplitude, amplitude, size=positions.shape)
        if pair_distances(start)[pairs].min() >= CLOSEST_START and failure_status(rule, start) == Status.ALIVE:
            return start, redraws
    raise ValueError(
        f"expected an amplitude that leaves the molecule whole, found {amplitude:g} angstrom, which broke it in"
        f" {MAX_REDRAWS} draws; take a smaller one"
    )


@contextmanager
def _deferred_interrupt():
    """A function that tells whether Ctrl-C has been pressed, so that it takes effect between frames; twice is at once."""
    pressed = []

    def press(number, stack):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    # Python lets only the main thread have signal handlers, and only it gets Ctrl-C.
    main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGINT, press) if main else None
    try:
        yield lambda: bool(pressed)
    finally:
        if main:
            signal.signal(signal.SIGINT, previous)


def check_integer(what, value, least):
    if not isinstance(value, int | np.integer) or not least <= value < 2**63:
        raise ValueError(f"expected {what} as an integer not below {least}, found {value!r}; correct it")


def multiple(what, whole, of_what, part):
    """How many times ``part`` fits into ``whole``, both in fs."""
    require_positive(f"a {what} in fs", whole)
    require_positive(f"a {of_what} in fs", part)
    count = max(round(whole / part), 1)
    if abs(whole - count * part) > 1e-6 * whole:
        raise ValueError(
            f"expected the {what} to be a multiple of the {of_what} ({part:g} fs), found {whole:g} fs; take {count * part:g} fs"
        )
    return count


def _check_starts(starts, species):
    starts = np.asarray(starts, dtype=np.float64)
    expected = (len(species), 3)
    if starts.ndim != 3 or len(starts) == 0 or starts.shape[1:] != expected or len(species) < 2:
        raise ValueError(
            f"expected starts of shape (replicas, {len(species)}, 3) of at least two atoms, found {starts.shape}; give"
            f" one row for each of the atoms {' '.join(species)}"
        )
    if not np.isfinite(starts).all():
        raise ValueError("expected finite positions in angstrom, found a NaN or infinity; check the geometries")
    return starts


def check_temperatures(temperature, replicas):
    targets = np.array(temperature, dtype=np.float64)
    if targets.shape not in [(), (replicas,)]:
        raise ValueError(
            f"expected one temperature in K or one for each of {replicas} replicas, found shape {targets.shape}; give as"
            " many temperatures as starts"
        )
    if not (np.isfinite(targets) & (targets > 0)).all():
        raise ValueError(f"expected temperatures in K above zero, found {temperature!r}; give positive numbers")
    return np.array(np.broadcast_to(targets, replicas))


def _check_thermostat(thermostat, species, starts):
    if not isinstance(thermostat, NoseHoover | Langevin):
        raise ValueError(f"expected NoseHoover() or Langevin() as thermostat, found {thermostat!r}; choose one")
    if isinstance(thermostat, Langevin) or len(species) == 2:
        return
    for k, start in enumerate(starts):
        moments = np.linalg.eigvalsh(np.asarray(inertia(start, masses_of(species))))
        if moments[0] < LINEAR * moments[-1]:
            raise ValueError(
                f"expected bent starts for a Nose-Hoover chain, found start {k} linear; use Langevin dynamics, which"
                " thermalises the angular momentum that a linear molecule's bends carry"
            )


def _check_energy_fn(energy_fn, start):
    energy = jax.eval_shape(energy_fn, jax.ShapeDtypeStruct(start.shape, jnp.float64))
    if getattr(energy, "shape", None) != () or energy.dtype != jnp.float64:
        raise ValueError(f"expected an energy function that returns a float64 scalar in eV, found {energy}; correct it")
