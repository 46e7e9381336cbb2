"""FEREBUS files made here: every kernel, mean and scaling against the formulas of the format, and broken files."""

import numpy as np
import pytest
from ase import Atoms
from test_cli import iqagp

from iqagp_jax import (
    Dataset,
    atomic_energies,
    electrostatics,
    energy_and_forces,
    energy_fn,
    load_model,
    predictive_variance,
    save_model,
    simulate,
    validate,
)
from iqagp_jax.ase_calculator import IQAGP
from iqagp_jax.dynamics.minimise import minimise
from iqagp_jax.families.fflux import files as ferebus
from iqagp_jax.families.fflux.fit import fit_atom
from iqagp_jax.system.failure import failure_rule
from iqagp_jax.units import BOHR, HARTREE

N, D = 12, 6
RNG = np.random.default_rng(0)
X = np.column_stack([RNG.uniform(1.5, 2.5, (N, 2)), RNG.uniform(1, 2, N), RNG.uniform(2, 3, N), RNG.uniform(1, 2, N)])
X = np.column_stack([X, np.pi - 0.3 + RNG.uniform(0, 0.6, N)])
X[:, 5] = (X[:, 5] + np.pi) % (2 * np.pi) - np.pi  # phi on both sides of the cut
Y = -75 + 0.01 * np.sin(X.sum(1))
THETA = np.array([0.3, 0.4, 0.5, 0.2, 0.6, 0.7])
NUGGET = 1e-8


def rbf(x, y, theta=THETA):
    return np.exp(-np.sum(theta * (x - y) ** 2))


def cyclic(x, y):
    d = x - y
    d[2::3] = (d[2::3] + np.pi) % (2 * np.pi) - np.pi
    return np.exp(-np.sum(THETA * d**2))


def mixed(x, y):
    straight = rbf(x[:5], y[:5], THETA[:5])
    return straight * np.exp(-4 * THETA[5] * np.sin((x[5] - y[5]) / 2) ** 2)


def linear(x, y):
    return 2.5 * (rbf(x, y) + np.sum((x * y)[:2] / np.array([4.0, 5.0])) + 0.25)


def section(name, kind, columns, **parameters):
    lines = [f"[kernel.{name}]", f"type {kind}", f"number_of_dimensions {len(columns)}"]
    lines += [f"active_dimensions {' '.join(map(str, columns))}" if columns else "active_dimensions <TODO>"]
    return "\n".join(lines + [f"{k} {' '.join(map(str, np.atleast_1d(v)))}" for k, v in parameters.items()])


EVERY = range(1, 7)
KERNELS = {
    "rbf": (rbf, "k1", [section("k1", "rbf", EVERY, theta=THETA)]),
    "cyclic": (cyclic, "(k1)", [section("k1", "rbf-cyclic", EVERY, theta=THETA)]),
    "product": (
        mixed,
        "(k1*k2)",
        [section("k1", "rbf", range(1, 6), theta=THETA[:5]), section("k2", "periodic", [6], theta=THETA[5])],
    ),
    "sum": (
        linear,
        "((k1+k2)+c)\nprefactor 2.5",
        [
            section("k1", "rbf", EVERY, theta=THETA),
            section("k2", "linear", [1, 2], order=1, c=[4.0, 5.0]),
            section("c", "constant", [], value=0.25),
        ],
    ),
}
MEANS = {
    "zero": (lambda x: 0.0 * x[:, 0], "type zero"),
    "constant": (lambda x: -75.01 + 0.0 * x[:, 0], "type constant\nvalue -75.01"),
    "linear": (
        lambda x: -75 + (x - 2) @ (0.001 * np.arange(6)),
        f"type linear\nbeta {' '.join(str(0.001 * k) for k in range(6))}\nxmin {'2.0 ' * 6}\nymin -75.0",
    ),
    "quadratic": (
        lambda x: -75 + (x - 2) ** 2 @ (0.001 * np.arange(6)),
        f"type quadratic\nbeta {' '.join(str(0.001 * k) for k in range(6))}\nxmin {'2.0 ' * 6}\nymin -75.0",
    ),
}


