"""Training: from datasets of one molecule or several to a model, over a number of steps or a wall time.

Of a batch, with errors in units of the root mean square force s (energies in s angstrom), the loss is

    L = w_E <(dE / N)^2> + w_F <dF^2> + w_A <de^2>

over the labels that there are: energies dE of N atoms, force components dF, atomic energies de. With ``huber`` squares beyond
that error go on as straight lines. Gradients longer than ``clip`` are shortened, then Adam or AMSGrad step by

    rate(p) = learning_rate min(1, p / warm_up) (1 + cos(pi p)) / 2

where p is the share of the steps, or of the wall time, that is over. The model is the average of all parameters so far,
A_t = d A_t-1 + (1 - d) theta_t, divided by 1 - d^t, at the step at which it predicted forces of the validation geometries best.

Shifts of elements are fitted anew at each look at the validation geometries, by least squares of energies. Adam is too slow for
them, as the first large gradients make it careful: energies would keep an error that is the same for all geometries.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iqagp_jax.data.dataset import Dataset
from iqagp_jax.families.options import made_of, signature_of
from iqagp_jax.families.so3krates.batches import Beneath, Frames, Order, buckets_of
from iqagp_jax.families.so3krates.model import SO3krates, SO3kratesOfMolecule
from iqagp_jax.families.so3krates.network import ELEMENTS, Network
from iqagp_jax.families.so3krates.options import SO3kratesOptions
from iqagp_jax.machine.archives import BROKEN_ARCHIVE, packed, unpacked
from iqagp_jax.machine.files import write_atomically
from iqagp_jax.machine.interrupt import deferred_interrupt
from iqagp_jax.machine.parts import kept_in
from iqagp_jax.machine.progress import progress_bar
from iqagp_jax.potential import MadeBy

CHECKPOINT, CHECKPOINT_SECONDS = "checkpoint.npz", 5.0
"""File of a training's folder, and wall time between two writings of it."""

TRACE = ("step", "loss", "energy_mae", "forces_mae")
"""Columns of a trace, a row for each look at the validation geometries: the mean loss since the last; eV, eV/angstrom."""

VALIDATED = 50
"""Geometries predicted at once, at most."""

REFITTED = 200
"""Training geometries of a bucket that shifts are fitted to, at most."""


class Progress(NamedTuple):
    """All that the future of a training depends on; what a checkpoint holds."""

    network: Network
    moments: Any
    """of the optimiser"""
    average: Network
    """A_t, not yet divided"""
    loss: Any
    """sum since the last look"""
    step: Any
    seconds: Any
    """wall time so far"""
    shift: Any
    """(100,) in the network's unit, added to its atomic energies"""
    best: tuple[Network, Any]
    """network and shifts"""
    least: Any
    """validation error of the best"""
    trace: Any
    """(T, 4), columns as in `TRACE`"""


