"""Cells against loops written straight from the equations, against torch.nn, and against what the
constraints promise.
"""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import cells, compiled, measures
from lib.cells import CELLS, names
from lib.cells.initialisation import efficacy
from lib.config import CellSpec
from lib.recurrence import SequenceClassifier
from lib.runs import sweep

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
    P_z = p["P_z"] if free or cell.input_gate == "free" else p["log_P_z"].exp()
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
        z_max = cell.dt if cell.z_max == "dt" else cell.z_max
        z = z_max * sigma(K @ r + P_z @ x_t + p["b_z"])
        rate = z if cell.drive == "z" else cell.dt
        v = (1 - z) * v + rate * (W @ q + p["P"] @ x_t + p["b"])
        keep(v=v, z=z, r=sigma(v))
    return v[:H_E] if dale and cell.readout == "excitatory" else v, trace


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


# every option alone, and all that a cell has together
OPTIONS = {
    "dt": 0.3,
    "drive": "z",
    "z_max": 0.7,
    "gate_bias": "open",
    "input_gate": "free",
    "conductance_gain": 3.5,
    "readout": "all",
    "excitatory_fraction": 0.8,
    "stp_dt": 0.1,
}
CHANGED = [("stp_dale_cb", {option: value}) for option, value in OPTIONS.items()] + [
    (name, {option: OPTIONS[option] for option in CELLS[name].defaults})
    for name in names("design,cb_gru")
]


@pytest.mark.parametrize(("name", "options"), CHANGED)
def test_options_enter_the_equations(name, options):
    m = model(name, **options)
    x = torch.randn(1, 9, 5, dtype=torch.float64)
    logits, trace = m(x, record=True)
    y, expected = loop(m.cell, x[0])
    torch.testing.assert_close(logits[0], m.readout.weight @ y + m.readout.bias, rtol=0, atol=1e-12)
    for variable, values in expected.items():
        torch.testing.assert_close(trace[variable][0], torch.stack(values), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), CHANGED)
