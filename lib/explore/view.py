"""What a view shows, said once: marks on panels, drawn by plotly in the notebook and by matplotlib
for print, so that an export is what is seen.
"""

import base64
import io
import textwrap
from dataclasses import dataclass, field

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from lib.figures import style

FRAME = "#D55E00"  # the window being read
GROUND = "#FFFFFF"
GREY = "#808080"
LEFT, TOP, BOTTOM = 68, 28, 48  # pixels around a panel
GAP = 16  # pixels between names beside lines
LONGEST = 20  # characters of a name beside a line, which is broken where it is longer
INCHES = 2.2  # the least width in print of a panel whose share is 1
TEMPLATE = style.plotly_template()


@dataclass
class Line:
    """A line; where ``label`` is set, its name stands at its end."""

    x: np.ndarray
    y: np.ndarray
    colour: str
    name: str = ""
    dashed: bool = False
    width: float = 2.0
    alpha: float = 1.0
    hover: str = ""
    data: object = None
    label: bool = False

    def plotly(self):
        dash = "dash" if self.dashed else "solid"
        line = {"color": self.colour, "width": self.width, "dash": dash}
        return _trace(self, "scatter", mode="lines", line=line, opacity=self.alpha)

    def draw(self, ax):
        dash = (0, (3.2, 1.3)) if self.dashed else "-"
        width = 0.6 * self.width
        ax.plot(self.x, self.y, color=self.colour, ls=dash, lw=width, alpha=self.alpha)


@dataclass
class Band:
    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    colour: str
    name: str = ""
    alpha: float = 0.18

    def plotly(self):
        x = np.concatenate([self.x, self.x[::-1]])
        y = np.concatenate([self.high, self.low[::-1]])
        edge = Line(x, y, self.colour, self.name, width=0, alpha=self.alpha)
        return {**edge.plotly(), "fill": "toself", "fillcolor": self.colour}

    def draw(self, ax):
        ax.fill_between(self.x, self.low, self.high, color=self.colour, alpha=self.alpha, lw=0)


@dataclass
class Bars:
    """Horizontal bars from 0, hatched where a cell has short-term plasticity."""

    x: np.ndarray
    y: np.ndarray
    colours: list
    hatched: list
    name: str = ""
    hover: str = ""
    data: object = None

    def plotly(self):
        shape = ["/" if hatched else "" for hatched in self.hatched]
        pattern = {"shape": shape, "fgcolor": GROUND, "size": 6}
        marker = {"color": self.colours, "pattern": pattern}
        return _trace(self, "bar", orientation="h", width=0.56, marker=marker)

    def draw(self, ax):
        for x, y, colour, hatched in zip(self.x, self.y, self.colours, self.hatched, strict=True):
            face = mpl.colors.to_rgba(colour, 0.55 if hatched else 1)
            ax.barh(y, x, 0.56, facecolor=face, edgecolor=colour, hatch="/////" * hatched)


@dataclass
class Points:
    x: np.ndarray
    y: np.ndarray
    colours: list
    symbols: list
    size: float = 11
    name: str = ""
    hover: str = ""
    data: object = None

    def plotly(self):
        marker = {"color": self.colours, "symbol": self.symbols, "size": self.size}
        return _trace(self, "scatter", mode="markers", marker=marker)

    def draw(self, ax):
        for x, y, colour, symbol in zip(self.x, self.y, self.colours, self.symbols, strict=True):
            shape = "D" if symbol.startswith("diamond") else "o"
            ax.plot(x, y, shape, ms=0.42 * self.size, color=colour, clip_on=False)


