"""Equations of motion of replicas of one system at constant temperature: pure functions of a `Replica`, by jax-md.

The ensemble of an isolated molecule. A Nose-Hoover chain multiplies all momenta by one factor, so total momentum and
angular momentum, once zero, stay zero: they are removed at the start, and the 3N-6 degrees of freedom that are left
hold kT/2 each. (jax-md alone counts 3N and leaves the angular momentum, which a chain never thermalises.) Langevin
dynamics thermalises translation and rotation too and counts 3N. With the angular momentum J = 0 geometries have the
density exp(-V/kT) / sqrt(det I), I the tensor of inertia, with Langevin dynamics exp(-V/kT); the difference is the
centrifugal stretching.

Of several molecules, or in a cell, a chain has 3N-3 degrees of freedom: the momentum is removed, the angular momentum stays.
That of a cluster without walls the forces keep and the chain only scales: where its turning as a whole matters, or the cluster
is small, take Langevin dynamics.

Units outside: K, ps and fs as said, angstrom, amu, eV. Inside: eV, angstrom, amu, and their unit of time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from iqagp_jax.dynamics.checks import require_positive
from iqagp_jax.potential import Bound
from iqagp_jax.system.failure import FailureRule, Status, failure_status, hot_steps
from iqagp_jax.system.system import System
from iqagp_jax.units import BOLTZMANN, TIME_UNIT


@dataclass(frozen=True)
class NoseHoover:
    """Nose-Hoover chain of three thermostats (doi:10.1080/00268979600100761), momentum and angular momentum zero.

    ``time`` (fs) is tau in the chain masses Q_1 = f kT tau^2, f the degrees of freedom, Q_2 = Q_3 = kT tau^2; the chain
    swings with a period of sqrt(2) pi tau. The default, 44 fs or 750 1/cm, lies amid the vibrations it must couple to: the
    temperatures of single replicas of a model molecule of nine atoms, averaged over 18 ps, scatter by 0.8%, with 20 fs by
    1.0% and with 50 fs by 2.4%.

    As velocity Verlet holds <p^2/m> = kT at the end of its steps, <m w^2 x^2> of a mode of angular frequency w is too
    large by (w dt)^2 / 4: 3% for O-H with steps of 0.5 fs.
    """

    time: float = 10.0

    def __post_init__(self):
        require_positive("a thermostat time in fs", self.time)

    def degrees_of_freedom(self, system: System) -> int:
        """3N-6 of a molecule, and 1 for a diatomic; 3N-3 of several molecules, or in a cell.

        Not 3N-5 for a linear molecule: once it bends, its angular momentum about its axis is a third constant, zero.
        """
        return system.degrees_of_freedom

    def initial_momenta(self, key: jax.Array, system: System, positions: Any, kT: Any) -> jax.Array:
        """Maxwell-Boltzmann momenta (N, 3) without what the chain does not thermalise: a sample of what is left."""
        masses = jnp.asarray(system.masses)
        remove = remove_rigid_motion if system.is_alone else remove_drift
        return remove(positions, _maxwell_boltzmann(key, masses, kT), masses)

    def integrator(self, energy_or_forces: Callable, timestep: float, kT: Any, degrees_of_freedom: int) -> tuple:
        """jax-md's (init, apply); ``timestep`` in internal units, ``kT`` a float64 array, lest chain masses be float32."""
        from jax_md import simulate, space

        shift = space.free()[1]
        chain = {"chain_length": 3, "chain_steps": 1, "sy_steps": 1, "tau": self.time / TIME_UNIT}
        init, apply = simulate.nvt_nose_hoover(energy_or_forces, shift, timestep, kT, **chain)

        def init_counted(key: jax.Array, positions: Any, **start: Any) -> Any:
            state = init(key, positions, **start)
            return state.set(chain=state.chain.set(degrees_of_freedom=degrees_of_freedom))

        return init_counted, apply

    def bath_energy(self, state: Any, kT: Any, degrees_of_freedom: int) -> jax.Array:
        """Energy of the chain in eV, sum_k p_k^2 / 2 Q_k + kT (f xi_1 + xi_2 + xi_3): with the atoms' it is conserved."""
        chain = state.chain
        count = jnp.ones_like(chain.position).at[0].set(degrees_of_freedom)
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

    def degrees_of_freedom(self, system: System) -> int:
        """3N: the noise also drives the centre of mass and the rotation."""
        return 3 * len(system)

    def initial_momenta(self, key: jax.Array, system: System, positions: Any, kT: Any) -> jax.Array:
        """Maxwell-Boltzmann momenta (N, 3)."""
        return _maxwell_boltzmann(key, jnp.asarray(system.masses), kT)

    def integrator(self, energy_or_forces: Callable, timestep: float, kT: Any, degrees_of_freedom: int = 0) -> tuple:
        """jax-md's (init, apply); ``timestep`` in internal units. The noise needs no count."""
        from jax_md import simulate, space

        gamma = self.friction * TIME_UNIT / 1000
        return simulate.nvt_langevin(energy_or_forces, space.free()[1], timestep, kT, gamma)

    def bath_energy(self, state: Any, kT: Any, degrees_of_freedom: int) -> float:
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
    """`failure.Status`"""
    aux: Any = ()
    """what the potential keeps from step to step; see `Bound`"""


class Frame(NamedTuple):
    """What is recorded of a replica; NaN where it is not alive."""

    positions: jax.Array
    energies: jax.Array
    temperatures: jax.Array
    kinetic_energies: jax.Array
    conserved_energies: jax.Array
    momenta: jax.Array
    alive: jax.Array


