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

Means that know physics are repulsions between all pairs of atoms, smooth and finite down to distance zero, of which every
atom has half:

| name         | pair energy                                                                       |
| ------------ | --------------------------------------------------------------------------------- |
| `born-mayer` | 40 kcal/mol exp(-(r - 0.8 s) / 0.2 angstrom), s the sum of the covalent radii     |
| `zbl`        | Z Z' e^2 / r phi(r / a), the screened repulsion of nuclei; see `ZBL`              |

They join with "+", as in "mf5+born-mayer". The constant of a sum is that of what the repulsions leave, E_A - m_A, so that
the Gaussian process sees the same kind of residual with and without them.

Any potential can be a prior mean, too: `Base`, such as one of a cheaper level of theory, to which the process learns the
difference.
"""

from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_numbers

from iqagp_jax.data.content import SMALLEST, numbers
from iqagp_jax.machine.precision import Array
from iqagp_jax.potential import bind, potential_of
from iqagp_jax.system.geometry import sum_of_radii
from iqagp_jax.units import BOHR, HARTREE, KCAL_MOL

CONSTANTS = ("zero", "min", "mf1", "mf2", "mf3", "mf4", "mf5")

CORE = 0.01
"""Distances in repulsions are sqrt(r^2 + core^2), core in angstrom: smooth and finite where atoms coincide."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConstantMean:
    """The same atomic energies ``values`` (N,) in eV wherever the atoms are."""

    values: Array

    def __call__(self, positions):
        """(N, 3) angstrom -> (N,) eV"""
        return self.values

    def check_fit(self, n_atoms):
        """ValueError, in a sentence, unless it is of so many atoms and makes sense; for what was read from a file."""
        numbers("atomic energies of the prior mean", self.values, (n_atoms,))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SumOfMeans:
    """m_1(R) + m_2(R)."""

    first: Any
    second: Any

    def __call__(self, positions):
        """(N, 3) angstrom -> (N,) eV"""
        return self.first(positions) + self.second(positions)

    def energy_and_gradient(self, dtype=np.float64):
        """As of `energy_and_gradient`, by both in their own way."""
        both = [energy_and_gradient(part, dtype) for part in (self.first, self.second)]
        return lambda positions: jax.tree.map(jnp.add, *(part(positions) for part in both))

    def check_fit(self, n_atoms):
        """As of `ConstantMean`."""
        self.first.check_fit(n_atoms)
        self.second.check_fit(n_atoms)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Base:
    """The atomic energies of a ``potential`` beneath: with it as prior mean the process learns a difference, E(R) - E_base(R).

    The potential is of the same molecule, in the same order of atoms, and keeps no neighbour list.
    """

    potential: Any

    def __call__(self, positions):
        """(N, 3) angstrom -> (N,) eV"""
        bound = self._bound()
        return bound.energies(positions, bound.aux)[0]

    def energy_and_gradient(self, dtype=np.float64):
        """As of `energy_and_gradient`, the potential's fast way."""
        bound = self._bound(dtype)
        return lambda positions: bound.energy_and_gradient(positions, bound.aux)[0]

    @property
    def only_sum(self):
        """Whether its atomic energies mean nothing but their sum."""
        return self._bound().only_sum

    def _bound(self, dtype=np.float64):
        bound = bind(self.potential, dtype=dtype)[0]
        if bound.enlarged is not None:
            raise ValueError("expected a base without a neighbour list, found one with; take one of all pairs of atoms")
        return bound

    def check_fit(self, n_atoms):
        """As of `ConstantMean`."""
        found = len(potential_of(self.potential).system.species)
        if found != n_atoms:
            raise ValueError(f"expected a base of {n_atoms} atoms, found one of {found}")


def energy_and_gradient(mean, dtype=np.float64):
    """The function positions (N, 3) -> (sum of a mean's atomic energies in eV, its gradient); ``dtype`` within a `Base`."""
    faster = getattr(mean, "energy_and_gradient", None)
    return faster(dtype) if faster else jax.value_and_grad(lambda r: mean(r).sum())


def base_of(mean):
    """The potential that is part of a mean as its `Base`, None where there is none."""
    if isinstance(mean, SumOfMeans):
        return base_of(mean.first) or base_of(mean.second)
    return mean.potential if isinstance(mean, Base) else None


