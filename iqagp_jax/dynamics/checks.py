"""Options of runs that are not what they should be get a sentence."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from iqagp_jax.system.geometry import FARTHEST

MOST_STEPS = 1e15
"""Time steps that are counted; a year of the fastest machines makes fewer."""


def require_positive(what: str, value: Any) -> None:
    """ValueError unless a number is above zero and finite."""
    if not isinstance(value, Real) or not 0 < float(value) < np.inf:
        raise ValueError(f"expected {what} above zero, found {value!r}; give a positive number")


def check_integer(what: str, value: Any, least: int) -> None:
    """ValueError unless a number is whole, of 64 bits, and not below ``least``."""
    if not isinstance(value, int | np.integer) or not least <= value < 2**63:
        raise ValueError(f"expected {what} as an integer not below {least}, found {value!r}; correct it")


def multiple(what: str, whole: float, of_what: str, part: float) -> int:
    """How many times ``part`` fits into ``whole``, both in fs."""
    require_positive(f"a {what} in fs", whole)
    require_positive(f"a {of_what} in fs", part)
    if whole > MOST_STEPS * part:
        raise ValueError(f"expected a {what} of at most {MOST_STEPS:.0e} {of_what}s, found {whole:g} fs; give a shorter one")
    count = max(round(whole / part), 1)
    if abs(whole - count * part) > 1e-6 * whole:
        raise ValueError(
            f"expected the {what} to be a multiple of the {of_what} ({part:g} fs), found {whole:g} fs; take {count * part:g} fs"
        )
    return count


def check_temperatures(temperature: Any, replicas: int) -> np.ndarray:
    """Temperatures (R,) in K, from one for all or one a replica."""
    targets = np.array(temperature, dtype=np.float64)
    if targets.shape not in [(), (replicas,)]:
        raise ValueError(
            f"expected one temperature in K or one for each of {replicas} replicas, found shape {targets.shape}; give as"
            " many temperatures as starts"
        )
    if not (np.isfinite(targets) & (targets > 0)).all():
        raise ValueError(f"expected temperatures in K above zero, found {temperature!r}; give positive numbers")
    return np.array(np.broadcast_to(targets, replicas))


def check_starts(starts: Any, species: Sequence[str]) -> np.ndarray:
    """Starts (R, N, 3) as an array of finite numbers."""
    starts = np.asarray(starts, dtype=np.float64)
    expected = (len(species), 3)
    if starts.ndim != 3 or len(starts) == 0 or starts.shape[1:] != expected or len(species) < 2:
        raise ValueError(
            f"expected starts of shape (replicas, {len(species)}, 3) of at least two atoms, found {starts.shape}; give"
            f" one row for each of the atoms {' '.join(species)}"
        )
    if not (np.abs(starts) < FARTHEST).all():
        raise ValueError(
            f"expected finite positions within {FARTHEST:g} angstrom, found a NaN, an infinity or more; check the geometries"
        )
    return starts
