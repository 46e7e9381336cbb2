"""What all commands print with and check paths by."""

from typing import Literal

from rich.console import Console, ConsoleDimensions
from rich.markup import escape
from rich.table import Table

from iqagp_jax.machine.files import output_file as output_file
from iqagp_jax.machine.files import output_folder as output_folder
from iqagp_jax.machine.progress import track as track

# Spelled out because type checkers and typer read it; a test holds it to the registry it repeats.
PartitionName = Literal["becke", "hirshfeld", "qtaim"]

MOST = 1_000_000
"""Geometries, replicas, runs, workers: more are a slip of the finger."""

NARROWEST = 16
"""Characters of the column that is folded where a table is wider than the terminal, at least."""


class Printer(Console):
    """As wide as the terminal; in a file or pipe as wide as what is printed: nothing there is wrapped."""

    @property  # type: ignore[misc]
    def size(self) -> ConsoleDimensions:
        return super().size if self.is_terminal else ConsoleDimensions(100_000, 25)


console = Printer()


def table(title, header, rows):
    """Print a small table. Numbers stay whole; where it is too wide its headers break between words, then its widest text."""
    cells = [[_cell(value) for value in row] for row in rows]
    columns = [[row[k] for row in cells] for k in range(len(header))]
    if title:
        console.print(f"[bold]{escape(title)}[/bold]", highlight=False)
    printed = Table()
    for k, (name, column, width) in enumerate(zip(header, columns, _widths(header, columns), strict=True)):
        text = k == 0 or any(" " in cell for cell in column)
        printed.add_column(escape(name), justify="left" if text else "right", width=width, overflow="fold")
    for row in cells:
        printed.add_row(*map(escape, row))
    console.print(printed)


def _cell(value):
    """Three digits of a number, all before the point of a large one."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.3g}"


def _widths(header, columns):
    """Characters of each column."""
    room = console.width - 3 * len(header) - 1
    content = [max(map(len, column), default=0) for column in columns]
    widths = [max(len(name), width) for name, width in zip(header, content, strict=True)]
    if sum(widths) > room:
        widths = [max(*map(len, name.split()), width) for name, width in zip(header, content, strict=True)]
    if sum(widths) > room:
        k = widths.index(max(widths))
        widths[k] = max(NARROWEST, room - sum(widths) + widths[k])
    return widths


def then(command):
    """The last line of a command: what to do next, as it is typed."""
    console.print(f"[bold]next[/bold]: {escape(command)}", soft_wrap=True, highlight=False)


def only_with(context, **uses):
    """ValueError where an option was given that nothing asks for; ``uses`` are name=(whether it has a use, with what)."""
    for name, (used, what) in uses.items():
        if not used and context.get_parameter_source(name).name != "DEFAULT":
            raise ValueError(f"expected --{name.replace('_', '-')} with {what} only, where it has an effect; leave it out")
