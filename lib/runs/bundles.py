"""Finished runs packed into a few files that git can hold, and read like live ones.

<bundle>/BUNDLE.json                     sha256 of every file
<bundle>/runs.json                       status, configuration and environment of each run
<bundle>/curves.parquet, history, ...    the tables of all runs, with their key
<bundle>/weights/<key>, traces/<key>     of the runs packed with weights
"""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from lib import files
from lib.files import BUNDLE, StoreError, Verified


class Bundles:
    """The bundles anywhere below a results folder.

    Attributes
    ----------
    damaged : dict
        Name of a damaged bundle -> its StoreError.
    entries : dict
        key -> entry (status, config, environment) of every packed run.
    """

    def __init__(self, root):
        self.damaged, self.entries, self._folders = {}, {}, {}
        for where, subfolders, names in os.walk(root):
            subfolders[:] = sorted(name for name in subfolders if name[0] != ".")
            if where == str(root) and "runs" in subfolders:
                subfolders.remove("runs")
            if BUNDLE in names:
                subfolders.clear()  # weights and recordings, a folder a run
                folder = Path(where)
                try:
                    bundle = Verified(folder, BUNDLE)
                    for table in ("curves", "history"):  # before it is trusted
                        bundle.read(f"{table}.parquet")
                    entries = {entry["status"]["key"]: entry for entry in bundle.json("runs.json")}
                except StoreError as error:
                    self.damaged[folder.relative_to(root).as_posix()] = error
                else:
                    self._folders[folder] = entries.keys()
                    self.entries = entries | self.entries  # the first one wins, as in `tables`

    def entry(self, key):
        """Entry of a packed run, else None; a damaged bundle raises unless another one holds the
        run (StoreError).
        """
        if key not in self.entries and self.damaged:
            raise next(iter(self.damaged.values()))
        return self.entries.get(key)

    def holding(self, key):
        """Folders of the bundles that hold a run."""
        return [folder for folder, keys in self._folders.items() if key in keys]

    def tables(self, name, keys, columns=None):
        """key -> arrow table of a kind, such as "curves", of those runs that have one here; of some
        columns, or all.
        """
        tables = {}
        for folder, held in self._folders.items():
            wanted = {key for key in keys if key in held and key not in tables}
            if not wanted or not (folder / f"{name}.parquet").exists():
                continue
            data = Verified(folder, BUNDLE).read(f"{name}.parquet")
            table = files.from_parquet(data, columns and ["key", *columns], ["key"])
            start = 0
            for part in pc.value_counts(table["key"]).to_pylist():  # each key in one piece
                if part["values"] in wanted:
                    own = table.slice(start, part["counts"])
                    tables[part["values"]] = own.drop_columns("key")
                start += part["counts"]
        return tables


def write(folder, entries, tables, others):
    """Write a bundle, in place of one of the same name; the same content gives the same bytes.

    It takes a list of entries (``status``, ``config``, ``environment`` of a run); tables by name
    and key, of which probabilities are rounded to three decimals; and bytes of weights and
    recordings by name.
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
    sums = {name: files.digest(data) for name, data in content.items()}
    content[BUNDLE] = files.to_json({"format": 1, "files": sums})
    with files.staged(folder, BUNDLE) as new:
        for name, data in content.items():
            files.write(files.made((new / name).parent) / Path(name).name, data)
