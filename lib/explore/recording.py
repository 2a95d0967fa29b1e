"""The variables of a trained run while it reads an image, and its parameters over training."""

from dataclasses import dataclass

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import to_hex

from lib import analysis, datasets, windows
from lib.cells.registry import registered
from lib.explore.choice import NotRun
from lib.explore.explorer import Explorer
from lib.explore.figure import Figure
from lib.explore.sequence import boxes, picture_panel, step_axis
from lib.explore.view import (
    FRAME,
    GREY,
    TEMPLATE,
    Axis,
    Band,
    Box,
    Heat,
    Line,
    Panel,
    Picture,
    Rule,
    View,
    plain,
    png,
)
from lib.explore.widgets import dropdown, offer, player, row, slider, span
from lib.figures import style
from lib.measures import QUANTILES
from lib.runs import traces

VIEWS = ("variables over the sequence", "parameters over training")
DERIVED = {"tau": "z", "UX": "U"}  # variable -> a recorded one that it follows from
FRACTIONS = ("r", "X", "U", "UX")
UNITS = 6  # single units that are drawn
ALBUM = 20  # thumbnails in a row


class Recorded:
    """The first test images as a run reads them; ValueError without its weights or the images."""

    def __init__(self, cache, key, label, count, folder=None):
        self.cache, self.key, self.label, self.count = cache, key, label, count
        self.config, self.model = cache.store.config(key), cache.store.load(key)
        self.data = cache.keep(("data", self.config.task), images_of, self.config, folder)
        self.trace = self.traced()

    def traced(self, which="best"):
        """The recording with the best or the initial weights, made once."""
        images = range(min(self.count, len(self.data.labels["test"])))
        options = {"store": self.cache.store, "data": self.data, "keep": False, "log": None}
        what = "trace", self.key, which, self.count
        return self.cache.keep(what, traces.record, self.key, images, which=which, **options)

    @property
    def colour(self):
        return style.look(self.config.cell.name).colour

    @property
    def pixels(self):
        """Raster indices (steps, input length) that each step reads."""
        return windows.task_pixels(self.config.task, self.config.window).numpy()

    def picture(self, number):
        return self.data.images["test"][int(self.trace.images[number])].numpy()

    @property
    def variables(self):
        held = self.trace.variables
        return [name for name in style.VARIABLES if DERIVED.get(name, name) in held]

    def values(self, variable, images, trace=None):
        """A recorded or derived variable (images, time, units); time constants in pixels."""
        trace = trace or self.trace
        values = trace[DERIVED.get(variable, variable)][images].astype(np.float32)
        if variable == "UX":
            return values * trace["X"][images]
        if variable == "tau":
            open_ = np.clip(values, analysis.CLOSED, 1)
            return analysis.time_constant(open_, self.config.window.stride)
        return values

    def order(self, number):
        """Units by their mean time constant on an image, the slowest first."""
        if "z" not in self.trace.variables:
            return np.arange(len(self.trace.units))
        return analysis.slowest_first(self.values("z", [number])[0])

    def read_out(self, number):
        """Probability of each class if the sequence ended at a step, (time, classes)."""

        def make():
            index = [int(self.trace.images[number])]
            x, _ = windows.sequences(self.data, self.config.window, "test", index)
            with torch.no_grad():
                logits = self.model.readout(self.model.states(x))[0]
            return logits.softmax(-1).numpy()

        return self.cache.keep(("read out", self.key, self.count, number), make)


def images_of(config, folder=None):
    """The data set that a run was trained on; ValueError where it is not at hand."""
    try:
        with registered(config.task):
            return datasets.load(config.task, data=folder)
    except ValueError as error:
        raise ValueError(
            f"The images of {config.task.dataset} are not at hand, only what was stored while it "
            f"was trained ({VIEWS[1]}); give their folder as data=. {error}"
        ) from error


# ---- over the sequence: each gives marks, the y axis, a frame with a row a step, and a note


