"""One attempt at one run (or at a group of seeds) in this process: resume, train, checkpoint,
publish.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import uuid
from dataclasses import dataclass
from pathlib import Path

from lib import checks, files, system
from lib.config import RunConfig
from lib.files import TABLES, StoreError
from lib.runs import checkpoints, status
from lib.runs.checkpoints import CodeChanged
from lib.runs.store import Store

# torch and the training are imported once the guard over the parent stands.

# Exit codes of a process that runs one attempt, and what a sweep makes of them.
DONE = 0  # a result is published
FAILED = 1  # as after a signal: tried again, so many times
INVALID = 2  # the request cannot be used: ends the sweep
UNUSABLE = 3  # the results folder cannot be used, or is full: ends the sweep
CHANGED = 4  # its checkpoint was made by other code: not tried again
PAUSED = 75  # asked to stop, its state is saved: goes on, and is no failed attempt
BUSY = 76  # another process trains this run: waits behind the others


class Unfit(ValueError):
    """What a cell refused while it was trained: no fault of the request."""


# In this order; whatever else is raised is a failed attempt.
CODES = {
    KeyboardInterrupt: PAUSED,
    CodeChanged: CHANGED,
    StoreError: UNUSABLE,
    Unfit: FAILED,
    ValueError: INVALID,
}
HEARTBEAT = 10  # seconds


@dataclass(frozen=True)
class Request:
    """What a process is asked to run: one attempt at runs that are equal but for the seed."""

    configs: tuple[dict, ...] = ()  # of `RunConfig.to_dict`
    results: str | Path | None = None  # folders, by default those of `lib.paths`; str to be sent
    data: str | Path | None = None
    device: str = "cpu"
    backend: str = "auto"
    threads: int = 1
    alike: int = 1  # runs that will use the same compiled graphs, these included
    since: float = 0.0  # when its sweep began; what was cancelled later is left out


@dataclass(frozen=True)
class Ending:
    """How an attempt in a process of its own ended."""

    code: int  # negative for a signal
    message: str = ""  # the end of what it printed
    step: int = -1  # of its newest checkpoint

    def check(self):
        """Raise what ends the sweep (StoreError, ValueError)."""
        if self.code in (UNUSABLE, INVALID):
            raise next(kind for kind, code in CODES.items() if code == self.code)(self.message)


class Superseded(Exception):
    """Another attempt published the result first."""


class Attempt:
    """One try at one run, in a new folder below that of the run; its only writer."""

    def __init__(self, run, config):
        self.run, self.config = run, config
        self.folder = files.made(run / f"attempt-{uuid.uuid4().hex}")
        self._lock = threading.Lock()
        files.write(self.folder / "config.json", files.to_json(config.to_dict()))
        self._row = {**status.describe(config), "state": "RUNNING", "message": ""}
        process = {"host": socket.gethostname(), "pid": os.getpid(), "born": system.born()}
        self.note(progress=0.0, started=time.time(), **process)

    def note(self, **changes):
        """Change the status and renew the heartbeat."""
        with self._lock:
            self._row |= {"heartbeat": time.time(), **changes}
            status.write(self.folder, self._row)

    def log(self, text):
        """Add a line to the log."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n"
        path = self.folder / "log.txt"
        with files.explained(self.folder), open(path, "a", encoding="utf-8") as file:
            file.write(line)

    def metrics(self, curves, history):
        """Replace the live curves and history, which may be read while the run goes on; the
        checkpoint holds them too.
        """
        for name, rows in (("curves", curves), ("history", history)):
            data = files.to_parquet(rows, TABLES[name])
            files.write(self.folder / f"{name}.parquet", data, sync=False)

    def finish(self, outcome):
        """Write all files of the result and, last, the manifest: from then on any process may
        publish the attempt.
        """
        from safetensors.torch import save

        row = {**self._row, **outcome.summary, "state": outcome.state, "progress": 1.0}
        for name in ("pid", "born", "host", "heartbeat", "step", "steps"):
            row.pop(name, None)
        content = {f"{which}.safetensors": save(own) for which, own in outcome.weights.items()}
        for name, schema in TABLES.items():
            rows = getattr(outcome, name)
            if rows is not None:
                content[f"{name}.parquet"] = files.to_parquet(rows, schema)
        content["status.json"] = files.to_json(row)
        for name, data in content.items():
            files.write(self.folder / name, data)
        self.log(f"{outcome.state} {outcome.summary['message']}".rstrip())
        log = self.folder / "log.txt"
        files.write(log, log.read_bytes())  # now it, too, is on the disk
        written = sorted(path for path in self.folder.iterdir() if path.is_file())
        sums = {path.name: files.digest(path.read_bytes()) for path in written}
        manifest = files.to_json({"key": self.config.key(), "files": sums})
        files.write(self.folder / files.MANIFEST, manifest)


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
            f"{attempt} cannot be published ({error.strerror}); "
            "start again when its folder can be written."
        ) from error
    with files.explained(attempt.parent):
        system.sync_folder(attempt.parent)
    return True


