"""Figures: what they must let a reader see, measured on the drawn artists, and one look for a cell
everywhere.
"""

import re

import frames
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

from lib import analysis, cells
from lib.config import Window
from lib.figures import plots, select, style, summaries

mpl.use("Agg")

RUNS = frames.runs(frames.TEN)
MAIN = RUNS[RUNS["window"] == "8/4"]
CURVES = frames.curves(MAIN)
IMAGE = np.random.default_rng(0).integers(0, 256, (3, 32, 32))
WINDOW = Window(8, 4)
STEPS = 255
TRACE = frames.trace(STEPS, 24)
HISTORY = frames.history(MAIN[MAIN["cell"].isin(["cb", "stp_dale_cb"])])

LADDER, REPAIRS, _ = (select.rungs(frames.ladders(), item) for item in select.LADDERS.values())
HEADLINE = frames.curves(select.headline(frames.ladders()))
GROWTH = select.growth(pd.concat([RUNS, frames.runs(frames.LONGER, ["8/4"], epochs=40)]))

FIGURES = {
    "learning_curves": ("text", lambda: plots.learning_curves(CURVES)),
    "curve_panel": ("column", lambda: plots.curve_panel(CURVES, metric="train_loss")),
    "bars": ("column", lambda: plots.bars(MAIN)),
    "dots": ("column", lambda: plots.dot_and_interval(MAIN)),
    "paired": ("column", lambda: plots.paired_differences(MAIN, "cb")),
    "heatmap": ("column", lambda: plots.heatmap(RUNS)),
    "differences": ("column", lambda: plots.heatmap(RUNS, baseline="cb")),
    "input_length": ("text", lambda: plots.accuracy_vs_input_length(RUNS)),
    "effects": ("column", lambda: plots.effects(MAIN)),
    "scan": ("text", lambda: plots.learning_rate_scan(frames.scan())),
    "headline": ("text", lambda: plots.learning_curves(HEADLINE)),
    "growth": ("text", lambda: plots.growth(GROWTH)),
    "saturation": ("column", lambda: plots.statistic_over_training(HISTORY, "z", "saturated")),
    "before_after": (
        "text",
        lambda: plots.before_after(MAIN[MAIN["cell"].isin(["rnn", "cb", "stp_dale_cb"])], HISTORY),
    ),
    "ladder": ("column", lambda: plots.ladder(LADDER, linear=0.405)),
    "repairs": ("column", lambda: plots.ladder(REPAIRS)),
    "parameters": (
        "text",
        lambda: plots.parameters_over_training(HISTORY[HISTORY["cell"] == "stp_dale_cb"]),
    ),
    "conductance": ("text", lambda: plots.conductance(TRACE, IMAGE, WINDOW, 0.1)),
    "quantiles": (
        "column",
        lambda: plots.quantiles_over_sequence(TRACE["v"], "v", WINDOW, 32),
    ),
    "units": ("text", lambda: plots.units_over_sequence(TRACE, IMAGE, WINDOW, (0, 3, 9), step=40)),
    "plasticity": ("column", lambda: plots.plasticity(TRACE, WINDOW, 32)),
}


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def drawn(name, journal="report"):
    width, draw = FIGURES[name]
    with style.context(journal, width, 2.6):
        result = draw()
        fig = result if isinstance(result, mpl.figure.Figure) else result.figure
        fig.draw_without_rendering()
    return fig


# ---- every figure


@pytest.mark.parametrize("name", FIGURES)
def test_figure_has_the_width_units_and_text_of_a_paper(name):
    fig = drawn(name)
    assert fig.get_figwidth() == style.width_of("report", FIGURES[name][0])
    texts = [text for text in fig.findobj(Text) if text.get_visible() and text.get_text().strip()]
    assert min(text.get_fontsize() for text in texts) >= 7
    legends = [*fig.legends, *(ax.get_legend() for ax in fig.axes if ax.get_legend())]
    assert len(legends) == (
        name in ("input_length", "ladder", "repairs")
    )  # others are labelled at their ends
    for ax in fig.axes:
        for direction in "xy":
            if has_numbers(ax, direction):
                words = said(ax, direction)
                assert UNIT.search(words), f"{name}: a {direction} axis says only {words!r}"


UNIT = re.compile(r"\([^()]+\)")


