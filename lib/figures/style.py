"""How a cell looks, everywhere: one palette and one set of sizes for matplotlib and plotly alike.

Hue says how W is made, line style and marker say whether there is STP, shade tells cells of one
kind apart. The hues are Okabe and Ito's or close to them, moved apart in lightness so that they
also differ in print without colour.
"""

import colorsys
import zlib
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from scipy.optimize import isotonic_regression

from lib import cells

# Order of families and of cells in every figure and table; a user's own cells follow the built-in
# ones of their kind.
ORDER = (
    "rnn",
    "simple_gru",
    "gru",
    "cb",
    "cb_gru",
    "dale",
    "dale_cb",
    "stp",
    "stp_dale",
    "stp_dale_cb",
)
HUES = {
    "baseline": "#667C95",
    "free": "#E69F00",
    "sign": "#AA3377",
    "reversal": "#009E73",
    "unknown": "#56B4E9",
}
# Second and third cells of one kind.
SHADES = {"rnn": "#9AABBF", "gru": "#24323F", "cb_gru": "#A65E00"}
KINDS = {
    "baseline": "baseline",
    "free": "free",
    "sign": "sign-constrained",
    "reversal": "reversal potentials",
    "unknown": "unknown",
}
FAMILIES = ("baselines", "without STP", "with STP")
CONTEXT, INK, GRID = "#D5D8DC", "#222222", "#E8EAED"  # other cells, text, grid
SEQUENTIAL, DIVERGING = "viridis", "RdBu"


class Metric(NamedTuple):
    """How a column of runs or curves, or a statistic of their history, is shown."""

    axis: str  # what the axis says, with the unit
    factor: float = 1  # from the stored unit to the shown one; shares are shown in percent
    better: str = ""  # "higher" or "lower", where one of them is
    points: str = ""  # unit of a difference

    @property
    def accuracy(self) -> bool:
        """Whether guessing has one too."""
        return self.factor == 100 and self.better == "higher"


SPLITS = {"test": "test set", "validation": "validation set", "train": "training images"}
METRICS = {
    **{
        f"{split}_accuracy": Metric(f"Accuracy (% of {words})", 100, "higher", f"points, {words}")
        for split, words in SPLITS.items()
    },
    **{
        f"{split}_loss": Metric(f"Cross-entropy (nats, {words})", 1, "lower", f"nats, {words}")
        for split, words in SPLITS.items()
    },
    "gradient_norm": Metric("Gradient norm (a.u.)"),
    "ms_per_step": Metric("Time per training step (ms)", 1, "lower", "ms"),
    "parameters": Metric("Trainable parameters (thousands)", 1e-3, "", "thousands"),
    "saturated": Metric("Saturated gates (%)", 100),
    "spectral_radius": Metric("Spectral radius of $W$ (a.u.)"),
    "ei_ratio": Metric("E/I ratio of $W$ (1: balance)"),
    "outside": Metric("$v$ outside $[v_i, v_e]$ (%)", 100),
}
# What the axis of a recorded variable or a parameter says.
VARIABLES = {
    "x": "Input $x$ (standard deviations)",
    "z": "Conductance $z$ (per step)",
    "r": "Firing rate $r$ (of maximum)",
    "v": "Voltage $v$ (a.u.)",
    "h": "State $h$ (a.u.)",
    "X": "Resources $X$ (fraction)",
    "U": "Release $U$ (probability)",
    "UX": "Efficacy $U X$ (fraction)",
    "tau": "Time constant (pixels)",
    "K": "$K$ (a.u.)",
    "C": "$C$ (a.u.)",
    "W": "$W$ (a.u.)",
    "W_E": "$W$, excitatory (a.u.)",
    "W_I": "$W$, inhibitory (a.u.)",
    "b_z": "$b_z$ (a.u.)",
    "v_e": "$v_e$ (a.u.)",
    "v_i": "$v_i$ (a.u.)",
    "U_cap": r"$U_\mathrm{cap}$ (probability)",
    "tau_x": r"$\tau_X$ (steps)",
    "tau_u": r"$\tau_U$ (steps)",
}


