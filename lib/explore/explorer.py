"""Interactive figures: plotly and ipywidgets on frames that are read once.

``SomeExplorer(store, **state)`` has ``widget`` (the container), ``controls`` (by name) and
``figure``; a change of a control updates the figure in place. What cannot be shown is said in
place: an empty store, a combination that was never run, a damaged run.
"""

from contextlib import contextmanager

import ipywidgets as widgets
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lib import analysis, datasets, paths, train, windows
from lib.config import Task, Window
from lib.explore import panels
from lib.explore.controls import (
    EXPECTED,
    STRIDES,
    Checks,
    Frames,
    WindowControls,
    assign,
    button,
    dropdown,
    integer,
    lengths,
    offer,
    placed,
    player,
    row_of,
    say,
    span,
)
from lib.figures import plots, style
from lib.runs import traces
from lib.runs.checkpoint import digest

__all__ = [
    "BarExplorer",
    "CurveExplorer",
    "Frames",
    "SequenceExplorer",
    "TraceExplorer",
    "WindowControls",
]

KINDS = {title: kind for kind, title in style.KINDS.items() if kind in ("free", "sign", "reversal")}
FAMILIES = ("all", "baselines", "without STP", "with STP", *KINDS)
PLACE = ("task", "input_length", "stride")
MANY = 12  # groups; where there are more, the variants of a cell are shown once they are ticked
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


# ---- what all explorers share


class Explorer:
    """Controls and a figure in one container.

    Attributes
    ----------
    widget : container to display
    controls : dict of name -> control
    figure : plotly FigureWidget
    frame : DataFrame or None
        The data shown, as exported; None when nothing is.
    """

    def __init__(self, controls, state, window=None):
        self.window, self.frame, self._held = window, None, False
        self.controls = {**(window.controls if window else {}), **controls}
        self.figure = go.FigureWidget(
            layout={"template": style.plotly_template(), "width": 820, "height": 440}
        )
        self.figure._config = {**self.figure._config, "displaylogo": False}
        self.message, code, export = (
            widgets.HTML(),
            button("Show code"),
            button("Export CSV and PDF"),
        )
        code.on_click(lambda _: self._tell(self.state()))
        export.on_click(
            lambda _: self._try(
                lambda: (
                    f"Written: {' and '.join('/'.join(path.parts[-3:]) for path in self.export())}."
                )
            )
        )
        reload = button("Read the store again")
        reload.on_click(lambda _: (self.window.reload(), self.update()))
        self.buttons = {"export": export, "code": code} | ({"reload": reload} if window else {})
        self.widget = widgets.VBox(
            [*self.arrange(), self.figure, self.message, row_of(self.buttons.values())],
            layout={"width": "100%"},
        )
        with self._hold():
            assign(self.controls, state, self.refresh)
        for control in self.controls.values():
            control.observe(self._changed, "value")
        self.update()

    def _repr_mimebundle_(self, **options):
        return self.widget._repr_mimebundle_(**options)

    def arrange(self):
        """Rows of controls above the figure."""
        return [row_of(self.controls.values())]

    def refresh(self):
        """Fit what the controls offer to each other."""

    def draw(self):
        """Draw the current state and return a note; ValueError, StoreError and OSError are told in
        place.
        """
        raise NotImplementedError

    def update(self):
        """Draw what the controls say."""
        if not self._try(self._draw):
            self.frame = None
            panels.show(
                self.figure,
                [],
                panels.empty("not run" if "not run" in self.message.value else "nothing to show"),
            )

    def _draw(self):
        with self._hold():
            self.refresh()
        return self.draw()

    def set(self, **state):
        """Set controls by name, then draw once."""
        with self._hold():
            assign(self.controls, state, self.refresh)
        self.update()

    def state(self):
        """Code that makes this view again."""
        values = [f"{name}={control.value!r}" for name, control in self.controls.items()]
        return f"explorer.{type(self).__name__}({', '.join(['store'] * (self.window is not None) + values)})"

    def paper(self, journal="notebook", width="text", height=3.0):
        """The current view as `lib.figures.plots` draws it, a matplotlib figure; ValueError when
        nothing is shown.
        """
        if self.frame is None:
            raise ValueError(
                "Nothing is shown, so there is nothing to draw or export; choose a combination that was run."
            )
        with style.context(journal, width, height):
            figure = self.matplotlib()
            figure.draw_without_rendering()
        return figure

    def export(self, folder=None):
        """Write the current view, data as CSV and figure as PDF, by default to ``views`` of the
        results folder; returns the paths.
        """
        folder = (
            folder
            or (self.window.frames.store.root if self.window else paths.results_dir()) / "views"
        )
        path = (
            folder
            / f"{type(self).__name__.removesuffix('Explorer').lower()}-{digest(self.state().encode())[:8]}"
        )
        figure = self.paper("report")
        folder.mkdir(parents=True, exist_ok=True)
        with style.context():
            figure.savefig(path.with_suffix(".pdf"))
        plt.close(figure)
        self.frame.to_csv(path.with_suffix(".csv"), index=False)
        return path.with_suffix(".csv"), path.with_suffix(".pdf")

    def _try(self, action):
        """Tell the note that ``action`` returns, or why it cannot be done; True if it was done."""
        try:
            note, done = action(), True
        except EXPECTED as error:
            note, done = str(error), False
        damaged = self.window.frames.problems if self.window else {}
        self._tell(note, *(f"Left out, run {key}: {text}" for key, text in damaged.items()))
        return done

    def _tell(self, *lines):
        self.message.value = say(*lines)

    def _changed(self, change):
        if not self._held:
            self.update()

    @contextmanager
    def _hold(self):
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before


