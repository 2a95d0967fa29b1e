"""Rows of the fault table that need a sweep: kill what you like, finished runs stay, byte for byte,
and the rest goes on.

How to stop a training at one certain point, and what it resumes to, stands in
test_reliability_run.py.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from tiny import until

from lib import paths
from lib.config import CellSpec, RunConfig, Task, Training, Window
from lib.files import Verified, read_json, to_json
from lib.runs import sweep
from lib.runs.store import Store

CRASH = """
@register
class Crash(RNN):
    name, label = "crash", "Crash"

    def initialise(self, *_):
        raise OSError("no luck")
"""
NAN = """
@register
class Endless(RNN):
    name, label = "endless", "Endless"

    def update(self, *arguments):
        state = super().update(*arguments)
        return type(state)(*(part / 0 for part in state))
"""


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def working(store, config, step=0):
    """Status of a run that has trained beyond a step, else None."""
    row = store.status(config.key())
    return row if row and row["state"] == "RUNNING" and row.get("step", -1) > step else None


def family(store, config):
    """(training process, server of the training processes, its parent with the Dask worker) of a
    run that trains.
    """
    pids = [until(lambda: working(store, config, step=-1))["pid"]]
    for _ in range(2):
        pids.append(parent(pids[-1]))
    return pids


def results(root):
    """Every published file."""
    return {name: data for name, data in tiny.contents(root).items() if "/result/" in name}


def in_a_process(configs, root, **options):
    """A sweep in a process of its own, as a notebook's kernel would run it."""
    code = (
        "import json, sys; from lib.runs import sweep; from lib.config import RunConfig; "
        "from lib.runs.store import Store\n"
        "configs, root, options = json.loads(sys.argv[1])\n"
        "sweep.sweep([RunConfig.from_dict(c) for c in configs], Store(root), progress=False, "
        "**options)"
    )
    options = {"backend": "reference", "slots": 2, **options}
    request = to_json([[config.to_dict() for config in configs], str(root), options]).decode()
    return subprocess.Popen(
        [sys.executable, "-c", code, request], stderr=subprocess.PIPE, text=True
    )


def options(**more):
    return {"backend": "reference", "progress": False, "slots": 2, **more}


def test_5_a_sweep_finishes_around_a_run_that_crashes(tmp_path):
    store, (first, second) = (
        Store(tmp_path / "results"),
        [tiny.config("gru", seed) for seed in (0, 1)],
    )
    crash = RunConfig(
        window=Window(8, 8), cell=CellSpec("crash", 4, source=CRASH), training=Training(1)
    )
    diverging = RunConfig(
        window=Window(8, 8), cell=CellSpec("endless", 4, source=NAN), training=Training(1)
    )
    runs = sweep.sweep([crash, first, diverging, second], store, **options(retries=1)).set_index(
        "key"
    )
    assert list(runs.state[[c.key() for c in (crash, first, diverging, second)]]) == [
        "FAILED",
        "DONE",
        "DIVERGED",
        "DONE",
    ]
    assert (
        runs.message[crash.key()].startswith("2 failed attempts")
        and "no luck" in runs.message[crash.key()]
    )
    assert len(list(store.folder(crash.key()).glob("attempt-*"))) == 2, "crashes are tried again"
    assert not list(store.folder(diverging.key()).glob("attempt-*")), "divergence is a result"
    tiny.execute(first, tmp_path / "alone")
    assert tiny.bits(tmp_path / "alone", first.key()) == tiny.bits(store.root, first.key()), (
        "the same bits as without a sweep"
    )
    before, third = results(store.root), tiny.config("gru", 2)
    assert sweep.plan([first, second, third], store) == [third], (
        "a seed added later is the only one to train"
    )
    with pytest.raises(
        RuntimeError, match=r"1 of 2 runs did not finish; the first, .* is FAILED: .*no luck"
    ):
        sweep.load_or_run([first, crash], store, **options(retries=0))
    assert results(store.root) == before


