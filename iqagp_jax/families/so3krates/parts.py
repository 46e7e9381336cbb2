"""What a file of SO3krates may hold."""

from iqagp_jax.families.so3krates.model import SO3krates, SO3kratesOfMolecule
from iqagp_jax.families.so3krates.network import MLP, Attention, Layer, Linear, Network, Norm
from iqagp_jax.families.so3krates.options import SO3kratesOptions

PARTS = (SO3krates, SO3kratesOfMolecule, Network, Layer, Attention, MLP, Linear, Norm, SO3kratesOptions)
