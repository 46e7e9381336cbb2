"""Where README had the failure rule until 2026-12, for this version: `system.failure` from now on."""

from iqagp_jax.system.failure import Status, covalent_bonds, failure_reason, failure_rule, failure_status

__all__ = ["Status", "covalent_bonds", "failure_reason", "failure_rule", "failure_status"]