def test_14_15_servers_killed_run_cancelled_sweep_stopped(tmp_path):
    store, configs = (
        Store(tmp_path / "results"),
        [tiny.config("cb", seed, epochs=20) for seed in range(3)],
    )
    started = sweep.start(configs, store, **options())
    one, two, three = configs
    child, server, kernel = family(store, one)
    assert kernel == os.getpid()
    until(lambda: working(store, one) and working(store, two))
    other = working(store, two)["pid"]
    killed = [child, server, other, parent(other)]
    for pid in (server, parent(other)):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(alive, killed)), 2)
    again = until(lambda: (row := working(store, one)) and row["pid"] != child and row)
    until(lambda: working(store, two))
    sweep.cancel(one.key(), store)
    until(lambda: not alive(again["pid"]), 5)
    assert store.status(one.key())["state"] == "CANCELLED"
    until(lambda: working(store, three))
    assert store.status(one.key())["state"] == "CANCELLED", "the sweep leaves it alone"
    states = started.stop().set_index("seed").state
    assert (
        states[0] == "CANCELLED"
        and set(states[1:]) <= {"PAUSED", "DONE"}
        and "PAUSED" in set(states)
    )
    assert not started.running
    before = results(store.root)
    assert set(sweep.sweep(configs, store, **options()).state) == {"DONE"}
    after = results(store.root)
    assert {name: after[name] for name in before} == before
    assert "resumed at step" in (store.folder(one.key()) / "result" / "log.txt").read_text()
    tiny.execute(one, tmp_path / "alone")
    assert tiny.bits(tmp_path / "alone", one.key()) == tiny.bits(store.root, one.key())


def test_4_scheduler_killed(tmp_path):
    store, short, long = (
        Store(tmp_path),
        tiny.config("rnn"),
        [tiny.config("cb", seed, epochs=20) for seed in range(2)],
    )
    kernel = in_a_process([short, *long], tmp_path)
    pids = family(store, long[0])
    assert pids[-1] == kernel.pid
    until(
        lambda: store.finished(short.key()) and working(store, long[0]) and working(store, long[1])
    )
    pids.append(store.status(long[1].key())["pid"])
    kernel.kill()
    kernel.communicate()
    until(lambda: not any(map(alive, pids)), 5)
    before = results(tmp_path)
    assert sweep.plan([short, *long], store) == long and set(store.runs(cell="cb").state) == {
        "INTERRUPTED"
    }
    assert set(sweep.sweep([short, *long], store, **options()).state) == {"DONE"}
    after = results(tmp_path)
    assert before and {name: after[name] for name in before} == before
    assert all(
        "resumed at step" in (store.folder(c.key()) / "result" / "log.txt").read_text()
        for c in long
    )


def test_6_two_notebooks_run_the_same_grid(tmp_path):
    configs = [tiny.config(cell, seed, epochs=3) for seed in (0, 1) for cell in ("rnn", "gru")]
    both = [in_a_process(configs, tmp_path, slots=1) for _ in range(2)]
    assert [(kernel.communicate()[1], kernel.returncode)[1] for kernel in both] == [0, 0]
    store = Store(tmp_path)
    assert set(store.runs().state) == {"DONE"} and len(store.runs()) == len(configs)
    for config in configs:
        assert not Verified(store.folder(config.key()) / "result").damaged()


