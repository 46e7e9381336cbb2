"""Datasets as extxyz files.

A file holds one frame a geometry with ``REF_energy`` (eV) and ``REF_forces`` (eV/angstrom) as MACE and others read
them, the atomic energies as the per-atom array ``REF_atomic_energies`` (eV), and where each frame came from in its
info, with ``charge`` (e) and ``spin`` (number of unpaired electrons) where they are not zero. Free atoms at the same level
are single-atom frames with ``config_type=IsolatedAtom``. Files of others are read too: where there is no ``REF_energy``,
ASE's ``energy`` and ``forces`` are taken, and other names can be given. Any frame may lack any of the three labels; what a
frame lacks is NaN in the arrays. Molecules in a periodic cell are put together across its walls.
"""

import gzip
import lzma
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from iqagp_jax.data.dataset import DECIMALS, ORIGIN, Dataset
from iqagp_jax.data.level import Level
from iqagp_jax.data.state import STATE, state_of_frames
from iqagp_jax.machine.files import BROKEN_FILE, write_atomically
from iqagp_jax.system.cells import unwrapped
from iqagp_jax.system.geometry import bond_graph

LABELS = {"energy": "REF_energy", "forces": "REF_forces", "atomic_energies": "REF_atomic_energies"}
"""Names of the labels in our files."""

SAME_LEVEL = ("level_of_theory", "partition")
"""What must be one in all frames of a file, beside charge and spin."""

LEVEL = (*SAME_LEVEL, *STATE, "programs", "sampler")
"""Entries of a frame's info that tell of all frames."""

SUM_ERROR = 1e-6
"""Atomic energies sum to the energy within this (eV)."""


def embedded_datasets() -> list[str]:
    """Names of the datasets that come with the package."""
    return sorted(f.name.removesuffix(".extxyz.xz") for f in files("iqagp_jax.data").iterdir() if f.name.endswith(".extxyz.xz"))


def load_dataset(name_or_path: str | Path, energy_key: str | None = None, forces_key: str | None = None) -> Dataset:
    """Read an embedded dataset by name (see `embedded_datasets`) or an extxyz file, also compressed, by path.

    ``energy_key`` and ``forces_key`` are the names of energy (eV) and forces (eV/angstrom) in the file where they are
    neither REF_energy and REF_forces nor ASE's energy and forces. Charge and spin are read as in `state`.

    Raises ValueError, in a sentence, for truncated files, mixed molecules, charges or spins, missing energies, non-finite
    numbers, and a periodic cell that holds a crystal or several molecules; FileNotFoundError where there is neither such a
    name nor such a file. Warns of a molecule that lay across the walls of its cell, and was put together.
    """
    path = Path(name_or_path)
    if str(name_or_path) in embedded_datasets():
        path = Path(str(files("iqagp_jax.data"))) / f"{name_or_path}.extxyz.xz"
    elif not path.is_file():
        raise FileNotFoundError(
            f"expected an embedded dataset ({', '.join(embedded_datasets())}) or an extxyz file, found {str(name_or_path)!r}"
        )
    # ASE's readers and writers take as long to import as JAX does.
    from ase.io import iread
    from ase.io.extxyz import XYZError
    from ase.io.formats import open_with_compression

    try:
        # Decompressed at once: ASE seeks from frame to frame, which a compressed file answers by starting over.
        with open_with_compression(str(path)) as file:
            frames = list(iread(StringIO(file.read()), format="extxyz"))
    except (XYZError, *BROKEN_FILE) as error:
        raise ValueError(f"{path} is not a whole extxyz file ({error}); was it cut off?") from error
    return dataset_from_frames(frames, str(path), energy_key, forces_key)


def save_dataset(dataset: Dataset, path: str | Path) -> None:
    """Write a dataset as extxyz (compressed if the name ends in .gz or .xz), whole or not at all."""
    from ase.io import write

    text = StringIO()
    write(text, frames_from_dataset(dataset), format="extxyz")
    compress: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".xz": lzma.compress}
    write_atomically(path, compress.get(Path(path).suffix, bytes)(text.getvalue().encode()))


