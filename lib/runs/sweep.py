"""Many runs: a grid planned against the store, each run in a child process, through Dask on this
machine or a cluster.

A slot is a thread of a Dask worker. It holds one child process at a time and reads nothing but its
end: the child trains, saves and publishes by itself (`lib.runs.run`), so whatever dies here, the
store knows how far every run came. One code path serves all places; only where the workers come
from differs.
"""

import contextlib
import inspect
import itertools
import math
import os
import queue
import signal
import socket
import statistics
import tempfile
import threading
import time
import uuid
from collections import Counter, deque
from concurrent.futures import Future
from pathlib import Path

from lib import paths
from lib.config import CellSpec, RunConfig, Task, Training, Window
from lib.runs import checkpoint, run
from lib.runs.attempt import FINISHED, describe, read_json, to_json
from lib.runs.checkpoint import StoreError
from lib.runs.children import Server
from lib.runs.store import Store

# torch, the cells and Dask are imported where they are needed: workers start without torch,
# `status` and `cancel` without both.

ASK_ABOVE = 600  # estimated seconds above which `load_or_run` wants confirm=True
START_UP = 1  # seconds of a run beside its training
POLL = 0.2  # seconds between two looks at a child process
GRACE = 3  # seconds a child has to save its state before it is killed
_TRAINING = Training()


# The grid


def grid(
    dataset="digits",
    permuted=False,
    last_rows=None,
    first_rows=None,
    delay=0,
    data_seed=0,
    input_length=(8,),
    stride=(4,),
    scan="raster",
    cells="all",
    hidden_size=48,
    initialisation="balanced",
    options=None,
    seeds=(0, 1, 2),
    epochs=_TRAINING.epochs,
    learning_rate=_TRAINING.learning_rate,
    batch_size=_TRAINING.batch_size,
    clip_norm=_TRAINING.clip_norm,
    validations_per_epoch=_TRAINING.validations_per_epoch,
):
    """All runs of cells x windows x seeds, checked, in an order in which a part is already a fair
    comparison.

    All cells at the first window with the first seed come first, then the other seeds, then the
    next window.

    Parameters
    ----------
    input_length : int or sequence of int
        Pixels.
    stride : int, "fixed", "half" or sequence of these
        Pixels, or a convention that is resolved for each input length; a window that comes up twice
        counts once.
    cells : str or sequence of str
        As `lib.cells.names`; a cell of the user's own takes its text along.
    options : dict, optional
        Options of cells, given to those cells that have them.
    learning_rate : float or dict
        One for all cells, or cell -> rate, with "default" for those not named.
    dataset, permuted, last_rows, first_rows, delay, data_seed, scan, hidden_size, epochs, ... :
        As the fields of `lib.config`, the same for all runs.

    Returns
    -------
    list of RunConfig
    """
    from lib import cells as registry
    from lib import datasets, recurrence, train, windows

    chosen = registry.names(cells if isinstance(cells, str) else ",".join(map(str, cells)))
    if not isinstance(options, dict | None):
        raise ValueError(f"options is {options!r}, but must be a mapping, such as {{'dt': 0.3}}.")
    options = options or {}
    known = {option for name in chosen for option in registry.get(name).defaults}
    for option in options:
        if option not in known:
            has = f"their options are: {', '.join(sorted(known)) or 'none'}"
            raise ValueError(
                f"options name {option!r}, which none of the cells {', '.join(chosen)} has; {has}."
            )
    rates = learning_rate if isinstance(learning_rate, dict) else {"default": learning_rate}
    for name in rates:
        if name not in (*chosen, "default"):
            raise ValueError(
                f"learning_rate names {name!r}, which is not among the cells: {', '.join(chosen)}, or default."
            )
    for name in chosen:
        if name not in rates and "default" not in rates:
            raise ValueError(f"learning_rate has no value for {name!r}; add one, or a default.")
    pairs = [
        (length, windows.resolve_stride(step, length))
        for length in _several(input_length)
        for step in _several(stride)
    ]
    if not isinstance(seeds, list | tuple | range) or not seeds:
        raise ValueError(f"seeds is {seeds!r}, but must be a list, such as [0, 1, 2].")
    recurrence.check_seeds(seeds)
    source = datasets.SOURCES.get(dataset)
    task = Task(dataset, permuted, last_rows, data_seed, source, first_rows, delay)
    configs = []
    for (length, step), seed, name in itertools.product(dict.fromkeys(pairs), seeds, chosen):
        kind = registry.get(name)
        own = {option: value for option, value in options.items() if option in kind.defaults}
        own = kind.changed_options(own)
        cell = CellSpec(name, hidden_size, initialisation, own, registry.SOURCES.get(name))
        rate = rates[name] if name in rates else rates["default"]
        training = Training(epochs, batch_size, rate, clip_norm, validations_per_epoch)
        configs.append(RunConfig(task, Window(length, step, scan), cell, training, seed))
        train.check(configs[-1])
    return _unique(configs)