def has_numbers(ax, direction):
    """Whether an axis counts something, rather than names it."""
    axis = getattr(ax, f"{direction}axis")
    ticks = [tick.get_text() for tick in axis.get_ticklabels() if tick.get_visible()]
    ticks = [text.replace("mathdefault", "") for text in ticks if text]
    return bool(ticks) and not any(re.search("[A-Za-z]{2}", text) for text in ticks)


def said(ax, direction):
    """What an axis, one that shares it, or the figure says of its values; of a stacked panel the
    title.
    """
    shared = getattr(ax, f"get_shared_{direction}_axes")().get_siblings(ax)
    labels = [getattr(other, f"get_{direction}label")() for other in shared]
    above = getattr(ax.figure, f"_sup{direction}label")
    labels += [above.get_text()] if above else []
    if direction == "y" and not any(labels):
        labels = [ax.get_title(loc="left")]
    return " ".join(filter(None, labels))


def test_an_axis_without_a_unit_is_found():
    fig = drawn("bars")
    ax = fig.axes[0]
    assert has_numbers(ax, "x") and not has_numbers(ax, "y")
    ax.set_xlabel("Accuracy")
    ax.set_title("elsewhere (% of test set)", loc="left")
    assert not UNIT.search(said(ax, "x"))


@pytest.mark.parametrize("name", ["learning_curves", "headline", "effects", "growth"])
def test_labels_at_line_ends_do_not_collide(name):
    fig = drawn(name)
    renderer = fig.canvas.get_renderer()
    for ax in fig.axes:
        beside = [text for text in ax.texts if text.get_position()[0] == 1.08]
        named = [line for line in ax.lines if not line.get_label().startswith("_")]
        assert len(beside) == len(named) and named
        boxes = [text.get_window_extent(renderer) for text in beside]
        for number, box in enumerate(boxes):
            assert box.x1 <= fig.bbox.x1 + 1, "a label leaves the figure"
            assert not any(
                box.y0 < other.y1 - 2 and other.y0 < box.y1 - 2 for other in boxes[number + 1 :]
            )


# ---- style


def test_hue_says_how_w_is_made_and_line_and_marker_say_stp():
    looks = {name: style.look(name) for name in style.ORDER}
    for with_stp, without in (("stp", "cb"), ("stp_dale", "dale"), ("stp_dale_cb", "dale_cb")):
        a, b = looks[with_stp], looks[without]
        assert (
            a.colour == b.colour
            and a.line != b.line
            and a.marker != b.marker
            and a.symbol != b.symbol
            and a.dash != b.dash
        )
    assert len({look.colour for look in looks.values()}) == 7
    assert len({(look.colour, look.marker) for look in looks.values()}) == len(looks)


# Machado, Oliveira and Fernandes 2009, severity 1, in linear RGB
BLINDNESS = {
    "none": np.eye(3),
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
}


def lab(colour, kind="none"):
    red = np.array(mpl.colors.to_rgb(colour))
    linear = np.clip(
        BLINDNESS[kind] @ np.where(red <= 0.04045, red / 12.92, ((red + 0.055) / 1.055) ** 2.4),
        0,
        1,
    )
    xyz = (
        np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        @ linear
        / [0.9505, 1, 1.089]
    )
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_differ_for_every_eye(kind):
    colours = [*sorted({style.look(name).colour for name in style.ORDER}), style.CONTEXT]
    points = [lab(colour, kind) for colour in colours]
    assert (
        min(np.linalg.norm(a - b) for i, a in enumerate(points) for b in points[i + 1 :]) > 10
    )  # 2.3 is just noticeable


def test_colours_of_one_panel_differ_in_greyscale():
    for panel in (
        ("rnn", "simple_gru", "gru"),
        ("cb", "cb_gru", "dale_cb"),
        ("stp", "stp_dale", "stp_dale_cb"),
    ):
        light = sorted(lab(style.look(name).colour)[0] for name in panel)
        assert min(np.diff(light)) > 9 and light[-1] < lab(style.CONTEXT)[0] - 9


