"""From a molecule to a potential in one call: water, in a small form of all stages, and what is told of it."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from test_cli import iqagp

from iqagp_jax import load_dataset, load_model
from iqagp_jax.labels.executors import Processes
from iqagp_jax.machine.progress import in_seconds
from iqagp_jax.making import page, recipe, stages
from iqagp_jax.making.recipe import Clock, Recipe
from iqagp_jax.making.stages import make, proton_moved

# GFN2-xTB's own energy is not smooth where atoms are pushed together.
pytestmark = [pytest.mark.labels, pytest.mark.filterwarnings("ignore:labels are far from what all other:UserWarning")]

WATER = Recipe("O", "gfn2-xtb", (400.0,), replicas=2, time=0.2)
DEAR = replace(WATER, level="hf/sto-3g", labels=12)


@pytest.fixture(scope="module")
def small():
    """Fewer geometries and shorter lessons."""
    with pytest.MonkeyPatch.context() as patch:
        sampled = {"thermal": {500.0: 6, 1000.0: 6}, "displaced": 4, "bond": 4, "contact": 4, "test": {500.0: 4}, "runs": 1}
        patch.setattr(recipe, "SAMPLED", replace(recipe.SAMPLED, metadynamics={}, **sampled))
        patch.setattr(recipe, "TEACHING_PS", 0.2)
        patch.setattr(recipe, "FRAMES", 12)
        patch.setattr(stages, "TEACHING_ROUNDS", 1)
        patch.setattr(stages, "EXAM_ROUNDS", 1)
        yield


def made(what, out, **options):
    said = []
    with Processes(1) as pool:
        return make(what, out, pool, say=said.append, **options), said


@pytest.fixture(scope="module")
def water(small, tmp_path_factory):
    out = tmp_path_factory.mktemp("water")
    return (out, *made(WATER, out))


def test_a_molecule_becomes_a_potential_and_a_page(water):
    out, told, said = water
    assert said[0] == "1 minima within 10 kcal/mol" and any(line.startswith("exam, round 0: ") for line in said)
    model, data = load_model(out / "model.safetensors"), load_dataset(out / "dataset.extxyz")
    assert model.species == data.species == ("O", "H", "H") and str(model.made_by.level).startswith("GFN2-xTB")
    assert told == json.loads((out / "report.json").read_text())
    assert told["errors"]["test_500K"]["energy"] < 0.5 and told["minima_kcal_mol"] == [0.0]
    (row,) = told["temperatures"]
    assert row["temperature_K"] == 400.0 and row["survived"] == row["replicas"] == 2
    written = (out / "report.html").read_text()
    assert "http" not in re.sub("<script>.*?</script>", "", written, flags=re.S)
    assert told["made_by"]["command"] in written.replace("&#x27;", "'") and (out / told["verdict"]).exists()
    # Lives too short for a grade prove nothing.
    assert told["standing"] == "unknown" and told["seen"][0].startswith("400 K from its minimum: 2 of 2 replicas lived 0.2 ps")
    assert any(sentence.startswith("survival is unknown") for sentence in told["not_for"])


def test_it_goes_on_where_it_was_stopped(water, small, tmp_path):
    """From any file that is there, with what was made; another recipe is refused."""
    out, told, _ = water
    shutil.copytree(out, tmp_path / "again")
    for name in ("model.safetensors", "report.json", "taught.safetensors", "exam/round-0.safetensors"):
        (tmp_path / "again" / name).unlink()
    again, _ = made(WATER, tmp_path / "again")
    assert again["temperatures"] == told["temperatures"] and again["errors"] == told["errors"]
    assert again["seconds"]["minima"] == told["seconds"]["minima"] and again["seconds"]["exam"] > told["seconds"]["exam"]
    with pytest.raises(ValueError, match=r"found another .time 0.2 there, 0.4 here.; give the same, or another --out"):
        made(replace(WATER, time=0.4), out)


def test_a_dear_level_is_learned_as_a_difference(water, small, tmp_path, monkeypatch):
    """Within the labels that were allowed, all of which are learned but those of the last exam, where no exam is passed."""
    monkeypatch.setattr("iqagp_jax.active.is_flawless", lambda verdict: False)
    for module in (recipe, stages):
        monkeypatch.setattr(module, "ROUNDS", 2)
    out, _, _ = water
    for name in ("minima.extxyz", "geometries.extxyz", "taught.safetensors"):
        shutil.copy(out / name, tmp_path / name)
    shutil.copytree(out / "cheap", tmp_path / "cheap")
    told, said = made(DEAR, tmp_path)
    model, data = load_model(tmp_path / "model.safetensors"), load_dataset(tmp_path / "dataset.extxyz")
    assert model.base is not None and (data.level.method, data.level.basis) == ("hf", "sto-3g")
    first = load_dataset(tmp_path / "first.extxyz")
    assert len(first) == DEAR.first == 4 and any(line.startswith("4 labels by hf/sto-3g first, about") for line in said)
    each = DEAR.exam((((0.0, 0.0, 0.0),) * 3,)).frames
    assert told["labels"]["hf/sto-3g"] == 4 + 2 * each <= DEAR.labels
    assert len(data) == 4 + each and set(data.origin["source"]) == {"first", "active"}
    assert np.ptp(first.energy) < 10 and told["temperatures"][0]["survived"] == 2


def test_labels_that_were_left_out_are_no_candidates(water, tmp_path):
    """They are NaN in what the cheap model learned; all others are."""
    out, _, _ = water
    model, learned = load_model(out / "taught.safetensors"), load_dataset(out / "cheap" / "dataset.extxyz")
    making = stages.Making(out, DEAR, [], Clock(tmp_path / "clock.json", None), None, 1, None, None)
    all_of_them = making._candidates(model, learned)
    learned.energy[0] = np.nan
    without = making._candidates(model, learned)
    assert len(all_of_them) > 20 and len(without) >= len(all_of_them) - 1


def test_clocks_add_up(tmp_path):
    clock = Clock(tmp_path / "clock.json", 100.0)
    with clock.stage("one"):
        clock.tick()
        before = dict(clock.stages)
        clock.tick(least=60.0)
        assert clock.stages == before  # too soon
    again = Clock(tmp_path / "clock.json", 100.0)
    assert 0 < again.spent == clock.spent < 1 and again.left == 100.0 - again.spent
    assert Clock(tmp_path / "none.json", None).left == np.inf


def test_times_from_text():
    assert [in_seconds(text) for text in ("8h", "90min", "45s", "1h30min", "0.5h")] == [28800, 5400, 45, 5400, 1800]
    for text in ("", "8", "h", "-1h", "1e3s", "0s"):
        with pytest.raises(ValueError, match="expected a time as 8h, 90min or 1h30min"):
            in_seconds(text)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"level": "b3lyp"}, "expected a level as b3lyp/6-31.*, or gfn2-xtb, found 'b3lyp'"),
        ({"level": "ccsd(t)/cc-pvdz"}, "expected a level of theory with forces"),
        ({"level": "b3lyp/6-31g", "labels": 5}, "expected at least 48 labels for 4 temperatures, found 5"),
        ({"temperatures": (-3.0,)}, "expected temperatures in K above zero"),
        ({"replicas": 0}, "expected at least one replica, found 0"),
    ],
)
def test_a_bad_recipe_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Recipe("O", **options)


@pytest.mark.parametrize("temperatures", [(500.0,), (300.0, 1000.0), (300.0, 500.0, 700.0, 1000.0)])
@pytest.mark.parametrize("labels", [48, 100, 150, 151, 600])
def test_exams_keep_within_the_labels(labels, temperatures):
    """As many frames as replicas, or a multiple: `choose_frames` gives each the same."""
    given = Recipe("CC", temperatures=temperatures, labels=labels)
    minima = (((0.0, 0.0, 0.0), (0.0, 0.0, 1.0)),)
    exam = given.exam(minima)
    assert exam.frames % exam.replicas == 0 and exam.replicas * exam.time >= 400.0
    assert given.first + recipe.ROUNDS * exam.frames * len(temperatures) <= labels


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"charge": 1, "spin": 1}, "expected the charge of O, 0, found 1; give --charge 0"),
        ({"spin": 1}, "electrons"),
        ({"level": "b3lpy/6-31g"}, "b3lpy"),
        ({"molecule": "[O-]C=O"}, "expected the charge of .*, -1, found 0|electrons"),
        ({"molecule": "no molecule"}, "RDKit cannot parse"),
    ],
)
def test_nothing_is_made_of_what_cannot_be(changed, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        made(replace(Recipe("O", "hf/sto-3g"), **changed), tmp_path)
    assert not (tmp_path / "recipe.json").exists()


def test_a_proton_goes_to_the_acceptor_in_reach():
    """Malondialdehyde's, from one oxygen to the other."""
    minimum = load_dataset("malondialdehyde")
    atoms = Atoms(minimum.species, positions=minimum.positions[minimum.energy.argmin()])
    (moved,) = proton_moved(atoms)
    oxygens = [k for k, s in enumerate(minimum.species) if s == "O"]
    before, after = (sorted(oxygens, key=lambda o: a.get_distance(o, 8)) for a in (atoms, moved))
    assert before == after[::-1] and moved.get_distance(after[0], 8) == pytest.approx(0.97)


