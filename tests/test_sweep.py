"""Grids, plans and the rules of the sweep, without a process; what needs processes stands in
test_reliability_sweep.py.
"""

import asyncio
import gc
import itertools
import math
import os
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiny

from lib import cells
from lib.config import CellSpec, RunConfig, Task
from lib.files import StoreError, read_json, to_json, write
from lib.runs import attempt, places, sweep
from lib.runs.grid import RATES
from lib.runs.status import cancelled, mark
from lib.runs.store import Store

GRIDS = Path(__file__).parent.parent / "notebooks" / "grids"


def test_a_part_of_a_grid_is_a_fair_comparison():
    configs = sweep.grid("cifar10", input_length=[4, 8, 16], stride=["fixed", "half"], seeds=(0, 1))
    windows = list(dict.fromkeys(config.window.label for config in configs))
    assert windows == ["4/4", "4/2", "8/4", "16/4", "16/8"] and len(configs) == 9 * 5 * 2
    assert [config.cell.name for config in configs[:9]] == cells.names("all")
    assert {(config.window.label, config.seed) for config in configs[:9]} == {("4/4", 0)}
    assert {(config.window.label, config.seed) for config in configs[9:18]} == {("4/4", 1)}
    assert len({config.key() for config in configs}) == len(configs)


def test_options_go_to_the_cells_that_have_them():
    configs = sweep.grid(cells="rnn,cb,dale_cb", options={"excitatory_fraction": 0.75}, seeds=[0])
    assert [config.cell.options for config in configs] == [{}, {}, {"excitatory_fraction": 0.75}]
    with pytest.raises(
        ValueError, match="options name 'speed', which none of the cells rnn, cb has"
    ):
        sweep.grid(cells=["rnn", "cb"], options={"speed": 1})


def test_a_users_cell_takes_its_text_along():
    text = "@register\nclass Mine(CB):\n    name, label = 'mine', 'Mine'\n"
    cells.register_source(text)
    mine, cb = sweep.grid(cells="mine,cb", seeds=[0])
    assert mine.cell.source == text and cb.cell.source is None


@pytest.mark.parametrize(
    "text, message",
    [
        ("stride: 0", "stride is 0"),
        ("stride: 9", "stride is 9"),
        ("input_length: 17", "input_length is 17"),
        ("stride: third", "stride is 'third'"),
        ("cells: rnn,lstm", "lstm"),
        ("cells: dale_cb\nhidden_size: 1", "leaves no"),
        ("seeds: [0, -1]", "(?i)seed.* -1"),
        ("seeds: 3", "seeds is 3, but must be a list"),
        ("options: [0.3]", r"options is \[0.3\], but must be a mapping"),
        ("learning_rate: {gru: 0.1}\ncells: gru,cb", "learning_rate has no value for 'cb'"),
        (
            "learning_rate: {gru: 0.1, default: 1, cb: 2}\ncells: gru",
            "learning_rate names 'cb', which is not among the cells: gru",
        ),
        ("learning_rate: {gru: fast}\ncells: gru", "learning_rate is 'fast'"),
        ("epochs: many", "epochs is 'many'"),
        ("learning_rate: .nan", "learning_rate is nan"),
        ("dataset: imagenet", "imagenet"),
        ("windows: 8/4", "unknown field 'windows'; known fields are dataset"),
        ("- cells: rnn\n- cells: rnn\n  epochs: 0", "epochs is 0"),
        ("dataset: [digits, mnist]", r"dataset is \['digits', 'mnist'\], but must be one value"),
        ("cells:", "cells is None, but must be names of cells, as a text or a list"),
        ("cells: true", "cells is True, but must be names of cells"),
        ("options: dt", "options is 'dt', but must be a mapping"),
        ("options: 3", "options is 3, but must be a mapping"),
        ("cells: [rnn, ]\nseeds: []", r"seeds is \[\], but must be a list"),
        ("input_length: {first: 4}", "input_length is .*, but must be one value"),
        ("stride: [[4]]", r"stride is \[4\], but must be one value"),
        ("options: {dt: [0.1, 0.3]}", "options: dt is .*, but must be one value"),
        ("learning_rate: {default: }", "learning_rate: default is None, but must be one value"),
        ("hidden_size: [8, 16]", "hidden_size is .* write several grids"),
        ("just words", "is no grid"),
        ("cells: [", "is no grid file"),
    ],
)
def test_a_grid_file_is_refused_whole_with_field_and_value(tmp_path, text, message):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        sweep.read_grid(tmp_path / "grid.yaml")
    assert str(error.value).startswith(str(tmp_path / "grid.yaml"))


