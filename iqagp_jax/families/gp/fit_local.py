"""How a process of the atoms' surroundings is fitted beside that of the molecule: its length scale, its share, and the noise.

Those are taken that make the labels of the sample likeliest, which the molecule's own hyperparameters were chosen by. Not those
that leave the least error on geometries left out: with 20 geometries that is a matter of luck (malondialdehyde's difference to
GFN2-xTB: it would have done without surroundings, and erred by 1.06 instead of 0.55 kcal/mol/A).
"""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import null_space
from scipy.sparse import block_diag, csr_array

from iqagp_jax.families.gp import joint, regression
from iqagp_jax.families.gp.environments import Environments
from iqagp_jax.families.gp.local import Local

LENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Length scales that are tried, in units of what the surroundings spread by."""

RATIOS = (0.3, 1.0, 3.0, 10.0)
"""What the surroundings make forces vary by, or else energies, over what the molecule's distances make them."""

NOISES = (1e-3, 1e-4, 1e-5, 1e-6)
"""Noise of forces that is tried, as a share of what they vary by."""

OF_ENERGIES = 0.01
"""Noise of energies, which are smoother, in that of forces."""


def with_surroundings(sample, chosen):
    """The `fit_joint.Chosen` of a `fit_joint.Sample`, with a `Local` beside it, and the noise of both together."""
    targets, permutations = sample.targets, sample.problem.permutations
    internal, train = _internal(sample.positions, sample.kept, targets), sample.problem.train
    y, positions = internal.T @ sample.y[sample.kept], jnp.asarray(sample.positions)
    variance = np.asarray(sample.family.process(chosen.parameters, sample.seen)[0].variance)
    of_surroundings = jax.jit(partial(_of_surroundings, targets=targets))
    best, found, varied = -np.inf, chosen, _varied(chosen.covariance, targets, permutations)
    local = Local(Environments.of(train.species, train.positions), np.array(1.0), np.array(1.0))
    for length in map(np.array, LENGTHS):
        alone = of_surroundings(local.of(length, 1.0), variance, positions)
        unit = varied / _varied(alone, targets, permutations)
        for ratio, noise in product(RATIOS, _noises(sample)):
            covariance = chosen.covariance + ratio * unit * alone
            matrix = np.asarray(sample.matrix(covariance, joint.of_each(noise, targets, sample.positions.shape[1])))
            likelihood = regression.log_likelihood(internal.T @ matrix @ internal, y, True)
            if likelihood > best:  # which one without a factor is not
                best = likelihood
                found = chosen._replace(noise=noise, covariance=covariance, local=local.of(length, ratio * unit))
    return found


def _noises(sample):
    """Those to choose among, one for each target."""
    if sample.problem.options.shares is not None:
        return sample.noises
    return [tuple(n * (1.0 if target == "forces" else OF_ENERGIES) for target in sample.targets) for n in NOISES]


def _of_surroundings(local, variance, positions, targets):
    """Covariance (n, M, n, M) of the observations at positions (n, N, 3) by their surroundings alone."""
    seen, process = local.see(positions), local.process(variance)
    return joint.covariance(process, seen, seen, targets)


def _varied(covariance, targets, permutations):
    """What forces vary by, or else energies, in a covariance (n, M, n, M)."""
    last = joint.count(targets[-1:], permutations.shape[1])
    return float(joint.noise_variance(covariance, 1.0, targets, permutations)[-last:].mean())


def _internal(positions, kept, targets):
    """Directions (m, m') among m observations along which geometries (n, N, 3) have labels at all, a sparse array.

    Forces have none along translations and rotations. There the covariance is the noise alone, and a likelihood that counted
    these directions would prefer whatever makes the noise small.
    """
    is_force = joint.of_each(np.array([target == "forces" for target in targets]), targets, positions.shape[1])
    everything, blocks = np.eye(len(is_force)), []
    for observed, r in zip(kept.reshape(len(positions), -1), positions, strict=True):
        block = everything[:, observed]
        if is_force.any() and observed[is_force].all():
            free = null_space(_rigid(r))
            inner = np.zeros((len(is_force), free.shape[1]))
            inner[is_force] = free
            block = np.concatenate([everything[:, observed & ~is_force], inner], axis=1)
        blocks.append(csr_array(block[observed]))
    return block_diag(blocks, format="csr")


def _rigid(positions):
    """Translations and rotations (6, 3N) of positions (N, 3)."""
    along = np.broadcast_to(np.eye(3)[:, None], (3, *positions.shape))
    return np.concatenate([along, np.cross(along, positions - positions.mean(0))]).reshape(6, -1)
