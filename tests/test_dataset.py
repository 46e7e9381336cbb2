import contextlib
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from conftest import make_dataset

from iqagp_jax import load_dataset, save_dataset
from iqagp_jax.data.dataset import Dataset, balanced, beside, concatenate
from iqagp_jax.data.extxyz import dataset_from_frames, embedded_datasets, frames_from_dataset, unlabelled
from iqagp_jax.data.level import Level
from iqagp_jax.data.scale import check_units
from iqagp_jax.units import KCAL_MOL


@pytest.fixture
def small():
    data = make_dataset(6, seed=4, split="train")
    raw = data.atomic_energies + 0.001
    extra = {"becke_energies": raw, "becke_remainder": data.energy - raw.sum(1)}
    return replace(data, extra=extra, level={"level_of_theory": "analytic", "partition": "becke"})


def test_round_trip(small, tmp_path):
    save_dataset(small, tmp_path / "d.extxyz.xz")
    back = load_dataset(tmp_path / "d.extxyz.xz")
    assert (back.species, back.level, back.free_atoms) == (small.species, small.level, small.free_atoms)
    for name in ("positions", "energy", "forces", "atomic_energies"):
        np.testing.assert_allclose(getattr(back, name), getattr(small, name), atol=1e-8)
    assert back.origin.keys() == small.origin.keys()
    assert (back.origin["split"] == "train").all()
    for name, values in small.extra.items():
        np.testing.assert_allclose(back.extra[name], values, atol=1e-8)


def test_ase_reads_it(small, tmp_path):
    save_dataset(small, tmp_path / "d.extxyz")
    frames = read(tmp_path / "d.extxyz", index=":")
    assert sum(len(a) == 1 for a in frames) == 3
    assert frames[-1].info["REF_energy"] == pytest.approx(small.energy[-1])
    np.testing.assert_allclose(frames[-1].arrays["REF_forces"], small.forces[-1], atol=1e-8)


def test_interrupted_writing_leaves_the_old_file(small, tmp_path, monkeypatch):
    path = tmp_path / "d.extxyz"
    save_dataset(small, path)
    before = path.read_bytes()
    monkeypatch.setattr("ase.io.write", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_dataset(small[:2], path)
    assert path.read_bytes() == before


def test_splits_and_partitions(small):
    assert small.splits == ["train"]
    assert len(small.split("train")) == 6
    np.testing.assert_allclose(small.with_partition("becke").atomic_energies, small.atomic_energies)
    with pytest.raises(ValueError, match="expected a split of the dataset"):
        small.split("test")
    with pytest.raises(ValueError, match=r"expected a partition that the dataset holds \(becke\)"):
        small.with_partition("qtaim")


def test_another_partition_of_the_same_geometries(small):
    raw = small.atomic_energies[::-1] * 0.9
    labels = replace(
        small[[5, 4, 3, 1]],
        energy=small.energy[[5, 4, 3, 1]] + 1e-7,
        forces=None,
        extra={"qtaim_energies": raw[[5, 4, 3, 1]]},
        level={"level_of_theory": "analytic", "partition": "qtaim"},
    )
    labels.positions[0, 0, 0], small.positions[5, 0, 0] = -0.0, 0.0
    both = beside(small, labels)
    np.testing.assert_array_equal(both.positions, small.positions[[1, 3, 4, 5]])
    np.testing.assert_array_equal(both.forces, small.forces[[1, 3, 4, 5]])
    np.testing.assert_array_equal(both.extra["qtaim_energies"], raw[[1, 3, 4, 5]])
    np.testing.assert_allclose(both.atomic_energies, balanced(raw, small.energy)[[1, 3, 4, 5]])
    np.testing.assert_allclose(both.with_partition("becke").atomic_energies, small.atomic_energies[[1, 3, 4, 5]])
    for other, sentence in (
        (replace(labels, energy=labels.energy + 1e-3), "energies that differ by up to 0.001 eV"),
        (replace(labels, level={**labels.level, "level_of_theory": "hf"}), "found 'analytic' and 'hf'"),
        (replace(labels, extra=small.extra), "expected a partition that the dataset lacks, found becke_energies"),
        (replace(labels, positions=labels.positions + 0.1), "found none among 6 of O C H H and 4 of"),
    ):
        with pytest.raises(ValueError, match=sentence):
            beside(small, other)


def test_balanced_energies_sum_to_the_total():
    raw = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(balanced(raw, np.arange(5.0)).sum(1), np.arange(5.0), atol=1e-14)


def test_mirror_image_twice_is_the_same(small):
    np.testing.assert_array_equal(small.mirrored().mirrored().positions, small.positions)
    np.testing.assert_array_equal(small.mirrored().forces[..., 2], -small.forces[..., 2])


def broken_files(small, folder):
    save_dataset(small, folder / "good.extxyz")
    text = (folder / "good.extxyz").read_text()
    (folder / "truncated.extxyz").write_text(text[: len(text) - 250])
    (folder / "nonsense.extxyz").write_text("hello\nworld\n")
    positions = small.positions.copy()
    positions[3, 1, 0] = np.nan
    save_dataset(replace(small, positions=positions), folder / "nan.extxyz")
    mixed = [*read(folder / "good.extxyz", index=":"), Atoms("CO", info={"REF_energy": 1.0})]
    write(folder / "mixed.extxyz", mixed)
    renamed = read(folder / "good.extxyz", index="3:")
    for atoms in renamed:
        atoms.info["dft_energy"] = atoms.info.pop("REF_energy")
    write(folder / "renamed.extxyz", renamed)
    save_dataset(replace(small, atomic_energies=small.atomic_energies + 0.1), folder / "raw.extxyz")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("truncated", "is not a whole extxyz file"),
        ("nonsense", "is not a whole extxyz file"),
        ("nan", "expected finite positions, found a NaN or infinity in frame 3"),
        ("mixed", "expected the atoms O C H H in every frame, found C O in frame 6"),
        ("renamed", "no frame has REF_energy"),
        ("raw", "expected atomic energies that sum to REF_energy"),
    ],
)
def test_bad_files_get_a_sentence(small, tmp_path, name, sentence):
    broken_files(small, tmp_path)
    with pytest.raises(ValueError, match=sentence):
        load_dataset(tmp_path / f"{name}.extxyz")


