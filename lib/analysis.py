"""Statistics of the comparison, time constants and truncation: pure functions on tidy frames and
arrays.

The seed is the unit of replication, and seeds pair across cells. Frames have the columns of
`lib.runs.store`; results keep the unit of the values that went in (accuracies are fractions). Every
function refuses a seed that occurs twice where it should occur once, since windows or options
pooled by mistake would pass for replicates.
"""

import functools
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats
from scipy.special import gammaln
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from statsmodels.stats.multitest import multipletests
from threadpoolctl import threadpool_limits

from lib import cells

BOOTSTRAP_FROM = 10  # seeds
RESAMPLES = 2000
RESOLUTION = 1e-12  # values closer than this are equal: their spread is rounding


class Interval(NamedTuple):
    """Mean and 95 % interval; ``low`` and ``high`` are NaN where one value gives no interval."""

    mean: float
    low: float
    high: float


class Contrast(NamedTuple):
    """A comparison ``cell - reference`` that was planned before the results were seen."""

    name: str
    cell: str
    reference: str
    isolates: str  # what differs, all of it


PLANNED = (
    Contrast(
        "positivity",
        "cb",
        "cb_gru",
        "K and P_z positive instead of free, and how they are initialised",
    ),
    Contrast(
        "voltage",
        "cb_gru",
        "simple_gru",
        "voltage against rate equation: drive scaled by dt instead of z, and unbounded; gate at most dt, with long initial time constants; "
        "v read out instead of r",
    ),
    Contrast(
        "reversal",
        "dale_cb",
        "dale",
        "W tied to the gate's K by reversal potentials, W = v (K + C), instead of independent of it",
    ),
    Contrast(
        "sign",
        "dale",
        "cb",
        "W under Dale's signs, log-normal; also, only the excitatory units are read out",
    ),
    Contrast(
        "gate",
        "cb",
        "rnn",
        "the gate; also a leaky voltage driven by dt, sigmoid instead of tanh, v read out instead of h, about twice the weights",
    ),
)


# --- one sample: intervals


def interval(values) -> Interval:
    """Mean and 95 % interval of one value per seed: Student's t below 10 seeds, from 10 the
    studentised bootstrap (bootstrap-t).

    Coverage at n = 10, of normal and of exponential values, in a simulation: percentile bootstrap
    90 and 87 %, BCa 89 and 88 %, Student t 94 and 90 %, bootstrap-t 94 and 94 % (Hall 1988). The
    random state is fixed. One value gives no interval; equal values one of no width.
    """
    values = np.sort(
        np.asarray(values, dtype=float)
    )  # the order of the runs in a frame must not show in the last digits
    n = len(values)
    mean = float(values.mean()) if n else np.nan
    if n < 2:
        return Interval(mean, np.nan, np.nan)
    if np.ptp(values) <= RESOLUTION:
        return Interval(mean, mean, mean)
    ends = (0.975, 0.025)
    if n < BOOTSTRAP_FROM:
        quantiles = stats.t.ppf(ends, n - 1)
    else:
        resamples = values[_resamples(n)]
        errors = resamples.std(1, ddof=1) / np.sqrt(n)
        quantiles = np.quantile(
            (resamples.mean(1) - mean) / np.where(errors > 0, errors, np.inf), ends
        )
    low, high = mean - values.std(ddof=1) / np.sqrt(n) * quantiles
    return Interval(mean, float(low), float(high))


@functools.cache
def _resamples(n):
    return np.random.default_rng(0).integers(n, size=(RESAMPLES, n))


def summarise(frame: pd.DataFrame, by, value: str = "test_accuracy") -> pd.DataFrame:
    """Mean and interval over seeds for every group.

    Parameters
    ----------
    frame : DataFrame
        A column for each name in ``by``, ``seed`` and ``value``.
    by : str or list of str
        All that tells groups apart, for example ``["cell", "window"]``, or ``["cell", "epoch"]``
        for curves.

    Returns
    -------
    DataFrame
        ``by``, n, missing (seeds whose value is NaN, as of a diverged run; they do not enter the
        mean), mean, sd, low, high, method.

    Raises
    ------
    ValueError
        A column is missing, or a seed occurs twice in a group.
    """
    by, rows = _names(by), []
    _check(frame, by, value)
    for labels, part in frame.groupby(by, sort=False, dropna=False, observed=True)[value]:
        values = np.sort(part.dropna().to_numpy(float))
        mean, low, high = interval(values)
        method = (
            "none"
            if len(values) < 2
            else "Student t"
            if len(values) < BOOTSTRAP_FROM
            else "bootstrap"
        )
        sd = values.std(ddof=1) if len(values) > 1 else np.nan
        rows.append((*labels, len(values), len(part) - len(values), mean, sd, low, high, method))
    return pd.DataFrame(rows, columns=[*by, "n", "missing", "mean", "sd", "low", "high", "method"])


# --- paired comparisons


