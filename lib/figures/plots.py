"""The figures: every function takes a tidy frame of `lib.runs.store` (or one image's recording) and
returns what it drew on.

Single panels are ``f(frame, ax=None) -> ax``, several panels ``f(frame, fig=None) -> fig``. They
neither train nor save; sizes and fonts come from `lib.figures.style.context`, which runs stand side
by side from `lib.figures.select`, their means and intervals from `lib.figures.summaries`.
Accuracies are fractions in frames and percent in figures.
"""

import re
import textwrap
from math import ceil

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle

from lib import analysis, cells, windows
from lib.figures import export, select, style, summaries
from lib.figures.select import FIXED, differences, families, grouped, one, window_columns
from lib.figures.style import METRICS, VARIABLES
from lib.measures import QUANTILES

ACCURACY = METRICS["test_accuracy"]
DASHED = (0, (4, 3))
LINEAR = {"color": style.INK, "ls": DASHED, "lw": 0.8, "zorder": 2.5}
# A letter on its own, with or without an index.
SYMBOL = re.compile(r"((?<![^\s(])[A-Za-zσ](?:_[A-Za-z]+)?(?![^\s,;)]))")
READ = "#D55E00"  # the window that a step reads


# ---- over training


def curve_panel(frame: pd.DataFrame, ax=None, metric: str = "validation_accuracy"):
    """Curves of one setting against epochs: mean, interval as a band (from three seeds on), seeds
    as thin lines, names at the line ends.

    ``frame`` is of `Store.curves`, or of `Store.history` narrowed to one variable and statistic
    with ``value`` renamed to the statistic; ``metric`` is a key of `style.METRICS`.
    """
    frame = _of_one_window(frame)
    ax = ax or _axes()
    table = summaries.groups(frame, metric, ("group", "epoch"))
    _draw_curves(ax, frame, table, metric, frame["group"].unique())
    limits = _limits(table, frame[metric], METRICS[metric])
    ax.set(xlabel="Training (epochs)", ylabel=METRICS[metric].axis, ylim=limits)
    _label_ends([ax])
    return ax


def learning_curves(
    frame: pd.DataFrame, fig=None, metric: str = "validation_accuracy", linear: float | None = None
):
    """The paper figure: one panel a family of cells on one scale, each before the others in light
    grey; dashed what a ``linear`` softmax on the pixels reaches (0..1).
    """
    frame = _of_one_window(frame)
    fig = fig or _figure()
    panels = families(frame)
    axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    table = summaries.groups(frame, metric, ("group", "epoch"))
    for ax, (family, groups) in zip(axes, panels.items(), strict=True):
        _draw_curves(ax, frame, table, metric, groups)
        ax.set_title(family, loc="left")
        ax.set_xlabel("Training (epochs)")
        if linear is not None:
            _reference(ax, "y", 100 * linear, "linear on pixels" if ax is axes[0] else "")
    limits = _limits(table, frame[metric], METRICS[metric])
    axes[0].set(ylabel=METRICS[metric].axis, ylim=limits)
    _label_ends(axes)
    return fig


def core_seconds(frame: pd.DataFrame, ms: dict, fig=None, linear: float | None = None):
    """`learning_curves` against the seconds of one core that their training steps take, ``ms`` a
    step of each cell.
    """
    frame = frame[frame["cell"].isin(ms)]
    frame = frame.assign(epoch=frame["step"] * frame["cell"].map(ms) / 1000)
    fig = learning_curves(frame, fig, linear=linear)
    for ax in fig.axes:
        ax.set_xlabel("Training (core-seconds)")
    return fig


def _draw_curves(ax, frame, table, metric, highlight):
    """Draw all groups of a frame and its `summaries.groups`, those not highlighted in grey."""
    factor = METRICS[metric].factor
    for group, part in table.groupby("group", sort=False):
        own = style.look(part["cell"].iat[0])
        if group not in highlight:
            ax.plot(part["epoch"], part["mean"], color=style.CONTEXT, lw=0.8, zorder=1)
            continue
        seeds = part["n"].max()
        if seeds > 1:
            thin = {"color": own.colour, "lw": 0.4, "alpha": 0.45, "zorder": 2}
            for _, curve in frame[frame["group"] == group].groupby("seed"):
                ax.plot(curve["epoch"], curve[metric] * factor, **thin)
        if seeds >= analysis.FEWEST:
            band = {"color": own.colour, "alpha": 0.18, "lw": 0, "zorder": 2}
            ax.fill_between(part["epoch"], part["low"], part["high"], **band)
        end = part.iloc[-1]
        line = {"ls": own.line, "lw": 0.8 if end["form"] == "plain" else None}
        ax.plot(part["epoch"], part["mean"], color=own.colour, zorder=3, **line)
        mark = {"marker": own.marker, "mfc": _face(end, own), "color": own.colour}
        ax.plot(end["epoch"], end["mean"], label=group, clip_on=False, zorder=4, **mark)
    _say_few_seeds(ax, table, highlight)
    ax.set_xlim(0, table["epoch"].max())
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))


