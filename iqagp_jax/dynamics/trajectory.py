"""Trajectories of replicas on disk: ``DIR/trajectory-NNNN.npz``, numbered from 0000 without gaps.

Every piece is a plain uncompressed ``.npz`` that NumPy reads without pickle and without this package. It holds the
arrays of `Trajectory`, for its own frames only and momenta only where the run keeps them, ``format_version``, and a
``checksum`` of them, which pieces of before 2026-12 lack. A piece appears whole or not at all, and the same run writes the same
bytes. All pieces hold the same number of frames but the last, which grows with the run.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from iqagp_jax.data.content import SMALLEST, numbers
from iqagp_jax.machine.archives import BROKEN_ARCHIVE, packed, unpacked
from iqagp_jax.machine.files import write_atomically
from iqagp_jax.system.elements import check_species

FORMAT_VERSION = 2

SUMS = 1e-6
"""A kinetic energy (eV) that is what others leave of a sum may be below zero by this."""

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
    conserved_energies: np.ndarray
    """(frames, R) potential, kinetic and Nose-Hoover chain's energy, eV: constant but for errors; NaN for other thermostats"""
    alive: np.ndarray
    """(frames, R) bool"""
    momenta: np.ndarray | None = None
    """(frames, R, N, 3) sqrt(amu eV); None where the run did not keep them"""

    def __post_init__(self):
        frames, replicas, atoms = len(self.times), len(self.target_temperatures), len(self.species)
        expected = {
            "masses": (atoms,),
            "positions": (frames, replicas, atoms, 3),
            "energies": (frames, replicas),
            "temperatures": (frames, replicas),
            "kinetic_energies": (frames, replicas, 3),
            "conserved_energies": (frames, replicas),
            "alive": (frames, replicas),
            **({} if self.momenta is None else {"momenta": self.positions.shape}),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"expected {name} of shape {shape}, found {getattr(self, name).shape}")


def check_content(piece):
    """ValueError, in a sentence, unless a `Trajectory` makes sense: numbers where a replica lives, none where it failed."""
    frames, replicas = len(piece.times), len(piece.target_temperatures)
    check_species(piece.species.tolist())
    numbers("masses", piece.masses, (len(piece.species),), SMALLEST, kinds="f")
    numbers("target temperatures", piece.target_temperatures, (replicas,), least=0, kinds="f")
    numbers("times", piece.times, (frames,), least=0, kinds="f")
    alive = numbers("which replicas are alive", piece.alive, (frames, replicas), kinds="b")
    if (alive[1:] > alive[:-1]).any():
        raise ValueError("expected replicas to stay as they failed, found one alive again")
    bounded = {"positions": -np.inf, "energies": -np.inf, "temperatures": 0.0, "kinetic_energies": -SUMS}
    for name, least in (bounded | ({} if piece.momenta is None else {"momenta": -np.inf})).items():
        array = getattr(piece, name)
        numbers(f"{name} of what is alive", array[alive], (alive.sum(), *array.shape[2:]), least, kinds="f")
        if np.isfinite(array[~alive]).any():
            raise ValueError(f"expected no {name} of a replica that failed, found numbers")


class Recorder:
    """Writes the frames of a run to a folder in pieces: piece k holds the frames k F to (k + 1) F - 1, F a piece."""

    def __init__(self, directory, frames_per_piece, per_run, n_frames=0):
        """Go on after the first ``n_frames`` frames in the folder; what is there of later ones is removed.

        ``per_run`` are the fields of a `Trajectory` without frame axis.
        """
        self.directory, self.frames_per_piece, self.per_run = directory, frames_per_piece, per_run
        self.piece, n_pending = divmod(n_frames, frames_per_piece)
        n_pieces = self.piece + (n_pending > 0)
        paths = _complete(directory, n_pieces)
        for number in paths.keys() - range(n_pieces):
            paths[number].unlink()
        self.pending = _frames(read_piece(paths[self.piece]))[:n_pending] if n_pending else []

    def record(self, **frame):
        """Add the per-frame fields of a `Trajectory`, without frame axis; a full piece is written."""
        self.pending.append(frame)
        if len(self.pending) == self.frames_per_piece:
            self.flush()
            self.pending, self.piece = [], self.piece + 1

    def flush(self):
        """Write the frames of a piece that is not yet full; it will be written again when it is."""
        if self.pending:
            columns = {name: np.stack([frame[name] for frame in self.pending]) for name in self.pending[0]}
            write_piece(self.directory, self.piece, Trajectory(**self.per_run, **columns))


