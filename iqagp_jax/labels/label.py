"""One label: how it is made, when it is rejected, and what it is called."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
from ase.data import atomic_numbers

from iqagp_jax.data.content import numbers
from iqagp_jax.data.dataset import DECIMALS
from iqagp_jax.labels.plan import LabelPlan
from iqagp_jax.machine.warn import warn
from iqagp_jax.system.harmonics import rank
from iqagp_jax.units import BOHR, HARTREE

KRYPTON = 36

MAX_REMAINDER = 0.5e-3
"""Largest accepted difference between the sum of the raw atomic energies and the total energy, in hartree."""

SUMS = 1e-5
"""Difference in eV between sums of one label's numbers that rounding may leave."""

MAX_MISSING_ELECTRONS = 0.002
"""Largest accepted difference between the sum of the atomic populations and the electron number."""

TRUSTED_T1 = 0.02
"""Beyond this T1 diagnostic one determinant is a doubtful reference (Lee and Taylor, doi:10.1002/qua.560360824)."""


def label_geometry(species: Sequence[str], positions: np.ndarray, plan: LabelPlan) -> dict[str, Any]:
    """One label: a JSON-ready dict in eV and angstrom, or a dict with ``rejected`` and the reason.

    The raw atomic energies of every partition are kept in ``raw``; ``remainder`` is what they lack of the total. Those of
    coupled cluster hold the energy and the T1 diagnostic.
    """
    from iqagp_jax.labels import coupled_cluster, iqa, scf
    from iqagp_jax.labels.partitions import PARTITIONS

    programs = f"{plan.level.programs}, iqagp_jax {version('iqagp-jax')}"
    try:
        if plan.is_coupled_cluster:
            energy, t1 = coupled_cluster.energy(species, positions, plan.basis, plan.charge, plan.spin)
            return {"programs": programs, "energy": energy * HARTREE, "t1_diagnostic": t1}
        mol = scf.build_molecule(species, positions, plan.basis, plan.charge, plan.spin)
        tolerance = scf.FOR_ATOMS if plan.partitions else scf.FOR_FORCES
        mf = scf.converge(scf.mean_field(mol, plan.xc), tolerance)
        atoms = iqa.integrate_atoms(mf, {name: PARTITIONS[name] for name in plan.partitions})
    except scf.LabelError as reason:
        return {"rejected": str(reason)}
    for name, integrals in atoms.items():
        remainder = mf.e_tot - integrals.energy.sum()
        missing = mol.nelectron - integrals.population.sum()
        if abs(remainder) > MAX_REMAINDER:
            return {"rejected": f"{name} atomic energies miss the total by {remainder * 1e3:.3f} mHa (limit 0.5)"}
        if abs(missing) > MAX_MISSING_ELECTRONS:
            return {"rejected": f"{name} populations miss {missing:.4f} electrons (limit {MAX_MISSING_ELECTRONS})"}
    label = {
        "programs": programs,
        "energy": mf.e_tot * HARTREE,
        "raw": {name: (a.energy * HARTREE).tolist() for name, a in atoms.items()},
        "remainder": {name: float(mf.e_tot - a.energy.sum()) * HARTREE for name, a in atoms.items()},
        "charges": {name: (mol.atom_charges() - a.population).tolist() for name, a in atoms.items()},
    }
    if plan.forces:
        label["forces"] = (scf.forces(mf) * HARTREE / BOHR).tolist()
    if plan.multipoles:
        label["multipoles"] = {name: a.multipoles.tolist() for name, a in atoms.items()}
    return label


def check_label(label: dict[str, Any], species: Sequence[str], plan: LabelPlan) -> None:
    """ValueError, in a sentence, unless a label that was read is one of these atoms after this plan, and makes sense.

    Its energies are finite, and those of the atoms and the remainder sum to the molecule's; charges sum to the plan's.
    """
    n_atoms = len(species)
    energy = numbers("energy", label.get("energy"), ())
    if plan.is_coupled_cluster:
        numbers("T1 diagnostic", label.get("t1_diagnostic"), (), least=0)
    if plan.forces:
        numbers("forces", label.get("forces"), (n_atoms, 3))
    for name in plan.partitions:

        def of(what: str, shape: tuple[int | None, ...], name: str = name) -> np.ndarray:
            each = label.get(what)
            return numbers(f"{what} of {name} atoms", each.get(name) if isinstance(each, dict) else each, shape)

        missing = energy - of("raw", (n_atoms,)).sum() - of("remainder", ())
        if abs(missing) > SUMS:
            raise ValueError(
                f"expected {name} energies and remainder that sum to the energy, found {missing:g} eV between them"
            )
        excess = of("charges", (n_atoms,)).sum() - plan.charge
        if abs(excess) > 2 * MAX_MISSING_ELECTRONS:
            raise ValueError(f"expected {name} charges that sum to {plan.charge}, found {excess:g} e too much")
        if plan.multipoles:
            rank(of("multipoles", (n_atoms, None)))


def tell_t1(diagnostics: np.ndarray) -> None:
    """Warn where T1 diagnostics (n,) exceed what one determinant is trusted to."""
    if doubtful := int((diagnostics > TRUSTED_T1).sum()):
        warn(
            f"the T1 diagnostic exceeds {TRUSTED_T1} in {doubtful} of {len(diagnostics)} geometries (up to"
            f" {diagnostics.max():.3f}): one determinant may be a poor reference for CCSD(T) there"
        )


def label_key(species: Sequence[str], positions: np.ndarray, plan: LabelPlan) -> str:
    """Name of a label: a hash of geometry and plan; what made it is told in the label itself (``programs``)."""
    # Labels that were made before there were these settings keep their names.
    later = {"multipoles": False, "forces": True}
    settings = {name: value for name, value in asdict(plan).items() if name not in later or value != later[name]}
    # Before 2026-12 densities were fitted there by functions that lack the core.
    if max(atomic_numbers[s] for s in species) > KRYPTON:
        settings["fitting"] = "with core"
    content = json.dumps([list(species), np.round(positions, DECIMALS).tolist(), settings])
    return hashlib.sha256(content.encode()).hexdigest()[:20]