@dataclass
class Heat:
    """Colours over rows and columns, the first row on top; ``text`` prints numbers on them."""

    z: np.ndarray
    limits: tuple
    title: str = ""
    x: np.ndarray | None = None
    diverging: bool = False
    text: object = None
    alpha: float = 1.0
    bar: str = "right"  # or "bottom", or "" for none
    hover: str = ""
    data: object = None

    @property
    def colours(self):
        """Name of matplotlib's colours; diverging ones go from blue, low, to red, high."""
        return f"{style.DIVERGING}_r" if self.diverging else style.SEQUENTIAL

    def plotly(self):
        title = {"text": plain(self.title), "side": self.bar or "right", "font": {"size": 13}}
        bar = {"title": title, "thickness": 10}
        if self.bar == "bottom":
            bar |= {"orientation": "h", "y": -0.16, "yanchor": "top"}
        printed = {"text": self.text, "texttemplate": "%{text}", "xgap": 2, "ygap": 2}
        return {
            "type": "heatmap",
            "z": self.z,
            "x": np.arange(self.z.shape[1]) if self.x is None else self.x,
            "zmin": self.limits[0],
            "zmax": self.limits[1],
            "colorscale": scale(self.colours),
            "colorbar": bar,
            "showscale": bool(self.bar),
            "opacity": self.alpha,
            **({} if self.text is None else printed),
            **_hover(self),
        }

    def draw(self, ax):
        x = np.arange(self.z.shape[1]) if self.x is None else np.asarray(self.x)
        mesh = ax.imshow(
            np.ma.masked_invalid(self.z),
            cmap=self.colours,
            vmin=self.limits[0],
            vmax=self.limits[1],
            alpha=self.alpha,
            aspect=ax.get_aspect(),
            interpolation="nearest",
            extent=(x[0] - 0.5, x[-1] + 0.5, len(self.z) - 0.5, -0.5),
            rasterized=True,
        )
        if self.bar:
            ax.figure.colorbar(mesh, ax=ax, label=printed(self.title), pad=0.02, location=self.bar)
        small = mpl.rcParams["xtick.labelsize"]
        for (row, column), words in np.ndenumerate([] if self.text is None else self.text):
            light = sum(mesh.cmap(mesh.norm(self.z[row, column]))[:3]) / 3
            colour = "black" if light > 0.5 or not words else "white"
            ax.text(x[column], row, words, ha="center", va="center", size=small, color=colour)


@dataclass
class Picture:
    """An image (channels, rows, columns), 0..255; what is neither grey nor RGB(A) is shown grey."""

    pixels: np.ndarray

    @property
    def array(self):
        pixels = np.moveaxis(np.asarray(self.pixels), 0, -1)
        if pixels.shape[-1] in (3, 4):
            return pixels
        return pixels.mean(-1, keepdims=True).round().astype(np.uint8).repeat(3, -1)

    def plotly(self):
        hover = "row %{y}, column %{x}<extra></extra>"
        return {"type": "image", "source": png(self.array), "hovertemplate": hover}

    def draw(self, ax):
        ax.imshow(self.array, interpolation="nearest")


@dataclass
class Rule:
    """A line across the panel at a value of x or y."""

    at: float
    axis: str
    words: str = ""
    colour: str = style.INK
    dashed: bool = True

    def shape(self):
        across = "y" if self.axis == "x" else "x"
        dash = "dash" if self.dashed else "solid"
        return {
            "type": "line",
            f"{self.axis}0": self.at,
            f"{self.axis}1": self.at,
            f"{across}0": 0,
            f"{across}1": 1,
            f"{across}ref": f"{across} domain",
            "line": {"color": self.colour, "width": 1.3, "dash": dash},
        }

    def annotation(self):
        across = "y" if self.axis == "x" else "x"
        return {
            "text": self.words,
            self.axis: self.at,
            across: 1,
            f"{across}ref": f"{across} domain",
            "xanchor": "center" if self.axis == "x" else "right",  # names of lines stand outside
            "yanchor": "bottom",
            "showarrow": False,
            "font": {"size": 12},
        }

    def draw(self, ax):
        dash = (0, (4, 3)) if self.dashed else "-"
        line, place = (ax.axvline, ax.get_xaxis_transform()), (self.at, 1)
        look = {"ha": "center", "va": "bottom"}
        if self.axis == "y":
            line, place = (ax.axhline, ax.get_yaxis_transform()), (0.99, self.at)
            look["ha"] = "right"
        line[0](self.at, color=self.colour, ls=dash, lw=0.8)
        size = mpl.rcParams["xtick.labelsize"]
        ax.annotate(
            printed(self.words), place, xycoords=line[1], size=size, annotation_clip=True, **look
        )


@dataclass
class Box:
    """A frame around pixels of an image."""

    left: int
    top: int
    width: int
    height: int = 1

    def shape(self):
        x, y = self.left - 0.5, self.top - 0.5
        line = {"color": FRAME, "width": 2.5}
        corners = {"x0": x, "x1": x + self.width, "y0": y, "y1": y + self.height}
        return {"type": "rect", **corners, "line": line}

    def draw(self, ax):
        size, look = (self.width, self.height), {"fill": False, "ec": FRAME, "lw": 1.2}
        ax.add_patch(mpl.patches.Rectangle((self.left - 0.5, self.top - 0.5), *size, **look))


