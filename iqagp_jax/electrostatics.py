"""Electrostatic energy between molecules from atomic multipole moments: cluster form, without a cut-off.

    U = sum_{A < B in different molecules} sum_{lk, l'k'} Q^A_lk T_lk,l'k'(R_B - R_A) Q^B_l'k'

What is within a molecule belongs to its IQA energy. With K = l + l' the interaction functions are (Hobson's theorem;
A. J. Stone, The Theory of Intermolecular Forces, doi:10.1093/acprof:oso/9780199672394.001.0001, chapter 3)

    T_lk,l'k'(R) = (-1)^l' (2K - 1)!! / ((2l - 1)!! (2l' - 1)!!) sum_q G^Kq_lk,l'k' R_Kq(R) / R^(2K + 1)

where G^Kq_lk,l'k' = (2K + 1) <R_Kq R_lk R_l'k'>, the mean over the unit sphere.

| symbol           | name                  | what                                                                   |
| ---------------- | --------------------- | ---------------------------------------------------------------------- |
| Q^A_lk           | ``moments``           | moments, e bohr^l, in the order of `harmonics.component_names`         |
| R_A              | ``positions``         | angstrom                                                               |
| R_Kq             | ``solid_harmonics``   | regular solid harmonics, `harmonics`                                   |
| G and its factor | ``coupling``          | constants                                                              |
| L'               | `harmonics.rank`      | highest rank of the moments; 4 = hexadecapole. All l, l' <= L' interact |

Energies are in eV and positions in angstrom as everywhere in the package; moments stay in atomic units, as the
field's files have them.
"""

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from iqagp_jax.machine.precision import double, require_float64
from iqagp_jax.potential import Bound
from iqagp_jax.system.elements import same_atoms
from iqagp_jax.system.frames import local_frame
from iqagp_jax.system.harmonics import rank, rotated, solid_harmonics, sphere
from iqagp_jax.units import BOHR, HARTREE


@cache
def coupling(max_rank):
    """The constants of T, ((2L+1)^2, (L+1)^2, (L+1)^2) for the components Kq, lk, l'k'; zero unless K = l + l'."""
    nodes, weights = sphere(4 * max_rank)
    high = solid_harmonics(nodes, 2 * max_rank)
    low = high[:, : (max_rank + 1) ** 2]
    big, small = (np.sqrt(np.arange(h.shape[1])).astype(int) for h in (high, low))
    odd = np.array([np.prod(np.arange(2.0 * l - 1, 0, -2)) for l in range(2 * max_rank + 1)])
    means = np.einsum("nK,nl,nm->Klm", high * weights[:, None], low, low, optimize=True)
    factors = ((2 * big + 1) * odd[big])[:, None, None] / odd[small][:, None] / odd[small] * (-1.0) ** small
    return np.where(big[:, None, None] == small[:, None] + small, factors * means, 0.0)


def interaction_energies(
    positions: Float[Array | np.ndarray, "n 3"],
    moments: Float[Array | np.ndarray, "n k"],
    molecule: Int[Array | np.ndarray, "n"],
) -> Float[Array, "n"]:
    """Every atom's half (A,) of its interactions in eV, of atoms at ``positions`` (A, 3) in angstrom with ``moments``
    (A, (L+1)^2) along the global axes; U is their sum.

    ``molecule`` (A,) numbers each atom's molecule; molecules may differ. Time goes with the square of the number of
    atoms, memory linearly, also for the gradient.
    """
    require_float64()
    constants, highest = coupling(rank(moments)), 2 * rank(moments)
    positions = positions / BOHR

    @jax.checkpoint
    def with_all_others(atom):
        centre, q, own = atom
        other = molecule != own
        r = jnp.where(other[:, None], positions - centre, 1.0)
        square = jnp.sum(r * r, -1)
        # R_Kq is homogeneous of degree K, so R_Kq(r / r^2) / r = R_Kq(r) / r^(2K + 1).
        irregular = solid_harmonics(r / square[:, None], highest) / jnp.sqrt(square)[:, None]
        potential = moments @ jnp.einsum("klm,l->mk", constants, q)
        return jnp.sum(jnp.where(other, jnp.sum(irregular * potential, -1), 0.0))

    return 0.5 * HARTREE * jax.lax.map(with_all_others, (positions, moments, molecule))


def interaction_energy(positions, moments, molecule):
    """U in eV, the sum of `interaction_energies`."""
    return jnp.sum(interaction_energies(positions, moments, molecule))


