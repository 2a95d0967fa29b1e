"""Everything that a store holds of one window, on one board: what was found, curves, results, all
windows, and the recording of a run.
"""

import html

import ipywidgets
import pandas as pd

from lib import windows
from lib.datasets import is_demonstration
from lib.explore.choice import Cache
from lib.explore.recording import TraceExplorer
from lib.explore.results import RunsExplorer, curves, heat, results
from lib.explore.view import View
from lib.explore.widgets import TEXT, row
from lib.figures import plots

# what is chosen -> the metric over training, and that of the results
METRICS = {
    "accuracy": ("validation_accuracy", "test_accuracy"),
    "loss": ("validation_loss", "test_loss"),
}


class Board(RunsExplorer):
    """Curves, results and all windows of the chosen cells, under what they say in sentences.

    Controls: task, input_length, stride, metric, highlight, cells. A click on a bar or a curve
    puts its cell in front of the others, on a field of the heat map chooses its window, on a seed
    opens its recording below.
    """

    def __init__(self, store=None, choice=None, data=None, **state):
        self.folder, self.recording = data, None
        if choice is None and "task" not in state:  # demonstrations are not what one concludes from
            store = store if isinstance(store, Cache) else Cache(store)
            tasks = [
                name
                for name, (task, _) in store.tasks.items()
                if not is_demonstration(task.dataset)
            ]
            state |= {"task": tasks[0]} if tasks else {}
        self.headline, self.below = ipywidgets.HTML(), ipywidgets.VBox(layout={"width": "100%"})
        super().__init__(store, choice, state, list(METRICS))
        self.widget.children = (*self.widget.children, self.below)

    def arrange(self):
        narrow = row([self.controls["metric"], self.controls["highlight"]])
        return [self.headline, narrow, self.controls["cells"]]

    def look(self):
        self.headline.value = ""
        looks, front = self.chosen()
        over, final = METRICS[self.controls["metric"].value]
        shown = [
            curves(*self.place, over, looks, front),
            results(*self.place, final, looks, front),
        ]
        if len(self.choice.cache.finished(self.choice.task)["window"].unique()) > 1:
            shown.append(heat(self.choice.cache, self.choice.task, final, looks))
        panels = [panel for view in shown for panel in view.panels]
        for panel, share in zip(panels, (1.1, 1.0, 0.9), strict=False):
            panel.share = share
        self.headline.value = _large(headline(*self.place, looks))
        height = max(view.height for view in shown)
        return View(panels, shown[1].frame, shown[1].note, height)

    def clicked(self, number, point):
        """Follow a click on the curves (0), the results (1) or the heat map (2)."""
        data = point.get("customdata")
        if number == 2:
            length, stride = (int(part) for part in data[1].split("/"))
            named = windows.conventions(length, stride)
            self.choice.set(input_length=length, stride=named[0] if named else stride)
        elif number == 1 and len(data) == 4 and isinstance(data[2], str):
            self.open(data[0], data[2])
        elif point.get("name") in self.controls["highlight"].options:
            self._highlight(point["name"])
        elif number == 1:
            self._highlight(data[0])

    def _highlight(self, group):
        control = self.controls["highlight"]
        control.value = "all" if control.value == group else group

    def open(self, group, key):
        """Show the recording of a run below."""
        if self.recording is None:
            self.recording = TraceExplorer(None, self.choice, data=self.folder, cell=group, run=key)
            self.below.children = [self.recording.widget]
        else:
            self.recording.set(cell=group, run=key)


def headline(cache, task, window, looks):
    """What the finished runs say of the test set, in sentences."""
    runs = cache.finished(task, window)
    table = cache.summary(("runs", task, window), runs, "test_accuracy", ("group",), looks)
    table = table.sort_values("mean", ascending=False)
    best, said = table.iloc[0], []
    where = f"{plots.task_name(runs.iloc[0])}, window {window}"
    said.append(f"On {where}, {_result(best)} is best.")
    held = table[[looks[group].weights != "baseline" for group in table["group"]]]
    if len(held) and held["group"].iloc[0] != best["group"]:
        gap = best["mean"] - held["mean"].iloc[0]
        said.append(
            f"Among the cells with conductances {_result(held.iloc[0])} leads, {gap:.1f} points "
            "behind."
        )
    pair = {look.name: group for group, look in looks.items()}
    if {"cb", "dale_cb"} <= set(pair):
        own = runs[runs["group"].isin([pair["dale_cb"], pair["cb"]])]
        predictions = cache.store.predictions_of(own["key"])
        said.append(_difference(own, pair["cb"], predictions))
    return " ".join(said)


def _result(found):
    interval = f" [{found['low']:.1f}, {found['high']:.1f}]" if pd.notna(found["low"]) else ""
    return f"{found['group']} ({found['mean']:.1f} %{interval})"


def _difference(runs, baseline, predictions):
    """A sentence on the difference of two groups, over seeds and test images."""
    found = plots.difference_summary(runs, baseline, predictions=predictions).iloc[0]
    side = "above" if found["mean"] > 0 else "below"
    said = f"{found['group']} lies {abs(found['mean']):.1f} points {side} {baseline}"
    if pd.isna(found["low"]):
        return f"{said}; fewer than three seeds say no more."
    return f"{said} (difference {found['mean']:.1f} [{found['low']:.1f}, {found['high']:.1f}])."


def _large(text):
    return f"<div style='{TEXT}; font-size:16px; max-width:72em'>{html.escape(text)}</div>"