def adopt(run):
    """Publish an attempt whose process was killed between its manifest and the rename; True if
    there was one in the folder of the run.
    """
    return any(files.whole(attempt) and publish(attempt) for attempt in run.glob("attempt-*"))


def check(config):
    """Refuse what cannot run, or has a key that does not tell versions of what a user added apart
    (ValueError).
    """
    from lib import cells, datasets, train

    train.check(config)
    task, cell = config.task, config.cell
    for what, name, text, own in (
        ("data set", task.dataset, task.source, task.dataset not in datasets.BUILT_IN),
        ("cell", cell.name, cell.source, cell.name in cells.SOURCES),
    ):
        if own and text is None:
            raise ValueError(
                f"The {what} {name} is known to this process alone, as its text is no part of the "
                "run; register it with cells.register_source(text of a file), and make the run "
                "with grid."
            )


def check_place(device, backend="auto", here=True):
    """Refuse a device or backend that cannot be meant or, ``here``, is not there (ValueError)."""
    import torch

    from lib.recurrence import BACKENDS

    checks.one_of("backend", backend, BACKENDS)
    asked = None
    with contextlib.suppress(RuntimeError, TypeError):
        asked = torch.device(device)
    known = asked is not None and asked.type in ("cpu", "cuda")
    checks.require(known, "device", device, "cpu, cuda, or one GPU such as cuda:0")
    if here and asked.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        rule = f"a device that is here: {count} GPUs are" if count else "cpu: no GPU is here"
        checks.require((asked.index or 0) < count, "device", str(device), rule)


def execute(configs, store=None, *, data=None, device="cpu", backend="auto", alike=1, callbacks=()):
    """One attempt at these runs, which are equal but for the seed: resume from the newest valid
    checkpoints, train as `lib.train.fit`, publish the result of each seed. Runs that have one are
    left out; a resumed run keeps the backend it began with, or is refused. Returns the state of
    each run.

    Raises
    ------
    ValueError
        A configuration, the device or the data cannot be used; `Unfit` where a cell said so.
    StoreError
        The results folder cannot be used, is full, or holds checkpoints of other code.
    KeyboardInterrupt
        SIGTERM or SIGINT arrived; the state is saved and reads PAUSED.
    """
    from lib import datasets, train
    from lib.cells.registry import registered

    store = store or Store()
    configs = [configs] if isinstance(configs, RunConfig) else list(configs)
    for config in configs:
        check(config)
    check_place(device, backend)
    files.check_writable(store.root)
    pending = []
    for config in configs:
        if not (adopt(store.folder(config.key())) or store.finished(config.key())):
            pending.append(config)
    if pending:
        place = {"device": device, "backend": backend, "alike": alike}
        with registered(pending[0].task, pending[0].cell):
            if not isinstance(data, datasets.Dataset):
                data = datasets.load(pending[0].task, data=data, device=device)
            train.steps_per_epoch(pending[0], data)  # refused before there is an attempt
            _train(pending, store, data, place, callbacks)
    return [store.status(config.key())["state"] for config in configs]


def _train(configs, store, data, place, callbacks):
    from lib import train

    notes, resume = [], None
    runs = [store.folder(config.key()) for config in configs]
    found = checkpoints.resumable(runs, notes.append)
    if found:
        checkpoints.check_code(found)
        place["backend"] = found[0]["environment"]["backend"]
        resume = [content["state"] for content in found]
    attempts = [Attempt(run, config) for run, config in zip(runs, configs, strict=True)]
    with Recorder(attempts, place["device"], found) as recorder:
        for attempt in attempts:
            for note in notes:
                attempt.log(note)
        callbacks = (recorder, *callbacks)
        outcomes = train.fit(configs, data, **place, callbacks=callbacks, resume=resume)
        recorder.close()
        for attempt, outcome in zip(attempts, outcomes, strict=True):
            attempt.finish(outcome)
        for attempt in attempts:
            if not publish(attempt.folder) and attempt.folder.is_dir():
                attempt.note(state="CANCELLED", message=Superseded.__doc__)


def environment(state, device):
    """The platform of a run: what its result depends on beside its configuration."""
    import platform

    import numpy
    import torch

    gpu = str(device).startswith("cuda")
    return {
        "backend": state.backend,
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if gpu else platform.machine(),
        "processor": system.processor(),
        "threads": torch.get_num_threads(),
        "seeds": [config.seed for config in state.configs],  # trained side by side
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "commit": _commit(),
        "fingerprint": checkpoints.fingerprint(),
    }


def _commit():
    """Commit of this code; None where it is unknown, as without git."""
    options = {"cwd": Path(__file__).parent, "stderr": subprocess.DEVNULL, "timeout": 30}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.check_output(["git", "rev-parse", "HEAD"], text=True, **options).strip()
    return None


