from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.fd import calculate_numerical_forces

from iqagp_jax import sampling
from iqagp_jax.dynamics.metadynamics import Dihedral, WellTempered
from iqagp_jax.machine.parts import NOTHING_KEPT, Parts, kept_in
from iqagp_jax.system.geometry import bond_graph, graph_distances, moved_side, pair_distances

WATER = np.array([[0.0, 0.0, 0.1173], [0.0, 0.7572, -0.4692], [0.0, -0.7572, -0.4692]])
# Hydrogen peroxide: a torsion and a contact three bonds apart.
PEROXIDE = np.array([[0.0, 0.73, -0.06], [0.0, -0.73, -0.06], [0.84, 0.88, 0.45], [-0.84, -0.88, 0.45]])
HOOH = ["O", "O", "H", "H"]
TORSION = Dihedral((2, 0, 1, 3))
PLAN = sampling.SamplingPlan({300.0: 4}, {300.0: 6}, 2, 3, 0, {300.0: 4}, runs=2, pool_factor=2)


@pytest.fixture(scope="module", autouse=True)
def short_equilibration():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "EQUILIBRATION", 100.0)
        yield


@pytest.fixture(scope="module")
def sampled():
    minima = sampling.distinct_minima(sampling.starting_geometries("OO"), sampling.xtb)
    return sampling.sample(minima, PLAN, sampling.xtb, (TORSION,), seed=3), minima


def test_bond_graph_of_peroxide():
    bonded = bond_graph(HOOH, PEROXIDE)
    assert set(map(tuple, np.argwhere(np.triu(bonded)))) == {(0, 1), (0, 2), (1, 3)}
    assert graph_distances(bonded)[2, 3] == 3
    assert moved_side(bonded, 0, 1).tolist() == [False, True, False, True]


def test_every_source_has_its_number(sampled):
    (frames, _), _ = sampled
    sources = [(a.info["split"], a.info["source"]) for a in frames]
    for source, number in {"metadynamics": 4, "thermal": 6, "displaced": 2, "bond": 3, "contact": 0}.items():
        assert sources.count(("train", source)) == number
    assert sources.count(("test_300K", "thermal")) == 4


def test_an_impossible_plan_gets_a_sentence(sampled):
    _, minima = sampled
    plan = sampling.SamplingPlan({}, {300.0: 1}, 0, 0, 1, {}, runs=1, pool_factor=1)
    # Pressing the hydrogens of peroxide together costs more than is kept.
    with pytest.raises(RuntimeError, match="only 0 of 1 geometries could be made"):
        sampling.sample(minima, plan, sampling.xtb)


