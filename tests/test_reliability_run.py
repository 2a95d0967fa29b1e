"""What must not be lost, for one run and the store: each test is a row of the fault table, by its
number.

Training processes that are killed are real ones; a fork server has the libraries loaded already, so
that a kill costs little. Every test starts beside a finished run and asserts at its end that it is
still there, byte for byte.
"""

import errno
import itertools
import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch

from lib import compiled, files, recurrence, train
from lib.config import RunConfig, Task, Window
from lib.files import DiskFull, StoreError, Verified
from lib.runs import attempt, checkpoints, sweep
from lib.runs.checkpoints import CodeChanged
from lib.runs.store import Store

FINISHED = tiny.config("cb", seed=99)


@pytest.fixture(scope="session")
def processes():
    """Start ``processes(function, *arguments)``, a fresh process without the cost of its
    imports.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny", "lib.train", "lib.runs.attempt", "lib.runs.store"])

    def start(function, *arguments):
        process = context.Process(target=function, args=arguments)
        process.start()
        return process

    return start


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("finished")
    tiny.execute(FINISHED, root)
    return root


@pytest.fixture
def root(finished, tmp_path):
    """A results folder with a finished run, which must survive the test."""
    folder = tmp_path / "results"
    tiny.copy(finished, folder)
    before = tiny.contents(folder / "runs" / FINISHED.key())
    yield folder
    assert tiny.contents(folder / "runs" / FINISHED.key()) == before


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """Bits of a configuration that trained without a fault."""
    known = {}

    def train_once(*configs):  # side by side is another arrangement than alone, with other rounding
        keys = tuple(config.key() for config in configs)
        if keys not in known:
            folder = tmp_path_factory.mktemp("uninterrupted")
            tiny.execute(list(configs), folder)
            known[keys] = [tiny.bits(folder, key) for key in keys]
        return known[keys]

    return train_once


def log(root, config):
    """Everything the attempts and the result of a run logged."""
    return "".join(
        path.read_text() for path in sorted(Store(root).folder(config.key()).glob("*/log.txt"))
    )


def interrupted(root, config, step=28):
    """A run that died after a step: two checkpoints, no result."""

    def die():
        raise OSError("the power went")

    with pytest.raises(OSError, match="the power went"):
        tiny.execute(config, root, tiny.At(step, die))
    return next(Store(root).folder(config.key()).glob("attempt-*"))


# Row 1


def kill_and_rerun(cell, kills, root, processes, uninterrupted, random_source):
    config = tiny.config(cell, epochs=2)
    expected = uninterrupted(config)[0]
    for kill in range(kills):
        if kill % 2:  # anywhere in a step
            process = processes(tiny.train_until, config, root, -1)
            while process.is_alive() and not list(
                Store(root).folder(config.key()).glob("attempt-*/curves.parquet")
            ):
                time.sleep(0.001)
            time.sleep(random_source.random() * 0.5)
            process.kill()
        else:  # after a step
            process = processes(tiny.train_until, config, root, random_source.randint(1, 56))
        process.join()
        assert process.exitcode == -signal.SIGKILL or tiny.bits(root, config.key()) == expected
    tiny.execute(config, root)
    assert tiny.bits(root, config.key()) == expected
    assert "checkpoint set aside" not in log(root, config)


@pytest.mark.parametrize("cell", tiny.FAMILIES)
def test_1_killed_processes_resume_to_the_same_bits(cell, root, processes, uninterrupted):
    seed = random.randrange(10**6)
    print("seed of the kills:", seed)
    kill_and_rerun(cell, 2, root, processes, uninterrupted, random.Random(seed))


@pytest.mark.chaos
def test_1_twenty_kills(root, processes, uninterrupted):
    seed = random.randrange(10**6)
    print("seed of the kills:", seed)
    for cell in tiny.FAMILIES:
        kill_and_rerun(cell, 5, root, processes, uninterrupted, random.Random(seed))


def test_1_seeds_side_by_side_resume_to_the_same_bits(root, processes, uninterrupted):
    configs = [tiny.config("stp_dale_cb", seed) for seed in (0, 1)]
    expected = uninterrupted(*configs)
    processes(tiny.train_until, configs, root, 20).join()
    tiny.execute(configs, root)
    assert [tiny.bits(root, config.key()) for config in configs] == expected
    assert "resumed at step 14 of 28" in log(root, configs[1])


# Row 2


def test_2_killed_between_any_two_file_operations(root, processes):
    config, store, reached = tiny.config("rnn"), Store(root), [0]
    folder = store.folder(config.key())
    for operations in itertools.count():
        process = processes(tiny.checkpoint_and_publish, root, config, operations)
        process.join()
        newest = checkpoints.resumable([folder], log=pytest.fail)
        published = (folder / "result").is_dir()
        assert published == ("DONE" in set(store.runs(key=config.key()).state))
        if attempt.adopt(folder) or published:
            assert not Verified(folder / "result").damaged()
            assert store.status(config.key())["state"] == "DONE"
            assert not (folder / "result" / "checkpoints").exists()
            reached.append(100)
        else:
            step = newest[0]["step"] if newest else 0
            assert not newest or torch.equal(newest[0]["w"], torch.full((3,), float(step))), (
                "whole: the tensor of the step it says"
            )
            reached.append(step)
        assert reached[-1] >= reached[-2], "a later kill never loses more"
        if folder.exists():
            tiny.remove(folder)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert operations > 40 and set(reached) == {0, 10, 20, 30, 100} and published


# Row 7


def test_7_a_stale_attempt_cannot_publish(root):
    config = tiny.config("rnn")
    stale, replacement = (
        attempt.Attempt(Store(root).folder(config.key()), config) for _ in range(2)
    )
    replacement.finish(tiny.outcome(config))
    assert attempt.publish(replacement.folder)
    before = tiny.contents(Store(root).folder(config.key()) / "result")
    stale.note(progress=0.9)
    stale.finish(tiny.outcome(config))
    assert not attempt.publish(stale.folder)
    assert tiny.contents(Store(root).folder(config.key()) / "result") == before


def test_7_an_attempt_stops_when_another_published(root):
    config, steps = tiny.config("gru"), []

    def other():
        tiny.execute(config, root)
        steps.append(28)

    class Count(train.Callback):
        def on_step(self, state):
            steps.append(state.step)

    assert tiny.execute(config, root, tiny.At(3, other), Count()) == ["DONE"]
    assert steps[-1] == 13 and max(steps) == 28, "the slower one stopped at its next validation"
    assert "CANCELLED" in log(root, config) and len(Store(root).prune()) == 1


# Row 8


@pytest.mark.parametrize(
    "file", ["curves.parquet", ".pt", "best.safetensors", "MANIFEST.json", "log.txt"]
)
def test_8_disk_full(file, root, uninterrupted, monkeypatch):
    config = tiny.config("cb", epochs=2)
    with monkeypatch.context() as full:
        replace, writes = os.replace, itertools.count()

        def no_room(source, target):
            if str(target).endswith(file) and (
                next(writes) > 1 or file in ("best.safetensors", "MANIFEST.json", "log.txt")
            ):
                raise OSError(errno.ENOSPC, "No space left on device")
            replace(source, target)

        full.setattr(os, "replace", no_room)
        with pytest.raises(DiskFull, match="is full; make room and start again"):
            tiny.execute(config, root)
    row = Store(root).status(config.key())
    assert row["state"] == "PAUSED" and "is full" in row["message"]
    assert not list(root.rglob("*.tmp"))
    assert checkpoints.resumable([Store(root).folder(config.key())], log=pytest.fail) is not None
    tiny.execute(config, root)
    assert "resumed at step" in log(root, config)
    assert tiny.bits(root, config.key()) == uninterrupted(config)[0]


def test_8_a_disk_that_is_really_full(finished, tmp_path, uninterrupted):
    folder, config = tmp_path / "small", tiny.config("cb", epochs=2)
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder],
        capture_output=True,
        check=False,
    ).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        tiny.copy(finished, folder)
        before = tiny.contents(folder)
        filler = folder / "filler"
        filler.write_bytes(b"x" * 100_000)
        with pytest.raises(DiskFull):
            tiny.execute(config, folder)
        filler.unlink()
        assert before.items() <= tiny.contents(folder).items()
        (folder / "runs").rename(folder / "moved")
        tiny.copy(folder / "moved", tmp_path / "large" / "runs")
        tiny.execute(config, tmp_path / "large")
        assert tiny.bits(tmp_path / "large", config.key()) == uninterrupted(config)[0]
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("refused", ["rename", "fsync"])
def test_8_a_result_that_cannot_be_published_is_kept(refused, root, monkeypatch):
    config = tiny.config("rnn")
    run = Store(root).folder(config.key())

    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        if refused == "rename":
            full.setattr(os, "rename", no_room)
        else:  # once the result has its name
            full.setattr(os, "fsync", lambda _: (run / "result").exists() and no_room())
        with pytest.raises(StoreError, match="start again"):
            tiny.execute(config, root)
    assert (run / "result").exists() == (refused == "fsync")
    with monkeypatch.context() as never:
        never.setattr(train, "fit", lambda *_, **__: pytest.fail("trained twice"))
        assert tiny.execute(config, root) == ["DONE"]
    assert not Verified(run / "result").damaged()


# Row 9


def flip(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: b"", flip],
    ids=["truncated", "empty", "flipped"],
)
def test_9_damaged_checkpoint(damage, root, uninterrupted):
    config = tiny.config("gru")
    died = interrupted(root, config)
    newest = checkpoints.found(died.parent)[0][1]
    newest.write_bytes(damage(newest.read_bytes()))
    tiny.execute(config, root)
    assert "is damaged: it does not match its sha256" in log(
        root, config
    ) and "resumed at step 14 of 28" in log(root, config)
    assert (died / "checkpoints" / f"damaged-{newest.name}").exists()
    assert tiny.bits(root, config.key()) == uninterrupted(config)[0]


def test_9_all_checkpoints_damaged(root, uninterrupted):
    config = tiny.config("gru")
    died = interrupted(root, config)
    for _, path in checkpoints.found(died.parent):
        path.write_bytes(b"")
    tiny.execute(config, root)
    assert "started, 28 steps" in log(root, config)
    assert tiny.bits(root, config.key()) == uninterrupted(config)[0]


# Row 10


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_10_a_malicious_checkpoint_is_refused(root, tmp_path, uninterrupted):
    config, mark = tiny.config("gru"), tmp_path / "payload-ran"
    died = interrupted(root, config)
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists(), "the payload works"
    mark.unlink()
    plain = pickle.dumps(Payload(mark))
    torch.save({"key": config.key(), "state": Payload(mark)}, tmp_path / "forged")
    for step, data in (
        (100, plain),
        (101, (tmp_path / "forged").read_bytes()),
    ):  # under a name with the right checksum
        (died / "checkpoints" / f"{step:010d}-{files.digest(data)}.pt").write_bytes(data)
    tiny.execute(config, root)
    assert not mark.exists() and log(root, config).count("is refused") == 2
    assert tiny.bits(root, config.key()) == uninterrupted(config)[0]


def test_10_a_malicious_data_file_is_refused(root, tmp_path):
    mark, folder = tmp_path / "payload-ran", tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
        "batches.meta",
    ):
        (folder / name).write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(ValueError, match="batch"):
        attempt.execute(RunConfig(Task("cifar10")), Store(root), data=tmp_path)
    assert not mark.exists() and len(Store(root).runs()) == 1


# Row 11 (in one process and side by side: test_train)


def test_11_divergence_is_a_result(root):
    config = tiny.config("rnn")

    class Poison(train.Callback):
        def on_step(self, state):
            if state.step == 20:
                state.parameters["readout.weight"].mul_(float("inf"))

    assert tiny.execute(config, root, Poison()) == ["DIVERGED"]
    store = Store(root)
    row = store.runs(key=config.key()).iloc[0]
    assert "no longer finite at step 21; at step 14 the validation accuracy was" in row.message
    assert (
        row.test_accuracy != row.test_accuracy
        and row.validation_accuracy > 0
        and row.state == "DIVERGED"
    )
    assert (
        list(store.curves(key=config.key()).step) == [0, 14]
        and store.load(config.key())
        and not Verified(store.folder(config.key()) / "result").damaged()
    )
    before = tiny.contents(store.folder(config.key()))
    assert (
        tiny.execute(config, root) == ["DIVERGED"]
        and tiny.contents(store.folder(config.key())) == before
    ), "no blind retry"
    with pytest.raises(ValueError, match="no predictions"):
        store.predictions(config.key())


# Row 14


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [5, 17])
def test_14_signals_pause_a_run(number, step, root, processes, uninterrupted):
    config = tiny.config("stp_dale_cb")
    process = processes(tiny.train_until, config, root, step, number)
    process.join()
    row = Store(root).status(config.key())
    assert process.exitcode == attempt.PAUSED == 75
    assert (
        row["state"] == "PAUSED"
        and f"Stopped by {number.name} at step {step + 1} of 28" in row["message"]
    )
    tiny.execute(config, root)
    assert f"resumed at step {step + 1} of 28" in log(root, config)
    assert tiny.bits(root, config.key()) == uninterrupted(config)[0]


def test_14_handlers_are_put_back(root):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    tiny.execute(tiny.config("rnn"), root)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_child_ends_with_its_parent(root):
    """The trap behind rows 3 and 4: the pipe of a dead parent closes."""
    config = tiny.config("cb", epochs=1000)
    command = [sys.executable, "-c", "from lib.runs import children; children.serve()"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    request = {
        "configs": [config.to_dict()],
        "results": str(root),
        "backend": "reference",
        "threads": 1,
    }
    server.stdin.write(json.dumps(request).encode() + b"\n")
    server.stdin.flush()
    child = int(server.stdout.readline())
    while not (Store(root).status(config.key()) or {}).get("progress"):
        time.sleep(0.05)
    server.stdin.close()
    assert int(server.stdout.readline()) == attempt.PAUSED and server.wait(60) == 0
    assert not Path(f"/proc/{child}").exists()
    assert Store(root).status(config.key())["state"] == "INTERRUPTED"


# Row 5, as far as one attempt goes


def test_5_a_crash_is_recorded_with_its_reason(root):
    config = tiny.config("rnn")

    def crash():
        raise RuntimeError("the cell broke")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="the cell broke"):
            tiny.execute(config, root, tiny.At(2, crash))
    row = Store(root).runs(key=config.key()).iloc[0]
    assert (
        row.state == "FAILED"
        and row.message == "2 failed attempts; the last: RuntimeError: the cell broke"
    )
    assert "Traceback" in log(root, config)
    assert tiny.execute(config, root) == ["DONE"]


# Row 16


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"lib/cells/base.py": "0"}, r"lib/cells/base\.py"), ({"torch": "2.0"}, r"torch .* -> 2\.0")],
)
def test_16_other_code_does_not_go_on(changed, named, root, uninterrupted, monkeypatch):
    config = tiny.config("gru")
    died = interrupted(root, config)
    now = checkpoints.fingerprint()
    with monkeypatch.context() as other:
        other.setattr(checkpoints, "fingerprint", lambda: {**now, **changed})
        with pytest.raises(CodeChanged, match=f"other code \\({named}\\)"):
            tiny.execute(config, root)
        assert died.is_dir() and len(list(died.parent.glob("attempt-*"))) == 1, (
            "nothing was touched"
        )
    tiny.execute(config, root)
    assert tiny.bits(root, config.key()) == uninterrupted(config)[0]


def test_16_pruned_attempts_start_again(root, monkeypatch):
    config = tiny.config("gru")
    interrupted(root, config)
    now = checkpoints.fingerprint()
    monkeypatch.setattr(checkpoints, "fingerprint", lambda: {**now, "torch": "2.0"})
    assert len(Store(root).prune(keys=[config.key()], unfinished=True)) == 1
    tiny.execute(config, root)
    assert "started, 28 steps" in log(root, config)


def test_16_another_backend_does_not_go_on(root, monkeypatch):
    config = tiny.config("gru")
    with monkeypatch.context() as compiles:
        compiles.setattr(recurrence.SequenceClassifier, "prepare", lambda *_: "fast")
        interrupted(root, config)

    def unavailable(_):
        raise compiled.Unavailable("No compiler is here.")

    monkeypatch.setattr(compiled, "graphs", unavailable)
    with pytest.warns(match="No compiler"), pytest.raises(CodeChanged, match="on the fast path"):
        tiny.execute(config, root)


def test_16_what_decodes_images_is_code():
    assert {"lib/datasets.py", "lib/folders.py"} <= checkpoints.fingerprint().keys()


def test_16_comments_are_not_code(tmp_path, monkeypatch):
    lib = tmp_path / "lib"
    tiny.copy(Path(checkpoints.__file__).parents[1], lib)
    monkeypatch.setattr(checkpoints, "__file__", str(lib / "runs" / "checkpoints.py"))
    fresh = checkpoints.fingerprint.__wrapped__
    before = fresh()
    text = (lib / "train.py").read_text()
    (lib / "train.py").write_text(
        '"""Another docstring."""\n# A comment.\n' + text.split('"""', 2)[2]
    )
    assert fresh() == before
    (lib / "train.py").write_text(text + "\nx = 1\n")
    assert {name for name, value in fresh().items() if before[name] != value} == {"lib/train.py"}


