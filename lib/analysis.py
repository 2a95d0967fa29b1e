"""Statistics of the comparison, time constants and truncation: pure functions on tidy frames and arrays.

The seed is the unit of replication, and seeds pair across cells. Frames have the columns of `lib.store`; results keep the unit of the
values that went in (accuracies are fractions). Every function refuses a seed that occurs twice where it should occur once, since windows or
options pooled by mistake would pass for replicates.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats
from scipy.special import gammaln
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from statsmodels.stats.anova import AnovaRM
from statsmodels.stats.multitest import multipletests

from lib import cells

CONFIDENCE = 0.95
BOOTSTRAP_FROM = 10  # seeds; a percentile bootstrap covers about 75 % at n = 3 and 84 % at n = 5, where Student t keeps 95 %
RESOLUTION = 1e-12  # values closer than this are equal: their spread is rounding


class Interval(NamedTuple):
    """Mean and 95 % interval; ``low`` and ``high`` are NaN where one value gives no interval."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Contrast(NamedTuple):
    """A comparison ``cell - reference`` that was planned before the results were seen."""

    name: str
    cell: str
    reference: str
    isolates: str  # what differs, all of it


PLANNED = (
    Contrast("positivity", "cb", "cb_gru", "K and P_z positive instead of free, and how they are initialised"),
    Contrast(
        "voltage",
        "cb_gru",
        "simple_gru",
        "voltage against rate equation: drive scaled by dt instead of z, and unbounded; gate at most dt, with long initial time constants; "
        "v read out instead of r",
    ),
    Contrast("reversal", "dale_cb", "dale", "W tied to the gate's K by reversal potentials, W = v (K + C), instead of independent of it"),
    Contrast("sign", "dale", "cb", "W under Dale's signs, log-normal; also, only the excitatory units are read out"),
    Contrast(
        "gate",
        "cb",
        "rnn",
        "the gate; also a leaky voltage driven by dt, sigmoid instead of tanh, v read out instead of h, about twice the weights",
    ),
)


# --- one sample: intervals -------------------------------------------------------------------------------------------------------------


def interval(values) -> Interval:
    """Mean and 95 % interval over the last axis (one value per seed).

    Student t below 10 seeds; from 10 the bias-corrected bootstrap of the mean, with a fixed random state (on normal values it covers 90 %
    at n = 10 and 92 % at n = 20). One value gives no interval; equal values give one of no width.

    Parameters
    ----------
    values : array (..., n), without NaN

    Returns
    -------
    Interval of arrays (...,)
    """
    values = np.sort(np.asarray(values, dtype=float))  # the bootstrap depends on the order
    n = values.shape[-1]
    mean = values.mean(-1) if n else np.full(values.shape[:-1], np.nan)[()]
    if n < 2:
        return Interval(mean, mean * np.nan, mean * np.nan)
    same = np.ptp(values, axis=-1) <= RESOLUTION
    spread = values + np.where(same[..., None], np.arange(n), 0.0)  # scipy divides by the spread; such rows are overwritten below
    if n < BOOTSTRAP_FROM:
        low, high = stats.ttest_1samp(spread, 0, axis=-1).confidence_interval(CONFIDENCE)
    else:
        low, high = stats.bootstrap((spread,), _mean, axis=-1, confidence_level=CONFIDENCE, batch=500, rng=0).confidence_interval
    return Interval(mean, np.where(same, mean, low)[()], np.where(same, mean, high)[()])


def _mean(resamples, axis):
    """Contiguous, so that a group's bootstrap has the same bits alone and among others."""
    return np.ascontiguousarray(resamples).mean(axis)


def summarise(frame: pd.DataFrame, by, value: str = "test_accuracy") -> pd.DataFrame:
    """Mean and interval over seeds for every group.

    Parameters
    ----------
    frame : DataFrame
        A column for each name in ``by``, ``seed`` and ``value``.
    by : str or list of str
        All that tells groups apart, for example ``["cell", "window"]``, or ``["cell", "epoch"]`` for curves.

    Returns
    -------
    DataFrame
        ``by``, n, missing (seeds whose value is NaN, as of a diverged run; they do not enter the mean), mean, sd, low, high, method.

    Raises
    ------
    ValueError
        A column is missing, or a seed occurs twice in a group.
    """
    by = _names(by)
    _check(frame, by, value)
    groups = frame.groupby(by, sort=False, dropna=False, observed=True)[value]
    table = (
        groups.agg(n="count", missing="size").reset_index().assign(**dict.fromkeys(["mean", "sd", "low", "high"], np.nan), method="none")
    )
    table["missing"] -= table["n"]
    for n, rows, values in _by_size([v.dropna().to_numpy(float) for _, v in groups]):
        table.loc[rows, ["mean", "low", "high"]] = np.column_stack(interval(values))
        if n > 1:
            table.loc[rows, "sd"] = values.std(1, ddof=1)
            table.loc[rows, "method"] = "Student t" if n < BOOTSTRAP_FROM else "bootstrap"
    return table[[*by, "n", "missing", "mean", "sd", "low", "high", "method"]]


