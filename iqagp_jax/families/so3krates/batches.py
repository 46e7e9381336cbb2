"""Training data as arrays: labels less what is beneath the network, pairs of near atoms, padded to few sizes.

Molecules of similar size share a bucket. All of a bucket are padded to its largest, so that every bucket compiles once. A batch
is of one bucket; as flat graphs beside each other its molecules are one configuration to the network.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iqagp_jax.data.dataset import Dataset
from iqagp_jax.families.so3krates.model import NO_REPULSION, atomic_numbers_of, repulsion_energies
from iqagp_jax.families.so3krates.neighbours import all_pairs
from iqagp_jax.families.so3krates.network import ELEMENTS, Network, Pairs
from iqagp_jax.machine.precision import Array
from iqagp_jax.system.geometry import pair_distances

MOST_BUCKETS = 4
"""Sizes that molecules are padded to, at most: each is compiled."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Frames:
    """n geometries of up to N atoms and P pairs each; labels in units of the network's output, NaN where there is none."""

    numbers: Array
    """(n, N) atomic numbers, 0 where there is no atom"""
    positions: Array
    """(n, N, 3) angstrom"""
    pairs: Array
    """(n, P, 2) atoms i < j; (0, 0) where there is no pair"""
    energy: Array
    """(n,)"""
    forces: Array
    """(n, N, 3)"""
    atomic_energies: Array
    """(n, N)"""

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> "Frames":
        return jax.tree.map(lambda a: a[index], self)

    @property
    def n_pairs(self) -> int:
        """Room for pairs."""
        return self.pairs.shape[1]

    def padded(self, n_atoms: int, n_pairs: int) -> "Frames":
        """With room for more atoms and pairs."""
        room = {"pairs": n_pairs - self.pairs.shape[1]} | dict.fromkeys(
            ("numbers", "positions", "forces", "atomic_energies"), n_atoms - self.numbers.shape[1]
        )

        def pad(name: str) -> Any:
            values, more = getattr(self, name), room.get(name, 0)
            filling = np.nan if name in ("forces", "atomic_energies") else 0
            widths = [(0, more if axis == 1 else 0) for axis in range(values.ndim)]
            return np.pad(values, widths, constant_values=filling)

        return Frames(**{f.name: pad(f.name) for f in fields(self)})

    def predicted(self, network: Network, shift: Any) -> tuple[Any, Any, Any]:
        """Energies (n,), forces (n, N, 3), atomic energies (n, N) by a network and shifts (100,); sums in float64."""
        n, n_atoms = self.numbers.shape
        numbers, there = self.numbers.reshape(-1), self.pairs[..., 0] < self.pairs[..., 1]
        ends = (self.pairs + n_atoms * np.arange(n)[:, None, None]).reshape(-1, 2)

        def total(positions: Any) -> tuple[Any, Any]:
            vectors = positions[ends[:, 1]] - positions[ends[:, 0]]
            atomic = network(numbers, Pairs(ends[:, 0], ends[:, 1], vectors, there.reshape(-1))).astype(np.float64)
            atomic = jnp.where(numbers > 0, atomic + shift[numbers], 0.0)
            return atomic.sum(), atomic

        (_, atomic), gradient = jax.value_and_grad(total, has_aux=True)(self.positions.reshape(-1, 3))
        atomic = atomic.reshape(n, n_atoms)
        return atomic.sum(1), -gradient.reshape(self.positions.shape), atomic


