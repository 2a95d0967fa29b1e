"""The paper of a comparison: which figures, tables and numbers it has, and the folder that compiles
in Overleaf.

All is made from tidy frames, so that `python -m lib compare --from FOLDER` rebuilds it byte for
byte from committed results. Words stand in templates: those of every study in ``templates/``, those
of one study in ``README.md.j2`` beside its results.
"""

import io
import json
import zipfile
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import pandas as pd

from lib import analysis, cells, paths
from lib.figures import export, plots, select, style
from lib.figures.select import LADDERS, VARIANTS, Frames, comparison, main_window, variants

# Column of a table -> its part of a command's name, where a text quotes it.
QUOTED = {
    "Cell": "Cell",
    "Pair": "Pair",
    "Change": "Change",
    "Effect": "Effect",
    "Accuracy (%)": "Accuracy",
    "Above linear": "AboveLinear",
    "Difference": "Difference",
    "n": "Seeds",
}
# Table -> what of its rows becomes a command of LaTeX.
COMMANDS = {
    "summary": ("Accuracy", "AccuracyInterval"),
    "contrasts": ("Difference", "DifferenceInterval"),
    "effects": ("Difference", "DifferenceInterval"),
}
CONFIGURATION = (
    "dataset permuted last_rows data_seed window scan cell hidden_size initialisation options "
    "epochs batch_size learning_rate seed"
)


class Figure(NamedTuple):
    """One figure: its size in the document, what it shows, the runs behind it and the function that
    draws it.
    """

    name: str
    width: str
    height: float
    lead: str
    runs: pd.DataFrame
    draw: Callable

    @property
    def caption(self) -> str:
        return plots.caption(self.runs, self.lead)


class Table(NamedTuple):
    """One table, as `export.export_table` takes it, the runs behind it, and what each row is called
    where a text quotes it.
    """

    name: str
    frame: pd.DataFrame
    lead: str
    runs: pd.DataFrame
    names: tuple
    best: tuple = ()
    wide: bool = False

    @property
    def caption(self) -> str:
        return plots.caption(self.runs, self.lead)

    @property
    def markdown(self) -> str:
        return export.markdown(self.frame, self.caption, self.best)

    def quoted(self) -> dict[str, dict[str, str]]:
        """Name of a row -> what a text quotes of it: ``Difference``, ``DifferenceInterval``, ..."""
        return {
            name: _quoted(row)
            for name, row in zip(self.names, self.frame.to_dict("records"), strict=True)
        }


def _quoted(row):
    found = {}
    for column, name in QUOTED.items():
        value = row.get(column)
        if column not in row:
            continue
        if isinstance(value, str):
            found[name] = value
        else:
            found[name] = export.number(value, export.DECIMALS.get(column, 1))
        if f"{column} low" in row:
            interval = export.bracket(row[f"{column} low"], row[f"{column} high"])
            found[f"{name}Interval"] = interval or "(fewer than three seeds, no interval)"
    return found


# ---- figures