@pytest.mark.parametrize("label", ["energy", "forces"])
def test_labels_beyond_all_sense_get_a_sentence(small, label):
    frames = frames_from_dataset(replace(small, atomic_energies=None))
    place = frames[7].info if label == "energy" else frames[7].arrays
    place[f"REF_{label}"] = np.full(np.shape(place[f"REF_{label}"]), -1e300)
    frame = 7 - len(small.free_atoms)
    with pytest.raises(ValueError, match=rf"expected {label} of a size that a molecule has, found 1e\+300 in frame {frame}"):
        dataset_from_frames(frames)


def test_joined_datasets_lack_what_one_of_them_lacks():
    data = make_dataset(3, seed=4, split="train")
    other = replace(data, atomic_energies=None, origin={"split": data.origin["split"]})
    both = concatenate([data, other])
    np.testing.assert_array_equal(both.atomic_energies, np.concatenate([data.atomic_energies, np.full((3, 4), np.nan)]))
    assert set(both.origin) == {"split"} and len(both.forces) == 6
    assert concatenate([other, other]).atomic_energies is None


def test_datasets_of_other_levels_are_not_joined(small):
    with pytest.raises(ValueError, match=r"same atoms and level of theory, found .*'analytic'.* and .*'hf'"):
        concatenate([small, replace(small, level={"level_of_theory": "hf"})])


def test_files_of_two_levels_get_a_sentence(small, tmp_path):
    save_dataset(small, tmp_path / "a.extxyz")
    save_dataset(replace(small, level={"level_of_theory": "hf", "partition": "becke"}), tmp_path / "b.extxyz")
    both = (tmp_path / "a.extxyz").read_text() + (tmp_path / "b.extxyz").read_text()
    (tmp_path / "both.extxyz").write_text(both)
    with pytest.raises(ValueError, match="one level_of_theory in all frames, found 'analytic' in frame 0 and 'hf' in frame 6"):
        load_dataset(tmp_path / "both.extxyz")


def test_labels_that_were_asked_for_are_saved_not_those_of_the_usual_names(small, tmp_path):
    save_dataset(replace(small, extra={}, atomic_energies=None), tmp_path / "d.extxyz")
    frames = read(tmp_path / "d.extxyz", index="3:")
    for atoms in frames:
        atoms.info["dft_energy"], atoms.arrays["dft_forces"] = -100.0, np.full((4, 3), 7.0)
    write(tmp_path / "two.extxyz", frames)
    with pytest.warns(UserWarning, match="not learned: REF_energy, REF_forces"):
        data = load_dataset(tmp_path / "two.extxyz", "dft_energy", "dft_forces")
    save_dataset(data, tmp_path / "back.extxyz")
    back = load_dataset(tmp_path / "back.extxyz")
    assert (back.energy == -100).all() and (back.forces == 7).all()