@dataclass(frozen=True, eq=False)
class Training:
    """What is learned from what, all options `resolved`."""

    options: SO3kratesOptions
    beneath: Beneath
    train: tuple[Frames, ...]
    """a bucket each"""
    validation: tuple[Frames, ...]
    neighbours: float

    @classmethod
    def of(cls, datasets: Sequence[Dataset], options: SO3kratesOptions) -> "Training":
        """The training data of datasets, a share of each held back for validation."""
        parts = [_parted(data, options, len(datasets)) for data in datasets]
        beneath = Beneath.of([train for train, _ in parts], options.repulsion, options.cutoff)
        train, held_back = ([beneath.frames(data) for data in which] for which in zip(*parts, strict=True))
        directed = 2 * sum((f.pairs[..., 0] < f.pairs[..., 1]).sum() for f in train)
        neighbours = float(directed / sum((f.numbers > 0).sum() for f in train)) if options.mean_neighbours else 1.0
        return cls(options, beneath, tuple(buckets_of(train)), tuple(buckets_of(held_back)), neighbours)

    @property
    def optimiser(self) -> optax.GradientTransformation:
        """Clipping and moments; the rate is applied outside."""
        moments = optax.scale_by_amsgrad() if self.options.amsgrad else optax.scale_by_adam()
        return optax.chain(optax.clip_by_global_norm(self.options.clip), moments)

    def begin(self) -> Progress:
        """Before the first step."""
        o = self.options
        network = Network.random(
            np.random.default_rng(o.seed),
            o.width,
            o.layers,
            o.heads,
            o.layer_norm,
            o.residual_mlp,
            degrees=o.degrees,
            cutoff=o.cutoff,
            radial_basis=o.radial_basis,
            basis_size=o.basis_size,
            neighbours=self.neighbours,
        )
        network = network.in_precision(np.float32)
        nothing = jax.tree.map(jnp.zeros_like, network)
        moments = self.optimiser.init(network)
        zero, trace = np.zeros(()), np.zeros((0, len(TRACE)))
        shift, least = np.zeros(ELEMENTS), np.full((), np.inf)
        return Progress(network, moments, nothing, zero, np.zeros((), int), zero, shift, (network, shift), least, trace)

    def over(self, now: Progress) -> float:
        """The share p of the training that is over."""
        if self.options.steps is not None:
            return float(now.step / self.options.steps)
        return float(now.seconds / self.options.budget)

    def rate(self, p: float) -> float:
        """The learning rate at a share p of the training."""
        o = self.options
        warm = min(1.0, p / o.warm_up) if o.warm_up else 1.0
        return o.learning_rate * warm * 0.5 * (1 + np.cos(np.pi * p))

    @cached_property
    def stepped(self) -> Callable[..., Any]:
        """(network, moments, average, loss), shifts, bucket, numbers of its frames, rate -> the first after a step."""
        d = self.options.average

        def step(learning: Any, shift: Any, bucket: Frames, chosen: Any, rate: Any) -> Any:
            network, moments, average, sum_of_losses = learning
            loss, slope = jax.value_and_grad(self.loss)(network, shift, bucket[chosen])
            updates, moments = self.optimiser.update(slope, moments)
            network = jax.tree.map(lambda a, b: a - rate.astype(a.dtype) * b, network, updates)
            average = jax.tree.map(lambda a, b: d * a + (1 - d) * b, average, network)
            return network, moments, average, sum_of_losses + loss

        return jax.jit(step)

    def loss(self, network: Network, shift: Any, frames: Frames) -> Any:
        """L of a network and shifts on frames."""
        o, scale = self.options, self.beneath.scale

        def squared(error: Any) -> Any:
            known = jnp.isfinite(error)
            error = jnp.where(known, error, 0.0)
            if o.huber is not None:
                return (2 * optax.huber_loss(error, delta=o.huber / scale)).sum() / jnp.maximum(known.sum(), 1)
            return (error**2).sum() / jnp.maximum(known.sum(), 1)

        energy, forces, atomic = frames.predicted(network, shift)
        total = 0.0
        if "energy" in o.learned:
            total += o.energy_weight * squared((energy - frames.energy) / (frames.numbers > 0).sum(1))
        if "forces" in o.learned:
            total += o.forces_weight * squared(forces - frames.forces)
        if "atomic_energies" in o.learned:
            total += o.atomic_weight * squared(atomic - frames.atomic_energies)
        return total

    @cached_property
    def errors(self) -> Callable[[Network, Any, Frames], Any]:
        """Errors of energies (n,) and forces (n, N, 3) of frames."""

        def of(network: Network, shift: Any, frames: Frames) -> Any:
            energy, forces, _ = frames.predicted(network, shift)
            return energy - frames.energy, forces - frames.forces

        return jax.jit(of)

    def _errors_of(self, network: Network, shift: Any, frames: Frames) -> Any:
        """The same of any number of frames, on the host."""
        parts = [self.errors(network, shift, frames[k : k + VALIDATED]) for k in range(0, len(frames), VALIDATED)]
        return jax.tree.map(lambda *a: np.concatenate(a), *jax.device_get(parts))

    def shifted(self, network: Network, shift: Any) -> np.ndarray:
        """Shifts (100,) that fit energies of training geometries best, beside a network."""
        some = [bucket[:REFITTED] for bucket in self.train]
        error = np.concatenate([self._errors_of(network, shift, frames)[0] for frames in some])
        counts = np.concatenate([(frames.numbers[..., None] == np.arange(1, ELEMENTS)).sum(1) for frames in some])
        known = np.isfinite(error)
        change = np.linalg.lstsq(counts[known].astype(float), error[known], rcond=None)[0]
        return shift - np.concatenate([[0.0], change])

    def validated(self, network: Network, shift: Any) -> np.ndarray:
        """Mean absolute errors of energies (eV) and forces (eV/angstrom) of the validation geometries; NaN without labels."""
        errors = zip(*(self._errors_of(network, shift, bucket) for bucket in self.validation), strict=True)
        each = [np.abs(np.concatenate([one.ravel() for one in of])) for of in errors]
        known = [values[np.isfinite(values)] for values in each]
        return self.beneath.scale * np.array([values.mean() if len(values) else np.nan for values in known])

    def looked(self, now: Progress) -> Progress:
        """With another row of the trace, and the model of now if it is the best so far."""
        d, steps = self.options.average, int(now.step)
        average = jax.tree.map(lambda a: a / np.float32(1 - d**steps), now.average)
        shift = self.shifted(average, now.shift)
        energy, forces = self.validated(average, shift)
        error = energy if np.isnan(forces) else forces
        if not np.isfinite(error):
            raise ValueError(
                f"expected finite errors of the validation geometries, found {error} after {steps} steps; take a smaller"
                " learning rate, or data with energies or forces"
            )
        since = steps - (now.trace[-1, 0] if len(now.trace) else 0)
        row = [steps, now.loss / since, energy, forces]
        if error < now.least:
            now = now._replace(best=(average, shift), least=np.asarray(error))
        return now._replace(shift=shift, loss=np.zeros(()), trace=np.concatenate([now.trace, [row]]))

    def going_on(self, now: Progress) -> Iterator[Progress]:
        """The states after every step, up to the end."""
        began = time.perf_counter() - float(now.seconds)
        order = Order(tuple(map(len, self.train)), self.options.batch, self.options.seed)
        buckets = jax.device_put(self.train)
        for k, chosen in order.from_step(int(now.step)):
            rate = np.float64(self.rate(self.over(now)))
            learning = now.network, now.moments, now.average, now.loss
            learned = self.stepped(learning, now.shift, buckets[k], chosen, rate)
            network, moments, average, loss = jax.block_until_ready(learned)
            seconds = np.asarray(time.perf_counter() - began)
            now = now._replace(network=network, moments=moments, average=average, loss=loss, step=now.step + 1, seconds=seconds)
            last = self.over(now) >= 1
            if last or now.step % self.options.validate_every == 0:
                now = self.looked(now)
            yield now
            if last:
                return


