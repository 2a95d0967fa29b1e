"""How an image becomes a sequence: the window on the image, and what each step reads."""

import numpy as np
import pandas as pd

from lib import datasets, windows
from lib.checks import is_whole
from lib.config import Task, Window
from lib.explore.choice import STRIDES, lengths
from lib.explore.explorer import Explorer
from lib.explore.view import FRAME, Axis, Box, Heat, Panel, Picture, Rule, View
from lib.explore.widgets import dropdown, integer, offer, player, row, slider


def picture_panel(image, marks=(), title="", share=0.5):
    """An image (channels, rows, columns) with marks on it."""
    _, rows, columns = image.shape
    x = Axis("Column (pixels)", (-0.5, columns - 0.5), grid=False)
    y = Axis("Row (pixels)", (rows - 0.5, -0.5), grid=False)
    square = columns < 8 * rows  # a signal of one row fills its panel instead
    return Panel([Picture(image), *marks], x, y, share, square, title)


def boxes(pixels, columns):
    """Frames around the pixels of a window, one in every row that it touches."""
    rows, inside = np.divmod(pixels, columns)
    parts = {int(row): inside[rows == row] for row in np.unique(rows)}
    return [Box(int(part.min()), row, int(np.ptp(part)) + 1) for row, part in parts.items()]


def step_axis(rows, first=0, height=None):
    """Axis of the steps, from ``first`` on, with a tick where the window enters an image row; those
    from the ``height`` of the image on are blank, and read in a delay.
    """
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    starts = starts[:: max(1, -(-len(starts) // 8))]
    ticks = first + starts, [str(rows[start]) for start in starts]
    blank = "" if height is None or rows[-1] < height else f", blank from {height} on"
    title = f"Image row being read{blank} (steps {first} to {first + len(rows) - 1})"
    return Axis(title, (first - 0.5, first + len(rows) - 0.5), ticks=ticks)


class SequenceExplorer(Explorer):
    """How an image becomes a sequence: the window drawn on the image, and what each step reads.

    Controls: dataset, image, scan, input_length, stride, step. Numbers of pixels that it is made
    with are offered beside the usual ones.
    """

    of_runs = False

    def __init__(self, split="test", data=None, **state):
        self.split, self.source, self._data = split, data, {}
        self.given = {"split": split, "data": data and str(data)}
        given = (state.get(name) for name in ("input_length", "stride"))
        self.lengths, strides = ([(f"{n} pixels", n)] * is_whole(n) for n in given)
        step = slider("Step")
        self.play = player(step)
        controls = {
            "dataset": dropdown("Data set", datasets.names()),
            "image": integer("Image"),
            "scan": dropdown("Scan", windows.SCANS),
            "input_length": dropdown("Input length"),
            "stride": dropdown("Stride", [*STRIDES, *strides]),
            "step": step,
        }
        super().__init__(controls, {"input_length": 8, **state})

    def arrange(self):
        *rest, step = self.controls.values()
        return [row(rest), row([self.play, step])]

    @property
    def window(self):
        length = self.controls["input_length"].value
        stride = windows.resolve_stride(self.controls["stride"].value, length)
        return Window(length, stride, self.controls["scan"].value)

    def refresh(self, name=None):
        _, rows, columns = datasets.get(self.controls["dataset"].value).shape
        usual = [(f"{length} pixels", length) for length in lengths(columns)]
        own = [option for option in self.lengths if option not in usual]
        offer(self.controls["input_length"], usual + own)
        window = self.window
        steps = windows.sequence_length(rows, columns, window.input_length, window.stride)
        for control in (self.controls["step"], self.play):
            control.max = steps - 1

    def load(self):
        """The chosen data set; the first time it is read, or downloaded if it is not here."""
        name = self.controls["dataset"].value
        if name not in self._data:
            self._tell(f"Reading {name} ...")
            self._data[name] = datasets.load(Task(name), data=self.source)
        with self._hold():  # an image beyond the end is the last one
            self.controls["image"].max = len(self._data[name].labels[self.split]) - 1
        return self._data[name]

    def look(self):
        data, window, number = self.load(), self.window, self.controls["image"].value
        images, labels = data.batch(self.split, [number])
        _, rows, columns = data.shape
        shape = window.input_length, window.stride, window.scan
        sequence = windows.to_sequence(images, *shape)[0].numpy()
        pixels = windows.step_pixels(rows, columns, *shape).numpy()
        channels = sequence.shape[1] // window.input_length
        names = [
            f"{pixel + 1}{_channel(channel, channels)}"
            for pixel in range(window.input_length)
            for channel in range(channels)
        ]
        step = self.controls["step"].value
        where = np.repeat(pixels, channels, 1).T
        heat = Heat(
            sequence.T,
            (float(sequence.min()), float(sequence.max())),
            "Input (sd)",
            hover="step %{x}, row %{customdata[0]}, column %{customdata[1]}<br>"
            "%{z:.2f} standard deviations",
            data=np.dstack([where // columns, where % columns]),
        )
        read = pixels[:, 0] // columns
        ticks = np.arange(0, len(names), -(-len(names) // 12))
        y = Axis(
            "Value of the window",
            (len(names) - 0.5, -0.5),
            ticks=(ticks, [names[tick] for tick in ticks]),
            grid=False,
        )
        mark = Rule(step, "x", "", FRAME, dashed=False)
        panels = [
            picture_panel(data.images[self.split][number].numpy(), boxes(pixels[step], columns)),
            Panel([heat, mark], step_axis(read), y),
        ]
        frame = pd.DataFrame(sequence, columns=[f"value {name}" for name in names])
        frame.insert(0, "row", read)
        frame.insert(0, "step", np.arange(len(sequence)))
        overlap = window.input_length - window.stride
        unread = rows * columns - len(np.unique(pixels))
        name = data.class_names[int(labels[0])]
        note = (
            f"{self.controls['dataset'].value}, image {number}: {name}. {window.label}: "
            f"{len(sequence)} steps of {sequence.shape[1]} values; neighbouring windows share "
            f"{overlap} of {window.input_length} pixels"
        )
        note += f"; the last {unread} pixels of the scan are not read." if unread else "."
        return View(panels, {"steps": frame}, note, height=400)


def _channel(channel, channels):
    if channels == 1:
        return ""
    return f" {'RGBA'[channel]}" if channels in (3, 4) else f" channel {channel + 1}"
