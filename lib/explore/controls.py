"""What explorers share: the frames of a store, read once; the controls of window and data set;
small widgets.
"""

import html
from dataclasses import replace
from types import SimpleNamespace

import ipywidgets as widgets
import pandas as pd
import traitlets

from lib import datasets, windows
from lib.config import RunConfig, Task, Window
from lib.figures import plots
from lib.runs import sweep
from lib.runs.attempt import CONFIGURATION, RESULTS
from lib.runs.checkpoint import StoreError
from lib.runs.store import Store

EXPECTED = (
    ValueError,
    StoreError,
    OSError,
)  # what a reader is told in place; anything else is a bug and must show
STRIDES = (("fixed: 4 pixels", "fixed"), ("half the input length", "half"))
LENGTHS = (4, 8, 16)  # pixels
SPACE = "2px 14px 2px 2px"  # between controls
RUN = "live.load_or_run(choice.configs) starts it, where choice are these controls"


# ---- what is shown of a store


class _Forgiving(Store):
    """A store that leaves damaged runs out and keeps what is wrong with them, by key."""

    def __init__(self, root):
        super().__init__(root)
        self.problems = {}

    def _row(self, key, packed):
        return self._attempt(key, super()._row, key, packed)

    def _live_table(self, folder, file):
        return self._attempt(folder.name, super()._live_table, folder, file)

    def _attempt(self, key, read, *arguments):
        try:
            return read(*arguments)
        except (*EXPECTED, KeyError) as error:
            self.problems[key] = str(error)


class Frames:
    """The runs and curves of a store, read once; `reload` reads them again.

    Attributes
    ----------
    runs, done : DataFrame
        `Store.runs`, all and finished, with a column ``task``: the data set, and what changes its
        images or their order.
    tasks : dict
        Name of a task -> (Task, scan).
    problems : dict
        Key of a damaged run -> what is wrong; such runs are left out.
    """

    def __init__(self, store=None):
        self.store = _Forgiving((store or Store()).root)
        self.reload()

    def reload(self):
        self._kept, self.tasks, self.problems = {}, {}, self.store.problems
        self.problems.clear()
        try:
            runs = self.store.runs()
        except EXPECTED as error:
            self.problems["of a bundle"] = str(error)
            runs = pd.DataFrame(columns=["state", *CONFIGURATION, *RESULTS])
        self.runs = self._with_task(runs)
        self.done = self.runs[self.runs["state"] == "DONE"]

    def grouped(self, table, task, window):
        """Finished runs ("runs") or their curves ("curves") of one task and window, without a scan,
        in the groups of `plots.grouped`.
        """
        if table == "curves":
            curves = self.keep(table, lambda: self.store.curves(state="DONE"))
            return self.keep(
                (table, task, window),
                lambda: self.grouped("runs", task, window)[["key", "group"]].merge(
                    curves, on="key"
                ),
            )
        here = (self.done["task"] == task) & (self.done["window"] == window)
        return self.keep(
            (table, task, window), lambda: plots.grouped(plots.without_scan(self.done[here]))
        )

    def summary(self, table, task, window, metric, by, groups):
        """`plots.summary` of these groups of `grouped`, each computed once."""
        place, columns = (
            (table, task, window, metric, by),
            list(dict.fromkeys(["group", "cell", "seed", *by, metric])),
        )
        frame = self.grouped(table, task, window)[columns]
        held = set(frame.loc[frame[metric].notna(), "group"])
        new = [group for group in groups if group in held and (*place, group) not in self._kept]
        if new:
            made = plots.summary(frame[frame["group"].isin(new)], metric, by)
            self._kept |= {(*place, group): part for group, part in made.groupby("group")}
        parts = [self._kept[(*place, group)] for group in groups if group in held]
        return pd.concat(parts) if parts else plots.summary(frame.iloc[:0], metric, by)

    def keep(self, what, make):
        """What ``make()`` gave the first time."""
        if what not in self._kept:
            self._kept[what] = make()
        return self._kept[what]

    def _with_task(self, frame):
        columns, names = ["dataset", "permuted", "last_rows", "data_seed", "scan"], {}
        keys = list(
            frame[columns]
            .astype(object)
            .where(frame[columns].notna(), None)
            .itertuples(index=False, name=None)
        )
        for key in dict.fromkeys(keys):
            dataset, permuted, rows, seed, scan = key
            task = Task(dataset, bool(permuted), None if rows is None else int(rows), int(seed))
            names[key] = task_label(task, scan)
            self.tasks[names[key]] = task, scan
        return frame.assign(task=[names[key] for key in keys])


def task_label(task, scan="raster"):
    """Name of a task, such as "permuted cifar10, last 16 rows": the data set, and what differs from
    its plain form.
    """
    parts = ["permuted " * task.permuted + task.dataset] + [f"last {task.last_rows} rows"] * (
        task.last_rows is not None
    )
    return ", ".join(
        parts + [f"split {task.data_seed}"] * (task.data_seed != 0) + [scan] * (scan != "raster")
    )