def test_own_cells_have_a_look_of_their_kind(monkeypatch):
    class Mine(cells.get("stp_dale_cb")):
        name, label = "mine_test", "my cell"

    monkeypatch.setitem(cells.CELLS, Mine.name, Mine)
    own, twin = style.look("mine_test"), style.look("stp_dale_cb")
    assert own == style.look("mine_test") and own.label == "my cell"
    assert (own.line, own.marker) == (twin.line, twin.marker) and own.colour != twin.colour
    frame = pd.concat([MAIN, frames.runs(["mine_test", "never_registered"], ["8/4"])])
    with style.context():
        labels = [text.get_text() for text in plots.bars(frame).get_yticklabels()]
    assert labels[-2:] == ["my cell", r"never$\_$registered"]


def test_context_gives_settings_back_and_refuses_unknown_pages():
    before = dict(mpl.rcParams)
    with style.context("neurips", "column"):
        assert mpl.rcParams["pdf.fonttype"] == 42 and mpl.rcParams["figure.figsize"][0] == 5.5
    assert dict(mpl.rcParams) == before
    with pytest.raises(ValueError, match="known are article"):
        style.rc("nature")
    for width in ("page", 0, True):
        with pytest.raises(ValueError, match="width is"):
            style.width_of("icml", width)


# ---- which runs


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-50, 150), min_size=1, max_size=9), st.floats(0.1, 10))
def test_spread_keeps_order_gap_and_bounds(positions, gap):
    moved = style.spread(positions, gap, 0, 100)
    ordered = moved[np.argsort(positions, kind="stable")]
    assert (
        np.all(np.diff(ordered) >= gap - 1e-9)
        and moved.min() >= -1e-9
        and moved.max() <= 100 + 1e-9
    )
    if len(positions) == 1 or (
        np.diff(np.sort(positions)).min() >= gap and min(positions) >= 0 and max(positions) <= 100
    ):
        assert np.allclose(moved, np.clip(positions, 0, 100))


def test_nothing_to_show_is_one_sentence():
    for frame in (RUNS.iloc[:0], RUNS.assign(state="FAILED")):
        with pytest.raises(ValueError, match="No finished run to show"):
            plots.bars(frame)
    with pytest.raises(ValueError, match="shows one window, but the frame holds"):
        plots.bars(RUNS)
    with pytest.raises(ValueError, match="share"):
        plots.bars(pd.concat([MAIN, MAIN.assign(key=MAIN["key"] + "x")]))


# ---- single figures


def test_learning_curves_group_by_family_with_the_others_behind():
    fig = drawn("learning_curves")
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["baselines", "without STP", "with STP"]
    names = [
        [line.get_label() for line in ax.lines if not line.get_label().startswith("_")]
        for ax in fig.axes
    ]
    assert names[0] == ["vanilla RNN", "simple GRU", "full GRU"] and names[2] == [
        "STP nonDale",
        "STP Dale",
        "STPDaleCB",
    ]
    grey = [sum(line.get_color() == style.CONTEXT for line in ax.lines) for ax in fig.axes]
    assert grey == [7, 6, 7]
    assert fig.axes[0].get_ylim() == fig.axes[2].get_ylim()


def test_band_is_the_interval_of_the_statistics():
    fig = drawn("learning_curves")
    band = fig.axes[0].collections[0].get_paths()[0].vertices
    rnn = CURVES[CURVES["cell"] == "rnn"]
    expected = analysis.summarise(rnn, ["epoch"], "validation_accuracy")
    last = band[band[:, 0] == expected["epoch"].max()][:, 1]
    assert np.allclose([last.min(), last.max()], expected[["low", "high"]].iloc[-1] * 100)


def test_one_seed_has_no_band_and_says_so():
    with style.context():
        fig = plots.learning_curves(CURVES[CURVES["seed"] == 0])
    assert not any(ax.collections for ax in fig.axes)
    assert all("n = 1 seed" in [text.get_text() for text in ax.texts] for ax in fig.axes)


def test_two_seeds_have_thin_lines_and_no_band_and_set_the_axis():
    with style.context():
        fig = plots.learning_curves(CURVES[CURVES["seed"] < 2])
    assert not any(ax.collections for ax in fig.axes)
    assert all("n = 2 seeds, no band" in [text.get_text() for text in ax.texts] for ax in fig.axes)
    assert sum(line.get_linewidth() == 0.4 for line in fig.axes[0].lines) == 2 * 3
    held = CURVES.loc[CURVES["seed"] < 2, "validation_accuracy"] * 100
    low, high = fig.axes[0].get_ylim()
    assert held.min() - 5 < low < held.min() and held.max() < high < held.max() + 5


