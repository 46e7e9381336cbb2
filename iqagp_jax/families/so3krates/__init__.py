"""SO3krates, a Euclidean transformer: for many atoms, and for several molecules in one model."""
