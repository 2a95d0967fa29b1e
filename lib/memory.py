"""How far back a trained cell remembers: accuracy from parts of the sequence, after a delay, and
gradients against lag.

Everything takes a model (`lib.runs.store.Store.load`), a loaded data set and a window; nothing is
trained but linear read-outs on frozen states.
"""

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from lib import analysis, windows
from lib.figures import style

BATCH = 250  # images whose states of all steps are held at once


def sequences(data, window, split="test", images=2000):
    """The first images of a split as sequences ``(batch, time, features)``, with their labels
    ``(batch,)``.
    """
    x, labels = data.batch(split, torch.arange(min(images, len(data.labels[split]))))
    return windows.to_sequence(x, window.input_length, window.stride, window.scan), labels


def recall(model, data, window, condition, steps, images=2000):
    """Accuracy of the trained read-out, and of one refitted to the states a condition leaves the
    network in.

    A truncated sequence puts the network where its own read-out never saw it, so that its accuracy
    mixes forgetting with a shift; the refitted read-out says what the frozen state still tells. It
    is fitted on training images and tested on test images, as the other.

    Parameters
    ----------
    model : SequenceClassifier
        For one seed.
    data : Dataset
    window : Window
    condition : {"first", "last", "delay"}
        Only the first steps are read, only the last steps, or all and then ``steps`` of noise
        (`analysis.delay`).
    steps : sequence of int
    images : int
        At most so many of either split.

    Returns
    -------
    DataFrame
        condition, steps, pixels (steps times stride), readout ("trained" or "refitted"), accuracy
        in 0..1.

    Raises
    ------
    ValueError
        Unknown condition, or steps outside the sequence.
    """
    train, test = (
        _states(model, *sequences(data, window, split, images), condition, steps)
        for split in ("train", "test")
    )
    rows = []
    for k, (states, labels), (new, truth) in zip(steps, train, test, strict=True):
        with torch.no_grad():
            own = (model.readout(new).argmax(1) == truth).float().mean().item()
        for readout, accuracy in (
            ("trained", own),
            ("refitted", analysis.refitted_accuracy(states, labels, new, truth)),
        ):
            rows.append(
                {
                    "condition": condition,
                    "steps": k,
                    "pixels": k * window.stride,
                    "readout": readout,
                    "accuracy": accuracy,
                }
            )
    return pd.DataFrame(rows)


def _states(model, x, labels, condition, steps):
    """(states (batch, n), labels) for each of ``steps``."""
    length = x.shape[-2]
    low, high = (0, np.inf) if condition == "delay" else (1, length)
    for k in steps:
        if not low <= k <= high:
            raise ValueError(
                f"steps holds {k}, but {condition!r} of a sequence of {length} steps allows {low} to {high}."
            )
    if condition == "last":
        kept = [model.states(analysis.truncate(x, last=k))[:, -1] for k in steps]
    elif condition in ("first", "delay"):  # one pass holds the states of all
        x = analysis.delay(x, max(steps)) if condition == "delay" else x
        at = torch.tensor([k - 1 + length * (condition == "delay") for k in steps])
        kept = torch.cat([model.states(part)[:, at] for part in x.split(BATCH)]).unbind(1)
    else:
        raise ValueError(f"condition is {condition!r}, but must be first, last or delay.")
    return [(states.cpu(), labels.cpu()) for states in kept]


def gradient_by_lag(model, data, window, images=200):
    """Mean norm of the gradient of the loss with respect to the input of each step, dL/dx_{T-lag};
    ``(time,)``, lag 0 first.
    """
    x, labels = sequences(data, window, images=images)
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels, reduction="sum"), x)
    return gradient.norm(dim=-1).mean(0).flip(0).cpu().numpy()


def time_constants(model, data, window, images=200):
    """Time constant of each unit's gate, in pixels: the median of tau over test images and steps,
    ``(hidden,)``; None without a gate.
    """
    with torch.no_grad():
        _, trace = model(sequences(data, window, images=images)[0], record=True)
    if "z" not in trace:
        return None
    return np.median(analysis.time_constant(trace["z"].cpu().numpy(), window.stride), axis=(0, 1))


def span(frame, share=0.5, chance=0.1):
    """Fewest pixels with which accuracy first reaches ``share`` of the way from chance to its best;
    of one condition and read-out.

    With the condition "delay" the most pixels for which it is still that high.
    """
    frame = frame.sort_values("pixels")
    enough = frame.loc[
        frame["accuracy"] >= chance + share * (frame["accuracy"].max() - chance), "pixels"
    ]
    return int(enough.max() if (frame["condition"] == "delay").all() else enough.min())


def panels(frame, y, fig):
    """Lines of cells against pixels: one row a read-out (or one), columns baselines | without STP |
    with STP; returns the axes.

    Parameters
    ----------
    frame : DataFrame
        cell (name), pixels, the column ``y``, and optionally readout.
    y : str
    fig : matplotlib Figure
    """
    families = {"baselines": 0, "without STP": 1, "with STP": 2}
    frame = frame.assign(family=[style.rank(name)[0] for name in frame["cell"]])
    readouts = list(frame["readout"].unique()) if "readout" in frame else [None]
    axes = fig.subplots(len(readouts), 3, sharey=True, sharex=True, squeeze=False)
    for row, readout in zip(axes, readouts, strict=True):
        for ax, (title, family) in zip(row, families.items(), strict=True):
            part = frame[frame["family"] == family]
            part = part if readout is None else part[part["readout"] == readout]
            for name, line in part.groupby("cell", sort=False):
                own, line = style.look(name), line.sort_values("pixels")
                marker = own.marker if len(line) < 16 else ""
                ax.plot(
                    line["pixels"],
                    line[y],
                    color=own.colour,
                    ls=own.line,
                    marker=marker,
                    mfc=own.face,
                    label=own.label,
                )
            ax.set_title(title if readout is None else f"{title}, {readout} read-out", loc="left")
            if len(part) and readout == readouts[0]:
                ax.legend(frameon=False)
    return axes
