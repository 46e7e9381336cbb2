"""The verdict: each part on runs whose verdict is known beforehand, and the whole on a model of a known energy."""

import json
import re
import shutil
from dataclasses import asdict, dataclass, replace
from html import escape
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import REFERENCE, SPECIES, pair_energies, pair_forces
from matplotlib.figure import Figure
from scipy.spatial.distance import jensenshannon
from test_cli import iqagp

from iqagp_jax.compose import Sum
from iqagp_jax.dynamics.record import Run
from iqagp_jax.dynamics.run import simulate
from iqagp_jax.dynamics.starts import at_rest
from iqagp_jax.dynamics.trajectory import Trajectory
from iqagp_jax.families.pairs.models import BondedMorse, NeighbourMorse
from iqagp_jax.modelfile import save_model
from iqagp_jax.references.xtb import XTB
from iqagp_jax.sampling import starting_geometries
from iqagp_jax.system.geometry import pair_distances
from iqagp_jax.system.system import System
from iqagp_jax.units import KCAL_MOL
from iqagp_jax.verdict import Protocol, alarm, certified, ensemble, judge, judge_run, pictures, report, truth
from iqagp_jax.verdict.replicas import Distorted, Found, choose_starts, run_replicas
from iqagp_jax.verdict.structure import Coordinate, backbone, settled

FRAMES = 400

TWO = System(("H", "H"), np.zeros((2, 3)))
HERE = System(SPECIES, REFERENCE)
WATER = BondedMorse.of(System(("O", "H", "H"), REFERENCE[[0, 2, 3]]))
HYDROXYL = System(("O", "H"), np.array([[0.0, 0, 0], [1.0, 0, 0]]))


@dataclass(frozen=True)
class Made:
    """What a verdict reads of a `Run`, without a folder."""

    trajectory: Trajectory
    target_temperatures: np.ndarray
    kinds: np.ndarray
    failure_times: np.ndarray
    failure_reasons: tuple[str, ...]

    group, groups = Run.group, Run.groups

    @property
    def lives(self):
        return self.trajectory.alive.sum(0)


def make_run(lives, signal=0.0, kind="equilibrium"):
    """Replicas of two atoms with frames every 5 fs, alive for ``lives`` frames; ``signal`` (F, R) is atom 1's x."""
    positions = np.zeros((FRAMES, len(lives), 2, 3))
    positions[..., 1, 0] = signal
    alive = np.arange(FRAMES)[:, None] < lives
    positions[~alive] = np.nan
    nothing = np.where(alive, 0.0, np.nan)
    trajectory = Trajectory(
        species=np.array(["H", "H"]),
        masses=np.ones(2),
        target_temperatures=np.full(len(lives), 300.0),
        times=5.0 * np.arange(FRAMES),
        positions=positions,
        energies=nothing,
        temperatures=nothing,
        kinetic_energies=np.repeat(nothing[..., None], 3, axis=-1),
        conserved_energies=nothing,
        alive=alive,
    )
    ends = np.where(np.array(lives) < FRAMES, 5.0 * np.array(lives), np.nan)
    reasons = tuple("" if np.isnan(end) else "broken" for end in ends)
    return Made(trajectory, np.full(len(lives), 300.0), np.full(len(lives), kind), ends, reasons)


def make_frames(run, errors, sigma=1.0):
    """Frames of a run, evenly chosen, with ``errors`` in kcal/mol (reference 0, forces exact)."""
    chosen = truth.choose_frames(run, 4 * len(run.lives))
    n = len(chosen[0])
    energy = np.broadcast_to(errors, n) * KCAL_MOL
    predicted = energy, np.zeros((n, 2, 3)), np.broadcast_to(sigma, n) ** 2 * KCAL_MOL**2
    return truth.compare(chosen, predicted, (np.zeros(n), np.zeros((n, 2, 3))))


def test_backbone_of_alanine_dipeptide_from_its_bonds():
    atoms = starting_geometries("CC(=O)NC(C)C(=O)NC", n_conformers=1)[0]  # C C O N CA CB C O N C
    assert backbone(atoms.get_chemical_symbols(), atoms.positions) == [((1, 3, 4, 6), (3, 4, 6, 8))]
    assert backbone(SPECIES, REFERENCE) == []


def test_a_state_lasts_until_another_is_clearly_nearer():
    first = np.array([0.0, 0.9, 1.05, 1.2, 1.0, 0.9, np.nan, 0.0])
    away = np.stack([first, 2.0 - first], axis=-1)[:, None]
    assert settled(away, 0.2)[:, 0].tolist() == [0, 0, 0, 1, 1, 1, -1, 0]


