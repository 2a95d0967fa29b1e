"""Reading what was trained: tidy frames of all runs, and one run's model, predictions, recordings.

    <results>/runs/<key>/attempt-<id>/   config, environment, status, curves, history, checkpoints
    <results>/runs/<key>/result/         an attempt folder, published by one rename, with a manifest
    <results>/<bundle>/                  finished runs packed for git; read like live ones

What is damaged is handled in one way: frames go on without it, `Store.runs` shows it as DAMAGED
with what is wrong, and whatever reads that one run raises it (StoreError).
"""

import contextlib
import functools
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib import checks, files, paths
from lib.config import RunConfig, Task
from lib.files import BUNDLE, TABLES, StoreError, Verified
from lib.runs import status
from lib.runs.bundles import Bundles
from lib.runs.bundles import write as write_bundle
from lib.runs.status import CONFIGURATION, FINISHED, RESULTS

# pandas, torch and the cells are imported where they are needed: workers and `status` start without
# them.

NUMBERS = [name for name in RESULTS if name not in ("backend", "message")]
IMAGES = ("image_shape", "class_names")
ORDER = "dataset permuted input_length stride cell hidden_size seed key".split()


class Store:
    """All runs and bundles under one results folder (default `paths.results_dir`); a bundle's own
    folder is one, too. Bundles are looked for once; `reload` looks again.
    """

    def __init__(self, root=None):
        self.root = Path(root or paths.results_dir()).expanduser().absolute()

    @functools.cached_property
    def _bundles(self):
        return Bundles(self.root)

    def reload(self):
        """Look for bundles again at the next question."""
        vars(self).pop("_bundles", None)

    def folder(self, key):
        """Folder of a run, ``<results>/runs/<key>``."""
        return self.root / "runs" / key

    def _live(self):
        runs = self.root / "runs"
        return {name for name in os.listdir(runs) if name[0] != "."} if runs.is_dir() else set()

    # Frames

    def runs(self, **filters):
        """One row for each run, finished or not: `CONFIGURATION` with ``state`` after the key, and
        results (accuracies in 0..1). A damaged run, or bundle, reads DAMAGED and has what is wrong
        as its message.

        Filters are column=value or column=[values], where None stands for missing (ValueError:
        there is no such column).
        """
        runs = self.rows(**filters)
        images = [_images(row) for row in runs.to_dict("records")]
        for name in IMAGES:
            runs[name] = [held[name] for held in images]
        return runs

    def rows(self, **filters):
        """`runs` without what the images of early runs are, which they do not hold: needs no torch,
        and so starts at once.
        """
        import pandas as pd

        rows = [_damage(name, error) for name, error in self._bundles.damaged.items()]
        known = self._live() | self._bundles.entries.keys()
        if "key" in filters:  # read only these
            known &= set(_values(filters["key"]))
        for key in known:
            try:
                row = self.status(key)
            except (StoreError, OSError) as error:
                config = files.read_json(self.folder(key) / "result" / "config.json")
                row = _damage(key, error, config)
            if row:
                rows.append({"delay": Task.delay, **row})  # of the first runs, which lack it
        columns = [CONFIGURATION[0], "state", *CONFIGURATION[1:], *RESULTS]
        # As objects until the rows are chosen: what a damaged run lacks must not turn whole numbers
        # of others into fractions.
        cells = [[row.get(name) for name in columns] for row in rows]
        frame = pd.DataFrame(cells, columns=columns, dtype=object)
        frame = frame.astype(dict.fromkeys(NUMBERS, float))
        return _filter(frame, filters).infer_objects().sort_values(ORDER, ignore_index=True)

    def damaged(self, **filters):
        """Key of a damaged run, or name of a bundle -> what is wrong; frames leave these out."""
        runs = self.rows(**filters, state="DAMAGED")
        return dict(zip(runs["key"], runs["message"], strict=True))

    def curves(self, **filters):
        """Learning curves, one row for each validation of each run; by default of finished runs
        (``state="RUNNING"`` for others).
        """
        return self._joined("curves", filters)

    def history(self, **filters):
        """Parameters and dynamics over training in long form: variable, statistic, value; filters
        as `curves`, also on these columns.
        """
        return self._joined("history", filters)

    def _joined(self, name, filters):
        import pandas as pd

        schema = TABLES[name]
        names = (filters.keys() & schema.names) - set(RESULTS)
        own = {name: filters.pop(name) for name in names}
        runs = self.runs(**{"state": list(FINISHED), **filters})
        tables = self._tables(name, runs["key"][runs["state"] != "DAMAGED"], forgiving=True)
        columns = ["key", "state", *CONFIGURATION[1:]]
        runs = runs.loc[runs["key"].isin(list(tables)), columns].reset_index(drop=True)
        parts = [tables[key] for key in runs["key"]]
        joined = pa.concat_tables(parts) if parts else schema.empty_table()
        index = pa.array(np.repeat(np.arange(len(parts)), [len(part) for part in parts]))
        for column, value in own.items():
            chosen = pc.is_in(joined[column], pa.array(_values(value), schema.field(column).type))
            joined = joined.filter(chosen)
            index = index.filter(chosen.combine_chunks())
        repeated = runs.take(index.to_numpy(zero_copy_only=False)).reset_index(drop=True)
        return pd.concat([repeated, joined.to_pandas()], axis=1)

    # One run

    def status(self, key):
        """What is known of one run: its row, and while it runs also pid, host, step, steps,
        heartbeat; None for an unknown key.
        """
        run = self.folder(key)
        for _ in range(2):  # an attempt may be published between two looks
            if (run / "result").is_dir():
                result = Verified(run / "result")
                for table in ("curves", "history"):
                    result.read(f"{table}.parquet")
                return result.json("status.json")
            if packed := self._bundles.entries.get(key):
                return packed["status"]
            if row := status.unfinished(run):
                return row
        self._bundles.entry(key)  # raises if a damaged bundle may hold it
        return None

    def _require(self, key):
        row = self.status(key)
        if row is None:
            raise ValueError(
                f"No run has the key {key!r} under {self.root}; Store().runs() lists those there."
            )
        return row

    def finished(self, key):
        """Whether the result of a run is here, live or in a bundle (StoreError: perhaps in a
        damaged one).
        """
        return (self.folder(key) / "result").is_dir() or self._bundles.entry(key) is not None

    def config(self, key):
        """The `RunConfig` of a key."""
        run = self.folder(key)
        for path in (run / "result" / "config.json", *run.glob("attempt-*/config.json")):
            if values := files.read_json(path):
                return RunConfig.from_dict(values)
        if packed := self._bundles.entry(key):
            return RunConfig.from_dict(packed["config"])
        return RunConfig.from_dict(self._require(key)["config"])

    def environment(self, key):
        """What a finished run was made with: backend, device, threads, versions, commit, code."""
        self._require(key)
        return self._entry(key)["environment"]

    def _entry(self, key):
        result = self.folder(key) / "result"
        if not result.is_dir() and (packed := self._bundles.entry(key)):
            return packed
        made = Verified(result)
        return {name: made.json(f"{name}.json") for name in ("status", "config", "environment")}

    def predictions(self, key):
        """Predictions of the test set by the best state: image (its number in the test set), label,
        prediction, probability.
        """
        self._require(key)
        table = self._tables("predictions", [key]).get(key)
        if table is None:
            raise ValueError(f"Run {key} holds no predictions; only runs that are DONE do.")
        return table.to_pandas()

    def predictions_of(self, keys):
        """Predictions of several runs, one below the other: key, image, label, prediction; a run
        without any, as one that diverged, has no row.
        """
        import pandas as pd

        columns = ["image", "label", "prediction"]
        tables = self._tables("predictions", list(keys), columns=columns)
        empty = TABLES["predictions"].empty_table().select(columns)
        joined = pa.concat_tables([empty, *tables.values()])
        numbers = np.repeat(np.arange(len(tables)), [len(table) for table in tables.values()])
        frame = joined.to_pandas()
        frame.insert(0, "key", pd.Categorical.from_codes(numbers, list(tables)))
        return frame

    def load(self, key, which="best"):
        """The trained model of a run, a `SequenceClassifier` on the reference path; `which` is
        "best", "initial" or "final".
        """
        from safetensors.torch import load

        from lib import train

        self._require(key)
        places = [(self.folder(key) / "result", f"{which}.safetensors", files.MANIFEST)]
        for folder in self._bundles.holding(key):
            places.append((folder, f"weights/{key}/{which}.safetensors", BUNDLE))
        for folder, name, manifest in places:
            if (folder / name).exists():
                config = self.config(key)
                train.check(config)
                model = train.build(config)
                model.load_state_dict(load(Verified(folder, manifest).read(name)))
                return model
        raise ValueError(
            f"Run {key} holds no {which!r} weights here; train it again, or pack it with weights."
        )

    def recordings(self, key):
        """Files of the recordings of a run; those of bundles are checked."""
        found = {path.name: path for path in (self.folder(key) / "traces").glob("*.safetensors")}
        for folder in self._bundles.holding(key):
            for path in (folder / "traces" / key).glob("*.safetensors"):
                if path.name not in found:
                    Verified(folder, BUNDLE).read(f"traces/{key}/{path.name}")
                    found[path.name] = path
        return [found[name] for name in sorted(found)]

    def _tables(self, name, keys, forgiving=False, columns=None):
        """key -> arrow table of a kind, of results, running attempts and bundles; of some columns,
        or all.
        """
        tables = {}
        forgiven = (StoreError, OSError) if forgiving else ()
        for key in keys:
            run = self.folder(key)
            if key in self._bundles.entries and not (run / "result").is_dir():
                continue  # attempts left beside a packed run are not the run
            with contextlib.suppress(*forgiven):
                table = self._live_table(run, f"{name}.parquet")
                if table is not None:
                    tables[key] = table.select(columns) if columns else table
        return {**self._bundles.tables(name, set(keys) - set(tables), columns), **tables}

    def _live_table(self, run, file):
        for _ in range(2):  # an attempt may be published between two looks
            result = run / "result"
            if result.is_dir():
                there = (result / file).exists()
                return files.from_parquet(Verified(result).read(file)) if there else None
            try:
                found = run.glob(f"attempt-*/{file}")
                newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
                return newest and files.from_parquet(newest.read_bytes())
            except FileNotFoundError:
                continue
            except pa.ArrowInvalid:  # cut short by a power failure
                return None
        return None

    # Keeping house

    def pack(self, keys, folder, weights=()):
        """Write finished runs as a compact bundle that git can hold, and return its folder; the
        same runs give the same bytes.

        The folder is relative to that of the results, anywhere below which the bundle is read like
        live runs. Logs are left out, and so are weights and recordings but those, of the best
        state, of the keys in ``weights``; probabilities are rounded to three decimals.

        Raises
        ------
        ValueError
            A run is not finished; the folder lies in ``runs/``, in another bundle or around one, or
            holds a bundle with runs that are stored nowhere else and would be lost.
        StoreError
            A run, or the bundle in this folder, is damaged; the folder cannot be written.
        """
        from safetensors.torch import save

        keys = sorted(set(keys))
        folder = self.root / Path(folder).expanduser()
        unfinished = [key for key in keys if self._require(key)["state"] not in FINISHED]
        if unfinished or not set(weights) <= set(keys) or not keys:
            raise ValueError(
                "Only finished runs, and weights of these runs, are packed; "
                f"not finished: {', '.join(unfinished) or 'none'}."
            )
        self.reload()  # what would be hidden or lost is judged by what is there now
        self._check_place(folder, keys)
        others = {}
        for key in sorted(set(weights)):
            best = {name: value.data for name, value in self.load(key).named_parameters()}
            others[f"weights/{key}/best.safetensors"] = save(best)
            for path in self.recordings(key):
                others[f"traces/{key}/{path.name}"] = path.read_bytes()
        entries = [self._entry(key) for key in keys]
        tables = {name: self._tables(name, keys) for name in TABLES}
        write_bundle(folder, entries, tables, others)
        self.reload()
        return folder

    def _check_place(self, folder, keys):
        within = folder.is_relative_to(self.root / "runs") or any(
            (place / BUNDLE).exists() for place in folder.parents
        )
        alone = not within and not any(folder.glob(f"*/**/{BUNDLE}"))
        rule = "outside runs/, and neither in another bundle nor around one"
        checks.require(alone, "folder", str(folder), rule, "choose a folder of its own")
        there, lost = Bundles(folder), []
        if there.damaged:
            raise next(iter(there.damaged.values()))
        for key in sorted(there.entries.keys() - set(keys)):
            elsewhere = not all(map(folder.samefile, self._bundles.holding(key)))
            if not (elsewhere or (self.folder(key) / "result").is_dir()):
                lost.append(key)
        if lost:
            raise ValueError(
                f"The bundle {folder} holds runs that are stored nowhere else and would be lost: "
                f"{', '.join(lost)}; pack them too, or choose another folder."
            )

    def prune(self, keys=None, unfinished=False):
        """Remove the attempts that finished runs (default: all) left behind, and with `unfinished`
        those of runs without a result; returns their folders. Attempts that a process still works
        on stay, and those that are complete and only wait to be published.
        """
        removed = []
        for key in sorted(self._live() if keys is None else self._live().intersection(keys)):
            run, finished = self.folder(key), self.finished(key)
            if not (unfinished or finished):
                continue
            for attempt in sorted(run.glob("attempt-*")):
                row = files.read_json(attempt / "status.json")
                lives = row is not None and status.of_attempt(row) == "RUNNING"
                if not lives and (finished or not files.whole(attempt)):
                    shutil.rmtree(attempt, ignore_errors=True)
                    removed.append(attempt)
            if not finished and not any(run.glob("attempt-*")):
                shutil.rmtree(run)
        return removed


