"""Campaigns: what is killed, stopped, impossible or run elsewhere, and what must be on disk afterwards."""

import json
import lzma
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write
from test_cli import iqagp

from iqagp_jax.data.dataset import concatenate
from iqagp_jax.data.extxyz import load_dataset, save_dataset
from iqagp_jax.data.level import Level
from iqagp_jax.labels import campaign, executors, pack, queue
from iqagp_jax.labels.executors import Jobs, Processes, dask_workers
from iqagp_jax.labels.label import label_key
from iqagp_jax.labels.pack import PACK, Labels
from iqagp_jax.labels.plan import PLAN, LabelPlan, check, read_geometries
from iqagp_jax.machine.lock import owned, owner, request_stop
from iqagp_jax.units import HARTREE

WATER = np.array([[0.0, 0.0, 0.1173], [0.0, 0.7572, -0.4692], [0.0, -0.7572, -0.4692]])
SETTINGS = {"xc": "hf", "basis": "sto-3g", "partitions": ("becke",)}
OPTIONS = ("--xc", "hf", "--basis", "sto-3g", "--partition", "becke")


def write_geometries(path, n):
    rng = np.random.default_rng(3)
    write(path, [Atoms("OHH", positions=WATER + 0.05 * rng.normal(size=(3, 3))) for _ in range(n)])
    return path


def begin(folder, n):
    folder.mkdir(exist_ok=True)
    return campaign.begin(folder / "campaign", write_geometries(folder / "water.xyz", n), **SETTINGS)


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}


@pytest.fixture
def quick(monkeypatch):
    """Labels made up in no time; returns the list of the geometries in the order in which they are labelled."""
    begun = []

    def label_geometry(species, positions, plan):
        begun.append(float(positions[0, 0]))
        forces = [[0.1] * 3] * len(species)
        energies = {name: [0.0] * len(species) for name in plan.partitions}
        rest = dict.fromkeys(plan.partitions, -1.0)
        charges = {name: [plan.charge / len(species)] * len(species) for name in plan.partitions}
        return {"energy": -1.0, "forces": forces, "raw": energies, "charges": charges, "remainder": rest}

    monkeypatch.setattr(queue, "label_geometry", label_geometry)
    return begun


@pytest.mark.labels
def test_workers_killed_ten_times_lose_nothing(tmp_path):
    undisturbed, killed = begin(tmp_path / "undisturbed", 40), begin(tmp_path / "killed", 40)
    with Processes(2) as executor:
        undisturbed.run(executor, 2)
    before = set(active_children())
    chance, kills = random.Random(0), []

    def kill():
        for k in range(10):
            while len(stamps(killed.folder)) < 3 * k:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.3))
            while not (workers := set(active_children()) - before):
                time.sleep(0.01)
            victim = chance.choice(sorted(workers, key=lambda process: process.pid))
            kills.append((victim.pid, stamps(killed.folder)))
            os.kill(victim.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with Processes(2) as executor:
        killed.run(executor, 2)
    killer.join(timeout=1)
    assert len(kills) == 10
    assert len({task.path for task in killed.tasks}) == 40
    assert killed.progress().made == 40
    assert len(stamps(killed.folder)) == 40 + 2  # and the free atoms
    for task, twin in zip(killed.tasks, undisturbed.tasks, strict=True):
        label, same = killed.labels.get(task.key), undisturbed.labels.get(twin.key)
        assert label["energy"] == pytest.approx(same["energy"], abs=1e-8 * HARTREE)
        np.testing.assert_allclose(label["raw"]["becke"], same["raw"]["becke"], atol=1e-8 * HARTREE)
    last = stamps(killed.folder)
    assert all(last[name] == stamp for _, found in kills for name, stamp in found.items())


@pytest.mark.labels
def test_a_killed_campaign_goes_on(tmp_path, capsys):
    write_geometries(tmp_path / "water.xyz", 16)
    folder = tmp_path / "campaign"
    start = (sys.executable, "-m", "iqagp_jax", "campaign", "start")
    command = (*start, folder, tmp_path / "water.xyz", *OPTIONS, "--workers", "2")
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while len(stamps(folder)) < 4:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)  # lest it be done before the next line
    assert iqagp("campaign", "start", folder) == 2
    assert f"is owned by a running campaign (process {process.pid} on " in capsys.readouterr().err.replace("\n", " ")
    process.kill()
    process.wait()
    assert owner(folder) is None
    finished = stamps(folder)
    assert iqagp("campaign", "status", folder) == 0
    assert "none, does not run" in capsys.readouterr().out
    assert iqagp("campaign", "collect", folder, "-o", tmp_path / "part.extxyz") == 0
    assert 1 <= len(load_dataset(tmp_path / "part.extxyz")) < 16
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert stamps(folder).items() >= finished.items()
    assert iqagp("campaign", "collect", folder, "-o", tmp_path / "all.extxyz") == 0
    dataset = load_dataset(tmp_path / "all.extxyz")
    np.testing.assert_allclose(dataset.positions, [a.positions for a in read(tmp_path / "water.xyz", ":")], atol=1e-8)
    assert set(dataset.free_atoms) == {"H", "O"}
    assert iqagp("campaign", "collect", folder, "-o", tmp_path / "both.extxyz", "--beside", tmp_path / "all.extxyz") == 2
    assert "expected a partition that the dataset lacks" in " ".join(capsys.readouterr().err.split())