def lengths(columns):
    """Input lengths to choose from on rows of so many pixels: 4, 8 and 16, at most half a row."""
    return sorted({min(length, columns // 2) for length in LENGTHS})


class WindowControls:
    """Data set, input length and stride, for one or more explorers; says what was not run and what
    running it would take.

    Parameters
    ----------
    store : Store or Frames, optional
    configs : RunConfig or list of RunConfig, optional
        What a notebook trains; `configs` gives them at the chosen window. Without, they are those
        of another window of the store.
    **state
        task, input_length, stride ("fixed", "half" or pixels).
    """

    def __init__(self, store=None, configs=(), **state):
        self.frames = store if isinstance(store, Frames) else Frames(store)
        self.templates = [configs] if isinstance(configs, RunConfig) else list(configs)
        self.tasks = {
            task_label(c.task, c.window.scan): (c.task, c.window.scan) for c in self.templates
        } or self.frames.tasks
        self.tasks = self.tasks or {task_label(Task()): (Task(), "raster")}
        first = self.templates[0].window if self.templates else Window()
        names = sorted(
            self.tasks,
            key=lambda name: not datasets.is_demonstration(self.tasks[name][0].dataset),
        )
        self.controls = {
            "task": dropdown("Data set", names),
            "input_length": dropdown("Input length"),
            "stride": dropdown("Stride"),
        }
        self.message = widgets.HTML()
        self.widget = widgets.VBox([row_of(self.controls.values()), self.message])
        self.refresh()
        named = (*windows.conventions(first.input_length, first.stride), first.stride)
        assign(
            self.controls,
            {"input_length": first.input_length, "stride": named[0], **state},
            self.refresh,
        )
        for control in self.controls.values():
            control.observe(self.refresh, "value")

    def refresh(self, change=None):
        """Offer what fits the data set, and whatever the store holds of it."""
        runs, own = (
            self.frames.runs[self.frames.runs["task"] == self.task],
            [(c.window.input_length, c.window.stride) for c in self.templates],
        )
        held = {*zip(runs["input_length"], runs["stride"], strict=True), *own}
        columns = self.image_shape[2]
        offer(
            self.controls["input_length"],
            [(f"{n} pixels", int(n)) for n in sorted({*lengths(columns), *(n for n, _ in held)})],
        )
        longest = self.controls["input_length"].value
        other = sorted(
            {
                int(stride)
                for n, stride in held
                if not windows.conventions(n, stride) and stride <= longest
            }
        )
        offer(
            self.controls["stride"], [*STRIDES, *((f"{stride} pixels", stride) for stride in other)]
        )
        self.message.value = say(self.report())

    def reload(self):
        """Read the store again, for example after training."""
        self.frames.reload()
        self.refresh()

    @property
    def task(self):
        """Name of the chosen task; ``tasks`` has its (Task, scan)."""
        return self.controls["task"].value

    def _time(self, configs):
        cached = SimpleNamespace(runs=lambda state: self.frames.done)
        try:
            return sweep.duration(sweep.estimate(configs, cached))
        except ValueError:  # a data set of one's own, which this process does not know
            return "unknown"

    @property
    def image_shape(self):
        """(channels, rows, columns) of the chosen task, as its runs hold it."""
        runs = self.frames.runs
        held = runs.loc[runs["task"] == self.task, "image_shape"].dropna()
        return held.iloc[0] if len(held) else datasets.image_shape(self.tasks[self.task][0])

    @property
    def window(self):
        """The chosen `lib.config.Window`."""
        length = self.controls["input_length"].value
        return Window(
            length,
            windows.resolve_stride(self.controls["stride"].value, length),
            self.tasks[self.task][1],
        )

    @property
    def configs(self):
        """The configurations at the chosen window."""
        found = self.templates
        if not found:
            done = self.frames.done[self.frames.done["task"] == self.task]
            found = [
                self.frames.store.config(key)
                for key in done.loc[done["window"].isin(done["window"].mode()[:1]), "key"]
            ]
        return [replace(config, window=self.window) for config in found]

    @property
    def runs(self):
        """Finished runs of the chosen task and window."""
        done = self.frames.done
        return done[(done["task"] == self.task) & (done["window"] == self.window.label)]

    def report(self):
        """What there is of the chosen combination; if nothing, what running it would take."""
        window, found, configs = self.window, self.runs, self.templates
        wide = " The stride is above half the input length." * windows.is_wide(
            window.input_length, window.stride
        )
        missing = (
            [config for config in self.configs if config.key() not in set(found["key"])]
            if configs or not len(found)
            else []
        )
        has = f"{len(found)} finished runs" if len(found) else "not run"
        if missing:
            names = ", ".join(dict.fromkeys(config.cell.name for config in missing))
            take = (
                f"Running it takes {len(missing)} runs ({names}), time {self._time(missing)}; {RUN}"
            )
            has = f"{has}, {len(missing)} not run. {take}" if len(found) else f"{has}. {take}"
        elif not len(found):
            return "not run: the store holds no finished run. Fill it with live.load_or_run(RunConfig()), or with: python -m lib compare."
        return f"{self.task}, {window.label}, {self._steps()} steps a sequence: {has}.{wide}"

    def _steps(self):
        _, rows, columns = self.image_shape
        return windows.sequence_length(rows, columns, self.window.input_length, self.window.stride)


# ---- small widgets


class Checks(widgets.VBox):
    """Check boxes, one an option; ``value`` is the tuple of the ticked ones. Those that are not
    ticked by default are folded away.
    """

    value = traitlets.Tuple()

    def __init__(self):
        self.options, self.default, self.boxes, self._setting = (), (), [], False
        super().__init__()

    def offer(self, options, default):
        """Offer other options; what was ticked stays ticked, and the default takes the place of the
        default.
        """
        options, default = tuple(options), tuple(default)
        if options != self.options:
            kept = (
                default
                if self.value == self.default
                else tuple(option for option in options if option in self.value) or default
            )
            self.options, self.default = options, default
            layout = {"width": "max-content", "margin": SPACE}
            self.boxes = [
                widgets.Checkbox(description=option, indent=False, layout=layout)
                for option in options
            ]
            for box in self.boxes:
                box.observe(self._read, "value")
            others = [box for box in self.boxes if box.description not in default]
            folded = (
                [widgets.Accordion([row_of(others)], titles=(f"{len(others)} variants",))]
                if others
                else []
            )
            self.children = [
                row_of(box for box in self.boxes if box.description in default),
                *folded,
            ]
            self.value = ()
            self.value = kept

    def _read(self, change):
        if not self._setting:
            self.value = tuple(box.description for box in self.boxes if box.value)

    @traitlets.validate("value")
    def _known(self, proposal):
        if self.options and not set(proposal["value"]) <= set(self.options):
            raise traitlets.TraitError(f"choose among {', '.join(self.options)}")
        return proposal["value"]

    @traitlets.observe("value")
    def _write(self, change):
        self._setting = True
        for box in self.boxes:
            box.value = box.description in change["new"]
        self._setting = False


def dropdown(label, options=()):
    layout = {"width": "max-content", "margin": SPACE}
    return widgets.Dropdown(
        options=options, description=label, style={"description_width": "initial"}, layout=layout
    )


def integer(label):
    layout = {"width": "130px", "margin": SPACE}
    return widgets.BoundedIntText(
        0, 0, 10**6, description=label, style={"description_width": "initial"}, layout=layout
    )


def button(label):
    return widgets.Button(description=label, layout={"width": "max-content"})


def player(step):
    play = widgets.Play(interval=200, layout={"width": "max-content"})
    widgets.jslink((play, "value"), (step, "value"))
    return play


def row_of(children):
    return widgets.HBox(
        list(children), layout={"flex_flow": "row wrap", "align_items": "center", "width": "100%"}
    )


def say(*lines):
    text = "<br>".join(html.escape(line) for line in lines if line)
    return f"<div style='line-height:1.4; color:var(--jp-ui-font-color1, inherit); overflow-wrap:anywhere'>{text}</div>"


def offer(control, options):
    """Other options, and the same choice where it is still offered."""
    if tuple(options) != tuple(control.options):
        before = control.value
        control.options = options
        values = [value for _, value in options]
        control.value = before if before in values else values[0] if values else None


def span(slider, count):
    """A range slider over so many items; what covered all still does."""
    every = slider.value == (slider.min, slider.max)
    low, high = slider.value
    slider.max = count - 1
    slider.value = (0, count - 1) if every else (min(low, count - 1), min(high, count - 1))


def assign(controls, state, refresh):
    """Set controls by name, in their order, since what one offers may depend on another; ValueError
    for what cannot be set.
    """
    for name in state:
        if name not in controls:
            raise ValueError(f"There is no control {name!r}; controls are {', '.join(controls)}.")
    for name in (name for name in controls if name in state):
        try:
            refresh()
        except EXPECTED:  # told when it is drawn
            pass
        try:
            controls[name].value = state[name]
        except traitlets.TraitError:
            choices = [
                option[1] if isinstance(option, tuple) else option
                for option in getattr(controls[name], "options", ())
            ]
            offered = (
                f"choose one of {', '.join(map(str, choices))}"
                if choices
                else "nothing can be chosen here yet"
            )
            raise ValueError(
                f"{name} is {state[name]!r}, which is not offered; {offered}."
            ) from None


def placed(store, window, place):
    """The window controls given, or new ones, at a place."""
    if window is None:
        return WindowControls(store, **place)
    assign(window.controls, place, window.refresh)
    return window
