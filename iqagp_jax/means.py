"""Prior means: what a potential believes far from its data. Pure JAX functions positions (N, 3) -> atomic energies (N,).

The named means are constants per atom, from the training atomic energies E_A (eV). The range is max - min over the
thermal frames only: deliberately distorted ones would inflate it. Means shifted upwards are the idea of the
FFLUX group; the exact formulas of their paper are not in our material, ours are:

| name   | constant for atom A                                         |
| ------ | ----------------------------------------------------------- |
| `zero` | 0                                                           |
| `min`  | min E_A                                                     |
| `mf1`  | mean E_A                                                    |
| `mf2`  | max E_A                                                     |
| `mf3`  | max E_A + range                                             |
| `mf4`  | energy of the free atom at the same level of theory         |
| `mf5`  | max E_A + 5 ranges                                          |
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

PRIOR_MEANS = ("zero", "min", "mf1", "mf2", "mf3", "mf4", "mf5")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConstantMean:
    """The same atomic energies ``values`` (N,) in eV wherever the atoms are."""

    values: jax.Array

    def __call__(self, positions):
        """(N, 3) angstrom -> (N,) eV"""
        return self.values


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SumOfMeans:
    """m_1(R) + m_2(R)."""

    first: Callable
    second: Callable

    def __call__(self, positions):
        """(N, 3) angstrom -> (N,) eV"""
        return self.first(positions) + self.second(positions)


def constant_mean(name, atomic_energies, thermal, species, free_atoms):
    """The named prior mean of training ``atomic_energies`` (n, N) in eV, as a `ConstantMean`.

    ``thermal`` (n,) marks the frames of unbiased dynamics, ``free_atoms`` maps species to eV (needed by mf4 only).
    """
    if name not in PRIOR_MEANS:
        raise ValueError(f"expected a prior mean among {', '.join(PRIOR_MEANS)} or a function, found {name!r}")
    usual = atomic_energies[thermal] if np.any(thermal) else atomic_energies
    low, high = usual.min(0), usual.max(0)
    if name == "mf4":
        missing = sorted(set(species) - set(free_atoms))
        if missing:
            raise ValueError(
                f"prior mean mf4 needs the free-atom energies of {', '.join(missing)}, which the dataset does not have;"
                " add IsolatedAtom frames or choose another mean"
            )
        values = np.array([free_atoms[s] for s in species])
    else:
        values = {
            "zero": np.zeros(atomic_energies.shape[1]),
            "min": low,
            "mf1": usual.mean(0),
            "mf2": high,
            "mf3": high + (high - low),
            "mf5": high + 5 * (high - low),
        }[name]
    with jax.enable_x64(True):
        return ConstantMean(jnp.asarray(values))
