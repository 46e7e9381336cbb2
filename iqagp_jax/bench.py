"""How fast the package is on this machine: whole steps of dynamics against the floor that arithmetic sets.

The floor of a replica-step is what its matrix products and exponentials would take at the rates this machine reaches in
the same run, and nothing else:

    N (4 E n / matrix-product rate + n / exponential rate),   after forces 8 E n

for N atoms, n training points and E embedded features, or for one set of products where all atoms share their features, and
n exponentials where they share their length scale too. So a share of the floor is a ratio, to be compared between machines.
Every time is the median of several runs, given with the shortest and the longest.
"""

import importlib
import os
import resource
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from iqagp_jax.ase_calculator import IQAGP
from iqagp_jax.data.extxyz import load_dataset
from iqagp_jax.dynamics.ensembles import Dynamics, NoseHoover
from iqagp_jax.families.gp import fast
from iqagp_jax.families.gp.features import ALF, InverseDistances
from iqagp_jax.families.gp.kernels import Matern92, build_kernel
from iqagp_jax.families.gp.means import ConstantMean
from iqagp_jax.families.gp.model import JointData, Model, Points
from iqagp_jax.machine.devices import compiled, over_devices
from iqagp_jax.potential import bind, energy_and_forces, rounding_error

RUNS = 5
"""Timings of which the median is taken."""

SECONDS = 0.3
"""A timing repeats what it times for about so long."""

STEPS = 40
"""Steps of a call, those between two frames by default."""

MATRIX = 2048
"""Rows and columns of the matrices whose product sets the matrix-product rate."""

IN_CACHE = 16384
"""Numbers whose exponentials set that rate."""


class Timing(NamedTuple):
    """Seconds of a call: median, least and greatest of `RUNS` timings."""

    median: float
    least: float
    greatest: float

    def scaled(self, factor):
        """Every time multiplied."""
        return Timing(*(factor * t for t in self))


@dataclass(frozen=True)
class Peaks:
    """What the machine reaches in one precision, the best of NumPy and XLA."""

    gflops: float
    """of a product of square matrices, 1e9 operations a second"""
    gexp: float
    """exponentials of numbers in cache, 1e9 a second"""


@dataclass(frozen=True)
class Case:
    """What is timed: a molecule, a model of it, and the replicas."""

    atoms: int = 19
    train: int = 1000
    replicas: int = 100
    dtype: str = "float64"
    features: str = "alf"
    forces: bool = False


@dataclass(frozen=True)
class Row:
    """A whole NVT step of a `Case`; milliseconds per step and replica."""

    case: Case
    ms: float
    ms_least: float
    ms_greatest: float
    floor_ms: float
    compile_seconds: float
    memory_gib: float
    """greatest so far in this process"""

    @property
    def share(self):
        """Floor over time, 1 at best."""
        return self.floor_ms / self.ms

    def as_dict(self):
        """Plain data for JSON."""
        return {**asdict(self), "share_of_floor": self.share}


def timed(function):
    """`Timing` of a call without arguments that returns when all is done; it is called before, to compile and to warm up."""
    function()
    began = time.perf_counter()
    function()
    repeats = max(1, round(SECONDS / (time.perf_counter() - began)))
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        for _ in range(repeats):
            function()
        times.append((time.perf_counter() - began) / repeats)
    return Timing(median(times), min(times), max(times))


