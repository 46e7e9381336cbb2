"""Many replicas of one molecule at constant temperature, by jax-md under jit and vmap.

The ensemble of an isolated molecule. A Nose-Hoover chain multiplies all momenta by one factor, so total momentum and
angular momentum, once zero, stay zero: they are removed at the start, and the 3N-6 degrees of freedom that are left
hold kT/2 each. (jax-md alone counts 3N and leaves the angular momentum, which a chain never thermalises.) Langevin
dynamics thermalises translation and rotation too and counts 3N. With the angular momentum J = 0 geometries have the
density exp(-V/kT) / sqrt(det I), I the tensor of inertia, with Langevin dynamics exp(-V/kT); the difference is the
centrifugal stretching.

Units outside: K, ps and fs as said, angstrom, amu, eV. Inside: eV, angstrom, amu, and their unit of time.
"""

import signal
import threading
import time as clock
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_masses, atomic_numbers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from iqagp_jax.geometry import bond_graph, graph_distances, moved_side, pair_distances
from iqagp_jax.robustness import FailureRule, Status, failure_reason, failure_status, hot_steps
from iqagp_jax.trajectory import prepare_directory, recording
from iqagp_jax.units import BOLTZMANN, TIME_UNIT

CLOSEST_START = 0.6
"""Random starts with two atoms nearer than this (angstrom) are drawn again."""

MAX_REDRAWS = 1000
"""Draws of one random start before its amplitude is refused."""

LINEAR = 1e-4
"""A start is linear if its smallest moment of inertia is below this share of its largest."""


@dataclass(frozen=True)
class NoseHoover:
    """Nose-Hoover chain of three thermostats (doi:10.1080/00268979600100761), momentum and angular momentum zero.

    ``time`` (fs) is tau in the chain masses Q_1 = (3N-6) kT tau^2, Q_2 = Q_3 = kT tau^2; the chain swings with a period of
    sqrt(2) pi tau. The default, 44 fs or 750 1/cm, lies amid the vibrations it must couple to: the temperatures of
    single replicas of a model molecule of nine atoms, averaged over 18 ps, scatter by 0.8%, with 20 fs by 1.0% and
    with 50 fs by 2.4%.

    As velocity Verlet holds <p^2/m> = kT at the end of its steps, <m w^2 x^2> of a mode of angular frequency w is too
    large by (w dt)^2 / 4: 3% for O-H with steps of 0.5 fs.
    """

    time: float = 10.0

    def __post_init__(self):
        _require_positive("a thermostat time in fs", self.time)

    def degrees_of_freedom(self, n_atoms):
        """3N-6, and 1 for a diatomic.

        Not 3N-5 for a linear molecule: once it bends, its angular momentum about its axis is a third constant, zero.
        """
        return max(3 * n_atoms - 6, 1)

    def initial_momenta(self, key, positions, masses, kT):
        """Maxwell-Boltzmann momenta (N, 3) without momentum and angular momentum: a sample of what is left."""
        return remove_rigid_motion(positions, _maxwell_boltzmann(key, masses, kT), masses)

    def integrator(self, energy_fn, timestep, kT):
        """jax-md's (init, apply); ``timestep`` in internal units, ``kT`` a float64 array, lest chain masses be float32."""
        from jax_md import simulate, space

        shift = space.free()[1]
        chain = {"chain_length": 3, "chain_steps": 1, "sy_steps": 1, "tau": self.time / TIME_UNIT}
        init, apply = simulate.nvt_nose_hoover(energy_fn, shift, timestep, kT, **chain)

        def init_isolated(key, positions, mass, momenta):
            state = init(key, positions, mass=mass, momenta=momenta)
            count = self.degrees_of_freedom(len(positions))
            return state.set(chain=state.chain.set(degrees_of_freedom=count))

        return init_isolated, apply


@dataclass(frozen=True)
class Langevin:
    """BAOAB Langevin dynamics (doi:10.1063/1.4802990) with ``friction`` in 1/ps; translation and rotation thermalise.

    Harmonic modes have the exact distribution of positions at any timestep; their kinetic temperature reads low by
    (w dt)^2 / 4, w the angular frequency.
    """

    friction: float = 10.0

    def __post_init__(self):
        _require_positive("a friction in 1/ps", self.friction)

    def degrees_of_freedom(self, n_atoms):
        """3N: the noise also drives the centre of mass and the rotation."""
        return 3 * n_atoms

    def initial_momenta(self, key, positions, masses, kT):
        """Maxwell-Boltzmann momenta (N, 3)."""
        return _maxwell_boltzmann(key, masses, kT)

    def integrator(self, energy_fn, timestep, kT):
        """jax-md's (init, apply); ``timestep`` in internal units."""
        from jax_md import simulate, space

        gamma = self.friction * TIME_UNIT / 1000
        return simulate.nvt_langevin(energy_fn, space.free()[1], timestep, kT, gamma)


