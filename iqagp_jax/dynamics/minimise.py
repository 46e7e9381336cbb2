"""Stationary points of a potential: minima by L-BFGS."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

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


_programs: WeakKeyDictionary[Callable, dict[tuple[int, bool], Callable]] = WeakKeyDictionary()
"""By energy function, then by largest number of steps and whether of many: for as long as someone else holds the function."""


def _compiled(energy_fn: Callable, max_steps: int, many: bool) -> Callable:
    """The program for an energy function, which must not hold it: it would live as long as the program, and that by it."""
    programs = _programs.setdefault(energy_fn, {})
    if (max_steps, many) not in programs:
        held = ref(energy_fn)

        def program(positions: jax.Array, max_force: Any) -> Minimum:
            function = held()
            assert function is not None, "whoever asks for the program has the function"
            return _minimise(function, max_steps, positions, max_force)

        one_by_one = lambda geometries, force: jax.lax.map(lambda r: program(r, force), geometries)  # noqa: E731
        programs[max_steps, many] = jax.jit(one_by_one if many else program)
    return programs[max_steps, many]


def _minimise(energy_fn: Callable, max_steps: int, positions: jax.Array, max_force: Any) -> Minimum:
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

    begin = positions, optimiser.init(positions), jnp.zeros((), int)
    positions, state, steps = jax.lax.while_loop(go_on, advance, begin)
    return Minimum(positions, optax.tree.get(state, "value"), force_of(state), steps)


def minimise(energy_fn: Callable, positions: Any, max_steps: int = 500, max_force: float = 1e-3) -> Minimum:
    """Relax positions (N, 3), angstrom, by L-BFGS until no atom feels more than ``max_force`` eV/angstrom.

    Many geometries (B, N, 3) are relaxed one after the other, by one program. Returns a `Minimum`, of many with a
    first axis B; its ``max_force`` tells whether ``max_steps``, one at least, sufficed.
    """
    if max_steps < 1:
        raise ValueError(f"expected at least one step, found max_steps={max_steps}")
    with jax.enable_x64(True):
        positions = jnp.asarray(positions, dtype=jnp.float64)
        return jax.device_get(_compiled(energy_fn, max_steps, positions.ndim == 3)(positions, max_force))
