"""DaleCB and STPDaleCB with input weights of the gate of any sign: what helped CB, in the cells that it may hold back.

python -m lib sweep notebooks/grids/cifar10_free_input.yaml --cells-from notebooks/grids/free_input.py
"""

from lib.cells import DaleCB, STPDaleCB, register


@register
class DaleCBFreeInput(DaleCB):
    """DaleCB whose gate reads the input with weights of any sign."""

    name, label, positive_P_z = "dale_cb_free_input", "DaleCB, P_z free", False


@register
class STPDaleCBFreeInput(STPDaleCB):
    """STPDaleCB whose gate reads the input with weights of any sign."""

    name, label, positive_P_z = "stp_dale_cb_free_input", "STPDaleCB, P_z free", False
