"""All that can be chosen about the fit of one property of one atom."""

from dataclasses import dataclass, fields

from iqagp_jax.families.gp.search import Search
from iqagp_jax.families.options import as_in, check, option


@dataclass(frozen=True)
class AtomOptions:
    """Options of `fit_atom`."""

    kernel: str = option("rbf", "rbf as FEREBUS, or with periodic phi.", names=("rbf", "rbf-periodic"))
    loss: str = as_in(Search, "loss", default="marginal")
    optimiser: str = as_in(Search, "optimiser")
    max_steps: int = as_in(Search, "max_steps", default=500)
    n_starts: int = as_in(Search, "n_starts")
    seed: int = as_in(Search, "seed")
    tolerance: float = as_in(Search, "tolerance", default=1e-6)
    patience: int = as_in(Search, "patience", default=3)
    n_seed: int | None = as_in(Search, "n_seed", help="Fit on so many points first, then relax on all.")

    def __post_init__(self) -> None:
        check(self)

    @property
    def search(self) -> Search:
        """What of it concerns the search for hyperparameters."""
        return Search(**{f.name: getattr(self, f.name) for f in fields(Search)})
