"""Normal modes of a potential at a stationary point, and the thermochemistry of an ideal gas that they give."""

import warnings
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.thermochemistry import IdealGasThermo
from ase.vibrations import VibrationsData
from jaxtyping import Float

from iqagp_jax.potential import bind, double
from iqagp_jax.system.system import System
from iqagp_jax.units import TIME_UNIT

LIGHT = 2.99792458e-5
"""Speed of light in cm/fs."""

WAVENUMBER = 1 / (2 * np.pi * LIGHT * TIME_UNIT)
"""1/cm of an angular frequency of one sqrt(eV / (amu angstrom^2))."""

PLANCK = 4.135667696e-15 * 1e15 * LIGHT
"""Energy in eV of a quantum of 1/cm."""

LINEAR = 1e-3
"""A molecule is linear where turning about an axis moves its atoms less than this share of what moving it as a whole does."""

ATMOSPHERE = 101325.0
"""Pa."""


def hessian(potential: Any, positions: Any, system: System | None = None) -> Float[np.ndarray, "k k"]:
    """Second derivatives of the energy by Cartesian coordinates (3N, 3N), eV/angstrom^2, at positions (N, 3) in angstrom.

    The fast gradient is differentiated forwards, once for every coordinate.
    """
    bound, system = bind(potential, system)
    with jax.enable_x64(True):
        positions = double(jnp.asarray(positions, dtype=jnp.float64))
        aux = bound.enlarged(positions[None]) if bound.enlarged else bound.aux

        @jax.jit
        def columns(r: Any) -> Any:
            gradient = lambda x: bound.energy_and_gradient(x, aux)[0][1]  # noqa: E731
            along = jnp.eye(r.size).reshape(-1, *r.shape)
            return jax.lax.map(lambda direction: jax.jvp(gradient, (r,), (direction,))[1], along)

        found = np.asarray(columns(positions)).reshape(positions.size, -1)
    return (found + found.T) / 2


@dataclass(frozen=True)
class NormalModes:
    """Small vibrations about a stationary point; the molecule as a whole neither moves nor turns in them."""

    system: System
    """there"""
    hessian: Float[np.ndarray, "k k"]
    """(3N, 3N) eV/angstrom^2"""
    wavenumbers: Float[np.ndarray, "m"]
    """1/cm, the lowest first; those of imaginary frequencies are negative"""
    modes: Float[np.ndarray, "m n 3"]
    """directions in angstrom, of which each has sum_i m_i |u_i|^2 = 1 amu angstrom^2"""

    @classmethod
    def of(cls, potential: Any, positions: Any, system: System | None = None) -> "NormalModes":
        """At positions (N, 3) in angstrom, a stationary point of a potential; see `from_hessian`."""
        _, system = bind(potential, system)
        if not system.is_alone or len(system) < 2:
            raise ValueError(
                "expected one molecule of two atoms or more without walls for normal modes, found"
                f" {len(system.members)} of {len(system)} atoms; `hessian` takes any"
            )
        system = system.at(np.asarray(positions, dtype=float))
        return cls.from_hessian(hessian(potential, positions, system), system)

    @classmethod
    def from_hessian(cls, second: Float[np.ndarray, "k k"], system: System) -> "NormalModes":
        """Of second derivatives H (3N, 3N), eV/angstrom^2, at a system's positions.

        With masses m, m^-1/2 H m^-1/2 is diagonalised among the directions that are neither translations nor rotations
        (3N - 6, of a linear molecule 3N - 5); nu = sqrt(eigenvalue) / 2 pi c.
        """
        root = np.repeat(np.sqrt(system.masses), 3)
        inner = _inner(system.positions, root)
        eigenvalues, vectors = np.linalg.eigh(inner.T @ (second / np.outer(root, root)) @ inner)
        wavenumbers = np.sign(eigenvalues) * np.sqrt(np.abs(eigenvalues)) * WAVENUMBER
        modes = (inner @ vectors).T / root
        return cls(system, second, wavenumbers, modes.reshape(len(modes), -1, 3))

    @property
    def real(self) -> Float[np.ndarray, "m"]:
        """Wavenumbers of the vibrations that have a real frequency."""
        return self.wavenumbers[self.wavenumbers > 0]

    @property
    def is_linear(self) -> bool:
        """Whether all atoms lie on a line."""
        return len(self.wavenumbers) == 3 * len(self.system) - 5

    @property
    def zero_point_energy(self) -> float:
        """Half a quantum of every vibration that has a real frequency, eV."""
        return float(PLANCK * self.real.sum() / 2)

    @property
    def atoms(self) -> Atoms:
        """For ASE."""
        return Atoms(self.system.species, positions=self.system.positions)

    @property
    def vibrations(self) -> VibrationsData:
        """For ASE, which also writes them for viewers."""
        n = len(self.system)
        return VibrationsData(self.atoms, self.hessian.reshape(n, 3, n, 3))

    def thermochemistry(
        self, energy: float, temperature: float = 298.15, pressure: float = ATMOSPHERE, symmetry_number: int = 1
    ) -> dict[str, float]:
        """Of an ideal gas of rigid rotors and harmonic oscillators, by ASE; imaginary frequencies are left out.

        Args:
            energy: of the stationary point, eV.
            temperature: K.
            pressure: Pa.
            symmetry_number: of the rigid molecule's rotations.

        Returns ``enthalpy`` and ``free_energy`` (Gibbs) in eV, ``entropy`` in eV/K and ``zero_point_energy`` in eV.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*imag modes removed")
            gas = IdealGasThermo(
                [PLANCK * (w if w > 0 else -1j * w) for w in self.wavenumbers.tolist()],
                "linear" if self.is_linear else "nonlinear",
                potentialenergy=energy,
                atoms=self.atoms,
                symmetrynumber=symmetry_number,
                spin=self.system.spin / 2,
                ignore_imag_modes=True,
            )
        return {
            "enthalpy": gas.get_enthalpy(temperature, verbose=False),
            "entropy": gas.get_entropy(temperature, pressure, verbose=False),
            "free_energy": gas.get_gibbs_energy(temperature, pressure, verbose=False),
            "zero_point_energy": self.zero_point_energy,
        }


def _inner(positions: np.ndarray, root: np.ndarray) -> np.ndarray:
    """An orthonormal basis (3N, 3N - 6) of mass-weighted directions without translations and rotations; ``root`` (3N,)."""
    mass = root[::3] ** 2
    arms = positions - mass @ positions / mass.sum()
    outer = [np.tile(axis, len(positions)) for axis in np.eye(3)]
    outer += [np.cross(axis, arms).ravel() for axis in np.eye(3)]
    left, singular, _ = np.linalg.svd((root * np.array(outer)).T)
    rank = int((singular > LINEAR * singular[0]).sum())
    return left[:, rank:]
