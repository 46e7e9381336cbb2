"""Fitting: from a dataset to a model, hyperparameters by maximising the log marginal likelihood."""

import warnings
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.data.dataset import concatenate
from iqagp_jax.families.gp import regression
from iqagp_jax.families.gp.features import FEATURES, InverseDistances
from iqagp_jax.families.gp.fit_joint import check_targets, fit_joint, subset
from iqagp_jax.families.gp.kernels import RBF, Joint, Matern52, Matern92, Periodic, Select
from iqagp_jax.families.gp.means import CONSTANTS, named_mean
from iqagp_jax.families.gp.model import Model, refuse_copies
from iqagp_jax.families.gp.options import KERNELS, SOLVERS, GPOptions
from iqagp_jax.families.gp.search import search_hyperparameters
from iqagp_jax.potential import MadeBy
from iqagp_jax.system.symmetry import permutations

DEFAULT_KERNEL = {"inverse-distances": "matern52", "alf": "rbf-periodic"}
"""Of atomic energies alone; with forces or molecular energies inverse distances have the smoother `JOINT_KERNEL`."""

JOINT_KERNEL = "matern92"

DEFAULT_MEAN = {"inverse-distances": "mf5+born-mayer", "alf": "mf5"}
"""The repulsion makes local frames worse: malondialdehyde's energies alone are learned to 2.7 kcal/mol with it, 2.2 without."""

MOST = 15_000
"""Observations of several targets that are learned by default, at most: a matrix of 1.8 GB, a minute on two cores."""

NOISE = 1e-8
"""Noise variance as a share of the signal variance; see `fit_gp`."""

COMPARED = 200
"""Training geometries that `compare_means` fits to, at most."""

SHARP = 0.05
"""A mean whose ln L per data point is so much below a constant's is too sharp. For malondialdehyde (200 geometries of atomic
energies; 100 with forces) ZBL gave +0.02 and +0.08, Born-Mayer +0.01 and +0.05, walls amid the data -0.09 to -1.0."""


def build_kernel(name, lengthscale, angular):
    """The kernel ``name`` with one length scale a feature (D,); ``angular`` (D,) marks features of period 2 pi."""
    if name not in KERNELS:
        raise ValueError(f"expected a kernel among {', '.join(KERNELS)}, found {name!r}")
    if name == "rbf-periodic":
        straight, around = (tuple(np.flatnonzero(mask).tolist()) for mask in (~angular, angular))
        return Joint(
            Select(RBF(lengthscale[..., np.array(straight, dtype=int)]), straight),
            Select(Periodic(lengthscale[..., np.array(around, dtype=int)]), around),
        )
    if angular.any():
        raise ValueError(f"kernel {name!r} would tear the angles of these features at +-pi; use 'rbf-periodic'")
    return {"rbf": RBF, "matern52": Matern52, "matern92": Matern92}[name](lengthscale)


