"""A repair of DaleCB that options of the conductance family do not say.

python -m lib sweep GRID.yaml --cells-from notebooks/grids/repairs.py
"""

import torch

from lib.cells import DaleCB, register


@register
class DaleCBSoftplus(DaleCB):
    """DaleCB whose positive weights are softplus(y) = ln(1 + e^y) in place of exp(y).

    It starts from the same weights as DaleCB; only the parameters that hold them differ, and with
    them how far a step of the optimiser moves a weight. ``log_K`` and the like hold y here.
    """

    name, label = "dale_cb_softplus", "DaleCB, softplus"

    def positive(self, weight):
        return torch.nn.functional.softplus(weight)

    def held(self, logarithm):
        return torch.log(torch.expm1(logarithm.exp()))
