"""Fitting: from a dataset to a model, hyperparameters by maximising the log marginal likelihood."""

from dataclasses import replace

import jax
import numpy as np

from iqagp_jax.families.gp.fit_atoms import fit_atoms
from iqagp_jax.families.gp.fit_joint import fit_joint
from iqagp_jax.families.gp.means import Base
from iqagp_jax.families.gp.model import Division, Model, refuse_copies
from iqagp_jax.families.gp.options import ATOMIC, BASE_MEAN, GPOptions
from iqagp_jax.families.gp.problem import Problem
from iqagp_jax.families.options import made_of, signature_of
from iqagp_jax.potential import potential_of, system_of
from iqagp_jax.system.elements import same_atoms


def _silent(steps):
    return steps


def fit_gp(dataset, *given, base=None, progress=_silent, **options) -> Model:
    """Fit one Gaussian process per atom to what a `Dataset` knows of ``targets``; returns a `Model`.

    By default it learns atomic energies and forces, with equal energies for permutations of equal atoms, around a high prior
    mean with a repulsion of near atoms: what survived hot dynamics and was right there (docs/active.md).

    Of atomic energies alone the hyperparameters (a length scale per feature and the signal variance of every atom) maximise
    the log marginal likelihood of the training data; of several targets `fit_joint` tells. The noise is fixed at ``noise``
    times the signal variance: labels of a converged calculation have next to none, and a likelihood that may choose it
    explains what the kernel cannot by noise (it drove the variance to 1e-3 of the signal and made forces worse in our trials).

    Parameters
    ----------
    features: "inverse-distances" or "alf" (atomic local frames).
    kernel: "matern52" (default for inverse distances), "matern92" (their default where more than atomic energies are learned),
        "matern92+rbf" (`kernels.TwoScales`), "rbf", "rbf-periodic" (default for alf).
    prior_mean: names of `means.PRIOR_MEANS` joined by "+", or a pure JAX function (N, 3) angstrom -> (N,) eV; by default
        that of `options.DEFAULT_MEAN`.
    n_train: use the first n frames of the training split. By default all, or the first whose observations of several targets
        number at most `problem.MOST`, with a warning.
    noise: noise variance as a share of the signal variance, by default `options.NOISE`; where more than atomic energies are
        learned as a share of what each observation varies by among the geometries, or a mapping with one for each of the
        targets, by default chosen among `fit_joint.NOISES`.
    max_steps: L-BFGS steps at most; 0 keeps the likeliest of the starting length scales.
    n_hyper: fit the hyperparameters on the first so many training frames (all by default) of atomic energies alone; weights
        always use all.
    mirror: with ALF features, which differ: add the mirror image of every training geometry, of the same energies, to
        the data that the weights are fitted to; the hyperparameters see the originals only.
    targets: what is learned, any of "atomic_energies", "energy" (the molecule's, of geometries without atomic energies where
        both are targets) and "forces"; with more than atomic energies all is one joint Gaussian process, see `joint` and
        `fit_joint`. By default `options.default_targets`.
    symmetry: make the energy the same for all `symmetry.permutations` of equal atoms (of a large group for a subgroup of 100
        at most, with a warning): for forces on inverse distances in the covariance, which is the default there and exact, else
        nearly the same, by copies of the training data, of which the hyperparameters, of every atom its own, see the originals
        only.
    solver: "cholesky", or "cg" for more energies and forces than have room for their covariance matrix; see `iterative`.
    base: a potential of the same molecule beneath, as a model of a cheaper level of theory: E(R) = E_base(R) + the process,
        which learns the difference. The model holds it, and costs as much as both. Over a base that knows the molecule's energy
        alone atomic energies are a `Division` of the whole.
    loss, optimiser, n_starts, seed, n_seed, tolerance, patience: of the search for hyperparameters, see `search.Search`.
    robust: leave labels out that are far from what all other geometries predict, see `wrong_labels`; else a warning names them.
        They are looked for where several targets are learned by a factor, among 50 geometries or more that have no copies: not
        among atomic energies alone, by "cg", or among mirrored or permuted copies.
    pair_weights: of inverse distances where more than atomic energies are learned: "decay", d exp(-d / decay) of the mean
        distances d, or "orbits", times a factor of every orbit of equivalent pairs, see `fit_joint`.
    progress: wraps the range of optimisation steps, as a progress bar does.

    Raises ValueError for unknown names, too few geometries, or a dataset without the targets; TypeError for other options.
    """
    beneath = None if base is None else _beneath(base, dataset)
    resolved = made_of(GPOptions, given, options).resolved(dataset, beneath and beneath.only_sum)
    with jax.enable_x64(True):
        if beneath and beneath.only_sum and "atomic_energies" in resolved.learned:
            return _divided(dataset, resolved, beneath, progress)
        return (fit_joint if resolved.is_joint else fit_atoms)(Problem.of(dataset, resolved, beneath), progress)


def _divided(dataset, options, base, progress):
    """A model of energies or forces over a base that knows no atomic energies, and a `Division` learned from the dataset's."""
    whole = replace(options, targets=tuple(target for target in options.learned if target != "atomic_energies"))
    problem = Problem.of(dataset, whole, base)
    train = problem.train
    if train.atomic_energies is None:
        raise ValueError(
            "expected a dataset with atomic_energies (REF_atomic_energies in its file), found none; choose other targets"
        )
    model = fit_joint(problem, progress)
    atomic = GPOptions(targets=ATOMIC, prior_mean=BASE_MEAN, max_steps=options.max_steps)
    division = fit_gp(replace(train[np.isfinite(train.atomic_energies).all(1)], origin={}), progress=progress, **vars(atomic))
    made_by = replace(model.made_by, targets=options.learned, options=options.told())
    return replace(model, division=Division(division), made_by=made_by)


def _beneath(potential, dataset):
    """A potential as the `Base` of what a dataset teaches; ValueError, in a sentence, where it is not of the same molecule."""
    potential = potential_of(potential)
    same_atoms(system_of(potential).species, dataset.species, "the dataset")
    mine, theirs = ((state.charge, state.spin) for state in (potential.system, dataset.level))
    if mine != theirs:
        raise ValueError(
            f"expected a base of charge {theirs[0]} and {theirs[1]} unpaired electrons, as the dataset, found {mine[0]} and"
            f" {mine[1]}; take one of that state"
        )
    return Base(potential)


fit_gp.__signature__ = signature_of(GPOptions, "dataset", base=None, progress=_silent)  # type: ignore[attr-defined]


def fit_again(model, dataset, progress=_silent) -> Model:
    """A `Model` with another's features, kernel, prior mean, base, symmetry and targets, but all of it fitted to a `Dataset`.

    A noise that was given is kept, one that was chosen is chosen again.

    Raises ValueError for a prior mean that has no name, a function of the user's, and for a model of copied geometries.
    """
    refuse_copies(model)
    options = {**vars(model.made_by.options), "n_train": len(dataset), "n_hyper": None}
    return fit_gp(dataset, base=model.base, progress=progress, **options)
