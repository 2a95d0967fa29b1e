"""Finished runs: learning curves, results with their intervals, accuracy of every window."""

import numpy as np
import pandas as pd

from lib import analysis
from lib.explore.explorer import Explorer, placed
from lib.explore.view import Axis, Band, Bars, Heat, Line, Panel, Points, Rule, View, plain
from lib.explore.widgets import Checks, dropdown, offer, row
from lib.figures import plots, select, style

FAMILIES = {
    "all": lambda look: True,
    **{name: lambda look, name=name: look.family == name for name in style.FAMILIES},
    **{
        style.KINDS[kind]: lambda look, kind=kind: look.weights == kind
        for kind in ("free", "sign", "reversal")
    },
}
CURVES = (
    "validation_accuracy",
    "train_accuracy",
    "validation_loss",
    "train_loss",
    "gradient_norm",
)
RESULTS = ("test_accuracy", "validation_accuracy", "test_loss", "ms_per_step", "parameters")
KINDS = ("bars", "sorted dots", "paired differences")
MANY = 12  # groups; where there are more, the variants of a cell are shown once they are ticked
STEM = 18  # pixels of a row of results where there are many


# ---- views


def curves(cache, task, window, metric, looks, front):
    """Mean, interval from three seeds on, and seeds of some groups over training.

    Parameters
    ----------
    cache : Cache
    task, window : str
    metric : str
        A column in `style.METRICS`.
    looks : dict of group -> Look
    front : collection of str
        Groups in colour; the others stand back in grey.
    """
    frame = cache.curves(task, window)
    frame = frame[frame["group"].isin(list(looks))]
    shown, place = style.METRICS[metric], ("curves", task, window)
    table = cache.summary(place, frame, metric, ("group", "epoch"), looks)
    parts, seeds = dict(list(table.groupby("group"))), dict(list(frame.groupby("group")))
    marks = [
        mark
        for group in sorted(parts, key=lambda group: group in front)  # grey ones lie below
        for mark in _curve(group, looks[group], group in front, parts[group], seeds[group], metric)
    ]
    if shown.accuracy:
        marks.append(Rule(plots.chance(frame), "y", "chance"))
        if cache.linear(task) is not None:
            marks.append(Rule(cache.linear(task), "y", "linear on pixels"))
    low, high = frame[metric].min() * shown.factor, frame[metric].max() * shown.factor
    if shown.accuracy:
        low = min(low, plots.chance(frame))
    margin = 0.04 * (high - low) or 1
    y = Axis(shown.axis, (low - margin, high + margin))
    x = Axis("Training (epochs)", (0, table["epoch"].max()))
    panel = Panel(marks, x, y, zoom=f"{task} {window} {metric}")
    columns = ["group", "seed", "key", "step", "epoch", metric]
    height = max(420, 120 + 17 * len(front))  # every name beside its line
    return View([panel], frame[columns], _caption(cache, task, window, looks), height)


def _curve(group, look, front, part, seeds, metric):
    factor = style.METRICS[metric].factor
    x, mean = part["epoch"].to_numpy(), part["mean"].to_numpy()
    if not front:
        return [Line(x, mean, style.CONTEXT, group, look.stp, 1.2, hover=group)]
    marks = []
    if part["n"].max() >= analysis.FEWEST:
        marks.append(Band(x, part["low"].to_numpy(), part["high"].to_numpy(), look.colour, group))
    if part["n"].max() > 1:
        keys = seeds["key"].to_numpy()
        ends = np.flatnonzero(keys[1:] != keys[:-1]) + 1  # gaps, so that seeds do not join
        data = seeds[["seed", "key", "step"]].to_numpy(object)
        hover = f"{group}<br>%{{y:.4g}} at epoch %{{x:.3g}}, step %{{customdata[2]}}"
        hover += "<br>seed %{customdata[0]}, run %{customdata[1]}"
        marks.append(
            Line(
                np.insert(seeds["epoch"].to_numpy(float), ends, np.nan),
                np.insert(seeds[metric].to_numpy(float) * factor, ends, np.nan),
                look.colour,
                group,
                width=0.8,
                alpha=0.45,
                hover=hover,
                data=np.insert(data, ends, data[ends], axis=0),
            )
        )
    hover = f"{group}<br>mean %{{y:.4g}} [%{{customdata[0]:.4g}}, %{{customdata[1]:.4g}}]"
    data = part[["low", "high", "n"]].to_numpy()
    hover += ", n = %{customdata[2]}"
    line = Line(x, mean, look.colour, group, look.stp, 2.2, hover=hover, data=data, label=True)
    return [*marks, line]


