"""Explorers: every control is set, and what the figures draw is compared with what the store
holds.
"""

import base64
import io
import itertools
import json
import re
import shutil
from functools import partial
from types import SimpleNamespace

import frames
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from lib import analysis, cells, datasets, explore, memory
from lib.config import CellSpec, RunConfig, Task, Training, Window
from lib.explore import recording, widgets
from lib.explore.choice import task_label
from lib.explore.export import Form
from lib.explore.sequence import step_axis
from lib.explore.view import Axis, Line, Panel, Rule, View
from lib.explore.widgets import values_of
from lib.figures import export, select, style, summaries
from lib.runs import attempt
from lib.runs.store import Store

CURVES, RESULTS, HEAT = 0, 1, 2  # panels of a board


def _config(cell, seed=0, window=(8, 8)):
    return RunConfig(
        window=Window(*window), cell=CellSpec(cell, 6), training=Training(epochs=1), seed=seed
    )


@pytest.fixture(autouse=True)
def nothing_chosen():
    """Controls start where they were asked to, whatever other tests chose."""
    explore.WindowControls.kept.clear()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """CB and STPDaleCB with two seeds at 8/8, CB at 8/4."""
    store = Store(tmp_path_factory.mktemp("results"))
    configs = [_config(cell, seed) for cell in ("cb", "stp_dale_cb") for seed in (0, 1)]
    for config in [*configs, _config("cb", window=(8, 4))]:
        attempt.execute(config, store, backend="reference")
    return store


@pytest.fixture
def synthetic(monkeypatch, tmp_path):
    """A store that no file holds: gives a function that takes its runs."""

    def hold(runs):
        reads = []
        curves = frames.curves(runs)
        monkeypatch.setattr(Store, "runs", lambda self, **_: reads.append("runs") or runs.copy())
        monkeypatch.setattr(Store, "curves", lambda self, **_: reads.append("curves") or curves)
        return Store(tmp_path), reads

    return hold


def drawn(view, panel=-1):
    """(traces by name, layout) of a figure as plotly draws it; plotly has checked them."""
    figure = view.figures[: len(view.canvas.children)][panel]
    traces, layout = json.loads(figure.traces), json.loads(figure.axes)
    go.Figure(traces, layout)
    for trace in traces:
        for name, value in trace.items():
            if isinstance(value, dict) and "bdata" in value:
                shape = [int(part) for part in value["shape"].split(",")]
                data = base64.b64decode(value["bdata"])
                trace[name] = np.frombuffer(data, value["dtype"]).reshape(shape)
    return traces, layout


def named(view, name, panel=-1, **like):
    """The traces of a name whose fields are like this."""
    return [
        trace
        for trace in drawn(view, panel)[0]
        if trace.get("name") == name and all(trace.get(k) == v for k, v in like.items())
    ]


def lines(view, panel=-1):
    """name -> the line that is labelled at its end."""
    labels = {note["text"] for note in drawn(view, panel)[1]["annotations"] if "ax" in note}
    return {name: named(view, name, panel, mode="lines")[-1] for name in labels}


def test_curves_show_the_numbers_of_the_store(store):
    view = explore.Board(store, stride=8)
    table = summaries.groups(
        select.grouped(store.curves(window="8/8")), "validation_accuracy", ("group", "epoch")
    )
    means = lines(view, CURVES)
    assert set(means) == {"CB", "STPDaleCB"}
    for name, trace in means.items():
        np.testing.assert_allclose(trace["y"], table[table["group"] == name]["mean"], rtol=1e-6)
    seeds = [trace for name in means for trace in named(view, name, CURVES) if trace["opacity"] < 1]
    hover = np.concatenate([np.asarray(trace["customdata"], object) for trace in seeds])
    assert set(hover[:, 1]) == set(store.runs(window="8/8")["key"])
    assert set(hover[:, 2]) == {0, 14, 28}
    view.controls["cells"].value = ("CB",)
    assert set(lines(view, CURVES)) == {"CB"}
    view.controls["metric"].value = "loss while training"
    assert np.max(lines(view, CURVES)["CB"]["y"]) > 1
    view.controls["cells"].boxes["CB"].value = False
    assert "No cell is chosen" in view.message.value and not drawn(view)[0]


def test_a_view_does_not_depend_on_those_before_it(store):
    view = explore.Board(store, stride=8, results="differences")
    changes = {"cells": ("CB",), "metric": "loss", "highlight": "with STP"}
    results = [("results", "sorted dots"), ("results", "bars"), ("baseline", "STPDaleCB")]
    for name, value in [*changes.items(), *results, *changes.items()]:
        before = view.controls[name].value
        for chosen in (value, before):
            view.controls[name].value = chosen
            state = {name: control.value for name, control in view.controls.items()}
            fresh = explore.Board(store, **state)  # which has kept nothing
            for panel in range(len(view.canvas.children)):
                for one, same in zip(drawn(view, panel), drawn(fresh, panel), strict=True):
                    np.testing.assert_equal(one, same)


def test_a_highlight_greys_the_others(store):
    view = explore.Board(store, stride=8, highlight="with STP")
    assert set(lines(view, CURVES)) == {"STPDaleCB"}
    assert [trace["line"]["color"] for trace in named(view, "CB", CURVES)] == ["#D5D8DC"]


