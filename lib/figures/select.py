"""Which runs compare: the one place that decides what a figure, a table or a report sets side by
side.

A *group* holds the runs of one kind, which differ in their seed (and window) alone; it is one line
or bar. *Plain* runs have nothing of their own: default options and initialisation, whole images in
their order. *Variants* differ from them in something that their group's name says.
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import pandas as pd

from lib import analysis, cells, linear, memory, windows
from lib.config import CellSpec, Task
from lib.figures import style

# The window of figures that show one, where it was run: both stride conventions hold there.
WINDOW = "8/4"
# Columns of a run that its group names where they are not the usual ones of the cells as they are,
# so that what bears a plain name compares; or of its own kind: their short names.
OF_ALL = {
    "hidden_size": "H",
    "epochs": "epochs",
    "scan": "scan",
    "batch_size": "batch",
    "clip_norm": "clip norm",
    "data_seed": "data seed",
    "validations_per_epoch": "validations",
}
OF_KIND = {"learning_rate": "rate", "source": "version"}
KIND = ["dataset", "cell", "options", "epochs"]
# What a figure has alike, beside window, size and epochs.
ALIKE = ["dataset", *(name for name in OF_ALL if name not in ("hidden_size", "epochs"))]
# Columns that change the images or their order, and how a name says so.
IMAGES = {
    "permuted": "permuted",
    "last_rows": "last {:.0f} rows",
    "first_rows": "first {:.0f} rows",
    "delay": "delay {:.0f} pixels",
}
# What runs of one kind of cell share besides.
SETTING = [*ALIKE, *IMAGES, "window", "hidden_size", "initialisation"]
TRAIN = "train some first, for example with: python -m lib compare."
FIXED, HALF, OTHER = "stride always 4", "stride length/2", "other strides"
CONVENTIONS = {"fixed": FIXED, "half": HALF}


class Frames(NamedTuple):
    """Finished and diverged runs of a store with their curves and history; ``environments`` maps
    keys to what each run was made with, ``linear`` data sets to their `lib.linear.Reference`,
    where it is stored. Without ``predictions`` intervals are over seeds alone.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    history: pd.DataFrame
    environments: dict
    predictions: pd.DataFrame | None = None
    linear: Mapping = MappingProxyType({})
    lesions: pd.DataFrame | None = None  # of `lib.memory.stored`


class Ladder(NamedTuple):
    """The ``changes`` that lead, one after the other, from the first of ``cells`` to ``end``; the
    other cells are the first one with further options. All start from one ``initialisation``.
    """

    title: str
    cells: tuple
    changes: tuple
    end: str | None = None
    initialisation: str = CellSpec().initialisation


class Rungs(NamedTuple):
    """Runs of a ladder; its ``steps``, a row each: panel, label, group, and the group that it is a
    change of, ``reference``; and the plain groups at its two ``ends``.
    """

    runs: pd.DataFrame
    steps: pd.DataFrame
    ends: list


class Variants(NamedTuple):
    """Variants beside the plain runs of the same cells; ``plain`` maps every group to the one that
    it is compared with.
    """

    runs: pd.DataFrame
    plain: dict


# Questions that variants answer, each one family of comparisons: a title, and what each variant is
# compared with.
ITSELF = "the same cell as it is in the comparison"
VARIANTS = {
    "equation": ("Changes of the equation", ITSELF),
    "steps": ("Other time steps", ITSELF),
    "initialisation": ("Other initialisation", ITSELF),
    "size": ("Other sizes", ITSELF),
    "tasks": ("Other images", "the same cell on whole images in their order"),
    "longer": ("Changes of the equation, trained as long as the comparison", ITSELF),
    "clipping": ("Other bounds of the gradient norm", "the same kind at the usual one"),
}
STEPS = {"dt", "stp_dt"}

