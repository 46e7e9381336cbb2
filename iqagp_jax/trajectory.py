"""Trajectories of replicas on disk: ``DIR/trajectory-NNNN.npz``, numbered from 0000 without gaps.

Every piece is a plain uncompressed ``.npz`` that NumPy reads without pickle and without this package. It holds the
arrays of `Trajectory`, for its own frames only, and ``format_version``. A piece appears whole or not at all, and the
same run writes the same bytes.
"""

import os
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

FORMAT_VERSION = 1

PER_RUN = ("species", "masses", "target_temperatures")
"""The fields of a `Trajectory` without a frame axis, equal in all pieces of a run."""


@dataclass(frozen=True)
class Trajectory:
    """Frames of R replicas of a molecule of N atoms.

    From its failure on a replica's ``alive`` is False and its positions, energies and temperatures are NaN, so that no
    average takes them for data.
    """

    species: np.ndarray
    """(N,) chemical symbols"""
    masses: np.ndarray
    """(N,) amu"""
    target_temperatures: np.ndarray
    """(R,) K"""
    times: np.ndarray
    """(frames,) fs"""
    positions: np.ndarray
    """(frames, R, N, 3) angstrom"""
    energies: np.ndarray
    """(frames, R) potential energy, eV"""
    temperatures: np.ndarray
    """(frames, R) kinetic temperature over the degrees of freedom that move, K"""
    kinetic_energies: np.ndarray
    """(frames, R, 3) translational, rotational and vibrational part, eV"""
    alive: np.ndarray
    """(frames, R) bool"""

    def __post_init__(self):
        frames, replicas, atoms = len(self.times), len(self.target_temperatures), len(self.species)
        expected = {
            "masses": (atoms,),
            "positions": (frames, replicas, atoms, 3),
            "energies": (frames, replicas),
            "temperatures": (frames, replicas),
            "kinetic_energies": (frames, replicas, 3),
            "alive": (frames, replicas),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"expected {name} of shape {shape}, found {getattr(self, name).shape}")


def prepare_directory(directory):
    """The path of ``directory``, made if it is not there; ValueError unless it is writable and free of trajectories."""
    directory = Path(directory)
    probe = directory / ".trajectory.partial"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"expected a writable folder, found {directory} ({error.strerror}); choose another") from error
    if _pieces(directory):
        raise ValueError(f"expected an empty folder, found a trajectory in {directory}; choose another, or remove it")
    return directory


def write_piece(directory, number, piece):
    """Write a `Trajectory` as piece ``number``; a crash at any moment leaves either nothing or the whole file."""
    path = Path(directory) / f"trajectory-{number:04d}.npz"
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, format_version=np.int64(FORMAT_VERSION), **vars(piece))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextmanager
def recording(directory, frames_per_piece, per_run):
    """A function that takes the per-frame fields of a `Trajectory`, without frame axis, and writes them in pieces.

    What is not yet on disk is written on leaving, also by an error or Ctrl-C.
    """
    pending, piece = [], 0

    def write():
        nonlocal pending, piece
        columns = {name: np.stack([frame[name] for frame in pending]) for name in pending[0]}
        write_piece(directory, piece, Trajectory(**per_run, **columns))
        pending, piece = [], piece + 1

    def record(**frame):
        pending.append(frame)
        if len(pending) == frames_per_piece:
            write()

    try:
        yield record
    finally:
        if pending:
            write()


def load_trajectory(directory):
    """The `Trajectory` of all pieces in ``directory``.

    Raises ValueError, in a sentence, where there is none, a piece is missing, damaged or of another format, or pieces
    of different runs have been mixed.
    """
    directory = Path(directory)
    paths = _pieces(directory)
    if not paths:
        raise ValueError(f"expected trajectory-0000.npz and following in {directory}, found none; check the folder")
    if missing := set(range(max(paths))) - set(paths):
        raise ValueError(
            f"expected the pieces 0 to {max(paths)} of a trajectory in {directory}, but trajectory-{min(missing):04d}.npz"
            " is missing; restore it, or move away the pieces after it"
        )
    pieces = [_read_piece(paths[number]) for number in sorted(paths)]
    _check_one_run(directory, pieces)

    def joined(name):
        return getattr(pieces[0], name) if name in PER_RUN else np.concatenate([getattr(p, name) for p in pieces])

    return Trajectory(**{field.name: joined(field.name) for field in fields(Trajectory)})


def _pieces(directory):
    """The paths of the pieces in a folder, by number."""
    numbered = ((path.stem.removeprefix("trajectory-"), path) for path in directory.glob("trajectory-*.npz"))
    return {int(number): path for number, path in numbered if number.isdecimal()}


def _read_piece(path):
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        version = int(arrays.pop("format_version"))
        if version == FORMAT_VERSION:
            return Trajectory(**arrays)
    # What numpy and zipfile raise for truncated or altered files and for other people's .npz.
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"expected a whole trajectory piece, found {path} damaged ({error}); restore it, or move it and the pieces"
            " after it away"
        ) from error
    raise ValueError(
        f"expected trajectory format {FORMAT_VERSION}, found {version} in {path}; read it with the version that wrote it"
    )


def _check_one_run(directory, pieces):
    same = all(np.array_equal(getattr(p, name), getattr(pieces[0], name)) for p in pieces for name in PER_RUN)
    intervals = np.diff(np.concatenate([p.times for p in pieces]))
    if not same or (intervals <= 0).any() or not np.allclose(intervals, intervals[:1]):
        raise ValueError(f"expected the pieces of one run, found those of several in {directory}; keep only one run's")
