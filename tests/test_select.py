"""Which runs compare: groups and their names, the plain runs, variants, scans, windows."""

import json

import frames
import pandas as pd
import pytest

from lib import cells
from lib.figures import select, style


def test_comparison_leaves_out_the_scan_controls_and_partial_cells_of_ones_own(monkeypatch):
    study = frames.study()
    main = select.comparison(study.runs)
    assert set(main["cell"]) == set(frames.TEN) and set(main["seed"]) == {0, 1, 2}
    assert (
        set(main["options"]) == {"{}"}
        and set(main["initialisation"]) == {"balanced"}
        and not main["permuted"].any()
    )
    assert len(main) == 9 * 5 * 3 + 3

    class Mine(cells.get("cb")):
        name, label = "mine_export", "mine"

    monkeypatch.setitem(cells.CELLS, Mine.name, Mine)
    part, full = (
        select.comparison(pd.concat([study.runs, frames.runs(["mine_export"], s)]))
        for s in (["8/4"], frames.WINDOWS)
    )
    assert "mine_export" not in set(part["cell"]) and "mine_export" in set(full["cell"])
    assert set(select.variants(study.runs)) == set(select.VARIANTS) - {"longer", "clipping"}
    found = select.variants(study.runs)
    shown, own = found["initialisation"]
    assert len(shown) == (2 + 2) * 3 and own["DaleCB, notes"] == own["DaleCB"] == "DaleCB"
    assert 100 not in set(shown["seed"])
    assert found["steps"].plain["STPDaleCB, stp dt 0.1"] == "STPDaleCB"
    assert "STPDaleCB, excitatory fraction 0.8" in found["equation"].plain
    assert "full GRU, H 61" in found["size"].plain
    images, _ = found["tasks"]
    assert len(images) == (4 + 2) * 3 and "full GRU, last 8 rows" in set(images["group"])
    assert set(select.scan(study.runs)["seed"]) == {100}


def test_a_rate_of_its_own_for_each_cell_is_kept():
    runs = pd.concat(
        [
            frames.runs(["cb"], ["8/4"], learning_rate=0.01),
            frames.runs(["gru"], ["8/4"]),
            frames.scan(["cb", "gru"]),
        ]
    )
    main = select.comparison(runs)
    assert {"cb": 0.01, "gru": 0.003} == main.groupby("cell")["learning_rate"].unique().map(
        lambda rates: rates[0]
    ).to_dict()
    assert set(main["group"]) == {"CB", "full GRU"}
    both = [
        frames.runs(["gru"], ["8/4"]),
        frames.runs(["gru"], ["8/4"], learning_rate=0.01),
        frames.runs(["gru"], ["8/4"], [3]),
    ]
    assert set(select.comparison(pd.concat([runs, *both[:2]]).drop_duplicates("key"))["cell"]) == {
        "cb"
    }  # gru was only scanned
    assert set(select.comparison(pd.concat(both))["seed"]) == {3} and set(
        select.comparison(pd.concat(both[:2]))["seed"]
    ) == {0, 1, 2}


def test_groups_say_what_differs():
    parts = [frames.runs(["cb"], ["8/4"]), frames.runs(["cb"], ["8/4"], options='{"dt": 0.3}')]
    parts += [
        frames.runs(["dale_cb"], ["8/4"], initialisation="notes"),
        frames.runs(["gru"], ["8/4"], permuted=True),
    ]
    parts += [
        frames.runs(["gru"], ["8/4"], last_rows=8),
        frames.runs(["rnn"], ["8/4"], hidden_size=48),
    ]
    parts += [
        frames.runs(["rnn"], ["8/4"], hidden_size=61),
        frames.runs(["cb"], ["8/4"], seeds=[3], state="FAILED"),
    ]
    found = select.grouped(pd.concat(parts))
    assert list(found["group"].unique()) == [
        *("vanilla RNN", "vanilla RNN, H 61", "full GRU, permuted", "full GRU, last 8 rows"),
        *("CB", "CB, dt 0.3", "DaleCB, notes"),
    ]
    assert 3 not in set(found["seed"])


def test_a_plain_name_is_of_the_epochs_that_the_cells_share():
    longer = frames.runs(["dale_cb"], ["8/4"], seeds=range(4), epochs=40)
    repaired = frames.runs(["dale_cb"], ["8/4"], epochs=40, options='{"drive": "z"}')
    found = select.grouped(pd.concat([frames.runs(["cb", "dale_cb"], ["8/4"]), longer, repaired]))
    epochs = found.groupby("group")["epochs"].unique()
    assert list(epochs["DaleCB"]) == list(epochs["CB"]) != list(epochs["DaleCB, epochs 40"])


