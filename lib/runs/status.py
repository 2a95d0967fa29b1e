"""The status of a run: the small row that says what it is and how far it came, in ``status.json``.

An attempt writes its own; what no process works on is marked in the folder of the run.
"""

import contextlib
import json
import socket
import time

from lib import files, system
from lib.files import StoreError

# The data sets and cells are imported where a run is described: `status` starts without torch.

FINISHED = ("DONE", "DIVERGED")
STALE = 60  # seconds without a heartbeat after which a running attempt reads as interrupted
# Columns that say what a run is, in every frame.
CONFIGURATION = (
    *("key", "dataset", "permuted", "last_rows", "first_rows", "delay", "data_seed"),
    *("input_length", "stride", "scan", "convention", "window", "sequence_length"),
    *("image_shape", "class_names"),
    *("cell", "label", "hidden_size", "initialisation", "options", "source"),
    *("epochs", "batch_size", "learning_rate", "clip_norm", "validations_per_epoch", "seed"),
)
RESULTS = (
    *("best_epoch", "validation_accuracy", "test_accuracy", "test_loss", "parameters"),
    *("seconds", "ms_per_step", "backend", "progress", "message"),
)


def describe(config):
    """The configuration columns of a run, as a dict."""
    from lib import cells, windows

    task, window, cell, training = config.task, config.window, config.cell, config.training
    own = (cell.source or "") + (task.source or "")  # tells versions of what a user added apart
    values = {**vars(task), **vars(window), **vars(cell), **vars(training)}
    values |= describe_images(task) | {
        "key": config.key(),
        "seed": config.seed,
        "convention": ", ".join(windows.conventions(window.input_length, window.stride)),
        "window": window.label,
        "sequence_length": windows.task_length(task, window),
        "cell": cell.name,
        # someone's own cell may be stored, but not known here
        "label": getattr(cells.CELLS.get(cell.name), "label", cell.name),
        "options": json.dumps(cell.options, sort_keys=True),
        "source": files.digest(own.encode())[:8] if own else "",
    }
    return {name: values[name] for name in CONFIGURATION}


def describe_images(task):
    """The columns of a run that say what its images are: their shape (channels, rows, columns) as
    they are read, and the names of their classes.
    """
    from lib import datasets

    names = datasets.get(task.dataset).class_names
    return {"image_shape": datasets.image_shape(task), "class_names": names}


def write(folder, row):
    """Replace the status in the folder of an attempt or a run."""
    files.write(folder / "status.json", files.to_json(row), sync=False)


def mark(run, config, state, message=""):
    """Note QUEUED, CANCELLED or FAILED of a run, in its folder."""
    row = {**describe(config), "state": state, "message": message, "progress": 0.0}
    row |= {"started": time.time(), "config": config.to_dict()}
    write(files.made(run), row)


def cancelled(run, since):
    """Whether a run was cancelled after a time."""
    marked = _mark(run)
    return bool(marked) and marked["state"] == "CANCELLED" and marked["started"] > since


def _mark(run):
    """The mark in the folder of a run, with all that is read of it; None without one."""
    marked = files.read_json(run / "status.json")
    with _intact(run):
        return marked and marked | {name: marked[name] for name in ("key", "state", "started")}


@contextlib.contextmanager
def _intact(run):
    """Raise StoreError where a status is not what was written."""
    try:
        yield
    except (KeyError, TypeError) as error:
        raise StoreError(
            f"A status.json below {run} is damaged ({error!r}); move {run} away and run again."
        ) from error


def of_attempt(row):
    """State as it reads now: a running attempt without a process or a recent heartbeat was
    interrupted.
    """
    if row["state"] in FINISHED:  # written, but not published
        return "INTERRUPTED"
    if row["state"] != "RUNNING":
        return row["state"]
    alive = time.time() - row["heartbeat"] < STALE
    if alive and row["host"] == socket.gethostname():
        alive = system.lives(row["pid"], row.get("born"))
    return "RUNNING" if alive else "INTERRUPTED"


def unfinished(run):
    """Row of the newest attempt in the folder of a run, unless a newer mark overrules it; None
    without any.

    Raises
    ------
    StoreError
        A status is not what was written.
    """
    attempts = [row for row in map(files.read_json, run.glob("attempt-*/status.json")) if row]
    marked = _mark(run)
    with _intact(run):
        newest = max(attempts, key=lambda row: row["started"], default=None)
        if newest is None:
            return marked
        newest["state"] = of_attempt(newest)
        failed = sum(row["state"] == "FAILED" for row in attempts)
        if newest["state"] == "FAILED" and failed > 1:
            newest["message"] = f"{failed} failed attempts; the last: {newest['message']}"
        if marked and marked["started"] > newest["started"]:
            # another sweep's queue does not hide an attempt that runs
            if (marked["state"], newest["state"]) != ("QUEUED", "RUNNING"):
                newest |= {"state": marked["state"], "message": marked["message"]}
        return newest
