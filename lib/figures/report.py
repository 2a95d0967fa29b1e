"""The interactive comparison as one HTML file: to send to somebody, opened without a server, asking
nothing of the network.
"""

import json
from pathlib import Path

import pandas as pd

from lib import paths
from lib.figures import plots, select, style

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

    path = Path(path or paths.results_dir() / "report.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(content(frames), separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    path.write_text(PAGE.replace("@PLOTLY@", get_plotlyjs()).replace("@DATA@", data), "utf-8")
    return path


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
        "layout": style.plotly_template().layout.to_plotly_json(),
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


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:">
<title>Comparison of recurrent cells</title>
<style>
  body { font: 15px/1.45 Helvetica, Arial, sans-serif; color: #222; max-width: 1080px; margin: 24px auto; padding: 0 16px; }
  h1 { font-size: 21px; font-weight: 600; margin: 0 0 12px; }
  form { display: flex; flex-wrap: wrap; gap: 10px 18px; margin-bottom: 6px; }
  label { display: flex; flex-direction: column; font-size: 12px; color: #555; }
  select { font: inherit; font-size: 14px; padding: 3px 4px; min-width: 110px; }
  #plot { height: 460px; }
  #caption { color: #444; font-size: 13px; }
  table { border-collapse: collapse; margin-top: 14px; font-size: 14px; }
  th, td { text-align: right; padding: 3px 12px; border-bottom: 1px solid #e8eaed; }
  th:first-child, td:first-child { text-align: left; }
</style>
</head>
<body>
<h1>Comparison of recurrent cells on sequential images</h1>
<form id="controls">
  <label>Data<select id="task"></select></label>
  <label>Input length (pixels)<select id="length"></select></label>
  <label>Stride (pixels)<select id="stride"></select></label>
  <label>Cell<select id="cell"></select></label>
  <label>Metric<select id="metric"></select></label>
</form>
<div id="plot" role="img" aria-label="The chosen metric of the chosen cells"></div>
<p id="caption" aria-live="polite"></p>
<table id="table"></table>
<script>@PLOTLY@</script>
<script type="application/json" id="data">@DATA@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const control = name => document.getElementById(name);
const names = Object.keys(data.groups);
const families = ["baselines", "without STP", "with STP", "controls"].filter(f => names.some(n => data.groups[n].family === f));
const sorted = values => [...new Set(values)].sort((a, b) => a - b);

function fill(select, options, wanted) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  if (options.some(([value]) => String(value) === wanted)) select.value = wanted;
}
function windows() { return Object.values(data.tasks[control("task").value]); }
function fillWindows() {
  const all = windows(), first = all.find(w => w.length === 8 && w.stride === 4) || all[0];
  for (const name of ["length", "stride"])
    fill(control(name), sorted(all.map(w => w[name])).map(v => [v, v]), control(name).value || String(first[name]));
}
function chosen() {
  const pick = control("cell").value;
  return names.filter(n => pick === "all" || (pick === "comparison" && data.groups[n].family !== "controls") ||
    pick === "family:" + data.groups[n].family || pick === "cell:" + n);
}
function rgba(hex, alpha) {
  return `rgba(${[1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16)).join(",")},${alpha})`;
}
function curveTraces(curves, shown) {
  const bands = [], grey = [], lines = [];
  for (const name of names.filter(n => n in curves)) {
    const c = curves[name], look = data.groups[name], on = shown.includes(name), line = {color: look.colour, dash: look.dash, width: 2.2};
    if (on && c.n.some(n => n > 2)) {  // the interval of two seeds would fill the plot
      const none = {hoverinfo: "skip", showlegend: false, mode: "lines", line: {width: 0}, legendgroup: name};
      const fill = rgba(look.colour, shown.length > 4 ? 0.07 : 0.16);
      bands.push({x: c.epoch, y: c.low, ...none}, {x: c.epoch, y: c.high, fill: "tonexty", fillcolor: fill, ...none});
    }
    const trace = {x: c.epoch, y: c.mean, name, mode: "lines", legendgroup: name, showlegend: on};
    if (on) lines.push({...trace, line, hovertemplate: `${name}<br>epoch %{x}: %{y:.2f}<extra></extra>`});
    else grey.push({...trace, line: {color: "#D5D8DC", width: 1.2}, hoverinfo: "skip"});
  }
  return [...grey, ...bands, ...lines];
}
function valueTraces(values, shown) {
  const rows = shown.filter(n => n in values).reverse();
  return rows.map(name => {
    const v = values[name], look = data.groups[name], interval = v.low === null ? "" : ` [${v.low.toFixed(2)}, ${v.high.toFixed(2)}]`;
    const error = v.low === null ? undefined : {type: "data", symmetric: false, array: [v.high - v.mean], arrayminus: [v.mean - v.low]};
    return [{x: [v.mean], y: [name], name, mode: "markers", marker: {color: look.colour, symbol: look.symbol, size: 11}, error_x: error,
      showlegend: false, hovertemplate: `${name}: ${v.mean.toFixed(2)}${interval}, n = ${v.n}<extra></extra>`},
      {x: v.seeds, y: v.seeds.map(() => name), mode: "markers", marker: {color: look.colour, size: 4, opacity: 0.6}, showlegend: false,
      hovertemplate: "seed: %{x:.2f}<extra></extra>"}];
  }).flat();
}
function draw() {
  const metric = control("metric").value, shown = chosen();
  const w = windows().find(w => w.length === +control("length").value && w.stride === +control("stride").value);
  const curve = w && metric in w.curves, found = w ? (curve ? w.curves[metric] : w.values[metric]) : {};
  const any = shown.some(n => n in found);
  const title = text => ({title: {text}});
  const layout = {template: {layout: data.layout}, margin: {l: curve ? 70 : 170, r: 20, t: 20, b: 50}};
  layout.xaxis = title(curve ? "Training (epochs)" : data.metrics[metric]);
  layout.yaxis = curve ? title(data.metrics[metric]) : {automargin: true, dtick: 1};
  if (!any) layout.xaxis = layout.yaxis = {visible: false};
  if (!any) layout.annotations = [{text: "not run", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5, font: {size: 18}}];
  const traces = any ? (curve ? curveTraces(found, shown) : valueTraces(found, shown)) : [];
  Plotly.react("plot", traces, layout, {displaylogo: false, responsive: true});
  control("caption").textContent = w ? w.caption : "This combination of input length and stride was not run.";
  table(w, shown);
}
function table(w, shown) {
  const digits = n => ({minimumFractionDigits: n, maximumFractionDigits: n});
  const number = (v, n) => v == null || Number.isNaN(v) ? "–" : v.toLocaleString("en", digits(n));
  const rows = [["Cell", "Test accuracy (%)", "95 % interval", "n", "Parameters", "ms per step"]];
  for (const name of w ? shown.filter(n => n in w.values.test_accuracy) : []) {
    const value = metric => (w.values[metric] || {})[name] || {}, accuracy = value("test_accuracy"), bare = accuracy.low == null;
    rows.push([name, number(accuracy.mean, 1), bare ? "–" : `${number(accuracy.low, 1)} to ${number(accuracy.high, 1)}`, accuracy.n,
      number(value("parameters").mean * 1000, 0), number(value("ms_per_step").mean, 1)]);
  }
  control("table").replaceChildren(...rows.map((cells, i) => {
    const row = document.createElement("tr");
    row.append(...cells.map(text => Object.assign(document.createElement(i ? "td" : "th"), {textContent: text})));
    return row;
  }));
}
fill(control("task"), Object.keys(data.tasks).map(t => [t, t]));
fill(control("cell"), [["comparison", "all cells"], ...(families.includes("controls") ? [["all", "all cells and controls"]] : []),
  ...families.map(f => ["family:" + f, f]), ...names.map(n => ["cell:" + n, n])]);
fill(control("metric"), Object.entries(data.metrics));
fillWindows();
control("task").addEventListener("change", fillWindows);
for (const name of ["task", "length", "stride", "cell", "metric"]) control(name).addEventListener("change", draw);
draw();
</script>
</body>
</html>
"""
