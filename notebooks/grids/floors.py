"""What CB reaches without its recurrence: floors of the comparison.

python -m lib sweep GRID.yaml --cells-from notebooks/grids/floors.py
"""

from lib import checks
from lib.cells import CB, register


@register
class CBFloor(CB):
    """CB with some of its weights held at zero.

    without : {"none", "K", "gate", "recurrence"}
        "K": no recurrent conductance, the gate reads the input alone. "gate": K = P_z = 0, each
        unit has a constant gate. "recurrence": K = P_z = W = 0, a bank of leaky integrators of the
        input.

    Gates start at the same time constants as CB's.
    """

    name, label = "cb_floor", "CB floor"
    parts = {"none": "", "K": "K", "gate": "K P_z", "recurrence": "K P_z W"}  # noqa: RUF012
    defaults = {"without": "none"}  # noqa: RUF012

    @classmethod
    def check_options(cls, hidden_size, options):
        super().check_options(hidden_size, options)
        checks.one_of("without", options.get("without", "none"), cls.parts)

    def kept(self, name):
        return 0.0 if name in self.parts[self.without].split() else 1.0

    def gate_weights(self):
        return self.kept("K") * super().gate_weights()

    def gate_input_weights(self):
        return self.kept("P_z") * super().gate_input_weights()

    def drive_weights(self, K):
        return self.kept("W") * super().drive_weights(K)