def test_a_run_has_one_key_however_its_numbers_are_written():
    usual = {"hidden_size": 8, "seeds": [1], "learning_rate": 1.0, "clip_norm": 1.0, "delay": 4}
    (config,) = sweep.grid(cells="cb", **usual)
    numpys = {name: np.int64(1) for name in ("learning_rate", "clip_norm")}
    numpys |= {"hidden_size": np.int64(8), "seeds": [np.int64(1)], "delay": np.int32(4)}
    for other in (
        {**usual, "learning_rate": 1, "clip_norm": 1, "options": {"dt": np.float64(0.1)}},
        numpys,
    ):
        (same,) = sweep.grid(cells="cb", **other)
        assert same.key() == config.key()


def test_an_exponent_is_a_number(tmp_path):
    text = "cells: rnn\nseeds: [0]\nlearning_rate: 1e-3\nclip_norm: 2E+0"
    (tmp_path / "grid.yaml").write_text(text, "utf-8-sig")
    (config,) = sweep.read_grid(tmp_path / "grid.yaml")
    assert (config.training.learning_rate, config.training.clip_norm) == (0.001, 2.0)


@pytest.mark.parametrize(
    "text, message",
    [
        ("partition: gpu", "Unknown field 'partition'; write queue"),
        ("colour: red", "Unknown field 'colour'; leave it out. Usual fields are jobs, cores"),
        ("time: '4:00:00'", "Unknown field 'time'; write walltime"),
        ("walltime: 4:00:00", "walltime is 14400, but must be a text; put it in quotes"),
        ("walltime: soon", "walltime is 'soon', but must be a time"),
        ("cores: four", "cores is 'four', but must be a whole number"),
        ("jobs: 0", "jobs is 0, but must be a whole number of at least 1"),
        ("memory: lots", "memory is 'lots', but must be a size"),
        ("interface: ib77", "interface is 'ib77', but must be one of .*lo"),
        ("job_extra_directives: --gres=gpu:1", "job_extra_directives is .* a list of texts"),
        ("scheduler_options: 3", "scheduler_options is 3, but must be a mapping"),
        ("just words", "are no settings"),
    ],
)
def test_cluster_settings_are_refused_with_field_and_value(tmp_path, text, message):
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        sweep.read_cluster(tmp_path / "cluster.yaml")
    assert str(error.value).startswith(str(tmp_path / "cluster.yaml"))


def program(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    "sbatch, message",
    [
        ("echo 'error: invalid partition' >&2; exit 1", "SLURM refuses the jobs: .*invalid part"),
        ("echo Submitted batch job 17", "The SLURM jobs 17 ended before their workers came"),
    ],
)
def test_slurm_that_gives_no_workers_ends_the_sweep(sbatch, message, tmp_path, monkeypatch):
    program(tmp_path / "bin", "sbatch", sbatch)
    for name in ("squeue", "scancel"):
        program(tmp_path / "bin", name, "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(places, "PATIENCE", 3)
    monkeypatch.setattr(places, "LOOK", 0.1)
    with (
        pytest.raises(RuntimeError, match=message),
        places.slurm(1, Store(tmp_path), {}) as (_, renew),
    ):
        for _ in range(600):
            renew()
            time.sleep(0.1)


def test_nobody_beyond_this_machine_can_connect(tmp_path):
    with places.workers("local", 1, Store(tmp_path), {}):
        connections = psutil.Process().net_connections()
    assert {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


def test_a_wait_that_nobody_waits_for_any_more_goes_untold(caplog):
    async def fail(error):
        asyncio.get_running_loop().create_future().set_exception(error)

    with places.local(1) as (cluster, _):
        loop = cluster.loop.asyncio_loop
        for error in (TimeoutError("too late"), ValueError("a fault")):
            asyncio.run_coroutine_threadsafe(fail(error), loop).result()
            gc.collect()
    assert "a fault" in caplog.text and "too late" not in caplog.text


def test_slurm_that_is_not_here_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"where is 'slurm', but .* there is no sbatch"):
        sweep.sweep([tiny.config()], Store(tmp_path), where="slurm")
    assert not (tmp_path / "runs").exists()


def test_without_a_terminal_progress_is_a_line_now_and_then(monkeypatch, capsys):
    report, one = sweep.Report(2, shown=True), [tiny.config()]
    report([one, one], {})
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sweep, "LINE", -1)
    report([one, one], {})
    report([], {"future": one})
    assert capsys.readouterr().err.splitlines() == [
        "0 of 2 runs, 0 failed",
        "1 of 2 runs, 0 failed, time left: under a minute",
    ]