class _RunsExplorer(Explorer):
    """An explorer of finished runs: the cells to show, a family to highlight."""

    table = "runs"

    def __init__(self, store, window, state, metrics, **controls):
        window = placed(store, window, {name: state.pop(name) for name in PLACE if name in state})
        own = {
            "metric": dropdown("Metric", [(name.replace("_", " "), name) for name in metrics]),
            **controls,
        }
        own |= {"highlight": dropdown("Highlight", FAMILIES), "cells": Checks()}
        super().__init__(own, state, window)

    def arrange(self):
        return [
            row_of(control for name, control in self.controls.items() if name != "cells"),
            self.controls["cells"],
        ]

    @property
    def place(self):
        return self.window.task, self.window.window.label

    def refresh(self):
        if len(self.window.runs):
            groups = self.window.frames.grouped("runs", *self.place).drop_duplicates("group")
            plain = groups[
                (groups["group"] == groups["label"])
                & (groups["cell"] == groups["cell"].map(style.kin))
            ]
            self.controls["cells"].offer(
                groups["group"],
                groups["group"] if len(groups) <= MANY or plain.empty else plain["group"],
            )

    def chosen(self, *also):
        """Rows of the chosen cells; ``looks`` has their looks by name, ``front`` those of the
        highlighted family.
        """
        if not len(self.window.runs):
            raise ValueError(self.window.report())
        frame = self.window.frames.grouped(self.table, *self.place)
        looks = {
            group: style.look(cell)
            for group, cell in frame[["group", "cell"]].drop_duplicates().itertuples(index=False)
        }
        self.looks = {
            group: own
            for group, own in looks.items()
            if group in (*self.controls["cells"].value, *also)
        }
        if not self.looks:
            raise ValueError("No cell is chosen; tick one.")
        self.front = [
            group
            for group, own in self.looks.items()
            if _in_family(own, self.controls["highlight"].value)
        ]
        return frame[frame["group"].isin(list(self.looks))]

    def _summary(self, metric, *by):
        return self.window.frames.summary(self.table, *self.place, metric, by, self.looks)

    def caption(self, frame):
        frames, groups = self.window.frames, frame["group"].unique()
        runs = frames.grouped("runs", *self.place)
        return frames.keep(
            ("caption", *self.place, *groups),
            lambda: plots.caption(runs[runs["group"].isin(groups)]),
        )


class CurveExplorer(_RunsExplorer):
    """Learning curves of the cells at one window: mean, interval, seeds as thin lines.

    Controls: task, input_length, stride, metric, highlight, cells.
    """

    table = "curves"

    def __init__(self, store=None, window=None, **state):
        metrics = (
            "validation_accuracy",
            "train_accuracy",
            "validation_loss",
            "train_loss",
            "gradient_norm",
        )
        super().__init__(store, window, state, metrics)

    def draw(self):
        self.frame, metric = self.chosen(), self.controls["metric"].value
        (unit, factor), table = plots.METRICS[metric], self._summary(metric, "group", "epoch")
        seeds = dict(
            list(
                self.frame[
                    ["group", "key", "seed", "step", "epoch", "class_names", metric]
                ].groupby("group")
            )
        )
        parts, specs = dict(list(table.groupby("group"))), []
        for group, own in self.looks.items():
            specs += panels.curve(
                group,
                own if group in self.front else None,
                parts[group],
                seeds[group],
                metric,
                factor,
            )
        shapes = (
            [panels.line(plots.chance(seeds[group]), "y")] if metric.endswith("accuracy") else []
        )
        low, high = (
            self.frame[metric].min() * factor,
            self.frame[metric].max() * factor,
        )  # the band of two seeds may reach far beyond
        axes = {
            "xaxis": {"title": {"text": "Training (epochs)"}, "range": [0, table["epoch"].max()]},
            "yaxis": {
                "title": {"text": panels.plain(unit)},
                "range": [low - 0.04 * (high - low), high + 0.04 * (high - low)],
            },
        }
        panels.show(
            self.figure,
            specs,
            {**axes, "shapes": shapes, "height": max(440, 130 + 30 * len(self.looks))},
        )  # the whole legend
        return self.caption(self.frame)

    def matplotlib(self):
        highlight = (
            None
            if self.controls["highlight"].value == "all"
            else list(plots.grouped(self.frame).query("group in @self.front")["group"])
        )
        return plots.curve_panel(self.frame, None, self.controls["metric"].value, highlight).figure


