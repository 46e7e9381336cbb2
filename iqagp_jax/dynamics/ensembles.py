"""Equations of motion of replicas of one molecule at constant temperature: pure functions of a `Replica`, by jax-md.

The ensemble of an isolated molecule. A Nose-Hoover chain multiplies all momenta by one factor, so total momentum and
angular momentum, once zero, stay zero: they are removed at the start, and the 3N-6 degrees of freedom that are left
hold kT/2 each. (jax-md alone counts 3N and leaves the angular momentum, which a chain never thermalises.) Langevin
dynamics thermalises translation and rotation too and counts 3N. With the angular momentum J = 0 geometries have the
density exp(-V/kT) / sqrt(det I), I the tensor of inertia, with Langevin dynamics exp(-V/kT); the difference is the
centrifugal stretching.

Units outside: K, ps and fs as said, angstrom, amu, eV. Inside: eV, angstrom, amu, and their unit of time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.system.elements import masses_of
from iqagp_jax.system.failure import FailureRule, Status, failure_status, hot_steps
from iqagp_jax.units import BOLTZMANN, TIME_UNIT


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
        require_positive("a thermostat time in fs", self.time)

    def degrees_of_freedom(self, n_atoms):
        """3N-6, and 1 for a diatomic.

        Not 3N-5 for a linear molecule: once it bends, its angular momentum about its axis is a third constant, zero.
        """
        return max(3 * n_atoms - 6, 1)

    def initial_momenta(self, key, positions, masses, kT):
        """Maxwell-Boltzmann momenta (N, 3) without momentum and angular momentum: a sample of what is left."""
        return remove_rigid_motion(positions, _maxwell_boltzmann(key, masses, kT), masses)

    def integrator(self, energy_or_forces, timestep, kT):
        """jax-md's (init, apply); ``timestep`` in internal units, ``kT`` a float64 array, lest chain masses be float32."""
        from jax_md import simulate, space

        shift = space.free()[1]
        chain = {"chain_length": 3, "chain_steps": 1, "sy_steps": 1, "tau": self.time / TIME_UNIT}
        init, apply = simulate.nvt_nose_hoover(energy_or_forces, shift, timestep, kT, **chain)

        def init_isolated(key, positions, mass, momenta):
            state = init(key, positions, mass=mass, momenta=momenta)
            count = self.degrees_of_freedom(len(positions))
            return state.set(chain=state.chain.set(degrees_of_freedom=count))

        return init_isolated, apply

    def bath_energy(self, state, kT):
        """Energy of the chain in eV, sum_k p_k^2 / 2 Q_k + kT (f xi_1 + xi_2 + xi_3): with the molecule's it is conserved."""
        chain = state.chain
        count = jnp.ones_like(chain.position).at[0].set(self.degrees_of_freedom(len(state.position)))
        return (chain.momentum**2 / (2 * chain.mass) + kT * count * chain.position).sum()


