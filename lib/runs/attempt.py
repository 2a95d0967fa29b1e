"""Writing a run: its attempt folder, what the files hold, and publishing by one rename."""

import io
import json
import math
import os
import shutil
import socket
import threading
import time
import uuid

import pyarrow as pa
import pyarrow.parquet as pq

from lib.runs import checkpoint
from lib.runs.checkpoint import StoreError, digest

FINISHED = ("DONE", "DIVERGED")
# Columns that say what a run is, in every frame.
CONFIGURATION = (
    *(
        "key",
        "dataset",
        "permuted",
        "last_rows",
        "first_rows",
        "delay",
        "data_seed",
        "input_length",
        "stride",
        "scan",
        "convention",
        "window",
        "sequence_length",
        "image_shape",
        "class_names",
    ),
    *(
        "cell",
        "label",
        "hidden_size",
        "initialisation",
        "options",
        "source",
        "epochs",
        "batch_size",
        "learning_rate",
        "clip_norm",
    ),
    *("validations_per_epoch", "seed"),
)
RESULTS = (
    *(
        "best_epoch",
        "validation_accuracy",
        "test_accuracy",
        "test_loss",
        "parameters",
        "seconds",
        "ms_per_step",
        "backend",
    ),
    *("progress", "message"),
)
_TYPES = {
    "step": pa.int64(),
    "variable": pa.string(),
    "statistic": pa.string(),
    "image": pa.int32(),
    "label": pa.int32(),
}
_TYPES |= {"prediction": pa.int32(), "probability": pa.float32()}
_COLUMNS = {
    "curves": "step epoch train_loss train_accuracy validation_loss validation_accuracy rate gradient_norm",
    "history": "step epoch variable statistic value",
    "predictions": "image label prediction probability",
}
TABLES = {
    table: pa.schema([(name, _TYPES.get(name, pa.float64())) for name in names.split()])
    for table, names in _COLUMNS.items()
}


def describe(config):
    """The configuration columns of a run, as a dict."""
    from lib import cells, windows

    task, window, cell, training = config.task, config.window, config.cell, config.training
    own = (cell.source or "") + (task.source or "")  # tells versions of what a user added apart
    values = describe_images(task)
    values |= {**vars(task), **vars(window), **vars(cell), **vars(training)}
    values |= {
        "key": config.key(),
        "seed": config.seed,
        "convention": ", ".join(windows.conventions(window.input_length, window.stride)),
        "window": window.label,
        "sequence_length": windows.task_length(task, window),
        "cell": cell.name,
        "label": getattr(
            cells.CELLS.get(cell.name), "label", cell.name
        ),  # someone's own cell may be stored, but not known here
        "options": json.dumps(cell.options, sort_keys=True),
        "source": digest(own.encode())[:8] if own else "",
    }
    return {name: values[name] for name in CONFIGURATION}


def describe_images(task):
    """The columns of a run that say what its images are: their shape (channels, rows, columns) as
    they are read, and the names of their classes.
    """
    from lib import datasets

    return {
        "image_shape": datasets.image_shape(task),
        "class_names": datasets.get(task.dataset).class_names,
    }


class Attempt:
    """One try at one run, in a new folder below that of the run; its only writer."""

    def __init__(self, run, config):
        self.run, self.config = run, config
        self.folder = run / f"attempt-{uuid.uuid4().hex}"
        with checkpoint.explained(run):
            self.folder.mkdir(parents=True)
        self._lock = threading.Lock()
        now = time.time()
        self._status = {
            **describe(config),
            "state": "RUNNING",
            "progress": 0.0,
            "message": "",
            "started": now,
            "heartbeat": now,
        }
        self._status |= {"pid": os.getpid(), "host": socket.gethostname()}
        checkpoint.write(self.folder / "config.json", to_json(config.to_dict()))
        self.status()

    def status(self, **changes):
        """Change the status and renew the heartbeat."""
        with self._lock:
            self._status |= {"heartbeat": time.time(), **changes}
            checkpoint.write(self.folder / "status.json", to_json(self._status), sync=False)

    def environment(self, values):
        """Note what the result depends on beside its configuration, as `lib.runs.run.environment`
        says.
        """
        checkpoint.write(self.folder / "environment.json", to_json(values))

    def log(self, text):
        with (
            checkpoint.explained(self.folder),
            open(self.folder / "log.txt", "a", encoding="utf-8") as file,
        ):
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def metrics(self, curves, history):
        """Replace the live curves and history, which may be read while the run goes on; the
        checkpoint holds them too.
        """
        checkpoint.write(
            self.folder / "curves.parquet", to_parquet(curves, TABLES["curves"]), sync=False
        )
        checkpoint.write(
            self.folder / "history.parquet", to_parquet(history, TABLES["history"]), sync=False
        )

    def checkpoint(self, step, content):
        checkpoint.save(self.folder / "checkpoints", step, content)

    def finish(self, outcome):
        """Write all files of the result and, last, the manifest: from then on any process may
        publish the attempt.
        """
        from safetensors.torch import save

        files = {"config.json": to_json(self.config.to_dict())}
        files |= {
            f"{which}.safetensors": save(weights) for which, weights in outcome.weights.items()
        }
        tables = {
            "curves": outcome.curves,
            "history": outcome.history,
            "predictions": outcome.predictions,
        }
        files |= {
            f"{name}.parquet": to_parquet(rows, TABLES[name])
            for name, rows in tables.items()
            if rows is not None
        }
        for name, data in files.items():
            checkpoint.write(self.folder / name, data)
        self._status |= {**outcome.summary, "state": outcome.state, "progress": 1.0}
        for name in ("pid", "host", "heartbeat", "step", "steps"):
            self._status.pop(name, None)
        checkpoint.write(self.folder / "status.json", to_json(self._status))
        self.log(f"{outcome.state} {outcome.summary['message']}".rstrip())
        checkpoint.write(
            self.folder / "log.txt", (self.folder / "log.txt").read_bytes()
        )  # now it, too, is on the disk
        written = sorted(path for path in self.folder.iterdir() if path.is_file())
        manifest = {
            "key": self.config.key(),
            "files": {path.name: digest(path.read_bytes()) for path in written},
        }
        checkpoint.write(self.folder / "MANIFEST.json", to_json(manifest))


def publish(attempt):
    """Turn a finished attempt into the result by one rename; False if there is a result already:
    the first one wins.
    """
    shutil.rmtree(attempt / "checkpoints", ignore_errors=True)
    try:
        os.rename(attempt, attempt.parent / "result")
    except OSError as error:
        if (attempt.parent / "result").is_dir():
            return False
        raise StoreError(
            f"{attempt} cannot be published ({error.strerror}); start again when its folder can be written."
        ) from error
    checkpoint.sync_folder(attempt.parent)
    return True


def to_json(value):
    """Bytes of strict JSON, the same for the same content; what is not finite becomes null."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return (json.dumps(plain(value), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def read_json(path):
    """Content of a small JSON file; None when it is missing or was cut short by a power failure."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def to_parquet(rows, schema=None):
    """Bytes of a parquet file of a list of dicts, a dict of columns, or an arrow table."""
    if not isinstance(rows, pa.Table):
        rows = (pa.Table.from_pydict if isinstance(rows, dict) else pa.Table.from_pylist)(
            rows, schema
        )
    encoding = {}
    if "image" in rows.column_names:  # counts up: its differences take no space
        encoding["use_dictionary"] = [name for name in rows.column_names if name != "image"]
        encoding["column_encoding"] = {"image": "DELTA_BINARY_PACKED"}
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd", **encoding)
    return buffer.getvalue()