def test_bars_dots_and_differences(store):
    view, runs = explore.Board(store, stride=8, baseline="CB"), store.runs(window="8/8")
    means = 100 * runs.groupby("label")["test_accuracy"].mean()
    traces, layout = drawn(view, RESULTS)
    bar = next(trace for trace in traces if trace["type"] == "bar")
    rows = layout["yaxis"]["ticktext"]
    np.testing.assert_allclose(bar["x"], means[rows], rtol=1e-6)
    seeds = named(view, "seeds", RESULTS)[0]
    assert sorted(seeds["x"]) == pytest.approx(sorted(100 * runs["test_accuracy"]))
    assert {data[2] for data in seeds["customdata"]} == set(runs["key"])
    # Seeds lie beside the means, and hide neither them nor their intervals.
    assert np.abs(np.subtract.outer(seeds["y"], bar["y"])).min() > 0.3
    view.controls["results"].value = "sorted dots"
    dots = named(view, "mean", RESULTS)[0]
    assert list(dots["x"]) == pytest.approx(sorted(means, reverse=True)) and dots["y"][0] == 1
    view.controls["results"].value = "differences"
    (dot,), want = named(view, "mean", RESULTS), means["STPDaleCB"] - means["CB"]
    assert dot["x"] == pytest.approx([want], abs=1e-5)
    assert view.frame["value"].mean() == pytest.approx(want)
    assert "Difference from CB" in drawn(view, RESULTS)[1]["xaxis"]["title"]["text"]


def test_where_nothing_differs_curves_and_windows_stay(store):
    view = explore.Board(store, stride=8, results="differences", baseline="CB")
    view.controls["cells"].value = ("CB",)
    assert [len(drawn(view, panel)[0]) > 0 for panel in range(3)] == [True, False, True]
    assert "baseline CB" in view.message.value and "STPDaleCB" not in view.headline.value
    plt.close(view.paper())


def _answers(runs):
    """Predictions of 400 test images that are right as often as each run is."""
    image, parts = np.arange(400), []
    for run in runs.itertuples():
        chance = np.random.default_rng(run.seed).random(400)
        right = (chance < run.test_accuracy).astype(int)
        parts.append(pd.DataFrame({"image": image, "label": 1, "prediction": right}))
    answers = pd.concat(parts)
    answers.insert(0, "key", pd.Categorical(np.repeat(runs["key"], 400), list(runs["key"])))
    return answers


def test_intervals_count_seeds_and_images_from_three_seeds_on(synthetic, monkeypatch):
    runs = frames.runs(["cb", "gru"], ["8/4"])
    runs = runs[(runs["cell"] == "gru") | (runs["seed"] < 2)]
    answers = _answers(runs)
    monkeypatch.setattr(
        Store, "predictions_of", lambda self, keys: answers[answers["key"].isin(keys)]
    )
    view = explore.Board(synthetic(runs)[0])
    rows = {row[0]: row for row in named(view, "mean", RESULTS)[0]["customdata"]}
    table = summaries.groups(select.grouped(runs), predictions=answers).set_index("group")
    low, high = table.loc["full GRU", ["low", "high"]]
    assert rows["full GRU"][1:] == [f" [{low:.4g}, {high:.4g}]", 3] and rows["CB"][1:] == ["", 2]
    assert lines(view, CURVES)["CB"]["customdata"][0] == ["", 2]
    assert f"[{low:.1f}, {high:.1f}]" in view.headline.value


def test_a_board_exports_the_numbers_that_it_draws(synthetic, tmp_path):
    view = explore.Board(synthetic(frames.runs(["cb", "gru", "stp"], ["8/4", "4/4"]))[0])
    view.controls["highlight"].value = "without STP"
    *paths, _ = view.export(tmp_path)
    assert [path.stem.split("-")[-1] for path in paths] == ["results", "curves", "windows"]
    results, curves, windows = map(pd.read_csv, paths)
    (mean,), (seeds,) = named(view, "mean", RESULTS), named(view, "seeds", RESULTS)
    bars = results.drop_duplicates("group")
    np.testing.assert_allclose(bars["mean"], mean["x"], rtol=1e-6)
    for row, known in zip(bars.itertuples(), mean["customdata"], strict=True):
        assert known == [row.group, f" [{row.low:.4g}, {row.high:.4g}]", row.n]
    assert sorted(results["value"]) == pytest.approx(sorted(seeds["x"]), rel=1e-6)
    assert set(results["metric"]) == {"Accuracy (% of test set)"}
    for group, table in curves.groupby("group"):
        own, means = named(view, group, CURVES), table.drop_duplicates("epoch")
        np.testing.assert_allclose(means["mean"], own[-1]["y"], rtol=1e-6)
        if group != "CB":  # grey, without its seeds
            assert table["value"].isna().all() and len(own) == 1
            continue
        band, thin, _ = own
        edge = np.concatenate([means["high"], means["low"][::-1]])
        np.testing.assert_allclose(band["y"], edge, rtol=1e-6)
        lines = np.concatenate([part["value"] for _, part in table.groupby("key", sort=False)])
        np.testing.assert_allclose(thin["y"][np.isfinite(thin["y"])], lines, rtol=1e-6)
    (heat,), _ = drawn(view, HEAT)
    z = windows.pivot(index="group", columns="window", values="mean")
    for row, fields in zip(heat["z"], heat["customdata"], strict=True):
        assert row == pytest.approx([z.loc[group, window] for group, window, *_ in fields])


def test_many_curves_are_lines_with_names_and_a_few_have_bands(synthetic):
    view = explore.Board(synthetic(frames.runs(frames.TEN, ["8/4", "4/4"]))[0])

    def bands():
        return [trace["name"] for trace in drawn(view, CURVES)[0] if "fill" in trace]

    names = set(view.controls["cells"].value)
    assert set(lines(view, CURVES)) == names and len(drawn(view, CURVES)[0]) == len(names)
    assert len(named(view, "seeds", RESULTS)[0]["x"]) == 3 * len(names)
    view.controls["highlight"].value = "with STP"
    assert sorted(bands()) == sorted(lines(view, CURVES)) and len(bands()) == 3
    view.set(highlight="all", cells=("CB", "Dale", "full GRU", "STPDaleCB"))
    assert len(bands()) == 4


