"""Datasets: geometries of one molecule with total energies, forces and atomic energies; `extxyz` reads and writes them."""

from dataclasses import dataclass, field, replace

import numpy as np

from iqagp_jax.data.level import Level
from iqagp_jax.system.elements import check_electrons
from iqagp_jax.system.harmonics import rotated

DECIMALS = 8
"""Decimals of every array in an extxyz file; geometries are rounded to them before they are labelled."""

SAME_ENERGY = 1e-5
"""Two labels of a geometry at the same level differ by less than this (eV): converged a thousand times better."""

ORIGIN = ("source", "temperature", "run", "time", "split")
"""Where a frame came from: sampler, its temperature (K), number of the run, time in it (fs), and the stored split."""


@dataclass(frozen=True)
class Dataset:
    """n labelled geometries of one molecule of N atoms, in eV and angstrom, atoms in the input's order."""

    species: tuple[str, ...]
    positions: np.ndarray
    """(n, N, 3) angstrom"""
    energy: np.ndarray
    """(n,) eV, absolute; like forces and atomic energies NaN where a geometry has none"""
    forces: np.ndarray | None = None
    """(n, N, 3) eV/angstrom"""
    atomic_energies: np.ndarray | None = None
    """(n, N) eV, absolute; they sum to ``energy``"""
    origin: dict[str, np.ndarray] = field(default_factory=dict)
    """arrays (n,) named as in `ORIGIN`"""
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    """whatever else the file holds for each frame, (n,) or (n, N): raw atomic energies, charges, remainders;
    (n, N, 25) multipole moments in e bohr^l along the axes of the positions"""
    level: Level = Level()
    """method, basis, charge, unpaired electrons, partition, programs; entries of `Level.info` are made one"""
    free_atoms: dict[str, float] = field(default_factory=dict)
    """species -> energy of the free atom in eV at the same level"""

    def __post_init__(self):
        if not isinstance(self.level, Level):
            object.__setattr__(self, "level", Level.of_info(dict(self.level)))
        if self.level.charge or self.level.spin:
            check_electrons(self.species, self.level.charge, self.level.spin)

    def __len__(self):
        return len(self.positions)

    def __getitem__(self, index):
        """The frames that ``index`` (slice, mask or array of numbers) selects, as a dataset."""
        index = np.arange(len(self))[index]

        def take(array):
            return None if array is None else array[index]

        return replace(
            self,
            positions=take(self.positions),
            energy=take(self.energy),
            forces=take(self.forces),
            atomic_energies=take(self.atomic_energies),
            origin={k: take(v) for k, v in self.origin.items()},
            extra={k: take(v) for k, v in self.extra.items()},
        )

    def split(self, name):
        """The frames of a stored split, in stored order."""
        found = self.origin.get("split", np.array([]))
        if name not in found:
            known = ", ".join(sorted(set(found))) or "none"
            raise ValueError(f"expected a split of the dataset ({known}), found {name!r}")
        return self[found == name]

    def with_partition(self, name):
        """The same geometries with another partition's atomic energies, where the file holds its raw ones.

        Atomic energies are the raw ones plus an equal share of what these lack of the total energy.
        """
        raw = self.extra.get(f"{name}_energies")
        if raw is None:
            known = ", ".join(k.removesuffix("_energies") for k in self.extra if k.endswith("_energies")) or "none"
            raise ValueError(f"expected a partition that the dataset holds ({known}), found {name!r}")
        return replace(self, atomic_energies=balanced(raw, self.energy), level=replace(self.level, partition=name))

    def mirrored(self):
        """The mirror images: the same energies, reflected geometries and forces. ALF features see a difference."""
        reflection = np.array([1.0, 1.0, -1.0])
        forces = None if self.forces is None else self.forces * reflection
        extra = {
            key: rotated(values, np.diag(reflection)) if key.endswith("_multipoles") else values
            for key, values in self.extra.items()
        }
        return replace(self, positions=self.positions * reflection, forces=forces, extra=extra)

    def permuted(self, permutation):
        """The same geometries with equal atoms p (N,) in another order, R[p], and what belongs to the atoms with them."""
        if tuple(np.array(self.species)[permutation]) != self.species:
            raise ValueError("expected a permutation of equal atoms, found one of unequal; leave the species in their order")

        def take(array):
            return None if array is None else array[:, permutation]

        n_atoms = len(self.species)
        return replace(
            self,
            positions=take(self.positions),
            forces=take(self.forces),
            atomic_energies=take(self.atomic_energies),
            extra={k: take(v) if v.ndim > 1 and v.shape[1] == n_atoms else v for k, v in self.extra.items()},
        )

    @property
    def splits(self):
        """Names of the stored splits, in order of appearance."""
        return list(dict.fromkeys(self.origin.get("split", [])))

    @property
    def lowest(self):
        """Number of the frame of lowest energy, the sum of its atomic energies where it tells no other; 0 without any."""
        total = self.energy
        if self.atomic_energies is not None:
            total = np.where(np.isfinite(total), total, self.atomic_energies.sum(1))
        return int(np.nanargmin(total)) if np.isfinite(total).any() else 0

    @property
    def thermal(self):
        """Mask (n,) of frames of dynamics, plain or biased, not distorted by hand; all where the file does not say."""
        return np.isin(self.origin.get("source", np.full(len(self), "thermal")), ["thermal", "metadynamics"])


