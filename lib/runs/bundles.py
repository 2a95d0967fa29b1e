"""Finished runs packed into a few files that git can hold, and read like live ones.

<bundle>/BUNDLE.json                     sha256 of every file
<bundle>/runs.json                       status, configuration and environment of each run
<bundle>/curves.parquet, history, ...    the tables of all runs, with their key
<bundle>/weights/<key>, traces/<key>     of the runs packed with weights
"""

import functools
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from lib.runs import files
from lib.runs.files import BUNDLE, StoreError, Verified

CHECKED = ("curves.parquet", "history.parquet")  # beside runs.json, before a bundle is trusted


class Bundles:
    """The bundles anywhere below a results folder, found and read once."""

    def __init__(self, root):
        self.root = root

    @functools.cached_property
    def _found(self):
        """([(bundle, key -> entry)], name -> what is wrong with a damaged one)."""
        whole, damaged = [], {}
        for where, subfolders, names in os.walk(self.root):
            subfolders.sort()
            if where == str(self.root) and "runs" in subfolders:
                subfolders.remove("runs")
            if BUNDLE in names:
                folder = Path(where)
                try:
                    whole.append((folder, _entries(folder)))
                except StoreError as error:
                    damaged[folder.relative_to(self.root).as_posix()] = error
        return whole, damaged

    @property
    def damaged(self):
        """Name of a damaged bundle -> its StoreError."""
        return self._found[1]

    @functools.cached_property
    def entries(self):
        """key -> entry (status, config, environment) of every packed run."""
        merged = {}
        for _, entries in self._found[0]:
            merged |= entries
        return merged

    def entry(self, key):
        """Entry of a packed run, else None; a damaged bundle raises unless another one holds the
        run (StoreError).
        """
        if key not in self.entries and self.damaged:
            raise next(iter(self.damaged.values()))
        return self.entries.get(key)

    def holding(self, key):
        """Folders of the bundles that hold a run."""
        return [folder for folder, entries in self._found[0] if key in entries]

    def tables(self, name, keys):
        """key -> arrow table of a kind, such as "curves", of those runs that have one here."""
        tables = {}
        for folder, entries in self._found[0]:
            wanted = {key for key in keys if key in entries and key not in tables}
            if not wanted or not (folder / f"{name}.parquet").exists():
                continue
            table = files.from_parquet(Verified(folder, BUNDLE).read(f"{name}.parquet"))
            start = 0
            for part in pc.value_counts(table["key"]).to_pylist():  # each key in one piece
                if part["values"] in wanted:
                    own = table.slice(start, part["counts"])
                    tables[part["values"]] = own.drop_columns("key")
                start += part["counts"]
        return tables

    def forget(self):
        """Look again at the next question."""
        for name in ("_found", "entries"):
            vars(self).pop(name, None)


def _entries(folder):
    bundle = Verified(folder, BUNDLE)
    for name in CHECKED:
        bundle.read(name)
    return {entry["status"]["key"]: entry for entry in bundle.json("runs.json")}


def write(folder, entries, tables, others):
    """Write a bundle, in place of one of the same name; the same content gives the same bytes.

    Parameters
    ----------
    folder : Path
    entries : list of dict
        ``status``, ``config`` and ``environment`` of each run.
    tables : dict
        Name of a table -> key -> arrow table; probabilities are rounded to three decimals.
    others : dict
        Name -> bytes of weights and recordings.
    """
    content = {"runs.json": files.to_json(entries), **others}
    for name, of_runs in tables.items():
        parts = []
        for key, table in sorted(of_runs.items()):
            if name == "predictions":  # three decimals take a quarter of the space
                table = table.set_column(3, "probability", pc.round(table["probability"], 3))
            parts.append(table.add_column(0, "key", pa.array([key] * len(table), pa.string())))
        if parts:
            content[f"{name}.parquet"] = files.to_parquet(pa.concat_tables(parts))
    old = files.read_json(folder / BUNDLE) or {"files": {}}
    with files.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / BUNDLE).unlink(missing_ok=True)  # no bundle while its files change
        for name in set(old["files"]) - set(content):
            (folder / name).unlink(missing_ok=True)
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        files.write(folder / name, data)
    sums = {name: files.digest(data) for name, data in content.items()}
    files.write(folder / BUNDLE, files.to_json({"format": 1, "files": sums}))
