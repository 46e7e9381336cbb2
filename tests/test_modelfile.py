import json
import struct

import numpy as np
import pytest
from conftest import REFERENCE, SPECIES

from iqagp_jax import energy_and_forces, fit_gp, load_model, save_model
from iqagp_jax.compose import Sum
from iqagp_jax.families.pairs.models import BondedMorse
from iqagp_jax.system.system import System


@pytest.fixture(scope="module")
def morse():
    return BondedMorse.of(System.of(SPECIES, REFERENCE))


@pytest.fixture(scope="module")
def both(distance_model, morse):
    return Sum(distance_model, morse)


@pytest.fixture(scope="module")
def forces_model(dataset):
    return fit_gp(dataset[:4], max_steps=0)


@pytest.mark.parametrize("name", ["model", "distance_model", "forces_model", "morse", "both"])
def test_round_trip_bit_for_bit(name, request, test_set, tmp_path):
    model = request.getfixturevalue(name)
    save_model(model, tmp_path / "a.safetensors")
    back = load_model(tmp_path / "a.safetensors")
    assert type(back) is type(model)
    save_model(back, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    system = System.of(SPECIES, REFERENCE)
    here, there = (energy_and_forces(m, system=system)(test_set.positions[:2]) for m in (model, back))
    np.testing.assert_array_equal(here[0], there[0])
    np.testing.assert_array_equal(here[1], there[1])


def header_of(path):
    """The parts of a safetensors file: its header as data, and the bytes of the tensors."""
    whole = path.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    return json.loads(whole[8 : 8 + size]), whole[8 + size :]


def write(path, header, tensors):
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + tensors)


def changed(path, change):
    """Rewrites our part of a file's header."""
    header, tensors = header_of(path)
    ours = json.loads(header["__metadata__"]["iqagp"])
    change(ours)
    header["__metadata__"]["iqagp"] = json.dumps(ours)
    write(path, header, tensors)


def test_a_flipped_bit_gets_a_sentence(model, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    header, tensors = header_of(path)
    begin, _ = header["model.weights"]["data_offsets"]
    damaged = bytearray(tensors)
    damaged[begin] ^= 1
    write(path, header, bytes(damaged))
    with pytest.raises(ValueError, match=r"expected the numbers that were saved, found others in .*: its checksum is wrong"):
        load_model(path)


def test_the_checksum_is_of_the_structure_too(model, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    changed(path, lambda ours: ours["structure"]["fields"].update(noise={"value": 1e-3}))
    with pytest.raises(ValueError, match="its checksum is wrong"):
        load_model(path)


def test_the_format_without_a_checksum_is_read(model, test_set, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(model, path)

    def older(ours):
        ours["format"] = "iqagp-model-1"
        del ours["checksum"]

    changed(path, older)
    back = load_model(path)
    np.testing.assert_array_equal(*(energy_and_forces(m)(test_set.positions)[1] for m in (model, back)))


def test_fields_that_a_joint_process_has_for_itself_are_read_where_they_once_were(forces_model, test_set, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(forces_model, path)

    def older(ours):
        ours["format"] = "iqagp-model-1"
        fields = ours["structure"]["fields"]
        part = fields.pop("joint")["fields"]
        fields.update(part, train_positions=part.pop("positions"))

    changed(path, older)
    back = load_model(path)
    np.testing.assert_array_equal(back.train_positions, forces_model.train_positions)
    np.testing.assert_array_equal(*(energy_and_forces(m)(test_set.positions)[1] for m in (forces_model, back)))


def test_a_part_of_a_later_version_gets_a_sentence(model, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(model, path)

    def later(ours):
        ours["format"] = "iqagp-model-1"
        ours["structure"]["fields"]["features"]["type"] = "Hyperfeatures"

    changed(path, later)
    with pytest.raises(ValueError, match=r"expected parts that this version knows .* found Hyperfeatures"):
        load_model(path)


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