def rows(array):
    return "\n".join(" ".join(map(repr, map(float, np.atleast_1d(row)))) for row in array)


def make_file(path, kernel="rbf", mean="constant", scaling=False, atom="O1", alf="1 2 3", weights=None):
    """A .model file as FEREBUS writes it, and its prediction at a point in plain NumPy."""
    k, composition, sections = KERNELS[kernel]
    m, mean_section = MEANS[mean]
    x, y = ((X - X.mean(0)) / X.std(0), (Y - Y.mean()) / Y.std()) if scaling else (X, Y)
    covariance = np.array([[k(a.copy(), b) for b in x] for a in x]) + NUGGET * np.eye(N)
    w = np.linalg.solve(covariance, y - m(x))
    text = f"""# [metadata]
# program ferebus
# nugget {NUGGET}
# likelihood 1.0

[system]
name TOY
atom {atom}
property iqa
ALF {alf}

[dimensions]
number_of_atoms 4
number_of_features 6
number_of_training_points {N}

[mean]
{mean_section}

[kernels]
number_of_kernels {len(sections)}
composition {composition}

{(chr(10) * 2).join(sections)}

[training_data]
units.x bohr bohr radians bohr radians radians
units.y Ha
scaling.x {"standardise" if scaling else "none"}
scaling.y {"standardise" if scaling else "none"}

[training_data.x]
{rows(X)}

[training_data.y]
{rows(Y)}

[weights]
{rows(w if weights is None else weights)}

"""
    path.write_text(text)

    def predict(point):
        p = (point - X.mean(0)) / X.std(0) if scaling else point
        value = m(p[None])[0] + np.array([k(p.copy(), b) for b in x]) @ w
        return Y.mean() + Y.std() * value if scaling else value

    return predict


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("mean", "scaling"), [("constant", False), ("zero", True), ("linear", False), ("quadratic", False)])
def test_predictions_are_the_formats_formulas(kernel, mean, scaling, tmp_path):
    if kernel == "cyclic" and scaling:
        pytest.skip("FEREBUS wraps standardised features at pi, we at pi of the angle itself: the weights tell")
    by_hand = make_file(tmp_path / "m.model", kernel, mean, scaling)
    model = ferebus.read_model(tmp_path / "m.model")
    points = X[:3] + 0.05
    np.testing.assert_allclose(ferebus.predict(model, points), [by_hand(p) for p in points], rtol=0, atol=1e-9)
    # Written and read again: the same predictions and hyperparameters.
    ferebus.write_model(model, tmp_path / "again.model")
    again = ferebus.read_model(tmp_path / "again.model")
    np.testing.assert_allclose(ferebus.predict(again, points), ferebus.predict(model, points), rtol=0, atol=1e-12)


@pytest.fixture
def molecule(tmp_path):
    folder = tmp_path / "toy"
    folder.mkdir()
    for atom, alf in (("O1", "1 2 3"), ("H2", "2 1 3"), ("C3", "3 1 2"), ("H4", "4 1 2")):
        make_file(folder / f"TOY_iqa_{atom}.model", "product", atom=atom, alf=alf)
    return folder


