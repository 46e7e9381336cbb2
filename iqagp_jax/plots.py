"""Pictures of models, validations and replicas: each function draws into a new figure and returns it."""

from itertools import cycle

import numpy as np
from matplotlib.figure import Figure

from iqagp_jax.units import KCAL_MOL
from iqagp_jax.validation import atom_labels

BLUE, ORANGE, GREY, RED = "#1f5fa8", "#e08214", "#7f7f7f", "#b2182b"


def panels(columns=1, height=3.6):
    """A figure with so many panels beside each other: (figure, axes...)."""
    figure = Figure(figsize=(4.8 * columns, height), layout="constrained", dpi=150)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, *axes


def predicted_against_true(dataset, predictions):
    """Molecular energies and force components, predicted against reference; an empty panel for what has no label."""
    figure, *axes = panels(2)
    known = np.isfinite(dataset.energy)
    zero = dataset.energy[known].min(initial=np.inf)
    energies = dataset.energy[known] - zero, predictions.energy[known] - zero
    forces = None if dataset.forces is None else (dataset.forces.ravel(), predictions.forces.ravel())
    parts = (("energy", "kcal/mol", energies, BLUE, 4), ("force", "kcal/mol/Å", forces, ORANGE, 2))
    for ax, (what, unit, values, colour, size) in zip(axes, parts, strict=True):
        if values is None or not values[0].size:
            ax.set_axis_off()
            continue
        true, predicted = (x / KCAL_MOL for x in values)
        limits = [np.nanmin(true), np.nanmax(true)]
        ax.plot(limits, limits, color=GREY, lw=0.8)
        ax.plot(true, predicted, ".", color=colour, ms=size)
        ax.set(xlabel=f"reference {what}, {unit}", ylabel=f"predicted {what}, {unit}")
        ax.set_title(f"{len(dataset)} unseen geometries, MAE {np.nanmean(np.abs(true - predicted)):.2f} {unit}", fontsize=9)
    return figure


def s_curve(dataset, predictions):
    """Share of geometries below an absolute error, for the molecule and every atom (an S-curve)."""
    figure, ax = panels()

    def curve(error, **style):
        error = np.sort(error[np.isfinite(error)])
        ax.plot(error, 100 * (np.arange(len(error)) + 1) / len(error), **style)

    if dataset.atomic_energies is not None and predictions.atomic_energies is not None:
        errors = np.abs(predictions.atomic_energies - dataset.atomic_energies) / KCAL_MOL
        for k, label in enumerate(atom_labels(dataset.species)):
            curve(errors[:, k], lw=0.8, alpha=0.7, label=label)
    curve(np.abs(predictions.energy - dataset.energy) / KCAL_MOL, color="black", lw=2, label="molecule")
    ax.axvline(1.0, color=GREY, lw=0.8, ls="--")
    ax.set(xscale="log", xlabel="absolute error, kcal/mol", ylabel="geometries below it, %", ylim=(0, 100))
    ax.legend(fontsize=7, frameon=False, ncols=2)
    return figure


def likelihood_trace(model):
    """Log likelihood while the hyperparameters were fitted: of every atom's training data, or of those of a joint process."""
    figure, ax = panels()
    trace = np.asarray(model.trace)
    if model.targets == ("atomic_energies",):
        for k, label in enumerate(atom_labels(model.species)):
            ax.plot(trace[:, k] - trace[-1, k], lw=1, label=label)
        ax.legend(fontsize=7, frameon=False, ncols=2)
        ax.set(ylabel="log likelihood (or loss) below its end")
    else:
        ax.plot(trace.sum(1), lw=1)
        ax.set(ylabel="log likelihood of the subset fitted to")
    ax.set(xlabel="L-BFGS step")
    return figure


def learning(trace):
    """How a network learned, from its trace (T, 4): mean loss and errors of the validation geometries against the step."""
    figure, left, right = panels(2)
    step, loss, energy, forces = np.asarray(trace).T
    left.plot(step, loss, color=BLUE, lw=1)
    left.set(yscale="log", xlabel="step", ylabel="loss of the training geometries")
    right.plot(step, energy / KCAL_MOL, color=ORANGE, lw=1, label="energy, kcal/mol")
    right.plot(step, forces / KCAL_MOL, color=RED, lw=1, label="forces, kcal/mol/Å")
    right.set(yscale="log", xlabel="step", ylabel="MAE of the validation geometries")
    right.legend(fontsize=7, frameon=False)
    return figure


def temperature_and_energy(times, temperatures, energies, targets):
    """Kinetic temperature (mean and spread over replicas) and potential energy against time.

    times (F,) in fs, temperatures (F, R) in K and energies (F, R) in eV with NaN after a failure, targets (R,) in K.
    """
    figure, left, right = panels(2)
    ps = times / 1000
    alive = np.isfinite(temperatures)
    mean = np.where(alive, temperatures, 0.0).sum(1) / np.where(alive.any(1), alive.sum(1), np.nan)
    left.plot(ps, temperatures, color=BLUE, lw=0.3, alpha=0.3)
    left.plot(ps, mean, color=BLUE, lw=1.5, label="mean over replicas")
    for target in sorted(set(targets)):
        left.axhline(target, color=GREY, lw=0.8, ls="--", label=f"target {target:g} K")
    left.set(xlabel="time, ps", ylabel="kinetic temperature, K")
    left.legend(fontsize=7, frameon=False)
    right.plot(ps, (energies - np.nanmin(energies)) / KCAL_MOL, color=ORANGE, lw=0.4, alpha=0.5)
    right.set(xlabel="time, ps", ylabel="potential energy, kcal/mol")
    return figure


def bond_relaxation(times, lengths, title):
    """Distances that tell how a stretched bond relaxes: times (F,) in fs, ``lengths`` name -> (F,) in angstrom."""
    figure, ax = panels()
    for (name, values), colour in zip(lengths.items(), (BLUE, ORANGE, RED, GREY), strict=False):
        ax.plot(times / 1000, values, color=colour, lw=1, label=name)
    ax.set(xlabel="time, ps", ylabel="distance, Å", xlim=(0, min(1.0, times[-1] / 1000)))
    ax.set_title(title, fontsize=9)
    ax.legend(fontsize=8, frameon=False)
    return figure


def survival(times, failure_times, groups):
    """Share of surviving replicas against time, a line for each name in ``groups`` (R,).

    times (F,) in fs, failure_times (R,) in fs and NaN for survivors.
    """
    figure, ax = panels()
    alive = ~(times[:, None] >= failure_times)
    for name, colour in zip(dict.fromkeys(groups), cycle((BLUE, ORANGE, RED, GREY)), strict=False):
        chosen = np.array([g == name for g in groups])
        ax.plot(times / 1000, 100 * alive[:, chosen].mean(1), color=colour, lw=1.5, label=f"{name} ({chosen.sum()})")
    ax.set(xlabel="time, ps", ylabel="replicas alive, %", ylim=(0, 105))
    ax.legend(fontsize=8, frameon=False)
    return figure
