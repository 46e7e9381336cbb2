import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REFERENCE, SPECIES, rotation

from iqagp_jax.families.gp.features import ALF, InverseDistances, pair_weights
from iqagp_jax.system.frames import alf_features, alf_positions

pytestmark = pytest.mark.usefixtures("x64")

KINDS = [ALF.choose(SPECIES, REFERENCE[None]), InverseDistances(4), InverseDistances(4, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0))]
PLANAR = REFERENCE * [1, 1, 0]
COLLINEAR = np.array([[0.0, 0, 0], [1.1, 0, 0], [2.3, 0, 0], [3.2, 0, 0]])


@pytest.mark.parametrize("features", KINDS)
def test_invariant_under_rotation_and_translation(features):
    moved = REFERENCE @ rotation(0).T + [1.0, -2.0, 3.0]
    np.testing.assert_allclose(features(jnp.asarray(moved)), features(jnp.asarray(REFERENCE)), atol=1e-12)


def test_alf_by_hand():
    # Right-angled frame at the origin; the fourth atom straight above the xy-plane's diagonal.
    positions = jnp.array([[0.0, 0, 0], [2.0, 0, 0], [0, 3.0, 0], [1.0, 1.0, np.sqrt(2.0)]])
    found = alf_features(positions, (0, 1, 2), np.array([3]))
    np.testing.assert_allclose(found, [2, 3, np.pi / 2, 2, np.pi / 4, np.pi / 4], atol=1e-12)


def test_alf_reflection_turns_theta_into_its_supplement():
    features = KINDS[0]
    here, mirrored = features(jnp.asarray(REFERENCE)), features(jnp.asarray(REFERENCE * [1, 1, -1]))
    theta = np.arange(here.shape[1]) % 3 == 1
    theta[:3] = False
    np.testing.assert_allclose(mirrored[:, theta], np.pi - here[:, theta], atol=1e-12)
    assert np.abs(mirrored - here).max() > 1e-2


def test_inverse_distances_do_not_see_reflection():
    features = KINDS[1]
    np.testing.assert_allclose(features(jnp.asarray(REFERENCE * [1, 1, -1])), features(jnp.asarray(REFERENCE)), atol=1e-12)


def test_own_distances_come_first():
    found = InverseDistances(4)(jnp.asarray(REFERENCE))
    own = [1 / np.linalg.norm(REFERENCE[2] - REFERENCE[b]) for b in (0, 1, 3)]
    np.testing.assert_allclose(found[2, :3], own, rtol=1e-12)


def test_weights_are_the_pairs_whoever_sees_them():
    """Pairs 01, 02, 03, 12, 13, 23, of which the third atom sees 20, 21, 23, 01, 03, 13."""
    weights = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    plain, weighted = (InverseDistances(4, w)(jnp.asarray(REFERENCE)) for w in (None, weights))
    np.testing.assert_allclose(weighted[0] / plain[0], weights, rtol=1e-12)
    np.testing.assert_allclose(weighted[2] / plain[2], [2, 4, 6, 1, 3, 5], rtol=1e-12)


def test_weights_of_relative_changes():
    """With a long decay all features are about one; near pairs keep more of it with a short one."""
    np.testing.assert_allclose(pair_weights(np.array([1.0, 3.0]), np.inf), [1, 3])
    np.testing.assert_allclose(pair_weights(np.array([1.0, 3.0]), 2.0), [np.exp(-0.5), 3 * np.exp(-1.5)])


@pytest.mark.parametrize("features", KINDS)
@pytest.mark.parametrize("positions", [PLANAR, COLLINEAR])
def test_finite_gradients_where_angles_are_special(features, positions):
    jacobian = jax.jacobian(features)(jnp.asarray(positions))
    assert np.isfinite(features(jnp.asarray(positions))).all()
    assert np.isfinite(jacobian).all()


@pytest.mark.parametrize("features", KINDS)
def test_jacobian_is_the_difference_quotient(features):
    positions, step = jnp.asarray(REFERENCE), 1e-6
    jacobian = jax.jacobian(features)(positions)
    shift = jnp.zeros((4, 3)).at[2, 1].set(step)
    quotient = (features(positions + shift) - features(positions - shift)) / (2 * step)
    np.testing.assert_allclose(jacobian[..., 2, 1], quotient, atol=1e-8)


def test_alf_positions_inverts_alf_features():
    features = KINDS[0]
    for frame, others, row in zip(features.frames, features.others, features(jnp.asarray(REFERENCE)), strict=True):
        back = alf_positions(row, frame, others)
        distances = np.linalg.norm(back[:, None] - back, axis=-1)
        np.testing.assert_allclose(distances, np.linalg.norm(REFERENCE[:, None] - REFERENCE, axis=-1), atol=1e-10)
        np.testing.assert_allclose(alf_features(back, frame, others), row, atol=1e-10)


def test_frames_avoid_collinear_atoms():
    # H-C-N with a methyl group: the nearest neighbours of C and N lie on one line.
    positions = np.array([[0.0, 0, 0], [1.16, 0, 0], [-1.46, 0, 0], [-1.8, 1.0, 0], [-1.8, -0.5, 0.9]])
    for frame in ALF.choose(("C", "N", "C", "H", "H"), positions[None]).frames:
        a, b = positions[frame[1]] - positions[frame[0]], positions[frame[2]] - positions[frame[0]]
        assert np.linalg.norm(np.cross(a, b)) / np.linalg.norm(a) / np.linalg.norm(b) > 0.25


def test_linear_molecules_have_no_local_frames():
    dioxide = np.array([[[0.0, 0, 0], [1.16, 0, 0], [-1.16, 0, 0]]])
    for positions in (dioxide, dioxide + 0.01 * np.random.default_rng(0).normal(size=(5, 3, 3))):
        with pytest.raises(ValueError, match="take inverse distances for a linear molecule"):
            ALF.choose(("C", "O", "O"), positions)


def test_too_few_atoms_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="at least 3 atoms"):
        ALF.choose(("H", "H"), np.zeros((1, 2, 3)))
