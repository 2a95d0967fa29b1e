"""Many runs: planned against the store, each trained in a child process, through Dask on this
machine or a cluster.

A slot is a thread of a Dask worker (`lib.runs.places`). It holds one child process at a time
(`lib.runs.children`) and reads nothing but its `Ending`: the child trains, saves and publishes by
itself (`lib.runs.attempt`), so whatever dies here, the store knows how far every run came.
"""

import math
import queue
import socket
import statistics
import sys
import threading
import time
import warnings
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from lib import checks, files, paths, system
from lib.config import RunConfig, Training
from lib.runs import attempt, children, places
from lib.runs.attempt import BUSY, CHANGED, FAILED, PAUSED, Ending, Request
from lib.runs.grid import grid as grid  # what a sweep is asked with
from lib.runs.grid import read_grid as read_grid
from lib.runs.grid import unique
from lib.runs.places import read_cluster as read_cluster
from lib.runs.status import CONFIGURATION, FINISHED, cancelled, describe, mark
from lib.runs.store import Store

# torch, the cells and Dask are imported where they are needed: workers start without torch,
# `status` and `cancel` without both.

ASK_ABOVE = 600  # estimated seconds above which `load_or_run` wants confirm=True
START_UP = 1  # seconds of a run beside its training
LINE = 60  # seconds between two lines of progress without a terminal
# What every overview of runs shows, or what follows from it.
SHOWN = "key dataset window input_length stride convention sequence_length image_shape class_names"
SHOWN = {*SHOWN.split(), "cell", "label", "seed"}


# Before and beside the training


def plan(configs, store=None):
    """The runs that have no result yet, in their order, each once."""
    store = store or Store()
    return [config for config in unique(configs) if not store.finished(config.key())]


def slots_here(runs, device="cpu"):
    """How many of so many runs are trained side by side on this machine."""
    return max(1, min(runs, 1 if device.startswith("cuda") else system.cpus()))


def estimate(configs, done, slots=1):
    """Seconds that runs take on so many slots, from the rows of finished ones (`Store.rows`); nan
    without one on the same data set.

    Training time is taken as proportional to epochs x time steps, for each cell and hidden size.
    """
    paced = done[["dataset", "cell", "hidden_size", "epochs", "sequence_length", "seconds"]]
    return _seconds(map(describe, configs), paced.to_dict("records")) / slots


def _seconds(rows, done):
    paces, total = {}, 0.0
    for row in done:
        pace = row["seconds"] / (row["epochs"] * row["sequence_length"])
        paces.setdefault(row["dataset"], []).append(pace)
        paces.setdefault((row["dataset"], row["cell"], row["hidden_size"]), []).append(pace)
    for row in rows:
        kind = row["dataset"], row["cell"], row["hidden_size"]
        known = paces.get(kind) or paces.get(row["dataset"]) or [math.nan]
        total += START_UP + row["epochs"] * row["sequence_length"] * statistics.median(known)
    return total


def duration(seconds):
    """A length of time in words."""
    if math.isnan(seconds):
        return "unknown, as nothing on this data set ran before"
    if seconds < 60:
        return "under a minute"
    return f"about {seconds / 60:.0f} min" if seconds < 7200 else f"about {seconds / 3600:.1f} h"


def preview(configs, store=None, slots=None, device="cpu"):
    """What a sweep would train and how long it would take, as text."""
    store, configs = store or Store(), unique(configs)
    missing = plan(configs, store)
    done = len(configs) - len(missing)
    lines = [f"{len(configs)} runs, {done} finished, {len(missing)} to train."]
    rows = Counter((row["dataset"], row["window"], row["cell"]) for row in map(describe, missing))
    for (dataset, window, cell), count in rows.items():
        lines.append(f"  {dataset}  window {window:>5}  {cell:<12} {count} seeds")
    if missing:
        slots = slots or slots_here(len(missing), device)
        seconds = estimate(missing, store.rows(state="DONE"), slots)
        lines.append(f"Estimated time on {slots} slots: {duration(seconds)}.")
    return "\n".join(lines)


def status(configs=None, store=None):
    """State, progress and accuracies of runs, read from the store, whoever trains them; by default
    of all runs.
    """
    filters = {} if configs is None else {"key": [config.key() for config in configs]}
    runs = (store or Store()).rows(**filters)
    runs["message"] = [text.partition("\n")[0] for text in runs["message"].fillna("")]
    columns = "key state dataset window cell hidden_size seed progress".split()
    own = [name for name in _differing(runs) if name != "hidden_size"]
    return runs[[*columns, *own, "validation_accuracy", "test_accuracy", "message"]]


