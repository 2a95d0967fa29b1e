"""Where results live: run folders, atomic publishing, tidy frames, compact bundles.

    <results>/runs/<key>/attempt-<id>/   config, environment, status, curves, history, log, checkpoints
    <results>/runs/<key>/result/         an attempt folder, published by one rename, with a manifest
    <results>/<bundle>/                  finished runs packed for git; read like live ones

One attempt has one writer, so correctness needs no lock: the first rename wins.
"""

import json
import os
import shutil
import socket
import time
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lib import paths
from lib.config import RunConfig, Task
from lib.runs import checkpoint
from lib.runs.attempt import (
    CONFIGURATION,
    FINISHED,
    RESULTS,
    TABLES,
    describe,
    describe_images,
    publish,
    read_json,
    to_json,
    to_parquet,
)
from lib.runs.checkpoint import StoreError, digest

# pandas, torch and the cells are imported where they are needed: workers and `status` start without
# them.

BUNDLED = (
    "runs.json",
    "curves.parquet",
    "history.parquet",
)  # of a bundle, checked before any of it is read
STALE = 60  # seconds without a heartbeat after which a running attempt reads as interrupted


class Store:
    """All runs and bundles under one results folder (default `paths.results_dir`); a bundle's own
    folder is one, too.
    """

    def __init__(self, root=None):
        self.root = Path(root or paths.results_dir()).expanduser().absolute()
        self._read_bundles = {}  # bundle and times of its last changes -> entries

    def folder(self, key):
        """Folder of a run, ``<results>/runs/<key>``."""
        return self.root / "runs" / key

    # Writing

    def check_writable(self):
        """Refuse a results folder that cannot be written, before any training."""
        probe = self.root / "runs" / f".probe-{uuid.uuid4().hex[:8]}"
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"x" * 4096)
            probe.unlink()
        except OSError as error:
            raise StoreError(
                f"The results folder {self.root} cannot be written ({error.strerror}); make it writable, make room, "
                f"or name another one in the environment variable WORKBOOK_RESULTS."
            ) from error

    def mark(self, config, state, message=""):
        """Note QUEUED, CANCELLED or FAILED of a run that no process works on."""
        folder = self.folder(config.key())
        folder.mkdir(parents=True, exist_ok=True)
        row = {
            **describe(config),
            "state": state,
            "message": message,
            "progress": 0.0,
            "started": time.time(),
            "config": config.to_dict(),
        }
        checkpoint.write(folder / "status.json", to_json(row), sync=False)

    def finished(self, key):
        """Whether the result of a run is here, live or in a bundle."""
        return (self.folder(key) / "result").is_dir() or self._packed(key) is not None

    def finished_keys(self):
        """Keys of all finished runs, in one look: for plans of many runs."""
        runs = self.root / "runs"
        live = {
            key
            for key in (os.listdir(runs) if runs.is_dir() else ())
            if (runs / key / "result").is_dir()
        }
        return live.union(*(entries for _, entries in self._bundles(_refuse)))

    def adopt(self, key):
        """Publish an attempt whose process was killed between its manifest and the rename; True if
        there was one.
        """
        attempts = [path.parent for path in self.folder(key).glob("attempt-*/MANIFEST.json")]
        return any(not _damaged(attempt) and publish(attempt) for attempt in attempts)

    def resumable(self, keys, log=print):
        """Contents of the newest checkpoints of a group of runs, all of one step; None without a
        step that all share.

        A checkpoint that fails its checksum is set aside, and the one before is used.
        """
        found = [checkpoint.found(self.folder(key)) for key in keys]
        for step in sorted(
            set.intersection(*({step for step, _ in files} for files in found)), reverse=True
        ):
            contents = []
            for key, files in zip(keys, found, strict=True):
                candidates = (self._content(path, key, log) for at, path in files if at == step)
                contents.append(next((content for content in candidates if content), None))
            if None not in contents:
                return contents
        return None

    def _content(self, path, key, log):
        try:
            content = checkpoint.load(path)
            if content["key"] != key:
                raise ValueError(f"{path.name} belongs to run {content['key']}")
            return content
        except FileNotFoundError:  # its writer moved on
            return None
        except ValueError as error:
            log(f"checkpoint set aside in {path.parent.parent.name}: {error}")
            path.rename(path.with_name(f"damaged-{path.name}"))
            return None

    def prune(self, keys=None, unfinished=False):
        """Remove the attempts that finished runs left behind, and with `unfinished` those of runs
        without a result; returns their folders.

        Attempts that a process still works on stay.

        Parameters
        ----------
        keys : list of str, optional
            Default all runs.
        """
        removed = []
        for folder in sorted((self.root / "runs").glob("*")):
            if (keys is not None and folder.name not in keys) or not (
                unfinished or (folder / "result").is_dir()
            ):
                continue
            for attempt in sorted(folder.glob("attempt-*")):
                row = read_json(attempt / "status.json")
                if row is None or _state(row) != "RUNNING":
                    shutil.rmtree(attempt, ignore_errors=True)
                    removed.append(attempt)
            if not (folder / "result").is_dir() and not any(folder.glob("attempt-*")):
                shutil.rmtree(folder)
        return removed

    # Reading

    def status(self, key):
        """What is known of one run: its row, and while it runs also pid, host, step, steps,
        heartbeat; None for an unknown key.
        """
        return self._row(key, self._packed)

    def _row(self, key, packed):
        folder = self.folder(key)
        for _ in range(2):  # an attempt may be published between two looks
            if (folder / "result").is_dir():
                for table in ("curves.parquet", "history.parquet"):
                    _verified(folder / "result", table)
                return json.loads(_verified(folder / "result", "status.json"))
            if found := packed(key):
                return found[1]["status"]
            try:
                if row := self._unfinished(folder):
                    return row
            except (KeyError, TypeError) as error:
                raise StoreError(
                    f"A status.json below {folder} is damaged ({error!r}); move {folder} away and run again."
                ) from error
        return None

    def _unfinished(self, folder):
        """Row of the newest attempt, unless a newer mark overrules it."""
        attempts = [row for row in map(read_json, folder.glob("attempt-*/status.json")) if row]
        newest, mark = (
            max(attempts, key=lambda row: row["started"], default=None),
            read_json(folder / "status.json"),
        )
        if newest is None:
            return mark
        newest["state"] = _state(newest)
        failed = sum(row["state"] == "FAILED" for row in attempts)
        if newest["state"] == "FAILED" and failed > 1:
            newest["message"] = f"{failed} failed attempts; the last: {newest['message']}"
        if (
            mark
            and mark["started"] > newest["started"]
            and (mark["state"], newest["state"]) != ("QUEUED", "RUNNING")
        ):
            newest |= {"state": mark["state"], "message": mark["message"]}
        return newest

    def runs(self, **filters):
        """One row for each run, finished or not.

        Parameters
        ----------
        **filters
            column=value or column=[values]; None stands for missing.

        Returns
        -------
        DataFrame
            `CONFIGURATION` with ``state`` after the key, and results (accuracies in 0..1). A
            damaged run, or bundle, reads DAMAGED and has what is wrong as its message; `curves` and
            `history` leave it out, any other reading raises that.

        Raises
        ------
        ValueError
            A filter names no column.
        """
        import pandas as pd

        rows, packed = [], {}
        for folder, entries in self._bundles(
            lambda folder, error: rows.append(_damage(str(folder.relative_to(self.root)), error))
        ):
            packed |= {key: (folder, entry) for key, entry in entries.items()}
        known = {
            *packed,
            *(os.listdir(self.root / "runs") if (self.root / "runs").is_dir() else ()),
        }
        if "key" in filters:  # read only these
            known &= set(_values(filters["key"]))
        for key in known:
            try:
                row = self._row(key, packed.get)
            except StoreError as error:
                row = _damage(key, error, read_json(self.folder(key) / "result" / "config.json"))
            if row:
                rows.append(_with_images(row))
        columns = [CONFIGURATION[0], "state", *CONFIGURATION[1:], *RESULTS]
        # As objects until the rows are chosen: what a damaged run lacks must not turn whole numbers
        # of others into fractions.
        frame = pd.DataFrame(
            [[row.get(name) for name in columns] for row in rows], columns=columns, dtype=object
        )
        for name in (
            "best_epoch",
            "validation_accuracy",
            "test_accuracy",
            "test_loss",
            "seconds",
            "ms_per_step",
            "progress",
            "parameters",
        ):
            frame[name] = frame[name].astype(float)
        order = [
            "dataset",
            "permuted",
            "input_length",
            "stride",
            "cell",
            "hidden_size",
            "seed",
            "key",
        ]
        return _filter(frame, filters).infer_objects().sort_values(order, ignore_index=True)

    def curves(self, **filters):
        """Learning curves, one row for each validation of each run; by default of finished runs
        (``state="RUNNING"`` for others).
        """
        return self._table("curves", filters)

    def history(self, **filters):
        """Parameters and dynamics over training in long form: variable, statistic, value; filters
        as `curves`, also on these columns.
        """
        return self._table("history", filters)

    def predictions(self, key):
        """Predictions of the test set by the best state: image (its number in the test set), label,
        prediction, probability.
        """
        self._require(key)
        table = self._tables("predictions", [key]).get(key)
        if table is None:
            raise ValueError(f"Run {key} holds no predictions; only runs that are DONE do.")
        return table.to_pandas()

    def config(self, key):
        """The `RunConfig` of a key."""
        folder = self.folder(key)
        for values in (
            read_json(path)
            for path in (folder / "result" / "config.json", *folder.glob("attempt-*/config.json"))
        ):
            if values:
                return RunConfig.from_dict(values)
        if packed := self._packed(key):
            return RunConfig.from_dict(packed[1]["config"])
        return RunConfig.from_dict(self._require(key)["config"])

    def environment(self, key):
        """What a finished run was made with: backend, device, threads, versions, commit,
        fingerprint of the code.
        """
        self._require(key)
        return self._entry(key)["environment"]

    def load(self, key, which="best"):
        """The trained model of a run, a `SequenceClassifier` on the reference path; `which` is
        "best", "initial" or "final".
        """
        from safetensors.torch import load

        from lib import train

        self._require(key)
        result = self.folder(key) / "result"
        places = [(result, f"{which}.safetensors", "MANIFEST.json")]
        places += [
            (folder, f"weights/{key}/{which}.safetensors", "BUNDLE.json")
            for folder, rows in self._bundles()
            if key in rows
        ]
        for folder, name, manifest in places:
            if (folder / name).exists():
                config = self.config(key)
                train.check(config)
                model = train.build(config)
                model.load_state_dict(load(_verified(folder, name, manifest)))
                return model
        raise ValueError(
            f"Run {key} holds no {which!r} weights here; train it (load_or_run), or pack it with weights."
        )

    def recordings(self, key):
        """Files of the recordings of a run; those of bundles are checked."""
        found = {path.name: path for path in (self.folder(key) / "traces").glob("*.safetensors")}
        for folder, entries in self._bundles():
            for path in (folder / "traces" / key).glob("*.safetensors") if key in entries else ():
                if path.name not in found:
                    _verified(folder, f"traces/{key}/{path.name}", "BUNDLE.json")
                    found[path.name] = path
        return [found[name] for name in sorted(found)]

    def verify(self, key):
        """Names of the files of a finished run that do not match its manifest; empty when all is
        well.
        """
        return _damaged(self.folder(key) / "result")

    def _require(self, key):
        row = self.status(key)
        if row is None:
            raise ValueError(
                f"No run has the key {key!r} under {self.root}; Store().runs() lists those there are."
            )
        return row

    def _table(self, name, filters):
        import pandas as pd

        schema = TABLES[name]
        own = {
            column: value
            for column, value in filters.items()
            if column in schema.names and column not in RESULTS
        }
        runs = self.runs(
            **{"state": list(FINISHED), **{k: v for k, v in filters.items() if k not in own}}
        )
        tables = self._tables(name, list(runs.key[runs.state != "DAMAGED"]))
        runs = runs.loc[
            runs.key.isin(list(tables)), ["key", "state", *CONFIGURATION[1:]]
        ].reset_index(drop=True)
        joined = (
            pa.concat_tables([tables[key] for key in runs.key])
            if len(runs)
            else schema.empty_table()
        )
        index = pa.array(np.repeat(np.arange(len(runs)), [len(tables[key]) for key in runs.key]))
        for column, value in own.items():
            chosen = pc.is_in(joined[column], pa.array(_values(value), schema.field(column).type))
            joined, index = joined.filter(chosen), index.filter(chosen.combine_chunks())
        return pd.concat(
            [
                runs.take(index.to_numpy(zero_copy_only=False)).reset_index(drop=True),
                joined.to_pandas(),
            ],
            axis=1,
        )

    def _tables(self, name, keys):
        """key -> arrow table, of results, running attempts and bundles."""
        live, file = (
            {key: self._live_table(self.folder(key), f"{name}.parquet") for key in keys},
            f"{name}.parquet",
        )
        tables = {key: table for key, table in live.items() if table is not None}
        for folder, entries in self._bundles():
            wanted = {key for key in keys if key in entries and key not in tables}
            if wanted and (folder / file).exists():
                table, start = _table(_verified(folder, file, "BUNDLE.json")), 0
                for part in pc.value_counts(
                    table["key"]
                ).to_pylist():  # keys stand in order, each in one piece
                    if part["values"] in wanted:
                        tables[part["values"]] = table.slice(start, part["counts"]).drop_columns(
                            "key"
                        )
                    start += part["counts"]
        return tables

    def _live_table(self, folder, file):
        for _ in range(2):  # an attempt may be published between two looks
            if (folder / "result").is_dir():
                return (
                    _table(_verified(folder / "result", file))
                    if (folder / "result" / file).exists()
                    else None
                )
            try:
                newest = max(
                    folder.glob(f"attempt-*/{file}"),
                    key=lambda path: path.stat().st_mtime,
                    default=None,
                )
                return newest and _table(newest.read_bytes())
            except FileNotFoundError:
                continue
            except pa.ArrowInvalid:  # cut short by a power failure
                return None
        return None

    # Bundles

    def pack(self, keys, folder, weights=()):
        """Write finished runs as a compact bundle that git can hold; the same runs give the same
        bytes.

        Everything but logs and weights is kept as it is; probabilities of predictions are rounded
        to three decimals.

        Parameters
        ----------
        keys : list of str
        folder : path
            Relative to the results folder; anywhere below it the bundle is read like live runs.
        weights : list of str
            Keys whose best weights and recordings are included.

        Returns
        -------
        Path
        """
        from safetensors.torch import save

        keys, folder = sorted(set(keys)), self.root / folder
        unfinished = [key for key in keys if self._require(key)["state"] not in FINISHED]
        if unfinished or not set(weights) <= set(keys) or not keys:
            raise ValueError(
                f"Only finished runs, and weights of these runs, are packed; not finished: {', '.join(unfinished) or 'none'}."
            )
        files = {"runs.json": to_json([self._entry(key) for key in keys])}
        for name in TABLES:
            tables = self._tables(name, keys)
            if name == "predictions":  # three decimals take a quarter of the space
                tables = {
                    key: table.set_column(3, "probability", pc.round(table["probability"], 3))
                    for key, table in tables.items()
                }
            parts = [
                tables[key].add_column(0, "key", pa.array([key] * len(tables[key]), pa.string()))
                for key in keys
                if key in tables
            ]
            if parts:
                files[f"{name}.parquet"] = to_parquet(pa.concat_tables(parts))
        for key in sorted(set(weights)):
            files[f"weights/{key}/best.safetensors"] = save(
                {name: value.data for name, value in self.load(key).named_parameters()}
            )
            files |= {
                f"traces/{key}/{path.name}": path.read_bytes() for path in self.recordings(key)
            }
        folder.mkdir(parents=True, exist_ok=True)
        old = read_json(folder / "BUNDLE.json") or {"files": {}}
        (folder / "BUNDLE.json").unlink(missing_ok=True)  # no bundle while its files change
        for name in set(old["files"]) - set(files):
            (folder / name).unlink(missing_ok=True)
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            checkpoint.write(folder / name, data)
        checkpoint.write(
            folder / "BUNDLE.json",
            to_json({"format": 1, "files": {name: digest(data) for name, data in files.items()}}),
        )
        return folder

    def _entry(self, key):
        result = self.folder(key) / "result"
        if not result.is_dir() and (packed := self._packed(key)):
            return packed[1]
        return {
            name: json.loads(_verified(result, f"{name}.json"))
            for name in ("status", "config", "environment")
        }

    def _packed(self, key):
        """(bundle, entry) of a packed run, else None; a damaged bundle raises unless another one
        holds the run.
        """
        errors = []
        for folder, entries in self._bundles(lambda folder, error: errors.append(error)):
            if key in entries:
                return folder, entries[key]
        if errors:
            raise errors[0]
        return None

    def _bundles(self, damaged=lambda folder, error: None):
        """(folder, key -> entry) of every bundle under the root; of a damaged one,
        ``damaged(folder, error)`` is told.
        """
        for folder, subfolders, names in os.walk(self.root):
            if Path(folder) == self.root and "runs" in subfolders:
                subfolders.remove("runs")
            subfolders.sort()
            if "BUNDLE.json" in names:
                folder = Path(folder)
                try:
                    stamp = (folder, *((folder / name).stat().st_mtime_ns for name in BUNDLED))
                    if stamp not in self._read_bundles:
                        entries, *_ = (_verified(folder, name, "BUNDLE.json") for name in BUNDLED)
                        self._read_bundles[stamp] = {
                            entry["status"]["key"]: entry for entry in json.loads(entries)
                        }
                except (OSError, StoreError, KeyError) as error:
                    damaged(folder, error)
                else:
                    yield folder, self._read_bundles[stamp]

    def load_or_run(self, configs, **options):
        """Rows of these runs; those without a result are trained first. See
        `lib.runs.sweep.load_or_run`.
        """
        from lib.runs import sweep

        return sweep.load_or_run(configs, self, **options)


