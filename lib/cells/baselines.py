"""The cells without conductances: vanilla RNN, simple GRU, full GRU."""

from typing import NamedTuple

import torch

from lib.cells.base import Cell
from lib.cells.registry import register


class RateState(NamedTuple):
    """State of the rate cells, h or r: (batch, H)."""

    h: torch.Tensor


@register
class RNN(Cell):
    """h_t = tanh(W h_{t-1} + P x_t + b). Equals torch.nn.RNN with b = b_ih + b_hh (Elman 1990)."""

    name, label, variables, additive = "rnn", "vanilla RNN", ("h",), True
    roles = {"P": "input"}  # noqa: RUF012

    def initialise(self, initialisation, generator):
        H, I = self.hidden_size, self.input_size  # noqa: E741
        self.W = self.uniform(H, H, generator=generator)
        self.P = self.uniform(H, I, generator=generator)
        self.b = self.uniform(H, generator=generator)

    def input_weights(self):
        return self.P, self.b

    def recurrent_weights(self):
        return (self.W,)

    def initial_state(self, batch, theta):
        return RateState(self.W.new_zeros(batch, self.hidden_size))

    def presynaptic(self, state, theta):
        return (state.h,)

    def update(self, state, a, g, theta):
        return RateState(torch.tanh(a[0] + g))

    def saved(self, previous, state, signals, a, g, theta):
        return ()

    def pullback(self, previous, state, signals, saved, adjoint, theta, transpose):
        grad = (1 - state.h * state.h) * adjoint.h
        return RateState(*transpose((grad,))), (grad,), grad, {}


@register
class SimpleGRU(RNN):
    """Gated rates, with r = r_{t-1}:

    z_t = sigma(W_z r + P_z x_t + b_z)
    r_t = (1 - z_t) r + z_t sigma(W r + P x_t + b)
    """

    name, label, variables, z_max = "simple_gru", "simple GRU", ("r", "z"), 1.0
    roles = {"W_z": "gate", "b_z": "gate", "P_z": "input", "P": "input"}  # noqa: RUF012

    def initialise(self, initialisation, generator):
        H, I = self.hidden_size, self.input_size  # noqa: E741
        self.W_z = self.uniform(H, H, generator=generator)
        self.P_z = self.uniform(H, I, generator=generator)
        self.b_z = self.uniform(H, generator=generator)
        super().initialise(initialisation, generator)

    def input_weights(self):
        return torch.cat((self.P_z, self.P)), torch.cat((self.b_z, self.b))

    def recurrent_weights(self):
        return (torch.cat((self.W_z, self.W)),)

    def update(self, state, a, g, theta):
        gate, drive = (a[0] + g).chunk(2, -1)
        z = torch.sigmoid(gate)
        return RateState((1 - z) * state.h + z * torch.sigmoid(drive))

    def saved(self, previous, state, signals, a, g, theta):
        return torch.sigmoid(a[0] + g).chunk(2, -1)

    def pullback(self, previous, state, signals, saved, adjoint, theta, transpose):
        z, target = saved
        slope = adjoint.h * z
        grad = torch.cat(
            (slope * (1 - z) * (target - previous.h), slope * target * (1 - target)), -1
        )
        return RateState(adjoint.h - slope + transpose((grad,))[0]), (grad,), grad, {}

    def observe(self, previous, state, a, g, theta):
        return {"r": state.h, "z": torch.sigmoid((a[0] + g).chunk(2, -1)[0])}


@register
class GRU(Cell):
    """torch.nn.GRU (Cho et al. 2014; reset gate applied after the matrix product), with
    torch.nn.GRUCell's names and gate order.

    torch's update gate multiplies the OLD state; the recorded z is the fraction replaced, one minus
    torch's gate.
    """

    name, label, variables, z_max = "gru", "full GRU", ("h", "z"), 1.0
    roles = {"weight_ih": "input"}  # noqa: RUF012

    def initialise(self, initialisation, generator):
        H, I = self.hidden_size, self.input_size  # noqa: E741
        self.weight_ih = self.uniform(3 * H, I, generator=generator)
        self.weight_hh = self.uniform(3 * H, H, generator=generator)
        self.bias_ih = self.uniform(3 * H, generator=generator)
        self.bias_hh = self.uniform(3 * H, generator=generator)

    def input_weights(self):
        # The recurrent biases of both gates simply add to g; only the candidate's is scaled by the
        # reset gate.
        gates, candidate = self.bias_hh.split((2 * self.hidden_size, self.hidden_size))
        return self.weight_ih, self.bias_ih + torch.cat((gates, torch.zeros_like(candidate)))

    def recurrent_weights(self):
        return (self.weight_hh,)

    def pointwise(self):
        return {"bias_hn": self.bias_hh[2 * self.hidden_size :]}

    def initial_state(self, batch, theta):
        return RateState(self.weight_hh.new_zeros(batch, self.hidden_size))

    def presynaptic(self, state, theta):
        return (state.h,)

    def update(self, state, a, g, theta):
        a_r, a_u, a_n = a[0].chunk(3, -1)
        g_r, g_u, g_n = g.chunk(3, -1)
        u = torch.sigmoid(a_u + g_u)
        n = torch.tanh(g_n + torch.sigmoid(a_r + g_r) * (a_n + theta["bias_hn"]))
        return RateState((1 - u) * n + u * state.h)

    def saved(self, previous, state, signals, a, g, theta):
        # Written as in `update`: the compiler then computes each gate once.
        a_r, a_u, a_n = a[0].chunk(3, -1)
        g_r, g_u, g_n = g.chunk(3, -1)
        r, scaled = torch.sigmoid(a_r + g_r), a_n + theta["bias_hn"]
        return r, torch.sigmoid(a_u + g_u), scaled, torch.tanh(g_n + r * scaled)

    def pullback(self, previous, state, signals, saved, adjoint, theta, transpose):
        r, u, scaled, n = saved
        grad_n = adjoint.h * (1 - u) * (1 - n * n)
        gates = torch.cat(
            (grad_n * scaled * r * (1 - r), adjoint.h * (previous.h - n) * u * (1 - u)), -1
        )
        grad_a, grad_g = torch.cat((gates, grad_n * r), -1), torch.cat((gates, grad_n), -1)
        return (
            RateState(adjoint.h * u + transpose((grad_a,))[0]),
            (grad_a,),
            grad_g,
            {"bias_hn": grad_n * r},
        )

    def observe(self, previous, state, a, g, theta):
        return {"h": state.h, "z": 1 - torch.sigmoid(a[0].chunk(3, -1)[1] + g.chunk(3, -1)[1])}

    def parameters_by_role(self):
        # Of the recurrent rows, those of reset and update count as gate, the candidate's as drive.
        count = super().parameters_by_role()
        gates = 2 * (self.weight_hh.numel() + self.bias_hh.numel()) // 3
        return {**count, "gate": gates, "drive": count["drive"] - gates}

    def constrained(self):
        return {
            "W": self.weight_hh[2 * self.hidden_size :],
            "P": self.weight_ih[2 * self.hidden_size :],
            **dict(self.named_parameters()),
        }
