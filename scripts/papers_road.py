"""Can a model of atomic energies alone live through hot dynamics and be right? One change at a time from a base setting.

    python scripts/papers_road.py --out road                  # 20 ps at 1000 K: all settings, both candidates of MF5, two seeds
    python scripts/papers_road.py --out long --setting "inverse distances" --time 100

The base: 1000 geometries of malondialdehyde, local frames, length scales by the marginal likelihood of the first 500, noise
1e-8, replicas from equilibrium by steps of 0.5 fs. A seed draws geometries, starts of the search and velocities. Truth is what
the default model of energies and forces says, which is accurate, with its sigma; B3LYP itself labels last frames (--labels)
to show what that is worth. Every finished setting is a line of lines.json in the folder: the same command goes on there.
`docs/measurements/2026-11-papers-road.md` has the figures.
"""

import json
import time as clock
import warnings
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dialect import parsed
from scipy.optimize import minimize
from scipy.stats import beta

from iqagp_jax import energy_and_forces, energy_fn, fit_gp, load_dataset, load_model, save_model, simulate
from iqagp_jax.cli.console import output_folder
from iqagp_jax.dynamics import metadynamics
from iqagp_jax.dynamics.ensembles import Dynamics, NoseHoover
from iqagp_jax.families.gp import regression
from iqagp_jax.families.gp.fit_atoms import conditioned, observed
from iqagp_jax.families.gp.kernels import build_kernel
from iqagp_jax.families.gp.options import GPOptions
from iqagp_jax.families.gp.problem import Problem
from iqagp_jax.families.gp.search import HOLD_OUT, START_FACTORS, Found, initial_lengthscales, objective
from iqagp_jax.machine.files import write_atomically
from iqagp_jax.potential import MadeBy, energy_variance
from iqagp_jax.references.choose import reference_of
from iqagp_jax.system.failure import Status, failure_reason
from iqagp_jax.system.geometry import pair_distances
from iqagp_jax.units import BOHR, HARTREE, KCAL_MOL
from iqagp_jax.verdict.replicas import minimum_of

KEY = "setting", "mean", "seed"

KELVIN = 1000.0

INTERVAL = 10.0
"""fs between frames."""

WRONG = 5.0
"""kcal/mol: more is a false basin, as in a verdict."""

FIRST = 4.0
"""ps after which a run ends whose survivors are all wrong: the rest of it would tell nothing."""

WOLVES, HUNTS = 20, 30

STARTS = 8
"""Random starts of a bounded search, of which the best goes on."""

NEVER = 1e9
"""Of length scales whose covariance has no factor."""

SURE = 3.0
"""kcal/mol of sigma up to which the accurate model is asked for metadynamics' labels."""

MANY, FEW = 256, 10
"""Geometries that are taken together."""


@dataclass(frozen=True)
class Setting:
    """What is changed from the base."""

    options: dict[str, Any] = field(default_factory=dict)
    """of `fit_gp`"""
    theta: float | None = None
    """FEREBUS' theta = 1 / 2 l^2, in bohr and radian, is between 0 and this; judged by every fifth geometry"""
    huber: float = np.inf
    """kcal/mol beyond which an error counts by its size, not by its square"""
    wolves: bool = False
    """grey wolves in place of L-BFGS"""
    hartree: bool = False
    """signal variance 1 hartree^2 in the likelihood"""
    factor: float = 1.0
    """of the length scales found"""
    data: str = "becke"
    """becke, qtaim, thermal, metadynamics"""
    timestep: float = 0.5
    n_hyper: int | None = None
    """geometries that the search sees"""