@dataclass
class Axis:
    """``range`` in the order drawn, a reversed one runs down; ``ticks``: positions and words."""

    title: str = ""
    range: tuple | None = None
    log: bool = False
    ticks: tuple | None = None
    grid: bool = True

    def at(self, values):
        """Values as plotly counts them on the axis, in a range and for words."""
        return np.log10(values) if self.log else values

    def plotly(self):
        title = {"text": plain(self.title), "standoff": 8, "font": {"size": 13}}
        axis = {"title": title, "type": "log" if self.log else "linear"}
        axis |= {"showgrid": self.grid, "automargin": True}
        if self.range is not None:
            axis["range"] = list(self.at(self.range))
        if self.ticks is not None:
            axis |= {"tickmode": "array", "tickvals": self.ticks[0], "ticktext": self.ticks[1]}
        return axis

    def draw(self, ax, name):
        axis = {f"{name}label": printed(self.title)}
        if self.log:
            axis[f"{name}scale"] = "log"
        if self.range is not None:
            axis[f"{name}lim"] = self.range
        ax.set(**axis)
        if self.ticks is not None:
            getattr(ax, f"set_{name}ticks")(self.ticks[0], [*map(printed, self.ticks[1])])


@dataclass
class Panel:
    """Marks on two axes; ``share`` is its part of the width, ``square`` keeps pixels square."""

    marks: list
    x: Axis = field(default_factory=Axis)
    y: Axis = field(default_factory=Axis)
    share: float = 1.0
    square: bool = False
    title: str = ""
    zoom: str = ""  # a zoom of the reader's stays while this stays

    def labels(self, gap):
        """(line, rows of its name, end (x, y), heights of end and name) of named lines; rows are
        ``gap`` apart while there is room, heights are fractions of the axis.
        """
        lines = [mark for mark in self.marks if isinstance(mark, Line) and mark.label]
        if not lines:
            return []
        low, high = self.y.at(self.y.range)
        ends = [(line.x[-1], line.y[-1]) for line in lines]
        heights = [(self.y.at(y) - low) / (high - low) for _, y in ends]
        names = [textwrap.wrap(line.name, LONGEST) for line in lines]
        most = max(map(len, names))
        if most > 1:
            gap = min(gap * most, 1 / len(lines))
        places = style.spread(heights, gap, 0, 1)
        return list(zip(lines, names, ends, heights, places, strict=True))

    def plotly(self, height):
        """Traces and layout of a figure of so many pixels."""
        inner = height - TOP - BOTTOM
        traces = [mark.plotly() for mark in self.marks if hasattr(mark, "plotly")]
        drawn = [mark for mark in self.marks if hasattr(mark, "shape")]
        notes = [mark.annotation() for mark in drawn if getattr(mark, "words", "")]
        labels = self.labels(GAP / inner)
        for line, name, (x, y), end, place in labels:
            arrow = {"arrowhead": 0, "arrowwidth": 0.8, "arrowcolor": line.colour, "standoff": 2}
            note = {"text": "<br>".join(name), "x": x, "y": self.y.at(y), **arrow}
            note |= {"ax": 18, "ay": (end - place) * inner, "xanchor": "left", "align": "left"}
            notes.append(note | {"font": {"color": line.colour, "size": 13}})
        longest = max((len(row) for _, name, *_ in labels for row in name), default=0)
        x, y = self.x.plotly(), self.y.plotly()
        if self.square:
            x["constrain"] = "domain"
            y |= {"scaleanchor": "x", "constrain": "domain", "constraintoward": "top"}
        layout = {
            "template": TEMPLATE,
            "height": height,
            "title": {"text": self.title, "font": {"size": 13}, "x": 0.5, "y": 0.995},
            "margin": {"l": LEFT, "r": 24 + 8.2 * longest, "t": TOP, "b": BOTTOM},
            "xaxis": x,
            "yaxis": y,
            "shapes": [mark.shape() for mark in drawn],
            "annotations": notes,
            "uirevision": self.zoom or None,
        }
        return traces, layout

    def draw(self, ax):
        ax.set_aspect("equal" if self.square else "auto")
        for mark in self.marks:
            mark.draw(ax)
        self.x.draw(ax, "x")
        self.y.draw(ax, "y")
        ax.set_title(printed(self.title))

    def name(self, ax):
        """Names beside lines, apart by the height that the layout gave to the axes."""
        size = mpl.rcParams["xtick.labelsize"]
        height = ax.get_window_extent().height / ax.figure.dpi * 72
        for line, name, end, _, place in self.labels(1.15 * size / height):
            style.name_beside(ax, printed("\n".join(name)), end, place, line.colour, size)


