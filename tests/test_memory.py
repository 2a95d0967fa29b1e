import numpy as np
import pandas as pd
import pytest
import torch

from lib import datasets, memory, train
from lib.config import CellSpec, RunConfig, Task, Window
from lib.explore import live
from lib.runs import audit
from lib.runs.store import Store
from tests import tiny

WINDOW = Window(8, 8)  # 32 steps


@pytest.fixture(scope="module")
def data():
    return datasets.load(Task())


@pytest.fixture(scope="module")
def model():
    return train.build(RunConfig(window=WINDOW, cell=CellSpec("stp_dale_cb", 12)))


def test_all_first_steps_are_all_last_steps_are_no_delay(model, data):
    whole = [
        memory.recall(model, data, WINDOW, *what, images=200)["accuracy"].tolist()
        for what in (("first", [32]), ("last", [32]), ("delay", [0]))
    ]
    assert whole[0] == whole[1] == whole[2]
    x, labels = memory.sequences(data, WINDOW, images=200)
    assert whole[0][0] == pytest.approx((model(x).argmax(1) == labels).float().mean().item())


def test_recall_reads_the_states_of_the_truncated_sequence(model, data):
    x, labels = memory.sequences(data, WINDOW, images=200)
    for condition, part in (("first", x[:, :5]), ("last", x[:, -5:])):
        expected = (model(part).argmax(1) == labels).float().mean().item()
        frame = memory.recall(model, data, WINDOW, condition, [5], images=200)
        assert frame.set_index("readout").at["trained", "accuracy"] == pytest.approx(expected)
        assert set(frame["pixels"]) == {40}


def test_a_refitted_readout_finds_more_in_more_of_the_image(model, data):
    frame = memory.recall(model, data, WINDOW, "first", [1, 32], images=500).query(
        "readout == 'refitted'"
    )
    assert frame["accuracy"].iat[1] > frame["accuracy"].iat[0] + 0.1


@pytest.mark.parametrize(
    "condition, steps, sentence",
    [
        ("first", [0], "allows 1 to 32"),
        ("last", [33], "33"),
        ("middle", [3], "first, last or delay"),
    ],
)
def test_bad_conditions_are_named(model, data, condition, steps, sentence):
    with pytest.raises(ValueError, match=sentence):
        memory.recall(model, data, WINDOW, condition, steps, images=50)


def test_gradient_of_an_input_that_the_state_forgets_is_zero(data):
    model = train.build(RunConfig(window=WINDOW, cell=CellSpec("rnn", 12)))
    with torch.no_grad():
        model.cell.W.zero_()  # the state holds the last step alone
    norm = memory.gradient_by_lag(model, data, WINDOW, images=20)
    assert norm.shape == (32,) and norm[0] > 0 and not norm[1:].any()
    assert memory.time_constants(model, data, WINDOW, images=20) is None


def test_time_constants_are_in_pixels(model, data):
    once, twice = (
        memory.time_constants(model, data, window, images=50) for window in (Window(8, 4), WINDOW)
    )
    assert once.shape == (12,) and 1.5 < np.median(twice) / np.median(once) < 2.5


def test_span_is_halfway_from_chance():
    frame = pd.DataFrame({"pixels": [8, 16, 32, 64], "accuracy": [0.2, 0.4, 0.6, 0.9]})
    assert memory.span(frame.assign(condition="last")) == 32
    assert (
        memory.span(frame.assign(condition="delay", accuracy=frame["accuracy"].to_numpy()[::-1]))
        == 16
    )


def test_live_text_and_audit(tmp_path, capsys):
    configs, store = [tiny.config(cell) for cell in ("cb", "dale_cb")], Store(tmp_path)
    views = [live.Live() for _ in configs]
    for config, view in zip(configs, views, strict=True):
        tiny.execute(config, tmp_path, view)
    assert (
        "100% done, 1 of 1 runs finished; best validation so far: DaleCB" in capsys.readouterr().out
    )
    with live.Watch(store, configs) as watch:  # stored runs are shown at once
        assert watch.view.message.startswith(
            "100% done, 2 of 2 runs finished; best validation so far: CB"
        )
    table = audit.constraints(store, [config.key() for config in configs]).set_index(
        ["label", "weights"]
    )
    assert (
        list(table.loc["DaleCB", "sign_violations"]) == [0, 0]
        and table.loc["CB", "sign_violations"].isna().all()
    )
    assert (
        (table["K_min"] > 0).all()
        and table["saturated"].between(0, 1).all()
        and table.loc["DaleCB", "outside"].between(0, 1).all()
    )
    assert table.at[("DaleCB", "initial"), "ei_ratio"] == pytest.approx(1, rel=0.25)


def test_audit_refuses_cells_without_conductances(tmp_path):
    tiny.execute(tiny.config("gru"), tmp_path)
    with pytest.raises(ValueError, match="no conductances K"):
        audit.constraints(Store(tmp_path), [tiny.config("gru").key()])
