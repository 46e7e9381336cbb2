"""Which entries of a file's frames are the labels, under whatever names; what is wrong with them; what is not learned.

A frame's entries are all that ASE has read of it: numbers and words of its comment line, columns of its atoms, and those of
both that ASE keeps as results of a calculator. An energy or forces that a file holds are learned, refused, or named in a
warning.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from iqagp_jax.data.content import LARGEST
from iqagp_jax.machine.warn import warn
from iqagp_jax.units import HARTREE

LABELS = {"energy": "REF_energy", "forces": "REF_forces", "atomic_energies": "REF_atomic_energies"}
"""Names of the labels in our files."""

OURS = ("_energies", "_charges", "_remainder", "_multipoles", "_diagnostic")
"""How names of what our own labels hold beside them end."""

FORCES = re.compile(r"(^|[^a-z])(forces?|f)($|[^a-z])", re.IGNORECASE)
"""Names that say force, as ``DFT_forces``, ``force`` and ``F`` do."""

GRADIENT = re.compile(r"grad", re.IGNORECASE)

ENERGY = re.compile(r"energy|e_?tot|(^|[^a-z])(e|scf)($|[^a-z])", re.IGNORECASE)

Entries = Mapping[str, Any]


def entries_of(atoms: Atoms) -> dict[str, Any]:
    """All that ASE has read of a frame, by name."""
    return {**(atoms.calc.results if atoms.calc else {}), **atoms.info, **atoms.arrays}


def label_names(frames: Sequence[Entries], name: str, energy_key: str | None, forces_key: str | None) -> dict[str, str]:
    """Under which name a file has each label.

    Energies under the name given, ours where there is one, ASE's otherwise. Forces under the name given, else that which goes
    with the energy's (``dft_forces`` with ``dft_energy``), ours, ASE's, else the only column that says force, with a warning.

    Raises ValueError, in a sentence, where no frame has an energy, where several columns may be the forces, and where some
    frames have a label under this name and others under that.
    """
    known = {key: value for entries in reversed(frames) for key, value in entries.items()}
    energy = energy_key or _first([LABELS["energy"], "energy"], known)
    if energy not in known:
        raise ValueError(_no_energy(energy or _default(known), frames[0], name))
    forces = forces_key or _forces_name(energy, known, name)
    if forces_key and forces_key not in known:
        raise ValueError(
            f"{name}: no frame has {forces_key} (the first one's keys: {_keys(frames[0])}); give the name of the"
            " forces with --forces-key, in eV/angstrom"
        )
    if not energy_key:
        _check_one_name(frames, "energy", energy, [LABELS["energy"], "energy"], name)
    if not forces_key:
        _check_one_name(frames, "forces", forces, [key for key in known if _is_forces(key, known[key])], name)
    return {"energy": energy, "forces": forces, "atomic_energies": LABELS["atomic_energies"]}


def _default(known: Entries) -> str:
    return LABELS["energy"] if LABELS["forces"] in known else "energy"


def _first(names: Sequence[str], known: Collection[str]) -> str:
    """The first of the names that there is, '' without any."""
    return next((name for name in names if name in known), "")


def _keys(entries: Entries) -> str:
    return ", ".join(sorted(set(entries) - {"numbers", "positions"})) or "none"


def _no_energy(key: str, known: Entries, name: str) -> str:
    """The sentence for a file without energies that could be learned."""
    bare = [word for word, value in known.items() if value is True and _is_number(word)]
    if bare and "ORCA-job" in known:
        return (
            f"{name}: no frame has energy=..., but comments of ORCA, whose number {bare[0]} is the energy in hartree; write"
            f" it as energy={float(bare[0]) * HARTREE:.6f} in eV"
        )
    if bare:
        return (
            f"{name}: no frame has energy=..., but the number {bare[0]} as comment; write it as energy=... in eV (sGDML's"
            " files have kcal/mol there: times 0.0433641), and where each line has forces, too,"
            " Properties=species:S:1:pos:R:3:forces:R:3 beside it, with forces in eV/angstrom"
        )
    like = [k for k, value in known.items() if ENERGY.search(k) and np.ndim(value) == 0 and not isinstance(value, bool)]
    told = f"; is it {like[0]}? Then give --energy-key {like[0]}, in eV" if like else ""
    return (
        f"{name}: no frame has {key} (the first one's keys: {_keys(known)}); give the name of the energy with --energy-key, in"
        f" eV{told}"
    )


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _is_forces(key: str, value: Any) -> bool:
    """Whether a column of atoms says by its name that it holds forces."""
    return bool(np.ndim(value) == 2 and FORCES.search(key) and not GRADIENT.search(key))


def _stem(key: str) -> str:
    """What is left of a label's name without what it is: dft of dft_energy, DFT_forces and total_energy_dft."""
    return "_".join(
        part
        for part in re.split(r"[^a-z0-9]+", key.lower())
        if part not in {"", "energy", "energies", "force", "forces", "total", "e", "f"}
    )


