"""Coupled cluster, CCSD(T) of a frozen core: energies alone, in one basis, or from there to the limit of large ones by MP2.

    E = E_CCSD(T)(b)                                                      as ccsd(t)/b
    E = E_HF(Y) + e_MP2(inf) + [e_CCSD(T)(b) - e_MP2(b)]                  as ccsd(t)/b+mp2/cbs(xy)
    e_MP2(inf) = (Y^3 e_MP2(Y) - X^3 e_MP2(X)) / (Y^3 - X^3)

with e the correlation energy and X, Y the cardinal numbers of two basis sets of b's family (Helgaker et al.,
doi:10.1063/1.473863): ``ccsd(t)/cc-pvdz+mp2/cbs(tq)`` takes cc-pVTZ and cc-pVQZ. What CCSD(T) adds to MP2 changes little with
the basis, so that a small b does. Hartree-Fock and MP2 of the two large sets are density-fitted; where electrons are unpaired
Hartree-Fock is unrestricted.
"""

import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from iqagp_jax.labels.scf import LabelError, build_molecule, converge, has_core_potential

CARDINALS = {"d": 2, "t": 3, "q": 4, "5": 5}

FAMILY = r"(aug-)?cc-pv[dtq5]z"
"""Of basis sets that converge with their cardinal number, and that density fitting has auxiliary functions for."""

ORBITALS = 1e-5
"""Tolerance of the SCF's gradient: the correlation energy feels the orbitals in first order."""


class Bases(NamedTuple):
    """What ``BASIS`` or ``BASIS+mp2/cbs(XY)`` names."""

    coupled: str
    """of CCSD(T)"""
    large: tuple[str, ...]
    """the two of MP2 by rising size, or none"""
    cubes: tuple[int, ...]
    """X^3 and Y^3"""

    @classmethod
    def of(cls, words: str) -> "Bases":
        """From a plan's basis. ValueError, in a sentence, for another limit than of two neighbours of a family."""
        coupled, plus, limit = words.lower().replace(" ", "").partition("+mp2/")
        if not plus:
            return cls(coupled, (), ())
        found = re.fullmatch(r"cbs\((dt|tq|q5)\)", limit)
        if not (found and re.fullmatch(FAMILY, coupled)):
            raise ValueError(
                "expected a basis for CCSD(T) such as cc-pvdz, or with MP2's limit as cc-pvdz+mp2/cbs(tq), where both are of"
                f" cc-pVXZ or aug-cc-pVXZ and XY is dt, tq or q5, found {words!r}"
            )
        pair = found[1]
        return cls(coupled, tuple(f"{coupled[:-2]}{x}z" for x in pair), tuple(CARDINALS[x] ** 3 for x in pair))

    @property
    def fitting(self) -> tuple[str, ...]:
        """Auxiliary functions of the large ones."""
        return tuple(f"{basis}-{use}" for basis in self.large for use in ("jkfit", "ri"))


def details(basis: str) -> str:
    """What else tells energies apart; see `data.level.Level`."""
    bases = Bases.of(basis)
    limit = ", MP2 by density fitting with jkfit and ri sets" if bases.large else ""
    return f"spherical, frozen core{limit}"


def check(species: Sequence[str], positions: Any, basis: str, charge: int, spin: int) -> None:
    """ValueError, in a sentence, where these atoms cannot have such a label."""
    from pyscf.data.elements import chemcore
    from pyscf.gto.basis import BasisNotFoundError

    bases, elements = Bases.of(basis), sorted(set(species))
    for name in (bases.coupled, *bases.large, *bases.fitting):
        try:
            with warnings.catch_warnings(action="ignore"):  # PySCF's advice where to look for the basis
                mol = build_molecule(species, positions, name, charge, spin)
        except (BasisNotFoundError, KeyError, OSError, ValueError) as error:
            raise ValueError(f"basis {name!r} is not there for all of {' '.join(elements)}") from error
        if heavy := [symbol for symbol in elements if has_core_potential(name, symbol)]:
            raise ValueError(
                f"basis {name!r} leaves the core of {' '.join(heavy)} to an effective potential; choose an all-electron basis"
                " for CCSD(T)"
            )
    alpha, beta = (n - chemcore(mol) for n in mol.nelec)
    if alpha > 1 and beta < 1:
        raise ValueError(
            f"expected electrons of both spins to correlate, found {alpha} and {beta} beside the frozen core; CCSD(T) of PySCF"
            " has no formula for it: give another --spin"
        )