def unlabelled(frames: Sequence[Atoms], name: str = "geometries") -> Dataset:
    """A `Dataset` of ASE atoms of which all but the geometry, its origin, charge, spin and sampler is left; energies are NaN.

    Raises ValueError, in a sentence, as `load_dataset` does.
    """
    kept = (*ORIGIN, *STATE, "sampler")
    infos = [{key: atoms.info[key] for key in kept if key in atoms.info} for atoms in frames]
    # An energy is what every frame of a dataset must have; none is taken for one.
    bare = [
        Atoms(
            atoms.symbols, np.round(atoms.positions, DECIMALS), cell=atoms.cell, pbc=atoms.pbc, info={"REF_energy": 0.0, **info}
        )
        for atoms, info in zip(frames, infos, strict=True)
    ]
    return replace(dataset_from_frames(bare, name), energy=np.full(len(bare), np.nan))


def dataset_from_frames(
    frames: Sequence[Atoms], name: str = "dataset", energy_key: str | None = None, forces_key: str | None = None
) -> Dataset:
    """A `Dataset` from ASE atoms as an extxyz file gives them; ``name`` is for the error sentences, keys as `load_dataset`."""
    free = [atoms for atoms in frames if _is_free_atom(atoms)]
    frames = [atoms for atoms in frames if not _is_free_atom(atoms)]
    species = _species(frames, name)
    positions = whole_positions(frames, name)
    labels = _label_names(frames, name, energy_key, forces_key)
    shapes: dict[str, tuple[int, ...]] = {"energy": (), "forces": (len(species), 3), "atomic_energies": (len(species),)}
    read: dict[str, Any] = {target: _label(frames, target, labels[target], shape, name) for target, shape in shapes.items()}
    _check_sum(read["energy"], read["atomic_energies"], name)
    labelled = {*labels.values(), *LABELS.values()}
    return Dataset(
        species=species,
        positions=positions,
        **read,
        origin={key: _column(frames, "info", key, name) for key in ORIGIN if any(key in atoms.info for atoms in frames)},
        extra={
            **_others(frames, "info", {*ORIGIN, *LEVEL, *labelled}, name),
            **_others(frames, "arrays", {"numbers", "positions", *labelled}, name),
        },
        level=_level(frames, name),
        free_atoms={atom.symbols[0]: _free_energy(atom, labels["energy"], name) for atom in free},
    )


def frames_from_dataset(dataset: Dataset) -> list[Atoms]:
    """ASE atoms of a dataset, free atoms first, ready for an extxyz file."""
    # How many unpaired electrons the free atoms had, the dataset does not know.
    level = dataset.level.of_free_atom(0).info
    free = [
        Atoms([symbol], info={"config_type": "IsolatedAtom", "REF_energy": energy, **level})
        for symbol, energy in sorted(dataset.free_atoms.items())
    ]
    return free + [_frame(dataset, k) for k in range(len(dataset))]


def _frame(dataset: Dataset, k: int) -> Atoms:
    """ASE atoms of one frame: what is one number or word in the info, the rest as arrays, labels that it lacks left out."""
    atoms = Atoms(dataset.species, positions=dataset.positions[k])
    atoms.info = {**{key: values[k].item() for key, values in dataset.origin.items()}, **dataset.level.info}
    labels = {key: getattr(dataset, target) for target, key in LABELS.items()}
    for key, values in {**labels, **dataset.extra}.items():
        if values is None or (key in labels and np.isnan(values[k]).any()):
            continue
        if values.ndim > 1:
            atoms.arrays[key] = values[k]
        else:
            atoms.info[key] = values[k].item()
    return atoms


def _is_free_atom(atoms: Atoms) -> bool:
    return atoms.info.get("config_type") == "IsolatedAtom"


