"""Active learning: a model drives replicas, says where it knows least, and learns the reference's labels of that.

A round is a verdict (`verdict.judge`). Where survival or truth shows a flaw, frames are chosen from its replicas, evenly
along their lives and densely before their failures: the one whose energy is the least certain, then the least certain given
that one, and so on, a pivoted Cholesky factor of the frames' posterior covariance, so that no two are alike. Not those that
are uncertain beyond a limit: a replica that fails crosses it within some 10 fs, and comes to geometries that no right model
goes to. The deepest place of every scan that shows a hole is learned too. Then all is fitted again, prior mean and
hyperparameters too, since those of calm geometries can be far too smooth for what was learned (docs/active.md); or, without
``refit``, what is labelled is added to the model by a block update of its factor (`teach.Fitted`), which leaves them as they
are.

Everything is in one folder, and the same call goes on where it was stopped:

| file                  | what                                                        |
| --------------------- | ----------------------------------------------------------- |
| ``round-K/``          | the verdict on the model of round K                         |
| ``round-K.extxyz``    | what was labelled after it                                  |
| ``model.safetensors`` | the last model                                              |
| ``dataset.extxyz``    | what the model learned, in random order, then the rest      |
| ``rounds.json``       | a row for every round; ``rounds.png`` is its picture        |
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from iqagp_jax.data.dataset import DECIMALS, Dataset, concatenate
from iqagp_jax.data.extxyz import load_dataset, save_dataset
from iqagp_jax.dynamics.checks import require_positive
from iqagp_jax.dynamics.record import Run
from iqagp_jax.families.gp.fit import fit_again
from iqagp_jax.families.gp.means import named_mean
from iqagp_jax.families.gp.model import refuse_copies
from iqagp_jax.families.gp.problem import training_frames
from iqagp_jax.families.gp.teach import Fitted
from iqagp_jax.families.gp.wrong_labels import as_seen
from iqagp_jax.machine.files import write_atomically
from iqagp_jax.modelfile import load_model, save_model
from iqagp_jax.sampling import MAX_DISTORTION_ENERGY
from iqagp_jax.units import KCAL_MOL
from iqagp_jax.verdict import Protocol, Verdict, claim, judge, pictures, shape, truth
from iqagp_jax.verdict.truth import Spread, columns

CANDIDATES = 300
"""Frames for every temperature and kind of start that are chosen from, and those before failures."""

NOISE = 1e-6
"""Of a choice by `least_variance`, a share of the variance among the candidates."""

MAX_UNCERTAINTY = 10 * KCAL_MOL
"""Frames whose energies have a larger standard deviation (eV) are not labelled."""


def learn(
    model,
    dataset,
    out,
    reference,
    protocol=None,
    rounds=5,
    per_round=50,
    max_uncertainty=MAX_UNCERTAINTY,
    energy_window=MAX_DISTORTION_ENERGY * KCAL_MOL,
    truth_last=False,
    refit=True,
    progress=lambda items, what, total: items,
    learn_relabelled=False,
    enough=lambda told: False,
):
    """Judge and teach a model in turn until its verdict finds no flaw and no hole, or ``rounds`` were taught.

    Where the protocol is too short for a good grade, no flaw is not yet a proof: the grade is unknown and tells what it lacks.

    Args:
        model: a `Model` that learned forces or total energies.
        dataset: the `Dataset` it was trained on.
        out: folder of all rounds.
        reference: `references.XTB` or `references.DFT`, or another with ``name``, ``labels`` and ``relax``.
        protocol: the verdicts' `Protocol`; every round has another seed, and no dynamics of the reference is run.
        rounds: at most.
        per_round: geometries labelled after a verdict.
        max_uncertainty: frames whose energies have a larger standard deviation (eV) are not labelled.
        energy_window: labels so many eV above the lowest training energy are dropped, and those that the reference cannot make.
        truth_last: relabel frames only of a model whose replicas all survive, where labels are dear.
        refit: fit prior mean and hyperparameters again, to all that was learned, after every round; else they stay.
        progress: as for `judge`.
        learn_relabelled: learn the frames that a verdict relabelled, instead of labelling others, where labels are dear.
        enough: asked after every verdict with the rows so far; True ends, as where time is up. Not asked where an earlier call
            went on.

    Returns the last model and the rows of ``rounds.json``. Raises ValueError, in a sentence, for a model of atomic
    energies alone; for another dataset than the model's; with ``refit`` for a prior mean that has no name; and where the folder
    holds another run.
    """
    out, protocol = Path(out), replace(protocol or Protocol(), reference_replicas=0)
    train, rest = _training_data(model, dataset)
    if refit:
        named_mean(model.made_by.options.prior_mean, train)  # a sentence now, not after the first labels
    require_positive("an uncertainty of frames in eV", max_uncertainty)
    require_positive("a window of energies in eV", energy_window)
    limits = {"per_round": per_round, "max_uncertainty": max_uncertainty, "energy_window": energy_window, "refit": refit}
    limits |= {"learn_relabelled": True} if learn_relabelled else {}
    claim(out, model, reference, protocol, **limits)
    fitted, learned, told = Fitted.of(model).add(train), train, []
    for k in range(rounds + 1):
        path = out / f"round-{k}.safetensors"
        if not path.exists():
            save_model(fitted.model, path)
        model = load_model(path)
        verdict = partial(judge, model, out / f"round-{k}", reference, replace(protocol, seed=protocol.seed + k), f"round {k}")
        judged = verdict(progress, relabel=not truth_last)
        if truth_last and judged.survival.flawless:
            judged = verdict(progress)
        told.append({"round": k, "geometries": len(model.train_positions), **_summary(judged)})
        path, over = out / f"round-{k}.extxyz", False
        if k == rounds or not path.exists():  # else a call before this one went on from here
            write_atomically(out / "rounds.json", json.dumps(told, indent=1, allow_nan=False))
            pictures.rounds(told).savefig(out / "rounds.png")
            save_model(model, out / "model.safetensors")
            save_dataset(concatenate([learned, rest]) if len(rest) else learned, out / "dataset.extxyz")
            over = enough(told)
        if k == rounds or over or is_flawless(judged):
            break
        if not path.exists():
            run = Run.open(out / f"round-{k}" / "model")
            if learn_relabelled and judged.truth.evidence[0].frames:
                replica, frame, _ = truth.choose_frames(run, protocol.frames)
            else:
                replica, frame = _chosen(fitted, run, per_round, max_uncertainty)
            positions, origin = _frames_of(run, replica, frame)
            found = [_labelled(positions, origin, reference, dataset, progress)]
            if len(deep := shape.holes(judged.scans, energy_window / KCAL_MOL)):
                found.append(_labelled(deep, _origin(len(deep), "scan"), reference, dataset, progress))
            save_dataset(_within(concatenate(found), np.nanmin(train.energy) + energy_window), path)
        lessons, path = load_dataset(path), out / f"round-{k + 1}.safetensors"
        learned = concatenate([learned, lessons])
        learned = learned[np.random.default_rng(protocol.seed).permutation(len(learned))]
        if refit:
            model = load_model(path) if path.exists() else fit_again(model, learned)
            fitted = Fitted.of(model).add(learned)
        else:
            fitted = fitted.add(lessons)
    return model, told


def most_uncertain(covariance, n):
    """The n rows of a covariance matrix (m, m) that a Cholesky factor with pivots takes first: each the most uncertain yet."""
    left, chosen = np.array(covariance), []
    for _ in range(min(n, len(left))):
        k = int(np.diag(left).argmax())
        if left[k, k] <= 0:
            break
        chosen.append(k)
        column = left[:, k] / np.sqrt(left[k, k])
        left -= np.outer(column, column)
        left[k] = left[:, k] = 0.0
    return chosen


def least_variance(covariance, n):
    """Numbers (n,) of candidates, each of which lessens the mean variance of all most, given those before.

    ``covariance`` (m, m) is of their energies, before any is known (Cohn, doi:10.1016/0893-6080(95)00137-9).
    """
    noise = NOISE * (np.trace(covariance) / len(covariance) - covariance.mean())
    chosen: list[int] = []
    for _ in range(min(n, len(covariance))):
        gain = (covariance**2).sum(0) / (np.diag(covariance) + noise)
        gain[chosen] = -np.inf
        k = int(gain.argmax())
        chosen.append(k)
        covariance = covariance - np.outer(covariance[:, k], covariance[k]) / (covariance[k, k] + noise)
    return np.array(chosen, dtype=int)


def _training_data(model, dataset):
    """What the model learned, and the rest of the dataset; ValueError, in a sentence, where the two cannot go on together."""
    if not hasattr(model, "teachable"):
        raise ValueError(
            "expected a model that can be taught by single labels, as one of Gaussian processes, found another; train it on"
            " more labels"
        )
    if not model.teachable:
        raise ValueError(
            "expected a model that learns the molecule's energy or forces, found one of atomic energies, which the reference"
            " does not give; train one without --targets"
        )
    refuse_copies(model)
    if dataset.species != model.species:
        raise ValueError(f"expected a dataset of {' '.join(model.species)}, found one of {' '.join(dataset.species)}")
    of_training = np.flatnonzero(dataset.origin["split"] == "train") if dataset.splits else np.arange(len(dataset))
    size = 3 * len(model.species)
    learned, offered = (r.reshape(-1, size) for r in (model.train_positions, dataset.positions[of_training]))
    distances = cdist(learned, offered, "chebyshev")
    if lacking := np.sum(distances.min(1, initial=np.inf) > 10.0**-DECIMALS):
        raise ValueError(
            f"expected a dataset with the {len(learned)} training geometries of the model, found one without {lacking} of them;"
            " give the dataset that it was trained on"
        )
    chosen = of_training[distances.argmin(1)]
    rest = dataset[np.setdiff1d(np.arange(len(dataset)), chosen)]
    return training_frames(as_seen(model, dataset[chosen]), len(chosen), model.targets), rest


def _chosen(fitted, run, n, max_uncertainty):
    """(replica, frame) of n frames of a run to label, in order."""
    replicas, times = range(len(run.lives)), run.trajectory.times
    mates = [len(run.group(run.target_temperatures[k], run.kinds[k])) for k in replicas]
    evenly = [(k, int(f)) for k in replicas for f in np.linspace(0, run.lives[k] - 1, CANDIDATES // mates[k] + 1) if f > 0]
    before = run.trajectory.alive & (times[:, None] > run.failure_times - truth.FINAL)
    replica, frame = np.array(sorted({*evenly, *((int(k), int(f)) for f, k in np.argwhere(before))})).T
    covariance = fitted.energy_covariance(run.trajectory.positions[frame, replica])
    known = np.flatnonzero(np.diag(covariance) <= max_uncertainty**2)
    if not len(known):
        least = np.sqrt(np.diag(covariance).min()) / KCAL_MOL
        raise ValueError(
            f"expected frames with an uncertainty of at most {max_uncertainty / KCAL_MOL:g} kcal/mol, found none of"
            f" {len(frame)}, the least {least:.3g}; allow more, or begin with more geometries"
        )
    chosen = np.sort(known[most_uncertain(covariance[np.ix_(known, known)], n)])
    return replica[chosen], frame[chosen]


def _frames_of(run, replica, frame):
    """Positions of frames of a run, and their origin."""
    at = {"temperature": run.target_temperatures[replica], "run": replica, "time": run.trajectory.times[frame]}
    return run.trajectory.positions[frame, replica], {**_origin(len(frame), "active"), **at}


def _origin(n, source):
    """Columns of n training geometries from ``source``, at rest."""
    at_rest = {"temperature": np.zeros(n), "run": np.zeros(n, int), "time": np.zeros(n)}
    return {"source": np.full(n, source), "split": np.full(n, "train"), **at_rest}


def _labelled(positions, origin, reference, dataset, progress):
    """A `Dataset` of positions with the reference's labels, without those that it cannot make."""
    positions = np.round(positions, DECIMALS)
    energy, forces = reference.labels(positions, progress=lambda items, total: progress(items, "labelling", total))
    return Dataset(dataset.species, positions, energy, forces, origin=origin, level=dataset.level)[np.isfinite(energy)]