def overview(store=None):
    """One row a group of runs: data set, window, cell and what else differs, the number of runs by
    state, their mean accuracy on the test set, and the training time left on one slot.
    """
    import pandas as pd

    runs = (store or Store()).rows()
    runs = runs[runs["state"] != "DAMAGED"].copy()
    usual = {name: runs[name].value_counts(dropna=False).index[0] for name in _differing(runs)}
    runs["differs"] = [_difference(row, usual) for row in runs.to_dict("records")]
    done = runs[runs["state"] == "DONE"].to_dict("records")
    columns, rows = ["dataset", "window", "cell", "differs"], []
    for names, group in runs.groupby(columns, sort=False):
        states = ", ".join(f"{n} {state}" for state, n in group["state"].value_counts().items())
        mean = group["test_accuracy"].mean()
        accuracy = "" if math.isnan(mean) else f"{mean:.1%}"
        left = group[~group["state"].isin([*FINISHED, "CANCELLED", "FAILED"])].to_dict("records")
        rows.append([*names, states, accuracy, duration(_seconds(left, done)) if left else ""])
    return pd.DataFrame(rows, columns=[*columns, "runs", "test accuracy", "time left"])


def _differing(runs):
    """Columns, beside those of every overview, in which these runs differ."""
    names = [name for name in CONFIGURATION if name not in SHOWN]
    return [name for name in names if runs[name].nunique(dropna=False) > 1]


def _difference(row, usual):
    """What a run has of its own, in words."""
    words = []
    for name, value in usual.items():
        own = row[name]
        if own == value or (own != own and value != value):
            continue
        if name == "options":
            words.append(own.strip("{}").replace('"', ""))
        else:
            words.append(f"{name} {own:g}" if isinstance(own, float) else f"{name} {own}")
    return ", ".join(words)


def watch(configs, store=None, every=2.0, started=None):
    """Yield `status` every so many seconds until all these runs have ended, or the sweep that was
    `started` for them has.
    """
    while True:
        over = started is not None and not started.running
        runs = status(configs, store)
        yield runs
        ended = ~runs["state"].isin(["QUEUED", "RUNNING"])
        if over or (ended.all() and len(runs) == len(unique(configs))):
            return
        time.sleep(every)


def cancel(key, store=None):
    """Stop a run, wherever it is trained, or take it off the queue; its state stays saved, and the
    next sweep goes on from it.
    """
    store = store or Store()
    config, row = store.config(key), store.status(key)
    row = row or {"state": "INTERRUPTED"}  # killed before it wrote its status
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
        Trainings side by side: on this machine (default: one for each core, one on a GPU), or in
        each SLURM job (default 1). A scheduler that runs already brings its own: the threads of its
        workers.
    data : path, optional
        Folder of the data sets.
    device, backend : str
        As `lib.train.fit`. On "cuda" the seeds of one configuration are trained side by side.
    retries : int
        A run fails after this many further attempts in a row that came no further.
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
        request = Request(
            results=str(store.root),
            data=str(Path(data or paths.data_dir()).expanduser().absolute()),
            device=device,
            backend=backend,
            since=time.time(),
        )
        slots = slots or (slots_here(len(groups), device) if where == "local" else 1)
        with places.workers(where, slots, store, cluster or {}) as (client, renew):
            report = Report(len(missing), progress)
            with report.bar:
                drive(client, renew, groups, store, request, retries, report, stop)
    return store.runs(key=[config.key() for config in configs])


def check(configs, where="local", device="cpu", backend="auto", slots=None, cluster=None):
    """Refuse what cannot be trained, before anything is built or queued (ValueError)."""
    for config in configs:
        attempt.check(config)
    known = where in ("local", "slurm") or "://" in where
    rule = "local, slurm, or the address of a Dask scheduler such as tcp://10.0.0.1:8786"
    checks.require(known, "where", where, rule)
    attempt.check_place(device, backend, here=where == "local")
    if slots is not None:
        checks.whole("slots", slots, 1)
    if where == "slurm":
        places.check_slurm(cluster or {})


def _check_data(configs, data):
    """Read every data set once: what cannot be used is said before any run waits for it."""
    from lib import datasets, train
    from lib.cells.registry import registered

    loaded = {}
    for config in configs:
        name = config.task.dataset
        if name not in loaded:
            with registered(config.task):
                loaded[name] = datasets.load(config.task, data=data)
        train.steps_per_epoch(config, loaded[name])