def _species(frames: Sequence[Atoms], name: str) -> tuple[str, ...]:
    """The chemical symbols that all frames have."""
    if not frames:
        raise ValueError(f"{name}: expected at least one geometry of the molecule, found none")
    species = tuple(frames[0].symbols)
    for k, atoms in enumerate(frames):
        found = tuple(atoms.symbols)
        if found != species:
            raise ValueError(
                f"{name}: expected the atoms {' '.join(species)} in every frame, found {' '.join(found)} in frame {k}"
            )
    return species


def whole_positions(frames: Sequence[Atoms], name: str) -> np.ndarray:
    """Positions (n, N, 3) in angstrom, of whole molecules where a frame has a periodic cell."""
    positions = np.array([atoms.get_positions() for atoms in frames])
    if bad := np.flatnonzero(~np.isfinite(positions).all((1, 2))).tolist():
        raise ValueError(f"{name}: expected finite positions, found a NaN or infinity in frame {bad[0]}; remove that frame")
    periodic = [k for k, atoms in enumerate(frames) if (atoms.pbc & atoms.cell.any(1)).any()]
    if not periodic:
        return positions
    whole = positions.copy()
    whole[periodic] = _whole_molecules([frames[k] for k in periodic], periodic, name)
    if moved := int((whole != positions).any((1, 2)).sum()):
        warnings.warn(
            f"{name}: in {moved} of {len(frames)} frames the molecule lay across the walls of its cell; it was put together,"
            " and the cell is left out",
            stacklevel=4,
        )
    return whole


def _whole_molecules(frames: Sequence[Atoms], numbers: Sequence[int], name: str) -> np.ndarray:
    """Positions (n, N, 3) of the one molecule that each periodic frame holds; ``numbers`` (n,) are the frames'."""

    def put_together(k: int, bonds: Any = ()) -> tuple[np.ndarray, np.ndarray]:
        atoms = frames[k]
        try:
            return unwrapped(atoms.get_chemical_symbols(), atoms.positions, atoms.cell.array, atoms.pbc, bonds)
        except ValueError as error:
            raise ValueError(f"{name}, frame {numbers[k]}: {error}") from error

    found = [put_together(k) for k in range(len(frames))]
    single = [positions for positions, molecules in found if not molecules.any()]
    if not single:
        raise ValueError(
            f"{name}: expected one molecule in a periodic cell, found {found[0][1].max() + 1} in frame {numbers[0]}, whose"
            ' interaction with their images would be learned as if there were none; set pbc to "F F F" if the labels are of'
            " these atoms alone"
        )
    # Heat stretches bonds beyond what counts as one: frames that seem to be in pieces have the bonds of one that is not.
    bonds = np.argwhere(np.triu(bond_graph(frames[0].get_chemical_symbols(), single[0])))
    return np.array([found[k][0] if not found[k][1].any() else put_together(k, bonds)[0] for k in range(len(frames))])


def _label_names(frames: Sequence[Atoms], name: str, energy_key: str | None, forces_key: str | None) -> dict[str, str]:
    """Under which name a file has each label: those given, ours where there are any, ASE's otherwise."""
    known = {key for atoms in frames for key in _entries(atoms)}
    ours = {"REF_energy", "REF_forces"} & known
    labels = {
        "energy": energy_key or ("REF_energy" if ours else "energy"),
        "forces": forces_key or ("REF_forces" if ours else "forces"),
        "atomic_energies": "REF_atomic_energies",
    }
    for wanted, target in ((True, "energy"), (forces_key, "forces")):
        if wanted and labels[target] not in known:
            keys = ", ".join(sorted(set(_entries(frames[0])) - {"numbers", "positions"})) or "none"
            raise ValueError(
                f"{name}: no frame has {labels[target]} (the first one's keys: {keys}); give the name of the {target} with"
                f" --{target}-key, in eV{'/angstrom' * (target == 'forces')}"
            )
    return labels


