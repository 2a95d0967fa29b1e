"""The variables of a trained run while it reads an image, and its parameters over training."""

from dataclasses import dataclass, field

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import to_hex

from lib import analysis, datasets, train, windows
from lib.explore.explorer import Explorer, placed
from lib.explore.figure import Figure
from lib.explore.sequence import boxes, picture_panel, step_axis
from lib.explore.view import (
    FRAME,
    GREY,
    TEMPLATE,
    Axis,
    Band,
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
from lib.figures import plots, style
from lib.runs import traces

VIEWS = ("variables over the sequence", "parameters over training")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
FRACTIONS = ("r", "X", "U", "UX")
UNITS = 6  # single units that are drawn
ALBUM = 20  # thumbnails in a row


@dataclass
class Recorded:
    """The first test images as one run reads them, and the images themselves."""

    key: str
    config: object
    label: str
    colour: str
    model: object
    data: datasets.Dataset
    trace: traces.Trace
    read: dict = field(default_factory=dict)  # number of an image -> what `read_out` gave

    @property
    def who(self):
        return f"{self.label}, seed {self.config.seed}, run {self.key}"

    @property
    def pixels(self):
        """Raster indices (steps, input length) that each step reads."""
        return windows.task_pixels(self.config.task, self.config.window).numpy()

    def picture(self, number):
        return self.data.images["test"][int(self.trace.images[number])].numpy()

    @property
    def variables(self):
        held = self.trace.variables
        also = {"tau": "z" in held, "UX": "U" in held}
        return [name for name in style.VARIABLES if name in held or also.get(name)]

    def values(self, variable, images, trace=None):
        """A recorded or derived variable (images, time, units); time constants in pixels."""
        trace = trace or self.trace
        stored = {"tau": "z", "UX": "U"}.get(variable, variable)
        values = trace[stored][images].astype(np.float32)
        if variable == "UX":
            return values * trace["X"][images]
        if variable == "tau":
            return analysis.time_constant(np.clip(values, 1e-6, 1), self.config.window.stride)
        return values

    def order(self, number):
        """Units by their mean time constant on an image, the slowest first."""
        if "z" not in self.trace.variables:
            return np.arange(len(self.trace.units))
        z = self.trace["z"][number].astype(np.float32)
        return np.argsort(-analysis.time_constant(z).mean(0), kind="stable")

    def read_out(self, number):
        """Probability of each class if the sequence ended at a step, (time, classes)."""
        if number not in self.read:
            index = [int(self.trace.images[number])]
            x, _ = windows.sequences(self.data, self.config.window, "test", index)
            with torch.no_grad():
                logits = self.model.readout(self.model.states(x))[0]
            self.read[number] = logits.softmax(-1).numpy()
        return self.read[number]


def recorded(cache, key, label, count, folder=None):
    """`Recorded` of a run, made at first use and kept in memory.

    Raises
    ------
    ValueError
        The weights or the images are not at hand.
    """

    def make():
        config, model = cache.store.config(key), cache.store.load(key)
        data = cache.keep(("data", config.task), lambda: images_of(config, folder))
        trace = recording(cache, key, data, count)
        colour = style.look(config.cell.name).colour
        return Recorded(key, config, label, colour, model, data, trace)

    return cache.keep(("recorded", key, count), make)


def images_of(config, folder=None):
    """The data set that a run was trained on.

    Raises
    ------
    ValueError
        It is not at hand.
    """
    try:
        train.check(config)  # registers a data set of one's own
        return datasets.load(config.task, data=folder)
    except ValueError as error:
        raise ValueError(
            f"The images of {config.task.dataset} are not at hand, only what was stored while it "
            f"was trained ({VIEWS[1]}); give their folder as data=. {error}"
        ) from error


def recording(cache, key, data, count, which="best"):
    images = range(min(count, len(data.labels["test"])))
    return cache.keep(
        ("trace", key, which, count),
        lambda: traces.record(
            key, images, store=cache.store, which=which, data=data, keep=False, log=None
        ),
    )


# ---- over the sequence: each gives marks, the y axis, a frame with a row a step, and a note


def heat_map(run, variable, number, units, steps, **_):
    """Every unit at every step."""
    values = run.values(variable, number)[steps][:, units]
    z, unit = values.T, style.VARIABLES[variable]
    if variable == "tau":
        z, unit = np.log10(z), f"log10 of {style.VARIABLES['tau']}"
    reach = float(np.abs(z).max())
    limits = {
        "z": (0, getattr(run.model.cell, "z_max", 1)),
        **dict.fromkeys(FRACTIONS, (0, 1)),
        **dict.fromkeys(("v", "h"), (-reach, reach)),
    }.get(variable, (float(z.min()), float(z.max())))
    read = np.broadcast_to(run.trace.rows[steps], z.shape)
    number_of = np.broadcast_to(run.trace.units[units][:, None] + 1, z.shape)
    mark = Heat(
        z,
        limits,
        unit,
        steps,
        diverging=variable in ("v", "h"),
        hover="step %{x}, row %{customdata[0]}, unit %{customdata[1]}<br>%{z:.4g}",
        data=np.dstack([read, number_of]),
    )
    ends = [0, len(units) - 1]
    ticks = ends, [str(end + 1) for end in ends]
    y = Axis("Hidden units (slowest on top)", (len(units) - 0.5, -0.5), ticks=ticks, grid=False)
    names = [f"unit {unit + 1}" for unit in run.trace.units[units]]
    return [mark], y, pd.DataFrame(values, columns=names), ""


def single_units(run, variable, number, units, steps, **_):
    """A few units, from the slowest to the fastest."""
    values = run.values(variable, number)[steps]
    chosen = units[np.unique(np.linspace(0, len(units) - 1, min(UNITS, len(units))).astype(int))]
    marks, frame = _levels(run, variable), {}
    for unit, shade in zip(chosen, np.linspace(0.05, 0.8, len(chosen)), strict=True):
        name = f"unit {run.trace.units[unit] + 1}"
        colour = to_hex(plt.get_cmap(style.SEQUENTIAL)(shade))
        frame[name] = values[:, unit]
        hover = f"{name}, step %{{x}}, row %{{customdata}}<br>%{{y:.4g}}"
        line = {"hover": hover, "data": run.trace.rows[steps], "label": True}
        marks.append(Line(steps, frame[name], colour, name, width=1.6, **line))
    return marks, _y(variable, *frame.values()), pd.DataFrame(frame), ""


def quantiles(run, variable, number, units, steps, **_):
    """Median and middle 50 and 90 % of the units."""
    return _fans(run, variable, units, steps, [("", run.values(variable, [number]), run.colour)])


def correct_and_wrong(run, variable, number, units, steps, among, **_):
    """Images that are read correctly against those that are not."""
    right = run.trace.labels[among] == run.trace.predictions[among]
    parts = [
        (f"{part.sum()} {name}", run.values(variable, among[part]), colour)
        for name, part, colour in (("correct", right, run.colour), ("wrong", ~right, FRAME))
        if part.any()
    ]
    marks, y, frame, note = _fans(run, variable, units, steps, parts)
    if len(parts) == 1:
        note = f"{note} All of these {len(among)} images are {parts[0][0].split()[1]}."
    return marks, y, frame, note.replace("over units", "over units and images")


def before_and_after(run, variable, number, units, steps, before, **_):
    """The same image with the initial and with the trained weights."""
    parts = [
        ("before", run.values(variable, [number], before()), GREY),
        ("after", run.values(variable, [number]), run.colour),
    ]
    return _fans(run, variable, units, steps, parts)


def class_read_out(run, variable, number, units, steps, **_):
    """Probability of the classes if the sequence ended at each step."""
    probabilities = run.read_out(number)[steps]
    names, truth = run.data.class_names, run.trace.labels[number]
    best = np.argsort(-probabilities.max(0))[:5]
    marks, frame = [], {}
    for place, index in enumerate(sorted({*best, truth}, key=lambda i: i == truth)):
        name = names[index] + " (true)" * int(index == truth)
        colour = run.colour if index == truth else to_hex(plt.get_cmap("tab10")(place + 7))
        frame[name] = 100 * probabilities[:, index]
        hover = f"{name}, step %{{x}}<br>%{{y:.1f}} %"
        line = {"width": 2.4 if index == truth else 1.4, "label": True, "hover": hover}
        marks.append(Line(steps, frame[name], colour, name, **line))
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


def _fans(run, variable, units, steps, parts):
    marks, frame, high, low = _levels(run, variable), {}, [], []
    for name, values, colour in parts:
        flat = np.moveaxis(values[:, steps][:, :, units], 1, 0).reshape(len(steps), -1)
        bounds = np.quantile(flat, QUANTILES, axis=1)
        marks += fan(steps, bounds, colour, name, run.trace.rows[steps])
        named = zip(plots.QUANTILES, bounds, strict=True)
        frame |= {f"{name} {quantile}".strip(): values for quantile, values in named}
        low.append(bounds[0])
        high.append(bounds[4])
    note = " Bands: middle 50 and 90 % over units, line: median."
    return marks, _y(variable, *low, *high), pd.DataFrame(frame), note


def fan(x, bounds, colour, name="", rows=None):
    """Two bands and the median of five quantiles."""
    bands = [
        Band(x, bounds[k], bounds[4 - k], colour, name, alpha) for k, alpha in ((0, 0.18), (1, 0.3))
    ]
    where = "" if rows is None else ", row %{customdata}"
    hover = f"{name or 'median'}: %{{y:.4g}}<br>at %{{x:.4g}}{where}"
    return [*bands, Line(x, bounds[2], colour, name, hover=hover, data=rows, label=bool(name))]


def _levels(run, variable):
    """Reversal potentials, which bound the voltage."""
    if variable != "v":
        return []
    held = run.model.cell.constrained()
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
    own = history[(history["variable"] == variable) & history["statistic"].isin(plots.QUANTILES)]
    wide = own.pivot_table(index="epoch", columns="statistic", values="value")[plots.QUANTILES]
    x, bounds = wide.index.to_numpy(), wide.to_numpy().T
    margin = 0.04 * (bounds.max() - bounds.min()) or 0.01
    y = Axis(style.VARIABLES[variable], (bounds.min() - margin, bounds.max() + margin))
    panel = Panel(fan(x, bounds, colour), Axis("Training (epochs)", (0, x.max())), y)
    note = f"{label}, seed {run.seed}, run {run.key}: 5, 25, 50, 75 and 95 % quantiles."
    return View([panel], own[["key", "step", "epoch", "variable", "statistic", "value"]], note)


class TraceExplorer(Explorer):
    """What the variables of a trained run do over the sequence of an image, or its parameters over
    training.

    Controls: task, input_length, stride, cell, run, view, variable, show, of_class, image, units,
    time, over, beside, trail, speed, step. Units are sorted by their mean time constant, slowest
    first; the first ``images`` test images are recorded once for each run.
    """

    def __init__(self, store=None, choice=None, images=40, data=None, **state):
        self.count, self.folder = images, data
        shared, choice = choice is not None, placed(store, choice, state)
        step = slider("Step")
        self.play, self.album = player(step), Figure(flex="1 1 100%")
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
        super().__init__(controls, state, choice, shared)

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

    def refresh(self, name=None):
        control, cache, self.run = self.controls, self.choice.cache, None
        if not len(self.choice.runs):
            for empty in ("cell", "run", "variable", "of_class", "image"):
                offer(control[empty], [])
            raise ValueError(self.choice.report())
        runs = cache.finished(self.choice.task, self.choice.window.label)
        groups = list(runs["group"].unique())
        offer(control["cell"], groups)
        own = runs[runs["group"] == control["cell"].value]
        offer(
            control["run"], [(f"seed {run.seed}, {run.key}", run.key) for run in own.itertuples()]
        )
        if name in ("cell", "run"):
            return None  # nothing is recorded before both are known
        for later in self.own[self.own.index("show") :]:
            control[later].disabled = self.training
        if self.training:
            self.history = cache.keep(
                ("history", self.key), lambda: cache.store.history(key=self.key)
            )
            quantiles = self.history[self.history["statistic"].isin(plots.QUANTILES)]
            held = set(quantiles["variable"])
            return self._offer_variables([name for name in style.VARIABLES if name in held])
        self.run = self._recorded(self.key, control["cell"].value)
        offer(control["beside"], [("no other cell", ""), *zip(groups, groups, strict=True)])
        self._offer_variables(self.run.variables)
        known = [(named(name), name) for name in ("z", "tau", "UX")]
        known = [option for option in known if option[1] in self.run.variables]
        offer(control["over"], [("nothing", ""), *known])
        self._offer_images()
        span(control["units"], len(self.run.trace.units))
        span(control["time"], len(self.run.trace.rows))
        for moving in (control["step"], self.play):
            moving.max = len(self.run.trace.rows) - 1
        self.play.interval = control["speed"].value

    def _offer_variables(self, names):
        offer(self.controls["variable"], [(named(name), name) for name in names])

    def _offer_images(self):
        trace, classes = self.run.trace, self.run.data.class_names
        present = sorted(set(trace.labels.tolist()))
        of_class = self.controls["of_class"]
        named = ((classes[label], label) for label in present)
        offer(of_class, [("all", -1), ("read wrongly", -2), *named])
        kept = np.isin(trace.labels, present if of_class.value == -1 else [of_class.value])
        if of_class.value == -2:
            kept = trace.labels != trace.predictions
        self.among = np.flatnonzero(kept)
        names = [
            f"{trace.images[i]}: {classes[trace.labels[i]]}, read as "
            f"{classes[trace.predictions[i]]}"
            for i in self.among
        ]
        offer(self.controls["image"], list(zip(names, self.among.tolist(), strict=True)))

    def _recorded(self, key, label):
        return recorded(self.choice.cache, key, label, self.count, self.folder)

    def look(self):
        variable = self.controls["variable"].value
        self.album.layout.display = "none" if self.training else None
        if self.training:
            run = self.choice.runs.set_index("key", drop=False).loc[self.key]
            colour = style.look(run["cell"]).colour
            return over_training(self.history, variable, run, self.controls["cell"].value, colour)
        if not len(self.among):
            raise ValueError(
                "There is nothing to show: none of the recorded images is of this kind; choose "
                "another class."
            )
        control, run = {name: c.value for name, c in self.controls.items()}, self.run
        number, permuted = control["image"], run.config.task.permuted
        first, last = control["time"]
        units = run.order(number)[control["units"][0] : control["units"][1] + 1]
        steps = np.arange(first, last + 1)
        marks, y, frame, note = SHOWS[control["show"]](
            run,
            variable,
            number,
            units,
            steps,
            among=self.among,
            before=lambda: recording(self.choice.cache, self.key, run.data, self.count, "initial"),
        )
        mark = Rule(control["step"], "x", "", FRAME, dashed=False)
        zoom = f"{self.key} {variable} {control['show']} {control['time']}"
        x = step_axis(run.trace.rows[steps], first)
        sequence = Panel([*marks, mark], x, y, zoom=zoom)
        notes = {"pixel": run.trace.pixels, "row": run.trace.rows}
        for name, column in notes.items():
            frame.insert(0, name, column[steps])
        frame.insert(0, "step", steps)
        self._show_album(number)
        images = self._images(run, number, control, permuted)
        said = self._said(run, number, control["step"])
        return View([*images, sequence], frame, f"{run.who}; {said}{note}")

    def _images(self, run, number, control, permuted):
        """The image, framed where the step reads, with a variable over it; again for the cell
        beside.
        """
        runs = [run]
        if control["beside"] and control["over"]:
            groups = self.choice.cache.finished(self.choice.task, self.choice.window.label)
            own = groups[groups["group"] == control["beside"]]
            runs.append(self._recorded(own["key"].iloc[0], control["beside"]))
        runs = [one for one in runs if not control["over"] or control["over"] in one.variables]
        rows, columns = run.data.shape[1:]
        read = run.pixels[control["step"]]
        frames = [] if permuted else boxes(read[read < rows * columns], columns)
        heats = []
        if control["over"]:
            for one in runs:
                first, last = control["units"]
                units = one.order(number)[first : last + 1]
                given = control["over"], number, units, control["step"], control["trail"]
                heats.append(over_image(one, *given))
        low = min((limits[0] for _, limits in heats), default=0)
        high = max((limits[1] for _, limits in heats), default=1)
        unit = style.VARIABLES.get(control["over"], "")
        unit = f"log10 of {unit}" if control["over"] == "tau" else unit
        panels = []
        for place, one in enumerate(runs):
            over = [
                Heat(z, (low, high), f"median {unit}", alpha=0.72, bar="bottom", hover="%{z:.4g}")
                for z, _ in heats[place : place + 1]
            ]
            title = one.label if control["over"] else ""
            panels.append(picture_panel(run.picture(number), [*over, *frames], title))
        return panels

    def _said(self, run, number, step):
        truth = run.data.class_names[run.trace.labels[number]]
        chances = run.read_out(number)[step]
        best = int(chances.argmax())
        name = run.data.class_names[best]
        return (
            f"test image {run.trace.images[number]}, of class {truth}. If it ended at step {step}, "
            f"it would be read as {name} ({chances[best]:.0%})."
        )

    def _show_album(self, number):
        """Thumbnails of the images to choose from, in rows."""
        images = [Picture(self.run.picture(i)).array for i in self.among]
        rows, columns, _ = images[0].shape
        wide, high = columns + 2, rows + 2
        count = -(-len(images) // ALBUM)
        canvas = np.zeros((count * high, ALBUM * wide, 4), np.uint8)  # clear between the images
        for place, image in enumerate(images):
            top, left = high * (place // ALBUM) + 1, wide * (place % ALBUM) + 1
            spot = canvas[top : top + rows, left : left + columns]
            spot[..., 3] = 255
            spot[..., : image.shape[2]] = image
        place = int(np.flatnonzero(self.among == number)[0])
        top, left = high * (place // ALBUM), wide * (place % ALBUM)
        frame = {
            "type": "rect",
            "x0": left - 0.5,
            "x1": left + wide - 0.5,
            "y0": top - 0.5,
            "y1": top + high - 0.5,
            "line": {"color": FRAME, "width": 2.5},
        }
        hover = "click to choose<extra></extra>"
        trace = {"type": "image", "source": png(canvas), "hovertemplate": hover}
        hidden = {"visible": False, "fixedrange": True, "constrain": "domain"}
        layout = {
            "template": TEMPLATE,
            "height": 20 + 52 * count,
            "margin": {"l": 4, "r": 4, "t": 4, "b": 4},
            "xaxis": {**hidden, "range": [-0.5, ALBUM * wide - 0.5], "constraintoward": "left"},
            "yaxis": {**hidden, "range": [count * high - 0.5, -0.5], "constraintoward": "top"},
            "shapes": [frame],
        }
        layout["yaxis"]["scaleanchor"] = "x"
        self.album.show([trace], layout)
        self._cells = wide, high

    def _pick(self, point):
        """Choose the image that was clicked."""
        wide, high = self._cells
        place = ALBUM * (int(point["y"]) // high) + int(point["x"]) // wide
        if place < len(self.among):
            self.controls["image"].value = int(self.among[place])


def named(variable):
    """A variable's axis label as plain text."""
    return plain(style.VARIABLES[variable])
