"""The command line as a user meets it: every bad input is one sentence and exit code 2, never a traceback."""

import json
import sys
from dataclasses import replace
from typing import get_args
from unittest.mock import patch

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read
from conftest import make_dataset

from iqagp_jax import cli, load_dataset, sampling, save_dataset, save_model
from iqagp_jax.cli import console, models
from iqagp_jax.families.fflux.files import CONVENTIONS
from iqagp_jax.families.gp.search import Found
from iqagp_jax.labels.partitions import PARTITIONS
from iqagp_jax.machine.devices import use_cores
from iqagp_jax.references.xtb import XTB


def iqagp(*arguments):
    """Run a command; returns its exit code."""
    sys.argv = ["iqagp", *map(str, arguments)]
    try:
        # JAX has begun here: its devices cannot change.
        with patch("iqagp_jax.machine.devices.use_cores", lambda count=None: use_cores(count) if count else None):
            cli.main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset with splits on disk."""
    path = tmp_path_factory.mktemp("cli")
    parts = [make_dataset(40, 1, "train"), make_dataset(10, 2, "test_500K")]
    joined = replace(
        parts[0],
        **{k: np.concatenate([getattr(p, k) for p in parts]) for k in ("positions", "energy", "forces", "atomic_energies")},
        origin={k: np.concatenate([p.origin[k] for p in parts]) for k in parts[0].origin},
    )
    save_dataset(joined, path / "data.extxyz")
    return path


def test_choices_are_the_registries():
    assert get_args(console.PartitionName) == tuple(PARTITIONS)
    assert all(name in models.CONVENTION_HELP for name in CONVENTIONS)


def test_help_tells_the_defaults_of_labels(capsys):
    assert iqagp("label", "--help") == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for default in ("b3lyp/6-31+g(d,p)", "becke and hirshfeld", "0", "no", "yes"):
        assert f"Default: {default}" in told


def test_train_a_network(folder, capsys):
    model, data = folder / "network.safetensors", folder / "data.extxyz"
    command = ("train", data, "-o", model, "--family", "so3krates", "--steps", 2, "--width", 8, "--layers", 1, "--degrees", "1")
    assert iqagp(*command, "--heads", 2) == 0
    told = capsys.readouterr()
    assert "O C H H: 40 geometries" in told.out and "step 2, validation" in told.err
    assert told.out.splitlines()[-1] == f"next: iqagp validate {model} {data}"
    assert (folder / "network.trace.png").stat().st_size > 1000 and (folder / "network.training/checkpoint.npz").exists()
    before = model.read_bytes()
    assert iqagp(*command, "--heads", 2) == 0 and model.read_bytes() == before
    assert iqagp(*command, "--heads", 1) == 2
    assert "found others (heads 2 there, 1 here)" in capsys.readouterr().err
    assert iqagp(*command, "--kernel", "rbf") == 2
    assert "expected options that --family so3krates has, found --kernel" in capsys.readouterr().err
    assert iqagp("train", data, "-o", model, "--cutoff", 4) == 2
    assert "expected options that --family gp has, found --cutoff" in capsys.readouterr().err


def test_train_validate_simulate_export(folder, capsys):
    model, data = folder / "m.safetensors", folder / "data.extxyz"
    assert iqagp("train", data, "-o", model, "--max-steps", 3) == 0
    assert iqagp("validate", model, data, "--json", folder / "v.json") == 0
    report = json.loads((folder / "v.json").read_text())
    assert report["test_500K"]["n_test"] == 10
    run = ("simulate", model, "--out", folder / "run", "--replicas", 3, "--time", 0.1, "--start", "equilibrium")
    run += ("--momenta", "--temperature", 50)  # at 500 K the model falls into a hole of 20 eV, and tells so
    assert iqagp(*run, "--start", "displaced", "--displacement", 0.05) == 0
    told = capsys.readouterr().out
    assert [told.count(n) for n in ("2/2", "1/1", "3/3")] == [1, 1, 1] and "drift of the conserved energy" in told
    assert told.splitlines()[-1] == f"next: iqagp robustness {folder / 'run'} --out {folder / 'run'}-verdict --reference none"
    assert iqagp(*run, "--start", "displaced", "--displacement", 0.05) == 0
    again = capsys.readouterr()
    assert "finished already" in again.err and again.out.count("3/3") == 1
    assert iqagp(*run, "--start", "displaced", "--displacement", 0.05, "--max-uncertainty", 9) == 2
    assert "found a different uncertainty limit eV (None there, 0.39" in capsys.readouterr().err
    assert iqagp("export", folder / "run", "-o", folder / "run.extxyz") == 0
    frames = read(folder / "run.extxyz", index=":")
    assert len(frames) == 3 * 6
    assert np.isfinite([a.get_potential_energy() for a in frames]).all()
    assert np.isfinite([a.get_forces() for a in frames]).all() and np.ptp([a.get_velocities() for a in frames]) > 0
    assert iqagp("export", folder / "run", "-o", folder / "run.h5", "--replica", 1) == 0
    import znh5md

    np.testing.assert_allclose(
        [a.positions for a in znh5md.IO(folder / "run.h5", particles_group="replica_0001")[:]],
        [a.positions for a in frames if a.info["replica"] == 1],
        atol=1e-7,
    )
    capsys.readouterr()
    model.rename(folder / "elsewhere")
    assert iqagp("export", folder / "run", "-o", folder / "run.h5", "--each") == 0
    told = capsys.readouterr().out
    assert f"no forces: expected the model that drove the run in {folder / 'run'}, found no file" in told
    assert "18 frames in" in told and (folder / "run-0002.h5").exists()
    assert iqagp("export", folder / "run", "-o", folder / "again.extxyz", "--model", folder / "elsewhere") == 0
    assert (folder / "again.extxyz").read_text() == (folder / "run.extxyz").read_text()
    assert iqagp("export", folder / "run", "-o", folder / "again.extxyz", "--no-forces") == 0
    assert "forces" not in (folder / "again.extxyz").read_text()
    for picture in ("m.trace.png", "m-test_500K-s-curve.png", "m-test_500K-predicted.png", "run/survival.png"):
        assert (folder / picture).stat().st_size > 10_000


@pytest.fixture(scope="module")
def model_file(folder, model):
    save_model(model, folder / "model.safetensors")
    return folder / "model.safetensors"


def write_bad(folder, name):
    text = (folder / "data.extxyz").read_text()
    if name == "truncated":
        text = text[: len(text) - 200]
    elif name == "nan":
        lines = text.splitlines()
        parts = lines[-2].split()
        parts[1] = "nan"
        lines[-2] = " ".join(parts)
        text = "\n".join(lines) + "\n"
    elif name == "species":
        text = text.replace("\nO ", "\nN ")
    elif name == "unknown":
        text = text.replace("\nO ", "\nXq ")
    path = folder / f"{name}.extxyz"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("train", "benzene", "-o", "m.st"), "expected an embedded dataset"),
        (("train", "{truncated}", "-o", "m.st"), "is not a whole extxyz file"),
        (("train", "{nan}", "-o", "m.st"), "expected finite positions"),
        (("train", "{unknown}", "-o", "m.st"), "is not a whole extxyz file"),
        (("train", "{data}", "-o", "no/where/m.st"), "expected a file in a writable folder"),
        (("train", "{data}", "-o", "m.st", "--n-train", "900"), "expected between 2 and 40 training geometries"),
        (("train", "{data}", "-o", "m.st", "--features", "soap"), "Invalid value for '--features'"),
        (("train", "{data}", "-o", "m.st", "--colour", "red"), "No such option"),
        (("train", "{data}", "-o", "m.st", "--partition", "becke"), "expected a partition that the dataset holds"),
        (("validate", "{data}", "{data}"), "is not a whole safetensors file"),
        (("validate", "{model}", "{species}"), "expected the atoms O C H H of the model, found N C H H"),
        (("validate", "{model}", "{data}", "--split", "hot"), "expected a split of the dataset"),
        (("simulate", "{model}", "--out", "/proc/no"), "expected a writable folder"),
        (("simulate", "{model}", "--out", "r1", "--start", "frozen"), "expected starts among"),
        (("simulate", "{model}", "--out", "r2", "--temperature", "-5"), "temperature"),
        (("simulate", "{model}", "--out", "r3", "--time", "0.0123"), "frame interval"),
        (("simulate", "{model}", "--out", "r4", "--thermostat", "berendsen"), "Invalid value for '--thermostat'"),
        (("robustness", "{model}", "--out", "r5", "--reference", "xtb"), "expected a model trained on GFN2-xTB"),
        (("robustness", "{model}", "--out", "r6", "--reference", "none", "--start", "frozen"), "expected starts among"),
        (("train", "{data}", "-o", "m.st", "--prior-mean", "mf1+mf5"), "expected a prior mean among"),
        (("train", "{data}", "-o", "m.st", "--prior-mean", ""), "expected a prior mean among"),
        (("train", "{data}", "-o", "m.st", "--mirror"), "expected mirror=True with features 'alf' only"),
        (("train", "{data}", "-o", "m.st", "--n-hyper", "1"), "Invalid value for '--n-hyper'"),
        (("train", "malondialdehyde-qtaim", "-o", "m.st", "--partition", "qtaim", "--targets", "energy"), "found energy"),
        (("simulate", "{model}", "--out", "r7", "--dataset", "x"), "expected --dataset with --start dataset only"),
        (("simulate", "{model}", "--out", "r7", "--stretch", "1.4"), "expected --stretch with --start stretched only"),
        (("simulate", "{model}", "--out", "r7", "--friction", "5"), "expected --friction with --thermostat langevin only"),
        (("simulate", "{model}", "--out", "r7", "--uncertainty-interval", "5"), "with --max-uncertainty only"),
        (("robustness", "{model}", "--out", "r7", "--reference", "dft", "--reference-time", "5"), "with --reference xtb and"),
        (("campaign", "start", "c1", "{data}", "--scheduler", "tcp://a:1"), "expected --scheduler with --executor dask only"),
        (("convert", "{model}", "-o", "c2", "--property", "iqa"), "expected --property with a folder of .model files only"),
        (("validate", "{model}", "{data}", "--json", "no/where.json"), "expected a file in a writable folder"),
        (("bench", "--json", "no/where.json"), "expected a file in a writable folder"),
        (("bench", "--peer", "nowhere:Nothing", "--no-peers"), "module:Class, found 'nowhere:Nothing'"),
        (("bench", "--replicas", "0"), "Invalid value for '--replicas'"),
        (("export", "{folder}", "-o", "x.extxyz"), "expected trajectory-0000.npz"),
        (("sample", "C1CC", "-o", "g.extxyz"), "which RDKit cannot parse"),
        (("sample", "O", "-o", "g.extxyz", "--thermal", "hot"), "TEMPERATURE:NUMBER"),
        (("sample", "O", "-o", "g.extxyz", "--thermal", "nan:4"), "expected --thermal at 0 to 100000 K"),
        (("sample", "O", "-o", "g.extxyz", "--test", "300:-4"), "expected --test at 0 to 100000 K and 1 to 1,000,000"),
        (("sample", "O", "-o", "g.extxyz", "--test", "300:4", "--test", "300:5"), "each temperature of --test once"),
        (("sample", "O", "-o", "g.extxyz", "--bond", "-1"), "Invalid value for '--bond'"),
        (("sample", "{truncated}", "-o", "g.extxyz"), "atoms, found 3 lines of them; was the file cut off?"),
        (("sample", "O", "-o", "g.extxyz", "--runs", "9" * 20), "Invalid value for '--runs'"),
        (("train", "{data}", "-o", "m.st", "--max-steps", "9" * 20), "expected max_steps of at most 1000000, found 9"),
        (("train", "{data}", "-o", "{data}/m.safetensors"), "data.extxyz is a file; choose another name"),
        (("train", "{data}", "-o", "m.st", "--noise", ""), "expected --noise as 1e-8 or energy=1e-8,forces=1e-6, found ''"),
        (("train", "{data}", "-o", "m.st", "--targets", ""), "expected targets among atomic_energies, energy, forces"),
        (("train", "{data}", "-o", "m.st", "--targets", "energy,energy"), "expected each target once, found energy, energy"),
        (("label", "{folder}/missing.xyz", "-o", "d.extxyz"), "found nothing at"),
        (("label", "{data}", "-o", "d.extxyz", "--xc", "nonsense"), "expected a functional that PySCF knows"),
        (("label-xtb", "{data}", "-o", "d.extxyz", "--spin", "1"), "16 electrons cannot have 1 unpaired"),
        (("label-xtb", "{data}.labels", "-o", "d.extxyz"), "found nothing at"),
        (
            ("label-xtb", "{data}", "-o", "d.extxyz", "--charge", "-1000"),
            "a charge that 16 electrons and their",
        ),
        (("sample", "", "-o", "g.extxyz"), "expected a SMILES string or a geometry file, found ''"),
        (("bench", "--replicas", "100000000000"), "1000000"),
        (("demo", "--out", "/proc/no"), "expected a writable folder"),
    ],
)
def test_bad_input_gets_a_sentence_and_exit_code_2(folder, model_file, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    places = {name: write_bad(folder, name) for name in ("truncated", "nan", "species", "unknown")}
    places |= {"data": folder / "data.extxyz", "model": model_file, "folder": folder}
    assert iqagp(*(argument.format(**places) for argument in arguments)) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert sentence.replace(" ", "") in "".join(c for c in shown.err if c not in " \n│")


@pytest.mark.parametrize(
    ("loss", "cells", "sentence"),
    [
        ("marginal", ["1", "-3.50000", "7"], "with its constant, as in FEREBUS' files"),
        ("concentrated", ["1", "-3.50000", "13.52726", "7"], "FEREBUS' files leave out n/2 (1 + ln 2 pi) = 17.02726"),
        ("hold-out", ["1", "-3.50000", "7"], "-ln RMSE"),
    ],
)
def test_it_is_told_which_likelihood_is_printed(capsys, loss, cells, sentence):
    models.print_starts("m.model", loss, 12, Found(None, None, np.array([[-3.5]]), np.array([[7]])))
    told = capsys.readouterr().out
    assert sentence in told
    assert any([cell.strip() for cell in line.split("│")[1:-1]] == cells for line in told.splitlines())


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("--atom", "O2"), "expected --atom as an element and the first number of --alf, as in O1, found 'O2'"),
        (("--atom", "nope"), "found 'nope'"),
        (("--atom", "Xx1"), "expected chemical symbols as species, found 'Xx'"),
        (("--atom", "O1", "--system", "a b"), "expected --system as one word"),
        (("--atom", "O1", "--system", ""), "expected --system as one word"),
    ],
)
def test_names_that_a_model_file_cannot_have_get_a_sentence(tmp_path, capsys, names, sentence):
    (tmp_path / "t.csv").write_text("f1,f2,f3,iqa\n1.8,1.8,1.8,-75.1\n1.8,1.9,1.8,-75.2\n1.9,1.8,1.8,-75.3\n")
    assert iqagp("train-atom", tmp_path / "t.csv", "-o", tmp_path / "m.model", "--alf", "1,2,3", *names) == 2
    assert sentence in capsys.readouterr().err


def test_ctrl_c_while_sampling_tells_how_to_go_on(tmp_path, monkeypatch, capsys):
    water = molecule("H2O")
    monkeypatch.setattr(sampling, "distinct_minima", lambda *_: [water])

    def stopped(minima, plan, make_calculator, variables, seed, parts, progress):
        parts.part("thermal-300.0K-0", lambda: {"positions": water.positions[None]})
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling, "sample", stopped)
    command = ("sample", "O", "-o", tmp_path / "g.extxyz")
    for _ in range(2):
        assert iqagp(*command) == 130
        told = capsys.readouterr().out
        assert (
            f"stopped: what is finished, 1 of its parts, is kept in {tmp_path / 'g.extxyz.parts'}; the same command goes"
            in told
        )
    assert "going on with what is finished" in told
    assert iqagp(*command, "--seed", 1) == 2
    assert "seed 0 there, 1 here" in capsys.readouterr().err


@pytest.mark.labels
def test_label_xtb_keeps_where_geometries_came_from_and_nothing_else(folder, tmp_path):
    out = tmp_path / "xtb.extxyz"
    assert iqagp("label-xtb", folder / "data.extxyz", "-o", out, "--workers", 1) == 0
    found, given = load_dataset(out), load_dataset(folder / "data.extxyz")
    np.testing.assert_array_equal(found.origin["split"], given.origin["split"])
    np.testing.assert_allclose(found.positions, given.positions, atol=1e-8)
    assert found.level["level_of_theory"] == "GFN2-xTB" and found.atomic_energies is None and found.forces is not None
    energies, forces = XTB(found.species).labels(found.positions[:2])
    np.testing.assert_allclose(found.energy[:2], energies, atol=1e-7)
    np.testing.assert_allclose(found.forces[:2], forces, atol=1e-7)
    assert set(found.free_atoms) == {"O", "C", "H"}


def test_missing_forces_are_no_obstacle_where_they_are_not_needed(folder, model_file, capsys):
    data = make_dataset(5, 7)
    save_dataset(replace(data, forces=None), folder / "no-forces.extxyz")
    assert iqagp("validate", model_file, folder / "no-forces.extxyz") == 0
    assert "forces" not in capsys.readouterr().out


def test_tracebacks_on_request(monkeypatch):
    monkeypatch.setenv("IQAGP_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        iqagp("validate", "nothing.safetensors", "malondialdehyde")


def test_a_file_that_the_system_refuses_is_named(tmp_path, capsys):
    """Python's own words begin with a number, and say nothing of what to do."""
    (tmp_path / "verdict" / "settings.json").mkdir(parents=True)
    with patch("iqagp_jax.cli.app", (tmp_path / "verdict" / "settings.json").read_text):
        assert iqagp("robustness") == 2
    told = capsys.readouterr().err
    assert told.startswith("error: expected a file that can be read and written, found ")
    assert told.endswith("settings.json: is a directory; move it away, or name another\n")