def fit_gp(dataset, *given, progress=lambda steps: steps, **options):
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
        "rbf", "rbf-periodic" (default for alf).
    prior_mean: names of `means.PRIOR_MEANS` joined by "+", or a pure JAX function (N, 3) angstrom -> (N,) eV; by default
        that of `DEFAULT_MEAN`.
    n_train: use the first n frames of the training split. By default all, or the first whose observations of several targets
        number at most `MOST`, with a warning.
    noise: noise variance as a share of the signal variance, by default `NOISE`; where more than atomic energies are learned as
        a share of what each observation varies by among the geometries, or a mapping with one for each of the targets, by
        default chosen among `fit_joint.NOISES`.
    max_steps: L-BFGS steps at most; 0 keeps the likeliest of the starting length scales.
    n_hyper: fit the hyperparameters on the first so many training frames (all by default) of atomic energies alone; weights
        always use all.
    mirror: with ALF features, which differ: add the mirror image of every training geometry, of the same energies, to
        the data that the weights are fitted to; the hyperparameters see the originals only.
    symmetry: make the energy the same for all `symmetry.permutations` of equal atoms: for forces on inverse distances in
        the covariance, which is the default there and exact, else nearly the same, by copies of the training data, of which
        the hyperparameters, of every atom its own, see the originals only.
    solver: "cholesky", or "cg" for more energies and forces than have room for their covariance matrix; see `iterative`.
    progress: wraps the range of optimisation steps, as a progress bar does.
    targets: what is learned, any of "atomic_energies", "energy" (the molecule's, of geometries without atomic energies where
        both are targets) and "forces"; with more than atomic energies all is one joint Gaussian process, see `joint` and
        `fit_joint`. By default `default_targets`.
    loss, optimiser, n_starts, seed, n_seed: of the search for hyperparameters, see `search.Search`.

    Raises ValueError for unknown names, too few geometries, or a dataset without the targets.
    """
    options = GPOptions(*given, **options)
    features, kernel, prior_mean, n_train, noise, _, n_hyper, mirror, targets, symmetry, solver = (
        getattr(options, f.name) for f in fields(GPOptions)[:11]
    )
    search = options.search
    targets = check_targets(default_targets(dataset, solver) if targets is None else targets)
    train = training_frames(dataset, n_train, targets, np.inf if solver == "cg" else MOST // (2 if mirror else 1))
    if solver not in SOLVERS:
        raise ValueError(f"expected a solver among {', '.join(SOLVERS)}, found {solver!r}")
    if solver == "cg" and (features != "inverse-distances" or "atomic_energies" in targets):
        raise ValueError(
            "expected inverse distances, and energy or forces as targets, for solver 'cg'; choose these, or 'cholesky'"
        )
    if features not in FEATURES:
        raise ValueError(f"expected features among {', '.join(FEATURES)}, found {features!r}")
    if mirror and features == "inverse-distances":
        raise ValueError(
            "expected mirror=True with features 'alf' only, as a mirror image has the same inverse distances; leave it out"
        )
    several = targets != ("atomic_energies",)
    if n_hyper is not None and n_hyper < 2:
        raise ValueError(f"expected n_hyper of at least 2 geometries, found {n_hyper}")
    if several and n_hyper:
        raise ValueError("expected n_hyper where atomic energies alone are learned; leave it out: joint fits take a subset")
    if noise is not None or not several:
        noise = _check_noise(NOISE if noise is None else noise, targets)
        if not several and isinstance(noise, tuple):
            (noise,) = noise
    kernel = kernel or (JOINT_KERNEL if several and features == "inverse-distances" else DEFAULT_KERNEL[features])
    prior_mean = DEFAULT_MEAN[features] if prior_mean is None else prior_mean
    chosen = FEATURES[features].choose(train.species, train.positions)
    averaged = several and isinstance(chosen, InverseDistances)
    if averaged and kernel == "rbf-periodic":
        raise ValueError(
            "expected a kernel of one length scale for inverse distances with energies or forces, found rbf-periodic"
        )
    symmetry = averaged if symmetry is None else symmetry
    images = permutations(train.species, train.positions[train.lowest]) if symmetry else _identity(train)
    copies = _copies(train, mirror, _identity(train) if averaged else images)
    with jax.enable_x64(True):
        mean = prior_mean if callable(prior_mean) else named_mean(prior_mean, _copies(train, False, images))
        chosen_options = options.told(kernel=kernel, prior_mean=prior_mean, targets=targets, symmetry=symmetry)
        program = f"iqagp_jax {version('iqagp-jax')}, jax {jax.__version__}"
        made_by = MadeBy(train.level, targets, chosen_options, len(copies) // len(train), program)
        if several:
            build = partial(build_kernel, kernel, angular=chosen.angular)
            images = images if averaged else _identity(train)
            return fit_joint(train, chosen, build, mean, targets, noise, search, copies, images, solver, made_by, progress)
        prior = jax.jit(jax.vmap(mean))(jnp.asarray(copies.positions))
        residual = (jnp.asarray(copies.atomic_energies) - prior).T
        points = jax.jit(jax.vmap(chosen))(jnp.asarray(copies.positions)).swapaxes(0, 1)

        def build(log_lengthscale):
            return build_kernel(kernel, jnp.exp(log_lengthscale), chosen.angular)

        # Copies would bias the likelihood: that twins agree is no evidence of smoothness.
        subset = slice(None, n_hyper or len(train))
        found = search_hyperparameters(
            build, noise, search, points[:, subset], residual[:, subset], chosen.angular, progress=progress
        )
        return condition(train, chosen, build(found.parameters), mean, points, residual, noise, found.trace, made_by)


def fit_again(model, dataset, progress=lambda steps: steps):
    """A `Model` with another's features, kernel, prior mean, symmetry and targets, but all of it fitted to a `Dataset`.

    A noise that was given is kept, one that was chosen is chosen again.

    Raises ValueError for a prior mean that has no name, a function of the user's, and for a model of copied geometries.
    """
    refuse_copies(model)
    options = model.made_by.options
    noise = dict(options.noise) if isinstance(options.noise, tuple) else options.noise
    return fit_gp(dataset, progress=progress, **{**vars(options), "noise": noise, "n_train": len(dataset), "n_hyper": None})


def _identity(train):
    """The permutation (1, N) that changes nothing."""
    return np.arange(len(train.species))[None]


def _copies(train, mirror, images):
    """The training data, then their permuted and mirrored copies, which have the same energies."""
    permuted = [train, *(train.permuted(p) for p in images[1:])]
    return concatenate([*permuted, *(copy.mirrored() for copy in permuted)] if mirror else permuted)


def _check_noise(noise, targets):
    """A share of the signal variance between 0 and 1, or one for each target from a mapping, in the targets' order."""
    if isinstance(noise, Mapping):
        if set(noise) != set(targets):
            raise ValueError(f"expected a noise for each of {', '.join(targets)}, found {', '.join(noise) or 'none'}")
        return tuple(_check_noise(noise[target], targets) for target in targets)
    if not 0 < noise < 1:
        raise ValueError(f"expected a noise between 0 and 1 (a share of the signal variance), found {noise}")
    return float(noise)


