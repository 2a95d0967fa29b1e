"""The cells beside options: the rungs between CB-GRU and the simple GRU, where they begin and end,
and their derivative; softplus in place of exp; the floors.
"""

import itertools
from pathlib import Path

import pytest
import torch

from lib import cells, compiled
from lib.config import CellSpec
from lib.recurrence import SequenceClassifier
from lib.runs import sweep

GRIDS = Path(__file__).parent.parent / "notebooks" / "grids"
SIMPLE = {"drive": "z", "z_max": 1.0, "gate_bias": "open", "rate": "v", "target": "sigma"}
RUNGS = [
    dict(zip(("drive", "rate", "target", "read"), words, strict=True))
    for words in itertools.product(("dt", "z"), ("sigma", "v"), ("linear", "sigma"), ("v", "rate"))
]


@pytest.fixture(autouse=True, scope="module")
def registered():
    known, texts = dict(cells.CELLS), dict(cells.SOURCES)
    for stem in ("ladder", "repairs", "floors"):
        cells.register_source((GRIDS / f"{stem}.py").read_text("utf-8"))
    yield
    for registry, before in ((cells.CELLS, known), (cells.SOURCES, texts)):
        registry.clear()
        registry.update(before)


def model(name, backend="reference", **options):
    torch.manual_seed(0)
    return SequenceClassifier(name, 5, 6, 4, 9, seed=3, backend=backend, **options).double()


def test_bottom_of_the_ladder_is_cb_gru():
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    bridge, plain = model("cb_gru_bridge"), model("cb_gru")
    for (key, p), (other, q) in zip(
        bridge.named_parameters(), plain.named_parameters(), strict=True
    ):
        assert key == other and torch.equal(p, q)
    torch.testing.assert_close(bridge(x), plain(x), rtol=1e-12, atol=1e-12)
    for read, expected in (("v", lambda v: v), ("rate", torch.sigmoid)):
        v = plain(x, record=True)[1]["v"]
        torch.testing.assert_close(model("cb_gru_bridge", read=read).states(x), expected(v))


@pytest.mark.parametrize("read", ["v", "rate"])
def test_top_of_the_ladder_is_the_simple_gru(read):
    """With its weights every step, its gate, its logits and its gradients are the same."""
    bridge, simple = model("cb_gru_bridge", **SIMPLE, read=read), model("simple_gru")
    names = {"cell.W_z": "cell.K"}
    parameters = dict(bridge.named_parameters())
    with torch.no_grad():
        for key, parameter in simple.named_parameters():
            parameters[names.get(key, key)].copy_(parameter)
    x = torch.randn(3, 9, 5, dtype=torch.float64)
    logits, trace = bridge(x, record=True)
    expected, expected_trace = simple(x, record=True)
    assert torch.equal(logits, expected)
    assert all(torch.equal(trace[key], expected_trace[key]) for key in ("r", "z"))
    for m in (bridge, simple):
        m(x).square().sum().backward()
    for key, parameter in simple.named_parameters():
        torch.testing.assert_close(parameters[names.get(key, key)].grad, parameter.grad)


@pytest.mark.parametrize("options", RUNGS)
def test_derivative_by_hand_equals_the_automatic_one(options):
    cell = model("cb_gru_bridge", z_max=0.7, **options).cell
    v, x, adjoint = (torch.randn(3, n, dtype=torch.float64) for n in (6, 5, 6))
    previous, adjoint = cells.VoltageState(v), cells.VoltageState(adjoint)
    (P, b), (W,) = cell.input_weights(), cell.recurrent_weights()
    signals, g = cell.presynaptic(previous, {}), x @ P.mT + b
    a = (signals[0] @ W.mT,)
    state = cell.update(previous, a, g, {})
    found, expected = (
        owner.pullback(
            cell,
            previous,
            state,
            signals,
            owner.saved(cell, previous, state, signals, a, g, {}),
            adjoint,
            {},
            lambda grad: (grad[0] @ W,),
        )
        for owner in (type(cell), cells.Cell)
    )
    torch.testing.assert_close(found[0].v, expected[0].v, rtol=0, atol=1e-12)
    torch.testing.assert_close(found[2], expected[2], rtol=0, atol=1e-12)


def test_compiled_equals_reference(monkeypatch):
    monkeypatch.setattr(compiled, "CHUNK", 2)
    x, found = torch.randn(2, 5, 5, dtype=torch.float64), []
    for backend in ("reference", "fast"):
        m = model("cb_gru_bridge", backend, **SIMPLE)
        m(x).square().sum().backward()
        found.append({key: p.grad for key, p in m.named_parameters()})
    for key, expected in found[0].items():
        torch.testing.assert_close(found[1][key], expected, rtol=1e-10, atol=1e-10)


def test_unknown_words_are_refused_and_defaults_enter_no_key():
    with pytest.raises(ValueError, match="rate is 'w', but must be one of sigma, v"):
        cells.check_cell(CellSpec("cb_gru_bridge", options={"rate": "w"}))
    keys = [
        [c.key() for c in sweep.grid(cells="cb_gru_bridge", options=options)]
        for options in ({}, {"rate": "sigma", "read": "v", "drive": "dt"})
    ]
    assert keys[0] == keys[1]


@pytest.mark.parametrize("initialisation", cells.INITIALISATIONS)
def test_softplus_starts_from_the_weights_of_dale_cb(initialisation):
    soft, plain = (
        model(name, initialisation=initialisation) for name in ("dale_cb_softplus", "dale_cb")
    )
    values = soft.cell.constrained()
    for key, expected in plain.cell.constrained().items():
        torch.testing.assert_close(values[key], expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(soft.cell.log_K, plain.cell.log_K)
    torch.testing.assert_close(
        torch.log1p(torch.exp(soft.cell.log_K)), soft.cell.constrained()["K"]
    )
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    torch.testing.assert_close(soft(x), plain(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("drive", ["dt", "z"])
def test_floors_leave_out_what_they_say(drive):
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    for without, gone in (("none", ""), ("K", "K"), ("gate", "KP_z"), ("recurrence", "KP_zW")):
        m = model("cb_floor", without=without, drive=drive)
        p = {key: value.detach() for key, value in m.cell.constrained().items()}
        assert all((p[key] == 0).all() == (key in gone) for key in ("K", "P_z", "W"))
        if without == "none":
            assert torch.equal(m(x), model("cb", drive=drive)(x))
        tau = 1 / (m.cell.dt * torch.sigmoid(p["b_z"] + p["K"].sum(1).mean() / 2))
        assert tau.min().item() == pytest.approx(20, rel=1e-3)
    z = m.cell.dt * torch.sigmoid(p["b_z"])  # the bank: every unit on its own
    v = torch.zeros(2, 6, dtype=torch.float64)
    for x_t in x.unbind(1):
        v = (1 - z) * v + (z if drive == "z" else 0.1) * (x_t @ p["P"].T + p["b"])
    torch.testing.assert_close(m.states(x)[:, -1], v)
    m(x).square().sum().backward()
    assert (m.cell.W.grad == 0).all() and (m.cell.b_z.grad != 0).all()
    with pytest.raises(ValueError, match="without is 'W', but must be one of none, K, gate"):
        cells.check_cell(CellSpec("cb_floor", options={"without": "W"}))