def _filter(frame, filters):
    for name, value in filters.items():
        if name not in frame:
            raise ValueError(
                f"There is no column {name!r} to filter by; columns are {', '.join(frame.columns)}."
            )
        values = _values(value)
        missing = frame[name].isna() if None in values else False
        frame = frame[frame[name].isin(values) | missing]
    return frame


def _values(value):
    """The values of a filter: one, or any collection of them."""
    several = hasattr(value, "__iter__") and not isinstance(value, str)
    return list(value) if several else [value]


def _damage(key, error, config=None):
    """Row of a run that cannot be read; says what it is, where its configuration still does."""
    try:
        row = status.describe(RunConfig.from_dict(config)) if config else {}
    except Exception:  # whatever a damaged configuration provokes: the error at hand says more
        row = {}
    return {**row, "key": key, "state": "DAMAGED", "message": str(error)}


def _images(row):
    """What the images of a run are; of a run that does not hold it, the registry knows."""
    if isinstance(row["class_names"], list | tuple):
        return {name: tuple(row[name]) for name in IMAGES}
    from lib import datasets

    if row["dataset"] not in datasets.DATASETS:
        return dict.fromkeys(IMAGES)
    last_rows = None if row["last_rows"] != row["last_rows"] else row["last_rows"]
    return status.describe_images(Task(row["dataset"], last_rows=last_rows and int(last_rows)))