def test_a_flaw_is_told_and_nothing_is_promised():
    part = {"grade": "good", "so_far": None, "sentence": "", "evidence": [{"temperature_K": 300.0}]}
    poor = {"grade": "poor", "so_far": None, "sentence": "a hole 9 kcal/mol deep"}
    verdict = {
        "verdict": {"survival": part, "truth": part, "shape": poor},
        "protocol": {"temperatures": [300.0], "time": 5.0},
        "level_of_theory": "GFN2-xTB",
    }
    assert page.standing(verdict) == "flawed"
    graded = {"survival": part, "truth": part, "shape": {**part, "grade": "unknown"}}
    assert page.standing({"verdict": graded}) == "good"
    few, wrong = ({"grade": "unknown", "so_far": so_far} for so_far in ("good", "fair"))
    assert page.standing({"verdict": {**graded, "truth": few}}) == "unknown"
    assert page.standing({"verdict": {**graded, "truth": wrong}}) == "flawed"
    assert page.not_for(verdict)[0] == "shape is poor: a hole 9 kcal/mol deep"


def test_command_line(water, monkeypatch, capsys):
    out, told, _ = water
    asked = []
    monkeypatch.setattr(stages, "make", lambda *arguments: asked.append(arguments) or told)
    command = told["made_by"]["command"].split()[1:]
    assert iqagp(*command, "--workers", "1", "--budget", "1h30min") == 0
    (given, folder, _, workers, budget, *_), said = asked[0], capsys.readouterr().out
    assert (given, folder, workers, budget) == (WATER, out, 1, 5400.0)
    assert "report.html" in said and "not shown" in said and f"next: iqagp simulate {out / 'model.safetensors'}" in said
