"""Whether labels are what they are said to be: their units, and the sign of the forces, judged by the energies beside them."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cholesky, solve_triangular

from iqagp_jax.data.scale import ENERGIES, EXPECTED, FORCES, UNITS, check_lengths, check_units, likeliest_units
from iqagp_jax.families.gp import joint
from iqagp_jax.families.gp.features import InverseDistances
from iqagp_jax.families.gp.kernels import Matern52
from iqagp_jax.machine.warn import warn

ENOUGH = 10
"""Geometries from which on units and sign of the forces are judged."""

NOISE = 1e-6
"""Share of the variance."""

LENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Length scales that are tried, in multiples of the spread of the features."""


def check_labels(data, targets):
    """Warn where labels are likelier in other units, or forces with the other sign; see `scale` and `agreement`.

    Raises ValueError, in a sentence, where there are no labels, and for forces that are all zero.
    """
    if not any(np.isfinite(x).any() for x in (getattr(data, target) for target in targets) if x is not None):
        raise ValueError(f"expected labels, found no {' and no '.join(targets)} in {len(data)} geometries; label them")
    if "forces" in targets and not np.nan_to_num(data.forces).any():
        raise ValueError(
            "expected forces, found zeros in all geometries, which are no labels; leave them out (forces=None), or learn other"
            " targets"
        )
    check_lengths(data.species, data.positions)
    factor, gain = agreement(data, targets)
    if factor is None or factor == 1.0:
        check_units(data, factor)
        return
    units, _ = likeliest_units(data, abs(factor))
    sign = ", with the opposite sign: are they gradients?" if factor < 0 else ""
    by, also = np.sign(factor) * FORCES[units.forces], ""
    read = "as they are" if units == EXPECTED else f"in {units.forces}"
    if units.energy != EXPECTED.energy:
        read += f" and the energies in {units.energy}"
        also = f", energies by {ENERGIES[units.energy]:.6g}"
    warn(
        f"forces read {read}{sign} would agree better with the energies, by {gain:.2f} in ln L an observation; expected"
        f" energies in eV and forces, minus the gradient, in eV/angstrom: multiply forces by {by:.6g}{also}"
    )


def agreement(data, targets):
    """(factor of the forces that makes them likeliest beside the energies, gain in ln L an observation); (None, 0) if unknown.

    Judged by the likeliest of a few Matern-5/2 processes on inverse distances about the mean of the data, whatever the model
    and its prior mean. With forces c F the log likelihood at its best variance is -m/2 ln q(c) - ln|L| + m_F ln |c| up to a
    constant, q the quadratic form of the observations, of which m_F of m are forces. Forces without energies, and those of
    fewer than `ENOUGH` geometries, are not judged.
    """
    energies = [e for e in (data.atomic_energies, data.energy) if e is not None and np.isfinite(e).any()]
    if not {"forces"} < set(targets) or len(data) < ENOUGH or not energies:
        return None, 0.0  # forces alone are as likely with either sign
    others = sorted({round(u.factor, 12) for u in UNITS} - {1.0})
    factors = np.array([sign * c for c in (1.0, *others) for sign in (1, -1)])
    likelihoods = _likelihoods(data, targets, factors)
    return float(factors[likelihoods.argmax()]), float(likelihoods.max() - likelihoods[0])


def _likelihoods(data, targets, factors):
    """ln L an observation with the forces times each of the ``factors``, up to a constant, at the best of `LENGTHS`."""
    atomic, energy = (
        e if e is None or np.isnan(e).all() else e - np.nanmean(e, axis=0) for e in (data.atomic_energies, data.energy)
    )
    y = joint.observations(targets, atomic, energy, data.forces)
    kept = np.isfinite(y)
    is_force = np.tile(joint.of_each([t == "forces" for t in targets], targets, len(data.species)), len(data))
    of_forces, rest = np.where(is_force, y, 0.0)[kept], np.where(is_force, 0.0, y)[kept]
    m, m_forces = len(rest), np.isfinite(data.forces).sum()
    n_atoms = len(data.species)
    features = InverseDistances(n_atoms)
    seen = joint.seen(features, jnp.asarray(data.positions))
    spread = np.full(n_atoms, np.sqrt(np.var(seen.z[0], axis=0).sum()))

    @jax.jit
    def covariance_at(lengthscale):
        kernel = Matern52(lengthscale)
        points = joint.embedded(kernel, seen)
        process = joint.Process.of(kernel, features, np.ones(n_atoms))
        return joint.with_noise(joint.covariance(process, points, points, targets), NOISE, targets, process.permutations)

    values = np.full(len(factors), -np.inf)
    for multiple in LENGTHS:
        factor = cholesky(np.asarray(covariance_at(spread * multiple))[np.ix_(kept, kept)], lower=True)
        a, b = (solve_triangular(factor, part, lower=True) for part in (rest, of_forces))
        quadratic = np.array([np.sum((a + c * b) ** 2) for c in factors])
        here = -0.5 * m * np.log(quadratic) - np.log(np.diag(factor)).sum() + m_forces * np.log(np.abs(factors))
        values = np.maximum(values, here / m)
    return values