def test_bars_start_at_zero_with_chance_in_the_fixed_order():
    ax = drawn("bars").axes[0]
    assert ax.get_xlim()[0] == 0 and all(bar.get_x() == 0 for bar in ax.patches)
    assert [text.get_text() for text in ax.get_yticklabels()] == [
        style.look(name).label for name in style.ORDER
    ]
    assert [line.get_xdata()[0] for line in ax.lines if list(line.get_ydata()) == [0, 1]] == [
        pytest.approx(10)
    ]
    assert np.isclose(
        ax.patches[0].get_width(), 100 * MAIN[MAIN["cell"] == "rnn"]["test_accuracy"].mean()
    )
    assert [bool(bar.get_hatch()) for bar in ax.patches] == [
        style.look(name).stp for name in style.ORDER
    ]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert len(dots) == 10 and all(len(line.get_xdata()) == 3 for line in dots)


def test_dots_are_sorted_and_zoomed():
    ax = drawn("dots").axes[0]
    means = MAIN.groupby("label")["test_accuracy"].mean().sort_values(ascending=False)
    assert [text.get_text() for text in ax.get_yticklabels()] == list(means.index)
    assert ax.get_xlim()[0] > 10


def test_heatmap_prints_numbers_by_convention_and_says_not_run():
    lacking = RUNS[~((RUNS["cell"] == "gru") & (RUNS["window"] == "4/2"))]
    with style.context():
        ax = plots.heatmap(lacking)
    assert [text.get_text() for text in ax.get_xticklabels()] == [
        "4/4",
        "8/4",
        "16/4",
        "4/2",
        "8/4",
        "16/8",
    ]
    texts = [text.get_text() for text in ax.texts]
    assert texts.count("not run") == 1 and {"stride always 4", "stride length/2"} <= set(texts)
    assert f"{100 * MAIN[MAIN['cell'] == 'rnn']['test_accuracy'].mean():.1f}" in texts
    low, high = drawn("differences").axes[0].collections[0].get_clim()
    assert low == -high  # zero is the middle of the colours


def test_conventions_share_one_point():
    fig = drawn("input_length")
    points = [
        line
        for line in fig.axes[0].lines
        if line.get_linestyle() == "None" and line.get_marker() == "o"
    ]
    assert sum(list(line.get_xdata()).count(8) for line in points) == 1
    assert sum(len(line.get_xdata()) for line in points) == 5


def test_effects_need_one_kind_of_run_per_cell():
    ax = drawn("effects").axes[0]
    assert {line.get_label() for line in ax.lines if not line.get_label().startswith("_")} == {
        "without STP",
        "with STP",
    }
    with pytest.raises(ValueError, match="one kind of run a cell"):
        plots.effects(pd.concat([MAIN, frames.runs(["cb"], ["8/4"], initialisation="notes")]))


def test_the_design_of_repaired_cells_has_a_panel_of_its_own():
    runs = select.headline(frames.repaired_design())
    plain, repaired = plots.effects(runs).axes
    assert (plain.get_title("left"), repaired.get_title("left")) == ("plain", "repaired")
    means = 100 * runs.groupby([runs["options"] == "{}", "cell"])["test_accuracy"].mean()
    for ax, own in ((plain, means[True]), (repaired, means[False])):
        lines = [line for line in ax.lines if not line.get_label().startswith("_")]
        orders = ["cb", "dale", "dale_cb"], ["stp", "stp_dale", "stp_dale_cb"]
        for line, order in zip(lines, orders, strict=True):
            np.testing.assert_allclose(line.get_ydata(), own[order])
    (alone,) = plots.effects(runs[runs["options"] == "{}"]).axes
    assert alone.get_title("left") == ""


def test_conductance_has_fixed_range_sorted_units_and_ticks_at_rows():
    fig = drawn("conductance")
    picture, heat = fig.axes[:2]
    shown = heat.images[0]
    assert shown.get_clim() == (0, 0.1) and shown.get_array().shape == (24, STEPS)
    slow = analysis.time_constant(np.asarray(shown.get_array()).clip(1e-9, 1 - 1e-9)).mean(1)
    assert np.all(np.diff(slow) <= 1e-9)
    ticks = heat.get_xticks()
    assert np.allclose(np.diff(ticks) % 8, 0)  # 32 pixels a row, stride 4
    assert picture.images[0].get_array().shape == (32, 32, 3)