def test_the_grid_files_of_the_workbook():
    full = sweep.read_grid(GRIDS / "full.yaml")
    assert {
        (config.cell.hidden_size, config.training.batch_size, config.task) for config in full
    } == {(48, 40, Task("cifar10"))}
    assert len({(config.window.label, config.cell.name) for config in full}) == 45
    assert len(sweep.read_grid(GRIDS / "smoke.yaml")) == 9
    assert {"jobs", "cores", "walltime"} <= sweep.read_cluster(GRIDS / "slurm.yaml").keys()


def test_every_cell_at_its_own_rate(tmp_path):
    (tmp_path / "grid.yaml").write_text(
        "cells: 'rnn,cb,gru'\nseeds: [0]\nlearning_rate: {default: 0.003, gru: 0.01}"
    )
    rates = {
        config.cell.name: config.training.learning_rate
        for config in sweep.read_grid(tmp_path / "grid.yaml")
    }
    assert rates == {"rnn": 0.003, "cb": 0.003, "gru": 0.01}


def test_rates_that_a_scan_chose_are_the_default():
    chosen = {c.cell.name: c.training.learning_rate for c in sweep.grid("digits", seeds=[0])}
    assert chosen["rnn"] == RATES["digits"]["rnn"] != chosen["simple_gru"]
    assert {c.training.learning_rate for c in sweep.grid("cifar10", seeds=[0])} == {0.01}
    given = sweep.grid("digits", seeds=[0], learning_rate=0.02)
    assert {c.training.learning_rate for c in given} == {0.02}
    scan = sweep.read_grid(GRIDS / "digits_learning_rate.yaml")
    tried = {(c.cell.name, c.training.learning_rate) for c in scan}
    assert set(RATES["digits"].items()) <= tried


def test_watching_goes_on_until_all_runs_are_there(tmp_path):
    configs = sweep.grid("digits", cells="rnn,cb", seeds=[0])
    store = Store(tmp_path)
    mark(store.folder(configs[0].key()), configs[0], "CANCELLED", "")
    watching = sweep.watch(configs, store, every=0)
    assert [len(next(watching)) for _ in range(2)] == [1, 1]
    mark(store.folder(configs[1].key()), configs[1], "CANCELLED", "")
    assert [len(runs) for runs in watching] == [2]


def test_watching_ends_with_the_sweep(tmp_path):
    store, one = Store(tmp_path), tiny.config()
    mark(store.folder(one.key()), one, "QUEUED")
    started = sweep.start([one], store, where="moon")
    with pytest.raises(ValueError, match="where is 'moon'"):
        started.wait()
    watching = itertools.islice(sweep.watch([one], store, every=0, started=started), 2)
    assert [list(runs["state"]) for runs in watching] == [["QUEUED"]]


def test_a_run_killed_before_it_wrote_its_status_is_cancelled(tmp_path):
    store, one = Store(tmp_path), tiny.config()
    killed = attempt.Attempt(store.folder(one.key()), one)
    (killed.folder / "status.json").unlink()
    sweep.cancel(one.key(), store)
    assert store.status(one.key())["state"] == "CANCELLED"


