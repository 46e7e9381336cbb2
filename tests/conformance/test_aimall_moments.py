"""AIMAll's moments of water's atoms (../shared/reference/aimall_water) are ours: the same components, signs and frames."""

import csv
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.io import read

from iqagp_jax.electrostatics import local_moments
from iqagp_jax.families.gp.features import ALF
from iqagp_jax.labels import fuzzy, iqa, scf
from iqagp_jax.system.harmonics import component_names, translated
from iqagp_jax.units import BOHR

FRAMES = ((0, 1, 2), (1, 0, 2), (2, 0, 1))


@pytest.fixture(params=["0000", "0001"])
def water(reference_folder, request):
    """ASE atoms and AIMAll's moments (3, 25), with the nuclear charge."""
    folder = reference_folder / "aimall_water" / request.param
    moments = []
    for name, charge in (("o1", 8), ("h2", 1), ("h3", 1)):
        values = re.findall(r"^ *Q\[[0-4],.*=(.*)$", (folder / f"{name}.int").read_text(), re.MULTILINE)
        moments.append(np.array(values, dtype=float) + charge * np.eye(1, 25)[0])
    return read(folder / f"WATER_MONOMER{request.param}.xyz"), np.array(moments)


@pytest.mark.labels
def test_other_atoms_of_the_same_density_have_the_same_sum(water):
    """Becke's atoms and AIMAll's differ, the molecule's moments about the origin do not: all 25, mixed by the shifts."""
    atoms, aimall = water
    species, positions = atoms.get_chemical_symbols(), atoms.get_positions()
    mf = scf.converge(scf.mean_field(scf.build_molecule(species, positions, "6-31+g(d,p)"), "b3lyp"))
    ours = iqa.integrate_atoms(mf, {"becke": fuzzy.becke})["becke"].multipoles
    found, expected = (translated(moments, positions / BOHR).sum(0) for moments in (ours, aimall))
    # AIMAll's basins miss a little of the density far out, which counts as r^l.
    tolerance = [1e-5, 5e-5, 3e-4, 1e-3, 5e-3]
    for name, value, other in zip(component_names(4), found, expected, strict=True):
        assert value == pytest.approx(other, abs=tolerance[int(name[1])]), name


def test_local_frames_are_those_of_ffluxs_training_sets(water, reference_folder):
    """Another basis set and the nearest geometry, so only signs agree; all that is odd in z vanishes in a planar molecule."""
    atoms, moments = water
    with jax.enable_x64(True):
        local = np.asarray(local_moments(moments, FRAMES, atoms.get_positions()))
        here = np.asarray(ALF(FRAMES)(jnp.asarray(atoms.get_positions() / BOHR)))
    names = component_names(4)
    odd = [k for k, name in enumerate(names) if (int(name[1]) - int(name[2])) % 2]
    np.testing.assert_allclose(local[:, odd], 0, atol=2e-3)
    for atom, name in enumerate(("O1_EXAMPLE", "H2", "H3")):
        path = reference_folder / "ferebus/water" / f"WATER_{name}_TRAINING_SET.csv"
        rows = list(csv.DictReader(path.read_text().splitlines()))
        features, q = (np.array([[row[key] for key in keys] for row in rows], float) for keys in (("f1", "f2", "f3"), names))
        theirs = q[np.argmin(((features - here[atom]) ** 2).sum(1))]
        large = np.abs(theirs) > 0.1
        assert large.sum() >= 6
        np.testing.assert_array_equal(np.sign(local[atom, large]), np.sign(theirs[large]))
