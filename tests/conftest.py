"""What all tests share: markers, and one thread for torch."""

import torch

torch.set_num_threads(1)


def pytest_configure(config):
    for marker in (
        "browser: drives Debian's Chromium",
        "tex: needs pdflatex and pdffonts",
        "slurm: needs SLURM's programs and root",
        "chaos: kills processes at random for minutes; `make chaos`",
    ):
        config.addinivalue_line("markers", marker)
