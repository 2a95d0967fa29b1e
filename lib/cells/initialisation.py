"""Policies of initialisation of the conductance family: the notes' own, and a balanced one.

Both draw P, b, plasticity, K, P_z, W, b_z in this order, and the same random numbers whatever the
options, so that variants of a cell start from paired weights. What is free of sign is uniform
within +-1/sqrt(H) (`Cell.uniform`); what must be positive is held as its logarithm.
"""

import math
from functools import partial

import torch
from torch import nn

SPREAD = 0.5  # standard deviation of the logarithm of a positive weight, balanced


def draw_common(cell, generator):
    """P, b, and with plasticity c_x, c_u, c_U ~ U(0, 1), alike in both policies."""
    cell.P = cell.uniform(cell.hidden_size, cell.input_size, generator=generator)
    cell.b = cell.uniform(cell.hidden_size, generator=generator)
    if cell.stp:
        for name in ("c_x", "c_u", "c_U"):
            drawn = cell.uniform(cell.hidden_size, low=0, high=1, generator=generator)
            setattr(cell, name, drawn)


def notes(cell, generator):
    """log_K, log_C, log_W, log_P_z, b_z ~ U(0, 1); log_v_e = log_v_i = 1. The gate starts
    saturated, since K r sums to about H.
    """
    H, I = cell.hidden_size, cell.input_size  # noqa: E741
    free = partial(cell.uniform, generator=generator)
    unit = partial(torch.rand, generator=generator)
    if cell.positive_K:
        cell.log_K = cell.holding(unit(H, H))
    else:
        cell.K = free(H, H)
    if not cell.positive_P_z:
        cell.P_z = free(H, I)
    elif cell.input_gate == "free":
        cell.P_z = _free_from(unit(H, I), H)
    else:
        cell.log_P_z = cell.holding(unit(H, I))
    if cell.weights == "free":
        cell.W = free(H, H)
    elif cell.weights == "sign":
        cell.log_W = cell.holding(unit(H, H))
    else:
        cell.log_C = cell.holding(unit(H, H))
        cell.log_v_e = cell.holding(torch.tensor(1.0))
        cell.log_v_i = cell.holding(torch.tensor(1.0))
    cell.b_z = nn.Parameter(unit(H))
    if cell.gate_bias == "open":
        _centre(cell, torch.zeros(H))


def balanced(cell, generator):
    """Every gate starts unsaturated, every cell from an equal drive.

    K and C are log-normal with rows that sum to 1 (those of K to conductance_gain), P_z too. W has
    the second moment 1/(3H) of the free cells' uniform weights, with excitation and inhibition
    equal in the mean (Rajan and Abbott 2006), and is scaled up under plasticity by the efficacy
    U X at r = 1/2. For b_z see `chrono`.
    """
    H, I = cell.hidden_size, cell.input_size  # noqa: E741
    free = partial(cell.uniform, generator=generator)

    def log_normal(*shape, mean):
        normal = torch.randn(*shape, generator=generator)
        return normal * SPREAD + math.log(mean) - SPREAD**2 / 2

    if cell.positive_K:
        cell.log_K = cell.holding(log_normal(H, H, mean=cell.conductance_gain / H))
    else:
        cell.K = free(H, H)
    if not cell.positive_P_z:
        cell.P_z = free(H, I)
    else:
        log_P_z = log_normal(H, I, mean=1 / I)
        if cell.input_gate == "free":
            normal = (log_P_z - math.log(1 / I) + SPREAD**2 / 2) / SPREAD
            cell.P_z = _free_from(torch.special.ndtr(normal), H)
        else:
            cell.log_P_z = cell.holding(log_P_z)
    gain = 1 / efficacy(cell) if cell.stp else 1.0
    excitatory = cell.excitatory / H if cell.dale else 0.5
    # Columns of excitatory and of inhibitory units: equal sums, the same second moment of a row.
    column_e = math.sqrt((1 - excitatory) / excitatory)
    column_i = math.sqrt(excitatory / (1 - excitatory))
    if cell.weights == "free":
        cell.W = nn.Parameter(free(H, H).data * gain)
    elif cell.weights == "sign":
        log_W = log_normal(H, H, mean=gain * math.exp(-(SPREAD**2) / 2) / math.sqrt(3 * H))
        log_W += torch.where(cell.signs > 0, math.log(column_e), math.log(column_i))
        cell.log_W = cell.holding(log_W)
    else:
        cell.log_C = cell.holding(log_normal(H, H, mean=1 / H))
        K_sum = cell.conductance_gain if cell.positive_K else 1.0
        moment = ((K_sum**2 + 1) * math.exp(SPREAD**2) + 2 * K_sum) / H**2  # of K + C
        scale = gain / math.sqrt(3 * H * moment)
        cell.log_v_e = cell.holding(torch.tensor(math.log(scale * column_e)))
        cell.log_v_i = cell.holding(torch.tensor(math.log(scale * column_i)))
    cell.b_z = free(H, low=0, high=1)  # drawn for the notes' sake: the read-out's numbers follow
    _centre(cell, torch.zeros(H) if cell.gate_bias == "open" else chrono(cell))


def chrono(cell):
    """b_z (H,) of gates that start at 1/tau, with tau log-spaced from 2/dt to max(T, 4/dt) steps,
    in excitatory and inhibitory units alike (Tallec and Ollivier 2018).

    z_max sigma(b_z) = 1/tau gives b_z = -ln(z_max tau - 1). So another z_max leaves the time
    constants where they were, and moves only how far the gate can open. A z_max below dt, of which
    2/dt would be out of reach, takes the place of dt.
    """
    step = min(cell.dt, cell.z_max)
    shortest = math.log10(2 / step)
    longest = math.log10(max(cell.sequence_length, 4 / step))
    E = cell.excitatory
    groups = (E, cell.hidden_size - E) if cell.dale else (cell.hidden_size,)
    tau = torch.cat([torch.logspace(shortest, longest, units) for units in groups])
    return -torch.log(cell.z_max * tau - 1)


@torch.no_grad()
def efficacy(cell):
    """Mean steady U X at the rate of v = 0, r = 1/2."""
    theta = cell.pointwise()
    r, d = 0.5, cell.stp_dt
    U = theta["U_cap"] * (theta["z_u"] + d * r) / (theta["z_u"] + d * theta["U_cap"] * r)
    return float((U * theta["z_x"] / (theta["z_x"] + d * U * r)).mean())


@torch.no_grad()
def _centre(cell, b_z):
    """Take the mean of K r at r = 1/2 off b_z."""
    cell.b_z.copy_(b_z - cell.constrained()["K"].sum(1).mean() / 2)


def _free_from(unit, hidden_size):
    """Weights of any sign from the numbers, uniform in (0, 1), that the positive ones come from."""
    return nn.Parameter((2 * unit - 1) / math.sqrt(hidden_size))
