"""What a run leaves in its folder beside the trajectory, so that it can be told from others, go on, and be understood.

| file               | what                                                                                  |
| ------------------ | ------------------------------------------------------------------------------------- |
| ``run.json``       | the options, written before the run begins: another run is known by another one         |
| ``checkpoint.npz`` | a pytree of arrays, bit for bit, that the rest of the run follows from                  |
| ``run.log``        | what happened, a line an event                                                          |
| ``failures.extxyz``| the geometries at which replicas failed                                                 |

Each is replaced as a whole or not at all.
"""

import io
import json
from datetime import datetime
from pathlib import Path

import jax
import numpy as np
from ase import Atoms
from ase.io.extxyz import XYZError

from iqagp_jax.data.content import SMALLEST, numbers, one_molecule
from iqagp_jax.dynamics.trajectory import piece_paths, read_piece
from iqagp_jax.machine.archives import BROKEN_ARCHIVE, packed, unpacked
from iqagp_jax.machine.files import BROKEN_FILE, clear_unfinished, write_atomically
from iqagp_jax.system.failure import Status

DESCRIPTION, CHECKPOINT, LOG, FAILURES = "run.json", "checkpoint.npz", "run.log", "failures.extxyz"

TOLERANCE = 1e-6
"""Geometries (angstrom), their energies (eV) and the like are the same within this: other processors round otherwise."""


TOLD = {"time_ps", "timestep_fs", "temperatures_K", "species", "starts", "bonds", "bond_lengths", "near", "held"}
"""What all descriptions tell."""

UNTOLD = ("kinds", "model", "precision", "charge", "spin", "molecules", "cell", "at_rest")
"""What folders of before 2026-12 do not tell: where only one of two runs tells it, they may be the same."""

NOTES = ("time_ps", "model", "shortest_period_fs", "training_energies_eV")
"""What a run does not follow from: how long it is to be, which file its potential was read from, what it is judged by."""


def check_same_run(directory, description):
    """ValueError, in a sentence, unless the folder holds no run or that of the ``description``, perhaps a shorter one.

    Parameters
    ----------
    description: name -> number, string, None or list of numbers, nested or not; ``time_ps`` is the length.
    """
    directory = Path(directory)
    for name in (DESCRIPTION, CHECKPOINT, LOG, FAILURES):
        if (directory / name).exists() and not (directory / name).is_file():
            raise ValueError(f"expected a file {name} in {directory}, found a folder; move it away")
    read_failures(directory)
    if not (directory / DESCRIPTION).exists():
        if piece_paths(directory):
            raise ValueError(
                f"expected an empty folder or a run to go on with, found a trajectory without {DESCRIPTION} in"
                f" {directory}; choose another folder, or remove it"
            )
        return
    try:
        there = json.loads((directory / DESCRIPTION).read_text())
        compared = [name for name in description if name not in NOTES and (name in there or name not in UNTOLD)]
        different = [name for name in compared if _differ(there.get(name), description[name])]
        shorter = description["time_ps"] < there["time_ps"]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, OSError) as error:
        raise ValueError(f"expected the description of a run, found {directory / DESCRIPTION} ({error!r})") from error
    words = [_difference(name, there.get(name), description[name]) for name in different + ["time_ps"] * shorter]
    if words:
        raise ValueError(
            f"expected the options of the run in {directory}, found a different {', '.join(words)}; repeat its command,"
            " where only the time may be longer, or choose another folder"
        )
    if piece_paths(directory) and not (directory / CHECKPOINT).exists():
        raise ValueError(f"expected {CHECKPOINT} beside the trajectory in {directory}, found none; restore it")


def read_description(directory):
    """The description of the run in a folder; None where there is none, ValueError where it is something else."""
    path = Path(directory) / DESCRIPTION
    if not path.exists():
        return None
    try:
        there = json.loads(path.read_text())
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"expected the description of a run, found {path} ({error!r}); restore it") from error
    if not isinstance(there, dict) or not there.keys() >= TOLD:
        raise ValueError(f"expected the description of a run, found something else in {path}; restore it")
    try:
        _check_description(there)
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"expected the description of a run, found nonsense in {path} ({error}); restore it") from error
    return there


def _check_description(there):
    """An error unless it tells times, atoms, temperatures, starts and a failure rule that go together."""
    for name in ("time_ps", "timestep_fs"):
        numbers(name, there[name], (), SMALLEST)
    species = there["species"].split()
    n_atoms = one_molecule(tuple(species), there["starts"][0])
    replicas = len(numbers("temperatures_K", there["temperatures_K"], (None,), least=0))
    numbers("starts", there["starts"], (replicas, n_atoms, 3))
    bonds = numbers("bonds", there["bonds"], (None, 2) if there["bonds"] else (0,), least=0)
    numbers("bond_lengths", there["bond_lengths"], (len(bonds),), least=0)
    if (np.array(there["bonds"]) >= n_atoms).any():
        raise ValueError(f"expected bonds of {n_atoms} atoms, found {there['bonds']}")
    for name in ("near", "held"):
        if there.get("molecules"):
            numbers(name, there[name], (None, 2) if there[name] else (0,), least=0)
        else:
            numbers(name, there[name], (n_atoms, n_atoms), kinds="b")
    for name, shape in (("molecules", (n_atoms,)), ("at_rest", (n_atoms, 3)), ("cell", (3, 3)), ("kinds", (replicas,))):
        if there.get(name) and np.shape(there[name]) != shape:
            raise ValueError(f"expected {name} of shape {shape}, found {np.shape(there[name])}")


