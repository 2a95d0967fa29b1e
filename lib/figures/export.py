"""Figures, tables and quoted numbers as files that LaTeX takes.

The same input gives the same bytes (nothing holds a time stamp), so that git shows a change only
where a result changed.
"""

import logging
import re
import shutil
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter
from pylatexenc.latexencode import UnicodeToLatexEncoder

from lib import paths
from lib.figures import style

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
}
SPECIAL |= {sign: f"\\{sign}" for sign in "&%#_"} | {
    "$": r"\textdollar{}",
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",
    '"': "''",
}
ESCAPED = str.maketrans(SPECIAL)
BEYOND_ASCII = UnicodeToLatexEncoder(
    non_ascii_only=True, unknown_char_policy="unihex", unknown_char_warning=False
)
DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
# Names of numbers start with a capital, which few commands of LaTeX do; \newcommand itself stops at
# any that a document has defined.
COMMAND = re.compile(r"[A-Z][A-Za-z]{2,}")
TAKEN = set(
    "Alph Arrowvert Big Bigg Biggl Biggr Bigl Bigr Delta Downarrow Gamma Huge LARGE LaTeX LaTeXe Lambda Large Leftarrow".split()
)
TAKEN |= set(
    "Leftrightarrow Longleftarrow Longleftrightarrow Longrightarrow Omega Phi Psi Rightarrow Roman Sigma TeX Theta".split()
)
TAKEN |= set("Uparrow Updownarrow Upsilon Vert".split())


# ---- single files


def tex(text) -> str:
    """Text as LaTeX shows it: specials and signs beyond ASCII as commands; what stands between a
    pair of dollars stays mathematics.
    """
    parts = re.split(r"(\$[^$]+\$)", str(text))
    shown = "".join(
        part if number % 2 else BEYOND_ASCII.unicode_to_latex(part.translate(ESCAPED))
        for number, part in enumerate(parts)
    )
    return (
        "{[}" + shown[1:] if shown.startswith("[") else shown
    )  # a row's end would take it for its option


def has_tex() -> bool:
    """Whether PGF can be written: matplotlib asks pdflatex how large a text is."""
    return shutil.which("pdflatex") is not None


def export_figure(
    fig, name, width="column", journal="article", *, folder=None, formats=("pdf", "pgf")
) -> list[Path]:
    """Write a figure at the width, text size and font of a document; its height stays. Heat maps
    alone are rasterised, at 300 dpi.

    Parameters
    ----------
    fig : matplotlib Figure, best drawn inside `style.context` of the same journal and width
    name : str
        File name without ending: letters, digits, hyphens, underscores.
    width : "column", "text" or inches
    journal : a key of `style.JOURNALS`
    folder : path, optional
        Default ``results/figures``.
    formats : of "pdf", "pgf", "png"
        PGF needs pdflatex; without it one line says so and the rest is written.

    Returns
    -------
    list of Path
        What was written, the PNG pieces of a PGF's heat maps included.

    Raises
    ------
    ValueError
        Bad name, width, journal or format.
    """
    folder, page = _target(name, folder, "figures"), style.journal_page(journal)
    if unknown := set(formats) - {"pdf", "pgf", "png"}:
        raise ValueError(f"Unknown format {sorted(unknown)[0]!r}; known are pdf, pgf, png.")
    if "pgf" in formats and not has_tex():
        print("PGF is left out, since pdflatex is not installed; the PDF is complete without it.")
        formats = [kind for kind in formats if kind != "pgf"]
    texts = [
        (item, item.get_text(), item.get_fontfamily(), item.get_fontsize())
        for item in fig.findobj(Text)
    ]
    formatters = {
        id(axis.major): axis.get_major_formatter()
        for ax in fig.axes
        for axis in (ax.xaxis, ax.yaxis)
    }  # once where axes share
    named = [
        (item, item.func) for item in formatters.values() if isinstance(item, FuncFormatter)
    ]  # names as ticks, made anew at every drawing
    fig.set_size_inches(style.width_of(journal, width), fig.get_figheight())
    for path in (
        *folder.glob(f"{name}-img*.png"),
        *(folder / f"{name}.{kind}" for kind in FORMATS),
    ):
        path.unlink(missing_ok=True)
    quiet, level = logging.getLogger("fontTools"), logging.getLogger("fontTools").level
    try:
        quiet.setLevel(logging.ERROR)  # it finds the bundled fonts' dates odd
        with mpl.rc_context(style.rc(journal, width)):
            for kind in formats:
                for item, text, _, size in texts:
                    item.set(
                        text=tex(text) if kind == "pgf" else text,
                        fontfamily="serif" if kind == "pgf" else list(page.family),
                    )
                    item.set_fontsize(min(max(size, page.size - 3), page.size - 2))
                for item, name_of in named:
                    item.func = (
                        (lambda *tick, name_of=name_of: tex(name_of(*tick)))
                        if kind == "pgf"
                        else name_of
                    )
                options = {"backend": "pgf"} if kind == "pgf" else {"metadata": FORMATS[kind]}
                fig.savefig(folder / f"{name}.{kind}", dpi=200 if kind == "png" else 300, **options)
    finally:
        quiet.setLevel(level)
        for item, text, family, size in texts:
            item.set(text=text, fontfamily=family, fontsize=size)
        for item, name_of in named:
            item.func = name_of
    return sorted(
        [*(folder / f"{name}.{kind}" for kind in formats), *folder.glob(f"{name}-img*.png")]
    )


