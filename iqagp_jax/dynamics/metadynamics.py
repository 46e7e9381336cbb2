"""Well-tempered metadynamics: a bias on a few collective variables, pure JAX functions added to any energy.

The bias is a sum of Gaussian hills left behind on the way (doi:10.1103/PhysRevLett.100.020603),

    V(s) = sum_k h_k exp(-1/2 sum_c ((s_c - s_kc) / sigma_c)^2),    h_k = h exp(-V_k(s_k) / ((gamma - 1) kT))

where V_k holds the hills before the k-th. In the long run the free energy is F(s) = -gamma / (gamma - 1) V(s).

| symbol  | name            | what                                    |
| ------- | --------------- | --------------------------------------- |
| s       | ``variables``   | collective variables, (C,)              |
| sigma   | ``width``       | of a hill, in the unit of its variable  |
| h       | ``height``      | of the first hill, eV                   |
| gamma   | ``bias_factor`` | how much hotter the variables seem      |

All functions here want JAX's 64-bit mode (``with jax.enable_x64(True)``), except `run`, which turns it on.
"""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.dynamics.ensembles import Langevin
from iqagp_jax.system import coordinates
from iqagp_jax.system.geometry import bond_graph, moved_side, pair_distances, proton_transfers, sum_of_radii
from iqagp_jax.units import BOLTZMANN, TIME_UNIT

SINGLE_BOND = 0.96
"""A bond longer than this factor times the sum of the covalent radii is taken for a single one that turns freely."""


@dataclass(frozen=True)
class Dihedral:
    """Dihedral angle of four atoms in radian, (-pi, pi], clockwise positive seen along the middle bond (IUPAC)."""

    atoms: tuple[int, int, int, int]

    name = "dihedral"
    size = 4
    width = 0.35
    period = 2 * np.pi

    def __call__(self, positions):
        return coordinates.dihedral(jnp.asarray(positions), *self.atoms)


@dataclass(frozen=True)
class Distance:
    """Distance of two atoms in angstrom."""

    atoms: tuple[int, int]

    name = "distance"
    size = 2
    width = 0.1
    period = np.inf

    def __call__(self, positions):
        return coordinates.distance(jnp.asarray(positions), *self.atoms)


@dataclass(frozen=True)
class Transfer:
    """Proton-transfer coordinate d(donor, H) - d(acceptor, H) in angstrom; ``atoms`` = (donor, H, acceptor)."""

    atoms: tuple[int, int, int]

    name = "transfer"
    size = 3
    width = 0.1
    period = np.inf

    def __call__(self, positions):
        return coordinates.transfer(jnp.asarray(positions), *self.atoms)


VARIABLES: dict[str, Any] = {kind.name: kind for kind in (Dihedral, Distance, Transfer)}


def parse_variable(text, n_atoms):
    """A collective variable from text such as ``dihedral(4,6,8,14)``; atoms are counted from 0."""
    match = re.fullmatch(r"\s*(\w+)\s*\(([\d,\s]+)\)\s*", text)
    known = ", ".join(f"{kind.name}({','.join('ijkl'[: kind.size])})" for kind in VARIABLES.values())
    if not match or match[1] not in VARIABLES:
        raise ValueError(f"expected a collective variable ({known}), found {text!r}")
    kind = VARIABLES[match[1]]
    atoms = tuple(int(a) for a in match[2].split(",") if a.strip())
    if len(atoms) != kind.size or len(set(atoms)) != kind.size or max(atoms) >= n_atoms:
        raise ValueError(f"expected {kind.size} different atoms from 0 to {n_atoms - 1}, found {text!r}")
    return kind(atoms)


def choose_variables(species, positions):
    """What a molecule does slowly: torsions about single bonds outside rings, and intramolecular proton transfers.

    A torsion needs a second heavy atom on both sides, so methyl groups and hydroxyls do not count.
    """
    bonded, distances = bond_graph(species, positions), pair_distances(positions)
    heavy = np.array([s != "H" for s in species])
    chosen: list[Dihedral | Transfer] = []
    single = np.triu(bonded) & np.outer(heavy, heavy) & (distances > SINGLE_BOND * sum_of_radii(species))
    for j, k in np.argwhere(single):
        left, right = ([b for b in np.flatnonzero(bonded[a] & heavy) if b not in (j, k)] for a in (j, k))
        in_ring = moved_side(bonded, j, k).sum() == 1
        if left and right and not in_ring:
            chosen.append(Dihedral((int(left[0]), int(j), int(k), int(right[0]))))
    chosen += [Transfer(atoms) for atoms in proton_transfers(species, positions)]
    return tuple(chosen)


