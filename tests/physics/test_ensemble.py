"""The ensemble of the replicas, each claim with an error bar computed from the run itself.

The molecule is an anharmonic model of CH2F, Morse springs between all atoms. What the replicas pass, jax-md's own start
and its own 3N degrees of freedom are shown to fail.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import simulate as jax_md_simulate
from jax_md import space

from iqagp_jax.compose import PerMolecule, Sum
from iqagp_jax.dynamics.ensembles import Dynamics, Langevin, NoseHoover, bound_energy
from iqagp_jax.dynamics.run import simulate as run_of
from iqagp_jax.families.pairs.models import BondedMorse, NeighbourMorse
from iqagp_jax.system.system import System
from iqagp_jax.units import BOLTZMANN

pytestmark = pytest.mark.physics

SPECIES = ("C", "H", "H", "F")
GEOMETRY = np.array([[0.0, 0.0, 0.1], [0.95, 0.5, 0.0], [-0.95, 0.5, 0.0], [0.0, -1.3, 0.0]])
SYSTEM = System.of(SPECIES, GEOMETRY, spin=1)
MASSES = SYSTEM.masses
PAIRS = np.triu_indices(4, 1)
LENGTHS = np.linalg.norm(GEOMETRY[PAIRS[0]] - GEOMETRY[PAIRS[1]], axis=1)
DEPTHS, WIDTHS = np.where(PAIRS[0] == 0, 4.5, 2.0), np.where(PAIRS[0] == 0, 1.9, 1.2)
VIBRATIONS = 6

TARGET = 1000.0
REPLICAS = 64
EQUILIBRATION, TIME = 2_000.0, 10_000.0
TIMESTEP, INTERVAL = 0.25, 5.0
"""In fs. The bias of second order in the timestep, (w dt)^2 / 4, stays below 0.7% for the stiffest mode."""


def energy(positions):
    """sum over pairs of D (1 - exp(-a (r - r0)))^2, in eV."""
    distances = jnp.sqrt(((positions[PAIRS[0]] - positions[PAIRS[1]]) ** 2).sum(1))
    return (DEPTHS * (1 - jnp.exp(-WIDTHS * (distances - LENGTHS))) ** 2).sum()


class JaxMdDefaults(NoseHoover):
    """jax-md's Nose-Hoover chain as it comes: its own momenta and its own count."""

    def integrator(self, energy_fn, timestep, kT, degrees_of_freedom):
        init, apply = jax_md_simulate.nvt_nose_hoover(energy_fn, space.free()[1], timestep, kT)
        return lambda key, positions, mass, momenta, aux: init(key, positions, mass=mass, aux=aux), apply


class LinearMomentumOnly(JaxMdDefaults):
    """The repair that looks right: jax-md's start, which has an angular momentum, and 3N-3 degrees of freedom."""

    def integrator(self, energy_fn, timestep, kT, degrees_of_freedom):
        defaults, apply = super().integrator(energy_fn, timestep, kT, degrees_of_freedom)

        def init(*start, **options):
            state = defaults(*start, **options)
            return state.set(chain=state.chain.set(degrees_of_freedom=3 * len(SPECIES) - 3))

        return init, apply


def sample(thermostat):
    """Kinetic energies (frames, R, 3) in kT/2 and positions (frames, R, N, 3) after equilibration."""
    dynamics = Dynamics(bound_energy(energy), SYSTEM, thermostat, TIMESTEP, SYSTEM.failure_rule)
    targets = np.full(REPLICAS, TARGET)
    step, observe = jax.vmap(dynamics.step), jax.vmap(dynamics.observe)

    def frame(replicas, _):
        replicas, _ = jax.lax.scan(lambda r, _: (step(r, targets), None), replicas, length=round(INTERVAL / TIMESTEP))
        return replicas, observe(replicas, targets)

    with jax.enable_x64(True):
        start = jax.vmap(dynamics.start, in_axes=(None, 0, None, 0))
        replicas = start(0, np.arange(REPLICAS), jnp.asarray(GEOMETRY), targets)
        n_frames = round((EQUILIBRATION + TIME) / INTERVAL)
        _, frames = jax.jit(lambda r: jax.lax.scan(frame, r, length=n_frames))(replicas)
    assert np.asarray(frames.alive).all()
    later = slice(round(EQUILIBRATION / INTERVAL), None)
    return np.asarray(frames.kinetic_energies)[later] / (BOLTZMANN * TARGET / 2), np.asarray(frames.positions)[later]


