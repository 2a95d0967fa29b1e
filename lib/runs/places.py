"""Where the workers of a sweep come from: this machine, SLURM, or a Dask scheduler that runs
already.
"""

import contextlib
import importlib.util
import inspect
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from lib import checks, paths
from lib.runs import children, grid

# Dask is imported where it is needed.

NO_DASHBOARD = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
LOOK = 3  # seconds between two questions to SLURM
PATIENCE = 5  # looks without any sign of the jobs after which they count as dead
TEXTS = "memory walltime queue account interface log_directory local_directory".split()
LISTS = "job_extra_directives job_script_prologue worker_extra_args".split()
FOLDERS = ("log_directory", "local_directory", "shared_temp_directory")
# set here, or of no use for a worker that only watches its children
OWN = set(
    "self scheduler n_workers job_cls loop security asynchronous processes job_kwargs".split()
)
SLURM_WORDS = {"partition": "queue", "time": "walltime", "mem": "memory", "nodes": "jobs"}


@contextlib.contextmanager
def workers(where, slots, store, settings):
    """A Dask client of the workers of a place, and a function to call now and then: it replaces
    workers that were lost, and ends the sweep when none will come.
    """
    import dask
    from distributed import Client  # brings the defaults that the settings below change

    if where == "local":
        place = local(slots)
    elif where == "slurm":
        place = slurm(slots, store, settings)
    else:
        place = contextlib.nullcontext((where, lambda: None))
    # that a worker is killed is no fault of a run
    lost = dask.config.set({"distributed.scheduler.allowed-failures": 10**6})
    with lost, place as (cluster, renew), Client(cluster, set_as_default=False) as client:
        yield client, renew


@contextlib.contextmanager
def local(slots):
    """Scheduler and worker in this process, with a thread for each slot, which only waits for its
    child: nothing of multiprocessing, which would run the caller's script again.
    """
    from distributed import LocalCluster

    options = {
        "n_workers": 1,
        "threads_per_worker": slots,
        "processes": False,
        "memory_limit": None,
        "scheduler_kwargs": NO_DASHBOARD,
        "worker_dashboard_address": NO_DASHBOARD["dashboard_address"],
        "silence_logs": "CRITICAL",
    }
    try:
        with LocalCluster(**options) as cluster:
            cluster.loop.asyncio_loop.set_exception_handler(_but_timeouts)
            yield cluster, lambda: None
    finally:
        children.close()


def _but_timeouts(loop, context):
    """Tell what a loop tells, but not of a wait that nobody waits for any more, as on a busy
    machine at the end of a sweep.
    """
    if not isinstance(context.get("exception"), TimeoutError):
        loop.default_exception_handler(context)


@contextlib.contextmanager
def slurm(slots, store, settings):
    """Jobs of SLURM, with a worker each."""
    from dask_jobqueue import SLURMCluster
    from dask_jobqueue.slurm import SLURMJob
    from distributed import Status

    refused = []

    class Job(SLURMJob):
        async def start(self):
            try:
                await super().start()
            except Exception as error:  # raised here it would reach a log, and nobody else
                refused.append(str(error))
                self.status = Status.running

        async def close(self):
            await super().close()
            self.status = Status.closed

    # certificates; only its owner may read it
    with tempfile.TemporaryDirectory(prefix=".slurm-", dir=store.root) as folder:
        usual = {
            "cores": slots,
            "memory": "4GB",
            "walltime": "08:00:00",
            "log_directory": folder,
            "local_directory": tempfile.gettempdir(),
            "shared_temp_directory": folder,
        }
        settings = {**usual, **settings}
        settings["scheduler_options"] = {**NO_DASHBOARD, **settings.get("scheduler_options", {})}
        # the code that runs here, whatever the job's folder or installation holds
        same = [f"export PYTHONPATH='{paths.project_root()}':$PYTHONPATH PYTHONSAFEPATH=1"]
        settings["job_script_prologue"] = [*settings.get("job_script_prologue", []), *same]
        jobs = settings.pop("jobs", 1)
        with SLURMCluster(job_cls=Job, processes=1, security=True, **settings) as cluster:
            watch = _Jobs(cluster, refused, settings["log_directory"])

            def renew():
                watch()
                cluster.scale(jobs=jobs)  # also asks for a new job in place of one whose time is up

            try:
                yield cluster, renew
            finally:
                for name, file in vars(cluster).items():
                    if name.startswith("_job_") and hasattr(file, "close"):
                        file.close()  # certificates, else removed at some later time


