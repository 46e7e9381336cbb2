"""Many replicas of one system at constant temperature, under jit and vmap: runs that go on after any stop.

`ensembles` has the equations of motion, `replicas` drives many of them, `record` and `folder` keep what comes out. Units: K, ps
and fs as said, angstrom, eV.
"""

import time as clock
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.dynamics import soundness
from iqagp_jax.dynamics.checks import check_integer, check_starts, check_temperatures, multiple, require_positive
from iqagp_jax.dynamics.ensembles import Dynamics, Langevin, NoseHoover, bound_energy, inertia
from iqagp_jax.dynamics.folder import (
    check_same_run,
    describe,
    log,
    look,
    read_checkpoint,
    read_description,
    save_checkpoint,
)
from iqagp_jax.dynamics.record import Record, Run, description_of, rule_of
from iqagp_jax.dynamics.replicas import Driver, RunState, Schedule, alive
from iqagp_jax.dynamics.trajectory import Recorder
from iqagp_jax.machine.devices import agreed, meet
from iqagp_jax.machine.files import output_folder
from iqagp_jax.machine.interrupt import deferred_interrupt
from iqagp_jax.machine.lock import owned
from iqagp_jax.machine.progress import progress_bar
from iqagp_jax.potential import Bound, Potential, bind
from iqagp_jax.system.failure import FailureRule, Status
from iqagp_jax.system.system import System

LINEAR = 1e-4
"""A start is linear if its smallest moment of inertia is below this share of its largest."""

CHECKPOINT_SECONDS = 3.0
"""Wall time between two checkpoints."""

PIECE_BYTES = 8e6
"""Size of a trajectory piece where the number of its frames is not given."""

FEWEST, MOST_CALLS = 10, 500
"""Training geometries below which their energies tell no range, and calls of the potential in which to find it."""

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

    def deviations(self, positions: Any) -> np.ndarray:
        """Standard deviations (R,) in eV at positions (R, N, 3)."""
        return np.sqrt(np.asarray(self.variance(positions)))

    def stop(self, replicas):
        """The replicas, those stopped whose energy is too uncertain."""
        status = np.asarray(replicas.status)
        certain = self.deviations(replicas.dynamics.position) <= self.largest
        return replicas._replace(status=np.where(certain | (status != Status.ALIVE), status, np.int32(Status.UNCERTAIN)))