def test_jensen_shannon_is_scipys():
    p, q = np.random.default_rng(1).integers(0, 9, (2, 12)).astype(float)
    assert ensemble.jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q, base=2))
    assert ensemble.jensen_shannon(np.array([3.0, 0]), np.array([0, 5.0])) == 1


def test_distributions_that_differ_lie_beyond_chance():
    rng = np.random.default_rng(2)
    bond = Coordinate("bond", "bond", (0, 1))
    model, same = rng.normal(1.4, 0.05, (2, 500, 8))
    reference = rng.normal(1.5, 0.05, (400, 6))
    found = ensemble.distribution(bond, model, reference, rng)
    assert found.distance > found.chance + 5 * found.error
    assert ensemble.distribution(bond, model, same, rng).distance < 1.3 * ensemble.distribution(bond, model, same, rng).chance


def test_a_short_reference_is_held_to_the_same_stretch_of_time():
    rng = np.random.default_rng(0)

    def moving(replicas):
        return 1 + 0.002 * np.arange(FRAMES)[:, None] + rng.normal(0, 0.05, replicas) + rng.normal(0, 0.01, (FRAMES, replicas))

    model, long = (make_run([FRAMES] * 20, moving(20)) for _ in range(2))
    arrays = {name: values for name, values in vars(long.trajectory).items() if values is not None}
    begun = {name: values[:60] for name, values in arrays.items() if len(values) == FRAMES}
    short = replace(long, trajectory=replace(long.trajectory, **begun))
    found = ensemble.compare(HYDROXYL, model, short, 300.0)
    [bond] = found.distributions
    assert (found.sampled.model_replicas, found.sampled.reference_replicas) == (20, 20)
    assert found.sampled.ps == pytest.approx(0.8 * 59 * 0.005)
    assert bond.distance < bond.chance
    assert bond.edges[-1] < 1.5  # at its end the long run is at 1.8


def test_populations_and_rates_have_the_scatter_of_replicas_as_error():
    series = np.zeros((101, 4), dtype=int)
    series[50:, 1] = series[25:, 2] = series[:, 3] = 1
    shares = (series == 1).mean(0)
    mean, error = ensemble.population(series, 1)
    assert (mean, error) == pytest.approx((shares.mean(), shares.std(ddof=1) / 2))
    rate, rate_error = ensemble.transitions(series, interval=10.0)
    picoseconds = 4 * 100 * 10 / 1000
    assert rate == pytest.approx(2 / picoseconds)
    assert rate_error == pytest.approx(np.sqrt(2) / picoseconds)  # Poisson's is the larger one here
    assert ensemble.difference((1.0, 0.3), (0.0, 0.4)) == pytest.approx(2)


def test_populations_of_replicas_that_agree_may_still_differ():
    cis, trans = np.zeros((101, 10), dtype=int), np.ones((101, 4), dtype=int)
    shares = [ensemble.population(series, 1) for series in (cis, trans)]
    assert shares == [(0, 0.1), (1, 0.25)]
    assert ensemble.difference(*shares) == pytest.approx(-1 / np.hypot(0.1, 0.25))


def test_what_one_replica_cannot_tell_is_unknown():
    one, many = np.zeros((5, 1), dtype=int), np.array([[0, 1, 1]] * 5)
    row = ensemble.told("cis", "share of time", [ensemble.population(series, 0) for series in (one, many)])
    assert row.model == 1 and row.model_error is row.difference_in_errors is None
    rate, error = ensemble.transitions(one, 10.0)
    assert rate == 0 and error == pytest.approx(1 / 0.04)  # one event in 40 fs
    nobody = [ensemble.transitions(np.full((5, 2), -1), 10.0)] * 2
    assert ensemble.told("cis", "per ps", nobody).model is None
    signal = np.ones((FRAMES, 2)) + 0.01 * np.random.default_rng(0).normal(size=(FRAMES, 2))
    runs = make_run([60, 60], signal), make_run([FRAMES, FRAMES], signal)
    found = ensemble.compare(HYDROXYL, *runs, 300.0)
    assert found.distributions == found.counted == () and found.sampled.model_replicas == 0