class BarExplorer(_RunsExplorer):
    """Results of the cells at one window: bars from 0, sorted dots with intervals, or paired
    differences from a baseline; seeds as dots.

    Controls: task, input_length, stride, metric, view, baseline, highlight, cells.
    """

    def __init__(self, store=None, window=None, **state):
        metrics = ("test_accuracy", "validation_accuracy", "test_loss", "ms_per_step", "parameters")
        view = dropdown("View", ("bars", "sorted dots", "paired differences"))
        super().__init__(store, window, state, metrics, view=view, baseline=dropdown("Baseline"))

    def refresh(self):
        super().refresh()
        offer(self.controls["baseline"], [(name, name) for name in self.controls["cells"].options])

    def draw(self):
        metric, view, baseline = (
            self.controls[name].value for name in ("metric", "view", "baseline")
        )
        (unit, factor), bars, paired = (
            plots.METRICS[metric],
            view == "bars",
            view == "paired differences",
        )
        self.frame = self.chosen(*[baseline] * paired)
        shown = plots.differences(self.frame, baseline, metric) if paired else self.frame
        table = (
            plots.summary(shown, metric) if paired else self._summary(metric, "group")
        ).set_index("group")
        table = table.loc[[group for group in self.looks if group in table.index]]
        if view == "sorted dots":
            table = table.sort_values(
                "mean", ascending=metric.endswith(("loss", "step")), kind="stable"
            )
        looks = [self.looks[group] for group in table.index]
        colours = [
            own.colour if group in self.front else style.CONTEXT
            for group, own in zip(table.index, looks, strict=True)
        ]
        error = {
            "type": "data",
            "array": np.nan_to_num(table["high"] - table["mean"]),
            "arrayminus": np.nan_to_num(table["mean"] - table["low"]),
            "thickness": 1.2,
            "width": 0,
        }
        summary = {
            "y": list(table.index),
            "x": table["mean"].to_numpy(),
            "orientation": "h",
            "showlegend": False,
        }
        summary |= {"customdata": table[["low", "high", "n"]].to_numpy(), "name": "mean"}
        summary["hovertemplate"] = (
            "%{y}<br>mean %{x:.4g} [%{customdata[0]:.4g}, %{customdata[1]:.4g}], n = %{customdata[2]}<extra></extra>"
        )
        pattern = {
            "shape": ["/" if own.stp else "" for own in looks],
            "fgcolor": "white",
            "size": 6,
        }
        marker = {"color": colours, "symbol": [own.symbol for own in looks], "size": 11}
        bar = {
            **summary,
            "type": "bar",
            "marker": {"color": colours, "pattern": pattern},
            "error_x": {**error, "color": style.INK},
        }
        dot = {
            **summary,
            "type": "scatter",
            "mode": "markers",
            "marker": marker,
            "error_x": {**error, "color": "#888888"},
        }
        seeds = {
            "type": "scatter",
            "mode": "markers",
            "x": shown[metric].to_numpy() * factor,
            "y": shown["group"].tolist(),
            "name": "seeds",
        }
        seeds |= {
            "customdata": shown[["seed", "key", "best_epoch"]].to_numpy(),
            "showlegend": False,
        }
        seeds |= {"marker": {"size": 6, "color": "white", "line": {"color": style.INK, "width": 1}}}
        seeds["hovertemplate"] = (
            "%{y}<br>%{x:.4g}<br>seed %{customdata[0]}, run %{customdata[1]}<br>best at epoch %{customdata[2]}<extra></extra>"
        )
        specs = [
            bar if bars else {**bar, "x": [], "y": []},
            {**dot, "x": [], "y": []} if bars else dot,
            seeds,
        ]
        words = (
            f"Paired difference from {baseline} ({'percentage points' if factor == 100 else panels.plain(unit)})"
            if paired
            else panels.plain(unit)
        )
        at = 0 if paired else plots.chance(shown) if metric.endswith("accuracy") and bars else None
        axes = {
            "xaxis": {
                "title": {"text": words},
                "rangemode": "tozero" if bars else "normal",
                "autorange": True,
            }
        }
        axes["yaxis"] = {
            "categoryorder": "array",
            "automargin": True,
            "categoryarray": list(table.index)[::-1],
            "autorange": True,
            "ticks": "",
        }
        axes |= {
            "bargap": 0.3,
            "height": max(440, 150 + 26 * len(table)),
            "shapes": [] if at is None else [panels.line(at, "x")],
        }
        panels.show(self.figure, specs, axes)
        return self.caption(self.frame)

    def matplotlib(self):
        metric, view = self.controls["metric"].value, self.controls["view"].value
        if view == "paired differences":
            return plots.paired_differences(
                self.frame, self.controls["baseline"].value, None, metric
            ).figure
        return (plots.bars if view == "bars" else plots.dot_and_interval)(
            self.frame, None, metric
        ).figure