@dataclass(frozen=True)
class Beneath:
    """What the network need not learn: shifts of elements and a repulsion; and the unit in which it learns the rest."""

    shift: np.ndarray
    """(100,) eV, by atomic number"""
    scale: float
    """eV: the root mean square of forces, in eV/angstrom, or the spread of energies where there are none"""
    repulsion: str
    cutoff: float

    @classmethod
    def of(cls, datasets: Sequence[Dataset], repulsion: str, cutoff: float) -> "Beneath":
        """Shifts by least squares in float64 of what the repulsion leaves, of atomic energies where there are any."""
        before = cls(np.zeros(ELEMENTS), 1.0, repulsion, cutoff)
        left = [before.leaves(data) for data in datasets]
        shift = _shifts(datasets, left)
        forces = np.concatenate([forces.ravel() for _, forces, _ in left])
        rest = np.concatenate(
            [e - shift[atomic_numbers_of(d.species)].sum() for (e, _, _), d in zip(left, datasets, strict=True)]
        )
        known = forces if np.isfinite(forces).any() else rest
        return cls(shift, float(max(np.sqrt(np.nanmean(known**2)), 1e-3)), repulsion, cutoff)

    def leaves(self, data: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Energies (n,), forces (n, N, 3), atomic energies (n, N) less what is beneath, in its unit; NaN without a label."""
        n, n_atoms = data.positions.shape[:2]
        energies, slopes = np.zeros((n, n_atoms)), np.zeros(data.positions.shape)
        if self.repulsion != NO_REPULSION:
            energies, slopes = _repelled(data, self.repulsion, self.cutoff)
        energies = energies + self.shift[atomic_numbers_of(data.species)]
        forces = np.full(data.positions.shape, np.nan) if data.forces is None else data.forces + slopes
        atomic = np.full(energies.shape, np.nan) if data.atomic_energies is None else data.atomic_energies - energies
        return (data.energy - energies.sum(1)) / self.scale, forces / self.scale, atomic / self.scale

    def frames(self, data: Dataset) -> Frames:
        """A dataset's geometries and labels for the network, padded to the most pairs of any."""
        near = pair_distances(data.positions) < self.cutoff
        each = [np.argwhere(np.triu(one, 1)) for one in near]
        pairs = np.zeros((len(data), max(map(len, each)), 2), np.int32)
        for k, one in enumerate(each):
            pairs[k, : len(one)] = one
        energy, forces, atomic = self.leaves(data)
        numbers = np.tile(atomic_numbers_of(data.species).astype(np.int32), (len(data), 1))
        return Frames(numbers, data.positions, pairs, energy, forces, atomic)


def _repelled(data: Dataset, repulsion: str, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Atomic energies (n, N) of the repulsion and gradients (n, N, 3) of their sum, eV and eV/angstrom."""

    def total(positions: Any) -> tuple[Any, Any]:
        atomic = repulsion_energies(repulsion, data.species, all_pairs(positions), cutoff)
        return atomic.sum(), atomic

    def of_all(positions: Any) -> Any:
        return jax.lax.map(jax.value_and_grad(total, has_aux=True), positions)

    (_, atomic), slopes = jax.device_get(jax.jit(of_all)(data.positions))
    return atomic, slopes


def _shifts(datasets: Sequence[Dataset], left: Sequence[tuple[np.ndarray, ...]]) -> np.ndarray:
    """(100,) eV: the mean atomic energy of each element where the data have such, else what fits energies best."""
    counts, wanted = [], []
    for data, (energy, _, atomic) in zip(datasets, left, strict=True):
        one = np.eye(ELEMENTS)[atomic_numbers_of(data.species)]
        known = np.isfinite(atomic).all(1)
        if known.any():
            counts.append(one)
            wanted.append(atomic[known].mean(0))
        elif np.isfinite(energy).any():
            counts.append(one.sum(0)[None])
            wanted.append(np.array([np.nanmean(energy)]))
    shift = np.zeros(ELEMENTS)
    if counts:
        shift = np.linalg.lstsq(np.concatenate(counts), np.concatenate(wanted), rcond=None)[0]
    return shift


def buckets_of(frames: Sequence[Frames]) -> list[Frames]:
    """Frames of any molecules in at most `MOST_BUCKETS` sizes, those of like numbers of pairs together."""
    rising = sorted(frames, key=lambda f: f.n_pairs)
    cost = np.cumsum([f.n_pairs * len(f) for f in rising])
    # Each bucket gets a like share of all pairs; molecules of one size are never parted.
    share = np.minimum(MOST_BUCKETS * (cost - 1) // cost[-1], MOST_BUCKETS - 1)
    return [_joined([f for f, s in zip(rising, share, strict=True) if s == one]) for one in sorted(set(share))]


def _joined(several: list[Frames]) -> Frames:
    n_atoms, n_pairs = (max(size) for size in zip(*((f.numbers.shape[1], f.n_pairs) for f in several), strict=True))
    return jax.tree.map(lambda *a: np.concatenate(a), *(f.padded(n_atoms, n_pairs) for f in several))


@dataclass(frozen=True)
class Order:
    """Which frames of which bucket every step learns from, from the seed and the step alone."""

    sizes: tuple[int, ...]
    """frames of each bucket"""
    batch: int
    seed: int

    @property
    def steps(self) -> int:
        """Steps in which each frame is seen once, or nearly so."""
        return sum(-(-n // self.batch) for n in self.sizes)

    def from_step(self, step: int) -> Iterator[tuple[int, np.ndarray]]:
        """(bucket, frames (batch,) of it) for this step and all after it."""
        epoch, begin = divmod(step, self.steps)
        while True:
            yield from self._epoch(epoch)[begin:]
            epoch, begin = epoch + 1, 0

    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        rng = np.random.default_rng((self.seed, epoch))
        batches = []
        for k, n in enumerate(self.sizes):
            count = -(-n // self.batch)
            # The last batch is filled up with the first frames of the same order.
            frames = np.resize(rng.permutation(n), count * self.batch).reshape(count, self.batch)
            batches += [(k, chosen) for chosen in frames]
        return [batches[k] for k in rng.permutation(len(batches))]