@dataclass
class Chosen:
    """What of a recording is shown."""

    run: Recorded
    variable: str
    number: int  # of the image among the recorded ones
    units: np.ndarray
    steps: np.ndarray
    among: np.ndarray  # images of the chosen class

    @property
    def rows(self):
        return self.run.trace.rows[self.steps]

    @property
    def values(self):
        """(steps, units) of the image."""
        return self.run.values(self.variable, self.number)[self.steps][:, self.units]


def heat_map(seen):
    """Every unit at every step."""
    values, variable = seen.values, seen.variable
    z, unit = values.T, style.VARIABLES[variable]
    if variable == "tau":
        z, unit = np.log10(z), f"log10 of {unit}"
    reach = float(np.abs(z).max())
    limits = {
        "z": (0, getattr(seen.run.model.cell, "z_max", 1)),
        **dict.fromkeys(FRACTIONS, (0, 1)),
        **dict.fromkeys(("v", "h"), (-reach, reach)),
    }.get(variable, (float(z.min()), float(z.max())))
    names = seen.run.trace.units[seen.units] + 1
    where = np.dstack(np.broadcast_arrays(seen.rows, names[:, None]))
    hover = "step %{x}, row %{customdata[0]}, unit %{customdata[1]}<br>%{z:.4g}"
    look = {"diverging": variable in ("v", "h"), "hover": hover, "data": where}
    ends = [0, len(names) - 1]
    ticks = ends, [str(end + 1) for end in ends]
    y = Axis("Hidden units (slowest on top)", (len(names) - 0.5, -0.5), ticks=ticks, grid=False)
    frame = pd.DataFrame(values, columns=[f"unit {name}" for name in names])
    return [Heat(z, limits, unit, seen.steps, **look)], y, frame, ""


def single_units(seen):
    """A few units, from the slowest to the fastest."""
    count = len(seen.units)
    places = np.unique(np.linspace(0, count - 1, min(UNITS, count)).astype(int))
    marks, frame = _levels(seen), {}
    for place, shade in zip(places, np.linspace(0.05, 0.8, len(places)), strict=True):
        name = f"unit {seen.run.trace.units[seen.units[place]] + 1}"
        colour = to_hex(plt.get_cmap(style.SEQUENTIAL)(shade))
        frame[name] = seen.values[:, place]
        hover = f"{name}, step %{{x}}, row %{{customdata}}<br>%{{y:.4g}}"
        look = {"width": 1.6, "hover": hover, "data": seen.rows, "label": True}
        marks.append(Line(seen.steps, frame[name], colour, name, **look))
    return marks, _y(seen.variable, *frame.values()), pd.DataFrame(frame), ""


def quantiles(seen):
    """Median and middle 50 and 90 % of the units."""
    return _fans(seen, [("", seen.run.values(seen.variable, [seen.number]), seen.run.colour)])


def correct_and_wrong(seen):
    """Images that are read correctly against those that are not."""
    trace = seen.run.trace
    right = trace.labels[seen.among] == trace.predictions[seen.among]
    kinds = [("correct", right, seen.run.colour), ("wrong", ~right, FRAME)]
    kinds = [kind for kind in kinds if kind[1].any()]
    parts = [
        (f"{part.sum()} {name}", seen.run.values(seen.variable, seen.among[part]), colour)
        for name, part, colour in kinds
    ]
    note = f" All of these {len(right)} images are {kinds[0][0]}." if len(kinds) == 1 else ""
    *drawn, bands = _fans(seen, parts, "units and images")
    return *drawn, bands + note


def before_and_after(seen):
    """The same image with the initial and with the trained weights."""
    values, own = seen.run.values, (seen.variable, [seen.number])
    parts = [
        ("before", values(*own, seen.run.traced("initial")), GREY),
        ("after", values(*own), seen.run.colour),
    ]
    return _fans(seen, parts)