@pytest.fixture(scope="module")
def nose_hoover():
    return sample(NoseHoover())


@pytest.fixture(scope="module")
def langevin():
    return sample(Langevin())


@pytest.fixture(scope="module")
def defaults():
    return sample(JaxMdDefaults())


def deviation_of_each_replica(series, expected, blocks=10):
    """Mean squared deviation of the replicas' own means (frames, R) from ``expected``, in their own error bars.

    The error bar of a replica is that of the means of 10 blocks of 1 ps, far longer than the correlation times. Its
    deviation then has Student's t-distribution with 9 degrees of freedom, whose square has the mean 9/7 and the
    standard deviation 2.3.
    """
    means = series.reshape(blocks, -1, series.shape[1]).mean(1)
    errors = means.std(0, ddof=1) / np.sqrt(blocks)
    return (((series.mean(0) - expected) / errors) ** 2).mean()


def deviation_of_the_mean(values, expected):
    """Mean over the independent replicas (R, ...) minus ``expected`` in standard errors."""
    return (values.mean(0) - expected) / (values.std(0, ddof=1) / np.sqrt(len(values)))


STUDENT_LIMIT = 9 / 7 + 4 * 2.3 / np.sqrt(REPLICAS)


def test_vibrations_of_every_replica_have_the_target_temperature(nose_hoover):
    vibration = nose_hoover[0][..., 2]
    assert abs(deviation_of_the_mean(vibration.mean(0), VIBRATIONS)) < 4
    assert deviation_of_each_replica(vibration, VIBRATIONS) < STUDENT_LIMIT


def test_kinetic_energy_fluctuates_as_in_the_canonical_ensemble(nose_hoover):
    """2K/kT is chi-squared with 3N-6 degrees of freedom: variance 2 (3N-6)."""
    assert abs(deviation_of_the_mean(nose_hoover[0][..., 2].var(0), 2 * VIBRATIONS)) < 4


def test_nose_hoover_replicas_neither_drift_nor_rotate(nose_hoover):
    assert nose_hoover[0][..., :2].max() < 1e-20


def test_langevin_dynamics_thermalises_translation_rotation_and_vibration(langevin):
    kinetic = langevin[0]
    assert (np.abs(deviation_of_the_mean(kinetic.mean(0), [3, 3, VIBRATIONS])) < 4).all()
    assert deviation_of_each_replica(kinetic[..., 2], VIBRATIONS) < STUDENT_LIMIT


def test_jax_md_defaults_run_hot(defaults):
    """Energy for 3N degrees of freedom goes into 3N-3, and no replica has its temperature."""
    kinetic = defaults[0]
    moving = 3 * len(SPECIES) - 3
    assert abs(deviation_of_the_mean(kinetic.sum(-1).mean(0) / moving, 3 * len(SPECIES) / moving)) < 4
    assert deviation_of_the_mean(kinetic.sum(-1).mean(0), moving) > 20
    assert deviation_of_each_replica(kinetic[..., 2], VIBRATIONS) > 20 * STUDENT_LIMIT


def test_counting_3n_minus_3_gives_a_good_mean_and_wrong_replicas():
    kinetic, _ = sample(LinearMomentumOnly())
    assert abs(deviation_of_the_mean(kinetic.sum(-1).mean(0), 3 * len(SPECIES) - 3)) < 4
    assert deviation_of_each_replica(kinetic[..., 2], VIBRATIONS) > 20 * STUDENT_LIMIT


