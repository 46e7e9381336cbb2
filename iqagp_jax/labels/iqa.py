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
|        | ``exact_exchange``    | int w_A a_x eps_K, the exact-exchange share of E_xc,A                          |

so that no pair integral is needed and the E_A sum to the molecular energy (Blanco, Martin Pendas, Francisco,
doi:10.1021/ct0501093; for Kohn-Sham wave functions Maxwell, Martin Pendas, Popelier, doi:10.1039/C5CP07021J).
A partition (`fuzzy`, `qtaim`; the registry is `partitions`) is a function ``WaveFunction -> Quadrature`` that knows
nothing of energies. All quantities in this module are in hartree and bohr.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pyscf import df, dft, gto
from scipy.linalg import cholesky, pinvh, solve_triangular

from iqagp_jax.labels.multipoles import atomic_moments

AUXILIARY_BASIS = "def2-universal-jkfit"

LAST_WITH_CORE = 36
"""Krypton: beyond it `AUXILIARY_BASIS` has no functions for the core, which it leaves to an effective potential."""

ATOM_GRID = {"light": (50, 302), "heavy": (75, 302), "heaviest": (125, 302)}
"""(radial, angular) points of an atom's grid for hydrogen and helium, up to krypton, and beyond: with 75 radial points the
kinetic energy of iodine's core is 11 millihartree off, with 125 a microhartree."""

NEARLY_DEPENDENT = 1e-9
"""Eigenvalues of the auxiliary functions' Coulomb matrix below this share of the largest are left out of exact exchange."""

BLOCK = 1000
"""Grid points handled at once: the block of auxiliary potentials (naux x BLOCK) should stay in cache."""


@dataclass(frozen=True)
class AtomicIntegrals:
    """Components of the IQA atomic energies, each (N,) in hartree, and the electron ``population`` of each atom.

    ``exact_exchange`` is contained in ``exchange_correlation``; ``multipoles`` (N, 25) are the atomic moments up to the
    hexadecapole, see `multipoles`.
    """

    kinetic: np.ndarray
    nucleus_electrons: np.ndarray
    electrons_nuclei: np.ndarray
    coulomb: np.ndarray
    exchange_correlation: np.ndarray
    exact_exchange: np.ndarray
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
    grids.atom_grid = {s: ATOM_GRID[_size(gto.charge(s))] for s in symbols}
    return grids


def _size(charge):
    return "light" if charge <= 2 else "heavy" if charge <= LAST_WITH_CORE else "heaviest"


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
        alpha, beta = mo[:, occ > 0.5], mo[:, occ > 1.5]
        return alpha, alpha if alpha.shape == beta.shape else beta
    return mo[0][:, occ[0] > 0], mo[1][:, occ[1] > 0]


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


def fitting_basis(mol):
    """What a PySCF molecule's densities are fitted by: `AUXILIARY_BASIS`, or {atom: basis} with heavy atoms of all electrons.

    Those get the even-tempered functions that span the products of their orbital basis: HI in 3-21G is 0.6 mHa off, and 29 Ha
    with functions for the valence alone.
    """
    heavy = [
        symbol for k, (symbol, _) in enumerate(mol._atom) if mol.atom_charge(k) > LAST_WITH_CORE and not mol.atom_nelec_core(k)
    ]
    if not heavy:
        return AUXILIARY_BASIS
    own = df.aug_etb(mol)
    return {symbol: own[symbol] if symbol in heavy else AUXILIARY_BASIS for symbol, _ in mol._atom}


@dataclass(frozen=True)
class Quadrature:
    """Points shared by the atoms: int_A f = sum_g weights[A, g] f(coords[g]).

    ``coords`` (G, 3) in bohr; ``weights`` (N, G), a sparse array where an atom has its own points.
    """

    coords: np.ndarray
    weights: Any


