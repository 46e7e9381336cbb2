"""Energies by CCSD(T): those of PySCF's plain functions, the limit by MP2, what is refused, and what becomes of them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from pyscf import cc, gto, lib, mp, scf
from test_cli import iqagp

from iqagp_jax.cli.labelling import planned
from iqagp_jax.data.extxyz import load_dataset
from iqagp_jax.data.level import Level
from iqagp_jax.families.gp.options import default_targets
from iqagp_jax.labels import coupled_cluster
from iqagp_jax.labels.campaign import begin
from iqagp_jax.labels.coupled_cluster import Bases
from iqagp_jax.labels.label import check_label, label_geometry, tell_t1
from iqagp_jax.labels.plan import LabelPlan, check
from iqagp_jax.modelfile import load_model
from iqagp_jax.potential import MadeBy
from iqagp_jax.references.choose import reference_of

WATER = np.array([[0.0, 0.0, 0.1173], [0.0, 0.7572, -0.4692], [0.0, -0.7572, -0.4692]])
PLAN = LabelPlan("ccsd(t)", "sto-3g", partitions=(), forces=False)
METHOD = ("--method", "ccsd(t)/sto-3g")

pytestmark = pytest.mark.labels


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other take a hundred times as long on a machine that others use too."""
    with lib.with_omp_threads(1):
        yield


def plain(basis, charge=0, spin=0):
    """Mean field by PySCF, not density-fitted."""
    mol = gto.M(atom=list(zip("OHH", WATER, strict=True)), basis=basis, charge=charge, spin=spin, verbose=0)
    return (scf.UHF if spin else scf.RHF)(mol).run(conv_tol=1e-10)


@pytest.mark.parametrize(("charge", "spin"), [(0, 0), (1, 1)])
def test_energy_is_that_of_plain_functions(charge, spin):
    coupled = cc.CCSD(plain("6-31g", charge, spin), frozen=1).run(conv_tol=1e-9)
    energy, t1 = coupled_cluster.energy("OHH", WATER, "6-31g", charge, spin)
    assert energy == pytest.approx(coupled.e_tot + coupled.ccsd_t(), abs=3e-6)
    # Hydrogen's valence electrons and oxygen's six of eight.
    singles = np.concatenate([np.ravel(t) for t in (coupled.t1 if spin else [coupled.t1])])
    assert t1 == pytest.approx(np.linalg.norm(singles) / np.sqrt(8 - charge), abs=1e-4)


@pytest.mark.parametrize(("charge", "spin"), [(0, 0), (1, 1)])
def test_limit_is_that_of_the_formula(charge, spin):
    small, large = plain("cc-pvdz", charge, spin), plain("cc-pvtz", charge, spin)
    second = [mp.MP2(mf, frozen=1).run().e_corr for mf in (small, large)]
    coupled = cc.CCSD(small, frozen=1).run()
    expected = large.e_tot + (27 * second[1] - 8 * second[0]) / 19 + coupled.e_corr + coupled.ccsd_t() - second[0]
    energy, _ = coupled_cluster.energy("OHH", WATER, "cc-pvdz+mp2/cbs(dt)", charge, spin)
    assert energy == pytest.approx(expected, abs=2e-4)  # of density fitting


def test_one_electron_has_nothing_to_correlate():
    energy, t1 = coupled_cluster.energy(["H"], np.zeros((1, 3)), "cc-pvdz+mp2/cbs(dt)", spin=1)
    assert (energy, t1) == (pytest.approx(-0.49981, abs=1e-5), 0.0)


def test_bases():
    assert Bases.of("6-31g") == ("6-31g", (), ())
    assert Bases.of("aug-cc-pVDZ+MP2/CBS(TQ)") == ("aug-cc-pvdz", ("aug-cc-pvtz", "aug-cc-pvqz"), (27, 64))


