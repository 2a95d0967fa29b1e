"""Figures, tables and quoted numbers as files that LaTeX takes.

The same input gives the same bytes (nothing holds a time stamp), so that git shows a change only
where a result changed. A file is replaced in one step: where it cannot be written, the old one
stays.
"""

import logging
import re
import shutil
from functools import cache, partial
from pathlib import Path

import jinja2
import matplotlib as mpl
import pandas as pd
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter
from pylatexenc.latexencode import UnicodeToLatexEncoder

from lib import files, paths
from lib.figures import style

TEMPLATES = Path(__file__).parent / "templates"
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# Each with the metadata that would change the bytes.
FORMATS = {"pdf": {"CreationDate": None}, "pgf": {}, "png": {"Software": None}}
ESCAPED = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "−": "$-$",
        "–": "--",
        "&": r"\&",
        "%": r"\%",
        "#": r"\#",
        "_": r"\_",
        "$": r"\textdollar{}",
        "<": "$<$",
        ">": "$>$",
        "|": r"\textbar{}",
        '"': "''",
    }
)
BEYOND_ASCII = UnicodeToLatexEncoder(
    non_ascii_only=True, unknown_char_policy="unihex", unknown_char_warning=False
)
MATHEMATICS = re.compile(r"(\$[^$]+\$)")
INDEXED = re.compile(r"(?<![^\s(])[A-Za-z]_[A-Za-z]+")  # P_z, z_max
DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
# Names of numbers start with a capital, which few commands of LaTeX do; \newcommand itself stops at
# any that a document has defined.
COMMAND = re.compile(r"[A-Z][A-Za-z]{2,}")
DECIMALS = {"n": 0, "Parameters": 0}  # of a column by its name; 1 for others


# ---- text


def tex(text) -> str:
    """Text as LaTeX shows it: specials and signs beyond ASCII as commands; what stands between a
    pair of dollars stays mathematics, and a letter with an index becomes it.
    """
    parts = MATHEMATICS.split(str(text))
    parts[::2] = [INDEXED.sub(lambda found: symbol(found[0]), part) for part in parts[::2]]
    parts = MATHEMATICS.split("".join(parts))
    for number in range(0, len(parts), 2):
        parts[number] = BEYOND_ASCII.unicode_to_latex(parts[number].translate(ESCAPED))
    shown = "".join(parts)
    # The end of a row would take a bracket for its option.
    return "{[}" + shown[1:] if shown.startswith("[") else shown


def symbol(name) -> str:
    """A letter, perhaps with an index ("P_z", "z_max"), as mathematics; an index of several letters
    stands upright.
    """
    upright = re.sub("_(..+)", r"_{\\mathrm{\1}}", name).replace("σ", r"\sigma")
    return f"${upright}$"


