"""Explorers: every control is set, and the figure's data are compared with what the store holds."""

import json
import time

import frames
import numpy as np
import pandas as pd
import pytest

from lib.config import CellSpec, RunConfig, Training, Window
from lib.explore import controls, explorer
from lib.figures import plots
from lib.runs import run
from lib.runs.store import Store


def _config(cell, seed=0, window=(8, 8)):
    return RunConfig(
        window=Window(*window), cell=CellSpec(cell, 6), training=Training(epochs=1), seed=seed
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """CB and STPDaleCB with two seeds at 8/8, CB at 8/4."""
    store = Store(tmp_path_factory.mktemp("results"))
    for config in [
        *(_config(cell, seed) for cell in ("cb", "stp_dale_cb") for seed in (0, 1)),
        _config("cb", window=(8, 4)),
    ]:
        run.execute(config, store, backend="reference")
    return store


@pytest.fixture
def synthetic(monkeypatch, tmp_path):
    """300 runs that no file holds: ten cells, five windows, six seeds."""
    runs = frames.runs(frames.TEN, seeds=range(6))
    curves = frames.curves(runs)
    reads = []

    def read(frame):
        def method(self, **filters):
            reads.append(filters)
            for name, value in filters.items():
                if name in frame:
                    frame_ = frame[frame[name] == value]
                    return frame_.copy()
            return frame.copy()

        return method

    monkeypatch.setattr(Store, "runs", read(runs))
    monkeypatch.setattr(Store, "curves", read(curves))
    return Store(tmp_path), runs, curves, reads


def shown(view):
    return [trace for trace in view.figure.data if trace.visible]


def test_curves_show_the_numbers_of_the_store(store):
    view = explorer.CurveExplorer(store, stride=8)
    table = plots.summary(
        plots.grouped(store.curves(window="8/8")), "validation_accuracy", ("group", "epoch")
    )
    means = {trace.name: trace for trace in shown(view) if trace.showlegend}
    assert set(means) == {"CB", "STPDaleCB"}
    for name, trace in means.items():
        np.testing.assert_allclose(trace.y, table[table["group"] == name]["mean"])
    hover = np.concatenate(
        [
            trace.customdata
            for trace in shown(view)
            if trace.mode == "lines" and not trace.showlegend and trace.hovertemplate
        ]
    )
    assert set(hover[:, 1]) == set(store.runs(window="8/8")["key"]) and set(hover[:, 2]) == {
        0,
        14,
        28,
    }
    view.controls["cells"].value = ("CB",)
    assert {trace.name for trace in shown(view) if trace.showlegend} == {"CB"}
    view.controls["metric"].value = "train_loss"
    assert np.nanmax(next(trace for trace in shown(view) if trace.showlegend).y) > 1
    view.controls["cells"].boxes[0].value = False
    assert "No cell is chosen" in view.message.value and not shown(view)


@pytest.mark.parametrize("kind", [explorer.CurveExplorer, explorer.BarExplorer])
def test_a_view_does_not_depend_on_those_before_it(store, kind):
    view = kind(store, stride=8)
    for name, value in (
        ("cells", ("CB",)),
        ("metric", view.controls["metric"].options[1][1]),
        ("highlight", "with STP"),
    ) * 2:
        before = view.controls[name].value
        for state in (value, before):
            view.controls[name].value = state
            fresh = kind(store, **{name: control.value for name, control in view.controls.items()})
            kept = [
                [
                    (trace.name, trace.x, trace.y, trace.line, trace.hovertemplate)
                    for trace in shown(one)
                    if trace.type == "scatter"
                ]
                for one in (view, fresh)
            ]
            np.testing.assert_equal(kept[0], kept[1])
            assert [trace.marker for trace in shown(view)] == [
                trace.marker for trace in shown(fresh)
            ]


def test_a_highlight_greys_the_others(store):
    view = explorer.CurveExplorer(store, stride=8, highlight="with STP")
    colours = {trace.name: trace.line.color for trace in shown(view) if trace.showlegend}
    assert colours["CB"] == "#D5D8DC" != colours["STPDaleCB"]


def test_bars_dots_and_differences(store):
    view, runs = explorer.BarExplorer(store, stride=8, baseline="CB"), store.runs(window="8/8")
    means = 100 * runs.groupby("label")["test_accuracy"].mean()
    bar = next(trace for trace in shown(view) if trace.type == "bar")
    np.testing.assert_allclose(bar.x, means[list(bar.y)])
    seeds = view.figure.data[2]
    assert sorted(seeds.x) == pytest.approx(sorted(100 * runs["test_accuracy"])) and set(
        seeds.customdata[:, 1]
    ) == set(runs["key"])
    view.controls["view"].value = "sorted dots"
    assert list(view.figure.data[1].x) == sorted(means, reverse=True)
    view.controls["view"].value = "paired differences"
    assert (
        view.figure.data[1].x == pytest.approx([means["STPDaleCB"] - means["CB"]], abs=1e-6)
        and len(view.figure.data[0].x) == 0
    )


def test_a_window_that_was_never_run_says_so_and_shows_nothing(store):
    for make in (explorer.CurveExplorer, explorer.BarExplorer, explorer.TraceExplorer):
        view = make(store, stride=8)
        assert shown(view)
        view.controls["input_length"].value = 4
        assert (
            "not run" in view.message.value
            and "under a minute" in view.message.value
            and not shown(view)
        )
        assert view.figure.layout.annotations[0].text == "not run" and view.frame is None
        with pytest.raises(ValueError, match="nothing to draw"):
            view.export()
        view.set(input_length=8, stride="half")
        assert shown(view) and not view.figure.layout.annotations


def test_an_empty_store_says_how_to_fill_it(tmp_path):
    for make in (explorer.CurveExplorer, explorer.BarExplorer, explorer.TraceExplorer):
        view = make(Store(tmp_path))
        assert "load_or_run" in view.message.value and not shown(view)


@pytest.mark.parametrize("name", ["curves.parquet", "status.json", "MANIFEST.json"])
def test_a_damaged_run_is_named_and_the_others_are_shown(store, tmp_path, name):
    import shutil

    shutil.copytree(store.root, tmp_path / "copy")
    broken, key = Store(tmp_path / "copy"), _config("cb", 1).key()
    path = broken.folder(key) / "result" / name
    path.write_bytes(path.read_bytes()[:-20])
    view = explorer.CurveExplorer(broken, stride=8)
    assert key in view.message.value and shown(view)
    view = explorer.TraceExplorer(broken, stride=8)
    assert shown(view)


def test_damaged_weights_are_named_in_place(store, tmp_path):
    import shutil

    shutil.copytree(store.root, tmp_path / "copy")
    broken, key = Store(tmp_path / "copy"), _config("cb").key()
    (broken.folder(key) / "result" / "best.safetensors").write_bytes(b"")
    view = explorer.TraceExplorer(broken, stride=8)
    assert key in view.message.value and "damaged" in view.message.value and not shown(view)
    view.controls["view"].value = explorer.TraceExplorer.VIEWS[1]
    assert shown(view)


def test_state_as_code_makes_the_same_view(store):
    for view in (
        explorer.CurveExplorer(
            store, stride=8, metric="train_loss", highlight="with STP", cells=("CB",)
        ),
        explorer.BarExplorer(store, stride=8, view="paired differences", baseline="CB"),
        explorer.TraceExplorer(
            store,
            stride=8,
            cell="STPDaleCB",
            variable="UX",
            show="quantiles",
            units=(1, 4),
            time=(3, 20),
            step=5,
        ),
        explorer.SequenceExplorer(image=4, scan="snake", stride="half", step=7),
    ):
        again = eval(view.state(), {"explorer": explorer, "store": store})
        assert again.state() == view.state() and again.message.value == view.message.value
        pd.testing.assert_frame_equal(again.frame, view.frame)


def test_what_cannot_be_set_is_refused_with_one_sentence(store):
    with pytest.raises(ValueError, match="no control 'colour'"):
        explorer.CurveExplorer(store, colour="red")
    with pytest.raises(ValueError, match=r"metric is 'luck', .*validation_accuracy"):
        explorer.CurveExplorer(store, metric="luck")


def test_every_choice_of_a_trace_is_drawn_and_exported(store, tmp_path):
    view = explorer.TraceExplorer(store, stride=8, cell="STPDaleCB", images=12)
    trace = view.trace
    assert [name for _, name in view.controls["variable"].options] == [
        "z",
        "r",
        "v",
        "X",
        "U",
        "UX",
        "tau",
    ]
    for show in view.SHOWS:
        for variable in ("z", "tau", "UX"):
            view.set(show=show, variable=variable)
            assert shown(view) and view.frame["step"].tolist() == list(range(32)), (show, variable)
    view.set(show="heat map", variable="z", time=(4, 9))
    heat = view.figure.data[1]
    order = np.argsort(trace["z"][0].astype(np.float32).mean(0), kind="stable")
    np.testing.assert_allclose(heat.z, trace["z"][0][4:10, order].T.astype(np.float32))
    assert (heat.zmin, heat.zmax) == (0, 0.1) and heat.customdata[0][0].tolist() == [
        2,
        order[0] + 1,
    ]
    for path in view.export(tmp_path):
        assert path.stat().st_size > 200
    view.set(show="before and after training", variable="tau", time=(0, 31))
    assert {trace.name for trace in shown(view)} >= {"before", "after"}
    right = view.figure.layout.shapes
    view.controls["step"].value = 11
    assert view.figure.layout.shapes != right and view.figure.layout.shapes[0].y0 == 4.5
    view.set(view=view.VIEWS[1], variable="tau_x")
    history = store.history(key=view.key, variable="tau_x", statistic="q50")
    np.testing.assert_allclose(shown(view)[-1].y, history["value"])
    assert view.controls["show"].disabled and view.export(tmp_path)


def test_the_sequence_shows_the_window(tmp_path):
    view = explorer.SequenceExplorer(image=2)
    assert view.figure.data[1].z.shape == (8, 63)
    view.set(input_length=4, stride="half", step=9)
    assert view.figure.data[1].z.shape == (4, 127) and view.controls["step"].max == 126
    box = view.figure.layout.shapes[0]
    assert (box.x0, box.x1, box.y0, box.y1) == (
        1.5,
        5.5,
        0.5,
        1.5,
    )  # pixels 18 to 21: row 1, columns 2 to 5
    view.controls["step"].value = 7  # pixels 14 to 17 lie in two rows
    assert len(view.figure.layout.shapes) == 3
    assert all(path.stat().st_size > 200 for path in view.export(tmp_path))


def test_window_controls_give_the_configurations_of_a_notebook(store):
    choice = controls.WindowControls(store, [_config("cb"), _config("gru")])
    assert choice.window == Window(8, 8) and [config.cell.name for config in choice.configs] == [
        "cb",
        "gru",
    ]
    assert "1 not run" in choice.message.value and "(gru)" in choice.message.value
    choice.controls["stride"].value = "half"
    assert {config.window for config in choice.configs} == {Window(8, 4)}
    view = explorer.CurveExplorer(store, choice)
    assert view.window is choice and shown(view)
    choice.controls["input_length"].value = 4
    assert not shown(view)


def test_many_variants_are_offered_but_the_cells_as_they_are_are_shown(monkeypatch, tmp_path):
    variants = [
        frames.runs(["cb"], ["8/4"], options=json.dumps({"dt": value / 10}))
        for value in range(3, 10)
    ]
    runs = pd.concat([frames.runs(frames.TEN, ["4/4", "8/4"]), *variants], ignore_index=True)
    monkeypatch.setattr(Store, "runs", lambda self, **_: runs.copy())
    monkeypatch.setattr(Store, "curves", lambda self, **_: frames.curves(runs))
    for make in (explorer.CurveExplorer, explorer.BarExplorer):
        cells = make(Store(tmp_path)).controls["cells"]
        assert (
            len(cells.options) == 17
            and len(cells.value) == 10
            and not any("dt" in name for name in cells.value)
        )
        assert (
            len(cells.children) == 2
            and cells.children[1].titles == ("7 variants",)
            and cells.children[1].selected_index is None
        )
        cells.value = (*cells.value, "CB, dt 0.3")
        assert "CB, dt 0.3" in cells.value


def test_the_seed_of_a_scan_is_not_among_those_that_compare(monkeypatch, tmp_path):
    runs = pd.concat([frames.runs(["cb"], ["4/4", "8/4"]), frames.scan()], ignore_index=True)
    monkeypatch.setattr(Store, "runs", lambda self, **_: runs.copy())
    monkeypatch.setattr(Store, "curves", lambda self, **_: frames.curves(runs))
    view = explorer.BarExplorer(Store(tmp_path))
    own = view.frame[(view.frame["cell"] == "cb") & (view.frame["group"] == "CB")]
    assert sorted(own["seed"]) == [0, 1, 2] and 100 in set(view.window.frames.done["seed"])


def test_300_runs_change_without_reading_and_in_place(synthetic):
    store, runs, _, reads = synthetic
    assert len(runs) == 300
    for view in (explorer.CurveExplorer(store), explorer.BarExplorer(store)):
        held, count = view.figure.data, len(reads)
        seconds = []
        for name, control in list(view.controls.items()):
            for value in [
                option[1] if isinstance(option, tuple) else option
                for option in getattr(control, "options", ())
            ][:6]:
                if name != "cells" and value != control.value:
                    start = time.perf_counter()
                    control.value = value
                    seconds.append(time.perf_counter() - start)
        print(
            type(view).__name__,
            f"median {np.median(seconds):.3f} s, slowest {max(seconds):.3f} s of {len(seconds)}",
        )
        assert len(reads) == count and view.figure.data[: len(held)] == held