def _say_few_seeds(ax, table, groups):
    """A note on groups of too few seeds for a band; their names where others have one."""
    seeds = table[table["group"].isin(groups)].groupby("group", sort=False)["n"].max()
    notes = []
    for n, words in ((1, "n = 1 seed"), (2, "n = 2 seeds, no band")):
        names = list(seeds.index[seeds == n])
        if len(names) == len(groups):
            notes.append(words)
        elif names:
            notes.append(f"n = {n}: {', '.join(names)}")
    if notes:
        place = {"transform": ax.transAxes, "ha": "right", "va": "bottom"}
        ax.text(0.98, 0.03, "; ".join(notes), size=_small(), color="#555555", **place)


def _limits(table, seeds, metric):
    """Limits of an axis that holds all seeds and bands. No metric is negative and no share beyond
    100 %, though the interval of a skewed one may reach there.
    """
    banded, seeds = table[table["n"] >= analysis.FEWEST], seeds * metric.factor
    bottom = max(np.nanmin([seeds.min(), banded["low"].min()]), 0)
    top = np.nanmax([seeds.max(), banded["high"].max()])
    if metric.factor == 100:
        top = min(top, 100)
    margin = 0.03 * (top - bottom) or 1
    return bottom - margin, top + margin


def _label_ends(axes):
    """Names beside the last points of the lines that carry a label, moved apart, with leader
    lines.
    """
    # The layout decides how high a panel is, hence how far apart names must stand.
    axes[0].figure.draw_without_rendering()
    size = FontProperties(size=_small()).get_size_in_points()
    for ax in axes:
        lines = [line for line in ax.lines if not line.get_label().startswith("_")]
        lines = [line for line in lines if len(line.get_xdata())]
        if not lines:
            continue
        height = ax.get_window_extent().height / ax.figure.dpi * 72
        ends = [(line.get_xdata()[-1], line.get_ydata()[-1]) for line in lines]
        heights = (ax.transData + ax.transAxes.inverted()).transform(ends)[:, 1]
        places = style.spread(heights, 1.12 * size / height, 0, 1)
        for line, end, place in zip(lines, ends, places, strict=True):
            style.name_beside(ax, _plain(line.get_label()), end, place, line.get_color(), size)


def statistic_over_training(frame: pd.DataFrame, variable: str, statistic: str, ax=None):
    """One number of `Store.history` over training, a line a cell: ("z", "saturated"), ("W",
    "spectral_radius"), ("v", "outside").
    """
    chosen = frame[(frame["variable"] == variable) & (frame["statistic"] == statistic)]
    return curve_panel(chosen.rename(columns={"value": statistic}), ax, statistic)


def parameters_over_training(frame: pd.DataFrame, fig=None, variables=None):
    """Quantiles (5, 25, 50, 75, 95 %) of parameters and variables of one cell over training, from
    `Store.history`; medians over seeds.
    """
    frame = _of_one_window(frame)
    one(frame, "group")
    frame = frame[frame["statistic"].isin([*QUANTILES])]
    variables = [name for name in variables or VARIABLES if name in set(frame["variable"])]
    if not variables:
        raise ValueError(
            "None of the variables asked for was recorded over training; "
            "the frame holds none of their quantiles."
        )
    fig = fig or _figure()
    colour = style.look(frame["cell"].iat[0]).colour
    axes = _grid(fig, len(variables), columns=4, sharex=True)
    for ax, name in zip(axes, variables, strict=True):
        own = frame[frame["variable"] == name]
        table = own.pivot_table("value", "epoch", "statistic", aggfunc="median")
        _fan(ax, table.index, table[[*QUANTILES]].to_numpy().T, colour)
        # Stacked panels are too low for a label beside them.
        ax.set_title(VARIABLES[name], loc="left")
        ax.set_xlim(0, table.index.max())
    fig.supxlabel("Training (epochs)", size=mpl.rcParams["axes.labelsize"])
    return fig


# ---- summaries of finished runs


def bars(frame: pd.DataFrame, ax=None, predictions=None, linear: float | None = None):
    """Bars from 0 with interval (`summaries.groups`), seeds as dots; dashed chance and what a
    ``linear`` softmax on the pixels reaches (0..1); cells in the fixed order of their families.
    """
    frame = _of_one_window(frame)
    ax = ax or _axes()
    table = summaries.groups(frame, predictions=predictions)
    dot = {"ms": 2.2, "mfc": style.INK, "mec": "white", "mew": 0.3, "clip_on": False, "zorder": 5}
    for y, row, seeds in _rows(ax, table, frame):
        own = style.look(row.cell)
        face = mpl.colors.to_rgba(own.colour, 0.55 if own.stp else 1)
        face = "white" if row.form == "plain" else face
        outline = {"edgecolor": own.colour, "hatch": own.hatch, "lw": 0.8}
        ax.barh(y, row.mean, 0.72, facecolor=face, **outline)
        _interval_line(ax, y, row, "white", lw=2.2)  # seen on a dark bar
        _interval_line(ax, y, row, style.INK)
        ax.plot(seeds, np.full(len(seeds), y - 0.25), "o", **dot)
    _reference(ax, "x", summaries.chance(frame), "chance")
    if linear is not None:
        _reference(ax, "x", 100 * linear, "linear on pixels")
    ax.set_xlabel(ACCURACY.axis, loc="right")
    ax.set_xlim(0, None)
    return ax