SETTINGS = {
    "base": Setting(),
    "hold-out RMSE, theta to 0.1": Setting({"noise": 1e-5}, theta=0.1),
    "hold-out RMSE, theta to 1": Setting({"noise": 1e-5}, theta=1.0),
    "length scales x 0.5": Setting(factor=0.5),
    "length scales x 0.25": Setting(factor=0.25),
    "length scales x 0.125": Setting(factor=0.125),
    "noise 1e-5": Setting({"noise": 1e-5}),
    "noise 1e-4": Setting({"noise": 1e-4}),
    "noise 1e-3": Setting({"noise": 1e-3}),
    "noise 1e-2": Setting({"noise": 1e-2}),
    "metadynamics only": Setting(data="metadynamics"),
    "topological atoms": Setting(data="qtaim"),
    "mirror images": Setting({"mirror": True}),
    "amplitude 1 hartree": Setting(hartree=True),
    "1 fs": Setting(timestep=1.0),
    "hold-out Huber, theta to 0.1": Setting({"noise": 1e-5}, theta=0.1, huber=0.1),
    "hold-out Huber, theta to 1": Setting({"noise": 1e-5}, theta=1.0, huber=0.1),
    "grey wolves, theta to 0.1": Setting({"noise": 1e-5}, theta=0.1, wolves=True),
    "grey wolves, theta to 1": Setting({"noise": 1e-5}, theta=1.0, wolves=True),
    "search on all": Setting(n_hyper=1000),
    "hold-out RMSE, no bound": Setting({"loss": "hold-out"}),
    "thermal only": Setting(data="thermal"),
    "repulsion": Setting({"repulsion": True}),
    "inverse distances": Setting({"features": "inverse-distances", "kernel": "matern52"}),
}


def main():
    arguments = {
        "--out": {"type": Path, "help": "folder; the same command goes on with it"},
        "--setting": {"action": "append", "help": "repeatable: " + ", ".join(SETTINGS)},
        "--prior-mean": {"action": "append", "help": "repeatable"},
        "--seeds": {"type": int},
        "--replicas": {"type": int, "help": "of every seed"},
        "--time": {"type": float, "help": "ps of each replica"},
        "--n-train": {"type": int},
        "--n-hyper": {"type": int, "help": "geometries that the search sees"},
        "--max-steps": {"type": int, "help": "of a search for hyperparameters"},
        "--labels": {"type": int, "help": "frames that B3LYP labels, of the first wrong and of the last"},
    }
    usual = {"setting": list(SETTINGS), "prior_mean": ["mf5", "mf4"], "seeds": 2, "replicas": 10, "time": 20.0}
    usual |= {"n_train": 1000, "n_hyper": 500, "max_steps": 40, "labels": 0}
    short = {"out": None, "setting": ["hold-out RMSE, theta to 1"], "prior_mean": ["mf5"], "seeds": 1, "replicas": 2}
    short |= {"time": 0.02, "n_train": 40, "n_hyper": 40, "max_steps": 1}
    options = parsed(__doc__, arguments, usual, short)
    warnings.filterwarnings("ignore", "(?s).*(conserved energy|first .* training geometries|mean temperature)")
    out = output_folder(options.out)
    judge = Accurate(accurate_model(out, options.short))
    file, lines = out / "lines.json", []
    if file.exists():
        lines = json.loads(file.read_text())
    done = {tuple(line[k] for k in KEY) for line in lines}
    for seed in range(options.seeds):
        for name in options.setting:
            for mean in options.prior_mean:
                if (key := (name, mean, seed)) in done:
                    continue
                lines.append(dict(zip(KEY, key, strict=True)) | measured(judge, *key, out, options))
                write_atomically(file, json.dumps(lines, indent=1))
                print(told(lines[-1]), flush=True)
    print("\n".join(rows(lines)))
    if options.labels:
        labelled(judge, lines, out, options.labels)


def accurate_model(out, short):
    """The default model of energies and forces, fitted once."""
    path = out / "accurate.safetensors"
    if not path.exists():
        few = {"n_train": 20, "max_steps": 0} if short else {}
        save_model(fit_gp(load_dataset("malondialdehyde"), **few), path)
    return load_model(path)


class Accurate:
    """The default model: energies, forces, atomic energies and sigma of many geometries."""

    def __init__(self, model):
        self.model, self.apply = model, energy_and_forces(model)
        self.atoms = jax.jit(lambda r: jax.lax.map(model.atomic_energies, r))

    @cached_property
    def rest(self):
        """The system at its minimum."""
        return minimum_of(self.model, self.model.system)[0]

    @cached_property
    def variance(self):
        return energy_variance(self.model)

    def __call__(self, positions):
        """Energies (n,) in eV and forces of geometries (n, N, 3)."""
        return _in_batches(self.apply, positions, MANY)

    def sigma(self, positions):
        """Standard deviations (n,) of energies, kcal/mol."""
        return np.sqrt(_in_batches(lambda r: (self.variance(r),), positions, FEW)[0]) / KCAL_MOL

    def atomic_energies(self, positions):
        """(n, N) eV"""
        return _in_batches(lambda r: (self.atoms(r),), positions, FEW)[0]


