"""The notes' own style, the comparator of the benchmarks: a Python loop that constrains parameters
and forms every product at each step.
"""

import torch

from lib import cells


class NotesLoop(torch.nn.Module):
    """A cell of the conductance family run as the notes write it: states (hidden, batch), the
    stride in a Python loop.
    """

    def __init__(self, name, input_size, hidden_size):
        super().__init__()
        self.cell = cells.get(name)(
            input_size, hidden_size, generator=torch.Generator().manual_seed(0)
        )

    def forward(self, pixels, input_length, stride):
        """Final voltage (batch, hidden) from flat pixels (batch, values); lengths in values."""
        cell, dt = self.cell, self.cell.dt
        v = torch.zeros(cell.hidden_size, len(pixels))
        if cell.stp:
            X = torch.ones_like(v)
            U = (0.9 * torch.sigmoid(cell.c_U)).unsqueeze(1).expand_as(v)
        for start in range(0, pixels.shape[1] - input_length + 1, stride):
            x = pixels[:, start : start + input_length].T
            K = torch.exp(cell.log_K) if cell.positive_K else cell.K
            P_z = torch.exp(cell.log_P_z) if cell.positive_P_z else cell.P_z
            W = cell.drive_weights(K)
            r = torch.sigmoid(v)
            presynaptic = r
            if cell.stp:
                z_x = (0.001 + 0.099 * torch.sigmoid(cell.c_x)).unsqueeze(1)
                z_u = (0.001 + 0.099 * torch.sigmoid(cell.c_u)).unsqueeze(1)
                U_cap = (0.9 * torch.sigmoid(cell.c_U)).unsqueeze(1)
                X_next = z_x + (1 - z_x) * X - cell.stp_dt * U * X * r
                U = U_cap * z_u + (1 - z_u) * U + cell.stp_dt * U_cap * (1 - U) * r
                X = X_next
                presynaptic = U * X * r
            z = dt * torch.sigmoid(
                torch.matmul(K, r) + torch.matmul(P_z, x) + cell.b_z.unsqueeze(1)
            )
            v = (1 - z) * v + dt * (
                torch.matmul(W, presynaptic) + torch.matmul(cell.P, x) + cell.b.unsqueeze(1)
            )
        return v.T
