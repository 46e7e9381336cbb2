"""Atomic energies of interacting quantum atoms (IQA) by integration of single-atom densities.

For a wave function and a partition of space into atoms with weights w_A(r), sum_A w_A(r) = 1, the energy of atom A is

    E_A = T_A + 1/2 V_ne,A + 1/2 V_en,A + 1/2 J_A + E_xc,A + 1/2 sum_{B != A} Z_A Z_B / R_AB

| symbol | array                 | what                                                                          |
| ------ | --------------------- | ----------------------------------------------------------------------------- |
| T_A    | ``kinetic``           | int w_A G(r), G = 1/2 sum_i n_i abs(grad phi_i)^2 the positive kinetic energy density |
| V_ne,A | ``nucleus_electrons`` | nucleus A with all electrons, analytic                                        |
| V_en,A | ``electrons_nuclei``  | - int w_A rho(r) sum_B Z_B / abs(r - R_B)                                      |
| J_A    | ``coulomb``           | int w_A rho(r) V_el(r), V_el the electrons' own electrostatic potential       |
| E_xc,A | ``exchange_correlation`` | int w_A (rho eps_xc + a_x eps_K), eps_K the exact-exchange energy density |

so that no pair integral is needed and the E_A sum to the molecular energy (Blanco, Martin Pendas, Francisco,
doi:10.1021/ct0501093; for Kohn-Sham wave functions Maxwell, Martin Pendas, Popelier, doi:10.1039/C5CP07021J).
All quantities in this module are in hartree and bohr.
"""

from dataclasses import dataclass

import numpy as np
from pyscf import dft, gto
from scipy.linalg import cholesky, solve_triangular

from iqagp_jax.labels.multipoles import atomic_moments

ATOM_GRID = {"light": (50, 302), "heavy": (75, 302)}
"""(radial, angular) points of an atom's grid for hydrogen and for everything else."""

BLOCK = 2000
"""Grid points handled at once: the aux-potential block (naux x BLOCK) should stay in cache."""


@dataclass(frozen=True)
class AtomicIntegrals:
    """Components of the IQA atomic energies, each (N,) in hartree, and the electron ``population`` of each atom.

    ``multipoles`` (N, 25) are the atomic moments up to the hexadecapole, see `multipoles`.
    """

    kinetic: np.ndarray
    nucleus_electrons: np.ndarray
    electrons_nuclei: np.ndarray
    coulomb: np.ndarray
    exchange_correlation: np.ndarray
    nuclear_repulsion: np.ndarray
    population: np.ndarray
    multipoles: np.ndarray

    @property
    def energy(self):
        """IQA atomic energies E_A, (N,) in hartree."""
        return (
            self.kinetic
            + 0.5 * (self.nucleus_electrons + self.electrons_nuclei + self.coulomb + self.nuclear_repulsion)
            + self.exchange_correlation
        )


def atom_grids(mol):
    """PySCF's integration grids with `ATOM_GRID` points and Becke's cells of Bragg-Slater size."""
    grids = dft.gen_grid.Grids(mol)
    grids.verbose = 0
    grids.radii_adjust = dft.radi.becke_atomic_radii_adjust
    grids.prune = dft.gen_grid.nwchem_prune
    symbols = {mol.atom_pure_symbol(a) for a in range(mol.natm)}
    grids.atom_grid = {s: ATOM_GRID["light" if s in ("H", "He") else "heavy"] for s in symbols}
    return grids


def atom_centred_grid(mol):
    """The points of `atom_grids` together with the atom to which each belongs.

    Returns coordinates (G, 3) in bohr, quadrature weights (G,) and parent atoms (G,). The weights hold Becke's cell
    functions (doi:10.1063/1.454033), so the sum over the points of parent A integrates w_A^Becke f.
    """
    grids = atom_grids(mol)
    table = grids.gen_atomic_grids(mol, grids.atom_grid, grids.radi_method, grids.level, grids.prune)
    coords, weights = grids.get_partition(mol, table, grids.radii_adjust, grids.atomic_radii, concat=False)
    parent = np.repeat(np.arange(mol.natm), [len(w) for w in weights])
    return np.concatenate(coords), np.concatenate(weights), parent


