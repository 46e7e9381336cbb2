"""References: made of what a model tells that it learned, and labels that no charge or spin is wrong in without a word."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import REFERENCE, SPECIES

from iqagp_jax.data.extxyz import load_dataset, save_dataset
from iqagp_jax.data.level import Level
from iqagp_jax.families.pairs.models import BondedMorse
from iqagp_jax.labels import queue
from iqagp_jax.labels.campaign import Campaign
from iqagp_jax.labels.executors import Processes
from iqagp_jax.labels.plan import LabelPlan
from iqagp_jax.potential import MadeBy
from iqagp_jax.references.choose import reference_of
from iqagp_jax.references.dft import DFT
from iqagp_jax.references.xtb import XTB, relabelled
from iqagp_jax.system.system import System

pytestmark = pytest.mark.labels

PBE = LabelPlan("pbe", "6-31g*", partitions=())
HYDROXYL = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.97]])


def learned(level, species=SPECIES, positions=REFERENCE):
    """A model that learned labels of this level."""
    morse = BondedMorse.of(System(tuple(species), positions))
    return replace(morse, made_by=level and MadeBy(level))


def test_the_reference_is_the_method_of_the_labels(tmp_path):
    for level in (PBE.level, replace(PBE.level, method="PBE"), Level.of_words(PBE.level.theory)):
        found = reference_of("dft", learned(level), tmp_path / "labels")
        assert isinstance(found, DFT) and found.plan.level.same_energies(PBE.level)
        assert found.name == level.theory
    xtb = reference_of("xtb", learned(Level("GFN2-xTB")), tmp_path)
    assert isinstance(xtb, XTB) and xtb.name == "GFN2-xTB"
    assert reference_of("none", learned(None), tmp_path) is None


@pytest.mark.parametrize(
    ("name", "level", "sentence"),
    [
        ("xtb", PBE.level, "trained on GFN2-xTB, found one of pbe/6-31g"),
        ("dft", Level("GFN2-xTB"), "labels of `iqagp label`, found one of GFN2-xTB"),
        ("dft", Level.of_words("b3lyp/6-31g by Gaussian"), "found one of b3lyp/6-31g by Gaussian"),
        ("xtb", Level(), "found one of a level of theory that is not told"),
        ("xtb", None, "expected a model that tells what it was trained on"),
    ],
)
def test_another_method_than_that_of_the_labels_is_refused(tmp_path, name, level, sentence):
    with pytest.raises(ValueError, match=sentence):
        reference_of(name, learned(level), tmp_path)


@pytest.mark.parametrize("name", ["xtb", "dft"])
def test_charge_and_spin_are_those_of_the_labels(tmp_path, name):
    """A model of the dianion was judged by the neutral molecule unless the command told its charge again."""
    method = Level("GFN2-xTB") if name == "xtb" else PBE.level
    dianion = learned(replace(method, charge=-2))
    for given in ({}, {"charge": -2}, {"charge": -2, "spin": 0}):
        found = reference_of(name, dianion, tmp_path, **given)
        assert found.name.endswith("charge -2")
        assert (found.level if name == "xtb" else found.plan).charge == -2
    for given in ({"charge": 0}, {"spin": 2}):
        with pytest.raises(ValueError, match="expected charge -2 and 0 unpaired electrons, as the model learned, found"):
            reference_of(name, dianion, tmp_path, **given)
    untold = reference_of(name, learned(method), tmp_path, charge=1, spin=1)
    assert untold.name.endswith("charge +1, 1 unpaired electron")
    with pytest.raises(ValueError, match="9 electrons cannot have 0 unpaired ones"):
        reference_of(name, learned(method, ("O", "H"), HYDROXYL), tmp_path)


def test_no_geometries_have_no_labels():
    energy, forces = XTB(("H", "H")).labels(np.zeros((0, 2, 3)))
    assert energy.shape == (0,) and forces.shape == (0, 2, 3)


def test_xtb_labels_no_state_that_the_electrons_cannot_have():
    for state in ((0, 0), (-1, 1), (12, 1)):
        with pytest.raises(ValueError, match="electrons cannot have"):
            XTB(("O", "H"), *state)
    radical, anion = (XTB(("O", "H"), *state).labels(HYDROXYL[None])[0] for state in ((0, 1), (-1, 0)))
    assert radical[0] == pytest.approx(-120.50, abs=0.05) and anion[0] == pytest.approx(-127.39, abs=0.05)


def test_labels_by_dft_are_a_campaign_that_is_found_again(tmp_path, monkeypatch):
    made = []

    def label_geometry(species, positions, plan):
        made.append(positions)
        if positions[0, 0] > 0.5:
            return {"rejected": "the SCF did not converge"}
        return {"energy": float(positions[0, 0]), "forces": positions.tolist()}

    monkeypatch.setattr(queue, "label_geometry", label_geometry)
    positions = np.stack([REFERENCE, REFERENCE + 1.0, REFERENCE - 1.0])
    with ThreadPoolExecutor(1) as pool:
        dft = DFT(PBE, SPECIES, tmp_path, pool, 1)
        energies, forces = dft.labels(positions)
        np.testing.assert_allclose(energies, [0.0, np.nan, -1.0])
        np.testing.assert_allclose(forces[[0, 2]], positions[[0, 2]])
        assert np.isnan(forces[1]).all() and len(made) == 3  # and no free atoms
        for folder in tmp_path.glob("*/"):
            Campaign.load(folder).pack()
        np.testing.assert_array_equal(dft.labels(positions)[0], energies)
    assert len(made) == 3


def test_labels_by_xtb_keep_charge_and_spin(dataset, tmp_path):
    of_an_ion = relabelled(dataset[:2], XTB(SPECIES, 1, 1))
    save_dataset(of_an_ion, tmp_path / "ion.extxyz")
    found = load_dataset(tmp_path / "ion.extxyz").level
    assert (found.method, found.charge, found.spin) == ("GFN2-xTB", 1, 1)
    assert found.programs.startswith("tblite ")
    assert not found.same_energies(relabelled(dataset[:2], XTB(SPECIES)).level)


def test_xtb_drives_jax_with_the_forces_of_its_labels(dataset):
    xtb, positions = XTB(SPECIES), dataset.positions[:3]
    energies, forces = xtb.labels(positions)
    with jax.enable_x64(True):
        found, gradients = jax.jit(jax.vmap(jax.value_and_grad(xtb.energy_fn())))(positions)
    # The SCF stops at 1e-6 hartree; forces agree to its square root.
    np.testing.assert_allclose(found, energies, atol=3e-5)
    np.testing.assert_allclose(-gradients, forces, atol=3e-3)
    labelled = relabelled(dataset[:3], xtb)
    np.testing.assert_array_equal(labelled.energy, energies)
    assert labelled.level.theory == "GFN2-xTB" and labelled.atomic_energies is None
    none = SimpleNamespace(name="GFN2-xTB", labels=lambda positions, progress: (np.full(3, np.nan), None))
    with pytest.raises(ValueError, match="can label, found none of 3"):
        relabelled(dataset[:3], none)


def test_dynamics_that_is_interrupted_leaves_no_worker_and_says_nothing(capfd):
    """JAX has begun steps by then, which ask for labels still: they started a worker anew, and told of memory."""
    with pytest.raises(KeyboardInterrupt), jax.enable_x64(True), Processes(1) as pool:
        energies = jax.jit(jax.vmap(XTB(SPECIES, pool=pool).energy_fn()))
        assert np.isfinite(energies(REFERENCE[None])).all()
        raise KeyboardInterrupt
    with jax.enable_x64(True):
        assert np.isnan(energies(REFERENCE[None])).all()
    assert not any(process.is_alive() for process in pool._connections)
    assert capfd.readouterr() == ("", "")
