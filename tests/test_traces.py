"""Recordings: what they hold, what they refuse, how they are stored."""

import shutil

import numpy as np
import pytest
import tiny
import torch

from lib import datasets, train, windows
from lib.config import Task
from lib.files import StoreError
from lib.runs import attempt, traces
from lib.runs.store import Store

CONFIG = tiny.config("stp_dale_cb")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("results"))
    attempt.execute(CONFIG, store, backend="reference")
    return store


def test_a_recording_is_what_the_model_does(store):
    trace = traces.record(CONFIG.key(), range(50), store=store, dtype="float32", log=None)
    data, model = datasets.load(Task()), store.load(CONFIG.key())
    images, labels = data.batch("test", range(50))
    logits, expected = model(windows.to_sequence(images, 8, 8), record=True)
    for name in trace.variables:
        torch.testing.assert_close(torch.tensor(trace[name]), expected[name])
    assert (trace.labels == labels.numpy()).all() and (
        trace.predictions == logits.argmax(1).numpy()
    ).all()
    assert (trace.predictions == store.predictions(CONFIG.key())["prediction"][:50]).all()
    assert trace.rows.tolist() == [0, 0, *np.repeat(range(1, 16), 2)] and trace.pixels[
        :3
    ].tolist() == [0, 8, 16]
    assert trace.image(7)["z"].shape == (32, 6)


def test_a_subset_is_a_part_of_the_whole(store):
    whole = traces.record(CONFIG.key(), range(10), store=store, dtype="float32", log=None)
    part = traces.record(
        CONFIG.key(), [8, 3], ("z", "U"), [5, 0], store=store, dtype="float32", log=None
    )
    np.testing.assert_allclose(part["z"], whole["z"][[8, 3]][:, :, [5, 0]], rtol=1e-5)
    assert (
        part.images.tolist() == [8, 3]
        and part.units.tolist() == [5, 0]
        and part.variables == ("z", "U")
    )
    with pytest.raises(ValueError, match="not recorded"):
        part["v"]


def test_size_is_said_before_and_is_what_the_file_takes(store):
    said = []
    trace = traces.record(CONFIG.key(), range(40), store=store, log=said.append)
    expected = 40 * 32 * 6 * 5 * 2
    assert (
        traces.size(CONFIG, 40) == expected == sum(trace[name].nbytes for name in trace.variables)
    )
    assert said and expected <= trace.source.stat().st_size < expected + 20_000


def test_above_the_bound_it_refuses_and_offers_what_fits(store):
    with pytest.raises(ValueError, match=r"images=range\((\d+)\) would fit") as refusal:
        traces.record(CONFIG.key(), range(40), store=store, limit=10_000, log=None)
    count = int(str(refusal.value).split("range(")[1].split(")")[0])
    assert traces.size(CONFIG, count) <= 10_000 < traces.size(CONFIG, count + 1)
    traces.record(CONFIG.key(), range(count), store=store, limit=10_000, keep=False, log=None)


def test_stored_recordings_are_read_again_not_made_again(store, monkeypatch):
    first = traces.record(CONFIG.key(), range(4), store=store, log=None)
    monkeypatch.setattr(traces, "_arrays", lambda *_: pytest.fail("recorded twice"))
    again = traces.record(CONFIG.key(), range(4), store=store, log=None)
    assert again.source == first.source and (again["X"] == first["X"]).all()
    before = len(traces.stored(CONFIG.key(), store))
    with pytest.raises(BaseException, match="recorded twice"):
        traces.record(CONFIG.key(), range(4), store=store, which="initial", log=None)
    assert len(traces.stored(CONFIG.key(), store)) == before


def test_recordings_travel_with_the_weights_of_a_bundle(store, tmp_path, monkeypatch):
    made, keys = traces.record(CONFIG.key(), range(3), store=store, log=None), [CONFIG.key()]
    shutil.copytree(store.pack(keys, "bundle", weights=keys), tmp_path / "bundle")
    shutil.rmtree(store.root / "bundle")
    packed = Store(tmp_path)
    assert [path.name for path in packed.recordings(keys[0])] == [
        path.name for path in store.recordings(keys[0])
    ]
    monkeypatch.setattr(traces, "_arrays", lambda *_: pytest.fail("recorded twice"))
    again = traces.record(keys[0], range(3), store=packed, log=None)
    assert again.source.is_relative_to(tmp_path / "bundle") and (again["z"] == made["z"]).all()
    again.source.write_bytes(again.source.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match=again.source.name):
        traces.stored(keys[0], packed)


def test_a_damaged_recording_is_named(store):
    trace = traces.record(CONFIG.key(), [1], store=store, log=None)
    trace.source.write_bytes(trace.source.read_bytes()[:100])
    with pytest.raises(StoreError, match=trace.source.name):
        traces.record(CONFIG.key(), [1], store=store, log=None)
    trace.source.unlink()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"images": [10_000]}, "images range"),
        ({"variables": ["q"]}, "no variable 'q'"),
        ({"units": [6]}, "units from 0 to 5"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"images": []}, "at least one image"),
    ],
)
def test_bad_requests_are_refused_with_one_sentence(store, changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        traces.record(CONFIG.key(), **{"images": [0], "store": store, "log": None, **changed})


def test_values_beyond_float16_are_refused():
    model = train.build(CONFIG)
    with torch.no_grad():
        model.cell.b.fill_(1e7)
    with pytest.raises(ValueError, match="record it as float32"):
        traces.record(model, [0], ("v",), config=CONFIG, log=None)
    assert (
        traces.record(model, [0], ("v",), config=CONFIG, dtype="float32", log=None)["v"].max()
        > 70_000
    )


def test_recording_over_training_starts_and_ends_with_the_kept_weights(tmp_path):
    store, said = Store(tmp_path), []
    configs = [CONFIG, CONFIG.with_seed(1)]
    recorder = traces.TraceRecorder(range(3), ("z",), store=store, dtype="float32", log=said.append)
    attempt.execute(configs, store, backend="reference", callbacks=[recorder])
    for config in configs:
        kept = traces.stored(config.key(), store)
        assert [trace.about["step"] for trace in kept] == [0, 14, 28]
        for trace, which in ((kept[0], "initial"), (kept[-1], "final")):
            expected = traces.record(
                config, range(3), ("z",), store=store, which=which, dtype="float32", log=None
            )
            np.testing.assert_allclose(trace["z"], expected["z"], rtol=1e-4, atol=1e-6)
    assert said == ["Recording 3 images: 0.0 MB."]
    with pytest.raises(ValueError, match="above the limit"):
        train.fit(
            CONFIG,
            callbacks=[traces.TraceRecorder(range(3), store=store, limit=100, log=None)],
        )
