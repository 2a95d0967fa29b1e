"""Statistics of the comparison, a linear reference, time constants and delays: pure functions on
tidy frames and arrays, which keep the unit of the values that went in.

Seeds and test images are both drawn by chance: `accuracies`, `comparisons` and `effects` count
both where `correctness` gives them the answers, seeds alone where `of_seeds` gives them values, as
`interval` and `summarise` do. A seed that occurs twice in a group is refused: windows or options
pooled by mistake would pass for replicates.
"""

import copy
import functools
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import special, stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from lib import cells

FEWEST = 3  # seeds of a group; with fewer it is shown as dots, and nothing is inferred
LEVEL = 0.05
DRAWS = 2**15  # of the joint distribution of a family
RESOLUTION = 1e-12  # values closer than this are equal: their spread is rounding


class Interval(NamedTuple):
    """Mean and 95 % interval; ``low`` and ``high`` are NaN where one value gives no interval."""

    mean: float
    low: float
    high: float


class Contrast(NamedTuple):
    """A comparison ``cell - reference``."""

    name: str
    cell: str
    reference: str
    isolates: str  # what differs, all of it


PLANNED = (  # before any result was seen
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
        "voltage against rate equation: drive scaled by dt instead of z, and unbounded; gate at "
        "most dt, with long initial time constants; v read out instead of r",
    ),
    Contrast(
        "reversal",
        "dale_cb",
        "dale",
        "W tied to the gate's K by reversal potentials, W = v (K + C), instead of independent of "
        "it",
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
        "the gate; also a leaky voltage driven by dt, sigmoid instead of tanh, v read out instead "
        "of h, about twice the weights",
    ),
)
# Among repaired cells, whose rate equation is the simple GRU's: one constraint more.
CONSTRAINTS = (
    Contrast("positivity", "cb", "simple_gru", "K positive; a voltage, unbounded and read out"),
    *(contrast for contrast in PLANNED if contrast.name in ("sign", "reversal")),
    Contrast("plasticity", "stp", "cb", "short-term plasticity, W free"),
    Contrast("plasticity_dale", "stp_dale_cb", "dale_cb", "short-term plasticity, Dale's law"),
)


# --- one sample: intervals


