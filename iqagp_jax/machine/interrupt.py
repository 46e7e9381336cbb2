"""Ctrl-C that takes effect where the work can bear it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """A function that tells whether Ctrl-C has been pressed, so that it takes effect between two steps; twice is at once."""
    pressed: list[int] = []

    def press(number: int, stack: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    # Python lets only the main thread have signal handlers, and only it gets Ctrl-C.
    main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGINT, press) if main else None
    try:
        yield lambda: bool(pressed)
    finally:
        if main:
            signal.signal(signal.SIGINT, previous)
