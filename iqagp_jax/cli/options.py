"""Options of a command from a dataclass of options, see `families.options`, and the docs' table of them."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import wraps
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_type_hints

import typer

from iqagp_jax.cli.console import console


def taking(*kinds: Any, **defaults: Any) -> Callable:
    """A decorator: the command's ``**options`` become one option for each field of dataclasses that has a flag.

    Parameters
    ----------
    kinds: the dataclasses. What is given for a field comes under the field's name, text read by its ``read``. A field that
        several have is one option, as the first of them tells it; `of_kind` says which are whose.
    defaults: of single fields, where the command has others.
    """
    named: dict[str, tuple[Any, Any, str | None]] = {}
    for options in kinds:
        hints = get_type_hints(options)
        for f in fields(options):
            if f.metadata.get("flag", f.name):
                named.setdefault(f.name, (f, hints[f.name], getattr(options, "PANEL", None)))
    taken = [f for f, _, _ in named.values()]

    def decorate(command: Callable) -> Callable:
        own = [p for p in inspect.signature(command).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        new = [
            parameter
            for f, hint, panel in named.values()
            for parameter in _parameters(f, hint, panel, defaults.get(f.name, f.default))
        ]

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


def of_kind(context: Any, kind: Any, others: Iterable[Any], given: dict[str, Any], chosen: str) -> dict[str, Any]:
    """What was ``given`` for the fields of one dataclass among several that a command takes.

    ValueError, in a sentence, where something was given that only ``others`` have; ``chosen`` are the words that chose it.
    """
    mine = {f.name for f in fields(kind)}
    for f in (f for other in others for f in fields(other)):
        sources = [context.get_parameter_source(name) for name in (f.name, _once(f))]
        if f.name not in mine and any(source is not None and source.name != "DEFAULT" for source in sources):
            raise ValueError(f"expected options that {chosen} has, found --{flag_of(f)}, which another has; leave it out")
    return {name: value for name, value in given.items() if name in mine}


def flag_of(f: Any) -> str:
    """The name of a field on the command line, without dashes before it."""
    return f.metadata.get("flag", f.name).replace("_", "-")


def _once(f: Any) -> str:
    """The parameter of a field's earlier name."""
    return f"{f.name}_once"


def _parameters(f: Any, hint: Any, panel: str | None, default: Any) -> list[inspect.Parameter]:
    """The typer parameter of a field, and a hidden one of its earlier name."""
    kind = _kind(f, hint)
    names = [f"--{flag_of(f)}"]
    if kind is bool and default is not False:
        names = [f"--{flag_of(f)}/--no-{flag_of(f)}"]
    least = f.metadata.get("least") if kind is int or kind is float else None
    told = {"min": least, "help": f.metadata["help"], "rich_help_panel": panel}
    found = [_parameter(f.name, kind, _as_text(f, default), names, **told)]
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


def _as_text(f: Any, value: Any) -> Any:
    """A value as it is typed, where the field has ``write`` for it."""
    return f.metadata["write"](value) if value is not None and "write" in f.metadata else value


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
        rows.append(
            (f"`{f.name}`", option, "" if f.default is None else f"`{_as_text(f, f.default)}`", told.replace("|", "\\|"))
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