def write_piece(directory, number, piece):
    """Write a `Trajectory` as piece ``number``; a crash at any moment leaves either what was there or the whole file."""
    arrays = {name: np.asarray(array) for name, array in vars(piece).items() if array is not None}
    data = packed(arrays, format_version=np.int64(FORMAT_VERSION))
    write_atomically(Path(directory) / f"trajectory-{number:04d}.npz", data)


def load_trajectory(directory):
    """The `Trajectory` of all pieces in ``directory``; `read_pieces` where they are too large for the memory.

    Raises ValueError, in a sentence, where there is none, a piece is missing, damaged or of another format, or pieces
    of different runs have been mixed.
    """
    pieces = list(read_pieces(directory))

    def joined(name):
        first = getattr(pieces[0], name)
        return first if name in PER_RUN or first is None else np.concatenate([getattr(p, name) for p in pieces])

    return Trajectory(**{field.name: joined(field.name) for field in fields(Trajectory)})


def read_pieces(directory):
    """The pieces in ``directory`` one after the other, each a `Trajectory`; errors as of `load_trajectory`, on the way."""
    directory = Path(directory)
    numbers = piece_paths(directory)
    if not numbers:
        raise ValueError(f"expected trajectory-0000.npz and following in {directory}, found none; check the folder")
    paths = _complete(directory, max(numbers) + 1)
    first, last, times = None, None, []
    for number in sorted(paths):
        piece = read_piece(paths[number])
        first = first or piece
        times.append(piece.times)
        _check_one_run(directory, first, piece, np.concatenate(times))
        if last and (piece.alive[:1] > last.alive[-1:]).any():
            raise ValueError(f"expected replicas to stay as they failed, found one alive again in {paths[number]}; restore it")
        last = piece
        yield piece


def piece_paths(directory):
    """The paths of the pieces in a folder, by number."""
    numbered = ((path.stem.removeprefix("trajectory-"), path) for path in Path(directory).glob("trajectory-*.npz"))
    return {int(number): path for number, path in numbered if number.isdecimal()}


def _complete(directory, n_pieces):
    """The paths in a folder by number, of which the first ``n_pieces`` must be there."""
    paths = piece_paths(directory)
    if missing := set(range(n_pieces)) - set(paths):
        raise ValueError(
            f"expected the pieces 0 to {n_pieces - 1} of a trajectory in {directory}, but trajectory-{min(missing):04d}.npz"
            " is missing; restore it, or move away the pieces after it"
        )
    return paths


def _frames(piece):
    """The fields of each frame of a `Trajectory`, without frame axis."""
    names = [name for name, array in vars(piece).items() if name not in PER_RUN and array is not None]
    return [{name: getattr(piece, name)[k] for name in names} for k in range(len(piece.times))]


def read_piece(path):
    """The `Trajectory` of one piece; ValueError, in a sentence, where it is damaged."""
    try:
        arrays, apart = unpacked(path, beside=("format_version",))
        version = int(apart["format_version"])
        if version == FORMAT_VERSION:
            piece = Trajectory(**arrays)
            check_content(piece)
            return piece
    except BROKEN_ARCHIVE as error:
        raise ValueError(
            f"expected a whole trajectory piece, found {path} damaged ({error}); restore it, or move it and the pieces"
            " after it away"
        ) from error
    raise ValueError(
        f"expected trajectory format {FORMAT_VERSION}, found {version} in {path}; read it with the version that wrote it"
    )


def _check_one_run(directory, first, piece, times):
    same = all(np.array_equal(getattr(piece, name), getattr(first, name)) for name in PER_RUN)
    same &= (piece.momenta is None) == (first.momenta is None)
    intervals = np.diff(times)
    if not same or (intervals <= 0).any() or not np.allclose(intervals, intervals[:1]):
        raise ValueError(f"expected the pieces of one run, found those of several in {directory}; keep only one run's")