def _forces_name(energy: str, known: Entries, name: str) -> str:
    """The column of forces that goes with an energy; the usual name where there is none."""
    usual = "forces" if energy == "energy" else LABELS["forces"] if energy == LABELS["energy"] else ""
    like = [key for key, value in known.items() if _is_forces(key, value)]
    twins = [key for key in like if _stem(key) == _stem(energy)]
    if found := _first([usual, energy.replace("energy", "forces").replace("Energy", "Forces")], like):
        return found
    if (found := _first([*twins, LABELS["forces"], "forces"], like)) or len(like) == 1:
        found = found or like[0]
        warn(f"{name}: forces are read from {found}, beside the energy from {energy}; --forces-key names others")
        return found
    if like:
        raise ValueError(
            f"{name}: expected one column of forces beside the energy {energy}, found {' and '.join(sorted(like))}; choose by"
            " --forces-key, in eV/angstrom"
        )
    return usual or "forces"


def _check_one_name(frames: Sequence[Entries], target: str, chosen: str, others: Sequence[str], name: str) -> None:
    """ValueError where frames without a label have it under another name than the rest."""
    lacking = [entries for entries in frames if chosen not in entries]
    for key in others:
        if key != chosen and (n := sum(key in entries for entries in lacking)):
            raise ValueError(
                f"{name}: expected the {target} under one name in all frames, found {chosen} in {len(frames) - len(lacking)}"
                f" and {key} alone in {n} of {len(frames)} frames; rename one of them, or choose by --{target}-key {chosen}"
                " and lose the others"
            )


def labels_of(frames: Sequence[Entries], target: str, key: str, shape: tuple[int, ...], name: str) -> np.ndarray | None:
    """A label (n, *shape), NaN where a frame has none; None where no frame has it.

    Raises ValueError, in a sentence, for text, another shape and numbers that are not finite or beyond all sense. Forces or
    energies that are exactly zero stand for none, in many programs: they are left out with a warning.
    """
    found = {k: number_of(entries[key], key, shape, f"{name}, frame {k}") for k, entries in enumerate(frames) if key in entries}
    if not found:
        return None
    values = np.full((len(frames), *shape), np.nan)
    values[list(found)] = list(found.values())
    finite = np.isfinite(values).reshape(len(frames), -1).all(1)
    if bad := [k for k in found if not finite[k]]:
        raise ValueError(f"{name}: expected finite {target}, found a NaN or infinity in frame {bad[0]}; remove that frame")
    if (largest := max((float(np.abs(label).max()), k) for k, label in found.items()))[0] > LARGEST:
        raise ValueError(
            f"{name}: expected {target.replace('_', ' ')} of a size that a molecule has, found {largest[0]:.3g} in frame"
            f" {largest[1]}; remove that frame"
        )
    empty = [k for k, label in found.items() if not np.any(label)]
    if empty and (target == "forces" or (target == "energy" and len(empty) == len(found) > 1)):
        of = "all" if len(empty) == len(found) else str(len(empty))
        warn(
            f"{name}: {key} is exactly zero in {of} of {len(frames)} frames, which is no label and left out; write the {target}"
            " of the calculation there, or nothing"
        )
        values[empty] = np.nan
    return values if np.isfinite(values).any() else None


def number_of(value: Any, key: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    """A label as an array of this shape."""
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or array.shape != shape:
        wanted = f"an array {shape}" if shape else "a number"
        found = (
            f"{array.tolist()!r}" if array.size <= 3 else f"an array {array.shape} of {array.dtype.name.strip('0123456789')}"
        )
        raise ValueError(f"{where}: expected {wanted} as {key}, found {found}; correct it, or give another name")
    return array.astype(np.float64)


def tell_unused(frames: Sequence[Entries], unused: Collection[str], left: Mapping[str, str], n_atoms: int, name: str) -> None:
    """One warning of what a file holds and nobody learns: numbers, three a atom or one a frame, and what has no place at all.

    Parameters
    ----------
    unused: names of entries that no one else takes.
    left: why those of them have no place in a dataset that have none.
    """
    known = {key: value for entries in reversed(frames) for key, value in entries.items()}
    spoken = [key for key in sorted(unused) if key not in left and not key.endswith(OURS) and _is_told(known[key], n_atoms)]
    told = []
    if left:
        told.append("left out of the dataset: " + ", ".join(f"{key} ({why})" for key, why in sorted(left.items())))
    if spoken:
        told.append(f"not learned: {', '.join(spoken)}")
    if gradients := [key for key in spoken if GRADIENT.search(key)]:
        told.append(f"forces are minus the gradient: write them as REF_forces in eV/angstrom to learn {gradients[0]}")
    if told:
        warn(f"{name}: {'; '.join(told)}")


def _is_told(value: Any, n_atoms: int) -> bool:
    array = np.asarray(value)
    return array.dtype.kind in "iuf" and array.shape in ((), (n_atoms, 3))
