"""The linear reference of a task, stored beside the results: what a softmax on the pixels reaches
without any recurrence.
"""

from dataclasses import fields, replace
from typing import NamedTuple

import pyarrow as pa
from scipy.stats import binomtest

from lib import analysis, datasets, files, paths
from lib.config import Task


class Reference(NamedTuple):
    """Test accuracy of a linear softmax on the pixels, 0..1, with a 95 % interval over images."""

    accuracy: float
    low: float  # Wilson's interval; the fit has no seed
    high: float
    predictions: "object"  # DataFrame of the test set: image, label, prediction, probability


def reference(task: Task, root=None, data=None) -> Reference:
    """The linear reference of a task: read where it is `stored`, else fitted to the images in the
    folder ``data`` and stored below ``root`` (default `paths.results_dir`).

    Raises
    ------
    ValueError
        As `datasets.load`.
    StoreError
        The folder cannot be written.
    """
    root = root or paths.results_dir()
    if found := stored(task, root):
        return found
    task, name = _place(task)
    fit = analysis.linear_softmax(datasets.load(task, data))
    files.made((root / name).parent)
    files.write(root / name, files.to_parquet(fit, files.TABLES["predictions"]))
    return stored(task, root)


def stored(task: Task, root) -> Reference | None:
    """The `reference` of a task, of ``linear`` below ``root`` or below a folder there; None where
    it is not.
    """
    _, name = _place(task)
    for path in (root / name, *sorted(root.glob(f"*/{name}"))):
        try:
            frame = files.from_parquet(path.read_bytes()).to_pandas()
            right, n = int((frame["label"] == frame["prediction"]).sum()), len(frame)
        except (OSError, pa.ArrowInvalid, KeyError):
            continue  # not there, or cut short
        low, high = binomtest(right, n).proportion_ci(method="wilson")
        return Reference(right / n, low, high, frame)
    return None


def _place(task):
    """The task that shares its reference, for which the order of the pixels and blank pixels
    change nothing, and its file, which names the data set and what differs from its plain form.
    """
    task = replace(task, permuted=False, delay=0)
    parts = [task.dataset]
    for field in fields(task):
        value = getattr(task, field.name)
        if field.name != "dataset" and value != field.default:
            short = files.digest(value.encode())[:8] if field.name == "source" else value
            parts.append(f"{field.name}_{short}")
    return task, f"linear/{'-'.join(parts)}.parquet"