def class_read_out(seen):
    """Probability of the classes if the sequence ended at each step."""
    run = seen.run
    probabilities = run.read_out(seen.number)[seen.steps]
    names, truth = run.data.class_names, run.trace.labels[seen.number]
    best = np.argsort(-probabilities.max(0))[:5]
    marks, frame = [], {}
    for place, index in enumerate(sorted({*best, truth}, key=lambda i: i == truth)):
        name = names[index] + " (true)" * int(index == truth)
        colour = run.colour if index == truth else to_hex(plt.get_cmap("tab10")((place + 6) % 10))
        frame[name] = 100 * probabilities[:, index]
        hover = f"{name}, step %{{x}}<br>%{{y:.1f}} %"
        look = {"width": 2.4 if index == truth else 1.4, "label": True, "hover": hover}
        marks.append(Line(seen.steps, frame[name], colour, name, **look))
    y = Axis("Probability if the image ended here (%)", (0, 100))
    return marks, y, pd.DataFrame(frame), ""


SHOWS = {
    "heat map": heat_map,
    "quantiles": quantiles,
    "single units": single_units,
    "correct and wrong images": correct_and_wrong,
    "before and after training": before_and_after,
    "class read out": class_read_out,
}


def _fans(seen, parts, pooled="units"):
    marks, frame = _levels(seen), {}
    for name, values, colour in parts:
        flat = np.moveaxis(values[:, seen.steps][:, :, seen.units], 1, 0)
        bounds = np.quantile(flat.reshape(len(seen.steps), -1), [*QUANTILES.values()], axis=1)
        marks += fan(seen.steps, bounds, colour, name, seen.rows)
        named = zip(QUANTILES, bounds, strict=True)
        frame |= {f"{name} {quantile}".strip(): values for quantile, values in named}
    note = f" Bands: middle 50 and 90 % over {pooled}, line: median."
    return marks, _y(seen.variable, *frame.values()), pd.DataFrame(frame), note


def fan(x, bounds, colour, name="", rows=None):
    """Two bands and the median of five quantiles."""
    bands = [
        Band(x, bounds[k], bounds[4 - k], colour, name, alpha) for k, alpha in ((0, 0.18), (1, 0.3))
    ]
    where = "" if rows is None else ", row %{customdata}"
    hover = f"{name or 'median'}: %{{y:.4g}}<br>at %{{x:.4g}}{where}"
    return [*bands, Line(x, bounds[2], colour, name, hover=hover, data=rows, label=bool(name))]


def _levels(seen):
    """Reversal potentials, which bound the voltage."""
    if seen.variable != "v":
        return []
    held = seen.run.model.cell.constrained()
    return [Rule(held[name].item(), "y", name) for name in ("v_e", "v_i") if name in held]


def _y(variable, *values):
    low = min(float(np.min(part)) for part in values)
    high = max(float(np.max(part)) for part in values)
    title = style.VARIABLES[variable]
    if variable == "tau":
        return Axis(title, (low / 1.2, high * 1.2), log=True)
    margin = 0.04 * (high - low) or 0.01
    return Axis(title, (low - margin, high + margin))


def over_image(run, variable, number, units, step, trail):
    """Median over units of a variable at each pixel when it was read last, (rows, columns); nan
    where it was not read in the last ``trail`` steps, or is not read yet.
    """
    series = np.median(run.values(variable, number)[:, units], 1)
    if variable == "tau":
        series = np.log10(series)
    rows, columns = run.data.shape[1:]
    steps = np.arange(max(0, step - trail + 1), step + 1)
    flat = np.full(max(rows * columns, run.pixels.max() + 1), np.nan)
    flat[run.pixels[steps].ravel()] = np.repeat(series[steps], run.pixels.shape[1])
    image = flat[: rows * columns].reshape(rows, columns)
    return image, (float(series.min()), float(series.max()))


# ---- over training


