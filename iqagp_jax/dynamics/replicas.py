"""Many replicas driven at once, spread over devices, in chunks of steps between which a run can be stopped.

What a potential keeps from step to step, such as a neighbour list, may become too small on the way. The chunk in which that
happens is thrown away: the replicas go back to the last step at which it was large enough, get a larger one, and go on.
Which step that is does not depend on the chunks, so a run that is stopped and goes on makes the same numbers.
"""

import time as clock
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, takewhile
from typing import Any, NamedTuple

import jax
import numpy as np

from iqagp_jax.dynamics.ensembles import Dynamics, Frame, Replica, kinetic_temperature
from iqagp_jax.dynamics.folder import from_arrays
from iqagp_jax.machine.devices import agreed, compiled
from iqagp_jax.system.failure import Status, failure_reason

CHUNK_SECONDS = 0.5
"""Wall time of the steps made in one go, between which Ctrl-C and checkpoints take effect."""


class RunState(NamedTuple):
    """All that the future of a run depends on, and the wall time it has taken; what a checkpoint holds."""

    replicas: Replica
    step: Any
    seconds: Any
    enlarged_at: tuple[Any, ...] = ()
    """positions (2R, N, 3) for which the potential's aux was made larger, in turn"""


class Schedule(NamedTuple):
    """When something is due, in steps."""

    frame: int
    """between frames"""
    look: int
    """between looks at the uncertainty"""
    last: int

    def over(self, state: RunState) -> bool:
        """Whether the run is at its end, or at a frame with no replica alive."""
        return bool(state.step >= self.last or (state.step % self.frame == 0 and not alive(state.replicas).any()))

    def next(self, step: int) -> int:
        """Steps to what is due next."""
        return min(self.frame - step % self.frame, self.look - step % self.look, self.last - step)


