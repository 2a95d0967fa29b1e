"""What a trained network still knows when one of its signals is replaced."""

from dataclasses import replace

import numpy as np
import pandas as pd

from lib import memory
from lib.explore.choice import NotRun
from lib.explore.explorer import Explorer
from lib.explore.recording import images_of
from lib.explore.view import GREY, Axis, Bars, Line, Panel, Rule, View
from lib.explore.widgets import dropdown, offer
from lib.figures import style

PARTS = 8  # of the image, from the top, that are read


class LesionExplorer(Explorer):
    """Accuracy from the first rows of an image, intact and with a signal replaced; beside it what
    each lesion costs at the end. A click on one of these chooses it.

    Controls: task, input_length, stride, cell, run, lesion, readout; the first ``images`` images.
    """

    def __init__(self, store=None, choice=None, images=500, data=None, **state):
        self.count, self.folder = images, data
        self.given = {"images": images, "data": data and str(data)}
        controls = {name: dropdown(name.capitalize()) for name in ("cell", "run", "lesion")}
        controls["readout"] = dropdown("Read-out", list(memory.READOUTS))
        super().__init__(controls, state, store, choice)

    def refresh(self, name=None):
        control, cache = self.controls, self.choice.cache
        if not len(self.choice.runs):
            raise NotRun(self.choice.report())
        runs = cache.finished(self.choice.task, self.choice.window.label)
        offer(control["cell"], list(runs["group"].unique()))
        own = runs[runs["group"] == control["cell"].value]
        offer(control["run"], [(f"seed {run.seed}", run.key) for run in own.itertuples()])
        if name in ("cell", "run"):
            return  # no network is loaded before both are known
        self.run = own.set_index("key").loc[control["run"].value]
        key = self.run.name
        config = cache.store.config(key)
        self.model = cache.keep(("model", key), cache.store.load, key)
        self.data = cache.keep(("data", config.task), images_of, config, self.folder)
        offer(control["lesion"], memory.lesions(self.model, self.data))

    def look(self):
        colour, what = style.look(self.run["cell"]).colour, self.controls["lesion"].value
        if what is None:
            raise ValueError("There is nothing to show: this cell has no signal to replace.")
        _, rows, columns = self.data.shape
        heights = np.unique(np.linspace(0, rows, PARTS + 1).round().astype(int))[1:]
        curves = {
            name: np.array([self._accuracy(lesion, height) for height in heights])
            for name, lesion in (("intact", None), (f"without {what}", what))
        }
        marks = [
            Line(heights * columns, curve, shade, name, label=True, hover=f"{name}: %{{y:.1f}} %")
            for (name, curve), shade in zip(curves.items(), (GREY, colour), strict=True)
        ]
        x = Axis("Read from the top of the image (pixels)", (0, rows * columns))
        top = max(curve.max() for curve in curves.values())
        y = Axis("Accuracy (% of these test images)", (0, 1.08 * top))
        chance = Rule(100 / self.data.classes, "y", "chance")

        names = memory.lesions(self.model, self.data)
        drops = curves["intact"][-1] - [self._accuracy(lesion, rows) for lesion in names]
        heights_of = np.arange(len(names))[::-1]
        colours = [colour if lesion == what else style.CONTEXT for lesion in names]
        hover = "%{customdata}: %{x:.1f} points"
        bars = Bars(drops, heights_of, colours, [False] * len(names), "drop", hover, names)
        lost = Axis("Accuracy lost at the end (percentage points)")
        ticks = Axis(range=(-0.7, len(names) - 0.3), ticks=(heights_of, names), grid=False)
        panels = [Panel([*marks, chance], x, y), Panel([bars, Rule(0, "x")], lost, ticks, 0.8)]
        tables = {
            "curves": pd.DataFrame({"pixels": heights * columns, **curves}),
            "lesions": pd.DataFrame({"lesion": names, "points lost": drops}),
        }
        who = f"{self.run['group']}, seed {self.run['seed']}, run {self.run.name}"
        count = min(self.count, len(self.data.labels["test"]))
        note = f"{who}: {what} is replaced by {memory.LESIONS[what]}; {count} test images."
        return View(panels, tables, note)

    def _accuracy(self, what, height):
        """Percent of the test images that are read right from their first rows."""
        images = {split: x[: self.count, :, :height] for split, x in self.data.images.items()}
        readout = self.controls["readout"].value
        given = replace(self.data, images=images), self.choice.window, what, self.count, readout
        place = ("lesion", self.run.name, what, int(height), self.count, readout)
        return self.choice.cache.keep(place, lambda: 100 * memory.lesion(self.model, *given))

    def clicked(self, number, point):
        """A click on what a lesion costs chooses it."""
        if number == 1:
            self.controls["lesion"].value = point["customdata"]
