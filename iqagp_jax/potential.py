"""The contract of a potential, and what every one of them answers: energies, forces, variances.

A potential is not a molecule. It says of a `System` whether it can speak of it (``check``), is made ready for it (``bind``) and
tells how far to trust it (``uncertainty``, or None: "this one has none"). What it is made ready to is a `Bound`: pure JAX
functions of positions. The molecular energy is the sum of the atomic energies and the forces are minus its gradient.

The functions here take any `Potential`. An object with ``species`` and ``reference`` that is called with positions (N, 3) in
angstrom and gives atomic energies (N,) in eV is one too: `potential_of` makes it keep the contract.

Units: eV, angstrom. Float64 within, whatever JAX's global mode.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.data.level import Level
from iqagp_jax.machine.forks import computing
from iqagp_jax.machine.precision import double, exact
from iqagp_jax.system.elements import same_atoms
from iqagp_jax.system.system import System

Positions = Any
"""(N, 3) angstrom, NumPy's or JAX's"""


@dataclass(frozen=True)
class MadeBy:
    """Where a potential came from."""

    level: Level = Level()
    """of the labels that it learned"""
    targets: tuple[str, ...] = ()
    """what it learned of them"""
    options: Any = None
    """the ``Options`` of its family, all chosen; None where there are none"""
    copies: int = 1
    """how many times it holds each geometry: mirrored or permuted copies, and the geometry itself"""
    program: str = ""


def _never(aux: Any) -> Any:
    return jnp.zeros((), bool)


@dataclass(frozen=True)
class Bound:
    """A potential made ready for one system: pure functions, under jit, vmap and grad, in 64-bit mode."""

    energies: Callable[[Any, Any], tuple[Any, Any]]
    """positions (N, 3) in angstrom, aux -> atomic energies (N,) in eV, aux'"""
    aux: Any = ()
    """what it keeps from step to step, a pytree: empty for a Gaussian process, a neighbour list for a transformer, whose
    shape says how much room there is"""
    fast: Callable[[Any, Any], tuple[tuple[Any, Any], Any]] | None = None
    """positions, aux -> (energy, its gradient (N, 3)), aux' where there is a faster way than to differentiate ``energies``"""
    overflowed: Callable[[Any], Any] = _never
    """aux -> whether it has become too small, and energies of it are no numbers; once it has, it stays so"""
    enlarged: Callable[[Any], Any] | None = None
    """positions (R, N, 3) -> an aux that is large enough for all of them; None where aux cannot overflow"""
    only_sum: bool = False
    """whether only the sum of ``energies`` was learned: how it is divided among the atoms then means nothing"""

    def energy_and_gradient(self, positions: Any, aux: Any) -> tuple[tuple[Any, Any], Any]:
        """(energy in eV, its gradient (N, 3) in eV/angstrom), aux'; not numbers where aux' has overflowed."""

        def total(r: Any) -> tuple[Any, Any]:
            energies, after = self.energies(r, aux)
            return energies.sum(), after

        if self.fast:
            both, after = self.fast(positions, aux)
        else:
            (energy, after), gradient = jax.value_and_grad(total, has_aux=True)(positions)
            both = energy, gradient
        if self.enlarged is None:
            return both, after
        lost = self.overflowed(after)
        energy, gradient = (jnp.where(lost, jnp.nan, x) for x in both)
        return (energy, gradient), after


class Uncertainty:
    """Posterior variances as functions of many positions (B, N, 3) in angstrom; None for those that are not known.

    What they need, such as a factor of all observations, is made when one is first asked for, and kept.
    """

    def __init__(self, prepare: Callable[[str], Callable[[Any], Any] | None]):
        """``prepare`` takes "atomic_energies", "energy" or "forces" and gives the function (B, N, 3) -> (B, K), or None."""
        self._prepare = prepare

    @cached_property
    def atomic_energies(self) -> Callable[[Any], Any] | None:
        """(B, N) eV^2"""
        return self._prepare("atomic_energies")

    @cached_property
    def energy(self) -> Callable[[Any], Any] | None:
        """(B,) eV^2, of the energy of all atoms: what they share counts"""
        variance = self._prepare("energy")
        return variance and (lambda positions: variance(positions)[:, 0])

    @cached_property
    def forces(self) -> Callable[[Any], Any] | None:
        """(B, N, 3) (eV/angstrom)^2"""
        variance = self._prepare("forces")
        return variance and (lambda positions: variance(positions).reshape(np.shape(positions)))


