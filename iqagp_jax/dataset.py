"""Datasets: geometries of one molecule with total energies, forces and atomic energies, kept as extxyz files.

A file holds one frame a geometry with ``REF_energy`` (eV) and ``REF_forces`` (eV/angstrom) as MACE and others read
them, the atomic energies as the per-atom array ``REF_atomic_energies`` (eV), and where each frame came from in its
info. Free atoms at the same level are single-atom frames with ``config_type=IsolatedAtom``.
"""

from dataclasses import dataclass, field, replace
from importlib.resources import files
from io import StringIO
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write
from ase.io.extxyz import XYZError
from ase.io.formats import open_with_compression

from iqagp_jax.harmonics import rotated

DECIMALS = 8
"""Decimals of every array in an extxyz file; geometries are rounded to them before they are labelled."""

ORIGIN = ("source", "temperature", "run", "time", "split")
"""Where a frame came from: sampler, its temperature (K), number of the run, time in it (fs), and the stored split."""

LEVEL = ("level_of_theory", "partition", "programs", "sampler")
"""What all frames of a dataset have in common."""


@dataclass(frozen=True)
class Dataset:
    """n labelled geometries of one molecule of N atoms, in eV and angstrom, atoms in the input's order."""

    species: tuple[str, ...]
    positions: np.ndarray
    """(n, N, 3) angstrom"""
    energy: np.ndarray
    """(n,) eV, absolute"""
    forces: np.ndarray | None = None
    """(n, N, 3) eV/angstrom"""
    atomic_energies: np.ndarray | None = None
    """(n, N) eV, absolute; they sum to ``energy``"""
    origin: dict[str, np.ndarray] = field(default_factory=dict)
    """arrays (n,) named as in `ORIGIN`"""
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    """whatever else the file holds for each frame, (n,) or (n, N): raw atomic energies, charges, remainders;
    (n, N, 25) multipole moments in e bohr^l along the axes of the positions"""
    level: dict[str, str] = field(default_factory=dict)
    """level of theory, partition, programs"""
    free_atoms: dict[str, float] = field(default_factory=dict)
    """species -> energy of the free atom in eV at the same level"""

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
        return replace(self, atomic_energies=balanced(raw, self.energy), level={**self.level, "partition": name})

    def mirrored(self):
        """The mirror images: the same energies, reflected geometries and forces. ALF features see a difference."""
        reflection = np.array([1.0, 1.0, -1.0])
        forces = None if self.forces is None else self.forces * reflection
        extra = {
            key: rotated(values, np.diag(reflection)) if key.endswith("_multipoles") else values
            for key, values in self.extra.items()
        }
        return replace(self, positions=self.positions * reflection, forces=forces, extra=extra)

    @property
    def splits(self):
        """Names of the stored splits, in order of appearance."""
        return list(dict.fromkeys(self.origin.get("split", [])))

    @property
    def thermal(self):
        """Mask (n,) of frames of dynamics, plain or biased, not distorted by hand; all where the file does not say."""
        return np.isin(self.origin.get("source", np.full(len(self), "thermal")), ["thermal", "metadynamics"])


def balanced(raw, energy):
    """Raw atomic energies (n, N) plus an equal share of the remainder, so that they sum to ``energy`` (n,)."""
    return raw + ((energy - raw.sum(1)) / raw.shape[1])[:, None]


def embedded_datasets():
    """Names of the datasets that come with the package."""
    return sorted(f.name.removesuffix(".extxyz.xz") for f in files("iqagp_jax.data").iterdir() if f.name.endswith(".extxyz.xz"))


def load_dataset(name_or_path):
    """Read an embedded dataset by name (see `embedded_datasets`) or an extxyz file, also compressed, by path.

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
    except (XYZError, ValueError, KeyError, IndexError, EOFError, StopIteration, OSError) as error:
        raise ValueError(f"{path} is not a whole extxyz file ({error}); was it cut off?") from error
    return dataset_from_frames(frames, str(path))


def dataset_from_frames(frames, name="dataset"):
    """A `Dataset` from ASE atoms as an extxyz file gives them; ``name`` is for the error sentences."""
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
        if "REF_energy" not in atoms.info:
            keys = ", ".join(sorted(atoms.info)) or "none"
            raise ValueError(f"{name}: frame {k} has no REF_energy (its keys: {keys}); rename the energy in eV to it")

    def column(store, key):
        """Stack a per-frame entry; None where no frame has it, an error where only some do."""
        have = [key in getattr(a, store) for a in frames]
        if not any(have):
            return None
        if not all(have):
            raise ValueError(f"{name}: {key} is missing in frame {have.index(False)} but not in all")
        return np.array([getattr(a, store)[key] for a in frames])

    def others(store, known):
        return {k: column(store, k) for k in sorted(set(getattr(frames[0], store)) - set(known))}

    dataset = Dataset(
        species=species,
        positions=np.array([a.get_positions() for a in frames]),
        energy=column("info", "REF_energy").astype(float),
        forces=column("arrays", "REF_forces"),
        atomic_energies=column("arrays", "REF_atomic_energies"),
        origin={k: v for k in ORIGIN if (v := column("info", k)) is not None},
        extra={
            **others("info", ("REF_energy", *ORIGIN, *LEVEL)),
            **others("arrays", ("numbers", "positions", "REF_forces", "REF_atomic_energies")),
        },
        level={k: str(frames[0].info[k]) for k in LEVEL if k in frames[0].info},
        free_atoms={a.get_chemical_symbols()[0]: float(a.info["REF_energy"]) for a in free},
    )
    for key in ("positions", "energy", "forces", "atomic_energies"):
        array = getattr(dataset, key)
        if array is not None and not np.isfinite(array).all():
            bad = int(np.argwhere(~np.isfinite(array))[0, 0])
            raise ValueError(f"{name}: expected finite {key}, found a NaN or infinity in frame {bad}; remove that frame")
    if dataset.atomic_energies is not None:
        gap = np.abs(dataset.atomic_energies.sum(1) - dataset.energy)
        if gap.max() > 1e-6:
            raise ValueError(
                f"{name}: expected atomic energies that sum to REF_energy, found a difference of {gap.max():.3g} eV"
                f" in frame {gap.argmax()}; are they raw or in other units?"
            )
    return dataset


def frames_from_dataset(dataset):
    """ASE atoms of a dataset, free atoms first, ready for an extxyz file."""
    frames = [
        Atoms([s], info={"config_type": "IsolatedAtom", "REF_energy": e, **dataset.level})
        for s, e in sorted(dataset.free_atoms.items())
    ]
    for k, positions in enumerate(dataset.positions):
        atoms = Atoms(dataset.species, positions=positions)
        atoms.info = {
            "REF_energy": float(dataset.energy[k]),
            **{key: values[k].item() for key, values in dataset.origin.items()},
            **dataset.level,
        }
        for key, values in {
            "REF_forces": dataset.forces,
            "REF_atomic_energies": dataset.atomic_energies,
            **dataset.extra,
        }.items():
            if values is not None and values.ndim > 1:
                atoms.arrays[key] = values[k]
            elif values is not None:
                atoms.info[key] = values[k].item()
        frames.append(atoms)
    return frames


def save_dataset(dataset, path):
    """Write a dataset as extxyz (compressed if the name ends in .gz or .xz), whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".partial-{path.name}")
    write(temporary, frames_from_dataset(dataset), format="extxyz")
    temporary.replace(path)
