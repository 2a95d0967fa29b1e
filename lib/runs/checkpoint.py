"""Files that survive a kill: atomic writes, checkpoints that carry their checksum, and the code
that made them.
"""

import ast
import contextlib
import errno
import functools
import hashlib
import io
import os
import uuid
from pathlib import Path

# Modules whose code defines a result; a checkpoint made by other code is not continued.
RESULT_MODULES = (
    "config",
    "datasets",
    "windows",
    "cells",
    "compiled",
    "recurrence",
    "measures",
    "train",
)
KEPT = 2  # checkpoints of an attempt: the newest, and one to fall back on


class StoreError(RuntimeError):
    """The results folder cannot be used or trusted; the sentence says what to do."""


class DiskFull(StoreError):
    """No room for a file; what was there before is intact."""


class CodeChanged(StoreError):
    """A checkpoint comes from other code or another torch than the one that runs now."""


def digest(data):
    return hashlib.sha256(data).hexdigest()


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
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"The disk of {folder} is full; make room and start again: runs go on from their checkpoints."
            ) from error
        raise StoreError(
            f"{folder} cannot be written ({error.strerror}); bring it back and start again."
        ) from error


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
            os.replace(temporary, path)
            if sync:
                sync_folder(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def sync_folder(folder):
    """Make renames and new names in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(folder, step, content):
    """Write a checkpoint under a name with its step and sha256, so that no second file can
    disagree; drop all but the newest two.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    with explained(folder):
        folder.mkdir(exist_ok=True)
    write(folder / f"{step:010d}-{digest(data)}.pt", data)
    for old in sorted(folder.glob("[0-9]*.pt"), reverse=True)[KEPT:]:
        old.unlink(missing_ok=True)


def found(run):
    """(step, path) of the checkpoints of all attempts at a run, newest first."""
    paths = run.glob("attempt-*/checkpoints/[0-9]*.pt")
    return sorted(((int(path.name.split("-")[0]), path) for path in paths), reverse=True)


def load(path):
    """Content of a checkpoint; only plain values and tensors are ever unpickled, and only after the
    checksum agreed.

    Raises
    ------
    ValueError
        The file is damaged, or holds something other than plain values and tensors.
    """
    import torch

    data = path.read_bytes()
    if digest(data) != path.stem.split("-")[1]:
        raise ValueError(f"{path.name} is damaged: it does not match its sha256")
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # whatever a forged file provokes in the reader
        raise ValueError(f"{path.name} is refused: {str(error).splitlines()[0][:200]}") from error


@functools.cache
def fingerprint():
    """Version of torch and sha256 of each result-defining module, without comments, docstrings and
    layout.
    """
    import torch

    marks = {"torch": str(torch.__version__)}  # a plain string, which a checkpoint may hold
    for module in RESULT_MODULES:
        tree = ast.parse((Path(__file__).parents[1] / f"{module}.py").read_text())
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and ast.get_docstring(node, clean=False) is not None
            ):
                node.body = node.body[1:]
        marks[f"lib/{module}.py"] = digest(ast.dump(tree).encode())
    return marks


def check_fingerprint(made, where):
    """Refuse to go on from what other code made.

    Raises
    ------
    CodeChanged
        Names what differs and what to do.
    """
    now = fingerprint()
    changed = [name for name in {**now, **made} if made.get(name) != now.get(name)]
    if changed:
        named = ", ".join(
            f"torch {made.get('torch')} -> {now['torch']}" if name == "torch" else name
            for name in changed
        )
        raise CodeChanged(
            f"{where} was interrupted under other code ({named}), and results must not be mixed; restore that code to go on, "
            f"or drop the unfinished attempts with Store().prune(keys=[...], unfinished=True) to start again."
        )