class Replica(NamedTuple):
    """All that the future of a replica depends on, as a pytree; with a leading axis (R,) in each leaf for R replicas."""

    dynamics: Any
    """jax-md's state: position, momentum, force, mass, and chain or random key"""
    steps: jax.Array
    """steps made; stands still after a failure"""
    hot_steps: jax.Array
    """steps on end above three times the target temperature"""
    status: jax.Array
    """`robustness.Status`"""


class Frame(NamedTuple):
    """What is recorded of a replica; NaN where it is not alive."""

    positions: jax.Array
    energies: jax.Array
    temperatures: jax.Array
    kinetic_energies: jax.Array
    alive: jax.Array


@dataclass(frozen=True)
class Dynamics:
    """The equations of motion of one replica: pure functions of a `Replica`, to be vmapped and jitted under x64."""

    energy_fn: Callable
    rule: FailureRule
    thermostat: NoseHoover | Langevin
    timestep: float
    """fs"""

    def __post_init__(self):
        # jax-md compiles for seconds when it is imported: not where nothing is simulated, and not while anything is traced.
        import jax_md  # noqa: F401

    def start(self, seed, index, positions, target):
        """Replica number ``index`` at ``positions`` (N, 3) with momenta drawn at ``target`` K."""
        momenta_key, noise_key = jax.random.split(jax.random.fold_in(jax.random.PRNGKey(seed), index))
        masses = jnp.asarray(masses_of(self.rule.species))
        momenta = self.thermostat.initial_momenta(momenta_key, positions, masses, BOLTZMANN * target)
        init, _ = self._integrator(target)
        dynamics = init(noise_key, positions, mass=masses, momenta=momenta)
        return Replica(dynamics, jnp.zeros((), int), jnp.zeros((), int), jnp.zeros((), jnp.int32))

    def step(self, replica, target):
        """The replica one timestep later; a replica that has failed as it is."""
        _, apply = self._integrator(target)
        moved = apply(replica.dynamics)
        finite = jnp.isfinite(jnp.stack([moved.position, moved.momentum, moved.force])).all()
        moved = _where(finite, moved, replica.dynamics)
        steps = replica.steps + 1
        elapsed = steps * self.timestep
        hot = hot_steps(replica.hot_steps, self.temperature(moved), target, elapsed)
        status = failure_status(self.rule, moved.position, elapsed, hot * self.timestep)
        status = jnp.where(finite, status, Status.NON_FINITE.value)
        return _where(replica.status == Status.ALIVE.value, Replica(moved, steps, hot, status), replica)

    def observe(self, replica):
        """What is recorded of a replica."""
        state = replica.dynamics
        energy = self.energy_fn(state.position)
        parts = kinetic_energy_parts(state.position, state.momentum, state.mass[:, 0])
        alive = replica.status == Status.ALIVE.value
        values = (state.position, energy, self.temperature(state), parts)
        return Frame(*(jnp.where(alive, value, jnp.nan) for value in values), alive)

    def temperature(self, state):
        """Kinetic temperature in K of a jax-md state."""
        count = self.thermostat.degrees_of_freedom(len(state.position))
        return kinetic_temperature(state.momentum, state.mass[:, 0], count)

    def _integrator(self, target):
        return self.thermostat.integrator(self.energy_fn, self.timestep / TIME_UNIT, BOLTZMANN * target)


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
    times: np.ndarray
    """(frames,) fs"""
    temperatures: np.ndarray
    """(frames, R) K, NaN where not alive"""
    energies: np.ndarray
    """(frames, R) potential energy, eV, NaN where not alive"""
    ms_per_step_per_replica: float
    """wall time without compilation"""

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
    frames_per_piece=100,
    progress=True,
):
    """Run R replicas at constant temperature and stream their frames to ``directory``.

    Frames are taken at 0, ``frame_interval``, 2 ``frame_interval``, ... A replica that breaks ``rule``, checked at every
    step, is frozen and the others go on; the run ends early where none is left. Ctrl-C, which takes effect after a
    frame, and errors leave all frames up to then on disk. The same call on the same machine gives the same bits. The
    random numbers of replica k depend on ``seed`` and k only, not on the other replicas.

    Parameters
    ----------
    energy_fn: positions (N, 3) in angstrom -> energy in eV, in float64, a pure JAX function.
    rule: `robustness.failure_rule` of the molecule; it also knows the species.
    starts: (R, N, 3), angstrom.
    directory: folder for ``trajectory-NNNN.npz``, without a trajectory so far.
    temperature: K, one for all or one a replica.
    time: ps, a multiple of ``frame_interval``.
    timestep: fs.
    thermostat: `NoseHoover`, the default, or `Langevin`.
    seed: a non-negative integer.
    frame_interval: fs, a multiple of ``timestep``.
    frames_per_piece: frames a file.
    progress: whether to show a progress bar, on stderr.

    Returns a `SimulationResult`.

    Raises ValueError, in a sentence, where an option is not what it should be.
    """
    thermostat = NoseHoover() if thermostat is None else thermostat
    starts = _check_starts(starts, rule.species)
    targets = _check_temperatures(temperature, len(starts))
    steps_per_frame = _multiple("frame interval", frame_interval, "timestep", timestep)
    _require_positive("a time in ps", time)
    n_frames = _multiple("time", 1000 * time, "frame interval", frame_interval)
    _check_integer("a seed", seed, 0)
    _check_integer("frames per piece", frames_per_piece, 1)
    _check_thermostat(thermostat, rule.species, starts)
    dynamics = Dynamics(energy_fn, rule, thermostat, timestep)

    def advance(replicas, targets):
        step = jax.vmap(dynamics.step)
        return jax.lax.scan(lambda r, _: (step(r, targets), None), replicas, length=steps_per_frame)[0]

    with jax.enable_x64(True):
        _check_energy_fn(energy_fn, starts[0])
        directory = prepare_directory(directory)
        start = jax.vmap(dynamics.start, in_axes=(None, 0, 0, 0))
        replicas = jax.jit(start)(seed, np.arange(len(starts)), starts, targets)
        observe = jax.jit(jax.vmap(dynamics.observe)).lower(replicas).compile()
        advance = jax.jit(advance).lower(replicas, targets).compile()

        per_run = {"species": np.array(rule.species), "masses": masses_of(rule.species), "target_temperatures": targets}
        times, temperatures, energies = [], [], []
        record_frames = recording(directory, frames_per_piece, per_run)
        with _deferred_interrupt() as interrupted, _progress_bar(progress, n_frames) as show, record_frames as record:
            began = clock.perf_counter()
            for k in range(n_frames + 1):
                if k:
                    replicas = advance(replicas, targets)
                frame = jax.device_get(observe(replicas))
                record(times=np.float64(k * frame_interval), **frame._asdict())
                times.append(k * frame_interval)
                temperatures.append(frame.temperatures)
                energies.append(frame.energies)
                show(k, frame.alive)
                if interrupted():
                    raise KeyboardInterrupt(f"stopped at {k * frame_interval / 1000:g} ps; the frames are in {directory}")
                if not frame.alive.any():
                    break
        milliseconds = 1000 * (clock.perf_counter() - began)
        final_temperatures = np.asarray(jax.vmap(dynamics.temperature)(replicas.dynamics))

    replicas = jax.device_get(replicas)
    elapsed = replicas.steps * timestep
    facts = zip(replicas.status, replicas.dynamics.position, elapsed, final_temperatures, targets, strict=True)
    return SimulationResult(
        directory=directory,
        replicas=replicas,
        failure_times=np.where(replicas.status == Status.ALIVE, np.nan, elapsed),
        failure_reasons=tuple(failure_reason(rule, *fact) for fact in facts),
        times=np.array(times),
        temperatures=np.array(temperatures),
        energies=np.array(energies),
        ms_per_step_per_replica=milliseconds / (k * steps_per_frame * len(starts)),
    )