def test_time_constants_are_pixels_on_a_logarithmic_axis():
    fig = drawn("plasticity")
    assert [ax.get_yscale() for ax in fig.axes] == ["log", "linear", "linear", "linear"]
    median = fig.axes[0].lines[0].get_ydata()
    assert np.allclose(median, -4 / np.log1p(-np.median(TRACE["z"], axis=1)))
    efficacy = fig.axes[3].lines[0].get_ydata()
    assert np.allclose(efficacy, np.median(TRACE["U"] * TRACE["X"], axis=1))
    with style.context():
        assert len(plots.plasticity(frames.trace(STEPS, stp=False), WINDOW, 32).axes) == 1


@pytest.mark.parametrize("shape", [(1, 1, 12), (2, 4, 8), (3, 1, 10), (4, 6, 6), (5, 9)])
def test_images_of_any_channels_and_few_pixels_are_drawn(shape):
    image = np.random.default_rng(0).random(shape)
    window, columns = Window(2, 1), shape[-1]
    steps = shape[-2] * columns - 1
    trace = frames.trace(steps, 5)
    with style.context():
        drawn = [
            plots.conductance(trace, image, window, 0.1),
            plots.units_over_sequence(trace, image, window, (0, 1), step=steps - 1),
            plots.plasticity(trace, window, columns),
        ]
        for fig in drawn:
            fig.draw_without_rendering()
    pixels = drawn[0].axes[0].images[0].get_array()
    coloured = len(shape) == 3 and shape[0] == 3
    assert pixels.shape == (shape[-2], columns, *[3] * coloured)


def test_single_units_frame_the_window_that_is_read():
    with style.context():
        picture = plots.units_over_sequence(TRACE, IMAGE, WINDOW, (0,), step=7).axes[0]
    boxes = [(box.get_x(), box.get_y(), box.get_width()) for box in picture.patches]
    assert boxes == [(27.5, -0.5, 4), (-0.5, 0.5, 4)]  # pixels 28 to 35 lie in rows 0 and 1


def test_parameters_follow_one_cell():
    titles = [ax.get_title(loc="left") for ax in drawn("parameters").axes]
    assert len(titles) == 12 and any("cap" in title for title in titles)
    with pytest.raises(ValueError, match="shows one group"):
        plots.parameters_over_training(HISTORY)
    with pytest.raises(ValueError, match="None of the variables"):
        plots.parameters_over_training(HISTORY[HISTORY["cell"] == "cb"], variables=["U_cap"])


def test_before_and_after_are_the_ends_of_the_history():
    fig = drawn("before_after")
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == [
        "vanilla RNN",
        "CB",
        "STPDaleCB",
    ]
    for ax, (variable, statistic, shown) in zip(
        fig.axes[1:],
        (
            ("z", "saturated", lambda v: 100 * v),
            ("z", "q50", lambda v: -4 / np.log1p(-v)),
            ("W", "ei_ratio", lambda v: v),
        ),
        strict=True,
    ):
        rows = HISTORY[
            (HISTORY["variable"] == variable)
            & (HISTORY["statistic"] == statistic)
            & (HISTORY["cell"] == "cb")
        ]
        ends = [
            rows[rows["epoch"] == epoch]["value"].median() for epoch in (0, rows["epoch"].max())
        ]
        lines = [
            line.get_xdata()
            for line in ax.lines
            if set(line.get_ydata()) == {1} and len(line.get_xdata()) == 2
        ]
        assert np.allclose(
            lines, [[shown(value) for value in ends]]
        )  # one line a cell with a gate, none for the vanilla RNN


def test_symbols_in_names_are_mathematics():
    frame = frames.runs().assign(label=lambda runs: runs["cell"].replace({"cb": "CB, P_z free"}))
    axis = plots.bars(frame[frame["window"] == "8/4"])
    assert r"CB, $P_z$ free" in [text.get_text() for text in axis.get_yticklabels()]


