"""Chemical symbols: what they weigh, and what is no list of them."""

import re
from collections.abc import Sequence

import numpy as np
from ase.data import atomic_masses, atomic_numbers


def masses_of(species: Sequence[str]) -> np.ndarray:
    """Atomic masses (N,) in amu of chemical symbols, natural abundance."""
    return atomic_masses[[atomic_numbers[s] for s in species]]


def members_of(molecules: Sequence[int], n_atoms: int) -> tuple[np.ndarray, ...]:
    """The atoms of every molecule, in their order, from their molecules' numbers (N,); empty where all are one."""
    numbers = np.array(tuple(molecules) or n_atoms * (0,))
    return tuple(np.flatnonzero(numbers == m) for m in range(numbers.max() + 1))


def check_species(species: Sequence[str]) -> None:
    """ValueError, in a sentence, for what is no chemical symbol."""
    if unknown := [s for s in species if atomic_numbers.get(s, 0) < 1]:
        raise ValueError(f"expected chemical symbols as species, found {unknown[0]!r}; correct it")


def check_electrons(species: Sequence[str], charge: int, spin: int) -> None:
    """ValueError, in a sentence, where atoms with this charge cannot have so many unpaired electrons.

    Nor do any hold twice the electrons that they have when neutral, H- and one more for each atom aside.
    """
    neutral = sum(atomic_numbers[s] for s in species)
    if -charge > neutral + len(species):
        raise ValueError(
            f"expected a charge that {neutral} electrons and their nuclei can have, found {charge}; correct --charge"
        )
    electrons = neutral - charge
    if electrons < 0 or (electrons - spin) % 2 or not 0 <= spin <= electrons:
        raise ValueError(
            f"{electrons} electrons cannot have {spin} unpaired ones; set --charge and --spin (unpaired electrons)"
        )


def parse_atom(name: str) -> tuple[str, int]:
    """(chemical symbol, number) of an atom's name such as O1; ValueError, in a sentence, for other names."""
    found = re.fullmatch(r"([A-Za-z]+)(\d+)", name)
    if not found or atomic_numbers.get(found[1].capitalize(), 0) < 1:
        raise ValueError(f"expected an atom's name as O1, an element and a number, found {name!r}")
    return found[1].capitalize(), int(found[2])


def same_atoms(expected: Sequence[str], found: Sequence[str], where: str = "the system") -> None:
    """ValueError, in a sentence, where the atoms found are not those expected, in their order."""
    if tuple(expected) != tuple(found):
        raise ValueError(
            f"expected the atoms {shortened(expected)} of the model, found {shortened(found)} in {where}; give these atoms in"
            " this order"
        )


def shortened(species: Sequence[str], most: int = 60) -> str:
    """Symbols with blanks between, cut where there are many."""
    return " ".join(species) if len(species) <= most else f"{' '.join(species[:most])} ... ({len(species)} atoms)"
