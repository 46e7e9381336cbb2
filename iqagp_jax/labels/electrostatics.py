"""Electrostatic potentials of density-fitted charge distributions, on millions of points, from radial tables.

A Gaussian auxiliary function is a polynomial in the solid harmonics of its centre: chi_P(r) = sum_lm R_Pl(s) Y_lm(s/|s|)
with s = r - R_A, so that its potential is (Laplace expansion)

    int chi_P(r') / |r - r'| dr' = sum_lm v_Pl(|s|) Y_lm(s/|s|)
    v_l(s) = 4 pi / (2l + 1) [s^(-l-1) int_0^s R_l(t) t^(l+2) dt + s^l int_s^inf R_l(t) t^(1-l) dt]

where both integrals are incomplete gamma functions. The v_l depend on the element only; they are tabulated once on a
logarithmic mesh, and a point then costs a table look-up and spherical harmonics for each atom, tens of times less than
one-electron integrals. Hartree and bohr throughout; Y_lm are orthonormal real harmonics at index l^2 + l + m.
"""

import numpy as np
from numba import njit
from pyscf import gto
from pyscf.dft.gen_grid import MakeAngularGrid
from scipy.special import gamma, gammainc, gammaincc

CORE = 0.01
"""Radius in bohr below which the radial mesh becomes linear: r = CORE (exp(u) - 1)."""

STEP = 0.02
"""Spacing of the radial mesh in u; the cubic Hermite interpolation then errs by about 1e-8."""

FAR = 200.0
"""End of the radial mesh in bohr."""


class AuxiliaryPotential:
    """Potentials of the functions of an auxiliary basis (a PySCF molecule with n functions).

    `expansion` (n, n) turns coefficients of the auxiliary functions into those of radial functions times Y_lm, which
    are ordered by atom, radial function and m; `functions` and `potential` are for coefficients of that kind.
    """

    def __init__(self, auxmol):
        self.centres = auxmol.atom_coords()
        shells = [[] for _ in range(auxmol.natm)]
        for shell in range(auxmol.nbas):
            shells[auxmol.bas_atom(shell)].append(shell)
        nodes = CORE * np.expm1(STEP * np.arange(int(np.log1p(FAR / CORE) / STEP) + 2))
        ao_loc = auxmol.ao_loc_nr()
        self.expansion = np.zeros((auxmol.nao, auxmol.nao))
        self.angular, tables, known, row = [], [], {}, 0
        for atom, own in enumerate(shells):
            table, angular = [], []
            for shell in own:
                harmonics = _angular_expansion(auxmol.bas_angular(shell), auxmol.cart)
                coefficients = auxmol._libcint_ctr_coeff(shell)
                for k in range(auxmol.bas_nctr(shell)):
                    start = ao_loc[shell] + k * len(harmonics)
                    for l in range(auxmol.bas_angular(shell), -1, -2):
                        block = harmonics[:, l * l : (l + 1) ** 2]
                        if abs(block).max() < 1e-12:
                            continue
                        self.expansion[row : row + 2 * l + 1, start : start + len(harmonics)] = block.T
                        row += 2 * l + 1
                        angular.append(l)
                        if auxmol.atom_symbol(atom) not in known:
                            exponents, c = auxmol.bas_exp(shell), coefficients[:, k]
                            table.append(_radial_potential(nodes, auxmol.bas_angular(shell), l, exponents, c))
            table = known.setdefault(auxmol.atom_symbol(atom), np.array(table).transpose(2, 1, 0) if table else None)
            tables.append(table)
            self.angular.append(np.array(angular))
        self.tables = tables
        self.tables32 = [t.astype(np.float32) for t in tables]

    def functions(self, points):
        """Potential of every radial function times Y_lm at points (G, 3), as float32 (G, n)."""
        out = np.empty((len(points), len(self.expansion)), np.float32)
        start = 0
        for centre, table, angular in zip(self.centres, self.tables32, self.angular, strict=True):
            width = int(np.sum(2 * angular + 1))
            _atom_functions(points, centre, table, angular, out[:, start : start + width])
            start += width
        return out

    def multipole_tables(self, coefficients):
        """Radial tables (nodes, 2, (lmax + 1)^2) of each atom's potential for coefficients (n,)."""
        result, start = [], 0
        for table, angular in zip(self.tables, self.angular, strict=True):
            summed = np.zeros((*table.shape[:2], (angular.max() + 1) ** 2))
            for k, l in enumerate(angular):
                own = coefficients[start : start + 2 * l + 1]
                summed[:, :, l * l : (l + 1) ** 2] += table[:, :, k, None] * own
                start += 2 * l + 1
            result.append(summed)
        return result

    def potential(self, coefficients):
        """A function of points (G, 3) giving the potential (G,) of the distribution with these coefficients (n,)."""
        tables = self.multipole_tables(coefficients)

        def evaluate(points):
            out = np.zeros(len(points))
            for centre, table in zip(self.centres, tables, strict=True):
                _add_multipoles(points, centre, table, out)
            return out

        return evaluate


