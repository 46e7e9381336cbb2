"""The command line: one command a task, each a thin door to the library; a module for each kind of task."""

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from iqagp_jax.cli import console, labelling, making, models, points, runs, verdicts

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Gaussian-process potentials of atomic energies: make data, train, validate, simulate.",
)
app.command()(making.make)
app.command()(labelling.sample)
app.command()(labelling.label)
app.command(hidden=True)(labelling.label_xtb)
app.add_typer(labelling.campaign_app, name="campaign")
app.command()(models.train)
app.command()(models.train_atom)
app.command()(models.convert)
app.command()(models.validate)
app.command()(points.relax)
app.command()(points.frequencies)
app.command()(runs.simulate)
app.command()(runs.export)
app.command()(verdicts.robustness)
app.command()(verdicts.active)
app.command()(runs.bench)


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("iqagp-demo")):
    """The main job on embedded data: train, validate, fifty replicas at 500 K, pictures and a report."""
    from iqagp_jax.cli.demo import run_demo

    run_demo(out)


def main():
    """Run the command line; bad input is answered by one sentence and exit code 2.

    The environment variable IQAGP_TRACEBACK shows the traceback instead.
    """
    warnings.showwarning = lambda message, *_: console.console.print(f"[bold]warning[/bold]: {escape(str(message))}")
    try:
        app()
    except (ValueError, OSError, RuntimeError, TypeError, ImportError) as error:
        if os.environ.get("IQAGP_TRACEBACK"):
            raise
        print(f"error: {in_a_sentence(error)}", file=sys.stderr)
        sys.exit(2)


def in_a_sentence(error):
    """What an error says; of a file that the system refuses, which file, and why."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        why = (error.strerror or "").lower()
        return f"expected a file that can be read and written, found {error.filename}: {why}; move it away, or name another"
    return str(error)
