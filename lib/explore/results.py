"""Finished runs: learning curves, results with their intervals, accuracy of every window."""

import numpy as np
import pandas as pd

from lib import analysis
from lib.explore.view import Axis, Band, Bars, Heat, Line, Panel, Points, Rule, View, plain
from lib.figures import report, select, style, summaries

KINDS = ("bars", "sorted dots", "differences")
FEW = 4  # groups in front; the bands and seeds of more are a tangle
ROUNDING = 1e-6  # a span below is none
STEM = 18  # pixels of a row of results where there are many


def curves(cache, task, window, looks, metric, front):
    """Mean of some groups over training; of a few also the seeds and, from three on, the interval.

    Parameters
    ----------
    cache : Cache
    task, window : str
    looks : dict of group -> Look
    metric : str
        A column in `style.METRICS`.
    front : collection of str
        Groups in colour; the others stand back in grey.
    """
    frame = cache.curves(task, window)
    frame = frame[frame["group"].isin(list(looks))]
    shown = style.METRICS[metric]
    table = cache.summary(task, window, metric, looks, by=("group", "epoch"))
    close = frame[frame["group"].isin(list(front) if len(front) <= FEW else [])]
    parts, seeds = dict(list(table.groupby("group"))), dict(list(close.groupby("group")))
    marks = [
        mark
        for group in sorted(parts, key=lambda group: group in front)  # grey ones lie below
        for mark in _curve(
            group, looks[group], group in front, parts[group], seeds.get(group), metric
        )
    ]
    low, high = frame[metric].min() * shown.factor, frame[metric].max() * shown.factor
    bands = table[table["group"].isin(seeds)]
    low, high = np.nanmin([low, *bands["low"]]), np.nanmax([high, *bands["high"]])
    if shown.accuracy:
        marks += _references(cache, task, frame, "y")
        low = min(low, summaries.chance(frame))
    margin = _margin(low, high)
    y = Axis(shown.axis, (low - margin, high + margin))
    x = Axis("Training (epochs)", (0, table["epoch"].max()))
    panel = Panel(marks, x, y, share=1.1, zoom=f"{task} {window} {metric}")
    drawn = _drawn(table, close, ["group", "epoch"], metric, shown.axis)
    height = max(420, 120 + 17 * len(front))  # every name beside its line
    return View([panel], {"curves": drawn}, _caption(cache, task, window, looks), height)


def _drawn(table, seeds, by, metric, title):
    """What is drawn: means with their interval, a row for each of those seeds that are seen."""
    values = seeds.assign(value=seeds[metric] * style.METRICS[metric].factor)
    drawn = table[[*by, "mean", "low", "high", "n"]].assign(metric=plain(title))
    drawn = drawn.merge(values[[*by, "seed", "key", "value"]], how="left", on=by)
    return drawn.astype({"seed": "Int64"})  # also where there is none


def _references(cache, task, frame, axis):
    """What guessing reaches, and a linear softmax where it is stored."""
    yield Rule(summaries.chance(frame), axis, "chance")
    if cache.linear(task) is not None:
        yield Rule(cache.linear(task), axis, "linear on pixels")


def _curve(group, look, front, part, seeds, metric):
    x, mean = part["epoch"].to_numpy(), part["mean"].to_numpy()
    if not front:
        return [Line(x, mean, style.CONTEXT, group, look.stp, 1.2, hover=group)]
    marks, n = [], 0 if seeds is None else part["n"].max()
    if n >= analysis.FEWEST:
        marks.append(Band(x, part["low"].to_numpy(), part["high"].to_numpy(), look.colour, group))
    if n > 1:
        keys = seeds["key"].to_numpy()
        ends = np.flatnonzero(keys[1:] != keys[:-1]) + 1  # gaps, so that seeds do not join
        data = seeds[["seed", "key", "step"]].to_numpy(object)
        hover = f"{group}<br>%{{y:.4g}} at epoch %{{x:.3g}}, step %{{customdata[2]}}"
        hover += "<br>seed %{customdata[0]}, run %{customdata[1]}"
        values = seeds[metric].to_numpy(float) * style.METRICS[metric].factor
        own = Line(
            np.insert(seeds["epoch"].to_numpy(float), ends, np.nan),
            np.insert(values, ends, np.nan),
            look.colour,
            group,
            width=0.8,
            alpha=0.45,
            hover=hover,
            data=np.insert(data, ends, data[ends], axis=0),
        )
        marks.append(own)
    hover = f"{group}<br>mean %{{y:.4g}}%{{customdata[0]}}, n = %{{customdata[1]}}"
    data = np.column_stack((_intervals(part), part["n"].astype(object)))
    line = Line(x, mean, look.colour, group, look.stp, 2.2, hover=hover, data=data, label=True)
    return [*marks, line]


def _intervals(table):
    """The interval of each row as a reader reads it: a number that is missing would read 0."""
    ends = zip(table["low"], table["high"], strict=True)
    return [f" [{low:.4g}, {high:.4g}]" if pd.notna(low) else "" for low, high in ends]


def _margin(low, high):
    return 0.04 * (high - low) if high - low > ROUNDING else 1


