"""What is followed over training beside accuracy: distributions of the parameters and of the
dynamic variables.

Rows are dicts of variable, statistic, value.
"""

import numpy as np
import torch

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
    for statistic, value in zip(
        QUANTILES, np.quantile(values, list(QUANTILES.values())), strict=True
    ):
        yield _row(variable, statistic, value)


def _row(variable, statistic, value):
    return {"variable": variable, "statistic": statistic, "value": float(value)}
