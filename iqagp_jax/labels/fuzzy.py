"""Fuzzy atoms: smooth weights w_A(r) with sum_A w_A = 1 that share every point of space among the atoms.

Both partitions integrate on the grid of the wave function (`iqa.atom_centred_grid`) and so share its energy densities.
"""

import json
from functools import cache

import numpy as np
from pyscf import gto
from pyscf.scf.atom_hf import get_atm_nrhf
from scipy.interpolate import CubicSpline

from iqagp_jax.labels.iqa import Quadrature


def becke(wave):
    """Becke's atoms with Bragg-Slater radii and three smoothing steps (doi:10.1063/1.454033).

    The quadrature weights of an atom-centred grid are volume times Becke's cell function of the parent, so what is
    left of the partition is to which parent a point belongs.
    """
    coords, weights, parent = wave.grid
    return Quadrature(coords, weights * (parent == np.arange(wave.mol.natm)[:, None]))


def hirshfeld(wave):
    """Hirshfeld's atoms, w_A = rho_A^free / sum_B rho_B^free (doi:10.1007/BF00549096).

    Free atoms are spherically averaged Hartree-Fock densities in the molecule's basis.
    """
    coords, weights, _ = wave.grid
    mol = wave.mol
    density = np.empty((mol.natm, len(coords)))
    for a, centre in enumerate(mol.atom_coords()):
        radius = np.linalg.norm(coords - centre, axis=1)
        log_density = free_atom_log_density(mol, a)
        density[a] = log_density(np.minimum(radius, FAR))
        # Beyond the spline every basis' density is noise: go on with the slope of a slow exponential.
        density[a] -= 2.0 * np.maximum(radius - FAR, 0.0)
    density = np.exp(density - density.max(0))
    return Quadrature(coords, weights * density / density.sum(0))


FAR = 12.0
"""Radius in bohr up to which the free atoms' densities are tabulated."""


def free_atom_log_density(mol, a):
    """ln rho(r) of atom ``a`` by itself, spherically averaged, in the molecule's basis: a cubic spline in r (bohr)."""
    return _log_density(mol.atom_pure_symbol(a), json.dumps(mol._basis[mol.atom_symbol(a)]))


@cache
def _log_density(symbol, basis):
    number = gto.charge(symbol)
    atom = gto.M(atom=[[symbol, (0, 0, 0)]], basis={symbol: json.loads(basis)}, spin=number % 2, verbose=0)
    _, _, coefficients, occupations = get_atm_nrhf(atom)[symbol]
    radius = np.linspace(0, FAR, 601)
    ao = atom.eval_gto("GTOval_sph", np.outer(radius, np.full(3, 1 / np.sqrt(3))))
    # With fractional occupations the density is spherical, so any direction will do.
    density = ((ao @ coefficients) ** 2) @ occupations
    return CubicSpline(radius, np.log(np.maximum(density, 1e-30)))