REFUSED = {
    "forces": ({"forces": True}, "gives energies alone, found forces asked for"),
    "atoms": ({"partitions": ("becke",)}, "gives energies alone, found becke atoms asked for"),
    "unknown basis": ({"basis": "cc-pvxz"}, "basis 'cc-pvxz' is not there for all of H O"),
    "limit of what": ({"basis": "cc-pvdz+mp2/cbs(dq)"}, "expected a basis for CCSD"),
    "another family": ({"basis": "6-31g+mp2/cbs(tq)"}, "expected a basis for CCSD"),
    "odd electrons": ({"charge": 1}, "9 electrons cannot have 0 unpaired ones"),
    "one spin alone": ({"charge": 6, "spin": 2}, "expected electrons of both spins to correlate, found 2 and 0"),
}


@pytest.mark.parametrize(("changes", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_it_cannot_label_is_told(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        check([Atoms("OHH", positions=WATER)], replace(PLAN, **changes))


def test_core_potentials_are_refused():
    with pytest.raises(ValueError, match="leaves the core of I to an effective potential"):
        check([Atoms("HI", positions=[[0, 0, 0], [0, 0, 1.6]])], replace(PLAN, basis="def2-svp"))


def test_what_does_not_converge_is_rejected(monkeypatch):
    monkeypatch.setattr(cc.ccsd.CCSDBase, "max_cycle", 2)
    assert label_geometry("OHH", WATER, PLAN) == {"rejected": "coupled cluster did not converge to 1e-06 hartree in 2 cycles"}


def test_a_label_tells_its_diagnostic():
    label = label_geometry("OHH", WATER, PLAN)
    check_label(label, "OHH", PLAN)
    with pytest.raises(ValueError, match="T1 diagnostic"):
        check_label({"energy": label["energy"]}, "OHH", PLAN)


def test_doubtful_references_are_told():
    tell_t1(np.array([0.004, 0.02]))
    with pytest.warns(UserWarning, match=r"exceeds 0.02 in 1 of 2 geometries \(up to 0.031\)"):
        tell_t1(np.array([0.004, 0.031]))


def test_from_geometries_to_a_dataset(tmp_path, capsys):
    rng = np.random.default_rng(3)
    water = [Atoms("OHH", positions=WATER + 0.05 * rng.normal(size=(3, 3))) for _ in range(2)]
    write(tmp_path / "water.xyz", water, format="extxyz")
    folder, labelled = tmp_path / "campaign", tmp_path / "labelled.extxyz"
    assert iqagp("label", tmp_path / "water.xyz", "--campaign", folder, *METHOD, "--forces") == 2
    assert "gives energies alone, found forces asked for" in " ".join(capsys.readouterr().err.split())
    campaign = begin(folder, tmp_path / "water.xyz", **planned(METHOD[1], *7 * [None]))
    with ThreadPoolExecutor(1) as threads:
        campaign.run(threads, 1)
    assert iqagp("campaign", "pack", folder) == 0
    assert iqagp("campaign", "collect", folder, "-o", labelled) == 0
    data = load_dataset(labelled)
    assert (len(data), data.forces, data.atomic_energies) == (2, None, None)
    assert data.energy == pytest.approx([label_geometry("OHH", r, PLAN)["energy"] for r in data.positions], abs=1e-6)
    assert default_targets(data) == ("energy",)
    assert set(data.free_atoms) == {"H", "O"}
    assert data.extra["t1_diagnostic"].shape == (2,)
    assert data.level.same_energies(Level("ccsd(t)", "sto-3g", "spherical, frozen core"))


def test_no_verdict_is_asked_of_it(tmp_path):
    model = load_model(Path(__file__).parent / "golden/forces.safetensors")
    taught = replace(model, made_by=MadeBy(PLAN.level, ("energy",)))
    with pytest.raises(ValueError, match="gives energies alone, and models are held to forces"):
        reference_of("dft", taught, tmp_path)
