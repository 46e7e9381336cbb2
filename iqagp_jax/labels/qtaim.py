"""Topological atoms: basins of steepest ascent in the electron density (Bader; doi:10.1021/cr00005a013).

Every point belongs to the nucleus where the path dx/ds = g/|g|, g = grad ln rho, ends. An atom is integrated over a
sphere inside its basin (the beta sphere) and, outside of it, along Lebedev rays from its nucleus: the ray is walked in
steps, each change of basin is located by bisection, and the segments inside the basin get Gauss-Legendre points.

1. `Surrogate`: ln rho as a sum of nuclear cusps, those of the free atoms, and a cubic B-spline of what is left, on a mesh
   around the molecule and on a finer one around each nucleus. Paths are followed on it; integrals use the true density.
2. Beta spheres: the density descends outwards all over the sphere and inside of it, so that no path leaves it.
3. Basins of the mesh points, by which most points of a ray are assigned without a path: those in a cell whose
   surroundings all belong to one atom.
4. Rays and `Quadrature`. Where the populations miss electrons, the mean over several rotated sets of rays.

A maximum of the density that is no nucleus is refused (`LabelError`). All quantities are in bohr and hartree.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from pyscf.dft.gen_grid import MakeAngularGrid
from scipy.interpolate import CubicSpline
from scipy.ndimage import maximum_filter, minimum_filter, spline_filter
from scipy.sparse import csr_array
from scipy.spatial.transform import Rotation

from iqagp_jax.labels.fuzzy import free_atom_log_density
from iqagp_jax.labels.iqa import Quadrature, occupied_orbitals
from iqagp_jax.labels.scf import LabelError
from iqagp_jax.units import BOHR

SPACING, MARGIN = 0.25, 5.0
"""Spacing of the mesh around the molecule, and how far it reaches beyond the outermost nuclei."""

BOX_SPACING, BOX_CELLS = 0.07, 19
"""Spacing of the mesh around a nucleus, and its half width in cells."""

BORDER = 8
"""Further cells of both meshes that a spline needs to forget its boundary."""

CUSP_STEP, CUSP_START, CUSP_END = 0.002, 0.5, 2.0
"""Radial mesh of the nuclear cusps; they are switched off from CUSP_START to CUSP_END."""

PATH_TOLERANCE, LONGEST_STEP = 5e-5, 0.8
"""Error accepted in a step of a path, and its greatest length."""

SLOW = 1.0
"""Length of the gradient of ln rho below which paths slow down; at full speed they would round a saddle in tiny steps."""

STAGES = np.array(
    [
        [0, 0, 0, 0, 0, 0],
        [1 / 5, 0, 0, 0, 0, 0],
        [3 / 40, 9 / 40, 0, 0, 0, 0],
        [44 / 45, -56 / 15, 32 / 9, 0, 0, 0],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    ]
)
STAGE_ERRORS = np.array([71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40])
"""Runge-Kutta pair of order 5(4) of Dormand and Prince (doi:10.1016/0771-050X(80)90013-3)."""

RAY_STEP, RAY_END, BISECTIONS = 0.15, 13.0, 9
"""Step along a ray close to the nuclei, end of a ray, and bisections of a step in which the basin changes."""

OUTER_ANGULAR = {"H": 770, "C": 5810}
"""Lebedev points outside the beta sphere; 2354 for other elements. Atoms between others, like carbon, need most."""

SMALL_SPHERE, SMALL_ANGULAR = 0.6, 4334
"""An atom with a smaller beta sphere than that (hydrogen in a polar bond) has a basin of thin wedges: at least so many."""

MISSING = 4e-4
"""Electrons that the atoms' populations may miss before they are integrated along further sets of rays too.

