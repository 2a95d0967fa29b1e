"""Where things lie: the project, the data, the results."""

import os
from pathlib import Path


def project_root() -> Path:
    """Folder that holds ``lib``, ``notebooks`` and ``results``."""
    return Path(__file__).resolve().parent.parent


def expanded(path) -> Path:
    """A path as a person writes it: ``~`` is the home folder."""
    return Path(path).expanduser()


def data_dir() -> Path:
    """Folder of the image data sets; the environment variable ``WORKBOOK_DATA`` overrides it."""
    return expanded(os.environ.get("WORKBOOK_DATA") or project_root() / "data")


def results_dir() -> Path:
    """Folder of runs, bundles, figures; the environment variable ``WORKBOOK_RESULTS`` overrides
    it.
    """
    return expanded(os.environ.get("WORKBOOK_RESULTS") or project_root() / "results")
