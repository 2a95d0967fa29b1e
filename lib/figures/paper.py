"""The paper of a comparison: which figures and numbers it has beside its `lib.figures.tables`, and
the folder that compiles in Overleaf.

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

from lib import analysis, files, paths
from lib.figures import export, plots, select, style, summaries
from lib.figures.select import VARIANTS, Frames, comparison, main_window, variants
from lib.figures.summaries import intervals
from lib.figures.tables import Table, tables

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
        return summaries.caption(self.runs, self.lead)


# ---- figures


def figures(frames: Frames, baseline: str = "cb") -> list[Figure]:
    """Every figure that the runs allow."""
    return [*_of_cells(frames, baseline), *_of_windows(frames), *_of_changes(frames)]


def _of_cells(frames, baseline):
    shown, evidence = select.headline(frames.runs), {"predictions": frames.predictions}
    main = shown[shown["options"] == "{}"]
    bars = f"bars: {intervals(frames)}; dots: seeds"
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
    designs = select.designs(shown).values()
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
    wide = select.across_windows(frames.runs)
    if not len(wide):
        return
    lead = "Mean test accuracy of every window, by stride convention; 8/4 belongs to both."
    height = _height(0.6, wide)
    yield Figure("accuracy_heatmap", "column", height, lead, wide, partial(plots.heatmap, wide))
    if wide["input_length"].nunique() > 1:
        lead = (
            f"Test accuracy less that at {main_window(wide)}, one line a stride convention; bars: "
            f"simultaneous {intervals(frames)}, a family each cell."
        )
        rows = -(-wide["group"].nunique() // 5)
        draw = partial(plots.accuracy_vs_input_length, wide, predictions=frames.predictions)
        yield Figure("input_length", "text", 0.9 + 0.6 * rows, lead, wide, draw)


def _of_changes(frames):
    evidence = {"predictions": frames.predictions}
    for name, (ladder, rungs) in select.ladders(frames.runs).items():
        lead = (
            f"{ladder.title}: mean test accuracy (large dots) and seeds (small dots). Bars: "
            f"simultaneous {intervals(frames)} of the difference from the cell that is changed, "
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
            f"How test accuracy grows with training. Bars: {intervals(frames)}, from three seeds "
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
            f"{intervals(frames)}, those that reach the frame go beyond it; dots: seeds, alone "
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


def _linear(frames, runs):
    found = frames.linear.get(runs["dataset"].iat[0])
    return found and found.accuracy


def _family(frames):
    return f"bars: simultaneous {intervals(frames)}; dots: seeds"


def _height(edge, runs):
    """Inches of a figure with a row for each group."""
    return edge + 0.14 * runs["group"].nunique()


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
        lead = summaries.differences(pair, order[-2], predictions=frames.predictions).iloc[0]
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
        "Data": " and ".join(sorted(set(main.apply(summaries.task_name, axis=1)))),
        "Window": main["window"].iat[0],
        "Windows": ", ".join(select.shapes(every)),
        "Cells": str(every["cell"].nunique()),
        "Seeds": summaries.ranged(main.groupby("cell")["seed"].nunique()),
        "Epochs": str(main["epochs"].iat[0]),
        "WindowSeeds": summaries.ranged(every.groupby(["cell", "window"])["seed"].nunique()),
        "WindowEpochs": str(every["epochs"].iat[0]),
        "HiddenSize": str(every["hidden_size"].iat[0]),
        "BatchSize": str(every["batch_size"].iat[0]),
        "Runs": str(len(every)),
        "AllRuns": str(len(done)),
        "Hours": f"{done['seconds'].sum() / 3600:.1f}",
        "Chance": f"{summaries.chance(main):.0f}",
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