def read_grid(path):
    """Runs of a grid file: YAML with the arguments of `grid`, or a list of such mappings; a refusal
    names file, field and value.
    """
    known, configs, content = inspect.signature(grid).parameters, [], _read_yaml(path, "grid file")
    for values in content if isinstance(content, list) else [content]:
        if not isinstance(values, dict) or not values:
            raise ValueError(
                f"{path}: {values!r} is no grid; write one field a line, such as 'cells: all'."
            )
        for name in values:
            if name not in known:
                raise ValueError(
                    f"{path}: unknown field {name!r}; known fields are {', '.join(known)}."
                )
        try:
            configs += grid(**values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return _unique(configs)


def read_cluster(path):
    """Settings of a SLURM cluster from a YAML file, for ``sweep(..., cluster=...)``."""
    content = _read_yaml(path, "file of cluster settings")
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: {content!r} are no settings; write one field a line, such as 'jobs: 4'."
        )
    return content


def _read_yaml(path, kind):
    import yaml

    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no {kind}: {' '.join(str(error).split())}.") from error


def _several(value):
    return list(value) if isinstance(value, list | tuple | range) else [value]


def _unique(configs):
    return list({config.key(): config for config in configs}.values())


# Before and beside the training


def plan(configs, store=None):
    """The runs that have no result yet, in their order, each once."""
    done = (store or Store()).finished_keys()
    return [config for config in _unique(configs) if config.key() not in done]


def estimate(configs, store=None, slots=1):
    """Seconds that these runs take on so many slots, from finished runs; nan without a finished run
    on the same data set.

    Training time is taken as proportional to epochs x time steps, for each cell and hidden size.
    """
    return (
        _seconds(map(describe, configs), (store or Store()).runs(state="DONE").to_dict("records"))
        / slots
    )


def _seconds(rows, known):
    """Seconds that runs take one after the other, from rows of finished ones."""
    times, total = {}, 0.0
    for row in known:
        for kind in ((row["dataset"], row["cell"], row["hidden_size"]), row["dataset"]):
            times.setdefault(kind, []).append(
                row["seconds"] / (row["epochs"] * row["sequence_length"])
            )
    paces = {kind: statistics.median(values) for kind, values in times.items()}
    for row in rows:
        pace = paces.get(
            (row["dataset"], row["cell"], row["hidden_size"]), paces.get(row["dataset"], math.nan)
        )
        total += START_UP + row["epochs"] * row["sequence_length"] * pace
    return total