def results(cache, task, window, looks, metric, front, kind="bars", baseline=None):
    """One of `KINDS` with intervals, and seeds below their mean; parameters as `curves`."""
    runs = cache.finished(task, window)
    shown = style.METRICS[metric]
    title = shown.axis
    if kind == "differences":
        table = cache.differences(task, window, metric, looks, baseline)
        runs = select.differences(runs, baseline, metric)
        title = f"Difference from {baseline} ({shown.points})"
    else:
        table = cache.summary(task, window, metric, looks)
    frame = runs[runs["group"].isin(list(looks))]
    table = table.set_index("group")
    table = table.loc[[group for group in looks if group in table.index]]
    if kind == "sorted dots":
        table = table.sort_values("mean", ascending=shown.better == "lower", kind="stable")
    rows = dict(zip(table.index, range(len(table))[::-1], strict=True))
    frame = frame[frame["group"].isin(rows)]
    y, means = np.array(list(rows.values())), table["mean"].to_numpy()
    colours = [looks[group].colour if group in front else style.CONTEXT for group in rows]
    named = {
        "name": "mean",
        "hover": "%{customdata[0]}<br>mean %{x:.4g}%{customdata[1]}, n = %{customdata[2]}",
        "data": np.column_stack((list(rows), _intervals(table), table["n"].astype(object))),
    }
    if kind == "bars":
        marks = [Bars(means, y, colours, [looks[group].stp for group in rows], **named)]
        ink = [style.INK] * len(rows)
    else:
        symbols, ink = [looks[group].symbol for group in rows], colours
        marks = [Points(means, y, colours, symbols, 10, **named)]
    marks += [
        Line([row.low, row.high], [at, at], colour, width=1.6)
        for at, row, colour in zip(y, table.itertuples(), ink, strict=True)
        if pd.notna(row.low)
    ]
    seeds = _seeds(frame, rows, looks, front, metric)
    marks.append(seeds)
    if kind == "differences":
        marks.append(Rule(0, "x"))
    elif shown.accuracy and kind == "bars":
        marks += _references(cache, task, frame, "x")
    reach = _reach(table, seeds.x, 0 if kind == "bars" else None)
    y = Axis(range=(-0.7, len(rows) - 0.3), ticks=(y, list(rows)), grid=False)
    panel = Panel(marks, Axis(title, reach), y, zoom=f"{task} {window} {metric} {kind}")
    drawn = _drawn(table.reset_index(), frame, ["group"], metric, title)
    height = 120 + 30 * min(len(rows), 10) + STEM * max(len(rows) - 10, 0)
    return View([panel], {"results": drawn}, _caption(cache, task, window, looks), height)


def _seeds(frame, rows, looks, front, metric):
    """The seeds of each row as small dots below its mean."""
    groups = frame["group"].tolist()
    return Points(
        frame[metric].to_numpy() * style.METRICS[metric].factor,
        np.array([rows[group] for group in groups]) - 0.38,
        [looks[group].colour if group in front else style.CONTEXT for group in groups],
        ["circle"] * len(groups),
        5,
        "seeds",
        "%{customdata[0]}<br>%{x:.4g}<br>seed %{customdata[1]}, run %{customdata[2]}"
        "<br>best at epoch %{customdata[3]}",
        frame[["group", "seed", "key", "best_epoch"]].to_numpy(object),
    )


def _reach(table, seeds, start):
    """Range of the axis: means, seeds and intervals."""
    values = np.concatenate([seeds, table["mean"], table["low"], table["high"]])
    low, high = np.nanmin(values), np.nanmax(values)
    margin = _margin(low if start is None else start, high)
    return (low - margin if start is None else start), high + margin


def heat(cache, task, looks, metric):
    """Mean of every group at every window where it was trained as long as at the others; fields
    know group and window. None where that is one window, or none.
    """
    frame = cache.finished(task)
    frame = frame[frame["group"].isin(list(looks))]
    epochs = select.shared_epochs(frame)
    frame = frame[frame["epochs"] == epochs]
    if frame["window"].nunique() < 2:
        return None
    shapes = frame[["window", "input_length", "stride"]].drop_duplicates()
    shapes = shapes.sort_values(["input_length", "stride"])
    means = frame.groupby(["group", "window"])[metric].mean() * style.METRICS[metric].factor
    wide = means.unstack("window")
    wide = wide.reindex(index=[group for group in looks if group in wide.index])
    wide = wide[shapes["window"]]
    printed = wide.map(lambda value: "" if pd.isna(value) else f"{value:.1f}")
    fields = [[(group, *shape) for shape in shapes.to_numpy(object)] for group in wide.index]
    z = wide.to_numpy()
    mark = Heat(
        z,
        (np.nanmin(z), np.nanmax(z)),
        text=printed.to_numpy(object),
        bar="",
        hover="%{customdata[0]} at %{customdata[1]}: %{z:.4g}",
        data=np.array(fields, object),
    )
    ticks = np.arange(len(shapes)), list(shapes["window"])
    across, down = (-0.5, len(shapes) - 0.5), (len(wide) - 0.5, -0.5)
    x = Axis("Window: input length/stride (pixels)", across, ticks=ticks, grid=False)
    ticks = np.arange(len(wide)), list(wide.index)
    y = Axis(range=down, ticks=ticks, grid=False)
    title = f"{plain(style.METRICS[metric].axis)}, {epochs} epoch{'s' * (epochs > 1)}"
    panel = Panel([mark], x, y, share=0.9, title=title)
    note = f"{task}: means over seeds; empty fields were not run."
    drawn = means.rename("mean").reset_index().assign(metric=title)
    return View([panel], {"windows": drawn}, note)


def _caption(cache, task, window, looks):
    runs = cache.finished(task, window)
    return cache.keep(
        ("caption", task, window, *looks),
        lambda: summaries.caption(runs[runs["group"].isin(list(looks))]),
    )


# ---- in words


def headline(cache, task, window, looks):
    """What the finished runs say of the test set, in sentences."""
    where = f"{summaries.task_name(cache.finished(task, window).iloc[0])}, window {window}"
    table = cache.summary(task, window, "test_accuracy", looks)

    def difference(one, other):
        return cache.differences(task, window, "test_accuracy", [one], other).iloc[0]

    return " ".join(report.headline(where, table, difference))
