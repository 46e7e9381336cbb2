import contextlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import REFERENCE, SPECIES
from safetensors.numpy import save

from iqagp_jax import energy_and_forces, fit_gp, load_model, modelfile, save_model
from iqagp_jax.compose import Sum
from iqagp_jax.families.gp.model import Points
from iqagp_jax.families.pairs.models import BondedMorse
from iqagp_jax.machine.files import checksum
from iqagp_jax.system.system import System
from iqagp_jax.verdict import digest


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
    begin, _ = header["model.points.weights"]["data_offsets"]
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


def with_points(model):
    """A model of forces as it was kept until November 2026: with what its weights of observations amount to."""
    data = replace(model.joint, directions=model.directions, weights=None, error_scale=None)
    return replace(model, points=Points(model.train_features, model.weights), joint=data)


@pytest.mark.parametrize("oldest", [False, True])
def test_fields_are_read_where_they_once_were(oldest, forces_model, test_set, tmp_path):
    path, kept = tmp_path / "m.safetensors", with_points(forces_model)
    save_model(kept, path)

    def older(ours):
        ours["format"] = "iqagp-model-1"
        fields = ours["structure"]["fields"]
        fields.update(fields.pop("points")["fields"])
        del fields["joint"]["fields"]["weights"], fields["joint"]["fields"]["error_scale"], fields["division"]
        if oldest:
            part = fields.pop("joint")["fields"]
            fields.update(part, train_positions=part.pop("positions"))

    changed(path, older)
    back = load_model(path)
    assert digest(back) == digest(kept)
    np.testing.assert_array_equal(back.train_positions, forces_model.train_positions)
    np.testing.assert_array_equal(*(energy_and_forces(m)(test_set.positions)[1] for m in (kept, back)))
    for here, there in zip(*(energy_and_forces(m)(test_set.positions) for m in (forces_model, back)), strict=True):
        np.testing.assert_allclose(here, there, rtol=0, atol=1e-14 * np.abs(kept.weights).max())  # of 1e7 eV


def test_what_files_of_before_did_not_hold_needs_a_checksum(forces_model, tmp_path):
    save_model(forces_model, tmp_path / "m.safetensors")
    changed(tmp_path / "m.safetensors", lambda ours: ours.update(format="iqagp-model-1"))
    with pytest.raises(ValueError, match="expected a checksum in a file of a JointData as it is now, found a file of format"):
        load_model(tmp_path / "m.safetensors")


def test_a_model_of_forces_is_a_few_numbers_a_label(dataset, tmp_path):
    """Positions, weights of the observations, and which there were: pairs of atoms and images do not matter."""
    sizes = []
    for n in (30, 50):
        save_model(fit_gp(dataset[:n], targets=("energy", "forces"), max_steps=0), tmp_path / "m.safetensors")
        sizes.append((tmp_path / "m.safetensors").stat().st_size)
    labels = 1 + 3 * 4
    assert (sizes[1] - sizes[0]) / 20 == pytest.approx(8 * (12 + labels) + labels, abs=16)