# Values of options: what a name calls them, and what they do.
CHANGES = {
    ("input_gate", "free"): ("P_z free", "input weights of the gate of any sign"),
    ("drive", "z"): ("drive z", "the voltage relaxes to its drive at the rate of its gate"),
    ("z_max", 1): ("z_max 1", "the gate can open fully"),
    ("gate_bias", "open"): ("gate open", "the gate starts half open"),
    ("conductance_gain", 3.5): ("K gain 3.5", "rows of K sum to 3.5 at the start"),
    ("conductance_gain", 12): ("K gain 12", "rows of K sum to 12 at the start"),
    ("rate", "v"): ("r = v", "the state itself is passed on, no rate of it"),
    ("target", "sigma"): ("σ of drive", "the drive passes a sigmoid"),
    ("read", "rate"): ("rates read", "rates are read out, not voltages"),
}
GATED = (("drive", "z"), ("z_max", 1), ("gate_bias", "open"))
LADDERS = {
    "ladder": Ladder(
        "From CB-GRU to the simple GRU",
        ("cb_gru", "cb_gru_bridge"),
        (*GATED, ("rate", "v"), ("target", "sigma")),
        "simple_gru",
    ),
    "repairs": Ladder(
        "Repairs of DaleCB",
        ("dale_cb",),
        (("input_gate", "free"), *GATED, ("conductance_gain", 12)),
    ),
    "notes": Ladder(  # where the size of K is fixed
        "Repairs of DaleCB from the initialisation of the notes",
        ("dale_cb",),
        (("input_gate", "free"), *GATED),
        initialisation="notes",
    ),
}
REPAIRED = frozenset(LADDERS["repairs"].changes)


def collect(store, **filters) -> Frames:
    """`Frames` of the runs of a store; filters as in `Store.runs`."""
    runs = store.runs(**{**filters, "state": ["DONE", "DIVERGED"]})
    same = {"key": list(runs["key"])}
    references = {name: linear.stored(Task(name), store.root) for name in runs["dataset"].unique()}
    return Frames(
        runs,
        store.curves(**same),
        store.history(**same),
        {key: store.environment(key) for key in same["key"]},
        store.predictions_of(runs["key"]),
        {name: found for name, found in references.items() if found},
        memory.stored(store.root),
    )


# ---- groups


def grouped(frame: pd.DataFrame, epochs: int | None = None) -> pd.DataFrame:
    """Finished runs (or their curves) in the fixed order of cells, with a column ``group``: the
    cell's label and what tells its runs apart.

    What differs from the defaults is said ("CB, dt 0.3"; "DaleCB, notes"); so are hidden size,
    learning rate and version where they are not the most frequent, and ``epochs`` other than
    these, by default the `shared_epochs` of the window. ValueError: no finished run is left.
    """
    if "state" in frame:
        frame = frame[frame["state"] == "DONE"]
    if not len(frame):
        raise ValueError(f"No finished run to show; {TRAIN}")
    runs = frame.drop_duplicates("key")
    plain, at = _unchanged(runs), ["dataset", "window"]
    of_all = runs[plain] if plain.any() else runs
    usual = {
        **{name: (["dataset"], _most_frequent(of_all, name, ["dataset"])) for name in OF_ALL},
        "epochs": (at, {key: epochs or shared_epochs(part) for key, part in runs.groupby(at)}),
    }
    for name in OF_KIND:
        usual[name] = (
            KIND,
            _most_frequent(runs, name, KIND) | _most_frequent(of_all, name, KIND),
        )
    differing = [column for column in IMAGES if runs[column].nunique(dropna=False) > 1]
    names = {run.key: _group_name(run, usual, differing) for run in runs.itertuples()}

    def place(run):
        return *style.rank(run.cell), len(names[run.key]), names[run.key]

    position = {run.key: n for n, run in enumerate(sorted(runs.itertuples(), key=place))}
    frame = frame.assign(group=frame["key"].map(names))
    return frame.sort_values("key", key=lambda keys: keys.map(position), kind="stable")


