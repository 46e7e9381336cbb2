"""All families through the suite of `families`."""

from dataclasses import replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REFERENCE, SPECIES, cheaper, make_dataset
from families import Suite

from iqagp_jax import energy_fn, fit_gp
from iqagp_jax.compose import PerMolecule, Sum
from iqagp_jax.families.fflux.files import assemble
from iqagp_jax.families.fflux.fit import fit_atom
from iqagp_jax.families.fflux.models import is_length
from iqagp_jax.families.pairs.models import BondedMorse
from iqagp_jax.families.so3krates.model import SO3krates, SO3kratesOfMolecule
from iqagp_jax.families.so3krates.network import Network
from iqagp_jax.potential import MadeBy, potential_of
from iqagp_jax.system.frames import alf_features
from iqagp_jax.system.system import System
from iqagp_jax.units import BOHR, HARTREE

FRAMES = ((0, 1, 2), (1, 0, 2), (2, 1, 0), (3, 1, 0))


class TestForcesOnInverseDistances(Suite):
    uncertain = "forces"

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls):
        return fit_gp(make_dataset(14, seed=1), max_steps=5)


class TestForcesOverABase(Suite):
    uncertain = "forces"

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls):
        base = fit_gp(cheaper(make_dataset(10, seed=3)), max_steps=0, targets=("energy", "forces"))
        return fit_gp(make_dataset(10, seed=1), base=base, max_steps=0)


class TestForcesWithSurroundings(Suite):
    uncertain = "forces"

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls):
        return fit_gp(make_dataset(14, seed=1), max_steps=0, local=True)


class TestAtomicEnergiesOnLocalFrames(Suite):
    mirrored, permuted, uncertain = False, False, "forces"

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls):
        return fit_gp(make_dataset(30, seed=1), "alf", prior_mean="mf5", max_steps=10, targets=("atomic_energies",))


class TestFFLUX(Suite):
    mirrored, permuted = False, False

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls):
        data = make_dataset(30, seed=1)

        def one(a, frame):
            others = np.array([k for k in range(4) if k not in frame])
            x = np.array([alf_features(jnp.asarray(r), frame, others) for r in data.positions])
            labels = (("name", "TOY"), ("atom", f"{SPECIES[a]}{a + 1}"), ("property", "iqa"))
            scaled = x / np.where(is_length(x.shape[1]), BOHR, 1.0)
            return fit_atom(scaled, data.atomic_energies[:, a] / HARTREE, frame, labels, noise=1e-8, max_steps=10)[0]

        with jax.enable_x64(True):
            return assemble([one(a, frame) for a, frame in enumerate(FRAMES)])

    def test_properties_that_are_no_energies_make_no_potential(self, potential):
        charges = replace(potential, made_by=replace(potential.made_by, targets=("q00",)))
        with pytest.raises(ValueError, match="as a potential, found models of q00"):
            energy_fn(charges)


class TestBondedMorse(Suite):
    mirrored, permuted, uncertain = True, False, False
    temperature = 200.0

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls):
        return BondedMorse.of(System.of(SPECIES, REFERENCE))


class TestSum(Suite):
    """A base beneath a Gaussian process has its form."""

    uncertain, permuted = False, False

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls):
        morse = BondedMorse.of(System.of(SPECIES, REFERENCE))
        return Sum(morse, PerMolecule(morse))


class TestSO3krates(Suite):
    """A random network of few features; a repulsion keeps its atoms apart."""

    uncertain = False

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls):
        network = Network.random(np.random.default_rng(1), 8, 1, 2, degrees=(1,))
        made_by = MadeBy(targets=("atomic_energies", "energy", "forces"))
        of_elements = SO3krates(network, np.full(100, 0.1), np.full(100, -10.0), ("C", "H", "O"), "born-mayer", made_by)
        return SO3kratesOfMolecule(SPECIES, REFERENCE, of_elements)


class Plain:
    """The smaller contract, kept to the letter: species, reference, called with positions, gives atomic energies."""

    species, reference = SPECIES, REFERENCE

    @cached_property
    def rest(self):
        return np.linalg.norm(REFERENCE[:, None] - REFERENCE, axis=-1)

    def __call__(self, positions):
        apart = positions[:, None] - positions
        distances = jnp.sqrt((apart**2).sum(-1) + np.eye(4))
        return 5.0 * (jnp.where(np.eye(4) > 0, 0.0, distances - self.rest) ** 2).sum(1)


class TestPlainObject(Suite):
    permuted, uncertain, in_file = False, False, False
    temperature = 200.0

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls):
        return potential_of(Plain())