FORMATS = {
    "pdf": {"CreationDate": None},
    "pgf": {},
    "png": {"Software": None},
}  # and the metadata that would change the bytes


def export_table(frame, name, caption, label, *, best=(), wide=False, folder=None) -> Path:
    """Write a frame as a booktabs table, without its index.

    Columns ``x``, ``x low`` and ``x high`` become one column "x [95 %]" of mean and interval.
    Numbers keep the decimals of `DECIMALS`.

    Parameters
    ----------
    best : names of columns whose largest value is bold; ``-name`` for the smallest
    wide : bool
        Across both columns of a page.

    Raises
    ------
    ValueError
        Bad name or label, an unknown column in ``best``, or a frame without rows.
    """
    path = _target(name, folder, "tables") / f"{name}.tex"
    if not len(frame):
        raise ValueError(f"Table {name!r} would have no row; run what it compares first.")
    if not re.fullmatch(r"[A-Za-z0-9:_-]+", label):
        raise ValueError(
            f"label is {label!r}, but may hold only letters, digits, colon, hyphen and underscore."
        )
    if unknown := {column.lstrip("-") for column in best} - set(frame.columns):
        raise ValueError(
            f"Unknown column {sorted(unknown)[0]!r} in best; columns are {', '.join(map(str, frame.columns))}."
        )
    shown = formatted(frame).map(tex)
    bold = is_best(frame, shown, best).replace({True: "textbf:--rwrap;", False: ""})
    styler = (
        shown.rename(columns=tex)
        .style.apply(lambda _: bold.to_numpy(), axis=None)
        .hide(axis="index")
    )
    letters = [max(len(str(column)), *map(len, shown[column])) for column in shown]
    first = (
        "l" if letters[0] <= 24 else "p{4cm}" if wide else "p{3.2cm}"
    )  # a long name takes several lines
    size = (
        "footnotesize"
        if min(letters[0], 24) + sum(letters[1:]) <= (85 if wide else 48)
        else "scriptsize"
    )
    layout = {
        "column_format": first + "r" * (len(letters) - 1),
        "position_float": "centering",
        "hrules": True,
    }
    text = styler.to_latex(
        caption=tex(caption),
        label=label,
        position="t",
        environment="table*" if wide else "table",
        **layout,
    )
    path.write_text(
        text.replace(
            "\\centering\n", f"\\centering\n\\{size}\n\\setlength{{\\tabcolsep}}{{3pt}}\n", 1
        ),
        "utf-8",
    )
    return path


