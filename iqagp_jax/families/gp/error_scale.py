"""How large errors are where a process expects sigma: learned from geometries left out, and the prior's where atoms leave.

A process knows the size of its errors by its kernel and one variance alone. Left-out residuals of all data say more: of each
target

    sigma' = factor sigma_0 (sigma / sigma_0)^power max(1, sigma / sigma_9)^BEYOND

where the power, near one, makes them likeliest as normal errors, and the factor is such that 95% of them, and one standard
error of that share, are within 1.96 sigma'. sigma_0 is the geometric mean of all sigma, sigma_9 is larger than nine in ten.
Beyond it next to nothing was tested, and a process is too sure of itself: geometries at which models had failed were off by
four sigma.

Inverse distances are bounded, so that a process thinks of an atom that leaves as one nearby. What tells is the widest gap g of
a geometry, the longest edge of the shortest tree over its atoms with distances in sums of covalent radii. Beyond the widest of
the training geometries, g_0, the variance goes over to the prior's, which it never exceeds:

    var = s + u (prior - s)        s = min(sigma'^2, prior)        u = 1 - exp(-((g - g_0) / WIDTH)^2)
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from iqagp_jax.data.content import LARGEST, SMALLEST, numbers
from iqagp_jax.families.gp.joint import TARGETS
from iqagp_jax.system.geometry import sum_of_radii

WITHIN = 0.95
"""Share of the left-out residuals that are within two sigma."""

QUANTILE = 1.96
"""Those of a normal distribution are within so many."""

FEW = 10
"""Residuals that tell nothing."""

POWER = 0.2
"""Standard deviation of the power about one, before the data are seen."""

TESTED, BEYOND = 0.9, 0.5
"""Share of the left-out sigma that are below sigma_9, and the power by which sigma' grows faster beyond: then 2% of the forces
of malondialdehyde's distorted geometries are off by more than three sigma, with 0.95 5%, without it 9%."""

WIDTH = 0.5
"""Sums of covalent radii by which a gap is wider until next to nothing is known."""


@partial(jax.tree_util.register_dataclass, data_fields=["factor", "power", "unit", "tested", "radii", "gap"], meta_fields=[])
@dataclass(frozen=True)
class ErrorScale:
    """The numbers of the module's formulas, for each of `joint.TARGETS`."""

    factor: np.ndarray
    """(3,)"""
    power: np.ndarray
    """(3,)"""
    unit: np.ndarray
    """sigma_0 (3,), eV and eV/angstrom"""
    tested: np.ndarray
    """sigma_9 (3,), eV and eV/angstrom"""
    radii: np.ndarray
    """sums of covalent radii (N, N), angstrom"""
    gap: np.ndarray
    """g_0 (), sums of covalent radii"""

    @classmethod
    def of(cls, left, species, positions, wrong=()):
        """From `left_out.LeftOut` of geometries (n, N, 3), without those labels that are `wrong_labels.WrongLabel`."""
        bad = np.zeros(len(left.residual), bool)
        for label in wrong:
            bad |= (left.geometry == label.geometry) & (left.target == label.target)
        factor, power, unit, tested = np.array([_fitted(*left.of_target(target, ~bad)) for target in TARGETS]).T.copy()
        radii = sum_of_radii(species)
        return cls(factor, power, unit, tested, radii, np.array(jax.jit(widest_gap)(radii, positions).max()))

    def check_content(self):
        """ValueError, in a sentence, unless it makes sense: of one that was read."""
        for name in ("factor", "power", "unit", "tested"):
            numbers(f"{name} of errors", getattr(self, name), (len(TARGETS),), SMALLEST)
        numbers("sums of covalent radii", self.radii, (None, None), least=0)
        numbers("widest gap", self.gap, (), least=0)

    def variance(self, target, variance, prior, positions):
        """The variance (B, ...) of errors at positions (B, N, 3), from those of a process and of its prior."""
        k = TARGETS.index(target)
        own = jnp.sqrt(variance)
        sigma = self.factor[k] * self.unit[k] * (own / self.unit[k]) ** self.power[k]
        sigma = sigma * jnp.maximum(1.0, own / self.tested[k]) ** BEYOND
        wider = jnp.maximum(widest_gap(self.radii, positions) - self.gap, 0.0).reshape(-1, *(1,) * (jnp.ndim(sigma) - 1))
        unknown = 1 - jnp.exp(-((wider / WIDTH) ** 2))
        known = jnp.minimum(sigma**2, prior)
        return known + unknown * (prior - known)


def widest_gap(radii, positions):
    """The longest edge (B,) of the shortest tree over atoms at positions (B, N, 3), in sums of covalent ``radii`` (N, N)."""
    n = len(radii)
    difference = positions[:, :, None] - positions[:, None]
    edges = jnp.sqrt((difference**2).sum(-1)) / radii
    for _ in range(n.bit_length()):  # the longest edge of the best way, of twice as many steps each time
        edges = jnp.minimum(edges, jnp.maximum(edges[..., None], edges[:, None]).min(2))
    return edges.max((1, 2))


def _fitted(residual, sigma):
    """(factor, power, sigma_0, sigma_9); those that change nothing where there are too few to tell."""
    if len(residual) < FEW or not (sigma > 0).all():
        return 1.0, 1.0, 1.0, LARGEST
    unit = np.exp(np.mean(np.log(sigma)))
    r, s = np.abs(residual) / unit, np.log(sigma / unit)

    def unlikely(p):
        log_sigma = p[0] + p[1] * s
        return np.mean(log_sigma + 0.5 * (r * np.exp(-log_sigma)) ** 2) + 0.5 * ((p[1] - 1) / POWER) ** 2 / len(r)

    power = minimize(unlikely, [0.0, 1.0]).x[1]
    share = WITHIN + np.sqrt(WITHIN * (1 - WITHIN) / len(r))
    return np.quantile(r * np.exp(-power * s), min(share, 1.0)) / QUANTILE, power, unit, np.quantile(sigma, TESTED)