def test_a_longer_training_of_all_cells_is_what_compares_at_its_window():
    short, late = frames.runs(frames.TEN), {"seeds": [11, 12, 13], "epochs": 20}
    runs = pd.concat([short, frames.runs(frames.TEN, ["8/4"], **late)])
    assert set(select.comparison(runs)["key"]) == set(short["key"])
    main = select.at_main_window(runs)
    assert set(main["seed"]) == {11, 12, 13} and set(main["epochs"]) == {20}
    named = select.grouped(runs[runs["window"] == "8/4"]).groupby("group")["epochs"].unique()
    assert list(named["CB"]) == [20] and list(named["CB, epochs 10"]) == [10]
    begun = runs[(runs["epochs"] == 10) | (runs["seed"] < 13)]  # two seeds say nothing yet
    assert set(select.at_main_window(begun)["epochs"]) == {10}
    changed = frames.runs(["cb"], ["8/4"], permuted=True)
    floor = frames.runs(["cb_floor"], ["8/4"], **late)
    found = select.variants(pd.concat([runs, changed, floor]))
    assert set(found) == {"tasks", "longer"} and set(found["longer"].runs["epochs"]) == {20}
    assert found["longer"].plain == {"CB": "CB", "cb_floor": "CB"}
    here = runs[runs["window"] == "8/4"]
    shown, plain = select.variants(pd.concat([here, changed]))["tasks"]
    assert set(shown["epochs"]) == {10} and plain["CB, permuted"] == "CB"


def test_growth_holds_the_kinds_of_the_longest_training_at_every_length():
    assert select.growth(frames.runs(frames.TEN)) is None
    repairs = {"options": json.dumps(dict(select.REPAIRED), sort_keys=True)}
    late = [
        frames.runs(["cb", "gru"], ["8/4"], [11, 12, 13], epochs=40, learning_rate=0.01),
        frames.runs(["cb"], ["8/4"], [11, 12, 13], epochs=40, **repairs),
        frames.runs(["cb"], ["8/4"], [11, 12, 13], epochs=20, **repairs),
        frames.runs(["cb"], ["8/4"], [1], epochs=40, options='{"dt": 0.3}'),
        frames.runs(["cb"], ["8/4"], [1], epochs=80, permuted=True),
        frames.runs(["cb"], ["8/4"], [1], epochs=80, initialisation="notes"),
    ]
    found = select.growth(pd.concat([frames.runs(frames.TEN), *late]))
    lengths = found.groupby("group", sort=False)["epochs"].agg(lambda part: list(part.unique()))
    assert lengths.to_dict() == {"full GRU": [10, 40], "CB": [10, 40], "CB, repaired": [20, 40]}


def test_of_rates_that_three_seeds_ran_longest_validation_chooses():
    def late(rate, accuracy, seeds=(11, 12, 13)):
        made = frames.runs(["cb"], ["8/4"], seeds, epochs=40, learning_rate=rate)
        return made.assign(validation_accuracy=accuracy)

    runs = frames.runs(frames.TEN)
    every = pd.concat([runs, late(0.01, 0.4), late(0.003, 0.5), late(0.001, 0.6, (11, 12))])
    found = select.growth(every)
    assert set(found.loc[found["epochs"] == 40, "learning_rate"]) == {0.003}
    assert set(found.loc[found["epochs"] == 40, "seed"]) == {11, 12, 13}
    assert select.growth(pd.concat([runs, late(0.01, 0.4, (11,)), late(0.003, 0.5, (11,))])) is None


def test_variants_are_compared_with_the_cell_they_are_named_after():
    variants = frames.runs(["dale_cb_all"], ["8/4"]).assign(label="DaleCB, all")
    frame = select.grouped(pd.concat([frames.runs(["cb", "dale_cb"], ["8/4"]), variants]))
    assert list(frame["group"].unique()) == ["CB", "DaleCB", "DaleCB, all"]
    found = select.differences(frame, {"CB": "CB", "DaleCB": "DaleCB", "DaleCB, all": "DaleCB"})
    values = {cell: part.set_index("seed")["test_accuracy"] for cell, part in frame.groupby("cell")}
    assert list(found["cell"].unique()) == ["dale_cb_all"]
    pd.testing.assert_series_equal(
        found.set_index("seed")["test_accuracy"], values["dale_cb_all"] - values["dale_cb"].mean()
    )
    own, parent = style.look("dale_cb_all"), style.look("dale_cb")
    assert (own.weights, own.stp) == (parent.weights, parent.stp) and own.colour != parent.colour