def test_derivative_by_hand_equals_the_automatic_one(name, options):
    cell, batch = model(name, **options).cell, 4
    theta = {key: value.expand(batch, -1) for key, value in cell.pointwise().items()}
    state = cell.initial_state(batch, theta)
    previous = type(state)(*(field + 0.3 * torch.rand_like(field) for field in state))
    (P, b), weights = cell.input_weights(), cell.recurrent_weights()
    signals = cell.presynaptic(previous, theta)
    a = tuple(signal @ w.mT for signal, w in zip(signals, weights, strict=True))
    g = torch.randn(batch, 5, dtype=torch.float64) @ P.mT + b
    state = cell.update(previous, a, g, theta)
    adjoint = type(state)(*(torch.randn_like(field) for field in state))

    def pulled(owner):
        saved = owner.saved(cell, previous, state, signals, a, g, theta)
        return owner.pullback(cell, previous, state, signals, saved, adjoint, theta, transposed)

    def transposed(grad):
        return tuple(x @ w for x, w in zip(grad, weights, strict=True))

    by_hand, automatic = pulled(type(cell)), pulled(cells.Cell)
    for found, expected in zip(by_hand[0], automatic[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(by_hand[2], automatic[2], rtol=0, atol=1e-12)
    for key, expected in automatic[3].items():
        torch.testing.assert_close(by_hand[3][key], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["stp_dale_cb", "cb_gru"])
def test_options_on_the_fast_path(name, monkeypatch):
    monkeypatch.setattr(compiled, "CHUNK", 2)
    x, found = torch.randn(2, 5, 5), []
    for backend in ("reference", "fast"):
        m = model(name, backend=backend, **dict(CHANGED[9:])[name]).float()
        logits, trace = m(x, record=True)
        logits.square().sum().backward()
        found.append({**trace, **{key: p.grad for key, p in m.named_parameters()}})
    for key, expected in found[0].items():
        torch.testing.assert_close(found[1][key], expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    scale=st.floats(0.1, 30),
    z_max=st.floats(0.01, 1.0),
    drive=st.sampled_from(["dt", "z"]),
    name=st.sampled_from(["stp_dale_cb", "stp", "dale", "cb_gru"]),
)
def test_states_stay_in_range(seed, scale, z_max, drive, name):
    m = model(name, z_max=z_max, drive=drive, seed=seed)
    x = scale * torch.randn(3, 9, 5, dtype=torch.float64)
    trace = {key: value.detach() for key, value in m(x, record=True)[1].items()}
    assert (trace["z"] >= 0).all() and (trace["z"] <= z_max).all()
    if "U" in trace:
        q = trace["U"] * trace["X"]
        assert (q >= 0).all() and (q <= 1).all() and (trace["X"] <= 1).all()
        assert (trace["U"] >= m.cell.pointwise()["U_cap"]).all() and (trace["U"] <= 1).all()
    if drive == "z":  # v is a running mean of its targets and of v_0 = 0
        p = m.cell.constrained()
        before = torch.cat((torch.zeros(3, 1, 6).double(), trace["v"][:, :-1]), 1)
        sent = torch.sigmoid(before)
        if "U" in trace:
            sent = trace["U"] * trace["X"] * sent
        target = sent @ p["W"].T + x @ p["P"].T + p["b"]
        tolerance = 1e-12 * target.abs().max()
        low = target.cummin(1).values.clamp(max=0) - tolerance
        high = target.cummax(1).values.clamp(min=0) + tolerance
        assert (trace["v"] >= low).all() and (trace["v"] <= high).all()


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
        assert efficacy(cell) == pytest.approx((U * z_x / (z_x + d * U * rate)).mean().item())


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
    scale = efficacy(cell) if cell.stp else 1.0
    assert (values["W"] * scale).square().mean() == pytest.approx(1 / (3 * hidden), rel=0.1)
    assert (
        abs((values["W"] * scale).sum(1).mean()) < 0.2
    )  # excitation and inhibition cancel in the mean


def initial(name, initialisation="balanced", **options):
    m = SequenceClassifier(name, 12, 48, 10, 256, initialisation=initialisation, **options)
    return m.cell, {key: value.detach() for key, value in m.cell.constrained().items()}


MOVED = {  # option, its value: what it may move
    ("drive", "z"): (),
    ("readout", "all"): (),
    ("input_gate", "free"): ("P_z",),
    ("gate_bias", "open"): ("b_z",),
    ("z_max", 1.0): ("b_z",),
    ("conductance_gain", 12.0): ("K", "W", "v_e", "v_i", "b_z"),
}


@pytest.mark.parametrize(
    ("name", "initialisation", "option", "value"),
    [
        (name, initialisation, option, value)
        for name in names("design,cb_gru")
        for initialisation in cells.INITIALISATIONS
        for option, value in MOVED
        if option in CELLS[name].defaults
        and (initialisation, option) != ("notes", "conductance_gain")  # refused
    ],
)
def test_an_option_moves_only_its_own_weights(name, initialisation, option, value):
    _, plain = initial(name, initialisation)
    _, changed = initial(name, initialisation, **{option: value})
    assert plain.keys() == changed.keys()
    differ = {key for key in plain if not torch.equal(plain[key], changed[key])}
    assert differ <= set(MOVED[option, value])
    if (initialisation, option) != ("notes", "z_max"):  # there b_z is U(0, 1) whatever the gate
        assert differ or not MOVED[option, value]


@pytest.mark.parametrize("z_max", [0.05, 0.1, 0.5, 1.0])
def test_chrono_gates_start_at_one_over_tau(z_max):
    cell, values = initial("dale_cb", z_max=z_max)
    z = z_max * torch.sigmoid(values["b_z"] + values["K"].sum(1).mean() / 2)
    shortest = 2 / min(z_max, cell.dt)
    assert 1 / z.max().item() == pytest.approx(shortest, rel=1e-3)
    assert 1 / z.min().item() == pytest.approx(256, rel=1e-3)


@pytest.mark.parametrize("initialisation", cells.INITIALISATIONS)
@pytest.mark.parametrize("name", names("design,cb_gru"))
def test_open_gates_start_at_half_of_z_max(name, initialisation):
    cell, values = initial(name, initialisation, gate_bias="open", z_max=0.8)
    gate = values["K"] @ torch.full((48,), 0.5) + values["b_z"]  # all rates 1/2, a mean input
    assert gate.mean().item() == pytest.approx(0, abs=1e-4)
    assert cell.z_max == 0.8


@pytest.mark.parametrize("name", names("design"))
def test_gain_is_the_sum_of_a_row_of_K_and_leaves_gate_and_drive(name):
    plain = initial(name)[1]
    changed = initial(name, conductance_gain=12)[1]
    assert changed["K"].sum(1).mean() == pytest.approx(12, rel=0.05)
    gates = [(v["K"].sum(1).mean() / 2 + v["b_z"]) for v in (plain, changed)]
    torch.testing.assert_close(*gates, rtol=0, atol=1e-5)
    moments = [v["W"].square().mean().item() for v in (plain, changed)]
    assert moments[1] == pytest.approx(moments[0], rel=0.1)
    torch.testing.assert_close(changed["K"], 12 * plain["K"])


def test_free_input_weights_of_the_gate_are_uniform():
    for initialisation in cells.INITIALISATIONS:
        P_z = initial("cb", initialisation, input_gate="free")[1]["P_z"] * math.sqrt(48)
        assert -1 <= P_z.min() < -0.95 and 0.95 < P_z.max() <= 1
        assert P_z.var() == pytest.approx(1 / 3, rel=0.1) and abs(P_z.mean()) < 0.1


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
    fraction = {"excitatory_fraction": 0.2}
    assert 40 < cells.matching_hidden_size("dale", target, 12, 10, **fraction) < 60
    assert cells.matching_hidden_size("dale", 50, 12, 10, **fraction) == 3
    for wrong in ("speed", "sequence_length"):
        with pytest.raises(ValueError, match=f"has no option '{wrong}'"):
            cells.matching_hidden_size("dale", target, 12, 10, **{wrong: 1})


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
        (CellSpec("cb", options={"dt": 0}), "dt is 0, but must be a number above 0 and at most 1"),
        (CellSpec("cb", options={"z_max": 1.5}), "z_max is 1.5, but must be a number above 0"),
        (CellSpec("cb", options={"z_max": "big"}), "z_max is 'big'"),
        (CellSpec("cb", options={"stp_dt": 0.1}), "has no option 'stp_dt'"),
        (CellSpec("cb", options={"readout": "all"}), "has no option 'readout'"),
        (CellSpec("cb_gru", options={"input_gate": "free"}), "has no option 'input_gate'"),
        (CellSpec("cb_gru", options={"conductance_gain": 2}), "has no option 'conductance_gain'"),
        (CellSpec("cb", options={"drive": "gate"}), "drive is 'gate', but must be one of dt, z."),
        (CellSpec("cb", options={"drive": 1}), "drive is 1, but must be one of dt, z."),
        (CellSpec("cb", options={"gate_bias": True}), "gate_bias is True, but must be one of"),
        (CellSpec("cb", options={"input_gate": ["free"]}), "input_gate is ['free'], but"),
        (CellSpec("dale", options={"readout": "none"}), "readout is 'none', but must be one of"),
        (CellSpec("cb", options={"conductance_gain": 0}), "conductance_gain is 0, but must be"),
        (CellSpec("cb", options={"conductance_gain": math.inf}), "must be a finite number above 0"),
        (
            CellSpec("cb", initialisation="notes", options={"conductance_gain": 12}),
            "belongs to the balanced initialisation",
        ),
        (CellSpec("cb", initialisation="best"), "initialisation is 'best'"),
    ],
)
def test_bad_cells_are_refused(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        cells.check_cell(spec)


def test_a_default_given_explicitly_changes_nothing():
    for name in names("all,dale"):
        assert CELLS[name].changed_options(CELLS[name].defaults) == {}
    changed = CELLS["stp_dale"].changed_options
    assert changed({"dt": 0.1, "stp_dt": 1, "z_max": 0.1, "drive": "dt"}) == {}
    assert changed({"z_max": 0.3, "dt": 0.3}) == {"dt": 0.3}
    found = changed({"z_max": 1, "conductance_gain": 12})
    assert found == {"z_max": 1.0, "conductance_gain": 12.0}
    assert all(type(value) is float for value in found.values())  # 1 and 1.0 are one key
    explicit, plain = (
        [c.key() for c in sweep.grid(cells="cb,stp_dale_cb", options=options)]
        for options in ({"dt": 0.1, "z_max": 0.1, "readout": "excitatory"}, None)
    )
    assert explicit == plain


def test_a_largest_gate_of_dt_is_an_option_where_it_is_not_the_default():
    class Wide(cells.CB):
        name, defaults = "wide", {"z_max": 1.0}

    assert Wide.changed_options({"z_max": 0.1}) == {"z_max": 0.1}
    assert Wide.changed_options({"z_max": 1}) == {}


def test_names_select_and_refuse():
    assert names() == list(cells.ALL) and len(names()) == 9
    assert names("design") == ["cb", "dale", "dale_cb", "stp", "stp_dale", "stp_dale_cb"]
    with pytest.raises(ValueError, match="named 2 times"):
        names("cb,cb")


@pytest.mark.parametrize(
    ("name", "options", "z_max"),
    [
        ("cb", {}, 0.1),
        ("cb", {"dt": 0.3}, 0.3),
        ("cb", {"z_max": 0.8}, 0.8),
        ("stp_dale_cb", {"z_max": 1.0, "dt": 0.3, "drive": "z"}, 1.0),
    ],
)
def test_a_gate_is_saturated_near_its_own_largest_value(name, options, z_max):
    """b_z opens all gates of the first half of the units and shuts the others."""
    m = model(name, **options)
    assert m.cell.z_max == z_max
    with torch.no_grad():
        m.cell.b_z.copy_(torch.tensor([200.0] * 3 + [-200.0] * 3))
    trace = {k: v.detach().numpy() for k, v in m(torch.zeros(2, 9, 5).double(), True)[1].items()}
    values = {k: v.detach().numpy() for k, v in m.cell.constrained().items()}
    rows = {
        (row["variable"], row["statistic"]): row["value"]
        for row in measures.dynamic_rows(m.cell, values, trace)
    }
    assert rows["z", "saturated"] == 0.5 and trace["z"].max() == pytest.approx(z_max)
