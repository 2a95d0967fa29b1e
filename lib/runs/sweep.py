"""Many runs: planned against the store, each in a child process, through Dask on this machine or a
cluster.

A slot is a thread of a Dask worker. It holds one child process at a time and reads nothing but its
end: the child trains, saves and publishes by itself (`lib.runs.attempt`), so whatever dies here,
the store knows how far every run came. One code path serves all places; only where the workers come
from differs (`lib.runs.places`).
"""

import contextlib
import math
import queue
import socket
import statistics
import sys
import threading
import time
import uuid
import warnings
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from lib import checks, paths
from lib.config import RunConfig, Training
from lib.runs import attempt, children, files, places, system
from lib.runs.attempt import BUSY, CHANGED, DONE, FAILED, INVALID, PAUSED, UNUSABLE
from lib.runs.children import Ending
from lib.runs.files import StoreError
from lib.runs.grid import grid as grid  # what a sweep is asked with
from lib.runs.grid import read_grid as read_grid
from lib.runs.grid import unique
from lib.runs.places import read_cluster as read_cluster
from lib.runs.status import FINISHED, cancelled, describe, mark, unfinished
from lib.runs.store import Store

# torch, the cells and Dask are imported where they are needed: workers start without torch,
# `status` and `cancel` without both.

ASK_ABOVE = 600  # estimated seconds above which `load_or_run` wants confirm=True
START_UP = 1  # seconds of a run beside its training
POLL = 0.2  # seconds between two looks at a child process
GRACE = 3  # seconds a child has to save its state before it is killed
DIFFERENCES = (  # beside data set, window, cell and seed
    *(
        "permuted",
        "last_rows",
        "first_rows",
        "delay",
        "data_seed",
        "scan",
        "hidden_size",
        "initialisation",
        "options",
    ),
    *("source", "epochs", "batch_size", "learning_rate", "clip_norm", "validations_per_epoch"),
)
LINE = 60  # seconds between two lines of progress without a terminal


# Before and beside the training


def plan(configs, store=None):
    """The runs that have no result yet, in their order, each once."""
    done = (store or Store()).finished_keys()
    return [config for config in unique(configs) if config.key() not in done]


def estimate(configs, store=None, slots=1):
    """Seconds that these runs take on so many slots, from finished runs; nan without a finished run
    on the same data set.

    Training time is taken as proportional to epochs x time steps, for each cell and hidden size.
    """
    known = (store or Store()).rows(state="DONE").to_dict("records")
    return _seconds(map(describe, configs), known) / slots


def _seconds(rows, known):
    """Seconds that runs take one after the other, from rows of finished ones."""
    times, total = {}, 0.0
    for row in known:
        pace = row["seconds"] / (row["epochs"] * row["sequence_length"])
        times.setdefault(row["dataset"], []).append(pace)
        times.setdefault(_kind(row), []).append(pace)
    paces = {kind: statistics.median(values) for kind, values in times.items()}
    for row in rows:
        pace = paces.get(_kind(row), paces.get(row["dataset"], math.nan))
        total += START_UP + row["epochs"] * row["sequence_length"] * pace
    return total


def _kind(row):
    return row["dataset"], row["cell"], row["hidden_size"]


def preview(configs, store=None, slots=None, device="cpu"):
    """What a sweep would train and how long it would take, as text."""
    store, configs = store or Store(), unique(configs)
    missing = plan(configs, store)
    slots = slots or _slots(missing, device)
    done = len(configs) - len(missing)
    lines = [f"{len(configs)} runs, {done} finished, {len(missing)} to train."]
    rows = Counter((row["dataset"], row["window"], row["cell"]) for row in map(describe, missing))
    for (dataset, window, cell), count in rows.items():
        lines.append(f"  {dataset}  window {window:>5}  {cell:<12} {count} seeds")
    if missing:
        time_left = duration(estimate(missing, store, slots))
        lines.append(f"Estimated time on {slots} slots: {time_left}.")
    return "\n".join(lines)


def duration(seconds):
    """A length of time in words."""
    if math.isnan(seconds):
        return "unknown, as nothing on this data set ran before"
    if seconds < 60:
        return "under a minute"
    return f"about {seconds / 60:.0f} min" if seconds < 7200 else f"about {seconds / 3600:.1f} h"