def compare_means(dataset, names, n_train=None, progress=lambda names: names, **options):
    """Log likelihood per data point of each prior mean, {name: ln L / point}, each with its own best hyperparameters.

    All see the same data, the first `COMPARED` training geometries at most, so that their likelihoods may be compared.
    Raises ValueError for the loss hold-out, which is no likelihood.

    Args:
        names: prior means as `fit_gp` takes them, names or functions.
        options: others of `fit_gp`.
    """
    if options.get("loss") == "hold-out":
        raise ValueError(
            "expected a likelihood to compare prior means by, found the loss hold-out; take concentrated or marginal"
        )
    targets = options.get("targets")
    targets = check_targets(default_targets(dataset, options.get("solver")) if targets is None else targets)
    n = min(len(training_frames(dataset, n_train, targets)), COMPARED)

    def per_point(name):
        # The traces of a joint fit are shares of the likelihood of one subset of all observations.
        best = np.max(fit_gp(dataset, prior_mean=name, n_train=n, **options).trace, axis=0)
        if targets == ("atomic_energies",):
            return float(best.mean() / min(n, options.get("n_hyper") or n))
        return float(best.sum() / subset(training_frames(dataset, n, targets), targets)[1])

    return {name: per_point(name) for name in progress(names)}


def too_sharp(likelihoods):
    """Of prior means with a `compare_means` result those that vary among the data in a way the data do not bear out.

    The rule: their ln L per point lies more than `SHARP` below that of the best constant compared with them. A wall amid
    the data leaves residuals that no smooth kernel explains.
    """
    constant = max((value for name, value in likelihoods.items() if name in CONSTANTS), default=-np.inf)
    return [name for name, value in likelihoods.items() if name not in CONSTANTS and value < constant - SHARP]


@partial(jax.jit, static_argnums=3)
def _solve(kernel, points, residual, noise):
    def one_atom(arguments):
        k, x, r = arguments
        factor = jnp.linalg.cholesky(regression.covariance_matrix(k, x, noise))
        return regression.weights(factor, r), regression.signal_variance(factor, r)

    return jax.lax.map(one_atom, (kernel, points, residual))


def condition(train, features, kernel, mean, points, residual, noise, trace, made_by):
    """The model at given hyperparameters: weights and signal variances from one Cholesky factor per atom.

    Raises ValueError where a covariance matrix is not positive definite, as with duplicate geometries.
    """
    weights, variance = _solve(kernel, points, residual, noise)
    if not np.isfinite(weights).all():
        atom = int(np.argwhere(~np.isfinite(np.asarray(weights)))[0, 0])
        raise ValueError(
            f"the covariance matrix of atom {train.species[atom]}{atom + 1} is not positive definite: are there"
            " duplicate geometries? Remove them or raise the noise"
        )
    # NumPy arrays in the model: JAX's own would lose half their digits in arithmetic outside its 64-bit mode.
    return jax.device_get(
        Model(
            species=train.species,
            features=features,
            kernel=kernel,
            mean=mean,
            train_features=points,
            weights=weights,
            signal_variance=variance,
            residual=residual,
            reference=train.positions[train.lowest],
            trace=trace,
            noise=noise,
            made_by=made_by,
        )
    )


def default_targets(dataset, solver="cholesky"):
    """What is learned of a dataset by default: its forces, and its atomic energies (not by "cg") or else its energies.

    With atomic energies and forces also the energies of geometries without atomic energies, now or when they are added.
    """
    dataset = dataset.split("train") if "train" in dataset.splits else dataset
    atomic, forces = (_any(getattr(dataset, name)) for name in ("atomic_energies", "forces"))
    atomic &= solver != "cg"
    wanted = {"atomic_energies": atomic, "energy": forces or not atomic, "forces": forces}
    return tuple(name for name in wanted if wanted[name])


def _any(values):
    return values is not None and bool(np.isfinite(values).any())


def training_frames(dataset, n_train, targets, most=np.inf):
    """The first n frames of the training split (of everything where there are no splits), checked.

    Without ``n_train`` all, or as many as have at most ``most`` observations of several targets, with a warning.
    """
    train = dataset.split("train") if dataset.splits else dataset
    for target in targets:
        if getattr(train, target) is None:
            raise ValueError(f"expected a dataset with {target} (REF_{target} in its file), found none; choose other targets")
    n = len(train) if n_train is None else n_train
    if not 2 <= n <= len(train):
        raise ValueError(f"expected between 2 and {len(train)} training geometries, the size of the split, found {n}")
    if n_train is None and targets != ("atomic_energies",):
        n = subset(train, targets, most)[0]
        if n < len(train):
            warnings.warn(
                f"learned from the first {n} of {len(train)} training geometries, which hold at most {most:,} numbers of"
                f" {' and '.join(targets)}; n_train={len(train)} (--n-train) takes all of them",
                stacklevel=3,
            )
    train = train[:n]
    if targets == ("atomic_energies",) and (lacking := ~np.isfinite(train.atomic_energies).all(1)).any():
        raise ValueError(
            f"expected atomic energies of all training geometries, found none for {lacking.sum()} of {n}; learn energy or"
            " forces too, where any may be missing, or remove those geometries"
        )
    return train
