"""The reference calculation: one self-consistent field with its forces, by PySCF."""

import re
import warnings
from functools import cache, partial

import numpy as np
from pyscf import dft, gto, lib, scf

from iqagp_jax.labels.iqa import AUXILIARY_BASIS, LAST_WITH_CORE, atom_grids, fitting_basis
from iqagp_jax.units import BOHR

BLOCK_MEMORY = 6
"""MB that a block of grid points may take: PySCF's blocks of hundreds of MB leave the cache, at a third more time."""

FOR_ATOMS, FOR_FORCES = 1e-6, 3e-5
"""Tolerance of the SCF's gradient: atomic energies feel the density's error in first order, the total energy in second; forces,
also in first, are wanted less exactly."""


class LabelError(RuntimeError):
    """A geometry could not be labelled; the message says why."""


def is_cartesian(basis):
    """Whether a basis has Cartesian d functions: the Pople sets but 6-311G, however they are spelled."""
    return bool(re.match(r"(321|431|621|631(?!1))", re.sub("[-_ ]", "", basis.lower())))


def build_molecule(species, positions, basis, charge=0, spin=0):
    """PySCF molecule from species (N,) and positions (N, 3) in angstrom; ``spin`` is the number of unpaired electrons.

    Pople basis sets get six Cartesian d functions, as they were defined and as Gaussian and AIMAll users have them; 6-311G,
    as there, five. (Their f functions would be ten then, Gaussian's are seven.) A basis that was made for an effective core
    potential gets it.
    """
    return gto.M(
        atom=list(zip(species, np.asarray(positions) / BOHR, strict=True)),
        unit="Bohr",
        basis=basis,
        ecp={symbol: basis for symbol in sorted(set(species)) if has_core_potential(basis, symbol)},
        charge=charge,
        spin=spin,
        cart=is_cartesian(basis),
        verbose=0,
    )


@cache
def has_core_potential(basis, symbol):
    """Whether a basis was made for an effective core potential at an element, as the def2 sets from rubidium on."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return bool(gto.basis.load_ecp(basis, symbol))
    except (RuntimeError, KeyError):  # of sets that PySCF puts together itself, the Pople ones
        return False


def fitting_of(species, basis=""):
    """What densities of these atoms in an orbital basis are fitted by, in words; see `iqa.fitting_basis`."""
    beyond = [s for s in sorted(set(species)) if gto.charge(s) > LAST_WITH_CORE]
    heavy = [s for s in beyond if not (basis and has_core_potential(basis, s))]
    return " and even-tempered on ".join(filter(None, (AUXILIARY_BASIS, " ".join(heavy))))


def mean_field(mol, xc):
    """Unconverged Kohn-Sham (or, for ``xc='hf'``, Hartree-Fock) mean field with density fitting."""
    if xc.lower() == "hf":
        method = scf.rhf.RHF if mol.spin == 0 else scf.uhf.UHF  # scf.UHF gives a lone electron no density fitting
    else:
        method = partial(dft.RKS if mol.spin == 0 else dft.UKS, xc=xc)
    return method(mol).density_fit(auxbasis=fitting_basis(mol))


def converge(mf, tolerance=FOR_ATOMS, start=None):
    """Run the self-consistent field to 1e-9 hartree and ``tolerance`` of its gradient, from a density matrix ``start``.

    Raises `LabelError` where it does not converge, also not with the second-order solver.
    """
    if hasattr(mf, "grids"):
        mf.max_memory = lib.current_memory()[0] + BLOCK_MEMORY
        mf.conv_check = False  # after convergence another cycle, which costs as much as three on the coarse grid
        start = _on_coarse_grid(mf, (1e-3, 10 * tolerance, tolerance / 2))
        mf.grids = atom_grids(mf.mol)
    mf.conv_tol, mf.conv_tol_grad = 1e-9, tolerance
    mf.kernel(start)
    if not mf.converged:
        mf = mf.newton()
        mf.kernel(mf.mo_coeff, mf.mo_occ)
    if not mf.converged:
        raise LabelError(f"the SCF did not converge to {mf.conv_tol:g} hartree in {mf.max_cycle} cycles")
    return mf


def _on_coarse_grid(mf, tolerances):
    """Density matrix near self-consistency on the grid of labels, by cycles on a coarse one: a third less time.

    After every tolerance of the gradient what the fine grid adds to the potential, V_fine(D) - V_coarse(D), is made for the
    density at hand and held fixed in the cycles to come: it changes little with the density.
    """
    coarse, fine = mf.grids, atom_grids(mf.mol)
    coarse.level, mf.conv_tol = 0, 1.0  # the gradient alone decides
    integrate = mf._numint.nr_rks if mf.mol.spin == 0 else mf._numint.nr_uks
    plain, added, density = mf.get_veff, 0.0, None

    def corrected(*arguments, **options):
        potential = plain(*arguments, **options)
        return lib.tag_array(potential + added, **vars(potential))

    mf.get_veff = corrected
    for tolerance in tolerances:
        if density is not None:
            of_fine, of_coarse = (
                integrate(mf.mol, grid, mf.xc, density, max_memory=BLOCK_MEMORY)[2] for grid in (fine, coarse)
            )
            added = of_fine - of_coarse
        mf.conv_tol_grad = tolerance
        mf.kernel(density)
        density = mf.make_rdm1()
    del mf.get_veff
    return density


def forces(mf):
    """Forces (N, 3) in hartree/bohr, with the response of the integration grid, so that they sum to zero."""
    gradient = mf.nuc_grad_method()
    if hasattr(mf, "grids"):
        gradient.grid_response = True
    return -gradient.kernel()


def single_thread():
    """Bind PySCF to one thread: labels are made by one process per core."""
    lib.num_threads(1)