@dataclass
class View:
    """Panels side by side, the tables of what they draw by name, and a sentence on them."""

    panels: list
    tables: dict
    note: str = ""
    height: int = 440  # pixels

    def matplotlib(self, journal="notebook", width="text", height=3.0):
        """The view for print, in rows of this height, as many as the width asks for; they are
        higher by as much as the view is than usual.
        """
        rows, left = [], 0
        height *= max(1, self.height / View.height)
        for panel in self.panels:
            if left < panel.share:
                rows.append([])
                left = style.width_of(journal, width) / INCHES
            rows[-1].append(panel)
            left -= panel.share
        with style.context(journal, width, height * len(rows)):
            figure, axes = plt.figure(layout="constrained"), []
            for place, panels in zip(figure.add_gridspec(len(rows)), rows, strict=True):
                shares = [panel.share for panel in panels]
                fields = place.subgridspec(1, len(panels), width_ratios=shares)
                axes += [figure.add_subplot(field) for field in fields]
            for ax, panel in zip(axes, self.panels, strict=True):
                panel.draw(ax)
            settle(figure)
            for ax, panel in zip(axes, self.panels, strict=True):
                panel.name(ax)
            settle(figure)
        return figure


def settle(figure):
    """Lay out a figure; titles and labels longer than their side of the axes are broken."""
    figure.draw_without_rendering()
    for _ in range(2):  # a label in two lines leaves the others less room
        for ax in figure.axes:
            box = ax.get_window_extent()
            sides = (ax.title, "width"), (ax.xaxis.label, "width"), (ax.yaxis.label, "height")
            for text, side in sides:
                excess = getattr(text.get_window_extent(), side) / getattr(box, side)
                if excess > 1:
                    longest = max(map(len, text.get_text().split("\n")))
                    count = max(1, int(0.95 * longest / excess))
                    text.set_text(textwrap.fill(text.get_text(), count, break_long_words=False))
        figure.draw_without_rendering()


def scale(name):
    """matplotlib's colours of a name for plotly, as rgb(): a dark page would turn #rrggbb."""
    stops = np.linspace(0, 1, 11)
    colours = (255 * plt.get_cmap(name)(stops)[:, :3]).round().astype(int)
    return [[at, f"rgb{(*rgb,)}"] for at, rgb in zip(stops, colours.tolist(), strict=True)]


def words(text, height=440):
    """A panel that says why nothing is shown."""
    hidden = {"visible": False}
    note = {"text": text, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
    note |= {"showarrow": False, "font": {"size": 20, "color": GREY}}
    layout = {"template": TEMPLATE, "xaxis": hidden, "yaxis": hidden, "annotations": [note]}
    return [], {**layout, "height": height}


def plain(label):
    """A label of `lib.figures.plots` without its mathematical notation."""
    for notation, without in {"$": "", r"\tau": "τ", r"\mathrm": "", "{": "", "}": ""}.items():
        label = label.replace(notation, without)
    return label


def printed(text):
    """Text for print: the font of the journals has no underscore outside mathematics."""
    parts = str(text).split("$")
    parts[::2] = (part.replace("_", r"$\_$") for part in parts[::2])
    return "$".join(parts)


def png(array):
    """An image (rows, columns, 3 or 4) as an address that holds it."""
    file = io.BytesIO()
    plt.imsave(file, array)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _trace(mark, kind, **look):
    """A trace of a mark that has points."""
    return {"type": kind, "x": mark.x, "y": mark.y, "name": mark.name, **look, **_hover(mark)}


def _hover(mark):
    if not mark.hover:
        return {"hoverinfo": "skip"}
    return {"hovertemplate": f"{mark.hover}<extra></extra>", "customdata": mark.data}