def _state(row):
    """State as it reads now: a running attempt without a process or a recent heartbeat was
    interrupted.
    """
    if row["state"] in FINISHED:  # written, but not published
        return "INTERRUPTED"
    if row["state"] != "RUNNING":
        return row["state"]
    alive = time.time() - row["heartbeat"] < STALE
    if alive and row["host"] == socket.gethostname():
        alive = _lives(row["pid"])
    return "RUNNING" if alive else "INTERRUPTED"


def _lives(pid):
    """Whether a process works; one that ended counts as dead even where nobody reaps it, as in many
    containers.
    """
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except (
        PermissionError,
        FileNotFoundError,
    ):  # it lives, under another user, or on a system without /proc
        return True


def _filter(frame, filters):
    for name, value in filters.items():
        if name not in frame:
            raise ValueError(
                f"There is no column {name!r} to filter by; columns are {', '.join(frame.columns)}."
            )
        values = _values(value)
        frame = frame[frame[name].isin(values) | (frame[name].isna() if None in values else False)]
    return frame


def _values(value):
    """The values of a filter: one, or any collection of them."""
    return (
        [value]
        if value is None or isinstance(value, str) or not hasattr(value, "__iter__")
        else list(value)
    )


def _table(data):
    return pq.ParquetFile(pa.BufferReader(data)).read(
        use_threads=False
    )  # small files: threads would only wait


