"""The paper of a comparison: which figures, tables and numbers it has, and the folder that compiles
in Overleaf.

All is made from tidy frames, so that `python -m lib compare --from FOLDER` rebuilds it byte for
byte from committed results. Words stand in templates: those of every study in ``templates/``, those
of one study in ``README.md.j2`` beside its results.
"""

import io
import re
import zipfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import pandas as pd

from lib import analysis, cells, files, memory, paths
from lib.figures import export, plots, select, style
from lib.figures.select import VARIANTS, Frames, comparison, main_window, variants

# Column of a table -> what a text calls it, where that is not its own name.
QUOTED = {"Accuracy (%)": "Accuracy", "Above linear": "AboveLinear", "n": "Seeds"}
# Table -> what of its rows becomes a command of LaTeX.
COMMANDS = {
    "summary": ("Accuracy", "AccuracyInterval"),
    "contrasts": ("Difference", "DifferenceInterval"),
    "effects": ("Difference", "DifferenceInterval"),
}
# What a figure needs, said where it is left out.
NEEDS = {
    "paired_differences": "finished runs of the baseline and of another cell at one window",
    "accuracy_heatmap": "runs of several windows",
    "input_length": "runs of several input lengths",
    "effects": "a finished run of each of the six cells of the design W x STP",
    "learning_rate_scan": "a seed that a cell ran at several learning rates",
}
CONFIGURATION = (
    "dataset permuted first_rows last_rows delay data_seed window scan cell source hidden_size "
    "initialisation options epochs batch_size learning_rate clip_norm seed"
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
        shown = {}
        for column, (values, intervals) in export.as_text(self.frame).items():
            name = QUOTED.get(column, column)
            shown[name] = values
            if intervals is not None:
                none = "(fewer than three seeds, no interval)"
                shown[f"{name}Interval"] = intervals.replace("", none)
        rows = pd.DataFrame(shown).to_dict("records")
        return dict(zip(self.names, rows, strict=True))


# ---- figures


def figures(frames: Frames, baseline: str = "cb") -> list[Figure]:
    """Every figure that the runs allow."""
    return [*_of_cells(frames, baseline), *_of_windows(frames), *_of_changes(frames)]


def _of_cells(frames, baseline):
    shown, evidence = select.headline(frames.runs), {"predictions": frames.predictions}
    main = shown[shown["options"] == "{}"]
    bars = f"bars: {_intervals(frames)}; dots: seeds"
    linear = _linear(frames, main)
    repaired = len(shown) > len(main)
    marked = "; open: a plain cell that also stands repaired" if repaired else ""
    lead = (
        "Learning curves. Mean over seeds, 95 % interval as a band, seeds as thin lines; "
        f"in grey the cells of the other panels{marked}"
    )
    lead += "." if linear is None else "; dashed: a linear softmax on the pixels, test set."
    curves = frames.curves[frames.curves["key"].isin(shown["key"])]
    draw = partial(plots.learning_curves, curves, linear=linear)
    yield Figure("learning_curves", "text", 2.2, lead, shown, draw)
    ms, timed = _milliseconds(shown)
    if not ms.keys().isdisjoint(shown["cell"]):
        lead = (
            "Learning curves against core-seconds: forward and backward passes, as the quiet "
            f"benchmark times them on one core ({timed} inputs a step)."
        )
        draw = partial(plots.core_seconds, curves, ms, linear=linear)
        yield Figure("core_seconds", "text", 1.7, lead, shown, draw)
    floor = "chance" if linear is None else "chance, and a linear softmax on the pixels"
    lead = f"Test accuracy; lines on {bars}; dashed: {floor}{marked}."
    draw = partial(plots.bars, shown, linear=linear, **evidence)
    yield Figure("accuracy_bars", "column", _height(0.45, shown), lead, shown, draw)
    if baseline in set(main["cell"]) and main["cell"].nunique() > 1:
        name = style.look(baseline).label
        lead = f"Differences of test accuracy from {name}; {_family(frames)}."
        draw = partial(plots.paired_differences, main, baseline, **evidence)
        yield Figure("paired_differences", "column", _height(0.45, main), lead, main, draw)
    designs = _designs(shown).values()
    if designs:
        lead = f"How W is made and short-term plasticity (STP); {bars}."
        design, width = pd.concat(designs), "column" if len(designs) == 1 else "text"
        draw = partial(plots.effects, design, **evidence)
        yield Figure("effects", width, 2.1, lead, design, draw)
    history = frames.history
    gates = history[(history["variable"] == "z") & (history["statistic"] == "q50")]
    gated = shown[shown["key"].isin(gates["key"])]
    if len(gated):
        lead = (
            "Test accuracy, and what training did: strokes before, marks after, medians over "
            "units, 64 validation images and seeds; bars: 95 % intervals over seeds."
        )
        draw = partial(plots.before_after, gated, history)
        yield Figure("before_after", "text", _height(0.5, gated), lead, gated, draw)


def _of_windows(frames):
    wide = _wide(frames)
    if not len(wide):
        return
    lead = "Mean test accuracy of every window, by stride convention; 8/4 belongs to both."
    height = _height(0.6, wide)
    yield Figure("accuracy_heatmap", "column", height, lead, wide, partial(plots.heatmap, wide))
    if wide["input_length"].nunique() > 1:
        lead = (
            f"Test accuracy less that at {main_window(wide)}, one line a stride convention; bars: "
            f"simultaneous {_intervals(frames)}, a family each cell."
        )
        rows = -(-wide["group"].nunique() // 5)
        draw = partial(plots.accuracy_vs_input_length, wide, predictions=frames.predictions)
        yield Figure("input_length", "text", 0.9 + 0.6 * rows, lead, wide, draw)


def _of_changes(frames):
    evidence = {"predictions": frames.predictions}
    for name, (ladder, rungs) in select.ladders(frames.runs).items():
        lead = (
            f"{ladder.title}: mean test accuracy (large dots) and seeds (small dots). Bars: "
            f"simultaneous {_intervals(frames)} of the difference from the cell that is changed, "
            "drawn around the mean: a change tells where its bar leaves that cell's line. "
            f"{select.meanings(ladder, rungs)}."
        )
        height = 0.8 + 0.16 * len(rungs.steps) + 0.2 * rungs.steps["panel"].nunique()
        draw = partial(plots.ladder, rungs, linear=_linear(frames, rungs.runs), **evidence)
        yield Figure(name, "column", height, lead, rungs.runs, draw)
    for question, (runs, plain) in variants(frames.runs).items():
        title, compared_with = VARIANTS[question]
        lead = f"{title}: difference from {compared_with}; {_family(frames)}."
        height = 0.5 + 0.14 * (len(plain) - len(set(plain.values())))
        draw = partial(plots.paired_differences, runs, plain, **evidence)
        yield Figure(question, "column", height, lead, runs, draw)
    runs = select.growth(frames.runs)
    if runs is not None:
        lead = (
            f"How test accuracy grows with training. Bars: {_intervals(frames)}, from three seeds "
            "on; without those that diverged."
        )
        draw = partial(plots.growth, runs, linear=_linear(frames, runs), **evidence)
        yield Figure("epochs", "text", 2.2, lead, runs, draw)
    rates = select.scan(frames.runs)
    if len(rates):
        lead = (
            "Learning rates, on the validation set, one panel a kind of run; ringed: the best; "
            "without those at which it diverged."
        )
        kinds = rates.drop_duplicates(["cell", "options", "initialisation"])
        height = 0.5 + 0.85 * -(-len(kinds) // 6)
        draw = partial(plots.learning_rate_scan, rates)
        yield Figure("learning_rate_scan", "text", height, lead, rates, draw)
    runs = select.delays(frames.runs)
    if runs is not None and runs["first_rows"].isna().any():
        lead = (
            "Test accuracy where blank pixels follow the image before the network answers. Bars: "
            f"{_intervals(frames)}, those that reach the frame go beyond it; dots: seeds, alone "
            "where fewer than three learned; dotted: plasticity with a time step of its own, stp "
            "dt (otherwise 1)."
        )
        draw = partial(plots.delays, runs, **evidence)
        yield Figure("delays", "text", 3.4, lead, runs, draw)


def _milliseconds(runs):
    """Cell -> milliseconds of a pass by the benchmark, none where it timed other sizes; and the
    inputs a step that it timed, which cost little.
    """
    found = files.read_json(paths.project_root() / "results" / "bench.json")
    if found is None:
        return {}, None
    size = found["options"]
    run = runs.iloc[0]
    same = (size["batch"], size["hidden"]) == (run["batch_size"], run["hidden_size"])
    alike = same and abs(size["steps"] - run["sequence_length"]) <= 1
    return {row["cell"]: row["fast"] for row in found["passes"] if alike}, size["features"]


def _wide(frames):
    """The runs of cells that ran several windows."""
    every = comparison(frames.runs)
    return every[every.groupby("cell")["window"].transform("nunique") > 1]


def _linear(frames, runs):
    found = frames.linear.get(runs["dataset"].iat[0])
    return found and found.accuracy


def _intervals(frames):
    over = "seeds" if frames.predictions is None else "seeds and test images"
    return f"95 % intervals over {over}"


def _family(frames):
    return f"bars: simultaneous {_intervals(frames)}; dots: seeds"


def _height(edge, runs):
    """Inches of a figure with a row for each group."""
    return edge + 0.14 * runs["group"].nunique()


# ---- tables


def tables(frames: Frames) -> list[Table]:
    """Every table that the runs allow; ``names`` are what texts call its rows.

    Differences and effects are one family a table (main effects and interactions are their own),
    whose intervals hold together; what rests on one or two seeds is in none.
    """
    shown = select.headline(frames.runs)
    main = shown[shown["options"] == "{}"]
    linear = frames.linear.get(main["dataset"].iat[0])
    lead = f"Test accuracy (mean; {_intervals(frames)}), "
    lead += "how far above a linear softmax on the pixels, " if linear else ""
    lead += "trainable parameters and median time of a training step."
    cells_shown = summary_table(main, frames.predictions, linear)
    names = tuple(main["cell"].unique())
    found = [Table("summary", cells_shown, lead, main, names, ("Accuracy (%)",))]
    found += _windows_table(frames)
    found += _contrasts_table("contrasts", "Planned contrasts", main, frames)
    for name, design in _designs(shown).items():
        found += _effects_table(name, design, frames)
    found += _repaired_tables(shown, frames)
    found += _lesions_table("lesions", shown, frames)
    for name, (ladder, rungs) in select.ladders(frames.runs).items():
        found.append(_ladder_table(name, ladder, rungs, frames))
        found += _lesions_table(f"{name}_lesions", rungs.runs, frames)
    kinds = variants(frames.runs)
    found += [
        _differences_table(kind, *VARIANTS[kind], *varied, frames) for kind, varied in kinds.items()
    ]
    return found + _growth_table(frames) + _delay_tables(frames)


def summary_table(runs: pd.DataFrame, predictions=None, linear=None) -> pd.DataFrame:
    """One row a cell: test accuracy in percent with interval (`plots.summary`), points above the
    ``linear`` reference of the same images, n, trainable parameters, time of a training step.
    """
    runs = runs if "group" in runs else select.grouped(runs)
    table = plots.summary(runs, predictions=predictions)
    other = runs.groupby("group")[["parameters", "ms_per_step"]].median().loc[table["group"]]
    shown = pd.DataFrame({"Cell": table["group"]}).assign(**_interval("Accuracy (%)", table))
    if linear is not None and predictions is not None:
        answers = plots.answers(runs, "test_accuracy", ["group"], predictions)
        reference = linear.predictions.set_index("image")
        right = (reference["label"] == reference["prediction"]).astype(float)
        above = analysis.accuracies(answers - right.reindex(answers.columns))
        shown = shown.assign(**_interval("Above linear", above, 100))
    shown["n"] = table["n"].to_numpy()
    shown["Parameters"] = other["parameters"].to_numpy()
    shown["ms/step"] = other["ms_per_step"].to_numpy()
    return shown


def _interval(title, table, factor=1):
    """Columns of a table of `lib.analysis`, as `export.formatted` takes them."""
    ends = (("mean", ""), ("low", " low"), ("high", " high"))
    return {f"{title}{end}": (table[column] * factor).to_numpy() for column, end in ends}


def _beside(shown, table, column, values, factor=1):
    """With an interval for each of the ``values`` of a column, of the group that a row names."""
    for value in values:
        part = table[table[column] == value].set_index("group")
        shown = shown.assign(**_interval(value, part.reindex(shown.iloc[:, 0]), factor))
    return shown


def _windows_table(frames):
    wide = _wide(frames)
    if not len(wide):
        return
    base = main_window(wide)
    own = plots.summary(wide[wide["window"] == base], predictions=frames.predictions)
    shown = pd.DataFrame({"Cell": own["group"]}).assign(**_interval(f"{base} (%)", own))
    differences = plots.window_differences(wide, frames.predictions)
    others = [shape for shape in select.shapes(wide) if shape != base]
    shown = _beside(shown, differences, "window", others)
    lead = (
        f"Test accuracy at {base} (mean; {_intervals(frames)}) and what other windows change it by "
        "(percentage points; simultaneous intervals of each row)."
    )
    yield Table("windows", shown, lead, wide, tuple(own["cell"]), wide=True)


def _contrasts_table(name, lead, runs, frames, contrasts=analysis.PLANNED):
    table = plots.contrast_summary(runs, contrasts, frames.predictions).dropna(subset="low")
    if table.empty:
        return
    lead += f" (percentage points of test accuracy; simultaneous {_intervals(frames)})."
    frame = pd.DataFrame({"Pair": table["pair"]}).assign(**_interval("Difference", table))
    yield Table(name, frame.assign(n=table["n"]), lead, runs, tuple(table["name"]))


def _designs(shown):
    """Runs of the design W x STP as it is and repaired, by the name of their table of effects,
    where all its cells ran.
    """
    shown = shown[shown["cell"].isin(cells.DESIGN)]
    plain = shown["options"] == "{}"
    parts = {"effects": shown[plain], "repaired_effects": shown[~plain]}
    return {name: of for name, of in parts.items() if of["cell"].nunique() == len(cells.DESIGN)}


def _effects_table(name, design, frames):
    answers = plots.answers(design, "test_accuracy", ["cell"], frames.predictions)
    families = analysis.design_weights().values()
    table = pd.concat([analysis.effects(answers, weights) for weights in families])
    if table["low"].isna().any():
        return
    lead = (
        "Effects of W (free, sign-constrained, reversal potentials) and STP on test accuracy "
        f"{'' if name == 'effects' else 'of repaired cells '}"
        f"(percentage points; simultaneous {_intervals(frames)})."
    )
    shown = pd.DataFrame({"Effect": table.index}).assign(**_interval("Difference", table, 100))
    shown["n"] = table["n"].to_numpy()
    yield Table(name, shown, lead, design, tuple(table.index))


def _ladder_table(name, ladder, rungs, frames):
    """One row a rung, called "added: drive z", "alone: drive z", ..."""
    table = plots.rung_summary(rungs, frames.predictions)
    own = plots.summary(rungs.runs, predictions=frames.predictions).set_index("group")
    names = tuple(table["panel"] + ": " + table["label"])
    shown = pd.DataFrame({"Change": names, "From": table["reference"]})
    shown = shown.assign(**_interval("Accuracy (%)", own.loc[table["group"]]))
    shown = shown.assign(**_interval("Difference", table), n=table["n"])
    lead = (
        f"{ladder.title}: test accuracy, and its difference (percentage points) from what it is a "
        f"change of; {_intervals(frames)}, of the differences simultaneous."
    )
    return Table(name, shown, lead, rungs.runs, names, wide=True)


def _repaired_tables(shown, frames):
    """Repaired cells less the same cells as they are, and less what has one constraint fewer."""
    repaired = shown["options"] != "{}"
    if not repaired.any():
        return
    beside = shown[shown["cell"].isin(shown.loc[repaired, "cell"])]
    own = beside[beside["options"] == "{}"].groupby("cell")["group"].first()
    plain = beside.groupby("group")["cell"].first().map(own).to_dict()
    yield _differences_table("repaired", "Repaired cells", select.ITSELF, beside, plain, frames)
    alike = shown[repaired | (shown["cell"] == "simple_gru")]
    lead = "What one constraint more changes in repaired cells, and CB in the simple GRU"
    yield from _contrasts_table("constraints", lead, alike, frames, analysis.CONSTRAINTS)


def _differences_table(name, title, compared_with, runs, plain, frames):
    table = plots.difference_summary(runs, plain, predictions=frames.predictions)
    lead = f"{title}: test accuracy, and its difference (percentage points) from {compared_with}"
    told = table["low"].notna()
    if told.any():
        table = table[told]
        lead += f"; {_intervals(frames)}, of the differences simultaneous."
    else:
        lead += "; one or two seeds give no 95 % interval."
    shown = summary_table(runs, frames.predictions).set_index("Cell").loc[table["group"]]
    shown = shown.reset_index().drop(columns=["ms/step", "n"])
    shown = shown.assign(**_interval("Difference", table), n=table["n"].to_numpy())
    runs = runs[runs["group"].isin([*table["group"], *table["reference"]])]
    return Table(name, shown, lead, runs, tuple(table["group"]), wide=True)


def _growth_table(frames):
    runs = select.growth(frames.runs)
    if runs is None:
        return []
    own = plots.summary(runs, by=("group", "epochs"), predictions=frames.predictions)
    shown = pd.DataFrame({"Cell": runs["group"].unique()})
    lengths = sorted(runs["epochs"].unique())
    shown = _beside(shown, own, "epochs", lengths)
    last = runs[runs["epochs"] == lengths[-1]]
    best = last.groupby("group")["best_epoch"].median()  # says whether all of it was of use
    gain = plots.growth_summary(runs, frames.predictions).set_index("group")
    shown = shown.assign(**_interval("Difference", gain.reindex(shown["Cell"])))
    shown["Best epoch"] = best.loc[shown["Cell"]].to_numpy()
    lead = (
        f"Test accuracy after {', '.join(map(str, lengths))} epochs (percent; {_intervals(frames)}"
        "), how much the longest training adds to the one before it (percentage points; "
        "simultaneous), and its best epoch; each kind and length at its own learning rate."
    )
    return [Table("epochs", shown, lead, runs, tuple(shown["Cell"]), wide=True)]


def _delay_tables(frames):
    runs = select.delays(frames.runs)
    if runs is None:
        return []
    evidence, tasks = {"predictions": frames.predictions}, runs["task"].unique()
    columns = "columns: blank pixels before the answer, and the rows that are read if not all"
    own = plots.delay_summary(runs, **evidence)
    lead = f"Test accuracy after a delay (percent; {_intervals(frames)}); {columns}."
    found = [_tasks_table("delays", "Cell", own, tasks, lead, runs)]
    helps = plots.plasticity_summary(runs, **evidence)
    if len(helps):
        helps = helps.assign(group=helps["group"] + " − " + helps["reference"])
        lead = "What plasticity changes after a delay (percentage points of test accuracy; "
        lead += f"simultaneous {_intervals(frames)}); {columns}."
        found.append(_tasks_table("plasticity", "Pair", helps, tasks, lead, runs))
    waits = runs[runs["delay"] > 0]
    waits = waits.assign(group=waits["group"] + ", " + waits["task"])
    return found + _lesions_table("delay_lesions", waits, frames)


def _lesions_table(name, runs, frames):
    """What kinds of runs lose by each lesion, where their networks were measured."""
    runs = runs.merge(frames.lesions, on="key") if frames.lesions is not None else runs.iloc[:0]
    if runs.empty:
        return []
    table = analysis.summarise(runs, ("group", "lesion"), "drop")
    kinds = pd.DataFrame({"Cell": runs["group"].unique()})
    intact = runs.drop_duplicates("key").groupby("group")["intact"].mean()
    shown = kinds.assign(Intact=100 * intact.loc[kinds["Cell"]].to_numpy())
    measured = [what for what in memory.LESIONS if what in set(table["lesion"])]
    shown = _beside(shown, table, "lesion", measured, 100)
    lead = (
        "Accuracy of intact networks (percent of the first test images), and what they lose where "
        "one signal of every step is replaced: by its mean, W by nothing, what is shuffled by that "
        "of another image during the delay (percentage points; 95 % intervals over seeds)."
    )
    return [Table(name, shown, lead, runs, tuple(kinds["Cell"]), wide=True)]


def _tasks_table(name, key, table, tasks, lead, runs):
    shown = _beside(pd.DataFrame({key: table["group"].unique()}), table, "task", tasks)
    return Table(name, shown, lead, runs, tuple(shown[key]), wide=True)


# ---- numbers


def numbers(frames: Frames, made: list[Table] | None = None) -> dict[str, str]:
    """Every number that is a command of LaTeX, by its name: what was run (``Runs``, ``Epochs``,
    ...), the best cell, its lead over the next, and the worst, each cell at the main window
    (``CbAccuracy``), planned contrasts and effects (``GateDifference``); ``made`` are the `tables`,
    where they are at hand.
    """
    rows = {item.name: item.quoted() for item in made or tables(frames)}
    found = {}
    for table, columns in COMMANDS.items():
        for name, row in rows.get(table, {}).items():
            stem = export.command_name(name)
            found |= {f"{stem}{column}": row[column] for column in columns}
    every, main = comparison(frames.runs), select.at_main_window(frames.runs)
    order = list(main.groupby("cell")["test_accuracy"].mean().sort_values().index)
    places = {"Worst": order[0], "Best": order[-1]}
    if len(order) > 1:
        places["Next"] = order[-2]
    for place, cell in places.items():
        row = rows["summary"][cell]
        found |= {f"{place}{name}": row[name] for name in ("Cell", "Accuracy", "AccuracyInterval")}
    if "Next" in places:
        pair = main[main["cell"].isin(order[-2:])]
        lead = plots.difference_summary(pair, order[-2], predictions=frames.predictions).iloc[0]
        found["Lead"] = export.number(lead["mean"])
        found["LeadInterval"] = export.bracket(lead["low"], lead["high"])
    linear = frames.linear.get(main["dataset"].iat[0])
    if linear is not None:
        found["Linear"] = export.number(100 * linear.accuracy)
        found["LinearInterval"] = export.bracket(100 * linear.low, 100 * linear.high)
    done = frames.runs[frames.runs["state"] == "DONE"]
    return {
        **found,
        **_diverged(frames.runs),
        "Data": " and ".join(sorted(set(main.apply(plots.task_name, axis=1)))),
        "Window": main["window"].iat[0],
        "Windows": ", ".join(select.shapes(every)),
        "Cells": str(every["cell"].nunique()),
        "Seeds": plots.ranged(main.groupby("cell")["seed"].nunique()),
        "Epochs": str(main["epochs"].iat[0]),
        "WindowSeeds": plots.ranged(every.groupby(["cell", "window"])["seed"].nunique()),
        "WindowEpochs": str(every["epochs"].iat[0]),
        "HiddenSize": str(every["hidden_size"].iat[0]),
        "BatchSize": str(every["batch_size"].iat[0]),
        "Runs": str(len(every)),
        "AllRuns": str(len(done)),
        "Hours": f"{done['seconds'].sum() / 3600:.1f}",
        "Chance": f"{plots.chance(main):.0f}",
    }


def _diverged(runs):
    diverged = set(runs.loc[runs["state"] == "DIVERGED", "key"])
    if not diverged:
        return {}
    lost = select.grouped(runs.assign(state="DONE"))
    lost = lost[lost["key"].isin(diverged)]
    names = "; ".join(f"{run.group}, seed {run.seed}" for run in lost.itertuples())
    return {"Diverged": f"{len(lost)} run{'s' * (len(lost) > 1)}", "DivergedRuns": names}


# ---- files


def write(
    frames: Frames, out, *, journal="report", formats=("pdf", "png"), baseline="cb"
) -> list[str]:
    """Write ``figures/``, ``tables/`` (LaTeX and Markdown), ``numbers.tex`` and ``MANIFEST.json``
    under ``out``; returns what was left out and why, one sentence each.

    Files of an earlier export that this one does not write are removed. StoreError where a file
    cannot be written; all are as they were before.
    """
    plan, made = figures(frames, baseline), tables(frames)
    found = {}
    drawn = {item.name for item in plan}
    left_out = [f"{name}: needs {what}" for name, what in NEEDS.items() if name not in drawn]
    if "pgf" in formats and not export.has_tex():
        left_out.append(
            "PGF figures: pdflatex is not installed; the PDFs are complete without them"
        )
        formats = [kind for kind in formats if kind != "pgf"]
    with files.staged(Path(out)) as new:
        target = {"folder": new / "figures", "formats": formats}
        for item in plan:
            with style.context(journal, item.width, item.height):
                drawn = item.draw()
                figure = getattr(drawn, "figure", drawn)
                try:
                    written = export.export_figure(figure, item.name, item.width, journal, **target)
                finally:
                    plt.close(figure)
            found |= dict.fromkeys(written, item.runs)
        folder = new / "tables"
        for item in made:
            look = {"best": item.best, "wide": item.wide, "folder": folder}
            label = f"tab:{item.name}"
            path = export.export_table(item.frame, item.name, item.caption, label, **look)
            found[path] = item.runs
            found[export.write(folder / f"{item.name}.md", item.markdown)] = item.runs
        quoted = export.export_numbers(numbers(frames, made), folder=new)
        found[quoted] = comparison(frames.runs)
        export.write(new / files.MANIFEST, _manifest(new, found, frames.environments))
    return left_out


def _manifest(out, found, environments):
    """File -> digest, run keys, what their configurations share or range over, versions and commits
    that made them.
    """
    listed = {}
    for path, runs in sorted(found.items()):
        made = [environments[key] for key in runs["key"] if key in environments]
        made = [{**item, "torch": item.get("fingerprint", {}).get("torch")} for item in made]
        versions = ("commit", "python", "torch", "numpy", "backend")
        listed[path.relative_to(out).as_posix()] = {
            "sha256": files.digest(path.read_bytes()),
            "configuration": {
                name: sorted(runs[name].dropna().unique().tolist())
                for name in CONFIGURATION.split()
            },
            **{name: sorted({str(item.get(name)) for item in made}) for name in versions},
            "runs": sorted(runs["key"]),
        }
    drawn = {name: version(name) for name in ("matplotlib", "pandas", "seaborn", "scipy")}
    return files.to_json({"drawn_with": drawn, "files": listed})


def overleaf(
    frames: Frames, out=None, *, journal="report", baseline="cb"
) -> tuple[Path, list[str]]:
    """Build ``overleaf/`` under ``out`` (default: results), a report of all figures and tables, of
    two columns where two fit the page; and ``overleaf.zip``, the file to upload. Returns the path
    of the latter, and what was left out, as `write`.
    """
    out = Path(out or paths.results_dir())
    folder = out / "overleaf"
    left_out = write(frames, folder, journal=journal, formats=("pdf", "pgf"), baseline=baseline)
    page = style.journal_page(journal)
    text = export.render(
        "main.tex.j2",
        page=page,
        separation=max(page.text - 2 * page.column, 0),
        figures=figures(frames, baseline),
        tables=tables(frames),
    )
    export.write(folder / "main.tex", text)
    export.write(folder / "README.md", (export.TEMPLATES / "overleaf.md").read_text("utf-8"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            # Without a time stamp: same files, same bytes.
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return export.write(out / "overleaf.zip", packed.getvalue()), left_out


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
    named = folder.name  # by a command: from the project's root, where the results lie in it
    if folder.is_relative_to(results):
        named = ("results" / folder.relative_to(results)).as_posix()
    return export.write(place / "README.md", readme(frames, template, figures_at, named))


def readme(frames: Frames, template="README.md.j2", figures_at=".", place="results") -> str:
    """What was run and found, in Markdown, by a template.

    A template has the `numbers` by name; ``rows``, what a text quotes of a table by the name of its
    row (`Table.quoted`); ``isolates``, what a planned contrast tells; ``Commits``, ``Python`` and
    ``Platforms`` of the runs; ``From``, the folder; the names of all ``figures`` and ``tables``,
    and the functions ``figure(name)`` and ``table(name)`` that show one with its caption.
    """
    drawn = {item.name: item for item in figures(frames)}
    made = {item.name: item for item in tables(frames)}

    def figure(name):
        item = drawn[name]
        shows = re.split("[.;:]", item.lead)[0]  # the caption says the rest
        return f"![{shows}]({figures_at}/figures/{name}.png)\n\n*{item.caption}*"

    return export.render(
        template,
        **numbers(frames, list(made.values())),
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