def fit_so3krates(dataset, *given, folder=None, progress=False, **options):
    """Train SO3krates on a `Dataset`, or on a tuple of datasets of several molecules at one level of theory.

    Returns a `SO3kratesOfMolecule` of one dataset and an `SO3krates` of several. Where a dataset has a split ``train``, that is
    used. Validation geometries are chosen among the training geometries, by ``seed``; they are not learned.

    Parameters
    ----------
    folder: where checkpoints are kept every few seconds. Killed at any moment, the same call goes on; over a number of
        ``steps`` the model is then the same bit for bit. Nothing is kept without.
    progress: whether to show a bar, with the errors of the validation geometries.

    All other arguments are those of `SO3kratesOptions`.

    Raises ValueError for datasets of several levels of theory, for options that do not go together, and where errors are no
    numbers; TypeError for other options.
    """
    datasets = (dataset,) if isinstance(dataset, Dataset) else tuple(dataset)
    _check_levels(datasets)
    datasets = tuple(data.split("train") if "train" in data.splits else data for data in datasets)
    resolved = made_of(SO3kratesOptions, given, options).resolved(datasets)
    with jax.enable_x64(True):
        training = Training.of(datasets, resolved)
        with _kept(folder, resolved, datasets) as path:
            now = _driven(training, path, progress)
        return _model(training, datasets, jax.device_get(now))


fit_so3krates.__signature__ = signature_of(SO3kratesOptions, "dataset", folder=None, progress=False)  # type: ignore[attr-defined]


def _check_levels(datasets: tuple[Dataset, ...]) -> None:
    if not datasets:
        raise ValueError("expected a dataset, found none")
    for other in datasets[1:]:
        if not datasets[0].level.same_energies(other.level):
            raise ValueError(
                f"expected datasets of one level of theory, found {datasets[0].level} and {other.level}; label them anew, or"
                " train a model of each"
            )