def _reference(ax, axis, value, name):
    """A dashed line across a panel at a value of its x or y axis, named above it."""
    if axis == "x":
        ax.axvline(value, **LINEAR)
        place = {"xycoords": ax.get_xaxis_transform(), "ha": "center", "va": "bottom"}
        ax.annotate(name, (value, 1), size=_small(), **place)
    else:
        ax.axhline(value, **LINEAR)
        place = {"xycoords": ax.get_yaxis_transform(), "ha": "right", "va": "bottom"}
        near = {"xytext": (0, 1), "textcoords": "offset points"}
        ax.annotate(name, (0.98, value), size=_small(), **place, **near)


def dot_and_interval(frame: pd.DataFrame, ax=None, predictions=None):
    """Mean and interval (`summaries.groups`) of each cell, best first; the axis does not start
    at 0.
    """
    frame = _of_one_window(frame)
    ax = ax or _axes()
    table = summaries.groups(frame, predictions=predictions)
    _dots(ax, frame, table.sort_values("mean", ascending=False, kind="stable"))
    ax.set_xlabel(ACCURACY.axis, loc="right")
    return ax


def paired_differences(frame: pd.DataFrame, baseline="cb", ax=None, predictions=None):
    """`summaries.differences`; a dot is one seed less the baseline's mean."""
    frame = _of_one_window(frame)
    shown = differences(frame, baseline)
    ax = ax or _axes()
    _dots(ax, shown, summaries.differences(frame, baseline, predictions=predictions))
    ax.axvline(0, color=style.INK, lw=0.8, ls=DASHED, zorder=0)
    ax.set_xlabel(_difference_axis(shown), loc="right")
    return ax


# Panels of a ladder: a title, and what stands before the name of a change.
PANELS = {
    "added": ("changes added up", "+ "),
    "alone": ("one change alone", ""),
    "without": ("all changes but one", "− "),
    "other cells": ("other cells: plain (open), all changes (filled)", ""),
}


def ladder(rungs, fig=None, predictions=None, linear: float | None = None):
    """Test accuracy of every rung of a ladder (`select.rungs`), a row each.

    A bar is the simultaneous interval of the difference from the rung's reference
    (`summaries.rungs`), drawn about the reference's mean: a rung differs where its bar leaves the
    reference's line. Dashed what a ``linear`` softmax on the pixels reaches (0..1).
    """
    table = summaries.rungs(rungs, predictions)
    table["cell"] = table["cell"].map(style.kin)
    group = rungs.runs["group"]
    means = rungs.runs.groupby(group)["test_accuracy"].mean() * ACCURACY.factor
    ends = ["mean", "low", "high"]
    table[ends] = table[ends].add(table["reference"].map(means), axis=0)
    panels = dict(list(table.groupby("panel", sort=False)))
    fig = fig or _figure()
    heights = [len(part) + 0.5 for part in panels.values()]
    axes = fig.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (panel, part) in zip(axes, panels.items(), strict=True):
        title, sign = PANELS[panel]
        names = sign + part.set_index("group")["label"]
        seeds = rungs.runs.assign(group=group.map(names))
        rows = _dots(ax, seeds, part.assign(group=list(names)), filled=True)
        if panel == "other cells":
            for y, row, _ in rows:
                own = style.look(row.cell)
                ax.plot(means[row.reference], y, own.marker, mfc="white", color=own.colour, ms=4.5)
        else:
            for end in rungs.ends:
                colour = style.look(rungs.runs.loc[group == end, "cell"].iat[0]).colour
                ax.axvline(means[end], color=colour, lw=0.9, label=end, zorder=1)
        if linear is not None:
            ax.axvline(100 * linear, **LINEAR, label="linear on pixels")
        ax.set_title(title, loc="left")
    axes[-1].set_xlabel(ACCURACY.axis, loc="right")
    lines = dict(zip(*axes[0].get_legend_handles_labels()[::-1], strict=True))
    fig.legend(lines.values(), lines, loc="outside upper center", ncols=3, frameon=False)
    return fig


def before_after(runs: pd.DataFrame, history: pd.DataFrame, fig=None):
    """Accuracy beside what training did to each kind of run: a stroke before, its mark after,
    medians over seeds.

    Columns: test accuracy with its interval, saturated gates, median time constant, E/I ratio of W
    (1 is balance).
    """
    runs = grouped(runs)
    stride = one(runs, "stride")
    table = summaries.groups(runs)
    columns = {
        ("z", "saturated"): (METRICS["saturated"].axis, lambda share: 100 * share),
        ("z", "q50"): (VARIABLES["tau"], lambda z: analysis.time_constant(z, stride)),
        ("W", "ei_ratio"): (METRICS["ei_ratio"].axis, np.asarray),
    }
    history = history.merge(runs[["key", "group"]], on="key").sort_values("epoch")
    recorded = dict(list(history.groupby(["variable", "statistic"])))
    columns = {kind: how for kind, how in columns.items() if kind in recorded}
    fig = fig or _figure()
    axes = fig.subplots(1, 1 + len(columns), sharey=True, squeeze=False)[0]
    rows = _dots(axes[0], runs, table)
    axes[0].set_xlabel(ACCURACY.axis)
    for ax, (kind, (title, shown)) in zip(axes[1:], columns.items(), strict=True):
        ends = recorded[kind].groupby(["group", "key"])["value"].agg(["first", "last"])
        ends = ends.groupby("group").median()
        for y, row, _ in rows:
            if row.group in ends.index:
                own = style.look(row.cell)
                before, after = shown(ends.loc[row.group])
                ax.plot([before, after], [y, y], color=own.colour, lw=0.9)
                ax.plot(before, y, "|", color=own.colour, ms=6, mew=1.3)
                ax.plot(after, y, own.marker, color=own.colour, mfc=_face(row, own), ms=4.5)
        ax.set_xlabel(title)
        ax.grid(axis="y")
        ax.tick_params(axis="y", length=0)
        if kind != ("z", "saturated"):
            _log_ticks(ax.xaxis)
    return fig


