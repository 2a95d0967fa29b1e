"""The figures: every function takes a tidy frame of `lib.runs.store` (or one image's recording) and
returns what it drew on.

Single panels are ``f(frame, ax=None) -> ax``, several panels ``f(frame, fig=None) -> fig``. They
neither train nor save; sizes and fonts come from `lib.figures.style.context`. Accuracies are
fractions in frames and percent in figures; error bars are the intervals of `lib.analysis`.
"""

import json
from collections import Counter
from math import ceil

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from scipy.optimize import isotonic_regression

from lib import analysis, cells, datasets, windows
from lib.config import CellSpec
from lib.figures import style

# column or variable -> what the axis says, and the factor from the stored unit to the shown one
METRICS = {
    "test_accuracy": ("Accuracy (% of test set)", 100),
    "validation_accuracy": ("Accuracy (% of validation set)", 100),
    "train_accuracy": ("Accuracy (% of training images)", 100),
    "test_loss": ("Cross-entropy (nats, test set)", 1),
    "validation_loss": ("Cross-entropy (nats, validation set)", 1),
    "train_loss": ("Cross-entropy (nats, training images)", 1),
    "gradient_norm": ("Gradient norm (a.u.)", 1),
    "ms_per_step": ("Time per training step (ms)", 1),
    "parameters": ("Trainable parameters (thousands)", 1e-3),
    "saturated": ("Saturated gates (%)", 100),
    "spectral_radius": ("Spectral radius of $W$ (a.u.)", 1),
    "ei_ratio": ("E/I ratio of $W$ (ratio)", 1),
    "outside": ("$v$ outside $[v_i, v_e]$ (%)", 100),
}
VARIABLES = {
    "x": "Input $x$ (standard deviations)",
    "z": "Conductance $z$ (per step)",
    "r": "Firing rate $r$ (of maximum)",
    "v": "Voltage $v$ (a.u.)",
    "h": "State $h$ (a.u.)",
    "X": "Resources $X$ (fraction)",
    "U": "Release $U$ (probability)",
    "UX": "Efficacy $U X$ (fraction)",
    "tau": "Time constant (pixels)",
    "K": "$K$ (a.u.)",
    "C": "$C$ (a.u.)",
    "W": "$W$ (a.u.)",
    "W_E": "$W$, excitatory (a.u.)",
    "W_I": "$W$, inhibitory (a.u.)",
    "b_z": "$b_z$ (a.u.)",
    "v_e": "$v_e$ (a.u.)",
    "v_i": "$v_i$ (a.u.)",
    "U_cap": r"$U_\mathrm{cap}$ (probability)",
    "tau_x": r"$\tau_X$ (steps)",
    "tau_u": r"$\tau_U$ (steps)",
}
QUANTILES = ["q05", "q25", "q50", "q75", "q95"]
BAND_FROM = 3  # seeds; the interval of two, 13 standard errors to either side, would fill the panel
SHORT = {"hidden_size": "H", "epochs": "epochs", "learning_rate": "rate"}


# ---- what a frame holds


def grouped(frame: pd.DataFrame) -> pd.DataFrame:
    """Finished runs (or their curves) in the fixed order, with a column ``group``: the cell's label
    and what tells its runs apart.

    What differs from the defaults is said ("CB, dt 0.3"; "DaleCB, notes"); so are hidden size,
    epochs and learning rate where they are not the cell's most frequent.

    Raises
    ------
    ValueError
        No finished run is left.
    """
    if "state" in frame:
        frame = frame[frame["state"] == "DONE"]
    if not len(frame):
        raise ValueError(
            "No finished run to show; train some first, for example with: python -m lib compare."
        )
    runs = frame.drop_duplicates("key")
    usual = {name: _usual(runs, name) for name in SHORT}
    orders, cuts = runs["permuted"].nunique(), runs["last_rows"].nunique(dropna=False)

    def name_of(run):
        parts = [
            run.label,
            *(f"{k.replace('_', ' ')} {v}" for k, v in json.loads(run.options).items()),
        ]
        parts += [run.initialisation] if run.initialisation != CellSpec().initialisation else []
        parts += ["permuted"] if run.permuted and orders > 1 else []
        parts += [f"last {run.last_rows:.0f} rows"] if pd.notna(run.last_rows) and cuts > 1 else []
        own = {name: getattr(run, name) for name in SHORT}
        parts += [
            f"{short} {own[name]:g}"
            for name, short in SHORT.items()
            if own[name] != usual[name].get((run.dataset, run.cell))
        ]
        return ", ".join(parts)

    names, ranks = (
        {run.key: name_of(run) for run in runs.itertuples()},
        {cell: style.rank(cell) for cell in runs["cell"].unique()},
    )
    place = {
        key: (*ranks[cell], len(names[key]), names[key])
        for key, cell in zip(runs["key"], runs["cell"], strict=True)
    }
    order = {key: number for number, key in enumerate(sorted(place, key=place.get))}
    return frame.assign(group=frame["key"].map(names)).sort_values(
        "key", key=lambda keys: keys.map(order), kind="stable"
    )


def _usual(runs, name):
    """The most frequent value of a column for each (dataset, cell); none where two are equally
    frequent.
    """
    counts = {}
    for (*of, value), count in Counter(
        zip(runs["dataset"], runs["cell"], runs[name], strict=True)
    ).items():
        counts.setdefault(tuple(of), []).append((count, value))
    tops = {of: sorted(found, reverse=True)[:2] for of, found in counts.items()}
    return {of: top[0][1] for of, top in tops.items() if len(top) == 1 or top[0][0] > top[1][0]}