class Hills(NamedTuple):
    """Hills left so far: a pytree of fixed shape, so that the bias can be compiled once."""

    centres: jax.Array
    """(K, C)"""
    heights: jax.Array
    """(K,) eV, zero where no hill is yet"""
    n_hills: jax.Array
    """number of hills left, at most K"""


@dataclass(frozen=True)
class WellTempered:
    """The bias of well-tempered metadynamics on collective ``variables`` at ``temperature`` (K)."""

    variables: tuple
    temperature: float
    height: float = 0.025
    bias_factor: float = 10.0

    def no_hills(self, capacity):
        """Room for ``capacity`` hills, empty."""
        return Hills(jnp.zeros((capacity, len(self.variables))), jnp.zeros(capacity), jnp.zeros((), int))

    def values(self, positions):
        """Collective variables (C,) of one geometry (N, 3)."""
        return jnp.stack([variable(positions) for variable in self.variables])

    def potential(self, values, hills):
        """V(s) in eV at collective variables (C,)."""
        period = np.array([variable.period for variable in self.variables])
        width = np.array([variable.width for variable in self.variables])
        difference = values - hills.centres
        turns = jnp.where(np.isinf(period), 0.0, jnp.round(difference / np.where(np.isinf(period), 1.0, period)))
        difference = difference - turns * np.where(np.isinf(period), 0.0, period)
        return hills.heights @ jnp.exp(-0.5 * jnp.sum((difference / width) ** 2, -1))

    def __call__(self, positions, hills):
        """Bias energy in eV of one geometry (N, 3)."""
        return self.potential(self.values(positions), hills)

    def deposit(self, hills, positions):
        """The hills with one more at this geometry."""
        here = self.values(positions)
        tempering = (self.bias_factor - 1) * BOLTZMANN * self.temperature
        height = self.height * jnp.exp(-self.potential(here, hills) / tempering)
        k = hills.n_hills
        return Hills(hills.centres.at[k].set(here), hills.heights.at[k].set(height), k + 1)

    def free_energy(self, values, hills):
        """Estimate of F(s) in eV at (n, C) collective variables, zero at its lowest."""
        potential = jax.vmap(self.potential, (0, None))(values, hills)
        free = -self.bias_factor / (self.bias_factor - 1) * potential
        return free - free.min()


def run(energy_fn, bias, positions, masses, n_hills, stride, timestep=0.5, friction=10.0, seed=0):
    """Langevin dynamics of ``energy_fn`` (positions (N, 3) -> eV) under a `WellTempered` bias.

    Args:
        masses: (N,) amu.
        n_hills: hills to leave, one every ``stride`` steps.
        timestep: fs.
        friction: 1/ps.

    Returns:
        Collective variables (n_hills, C) where the hills were left, and the `Hills`, as NumPy arrays.
    """
    with jax.enable_x64(True):
        kT = np.float64(BOLTZMANN * bias.temperature)

        def biased(positions, hills, **_):
            return energy_fn(positions) + bias(positions, hills)

        init, apply = Langevin(friction).integrator(biased, timestep / TIME_UNIT, kT)

        @jax.jit
        def trajectory(key, positions):
            hills = bias.no_hills(n_hills)
            state = init(key, positions, mass=np.asarray(masses, float), hills=hills)

            def to_next_hill(carry, _):
                state, hills = carry
                state = jax.lax.fori_loop(0, stride, lambda _, state: apply(state, hills=hills), state)
                return (state, bias.deposit(hills, state.position)), bias.values(state.position)

            (_, hills), values = jax.lax.scan(to_next_hill, (state, hills), length=n_hills)
            return values, hills

        return jax.tree.map(np.asarray, trajectory(jax.random.key(seed), np.asarray(positions, float)))
