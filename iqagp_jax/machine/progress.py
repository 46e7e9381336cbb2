"""Progress on stderr."""

import re
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(total, visible=True):
    """Two functions: one moves the bar (``completed``, ``description``), the other prints a line above it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, quiet=not visible), disable=not visible) as bar:
        yield partial(bar.update, bar.add_task("", total=total)), partial(bar.console.print, highlight=False, markup=False)


def track(items, description, total=None):
    """Iterate with a progress bar, which tells where the loop was left before the end: so many items were enough."""
    most = len(items) if total is None else total
    with progress_bar(most) as (show, _):
        show(completed=0, description=description)
        for k, item in enumerate(items, 1):
            try:
                yield item
            except GeneratorExit:
                if k < most:
                    description += f", ended after {k} of at most {most}:"
                show(completed=k, total=k, description=description)
                raise
            show(completed=k)


def in_seconds(text: str) -> float:
    """A time from text: 8h, 90min, 45s or 1h30min. ValueError, in a sentence, for another."""
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)min)?(?:(\d+(?:\.\d+)?)s)?", text.replace(" ", ""))
    seconds = sum(float(n or 0) * unit for n, unit in zip(found.groups(), (3600, 60, 1), strict=True)) if found else 0.0
    if not 0 < seconds < 1e9:
        raise ValueError(f"expected a time as 8h, 90min or 1h30min, found {text!r}")
    return seconds


def in_words(seconds: float) -> str:
    """A time that is not known better than so."""
    unit, name = next((u, n) for u, n in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= 2 * u or u == 1)
    return f"about {max(seconds / unit, 1):.0f} {name}"
