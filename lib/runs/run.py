"""One attempt at one run (or at a group of seeds) in this process: resume, train, checkpoint,
publish.

Exit codes of a process that runs one attempt: 0 a result is published; 1 it failed; 2 the request
is invalid; 3 the results folder is full or not usable; 4 its checkpoint was made by other code; 75
it was asked to stop, saved its state, and can go on.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import traceback

from lib.config import RunConfig
from lib.runs import checkpoint
from lib.runs.attempt import Attempt, publish
from lib.runs.checkpoint import CodeChanged, StoreError
from lib.runs.store import Store

# torch and the training are imported once the guard over the parent stands.

DONE, FAILED, INVALID, UNUSABLE, CHANGED, PAUSED = 0, 1, 2, 3, 4, 75
HEARTBEAT = 10  # seconds
SUPERSEDED = "Another attempt published the result first."


class Stopped(KeyboardInterrupt):
    """The process was asked to stop, by SIGTERM or SIGINT; the state is saved."""


class Superseded(Exception):
    """Another attempt published the result first."""


def execute(configs, store=None, *, data=None, device="cpu", backend="auto", callbacks=()):
    """One attempt at these runs: resume from the newest valid checkpoints, train, publish the
    result of each seed.

    Parameters
    ----------
    configs : RunConfig or list of RunConfig
        Equal but for the seed; those with a result already are left out.
    store : Store, optional
    data : Dataset, path or None
    device, backend : str
        A resumed run keeps the backend it began with, where that still can be compiled.
    callbacks : sequence of lib.train.Callback

    Returns
    -------
    list of str
        State of each run afterwards.

    Raises
    ------
    ValueError
        A configuration or the data cannot be used.
    StoreError
        The results folder cannot be used, is full, or holds checkpoints of other code.
    Stopped
        SIGTERM or SIGINT arrived; the state is saved and reads PAUSED.
    """
    from lib import datasets, train

    store, configs = (
        store or Store(),
        [configs] if isinstance(configs, RunConfig) else list(configs),
    )
    for config in configs:
        train.check(config)
    store.check_writable()
    pending = [
        config
        for config in configs
        if not (store.adopt(config.key()) or store.finished(config.key()))
    ]
    if pending:
        if not isinstance(data, datasets.Dataset):
            data = datasets.load(pending[0].task, data=data, device=device)
        notes = []
        found = store.resumable([config.key() for config in pending], notes.append)
        if found:
            for config, content in zip(pending, found, strict=True):
                checkpoint.check_fingerprint(
                    content["environment"]["fingerprint"], f"Run {config.key()}"
                )
            backend = found[0]["environment"]["backend"]
        attempts = [Attempt(store.folder(config.key()), config) for config in pending]
        recorder = Recorder(store, attempts, device, found)
        with recorder:
            for attempt in attempts:
                for note in notes:
                    attempt.log(note)
            resume = [content["state"] for content in found] if found else None
            outcomes = train.fit(
                pending,
                data,
                device=device,
                backend=backend,
                callbacks=(recorder, *callbacks),
                resume=resume,
            )
            recorder.close()
            for attempt, outcome in zip(attempts, outcomes, strict=True):
                attempt.finish(outcome)
            for attempt in attempts:
                if not publish(attempt.folder) and attempt.folder.is_dir():
                    attempt.status(state="CANCELLED", message=SUPERSEDED)
    return [store.status(config.key())["state"] for config in configs]


def environment(state, device):
    """What a result depends on beside its configuration, and the code that made it."""
    import platform

    import numpy
    import torch

    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "backend": state.backend,
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device)
        if str(device).startswith("cuda")
        else platform.machine(),
        "threads": torch.get_num_threads(),
        "seeds": [config.seed for config in state.configs],  # trained side by side
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "commit": None if commit.returncode else commit.stdout.strip(),
        "fingerprint": checkpoint.fingerprint(),
    }


class Recorder:
    """Callback of `lib.train.fit` and context of an attempt: status, heartbeat, live metrics,
    checkpoints, requests to stop.

    Signals are caught while the context is open (in the main thread): once training goes on, the
    state is saved at the next step; before that there is nothing to save, and the process stops at
    once; while results are published, signals wait.
    """

    def __init__(self, store, attempts, device, found=None):
        self.store, self.attempts, self.device, self.found = store, attempts, device, found
        self._stop, self._stage, self._done, self._handlers = None, "idle", threading.Event(), {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._handlers = {
                number: signal.signal(number, self._on_signal)
                for number in (signal.SIGTERM, signal.SIGINT)
            }
        self._beat = threading.Thread(target=self._heartbeat, daemon=True)
        self._beat.start()
        return self

    def __exit__(self, kind, error, trace):
        self.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if isinstance(error, Superseded):
            self._finish("CANCELLED", SUPERSEDED)
        elif isinstance(
            error, KeyboardInterrupt | StoreError
        ):  # the last checkpoint stands, and a rerun goes on from it
            self._finish("PAUSED", str(error))
        elif error is not None:
            self._finish(
                "FAILED", f"{kind.__name__}: {error}", "".join(traceback.format_exception(error))
            )
        return isinstance(error, Superseded)

    def _finish(self, state, message, details=""):
        for attempt in self.attempts:
            with contextlib.suppress(
                OSError, StoreError
            ):  # no room, or the folder is gone: the reason is raised anyway
                attempt.log(f"{state} {message}\n{details}".rstrip())
                attempt.status(state=state, message=message)

    def close(self):
        """Stop the heartbeat, before the results are published."""
        self._stage = "publishing"
        self._done.set()
        self._beat.join()

    def _heartbeat(self):
        while not self._done.wait(HEARTBEAT):
            for attempt in self.attempts:
                with contextlib.suppress(OSError, StoreError):  # the training itself will say so
                    attempt.status()

    def _on_signal(self, number, frame):
        self._stop = signal.Signals(number).name
        if self._stage == "idle":
            raise Stopped(f"Stopped by {self._stop}.")

    # Hooks of the training

    def on_start(self, state):
        made = environment(state, self.device)
        resumed = (
            [*self.found[0]["environment"].get("resumed", []), self._origin(made)]
            if self.found
            else []
        )
        self.environment = {**made, "resumed": resumed}
        for attempt in self.attempts:
            attempt.environment(self.environment)
            attempt.log(
                f"resumed at step {state.step} of {state.steps}"
                if self.found
                else f"started, {state.steps} steps"
            )
            attempt.status(
                steps=state.steps,
                step=state.step,
                progress=state.step / state.steps,
                backend=state.backend,
            )
        for attempt, curves, history in zip(
            self.attempts, state.curves, state.history, strict=True
        ):
            if curves:
                attempt.metrics(curves, history)

    def _origin(self, made):
        before = self.found[0]["environment"]
        changed = {
            name: before.get(name)
            for name in ("backend", "device", "device_name", "threads", "seeds")
            if before.get(name) != made[name]
        }
        return {"step": self.found[0]["state"]["step"], "before": changed}

    def on_step(self, state):
        self._stage = "training"
        if state.validated or self._stop:
            for s, attempt in enumerate(self.attempts):
                attempt.checkpoint(
                    state.step,
                    {
                        "key": attempt.config.key(),
                        "environment": self.environment,
                        "state": state.snapshot(s),
                    },
                )
        if self._stop:
            raise Stopped(
                f"Stopped by {self._stop} at step {state.step} of {state.steps}; the state is saved."
            )
        if state.validated and all((attempt.run / "result").is_dir() for attempt in self.attempts):
            raise Superseded

    def on_validation(self, state, record):
        s = [config.seed for config in state.configs].index(record["seed"])
        best = max(row["validation_accuracy"] for row in state.curves[s])
        self.attempts[s].metrics(state.curves[s], state.history[s])
        progress = {
            "step": state.step,
            "progress": state.step / state.steps,
            "seconds": state.seconds,
            "ms_per_step": state.ms_per_step,
        }
        self.attempts[s].status(validation_accuracy=best, **progress)

    def on_end(self, state):
        self._stage = "idle"  # nothing is saved from here until the results are


def run_request(request, callbacks=()):
    """Run what a request says and return the exit code; messages go to standard error.

    Parameters
    ----------
    request : dict
        ``configs`` (list of dict), and optionally ``data``, ``results``, ``device``, ``backend``,
        ``threads``.
    """
    try:
        import torch

        torch.set_num_threads(request.get("threads") or 1)
        if str(request.get("device")).startswith("cuda"):  # on a CPU there is no choice of kernels
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = (
                False  # costs time, and no tensor is read before it is written
            )
        configs = [RunConfig.from_dict(values) for values in request["configs"]]
        options = {
            name: request[name] for name in ("data", "device", "backend") if request.get(name)
        }
        execute(configs, Store(request.get("results")), callbacks=callbacks, **options)
        return DONE
    except KeyboardInterrupt as error:
        code, message = PAUSED, str(error) or "Interrupted."
    except CodeChanged as error:
        code, message = CHANGED, str(error)
    except StoreError as error:
        code, message = UNUSABLE, str(error)
    except ValueError as error:
        code, message = INVALID, str(error)
    except Exception:
        code, message = FAILED, traceback.format_exc()
    print(message, file=sys.stderr, flush=True)
    return code
