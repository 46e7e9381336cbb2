"""Models as files: every array bit for bit in safetensors, the structure as JSON beside them, nothing executable.

A family of potentials names the dataclasses that its models consist of in ``PARTS`` of its module ``families.<name>.parts``; a
class that has ``from_fields`` takes the fields of older files as they were. The file tells a checksum of all that it holds.
"""

import json
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path

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
    """Read a model as `save_model` wrote it. Raises ValueError, in a sentence, if the file is something else, or damaged."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a model file, found nothing at {str(path)!r}; `iqagp train` makes one")
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("iqagp", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); was it cut off?") from error
    if header.get("format") not in READ:
        raise ValueError(f"expected a model of format {FORMAT}, found {header.get('format')!r} in {path}")
    if header["format"] == FORMAT and header.get("checksum") != checksum(json.dumps(header.get("structure")), tensors):
        raise ValueError(f"expected the numbers that were saved, found others in {path}: its checksum is wrong; take a copy")
    return _put_together(header["structure"], tensors)


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


def _put_together(description, tensors):
    if "array" in description:
        return tensors[description["array"]]
    if "tuple" in description:
        return tuple(_put_together(item, tensors) for item in description["tuple"])
    if "value" in description:
        return _tuples(description["value"])
    kind = parts().get(description["type"])
    if kind is None:
        raise ValueError(
            f"expected parts that this version knows in a model file, found {description['type']}; install a later version"
        )
    known = {name: _put_together(part, tensors) for name, part in description["fields"].items()}
    return getattr(kind, "from_fields", lambda fields: kind(**fields))(known)


def _tuples(value):
    """JSON's lists as the tuples they were."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
