"""Where README had where replicas begin until 2026-12, for this version: `dynamics.starts` from now on."""

from iqagp_jax.dynamics.starts import equilibrium, starts

__all__ = ["equilibrium", "starts"]
