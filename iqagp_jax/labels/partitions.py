"""The registry of partitions: name -> function ``WaveFunction -> Quadrature``. Another partition is one more entry."""

from iqagp_jax.labels import fuzzy, qtaim

PARTITIONS = {"becke": fuzzy.becke, "hirshfeld": fuzzy.hirshfeld, "qtaim": qtaim.qtaim}