def masses_of(species):
    """Atomic masses (N,) in amu of chemical symbols, natural abundance."""
    return atomic_masses[[atomic_numbers[s] for s in species]]


def kinetic_temperature(momenta, masses, degrees_of_freedom):
    """T = 2 K / (f k), K = sum_i p_i^2 / 2 m_i, in K; momenta (N, 3) in sqrt(amu eV), masses (N,) in amu."""
    return (momenta**2 / masses[:, None]).sum() / (degrees_of_freedom * BOLTZMANN)


def kinetic_energy_parts(positions, momenta, masses):
    """Translational, rotational and vibrational kinetic energy (3,) in eV; like all JAX, float64 under x64 only.

    K_trans = P^2 / 2M, K_rot = L I^-1 L / 2 about the centre of mass, K_vib = K - K_trans - K_rot. At temperature T they
    hold 3, 3 (2 for a diatomic) and the other degrees of freedom times kT/2 where they are thermalised.

    Parameters
    ----------
    positions: (N, 3), angstrom.
    momenta: (N, 3), sqrt(amu eV).
    masses: (N,), amu.
    """
    total = momenta.sum(0)
    momentum, omega = _angular_motion(positions, momenta, masses)
    kinetic = (momenta**2 / masses[:, None]).sum() / 2
    translation, rotation = total @ total / (2 * masses.sum()), omega @ momentum / 2
    return jnp.stack([translation, rotation, kinetic - translation - rotation])