@dataclass(frozen=True)
class Langevin:
    """BAOAB Langevin dynamics (doi:10.1063/1.4802990) with ``friction`` in 1/ps; translation and rotation thermalise.

    Harmonic modes have the exact distribution of positions at any timestep; their kinetic temperature reads low by
    (w dt)^2 / 4, w the angular frequency.
    """

    friction: float = 10.0

    def __post_init__(self):
        require_positive("a friction in 1/ps", self.friction)

    def degrees_of_freedom(self, n_atoms):
        """3N: the noise also drives the centre of mass and the rotation."""
        return 3 * n_atoms

    def initial_momenta(self, key, positions, masses, kT):
        """Maxwell-Boltzmann momenta (N, 3)."""
        return _maxwell_boltzmann(key, masses, kT)

    def integrator(self, energy_or_forces, timestep, kT):
        """jax-md's (init, apply); ``timestep`` in internal units."""
        from jax_md import simulate, space

        gamma = self.friction * TIME_UNIT / 1000
        return simulate.nvt_langevin(energy_or_forces, space.free()[1], timestep, kT, gamma)

    def bath_energy(self, state, kT):
        """NaN: nobody follows what noise and friction give and take."""
        return jnp.nan


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
    conserved_energies: jax.Array
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
        # The geometry whose energy or forces are not finite is kept, with the momenta and forces from before.
        position = _where(jnp.isfinite(moved.position).all(), moved.position, replica.dynamics.position)
        moved = _where(finite, moved, replica.dynamics.set(position=position))
        steps = replica.steps + 1
        elapsed = steps * self.timestep
        hot = hot_steps(replica.hot_steps, self.temperature(moved), target, elapsed)
        status = failure_status(self.rule, moved.position, elapsed, hot * self.timestep)
        status = jnp.where(finite, status, Status.NON_FINITE.value)
        return _where(replica.status == Status.ALIVE.value, Replica(moved, steps, hot, status), replica)

    def advance(self, replicas, targets, steps):
        """R replicas ``steps`` timesteps later, and their `Frame`: one program for any number, zero too, bit for bit.

        Frames come with the steps since a program of their own would have to be launched, as often as frames are recorded.
        """
        step = jax.vmap(self.step)
        replicas = jax.lax.fori_loop(0, steps, lambda _, r: step(r, targets), replicas)
        return replicas, jax.vmap(self.observe)(replicas, targets)

    def observe(self, replica, target):
        """What is recorded of a replica whose thermostat is at ``target`` K."""
        state = replica.dynamics
        energy = self.energy_fn(state.position)
        parts = kinetic_energy_parts(state.position, state.momentum, state.mass[:, 0])
        conserved = energy + parts.sum() + self.thermostat.bath_energy(state, BOLTZMANN * target)
        # A start whose energy is not finite has no frame; its status says so after the first step.
        alive = (replica.status == Status.ALIVE.value) & jnp.isfinite(energy)
        values = (state.position, energy, self.temperature(state), parts, conserved)
        return Frame(*(jnp.where(alive, value, jnp.nan) for value in values), alive)

    def temperature(self, state):
        """Kinetic temperature in K of a jax-md state."""
        count = self.thermostat.degrees_of_freedom(len(state.position))
        return kinetic_temperature(state.momentum, state.mass[:, 0], count)

    def forces(self, positions):
        """Forces (N, 3) in eV/angstrom, NaN where the energy is not finite: a replica must not go on there."""
        energy, gradient = jax.value_and_grad(self.energy_fn)(positions)
        return jnp.where(jnp.isfinite(energy), -gradient, jnp.nan)

    def _integrator(self, target):
        return self.thermostat.integrator(self.forces, self.timestep / TIME_UNIT, BOLTZMANN * target)


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


def _maxwell_boltzmann(key, masses, kT):
    return jnp.sqrt(masses * kT)[:, None] * jax.random.normal(key, (len(masses), 3), dtype=jnp.float64)


def _centred(positions, masses):
    return positions - masses @ positions / masses.sum()


def inertia(positions, masses):
    """Tensor of inertia about the centre of mass, (3, 3)."""
    r = _centred(positions, masses)
    return jnp.einsum("i,ik,ik", masses, r, r) * jnp.eye(3) - jnp.einsum("i,ij,ik", masses, r, r)


def _angular_motion(positions, momenta, masses):
    """Angular momentum L about the centre of mass and angular velocity I^+ L, (3,) each.

    The pseudo-inverse leaves out the rotation about the axis of a linear molecule, which is none.
    """
    momentum = jnp.cross(_centred(positions, masses), momenta).sum(0)
    return momentum, jnp.linalg.pinv(inertia(positions, masses), rtol=1e-10, hermitian=True) @ momentum


def _where(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def require_positive(what, value):
    if not isinstance(value, Real) or not 0 < value < np.inf:
        raise ValueError(f"expected {what} above zero, found {value!r}; give a positive number")
