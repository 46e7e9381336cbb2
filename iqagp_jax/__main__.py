"""``python -m iqagp_jax`` is the command line."""

from iqagp_jax.cli import main

main()