class Recorder:
    """Callback of `lib.train.fit` and context of an attempt: status, heartbeat, live metrics,
    checkpoints, requests to stop.

    Signals are caught while the context is open (in the main thread): once training goes on, the
    state is saved at the next step; before that there is nothing to save, and the process stops at
    once; while results are published, signals wait.
    """

    def __init__(self, attempts, device, found=None):
        self.attempts, self.device, self.found = attempts, device, found
        self._stop, self._stage, self._done, self._handlers = None, "idle", threading.Event(), {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._on_signal)
        self._beat = threading.Thread(target=self._heartbeat, daemon=True)
        self._beat.start()
        return self

    def __exit__(self, kind, error, trace):
        self.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if error is None:
            return False
        state, message, details = "FAILED", f"{kind.__name__}: {error}", ""
        if kind is Superseded:
            state, message = "CANCELLED", Superseded.__doc__
        elif isinstance(error, KeyboardInterrupt | StoreError):
            # the last checkpoint stands: a rerun goes on
            state, message = "PAUSED", str(error)
        else:
            details = "\n" + "".join(traceback.format_exception(error))
        for attempt in self.attempts:
            if (attempt.folder / files.MANIFEST).exists():
                continue  # it is complete: a rerun publishes it as it is
            # no room, or the folder is gone: the reason is raised anyway
            with contextlib.suppress(OSError, StoreError):
                attempt.log(f"{state} {message}{details}".rstrip())
                attempt.note(state=state, message=message)
        if isinstance(error, ValueError):
            raise Unfit(str(error)) from error
        return kind is Superseded

    def close(self):
        """Stop the heartbeat, before the results are published."""
        self._stage = "publishing"
        self._done.set()
        self._beat.join()

    def _heartbeat(self):
        while not self._done.wait(HEARTBEAT):
            for attempt in self.attempts:
                with contextlib.suppress(OSError, StoreError):  # the training itself will say so
                    attempt.note()

    def _on_signal(self, number, frame):
        self._stop = signal.Signals(number).name
        if self._stage == "idle":
            raise KeyboardInterrupt(f"Stopped by {self._stop}.")

    # Hooks of the training

    def on_start(self, state):
        made = environment(state, self.device)
        resumed, began = [], f"started, {state.steps} steps"
        if self.found:
            before = self.found[0]["environment"]
            if before["backend"] != state.backend:
                raise CodeChanged(
                    f"Run {self.found[0]['key']} began on the {before['backend']} path, which "
                    "cannot be compiled here, and results must not be mixed; go on where it can, "
                    "or drop the unfinished attempts with "
                    "Store().prune(keys=[...], unfinished=True) to start again."
                )
            names = ("backend", "device", "device_name", "processor", "threads", "seeds")
            changed = {name: before.get(name) for name in names if before.get(name) != made[name]}
            resumed = [*before.get("resumed", []), {"step": state.step, "before": changed}]
            began = f"resumed at step {state.step} of {state.steps}"
        self.environment = {**made, "resumed": resumed}
        reached = {"step": state.step, "steps": state.steps, "progress": state.step / state.steps}
        for s, attempt in enumerate(self.attempts):
            files.write(attempt.folder / "environment.json", files.to_json(self.environment))
            attempt.log(began)
            attempt.note(backend=state.backend, **reached)
            if state.curves[s]:
                attempt.metrics(state.curves[s], state.history[s])

    def on_step(self, state):
        self._stage = "training"
        if state.validated or self._stop:
            for s, attempt in enumerate(self.attempts):
                content = {"key": attempt.config.key(), "environment": self.environment}
                content["state"] = state.snapshot(s)
                checkpoints.save(attempt.folder / "checkpoints", state.step, content)
        if self._stop:
            where = f"step {state.step} of {state.steps}"
            raise KeyboardInterrupt(f"Stopped by {self._stop} at {where}; the state is saved.")
        if state.validated and all((attempt.run / "result").is_dir() for attempt in self.attempts):
            raise Superseded

    def on_validation(self, state, record):
        s = [config.seed for config in state.configs].index(record["seed"])
        self.attempts[s].metrics(state.curves[s], state.history[s])
        self.attempts[s].note(
            step=state.step,
            progress=state.step / state.steps,
            seconds=state.seconds,
            ms_per_step=state.ms_per_step,
            validation_accuracy=max(row["validation_accuracy"] for row in state.curves[s]),
        )

    def on_end(self, state):
        self._stage = "idle"  # nothing is saved from here until the results are


def run_request(request, callbacks=()):
    """Run what a `Request` says and return the exit code; messages go to standard error."""
    try:
        import torch

        torch.set_num_threads(request.threads)
        if request.device.startswith("cuda"):  # on a CPU there is no choice of kernels
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            # costs time, and no tensor is read before it is written
            torch.utils.deterministic.fill_uninitialized_memory = False
        configs = [RunConfig.from_dict(values) for values in request.configs]
        place = {"device": request.device, "backend": request.backend, "alike": request.alike}
        store = Store(request.results)
        execute(configs, store, data=request.data, callbacks=callbacks, **place)
        return DONE
    except (KeyboardInterrupt, Exception) as error:
        code = next((code for kind, code in CODES.items() if isinstance(error, kind)), FAILED)
        said = traceback.format_exc() if code == FAILED else str(error) or "Interrupted."
    print(said, file=sys.stderr, flush=True)
    return code