The error of a set is as good as random: a rotated one has another."""

TURNS = Rotation.from_rotvec(np.outer(range(4), (0.3, 0.4, 0.5))).as_matrix()
"""Rotations of the sets of rays, (sets, 3, 3); the first set, not rotated, is enough for most geometries."""

PIECES = ((0.0, 1.2, 7), (1.2, 2.0, 6), (3.2, 3.5, 6), (6.7, 13.0, 4))
"""A segment of a ray is integrated in pieces: from, length and Gauss-Legendre points; fewer where the segment ends before."""

INNER_RADIAL, INNER_ANGULAR = 50, 110
"""Gauss-Legendre and Lebedev points inside the beta sphere."""

LARGE_SPHERE, LARGE_ANGULAR = 1.2, 302
"""A larger beta sphere than that reaches into the lone pairs: its Lebedev points."""


class Surrogate(NamedTuple):
    """What the compiled functions need to follow the density.

    ``centres`` (N, 3); ``kinds`` (N,) rows of ``slopes`` (kinds, nodes), the radial derivatives of the cusps; ``origin`` (3,)
    and ``mesh`` (1, nx, ny, nz), spline coefficients of ln rho without the cusps around the molecule; ``boxes``
    (N, m, m, m) the same around each nucleus; ``radii`` (N,) of the spheres known to lie inside each basin; ``settled``
    (nx, ny, nz) the atom to which the cell above each mesh point and its neighbours belong, or -1.
    """

    centres: np.ndarray
    kinds: np.ndarray
    slopes: np.ndarray
    origin: np.ndarray
    mesh: np.ndarray
    boxes: np.ndarray
    radii: np.ndarray
    settled: np.ndarray


@njit(cache=True, error_model="numpy", fastmath=True)
def _cubic_weights(t):
    """Cubic B-spline weights of the four neighbours of a point at t in [0, 1) of its cell, and their derivatives."""
    u = 1.0 - t
    values = (u * u * u / 6, 2 / 3 - t * t * (1 - t / 2), 2 / 3 - u * u * (1 - u / 2), t * t * t / 6)
    return values, (-u * u / 2, t * (1.5 * t - 2), -u * (1.5 * u - 2), t * t / 2)


@njit(cache=True, error_model="numpy", fastmath=True)
def _spline_gradient(c, n, x, y, z):
    """Gradient of the cubic B-spline with coefficients c[n] at (x, y, z) in units of the mesh.

    The outermost `BORDER` cells, where the spline feels its boundary, and the world beyond have the gradient of the
    nearest point further inside.
    """
    x = min(max(x, float(BORDER)), c.shape[1] - 1.000001 - BORDER)
    y = min(max(y, float(BORDER)), c.shape[2] - 1.000001 - BORDER)
    z = min(max(z, float(BORDER)), c.shape[3] - 1.000001 - BORDER)
    i, j, k = int(x) - 1, int(y) - 1, int(z) - 1
    wx, dx = _cubic_weights(x - int(x))
    wy, dy = _cubic_weights(y - int(y))
    wz, dz = _cubic_weights(z - int(z))
    gx, gy, gz = 0.0, 0.0, 0.0
    for a in range(4):
        sum0, sum1, sum2 = 0.0, 0.0, 0.0
        for b in range(4):
            value, slope = 0.0, 0.0
            for d in range(4):
                value += c[n, i + a, j + b, k + d] * wz[d]
                slope += c[n, i + a, j + b, k + d] * dz[d]
            sum0 += wy[b] * value
            sum1 += dy[b] * value
            sum2 += wy[b] * slope
        gx += dx[a] * sum0
        gy += wx[a] * sum1
        gz += wx[a] * sum2
    return gx, gy, gz


@njit(cache=True, error_model="numpy", fastmath=True, inline="always")  # half the time
def _gradient(x, y, z, s):
    """Gradient of the surrogate of ln rho."""
    gx, gy, gz, box = 0.0, 0.0, 0.0, -1
    for a in range(len(s.centres)):
        dx, dy, dz = x - s.centres[a, 0], y - s.centres[a, 1], z - s.centres[a, 2]
        r2 = dx * dx + dy * dy + dz * dz
        if r2 < CUSP_END**2:
            r = np.sqrt(r2) + 1e-12
            u = r / CUSP_STEP
            cell = int(u)
            low, high = s.slopes[s.kinds[a], cell], s.slopes[s.kinds[a], cell + 1]
            slope = (low + (u - cell) * (high - low)) / r
            gx += slope * dx
            gy += slope * dy
            gz += slope * dz
            if box < 0 and max(abs(dx), abs(dy), abs(dz)) < BOX_CELLS * BOX_SPACING:
                box = a
    if box >= 0:
        h, m = 1 / BOX_SPACING, BOX_CELLS + BORDER
        dx, dy, dz = x - s.centres[box, 0], y - s.centres[box, 1], z - s.centres[box, 2]
        sx, sy, sz = _spline_gradient(s.boxes, box, dx * h + m, dy * h + m, dz * h + m)
    else:
        h = 1 / SPACING
        sx, sy, sz = _spline_gradient(s.mesh, 0, (x - s.origin[0]) * h, (y - s.origin[1]) * h, (z - s.origin[2]) * h)
    return gx + sx * h, gy + sy * h, gz + sz * h


@njit(cache=True, error_model="numpy", fastmath=True, inline="always")  # half the time
def _ascent(x, y, z, s):
    """Velocity of steepest ascent g / sqrt(|g|^2 + SLOW^2), and the length of g = grad ln rho."""
    gx, gy, gz = _gradient(x, y, z, s)
    g2 = gx * gx + gy * gy + gz * gz
    scale = 1 / np.sqrt(g2 + SLOW**2)
    return gx * scale, gy * scale, gz * scale, np.sqrt(g2)


@njit(cache=True, error_model="numpy", fastmath=True)
def _settled(x, y, z, s):
    """The atom to which a point belongs as far as spheres and mesh can tell, or -1."""
    i = int((x - s.origin[0]) / SPACING)
    j = int((y - s.origin[1]) / SPACING)
    k = int((z - s.origin[2]) / SPACING)
    n = s.settled.shape
    if 0 <= i < n[0] and 0 <= j < n[1] and 0 <= k < n[2] and s.settled[i, j, k] >= 0:
        return np.int64(s.settled[i, j, k])
    for a in range(len(s.centres)):
        if (x - s.centres[a, 0]) ** 2 + (y - s.centres[a, 1]) ** 2 + (z - s.centres[a, 2]) ** 2 < s.radii[a] ** 2:
            return a
    return -1


@njit(cache=True, error_model="numpy", fastmath=True)
def _basin(x, y, z, s):
    """The atom to which a point belongs and where its path ended: steepest ascent, Dormand-Prince, adaptive steps.

    Where the path halts it is pushed aside, so that it leaves a saddle point; the atom is -1 where it always comes back:
    a maximum without a nucleus.
    """
    k = np.empty((7, 3))
    h, pushes, steps = SPACING, 0, 0
    k[0, 0], k[0, 1], k[0, 2], length = _ascent(x, y, z, s)
    while True:
        atom = _settled(x, y, z, s)
        if atom >= 0 or pushes == 6:
            return atom, x, y, z
        px, py, pz = x, y, z
        for stage in range(1, 7):
            px, py, pz = x, y, z
            for i in range(stage):
                px += h * STAGES[stage, i] * k[i, 0]
                py += h * STAGES[stage, i] * k[i, 1]
                pz += h * STAGES[stage, i] * k[i, 2]
            k[stage, 0], k[stage, 1], k[stage, 2], length = _ascent(px, py, pz, s)
        error = 0.0
        for c in range(3):
            total = 0.0
            for i in range(7):
                total += STAGE_ERRORS[i] * k[i, c]
            error += total * total
        error = h * np.sqrt(error) + 1e-12
        if error < PATH_TOLERANCE:
            x, y, z = px, py, pz
            k[0] = k[6]
        h = min(h * min(2.0, max(0.2, 0.8 * (PATH_TOLERANCE / error) ** 0.2)), LONGEST_STEP)
        steps += 1
        if h < 1e-6 or length < 1e-4 or steps > 500:
            shift = 0.05 if pushes % 2 == 0 else -0.05
            x, y, z = (x + shift if pushes < 2 else x), (y + shift if 2 <= pushes < 4 else y), (z + shift if pushes >= 4 else z)
            pushes += 1
            h, steps = 0.02, 0
            k[0, 0], k[0, 1], k[0, 2], length = _ascent(x, y, z, s)


@njit(cache=True, error_model="numpy")
def _trapping_radius(centre, directions, s):
    """Greatest radius up to which the density descends outwards in all directions (D, 3); 0 where it never does.

    The density of a compressed X-H bond has its maximum up to 0.2 bohr beside the proton, hence the late start.
    """
    radius = 0.0
    for n in range(2, 150):
        r = 0.02 * n
        descends = True
        for q in range(len(directions)):
            d = directions[q]
            gx, gy, gz = _gradient(centre[0] + r * d[0], centre[1] + r * d[1], centre[2] + r * d[2], s)
            if gx * d[0] + gy * d[1] + gz * d[2] >= 0:
                descends = False
                break
        if descends:
            radius = r
        elif radius > 0 or r > 0.3:
            break
    return radius


@njit(cache=True, error_model="numpy", fastmath=True)
def _nearest(x, y, z, s):
    """Distance to the nearest nucleus."""
    nearest = 1e300
    for a in range(len(s.centres)):
        d2 = (x - s.centres[a, 0]) ** 2 + (y - s.centres[a, 1]) ** 2 + (z - s.centres[a, 2]) ** 2
        nearest = min(nearest, d2)
    return np.sqrt(nearest)


@njit(cache=True, error_model="numpy")
def _mesh_basins(order, basins, s):
    """Fill ``basins`` (nx, ny, nz), all -1, in the given order of mesh points, and ``s.settled``.

    A cell counts as settled as soon as its eight corners agree, so that paths from lower density end there. Returns the
    place of a maximum without nucleus, or NaN.
    """
    nx, ny, nz = basins.shape
    for index in order:
        i, j, k = index // (ny * nz), index // nz % ny, index % nz
        x, y, z = s.origin[0] + i * SPACING, s.origin[1] + j * SPACING, s.origin[2] + k * SPACING
        if _nearest(x, y, z, s) > MARGIN:
            continue
        atom, x, y, z = _basin(x, y, z, s)
        if atom < 0:
            return x, y, z
        basins[i, j, k] = atom
        for a in range(max(i - 1, 0), min(i + 1, nx - 1)):
            for b in range(max(j - 1, 0), min(j + 1, ny - 1)):
                for c in range(max(k - 1, 0), min(k + 1, nz - 1)):
                    agree = 0
                    for corner in range(8):
                        agree += basins[a + corner // 4, b + corner // 2 % 2, c + corner % 2] == atom
                    if agree == 8:
                        s.settled[a, b, c] = atom
    return np.nan, np.nan, np.nan


@njit(cache=True, error_model="numpy")
def _ray_segments(atom, directions, s):
    """Radii at which rays (D, 3) enter and leave the basin of ``atom`` outside of its sphere: rows (ray, from, to).

    Where the basin changes the step is searched for basins in between: most of the segments beyond the first are thin
    wedges of this atom between two others.
    """
    (cx, cy, cz), rows = s.centres[atom], []
    for q in range(len(directions)):
        ux, uy, uz = directions[q]
        owner, start = atom, s.radii[atom]
        known = r = start
        while r < RAY_END:
            nearest = _nearest(cx + r * ux, cy + r * uy, cz + r * uz, s)
            step = RAY_STEP * max(1.0, (nearest / 2) ** 2)
            r = min(r + step, RAY_END)
            found = _basin(cx + r * ux, cy + r * uy, cz + r * uz, s)[0]
            while found != owner:
                low, high, beyond = known, r, found
                for n in range(BISECTIONS):
                    if n == BISECTIONS // 2 and owner != atom and beyond != atom:
                        break
                    middle = 0.5 * (low + high)
                    label = _basin(cx + middle * ux, cy + middle * uy, cz + middle * uz, s)[0]
                    if label == owner:
                        low = middle
                    else:
                        high, beyond = middle, label
                if owner == atom:
                    rows.append((q, start, 0.5 * (low + high)))
                elif beyond == atom:
                    start = 0.5 * (low + high)
                owner, known = beyond, high
            known = r
        if owner == atom:
            rows.append((q, start, RAY_END))
    return rows


def _log_density(wave, axes):
    """ln rho (nx, ny, nz) on the mesh of three axes, which factorize every Gaussian of the basis."""
    mol = wave.mol
    factors: list[list[np.ndarray]] = [[], [], []]
    columns, row = [], 0
    for shell in range(mol.nbas):
        degree, centre = mol.bas_angular(shell), mol.bas_coord(shell)
        shifted = [axis - x for axis, x in zip(axes, centre, strict=True)]
        gaussians = [np.exp(-np.outer(mol.bas_exp(shell), x**2)) for x in shifted]
        powers = [(i, j, degree - i - j) for i in range(degree, -1, -1) for j in range(degree - i, -1, -1)]
        # libcint's s and p functions carry their angular normalization, Cartesian d and higher ones do not.
        contraction = mol._libcint_ctr_coeff(shell).T * {0: np.sqrt(0.25 / np.pi), 1: np.sqrt(0.75 / np.pi)}.get(degree, 1.0)
        for c in contraction:
            for power in powers:
                for factor, x, g, n in zip(factors, shifted, gaussians, power, strict=True):
                    factor.append(x**n * g)
                columns.append((np.full(len(c), row), c))
                row += 1
    x, y, z = (np.concatenate(f) for f in factors)
    rows, c = (np.concatenate(part) for part in zip(*columns, strict=True))
    density = np.zeros((x.shape[1], y.shape[1], z.shape[1]))
    for orbitals in occupied_orbitals(wave.mf):
        cartesian = orbitals if mol.cart else mol.cart2sph_coeff() @ orbitals
        coefficients = cartesian[rows] * c[:, None]
        for k in range(x.shape[1]):
            for orbital in coefficients.T:
                density[k] += ((orbital * x[:, k])[:, None] * y).T.dot(z) ** 2
    return np.log(np.maximum(density, 1e-30))


def _lebedev(count):
    """Directions (count, 3) and weights (count,) that sum to 4 pi."""
    grid = np.asarray(MakeAngularGrid(count))
    return np.ascontiguousarray(grid[:, :3]), 4 * np.pi * grid[:, 3]


def _gauss(count):
    """Gauss-Legendre nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(count)
    return (x + 1) / 2, w / 2


