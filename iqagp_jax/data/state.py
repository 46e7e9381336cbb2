"""Charge and number of unpaired electrons as extxyz files tell them, under the names that programs have for them."""

from collections.abc import Mapping, Sequence
from typing import Any

from ase import Atoms

from iqagp_jax.machine.warn import warn

CHARGE = ("charge", "total_charge", "net_charge", "molecular_charge")
"""Names of the charge (e) in a frame's info, capitals aside."""

SPIN = ("spin", "total_spin")
"""Names of the number of unpaired electrons for some programs, of the multiplicity for others."""

UNPAIRED = ("unpaired_electrons",)

MULTIPLICITY = ("multiplicity", "spin_multiplicity", "mult")
"""Names of 2S + 1, one more than the number of unpaired electrons."""

STATE = (*CHARGE, *SPIN, *UNPAIRED, *MULTIPLICITY)


def state_of_frames(frames: Sequence[Atoms], name: str) -> tuple[int, int]:
    """Charge and number of unpaired electrons that all frames of a file have in common; ``name`` is for the sentences.

    A frame that does not tell them is neutral, without unpaired electrons. A warning tells where a ``spin`` can only be a
    multiplicity: one of the two is even, the other odd, and so is the number of electrons.

    Raises ValueError, in a sentence, for frames of several states, which are of different potentials, and for a state that
    the number of electrons does not allow.
    """
    states: dict[tuple[int, int], list[int]] = {}
    for k, atoms in enumerate(frames):
        states.setdefault(_state(atoms, f"{name}, frame {k}"), []).append(k)
    if len(states) > 1:
        told = " and ".join(f"charge {q} with {s} unpaired electrons in {_numbers(of)}" for (q, s), of in states.items())
        raise ValueError(
            f"{name}: expected one charge and spin in all frames, found {told}; keep them in files of their own, as they are of"
            " different potentials"
        )
    state = next(iter(states))
    if read := next(filter(None, (_read_as_multiplicity(atoms, state[1]) for atoms in frames)), ""):
        warn(
            f"{name}: {read} was taken as a multiplicity, {state[1]} unpaired electrons, since the number of electrons does not"
            " allow so many unpaired ones"
        )
    return state


def _state(atoms: Atoms, where: str) -> tuple[int, int]:
    """Charge and number of unpaired electrons of one frame."""

    def numbers(names: Sequence[str]) -> dict[str, int]:
        return {key: _integer(value, key, where) for key, value in atoms.info.items() if key.lower() in names}

    charge = _agreed(numbers(CHARGE), "charge", where)
    electrons = int(atoms.numbers.sum()) - (charge or 0)
    unpaired = {key: value if _fits(electrons, value) else value - 1 for key, value in numbers(SPIN).items()}
    unpaired |= numbers(UNPAIRED) | {key: value - 1 for key, value in numbers(MULTIPLICITY).items()}
    spin = _agreed(unpaired, "number of unpaired electrons", where)
    # A file that tells nothing may be of a radical, as before 2026-12.
    if (charge or spin is not None) and not _fits(electrons, spin or 0):
        found = ", ".join(f"{key}={value}" for key, value in atoms.info.items() if key.lower() in STATE)
        raise ValueError(
            f"{where}: expected a number of unpaired electrons, or a multiplicity, that {electrons} electrons can have, found"
            f" {found}; correct it, or add unpaired_electrons"
        )
    return charge or 0, spin or 0


def _fits(electrons: int, unpaired: int) -> bool:
    return 0 <= unpaired <= electrons and (electrons - unpaired) % 2 == 0


def _read_as_multiplicity(atoms: Atoms, spin: int) -> str:
    """The entry, such as ``spin=1``, that is another number than that of unpaired electrons; '' if none."""
    return next((f"{key}={value}" for key, value in atoms.info.items() if key.lower() in SPIN and float(value) != spin), "")


def _integer(value: Any, key: str, where: str) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not number.is_integer():
        raise ValueError(f"{where}: expected a whole number as {key}, found {value}; correct it")
    return int(number)


def _agreed(told: Mapping[str, int], what: str, where: str) -> int | None:
    """The number that all names tell, None without any."""
    if len(set(told.values())) > 1:
        found = " and ".join(f"{value} by {key}" for key, value in told.items())
        raise ValueError(f"{where}: expected one {what}, found {found}; correct one of them, or leave it out")
    return next(iter(told.values()), None)


def _numbers(frames: Sequence[int], most: int = 5) -> str:
    """Numbers of frames in words, cut where there are many."""
    shown = ", ".join(map(str, frames[:most]))
    if len(frames) > most:
        return f"frames {shown}, ... ({len(frames)} of them)"
    return f"frame{'s' * (len(frames) > 1)} {shown}"