def local_axes(frames: Any, positions: Float[Array | np.ndarray, "n 3"]) -> Float[Array | np.ndarray, "n 3 3"]:
    """Axes (N, 3, 3), as rows, of the atomic local ``frames``, (centre, x-axis, xy-plane) for every atom of (N, 3)."""
    require_float64()
    return jax.vmap(local_frame, (None, 0, 0, 0))(jnp.asarray(positions), *jnp.asarray(frames).T)


@jax.jit
def local_moments(moments, frames, positions):
    """Moments (N, (L+1)^2) of one molecule in its atomic local frames, from those along the axes of ``positions`` (N, 3)."""
    return rotated(moments, local_axes(frames, positions))


@jax.jit
def global_moments(moments, frames, positions):
    """Moments (N, (L+1)^2) along the axes of ``positions`` (N, 3), from those in the atomic local frames."""
    return rotated(moments, local_axes(frames, positions).mT)


def energy_fn(moments, frames):
    """Electrostatic energy of M like molecules as a function of positions: (M, N, 3) angstrom -> scalar eV, in float64.

    ``moments`` is a JAX function of one molecule's positions (N, 3) giving its moments (N, (L+1)^2) in e bohr^l in the
    atomic local ``frames``, ((centre, x-axis, xy-plane), ...) of its atoms. ``-jax.grad`` of the result are the forces,
    the moments' dependence on the geometry and the turning of the frames included. Works under jit, vmap and grad.
    """
    total = jax.jit(partial(_energy, moments, frames))
    value_and_gradient = jax.jit(jax.value_and_grad(total))

    @jax.custom_jvp
    def energy(positions):
        with jax.enable_x64(True):
            return total(_checked(frames, positions))

    @energy.defjvp
    def energy_jvp(primals, tangents):
        (positions,), (direction,) = primals, tangents
        with jax.enable_x64(True):
            value, gradient = value_and_gradient(_checked(frames, positions))
            return value, jnp.sum(gradient * direction.astype(gradient.dtype))

    return energy


def energy_and_forces(moments, frames):
    """The same as `energy_fn` with its forces: (M, N, 3) angstrom -> eV and (M, N, 3) eV/angstrom, as NumPy arrays.

    Compiled once per number of molecules.
    """
    compiled = jax.jit(jax.value_and_grad(partial(_energy, moments, frames)))

    def apply(positions):
        with jax.enable_x64(True):
            energy, gradient = compiled(_checked(frames, positions))
            return np.asarray(energy), np.asarray(-gradient)

    return apply


def _energy(moments, frames, positions):
    n_molecules, n_atoms, _ = positions.shape
    in_space = jax.vmap(lambda r: global_moments(moments(r), frames, r))(positions)
    molecule = jnp.repeat(jnp.arange(n_molecules), n_atoms)
    return interaction_energy(positions.reshape(-1, 3), in_space.reshape(n_molecules * n_atoms, -1), molecule)


def _checked(frames, positions):
    shape = np.shape(positions)
    if len(shape) != 3 or shape[1:] != (len(frames), 3):
        raise ValueError(
            f"expected positions of shape (molecules, {len(frames)}, 3) for the frames of {len(frames)} atoms, found {shape}"
        )
    return double(positions)


@partial(jax.tree_util.register_dataclass, data_fields=["moments"], meta_fields=[])
@dataclass(frozen=True)
class Electrostatics:
    """U between the molecules of a system as a potential: a cluster, no cut-off, no walls."""

    moments: Any
    """one molecule's positions (N, 3) -> its moments (N, (L+1)^2) in its ``frames``; with its ``species``"""

    made_by = None

    def check(self, system):
        """ValueError, in a sentence, for a cell, and for molecules that the moments are not of."""
        if system.cell is not None:
            raise ValueError("expected a cluster for electrostatics without a cut-off, found a cell; leave the cell out")
        for number, atoms in enumerate(system.members):
            same_atoms(self.moments.species, tuple(system.species[a] for a in atoms), f"molecule {number}")

    def bind(self, system, dtype=np.float64):
        """All molecules' moments at once, then all pairs."""
        atoms = np.array(system.members)
        molecule = np.empty(len(system), dtype=int)
        molecule[atoms] = np.arange(len(atoms))[:, None]
        frames = self.moments.frames

        def energies(positions, aux):
            each = jax.vmap(lambda r: global_moments(self.moments(r), frames, r))(positions[atoms])
            moments = jnp.zeros((len(molecule), each.shape[-1])).at[atoms].set(each)
            return interaction_energies(positions, moments, jnp.asarray(molecule)), aux

        return Bound(energies)

    def uncertainty(self, system):
        """None: nothing is told of the moments' errors."""
        return None


PARTS = (Electrostatics,)
"""What a model file may hold of it."""