def peaks(dtype):
    """`Peaks` of the threads that NumPy and XLA have."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        a = rng.normal(size=(MATRIX, MATRIX)).astype(dtype)
        x = -rng.uniform(0.1, 2.0, size=IN_CACHE).astype(dtype)
        on_device, product = jnp.asarray(a), jax.jit(jnp.matmul)
        matmul = min(timed(lambda: a @ a).median, timed(lambda: product(on_device, on_device).block_until_ready()).median)
        # Each device in turn would be an unfair floor: all of them at once, many times over without a return to Python.
        count, many = len(jax.devices()), 200
        repeated = jax.jit(over_devices(jax.vmap(lambda y: jax.lax.fori_loop(0, many, lambda _, y: -jnp.exp(y), y)), count))
        batch = jnp.tile(jnp.asarray(x), (count, 1))
        by_xla = timed(lambda: jax.block_until_ready(repeated(batch))).median / (many * count)
        exponential = min(timed(lambda: np.exp(x)).median, by_xla)
    return Peaks(2e-9 * MATRIX**3 / matmul, 1e-9 * IN_CACHE / exponential)


def floor_ms(model, peak):
    """The floor of a replica-step of a `Model` in milliseconds, as above."""
    with jax.enable_x64(True):
        points = fast.prepare(model, np.float64)
    products = 4 if model.directions is None else 8
    multiplied, exponentials = sum(z.size for z in points.z), points.sharpness.size * points.squares.shape[1]
    return 1e-6 * (products * multiplied / peak.gflops + exponentials / peak.gexp)


def synthetic_model(case, seed=0):
    """A model of the size of a `Case` with random geometries and weights: its forces are small and mean nothing."""
    n_atoms, n = case.atoms, case.train
    rng, k = np.random.default_rng(seed), np.arange(case.atoms)
    # a zigzag chain wound to a helix: no three atoms in a row are collinear, none are near each other
    reference = np.stack([1.1 * np.cos(1.9 * k), 1.1 * np.sin(1.9 * k), 0.55 * k], axis=1)
    positions = reference + 0.05 * rng.normal(size=(n, n_atoms, 3))
    frames = tuple((a, (a + 1) % n_atoms, (a + 2) % n_atoms) for a in range(n_atoms))
    features: Any = {"alf": ALF(frames), "inverse-distances": InverseDistances(n_atoms)}[case.features]
    with jax.enable_x64(True):
        x = np.asarray(jax.jit(jax.vmap(features))(positions)).swapaxes(0, 1)
        lengthscale = np.full(x.shape[::2], 2.0)
        kernel = build_kernel("rbf-periodic" if case.features == "alf" else "matern52", lengthscale, features.angular)
        weights, joint = 1e-4 * rng.normal(size=(n_atoms, n)), None
        if case.forces:
            forces = 1e-4 * rng.normal(size=positions.shape)
            along = jax.jit(jax.vmap(lambda r, f: jax.jvp(features, (r,), (f,))[1]))(positions, forces)
            joint = _joint_data(positions, np.asarray(along).swapaxes(0, 1))
            if case.features == "inverse-distances":
                kernel = Matern92(np.full(n_atoms, 5.0))
    return Model(
        species=("C",) * n_atoms,
        features=features,
        kernel=kernel,
        mean=ConstantMean(np.zeros(n_atoms)),
        points=Points(x, weights),
        signal_variance=np.ones(n_atoms),
        residual=None,
        reference=reference,
        trace=np.zeros((1, n_atoms)),
        noise=1e-8,
        targets=("energy", "forces") if case.forces else ("atomic_energies",),
        joint=joint,
    )


def _joint_data(positions, directions):
    """As after energies and forces of geometries (n, N, 3) without symmetry."""
    n, n_atoms, _ = positions.shape
    per_geometry = 1 + 3 * n_atoms
    observed, noise = np.ones(n * per_geometry, bool), np.full(per_geometry, 1e-8)
    return JointData(positions, np.arange(n_atoms)[None], observed, noise, directions)


def starts(model, replicas, seed=1):
    """Positions (B, N, 3) near the reference geometry."""
    return model.reference + 0.05 * np.random.default_rng(seed).normal(size=(replicas, len(model.species), 3))


def measure(case, peak):
    """The `Row` of a `Case`: what `simulate.simulate` does between two frames, features, forces, integrator, failure rule."""
    model = synthetic_model(case)
    bound, system = bind(model, dtype=case.dtype)
    dynamics = Dynamics(bound, system, NoseHoover(), 0.5, system.failure_rule)
    targets = np.full(case.replicas, 300.0)

    def advance(replicas, targets):
        return jax.lax.fori_loop(0, STEPS, lambda _, r: jax.vmap(dynamics.step)(r, targets), replicas)

    with jax.enable_x64(True):
        begin = jax.vmap(dynamics.start, in_axes=(None, 0, 0, 0))
        replicas = jax.jit(begin)(0, np.arange(case.replicas), starts(model, case.replicas), targets)
        began = time.perf_counter()
        program = compiled(advance, replicas, targets)
        seconds = time.perf_counter() - began
        timing = timed(lambda: jax.block_until_ready(program(replicas, targets))).scaled(1000 / (STEPS * case.replicas))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    median, least, greatest = timing
    return Row(case, median, least, greatest, floor_ms(model, peak), seconds, memory)


def exponent(sizes, times):
    """Slope of ln(time) against ln(size) by least squares: 1 for a linear cost."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


class Peer(NamedTuple):
    """Energy and forces of one molecule by something else."""

    name: str
    molecule: str
    replicas: int
    ms: float
    """milliseconds per geometry, median"""
    ms_least: float
    ms_greatest: float


def time_ase(calculator, atoms, name):
    """`Peer` of an ASE calculator: energy and forces of one geometry after the other, all different."""
    rng, positions = np.random.default_rng(0), atoms.get_positions()
    atoms = atoms.copy()
    atoms.calc = calculator

    def once():
        atoms.set_positions(positions + 0.01 * rng.normal(size=positions.shape))
        atoms.get_forces()

    return Peer(name, atoms.get_chemical_formula(), 1, *timed(once).scaled(1000))


def ase_calculator(name):
    """An ASE calculator by its name in ASE ("emt"), or as "module:Class" for others ("tblite.ase:TBLite")."""
    from ase.calculators.calculator import get_calculator_class

    module, _, attribute = name.partition(":")
    try:
        return (getattr(importlib.import_module(module), attribute) if attribute else get_calculator_class(name))()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"expected an ASE calculator by its name or as module:Class, found {name!r}: {error}") from error


