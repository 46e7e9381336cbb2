"""Fuzzy atoms: smooth weights that share every point of space among the atoms.

A partition is a function ``(mol, coords, parent) -> weights (N, G)`` with sum_A weights[A] = 1 at every grid point;
``parent`` (G,) names the atom whose integration grid a point belongs to.
"""

import json
from functools import cache

import numpy as np
from pyscf import gto
from pyscf.scf.atom_hf import get_atm_nrhf
from scipy.interpolate import CubicSpline


def becke(mol, coords, parent):
    """Becke's atoms with Bragg-Slater radii and three smoothing steps (doi:10.1063/1.454033), (N, G).

    The quadrature weights of an atom-centred grid are volume times Becke's cell function of the parent, so what is
    left of the partition is to which parent a point belongs.
    """
    return (parent == np.arange(mol.natm)[:, None]).astype(float)


def hirshfeld(mol, coords, parent):
    """Hirshfeld's atoms, w_A = rho_A^free / sum_B rho_B^free (doi:10.1007/BF00549096), (N, G).

    Free atoms are spherically averaged Hartree-Fock densities in the molecule's basis.
    """
    density = np.empty((mol.natm, len(coords)))
    for a, centre in enumerate(mol.atom_coords()):
        radius = np.linalg.norm(coords - centre, axis=1)
        log_density = free_atom_log_density(mol.atom_pure_symbol(a), json.dumps(mol._basis[mol.atom_symbol(a)]))
        density[a] = log_density(np.minimum(radius, FAR))
        # Beyond the spline every basis' density is noise: go on with the slope of a slow exponential.
        density[a] -= 2.0 * np.maximum(radius - FAR, 0.0)
    density = np.exp(density - density.max(0))
    return density / density.sum(0)


FAR = 12.0
"""Radius in bohr up to which the free atoms' densities are tabulated."""


@cache
def free_atom_log_density(symbol, basis):
    """ln rho(r) of a spherically averaged free atom, a cubic spline in r (bohr); ``basis`` holds PySCF's shells as JSON."""
    number = gto.charge(symbol)
    atom = gto.M(atom=[[symbol, (0, 0, 0)]], basis={symbol: json.loads(basis)}, spin=number % 2, verbose=0)
    _, _, coefficients, occupations = get_atm_nrhf(atom)[symbol]
    radius = np.linspace(0, FAR, 601)
    ao = atom.eval_gto("GTOval_sph", np.outer(radius, np.full(3, 1 / np.sqrt(3))))
    # With fractional occupations the density is spherical, so any direction will do.
    density = ((ao @ coefficients) ** 2) @ occupations
    return CubicSpline(radius, np.log(np.maximum(density, 1e-30)))


PARTITIONS = {"becke": becke, "hirshfeld": hirshfeld}