def _cusp_slope(mol, a):
    """Radial derivative of ln rho of atom ``a`` by itself, switched off smoothly, on the mesh of cusps."""
    radius = CUSP_STEP * np.arange(round(CUSP_END / CUSP_STEP) + 2)
    t = np.clip((radius - CUSP_START) / (CUSP_END - CUSP_START), 0, 1)
    return free_atom_log_density(mol, a)(radius, 1) * (1 - t**3 * (10 - 15 * t + 6 * t**2))


def _cusps(axes, centres, slopes):
    """Sum of the nuclear cusps on the mesh of three axes, (nx, ny, nz)."""
    total = np.zeros([len(axis) for axis in axes])
    radius = CUSP_STEP * np.arange(slopes.shape[1])
    for centre, slope in zip(centres, slopes, strict=True):
        x2, y2, z2 = ((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))
        r2 = x2[:, None, None] + y2[:, None] + z2
        near = r2 < CUSP_END**2
        cusp = CubicSpline(radius, slope).antiderivative()
        total[near] += cusp(np.sqrt(r2[near])) - cusp(CUSP_END)
    return total


def follow_density(wave):
    """The `Surrogate` of a wave function; `LabelError` where the density has a maximum without a nucleus."""
    mol = wave.mol
    centres, symbols = mol.atom_coords(), [mol.atom_pure_symbol(a) for a in range(mol.natm)]
    elements = sorted(set(symbols))
    kinds = np.array([elements.index(x) for x in symbols])
    slopes = np.array([_cusp_slope(mol, symbols.index(element)) for element in elements])

    def spline(axes):
        log_density = _log_density(wave, axes)
        return log_density, spline_filter(log_density - _cusps(axes, centres, slopes[kinds]), mode="mirror")

    origin = centres.min(0) - MARGIN - BORDER * SPACING
    counts = np.ceil((np.ptp(centres, axis=0) + 2 * MARGIN) / SPACING).astype(int) + 1 + 2 * BORDER
    log_density, mesh = spline([o + SPACING * np.arange(n) for o, n in zip(origin, counts, strict=True)])
    offsets = BOX_SPACING * np.arange(-BOX_CELLS - BORDER, BOX_CELLS + BORDER + 1)
    boxes = np.array([spline([x + offsets for x in centre])[1] for centre in centres])
    settled = np.full(mesh.shape, -1, np.int16)
    s = Surrogate(centres, kinds, slopes, origin, mesh[None], boxes, np.zeros(len(centres)), settled)
    for a, centre in enumerate(centres):
        others = np.delete(centres, a, axis=0) - centre
        directions = np.concatenate([_lebedev(302)[0], others / np.linalg.norm(others, axis=1, keepdims=True)])
        s.radii[a] = 0.95 * _trapping_radius(centre, directions, s)
        if s.radii[a] == 0:
            raise LabelError(f"the density has no maximum at nucleus {a} ({symbols[a]}), so it has no topological atom")
    basins = settled.copy()
    lost = _mesh_basins(np.argsort(-log_density, axis=None), basins, s)
    if np.isfinite(lost[0]):
        place = np.round(np.multiply(lost, BOHR), 2)
        raise LabelError(
            f"the density has a maximum without a nucleus near {place} angstrom (a non-nuclear attractor),"
            " whose electrons belong to no atom; use a fuzzy partition for this geometry"
        )
    # Settled for good: all mesh points of the cell and of those around it.
    same = maximum_filter(basins, 4, origin=-1) == minimum_filter(basins, 4, origin=-1)
    s.settled[:] = np.where(same, basins, -1)
    return s


