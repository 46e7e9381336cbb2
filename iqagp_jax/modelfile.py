"""Models as files: every array bit for bit in safetensors, the structure as JSON beside them, nothing executable."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from iqagp_jax.atomwise import AtomGP, Atomwise, Moments, PolynomialMean
from iqagp_jax.features import ALF, InverseDistances
from iqagp_jax.files import write_atomically
from iqagp_jax.kernels import (
    RBF,
    Constant,
    Joint,
    Linear,
    Matern52,
    Matern92,
    Periodic,
    Product,
    RBFCyclic,
    Restrict,
    Select,
    Sum,
)
from iqagp_jax.means import ZBL, BornMayer, ConstantMean, SumOfMeans
from iqagp_jax.potential import Model

FORMAT = "iqagp-model-1"

MODELS = (Model, Atomwise, AtomGP, Moments)
FEATURES = (ALF, InverseDistances)
KERNELS = (RBF, Periodic, Matern52, Matern92, RBFCyclic, Linear, Constant, Select, Restrict, Joint, Sum, Product)
MEANS = (ConstantMean, SumOfMeans, BornMayer, ZBL, PolynomialMean)
PARTS = {kind.__name__: kind for kind in MODELS + FEATURES + KERNELS + MEANS}
"""The dataclasses a model file may consist of."""


def save_model(model, path):
    """Write a model to one file, whole or not at all.

    Raises TypeError if a part is not one that can be read back, such as a user's own prior-mean function.
    """
    tensors = {}
    structure = _take_apart(model, "model", tensors)
    metadata = {"iqagp": json.dumps({"format": FORMAT, "structure": structure})}
    write_atomically(path, save(tensors, metadata))


def load_model(path):
    """Read a model as `save_model` wrote it. Raises ValueError, in a sentence, if the file is something else."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a model file, found nothing at {str(path)!r}; `iqagp train` makes one")
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("iqagp", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); was it cut off?") from error
    if header.get("format") != FORMAT:
        raise ValueError(f"expected a model of format {FORMAT}, found {header.get('format')!r} in {path}")
    return _put_together(header["structure"], tensors)


def _take_apart(value, name, tensors):
    """JSON-ready description of a dataclass; its arrays go into ``tensors`` under dotted names."""
    if isinstance(value, np.ndarray):
        tensors[name] = value
        return {"array": name}
    if type(value).__name__ in PARTS:
        parts = {f.name: _take_apart(getattr(value, f.name), f"{name}.{f.name}", tensors) for f in fields(value)}
        return {"type": type(value).__name__, "fields": parts}
    if isinstance(value, tuple) and any(isinstance(item, np.ndarray) or type(item).__name__ in PARTS for item in value):
        return {"tuple": [_take_apart(item, f"{name}.{k}", tensors) for k, item in enumerate(value)]}
    if value is None or isinstance(value, str | int | float | tuple):
        return {"value": value}
    raise TypeError(
        f"{name} is {value!r}, which a model file cannot hold; save the model with a prior mean from iqagp_jax.means"
        " and subtract your own function from the data instead"
    )


def _put_together(description, tensors):
    if "array" in description:
        return tensors[description["array"]]
    if "tuple" in description:
        return tuple(_put_together(item, tensors) for item in description["tuple"])
    if "value" in description:
        return _tuples(description["value"])
    parts = {name: _put_together(part, tensors) for name, part in description["fields"].items()}
    return PARTS[description["type"]](**parts)


def _tuples(value):
    """JSON's lists as the tuples they were."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