def describe(directory, description):
    """Write the description of a run, an option a line, or what is new in it, and clear away what a crash left."""
    directory = Path(directory)
    clear_unfinished(directory)
    path = directory / DESCRIPTION
    there = json.loads(path.read_text()) if path.exists() else {}
    told = description | there | {"time_ps": description["time_ps"]}
    if told != there:
        write_atomically(path, "{\n" + ",\n".join(f'"{name}": {json.dumps(value)}' for name, value in told.items()) + "\n}\n")


def look(directory):
    """What is there of a run, before anything is prepared for it: ValueError, in a sentence, where it is damaged."""
    there, numbers = read_description(directory), piece_paths(directory)
    found = read_checkpoint(directory)
    if there and found is not None:
        read_failures(directory)
        if numbers:
            read_piece(numbers[max(numbers)])


def save_checkpoint(directory, state):
    """Write a pytree of arrays, and a checksum of them."""
    write_atomically(Path(directory) / CHECKPOINT, packed(_named(state)))


def read_checkpoint(directory):
    """The arrays that `save_checkpoint` wrote, by name; None where there is no checkpoint, ValueError for damage.

    Those of before 2026-12 tell no checksum.
    """
    path = Path(directory) / CHECKPOINT
    if not path.exists():
        return None
    try:
        arrays, _ = unpacked(path)
        _check_state(arrays)
        return arrays
    except BROKEN_ARCHIVE as error:
        raise ValueError(f"expected a whole checkpoint, found {path} damaged ({error}); restore it") from error


def _check_state(arrays):
    """ValueError, in a sentence, for steps, statuses and living replicas that make no sense, where a checkpoint tells them."""
    if not {"step", "replicas.status", "replicas.dynamics.position"} <= arrays.keys():
        return  # of another version, or of something else: `from_arrays` says so
    numbers("step", arrays["step"], (), least=0, kinds="iu")
    status = numbers("status", arrays["replicas.status"], (None,), least=0, kinds="iu")
    if (status > max(Status)).any():
        raise ValueError(f"expected a status from 0 to {max(Status):d} for every replica, found {status.max()}")
    living = status == Status.ALIVE
    if np.shape(arrays["replicas.dynamics.position"])[::2] != (len(status), 3):
        raise ValueError(
            f"expected positions of {len(status)} replicas, found {np.shape(arrays['replicas.dynamics.position'])}"
        )
    for name, array in arrays.items():
        if name.startswith("replicas.") and array.dtype.kind == "f":
            numbers(f"{name} of what is alive", array[living], (living.sum(), *array.shape[1:]))


def from_arrays(found, state):
    """The pytree that was saved, from its arrays by name; of the same structure, shapes and types as ``state``."""
    expected = _named(state)
    kinds = [{name: (a.shape, a.dtype) for name, a in arrays.items()} for arrays in (expected, found)]
    if kinds[0] != kinds[1]:
        odd = sorted(name for name in kinds[0].keys() | kinds[1].keys() if kinds[0].get(name) != kinds[1].get(name))
        raise ValueError(
            f"expected a checkpoint of this version, found another {', '.join(odd)} in {CHECKPOINT}; go on with the version"
            " that wrote it"
        )
    return jax.tree.unflatten(jax.tree.structure(state), [found[name] for name in expected])


def log(directory, line):
    """Add a line, with the date, to the log."""
    path = Path(directory) / LOG
    before = path.read_bytes() if path.exists() else b""
    write_atomically(path, before + f"{datetime.now():%Y-%m-%d %H:%M:%S}  {line}\n".encode())


def save_failures(directory, species, failures):
    """Write the geometries at which replicas failed: dicts with ``positions`` (N, 3) in angstrom and what is said of them."""
    frames = []
    for failure in failures:
        info = {name: value for name, value in failure.items() if name != "positions"}
        frames.append(Atoms(species, failure["positions"], info=info))
    text = io.StringIO()
    from ase.io import write

    write(text, frames, format="extxyz")
    write_atomically(Path(directory) / FAILURES, text.getvalue())


def read_failures(directory):
    """Replica -> reason in words, of all that `save_failures` wrote."""
    from ase.io import read

    path = Path(directory) / FAILURES
    try:
        return {frame.info["replica"]: frame.info["reason"] for frame in (read(path, index=":") if path.exists() else [])}
    except (TypeError, AttributeError, RuntimeError, XYZError, *BROKEN_FILE) as error:
        raise ValueError(f"expected the geometries that failed, found {path} damaged ({error}); restore it") from error


def _named(state):
    """The arrays of a pytree by their paths in it."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def _differ(there, here):
    if isinstance(here, list) and isinstance(there, list) and not any(isinstance(x, str) for x in there + here):
        return np.shape(there) != np.shape(here) or not np.allclose(there, here, rtol=0, atol=TOLERANCE, equal_nan=True)
    return there != here


def _difference(name, there, here):
    words = name.replace("_", " ")
    return words if isinstance(here, list) else f"{words} ({there} there, {here} here)"