def _segment_points(segments):
    """Gauss-Legendre points of ray segments (n, 2): rows of segment numbers, radii and weights."""
    pieces = []
    for start, length, count in PIECES:
        low = np.minimum(segments[:, 0] + start, segments[:, 1])
        high = np.minimum(segments[:, 0] + start + length, segments[:, 1])
        counts = np.minimum(np.ceil(count * np.sqrt((high - low) / length)), count)  # rounding may exceed the length
        for n in range(1, count + 1):
            (rows,) = np.nonzero(counts == n)
            x, w = _gauss(n)
            width = (high - low)[rows, None]
            radii = low[rows, None] + width * x
            pieces.append((np.repeat(rows, n), radii.ravel(), (width * w).ravel()))
    return [np.concatenate(part) for part in zip(*pieces, strict=True)]


def sphere_quadrature(s, atom):
    """Points (G, 3) and weights (G,) that integrate over the beta sphere of an atom."""
    radius = s.radii[atom]
    directions, angular = _lebedev(LARGE_ANGULAR if radius > LARGE_SPHERE else INNER_ANGULAR)
    x, w = _gauss(INNER_RADIAL)
    r, dr = radius * x**2, 2 * radius * x * w
    return s.centres[atom] + (r[:, None, None] * directions).reshape(-1, 3), ((r**2 * dr)[:, None] * angular).ravel()


