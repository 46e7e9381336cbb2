"""Replicas spread over JAX's devices: each device advances its own share, and nothing passes between them.

On a CPU one device per core is faster than all cores within one operation, see docs/speed.md. Several GPUs need nothing.
Several processes, on one machine or many, share the replicas after `jax.distributed.initialize`: each calls the same functions
with the same arguments and gets the same results. `use_cores` and `keep_compiled` are settings of a whole program, made before
JAX computes anything.
"""

import ctypes
import os
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import numpy.linalg._umath_linalg
import scipy.linalg.cython_blas
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

OPENBLAS = (
    (scipy.linalg.cython_blas.__file__, "scipy_openblas_{}_num_threads"),
    (numpy.linalg._umath_linalg.__file__, "scipy_openblas_{}_num_threads64_"),
)
"""Modules of SciPy and NumPy, and what the functions of their OpenBLAS are called."""


def over_devices(function, replicas):
    """``function`` of pytrees whose leaves have the replicas as leading axis, each device doing its share of them.

    Where their number does not divide that of the ``replicas``, the last replica is done more than once. With one device it
    is the function itself. Arguments and results are ordinary arrays to the caller. The share of a device is a computation
    like that of fewer replicas: energies agree to rounding whatever the number of devices, and bit for bit at the same number.
    """
    count = min(len(jax.devices()), replicas)
    if jax.process_count() > 1 and count < len(jax.devices()):
        raise ValueError(
            f"expected a replica for each of {len(jax.devices())} devices, found {replicas}; start fewer processes"
        )
    if count == 1:
        return function
    mesh = Mesh(np.array(jax.devices()[:count]), ("replicas",))
    spec = PartitionSpec("replicas")
    shared = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    if replicas % count == 0:
        return shared
    repeated = np.minimum(np.arange(-(-replicas // count) * count), replicas - 1)

    def padded(*arguments):
        results = shared(*jax.tree.map(lambda x: x[repeated], arguments))
        return jax.tree.map(lambda x: x[:replicas], results)

    return padded


def compiled(function, *arguments):
    """``function`` of pytrees of replicas `over_devices`, compiled once for arguments like these, wherever they will lie."""
    replicas = len(jax.tree.leaves(arguments)[0])
    if jax.process_count() > 1:
        arguments = jax.device_get(arguments)
    program = jax.jit(over_devices(function, replicas)).lower(*arguments).compile()

    def apply(*arguments):
        if jax.process_count() == 1:
            return program(*jax.device_put(arguments, program.input_shardings[0]))
        results = program(*jax.device_put(jax.device_get(arguments), program.input_shardings[0]))
        return multihost_utils.process_allgather(results, tiled=True)

    return apply


def agreed(value):
    """What the first of the processes says, a pytree: for what follows from the clock, a key, or rounding."""
    return value if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(value)


def meet(name):
    """Wait for the other processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def use_cores(count=None):
    """Make one CPU device of each of ``count`` cores, all that this process may use by default, and use no other cores."""
    available = sorted(os.sched_getaffinity(0))
    if count is not None and count > len(available):
        raise ValueError(f"expected at most {len(available)} threads, one a core, found {count}; take fewer")
    os.sched_setaffinity(0, available[:count])
    jax.config.update("jax_num_cpu_devices", len(available[:count]))


@contextmanager
def one_blas_thread():
    """Within it a factor, a triangular solve or a product of NumPy takes one thread; gives how many it would have taken.

    OpenBLAS' threads wait for each other in busy loops: an evaluation of a likelihood took five times as long beside other
    programs. JAX has its factors from SciPy's. Elsewhere than in the OpenBLAS that SciPy and NumPy bring nothing is changed.
    """
    threads = [t for t in map(_threads_of, *zip(*OPENBLAS, strict=True)) if t is not None]
    before = [get() for get, _ in threads]
    for _, use in threads:
        use(1)
    try:
        yield min([len(os.sched_getaffinity(0)), *before])
    finally:
        for (_, use), count in zip(threads, before, strict=True):
            use(count)


def _threads_of(library, names):
    """Functions that tell and set the threads of an OpenBLAS that a module of SciPy or NumPy was linked to; None without."""
    loaded = ctypes.CDLL(library)
    if not hasattr(loaded, names.format("set")):
        return None
    return getattr(loaded, names.format("get")), getattr(loaded, names.format("set"))


def keep_compiled():
    """Keep what is compiled for the next program, in ``iqagp_jax`` of the user's cache folder; returns that folder.

    What lies there is run, so it must be the user's alone: ValueError, in a sentence, where others can write to it.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iqagp_jax"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ValueError(f"expected a folder that only you can write to, found {folder}; mend its owner or chmod 700 it")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder
