"""The paper of a comparison: which figures, tables and numbers it has, and the folder that compiles in Overleaf.

All is made from tidy frames, so that `python -m lib compare --from FOLDER` rebuilds it byte for byte from committed results.
"""

import json
import zipfile
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import pandas as pd

from lib import analysis, cells, export, paths, plots, style
from lib.config import CellSpec

WINDOW = "8/4"  # the window of figures that show one, where it was run: both stride conventions hold there


class Frames(NamedTuple):
    """What `lib.store.Store` holds of some runs; ``environments`` maps keys to what each run was made with."""

    runs: pd.DataFrame
    curves: pd.DataFrame
    history: pd.DataFrame
    environments: dict


class Figure(NamedTuple):
    """One figure: its size in the document, what it shows, the runs behind it and the function that draws it."""

    name: str
    width: str
    height: float
    lead: str
    runs: pd.DataFrame
    draw: Callable


class Table(NamedTuple):
    """One table, as `export.export_table` takes it, and the runs behind it."""

    name: str
    frame: pd.DataFrame
    lead: str
    runs: pd.DataFrame
    best: tuple = ()
    wide: bool = False


def collect(store, **filters) -> Frames:
    """Finished runs of a store with their curves, history and environments; filters as in `Store.runs`."""
    runs = store.runs(**{**filters, "state": "DONE"})
    same = {"key": list(runs["key"])}
    return Frames(runs, store.curves(**same), store.history(**same), {key: store.environment(key) for key in same["key"]})


# ---- which runs