class WaveFunction:
    """A converged PySCF mean field and its energy densities on any points.

    Electrostatic potentials come from density fitting, the mean field's own where it has one.

    Raises ValueError, in a sentence, where core electrons are left to an effective potential.
    """

    def __init__(self, mf):
        self.mf, self.mol = mf, mf.mol
        if self.mol.has_ecp():
            raise ValueError(
                "expected a wave function of all electrons to be partitioned into atoms, found one that leaves cores to an"
                " effective potential; choose an all-electron basis"
            )
        self._fitting = getattr(mf, "with_df", None) or df.DF(mf.mol, fitting_basis(mf.mol))
        if self._fitting.auxmol is None:
            self._fitting.build()
        self._known: tuple[Any, dict[str, Any]] = (None, {})

    @cached_property
    def grid(self):
        """`atom_centred_grid` of the molecule, shared by the fuzzy partitions."""
        return atom_centred_grid(self.mol)

    @cached_property
    def density_matrix(self):
        """Density matrix of all electrons, (nao, nao)."""
        dm = np.asarray(self.mf.make_rdm1())
        return dm if dm.ndim == 2 else dm.sum(0)

    @cached_property
    def _coulomb(self):
        return self._fitting.auxmol.intor("int2c2e")

    @cached_property
    def _metric(self):
        return cholesky(self._coulomb, lower=True)

    @cached_property
    def _stable_inverse(self):
        # Combinations of auxiliary functions that hardly differ would make rounding to single precision matter: 0.09 against
        # 0.03 microhartree of noise along a stretch of water.
        return pinvh(self._coulomb, rtol=NEARLY_DEPENDENT)

    @cached_property
    def _density_fit(self):
        dm = self.density_matrix
        packed = (2 * dm - np.diag(np.diag(dm)))[np.tril_indices(len(dm))]
        rows = np.concatenate([block @ packed for block in self._fitting.loop()])
        return solve_triangular(self._metric, rows, lower=True, trans="T")

    def _pair_fit(self, orbitals):
        """Fit of all orbital products phi_i phi_j with i <= j, off-diagonals doubled: (naux, pairs), i and j."""
        i, j = np.triu_indices(orbitals.shape[1])
        a, b = np.tril_indices(len(orbitals))
        rows = []
        for block in self._fitting.loop():
            full = np.zeros((len(block), len(orbitals), len(orbitals)))
            full[:, a, b] = full[:, b, a] = block
            rows.append((orbitals.T @ full @ orbitals)[:, i, j])
        fit = self._stable_inverse @ (self._metric @ np.concatenate(rows))
        return fit * np.where(i == j, 1.0, 2.0), i, j

    def energy_densities(self, coords):
        """Energy densities at points (G, 3): dict of arrays (G,) named like the fields of `AtomicIntegrals`.

        ``population`` is the electron density. Asking again for the same array of points costs nothing.
        """
        if self._known[0] is not coords:
            self._known = (coords, self._energy_densities(coords))
        return self._known[1]

    def _energy_densities(self, coords):
        mol, ni = self.mol, dft.numint.NumInt()
        alpha, beta = occupied_orbitals(self.mf)
        orbitals = (alpha,) if alpha is beta else (alpha, beta)
        xc = getattr(self.mf, "xc", "hf")
        exact_exchange = ni.hybrid_coeff(xc)
        kind = ni._xc_type(xc)
        nuclei, charges = mol.atom_coords(), mol.atom_charges()
        aux_potential = auxiliary_potential(self._fitting.auxmol)
        # Single precision is good to 1e-7 hartree here and halves the cost of the largest product.
        pair_fits = [(fit.astype(np.float32), i, j) for fit, i, j in map(self._pair_fit, orbitals)] if exact_exchange else []

        out = {name: np.zeros(len(coords)) for name in DENSITIES}
        for start in range(0, len(coords), BLOCK):
            block = slice(start, start + BLOCK)
            points = coords[block]
            ao = ni.eval_ao(mol, points, deriv=1)
            phi = [np.einsum("xga,ai->xgi", ao, c, optimize=True) for c in orbitals]
            rho = np.stack([_spin_density(p) for p in phi])
            spin = 2 * rho[0] if len(orbitals) == 1 else rho
            n, tau = (2 if len(orbitals) == 1 else 1) * rho[:, [0, 4]].sum(0)
            if kind != "HF":
                rows = spin[..., : {"LDA": 1, "GGA": 4, "MGGA": 5}[kind], :]
                rows = rows[0] if kind == "LDA" and len(orbitals) == 1 else rows
                out["exchange_correlation"][block] = n * ni.eval_xc_eff(xc, rows, deriv=0, xctype=kind)[0]
            potential = aux_potential(points)
            if exact_exchange:
                single = potential.astype(np.float32)
                for p, (fit, i, j) in zip(phi, pair_fits, strict=True):
                    values = p[0].astype(np.float32)
                    k = np.einsum("gm,gm->g", values[:, i] * values[:, j], single.T @ fit)
                    out["exact_exchange"][block] -= exact_exchange * (1.0 if len(orbitals) == 1 else 0.5) * k
            out["kinetic"][block] = tau
            out["electrons_nuclei"][block] = -n * (charges / np.linalg.norm(points[:, None] - nuclei, axis=-1)).sum(1)
            out["coulomb"][block] = n * (self._density_fit @ potential)
            out["population"][block] = n
        out["exchange_correlation"] += out["exact_exchange"]
        return out

    def integrate(self, quadrature):
        """`AtomicIntegrals` of the atoms of a `Quadrature`."""
        densities = self.energy_densities(quadrature.coords)
        atoms = self.mol.atom_coords(), self.mol.atom_charges()
        return AtomicIntegrals(
            **{name: quadrature.weights @ values for name, values in densities.items()},
            nucleus_electrons=nucleus_electron_attraction(self.mol, self.density_matrix),
            nuclear_repulsion=nuclear_repulsion(self.mol),
            multipoles=atomic_moments(quadrature.coords, quadrature.weights, densities["population"], *atoms),
        )


