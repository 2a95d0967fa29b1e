"""Statistics on simulated data whose truth is known: coverage, error rates, effects, trends; and
the small transforms.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from lib import analysis, cells


def simulated(levels, seeds, rng, shared=0.02, noise=0.01, **columns):
    """One run per cell and seed: the cell's true level, what a seed gives to all its cells, and
    noise.
    """
    common = rng.normal(0, shared, seeds)
    rows = [
        (cell, seed, level + common[seed] + rng.normal(0, noise))
        for cell, level in levels.items()
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows, columns=["cell", "seed", "test_accuracy"]).assign(**columns)


def true_within(low, high, truth):
    return np.mean((np.asarray(low) <= truth) & (truth <= np.asarray(high)))


# --- intervals


@pytest.mark.parametrize("n", [3, 5, 9, 10, 20])
def test_intervals_cover_the_truth(n):
    simulations = 3000
    _, low, high = zip(
        *map(analysis.interval, np.random.default_rng(n).normal(0.4, 0.02, (simulations, n))),
        strict=True,
    )
    assert 0.95 - 0.025 < true_within(low, high, 0.4) < 0.965


def test_t_interval_by_hand():
    mean, low, high = analysis.interval([0.40, 0.43, 0.46])
    half = 4.302653 * 0.03 / np.sqrt(3)  # t(0.975, df 2) from a table
    assert (mean, low, high) == pytest.approx((0.43, 0.43 - half, 0.43 + half), abs=1e-8)


@pytest.mark.parametrize("values", [[0.4, 0.5], [0.4], []])
def test_fewer_than_three_values_give_no_interval(values):
    found = analysis.interval(values)
    assert (
        np.isnan(found.low)
        and np.isnan(found.high)
        and np.array_equal(found.mean, np.mean(values) if values else np.nan, equal_nan=True)
    )


def test_equal_values_have_an_interval_of_no_width():
    assert len(set(analysis.interval([0.1 + 0.2, 0.3, 0.3]))) == 1


def test_summary_of_groups():
    rng = np.random.default_rng(1)
    frame = pd.concat(
        [
            simulated({"cb": 0.4, "gru": 0.5}, 4, rng, window="8/4", last_rows=None),
            simulated({"cb": 0.3}, 12, rng, window="4/4", last_rows=None),
            simulated({"cb": 0.2}, 1, rng, window="8/4", last_rows=8.0),
        ]
    ).sample(frac=1, random_state=0)
    frame.loc[(frame["cell"] == "gru") & (frame["seed"] == 1), "test_accuracy"] = (
        np.nan
    )  # a diverged run
    table = analysis.summarise(frame, ["cell", "window", "last_rows"]).set_index(["cell", "window"])
    assert len(table) == 4
    gru = table.loc[("gru", "8/4")]
    values = frame.loc[frame["cell"] == "gru", "test_accuracy"].dropna()
    assert gru["n"] == 3
    assert gru[["mean", "low", "high"]].tolist() == pytest.approx(list(analysis.interval(values)))
    assert table.loc[("cb", "4/4"), "n"] == 12
    alone = table[table["last_rows"] == 8.0].iloc[0]
    assert alone["n"] == 1 and np.isnan(alone["low"])


def test_results_do_not_depend_on_the_order_of_the_runs():
    frame = simulated({"cb": 0.4, "gru": 0.5, "rnn": 0.3}, 11, np.random.default_rng(4))
    shuffled = pd.concat(
        [part.sample(frac=1, random_state=1) for _, part in frame.groupby("cell", sort=False)]
    )
    found, expected = (analysis.summarise(runs, "cell") for runs in (shuffled, frame))
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


def test_summary_of_nothing_is_empty():
    assert analysis.summarise(pd.DataFrame(columns=["cell", "seed", "test_accuracy"]), "cell").empty


def test_pooled_windows_are_no_replicates():
    frame = pd.concat(
        [
            simulated({"cb": 0.4, "gru": 0.5}, 3, np.random.default_rng(0), window=w)
            for w in ("8/4", "4/4")
        ]
    )
    for call in (
        lambda: analysis.summarise(frame, "cell"),
        lambda: analysis.of_seeds(frame),
    ):
        with pytest.raises(ValueError, match=r"Several runs share cell (cb|gru), seed 0"):
            call()
    with pytest.raises(ValueError, match="no column 'windows'"):
        analysis.summarise(frame, ["cell", "windows"])


# --- planned contrasts


def test_planned_contrasts_name_known_cells():
    assert {name for contrast in analysis.PLANNED for name in contrast[1:3]} <= {
        *cells.ALL,
        *cells.DESIGN,
    }


# --- W x STP

TRUE = {
    "cb": 0.48,
    "dale": 0.42,
    "dale_cb": 0.40,
    "stp": 0.46,
    "stp_dale": 0.43,
    "stp_dale_cb": 0.41,
}
TRUE_EFFECTS = {
    "STP: yes - no": 0.0,
    "W: sign - free": -0.045,
    "W: reversal - free": -0.065,
    "W: reversal - sign": -0.02,
    "(sign - free) x STP": 0.03,
    "(reversal - free) x STP": 0.03,
    "(reversal - sign) x STP": 0.0,
}


# --- seeds and images

LEVELS = {"cb": 0.42, "dale": 0.38, "gru": 0.50, "rnn": 0.40}
CONTROL = [(cell, "cb") for cell in ("dale", "gru", "rnn")]
LADDER = [("gru", "cb"), ("dale", "gru"), ("rnn", "dale"), ("rnn", "cb")]


def answers(levels, seeds, rng, images=200, spread=0.02, own=None):
    """Right or wrong, (cell, seed) x image: the level of the cell, how easy an image is for all and
    for this cell, and what a seed gives; the mean over seeds and images is the level, exactly.
    """
    easy = rng.uniform(-0.25, 0.25, images)
    blocks = []
    for cell, level in levels.items():
        luck = rng.normal(0, (own or {}).get(cell, spread), (seeds, 1))
        p = level + easy + rng.uniform(-0.1, 0.1, images) + luck
        blocks.append(rng.random((seeds, images)) < p)
    index = pd.MultiIndex.from_product([levels, range(seeds)], names=["cell", "seed"])
    return pd.DataFrame(np.concatenate(blocks), index)


def flat(accuracies, images=50):
    """Runs whose answers to all images are alike: images add nothing."""
    index = [(cell, seed) for cell, values in accuracies.items() for seed in range(len(values))]
    index = pd.MultiIndex.from_tuples(index, names=["cell", "seed"])
    return pd.DataFrame(np.concatenate(list(accuracies.values()))[:, None] * np.ones(images), index)


def holds(table, truth):
    return bool(((table["low"] <= truth) & (truth <= table["high"])).all())


@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_cover_with_seeds_and_images(n, monkeypatch):
    """Tolerance 93 to 97 %; 800 simulations have a standard error of 0.8 %."""
    monkeypatch.setattr(analysis, "DRAWS", 2**9)
    rng, found = np.random.default_rng(n), []
    levels = {cell: LEVELS[cell] for cell in ("cb", "dale", "gru")}
    pairs = [("dale", "cb"), ("gru", "cb"), ("gru", "dale")]
    truth = [levels[a] - levels[b] for a, b in pairs]
    for _ in range(800):
        correct = answers(levels, n, rng)
        one = analysis.accuracies(correct.iloc[:n])
        difference = analysis.comparisons(correct, pairs[1:2])
        family = analysis.comparisons(correct, pairs)
        found.append((holds(one, 0.42), holds(difference, truth[1]), holds(family, truth)))
    coverage = np.mean(found, axis=0)
    assert ((coverage > 0.93) & (coverage < 0.97)).all(), coverage


def test_intervals_over_seeds_alone_would_be_too_narrow():
    rng, seeds_alone, both = np.random.default_rng(0), [], []
    for _ in range(300):
        correct = answers({"cb": 0.42}, 9, rng, spread=0.005)
        seeds_alone.append(analysis.interval(correct.mean(axis=1)))
        both.append(analysis.accuracies(correct).iloc[0])
    _, low, high = zip(*seeds_alone, strict=True)
    assert true_within(low, high, 0.42) < 0.90
    assert true_within([row["low"] for row in both], [row["high"] for row in both], 0.42) > 0.92


def test_images_that_pair_make_differences_narrower():
    correct = answers(LEVELS, 12, np.random.default_rng(1), images=500, spread=0.001)
    shuffled = correct.copy()
    shuffled.loc["gru"] = shuffled.loc["gru"].to_numpy()[:, ::-1]
    paired, unpaired = (
        analysis.comparisons(frame, [("gru", "cb")])["error"].item()
        for frame in (correct, shuffled)
    )
    assert paired < 0.8 * unpaired


def test_variance_by_hand():
    correct = answers({"cb": 0.42, "gru": 0.5}, 4, np.random.default_rng(2), images=30)
    a, b = (correct.loc[cell].to_numpy(float) for cell in ("cb", "gru"))

    def residual(y):  # mean square of seed x image
        left = y - y.mean(1, keepdims=True) - y.mean(0) + y.mean()
        return (left**2).sum() / (3 * 29)

    seeds = (a.mean(1).var(ddof=1) + b.mean(1).var(ddof=1)) / 2 * (1 / 4 + 1 / 4)
    over_images = (b.mean(0) - a.mean(0)).var(ddof=1)
    images = (over_images - residual(a) / 4 - residual(b) / 4) / 30
    (row,) = analysis.comparisons(correct, [("gru", "cb")]).to_dict("records")
    assert row["error"] ** 2 == pytest.approx(seeds + images)
    parts, degrees = np.array([seeds, images]), np.array([6, 29])
    counted = parts * (degrees + 2) / degrees
    freedom = counted.sum() ** 2 / (counted**2 / degrees).sum()
    assert row["freedom"] == pytest.approx(freedom)
    half = stats.t.ppf(0.975, freedom) * row["error"]
    assert row["high"] - row["low"] == pytest.approx(2 * half)


def test_without_images_these_are_dunnett_and_tukey():
    rng = np.random.default_rng(3)
    values = {cell: rng.normal(level, 0.01, 5) for cell, level in LEVELS.items()}
    samples = list(values.values())
    dunnett = stats.dunnett(*samples[1:], control=samples[0], rng=0).confidence_interval()
    found = analysis.comparisons(flat(values), CONTROL)
    assert found["low"].to_numpy() == pytest.approx(dunnett.low, abs=2e-4)
    assert found["high"].to_numpy() == pytest.approx(dunnett.high, abs=2e-4)
    names = list(values)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    tukey = stats.tukey_hsd(*samples).confidence_interval()
    found = analysis.comparisons(flat(values), pairs)
    high = [tukey.high[names.index(a), names.index(b)] for a, b in pairs]
    assert found["high"].to_numpy() == pytest.approx(high, abs=2e-4)


def test_unequal_spreads_are_those_of_welch():
    rng = np.random.default_rng(4)
    values = {"cb": rng.normal(0.4, 0.001, 5), "rnn": rng.normal(0.3, 0.05, 5)}
    (row,) = analysis.comparisons(flat(values), [("rnn", "cb")]).to_dict("records")
    welch = stats.ttest_ind(values["rnn"], values["cb"], equal_var=False)
    assert (row["n"], row["n_reference"], row["freedom"]) == (5, 5, pytest.approx(welch.df))
    assert (row["low"], row["high"]) == pytest.approx(tuple(welch.confidence_interval()))


def test_spread_is_pooled_unless_one_cell_has_its_own():
    rng = np.random.default_rng(5)
    alike = rng.normal(0, 1, (2000, 6, 3)).var(axis=2, ddof=1)
    freedom = np.full(6, 2)
    taken_out = [len(set(analysis.pooled_spread(v, freedom)[2])) > 1 for v in alike]
    assert 0.03 < np.mean(taken_out) < 0.07  # the level of the test
    variances, degrees, pool = analysis.pooled_spread([1, 2, 0.01, 900], [2, 4, 2, 2])
    assert pool[3] != pool[0] and len(set(pool[:3])) == 1
    assert variances == pytest.approx([(2 + 8 + 0.02) / 8] * 3 + [900])
    assert degrees.tolist() == [8, 8, 8, 2]
    assert analysis.pooled_spread([0, 0], [2, 2])[2].tolist() == [0, 0]


@pytest.mark.filterwarnings("error")
def test_one_or_two_seeds_carry_no_inference():
    correct = answers(LEVELS, 4, np.random.default_rng(6))
    correct = correct.drop([("dale", 2), ("dale", 3), ("rnn", 1), ("rnn", 2), ("rnn", 3)])
    alone = analysis.accuracies(correct).set_index("cell")
    assert alone["n"].to_dict() == {"cb": 4, "dale": 2, "gru": 4, "rnn": 1}
    assert alone["mean"].to_dict() == pytest.approx(
        {cell: correct.loc[cell].to_numpy().mean() for cell in LEVELS}
    )
    assert alone["low"].isna().tolist() == [False, True, False, True]
    table = analysis.comparisons(correct, [*CONTROL, ("stp", "cb")])
    assert table["n"].tolist() == [2, 4, 1, 0] and set(table["n_reference"]) == {4}
    assert table["high"].isna().tolist() == [True, False, True, True]
    assert table["mean"].isna().tolist() == [False, False, False, True]
    (row,) = analysis.comparisons(correct, [("stp", "nobody")]).to_dict("records")
    assert (row["n"], row["n_reference"]) == (0, 0) and np.isnan(row["mean"])
    assert analysis.accuracies(correct.iloc[:0]).empty
    family_of_one = analysis.comparisons(correct, [("gru", "cb")])
    assert table.loc[1, "low"] == pytest.approx(family_of_one.loc[0, "low"])


def test_only_what_a_family_names_shares_its_spread():
    correct = answers(LEVELS, 4, np.random.default_rng(7))
    part = correct.loc[["cb", "gru"]]
    pair = [("gru", "cb")]
    pd.testing.assert_frame_equal(
        analysis.comparisons(correct, pair), analysis.comparisons(part, pair)
    )
    together = analysis.comparisons(correct, LADDER)
    alone = pd.concat([analysis.comparisons(correct, [pair]) for pair in LADDER])
    wider = (together["high"] - together["low"]) > (alone["high"] - alone["low"]).to_numpy()
    assert wider.mean() >= 0.75


def test_distance_from_a_fixed_reference():
    correct = answers({"cb": 0.42}, 5, np.random.default_rng(8))
    fixed = correct.loc[("cb", 0)].to_numpy()
    (row,) = analysis.accuracies(correct.astype(int) - fixed).to_dict("records")
    assert row["mean"] == pytest.approx(correct.to_numpy().mean() - fixed.mean())
    assert row["low"] < row["mean"] < row["high"]


# predictions


def runs_and_predictions(seeds=3, images=40):
    rng, label = np.random.default_rng(9), np.arange(images) % 10
    runs = pd.DataFrame(
        [(f"{cell}{seed}", cell, seed) for cell in ("cb", "gru") for seed in range(seeds)],
        columns=["key", "cell", "seed"],
    )
    parts = [
        pd.DataFrame(
            {
                "key": key,
                "image": np.arange(images),
                "label": label,
                "prediction": np.where(rng.random(images) < 0.5, label, (label + 1) % 10),
            }
        )
        for key in (*runs["key"], "other")
    ]
    return runs, pd.concat(parts, ignore_index=True)


def test_correctness_of_runs():
    runs, predictions = runs_and_predictions()
    shuffled = predictions.sample(frac=1, random_state=0)
    correct = analysis.correctness(runs, shuffled)
    assert correct.shape == (6, 40) and set(correct.dtypes.astype(str)) == {"bool"}
    right = predictions[predictions["key"] == "gru1"].eval("label == prediction")
    assert correct.loc[("gru", 1)].tolist() == right.tolist()
    assert analysis.accuracies(correct)["cell"].tolist() == ["cb", "gru"]
    several = analysis.correctness(runs.assign(window="8/4"), predictions, by=["cell", "window"])
    pairs = [(("gru", "8/4"), ("cb", "8/4"))]
    wide, plain = analysis.comparisons(several, pairs), analysis.comparisons(correct, LADDER[:1])
    assert wide["low"].tolist() == plain["low"].tolist() and wide.loc[0, "n"] == 3


def test_runs_that_do_not_compare_are_refused():
    runs, predictions = runs_and_predictions()
    with pytest.raises(ValueError, match="Run cb1 has no predictions here; give those of every"):
        analysis.correctness(runs, predictions[predictions["key"] != "cb1"])
    other = predictions.assign(label=(predictions["label"] + (predictions["key"] == "cb1")) % 10)
    fewer = predictions[(predictions["key"] != "cb1") | (predictions["image"] > 0)]
    for wrong in (other, fewer, pd.concat([predictions, predictions])):
        with pytest.raises(ValueError, match="tested on different images"):
            analysis.correctness(runs, wrong)
    with pytest.raises(ValueError, match="Several runs share cell cb, seed 0"):
        analysis.correctness(runs.assign(seed=0), predictions)


def test_values_of_seeds_are_compared_as_scipy_does():
    frame = simulated({"cb": 0.40, "gru": 0.45}, 5, np.random.default_rng(2))
    frame.loc[(frame["cell"] == "gru") & (frame["seed"] == 3), "test_accuracy"] = np.nan
    values = {cell: part["test_accuracy"].dropna() for cell, part in frame.groupby("cell")}
    (row,) = analysis.comparisons(analysis.of_seeds(frame), [("gru", "cb")]).to_dict("records")
    test = stats.ttest_ind(values["gru"], values["cb"]).confidence_interval()
    assert (row["n"], row["n_reference"]) == (4, 5)
    assert (row["low"], row["high"]) == pytest.approx(tuple(test), abs=1e-9)
    with pytest.raises(ValueError, match="no column 'loss'"):
        analysis.of_seeds(frame, value="loss")


# weights


def test_effects_of_w_and_stp_on_answers():
    weights = analysis.design_weights()
    exact = flat({cell: np.full(3, level) for cell, level in TRUE.items()})
    for kind in ("main", "interaction"):
        table = analysis.effects(exact, weights[kind])
        assert table["mean"].to_dict() == pytest.approx({e: TRUE_EFFECTS[e] for e in table.index})
        assert (table["high"] - table["low"]).max() == pytest.approx(0, abs=1e-6)
    spread = {cell: level + np.array([-0.01, 0, 0.01]) for cell, level in TRUE.items()}
    table = analysis.effects(flat(spread), weights["main"])
    assert table.loc["STP: yes - no", "error"] ** 2 == pytest.approx(0.01**2 / 3 * 6 / 9)
    assert set(table["freedom"].round(6)) == {12}
    lacking = analysis.effects(exact.drop("dale"), weights["main"])
    assert lacking["n"].tolist() == [0, 0, 3, 0] and lacking["mean"].isna().sum() == 3


# --- recorded variables


def test_time_constant_is_that_of_a_leak():
    tau = np.array([2.0, 20.0, 500.0])
    z = -np.expm1(-1 / tau)  # a state that keeps exp(-1/tau) per step
    assert analysis.time_constant(z) == pytest.approx(tau)
    assert analysis.time_constant(z, stride=4) == pytest.approx(4 * tau)
    assert analysis.time_constant([0.0, 1.0]).tolist() == [np.inf, 0.0]
    assert analysis.time_constant(torch.full((2, 3, 4), 0.1)).shape == (2, 3, 4)
    with pytest.raises(ValueError, match=r"z ranges from -1 to 0\.5"):
        analysis.time_constant([-1, 0.5])


def test_units_are_ordered_by_the_mean_of_their_time_constants():
    z = np.array([[0.1, 0.01, 0.0, 1.0], [0.1, 0.9, 0.2, 1.0]])
    assert analysis.slowest_first(z).tolist() == [2, 1, 0, 3]
    assert analysis.slowest_first(np.zeros((3, 2), np.float16)).tolist() == [0, 1]


def test_delay():
    x = torch.arange(24.0).view(2, 4, 3)
    longer = analysis.delay(x, 500)
    assert torch.equal(longer[:, :4], x) and longer.shape == (2, 504, 3)
    assert abs(longer[:, 4:].mean()) < 0.1 and abs(longer[:, 4:].std() - 1) < 0.1
    assert torch.equal(longer, analysis.delay(x, 500)) and not torch.equal(
        longer, analysis.delay(x, 500, seed=1)
    )


def test_refitted_readout_finds_what_is_linear_in_the_state_and_nothing_else():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 600)
    states = np.eye(4)[labels] @ rng.normal(size=(4, 8)) + 0.05 * rng.normal(size=(600, 8))
    assert analysis.refitted_accuracy(states[:400], labels[:400], states[400:], labels[400:]) == 1
    noise = rng.normal(size=states.shape)
    assert analysis.refitted_accuracy(noise[:400], labels[:400], noise[400:], labels[400:]) < 0.4