def results(cache, task, window, metric, looks, front, kind="bars", baseline=None):
    """Bars from 0, sorted dots, or paired differences from a baseline; intervals, and seeds below
    their mean.
    """
    frame = cache.finished(task, window)
    frame = frame[frame["group"].isin([*looks, baseline] if baseline else list(looks))]
    shown = style.METRICS[metric]
    title = shown.axis
    if kind == "paired differences":
        table = plots.difference_summary(frame, baseline, metric)
        frame = select.differences(frame, baseline, metric)
        title = f"Difference from {baseline} ({shown.points})"
    else:
        table = cache.summary(("runs", task, window), frame, metric, ("group",), looks)
    table = table.set_index("group")
    table = table.loc[[group for group in looks if group in table.index]]
    if kind == "sorted dots":
        table = table.sort_values("mean", ascending=shown.better == "lower", kind="stable")
    rows = dict(zip(table.index, range(len(table))[::-1], strict=True))
    y, means = np.array(list(rows.values())), table["mean"].to_numpy()
    colours = [looks[group].colour if group in front else style.CONTEXT for group in rows]
    named = {
        "name": "mean",
        "hover": "%{customdata[0]}<br>mean %{x:.4g} [%{customdata[1]:.4g}, %{customdata[2]:.4g}], "
        "n = %{customdata[3]}",
        "data": table.reset_index()[["group", "low", "high", "n"]].to_numpy(object),
    }
    seeds = _seeds(frame, rows, looks, front, metric)
    if kind == "bars":
        marks = [Bars(means, y, colours, [looks[group].stp for group in rows], **named)]
        ink = [style.INK] * len(rows)
    else:
        symbols, ink = [looks[group].symbol for group in rows], colours
        marks = [Points(means, y, colours, symbols, 10, **named)]
    marks += [
        Line([row.low, row.high], [at, at], colour, width=1.6)
        for at, row, colour in zip(y, table.itertuples(), ink, strict=True)
        if row.n >= analysis.FEWEST
    ]
    marks.append(seeds)
    if kind == "paired differences":
        marks.append(Rule(0, "x"))
    elif shown.accuracy and kind == "bars":
        marks.append(Rule(plots.chance(frame), "x", "chance"))
        if cache.linear(task) is not None:
            marks.append(Rule(cache.linear(task), "x", "linear on pixels"))
    reach = _reach(table, seeds.x, 0 if kind == "bars" else None)
    y = Axis(range=(-0.7, len(rows) - 0.3), ticks=(y, list(rows)), grid=False)
    zoom = f"{task} {window} {metric} {kind}"
    panel = Panel(marks, Axis(title, reach), y, zoom=zoom)
    frame = frame[["group", "seed", "key", metric, *["baseline"] * (kind == KINDS[2])]]
    height = 120 + 30 * min(len(rows), 10) + STEM * max(len(rows) - 10, 0)
    return View([panel], frame, _caption(cache, task, window, looks), height)


def _seeds(frame, rows, looks, front, metric):
    """The seeds of each row as small dots below its mean."""
    frame = frame[frame["group"].isin(list(rows))]
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
    margin = 0.04 * (high - (low if start is None else start)) or 1
    return (low - margin if start is None else start), high + margin


def heat(cache, task, metric, looks):
    """Mean of every group at every window that was run; ``panels[0].marks[0].data`` names both."""
    frame = cache.finished(task)
    frame = frame[frame["group"].isin(list(looks))]
    table = cache.summary(("runs", task), frame, metric, ("group", "window"), looks)
    order = (
        frame.drop_duplicates("window").sort_values(["input_length", "stride"])["window"].tolist()
    )
    wide = table.pivot(index="group", columns="window", values="mean")
    wide = wide.reindex(index=[group for group in looks if group in wide.index], columns=order)
    z = wide.to_numpy()
    printed = wide.map(lambda value: "" if pd.isna(value) else f"{value:.1f}").to_numpy(object)
    groups, places = np.meshgrid(wide.index, order, indexing="ij")
    mark = Heat(
        z,
        (np.nanmin(z), np.nanmax(z)),
        text=printed,
        bar="",
        hover="%{customdata[0]} at %{customdata[1]}: %{z:.4g}",
        data=np.dstack([groups, places]),
    )
    x = Axis(
        "Window: input length/stride (pixels)",
        (-0.5, len(order) - 0.5),
        ticks=(np.arange(len(order)), order),
        grid=False,
    )
    y = Axis(
        range=(len(wide) - 0.5, -0.5),
        ticks=(np.arange(len(wide)), list(wide.index)),
        grid=False,
    )
    panel = Panel([mark], x, y, title=plain(style.METRICS[metric].axis))
    note = f"{task}: means over seeds; empty fields were not run."
    return View([panel], table[["group", "window", "mean", "low", "high", "n"]], note)


