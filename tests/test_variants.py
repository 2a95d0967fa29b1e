"""The cells of the variants' grid: one change each, on both paths; the sizes of the grid file are
those that match.
"""

from pathlib import Path

import pytest
import torch
from test_recurrence import assert_equal, both, uncompiled

from lib import cells, compiled
from lib.figures import style
from lib.recurrence import SequenceClassifier
from lib.runs import sweep

GRIDS = Path(__file__).parent.parent / "notebooks" / "grids"
PARENTS = {
    "dale_cb_all": "dale_cb",
    "stp_dale_cb_all": "stp_dale_cb",
    "cb_rate": "cb",
    "dale_cb_rate": "dale_cb",
    "cb_free_input": "cb",
    "cb_gru_drive": "cb_gru",
    "dale_cb_free_input": "dale_cb",
    "stp_dale_cb_free_input": "stp_dale_cb",
}


@pytest.fixture(autouse=True, scope="module")
def variants():
    known, texts = dict(cells.CELLS), dict(cells.SOURCES)
    yield {
        name: stem
        for stem in ("variants", "free_input")
        for name in cells.register_source((GRIDS / f"{stem}.py").read_text("utf-8"))
    }
    for registry, before in ((cells.CELLS, known), (cells.SOURCES, texts)):
        registry.clear()
        registry.update(before)


def model(name):
    return SequenceClassifier(name, 5, 6, 4, 9, seed=3).double()


def test_every_variant_is_here(variants):
    assert set(variants) == set(PARENTS)


@pytest.mark.parametrize("name", PARENTS)
def test_fast_path_equals_reference(name, monkeypatch):
    monkeypatch.setattr(compiled, "graphs", uncompiled(4))
    assert_equal(both(name, torch.randn(3, 10, 5, dtype=torch.float64)), 1e-10)


@pytest.mark.parametrize("name", ["dale_cb_all", "cb_gru_drive"])
def test_compiled_equals_reference(name, monkeypatch):
    monkeypatch.setattr(compiled, "CHUNK", 2)
    assert_equal(both(name, torch.randn(2, 5, 3), dtype=torch.float32), 1e-5)


@pytest.mark.parametrize("name", PARENTS)
def test_only_a_changed_step_loses_the_derivative_by_hand(name):
    own, generic = cells.get(name), name == "cb_gru_drive"
    assert (own.pullback is cells.Cell.pullback) == generic and own.additive


@pytest.mark.parametrize(("name", "parent"), PARENTS.items())
def test_one_thing_differs_from_the_parent(name, parent):
    changed, plain, x = model(name), model(parent), torch.randn(2, 9, 5, dtype=torch.float64)
    if name.endswith(("_free_input", "_drive")):
        assert (changed.cell.constrained()["P_z"] < 0).any()
    else:  # same parameters, same voltages, read in another way
        assert all(
            torch.equal(p, dict(plain.cell.named_parameters())[key])
            for key, p in changed.cell.named_parameters()
        )
        v = plain(x, record=True)[1]["v"]
        assert torch.equal(changed(x, record=True)[1]["v"], v)
        read = v if name.endswith("_all") else torch.sigmoid(v[..., : plain.cell.readout_size])
        torch.testing.assert_close(changed.states(x), read)


def test_the_bridge_moves_as_a_simple_gru():
    """At dt = 1 the drive of the bridge is that of the simple GRU, reading sigma(v) where that one
    reads its state.
    """
    bridge = SequenceClassifier("cb_gru_drive", 5, 6, 4, 9, dt=1.0).double()
    simple = SequenceClassifier("simple_gru", 5, 6, 4, 9).double()
    with torch.no_grad():
        for key, parameter in simple.cell.named_parameters():
            parameter.copy_(getattr(bridge.cell, {"W_z": "K"}.get(key, key)))
        state, r = (torch.rand(2, 6, dtype=torch.float64) for _ in range(2))
        (P, b), x = bridge.cell.input_weights(), torch.randn(2, 5, dtype=torch.float64)
        a, g = (r @ bridge.cell.recurrent_weights()[0].mT,), x @ P.mT + b
        found = bridge.cell.update(cells.VoltageState(state), a, g, {}).v
        torch.testing.assert_close(found, simple.cell.update(cells.RateState(state), a, g, {}).h)


def test_sizes_of_the_grid_match_the_parameters_of_cb():
    features, classes = 3 * 8, 10
    cb = SequenceClassifier("cb", features, 48, classes, 255)
    target = cells.parameter_count(cb)["total"]
    expected = {
        name: cells.matching_hidden_size(name, target, features, classes)
        for name in (*cells.ALL, "dale")
    }
    configs = sweep.read_grid(GRIDS / "cifar10_variants.yaml")
    given = {
        config.cell.name: config.cell.hidden_size
        for config in configs
        if config.cell.hidden_size != 48
    }
    assert given == {
        name: size for name, size in expected.items() if size != 48
    }  # the others come closest at 48, where they run anyway
    assert all((config.window.input_length, config.window.stride) == (8, 4) for config in configs)


def test_grid_holds_all_variants():
    configs = sweep.read_grid(GRIDS / "cifar10_variants.yaml")
    assert {config.seed for config in configs} == {0, 1, 2} and {
        config.training.epochs for config in configs
    } == {5}
    kinds = {
        (config.cell.name, *config.cell.options.items())
        for config in configs
        if config.cell.options
    }
    assert kinds >= {(name, ("dt", dt)) for name in ("cb", "cb_gru") for dt in (0.3, 1.0)}
    assert kinds >= {(name, ("stp_dt", 0.1)) for name in ("stp", "stp_dale", "stp_dale_cb")}
    assert kinds >= {
        (name, ("excitatory_fraction", 0.8)) for name in ("dale_cb", "stp_dale", "stp_dale_cb")
    }
    assert {c.cell.name for c in configs if c.task.permuted} == {
        c.cell.name for c in configs if c.task.last_rows == 8
    }
    assert {c.cell.name for c in configs if c.task.permuted} == {
        "rnn",
        "gru",
        "cb_gru",
        "stp_dale_cb",
    }
    assert {c.cell.name for c in configs if c.cell.initialisation == "notes"} == set(
        cells.names("design,cb_gru")
    ) - {"dale"}
    added = sweep.read_grid(GRIDS / "cifar10_free_input.yaml")
    assert {c.cell.name for c in configs + added if c.cell.source} == set(PARENTS)
    (long,) = {config.training.epochs for config in sweep.read_grid(GRIDS / "cifar10_long.yaml")}
    assert long == 40


def test_a_cell_has_one_rate_for_each_initialisation():
    rates = {}
    for name in ("variants", "free_input", "more_seeds", "ten_epochs"):
        for config in sweep.read_grid(GRIDS / f"cifar10_{name}.yaml"):
            rates.setdefault((style.kin(config.cell.name), config.cell.initialisation), set()).add(
                config.training.learning_rate
            )
    assert all(len(found) == 1 for found in rates.values())
    long = [
        (config.cell.name, config.training.learning_rate)
        for config in sweep.read_grid(GRIDS / "cifar10_long.yaml")
    ]
    assert set(long) >= {
        (name, rate)
        for name in ("gru", "cb_gru", "stp_dale_cb")
        for rate in rates[name, "balanced"]
    }
