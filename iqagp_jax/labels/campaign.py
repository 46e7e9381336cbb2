"""Labelling many geometries by one process per core, each finished label on disk before the next begins."""

import hashlib
import json
import os
import threading
import warnings
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, ground_state_magnetic_moments

from iqagp_jax.dataset import DECIMALS, LEVEL, ORIGIN, Dataset
from iqagp_jax.files import write_atomically
from iqagp_jax.units import BOHR, HARTREE

MAX_REMAINDER = 0.5e-3
"""Largest accepted difference between the sum of the raw atomic energies and the total energy, in hartree."""

MAX_MISSING_ELECTRONS = 0.002
"""Largest accepted difference between the sum of the atomic populations and the electron number."""


@dataclass(frozen=True)
class Level:
    """Level of theory and partitions of a label; the first partition gives the dataset's atomic energies."""

    xc: str = "b3lyp"
    basis: str = "6-31+g(d,p)"
    charge: int = 0
    spin: int = 0
    partitions: tuple[str, ...] = ("becke", "hirshfeld")

    def describe(self):
        """Level of theory and programs in words, as written into datasets."""
        from iqagp_jax.labels.iqa import ATOM_GRID
        from iqagp_jax.labels.scf import AUXILIARY_BASIS, is_cartesian

        grid = f"grid {ATOM_GRID['light']}/{ATOM_GRID['heavy']} nwchem-pruned"
        functions = "cartesian" if is_cartesian(self.basis) else "spherical"
        return {
            "level_of_theory": f"{self.xc}/{self.basis} {functions}, density fitting {AUXILIARY_BASIS}, {grid}",
            "programs": f"pyscf {version('pyscf')}",
        }


def label_geometry(species, positions, level):
    """One label: a JSON-ready dict in eV and angstrom, or a dict with ``rejected`` and the reason.

    The raw atomic energies of every partition are kept in ``raw``; ``remainder`` is what they lack of the total.
    """
    from iqagp_jax.labels import iqa, scf
    from iqagp_jax.labels.partitions import PARTITIONS

    try:
        mol = scf.build_molecule(species, positions, level.basis, level.charge, level.spin)
        mf = scf.converge(scf.mean_field(mol, level.xc))
        atoms = iqa.integrate_atoms(mf, {name: PARTITIONS[name] for name in level.partitions})
    except scf.LabelError as reason:
        return {"rejected": str(reason)}
    for name, integrals in atoms.items():
        remainder = mf.e_tot - integrals.energy.sum()
        missing = mol.nelectron - integrals.population.sum()
        if abs(remainder) > MAX_REMAINDER:
            return {"rejected": f"{name} atomic energies miss the total by {remainder * 1e3:.3f} mHa (limit 0.5)"}
        if abs(missing) > MAX_MISSING_ELECTRONS:
            return {"rejected": f"{name} populations miss {missing:.4f} electrons (limit {MAX_MISSING_ELECTRONS})"}
    return {
        "energy": mf.e_tot * HARTREE,
        "forces": (scf.forces(mf) * HARTREE / BOHR).tolist(),
        "raw": {name: (a.energy * HARTREE).tolist() for name, a in atoms.items()},
        "remainder": {name: float(mf.e_tot - a.energy.sum()) * HARTREE for name, a in atoms.items()},
        "charges": {name: (mol.atom_charges() - a.population).tolist() for name, a in atoms.items()},
    }


def check(geometries, level):
    """ValueError, in a sentence, where geometries (ASE atoms) cannot be labelled at this level at all."""
    from pyscf.dft import libxc
    from pyscf.gto.basis import BasisNotFoundError

    from iqagp_jax.labels import scf

    if not geometries:
        raise ValueError("expected at least one geometry to label, found none")
    species = geometries[0].get_chemical_symbols()
    for k, atoms in enumerate(geometries):
        if atoms.get_chemical_symbols() != species:
            raise ValueError(
                f"expected the atoms {' '.join(species)} in every geometry, found"
                f" {' '.join(atoms.get_chemical_symbols())} in geometry {k}"
            )
        if not np.isfinite(atoms.get_positions()).all():
            raise ValueError(f"expected finite positions, found a NaN or infinity in geometry {k}; remove it")
    electrons = int(geometries[0].numbers.sum()) - level.charge
    if (electrons - level.spin) % 2:
        raise ValueError(
            f"{electrons} electrons cannot have {level.spin} unpaired ones; set --charge and --spin (unpaired electrons)"
        )
    if level.xc.lower() != "hf":
        try:
            libxc.parse_xc(level.xc)
        except (KeyError, ValueError) as error:
            raise ValueError(f"expected a functional that PySCF knows, found {level.xc!r}") from error
        if libxc.rsh_coeff(level.xc)[0] or libxc.is_nlc(level.xc):
            raise ValueError(
                f"{level.xc} has range-separated exchange or non-local correlation, which is not partitioned into"
                " atoms; choose an LDA, GGA, meta-GGA or global hybrid"
            )
    try:
        with warnings.catch_warnings(action="ignore"):  # PySCF's advice where to look for the basis
            scf.build_molecule(species, geometries[0].get_positions(), level.basis, level.charge, level.spin)
    except (BasisNotFoundError, KeyError, OSError) as error:
        raise ValueError(f"basis {level.basis!r} is not there for all of {' '.join(sorted(set(species)))}") from error