def _entries(atoms: Atoms) -> Mapping[str, Any]:
    """All that ASE has read of a frame, by name."""
    return {**(atoms.calc.results if atoms.calc else {}), **atoms.info, **atoms.arrays}


def _label(frames: Sequence[Atoms], target: str, key: str, shape: tuple[int, ...], name: str) -> np.ndarray | None:
    """A label (n, *shape), NaN where a frame has none; None where no frame has it."""
    found = {k: entries[key] for k, entries in enumerate(map(_entries, frames)) if key in entries}
    if not found:
        return None
    values = np.full((len(frames), *shape), np.nan)
    values[list(found)] = list(found.values())
    finite = np.isfinite(values).reshape(len(frames), -1).all(1)
    if bad := [k for k in found if not finite[k]]:
        raise ValueError(f"{name}: expected finite {target}, found a NaN or infinity in frame {bad[0]}; remove that frame")
    return values


def _check_sum(energy: np.ndarray | None, atomic_energies: np.ndarray | None, name: str) -> None:
    """ValueError where atomic energies do not sum to the energy."""
    if energy is None or atomic_energies is None:
        return
    gap = np.nan_to_num(np.abs(atomic_energies.sum(1) - energy))
    if gap.max() > SUM_ERROR:
        raise ValueError(
            f"{name}: expected atomic energies that sum to REF_energy, found a difference of {gap.max():.3g} eV"
            f" in frame {gap.argmax()}; are they raw or in other units?"
        )


def _column(frames: Sequence[Atoms], store: str, key: str, name: str) -> np.ndarray:
    """An entry of all frames' info or arrays, (n, ...); ValueError where one lacks it."""
    have = [key in getattr(atoms, store) for atoms in frames]
    if not all(have):
        raise ValueError(f"{name}: {key} is missing in frame {have.index(False)} but not in all")
    return np.array([getattr(atoms, store)[key] for atoms in frames])


def _others(frames: Sequence[Atoms], store: str, known: Container[str], name: str) -> dict[str, np.ndarray]:
    """What else the frames hold, where all of them do and there is a place for it; a warning tells what is left out."""
    stores = [getattr(atoms, store) for atoms in frames]
    keys = sorted({key for entries in stores for key in entries if key not in known})
    left = {key: "a frame lacks it" for key in keys if not all(key in entries for entries in stores)}
    if store == "info":
        left |= {key: "no number or word" for key in set(keys) - set(left) if np.ndim(stores[0][key])}
    if left:
        told = ", ".join(f"{key} ({why})" for key, why in sorted(left.items()))
        warnings.warn(f"{name}: left out of the dataset: {told}", stacklevel=4)
    return {key: _column(frames, store, key, name) for key in keys if key not in left}


def _level(frames: Sequence[Atoms], name: str) -> Level:
    """The level of theory, charge, spin and programs of all frames."""
    for key in SAME_LEVEL:
        told = [atoms.info.get(key) for atoms in frames]
        if other := next((k for k, value in enumerate(told) if value != told[0]), None):
            raise ValueError(
                f"{name}: expected one {key} in all frames, found {told[0]!r} in frame 0 and {told[other]!r} in frame {other};"
                " keep them in files of their own"
            )
    charge, spin = state_of_frames(frames, name)
    return Level.of_info({**frames[0].info, "charge": charge, "spin": spin})


def _free_energy(atom: Atoms, key: str, name: str) -> float:
    """Energy in eV of a free atom, which is neutral."""
    known = _entries(atom)
    if key not in known:
        raise ValueError(f"{name}: expected {key} of the free atom {atom.symbols}, found none; add it, or remove the frame")
    if charge := state_of_frames([atom], f"{name}, free atom {atom.symbols}")[0]:
        raise ValueError(f"{name}: expected neutral free atoms, found charge {charge} of {atom.symbols}; remove the frame")
    return float(known[key])