class Asked:
    """The same of a model of atomic energies alone, an argument of programs that all models of its kind share."""

    def __init__(self, model):
        plain = {"made_by": MadeBy(), "trace": np.zeros((1, 1)), "residual": None, "noise": 0.0}
        self.model, self.noise = replace(model, **plain, reference=np.zeros(model.reference.shape)), model.noise

    def __call__(self, positions):
        """Energies (n,) in eV and forces of geometries (n, N, 3)."""
        return _in_batches(lambda r: _energies_and_forces(self.model, r), positions, MANY)

    def sigma(self, positions):
        """Standard deviations (n,) of energies, kcal/mol."""
        found = _in_batches(lambda r: (_variances(self.model, r, self.noise),), positions, FEW)
        return np.sqrt(found[0]) / KCAL_MOL

    def atomic_energies(self, positions):
        """(n, N) eV"""
        return _in_batches(lambda r: (_atomic_energies(self.model, r),), positions, FEW)[0]


@jax.jit
def _energies_and_forces(model, positions):
    bound = model.bind(None)
    energies, gradients = jax.vmap(lambda r: bound.energy_and_gradient(r, ())[0])(positions)
    return energies, -gradients


@jax.jit
def _atomic_energies(model, positions):
    return jax.lax.map(model.atomic_energies, positions)


@jax.jit
def _variances(model, positions, noise):
    def of_atom(arguments):
        kernel, train, variance, points = arguments
        factor = jnp.linalg.cholesky(regression.covariance_matrix(kernel, train, noise))
        return regression.predictive_variance(kernel, train, factor, variance, points)

    points = jax.vmap(model.features)(positions).swapaxes(0, 1)
    return jax.lax.map(of_atom, (model.kernel, model.train_features, model.signal_variance, points)).sum(0)


@dataclass
class Driven:
    """Replicas of a model from one geometry, at `KELVIN`, that go on when asked: frames every `INTERVAL` fs."""

    model: Any
    system: Any
    timestep: float
    replicas: Any
    frames: list[Any] = field(default_factory=list)
    wrong: Any = ()
    """(n, N, 3) the first wrong geometry of each replica, see `truth`"""

    @classmethod
    def of(cls, model, system, replicas, timestep, seed):
        """At the beginning."""
        starts = np.repeat(system.positions[None], replicas, axis=0)
        begin = jax.jit(jax.vmap(_dynamics(model, system, timestep).start, (None, 0, 0, None)))
        return cls(model, system, timestep, begin(seed, np.arange(replicas), starts, KELVIN))

    def until(self, ps):
        """With frames up to so many ps, or till no replica is left."""
        steps = round(INTERVAL / self.timestep)
        # Everything but the timestep is an argument of one compiled program.
        static = self.timestep, _Hashed(self.system)
        while len(self.frames) * INTERVAL <= 1000 * ps:
            ahead = steps if self.frames else 0
            self.replicas, frame = _advance(*static, self.model, self.replicas, ahead)
            self.frames.append(jax.device_get((frame.positions, frame.energies, frame.alive)))
            if not self.frames[-1][2].any():
                break
        self.positions, self.energies, self.alive = map(np.stack, zip(*self.frames, strict=True))
        self.ps = INTERVAL / 1000 * np.arange(len(self.frames))
        return self

    def failures(self):
        """Times in ps, NaN of survivors, and reasons of all replicas."""
        state, rule = jax.device_get(self.replicas), self.system.failure_rule
        alive, times = state.status == Status.ALIVE, state.steps * self.timestep
        why = [
            failure_reason(rule, status, r, t, np.nan, KELVIN)
            for status, r, t in zip(state.status, state.dynamics.position, times, strict=True)
        ]
        return np.where(alive, np.nan, times / 1000).tolist(), why


class _Hashed:
    """A system as a constant of compiled programs: there is one."""

    def __init__(self, system):
        self.system = system

    def __eq__(self, other):
        return self.system is other.system

    def __hash__(self):
        return id(self.system)


def _dynamics(model, system, timestep):
    return Dynamics(model.bind(system), system, NoseHoover(), timestep, system.failure_rule)


@partial(jax.jit, static_argnums=(0, 1))
def _advance(timestep, hashed, model, replicas, steps):
    targets = jnp.full(len(replicas.status), KELVIN)
    return _dynamics(model, hashed.system, timestep).advance(replicas, targets, steps)


