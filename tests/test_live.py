"""Watching training: what is said and drawn while runs train, and the button that trains them."""

import json
import time
from pathlib import Path

import pytest
import tiny

from lib import explore
from lib.explore import live
from lib.files import StoreError
from lib.runs import sweep
from lib.runs.store import Store


def test_progress_says_how_far_and_how_long():
    configs = [tiny.config("cb"), tiny.config("dale_cb")]
    progress = live.Progress(configs)
    keys = [config.key() for config in configs]
    progress.update({keys[0]: 0.0, keys[1]: 0.0})
    assert progress.lines == [
        "0% done, 0 of 2 runs finished; starting: processes begin, and a long training is compiled "
        "first"
    ]
    progress.update({keys[0]: 0.5, keys[1]: 1.0}, {keys[0]: [{"validation_accuracy": 0.4}]})
    assert progress.lines == [
        "75% done, 1 of 2 runs finished, under a minute left; best validation so far: CB 40.0%",
        "CB, seed 0: 50%",
    ]


def test_what_is_changed_in_a_cell_tells_its_runs_apart():
    configs = [tiny.config("dale_cb"), tiny.config("dale_cb", drive="z")]
    assert [row["label"] for row in live.Progress(configs).rows.values()] == [
        "DaleCB",
        "DaleCB, drive z",
    ]


def test_curves_and_bar_follow_the_runs():
    configs = [tiny.config("cb"), tiny.config("cb", seed=1)]
    view = live.Watched(configs)
    view.widgets()
    rows = [{"epoch": 0.0, "validation_accuracy": 0.1}, {"epoch": 0.5, "validation_accuracy": 0.4}]
    view.show({config.key(): 0.5 for config in configs}, {configs[0].key(): rows})
    assert view.bar.value == 0.5 and "CB 40.0%" in view.text.value
    view.show({configs[1].key(): 1.0}, {configs[1].key(): rows[:1]})
    lines, layout = json.loads(view.figure.traces), json.loads(view.figure.axes)
    assert [line["y"] for line in lines] == [[10, 40], [10]]
    assert [note["text"] for note in layout["annotations"]] == ["CB"]  # each cell is named once


def test_an_interrupt_is_one_line(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "load_or_run", interrupted)
    with pytest.raises(KeyboardInterrupt) as error:
        explore.load_or_run(tiny.config(), Store(tmp_path))
    (line,) = error.value._render_traceback_()
    assert line.startswith("Interrupted. Finished runs stay;")


def _wait(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_button_trains_what_is_missing_and_shows_it(tmp_path):
    store, config = Store(tmp_path), tiny.config("cb")
    choice = explore.WindowControls(store, config)
    view = explore.Board(store, choice)
    assert view.view is None and choice.runner.button.description == "Run 1 run"
    choice.runner.button.click()
    assert choice.runner.button.description == "Stop" and choice.runner.running
    _wait(lambda: view.view is not None)
    assert store.finished(config.key()) and choice.runner.widget.layout.display == "none"


def test_the_button_stops_what_it_started(tmp_path):
    store, config = Store(tmp_path), tiny.config("cb", epochs=900)
    choice = explore.WindowControls(store, config)
    button = choice.runner.button
    button.click()
    _wait(lambda: (store.status(config.key()) or {}).get("progress"))
    button.click()
    assert button.disabled
    _wait(lambda: not button.disabled)
    assert not store.finished(config.key()) and button.description == "Run 1 run"
    # On a busy machine a child may be killed before it has saved its state.
    assert store.status(config.key())["state"] in ("PAUSED", "INTERRUPTED")


def test_a_button_tells_what_ended_its_training(tmp_path, monkeypatch):
    def end(*_, **__):
        time.sleep(0.2)
        raise RuntimeError("No worker came.")

    def damaged(*_):
        raise StoreError("a status is damaged")

    monkeypatch.setattr(sweep, "sweep", end)
    monkeypatch.setattr(live, "_shares", damaged)
    runner = explore.WindowControls(Store(tmp_path), tiny.config("cb")).runner
    runner.button.click()
    _wait(lambda: "No worker came." in runner.text.value)
    assert runner.button.description == "Run 1 run" and not runner.button.disabled


def test_a_button_trains_what_is_missing_of_a_grid_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "{cells: cb, hidden_size: 8, epochs: 1, seeds: [0], input_length: 8, stride: 8}"
    Path("small.yaml").write_text(text)
    store = Store(tmp_path)
    button, said = explore.run_button("small.yaml", store).children
    assert button.description == "Run 1 run" and "unknown" in said.value
    button.click()
    _wait(lambda: "Nothing of small.yaml is missing" in said.value)
    assert len(store.runs(state="DONE")) == 1 and button.layout.display == "none"
