"""What a store holds of one window: headline, curves, results, all windows, a run's recording."""

import html

import ipywidgets

from lib import windows
from lib.datasets import is_demonstration
from lib.explore import results as views
from lib.explore.choice import Cache, NotRun
from lib.explore.explorer import Explorer
from lib.explore.recording import TraceExplorer
from lib.explore.view import Panel, View
from lib.explore.widgets import TEXT, Checks, dropdown, offer, row
from lib.figures import select, style
from lib.figures.report import METRICS

WEIGHTS = {style.KINDS[kind]: kind for kind in ("free", "sign", "reversal")}
FAMILIES = ("all", *style.FAMILIES, *WEIGHTS)
MANY = 12  # groups; where there are more, the variants of a cell are shown once they are ticked


class Board(Explorer):
    """Curves, results and all windows of the chosen cells, under what they say in sentences.

    Controls: task, input_length, stride, metric, results, baseline, highlight, cells. A click on a
    bar or a curve puts its cell in front of the others, on a field of the heat map chooses its
    window, on a seed opens its recording below.
    """

    def __init__(self, store=None, choice=None, data=None, **state):
        self.given, self.recording = {"data": data and str(data)}, None
        if choice is None and "task" not in state:
            store = store if isinstance(store, Cache) else Cache(store)
            state |= _conclusive(store)
        self.headline, self.below = ipywidgets.HTML(), ipywidgets.VBox(layout={"width": "100%"})
        controls = {
            "metric": dropdown("Metric", list(METRICS)),
            "results": dropdown("Results", views.KINDS),
            "baseline": dropdown("Less"),
            "highlight": dropdown("Highlight", FAMILIES),
            "cells": Checks(),
        }
        super().__init__(controls, state, store, choice)
        self.widget.children = (*self.widget.children, self.below)

    def arrange(self):
        *narrow, cells = self.own
        return [
            self.headline,
            row(self.controls[name] for name in narrow),
            self.controls[cells],
        ]

    @property
    def place(self):
        return self.choice.cache, self.choice.task, self.choice.window.label

    def refresh(self, name=None):
        if not len(self.choice.runs):
            return
        cache, task, window = self.place
        groups = cache.finished(task, window).drop_duplicates("group")
        plain = groups[select.plain(groups)]
        few = len(groups) <= MANY or plain.empty
        names = list(groups["group"])
        self.controls["cells"].offer(names, names if few else list(plain["group"]))
        offer(self.controls["baseline"], names)
        offer(self.controls["highlight"], [*FAMILIES, *names])

    def update(self):
        with self.headline.hold_sync():  # a reader sees it change once
            self.headline.value = ""
            super().update()

    def look(self):
        if not len(self.choice.runs):
            raise NotRun(self.choice.report())
        cache, task, window = self.place
        groups = cache.finished(task, window)[["group", "cell"]].drop_duplicates()
        ticked, highlight = self.controls["cells"].value, self.controls["highlight"].value
        looks = {g: style.look(c) for g, c in groups.itertuples(index=False) if g in ticked}
        if not looks:
            raise ValueError("No cell is chosen; tick one.")
        front = tuple(
            group
            for group, look in looks.items()
            if highlight in ("all", group, look.family) or WEIGHTS.get(highlight) == look.weights
        )
        over, final = METRICS[self.controls["metric"].value]
        kind, baseline = self.controls["results"].value, self.controls["baseline"].value
        self.controls["baseline"].layout.display = None if kind == "differences" else "none"

        def seen(make, *given, place=(task, window)):
            what = make, *given, *place, tuple(looks)
            return cache.keep(what, make, cache, *place, looks, *given)

        said = html.escape(seen(views.headline))
        self.headline.value = f"<div style='{TEXT}; font-size:16px; max-width:72em'>{said}</div>"
        shown = [seen(views.curves, over, front)]
        try:
            shown.append(seen(views.results, final, front, kind, baseline))
        except ValueError as error:  # such as nothing beside the baseline
            shown.append(View([Panel([], title="nothing to show")], {}, str(error)))
        if by_window := seen(views.heat, final, place=(task,)):
            shown.append(by_window)
        panels = [panel for view in shown for panel in view.panels]
        height = max(view.height for view in shown)
        tables = dict(shown[1].tables)  # the first is what `frame` gives
        for view in shown:
            tables |= view.tables
        return View(panels, tables, shown[1].note, height)

    def clicked(self, number, point):
        """Follow a click on the curves (0), the results (1) or the heat map (2)."""
        data = point.get("customdata")
        if number == 2:
            _, _, length, stride = data
            named = windows.conventions(length, stride)
            self.choice.set(input_length=length, stride=named[0] if named else stride)
        elif point["name"] == "seeds":
            self.open(data[0], data[2])
        else:
            control, group = self.controls["highlight"], data[0] if number == 1 else point["name"]
            control.value = "all" if control.value == group else group

    def open(self, group, key):
        """Show the recording of a run below."""
        if self.recording is None:
            self.recording = TraceExplorer(None, self.choice, **self.given, cell=group, run=key)
            self.below.children = [self.recording.widget]
        else:
            self.recording.set(cell=group, run=key)


def _conclusive(cache):
    """The first task with a finished run that is no demonstration: those are not what one concludes
    from.
    """
    done = set(cache.done["task"])
    tasks = {name: task for name, (task, _) in cache.tasks.items() if name in done}
    found = [name for name, task in tasks.items() if not is_demonstration(task.dataset)]
    return {"task": found[0]} if found else {}
