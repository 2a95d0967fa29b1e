"""Where the workers of a sweep come from: this machine, SLURM, or a Dask scheduler that runs
already.

Each place is a context that yields a Dask cluster or address, and a function to call now and then:
it replaces workers that were lost, and ends the sweep when none will come.
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
from lib.runs import children, grid, system

# Dask is imported where it is needed.

NO_DASHBOARD = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
STARTS = 3  # of a worker in a row that never connects
PATIENCE = 15  # seconds without any sign of SLURM jobs before they count as dead
LOOK = 3  # seconds between two questions to SLURM
TEXTS = "memory walltime queue account interface log_directory local_directory".split()
LISTS = "job_extra_directives job_script_prologue worker_extra_args".split()
FOLDERS = ("log_directory", "local_directory", "shared_temp_directory")
# set here, or of no use for a worker that only watches its children
OWN = set(
    "self scheduler n_workers job_cls loop security asynchronous processes job_kwargs".split()
)
SLURM_WORDS = {"partition": "queue", "time": "walltime", "mem": "memory", "nodes": "jobs"}


@contextlib.contextmanager
def local(slots):
    """Workers on this machine: one process with a thread for each slot, which only waits for its
    children.
    """
    from distributed import LocalCluster

    options = {"host": "127.0.0.1", "scheduler_kwargs": NO_DASHBOARD, "silence_logs": "CRITICAL"}
    worker, starts = None, 0
    try:
        with LocalCluster(n_workers=0, threads_per_worker=1, **options) as cluster:

            def renew():
                nonlocal worker, starts
                if cluster.scheduler_info["workers"]:
                    starts = 0
                if worker is not None and worker.poll() is None:
                    return
                if starts == STARTS:
                    raise RuntimeError(
                        "The process that watches the trainings ends before it works, with exit "
                        f"code {worker.returncode}; what it printed says why."
                    )
                starts += 1
                # Not a process of multiprocessing, which would run the caller's script again.
                worker = subprocess.Popen(
                    children.command(f"work({cluster.scheduler_address!r}, {slots})"),
                    stdin=subprocess.PIPE,
                    **system.OWN_SESSION,
                )

            yield cluster, renew
    finally:
        if worker is not None:  # it ends with its scheduler
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(timeout=10)
            worker.stdin.close()
            worker.wait()


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
        self.worked = set()
        self.seen = self.looked = time.monotonic()

    def __call__(self):
        if self.refused:
            said = " ".join(self.refused[0].partition("stderr:")[2].split()) or self.refused[0]
            raise RuntimeError(f"SLURM refuses the jobs: {said}")
        ids = {job.job_id for job in self.cluster.workers.values() if job.job_id}
        if self.cluster.scheduler_info["workers"]:
            self.worked |= ids
        now = time.monotonic()
        if not ids or ids & self.worked:
            self.seen = now
        elif now - self.looked > LOOK:
            self.looked = now
            if _queued(ids):
                self.seen = now
        if now - self.seen > PATIENCE:
            logs = sorted(self.logs.glob("slurm-*.out"), key=lambda path: path.stat().st_mtime)
            lines = logs[-1].read_text(errors="replace").split("\n") if logs else []
            last = next((line for line in reversed(lines) if line.strip()), "nothing")
            raise RuntimeError(
                f"The SLURM jobs {', '.join(sorted(ids))} ended before their workers came; the "
                f"last line of their log is: {last.strip()}"
            )


def _queued(ids):
    """Whether SLURM still knows one of these jobs as waiting or running."""
    command = ["squeue", "-h", "-o", "%A"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return False
    return bool(ids.intersection(said.stdout.split()))


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
    for name in FOLDERS:
        if name in content:
            content[name] = str(Path(content[name]).expanduser())
    return content