def bond_lengths(positions):
    """C-H, C-H and C-F distances, (frames, R, 3)."""
    return np.linalg.norm(positions[:, :, 1:] - positions[:, :, :1], axis=-1)


def centrifugal_weights(positions):
    """sqrt(det I), (frames, R): turns averages at angular momentum zero into canonical ones.

    Integrating exp(-K/kT) over all momenta, with and without the condition J = 0, leaves geometries with the
    densities exp(-V/kT) / sqrt(det I) and exp(-V/kT).
    """
    r = positions - np.einsum("i,frix->frx", MASSES, positions)[:, :, None] / MASSES.sum()
    trace = np.einsum("i,frix,frix->fr", MASSES, r, r)
    inertia = trace[..., None, None] * np.eye(3) - np.einsum("i,frix,friy->frxy", MASSES, r, r)
    return np.sqrt(np.linalg.det(inertia))


def deciles(lengths, weights, edges):
    """Share of a bond's lengths (frames, R) of every replica between given edges, (R, 10)."""
    bins = np.searchsorted(edges, lengths)
    return np.stack([(weights * (bins == k)).sum(0) for k in range(10)], axis=1) / weights.sum(0)[:, None]


def deviations_from_langevin(positions, reference):
    """Deviations (bonds, 10) of the deciles of bond lengths from Langevin dynamics, in standard errors."""
    weights, ones = centrifugal_weights(positions), np.ones(reference.shape[:2])
    deviations = []
    for lengths, expected in zip(bond_lengths(positions).T, bond_lengths(reference).T, strict=True):
        edges = np.quantile(expected, np.arange(0.1, 1, 0.1))
        a, b = deciles(lengths.T, weights, edges), deciles(expected.T, ones, edges)
        deviations.append((a.mean(0) - b.mean(0)) / np.sqrt((a.var(0) + b.var(0)) / REPLICAS))
    return np.abs(deviations)


def test_bond_lengths_are_distributed_as_in_langevin_dynamics(nose_hoover, langevin):
    assert deviations_from_langevin(nose_hoover[1], langevin[1]).max() < 4


def test_bond_lengths_with_jax_md_defaults_are_not(defaults, langevin):
    assert deviations_from_langevin(defaults[1], langevin[1]).max() > 5


# Several molecules

WATER = System.of(("O", "H", "H"), [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
TRIANGLE = 3.0 * np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.87, 0.3]])
CLUSTER = System.of(
    3 * WATER.species, (TRIANGLE[:, None] + WATER.positions).reshape(-1, 3), molecules=np.repeat(np.arange(3), 3)
)


def test_a_cluster_of_molecules_has_the_target_temperature(tmp_path):
    """3N-3 degrees of freedom: nothing drifts, and what turns, vibrates and tumbles holds kT/2 each together.

    Not each alone: the forces keep the angular momentum and a chain only scales it, by a factor that follows from the energy.
    """
    sticky = NeighbourMorse(("O", "H"), np.array(0.02), np.array(1.0), np.array(2.5), np.array(6.0))
    potential = Sum(PerMolecule(BondedMorse.of(WATER)), sticky)
    begin = CLUSTER.positions[None].repeat(REPLICAS, 0)
    options = {"temperature": 150.0, "time": 3.0, "timestep": 0.25, "frame_interval": 10.0, "progress": False}
    run = run_of(potential, CLUSTER, begin, tmp_path, thermostat=NoseHoover(20.0), **options)
    assert run.survived.all()
    drifting, turning, inner = run.trajectory.kinetic_energies[run.times > 1000.0].mean(0).T / (BOLTZMANN * 150.0 / 2)
    assert drifting.max() < 1e-9 < turning.min()
    assert abs(deviation_of_the_mean(turning + inner, 3 * len(CLUSTER) - 3)) < 4
    assert deviation_of_the_mean(turning + inner, 3 * len(CLUSTER) - 6) > 20