def _caption(cache, task, window, looks):
    runs = cache.finished(task, window)
    return cache.keep(
        ("caption", task, window, *looks),
        lambda: plots.caption(runs[runs["group"].isin(list(looks))]),
    )


# ---- what is chosen among finished runs


def looks_of(frame, chosen):
    """Look of each group of a frame that is chosen, in the fixed order.

    Raises
    ------
    ValueError
        None is chosen.
    """
    pairs = frame[["group", "cell"]].drop_duplicates().itertuples(index=False)
    looks = {group: style.look(cell) for group, cell in pairs if group in chosen}
    if not looks:
        raise ValueError("No cell is chosen; tick one.")
    return looks


def offer_cells(checks, frame):
    """Offer the groups of a frame; where there are many, the cells as they are come first."""
    groups = frame.drop_duplicates("group")
    plain = groups[(groups["group"] == groups["label"]) & groups["cell"].isin(style.ORDER)]
    few = len(groups) <= MANY or plain.empty
    checks.offer(groups["group"], groups["group"] if few else plain["group"])


class RunsExplorer(Explorer):
    """An explorer of finished runs: the cells to show, a family to highlight."""

    def __init__(self, store, choice, state, metrics, **controls):
        shared, choice = choice is not None, placed(store, choice, state)
        own = {
            "metric": dropdown("Metric", [(name.replace("_", " "), name) for name in metrics]),
            **controls,
            "highlight": dropdown("Highlight", list(FAMILIES)),
            "cells": Checks(),
        }
        super().__init__(own, state, choice, shared)

    def arrange(self):
        *narrow, cells = self.own
        return [row(self.controls[name] for name in narrow), self.controls[cells]]

    @property
    def place(self):
        return self.choice.cache, self.choice.task, self.choice.window.label

    def refresh(self, name=None):
        if len(self.choice.runs):
            cache, task, window = self.place
            frame = cache.finished(task, window)
            offer_cells(self.controls["cells"], frame)
            offer(self.controls["highlight"], [*FAMILIES, *frame["group"].unique()])

    def chosen(self, *also):
        """Looks of the chosen groups, and those of them that stand in front."""
        if not len(self.choice.runs):
            raise ValueError(self.choice.report())
        cache, task, window = self.place
        chosen = (*self.controls["cells"].value, *also)
        looks = looks_of(cache.finished(task, window), chosen)
        front = self.controls["highlight"].value
        family = FAMILIES.get(front, lambda look: False)
        return looks, [group for group, look in looks.items() if family(look) or group == front]


class CurveExplorer(RunsExplorer):
    """Learning curves of the cells at one window: mean, interval, seeds as thin lines.

    Controls: task, input_length, stride, metric, highlight, cells.
    """

    def __init__(self, store=None, choice=None, **state):
        super().__init__(store, choice, state, CURVES)

    def look(self):
        return curves(*self.place, self.controls["metric"].value, *self.chosen())


class BarExplorer(RunsExplorer):
    """Results of the cells at one window: bars from 0, sorted dots with intervals, or paired
    differences from a baseline; seeds as dots.

    Controls: task, input_length, stride, metric, view, baseline, highlight, cells.
    """

    def __init__(self, store=None, choice=None, **state):
        own = {"view": dropdown("View", KINDS), "baseline": dropdown("Baseline")}
        super().__init__(store, choice, state, RESULTS, **own)

    def refresh(self, name=None):
        super().refresh()
        offer(self.controls["baseline"], list(self.controls["cells"].options))

    def look(self):
        kind, baseline = self.controls["view"].value, self.controls["baseline"].value
        paired = kind == "paired differences"
        self.controls["baseline"].layout.display = None if paired else "none"
        looks, front = self.chosen(*[baseline] * paired)
        metric = self.controls["metric"].value
        return results(*self.place, metric, looks, front, kind, baseline if paired else None)
