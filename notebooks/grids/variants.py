"""Cells that each change one thing in a cell of the comparison; the grid of the variants names them.

python -m lib sweep notebooks/grids/cifar10_variants.yaml --cells-from notebooks/grids/variants.py
"""

import torch

from lib.cells import CB, CBGRU, DaleCB, STPDaleCB, VoltageState, register


@register
class DaleCBAll(DaleCB):
    """DaleCB whose inhibitory units are read out too."""

    name, label = "dale_cb_all", "DaleCB, all units read"
    readout_size = property(lambda self: self.hidden_size)


@register
class STPDaleCBAll(STPDaleCB):
    """STPDaleCB whose inhibitory units are read out too."""

    name, label = "stp_dale_cb_all", "STPDaleCB, all units read"
    readout_size = property(lambda self: self.hidden_size)


@register
class CBRate(CB):
    """CB whose firing rates sigma(v) are read out instead of v."""

    name, label = "cb_rate", "CB, rates read"

    def output(self, state):
        return torch.sigmoid(super().output(state))


@register
class DaleCBRate(DaleCB):
    """DaleCB whose firing rates sigma(v) are read out instead of v."""

    name, label = "dale_cb_rate", "DaleCB, rates read"

    def output(self, state):
        return torch.sigmoid(super().output(state))


@register
class CBFreeInput(CB):
    """CB whose gate reads the input with weights of any sign."""

    name, label, positive_P_z = "cb_free_input", "CB, P_z free", False


@register
class CBGRUDrive(CBGRU):
    """CB-GRU with the drive of the simple GRU: v_t = (1 - z_t) v_{t-1} + z_t sigma(W r_{t-1} + P x_t + b)."""

    name, label, additive = "cb_gru_drive", "CB-GRU, drive z σ", True

    def update(self, state, a, g, theta):
        gate, drive = self._products(a, g)
        z = self.dt * torch.sigmoid(gate)
        return VoltageState((1 - z) * state.v + z * torch.sigmoid(drive))