@pytest.mark.labels
def test_submitit(tmp_path, monkeypatch, capsys):
    # Its setting up of logging would make absl close the stream that pytest captured at the time absl was imported.
    monkeypatch.setenv("SUBMITIT_LOG_LEVEL", "NOCONFIG")
    water = write_geometries(tmp_path / "water.xyz", 4)
    where = ("--executor", "submitit", "--workers", 2, "--batch", 3, "--job", "timeout_min=5", "--job", "slurm_partition=short")
    assert iqagp("campaign", "start", tmp_path / "campaign", water, *OPTIONS, *where) == 0
    assert len(stamps(tmp_path / "campaign")) == 4 + 2
    assert len(list((tmp_path / "campaign" / "jobs").glob("*_submitted.pkl"))) == 2
    assert iqagp("campaign", "start", tmp_path / "campaign", *where[:2], "--job", "memory=5") == 2
    assert "expected parameters of submitit's AutoExecutor" in capsys.readouterr().err


@pytest.mark.labels
def test_dask_with_a_killed_worker(tmp_path):
    from distributed import LocalCluster

    running = begin(tmp_path, 8)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        victim = next(iter(cluster.workers.values())).pid

        def kill():
            while len(stamps(running.folder)) < 3:
                time.sleep(0.01)
            os.kill(victim, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        where = ("--executor", "dask", "--scheduler", cluster.scheduler_address)
        assert iqagp("campaign", "start", running.folder, *where) == 0
        killer.join()
    assert not running.missing
    assert running.progress().made == 8
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        pytest.raises(ValueError, match=r"expected workers of one thread each at .*, found \[2\] threads"),
        dask_workers(cluster.scheduler_address),
    ):
        pass


def test_processes_die_alone():
    with Processes(2) as executor:
        dying, living = executor.submit(os._exit, 3), executor.submit(sum, [1, 2])
        with pytest.raises(RuntimeError, match="ended with exit code 3"):
            dying.result()
        assert living.result() == 3
        with pytest.raises(ValueError, match="invalid literal"):
            executor.submit(int, "x").result()
        assert executor.submit(abs, -1).result() == 1


class Deadly(ThreadPoolExecutor):
    """Threads that stand for workers; one that is given a geometry of ``deadly`` dies of it, and how many run is noted."""

    def __init__(self, workers, deadly):
        super().__init__(workers)
        self.deadly, self.beside, self.running = deadly, [], 0

    def submit(self, function, tasks):
        return super().submit(self._run, function, tasks)

    def _run(self, function, tasks):
        self.running += 1
        try:
            time.sleep(0.02)
            for task in tasks:
                if task.positions[0, 0] in self.deadly:
                    self.beside.append(self.running)
                    raise RuntimeError("no memory")
                function([task])
            return {task.path: "" for task in tasks}
        finally:
            self.running -= 1


@pytest.mark.parametrize("batch", [1, 3])
def test_geometries_that_kill_their_workers_are_tried_alone_and_set_aside(tmp_path, quick, batch):
    started = begin(tmp_path, 12)
    deadly = [started.tasks[k] for k in (2, 7)]
    with Deadly(3, {task.positions[0, 0] for task in deadly}) as executor:
        started.run(executor, 3, batch)
    assert len(executor.beside) == 12
    assert executor.beside[6:] == [1] * 6
    for task in deadly:
        assert started.labels.get(task.key) == {"rejected": "its worker died 6 times, lastly with nothing beside it: no memory"}
    assert len(quick) == 10 + 2
    assert started.progress().made == 10


def test_workers_that_only_die_end_the_campaign(tmp_path, quick):
    started = begin(tmp_path, 30)
    with (
        Deadly(2, {task.positions[0, 0] for task in started.tasks}) as executor,
        pytest.raises(RuntimeError, match="20 workers died one after another, lastly: no memory"),
    ):
        started.run(executor, 2)
    assert owner(started.folder) is None