def test_metadynamics_without_anything_to_bias_gets_a_sentence(sampled):
    _, minima = sampled
    with pytest.raises(ValueError, match="expected torsions about single bonds"):
        sampling.sample(minima, PLAN, sampling.xtb)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"thermal": {}, "metadynamics": {}}, "expected geometries from metadynamics or hot dynamics to distort, found none"),
        ({"thermal": {}, "metadynamics": {}, "test": {}, "displaced": 0, "bond": 0}, "found none planned; ask for some"),
    ],
)
def test_plans_of_nothing_get_a_sentence(changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        sampling.sample([Atoms(HOOH, positions=PEROXIDE)], replace(PLAN, **changed), Springs, (TORSION,))


@pytest.mark.parametrize(
    ("atoms", "sentence"),
    [
        (Atoms("He"), "expected one molecule of at least two atoms, found one atom or pieces in He"),
        (Atoms("O2", [[0, 0, 0], [9, 0, 0]]), "found one atom or pieces in O2"),
        (Atoms("H2", [[0, 0, 0], [0.74, 0, 0]]), "expected atoms two bonds apart for near contacts, found H2"),
    ],
)
def test_molecules_that_cannot_be_sampled_get_a_sentence(atoms, sentence):
    with pytest.raises(ValueError, match=sentence):
        sampling.sample([atoms], replace(PLAN, metadynamics={}, contact=2), Springs)


def test_the_bias_reaches_ase_as_energy_and_forces(sampled):
    _, minima = sampled
    atoms = minima[0].copy()
    with jax.enable_x64(True):
        hills = WellTempered((TORSION,), 300.0).no_hills(1)
    plain, biased = sampling.xtb(), sampling.Biased(sampling.xtb(), WellTempered((TORSION,), 300.0), hills)
    atoms.calc = biased
    atoms.get_potential_energy()
    biased.deposit()
    atoms.set_dihedral(2, 0, 1, 3, atoms.get_dihedral(2, 0, 1, 3) + 10, indices=[3])
    assert atoms.get_potential_energy() - plain.get_potential_energy(atoms) == pytest.approx(
        0.025 * np.exp(-0.5 * (np.radians(10) / Dihedral.width) ** 2), rel=1e-6
    )
    numeric = calculate_numerical_forces(atoms, eps=1e-4)
    np.testing.assert_allclose(atoms.get_forces(), numeric, atol=1e-4)
    with pytest.raises(RuntimeError, match="expected at most 1 hills"):
        biased.deposit()


def test_duplicates_are_found_in_any_orientation():
    frames = [Atoms(HOOH, positions=PEROXIDE), Atoms(HOOH, positions=PEROXIDE + 0.1), Atoms(HOOH, positions=PEROXIDE * 1.01)]
    frames[1].rotate(40, "x")
    assert sampling.without_duplicates(frames) == [frames[0], frames[2]]


def test_test_frames_are_apart_and_from_their_own_runs(sampled):
    (frames, _), _ = sampled
    test = [a for a in frames if a.info["split"] != "train"]
    train = np.array([a.positions for a in frames if a.info["split"] == "train"])
    assert {a.info["run"] for a in test} == {0, 1}
    assert min(np.abs(train - a.positions).max(axis=(1, 2)).min() for a in test) > 1e-3
    for run in (0, 1):
        assert np.diff([a.info["time"] for a in test if a.info["run"] == run]).min() >= 50


def test_same_seed_same_geometries(sampled):
    (frames, _), minima = sampled
    with ThreadPoolExecutor(1) as pool:  # whoever makes the runs
        again, _ = sampling.sample(minima, PLAN, sampling.xtb, (TORSION,), seed=3, pool=pool)
    np.testing.assert_allclose([a.positions for a in again], [a.positions for a in frames], atol=1e-6)


class Springs(Calculator):
    """A harmonic molecule at rest as hydrogen peroxide: no xTB."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 (ASE's own declaration)
    made = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        Springs.made += 1
        apart = self.atoms.positions - PEROXIDE
        self.results = {"energy": 5.0 * np.sum(apart**2), "forces": -10.0 * apart}


def test_a_sampling_that_is_killed_goes_on_with_the_same_geometries(tmp_path, monkeypatch):
    """At every part in turn, and whatever had been drawn before; what is kept is not calculated again."""
    minima = [Atoms(HOOH, positions=PEROXIDE)]
    plan = replace(PLAN, contact=2, train_spacing=2.0, test_spacing=5.0)
    for name in ("EQUILIBRATION", "METADYNAMICS_SPACING", "HILL_SPACING"):
        monkeypatch.setattr(sampling, name, 5.0)
    names = [*(f"{d.kind}-{d.temperature}K-{run}" for d in plan.dynamics for run in range(2)), *sampling.DISTORTIONS]

    def made(parts=NOTHING_KEPT):
        frames, dropped = sampling.sample(minima, plan, Springs, (TORSION,), 3, parts)
        return [(a.positions.tobytes(), sorted(a.info.items())) for a in frames], dropped

    undisturbed = made()
    for killed_at in names[3], names[4], names[-1]:  # with hills before it, without, and distortions

        def die(self, name, make, killed_at=killed_at):
            if name == killed_at:
                make()  # part of the way
                raise KeyboardInterrupt
            return Parts.part(self, name, make)

        dying = type("Dying", (Parts,), {"part": die})(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            made(dying)
        assert len(dying.kept) == names.index(killed_at)
    with kept_in(tmp_path, {}) as parts:
        assert made(parts) == undisturbed and parts.kept == sorted(names)
        Springs.made = 0
        assert made(parts) == undisturbed and Springs.made == 0
        left = [int(parts.part(f"metadynamics-300.0K-{run}", dict)["n_hills"]) for run in range(2)]
    assert left[1] == 2 * left[0] > 0  # every run goes on with the hills of those before it


@pytest.mark.parametrize("source", sampling.DISTORTIONS)
def test_distortions_change_what_they_say(source):
    rng = np.random.default_rng(0)
    before = pair_distances(PEROXIDE)
    for _ in range(20):
        after = pair_distances(sampling.DISTORTIONS[source](PEROXIDE, HOOH, rng))
        if source == "bond":
            ratio = np.array([after[b] / before[b] for b in [(0, 1), (0, 2), (1, 3)]])
            assert np.sum(np.abs(ratio - 1) > 1e-9) == 1
            assert 0.75 <= ratio.min() <= ratio.max() <= 1.5
        if source == "contact":
            assert after[2, 3] < before[2, 3] - 1e-6
        assert np.isfinite(after).all()


def test_each_farthest_point_is_the_farthest_from_those_before():
    points = np.random.default_rng(1).normal(size=(40, 2))
    chosen = sampling.farthest_points(points, 40, np.random.default_rng(0))
    assert len(set(chosen)) == 40
    distance = np.linalg.norm(points[:, None] - points, axis=-1)
    for k in range(1, 40):
        nearest = distance[:, chosen[:k]].min(1)
        assert nearest[chosen[k]] == nearest.max()


def test_interleaving_keeps_order_and_proportions():
    mixed = sampling.interleave([[("a", k) for k in range(80)], [("b", k) for k in range(20)]], np.random.default_rng(0))
    assert [k for name, k in mixed if name == "a"] == list(range(80))
    assert 5 <= sum(name == "b" for name, _ in mixed[:50]) <= 15


def test_whole_molecules():
    assert sampling.is_whole(HOOH, PEROXIDE)
    apart = PEROXIDE.copy()
    apart[3] += [0, -3.0, 0]
    assert not sampling.is_whole(HOOH, apart)


@pytest.mark.parametrize(
    ("molecule", "error", "sentence"),
    [("C1CC", ValueError, "which RDKit cannot parse"), ("missing.xyz", FileNotFoundError, "an existing geometry file")],
)
def test_bad_molecules_get_a_sentence(molecule, error, sentence):
    with pytest.raises(error, match=sentence):
        sampling.starting_geometries(molecule)


def test_langevin_keeps_its_temperature():
    """Kinetic energy of ASE's Langevin with a free centre of mass: 3N kT/2, within its error bar."""
    from ase import units
    from ase.calculators.harmonic import HarmonicCalculator, HarmonicForceField

    atoms = Atoms(HOOH, positions=PEROXIDE)
    springs = HarmonicForceField(atoms, 20.0 * np.eye(12), variable_orientation=False)
    atoms.calc = HarmonicCalculator(springs)
    squares = []
    for seed in range(12):
        frames = sampling.langevin(atoms, atoms.calc, 400.0, 20, 50.0, np.random.default_rng(seed))
        squares.append(np.mean((np.array(frames) - PEROXIDE) ** 2))
    expected = 400.0 * units.kB / 20.0
    error = np.std(squares) / np.sqrt(len(squares) - 1)
    assert error < 0.1 * expected
    assert abs(np.mean(squares) - expected) < 4 * error