def _group_name(run, usual, differing):
    parts = [run.label]
    changes = changed(run.options)
    if repaired(run.options):
        parts.append("repaired")
        changes = [each for each in changes if each not in REPAIRED]
    parts += [change_name(*each) for each in changes]
    if run.initialisation != CellSpec().initialisation:
        parts.append(run.initialisation)
    parts += image_changes(run._asdict(), differing)
    for column, short in {**OF_ALL, **OF_KIND}.items():
        value, (by, most) = getattr(run, column), usual[column]
        if value != most.get(tuple(getattr(run, name) for name in by)):
            parts.append(f"{short} {value}" if isinstance(value, str) else f"{short} {value:g}")
    return ", ".join(parts)


def changed(options: str) -> list[tuple]:
    """What the options of a run (JSON) change, as (option, value), in the order of `CHANGES`; a
    list or mapping, which a user's own cell may ask for, as its text.
    """
    changes = [
        (option, json.dumps(value) if isinstance(value, list | dict) else value)
        for option, value in json.loads(options).items()
    ]
    return sorted(changes, key=lambda each: [*CHANGES, each].index(each))


def repaired(options: str) -> bool:
    """Whether the options of a run (JSON) hold all repairs of DaleCB."""
    return set(changed(options)) >= REPAIRED


def restepped(options: str) -> bool:
    """Whether the options of a run (JSON) change a time step."""
    return not STEPS.isdisjoint(dict(changed(options)))


def change_name(option, value) -> str:
    """One change in words."""
    name, _ = CHANGES.get((option, value), (f"{option.replace('_', ' ')} {value}", ""))
    return name


def meanings(ladder: Ladder, rungs: Rungs) -> str:
    """What the changes of a ladder do, in words."""
    ran = {change for options in rungs.runs["options"] for change in changed(options)}
    named = [CHANGES[change] for change in CHANGES if change in ran | set(ladder.changes)]
    return "; ".join(f"{name}: {meaning}" for name, meaning in named)


def image_changes(run, columns=tuple(IMAGES)) -> list[str]:
    """What a run changes of its images or their order, in words."""
    values = {column: run[column] for column in columns}
    return [IMAGES[column].format(v) for column, v in values.items() if pd.notna(v) and v]


def shared_epochs(runs: pd.DataFrame) -> int | None:
    """How long most runs of cells as they are were trained, in epochs, where as many seeds count of
    each cell and window as an interval needs; of two lengths that are equally common the longer.
    """
    as_they_are = runs[_unchanged(runs)]
    runs = as_they_are if len(as_they_are) else runs
    seeds = runs.groupby(["epochs", "cell", "window"])["seed"].nunique()
    counts = seeds.clip(upper=analysis.FEWEST).groupby("epochs").sum()
    return max(counts.index[counts == counts.max()], default=None)


def _unchanged(runs):
    """Which runs are of a cell with default options and initialisation, on whole images."""
    started = runs["initialisation"] == CellSpec().initialisation
    return _as_defined(runs) & started & ~_other_images(runs)


def _as_defined(runs):
    return (runs["options"] == "{}") & (runs["cell"] == runs["cell"].map(style.kin))


def _alike(runs, columns, asked=None):
    """The runs that share the most frequent value of every column, by default among all of them,
    else among those ``asked`` for (a mask).
    """
    asked = pd.Series(True, runs.index) if asked is None else asked
    for column in columns:
        values = runs[column].fillna(0)
        same = values == values[asked].mode().get(0)
        runs, asked = runs[same], asked[same]
    return runs


def _most_frequent(runs, column, by):
    """The most frequent value of a column for each value of ``by``; none where two are equally
    frequent.
    """
    counts = runs.value_counts([*by, column]).reset_index()
    most = counts[counts["count"] == counts.groupby(by)["count"].transform("max")]
    most = most.drop_duplicates(by, keep=False)
    return dict(zip(most[by].itertuples(index=False, name=None), most[column], strict=True))


