"""A system of atoms: geometry, symmetry, when it is broken, and the harmonics of its multipoles."""
