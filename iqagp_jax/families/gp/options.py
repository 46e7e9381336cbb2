"""All that can be chosen about a model of Gaussian processes, for keywords, command line, docs and files alike."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from iqagp_jax.data.dataset import Dataset
from iqagp_jax.families.gp.features import FEATURES
from iqagp_jax.families.gp.joint import TARGETS
from iqagp_jax.families.gp.kernels import NAMES as KERNELS
from iqagp_jax.families.gp.search import Search
from iqagp_jax.families.options import as_in, check, is_share, names_of, option

SOLVERS = ("cholesky", "cg")

PAIR_WEIGHTS = ("decay", "orbits")

ATOMIC = ("atomic_energies",)
"""Targets of which every atom's process sees its own alone; all others are learned jointly."""

DEFAULT_KERNEL = {"inverse-distances": "matern52", "alf": "rbf-periodic"}
"""Of atomic energies alone; with forces or molecular energies inverse distances have the smoother `JOINT_KERNEL`."""

JOINT_KERNEL = "matern92"

DEFAULT_MEAN = {"inverse-distances": "mf5+born-mayer", "alf": "mf5"}
"""The repulsion makes local frames worse: malondialdehyde's energies alone are learned to 2.7 kcal/mol with it, 2.2 without."""

BASE_MEAN = "mf1"
"""Over a base: far from the data the base is believed, which has a repulsion and a high mean of its own."""

NOISE = 1e-8
"""Noise variance as a share of the signal variance, where atomic energies alone are learned; see `fit_gp`."""


def shares_of(text: str) -> float | dict[str, float]:
    """A noise from text: a number, or target=number with commas between."""
    try:
        if "=" not in text:
            return float(text)
        pairs = [(target.strip(), float(share)) for target, share in (part.split("=") for part in text.split(","))]
        if len(dict(pairs)) < len(pairs):
            raise ValueError
        return dict(pairs)
    except ValueError:
        raise ValueError(f"expected --noise as 1e-8 or energy=1e-8,forces=1e-6, found {text!r}") from None


