"""What runs say in numbers and words: the statistics behind a figure, and captions."""

import frames
import pandas as pd
import pytest

from lib import analysis
from lib.figures import select, summaries

RUNS = frames.runs(frames.TEN)
MAIN = RUNS[RUNS["window"] == "8/4"]


def test_captions_name_data_window_size_epochs_seeds_and_interval():
    assert summaries.caption(MAIN, "Bars.") == (
        "Bars. Data: sequential CIFAR-10; window 8/4 pixels (input length/stride); H = 48; "
        "10 epochs; n = 3 seeds; "
        "95 % intervals."
    )
    digits = frames.runs(["cb", "gru"], ["8/4"], [0], dataset="digits", epochs=30)
    digits = summaries.caption(digits)
    assert "digits, demonstration" in digits and "n = 1 seed; no interval" in digits
    mixed = summaries.caption(
        pd.concat(
            [
                frames.runs(["cb"], ["4/2", "8/4"], range(12)),
                frames.runs(["gru"], ["8/4"], range(5)),
            ]
        )
    )
    assert (
        "windows 4/2, 8/4" in mixed and "n = 5 to 12" in mixed and mixed.endswith("95 % intervals.")
    )


def test_intervals_count_the_images_where_predictions_are_given():
    predictions = frames.answered(MAIN)
    correct = analysis.correctness(MAIN, predictions)
    cells_run = [cell for cell in MAIN["cell"].unique() if cell != "cb"]
    expected = analysis.comparisons(correct, [(cell, "cb") for cell in cells_run])
    main = select.grouped(MAIN)
    found = summaries.differences(main, "cb", predictions=predictions).set_index("cell")
    for name in ("mean", "low", "high"):
        wanted = 100 * expected.set_index("group")[name]
        assert found[name].to_dict() == pytest.approx(wanted.to_dict(), abs=0.05)
    own = summaries.groups(main, predictions=predictions).set_index("cell")
    alone = analysis.accuracies(correct).set_index("cell")
    assert own["low"].to_dict() == pytest.approx((100 * alone["low"]).to_dict())


def test_windows_are_compared_with_the_main_one_of_the_same_cell():
    found = summaries.windows(select.grouped(RUNS))
    cb = found[found["group"] == "CB"].set_index("window")
    means = 100 * RUNS[RUNS["cell"] == "cb"].groupby("window")["test_accuracy"].mean()
    assert cb["mean"].to_dict() == pytest.approx((means - means["8/4"]).to_dict())
    assert cb.loc["16/4", "low"] < cb.loc["16/4", "mean"] < cb.loc["16/4", "high"]


def test_plasticity_is_told_of_cells_that_differ_in_nothing_else():
    runs = frames.delays()
    other = runs[(runs["cell"] == "cb") & (runs["options"] == "{}")]
    other = other.assign(key=other["key"] + "x", options='{"drive": "z"}', test_accuracy=0.2)
    both = select.delays(pd.concat([runs, other], ignore_index=True))
    pairs = summaries.plasticity(both)
    assert set(zip(pairs["group"], pairs["reference"], strict=True)) == {
        ("STP nonDale", "CB"),
        ("STP nonDale, stp dt 0.1", "CB"),
        ("STP nonDale, repaired", "CB, repaired"),
    }


def test_runs_with_a_delay_are_variants_and_say_so():
    held = frames.runs(["gru", "cb"], ["8/4"])
    waiting = frames.runs(["gru", "cb"], ["8/4"]).assign(delay=512, first_rows=8)
    waiting["key"] = "w" + waiting["key"]
    both = pd.concat([held, waiting])
    assert set(select.comparison(both)["key"]) == set(held["key"])
    groups = set(select.grouped(both)["group"])
    assert groups == {
        "full GRU",
        "full GRU, first 8 rows, delay 512 pixels",
        "CB",
        "CB, first 8 rows, delay 512 pixels",
    }
    said = "sequential CIFAR-10 (whole images; first 8 rows, delay 512 pixels);"
    assert said in summaries.caption(both)
