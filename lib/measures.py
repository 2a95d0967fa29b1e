"""What is followed over training beside accuracy: distributions of the parameters and of the
dynamic variables.

Rows are dicts of variable, statistic, value.
"""

import numpy as np
import torch
from torch.nn import functional as F

from lib import windows

# Validation images, and evenly spaced time steps, on which the dynamic variables are followed.
PROBE_IMAGES = PROBE_STEPS = 64
QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}


def parameter_rows(cell, constrained):
    """Quantiles of the constrained parameters, spectral radius and E/I ratio of W, violations of
    Dale's signs.

    Parameters
    ----------
    cell : Cell
    constrained : dict of str to array
        `cell.constrained()`.

    Yields
    ------
    dict
        variable, statistic, value. The E/I ratio is the sum of the excitatory over that of the
        inhibitory weights. Time constants ``tau_x``, ``tau_u`` are -1 / ln(1 - z), in steps.
    """
    for name in ("K", "C", "b_z", "v_e", "v_i", "U_cap"):
        if name in constrained:
            yield from _quantiles(name, constrained[name])
    for name in ("x", "u"):
        if f"z_{name}" in constrained:
            yield from _quantiles(
                f"tau_{name}", -1 / np.log1p(-constrained[f"z_{name}"].astype(np.float64))
            )
    W = constrained.get("W")
    if W is None:
        return
    if cell.signs is None:
        yield from _quantiles("W", W)
    else:
        signs = cell.signs.cpu().numpy()
        yield from _quantiles("W_E", W[:, signs > 0])
        yield from _quantiles("W_I", W[:, signs < 0])
        yield _row("W", "sign_violations", (W * signs < 0).sum())
    if (W < 0).any():
        yield _row("W", "ei_ratio", W.clip(min=0).sum() / -W.clip(max=0).sum())
    if np.isfinite(W).all():
        yield _row(
            "W", "spectral_radius", torch.linalg.eigvals(torch.tensor(W)).abs().max()
        )  # torch: its thread count is set


def dynamic_rows(cell, constrained, trace):
    """Quantiles of the recorded variables, saturation of the gate, voltages outside the reversal
    potentials.

    Parameters
    ----------
    cell : Cell
    constrained : dict of str to array
    trace : dict of str to array (images, steps, hidden)

    Yields
    ------
    dict
        variable, statistic, value; shares are in 0..1.
    """
    if "U" in trace and "X" in trace:
        trace = {**trace, "UX": trace["U"] * trace["X"]}
    for name, values in trace.items():
        yield from _quantiles(name, values)
    if "z" in trace and cell.z_max is not None:
        yield _row("z", "saturated", (trace["z"] > 0.95 * cell.z_max).mean())
    if "v_e" in constrained and "v" in trace:
        yield _row(
            "v",
            "outside",
            ((trace["v"] < constrained["v_i"]) | (trace["v"] > constrained["v_e"])).mean(),
        )


def _quantiles(variable, values):
    # As np.quantile, which takes five times as long.
    ordered = np.sort(values, axis=None)
    position = np.array(list(QUANTILES.values())) * (len(ordered) - 1)
    low, high = (ordered[f(position).astype(int)].astype(float) for f in (np.floor, np.ceil))
    found = low + (high - low) * (position % 1)
    if np.isnan(ordered[-1]):
        found[:] = np.nan
    for statistic, value in zip(QUANTILES, found, strict=True):
        yield _row(variable, statistic, value)


def _row(variable, statistic, value):
    return {"variable": variable, "statistic": statistic, "value": float(value)}


class Evaluation:
    """A model on the images of a split, in batches of the training size, so that compiled graphs
    are shared.

    Parameters
    ----------
    model : SequenceClassifier
    single : SequenceClassifier
        For one seed, to read constrained parameters: the model itself, or one like it.
    data : Dataset
    config : RunConfig
    """

    def __init__(self, model, single, data, config):
        self.model, self.single, self.data, self.config = model, single, data, config

    def sequence(self, split, index):
        """Sequences (..., time, features) and labels (...) of the images at `index` (...)."""
        return windows.sequences(self.data, self.config.window, split, index)

    @torch.no_grad()
    def predict(self, split, first=None):
        """Logits (S, images, classes) of a whole split.

        Parameters
        ----------
        split : str
        first : Tensor of int, optional
            Images whose recorded variables are wanted too.

        Returns
        -------
        tuple
            The logits, and a dict of variable to array (S, images, steps, hidden), at
            `PROBE_STEPS` evenly spaced steps; empty without `first`.
        """
        batch, images = self.config.training.batch_size, len(self.data.labels[split])
        first = torch.arange(0) if first is None else first
        others = torch.ones(images, dtype=torch.bool).index_fill_(0, first, False)
        order = torch.cat((first, others.nonzero().flatten()))
        padded = order[torch.arange(-(-images // batch) * batch) % images]
        logits, traces = [], []
        for start in range(0, len(padded), batch):
            index = padded[start : start + batch].to(self.model.readout.weight.device)
            x, _ = self.sequence(split, index)
            if start < len(first):
                last = x.shape[-2] - 1
                steps = torch.linspace(0, last, min(PROBE_STEPS, last + 1)).long()
                part, trace = self.model(x, record=steps.to(x.device))
                traces.append(trace)
            else:
                part = self.model(x)
            logits.append(part)
        logits = torch.cat(logits, -2)[..., :images, :][..., order.argsort(), :]
        return self._seeded(logits), self._joined(traces, len(first))

    def _seeded(self, tensor):
        """With the leading seed axis that a model for one seed does not give."""
        return tensor if self.model.seeds else tensor.unsqueeze(0)

    def _joined(self, traces, images):
        return {
            name: self._seeded(torch.cat([trace[name] for trace in traces], -3))[:, :images]
            .cpu()
            .numpy()
            for name in (traces[0] if traces else ())
        }

    def scores(self, logits, split):
        """Mean loss and accuracy (S,) of logits (S, images, classes)."""
        labels = self.data.labels[split].expand(len(logits), -1)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return loss.view(len(logits), -1).mean(1), (logits.argmax(-1) == labels).float().mean(1)

    @torch.no_grad()
    def validate(self, parameters, alive):
        """Validation loss and accuracy of each seed, and rows of what is followed.

        Parameters
        ----------
        parameters : dict of str to Tensor
            Those of all seeds, which lead.
        alive : callable
            Whether the seed at a position, with this loss, has not diverged.

        Returns
        -------
        loss, accuracy : list of float
        rows : dict of int to list of dict
            variable, statistic, value of each seed that has not diverged.
        """
        available = len(self.data.labels["validation"])
        images = torch.linspace(0, available - 1, min(PROBE_IMAGES, available)).long()
        logits, trace = self.predict("validation", images)
        loss, accuracy = (values.tolist() for values in self.scores(logits, "validation"))
        rows = {}
        for s in range(len(logits)):
            if alive(s, loss[s]):
                rows[s] = self._measure(
                    {name: value[s] for name, value in parameters.items()},
                    {name: value[s] for name, value in trace.items()},
                )
        return loss, accuracy, rows

    def _measure(self, parameters, trace):
        if self.single is not self.model:
            for name, parameter in self.single.named_parameters():
                parameter.copy_(parameters[name])
        cell = self.single.cell
        constrained = {k: v.detach().cpu().numpy() for k, v in cell.constrained().items()}
        return [
            *parameter_rows(cell, constrained),
            *dynamic_rows(cell, constrained, trace),
        ]