def test_a_geometry_that_fails_three_times_is_set_aside_with_its_error(tmp_path, quick, monkeypatch, capsys):
    started = begin(tmp_path, 5)
    bad, label_geometry = started.tasks[1].positions[0, 0], queue.label_geometry

    def label(species, positions, plan):
        label = label_geometry(species, positions, plan)
        return {"energy": 1 / 0} if positions[0, 0] == bad else label

    monkeypatch.setattr(queue, "label_geometry", label)
    for attempts in (3, 0):  # a second start leaves it aside
        quick.clear()
        with ThreadPoolExecutor(2) as executor:
            started.run(executor, 2, batch=4)
        assert quick.count(bad) == attempts
    assert started.tasks[1].failed.read_text().count("ZeroDivisionError") == 4  # in the sentence and thrice
    assert iqagp("campaign", "status", started.folder) == 0
    assert "failed 3 times, lastly: ZeroDivisionError" in " ".join(capsys.readouterr().out.split())
    dataset, rejected = started.dataset()
    assert len(dataset) == 4
    assert rejected == [(1, "failed 3 times, lastly: ZeroDivisionError: division by zero")]


class DropsWhatRuns(ThreadPoolExecutor):
    """An executor that cancels running tasks when it is shut down, as Dask's does."""

    def shutdown(self, wait=True, *, cancel_futures=False):
        assert wait, "tasks in flight would be lost"
        super().shutdown(wait, cancel_futures=cancel_futures)


def test_a_stop_finishes_what_is_in_flight(tmp_path, quick, monkeypatch):
    started, label_geometry = begin(tmp_path, 9), queue.label_geometry

    def label(*arguments):
        if len(quick) == 4:
            assert str(os.getpid()) in request_stop(started.folder)
            assert started.progress().stopping
        return label_geometry(*arguments)

    monkeypatch.setattr(queue, "label_geometry", label)
    with DropsWhatRuns(1) as executor:
        started.run(executor, 1, batch=3)
    assert len(stamps(started.folder)) == 5
    with pytest.raises(ValueError, match="expected a running campaign to stop, found none"):
        request_stop(started.folder)
    monkeypatch.setattr(queue, "label_geometry", label_geometry)
    with ThreadPoolExecutor(1) as executor:
        started.run(executor, 1)
    assert len(quick) == 11


def test_rate_and_end_are_those_of_the_last_start(tmp_path, quick):
    started = begin(tmp_path, 11)
    assert started.progress() == campaign.Progress(11, 0, 0, 0, None, False, None, None)
    with ThreadPoolExecutor(1) as executor:
        started.run(executor, 1)
    now = time.time()
    for k, task in enumerate(started.tasks):  # four long ago, four a minute each since the start, three not yet
        os.utime(task.path, (now, now - 9999 + k if k < 4 else now - 240 + 60 * (k - 3)))
    for task in started.tasks[8:]:
        task.path.unlink()
    with owned(started.folder):
        os.utime(started.folder / "lock", (now, now - 240))
        status = started.progress()
        assert status.owner
        assert status.rate == pytest.approx(1 / 60, rel=0.01)
        assert status.end.timestamp() == pytest.approx(now + 3 * 60, abs=2)
    assert started.progress().end is None
    (started.folder / "lock").unlink()
    assert started.progress() == campaign.Progress(11, 8, 0, 0, None, False, None, None)  # a copy of the folder


@pytest.mark.labels
def test_labels_without_forces(tmp_path):
    folder, water = tmp_path / "campaign", write_geometries(tmp_path / "water.xyz", 1)
    assert iqagp("campaign", "start", folder, water, *OPTIONS, "--no-forces", "--workers", 1) == 0
    dataset, _ = campaign.Campaign.load(folder).dataset()
    assert dataset.forces is None
    assert dataset.atomic_energies.sum() == pytest.approx(dataset.energy[0], abs=1e-6)
    without, whole = (label_key("OHH", WATER, LabelPlan(forces=forces)) for forces in (False, True))
    assert without != whole


def test_label_goes_on_in_a_folder_of_an_earlier_version(tmp_path, quick, capsys):
    """Names and contents of label files are those of version 0.1, for labels outlive versions."""
    assert label_key("OHH", WATER, LabelPlan(basis="6-31g")) == "049eb4969388df447d1a"
    plan = LabelPlan("hf", "sto-3g")
    water, folder = write_geometries(tmp_path / "water.xyz", 3), tmp_path / "d.extxyz.labels"
    folder.mkdir()
    _, *others = campaign.Campaign(folder, read(water, ":"), plan, 3).missing
    for task in others:
        task.path.write_text(json.dumps(queue.label_geometry(task.species, task.positions, plan)))
    made = stamps(folder)
    assert iqagp("label", water, "-o", tmp_path / "d.extxyz", "--xc", "hf", "--basis", "sto-3g", "--workers", 1) == 0
    assert "3 labelled geometries" in capsys.readouterr().out
    assert len(stamps(folder).items() - made.items()) == 1
    assert load_dataset(tmp_path / "d.extxyz").free_atoms.keys() == {"H", "O"}
    assert iqagp("campaign", "status", folder) == 0