def test_what_has_no_place_in_a_dataset_is_told(small, tmp_path):
    save_dataset(small, tmp_path / "d.extxyz")
    frames = read(tmp_path / "d.extxyz", index="3:")
    for atoms in frames:
        atoms.info["moment"] = np.arange(4.0)  # as many as atoms
    frames[2].info["note"] = "odd"
    write(tmp_path / "more.extxyz", frames)
    with pytest.warns(UserWarning, match=r"left out of the dataset: moment \(no number or word\), note \(a frame lacks it\)"):
        data = load_dataset(tmp_path / "more.extxyz")
    assert not {"moment", "note"} & set(data.extra)


ETHANOL = molecule("CH3CH2OH")


def ethanols(tmp_path, change, n=4):
    """A file of n shaken ethanols, each with a number as energy and what ``change(k, atoms)`` adds."""
    rng, frames = np.random.default_rng(0), []
    for k in range(n):
        atoms = ETHANOL.copy()
        atoms.positions += 0.05 * rng.normal(size=(9, 3))
        change(k, atoms)
        frames.append(atoms)
    write(tmp_path / "d.extxyz", frames)
    return tmp_path / "d.extxyz"


def put(energy=None, forces=None, **info):
    """A change that gives an energy and forces by these names."""

    def change(k, atoms):
        atoms.info |= info | ({energy: -4200.0 + k} if energy else {})
        if forces:
            atoms.arrays[forces] = np.full((9, 3), k + 1.0)

    return change


def by_ase(k, atoms):
    atoms.calc = SinglePointCalculator(atoms, energy=-4100.0 + k, forces=np.full((9, 3), k + 2.0))


@pytest.mark.parametrize(("energy", "forces"), [("dft_energy", "dft_forces"), ("Energy_pbe", "pbe_forces"), ("X", "forces")])
def test_forces_that_go_with_an_energy_are_learned(tmp_path, energy, forces):
    path = ethanols(tmp_path, put(energy, forces))
    told = energy == "dft_energy"
    with contextlib.nullcontext() if told else pytest.warns(UserWarning, match=f"forces are read from {forces}, beside the"):
        data = load_dataset(path, energy)
    assert data.energy[0] == -4200 and (data.forces[1] == 2).all()


@pytest.mark.parametrize("column", ["force", "REF_force", "F"])
def test_a_column_that_says_force_is_learned_and_told(tmp_path, column):
    path = ethanols(tmp_path, put("REF_energy", column))
    with pytest.warns(UserWarning, match=f"forces are read from {column}, beside the energy from REF_energy"):
        assert (load_dataset(path).forces[1] == 2).all()


def test_forces_of_ase_beside_another_energy_are_learned_and_told(tmp_path):
    def change(k, atoms):
        put("REF_energy")(k, atoms)
        by_ase(k, atoms)

    with pytest.warns(UserWarning) as told:
        data = load_dataset(ethanols(tmp_path, change))
    assert data.energy[0] == -4200 and (data.forces[0] == 2).all()
    assert any("forces are read from forces, beside the energy from REF_energy" in str(w.message) for w in told)
    assert any("not learned: energy" in str(w.message) for w in told)


def test_gradients_are_no_forces_and_told(tmp_path):
    path = ethanols(tmp_path, put("REF_energy", "gradient"))
    with pytest.warns(UserWarning, match="not learned: gradient; forces are minus the gradient: write them as REF_forces"):
        assert load_dataset(path).forces is None


def test_several_columns_of_forces_are_a_choice(tmp_path):
    def change(k, atoms):
        put("Etot", "pbe_forces")(k, atoms)
        atoms.arrays["xtb_forces"] = np.ones((9, 3))

    path = ethanols(tmp_path, change)
    with pytest.raises(ValueError, match="found pbe_forces and xtb_forces; choose by --forces-key"):
        load_dataset(path, "Etot")
    with pytest.warns(UserWarning, match="not learned: pbe_forces"):
        assert (load_dataset(path, "Etot", "xtb_forces").forces == 1).all()


def test_an_energy_of_another_name_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"is it dft_energy[?] Then give --energy-key dft_energy"):
        load_dataset(ethanols(tmp_path, put("dft_energy")))


def test_two_spellings_in_one_file_are_refused_with_counts(tmp_path):
    path = ethanols(tmp_path, lambda k, atoms: by_ase(k, atoms) if k == 2 else put("REF_energy", "REF_forces")(k, atoms))
    with pytest.raises(
        ValueError, match="the energy under one name in all frames, found REF_energy in 3 and energy alone in 1 of 4"
    ):
        load_dataset(path)
    with pytest.warns(UserWarning, match="not learned: energy, forces"):
        data = load_dataset(path, "REF_energy", "REF_forces")
    assert np.isfinite(data.energy).tolist() == [True, True, False, True]


