"""Exports are read back by the programs that they are for."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from ase import units
from ase.io import read
from conftest import REFERENCE, SPECIES

from iqagp_jax.dynamics.forces import forces_at_frames
from iqagp_jax.dynamics.trajectory import Trajectory
from iqagp_jax.formats.trajectories import OF_MDANALYSIS, export, left_out
from iqagp_jax.system.elements import masses_of
from iqagp_jax.system.system import System
from iqagp_jax.units import KJ_MOL, TIME_UNIT

FRAMES, REPLICAS, INTERVAL = 7, 3, 2.5
LIVED = 4
"""Frames of replica 1; replica 2 has none."""

WALLS = np.array([[12.0, 0.0, 0.0], [1.0, 11.0, 0.0], [0.5, 0.25, 13.0]])


@pytest.fixture(scope="module")
def trajectory():
    rng = np.random.default_rng(0)
    alive = np.ones((FRAMES, REPLICAS), bool)
    alive[LIVED:, 1] = alive[:, 2] = False

    def some(*shape):
        return np.where(alive.reshape(FRAMES, REPLICAS, *[1] * len(shape)), rng.normal(size=(FRAMES, REPLICAS, *shape)), np.nan)

    return Trajectory(
        species=np.array(SPECIES),
        masses=masses_of(SPECIES),
        target_temperatures=np.full(REPLICAS, 300.0),
        times=INTERVAL * np.arange(FRAMES),
        positions=REFERENCE + 0.1 * some(4, 3),
        energies=some() - 3000.0,
        temperatures=300.0 + some(),
        kinetic_energies=some(3) ** 2,
        conserved_energies=some(),
        alive=alive,
        momenta=some(4, 3),
    )


@pytest.fixture(scope="module")
def forces(trajectory):
    return np.where(trajectory.alive[..., None, None], np.random.default_rng(1).normal(size=trajectory.positions.shape), np.nan)


@pytest.fixture(scope="module")
def velocities(trajectory):
    """Angstrom/fs."""
    return trajectory.momenta / trajectory.masses[:, None] / TIME_UNIT


@pytest.fixture
def mdanalysis():
    return pytest.importorskip("MDAnalysis", reason="MDAnalysis, which reads H5MD, TRR, DCD and XTC, is not installed")


@pytest.fixture
def mdtraj():
    return pytest.importorskip("mdtraj", reason="mdtraj, which reads TRR, DCD and XTC, is not installed")


def test_ase_reads_extxyz(trajectory, forces, velocities, tmp_path):
    assert export(trajectory, tmp_path / "all.extxyz", forces=forces) == FRAMES + LIVED
    found = read(tmp_path / "all.extxyz", index=":")
    for replica, frames in ((0, found[:FRAMES]), (1, found[FRAMES:])):
        for k, atoms in enumerate(frames):
            told = atoms.info
            assert (told["replica"], told["time"], tuple(atoms.symbols)) == (replica, INTERVAL * k, SPECIES)
            np.testing.assert_allclose(atoms.positions, trajectory.positions[k, replica], atol=1e-8)
            np.testing.assert_allclose(atoms.get_momenta(), trajectory.momenta[k, replica], atol=1e-8)
            np.testing.assert_allclose(atoms.get_velocities() * units.fs, velocities[k, replica], atol=1e-8)
            np.testing.assert_allclose(atoms.get_forces(), forces[k, replica], atol=1e-8)
            assert atoms.get_potential_energy() == pytest.approx(trajectory.energies[k, replica], abs=1e-9)
            assert told["temperature"] == pytest.approx(trajectory.temperatures[k, replica], abs=1e-9)
            assert told["conserved_energy"] == pytest.approx(trajectory.conserved_energies[k, replica], abs=1e-9)
            np.testing.assert_allclose(told["kinetic_energies"], trajectory.kinetic_energies[k, replica], atol=1e-8)
            assert not atoms.pbc.any()


def test_what_is_not_known_is_not_there(trajectory, tmp_path):
    bare = replace(trajectory, momenta=None, conserved_energies=np.full_like(trajectory.energies, np.nan))
    export(bare, tmp_path / "bare.extxyz", 0)
    atoms = read(tmp_path / "bare.extxyz", index=0)
    assert not atoms.has("momenta") and "forces" not in atoms.calc.results and "conserved_energy" not in atoms.info
    assert left_out(bare, tmp_path / "bare.extxyz") == [
        "no velocities: the run kept no momenta; `iqagp simulate --momenta` does",
        "no frame of replica 2: it was never alive in one",
    ]


@pytest.mark.parametrize("ending", [".h5md", ".h5"])
def test_mdanalysis_reads_h5md(trajectory, forces, velocities, tmp_path, ending, mdanalysis):
    assert export(trajectory, tmp_path / f"run{ending}", each=True, forces=forces) == FRAMES + LIVED
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"run-0000{ending}", f"run-0001{ending}", "run.pdb"]
    for replica, count in ((0, FRAMES), (1, LIVED)):
        path = tmp_path / f"run-{replica:04d}{ending}"
        universe = mdanalysis.Universe(tmp_path / "run.pdb", path, format="H5MD", convert_units=True)
        assert len(universe.trajectory) == count and tuple(universe.atoms.elements) == SPECIES
        for k, frame in enumerate(universe.trajectory):
            assert (frame.frame, frame.dimensions) == (k, None) and frame.time == pytest.approx(INTERVAL * k / 1000)
            np.testing.assert_allclose(frame.positions, trajectory.positions[k, replica], atol=1e-6)
            np.testing.assert_allclose(frame.velocities, 1000 * velocities[k, replica], rtol=1e-5, atol=1e-4)
            np.testing.assert_allclose(frame.forces, forces[k, replica] / KJ_MOL, rtol=1e-5, atol=1e-4)
            group = f"replica_{replica:04d}"
            assert frame.data[f"{group}/potential_energy"] == trajectory.energies[k, replica]
            assert frame.data[f"{group}/temperature"] == trajectory.temperatures[k, replica]


def test_mdanalysis_reads_the_first_replica_of_several(trajectory, tmp_path, mdanalysis):
    export(replace(trajectory, alive=trajectory.alive[:, [1, 0, 2]]), path := tmp_path / "run.h5md")
    assert len(mdanalysis.Universe(tmp_path / "run.pdb", path).trajectory) == LIVED
    assert left_out(trajectory, path)[-1].startswith("MDAnalysis reads the first replica of such a file alone; --each")


def test_znh5md_reads_h5md(trajectory, forces, velocities, tmp_path):
    """And what it takes for momenta and forces are those in ASE's units."""
    znh5md = pytest.importorskip("znh5md", reason="znh5md, which reads H5MD, is not installed")
    export(trajectory, path := tmp_path / "run.h5", forces=forces)
    for replica, count in ((0, FRAMES), (1, LIVED)):
        found = znh5md.IO(path, particles_group=f"replica_{replica:04d}")
        assert len(found) == count
        for k, atoms in enumerate(found[:]):
            assert (atoms.info["time"], atoms.info["replica"], tuple(atoms.symbols)) == (INTERVAL * k, replica, SPECIES)
            np.testing.assert_array_equal(atoms.positions, trajectory.positions[k, replica])
            np.testing.assert_array_equal(atoms.get_masses(), trajectory.masses)
            np.testing.assert_array_equal(atoms.get_momenta(), trajectory.momenta[k, replica])
            np.testing.assert_array_equal(atoms.get_forces(), forces[k, replica])
            assert atoms.get_potential_energy() == trajectory.energies[k, replica]
            assert atoms.info["temperature"] == trajectory.temperatures[k, replica]
            assert not atoms.pbc.any()