@cache
def _templates(marks):
    """Jinja2 with marks around blocks, variables and comments; its own where there are none."""
    made = jinja2.Environment(
        *marks,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["tex"] = tex
    return made


def render(template, **values) -> str:
    """A Jinja2 template of `TEMPLATES`, or one at a path, with its values put in; where it makes
    LaTeX (``.tex.j2``), its marks are ``<< >>`` and ``<% %>``. ValueError: it names what there is
    not, or cannot be read as one.
    """
    path = TEMPLATES / template
    # Braces are LaTeX's own.
    marks = ("<%", "%>", "<<", ">>", "<#", "#>") if path.name.endswith(".tex.j2") else ()
    try:
        return _templates(marks).from_string(path.read_text("utf-8")).render(values)
    except jinja2.TemplateError as error:
        raise ValueError(
            f"The template {path} cannot be filled in: {error}; "
            "take out what these runs do not have, or add the runs."
        ) from error


def write(path, data: str | bytes):
    """Replace a file in one step, its folder made where there is none; StoreError where it cannot
    be written, and the old file stays.
    """
    path = Path(path)
    files.made(path.parent)
    files.write(path, data.encode() if isinstance(data, str) else data, sync=False)
    return path


def number(value, decimals=1) -> str:
    """A number as a text shows it; a dash where there is none."""
    return "–" if pd.isna(value) else f"{value:,.{decimals}f}".replace("-", "−")


def bracket(low, high, decimals=1) -> str:
    """An interval as a text shows it; nothing where there is none."""
    if pd.isna(low):
        return ""
    return f"[{low:.{decimals}f}, {high:.{decimals}f}]".replace("-", "−")


# ---- figures


def has_tex() -> bool:
    """Whether PGF can be written: matplotlib asks pdflatex how large a text is."""
    return shutil.which("pdflatex") is not None


def export_figure(
    fig, name, width="column", journal="article", *, folder=None, formats=("pdf", "pgf")
) -> list[Path]:
    """Write a figure at the width ("column", "text" or inches), text size and font of a document,
    best drawn inside `style.context` of the same journal and width; its height stays. Heat maps
    alone are rasterised, at 300 dpi.

    ``name`` is that of the files, without ending; ``folder`` is ``results/figures`` where none is
    given. PGF needs pdflatex; without it one line says so and the rest is written.

    Raises
    ------
    ValueError
        Bad name, width, journal or format.
    StoreError
        The folder cannot be written; the figures before stay.
    """
    folder = _folder(name, folder, "figures")
    style.width_of(journal, width)
    if unknown := set(formats) - set(FORMATS):
        raise ValueError(f"Unknown format {sorted(unknown)[0]!r}; known are pdf, pgf, png.")
    if "pgf" in formats and not has_tex():
        print("PGF is left out, since pdflatex is not installed; the PDF is complete without it.")
        formats = [kind for kind in formats if kind != "pgf"]
    with files.staged(folder) as new:
        _save(fig, new / name, width, journal, formats)
        written = [folder / path.name for path in sorted(new.iterdir())]
    earlier = {folder / f"{name}.{kind}" for kind in FORMATS}.union(folder.glob(f"{name}-img*.png"))
    with files.explained(folder):
        for path in earlier.difference(written):
            path.unlink(missing_ok=True)
    return written


def _save(fig, stem, width, journal, formats):
    """Save the figure in each format; its own size of text and fonts come back."""
    page = style.journal_page(journal)
    texts = [
        (item, item.get_text(), item.get_fontfamily(), item.get_fontsize())
        for item in fig.findobj(Text)
    ]
    # Names of ticks are made anew at every drawing; shared axes share what makes them.
    formatters = {axis.get_major_formatter() for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)}
    named = [(item, item.func) for item in formatters if isinstance(item, FuncFormatter)]
    fig.set_size_inches(style.width_of(journal, width), fig.get_figheight())
    quiet = logging.getLogger("fontTools")
    level = quiet.level
    try:
        quiet.setLevel(logging.ERROR)  # it finds the bundled fonts' dates odd
        with mpl.rc_context(style.rc(journal, width)):
            for kind in formats:
                pgf = kind == "pgf"
                for item, text, _, size in texts:
                    family = "serif" if pgf else list(page.family)
                    item.set(text=tex(text) if pgf else text, fontfamily=family)
                    item.set_fontsize(min(max(size, page.size - 3), page.size - 2))
                for item, name_of in named:
                    item.func = (lambda *tick, of=name_of: tex(of(*tick))) if pgf else name_of
                options = {"backend": "pgf"} if pgf else {"metadata": FORMATS[kind]}
                fig.savefig(f"{stem}.{kind}", dpi=200 if kind == "png" else 300, **options)
    finally:
        quiet.setLevel(level)
        for item, text, family, size in texts:
            item.set(text=text, fontfamily=family, fontsize=size)
        for item, name_of in named:
            item.func = name_of


# ---- tables and numbers


def export_table(frame, name, caption, label, *, best=(), wide=False, folder=None) -> Path:
    """Write a frame as a booktabs table, without its index: columns ``x``, ``x low`` and ``x high``
    become one, "x [95 %]", of mean and interval; numbers keep the decimals of `DECIMALS`. The
    largest value of each column in ``best`` is bold; ``wide`` spans both columns of a page.

    Raises
    ------
    ValueError
        Bad name or label, an unknown column in ``best``, or a frame without rows.
    StoreError
        The folder cannot be written; the table before stays.
    """
    path = _folder(name, folder, "tables") / f"{name}.tex"
    if not len(frame):
        raise ValueError(f"Table {name!r} would have no row; run what it compares first.")
    if not re.fullmatch(r"[A-Za-z0-9:_-]+", label):
        raise ValueError(
            f"label is {label!r}, but may hold only letters, digits, colon, hyphen and underscore."
        )
    if unknown := set(best) - set(frame.columns):
        raise ValueError(
            f"Unknown column {sorted(unknown)[0]!r} in best; "
            f"columns are {', '.join(map(str, frame.columns))}."
        )
    shown = formatted(frame).map(tex)
    letters = [max(len(str(column)), *map(len, shown[column])) for column in shown]
    first = "l"
    if letters[0] > 24:  # a long name takes several lines
        first = "p{4cm}" if wide else "p{3.2cm}"
    fits = min(letters[0], 24) + sum(letters[1:]) <= (85 if wide else 48)
    shown = shown.mask(is_best(frame, shown, best), r"\textbf{" + shown + "}")
    text = (
        shown.rename(columns=tex)
        .style.hide(axis="index")
        .to_latex(
            caption=tex(caption),
            label=label,
            position="t",
            environment="table*" if wide else "table",
            column_format=first + "r" * (len(letters) - 1),
            position_float="centering",
            hrules=True,
        )
    )
    size = "footnotesize" if fits else "scriptsize"
    smaller = f"\\centering\n\\{size}\n\\setlength{{\\tabcolsep}}{{3pt}}\n"
    return write(path, text.replace("\\centering\n", smaller, 1))