def _angular_expansion(l, cartesian):
    """Functions of one shell of angular momentum l over Y_lm of all degrees up to l: (functions, (l + 1)^2)."""
    grid = np.asarray(MakeAngularGrid(194))
    powers = np.array([(i, j, l - i - j) for i in range(l, -1, -1) for j in range(l - i, -1, -1)])
    monomials = np.prod(grid[:, None, :3] ** powers, axis=-1)
    harmonics = np.empty((len(grid), (l + 1) ** 2))
    scratch = np.empty((len(grid), 3))
    _harmonics_on(np.ascontiguousarray(grid[:, :3]), l, harmonics, scratch)
    expansion = 4 * np.pi * monomials.T @ (grid[:, 3:] * harmonics)
    # libcint's s and p functions carry their angular normalization, Cartesian d and higher ones do not.
    expansion *= {0: np.sqrt(1 / (4 * np.pi)), 1: np.sqrt(3 / (4 * np.pi))}.get(l, 1.0)
    if not cartesian and l > 1:
        expansion = gto.cart2sph(l, normalized="sp").T @ expansion
    return expansion


def _radial_potential(radius, power, l, exponents, coefficients):
    """v_l and its derivative with respect to the mesh variable u for R = r^power sum_k c_k exp(-a_k r^2): (2, nodes)."""
    r = np.maximum(radius, 1e-8)[:, None]
    inner, outer = (power + l + 3) / 2, (power - l + 2) / 2
    x = exponents * r**2
    inside = 0.5 * gamma(inner) * (gammainc(inner, x) * exponents**-inner) @ coefficients
    outside = 0.5 * gamma(outer) * (gammaincc(outer, x) * exponents**-outer) @ coefficients
    r = r[:, 0]
    value = r ** (-l - 1.0) * inside + r**l * outside
    slope = -(l + 1) * r ** (-l - 2.0) * inside + l * r ** (l - 1.0) * outside
    return 4 * np.pi / (2 * l + 1) * np.array([value, slope * (radius + CORE) * STEP])


@njit(cache=True, error_model="numpy")
def _harmonics(x, y, z, lmax, out):
    """Orthonormal real spherical harmonics of a unit vector up to degree lmax, into out[l^2 + l + m]."""
    cosine, sine, diagonal = 1.0, 0.0, 0.28209479177387814
    for m in range(lmax + 1):
        if m > 0:
            cosine, sine = x * cosine - y * sine, x * sine + y * cosine
            diagonal *= np.sqrt((2.0 * m + 1.0) / (2.0 * m)) * (np.sqrt(2.0) if m == 1 else 1.0)
        before, value = 0.0, diagonal
        for l in range(m, lmax + 1):
            if l > m:
                a = np.sqrt((4.0 * l * l - 1.0) / (l * l - m * m))
                b = np.sqrt(((l - 1.0) ** 2 - m * m) / (4.0 * (l - 1.0) ** 2 - 1.0))
                before, value = value, a * (z * value - b * before)
            out[l * l + l + m] = value * cosine
            if m > 0:
                out[l * l + l - m] = value * sine


@njit(cache=True, error_model="numpy")
def _harmonics_on(directions, lmax, out, scratch):
    for g in range(len(directions)):
        _harmonics(directions[g, 0], directions[g, 1], directions[g, 2], lmax, out[g])


@njit(cache=True, error_model="numpy", fastmath=True)
def _locate(point, centre, nodes, harmonics, lmax):
    """Spherical harmonics of a point about a centre; its cell of the radial mesh and its place therein."""
    x, y, z = point[0] - centre[0], point[1] - centre[1], point[2] - centre[2]
    r = np.sqrt(x * x + y * y + z * z)
    if r > 0:
        _harmonics(x / r, y / r, z / r, lmax, harmonics)
    else:
        _harmonics(0.0, 0.0, 1.0, lmax, harmonics)
    u = np.log1p(r / CORE) / STEP
    cell = min(int(u), nodes - 2)
    return cell, min(u - cell, 1.0)


@njit(cache=True, error_model="numpy", fastmath=True)
def _atom_functions(points, centre, table, angular, out):
    lmax = angular.max()
    harmonics, values = np.empty((lmax + 1) ** 2), np.empty(table.shape[2], np.float32)
    for g in range(len(points)):
        cell, t = _locate(points[g], centre, len(table), harmonics, lmax)
        h1 = np.float32(t * t * (3 - 2 * t))
        h0 = np.float32(1) - h1
        s0, s1 = np.float32(t * (1 - t) ** 2), np.float32(t * t * (t - 1))
        a, b = table[cell], table[cell + 1]
        for k in range(len(values)):
            values[k] = h0 * a[0, k] + s0 * a[1, k] + h1 * b[0, k] + s1 * b[1, k]
        place = 0
        for k in range(len(values)):
            l = angular[k]
            for m in range(2 * l + 1):
                out[g, place + m] = values[k] * np.float32(harmonics[l * l + m])
            place += 2 * l + 1


@njit(cache=True, error_model="numpy", fastmath=True)
def _add_multipoles(points, centre, table, out):
    count = table.shape[2]
    lmax = int(np.sqrt(count)) - 1
    harmonics = np.empty(count)
    for g in range(len(points)):
        cell, t = _locate(points[g], centre, len(table), harmonics, lmax)
        h1 = t * t * (3 - 2 * t)
        h0, s0, s1 = 1 - h1, t * (1 - t) ** 2, t * t * (t - 1)
        a, b = table[cell], table[cell + 1]
        total = 0.0
        for k in range(count):
            total += harmonics[k] * (h0 * a[0, k] + s0 * a[1, k] + h1 * b[0, k] + s1 * b[1, k])
        out[g] += total