@pytest.mark.parametrize("name", ["key", "state", "started"])
def test_a_damaged_mark_is_named(tmp_path, name):
    store, one = Store(tmp_path), tiny.config()
    run = store.folder(one.key())
    mark(run, one, "CANCELLED")
    marked = read_json(run / "status.json")
    del marked[name]
    write(run / "status.json", to_json(marked))
    row = store.runs().iloc[0]
    assert (row.key, row.state) == (one.key(), "DAMAGED") and name in row.message
    with pytest.raises(StoreError, match=r"move .* away and run again"):
        cancelled(run, since=0)


def test_several_grids_in_one_file(tmp_path):
    (tmp_path / "grid.yaml").write_text(
        "- {cells: 'rnn,cb', seeds: [0]}\n- {cells: cb, seeds: [0, 1]}\n"
    )
    assert [(c.cell.name, c.seed) for c in sweep.read_grid(tmp_path / "grid.yaml")] == [
        ("rnn", 0),
        ("cb", 0),
        ("cb", 1),
    ]


def test_a_plan_is_what_has_no_result(tmp_path):
    tiny.many(tmp_path, 4, validations=1)  # four cells, each one seed
    store, done = Store(tmp_path), [tiny.config(tiny.FAMILIES[seed], seed) for seed in range(4)]
    added = [tiny.config("gru", 4), tiny.config("cb", 5)]
    assert (
        sweep.plan(done, store) == [] and sweep.plan([*done[:2], *added, added[0]], store) == added
    )
    store.pack([done[0].key()], "bundle")
    tiny.remove(store.folder(done[0].key()))
    assert sweep.plan(done, Store(tmp_path)) == [], "a packed run is finished, too"


def test_time_is_estimated_from_finished_runs(tmp_path):
    tiny.many(tmp_path, 4, validations=1)  # 0.5 s for each
    store, one = Store(tmp_path), tiny.config("cb", 9)
    done = store.rows(state="DONE")
    longer = replace(one, training=replace(one.training, epochs=10))
    start = sweep.START_UP
    assert sweep.estimate([longer], done) == pytest.approx(start + 5)
    assert sweep.estimate([one, longer], done, slots=2) == pytest.approx((2 * start + 5.5) / 2)
    other = replace(one, cell=CellSpec("stp", 6))
    assert sweep.estimate([other], done) == pytest.approx(start + 0.5), (
        "an unknown cell is taken for an average one"
    )
    assert math.isnan(sweep.estimate([replace(one, task=Task("mnist"))], done))
    text = sweep.preview([one, tiny.config("gru", 0)], store, slots=1)
    assert "2 runs, 1 finished, 1 to train." in text and "under a minute" in text and "8/8" in text


def test_seeds_share_a_child_on_a_gpu_only():
    configs = [tiny.config(cell, seed) for seed in (0, 1) for cell in ("rnn", "cb")]
    assert sweep.side_by_side(configs, "cpu") == [[config] for config in configs]
    assert sweep.side_by_side(configs, "cuda") == [
        [configs[0], configs[2]],
        [configs[1], configs[3]],
    ]


def test_words_for_times():
    assert [sweep.duration(seconds) for seconds in (5, 600, 3 * 3600)] == [
        "under a minute",
        "about 10 min",
        "about 3.0 h",
    ]


def test_bad_requests(tmp_path):
    with pytest.raises(ValueError, match="where is 'moon'"):
        sweep.sweep([tiny.config()], Store(tmp_path), where="moon")
    with pytest.raises(ValueError, match="No run has the key"):
        sweep.cancel("0123456789abcdef", Store(tmp_path))
    tiny.many(tmp_path, 2, validations=1)
    with pytest.raises(ValueError, match="is finished"):
        sweep.cancel(tiny.config("gru", 0).key(), Store(tmp_path))
    long = replace(tiny.config("cb", 9), training=replace(tiny.config().training, epochs=100_000))
    with pytest.raises(ValueError, match="pass confirm=True"):
        sweep.load_or_run(long, Store(tmp_path), progress=False)


def test_load_or_run_reads_what_is_finished(tmp_path, capsys):
    tiny.many(tmp_path, 2, validations=1)
    before = tiny.contents(tmp_path)
    runs = sweep.load_or_run([tiny.config("gru", 0), tiny.config("cb", 1)], Store(tmp_path))
    assert list(runs.cell) == ["cb", "gru"] and set(runs.state) == {"DONE"}
    assert capsys.readouterr().out == "" and tiny.contents(tmp_path) == before
    with pytest.raises(ValueError, match="Unknown cell"):
        sweep.load_or_run(RunConfig(cell=CellSpec("lstm")), Store(tmp_path))


