"""Where things lie: the project, the data, the results."""

import os
from pathlib import Path


def project_root() -> Path:
    """Folder that holds ``lib``, ``notebooks`` and ``results``."""
    return Path(__file__).resolve().parent.parent


def data_dir() -> Path:
    """Folder of the downloaded image data sets; the environment variable ``WORKBOOK_DATA``
    overrides it.
    """
    return Path(os.environ.get("WORKBOOK_DATA", project_root() / "data")).expanduser()


def results_dir() -> Path:
    """Folder of runs, bundles and figures; the environment variable ``WORKBOOK_RESULTS`` overrides
    it.
    """
    return Path(os.environ.get("WORKBOOK_RESULTS", project_root() / "results"))
