"""The ASE calculator: in cells, in other processes, after pickling, from a file."""

import multiprocessing
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from operator import methodcaller
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.vibrations import Vibrations
from conftest import REFERENCE, SPECIES

from iqagp_jax import atomic_energies, energy_and_forces, energy_shares, fit_gp, save_model
from iqagp_jax.ase_calculator import IQAGP
from iqagp_jax.compose import PerMolecule, Sum
from iqagp_jax.families.pairs.models import BondedMorse
from iqagp_jax.system.system import System
from iqagp_jax.validation import learned_atomic_energies

ETHANOL = molecule("CH3CH2OH")
DISTORTED = ETHANOL.positions + 0.05 * np.random.default_rng(0).normal(size=ETHANOL.positions.shape)


@pytest.fixture(scope="module")
def morse():
    return BondedMorse.of(System.of(ETHANOL.symbols, ETHANOL.positions))


@pytest.fixture(scope="module")
def process(dataset):
    """A calculator of a Gaussian process, which knows its uncertainty; compiled once."""
    return IQAGP(fit_gp(dataset[:20], "alf", prior_mean="mf1", max_steps=0, targets=("atomic_energies",)))


def ethanol(potential, positions=DISTORTED, **cell):
    return Atoms(ETHANOL.symbols, positions=positions, calculator=IQAGP(potential), **cell)


def test_energies_and_forces_are_those_of_the_potential(morse):
    atoms = ethanol(morse)
    energy, forces = energy_and_forces(morse)(DISTORTED[None])
    assert atoms.get_potential_energy() == pytest.approx(float(energy[0]), abs=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), forces[0], atol=1e-12)
    assert atoms.get_potential_energies().sum() == pytest.approx(float(energy[0]), abs=1e-10)