PAGES = {(journal, page.column) for journal, page in style.JOURNALS.items()}
PAGES |= {(journal, page.text) for journal, page in style.JOURNALS.items()}


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    """A board of ten cells at five windows."""
    runs = frames.runs(frames.TEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "runs", lambda self, **_: runs.copy())
        patch.setattr(Store, "curves", lambda self, **_: frames.curves(runs))
        return explore.Board(Store(tmp_path_factory.mktemp("ten")), input_length=8)


@pytest.mark.parametrize(("journal", "width"), sorted(PAGES))
def test_nothing_of_an_export_is_cut_or_hidden(ten, tmp_path, journal, width):
    figure = ten.paper(journal, width, 2.6)
    figure.savefig(tmp_path / "figure.png", dpi=figure.dpi)
    box, (wide, high) = figure.get_tightbbox(), figure.get_size_inches()
    assert wide == pytest.approx(width)
    assert min(box.x0, box.y0, wide - box.x1, high - box.y1) > 0
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    plt.close(figure)


def test_the_board_says_what_was_found_and_follows_clicks(store):
    view = explore.Board(store, stride=8)
    runs = store.runs(window="8/8")
    means = 100 * runs.groupby("label")["test_accuracy"].mean()
    assert f"window 8/8, {means.idxmax()} ({means.max():.1f} %" in view.headline.value
    assert [len(drawn(view, panel)[0]) > 0 for panel in range(3)] == [True] * 3
    heat = drawn(view, 2)[0][0]
    assert heat["customdata"][0] == [["CB", "8/4", 8, 4], ["CB", "8/8", 8, 8]]
    assert heat["z"][:, 1] == pytest.approx(means[["CB", "STPDaleCB"]], rel=1e-6)
    assert np.isnan(heat["z"][1, 0])  # never run
    view.clicked(1, {"name": "mean", "customdata": ["CB", 0.0, 0.0, 2]})
    assert view.controls["highlight"].value == "CB"
    grey = [trace["line"]["color"] for trace in drawn(view, 0)[0] if trace["name"] == "STPDaleCB"]
    assert grey == ["#D5D8DC"]
    view.clicked(0, {"name": "CB", "customdata": [0.0, 0.0, 2]})
    assert view.controls["highlight"].value == "all"
    key = _config("stp_dale_cb", 1).key()
    view.clicked(1, {"name": "seeds", "customdata": ["STPDaleCB", 1, key, 1]})
    assert view.recording.key == key and drawn(view.recording)[0]
    view.clicked(2, {"customdata": ["CB", "8/4", 8, 4]})
    assert view.choice.window == Window(8, 4) and "window 8/4" in view.headline.value
    view.set(input_length=4)
    assert not drawn(view)[0] and view.headline.value == ""


def test_a_window_that_was_never_run_says_so_and_offers_it(store):
    for make in (explore.Board, explore.TraceExplorer):
        explore.WindowControls.kept.clear()
        view = make(store, stride=8)
        runner = view.choice.runner
        assert drawn(view)[0] and runner.widget.layout.display == "none"
        view.controls["input_length"].value = 4
        traces, layout = drawn(view)
        assert not traces and layout["annotations"][0]["text"] == "not run"
        assert "not run" in view.message.value and view.view is None
        assert {config.window for config in runner.configs} == {Window(4, 4)}
        assert runner.button.description == "Run 4 runs" and "under a minute" in runner.text.value
        with pytest.raises(ValueError, match="nothing to draw"):
            view.export()
        view.set(input_length=8, stride="half")
        assert drawn(view)[0] and runner.widget.layout.display == "none"


def test_an_empty_store_says_how_to_fill_it(tmp_path):
    for make in (explore.Board, explore.TraceExplorer):
        view = make(Store(tmp_path))
        assert "explore.load_or_run(grid())" in view.message.value and not drawn(view)[0]


@pytest.mark.parametrize("name", ["curves.parquet", "status.json", "MANIFEST.json"])
def test_a_damaged_run_is_named_and_the_others_are_shown(store, tmp_path, name):
    shutil.copytree(store.root, tmp_path / "copy")
    broken, key = Store(tmp_path / "copy"), _config("cb", 1).key()
    path = broken.folder(key) / "result" / name
    path.write_bytes(path.read_bytes()[:-20])
    view = explore.Board(broken, stride=8)
    assert key in view.message.value and drawn(view)[0]
    assert drawn(explore.TraceExplorer(broken, stride=8))[0]


def test_damaged_weights_are_named_in_place(store, tmp_path):
    shutil.copytree(store.root, tmp_path / "copy")
    broken, key = Store(tmp_path / "copy"), _config("cb").key()
    (broken.folder(key) / "result" / "best.safetensors").write_bytes(b"")
    view = explore.TraceExplorer(broken, stride=8)
    assert key in view.message.value and "damaged" in view.message.value and not drawn(view)[0]
    view.controls["view"].value = recording.VIEWS[1]
    assert drawn(view)[0]


