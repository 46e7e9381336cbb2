"""The level of theory of labels, as data: method, basis, charge, spin, and the programs that made them."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Level:
    """What all labels of a dataset have in common; an empty text where it is not told."""

    method: str = ""
    """functional or Hamiltonian, as ``b3lyp`` or ``GFN2-xTB``"""
    basis: str = ""
    details: str = ""
    """what else tells energies apart: Cartesian or spherical functions, density fitting, grid"""
    charge: int = 0
    """of the whole system, e"""
    spin: int = 0
    """number of unpaired electrons"""
    programs: str = ""
    partition: str = ""
    """of the atomic energies"""
    sampler: str = ""
    """what made the geometries"""

    @property
    def theory(self) -> str:
        """Method, basis and details in words, as files have them under ``level_of_theory``."""
        return " ".join(filter(None, ("/".join(filter(None, (self.method, self.basis))), self.details)))

    def __str__(self) -> str:
        parts = [self.theory or "a level of theory that is not told"]
        parts += [f"charge {self.charge:+d}"] * bool(self.charge)
        parts += [f"{self.spin} unpaired electron{'s' * (self.spin > 1)}"] * bool(self.spin)
        return ", ".join(parts)

    def same_energies(self, other: "Level") -> bool:
        """Whether energies at both may be compared: all is equal that they depend on."""
        return self._energies == other._energies

    @property
    def _energies(self) -> tuple[str, str, str, int, int]:
        return self.method.lower(), self.basis.lower(), self.details, self.charge, self.spin

    @classmethod
    def of_words(cls, level_of_theory: str = "", **known: Any) -> "Level":
        """From ``level_of_theory`` in words, ``METHOD/BASIS details``, as files of before 2026-12 hold it, and other fields."""
        theory, _, details = level_of_theory.partition(" ")
        method, slash, basis = theory.partition("/")
        if not slash:  # one name, whatever it is
            method, details = level_of_theory, ""
        return cls(method=method, basis=basis, details=details, **known)

    @classmethod
    def of_info(cls, info: dict[str, Any]) -> "Level":
        """From the entries of an extxyz frame, as `info` gives them; charge and spin are the frame's own to check."""
        known = {f.name: info[f.name] for f in fields(cls) if f.name in info and f.name not in ("method", "basis", "details")}
        return cls.of_words(str(info.get("level_of_theory", "")), **known)

    @property
    def info(self) -> dict[str, str | int]:
        """Entries of an extxyz frame; what is not told, neutral or without unpaired electrons is left out."""
        told: dict[str, str | int] = {"level_of_theory": self.theory, "charge": self.charge, "spin": self.spin}
        told |= {"programs": self.programs, "partition": self.partition, "sampler": self.sampler}
        return {name: value for name, value in told.items() if value}

    def __getitem__(self, name: str) -> str | int:
        """An entry of `info` by its name in a file: a dataset's level once was that dict, and still reads like it."""
        return self.info[name]

    def __contains__(self, name: str) -> bool:
        return name in self.info

    def keys(self) -> Iterable[str]:
        """Names of what is told."""
        return self.info.keys()

    def of_free_atom(self, spin: int) -> "Level":
        """The same method for a neutral atom with so many unpaired electrons."""
        return replace(self, charge=0, spin=spin)