def simulate(
    potential: Any,
    system: System | FailureRule,
    starts: Any,
    directory: str | Path,
    *,
    temperature: Any,
    time: float,
    timestep: float = 0.5,
    thermostat: NoseHoover | Langevin | None = None,
    seed: int = 0,
    frame_interval: float = 20.0,
    frames_per_piece: int | None = None,
    uncertainty_limit: UncertaintyLimit | None = None,
    progress: bool = True,
    kinds: Sequence[str] | None = None,
    dtype: Any = None,
    model: dict[str, str] | None = None,
    momenta: bool = False,
) -> Run:
    """Run R replicas at constant temperature and stream their frames to ``directory``; or go on where it was stopped.

    Frames are taken at 0, ``frame_interval``, 2 ``frame_interval``, ... A replica that breaks the failure rule, checked at
    every step, is frozen, its geometry kept in ``failures.extxyz``, and the others go on; the run ends early where none is
    left. The random numbers of replica k depend on ``seed`` and k only, not on the other replicas.

    The same call on the same machine, with as many JAX devices, gives the same bits, stopped on the way or not. Every 3 s
    all that the rest of the run follows from goes to a checkpoint: whatever ends the run (Ctrl-C, SIGKILL, power loss),
    the same call goes on from there. One with a longer ``time`` makes the run longer, one with any other difference is
    refused. ``run.log`` in the folder tells what happened. `folder` describes the files.

    The replicas are spread over all of JAX's devices; `devices.use_cores` makes one of every core. Of several processes,
    each of which makes the same call, only the first writes.

    Parameters
    ----------
    potential: a `Potential` or what keeps the smaller contract, see `potential_of`; a `Bound`; or an energy function,
        positions (N, 3) in angstrom -> energy in eV, in float64, a pure JAX function.
    system: `System` of the atoms, whose positions at rest make the failure rule; or a `failure_rule`, which knows the species.
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
    kinds: names (R,) of the kinds of start, to be kept with the run.
    dtype: of the arithmetic within a potential that is not bound yet, where it has a choice; float64 by default.
    model: where the potential came from, to be kept with the run.
    momenta: whether every frame keeps them, for spectra and for exports with velocities; the folder becomes twice as large.

    Returns the `Run`; at once where it is finished. Warns of its `Run.concerns`, each a reason not to believe it.

    Raises ValueError, in a sentence, where an option is not what it should be or the folder holds another run.
    """
    thermostat = NoseHoover() if thermostat is None else thermostat
    starts = check_starts(starts, _species(system))
    targets = check_temperatures(temperature, len(starts))
    schedule = _schedule(time, timestep, frame_interval, uncertainty_limit)
    check_integer("a seed", seed, 0)
    if frames_per_piece is None:
        numbers = (6 if momenta else 3) * starts.shape[1] + 5
        frames_per_piece = max(round(PIECE_BYTES / (8 * len(starts) * numbers)), 1)
    check_integer("frames per piece", frames_per_piece, 1)
    _check_kinds(kinds, len(starts))
    look(directory)

    with jax.enable_x64(True):
        atoms, rule, told = _atoms(system, potential, starts, Path(directory))
        _check_thermostat(thermostat, atoms, starts)
        bound = _bound(potential, atoms, dtype, np.concatenate([starts, probes(starts)]))
        folder = output_folder(directory)
        dynamics = Dynamics(bound, atoms, thermostat, timestep, rule)
        start = partial(jax.jit(jax.vmap(dynamics.start, in_axes=(None, 0, 0, 0))), seed, np.arange(len(starts)))
        driver = Driver(dynamics, targets, start(starts, targets))
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
            "momenta": True if momenta else None,  # as where folders of before 2026-12 do not tell
            **description_of(rule),
            **told,
            **({} if kinds is None else {"kinds": [str(kind) for kind in kinds]}),
            **({} if dtype is None else {"precision": np.dtype(dtype).name}),
            **({} if model is None else {"model": model}),
            "shortest_period_fs": _shortest_period(start, atoms, targets),
            "training_energies_eV": _training_energies(potential, driver),
            "starts": starts.tolist(),
            "potential": np.asarray(driver.advance(start(probes(starts), targets), 0)[1].energies).tolist(),
        }
        check_same_run(folder, description)
        first = jax.process_index() == 0
        with owned(folder, "simulation") if first else nullcontext():
            driver, state = _opened(folder, driver, description if first else None)
            over = schedule.over(state)
            if uncertainty_limit and not over:
                # What an uncertainty needs may take minutes: now, while Ctrl-C is at once.
                uncertainty_limit.deviations(starts)
            with progress_bar(schedule.last // schedule.frame, progress and first) as (show, say):
                recorder = None
                if first:
                    per_run = {"species": np.array(rule.species), "masses": atoms.masses, "target_temperatures": targets}
                    frames = state.step // schedule.frame + 1 if state.step else 0
                    recorder = Recorder(folder, frames_per_piece, per_run, frames)
                record = Record(folder, rule.species, recorder, say, momenta)
                with deferred_interrupt() as interrupted:
                    _drive(driver, state, schedule, frame_interval, uncertainty_limit, record, show, interrupted)
            meet("all is written")
            run = Run.open(folder)
            if first and not over:
                for sentence in run.concerns:
                    log(folder, f"warning: {sentence}")
    if first:
        soundness.warn(run)
    return run


def probes(starts: np.ndarray) -> np.ndarray:
    """Geometries (R, N, 3) near the starts (R, N, 3), whose energies tell one potential from another."""
    return starts + np.random.default_rng(0).uniform(-PROBE_DISPLACEMENT, PROBE_DISPLACEMENT, starts.shape)


def _shortest_period(start: Callable, atoms: System, targets: np.ndarray) -> float | None:
    """Of a vibration of the potential where the system rests, in fs, by the forces that replicas begin with."""
    return soundness.shortest_period(
        lambda positions: start(positions, targets).dynamics.force, atoms.positions, atoms.masses, len(targets)
    )


def _training_energies(potential: Any, driver: Driver) -> list[float] | None:
    """Lowest and highest energy in eV that a potential gives to the geometries that it learned, if it tells at least ten."""
    learned = getattr(potential, "train_positions", None)
    if learned is None or len(learned) < FEWEST:
        return None
    like, replicas = driver.like.dynamics, len(driver.targets)
    chosen = learned[np.linspace(0, len(learned) - 1, min(len(learned), MOST_CALLS * replicas)).astype(int)]
    found = []
    for k in range(0, len(chosen), replicas):
        there = like.set(position=np.resize(chosen[k : k + replicas], like.position.shape))
        found.append(np.asarray(driver.advance(driver.like._replace(dynamics=there), 0)[1].energies))
    return [float(np.nanmin(found)), float(np.nanmax(found))] if np.isfinite(found).any() else None


def _drive(
    driver: Driver,
    begin: RunState,
    schedule: Schedule,
    frame_interval: float,
    limit: UncertaintyLimit | None,
    record: Record,
    show: Callable[..., Any],
    interrupted: Callable[[], bool],
) -> None:
    """Drive the replicas to the end of the run, or until Ctrl-C, and record what comes."""
    now, saved_at = alive(begin.replicas), clock.monotonic()
    if schedule.over(begin):
        record.say(f"finished already: step {begin.step}, {now.sum()} of {len(now)} replicas alive")
    else:
        record.tell(f"{'goes on from' if begin.step else 'begins at'} step {begin.step} of {schedule.last}")
    if begin.step == 0:
        record.frame(0.0, driver.advance(begin.replicas, 0)[1])
    for state, frame in driver.chunks(limit, schedule, begin):
        before, now = now, alive(state.replicas)
        if (before != now).any():
            failures = driver.failures(state.replicas, limit)
            record.failures(failures)
            for failure in failures:
                if before[failure["replica"]]:
                    record.tell(f"replica {failure['replica']} failed: {failure['reason']}")
        if state.step % schedule.frame == 0:
            record.frame(state.step // schedule.frame * frame_interval, frame)
        show(completed=state.step // schedule.frame, description=f"simulating, {now.sum()} of {len(now)} replicas alive")
        stop = agreed(interrupted())
        if over := schedule.over(state):
            record.tell(f"finished at step {state.step}: {now.sum()} of {len(now)} replicas alive")
        elif stop:
            record.tell(f"stopped by Ctrl-C at step {state.step}; the same command goes on from there")
        if over or stop or clock.monotonic() - saved_at > CHECKPOINT_SECONDS:
            record.checkpoint(state)
            saved_at = clock.monotonic()
        if stop:
            at = state.step * driver.dynamics.timestep / 1000
            raise KeyboardInterrupt(f"stopped at {at:g} ps; the frames are in {record.directory}")


def _opened(directory: Path, driver: Driver, description: dict[str, Any] | None) -> tuple[Driver, RunState]:
    """The state of the run in a folder, which is begun there if need be; all but the first process have no description."""
    begin = RunState(driver.like, np.int64(0), np.float64(0.0))
    found = read_checkpoint(directory)
    meet("all have read what there is")
    if found is not None:
        driver, begin = driver.resumed(begin, found)
    if description is not None:
        describe(directory, description)
        if found is None:
            save_checkpoint(directory, begin)
    return driver, begin


def _species(system: System | FailureRule) -> tuple[str, ...]:
    if not isinstance(system, System | FailureRule):
        found = type(system).__name__
        raise ValueError(f"expected a System or a failure rule, found {found}; give System.of(species, positions)")
    return system.species


def _atoms(
    given: System | FailureRule, potential: Any, starts: np.ndarray, directory: Path
) -> tuple[System, FailureRule, dict[str, Any]]:
    """The system, when a replica has failed, and what a description tells of both beside the rule."""
    there = read_description(directory)
    # A run that began with an older rule, before 2026-12 perhaps of the best training geometry, goes on with it.
    began = there is not None and "coordination" not in there and there["species"] == " ".join(given.species)
    if isinstance(given, FailureRule):
        given = replace(given, coordination=None) if began else given
        # A potential of one molecule knows its charge, the rule does not.
        known = getattr(potential, "system", None)
        state = (known.charge, known.spin) if isinstance(known, System) else (0, 0)
        return System(given.species, starts[0], *state, molecules=given.molecules), given, {}
    cell = None if given.cell is None else given.cell.tolist()
    told = {"charge": given.charge, "spin": given.spin, "molecules": list(given.molecules), "cell": cell}
    if began and "at_rest" not in there:
        return given, rule_of(there), told
    rule = replace(given.failure_rule, coordination=None) if began else given.failure_rule
    return given, rule, told | {"at_rest": given.positions.tolist()}


def _bound(potential: Any, system: System, dtype: Any, geometries: np.ndarray) -> Bound:
    """Any of the kinds of potential made ready, a potential with room for ``geometries`` (B, N, 3)."""
    if isinstance(potential, Potential) or hasattr(potential, "reference"):
        bound, _ = bind(potential, system, np.float64 if dtype is None else dtype)
        _check_energy(lambda r: bound.energy_and_gradient(r, bound.aux)[0][0], geometries[0])
        return bound if bound.enlarged is None else replace(bound, aux=bound.enlarged(geometries))
    if dtype is not None:
        raise ValueError("expected a potential that is not bound yet where a dtype is asked for; give one, or leave dtype out")
    if isinstance(potential, Bound):
        return potential
    _check_energy(potential, geometries[0])
    return bound_energy(potential)


def _check_energy(energy_fn: Callable, positions: np.ndarray) -> None:
    energy = jax.eval_shape(energy_fn, jax.ShapeDtypeStruct(positions.shape, jnp.float64))
    if getattr(energy, "shape", None) != () or energy.dtype != jnp.float64:
        raise ValueError(f"expected an energy function that returns a float64 scalar in eV, found {energy}; correct it")


def _schedule(time: float, timestep: float, frame_interval: float, limit: UncertaintyLimit | None) -> Schedule:
    frame_steps = multiple("frame interval", frame_interval, "timestep", timestep)
    require_positive("a time in ps", time)
    last = multiple("time", 1000 * time, "frame interval", frame_interval) * frame_steps
    look = multiple("uncertainty interval", limit.interval, "timestep", timestep) if limit else last
    return Schedule(frame_steps, look, last)


def _check_kinds(kinds: Sequence[str] | None, replicas: int) -> None:
    if kinds is not None and (isinstance(kinds, str) or len(kinds) != replicas):
        raise ValueError(f"expected the name of a kind of start for each of {replicas} replicas, found {kinds!r}; correct them")


def _check_thermostat(thermostat: Any, system: System, starts: np.ndarray) -> None:
    if not isinstance(thermostat, NoseHoover | Langevin):
        raise ValueError(f"expected NoseHoover() or Langevin() as thermostat, found {thermostat!r}; choose one")
    if isinstance(thermostat, Langevin) or len(system) == 2 or not system.is_alone:
        return
    for k, start in enumerate(starts):
        moments = np.linalg.eigvalsh(np.asarray(inertia(start, system.masses)))
        if moments[0] < LINEAR * moments[-1]:
            raise ValueError(
                f"expected bent starts for a Nose-Hoover chain, found start {k} linear; use Langevin dynamics, which"
                " thermalises the angular momentum that a linear molecule's bends carry"
            )
