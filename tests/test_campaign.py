"""Campaigns: what is killed, stopped, impossible or run elsewhere, and what must be on disk afterwards."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import active_children

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write
from test_cli import iqagp

from iqagp_jax.data.dataset import load_dataset
from iqagp_jax.labels import campaign, queue
from iqagp_jax.labels.executors import Jobs, Processes, dask_workers
from iqagp_jax.labels.label import label_key
from iqagp_jax.labels.plan import PLAN, LabelPlan, check
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
        zeros = [[0.0] * 3] * len(species)
        energies = {name: [0.0] * len(species) for name in plan.partitions}
        sums = dict.fromkeys(plan.partitions, 0.0)
        return {"energy": 0.0, "forces": zeros, "raw": energies, "charges": energies, "remainder": sums}

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


def test_what_the_geometries_say_of_their_own_labels_is_not_believed():
    old = {"level_of_theory": "b3lyp/6-31g", "programs": "pyscf 1.0", "partition": "becke", "sampler": "by hand"}
    plan = LabelPlan("pbe", "def2-svp", partitions=())
    label = {"energy": -1.0, "forces": [[0.0] * 3] * 3}
    frames = [Atoms("OHH", positions=WATER, info=old)] * 2
    dataset, _ = campaign.collect(frames, [label, {**label, "programs": "pyscf 2.0"}], plan, {})
    assert dataset.level["level_of_theory"].startswith("pbe/def2-svp") and dataset.level["sampler"] == "by hand"
    assert dataset.level["programs"] == f"pyscf 2.0; {plan.level.programs}"
    assert "partition" not in dataset.level


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
    ],
)
def test_plans_of_nonsense_get_a_sentence(tmp_path, capsys, edit, sentence):
    plan = begin(tmp_path, 2).folder / PLAN
    assert edit[0] in plan.read_text()
    plan.write_text(plan.read_text().replace(*edit))
    assert iqagp("campaign", "start", plan.parent, "--workers", 1) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


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
