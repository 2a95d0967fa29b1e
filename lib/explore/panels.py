"""Pieces of the interactive figures: traces and layouts as dicts, and `show`, which brings a plotly
figure to them in place.
"""

import matplotlib as mpl
import numpy as np
import pandas as pd

from lib.figures import plots, style

MARK = "#D55E00"  # the window being read
LINE = {"type": "scatter", "mode": "lines", "xaxis": "x2", "yaxis": "y2", "showlegend": True}
HIDDEN = {
    "image": {"type": "image", "z": None, "visible": False},
    "heatmap": {"type": "heatmap", "z": None, "visible": False},
}


def show(figure, specs, layout):
    """Bring a figure to these traces and layout in place; traces that are not needed now stay,
    hidden.

    What a trace showed before is not sent again: plotly checks and sends every value that it is
    given.
    """
    for spec in specs:
        if spec.get("customdata") is not None:  # JSON knows no NaN
            spec["customdata"] = np.where(
                pd.isna(spec["customdata"]), None, np.asarray(spec["customdata"], object)
            )
    before, shown = getattr(figure, "_shown", []), [{"visible": True, **spec} for spec in specs]
    with figure.batch_update():
        if any(old.type != new["type"] for old, new in zip(figure.data, specs, strict=False)):
            figure.data, before = (), []
        for trace, new, old in zip(figure.data, shown, before, strict=False):
            trace.update(
                {
                    name: value
                    for name, value in new.items()
                    if not (name in old and _same(old[name], value))
                }
            )
        for trace, old in zip(figure.data[len(specs) :], before[len(specs) :], strict=True):
            trace.visible = False
            shown.append({**old, "visible": False})
        figure.layout.annotations, figure.layout.shapes = (
            layout.pop("annotations", []),
            layout.pop("shapes", []),
        )  # an update would merge
        figure.update_layout(layout)
    if len(specs) > len(figure.data):
        figure.add_traces(shown[len(figure.data) :])
    figure._shown = shown


def _same(a, b):
    """Whether a value need not be sent again; arrays count as different, since comparing them costs
    as much.
    """
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    return a is b or (
        isinstance(a, str | int | float) and isinstance(b, str | int | float) and a == b
    )


def empty(words):
    note = {
        "text": words,
        "xref": "paper",
        "yref": "paper",
        "x": 0.5,
        "y": 0.5,
        "showarrow": False,
        "font": {"size": 22, "color": "#888888"},
    }
    return {"annotations": [note]}


def line(at, axis, xref="x", yref="y domain", colour=style.INK):
    """A dashed line across at a value of x or y."""
    line = {"type": "line", "line": {"color": colour, "width": 1.2, "dash": "dash"}}
    if axis == "x":
        return {**line, "x0": at, "x1": at, "y0": 0, "y1": 1, "xref": xref, "yref": yref}
    return {
        **line,
        "y0": at,
        "y1": at,
        "x0": 0,
        "x1": 1,
        "xref": f"{xref} domain",
        "yref": yref.split()[0],
    }


def fan(x, quantiles, colour, name, hover, customdata):
    """Median and two bands of five quantiles."""
    around = np.concatenate([x, x[::-1]])
    bands = [
        {
            **LINE,
            "x": around,
            "y": np.concatenate([quantiles[4 - k], quantiles[k][::-1]]),
            "fill": "toself",
            "hoverinfo": "skip",
            "showlegend": False,
        }
        | {
            "fillcolor": rgba(colour, 0.18),
            "line": {"width": 0},
            "name": name,
            "customdata": None,
            "hovertemplate": None,
        }
        for k in (0, 1)
    ]
    line = {
        "x": x,
        "y": quantiles[2],
        "name": name,
        "line": {"color": colour, "width": 2},
        "fill": "none",
        "hoverinfo": "all",
    }
    return [*bands, {**LINE, **line, "hovertemplate": hover, "customdata": customdata}]


def picture(image):
    """An image (channels, rows, columns) as a trace."""
    pixels = np.moveaxis(np.asarray(image), 0, -1)
    pixels = pixels.repeat(3, 2) if pixels.shape[2] == 1 else pixels
    return {
        "type": "image",
        "z": pixels.tolist(),
        "hovertemplate": "row %{y}, column %{x}<extra></extra>",
    }


