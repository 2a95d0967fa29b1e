"""What is chosen: the runs of a store, read once, and the controls of data set and window."""

from contextlib import suppress
from dataclasses import replace
from typing import ClassVar

import ipywidgets
import pandas as pd

from lib import datasets, linear, windows
from lib.config import RunConfig, Task, Window
from lib.explore.live import Runner, load_or_run
from lib.explore.widgets import Holding, assign, dropdown, offer, row, running, say
from lib.figures import select, summaries
from lib.runs.status import FINISHED
from lib.runs.store import Store

STRIDES = (("fixed: 4 pixels", "fixed"), ("half the input length", "half"))
LENGTHS = (4, 8, 16)  # pixels


class NotRun(ValueError):
    """No finished run is here of what is chosen."""


class Cache:
    """The runs and curves of a store, read once; `reload` reads them again and tells the listeners.

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
        self.store, self.listeners = store or Store(), []
        self._read()

    def reload(self):
        self._read()
        for listener in self.listeners:
            listener()

    def _read(self):
        self._kept, self.tasks = {}, {}
        self.store.reload()
        runs = self.store.runs()
        damaged = runs["state"] == "DAMAGED"
        self.problems = dict(runs.loc[damaged, ["key", "message"]].itertuples(index=False))
        self.runs = self._with_task(runs[~damaged].infer_objects())
        self.done = self.runs[self.runs["state"] == "DONE"]

    def finished(self, task, window=None):
        """`select.grouped` of the finished runs of a task at one window or all, at the rates that
        are `select.chosen`, unless a window holds no such run; of all windows a plain name is of
        the training that their cells share.
        """
        here = self.done["task"] == task
        if window is not None:
            here &= self.done["window"] == window

        def make():
            runs = self.done[here]
            chosen = select.chosen(runs)
            runs = runs[chosen | ~runs["window"].isin(runs.loc[chosen, "window"])]
            return select.grouped(runs, select.shared_epochs(runs) if window is None else None)

        return self.keep(("runs", task, window), make)

    def curves(self, task, window):
        """Learning curves of the runs of `finished`; those of all windows are read at once."""
        runs = self.finished(task, window)[["key", "group"]]
        keys = list(self.finished(task)["key"])
        curves = self.keep(("curves", task), lambda: self.store.curves(key=keys))
        return self.keep(("curves", task, window), runs.merge, curves, on="key")

    def summary(self, task, window, metric, groups, by=("group",)):
        """`summaries.groups` of some groups at one window, over seeds and test images where those
        count. Plain cells share their spread as in the paper, apart from that of variants; each
        kind is computed once.
        """
        frame = self.curves(task, window) if "epoch" in by else self.finished(task, window)
        plain, tables = select.plain(frame), []
        for kind, part in (("plain", frame[plain]), ("variants", frame[~plain])):
            if set(groups) & set(part.loc[part[metric].notna(), "group"]):
                place = task, window, metric
                tables.append(self.keep((kind, *place, by), self._summary, *place, part, by))
        if not tables:
            raise ValueError(f"No finished run here has a value of {metric}.")
        table = pd.concat(tables)
        return table[table["group"].isin(list(groups))]

    def _summary(self, task, window, metric, frame, by):
        predictions = self._predictions(task, window, metric, frame)
        return summaries.groups(frame, metric, by, predictions)

    def differences(self, task, window, metric, groups, baseline):
        """`summaries.differences` of groups from a baseline: one family."""
        frame = self.finished(task, window)
        frame = frame[frame["group"].isin([*groups, baseline])]

        def make():
            predictions = self._predictions(task, window, metric, frame)
            return summaries.differences(frame, baseline, metric, predictions)

        return self.keep(("differences", task, window, metric, *groups, baseline), make)

    def _predictions(self, task, window, metric, runs):
        """Predictions of runs, where the intervals of a metric count test images."""
        if metric != "test_accuracy":
            return None
        every = self.finished(task, window)
        plain = every.loc[select.plain(every), "key"]
        wanted, read = runs["key"], self.store.predictions_of
        if wanted.isin(plain).all():  # read once for tables and differences
            found = self.keep(("predictions", task, window), read, plain)
        else:
            found = read(wanted)
        return found if wanted.isin(found["key"].cat.categories).all() else None

    def linear(self, task):
        """Percent that a linear softmax on the pixels reaches; None where it is not stored."""
        found = self.keep(("linear", task), linear.stored, self.tasks[task][0], self.store.root)
        return found and 100 * found.accuracy

    def keep(self, what, make, *given, **options):
        """What ``make(*given, **options)`` gave the first time."""
        if what not in self._kept:
            self._kept[what] = make(*given, **options)
        return self._kept[what]

    def _with_task(self, frame):
        rest = ["last_rows", "first_rows", "delay"]
        columns, names = ["dataset", "permuted", "data_seed", "scan", *rest], {}
        values = frame[columns].astype(object)
        keys = list(values.where(values.notna(), None).itertuples(index=False, name=None))
        for key in dict.fromkeys(keys):
            dataset, permuted, seed, scan, *values = key
            given = {k: int(v) for k, v in zip(rest, values, strict=True) if v is not None}
            source = datasets.TEXTS.get(dataset)
            task = Task(dataset, bool(permuted), data_seed=int(seed), source=source, **given)
            names[key] = task_label(task, scan)
            self.tasks[names[key]] = task, scan
        return frame.assign(task=[names[key] for key in keys])


def task_label(task, scan="raster"):
    """Name of a task, such as "permuted cifar10, last 16 rows"."""
    parts = ["permuted " * task.permuted + task.dataset]
    parts += select.image_changes(vars(task), ("last_rows", "first_rows"))
    parts += [f"delay {task.delay}"] * (task.delay > 0)
    parts += [f"split {task.data_seed}"] * (task.data_seed != 0)
    return ", ".join([*parts, *[scan] * (scan != "raster")])


def lengths(columns):
    """Input lengths to choose from on rows of so many pixels: 4, 8 and 16, at most half a row."""
    return sorted({min(length, columns // 2) for length in LENGTHS if columns > 1} or {1})


def _fits(stride, length):
    with suppress(ValueError):  # half of an odd length
        return windows.resolve_stride(stride, length) <= length
    return False


class WindowControls(Holding):
    """Data set, input length and stride, for one or more explorers; says what was not run, how long
    it would take, and runs it.

    Parameters
    ----------
    store : Store or Cache, optional
    configs : RunConfig or list of RunConfig, optional
        What a notebook trains; `configs` gives them at the chosen window. Without, they are those
        of another window of the store.
    **state
        task, input_length, stride ("fixed", "half" or pixels). What a reader chose in these
        controls is kept when the cell that makes them is run again as it was.
    """

    kept: ClassVar = {}  # what the controls were made with -> what was chosen since

    def __init__(self, store=None, configs=(), **state):
        self.cache = store if isinstance(store, Cache) else Cache(store)
        self.templates = [configs] if isinstance(configs, RunConfig) else list(configs)
        self._listeners = {}  # function -> the run of a cell that it is of
        self.controls = {
            "task": dropdown("Data set"),
            "input_length": dropdown("Input length"),
            "stride": dropdown("Stride"),
        }
        self.message = ipywidgets.HTML()
        self.runner = Runner(self.cache.store, self.cache.reload)
        self.widget = ipywidgets.VBox(
            [row(self.controls.values()), self.message, self.runner.widget],
            layout={"width": "100%"},
        )
        self._find_tasks()
        if "task" in state:
            assign(self.controls, {"task": state["task"]}, self.refresh)
        with suppress(ValueError):  # a window that the data set of `state` has not
            assign(self.controls, self._usual(), self.refresh)
        assign(self.controls, state, self.refresh)
        self.refresh()
        keys = [config.key() for config in self.templates]
        self._made_with = (str(self.cache.store.root), *keys, *state.items())
        with suppress(ValueError):  # what was chosen may have left the store
            assign(self.controls, self.kept.get(self._made_with, {}), self.refresh)
        self._report()
        for control in self.controls.values():
            control.observe(self._changed, "value")
        self.cache.listeners.append(self._follow)

    def listen(self, function):
        """Call a function after every change, in place of those of earlier runs of this cell: what
        they have shown is gone.
        """
        here = running()
        for known, run in list(self._listeners.items()):
            if here and run and run[0] == here[0] and run != here:
                del self._listeners[known]
        self._listeners[function] = here

    def _usual(self):
        """The place that a notebook trains; else the main window of what the store holds."""
        window = Window()
        if self.templates:
            task, window = self.templates[0].task, self.templates[0].window
            self.controls["task"].value = task_label(task, window.scan)
        else:
            done = self.cache.done[self.cache.done["task"] == self.task]
            if len(done):
                here = done[done["window"] == select.main_window(done)].iloc[0]
                window = Window(int(here["input_length"]), int(here["stride"]))
        length, stride = window.input_length, window.stride
        named = (*windows.conventions(length, stride), stride)
        return {"task": self.task, "input_length": length, "stride": named[0]}

    def _find_tasks(self):
        self.tasks = {
            task_label(c.task, c.window.scan): (c.task, c.window.scan) for c in self.templates
        }
        if self.templates:
            known = [Task(name, source=datasets.TEXTS.get(name)) for name in datasets.names()]
            self.tasks = {**{task_label(task): (task, "raster") for task in known}, **self.tasks}
        self.tasks = self.tasks or self.cache.tasks or {task_label(Task()): (Task(), "raster")}

        names = self.tasks
        demonstrations = [n for n in names if datasets.is_demonstration(names[n][0].dataset)]
        offer(self.controls["task"], list(dict.fromkeys([*demonstrations, *names])))

    def _changed(self, change=None):
        """Follow a control; listeners are told once, when all controls fit each other."""
        if self._held:
            return
        self.refresh()
        self.kept[self._made_with] = self.state
        self._tell()

    def set(self, **state):
        """Set controls by name; listeners are told once."""
        try:
            with self._hold():
                assign(self.controls, state, self.refresh)
        finally:  # what was set before something was refused is shown
            self._changed()

    def _tell(self):
        self._report()
        for listener in list(self._listeners):
            listener()

    def refresh(self, name=None):
        """Offer what fits the data set, and whatever the store holds of it."""
        runs = self.cache.runs[self.cache.runs["task"] == self.task]
        held = {*zip(runs["input_length"], runs["stride"], strict=True)}
        held |= {(c.window.input_length, c.window.stride) for c in self.templates}
        columns = self.image_shape[2]
        known = {*lengths(columns), *(length for length, _ in held if 2 * length <= columns)}
        with self._hold():
            offer(self.controls["input_length"], [(f"{n} pixels", int(n)) for n in sorted(known)])
            longest = self.controls["input_length"].value
            other = sorted({s for n, s in held if not windows.conventions(n, s) and s <= longest})
            named = [(text, stride) for text, stride in STRIDES if _fits(stride, longest)]
            other = other or ([] if named else [1])
            offer(self.controls["stride"], [*named, *((f"{n} pixels", int(n)) for n in other)])

    def _follow(self):
        with self._hold():
            self._find_tasks()
        self.refresh()
        self._tell()

    def load_or_run(self, **options):
        """Rows of the runs at the chosen window; what is missing is trained first, and shown."""
        runs = load_or_run(self.configs, self.cache.store, **options)
        self.cache.reload()
        return runs

    @property
    def state(self):
        return {name: control.value for name, control in self.controls.items()}

    @property
    def task(self):
        """Name of the chosen task; ``tasks`` has its (Task, scan)."""
        return self.controls["task"].value

    @property
    def image_shape(self):
        """(channels, rows, columns) of the chosen task, as its runs hold it."""
        runs = self.cache.runs
        held = runs.loc[runs["task"] == self.task, "image_shape"].dropna()
        return held.iloc[0] if len(held) else datasets.image_shape(self.tasks[self.task][0])

    @property
    def window(self):
        """The chosen `lib.config.Window`."""
        length = self.controls["input_length"].value
        stride = windows.resolve_stride(self.controls["stride"].value, length)
        return Window(length, stride, self.tasks[self.task][1])

    @property
    def configs(self):
        """The configurations at the chosen window."""
        found = self.templates or self.cache.keep(("configs", self.task), self._of_the_store)
        here = [c for c in found if task_label(c.task, c.window.scan) == self.task]
        if not here:  # what a notebook trains, on other images
            task = self.tasks[self.task][0]
            here = [replace(c, task=task) for c in found if c.task == found[0].task]
        return [replace(config, window=self.window) for config in here]

    def _of_the_store(self):
        """The plain cells of the window that most finished runs of this data set have."""
        done = self.cache.done[self.cache.done["task"] == self.task]
        if not len(done):
            return []
        runs = self.cache.finished(self.task)
        runs = runs[runs["window"] == done["window"].mode()[0]]
        plain = runs[runs["group"] == runs["label"]]
        return [self.cache.store.config(key) for key in plain["key"]]

    @property
    def runs(self):
        """Finished runs of the chosen task and window."""
        done = self.cache.done
        return done[(done["task"] == self.task) & (done["window"] == self.window.label)]

    def missing(self):
        """Configurations that have no result at the chosen window."""
        if not self.templates and len(self.runs):
            return []
        ended = self.cache.runs["state"].isin(FINISHED)  # a run that diverged is a result, too
        keys = set(self.cache.runs.loc[ended, "key"])
        return [config for config in self.configs if config.key() not in keys]

    def report(self):
        """What there is of the chosen combination, in a sentence."""
        window, found, missing = self.window, len(self.runs), len(self.missing())
        if not found and not missing:
            plain = "a plain cell on " if self.task in set(self.cache.done["task"]) else ""
            return (
                f"not run: the store holds no finished run of {plain}{self.task}. Fill it with "
                "explore.load_or_run(grid()), or with: python -m lib compare."
            )
        has = f"{found} finished runs" if found else "not run"
        has += f", {missing} not run" * bool(found and missing)
        _, rows, columns = self.image_shape
        delay = self.tasks[self.task][0].delay
        steps = windows.sequence_length(rows, columns, window.input_length, window.stride)
        steps += delay // window.stride
        wide = windows.is_wide(window.input_length, window.stride)
        note = " The stride is above half the input length." * wide
        return f"{self.task}, {window.label}, {steps} steps a sequence: {has}.{note}"

    def _report(self):
        try:
            said, missing = self.report(), self.missing()
        except ValueError as error:  # no window fits images of one column
            said, missing = str(error), []
        self.message.value = say(said)
        self.runner.offer(missing, self.cache.done)