def status(configs=None, store=None):
    """State, progress and accuracies of runs, read from the store, whoever trains them; by default
    of all runs.
    """
    store = store or Store()
    filters = {} if configs is None else {"key": [config.key() for config in configs]}
    runs = store.rows(**filters)
    runs["message"] = [text.partition("\n")[0] for text in runs["message"].fillna("")]
    columns = "key state dataset window cell hidden_size seed progress".split()
    own = [name for name in _differing(runs) if name not in columns]
    return runs[[*columns, *own, "validation_accuracy", "test_accuracy", "message"]]


def overview(store=None):
    """One row a group of runs: data set, window, cell and what else differs, the number of runs by
    state, their mean accuracy on the test set, and the training time left on one slot.
    """
    import pandas as pd

    runs = (store or Store()).rows()
    runs = runs[runs["state"] != "DAMAGED"].copy()
    done = runs[runs["state"] == "DONE"].to_dict("records")
    usual = {name: runs[name].value_counts(dropna=False).index[0] for name in _differing(runs)}
    runs["differs"] = [_difference(row, usual) for row in runs.to_dict("records")]
    columns = ["dataset", "window", "cell", "differs"]
    rows = []
    for names, group in runs.groupby(columns, sort=False):
        states = ", ".join(f"{n} {state}" for state, n in group["state"].value_counts().items())
        accuracy = group["test_accuracy"].mean()
        shown = "" if math.isnan(accuracy) else f"{accuracy:.1%}"
        open_ = group[~group["state"].isin([*FINISHED, "CANCELLED", "FAILED"])].to_dict("records")
        rows.append((*names, states, shown, duration(_seconds(open_, done)) if open_ else ""))
    return pd.DataFrame(rows, columns=[*columns, "runs", "test accuracy", "time left"])


def _differing(runs):
    """Columns, beside data set, window, cell and seed, in which these runs differ."""
    return [name for name in DIFFERENCES if runs[name].nunique(dropna=False) > 1]


def _difference(row, usual):
    """What a run has of its own, in words."""
    parts = []
    for name, value in usual.items():
        if row[name] != value and not (row[name] != row[name] and value != value):
            own = f"{row[name]:g}" if isinstance(row[name], float) else str(row[name])
            own = own.strip("{}").replace('"', "")
            parts.append(
                name if row[name] is True else own if name == "options" else f"{name} {own}"
            )
    return ", ".join(parts)


def watch(configs, store=None, every=2.0):
    """Yield `status` every so many seconds until all these runs have ended."""
    while True:
        runs = status(configs, store)
        yield runs
        ended = ~runs["state"].isin(["QUEUED", "RUNNING"])
        if ended.all() and len(runs) == len(unique(configs)):
            return
        time.sleep(every)


def cancel(key, store=None):
    """Stop a run, wherever it is trained, or take it off the queue; its state stays saved, and the
    next sweep goes on from it.
    """
    store = store or Store()
    config, row = store.config(key), store.status(key)
    if row["state"] in FINISHED:
        raise ValueError(f"Run {key} is finished ({row['state']}); there is nothing to cancel.")
    mark(store.folder(key), config, "CANCELLED", "Cancelled.")
    # elsewhere its worker reads the mark
    if row["state"] == "RUNNING" and row["host"] == socket.gethostname():
        system.end(row["pid"], row.get("born"))


# The sweep