def _log_ticks(axis):
    """A logarithmic axis with plain numbers; where it spans little, evenly spaced ones."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    wide = high > 5 * low
    subs = (1, 3) if high < 1000 * low else (1,)  # labels of more decades would touch
    locator = mpl.ticker.LogLocator(subs=subs) if wide else mpl.ticker.MaxNLocator(4)
    plain = mpl.ticker.ScalarFormatter()
    plain.set_scientific(False)
    axis.set(major_locator=locator, major_formatter=plain)
    axis.set_minor_locator(mpl.ticker.NullLocator())


def _log_values(ax, values, margin):
    """A logarithmic x axis with a tick at each of the values."""
    values = sorted(set(values))
    ax.set(xscale="log", xlim=(values[0] / margin, values[-1] * margin))
    ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())


def heatmap(frame: pd.DataFrame, ax=None, baseline: str | None = None):
    """Cell x window with the numbers printed, columns grouped by stride convention (8/4 belongs to
    both); with a ``baseline`` the differences from it, on a scale that diverges about zero.
    """
    frame = grouped(frame)
    ax = ax or _axes()
    shown = frame if baseline is None else differences(frame, baseline)
    titles, shapes = zip(*window_columns(frame), strict=True)
    table = summaries.groups(shown, by=("group", "window"))
    table = table.pivot(index="group", columns="window", values="mean")
    table = table.reindex(index=shown["group"].unique(), columns=shapes)
    if baseline is None:
        title, number = ACCURACY.axis, "{:.1f}"
        colours = {"cmap": style.SEQUENTIAL}
    else:
        title, number = _difference_axis(shown), "${:+.1f}$"
        reach = float(np.nanmax(np.abs(table.to_numpy())))
        colours = {"cmap": style.DIVERGING, "vmin": -reach, "vmax": reach}
    text = table.map(lambda value: "" if pd.isna(value) else number.format(value)).to_numpy()
    look = {"cbar": False, "linewidths": 0.5, "rasterized": True}
    sns.heatmap(table, ax=ax, annot=text, fmt="", annot_kws={"size": _small()}, **look, **colours)
    middle = {"ha": "center", "va": "center", "color": "#888888", "size": _small()}
    for row, column in np.argwhere(table.isna().to_numpy()):
        ax.text(column + 0.5, row + 0.5, "not run", **middle)
    above = {"ha": "center", "va": "baseline", "size": _small()}
    for convention in dict.fromkeys(titles):
        first, count = titles.index(convention), titles.count(convention)
        place = (first + count / 2, 0)
        ax.annotate(convention, place, (0, 3), textcoords="offset points", **above)
        ax.axvline(first, color="white", lw=5 * (first > 0), zorder=1.5)
    ax.set_title(title, pad=12)  # the numbers need no colour bar
    ax.tick_params(length=0)
    ax.tick_params(axis="y", rotation=0)
    ax.set(ylabel="", xlabel="Window: input length/stride (pixels)")
    return ax


def accuracy_vs_input_length(frame: pd.DataFrame, fig=None, predictions=None):
    """Differences of the windows from the main one (`summaries.windows`): one panel a cell, one
    line a stride convention, always 4 pixels (filled) or half the input length (open).
    """
    frame = grouped(frame)
    columns = window_columns(frame)
    titles = list(dict.fromkeys(title for title, _ in columns))
    table = summaries.windows(frame, predictions)
    groups = frame["group"].unique()
    fig = fig or _figure()
    axes = _grid(fig, len(groups), columns=5, sharex=True, sharey=True)
    for ax, group in zip(axes, groups, strict=True):
        ax.axhline(0, color=style.INK, lw=0.8, ls=DASHED, zorder=0)
        _draw_conventions(ax, table[table["group"] == group].set_index("window"), columns)
        ax.set_title(_plain(group))
        _log_values(ax, frame["input_length"], 1.3)
    keys = [
        mpl.lines.Line2D([], [], color=style.INK, marker="o", mfc=_fill(title, style.INK), lw=0.9)
        for title in titles
    ]
    fig.legend(keys, titles, loc="outside upper center", ncols=3, frameon=False, borderaxespad=0.1)
    fig.supxlabel("Input length (pixels)", size=mpl.rcParams["axes.labelsize"])
    axes[0].yaxis.set_major_locator(mpl.ticker.MaxNLocator(6))
    label = f"Difference from {select.main_window(frame)}\n({ACCURACY.points})"
    fig.supylabel(label, size=mpl.rcParams["axes.labelsize"])
    return fig


def _draw_conventions(ax, rows, columns):
    """Lines of one group, whose windows index ``rows``; the window that two conventions share is
    one point, and the others of one input length stand side by side.
    """
    own = style.look(rows["cell"].iat[0])
    shapes = [window for _, window in columns]
    titles = list(dict.fromkeys(title for title, _ in columns))
    drawn = set()
    for title, nudge in zip(titles, (0.97, 1.03, 1), strict=False):
        members = [window for name, window in columns if name == title and window in rows.index]
        part = rows.loc[members]
        alone = [shapes.count(window) == 1 and len(titles) > 1 for window in members]
        x = part["input_length"] * np.where(alone, nudge, 1)
        ax.plot(x, part["mean"], color=own.colour, ls=own.line, lw=0.9)
        new = [window not in drawn for window in members]
        errors = np.abs(part[["low", "high"]].T - part["mean"]).to_numpy()[:, new]
        mark = {"marker": own.marker, "mfc": _fill(title, own.colour), "color": own.colour}
        ax.errorbar(x[new], part["mean"][new], errors, elinewidth=0.8, ls="none", **mark)
        drawn |= set(members)


def _fill(convention, colour):
    return colour if convention == FIXED else "white"


# How W is made, in the order of the axis of `effects`, and its name there.
PLACES = {"free": "free", "sign": "sign-\nconstrained", "reversal": "reversal\npotentials"}


def effects(frame: pd.DataFrame, fig=None, predictions=None):
    """The design W x STP: how W is made on the axis, without STP (solid) and with (dashed);
    parallel lines mean no interaction. Repaired cells have a panel of their own.
    """
    frame = _of_one_window(frame[frame["cell"].isin(cells.DESIGN)])
    table = summaries.groups(frame, predictions=predictions)
    mended = table["form"] == "repaired"
    panels = {"plain": table[~mended], "repaired": table[mended]}
    panels = {title: part for title, part in panels.items() if len(part)}
    if any(part["cell"].duplicated().any() for part in panels.values()):
        raise ValueError(
            "The design shows one kind of run a cell, but the frame holds "
            f"{', '.join(table['group'])}; filter it first."
        )
    fig = fig or _figure()
    axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, part) in zip(axes, panels.items(), strict=True):
        _design(ax, part, frame)
        ax.set_title(title if len(panels) > 1 else "", loc="left")
    axes[0].set_ylabel(ACCURACY.axis)
    _label_ends(axes)
    return fig


def _design(ax, table, frame):
    looks = [style.look(name) for name in table["cell"]]
    table = table.assign(place=[list(PLACES).index(own.weights) for own in looks])
    for stp, part in table.groupby([own.stp for own in looks]):
        side = 1 if stp else -1
        part = part.assign(x=part["place"] + 0.06 * side).sort_values("x")
        for row in part.itertuples():
            own = style.look(row.cell)
            errors = [[row.mean - row.low], [row.high - row.mean]]
            mark = {"marker": own.marker, "ms": 3, "color": own.colour, "mfc": _face(row, own)}
            ax.errorbar(row.x, row.mean, errors, elinewidth=1.1, **mark)
            seeds = frame.loc[frame["group"] == row.group, "test_accuracy"] * ACCURACY.factor
            x = np.full(len(seeds), row.x + 0.09 * side)
            ax.plot(x, seeds, "o", ms=1.8, mew=0, color=own.colour, alpha=0.7)
        title = "with STP" if stp else "without STP"
        line = {"color": "#666666", "ls": own.line, "lw": 0.9, "zorder": 1}
        ax.plot(part["x"].to_numpy(), part["mean"].to_numpy(), label=title, **line)
    ax.set_xticks(range(len(PLACES)), PLACES.values())
    ax.set(xlim=(-0.4, 2.3), xlabel="How $W$ is made")


def growth(frame: pd.DataFrame, fig=None, linear: float | None = None, predictions=None):
    """Test accuracy against the epochs of training (`select.growth`), panels as `learning_curves`;
    a point, with its interval, is a training of its own.
    """
    fig = fig or _figure()
    panels = families(frame)
    axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    table = summaries.groups(frame, by=("group", "epochs"), predictions=predictions)
    for ax, (family, groups) in zip(axes, panels.items(), strict=True):
        for group, part in table.groupby("group", sort=False):
            own = style.look(part["cell"].iat[0])
            if group not in groups:
                ax.plot(part["epochs"], part["mean"], color=style.CONTEXT, lw=0.8, zorder=1)
                continue
            mark = {"marker": own.marker, "mfc": _face(part.iloc[-1], own)}
            ax.plot(
                part["epochs"], part["mean"], label=group, ls=own.line, color=own.colour, **mark
            )
            ax.vlines(part["epochs"], part["low"], part["high"], own.colour, lw=0.8)
        _log_values(ax, frame["epochs"], 1.15)
        ax.set_title(family, loc="left")
        ax.set_xlabel("Training (epochs)")
        if linear is not None:
            _reference(ax, "y", 100 * linear, "linear on pixels" if ax is axes[0] else "")
    axes[0].set_ylabel(ACCURACY.axis)
    _label_ends(axes)
    return fig


def learning_rate_scan(frame: pd.DataFrame, fig=None):
    """Validation accuracy against learning rate, one panel a kind of run, the best rate ringed."""
    frame = _of_one_window(frame.assign(rate=frame["learning_rate"], learning_rate=0))
    table = summaries.groups(frame, "validation_accuracy", ("group", "rate"))
    fig = fig or _figure()
    axes = _grid(fig, table["group"].nunique(), columns=6, sharex=True, sharey=True)
    for ax, (group, line) in zip(axes, table.groupby("group", sort=False), strict=True):
        line = line.sort_values("rate")
        own = style.look(line["cell"].iat[0])
        ax.plot(line["rate"], line["mean"], own.marker, color=own.colour, ls=own.line)
        best = line.loc[line["mean"].idxmax()]
        ring = {"ms": 8, "mfc": "none", "mec": own.colour, "mew": 0.7, "clip_on": False}
        ax.plot(best["rate"], best["mean"], "o", **ring)
        parts = group.replace(" ", "\xa0").replace(",\xa0", ", ")  # broken between changes alone
        title = textwrap.fill(parts, 20, break_long_words=False).replace("\xa0", " ")
        ax.set_title(_plain(title), size=_small())
        ax.set(xscale="log", xlim=(table["rate"].min() / 2, table["rate"].max() * 2))
        ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    fig.supxlabel("Learning rate (per step)", size=mpl.rcParams["axes.labelsize"])
    fig.supylabel(METRICS["validation_accuracy"].axis, size=mpl.rcParams["axes.labelsize"])
    return fig


# ---- one image's recording: trace maps variable -> (time, hidden)


def conductance(trace, image, window, z_max: float, fig=None):
    """The image and, beside it, its total conductance z: units sorted by their mean time constant,
    slowest on top, colours from 0 to z_max.

    ``trace`` maps variables to (time, hidden); ``image`` is (channels, rows, columns) or (rows,
    columns), 0..255 or 0..1; ``z_max`` fixes the range of the colours, so that cells compare.
    """
    z = _array(trace["z"])
    order = analysis.slowest_first(z)
    fig = fig or _figure()
    left, right = fig.subplots(1, 2, width_ratios=(1, 2.8))
    _draw_image(left, image)
    colours = {"cmap": style.SEQUENTIAL, "vmin": 0, "vmax": z_max}
    pixels = {"aspect": "auto", "interpolation": "nearest", "rasterized": True}
    mesh = right.imshow(z[:, order].T, **pixels, **colours)
    fig.colorbar(mesh, ax=right, label=VARIABLES["z"], pad=0.02)
    _image_rows(right, len(z), window, np.shape(image)[-1])
    units = z.shape[1]
    right.set_ylabel("Hidden units (slowest on top)")
    right.set_yticks([0, units - 1], ["1", str(units)])
    return fig


def quantiles_over_sequence(values, variable: str, window, columns: int, ax=None, colour=None):
    """Quantiles over units (and images) of a variable at every step, ``(time, hidden)`` or
    ``(images, time, hidden)``; for ``variable="tau"`` give the conductance z: time constants are
    shown in pixels, on a logarithmic axis.
    """
    values = _array(values)
    ax = ax or _axes()
    steps = values.shape[-2]
    pooled = np.moveaxis(values, -2, 0).reshape(steps, -1)
    quantiles = np.quantile(pooled, [*QUANTILES.values()], axis=1)
    if variable == "tau":  # falls with z; of a closed gate it would be infinite
        open_ = np.maximum(quantiles[::-1], analysis.CLOSED)
        quantiles = analysis.time_constant(open_, window.stride)
    _fan(ax, np.arange(steps), quantiles, colour or style.HUES["baseline"])
    if variable == "tau":
        _log_ticks(ax.yaxis)
    _image_rows(ax, steps, window, columns)
    ax.set_ylabel(VARIABLES[variable])
    return ax


def units_over_sequence(trace, image, window, units, step, variables=("z", "r"), fig=None):
    """Single units beside the image; the window that is read at ``step`` is framed in the image and
    marked on the axis.
    """
    fig = fig or _figure()
    grid = fig.add_gridspec(len(variables), 2, width_ratios=(1, 2.8))
    picture = fig.add_subplot(grid[:, 0])
    _draw_image(picture, image)
    _frame_window(picture, image, window, step)
    axes = [fig.add_subplot(grid[0, 1])]
    axes += [fig.add_subplot(grid[row, 1], sharex=axes[0]) for row in range(1, len(variables))]
    colours = plt.get_cmap(style.SEQUENTIAL)(np.linspace(0.05, 0.8, len(units)))
    for ax, name in zip(axes, variables, strict=True):
        values = _array(trace[name])
        for unit, colour in zip(units, colours, strict=True):
            ax.plot(values[:, unit], color=colour, lw=0.9, label=f"unit {unit + 1}")
        ax.axvline(step, color=READ, lw=0.8)
        ax.set_title(VARIABLES[name], loc="left")
        ax.tick_params(labelbottom=ax is axes[-1])
    _image_rows(axes[-1], len(values), window, np.shape(image)[-1])
    _label_ends(axes[:1])
    return fig


def plasticity(trace, window, columns: int, fig=None, colour=None):
    """Time constants (log axis, pixels) and, with STP, resources X, release probability U and
    efficacy UX of the same steps, aligned.
    """
    fig = fig or _figure()
    shown = {"tau": trace["z"]}
    if "X" in trace:
        efficacy = _array(trace["U"]) * _array(trace["X"])
        shown |= {"X": trace["X"], "U": trace["U"], "UX": efficacy}
    axes = fig.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (name, values) in zip(axes, shown.items(), strict=True):
        quantiles_over_sequence(values, name, window, columns, ax, colour)
        ax.set(xlabel=ax.get_xlabel() if ax is axes[-1] else "", ylabel="")
        ax.set_title(VARIABLES[name], loc="left")
        if name != "tau":
            ax.set_ylim(0, 1)
    return fig


# ---- memory


def against_pixels(frame: pd.DataFrame, y: str, fig=None):
    """Lines of cells against pixels: a column a family, a row a read-out (or signal); the axes.

    ``frame`` has cell (name), pixels, the column ``y`` and perhaps readout; seeds and folds are
    averaged.
    """
    shown = families(frame.assign(group=frame["cell"]))
    readouts = list(frame["readout"].unique()) if "readout" in frame else [None]
    fig = fig or _figure()
    axes = fig.subplots(len(readouts), len(shown), sharey=True, sharex=True, squeeze=False)
    for row, readout in zip(axes, readouts, strict=True):
        for ax, (family, members) in zip(row, shown.items(), strict=True):
            part = frame[frame["cell"].isin(members)]
            part = part if readout is None else part[part["readout"] == readout]
            for name, lines in part.groupby("cell", sort=False):
                own, line = style.look(name), lines.groupby("pixels")[y].mean()
                marker = own.marker if len(line) < 20 else ""
                points = {"marker": marker, "ls": own.line, "label": own.label}
                ax.plot(line.index, line, color=own.colour, **points)
            ax.set_title(family if readout is None else f"{family}, {readout}", loc="left")
            if len(part) and readout == readouts[0]:
                ax.legend(frameon=False)
    return axes


def delays(frame: pd.DataFrame, fig=None, predictions=None):
    """Test accuracy of whole images against the delay before the answer (`select.delays`): a
    column a family, a row for plain cells and one for repaired ones; mean with its interval from
    three seeds on, seeds as dots beside it, dotted where plasticity has another time step.
    """
    frame = frame[frame["first_rows"].isna()]
    delays = frame.groupby("task")["delay"].first().sort_values()
    table = summaries.delays(frame, predictions)
    table = table.assign(delay=table["task"].map(delays))
    waits = {pixels: place for place, pixels in enumerate(delays)}
    fig = fig or _figure()
    axes = fig.subplots(2, 3, sharex=True, sharey=True)
    panels, options = families(frame), frame.groupby("group")["options"].first()
    for row, line in enumerate(axes):
        for ax, family in zip(line, style.FAMILIES, strict=True):
            members = panels.get(family, ())
            shown = [name for name in members if select.repaired(options[name]) == bool(row)]
            for number, name in enumerate(shown):
                part = table[table["group"] == name].sort_values("delay")
                own, nudge = style.look(part["cell"].iat[0]), 0.06 * (number - len(shown) / 2)
                part = part[part["n"] >= analysis.FEWEST]
                x = part["delay"].map(waits) + nudge
                errors = np.abs(part[["low", "high"]].T - part["mean"]).to_numpy()
                line = ":" if "stp_dt" in dict(select.changed(options[name])) else own.line
                look = {"color": own.colour, "ls": line}
                ax.errorbar(x, part["mean"], errors, elinewidth=0.8, lw=0.9, **look)
                mark = {"ms": 3.5, "label": name.replace(", repaired", "")}
                ax.plot(x, part["mean"], own.marker, color=own.colour, **mark)
                seeds = frame[frame["group"] == name]
                x = seeds["delay"].map(waits) + nudge + 0.1
                y = seeds["test_accuracy"] * ACCURACY.factor
                ax.plot(x, y, "o", ms=2, mew=0, color=own.colour, zorder=3)
            _reference(ax, "y", summaries.chance(frame), "chance" if ax is axes[0, 2] else "")
            ax.set_title(f"{family}, repaired" if row else family, loc="left")
            ax.set_xticks(list(waits.values()), [f"{pixels:g}" for pixels in waits])
            ax.set_visible(bool(shown))
    for above, below in axes.T:
        above.tick_params(labelbottom=not below.get_visible())
    axes[1, 1].tick_params(labelleft=not axes[1, 0].get_visible())
    # Seeds of which some never learn give intervals beyond all accuracies.
    axes[0, 0].set_ylim(0, 1.08 * ACCURACY.factor * frame["test_accuracy"].max())
    _label_ends([ax for ax in axes.flat if ax.get_visible()])
    fig.supxlabel("Blank pixels before the answer", size=mpl.rcParams["axes.labelsize"])
    fig.supylabel(ACCURACY.axis, size=mpl.rcParams["axes.labelsize"])
    return fig


def lesions(frame: pd.DataFrame, ax=None):
    """What accuracy loses by each lesion: a row a lesion, a dot a cell (mean over seeds).

    ``frame`` has cell (name), lesion and drop (0..1).
    """
    ax = ax or _axes()
    rows = list(frame["lesion"].unique())
    names = sorted(frame["cell"].unique(), key=style.rank)
    for number, name in enumerate(names):
        own = style.look(name)
        drops = frame[frame["cell"] == name].groupby("lesion")["drop"].mean()
        heights = [len(rows) - 1 - rows.index(lesion) for lesion in drops.index]
        apart = (len(names) - 1 - 2 * number) / (2 * len(names)) * 0.7
        dots = {"color": own.colour, "label": own.label, "ls": ""}
        ax.plot(100 * drops, np.array(heights) + apart, own.marker, ms=4.5, **dots)
    ax.axvline(0, color=style.INK, lw=0.8, ls=DASHED, zorder=0)
    ax.set_yticks(range(len(rows))[::-1], rows)
    ax.grid(axis="y")
    ax.set_xlabel("Accuracy lost (percentage points)", loc="right")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


# ---- shared pieces


def _face(row, own):
    """Fill of a marker: a plain cell is open where it also stands repaired."""
    return "white" if row.form == "plain" else own.colour


def _figure():
    return plt.figure(layout="constrained")


def _axes():
    return _figure().add_subplot()


def _grid(fig, count, columns, **shared):
    """``count`` panels in rows of ``columns``."""
    rows = ceil(count / columns)
    axes = fig.subplots(rows, min(columns, count), squeeze=False, **shared).flat
    for ax in axes[count:]:
        ax.remove()
    for ax in axes[max(count - columns, 0) : count]:  # the lowest of each column
        ax.tick_params(labelbottom=True)
    return axes[:count]


def _of_one_window(frame):
    frame = frame if "group" in frame else grouped(frame)
    one(frame, "window")
    return frame


def _array(values) -> np.ndarray:
    """Of a tensor (of any device) or array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _small():
    """Size of the smallest text."""
    return mpl.rcParams["xtick.labelsize"]