def test_14_the_command_line_saves_what_runs_when_it_is_told_to_end(tmp_path):
    (tmp_path / "grid.yaml").write_text(
        "{cells: cb, input_length: 8, stride: 8, hidden_size: 6, epochs: 1000, seeds: [0, 1]}"
    )
    configs, store = sweep.read_grid(tmp_path / "grid.yaml"), Store(tmp_path / "results")
    command = [
        sys.executable,
        "-m",
        "lib",
        "sweep",
        tmp_path / "grid.yaml",
        "--results",
        store.root,
        "--slots",
        "2",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    pids = [until(lambda config=config: working(store, config))["pid"] for config in configs]
    process.terminate()
    assert (
        "Running trainings are saved; the same command goes on" in process.communicate()[1]
        and process.returncode == 1
    )
    assert set(store.runs().state) == {"PAUSED"} and not any(map(alive, pids))


def test_3_worker_killed_of_a_scheduler_that_runs_already(tmp_path):
    store, file, (one, two, long) = Store(tmp_path / "results"), tmp_path / "scheduler.json", [
        tiny.config("cb", 0), tiny.config("cb", 1), tiny.config("cb", 2, epochs=100)
    ]  # fmt: skip
    dask = [sys.executable, "-m", "dask"]
    common = ["--scheduler-file", file, "--host", "127.0.0.1", "--no-dashboard"]
    scheduler = subprocess.Popen(
        [*dask, "scheduler", *common, "--port", "0"], stderr=subprocess.DEVNULL
    )
    worker = subprocess.Popen(
        [*dask, "worker", *common, "--nthreads", "2", "--local-directory", tmp_path],
        stderr=subprocess.DEVNULL,
    )
    try:
        until(file.exists)
        where = until(lambda: read_json(file))["address"]
        assert where.startswith("tcp://127.0.0.1:")
        assert set(sweep.sweep([one, two], store, **options(where=where)).state) == {"DONE"}
        tiny.execute(one, tmp_path / "alone")
        assert tiny.bits(tmp_path / "alone", one.key()) == tiny.bits(store.root, one.key())
        started = sweep.start([long], store, **options(where=where))
        child, server, killed = family(store, long)
        os.kill(killed, signal.SIGKILL)  # its nanny starts another one
        until(lambda: not any(map(alive, (child, server))), 2)
        pid = until(lambda: (row := working(store, long)) and row["pid"] != child and row)["pid"]
        started.stop()  # the workers are not the sweep's, and stay
        until(lambda: not alive(pid), 10)
        assert store.status(long.key())["state"] == "PAUSED" and worker.poll() is None
    finally:
        for process in (worker, scheduler):
            process.terminate()
            process.wait(60)


def test_12_damaged_data_stop_the_sweep(tmp_path):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        (raw / name).write_bytes(b"\0\0\x08\x03")
    config = RunConfig(Task("mnist"), Window(8, 8))
    with pytest.raises(ValueError, match="train-images-idx3-ubyte"):
        sweep.sweep([config], Store(tmp_path / "results"), **options(data=tmp_path / "data"))


SCRIPT = """
import sys
sys.path.insert(0, {project!r})
from lib.runs import sweep
from lib.runs.store import Store
runs = sweep.load_or_run(
    sweep.grid(cells="rnn", hidden_size=2, seeds=[0], epochs=1), Store({root!r}), slots=1
)
print(runs.state.tolist())
"""


def test_a_plain_script_elsewhere_trains_with_its_own_code(tmp_path):
    """No main guard, no environment variable, and another ``lib`` in the working folder."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "__init__.py").write_text("raise SystemExit('the wrong lib')")
    script = SCRIPT.format(project=str(paths.project_root()), root=str(tmp_path / "results"))
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "plain.py").write_text(script)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, tmp_path / "scripts" / "plain.py"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0 and "['DONE']" in ended.stdout, ended.stderr


@pytest.mark.chaos
def test_18_chaos(tmp_path):
    """A kill every few seconds, of trainings, their server and kernels; then all runs are
    there.
    """
    configs = [tiny.config(cell, seed, epochs=30) for seed in range(3) for cell in tiny.FAMILIES]
    store, draw, end, kills = (
        Store(tmp_path / "chaos"),
        random.Random(0),
        time.monotonic() + 600,
        [],
    )
    kernel, finished = None, {}
    while sweep.plan(configs, store):
        assert time.monotonic() < end, f"not done after kills of {kills}"
        if kernel is None or kernel.poll() is not None:
            kernel = in_a_process(configs, store.root, retries=10)
        time.sleep(draw.uniform(3, 6))
        rows = [
            row
            for row in map(store.status, (c.key() for c in configs))
            if row and row["state"] == "RUNNING"
        ]
        if (
            rows and kernel.poll() is None and len(kills) < 50
        ):  # on a slow machine a child may else never get to train
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                pids = [rows[0]["pid"]]
                for _ in range(2):
                    pids.append(parent(pids[-1]))
                kind = draw.choices(range(3), (8, 2, 1))[0]
                os.kill(pids[kind], signal.SIGKILL)
                kills.append(("training", "server", "kernel")[kind])
        now = results(store.root)
        assert {name: now[name] for name in finished} == finished, "a finished run changed"
        finished = now
    kernel.communicate(timeout=60)
    runs = store.runs()
    assert len(runs) == len(configs) and set(runs.state) == {"DONE"} and len(kills) >= 5
    for config in configs[: len(tiny.FAMILIES)]:
        tiny.execute(config, tmp_path / "calm")
        assert tiny.bits(tmp_path / "calm", config.key()) == tiny.bits(store.root, config.key())
    print(
        f"{len(kills)} kills ({', '.join(sorted(kills))}); training time kept: "
        f"{runs.seconds.sum():.0f} s"
    )
