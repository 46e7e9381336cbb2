"""What a file of FFLUX' models may hold beside the Gaussian processes' kernels."""

from iqagp_jax.families.fflux.models import AtomGP, Atomwise, Moments, PolynomialMean

PARTS = (Atomwise, AtomGP, Moments, PolynomialMean)
