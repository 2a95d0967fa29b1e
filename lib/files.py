"""Files that survive a kill: atomic writes, and manifests with the sha256 of every file."""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import tempfile
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lib import system

MANIFEST, BUNDLE = "MANIFEST.json", "BUNDLE.json"  # of a result, of a bundle
REMEDY = {
    MANIFEST: "move {} away and run again.",
    BUNDLE: "restore {} (git checkout), or move it away.",
}
# The tables that a run leaves, and their columns.
_TYPES = {
    **{"step": pa.int64(), "variable": pa.string(), "statistic": pa.string()},
    **{"image": pa.int32(), "label": pa.int32(), "prediction": pa.int32()},
    "probability": pa.float32(),
}
_COLUMNS = {
    "curves": "step epoch train_loss train_accuracy validation_loss validation_accuracy "
    "rate gradient_norm",
    "history": "step epoch variable statistic value",
    "predictions": "image label prediction probability",
}
TABLES = {
    table: pa.schema([(name, _TYPES.get(name, pa.float64())) for name in names.split()])
    for table, names in _COLUMNS.items()
}


class StoreError(RuntimeError):
    """The results folder cannot be used or trusted; the sentence says what to do."""


class DiskFull(StoreError):
    """No room for a file; what was there before is intact."""


@contextlib.contextmanager
def explained(folder):
    """Turn what the file system refuses below `folder` into one sentence.

    Raises
    ------
    DiskFull
        There is no room.
    StoreError
        The folder is gone or cannot be written.
    """
    try:
        yield
    except (StoreError, ValueError):
        raise
    except Exception as raised:
        error = raised  # or what a library stumbled over while it tidied up after a refusal
        while error is not None and not isinstance(error, OSError):
            error = error.__context__
        if error is None:
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"The disk of {folder} is full; make room and start again: "
                "what was there before is kept."
            ) from error
        # A write to an open file names none.
        here, path = folder.absolute(), Path(error.filename or folder).absolute()
        apart = not (path.is_relative_to(here) or here.is_relative_to(path))
        if error is not raised or error.errno is None or apart:
            raise
        raise StoreError(
            f"{folder} cannot be written ({error.strerror}); bring it back and start again."
        ) from error


def made(folder):
    """The folder, made where it is not there yet; StoreError as `explained`."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def write(path, data, sync=True):
    """Replace a file in one step: a reader, or a rerun after a kill, finds the old or the new
    content, never a part.

    Raises
    ------
    StoreError
        As `explained`; the old content stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with explained(path.parent):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            system.replace(temporary, path)
            if sync:
                system.sync_folder(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


@contextlib.contextmanager
def staged(folder, manifest=MANIFEST):
    """A folder to write into whose files take the place of those of `folder` once all are there;
    whatever fails, the old ones stay or come back. Of the files that a manifest lists, those that a
    new one leaves out are removed.

    Raises
    ------
    StoreError
        As `explained`.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as scratch:
            new, old = made(Path(scratch) / "new"), Path(scratch) / "old"
            try:
                yield new
            except StoreError as error:
                raise type(error)(str(error).replace(str(new), str(folder))) from error
            paths = (path for path in new.rglob("*") if path.is_file())
            names = {path.relative_to(new).as_posix() for path in paths}
            if manifest in names:
                names.update((read_json(folder / manifest) or {}).get("files", ()))
            with contextlib.ExitStack() as undo:
                for name in sorted(names):
                    for source, target in ((folder, old), (new, folder)):
                        if (source / name).exists():
                            (target / name).parent.mkdir(parents=True, exist_ok=True)
                            system.replace(source / name, target / name)
                            undo.callback(system.replace, target / name, source / name)
                undo.pop_all()


def check_writable(root):
    """Refuse a results folder that cannot be written, before any training (StoreError)."""
    probe = root / "runs" / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        raise StoreError(
            f"The results folder {root} cannot be written ({error.strerror}); make it writable, "
            "make room, or name another one in the environment variable WORKBOOK_RESULTS."
        ) from error


# Formats


def digest(data):
    """sha256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


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
    if isinstance(rows, dict):
        rows = pa.Table.from_pydict(rows, schema)
    elif not isinstance(rows, pa.Table):
        rows = pa.Table.from_pylist(rows, schema)
    encoding = {}
    if "image" in rows.column_names:  # counts up: its differences take no space
        encoding["use_dictionary"] = [name for name in rows.column_names if name != "image"]
        encoding["column_encoding"] = {"image": "DELTA_BINARY_PACKED"}
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd", **encoding)
    return buffer.getvalue()


def from_parquet(data, columns=None, dictionary=None):
    """Arrow table of the bytes of a small parquet file, for which threads would only wait; of some
    columns, or all. Columns of ``dictionary`` hold each of their values once.
    """
    file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=dictionary)
    return file.read(columns, use_threads=False)


# Manifests


class Verified:
    """A folder whose manifest holds the sha256 of every file.

    Raises
    ------
    StoreError
        The manifest, or a file that is asked for, is missing or not what was written.
    """

    def __init__(self, folder, manifest=MANIFEST):
        self.folder, self._remedy = folder, REMEDY[manifest].format(folder)
        try:
            self.sums = dict(json.loads((folder / manifest).read_bytes())["files"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{folder / manifest} is damaged ({error}); {self._remedy}") from error

    def read(self, name):
        """Bytes of a file, checked."""
        path = self.folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path} is damaged ({error}); {self._remedy}") from error
        if digest(data) != self.sums.get(name):
            raise StoreError(
                f"{path} does not match its manifest: it was changed or damaged; {self._remedy}"
            )
        return data

    def json(self, name):
        """Content of a JSON file, checked."""
        return json.loads(self.read(name))

    def damaged(self):
        """Names of the files that do not match."""
        names = []
        for name in self.sums:
            try:
                self.read(name)
            except StoreError:
                names.append(name)
        return names


def whole(folder):
    """Whether a folder has its manifest, and every file is what was written."""
    try:
        return not Verified(folder).damaged()
    except StoreError:
        return False
