"""Imports run downwards only, and the core knows neither quantum chemistry nor pictures nor the command line."""

import ast
from pathlib import Path

import pytest

import iqagp_jax

FLOORS = [
    {"units", "files", "lock", "progress"},
    {"geometry", "harmonics", "devices"},
    {"symmetry"},
    {"features", "kernels", "means", "dataset", "data"},
    {"gp", "images"},
    {"hyperparameters", "atomwise", "joint", "inference"},
    {"iterative", "potential"},
    {"fit_joint"},
    {"fit", "modelfile", "stationary", "robustness", "trajectory", "electrostatics"},
    {"dynamics", "checkpoint", "validation"},
    {"simulate"},
    {"starts", "plots", "metadynamics"},
    {"formats"},
    {"labels", "sampling", "ase_calculator"},
    {"verdict", "bench"},
    {"active"},
    {"demo", "cli", "__main__", "__init__"},
]

CORE = set().union(*FLOORS[:9]) | {"dynamics", "checkpoint", "simulate"}

OUTSIDE_THE_CORE = {"pyscf", "numba", "tblite", "rdkit", "matplotlib", "typer", "znh5md", "submitit", "distributed"}

ROOT = Path(iqagp_jax.__file__).parent


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT).parts[0].removesuffix(".py"), path


def imported(path):
    """(top-level package, module of ours or None) of every import in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "iqagp_jax":
                names = [f"iqagp_jax.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            package, *rest = name.split(".")
            yield package, rest[0] if package == "iqagp_jax" and rest else None


def floor(name):
    return next(k for k, names in enumerate(FLOORS) if name in names)


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: str(value).rsplit("/", 1)[-1])
def test_imports_run_downwards(name, path):
    for package, ours in imported(path):
        if ours and ours != name:
            assert floor(ours) < floor(name) or name in FLOORS[-1], f"{name} imports {ours}"
        assert not (name in CORE and package in OUTSIDE_THE_CORE), f"{name} imports {package}"
