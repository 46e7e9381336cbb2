"""All that can be chosen about a model of SO3krates, for keywords, command line, docs and files alike."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from iqagp_jax.data.dataset import Dataset
from iqagp_jax.families.gp.means import REPULSIONS
from iqagp_jax.families.options import check, names_of, option
from iqagp_jax.families.so3krates.model import NO_REPULSION
from iqagp_jax.families.so3krates.network import RADIAL_BASES
from iqagp_jax.machine.progress import in_seconds

TARGETS = ("atomic_energies", "energy", "forces")


def numbers_of(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"expected --degrees as 1,2, found {text!r}") from None


@dataclass(frozen=True)
class SO3kratesOptions:
    """Options of `fit_so3krates`, in the order of its arguments."""

    PANEL = "Options of --family so3krates"

    budget: float | None = option(
        None, "Wall time of the training, as 1h or 15min, in Python seconds. Default: one hour.", read=in_seconds, least=0
    )
    steps: int | None = option(None, "Steps of the training, instead of a wall time: the same model each time.", least=1)
    n_train: int | None = option(None, "Use the first so many training geometries. Default: all.", least=1)
    n_validation: int | None = option(
        None, "So many of the training geometries are held back, to choose the best model. Default: a twentieth.", least=1
    )
    targets: tuple[str, ...] | None = option(
        None,
        "What is learned, with commas between: atomic_energies, energy, forces. Default: all that the data have.",
        read=names_of,
    )
    width: int = option(64, "Features of an atom.", least=1)
    layers: int = option(2, "Layers of the network.", least=1)
    degrees: tuple[int, ...] = option(
        (1, 2),
        "Degrees of the Euclidean variables, 1 to 4, with commas between.",
        read=numbers_of,
        write=lambda degrees: ",".join(map(str, degrees)),
    )
    heads: int = option(4, "Heads of the attention.", least=1)
    cutoff: float = option(5.0, "Atoms farther apart do not see each other, Å.", least=1.0)
    radial_basis: str = option("exp-gaussian", "Functions of the distance.", names=tuple(RADIAL_BASES))
    basis_size: int = option(32, "How many of them.", least=2)
    layer_norm: bool = option(False, "Normalise features before attention and exchange.")
    residual_mlp: bool = option(False, "A further MLP of the features in each layer.")
    mean_neighbours: bool = option(False, "Divide what an atom receives by the mean number of neighbours.")
    repulsion: str = option("born-mayer", "Of near atoms, beneath the network.", names=(NO_REPULSION, *REPULSIONS))
    batch: int = option(10, "Geometries of a step.", least=1)
    learning_rate: float = option(2e-3, "Largest, after the warm-up.", least=0)
    warm_up: float = option(0.01, "Share of the training in which the learning rate rises.", least=0, most=0.5)
    amsgrad: bool = option(False, "AMSGrad instead of Adam.")
    clip: float = option(10.0, "Longest gradient of the loss.", least=0)
    average: float = option(0.999, "Decay of the average of parameters, per step.", least=0, most=0.99999)
    energy_weight: float = option(1.0, "Of squared errors of the energy per atom in the loss.", least=0)
    forces_weight: float = option(1.0, "Of squared errors of force components in the loss.", least=0)
    atomic_weight: float = option(1.0, "Of squared errors of atomic energies in the loss.", least=0)
    huber: float | None = option(
        None, "Beyond so many eV, or eV/Å, errors count linearly. Default: all are squared.", least=1e-6
    )
    validate_every: int = option(500, "Steps between two looks at the validation geometries.", least=1)
    seed: int = option(0, "Seed of all random numbers.", least=0)

    def resolved(self, datasets: Sequence[Dataset]) -> "SO3kratesOptions":
        """With targets and length chosen. ValueError, in a sentence, for options that these datasets do not allow."""
        check(self)
        if self.budget is not None and self.steps is not None:
            raise ValueError("expected a budget or steps, found both; leave one out")
        if self.budget == 0:
            raise ValueError("expected a budget above 0, found 0; give a wall time such as 15min")
        there = [name for name in TARGETS if any(_any(getattr(data, name)) for data in datasets)]
        targets = tuple(there) if self.targets is None else self.targets
        if isinstance(targets, str) or not targets or not set(targets) <= set(there):
            raise ValueError(f"expected targets among {', '.join(there) or 'none'}, which the data have, found {targets!r}")
        if len(set(targets)) < len(targets):
            raise ValueError(f"expected each target once, found {', '.join(targets)}")
        budget = 3600.0 if self.budget is None and self.steps is None else self.budget
        return replace(self, targets=tuple(name for name in TARGETS if name in targets), budget=budget)

    @property
    def learned(self) -> tuple[str, ...]:
        """The targets; none before they are `resolved`."""
        return self.targets or ()


def _any(values: np.ndarray | None) -> bool:
    return values is not None and bool(np.isfinite(values).any())