def test_state_as_code_makes_the_same_view(store):
    for view in (
        explore.Board(store, stride=8, metric="loss", highlight="with STP", cells=("CB",)),
        explore.Board(store, stride=8, results="differences", baseline="CB"),
        explore.Board(store, data="photos", stride=8),
        explore.TraceExplorer(
            store,
            stride=8,
            cell="STPDaleCB",
            variable="UX",
            show="quantiles",
            units=(1, 4),
            time=(3, 20),
            step=5,
            over="z",
        ),
        explore.SequenceExplorer(image=4, scan="snake", stride="half", step=7),
        explore.SequenceExplorer("train", image=8),
        explore.LesionExplorer(store, images=30, stride=8),
    ):
        again = eval(view.code(), {"explore": explore, "store": store})
        assert again.given == view.given
        assert again.code() == view.code() and again.message.value == view.message.value
        pd.testing.assert_frame_equal(again.frame, view.frame)


def test_what_cannot_be_set_is_refused_with_one_sentence(store):
    with pytest.raises(ValueError, match="no control 'colour'"):
        explore.Board(store, colour="red")
    with pytest.raises(ValueError, match=r"metric is 'luck', .*gradient norm"):
        explore.Board(store, metric="luck")


def test_every_choice_of_a_recording_is_drawn(store):
    view = explore.TraceExplorer(store, stride=8, cell="STPDaleCB", images=12)
    offered = [name for _, name in view.controls["variable"].options]
    assert offered == ["z", "r", "v", "X", "U", "UX", "tau"]
    for show in recording.SHOWS:
        for variable in ("z", "tau", "UX"):
            view.set(show=show, variable=variable)
            assert drawn(view)[0] and view.frame["step"].tolist() == list(range(32)), show
    view.set(show="heat map", variable="z", time=(4, 9))
    (heat,), layout = drawn(view)
    z = view.run.trace["z"][0].astype(np.float32)
    order = np.argsort(-analysis.time_constant(z).mean(0), kind="stable")
    np.testing.assert_allclose(heat["z"], z[4:10, order].T)
    assert (heat["zmin"], heat["zmax"]) == (0, 0.1) and list(heat["x"]) == list(range(4, 10))
    assert list(heat["customdata"][0][0]) == [2, order[0] + 1]
    assert layout["yaxis"]["range"] == [5.5, -0.5]
    view.set(show="before and after training", variable="tau", time=(0, 31))
    assert set(lines(view)) == {"before", "after"}
    assert drawn(view)[1]["yaxis"]["type"] == "log"
    view.set(show="class read out")
    final = {name: line["y"][-1] for name, line in lines(view).items()}
    read = view.run.data.class_names[view.run.trace.predictions[view.controls["image"].value]]
    assert max(final, key=final.get).removesuffix(" (true)") == read
    assert len({line["line"]["color"] for line in lines(view).values()}) == len(final)


def test_names_of_lines_stand_inside_an_axis_of_logarithms():
    lines = [Line(np.arange(2), np.full(2, y), "red", f"{y}", label=True) for y in (90, 95, 670)]
    traces, layout = Panel(lines, y=Axis(range=(80, 700), log=True)).plotly(440)
    go.Figure(traces, layout)
    low, high = layout["yaxis"]["range"]
    notes = layout["annotations"]
    ends = np.array([note["y"] for note in notes])
    np.testing.assert_allclose(ends, np.log10([90, 95, 670]))
    places = (ends - low) / (high - low) * 364 - [note["ay"] for note in notes]
    assert np.diff(places)[0] == pytest.approx(16) and 0 <= places.min() < places.max() <= 364


def test_long_names_beside_lines_leave_room_for_the_plot():
    names = [f"DaleCB, P_z free, drive z, z_max 1, gate open, epochs {n}" for n in (10, 20)]
    lines = [Line(np.arange(2), np.full(2, 0.5), "red", name, label=True) for name in names]
    _, layout = Panel(lines, y=Axis(range=(0, 1))).plotly(440)
    assert layout["margin"]["r"] < 200
    one, other = layout["annotations"]
    assert one["text"].replace("<br>", " ") == names[0] and one["text"].count("<br>") == 2
    assert abs(one["ay"] - other["ay"]) == pytest.approx(48)


def test_after_a_heat_map_axes_point_up_and_lines_are_not_filled(store):
    """What an earlier view set, a reversed axis or a filled line, does not stay."""
    view = explore.TraceExplorer(store, stride=8, cell="STPDaleCB")
    for show in ("quantiles", "single units", "correct and wrong images"):
        view.set(show="heat map")
        view.set(show=show)
        low, high = drawn(view)[1]["yaxis"]["range"]
        assert low < high
    view.set(show="quantiles")
    view.set(show="single units")
    traces = drawn(view)[0]
    assert len(traces) == 6 and not any("fill" in trace for trace in traces)
    view.set(show="heat map")
    view.set(view=recording.VIEWS[1], variable="tau_x")
    low, high = drawn(view)[1]["yaxis"]["range"]
    assert low < high
    history = view.choice.cache.store.history(key=view.key, variable="tau_x", statistic="q50")
    np.testing.assert_allclose(drawn(view)[0][-1]["y"], history["value"], rtol=1e-6)
    assert view.controls["show"].disabled


