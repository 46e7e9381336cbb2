"""Datasets: geometries of one molecule with total energies, forces and atomic energies, kept as extxyz files.

A file holds one frame a geometry with ``REF_energy`` (eV) and ``REF_forces`` (eV/angstrom) as MACE and others read
them, the atomic energies as the per-atom array ``REF_atomic_energies`` (eV), and where each frame came from in its
info. Free atoms at the same level are single-atom frames with ``config_type=IsolatedAtom``. Files of others are read too:
where there is no ``REF_energy``, ASE's ``energy`` and ``forces`` are taken, and other names can be given. Any frame may lack
any of the three; what a frame lacks is NaN in the arrays.
"""

import gzip
import lzma
import warnings
from dataclasses import dataclass, field, replace
from importlib.resources import files
from io import StringIO
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write
from ase.io.extxyz import XYZError
from ase.io.formats import open_with_compression

from iqagp_jax.data.level import Level
from iqagp_jax.machine.files import BROKEN_FILE, write_atomically
from iqagp_jax.system.harmonics import rotated

DECIMALS = 8
"""Decimals of every array in an extxyz file; geometries are rounded to them before they are labelled."""

SAME_ENERGY = 1e-5
"""Two labels of a geometry at the same level differ by less than this (eV): converged a thousand times better."""

ORIGIN = ("source", "temperature", "run", "time", "split")
"""Where a frame came from: sampler, its temperature (K), number of the run, time in it (fs), and the stored split."""

LEVEL = ("level_of_theory", "charge", "spin", "partition", "programs", "sampler")
"""What all frames of a dataset have in common."""


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
            mine, theirs = (f"{' '.join(d.species)} by {d.level}" for d in (first, other))
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
            f"expected labels of the same geometries at the same level, found {str(dataset.level)!r} and {str(labels.level)!r}, energies that"
            f" differ by up to {difference.max():.2g} eV; label them with the dataset's level of theory"
        )
    extra = {**known.extra, **{key: values[there] for key, values in labels.extra.items()}}
    return replace(known, extra=extra).with_partition(labels.level.partition)


def balanced(raw, energy):
    """Raw atomic energies (n, N) plus an equal share of the remainder, so that they sum to ``energy`` (n,)."""
    return raw + ((energy - raw.sum(1)) / raw.shape[1])[:, None]


def embedded_datasets():
    """Names of the datasets that come with the package."""
    return sorted(f.name.removesuffix(".extxyz.xz") for f in files("iqagp_jax.data").iterdir() if f.name.endswith(".extxyz.xz"))


def load_dataset(name_or_path, energy_key=None, forces_key=None):
    """Read an embedded dataset by name (see `embedded_datasets`) or an extxyz file, also compressed, by path.

    ``energy_key`` and ``forces_key`` are the names of energy (eV) and forces (eV/angstrom) in the file where they are
    neither REF_energy and REF_forces nor ASE's energy and forces.

    Raises ValueError, in a sentence, for truncated files, mixed molecules, missing energies and non-finite numbers;
    FileNotFoundError where there is neither such a name nor such a file.
    """
    path = Path(name_or_path)
    if str(name_or_path) in embedded_datasets():
        path = Path(str(files("iqagp_jax.data"))) / f"{name_or_path}.extxyz.xz"
    elif not path.is_file():
        raise FileNotFoundError(
            f"expected an embedded dataset ({', '.join(embedded_datasets())}) or an extxyz file, found {str(name_or_path)!r}"
        )
    try:
        # Decompressed at once: ASE seeks from frame to frame, which a compressed file answers by starting over.
        with open_with_compression(path) as file:
            frames = read(StringIO(file.read()), index=":", format="extxyz")
    except (XYZError, *BROKEN_FILE) as error:
        raise ValueError(f"{path} is not a whole extxyz file ({error}); was it cut off?") from error
    return dataset_from_frames(frames, str(path), energy_key, forces_key)


def unlabelled(frames, name="geometries"):
    """A `Dataset` of ASE atoms of which nothing but the geometry, its origin and the sampler is kept; energies are NaN."""
    kept = (*ORIGIN, "sampler")
    infos = [{key: atoms.info[key] for key in kept if key in atoms.info} for atoms in frames]
    # An energy is what every frame of a dataset must have; none is taken for one.
    bare = [
        Atoms(atoms.symbols, np.round(atoms.positions, DECIMALS), info={"REF_energy": 0.0, **info})
        for atoms, info in zip(frames, infos, strict=True)
    ]
    return replace(dataset_from_frames(bare, name), energy=np.full(len(bare), np.nan))


