"""Families of potentials, a folder each; no module above this folder asks for a family by name."""

FAMILIES = ("gp", "fflux", "so3krates", "pairs")
"""Folders here, each with ``parts.py``: what its models consist of."""
