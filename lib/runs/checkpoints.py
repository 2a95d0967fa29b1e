"""Checkpoints of a run: whole or not there, and continued only by the code that made them."""

import ast
import functools
import io
from pathlib import Path

from lib import files
from lib.files import StoreError, digest

# Modules whose code defines a result.
RESULT_MODULES = "config datasets folders windows cells recurrence compiled measures train".split()


class CodeChanged(StoreError):
    """A checkpoint comes from other code, another torch or another backend than those here."""


def save(folder, step, content):
    """Write a checkpoint under a name with its step and sha256, so that no second file can
    disagree; drop all but the newest and one to fall back on. The disk is not waited for: one that
    a power cut left incomplete shows by its name.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    with files.explained(folder):
        folder.mkdir(exist_ok=True)
    files.write(folder / f"{step:010d}-{digest(data)}.pt", data, sync=False)
    for old in sorted(folder.glob("[0-9]*.pt"), reverse=True)[2:]:
        old.unlink(missing_ok=True)


def found(run):
    """(step, path) of the checkpoints of all attempts at a run, newest first."""
    paths = run.glob("attempt-*/checkpoints/[0-9]*.pt")
    return sorted(((int(path.name.split("-")[0]), path) for path in paths), reverse=True)


def resumable(runs, log=print):
    """Contents of the newest checkpoints in the folders of a group of runs, all of one step; None
    without a step that all share.

    A checkpoint that cannot be trusted is set aside, and the one before is used.
    """
    all_found = [found(run) for run in runs]
    shared = set.intersection(*({step for step, _ in paths} for paths in all_found))
    for step in sorted(shared, reverse=True):
        contents = []
        for run, paths in zip(runs, all_found, strict=True):
            candidates = (_load(path, run.name, log) for at, path in paths if at == step)
            contents.append(next((content for content in candidates if content), None))
        if None not in contents:
            return contents
    return None


def _load(path, key, log):
    """Content of a checkpoint; None where it is gone, damaged, forged or of another run. Only plain
    values and tensors are ever unpickled, and only after the checksum agreed.
    """
    import torch

    try:
        data = path.read_bytes()
        if digest(data) != path.stem.split("-")[1]:
            wrong = "is damaged: it does not match its sha256"
        else:
            content = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
            if content["key"] == key:
                return content
            wrong = f"belongs to run {content['key']}"
    except FileNotFoundError:  # its writer moved on
        return None
    except Exception as error:  # whatever a forged file provokes in the reader
        wrong = f"is refused: {str(error).splitlines()[0][:200]}"
    log(f"checkpoint set aside in {path.parent.parent.name}: {path.name} {wrong}")
    path.rename(path.with_name(f"damaged-{path.name}"))
    return None


@functools.cache
def fingerprint():
    """Version of torch and sha256 of each result-defining module, without comments, docstrings and
    layout.
    """
    import torch

    lib = Path(__file__).parents[1]
    marks = {"torch": str(torch.__version__)}  # a plain string, which a checkpoint may hold
    for module in RESULT_MODULES:
        for path in [lib / f"{module}.py", *sorted((lib / module).rglob("*.py"))]:
            if path.exists():
                marks[path.relative_to(lib.parent).as_posix()] = _digest_of_code(path)
    return marks


def _digest_of_code(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        holds = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if holds and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return digest(ast.dump(tree).encode())


def check_code(contents):
    """Refuse to go on from what other code made: CodeChanged names what differs and what to do."""
    now = fingerprint()
    for content in contents:
        made = content["environment"]["fingerprint"]
        changed = [name for name in {**now, **made} if made.get(name) != now.get(name)]
        if changed:
            torch = f"torch {made.get('torch')} -> {now['torch']}"
            named = ", ".join(torch if name == "torch" else name for name in changed)
            raise CodeChanged(
                f"Run {content['key']} was interrupted under other code ({named}), and results "
                "must not be mixed; restore that code to go on, or drop the unfinished attempts "
                "with Store().prune(keys=[...], unfinished=True) to start again."
            )