# --- paired comparisons ----------------------------------------------------------------------------------------------------------------


def contrasts(frame, pairs=PLANNED, by=(), value="test_accuracy", factor="cell", family="planned contrasts") -> pd.DataFrame:
    """Paired differences over the seeds that both members of a pair share, for every pair and group.

    One call is one family of comparisons: all its p values are corrected together (Holm).

    Parameters
    ----------
    frame : DataFrame
        Columns ``factor``, ``by``, ``seed``, ``value``.
    pairs : sequence of Contrast, or of (level, reference level)
        Named in advance.
    by : str or list of str
        Columns within which to compare, for example "window".
    factor : str
        Column whose levels are compared: "cell", or "initialisation", "hidden_size", ...
    family : str
        Its name, repeated in the result.

    Returns
    -------
    DataFrame
        One row per group and pair: ``by``, contrast, ``factor``, reference, n (shared seeds; 0 if never run), mean, low, high (of the
        difference), cohen_d (mean / sd of the differences), hedges_g (corrected for small n), t, p (paired t-test), p_holm, family. What is
        undefined is NaN: interval and test for one seed, effect and test for differences without spread, hedges_g for two seeds.
    """
    by = _names(by)
    samples = []
    for group, wide in _wide(frame, by, factor, value):
        for pair in pairs:
            name, level, reference = pair[:3] if len(pair) > 2 else (f"{pair[0]} - {pair[1]}", *pair)
            known = level in wide and reference in wide
            difference = (wide[level] - wide[reference]).dropna().to_numpy() if known else np.empty(0)
            samples.append(({**group, "contrast": name, factor: level, "reference": reference}, difference))
    return _tests(samples, family)


def differences(frame, baseline: str, by=(), value="test_accuracy", factor="cell", family=None) -> pd.DataFrame:
    """`contrasts` of every other level of ``factor`` with one chosen ``baseline``.

    Raises
    ------
    ValueError
        The baseline was not run.
    """
    levels = list(frame[factor].unique())
    if baseline not in levels:
        raise ValueError(f"The baseline {baseline!r} has no runs here; choose one of {', '.join(map(str, levels))}, or run it.")
    pairs = [(level, baseline) for level in levels if level != baseline]
    return contrasts(frame, pairs, by, value, factor, family or f"differences from {baseline}")


def two_way(frame, by=(), value="test_accuracy") -> pd.DataFrame:
    """Effects of W (free, sign, reversal) x STP (no, yes) over the six cells `design`.

    Each effect is a contrast of the six values of one seed, so that its interval needs no assumption but that seeds are independent.
    Main effects average over the other factor; an interaction says by how much STP changes an effect of W. Main effects and interactions
    are two families.

    Returns
    -------
    DataFrame
        As `contrasts`, with columns effect and kind ("main", "interaction"); n counts the seeds that ran all six cells.
    """
    names = {(cells.get(name).weights, cells.get(name).stp): name for name in cells.DESIGN}
    w_pairs = (("sign", "free"), ("reversal", "free"), ("reversal", "sign"))

    def weights(parts):
        return pd.Series({names[key]: weight for key, weight in parts.items()}).reindex(cells.DESIGN, fill_value=0.0)

    effects = {("main", "STP: yes - no"): weights({(w, s): (1 if s else -1) / 3 for w, s in names})}
    for a, b in w_pairs:
        effects["main", f"W: {a} - {b}"] = weights({(a, False): 0.5, (a, True): 0.5, (b, False): -0.5, (b, True): -0.5})
    for a, b in w_pairs:
        effects["interaction", f"({a} - {b}) x STP"] = weights({(a, True): 1, (a, False): -1, (b, True): -1, (b, False): 1})

    groups = [(group, _complete(wide, cells.DESIGN)) for group, wide in _wide(frame, _names(by), "cell", value)]
    tables = []
    for kind in ("main", "interaction"):
        samples = [
            ({**group, "kind": kind, "effect": name}, (wide @ weight).to_numpy())
            for group, wide in groups
            for (which, name), weight in effects.items()
            if which == kind
        ]
        tables.append(_tests(samples, f"W x STP, {kind} effects"))
    return pd.concat(tables, ignore_index=True)