class _Jobs:
    """Ends a sweep whose jobs SLURM refuses, or which die before their workers come."""

    def __init__(self, cluster, refused, logs):
        self.cluster, self.refused, self.logs = cluster, refused, Path(logs)
        self.worked, self.missed, self.looked = set(), 0, time.monotonic()

    def __call__(self):
        if self.refused:
            said = " ".join(self.refused[0].partition("stderr:")[2].split()) or self.refused[0]
            raise RuntimeError(f"SLURM refuses the jobs: {said}")
        ids = {job.job_id for job in self.cluster.workers.values() if job.job_id}
        if self.cluster.scheduler_info["workers"]:
            self.worked |= ids
        if not ids or ids & self.worked:
            self.missed = 0
        elif time.monotonic() - self.looked > LOOK:
            self.looked = time.monotonic()
            self.missed = 0 if ids & _queued() else self.missed + 1
        if self.missed == PATIENCE:
            logs = sorted(self.logs.glob("slurm-*.out"), key=lambda path: path.stat().st_mtime)
            lines = logs[-1].read_text(errors="replace").split("\n") if logs else []
            last = next((line for line in reversed(lines) if line.strip()), "nothing")
            raise RuntimeError(
                f"The SLURM jobs {', '.join(sorted(ids))} ended before their workers came; the "
                f"last line of their log is: {last.strip()}"
            )


def _queued():
    """Ids of the jobs that SLURM knows as waiting or running."""
    command = ["squeue", "-h", "-o", "%A"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return set()
    return set(said.stdout.split())


def check_slurm(settings):
    """Refuse what SLURM cannot be asked with, before anything is built (ValueError)."""
    if importlib.util.find_spec("dask_jobqueue") is None:
        raise ValueError("where is 'slurm', which needs dask-jobqueue: pip install -e .[slurm].")
    checks.require(
        shutil.which("sbatch"),
        "where",
        "slurm",
        "a place that is here, and there is no sbatch",
        "start the sweep on a login node of the cluster, or with --where local",
    )
    check_cluster(settings)


def check_cluster(settings):
    """Refuse settings of a cluster that are unknown or of the wrong kind (ValueError)."""
    from dask.utils import parse_bytes
    from dask_jobqueue.core import Job, JobQueueCluster
    from dask_jobqueue.slurm import SLURMJob

    known = {"jobs"}
    for part in (JobQueueCluster, Job, SLURMJob):
        known |= inspect.signature(part.__init__).parameters.keys()
    for name, value in settings.items():
        if name not in known - OWN:
            instead = f"write {SLURM_WORDS[name]}" if name in SLURM_WORDS else "leave it out"
            usual = ", ".join(("jobs", "cores", *TEXTS, *LISTS))
            raise ValueError(f"Unknown field {name!r}; {instead}. Usual fields are {usual}.")
        if name in ("jobs", "cores"):
            checks.whole(name, value, 1)
        elif name in LISTS:
            texts = isinstance(value, list) and all(isinstance(part, str) for part in value)
            checks.require(texts, name, value, "a list of texts")
        elif name in TEXTS:
            text = isinstance(value, str) and value != ""
            checks.require(text, name, value, "a text", "put it in quotes")
        elif name == "scheduler_options":
            checks.require(isinstance(value, dict), name, value, "a mapping")
    if "memory" in settings:
        try:
            parse_bytes(settings["memory"])
        except ValueError:
            checks.require(False, "memory", settings["memory"], "a size such as 8GB")
    if "walltime" in settings:
        holds = re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", settings["walltime"])
        checks.require(holds, "walltime", settings["walltime"], 'a time such as "04:00:00"')
    if "interface" in settings:
        checks.one_of("interface", settings["interface"], sorted(psutil.net_if_addrs()))


def read_cluster(path):
    """Settings of a SLURM cluster from a YAML file, for ``sweep(..., cluster=...)``; a refusal
    names file, field and value (ValueError).
    """
    content = grid.read_yaml(path, "file of cluster settings")
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: {content!r} are no settings; write one field a line, such as 'jobs: 4'."
        )
    try:
        check_cluster(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    folders = {name: str(paths.expanded(content[name])) for name in FOLDERS if name in content}
    return content | folders
