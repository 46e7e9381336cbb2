"""The reference program's own numbers for SO3krates (../shared/reference/so3krates): every intermediate, energies, forces."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.data import chemical_symbols
from safetensors import safe_open
from safetensors.numpy import load_file

from iqagp_jax import energy_and_forces
from iqagp_jax.families.so3krates.model import SO3krates
from iqagp_jax.families.so3krates.neighbours import all_pairs
from iqagp_jax.families.so3krates.network import MLP, Attention, Layer, Linear, Network
from iqagp_jax.potential import bind
from iqagp_jax.system.system import System

pytestmark = pytest.mark.usefixtures("x64")

CONFIGURATIONS, MOLECULES = ("default", "small"), ("ethanol", "aspirin", "dha")

EXACT, ROUNDED = 1e-9, 1e-5
"""Relative errors of float64 and of float32, in which the bulky arrays of the default configuration are stored."""


def network_of(path):
    """A `Network` with the parameters of one of the reference's files."""
    with safe_open(path, "numpy") as file:
        config = json.loads(file.metadata()["config"])
    found = load_file(path)

    def mlp(name):
        return MLP(*(Linear(found[f"{name}.{k}.kernel"], found[f"{name}.{k}.bias"]) for k in (0, 1)))

    def attention(name):
        filters = mlp(f"{name}.filter_radial"), mlp(f"{name}.filter_spherical")
        return Attention(*filters, found[f"{name}.query"], found[f"{name}.key"])

    def layer(name):
        exchange = Linear(found[f"{name}.exchange.kernel"], found[f"{name}.exchange.bias"])
        return Layer(attention(f"{name}.features"), found[f"{name}.features.value"], attention(f"{name}.vectors"), exchange)

    layers = [layer(f"layers.{n}") for n in range(config["L"])]
    network = Network(
        found["embed"],
        jax.tree.map(lambda *a: np.stack(a), *layers),
        mlp("head"),
        tuple(config["degrees"]),
        config["r_cut"],
        basis_size=config["n_rbf"],
    )
    assert sum(np.size(a) for a in jax.tree.leaves(network)) == config["n_parameters"]
    return network, found["scale"], found["shift"]


@pytest.fixture(scope="module")
def folder(reference_folder):
    found = reference_folder / "so3krates"
    if not found.is_dir():
        pytest.skip(f"the numbers of SO3krates' program not found at {found}")
    return found


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def configuration(request):
    return request.param


@pytest.fixture(scope="module")
def potential(folder, configuration):
    network, scale, shift = network_of(folder / f"{configuration}_parameters.safetensors")
    found = SO3krates(network, scale, shift, ("H", "C", "O"))
    found.check_content()
    return found


@pytest.fixture(scope="module", params=MOLECULES)
def golden(request, folder, configuration):
    found = load_file(folder / f"{configuration}_{request.param}.safetensors")
    found["system"] = System.of([chemical_symbols[z] for z in found["species"]], found["positions"])
    return found


def close(found, expected, tolerance=EXACT, atol=1e-13):
    """Equal within a tolerance of the largest number there is."""
    expected = np.asarray(expected)
    if expected.dtype == np.float32:
        tolerance = max(tolerance, 1e-6)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max() + atol)


def directed(both, pairs, golden):
    """Values of pairs from both of their ends in the order of the reference's directed pairs, receiver first."""
    by_i, by_j = (np.asarray(values) for values in both)
    number = np.zeros((len(golden["species"]),) * 2, int)
    number[pairs.i, pairs.j] = number[pairs.j, pairs.i] = np.arange(len(pairs.i))
    i, j = golden["idx_i"].astype(int), golden["idx_j"].astype(int)
    return np.where((i < j)[:, None], by_i[number[i, j]], by_j[number[i, j]])


def intermediates(network, numbers, pairs):
    """All that the reference tells of a network, by its names; values of pairs as seen from i and from j."""
    edges = network.edges(pairs)
    x, chi = network.embedding[numbers], jnp.zeros((len(numbers), edges.harmonics.shape[1]))
    found = {"x_embedding": x, "cutoff": 2 * (edges.cutoff[:, None],), "radial_basis": 2 * (edges.radial,)}
    found["spherical_harmonics"] = edges.harmonics, edges.parity * edges.harmonics
    for n in range(len(network.layers.value)):
        layer = jax.tree.map(lambda a, n=n: a[n], network.layers)
        alpha, beta = layer.coefficients(x, chi, edges, network.degrees)
        x, chi = layer(x, chi, edges, network.degrees, network.neighbours)
        found |= {f"alpha_features_{n}": alpha, f"alpha_vectors_{n}": beta, f"x_{n}": x, f"chi_{n}": chi}
    return found


def test_every_intermediate(potential, golden):
    network, pairs = potential.network.in_precision(np.float64), all_pairs(golden["positions"])
    found = jax.jit(intermediates)(network, golden["species"], pairs)
    stored = found.keys() & golden.keys()
    assert len(stored) == len(found) or golden["system"].species.count("H") == 32  # of docosahexaenoic acid no pairs
    for name in stored:
        if isinstance(found[name], tuple):
            close(np.squeeze(directed(found[name], pairs, golden)), golden[name])
        else:
            close(found[name], golden[name])


def test_energies_and_forces(potential, golden):
    """In both layouts: all pairs of ethanol and aspirin, a neighbour list of docosahexaenoic acid."""
    bound, _ = bind(potential, golden["system"])
    shares = jax.jit(bound.energies)(golden["positions"], bound.aux)[0]
    np.testing.assert_allclose(shares, golden["atomic_energies"], atol=1e-9)
    energies, forces = energy_and_forces(potential, system=golden["system"])(golden["positions"][None])
    np.testing.assert_allclose(energies, golden["energy"], atol=1e-9)
    close(forces[0], golden["forces"])


def test_in_float32(potential, golden):
    energies, forces = energy_and_forces(potential, np.float32, golden["system"])(golden["positions"][None])
    np.testing.assert_allclose(energies, golden["energy"], atol=3e-6)  # 1e-5 eV would hide a wrong sign of 1/sqrt(2l+1)
    close(forces[0], golden["forces"], ROUNDED)