def time_batch(model, positions, replicas):
    """`Peer` of our own energies and forces of ``replicas`` geometries in one call, NumPy arrays in and out."""
    predict, many = energy_and_forces(model), np.resize(positions, (replicas, *positions.shape[1:]))
    timing = timed(lambda: predict(many)).scaled(1000 / replicas)
    name = f"iqagp_jax, {model.n_train} geometries with forces"
    return Peer(name, Atoms(model.species).get_chemical_formula(), replicas, *timing)


def time_sgdml(positions, species, replicas, use_torch):
    """`Peer` of sGDML's predictor with as many training geometries as ``positions`` (n, N, 3), no symmetries, random weights.

    What it costs does not depend on the weights; with symmetries it would cost more.
    """
    from sgdml.predict import GDMLPredict
    from sgdml.utils.desc import Desc

    n, n_atoms, _ = positions.shape
    described, _ = Desc(n_atoms).from_R(positions.reshape(n, -1))
    model = {
        "type": "m",
        "z": np.array([atomic_numbers[s] for s in species]),
        "R_desc": described.T,
        "R_d_desc_alpha": 1e-4 * np.random.default_rng(0).normal(size=described.shape),
        "c": 0.0,
        "std": 1.0,
        "sig": 20,
        "perms": np.arange(n_atoms)[None],
        "tril_perms_lin": np.arange(described.shape[1]),
    }
    predictor = GDMLPredict(model, use_torch=use_torch, max_processes=1)
    many = np.resize(positions, (replicas, n_atoms, 3)).reshape(replicas, -1)
    name = f"sGDML ({'torch' if use_torch else 'NumPy'}), {n} geometries"
    timing = timed(lambda: predictor.predict(many)).scaled(1000 / replicas)
    return Peer(name, Atoms(species).get_chemical_formula(), replicas, *timing)


def run(cases, calculators=(), peers=True, dft=False, progress=lambda cases: cases):
    """All figures as plain data for JSON: the machine and its peaks, a `Row` of every `Case`, and a `Peer` of the others.

    Parameters
    ----------
    calculators: other programs by the names that `ase_calculator` takes.
    peers: whether to time our own calculator in ASE and, where installed, sGDML's predictor and GFN2-xTB.
    dft: whether to time B3LYP/6-31+G(d,p) by PySCF once (10 seconds).
    progress: wraps the cases, as a progress bar does.
    """
    calculators = {name: ase_calculator(name) for name in calculators}  # a wrong name is told before hours of timing
    peak = {dtype: peaks(dtype) for dtype in sorted({case.dtype for case in cases})}
    rows = [measure(case, peak[case.dtype]) for case in progress(cases)]
    errors = {case: _float32_error(case) for case in cases if case.dtype == "float32"}
    return {
        "machine": {"cpus": len(os.sched_getaffinity(0)), "devices": [str(device) for device in jax.devices()]},
        "versions": {name: version(name) for name in ("iqagp-jax", "jax", "jaxlib", "numpy")},
        "peaks": {dtype: asdict(found) for dtype, found in peak.items()},
        "rows": [row.as_dict() for row in rows],
        "float32_errors": [{"case": asdict(c), "energy_eV": e, "force_eV_angstrom": f} for c, (e, f) in errors.items()],
        "peers": [peer._asdict() for peer in _time_peers(calculators, peers, dft)],
    }


def _time_peers(calculators, peers, dft):
    """All on malondialdehyde, ours and sGDML's models of 160 geometries with forces."""
    molecule = load_dataset("malondialdehyde")[:160]
    atoms = Atoms(molecule.species, molecule.positions[0])
    found = [time_ase(calculator, atoms, name) for name, calculator in calculators.items()]
    if peers:
        case = Case(len(atoms), len(molecule), 1, features="inverse-distances", forces=True)
        model = replace(synthetic_model(case), species=molecule.species)
        found.append(time_ase(IQAGP(model), atoms, "iqagp_jax through ASE, 160 geometries with forces"))
        found += [time_batch(model, molecule.positions, n) for n in (1, 100)]
    if peers and find_spec("tblite"):
        found.append(time_ase(ase_calculator("tblite.ase:TBLite"), atoms, "GFN2-xTB (tblite)"))
    if peers and find_spec("sgdml"):
        kinds = [False, True] if find_spec("torch") else [False]
        found += [time_sgdml(molecule.positions, molecule.species, n, kind) for kind in kinds for n in (1, 100)]
    if dft:
        found.append(_time_dft(atoms))
    return found


def _float32_error(case):
    model = synthetic_model(case)
    return rounding_error(model, starts(model, 20), np.float32)


def _time_dft(atoms):
    """Energy and forces of the reference method, once."""
    from iqagp_jax.labels import scf

    began = time.perf_counter()
    scf.forces(scf.converge(scf.mean_field(scf.build_molecule(atoms.symbols, atoms.positions, "6-31+g(d,p)"), "b3lyp")))
    ms = 1000 * (time.perf_counter() - began)
    return Peer("B3LYP/6-31+G(d,p) (PySCF)", atoms.get_chemical_formula(), 1, ms, ms, ms)