def test_numbers_and_vectors_that_nobody_learns_are_named_once(tmp_path):
    def change(k, atoms):
        put("REF_energy", config_type="MD", weight=1.0, becke_remainder=0.1)(k, atoms)
        atoms.arrays["velocity"], atoms.arrays["mulliken"] = np.ones((9, 3)), np.ones(9)

    with pytest.warns(UserWarning, match="not learned: velocity, weight$") as told:
        data = load_dataset(ethanols(tmp_path, change))
    (ours,) = [warning for warning in told if warning.category is UserWarning]  # others are of what ASE does
    assert ours.filename == __file__
    assert set(data.extra) == {"weight", "velocity", "mulliken", "becke_remainder"}


def test_zeros_are_no_labels(tmp_path):
    def zero(some):
        def change(k, atoms):
            atoms.info["REF_energy"] = 0.0 if some == "energy" else -4200.0 + k
            atoms.arrays["REF_forces"] = np.full((9, 3), float(some == "energy" or (some == 2 and k >= 2)))

        return change

    with pytest.warns(UserWarning, match="REF_forces is exactly zero in all of 4 frames, which is no label"):
        assert load_dataset(ethanols(tmp_path, zero("all"))).forces is None
    with pytest.warns(UserWarning, match="REF_forces is exactly zero in 2 of 4 frames"):
        assert np.isfinite(load_dataset(ethanols(tmp_path, zero(2))).forces).all((1, 2)).tolist() == [False, False, True, True]
    with pytest.warns(UserWarning, match="REF_energy is exactly zero in all of 4 frames"):
        assert np.isnan(load_dataset(ethanols(tmp_path, zero("energy"))).energy).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda k, a: a.info.update(REF_energy="high" if k == 2 else -1.0),
            "frame 2: expected a number as REF_energy, found 'high'",
        ),
        (lambda k, a: a.info.update(REF_energy="-4,5"), r"frame 0: expected a number as REF_energy, found \[-4, 5\]"),
        (lambda k, a: a.info.update(REF_energy=True), "expected a number as REF_energy, found True"),
        (
            lambda k, a: (a.info.update(REF_energy=-1.0), a.set_array("REF_forces", np.ones((9, 2)))),
            r"frame 0: expected an array \(9, 3\) as REF_forces, found an array \(9, 2\) of float",
        ),
        (
            lambda k, a: (a.info.update(REF_energy=-1.0), a.set_array("REF_forces", np.array(9 * [["a", "b", "c"]]))),
            r"frame 0: expected an array \(9, 3\) as REF_forces, found an array \(9, 3\) of",
        ),
        (lambda k, a: (a.info.update(REF_energy=-1.0), a.translate((k == 3) * 1e300)), r"found 1e\+300 in frame 3"),
    ],
)
def test_labels_that_are_no_numbers_are_named(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence) as told:
        load_dataset(ethanols(tmp_path, change))
    assert "d.extxyz" in str(told.value)


@pytest.mark.parametrize("mark", ["IsolatedAtom", "isolated_atom", "isolated atom", "Isolated-Atom", None])
def test_free_atoms_by_all_usual_marks(tmp_path, mark):
    atom = Atoms("H", info={"REF_energy": -13.6} | ({"config_type": mark} if mark else {}))
    path = tmp_path / "d.extxyz"
    write(path, [hydroxyl(REF_energy=-2000.0), atom])
    with contextlib.nullcontext() if mark else pytest.warns(UserWarning, match="1 frame of one atom among molecules taken as"):
        data = load_dataset(path)
    assert data.free_atoms == {"H": -13.6} and len(data) == 1
    with pytest.raises(ValueError, match="frame 0: expected one atom of config_type=isolated_atom, found OH"):
        load_dataset(written(path, hydroxyl(config_type="isolated_atom")))
    twice = (Atoms("H", info={"REF_energy": energy, "config_type": "IsolatedAtom"}) for energy in (-13.6, -13.0))
    with pytest.raises(ValueError, match=r"expected one free atom H, found -13.6 and -13.0 eV"):
        load_dataset(written(path, *twice, hydroxyl()))


@pytest.mark.parametrize(("pair", "told"), [((0, 1), "C1, C2"), ((3, 8), "H4, H9"), ((2, 3), "O3, H4")])
def test_exchanged_atoms_are_told(tmp_path, pair, told):
    def change(k, atoms):
        atoms.info["REF_energy"] = -4200.0 + k
        if k == 2:
            atoms.positions[list(pair)] = atoms.positions[list(pair[::-1])]

    with pytest.warns(UserWarning, match=f"found {told} in each other's places, by their bonds, in frame 2 of 6"):
        load_dataset(ethanols(tmp_path, change, 6))