def scanned(runs: pd.DataFrame) -> pd.Series:
    """Whether a run is of a learning-rate scan: a seed that one configuration ran at several
    rates.
    """
    columns = [
        "dataset",
        "permuted",
        "last_rows",
        "window",
        "cell",
        "hidden_size",
        "initialisation",
        "options",
        "epochs",
        "seed",
    ]
    return runs.groupby(columns, dropna=False)["learning_rate"].transform("nunique") > 1


def without_scan(frame: pd.DataFrame) -> pd.DataFrame:
    """Runs, or their curves, without those of a learning-rate scan: its seed chose the rate, so it
    must not count among those that compare.

    Where there is nothing else at all, they stay.
    """
    runs = frame.drop_duplicates("key")
    compared = runs.loc[~scanned(runs), "key"]
    return frame[frame["key"].isin(compared)] if len(compared) else frame


def one(frame: pd.DataFrame, column: str):
    """The single value of a column; ValueError where a figure would mix several."""
    values = list(frame[column].drop_duplicates())
    if len(values) > 1:
        raise ValueError(
            f"This figure shows one {column}, but the frame holds {', '.join(map(str, values))}; filter it first."
        )
    return values[0]


def summary(frame: pd.DataFrame, metric: str = "test_accuracy", by=("group",)) -> pd.DataFrame:
    """`analysis.summarise` of the groups that have a value, in the shown unit, with their
    ``cell``.
    """
    table = analysis.summarise(frame, list(by), metric).query("n > 0")
    if not len(table):
        raise ValueError(
            f"No finished run has a value of {metric}; train some first, for example with: python -m lib compare."
        )
    scaled = table[["mean", "low", "high"]] * METRICS[metric][1]
    cell = table["group"].map(frame.drop_duplicates("group").set_index("group")["cell"])
    return table.assign(cell=cell, mean=scaled["mean"], low=scaled["low"], high=scaled["high"])


def chance(frame: pd.DataFrame) -> float:
    """Accuracy of guessing, in percent."""
    return 100 / len(one(frame, "class_names"))


def caption(frame: pd.DataFrame, lead: str = "") -> str:
    """What a reader must know of the runs behind a figure: data set, window, hidden size, epochs,
    seeds and interval.
    """
    frame = frame if "group" in frame else grouped(frame)
    data = frame.drop_duplicates(["dataset", "permuted", "last_rows"]).apply(task_name, axis=1)
    shapes = sorted(
        frame["window"].unique(), key=lambda text: [int(part) for part in text.split("/")]
    )
    counts = frame.groupby(["group", "window"])["seed"].nunique()
    low, high = counts.min(), counts.max()
    interval = [
        f"95 % {kind} intervals"
        for kind, used in (("Student t", low < 10 and high > 1), ("bootstrap", high >= 10))
        if used
    ]
    parts = [
        f"Data: {' and '.join(data)}",
        f"window{'s' * (len(shapes) > 1)} {', '.join(shapes)} pixels (input length/stride)",
        f"H = {ranged(frame['hidden_size'])}",
        f"{ranged(frame['epochs'])} epoch{'s' * bool(frame['epochs'].max() > 1)}",
        f"n = {ranged(counts)} seed{'s' * bool(high > 1)}",
        " and ".join(interval) or "no interval",
    ]
    notes = frame["initialisation"].unique()
    parts += [f"initialisation {notes[0]}"] * (
        len(notes) == 1 and notes[0] != CellSpec().initialisation
    )
    return f"{lead} {'; '.join(parts)}.".strip()


def task_name(run) -> str:
    """What images a run reads, in words; the embedded digits are too easy to conclude from, and say
    so.
    """
    name = ("permuted " if run["permuted"] else "") + TITLES.get(run["dataset"], run["dataset"])
    name += ", demonstration" if datasets.is_demonstration(run["dataset"]) else ""
    return name + (f", last {run['last_rows']:.0f} rows" if pd.notna(run["last_rows"]) else "")


TITLES = {"digits": "digits", "mnist": "sequential MNIST", "cifar10": "sequential CIFAR-10"}


# ---- over training


def curve_panel(frame: pd.DataFrame, ax=None, metric: str = "validation_accuracy", highlight=None):
    """Curves of one setting against epochs: mean, interval as a band (from three seeds on), seeds
    as thin lines, names at the line ends.

    Parameters
    ----------
    frame : DataFrame
        `Store.curves`, or `Store.history` narrowed to one variable and statistic with ``value``
        renamed to the statistic.
    metric : str
        A column in `METRICS`.
    highlight : list of str, optional
        The groups in colour; the others stay light grey behind.
    """
    frame, ax = grouped(frame), ax or _axes()
    one(frame, "window")
    low, high = _draw_curves(ax, frame, metric, highlight)
    ax.set(xlabel="Training (epochs)", ylabel=METRICS[metric][0], ylim=(low, high))
    _label_ends([ax])
    return ax


