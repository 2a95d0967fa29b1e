"""How a notebook shows figures and tables: a figure above its caption, a table with labels and
units.
"""

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display

from lib.figures import style, summaries

# Columns of runs and of audits: what the head says, a factor to the shown unit, and the format.
COLUMNS = {
    "label": ("Cell", None, "{}"),
    "seed": ("Seed", 1, "{:.0f}"),
    "state": ("State", None, "{}"),
    "weights": ("Weights", None, "{}"),
    "learning_rate": ("Learning rate", 1, "{:g}"),
    "parameters": ("Parameters", 1, "{:,.0f}"),
    "ms_per_step": ("Training step (ms)", 1, "{:.1f}"),
    "best_epoch": ("Best epoch", 1, "{:.1f}"),
    "validation_accuracy": ("Validation (%)", 100, "{:.1f}"),
    "test_accuracy": ("Test (%)", 100, "{:.1f}"),
    "K_min": ("Smallest K", 1, "{:.4f}"),
    "sign_violations": ("Wrong signs in W", 1, "{:.0f}"),
    "ei_ratio": ("E/I ratio of W", 1, "{:.2f}"),
    "spectral_radius": ("Spectral radius of W", 1, "{:.2f}"),
    "saturated": ("Saturated gates (%)", 100, "{:.1f}"),
    "outside": ("v outside [v_i, v_e] (%)", 100, "{:.1f}"),
}


def show(drawn, frame=None, lead=""):
    """Show a figure (or its axes, as `lib.figures.plots` return) and, below it, its caption:
    ``lead``, what it shows, and of a ``frame``, the runs or curves behind it, `summaries.caption`.
    """
    figure = drawn.get_figure(root=True) if hasattr(drawn, "get_figure") else drawn
    display(figure)
    plt.close(figure)  # or Jupyter would show it once more, at the end of the cell
    display(Markdown(f"*{lead if frame is None else summaries.caption(frame, lead)}*"))


def table(frame: pd.DataFrame):
    """Runs (`Store.runs`) or an audit (`lib.runs.audit`) as a table to read: the columns that
    `COLUMNS` names in its order, cells in the fixed order, shares in percent, blanks where there is
    no value.
    """
    frame = frame[[name for name in COLUMNS if name in frame]].infer_objects()
    if "label" in frame:
        places = {style.look(name).label: place for place, name in enumerate(style.ORDER)}
        frame = frame.sort_values(
            "label", key=lambda labels: labels.map(places).fillna(len(places)), kind="stable"
        )
    formats = {}
    for name in frame:
        title, factor, text = COLUMNS[name]
        if factor is not None:
            frame[name] = frame[name].astype(float) * factor
        formats[title] = text
    titles = {name: COLUMNS[name][0] for name in frame}
    return frame.rename(columns=titles).style.format(formats, na_rep="").hide(axis="index")