def interval(values) -> Interval:
    """Mean and Student's t 95 % interval of one value per seed.

    One or two values give no interval: that of two is 13 standard errors to either side. Equal
    values give one of no width.
    """
    # Sorted: the order of the runs in a frame must not show in the last digits.
    values = np.sort(np.asarray(values, dtype=float))
    n = len(values)
    mean = float(values.mean()) if n else np.nan
    if n < FEWEST:
        return Interval(mean, np.nan, np.nan)
    if np.ptp(values) <= RESOLUTION:
        return Interval(mean, mean, mean)
    half = stats.t.ppf(1 - LEVEL / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
    return Interval(mean, float(mean - half), float(mean + half))


def summarise(frame: pd.DataFrame, by, value: str = "test_accuracy") -> pd.DataFrame:
    """Mean and interval over seeds for every group of a frame with the columns ``by`` (all that
    tells groups apart), ``seed`` and ``value``.

    Returns
    -------
    DataFrame
        ``by``, n (seeds with a value), mean, low, high.

    Raises
    ------
    ValueError
        A column is missing, or a seed occurs twice in a group.
    """
    by, rows = _names(by), []
    _check(frame, by, value)
    for labels, part in frame.groupby(by, sort=False, dropna=False, observed=True)[value]:
        values = part.dropna()
        rows.append((*labels, len(values), *interval(values)))
    return pd.DataFrame(rows, columns=[*by, "n", "mean", "low", "high"])


# --- seeds and images
#
# Accuracy has two sources of chance. Seeds are drawn anew for every group and do not pair: a seed
# shares the order of batches, not the difficulty. Test images are the same for all and pair.


class _Means(NamedTuple):
    """Mean correctness of groups (k,), and what its variance is made of."""

    groups: list
    n: np.ndarray  # seeds
    mean: np.ndarray
    seeds: np.ndarray  # variance of the mean from seeds, of the spread that the group shares
    pool: np.ndarray  # number of the pool of groups that share it
    freedom: np.ndarray  # degrees of freedom of that spread
    images: np.ndarray  # covariance of the means from images (k, k)
    images_freedom: int


def correctness(runs, predictions, by="cell") -> pd.DataFrame:
    """Whether each run was right on each test image.

    Parameters
    ----------
    runs : DataFrame
        key, seed and the columns ``by``; one row a finished run, all tested on the same images.
    predictions : DataFrame
        key, image, label, prediction, of these runs and perhaps of others.
    by : str or list of str
        All that tells groups apart; the rest of a group are its seeds.

    Returns
    -------
    DataFrame
        bool; a row for each run, with the index ``(*by, seed)``, and a column for each image.

    Raises
    ------
    ValueError
        A column is missing, a seed occurs twice in a group, a run has no predictions, or runs were
        tested on different images.
    """
    by = _names(by)
    _check(runs, by, "key")
    index, keys = pd.MultiIndex.from_frame(runs[[*by, "seed"]]), pd.Index(runs["key"])
    row = keys.get_indexer(predictions["key"])
    predictions, row = predictions[row >= 0], row[row >= 0]
    without = keys.delete(np.unique(row))
    if len(without):
        raise ValueError(
            f"Run {without[0]} has no predictions here; give those of every run, and leave out "
            "runs that diverged: they have none."
        )
    images, column = np.unique(predictions["image"], return_inverse=True)
    label = predictions["label"].to_numpy()
    shared = np.zeros(len(images), dtype=label.dtype)
    shared[column] = label
    correct = np.zeros((len(keys), len(images)), dtype=bool)
    correct[row, column] = True
    if len(row) != correct.size or not correct.all() or (shared[column] != label).any():
        raise ValueError(
            "The runs were tested on different images, so that images do not pair; compare the "
            "runs of one data set and split at a time."
        )
    correct[row, column] = label == predictions["prediction"].to_numpy()
    return pd.DataFrame(correct, index=index, columns=pd.Index(images, name="image"))


def of_seeds(frame, by="cell", value="test_accuracy") -> pd.DataFrame:
    """One value per seed, for `accuracies`, `comparisons` and `effects` over seeds alone: where no
    predictions are at hand, or ``value`` is no accuracy of the test set.

    As `correctness`, with two equal columns: images that do not vary add nothing. Runs whose value
    is NaN are left out.
    """
    by = _names(by)
    _check(frame, by, value)
    frame = frame.dropna(subset=[value])
    values = frame[value].to_numpy(float)
    index = pd.MultiIndex.from_frame(frame[[*by, "seed"]])
    return pd.DataFrame({0: values, 1: values}, index=index)


def accuracies(correct) -> pd.DataFrame:
    """Accuracy of every group with its own 95 % interval over seeds and test images.

    The variance of one group's mean over n seeds and m images is

        s^2 / n + (variance over images of the mean over seeds - r / n) / m,

    with s the runs' standard deviation (`pooled_spread`) and r the mean square of what is left of
    single answers without the effects of seed and image: ``r / n`` is the seeds' share of the
    variance over images, which s already holds (two-way random effects; Searle, Casella & McCulloch
    1992). Student's t with Satterthwaite's (1946) degrees of freedom, (sum V)^2 / sum(V^2 / f) over
    the parts V of the variance; there each part counts 1 + 2 / f times, as its square is too large
    by that on average, or seeds that agree by accident would claim the freedom of the images. Three
    seeds of one group then cover 92 to 96 % whatever the images' share.

    Parameters
    ----------
    correct : DataFrame
        Of `correctness`; less a fixed reference's answers (``correct - reference``) for the
        distance from it.

    Returns
    -------
    DataFrame
        One row a group: its labels, n (seeds), mean, low, high, freedom. One or two seeds carry no
        inference: low, high and freedom are NaN.
    """
    found = _means(correct)
    labels = [_tuple(group) for group in found.groups]
    sums = _sums(found, np.eye(len(labels)), simultaneous=False)
    columns = {"n": found.n, "mean": found.mean}
    columns |= {name: sums[name] for name in ("low", "high", "freedom")}
    return pd.DataFrame(labels, columns=correct.index.names[:-1]).assign(**columns)


def comparisons(correct, pairs) -> pd.DataFrame:
    """Differences between groups, over seeds that do not pair and images that do; one call is one
    family, and its 95 % intervals hold together.

    The variance of a difference of means over n_A and n_B seeds and m shared images is

        s_A^2 / n_A + s_B^2 / n_B
            + (variance over images of the difference - r_A / n_A - r_B / n_B) / m,

    as in `accuracies`; `effects` says how the intervals are made simultaneous.

    Parameters
    ----------
    correct : DataFrame
        Of `correctness`.
    pairs : sequence of (group, reference)
        Named in advance. Only the groups named here share a spread. Tuples where several columns
        tell groups apart.

    Returns
    -------
    DataFrame
        One row a pair: group, reference, n, n_reference (seeds), mean, error (standard error), low,
        high, freedom. NaN where either group has fewer than three seeds (0 if it never ran).
    """
    groups = list(dict.fromkeys(group for pair in pairs for group in pair))
    weights = np.zeros((len(groups), len(pairs)))
    for column, (group, reference) in enumerate(pairs):
        weights[groups.index(group), column] += 1
        weights[groups.index(reference), column] -= 1
    seeds, sums = _family(correct, groups, weights)
    seeds = dict(zip(groups, seeds, strict=True))
    frame = pd.DataFrame(pairs, columns=["group", "reference"])
    for name, column in (("n", "group"), ("n_reference", "reference")):
        frame[name] = [seeds[group] for group in frame[column]]
    return frame.assign(**sums)


def effects(correct, weights) -> pd.DataFrame:
    """Weighted sums of groups' accuracies, such as effects of W and STP or slopes over windows; one
    call is one family, and its 95 % intervals hold together.

    The variance of ``w @ means`` is the sum over groups of w^2 s^2 / n, plus ``w @ C @ w`` with C
    the groups' covariance over images, less the seeds' share on its diagonal.

    The intervals are ``mean +- t(1 - a / 2, freedom) error`` with the one level a at which all of
    them hold with 95 % under the joint distribution of the studentised sums (single-step; Hothorn,
    Bretz & Westfall 2008), whose correlation is that of the whole covariance. Where images add
    nothing and one spread is pooled this is Dunnett's (1955) or Tukey's and Kramer's (1956)
    interval. Errors of spreads that are not pooled are taken to be as large together as alone.

    Parameters
    ----------
    correct : DataFrame
        Of `correctness`.
    weights : DataFrame
        Index: groups, as in ``correct`` (tuples where several columns tell them apart); a column
        for each effect (`design_weights`). Only groups with a weight take part.

    Returns
    -------
    DataFrame
        Index: the effects. n (seeds of the group with the fewest), mean, error, low, high, freedom;
        NaN where a group has fewer than three seeds.
    """
    seeds, sums = _family(correct, list(weights.index), weights.to_numpy())
    n = np.where(weights.T != 0, seeds, seeds.max(initial=0)).min(axis=1)
    return pd.DataFrame({"n": n} | sums, index=weights.columns)


def design_weights() -> dict[str, pd.DataFrame]:
    """Weights (cells, effects) of W (free, sign, reversal) x STP (no, yes) over the six cells
    `cells.DESIGN`.

    Main effects average over the other factor; an interaction says by how much STP changes an
    effect of W. They are two families, "main" and "interaction".
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
    return {
        kind: pd.DataFrame(effects).reindex(cells.DESIGN).fillna(0.0)
        for kind, effects in (("main", main), ("interaction", interaction))
    }


def pooled_spread(variances, freedom):
    """Variances of groups, pooled unless a test of equal spread refuses it.

    Pooled, the spread of a few seeds neither rewards a group whose seeds agree by accident nor
    punishes one whose do not. Cochran's (1941) test in 't Lam's (2010) form for unequal groups
    takes out, one at a time, a group whose variance is too large for the rest: F of its variance
    against the others' pooled one, at 5 % over all groups (Bonferroni). It keeps its own.

    Parameters
    ----------
    variances, freedom : array (groups,)
        Over a group's seeds, and seeds - 1.

    Returns
    -------
    variances, freedom : array (groups,)
        Of the pool each group belongs to.
    pool : int array (groups,)
        Which groups share one.
    """
    variances, freedom = np.asarray(variances, float), np.asarray(freedom, float)
    together = np.arange(len(variances))
    while len(together) > 1:
        v, f = variances[together], freedom[together]
        others = f.sum() - f
        with np.errstate(divide="ignore", invalid="ignore"):  # without any spread all stay
            p = stats.f.sf(v / (((f * v).sum() - f * v) / others), f, others)
        if np.isnan(p).any() or p.min() * len(together) >= LEVEL:
            break
        together = np.delete(together, p.argmin())
    pool = np.arange(len(variances))
    pool[together] = together[:1]
    sums = np.bincount(pool, freedom * variances, len(pool)), np.bincount(pool, freedom, len(pool))
    return (sums[0] / np.maximum(sums[1], 1))[pool], sums[1][pool], pool


def _means(correct):
    code, names = pd.factorize(correct.index.droplevel("seed"))
    blocks = [correct.to_numpy()[code == i] for i in range(len(names))]
    m, n = correct.shape[1], np.array([len(block) for block in blocks], dtype=int)
    over_seeds = np.array([block.mean(axis=0) for block in blocks]).reshape(-1, m)
    own, residual = np.full(len(n), np.nan), np.zeros(len(n))
    for i in np.flatnonzero(n > 1):
        each = blocks[i].mean(axis=1)  # accuracy of every seed
        own[i] = each.var(ddof=1)
        left = np.sum(np.square(blocks[i], dtype=float)) + m * n[i] * each.mean() ** 2
        left -= m * np.sum(each**2) + n[i] * np.sum(over_seeds[i] ** 2)
        residual[i] = left / ((n[i] - 1) * (m - 1))
    told = n >= FEWEST
    spread, freedom, pool = np.full((3, len(n)), np.nan)
    spread[told], freedom[told], pool[told] = pooled_spread(own[told], n[told] - 1)
    mean = over_seeds.mean(axis=1)
    hard = over_seeds - mean[:, None]
    images = (hard @ hard.T / (m - 1) - np.diag(residual / n)) / m
    return _Means(list(names), n, mean, spread / n, pool, freedom, images, m - 1)


def _family(correct, groups, weights):
    """Seeds of each group, and the sums, of weights (groups, sums)."""
    used = (weights != 0).any(axis=1)
    named = [group for group, needed in zip(groups, used, strict=True) if needed]
    found = _means(correct[correct.index.droplevel("seed").isin(named)])
    ran = [groups.index(group) for group in found.groups]
    seeds = np.zeros(len(groups), dtype=int)
    seeds[ran] = found.n
    lacking = ((weights != 0) & (seeds == 0)[:, None]).any(axis=0)
    return seeds, _sums(found, weights[ran].T, simultaneous=True, lacking=lacking)


def _sums(found, weights, simultaneous, lacking=False):
    """The sums ``weights @ means``, weights (sums, groups), NaN where they are ``lacking`` a group
    that never ran: columns of a frame.
    """
    told = ~((weights != 0) & (found.n < FEWEST)).any(axis=1) & ~np.asarray(lacking)
    w, seeds, inferred = weights[told], np.nan_to_num(found.seeds), found.n >= FEWEST
    pools, first = np.unique(found.pool[inferred], return_index=True)
    parts = (w**2 * seeds) @ (found.pool[:, None] == pools)
    images = np.sum(w @ found.images * w, axis=1).clip(0)  # chance may take a little too much
    parts = np.column_stack((parts, images))
    of_part = np.append(found.freedom[inferred][first], found.images_freedom)
    variance = parts.sum(axis=1)
    counted = parts * (1 + 2 / of_part)  # see `accuracies`
    with np.errstate(invalid="ignore"):
        freedom = counted.sum(axis=1) ** 2 / np.sum(counted**2 / of_part, axis=1)
    error, level = np.sqrt(variance), LEVEL
    if simultaneous and len(w) > 1:
        level = _joint_level(w, np.diag(seeds) + found.images, freedom)
    half = np.where(variance > 0, special.stdtrit(freedom, 1 - level / 2) * error, 0)
    sums = {"mean": np.where(lacking, np.nan, weights @ found.mean)}
    mean = sums["mean"][told]
    inferences = {"error": error, "low": mean - half, "high": mean + half, "freedom": freedom}
    for name, values in inferences.items():
        sums[name] = np.full(len(weights), np.nan)
        sums[name][told] = values
    return sums


def _joint_level(weights, covariance, freedom):
    """The level a at which the intervals of the sums ``weights @ means`` all hold with 95 %, each
    studentised with its own degrees of freedom, NaN for a sum that does not vary.
    """
    size, direction = np.linalg.eigh(covariance)
    loads = weights @ (direction * np.sqrt(size.clip(0)))
    loads, freedom = loads[~np.isnan(freedom)], freedom[~np.isnan(freedom)]
    if not len(freedom):
        return LEVEL
    normal, uniform = _draws(loads.shape[1])
    z = normal @ (loads / np.linalg.norm(loads, axis=1, keepdims=True)).T
    t = z / np.sqrt(special.chdtri(freedom, uniform) / freedom)
    p = 2 * special.stdtr(freedom, -np.abs(t))
    return np.quantile(p.min(axis=1), LEVEL)


@functools.cache
def _draws(dimensions):
    """Normal values (draws, dimensions) and one uniform value (draws, 1) to each: quasi-random, so
    that levels are exact to about 0.001 and always the same.
    """
    uniform = stats.qmc.Sobol(dimensions + 1, rng=0).random(DRAWS)
    return special.ndtri(uniform[:, :-1]), uniform[:, -1:]


def _tuple(group):
    return group if isinstance(group, tuple) else (group,)


def _names(columns):
    return [columns] if isinstance(columns, str) else list(columns)


def _check(frame, columns, value):
    lacking = [name for name in (*columns, "seed", value) if name not in frame]
    if lacking:
        raise ValueError(
            f"The frame has no column {', '.join(map(repr, lacking))}; it has "
            f"{', '.join(map(str, frame.columns))}."
        )
    twice = frame[frame.duplicated([*columns, "seed"])]
    if len(twice):
        where = ", ".join(f"{name} {twice[name].iloc[0]}" for name in (*columns, "seed"))
        raise ValueError(
            f"Several runs share {where}, so they are no replicates; group by, or select, the "
            "column that tells them apart."
        )


# --- recorded variables


CLOSED = 1e-6  # the least z that is told from 0: a million steps are forever


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
            f"z ranges from {np.nanmin(z):g} to {np.nanmax(z):g}, but is a fraction; give the "
            "recorded z, not its logit."
        )
    with np.errstate(divide="ignore"):
        return -stride / np.log1p(-z)


def slowest_first(z) -> np.ndarray:
    """Order of the units of a conductance z, ``(time, units)`` in 0..1, by their mean time
    constant; a gate that is closed counts as nearly closed (`CLOSED`).
    """
    z = np.clip(np.asarray(z, np.float32), CLOSED, 1)
    return np.argsort(-time_constant(z).mean(0), kind="stable")


def delay(x: torch.Tensor, steps: int, seed: int = 0) -> torch.Tensor:
    """Sequences ``(batch, time, features)`` followed by ``steps`` of standard normal noise, drawn
    on the CPU: the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = *x.shape[:-2], steps, x.shape[-1]
    noise = torch.randn(shape, generator=generator, dtype=x.dtype)
    return torch.cat((x, noise.to(x.device)), dim=-2)


def refitted_accuracy(train_states, train_labels, test_states, test_labels) -> float:
    """Accuracy, 0..1, of a linear read-out (logistic regression) fitted anew on frozen states ``(n,
    hidden)``, tested on others.

    A truncated sequence leaves the state where the trained read-out never saw it, so that its own
    accuracy mixes forgetting with a shift.
    """
    readout = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    # So small a fit takes fifteen times as long when the threads of BLAS and of torch wait for each
    # other.
    with threadpool_limits(1):
        readout.fit(np.asarray(train_states), np.asarray(train_labels))
        return readout.score(np.asarray(test_states), np.asarray(test_labels))


# --- a reference without recurrence

PENALTIES = 10.0 ** np.arange(1, -5.5, -0.5)


def linear_softmax(data) -> dict:
    """Predictions of a linear softmax on the standardised pixels: what needs no recurrence.

    The weights minimise the mean cross-entropy on the training images plus ``penalty / 2`` times
    their squared norm, which has one minimum: there is no seed. ``penalty`` falls along `PENALTIES`
    until the validation accuracy has twice not risen, and the best is kept; the test set is read
    once, by the model kept.

    Parameters
    ----------
    data : Dataset
        Its images enter as the networks see them: each channel standardised.

    Returns
    -------
    dict
        Columns of predictions of the test set, as of a run: image, label, prediction, probability
        (of what is predicted).
    """
    split = {name: data.batch(name, torch.arange(len(data.labels[name]))) for name in data.labels}
    split = {name: (x.flatten(1).cpu().numpy(), y.cpu().numpy()) for name, (x, y) in split.items()}
    best, best_accuracy, since = None, -1.0, 0
    model = LogisticRegression(max_iter=5000, warm_start=True)
    with threadpool_limits(1):  # the same on every machine of a kind
        for penalty in PENALTIES:
            model.set_params(C=1 / (penalty * len(split["train"][1]))).fit(*split["train"])
            accuracy = model.score(*split["validation"])
            since += 1
            if accuracy > best_accuracy:
                best, best_accuracy, since = copy.deepcopy(model), accuracy, 0
            if since == 2:
                break
        x, label = split["test"]
        probabilities = best.predict_proba(x)
    prediction = best.classes_[probabilities.argmax(axis=1)]
    return {
        "image": np.arange(len(label)),
        "label": label,
        "prediction": prediction,
        "probability": probabilities.max(axis=1),
    }