def one(frame: pd.DataFrame, column: str):
    """The single value of a column; ValueError where a figure would mix several."""
    values = list(frame[column].drop_duplicates())
    if len(values) > 1:
        raise ValueError(
            f"This figure shows one {column}, but the frame holds {', '.join(map(str, values))}; "
            "filter it first."
        )
    return values[0]


def families(frame: pd.DataFrame) -> dict[str, list[str]]:
    """Family of cells (`style.FAMILIES`) -> its groups; families without any are left out."""
    groups = frame.drop_duplicates("group")
    family = groups["cell"].map(lambda cell: style.look(cell).family)
    return groups["group"].groupby(family).agg(list).reindex(style.FAMILIES).dropna().to_dict()


def differences(frame: pd.DataFrame, baseline, metric: str = "test_accuracy") -> pd.DataFrame:
    """The runs of the other groups with ``metric`` less the mean of their baseline at the same
    window; a column ``baseline`` names it.

    ``baseline`` is a cell or group, or maps every group to its own. ValueError: it has no run, or
    none at a window of the others.
    """
    frame = frame if "group" in frame else grouped(frame)
    if isinstance(baseline, str):
        own = frame[(frame["group"] == baseline) | (frame["cell"] == baseline)]
        if not len(own):
            known = ", ".join(frame["group"].unique())
            raise ValueError(
                f"The baseline {baseline!r} has no finished run here; choose one of {known}."
            )
        # Of several groups of the cell the plainest, which comes first.
        frame = frame.assign(baseline=own["group"].iat[0])
    else:
        frame = frame.assign(baseline=frame["group"].map(baseline))
    reference = frame.groupby(["group", "window"])[metric].mean().rename("reference")
    other = frame[frame["group"] != frame["baseline"]]
    other = other.join(reference, on=["baseline", "window"], how="inner")
    if not len(other):
        names = ", ".join(frame["baseline"].unique())
        raise ValueError(f"No other run shares its window with the baseline {names}.")
    return other.assign(**{metric: other[metric] - other["reference"]})


# ---- plain runs, variants, scans


def comparison(runs: pd.DataFrame, epochs: int | None = None) -> pd.DataFrame:
    """The runs that compare: one data set, default options, whole images and default initialisation
    where any run has them, one size, so many ``epochs`` if any ran so long, else the
    `shared_epochs`, and (by cell) one rate.

    Each is the most frequent value (of rates equally frequent the best on validation). Runs of a
    learning-rate scan (a seed that one cell and window ran at several rates) do not compare, nor
    does a user's own cell that is a variant of another or lacks a window which others ran.
    """
    runs = runs[runs["state"] == "DONE"]
    if not len(runs):
        raise ValueError(f"No finished run to export; {TRAIN}")
    runs = without_scan(runs)
    own = runs[_as_defined(runs)]
    plain = own[_unchanged(own)]
    runs = plain if len(plain) else _alike(own, [*IMAGES, "initialisation"])
    runs = _alike(runs, [*ALIKE, "hidden_size"])
    epochs = epochs if epochs in set(runs["epochs"]) else shared_epochs(runs)
    runs = _of_one_rate(runs[runs["epochs"] == epochs])
    if not len(runs):
        raise ValueError(
            "No finished run is of a cell with its default options; there is nothing to compare."
        )
    windows_run = runs.groupby("cell")["window"].transform("nunique")
    complete = windows_run == runs["window"].nunique()
    return grouped(runs[complete | runs["cell"].isin(style.ORDER)])


def _of_one_rate(runs, kind=("cell", "options")):
    """Each kind of run in one version and at one rate, the best on validation of those that three
    seeds ran, else the most frequent.
    """
    kind, chosen = list(kind), ["source", "learning_rate"]
    found = runs.groupby([*kind, *chosen])["validation_accuracy"].agg(["size", "mean"])
    found["size"] = found["size"].clip(upper=analysis.FEWEST)
    best = found.sort_values(["size", "mean"]).reset_index().drop_duplicates(kind, keep="last")
    return runs.merge(best[[*kind, *chosen]])