def _parted(data: Dataset, options: SO3kratesOptions, several: int) -> tuple[Dataset, Dataset]:
    """(training, validation) geometries of a dataset that have labels."""
    labelled = np.zeros(len(data), bool)
    for target in options.learned:
        values = getattr(data, target)
        if values is not None:
            labelled |= np.isfinite(values).reshape(len(data), -1).any(1)
    data = data[labelled][: options.n_train]
    held = max(1, len(data) // 20) if options.n_validation is None else options.n_validation // several
    if not 0 < held < len(data):
        raise ValueError(
            f"expected more labelled training geometries of {' '.join(data.species)} than the {held} for validation, of which"
            f" each molecule needs one, found {len(data)}; give more, or another n_validation"
        )
    order = np.random.default_rng(options.seed).permutation(len(data))
    return data[np.sort(order[held:])], data[np.sort(order[:held])]


@contextmanager
def _kept(folder: Any, options: SO3kratesOptions, datasets: tuple[Dataset, ...]) -> Iterator[Path | None]:
    """The path of the checkpoint in a folder that this process owns; ValueError where another training is in it."""
    if folder is None:
        yield None
        return
    digest = hashlib.sha256()
    for data in datasets:
        digest.update(" ".join(data.species).encode())
        for values in (data.positions, data.energy, data.forces, data.atomic_energies):
            digest.update(b"" if values is None else np.ascontiguousarray(values).tobytes())
    with kept_in(Path(folder), {**vars(options), "data": digest.hexdigest()}):
        yield Path(folder) / CHECKPOINT


def _driven(training: Training, path: Path | None, progress: bool) -> Progress:
    """The end of a training, on from its checkpoint if there is one."""
    now = training.begin()
    if path is not None and path.exists():
        now = _read(path, now)
    if training.over(now) >= 1:
        return now
    o = training.options
    total, saved = o.steps or int(np.ceil(o.budget or 0)), time.perf_counter()
    with progress_bar(total, progress) as (show, say), deferred_interrupt() as interrupted:
        show(description="compiling")
        for latest in training.going_on(now):
            now = latest
            show(completed=int(now.step) if o.steps else min(int(now.seconds), total), description=_told(now))
            done, stop = training.over(now) >= 1, interrupted()
            if path is not None and (done or stop or time.perf_counter() > saved + CHECKPOINT_SECONDS):
                _write(path, now)
                saved = time.perf_counter()
            if stop and not done:
                if path is not None:
                    say(f"stopped after {now.step} steps; the same command goes on")
                raise KeyboardInterrupt
    return now


def _told(now: Progress) -> str:
    """The latest errors of the validation geometries in words."""
    if not len(now.trace):
        return f"step {now.step}"
    energy, forces = 1000 * now.trace[-1, 2:]
    return f"step {now.step}, validation {energy:.3g} meV, {forces:.3g} meV/Å"


def _named(now: Progress) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(now)}


def _write(path: Path, now: Progress) -> None:
    arrays = {name: np.asarray(leaf) for name, leaf in _named(jax.device_get(now)).items()}
    write_atomically(path, packed(arrays, path.stem))


def _read(path: Path, like: Progress) -> Progress:
    """ValueError, in a sentence, for a checkpoint that is damaged."""
    try:
        arrays = unpacked(path, path.stem, required=True)[0]
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in _named(like)])
    except BROKEN_ARCHIVE as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and the training begins anew") from error


def _model(training: Training, datasets: tuple[Dataset, ...], now: Progress) -> SO3krates | SO3kratesOfMolecule:
    options, beneath = training.options, training.beneath
    program = f"iqagp-jax {version('iqagp-jax')}, jax {jax.__version__}"
    network, shift = now.best
    potential = SO3krates(
        network,
        np.full(ELEMENTS, beneath.scale),
        beneath.shift + beneath.scale * shift,
        tuple(sorted({s for data in datasets for s in data.species})),
        options.repulsion,
        MadeBy(datasets[0].level, options.learned, options, program=program),
        sum(map(len, training.train)),
        now.trace,
    )
    if len(datasets) > 1:
        return potential
    (data,) = datasets
    return SO3kratesOfMolecule(data.species, data.positions[data.lowest], potential)
