"""Stationary points of a potential: minima by L-BFGS."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended."""

    positions: jax.Array
    """(N, 3) angstrom"""
    energy: jax.Array
    """eV"""
    max_force: jax.Array
    """largest force on an atom, eV/angstrom"""
    steps: jax.Array
    """L-BFGS steps taken"""


@partial(jax.jit, static_argnums=(0, 2))
def _minimise(energy_fn, positions, max_steps, max_force):
    optimiser = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(energy_fn)

    def force_of(state):
        return jnp.linalg.norm(optax.tree.get(state, "grad"), axis=-1).max()

    def go_on(carry):
        _, state, step = carry
        return (step < max_steps) & ((step == 0) | (force_of(state) > max_force))

    def advance(carry):
        positions, state, step = carry
        value, gradient = value_and_grad(positions, state=state)
        updates, state = optimiser.update(gradient, state, positions, value=value, grad=gradient, value_fn=energy_fn)
        return optax.apply_updates(positions, updates), state, step + 1

    positions, state, steps = jax.lax.while_loop(go_on, advance, (positions, optimiser.init(positions), 0))
    return Minimum(positions, optax.tree.get(state, "value"), force_of(state), steps)


def minimise(energy_fn, positions, max_steps=500, max_force=1e-3):
    """Relax positions (N, 3), angstrom, by L-BFGS until no atom feels more than ``max_force`` eV/angstrom.

    Returns a `Minimum`; its ``max_force`` tells whether ``max_steps``, one at least, sufficed.
    """
    if max_steps < 1:
        raise ValueError(f"expected at least one step, found max_steps={max_steps}")
    with jax.enable_x64(True):
        return jax.device_get(_minimise(energy_fn, jnp.asarray(positions, dtype=jnp.float64), max_steps, max_force))
