"""Gaussian processes of atomic energies, energies and forces."""