def sweep(
    configs,
    store=None,
    *,
    where="local",
    slots=None,
    data=None,
    device="cpu",
    backend="auto",
    threads=1,
    retries=2,
    progress=True,
    cluster=None,
    stop=None,
):
    """Train the runs that have no result; what is interrupted at any point goes on at the next
    call.

    Parameters
    ----------
    configs : sequence of RunConfig
    store : Store, optional
        On a cluster its folder must be one that all machines see.
    where : "local", "slurm", or the address of a Dask scheduler ("tcp://...", "tls://...")
    slots : int, optional
        Child processes side by side: on this machine (default: one for each core, one on a GPU), or
        for each SLURM job (default 1). The workers of a scheduler that runs already bring their own
        threads, which are the slots.
    data : path, optional
        Folder of the data sets.
    device : str
        On "cuda" the seeds of one configuration are trained side by side in one child process.
    backend : str
        As `lib.train.fit`, which counts the runs of the sweep that share compiled graphs.
    threads : int
        Threads of one child process; part of what its result depends on.
    retries : int
        A run fails after this many further attempts in a row that came no further. A run that
        diverges is a result.
    progress : bool
        Show a bar, or without a terminal a line a minute.
    cluster : dict, optional
        Settings of dask_jobqueue.SLURMCluster, and ``jobs``, their number.
    stop : threading.Event, optional
        Set it to save the running trainings and return.

    Returns
    -------
    DataFrame
        `Store.runs` of these configurations; failed runs are among them, with the end of what they
        printed.

    Raises
    ------
    ValueError
        A configuration, the place, the device or the data cannot be used.
    StoreError
        The results folder cannot be used, or is full.
    RuntimeError
        No worker comes.
    """
    store, configs = store or Store(), unique(configs)
    check(configs, where, device, backend, slots, cluster)
    files.check_writable(store.root)
    missing = plan(configs, store)
    if missing:
        if where == "local":
            backend = _available(backend, device)
        if "://" not in where:  # elsewhere the data may lie with the workers alone
            _check_data(missing, data)
        for config in missing:
            mark(store.folder(config.key()), config, "QUEUED")
        groups = side_by_side(missing, device)
        request = {
            "results": str(store.root),
            "data": str(Path(data or paths.data_dir()).expanduser().absolute()),
            "device": device,
            "backend": backend,
            "threads": threads,
            "since": time.time(),
        }
        slots = slots or (_slots(groups, device) if where == "local" else 1)
        with (
            _workers(where, slots, store, cluster or {}) as (client, renew),
            Report(missing, store, progress) as report,
        ):
            drive(client, renew, groups, store, request, retries, report, stop)
    return store.runs(key=[config.key() for config in configs])


def check(configs, where="local", device="cpu", backend="auto", slots=None, cluster=None):
    """Refuse what cannot be trained, before anything is built or queued (ValueError)."""
    from lib import train

    for config in configs:
        train.check(config)
    known = where in ("local", "slurm") or "://" in where
    rule = "local, slurm, or the address of a Dask scheduler such as tcp://10.0.0.1:8786"
    checks.require(known, "where", where, rule)
    attempt.check_place(device, backend, here=where == "local")
    if slots is not None:
        checks.whole("slots", slots, 1)
    if where == "slurm":
        places.check_slurm(cluster or {})


@contextlib.contextmanager
def _workers(where, slots, store, settings):
    """A Dask client, and what renews its workers."""
    import dask
    from distributed import Client  # brings the defaults that the settings below change

    if where == "local":
        place = places.local(slots)
    elif where == "slurm":
        place = places.slurm(slots, store, settings)
    else:
        place = contextlib.nullcontext((where, lambda: None))
    # that a worker is killed is no fault of a run
    lost = dask.config.set({"distributed.scheduler.allowed-failures": 10**6})
    with lost, place as (workers, renew), Client(workers, set_as_default=False) as client:
        yield client, renew


def _check_data(configs, data):
    """Read every data set once: what cannot be used is said before any run waits for it."""
    from lib import datasets, train

    loaded = {}
    for config in configs:
        name = config.task.dataset
        if config.task.source is None and name not in datasets.BUILT_IN:
            raise ValueError(
                f"The data set {name} is known to this process alone, so that the processes that "
                "train could not read it; register it with cells.register_source(text of a file)."
            )
        if name not in loaded:
            loaded[name] = datasets.load(config.task, data=data)
        train.steps_per_epoch(config, loaded[name])


class Started:
    """A `sweep` in a thread, so that a notebook stays free to watch."""

    def __init__(self, configs, store, options):
        self._stop, self._outcome = threading.Event(), Future()
        threading.Thread(target=self._run, args=(configs, store, options), daemon=True).start()

    def _run(self, configs, store, options):
        options = {"progress": False, **options}
        try:
            self._outcome.set_result(sweep(configs, store, stop=self._stop, **options))
        except BaseException as error:
            self._outcome.set_exception(error)

    @property
    def running(self):
        return not self._outcome.done()

    def wait(self):
        """What `sweep` returns, or its error."""
        return self._outcome.result()

    def stop(self):
        """Save the running trainings and end the sweep."""
        self._stop.set()
        return self.wait()