def test_a_molecule_across_the_wall_of_its_cell_is_put_together(tmp_path):
    wrapped = WATER + np.array([0.0, 0.3, 0.0])
    wrapped[2, 1] += 9.0
    write(tmp_path / "wrapped.extxyz", Atoms("OHH", positions=wrapped, cell=[9.0] * 3, pbc=True))
    with pytest.warns(UserWarning, match="in 1 of 1 frames the molecule lay across the walls"):
        (atoms,) = read_geometries(tmp_path / "wrapped.extxyz")
    np.testing.assert_allclose(atoms.positions - atoms.positions[0], WATER - WATER[0], atol=1e-8)
    assert not atoms.pbc.any()


def test_geometries_of_an_ion_are_labelled_as_one():
    frames = [Atoms("OH", positions=[[0.0, 0, 0], [0.97, 0, 0]], info={"charge": -1})]
    check(frames, LabelPlan("hf", "sto-3g", charge=-1, partitions=()))
    with pytest.raises(ValueError, match="expected charge -1 and 0 unpaired electrons, as the geometries tell, found 0 and 1;"):
        check(frames, LabelPlan("hf", "sto-3g", spin=1, partitions=()))


def test_geometries_of_another_charge_than_the_plans_are_refused_when_a_folder_is_read(tmp_path, capsys):
    folder = begin(tmp_path, 2).folder
    geometries = folder / "water.xyz"
    geometries.write_text(geometries.read_text().replace('pbc="F F F"', 'pbc="F F F" charge=2'))
    assert iqagp("campaign", "collect", folder, "-o", tmp_path / "d.extxyz") == 2
    assert "expected charge 2 and 0 unpaired electrons, as the geometries tell, found 0" in capsys.readouterr().err.replace(
        "\n", " "
    )


def test_what_the_geometries_say_of_their_own_labels_is_not_believed():
    old = {"level_of_theory": "b3lyp/6-31g", "programs": "pyscf 1.0", "partition": "becke", "sampler": "by hand"}
    plan = LabelPlan("pbe", "def2-svp", partitions=())
    label = {"energy": -1.0, "forces": [[0.1] * 3] * 3}
    frames = [Atoms("OHH", positions=WATER, info=old)] * 2
    dataset, _ = campaign.collect(frames, [label, {**label, "programs": "pyscf 2.0"}], plan, {})
    assert dataset.level["level_of_theory"].startswith("pbe/def2-svp") and dataset.level["sampler"] == "by hand"
    assert dataset.level["programs"] == f"pyscf 2.0; {plan.level.programs}"
    assert "partition" not in dataset.level


def test_the_charge_and_spin_of_the_plan_are_those_of_the_dataset(tmp_path):
    """Levels of a molecule and its dianion described themselves with the same words."""
    label = {"energy": -1.0, "forces": [[0.1] * 3] * 3}
    frames = [Atoms("OHH", positions=WATER)]
    neutral, dianion, triplet = (LabelPlan(partitions=(), **state) for state in ({}, {"charge": -2}, {"spin": 2}))
    collected = [campaign.collect(frames, [label], plan, {})[0] for plan in (neutral, dianion, triplet)]
    assert len({str(dataset.level) for dataset in collected}) == 3
    save_dataset(collected[1], tmp_path / "dianion.extxyz")
    assert load_dataset(tmp_path / "dianion.extxyz").level == dianion.level
    for other in collected[1:]:
        with pytest.raises(ValueError, match="expected datasets of the same atoms and level of theory"):
            concatenate([collected[0], other])
    spaced = LabelPlan("0.2*hf + 0.8*pbe, pbe", partitions=()).level
    assert Level.of_words(spaced.theory).same_energies(spaced)
    free = campaign.Campaign(tmp_path, frames, dianion, 3).free_atoms
    assert {symbol: (task.plan.charge, task.plan.spin) for symbol, task in free.items()} == {"H": (0, 1), "O": (0, 2)}


def test_a_split_that_a_geometry_lacks_is_asked_for():
    frames = [Atoms("OHH", positions=WATER, info=info) for info in ({"split": "train"}, {"split": "test"}, {})]
    with pytest.raises(ValueError, match="expected split of every geometry or of none, found none of geometry 2"):
        check(frames, LabelPlan("hf", "sto-3g"))


class QueuedJob:
    """A job that Slurm never begins."""

    job_id, state, cancelled = "7", "PENDING", False

    def done(self):
        return False

    def cancel(self, check):
        self.cancelled = True