def test_an_alarm_before_the_failure_announces_it():
    lives = np.array([300, FRAMES, FRAMES, FRAMES])
    rising = np.ones((FRAMES, 4))
    rising[290:, 0] = 10.0
    late = np.ones((FRAMES, 4))
    late[299:, 0] = 10.0
    for signal, announced in ((rising, 1.0), (late, 0.0)):
        run = make_run(lives, signal)
        before, calm = alarm.windows(run, lambda r: r[:, 1, 0] ** 2)
        rank = np.arange(26.0)  # 16 frames along the runs, 10 before the failure
        found = alarm.warning(run, make_frames(run, rank, rank + 1), before, calm)
        (told,), (followed,) = found.rows, found.evidence
        # One failure is not enough to praise a warning by.
        assert told.announced == announced and (found.grade, found.flawless) == (
            ("unknown", True) if announced else ("poor", False)
        )
        assert told.false_alarms_per_ps == 0
        assert told.rank_correlation == pytest.approx(1)
        assert (followed.failures, followed.failures_followed) == (1, 1)


def test_without_failures_nothing_is_announced_rather_than_all():
    run = make_run(np.full(3, FRAMES), np.ones((FRAMES, 3)))
    found = alarm.warning(run, make_frames(run, 1.0), *alarm.windows(run, lambda r: r[:, 1, 0] ** 2))
    assert found.rows[0].announced is None and found.evidence[0].failures == 0
    assert (found.grade, found.sentence) == ("unknown", "no failure to announce")


def test_frames_farther_apart_than_a_window_are_followed_one_by_one():
    run = make_run(np.full(3, FRAMES), np.ones((FRAMES, 3)))
    rare = replace(run, trajectory=replace(run.trajectory, times=1000.0 * np.arange(FRAMES)))
    assert alarm.windows(rare, lambda r: r[:, 1, 0] ** 2)[1].frames.shape == (20, 1)


def test_false_alarms_are_counted_once_each_time_sigma_rises():
    signal = np.ones((FRAMES, 1))
    signal[200:210] = signal[300:302] = 10.0
    run = make_run([FRAMES], signal)
    calm = alarm.Windows(np.array([0]), np.arange(FRAMES)[None], signal.T.copy())
    none = alarm.Windows(np.zeros(0, int), np.zeros((0, FRAMES), int), np.zeros((0, FRAMES)))
    calm.sigma[:, :100] = 4.0  # the 99th percentile is 10, so the threshold is 20
    calm.sigma[0, [50, 51, 90]] = 25.0
    found = alarm.warning(run, make_frames(run, 1.0), none, calm)
    assert found.rows[0].false_alarms_per_ps == pytest.approx(2 / (FRAMES * 0.005))


def test_truth_is_absolute_and_an_offset_counts():
    run = make_run([FRAMES, FRAMES, 40])
    (row,) = truth.groups(run, make_frames(run, 7.0), TWO, True)
    assert (row.replicas, row.survived, row.right) == (3, 2, 0)
    assert row.de.median == row.de.p95 == row.de.max == pytest.approx(7)
    assert row.failures == (truth.Failure(2, 0.2, "broken"),)


def test_survival_tells_how_long_it_was_looked_at():
    """After t without a failure the rate is below 3 / t, since exp(-3) is 5%; one failure, and there is no such bound."""
    whole, broken = make_run([FRAMES] * 4), make_run([FRAMES, FRAMES, 100])
    for run, picoseconds, bound in ((whole, 4 * 1.995, 3 / (4 * 1.995)), (broken, 2 * 1.995 + 0.5, None)):
        part = truth.survival(truth.groups(run, make_frames(run, 0.0), TWO, True), run)
        (lived,) = part.evidence
        assert lived.replica_ps == pytest.approx(picoseconds)
        assert lived.failure_rate_below == (bound and pytest.approx(bound))
        assert (part.grade, lived.failures) == (("unknown", 0) if bound else ("poor", 1))


def lasting(picoseconds, lives):
    """Replicas of so many ps each."""
    run = make_run(lives)
    return replace(run, trajectory=replace(run.trajectory, times=np.linspace(0, 1000 * picoseconds, FRAMES)))