def test_equivalent_hydrogens_and_broken_bonds_are_not_spoken_of(tmp_path):
    def change(k, atoms):
        atoms.info["REF_energy"] = -4200.0 + k
        if k == 2:
            atoms.positions[[6, 7]] = atoms.positions[[7, 6]]
        if k == 3:
            atoms.positions[3] += [0.9, 0.0, 0.0]

    assert len(load_dataset(ethanols(tmp_path, change, 6))) == 6


def test_atoms_in_one_place_are_refused_and_crushed_ones_told(tmp_path):
    def change(share):
        def at(k, atoms):
            atoms.info["REF_energy"] = -4200.0 + k
            if k == 2:
                atoms.positions[1] = atoms.positions[0] + share * (atoms.positions[1] - atoms.positions[0])

        return at

    with pytest.raises(ValueError, match="expected one atom in a place, found two in frame 2"):
        load_dataset(ethanols(tmp_path, change(0.0)))
    with pytest.warns(UserWarning, match="two atoms are at 0.* sums of their covalent radii in frame 2"):
        load_dataset(ethanols(tmp_path, change(0.3)))


def test_far_atoms_and_repeated_frames_are_told(tmp_path):
    far = ethanols(tmp_path, lambda k, a: (put("REF_energy")(k, a), a.translate((k == 1) * 500.0 * np.eye(9)[:, :3])))
    with pytest.warns(UserWarning, match=r"angstrom from the others' middle in frame 1, where .* is usual"):
        load_dataset(far)
    text = ethanols(tmp_path, put("REF_energy"), 12).read_text()
    (tmp_path / "twice.extxyz").write_text(text + text)
    with pytest.warns(UserWarning, match="12 of 24 frames repeat the geometry of an earlier one"):
        load_dataset(tmp_path / "twice.extxyz")


@pytest.mark.parametrize(("unit", "value"), [("bohr", 0.529177), ("nanometre", 10.0), ("picometre", 0.01)])
def test_lengths_in_other_units_are_told(tmp_path, unit, value):
    def change(k, atoms):
        put("REF_energy")(k, atoms)
        atoms.positions /= value

    with pytest.warns(UserWarning, match=f"positions are those of a molecule if they are in {unit}, and not in angstrom"):
        load_dataset(ethanols(tmp_path, change))


@pytest.mark.parametrize("names", ["Ar2", "Mg2", "I2", "LiH", "H2", "Hg2"])
def test_long_bonds_are_no_bohr(names):
    length = {"Ar2": 3.76, "Mg2": 3.89, "I2": 2.67, "LiH": 1.6, "H2": 1.0, "Hg2": 3.69}[names]
    pair = Atoms(names, positions=[[0, 0, 0], [length, 0, 0]], info={"REF_energy": -1.0})
    assert len(dataset_from_frames([pair])) == 1


def test_broken_compression_and_free_atoms_without_energy_get_a_sentence(small, tmp_path):
    save_dataset(small, tmp_path / "d.extxyz.xz")
    content = bytearray((tmp_path / "d.extxyz.xz").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "d.extxyz.xz").write_bytes(content)
    with pytest.raises(ValueError, match="is not a whole extxyz file"):
        load_dataset(tmp_path / "d.extxyz.xz")
    frames = [Atoms("H", info={"config_type": "IsolatedAtom"}), Atoms("CO", positions=np.eye(3)[:2], info={"REF_energy": 1.0})]
    write(tmp_path / "free.extxyz", frames)
    with pytest.raises(ValueError, match="expected REF_energy of the free atom H, found none"):
        load_dataset(tmp_path / "free.extxyz")


def test_lowest_frame_needs_no_energy_where_there_are_atomic_ones(small):
    missing = small.energy.copy()
    missing[[0, small.energy.argmin()]] = np.nan
    assert replace(small, energy=missing).lowest == small.lowest == small.energy.argmin()
    assert replace(small, energy=np.full(6, np.nan), atomic_energies=None).lowest == 0


def written(path, *frames):
    """A file of ASE atoms, which get an energy where they have none."""
    for atoms in frames:
        atoms.info.setdefault("REF_energy", -1.0)
    write(path, list(frames))
    return path


def hydroxyl(**info):
    """OH: 9 electrons when neutral, 10 as the anion."""
    return Atoms("OH", positions=[[0, 0, 0], [0.97, 0, 0]], info=info)