def _in_batches(apply, positions, size):
    """What a function of (``size``, N, 3) gives for all of (n, N, 3): one compiled shape."""
    n = len(positions)
    with jax.enable_x64(True):
        parts = [apply(positions[np.minimum(np.arange(k, k + size), n - 1)]) for k in range(0, n, size)]
    return [np.concatenate(part)[:n] for part in zip(*parts, strict=True)]


stored = cache(load_dataset)
"""An embedded dataset, read once."""


def training_data(kind, seed, n, judge, out):
    """The geometries of a seed, of one kind."""
    if kind == "metadynamics":
        return metadynamics_geometries(judge, n, seed, out)
    data = stored("malondialdehyde-qtaim" if kind == "qtaim" else "malondialdehyde").split("train")
    known = np.isfinite(data.atomic_energies).all(1)
    if kind == "thermal":
        known &= data.thermal
    data = data[known]
    return data[np.random.default_rng(seed).permutation(len(data))[:n]]


def metadynamics_geometries(judge, n, seed, out):
    """Frames of the accurate model's dynamics under a bias that well-tempered metadynamics has left, with its labels.

    The dataset has no such geometries; what the accurate model is not sure of is left out.
    """
    model, data = judge.model, stored("malondialdehyde").split("train")
    energy, system = energy_fn(model), model.system
    bias = metadynamics.WellTempered(metadynamics.choose_variables(data.species, model.reference), 500.0)
    _, hills = metadynamics.run(energy, bias, model.reference, system.masses, 600, 50, seed=seed)
    starts = np.repeat(model.reference[None], 20, axis=0)
    options = {"temperature": 500.0, "time": 8.0, "frame_interval": 40.0, "progress": False, "seed": seed}
    run = simulate(lambda r: energy(r) + bias(r, hills), system, starts, out / f"metadynamics-{seed}", **options)
    frames = run.trajectory.positions[25:][run.trajectory.alive[25:]]
    frames = frames[np.random.default_rng(seed).permutation(len(frames))[: int(1.3 * n)]]
    frames = frames[judge.sigma(frames) < SURE][:n]
    energies, forces = judge(frames)
    some = data[np.zeros(len(frames), int)]
    origin = {"source": np.full(len(frames), "metadynamics"), "split": np.full(len(frames), "train")}
    labels = {"energy": energies, "forces": forces, "atomic_energies": judge.atomic_energies(frames)}
    return replace(some, positions=frames, origin=origin, extra={}, **labels)


def fitted(setting, mean, data, seed, options):
    """The model of a setting."""
    chosen = {"features": "alf", "targets": ("atomic_energies",), "n_train": len(data), "max_steps": options.max_steps}
    chosen |= {"prior_mean": mean + "+born-mayer" * ("repulsion" in setting.options)}
    chosen |= {name: value for name, value in setting.options.items() if name != "repulsion"}
    with jax.enable_x64(True):
        problem = Problem.of(data, GPOptions(**chosen).resolved(data))
        points, residual = (array[:, : setting.n_hyper or options.n_hyper] for array in observed(problem))
        if setting.hartree:
            residual = residual / HARTREE
        goal = Goal.of(setting, problem)
        likely = np.log(np.asarray(initial_lengthscales(points, problem.features.angular)))
        found = [found_by(goal, *data, seed, options.max_steps) for data in zip(likely, points, residual, strict=True)]
        lengths, values = map(jnp.asarray, zip(*found, strict=True))
        return conditioned(problem, Found(lengths + np.log(setting.factor), values[None], values[None], None))


@dataclass(frozen=True)
class Goal:
    """What is maximised for an atom, and between which log length scales (D,)."""

    kernel: str
    angular: tuple[bool, ...]
    loss: str
    noise: float
    huber: float
    theta: float | None
    wolves: bool

    @classmethod
    def of(cls, setting, problem):
        options = problem.options
        loss = "hold-out" if setting.theta else "marginal" if setting.hartree else options.loss
        angular = tuple(problem.features.angular.tolist())
        return cls(options.kernel, angular, loss, options.shares, setting.huber, setting.theta, setting.wolves)

    @property
    def least(self):
        """The least log length scales (D,) by theta = 1 / 2 l^2."""
        angular = np.array(self.angular)
        column = np.arange(len(angular))
        is_length = (column < 2) | (column > 2) & (column % 3 == 0)
        return np.log(np.where(is_length, BOHR, 1.0)) - 0.5 * np.log(2 * self.theta)

    def __call__(self, log_lengths, x, residual):
        """The negative, which is minimised, and its gradient."""
        value, gradient = _goal(self.kernel, self.angular, self.loss, np.isinf(self.huber))(
            log_lengths, x, residual, self.noise, self.huber * KCAL_MOL
        )
        if not np.isfinite(value):
            return NEVER, np.zeros(len(log_lengths))
        return -float(value), -np.asarray(gradient)