def _plain(name):
    """A name with its symbols as mathematics (P_z, r, σ, which LaTeX knows by its name alone);
    Computer Modern has no underscore, where mathematics has one.
    """
    parts = SYMBOL.split(name)
    parts[::2] = [part.replace("_", r"$\_$") for part in parts[::2]]
    parts[1::2] = map(export.symbol, parts[1::2])
    return "".join(parts)


def _difference_axis(frame):
    """What the axis of `select.differences` says."""
    names = frame["baseline"].unique()
    name = names[0] if len(names) == 1 else "the unchanged cell"
    return f"Difference from {name} ({ACCURACY.points})"


def _rows(ax, table, frame):
    """One row a group, the first on top, by name: (height, row of the table, its seeds)."""
    heights = range(len(table))[::-1]
    ax.set_yticks(heights, [_plain(name) for name in table["group"]])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.6, len(table) - 0.4)
    return [
        (y, row, frame.loc[frame["group"] == row.group, "test_accuracy"] * ACCURACY.factor)
        for y, row in zip(heights, table.itertuples(), strict=True)
    ]


def _interval_line(ax, y, row, colour, lw=1.1):
    """The interval of one row; NaN, where there is none, draws nothing."""
    line = {"color": colour, "lw": lw, "solid_capstyle": "butt", "zorder": 3}
    ax.plot([row.low, row.high], [y, y], **line)