def test_runs_on_other_images_are_told_apart_and_do_not_compare():
    changes = ({"delay": 64}, {"first_rows": 4}, {"last_rows": 8}, {"permuted": True})
    parts = [frames.runs(["cb"], ["8/4"], **change) for change in ({}, *changes)]
    runs = pd.concat(parts)
    names = {"CB", "CB, delay 64 pixels", "CB, first 4 rows", "CB, last 8 rows", "CB, permuted"}
    assert set(select.grouped(runs)["group"]) == names
    assert select.comparison(runs)["key"].tolist() == parts[0]["key"].tolist()
    assert set(select.variants(runs)["tasks"].plain) == names


def test_families_are_those_of_the_looks():
    groups = select.families(select.grouped(frames.runs(frames.TEN, ["8/4"])))
    assert list(groups) == list(style.FAMILIES)
    for family, members in groups.items():
        assert {
            style.look(cell).family for cell in style.ORDER if style.look(cell).label in members
        }
        assert len(members) == {"baselines": 3, "without STP": 4, "with STP": 3}[family]


def test_differences_are_from_the_mean_of_the_baseline():
    main = frames.runs(frames.TEN, ["8/4", "4/4"])
    found = select.differences(main, "cb").groupby(["cell", "window"])["test_accuracy"].mean()
    means = main.groupby(["cell", "window"])["test_accuracy"].mean()
    expected = means - means["cb"].reindex(means.index, level="window")
    assert found.to_dict() == pytest.approx(expected.drop("cb").to_dict())
    with pytest.raises(ValueError, match="baseline 'lstm' has no finished run"):
        select.differences(main, "lstm")
    apart = [frames.runs(["cb"], ["8/4"]), frames.runs(["gru"], ["4/4"])]
    with pytest.raises(ValueError, match="shares its window with the baseline CB"):
        select.differences(pd.concat(apart), "cb")


def test_a_variant_that_was_given_more_seeds_is_judged_on_the_fresh_ones():
    plain = frames.runs(["dale_cb"], ["8/4"], range(6))
    free = frames.runs(["dale_cb_free_input"], ["8/4"], range(6)).assign(label="DaleCB, P_z free")
    other = frames.runs(["dale_cb"], ["8/4"], options='{"readout": "all"}')
    (kind,) = select.variants(pd.concat([plain, free, other])).values()
    seeds = kind.runs.groupby("group")["seed"].apply(list).to_dict()
    assert seeds["DaleCB, P_z free"] == [3, 4, 5] and seeds["DaleCB, readout all"] == [0, 1, 2]
    assert seeds["DaleCB"] == [0, 1, 2, 3, 4, 5]


def test_versions_of_what_a_user_added_are_told_apart():
    runs = [frames.runs(["mine"], ["8/4"], s, source=v) for s, v in ((range(3), "a"), ((3,), "b"))]
    groups = select.grouped(pd.concat(runs)).groupby("group")["seed"].apply(list).to_dict()
    assert groups == {"mine": [0, 1, 2], "mine, version b": [3]}


def test_the_rate_of_a_kind_is_said_only_where_it_ran_at_several():
    runs = [frames.runs(["cb"], ["8/4"]), frames.runs(["cb"], ["8/4"], options='{"drive": "z"}')]
    runs[1]["learning_rate"] = 0.01
    assert set(select.grouped(pd.concat(runs))["group"]) == {"CB", "CB, drive z"}


def test_repaired_cells_stand_beside_the_plain_ones():
    shown = select.headline(frames.ladders())
    groups = list(shown["group"].unique())
    assert groups.index("DaleCB, repaired") == groups.index("DaleCB") + 1
    assert "STPDaleCB, repaired" in groups and len(groups) == len(frames.TEN) + 2
    varied = {name: set(kinds.plain) for name, kinds in select.variants(frames.ladders()).items()}
    assert varied == {
        "equation": {"DaleCB", "dale_cb_softplus"},
        "initialisation": {"DaleCB", "DaleCB, notes"},
    }  # no rung among them


def test_a_window_of_both_conventions_stands_in_both():
    shapes = ["4/4", "4/2", "8/4", "16/8", "8/1"]
    columns = select.window_columns(frames.runs(["cb"], shapes))
    assert columns == [
        *((select.FIXED, "4/4"), (select.FIXED, "8/4")),
        *((select.HALF, "4/2"), (select.HALF, "8/4"), (select.HALF, "16/8")),
        (select.OTHER, "8/1"),
    ]
    assert select.window_columns(frames.runs(["cb"], ["8/4"])) == [(select.FIXED, "8/4")]


