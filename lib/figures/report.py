"""The interactive comparison as one HTML file: to send to somebody, opened without a server, asking
nothing of the network.
"""

import json
from datetime import date
from pathlib import Path

import pandas as pd

from lib import paths
from lib.figures import export, select, style, summaries

# What is chosen -> the metric over training, and that of the results; explorers offer the same.
METRICS = {
    "accuracy": ("validation_accuracy", "test_accuracy"),
    "accuracy while training": ("train_accuracy", "test_accuracy"),
    "loss": ("validation_loss", "test_loss"),
    "loss while training": ("train_loss", "test_loss"),
    "gradient norm": ("gradient_norm", "test_accuracy"),
    "time of a step": ("validation_accuracy", "ms_per_step"),
    "parameters": ("validation_accuracy", "parameters"),
}


def write(frames, path=None) -> Path:
    """Write the report of `select.Frames`, by default as ``results/report.html``; ValueError where
    no run is finished.
    """
    from plotly.offline import get_plotlyjs

    path = path or paths.results_dir() / "report.html"
    shown = content(frames)
    data = json.dumps(shown, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    dark = (export.TEMPLATES / "dark.js").read_text("utf-8")
    main = pd.concat([select.comparison(frames.runs), select.at_main_window(frames.runs)])
    said = ("hidden_size", "epochs", "batch_size")
    method = {name: summaries.ranged(main[name]) for name in said}
    values = {"plotly": get_plotlyjs(), "dark": dark, "data": data, "method": method}
    done = (frames.runs["state"] == "DONE").sum()
    values |= {"date": date.today().isoformat(), "runs": done, "why": shown["why"]}
    commits = sorted({made["commit"][:7] for made in frames.environments.values()})
    return export.write(path, export.render("report.html.j2", **values, commits=commits))


def content(frames) -> dict:
    """What the page shows: looks of the groups; for every task its headline, and for every window
    curves, values and caption; why the conductance cells lag.
    """
    runs = select.grouped(select.without_scan(frames.runs))
    groups = runs[["group", "cell"]].drop_duplicates("group")
    looks = {group: style.look(cell) for group, cell in groups.itertuples(index=False)}
    plain = select.plain(runs)
    ordinary = set(runs.loc[plain, "group"])
    shown = {
        "groups": {
            group: {
                "colour": own.colour,
                "dash": own.dash,
                "symbol": own.symbol,
                "family": own.family if group in ordinary else "variants",
            }
            for group, own in looks.items()
        },
        "choices": METRICS,
        "metrics": {name: style.METRICS[name].axis for pair in METRICS.values() for name in pair},
        "layout": style.plotly_template()["layout"],
        "tasks": {},
        "why": _reasons(frames),
    }
    curves = frames.curves.merge(runs[["key", "group"]], on="key")
    over, final = (dict.fromkeys(names) for names in zip(*METRICS.values(), strict=True))
    for task, part in runs.groupby(runs.apply(summaries.task_name, axis=1), sort=False):
        windows = {}
        for window in select.shapes(part):
            own = part[part["window"] == window]
            usual = own[plain[own.index]]
            windows[window] = {
                "length": int(own["input_length"].iat[0]),
                "stride": int(own["stride"].iat[0]),
                "caption": summaries.caption(usual if len(usual) else own),
                "all": summaries.caption(own),
                "chance": summaries.chance(own),
                "curves": {
                    name: _curves(curves[curves["key"].isin(own["key"])], name) for name in over
                },
                "values": {name: _values(own, name, frames.predictions) for name in final},
            }
        main = part[(part["window"] == select.main_window(part)) & plain[part.index]]
        cut = part[["last_rows", "first_rows"]].notna().any(axis=None)
        found = None if cut else frames.linear.get(part["dataset"].iat[0])
        shown["tasks"][task] = {
            "main": select.main_window(part),
            "linear": found and round(100 * found.accuracy, 2),
            "headline": _headline(task, main, frames) if len(main) else [],
            "windows": windows,
        }
    return shown


def _curves(frame, metric):
    if frame[metric].isna().all():
        return {}
    table = summaries.groups(frame, metric, ("group", "epoch"))
    return {
        group: {name: _numbers(part[name]) for name in ("epoch", "mean", "low", "high", "n")}
        for group, part in table.groupby("group")
    }


def _values(frame, metric, predictions):
    """Mean, interval and seeds; plain cells share their spread, apart from that of variants."""
    columns, found = ["mean", "low", "high", "n"], {}
    for kind in (True, False):
        part = frame[select.plain(frame) == kind]
        if part[metric].isna().all():
            continue
        table = summaries.groups(part, metric, predictions=predictions).set_index("group")[columns]
        shown = part[metric] * style.METRICS[metric].factor
        for group, row in table.iterrows():
            seeds = _numbers(shown[part["group"] == group])
            found[group] = {**dict(zip(columns, _numbers(row), strict=True)), "seeds": seeds}
    return found


def _headline(task, main, frames):
    table = summaries.groups(main, predictions=frames.predictions)

    def difference(one, other):
        pair = main[main["group"].isin((one, other))]
        return summaries.differences(pair, other, predictions=frames.predictions).iloc[0]

    return headline(f"{task}, window {main['window'].iat[0]}", table, difference)


def headline(where, table, difference) -> list[str]:
    """What results say, in sentences; ``where`` names task and window, ``table`` is
    `summaries.groups` of test accuracy, ``difference(group, reference)`` a row of
    `summaries.differences`.
    """
    group = table.drop_duplicates("cell").set_index("cell")["group"]  # the plainest comes first
    table = table.sort_values("mean", ascending=False)
    best, *others = table["group"]
    lead = f", {_apart(difference(best, others[0]))}" if others else ""
    said = [f"On {where}, {_result(table.iloc[0])} is best{lead}."]
    held = table[[style.look(cell).weights != "baseline" for cell in table["cell"]]]
    if len(held) and held["group"].iloc[0] not in (best, *others[:1]):
        gap = table["mean"].iloc[0] - held["mean"].iloc[0]
        said.append(
            f"Among the cells with conductances {_result(held.iloc[0])} leads, {gap:.1f} points "
            "behind."
        )
    if {"cb", "dale_cb"} <= set(group.index):
        pair = difference(group["dale_cb"], group["cb"])
        few = "" if _interval(pair) else "; fewer than three seeds say no more"
        said.append(f"{pair['group']} lies {_apart(pair)}{few}.")
    return said


def _apart(pair):
    mean, low, high = pair[["mean", "low", "high"]]
    side = "above" if mean > 0 else "below"
    if mean <= 0:
        mean, low, high = -mean, -high, -low
    interval = _interval({"low": low, "high": high})
    return f"{mean:.1f} points{interval} {side} {pair['reference']}"


def _result(found):
    return f"{found['group']} ({found['mean']:.1f} %{_interval(found)})"


def _interval(found):
    return f" {export.bracket(found['low'], found['high'])}".rstrip()


def _reasons(frames):
    """Differences that say why conductance cells lag: the planned contrasts, the ladders, and the
    changes of DaleCB.
    """
    found = []
    main = select.at_main_window(frames.runs)
    table = summaries.contrasts(main, predictions=frames.predictions)
    if len(table):
        notes = list(table["pair"] + ": " + table["isolates"] + ".")
        found.append(_reason("Planned contrasts", table["pair"], table, main) | {"notes": notes})
    for item, rungs in select.ladders(frames.runs).values():
        table = summaries.rungs(rungs, frames.predictions)
        names = table["panel"] + ": " + table["label"]
        best = table.loc[table["mean"].idxmax()]
        most = f"The most brings {best['label']}: {best['mean']:.1f} points{_interval(best)}."
        found.append(_reason(item.title, names, table, rungs.runs) | {"notes": [most]})
    if changes := select.variants(frames.runs).get("equation"):
        table = summaries.differences(*changes, predictions=frames.predictions)
        table = table[[style.kin(cell) == "dale_cb" for cell in table["cell"]]]
        if len(table):
            title = "Changes of DaleCB's equation"
            found.append(_reason(title, table["group"], table, changes.runs))
    return found


def _reason(title, names, table, runs):
    numbers = {name: _numbers(table[name]) for name in ("mean", "low", "high", "n")}
    caption = summaries.caption(runs, f"{title}: difference of test accuracy.")
    return {"names": list(names), "caption": caption, **numbers}


def _numbers(values):
    """Four significant decimals are more than the eye sees; null where there is no interval."""
    return [None if pd.isna(value) else round(float(value), 4) for value in values]
