"""Options of a family: one frozen dataclass for the keywords of Python, the command line, the docs and the files of models."""

from collections.abc import Callable
from dataclasses import MISSING, field, fields
from inspect import Parameter, Signature
from math import isfinite
from numbers import Integral, Real
from types import NoneType
from typing import Any, SupportsFloat, get_args, get_type_hints


def option(default: Any, help: str, **told: Any) -> Any:
    """A field of options, with what the command line and the docs say of it.

    Parameters
    ----------
    told: ``names`` (those that may be chosen), ``least`` and ``most`` (numbers), ``flag`` (its name on the command line, None
        where it is not there), ``once`` (an earlier name, which is still taken), ``read`` (text -> value, for what is no word
        or number), ``write`` (value -> text, where it has such a default).
    """
    return field(default=default, metadata={"help": help, **told})


def as_in(other: Any, name: str, **changed: Any) -> Any:
    """The field that another dataclass of options has under this name, or with another ``default``, ``help`` and so on."""
    (same,) = (f for f in fields(other) if f.name == name)
    return option(**{"default": same.default, **same.metadata, **changed})


def names_of(text: str) -> tuple[str, ...]:
    """Names with commas between."""
    return tuple(name.strip() for name in text.split(","))


def check(options: Any) -> None:
    """ValueError, in a sentence, for a value of another kind than its field's, a name or a number that it may not have."""
    hints = get_type_hints(type(options))
    for f in fields(options):
        value, told = getattr(options, f.name), f.metadata
        if value is None and f.default is None:
            continue
        kinds = set(get_args(hints[f.name]) or (hints[f.name],)) - {NoneType}
        if names := told.get("names"):
            if not isinstance(value, str) or value not in names:
                raise ValueError(f"expected {f.name} among {', '.join(names)}, found {value!r}")
        elif len(kinds) == 1 and (wanted := _lacking(value, *kinds)):
            raise ValueError(f"expected {f.name} to be {wanted}, found {value!r}")
        if "least" in told and value < told["least"]:
            raise ValueError(f"expected {f.name} of at least {told['least']}, found {value}")
        if "most" in told and value > told["most"]:
            raise ValueError(f"expected {f.name} of at most {told['most']}, found {value}")


def _lacking(value: Any, kind: Any) -> str:
    """What a value should be, in words, where it is not of a kind."""
    is_bool = isinstance(value, bool) or type(value).__name__ == "bool"  # NumPy's as well
    if kind is bool:
        return "" if is_bool else "True or False"
    if kind is int:
        return "" if isinstance(value, Integral) and not is_bool else "a whole number"
    if kind is float:
        return "" if isinstance(value, Real) and not is_bool and isfinite(value) else "a finite number"
    return ""


def is_share(value: Any) -> bool:
    """Whether it is a number between 0 and 1, as a noise is that is a share of a variance."""
    return isinstance(value, SupportsFloat) and 0 < float(value) < 1


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