class Started:
    """A `sweep` in a thread, so that a notebook stays free to watch."""

    def __init__(self, configs, store=None, **options):
        self._stop, self._outcome = threading.Event(), Future()

        def run():
            try:
                runs = sweep(configs, store, stop=self._stop, **{"progress": False, **options})
                self._outcome.set_result(runs)
            except BaseException as error:
                self._outcome.set_exception(error)

        threading.Thread(target=run, daemon=True).start()

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


start = Started  # what a notebook says


def load_or_run(configs, store=None, confirm=False, progress=True, **options):
    """Rows of these runs, one or several; those without a result are trained first, as by `sweep`
    with these options. What is estimated to take more than ten minutes needs ``confirm=True``.

    Raises
    ------
    ValueError, StoreError
        As `sweep`.
    RuntimeError
        A run failed; the sentence ends with its last message.
    """
    store = store or Store()
    configs = unique([configs] if isinstance(configs, RunConfig) else configs)
    check(configs)
    if missing := plan(configs, store):
        slots = options.get("slots") or slots_here(len(missing), options.get("device", "cpu"))
        seconds = estimate(missing, store.rows(state="DONE"), slots)
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
    groups = {}
    for config in configs:
        alike = config.with_seed(0) if device.startswith("cuda") else config
        groups.setdefault(alike.key(), []).append(config)
    return list(groups.values())


# The loop beside the scheduler


def _shape(config):
    """Equal for runs that use the same compiled graphs."""
    batch = Training(batch_size=config.training.batch_size)
    return replace(config, seed=0, training=batch).key()


def _paired(groups):
    """The groups, after the first of them one that uses the same compiled graphs: two slots then
    compile one graph each, and the first result comes a third sooner.
    """
    first, *others = groups
    like = next((group for group in others if _shape(group[0]) == _shape(first[0])), None)
    return [first, *sorted(others, key=lambda group: group is not like)]


def drive(client, renew, groups, store, request, retries, report, stop=None):
    """Keep every slot busy, in order, until all runs have ended; on the way out children save their
    state and end.
    """
    from distributed import KilledWorker

    waiting, running, ended = deque(_paired(groups)), {}, queue.SimpleQueue()
    spent, reached = Counter(), {}  # by key: attempts that came no further; newest step
    alike = Counter(_shape(config) for group in groups for config in group)
    while (waiting or running) and not (stop and stop.is_set()):
        renew()
        report(waiting, running)
        while waiting and len(running) < max(1, sum(client.nthreads().values())):
            group = waiting.popleft()
            configs = tuple(config.to_dict() for config in group)
            asked = replace(request, configs=configs, alike=alike[_shape(group[0])])
            future = client.submit(children.work, asked, pure=False)
            running[future] = group
            future.add_done_callback(ended.put)
        try:
            future = ended.get(timeout=1)
        except queue.Empty:
            continue
        group = running.pop(future)
        try:
            ending = future.result()
        except KilledWorker as error:
            ending = Ending(FAILED, str(error))
        ending.check()
        left = []
        for config in group:
            run = store.folder(config.key())
            if not (store.finished(config.key()) or cancelled(run, request.since)):
                left.append(config)
        if not left:
            continue
        if ending.code == BUSY:
            waiting.append(left)
            continue
        name = left[0].key()
        further = ending.step > reached.get(name, -1)
        spent[name] = 0 if further else spent[name] + (ending.code != PAUSED)
        reached[name] = ending.step
        if spent[name] <= retries and ending.code != CHANGED:
            waiting.appendleft(left)
            continue
        last = ending.message.rpartition("\n")[2]
        said = f"{spent[name]} failed attempts; the last: {last}\n\n{ending.message}"
        for config in left:
            mark(store.folder(config.key()), config, "FAILED", said.strip())
        report.failed += len(left)
    report(waiting, running)


class Report:
    """Says how far a sweep is and the time left: a bar, or without a terminal a line a minute."""

    def __init__(self, runs, shown):
        from tqdm.auto import tqdm

        self.bar = tqdm(total=runs, unit="run", disable=None if shown else True)
        self.runs, self.lines, self.failed = runs, shown and self.bar.disable, 0
        self._began = self._said = time.monotonic()

    def __call__(self, waiting, running):
        done = self.runs - sum(map(len, [*waiting, *running.values()]))
        self.bar.set_postfix_str(f"{self.failed} failed", refresh=False)
        self.bar.update(done - self.bar.n)
        now = time.monotonic()
        if self.lines and now - self._said > LINE:
            self._said = now
            said = f"{done} of {self.runs} runs, {self.failed} failed"
            if done:
                left = (now - self._began) / done * (self.runs - done)
                said += f", time left: {duration(left)}"
            print(said, file=sys.stderr, flush=True)