def test_jobs_that_have_not_begun_are_cancelled_by_a_stop(tmp_path):
    started, job = begin(tmp_path, 2), QueuedJob()

    class Slurm:
        def submit(self, function, *arguments):
            threading.Timer(0.1, request_stop, [started.folder]).start()
            return job

    with Jobs(Slurm(), 1) as executor:
        started.run(executor, 1)
    assert job.cancelled


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (("basis", "basics"), "expected entries among geometries, xc, basis"),
        (('"sto-3g"', '"sto-3g'), "is not TOML"),
        (('"sto-3g"', '"sto-7g"'), "basis 'sto-7g' is not there for all of H O"),
        (('"hf"', '"hartree"'), "expected a functional that PySCF knows"),
        (("charge = 0", "charge = 1"), "9 electrons cannot have 0 unpaired ones"),
        (("spin = 0", "spin = 12"), "10 electrons cannot have 12 unpaired ones"),
        (("charge = 0", "charge = '0'"), "expected charge like 0, found '0'"),
        (("attempts = 3", "attempts = 0"), "expected attempts of at least 1"),
        (('["becke"]', '["bader"]'), "expected partitions among becke, hirshfeld, qtaim, found bader"),
        (('["becke"]\nmultipoles = false\nforces = true', "[]\nforces = false"), "expected partitions or forces to label"),
        (('["becke"]\nmultipoles = false', "[]\nmultipoles = true"), "expected a partition into the atoms whose multipoles"),
        (("water.xyz", "fire.xyz"), "expected a file of geometries, found nothing"),
        (("water.xyz", "plan.toml"), "is not a whole file of geometries"),
        (("geometries =", "# geometries ="), "found no entry 'geometries'"),
        (("water.xyz", "../water.xyz"), "expected the name of a file of geometries in this folder, found '../water.xyz'"),
    ],
)
def test_plans_of_nonsense_get_a_sentence(tmp_path, capsys, edit, sentence):
    plan = begin(tmp_path, 2).folder / PLAN
    assert edit[0] in plan.read_text()
    plan.write_text(plan.read_text().replace(*edit))
    assert iqagp("campaign", "start", plan.parent, "--workers", 1) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("99999999999\n\nO 0 0 0\n", "line 1: expected 99999999999 atoms, found 1 lines of them"),
        ("1\n\nO 0 0 0\n2\n\nO 0 0 0\n", "line 4: expected 2 atoms, found 1 lines of them"),
        ("1\nProperties=species:S:1:pos:R:99999999999999999999\nO 0 0 0\n", "line 2: expected fewer than 1000 columns"),
        ("1\nProperties=species:S:999999999999:pos:R:3\nO 0 0 0\n", "line 2: expected fewer than 1000 columns"),
        ("1\n\nO 0 0\n", "is not a whole file of geometries"),
        ("", "is not a whole file of geometries|expected at least one geometry"),
    ],
)
def test_damaged_geometries_get_a_sentence(text, sentence, tmp_path):
    (tmp_path / "water.xyz").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        check(read_geometries(tmp_path / "water.xyz"), LabelPlan("hf", "sto-3g", partitions=()))


def test_a_folder_keeps_its_plan(tmp_path, quick, capsys):
    started = begin(tmp_path, 2)
    assert iqagp("campaign", "collect", started.folder, "-o", tmp_path / "d.extxyz") == 2
    assert "none is finished" in " ".join(capsys.readouterr().err.split())
    others = write_geometries(tmp_path / "others.xyz", 3)
    for arguments, sentence in (
        ((others,), "expected the geometries of"),
        ((tmp_path / "water.xyz", "--basis", "6-31g"), "expected basis sto-3g as in"),
    ):
        assert iqagp("campaign", "start", started.folder, *arguments) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    assert iqagp("campaign", "start", tmp_path / "empty") == 2
    assert "name a file of geometries to begin one" in " ".join(capsys.readouterr().err.split())
    assert iqagp("campaign", "start", started.folder, "--executor", "dask") == 2
    assert "give it with --scheduler" in " ".join(capsys.readouterr().err.split())


def labelled(folder, n):
    """A campaign whose labels are made."""
    made = begin(folder, n)
    with ThreadPoolExecutor(1) as executor:
        made.run(executor, 1)
    return made


def numbers(progress):
    return progress.total, progress.made, progress.rejected, progress.failed


def test_packed_labels_are_read_as_before(tmp_path, quick, monkeypatch, capsys):
    begun, label_geometry = begin(tmp_path, 6), queue.label_geometry
    bad, worse = (begun.tasks[k] for k in (1, 4))

    def label(species, positions, plan):
        label = label_geometry(species, positions, plan)
        if positions[0, 0] == worse.positions[0, 0]:
            return {"rejected": "the SCF did not converge"}
        if positions[0, 0] == bad.positions[0, 0]:
            return {"energy": 1 / 0}
        energy = float(positions[0, 0])
        return {**label, "energy": energy, "raw": {"becke": [energy + 1, *[0.0] * (len(species) - 1)]}}

    monkeypatch.setattr(queue, "label_geometry", label)
    with ThreadPoolExecutor(1) as executor:
        begun.run(executor, 1)
    (begun.folder / "notes.json").write_text("{}")
    whole, before = begun.dataset(), numbers(begun.progress())
    made = {path.stem: path.read_text() for path in begun.folder.glob("*.json") if path.stem != "notes"}
    assert before == (6, 4, 1, 1) and len(made) == 5 + 2
    assert iqagp("campaign", "pack", begun.folder) == 0
    assert f"7 labels in {begun.folder / PACK}, 7 of them new" in capsys.readouterr().out.replace("\n", "")
    assert [path.name for path in begun.folder.glob("*.json")] == ["notes.json"] and bad.failed.exists()
    assert pack.read_pack(begun.folder / PACK) == made
    for reader in (begun, campaign.Campaign.load(begun.folder)):
        assert not reader.missing and numbers(reader.progress()) == before
        dataset, rejected = reader.dataset()
        np.testing.assert_array_equal(dataset.energy, whole[0].energy)
        assert rejected == whole[1] and dataset.free_atoms == whole[0].free_atoms
    quick.clear()
    bad.failed.unlink()  # to have it tried again
    monkeypatch.setattr(queue, "label_geometry", label_geometry)
    with ThreadPoolExecutor(1) as executor:
        begun.run(executor, 1)
    assert quick == [bad.positions[0, 0]]
    assert begun.pack() == (8, 1) and begun.pack() == (8, 0)
    assert numbers(begun.progress()) == (6, 5, 1, 0)