def occupied_orbitals(mf):
    """Occupied orbitals of each spin, scaled so that rho_sigma = sum_i phi_i^2: two arrays (nao, nocc)."""
    mo, occ = np.asarray(mf.mo_coeff), np.asarray(mf.mo_occ)
    if mo.ndim == 2:
        alpha = mo[:, occ > 0]
        return alpha, alpha
    return mo[0][:, occ[0] > 0], mo[1][:, occ[1] > 0]


def _pair_fit(mf, orbitals):
    """Density-fitting coefficients c[P, ij] of all orbital products phi_i phi_j with i <= j, off-diagonals doubled."""
    auxmol = mf.with_df.auxmol
    low = cholesky(auxmol.intor("int2c2e"), lower=True)
    n = orbitals.shape[1]
    i, j = np.triu_indices(n)
    rows = []
    for block in mf.with_df.loop():
        full = np.zeros((len(block), len(orbitals), len(orbitals)))
        a, b = np.tril_indices(len(orbitals))
        full[:, a, b] = full[:, b, a] = block
        rows.append((orbitals.T @ full @ orbitals)[:, i, j])
    fit = solve_triangular(low, np.concatenate(rows), lower=True, trans="T")
    return fit * np.where(i == j, 1.0, 2.0), i, j


def _density_fit(mf):
    """Density-fitting coefficients c[P] of the electron density."""
    low = cholesky(mf.with_df.auxmol.intor("int2c2e"), lower=True)
    dm = np.asarray(mf.make_rdm1())
    dm = dm if dm.ndim == 2 else dm.sum(0)
    packed = dm + dm.T - np.diag(np.diag(dm))
    packed = packed[np.tril_indices(len(dm))]
    return solve_triangular(low, np.concatenate([block @ packed for block in mf.with_df.loop()]), lower=True, trans="T")


def auxiliary_potential(auxmol):
    """Electrostatic potential of every auxiliary function: a function of points (G, 3) in bohr giving (naux, G).

    int chi_P(r') / abs(r - r') dr' is a nuclear-attraction integral between chi_P and the constant 1, an s function of
    exponent zero; libcint vectorises those over the points, ten times faster than two-centre Coulomb integrals with
    point charges.
    """
    both = gto.conc_mol(auxmol, gto.fakemol_for_charges(np.zeros((1, 3)), expnt=1.0))
    both.cart = auxmol.cart
    constant = both._bas[-1]
    both._env[constant[gto.PTR_EXP]] = 0.0
    both._env[constant[gto.PTR_COEFF]] = np.sqrt(4 * np.pi)
    shells = (0, auxmol.nbas, auxmol.nbas, both.nbas)
    return lambda points: both.intor("int1e_grids", grids=points, shls_slice=shells)[:, :, 0].T