def contrasts(frame, pairs=PLANNED, by=(), value="test_accuracy", factor="cell") -> pd.DataFrame:
    """Paired differences over the seeds that both members of a pair share, for every pair and
    group.

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

    Returns
    -------
    DataFrame
        One row per group and pair: ``by``, contrast, ``factor``, reference, n (shared seeds; 0 if
        never run), mean, low, high (of the difference), hedges_g (mean / sd of the differences,
        corrected for small n), t, p (paired t-test), p_holm. What is undefined is NaN: interval and
        test for one seed, effect and test for differences without spread, hedges_g for two seeds.
    """
    by = _names(by)
    samples = []
    for group, wide in _wide(frame, by, factor, value):
        for pair in pairs:
            name, level, reference = (
                pair[:3] if len(pair) > 2 else (f"{pair[0]} - {pair[1]}", *pair)
            )
            known = level in wide and reference in wide
            difference = (wide[level] - wide[reference]).dropna() if known else ()
            samples.append(
                ({**group, "contrast": name, factor: level, "reference": reference}, difference)
            )
    return _tests(samples)


def differences(frame, baseline: str, by=(), value="test_accuracy", factor="cell") -> pd.DataFrame:
    """`contrasts` of every other level of ``factor`` with one chosen ``baseline``.

    Raises
    ------
    ValueError
        The baseline was not run.
    """
    levels = list(frame[factor].unique())
    if baseline not in levels:
        raise ValueError(
            f"The baseline {baseline!r} has no runs here; choose one of {', '.join(map(str, levels))}, or run it."
        )
    return contrasts(
        frame, [(level, baseline) for level in levels if level != baseline], by, value, factor
    )


def two_way(frame, by=(), value="test_accuracy") -> pd.DataFrame:
    """Effects of W (free, sign, reversal) x STP (no, yes) over the six cells `design`.

    Each effect is a contrast of the six values of one seed, so that its interval needs no
    assumption but that seeds are independent. Main effects average over the other factor; an
    interaction says by how much STP changes an effect of W. Main effects and interactions are two
    families.

    Returns
    -------
    DataFrame
        As `contrasts`, with columns effect and kind ("main", "interaction"); n counts the seeds
        that ran all six cells.
    """
    names = {(cells.get(name).weights, cells.get(name).stp): name for name in cells.DESIGN}
    main = {"STP: yes - no": {name: (1 if stp else -1) / 3 for (_, stp), name in names.items()}}
    interaction = {}
    for a, b in (("sign", "free"), ("reversal", "free"), ("reversal", "sign")):
        signs = {(a, False): 1, (a, True): 1, (b, False): -1, (b, True): -1}
        main[f"W: {a} - {b}"] = {names[key]: sign / 2 for key, sign in signs.items()}
        interaction[f"({a} - {b}) x STP"] = {
            names[key]: sign if key[1] else -sign for key, sign in signs.items()
        }
    groups = [
        (group, wide.reindex(columns=list(cells.DESIGN)).dropna())
        for group, wide in _wide(frame, _names(by), "cell", value)
    ]
    tables = []
    for kind, effects in (("main", main), ("interaction", interaction)):
        weights = pd.DataFrame(effects).reindex(cells.DESIGN).fillna(0.0)
        samples = [
            ({**group, "kind": kind, "effect": name}, (wide @ weights)[name])
            for group, wide in groups
            for name in weights
        ]
        tables.append(_tests(samples))
    return pd.concat(tables, ignore_index=True)


