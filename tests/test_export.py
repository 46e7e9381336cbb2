"""Exports are read back by the programs that they are for."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from ase.io import read
from conftest import REFERENCE, SPECIES
from test_checkpoint import compiled_once  # noqa: F401 (all runs here share what they compile)

from iqagp_jax import load_trajectory, simulate
from iqagp_jax.compose import Sum
from iqagp_jax.dynamics.forces import forces_at_frames
from iqagp_jax.dynamics.trajectory import Trajectory, write_piece
from iqagp_jax.families.pairs.models import BondedMorse
from iqagp_jax.formats.trajectories import OF_MDANALYSIS, export, left_out, write_topology
from iqagp_jax.potential import energy_and_forces
from iqagp_jax.system.elements import masses_of
from iqagp_jax.system.system import System
from iqagp_jax.units import KJ_MOL, TIME_UNIT

pytestmark = pytest.mark.filterwarnings("ignore:DCDReader currently:DeprecationWarning")  # MDAnalysis speaks of its own future

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
    assert left_out(trajectory, path)[-1].startswith(
        "MDAnalysis reads the first replica of such a file alone, until any failed; --each"
    )


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


@pytest.mark.parametrize("ending", OF_MDANALYSIS)
def test_mdanalysis_and_mdtraj_read_one_replica_a_file(trajectory, forces, velocities, tmp_path, ending, mdanalysis, mdtraj):
    export(trajectory, path := tmp_path / f"run{ending}", 1, forces=forces)
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


def test_xtc_keeps_six_digits(trajectory, tmp_path, mdanalysis, mdtraj):
    """Of more than nine atoms, which it compresses."""
    names = ("positions", "momenta")
    large = {name: np.tile(getattr(trajectory, name), (1, 1, 3, 1)) for name in names}
    twelve = replace(trajectory, species=np.tile(SPECIES, 3), masses=np.tile(trajectory.masses, 3), **large)
    export(twelve, tmp_path / "run.xtc", 0)
    found = mdtraj.load(tmp_path / "run.xtc", top=tmp_path / "run.pdb")
    np.testing.assert_allclose(10 * found.xyz, twelve.positions[:, 0], atol=6e-6)


@pytest.mark.parametrize("ending", [".extxyz", ".trr", ".xtc"])
def test_ovito_reads(trajectory, forces, velocities, tmp_path, ending, monkeypatch, request):
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    importer = pytest.importorskip("ovito.io", reason="OVITO is not installed")
    if ending != ".extxyz":
        request.getfixturevalue("mdanalysis")
    export(trajectory, path := tmp_path / f"run{ending}", 0, forces=forces)
    found = importer.import_file(str(path))
    assert found.source.num_frames == FRAMES
    for k in range(FRAMES):
        data = found.compute(k)
        np.testing.assert_allclose(data.particles.positions[...], trajectory.positions[k, 0], atol=2e-5)
        if ending == ".extxyz":
            assert data.attributes["time"] == INTERVAL * k
            np.testing.assert_allclose(data.particles["momenta"][...], trajectory.momenta[k, 0], atol=1e-8)
            np.testing.assert_allclose(data.particles["Force"][...], forces[k, 0], atol=1e-8)
        else:
            assert data.attributes["Time"] == pytest.approx(INTERVAL * k / 1000, rel=1e-6)
        if ending == ".trr":
            np.testing.assert_allclose(data.particles["Velocity"][...], 1000 * velocities[k, 0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("ending", [".extxyz", ".h5md", *OF_MDANALYSIS])
def test_walls_are_told(trajectory, tmp_path, ending, mdanalysis):
    walled = System.of(SPECIES, REFERENCE, cell=WALLS)
    export(trajectory, path := tmp_path / f"run{ending}", 0, system=walled)
    if ending == ".extxyz":
        atoms = read(path, index=3)
        assert atoms.pbc.all()
        np.testing.assert_allclose(atoms.cell, WALLS, atol=1e-12)
        return
    universe = mdanalysis.Universe(tmp_path / "run.pdb", path)
    np.testing.assert_allclose(universe.trajectory[3].triclinic_dimensions, WALLS, atol=1e-4)
    np.testing.assert_allclose(universe.trajectory[3].positions, trajectory.positions[3, 0], atol=2e-5)


def test_walls_that_lengths_and_angles_do_not_tell_are_refused(trajectory, tmp_path, mdanalysis):
    turned = System.of(SPECIES, REFERENCE, cell=WALLS[[1, 0, 2]])
    with pytest.raises(ValueError, match="expected the first lattice vector along x"):
        export(trajectory, tmp_path / "run.dcd", 0, system=turned)


def test_every_molecule_is_a_residue_with_names_of_its_own(tmp_path, mdtraj):
    water = System.of(2 * ("O", "H", "H"), np.arange(18.0).reshape(6, 3), molecules=[0, 0, 0, 1, 1, 1])
    write_topology(tmp_path / "run.pdb", Atoms(water.species, water.positions), water)
    residues = list(mdtraj.load(tmp_path / "run.pdb").topology.residues)
    assert [[atom.name for atom in residue.atoms] for residue in residues] == 2 * [["O1", "H1", "H2"]]


def test_a_topology_that_is_there_is_kept_if_it_may_serve(trajectory, tmp_path):
    pytest.importorskip("h5py", reason="h5py, which writes H5MD, is not installed")
    topology = tmp_path / "run.pdb"
    write_topology(topology, Atoms(SPECIES, REFERENCE + 1.0))
    mine = topology.read_text().replace("MOL", "FOR")
    topology.write_text(mine)
    export(trajectory, tmp_path / "run.h5")
    assert topology.read_text() == mine
    topology.write_text(mine.replace(" O  ", " N  "))
    with pytest.raises(ValueError, match="expected a topology of these atoms or none, found others in"):
        export(trajectory, tmp_path / "run.h5")
    topology.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="expected a topology or none, found something else in"):
        export(trajectory, tmp_path / "run.h5")


def test_what_cannot_be_exported_gets_a_sentence(trajectory, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"expected an output ending in one of \.extxyz .*, found 'run\.nc'"):
        export(trajectory, tmp_path / "run.nc")
    with pytest.raises(ValueError, match="expected a replica that was alive in one frame or more"):
        export(trajectory, tmp_path / "run.extxyz", 2)
    for name in ("MDAnalysis", "h5py"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"expected MDAnalysis for \.dcd, found none"):
        export(trajectory, tmp_path / "run.dcd", 0)
    with pytest.raises(ValueError, match=r"expected h5py for \.h5, found none"):
        export(trajectory, tmp_path / "run.h5", 0)
    assert not list(tmp_path.iterdir())


def test_one_replica_a_file_is_asked_for(trajectory, tmp_path, mdanalysis):
    with pytest.raises(
        ValueError, match=r"expected one replica for \.xtc, which holds no more, found 3; choose one by --replica"
    ):
        export(trajectory, tmp_path / "run.xtc")
    assert left_out(trajectory, tmp_path / "run.xtc", 0) == [
        ".xtc holds no energies, temperatures, velocities or forces; .h5md and .extxyz do"
    ]
    assert left_out(trajectory, tmp_path / "run.trr", 0) == [".trr holds no energies or temperatures; .h5md and .extxyz do"]


def test_pieces_with_and_without_momenta_are_not_of_one_run(trajectory, tmp_path):
    write_piece(tmp_path, 0, trajectory)
    later = replace(trajectory, times=trajectory.times + INTERVAL * FRAMES)
    write_piece(tmp_path, 1, replace(later, momenta=None))
    with pytest.raises(ValueError, match="expected the pieces of one run"):
        load_trajectory(tmp_path)
    write_piece(tmp_path, 1, replace(later, momenta=np.full_like(trajectory.positions, np.nan)))
    with pytest.raises(ValueError, match="expected finite numbers as momenta of what is alive"):
        load_trajectory(tmp_path)


# Runs that keep momenta, and forces made anew

WATER = System.of(("O", "H", "H"), [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
POTENTIAL = BondedMorse.of(WATER)
OPTIONS = {"temperature": 300.0, "frame_interval": 2.0, "momenta": True, "frames_per_piece": 4, "progress": False}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run that kept momenta, in two goes."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    for time in (0.01, 0.02):
        run = simulate(POTENTIAL, WATER, np.repeat(WATER.positions[None], 2, axis=0), folder, time=time, **OPTIONS)
    return run


def test_a_run_keeps_momenta_where_it_is_asked_to(kept):
    found = load_trajectory(kept.directory)
    assert found.momenta.shape == found.positions.shape == (11, 2, 3, 3)
    np.testing.assert_array_equal(found.momenta[-1], kept.momenta)
    kinetic = (found.momenta**2 / found.masses[:, None]).sum((2, 3)) / 2
    np.testing.assert_allclose(kinetic, found.kinetic_energies.sum(-1), rtol=1e-10)


def test_momenta_are_kept_from_the_beginning_or_not_at_all(kept):
    starts, bare = np.repeat(WATER.positions[None], 2, axis=0), OPTIONS | {"momenta": False}
    with pytest.raises(ValueError, match=r"found a different momenta \(True there, None here\)"):
        simulate(POTENTIAL, WATER, starts, kept.directory, time=0.02, **bare)


def test_forces_are_made_anew_by_the_potential_of_the_run(kept):
    found = forces_at_frames(POTENTIAL, kept.trajectory, kept.system)
    _, expected = energy_and_forces(POTENTIAL, system=WATER)(kept.trajectory.positions[:, 1])
    np.testing.assert_allclose(found[:, 1], expected, atol=1e-9)
    assert np.abs(expected).max() > 0.1
    dead = replace(kept.trajectory, alive=kept.trajectory.alive & [True, False])
    assert np.isnan(forces_at_frames(POTENTIAL, dead, kept.system)[:, 1]).all()
    with pytest.raises(ValueError, match="expected the potential that drove the trajectory, found one whose energies"):
        forces_at_frames(Sum(POTENTIAL, POTENTIAL), kept.trajectory, kept.system)