def headline(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs `at_main_window` and, beside each cell, its repaired form where it ran."""
    main = at_main_window(runs).drop(columns="group")
    like = main.iloc[0]
    others = runs[(runs["state"] == "DONE") & ~scanned(runs) & ~_other_images(runs)]
    others = _as(like, others, [*ALIKE, "window", "hidden_size", "initialisation", "epochs"])
    beside = _repaired_alone(others) & others["cell"].isin(main["cell"])
    return grouped(pd.concat([main, _of_one_rate(others[beside])]))


def growth(runs: pd.DataFrame) -> pd.DataFrame | None:
    """Runs at the main window of the kinds, plain and repaired, that were trained longest: all
    their lengths, each at the rate `chosen` for it, with ``group`` the kind; None where there is
    one.
    """
    like = at_main_window(runs).iloc[0]
    runs = runs[(runs["state"] == "DONE") & ~_other_images(runs) & chosen(runs)]
    runs = _as(like, runs, [*ALIKE, "window", "hidden_size", "initialisation"])
    runs = runs[_as_defined(runs) | _repaired_alone(runs)]
    if runs["epochs"].nunique() < 2:
        return None
    longest = runs.loc[runs["epochs"] == runs["epochs"].max(), ["cell", "options"]]
    runs = _of_one_rate(runs.merge(longest.drop_duplicates()), ("cell", "options", "epochs"))
    runs = runs.sort_values("epochs", kind="stable")
    kinds = grouped(runs.assign(epochs=like["epochs"], learning_rate=0), like["epochs"])
    return kinds[["key", "group"]].merge(runs) if runs["epochs"].nunique() > 1 else None


def _as(like, runs, columns):
    """The runs that have every one of the columns as one run has it."""
    return runs[(runs[columns] == like[columns]).all(axis=1)]


def _repaired_alone(runs):
    return runs["options"].map(lambda text: set(changed(text)) == REPAIRED).astype(bool)


def rungs(runs: pd.DataFrame, ladder: Ladder) -> Rungs | None:
    """The rungs of a ladder that ran, at their most frequent number of epochs; None where none did.

    Panels: the changes *added* up in their order ("a ... c" where b did not run on its own); each
    *alone*, a cell named after the first one too; all but one (*without*), where all of them make
    another cell; and *other cells* with all of them, each from itself without any.
    """
    done = (runs["state"] == "DONE") & (runs["initialisation"] == ladder.initialisation)
    runs = runs[done & ~_other_images(runs)]
    of_ladder = runs["cell"].isin(ladder.cells) & runs["options"].map(_on_ladder).astype(bool)
    if not of_ladder.any():
        return None
    runs = _alike(runs, [*ALIKE, "window", "hidden_size", "epochs"], of_ladder)
    scan = scanned(runs)
    chose = scan & runs["cell"].isin([*ladder.cells, ladder.end])  # the rates of some rung
    runs = runs[~scan & ~runs["seed"].isin(runs.loc[chose, "seed"])]
    if not len(runs):
        return None
    runs = grouped(_of_one_rate(runs))
    groups = {}
    for run in runs.drop_duplicates("group").itertuples():
        cell = ladder.cells[0] if run.cell in ladder.cells else run.cell
        groups.setdefault((cell, frozenset(changed(run.options))), run.group)
    steps, skipped = [], []
    for panel, label, kind, reference in _steps(ladder, groups):
        skipped = skipped if panel == "added" else []
        if kind in groups and reference in groups:
            label = f"{skipped[0]} ... {label}" if skipped else label
            steps.append((panel, label, groups[kind], groups[reference]))
            skipped = []
        else:
            skipped.append(label)
    steps = pd.DataFrame(steps, columns=["panel", "label", "group", "reference"])
    plain = [(of, frozenset()) for of in (ladder.cells[0], ladder.end)]
    ends = [groups[kind] for kind in plain if kind in groups]
    shown = runs["group"].isin([*ends, *steps["group"], *steps["reference"]])
    return Rungs(runs[shown], steps, ends) if len(steps) else None


def ladders(runs: pd.DataFrame) -> dict[str, tuple[Ladder, Rungs]]:
    """The `LADDERS` of which any rung ran, by name, with their `rungs`."""
    made = {name: (item, rungs(runs, item)) for name, item in LADDERS.items()}
    return {name: (item, ran) for name, (item, ran) in made.items() if ran is not None}


def _steps(ladder, ran):
    """(panel, label, kind, reference) of every rung; a kind is a cell and its changes."""
    plain = frozenset()
    cell, all_of_them = ladder.cells[0], frozenset(ladder.changes)
    start, end = (cell, plain), (ladder.end, plain)
    for number, change in enumerate(ladder.changes, 1):
        last = ladder.end is not None and number == len(ladder.changes)
        kind = end if last else (cell, frozenset(ladder.changes[:number]))
        yield "added", change_name(*change), kind, start
    alone = [next(iter(changes)) for of, changes in ran if of == cell and len(changes) == 1]
    for change in sorted(alone, key=lambda each: [*CHANGES, each].index(each)):
        yield "alone", change_name(*change), (cell, frozenset({change})), start
    others = sorted({of for of, _ in ran} - {cell}, key=style.rank)
    for other in others:
        if style.kin(other) == cell and (other, plain) in ran:
            yield "alone", ran[other, plain].split(", ")[-1], (other, plain), start
    for change in ladder.changes if ladder.end else ():
        kind = (cell, all_of_them - {change})
        yield "without", change_name(*change), kind, end
    for other in others:
        yield "other cells", style.look(other).label, (other, all_of_them), (other, plain)


def plain(frame: pd.DataFrame) -> pd.Series:
    """Which rows of `grouped` runs or curves are of built-in cells as they are."""
    return (frame["group"] == frame["label"]) & frame["cell"].isin(style.ORDER)


def main_window(runs: pd.DataFrame) -> str:
    """8/4 where it was run, else the window with the most runs."""
    return WINDOW if WINDOW in set(runs["window"]) else runs["window"].mode()[0]


def at_main_window(runs: pd.DataFrame) -> pd.DataFrame:
    """The cells of the `comparison` at its main window alone, where they may share a longer
    training.
    """
    every = comparison(runs)
    same = (runs["dataset"] == every["dataset"].iat[0]) & runs["cell"].isin(every["cell"])
    return comparison(runs[same & (runs["window"] == main_window(every))])


def variants(runs: pd.DataFrame) -> dict[str, Variants]:
    """Runs at the main window that differ in something from the comparison of their length, by the
    question that they answer: a key of `VARIANTS`; questions without a run are left out.

    A user's cell counts as a variant of the one it is named after. The learning-rate scan, rungs of
    ladders, other lengths of training (`growth`) and runs that share no seed with the plain ones
    are left out. A variant that was given more seeds than most of its question, after a look at
    these, is judged on the fresh ones alone.
    """
    others = runs[
        (runs["state"] == "DONE") & ~scanned(runs) & ~runs["options"].map(_on_ladder).astype(bool)
    ]
    length = others.loc[~_unchanged(others), "epochs"].mode().get(0)
    main, longest = comparison(runs, length), at_main_window(runs)
    found = _variants(others, main)
    if longest["epochs"].iat[0] > main["epochs"].iat[0]:
        longer = _variants(others, longest)
        found |= {"longer": longer["equation"]} if "equation" in longer else {}
    clipping = _otherwise_clipped(runs)
    return found | ({"clipping": clipping} if clipping else {})


def _otherwise_clipped(runs):
    """Kinds that were trained at several bounds of the gradient norm, at one rate; None where there
    are none.
    """
    runs = runs[(runs["state"] == "DONE") & ~scanned(runs)].reset_index(drop=True)
    other = runs["clip_norm"] != runs["clip_norm"].mode().get(0)
    alike = [name for name in SETTING if name != "clip_norm"]
    alike += ["cell", "source", "options", "epochs", "learning_rate"]
    kind = runs.groupby(alike, dropna=False).ngroup()
    both = kind.isin(kind[other]) & kind.isin(kind[~other])
    if not both.any():
        return None
    shown = grouped(runs[both].assign(kind=kind, other=other))
    own = shown[~shown["other"]].groupby("kind")["group"].first()
    of = shown.groupby("group")["kind"].first().map(own)
    return Variants(shown.drop(columns=["kind", "other"]), of.to_dict())


def _variants(others, every):
    """`variants` among other runs of what all ``every`` of a `comparison` are."""
    every = every.drop(columns="group")
    main = every[every["window"] == main_window(every)]
    plain = main.iloc[0]
    others = _as(plain, others[~others["key"].isin(main["key"])], [*ALIKE, "window", "epochs"])
    seeds = pd.MultiIndex.from_frame(main[["cell", "seed"]])
    own = pd.MultiIndex.from_arrays([others["cell"].map(style.kin), others["seed"]])
    others = others[own.isin(seeds)]
    question = pd.Series("equation", others.index)
    question[others["options"].map(restepped).astype(bool)] = "steps"
    question[others["initialisation"] != plain["initialisation"]] = "initialisation"
    question[others["hidden_size"] != plain["hidden_size"]] = "size"
    question[_other_images(others)] = "tasks"
    asked = [name for name in VARIANTS if (question == name).any()]
    return {name: _beside(main, others[question == name]) for name in asked}


def across_windows(runs: pd.DataFrame) -> pd.DataFrame:
    """Of the `comparison`, the runs of cells that ran several windows."""
    every = comparison(runs)
    return every[every.groupby("cell")["window"].transform("nunique") > 1]


def designs(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Runs of the design W x STP as it is and repaired, by the name of their table of effects,
    where all its cells ran.
    """
    runs = runs[runs["cell"].isin(cells.DESIGN)]
    plain = runs["options"] == "{}"
    parts = {"effects": runs[plain], "repaired_effects": runs[~plain]}
    return {name: of for name, of in parts.items() if of["cell"].nunique() == len(cells.DESIGN)}


def delays(runs: pd.DataFrame) -> pd.DataFrame | None:
    """Runs of one window and length that wait before they answer, and those of the same kinds that
    do not, each at the rate chosen for it, where more seeds were run after a look at the first the
    fresh ones alone; None where none waits.

    Columns beside those of runs: ``group``, the kind (cell and options), and ``task``, the pixels
    of the delay and, where only some are read, the rows ("512"; "8 rows, 512").
    """
    runs = runs[(runs["state"] == "DONE") & ~scanned(runs)]
    waits = runs["delay"] > 0
    if not waits.any():
        return None
    runs = _alike(runs, [*ALIKE, "window", "hidden_size", "epochs"], waits)
    kind = ["cell", "options", "source", "initialisation"]
    kinds = runs.loc[runs["delay"] > 0, kind].drop_duplicates()
    runs = runs[~runs["permuted"].astype(bool) & runs["last_rows"].isna()].merge(kinds)
    rows = runs["first_rows"].map("{:g} rows, ".format, na_action="ignore").fillna("")
    runs = runs.assign(task=rows + runs["delay"].map("{:g}".format))
    runs = _of_one_rate(runs, ("cell", "options", "initialisation", "task"))
    runs = runs.sort_values(["first_rows", "delay"], na_position="first", kind="stable")
    alike = {"delay": 0, "first_rows": None, "learning_rate": 0}
    kinds = grouped(runs.assign(**alike))[["key", "group"]]
    runs = kinds.merge(runs, on="key")
    waits = runs[runs["delay"] > 0]
    return runs.drop(index=waits.index[_looked_at(waits, ["group", "task"])])


def _on_ladder(options):
    return not CHANGES.keys().isdisjoint(changed(options))


def _beside(main, others):
    plain = main[main["cell"].isin(others["cell"].map(style.kin))]
    both = pd.concat([plain, others], ignore_index=True)
    shown = grouped(both, main["epochs"].iat[0])
    shown = shown[~_looked_at(shown, ["group"], main["key"])]
    own = shown[shown["key"].isin(main["key"])].groupby("cell")["group"].first()
    cell = shown.groupby("group")["cell"].first()
    return Variants(shown, cell.map(style.kin).map(own).to_dict())


def _looked_at(runs, kind, without=()):
    """Which runs are of the seeds after which their kind was given more, `analysis.FEWEST` at
    least, when most kinds were not; runs whose key is in ``without`` say nothing of that.
    """
    kinds = runs.groupby(kind, sort=False).ngroup()
    varied = ~runs["key"].isin(without)
    having = kinds[varied].groupby(runs["seed"]).nunique()
    usual = runs["seed"].isin(having.index[2 * having > kinds[varied].nunique()])
    fresh = runs[varied & ~usual].groupby(kinds)["seed"].nunique()
    return usual & kinds.isin(fresh.index[fresh >= analysis.FEWEST])


def _other_images(runs):
    changed = [runs[column].notna() & (runs[column] != 0) for column in IMAGES]
    return pd.concat(changed, axis=1).any(axis=1)


def scanned(runs: pd.DataFrame) -> pd.Series:
    """Whether a run is of a learning-rate scan: a seed that one configuration ran at several
    rates.
    """
    same = runs.groupby([*SETTING, "cell", "source", "options", "epochs", "seed"], dropna=False)
    return same["learning_rate"].transform("nunique") > 1


def chosen(runs: pd.DataFrame) -> pd.Series:
    """Whether a run has the rate chosen for it: it is of no scan or, of the longest training, which
    is too long for a scan beforehand, at the rate that did best on validation of those that three
    seeds finished.
    """
    scan, longest = scanned(runs), runs.groupby(SETTING, dropna=False)["epochs"].transform("max")
    counts = scan & (runs["epochs"] == longest) & (runs["state"] == "DONE")
    kind = [runs[name] for name in (*SETTING, "cell", "options", "epochs")]
    of_rate = [*kind, runs["source"], runs["learning_rate"]]
    seeds = runs["seed"].where(counts).groupby(of_rate, dropna=False).transform("nunique")
    accuracy = runs["validation_accuracy"].where(counts & (seeds >= analysis.FEWEST))
    accuracy = accuracy.groupby(of_rate, dropna=False).transform("mean")
    best = accuracy.groupby(kind, dropna=False).transform("max")
    return ~scan | (counts & (accuracy == best))


def without_scan(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs without those of a learning-rate scan, unless there is nothing else at all: its seed
    chose the rate, so it must not count among those that compare.
    """
    compared = runs[~scanned(runs)]
    return compared if len(compared) else runs


def scan(runs: pd.DataFrame) -> pd.DataFrame:
    """The learning-rate scan of every kind of run, at its most frequent window and length; empty
    where none was run.
    """
    return _alike(runs[(runs["state"] == "DONE") & scanned(runs)], [*ALIKE, "window", "epochs"])


# ---- windows


def shapes(frame: pd.DataFrame) -> list[str]:
    """Windows of runs, by input length and stride."""
    return list(frame.sort_values(["input_length", "stride"])["window"].unique())


def window_columns(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """(convention, window) of every column of a figure: windows by stride convention and input
    length; 8/4 belongs to both.
    """
    shapes = frame[["input_length", "stride", "window"]].drop_duplicates()
    found = {FIXED: [], HALF: [], OTHER: []}
    for row in shapes.sort_values(["input_length", "stride"]).itertuples():
        for name in windows.conventions(row.input_length, row.stride) or (OTHER,):
            found[CONVENTIONS.get(name, OTHER)].append(row.window)
    if set(found[HALF]) <= set(found[FIXED]):  # one window of both conventions: say it once
        found[HALF] = []
    return [(title, window) for title, members in found.items() for window in members]
