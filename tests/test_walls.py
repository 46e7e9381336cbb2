"""What the contracts were changed for: each ended badly in the code before 2026-12.

| wall | where its tests are |
| --- | --- |
| an object that keeps the smaller contract | test_families, TestPlainObject |
| charge and spin are fields of nothing | test_references, test_dataset |
| a run's folder cannot be judged; two definitions of broken | test_verdict, test_run, test_starts |
| a verdict of nested dicts | test_verdict |
| no cell; a box of water outside of every contract | test_cells, test_compose |
| the calculator cannot be pickled, hangs when forked | test_calculator |
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REFERENCE, SPECIES, make_dataset

from iqagp_jax import fit_gp, load_model, validate
from iqagp_jax.families.fflux.files import write_folder
from iqagp_jax.families.gp import joint
from iqagp_jax.families.pairs.models import BondedMorse
from iqagp_jax.labels.plan import LabelPlan
from iqagp_jax.system.system import System
from iqagp_jax.verdict import Protocol, judge

ROOT = Path(__file__).parents[1]


def test_a_model_whose_matrix_does_not_fit_is_validated_and_judged(tmp_path, monkeypatch):
    data = make_dataset(12, seed=1)
    model = fit_gp(data, targets=("energy", "forces"), solver="cg", max_steps=0)
    monkeypatch.setattr(joint, "fits", lambda size: False)
    result = validate(model, make_dataset(4, seed=2))
    assert result.energy_calibration is None and result.force_calibration is None and np.isfinite(result.forces.mae)
    protocol = Protocol((30.0,), ("equilibrium",), 2, 0.02, frames=2, reference_replicas=0)
    found = judge(model, tmp_path / "verdict", None, protocol)
    assert found.warning.grade == "unknown" and "no uncertainty" in found.warning.sentence


def test_an_anion_is_another_system_than_its_neutral():
    assert LabelPlan(charge=-2).level != LabelPlan().level
    assert str(LabelPlan(charge=-2).level) != str(LabelPlan().level)
    assert not LabelPlan(spin=2).level.same_energies(LabelPlan().level)
    with pytest.raises(ValueError, match="9 electrons cannot have 0 unpaired ones"):
        System.of("OH", np.array([[0.0, 0, 0], [0.97, 0, 0]]))


def test_the_type_checker_looks_into_functions(tmp_path):
    """`"".no_such_method()` in a function without annotations passed."""
    planted = tmp_path / "planted.py"
    planted.write_text('def f():\n    return "".no_such_method()\n')
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path)]
    found = subprocess.run([*command, str(planted)], capture_output=True, text=True)
    assert '"str" has no attribute "no_such_method"' in found.stdout


def test_degrees_of_freedom():
    alone = System.of(SPECIES, REFERENCE)
    pair = System.of(2 * SPECIES, np.concatenate([REFERENCE, REFERENCE + 5.0]), molecules=[0] * 4 + [1] * 4)
    assert alone.degrees_of_freedom == 6 and pair.degrees_of_freedom == 21
    assert System.of(SPECIES, REFERENCE, cell=9 * np.eye(3)).degrees_of_freedom == 9
    assert System.of("HH", np.array([[0.0, 0, 0], [0.74, 0, 0]])).degrees_of_freedom == 1


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"species": ["O", "Xx"]}, "expected chemical symbols as species, found 'Xx'"),
        ({"positions": np.zeros((2, 3))}, r"expected finite positions of shape \(3, 3\)"),
        ({"positions": np.full((3, 3), np.nan)}, "with 9 numbers that are not finite"),
        ({"spin": 1}, "10 electrons cannot have 1 unpaired ones"),
        ({"charge": 11}, "-1 electrons cannot have 0 unpaired ones"),
        ({"cell": np.zeros((3, 3))}, "expected a cell of three lattice vectors that span a volume"),
        ({"molecules": [0, 0]}, "expected a molecule's number, from 0 without gaps, for each of 3 atoms"),
        ({"molecules": [0, 2, 2]}, "with 2 values from 0 to 2"),
    ],
)
def test_nonsense_is_no_system(wrong, sentence):
    water = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    with pytest.raises(ValueError, match=sentence):
        System.of(**{"species": "OHH", "positions": water, **wrong})


@pytest.mark.parametrize(
    ("name", "sentence"), [("mirrored", "found one of atomic_energies, forces"), ("forces", "expected ALF features")]
)
def test_models_without_a_counterpart_are_not_converted(name, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        write_folder(load_model(Path(__file__).parent / "golden" / f"{name}.safetensors"), tmp_path)
    with pytest.raises(ValueError, match="expected a model of Gaussian processes"):
        write_folder(BondedMorse.of(System.of(SPECIES, REFERENCE)), tmp_path)