def learning_curves(frame: pd.DataFrame, fig=None, metric: str = "validation_accuracy"):
    """The paper figure: baselines | without STP | with STP on one scale, each before the others in
    light grey.
    """
    frame = grouped(frame)
    one(frame, "window")
    looks = {
        group: style.look(cell)
        for group, cell in frame[["group", "cell"]].drop_duplicates().itertuples(index=False)
    }
    panels = {
        "baselines": [g for g, own in looks.items() if own.weights == "baseline"],
        "without STP": [g for g, own in looks.items() if own.weights != "baseline" and not own.stp],
        "with STP": [g for g, own in looks.items() if own.weights != "baseline" and own.stp],
    }
    panels = {title: groups for title, groups in panels.items() if groups}
    fig = fig or _figure()
    axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    limits = [
        _draw_curves(ax, frame, metric, groups)
        for ax, groups in zip(axes, panels.values(), strict=True)
    ]
    for ax, title in zip(axes, panels, strict=True):
        ax.set_title(title, loc="left")
        ax.set(
            xlabel="Training (epochs)",
            ylim=(min(low for low, _ in limits), max(high for _, high in limits)),
        )
    axes[0].set_ylabel(METRICS[metric][0])
    _label_ends(axes)
    return fig


def _draw_curves(ax, frame, metric, highlight):
    """Draw all groups of a frame; return limits of the axis."""
    factor, few = METRICS[metric][1], {}
    table = summary(frame, metric, ("group", "epoch"))
    for group, part in table.groupby("group", sort=False):
        own = style.look(part["cell"].iat[0])
        if highlight is not None and group not in highlight:
            ax.plot(part["epoch"], part["mean"], color=style.CONTEXT, lw=0.8, zorder=1)
            continue
        if part["n"].max() < BAND_FROM:
            few[group] = part["n"].max()
        if part["n"].max() > 1:
            for _, seed in frame[frame["group"] == group].groupby("seed"):
                ax.plot(
                    seed["epoch"],
                    seed[metric] * factor,
                    color=own.colour,
                    lw=0.4,
                    alpha=0.45,
                    zorder=2,
                )
        if part["n"].max() >= BAND_FROM:
            ax.fill_between(
                part["epoch"],
                part["low"],
                part["high"],
                color=own.colour,
                alpha=0.18,
                lw=0,
                zorder=2,
            )
        ax.plot(part["epoch"], part["mean"], color=own.colour, ls=own.line, zorder=3)
        end = {
            "marker": own.marker,
            "mfc": own.face,
            "color": own.colour,
            "label": group,
            "clip_on": False,
            "zorder": 4,
        }
        ax.plot(part["epoch"].iloc[-1:], part["mean"].iloc[-1:], **end)
    notes = []
    for n, words in ((1, "n = 1 seed"), (2, "n = 2 seeds, no band")):
        groups = [group for group, count in few.items() if count == n]
        everywhere = len(groups) == table["group"].nunique() or highlight == groups
        notes += [words if everywhere else f"n = {n}: {', '.join(groups)}"] * bool(groups)
    if notes:
        _note(ax, "; ".join(notes))
    ax.set_xlim(0, table["epoch"].max())
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    banded, seeds = table[table["n"] >= BAND_FROM], frame[metric] * factor
    bottom, top = (
        np.nanmin([seeds.min(), banded["low"].min()]),
        np.nanmax([seeds.max(), banded["high"].max()]),
    )
    bottom = max(
        bottom, 0
    )  # no metric is negative, though the interval of a skewed one may reach below
    if metric.endswith("accuracy") or METRICS[metric][1] == 100:
        top = min(top, 100)
    margin = 0.03 * (top - bottom) or 1
    return bottom - margin, top + margin


def spread(positions, gap: float, low: float, high: float) -> np.ndarray:
    """Move positions as little as possible (least squares) until they lie ``gap`` apart and inside
    ``[low, high]``.
    """
    positions = np.asarray(positions, float)
    order, steps = np.argsort(positions, kind="stable"), np.arange(len(positions)) * gap
    moved = isotonic_regression(positions[order] - steps).x
    result = np.empty_like(positions)
    result[order] = np.clip(moved, low, max(low, high - steps[-1])) + steps
    return result


def _label_ends(axes):
    """Names beside the last points of the lines that carry a label, moved apart, with leader
    lines.
    """
    size = FontProperties(size=mpl.rcParams["xtick.labelsize"]).get_size_in_points()
    axes[
        0
        # the layout decides how high a panel is, hence how far apart names must stand
    ].figure.draw_without_rendering()
    for ax in axes:
        lines = [line for line in ax.lines if not line.get_label().startswith("_")]
        (low, high), height = ax.get_ylim(), ax.get_window_extent().height / ax.figure.dpi * 72
        gap, places = (
            1.12 * size / height * (high - low),
            [ax.get_yaxis_transform(), ax.get_xaxis_transform()],
        )
        for line, place in zip(
            lines, spread([line.get_ydata()[-1] for line in lines], gap, low, high), strict=True
        ):
            leader = {
                "arrowstyle": "-",
                "lw": 0.5,
                "color": line.get_color(),
                "shrinkA": 1,
                "shrinkB": 2.5,
                "relpos": (0, 0.5),
            }
            name = {
                "xytext": (1.08, place),
                "textcoords": places[0],
                "va": "center",
                "size": size,
                "annotation_clip": False,
            }
            point = (line.get_xdata()[-1], line.get_ydata()[-1])
            ax.annotate(
                _plain(line.get_label()),
                point,
                color=_readable(line.get_color()),
                arrowprops=leader,
                **name,
            )


def statistic_over_training(frame: pd.DataFrame, variable: str, statistic: str, ax=None):
    """One number of `Store.history` over training, a line a cell: ("z", "saturated"), ("W",
    "spectral_radius"), ("v", "outside").
    """
    chosen = frame[(frame["variable"] == variable) & (frame["statistic"] == statistic)]
    return curve_panel(chosen.rename(columns={"value": statistic}), ax, statistic)


