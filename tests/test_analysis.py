"""Statistics on simulated data whose truth is known: coverage, error rates, effects, trends; and
the small transforms.
"""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import torch
from scipy import stats

from lib import analysis, cells

WINDOWS = ((4, 4), (4, 2), (8, 4), (16, 4), (16, 8))


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    monkeypatch.setattr(
        "gc.collect", lambda: None
    )  # statsmodels' multipletests calls it every time, for 0.2 s


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
    simulations = 3000 if n < 10 else 1000
    _, low, high = zip(
        *map(analysis.interval, np.random.default_rng(n).normal(0.4, 0.02, (simulations, n))),
        strict=True,
    )
    assert 0.95 - 0.025 < true_within(low, high, 0.4) < 0.965


def test_bootstrap_covers_the_mean_of_skewed_values_where_the_usual_ones_do_not():
    values = np.random.default_rng(1).exponential(1, (800, 10))
    _, low, high = zip(*map(analysis.interval, values), strict=True)
    percentile = stats.bootstrap(
        (values,), np.mean, axis=-1, method="percentile", n_resamples=999, batch=50, rng=0
    ).confidence_interval
    assert true_within(low, high, 1) > 0.92 > 0.90 > true_within(*percentile, 1)


def test_t_interval_by_hand():
    mean, low, high = analysis.interval([0.40, 0.43, 0.46])
    half = 4.302653 * 0.03 / np.sqrt(3)  # t(0.975, df 2) from a table
    assert (mean, low, high) == pytest.approx((0.43, 0.43 - half, 0.43 + half), abs=1e-8)


@pytest.mark.parametrize("values", [[0.4], []])
def test_one_value_gives_no_interval(values):
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
            simulated({"cb": 0.4, "gru": 0.5}, 3, rng, window="8/4", last_rows=None),
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
    assert gru[["n", "missing", "method"]].tolist() == [2, 1, "Student t"]
    assert gru[["mean", "low", "high"]].tolist() == pytest.approx(list(analysis.interval(values)))
    assert table.loc[("cb", "4/4"), ["n", "method"]].tolist() == [12, "bootstrap"]
    alone = table[table["last_rows"] == 8.0].iloc[0]
    assert (
        alone["n"] == 1
        and alone["method"] == "none"
        and np.isnan(alone["low"])
        and np.isnan(alone["sd"])
    )


def test_results_do_not_depend_on_the_order_of_the_runs():
    frame = simulated({"cb": 0.4, "gru": 0.5, "rnn": 0.3}, 11, np.random.default_rng(4))
    shuffled = pd.concat(
        [part.sample(frac=1, random_state=1) for _, part in frame.groupby("cell", sort=False)]
    )
    for call in (lambda f: analysis.summarise(f, "cell"), lambda f: analysis.differences(f, "cb")):
        pd.testing.assert_frame_equal(call(frame), call(shuffled), check_exact=True)


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
        lambda: analysis.differences(frame, "cb"),
        lambda: analysis.two_way(frame),
    ):
        with pytest.raises(ValueError, match=r"Several runs share cell (cb|gru), seed 0"):
            call()
    with pytest.raises(ValueError, match="no column 'windows'"):
        analysis.summarise(frame, ["cell", "windows"])


# --- paired comparisons


def test_differences_equal_scipy_on_the_shared_seeds():
    frame = simulated({"cb": 0.40, "gru": 0.45}, 5, np.random.default_rng(2))
    frame = frame[~((frame["cell"] == "gru") & (frame["seed"] == 3))]
    a, b = (
        frame[(frame["cell"] == c) & (frame["seed"] != 3)]["test_accuracy"].to_numpy()
        for c in ("gru", "cb")
    )
    (row,) = analysis.differences(frame, "cb").to_dict("records")
    test = stats.ttest_rel(a, b)
    assert row["contrast"] == "gru - cb" and row["n"] == 4
    assert (row["t"], row["p"], row["p_holm"]) == pytest.approx(
        (test.statistic, test.pvalue, test.pvalue)
    )
    assert (row["low"], row["high"]) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert row["hedges_g"] == pytest.approx(
        np.mean(a - b) / np.std(a - b, ddof=1) * (1 - 3 / (4 * 3 - 1)), rel=0.01
    )  # the usual approximation


