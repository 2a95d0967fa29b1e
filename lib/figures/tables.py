"""The tables of a comparison, each with its caption and with what a text quotes of its rows."""

from typing import NamedTuple

import pandas as pd

from lib import analysis, memory
from lib.figures import export, select, summaries
from lib.figures.select import VARIANTS, Frames
from lib.figures.summaries import intervals

# Column of a table -> what a text calls it, where that is not its own name.
QUOTED = {"Accuracy (%)": "Accuracy", "Above linear": "AboveLinear", "n": "Seeds"}


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
        return summaries.caption(self.runs, self.lead)

    @property
    def markdown(self) -> str:
        return export.markdown(self.frame, self.caption, self.best)

    def quoted(self) -> dict[str, dict[str, str]]:
        """Name of a row -> what a text quotes of it: ``Difference``, ``DifferenceInterval``, ..."""
        shown = {}
        for column, (values, bounds) in export.as_text(self.frame).items():
            name = QUOTED.get(column, column)
            shown[name] = values
            if bounds is not None:
                none = "(fewer than three seeds, no interval)"
                shown[f"{name}Interval"] = bounds.replace("", none)
        rows = pd.DataFrame(shown).to_dict("records")
        return dict(zip(self.names, rows, strict=True))


def tables(frames: Frames) -> list[Table]:
    """Every table that the runs allow; ``names`` are what texts call its rows.

    Differences and effects are one family a table (main effects and interactions are their own),
    whose intervals hold together; what rests on one or two seeds is in none.
    """
    shown = select.headline(frames.runs)
    main = shown[shown["options"] == "{}"]
    linear = frames.linear.get(main["dataset"].iat[0])
    lead = f"Test accuracy (mean; {intervals(frames)}), "
    lead += "how far above a linear softmax on the pixels, " if linear else ""
    lead += "trainable parameters and median time of a training step."
    cells_shown = summary_table(main, frames.predictions, linear)
    names = tuple(main["cell"].unique())
    found = [Table("summary", cells_shown, lead, main, names, ("Accuracy (%)",))]
    found += _windows_table(frames)
    found += _contrasts_table("contrasts", "Planned contrasts", main, frames)
    for name, design in select.designs(shown).items():
        found += _effects_table(name, design, frames)
    found += _repaired_tables(shown, frames)
    found += _lesions_table("lesions", shown, frames)
    for name, (ladder, rungs) in select.ladders(frames.runs).items():
        found.append(_ladder_table(name, ladder, rungs, frames))
        found += _lesions_table(f"{name}_lesions", rungs.runs, frames)
    kinds = select.variants(frames.runs)
    found += [
        _differences_table(kind, *VARIANTS[kind], *varied, frames) for kind, varied in kinds.items()
    ]
    return found + _growth_table(frames) + _delay_tables(frames)


def summary_table(runs: pd.DataFrame, predictions=None, linear=None) -> pd.DataFrame:
    """One row a cell: test accuracy in percent with interval (`summaries.groups`), points above the
    ``linear`` reference of the same images, n, trainable parameters, time of a training step.
    """
    runs = runs if "group" in runs else select.grouped(runs)
    table = summaries.groups(runs, predictions=predictions)
    other = runs.groupby("group")[["parameters", "ms_per_step"]].median().loc[table["group"]]
    shown = pd.DataFrame({"Cell": table["group"]}).assign(**_interval("Accuracy (%)", table))
    if linear is not None and predictions is not None:
        answers = summaries.answers(runs, "test_accuracy", ["group"], predictions)
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
    wide = select.across_windows(frames.runs)
    if not len(wide):
        return
    base = select.main_window(wide)
    own = summaries.groups(wide[wide["window"] == base], predictions=frames.predictions)
    shown = pd.DataFrame({"Cell": own["group"]}).assign(**_interval(f"{base} (%)", own))
    differences = summaries.windows(wide, frames.predictions)
    others = [shape for shape in select.shapes(wide) if shape != base]
    shown = _beside(shown, differences, "window", others)
    lead = (
        f"Test accuracy at {base} (mean; {intervals(frames)}) and what other windows change it by "
        "(percentage points; simultaneous intervals of each row)."
    )
    yield Table("windows", shown, lead, wide, tuple(own["cell"]), wide=True)


