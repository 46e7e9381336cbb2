from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms

from iqagp_jax.dynamics import metadynamics
from iqagp_jax.dynamics.metadynamics import Dihedral, Distance, Transfer, WellTempered, choose_variables, parse_variable
from iqagp_jax.units import BOLTZMANN

KT = BOLTZMANN * 300.0


@dataclass(frozen=True)
class X:
    """The x coordinate of the only particle."""

    width = 0.07
    period = np.inf

    def __call__(self, positions):
        return positions[0, 0]


def double_well(positions):
    """Wells at -1 and 1, the left one 1 kT lower, a barrier of 6 kT."""
    x, y, z = positions[0]
    return KT * (6 * (x * x - 1) ** 2 + x / 2 + 5 * (y * y + z * z))


@pytest.mark.physics
def test_free_energy_of_a_double_well():
    """The exact F(x) is the potential's own x part; hills of this width add less than 0.05 kT to its curves."""
    bias = WellTempered((X(),), 300.0, height=0.1 * KT, bias_factor=8.0)
    x = np.linspace(-1.4, 1.4, 57)
    exact = 6 * (x * x - 1) ** 2 + x / 2
    estimates = []
    for seed in range(10):
        _, hills = metadynamics.run(double_well, bias, [[1.0, 0, 0]], [10.0], 1500, 500, 8.0, 2.0, seed)
        with jax.enable_x64(True):
            estimates.append(np.asarray(bias.free_energy(x[:, None], hills)) / KT)
    low = exact - exact.min() < 6
    difference = np.mean(estimates, 0)[low] - exact[low]
    difference -= difference.mean()
    assert np.sqrt(np.mean(difference**2)) < 0.1


@pytest.mark.physics
def test_variance_under_a_restraint():
    """A variable held by k/2 s^2 in a flat potential has the variance kT / k: the dynamics adds no bias of its own."""
    stiffness = 2.0

    def restrained(positions):
        return 0.5 * stiffness * (X()(positions) ** 2 + positions[0, 1] ** 2 + positions[0, 2] ** 2)

    bias = WellTempered((X(),), 300.0, height=0.0)
    variances = [
        metadynamics.run(restrained, bias, np.zeros((1, 3)), [10.0], 1000, 100, 4.0, 5.0, seed)[0].var() for seed in range(8)
    ]
    error = np.std(variances) / np.sqrt(len(variances) - 1)
    assert error < 0.05 * KT / stiffness
    assert abs(np.mean(variances) - KT / stiffness) < 4 * error


def test_collective_variables_have_their_textbook_values():
    with jax.enable_x64(True):
        gauche = np.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 1], [0.5, -np.sqrt(0.75), 1]])
        dihedral = Dihedral((0, 1, 2, 3))
        # Seen along the middle bond the last atom is turned clockwise, which IUPAC counts positive.
        atoms = Atoms("C4", positions=gauche)
        assert float(dihedral(gauche)) % (2 * np.pi) == pytest.approx(np.radians(atoms.get_dihedral(0, 1, 2, 3)))
        assert float(dihedral(gauche * [1, -1, 1])) == pytest.approx(-float(dihedral(gauche)))
        assert np.isfinite(jax.grad(dihedral)(jnp.array([[0.0, 0, k] for k in range(4)]))).all()
        assert float(Distance((0, 2))(gauche)) == pytest.approx(np.sqrt(2))
        assert float(Transfer((0, 1, 3))(gauche)) == pytest.approx(1 - np.sqrt(2))


def test_a_hill_is_seen_across_the_period_and_tempered():
    gauche = np.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 1], [0.5, -np.sqrt(0.75), 1]])
    bias = WellTempered((Dihedral((0, 1, 2, 3)),), 300.0, height=0.1, bias_factor=5.0)
    with jax.enable_x64(True):
        hills = bias.no_hills(2)
        here = bias.values(gauche)
        hills = bias.deposit(hills, gauche)
        assert float(bias.potential(here + 2 * np.pi, hills)) == pytest.approx(0.1, rel=1e-12)
        assert float(bias.potential(here + Dihedral.width, hills)) == pytest.approx(0.1 * np.exp(-0.5), rel=1e-12)
        hills = bias.deposit(hills, gauche)
        assert float(hills.heights[1]) == pytest.approx(0.1 * np.exp(-0.1 / (4 * KT)), rel=1e-12)


def test_variables_of_a_dipeptide_and_of_a_hydrogen_bond():
    from iqagp_jax import load_dataset, sampling

    peptide = sampling.minimise(sampling.starting_geometries("CC(=O)NCC(=O)NC", 1)[0], sampling.xtb(), fmax=0.1)
    found = choose_variables(peptide.get_chemical_symbols(), peptide.get_positions())
    # phi and psi: C-N-CA-C and N-CA-C-N or -O; no amide bond and no methyl group.
    assert {variable.atoms[1:3] for variable in found} == {(3, 4), (4, 5)}
    enol = load_dataset("malondialdehyde")[:1]
    (transfer,) = choose_variables(enol.species, enol.positions[0])
    donor, hydrogen, acceptor = (enol.species[a] for a in transfer.atoms)
    assert (transfer.name, donor, hydrogen, acceptor) == ("transfer", "O", "H", "O")


@pytest.mark.parametrize("text", ["angle(0,1,2)", "distance(0,0)", "dihedral(0,1,2)", "distance(0,7)", "distance 0 1"])
def test_unknown_variables_get_a_sentence(text):
    with pytest.raises(ValueError, match="expected"):
        parse_variable(text, 5)


def test_variables_are_read_from_text():
    assert parse_variable("dihedral(3, 1,2,0)", 4) == Dihedral((3, 1, 2, 0))