def start(configs, store=None, **options):
    """`sweep` in the background; returns a `Started`."""
    return Started(configs, store, options)


def load_or_run(configs, store=None, confirm=False, progress=True, **options):
    """Rows of these runs; those without a result are trained first.

    Parameters
    ----------
    configs : RunConfig or sequence of RunConfig
    store : Store, optional
    confirm : bool
        Wanted when the missing runs are estimated to take more than ten minutes.
    progress : bool
        Say what is missing and show a bar.
    **options
        As `sweep`.

    Raises
    ------
    RuntimeError
        A run failed; the sentence ends with its last message.
    """
    from lib import train

    store = store or Store()
    configs = unique([configs] if isinstance(configs, RunConfig) else configs)
    for config in configs:
        train.check(config)
    if missing := plan(configs, store):
        slots = options.get("slots") or _slots(missing, options.get("device", "cpu"))
        seconds = estimate(missing, store, slots)
        some = f"{len(missing)} of {len(configs)} runs are missing"
        if progress:
            print(f"{some}; estimated time: {duration(seconds)}.")
        if seconds > ASK_ABOVE and not confirm:
            raise ValueError(f"{some}, {duration(seconds)}; pass confirm=True to train them.")
        sweep(missing, store, progress=progress, **options)
    runs = store.runs(key=[config.key() for config in configs])
    failed = runs[~runs["state"].isin(FINISHED)]
    if len(failed):
        first = failed.iloc[0]
        raise RuntimeError(
            f"{len(failed)} of {len(runs)} runs did not finish; the first, {first.key}, is "
            f"{first.state}: {first.message.partition(chr(10))[0]}"
        )
    return runs


def _available(backend, device):
    """The backend, or the reference where nothing compiles: said once here, not by every run."""
    from lib import compiled

    if backend != "reference" and device == "cpu":
        try:
            compiled.check_compiler()
        except compiled.Unavailable as error:
            warnings.warn(str(error), stacklevel=3)
            return "reference"
    return backend


def side_by_side(configs, device):
    """Runs that share a child process: each alone on a CPU, equal but for the seed together on a
    GPU.
    """
    if not device.startswith("cuda"):
        return [[config] for config in configs]
    groups = {}
    for config in configs:
        groups.setdefault(config.with_seed(0).key(), []).append(config)
    return list(groups.values())


def _shape(config):
    """Equal for runs that use the same compiled graphs."""
    batch = Training(batch_size=config.training.batch_size)
    return replace(config, seed=0, training=batch).key()


def _slots(groups, device):
    return max(1, min(len(groups), 1 if device.startswith("cuda") else system.cpus()))


# The loop beside the scheduler


def drive(client, renew, groups, store, request, retries, report, stop=None):
    """Keep every slot busy, in order, until all runs have ended; on the way out children save their
    state and end.
    """
    waiting, running, finished = deque(groups), {}, queue.SimpleQueue()
    spent, reached = Counter(), {}
    alike = Counter(_shape(config) for group in groups for config in group)
    while (waiting or running) and not (stop and stop.is_set()):
        renew()
        while waiting and len(running) < max(1, sum(client.nthreads().values())):
            group = [config for config in waiting.popleft() if not store.finished(config.key())]
            name = f"{group[0].key() if group else 'none'}-{uuid.uuid4().hex}"
            values = [config.to_dict() for config in group]
            more = {"alike": alike[_shape(group[0])]} if group else {}
            future = client.submit(work, values, request | more, key=name)
            running[future.key] = future, group
            future.add_done_callback(finished.put)
        try:
            future = finished.get(timeout=1)
        except queue.Empty:
            report(waiting, running)
            continue
        future, group = running.pop(future.key)
        ending = _ending(future)
        if ending.code == UNUSABLE:
            raise StoreError(ending.message)
        if ending.code == INVALID:
            raise ValueError(ending.message)
        left = [
            config
            for config in group
            if not store.finished(config.key())
            and not cancelled(store.folder(config.key()), request["since"])
        ]
        if ending.code == BUSY:
            waiting.append(left)
        elif left:
            name = left[0].key()
            further = ending.step > reached.get(name, -1)
            spent[name] = 0 if further else spent[name] + (ending.code != PAUSED)
            reached[name] = ending.step
            if spent[name] <= retries and ending.code != CHANGED:
                waiting.appendleft(left)
            else:
                last = ending.message.rpartition("\n")[2]
                said = f"{spent[name]} failed attempts; the last: {last}\n\n{ending.message}"
                for config in left:
                    mark(store.folder(config.key()), config, "FAILED", said.strip())
                report.failed += len(left)
        report(waiting, running)