def test_a_folder_is_a_potential_like_any_other(molecule, tmp_path):
    model = ferebus.read_folder(molecule)
    assert model.species == ("O", "H", "C", "H")
    near = model.reference + 0.02 * RNG.normal(size=(4, 4, 3))
    energies, forces = energy_and_forces(model)(near)
    np.testing.assert_allclose(energies, [atomic_energies(model, r).sum() for r in near], atol=1e-9)
    step = np.zeros((4, 3))
    step[2, 1] = 1e-4
    slope = np.diff(energy_and_forces(model)(np.array([near[0] - step, near[0] + step]))[0])[0] / 2e-4
    assert -forces[0, 2, 1] == pytest.approx(slope, rel=1e-6)
    assert predictive_variance(model)(near).shape == (4, 4)
    # Our own file holds it bit for bit.
    save_model(model, tmp_path / "toy.safetensors")
    back = load_model(tmp_path / "toy.safetensors")
    np.testing.assert_array_equal(energy_and_forces(back)(near)[0], energies)
    paths = ferebus.write_folder(back, tmp_path / "again")
    assert sorted(p.name for p in paths) == sorted(p.name for p in molecule.iterdir())
    again = ferebus.read_folder(tmp_path / "again")
    np.testing.assert_allclose(energy_and_forces(again)(near)[0], energies, rtol=0, atol=1e-12 * HARTREE)


def test_it_is_validated_relaxed_simulated_and_used_through_ase(tmp_path, water_like):
    """Whatever takes a model of ours takes an imported one."""
    model = water_like
    positions = model.reference[None] + 0.01 * RNG.normal(size=(5, 3, 3))
    energies, forces = energy_and_forces(model)(positions)
    data = Dataset(model.species, positions, energies, forces, np.array([atomic_energies(model, r) for r in positions]))
    result = validate(model, data)
    assert result.energy.max < 1e-6 and result.forces.max < 1e-6
    atoms = Atoms(model.species, positions=positions[0], calculator=IQAGP(model))
    assert atoms.get_potential_energy() == pytest.approx(energies[0])
    relaxed = minimise(energy_fn(model), positions[0])
    assert relaxed.max_force < 1e-3 and relaxed.energy < energies.min()
    rule = failure_rule(model.species, relaxed.positions)
    run = simulate(
        energy_fn(model), rule, relaxed.positions[None], tmp_path / "run", temperature=50.0, time=0.02, progress=False
    )
    assert run.survived.all()


@pytest.fixture
def water_like():
    """Atomwise potential of a bent triatomic in harmonic springs, fitted atom by atom from csv-like tables."""
    spread = RNG.uniform(-1, 1, (60, 3)) * np.array([0.3, 0.3, 0.3])
    x = np.array([1.8, 1.8, 1.8]) + spread
    y = 0.1 * (spread**2).sum(1) / 3
    atoms = []
    geometry = ferebus.geometries(x, (0, 1, 2), 3) / BOHR
    for atom, frame in (("O1", (0, 1, 2)), ("H2", (1, 0, 2)), ("H3", (2, 0, 1))):
        features = np.array([ferebus_features(r, frame) for r in geometry])
        labels = (("name", "WATER"), ("atom", atom), ("property", "iqa"))
        alone = -74.0 if atom == "O1" else -0.5
        atoms.append(fit_atom(features, alone + y, frame, labels, noise=1e-8, max_steps=10)[0])
    return ferebus.assemble(atoms)


def ferebus_features(positions, frame):
    """Two distances and the angle between them, of three atoms."""
    to_x, to_xy = positions[frame[1]] - positions[frame[0]], positions[frame[2]] - positions[frame[0]]
    a, b = np.linalg.norm(to_x), np.linalg.norm(to_xy)
    return a, b, np.arccos(to_x @ to_xy / (a * b))