def test_a_variable_lies_over_the_image_up_to_the_step(store):
    view = explore.TraceExplorer(store, stride=8, cell="STPDaleCB", over="z", step=9)
    picture, heat = drawn(view, 0)[0]
    assert picture["source"].startswith("data:image/png") and heat["z"].shape == (16, 16)
    seen = np.isfinite(heat["z"])
    assert seen[:5].all() and not seen[5:].any()  # ten windows of 8 pixels are five rows
    z = np.median(view.run.trace["z"][0].astype(np.float32), 1)
    np.testing.assert_allclose(heat["z"][4], np.repeat(z[8:10], 8))
    before = view.figures[1].traces
    view.controls["step"].value = 11
    assert np.isfinite(drawn(view, 0)[0][1]["z"]).sum() == 96
    assert view.figures[1].traces == before  # only the mark moves there
    assert drawn(view)[1]["shapes"][-1]["x0"] == 11
    view.set(trail=16, step=20)
    assert np.isfinite(drawn(view, 0)[0][1]["z"]).sum() == 128
    view.set(beside="CB")
    assert len(view.view.panels) == 3
    table = view.view.tables["image"]
    assert set(table["variable"]) == {"median Conductance z (per step)"}
    for panel, (cell, own) in enumerate(table.groupby("cell", sort=False)):
        z = drawn(view, panel)[0][1]["z"]
        assert cell == ("STPDaleCB", "CB")[panel] and len(own) == np.isfinite(z).sum()
        np.testing.assert_allclose(own["value"], z[own["row"], own["column"]])
    view.set(over="UX")
    assert len(view.view.panels) == 2 and "CB has no UX" in view.view.note
    view.set(over="")
    assert view.controls["beside"].disabled


def test_a_voltage_is_blue_where_it_is_low_and_red_where_it_is_high(store):
    view = explore.TraceExplorer(store, stride=8, cell="STPDaleCB", variable="v")
    (heat,), _ = drawn(view)
    figure = view.paper()
    (image,) = figure.axes[1].images
    for end, limit, strong, weak in ((-1, "zmax", 0, 2), (0, "zmin", 2, 0)):
        *rgb, _ = image.cmap(image.norm(heat[limit]), bytes=True)
        assert heat["colorscale"][end][1] == f"rgb({', '.join(map(str, rgb))})"
        assert rgb[strong] > rgb[weak]
    plt.close(figure)


def test_rows_that_are_read_in_a_delay_are_called_blank():
    rows = np.repeat(np.arange(12), 2)
    assert step_axis(rows, 0, 8).title == "Image row being read, blank from 8 on (steps 0 to 23)"
    assert step_axis(rows[:16], 0, 8).title == "Image row being read (steps 0 to 15)"


def test_a_click_on_a_thumbnail_chooses_its_image(store):
    view = explore.TraceExplorer(store, stride=8, images=30)
    view._pick({"x": 18 * 3 + 5, "y": 18 + 5})
    assert view.controls["image"].value == 23
    view.set(input_length=4)  # not run
    assert view.album.layout.display == "none"
    view._pick({"x": 5, "y": 5})
    view.set(input_length=8)
    assert view.album.layout.display is None and len(view.among) == 30


@pytest.mark.parametrize(
    ("show", "variable"),
    [*((show, "tau") for show in recording.SHOWS), ("heat map", "v"), ("quantiles", "v")],
)
def test_an_export_draws_what_is_seen(store, tmp_path, show, variable):
    view = explore.TraceExplorer(
        store, stride=8, cell="STPDaleCB", show=show, variable=variable, units=(1, 3), over="z"
    )
    traces, layout = drawn(view)
    figure = view.paper()
    ax = figure.axes[1]
    assert ax.get_ylim() == pytest.approx(
        np.power(10, layout["yaxis"]["range"])
        if layout["yaxis"]["type"] == "log"
        else layout["yaxis"]["range"]
    )
    seen = [trace for trace in traces if trace["type"] == "scatter" and "fill" not in trace]
    inside = [line for line in ax.lines if len(line.get_xdata()) > 2]
    assert len(inside) == len(seen)
    for line, trace in zip(inside, seen, strict=True):
        np.testing.assert_allclose(line.get_ydata(), trace["y"], rtol=1e-5)
    assert len(ax.collections) == sum("fill" in trace for trace in traces)
    heats = [trace["z"] for trace in traces if trace["type"] == "heatmap"]
    assert [image.get_array().shape for image in ax.images] == [z.shape for z in heats]
    assert set(lines(view)) <= {text.get_text() for text in ax.texts}
    plt.close(figure)
    paths = view.export(tmp_path, ("pdf", "png", "svg"))
    assert [path.suffix for path in paths] == [".csv", ".csv", ".svg", ".pdf", ".png"]
    for path, table in zip(paths, view.view.tables.values(), strict=False):
        read = pd.read_csv(path)
        pd.testing.assert_frame_equal(read, table, check_dtype=False, rtol=1e-5)


def test_a_lesion_changes_the_curve_beside_it(store, monkeypatch):
    view = explore.LesionExplorer(store, images=60, stride=8, cell="STPDaleCB", lesion="W")
    assert list(view.controls["lesion"].options) == ["z", "K r", "P_z x", "W", "UX"]
    curve = lines(view, 0)
    data = datasets.load(view.choice.configs[0].task)
    for name, what in (("intact", None), ("without W", "W")):
        accuracy = memory.lesion(store.load(view.run.name), data, Window(8, 8), what, 60)
        assert curve[name]["y"][-1] == pytest.approx(100 * accuracy)
    assert len(curve["intact"]["x"]) == 8 and curve["intact"]["x"][-1] == 256
    table, (bars,) = view.view.tables["lesions"], named(view, "drop")
    assert list(table["lesion"]) == bars["customdata"]
    assert list(table["points lost"]) == pytest.approx(list(bars["x"]), rel=1e-6)
    view.clicked(1, {"customdata": "UX"})
    assert view.controls["lesion"].value == "UX" and "without UX" in lines(view, 0)
    assert "each unit's mean" in view.view.note and "60 test images" in view.view.note
    view.count = 500
    view.update()
    assert "360 test images" in view.view.note
    monkeypatch.setattr(memory, "lesions", lambda model, data: [])
    view.update()
    assert "no signal to replace" in view.message.value and view.view is None