def _ending(future):
    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker as error:
        return Ending(FAILED, str(error))


def work(values, request):
    """On a worker: one attempt at a group of runs in a child process.

    The child is asked to stop, and killed if it does not, when a run of its group is cancelled,
    when the sweep gave the task up and when the worker closes; it ends by itself when this process
    dies.

    Parameters
    ----------
    values : list of dict
        Configurations.
    request : dict
        As `lib.runs.attempt.run_request`, and ``since``, when the sweep began.

    Returns
    -------
    Ending
    """
    store, since = Store(request["results"]), request["since"]
    configs = [RunConfig.from_dict(value) for value in values]
    runs = {store.folder(config.key()): config for config in configs}
    runs = {run: config for run, config in runs.items() if not cancelled(run, since)}
    if not runs:
        return Ending(DONE)
    if any((unfinished(run) or {}).get("state") == "RUNNING" for run in runs):
        time.sleep(1)
        return Ending(BUSY)
    request = {**request, "configs": [config.to_dict() for config in runs.values()]}
    with children.SERVERS.one(request["threads"]) as server:
        try:
            server.start(request)
        except OSError as error:  # the server was killed
            return Ending(FAILED, str(error))
        while (code := server.wait(POLL)) is None and _wanted():
            if any(cancelled(run, since) for run in runs):
                break
        if code is None:
            server.stop()
            if (code := server.wait(GRACE)) is None:
                server.kill()
                code = server.wait()
        message = server.errors() or f"ended by signal {-code}"
    saved = files.checkpoints(next(iter(runs)))
    return Ending(code, message, saved[0][0] if saved else -1)


def _wanted():
    """Whether this worker goes on and its scheduler still waits for this task."""
    from distributed import Status, get_worker

    worker = get_worker()
    task = worker.state.tasks.get(worker.get_current_task())
    goes_on = worker.status in (Status.running, Status.paused)
    return goes_on and task is not None and task.state == "executing"


class Report:
    """Says how far a sweep is and the time left: a bar, or without a terminal a line a minute."""

    def __init__(self, configs, store, shown):
        from tqdm.auto import tqdm

        self.store, self.shown, self.failed = store, shown, 0
        self.rows = {config.key(): describe(config) for config in configs}
        self.known = store.rows(state="DONE").to_dict("records") if shown else []
        self._said = time.monotonic()
        ipython = sys.modules.get("IPython")
        notebook = ipython is not None and hasattr(ipython.get_ipython(), "kernel")
        self.bar = tqdm(
            total=len(configs),
            unit="run",
            disable=not shown or not (notebook or sys.stderr.isatty()),
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def __call__(self, waiting, running):
        if not self.shown:
            return
        groups = [*waiting, *(group for _, group in running.values())]
        left = {config.key() for group in groups for config in group}
        for key in self.rows.keys() - left:
            row = self.store.status(key)
            if row and row["state"] == "DONE":
                self.known.append(row)
            del self.rows[key]
        seconds = _seconds(self.rows.values(), self.known) / max(1, len(running))
        said = f"{self.failed} failed, time left: {duration(seconds)}"
        done = self.bar.total - len(self.rows)
        if not self.bar.disable:
            self.bar.update(done - self.bar.n)
            self.bar.set_postfix_str(said)
        elif time.monotonic() - self._said > LINE:
            self._said = time.monotonic()
            print(f"{done} of {self.bar.total} runs, {said}", file=sys.stderr, flush=True)