def test_the_sweep_imports_no_torch():
    code = (
        "import sys; from lib.runs import sweep; sweep.status(); print('torch' in "
        "sys.modules, 'distributed' in sys.modules)"
    )
    assert subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split() == ["False", "False"]


# The loop, with a client whose answers are scripted


class Client:
    def __init__(self, store, answers):
        self.store, self.asked, self.answers = (
            store,
            [],
            {config.key(): list(values) for config, values in answers},
        )

    def nthreads(self):
        return {"worker": 1}

    def submit(self, function, request, pure):
        config = RunConfig.from_dict(request.configs[0])
        self.asked.append(config)
        answer = self.answers[config.key()].pop(0)
        if answer == "done":
            (self.store.folder(config.key()) / "result").mkdir(parents=True)
            answer = (attempt.DONE, "", 28)
        future = Future()
        future.set_result(attempt.Ending(*answer))
        return future


@pytest.fixture
def drive(tmp_path):
    def drive(*answers, retries=2):
        store = Store(tmp_path)
        client, configs = Client(store, answers), [config for config, _ in answers]
        report = sweep.Report(len(configs), shown=False)
        sweep.drive(
            client,
            lambda: None,
            [[c] for c in configs],
            store,
            attempt.Request(),
            retries,
            report,
        )
        assert not any(client.answers.values()), "every answer was asked for"
        return client.asked, report.failed, store

    return drive


ONE, TWO = tiny.config("rnn"), tiny.config("cb")


def test_a_run_that_crashes_again_and_again_fails_and_the_rest_goes_on(drive):
    crash = (attempt.FAILED, "it broke", -1)
    asked, failed, store = drive((ONE, [crash] * 3), (TWO, ["done"]), retries=2)
    assert asked == [ONE, ONE, ONE, TWO] and failed == 1
    row = store.status(ONE.key())
    assert (row["state"], row["message"]) == (
        "FAILED",
        "3 failed attempts; the last: it broke\n\nit broke",
    )


def test_the_second_run_uses_the_graphs_of_the_first(drive):
    cells = "rnn", "cb", "gru"
    order = [tiny.config(cell, seed) for seed in (0, 1) for cell in cells]
    asked, _, _ = drive(*((config, ["done"]) for config in order))
    assert asked == [order[0], order[3], order[1], order[2], *order[4:]]
    asked, _, _ = drive(*((tiny.config(cell, 5), ["done"]) for cell in cells))
    assert [config.cell.name for config in asked] == list(cells)


def test_attempts_that_come_further_are_not_counted(drive):
    assert (
        drive((ONE, [*((-9, "killed", step) for step in (-1, 14, 14, 28, 42)), "done"]), retries=1)[
            1
        ]
        == 0
    )


def test_attempts_that_come_no_further_are(drive):
    asked, failed, _ = drive((TWO, [(-9, "killed", 14)] * 3), retries=1)
    assert failed == 1 and len(asked) == 3


def test_a_paused_or_busy_run_waits_for_its_turn(drive):
    asked, failed, _ = drive(
        (ONE, [(attempt.BUSY, "", -1), (attempt.PAUSED, "Stopped", -1), "done"]),
        (TWO, ["done"]),
        retries=0,
    )
    assert asked == [ONE, TWO, ONE, ONE] and not failed


def test_other_code_is_not_tried_again(drive):
    asked, failed, store = drive(
        (ONE, [(attempt.CHANGED, "made by other code", 14)]), (TWO, ["done"])
    )
    assert (
        asked == [ONE, TWO] and failed == 1 and "other code" in store.status(ONE.key())["message"]
    )


@pytest.mark.parametrize(
    "code, kind", [(attempt.UNUSABLE, StoreError), (attempt.INVALID, ValueError)]
)
def test_a_full_disk_or_bad_data_stop_the_sweep(drive, code, kind):
    with pytest.raises(kind, match="make room"):
        drive((ONE, [(code, "make room", -1)]), (TWO, []))