def test_a_part_of_a_later_version_gets_a_sentence(model, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(model, path)

    def later(ours):
        ours["format"] = "iqagp-model-1"
        ours["structure"]["fields"]["features"]["type"] = "Hyperfeatures"

    changed(path, later)
    with pytest.raises(ValueError, match=r"expected parts that this version knows .* found Hyperfeatures"):
        load_model(path)


def rewritten(path, model, change):
    """Saves a model of which ``change`` has altered the arrays and the structure's fields; the checksum is right."""
    tensors = {}
    structure = modelfile._take_apart(model, "model", tensors)
    tensors = {name: array.copy() for name, array in tensors.items()}
    change(tensors, structure["fields"])
    header = {"format": modelfile.FORMAT, "checksum": checksum(json.dumps(structure), tensors), "structure": structure}
    path.write_bytes(save(tensors, {"iqagp": json.dumps(header)}))
    return path


def with_number(name, value):
    def change(tensors, _):
        tensors[f"model.{name}"].flat[0] = value

    return change


def shorter(name):
    def change(tensors, _):
        tensors[f"model.{name}"] = tensors[f"model.{name}"][:-1].copy()

    return change


def two_atoms_of_four(tensors, fields):
    for name, array in tensors.items():
        tensors[name] = array[:, :2].copy() if name.endswith("trace") else array[:2].copy()


def changed_field(**given):
    return lambda tensors, fields: fields.update({name: {"value": value} for name, value in given.items()})


def changed_point(**given):
    return lambda tensors, fields: fields["points"]["fields"].update({name: {"value": value} for name, value in given.items()})


DAMAGE = {
    "weights NaN": (with_number("points.weights", np.nan), "expected finite numbers as weights, found nan"),
    "weights inf": (with_number("points.weights", np.inf), "expected finite numbers as weights, found inf"),
    "weights 1e300": (with_number("points.weights", 1e300), r"expected finite numbers as weights, found 1e\+300"),
    "features 1e300": (with_number("points.train_features", 1e300), "numbers as training features"),
    "reference NaN": (with_number("reference", np.nan), "numbers as positions"),
    "residual NaN": (with_number("residual", np.nan), "numbers as residuals"),
    "length scale 0": (with_number("kernel.lengthscale", 0.0), "numbers of at least 1e-15 as length scales, found 0"),
    "length scale -1": (with_number("kernel.lengthscale", -1.0), "numbers of at least 1e-15 as length scales, found -1"),
    "length scale NaN": (with_number("kernel.lengthscale", np.nan), "as length scales, found nan"),
    "signal variance -1": (with_number("signal_variance", -1.0), "at least 0 as signal variances, found -1"),
    "fewer weights": (shorter("points.weights"), r"expected weights of shape \(4, 80\), found \(3, 80\)"),
    "fewer means": (shorter("mean.values"), "atomic energies of the prior mean of shape"),
    "two atoms of four": (two_atoms_of_four, r"expected positions of shape \(4, 3\), found \(2, 3\)"),
    "another kernel": (
        lambda _, fields: fields["kernel"].update(type="RBF"),
        "expected the kernel matern52 that its options tell, found rbf",
    ),
    "another number of atoms": (
        lambda _, fields: fields["features"]["fields"].update(n_atoms={"value": 3}),
        "expected features of 4 atoms, found those of 3",
    ),
    "no element": (changed_field(species=["Xx", "C", "H", "H"]), "expected chemical symbols as species, found 'Xx'"),
    "species null": (changed_field(species=None), "expected chemical symbols as species, found None"),
    "weights in words": (changed_point(weights="many"), "expected numbers as weights, found 'many'"),
    "another target": (changed_field(targets=["dipole"]), "expected targets among"),
    "noise NaN": (changed_field(noise=float("nan")), "as noise, found nan"),
    "an array too many": (lambda tensors, _: tensors.update(more=np.zeros(3)), "found also more"),
    "no weights": (
        lambda tensors, _: tensors.pop("model.points.weights"),
        "expected a part of a model or an array of the file",
    ),
    "a field too many": (changed_field(colour="red"), "expected what makes a Model, found something else .*colour"),
    "a field missing": (lambda tensors, fields: fields.pop("noise"), "expected what makes a Model, found something else"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_numbers_that_make_no_sense_get_a_sentence(what, distance_model, tmp_path):
    change, sentence = DAMAGE[what]
    path = rewritten(tmp_path / "m.safetensors", distance_model, change)
    with pytest.raises(ValueError, match=f"m.safetensors holds no model that could be used: .*{sentence}"):
        load_model(path)


JOINT_DAMAGE = {
    "weights NaN": (with_number("joint.weights", np.nan), "as weights of observations, found nan"),
    "fewer weights": (shorter("joint.weights"), "expected weights of observations of shape"),
    "no weights": (lambda _, fields: fields["joint"]["fields"].pop("weights"), "weights of observations, found None"),
    "no process": (changed_field(joint=None), "expected training points, found none"),
    "no permutation": (with_number("joint.permutations", 3), "expected permutations of 4 atoms"),
    "length scale inf": (with_number("kernel.lengthscale", np.inf), "as length scales, found inf"),
    "noise variance inf": (with_number("joint.noise_variance", np.inf), "as noise variances, found inf"),
    "fewer observed": (shorter("joint.observed"), "expected what was observed of shape"),
    "noise variance -1": (with_number("joint.noise_variance", -1.0), "as noise variances, found -1"),
    "radii NaN": (with_number("mean.first.radii", np.nan), "as sums of covalent radii, found nan"),
}


@pytest.mark.parametrize("what", JOINT_DAMAGE)
def test_joint_models_too(what, forces_model, tmp_path):
    change, sentence = JOINT_DAMAGE[what]
    path = rewritten(tmp_path / "m.safetensors", forces_model, change)
    with pytest.raises(ValueError, match=sentence):
        load_model(path)


def test_other_families_too(model, morse, both, tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match="as depths, found nan"):
        load_model(rewritten(path, morse, with_number("depth", np.nan)))
    with pytest.raises(ValueError, match="as depths, found nan"):
        load_model(rewritten(path, both, with_number("parts.1.depth", np.nan)))
    frames = {"frames": {"value": [[0, 1, 1]] * 4}}
    with pytest.raises(ValueError, match="expected three different atoms as frame of each of 4"):
        load_model(rewritten(path, model, lambda _, fields: fields["features"]["fields"].update(frames)))
    fflux = load_model(Path(__file__).parent / "golden" / "fflux.safetensors")
    with pytest.raises(ValueError, match="expected finite numbers as weights"):
        load_model(rewritten(path, fflux, with_number("atoms.2.weights", np.inf)))
    with pytest.raises(
        ValueError, match=r"expected a distance in bohr from 0.2 to 10000 as feature 1, found 0 in training point"
    ):
        load_model(rewritten(path, fflux, with_number("atoms.1.x", 0.0)))
    with pytest.raises(ValueError, match="expected one model for each of 4 atoms"):
        load_model(rewritten(path, fflux, lambda tensors, fields: fields["atoms"]["tuple"].reverse()))


HEADERS = {
    "no metadata": lambda h: h.pop("__metadata__"),
    "metadata a list": lambda h: h.update(__metadata__=[1]),
    "metadata a number": lambda h: h.update(__metadata__=3),
    "metadata null": lambda h: h.update(__metadata__=None),
    "ours a list": lambda h: h["__metadata__"].update(iqagp="[]"),
    "ours a number": lambda h: h["__metadata__"].update(iqagp="3"),
    "ours null": lambda h: h["__metadata__"].update(iqagp="null"),
    "ours cut": lambda h: h["__metadata__"].update(iqagp=h["__metadata__"]["iqagp"][:99]),
    "ours nested": lambda h: h["__metadata__"].update(iqagp="[" * 100_000),
    "ours no text": lambda h: h["__metadata__"].update(iqagp={"format": 1}),
    "a type": lambda h: h["model.points.weights"].update(dtype="F99"),
    "a type of other programs": lambda h: h["model.points.weights"].update(dtype="BF16", shape=[4, 320]),
    "a shape": lambda h: h["model.points.weights"].update(shape=[4, 79]),
    "an offset": lambda h: h["model.points.weights"].update(data_offsets=[0, 10**9]),
    "an array null": lambda h: h.update({"model.points.weights": None}),
    "another name": lambda h: h.update({"model.points.weight": h.pop("model.points.weights")}),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_damaged_header_gets_a_sentence(what, distance_model, tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    save_model(distance_model, path)
    header, tensors = header_of(path)
    HEADERS[what](header)
    write(path, header, tensors)
    with pytest.raises(ValueError, match=r"expected|is not a whole safetensors file"):
        load_model(path)


STRUCTURES = (
    *(None, 3, "model", [], {}, {"type": "Model"}, {"type": "Model", "fields": []}, {"type": [], "fields": {}}),
    *({"array": 3}, {"array": "model.x"}, {"tuple": 3}, {"value": 1}, {"type": "Model", "fields": {"species": 3}}),
    {"type": "PerMolecule", "fields": {"kinds": {"tuple": [{"value": 3}]}}},
    {"type": "PerMolecule", "fields": {"kinds": {"tuple": []}}},
    *({"type": "MadeBy", "fields": {"level": {"value": 3}, "more": {"value": 1}}}, {"type": "PerMolecule", "fields": {}}),
)


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_a_structure_of_nothing_gets_a_sentence(structure, tmp_path):
    for header in ({"format": "iqagp-model-1", "structure": structure}, {"format": "iqagp-model-1"}):
        (tmp_path / "m.safetensors").write_bytes(save({}, {"iqagp": json.dumps(header)}))
        with pytest.raises(ValueError, match="holds no model that could be used: expected"):
            load_model(tmp_path / "m.safetensors")


def test_flipped_bits_of_a_file_without_a_checksum_are_no_traceback(distance_model, tmp_path):
    """Anywhere in the header; what is still a model is one."""
    path = tmp_path / "m.safetensors"
    save_model(distance_model, path)
    changed(path, lambda ours: (ours.update(format="iqagp-model-1"), ours.pop("checksum")))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.integers(struct.unpack("<Q", whole[:8])[0] + 8)] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            load_model(path)


def test_a_folder_is_no_model_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a model file, found a folder at"):
        load_model(tmp_path)


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
