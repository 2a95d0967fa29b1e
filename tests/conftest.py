"""What all tests share: markers, and one thread for torch."""

import pytest
import torch

from lib import paths

torch.set_num_threads(1)


def pytest_configure(config):
    for marker in (
        "browser: drives Debian's Chromium",
        "tex: needs pdflatex and pdffonts",
        "slurm: needs SLURM's programs and root",
        "chaos: kills processes at random for minutes; `make chaos`",
    ):
        config.addinivalue_line("markers", marker)


@pytest.fixture(scope="session")
def real_cifar10():
    """Folder of the real CIFAR-10."""
    for folder in (paths.data_dir(), paths.project_root().parent / "shared" / "data"):
        if (folder / "cifar-10-batches-py" / "data_batch_1").exists():
            return folder
    pytest.skip("needs the real CIFAR-10 in WORKBOOK_DATA, data/ or ../shared/data")
