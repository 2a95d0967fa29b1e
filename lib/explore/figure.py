"""A plotly figure as a widget that holds its whole state: a page that is loaded again, or a second
tab, draws the same.

plotly's own FigureWidget sends changes and keeps the first state, so that such a page is empty.
"""

import base64
import gzip
import json
from functools import cache
from pathlib import Path

import anywidget
import numpy as np
import pandas as pd
import plotly
import traitlets
from ipywidgets import widget_serialization

from lib.figures.export import TEMPLATES


class Library(anywidget.AnyWidget):
    """plotly.js, compressed; sent to a page once, whatever the number of figures."""

    _esm = "export default {}"
    packed = traitlets.Bytes().tag(sync=True)

    def __init__(self):
        source = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
        super().__init__(packed=gzip.compress(source.read_bytes(), 1))


@cache
def library():
    """The one `Library` of this process."""
    return Library()


class Figure(anywidget.AnyWidget):
    """A figure that takes the width it is given and the colours of the page's theme.

    Attributes
    ----------
    traces, axes : str
        Data and layout of plotly, as JSON; `show` sets both.
    """

    _esm = "\n".join(
        path.read_text("utf-8")
        for path in (TEMPLATES / "dark.js", Path(__file__).with_name("figure.js"))
    )
    library = traitlets.Instance(Library).tag(sync=True, **widget_serialization)
    traces = traitlets.Unicode("[]").tag(sync=True)
    axes = traitlets.Unicode("{}").tag(sync=True)

    def __init__(self, **layout):
        layout = {"flex": "1 1 320px", "min_width": "0", **layout}
        super().__init__(library=library(), layout=layout)

    def show(self, traces, axes):
        """Draw these traces and this layout, dicts of plotly that may hold arrays."""
        with self.hold_sync():
            self.traces = json.dumps(traces, default=_plain)
            self.axes = json.dumps(axes, default=_plain)

    def on_click(self, function):
        """Call ``function(point)`` for a click: a dict of its trace's name, x, y, customdata."""
        self.on_msg(lambda widget, point, buffers: function(point))


def _plain(value):
    """An array as plotly.js reads it: numbers as base64, anything else as a list."""
    value = np.asarray(value)
    kind = {"f": "f4", "i": "i4", "u": "i4", "b": "u1"}.get(value.dtype.kind)
    if kind is None:
        return np.where(pd.isna(value), None, value).tolist()  # JSON knows no NaN
    if not value.ndim:
        return value.item()
    if not value.size:
        return []
    data = base64.b64encode(np.ascontiguousarray(value, kind)).decode()
    return {"dtype": kind, "bdata": data, "shape": ", ".join(map(str, value.shape))}