def over_training(history, variable, run, label, colour):
    """Quantiles of a parameter or variable at every validation."""
    own = history[(history["variable"] == variable) & history["statistic"].isin([*QUANTILES])]
    wide = own.pivot_table(index="epoch", columns="statistic", values="value")[[*QUANTILES]]
    x, bounds = wide.index.to_numpy(), wide.to_numpy().T
    axes = Axis("Training (epochs)", (0, x.max())), _y(variable, bounds)
    panel = Panel(fan(x, bounds, colour), *axes)
    note = f"{label}, seed {run.seed}, run {run.key}: 5, 25, 50, 75 and 95 % quantiles."
    drawn = own[["key", "step", "epoch", "variable", "statistic", "value"]]
    return View([panel], {"training": drawn}, note)


class TraceExplorer(Explorer):
    """What the variables of a trained run do over the sequence of an image, or its parameters over
    training.

    Controls: task, input_length, stride, cell, run, view, variable, show, of_class, image, units,
    time, over, beside, trail, speed, step. Units are sorted by their mean time constant, slowest
    first; the first ``images`` test images are recorded once for each run.
    """

    def __init__(self, store=None, choice=None, images=40, data=None, **state):
        self.count, self.folder = images, data
        self.given = {"images": images, "data": data and str(data)}
        step = slider("Step")
        self.play, self.album, self._album = player(step), Figure(flex="1 1 100%"), None
        self.album.on_click(self._pick)
        ranges = {"kind": ipywidgets.IntRangeSlider, "value": (0, 1)}
        controls = {
            "cell": dropdown("Cell"),
            "run": dropdown("Run"),
            "view": dropdown("View", VIEWS),
            "variable": dropdown("Variable"),
            "show": dropdown("Show", list(SHOWS)),
            "of_class": dropdown("Class"),
            "image": dropdown("Image"),
            "units": slider("Units", **ranges),
            "time": slider("Steps", **ranges),
            "over": dropdown("Over the image", [("nothing", "")]),
            "beside": dropdown("Beside", [("no other cell", "")]),
            "trail": dropdown("Trail", [("all steps", 10**6), ("64 steps", 64), ("16 steps", 16)]),
            "speed": dropdown("Speed", [("normal", 200), ("slow", 600), ("fast", 60)]),
            "step": step,
        }
        super().__init__(controls, state, store, choice)

    def arrange(self):
        of_run = ("cell", "run", "view", "variable", "show", "of_class", "image")
        playing = ("over", "beside", "trail", "speed", "units", "time")
        return [
            row(self.controls[name] for name in of_run),
            self.album,
            row(self.controls[name] for name in playing),
            row([self.play, self.controls["step"]]),
        ]

    @property
    def training(self):
        """Whether the view is over training."""
        return self.controls["view"].value == VIEWS[1]

    @property
    def key(self):
        return self.controls["run"].value

    def update(self):
        self.among = ()  # nor are thumbnails left of what was shown before
        super().update()
        self.album.layout.display = None if self.view and not self.training else "none"

    def refresh(self, name=None):
        control, cache, self.run = self.controls, self.choice.cache, None
        if not len(self.choice.runs):
            for empty in ("cell", "run", "variable", "of_class", "image"):
                offer(control[empty], [])
            raise NotRun(self.choice.report())
        runs = cache.finished(self.choice.task, self.choice.window.label)
        groups = list(runs["group"].unique())
        offer(control["cell"], groups)
        own = runs[runs["group"] == control["cell"].value]
        known = [(f"seed {run.seed}, {run.key}", run.key) for run in own.itertuples()]
        offer(control["run"], known)
        if name in ("cell", "run"):
            return  # nothing is recorded before both are known
        for later in self.own[self.own.index("show") :]:
            control[later].disabled = self.training
        if self.training:
            self.history = cache.keep(("history", self.key), cache.store.history, key=self.key)
            quantiles = self.history[self.history["statistic"].isin([*QUANTILES])]
            held = set(quantiles["variable"])
            offer(control["variable"], named(name for name in style.VARIABLES if name in held))
            return
        self.run = self._recorded(self.key, control["cell"].value)
        offer(control["beside"], [("no other cell", ""), *zip(groups, groups, strict=True)])
        offer(control["variable"], named(self.run.variables))
        known = [name for name in ("z", "tau", "UX") if name in self.run.variables]
        offer(control["over"], [("nothing", ""), *named(known)])
        control["beside"].disabled = not control["over"].value
        self._offer_images()
        span(control["units"], len(self.run.trace.units))
        span(control["time"], len(self.run.trace.rows))
        for moving in (control["step"], self.play):
            moving.max = len(self.run.trace.rows) - 1
        self.play.interval = control["speed"].value

    def _offer_images(self):
        trace, classes = self.run.trace, self.run.data.class_names
        present = sorted(set(trace.labels.tolist()))
        of_class = self.controls["of_class"]
        every = ((classes[label], label) for label in present)
        offer(of_class, [("all", -1), ("read wrongly", -2), *every])
        kinds = {-1: trace.labels >= 0, -2: trace.labels != trace.predictions}
        self.among = np.flatnonzero(kinds.get(of_class.value, trace.labels == of_class.value))
        truth, read = ([classes[i] for i in part] for part in (trace.labels, trace.predictions))
        names = [
            (f"{trace.images[i]}: {truth[i]}, read as {read[i]}", i) for i in self.among.tolist()
        ]
        offer(self.controls["image"], names)

    def _recorded(self, key, label):
        cache, what = self.choice.cache, ("recorded", key, self.count)
        return cache.keep(what, Recorded, cache, key, label, self.count, self.folder)

    def look(self):
        control = {name: c.value for name, c in self.controls.items()}
        if self.training:
            run = self.choice.runs.set_index("key", drop=False).loc[self.key]
            colour = style.look(run["cell"]).colour
            return over_training(self.history, control["variable"], run, control["cell"], colour)
        if not len(self.among):
            raise ValueError(
                "There is nothing to show: none of the recorded images is of this kind; choose "
                "another class."
            )
        run, number, step = self.run, control["image"], control["step"]
        steps = np.arange(control["time"][0], control["time"][1] + 1)
        units = self._units(run, number)
        seen = Chosen(run, control["variable"], number, units, steps, self.among)
        marks, y, frame, note = SHOWS[control["show"]](seen)
        mark = Rule(step, "x", "", FRAME, dashed=False)
        zoom = f"{self.key} {seen.variable} {control['show']} {control['time']}"
        height = run.data.images["test"].shape[-2]
        sequence = Panel([*marks, mark], step_axis(seen.rows, steps[0], height), y, zoom=zoom)
        where = pd.DataFrame({"step": steps, "row": seen.rows, "pixel": run.trace.pixels[steps]})
        self._show_album(number)
        who = f"{run.label}, seed {run.config.seed}, run {run.key}"
        note = f"{who}; {self._said(run, number, step)}{note}"
        images, over = self._images(number, control)
        if over and control["beside"] and len(images) == 1:
            note += f" {control['beside']} has no {control['over']} to lie over its image."
        return View([*images, sequence], {"steps": where.join(frame), **over}, note)

    def _units(self, run, number):
        first, last = self.controls["units"].value
        return run.order(number)[first : last + 1]

    def _images(self, number, control):
        """Panels of the image, framed where the step reads, under a variable, and again for the
        cell beside; and the table of what lies over them, if anything does.
        """
        over, step, run, runs = control["over"], control["step"], self.run, [self.run]
        if control["beside"] and over:
            groups = self.choice.cache.finished(self.choice.task, self.choice.window.label)
            own = groups.loc[groups["group"] == control["beside"], "key"].iloc[0]
            runs.append(self._recorded(own, control["beside"]))
        read = run.pixels[step]
        rows, columns = run.data.shape[1:]
        permuted = run.config.task.permuted
        frames = [] if permuted else boxes(read[read < rows * columns], columns)
        if not over:
            return [picture_panel(run.picture(number), frames)], {}
        runs = [one for one in runs if over in one.variables]
        heats = [
            over_image(one, over, number, self._units(one, number), step, control["trail"])
            for one in runs
        ]
        limits = min(low for _, (low, _) in heats), max(high for _, (_, high) in heats)
        unit = f"median {'log10 of ' * (over == 'tau')}{style.VARIABLES[over]}"
        look = {"alpha": 0.72, "bar": "bottom", "hover": "%{z:.4g}"}
        panels, tables = [], []
        for one, (z, _) in zip(runs, heats, strict=True):
            marks = [Heat(z, limits, unit, **look), *frames]
            panels.append(picture_panel(one.picture(number), marks, one.label))
            pixels = np.argwhere(np.isfinite(z))
            table = pd.DataFrame(pixels, columns=["row", "column"]).assign(value=z[*pixels.T])
            tables.append(table.assign(variable=plain(unit), cell=one.label, run=one.key))
        return panels, {"image": pd.concat(tables)}

    def _said(self, run, number, step):
        names, chances = run.data.class_names, run.read_out(number)[step]
        best = int(chances.argmax())
        return (
            f"test image {run.trace.images[number]}, of class {names[run.trace.labels[number]]}. "
            f"If it ended at step {step}, it would be read as {names[best]} ({chances[best]:.0%})."
        )

    def _show_album(self, number):
        """Thumbnails of the images to choose from, in rows."""
        of = self.key, *self.among
        if of != self._album:  # the pictures are drawn once, their frame moves
            self._album = of
            self.pictures, self._cells = album([self.run.picture(i) for i in self.among])
        wide, high = self._cells
        place = int(np.flatnonzero(self.among == number)[0])
        left, top = wide * (place % ALBUM), high * (place // ALBUM)
        count = -(-len(self.among) // ALBUM)
        hidden = {"visible": False, "fixedrange": True, "constrain": "domain"}
        across, down = [-0.5, ALBUM * wide - 0.5], [count * high - 0.5, -0.5]
        layout = {
            "template": TEMPLATE,
            "height": 20 + 52 * count,
            "margin": {"l": 4, "r": 4, "t": 4, "b": 4},
            "xaxis": {**hidden, "range": across, "constraintoward": "left"},
            "yaxis": {**hidden, "range": down, "constraintoward": "top", "scaleanchor": "x"},
            "shapes": [Box(left, top, wide, high).shape()],
        }
        hover = "click to choose<extra></extra>"
        trace = {"type": "image", "source": self.pictures, "hovertemplate": hover}
        self.album.show([trace], layout)

    def _pick(self, point):
        """Choose the image that was clicked."""
        wide, high = self._cells
        place = ALBUM * (int(point["y"]) // high) + int(point["x"]) // wide
        if place < len(self.among):
            self.controls["image"].value = int(self.among[place])


def album(images):
    """Images (channels, rows, columns) in rows of `ALBUM`, as the address of a picture; and the
    size of a field (columns, rows), in pixels.
    """
    arrays = np.stack([Picture(image).array for image in images])
    count, rows, columns, channels = arrays.shape
    wide, high, lines = columns + 2, rows + 2, -(-count // ALBUM)
    fields = np.zeros((lines * ALBUM, high, wide, 4), np.uint8)  # clear
    fields[:count, 1:-1, 1:-1, 3] = 255
    fields[:count, 1:-1, 1:-1, :channels] = arrays
    canvas = fields.reshape(lines, ALBUM, high, wide, 4).swapaxes(1, 2)
    return png(canvas.reshape(lines * high, ALBUM * wide, 4)), (wide, high)


def named(variables):
    """(axis label as plain text, variable) of each."""
    return [(plain(style.VARIABLES[name]), name) for name in variables]
