"""A sweep on a real SLURM, started and stopped here on one machine: the same results as without,
bit for bit.

Needs root and the Debian packages slurmctld, slurmd, slurm-client and munge.
"""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import tiny
from tiny import until

from lib.runs import sweep
from lib.runs.store import Store

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "sinfo", "munged")
missing = [name for name in PROGRAMS if shutil.which(name) is None] + (
    [] if os.geteuid() == 0 else ["root's rights"]
)
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing), reason=f"a SLURM on this machine needs {', '.join(missing)}"),
]

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={port1}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
KillWait=5
OverTimeLimit=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=test Nodes={host} Default=YES State=UP
"""


def said(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def free_ports():
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0)), two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A controller and one node with two cores; yields the settings of a sweep."""
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    port, port1 = free_ports()
    (folder / "slurm.conf").write_text(
        CONFIG.format(folder=folder, host=host, port=port, port1=port1)
    )
    before, munge = os.environ.get("SLURM_CONF"), None
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        if subprocess.run(
            "munge -n | unmunge", shell=True, capture_output=True, check=False
        ).returncode:
            Path("/run/munge").mkdir(exist_ok=True)
            shutil.chown("/run/munge", "munge", "munge")
            munge = subprocess.Popen(
                ["runuser", "-u", "munge", "--", "munged", "--foreground"], start_new_session=True
            )
            until(lambda: said("munge", "-n"), 10)
        subprocess.run(["slurmctld", "-c"], check=True)
        subprocess.run(["slurmd", "-c"], check=True)
        until(lambda: "idle" in said("sinfo", "-h", "-o", "%t"), 60)
        yield {
            "jobs": 2,
            "cores": 1,
            "memory": "900MB",
            "walltime": "00:10:00",
            "log_directory": str(folder),
        } | {
            "scheduler_options": {"host": "127.0.0.1"},
            "worker_extra_args": ["--host", "127.0.0.1"],
        }
        assert said("squeue", "-h") == "" or until(lambda: said("squeue", "-h") == "", 30), (
            "no job is left behind"
        )
    finally:
        for program in ("slurmctld", "slurmd"):
            if (folder / f"{program}.pid").exists():
                os.kill(int((folder / f"{program}.pid").read_text()), signal.SIGTERM)
                until(lambda file=folder / f"{program}.pid": not file.exists(), 20)
        if munge is not None:
            os.killpg(munge.pid, signal.SIGTERM)
            munge.wait()
        os.environ.pop("SLURM_CONF") if before is None else os.environ.update(SLURM_CONF=before)


def options(cluster, **more):
    return {"where": "slurm", "cluster": cluster, "backend": "reference", "progress": False, **more}


def test_same_bits_as_alone(slurm, tmp_path):
    configs = [tiny.config(cell, seed) for seed in (0, 1) for cell in ("gru", "stp_dale_cb")]
    runs = sweep.sweep(configs, Store(tmp_path / "slurm"), **options(slurm))
    assert set(runs.state) == {"DONE"} and len(runs) == 4
    for config in configs:
        tiny.execute(config, tmp_path / "alone")
        assert tiny.bits(tmp_path / "alone", config.key()) == tiny.bits(
            tmp_path / "slurm", config.key()
        )
    assert [path.name for path in (tmp_path / "slurm").iterdir()] == ["runs"], (
        "no certificate stays behind"
    )


def test_a_job_whose_time_is_up_is_replaced_and_its_run_goes_on(slurm, tmp_path):
    """At the end of its walltime SLURM sends SIGTERM and, a little later, SIGKILL, as scancel
    does.
    """
    import dask

    config, store = tiny.config("cb", epochs=40), Store(tmp_path / "slurm")
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}):
        started = sweep.start([config], store, **options({**slurm, "jobs": 1}))
        until(
            lambda: (
                (row := store.status(config.key()))
                and row["state"] == "RUNNING"
                and row.get("step", 0) > 28
            )
        )
        first = said("squeue", "-h", "-o", "%A").split()
        said("scancel", *first)
        assert set(started.wait().state) == {"DONE"}
    assert "resumed at step" in (store.folder(config.key()) / "result" / "log.txt").read_text()
    tiny.execute(config, tmp_path / "alone")
    assert tiny.bits(tmp_path / "alone", config.key()) == tiny.bits(store.root, config.key())