def dataset_from_frames(frames, name="dataset", energy_key=None, forces_key=None):
    """A `Dataset` from ASE atoms as an extxyz file gives them; ``name`` is for the error sentences, keys as `load_dataset`."""
    free = [a for a in frames if a.info.get("config_type") == "IsolatedAtom"]
    frames = [a for a in frames if a.info.get("config_type") != "IsolatedAtom"]
    if not frames:
        raise ValueError(f"{name}: expected at least one geometry of the molecule, found none")
    species = tuple(frames[0].get_chemical_symbols())
    for k, atoms in enumerate(frames):
        found = tuple(atoms.get_chemical_symbols())
        if found != species:
            raise ValueError(
                f"{name}: expected the atoms {' '.join(species)} in every frame, found {' '.join(found)} in frame {k}"
            )

    known = [{**(a.calc.results if a.calc else {}), **a.info, **a.arrays} for a in frames]
    ours = any("REF_energy" in entries or "REF_forces" in entries for entries in known)
    labels_of_ours = {"energy": "REF_energy", "forces": "REF_forces", "atomic_energies": "REF_atomic_energies"}
    labels = {
        "energy": energy_key or ("REF_energy" if ours else "energy"),
        "forces": forces_key or ("REF_forces" if ours else "forces"),
        "atomic_energies": "REF_atomic_energies",
    }
    for given, target in ((True, "energy"), (forces_key, "forces")):
        if given and not any(labels[target] in entries for entries in known):
            keys = ", ".join(sorted(set(known[0]) - {"numbers", "positions"})) or "none"
            raise ValueError(
                f"{name}: no frame has {labels[target]} (the first one's keys: {keys}); give the name of the {target} with"
                f" --{target}-key, in eV{'/angstrom' * (target == 'forces')}"
            )

    def label(target, shape):
        """Stack a label, (n, *shape), NaN where a frame has none; None where no frame has it."""
        have = np.array([labels[target] in entries for entries in known])
        if not have.any():
            return None
        values = np.full((len(frames), *shape), np.nan)
        values[have] = [entries[labels[target]] for entries in known if labels[target] in entries]
        finite = np.isfinite(values).reshape(len(frames), -1).all(1)
        if bad := np.flatnonzero(have & ~finite).tolist():
            raise ValueError(f"{name}: expected finite {target}, found a NaN or infinity in frame {bad[0]}; remove that frame")
        return values

    def column(store, key):
        """Stack a per-frame entry; None where no frame has it, an error where only some do."""
        have = [key in getattr(a, store) for a in frames]
        if not any(have):
            return None
        if not all(have):
            raise ValueError(f"{name}: {key} is missing in frame {have.index(False)} but not in all")
        return np.array([getattr(a, store)[key] for a in frames])

    def others(store, known):
        """What else the frames hold, where all of them do and there is a place for it; a warning tells what is left out."""
        labelled = {*labels.values(), *labels_of_ours.values()}
        keys = sorted({key for a in frames for key in getattr(a, store)} - {*known, *labelled})
        left = {key: "a frame lacks it" for key in keys if not all(key in getattr(a, store) for a in frames)}
        if store == "info":
            left |= {key: "no number or word" for key in set(keys) - set(left) if np.ndim(frames[0].info[key])}
        if left:
            told = ", ".join(f"{key} ({why})" for key, why in sorted(left.items()))
            warnings.warn(f"{name}: left out of the dataset: {told}", stacklevel=3)
        return {key: column(store, key) for key in keys if key not in left}

    for key in ("level_of_theory", "partition"):
        told = [a.info.get(key) for a in frames]
        if other := next((k for k, value in enumerate(told) if value != told[0]), None):
            raise ValueError(
                f"{name}: expected one {key} in all frames, found {told[0]!r} in frame 0 and {told[other]!r} in frame {other};"
                " keep them in files of their own"
            )
    dataset = Dataset(
        species=species,
        positions=np.array([a.get_positions() for a in frames]),
        energy=label("energy", ()),
        forces=label("forces", (len(species), 3)),
        atomic_energies=label("atomic_energies", (len(species),)),
        origin={k: v for k in ORIGIN if (v := column("info", k)) is not None},
        extra={
            **others("info", (*ORIGIN, *LEVEL)),
            **others("arrays", ("numbers", "positions")),
        },
        level=Level.of_info(frames[0].info),
        free_atoms={a.get_chemical_symbols()[0]: _free_energy(a, labels["energy"], name) for a in free},
    )
    if bad := np.flatnonzero(~np.isfinite(dataset.positions).all((1, 2))).tolist():
        raise ValueError(f"{name}: expected finite positions, found a NaN or infinity in frame {bad[0]}; remove that frame")
    if dataset.atomic_energies is not None:
        gap = np.nan_to_num(np.abs(dataset.atomic_energies.sum(1) - dataset.energy))
        if gap.max() > 1e-6:
            raise ValueError(
                f"{name}: expected atomic energies that sum to REF_energy, found a difference of {gap.max():.3g} eV"
                f" in frame {gap.argmax()}; are they raw or in other units?"
            )
    return dataset


def _free_energy(atom, key, name):
    known = {**(atom.calc.results if atom.calc else {}), **atom.info}
    if key not in known:
        raise ValueError(f"{name}: expected {key} of the free atom {atom.symbols}, found none; add it, or remove the frame")
    return float(known[key])


def frames_from_dataset(dataset):
    """ASE atoms of a dataset, free atoms first, ready for an extxyz file."""
    frames = [
        Atoms([s], info={"config_type": "IsolatedAtom", "REF_energy": e, **dataset.level.of_free_atom(0).info})
        for s, e in sorted(dataset.free_atoms.items())
    ]
    for k, positions in enumerate(dataset.positions):
        atoms = Atoms(dataset.species, positions=positions)
        atoms.info = {
            **{key: values[k].item() for key, values in dataset.origin.items()},
            **dataset.level.info,
        }
        for key, values in {
            "REF_energy": dataset.energy,
            "REF_forces": dataset.forces,
            "REF_atomic_energies": dataset.atomic_energies,
            **dataset.extra,
        }.items():
            if values is None or (key.startswith("REF_") and np.isnan(values[k]).any()):
                continue
            if values.ndim > 1:
                atoms.arrays[key] = values[k]
            else:
                atoms.info[key] = values[k].item()
        frames.append(atoms)
    return frames


def save_dataset(dataset, path):
    """Write a dataset as extxyz (compressed if the name ends in .gz or .xz), whole or not at all."""
    text = StringIO()
    write(text, frames_from_dataset(dataset), format="extxyz")
    compress = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(path).suffix, bytes)
    write_atomically(path, compress(text.getvalue().encode()))
