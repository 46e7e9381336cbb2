"""The wings are held apart: what each room may not know of, and imports that run downwards only."""

import ast
from pathlib import Path

import pytest

import iqagp_jax

ROOT = Path(iqagp_jax.__file__).parent

BELOW = {
    "machine": set(),
    "system": {"machine"},
    "data": {"machine", "system"},
    "potential": {"machine", "system", "data"},
    "families": {"machine", "system", "data", "potential"},
    "electrostatics": {"machine", "system", "data", "potential"},
    "compose": {"machine", "system", "data", "potential"},
    "dynamics": {"machine", "system", "data", "potential"},
    "formats": {"machine", "system", "data", "families"},
    "labels": {"machine", "system", "data", "formats"},
    "references": {"machine", "system", "data", "potential", "labels"},
}
"""The rooms of ours that a wing may import beside itself and ``units``; the others are above all of these."""

ABOVE = {"verdict", "active", "making", "bench", "demo", "cli", "plots"}

QUANTUM_CHEMISTRY, PICTURES, JOBS = {"pyscf", "numba", "tblite", "rdkit"}, {"matplotlib"}, {"submitit", "distributed"}
HANDS = {"typer", "rich"}

FOREIGN = {
    "machine": QUANTUM_CHEMISTRY | PICTURES | JOBS | {"typer"},
    "families": QUANTUM_CHEMISTRY | PICTURES | JOBS | HANDS,
    "dynamics": QUANTUM_CHEMISTRY | PICTURES | JOBS | HANDS,
    "labels": PICTURES | HANDS,
    "verdict": QUANTUM_CHEMISTRY | JOBS | HANDS,
}
FOREIGN |= dict.fromkeys(("system", "data", "potential", "compose", "electrostatics", "units"), FOREIGN["families"])
"""Packages of others that a wing does without."""


def rooms():
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT).parts[0].removesuffix(".py"), path


def imported(path):
    """Names of all modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize(("room", "path"), list(rooms()), ids=lambda value: str(value).removeprefix(str(ROOT)))
def test_wings_are_apart(room, path):
    for name in imported(path):
        package, *rest = name.split(".")
        assert package not in FOREIGN.get(room, ()), f"{room} imports {package}"
        if package == "iqagp_jax" and rest and room in BELOW:
            assert rest[0] in BELOW[room] | {room, "units"}, f"{room} imports {name}"
        if package == "iqagp_jax" and rest and room not in ABOVE and not path.name.startswith("__"):
            assert rest[0] not in ABOVE - {room}, f"{room} imports {name}"


def test_families_do_not_know_each_other_but_by_their_parts():
    """FFLUX' models are made of the Gaussian processes' kernels; nothing goes the other way."""
    for path in (ROOT / "families" / "gp").glob("*.py"):
        assert not any(name.startswith("iqagp_jax.families.fflux") for name in imported(path)), path