def pair_means(pair_energy, positions):
    """Half of every pair's energy for each of its atoms, (N,) eV; ``pair_energy`` maps distances (N, N) to (N, N)."""
    difference = positions[:, None] - positions
    distances = jnp.sqrt((difference**2).sum(-1) + CORE**2)
    pairs = ~np.eye(len(positions), dtype=bool)
    return 0.5 * jnp.where(pairs, pair_energy(distances), 0.0).sum(1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BornMayer:
    """Born-Mayer repulsion V(r) = height exp(-(r - 0.8 s) / width) of all pairs.

    It adds 40 kcal/mol where two atoms are at 0.8 of their bond length, and less than 0.2 kcal/mol at 0.8 s + 1.1 angstrom.
    """

    radii: Array
    """s, sums of the covalent radii (N, N), angstrom"""
    height: float = field(default=40 * KCAL_MOL, metadata={"static": True})
    """eV"""
    width: float = field(default=0.2, metadata={"static": True})
    """angstrom"""

    @classmethod
    def of(cls, species):
        """That of a molecule of these atoms."""
        return cls(sum_of_radii(species))

    def __call__(self, positions):
        """(N, 3) angstrom -> (N,) eV"""
        return pair_means(self.of_pairs, positions)

    def of_pairs(self, r, i=slice(None), j=slice(None)):
        """V in eV at distances r (angstrom) of atoms i from atoms j; by default of all pairs, (N, N)."""
        return self.height * jnp.exp((0.8 * self.radii[i, j] - r) / self.width)

    def check_fit(self, n_atoms):
        """As of `ConstantMean`."""
        numbers("sums of covalent radii", self.radii, (n_atoms, n_atoms), least=0)
        numbers("height of the repulsion", self.height, (), least=0)
        numbers("width of the repulsion", self.width, (), SMALLEST)


SCREENING = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))
"""(c_k, d_k) of the universal screening function phi(x) = sum_k c_k exp(-d_k x)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ZBL:
    """Universal repulsion of Ziegler, Biersack and Littmark (doi:10.1007/978-1-4615-8103-1_3) of all pairs:

    V(r) = Z Z' e^2 / (4 pi eps_0 r) phi(r / a),    a = 0.8854 bohr / (Z^0.23 + Z'^0.23)
    """

    charges: Array
    """Z, nuclear charges (N,)"""

    @classmethod
    def of(cls, species):
        """That of a molecule of these atoms."""
        return cls(np.array([float(atomic_numbers[s]) for s in species]))

    def __call__(self, positions):
        """(N, 3) angstrom -> (N,) eV"""
        return pair_means(self.of_pairs, positions)

    def of_pairs(self, r, i=(slice(None), None), j=slice(None)):
        """As of `BornMayer`."""
        z = jnp.asarray(self.charges)
        x = r * (z[i] ** 0.23 + z[j] ** 0.23) / (0.8854 * BOHR)
        screening = sum(c * jnp.exp(-d * x) for c, d in SCREENING)
        return HARTREE * BOHR * z[i] * z[j] / r * screening

    def check_fit(self, n_atoms):
        """As of `ConstantMean`."""
        numbers("nuclear charges", self.charges, (n_atoms,), least=1)


REPULSIONS: dict[str, Any] = {"born-mayer": BornMayer, "zbl": ZBL}

PRIOR_MEANS = (*CONSTANTS, *REPULSIONS)
"""The names that may be joined by "+"."""


def named_mean(name, data):
    """The prior mean of a name such as ``mf5`` or ``mf5+born-mayer`` for the training ``data``, a `Dataset`.

    Where the data have no atomic energies every atom counts with an equal share of the molecule's energy.

    Raises ValueError for unknown names, and for a constant where the data have no energies at all.
    """
    parts = name.split("+") if isinstance(name, str) else [name]
    unknown = [part for part in parts if part not in PRIOR_MEANS]
    constants = [part for part in parts if part in CONSTANTS]
    if unknown or len(constants) > 1 or len(set(parts)) < len(parts):
        raise ValueError(
            f"expected a prior mean among {', '.join(PRIOR_MEANS)}, joined by +, at most one of them a constant,"
            f" or a function, found {name!r}"
        )
    means = [REPULSIONS[part].of(data.species) for part in parts if part in REPULSIONS]
    positions, n_atoms = jnp.asarray(data.positions), len(data.species)
    repulsion = sum((np.asarray(jax.jit(jax.vmap(mean))(positions)) for mean in means), np.zeros(positions.shape[:2]))
    if data.atomic_energies is None or not np.isfinite(data.atomic_energies).all(1).any():
        left = np.repeat((data.energy - repulsion.sum(1))[:, None] / n_atoms, n_atoms, axis=1)
    else:
        left = data.atomic_energies - repulsion
    if constants:
        known = np.isfinite(left).all(1)
        means.append(constant_mean(constants[0], left[known], data.thermal[known], data.species, data.free_atoms))
    return reduce(SumOfMeans, means)


def constant_mean(name, atomic_energies, thermal, species, free_atoms):
    """The named constant of training ``atomic_energies`` (n, N) in eV, as a `ConstantMean`.

    ``thermal`` (n,) marks the frames of unbiased dynamics, ``free_atoms`` maps species to eV (needed by mf4 only).
    """
    if name == "zero":
        values = np.zeros(len(species))
    elif name == "mf4":
        missing = sorted(set(species) - set(free_atoms))
        if missing:
            raise ValueError(
                f"prior mean mf4 needs the free-atom energies of {', '.join(missing)}, which the dataset does not have;"
                " add IsolatedAtom frames or choose another mean"
            )
        values = np.array([free_atoms[s] for s in species])
    elif not len(atomic_energies):
        raise ValueError(f"expected energies for the prior mean {name}, found none in the training geometries; take zero")
    else:
        usual = atomic_energies[thermal] if np.any(thermal) else atomic_energies
        low, high = usual.min(0), usual.max(0)
        values = {
            "min": low,
            "mf1": usual.mean(0),
            "mf2": high,
            "mf3": high + (high - low),
            "mf5": high + 5 * (high - low),
        }[name]
    with jax.enable_x64(True):
        return ConstantMean(jnp.asarray(values))


def residuals(data, mean):
    """Atomic energies, energy and forces minus those of the prior mean; NaN where the data have none."""
    positions, n_atoms = jnp.asarray(data.positions), len(data.species)
    energy, slope = jax.device_get(jax.jit(jax.vmap(energy_and_gradient(mean)))(positions))
    atomic, forces = np.full((len(energy), n_atoms), np.nan), np.nan if data.forces is None else data.forces
    if data.atomic_energies is not None:
        atomic = data.atomic_energies - np.asarray(jax.jit(partial(jax.lax.map, mean))(positions))
    return atomic, data.energy - energy, forces + slope


def less(data, mean):
    """A `Dataset` whose labels are what a prior mean leaves of them."""
    left = zip(("atomic_energies", "energy", "forces"), residuals(data, mean), strict=True)
    return replace(data, **{name: rest for name, rest in left if getattr(data, name) is not None})
