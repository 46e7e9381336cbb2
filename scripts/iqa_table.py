"""The table of the labels' accuracy: topological atoms against AIMAll, additivity, smoothness and cost.

    python scripts/iqa_table.py                      # every row (about 20 minutes on one core)
    python scripts/iqa_table.py aimall additivity    # these rows only

Rows: `aimall` (two water geometries, every IQA component), `ferebus` (59 water geometries, energies and charges),
`additivity` (20 malondialdehyde geometries up to 1500 K; the numbers of rays were chosen on them), `unseen` (20 others,
drawn at random), `smoothness` (along an O-H stretch of water) and `cost`. Reference data are
looked for in ../shared/reference or $IQAGP_REFERENCE. Times are CPU seconds of one thread.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import time
from itertools import islice

import numpy as np
from dialect import parsed, reference_files
from pyscf import dft

from iqagp_jax import load_dataset
from iqagp_jax.families.fflux.files import geometries, read_csv
from iqagp_jax.formats.aimall import read_int, read_sum
from iqagp_jax.labels import scf
from iqagp_jax.labels.iqa import integrate_atoms
from iqagp_jax.labels.partitions import PARTITIONS
from iqagp_jax.units import BOHR

TEMPERATURES = (300, 500, 700, 1000, 1500)

COMPONENTS = ("E_IQA", "T", "Vne/2", "Ven/2", "VeeC", "VeeX", "Vnn/2", "VeeX0")


def row(check, figure, unit, bar):
    verdict = "met" if figure <= bar else "NOT MET"
    print(f"| {check} | {figure:.4g} {unit} | {bar:g} {unit} | {verdict} |", flush=True)


def converge(species, positions, basis, xc="b3lyp", exact=False):
    """Converged mean field; ``exact`` without density fitting on a fine grid, as other programs have it."""
    mol = scf.build_molecule(species, positions, basis)
    if not exact:
        return scf.converge(scf.mean_field(mol, xc))
    mf = dft.RKS(mol, xc=xc)
    mf.grids.atom_grid, mf.grids.prune, mf.conv_tol = (99, 590), None, 1e-10
    mf.kernel()
    return mf


def topological(mf):
    return integrate_atoms(mf, {"qtaim": PARTITIONS["qtaim"]})["qtaim"]


def read_aimall(folder):
    """Positions (N, 3) in bohr, components (N, 8) in hartree and charges (N,) of AIMAll's files in a folder."""
    (summary,) = folder.glob("*.sum")
    molecule = read_sum(summary, folder)
    halves = [getattr(molecule, name) / 2 for name in ("nucleus_electrons", "electrons_nuclei", "coulomb")]
    exchange = [read_int(folder / f"{name.lower()}.int").components["VeeX0(A,A) + VeeX0(A,A')/2"] for name in molecule.names]
    columns = [molecule.energy, molecule.kinetic, *halves, molecule.exchange_correlation]
    return molecule.positions, np.column_stack([*columns, molecule.nuclear_repulsion / 2, exchange]), molecule.charges


def aimall(options):
    if not (reference := reference_files("aimall_water", options.short)):
        return
    worst, worst_charge = 0.0, 0.0
    for folder in sorted(reference.iterdir())[: options.at_most]:
        positions, expected, charges = read_aimall(folder)
        mf = converge("OHH", positions * BOHR, "6-31+g(d,p)", exact=True)
        a = topological(mf)
        found = [a.energy, a.kinetic, a.nucleus_electrons / 2, a.electrons_nuclei / 2, a.coulomb / 2]
        hybrid = mf._numint.hybrid_coeff(mf.xc)
        found += [a.exchange_correlation, a.nuclear_repulsion / 2, a.exact_exchange / hybrid]
        error = 1e3 * (np.column_stack(found) - expected)
        charge_error = 1e3 * (mf.mol.atom_charges() - a.population - charges)
        print(f"{folder.name}: ours - AIMAll in mHa and me\n     " + "".join(f"{name:>9}" for name in (*COMPONENTS, "charge")))
        for symbol, values, charge in zip("OHH", error, charge_error, strict=True):
            print(f"   {symbol} " + "".join(f"{value:9.4f}" for value in (*values, charge)))
        worst, worst_charge = max(worst, abs(error).max()), max(worst_charge, abs(charge_error).max())
    row("AIMAll water, worst component", worst, "mHa", 0.1)
    row("AIMAll water, worst charge", worst_charge, "me", 0.2)