def test_models_of_moments_are_electrostatics(molecule):
    """Charges and dipoles from a folder: the energy of two molecules is that of the moments; forces are its gradient."""
    for name in ("q00", "q10", "q11c", "q11s"):
        for path in list(molecule.glob("TOY_iqa_*.model")):
            text = path.read_text().replace("property iqa", f"property {name}").replace("units.y Ha", "units.y unknown")
            (molecule / path.name.replace("iqa", name)).write_text(text)
    moments = ferebus.read_moments(molecule, max_rank=1)
    one = ferebus.read_folder(molecule).reference
    pair = np.stack([one, one + np.array([0.0, 6.0, 0.0])])
    with ferebus.jax.enable_x64(True):
        own = np.asarray(moments(one))
    assert own.shape == (4, 4)
    # The toy's "moments" are its energies, hartree for e.
    np.testing.assert_allclose(own[:, 0], atomic_energies(ferebus.read_folder(molecule), one) / HARTREE, rtol=1e-10)
    energy_and_forces_of = electrostatics.energy_and_forces(moments, moments.frames)
    _, forces = energy_and_forces_of(pair)
    step = np.zeros_like(pair)
    step[1, 2, 0] = 1e-4
    both = [energy_and_forces_of(pair + sign * step)[0] for sign in (1, -1)]
    assert -forces[1, 2, 0] == pytest.approx((both[0] - both[1]) / 2e-4, rel=1e-5)
    (molecule / "TOY_q11s_H2.model").unlink()
    with pytest.raises(ValueError, match=r"atoms \[2\] have no model"):
        ferebus.read_moments(molecule, max_rank=1)


def test_convert_in_both_directions(molecule, tmp_path, capsys):
    assert iqagp("convert", molecule, "-o", tmp_path / "toy.safetensors") == 0
    assert iqagp("convert", tmp_path / "toy.safetensors", "-o", tmp_path / "again") == 0
    assert "4 files" in capsys.readouterr().out
    one, two = (ferebus.read_folder(folder) for folder in (molecule, tmp_path / "again"))
    np.testing.assert_array_equal(one.atoms[1].weights, two.atoms[1].weights)


def test_our_models_go_to_ferebus_and_back(model, test_set, tmp_path):
    """A model of this package in bohr and hartree predicts what it did in angstrom and eV."""
    ferebus.write_folder(model, tmp_path, "TOY")
    back = ferebus.read_folder(tmp_path)
    ours, theirs = (energy_and_forces(m)(test_set.positions)[0] for m in (model, back))
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-8 * HARTREE)


def test_what_ferebus_has_not_is_refused(distance_model, tmp_path):
    with pytest.raises(ValueError, match="expected ALF features"):
        ferebus.write_folder(distance_model, tmp_path)


@pytest.mark.parametrize("convention", ferebus.CONVENTIONS)
def test_weights_of_other_conventions_are_recognised(convention, tmp_path):
    """Weights made by each other reading: refused, with the name of the reading that makes them; then read with it."""
    path = tmp_path / "m.model"
    kernel = "rbf" if convention == "wrap" else "product"
    make_file(path, kernel)
    model = ferebus._interpret(ferebus._File(path), (convention,))
    with ferebus.jax.enable_x64(True):
        weights = np.asarray(ferebus.regression.weights(model.factor(), model.residual))
    make_file(path, kernel, weights=weights)
    with pytest.raises(ValueError, match=f"they are with the conventions {convention}$"):
        ferebus.read_model(path)
    assert ferebus.reproduces_weights(ferebus.read_model(path, (convention,)))


def test_strange_weights_need_to_be_accepted(tmp_path):
    for mean in ("linear", "constant"):
        make_file(tmp_path / "m.model", mean=mean, weights=np.arange(N))
        with pytest.raises(ValueError, match=r"under any known convention .*--accept-weights"):
            ferebus.read_model(tmp_path / "m.model")
    assert ferebus.read_model(tmp_path / "m.model", accept_weights=True).weights[3] == 3


def test_windows_and_fortran_are_read(tmp_path):
    path = tmp_path / "m.model"
    make_file(path)
    text = path.read_text().replace("theta 0.3 0.4", "theta .3D+00 4.0d-1").replace("value -75.01", "value -.7501E+02")
    path.write_bytes(text.replace("\n", "\r\n").encode())
    np.testing.assert_allclose(0.5 / ferebus.read_model(path).kernel.kernel.lengthscale ** 2, THETA, rtol=1e-14)


def with_feature(column, value):
    """A change of the first training point's feature in a file's text."""
    words = list(map(repr, map(float, X[0])))
    return lambda text: text.replace(" ".join(words), " ".join([*words[:column], repr(value), *words[column + 1 :]]))


