"""Options of a command from a dataclass of options, see `families.options`, and the docs' table of them."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_type_hints

import typer

from iqagp_jax.cli.console import console


def taking(options: Any, **defaults: Any) -> Callable:
    """A decorator: the command's ``**options`` become one option for each field of a dataclass that has a flag.

    Parameters
    ----------
    options: the dataclass. What is given for a field comes under the field's name, text read by its ``read``.
    defaults: of single fields, where the command has others.
    """
    taken = [f for f in fields(options) if f.metadata.get("flag", f.name)]
    hints = get_type_hints(options)

    def decorate(command: Callable) -> Callable:
        own = [p for p in inspect.signature(command).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        new = [p for f in taken for p in _parameters(f, hints[f.name], defaults.get(f.name, f.default))]

        @wraps(command)
        def called(**given: Any) -> Any:
            for f in taken:
                given[f.name] = _value(f, given.pop(f.name), given.pop(_once(f), None))
            return command(**given)

        asked = [p.replace(kind=p.KEYWORD_ONLY) for p in (*own, *new)]
        called.__signature__ = inspect.Signature(asked)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in asked}
        return called

    return decorate


def flag_of(f: Any) -> str:
    """The name of a field on the command line, without dashes before it."""
    return f.metadata.get("flag", f.name).replace("_", "-")


def _once(f: Any) -> str:
    """The parameter of a field's earlier name."""
    return f"{f.name}_once"


def _parameters(f: Any, hint: Any, default: Any) -> list[inspect.Parameter]:
    """The typer parameter of a field, and a hidden one of its earlier name."""
    kind = _kind(f, hint)
    names = [f"--{flag_of(f)}"]
    if kind is bool and default is not False:
        names = [f"--{flag_of(f)}/--no-{flag_of(f)}"]
    least = f.metadata.get("least") if kind is int or kind is float else None
    found = [_parameter(f.name, kind, default, names, min=least, help=f.metadata["help"])]
    if once := f.metadata.get("once"):
        found.append(_parameter(_once(f), kind, None, [f"--{once}"], min=least, hidden=True))
    return found


def _parameter(name: str, kind: Any, default: Any, names: list[str], **told: Any) -> inspect.Parameter:
    read = kind | None if default is None else kind
    option = typer.Option(*names, **told)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[read, option])


def _kind(f: Any, hint: Any) -> Any:
    """What typer reads a field as: one of its names, text that the field itself reads, or a bool, a number, a word."""
    if f.metadata.get("names"):
        return Literal[f.metadata["names"]]
    if f.metadata.get("read"):
        return str
    (kind,) = [t for t in get_args(hint) or (hint,) if t is not NoneType]
    return kind


def _value(f: Any, value: Any, once: Any) -> Any:
    """What was given for a field, under either name."""
    if once is not None:
        console.print(f"--{f.metadata['once']} is called --{flag_of(f)} now; both are taken in this version")
        value = once
    return f.metadata["read"](value) if isinstance(value, str) and f.metadata.get("read") else value


def table_of(options: Any) -> str:
    """The docs' table of a dataclass of options, as markdown: keyword, option, default, what it is."""
    rows = [("keyword", "option", "default", ""), ("---",) * 4]
    for f in fields(options):
        flag, names = f.metadata.get("flag", f.name), f.metadata.get("names")
        told = f.metadata["help"] + (f" One of {', '.join(names)}." if names else "")
        option = f"`--{flag_of(f)}`" if flag else ""
        rows.append((f"`{f.name}`", option, "" if f.default is None else f"`{f.default}`", told.replace("|", "\\|")))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