def test_charge_and_spin_are_written_and_read(tmp_path):
    for level in (Level(charge=-1), Level(spin=1), Level("hf", charge=1, spin=2), Level(charge=2, spin=1)):
        data = Dataset(("O", "H"), np.eye(3)[None, :2], np.array([-1.0]), level=level, free_atoms={"H": -13.6, "O": -2000.0})
        save_dataset(data, tmp_path / "d.extxyz")
        frames = read(tmp_path / "d.extxyz", index=":")
        assert not any({"charge", "spin"} & set(free.info) for free in frames[:2])
        back = load_dataset(tmp_path / "d.extxyz")
        assert back.level == level and back.free_atoms == data.free_atoms and not back.extra


@pytest.mark.parametrize(
    ("info", "state"),
    [
        ({}, (0, 0)),  # a radical of which an old file does not tell
        ({"charge": -1}, (-1, 0)),
        ({"total_charge": -1.0, "spin": 2}, (-1, 2)),
        ({"charge": -1, "total_charge": -1, "multiplicity": 3}, (-1, 2)),
        ({"spin": 1}, (0, 1)),
        ({"charge": "0", "unpaired_electrons": 3}, (0, 3)),
        ({"spin_multiplicity": 2}, (0, 1)),
        ({"spin": 1, "multiplicity": 2}, (0, 1)),
    ],
)
def test_charge_and_spin_under_the_names_of_other_programs(tmp_path, info, state):
    data = load_dataset(written(tmp_path / "d.extxyz", hydroxyl(**info), hydroxyl(**info)))
    assert (data.level.charge, data.level.spin) == state
    assert not data.extra


@pytest.mark.parametrize(("info", "unpaired"), [({"spin": 2}, 1), ({"charge": -1, "spin": 1}, 0), ({"total_spin": 4}, 3)])
def test_a_spin_that_can_only_be_a_multiplicity_is_told(tmp_path, info, unpaired):
    path = written(tmp_path / "d.extxyz", *(hydroxyl(**info) for _ in range(3)))
    with pytest.warns(UserWarning, match=rf"spin=\d was taken as a multiplicity, {unpaired} unpaired electrons") as told:
        data = load_dataset(path)
    assert data.level.spin == unpaired and [warning.filename for warning in told] == [__file__]