BROKEN = {
    "truncated weights": (lambda t: t[: t.rindex("\n", 0, -40)], r"line \d+: expected 12 rows in \[weights\], found 1\d"),
    "no weights": (lambda t: t[: t.index("[weights]")], r"expected a section \[weights\]"),
    "feature count": (
        lambda t: t.replace("number_of_features 6", "number_of_features 5"),
        r"line 14: expected 3N - 6 features",
    ),
    "NaN": (lambda t: t.replace("theta 0.3", "theta NaN"), r"line \d+: expected a number, found 'NaN'"),
    "words": (lambda t: t.replace("value -75.01", "value minus"), r"line \d+: expected a number, found 'minus'"),
    "kernel": (lambda t: t.replace("type rbf", "type cubic"), r"line \d+: expected a kernel rbf"),
    "theta": (lambda t: t.replace("theta 0.3", "theta"), r"line \d+: expected 6 numbers, found 5"),
    "negative theta": (lambda t: t.replace("theta 0.3", "theta -0.3"), r"expected theta of at least zero"),
    "columns": (lambda t: t.replace("active_dimensions 1 2", "active_dimensions 1 1"), r"expected different active dimensions"),
    "ALF": (lambda t: t.replace("ALF 1 2 3", "ALF 1 2 9"), r"line 10: expected three different atoms"),
    "composition": (lambda t: t.replace("composition k1", "composition k1-"), r"expected kernels joined by"),
    "no such kernel": (lambda t: t.replace("composition k1", "composition k1*k7"), r"expected a section \[kernel.k7\]"),
    "unused kernel": (lambda t: t.replace("composition k1", "composition c"), r"expected all kernels .* found k1 not used"),
    "mean": (lambda t: t.replace("type constant", "type cubic"), r"line \d+: expected a mean zero"),
    "scaling": (lambda t: t.replace("scaling.x none", "scaling.x log"), r"expected scaling.x none or standardise"),
    "empty": (lambda t: "", r"expected a section \[system\]"),
    "no element": (lambda t: t.replace("atom O1", "atom Xx1"), r"line 8: expected an atom's name as O1, .* found 'Xx1'"),
    "another atom": (lambda t: t.replace("atom O1", "atom O2"), r"line 8: expected atom 2 as the first of its ALF, found 1"),
    "angstrom": (
        lambda t: t.replace("units.x bohr bohr", "units.x bohr angstrom"),
        r"line \d+: expected units.x bohr, as FEREBUS and DL_FFLUX take all files .* found angstrom",
    ),
    "degrees": (lambda t: t.replace("radians bohr", "degrees bohr"), r"expected units.x radians, .* found degrees"),
    "eV": (lambda t: t.replace("units.y Ha", "units.y eV"), r"expected units.y Ha, .* found eV"),
    "few units": (lambda t: t.replace("radians radians\nunits.y", "radians\nunits.y"), r"expected the units of 6 numbers"),
    "zero distance": (with_feature(0, 0.0), r"line \d+: expected a distance in bohr from 0.2 to 10000 as feature 1, found 0"),
    "9 rad": (with_feature(2, 9.0), r"line \d+: expected an angle in radian from 0 to pi as feature 3, found 9"),
    "9 rad of phi": (with_feature(5, 9.0), r"expected an angle in radian from -2 pi to 2 pi as feature 6, found 9"),
    "1e200": (with_feature(3, 1e200), r"as feature 4, found 1e\+200"),
    "huge value": (lambda t: t.replace("value -75.01", "value 1e300"), r"expected finite numbers as offset of the mean"),
    "negative nugget": (lambda t: t.replace(f"nugget {NUGGET}", "nugget -1"), r"as a nugget, found -1"),
    "twice": (lambda t: t.replace("atom O1", "atom O1\natom H2"), r"expected 'atom' once in section \[system\]"),
    "kernels": (lambda t: t.replace("number_of_kernels 1", "number_of_kernels 2"), r"expected 2 sections of kernels, found 1"),
    "dimensions": (lambda t: t.replace("dimensions 6", "dimensions 5"), r"expected 5 active dimensions .* found 6"),
    "no points": (lambda t: t.replace(f"points {N}", "points 0"), r"expected some rows in \[training_data.x\]"),
    "deep": (lambda t: t.replace("composition k1", "composition " + "k1+" * 500 + "k1"), r"expected at most 100 sums"),
    "last number cut": (lambda t: t.rstrip()[:-8], r"line \d+: expected a number as long as those above"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_get_a_sentence(what, tmp_path):
    path = tmp_path / "m.model"
    make_file(path)
    change, sentence = BROKEN[what]
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=rf"m\.model[,:] .*{sentence}"):
        ferebus.read_model(path)


def test_incomplete_molecules_get_a_sentence(molecule):
    (molecule / "TOY_iqa_C3.model").unlink()
    with pytest.raises(ValueError, match=r"atoms \[3\] have no model"):
        ferebus.read_folder(molecule)
    with pytest.raises(FileNotFoundError, match=r"expected files \*_q00_\*\.model"):
        ferebus.read_folder(molecule, "q00")


def test_models_of_two_systems_get_a_sentence(molecule):
    make_file(molecule / "OTHER_iqa_O1.model", "product", atom="O1", alf="1 2 3")
    with pytest.raises(ValueError, match="expected one iqa model for each atom, found two of O1, the second TOY_iqa_O1"):
        ferebus.read_folder(molecule)
    text = (molecule / "TOY_iqa_O1.model").read_text()
    (molecule / "TOY_iqa_O1.model").unlink()
    (molecule / "OTHER_iqa_O1.model").write_text(text.replace("name TOY", "name OTHER"))
    with pytest.raises(ValueError, match="expected models of one system, found OTHER, TOY"):
        ferebus.read_folder(molecule)


@pytest.mark.parametrize(("name", "atom"), [("TOY", "S1"), ("AMMONIA", "N1")])
def test_two_models_of_one_atom_number_are_refused(name, atom, molecule):
    """The second replaced the first, whatever its element and molecule."""
    text = (molecule / "TOY_iqa_O1.model").read_text().replace("name TOY", f"name {name}").replace("atom O1", f"atom {atom}")
    (molecule / f"{name}_iqa_{atom}.model").write_text(text)
    sentence = "found AMMONIA, TOY" if name != "TOY" else "expected one model for each atom, found O1 and S1 as atom 1"
    with pytest.raises(ValueError, match=sentence):
        ferebus.read_folder(molecule)


@pytest.mark.parametrize(("old", "new"), [("property iqa", "property q00"), ("name", "")])
def test_a_model_is_what_its_name_tells(old, new, molecule):
    path = molecule / "TOY_iqa_H2.model"
    if old == "name":
        path.rename(molecule / "TOY_iqa_F2.model")
    else:
        path.write_text(path.read_text().replace(old, new).replace("units.y Ha", "units.y e"))
    with pytest.raises(ValueError, match=r"expected the (property iqa|atom F2) that its name tells, found (q00|H2) in it"):
        ferebus.read_folder(molecule)


def test_files_of_other_names_are_told(molecule):
    (molecule / "copy.model").write_text("")
    with pytest.warns(UserWarning, match=r"as they are not named SYSTEM_iqa_ATOM.model: copy.model"):
        assert len(ferebus.read_folder(molecule).species) == 4


def test_a_property_is_no_pattern(molecule, tmp_path, capsys):
    assert iqagp("convert", molecule, "-o", tmp_path / "m.safetensors", "--property", "(") == 2
    assert "expected files *_(_*.model in the folder" in " ".join(capsys.readouterr().err.split())


def test_a_moments_unit_is_its_own(molecule):
    path = molecule / "TOY_iqa_H2.model"
    for unit, read in (("e", True), ("unknown", True), ("Ha", False), ("debye", False)):
        other = molecule / "TOY_q00_H2.model"
        other.write_text(path.read_text().replace("property iqa", "property q00").replace("units.y Ha", f"units.y {unit}"))
        if read:
            assert ferebus.read_model(other).units[1] == 1
        else:
            with pytest.raises(ValueError, match=f"expected units.y e, .* found {unit}"):
                ferebus.read_model(other)


@pytest.mark.parametrize("kernel", KERNELS)
def test_covariances_by_rows_are_those_at_once(kernel, tmp_path):
    """What is looked at while a file is read, in less memory."""
    make_file(tmp_path / "m.model", kernel)
    model = ferebus.read_model(tmp_path / "m.model")
    with ferebus.jax.enable_x64(True):
        at_once = ferebus.regression.covariance_matrix(model.kernel, model.x, 0.0)
    np.testing.assert_allclose(ferebus._covariance(model), at_once, rtol=1e-13)


def test_a_refusal_makes_each_matrix_once(tmp_path, monkeypatch):
    """A cyclic kernel is the same by all conventions, a product of two has four; nothing is made for what changes nothing."""
    made = []
    covariance = ferebus._covariance
    monkeypatch.setattr(ferebus, "_covariance", lambda model: made.append(model) or covariance(model))
    for kernel, matrices in (("cyclic", 1), ("product", 4)):
        make_file(tmp_path / "m.model", kernel, weights=np.arange(N))
        made.clear()
        with pytest.raises(ValueError, match="under any known convention"):
            ferebus.read_model(tmp_path / "m.model")
        assert len(made) == matrices


def test_units_do_not_depend_on_capitals(molecule):
    path = molecule / "TOY_iqa_O1.model"
    before = ferebus.read_model(path).units[1]
    path.write_text(path.read_text().replace("property iqa", "property IQA"))
    assert ferebus.read_model(path).units[1] == before == HARTREE


def test_columns_of_a_csv_file_need_not_be_beside_each_other(tmp_path):
    lines = [line.split(",") for line in CSV.splitlines()]
    (tmp_path / "a.csv").write_text(CSV)
    (tmp_path / "b.csv").write_text("\n".join(",".join([*words[:3], words[-1], *words[3:-1]]) for words in lines) + "\n")
    np.testing.assert_array_equal(ferebus.read_csv(tmp_path / "a.csv")[0], ferebus.read_csv(tmp_path / "b.csv")[0])


def test_single_models_ask_for_float64(molecule):
    model = ferebus.read_folder(molecule)
    with pytest.raises(ValueError, match="expected JAX's 64-bit mode, found it off"):
        model(model.reference)


HEADER = "," + ",".join(f"f{k}" for k in EVERY) + ",q00,iqa"
CSV = "\n".join([HEADER, *(f"{i},{','.join(map(str, X[i]))},0.1,-75.{i}" for i in range(N)), ""])


def in_degrees(text):
    """The same table with all angles in degrees."""
    x = np.where(np.arange(D) % 3 == 2, np.degrees(X), X)
    x[:, 4] = np.degrees(X[:, 4])
    for old, new in zip(X, x, strict=True):
        text = text.replace(",".join(map(str, old)), ",".join(map(str, new)))
    return text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.replace("f3,", ""), "line 1: expected columns f1"),
        (lambda t: t.replace("-75.3", "NaN"), "line 5: expected a finite number for iqa"),
        (lambda t: t.replace("-75.3", ""), "line 5: expected a finite number for iqa"),
        (lambda t: t.replace(",0.1,-75.3", ",-75.3"), "line 5: expected 9 columns, found 8"),
        (lambda t: t.splitlines()[0], "line 1: expected rows of data"),
        (lambda t: "", "line 1: expected columns f1"),
        (lambda t: t.replace("iqa", "aqi"), "line 1: expected a column 'iqa', found q00, aqi"),
        (lambda t: t.replace("q00", "iqa"), "line 1: expected every column once, found iqa again"),
        (lambda t: t.replace(f"3,{X[3, 0]}", "3,0.0"), "line 5: expected a distance in bohr from 0.2 to 10000 as f1, found 0"),
        (lambda t: t.replace(f"3,{X[3, 0]}", "3,-1.5"), "line 5: expected a distance in bohr .* found -1.5"),
        (lambda t: t.replace(f"3,{X[3, 0]}", "3,1e200"), "line 5: expected a finite number for f1, found '1e200'"),
        (lambda t: t.replace(str(X[3, 4]), "9.0"), "line 5: expected an angle in radian from 0 to pi as f5, found 9"),
        (lambda t: t.replace(str(X[3, 5]), "9.0"), "line 5: expected an angle in radian from -2 pi to 2 pi as f6, found 9"),
        (in_degrees, r"line 2: expected an angle in radian from 0 to pi, in degrees\? as f3, found"),
        (lambda t: t.replace("-75.3", "-7_5.3"), "line 5: expected a finite number for iqa"),
        (lambda t: t.replace("-75.", "-75.1234567"), "line 13: expected a number as long as those above, found '75.12345'"),
        (lambda t: t.rstrip() + "E-1", r"line 13: expected a number as long as those above, found '75.11E-1'"),
    ],
)
def test_broken_csv_files_get_a_sentence(change, sentence, tmp_path):
    text = change(CSV)
    (tmp_path / "t.csv").write_text(text[:-5] if "75.12345" in sentence else text)
    with pytest.raises(ValueError, match=f"t.csv, {sentence}"):
        ferebus.property_of(tmp_path / "t.csv", "iqa")