def parameters_over_training(frame: pd.DataFrame, fig=None, variables=None):
    """Quantiles (5, 25, 50, 75, 95 %) of parameters and variables of one cell over training, from
    `Store.history`; medians over seeds.
    """
    frame = grouped(frame)
    for column in ("group", "window"):
        one(frame, column)
    frame = frame[frame["statistic"].isin(QUANTILES)]
    variables = [name for name in variables or VARIABLES if name in set(frame["variable"])]
    if not variables:
        raise ValueError(
            "None of the variables asked for was recorded over training; the frame holds none of their quantiles."
        )
    fig, colour = fig or _figure(), style.look(frame["cell"].iat[0]).colour
    axes = fig.subplots(
        ceil(len(variables) / 4), min(4, len(variables)), sharex=True, squeeze=False
    )
    for ax, name in zip(axes.flat, variables, strict=False):
        table = frame[frame["variable"] == name].pivot_table(
            index="epoch", columns="statistic", values="value", aggfunc="median"
        )
        _fan(ax, table.index, table[QUANTILES].to_numpy().T, colour)
        ax.set_title(
            VARIABLES[name], loc="left"
        )  # stacked panels are too low for a label beside them
        ax.set_xlim(0, table.index.max())
    for ax in axes.flat[len(variables) :]:
        ax.remove()
    fig.supxlabel("Training (epochs)", size=mpl.rcParams["axes.labelsize"])
    return fig


# ---- summaries of finished runs


def bars(frame: pd.DataFrame, ax=None, metric: str = "test_accuracy"):
    """Bars from 0 with interval, seeds as dots, chance dashed; cells in the fixed order of their
    families.
    """
    frame, ax = grouped(frame), ax or _axes()
    one(frame, "window")
    table = summary(frame, metric)
    for y, row in zip(_rows(ax, table), table.itertuples(), strict=True):
        own = style.look(row.cell)
        ax.barh(
            y,
            row.mean,
            0.72,
            facecolor=mpl.colors.to_rgba(own.colour, 0.55 if own.stp else 1),
            edgecolor=own.colour,
            hatch=own.hatch,
            lw=0.8,
        )
        _interval_line(ax, y, row, style.INK)
        seeds = frame.loc[frame["group"] == row.group, metric] * METRICS[metric][1]
        ax.plot(
            seeds,
            np.full(len(seeds), y),
            "o",
            ms=2.8,
            mfc="white",
            mec=style.INK,
            mew=0.5,
            clip_on=False,
            zorder=5,
        )
    if metric.endswith("accuracy"):
        ax.axvline(chance(frame), color=style.INK, ls=(0, (4, 3)), lw=0.8)
        ax.annotate(
            "chance",
            (chance(frame), 1),
            xycoords=ax.get_xaxis_transform(),
            ha="center",
            va="bottom",
            size=mpl.rcParams["xtick.labelsize"],
        )
    ax.set_xlabel(METRICS[metric][0], loc="right")
    ax.set_xlim(0, None)
    return ax


def dot_and_interval(frame: pd.DataFrame, ax=None, metric: str = "test_accuracy"):
    """Mean and interval of each cell, best first; the axis does not start at 0."""
    frame, ax = grouped(frame), ax or _axes()
    one(frame, "window")
    table = summary(frame, metric).sort_values(
        "mean", ascending=metric.endswith(("loss", "step")), kind="stable"
    )
    _dots(ax, frame, table, metric)
    ax.set_xlabel(METRICS[metric][0], loc="right")
    return ax


def paired_differences(frame: pd.DataFrame, baseline="cb", ax=None, metric: str = "test_accuracy"):
    """`differences`: mean and interval of the differences of runs that share a seed."""
    frame, ax = grouped(frame), ax or _axes()
    one(frame, "window")
    frame = differences(frame, baseline, metric)
    _dots(ax, frame, summary(frame, metric), metric)
    ax.axvline(0, color=style.INK, lw=0.8, ls=(0, (4, 3)), zorder=0)
    ax.set_xlabel(_difference(frame, metric), loc="right")
    return ax


def differences(frame: pd.DataFrame, baseline, metric: str = "test_accuracy") -> pd.DataFrame:
    """The runs of the other groups with ``metric`` less that of the baseline's run of the same
    window and seed.

    ``baseline`` is a cell or group, or maps every group to its own.

    Raises
    ------
    ValueError
        The baseline has no run, or no seed is shared with it.
    """
    frame = frame if "group" in frame else grouped(frame)
    if isinstance(baseline, str):
        own = frame[(frame["group"] == baseline) | (frame["cell"] == baseline)]
        if not len(own):
            raise ValueError(
                f"The baseline {baseline!r} has no finished run here; choose one of {', '.join(frame['group'].unique())}."
            )
        name = own["group"].iat[0]  # of several groups of the cell the plainest, which comes first
        frame = frame.assign(baseline=name)
    else:
        name, frame = "the plain cell", frame.assign(baseline=frame["group"].map(baseline))
    pairs = (
        frame.drop(columns="baseline")
        .set_index(["group", "window", "seed"])[metric]
        .rename("reference")
    )
    other = frame[frame["group"] != frame["baseline"]].join(
        pairs, on=["baseline", "window", "seed"], how="inner"
    )
    if not len(other):
        raise ValueError(
            f"No run shares window and seed with the baseline {name}; pairs need the same seeds."
        )
    return other.assign(**{metric: other[metric] - other["reference"], "baseline": name})