@cache
def _goal(kernel, angular, loss, squares):
    """The compiled function (log length scales (D,), x (n, D), residual (n,), noise, huber in eV) -> value and gradient."""

    def build(log_lengths):
        return build_kernel(kernel, jnp.exp(log_lengths), np.array(angular))

    def value(log_lengths, x, residual, noise, huber):
        if squares:
            return objective(build, noise, loss)(log_lengths, x, residual)
        held = np.arange(len(x)) % HOLD_OUT == HOLD_OUT - 1
        factor = jnp.linalg.cholesky(regression.covariance_matrix(build(log_lengths), x[~held], noise))
        weights = regression.weights(factor, residual[~held])
        size = jnp.abs(regression.predict(build(log_lengths), x[~held], weights, x[held]) - residual[held])
        return -jnp.log(jnp.mean(jnp.where(size < huber, 0.5 * size**2, huber * (size - 0.5 * huber))))

    return jax.jit(jax.value_and_grad(value))


def found_by(goal, likely, x, residual, seed, max_steps):
    """The log length scales of an atom, from its `initial_lengthscales`, and their value: L-BFGS-B of SciPy, or wolves."""
    if goal.theta:
        shares = np.random.default_rng(seed).uniform(0, 1, (WOLVES if goal.wolves else STARTS, len(likely)))
        if goal.wolves:
            return hunted(goal, x, residual, shares, seed)
        starts, bounds = goal.least - 0.5 * np.log(shares), [(low, np.inf) for low in goal.least]
    else:
        starts, bounds = likely + np.log(START_FACTORS)[:, None], list(zip(likely - 3, likely + 5, strict=True))
    best = min(starts, key=lambda start: goal(start, x, residual)[0])
    if not max_steps:
        return best, -goal(best, x, residual)[0]
    steps = {"maxiter": max_steps, "maxcor": 20, "ftol": 1e-6}
    found = minimize(goal, best, (x, residual), "L-BFGS-B", jac=True, bounds=bounds, options=steps)
    return found.x, -found.fun


def hunted(goal, x, residual, shares, seed):
    """Grey wolves (doi:10.1016/j.advengsoft.2013.12.007): all go towards where the best three of the pack (W, D) see prey."""
    rng = np.random.default_rng(seed + 1)
    leaders, values = np.zeros((0, shares.shape[1])), np.zeros(0)
    for hunt in range(HUNTS):
        mine = np.array([goal(start, x, residual)[0] for start in goal.least - 0.5 * np.log(shares)])
        all_of, values = np.concatenate([leaders, shares]), np.concatenate([values, mine])
        best = np.argsort(values)[:3]
        leaders, values = all_of[best], values[best]
        a = 2 * (1 - hunt / HUNTS) * rng.uniform(-1, 1, (3, *shares.shape))
        prey = np.abs(2 * rng.uniform(0, 1, a.shape) * leaders[:, None] - shares)
        shares = (leaders[:, None] - a * prey).mean(0).clip(1e-6, 1)
    return goal.least - 0.5 * np.log(leaders[0]), -values[0]


def measured(judge, name, mean, seed, out, options):
    """All figures of a setting and seed."""
    setting, began = SETTINGS[name], clock.process_time()
    data = training_data(setting.data, seed, options.n_train, judge, out)
    model = fitted(setting, mean, data, seed, options)
    middle, asked = clock.process_time(), Asked(model)
    line = {"n_train": len(data), "log": np.asarray(model.trace[-1]).tolist(), **described(model), **tested(asked)}
    with jax.enable_x64(True):
        run = Driven.of(asked.model, judge.rest, options.replicas, setting.timestep, seed)
        for ps in dict.fromkeys((min(FIRST, options.time), options.time)):
            run.until(ps)
            line |= {"ps": ps, **survival(run), **truth(asked, judge, data, run)}
            line[f"at {ps:g} ps"] = [line["alive"], *verdict(line)]
            # Where all that live are wrong the rest of the run would tell nothing.
            if not any(verdict(line)[::2]):
                break
    folder = output_folder(out / run_name(name, mean, seed))
    save_model(model, folder / "model.safetensors")
    np.save(folder / "last.npy", run.positions[-1])
    np.save(folder / "wrong.npy", run.wrong)
    return line | {"fit_s": middle - began, "run_s": clock.process_time() - middle}