def energy(species: Sequence[str], positions: Any, basis: str, charge: int = 0, spin: int = 0) -> tuple[float, float]:
    """Energy in hartree of a geometry (N, 3) in angstrom, and the T1 diagnostic.

    Raises `LabelError` where Hartree-Fock or coupled cluster does not converge.
    """
    bases = Bases.of(basis)
    mean_field = _hartree_fock(build_molecule(species, positions, bases.coupled, charge, spin))
    coupled, second_order, t1 = _correlation(mean_field)
    if not bases.large:
        return float(mean_field.e_tot + coupled), t1
    parts = []
    for name in bases.large:
        mean_field = _hartree_fock(build_molecule(species, positions, name, charge, spin), name, mean_field)
        parts.append(_second_order(mean_field, name))
    small, large = bases.cubes
    limit = (large * parts[1] - small * parts[0]) / (large - small)
    return float(mean_field.e_tot + limit + coupled - second_order), t1


def _hartree_fock(mol: Any, name: str = "", smaller: Any = None) -> Any:
    """Converged, density-fitted for a large basis ``name`` from the density of a ``smaller`` one."""
    from pyscf import scf

    mean_field = (scf.rhf.RHF if mol.spin == 0 else scf.uhf.UHF)(mol)
    start = None
    if smaller is not None:
        mean_field = mean_field.density_fit(auxbasis=f"{name}-jkfit")
        start = scf.addons.project_dm_nr2nr(smaller.mol, smaller.make_rdm1(), mol)
    mean_field.conv_check = False  # one cycle more, of the dearest step
    return converge(mean_field, ORBITALS, start)


def _correlation(mean_field: Any) -> tuple[float, float, float]:
    """(e_CCSD(T), e_MP2) in hartree and the T1 diagnostic, |t_1| / sqrt(number of correlated electrons)."""
    from pyscf import cc
    from pyscf.data.elements import chemcore

    mol, frozen = mean_field.mol, chemcore(mean_field.mol)
    correlated, empty = mol.nelectron - 2 * frozen, [mol.nao - n for n in mol.nelec]
    if correlated < 2 or max(empty) < 1:
        return 0.0, 0.0, 0.0
    coupled = cc.CCSD(mean_field, frozen=frozen)
    coupled.conv_tol, coupled.conv_tol_normt = 1e-6, 1e-4
    coupled.kernel()
    if not coupled.converged:
        raise LabelError(f"coupled cluster did not converge to {coupled.conv_tol:g} hartree in {coupled.max_cycle} cycles")
    singles = np.concatenate([np.ravel(t) for t in (coupled.t1 if mol.spin else [coupled.t1])])
    t1 = np.linalg.norm(singles) / np.sqrt(correlated)
    # Where a minimal basis has no orbital left for one spin (an oxygen atom), no three electrons can be excited.
    triples = coupled.ccsd_t() if min(empty) else 0.0
    return float(coupled.e_corr + triples), float(coupled.emp2), float(t1)


def _second_order(mean_field: Any, name: str) -> float:
    """e_MP2 in hartree, density-fitted."""
    from pyscf import df
    from pyscf.data.elements import chemcore
    from pyscf.mp import dfmp2, dfump2

    mol, frozen = mean_field.mol, chemcore(mean_field.mol)
    if mol.nelectron - 2 * frozen < 2:
        return 0.0
    method = (dfump2.DFUMP2 if mol.spin else dfmp2.DFMP2)(mean_field, frozen=frozen)
    method.with_df = df.DF(mol, auxbasis=f"{name}-ri")
    return float(method.kernel(with_t2=False)[0])