@dataclass(frozen=True)
class GPOptions:
    """Options of `fit_gp`, in the order of its arguments. None is chosen by what is learned, by `resolved`."""

    features: str = option("inverse-distances", "What an atom sees of the others.", names=tuple(FEATURES))
    kernel: str | None = option(None, "Default: matern52, with forces matern92, for alf rbf-periodic.", names=KERNELS)
    prior_mean: str | Callable | None = option(
        None,
        "Energy far from the data: min, mf1 to mf5, zero, born-mayer, zbl; + joins them, see `means.py`. Default:"
        " mf5+born-mayer, for alf mf5.",
        read=str,
    )
    n_train: int | None = option(
        None, "Use the first so many training geometries. Default: all, with forces up to 15,000 numbers."
    )
    noise: float | Mapping[str, float] | tuple[tuple[str, float], ...] | None = option(
        None,
        "Noise variance, a share of the signal's; one a target: energy=1e-8,forces=1e-6. Default: see `fit_gp`.",
        read=shares_of,
    )
    max_steps: int = as_in(Search, "max_steps")
    n_hyper: int | None = option(None, "Fit hyperparameters on the first so many geometries.", least=2)
    mirror: bool = option(False, "With alf: add mirror images of the training geometries.")
    targets: tuple[str, ...] | None = option(
        None,
        "What is learned, with commas between: atomic_energies, energy, forces. Default: atomic energies (where there"
        " are none, energies) and forces, if the dataset has them.",
        read=names_of,
    )
    symmetry: bool | None = option(
        None,
        "Equal energies for permutations of equal atoms: methyl hydrogens, tautomers. Default: where forces or"
        " energies of the molecule are learned from inverse distances.",
    )
    solver: str = option("cholesky", "cg: more energies and forces than fit into memory.", names=SOLVERS)
    loss: str = as_in(Search, "loss")
    optimiser: str = as_in(Search, "optimiser")
    n_starts: int = as_in(Search, "n_starts")
    seed: int = as_in(Search, "seed")
    n_seed: int | None = as_in(Search, "n_seed")
    tolerance: float = as_in(Search, "tolerance")
    patience: int = as_in(Search, "patience")
    robust: bool = option(False, "Leave labels out that are far from what all other geometries predict.")
    pair_weights: str = option(
        "decay",
        "With forces, inverse distances: one decay for all pairs, or beside it a factor of every orbit of equal pairs.",
        names=PAIR_WEIGHTS,
    )
    local: bool = option(
        False,
        "With forces, inverse distances: add a process of the atoms' surroundings. Fewer labels, slower steps; see `local.py`.",
    )

    def resolved(self, dataset: Dataset, only_sum: bool | None = None) -> "GPOptions":
        """With all chosen that a ``dataset`` lets choose: targets, kernel, prior mean, symmetry.

        Over a base ``only_sum`` tells whether it knows the molecule's energy alone; None where there is no base.

        Raises ValueError, in a sentence, for unknown names, numbers out of range, and options that do not go together.
        """
        check(self)
        if not (self.prior_mean is None or isinstance(self.prior_mean, str) or callable(self.prior_mean)):
            raise ValueError(f"expected a prior mean's name or a function of positions, found {self.prior_mean!r}")
        _ = self.search  # which checks its own
        usual = default_targets(dataset, self.solver, bool(only_sum))
        targets = check_targets(usual if self.targets is None else self.targets)
        chosen = replace(self, targets=targets)
        by_distances = self.features == "inverse-distances"
        smooth = chosen.is_joint and by_distances
        chosen = replace(
            chosen,
            kernel=self.kernel or (JOINT_KERNEL if smooth else DEFAULT_KERNEL[self.features]),
            prior_mean=_mean_of(self.features, only_sum) if self.prior_mean is None else self.prior_mean,
            symmetry=smooth if self.symmetry is None else self.symmetry,
        )
        chosen._check_together(by_distances)
        if only_sum is not None:
            chosen._check_over_base(only_sum)
        _ = chosen.shares
        return chosen

    def _check_together(self, by_distances: bool) -> None:
        if self.solver == "cg" and (not by_distances or "atomic_energies" in self.learned):
            raise ValueError(
                "expected inverse distances, and energy or forces as targets, for solver 'cg'; choose these, or 'cholesky'"
            )
        summed_by_factor = self.is_joint and by_distances and self.solver == "cholesky"
        if self.robust and not summed_by_factor:
            raise ValueError(
                "expected robust=True for forces or energies of the molecule, on inverse distances and by solver 'cholesky';"
                " leave it out: wrong labels are not looked for in other fits"
            )
        if self.local and not summed_by_factor:
            raise ValueError(
                "expected local=True for forces or energies of the molecule, on inverse distances and by solver 'cholesky';"
                " leave it out, or choose these"
            )
        if self.mirror and by_distances:
            raise ValueError(
                "expected mirror=True with features 'alf' only, as a mirror image has the same inverse distances; leave it out"
            )
        if not self.is_joint:
            return
        if self.n_hyper:
            raise ValueError("expected n_hyper where atomic energies alone are learned; leave it out: joint fits take a subset")
        if by_distances and self.kernel == "rbf-periodic":
            raise ValueError(
                "expected a kernel of one length scale for inverse distances with energies or forces, found rbf-periodic"
            )
        if self.loss == "hold-out" or self.n_starts or self.n_seed:
            raise ValueError(
                "expected one start and a likelihood for forces; leave loss, random starts and transfer out, or learn atomic"
                " energies alone"
            )

    def _check_over_base(self, only_sum: bool) -> None:
        if only_sum and not self.is_joint:
            raise ValueError(
                "expected a base that learned atomic energies beneath a model of them alone, found one of their sum; learn"
                " energy or forces over it, too"
            )
        if isinstance(self.prior_mean, str) and "mf4" in self.prior_mean.split("+"):
            raise ValueError(
                "expected a prior mean of a difference, found mf4, the energies of free atoms, which a base of molecules does"
                f" not know; take {BASE_MEAN}"
            )

    @property
    def search(self) -> Search:
        """What of it concerns the search for hyperparameters."""
        return Search(**{f.name: getattr(self, f.name) for f in fields(Search)})

    @property
    def learned(self) -> tuple[str, ...]:
        """The targets; none before they are `resolved`."""
        return self.targets or ()

    @property
    def is_joint(self) -> bool:
        """Whether atoms share what is learned, in one process of all."""
        return self.targets != ATOMIC

    @property
    def shares(self) -> float | tuple[float, ...] | None:
        """The noise as a share of the signal variance, or one for each of the targets in their order; None: to be chosen."""
        if self.noise is None:
            return None if self.is_joint else NOISE
        if not isinstance(self.noise, Mapping | tuple):
            return _share(self.noise)
        try:
            given = dict(self.noise)
        except (TypeError, ValueError):
            raise ValueError(f"expected a noise, or a mapping of targets to theirs, found {self.noise!r}") from None
        if set(given) != set(self.learned):
            raise ValueError(f"expected a noise for each of {', '.join(self.learned)}, found {', '.join(given) or 'none'}")
        each = tuple(_share(given[target]) for target in self.learned)
        return each if self.is_joint else each[0]

    def told(self) -> "GPOptions":
        """As it is written down, all of it hashable; a function of the user's by its name."""
        mean, noise = self.prior_mean, self.noise
        if callable(mean):
            mean = getattr(mean, "__name__", type(mean).__name__)
        return replace(self, prior_mean=mean, noise=tuple(noise.items()) if isinstance(noise, Mapping) else noise)