def beside(image, ticks, words, span):
    """Layout of an image and, beside it, a panel over the sequence."""
    rows, columns = image.shape[-2:]
    first, last = (0, span - 1) if isinstance(span, int) else span
    left = {
        "title": {"text": "Column (pixels)"},
        "domain": [0, 0.24],
        "visible": True,
        "range": [-0.5, columns - 0.5],
        "constrain": "domain",
    }
    down = {
        "title": {"text": "Row (pixels)"},
        "visible": True,
        "range": [rows - 0.5, -0.5],
        "scaleanchor": "x",
        "constrain": "domain",
    }
    right = {
        "domain": [0.36, 1],
        "anchor": "y2",
        "range": [first - 0.5, last + 0.5],
        "tickmode": "array",
        **ticks,
    }
    return {
        "xaxis": left,
        "yaxis": down,
        "xaxis2": right,
        "yaxis2": {"anchor": "x2", "title": {"text": words}},
    }


def row_ticks(rows, steps):
    """Ticks of the steps where the window enters an image row."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    starts = starts[:: max(1, len(starts) // 8)]
    return {
        "tickvals": starts,
        "ticktext": [str(rows[start]) for start in starts],
        "title": {"text": f"Image row being read ({steps} steps)"},
    }


def outline(pixels, columns):
    """Frames around the pixels of a window, one in every row that it touches."""
    shapes = []
    for row in sorted({int(pixel) // columns for pixel in pixels}):
        inside = [int(pixel) % columns for pixel in pixels if int(pixel) // columns == row]
        box = {"x0": min(inside) - 0.5, "x1": max(inside) + 0.5, "y0": row - 0.5, "y1": row + 0.5}
        shapes.append(
            {"type": "rect", "xref": "x", "yref": "y", **box, "line": {"color": MARK, "width": 2.5}}
        )
    return shapes


def rgba(colour, alpha):
    red, green, blue = (round(255 * part) for part in mpl.colors.to_rgb(colour))
    return f"rgba({red},{green},{blue},{alpha})"


def plain(label):
    """A label of `lib.figures.plots` without its mathematical notation."""
    for mathematical, plain in {"$": "", r"\tau": "τ", "{": "", "}": "", "_X": "_X"}.items():
        label = label.replace(mathematical, plain)
    return label


def curve(group, own, part, seeds, metric, factor):
    """Band (from three seeds on), seeds (run by run, in order) and mean of one cell; a cell without
    an ``own`` look stands back in grey.
    """
    colour, same = (
        own.colour if own else style.CONTEXT,
        {"type": "scatter", "legendgroup": group, "mode": "lines"},
    )
    x, epochs = part["epoch"].to_numpy(), part["epoch"].to_numpy()
    bounded = part["n"].max() >= plots.BAND_FROM and own is not None
    band = {
        "x": np.concatenate([x, x[::-1]]) if bounded else [],
        "y": np.concatenate([part["high"], part["low"][::-1]]) if bounded else [],
    }
    band |= {
        "fill": "toself",
        "fillcolor": rgba(colour, 0.18),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    keys = seeds["key"].to_numpy()
    ends = (
        np.flatnonzero(keys[1:] != keys[:-1]) + 1
    )  # gaps here, so that lines of seeds do not join
    of = seeds[["seed", "key", "step"]].to_numpy(object)
    lines = [
        np.insert(values.to_numpy(float), ends, np.nan)
        for values in (seeds["epoch"], seeds[metric] * factor)
    ]
    hover = f"{group}<br>%{{y:.4g}} at epoch %{{x:.3g}}, step %{{customdata[2]}}<br>"
    hover += "seed %{customdata[0]}, run %{customdata[1]}<extra></extra>"
    thin = {"x": lines[0], "y": lines[1], "customdata": np.insert(of, ends, of[ends], axis=0)}
    thin |= {
        "line": {"width": 0.8 if part["n"].max() > 1 else 1.6, "color": colour},
        "opacity": 0.5,
        "hovertemplate": hover,
        "showlegend": False,
    }
    words = f"{group}<br>mean %{{y:.4g}} [%{{customdata[0]:.4g}}, %{{customdata[1]:.4g}}], n = %{{customdata[2]}}<extra></extra>"
    mean = {
        "x": epochs,
        "y": part["mean"].to_numpy(),
        "customdata": part[["low", "high", "n"]].to_numpy(),
        "hovertemplate": words,
        "name": group,
    }
    mean |= {
        "line": {"width": 2.2 if own else 1, "color": colour, "dash": own.dash if own else "solid"},
        "showlegend": True,
    }
    return [{**same, **band}, {**same, **mean}, {**same, **thin}]
