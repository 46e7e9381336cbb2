"""Replicas spread over JAX's devices: each device advances its own share, and nothing passes between them.

On a CPU one device per core is faster than all cores within one operation, see docs/speed.md. Several GPUs need nothing.
"""

import os

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec


def over_devices(function, replicas):
    """``function`` of pytrees whose leaves have the replicas as leading axis, each device doing its share of them.

    As many devices work as divide the number of ``replicas``; with one, it is the function itself. Arguments and results
    are ordinary arrays to the caller. The share of a device is a computation like that of fewer replicas: energies agree
    to rounding whatever the number of devices, and bit for bit at the same number.
    """
    count = max(n for n in range(1, len(jax.devices()) + 1) if replicas % n == 0)
    if count == 1:
        return function
    mesh = Mesh(np.array(jax.devices()[:count]), ("replicas",))
    spec = PartitionSpec("replicas")
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def use_cores(count=None):
    """Make one CPU device of each of ``count`` cores, all that this process may use by default, and use no other cores.

    A global setting, for programs: before JAX computes anything.
    """
    available = sorted(os.sched_getaffinity(0))
    if count is not None and count > len(available):
        raise ValueError(f"expected at most {len(available)} threads, one a core, found {count}; take fewer")
    os.sched_setaffinity(0, available[:count])
    jax.config.update("jax_num_cpu_devices", len(available[:count]))
