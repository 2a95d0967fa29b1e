"""The rungs between CB-GRU and the simple GRU that options of the conductance family do not say.

python -m lib sweep GRID.yaml --cells-from notebooks/grids/ladder.py
"""

import torch

from lib import checks
from lib.cells import CBGRU, VoltageState, register


@register
class CBGRUBridge(CBGRU):
    """CB-GRU in which what else differs from the simple GRU is an option too.

        z_t = z_max sigma(K r + P_z x_t + b_z)                  r = sigma(v_{t-1}), or v_{t-1}
        v_t = (1 - z_t) v_{t-1} + dt or z_t times f(W r + P x_t + b)

    rate : {"sigma", "v"}
        r = sigma(v), or the state itself.
    target : {"linear", "sigma"}
        f.
    read : {"v", "rate"}
        What the read-out reads; alike for rate "v".

    With drive "z", z_max 1, rate "v" and target "sigma" it is the simple GRU (K is its W_z), and
    with gate_bias "open" it starts as one, but for the spread of b_z.
    """

    name, label = "cb_gru_bridge", "CB-GRU bridge"
    choices = {"rate": ("sigma", "v"), "target": ("linear", "sigma"), "read": ("v", "rate")}  # noqa: RUF012
    defaults = {option: words[0] for option, words in choices.items()}  # noqa: RUF012

    @classmethod
    def check_options(cls, hidden_size, options):
        super().check_options(hidden_size, options)
        for option in cls.choices.keys() & options.keys():
            checks.one_of(option, options[option], cls.choices[option])

    def firing_rate(self, v):
        return v if self.rate == "v" else torch.sigmoid(v)

    def presynaptic(self, state, theta):
        return (self.firing_rate(state.v),)

    def update(self, state, a, g, theta):
        gate, drive = (a[0] + g).chunk(2, -1)
        z = self.z_max * torch.sigmoid(gate)
        target = torch.sigmoid(drive) if self.target == "sigma" else drive
        return VoltageState((1 - z) * state.v + (z if self.drive == "z" else self.dt) * target)

    def saved(self, previous, state, signals, a, g, theta):
        gate, target = torch.sigmoid(a[0] + g).chunk(2, -1)
        return (gate, target) if self.target == "sigma" else (gate,)

    def pullback(self, previous, state, signals, saved, adjoint, theta, transpose):
        gate, r = saved[0], signals[0]
        z = self.z_max * gate
        if self.drive == "z":  # z (f - v_{t-1}) is the step of v
            grad_gate = (state.v - previous.v) * (1 - gate) * adjoint.v
            grad_drive = z * adjoint.v
        else:
            grad_gate = -z * (1 - gate) * previous.v * adjoint.v
            grad_drive = self.dt * adjoint.v
        if self.target == "sigma":
            grad_drive = grad_drive * saved[1] * (1 - saved[1])
        grad = torch.cat((grad_gate, grad_drive), -1)
        grad_r = transpose((grad,))[0]
        through = grad_r if self.rate == "v" else r * (1 - r) * grad_r
        return VoltageState((1 - z) * adjoint.v + through), None, grad, {}

    def observe(self, previous, state, a, g, theta):
        z = self.z_max * torch.sigmoid((a[0] + g).chunk(2, -1)[0])
        return {"v": state.v, "r": self.firing_rate(state.v), "z": z}

    def output(self, state):
        return self.firing_rate(state.v) if self.read == "rate" else state.v
