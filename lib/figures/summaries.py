"""What runs say, in numbers and in words: the statistics of `lib.analysis` over the groups of
`lib.figures.select`, in the unit that is shown, and the captions of figures and tables.

Accuracies are fractions in frames and percent here, their differences percentage points.
``predictions``, where given, hold a row for each run and test image: key, image, label, prediction.
"""

import numpy as np
import pandas as pd

from lib import analysis, cells, datasets
from lib.config import CellSpec
from lib.figures import select
from lib.figures.style import METRICS

TITLES = {"digits": "digits", "mnist": "sequential MNIST", "cifar10": "sequential CIFAR-10"}


# ---- in numbers


def groups(
    frame: pd.DataFrame, metric: str = "test_accuracy", by=("group",), predictions=None
) -> pd.DataFrame:
    """Mean and own interval of the groups that have a value, in the shown unit, with their
    ``cell``: over seeds and test images where ``predictions`` of the runs are given
    (`analysis.accuracies`), else over seeds (`analysis.summarise`). Raises ValueError where none
    has a value.
    """
    if predictions is not None and metric == "test_accuracy":
        table = analysis.accuracies(answers(frame, metric, by, predictions))
    else:
        table = analysis.summarise(frame, list(by), metric).query("n > 0")
    if not len(table):
        raise ValueError(f"No finished run has a value of {metric}; {select.TRAIN}")
    return _in_unit(table, frame, metric)


def differences(
    frame: pd.DataFrame, baseline, metric: str = "test_accuracy", predictions=None
) -> pd.DataFrame:
    """Differences of the groups of one window from their ``baseline`` (`select.differences`), as
    one family with simultaneous intervals (`analysis.comparisons`), in the shown unit.
    """
    frame = frame if "group" in frame else select.grouped(frame)
    others = select.differences(frame, baseline, metric)
    pairs = list(dict.fromkeys(zip(others["group"], others["baseline"], strict=True)))
    found = answers(frame, metric, ["group"], predictions)
    return _in_unit(analysis.comparisons(found, pairs), frame, metric)


def contrasts(runs, contrasts=analysis.PLANNED, predictions=None) -> pd.DataFrame:
    """The contrasts whose cells ran, in percentage points of test accuracy, one family: name, pair,
    isolates, n, mean, low, high; empty where none did. A cell has one group here.
    """
    labels = runs.groupby("cell")["group"].first()
    ran = set(labels.index)
    contrasts = [item for item in contrasts if {item.cell, item.reference} <= ran]
    found = answers(runs, "test_accuracy", ["cell"], predictions)
    table = analysis.comparisons(found, [(item.cell, item.reference) for item in contrasts])
    return _in_unit(table, runs, "test_accuracy").assign(
        name=[item.name for item in contrasts],
        pair=[f"{labels[item.cell]} − {labels[item.reference]}" for item in contrasts],
        isolates=[item.isolates for item in contrasts],
    )


def rungs(ran, predictions=None) -> pd.DataFrame:
    """The ``steps`` of a ladder (`select.rungs`) with n and, in percentage points, the mean of the
    difference from the reference and its interval: one family with simultaneous intervals.
    """
    runs, steps, _ = ran
    found = answers(runs, "test_accuracy", ["group"], predictions)
    pairs = list(dict.fromkeys(zip(steps["group"], steps["reference"], strict=True)))
    table = _in_unit(analysis.comparisons(found, pairs), runs, "test_accuracy")
    return steps.merge(table, on=["group", "reference"])


def windows(frame: pd.DataFrame, predictions=None) -> pd.DataFrame:
    """Test accuracy of each group at each window less that at the main one, in percentage points;
    the windows of a group are one family with simultaneous intervals.
    """
    base = select.main_window(frame)
    parts = []
    for group, own in frame.groupby("group", sort=False):
        shapes = list(own["window"].unique())
        found = answers(own, "test_accuracy", ["window"], predictions)
        table = analysis.comparisons(found, [(shape, base) for shape in shapes])
        parts.append(table.rename(columns={"group": "window"}).assign(group=group))
    lengths = frame.drop_duplicates("window").set_index("window")["input_length"]
    table = _in_unit(pd.concat(parts), frame, "test_accuracy")
    return table.assign(input_length=table["window"].map(lengths))


def growth(runs, predictions=None) -> pd.DataFrame:
    """What the longest training of `select.growth` adds to the one before it, in percentage points:
    one family, by kind, as `analysis.comparisons`.
    """
    before, longest = sorted(runs["epochs"].unique())[-2:]
    ran = set(zip(runs["group"], runs["epochs"], strict=True))
    kinds = [name for name in runs["group"].unique() if {(name, before), (name, longest)} <= ran]
    found = answers(runs, "test_accuracy", ["group", "epochs"], predictions)
    pairs = [((name, longest), (name, before)) for name in kinds]
    table = analysis.comparisons(found, pairs)
    return _in_unit(table.assign(group=table["group"].str[0]), runs, "test_accuracy")


def delays(runs, predictions=None) -> pd.DataFrame:
    """`groups` of the kinds of `select.delays` for each task, with ``task``. Only kinds that wait
    as long share a spread: seeds of a long delay lie further apart.
    """
    tasks = [runs[runs["task"] == task] for task in runs["task"].unique()]
    parts = [groups(part, by=("group", "task"), predictions=predictions) for part in tasks]
    return pd.concat(parts, ignore_index=True)


