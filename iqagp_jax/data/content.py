"""What was read must be: numbers of a shape, finite, of a sensible size. Readers of files ask; nothing compiled does."""

from typing import Any

import numpy as np

from iqagp_jax.system.elements import check_species

LARGEST = 1e15
"""No energy, length, weight or angle is as large, in any unit: a number beyond it is damage."""

SMALLEST = 1 / LARGEST
"""No length or variance that is divided by is as small."""


def numbers(
    name: str, value: Any, shape: tuple[int | None, ...], least: float = -np.inf, infinite: bool = False, kinds: str = "fiu"
) -> np.ndarray:
    """The value as an array; ValueError, in a sentence, where it is something else than such numbers.

    Parameters
    ----------
    value: an array, or nested lists as JSON has them.
    shape: its shape; None where any length will do.
    least: what none is below.
    infinite: whether they may be as large as one likes, infinity included.
    kinds: NumPy's letters of the types: "fiu" for numbers, "iu" for whole ones, "b" for yes and no.
    """
    try:
        found = np.asarray(value)
        # Among numbers in a list NumPy would take "yes" for 1.
        if isinstance(value, list) and "b" not in kinds and any(isinstance(x, bool) for x in np.array(value, object).flat):
            found = np.asarray(None)
    except ValueError:  # lists of several lengths
        found = np.asarray(None)
    if found.dtype.kind not in kinds and not (found.size == 0 and not isinstance(value, np.ndarray)):
        wanted = {"b": "yes or no", "iu": "whole numbers"}.get(kinds, "numbers")
        raise ValueError(f"expected {wanted} as {name}, found {_shortened(value)}")
    if found.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, found.shape, strict=True)):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"expected {name} of shape ({wanted}), found ({', '.join(map(str, found.shape))})")
    most = np.inf if infinite else LARGEST
    if not ((odd := ~((found >= least) & (np.abs(found) <= most))).any()):
        return found
    limits = f" of at least {least:g}" if np.isfinite(least) else ""
    raise ValueError(f"expected {'' if infinite else 'finite '}numbers{limits} as {name}, found {found[odd].flat[0]:g}")


def one_molecule(species: Any, positions: Any) -> int:
    """The number N of atoms with a geometry (N, 3) in angstrom; ValueError, in a sentence, for other symbols and numbers."""
    if not isinstance(species, tuple) or not species or not all(isinstance(s, str) for s in species):
        raise ValueError(f"expected chemical symbols as species, found {_shortened(species)}")
    check_species(species)
    numbers("positions", positions, (len(species), 3))
    return len(species)


def _shortened(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    words = repr(value)
    return words if len(words) <= 40 else words[:40] + " ..."