@runtime_checkable
class Potential(Protocol):
    """What all families of potentials keep."""

    @property
    def made_by(self) -> MadeBy | None:
        """Where it came from; None where it is not told."""

    def check(self, system: System) -> None:
        """ValueError, in a sentence, where it cannot speak of these atoms, this charge, this cell."""

    def bind(self, system: System, dtype: Any = np.float64) -> Bound:
        """Made ready for a system; ``dtype`` of the arithmetic within, where it has a choice."""

    def uncertainty(self, system: System) -> Uncertainty | None:
        """How far to trust it; None where it does not know."""


class OfOneMolecule:
    """What potentials of one molecule share: ``species`` (N,) and ``reference`` (N, 3), a geometry of low energy."""

    species: tuple[str, ...]
    reference: np.ndarray
    made_by: MadeBy | None

    @cached_property
    def system(self) -> System:
        """The molecule that it is a potential of."""
        level = self.made_by.level if self.made_by else Level()
        # Not `System.of`: a model of long ago may not tell its charge, and its electrons would seem odd.
        return System(tuple(self.species), np.asarray(self.reference), level.charge, level.spin)

    def check(self, system: System) -> None:
        """ValueError, in a sentence, unless the system is this molecule, alone."""
        same_atoms(self.species, system.species)
        if system.cell is not None or system.molecules:
            raise ValueError(
                "expected one molecule without walls for this potential, found"
                f" {len(system.members)} molecules{' in a cell' * (system.cell is not None)}; take compose.PerMolecule of it"
            )
        check_state(self.system, system)


def check_state(learned: System | Level, system: System) -> None:
    """ValueError, in a sentence, for a system of another charge or spin than a potential learned."""
    mine, theirs = ((s.charge, s.spin) for s in (learned, system))
    if mine != theirs:
        raise ValueError(
            f"expected charge {mine[0]} and {mine[1]} unpaired electrons, as the potential learned, found {theirs[0]} and"
            f" {theirs[1]}; take a potential of that state"
        )


class FromFunction(OfOneMolecule):
    """A function of positions (N, 3) -> atomic energies (N,) that tells its ``species`` and ``reference``, as a potential."""

    made_by = None

    def __init__(self, function: Any):
        self.function, self.species, self.reference = function, tuple(function.species), function.reference

    def bind(self, system: System, dtype: Any = np.float64) -> Bound:
        """The function as it is."""
        return Bound(lambda positions, aux: (jnp.asarray(self.function(positions)), aux))

    def uncertainty(self, system: System) -> Uncertainty | None:
        """None: nothing is known of it."""
        return None


def potential_of(what: Any) -> Any:
    """A `Potential`, made of what keeps the smaller contract if need be. TypeError, in a sentence, for anything else."""
    if isinstance(what, Potential):
        return what
    if callable(what) and hasattr(what, "species") and hasattr(what, "reference"):
        return FromFunction(what)
    raise TypeError(
        "expected a potential (check, bind, uncertainty, made_by), or an object with species and reference that takes positions"
        f" and gives atomic energies, found {type(what).__name__}; `load_model` reads one from a file"
    )


def system_of(potential: Any, system: System | None = None) -> System:
    """The system given, or the one that a potential of one molecule is of; checked by the potential."""
    if system is None and not hasattr(potential, "system"):
        raise ValueError("expected a system for a potential that is not of one molecule; give System.of(species, positions)")
    system = potential.system if system is None else system
    potential.check(system)
    return system


def bind(potential: Any, system: System | None = None, dtype: Any = np.float64) -> tuple[Bound, System]:
    """What any door does first: a `Potential` checked and made ready for a system, by default its own molecule."""
    potential = potential_of(potential)
    system = system_of(potential, system)
    with jax.enable_x64(True):
        return potential.bind(system, np.dtype(dtype)), system


def atomic_energies(model, positions, system=None):
    """Atomic energies (N,) in eV of one configuration (N, 3) in angstrom, by the plain formula.

    Raises ValueError for a potential that learned none, as one of the molecule's energy and forces; see `energy_shares`.
    """
    bound, system = bind(model, system)
    if bound.only_sum:
        raise ValueError(
            "expected a potential that learned atomic energies, found one that learned their sum alone and divides it among the"
            " atoms as it happens; train on atomic energies, or take `energy_shares` if that division is what you want"
        )
    return _at(bound, system, positions)


def energy_shares(model, positions, system=None):
    """How a potential divides its energy among the atoms, (N,) in eV of one configuration (N, 3) in angstrom.

    These are `atomic_energies` where it learned them. Else only their sum means anything.
    """
    return _at(*bind(model, system), positions)


def _at(bound, system, positions):
    """What it divides its energy into, (N,) eV."""
    with jax.enable_x64(True):
        positions = double(check_positions(system.species, positions))
        return exact(bound.energies(positions, _roomy(bound, positions[None]))[0])


