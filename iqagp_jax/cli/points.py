"""Stationary points of a model: minima, and the vibrations about them."""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from iqagp_jax.cli.console import console, only_with, output_file, table, then
from iqagp_jax.units import KCAL_MOL

FAR = 1.0
"""kcal/mol: an energy that is less certain is told."""

SAME_ENERGY = 0.01
"""kcal/mol within which two minima may be one."""

Model = Annotated[Path, typer.Argument(help="Model file.")]
MaxSteps = Annotated[int, typer.Option(min=1, help="L-BFGS steps at most.")]


def relax(
    model: Model,
    geometries: Annotated[Path, typer.Argument(help="XYZ or extxyz file of the molecule's geometries.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="extxyz file of the minima, the lowest first.")],
    max_force: Annotated[float, typer.Option(help="Largest force on an atom in the end, eV/Å.")] = 1e-3,
    max_steps: MaxSteps = 1000,
):
    """Relax geometries and tell the different minima that they lead to."""
    from ase import Atoms
    from ase.io import write

    from iqagp_jax.dynamics.checks import require_positive
    from iqagp_jax.dynamics.minimise import minimise
    from iqagp_jax.modelfile import load_model
    from iqagp_jax.potential import energy_fn
    from iqagp_jax.verdict.structure import same_structure

    output = output_file(output)
    require_positive("a force in eV/angstrom", max_force)
    loaded, begin = load_model(model), positions_of(model, geometries)
    found = minimise(energy_fn(loaded), begin, max_steps, max_force)
    positions, energies = np.asarray(found.positions), np.asarray(found.energy)
    still = np.asarray(found.max_force) <= max_force
    kept: list[int] = []
    for k in np.argsort(energies).tolist():
        near = [m for m in kept if energies[k] - energies[m] < SAME_ENERGY * KCAL_MOL]
        if still[k] and not any(same_structure(positions[k], positions[m]) for m in near):
            kept.append(k)
    if not kept:
        raise ValueError(
            f"expected a minimum within {max_steps} steps, found none of {len(begin)}, the least force left"
            f" {found.max_force.min():.2g} eV/Å; allow more --max-steps"
        )
    infos = [{"energy": float(energies[k]), "max_force": float(found.max_force[k]), "start": k + 1} for k in kept]
    frames = [Atoms(loaded.species, positions[k], info=info) for k, info in zip(kept, infos, strict=True)]
    write(output, frames, format="extxyz")
    rows = [
        (str(n), (energies[k] - energies[kept[0]]) / KCAL_MOL, f"{found.max_force[k]:.1g}", int(found.steps[k]), str(k + 1))
        for n, k in enumerate(kept, 1)
    ]
    header = ["minimum", "energy, kcal/mol", "largest force, eV/Å", "steps", "from geometry"]
    table(f"{output}: {len(kept)} different minima from {len(begin)} geometries", header, rows)
    if lost := int((~still).sum()):
        console.print(f"[bold]warning[/bold]: {lost} did not come to rest within {max_steps} steps and are left out")
    tell_uncertainty(loaded, positions[kept])
    then(f"iqagp frequencies {model} --geometry {output}")


def frequencies(
    context: typer.Context,
    model: Model,
    geometry: Annotated[
        Path | None, typer.Option(help="XYZ file, whose first geometry is taken. Default: the model's own minimum.")
    ] = None,
    relaxed: Annotated[
        bool, typer.Option("--relax/--no-relax", help="Relax it first, or take it as it is, as a saddle point.")
    ] = True,
    temperature: Annotated[float, typer.Option(help="K, of the thermochemistry.")] = 298.15,
    pressure: Annotated[float, typer.Option(help="Pa, of the thermochemistry.")] = 101325.0,
    symmetry_number: Annotated[int, typer.Option(min=1, help="Of the rotations of the rigid molecule.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers to this file.")] = None,
):
    """Frequencies of the small vibrations about a stationary point, and the thermochemistry of an ideal gas."""
    from iqagp_jax.dynamics.checks import check_temperatures, require_positive
    from iqagp_jax.dynamics.minimise import minimise
    from iqagp_jax.dynamics.normal_modes import NormalModes
    from iqagp_jax.machine.files import write_atomically
    from iqagp_jax.modelfile import load_model
    from iqagp_jax.potential import energy_and_forces, energy_fn, system_of

    only_with(context, relaxed=(geometry is not None, "--geometry"))
    check_temperatures((temperature,), 1)
    require_positive("a pressure in Pa", pressure)
    json_file = json_file and output_file(json_file)
    loaded = load_model(model)
    positions = system_of(loaded).positions if geometry is None else positions_of(model, geometry)[0]
    if relaxed:
        positions = minimise(energy_fn(loaded), positions, 2000, 1e-5).positions
    (energy,), (forces,) = energy_and_forces(loaded)(positions[None])
    left = float(np.linalg.norm(forces, axis=-1).max())
    modes = NormalModes.of(loaded, positions)
    gas = modes.thermochemistry(float(energy), temperature, pressure, symmetry_number)
    table(
        f"{model}: {len(modes.wavenumbers)} vibrations of {modes.atoms.get_chemical_formula()}",
        ["mode", "1/cm"],
        [(str(k), f"{w:.1f}" if w > 0 else f"{-w:.1f}i") for k, w in enumerate(modes.wavenumbers, 1)],
    )
    told = {
        "energy_eV": float(energy),
        "zero_point_energy_kcal_mol": gas["zero_point_energy"] / KCAL_MOL,
        "enthalpy_eV": gas["enthalpy"],
        "entropy_cal_mol_K": gas["entropy"] / KCAL_MOL * 1000,
        "free_energy_eV": gas["free_energy"],
    }
    table(
        f"ideal gas at {temperature:g} K and {pressure:g} Pa, symmetry number {symmetry_number}",
        ["", ""],
        [(name.replace("_", " "), f"{value:.4f}") for name, value in told.items()],
    )
    if left > 1e-3:
        console.print(f"[bold]warning[/bold]: no stationary point: a force of {left:.2g} eV/Å is left, frequencies mean little")
    if imaginary := int((modes.wavenumbers < 0).sum()):
        console.print(f"{imaginary} imaginary, left out of the thermochemistry: no minimum")
    tell_uncertainty(loaded, positions[None])
    if json_file:
        given = {"temperature_K": temperature, "pressure_Pa": pressure, "symmetry_number": symmetry_number}
        there = {"positions_A": modes.system.positions.tolist(), "max_force_eV_A": left}
        whole = {"wavenumbers_per_cm": modes.wavenumbers.tolist(), **told, **given, **there}
        write_atomically(json_file, json.dumps(whole, indent=1))


def positions_of(model, path):
    """Positions (n, N, 3) of a file's geometries, which must be of the model's atoms."""
    from iqagp_jax.labels.plan import geometries_of
    from iqagp_jax.modelfile import load_model

    return np.array([atoms.positions for atoms in geometries_of(path, load_model(model).species)])


def tell_uncertainty(model, positions):
    """Warn where a model is uncertain of its energies at positions (n, N, 3): it has left what it learned."""
    from iqagp_jax.potential import uncertainty

    if known := uncertainty(model):
        sigma = np.sqrt(np.asarray(known.energy(positions))) / KCAL_MOL
        if far := [f"{k + 1} ({s:.2g} kcal/mol)" for k, s in enumerate(sigma) if s > FAR]:
            console.print(
                f"[bold]warning[/bold]: the model is uncertain of the energy of number {', '.join(far)}: it is far from what"
                " was learned; label it (`iqagp label`) before you believe it"
            )