def remove_rigid_motion(positions, momenta, masses):
    """Momenta (N, 3) without total momentum and without angular momentum about the centre of mass.

    p_i - m_i (V + omega x r_i) is the projection orthogonal, in the metric of the kinetic energy, to rigid motions, so
    Maxwell-Boltzmann momenta become a Maxwell-Boltzmann sample of the 3N-6 degrees of freedom left.
    """
    _, omega = _angular_motion(positions, momenta, masses)
    velocity = momenta.sum(0) / masses.sum()
    return momenta - masses[:, None] * (velocity + jnp.cross(omega, _centred(positions, masses)))


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
    _require_positive("an amplitude in angstrom", amplitude)
    _check_integer("replicas", replicas, 1)
    _check_integer("a seed", seed, 0)
    positions = _check_starts(np.asarray(positions)[None], rule.species)[0]
    draws = [_random_start(rule, positions, amplitude, np.random.default_rng([seed, k])) for k in range(replicas)]
    return np.array([start for start, _ in draws]), sum(redraws for _, redraws in draws)


def stretch_bond(species, positions, i, j, length):
    """A copy of ``positions`` (N, 3) with the bond of atoms i and j ``length`` angstrom long, its smaller side moved."""
    _require_positive("a bond length in angstrom", length)
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


def _maxwell_boltzmann(key, masses, kT):
    return jnp.sqrt(masses * kT)[:, None] * jax.random.normal(key, (len(masses), 3), dtype=jnp.float64)


def _centred(positions, masses):
    return positions - masses @ positions / masses.sum()


def _inertia(positions, masses):
    """Tensor of inertia about the centre of mass, (3, 3)."""
    r = _centred(positions, masses)
    return jnp.einsum("i,ik,ik", masses, r, r) * jnp.eye(3) - jnp.einsum("i,ij,ik", masses, r, r)


def _angular_motion(positions, momenta, masses):
    """Angular momentum L about the centre of mass and angular velocity I^+ L, (3,) each.

    The pseudo-inverse leaves out the rotation about the axis of a linear molecule, which is none.
    """
    momentum = jnp.cross(_centred(positions, masses), momenta).sum(0)
    return momentum, jnp.linalg.pinv(_inertia(positions, masses), rtol=1e-10, hermitian=True) @ momentum


def _where(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


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


@contextmanager
def _progress_bar(visible, n_frames):
    """A function of frame number and alive (R,) that moves the bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not visible) as bar:
        task = bar.add_task("simulating", total=n_frames)
        yield lambda k, alive: bar.update(
            task, completed=k, description=f"simulating, {alive.sum()} of {len(alive)} replicas alive"
        )


def _require_positive(what, value):
    if not isinstance(value, Real) or not 0 < value < np.inf:
        raise ValueError(f"expected {what} above zero, found {value!r}; give a positive number")


def _check_integer(what, value, least):
    if not isinstance(value, int | np.integer) or not least <= value < 2**63:
        raise ValueError(f"expected {what} as an integer not below {least}, found {value!r}; correct it")


def _multiple(what, whole, of_what, part):
    """How many times ``part`` fits into ``whole``, both in fs."""
    _require_positive(f"a {what} in fs", whole)
    _require_positive(f"a {of_what} in fs", part)
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


def _check_temperatures(temperature, replicas):
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
        moments = np.linalg.eigvalsh(np.asarray(_inertia(start, masses_of(species))))
        if moments[0] < LINEAR * moments[-1]:
            raise ValueError(
                f"expected bent starts for a Nose-Hoover chain, found start {k} linear; use Langevin dynamics, which"
                " thermalises the angular momentum that a linear molecule's bends carry"
            )


def _check_energy_fn(energy_fn, start):
    energy = jax.eval_shape(energy_fn, jax.ShapeDtypeStruct(start.shape, jnp.float64))
    if getattr(energy, "shape", None) != () or energy.dtype != jnp.float64:
        raise ValueError(f"expected an energy function that returns a float64 scalar in eV, found {energy}; correct it")