DENSITIES = ("kinetic", "electrons_nuclei", "coulomb", "exchange_correlation", "exact_exchange", "population")
"""Components of the atomic energies that are integrals over the atom."""


def _spin_density(phi):
    """rho, its gradient and tau of one spin from orbital values and gradients phi (4, G, nocc): (5, G)."""
    rho = np.einsum("gi,xgi->xg", phi[0], phi)
    rho[1:] *= 2
    tau = 0.5 * np.einsum("xgi,xgi->g", phi[1:], phi[1:])
    return np.concatenate([rho, tau[None]])


def nucleus_electron_attraction(mol, density_matrix):
    """Attraction of each nucleus to all electrons, (N,) in hartree, analytic."""
    result = []
    for centre, charge in zip(mol.atom_coords(), mol.atom_charges(), strict=True):
        with mol.with_rinv_origin(centre):
            result.append(-charge * np.sum(mol.intor("int1e_rinv") * density_matrix))
    return np.array(result)


def nuclear_repulsion(mol):
    """sum_{B != A} Z_A Z_B / R_AB for each atom, (N,) in hartree (twice the atom's share)."""
    z, r = mol.atom_charges(), mol.atom_coords()
    distance = np.linalg.norm(r[:, None] - r, axis=-1)
    np.fill_diagonal(distance, np.inf)
    return (z[:, None] * z / distance).sum(1)


def integrate_atoms(mf, partitions):
    """IQA components of every atom for each partition in ``partitions``, a dict name -> partition.

    Partitions that share their points share the energy densities; returns a dict of `AtomicIntegrals`.
    """
    if not partitions:
        return {}
    wave = WaveFunction(mf)
    return {name: wave.integrate(partition(wave)) for name, partition in partitions.items()}