def is_best(frame: pd.DataFrame, shown: pd.DataFrame, best) -> pd.DataFrame:
    """Which cells of ``shown``, made by `formatted` of a frame, hold the best value of a column in
    ``best``, as `export_table`.
    """
    found = pd.DataFrame(False, shown.index, shown.columns)
    for column in best:
        values = frame[column.lstrip("-")] * (-1 if column.startswith("-") else 1)
        found.loc[
            values == values.max(), [c for c in shown if c.split(" [")[0] == column.lstrip("-")]
        ] = True
    return found


def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """A table's numbers as text: mean and interval in one column, decimals by `DECIMALS`, a dash
    where nothing was run.

    Columns whose name starts with "p (" hold p values, which are never shown as 0.
    """
    shown = {}
    for column in frame:
        is_p = str(column).startswith("p (")
        decimals = DECIMALS.get(column, 3 if is_p else 1)
        if pd.api.types.is_numeric_dtype(frame[column]) and not str(column).endswith(
            (" low", " high")
        ):
            shown[column] = frame[column].map(
                lambda v, d=decimals: "–" if pd.isna(v) else f"{v:,.{d}f}".replace("-", "−")
            )
            shown[column] = shown[column].replace("0.000", "<0.001") if is_p else shown[column]
        elif not pd.api.types.is_numeric_dtype(frame[column]):
            shown[column] = frame[column].astype(str)
        if f"{column} low" in frame:
            ends = zip(
                shown.pop(column), frame[f"{column} low"], frame[f"{column} high"], strict=True
            )
            interval = [
                m
                if pd.isna(low)
                else f"{m} [{low:.{decimals}f}, {high:.{decimals}f}]".replace("-", "−")
                for m, low, high in ends
            ]
            shown[f"{column} [95 %]"] = pd.Series(interval, frame.index)
    return pd.DataFrame(shown)


DECIMALS = {
    "n": 0,
    "H": 0,
    "Parameters": 0,
    "Last epoch": 2,
    "rate": 4,
}  # of a column by its name; 1 for others


def export_numbers(mapping, *, folder=None) -> Path:
    """Write ``numbers.tex``: one ``\\newcommand`` for every number that a text quotes, so that text
    and results cannot part.

    Parameters
    ----------
    mapping : name -> text or number
        Names start with a capital and hold letters only, as TeX demands.

    Raises
    ------
    ValueError
        A name is no command name, or belongs to LaTeX.
    """
    for name in mapping:
        if not COMMAND.fullmatch(name) or name in TAKEN:
            why = (
                "belongs to LaTeX"
                if name in TAKEN
                else "must start with a capital and hold at least three letters and nothing else"
            )
            raise ValueError(
                f"The number's name {name!r} {why}; rename it, for example to 'GruAccuracy'."
            )
    lines = [f"\\newcommand{{\\{name}}}{{{tex(value)}}}" for name, value in mapping.items()]
    path = Path(folder or paths.results_dir() / "tables") / "numbers.tex"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "\n".join(
            ["% Every number that the text quotes; written by lib.export, do not edit.", *lines, ""]
        ),
        "utf-8",
    )
    return path


def command_name(text: str) -> str:
    """A command name made of any text: words joined with capitals, digits spelled ("stp_dale 8/4"
    -> "StpDaleEightFour").
    """
    spelled = re.sub(r"\d", lambda digit: f" {DIGITS[int(digit[0])]} ", text)
    return "".join(word[0].upper() + word[1:] for word in re.findall(r"[A-Za-z]+", spelled))


def _target(name, folder, default):
    if not isinstance(name, str) or not FILE_NAME.fullmatch(name):
        raise ValueError(
            f"The name {name!r} is no plain file name; use letters, digits, hyphens and underscores, without an ending."
        )
    folder = Path(folder or paths.results_dir() / default)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
