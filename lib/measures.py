"""What is followed over training beside accuracy: distributions of the parameters and of the
dynamic variables, as rows (dicts) of variable, statistic, value.
"""

import itertools

import numpy as np
import torch
from torch.nn import functional as F

from lib import windows

# Validation images, and evenly spaced time steps, on which the dynamic variables are followed.
PROBE_IMAGES = PROBE_STEPS = 64
TOGETHER = 8  # batches whose sequences are read at once; more would only take more memory
QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}


def parameter_rows(cell, constrained):
    """Quantiles of `Cell.constrained` (arrays), spectral radius and E/I ratio of W, violations of
    Dale's signs.

    The E/I ratio is the sum of the excitatory over that of the inhibitory weights. Time constants
    ``tau_x``, ``tau_u`` are -1 / ln(1 - z), in steps.
    """
    for name in ("K", "C", "b_z", "v_e", "v_i", "U_cap"):
        if name in constrained:
            yield from _quantiles(name, constrained[name].copy())
    for name in ("x", "u"):
        if f"z_{name}" in constrained:
            z = constrained[f"z_{name}"].astype(np.float64)
            yield from _quantiles(f"tau_{name}", -1 / np.log1p(-z))
    W = constrained.get("W")
    if W is None:
        return
    if cell.signs is None:
        yield from _quantiles("W", W.copy())
    else:
        signs = cell.signs.cpu().numpy()
        yield from _quantiles("W_E", W[:, signs > 0])
        yield from _quantiles("W_I", W[:, signs < 0])
        yield _row("W", "sign_violations", (W * signs < 0).sum())
    if (W < 0).any():
        yield _row("W", "ei_ratio", W.clip(min=0).sum() / -W.clip(max=0).sum())
    if np.isfinite(W).all():
        radius = torch.linalg.eigvals(torch.tensor(W)).abs().max()  # torch: its threads are set
        yield _row("W", "spectral_radius", radius)


def dynamic_rows(cell, constrained, trace):
    """Quantiles of recorded variables, arrays (images, steps, hidden), and shares in 0..1: of the
    gate near its largest value, of voltages outside the reversal potentials. The arrays are sorted
    in place, as they are large.
    """
    if "U" in trace and "X" in trace:
        trace = {**trace, "UX": trace["U"] * trace["X"]}
    if "z" in trace and cell.z_max is not None:
        yield _row("z", "saturated", _share(trace["z"] > 0.95 * cell.z_max))
    if "v_e" in constrained and "v" in trace:
        outside = (trace["v"] < constrained["v_i"]) | (trace["v"] > constrained["v_e"])
        yield _row("v", "outside", _share(outside))
    for name, values in trace.items():
        yield from _quantiles(name, values)


def _share(told):
    return np.count_nonzero(told) / told.size  # the mean takes ten times as long


def _quantiles(variable, values):
    """As np.quantile, which takes many times as long; the values are sorted in place."""
    position = np.array(list(QUANTILES.values())) * (values.size - 1)
    ranks = np.floor(position).astype(int), np.ceil(position).astype(int)
    ordered = values.reshape(-1)
    ordered.sort()
    low, high = ordered[np.array(ranks)].astype(float)
    found = low + (high - low) * (position % 1)
    if np.isnan(ordered[-1]):  # NaN comes last
        found[:] = np.nan
    for statistic, value in zip(QUANTILES, found, strict=True):
        yield _row(variable, statistic, value)


def _row(variable, statistic, value):
    return {"variable": variable, "statistic": statistic, "value": float(value)}


@torch.no_grad()
def predict(model, data, config, split, probe=False):
    """Logits (S, images, classes) of a split, S = 1 for a model without seeds; in batches of the
    training size, so that compiled graphs are shared.

    Returns
    -------
    tuple
        The logits, and a dict of the recorded variables, arrays (S, images, steps, hidden), of
        `PROBE_IMAGES` and `PROBE_STEPS` evenly spaced; empty without ``probe``.
    """
    batch, images = config.training.batch_size, len(data.labels[split])
    probes = min(PROBE_IMAGES, images) if probe else 0
    first = torch.linspace(0, images - 1, probes).long()
    others = torch.ones(images, dtype=torch.bool).index_fill_(0, first, False)
    order = torch.cat((first, others.nonzero().flatten()))
    padded = order[torch.arange(-(-images // batch) * batch) % images]
    several = (
        windows.sequences(data, config.window, split, index)[0].split(batch)
        for index in padded.split(TOGETHER * batch)
    )
    last = windows.task_length(config.task, config.window) - 1
    spaced = torch.linspace(0, last, PROBE_STEPS).long().to(model.readout.weight.device)
    steps = slice(None) if last < PROBE_STEPS else spaced
    logits, traces = model.predict(itertools.chain.from_iterable(several), steps, probes)
    logits = logits[..., :images, :][..., order.argsort(), :]

    def seeded(tensor):
        return tensor if model.seeds else tensor.unsqueeze(0)

    recorded = {}
    for name in model.cell.variables if probe else ():
        recorded[name] = seeded(torch.cat([part.pop(name) for part in traces], -3)).cpu().numpy()
    return seeded(logits), recorded


def scores(logits, labels):
    """Mean loss and accuracy (S,) of logits (S, images, classes)."""
    labels = labels.expand(len(logits), -1)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return loss.view(len(logits), -1).mean(1), (logits.argmax(-1) == labels).float().mean(1)