def ferebus(options):
    if not (reference := reference_files("ferebus/water", options.short)):
        return
    files = ("WATER_O1_EXAMPLE_TRAINING_SET.csv", "WATER_H2_TRAINING_SET.csv", "WATER_H3_TRAINING_SET.csv")
    (x, _), *_ = tables = [read_csv(reference / name) for name in files]
    expected, charges = (np.column_stack([table[name] for _, table in tables]) for name in ("iqa", "q00"))
    errors = []
    for k, positions in enumerate(geometries(x, (0, 1, 2), 3)[: options.at_most]):
        mf = converge("OHH", positions, "aug-cc-pvtz", exact=True)
        a = topological(mf)
        errors.append(1e3 * np.array([a.energy - expected[k], mf.mol.atom_charges() - a.population - charges[k]]))
        total = 1e3 * (mf.e_tot - expected[k].sum())
        energy, charge = errors[-1].round(4)
        print(f"   {k:2d}  mHa {energy}  me {charge}  SCF - sum of iqa {total:.4f} mHa", flush=True)
    energy_rms, charge_rms = np.sqrt(np.mean(np.square(errors), axis=0))
    row("ferebus water, RMS of E_IQA(O)", energy_rms[0], "mHa", 0.25)
    row("ferebus water, RMS of E_IQA(H)", energy_rms[1:].max(), "mHa", 0.05)
    row("ferebus water, RMS of q00", charge_rms.max(), "me", 0.5)


def malondialdehyde(count):
    """Species and ``count`` geometries of the embedded dataset, spread evenly over its temperatures."""
    data = load_dataset("malondialdehyde")
    for temperature in TEMPERATURES:
        (known,) = np.nonzero(data.origin["temperature"] == temperature)
        for k in known[np.linspace(0, len(known) - 1, count // len(TEMPERATURES)).astype(int)]:
            yield temperature, data.species, data.positions[k]


def others(count, seed=1):
    """Like `malondialdehyde`, geometries drawn at random among those on which nothing was tuned."""
    data, rng = load_dataset("malondialdehyde"), np.random.default_rng(seed)
    tuned = np.array([positions for *_, positions in malondialdehyde(20)])
    unknown = [not np.any(np.all(positions == tuned, axis=(1, 2))) for positions in data.positions]
    for temperature in TEMPERATURES:
        (known,) = np.nonzero((data.origin["temperature"] == temperature) & unknown)
        for k in rng.choice(known, count // len(TEMPERATURES), replace=False):
            yield temperature, data.species, data.positions[k]


def additivity(options, frames=malondialdehyde, which="malondialdehyde"):
    remainders, missing = [], []
    for temperature, species, positions in islice(frames(20), options.at_most):
        mf = converge(species, positions, "6-31+g(d,p)")
        a = topological(mf)
        remainders.append(1e3 * (mf.e_tot - a.energy.sum()))
        missing.append(mf.mol.nelectron - a.population.sum())
        print(f"   {temperature:5d} K   remainder {remainders[-1]:8.4f} mHa   missing {missing[-1]:9.6f} e", flush=True)
    row(f"{which}, largest remainder", np.max(np.abs(remainders)), "mHa", 0.5)
    row(f"{which}, most electrons missing", np.max(np.abs(missing)), "e", 0.0005)


def unseen(options):
    additivity(options, others, "malondialdehyde, 20 others")


def smoothness(options):
    lengths = np.linspace(0.86, 1.06, 15)[: options.at_most]
    degree = min(6, len(lengths) - 2)
    energies = {name: [] for name in PARTITIONS}
    angle = np.radians(104.5)
    for length in lengths:
        positions = [[0, 0, 0], [length, 0, 0], [0.96 * np.cos(angle), 0.96 * np.sin(angle), 0]]
        atoms = integrate_atoms(converge("OHH", positions, "6-31+g(d,p)"), PARTITIONS)
        for name, a in atoms.items():
            energies[name].append(a.energy)
    x = (lengths - lengths.mean()) / np.ptp(lengths)
    for name, values in energies.items():
        residual = values - np.polynomial.polynomial.polyval(x, np.polynomial.polynomial.polyfit(x, values, degree)).T
        largest = 1e6 * np.sqrt(np.mean(residual**2, axis=0)).max()
        row(f"O-H stretch of water, residual {name}", largest, "microhartree", 15 if name == "qtaim" else 0.1)


def cost(_):
    (_, species, positions), *_ = malondialdehyde(5)

    def seconds(function, *arguments):
        start = time.process_time()
        result = function(*arguments)
        return time.process_time() - start, result

    scf_time, mf = seconds(converge, species, positions, "6-31+g(d,p)")
    integrate_atoms(mf, PARTITIONS)  # compiles
    print(f"   SCF {scf_time:.1f} s")
    for name, partition in PARTITIONS.items():
        times = [seconds(integrate_atoms, mf, {name: partition})[0] for _ in range(2)]
        row(f"malondialdehyde, cost of {name}", min(times), "s", 12 if name == "qtaim" else 3)


def main():
    rows = {check.__name__: check for check in (aimall, ferebus, additivity, unseen, smoothness, cost)}
    arguments = {
        "rows": {"nargs": "*", "choices": [*rows, []], "help": "rows to compute"},
        "--at-most": {"type": int, "help": "geometries of a row; by default all"},
    }
    usual, short = {"rows": [*rows], "at_most": None}, {"rows": ["aimall", "smoothness"], "at_most": 3}
    options = parsed(__doc__, arguments, usual, short)
    scf.single_thread()
    for name in options.rows:
        rows[name](options)


if __name__ == "__main__":
    main()