def test_the_form_of_export_writes_links_and_latex(store, tmp_path, monkeypatch):
    view = explore.Board(store, stride=8)
    view.buttons["export"].click()
    (form,) = view.extra.children
    monkeypatch.setattr(view.choice.cache.store, "root", tmp_path)
    form.children[0].children[-1].click()
    told = form.children[1].value
    (pdf,) = (tmp_path / "views").glob("*.pdf")
    assert f'download="{pdf.name}" href="data:application/pdf;base64,' in told
    assert f"\\includegraphics{{{pdf.stem}}}" in told and "no interval" in told


@pytest.mark.parametrize(
    ("kind", "command"),
    [("png", "includegraphics"), ("svg", "includesvg"), ("pgf", "input"), (None, None)],
)
def test_every_file_of_an_export_has_a_link_and_every_kind_its_latex(
    store, tmp_path, monkeypatch, kind, command
):
    if kind == "pgf" and not export.has_tex():
        pytest.skip("needs pdflatex")
    view = explore.TraceExplorer(store, stride=8, over="z")
    form = Form(view)
    for name, box in form.kinds.items():
        box.value = name == kind
    monkeypatch.setattr(view.choice.cache.store, "root", tmp_path)
    form.write()
    written = list((tmp_path / "views").iterdir())
    assert {path.suffix for path in written} >= {".csv", *[f".{kind}"] * bool(kind)}
    for path in written:
        assert f'download="{path.name}"' in form.told.value
    (latex,) = re.findall(r"\\(\w+)\{trace-\w+(?:\.pgf)?\}", form.told.value) or [None]
    assert latex == command


def test_the_sequence_shows_the_window(tmp_path):
    view = explore.SequenceExplorer(image=2)
    assert drawn(view)[0][0]["z"].shape == (8, 63)
    view.set(input_length=4, stride="half", step=9)
    assert drawn(view)[0][0]["z"].shape == (4, 127) and view.controls["step"].max == 126
    box = drawn(view, 0)[1]["shapes"][0]
    # pixels 18 to 21: row 1, columns 2 to 5
    assert [box[name] for name in ("x0", "x1", "y0", "y1")] == [1.5, 5.5, 0.5, 1.5]
    view.controls["step"].value = 7  # pixels 14 to 17 lie in two rows
    assert len(drawn(view, 0)[1]["shapes"]) == 2
    assert all(path.stat().st_size > 200 for path in view.export(tmp_path))


def test_a_sequence_has_the_numbers_of_pixels_that_a_notebook_sets():
    for length, stride in ((6, 2), (8, 4)):
        view = explore.SequenceExplorer(input_length=length, stride=stride)
        assert view.window == Window(length, stride)
        assert drawn(view)[0][0]["z"].shape == (length, (256 - length) // stride + 1)
    view = explore.SequenceExplorer(input_length=12)
    assert "choose at most 8" in view.message.value


def test_an_image_beyond_the_end_of_a_data_set_is_its_last(monkeypatch):
    shown = []
    show = explore.SequenceExplorer._show
    monkeypatch.setattr(
        explore.SequenceExplorer, "_show", lambda *given: shown.append(1) or show(*given)
    )
    view = explore.SequenceExplorer(image=5000)
    assert view.controls["image"].value == 359 and "image 359" in view.message.value
    assert len(shown) == 1
    view.controls["image"].max = 10**6  # as a larger data set that was read leaves it
    view.controls["image"].value = 1500
    assert view.controls["image"].value == 359 and "image 359" in view.message.value


def test_a_snake_says_what_it_leaves_unread():
    view = explore.SequenceExplorer(scan="snake", input_length=8, stride=3)
    assert "the last 2 pixels of the scan are not read" in view.message.value


def test_underscores_are_printed_as_mathematics_everywhere():
    axis = Axis("CB, z_max 1, of $v_i$", (0, 1), ticks=([0], ["z_max"]))
    line = Line([0, 1], [0, 1], "red", "z_max", label=True)
    figure = View([Panel([line, Rule(0.5, "y", "v_e")], axis, axis, title="v_i")], {}).matplotlib()
    (ax,) = figure.axes
    assert ax.get_xlabel() == ax.get_ylabel() == r"CB, z$\_$max 1, of $v_i$"
    texts = ax.title, *ax.texts, *ax.get_xticklabels()
    assert {text.get_text() for text in texts} == {r"v$\_$i", r"v$\_$e", r"z$\_$max"}
    plt.close(figure)


def test_rounding_moves_no_pixel_of_an_export():
    """What is exported on another processor, which sums in another order, is the same file."""

    def pixels(rounded):
        ends = np.random.default_rng(0).uniform(size=9) + rounded
        lines = [Line([0, 1], [0, y], "red", f"{i}", label=True) for i, y in enumerate(ends)]
        figure = View([Panel(lines, Axis("x", (0, 1)), Axis("y", (0, 1)))], {}).matplotlib()
        file = io.BytesIO()
        figure.savefig(file, format="rgba")
        plt.close(figure)
        return file.getvalue()

    for rounded in (1e-15, -1e-15, 1e-13):
        assert pixels(rounded) == pixels(0)


def test_the_rows_of_many_cells_are_printed_apart(synthetic):
    options = [json.dumps({"dt": value / 100}) for value in range(10, 34)]
    runs = pd.concat([frames.runs(["cb"], ["8/4"], options=o) for o in options], ignore_index=True)
    view = explore.Board(synthetic(runs)[0])
    view.controls["cells"].value = view.controls["cells"].options
    figure = view.paper("report", "text", 2.6)
    boxes = [label.get_window_extent() for label in figure.axes[RESULTS].get_yticklabels()]
    assert len(boxes) == 24
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))
    plt.close(figure)