@dataclass(frozen=True)
class Dynamics:
    """The equations of motion of one replica: pure functions of a `Replica`, to be vmapped and jitted under x64."""

    bound: Bound
    system: System
    thermostat: NoseHoover | Langevin
    timestep: float
    """fs"""
    rule: FailureRule
    """when a replica has failed"""

    def __post_init__(self):
        # jax-md compiles for seconds when it is imported: not where nothing is simulated, and not while anything is traced.
        import jax_md  # noqa: F401

    @property
    def degrees_of_freedom(self) -> int:
        """How many hold kT/2 each."""
        return self.thermostat.degrees_of_freedom(self.system)

    def start(self, seed: Any, index: Any, positions: jax.Array, target: Any) -> Replica:
        """Replica number ``index`` at ``positions`` (N, 3) with momenta drawn at ``target`` K."""
        momenta_key, noise_key = jax.random.split(jax.random.fold_in(jax.random.PRNGKey(seed), index))
        masses = jnp.asarray(self.system.masses)
        momenta = self.thermostat.initial_momenta(momenta_key, self.system, positions, BOLTZMANN * target)
        init, _ = self._integrator(target)
        aux = self.kept(positions, self.bound.aux)
        dynamics = init(noise_key, positions, mass=masses, momenta=momenta, aux=aux)
        return Replica(dynamics, jnp.zeros((), int), jnp.zeros((), int), jnp.zeros((), jnp.int32), aux)

    def step(self, replica: Replica, target: Any) -> Replica:
        """The replica one timestep later; a replica that has failed as it is."""
        _, apply = self._integrator(target)
        moved = apply(replica.dynamics, aux=replica.aux)
        finite = jnp.isfinite(jnp.stack([moved.position, moved.momentum, moved.force])).all()
        # The geometry whose energy or forces are not finite is kept, with the momenta and forces from before.
        position = _where(jnp.isfinite(moved.position).all(), moved.position, replica.dynamics.position)
        moved = _where(finite, moved, replica.dynamics.set(position=position))
        steps = replica.steps + 1
        elapsed = steps * self.timestep
        hot = hot_steps(replica.hot_steps, self.temperature(moved), target, elapsed)
        status = failure_status(self.rule, moved.position, elapsed, hot * self.timestep)
        status = jnp.where(finite, status, Status.NON_FINITE.value)
        after = Replica(moved, steps, hot, status, self.kept(moved.position, replica.aux))
        return _where(replica.status == Status.ALIVE.value, after, replica)

    def kept(self, positions: jax.Array, aux: Any) -> Any:
        """What the potential keeps once it has been at ``positions``; nothing is computed where it keeps nothing."""
        return self.bound.energies(positions, aux)[1] if jax.tree.leaves(aux) else aux

    def advance(self, replicas: Replica, targets: Any, steps: Any) -> tuple[Replica, Frame]:
        """R replicas ``steps`` timesteps later, and their `Frame`: one program for any number, zero too, bit for bit.

        Frames come with the steps since a program of their own would have to be launched, as often as frames are recorded.
        """
        step = jax.vmap(self.step)
        replicas = jax.lax.fori_loop(0, steps, lambda _, r: step(r, targets), replicas)
        return replicas, jax.vmap(self.observe)(replicas, targets)

    def observe(self, replica: Replica, target: Any) -> Frame:
        """What is recorded of a replica whose thermostat is at ``target`` K."""
        state = replica.dynamics
        energy = self.bound.energy_and_gradient(state.position, replica.aux)[0][0]
        parts = kinetic_energy_parts(state.position, state.momentum, state.mass[:, 0])
        bath = self.thermostat.bath_energy(state, BOLTZMANN * target, self.degrees_of_freedom)
        # A start whose energy is not finite has no frame; its status says so after the first step.
        alive = (replica.status == Status.ALIVE.value) & jnp.isfinite(energy)
        conserved = energy + parts.sum() + bath
        values = (state.position, energy, self.temperature(state), parts, conserved, state.momentum)
        return Frame._make([*(jnp.where(alive, value, jnp.nan) for value in values), alive])

    def temperature(self, state: Any) -> jax.Array:
        """Kinetic temperature in K of a jax-md state."""
        return kinetic_temperature(state.momentum, state.mass[:, 0], self.degrees_of_freedom)

    def forces(self, positions: jax.Array, aux: Any = ()) -> jax.Array:
        """Forces (N, 3) in eV/angstrom, NaN where the energy is not finite: a replica must not go on there."""
        energy, gradient = self.bound.energy_and_gradient(positions, aux)[0]
        return jnp.where(jnp.isfinite(energy), -gradient, jnp.nan)

    def _integrator(self, target: Any) -> tuple:
        kT = BOLTZMANN * target
        return self.thermostat.integrator(
            lambda r, aux, **_: self.forces(r, aux), self.timestep / TIME_UNIT, kT, self.degrees_of_freedom
        )


def bound_energy(energy_fn: Callable) -> Bound:
    """A `Bound` of an energy function, positions (N, 3) -> eV, which its atoms share equally."""
    return Bound(
        lambda positions, aux: (jnp.full(len(positions), energy_fn(positions) / len(positions)), aux),
        fast=lambda positions, aux: (jax.value_and_grad(energy_fn)(positions), aux),
    )


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


def remove_drift(positions: Any, momenta: jax.Array, masses: jax.Array) -> jax.Array:
    """Momenta (N, 3) without total momentum; the angular momentum stays."""
    return momenta - masses[:, None] * momenta.sum(0) / masses.sum()


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