def test_rungs_are_found_by_their_options():
    runs = frames.ladders()
    ladder, repairs, notes = (select.rungs(runs, item) for item in select.LADDERS.values())
    panels = ladder.steps.groupby("panel", sort=False)["label"].apply(list)
    order = ["drive z", "z_max 1", "gate open", "r = v", "σ of drive"]
    assert panels.to_dict() == {"added": order, "alone": [*order, "rates read"], "without": order}
    assert ladder.ends == ["CB-GRU", "simple GRU"]
    last = ladder.steps[ladder.steps["panel"] == "added"].iloc[-1]
    assert (last["group"], last["reference"]) == ("simple GRU", "CB-GRU")
    back = ladder.steps[ladder.steps["panel"] == "without"]
    assert set(back["reference"]) == {"simple GRU"}
    assert back["group"].iloc[-1] == "cb_gru_bridge, drive z, z_max 1, gate open, r = v"
    panels = repairs.steps.groupby("panel", sort=False)["label"].apply(list)
    assert panels["added"] == ["P_z free", *order[:3], "K gain 12"]
    assert panels["other cells"] == ["STPDaleCB"]
    assert repairs.steps["group"].iloc[-1] == "STPDaleCB, repaired"
    assert panels["alone"][-1] == "dale_cb_softplus"
    assert set(notes.steps["reference"]) == {"DaleCB, notes"} == set(notes.ends)
    assert list(notes.steps["label"][:4]) == ["P_z free", *order[:3]]
    assert notes.runs["initialisation"].unique() == ["notes"]
    assert set(ladder.runs["seed"]) == {1, 2, 3}


def test_rungs_that_did_not_run_are_left_out():
    runs = frames.ladders()
    part = runs[(runs["options"] == "{}") | runs["options"].str.contains('"drive": "z"')]
    labels = select.rungs(part, select.LADDERS["ladder"]).steps.query("panel == 'alone'")["label"]
    assert list(labels) == ["drive z"]
    ends = runs[runs["options"].map(lambda text: text.count(":") in (0, 5))]
    (label,) = select.rungs(ends, select.LADDERS["repairs"]).steps.query("panel == 'added'")[
        "label"
    ]
    assert label == "P_z free ... K gain 12"
    scanned = pd.concat([part, *(part.assign(key=part["key"] + x, learning_rate=r, seed=100)
                                 for x, r in (("a", 0.01), ("b", 0.03)))])  # fmt: skip
    lone = frames.runs(["cb_gru"], ["8/4"], [100], options='{"z_max": 1.0}')  # of the same scan
    shown = select.rungs(pd.concat([scanned, lone]), select.LADDERS["ladder"]).runs
    assert 100 not in set(shown["seed"])
    other = [
        frames.runs(["cb_gru"], ["8/4"]),
        frames.runs(["cb_gru"], ["8/4"], options='{"dt": 1.0}'),
    ]
    assert select.rungs(pd.concat(other), select.LADDERS["ladder"]) is None


TRAINED = {
    "batch_size": (100, "batch 100"),
    "scan": ("snake", "scan snake"),
    "clip_norm": (10.0, "clip norm 10"),
    "data_seed": (1, "data seed 1"),
    "validations_per_epoch": (4, "validations 4"),
}


@pytest.mark.parametrize(("column", "value", "name"), [(k, *v) for k, v in TRAINED.items()])
def test_runs_that_were_trained_otherwise_do_not_compare(column, value, name):
    plain = frames.runs(["cb", "gru"], ["8/4"])
    others = frames.runs(["cb"], ["8/4"], learning_rate=0.01).assign(**{column: value})
    every = pd.concat([plain, others.assign(key=others["key"] + "x")], ignore_index=True)
    assert not select.scanned(every).any()
    assert set(select.comparison(every)["key"]) == set(plain["key"])
    assert f"CB, {name}, rate 0.01" in set(select.grouped(every)["group"])
    assert not select.variants(every)
    more = pd.concat([frames.ladders(), others.assign(epochs=10)], ignore_index=True)
    assert set(select.headline(more)["group"]) == set(select.headline(frames.ladders())["group"])
    rungs = select.rungs(more, select.LADDERS["repairs"])
    assert set(rungs.runs["seed"]) == {1, 2, 3} and len(rungs.steps)