def ray_quadrature(s, atom, count, turn=TURNS[0]):
    """Points (G, 3) and weights (G,) that integrate over what an atom has outside of its beta sphere.

    They lie along ``count`` Lebedev rays, turned by a rotation matrix.
    """
    directions, angular = _lebedev(count)
    directions = directions @ turn.T
    rows = np.array(_ray_segments(atom, directions, s))
    ray = rows[:, 0].astype(int)
    segment, r, dr = _segment_points(rows[:, 1:])
    return s.centres[atom] + r[:, None] * directions[ray[segment]], r**2 * dr * angular[ray[segment]]


def qtaim(wave):
    """Topological atoms of a `WaveFunction`: the `Quadrature` of their basins."""
    s = follow_density(wave)
    atoms = range(wave.mol.natm)
    small = np.where(s.radii < SMALL_SPHERE, SMALL_ANGULAR, 0)
    counts = [max(OUTER_ANGULAR.get(wave.mol.atom_pure_symbol(a), 2354), small[a]) for a in atoms]
    spheres, rays = [sphere_quadrature(s, a) for a in atoms], []
    for turn in TURNS:
        rays.append([ray_quadrature(s, a, counts[a], turn) for a in atoms])
        quadrature = _mean_quadrature(spheres, rays)
        # The integration to come asks for the same densities, so they cost nothing here.
        population = quadrature.weights @ wave.energy_densities(quadrature.coords)["population"]
        if abs(population.sum() - wave.mol.nelectron) < MISSING:
            break
    return quadrature


def _mean_quadrature(spheres, rays):
    """`Quadrature` of the atoms' spheres and of the mean of several sets of their rays."""
    parts = [[sphere, *others] for sphere, *others in zip(spheres, *rays, strict=True)]
    shares = [1.0] + [1 / len(rays)] * len(rays)
    weights = [np.concatenate([share * w for share, (_, w) in zip(shares, part, strict=True)]) for part in parts]
    ends = np.cumsum([0, *(len(w) for w in weights)])
    matrix = csr_array((np.concatenate(weights), np.arange(ends[-1]), ends), shape=(len(parts), ends[-1]))
    return Quadrature(np.concatenate([points for part in parts for points, _ in part]), matrix)
