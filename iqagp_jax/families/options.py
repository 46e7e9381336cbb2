"""Options of a family: one frozen dataclass for the keywords of Python, the command line, the docs and the files of models."""

from collections.abc import Callable
from dataclasses import MISSING, field, fields
from inspect import Parameter, Signature
from typing import Any


def option(default: Any, help: str, **told: Any) -> Any:
    """A field of options, with what the command line and the docs say of it.

    Parameters
    ----------
    told: ``names`` (those that may be chosen), ``least`` (a number), ``flag`` (its name on the command line, None where it is
        not there), ``once`` (an earlier name, which is still taken), ``read`` (text -> value, for what is no word or number).
    """
    return field(default=default, metadata={"help": help, **told})


def as_in(other: Any, name: str, **changed: Any) -> Any:
    """The field that another dataclass of options has under this name, or with another ``default``, ``help`` and so on."""
    (same,) = (f for f in fields(other) if f.name == name)
    return option(**{"default": same.default, **same.metadata, **changed})


def check(options: Any) -> None:
    """ValueError, in a sentence, for a name that is not among those of its field, and a number below its least."""
    for f in fields(options):
        value, names, least = getattr(options, f.name), f.metadata.get("names"), f.metadata.get("least")
        if value is None and f.default is None:
            continue
        if names and value not in names:
            raise ValueError(f"expected {f.name} among {', '.join(names)}, found {value!r}")
        if least is not None and value < least:
            raise ValueError(f"expected {f.name} of at least {least}, found {value}")


def signature_of(options: Any, *first: str, **last: Any) -> Signature:
    """That of a function of the arguments ``first``, of the fields of ``options``, and of keywords ``last`` with defaults."""
    given = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in first]
    chosen = [
        Parameter(f.name, Parameter.POSITIONAL_OR_KEYWORD, default=Parameter.empty if f.default is MISSING else f.default)
        for f in fields(options)
    ]
    keywords = [Parameter(name, Parameter.KEYWORD_ONLY, default=default) for name, default in last.items()]
    return Signature([*given, *chosen, *keywords])


def made_of(kind: Callable, given: tuple, options: dict[str, Any]) -> Any:
    """Options of a ``kind``; TypeError, in a sentence, for more than it has and for names that it does not know."""
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    twice = [name for name in known[: len(given)] if name in options]
    unknown = [name for name in options if name not in known]
    if unknown or twice or len(given) > len(known):
        found = ", ".join(unknown) or ", ".join(f"{name} twice" for name in twice) or f"{len(given)} of them"
        raise TypeError(f"expected options among {', '.join(known)}, found {found}")
    return kind(*given, **options)