def test_window_controls_give_the_configurations_of_a_notebook(store):
    choice = explore.WindowControls(store, [_config("cb"), _config("gru")])
    assert choice.window == Window(8, 8)
    assert [config.cell.name for config in choice.configs] == ["cb", "gru"]
    assert "1 not run" in choice.message.value
    assert [config.cell.name for config in choice.runner.configs] == ["gru"]
    choice.controls["stride"].value = "half"
    assert {config.window for config in choice.configs} == {Window(8, 4)}
    view = explore.Board(store, choice)
    assert view.choice is choice and drawn(view)[0]
    choice.controls["input_length"].value = 4
    assert not drawn(view)[0]
    choice.controls["task"].value = "mnist"
    assert {config.task.dataset for config in choice.configs} == {"mnist"}


def test_images_that_no_window_fits_are_told_in_place(synthetic):
    runs = frames.runs(["cb"], ["1/1"], [0]).assign(image_shape=[(3, 32, 1)])
    choice = explore.WindowControls(synthetic(runs)[0])
    assert "half a row of 1" in choice.message.value


def test_a_window_that_was_chosen_is_kept_when_the_cell_runs_again(store):
    def cell(length=8):
        return explore.WindowControls(store, [_config("cb", window=(length, 4))])

    choice = cell()
    choice.set(input_length=4)
    assert cell().window.input_length == 4
    other = explore.WindowControls(store, [_config("cb", 1, (8, 4))])
    assert other.window.input_length == 8  # other settings are other controls


def test_a_board_with_controls_of_its_own_keeps_its_window(store, tmp_path):
    board, kept = explore.Board(store), explore.WindowControls.kept
    assert board.choice.window == Window(8, 4) and not kept
    board.set(stride=8)
    assert explore.Board(store).choice.window == Window(8, 8)
    assert explore.Board(store, stride="half").choice.window == Window(8, 4)  # asked for another
    assert explore.Board(Store(tmp_path)).choice.window == Window(8, 4)  # of another store
    kept |= {made_with: {"task": "gone", "stride": 3} for made_with in kept}
    assert explore.Board(store).choice.window == Window(8, 4)  # what the store holds no more


def test_one_change_draws_once(store, monkeypatch):
    choice = explore.WindowControls(store, stride=8)
    view = explore.Board(store, choice)
    drawings = []
    monkeypatch.setattr(view, "look", lambda: drawings.append(1) or view.view)
    choice.set(input_length=4, stride="half")
    choice.controls["input_length"].value = 8
    view.set(stride=8, metric="loss", highlight="baselines")
    assert len(drawings) == 3


def test_what_an_earlier_run_of_a_cell_has_shown_is_drawn_no_more(store, monkeypatch):
    choice, drawings = explore.WindowControls(store), []

    def run_cell(name, count, views=1):
        header = {"metadata": {"cellId": name} if name else {}}
        shell = SimpleNamespace(parent_header=header, execution_count=count)
        monkeypatch.setattr(widgets, "get_ipython", lambda: shell)
        for i in range(views):
            view = explore.Board(store, choice)
            monkeypatch.setattr(view, "look", partial(_look, view, drawings, (name, count, i)))

    run_cell("a", 1, views=2)
    run_cell("b", 2)
    run_cell("a", 3)
    run_cell(None, 4)  # a front end that does not name its cells
    run_cell(None, 5)
    choice.set(stride=8)
    assert drawings == [("b", 2, 0), ("a", 3, 0), (None, 4, 0), (None, 5, 0)]


def _look(view, drawings, name):
    drawings.append(name)
    return view.view


def test_many_variants_are_found_by_a_filter(synthetic):
    variants = [
        frames.runs(["cb"], ["8/4"], options=json.dumps({"dt": value / 10}))
        for value in range(3, 10)
    ]
    runs = pd.concat([frames.runs(frames.TEN, ["4/4", "8/4"]), *variants], ignore_index=True)
    cells = explore.Board(synthetic(runs)[0]).controls["cells"]
    assert len(cells.options) == 17 and len(cells.value) == 10
    assert not any("dt" in name for name in cells.value) and len(cells.children) == 1
    assert set(cells.boxes) == set(cells.value)  # nobody waits for boxes that are not seen
    cells.filter.value = "DT 0.3"
    (found,) = cells.children[1].children
    assert found.description == "CB, dt 0.3"
    found.value = True
    assert "CB, dt 0.3" in cells.value
    cells.filter.value = ""
    assert cells.children[1].children == (found,)  # what is ticked stays in sight


def test_the_map_has_the_training_that_all_windows_share(synthetic):
    longer = frames.runs(frames.TEN, ["8/4"], seeds=[11, 12, 13], epochs=20)
    runs = pd.concat([frames.runs(frames.TEN), longer], ignore_index=True)
    view = explore.Board(synthetic(runs)[0])
    assert np.max(lines(view, CURVES)["CB"]["x"]) == 20 and set(view.controls["cells"].value) == {
        cells.get(name).label for name in frames.TEN
    }
    (heat,), layout = drawn(view, HEAT)
    assert layout["title"]["text"] == "Accuracy (% of test set), 10 epochs"
    assert np.asarray(heat["z"], float).shape == (10, 5)
    cb = longer[longer["cell"] == "cb"]
    results = view.frame.query("group == 'CB'")
    assert results["mean"].iat[0] == pytest.approx(100 * cb["test_accuracy"].mean())
    view.set(input_length=16)
    assert np.max(lines(view, CURVES)["CB"]["x"]) == 10