def figures(frames: Frames, baseline: str = "cb") -> tuple[list[Figure], list[str]]:
    """Every figure that the runs allow, and one sentence for each that they do not."""
    every = comparison(frames.runs)
    window = main_window(every)
    main = every[every["window"] == window]
    wide = every[every.groupby("cell")["window"].transform("nunique") > 1]
    found = [*_of_one_window(main, frames)]
    bars = f"bars: {_intervals(frames)}; dots: seeds"
    families = f"bars: simultaneous {_intervals(frames)}; dots: seeds"
    evidence = {"predictions": frames.predictions}
    left_out = []
    high = _height(0.45, main)
    paired = baseline in set(main["cell"]) and main["cell"].nunique() > 1
    name = style.look(baseline).label
    if paired:
        lead = f"Differences of test accuracy from {name}; {families}."
        draw = _call(plots.paired_differences, main, baseline, **evidence)
        found.append(Figure("paired_differences", "column", high, lead, main, draw))
    else:
        left_out.append(
            f"paired_differences: needs finished runs of {baseline} and of another cell at {window}"
        )
    if len(wide):
        found += _of_windows(wide, baseline if paired else None)
    else:
        left_out.append("accuracy_heatmap: needs runs of several windows")
    if wide["input_length"].nunique() > 1:
        lead = (
            "Test accuracy against input length, one line a stride convention; "
            f"bars: {_intervals(frames)}."
        )
        rows = -(-wide["group"].nunique() // 5)
        draw = _call(plots.accuracy_vs_input_length, wide, **evidence)
        height = max(1.7, 0.65 + 0.5 * rows)
        found.append(Figure("input_length", "text", height, lead, wide, draw))
    else:
        left_out.append("input_length: needs runs of several windows")
    design = main[main["cell"].isin(cells.DESIGN)]
    lacking = [cell for cell in cells.DESIGN if cell not in set(main["cell"])]
    if not lacking:
        lead = f"How W is made and short-term plasticity (STP); {bars}."
        draw = _call(plots.effects, design, **evidence)
        found.append(Figure("effects", "column", 1.7, lead, design, draw))
    else:
        left_out.append(
            "effects: needs the six cells of the design; "
            f"without a finished run at {window}: {', '.join(lacking)}"
        )
    found += _of_gates(main, frames.history)
    kinds = variants(frames.runs)
    found += [_of_variants(kind, *varied, families, evidence) for kind, varied in kinds.items()]
    if not kinds:
        left_out.append("controls: needs runs that differ from the comparison in one thing")
    found += _of_ladders(frames)
    rates = select.scan(frames.runs[frames.runs["dataset"] == every["dataset"].iat[0]])
    if len(rates):
        lead = "Learning-rate scan on the validation set; a ring marks the best rate of each cell."
        draw = _call(plots.learning_rate_scan, rates)
        found.append(Figure("learning_rate_scan", "text", 1.4, lead, rates, draw))
    else:
        left_out.append(
            "learning_rate_scan: needs a seed that a cell ran at several learning rates"
        )
    return found, left_out


def _intervals(frames):
    over = "seeds" if frames.predictions is None else "seeds and test images"
    return f"95 % intervals over {over}"


def _call(draw, *arguments, **options):
    return lambda: draw(*arguments, **options)


def _height(edge, runs):
    """Inches of a figure with a row for each group."""
    return edge + 0.14 * runs["group"].nunique()


def _of_one_window(main, frames):
    high = _height(0.45, main)
    lead = (
        "Learning curves. Mean over seeds, 95 % interval as a band, seeds as thin lines; "
        "in grey the cells of the other panels"
    )
    found = frames.linear.get(main["dataset"].iat[0])
    linear = found and found.accuracy
    lead += "." if linear is None else "; dashed: a linear softmax on the pixels, test set."
    shown = frames.curves[frames.curves["key"].isin(main["key"])]
    draw = _call(plots.learning_curves, shown, linear=linear)
    yield Figure("learning_curves", "text", 2.2, lead, main, draw)
    evidence = {"predictions": frames.predictions}
    bars = f"bars: {_intervals(frames)}; dots: seeds"
    floor = "chance" if linear is None else "chance, and a linear softmax on the pixels"
    lead = f"Test accuracy; lines on {bars}; dashed: {floor}."
    draw = _call(plots.bars, main, linear=linear, **evidence)
    yield Figure("accuracy_bars", "column", high, lead, main, draw)
    lead = f"Test accuracy, best first; {bars}; the axis does not start at 0."
    draw = _call(plots.dot_and_interval, main, **evidence)
    yield Figure("accuracy_dots", "column", high, lead, main, draw)


def _of_windows(wide, baseline):
    high = _height(0.6, wide)
    lead = "Mean test accuracy of every window, by stride convention; 8/4 belongs to both."
    yield Figure("accuracy_heatmap", "column", high, lead, wide, _call(plots.heatmap, wide))
    if baseline and {baseline} < set(wide["cell"]):
        name = style.look(baseline).label
        lead = f"Mean differences of test accuracy from {name} for every window."
        draw = _call(plots.heatmap, wide, baseline=baseline)
        yield Figure("difference_heatmap", "column", high, lead, wide, draw)


def _of_gates(main, history):
    gates = history[(history["variable"] == "z") & (history["statistic"] == "saturated")]
    gates = gates[gates["key"].isin(main["key"])]
    if len(gates):
        lead = (
            "Gates above 95 % of their maximum, on 64 validation images, over training; "
            "band: 95 % interval over seeds."
        )
        gated = main[main["key"].isin(gates["key"])]
        draw = _call(plots.statistic_over_training, gates, "z", "saturated")
        yield Figure("gate_saturation", "column", 1.45, lead, gated, draw)


def _of_variants(kind, runs, plain, intervals, evidence):
    title, compared_with = VARIANTS[kind]
    counts = runs[runs["group"] != runs["group"].map(plain)].groupby("group")["seed"].nunique()
    if counts.max() < analysis.FEWEST:
        intervals = "dots: seeds, too few for a 95 % interval"
    lead = f"{title}: difference from {compared_with}; {intervals}."
    height = 0.5 + 0.14 * (len(plain) - len(set(plain.values())))
    draw = _call(plots.paired_differences, runs, plain, **evidence)
    return Figure(kind, "column", height, lead, runs, draw)


def _ladders(frames):
    """Name -> ladder and its rungs, where any ran."""
    made = {name: (item, select.rungs(frames.runs, item)) for name, item in LADDERS.items()}
    return {name: (item, rungs) for name, (item, rungs) in made.items() if rungs is not None}


def _of_ladders(frames):
    for name, (item, rungs) in _ladders(frames).items():
        found = frames.linear.get(rungs.runs["dataset"].iat[0])
        lead = (
            f"{item.title}: test accuracy. Bars: simultaneous {_intervals(frames)} of the "
            "difference from the line that a rung is a change of; dots: seeds."
        )
        height = 0.8 + 0.16 * len(rungs.steps) + 0.2 * rungs.steps["panel"].nunique()
        evidence = {"predictions": frames.predictions, "linear": found and found.accuracy}
        draw = _call(plots.ladder, rungs, **evidence)
        yield Figure(name, "column", height, lead, rungs.runs, draw)


# ---- tables


def tables(frames: Frames) -> list[Table]:
    """Every table that the runs allow; ``names`` are what texts call its rows.

    Differences, effects and slopes are one family a table (main effects and interactions, and each
    trend, are their own), whose intervals hold together; what rests on one or two seeds is in none.
    """
    every = comparison(frames.runs)
    main = every[every["window"] == main_window(every)]
    over = _intervals(frames)
    linear = frames.linear.get(main["dataset"].iat[0])
    lead = f"Test accuracy (mean; {over}), "
    lead += "how far above a linear softmax on the pixels, " if linear else ""
    lead += "trainable parameters and median time of a training step."
    names = tuple(main["cell"].unique())
    summary = summary_table(main, frames.predictions, linear)
    found = [Table("summary", summary, lead, main, names, ("Accuracy (%)",))]
    if every["window"].nunique() > 1:
        found.append(_windows_table(every, frames))
    made = (_contrasts_table(main, frames), _effects_table(main, frames), _slopes(frames, every))
    found += [table for table in made if table is not None]
    kinds = variants(frames.runs)
    found += [_variants_table(kind, *varied, frames) for kind, varied in kinds.items()]
    return found + [_ladder_table(name, *made, frames) for name, made in _ladders(frames).items()]


def summary_table(runs: pd.DataFrame, predictions=None, linear=None) -> pd.DataFrame:
    """One row a cell: test accuracy in percent with interval (`plots.summary`), points above the
    ``linear`` reference of the same images, n, trainable parameters, time of a training step.
    """
    runs = select.grouped(runs)
    table = plots.summary(runs, predictions=predictions)
    other = runs.groupby("group")[["parameters", "ms_per_step"]].median().loc[table["group"]]
    shown = _interval("Cell", table["group"], "Accuracy (%)", table)
    if linear is not None and predictions is not None:
        answers = plots.answers(runs, "test_accuracy", ["group"], predictions)
        reference = linear.predictions.set_index("image")
        right = (reference["label"] == reference["prediction"]).astype(float)
        above = analysis.accuracies(answers - right.reindex(answers.columns))
        own = _interval("Cell", table["group"], "Above linear", above, 100)
        shown = shown.join(own.drop(columns="Cell"))
    shown["n"] = table["n"].to_numpy()
    shown["Parameters"] = other["parameters"].to_numpy()
    shown["ms/step"] = other["ms_per_step"].to_numpy()
    return shown


def _interval(key, names, title, table, factor=1):
    """Names beside mean and interval of a table of `lib.analysis`, as `export.formatted` takes
    them.
    """
    shown = pd.DataFrame({key: list(names)})
    for column, end in (("mean", ""), ("low", " low"), ("high", " high")):
        shown[f"{title}{end}"] = (table[column] * factor).to_numpy()
    return shown


def _differences(key, names, table):
    """Differences in percentage points with interval and n."""
    shown = _interval(key, names, "Difference", table, 100)
    shown["n"] = table["n"].to_numpy()
    return shown


def _windows_table(every, frames):
    table = plots.summary(every, by=("group", "window"), predictions=frames.predictions)
    shown = pd.DataFrame({"Cell": every["group"].unique()})
    shapes = _windows(every)
    for shape in shapes:
        part = table[table["window"] == shape].set_index("group").reindex(shown["Cell"])
        shown = shown.join(_interval("Cell", shown["Cell"], shape, part).drop(columns="Cell"))
    lead = (
        f"Test accuracy (%) of every window (mean; {_intervals(frames)}); "
        "bold: the best of each window."
    )
    names = tuple(every["cell"].unique())
    return Table("windows", shown, lead, every, names, tuple(shapes), True)


def _windows(runs):
    return list(runs.sort_values(["input_length", "stride"])["window"].unique())


def _contrasts_table(main, frames):
    labels = main.groupby("cell")["group"].first()
    ran = set(labels.index)
    planned = [item for item in analysis.PLANNED if {item.cell, item.reference} <= ran]
    if not planned:
        return None
    answers = plots.answers(main, "test_accuracy", ["cell"], frames.predictions)
    table = analysis.comparisons(answers, [(item.cell, item.reference) for item in planned])
    told = table["low"].notna()
    if not told.any():
        return None
    planned = [item for item, kept in zip(planned, told, strict=True) if kept]
    pairs = [f"{labels[item.cell]} − {labels[item.reference]}" for item in planned]
    lead = (
        "Planned contrasts of test accuracy (percentage points; "
        f"simultaneous {_intervals(frames)})."
    )
    frame = _differences("Pair", pairs, table[told])
    return Table("contrasts", frame, lead, main, tuple(item.name for item in planned))


def _effects_table(main, frames):
    design = main[main["cell"].isin(cells.DESIGN)]
    if design["cell"].nunique() < len(cells.DESIGN):
        return None
    answers = plots.answers(design, "test_accuracy", ["cell"], frames.predictions)
    families = analysis.design_weights().values()
    table = pd.concat([analysis.effects(answers, weights) for weights in families])
    if table["low"].isna().any():
        return None
    lead = (
        "Effects of W (free, sign-constrained, reversal potentials) and STP on test accuracy "
        f"(percentage points; simultaneous {_intervals(frames)})."
    )
    frame = _differences("Effect", table.index, table)
    return Table("effects", frame, lead, design, tuple(table.index))


def _slopes(frames, every):
    """One row a cell: its trends with the window, where windows tell them apart, and the slope of
    its last epoch; None where there is neither.
    """
    shown = pd.DataFrame({"Cell": every["group"].unique()})
    cell = shown["Cell"].map(every.groupby("group")["cell"].first())
    trends = _trends(every, frames.predictions)
    for trend, table in trends.items():
        title = {"input_length": "Length", "overlap": "Overlap"}[trend]
        own = _interval("Cell", shown["Cell"], title, table.reindex(cell), 100)
        shown = shown.join(own.drop(columns="Cell"))
    main = every[every["window"] == main_window(every)]
    curves = frames.curves.merge(main[["key", "group"]], on="key")
    if len(curves):
        last = analysis.last_epoch_slope(curves, ["group", "seed"])
        if last["slope"].notna().any():
            part = analysis.summarise(last, "group", "slope").set_index("group")
            part = part.reindex(shown["Cell"])
            own = _interval("Cell", shown["Cell"], "Last epoch", part, 100)
            shown = shown.join(own.drop(columns="Cell"))
    if shown.shape[1] == 1:
        return None
    lead = "Slopes (points): "
    if trends:
        lead += (
            "test accuracy per doubling of length and per overlap "
            f"(simultaneous {_intervals(frames)}); "
        )
    lead += "validation accuracy in the last epoch, over seeds."
    names = tuple(every["cell"].unique())
    return Table("slopes", shown, lead, every, names)


def _trends(every, predictions):
    """Trend -> its slopes of the cells that ran all windows; empty where the windows do not tell
    length and overlap apart.
    """
    counts = every.groupby("cell")["window"].transform("nunique")
    complete = every[counts == every["window"].nunique()]
    conventions = {len(names.split(", ")) for names in complete["convention"]}
    if not conventions >= {1, 2} or complete["input_length"].nunique() == 1:
        return {}
    by = ["cell", "input_length", "stride"]
    answers = plots.answers(complete, "test_accuracy", by, predictions)
    weights = analysis.window_weights(answers.index.droplevel("seed").unique())
    return {trend: analysis.effects(answers, each) for trend, each in weights.items()}


def _variants_table(kind, runs, plain, frames):
    table = plots.difference_summary(runs, plain, predictions=frames.predictions)
    title, compared_with = VARIANTS[kind]
    lead = f"{title}: test accuracy, and its difference (percentage points) from {compared_with}"
    told = table["low"].notna()
    if told.any():
        table = table[told]
        lead += f"; {_intervals(frames)}, of the differences simultaneous."
    else:
        lead += "; one or two seeds give no 95 % interval."
    shown = summary_table(runs, frames.predictions).set_index("Cell").loc[table["group"]]
    shown = shown.reset_index().drop(columns=["ms/step", "n"])
    if kind == "epochs":  # the best one says whether all of the training was of use
        best = runs.groupby("group")["best_epoch"].median()
        shown = shown.drop(columns="Parameters")
        shown["Best epoch"] = best.loc[shown["Cell"]].to_numpy()
    for column, end in (("mean", ""), ("low", " low"), ("high", " high"), ("n", None)):
        shown["n" if end is None else f"Difference{end}"] = table[column].to_numpy()
    return Table(kind, shown, lead, runs, tuple(table["group"]), wide=True)


def _ladder_table(name, ladder, rungs, frames):
    """One row a rung, called "added: drive z", "alone: drive z", ..."""
    table = plots.rung_summary(rungs, frames.predictions)
    own = plots.summary(rungs.runs, predictions=frames.predictions).set_index("group")
    names = tuple(table["panel"] + ": " + table["label"])
    shown = _interval("Change", names, "Accuracy (%)", own.loc[table["group"]])
    shown = shown.join(_interval("Change", names, "Difference", table).drop(columns="Change"))
    shown.insert(1, "From", list(table["reference"]))
    shown["n"] = table["n"].to_numpy()
    lead = (
        f"{ladder.title}: test accuracy, and its difference (percentage points) from what it is a "
    )
    lead += f"change of; {_intervals(frames)}, of the differences simultaneous."
    return Table(name, shown, lead, rungs.runs, names, wide=True)


# ---- numbers


def numbers(frames: Frames) -> dict[str, str]:
    """Every number that is a command of LaTeX, by its name: what was run (``Runs``, ``Epochs``,
    ...), the best and the worst cell, each cell at the main window (``CbAccuracy``), planned
    contrasts and effects (``GateDifference``), and the ends of tables (``LengthHighest``).
    """
    every = comparison(frames.runs)
    main = every[every["window"] == main_window(every)]
    made = {item.name: item for item in tables(frames)}
    rows = {name: item.quoted() for name, item in made.items()}
    found = {}
    for table, columns in COMMANDS.items():
        for name, row in rows.get(table, {}).items():
            stem = export.command_name(name)
            found |= {f"{stem}{column}": row[column] for column in columns}
    order = plots.summary(main).sort_values("mean")
    for place, cell in (("Best", order["cell"].iat[-1]), ("Worst", order["cell"].iat[0])):
        row = rows["summary"][cell]
        columns = ("Cell", "Accuracy", "AccuracyInterval")
        found |= {f"{place}{column}": row[column] for column in columns}
    for kind in VARIANTS:
        if kind in made:
            found |= _ends(kind.capitalize(), made[kind].frame, "Difference")
    if "slopes" in made:
        for title in ("Length", "Overlap", "Last epoch"):
            if title in made["slopes"].frame:
                stem = title.title().replace(" ", "")
                found |= _ends(stem, made["slopes"].frame, title)
    kinds = variants(frames.runs)
    if "controls" in kinds:
        found |= _best_change(kinds["controls"], made["controls"], "dale_cb")
    if "epochs" in kinds:
        found |= _longer(*kinds["epochs"])
    linear = frames.linear.get(main["dataset"].iat[0])
    if linear is not None:
        found["Linear"] = export.number(100 * linear.accuracy)
        found["LinearInterval"] = export.bracket(100 * linear.low, 100 * linear.high)
    return found | _diverged(frames.runs) | _spread(main) | _run(frames.runs, every, main)


def _ends(stem, frame, column):
    """The lowest and the highest value of a column with intervals, and whose they are."""
    decimals = export.DECIMALS.get(column, 1)
    found = {}
    for end, row in (("Lowest", frame[column].idxmin()), ("Highest", frame[column].idxmax())):
        row = frame.loc[row]
        interval = export.bracket(row[f"{column} low"], row[f"{column} high"], decimals)
        found[f"{stem}{end}"] = f"{export.number(row[column], decimals)} {interval}".rstrip()
        found[f"{stem}{end}Cell"] = row["Cell"]
    return found


def _best_change(varied, table, cell):
    """Of the changes to one cell the one with the highest mean difference."""
    runs, _ = varied
    groups = runs.loc[runs["cell"].map(style.kin) == cell, "group"].unique()
    changed = [group for group in groups if group in table.names]
    if not changed:
        return {}
    differences = table.frame.set_index("Cell")["Difference"]
    row = table.quoted()[differences[changed].idxmax()]
    columns = ("Cell", "Difference", "DifferenceInterval")
    return {f"Fix{column}": row[column] for column in columns}


def _longer(runs, plain):
    """Whether cells keep their order at the other number of epochs that most of them were trained
    for, over the seeds that both have.
    """
    is_plain = runs["group"] == runs["group"].map(plain)
    others = runs[~is_plain]
    epochs = others.groupby("epochs")["cell"].nunique().idxmax()
    both = runs[is_plain].merge(
        others[others["epochs"] == epochs], on=["cell", "seed"], suffixes=("", " longer")
    )
    means = both.groupby("cell")[["test_accuracy", "test_accuracy longer"]].mean()
    if len(means) < 3:
        return {}
    best = means["test_accuracy longer"].idxmax()
    return {
        "LongerEpochs": str(epochs),
        "LongerCells": str(len(means)),
        "LongerSeeds": plots.ranged(both.groupby("cell")["seed"].nunique()),
        "LongerOrder": f"{means.corr('spearman').iat[0, 1]:.2f}",
        "LongerBestCell": both.loc[both["cell"] == best, "label"].iat[0],
    }


def _diverged(runs):
    diverged = set(runs.loc[runs["state"] == "DIVERGED", "key"])
    if not diverged:
        return {}
    lost = select.grouped(runs.assign(state="DONE"))
    lost = lost[lost["key"].isin(diverged)]
    names = "; ".join(f"{run.group}, seed {run.seed}" for run in lost.itertuples())
    return {"Diverged": f"{len(lost)} run{'s' * (len(lost) > 1)}", "DivergedRuns": names}


def _spread(main):
    spread = analysis.summarise(main, "cell")["sd"] * 100
    if spread.isna().all():
        return {}
    return {"SpreadLow": f"{spread.min():.1f}", "SpreadHigh": f"{spread.max():.1f}"}


def _run(runs, every, main):
    done = runs[runs["state"] == "DONE"]
    return {
        "Data": " and ".join(sorted(set(main.apply(plots.task_name, axis=1)))),
        "Window": main["window"].iat[0],
        "Windows": ", ".join(_windows(every)),
        "Cells": str(every["cell"].nunique()),
        "Seeds": plots.ranged(every.groupby(["cell", "window"])["seed"].nunique()),
        "HiddenSize": str(every["hidden_size"].iat[0]),
        "BatchSize": str(every["batch_size"].iat[0]),
        "Epochs": str(every["epochs"].iat[0]),
        "Runs": str(len(every)),
        "AllRuns": str(len(done)),
        "Hours": f"{done['seconds'].sum() / 3600:.1f}",
        "Chance": f"{plots.chance(main):.0f}",
    }


# ---- files


def write(
    frames: Frames, out, *, journal="report", formats=("pdf", "png"), baseline="cb"
) -> list[str]:
    """Write ``figures/``, ``tables/`` (LaTeX and Markdown), ``numbers.tex`` and ``MANIFEST.json``
    under ``out``.

    Files of an earlier export that this one does not write are removed.

    Returns
    -------
    list of str
        What was left out and why, one sentence each.

    Raises
    ------
    StoreError
        A file cannot be written; it is as it was before.
    """
    out = Path(out)
    found = {}
    plan, left_out = figures(frames, baseline)
    if "pgf" in formats and not export.has_tex():
        left_out.append(
            "PGF figures: pdflatex is not installed; the PDFs are complete without them"
        )
        formats = [kind for kind in formats if kind != "pgf"]
    for item in plan:
        target = {"folder": out / "figures", "formats": formats}
        with style.context(journal, item.width, item.height):
            drawn = item.draw()
            figure = getattr(drawn, "figure", drawn)
            try:
                written = export.export_figure(figure, item.name, item.width, journal, **target)
            finally:
                plt.close(figure)
        found |= dict.fromkeys(written, item.runs)
    folder = out / "tables"
    for item in tables(frames):
        look = {"best": item.best, "wide": item.wide, "folder": folder}
        label = f"tab:{item.name}"
        path = export.export_table(item.frame, item.name, item.caption, label, **look)
        found[path] = item.runs
        found[export.write(folder / f"{item.name}.md", item.markdown)] = item.runs
    found[export.export_numbers(numbers(frames), folder=out)] = comparison(frames.runs)
    _remove_earlier(out, found)
    export.write(out / "MANIFEST.json", _manifest(out, found, frames.environments))
    return left_out


def _remove_earlier(out, found):
    manifest = out / "MANIFEST.json"
    earlier = json.loads(manifest.read_text("utf-8"))["files"] if manifest.exists() else ()
    for name in earlier:
        if out / name not in found:
            export.remove(out / name)


def _manifest(out, found, environments):
    """File -> digest, run keys, what their configurations share or range over, versions and commits
    that made them.
    """
    files = {}
    for path, runs in sorted(found.items()):
        made = [environments[key] for key in runs["key"] if key in environments]
        made = [{**item, "torch": item.get("fingerprint", {}).get("torch")} for item in made]
        versions = ("commit", "python", "torch", "numpy", "backend")
        files[path.relative_to(out).as_posix()] = {
            "sha256": sha256(path.read_bytes()).hexdigest(),
            "configuration": {
                name: sorted(runs[name].dropna().unique().tolist())
                for name in CONFIGURATION.split()
            },
            **{name: sorted({str(item.get(name)) for item in made}) for name in versions},
            "runs": sorted(runs["key"]),
        }
    drawn = {name: version(name) for name in ("matplotlib", "pandas", "seaborn", "scipy")}
    return json.dumps({"drawn_with": drawn, "files": files}, indent=1, sort_keys=True) + "\n"


def overleaf(
    frames: Frames, out=None, *, journal="report", baseline="cb"
) -> tuple[Path, list[str]]:
    """Build ``overleaf/`` under ``out`` (default: results) and ``overleaf.zip``, the file to
    upload.

    Returns
    -------
    zip : Path
    left_out : list of str
        As `write`.
    """
    out = Path(out or paths.results_dir())
    folder = out / "overleaf"
    left_out = write(frames, folder, journal=journal, formats=("pdf", "pgf"), baseline=baseline)
    export.write(folder / "main.tex", main_tex(frames, journal, baseline))
    export.write(folder / "README.md", (export.TEMPLATES / "overleaf.md").read_text("utf-8"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            # No time stamp: same files, same bytes.
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes())
    return export.write(out / "overleaf.zip", packed.getvalue()), left_out


def main_tex(frames: Frames, journal: str = "report", baseline: str = "cb") -> str:
    """A report that shows all figures and tables, of two columns where two fit the page."""
    page = style.journal_page(journal)
    return export.render(
        "main.tex.j2",
        page=page,
        separation=max(page.text - 2 * page.column, 0),
        figures=figures(frames, baseline)[0],
        tables=tables(frames),
    )


# ---- what was found, in words


def write_readme(frames: Frames, folder) -> Path:
    """Write ``README.md`` of a folder of results: by its own template ``README.md.j2``, where it
    has one, else by the one of every study.

    A study with words of its own is what its results folder is about: where it lies in one, its
    text stands beside it.
    """
    folder = Path(folder).resolve()
    own = folder / "README.md.j2"
    results = paths.results_dir().resolve()
    place = results if own.exists() and folder.parent == results else folder
    figures_at = folder.relative_to(place).as_posix()
    template = own if own.exists() else "README.md.j2"
    text = readme(frames, template, figures_at, _place_in_project(folder, results))
    return export.write(place / "README.md", text)


def _place_in_project(folder, results):
    """How a command names a folder: from the project's root, where the results lie in it."""
    if folder.is_relative_to(results):
        return (Path("results") / folder.relative_to(results)).as_posix()
    return folder.name


def readme(frames: Frames, template="README.md.j2", figures_at=".", place="results") -> str:
    """What was run and found, in Markdown, by a template.

    A template has the `numbers` by name; ``rows``, what a text quotes of a table by the name of its
    row (`Table.quoted`); ``isolates``, what a planned contrast tells; ``Commits``, ``Python`` and
    ``Platforms`` of the runs; ``From``, the folder; the names of all ``figures`` and ``tables``,
    and the functions ``figure(name)`` and ``table(name)`` that show one with its caption.
    """
    drawn = {item.name: item for item in figures(frames)[0]}
    made = {item.name: item for item in tables(frames)}

    def figure(name):
        item = drawn[name]
        return f"![{item.lead}]({figures_at}/figures/{name}.png)\n\n*{item.caption}*"

    return export.render(
        template,
        **numbers(frames),
        **_made_by(frames),
        From=place,
        isolates={contrast.name: contrast.isolates for contrast in analysis.PLANNED},
        rows={name: item.quoted() for name, item in made.items()},
        figures=list(drawn),
        tables=list(made),
        figure=figure,
        table=lambda name: made[name].markdown.rstrip("\n"),
    )


def _made_by(frames):
    keys = set(comparison(frames.runs)["key"])
    made = [values for key, values in frames.environments.items() if key in keys]
    said = {}
    for name, field in (("Commits", "commit"), ("Platforms", "platform"), ("Python", "python")):
        values = {str(item[field]) for item in made if item.get(field)}
        short = {value[:7] for value in values} if name == "Commits" else values
        said[name] = ", ".join(sorted(short))
    return said