def preview(configs, store=None, slots=None, device="cpu"):
    """What a sweep would train and how long it would take, as text."""
    store, configs = store or Store(), _unique(configs)
    missing = plan(configs, store)
    slots = slots or _slots(missing, device)
    lines = [
        f"{len(configs)} runs, {len(configs) - len(missing)} finished, {len(missing)} to train."
    ]
    rows = Counter((row["dataset"], row["window"], row["cell"]) for row in map(describe, missing))
    lines += [
        f"  {dataset}  window {window:>5}  {cell:<12} {count} seeds"
        for (dataset, window, cell), count in rows.items()
    ]
    if missing:
        lines.append(
            f"Estimated time on {slots} slots: {duration(estimate(missing, store, slots))}."
        )
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
    runs = store.runs() if configs is None else store.runs(key=[config.key() for config in configs])
    runs["message"] = [text.partition("\n")[0] for text in runs.message.fillna("")]
    accuracies = ["validation_accuracy", "test_accuracy"]
    return runs[
        [
            "key",
            "state",
            "dataset",
            "window",
            "cell",
            "hidden_size",
            "seed",
            "progress",
            *accuracies,
            "message",
        ]
    ]


def watch(configs, store=None, every=2.0):
    """Yield `status` every so many seconds until all these runs have ended."""
    while True:
        runs = status(configs, store)
        yield runs
        if len(runs) and not runs.state.isin(["QUEUED", "RUNNING"]).any():
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
    mark = {
        **row,
        "state": "CANCELLED",
        "message": "Cancelled.",
        "started": time.time(),
        "config": config.to_dict(),
    }
    checkpoint.write(store.folder(key) / "status.json", to_json(mark))
    if (
        row["state"] == "RUNNING" and row["host"] == socket.gethostname()
    ):  # elsewhere its worker reads the mark
        with contextlib.suppress(ProcessLookupError):
            os.kill(row["pid"], signal.SIGTERM)


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
    threads : int
        Threads of one child process; part of what its result depends on.
    retries : int
        A run fails after this many further attempts in a row that came no further. A run that
        diverges is a result.
    progress : bool
        Show a bar.
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
        A configuration, the place or the data cannot be used.
    StoreError
        The results folder cannot be used, or is full.
    """
    import dask
    from distributed import Client  # brings the defaults that the settings below change
    from tqdm.auto import tqdm

    from lib import train

    store, configs = store or Store(), _unique(configs)
    for config in configs:
        train.check(config)
    if where not in ("local", "slurm") and "://" not in where:
        raise ValueError(
            f"where is {where!r}, but must be local, slurm, or the address of a Dask scheduler such as tcp://10.0.0.1:8786."
        )
    store.check_writable()
    missing = plan(configs, store)
    if missing:
        if "://" not in where:  # elsewhere the data may lie with the workers alone
            _check_data(missing, data)
        for config in missing:
            store.mark(config, "QUEUED")
        groups = _groups(missing, device)
        request = {
            "results": str(store.root),
            "data": str(Path(data or paths.data_dir()).expanduser().absolute()),
            "device": device,
        }
        request |= {"backend": backend, "threads": threads, "since": time.time()}
        place = {"local": _local, "slurm": _slurm}.get(where, _remote)
        slots = slots or (_slots(groups, device) if where == "local" else 1)
        lost = dask.config.set(
            {"distributed.scheduler.allowed-failures": 10**6}
        )  # that a worker is killed is no fault of a run
        bar = tqdm(total=len(missing), unit="run", disable=not progress)
        with (
            lost,
            bar,
            place(where, slots, store, cluster or {}) as (workers, renew),
            Client(workers, set_as_default=False) as client,
        ):
            _drive(
                client,
                renew,
                groups,
                store,
                request,
                retries,
                _Report(missing, store, bar),
                stop or threading.Event(),
            )
    return store.runs(key=[config.key() for config in configs])


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
        try:
            self._outcome.set_result(
                sweep(configs, store, stop=self._stop, **{"progress": False, **options})
            )
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

    store, configs = (
        store or Store(),
        _unique([configs] if isinstance(configs, RunConfig) else configs),
    )
    for config in configs:
        train.check(config)
    if missing := plan(configs, store):
        slots = options.get("slots") or _slots(missing, options.get("device", "cpu"))
        seconds = estimate(missing, store, slots)
        if progress:
            print(
                f"{len(missing)} of {len(configs)} runs are missing; estimated time: {duration(seconds)}."
            )
        if seconds > ASK_ABOVE and not confirm:
            raise ValueError(
                f"{len(missing)} missing runs would take {duration(seconds)}; pass confirm=True to train them."
            )
        sweep(missing, store, progress=progress, **options)
    runs = store.runs(key=[config.key() for config in configs])
    failed = runs[~runs.state.isin(FINISHED)]
    if len(failed):
        first, said = failed.iloc[0], failed.iloc[0].message.partition("\n")[0]
        raise RuntimeError(
            f"{len(failed)} of {len(runs)} runs did not finish; the first, {first.key}, is {first.state}: {said}"
        )
    return runs


def _groups(configs, device):
    """Runs that share a child process: each alone on a CPU, equal but for the seed together on a
    GPU.
    """
    if not device.startswith("cuda"):
        return [[config] for config in configs]
    groups = {}
    for config in configs:
        groups.setdefault(config.with_seed(0).key(), []).append(config)
    return list(groups.values())


def _slots(groups, device):
    return max(
        1, min(len(groups), 1 if device.startswith("cuda") else len(os.sched_getaffinity(0)))
    )


# Where the workers come from: each place yields a Dask cluster or address, and a function that
# replaces workers that were lost


NO_DASHBOARD = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}


@contextlib.contextmanager
def _local(where, slots, store, settings):
    from distributed import LocalCluster

    # One worker process with a thread for each slot: it only waits for its children.
    # An interrupt is for the process of the scheduler alone, which then asks the children to save
    # their state.
    ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    options = {
        "host": "127.0.0.1",
        "scheduler_kwargs": NO_DASHBOARD,
        "memory_limit": 0,
        "silence_logs": "CRITICAL",
    }
    with LocalCluster(
        n_workers=1, threads_per_worker=slots, preload=[ignore], **options
    ) as workers:
        yield workers, lambda: None


@contextlib.contextmanager
def _slurm(where, slots, store, settings):
    from dask_jobqueue import SLURMCluster

    with tempfile.TemporaryDirectory(
        prefix=".slurm-", dir=store.root
    ) as folder:  # certificates; only its owner may read it
        usual = {
            "cores": slots,
            "memory": "4GB",
            "walltime": "08:00:00",
            "log_directory": folder,
            "local_directory": tempfile.gettempdir(),
        }
        settings = {**usual, "shared_temp_directory": folder, **settings}
        settings["scheduler_options"] = {**NO_DASHBOARD, **settings.get("scheduler_options", {})}
        jobs = settings.pop("jobs", 1)
        with SLURMCluster(processes=1, security=True, **settings) as workers:
            try:
                yield (
                    workers,
                    lambda: workers.scale(jobs=jobs),
                )  # also asks for a new job in place of one whose time was up
            finally:
                for name, file in vars(workers).items():
                    if name.startswith("_job_") and hasattr(
                        file, "close"
                    ):  # certificates, else removed at some later time
                        file.close()


@contextlib.contextmanager
def _remote(where, slots, store, settings):
    yield where, lambda: None


# The loop beside the scheduler


def _drive(client, renew, groups, store, request, retries, report, stop):
    """Keep every slot busy, in order, until all runs have ended; on the way out children save their
    state and end.
    """
    waiting, running, finished = deque(groups), {}, queue.SimpleQueue()
    spent, reached = Counter(), {}
    while (waiting or running) and not stop.is_set():
        renew()
        while waiting and len(running) < max(1, sum(client.nthreads().values())):
            group = [config for config in waiting.popleft() if not store.finished(config.key())]
            name = f"{group[0].key() if group else 'none'}-{uuid.uuid4().hex}"
            future = client.submit(_work, [config.to_dict() for config in group], request, key=name)
            running[future.key] = future, group
            future.add_done_callback(finished.put)
        try:
            future = finished.get(timeout=1)
        except queue.Empty:
            report(waiting, running)
            continue
        future, group = running.pop(future.key)
        code, message, step = _ending(future)
        if code == run.UNUSABLE:
            raise StoreError(message)
        if code == run.INVALID:
            raise ValueError(message)
        left = [
            config
            for config in group
            if not (
                store.finished(config.key()) or _cancelled(store, config.key(), request["since"])
            )
        ]
        if code == BUSY:
            waiting.append(left)
        elif left:
            name = left[0].key()
            spent[name] = 0 if step > reached.get(name, -1) else spent[name] + (code != run.PAUSED)
            reached[name] = step
            if spent[name] <= retries and code != run.CHANGED:
                waiting.appendleft(left)
            else:
                for config in left:
                    last = message.rpartition("\n")[2]
                    store.mark(
                        config,
                        "FAILED",
                        f"{spent[name]} failed attempts; the last: {last}\n\n{message}".strip(),
                    )
                report.failed += len(left)
        report(waiting, running)


def _ending(future):
    """(exit code, message, step reached) of a task."""
    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker as error:
        return run.FAILED, str(error), -1


BUSY = "busy"  # instead of an exit code: another process trains this run


def _work(values, request):
    """On a worker: one attempt at a group of runs in a child process.

    The child is asked to stop, and killed if it does not, when a run of its group is cancelled,
    when the sweep gave the task up and when the worker closes; it ends by itself when this process
    dies.

    Returns
    -------
    tuple
        Exit code of `lib.runs.run` (negative for a signal) or `BUSY`, the end of what it printed,
        the newest checkpoint's step.
    """
    from distributed import get_worker

    store, configs = Store(request["results"]), [RunConfig.from_dict(value) for value in values]
    configs = [
        config for config in configs if not _cancelled(store, config.key(), request["since"])
    ]
    if not configs:
        return run.DONE, "", -1
    if any((store.status(config.key()) or {}).get("state") == "RUNNING" for config in configs):
        time.sleep(1)
        return BUSY, "", -1
    threads = request["threads"]
    idle = vars(get_worker()).setdefault(
        f"_idle_{threads}", []
    )  # servers of this worker whose child has ended
    server = idle.pop() if idle else Server(threads)
    try:
        server.start({**request, "configs": [config.to_dict() for config in configs]})
        while (code := server.wait(POLL)) is None and _wanted():
            if any(_cancelled(store, config.key(), request["since"]) for config in configs):
                break
        if code is None:
            server.send(signal.SIGTERM)
            if (code := server.wait(GRACE)) is None:
                server.send(signal.SIGKILL)
                code = server.wait()
    except OSError as error:  # the server was killed
        return run.FAILED, str(error), -1
    if server.alive:
        idle.append(server)
    return (
        code,
        server.errors() or f"ended by signal {-code}",
        next(iter(checkpoint.found(store.folder(configs[0].key()))), (-1,))[0],
    )


def _wanted():
    """Whether this worker goes on and its scheduler still waits for this task."""
    from distributed import Status, get_worker

    worker = get_worker()
    task = worker.state.tasks.get(worker.get_current_task())
    return (
        worker.status in (Status.running, Status.paused)
        and task is not None
        and task.state == "executing"
    )


def _cancelled(store, key, since):
    mark = read_json(store.folder(key) / "status.json")
    return mark is not None and mark["state"] == "CANCELLED" and mark["started"] > since


class _Report:
    """Moves the bar of a sweep and says the time left."""

    def __init__(self, configs, store, bar):
        self.store, self.bar, self.failed, self.rows = (
            store,
            bar,
            0,
            {config.key(): describe(config) for config in configs},
        )
        self.known = [] if bar.disable else store.runs(state="DONE").to_dict("records")

    def __call__(self, waiting, running):
        if self.bar.disable:
            return
        open_ = {
            config.key()
            for group in (*waiting, *(group for _, group in running.values()))
            for config in group
        }
        for key in self.rows.keys() - open_:
            row = self.store.status(key)
            if row and row["state"] == "DONE":
                self.known.append(row)
            del self.rows[key]
        self.bar.update(self.bar.total - len(self.rows) - self.bar.n)
        seconds = _seconds(self.rows.values(), self.known) / max(1, len(running))
        self.bar.set_postfix_str(f"{self.failed} failed, time left: {duration(seconds)}")