def label_key(species, positions, level):
    """Name of a label: a hash of everything that determines it."""
    content = json.dumps([list(species), np.round(positions, DECIMALS).tolist(), asdict(level)])
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def _label_to_file(species, positions, level, path):
    write_atomically(path, json.dumps(label_geometry(species, positions, level)))


def _start_worker():
    from iqagp_jax.labels.scf import single_thread

    single_thread()
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent():
    # A pool's workers hold its queue open themselves, so those of a killed parent would wait for ever.
    parent_process().join()
    os._exit(1)


def label_geometries(geometries, level, folder, workers=None, progress=lambda items, total: items):
    """Label ASE geometries into ``folder``, one JSON file each; what is there already is not computed again.

    Returns the labels in the order of the geometries. Killing it at any moment loses the geometries in flight only.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tasks = []
    for atoms in geometries:
        species, positions = atoms.get_chemical_symbols(), np.round(atoms.get_positions(), DECIMALS)
        tasks.append((species, positions, folder / f"{label_key(species, positions, level)}.json"))
    missing = [task for task in tasks if not task[2].exists()]
    for _ in progress(_label_missing(missing, level, workers or os.cpu_count()), len(missing)):
        pass
    return [json.loads(path.read_text()) for _, _, path in tasks]


def _label_missing(missing, level, workers):
    """Yield once for every label made."""
    # One process per core with one thread each: BLAS reads this when the worker imports it.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    queue = iter(missing)
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker) as pool:
        running = set()
        try:
            while True:
                for species, positions, path in queue:
                    running.add(pool.submit(_label_to_file, species, positions, level, path))
                    if len(running) == workers:
                        break
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    yield
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a labelling process was killed (out of memory?); run the same command again to go on"
            ) from error


def free_atom_energies(species, level, folder):
    """Energies (eV) of the free atoms of a molecule at its level of theory, by species."""
    energies = {}
    for symbol in sorted(set(species)):
        spin = round(ground_state_magnetic_moments[atomic_numbers[symbol]])
        atom_level = replace(level, charge=0, spin=spin)
        (label,) = label_geometries([Atoms([symbol], positions=np.zeros((1, 3)))], atom_level, folder, workers=1)
        if "rejected" in label:
            raise RuntimeError(f"the free atom {symbol} could not be labelled: {label['rejected']}")
        energies[symbol] = label["energy"]
    return energies


def collect(geometries, labels, level, free_atoms):
    """The `Dataset` of the accepted labels and a list (number of the geometry, reason) of the rejected ones."""
    rejected = [(k, label["rejected"]) for k, label in enumerate(labels) if "rejected" in label]
    kept = [(atoms, label) for atoms, label in zip(geometries, labels, strict=True) if "rejected" not in label]
    if not kept:
        raise ValueError(f"no geometry could be labelled; the first was rejected because {rejected[0][1]}")
    infos = [atoms.info for atoms, _ in kept]
    extra = {}
    for name in level.partitions:
        extra[f"{name}_energies"] = np.array([label["raw"][name] for _, label in kept])
        extra[f"{name}_charges"] = np.array([label["charges"][name] for _, label in kept])
        extra[f"{name}_remainder"] = np.array([label["remainder"][name] for _, label in kept])
    dataset = Dataset(
        species=tuple(geometries[0].get_chemical_symbols()),
        positions=np.round([atoms.get_positions() for atoms, _ in kept], DECIMALS),
        energy=np.array([label["energy"] for _, label in kept]),
        forces=np.array([label["forces"] for _, label in kept]),
        origin={key: np.array([info[key] for info in infos]) for key in ORIGIN if all(key in i for i in infos)},
        extra=extra,
        level={**level.describe(), **{key: infos[0][key] for key in LEVEL if key in infos[0]}},
        free_atoms=free_atoms,
    )
    return dataset.with_partition(level.partitions[0]), rejected