def _mean_of(features: str, only_sum: bool | None) -> str:
    """The prior mean's name by default."""
    return DEFAULT_MEAN[features] if only_sum is None else BASE_MEAN


def _share(noise: Any) -> float:
    """A share of the signal variance."""
    if not is_share(noise):
        raise ValueError(f"expected a noise between 0 and 1 (a share of the signal variance), found {noise!r}")
    return float(noise)


def check_targets(targets: tuple[str, ...]) -> tuple[str, ...]:
    """The targets in the order of `joint.TARGETS`; ValueError, in a sentence, where there are others, or none."""
    if isinstance(targets, str):
        raise ValueError(f"expected a tuple of targets, found the word {targets!r}; write ({targets!r},)")
    if not isinstance(targets, Collection) or not targets or not set(targets) <= set(TARGETS):
        unknown = isinstance(targets, Collection) and ", ".join(str(t) for t in targets if t not in TARGETS)
        raise ValueError(f"expected targets among {', '.join(TARGETS)}, found {unknown or repr(targets)}")
    if len(set(targets)) < len(targets):
        raise ValueError(f"expected each target once, found {', '.join(targets)}")
    return tuple(target for target in TARGETS if target in targets)


def default_targets(dataset: Dataset, solver: str = "cholesky", only_sum: bool = False) -> tuple[str, ...]:
    """What is learned of a dataset by default: its forces, and its atomic energies (not by "cg") or else its energies.

    Its energies, too, over a base that knows their ``only_sum``.

    With atomic energies and forces also the energies of geometries without atomic energies, now or when they are added.
    """
    dataset = dataset.split("train") if "train" in dataset.splits else dataset
    atomic, forces = (_any(getattr(dataset, name)) for name in ("atomic_energies", "forces"))
    atomic &= solver != "cg"
    wanted = {"atomic_energies": atomic, "energy": forces or not atomic or only_sum, "forces": forces}
    return tuple(name for name in wanted if wanted[name])


def _any(values: np.ndarray | None) -> bool:
    return values is not None and bool(np.isfinite(values).any())