def markdown(frame, caption, best=()) -> str:
    """The same table in Markdown."""
    shown = formatted(frame).map(lambda text: text.replace("|", r"\|"))
    shown = shown.mask(is_best(frame, shown, best), "**" + shown + "**")
    rows = [list(shown.columns), ["---"] * shown.shape[1], *shown.to_numpy().tolist()]
    return "\n".join([f"| {' | '.join(row)} |" for row in rows] + ["", caption, ""])


def is_best(frame: pd.DataFrame, shown: pd.DataFrame, best) -> pd.DataFrame:
    """Which cells of ``shown``, made by `formatted` of a frame, hold the largest value of a column
    in ``best``.
    """
    columns = frame[list(best)]
    largest = (columns == columns.max()).rename(columns=partial(_title, frame))
    return largest.reindex(columns=shown.columns, fill_value=False)


def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """A table's numbers as text: mean and interval in one column, a dash where nothing was run."""
    shown = {}
    for column, (values, intervals) in as_text(frame).items():
        joined = values if intervals is None else (values + " " + intervals).str.rstrip()
        shown[_title(frame, column)] = joined
    return pd.DataFrame(shown)


def as_text(frame: pd.DataFrame) -> dict:
    """Column of a table -> its values as text, and their intervals where it has ``low`` and
    ``high``, else None.
    """
    ends = {f"{column} {end}" for column in frame for end in ("low", "high")}
    found = {}
    for column in (column for column in frame if column not in ends):
        values = frame[column]
        decimals = DECIMALS.get(column, 1)
        if pd.api.types.is_numeric_dtype(values):
            values = values.map(partial(number, decimals=decimals))
        intervals = None
        if f"{column} low" in frame:
            pairs = zip(frame[f"{column} low"], frame[f"{column} high"], strict=True)
            intervals = [bracket(low, high, decimals) for low, high in pairs]
            intervals = pd.Series(intervals, frame.index)
        found[column] = values.astype(str), intervals
    return found


def _title(frame, column):
    return f"{column} [95 %]" if f"{column} low" in frame else column


def export_numbers(mapping, *, folder=None) -> Path:
    """Write ``numbers.tex``: one ``\\newcommand`` for every number that a text quotes, so that text
    and results cannot part, from a mapping of names to texts or numbers. ValueError: a name does
    not start with a capital or holds more than letters, as TeX demands.
    """
    for name in mapping:
        if not COMMAND.fullmatch(name):
            raise ValueError(
                f"The number's name {name!r} must start with a capital and hold at least three "
                "letters and nothing else; rename it, for example to 'GruAccuracy'."
            )
    folder = Path(folder or paths.results_dir() / "tables")
    return write(folder / "numbers.tex", render("numbers.tex.j2", numbers=mapping))


def command_name(text: str) -> str:
    """A command name made of any text: words joined with capitals, digits spelled ("stp_dale 8/4"
    -> "StpDaleEightFour").
    """
    spelled = re.sub(r"\d", lambda digit: f" {DIGITS[int(digit[0])]} ", text)
    return "".join(word[0].upper() + word[1:] for word in re.findall(r"[A-Za-z]+", spelled))


def _folder(name, folder, default):
    if not isinstance(name, str) or not FILE_NAME.fullmatch(name):
        raise ValueError(
            f"The name {name!r} is no plain file name; "
            "use letters, digits, hyphens and underscores, without an ending."
        )
    return Path(folder or paths.results_dir() / default)
