"""Fits of one property of one atom, as FEREBUS makes them."""

from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.data.scale import ENERGIES, all_electrons
from iqagp_jax.families.fflux.models import AtomGP, PolynomialMean, is_length
from iqagp_jax.families.fflux.options import AtomOptions
from iqagp_jax.families.gp import regression
from iqagp_jax.families.gp.kernels import build_kernel
from iqagp_jax.families.gp.search import search_hyperparameters
from iqagp_jax.families.options import is_share, made_of
from iqagp_jax.machine.warn import warn
from iqagp_jax.system.elements import parse_atom
from iqagp_jax.units import BOHR, HARTREE

FEREBUS_NOISE = 1e-10
"""FEREBUS' nugget, with signal variance 1."""


def by_ferebus(likelihood, loss, n):
    """A log likelihood of n points as FEREBUS' files have it, which leave n/2 (1 + ln 2 pi) out of a concentrated one."""
    return likelihood + (n / 2 * (1 + np.log(2 * np.pi)) if loss == "concentrated" else 0.0)


def _check_unit(y, atom, symbol, property):
    """Warn where atomic energies are no hartrees: many times those of the free atom, all of whose electrons count."""
    if property != "iqa":
        return
    expected = all_electrons([symbol]) / HARTREE
    if (ratio := np.abs(y).mean() / abs(expected)) > 5:
        unit = min(ENERGIES, key=lambda unit: abs(np.log(ratio * ENERGIES[unit] / HARTREE)))
        warn(
            f"expected energies of {atom} in hartree, about {expected:.4g} each, found {y.mean():.4g} in the mean; if they are"
            f" in {unit}, divide them by {HARTREE / ENERGIES[unit]:.8g}"
        )


def fit_atom(x, y, frame, labels, kernel="rbf", noise=FEREBUS_NOISE, unit=HARTREE, progress=lambda steps: steps, **options):
    """Fit one property of one atom as FEREBUS does: an `AtomGP` and what the search `Found`.

    Args:
        x: (n, 3N - 6) ALF features in bohr and radian.
        y: (n,) the property, in hartree for iqa.
        frame: (centre, x-axis, xy-plane) atom, counted from 0.
        labels: names of ``system`` (name), ``atom`` and ``property``, as (name, value) pairs.
        kernel: "rbf" on all features as they are, as FEREBUS does, or "rbf-periodic" with the phi periodic.
        noise: nugget, in units of the signal variance 1.
        unit: of y in the project's units: eV for hartree.
        options: others of `AtomOptions`. A marginal likelihood has the sample mean, a concentrated one the generalised
            least-squares mean.
    """
    symbol, _ = parse_atom(dict(labels)["atom"])
    search = made_of(AtomOptions, (kernel,), options).search
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    n, d = x.shape if x.ndim == 2 else (0, 0)
    if n < 2 or d < 3 or d % 3 or y.shape != (n,):
        raise ValueError(f"expected features (n, 3N - 6) and n values, at least two, found {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()) or np.ptp(y) == 0:
        raise ValueError("expected finite features and finite values that differ, found others; check the training set")
    _check_unit(y, dict(labels)["atom"], symbol, dict(labels)["property"])
    if not is_share(noise):
        raise ValueError(f"expected a noise between 0 and 1 (the signal variance is 1), found {noise!r}")
    angular = (np.arange(d) > 2) & (np.arange(d) % 3 == 2) & (kernel == "rbf-periodic")
    free_mean = search.loss == "concentrated"
    with jax.enable_x64(True):
        offset = np.mean(y)

        def build(log_lengthscale):
            return build_kernel(kernel, jnp.exp(log_lengthscale), angular)

        points, residual = jnp.asarray(x)[None], jnp.asarray(y - offset)[None]
        found = search_hyperparameters(build, noise, search, points, residual, angular, free_mean, progress)
        fitted = build(found.parameters[0])
        factor = jnp.linalg.cholesky(regression.covariance_matrix(fitted, points[0], noise))
        if free_mean:
            offset += regression.generalised_least_squares_mean(factor, residual[0])
        notes = [("program", f"iqagp_jax {version('iqagp-jax')}"), (search.loss, f"{found.values.max():.10g}")]
        if search.loss != "hold-out":
            notes.append(("likelihood", f"{by_ferebus(float(found.values.max()), search.loss, n):.10g}"))
        model = AtomGP(
            frame=frame,
            n_atoms=d // 3 + 2,
            kernel=fitted,
            mean=PolynomialMean(np.asarray(offset), np.zeros(d), np.zeros(d)),
            x=x,
            y=y,
            weights=np.asarray(regression.weights(factor, y - offset)),
            x_scaling=(np.zeros(d), np.ones(d)),
            y_scaling=(np.zeros(()), np.ones(())),
            units=(np.where(is_length(d), BOHR, 1.0), np.array(unit)),
            noise=noise,
            labels=(*labels, *notes),
        )
        return jax.device_get((model, found))