def _verified(folder, name, manifest="MANIFEST.json"):
    """Bytes of a file that match the manifest of its folder.

    Raises
    ------
    StoreError
        They do not.
    """
    try:
        data = (folder / name).read_bytes()
        expected = json.loads((folder / manifest).read_bytes())["files"].get(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{folder / name} or its {manifest} is damaged ({error}); move {folder} away and run again."
        ) from error
    if digest(data) != expected:
        raise StoreError(
            f"{folder / name} does not match its manifest: it was changed or damaged; move {folder} away and run again."
        )
    return data


def _damage(key, error, config=None):
    """Row of a run that cannot be read; says what it is, where its configuration still does."""
    try:
        row = describe(RunConfig.from_dict(config)) if config else {}
    except Exception:  # whatever a damaged configuration provokes: the error at hand says more
        row = {}
    return {**row, "key": key, "state": "DAMAGED", "message": str(error)}


def _with_images(row):
    """A row that says what its images are; of a run that does not hold it, the registry knows."""
    row = {"delay": Task.delay} | row  # rows of the first runs lack the field
    if row.get("class_names"):
        held = {name: tuple(row[name]) for name in ("image_shape", "class_names")}
    else:
        from lib import datasets

        last_rows = row.get("last_rows")
        known = row.get("dataset") in datasets.DATASETS
        held = describe_images(Task(row["dataset"], last_rows=last_rows)) if known else {}
    return row | held


def _refuse(folder, error):
    raise error


def _damaged(folder):
    manifest = read_json(folder / "MANIFEST.json") or {"files": {"MANIFEST.json": ""}}
    files = {name: folder / name for name in manifest["files"]}
    return [
        name
        for name, path in files.items()
        if not path.is_file() or digest(path.read_bytes()) != manifest["files"][name]
    ]