GOOD = {
    "energy": -3.0,
    "forces": [[0.0] * 3] * 3,
    "raw": {"becke": [-1.0, -1.0, -0.9]},
    "charges": {"becke": [-0.5, 0.25, 0.25]},
    "remainder": {"becke": -0.1},
}

BAD = {
    "NaN": ({"energy": float("nan")}, "expected finite numbers as energy, found nan"),
    "null": ({"energy": None}, "expected numbers as energy, found None"),
    "text": ({"energy": "-3.0"}, "expected numbers as energy, found '-3.0'"),
    "no forces": ({"forces": ...}, "expected numbers as forces, found None"),
    "forces of two": ({"forces": [[0.0] * 3] * 2}, r"expected forces of shape \(3, 3\), found \(2, 3\)"),
    "uneven forces": ({"forces": [[0.0] * 3, [0.0]]}, "expected numbers as forces, found"),
    "1e300": ({"forces": [[1e300, 0.0, 0.0]] * 3}, r"as forces, found 1e\+300"),
    "no raw": ({"raw": ...}, "expected numbers as raw of becke atoms, found None"),
    "raw of another": ({"raw": {"hirshfeld": [0.0] * 3}}, "expected numbers as raw of becke atoms, found None"),
    "raw of two": ({"raw": {"becke": [0.0] * 2}}, "expected raw of becke atoms of shape"),
    "no remainder": ({"remainder": ...}, "expected numbers as remainder of becke atoms"),
    "no charges": ({"charges": ...}, "expected numbers as charges of becke atoms"),
    "another energy": ({"energy": -4.0}, "expected becke energies and remainder that sum to the energy, found -1 eV"),
    "other charges": ({"charges": {"becke": [9.0, 0.0, 0.0]}}, "expected becke charges that sum to 0, found 9 e too much"),
}


@pytest.mark.parametrize("what", BAD)
def test_labels_that_make_no_sense_get_a_sentence(what, tmp_path, capsys):
    changes, sentence = BAD[what]
    begun = begin(tmp_path, 1)
    (task,) = begun.tasks
    begun.folder.mkdir(exist_ok=True)
    task.path.write_text(json.dumps(GOOD))
    with pytest.warns(UserWarning, match="no energy of a free atom H or O is in .*: the dataset is without"):
        assert begun.dataset()[0].energy == -3.0
    task.path.write_text(json.dumps({key: value for key, value in {**GOOD, **changes}.items() if value is not ...}))
    for read_it in (begun.dataset, begun.progress):
        with pytest.raises(ValueError, match=f"label {task.key} in .*: .*{sentence}.*; remove it to label anew"):
            read_it()


@pytest.mark.parametrize(
    "text", ["{}", "null", "[]", "3", '{"rejected": 3}', '{"energy": -3.0, "for', "[" * 100_000, "\x00\xff"]
)
def test_what_is_no_label_gets_a_sentence(text, tmp_path):
    begun = begin(tmp_path, 1)
    (task,) = begun.tasks
    task.path.write_bytes(text.encode("latin-1"))
    for read_it in (begun.dataset, begun.progress, begun.pack):
        with pytest.raises(ValueError, match=r"expected a label .*; remove it to label anew"):
            read_it()
    task.path.unlink()
    task.path.mkdir()
    with pytest.raises(ValueError, match=r"expected a label in .*, found a folder"):
        begun.dataset()


def test_a_pack_tells_its_checksum(tmp_path, quick):
    made = labelled(tmp_path, 2)
    made.pack()
    path = made.folder / PACK
    *lines, told = lzma.decompress(path.read_bytes()).decode().splitlines(keepends=True)
    assert set(json.loads(told)) == {"checksum"}
    path.write_bytes(lzma.compress("".join(lines).encode()))
    assert len(pack.read_pack(path)) == 4  # one of before 2026-12
    for spoilt in (
        [*lines[1:], told],
        [*lines, '{"checksum": "0"}'],
        ["[3, null]\n"],
        ['["a"]\n'],
        ["{}\n"],
        [*lines, lines[0]],
    ):
        path.write_bytes(lzma.compress("".join(spoilt).encode()))
        with pytest.raises(ValueError, match=r"expected labels packed by .*, found a damaged file"):
            pack.read_pack(path)


