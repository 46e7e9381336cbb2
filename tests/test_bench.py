"""The benchmark's arithmetic and its command, on molecules too small to mean anything; no test looks at a time."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_cli import iqagp

from iqagp_jax import bench
from iqagp_jax.families.gp.kernels import Matern92


def test_floor_of_the_products_and_exponentials():
    peak = bench.Peaks(gflops=100.0, gexp=2.0)
    alf = bench.synthetic_model(bench.Case(5, 10))
    # 9 features of which 2 are periodic and so embedded twice: 5 atoms, 4 x 11 x 10 operations and 10 exponentials each
    assert bench.floor_ms(alf, peak) == pytest.approx(1e3 * 5 * (4 * 11 * 10 / 100e9 + 10 / 2e9))
    shared = bench.synthetic_model(bench.Case(5, 10, features="inverse-distances", forces=True))
    # 10 pairs, one set of products and one of exponentials for all atoms
    assert bench.floor_ms(shared, peak) == pytest.approx(1e3 * (8 * 10 * 10 / 100e9 + 10 / 2e9))
    apart = replace(shared, kernel=Matern92(np.linspace(5.0, 6.0, 5)))
    assert bench.floor_ms(apart, peak) == pytest.approx(1e3 * (8 * 10 * 10 / 100e9 + 5 * 10 / 2e9))


def test_exponents():
    sizes = np.array([10, 20, 40])
    assert bench.exponent(sizes, 3 * sizes**2) == pytest.approx(2)


def test_command_writes_what_it_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "SECONDS", 1e-4)
    monkeypatch.setattr(bench, "MATRIX", 16)
    sizes = ["--atoms", 4, "--train", 5, "--replicas", 2]
    assert iqagp("bench", *sizes, "--no-peers", "--peer", "emt", "--json", tmp_path / "b.json") == 0
    report = json.loads((tmp_path / "b.json").read_text())
    assert [row["case"]["dtype"] for row in report["rows"]] == ["float64", "float32"]
    for row in report["rows"]:
        assert 0 < row["ms_least"] <= row["ms"] <= row["ms_greatest"]
        assert row["share_of_floor"] == pytest.approx(row["floor_ms"] / row["ms"])
    assert [peer["name"] for peer in report["peers"]] == ["emt"]
    assert "emt" in capsys.readouterr().out


def test_more_threads_than_cores_get_a_sentence(capsys):
    assert iqagp("bench", "--threads", 10000) == 2
    assert "expected at most" in capsys.readouterr().err