def before_after(runs: pd.DataFrame, history: pd.DataFrame, fig=None):
    """Accuracy beside what training did to each kind of run: open marks before, filled after,
    medians over seeds.

    Columns: test accuracy with its interval, saturated gates, median time constant, E/I ratio of W
    (1 is balance).
    """
    runs = grouped(runs)
    stride, table = one(runs, "stride"), summary(runs)
    history = history.merge(runs[["key", "group"]], on="key").sort_values("epoch")
    groups, fig = history.groupby(["variable", "statistic"]), fig or _figure()
    shown = {
        ("z", "saturated"): (METRICS["saturated"][0], lambda share: 100 * share),
        ("z", "q50"): (VARIABLES["tau"], lambda z: analysis.time_constant(z, stride)),
        ("W", "ei_ratio"): (METRICS["ei_ratio"][0], np.asarray),
    }
    shown = {kind: how for kind, how in shown.items() if kind in groups.groups}
    axes = fig.subplots(1, 1 + len(shown), sharey=True, squeeze=False)[0]
    _dots(axes[0], runs, table, "test_accuracy")
    axes[0].set_xlabel(METRICS["test_accuracy"][0])
    for ax, (kind, (title, unit)) in zip(axes[1:], shown.items(), strict=True):
        ends = (
            groups.get_group(kind)
            .groupby(["group", "key"])["value"]
            .agg(["first", "last"])
            .groupby("group")
            .median()
        )
        for y, row in zip(range(len(table))[::-1], table.itertuples(), strict=True):
            if row.group in ends.index:
                own, (before, after) = style.look(row.cell), unit(ends.loc[row.group])
                ax.plot([before, after], [y, y], color=own.colour, lw=0.9)
                ax.plot(before, y, own.marker, color=own.colour, mfc="white", ms=4.5)
                ax.plot(after, y, own.marker, color=own.colour, ms=4.5)
        ax.set_xlabel(title)
        ax.grid(axis="y")
        ax.tick_params(axis="y", length=0)
        if kind != ("z", "saturated"):
            ax.set_xscale("log")
            low, high = ax.get_xlim()
            locator = (
                mpl.ticker.LogLocator(subs=(1, 3)) if high > 5 * low else mpl.ticker.MaxNLocator(4)
            )
            ax.xaxis.set(major_locator=locator, major_formatter=mpl.ticker.ScalarFormatter())
            ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    return fig


def heatmap(
    frame: pd.DataFrame, ax=None, metric: str = "test_accuracy", baseline: str | None = None
):
    """Cell x window with the numbers printed, columns grouped by stride convention (8/4 belongs to
    both).

    With a ``baseline`` the paired differences from it, on a scale that diverges about zero.
    """
    frame, ax = grouped(frame), ax or _axes()
    shown = frame if baseline is None else differences(frame, baseline, metric)
    table = summary(shown, metric, ("group", "window")).pivot(
        index="group", columns="window", values="mean"
    )
    columns = _window_columns(frame)
    table = table.reindex(index=shown["group"].unique(), columns=[window for _, window in columns])
    reach = float(np.nanmax(np.abs(table.to_numpy())))
    scale = (
        {"cmap": style.SEQUENTIAL}
        if baseline is None
        else {"cmap": style.DIVERGING, "vmin": -reach, "vmax": reach}
    )
    text = table.map(
        lambda v: "" if pd.isna(v) else f"{v:.1f}" if baseline is None else f"${v:+.1f}$"
    ).to_numpy()
    small = mpl.rcParams["xtick.labelsize"]
    sns.heatmap(
        table,
        ax=ax,
        annot=text,
        fmt="",
        annot_kws={"size": small},
        cbar=False,
        linewidths=0.5,
        rasterized=True,
        **scale,
    )
    for row, column in np.argwhere(table.isna().to_numpy()):
        ax.text(
            column + 0.5,
            row + 0.5,
            "not run",
            ha="center",
            va="center",
            color="#888888",
            size=small,
        )
    titles = [title for title, _ in columns]
    for title in dict.fromkeys(titles):
        first, count = titles.index(title), titles.count(title)
        ax.annotate(
            title,
            (first + count / 2, 0),
            (0, 3),
            textcoords="offset points",
            ha="center",
            va="baseline",
            size=small,
        )
        ax.axvline(first, color="white", lw=5 * (first > 0), zorder=1.5)
    ax.set_title(
        METRICS[metric][0] if baseline is None else _difference(shown, metric), pad=12
    )  # the numbers need no colour bar
    ax.tick_params(length=0)
    ax.tick_params(axis="y", rotation=0)
    ax.set(ylabel="", xlabel="Window: input length/stride (pixels)")
    return ax


