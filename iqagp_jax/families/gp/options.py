"""All that can be chosen about a model of Gaussian processes, for keywords, command line, docs and files alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from iqagp_jax.families.gp.features import FEATURES
from iqagp_jax.families.gp.search import Search

KERNELS = ("matern52", "matern92", "rbf", "rbf-periodic")

SOLVERS = ("cholesky", "cg")


def option(default: Any, help: str, **told: Any) -> Any:
    """A field with what the command line says of it, and the names that may be chosen where there are few."""
    return field(default=default, metadata={"help": help, **told})


@dataclass(frozen=True)
class GPOptions:
    """Options of `fit_gp`, in the order of its arguments. None is chosen by what is learned."""

    features: str = option("inverse-distances", "What an atom sees of the others.", names=tuple(FEATURES))
    kernel: str | None = option(None, "Default: matern52, with forces matern92, for alf rbf-periodic.", names=KERNELS)
    prior_mean: str | Callable | None = option(
        None,
        "Energy far from the data: min, mf1 to mf5, zero, born-mayer, zbl; + joins them, see `means.py`. Default:"
        " mf5+born-mayer, for alf mf5.",
    )
    n_train: int | None = option(
        None, "Use the first so many training geometries. Default: all, with forces up to 15,000 numbers."
    )
    noise: float | Mapping[str, float] | tuple[tuple[str, float], ...] | None = option(
        None, "Noise variance, a share of the signal's; one a target: energy=1e-8,forces=1e-6. Default: see `fit_gp`."
    )
    max_steps: int = option(40, "Steps of the optimiser at most.", least=0)
    n_hyper: int | None = option(None, "Fit hyperparameters on the first so many geometries.", least=2)
    mirror: bool = option(False, "With alf: add mirror images of the training geometries.")
    targets: tuple[str, ...] | None = option(
        None,
        "What is learned, with commas between: atomic_energies, energy, forces. Default: atomic energies (where there"
        " are none, energies) and forces, if the dataset has them.",
    )
    symmetry: bool | None = option(
        None,
        "Equal energies for permutations of equal atoms: methyl hydrogens, tautomers. Default: where forces or"
        " energies of the molecule are learned from inverse distances.",
    )
    solver: str = option("cholesky", "cg: more energies and forces than fit into memory.", names=SOLVERS)
    loss: str = option(
        "concentrated", "What is optimised; `search.py` has the formulas.", names=("concentrated", "marginal", "hold-out")
    )
    optimiser: str = option("lbfgs", "Optimiser, from optax.", names=("lbfgs", "adam"))
    n_starts: int = option(0, "Random starts; 0: one start at a likely multiple of the spread.", least=0, flag="starts")
    seed: int = option(0, "Seed of the random starts.", least=0)
    n_seed: int | None = option(None, "Fit on so many geometries first, then relax on all.", flag="transfer")
    tolerance: float = option(0.01, "An atom has converged when steps raise its objective by less.", flag=None)
    patience: int = option(1, "So many steps on end.", flag=None)

    @property
    def search(self) -> Search:
        """What of it concerns the search for hyperparameters."""
        return Search(**{f.name: getattr(self, f.name) for f in fields(Search)})

    def told(self, **chosen: Any) -> "GPOptions":
        """As it is written down: with what was ``chosen``, and all of it hashable; a function of the user's by its name."""
        mean = chosen.get("prior_mean", self.prior_mean)
        if callable(mean):
            chosen["prior_mean"] = getattr(mean, "__name__", type(mean).__name__)
        noise = chosen.get("noise", self.noise)
        if isinstance(noise, Mapping):
            chosen["noise"] = tuple(noise.items())
        return replace(self, **chosen)
