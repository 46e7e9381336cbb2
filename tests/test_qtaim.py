"""Topological atoms: symmetry, additivity, surfaces crossed twice, maxima without a nucleus."""

import numpy as np
import pytest

from iqagp_jax.labels import iqa, qtaim, scf
from iqagp_jax.labels.label import label_geometry
from iqagp_jax.labels.partitions import PARTITIONS
from iqagp_jax.labels.plan import LabelPlan

pytestmark = pytest.mark.labels

WATER = np.array([[0.0, 0.0, 0.1173], [0.0, 0.7572, -0.4692], [0.0, -0.7572, -0.4692]])


def wave_function(species, positions, basis="6-31g", xc="hf"):
    return iqa.WaveFunction(scf.converge(scf.mean_field(scf.build_molecule(species, positions, basis), xc)))


@pytest.fixture(scope="module")
def water():
    return wave_function("OHH", WATER, "6-31g(d)", "b3lyp")


@pytest.fixture(scope="module")
def quadrature(water):
    return qtaim.qtaim(water)


@pytest.fixture(scope="module")
def atoms(water, quadrature):
    return water.integrate(quadrature)


@pytest.fixture(scope="module")
def surrogate(water):
    return qtaim.follow_density(water)


def test_energies_and_electrons_are_additive(water, atoms):
    # The bars of the issue for nine atoms are 0.5 mHa and 0.0005 electrons.
    assert atoms.energy.sum() == pytest.approx(water.mf.e_tot, abs=1e-4)
    assert atoms.population.sum() == pytest.approx(10, abs=5e-5)


def test_equivalent_hydrogens_are_equal_and_positive(atoms):
    assert atoms.energy[1] == pytest.approx(atoms.energy[2], abs=2e-5)
    assert atoms.population[1] == pytest.approx(atoms.population[2], abs=2e-5)
    assert 0.3 < atoms.population[1] < 0.6


def test_exact_exchange_is_a_share_of_exchange_and_correlation(water, atoms):
    exchange = -0.25 * 0.2 * np.sum(water.mf.get_k() * water.density_matrix)
    assert atoms.exact_exchange.sum() == pytest.approx(exchange, abs=2e-5)


def test_the_laplacian_integrates_to_zero_in_every_basin(water, quadrature):
    """int_A laplacian(rho) is the flux through a surface that no gradient crosses (Bader's definition of an atom)."""
    alpha, _ = iqa.occupied_orbitals(water.mf)
    laplacian = []
    for points in np.array_split(quadrature.coords, 50):
        phi = np.einsum("xga,ai->xgi", water.mol.eval_gto("GTOval_cart_deriv2", points), alpha)
        laplacian.append(4 * np.sum(phi[0] * phi[[4, 7, 9]] + phi[1:4] ** 2, axis=(0, 2)))
    # Becke's cells of the same molecule are off by 0.1 and more.
    np.testing.assert_allclose(quadrature.weights @ np.concatenate(laplacian) / 4, 0, atol=3e-4)


def test_hydrogen_molecule_is_cut_by_its_mirror_plane():
    wave = wave_function(["H", "H"], [[0, 0, 0], [0.5, 0.3, 0.4]])
    s = qtaim.follow_density(wave)
    bond = s.centres[1] - s.centres[0]
    directions, _ = qtaim._lebedev(194)
    for ray, _, end in qtaim._ray_segments(0, directions, s):
        along = directions[int(ray)] @ bond / (bond @ bond)
        if along > 0.1:
            assert end * along == pytest.approx(0.5, abs=5e-4)
        elif along <= 0:
            assert end == qtaim.RAY_END


def test_rotated_rays_are_added_where_electrons_are_missing(water, monkeypatch):
    monkeypatch.setattr(qtaim, "OUTER_ANGULAR", {"H": 194, "O": 302})
    monkeypatch.setattr(qtaim, "SMALL_ANGULAR", 0)
    mended = water.integrate(qtaim.qtaim(water))
    monkeypatch.setattr(qtaim, "TURNS", qtaim.TURNS[:1])
    poor = water.integrate(qtaim.qtaim(water))
    assert abs(poor.population.sum() - 10) > 2 * qtaim.MISSING
    assert abs(mended.population.sum() - 10) < qtaim.MISSING
    assert abs(mended.energy.sum() - water.mf.e_tot) < 0.5 * abs(poor.energy.sum() - water.mf.e_tot)


def test_a_ray_may_enter_a_basin_again(surrogate):
    """Rays from one hydrogen through the oxygen's basin into the tail of its own: as fine steps find it."""
    directions, _ = qtaim._lebedev(302)
    rows = np.array(qtaim._ray_segments(1, directions, surrogate))
    again = np.flatnonzero(np.bincount(rows[:, 0].astype(int)) > 1)
    assert len(again) > 0
    for ray in again:
        segments = rows[rows[:, 0] == ray, 1:]
        radii = np.arange(surrogate.radii[1], qtaim.RAY_END, 0.05)
        inside = np.any((segments[:, :1] < radii) & (radii < segments[:, 1:]), axis=0)
        points = surrogate.centres[1] + radii[:, None] * directions[ray]
        owners = np.array([qtaim._basin(*point, surrogate)[0] for point in points])
        assert np.mean((owners == 1) != inside) < 0.01


def test_the_mesh_of_the_density_is_the_density(water):
    axes = [np.linspace(-3, 3, 7), np.linspace(-2, 4, 8), np.linspace(-4, 2, 9)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    ao = water.mol.eval_gto("GTOval_cart", points)
    expected = np.einsum("gm,mn,gn->g", ao, water.density_matrix, ao)
    np.testing.assert_allclose(np.exp(qtaim._log_density(water, axes)).ravel(), expected, rtol=1e-9)


def test_a_maximum_without_a_nucleus_is_refused():
    # Li2 has one at its bond's centre.
    positions = np.array([[0, 0, 0], [0, 0, 2.67]])
    with pytest.raises(scf.LabelError, match="non-nuclear attractor"):
        qtaim.qtaim(wave_function(["Li", "Li"], positions, "6-31g"))


def test_a_label_by_topological_atoms():
    plan = LabelPlan(basis="6-31g", partitions=("qtaim", "becke"))
    label = label_geometry(["H", "H"], [[0, 0, 0], [0, 0, 0.74]], plan)
    assert label["charges"]["qtaim"] == pytest.approx([0, 0], abs=1e-4)
    assert set(label["raw"]) == {"qtaim", "becke"}
    assert set(PARTITIONS) >= set(label["raw"])


def test_every_piece_of_a_ray_segment_is_integrated():
    start = np.random.default_rng(0).uniform(0.3, 6, 2000)
    segments = np.column_stack([start, np.where(np.arange(2000) % 2, 13.0, start + 0.9)])
    rows, _, weights = qtaim._segment_points(segments)
    np.testing.assert_allclose(np.bincount(rows, weights), segments[:, 1] - segments[:, 0], rtol=1e-12)