def test_survival_has_no_grade_without_enough_replica_picoseconds():
    """Zero failures of n replica-ps give a rate below 3 / n."""
    for run, grade, sentence in (
        (
            lasting(1.0, [FRAMES] * 6),
            "unknown",
            "6 of 6 replicas survived 1 ps (300 K: 6 of 6, fewer than 0.5 failures per ps); ",
        ),
        (
            lasting(10.0, [FRAMES] * 29),
            "unknown",
            "too little to rule out 0.01 failures per ps (95% sure), which takes 10 more replica-ps at",
        ),
        (
            lasting(10.0, [FRAMES] * 30),
            "good",
            "30 of 30 replicas survived 10 ps (300 K: 30 of 30, fewer than 0.01 failures per ps)",
        ),
        (replace(lasting(20.0, [FRAMES] * 20), failure_times=np.array([20000.0] + [np.nan] * 19)), "fair", "(300 K: 19 of 20)"),
        (lasting(1.0, [FRAMES] * 5 + [200]), "poor", "(300 K: 5 of 6)"),
    ):
        part = truth.survival(truth.groups(run, make_frames(run, 0.0), TWO, True), run)
        assert part.grade == grade and sentence in part.sentence
        assert part.flawless == (np.isnan(run.failure_times).all())
    few = lasting(1.0, [FRAMES] * 6)
    part = truth.survival(truth.groups(few, make_frames(few, 0.0), TWO, True), few)
    assert part.sentence.endswith("which takes 294 more replica-ps at 300 K without a failure")
    assert (part.so_far, part.at_most("poor", "but").grade, part.at_most("fair", "but").flawless) == ("good", "poor", False)
    assert part.at_most("fair", "but").grade == "unknown"


def test_truth_has_no_grade_without_enough_frames():
    run = make_run([FRAMES] * 3)
    for n, grade in ((19, "unknown"), (20, "good")):
        chosen = truth.choose_frames(run, 3 * n)
        zeros = np.zeros(3 * n)
        frames = truth.compare(chosen, (zeros, np.zeros((3 * n, 2, 3)), zeros), (zeros, np.zeros((3 * n, 2, 3))))
        part = truth.truth(truth.groups(run, frames, TWO, True))
        assert (part.grade, part.flawless) == (grade, True)
        assert part.sentence.startswith(f"{3 * n} frames at 300 K; worst row: median |dE| 0, 95% 0 kcal/mol; 3 of 3")
        assert (
            "too few to show that 95% of all frames are right, which takes 3 more at 300 K (--frames)" in part.sentence
        ) == (n == 19)
    wrong = replace(frames, energy_error=np.full(60, 9.0))
    (row,) = truth.groups(run, wrong, TWO, True)
    assert truth.truth((replace(row, frames=3),)).grade == "poor"  # so little is enough for that


def test_a_replica_is_judged_by_where_it_ends():
    run = make_run([FRAMES, FRAMES])
    frames = make_frames(run, np.array([30.0, 30.0, 1.0, 1.0, 1.0, 1.0, 30.0, 30.0]))
    assert frames.frame.tolist()[3] == FRAMES - 1
    assert truth.is_right(frames, 0) and not truth.is_right(frames, 1)
    assert not truth.is_right(replace(frames, energy_error=np.full(8, np.nan)), 0)


class Exact:
    """The toy molecule's own energy as the reference; every second geometry does not relax."""

    name = "toy"

    def labels(self, positions, progress):
        return np.array([pair_energies(r).sum() for r in positions]), np.array([pair_forces(r) for r in positions])

    def relax(self, positions):
        return np.repeat(REFERENCE[None], len(positions), axis=0), np.arange(len(positions)) % 2 == 0


def test_starts_that_the_reference_does_not_keep_together_are_left_out():
    molecule, protocol = HERE, Protocol(replicas=3, displacement=0.05, kinds=("displaced",))

    def spring(positions):
        return ((positions - REFERENCE) ** 2).sum()

    starts, told = choose_starts(spring, molecule, protocol, Exact())
    every, _ = choose_starts(spring, molecule, replace(protocol, replicas=6), None)
    np.testing.assert_array_equal(starts["displaced"], every["displaced"][::2])
    assert told == (Distorted("displaced", drawn=6, used=3, same_end=3),)


