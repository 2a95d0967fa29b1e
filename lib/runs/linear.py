"""The linear reference of a task, stored beside the results: what a softmax on the pixels reaches
without any recurrence.
"""

from dataclasses import fields, replace
from typing import NamedTuple

import pyarrow as pa
from statsmodels.stats.proportion import proportion_confint

from lib import analysis, datasets, paths
from lib.config import Task
from lib.runs import files
from lib.runs.store import TABLES


class Reference(NamedTuple):
    """Test accuracy of a linear softmax on the pixels, 0..1, with a 95 % interval over images."""

    accuracy: float
    low: float  # Wilson's interval; the fit has no seed
    high: float
    predictions: "object"  # DataFrame of the test set: image, label, prediction, probability


def reference(task: Task, root=None, data=None) -> Reference:
    """The linear reference of a task: read where it is stored, else fitted and stored.

    It is looked for in ``linear`` below ``root`` and below each folder there. The order of the
    pixels and blank pixels after them change nothing for it, so that tasks that differ only in
    these share one.

    Parameters
    ----------
    task : Task
    root : path, optional
        Folder of results; default `paths.results_dir`.
    data : path, optional
        Folder of the images, read only where there is no stored reference (`datasets.load`).

    Raises
    ------
    ValueError
        As `datasets.load`, where it has to be fitted.
    StoreError
        The folder cannot be written.
    """
    root = root or paths.results_dir()
    if found := stored(task, root):
        return found
    task, name = _place(task)
    fit = analysis.linear_softmax(datasets.load(task, data))
    table = pa.Table.from_pydict(fit, TABLES["predictions"])
    with files.explained(root):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    files.write(root / name, files.to_parquet(table))
    return _of(table)


def stored(task: Task, root) -> Reference | None:
    """The `reference` of a task where it is stored; it is never fitted."""
    _, name = _place(task)
    for path in (root / name, *sorted(root.glob(f"*/{name}"))):
        try:
            return _of(files.from_parquet(path.read_bytes()))
        except (OSError, pa.ArrowInvalid, KeyError):
            continue  # not there, or cut short
    return None


def _place(task):
    """The task that shares its reference, and the file of that below a folder of results."""
    task = replace(task, permuted=False, delay=0)
    return task, f"linear/{_name(task)}.parquet"


def _of(table):
    frame = table.to_pandas()
    right, n = int((frame["label"] == frame["prediction"]).sum()), len(frame)
    low, high = proportion_confint(right, n, method="wilson")
    return Reference(right / n, low, high, frame)


def _name(task):
    """The data set, and what of the task differs from its plain form."""
    parts = [task.dataset]
    for field in fields(task):
        value = getattr(task, field.name)
        if field.name != "dataset" and value != field.default:
            short = files.digest(value.encode())[:8] if field.name == "source" else value
            parts.append(f"{field.name}_{short}")
    return "-".join(parts)