@pytest.mark.parametrize("n", [3, 5])
def test_paired_intervals_cover_and_profit_from_pairing(n):
    rng, rows, unpaired = np.random.default_rng(n), [], []
    for simulation in range(250):
        frame = simulated({"cb": 0.40, "gru": 0.43}, n, rng, shared=0.05)
        unpaired.append(
            np.subtract(
                *stats.ttest_ind(
                    *(g["test_accuracy"] for _, g in frame.groupby("cell"))
                ).confidence_interval()
            )
        )
        rows.append(frame.assign(simulation=simulation))
    table = analysis.differences(pd.concat(rows), "cb", by="simulation")
    assert 0.91 < true_within(table["low"], table["high"], 0.03) < 0.98
    assert np.median(table["high"] - table["low"]) < 0.75 * np.median(np.abs(unpaired))


@pytest.mark.parametrize("n", [3, 5])
def test_hedges_correction_removes_the_bias_of_cohens_d(n):
    true = 1.5  # difference in units of its own spread
    rng = np.random.default_rng(n)
    samples = [({}, rng.normal(true, 1, n)) for _ in range(4000)]
    table = analysis._tests(samples)
    assert table["hedges_g"].mean() == pytest.approx(true, abs=0.12)
    assert np.mean([values.mean() / values.std(ddof=1) for _, values in samples]) > true + 0.3


def test_family_wise_error_of_the_planned_contrasts():
    names, rng = ["cb", "cb_gru", "simple_gru", "dale_cb", "dale", "rnn"], np.random.default_rng(5)
    wrong, uncorrected, simulations = 0, 0, 250
    for _ in range(simulations):
        values = dict(
            zip(names, rng.normal(0.4, 0.02, 5) + rng.normal(0, 0.01, (6, 5)), strict=True)
        )  # seeds differ, cells do not
        samples = [
            ({"contrast": c.name}, values[c.cell] - values[c.reference]) for c in analysis.PLANNED
        ]
        table = analysis._tests(samples)
        wrong += (table["p_holm"] < 0.05).any()
        uncorrected += (table["p"] < 0.05).any()
    assert wrong / simulations < 0.05 + 3 * np.sqrt(0.05 * 0.95 / simulations)
    assert uncorrected / simulations > 0.12  # what the correction is for


def test_holm_by_hand_and_untested_pairs_stay_out():
    frame = simulated(
        {"cb": 0.40, "cb_gru": 0.46, "simple_gru": 0.41, "rnn": 0.35}, 4, np.random.default_rng(7)
    )
    table = analysis.contrasts(frame).set_index("contrast")
    assert (
        table.loc[["reversal", "sign"], "n"].tolist() == [0, 0]
        and table.loc[["reversal", "sign"], "p_holm"].isna().all()
    )
    tested = table.loc[["positivity", "voltage", "gate"]].sort_values("p")
    expected = np.minimum(np.maximum.accumulate(tested["p"].to_numpy() * [3, 2, 1]), 1)
    assert tested["p_holm"].to_numpy() == pytest.approx(expected)


def test_one_seed_gives_a_difference_and_no_interval():
    (row,) = analysis.differences(
        simulated({"cb": 0.4, "gru": 0.5}, 1, np.random.default_rng(0)), "cb"
    ).to_dict("records")
    assert row["n"] == 1 and np.isfinite(row["mean"])
    assert all(np.isnan(row[name]) for name in ("low", "high", "hedges_g", "t", "p", "p_holm"))


