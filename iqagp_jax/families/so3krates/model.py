"""SO3krates as a potential: of any atoms of the elements that it learned, and of the one molecule that it was trained on.

    E_i = scale_Z f(x_i) + shift_Z + 1/2 sum_j V(|R_j - R_i|)

f is the `network`, in float32 or float64. Shifts of thousands of eV and the repulsion V are added outside of it, in float64.
V is a repulsion of `means`, of pairs within the cutoff; over the last angstrom before it V fades to zero.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_numbers

from iqagp_jax.data.content import numbers, one_molecule
from iqagp_jax.families.gp.means import CORE, REPULSIONS
from iqagp_jax.families.so3krates.neighbours import NearPairs, all_pairs, overflowed
from iqagp_jax.families.so3krates.network import ELEMENTS, Network, Pairs, smooth
from iqagp_jax.machine.precision import Array
from iqagp_jax.potential import Bound, MadeBy, OfOneMolecule, Uncertainty, check_state
from iqagp_jax.system.elements import check_species, shortened
from iqagp_jax.system.system import System

ALL_PAIRS = 40
"""Atoms of the largest system without walls of which all pairs are looked at, without a neighbour list."""

FADE = 1.0
"""Angstrom before the cutoff over which the repulsion fades."""

NO_REPULSION = "none"


def atomic_numbers_of(species: tuple[str, ...]) -> np.ndarray:
    """(N,) of chemical symbols."""
    return np.array([atomic_numbers[s] for s in species])


def repulsion_energies(name: str, species: tuple[str, ...], pairs: Pairs, cutoff: float) -> Any:
    """1/2 sum_j V of every atom (N,), eV in float64, by its name in `means.REPULSIONS`; zero for "none"."""
    energies = jnp.zeros(len(species))
    if name == NO_REPULSION:
        return energies
    apart = jnp.where(pairs.there[:, None], pairs.vectors, jnp.array([0.0, 0.0, cutoff]))
    distance = jnp.sqrt((apart**2).sum(-1) + CORE**2)
    fading = smooth(jnp.maximum(distance - (cutoff - FADE), 0.0), FADE)
    half = 0.5 * jnp.where(pairs.there, fading * REPULSIONS[name].of(species).of_pairs(distance, pairs.i, pairs.j), 0.0)
    return energies.at[pairs.i].add(half).at[pairs.j].add(half)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["network", "scale", "shift", "trace"],
    meta_fields=["elements", "repulsion", "made_by", "n_train"],
)
@dataclass(frozen=True)
class SO3krates:
    """A `Potential` of all systems of the elements that it learned, in periodic cells too."""

    network: Network
    scale: Array
    """(100,) by atomic number, eV, float64"""
    shift: Array
    """(100,) by atomic number, eV, float64"""
    elements: tuple[str, ...]
    repulsion: str = NO_REPULSION
    made_by: MadeBy = MadeBy()
    n_train: int | None = None
    """training geometries; None where it is not told"""
    trace: Array | None = None
    """(T, 4) how it was learned, see `train.TRACE`"""

    def check(self, system: System) -> None:
        """ValueError, in a sentence, for elements, a charge or a spin that it did not learn."""
        if other := sorted(set(system.species) - set(self.elements)):
            raise ValueError(
                f"expected atoms among the elements {' '.join(self.elements)} that the model learned, found {' '.join(other)}"
                f" in {shortened(system.species)}; take a model that learned them"
            )
        check_state(self.made_by.level, system)

    def bind(self, system: System, dtype: Any = np.float64) -> Bound:
        """With all pairs of a small system without walls, else with a neighbour list; ``dtype`` is that of the network."""
        network, species = self.network.in_precision(dtype), system.species
        z = atomic_numbers_of(species)
        scale, shift = (np.asarray(a, np.float64)[z] for a in (self.scale, self.shift))

        def of_pairs(pairs: Pairs) -> Any:
            learned = network(z, pairs).astype(np.float64)
            return scale * learned + shift + repulsion_energies(self.repulsion, species, pairs, network.cutoff)

        only_sum = "atomic_energies" not in self.made_by.targets
        if len(system) <= ALL_PAIRS and system.cell is None:
            return _bound(lambda positions, aux: (of_pairs(all_pairs(positions)), aux), only_sum=only_sum)
        near = NearPairs(system, network.cutoff)

        def energies(positions: Any, kept: Any) -> tuple[Any, Any]:
            pairs, kept = near(positions, kept)
            return of_pairs(pairs), kept

        kept = near.with_room(np.asarray(system.positions)[None])
        return _bound(energies, kept, overflowed=overflowed, enlarged=near.with_room, only_sum=only_sum)

    def uncertainty(self, system: System) -> Uncertainty | None:
        """None: it has none."""
        return None

    def check_content(self) -> None:
        """ValueError, in a sentence, unless its numbers make sense: of one that was read."""
        check_species(self.elements)
        self.network.check_content()
        for name in ("scale", "shift"):
            numbers(name, getattr(self, name), (ELEMENTS,))
        if self.repulsion not in (NO_REPULSION, *REPULSIONS):
            raise ValueError(f"expected a repulsion among {', '.join((NO_REPULSION, *REPULSIONS))}, found {self.repulsion!r}")


def _bound(energies: Callable[[Any, Any], tuple[Any, Any]], *kept: Any, **told: Any) -> Bound:
    """A `Bound` that takes replicas one after the other on a CPU, whose cache holds the pairs of one."""
    plain = Bound(energies, *kept, **told)
    if jax.default_backend() != "cpu":
        return plain
    # Without its `enlarged` it does not turn an overflow into NaN: the one around it does.
    alone = replace(plain, enlarged=None)
    return replace(plain, fast=jax.custom_batching.sequential_vmap(alone.energy_and_gradient))


@partial(jax.tree_util.register_dataclass, data_fields=["reference", "potential"], meta_fields=["species"])
@dataclass(frozen=True)
class SO3kratesOfMolecule(OfOneMolecule):
    """An `SO3krates` that was trained on one molecule and speaks of it alone; ``potential`` speaks of its elements."""

    species: tuple[str, ...]
    reference: np.ndarray
    """(N, 3) angstrom, the training geometry of lowest energy"""
    potential: SO3krates

    @property
    def made_by(self) -> MadeBy:  # type: ignore[override]
        """That of the network."""
        return self.potential.made_by

    @property
    def n_train(self) -> int | None:
        """That of the network."""
        return self.potential.n_train

    @property
    def trace(self) -> Array | None:
        """That of the network."""
        return self.potential.trace

    def bind(self, system: System, dtype: Any = np.float64) -> Bound:
        """As of `SO3krates`."""
        return self.potential.bind(system, dtype)

    def uncertainty(self, system: System) -> Uncertainty | None:
        """As of `SO3krates`."""
        return self.potential.uncertainty(system)

    def check_content(self) -> None:
        """ValueError, in a sentence, unless its numbers are those of its atoms: of one that was read."""
        one_molecule(self.species, self.reference)
        if not isinstance(self.potential, SO3krates):
            raise ValueError(f"expected a network beneath the molecule, found {type(self.potential).__name__}")
