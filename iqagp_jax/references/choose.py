"""The reference that a model is held to: the method, charge and spin that it learned, so that absolute energies compare."""

from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

from iqagp_jax.data.level import Level
from iqagp_jax.potential import potential_of, system_of
from iqagp_jax.references.xtb import XTB


def reference_of(
    name: str,
    model: Any,
    folder: str | Path,
    charge: int | None = None,
    spin: int | None = None,
    pool: Executor | None = None,
    workers: int = 1,
) -> Any:
    """The reference ``xtb`` or ``dft`` for a model, or None for ``none``.

    Parameters
    ----------
    folder: of the labels by ``dft``, each set of geometries in one of its own.
    charge, spin: in e, and the number of unpaired electrons; by default those that the model learned. A model that tells
        none, as those of before 2026-12, takes what is given.
    pool, workers: executor of ``concurrent.futures`` and the number of tasks that it is given at a time.

    Raises ValueError, in a sentence, where the model learned something else or does not tell what, for another charge or spin
    than it learned, and where the atoms cannot have so many unpaired electrons.
    """
    if name == "none":
        return None
    potential = potential_of(model)
    if potential.made_by is None:
        raise ValueError("expected a model that tells what it was trained on, found one that does not; take --reference none")
    level, species = _of_state(potential.made_by.level, charge, spin), system_of(potential).species
    if name == "xtb":
        reference = XTB(species, level.charge, level.spin, pool)
        if not level.same_energies(reference.level):
            raise ValueError(f"expected a model trained on GFN2-xTB, found one of {level}; take --reference dft or none")
        return reference
    from iqagp_jax.labels.plan import LabelPlan
    from iqagp_jax.references.dft import DFT

    plan = LabelPlan(level.method, level.basis, level.charge, level.spin, partitions=())
    if plan.is_coupled_cluster:
        raise ValueError(
            f"{level.method} gives energies alone, and models are held to forces too; take --reference none, and"
            " `iqagp validate` with a dataset of its energies"
        )
    if not plan.level_of(species).same_energies(level):
        raise ValueError(f"expected a model trained on labels of `iqagp label`, found one of {level}; take another --reference")
    return DFT(plan, species, folder, pool, workers)


def _of_state(level: Level, charge: int | None, spin: int | None) -> Level:
    """The level with the charge and spin given, if any. ValueError where it tells others."""
    wanted = replace(level, charge=level.charge if charge is None else charge, spin=level.spin if spin is None else spin)
    if (level.charge or level.spin) and (wanted.charge, wanted.spin) != (level.charge, level.spin):
        raise ValueError(
            f"expected charge {level.charge} and {level.spin} unpaired electrons, as the model learned, found"
            f" {wanted.charge} and {wanted.spin}; leave --charge and --spin out"
        )
    return wanted