def concatenate(datasets):
    """One dataset of several of the same molecule and level, the frames of the first first.

    Labels that some lack are NaN there; other columns are left out where some lack them. Raises ValueError for other atoms
    or another level of theory.
    """
    first = datasets[0]
    for other in datasets[1:]:
        if first.species != other.species or not first.level.same_energies(other.level):
            mine, theirs = (f"{' '.join(d.species)} by {str(d.level)!r}" for d in (first, other))
            raise ValueError(f"expected datasets of the same atoms and level of theory, found {mine} and {theirs}")

    def joined(name):
        parts = [getattr(d, name) for d in datasets]
        if isinstance(parts[0], dict):
            return {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if all(key in p for p in parts)}
        known = [part for part in parts if part is not None]
        if not known:
            return None
        missing = (np.full((len(d), *known[0].shape[1:]), np.nan) for d in datasets)
        return np.concatenate([nan if part is None else part for part, nan in zip(parts, missing, strict=True)])

    names = ("positions", "energy", "forces", "atomic_energies", "origin", "extra")
    return replace(first, **{name: joined(name) for name in names})


def beside(dataset, labels):
    """The geometries of ``dataset`` that ``labels``, one of another partition, has too, with the atoms of both.

    Energies and forces are those of ``dataset``, ``atomic_energies`` those of the partition of ``labels``.

    Raises ValueError where the two have no geometry or a partition in common, are of other levels of theory or differ in an
    energy.
    """
    if twice := sorted(dataset.extra.keys() & labels.extra.keys()):
        raise ValueError(f"expected a partition that the dataset lacks, found {', '.join(twice)} in both; give another dataset")
    # Adding 0 makes -0 the same number as 0 also in bytes.
    numbers = {positions.tobytes(): k for k, positions in enumerate(labels.positions + 0.0)}
    found = [numbers.get(positions.tobytes(), -1) for positions in dataset.positions + 0.0]
    known, there = dataset[np.array(found) >= 0], [k for k in found if k >= 0]
    if dataset.species != labels.species or not there:
        raise ValueError(
            f"expected geometries that both have, found none among {len(dataset)} of {' '.join(dataset.species)} and"
            f" {len(labels)} of {' '.join(labels.species)}; give the dataset whose geometries were labelled again"
        )
    difference = np.abs(known.energy - labels.energy[there])
    if not dataset.level.same_energies(labels.level) or not (difference < SAME_ENERGY).all():
        raise ValueError(
            f"expected labels of the same geometries at the same level, found {str(dataset.level)!r} and {str(labels.level)!r},"
            f" energies that differ by up to {difference.max():.2g} eV; label them with the dataset's level of theory"
        )
    extra = {**known.extra, **{key: values[there] for key, values in labels.extra.items()}}
    return replace(known, extra=extra).with_partition(labels.level.partition)


def balanced(raw, energy):
    """Raw atomic energies (n, N) plus an equal share of the remainder, so that they sum to ``energy`` (n,)."""
    return raw + ((energy - raw.sum(1)) / raw.shape[1])[:, None]
