import numpy as np
import pytest

from iqagp_jax import energy_and_forces, fit_gp, load_model, save_model


@pytest.mark.parametrize("name", ["model", "distance_model"])
def test_round_trip_bit_for_bit(name, request, test_set, tmp_path):
    model = request.getfixturevalue(name)
    save_model(model, tmp_path / "a.safetensors")
    back = load_model(tmp_path / "a.safetensors")
    save_model(back, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    here, there = (energy_and_forces(m)(test_set.positions) for m in (model, back))
    np.testing.assert_array_equal(here[0], there[0])
    np.testing.assert_array_equal(here[1], there[1])


def test_truncated_file_gets_a_sentence(model, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load_model(path)


def test_other_safetensors_get_a_sentence(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3)}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="expected a model of format"):
        load_model(tmp_path / "m.safetensors")


def test_missing_file_gets_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a model file"):
        load_model(tmp_path / "m.safetensors")


def test_users_own_mean_cannot_be_saved_and_says_so(dataset, tmp_path):
    model = fit_gp(dataset, prior_mean=lambda r: -10.0 + 0.0 * r[:, 0], max_steps=0)
    with pytest.raises(TypeError, match="which a model file cannot hold"):
        save_model(model, tmp_path / "m.safetensors")
