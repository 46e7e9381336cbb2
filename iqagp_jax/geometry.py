"""Where README had distances and bonds until 2026-12, for this version: `system.geometry` from now on."""

from iqagp_jax.system.geometry import bond_graph, pair_distances, whole_molecules

__all__ = ["bond_graph", "pair_distances", "whole_molecules"]
