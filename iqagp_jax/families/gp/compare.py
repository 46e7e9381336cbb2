"""Which prior mean: likelihoods of the same data, each mean with its own best hyperparameters."""

import numpy as np

from iqagp_jax.families.gp.fit import fit_gp
from iqagp_jax.families.gp.fit_joint import SUBSET
from iqagp_jax.families.gp.means import CONSTANTS
from iqagp_jax.families.gp.options import GPOptions
from iqagp_jax.families.gp.problem import evenly, observations_of_each, training_frames
from iqagp_jax.families.options import made_of

COMPARED = 200
"""Training geometries that `compare_means` fits to, at most."""

SHARP = 0.05
"""A mean whose ln L per data point is so much below a constant's is too sharp. For malondialdehyde (200 geometries of atomic
energies; 100 with forces) ZBL gave +0.02 and +0.08, Born-Mayer +0.01 and +0.05, walls amid the data -0.09 to -1.0."""


def compare_means(dataset, names, n_train=None, progress=lambda names: names, **options):
    """Log likelihood per data point of each prior mean, {name: ln L / point}, each with its own best hyperparameters.

    All see the same data, the first `COMPARED` training geometries at most, so that their likelihoods may be compared.
    Raises ValueError for the loss hold-out, which is no likelihood.

    Args:
        names: prior means as `fit_gp` takes them, names or functions.
        options: others of `fit_gp`.
    """
    resolved = made_of(GPOptions, (), options).resolved(dataset)
    if resolved.loss == "hold-out":
        raise ValueError(
            "expected a likelihood to compare prior means by, found the loss hold-out; take concentrated or marginal"
        )
    targets = resolved.learned
    n = min(len(training_frames(dataset, n_train, targets)), COMPARED)

    train = training_frames(dataset, n, targets)
    sampled = observations_of_each(train, targets)[evenly(train, targets, SUBSET)].sum() if resolved.is_joint else None

    def per_point(name):
        # The traces of a joint fit are shares of the likelihood of one subset of all observations.
        best = np.max(fit_gp(dataset, prior_mean=name, n_train=n, **options).trace, axis=0)
        if not resolved.is_joint:
            return float(best.mean() / min(n, resolved.n_hyper or n))
        return float(best.sum() / sampled)

    return {name: per_point(name) for name in progress(names)}


def too_sharp(likelihoods):
    """Of prior means with a `compare_means` result those that vary among the data in a way the data do not bear out.

    The rule: their ln L per point lies more than `SHARP` below that of the best constant compared with them. A wall amid
    the data leaves residuals that no smooth kernel explains.
    """
    constant = max((value for name, value in likelihoods.items() if name in CONSTANTS), default=-np.inf)
    return [name for name, value in likelihoods.items() if name not in CONSTANTS and value < constant - SHARP]