@pytest.mark.filterwarnings("error")
def test_equal_differences_give_no_test():
    frame = pd.DataFrame(
        {
            "cell": ["cb"] * 3 + ["gru"] * 3,
            "seed": [0, 1, 2] * 2,
            "test_accuracy": [0.1, 0.2, 0.3, 0.2, 0.3, 0.4],
        }
    )
    (row,) = analysis.differences(frame, "cb").to_dict("records")
    assert row["low"] == row["high"] == pytest.approx(0.1) and np.isnan(row["p"])


def test_other_factors_and_groups_can_be_compared():
    rng = np.random.default_rng(3)
    frame = pd.concat(
        [
            simulated({"cb": 0.4 + 0.1 * (i == "balanced")}, 3, rng, initialisation=i, window=w)
            for i in ("notes", "balanced")
            for w in ("8/4", "4/4")
        ]
    )
    table = analysis.differences(frame, "notes", by=["cell", "window"], factor="initialisation")
    assert (
        table["window"].tolist() == ["8/4", "4/4"] and table["reference"].tolist() == ["notes"] * 2
    )
    assert table["mean"].tolist() == pytest.approx([0.1, 0.1], abs=0.06)
    with pytest.raises(
        ValueError, match="baseline 'random' has no runs here; choose one of notes, balanced"
    ):
        analysis.differences(frame, "random", by=["cell", "window"], factor="initialisation")


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


def test_two_way_effects_are_recovered_exactly_without_noise():
    frame = simulated(TRUE, 3, np.random.default_rng(0), noise=0)
    table = analysis.two_way(frame).set_index("effect")
    assert table["mean"].to_dict() == pytest.approx(TRUE_EFFECTS)
    assert table["kind"].tolist() == ["main"] * 4 + ["interaction"] * 3


def test_two_way_intervals_cover_the_true_effects():
    rng = np.random.default_rng(1)
    frame = pd.concat([simulated(TRUE, 5, rng, simulation=i) for i in range(200)])
    table = analysis.two_way(frame, by="simulation")
    for effect, rows in table.groupby("effect"):
        assert 0.91 < true_within(rows["low"], rows["high"], TRUE_EFFECTS[effect]) < 0.985, effect


def test_two_way_uses_complete_seeds_alone():
    frame = simulated({**TRUE, "gru": 0.5}, 4, np.random.default_rng(2))
    incomplete = frame[~((frame["cell"] == "stp_dale") & (frame["seed"] == 2))]
    found, expected = analysis.two_way(incomplete), analysis.two_way(frame[frame["seed"] != 2])
    pd.testing.assert_frame_equal(found, expected)
    assert set(found["n"]) == {3}
    assert set(analysis.two_way(frame[frame["cell"] != "dale"])["n"]) == {
        0
    }  # never run: said, not invented


# --- trends


def windows_of(
    rng, seeds=5, per_doubling=0.02, overlap=-0.03, noise=0.005, shapes=WINDOWS, cell="cb"
):
    rows = [
        (
            cell,
            length,
            stride,
            seed,
            0.3
            + per_doubling * np.log2(length)
            + overlap * (1 - stride / length)
            + 0.01 * seed
            + rng.normal(0, noise),
        )
        for length, stride in shapes
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows, columns=["cell", "input_length", "stride", "seed", "test_accuracy"])


def test_trends_are_recovered_per_cell():
    rng = np.random.default_rng(0)
    frame = pd.concat(
        [
            windows_of(rng, noise=0),
            windows_of(rng, per_doubling=0, overlap=0.1, noise=0, cell="gru"),
        ]
    )
    table = analysis.trend(frame).set_index(["cell", "trend"])
    expected = {
        ("cb", "input_length"): 0.02,
        ("cb", "overlap"): -0.03,
        ("gru", "input_length"): 0,
        ("gru", "overlap"): 0.1,
    }
    assert table["mean"].to_dict() == pytest.approx(expected, abs=1e-12)
    assert set(table["n"]) == {5}