# ---- one image: as a sequence, and as a cell reads it


class SequenceExplorer(Explorer):
    """How an image becomes a sequence: the window drawn on the image, and what each step reads.

    Controls: dataset, image, scan, input_length, stride, step.
    """

    def __init__(self, split="test", data=None, **state):
        self.split, self.source, self._data = split, data, {}
        step = widgets.IntSlider(
            value=0,
            min=0,
            max=1,
            description="Step",
            continuous_update=False,
            style={"description_width": "initial"},
        )
        controls = {
            "dataset": dropdown("Data set", datasets.names()),
            "image": integer("Image"),
            "scan": dropdown("Scan", windows.SCANS),
        }
        controls |= {
            "input_length": dropdown("Input length"),
            "stride": dropdown("Stride", STRIDES),
            "step": step,
        }
        self.play = player(step)
        if "input_length" not in state:
            state["input_length"] = 8
        super().__init__(controls, state)

    def arrange(self):
        *rest, step = self.controls.values()
        return [row_of(rest), row_of([self.play, step])]

    @property
    def window_(self):
        length = self.controls["input_length"].value
        return Window(
            length,
            windows.resolve_stride(self.controls["stride"].value, length),
            self.controls["scan"].value,
        )

    def refresh(self):
        _, rows, columns = datasets.get(self.controls["dataset"].value).shape
        offer(
            self.controls["input_length"],
            [(f"{length} pixels", length) for length in lengths(columns)],
        )
        window = self.window_
        for control in (self.controls["step"], self.play):
            control.max = (
                windows.sequence_length(rows, columns, window.input_length, window.stride) - 1
            )

    def load(self):
        """The chosen data set; the first time it is read, or downloaded if it is not here."""
        name = self.controls["dataset"].value
        if name not in self._data:
            self._tell(f"Reading {name} ...")
            self._data[name] = datasets.load(Task(name), data=self.source)
        return self._data[name]

    def draw(self):
        data, window, number = self.load(), self.window_, self.controls["image"].value
        self.controls["image"].max = len(data.labels[self.split]) - 1
        number = min(number, self.controls["image"].max)
        images, labels = data.batch(self.split, [number])
        _, rows, columns = data.shape
        sequence = windows.to_sequence(images, window.input_length, window.stride, window.scan)[
            0
        ].numpy()
        pixels = windows.step_pixels(
            rows, columns, window.input_length, window.stride, window.scan
        ).numpy()
        channels = sequence.shape[1] // window.input_length
        names = [
            f"{pixel + 1}{'' if channels == 1 else ' ' + 'RGB'[channel]}"
            for pixel in range(window.input_length)
            for channel in range(channels)
        ]
        self.image, self.sequence, self.pixels, self.columns = (
            data.images[self.split][number],
            sequence,
            pixels,
            columns,
        )
        where = np.repeat(pixels, channels, 1).T
        seen = {
            "type": "heatmap",
            "z": sequence.T,
            "customdata": np.dstack([where // columns, where % columns]),
            "xaxis": "x2",
            "yaxis": "y2",
        }
        seen["hovertemplate"] = (
            "step %{x}, row %{customdata[0]}, column %{customdata[1]}<br>%{z:.2f} standard deviations<extra></extra>"
        )
        seen |= {
            "y": names,
            "colorscale": "gray",
            "colorbar": {"title": {"text": "Input (sd)", "side": "right"}, "thickness": 12},
        }
        axes = panels.beside(
            self.image,
            panels.row_ticks(pixels[:, 0] // columns, len(pixels)),
            "Value of the window",
            len(pixels),
        )
        axes["yaxis2"] |= {"type": "category", "autorange": "reversed", "nticks": 12}
        panels.show(
            self.figure, [panels.picture(self.image), seen], {**axes, "shapes": self._mark()}
        )
        self.frame = pd.DataFrame(sequence, columns=[f"value {name}" for name in names])
        self.frame.insert(0, "row", pixels[:, 0] // columns)
        self.frame.insert(0, "step", np.arange(len(sequence)))
        overlap = window.input_length - window.stride
        said = f"{len(sequence)} steps of {sequence.shape[1]} values; neighbouring windows share {overlap} of {window.input_length} pixels"
        unread = rows * columns - pixels.max() - 1 if window.scan == "raster" else 0
        said += f"; the last {unread} pixels are not read" if unread else ""
        return f"{self.controls['dataset'].value}, image {number}: {data.class_names[int(labels[0])]}. {window.label}: {said}."

    def _mark(self):
        step = self.controls["step"].value
        return [
            *panels.outline(self.pixels[step], self.columns),
            panels.line(step, "x", "x2", "y2 domain", panels.MARK),
        ]

    def _changed(self, change):
        if change["owner"] is self.controls["step"] and self.frame is not None and not self._held:
            self.figure.layout.shapes = self._mark()  # while playing, only the marks move
        else:
            super()._changed(change)

    def matplotlib(self):
        values = np.linspace(0, self.sequence.shape[1] - 1, min(4, self.sequence.shape[1])).astype(
            int
        )
        step = self.controls["step"].value
        figure = plots.units_over_sequence(
            {"x": self.sequence}, self.image, self.window_, values, step, ("x",)
        )
        for text in figure.findobj(mpl.text.Text):
            text.set_text(text.get_text().replace("unit", "value"))
        return figure


class TraceExplorer(Explorer):
    """What the variables of a trained run do over the sequence of an image, or its parameters over
    training.

    Controls: task, input_length, stride, cell, run, view, show, variable, of_class, image, units,
    time, step. Units are sorted by their mean time constant, slowest first; the first ``images``
    test images are recorded once for each run.
    """

    VIEWS = ("variables over the sequence", "parameters over training")
    SHOWS = (
        "heat map",
        "quantiles",
        "single units",
        "correct and wrong images",
        "before and after training",
    )

    def __init__(self, store=None, window=None, images=40, data=None, **state):
        self.count, self.source, self.trace = images, data, None
        window = placed(store, window, {name: state.pop(name) for name in PLACE if name in state})
        step, slider = (
            widgets.IntSlider(
                value=0,
                min=0,
                max=1,
                description="Step",
                continuous_update=False,
                style={"description_width": "initial"},
            ),
            {
                "continuous_update": False,
                "min": 0,
                "max": 1,
                "style": {"description_width": "initial"},
            },
        )
        controls = {
            "cell": dropdown("Cell"),
            "run": dropdown("Run"),
            "view": dropdown("View", self.VIEWS),
            "variable": dropdown("Variable"),
        }
        controls |= {
            "show": dropdown("Show", self.SHOWS),
            "of_class": dropdown("Class"),
            "image": dropdown("Image"),
        }
        controls |= {"units": widgets.IntRangeSlider(value=(0, 1), description="Units", **slider)}
        controls |= {
            "time": widgets.IntRangeSlider(value=(0, 1), description="Steps", **slider),
            "step": step,
        }
        self.play = player(step)
        super().__init__(controls, state, window)

    def arrange(self):
        rows = [
            ("task", "input_length", "stride", "cell", "run"),
            ("view", "variable", "show", "of_class", "image"),
        ]
        return [
            *(row_of(self.controls[name] for name in row) for row in rows),
            row_of(
                [
                    self.controls["units"],
                    self.controls["time"],
                    widgets.HBox([self.play, self.controls["step"]]),
                ]
            ),
        ]

    @property
    def training(self):
        """Whether the view is over training."""
        return self.controls["view"].value == self.VIEWS[1]

    def refresh(self):
        self.trace, control, frames = None, self.controls, self.window.frames
        if not len(self.window.runs):
            for name in ("cell", "run", "variable", "of_class", "image"):
                offer(control[name], [])
            raise ValueError(self.window.report())
        runs = frames.grouped("runs", self.window.task, self.window.window.label)
        offer(control["cell"], [(group, group) for group in runs["group"].unique()])
        own = runs[runs["group"] == control["cell"].value]
        offer(
            control["run"], [(f"seed {row.seed}, {row.key}", row.key) for row in own.itertuples()]
        )
        for name in ("show", "of_class", "image", "units", "time", "step"):
            control[name].disabled = self.training
        if self.training:
            self.history = frames.keep(
                ("history", self.key), lambda: frames.store.history(key=self.key)
            )
            held = self.history.loc[
                self.history["statistic"].isin(plots.QUANTILES), "variable"
            ].unique()
            return offer(
                control["variable"],
                [
                    (panels.plain(plots.VARIABLES[name]), name)
                    for name in plots.VARIABLES
                    if name in held
                ],
            )
        self.trace = self.recorded("best")
        names = [
            *(["tau"] if "z" in self.trace.variables else []),
            *self.trace.variables,
            *(["UX"] if "U" in self.trace.variables else []),
        ]
        offer(
            control["variable"],
            [
                (panels.plain(plots.VARIABLES[name]), name)
                for name in plots.VARIABLES
                if name in names
            ],
        )
        classes, right = self.data.class_names, self.trace.labels == self.trace.predictions
        present = sorted(set(self.trace.labels.tolist()))
        offer(
            control["of_class"],
            [("all", -1), ("read wrongly", -2), *((classes[label], label) for label in present)],
        )
        wanted = control["of_class"].value
        self.among = np.flatnonzero(
            ~right
            if wanted == -2
            else np.isin(self.trace.labels, present if wanted == -1 else [wanted])
        )
        names = [
            f"{self.trace.images[i]}: {classes[self.trace.labels[i]]}, read as {classes[self.trace.predictions[i]]}"
            for i in self.among
        ]
        offer(control["image"], list(zip(names, self.among.tolist(), strict=True)))
        span(control["units"], len(self.trace.units))
        span(control["time"], len(self.trace.rows))
        for slider in (control["step"], self.play):
            slider.max = len(self.trace.rows) - 1

    @property
    def key(self):
        return self.controls["run"].value

    @property
    def data(self):
        frames = self.window.frames
        return frames.keep(("data", self.window.task), self._read_data)

    def _read_data(self):
        config = self.window.frames.store.config(self.key)
        try:
            train.check(config)  # registers a data set of one's own
            return datasets.load(config.task, data=self.source)
        except ValueError as error:
            raise ValueError(
                f"The images of {config.task.dataset} are not at hand, only what was stored while "
                f"it was trained ({self.VIEWS[1]}). {error}"
            ) from error

    def recorded(self, which):
        """The recording of the first test images, made at first use and kept in memory."""
        count, store = (
            range(min(self.count, len(self.data.labels["test"]))),
            self.window.frames.store,
        )
        return self.window.frames.keep(
            ("trace", self.key, which, self.count),
            lambda: traces.record(
                self.key, count, store=store, which=which, data=self.data, keep=False, log=None
            ),
        )

    def draw(self):
        variable, unit = (
            self.controls["variable"].value,
            panels.plain(plots.VARIABLES[self.controls["variable"].value]),
        )
        self.colour = style.look(self.window.runs.set_index("key").at[self.key, "cell"]).colour
        return (
            self._over_training(variable, unit)
            if self.training
            else self._over_sequence(variable, unit)
        )

    def _over_training(self, variable, unit):
        own = self.history[
            (self.history["variable"] == variable) & self.history["statistic"].isin(plots.QUANTILES)
        ]
        table = own.pivot_table(index=["epoch", "step"], columns="statistic", values="value")[
            plots.QUANTILES
        ].reset_index()
        hover = (
            f"epoch %{{x:.3g}}, step %{{customdata}}<br>%{{y:.4g}}<br>{self._who()}<extra></extra>"
        )
        fan = panels.fan(
            table["epoch"].to_numpy(),
            table[plots.QUANTILES].to_numpy().T,
            self.colour,
            "median",
            hover,
            table["step"].to_numpy(),
        )
        layout = {
            "xaxis2": {
                "title": {"text": "Training (epochs)"},
                "domain": [0, 1],
                "tickmode": "auto",
                "range": [0, table["epoch"].max()],
            }
        }
        layout |= {
            "yaxis2": {"title": {"text": unit}, "type": "linear", "autorange": True},
            "xaxis": {"visible": False},
            "yaxis": {"visible": False},
        }
        panels.show(self.figure, [panels.HIDDEN["image"], panels.HIDDEN["heatmap"], *fan], layout)
        self.frame = own
        return f"{self._who()}: 5, 25, 50, 75 and 95 % quantiles over entries or units."

    def _who(self):
        return f"{self.controls['cell'].value}, seed {self.window.runs.set_index('key').at[self.key, 'seed']}, run {self.key}"

    def _values(self, trace, variable, images):
        """(images, time, units) of a recorded or derived variable, units in the order of
        `order`.
        """
        part = trace["z" if variable == "tau" else "U" if variable == "UX" else variable][
            images
        ].astype(np.float32)
        if variable == "UX":
            part = part * trace["X"][images]
        part = (
            analysis.time_constant(np.clip(part, 1e-6, 1), self.window.window.stride)
            if variable == "tau"
            else part
        )
        return part[:, :, self.order]

    def _over_sequence(self, variable, unit):
        if not len(self.among):
            raise ValueError(
                "There is nothing to show: none of the recorded images is of this kind; choose another class."
            )
        control, trace, number = self.controls, self.trace, self.controls["image"].value
        gate = trace["z"][number].astype(np.float32) if "z" in trace.variables else None
        order = (
            np.arange(len(trace.units)) if gate is None else np.argsort(gate.mean(0), kind="stable")
        )  # slow gates are small
        self.order, (first, last), show = (
            order[control["units"].value[0] : control["units"].value[1] + 1],
            control["time"].value,
            control["show"].value,
        )
        self.picture = picture = self.data.images["test"][int(trace.images[number])].numpy()
        config = self.window.window
        self.pixels = windows.step_pixels(
            *picture.shape[1:], config.input_length, config.stride, config.scan
        ).numpy()
        held = (
            {
                name: value.item()
                for name, value in self.cell.constrained().items()
                if name in ("v_e", "v_i")
            }
            if variable == "v"
            else {}
        )
        self.levels = (
            []
            if show == "heat map"
            else [panels.line(level, "y", "x2", "y2", style.INK) for level in held.values()]
        )
        x, values = (
            np.arange(first, last + 1),
            self._values(trace, variable, [number])[:, first : last + 1],
        )
        rows = trace.rows[first : last + 1]
        where, note = f"<br>{self._who()}<extra></extra>", ""
        axes = panels.beside(
            picture, panels.row_ticks(trace.rows, len(trace.rows)), unit, (first, last)
        )
        axes["yaxis2"] |= {"type": "log" if variable == "tau" else "linear", "autorange": True}
        empty, lines = panels.HIDDEN["heatmap"], []
        if show == "heat map":
            z = np.log10(values[0].T) if variable == "tau" else values[0].T
            low, high = self._limits(variable, z)
            names = [f"unit {trace.units[unit] + 1}" for unit in self.order]
            bar = {
                "title": {
                    "text": f"log10 of {unit}" if variable == "tau" else unit,
                    "side": "right",
                },
                "thickness": 12,
            }
            empty = {
                "type": "heatmap",
                "x": x,
                "z": z,
                "zmin": low,
                "zmax": high,
                "colorscale": "Viridis",
                "colorbar": bar,
                "xaxis": "x2",
                "yaxis": "y2",
            }
            empty["customdata"] = np.dstack(np.meshgrid(rows, trace.units[self.order] + 1))
            empty["hovertemplate"] = (
                f"step %{{x}}, row %{{customdata[0]}}, unit %{{customdata[1]}}<br>%{{z:.4g}}{where}"
            )
            axes["yaxis2"] |= {
                "title": {"text": "Hidden units (slowest on top)"},
                "type": "linear",
                "autorange": "reversed",
            }
            self.frame = pd.DataFrame(values[0], columns=names)
        elif show == "single units":
            chosen = np.unique(
                np.linspace(0, len(self.order) - 1, min(6, len(self.order))).astype(int)
            )
            for place, shade in zip(chosen, np.linspace(0.05, 0.8, len(chosen)), strict=True):
                colour = mpl.colors.to_hex(plt.get_cmap(style.SEQUENTIAL)(shade))
                name = f"unit {trace.units[self.order[place]] + 1}"
                hover = f"{name}, step %{{x}}, row %{{customdata}}<br>%{{y:.4g}}{where}"
                lines.append(
                    {
                        **panels.LINE,
                        "x": x,
                        "y": values[0, :, place],
                        "name": name,
                        "line": {"color": colour, "width": 1.5},
                        "customdata": rows,
                        "hovertemplate": hover,
                    }
                )
            self.frame = pd.DataFrame(
                values[0][:, chosen], columns=[line["name"] for line in lines]
            )
        else:
            found = []
            for name, part, colour in self._groups(show, variable, number):
                part = part[:, first : last + 1]
                quantiles = np.quantile(
                    np.moveaxis(part, 1, 0).reshape(len(x), -1), QUANTILES, axis=1
                )
                lines += panels.fan(
                    x,
                    quantiles,
                    colour,
                    name,
                    f"{name}, step %{{x}}, row %{{customdata}}<br>%{{y:.4g}}{where}",
                    rows,
                )
                found.append(
                    pd.DataFrame(
                        quantiles.T, columns=[f"{name} {quantile}" for quantile in plots.QUANTILES]
                    )
                )
            note = " 5, 25, 50, 75 and 95 % quantiles over units" + (
                " and images." if show == self.SHOWS[3] else "."
            )
            if show == self.SHOWS[3] and len(found) == 1:
                note += f" All of these {len(self.among)} images are {found[0].columns[0].split(' images')[0]}."
            self.frame = pd.concat(found, axis=1)
        for name, column in (("pixel", trace.pixels[first : last + 1]), ("row", rows), ("step", x)):
            self.frame.insert(0, name, column)
        panels.show(
            self.figure, [panels.picture(picture), empty, *lines], {**axes, "shapes": self._mark()}
        )
        return f"{self._who()}; test image {control['image'].label}.{note}"

    def _groups(self, show, variable, number):
        """(name, values (images, time, units), colour) of what is compared."""
        if show == "before and after training":
            yield "before", self._values(self.recorded("initial"), variable, [number]), "#888888"
            yield "after", self._values(self.trace, variable, [number]), self.colour
        elif show == "correct and wrong images":
            right = self.trace.labels[self.among] == self.trace.predictions[self.among]
            for name, images, colour in (
                ("correct images", self.among[right], self.colour),
                ("wrong images", self.among[~right], panels.MARK),
            ):
                if len(images):
                    yield name, self._values(self.trace, variable, images), colour
        else:
            yield "median", self._values(self.trace, variable, [number]), self.colour

    def _limits(self, variable, values):
        """Range of the colours, fixed where the variable has one, so that cells and images
        compare.
        """
        if variable == "z":
            return 0, self.cell.z_max
        return (
            (0, 1)
            if variable in ("r", "X", "U", "UX")
            else (float(values.min()), float(values.max()))
        )

    @property
    def cell(self):
        """The trained cell."""
        return self.window.frames.keep(
            ("model", self.key), lambda: self.window.frames.store.load(self.key)
        ).cell

    def _mark(self):
        step, permuted = (
            self.controls["step"].value,
            self.window.tasks[self.window.task][0].permuted,
        )
        outline = [] if permuted else panels.outline(self.pixels[step], self.data.shape[-1])
        return [*outline, panels.line(step, "x", "x2", "y2 domain", panels.MARK), *self.levels]

    def _changed(self, change):
        if change["owner"] is self.controls["step"] and self.trace is not None and not self._held:
            self.figure.layout.shapes = self._mark()  # while playing, only the marks move
        else:
            super()._changed(change)

    def matplotlib(self):
        variable, show, columns = (
            self.controls["variable"].value,
            self.controls["show"].value,
            self.data.shape[-1],
        )
        if self.training:
            return plots.parameters_over_training(self.frame, None, [variable])
        number, permuted = (
            self.controls["image"].value,
            self.window.tasks[self.window.task][0].permuted,
        )
        trace = self.trace.image(number) | {"tau": None}
        if show == "heat map" and variable == "z":
            return plots.conductance(
                trace, self.picture, self.window.window, self.cell.z_max, permuted=permuted
            )
        if show == "single units" and variable not in ("tau", "UX"):
            units, step = (
                [int(name.split()[1]) - 1 for name in self.frame.columns[3:]],
                self.controls["step"].value,
            )
            return plots.units_over_sequence(
                trace, self.picture, self.window.window, units, step, (variable,), permuted=permuted
            )
        axes = plt.figure(layout="constrained").add_subplot()
        for _, values, colour in self._groups(show, "z" if variable == "tau" else variable, number):
            plots.quantiles_over_sequence(
                values, variable, self.window.window, columns, axes, colour, permuted=permuted
            )
        return axes.figure


def _in_family(own, family):
    if family == "without STP":
        return own.weights != "baseline" and not own.stp
    return family == "all" or (
        own.stp if family == "with STP" else own.weights == KINDS.get(family, "baseline")
    )