def test_the_seed_of_a_scan_is_not_among_those_that_compare(synthetic):
    runs = pd.concat([frames.runs(["cb"], ["4/4", "8/4"]), frames.scan()], ignore_index=True)
    view = explore.Board(synthetic(runs)[0])
    assert sorted(view.frame.loc[view.frame["group"] == "CB", "seed"]) == [0, 1, 2]
    assert 100 in set(view.choice.cache.done["seed"])


def test_of_rates_that_three_seeds_ran_longest_the_best_is_shown(synthetic):
    rates = {0.01: 0.4, 0.003: 0.5}
    late = [
        frames.runs(["cb"], ["8/4"], [11, 12, 13], epochs=40, learning_rate=rate).assign(
            validation_accuracy=accuracy
        )
        for rate, accuracy in rates.items()
    ]
    board = explore.Board(synthetic(pd.concat([frames.runs(["cb", "gru"], ["8/4"]), *late]))[0])
    shown = board.choice.cache.finished(board.choice.task, "8/4")
    found = shown.groupby("group")[["epochs", "learning_rate"]].first().T.to_dict("list")
    usual = frames.runs(["cb"], ["8/4"])["learning_rate"].iat[0]
    expected = {"full GRU": [10, usual], "CB": [10, usual], "CB, epochs 40": [40, 0.003]}
    assert found == expected


def hovers(board, panel):
    traces = json.loads(board.figures[panel].traces)
    trace = next(each for each in traces if "<br>mean " in each.get("hovertemplate", ""))
    row = trace["customdata"][0]
    values = {f"%{{customdata[{n}]}}": str(value) for n, value in enumerate(row)}
    said = trace["hovertemplate"]
    for name, value in values.items():
        said = said.replace(name, value)
    return said


@pytest.mark.parametrize(("seeds", "said"), [((0,), ", n = 1"), ((0, 1, 2), "], n = 3")])
def test_what_has_no_interval_says_none_under_the_pointer(synthetic, seeds, said):
    board = explore.Board(synthetic(frames.runs(["cb"], ["8/4"], seeds))[0])
    for panel in (CURVES, RESULTS):
        assert said in hovers(board, panel) and "nan" not in hovers(board, panel)
        assert (" [" in hovers(board, panel)) == (len(seeds) > 2)


def test_only_windows_that_suit_the_images_are_offered(synthetic):
    wide = _config("cb", window=(16, 8))
    cifar10 = RunConfig(Task("cifar10"), Window(16, 8), wide.cell, wide.training)
    choice = explore.WindowControls(synthetic(frames.runs(["cb"], ["16/8"]))[0], cifar10)
    assert choice.window == Window(16, 8)
    choice.set(task=task_label(Task("digits")))
    assert choice.window.input_length <= 8 and "digits" in choice.message.value
    assert explore.WindowControls(choice.cache, cifar10, task=task_label(Task("digits"))).window
    odd = frames.runs(["cb"], ["7/4"])
    choice = explore.WindowControls(synthetic(odd)[0])
    assert choice.window == Window(7, 4) and "half" not in values_of(choice.controls["stride"])


def test_a_window_that_holds_a_scan_alone_shows_it(synthetic):
    scan = [frames.runs(["cb"], ["16/8"], [100], learning_rate=rate) for rate in (0.01, 0.1)]
    every = pd.concat([frames.runs(["cb"], ["8/4"]), *scan], ignore_index=True)
    board = explore.Board(synthetic(every)[0])
    board.set(input_length=16, stride="half")
    assert board.view is not None and set(board.frame["n"]) == {1}


def test_what_is_refused_leaves_controls_and_view_alike(store):
    board = explore.Board(store)
    with pytest.raises(ValueError, match="no cell"):
        board.set(metric="loss", cells=("no cell",))
    assert "Cross-entropy" in board.figures[CURVES].axes


def test_one_run_has_an_axis_around_its_dot(synthetic):
    board = explore.Board(synthetic(frames.runs(["cb"], ["8/4"], [0]))[0], results="sorted dots")
    low, high = board.view.panels[RESULTS].x.range
    assert high - low > 1


def test_a_board_opens_where_runs_are_finished_and_says_what_is_missing(synthetic):
    digits = frames.runs(["cb"], ["8/4"], dataset="digits")
    begun = frames.runs(["cb"], ["8/4"], [0], state="INTERRUPTED")
    board = explore.Board(synthetic(pd.concat([digits, begun], ignore_index=True))[0])
    assert "digits" in board.choice.task
    board.set(task="cifar10")
    assert "no finished run of cifar10" in board.choice.message.value


def test_a_metric_that_no_run_has_is_named(synthetic):
    runs = frames.runs(["cb", "gru"], ["8/4"]).assign(ms_per_step=np.nan)
    view = explore.Board(synthetic(runs)[0], metric="time of a step")
    assert "No finished run here has a value of ms_per_step" in view.message.value


def test_300_runs_change_without_reading(synthetic):
    store, reads = synthetic(frames.runs(frames.TEN, seeds=range(6)))
    view = explore.Board(store)
    count = len(reads)
    for name, control in view.controls.items():
        for option in list(getattr(control, "options", ()))[:6]:
            if name != "cells":
                control.value = option[1] if isinstance(option, tuple) else option
    assert len(reads) == count