def anova(frame, value="test_accuracy") -> pd.DataFrame:
    """Omnibus F tests of W, STP and W x STP within seeds (statsmodels' repeated-measures ANOVA, which assumes sphericity).

    Returns
    -------
    DataFrame
        effect ("W", "STP", "W x STP"), n, F, df, df_error, p; NaN where fewer than two seeds ran all six cells.
    """
    ((_, wide),) = _wide(frame, [], "cell", value)
    long = _complete(wide, cells.DESIGN).reset_index().melt("seed", var_name="cell", value_name="value")
    long["W"], long["STP"] = long["cell"].map(lambda c: cells.get(c).weights), long["cell"].map(lambda c: cells.get(c).stp)
    n, effects = long["seed"].nunique(), ["W", "STP", "W x STP"]
    if n < 2:
        return pd.DataFrame({"effect": effects, "n": n, "F": np.nan, "df": np.nan, "df_error": np.nan, "p": np.nan})
    table = AnovaRM(long, "value", "seed", within=["W", "STP"]).fit().anova_table
    table = table.set_axis(["F", "df", "df_error", "p"], axis=1).reset_index(drop=True)
    table.insert(0, "effect", effects)
    table.insert(1, "n", n)
    return table


def trend(frame, on=("input_length", "overlap"), by="cell", value="test_accuracy") -> pd.DataFrame:
    """Linear trend with the window, a slope per seed and then an interval over seeds.

    Per seed, by least squares: value = a + b log2(input_length) + c overlap, with overlap = 1 - stride / input_length; ``b`` is per
    doubling of the input length, ``c`` from no overlap (0) to full (1). Both also change the sequence length, which is not told apart.

    Parameters
    ----------
    on : tuple of {"input_length", "overlap"}
        Predictors. Give one alone for windows of one convention, in which they cannot be told apart.

    Returns
    -------
    DataFrame
        As `contrasts`, with a column trend; n counts the seeds that ran all windows of the group.

    Raises
    ------
    ValueError
        The windows of a group do not vary enough to tell the trends apart.
    """
    by, on = _names(by), _names(on)
    frame = frame.assign(shape=list(zip(frame["input_length"], frame["stride"], strict=True)))
    samples = []
    for group, wide in _wide(frame, by, "shape", value):
        length, stride = np.array(list(wide.columns), dtype=float).T
        predictors = {"input_length": np.log2(length), "overlap": 1 - stride / length}
        design = np.column_stack([np.ones_like(length), *(predictors[name] for name in on)])
        if np.linalg.matrix_rank(design) < design.shape[1]:
            windows = ", ".join(f"{a:g}/{b:g}" for a, b in zip(length, stride, strict=True))
            raise ValueError(
                f"The windows {windows} do not tell apart a trend on {' and on '.join(on)}; choose other windows or predictors."
            )
        slopes = np.linalg.lstsq(design, wide.dropna().to_numpy().T, rcond=None)[0][1:]
        samples += [({**group, "trend": name}, slope) for name, slope in zip(on, slopes, strict=True)]
    return _tests(samples, "trends")


def last_epoch_slope(curves, by=("cell", "window", "seed"), value="validation_accuracy") -> pd.DataFrame:
    """Least-squares slope of each run's curve over its last epoch, per epoch: how far from finished the training was.

    The cosine schedule has lowered the learning rate to 0 by then, so that a slope of 0 does not show that longer training is useless.

    Returns
    -------
    DataFrame
        ``by``, slope (NaN with fewer than two validations in that epoch); `summarise` turns it into intervals.
    """

    def slope(run):
        last = run[run["epoch"] >= run["epoch"].max() - 1 - 1e-9].dropna(subset=[value])
        return stats.linregress(last["epoch"], last[value]).slope if last["epoch"].nunique() > 1 else np.nan

    by = _names(by)
    if curves.duplicated([*by, "epoch"]).any():
        raise ValueError(f"Several curves share {', '.join(by)}; add the column that tells them apart.")
    groups = curves.groupby(by, sort=False, dropna=False, observed=True)
    return groups[["epoch", value]].apply(slope).rename("slope").reset_index()


def _tests(samples, family):
    """Frame of intervals, effects and paired t-tests: one row per (labels, one value per seed), corrected as one family."""
    columns = ["mean", "low", "high", "cohen_d", "hedges_g", "t", "p", "p_holm"]
    table = pd.DataFrame([labels for labels, _ in samples]).assign(
        n=[len(s) for _, s in samples], **dict.fromkeys(columns, np.nan), family=family
    )
    for n, rows, values in _by_size([sample for _, sample in samples]):
        table.loc[rows, ["mean", "low", "high"]] = np.column_stack(interval(values))
        spread = np.ptp(values, axis=1) > RESOLUTION if n > 1 else np.zeros(len(rows), bool)
        if spread.any():
            rows, values = rows[spread], values[spread]
            d = values.mean(1) / values.std(1, ddof=1)
            table.loc[rows, ["cohen_d", "hedges_g"]] = np.column_stack([d, d * _hedges(n - 1) if n > 2 else d * np.nan])
            table.loc[rows, ["t", "p"]] = np.column_stack(stats.ttest_1samp(values, 0, axis=1))
    tested = table["p"].notna()
    if tested.any():
        table.loc[tested, "p_holm"] = multipletests(table.loc[tested, "p"], method="holm")[1]
    return table