def comparison(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that compare: one data set, whole images, default options and initialisation, one size, epochs and (by cell) learning rate.

    Each is the most frequent value. Runs of a learning-rate scan (a seed that one cell and window ran at several rates) do not compare, nor
    does a user's own cell that lacks a window which others ran.
    """
    runs = runs[runs["state"] == "DONE"]
    if not len(runs):
        raise ValueError("No finished run to export; train some first, for example with: python -m lib compare.")
    runs = without_scan(runs)
    plain = (runs["options"] == "{}") & (runs["initialisation"] == CellSpec().initialisation)
    runs = runs[plain & ~runs["permuted"].astype(bool) & runs["last_rows"].isna()]
    for column in ("dataset", "scan", "hidden_size", "epochs", "batch_size"):
        runs = runs[runs[column] == runs[column].mode().get(0)]
    runs = runs[runs["learning_rate"] == runs.groupby("cell")["learning_rate"].transform(lambda rates: rates.mode()[0])]
    if not len(runs):
        raise ValueError("No finished run has default options and initialisation on whole images; there is nothing to compare.")
    complete = runs.groupby("cell")["window"].transform("nunique") == runs["window"].nunique()
    return plots.grouped(runs[complete | runs["cell"].isin(style.ORDER)])


def controls(runs: pd.DataFrame, window: str) -> pd.DataFrame:
    """The other finished runs at one window, on the data set of the comparison; the learning-rate scan is not among them."""
    main = comparison(runs)
    same = (runs["state"] == "DONE") & (runs["dataset"] == main["dataset"].iat[0]) & (runs["window"] == window)
    return runs[same & ~_scanned(runs) & ~runs["key"].isin(main["key"])]


def without_scan(runs: pd.DataFrame) -> pd.DataFrame:
    """All runs but those of a learning-rate scan: its seed chose the rate, so it must not count among the seeds that compare.

    Where a cell and window have nothing else (every seed ran at several rates), they stay.
    """
    scanned = _scanned(runs)
    others = (~scanned).groupby([runs["dataset"], runs["cell"], runs["window"]]).transform("any")
    return runs[~(scanned & others)]


def scan(runs: pd.DataFrame) -> pd.DataFrame:
    """The learning-rate scan at its most frequent window; empty where none was run."""
    found = runs[(runs["state"] == "DONE") & (runs["options"] == "{}")]
    found = found[_scanned(found)]
    return found[found["window"] == found["window"].mode().get(0)]


def _scanned(runs):
    columns = ["dataset", "permuted", "last_rows", "window", "cell", "hidden_size", "initialisation", "options", "epochs", "seed"]
    return runs.groupby(columns, dropna=False)["learning_rate"].transform("nunique") > 1


def main_window(runs: pd.DataFrame) -> str:
    """8/4 where it was run, else the window with the most runs."""
    return WINDOW if WINDOW in set(runs["window"]) else runs["window"].mode()[0]


# ---- what is shown of them


def figures(frames: Frames, baseline: str = "cb") -> tuple[list[Figure], list[str]]:
    """Every figure that the runs allow, and one sentence for each that they do not."""
    every = comparison(frames.runs)
    window, left_out = main_window(every), []
    main, rates = every[every["window"] == window], scan(frames.runs)
    curves = frames.curves[frames.curves["key"].isin(main["key"])]
    history = frames.history[frames.history["key"].isin(main["key"])]
    wide = every[every.groupby("cell")["window"].transform("nunique") > 1]
    rows = main["group"].nunique()
    seeds = "bars: 95 % intervals over seeds; dots: seeds"
    found = [
        Figure(
            "learning_curves",
            "text",
            2.2,
            "Learning curves. Mean over seeds, 95 % interval as a band, seeds as thin lines; in grey the cells of the other panels.",
            main,
            lambda: plots.learning_curves(curves),
        ),
        Figure("accuracy_bars", "column", 0.45 + 0.14 * rows, f"Test accuracy; {seeds}; dashed: chance.", main, lambda: plots.bars(main)),
        Figure(
            "accuracy_dots",
            "column",
            0.45 + 0.14 * rows,
            f"Test accuracy, best first; {seeds}; the axis does not start at 0.",
            main,
            lambda: plots.dot_and_interval(main),
        ),
    ]
    if rows > 1 and baseline in set(main["cell"]):
        lead = f"Differences from {style.look(baseline).label}, paired by seed; {seeds}."
        found.append(
            Figure(
                "paired_differences",
                "column",
                0.45 + 0.14 * rows,
                lead,
                main,
                lambda: plots.paired_differences(main, baseline),
            )
        )
    else:
        left_out.append(f"paired_differences: needs finished runs of {baseline} and of another cell at {window}")
    if len(wide):
        height = 0.6 + 0.14 * wide["group"].nunique()
        lead = "Mean test accuracy of every window, by stride convention; 8/4 belongs to both."
        found.append(Figure("accuracy_heatmap", "column", height, lead, wide, lambda: plots.heatmap(wide)))
        if baseline in set(wide["cell"]) and wide["cell"].nunique() > 1:
            lead = f"Mean differences of test accuracy from {style.look(baseline).label}, paired by seed, for every window."
            found.append(Figure("difference_heatmap", "column", height, lead, wide, lambda: plots.heatmap(wide, baseline=baseline)))
    if wide["input_length"].nunique() > 1:
        lead = "Test accuracy against input length, one line a stride convention; bars: 95 % intervals over seeds."
        height = max(1.7, 0.65 + 0.7 * -(-wide["group"].nunique() // 5))
        found.append(Figure("input_length", "text", height, lead, wide, lambda: plots.accuracy_vs_input_length(wide)))
    else:
        left_out.append("input_length, accuracy_heatmap: need runs of several windows")
    lacking = [name for name in cells.DESIGN if name not in set(main["cell"])]
    if lacking:
        left_out.append(f"effects: needs the six cells of the design; without a finished run at {window}: {', '.join(lacking)}")
    else:
        design = main[main["cell"].isin(cells.DESIGN)]
        lead = f"How W is made and short-term plasticity (STP); {seeds}."
        found.append(Figure("effects", "column", 1.9, lead, design, lambda: plots.effects(design)))
    gates = history[(history["variable"] == "z") & (history["statistic"] == "saturated")]
    if len(gates):
        lead = "Gates above 95 % of their maximum, on 64 validation images, over training; band: 95 % interval over seeds."
        gated = main[main["key"].isin(gates["key"])]
        found.append(Figure("gate_saturation", "column", 1.7, lead, gated, lambda: plots.statistic_over_training(gates, "z", "saturated")))
    if len(rates):
        lead = "Learning-rate scan on the validation set; a ring marks the best rate of each cell."
        found.append(Figure("learning_rate_scan", "text", 1.8, lead, rates, lambda: plots.learning_rate_scan(rates)))
    else:
        left_out.append("learning_rate_scan: needs a seed that a cell ran at several learning rates")
    return found, left_out


def summary_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a cell: test accuracy in percent with interval, n, trainable parameters, time of a training step."""
    runs = plots.grouped(runs)
    table = plots.summary(runs)
    other = runs.groupby("group")[["parameters", "ms_per_step"]].median().reindex(table["group"]).reset_index(drop=True)
    named = {"group": "Cell", "mean": "Accuracy (%)", "low": "Accuracy (%) low", "high": "Accuracy (%) high"}
    table = table.rename(columns=named)[[*named.values(), "n"]].reset_index(drop=True)
    return table.assign(**{"Parameters": other["parameters"], "ms/step": other["ms_per_step"]})


def tables(frames: Frames, baseline: str = "cb") -> list[Table]:
    """Every table that the runs allow."""
    every = comparison(frames.runs)
    window = main_window(every)
    main = every[every["window"] == window]
    lead = "Test accuracy (mean and 95 % interval), trainable parameters and median time of a training step."
    found = [Table("summary", summary_table(main), lead, main, ("Accuracy (%)",))]
    if every["window"].nunique() > 1:
        part = plots.summary(every, by=("group", "window"))
        windows = tuple(every.sort_values(["input_length", "stride"])["window"].unique())
        wide = {"Cell": every["group"].unique()}
        for shape in windows:
            of = part[part["window"] == shape].set_index("group").reindex(wide["Cell"])
            wide |= {shape: of["mean"].to_numpy(), f"{shape} low": of["low"].to_numpy(), f"{shape} high": of["high"].to_numpy()}
        lead = "Test accuracy (%) of every window, mean and 95 % interval; bold: the best of each window."
        found.append(Table("windows", pd.DataFrame(wide), lead, every, windows, True))
    planned = contrasts(main)
    if len(planned):
        lead = "Planned contrasts of test accuracy (percentage points), paired by seed; p corrected by Holm over these contrasts."
        found.append(Table("contrasts", planned, lead, main))
    others = controls(frames.runs, window)
    if len(others):
        shown = pd.concat([main[main["cell"].isin(others["cell"])].drop(columns="group"), others])
        lead = "Controls beside their cells: test accuracy (mean and 95 % interval) and trainable parameters."
        found.append(Table("controls", summary_table(shown).drop(columns="ms/step"), lead, shown))
    return found


def contrasts(main: pd.DataFrame) -> pd.DataFrame:
    """The planned contrasts that were run: difference in percentage points with interval, n, Holm-corrected p."""
    found = analysis.contrasts(main)
    found = found[found["n"] > 0].reset_index(drop=True)
    pairs = [f"{style.look(a).label} − {style.look(b).label}" for a, b in zip(found["cell"], found["reference"], strict=True)]
    shown = {"Pair": pd.Series(pairs, dtype=object), "Difference": found["mean"] * 100}
    shown |= {"Difference low": found["low"] * 100, "Difference high": found["high"] * 100, "n": found["n"], "p (Holm)": found["p_holm"]}
    return pd.DataFrame(shown)


def numbers(frames: Frames) -> dict:
    """Every number that a text may quote, by the name of its command: ``CbAccuracy``, ``CbInterval``, ``GateDifference``, ..."""
    every = comparison(frames.runs)
    window = main_window(every)
    found = {
        "Runs": str(len(every)),
        "Window": window,
        "HiddenSize": f"{every['hidden_size'].iat[0]}",
        "Epochs": f"{every['epochs'].iat[0]}",
    }
    for shape, part in every.groupby("window", sort=False):
        for row, cell in zip(export.formatted(summary_table(part)).to_dict("records"), part["cell"].unique(), strict=True):
            mean, _, interval = row["Accuracy (%) [95 %]"].partition(" ")
            name, place = export.command_name(cell), "" if shape == window else export.command_name(f"at {shape}")
            found |= {f"{name}Accuracy{place}": mean, f"{name}Seeds{place}": row["n"]}
            found |= {f"{name}Interval{place}": interval} if interval else {}
            found |= {f"{name}Parameters": row["Parameters"]} if not place else {}
    planned = analysis.contrasts(every[every["window"] == window]).query("n > 0")["contrast"]
    for name, row in zip(planned, export.formatted(contrasts(every[every["window"] == window])).to_dict("records"), strict=True):
        mean, _, interval = row["Difference [95 %]"].partition(" ")
        name = export.command_name(name)
        found |= {f"{name}Difference": mean, f"{name}P": row["p (Holm)"]} | ({f"{name}DifferenceInterval": interval} if interval else {})
    return found


# ---- files


def write(frames: Frames, out, *, journal="report", formats=("pdf", "png"), baseline="cb") -> list[str]:
    """Write ``figures/``, ``tables/`` (LaTeX and Markdown), ``numbers.tex`` and ``MANIFEST.json`` under ``out``.

    Files of an earlier export that this one does not write are removed.

    Returns
    -------
    list of str
        What was left out and why, one sentence each.
    """
    out, found = Path(out), {}
    plan, left_out = figures(frames, baseline)
    if "pgf" in formats and not export.has_tex():
        left_out.append("PGF figures: pdflatex is not installed; the PDFs are complete without them")
        formats = [kind for kind in formats if kind != "pgf"]
    for old in _read(out / "MANIFEST.json").get("files", {}):
        (out / old).unlink(missing_ok=True)
    for item in plan:
        with style.context(journal, item.width, item.height):
            drawn = item.draw()
            figure = getattr(drawn, "figure", drawn)
            try:
                for path in export.export_figure(figure, item.name, item.width, journal, folder=out / "figures", formats=formats):
                    found[path] = item.runs
            finally:
                plt.close(figure)
    for item in tables(frames, baseline):
        caption = plots.caption(item.runs, item.lead)
        label = f"tab:{item.name}"
        found[export.export_table(item.frame, item.name, caption, label, best=item.best, wide=item.wide, folder=out / "tables")] = item.runs
        found[out / "tables" / f"{item.name}.md"] = item.runs
        (out / "tables" / f"{item.name}.md").write_text(_markdown(item.frame, caption), "utf-8")
    found[export.export_numbers(numbers(frames), folder=out)] = comparison(frames.runs)
    _manifest(out, found, frames.environments)
    return left_out


def _markdown(frame, caption):
    shown = export.formatted(frame).map(lambda text: text.replace("|", r"\|"))
    rows = [list(shown.columns), ["---"] * shown.shape[1], *shown.to_numpy().tolist()]
    return "\n".join([f"| {' | '.join(row)} |" for row in rows] + ["", caption, ""])


def _read(path):
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _manifest(out, found, environments):
    """File -> digest, run keys, what their configurations share or range over, versions and commits that made them."""
    columns = (
        "dataset permuted last_rows data_seed window scan cell hidden_size initialisation options epochs batch_size learning_rate seed"
    )
    files = {}
    for path, runs in sorted(found.items()):
        made = [environments[key] for key in runs["key"] if key in environments]
        made = [{**item, "torch": item.get("fingerprint", {}).get("torch")} for item in made]
        files[path.relative_to(out).as_posix()] = {
            "sha256": sha256(path.read_bytes()).hexdigest(),
            "configuration": {name: sorted(runs[name].dropna().unique().tolist()) for name in columns.split()},
            **{name: sorted({str(item.get(name)) for item in made}) for name in ("commit", "python", "torch", "numpy", "backend")},
            "runs": sorted(runs["key"]),
        }
    drawn = {name: version(name) for name in ("matplotlib", "pandas", "seaborn", "scipy")}
    (out / "MANIFEST.json").write_text(json.dumps({"drawn_with": drawn, "files": files}, indent=1, sort_keys=True) + "\n", "utf-8")


def overleaf(frames: Frames, out=None, *, journal="report", baseline="cb") -> tuple[Path, list[str]]:
    """Build ``overleaf/`` under ``out`` (default: results) and ``overleaf.zip``, the file to upload.

    Returns
    -------
    zip : Path
    left_out : list of str
        As `write`.
    """
    out = Path(out or paths.results_dir())
    folder = out / "overleaf"
    left_out = write(frames, folder, journal=journal, formats=("pdf", "pgf"), baseline=baseline)
    (folder / "main.tex").write_text(main_tex(frames, journal, baseline), "utf-8")
    (folder / "README.md").write_text(README, "utf-8")
    with zipfile.ZipFile(out / "overleaf.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), (1980, 1, 1, 0, 0, 0))  # no time stamp: same files, same bytes
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, path.read_bytes())
    return out / "overleaf.zip", left_out


def main_tex(frames: Frames, journal: str = "report", baseline: str = "cb") -> str:
    """A report of two columns that shows all figures and tables."""
    page, every = style.journal_page(journal), comparison(frames.runs)
    best = max(summary_table(every[every["window"] == main_window(every)]).to_dict("records"), key=lambda row: row["Accuracy (%)"])
    cell = every.loc[every["group"] == best["Cell"], "cell"].iat[0]
    blocks = {"text": [], "column": []}
    for item in figures(frames, baseline)[0]:
        caption = export.tex(plots.caption(item.runs, item.lead))
        body = f"\\centering\n\\figurefile{{{item.name}}}\n\\caption{{{caption}}}\n\\label{{fig:{item.name}}}"
        blocks[item.width].append(f"\\begin{{figure}}\n{body}\n\\end{{figure}}")
    for item in tables(frames, baseline):
        blocks["text" if item.wide else "column"].append(f"\\input{{tables/{item.name}}}")
    columns = 2 if page.text > 2 * page.column else 1
    words = {"TEXTWIDTH": f"{page.text:.4f}in", "COLUMNSEP": f"{max(page.text - 2 * page.column, 0):.4f}in"}
    words |= {"FIRST": blocks["text"][0], "WIDE": "\n\n".join(blocks["text"][1:]), "NARROW": "\n\n".join(blocks["column"])}
    words |= {"BEGIN": f"\\begin{{multicols}}{{{columns}}}" * (columns > 1), "END": "\\end{multicols}" * (columns > 1)}
    words |= {"BEST": export.command_name(cell), "LABEL": export.tex(best["Cell"])}
    known = pd.notna(best["Accuracy (%) low"])
    words["INTERVAL"] = f" (95\\,\\% interval \\{words['BEST']}Interval)" if known else " (one seed, no interval)"
    text = MAIN
    for name, value in words.items():
        text = text.replace(f"@{name}@", value)
    return text


MAIN = r"""% Upload overleaf.zip to Overleaf (New Project, Upload Project) and compile with pdfLaTeX; main.tex is the main document.
\documentclass[10pt]{article}
\usepackage[a4paper,textwidth=@TEXTWIDTH@,textheight=27.9cm,top=0.9cm,footskip=0.6cm]{geometry}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{lmodern}
\usepackage{microtype}
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage{multicol}
\usepackage[font=scriptsize,labelfont=bf,skip=2pt]{caption}
\usepackage{pgf}
\def\mathdefault#1{#1}
\graphicspath{{figures/}}

% Figures are PDF files. With \figurespgftrue they are set by LaTeX in the font of this document (slower).
\newif\iffigurespgf
\figurespgffalse
\newcommand{\figurefile}[1]{\iffigurespgf\IfFileExists{figures/#1.pgf}{\input{figures/#1.pgf}}{\includegraphics{#1.pdf}}\else
  \includegraphics{#1.pdf}\fi}

% This overview puts figures and tables where they stand, in as little room as it can; in a paper leave them floating: delete this block.
\makeatletter
\newcommand{\here}[1]{\par\noindent\begin{minipage}{\linewidth}\def\@captype{#1}}
\newcommand{\ereh}{\end{minipage}\par\vspace{5pt plus 3pt minus 2pt}}
\renewenvironment{figure}[1][]{\here{figure}}{\ereh}
\renewenvironment{table}[1][]{\here{table}}{\ereh}
\renewenvironment{table*}[1][]{\here{table}}{\ereh}
\makeatother
\newsavebox{\fitbox}\let\plaintabular\tabular\let\endplaintabular\endtabular
\renewenvironment{tabular}[1]{\begin{lrbox}{\fitbox}\plaintabular{#1}}{\endplaintabular\end{lrbox}%
  \ifdim\wd\fitbox>\linewidth\resizebox{\linewidth}{!}{\usebox\fitbox}\else\usebox\fitbox\fi}
\setlength{\columnsep}{@COLUMNSEP@}\setlength{\multicolsep}{2pt}\setlength{\parindent}{0pt}
\raggedbottom\raggedcolumns

\input{numbers}

\begin{document}
\textbf{\large Comparison of recurrent cells on sequential images}\par\smallskip
\Runs{} runs with \HiddenSize{} hidden units and \Epochs{} epochs. At window \Window{} the highest mean test accuracy is that of
@LABEL@: \@BEST@Accuracy\,\%@INTERVAL@, n = \@BEST@Seeds{}; Figure~\ref{fig:learning_curves} shows its training and
Table~\ref{tab:summary} all cells. Differences between cells are to be read with their intervals.\par\medskip

@FIRST@

@BEGIN@
@NARROW@
@END@

@WIDE@
\end{document}
"""

README = """# Overleaf project

Upload `overleaf.zip` to Overleaf (New Project, Upload Project) and compile `main.tex` with pdfLaTeX. Elsewhere: `pdflatex main.tex`, twice.

* `figures/`: every figure as PDF, and as PGF where the machine that wrote them had TeX. In a document of your own:
  `\\usepackage{graphicx}` and `\\includegraphics{figures/NAME.pdf}`; or `\\usepackage{pgf}`, `\\def\\mathdefault#1{#1}`,
  `\\graphicspath{{figures/}}` and `\\input{figures/NAME.pgf}`, which takes the font of the document.
* `tables/`: booktabs tables, `\\usepackage{booktabs}` and `\\input{tables/NAME}`; the Markdown twins are for reading without LaTeX.
* `numbers.tex`: every quoted number as a command, `\\input{numbers}`.
* `MANIFEST.json`: for each file its sha256, the keys and configuration of the runs behind it, their commit and package versions.

Written by the workbook (`make overleaf`); changes made here are overwritten by the next export.
"""