def _contrasts_table(name, lead, runs, frames, contrasts=analysis.PLANNED):
    table = summaries.contrasts(runs, contrasts, frames.predictions).dropna(subset="low")
    if table.empty:
        return
    lead += f" (percentage points of test accuracy; simultaneous {intervals(frames)})."
    frame = pd.DataFrame({"Pair": table["pair"]}).assign(**_interval("Difference", table))
    yield Table(name, frame.assign(n=table["n"]), lead, runs, tuple(table["name"]))


def _effects_table(name, design, frames):
    answers = summaries.answers(design, "test_accuracy", ["cell"], frames.predictions)
    families = analysis.design_weights().values()
    table = pd.concat([analysis.effects(answers, weights) for weights in families])
    if table["low"].isna().any():
        return
    lead = (
        "Effects of W (free, sign-constrained, reversal potentials) and STP on test accuracy "
        f"{'' if name == 'effects' else 'of repaired cells '}"
        f"(percentage points; simultaneous {intervals(frames)})."
    )
    shown = pd.DataFrame({"Effect": table.index}).assign(**_interval("Difference", table, 100))
    shown["n"] = table["n"].to_numpy()
    yield Table(name, shown, lead, design, tuple(table.index))


def _ladder_table(name, ladder, rungs, frames):
    """One row a rung, called "added: drive z", "alone: drive z", ..."""
    table = summaries.rungs(rungs, frames.predictions)
    own = summaries.groups(rungs.runs, predictions=frames.predictions).set_index("group")
    names = tuple(table["panel"] + ": " + table["label"])
    shown = pd.DataFrame({"Change": names, "From": table["reference"]})
    shown = shown.assign(**_interval("Accuracy (%)", own.loc[table["group"]]))
    shown = shown.assign(**_interval("Difference", table), n=table["n"])
    lead = (
        f"{ladder.title}: test accuracy, and its difference (percentage points) from what it is a "
        f"change of; {intervals(frames)}, of the differences simultaneous."
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
    table = summaries.differences(runs, plain, predictions=frames.predictions)
    lead = f"{title}: test accuracy, and its difference (percentage points) from {compared_with}"
    told = table["low"].notna()
    if told.any():
        table = table[told]
        lead += f"; {intervals(frames)}, of the differences simultaneous."
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
    own = summaries.groups(runs, by=("group", "epochs"), predictions=frames.predictions)
    shown = pd.DataFrame({"Cell": runs["group"].unique()})
    lengths = sorted(runs["epochs"].unique())
    shown = _beside(shown, own, "epochs", lengths)
    last = runs[runs["epochs"] == lengths[-1]]
    best = last.groupby("group")["best_epoch"].median()  # says whether all of it was of use
    gain = summaries.growth(runs, frames.predictions).set_index("group")
    shown = shown.assign(**_interval("Difference", gain.reindex(shown["Cell"])))
    shown["Best epoch"] = best.loc[shown["Cell"]].to_numpy()
    lead = (
        f"Test accuracy after {', '.join(map(str, lengths))} epochs (percent; {intervals(frames)}"
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
    own = summaries.delays(runs, **evidence)
    lead = f"Test accuracy after a delay (percent; {intervals(frames)}); {columns}."
    found = [_tasks_table("delays", "Cell", own, tasks, lead, runs)]
    helps = summaries.plasticity(runs, **evidence)
    if len(helps):
        helps = helps.assign(group=helps["group"] + " − " + helps["reference"])
        lead = "What plasticity changes after a delay (percentage points of test accuracy; "
        lead += f"simultaneous {intervals(frames)}); {columns}."
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