def test_starts_in_basins_take_turns():
    """Those that the reference keeps together, of which a model with one minimum holds one."""
    other = REFERENCE * [1, 1, -1] + [[0.0, 0.0, 0.0], [0.0, 0.0, 0.6], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    minima = tuple(tuple(map(tuple, r.tolist())) for r in (REFERENCE, other, other + 0.1))
    starts, told = choose_starts(
        lambda r: ((r - REFERENCE) ** 2).sum(), HERE, Protocol(replicas=3, kinds=("basins",), minima=minima), Exact()
    )
    np.testing.assert_array_equal(starts["basins"], np.array([minima[0], minima[2], minima[0]]))
    assert told == (Distorted("basins", drawn=3, used=2, same_end=2),)


def test_a_molecule_without_hydrogens_has_none_to_stretch():
    dioxide = System(("O", "C", "O"), np.array([[-1.2, 0.0, 0.0], [0.0, 0.0, 0.0], [1.2, 0.0, 0.0]]))
    with pytest.raises(ValueError, match="expected a bond to hydrogen to stretch, found none in O C O"):
        choose_starts(None, dioxide, Protocol(kinds=("stretched",)), None)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperatures": (-5.0,)}, "expected temperatures in K above zero"),
        ({"time": 10.002}, "expected the time to be a multiple of the frame interval .5 fs., found 10002 fs; take 10000 fs"),
        ({"reference_time": 10.002}, "expected the reference time to be a multiple of the frame interval"),
        ({"frame_interval": 0.7}, "expected the frame interval to be a multiple of the timestep"),
        ({"displacement": -1.0}, "expected a displacement in angstrom above zero"),
        ({"stretch": 0.0}, "expected a stretched bond length in angstrom above zero"),
        ({"kinds": ("basins",)}, "expected minima with starts in basins, and with these alone, found one without the other"),
        ({"minima": (((0.0, 0.0, 0.0),) * 4,)}, "expected minima with starts in basins"),
        ({"scan_points": -1}, "expected a number of scanned geometries, or 0 for none, found -1"),
        ({"reference_replicas": -3}, "expected at least two reference replicas, .*, or 0 for none; found -3"),
    ],
)
def test_a_bad_protocol_is_refused_before_anything_runs(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Protocol(**options)


def test_the_reference_s_time_counts_where_it_is_driven_only():
    assert Protocol(time=9.0, frame_interval=3.0, timestep=1.0, reference_replicas=0).reference_time == 10.0
    with pytest.raises(ValueError, match="expected the reference time to be a multiple"):
        Protocol(time=9.0, frame_interval=3.0, timestep=1.0)


@pytest.fixture(scope="module")
def verdict(distance_model, tmp_path_factory):
    """A verdict on the toy molecule, whose model is good."""
    out, protocol = tmp_path_factory.mktemp("verdict"), Protocol((100.0,), ("equilibrium",), 2, 0.2, frames=60)
    return SimpleNamespace(out=out, protocol=protocol, found=judge(distance_model, out, Exact(), protocol))


def test_a_good_and_a_wrong_model_are_told_apart(verdict):
    assert [part.grade for _, part in verdict.found.parts()] == ["unknown", "good", "unknown", "unknown", "unknown"]
    assert not verdict.found.good and verdict.found.survival.flawless
    (row,) = verdict.found.truth.rows
    assert row.survived == row.right == 2 and row.frames == 60 and 0 < row.de.median <= row.de.max < 0.5
    assert verdict.found.truth.evidence == (truth.Labelled(60),)
    false = replace(row, right=0, de=truth.Spread(23.0, 24.0, 25.0))
    assert truth.truth((false,)).grade == "poor"


def test_rows_without_labels_count_against_truth(verdict):
    (row,) = verdict.found.truth.rows
    lost = replace(row, right=0, without_label=60, de=None)
    part = truth.truth((row, lost))
    assert part.grade == "poor"
    assert part.sentence.endswith("2 of 4 survivors are right; 60 frames that the reference cannot calculate")
    assert part.evidence == (truth.Labelled(60),)
    part = truth.truth((lost,))
    assert (part.grade, part.sentence) == ("unknown", "the reference can calculate none of 60 frames")


class Driving(XTB):
    """The toy molecule's own energy where GFN2-xTB's would be: with dynamics of the reference to compare with."""

    name = "toy"

    def __init__(self, alive=True):
        self.alive = alive

    labels = Exact.labels

    def energy_fn(self):
        rest = np.linalg.norm(REFERENCE[:, None] - REFERENCE, axis=-1)[np.triu_indices(4, 1)]

        def energy(positions):
            i, j = np.triu_indices(4, 1)
            distances = ((positions[i] - positions[j]) ** 2).sum(-1) ** 0.5
            return ((1 - jax.numpy.exp(-1.5 * (distances - rest))) ** 2).sum() - 40.0 + (0.0 if self.alive else np.nan)

        return energy


def test_dynamics_of_the_reference_is_compared_and_told(distance_model, tmp_path):
    protocol = Protocol((100.0, 150.0), ("equilibrium",), 1, 0.1, frames=2, reference_replicas=2, reference_time=0.1)
    said = []
    found = judge(distance_model, tmp_path, Driving(), protocol, say=said.append)
    (cost,) = said
    assert cost.startswith("dynamics of toy: 200 steps of 4 replicas, about ") and "--reference-replicas 0" in cost
    judge(distance_model, tmp_path, Driving(), protocol, say=said.append)
    assert len(said) == 1  # it is there
    cold, hot = found.ensemble.rows
    assert cold.distributions and hot.distributions and found.reference_failures == ()
    assert found.ensemble.evidence == tuple(ensemble.Sampled(t, 1, 2, pytest.approx(0.08)) for t in (100.0, 150.0))
    page = (tmp_path / "report.html").read_text()
    assert "<h3>150 K</h3>" in page and (tmp_path / "ensemble-100K.png").exists()
    part = ensemble.ensemble((cold, replace(hot, distributions=(), counted=())))
    assert part.grade != "good" and part.sentence.endswith("no replicas to compare at 150 K")
    failed = replace(found, ensemble=part, reference_failures=("bond O1-H3 2.00 A",))
    assert "Replicas of the reference that failed: 1 (bond O1-H3 2.00 A)" in report.html(failed, {"overview": Figure()})
    counted = ["name", "unit", "model", "model_error", "reference", "reference_error", "difference_in_errors"]
    assert all(list(c) == counted for at in found.as_dict()["ensemble"] for c in at["counted"])
    assert all(list(d) == ["name", "distance", "error", "chance"] for d in found.as_dict()["ensemble"][0]["distributions"])


def test_the_report_opens_anywhere(verdict):
    page = (verdict.out / "report.html").read_text()
    assert "http" not in re.sub("<script>.*?</script>", "", page, flags=re.S)
    assert page.count("<img") == page.count("data:image/png;base64") >= 4
    assert "3Dmol" in page and "model, SHA-256" in page
    assert (page.count('class="tile good"'), page.count('class="tile unknown"')) == (1, 4)
    assert "<small>runs of 0.2 ps at 100 K</small>" in page
    assert json.loads((verdict.out / "robustness.json").read_text()) == json.loads(json.dumps(verdict.found.as_dict()))


def test_files_have_the_keys_that_they_always_had(verdict):
    told = json.loads((verdict.out / "robustness.json").read_text())
    new = ["charge", "spin", "concerns", "certified", "shape"]
    assert [key for key in told if key not in new] == [
        *("model", "level_of_theory", "reference", "protocol", "equilibrium", "starts", "rows", "ensemble"),
        *("reference_failures", "warning", "verdict"),
    ]
    row = ["temperature_K", "start", "replicas", "survived", "right", "reacted", "reacted_right", "frames", "without_label"]
    assert list(told["rows"][0]) == row + [f"d{x}_{key}" for x in "ef" for key in ("median", "p95", "max")] + ["failures"]
    assert set(told["warning"]) == {
        *("rank_correlation", "frames", "threshold_eV", "failures", "failures_followed", "announced"),
        *("false_alarms_per_ps", "calm_ps"),
    }
    assert told["protocol"] == json.loads(json.dumps(asdict(verdict.protocol)))
    assert list(told["verdict"]) == ["survival", "truth", "shape", "ensemble", "warning"]
    assert all(list(part) == ["grade", "so_far", "sentence", "evidence"] for part in told["verdict"].values())
    assert told["level_of_theory"] == "not told" and told["charge"] == told["spin"] == 0


@pytest.mark.parametrize("reference", [None, Exact()])
def test_without_labels_truth_is_unknown(reference, distance_model, tmp_path):
    found = judge(distance_model, tmp_path, reference, Protocol((100.0,), ("equilibrium",), 1, 0.1), relabel=False)
    assert (found.truth.grade, found.truth.sentence) == ("unknown", "no reference")
    (row,) = found.truth.rows
    assert row.survived == 1 and row.right is None and found.truth.evidence == (truth.Labelled(0),)
    assert (tmp_path / "warning.png").exists() and not (tmp_path / "truth.png").exists()


class Springs:
    """The toy molecule's energy as an object that keeps the smaller contract: nothing of ours, no uncertainty."""

    species, reference = SPECIES, REFERENCE

    def __call__(self, positions):
        i, j = np.triu_indices(4, 1)
        apart = positions[i] - positions[j]
        terms = 0.5 * (1 - jax.numpy.exp(-1.5 * ((apart**2).sum(-1) ** 0.5 - pair_distances(REFERENCE)[i, j]))) ** 2
        return jax.numpy.full(4, -10.0).at[i].add(terms).at[j].add(terms)


@pytest.mark.parametrize("kind", ["plain", "family", "sum"])
def test_a_potential_without_uncertainty_is_judged(kind, tmp_path):
    system = HERE
    morse = BondedMorse.of(system)
    model, given = {"plain": (Springs(), None), "family": (morse, None), "sum": (Sum(morse, morse), system)}[kind]
    protocol = Protocol((100.0,), ("equilibrium",), 1, 0.1, frames=4)
    found = judge(model, tmp_path, Exact(), protocol, system=given)
    assert (found.warning.grade, found.warning.sentence) == ("unknown", "this potential has no uncertainty")
    assert (found.truth.grade, found.truth.flawless) == (("unknown", True) if kind == "plain" else ("poor", False))
    assert "this potential has no uncertainty" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "truth.png").exists() and not (tmp_path / "warning.png").exists()
    told = json.loads((tmp_path / "robustness.json").read_text())["warning"]
    assert told["announced"] is told["threshold_eV"] is told["rank_correlation"] is None and told["failures"] == 0
    with pytest.raises(ValueError, match="take another folder"):
        judge(Springs() if kind != "plain" else morse, tmp_path, Exact(), protocol)