def _by_size(samples):
    """(n, rows, values (rows, n)) of the samples of each size: one call of scipy for all of them."""
    sizes = np.array([len(sample) for sample in samples], dtype=int)
    for n in np.unique(sizes):
        rows = np.flatnonzero(sizes == n)
        yield n, rows, np.sort([samples[row] for row in rows])  # the order of the runs in a frame must not show in the last digits


def _hedges(df):
    """Exact small-sample correction of Cohen's d (Hedges 1981)."""
    return np.exp(gammaln(df / 2) - gammaln((df - 1) / 2)) / np.sqrt(df / 2)


def _names(columns):
    return [columns] if isinstance(columns, str) else list(columns)


def _check(frame, columns, value):
    lacking = [name for name in (*columns, "seed", value) if name not in frame]
    if lacking:
        raise ValueError(f"The frame has no column {', '.join(map(repr, lacking))}; it has {', '.join(map(str, frame.columns))}.")
    twice = frame[frame.duplicated([*columns, "seed"])]
    if len(twice):
        where = ", ".join(f"{name} {twice[name].iloc[0]}" for name in (*columns, "seed"))
        raise ValueError(f"Several runs share {where}, so they are no replicates; group by, or select, the column that tells them apart.")


def _wide(frame, by, factor, value):
    """For every group: its labels, and a table seed x level of the factor."""
    _check(frame, [*by, factor], value)
    groups = frame.groupby(by, sort=False, dropna=False, observed=True) if by else [((), frame)]
    return [(dict(zip(by, key, strict=True)), part.pivot(index="seed", columns=factor, values=value)) for key, part in groups]


def _complete(wide, columns):
    return wide.reindex(columns=list(columns)).dropna()


# --- recorded variables ----------------------------------------------------------------------------------------------------------------


def time_constant(z, stride: int = 1) -> np.ndarray:
    """tau = -1 / ln(1 - z): steps over which a gate forgets, times ``stride`` for pixels (`cells.md`, what a recording holds).

    ``z`` is the fraction of the state that one step replaces, any shape; 0 gives infinity, 1 gives 0.

    Raises
    ------
    ValueError
        A ``z`` is outside 0..1.
    """
    z = np.asarray(z, dtype=float)
    if np.any((z < 0) | (z > 1)):
        raise ValueError(f"z ranges from {np.nanmin(z):g} to {np.nanmax(z):g}, but is a fraction; give the recorded z, not its logit.")
    with np.errstate(divide="ignore"):
        return -stride / np.log1p(-z)


def efficacy(trace) -> np.ndarray:
    """U . X of a recording that holds both, ``(batch, time, hidden)``: the fraction of W that short-term plasticity lets through."""
    return trace["U"] * trace["X"]


def truncate(x: torch.Tensor, first: int | None = None, last: int | None = None) -> torch.Tensor:
    """Only the first or only the last steps of sequences ``(batch, time, features)``."""
    if (first is None) == (last is None):
        raise ValueError("Give either first or last, the number of steps to keep.")
    k, name = (first, "first") if last is None else (last, "last")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= x.shape[-2]:
        raise ValueError(f"{name} is {k!r}, but the sequence has {x.shape[-2]} steps; choose 1 to {x.shape[-2]}.")
    return x[..., :k, :] if last is None else x[..., -k:, :]


def delay(x: torch.Tensor, steps: int, seed: int = 0) -> torch.Tensor:
    """Sequences ``(batch, time, features)`` followed by ``steps`` of standard normal noise, drawn on the CPU: the same on every device."""
    noise = torch.randn(*x.shape[:-2], steps, x.shape[-1], generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    return torch.cat((x, noise.to(x.device)), dim=-2)


def refitted_accuracy(train_states, train_labels, test_states, test_labels) -> float:
    """Accuracy of a linear read-out fitted anew on frozen states ``(n, hidden)``, tested on others.

    A truncated sequence leaves the state where the trained read-out never saw it, so that its own accuracy mixes forgetting with a shift.
    """
    readout = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return readout.fit(np.asarray(train_states), np.asarray(train_labels)).score(np.asarray(test_states), np.asarray(test_labels))