def accuracy_vs_input_length(frame: pd.DataFrame, fig=None, metric: str = "test_accuracy"):
    """One panel a cell, one line a stride convention: always 4 pixels (filled), half the input
    length (open); they share 8/4.
    """
    frame = grouped(frame)
    columns, groups = _window_columns(frame), frame["group"].unique()
    shapes, titles = (
        [window for _, window in columns],
        list(dict.fromkeys(title for title, _ in columns)),
    )
    table = summary(frame, metric, ("group", "window", "input_length")).set_index(
        "window", drop=False
    )
    fig = fig or _figure()
    axes = fig.subplots(
        ceil(len(groups) / 5), min(5, len(groups)), sharex=True, sharey=True, squeeze=False
    )
    for ax, group in zip(axes.flat, groups, strict=False):
        rows = table[table["group"] == group]
        own, drawn = style.look(rows["cell"].iat[0]), set()
        for title, nudge in zip(titles, (0.97, 1.03, 1), strict=False):
            part = rows.loc[
                [window for name, window in columns if name == title and window in rows.index]
            ]
            x = part["input_length"] * [
                1 if shapes.count(window) > 1 or len(titles) == 1 else nudge
                for window in part["window"]
            ]
            ax.plot(x, part["mean"], color=own.colour, ls=own.line, lw=0.9)
            new = ~part["window"].isin(drawn)  # the shared window is one point, filled
            errors = np.abs(part[["low", "high"]].T - part["mean"]).to_numpy()[:, new]
            mark = {
                "marker": own.marker,
                "mfc": own.colour if title == FIXED else "white",
                "color": own.colour,
                "ls": "none",
            }
            ax.errorbar(x[new], part["mean"][new], errors, elinewidth=0.8, **mark)
            drawn |= set(part["window"])
        ax.set_title(_plain(group))
        ax.set_xscale("log", base=2)
        lengths = sorted(frame["input_length"].unique())
        ax.set_xticks(lengths, [str(length) for length in lengths])
        ax.set_xlim(lengths[0] / 1.3, lengths[-1] * 1.3)
    if METRICS[metric][1] == 100:
        axes.flat[0].set_ylim(
            bottom=max(0, axes.flat[0].get_ylim()[0])
        )  # an interval of two seeds may reach below
    for ax in axes.flat[len(groups) :]:
        ax.remove()
    grey = [
        {
            "color": style.INK,
            "marker": "o",
            "mfc": style.INK if title == FIXED else "white",
            "lw": 0.9,
        }
        for title in titles
    ]
    keys = [mpl.lines.Line2D([], [], **mark) for mark in grey]
    fig.legend(keys, titles, loc="outside upper center", ncols=3, frameon=False, borderaxespad=0.1)
    fig.supxlabel("Input length (pixels)", size=mpl.rcParams["axes.labelsize"])
    fig.supylabel(METRICS[metric][0], size=mpl.rcParams["axes.labelsize"])
    return fig


def effects(frame: pd.DataFrame, ax=None, metric: str = "test_accuracy"):
    """The design W x STP: how W is made on the axis, without STP (solid) and with (dashed);
    parallel lines mean no interaction.
    """
    frame = grouped(frame[frame["cell"].isin(cells.DESIGN)])
    one(frame, "window")
    table, ax, place = summary(frame, metric), ax or _axes(), {"free": 0, "sign": 1, "reversal": 2}
    if table["cell"].duplicated().any():
        raise ValueError(
            f"The design shows one kind of run a cell, but the frame holds {', '.join(table['group'])}; filter it first."
        )
    for side, title in ((-1, "without STP"), (1, "with STP")):
        rows = [(style.look(row.cell), row) for row in table.itertuples()]
        rows = sorted(
            [
                (place[own.weights] + 0.06 * side, own, row)
                for own, row in rows
                if own.stp == (side > 0)
            ],
            key=lambda item: item[0],
        )
        for x, own, row in rows:
            errors = [[row.mean - row.low], [row.high - row.mean]]
            ax.errorbar(
                x,
                row.mean,
                errors,
                marker=own.marker,
                ms=4.5,
                mfc=own.face,
                color=own.colour,
                elinewidth=1.1,
            )
            seeds = frame.loc[frame["group"] == row.group, metric] * METRICS[metric][1]
            ax.plot(
                np.full(len(seeds), x + 0.09 * side),
                seeds,
                "o",
                ms=1.8,
                mew=0,
                color=own.colour,
                alpha=0.7,
            )
        if rows:
            line = {
                "color": "#666666",
                "ls": rows[0][1].line,
                "lw": 0.9,
                "zorder": 1,
                "label": title,
            }
            ax.plot([x for x, _, _ in rows], [row.mean for _, _, row in rows], **line)
    ax.set_xticks(list(place.values()), ["free", "sign-\nconstrained", "reversal\npotentials"])
    ax.set(xlim=(-0.4, 2.3), xlabel="How $W$ is made", ylabel=METRICS[metric][0])
    _label_ends([ax])
    return ax


def learning_rate_scan(frame: pd.DataFrame, fig=None, metric: str = "validation_accuracy"):
    """Accuracy against learning rate, one panel an initialisation, one line a cell; a ring marks
    each cell's best rate.
    """
    frame = grouped(frame)
    one(frame, "window")
    policies = [name for name in cells.INITIALISATIONS if name in set(frame["initialisation"])]
    fig = fig or _figure()
    axes = fig.subplots(1, len(policies), sharey=True, squeeze=False)[0]
    for ax, policy in zip(axes, policies, strict=True):
        part = frame[frame["initialisation"] == policy].assign(group=lambda f: f["label"])
        for _, line in summary(part, metric, ("group", "learning_rate")).groupby(
            "group", sort=False
        ):
            own, line = style.look(line["cell"].iat[0]), line.sort_values("learning_rate")
            mark = {"color": own.colour, "ls": own.line, "marker": own.marker, "mfc": own.face}
            ax.plot(line["learning_rate"], line["mean"], label=line["group"].iat[0], **mark)
            best = line.loc[line["mean"].idxmax()]
            ax.plot(
                best["learning_rate"], best["mean"], "o", ms=8, mfc="none", mec=own.colour, mew=0.7
            )
        rates = sorted(part["learning_rate"].unique())
        ax.set_xscale("log")
        ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
        ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        ax.set_title(f"initialisation: {policy}", loc="left")
        ax.set_xlabel("Learning rate (per step)")
    axes[0].set_ylabel(METRICS[metric][0].replace(" (", "\n("))  # the figure is low
    _label_ends(axes)
    return fig


