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
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from iqagp_jax.data.columns import LABELS, entries_of, label_names, labels_of, number_of, tell_unused
from iqagp_jax.data.dataset import DECIMALS, ORIGIN, Dataset
from iqagp_jax.data.foreign import check_text, text_of
from iqagp_jax.data.level import Level
from iqagp_jax.data.order import tell_exchanged, tell_odd
from iqagp_jax.data.scale import check_lengths
from iqagp_jax.data.state import STATE, state_of_frames
from iqagp_jax.machine.files import BROKEN_FILE, write_atomically
from iqagp_jax.machine.warn import warn
from iqagp_jax.system.cells import unwrapped
from iqagp_jax.system.elements import shortened
from iqagp_jax.system.geometry import FARTHEST, bond_graph

FREE_ATOM = ("isolatedatom", "isolatedatoms", "freeatom", "freeatoms", "singleatom", "isoatom", "atom", "e0")
"""How files mark free atoms by ``config_type``, blanks, capitals and dashes aside."""

PER_ATOM = ("energies", "charges", "magmoms")
"""Results that ASE keeps for each atom, beside forces."""

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
    neither REF_energy and REF_forces nor ASE's energy and forces; see `columns.label_names`. Charge and spin are read as in
    `state`.

    Raises ValueError, in a sentence, for other files (which says how to convert them), truncated files, mixed molecules,
    charges or spins, missing energies, labels that are no numbers, and a periodic cell that holds a crystal or several
    molecules; FileNotFoundError where there is neither such a name nor such a file. Warns of a molecule that lay across the
    walls of its cell, and was put together, of lengths in another unit (`scale`), of exchanged atoms (`order`), and of what is
    not learned.
    """
    path = Path(name_or_path)
    if str(name_or_path) in embedded_datasets():
        path = Path(str(files("iqagp_jax.data"))) / f"{name_or_path}.extxyz.xz"
    elif not path.is_file():
        raise FileNotFoundError(
            f"expected an embedded dataset ({', '.join(embedded_datasets())}) or an extxyz file, found {str(name_or_path)!r}"
        )
    return dataset_from_frames(_read(path), str(path), energy_key, forces_key)


def _read(path: Path) -> list[Atoms]:
    """The frames of an extxyz file."""
    # ASE's readers and writers take as long to import as JAX does.
    from ase.io import iread
    from ase.io.extxyz import XYZError

    text, frames = text_of(path), []
    check_text(text, path)
    try:
        for atoms in iread(StringIO(text), format="extxyz"):
            frames.append(atoms)
    except (XYZError, *BROKEN_FILE) as error:
        raise ValueError(
            f"{path} is not a whole extxyz file: frame {len(frames)} cannot be read ({error}); was it cut off, or does a"
            " line lack"
            " a number that Properties=... promises?"
        ) from error
    return frames


def save_dataset(dataset: Dataset, path: str | Path) -> None:
    """Write a dataset as extxyz (compressed if the name ends in .gz or .xz), whole or not at all."""
    write_frames(frames_from_dataset(dataset), path)


def write_frames(frames: Sequence[Atoms], path: str | Path) -> None:
    """Write ASE atoms as `save_dataset` writes a dataset."""
    from ase.io import write

    text = StringIO()
    write(text, frames, format="extxyz")
    compress: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".xz": lzma.compress}
    write_atomically(path, compress.get(Path(path).suffix, bytes)(text.getvalue().encode()))


def unlabelled(frames: Sequence[Atoms], name: str = "geometries") -> Dataset:
    """A `Dataset` of ASE atoms of which all but the geometry, its origin, charge, spin and sampler is left; energies are NaN.

    Raises ValueError, in a sentence, as `load_dataset` does.
    """
    kept = {*ORIGIN, *STATE, "sampler"}
    bare = [
        Atoms(
            atoms.symbols,
            np.round(atoms.positions, DECIMALS),
            cell=atoms.cell,
            pbc=atoms.pbc,
            info={key: value for key, value in atoms.info.items() if key.lower() in kept},
        )
        for atoms in split_off_free_atoms(frames, name)[1]
    ]
    return _geometries(bare, name)


def dataset_from_frames(
    frames: Sequence[Atoms], name: str = "dataset", energy_key: str | None = None, forces_key: str | None = None
) -> Dataset:
    """A `Dataset` from ASE atoms as an extxyz file gives them; ``name`` is for the error sentences, keys as `load_dataset`."""
    free, frames = split_off_free_atoms(frames, name)
    geometries = _geometries(frames, name)
    entries, n_atoms = [entries_of(atoms) for atoms in frames], len(geometries.species)
    labels = label_names(entries, name, energy_key, forces_key)
    shapes: dict[str, tuple[int, ...]] = {"energy": (), "forces": (n_atoms, 3), "atomic_energies": (n_atoms,)}
    read: dict[str, Any] = {target: labels_of(entries, target, labels[target], shape, name) for target, shape in shapes.items()}
    _check_sum(read["energy"], read["atomic_energies"], name)
    if read["energy"] is None:
        read["energy"] = np.full(len(frames), np.nan)
    return replace(
        geometries,
        **read,
        extra=_others(frames, labels, name),
        free_atoms=_free_energies(free, labels["energy"], name),
    )


def _geometries(frames: Sequence[Atoms], name: str) -> Dataset:
    """All of a `Dataset` but its labels."""
    species = _species(frames, name)
    positions, level = whole_positions(frames, name), _level(frames, name)
    check_lengths(species, positions)
    tell_exchanged(species, positions, name)
    tell_odd(species, positions, name)
    return Dataset(
        species=species,
        positions=positions,
        energy=np.full(len(frames), np.nan),
        origin={key: _column(frames, key, name) for key in ORIGIN if any(key in atoms.info for atoms in frames)},
        level=level,
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


def split_off_free_atoms(frames: Sequence[Atoms], name: str) -> tuple[list[Atoms], list[Atoms]]:
    """Free atoms, and all other frames; frames of one atom beside those of a molecule are free atoms, with a warning.

    Raises ValueError, in a sentence, for several atoms that are marked as one.
    """
    marked = [_is_marked_as_free_atom(atoms) for atoms in frames]
    if several := [k for k, atoms in enumerate(frames) if marked[k] and len(atoms) != 1]:
        k = several[0]
        raise ValueError(
            f"{name}, frame {k}: expected one atom of config_type={frames[k].info['config_type']}, found {frames[k].symbols};"
            " leave the config_type out where it is a molecule"
        )
    single = [len(atoms) == 1 for atoms in frames]
    unmarked = 0 if all(single) else sum(single) - sum(marked)
    if unmarked:
        warn(
            f"{name}: {unmarked} frame{'s' * (unmarked > 1)} of one atom among molecules taken as free atoms;"
            " config_type=IsolatedAtom"
            " marks them"
        )
    free = single if unmarked else marked
    of_molecules = [atoms for atoms, is_free in zip(frames, free, strict=True) if not is_free]
    return [atoms for atoms, is_free in zip(frames, free, strict=True) if is_free], of_molecules


def _is_marked_as_free_atom(atoms: Atoms) -> bool:
    kind = "".join(filter(str.isalnum, str(atoms.info.get("config_type", "")).lower()))
    return kind in FREE_ATOM


def _species(frames: Sequence[Atoms], name: str) -> tuple[str, ...]:
    """The chemical symbols that all frames have."""
    if not frames:
        raise ValueError(f"{name}: expected at least one geometry of the molecule, found none")
    species = tuple(frames[0].symbols)
    for k, atoms in enumerate(frames):
        found = tuple(atoms.symbols)
        if found != species:
            same = sorted(found) == sorted(species)
            raise ValueError(
                f"{name}: expected the atoms {shortened(species)} in every frame, found {shortened(found)} in frame {k};"
                f" {'put them in one order' if same else 'keep each molecule in a file of its own'}"
            )
    return species


def whole_positions(frames: Sequence[Atoms], name: str) -> np.ndarray:
    """Positions (n, N, 3) in angstrom, of whole molecules where a frame has a periodic cell."""
    positions = np.array([atoms.get_positions() for atoms in frames])
    if bad := np.flatnonzero(~np.isfinite(positions).all((1, 2))).tolist():
        raise ValueError(f"{name}: expected finite positions, found a NaN or infinity in frame {bad[0]}; remove that frame")
    if (far := np.abs(positions).max((1, 2), initial=0.0)).max() > FARTHEST:
        raise ValueError(
            f"{name}: expected positions in angstrom, found {far.max():.3g} in frame {far.argmax()}; remove that frame"
        )
    periodic = [k for k, atoms in enumerate(frames) if (atoms.pbc & atoms.cell.any(1)).any()]
    if not periodic:
        return positions
    whole = positions.copy()
    whole[periodic] = _whole_molecules([frames[k] for k in periodic], periodic, name)
    if moved := int((whole != positions).any((1, 2)).sum()):
        warn(
            f"{name}: in {moved} of {len(frames)} frames the molecule lay across the walls of its cell; it was put together,"
            " and the cell is left out"
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
        check_lengths(frames[0].get_chemical_symbols(), np.array([atoms.positions for atoms in frames]))
        raise ValueError(
            f"{name}: expected one molecule in a periodic cell, found {found[0][1].max() + 1} in frame {numbers[0]}, whose"
            ' interaction with their images would be learned as if there were none; set pbc to "F F F" if the labels are of'
            " these atoms alone"
        )
    # Heat stretches bonds beyond what counts as one: frames that seem to be in pieces have the bonds of one that is not.
    bonds = np.argwhere(np.triu(bond_graph(frames[0].get_chemical_symbols(), single[0])))
    return np.array([found[k][0] if not found[k][1].any() else put_together(k, bonds)[0] for k in range(len(frames))])


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


def _column(frames: Sequence[Atoms], key: str, name: str) -> np.ndarray:
    """An entry of all frames' info, (n,); ValueError where one lacks it."""
    if lacking := [k for k, atoms in enumerate(frames) if key not in atoms.info]:
        raise ValueError(f"{name}: {key} is missing in frame {lacking[0]} but not in all; add it there, or leave it out")
    return np.array([atoms.info[key] for atoms in frames])


