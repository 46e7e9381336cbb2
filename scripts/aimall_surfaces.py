"""Whose interatomic surface is right, AIMAll's or ours? Steepest ascent on the true density of AIMAll's own wave functions.

    python scripts/aimall_surfaces.py    # 3 minutes

`labels.qtaim` finds surfaces on a spline of the density; here each of its rays' surface points is bisected again, with
paths on the density itself (Runge-Kutta of order 4, steps of at most ``--step`` bohr). To first order a surface that moves
by dr along a ray of weight w moves w r^2 rho dr electrons between two atoms, and -w r^2 rho sum_B Z_B / r_B dr of their
attraction to the nuclei. Printed for every hydrogen: V_en/2 and electrons, ours as found and with the true surface, minus
AIMAll's; for every atom L(A) = -1/4 int_A laplacian(rho), zero for exact atoms; and what the atoms' sum lacks of the exact
electron-nucleus attraction.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import numpy as np
from dialect import parsed, reference_files
from iqa_table import read_aimall

from iqagp_jax.formats.aimall import read_sum
from iqagp_jax.labels import iqa, qtaim, scf
from iqagp_jax.labels.wavefunction import read_wavefunction

BRACKET, BISECTIONS, FARTHEST = 1e-3, 10, 7.0
"""Surface points up to FARTHEST bohr from the hydrogen are searched within BRACKET of where they were."""


class Density:
    """The density of a wave function and what is integrated over its atoms."""

    def __init__(self, wave):
        self.mol, (self.orbitals, _) = wave.mol, iqa.occupied_orbitals(wave.mf)
        self.nuclei, self.charges = wave.mol.atom_coords(), wave.mol.atom_charges()

    def gradient(self, points):
        """rho (n,) and its gradient (n, 3)."""
        phi = np.tensordot(self.mol.eval_gto("GTOval_cart_deriv1", points), self.orbitals, (2, 0))
        return 2 * np.sum(phi[0] ** 2, 1), 4 * np.sum(phi[0] * phi[1:], 2).T

    def potential(self, points):
        """sum_B Z_B / r_B."""
        return (self.charges / np.linalg.norm(points[:, None] - self.nuclei, axis=-1)).sum(1)

    def integrands(self, points):
        """rho, V_en and L densities, (3, n)."""
        phi = np.einsum("xga,ai->xgi", self.mol.eval_gto("GTOval_cart_deriv2", points), self.orbitals, optimize=True)
        rho = 2 * np.sum(phi[0] ** 2, 1)
        laplacian = 4 * np.sum(phi[0] * phi[[4, 7, 9]] + phi[1:4] ** 2, axis=(0, 2))
        return np.stack([rho, -rho * self.potential(points), -laplacian / 4])

    def ascent(self, points):
        """Direction of steepest ascent, slower where the density is flat, as at a saddle point."""
        rho, gradient = self.gradient(points)
        slope = gradient / rho[:, None]
        return slope / (np.linalg.norm(slope, axis=1) + 0.02)[:, None]

    def owners(self, points, radii, step):
        """The atoms (n,) into whose spheres the paths from points (n, 3) lead."""
        owner, live = np.full(len(points), -1), np.arange(len(points))
        while True:
            inside = np.linalg.norm(points[:, None] - self.nuclei, axis=-1) < radii
            arrived = inside.any(1)
            owner[live[arrived]] = inside[arrived].argmax(1)
            live, x = live[~arrived], points[~arrived]
            if not len(live):
                return owner
            k1 = self.ascent(x)
            k2 = self.ascent(x + step / 2 * k1)
            k3 = self.ascent(x + step / 2 * k2)
            k4 = self.ascent(x + step * k3)
            points = x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def correction(density, surrogate, atom, step, n_rays):
    """Electrons and V_en/2 that an atom gains with the true surface, and the share of its rays that were corrected."""
    directions, weights = qtaim._lebedev(n_rays)
    found = np.full(n_rays, np.inf)
    for ray, _, end in reversed(qtaim._ray_segments(atom, directions, surrogate)):
        found[int(ray)] = end
    (rays,) = np.nonzero(found < FARTHEST)
    within = len(rays)

    def belongs(rays, radii):
        points = density.nuclei[atom] + radii[:, None] * directions[rays]
        return density.owners(points, surrogate.radii, step) == atom

    rays = rays[belongs(rays, found[rays] - BRACKET) & ~belongs(rays, found[rays] + BRACKET)]
    low, high = found[rays] - BRACKET, found[rays] + BRACKET
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        inside = belongs(rays, middle)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    radii = (low + high) / 2
    points = density.nuclei[atom] + radii[:, None] * directions[rays]
    electrons = weights[rays] * radii**2 * density.gradient(points)[0] * (radii - found[rays])
    return electrons.sum(), -0.5 * (electrons * density.potential(points)).sum(), len(rays) / within


def main():
    arguments = {
        "--step": {"type": float, "help": "of the paths on the true density, bohr"},
        "--rays": {"type": int, "help": "Lebedev points of every atom"},
        "--at-most": {"type": int, "help": "so many geometries; by default all"},
    }
    usual, short = {"step": 0.02, "rays": 5810, "at_most": None}, {"step": 0.2, "rays": 110, "at_most": 1}
    options = parsed(__doc__, arguments, usual, short)
    scf.single_thread()
    reference = reference_files("aimall_water", options.short)
    for folder in sorted(reference.iterdir())[: options.at_most] if reference else ():
        _, expected, charges = read_aimall(folder)
        wave = iqa.WaveFunction(read_wavefunction(next(folder.glob("*.wfn"))))
        density, surrogate = Density(wave), qtaim.follow_density(wave)
        integrals = []
        for atom in range(3):
            parts = qtaim.sphere_quadrature(surrogate, atom), qtaim.ray_quadrature(surrogate, atom, options.rays)
            points, weights = (np.concatenate(both) for both in zip(*parts, strict=True))
            blocks = zip(np.array_split(points, 20), np.array_split(weights, 20), strict=True)
            integrals.append(sum(density.integrands(p) @ w for p, w in blocks))
        population, attraction, ours = np.transpose(integrals)
        theirs = read_sum(next(folder.glob("*.sum")), folder).laplacian
        exact = iqa.nucleus_electron_attraction(wave.mol, wave.density_matrix).sum() / 2
        difference = 1e3 * (attraction / 2 - expected[:, 3])
        electrons = 1e6 * (population - density.charges + charges)
        sums = [1e3 * (total - exact) for total in (attraction.sum() / 2, expected[:, 3].sum())]
        print(f"{folder.name}: sum of V_en/2 - exact in mHa: ours {sums[0]:.4f}, AIMAll {sums[1]:.4f}")
        print("   1e6 L(A): ours", (1e6 * ours).round(1), "AIMAll", (1e6 * theirs).round(1))
        moved = [correction(density, surrogate, atom, options.step, options.rays) for atom in (1, 2)]
        for atom, (gain, energy, share) in enumerate(moved, 1):
            before = f"{electrons[atom]:.1f} microelectrons, V_en/2 {difference[atom]:.4f} mHa"
            after = f"{electrons[atom] + 1e6 * gain:.1f}, {difference[atom] + 1e3 * energy:.4f}"
            print(f"   H{atom + 1} ours - AIMAll: {before}; with the true surface {after} ({share:.0%} of its rays)")
        energy = difference[0] - 1e3 * sum(change for _, change, _ in moved)
        print(f"   O1 ours - AIMAll: V_en/2 {difference[0]:.4f} mHa; with the true surfaces {energy:.4f}", flush=True)


if __name__ == "__main__":
    main()