# Row 17


def test_17_results_folder_cannot_be_written(root, tmp_path):
    (tmp_path / "file").write_text("no folder")
    places = [tmp_path / "file" / "results", Path("/proc/results")]
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        places.append(tmp_path / "locked")
    for place in places:
        with pytest.raises(StoreError, match=r"The results folder .* cannot be written"):
            attempt.execute(tiny.config(), Store(place), data=tmp_path / "never read")
        with pytest.raises(StoreError, match=r"The results folder .* cannot be written"):
            sweep.load_or_run(tiny.config(), Store(place))


def test_17_results_folder_vanishes(root, tmp_path):
    config, folder = tiny.config(), tmp_path / "vanishing"
    with pytest.raises(StoreError, match="cannot be written"):
        tiny.execute(config, folder, tiny.At(5, lambda: tiny.remove(folder)))


# The command behind a child process


def test_exit_codes(root, tmp_path, capfd, monkeypatch):
    config, other = tiny.config("rnn").to_dict(), tiny.config("rnn", seed=1)

    def code(config=config, results=root):
        return attempt.run_request(attempt.Request((config,), results, backend="reference"))

    threads = torch.get_num_threads()
    try:
        assert code() == attempt.DONE == 0
        (tmp_path / "file").write_text("no folder")
        assert code(results=tmp_path / "file") == attempt.UNUSABLE == 3
        assert code({**config, "seed": -1}) == code({**config, "colour": 1}) == attempt.INVALID == 2
        large = {**config, "training": {**config["training"], "batch_size": 10_000}}
        assert code(large) == attempt.INVALID
        for broken in (lambda self: 1 / 0, lambda self: int("a word")):
            monkeypatch.setattr(train.Trainer, "train_step", broken)
            assert code(other.to_dict()) == attempt.FAILED == 1
        now = checkpoints.fingerprint()
        monkeypatch.undo()
        interrupted(root, other)
        monkeypatch.setattr(checkpoints, "fingerprint", lambda: {**now, "torch": "1.0"})
        assert code(other.to_dict()) == attempt.CHANGED == 4
    finally:
        torch.set_num_threads(threads)
    messages = capfd.readouterr().err.splitlines()
    for words in (
        "cannot be written",
        "seed is -1",
        "Unknown field 'colour'",
        "batch_size is 10000",
        "ZeroDivisionError",
        "invalid literal for int",
        "torch 2",
    ):
        assert any(words in line for line in messages), words


def test_a_user_starts_a_window_too_long(root):
    with pytest.raises(ValueError, match="input_length is 9"):
        attempt.execute(RunConfig(window=Window(9, 4)), Store(root))