def test_another_bound_of_the_gradient_is_compared_at_the_same_rate_and_length():
    plain = frames.runs(["cb", "gru"], ["8/4"], range(4))
    longer = frames.runs(["cb", "gru"], ["8/4"], epochs=20)
    clipped = [plain, longer, frames.runs(["rnn"], ["8/4"], learning_rate=0.01)]
    other = pd.concat([plain.query("cell == 'cb' and seed < 3"), longer.query("cell == 'cb'")])
    other = pd.concat([other, frames.runs(["rnn"], ["8/4"])])
    other = other.assign(key=other["key"] + "x", clip_norm=1e3)
    found = select.variants(pd.concat([*clipped, other]))["clipping"]
    assert found.plain == {
        **{name: name for name in ("CB", "CB, epochs 10")},
        "CB, clip norm 1000": "CB",
        "CB, epochs 10, clip norm 1000": "CB, epochs 10",
    }
    assert "clipping" not in select.variants(pd.concat(clipped))


def test_other_images_compare_where_there_are_no_whole_ones():
    for changed in ({"permuted": True}, {"last_rows": 8.0}, {"initialisation": "notes"}):
        runs = frames.runs(["cb", "gru"], ["8/4"], **changed)
        assert set(select.comparison(runs)["key"]) == set(runs["key"])
        both = pd.concat([runs, frames.runs(["cb"], ["8/4"])], ignore_index=True)
        assert set(select.comparison(both)["cell"]) == {"cb"}


def test_the_plain_runs_say_which_rate_is_usual():
    plain = frames.runs(["cb"], ["8/4"])
    other = frames.runs(["cb"], ["8/4"], range(5), initialisation="notes", learning_rate=0.01)
    groups = set(select.grouped(pd.concat([plain, other]))["group"])
    assert groups == {"CB", "CB, notes, rate 0.01"}


def test_options_of_a_cell_of_ones_own_may_be_lists():
    runs = frames.runs(["cb"], ["8/4"], options='{"sizes": [1, 2]}')
    assert set(select.grouped(runs)["group"]) == {"CB, sizes [1, 2]"}
    assert not select.repaired(runs["options"].iat[0])


def test_a_scan_elsewhere_takes_no_rung_away():
    runs = frames.ladders()
    rates = [frames.runs(["rnn", "dale_cb"], ["16/8"], learning_rate=rate) for rate in (0.1, 0.2)]
    rates += [
        frames.runs(["dale_cb"], ["8/4"], [1], dataset="digits", learning_rate=r) for r in (1, 2)
    ]
    every = pd.concat([runs, *rates], ignore_index=True)
    for item in select.LADDERS.values():
        pd.testing.assert_frame_equal(
            select.rungs(every, item).steps, select.rungs(runs, item).steps
        )
        assert set(select.rungs(every, item).runs["seed"]) == {1, 2, 3}


def test_a_delay_is_of_one_rate_and_judged_on_fresh_seeds():
    waiting = frames.delays()
    own = (waiting["cell"] == "cb") & (waiting["delay"] == 512) & (waiting["options"] == "{}")
    more = waiting[own & waiting["first_rows"].isna()]
    other = more.assign(seed=more["seed"] + 3, learning_rate=0.03, validation_accuracy=0.0)
    other["key"] += "x"
    shown = select.delays(pd.concat([waiting, other], ignore_index=True))
    assert set(shown["key"]) == set(waiting["key"])
    other["learning_rate"] = more["learning_rate"].iat[0]
    shown = select.delays(pd.concat([waiting, other], ignore_index=True))
    judged = shown[(shown["group"] == "CB") & (shown["task"] == "512")]
    assert set(judged["seed"]) == {3, 4, 5} and len(shown) == len(waiting)


def test_delays_are_runs_that_wait_and_those_alike_that_do_not():
    waiting = frames.delays()
    waiting.loc[(waiting["cell"] == "gru") & (waiting["delay"] == 0), "learning_rate"] = 0.01
    other = frames.runs(["cb", "rnn"], ["8/4"]), frames.runs(["rnn"], ["16/8"])
    shown = select.delays(pd.concat([waiting, *other], ignore_index=True))
    assert set(shown["key"]) == set(waiting["key"])
    assert list(shown["task"].unique()) == ["0", "128", "512", "8 rows, 512"]
    kinds = ["full GRU", "CB", "CB, repaired", "DaleCB"]
    kinds += ["STP nonDale", "STP nonDale, repaired", "STP nonDale, stp dt 0.1"]
    assert list(shown["group"].unique()) == kinds
    assert select.delays(pd.concat(other)) is None