def _within(lessons, highest):
    """The lessons without those above ``highest`` eV; ValueError, in a sentence, where none is left."""
    kept = lessons.energy <= highest
    if not kept.any():
        lowest = lessons.energy.min(initial=np.inf) - highest
        raise ValueError(
            f"expected labels within the energy window, found none of {len(kept)}, the lowest {lowest:.3g} eV above it;"
            " widen it, or begin with more geometries"
        )
    return lessons[kept]


def is_flawless(verdict: Verdict) -> bool:
    """Whether a verdict found no flaw in survival and truth, and no hole where there were scans."""
    return verdict.survival.flawless and verdict.truth.flawless and verdict.shape.grade != "poor"


def _summary(verdict: Verdict) -> dict[str, Any]:
    """What a round is told by: over all rows of its verdict, the worst row of the errors; None where nothing was relabelled."""
    rows = verdict.survival.rows
    errors = [row.de for row in rows if row.de]
    return {
        "replicas": sum(row.replicas for row in rows),
        "survived": sum(row.survived for row in rows),
        "right": sum(row.right or 0 for row in rows) if errors else None,
        **columns("de", Spread.worst(errors)),
        "survival": verdict.survival.grade,
        "truth": verdict.truth.grade,
        "shape": verdict.shape.grade,
        "concerns": list(verdict.concerns),
    }