def test_trend_intervals_cover_the_true_slopes():
    rng = np.random.default_rng(1)
    frame = pd.concat([windows_of(rng, 3, noise=0.02).assign(simulation=i) for i in range(200)])
    table = analysis.trend(frame, by="simulation")
    for name, truth in (("input_length", 0.02), ("overlap", -0.03)):
        rows = table[table["trend"] == name]
        assert 0.91 < true_within(rows["low"], rows["high"], truth) < 0.98


def test_trend_of_a_seed_equals_least_squares_of_statsmodels():
    frame = windows_of(np.random.default_rng(2), 1)
    fit = smf.ols(
        "test_accuracy ~ np.log2(input_length) + I(1 - stride / input_length)", frame
    ).fit()
    assert analysis.trend(frame)["mean"].tolist() == pytest.approx(fit.params.iloc[1:].tolist())


def test_trend_needs_windows_that_tell_it_apart():
    half = windows_of(np.random.default_rng(3), shapes=((4, 2), (8, 4), (16, 8)), overlap=0)
    with pytest.raises(
        ValueError,
        match="windows 4/2, 8/4, 16/8 do not tell apart a trend on input_length and on overlap",
    ):
        analysis.trend(half)
    assert analysis.trend(half, on="input_length")["mean"].tolist() == pytest.approx(
        [0.02], abs=0.01
    )
    extended = pd.concat(
        [half, windows_of(np.random.default_rng(4), 9, shapes=((8, 4),)).query("seed > 4")]
    )
    assert analysis.trend(extended, on="input_length")["n"].tolist() == [
        5
    ]  # seeds that ran one window only say nothing


def test_last_epoch_slope():
    epoch = np.arange(0, 10.5, 0.5)
    runs = [
        pd.DataFrame(
            {
                "cell": "cb",
                "window": "8/4",
                "seed": seed,
                "epoch": epoch,
                "validation_accuracy": np.where(epoch < 9, 0.9, 0.1 + slope * epoch),
            }
        )
        for seed, slope in ((0, 0.01), (1, 0.02))
    ]
    table = analysis.last_epoch_slope(pd.concat(runs))
    assert table["slope"].tolist() == pytest.approx([0.01, 0.02])
    assert analysis.summarise(table, ["cell", "window"], "slope")["mean"].tolist() == pytest.approx(
        [0.015]
    )
    assert np.isnan(analysis.last_epoch_slope(runs[0][:1])["slope"].item())
    with pytest.raises(ValueError, match="Several curves share cell, window; add"):
        analysis.last_epoch_slope(pd.concat(runs), by=["cell", "window"])


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


def test_truncation_and_delay():
    x = torch.arange(24.0).view(2, 4, 3)
    assert torch.equal(analysis.truncate(x, first=1), x[:, :1]) and torch.equal(
        analysis.truncate(x, last=3), x[:, 1:]
    )
    longer = analysis.delay(x, 500)
    assert torch.equal(longer[:, :4], x) and longer.shape == (2, 504, 3)
    assert abs(longer[:, 4:].mean()) < 0.1 and abs(longer[:, 4:].std() - 1) < 0.1
    assert torch.equal(longer, analysis.delay(x, 500)) and not torch.equal(
        longer, analysis.delay(x, 500, seed=1)
    )


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({}, "either first or last"),
        ({"first": 1, "last": 1}, "either first or last"),
        ({"first": 0}, r"first is 0.*1 to 4"),
        ({"last": 5}, "last is 5"),
    ],
)
def test_bad_truncation(keep, words):
    with pytest.raises(ValueError, match=words):
        analysis.truncate(torch.zeros(1, 4, 2), **keep)


def test_refitted_readout_finds_what_is_linear_in_the_state_and_nothing_else():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 600)
    states = np.eye(4)[labels] @ rng.normal(size=(4, 8)) + 0.05 * rng.normal(size=(600, 8))
    assert analysis.refitted_accuracy(states[:400], labels[:400], states[400:], labels[400:]) == 1
    noise = rng.normal(size=states.shape)
    assert analysis.refitted_accuracy(noise[:400], labels[:400], noise[400:], labels[400:]) < 0.4
