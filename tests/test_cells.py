"""Cells against loops written straight from the equations, against torch.nn, and against what the
constraints promise.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import cells
from lib.cells import CELLS, names
from lib.config import CellSpec
from lib.recurrence import SequenceClassifier

torch.set_num_threads(1)
EVERY = names("all,dale")
sigma = torch.sigmoid


def model(name, hidden=6, features=5, steps=9, **options):
    torch.manual_seed(0)
    return SequenceClassifier(name, features, hidden, 3, steps, **options).double()


def loop(cell, x):
    """Final output and trace of one sequence x (time, features), written from the equations, unit
    by unit where they are.
    """
    p = {name: value.detach() for name, value in cell.named_parameters()}
    H = cell.hidden_size
    trace = {}
    keep = lambda **values: [trace.setdefault(k, []).append(v) for k, v in values.items()]  # noqa: E731
    if cell.name == "rnn":
        h = torch.zeros(H).double()
        for x_t in x:
            h = torch.tanh(p["W"] @ h + p["P"] @ x_t + p["b"])
            keep(h=h)
        return h, trace
    if cell.name == "simple_gru":
        r = torch.zeros(H).double()
        for x_t in x:
            z = sigma(p["W_z"] @ r + p["P_z"] @ x_t + p["b_z"])
            r = (1 - z) * r + z * sigma(p["W"] @ r + p["P"] @ x_t + p["b"])
            keep(r=r, z=z)
        return r, trace
    if cell.name == "gru":
        h = torch.zeros(H).double()
        for x_t in x:
            gi, gh = p["weight_ih"] @ x_t + p["bias_ih"], p["weight_hh"] @ h + p["bias_hh"]
            reset, old = sigma(gi[:H] + gh[:H]), sigma(gi[H : 2 * H] + gh[H : 2 * H])
            h = (1 - old) * torch.tanh(gi[2 * H :] + reset * gh[2 * H :]) + old * h
            keep(h=h, z=1 - old)
        return h, trace
    free = cell.name == "cb_gru"
    K = p["K"] if free else p["log_K"].exp()
    P_z = p["P_z"] if free else p["log_P_z"].exp()
    dale, reversal, stp = (
        "dale" in cell.name,
        cell.name.endswith("dale_cb"),
        cell.name.startswith("stp"),
    )
    H_E = round(cell.excitatory_fraction * H) if dale else None
    if not dale:
        W = p["W"]
    elif reversal:
        W = (K + p["log_C"].exp()).clone()
        W[:, :H_E] *= p["log_v_e"].exp()
        W[:, H_E:] *= -p["log_v_i"].exp()
    else:
        W = p["log_W"].exp() * torch.tensor([1.0] * H_E + [-1.0] * (H - H_E)).double()
    v, X = torch.zeros(H).double(), torch.ones(H).double()
    if stp:
        z_x, z_u = (0.001 + (0.1 - 0.001) * sigma(p[c]) for c in ("c_x", "c_u"))
        U_cap = 0.9 * sigma(p["c_U"])
        U, d = U_cap, cell.stp_dt
    for x_t in x:
        r = sigma(v)
        q = r
        if stp:
            X, U = (
                z_x + (1 - z_x) * X - d * U * X * r,
                U_cap * z_u + (1 - z_u) * U + d * U_cap * (1 - U) * r,
            )
            q = U * X * r
            keep(X=X, U=U)
        z = cell.dt * sigma(K @ r + P_z @ x_t + p["b_z"])
        v = (1 - z) * v + cell.dt * (W @ q + p["P"] @ x_t + p["b"])
        keep(v=v, z=z, r=sigma(v))
    return v[:H_E] if dale else v, trace


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("initialisation", ["balanced", "notes"])
def test_equals_loop_from_equations(name, initialisation):
    m = model(name, initialisation=initialisation)
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    logits, trace = m(x, record=True)
    assert set(trace) == set(CELLS[name].variables)
    for i in range(2):
        y, expected = loop(m.cell, x[i])
        torch.testing.assert_close(
            logits[i], m.readout.weight @ y + m.readout.bias, rtol=0, atol=1e-12
        )
        for variable, values in expected.items():
            torch.testing.assert_close(trace[variable][i], torch.stack(values), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{"dt": 0.3, "stp_dt": 0.1, "excitatory_fraction": 0.8}])
def test_options_enter_the_equations(options):
    m = model("stp_dale_cb", **options)
    x = torch.randn(1, 9, 5, dtype=torch.float64)
    y, _ = loop(m.cell, x[0])
    assert m.readout.in_features == 5
    torch.testing.assert_close(m(x)[0], m.readout.weight @ y + m.readout.bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "twin"), [("rnn", torch.nn.RNN), ("gru", torch.nn.GRU)])
def test_parity_with_torch(name, twin):
    m, layer = model(name), twin(5, 6).double()
    cell = m.cell
    with torch.no_grad():
        if name == "rnn":
            cell.W.copy_(layer.weight_hh_l0)
            cell.P.copy_(layer.weight_ih_l0)
            cell.b.copy_(layer.bias_ih_l0 + layer.bias_hh_l0)
        else:
            for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(cell, key).copy_(getattr(layer, f"{key}_l0"))
    x = torch.randn(4, 9, 5, dtype=torch.float64)
    expected = m.readout(layer(x.movedim(1, 0))[0][-1])
    logits = m(x)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    logits.square().sum().backward()
    expected.square().sum().backward()
    pairs = {"W": "weight_hh_l0", "P": "weight_ih_l0", "b": "bias_ih_l0"} if name == "rnn" else {}
    for key, parameter in cell.named_parameters():
        torch.testing.assert_close(
            parameter.grad, getattr(layer, pairs.get(key, f"{key}_l0")).grad, rtol=0, atol=1e-12
        )


@settings(max_examples=60, deadline=None)
@given(
    c=st.lists(st.floats(-8, 8), min_size=3, max_size=3),
    rates=st.lists(
        st.floats(0.0, 1.0, exclude_min=True, exclude_max=True), min_size=1, max_size=60
    ),
    d=st.floats(0.01, 1.0),
)
def test_plasticity_stays_in_range(c, rates, d):
    cell = model("stp", hidden=1, stp_dt=d).cell
    with torch.no_grad():
        for parameter, value in zip((cell.c_x, cell.c_u, cell.c_U), c, strict=True):
            parameter.fill_(value)
    theta = cell.pointwise()
    state = cell.initial_state(1, theta)
    for r in rates:
        voltage = (
            torch.tensor([[math.log(r / (1 - r))]], dtype=torch.float64) if 0 < r < 1 else state.v
        )
        _, X, U = cell._plasticity(state._replace(v=voltage), theta)
        assert -1e-12 <= X.item() <= 1 + 1e-12
        assert theta["U_cap"].item() - 1e-12 <= U.item() <= 1 + 1e-12
        state = state._replace(X=X, U=U)


@pytest.mark.parametrize(("rate", "d"), [(0.3, 1.0), (0.8, 1.0), (0.5, 0.1)])
def test_plasticity_reaches_its_fixed_point(rate, d):
    cell = model("stp", stp_dt=d).cell
    theta = cell.pointwise()
    state = cell.initial_state(1, theta)._replace(
        v=torch.full((1, 6), math.log(rate / (1 - rate)), dtype=torch.float64)
    )
    for _ in range(20_000):
        state = state._replace(
            **dict(zip(("X", "U"), cell._plasticity(state, theta)[1:], strict=True))
        )
    z_x, z_u, U_cap = theta["z_x"], theta["z_u"], theta["U_cap"]
    U = U_cap * (z_u + d * rate) / (z_u + d * U_cap * rate)
    torch.testing.assert_close(state.U[0], U)
    torch.testing.assert_close(state.X[0], z_x / (z_x + d * U * rate))
    if rate == 0.5:
        assert cell._efficacy() == pytest.approx((U * z_x / (z_x + d * U * rate)).mean().item())


@pytest.mark.parametrize("name", ["dale", "dale_cb", "stp_dale", "stp_dale_cb"])
def test_signs_hold_under_training(name):
    m = model(name, excitatory_fraction=0.7).float()
    optimiser = torch.optim.Adam(m.parameters(), lr=0.05)
    before = m.cell.constrained()["W"].detach().clone()
    for _ in range(100):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(
            m(torch.randn(8, 9, 5)), torch.randint(3, (8,))
        ).backward()
        optimiser.step()
    values = m.cell.constrained()
    assert (
        (values["W"] * m.cell.signs > 0).all()
        and (values["K"] > 0).all()
        and (values["P_z"] > 0).all()
    )
    assert not torch.equal(values["W"], before)


@pytest.mark.parametrize("name", EVERY)
def test_initialisation_is_the_seeds_own(name):
    def bits(seed):
        return [
            p.detach().clone()
            for p in SequenceClassifier(name, 4, 8, 3, 20, seed=seed).parameters()
        ]

    torch.manual_seed(1)
    first = bits(5)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, bits(5), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, bits(6), strict=True))


@pytest.mark.parametrize("name", names("design"))
@pytest.mark.parametrize("fraction", [0.5, 0.8])
def test_balanced_initialisation(name, fraction):
    hidden, T = 200, 256
    options = {"excitatory_fraction": fraction} if CELLS[name].dale else {}
    cell = SequenceClassifier(name, 12, hidden, 10, T, **options).cell
    values = {k: v.detach() for k, v in cell.constrained().items()}
    assert values["K"].sum(1).mean() == pytest.approx(1, abs=0.05)
    tau = (1 + torch.exp(-(values["b_z"] + values["K"].sum(1).mean() / 2))) / cell.dt
    assert (tau.min().item(), tau.max().item()) == (
        pytest.approx(2 / cell.dt, rel=1e-3),
        pytest.approx(T, rel=1e-3),
    )
    scale = cell._efficacy() if cell.stp else 1.0
    assert (values["W"] * scale).square().mean() == pytest.approx(1 / (3 * hidden), rel=0.1)
    assert (
        abs((values["W"] * scale).sum(1).mean()) < 0.2
    )  # excitation and inhibition cancel in the mean


def test_notes_initialisation_is_the_notes():
    cell = SequenceClassifier("stp_dale_cb", 12, 48, 10, 256, initialisation="notes").cell
    for name in ("log_K", "log_C", "log_P_z", "b_z"):
        parameter = getattr(cell, name)
        assert parameter.min() >= 0 and parameter.max() <= 1
    assert cell.log_v_e == cell.log_v_i == 1


def test_parameter_count_and_matching_size():
    for name in EVERY:
        m = SequenceClassifier(name, 12, 48, 10, 256)
        count = cells.parameter_count(m)
        assert (
            count["total"]
            == sum(p.numel() for p in m.parameters())
            == sum(v for k, v in count.items() if k != "total")
        )
    gru = cells.parameter_count(SequenceClassifier("gru", 12, 48, 10, 256))
    assert (gru["gate"], gru["drive"]) == (2 * 48 * 48 + 2 * 48, 48 * 48 + 48 + 3 * 48)
    target = cells.parameter_count(SequenceClassifier("cb", 12, 48, 10, 256))["total"]
    assert cells.matching_hidden_size("cb", target, 12, 10) == 48
    size = cells.matching_hidden_size("gru", target, 12, 10)
    totals = {
        h: cells.parameter_count(SequenceClassifier("gru", 12, h, 10, 256))["total"]
        for h in (size - 1, size, size + 1)
    }
    assert min(totals, key=lambda h: abs(totals[h] - target)) == size


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (CellSpec("lstm"), "Unknown cell 'lstm'; known cells are rnn, simple_gru"),
        (CellSpec("cb", hidden_size=0), "hidden_size is 0"),
        (CellSpec("dale_cb", options={"excitatory_fraction": 0.001}), "leaves no excitatory unit"),
        (CellSpec("dale_cb", options={"excitatory_fraction": 1.0}), "leaves no inhibitory unit"),
        (
            CellSpec("cb", options={"excitatory_fraction": 0.5}),
            "has no option 'excitatory_fraction'; its options are: dt",
        ),
        (CellSpec("cb", options={"dt": 0}), "dt is 0"),
        (CellSpec("cb", initialisation="best"), "initialisation is 'best'"),
    ],
)
def test_bad_cells_are_refused(spec, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        cells.check_cell(spec)


def test_names_select_and_refuse():
    assert names() == list(cells.ALL) and len(names()) == 9
    assert names("design") == ["cb", "dale", "dale_cb", "stp", "stp_dale", "stp_dale_cb"]
    with pytest.raises(ValueError, match="named 2 times"):
        names("cb,cb")
