"""Where README had FEREBUS' files until 2026-12, for this version: `families.fflux.files` from now on."""

from iqagp_jax.families.fflux.files import read_csv, read_folder, read_model, read_moments, write_folder, write_model

__all__ = ["read_csv", "read_folder", "read_model", "read_moments", "write_folder", "write_model"]
