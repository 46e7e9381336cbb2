"""Reference labels from PySCF: self-consistent field, atoms in the molecule, and the workers that make many of them."""