def energy_fn(model, dtype=np.float64, system=None):
    """Energy as a function of positions: (N, 3) angstrom -> scalar eV, in float64.

    Works under jit, vmap and grad, and is fast there: many geometries under vmap become matrix products where the potential
    knows how. ``-jax.grad(energy_fn(model))`` are the forces in eV/angstrom. Second derivatives are exact too. Where JAX's
    64-bit mode is off, positions and gradients that JAX itself holds in float32 are used with a warning; the arithmetic in
    between stays float64. Where a neighbour list that the potential keeps is too small for the positions it is NaN.

    Parameters
    ----------
    dtype: of the arithmetic within, where the potential has a choice. float32 is faster and less exact, see `rounding_error`;
        positions, energies and forces are float64 even then.
    system: `System` of the atoms, by default the molecule that the potential is of.
    """
    bound, system = bind(model, system, dtype)

    def value_and_gradient(positions):
        return bound.energy_and_gradient(double(check_positions(system.species, positions)), bound.aux)[0]

    @jax.custom_jvp
    def energy(positions):
        with jax.enable_x64(True):
            return value_and_gradient(positions)[0]

    @energy.defjvp
    def energy_jvp(primals, tangents):
        (positions,), (direction,) = primals, tangents
        with jax.enable_x64(True):
            value, gradient = value_and_gradient(positions)
            return value, jnp.sum(gradient * direction.astype(gradient.dtype))

    return energy


def energy_and_forces(model, dtype=np.float64, system=None):
    """Energies and forces of many replicas: (B, N, 3) angstrom -> (B,) eV and (B, N, 3) eV/angstrom.

    Compiled once per shape. ``dtype`` and ``system`` as in `energy_fn`.
    """
    bound, system = bind(model, system, dtype)

    @jax.jit
    def batched(positions, aux):
        return jax.vmap(lambda r: bound.energy_and_gradient(r, aux)[0])(positions)

    def apply(positions):
        computing()
        with jax.enable_x64(True):
            positions = double(check_positions(system.species, positions, batch=True))
            energies, gradients = exact(batched(positions, _roomy(bound, positions)))
            return energies, -gradients

    return apply


def _roomy(bound, positions):
    """Its aux, enlarged for positions (B, N, 3): an overflow never returns a number, and here need not happen."""
    return bound.aux if bound.enlarged is None or isinstance(positions, jax.core.Tracer) else bound.enlarged(positions)


def rounding_error(model, positions, dtype, system=None):
    """Largest differences of energies (eV) and force components (eV/angstrom) at positions (B, N, 3) from those in float64."""
    exactly, found = (energy_and_forces(model, kind, system)(positions) for kind in (np.float64, dtype))
    return tuple(float(np.abs(a - b).max()) for a, b in zip(exactly, found, strict=True))


def uncertainty(model, system=None):
    """The `Uncertainty` of any potential for a system, by default its own molecule; None where it has none."""
    potential = potential_of(model)
    return potential.uncertainty(system_of(potential, system))


def predictive_variance(model, system=None):
    """Posterior variances as a function of positions (B, N, 3) -> (B, N) eV^2, one for every atomic energy.

    Of a potential that learned only their sum they are those of `energy_shares`, and large.
    """
    return _known(model, system, "atomic_energies")


def energy_variance(model, system=None):
    """Posterior variance of the energy as a function of positions: (B, N, 3) -> (B,) eV^2.

    The sum of the atoms' where their processes are independent; after forces or total energies, which the atoms share,
    their covariances count too.
    """
    return _known(model, system, "energy")


def force_variance(model, system=None):
    """Posterior variance of the force components as a function of positions: (B, N, 3) -> (B, N, 3) (eV/angstrom)^2."""
    return _known(model, system, "forces")


def _known(model, system, of):
    """A variance that the caller cannot do without: ValueError, in a sentence, where the potential does not know it."""
    found = uncertainty(model, system)
    variance = found and getattr(found, of)
    if variance is None:
        raise ValueError(
            f"expected a potential that knows the variance of its {of.replace('_', ' ')}, found one that does not; ask"
            " `potential.uncertainty` first, which is None then"
        )
    return variance


def check_positions(species, positions, batch=False):
    """Positions as an array; ValueError, in a sentence, if they are not (N, 3), or (B, N, 3), finite angstrom."""
    shape = np.shape(positions)
    expected = (len(species), 3)
    if shape[-2:] != expected or len(shape) != 2 + batch:
        wanted = ("(replicas, " if batch else "(") + f"{len(species)}, 3)"
        raise ValueError(
            f"expected positions of shape {wanted} for the atoms {' '.join(species)}, found {shape};"
            " give the atoms of the model in its order"
        )
    if not isinstance(positions, jax.core.Tracer) and not np.isfinite(np.asarray(positions)).all():
        raise ValueError("expected finite positions in angstrom, found a NaN or infinity; check the geometry")
    return positions