def trend(frame, on=("input_length", "overlap"), by="cell", value="test_accuracy") -> pd.DataFrame:
    """Linear trend with the window, a slope per seed and then an interval over seeds.

    Per seed, by least squares: value = a + b log2(input_length) + c overlap, with overlap = 1 -
    stride / input_length; ``b`` is per doubling of the input length, ``c`` from no overlap (0) to
    full (1). Both also change the sequence length, which is not told apart.

    Parameters
    ----------
    on : tuple of {"input_length", "overlap"}
        Predictors. Give one alone for windows of one convention, in which they cannot be told
        apart.

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
        samples += [
            ({**group, "trend": name}, slope) for name, slope in zip(on, slopes, strict=True)
        ]
    return _tests(samples)


def last_epoch_slope(
    curves, by=("cell", "window", "seed"), value="validation_accuracy"
) -> pd.DataFrame:
    """Least-squares slope of each run's curve over its last epoch, per epoch: how far from finished
    the training was.

    The cosine schedule has lowered the learning rate to 0 by then, so that a slope of 0 does not
    show that longer training is useless.

    Returns
    -------
    DataFrame
        ``by``, slope (NaN with fewer than two validations in that epoch); `summarise` turns it into
        intervals.
    """

    def slope(run):
        last = run[run["epoch"] >= run["epoch"].max() - 1 - 1e-9].dropna(subset=[value])
        return (
            stats.linregress(last["epoch"], last[value]).slope
            if last["epoch"].nunique() > 1
            else np.nan
        )

    by = _names(by)
    if curves.duplicated([*by, "epoch"]).any():
        raise ValueError(
            f"Several curves share {', '.join(by)}; add the column that tells them apart."
        )
    groups = curves.groupby(by, sort=False, dropna=False, observed=True)
    return groups[["epoch", value]].apply(slope).rename("slope").reset_index()


def _tests(samples):
    """Frame of intervals, effects and paired t-tests: one row per (labels, one value per seed),
    corrected as one family.
    """
    rows = []
    for labels, sample in samples:
        values = np.sort(np.asarray(sample, float))  # as in `interval`
        n, row = len(values), dict.fromkeys(("hedges_g", "t", "p"), np.nan)
        if n > 1 and np.ptp(values) > RESOLUTION:
            row["t"], row["p"] = stats.ttest_1samp(values, 0)
            small = (
                np.exp(gammaln((n - 1) / 2) - gammaln((n - 2) / 2)) / np.sqrt((n - 1) / 2)
                if n > 2
                else np.nan
            )  # Hedges 1981, exact
            row["hedges_g"] = small * values.mean() / values.std(ddof=1)
        rows.append({**labels, "n": n, **interval(values)._asdict(), **row, "p_holm": np.nan})
    table = pd.DataFrame(rows)
    tested = table["p"].notna()
    if tested.any():
        table.loc[tested, "p_holm"] = multipletests(table.loc[tested, "p"], method="holm")[1]
    return table


def _names(columns):
    return [columns] if isinstance(columns, str) else list(columns)


def _check(frame, columns, value):
    lacking = [name for name in (*columns, "seed", value) if name not in frame]
    if lacking:
        raise ValueError(
            f"The frame has no column {', '.join(map(repr, lacking))}; it has {', '.join(map(str, frame.columns))}."
        )
    twice = frame[frame.duplicated([*columns, "seed"])]
    if len(twice):
        where = ", ".join(f"{name} {twice[name].iloc[0]}" for name in (*columns, "seed"))
        raise ValueError(
            f"Several runs share {where}, so they are no replicates; group by, or select, the column that tells them apart."
        )


def _wide(frame, by, factor, value):
    """For every group: its labels, and a table seed x level of the factor."""
    _check(frame, [*by, factor], value)
    groups = frame.groupby(by, sort=False, dropna=False, observed=True) if by else [((), frame)]
    return [
        (dict(zip(by, key, strict=True)), part.pivot(index="seed", columns=factor, values=value))
        for key, part in groups
    ]


# --- recorded variables


def time_constant(z, stride: int = 1) -> np.ndarray:
    """tau = -1 / ln(1 - z): steps over which a gate forgets, times ``stride`` for pixels
    (`cells.md`, what a recording holds).

    ``z`` is the fraction of the state that one step replaces, any shape; 0 gives infinity, 1 gives
    0.

    Raises
    ------
    ValueError
        A ``z`` is outside 0..1.
    """
    z = np.asarray(z, dtype=float)
    if np.any((z < 0) | (z > 1)):
        raise ValueError(
            f"z ranges from {np.nanmin(z):g} to {np.nanmax(z):g}, but is a fraction; give the recorded z, not its logit."
        )
    with np.errstate(divide="ignore"):
        return -stride / np.log1p(-z)


def truncate(x: torch.Tensor, first: int | None = None, last: int | None = None) -> torch.Tensor:
    """Only the first or only the last steps of sequences ``(batch, time, features)``."""
    if (first is None) == (last is None):
        raise ValueError("Give either first or last, the number of steps to keep.")
    k, name = (first, "first") if last is None else (last, "last")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= x.shape[-2]:
        raise ValueError(
            f"{name} is {k!r}, but the sequence has {x.shape[-2]} steps; choose 1 to {x.shape[-2]}."
        )
    return x[..., :k, :] if last is None else x[..., -k:, :]


def delay(x: torch.Tensor, steps: int, seed: int = 0) -> torch.Tensor:
    """Sequences ``(batch, time, features)`` followed by ``steps`` of standard normal noise, drawn
    on the CPU: the same on every device.
    """
    noise = torch.randn(
        *x.shape[:-2],
        steps,
        x.shape[-1],
        generator=torch.Generator().manual_seed(seed),
        dtype=x.dtype,
    )
    return torch.cat((x, noise.to(x.device)), dim=-2)


def refitted_accuracy(train_states, train_labels, test_states, test_labels) -> float:
    """Accuracy, 0..1, of a linear read-out (logistic regression) fitted anew on frozen states ``(n,
    hidden)``, tested on others.

    A truncated sequence leaves the state where the trained read-out never saw it, so that its own
    accuracy mixes forgetting with a shift.
    """
    readout = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with threadpool_limits(
        1
        # so small a fit takes fifteen times as long when the threads of BLAS and of torch wait for each
        # other
    ):
        readout.fit(np.asarray(train_states), np.asarray(train_labels))
        return readout.score(np.asarray(test_states), np.asarray(test_labels))