def run_name(setting, mean, seed):
    return f"{setting}-{mean}-{seed}".replace(" ", "-").replace(",", "")


def described(model):
    """What the processes look like: medians over atoms, eV, and of the length scales."""
    top = model.residual.max(1)
    scale = initial_lengthscales(jnp.asarray(model.train_features), model.features.angular)
    kernel, angular = model.kernel, model.features.angular
    lengths = np.zeros(scale.shape)
    if hasattr(kernel, "lengthscale"):
        lengths = np.asarray(kernel.lengthscale)
    else:
        lengths[:, ~angular], lengths[:, angular] = kernel.first.kernel.lengthscale, kernel.second.kernel.lengthscale
    return {
        "deviation_eV": float(np.median(np.sqrt(model.signal_variance))),
        "mean_above_data_eV": float(np.median(-top)),
        "spread_eV": float(np.median(model.residual.std(1))),
        "length_in_spreads": float(np.median(lengths / (np.asarray(scale) / np.sqrt(len(angular))))),
    }


def tested(asked):
    """Mean absolute errors of energy and forces on the stored test sets, kcal/mol and kcal/mol/A."""
    data = stored("malondialdehyde")
    found = {}
    positions = np.concatenate([data.split(s).positions for s in ("test_500K", "test_1000K")])
    energies, forces = asked(positions)
    for split, part in (("test_500K", slice(None, 200)), ("test_1000K", slice(200, None))):
        true = data.split(split)
        off = energies[part] - true.energy, forces[part] - true.forces
        found[split] = [float(np.abs(x).mean() / KCAL_MOL) for x in off]
    return found


def survival(run):
    times, why = run.failures()
    return {"alive": int(run.alive[-1].sum()), "replicas": len(times), "failed_ps": times, "why": why}