@pytest.mark.parametrize("cell", [np.eye(3) * 9.0, [[9.0, 0, 0], [4.0, 8.0, 0], [-3.0, 2.5, 8.5]]], ids=["cubic", "skew"])
def test_a_wrapped_molecule_has_the_energy_of_the_whole_one(morse, cell):
    whole, wrapped = ethanol(morse), ethanol(morse, cell=cell, pbc=True)
    wrapped.wrap()
    assert np.ptp(wrapped.positions, axis=0).max() > np.ptp(DISTORTED, axis=0).max() + 1
    assert wrapped.get_potential_energy() == pytest.approx(whole.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(wrapped.get_forces(), whole.get_forces(), atol=1e-9)
    np.testing.assert_allclose(wrapped.get_potential_energies(), whole.get_potential_energies(), atol=1e-9)


def test_a_wrapped_molecule_is_as_uncertain_as_the_whole_one(process):
    whole, wrapped = Atoms(SPECIES, positions=REFERENCE), Atoms(SPECIES, positions=REFERENCE, cell=np.eye(3) * 6, pbc=True)
    wrapped.positions -= [1.0, 0, 0]
    wrapped.wrap()
    for name in ("energy", "energy_std", "forces_std"):
        found, expected = (process.get_property(name, atoms) for atoms in (wrapped, whole))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_axes_without_images_have_no_walls(morse):
    atoms = ethanol(morse, cell=np.eye(3) * 9.0, pbc=False)
    atoms.wrap(pbc=True)
    broken = atoms.get_potential_energy()
    assert broken > ethanol(morse).get_potential_energy() + 1
    atoms.pbc = True
    assert atoms.get_potential_energy() == pytest.approx(ethanol(morse).get_potential_energy(), abs=1e-9)


def test_a_hot_bond_through_a_wall_holds(morse):
    stretched = DISTORTED.copy()
    hydroxyl = ETHANOL.symbols.index("H")
    oxygen = ETHANOL.symbols.index("O")
    stretched[hydroxyl] += 0.6 * (stretched[hydroxyl] - stretched[oxygen])
    whole, wrapped = ethanol(morse, stretched), ethanol(morse, stretched, cell=np.eye(3) * 9.0, pbc=True)
    wrapped.positions -= 0.5 * (stretched[hydroxyl] + stretched[oxygen])
    wrapped.wrap()
    assert wrapped.get_potential_energy() == pytest.approx(whole.get_potential_energy(), abs=1e-9)


def test_crystals_and_boxes_get_a_sentence(morse):
    copper = bulk("Cu", cubic=True)
    pair = BondedMorse.of(System.of(copper.symbols, copper.positions))
    copper.calc = IQAGP(pair)
    with pytest.raises(ValueError, match="bonded to its own image through a wall: a crystal"):
        copper.get_potential_energy()
    copper.pbc = False
    assert np.isfinite(copper.get_potential_energy())

    water = molecule("H2O")
    waters = water + water
    waters.positions[3:] += [3.0, 0, 0]
    potential = PerMolecule(BondedMorse.of(System.of(water.symbols, water.positions)))
    for cell in (None, np.eye(3) * 9.0):
        system = System.of(waters.symbols, waters.positions, cell=cell, molecules=[0] * 3 + [1] * 3)
        box = Atoms(waters.symbols, positions=waters.positions, cell=np.eye(3) * 9.0, calculator=IQAGP(potential, system))
        expected = box.get_potential_energy()
        box.positions[[0, 4]] += [9.0, 0, 0]
        box.pbc = True
        if cell is None:
            with pytest.raises(ValueError, match="expected one molecule in a periodic cell, found 2"):
                box.get_potential_energy()
        else:
            assert box.get_potential_energy() == pytest.approx(expected, abs=1e-9)


def test_it_takes_the_path_of_a_model_file(morse, tmp_path):
    path = tmp_path / "morse.safetensors"
    save_model(morse, path)
    for name in (path, str(path)):
        assert ethanol(name).get_potential_energy() == ethanol(morse).get_potential_energy()


def test_uncertainty_is_asked_for_by_name(process, morse):
    atoms = Atoms(SPECIES, positions=REFERENCE)
    assert 0 < process.get_property("energy_std", atoms) < 1
    assert process.get_property("forces_std", atoms).shape == (4, 3)
    for name in ("energy", "forces"):
        atoms = ethanol(morse)
        with pytest.raises(PropertyNotImplementedError, match=f"does not know the uncertainty of its {name}"):
            atoms.calc.get_property(f"{name}_std", atoms)
        assert np.isfinite(atoms.get_potential_energy())


def test_atomic_energies_that_nobody_learned_are_refused(dataset):
    """A model of the molecule's energy alone, and sums that it is in, divide it as it happens."""
    whole = fit_gp(replace(dataset[:6], atomic_energies=None), max_steps=0)
    system, rest = System.of(SPECIES, REFERENCE), BondedMorse.of(System.of(SPECIES, REFERENCE))
    assert whole.targets == ("energy", "forces")
    for potential in (whole, Sum(rest, whole), PerMolecule(whole)):
        assert not learned_atomic_energies(potential)
        with pytest.raises(ValueError, match="take `energy_shares` if that division is what you want"):
            atomic_energies(potential, REFERENCE, system)
    atoms = Atoms(SPECIES, positions=REFERENCE, calculator=IQAGP(whole))
    with pytest.raises(PropertyNotImplementedError, match="found one that learned their sum alone"):
        atoms.get_potential_energies()
    shares = atoms.calc.get_property("energy_shares", atoms)
    assert shares.shape == (4,) and shares.sum() == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    np.testing.assert_array_equal(energy_shares(whole, REFERENCE), shares)
    assert learned_atomic_energies(fit_gp(dataset[:6], max_steps=0))


def test_it_can_be_pickled_before_and_after_use(morse):
    atoms = ethanol(morse)
    fresh = pickle.dumps(atoms.calc)
    energy = atoms.get_potential_energy()
    for pickled in (fresh, pickle.dumps(atoms.calc)):
        again = Atoms(ETHANOL.symbols, positions=DISTORTED + 1.0, calculator=pickle.loads(pickled))
        assert again.get_potential_energy() == pytest.approx(energy, abs=1e-10)


def test_a_gaussian_process_is_pickled_after_its_uncertainty_was_asked_for(process):
    atoms = Atoms(SPECIES, positions=REFERENCE)
    energy, deviation = (process.get_property(name, atoms) for name in ("energy", "energy_std"))
    again = pickle.loads(pickle.dumps(process))
    again.reset()
    assert again.get_property("energy", atoms) == pytest.approx(energy, abs=1e-9)
    assert again.get_property("energy_std", atoms) == pytest.approx(deviation, rel=1e-6)


def test_spawned_processes_compute_with_it(morse):
    several = [ethanol(morse, DISTORTED + shift * np.eye(9, 3)) for shift in (0.0, 0.1, 0.2)]
    here = [atoms.get_potential_energy() for atoms in several]
    for atoms in several:
        atoms.calc.results.clear()  # or they would be known there
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.map_async(methodcaller("get_potential_energy"), several).get(timeout=120)
    np.testing.assert_allclose(there, here, atol=1e-12)


def test_vibrations(morse, tmp_path):
    vibrations = Vibrations(ethanol(morse, ETHANOL.positions), name=str(tmp_path / "vibrations"))
    vibrations.run()
    energies = vibrations.get_energies()
    assert np.abs(energies[:6]).max() < 5e-3  # eV; the last 21 are those of vibrations
    assert (energies[6:].real > 1e-2).all() and np.abs(energies[6:].imag).max() == 0


FORKED = """
import os, signal, sys
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from iqagp_jax.ase_calculator import IQAGP
from iqagp_jax.families.pairs.models import BondedMorse
from iqagp_jax.system.system import System

class Prepared(BondedMorse):
    def bind(self, system, dtype=np.float64):
        (jnp.ones((9, 9)) @ jnp.ones((9, 9))).block_until_ready()
        return super().bind(system, dtype)

positions = np.eye(3)
system = System.of("OHH", positions)
used, new = (Atoms("OHH", positions, calculator=IQAGP(kind.of(system))) for kind in (BondedMorse, Prepared))
if "used" in sys.argv:
    used.get_potential_energy()
child = os.fork()
if child == 0:
    signal.alarm(60)  # ends it where it hangs
    used.positions[0] += 0.1
    for atoms in (used, new):
        try:
            print("computed", atoms.get_potential_energy(), flush=True)
        except RuntimeError as error:
            print(error, flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
used.positions[0] += 0.1
print("parent went on", used.get_potential_energy())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(
    ("argument", "said"),
    [("used", "expected a process of its own for this potential, found one forked"), ("fresh", "computed")],
)
def test_a_forked_child_gets_a_sentence_and_does_not_hang(argument, said):
    command = [sys.executable, "-W", "ignore", "-c", FORKED, argument]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=Path(__file__).parents[1])
    assert done.stdout.count(said) == 2 and "parent went on" in done.stdout
