"""Warnings that point to the user's own line."""

import sys
import warnings

OURS = __name__.split(".")[0]


def warn(sentence: str) -> None:
    """A warning that names the line that called into this package, however deep in it the reason was found."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] == OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(sentence, stacklevel=level)