def test_two_seeds_have_dots_and_no_interval():
    runs = frames.runs(["cb", "rnn"], ["8/4"])
    few = runs[(runs["cell"] != "rnn") | runs["seed"].isin([0, 1])]
    ax = plots.dot_and_interval(few)
    lines = [line.get_xdata() for line in ax.lines if line.get_linestyle() == "-"]
    lines = {bool(np.isnan(ends).any()): ends for ends in lines}
    assert set(lines) == {True, False} and len(ax.lines) == 6
    table = summaries.groups(select.grouped(few)).set_index("cell")
    assert lines[False] == pytest.approx(table.loc["cb", ["low", "high"]].tolist())


def test_memory_curves_stand_in_their_families_and_are_means_of_seeds():
    frame = pd.DataFrame(
        {
            "cell": ["gru"] * 4 + ["stp"] * 4,
            "readout": ["trained", "refitted"] * 4,
            "pixels": [0, 0, 8, 8] * 2,
            "percent": [50, 60, 20, 40, 30, 30, 20, 20],
        }
    )
    frame = pd.concat([frame, frame.assign(percent=frame["percent"] + 10)])
    axes = plots.against_pixels(frame, "percent", plt.figure())
    assert axes.shape == (2, 2)
    assert axes[1, 0].lines[0].get_ydata().tolist() == [65, 45]
    assert axes[0, 1].lines[0].get_label() == cells.get("stp").label


def test_lesions_have_a_dot_for_each_cell_that_has_the_signal():
    frame = pd.DataFrame(
        {"cell": ["cb", "stp", "stp"], "lesion": ["z", "z", "UX"], "drop": [0.03, 0.04, 0.05]}
    )
    ax = plots.lesions(frame, plt.figure().add_subplot())
    dots = {line.get_label(): line.get_xdata().tolist() for line in ax.lines[:2]}
    assert dots == {"CB": [3], "STP nonDale": [5, 4]}  # percentage points
    assert [text.get_text() for text in ax.get_yticklabels()] == ["z", "UX"]


def test_a_rung_stands_at_its_accuracy_with_the_interval_of_its_difference():
    fig = drawn("ladder")
    table = summaries.rungs(LADDER).set_index(["panel", "label"])
    means = 100 * LADDER.runs.groupby("group")["test_accuracy"].mean()
    ax = fig.axes[2]
    assert ax.get_title(loc="left") == "all changes but one"
    assert ax.get_yticklabels()[0].get_text() == "− drive $z$"
    row = table.loc[("without", "drive z")]
    bars = [line.get_xdata() for line in ax.lines if set(line.get_ydata()) == {4}]
    expected = [means[row["reference"]] + row[end] for end in ("low", "high")]
    assert any(list(bar) == pytest.approx(expected) for bar in bars)
    assert any(list(bar) == pytest.approx([means[row["group"]]]) for bar in bars)
    assert [text.get_text() for text in fig.legends[0].texts] == [
        "CB-GRU",
        "simple GRU",
        "linear on pixels",
    ]


def test_rungs_of_one_or_two_seeds_are_dots():
    few = select.rungs(frames.ladders(seeds=(1, 2)), select.LADDERS["repairs"])
    assert summaries.rungs(few)["low"].isna().all()
    with style.context():
        assert len(plots.ladder(few).axes) == 3


def test_a_repaired_cell_is_filled_where_the_plain_one_is_open():
    with style.context():
        ax = plots.bars(select.headline(frames.ladders()))
    names = [text.get_text() for text in ax.get_yticklabels()]
    white = {
        name
        for name, bar in zip(names, ax.patches, strict=True)
        if bar.get_facecolor()[:3] == (1, 1, 1)
    }
    assert white == {"DaleCB", "STPDaleCB"}


def test_rounding_moves_no_pixel():
    """Other processors sum in another order, and committed figures must be the same there."""

    def pixels(rounded):
        curves = CURVES.assign(validation_accuracy=CURVES["validation_accuracy"] + rounded)
        with style.context("report", "text", 3):
            fig = plots.learning_curves(curves)
            fig.canvas.draw()
        return np.asarray(fig.canvas.buffer_rgba()).copy()

    plain = pixels(0)
    for rounded in (1e-15, -1e-15, 1e-13):
        np.testing.assert_array_equal(pixels(rounded), plain)