class Look(NamedTuple):
    """How one cell is drawn: ``line`` to ``hatch`` for matplotlib, ``dash`` and ``symbol`` for
    plotly.
    """

    name: str
    label: str
    weights: str
    stp: bool
    colour: str
    family: str  # one of `FAMILIES`
    line: str | tuple
    marker: str
    hatch: str
    dash: str
    symbol: str


WITHOUT_STP = {"line": "-", "marker": "o", "hatch": "", "dash": "solid", "symbol": "circle"}
WITH_STP = {
    "line": (0, (3.2, 1.3)),
    "marker": "D",
    "hatch": "/////",
    "dash": "dash",
    "symbol": "diamond",
}


def kin(name: str) -> str:
    """The built-in cell that a cell of one's own is named after (``dale_cb_all``: ``dale_cb``), of
    which it counts as a variant.
    """
    return max(
        (known for known in ORDER if f"{name}_".startswith(f"{known}_")), key=len, default=name
    )


def look(name: str) -> Look:
    """Look of a cell, built-in or a user's own; it depends on the cell alone, never on what else a
    figure shows.

    A cell that this process does not know (stored results of someone's own cell) keeps its name and
    takes the hue of its kin, or its own.
    """
    cell = cells.CELLS.get(name, cells.CELLS.get(kin(name)))
    weights, stp = getattr(cell, "weights", "unknown"), bool(getattr(cell, "stp", False))
    if name in ORDER:
        colour = SHADES.get(name, HUES[weights])
    else:  # the baselines' greys leave no room for one more
        hue = HUES["unknown"] if weights == "baseline" else HUES.get(weights, HUES["unknown"])
        colour = _shade(hue, name)
    label = cells.CELLS[name].label if name in cells.CELLS else name
    family = "with STP" if stp else "without STP"
    if weights == "baseline":
        family = "baselines"
    drawn = WITH_STP if stp else WITHOUT_STP
    return Look(name, label, weights, stp, colour, family, **drawn)


def _shade(hue: str, name: str) -> str:
    """A hue made lighter or darker by an amount that the name fixes."""
    tone, light, full = colorsys.rgb_to_hls(*mpl.colors.to_rgb(hue))
    factor = (0.62, 0.74, 1.16, 1.3)[zlib.crc32(name.encode()) % 4]
    return mpl.colors.to_hex(colorsys.hls_to_rgb(tone, min(light * factor, 0.72), full))


def rank(name: str) -> tuple:
    """Sorting key: families in their order, cells of unknown kind last; the fixed order, then a
    user's own cells by name.
    """
    own = look(name)
    parent = kin(name)
    place = ORDER.index(parent) if parent in ORDER else len(ORDER)
    unknown = own.weights == "unknown"
    return unknown, FAMILIES.index(own.family), place, name != parent, name


class Journal(NamedTuple):
    """Page of a document class: widths in inches, size of the text in points, family of its
    font.
    """

    column: float
    text: float
    size: int = 10
    # Bundled with matplotlib; the later ones lend missing glyphs.
    family: tuple = ("cmr10", "STIXGeneral", "DejaVu Serif")
    mathtext: str = "cm"


SAME = Path(__file__).parent / "templates" / "figures.mplstyle"  # settings of every figure
TIMES = {"family": ("STIXGeneral", "DejaVu Serif"), "mathtext": "stix"}
JOURNALS = {
    # column: of the option twocolumn; text: of the one-column page
    "article": Journal(200 / 72.27, 345 / 72.27),
    "neurips": Journal(5.5, 5.5, **TIMES),
    "icml": Journal(3.25, 6.75, **TIMES),
    "elsarticle": Journal(252 / 72.27, 522 / 72.27),  # options 5p, twocolumn
    "revtex": Journal(246 / 72.27, 510 / 72.27),  # revtex4-2, option twocolumn
    "report": Journal(8.2 / 2.54, 17 / 2.54),  # the workbook's own document: A4, two columns
    "notebook": Journal(5.5, 10.0, 11, ("DejaVu Sans",), "dejavusans"),
}


def journal_page(journal: str) -> Journal:
    """Page of a journal by name; ValueError names the known ones."""
    if journal not in JOURNALS:
        raise ValueError(f"Unknown journal {journal!r}; known are {', '.join(JOURNALS)}.")
    return JOURNALS[journal]


