import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqagp_jax import fit_gp
from iqagp_jax.families.fflux.fit import fit_atom
from iqagp_jax.families.gp import regression
from iqagp_jax.families.gp import search as search_module
from iqagp_jax.families.gp.kernels import RBF
from iqagp_jax.families.gp.search import (
    HOLD_OUT,
    Search,
    initial_lengthscales,
    maximise,
    objective,
    random_starts,
    search_hyperparameters,
)

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (2, 60, 2))
Y = np.sin(3 * X[..., 0]) + 0.3 * X[..., 1] ** 2 + 2.0
NOISE = 1e-6
LABELS = (("name", "TOY"), ("atom", "O1"), ("property", "iqa"))


def build(parameters):
    return RBF(jnp.exp(parameters))


def test_initial_length_scales_know_angles():
    """An angle spread over the whole circle has a point on the circle that deviates by 1."""
    angles = np.linspace(-np.pi, np.pi, 100, endpoint=False)
    found = initial_lengthscales(jnp.array([[angles, angles]]).swapaxes(1, 2), np.array([True, False]))
    np.testing.assert_allclose(found[0] / np.sqrt(2), [1.0, np.std(angles)], rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_the_best_mean_is_the_best():
    """A free constant mean: no other constant has a higher likelihood, and the gradient is that of differences."""
    residual = jnp.array(Y[0])

    def value(parameters, free_mean=True, shift=0.0):
        covariance = regression.covariance_matrix(build(parameters), X[0], NOISE)
        return regression.log_likelihood(covariance, residual - shift, True, free_mean)

    at = jnp.array([-0.3, 0.4])
    factor = jnp.linalg.cholesky(regression.covariance_matrix(build(at), X[0], NOISE))
    best = regression.generalised_least_squares_mean(factor, residual)
    assert value(at) == pytest.approx(float(value(at, False, best)), abs=1e-9)
    assert max(value(at, False, best + d) for d in (-0.05, 0.05)) < value(at)
    step = 1e-5
    numeric = [(value(at + step * d) - value(at - step * d)) / (2 * step) for d in np.eye(2)]
    np.testing.assert_allclose(jax.grad(value)(at), numeric, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_hold_out_loss_is_the_error_on_every_fifth_point():
    value = objective(build, NOISE, "hold-out")(jnp.zeros(2), jnp.array(X[0]), jnp.array(Y[0]))
    held = np.arange(60) % HOLD_OUT == 4
    k = np.exp(-0.5 * ((X[0][:, None] - X[0][None]) ** 2).sum(-1))
    w = np.linalg.solve(k[~held][:, ~held] + NOISE * np.eye(48), Y[0][~held])
    assert np.exp(-value) == pytest.approx(np.sqrt(np.mean((k[held][:, ~held] @ w - Y[0][held]) ** 2)), rel=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("optimiser", "steps"), [("lbfgs", 60), ("adam", 30)])
def test_every_start_climbs_and_the_best_is_kept(optimiser, steps):
    search = Search("marginal", optimiser, max_steps=steps, n_starts=3, seed=2, tolerance=1e-7)
    goal = objective(build, NOISE, "marginal")
    data = jnp.array(X), jnp.array(Y - Y.mean(1, keepdims=True))
    starts = random_starts(jnp.ones((2, 2)), 3, 2)
    found = maximise(goal, data, starts, search)
    for a in range(2):
        begun = np.array([goal(start[a], data[0][a], data[1][a]) for start in starts])
        assert (found.values[:, a] >= begun).all() and found.values[:, a].max() > begun.max()
        assert goal(found.parameters[a], data[0][a], data[1][a]) == pytest.approx(float(found.values[:, a].max()), rel=1e-9)
        if optimiser == "adam":  # which needs more steps than a test should take
            continue
        slope = jax.grad(goal)(found.parameters[a], data[0][a], data[1][a])
        assert np.abs(slope).max() < 0.05
    assert (np.diff(found.trace, axis=0) >= 0).all()
    assert (found.evaluations > 0).all()


@pytest.mark.usefixtures("x64")
def test_a_feature_that_starts_too_far_to_be_felt_comes_back(monkeypatch):
    """A thousand times its spread: in the logarithm of the length scale the gradient is a millionth of what it should be."""
    data = (
        build,
        NOISE,
        Search(n_starts=1, max_steps=60),
        jnp.array(X),
        jnp.array(Y - Y.mean(1, keepdims=True)),
        np.zeros(2, bool),
    )
    monkeypatch.setattr(search_module, "random_starts", lambda lengthscales, *_: jnp.log(lengthscales)[None])
    near = search_hyperparameters(*data).values
    monkeypatch.setattr(
        search_module, "random_starts", lambda lengthscales, *_: jnp.log(lengthscales * 1000.0 ** np.eye(2)[1])[None]
    )
    np.testing.assert_allclose(search_hyperparameters(*data).values, near, atol=0.01)


@pytest.mark.usefixtures("x64")
def test_features_that_do_not_matter_are_soon_done_with():
    x = jnp.array(np.random.default_rng(3).uniform(-1, 1, (1, 80, 4)))
    y = jnp.sin(3 * x[..., 0]) + 0.3 * x[..., 1] ** 2
    search = Search(max_steps=100, tolerance=1e-3)
    found = search_hyperparameters(build, NOISE, search, x, y - y.mean(), np.zeros(4, bool))
    assert len(found.trace) < 20  # 34 steps of the logarithm did not end them
    assert np.isfinite(found.parameters).all() and (found.parameters[0, 2:] > 10).all()


def test_random_starts_are_ever_more_scattered():
    starts = random_starts(jnp.array([[1.0, 10.0], [2.0, 20.0]]), 5, 3) - jnp.log(jnp.array([[1.0, 10.0], [2.0, 20.0]]))
    low, high = np.log(search_module.RANDOM_FACTORS)
    apart = np.ptp(starts, axis=2)
    assert apart[0].max() < 1e-6 and (apart <= 2 * np.log(search_module.SCATTER) * np.linspace(0, 1, 5)[:, None] + 1e-6).all()
    assert low < starts.min() + np.log(2) and starts.max() - np.log(2) < high
    assert np.ptp(starts.mean(2), axis=0).min() > 0.5 * (high - low)


@pytest.mark.usefixtures("x64")
def test_a_search_begins_at_the_likeliest_starts():
    goal, data = objective(build, NOISE, "marginal"), (jnp.array(X), jnp.array(Y - Y.mean(1, keepdims=True)))
    starts = random_starts(jnp.ones((2, 2)), 6, 0)
    begun = np.asarray(jax.jit(jax.vmap(jax.vmap(goal), (0, None, None)))(starts, *data))
    found = maximise(goal, data, starts, Search("marginal", "adam", max_steps=1, n_starts=2))
    assert found.values.shape == (2, 2)
    assert (found.values >= np.sort(begun, axis=0)[::-1][:2] - 1e-9).all()
    kept = maximise(goal, data, starts, Search("marginal", max_steps=0, n_starts=2))
    np.testing.assert_allclose(kept.values, begun.max(0)[None], rtol=1e-9)


def test_adam_and_lbfgs_find_the_same_model():
    x = RNG.uniform(1, 2, (40, 3))
    y = -75 + 0.01 * np.sin(2 * x.sum(1))
    models = [fit_atom(x, y, (0, 1, 2), LABELS, optimiser=o, max_steps=n)[0] for o, n in (("lbfgs", 100), ("adam", 300))]
    values = [float(dict(model.labels)["marginal"]) for model in models]
    assert values[0] == pytest.approx(values[1], abs=0.05)


def test_transfer_learning_ends_where_all_points_lead():
    """Seeded on 20 of 60 points and relaxed on all, the likelihood is that of a search on all."""
    x = RNG.uniform(1, 2, (60, 3))
    y = -75 + 0.01 * np.sin(2 * x.sum(1))
    straight, seeded = (fit_atom(x, y, (0, 1, 2), LABELS, n_seed=n)[1] for n in (None, 20))
    assert seeded.values.max() == pytest.approx(straight.values.max(), abs=0.05)


def test_options_reach_the_molecule_fit(dataset):
    fitted = fit_gp(dataset, targets=("atomic_energies",), max_steps=3, loss="hold-out", n_starts=2, seed=4, n_seed=20)
    assert fitted.made_by.options.loss == "hold-out"
    assert np.isfinite(fitted.weights).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"loss": "rmse"}, "expected loss among concentrated, marginal, hold-out, found 'rmse'"),
        ({"optimiser": "sgd"}, "expected optimiser among lbfgs, adam, found 'sgd'"),
        ({"n_starts": -1}, "expected n_starts of at least 0, found -1"),
        ({"n_seed": 3}, "expected n_seed of at least 10, found 3"),
    ],
)
def test_bad_options_get_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Search(**options)