def test_what_cannot_be_judged_is_said_before_anything_runs(tmp_path):
    far = np.concatenate([REFERENCE, REFERENCE + 9.0])
    pair = System.of(2 * SPECIES, far, molecules=[0] * 4 + [1] * 4)
    anyone = NeighbourMorse(("C", "H", "O"), *map(np.array, (1.0, 1.5, 1.2, 4.0)))
    for model, system, sentence in (
        (anyone, None, "expected a system for a potential that is not of one molecule"),
        (anyone, pair, "expected one molecule without walls to judge, found 2"),
        (BondedMorse.of(HERE), System.of(("O", "H", "H"), REFERENCE[[0, 2, 3]]), "found"),
    ):
        with pytest.raises(ValueError, match=sentence):
            judge(model, tmp_path / "out", Exact(), system=system)
    with pytest.raises(TypeError, match="expected a potential"):
        judge(SPECIES, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_was_run_is_read_and_another_verdict_is_refused(verdict, distance_model):
    starts = {"equilibrium": np.repeat(REFERENCE[None], 2, axis=0)}
    system = HERE
    run = run_replicas(None, system, starts, verdict.protocol, verdict.out / "model", 0.2, 0)  # there is nothing to run it with
    assert run.trajectory.alive.all() and run.groups == [(100.0, "equilibrium")]
    with pytest.raises(ValueError, match="take another folder"):
        judge(distance_model, verdict.out, Exact(), replace(verdict.protocol, replicas=3))


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    """A run that was there: two temperatures, and kinds of start that no verdict makes."""
    rest, folder, kinds = at_rest(Springs()).system, tmp_path_factory.mktemp("driven"), ("equilibrium", "dataset", "dataset")
    begin = rest.positions + 0.02 * np.random.default_rng(0).normal(size=(3, 4, 3))
    options = {"temperature": [100.0, 100.0, 200.0], "time": 0.1, "kinds": kinds, "frame_interval": 10.0}
    return simulate(Springs(), rest, begin, folder, **options)


def test_a_run_that_is_there_is_judged(driven, tmp_path):
    found = judge_run(Springs(), driven.directory, tmp_path, Exact(), frames=4)
    assert [(row.temperature, row.start, row.replicas) for row in found.survival.rows] == [
        *((100.0, "equilibrium", 1), (100.0, "dataset", 1), (200.0, "dataset", 1)),
    ]
    assert found.truth.evidence == (truth.Labelled(12),) and found.truth.flawless
    assert [lived.replica_ps for lived in found.survival.evidence] == pytest.approx([0.2, 0.1])
    assert found.ensemble.grade == "unknown" and "has no reference dynamics" in found.ensemble.sentence
    told = json.loads((tmp_path / "robustness.json").read_text())
    assert told["protocol"]["kinds"] == ["equilibrium", "dataset"] and told["protocol"]["time"] == pytest.approx(0.1)
    assert "A run that was there, 0.1 ps with a NoseHoover thermostat" in (tmp_path / "report.html").read_text()
    again = judge_run(Springs(), driven, tmp_path, Exact(), frames=4)
    assert again.as_dict() == found.as_dict()
    with pytest.raises(ValueError, match="take another folder"):
        judge_run(Springs(), driven, tmp_path, Exact(), frames=5)


def test_a_run_is_judged_by_the_potential_that_drove_it(driven, tmp_path):
    for model, sentence in (
        (BondedMorse.of(HERE), "with other energies near its starts"),
        (WATER, "expected the atoms O H H of the model"),
    ):
        with pytest.raises(ValueError, match=sentence):
            judge_run(model, driven, tmp_path / "out")
    with pytest.raises(ValueError, match=r"expected the folder of a run, found no run\.json"):
        judge_run(Springs(), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    short = SimpleNamespace(times=np.zeros(1), directory=tmp_path)
    with pytest.raises(ValueError, match="expected a run of two frames or more, found 1"):
        Found.of(short, 4, 0)


def test_folders_of_before_are_judged_too(driven, tmp_path):
    """They tell neither kinds nor precision nor where the atoms rest; verdicts told the kinds in a file of their own."""
    shutil.copytree(driven.directory, tmp_path / "old")
    path = tmp_path / "old" / "run.json"
    told = json.loads(path.read_text())
    new = {"kinds", "precision", "charge", "spin", "molecules", "cell", "at_rest", "model"}
    path.write_text(json.dumps({name: value for name, value in told.items() if name not in new}))
    found = judge_run(Springs(), tmp_path / "old", tmp_path / "out")
    assert [(row.start, row.replicas) for row in found.survival.rows] == [("start", 2), ("start", 1)]
    (tmp_path / "old" / "outcome.json").write_text(json.dumps({"kinds": driven.kinds.tolist()}))
    assert len(judge_run(Springs(), tmp_path / "old", tmp_path / "kinds").survival.rows) == 3


def test_the_command_judges_a_folder_that_simulate_filled(tmp_path, capsys):
    path, run, out = tmp_path / "model.safetensors", tmp_path / "run", tmp_path / "verdict"
    save_model(BondedMorse.of(HERE), path)
    few = ("--replicas", "2", "--time", "0.1", "--precision", "float32", "--temperature", "100")
    assert iqagp("simulate", path, "--out", run, *few) == 0
    command = ("robustness", run, "--out", out, "--reference", "none")
    for options, sentence in (
        (("--replicas", "3"), "expected --replicas with a model file only"),
        (("--reference-time", "3"), "expected --reference-time with a model file only"),
    ):
        assert iqagp(*command, *options) == 2
        assert sentence in capsys.readouterr().err
    assert iqagp("robustness", path, "--model", path, *command[2:]) == 2
    assert "expected --model with the folder of a run only" in capsys.readouterr().err
    assert iqagp(*command) == 0
    assert "survival: unknown, 2 of 2 replicas survived 0.1 ps" in capsys.readouterr().out and (out / "report.html").exists()
    path.rename(tmp_path / "elsewhere.safetensors")
    assert iqagp(*command) == 2
    assert "found no file at" in capsys.readouterr().err
    assert iqagp(*command, "--model", tmp_path / "elsewhere.safetensors") == 0


def test_ramachandran_pictures_have_as_many_points_of_both():
    rng = np.random.default_rng(0)

    def run(frames, replicas):
        path = SimpleNamespace(times=5.0 * np.arange(frames), positions=rng.normal(size=(frames, replicas, 4, 3)))
        return SimpleNamespace(trajectory=path, group=lambda temperature, kind: np.arange(replicas))

    runs = {"model": run(101, 8), "reference": run(51, 3), "dead": run(51, 3)}
    runs["dead"].trajectory.positions[:] = np.nan
    axes = pictures.ramachandran([((0, 1, 2, 3), (3, 2, 1, 0))], 500.0, runs).axes
    assert [len(ax.lines[0].get_xdata()) for ax in axes] == [123, 123, 0]  # 41 frames after equilibration


def test_certified_averages_are_in_the_folder_and_on_the_page(verdict):
    (told,) = json.loads((verdict.out / "robustness.json").read_text())["certified"]
    assert told["certified"] and (told["frames"], told["early"]) == (50, 10) and told["effective_sample_size"] > 49
    assert {average["unit"] for average in told["averages"]} == {"Å", "°", "K"}
    page = (verdict.out / "report.html").read_text()
    assert certified.BLIND_SPOT in page and "<h3>100 K, as the reference has it</h3>" in page
    assert escape(told["sentence"]) in page
    lost = replace(verdict.found.certified[0], missing="which is too little", averages=(), tau_acc=None)
    page = report.html(replace(verdict.found, certified=(lost,)), {})
    assert "averages cannot be certified, which is too little" in page and "as the reference has it</h3>" not in page


def test_temperatures_are_told_without_exponents():
    assert report.table(("K",), [(1000.0,), (999.6,), (1234.5,), (0.01234,)]).split("<td>")[1:] == [
        *("1000</td></tr><tr>", "1000</td></tr><tr>", "1234</td></tr><tr>", "0.0123</td></tr></table>"),
    ]


def test_large_errors_are_told_without_exponents():
    assert [truth.two_figures(x) for x in (0.0123, 2.16, 99.4, 99.6, 333.8)] == ["0.012", "2.2", "99", "100", "334"]