def width_of(journal: str, width: str | float) -> float:
    """Width in inches of ``"column"``, ``"text"`` or a number of inches; ValueError where it is
    none of these.
    """
    page = journal_page(journal)
    if width in ("column", "text"):
        return getattr(page, width)
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0.5 <= width <= 20:
        raise ValueError(
            f"width is {width!r}, but must be 'column', 'text' "
            "or a number of inches between 0.5 and 20."
        )
    return float(width)


LABELS = ("font.size", "axes.labelsize", "axes.titlesize", "figure.titlesize")
TICKS = ("xtick.labelsize", "ytick.labelsize", "legend.fontsize")
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")


def rc(journal: str = "report", width: str | float = "text", height: float = 2.2) -> dict:
    """matplotlib's settings for a figure of one journal, sizes in inches and points.

    Labels take the document's footnote size (8 pt in a 10 pt text), ticks its script size (7 pt),
    so nothing is below 7 pt.
    """
    page = journal_page(journal)
    return {
        **mpl.rc_params_from_file(SAME, use_default_template=False),
        "figure.figsize": (width_of(journal, width), height),
        "font.family": list(page.family),
        "mathtext.fontset": page.mathtext,
        **dict.fromkeys(LABELS, page.size - 2),
        **dict.fromkeys(TICKS, page.size - 3),
        **dict.fromkeys(INKED, INK),
        "grid.color": GRID,
    }


def context(journal: str = "report", width: str | float = "text", height: float = 2.2):
    """Draw in the style of a journal: ``with style.context("neurips", "column"): ...``; the
    settings before come back.
    """
    import matplotlib.pyplot as plt

    # Jupyter's backend turns on, when it is loaded, that figures are shown; loaded inside, the end
    # of the context would turn that off.
    plt.switch_backend(mpl.rcParams["backend"])
    return plt.style.context(rc(journal, width, height), after_reset=True)


def spread(positions, gap: float, low: float, high: float) -> np.ndarray:
    """Move positions as little as possible (least squares) until they lie ``gap`` apart and inside
    ``[low, high]``.
    """
    positions = np.asarray(positions, float)
    order = np.argsort(positions, kind="stable")
    steps = np.arange(len(positions)) * gap
    moved = isotonic_regression(positions[order] - steps).x
    result = np.empty_like(positions)
    result[order] = np.clip(moved, low, max(low, high - steps[-1])) + steps
    return result


def name_beside(ax, name: str, end, height: float, colour, size):
    """Write a name on the right of axes at a ``height`` (0..1), with a leader line from ``end``, a
    point (x, y) of the data; the limits of the axes must be set.

    The leader is a plain line: an arrow is shortened by bisection, whose outcome, and with it
    pixels, differs between processors.
    """
    x, y = (ax.transData + ax.transAxes.inverted()).transform(end)
    leader = {"color": colour, "lw": 0.5, "zorder": 1, "clip_on": False}
    ax.plot([x, 1.06], [y, height], transform=ax.transAxes, **leader)
    look = {"size": size, "color": _readable(colour), "va": "center"}
    ax.text(1.08, height, name, transform=ax.transAxes, **look)


def _readable(colour) -> tuple:
    """A colour dark enough for small text on white."""
    red, green, blue = mpl.colors.to_rgb(colour)
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    return tuple(part * min(1, 0.52 / light) for part in (red, green, blue))


def plotly_template() -> dict:
    """The same look for plotly's figures, on the ground of the page that shows them."""
    axis = {
        "gridcolor": GRID,
        "linecolor": INK,
        "tickcolor": INK,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "zeroline": False,
    }
    clear = "rgba(0,0,0,0)"
    layout = {
        "font": {"family": "Helvetica, Arial, sans-serif", "size": 13, "color": INK},
        "xaxis": axis,
        "yaxis": axis,
        "paper_bgcolor": clear,
        "plot_bgcolor": clear,
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "#FFFFFF", "font": {"color": INK}, "align": "left"},
        "modebar": {"bgcolor": clear, "color": "#808080", "activecolor": INK},
    }
    return {"layout": layout}