# ---- one image's recording: trace maps variable -> (time, hidden)


def conductance(trace, image, window, z_max: float, fig=None, permuted: bool = False):
    """The image and, beside it, its total conductance z: units sorted by their mean time constant,
    slowest on top, colours from 0 to z_max.

    Parameters
    ----------
    trace : mapping of variable -> (time, hidden)
        What a recording holds for one image.
    image : array (channels, rows, columns) or (rows, columns)
        0..255 or 0..1.
    window : lib.config.Window
    z_max : float
        `cell.z_max`; the range of the colours is fixed to it, so that cells and images compare.
    """
    z = _array(trace["z"])
    order = np.argsort(-analysis.time_constant(z).mean(0), kind="stable")
    fig = fig or _figure()
    left, right = fig.subplots(1, 2, width_ratios=(1, 2.8))
    _draw_image(left, image)
    mesh = right.imshow(
        z[:, order].T,
        aspect="auto",
        cmap=style.SEQUENTIAL,
        vmin=0,
        vmax=z_max,
        interpolation="nearest",
        rasterized=True,
    )
    fig.colorbar(mesh, ax=right, label=VARIABLES["z"], pad=0.02)
    _image_rows(right, len(z), window, _columns(image), permuted)
    right.set(
        ylabel="Hidden units (slowest on top)",
        yticks=[0, z.shape[1] - 1],
        yticklabels=["1", str(z.shape[1])],
    )
    return fig


def quantiles_over_sequence(
    values,
    variable: str,
    window,
    columns: int,
    ax=None,
    colour=None,
    lines=None,
    permuted: bool = False,
):
    """Quantiles over units (and images) of a variable at every step, ``(time, hidden)`` or
    ``(images, time, hidden)``.

    ``lines`` maps names to heights to draw across, such as v_e and v_i. For ``variable="tau"`` give
    the conductance z: time constants are shown in pixels, on a logarithmic axis.
    """
    values, ax = _array(values), ax or _axes()
    if variable == "tau":
        values = analysis.time_constant(values, window.stride)
        ax.set_yscale("log")
    steps = values.shape[-2]
    spread_over = np.moveaxis(values, -2, 0).reshape(steps, -1)
    _fan(
        ax,
        np.arange(steps),
        np.quantile(spread_over, (0.05, 0.25, 0.5, 0.75, 0.95), axis=1),
        colour or style.HUES["baseline"],
    )
    for name, height in (lines or {}).items():
        ax.axhline(height, color=style.INK, ls=(0, (4, 3)), lw=0.7)
        ax.annotate(
            name,
            (1.01, height),
            xycoords=ax.get_yaxis_transform(),
            va="center",
            annotation_clip=False,
        )
    _image_rows(ax, steps, window, columns, permuted)
    ax.set_ylabel(VARIABLES[variable])
    return ax


