"""Models as files: every array bit for bit in safetensors, the structure as JSON beside them, nothing executable.

A family of potentials names the dataclasses that its models consist of in ``PARTS`` of its module ``families.<name>.parts``; a
class that has ``from_fields`` takes the fields of older files as they were. The file tells a checksum of all that it holds;
files of before have none, and none of the fields that a class names as ``WITH_CHECKSUM``.
What it holds must make sense, too: a part that has ``check_content`` says so, when it is read and never later.
"""

import json
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from iqagp_jax.families import FAMILIES
from iqagp_jax.machine.files import checksum, write_atomically

FORMAT = "iqagp-model-2"

READ = ("iqagp-model-1", FORMAT)
"""Formats that are read; the first has no checksum."""


@cache
def parts():
    """The dataclasses that a model file may consist of, by name."""
    families = [import_module(f"iqagp_jax.families.{name}.parts").PARTS for name in FAMILIES]
    shared = [import_module(f"iqagp_jax.{name}").PARTS for name in ("compose", "electrostatics")]
    return {_name(kind): kind for kinds in (*shared, *families) for kind in kinds}


def _name(kind):
    return getattr(kind, "FILE_NAME", kind.__name__)


def save_model(model, path):
    """Write a model to one file, whole or not at all.

    Raises TypeError if a part is not one that can be read back, such as a user's own prior-mean function.
    """
    tensors: dict[str, np.ndarray] = {}
    structure = _take_apart(model, "model", tensors)
    header = {"format": FORMAT, "checksum": checksum(json.dumps(structure), tensors), "structure": structure}
    write_atomically(path, save(tensors, {"iqagp": json.dumps(header)}))


def load_model(path):
    """Read a model as `save_model` wrote it.

    Raises ValueError, in a sentence, if the file is something else or damaged, or if what it holds is no model: arrays that do
    not fit together, numbers that are not finite or make no sense.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise FileNotFoundError(f"expected a model file, found {found} at {str(path)!r}; `iqagp train` makes one")
    header, tensors = _read(path)
    told = header.get("format") if isinstance(header, dict) else header
    if told not in READ:
        raise ValueError(f"expected a model of format {FORMAT}, found {told!r} in {path}")
    structure = header.get("structure")
    if told == FORMAT and header.get("checksum") != checksum(json.dumps(structure), tensors):
        raise ValueError(f"expected the numbers that were saved, found others in {path}: its checksum is wrong; take a copy")
    try:
        model = _put_together(structure, tensors, told)
        if not _is_part(model):
            raise ValueError(f"expected a potential, found {type(model).__name__}")
        if tensors:
            raise ValueError(f"expected the arrays of a {type(model).__name__} alone, found also {', '.join(sorted(tensors))}")
    except ValueError as error:
        raise ValueError(f"{path} holds no model that could be used: {error}; take a copy, or a later version") from error
    return model


def _read(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """Our part of the header, and the arrays by name."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("iqagp", "{}"))
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, ValueError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); was it cut off?") from error


def _take_apart(value, name, tensors):
    """JSON-ready description of a dataclass; its arrays go into ``tensors`` under dotted names."""
    if isinstance(value, np.ndarray):
        tensors[name] = value
        return {"array": name}
    if _is_part(value):
        described = {f.name: _take_apart(getattr(value, f.name), f"{name}.{f.name}", tensors) for f in fields(value)}
        return {"type": _name(type(value)), "fields": described}
    if isinstance(value, tuple) and any(isinstance(item, np.ndarray) or _is_part(item) for item in value):
        return {"tuple": [_take_apart(item, f"{name}.{k}", tensors) for k, item in enumerate(value)]}
    if value is None or isinstance(value, str | int | float | tuple):
        return {"value": value}
    raise TypeError(
        f"{name} is {value!r}, which a model file cannot hold; save the model with a prior mean from"
        " iqagp_jax.families.gp.means and subtract your own function from the data instead"
    )


def _is_part(value):
    return type(value) is parts().get(_name(type(value)))


def _put_together(description: Any, tensors: dict[str, np.ndarray], told: str) -> Any:
    """What `_take_apart` took apart; arrays that have found their place are taken out of ``tensors``."""
    match description:
        case {"array": str(name)} if name in tensors:
            return tensors.pop(name)
        case {"tuple": list(items)}:
            return tuple(_put_together(item, tensors, told) for item in items)
        case {"value": value}:
            return _tuples(value)
        case {"type": str(name), "fields": dict(found)}:
            if name not in parts():
                raise ValueError(f"expected parts that this version knows in a model file, found {name}")
            return _part(name, {field: _put_together(part, tensors, told) for field, part in found.items()}, told)
    words = json.dumps(description)
    raise ValueError(f"expected a part of a model or an array of the file, found {words[:60]}{' ...' * (len(words) > 60)}")


def _part(name: str, found: dict[str, Any], told: str) -> Any:
    """A part of its fields, whose content makes sense, in a file of the format that it told."""
    kind = parts()[name]
    if told != FORMAT and any(found.get(field) is not None for field in getattr(kind, "WITH_CHECKSUM", ())):
        raise ValueError(f"expected a checksum in a file of a {name} as it is now, found a file of format {told}")
    try:
        part = getattr(kind, "from_fields", lambda fields: kind(**fields))(found)
        getattr(part, "check_content", lambda: None)()
    except (TypeError, KeyError, AttributeError, IndexError, StopIteration) as error:
        raise ValueError(f"expected what makes a {name}, found something else ({error})") from error
    return part


def _tuples(value):
    """JSON's lists as the tuples they were."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
