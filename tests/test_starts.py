import gc
from dataclasses import replace
from weakref import ref

import numpy as np
import pytest
from conftest import REFERENCE, SPECIES

from iqagp_jax import System, energy_and_forces, energy_fn
from iqagp_jax.dynamics.minimise import minimise
from iqagp_jax.dynamics.starts import equilibrium, hydrogen_bonds_to_stretch, starts
from iqagp_jax.families.pairs.models import BondedMorse


def test_each_kind_is_where_asked(model, dataset):
    kinds = ["stretched", "equilibrium", "dataset", "displaced", "stretched"]
    found = starts(model, kinds, data=dataset, displacement=0.1, stretch=1.5, seed=1)
    minimum = equilibrium(model)
    bonds = hydrogen_bonds_to_stretch(SPECIES, minimum)
    np.testing.assert_array_equal(found[1], minimum)
    assert any(np.array_equal(found[2], frame) for frame in dataset.positions)
    assert 0 < np.abs(found[3] - minimum).max() <= 0.1
    for k, (i, j) in zip((0, 4), bonds, strict=True):
        assert np.linalg.norm(found[k][i] - found[k][j]) == pytest.approx(1.5)


def test_equilibrium_has_no_forces(model):
    _, forces = energy_and_forces(model)(equilibrium(model)[None])
    assert np.abs(forces).max() < 0.01


def test_hydrogens_of_oxygen_come_first():
    positions = np.array([[0.0, 0, 0], [1.4, 0, 0], [-0.4, 1.0, 0], [1.8, 0.8, 0]])
    assert hydrogen_bonds_to_stretch(("C", "O", "H", "H"), positions)[0] == (1, 3)


def test_no_frame_of_a_distorted_dataset_is_thermal(model, dataset):
    distorted = replace(dataset, origin={"source": np.full(len(dataset), "bond")})
    with pytest.raises(ValueError, match="expected thermal frames to start from, found none"):
        starts(model, ["dataset"], data=distorted)


@pytest.mark.parametrize(
    ("kinds", "sentence"),
    [(["frozen"], "expected starts among equilibrium"), (["dataset"], "expected a dataset for starts from dataset frames")],
)
def test_bad_kinds_get_a_sentence(model, kinds, sentence):
    with pytest.raises(ValueError, match=sentence):
        starts(model, kinds)


def test_a_search_for_a_minimum_holds_on_to_nothing():
    """A program kept the last four models alive, which are gigabytes."""

    def relaxed():
        energy = energy_fn(BondedMorse.of(System.of(SPECIES, REFERENCE)))
        first, again = (minimise(energy, REFERENCE).energy for _ in range(2))
        assert first == again
        return ref(energy)

    held = relaxed()
    gc.collect()
    assert held() is None