def truth(asked, judge, data, run):
    """What the accurate model says of the run: of the last frames, and of the first that are wrong."""
    frames, alive = run.positions, run.alive
    off = np.full(alive.shape, np.nan)
    force = np.full(alive.shape, np.nan)
    energies, forces = judge(frames[alive])
    off[alive] = (run.energies[alive] - energies) / KCAL_MOL
    force[alive] = np.abs(asked(frames[alive])[1] - forces).mean((1, 2)) / KCAL_MOL
    wrong = np.abs(off) > WRONG
    ever, first = wrong.any(0), wrong.argmax(0)
    calm = alive & (wrong.cumsum(0) == 0) & (run.ps <= 1)[:, None]
    found: dict[str, Any] = {
        "de_before": median(np.abs(off[calm])),
        "force_before": median(force[calm]),
        "wrong_ps": np.where(ever, run.ps[first], np.nan).tolist(),
    }
    if ever.any():
        run.wrong = there = frames[first, np.arange(len(first))][ever]
        atoms = np.abs(asked.atomic_energies(there) - judge.atomic_energies(there)) / KCAL_MOL
        found["wrong"] = {
            "de": off[first, np.arange(len(first))][ever].tolist(),
            "sigma_accurate": judge.sigma(there).tolist(),
            "sigma_own": asked.sigma(there).tolist(),
            "outside": beyond(data.positions, there),
            "atoms": atoms.tolist(),
        }
    last = alive[-1]
    if last.any():
        ends = run.positions[-1, last]
        half = run.energies[len(run.ps) // 2 :, last]
        found["last"] = {
            "replicas": np.flatnonzero(last).tolist(),
            "de": off[-1, last].tolist(),
            "force": force[-1, last].tolist(),
            "sigma_accurate": judge.sigma(ends).tolist(),
            "above_best": ((half.mean(0) - data.energy.min()) / KCAL_MOL).tolist(),
            "share_right": (np.abs(off[:, last]) <= WRONG).mean(0).tolist(),
        }
    return found


def median(values):
    return float(np.median(values)) if len(values) else None


def beyond(known, positions):
    """The largest excess (n,) of a distance over the range of the training geometries, angstrom; 0 within."""
    a, b = np.triu_indices(known.shape[1], 1)
    low, high = (f(pair_distances(known)[:, a, b], axis=0) for f in (np.min, np.max))
    here = pair_distances(positions)[:, a, b]
    return np.maximum(np.maximum(low - here, here - high), 0).max(1).tolist()


def verdict(line):
    """Survivors of a line that are right, wrong and not known to be either.

    One whose model is below its best training geometry through half of the run is wrong, whatever the accurate model knows.
    """
    last = line.get("last", {"de": [], "sigma_accurate": [], "above_best": []})
    de, sigma = np.abs(last["de"]), np.array(last["sigma_accurate"])
    right = (de <= WRONG) & (sigma < WRONG / 2)
    wrong = ~right & ((de - 2 * sigma > WRONG) | (np.array(last["above_best"]) < -WRONG))
    return int(right.sum()), int(wrong.sum()), int((~right & ~wrong).sum())


def told(line):
    tests = "  ".join(f"{line[s][0]:.2f} {line[s][1]:.1f}" for s in ("test_500K", "test_1000K"))
    return (
        f"{line['setting']}, {line['mean']}, {line['seed']}: {tests}; alive {line['alive']} of {line['replicas']},"
        f" right, wrong, unknown {verdict(line)}; fit {line['fit_s']:.0f} s, run {line['run_s']:.0f} s"
    )


def interval(k, n):
    """95% by Clopper and Pearson, in per cent."""
    low, high = beta.ppf(0.025, k, n - k + 1) if k else 0, beta.ppf(0.975, k + 1, n - k) if k < n else 1
    return f"{100 * low:.0f}-{100 * high:.0f}%"


def rows(lines):
    """The table, a row for every setting and mean over its seeds."""
    header = (
        "setting",
        "mean",
        "E, F at 500 K",
        "at 1000 K",
        "alive",
        "95%",
        "right, wrong, unknown",
        "energy",
        "first wrong, ps",
    )
    yield "| " + " | ".join(header) + " |"
    yield "| --- " * len(header) + "|"
    for key in dict.fromkeys((line["setting"], line["mean"]) for line in lines):
        mine = [line for line in lines if (line["setting"], line["mean"]) == key]
        errors = ["{:.2f}, {:.1f}".format(*np.mean([line[s] for line in mine], axis=0)) for s in ("test_500K", "test_1000K")]
        k, n = (sum(line[name] for line in mine) for name in ("alive", "replicas"))
        each = "+".join(str(line["alive"]) for line in mine)
        high = np.concatenate([line.get("last", {"above_best": []})["above_best"] for line in mine])
        counts = ", ".join(map(str, np.sum([verdict(line) for line in mine], axis=0)))
        first = np.median(np.nan_to_num(np.concatenate([line["wrong_ps"] for line in mine]), nan=np.inf))
        cells = [*key, *errors, f"{each} of {n}", interval(k, n), counts if k else "-"]
        cells += [f"{np.median(high):.0f}" if k else "-", f"{first:.2f}" if np.isfinite(first) else "-"]
        yield "| " + " | ".join(cells) + " |"


def labelled(judge, lines, out, n):
    """B3LYP's own labels of ``n`` frames where models were first wrong, and of as many of their last ones."""
    print("| frames | sigma of the accurate model | its error | dE by it | dE by B3LYP |\n| --- | --- | --- | --- | --- |")
    for kind, file in (("wrong", "wrong.npy"), ("last", "last.npy")):
        known = [line for line in lines if kind in line and (out / run_name(*(line[k] for k in KEY)) / file).exists()]
        if not known:
            continue
        frames = np.concatenate([np.load(out / run_name(*(line[k] for k in KEY)) / file) for line in known])
        frames = frames[np.isfinite(frames).all((1, 2))]
        off, sigma = (np.concatenate([line[kind][name] for line in known]) for name in ("de", "sigma_accurate"))
        # Evenly, from the surest to the least sure.
        chosen = np.argsort(sigma)[np.linspace(0, len(sigma) - 1, min(n, len(sigma))).astype(int)]
        true, _ = reference_of("dft", judge.model, out / "labels", workers=1).labels(frames[chosen])
        for k, error in zip(chosen, (judge(frames[chosen])[0] - true) / KCAL_MOL, strict=True):
            print(f"| {kind} | {sigma[k]:.2f} | {error:.2f} | {off[k]:.1f} | {off[k] + error:.1f} |")


if __name__ == "__main__":
    main()
