"""What a file of a pair potential may hold."""

from iqagp_jax.families.pairs.models import BondedMorse, NeighbourMorse

PARTS = (BondedMorse, NeighbourMorse)