@dataclass(frozen=True)
class Driver:
    """`Dynamics` of R replicas, compiled for all devices."""

    dynamics: Dynamics
    targets: np.ndarray
    """(R,) K"""
    like: Replica
    """replicas, which have the shapes of all that will come"""

    @cached_property
    def _several(self) -> Callable[..., Any]:
        # Every replica is told how many steps: what is spread over devices has one value a replica.
        def advance(replicas: Replica, targets: Any, steps: Any) -> Any:
            return self.dynamics.advance(replicas, targets, steps[0])

        return compiled(advance, self.like, self.targets, np.ones(len(self.targets), int))

    def advance(self, replicas: Replica, steps: Any) -> tuple[Replica, Frame]:
        """What `Dynamics.advance` does, spread over devices."""
        return self._several(replicas, self.targets, np.full(len(self.targets), steps))

    def overflowed(self, replicas: Replica) -> bool:
        """Whether what the potential keeps of any of them is too small."""
        bound = self.dynamics.bound
        return bound.enlarged is not None and bool(np.asarray(jax.vmap(bound.overflowed)(replicas.aux)).any())

    def enlarged(self, positions: tuple[np.ndarray, ...]) -> "Driver":
        """The same with room for all positions (B, N, 3)."""
        bound = self.dynamics.bound
        assert bound.enlarged is not None, "what cannot overflow has not overflowed"
        dynamics = replace(self.dynamics, bound=replace(bound, aux=bound.enlarged(np.concatenate(positions))))
        return Driver(dynamics, self.targets, _refilled(dynamics, self.like))

    def mended(self, state: RunState, steps: int) -> tuple["Driver", RunState]:
        """With more room, and the state before the overflow that comes in the next ``steps``."""
        fits, lost = 0, steps
        while lost - fits > 1:
            middle = (fits + lost) // 2
            if self.overflowed(self.advance(state.replicas, middle)[0]):
                lost = middle
            else:
                fits = middle
        before, after = (jax.device_get(self.advance(state.replicas, n)[0]) for n in (fits, lost))
        enlarged_at = (*state.enlarged_at, np.concatenate([before.dynamics.position, after.dynamics.position]))
        larger = self.enlarged(enlarged_at)
        replicas = _refilled(larger.dynamics, before)
        if larger.overflowed(larger.advance(replicas, lost - fits)[0]):
            raise RuntimeError(
                f"expected a potential that has room for the geometries at step {state.step + lost} once it was enlarged for"
                " them, found that it overflows again; this is an error of the potential"
            )
        return larger, RunState(replicas, state.step + fits, state.seconds, enlarged_at)

    def resumed(self, state: RunState, arrays: dict[str, np.ndarray]) -> tuple["Driver", RunState]:
        """As a run stood whose checkpoint holds ``arrays``; ``state`` is how it began."""
        names = takewhile(arrays.__contains__, (f"enlarged_at.{k}" for k in count()))
        enlarged_at = tuple(arrays[name] for name in names)
        driver = self.enlarged(enlarged_at) if enlarged_at else self
        return driver, from_arrays(arrays, RunState(driver.like, state.step, state.seconds, enlarged_at))

    def chunks(self, limit: Any, schedule: Schedule, state: RunState) -> Iterator[tuple[RunState, Frame]]:
        """The states of a run on its way to the end, each with its `Frame`: at all frames and looks, else twice a second or so.

        The next steps are asked for before the last are done: no device waits for another one, or for the caller.
        """
        driver, most, began = self, 1, clock.perf_counter()

        def launched(replicas: Replica, step: int) -> tuple[int, Replica, Frame]:
            steps = min(most, schedule.next(step))
            return (step + steps, *driver.advance(replicas, steps))

        coming = launched(state.replicas, state.step)
        while not schedule.over(state):
            step, replicas, frame = coming
            if limit and step % schedule.look == 0:
                replicas, frame = driver.advance(agreed(limit.stop(replicas)), 0)
            coming = launched(replicas, step)
            jax.block_until_ready((replicas, frame))
            if driver.overflowed(replicas):
                driver, state = driver.mended(state, step - state.step)
                coming = launched(state.replicas, state.step)
                began = clock.perf_counter()
                continue
            now = clock.perf_counter()
            spent, began = now - began, now
            # Doubled at most: the first chunks are short, and one may have been held up by something else.
            most = int(agreed(max(1, min(2 * most, int((step - state.step) * CHUNK_SECONDS / spent)))))
            state = state._replace(replicas=replicas, step=step, seconds=state.seconds + spent)
            yield state, frame

    def failures(self, replicas: Replica, limit: Any) -> list[dict[str, Any]]:
        """Of every failed replica its number, time in fs, reason in words and geometry (N, 3)."""
        replicas = jax.device_get(replicas)
        state, masses, dynamics = replicas.dynamics, self.dynamics.system.masses, self.dynamics
        deviations, largest = np.full(len(self.targets), np.nan), np.nan
        if limit:
            deviations, largest = limit.deviations(state.position), limit.largest
        failures = []
        for k in np.flatnonzero(~alive(replicas)):
            time = float(replicas.steps[k] * dynamics.timestep)
            temperature = kinetic_temperature(state.momentum[k], masses, dynamics.degrees_of_freedom)
            known = dynamics.rule, replicas.status[k], state.position[k], time, temperature, self.targets[k]
            reason = failure_reason(*known, deviations[k], largest)
            failures.append({"replica": int(k), "time": time, "reason": reason, "positions": state.position[k]})
        return failures


def alive(replicas: Replica) -> np.ndarray:
    """(R,) which have not failed."""
    return np.asarray(replicas.status) == Status.ALIVE


def _refilled(dynamics: Dynamics, replicas: Replica) -> Replica:
    """The replicas with what the potential keeps made anew for where they are."""

    def refill(replica: Replica) -> Replica:
        return replica._replace(aux=dynamics.kept(replica.dynamics.position, dynamics.bound.aux))

    return jax.jit(jax.vmap(refill))(replicas)
