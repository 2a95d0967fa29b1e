"""The interactive comparison as one HTML file: to send to somebody, opened without a server, asking
nothing of the network.
"""

import json
from pathlib import Path

import pandas as pd

from lib import paths
from lib.figures import export, plots, select, style

CURVES = ("validation_accuracy", "train_accuracy", "validation_loss", "train_loss")
VALUES = ("test_accuracy", "test_loss", "ms_per_step", "parameters")


def write(frames, path=None) -> Path:
    """Write the report of finished runs.

    Parameters
    ----------
    frames : lib.figures.select.Frames
    path : path, optional
        Default ``results/report.html``.

    Raises
    ------
    ValueError
        No run is finished.
    """
    from plotly.offline import get_plotlyjs

    path = path or paths.results_dir() / "report.html"
    data = json.dumps(content(frames), separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    return export.write(path, export.render("report.html.j2", plotly=get_plotlyjs(), data=data))


def content(frames) -> dict:
    """What the page shows: looks of the groups, and for every task and window the curves, values
    and caption.
    """
    runs = select.grouped(select.without_scan(frames.runs))
    groups = runs[["group", "cell"]].drop_duplicates("group")
    looks = {group: style.look(cell) for group, cell in groups.itertuples(index=False)}
    plain = set(select.comparison(frames.runs)["group"])
    shown = {
        "groups": {
            group: {
                "colour": own.colour,
                "dash": own.dash,
                "symbol": own.symbol,
                "family": own.family if group in plain else "controls",
            }
            for group, own in looks.items()
        },
        "metrics": {name: style.METRICS[name].axis for name in (*CURVES, *VALUES)},
        "layout": style.plotly_template()["layout"],
        "tasks": {},
    }
    curves = frames.curves.merge(runs[["key", "group"]], on="key")
    for task, part in runs.groupby(runs.apply(plots.task_name, axis=1), sort=False):
        windows = {}
        for window in part.sort_values(["input_length", "stride"])["window"].unique():
            own = part[part["window"] == window]
            windows[window] = {
                "length": int(own["input_length"].iat[0]),
                "stride": int(own["stride"].iat[0]),
                "caption": plots.caption(own),
                "curves": {
                    name: _curves(curves[curves["key"].isin(own["key"])], name) for name in CURVES
                },
                "values": {name: _values(own, name) for name in VALUES},
            }
        shown["tasks"][task] = windows
    return shown


def _curves(frame, metric):
    if frame[metric].isna().all():
        return {}
    table = plots.summary(frame, metric, ("group", "epoch"))
    return {
        group: {name: _numbers(part[name]) for name in ("epoch", "mean", "low", "high", "n")}
        for group, part in table.groupby("group")
    }


def _values(frame, metric):
    if frame[metric].isna().all():
        return {}
    columns = ["mean", "low", "high", "n"]
    rows = plots.summary(frame, metric).set_index("group")[columns]
    seeds = {
        group: _numbers(part[metric] * style.METRICS[metric].factor)
        for group, part in frame.groupby("group")
    }
    return {
        group: {**dict(zip(columns, _numbers(row), strict=True)), "seeds": seeds[group]}
        for group, row in rows.iterrows()
    }


def _numbers(values):
    """Four significant decimals are more than the eye sees; null where there is no interval."""
    return [None if pd.isna(value) else round(float(value), 4) for value in values]