def test_what_is_no_csv_file_gets_a_sentence(tmp_path):
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 9)
    with pytest.raises(ValueError, match=r"expected a csv file, found a binary one at .*binary.csv"):
        ferebus.read_csv(tmp_path / "binary.csv")
    with pytest.raises(FileNotFoundError, match="expected a csv file, found a folder at"):
        ferebus.read_csv(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected a csv file, found nothing at"):
        ferebus.read_csv(tmp_path / "none.csv")


def test_training_from_a_csv_file(tmp_path, capsys):
    (tmp_path / "t.csv").write_text(CSV.replace("e", "D"))
    options = ("--alf", "1,2,3", "--atom", "O1", "--starts", 2, "--max-steps", 30, "--validation-set", tmp_path / "t.csv")
    assert iqagp("train-atom", tmp_path / "t.csv", "-o", tmp_path / "m.model", *options) == 0
    model = ferebus.read_model(tmp_path / "m.model")
    np.testing.assert_allclose(ferebus.predict(model, X), [float(f"-75.{i}") for i in range(N)], atol=1e-3)
    assert iqagp("train-atom", tmp_path / "t.csv", "-o", tmp_path / "m.model", "--alf", "1,2", "--atom", "O1") == 2
    assert "expected three different atoms" in capsys.readouterr().err


def test_atomic_energies_in_another_unit_are_told():
    """FEREBUS' sets are in hartree: an oxygen of -2045 is one in eV."""
    labels = (("name", "WATER"), ("atom", "O1"), ("property", "iqa"))
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0.9, 1.1, (6, 3)), -75.2 + 0.01 * rng.normal(size=6)
    fit_atom(x, y, (0, 1, 2), labels, max_steps=1)
    with pytest.warns(UserWarning, match=r"energies of O1 in hartree, about -7.* each, found -2046 .* they are in eV, divide"):
        fit_atom(x, y * HARTREE, (0, 1, 2), labels, max_steps=1)


def test_a_file_that_stops_amid_a_line_is_told(tmp_path):
    (tmp_path / "t.csv").write_text(CSV.rstrip("\n"))
    with pytest.warns(UserWarning, match="t.csv ends without the end of a line: is its last number, .*, whole"):
        ferebus.property_of(tmp_path / "t.csv", "iqa")
