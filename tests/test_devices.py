"""Replicas on several devices: the same energies, and the same bits at the same number of devices."""

import ctypes
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqagp_jax import load_trajectory, save_model
from iqagp_jax.machine.devices import OPENBLAS, keep_compiled, one_blas_thread, use_cores

RUN = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
import numpy as np
from iqagp_jax import energy_fn, energy_variance, load_model
from iqagp_jax import simulate
from iqagp_jax.system.failure import failure_rule
from iqagp_jax.dynamics.run import UncertaintyLimit
model = load_model(sys.argv[2])
assert len(jax.devices()) == int(sys.argv[1])
rule, starts = failure_rule(model.species, model.reference), np.repeat(model.reference[None], int(sys.argv[4]), axis=0)
limit = UncertaintyLimit(energy_variance(model), 100.0)
options = {"temperature": 300.0, "time": 0.1, "uncertainty_limit": limit, "progress": False}
simulate(energy_fn(model), rule, starts, sys.argv[3], **options)
"""


def run(devices, model, folder, replicas=4):
    return subprocess.run(
        [sys.executable, "-c", RUN, str(devices), model, folder, str(replicas)], capture_output=True, text=True
    )


def test_this_jaxlib_sums_rightly_on_several_cores(x64):
    """jaxlib 0.10.2 and 0.11.0 do not (github.com/jax-ml/jax/issues/39103), and so gave wrong covariances."""
    numbers = jnp.arange(16385.0)
    rows = jnp.stack([numbers, 0 * numbers, 0 * numbers], axis=1)
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
    np.testing.assert_array_equal(squares, numbers**2)


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):
    """Folders of a run on one device, and of two on two."""
    folder = tmp_path_factory.mktemp("devices")
    save_model(model, folder / "model.safetensors")
    for devices, name in ((1, "one"), (2, "two"), (2, "again")):
        found = run(devices, folder / "model.safetensors", folder / name)
        assert found.returncode == 0, found.stderr
    return folder


def test_energies_do_not_depend_on_the_devices(runs):
    one, two = (load_trajectory(runs / name) for name in ("one", "two"))
    np.testing.assert_allclose(one.energies[:2], two.energies[:2], rtol=0, atol=1e-7)
    assert two.alive.all() and np.ptp(two.energies[1]) > 0


def test_the_same_number_gives_the_same_bits(runs):
    two, again = (load_trajectory(runs / name) for name in ("two", "again"))
    np.testing.assert_array_equal(two.positions, again.positions)


def test_another_number_does_not_go_on(runs):
    found = run(1, runs / "model.safetensors", runs / "two")
    assert found.returncode and "found a different devices (2 there, 1 here)" in found.stderr


def test_replicas_that_no_two_devices_share_alike(runs):
    found = run(2, runs / "model.safetensors", runs / "three", replicas=3)
    assert found.returncode == 0, found.stderr
    three, four = (load_trajectory(runs / name) for name in ("three", "one"))
    np.testing.assert_allclose(three.positions, four.positions[:, :3], atol=1e-7)


def test_more_threads_than_cores():
    with pytest.raises(ValueError, match=r"expected at most .* threads, one a core, found 10000"):
        use_cores(10_000)


@pytest.mark.parametrize(("module", "names"), OPENBLAS)
def test_one_blas_thread_while_it_lasts(module, names):
    library = ctypes.CDLL(module)
    if not hasattr(library, names.format("get")):
        pytest.skip("NumPy or SciPy has another BLAS here")
    count, use = (getattr(library, names.format(what)) for what in ("get", "set"))
    before = count()
    use(2)
    try:
        with pytest.raises(KeyError), one_blas_thread() as threads:
            assert count() == 1 <= threads <= 2
            raise KeyError
        assert count() == 2
    finally:
        use(before)


def test_what_is_compiled_is_kept_in_private(tmp_path, monkeypatch):
    command = (
        "import jax; from iqagp_jax.machine.devices import keep_compiled; print(keep_compiled()); jax.jit(lambda x: x + x)(1.0)"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    folder = tmp_path / "iqagp_jax"
    assert found.stdout.strip() == str(folder), found.stderr
    assert folder.stat().st_mode & 0o077 == 0 and list(folder.iterdir())
    folder.chmod(0o777)
    with pytest.raises(ValueError, match="only you can write to"):
        keep_compiled()


PROCESS = """
import sys
import jax
jax.distributed.initialize(sys.argv[5], 2, int(sys.argv[6]))
"""


def test_processes_share_the_replicas_as_devices_do(runs, tmp_path):
    """Two processes with a device each give the bits of one process with two."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", PROCESS + RUN.replace("== int(sys.argv[1])", "== 2"), "1"]
    arguments = [runs / "model.safetensors", tmp_path / "run", "4", address]
    processes = [subprocess.Popen([*command, *arguments, str(k)], stderr=subprocess.PIPE, text=True) for k in range(2)]
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    two, apart = (load_trajectory(folder) for folder in (runs / "two", tmp_path / "run"))
    np.testing.assert_array_equal(apart.positions, two.positions)