@pytest.mark.parametrize(
    ("info", "sentence"),
    [
        (
            {"spin": 0},
            "frame 0: expected a number of unpaired electrons, or a multiplicity, that 9 electrons can",
        ),
        ({"spin": -1}, "that 9 electrons can have, found spin=-1"),
        ({"spin": 11}, "that 9 electrons can have, found spin=11"),
        ({"unpaired_electrons": 2}, "that 9 electrons can have, found unpaired_electrons=2"),
        ({"multiplicity": 1}, "that 9 electrons can have, found multiplicity=1"),
        ({"charge": 1, "multiplicity": 0}, "that 8 electrons can have, found charge=1, multiplicity=0"),
        ({"charge": -2}, "that 11 electrons can have, found charge=-2; correct it, or add unpaired_electrons"),
        ({"charge": 0.5}, "expected a whole number as charge, found 0.5"),
        ({"charge": "minus"}, "expected a whole number as charge, found minus"),
        ({"charge": 0, "total_charge": -1}, "expected one charge, found 0 by charge and -1 by total_charge"),
        (
            {"spin": 1, "multiplicity": 4},
            "expected one number of unpaired electrons, found 1 by spin and 3 by multiplicity",
        ),
    ],
)
def test_impossible_states_get_a_sentence(tmp_path, info, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_dataset(written(tmp_path / "d.extxyz", hydroxyl(**info)))


def test_frames_of_several_states_are_refused_by_their_numbers(tmp_path):
    frames = [hydroxyl(spin=1), hydroxyl(spin=3), hydroxyl(spin=1), *(hydroxyl(charge=-1) for _ in range(7))]
    with pytest.raises(ValueError, match=r"one charge and spin in all frames") as told:
        load_dataset(written(tmp_path / "d.extxyz", *frames))
    for part in ("charge 0 with 1 unpaired electrons in frames 0, 2 and", "with 3 unpaired electrons in frame 1"):
        assert part in str(told.value)
    assert "charge -1 with 0 unpaired electrons in frames 3, 4, 5, 6, 7, ... (7 of them)" in str(told.value)


def test_states_that_no_molecule_has_are_no_datasets():
    for level in (Level(charge=-2), Level(spin=2), Level(charge=10)):
        with pytest.raises(ValueError, match=r"electrons cannot have . unpaired ones"):
            Dataset(("O", "H"), np.eye(3)[None, :2], np.array([-1.0]), level=level)


def test_singlet_and_triplet_are_not_joined():
    nitrogen = np.array([[[0, 0, 0], [0, 0, 1.1]]])
    singlet, triplet = (
        Dataset(("N", "N"), nitrogen, np.array([energy]), level=Level("b3lyp", "def2-svp", spin=spin))
        for energy, spin in ((-2978.0, 0), (-2973.2, 2))
    )
    with pytest.raises(ValueError, match="found N N by 'b3lyp/def2-svp' and N N by 'b3lyp/def2-svp, 2 unpaired electrons'"):
        concatenate([singlet, triplet])
    with pytest.raises(ValueError, match="expected datasets of the same atoms and level"):
        concatenate([singlet, replace(singlet, level=replace(singlet.level, charge=-2))])
    assert concatenate([triplet, triplet]).level.spin == 2


def test_free_atoms_are_neutral(tmp_path):
    atom = Atoms("H", info={"config_type": "IsolatedAtom", "charge": 1})
    with pytest.raises(ValueError, match="expected neutral free atoms, found charge 1 of H"):
        load_dataset(written(tmp_path / "d.extxyz", atom, hydroxyl()))
    atom = Atoms("H", info={"config_type": "IsolatedAtom", "multiplicity": 2})
    assert load_dataset(written(tmp_path / "d.extxyz", atom, hydroxyl())).free_atoms == {"H": -1.0}


def boxed(shift=0.0, length=8.0, pbc=True, **info):
    """Ethanol in a cell, its atoms wrapped into it after a shift."""
    atoms = molecule("CH3CH2OH", cell=np.eye(3) * length, pbc=pbc)
    atoms.info.update(info)
    atoms.positions += shift
    atoms.wrap()
    return atoms


def shape(positions):
    return np.linalg.norm(positions[:, None] - positions, axis=-1)


def test_wrapped_molecules_are_put_together_and_told_once(tmp_path):
    frames = [boxed(4.0), boxed(0.1), boxed([4.0, 4.0, 8.0])]
    assert np.ptp(frames[1].positions, axis=0).max() > 6
    path = written(tmp_path / "d.extxyz", *frames)
    with pytest.warns(UserWarning, match="in 2 of 3 frames the molecule lay across the walls of its cell") as told:
        data = load_dataset(path)
    assert len(told) == 1
    for positions in data.positions:
        np.testing.assert_allclose(shape(positions), shape(molecule("CH3CH2OH").positions), atol=1e-7)
    with pytest.warns(UserWarning, match="in 2 of 3 frames the molecule lay across the walls"):
        np.testing.assert_array_equal(unlabelled(read(path, index=":")).positions.round(6), data.positions.round(6))


def test_cells_that_need_nothing_are_not_spoken_of(tmp_path):
    whole, no_images, no_cell = boxed(4.0), boxed(0.1, pbc=False), boxed(4.0)
    no_images.positions = boxed(0.1).positions
    no_cell.cell = np.zeros((3, 3))
    for atoms in (whole, no_images, no_cell):
        data = load_dataset(written(tmp_path / "d.extxyz", atoms))
        np.testing.assert_allclose(data.positions[0], atoms.positions, atol=1e-7)


def test_a_lattice_without_flags_is_periodic_as_the_format_has_it(tmp_path):
    path = written(tmp_path / "d.extxyz", boxed(0.1))
    path.write_text(path.read_text().replace(' pbc="T T T"', ""))
    assert "Lattice=" in path.read_text() and "pbc" not in path.read_text()
    with pytest.warns(UserWarning, match="in 1 of 1 frames") as told:
        load_dataset(path)
    assert told[0].filename == __file__


def test_images_are_sought_along_periodic_axes_only(tmp_path):
    atoms = boxed([0.1, 4.0, 4.0])
    atoms.pbc = (True, False, False)
    with pytest.warns(UserWarning, match="in 1 of 1 frames"):
        load_dataset(written(tmp_path / "d.extxyz", atoms))
    atoms.pbc = (False, True, True)
    with pytest.raises(ValueError, match="expected one molecule in a periodic cell, found 2 in frame 0"):
        load_dataset(written(tmp_path / "d.extxyz", atoms))


def test_a_bond_that_heat_has_stretched_is_no_second_molecule(tmp_path):
    hot = boxed(4.0)
    hydrogen, oxygen = (int(np.flatnonzero(hot.symbols == s)[k]) for s, k in (("H", 0), ("O", 0)))
    assert hot.get_distance(hydrogen, oxygen) < 1.0
    hot.set_distance(oxygen, hydrogen, 1.4, fix=0)
    expected = shape(hot.positions)
    hot.positions += np.array([0.0, 0.0, 8.0]) - hot.positions[oxygen] - [0.1, 0.1, 0.1]
    hot.wrap()
    with pytest.warns(UserWarning, match="in 1 of 2 frames"):
        data = load_dataset(written(tmp_path / "d.extxyz", hot, boxed(4.0)))
    np.testing.assert_allclose(shape(data.positions[0]), expected, atol=1e-7)


def test_crystals_and_boxes_of_molecules_are_refused(tmp_path):
    copper = bulk("Cu", cubic=True)
    with pytest.raises(ValueError, match=r"frame 0: expected molecules in the cell, found atom Cu\d bonded to its own image"):
        load_dataset(written(tmp_path / "d.extxyz", copper))
    pair = molecule("H2O") + molecule("H2O")
    pair.positions[3:] += [3.0, 0, 0]
    pair.cell, pair.pbc = np.eye(3) * 9.0, True
    with pytest.raises(ValueError, match="found 2 in frame 0, whose interaction with their images would be learned"):
        load_dataset(written(tmp_path / "d.extxyz", pair))
    pair.pbc = False
    assert len(load_dataset(written(tmp_path / "d.extxyz", pair))) == 1


def test_unknown_name_gets_a_sentence():
    with pytest.raises(FileNotFoundError, match="expected an embedded dataset"):
        load_dataset("benzene")


@pytest.mark.parametrize(
    ("name", "elements", "sizes"),
    [
        ("malondialdehyde", "CHO", {"train": 1098, "test_500K": 200, "test_1000K": 100}),
        ("capped-glycine", "CHNO", {"train": 502, "test_500K": 100}),
    ],
)
def test_embedded_dataset_is_what_the_changelog_says(name, elements, sizes):
    assert name in embedded_datasets()
    data = load_dataset(name)
    assert {part: len(data.split(part)) for part in data.splits} == sizes
    assert set(data.free_atoms) == set(elements)
    assert data.level["partition"] == "becke"
    assert np.abs(data.atomic_energies.sum(1) - data.energy).max() < 1e-6
    for partition in ("becke", "hirshfeld"):
        raw, rest = data.extra[f"{partition}_energies"], data.extra[f"{partition}_remainder"]
        np.testing.assert_allclose(raw.sum(1) + rest, data.energy, atol=1e-5)
    assert np.abs(data.forces.sum(1)).max() < 1e-4
    assert np.abs(data.extra["becke_remainder"]).max() < 0.5e-3 * 27.3


def test_topological_atoms_of_malondialdehyde_lie_beside_the_others():
    data, whole = load_dataset("malondialdehyde-qtaim"), load_dataset("malondialdehyde")
    raw = data.extra["qtaim_energies"]
    assert data.level["partition"] == "qtaim"
    np.testing.assert_allclose(data.atomic_energies, balanced(raw, data.energy), atol=1e-7)
    np.testing.assert_allclose(raw.sum(1) + data.extra["qtaim_remainder"], data.energy, atol=1e-5)
    assert np.abs(data.extra["qtaim_remainder"]).max() < 0.5e-3 * 27.3
    assert np.abs(data.extra["qtaim_charges"].sum(1)).max() < 1e-3
    known = {positions.tobytes(): k for k, positions in enumerate(whole.positions)}
    same = [known[positions.tobytes()] for positions in data.positions]
    np.testing.assert_array_equal(data.forces, whole.forces[same])


@pytest.mark.parametrize("name", ["malondialdehyde", "capped-glycine"])
def test_test_frames_are_apart_and_unselected(name):
    data = load_dataset(name)
    for split in set(data.splits) - {"train"}:
        part = data.split(split)
        for run in set(part.origin["run"]):
            times = part.origin["time"][part.origin["run"] == run]
            assert np.diff(times).min() >= 50


def test_energies_by_coupled_cluster_lie_near_their_minimum():
    data = load_dataset("malondialdehyde-ccsd-t")
    assert set(data.splits) == {"stationary", "train", "test"}
    told = "spherical, frozen core, MP2 by density fitting with jkfit and ri sets"
    assert data.level.same_energies(Level("ccsd(t)", "cc-pvdz+mp2/cbs(tq)", told))
    assert (data.forces, data.atomic_energies, set(data.free_atoms)) == (None, None, set("CHO"))
    assert data.origin["source"][data.lowest].startswith("minimum")
    assert np.ptp(data.energy) < 50 * KCAL_MOL
    assert data.extra["t1_diagnostic"].max() < 0.03
    check_units(data)  # a warning would be an error here
    tests = load_dataset("malondialdehyde")
    tests = tests[tests.origin["split"] != "train"]
    known = {positions.tobytes() for positions in tests.positions}
    assert {positions.tobytes() in known for positions in data.split("test").positions} == {True}
    assert {positions.tobytes() in known for positions in data.split("train").positions} == {False}
