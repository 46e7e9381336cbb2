"""Float64 within, whatever JAX's global mode, which is left alone."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
"""JAX's and NumPy's arrays, in signatures"""


def require_float64():
    """ValueError outside JAX's 64-bit mode, where weights of 10^4 would cost a result its kcal/mol."""
    if jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise ValueError("expected JAX's 64-bit mode, found it off: call this within `with jax.enable_x64(True):`")


def double(positions):
    """Positions in float64, to be called in 64-bit mode; a warning where JAX itself held them in float32."""
    if isinstance(positions, jax.Array) and positions.dtype != jnp.float64:
        warnings.warn(
            f"positions are {positions.dtype}: JAX's 64-bit mode is off, so they and their gradients are rounded to"
            " about 1e-7; use `with jax.enable_x64(True):` or JAX_ENABLE_X64=1 for float64 throughout",
            stacklevel=4,
        )
    return jnp.asarray(positions, dtype=jnp.float64)


def exact(results):
    """Results as NumPy arrays, unless JAX is tracing: JAX's own would turn float32 where its 64-bit mode is off."""
    return jax.tree.map(lambda x: x if isinstance(x, jax.core.Tracer) else np.asarray(x), results)
