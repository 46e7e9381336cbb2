"""Potentials made of potentials: their sum, and one for each molecule of a system.

A box of water is ``Sum(PerMolecule(water), Electrostatics(moments))``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.data.level import Level
from iqagp_jax.potential import Bound, MadeBy, Potential, Uncertainty
from iqagp_jax.system.system import System


def _sum(parts: tuple[Bound, ...]) -> Bound:
    """The sum of several, whose aux is the tuple of theirs."""

    def each(evaluate: str, positions: Any, aux: Any) -> tuple[list[Any], tuple[Any, ...]]:
        found = [getattr(part, evaluate)(positions, a) for part, a in zip(parts, aux, strict=True)]
        return [result for result, _ in found], tuple(after for _, after in found)

    def energies(positions: Any, aux: Any) -> Any:
        results, after = each("energies", positions, aux)
        return sum(results), after

    def fast(positions: Any, aux: Any) -> Any:
        results, after = each("energy_and_gradient", positions, aux)
        return jax.tree.map(lambda *x: sum(x), *results), after

    def enlarged(positions: Any) -> tuple[Any, ...]:
        return tuple(part.enlarged(positions) if part.enlarged else part.aux for part in parts)

    return Bound(
        energies,
        tuple(part.aux for part in parts),
        fast,
        overflowed=lambda aux: jnp.stack([part.overflowed(a) for part, a in zip(parts, aux, strict=True)]).any(),
        enlarged=enlarged if any(part.enlarged for part in parts) else None,
        only_sum=any(part.only_sum for part in parts),
    )


class _Several:
    """A pytree of potentials, given one after the other: ``Sum(one, other)``."""

    @property
    def system(self) -> System:
        """The molecule that the first of them is of, which is then the default of all doors."""
        return next(iter(vars(self).values()))[0].system

    def tree_flatten(self) -> tuple[Any, None]:
        """The potentials."""
        return next(iter(vars(self).values())), None

    @classmethod
    def tree_unflatten(cls, _: None, parts: Any) -> Any:
        """From them."""
        return cls(*parts)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Any:
        """From what a file holds."""
        return cls(*next(iter(fields.values())))

    def check_content(self) -> None:
        """ValueError, in a sentence, unless it is made of potentials: of one that was read."""
        parts = next(iter(vars(self).values()))
        if not parts or (other := [part for part in parts if not isinstance(part, Potential)]):
            raise ValueError(
                f"expected potentials in a {type(self).__name__}, found {type(other[0]).__name__ if parts else 'none'}"
            )


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, init=False)
class Sum(_Several):
    """E(R) = sum_k E_k(R), atom by atom; variances add."""

    FILE_NAME = "SumOfPotentials"
    """in model files, where a sum of kernels has the shorter name"""

    parts: tuple[Any, ...]
    """potentials"""

    def __init__(self, *parts: Any):
        object.__setattr__(self, "parts", tuple(parts))

    @property
    def made_by(self) -> MadeBy | None:
        """That of all parts if they agree on the level, else None."""
        return _agreed(self.parts)

    def check(self, system: System) -> None:
        """What any part says."""
        for part in self.parts:
            part.check(system)

    def bind(self, system: System, dtype: Any = np.float64) -> Bound:
        """All parts, each with its own aux."""
        return _sum(tuple(part.bind(system, dtype) for part in self.parts))

    def uncertainty(self, system: System) -> Uncertainty | None:
        """The sum of the parts' variances; None where one part has none."""
        each = [part.uncertainty(system) for part in self.parts]
        known = [found for found in each if found is not None]
        if len(known) < len(each):
            return None

        def prepare(target: str) -> Callable | None:
            variances = [getattr(found, target) for found in known]
            if any(v is None for v in variances):
                return None
            return lambda positions: sum(np.reshape(v(positions), (len(positions), -1)) for v in variances)

        return Uncertainty(prepare)


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, init=False)
class PerMolecule(_Several):
    """E(R) = sum over molecules m of E_k(m)(R_m), each by the first of ``kinds`` that can speak of it."""

    kinds: tuple[Any, ...]
    """potentials, each of one molecule"""

    def __init__(self, *kinds: Any):
        object.__setattr__(self, "kinds", tuple(kinds))

    @property
    def made_by(self) -> MadeBy | None:
        """That of all kinds if they agree on the level, else None."""
        return _agreed(self.kinds)

    def check(self, system: System) -> None:
        """ValueError, in a sentence, for a molecule that none of the kinds can speak of, and for a charged system."""
        self._groups(system)

    def bind(self, system: System, dtype: Any = np.float64) -> Bound:
        """All molecules of a kind at once, as many geometries of one."""
        groups = self._groups(system)
        parts = tuple(kind.bind(system_of, dtype) for kind, system_of, _ in groups)
        if any(part.enlarged for part in parts):
            raise ValueError("expected potentials without neighbour lists for single molecules, found one with; bind it to all")

        def energies(positions: Any, aux: Any) -> Any:
            total = jnp.zeros(len(positions))
            for (_, _, atoms), part in zip(groups, parts, strict=True):
                each = jax.vmap(lambda r, part=part: part.energies(r, part.aux)[0])(positions[atoms])
                total = total.at[atoms].set(each)
            return total, aux

        def fast(positions: Any, aux: Any) -> Any:
            energy, gradient = jnp.zeros(()), jnp.zeros_like(positions)
            for (_, _, atoms), part in zip(groups, parts, strict=True):
                each, slopes = jax.vmap(lambda r, part=part: part.energy_and_gradient(r, part.aux)[0])(positions[atoms])
                energy, gradient = energy + each.sum(), gradient.at[atoms].set(slopes)
            return (energy, gradient), aux

        return Bound(energies, fast=fast, only_sum=any(part.only_sum for part in parts))

    def uncertainty(self, system: System) -> Uncertainty | None:
        """Variances of molecules, which share no observation with each other in this sum; None where a kind has none."""
        found = [(kind.uncertainty(system_of), atoms) for kind, system_of, atoms in self._groups(system)]
        if any(u is None for u, _ in found):
            return None

        def prepare(target: str) -> Callable | None:
            variances = [(getattr(u, target), atoms) for u, atoms in found]
            if any(v is None for v, _ in variances):
                return None

            def apply(positions: Any) -> Any:
                positions = np.asarray(positions)
                width = {"atomic_energies": (positions.shape[1],), "energy": (), "forces": positions.shape[1:]}[target]
                total = np.zeros((len(positions), *width))
                for variance, atoms in variances:
                    each = np.asarray(variance(positions[:, atoms].reshape(-1, atoms.shape[1], 3)))
                    each = each.reshape(len(positions), *atoms.shape[: 1 if target == "energy" else 2], *each.shape[2:])
                    if target == "energy":
                        total += each.sum(1)
                    else:
                        total[:, atoms] = each
                return total.reshape(len(positions), -1)

            return apply

        return Uncertainty(prepare)

    def _groups(self, system: System) -> list[tuple[Any, System, np.ndarray]]:
        """(potential, system of its first molecule, atoms (M, n) of all its molecules) for every kind that there is."""
        if system.charge or system.spin:
            raise ValueError(
                "expected a neutral system without unpaired electrons, found"
                f" charge {system.charge:+d} and {system.spin} of them: nobody tells which molecule has them"
            )
        atoms_of: dict[int, list[np.ndarray]] = {}
        first: dict[int, System] = {}
        for number, atoms in enumerate(system.members):
            molecule = System(tuple(system.species[a] for a in atoms), system.positions[atoms])
            k = next((k for k, kind in enumerate(self.kinds) if _speaks(kind, molecule)), None)
            if k is None:
                raise ValueError(
                    f"expected molecules that one of {len(self.kinds)} potentials knows, found {' '.join(molecule.species)} as"
                    f" molecule {number}; add a potential of it, or give its atoms in that potential's order"
                )
            atoms_of.setdefault(k, []).append(atoms)
            first.setdefault(k, molecule)
        return [(self.kinds[k], first[k], np.array(atoms_of[k])) for k in atoms_of]


def _speaks(kind: Any, molecule: System) -> bool:
    try:
        kind.check(molecule)
    except ValueError:
        return False
    return True


def _agreed(parts: tuple[Any, ...]) -> MadeBy | None:
    """The first part's, where all parts that tell agree on their level; None else."""
    told = [part.made_by for part in parts if part.made_by is not None and part.made_by.level != Level()]
    if told and all(other.level.same_energies(told[0].level) for other in told):
        return told[0]
    return None


PARTS: tuple[type, ...] = (Sum, PerMolecule, MadeBy, Level)
"""What a model file may hold of them."""