def test_growth_has_a_line_a_cell_over_its_epochs():
    fig = drawn("growth")
    ax = fig.axes[0]
    assert ax.get_xscale() == "log" and list(ax.get_xticks()) == [10, 40]
    lines = {line.get_label(): line for ax in fig.axes for line in ax.lines}
    for name in frames.LONGER:
        own = GROWTH[GROWTH["cell"] == name]
        means = 100 * own.groupby("epochs")["test_accuracy"].mean()
        line = lines[own["label"].iat[0]]
        assert list(line.get_xdata()) == [10, 40] and line.get_ydata() == pytest.approx(means)
    table = summaries.growth(GROWTH)
    assert set(table["cell"]) == set(frames.LONGER) and (table["low"] < table["mean"]).all()


def test_each_kind_of_run_has_a_panel_of_rates_with_the_best_ringed():
    fig = drawn("scan")
    assert len(fig.axes) == len(frames.NINE) + 6
    rings = [line for ax in fig.axes for line in ax.lines if line.get_markersize() == 8]
    scan = frames.scan()
    best = scan.loc[scan.groupby(["cell", "initialisation"])["validation_accuracy"].idxmax()]
    assert sorted(ring.get_xdata()[0] for ring in rings) == sorted(best["learning_rate"])


def test_delays_stand_in_a_panel_a_family_with_repaired_cells_below():
    runs = select.delays(frames.delays())
    fig = plots.delays(runs)
    panels = {ax.get_title("left"): ax for ax in fig.axes if ax.get_visible()}
    below = {"without STP, repaired", "with STP, repaired"}
    assert set(panels) == {"baselines", "without STP", "with STP"} | below
    drawn = {
        line.get_label(): line
        for line in panels["with STP"].lines
        if not line.get_label().startswith("_")
    }
    assert set(drawn) == {"STP nonDale", "STP nonDale, stp dt 0.1"}
    np.testing.assert_allclose(drawn["STP nonDale"].get_ydata(), [47.1, 42.1, 37.1])
    ticks = [text.get_text() for text in panels["baselines"].get_xticklabels()]
    assert ticks == ["0", "128", "512"]
    assert fig.axes[2].texts[0].get_text() == "chance"
    apart = runs.assign(test_accuracy=np.where(runs["seed"] == 0, 0.1, 0.5))
    assert plots.delays(apart).axes[0].get_ylim() == (0, pytest.approx(54))


def test_only_kinds_that_wait_as_long_share_a_spread():
    runs = select.delays(frames.delays())
    noise = np.random.default_rng(0).normal(0, 0.002, len(runs)) * (1 + 9 * (runs["task"] == "128"))
    runs = runs.assign(test_accuracy=runs["test_accuracy"] + noise)
    table = summaries.delays(runs).set_index(["group", "task"])
    for task in ("128", "512"):
        alone = summaries.groups(runs[runs["task"] == task]).set_index("group")
        found = table.xs(task, level="task")[["low", "high"]]
        np.testing.assert_allclose(found, alone.loc[found.index, ["low", "high"]])
    width = (table["high"] - table["low"]).groupby("task").median()
    assert width["128"] > 3 * width["512"]
    baselines = plots.delays(runs).axes[0]
    drawn = [bar[:, 1] for bar in baselines.containers[0].lines[2][0].get_segments()]
    np.testing.assert_allclose(
        drawn, table.loc["full GRU"].loc[["0", "128", "512"], ["low", "high"]]
    )


def test_core_seconds_stretch_each_cell_by_its_own_pace():
    frame = frames.curves(frames.runs(["cb", "gru"], ["8/4"]))
    fig = plots.core_seconds(frame, {"cb": 10.0, "gru": 20.0})
    ends = {}
    for ax in fig.axes:
        assert ax.get_xlabel() == "Training (core-seconds)"
        named = [line for line in ax.lines if not line.get_label().startswith("_")]
        ends |= {line.get_label(): line.get_xdata()[-1] for line in named}
    steps = frame["step"].max()
    assert ends == {"CB": 0.01 * steps, "full GRU": 0.02 * steps}


def test_references_are_chance_and_what_is_linear():
    ax = plots.bars(MAIN, predictions=frames.answered(MAIN), linear=0.4)
    texts = {text.get_text(): text.xy[0] for text in ax.texts}
    assert texts == {"chance": 10, "linear on pixels": 40}
    panels = plots.learning_curves(CURVES, linear=0.4).axes
    level = [line.get_ydata()[0] for ax in panels for line in ax.lines if line.get_ls() == "--"]
    assert level.count(40) == len(panels)