def test_h5md_keeps_the_rules_of_its_specification(trajectory, forces, tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py, which writes H5MD, is not installed")
    export(trajectory, path := tmp_path / "run.h5", 1, forces=forces)
    with h5py.File(path) as file:
        assert file["h5md"].attrs["version"].tolist() == [1, 1] and {"name", "version"} <= file["h5md/creator"].attrs.keys()
        assert file["particles/replica_0001/box"].attrs["boundary"].tolist() == ["none"] * 3
        elements = []
        file.visititems(lambda name, item: elements.append(item) if isinstance(item, h5py.Group) and "value" in item else None)
        assert len(elements) == 8 + 6
        for element in elements:
            assert element["step"][:].tolist() == list(range(LIVED)), element.name
            assert element["time"][:].tolist() == trajectory.times[:LIVED].tolist() and element["time"].attrs["unit"] == "fs"
            assert len(element["value"]) == LIVED
            np.testing.assert_array_equal(element["time"].id.get_offset(), elements[0]["time"].id.get_offset() or element["time"].id.get_offset())


@pytest.mark.parametrize("ending", OF_MDANALYSIS)
def test_mdanalysis_and_mdtraj_read_one_replica_a_file(trajectory, forces, velocities, tmp_path, ending, mdanalysis, mdtraj):
    export(trajectory, path := tmp_path / f"run{ending}", 1, forces=forces)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # MDAnalysis' DCD reader speaks of its own future
        universe = mdanalysis.Universe(tmp_path / "run.pdb", path)
    expected = trajectory.positions[:LIVED, 1]
    assert len(universe.trajectory) == LIVED
    for k, frame in enumerate(universe.trajectory):
        assert frame.time == pytest.approx(INTERVAL * k / 1000, rel=1e-6)
        np.testing.assert_allclose(frame.positions, expected[k], atol=2e-5 if ending == ".xtc" else 1e-6)
        if ending == ".trr":
            np.testing.assert_allclose(frame.velocities, 1000 * velocities[k, 1], rtol=1e-5, atol=1e-4)
            np.testing.assert_allclose(frame.forces, forces[k, 1] / KJ_MOL, rtol=1e-5, atol=1e-4)
    found = mdtraj.load(path, top=tmp_path / "run.pdb")
    assert tuple(atom.element.symbol for atom in found.topology.atoms) == SPECIES
    np.testing.assert_allclose(10 * found.xyz, expected, atol=2e-5 if ending == ".xtc" else 1e-6)
    if ending != ".dcd":  # mdtraj reads no times there
        np.testing.assert_allclose(found.time, INTERVAL * np.arange(LIVED) / 1000, rtol=1e-6)
