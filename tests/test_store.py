"""The store: tidy frames, states, bundles; what was published stays as it is."""

import errno
import itertools
import json
import os
import time
import zlib

import pandas as pd
import pytest
import tiny
import torch

from lib import files, train
from lib.config import CellSpec, RunConfig
from lib.files import TABLES, DiskFull, StoreError, Verified
from lib.runs import attempt, status
from lib.runs.status import CONFIGURATION, RESULTS
from lib.runs.store import Store


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with four finished runs: cb and gru, seeds 0 and 1; those of gru were trained side by
    side.
    """
    root = tmp_path_factory.mktemp("results")
    for seed in (0, 1):
        tiny.execute(tiny.config("cb", seed), root)
    tiny.execute([tiny.config("gru", 0), tiny.config("gru", 1)], root)
    return Store(root)


KEY = tiny.config("cb", 0).key()


def test_one_row_for_each_run(trained):
    runs = trained.runs()
    assert list(runs.columns) == ["key", "state", *CONFIGURATION[1:], *RESULTS]
    assert len(runs) == 4 and set(runs.state) == {"DONE"} and runs.key.is_unique
    row = runs.set_index("key").loc[KEY]
    assert (row.dataset, row.window, row.convention, row.sequence_length, row.cell, row.label) == (
        "digits",
        "8/8",
        "",
        32,
        "cb",
        "CB",
    )
    assert (row.epochs, row.seed, row.options, row.backend, row.progress) == (
        1,
        0,
        "{}",
        "reference",
        1.0,
    )
    assert 0 < row.test_accuracy < 1 and row.seconds > 0 and row.ms_per_step > 0
    assert row.parameters == sum(p.numel() for p in trained.load(KEY).parameters())


def test_filters(trained):
    assert len(trained.runs(cell="cb")) == 2
    assert list(trained.runs(cell=["cb", "gru"], seed=1).cell) == ["cb", "gru"]
    assert len(trained.runs(last_rows=None)) == 4 and trained.runs(last_rows=4).empty
    assert len(trained.runs(first_rows=None, delay=0)) == 4 and trained.runs(delay=8).empty
    assert len(trained.history(cell="cb", seed=0, variable="K", statistic="q50")) == 3
    with pytest.raises(ValueError, match="no column 'colour'"):
        trained.runs(colour="red")


def test_curves_and_history_are_what_training_reported(trained):
    outcome = train.fit(tiny.config("cb"), backend="reference")[0]
    curves, history = trained.curves(key=KEY), trained.history(key=KEY)
    expected = pd.DataFrame(outcome.curves)
    pd.testing.assert_frame_equal(
        curves[list(TABLES["curves"].names)], expected[list(TABLES["curves"].names)]
    )
    pd.testing.assert_frame_equal(
        history[list(TABLES["history"].names)],
        pd.DataFrame(outcome.history),
        check_dtype=False,
    )
    assert list(curves.columns) == [
        "key",
        "state",
        *CONFIGURATION[1:],
        *TABLES["curves"].names,
    ]
    assert len(trained.curves()) == 12


def test_load_gives_the_weights_that_made_the_predictions(trained):
    data, config = train.datasets.load(tiny.config().task), tiny.config()
    assert trained.config(KEY) == config
    images, labels = data.batch("test", torch.arange(len(data.labels["test"])))
    logits = trained.load(KEY)(train.windows.to_sequence(images, 8, 8))
    predictions = trained.predictions(KEY)
    assert (predictions.prediction.to_numpy() == logits.argmax(1).numpy()).all() and (
        predictions.label.to_numpy() == labels.numpy()
    ).all()
    row = trained.runs(key=KEY).iloc[0]
    assert row.test_accuracy == pytest.approx((predictions.label == predictions.prediction).mean())
    initial = train.build(config).state_dict()
    assert all(
        torch.equal(value, initial[name])
        for name, value in trained.load(KEY, "initial").state_dict().items()
    )
    with pytest.raises(ValueError, match="no 'middle' weights"):
        trained.load(KEY, "middle")


def test_unknown_key_and_empty_store(tmp_path, trained):
    empty = Store(tmp_path / "nothing")
    assert (
        empty.runs().empty
        and empty.curves().empty
        and empty.history(cell="cb").empty
        and empty.prune() == []
    )
    for read in (
        empty.load,
        empty.config,
        empty.predictions,
        lambda key: empty.pack([key], "bundle"),
    ):
        with pytest.raises(ValueError, match="No run has the key"):
            read("0123456789abcdef")
    assert empty.status("0123456789abcdef") is None


def test_a_changed_file_is_noticed(trained, tmp_path):
    tiny.copy(trained.root, tmp_path)
    store = Store(tmp_path)
    for name in ("best.safetensors", "curves.parquet", "status.json"):
        path = store.folder(KEY) / "result" / name
        good = path.read_bytes()
        path.write_bytes(good[:50] + bytes([good[50] ^ 1]) + good[51:])
        assert Verified(path.parent).damaged() == [name]
        with pytest.raises(StoreError, match=f"{name} does not match its manifest"):
            store.load(KEY)
        path.write_bytes(good)
    assert not Verified(path.parent).damaged() and len(store.curves()) == 12


def test_bundle_reads_like_live_runs(trained, tmp_path):
    tiny.copy(trained.root, tmp_path)
    store, keys = Store(tmp_path), list(trained.runs().key)
    first = tiny.contents(store.pack(keys, "digits", weights=[KEY]))
    assert tiny.contents(store.pack(keys[::-1], "digits", weights=[KEY])) == first, (
        "the same runs give the same bytes"
    )
    assert sum(map(len, first.values())) < 100_000
    assert not any(
        word in text
        for text in first.values()
        for word in (b"/tmp", b"/home", b'"host"', b'"pid"', str(tmp_path).encode())
    )
    live = {name: getattr(store, name)() for name in ("runs", "curves", "history")}
    predictions, weights = store.predictions(KEY), store.load(KEY).state_dict()
    tiny.remove(tmp_path / "runs")
    packed = Store(tmp_path)
    for name, frame in live.items():
        pd.testing.assert_frame_equal(getattr(packed, name)(), frame)
    pd.testing.assert_frame_equal(packed.predictions(KEY), predictions, rtol=0, atol=0.0006)
    assert all(
        torch.equal(value, weights[name]) for name, value in packed.load(KEY).state_dict().items()
    )
    assert packed.config(KEY) == tiny.config() and packed.finished(KEY)
    with pytest.raises(ValueError, match="holds no 'best' weights here"):
        packed.load(next(key for key in keys if key != KEY))
    again = tiny.contents(packed.pack(keys, "copy", weights=[KEY]))
    assert again == first, "a bundle can be packed again"
    smaller = packed.pack(keys[:1], "digits")
    assert not list(smaller.rglob("*.safetensors")) and len(Store(smaller).runs()) == 1
    with pytest.raises(ValueError, match=f"would be lost: {', '.join(sorted(keys[1:]))};"):
        packed.pack(keys[:1], "copy")


def test_a_bundle_is_packed_where_it_is_read_and_hides_no_other(trained, tmp_path):
    tiny.copy(trained.root, tmp_path)
    store = Store(tmp_path)
    store.pack([KEY], "outer/digits")
    for folder in (".", "outer", "outer/digits/new", "runs/new"):
        with pytest.raises(ValueError, match="neither in another bundle nor around one"):
            store.pack([KEY], folder)
    assert store.pack([KEY], "outer/digits")


def test_a_live_run_wins_over_its_bundle(trained, tmp_path):
    tiny.copy(trained.root, tmp_path)
    store = Store(tmp_path)
    bundle = store.pack([KEY], "digits")
    entries = json.loads((bundle / "runs.json").read_text())
    entries[0]["status"]["test_accuracy"] = 0.123
    (bundle / "runs.json").write_text(json.dumps(entries))
    manifest = json.loads((bundle / "BUNDLE.json").read_text())
    manifest["files"]["runs.json"] = files.digest((bundle / "runs.json").read_bytes())
    (bundle / "BUNDLE.json").write_text(json.dumps(manifest))
    assert (
        Store(tmp_path).runs(key=KEY).test_accuracy.item()
        == trained.runs(key=KEY).test_accuracy.item()
    )
    tiny.remove(tmp_path / "runs")
    assert Store(tmp_path).runs(key=KEY).test_accuracy.item() == 0.123


def test_of_two_bundles_the_first_one_wins_everywhere(tmp_path):
    key, accuracies = tiny.config().key(), {"first": 0.25, "second": 0.75}
    for name, accuracy in accuracies.items():
        tiny.finished(tmp_path / name, tiny.config(), validations=int(4 * accuracy))
        path = tmp_path / name / "runs" / key / "result"
        row = files.read_json(path / "status.json") | {"test_accuracy": accuracy}
        files.write(path / "status.json", files.to_json(row))
        sums = Verified(path).sums | {"status.json": files.digest(files.to_json(row))}
        files.write(path / "MANIFEST.json", files.to_json({"files": sums}))
        Store(tmp_path / name).pack([key], tmp_path / "results" / name)
    store = Store(tmp_path / "results")
    assert store.runs().test_accuracy.item() == 0.25 and len(store.curves()) == 2


def test_a_bundle_that_is_still_written_is_not_read(trained, tmp_path):
    trained.pack([KEY], tmp_path / ".new-left-by-a-kill")
    assert Store(tmp_path).runs().empty


def test_attempts_left_beside_a_packed_run_are_not_the_run(trained, tmp_path):
    trained.pack([KEY], tmp_path / "digits")
    store, left = Store(tmp_path), attempt.Attempt(Store(tmp_path).folder(KEY), tiny.config())
    left.metrics(tiny.outcome(tiny.config()).curves, [])
    left.note(state="PAUSED")
    recording = files.made(store.folder(KEY) / "traces") / "some.safetensors"
    recording.write_bytes(b"x")
    for name in ("curves", "history"):
        pd.testing.assert_frame_equal(
            getattr(store, name)(key=KEY), getattr(trained, name)(key=KEY)
        )
    assert store.prune(unfinished=True) == [left.folder] and recording.exists()


def test_bundles_are_looked_for_once(tmp_path, monkeypatch):
    keys = list(tiny.many(tmp_path, 3, validations=1).runs()["key"])
    Store(tmp_path).pack(keys, "digits")
    tiny.remove(tmp_path / "runs")
    walks, walk = [], os.walk
    monkeypatch.setattr(os, "walk", lambda root: walks.append(root) or walk(root))
    store = Store(tmp_path)
    assert len(store.runs()) == 3 and len(store.curves()) == 6
    assert all(store.finished(key) and store.config(key) for key in keys) and len(walks) == 1
    store.reload()
    assert store.finished(keys[0]) and len(walks) == 2


def test_files_are_replaced_together_or_not_at_all(tmp_path):
    manifest = files.to_json({"files": {"stale": "", "kept": ""}})
    for name, data in (
        ("stale", b"1"),
        ("kept", b"1"),
        ("other", b"1"),
        ("MANIFEST.json", manifest),
    ):
        (tmp_path / name).write_bytes(data)
    before = tiny.contents(tmp_path)
    with pytest.raises(DiskFull, match="is full"), files.staged(tmp_path) as folder:
        (folder / "kept").write_bytes(b"2")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            zlib.decompress(b"")  # as what writes a PDF fails once more while it closes the file
    assert tiny.contents(tmp_path) == before
    with files.staged(tmp_path) as folder:
        (folder / "kept").write_bytes(b"2")
        (folder / "MANIFEST.json").write_bytes(files.to_json({"files": {"kept": ""}}))
    after = tiny.contents(tmp_path)
    assert set(after) == {"kept", "other", "MANIFEST.json"} and after["kept"] == b"2"
    with (
        pytest.raises(StoreError, match="cannot be written"),
        files.staged(tmp_path / "kept" / "x"),
    ):
        pass


@pytest.mark.parametrize("fails", range(6))
def test_files_come_back_when_one_of_them_cannot_be_replaced(fails, tmp_path, monkeypatch):
    for name in ("a", "b", "stale"):
        (tmp_path / name).write_bytes(b"1")
    manifest = files.to_json({"files": dict.fromkeys(("a", "b", "stale"), "")})
    (tmp_path / "MANIFEST.json").write_bytes(manifest)
    before, real, count = tiny.contents(tmp_path), os.replace, itertools.count()

    def replace(source, target):
        if next(count) == fails:
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    with pytest.raises(StoreError, match="cannot be written"), files.staged(tmp_path) as folder:
        for name in ("a", "b", "c"):
            (folder / name).write_bytes(b"2")
        (folder / "MANIFEST.json").write_bytes(files.to_json({"files": {"a": "", "b": ""}}))
        monkeypatch.setattr(os, "replace", replace)
    assert tiny.contents(tmp_path) == before


def test_only_what_the_folder_refuses_is_said_of_it(tmp_path):
    with pytest.raises(FileNotFoundError), files.explained(tmp_path / "results"):
        (tmp_path / "font.ttf").read_bytes()
    with pytest.raises(KeyError), files.explained(tmp_path):
        try:
            (tmp_path / "absent").read_bytes()
        except OSError:
            {}["absent"]
    with pytest.raises(StoreError, match="cannot be written"), files.explained(tmp_path):
        raise OSError(errno.EIO, "Input/output error")  # as fsync says it, which names no file


def test_a_run_needs_no_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tiny.execute(tiny.config("rnn"), tmp_path) == ["DONE"]
    made = Store(tmp_path).environment(tiny.config("rnn").key())
    assert made["commit"] is None and "processor" in made and made["fingerprint"]


def test_only_finished_runs_are_packed(trained):
    attempt.Attempt(trained.folder(tiny.config("rnn").key()), tiny.config("rnn"))
    with pytest.raises(ValueError, match="not finished"):
        trained.pack([tiny.config("rnn").key()], "digits")
    assert (
        trained.prune(unfinished=True) == []
        and trained.status(tiny.config("rnn").key())["state"] == "RUNNING"
    )  # it lives: this process
    tiny.remove(trained.folder(tiny.config("rnn").key()))


def test_states(tmp_path):
    store, config = Store(tmp_path), tiny.config()

    def state():
        row = store.runs(key=config.key()).iloc[0]
        return row.state, row.message

    status.mark(store.folder(config.key()), config, "QUEUED")
    assert state()[0] == "QUEUED" and store.config(config.key()) == config
    first = attempt.Attempt(store.folder(config.key()), config)
    assert state()[0] == "RUNNING"
    status.mark(store.folder(config.key()), config, "QUEUED")
    assert state()[0] == "RUNNING", "another sweep's queue does not hide a running attempt"
    first.note(progress=0.5)
    assert store.runs().progress.item() == 0.5
    first.note(pid=2**22 + 1)  # no such process on this host
    store.folder(config.key()).joinpath("status.json").unlink()
    assert state()[0] == "INTERRUPTED"
    first.note(pid=1, host="elsewhere")
    assert state()[0] == "RUNNING"
    path = first.folder / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"heartbeat": time.time() - 61}))
    assert state()[0] == "INTERRUPTED", "no heartbeat for a minute"
    first.note(state="PAUSED", message="Stopped.")
    assert state() == ("PAUSED", "Stopped.")
    status.mark(store.folder(config.key()), config, "CANCELLED", "by hand")
    assert state() == ("CANCELLED", "by hand")
    second = attempt.Attempt(store.folder(config.key()), config)
    assert state()[0] == "RUNNING"
    for one in (first, second):
        one.note(state="FAILED", message="ValueError: no")
    assert state() == ("FAILED", "2 failed attempts; the last: ValueError: no")
    path.write_text("")  # a power failure
    assert state() == ("FAILED", "ValueError: no")
    assert len(store.prune()) == 0 and len(store.prune(unfinished=True)) == 2 and store.runs().empty


def test_prune_leaves_results(trained, tmp_path):
    tiny.copy(trained.root, tmp_path)
    store = Store(tmp_path)
    before = tiny.contents(tmp_path)
    left = attempt.Attempt(store.folder(KEY), tiny.config())
    left.note(state="CANCELLED")
    (left.folder / ".status.json.abc.tmp").write_bytes(b"x")
    assert store.prune(keys=["other"]) == [] and store.prune() == [left.folder]
    assert tiny.contents(tmp_path) == before


def test_prune_leaves_what_only_waits_to_be_published(tmp_path):
    store, config = Store(tmp_path), tiny.config()
    complete = attempt.Attempt(store.folder(config.key()), config)
    complete.finish(tiny.outcome(config))
    assert store.prune(unfinished=True) == [] and attempt.adopt(store.folder(config.key()))


def test_running_curves_are_readable(tmp_path):
    store, seen = Store(tmp_path), []

    def look():
        seen.append(
            (
                store.runs().state.item(),
                len(store.curves()),
                len(store.curves(state="RUNNING")),
                store.runs().progress.item(),
            )
        )

    tiny.execute(tiny.config(), tmp_path, tiny.At(20, look))
    assert seen == [("RUNNING", 0, 2, 0.5)]
    assert len(store.curves()) == 3


def test_execute_reuses_results(trained, tmp_path):
    tiny.copy(trained.root, tmp_path)
    before = tiny.contents(tmp_path)
    assert tiny.execute([tiny.config("cb", seed) for seed in (0, 1)], tmp_path) == ["DONE", "DONE"]
    assert tiny.contents(tmp_path) == before


def test_the_name_of_a_users_cell_is_not_enough(trained):
    text = "@register\nclass Mine(CB):\n    name, label = 'mine', 'Mine'\n"
    one, other = (
        RunConfig(cell=CellSpec("mine", 6, source=source))
        for source in (text, text + "# changed\n")
    )
    train.check(one)
    assert (
        status.describe(one)["source"] != status.describe(other)["source"]
        and status.describe(tiny.config())["source"] == ""
    )


def test_a_thousand_runs_are_read_without_an_index(tmp_path):
    """How fast is for the benchmark to say; here that a thousand runs come back whole."""
    tiny.many(tmp_path, 1000)
    store = Store(tmp_path)
    runs, curves = store.runs(), store.curves()
    assert len(runs) == 1000 and len(curves) == 41_000 and curves.key.nunique() == 1000


@pytest.mark.parametrize("name", ["curves.parquet", "status.json", "MANIFEST.json", "config.json"])
def test_a_damaged_run_is_named_and_the_others_are_read(trained, tmp_path, name):
    tiny.copy(trained.root, tmp_path)
    store = Store(tmp_path)
    for damage in (
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(b"[]"),
        lambda path: path.unlink(),
    ):
        damage(store.folder(KEY) / "result" / name)
        runs = store.runs().set_index("key")
        if name == "config.json":  # frames do not read it
            assert set(runs.state) == {"DONE"}
            assert Verified(store.folder(KEY) / "result").damaged() == [name]
            continue
        assert (
            runs.state[KEY] == "DAMAGED"
            and KEY in runs.message[KEY]
            and runs.cell[KEY] == "cb"
            and len(runs) == 4
        )
        assert set(runs.state.drop(KEY)) == {"DONE"} and pd.api.types.is_integer_dtype(runs.seed)
        assert len(store.curves()) == len(
            store.curves(state=["DONE", "DAMAGED"])
        ) == 9 and KEY not in set(store.history().key)
        for read in (store.load, store.predictions, store.status, store.environment):
            with pytest.raises(StoreError, match=f"{KEY}.*; move .* away and run again"):
                read(KEY)
        assert store.load(tiny.config("cb", 1).key())


def test_a_damaged_bundle_is_named_and_the_others_are_read(trained, tmp_path):
    tiny.copy(trained.root, tmp_path)
    keys, live = list(trained.runs().key), tiny.config("gru", 1).key()
    for name in ("runs.json", "curves.parquet", "BUNDLE.json"):
        Store(tmp_path).pack([key for key in trained.runs().key if key != live], "digits")
        for key in keys:
            if key != live and Store(tmp_path).folder(key).exists():
                tiny.remove(Store(tmp_path).folder(key))
        good = (tmp_path / "digits" / name).read_bytes()
        (tmp_path / "digits" / name).write_bytes(good[:-20])
        store = Store(tmp_path)
        runs = store.runs().set_index("key")
        assert (
            dict(runs.state) == {live: "DONE", "digits": "DAMAGED"}
            and "digits" in runs.message["digits"]
        )
        assert set(store.curves().key) == {live} and store.load(live)
        for read in (lambda store=store: store.load(KEY), lambda store=store: store.finished(KEY)):
            with pytest.raises(StoreError, match="digits"):
                read()
        (tmp_path / "digits" / name).write_bytes(good)
    assert (
        len(Store(tmp_path / "digits").runs()) == 3
        and len(Store(tmp_path / "digits").curves(cell="cb")) == 6
    ), "a bundle is a store"