def plasticity(runs, predictions=None) -> pd.DataFrame:
    """What short-term plasticity changes for each task of `select.delays`, in percentage points:
    the kinds with STP less those alike without, one family, by name; with ``task``, as
    `analysis.comparisons`. Empty where no such pair ran.
    """
    kinds = runs.drop_duplicates("group").set_index("group")

    def alike(cell, run):
        changes = dict(select.changed(run.options))
        changes.pop("stp_dt", None)
        return cell, *changes.items(), run.initialisation

    without = {alike(run.cell, run): group for group, run in kinds.iterrows()}
    design = {(cells.get(name).weights, cells.get(name).stp): name for name in cells.DESIGN}
    plastic = {name: design[weights, False] for (weights, stp), name in design.items() if stp}
    ran = set(zip(runs["group"], runs["task"], strict=True))
    pairs = []
    for group, run in kinds.iterrows():
        reference = without.get(alike(plastic.get(run.cell), run))
        for task in runs["task"].unique():
            if {(group, task), (reference, task)} <= ran:
                pairs.append(((group, task), (reference, task)))
    if not pairs:
        return pd.DataFrame()
    found = answers(runs, "test_accuracy", ["group", "task"], predictions)
    table = analysis.comparisons(found, pairs)
    table["task"] = table["group"].str[1]
    names = {name: table[name].str[0] for name in ("group", "reference")}
    return _in_unit(table.assign(**names), runs, "test_accuracy")


def answers(frame, metric, by, predictions):
    """What the statistics need: right or wrong on every image, or one value a seed where there are
    no ``predictions`` of the runs or the metric is another.
    """
    if predictions is None or metric != "test_accuracy":
        return analysis.of_seeds(frame, by, metric)
    return analysis.correctness(frame, predictions, by)


def _in_unit(table, frame, metric):
    """A table of `lib.analysis` in the shown unit, with the cell of each group and its ``form``:
    "repaired", "plain" where its cell also stands repaired, else "".
    """
    kinds = frame.drop_duplicates("group").set_index("group")
    repaired = kinds["options"].map(select.repaired).astype(bool)
    twin = kinds["cell"].isin(kinds.loc[repaired, "cell"])
    kinds["form"] = np.select([repaired, twin], ["repaired", "plain"], "")
    scaled = table[["mean", "low", "high"]] * METRICS[metric].factor
    cell, form = (table["group"].map(kinds[name]) for name in ("cell", "form"))
    return table.assign(cell=cell, form=form, **scaled)


# ---- in words


def intervals(frames) -> str:
    """What the intervals of `select.Frames` count."""
    over = "seeds" if frames.predictions is None else "seeds and test images"
    return f"95 % intervals over {over}"


def chance(frame: pd.DataFrame) -> float:
    """Accuracy of guessing, in percent."""
    return 100 / len(select.one(frame, "class_names"))


def caption(frame: pd.DataFrame, lead: str = "") -> str:
    """What a reader must know of the runs behind a figure: data set, window, hidden size, epochs,
    seeds and interval.
    """
    frame = frame if "group" in frame else select.grouped(frame)
    shapes = select.shapes(frame)
    counts = frame.groupby(["group", "window", "epochs", *{"task"} & set(frame)])["seed"].nunique()
    parts = [
        f"Data: {_tasks(frame)}",
        f"{_plural('window', len(shapes))} {', '.join(shapes)} pixels (input length/stride)",
        f"H = {ranged(frame['hidden_size'])}",
        f"{ranged(frame['epochs'])} {_plural('epoch', frame['epochs'].max())}",
        f"n = {ranged(counts)} {_plural('seed', counts.max())}",
    ]
    if counts.max() < analysis.FEWEST:
        parts.append("no interval")
    elif "95 %" not in lead:
        parts.append("95 % intervals")
    policies = frame["initialisation"].unique()
    if len(policies) == 1 and policies[0] != CellSpec().initialisation:
        parts.append(f"initialisation {policies[0]}")
    return f"{lead} {'; '.join(parts)}.".strip()


def _plural(word, count):
    return word if count == 1 else f"{word}s"


def task_name(run) -> str:
    """What images a run reads, in words; the embedded digits are too easy to conclude from, and say
    so.
    """
    return ", ".join(_task(run))


def _task(run):
    name = TITLES.get(run["dataset"], run["dataset"])
    if run["permuted"]:
        name = f"permuted {name}"
    if datasets.is_demonstration(run["dataset"]):
        name += ", demonstration"
    return [name, *select.image_changes(run, ("last_rows", "first_rows", "delay"))]


def _tasks(frame):
    """`task_name` of all runs: each data set once, with what is done to its images."""
    done = {}
    for run in frame.drop_duplicates(["dataset", *select.IMAGES]).to_dict("records"):
        name, *changes = _task(run)
        done.setdefault(name, []).append(", ".join(changes) or "whole images")
    whole = ["whole images"]
    return " and ".join(
        name if changes == whole else f"{name} ({'; '.join(changes)})"
        for name, changes in done.items()
    )


def ranged(values) -> str:
    """Values that are alike, or what they range over."""
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
