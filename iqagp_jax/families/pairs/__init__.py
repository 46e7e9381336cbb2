"""Pair potentials: the smallest family, for tests of the contract and as an example of it."""
