"""Gaussian processes of single atoms as FFLUX has them: FEREBUS' files, and fits as FEREBUS makes them."""