def _others(frames: Sequence[Atoms], labels: dict[str, str], name: str) -> dict[str, np.ndarray]:
    """What else the frames hold, where all of them do and there is a place for it; a warning tells what nobody learns."""
    taken = {*labels.values(), *ORIGIN, *LEVEL, "config_type", "numbers", "positions"}
    # Labels of the usual names that are not those that were asked for would be taken for labels when the file is read again.
    homeless = {*LABELS.values(), "energy", "forces"}
    entries = [{key: value for key, value in entries_of(atoms).items() if not {key, key.lower()} & taken} for atoms in frames]
    keys, left, extra = sorted(set().union(*entries)), {}, {}
    for key in keys:
        values = [of[key] for of in entries if key in of]
        is_column = key in frames[0].arrays or key in PER_ATOM
        if key in homeless:
            continue
        if len(values) < len(frames):
            left[key] = "a frame lacks it"
        elif not is_column and any(map(np.ndim, values)):
            left[key] = "no number or word"
        elif len({np.shape(value) for value in values}) > 1:
            left[key] = "its shape changes"
        else:
            extra[key] = np.array(values)
    tell_unused(entries, keys, left, len(frames[0]), name)
    return extra


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


def _free_energies(free: Sequence[Atoms], key: str, name: str) -> dict[str, float]:
    """Energies in eV of free atoms, which are neutral, by their symbols."""
    found: dict[str, float] = {}
    for atom in free:
        symbol, known = atom.symbols[0], entries_of(atom)
        if key not in known:
            raise ValueError(f"{name}: expected {key} of the free atom {symbol}, found none; add it, or remove the frame")
        if charge := state_of_frames([atom], f"{name}, free atom {symbol}")[0]:
            raise ValueError(f"{name}: expected neutral free atoms, found charge {charge} of {symbol}; remove the frame")
        energy = float(number_of(known[key], key, (), f"{name}, free atom {symbol}"))
        if abs(found.setdefault(symbol, energy) - energy) > SUM_ERROR:
            raise ValueError(f"{name}: expected one free atom {symbol}, found {found[symbol]} and {energy} eV; remove one")
    return found