def energy_densities(mf, coords):
    """Energy densities on a grid: dict of arrays (G,) named like the fields of `AtomicIntegrals`.

    ``mf`` is a converged PySCF mean field with density fitting, ``coords`` (G, 3) in bohr.
    """
    mol, auxmol = mf.mol, mf.with_df.auxmol
    alpha, beta = occupied_orbitals(mf)
    restricted = alpha is beta
    ni = dft.numint.NumInt()
    xc = getattr(mf, "xc", "hf")
    exact_exchange = ni.hybrid_coeff(xc)
    kind = ni._xc_type(xc)
    nuclei, charges = mol.atom_coords(), mol.atom_charges()
    density_fit = _density_fit(mf)
    aux_potential = auxiliary_potential(auxmol)
    pair_fits = [_pair_fit(mf, c) for c in ((alpha,) if restricted else (alpha, beta))]

    out = {
        name: np.empty(len(coords)) for name in ("kinetic", "electrons_nuclei", "coulomb", "exchange_correlation", "population")
    }
    for start in range(0, len(coords), BLOCK):
        points = coords[start : start + BLOCK]
        ao = ni.eval_ao(mol, points, deriv=1)
        phi = [np.einsum("xga,ai->xgi", ao, c, optimize=True) for c in ((alpha,) if restricted else (alpha, beta))]
        rho = [_spin_density(p) for p in phi]
        if restricted:
            total = 2 * rho[0]
            spin = total
        else:
            total = rho[0] + rho[1]
            spin = np.stack(rho)
        n, tau = total[0], total[4]
        potential = aux_potential(points)
        nuclear = (charges / np.linalg.norm(points[:, None] - nuclei, axis=-1)).sum(1)

        if kind == "HF":
            e_xc = np.zeros(len(points))
        else:
            variables = {"LDA": 1, "GGA": 4, "MGGA": 5}[kind]
            rows = spin[..., :variables, :]
            e_xc = n * ni.eval_xc_eff(xc, rows[0] if kind == "LDA" and restricted else rows, deriv=0, xctype=kind)[0]
        if exact_exchange:
            for p, (fit, i, j) in zip(phi, pair_fits, strict=True):
                values = np.ascontiguousarray(p[0].T)
                k = np.einsum("mg,mg->g", values[i] * values[j], fit.T @ potential)
                e_xc -= exact_exchange * (1.0 if restricted else 0.5) * k
        block = slice(start, start + BLOCK)
        out["kinetic"][block] = tau
        out["electrons_nuclei"][block] = -n * nuclear
        out["coulomb"][block] = n * (density_fit @ potential)
        out["exchange_correlation"][block] = e_xc
        out["population"][block] = n
    return out


def _spin_density(phi):
    """rho, its gradient and tau of one spin from orbital values and gradients phi (4, G, nocc): (5, G)."""
    rho = np.einsum("gi,xgi->xg", phi[0], phi)
    rho[1:] *= 2
    tau = 0.5 * np.einsum("xgi,xgi->g", phi[1:], phi[1:])
    return np.concatenate([rho, tau[None]])


def nucleus_electron_attraction(mf):
    """Attraction of each nucleus to all electrons, (N,) in hartree, analytic."""
    mol = mf.mol
    dm = np.asarray(mf.make_rdm1())
    dm = dm if dm.ndim == 2 else dm.sum(0)
    result = []
    for centre, charge in zip(mol.atom_coords(), mol.atom_charges(), strict=True):
        with mol.with_rinv_origin(centre):
            result.append(-charge * np.sum(mol.intor("int1e_rinv") * dm))
    return np.array(result)


def nuclear_repulsion(mol):
    """sum_{B != A} Z_A Z_B / R_AB for each atom, (N,) in hartree (twice the atom's share)."""
    z, r = mol.atom_charges(), mol.atom_coords()
    distance = np.linalg.norm(r[:, None] - r, axis=-1)
    np.fill_diagonal(distance, np.inf)
    return (z[:, None] * z / distance).sum(1)


def integrate_atoms(mf, partitions):
    """IQA components of every atom for each partition in ``partitions``, a dict name -> `Partition`.

    The energy densities are computed once and integrated with each partition's weights; returns a dict of
    `AtomicIntegrals`.
    """
    coords, weights, parent = atom_centred_grid(mf.mol)
    densities = energy_densities(mf, coords)
    analytic = {"nucleus_electrons": nucleus_electron_attraction(mf), "nuclear_repulsion": nuclear_repulsion(mf.mol)}
    results = {}
    for name, partition in partitions.items():
        atoms = partition(mf.mol, coords, parent) * weights
        shares = {key: atoms @ value for key, value in densities.items()}
        moments = atomic_moments(coords, atoms, densities["population"], mf.mol.atom_coords(), mf.mol.atom_charges())
        results[name] = AtomicIntegrals(**shares, **analytic, multipoles=moments)
    return results