def test_the_same_labels_make_the_same_pack(tmp_path, quick):
    once, twice = labelled(tmp_path / "once", 8), labelled(tmp_path / "twice", 8)
    once.pack()
    late = {path: path.read_bytes() for path in sorted(twice.folder.glob("*.json"))[::2]}
    for path in late:
        path.unlink()
    twice.pack()
    for path, content in late.items():
        path.write_bytes(content)
    assert twice.pack() == (10, 5)
    assert (once.folder / PACK).read_bytes() == (twice.folder / PACK).read_bytes()


def test_packing_may_be_cut_short_anywhere(tmp_path, quick, monkeypatch):
    made = labelled(tmp_path, 6)
    texts = {path.stem: path.read_text() for path in made.folder.glob("*.json")}
    halves = sorted(made.folder.glob("*.json"))[:4]
    later = {path: path.read_bytes() for path in halves}
    for path in halves:
        path.unlink()
    made.pack()
    for path, content in later.items():
        path.write_bytes(content)

    def cut(*arguments, **options):
        raise KeyboardInterrupt

    for what in ("write_atomically", "rename_durably", "read_pack"):
        labels = made.labels.packed  # read before, as another process has
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(pack, what, cut)
            made.pack()
        assert all(path.exists() for path in halves) and len(labels) == 4
        assert pack.read_pack(made.folder / PACK) == labels
    with monkeypatch.context() as patch, pytest.raises(OSError, match="does not read back as what was written"):
        patch.setattr(pack, "_compressed", lambda texts: (made.folder / PACK).read_bytes())
        made.pack()
    unlink, removed = Path.unlink, []

    def once(path, **options):
        if removed:
            raise KeyboardInterrupt
        if path.suffix == ".json":
            removed.append(path)
        unlink(path, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", once)
        made.pack()
    assert sum(path.exists() for path in halves) == 3
    assert not made.missing and numbers(made.progress()) == (6, 6, 0, 0)
    assert made.pack() == (8, 3)
    assert pack.read_pack(made.folder / PACK) == texts


def test_who_reads_while_others_pack_misses_nothing_and_reads_a_pack_once(tmp_path, quick, monkeypatch):
    made = labelled(tmp_path, 4)
    labels, keys = Labels(made.folder), [task.key for task in made.tasks]
    before = [labels.get(key) for key in keys]
    assert labels.packed == {}
    made.pack()
    read, counted = pack.read_pack, []
    monkeypatch.setattr(pack, "read_pack", lambda path: counted.append(path) or read(path))
    assert [labels.get(key) for key in keys] == before and None not in before
    assert all(key in labels for key in keys) and len(counted) == 1
    (made.folder / f"{keys[0]}.json").write_text('{"energy": 7.0}')  # a file counts more than what is packed
    assert labels.get(keys[0]) == {"energy": 7.0}


def test_a_folder_that_is_owned_or_damaged_is_not_packed(tmp_path, quick, capsys):
    made = labelled(tmp_path, 3)
    with owned(made.folder):
        assert iqagp("campaign", "pack", made.folder) == 2
    assert "is owned by a running campaign" in " ".join(capsys.readouterr().err.split())
    text = made.tasks[1].path.read_text()
    made.tasks[1].path.write_text(text[:-9])
    assert iqagp("campaign", "pack", made.folder) == 2
    assert f"{made.tasks[1].key}.json, found no JSON" in capsys.readouterr().err.replace("\n", "")
    assert len(stamps(made.folder)) == 5 and not (made.folder / PACK).exists()
    made.tasks[1].path.write_text(text)
    assert iqagp("campaign", "pack", made.folder) == 0
    whole = (made.folder / PACK).read_bytes()
    flipped = bytes([*whole[:100], whole[100] ^ 1, *whole[101:]])
    for damaged in (whole[:-30], flipped, b"", b"[]", lzma.compress(b"[1, 2, 3]\n"), lzma.compress(b"{}x\n")):
        (made.folder / PACK).write_bytes(damaged)
        for command in (("campaign", "status"), ("campaign", "pack"), ("label", "--campaign")):
            capsys.readouterr()
            assert iqagp(*command, made.folder) == 2
            assert "found a damaged file" in " ".join(capsys.readouterr().err.split())
    assert iqagp("campaign", "pack", tmp_path) == 2
    assert "name a file of geometries to begin one" in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def threads(quick, monkeypatch):
    """Labels made up in no time, also where a command would start processes."""
    monkeypatch.setattr(executors, "Processes", ThreadPoolExecutor)
    return quick


def test_one_task_makes_labels_in_any_folder(tmp_path, threads, capsys):
    water, out, folder = write_geometries(tmp_path / "water.xyz", 3), tmp_path / "d.extxyz", tmp_path / "camp"
    assert iqagp("label", water, "--campaign", folder, "--method", "hf/sto-3g", "--partition", "becke") == 0
    assert campaign.Campaign.load(folder).plan == LabelPlan(**SETTINGS)
    assert len(threads) == 3 + 2 and not out.exists()
    assert "labels an hour" in capsys.readouterr().out
    assert iqagp("label", "--campaign", folder, "-o", out) == 0
    assert len(threads) == 5 and len(load_dataset(out)) == 3
    assert iqagp("label", "--campaign", folder, "--method", "hf/6-31g") == 2
    assert "expected basis sto-3g as in" in " ".join(capsys.readouterr().err.split())
    # As before there were campaigns: OUTPUT.labels takes the plan of now, with Becke's and Hirshfeld's atoms beside others.
    assert iqagp("label", water, "-o", out, "--method", "hf/sto-3g", "--partition", "hirshfeld", "--charge", 2) == 0
    made = campaign.Campaign.load(f"{out}.labels")
    assert made.plan == LabelPlan("hf", "sto-3g", 2, partitions=("hirshfeld", "becke"))
    assert load_dataset(out).level == replace(made.plan.level, partition="hirshfeld")
    assert iqagp("label", "-o", out, "--charge", 2) == 0
    assert len(threads) == 5 + 5
    assert iqagp("label", water, "-o", out) == 0
    assert campaign.Campaign.load(f"{out}.labels").plan == LabelPlan()


def test_a_stopped_label_writes_no_dataset(tmp_path, threads, monkeypatch, capsys):
    label_geometry = queue.label_geometry

    def label(*arguments):
        if len(threads) == 3:
            request_stop(tmp_path / "d.extxyz.labels")
        return label_geometry(*arguments)

    monkeypatch.setattr(queue, "label_geometry", label)
    water = write_geometries(tmp_path / "water.xyz", 3)
    assert iqagp("label", water, "-o", tmp_path / "d.extxyz", "--workers", 1) == 0
    assert "stopped with 1 labels missing" in capsys.readouterr().out and not (tmp_path / "d.extxyz").exists()


def test_spellings_of_before_go_on_and_name_the_new_ones(tmp_path, threads, capsys):
    water = write_geometries(tmp_path / "water.xyz", 1)
    assert iqagp("campaign", "start", tmp_path / "camp", water, *OPTIONS) == 0
    assert "iqagp label GEOMETRIES --campaign FOLDER" in " ".join(capsys.readouterr().out.split())
    assert campaign.Campaign.load(tmp_path / "camp").plan == LabelPlan(**SETTINGS)
    assert iqagp("label", water, "-o", tmp_path / "d.extxyz", *OPTIONS[:4]) == 0
    assert "--method hf/sto-3g" in " ".join(capsys.readouterr().out.split())
    assert campaign.Campaign.load(tmp_path / "d.extxyz.labels").plan == LabelPlan("hf", "sto-3g")
    assert iqagp("label", "--help") == 0 and iqagp("campaign", "--help") == 0 and iqagp("--help") == 0
    shown = capsys.readouterr().out
    assert not any(old in shown for old in ("--xc", "--basis", "label-xtb", " start "))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--method", "b3lyp", "-o", "d.extxyz"),
            "expected --method FUNCTIONAL/BASIS, as b3lyp/6-31+g(d,p), or gfn2-xtb, found",
        ),
        (("--method", "hf/sto-3g", "--xc", "hf", "-o", "d.extxyz"), "found --method hf/sto-3g beside --xc or --basis"),
        (("--method", "hf/sto-3g"), "give -o or --campaign"),
        (("--method", "gfn2-xtb"), "give a file of geometries and -o"),
        (("--method", "GFN2-xTB", "-o", "d.extxyz", "--spin", 1), "10 electrons cannot have 1 unpaired"),
        (("--method", "gfn2-xtb", "-o", "d.extxyz", "--no-forces"), "expected --forces with a functional and basis only"),
        (("--method", "gfn2-xtb", "-o", "d.extxyz", "--partition", "becke"), "expected --partition with a functional"),
        (("--method", "gfn2-xtb", "-o", "d.extxyz", "--campaign", "c"), "expected --campaign with a functional"),
        (("--method", "gfn2-xtb", "-o", "d.extxyz", "--batch", 3), "expected --batch with a functional"),
        (("--method", "gfn2-xtb", "-o", "d.extxyz", "--basis", "6-31g"), "expected --basis with a functional"),
        (("-o", "d.extxyz", "--job", "mem_gb=8"), "expected --job with --executor submitit only"),
    ],
)
def test_what_a_method_has_no_use_for_is_refused(tmp_path, monkeypatch, capsys, options, sentence):
    monkeypatch.chdir(tmp_path)
    assert iqagp("label", write_geometries(tmp_path / "water.xyz", 1), *options) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