def _dots(ax, frame, table, filled=False):
    """Mean with interval on one row a group, seeds as small dots below it; returns `_rows`."""
    rows = _rows(ax, table, frame)
    for y, row, seeds in rows:
        own = style.look(row.cell)
        _interval_line(ax, y, row, own.colour)
        face = own.colour if filled else _face(row, own)
        ax.plot(row.mean, y, own.marker, mfc=face, color=own.colour, ms=4.5, zorder=4)
        below = np.full(len(seeds), y - 0.3)
        ax.plot(seeds, below, "o", ms=1.8, color=own.colour, alpha=0.7, mew=0)
    ax.grid(axis="y")
    if (table["n"] == 1).all():
        place = {"xycoords": "axes fraction", "ha": "right", "va": "bottom"}
        ax.annotate("n = 1 seed", (1, 1), size=_small(), color="#555555", **place)
    return rows


def _fan(ax, x, quantiles, colour):
    """Median and two bands of five quantiles."""
    ax.fill_between(x, quantiles[0], quantiles[4], color=colour, alpha=0.18, lw=0)
    ax.fill_between(x, quantiles[1], quantiles[3], color=colour, alpha=0.35, lw=0)
    ax.plot(x, quantiles[2], color=colour)


def _draw_image(ax, image):
    """An image in its colours, or in grey where its channels are not three (their mean)."""
    picture = _array(image).astype(float)
    if picture.max() > 1:
        picture = picture / 255
    if picture.ndim == 3:
        picture = np.moveaxis(picture, 0, -1) if len(picture) == 3 else picture.mean(0)
    rows, columns = picture.shape[:2]
    ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xlabel="Column (pixels)", ylabel="Row (pixels)")
    ax.set_xticks([0, columns - 1])
    ax.set_yticks(range(0, rows, max(1, rows // 4)))


def _frame_window(ax, image, window, step):
    """Frames around the pixels that a step reads, one in every row that they touch."""
    rows, columns = np.shape(image)[-2:]
    read = windows.step_pixels(rows, columns, window.input_length, window.stride, window.scan)
    row, column = np.divmod(np.asarray(read[step]), columns)
    for y in np.unique(row):
        inside = column[row == y]
        corner = (inside.min() - 0.5, y - 0.5)
        ax.add_patch(Rectangle(corner, len(inside), 1, fill=False, ec=READ, lw=1.2))


def _image_rows(ax, steps, window, columns):
    """Ticks where a step starts to read an image row."""
    ax.set_xlim(0, max(steps - 1, 1))
    per_row = columns / window.stride
    rows = np.arange(0, ceil(steps / per_row), max(1, round(steps / per_row / 8)))
    ax.set_xticks(rows * per_row, [str(row) for row in rows])
    ax.set_xlabel(f"Image row being read ({per_row:g} steps a row)")
