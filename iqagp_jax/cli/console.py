"""What all commands print with and check paths by."""

import os
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from iqagp_jax.machine.files import output_folder as output_folder
from iqagp_jax.machine.progress import track as track

console = Console()

# Spelled out because type checkers and typer read it; a test holds it to the registry it repeats.
PartitionName = Literal["becke", "hirshfeld", "qtaim"]


def table(title, header, rows):
    """Print a small table."""
    printed = Table(title=title, title_justify="left", title_style="bold")
    for k, name in enumerate(header):
        printed.add_column(name, justify="left" if k == 0 else "right")
    for row in rows:
        printed.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row))
    console.print(printed)


def then(command):
    """The last line of a command: what to do next, as it is typed."""
    console.print(f"[bold]next[/bold]: {escape(command)}", soft_wrap=True, highlight=False)


def only_with(context, **uses):
    """ValueError where an option was given that nothing asks for; ``uses`` are name=(whether it has a use, with what)."""
    for name, (used, what) in uses.items():
        if not used and context.get_parameter_source(name).name != "DEFAULT":
            raise ValueError(f"expected --{name.replace('_', '-')} with {what} only, where it has an effect; leave it out")


def output_file(path):
    """The path, if its folder exists and is writable and it is no folder itself."""
    path = Path(path)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"expected a file in a writable folder, found {path}; choose another name")
    return path