def units_over_sequence(
    trace,
    image,
    window,
    units,
    step: int = 0,
    variables=("z", "r"),
    fig=None,
    permuted: bool = False,
):
    """Single units beside the image; the window that is read at ``step`` is framed in the image and
    marked on the axis.
    """
    fig = fig or _figure()
    grid = fig.add_gridspec(len(variables), 2, width_ratios=(1, 2.8))
    picture, columns = fig.add_subplot(grid[:, 0]), _columns(image)
    _draw_image(picture, image)
    pixels = windows.step_pixels(
        _array(image).shape[-2], columns, window.input_length, window.stride, window.scan
    )[step]
    for row in sorted({int(pixel) // columns for pixel in pixels} if not permuted else ()):
        inside = [int(pixel) % columns for pixel in pixels if int(pixel) // columns == row]
        picture.add_patch(
            Rectangle(
                (min(inside) - 0.5, row - 0.5), len(inside), 1, fill=False, ec="#D55E00", lw=1.2
            )
        )
    axes = [fig.add_subplot(grid[0, 1])]
    axes += [
        fig.add_subplot(grid[number, 1], sharex=axes[0]) for number in range(1, len(variables))
    ]
    for ax, name in zip(axes, variables, strict=True):
        values = _array(trace[name])
        for unit, shade in zip(units, np.linspace(0.05, 0.8, len(units)), strict=True):
            ax.plot(
                values[:, unit],
                color=plt.get_cmap(style.SEQUENTIAL)(shade),
                lw=0.9,
                label=f"unit {unit + 1}",
            )
        ax.axvline(step, color="#D55E00", lw=0.8)
        ax.set_title(VARIABLES[name], loc="left")
        ax.set_xlim(0, len(values) - 1)
        ax.tick_params(labelbottom=ax is axes[-1])
    _label_ends(axes[:1])
    _image_rows(axes[-1], len(values), window, columns, permuted)
    return fig


def plasticity(trace, window, columns: int, fig=None, colour=None, permuted: bool = False):
    """Time constants (log axis, pixels) and, with STP, resources X, release probability U and
    efficacy UX of the same steps, aligned.
    """
    fig = fig or _figure()
    shown = {"tau": trace["z"]} | (
        {"X": trace["X"], "U": trace["U"], "UX": _array(trace["U"]) * _array(trace["X"])}
        if "X" in trace
        else {}
    )
    axes = fig.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (name, values) in zip(axes, shown.items(), strict=True):
        quantiles_over_sequence(values, name, window, columns, ax, colour, permuted=permuted)
        ax.set(xlabel=ax.get_xlabel() if ax is axes[-1] else "", ylabel="")
        ax.set_title(VARIABLES[name], loc="left")
        if name != "tau":
            ax.set_ylim(0, 1)
    return fig


# ---- shared pieces


def _figure():
    return plt.figure(layout="constrained")


def _axes():
    return _figure().add_subplot()


def _array(values) -> np.ndarray:
    """Of a tensor (of any device) or array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def ranged(values) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _readable(colour):
    """A colour dark enough for small text on white."""
    red, green, blue = mpl.colors.to_rgb(colour)
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    return tuple(part * min(1, 0.52 / light) for part in (red, green, blue))


def _note(ax, text):
    ax.text(
        0.98,
        0.03,
        text,
        transform=ax.transAxes,
        ha="right",
        va="bottom",
        size=mpl.rcParams["xtick.labelsize"],
        color="#555555",
    )


def _difference(frame, metric):
    """What the axis of paired differences says."""
    unit = METRICS[metric][0].partition("(")[2]
    unit = unit.replace("% of", "points,") if METRICS[metric][1] == 100 else unit
    return f"Difference from {frame['baseline'].iat[0]} ({unit}"


def _plain(name):
    """A cell's name as text; Computer Modern has no underscore, where mathematics has one."""
    return name.replace("_", r"$\_$")


def _rows(ax, table):
    """One row a group, the first on top; returns their heights."""
    heights = range(len(table))[::-1]
    ax.set_yticks(list(heights), [_plain(name) for name in table["group"]])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.6, len(table) - 0.4)
    return heights


def _interval_line(ax, y, row, colour, beyond=False):
    """The interval of one row; ``beyond``: the axis is not widened for it."""
    if row.n > 1:
        line = {"color": colour, "lw": 1.1, "solid_capstyle": "butt", "zorder": 3}
        if beyond:
            ax.add_artist(mpl.lines.Line2D([row.low, row.high], [y, y], **line))
        else:
            ax.plot([row.low, row.high], [y, y], **line)


def _dots(ax, frame, table, metric):
    """Mean with interval on one row a group, seeds as small dots below it; beside more seeds, an
    interval of two may leave the axis.
    """
    for y, row in zip(_rows(ax, table), table.itertuples(), strict=True):
        own, seeds = (
            style.look(row.cell),
            frame.loc[frame["group"] == row.group, metric] * METRICS[metric][1],
        )
        _interval_line(
            ax, y, row, own.colour, beyond=row.n == 2 < table["n"].max()
        )  # 13 standard errors would hide all others
        ax.plot(row.mean, y, own.marker, mfc=own.face, color=own.colour, ms=4.5, zorder=4)
        ax.plot(
            seeds, np.full(len(seeds), y - 0.3), "o", ms=1.8, color=own.colour, alpha=0.7, mew=0
        )
    ax.grid(axis="y")
    if (table["n"] == 1).all():
        size = mpl.rcParams["xtick.labelsize"]
        ax.annotate(
            "n = 1 seed",
            (1, 1),
            xycoords="axes fraction",
            ha="right",
            va="bottom",
            size=size,
            color="#555555",
        )


def _window_columns(frame):
    """(title, window) of every column: the windows by stride convention and input length; 8/4
    stands in both.
    """
    shapes = (
        frame[["input_length", "stride", "window"]]
        .drop_duplicates()
        .sort_values(["input_length", "stride"])
    )
    named = {FIXED: "fixed", HALF: "half"}
    found = {
        title: [
            row.window
            for row in shapes.itertuples()
            if name in windows.conventions(row.input_length, row.stride)
        ]
        for title, name in named.items()
    }
    rest = [
        row.window
        for row in shapes.itertuples()
        if not windows.conventions(row.input_length, row.stride)
    ]
    if set(found[HALF]) <= set(found[FIXED]):  # one window of both conventions: say it once
        found[HALF] = []
    return [
        (title, window)
        for title, shown in {**found, "other strides": rest}.items()
        for window in shown
    ]


FIXED, HALF = "stride always 4", "stride length/2"


def _fan(ax, x, quantiles, colour):
    """Median and two bands of five quantiles."""
    ax.fill_between(x, quantiles[0], quantiles[4], color=colour, alpha=0.18, lw=0)
    ax.fill_between(x, quantiles[1], quantiles[3], color=colour, alpha=0.35, lw=0)
    ax.plot(x, quantiles[2], color=colour)


def _columns(image) -> int:
    return int(_array(image).shape[-1])


def _draw_image(ax, image):
    picture = _array(image)
    picture = np.moveaxis(picture, 0, -1).squeeze() if picture.ndim == 3 else picture
    ax.imshow(
        picture.astype(float) / (255 if picture.max() > 1 else 1),
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    ax.set(
        xlabel="Column (pixels)",
        ylabel="Row (pixels)",
        xticks=[0, picture.shape[1] - 1],
        yticks=range(0, picture.shape[0], max(1, picture.shape[0] // 4)),
    )


def _image_rows(ax, steps, window, columns, permuted):
    """Ticks where a step starts to read an image row; a permuted image has none, so steps are
    counted.
    """
    ax.set_xlim(0, steps - 1)
    if permuted:
        ax.set_xlabel("Sequence (steps)")
        return
    rows = np.arange(
        0, ceil(steps * window.stride / columns), max(1, round(steps * window.stride / columns / 8))
    )
    ax.set_xticks(rows * columns / window.stride, [str(row) for row in rows])
    ax.set_xlabel(f"Image row being read ({columns / window.stride:g} steps a row)")
