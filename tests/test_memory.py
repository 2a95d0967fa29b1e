from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from lib import cells, datasets, memory, train
from lib.cells.conductance import VoltageState
from lib.config import CellSpec, RunConfig, Task, Window
from lib.explore import live
from lib.runs import audit
from lib.runs.store import Store
from tests import tiny

WINDOW = Window(8, 8)  # 32 steps


@pytest.fixture(scope="module")
def data():
    return datasets.load(Task())


@pytest.fixture(scope="module")
def model():
    return train.build(RunConfig(window=WINDOW, cell=CellSpec("stp_dale_cb", 12)))


def test_all_first_steps_are_all_last_steps_are_no_delay(model, data):
    whole = [
        memory.recall(model, data, WINDOW, *what, images=200)["accuracy"].tolist()
        for what in (("first", [32]), ("last", [32]), ("delay", [0]))
    ]
    assert whole[0] == whole[1] == whole[2]
    x, labels = memory.sequences(data, WINDOW, images=200)
    assert whole[0][0] == pytest.approx((model(x).argmax(1) == labels).float().mean().item())


def test_recall_reads_the_states_of_the_truncated_sequence(model, data):
    x, labels = memory.sequences(data, WINDOW, images=200)
    for condition, part in (("first", x[:, :5]), ("last", x[:, -5:])):
        expected = (model(part).argmax(1) == labels).float().mean().item()
        frame = memory.recall(model, data, WINDOW, condition, [5], images=200)
        assert frame.set_index("readout").at["trained", "accuracy"] == pytest.approx(expected)
        assert set(frame["pixels"]) == {40}


def test_a_refitted_readout_finds_more_in_more_of_the_image(model, data):
    frame = memory.recall(model, data, WINDOW, "first", [1, 32], images=500).query(
        "readout == 'refitted'"
    )
    assert frame["accuracy"].iat[1] > frame["accuracy"].iat[0] + 0.1


@pytest.mark.parametrize(
    "condition, steps, sentence",
    [
        ("first", [0], "from 1 to 32"),
        ("last", [33], "33"),
        ("middle", [3], "first, last, delay"),
    ],
)
def test_bad_conditions_are_named(model, data, condition, steps, sentence):
    with pytest.raises(ValueError, match=sentence):
        memory.recall(model, data, WINDOW, condition, steps, images=50)


def test_gradient_of_an_input_that_the_state_forgets_is_zero(data):
    model = train.build(RunConfig(window=WINDOW, cell=CellSpec("rnn", 12)))
    with torch.no_grad():
        model.cell.W.zero_()  # the state holds the last step alone
    norm = memory.gradient_by_lag(model, data, WINDOW, images=20)
    assert norm.shape == (32,) and norm[0] > 0 and not norm[1:].any()
    assert memory.time_constants(model, data, WINDOW, images=20) is None


def test_time_constants_are_in_pixels(model, data):
    once, twice = (
        memory.time_constants(model, data, window, images=50) for window in (Window(8, 4), WINDOW)
    )
    assert once.shape == (12,) and 1.5 < np.median(twice) / np.median(once) < 2.5


def test_span_is_halfway_from_chance():
    frame = pd.DataFrame({"pixels": [8, 16, 32, 64], "accuracy": [0.2, 0.4, 0.6, 0.9]})
    assert memory.span(frame.assign(condition="last")) == 32
    assert (
        memory.span(frame.assign(condition="delay", accuracy=frame["accuracy"].to_numpy()[::-1]))
        == 16
    )


# --- lesions


LESIONED = [
    ("rnn", {}),
    ("simple_gru", {}),
    ("gru", {}),
    ("cb", {}),
    ("cb_gru", {"drive": "z", "z_max": 1}),
    ("dale_cb", {"drive": "z", "z_max": 1, "gate_bias": "open", "input_gate": "free"}),
    ("stp", {"drive": "z"}),
    ("stp_dale_cb", {"stp_dt": 0.1}),
]
WAITING = Task(first_rows=6, delay=24)


def sequences(*of, **images):
    x, labels = memory.sequences(*of, **images)
    return x.double(), labels


def sigma(x):
    return torch.sigmoid(x)


def rates(cell, x, lesion=None, value=None, other=None, start=None):
    """Vanilla RNN, simple GRU and full GRU, step by step; what the read-out reads, and signals."""
    h, H, kept = torch.zeros(len(x), cell.hidden_size).to(x), cell.hidden_size, []
    for t in range(x.shape[1]):
        r = other[t]["r"].roll(1, 0) if lesion == "r shuffled" and t >= start else h
        if cell.name == "rnn":
            recurrent = 0 if lesion == "W" else r @ cell.W.T
            h, signals = torch.tanh(recurrent + x[:, t] @ cell.P.T + cell.b), {}
        else:
            if cell.name == "simple_gru":
                gate, seen = r @ cell.W_z.T, x[:, t] @ cell.P_z.T + cell.b_z
                sign = 1
            else:
                Wr, Wz, Wn = cell.weight_hh.split(H)
                gate, sign = r @ Wz.T, -1
                project = x[:, t] @ cell.weight_ih.T + cell.bias_ih
                seen = project[:, H : 2 * H] + cell.bias_hh[H : 2 * H]
            gate = value if lesion == "K r" else gate
            seen = value if lesion == "P_z x" else seen
            z = value if lesion == "z" else sigma(sign * (gate + seen))
            if cell.name == "simple_gru":
                recurrent = 0 if lesion == "W" else r @ cell.W.T
                target = sigma(recurrent + x[:, t] @ cell.P.T + cell.b)
            else:
                reset = sigma(r @ Wr.T + project[:, :H] + cell.bias_hh[:H])
                recurrent = 0 if lesion == "W" else r @ Wn.T
                target = torch.tanh(
                    project[:, 2 * H :] + reset * (recurrent + cell.bias_hh[2 * H :])
                )
            h = (1 - z) * h + z * target
            signals = {"z": z, "K r": gate, "P_z x": seen}
        kept.append({"r": r, **signals})
    return h, kept


def conductances(cell, x, lesion=None, value=None, other=None, start=None):
    """The conductance family, step by step; what the read-out reads, and signals of every step."""
    p = cell.constrained()
    v, kept = torch.zeros(len(x), cell.hidden_size).to(x), []
    X, U = torch.ones_like(v), p.get("U_cap", torch.ones(1)).expand_as(v)
    for t in range(x.shape[1]):
        own, waiting = sigma(v), start is not None and t >= start
        r = other[t]["r"].roll(1, 0) if lesion == "r shuffled" and waiting else own
        q = r
        if cell.stp:
            X, U = (
                p["z_x"] + (1 - p["z_x"]) * X - cell.stp_dt * U * X * own,
                p["U_cap"] * p["z_u"]
                + (1 - p["z_u"]) * U
                + cell.stp_dt * p["U_cap"] * (1 - U) * own,
            )
            efficacy = U * X
            if lesion == "UX":
                efficacy = value
            elif lesion == "UX shuffled" and waiting:
                efficacy = other[t]["UX"].roll(1, 0)
            q = efficacy * r
        gate, seen = r @ p["K"].T, x[:, t] @ p["P_z"].T + p["b_z"]
        gate = value if lesion == "K r" else gate
        seen = value if lesion == "P_z x" else seen
        z = value if lesion == "z" else cell.z_max * sigma(gate + seen)
        drive = (0 if lesion == "W" else q @ p["W"].T) + x[:, t] @ p["P"].T + p["b"]
        v = (1 - z) * v + (z if cell.drive == "z" else cell.dt) * drive
        kept.append({"r": r, "z": z, "K r": gate, "P_z x": seen, "UX": U * X})
    return v[:, : cell.readout_size], kept


def network(cell, task=WAITING, size=8, **options):
    """Float64, with parameters far from their start, so that every signal matters."""
    model = train.build(RunConfig(task, WINDOW, CellSpec(cell, size, options=options))).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.7 * noise
        data = datasets.load(task)
        states = model.states(sequences(data, WINDOW, images=200)[0])[:, -1]
        model.readout.weight /= states.std(0)  # no image's class is that of all
        model.readout.bias.copy_(-model.readout.weight @ states.mean(0))
    return model.requires_grad_(False)


def answering(data, logits, n):
    """The data, with the labels of the first n test images those that logits name."""
    labels = data.labels["test"].clone()
    labels[:n] = logits.argmax(1)
    return replace(data, labels={**data.labels, "test": labels})


@pytest.mark.parametrize(("name", "options"), LESIONED)
def test_lesions_equal_loops_written_out(name, options):
    data, model, images = datasets.load(WAITING), network(name, **options), 200
    loop = rates if name in ("rnn", "simple_gru", "gru") else conductances
    train_x, _ = sequences(data, WINDOW, "train", images)
    x, _ = sequences(data, WINDOW, "test", images)
    (_, seen), (intact, other) = loop(model.cell, train_x), loop(model.cell, x)
    assert torch.allclose(intact, model.states(x)[:, -1])
    able = memory.lesions(model, data)
    gated, plastic = ["z", "K r", "P_z x"] * (name != "rnn"), ["UX", "UX shuffled"] * model.cell.stp
    assert set(able) == {*gated, *plastic, "W", "r shuffled"}
    for what in able:
        value = None
        if what in seen[0]:
            value = torch.stack([step[what].expand(images, -1) for step in seen]).mean((0, 1))
        states, _ = loop(model.cell, x, what, value, other, start=x.shape[1] - 3)
        lesioned = answering(data, model.readout(states), images)
        assert memory.lesion(model, lesioned, WINDOW, what, images) == 1, what
        assert memory.lesion(model, lesioned, WINDOW, None, images) < 1, what


def test_a_lesion_of_a_matrix_that_is_zero_changes_nothing():
    data = datasets.load(WAITING)
    for name, parameter, what in (("cb_gru", "K", "K r"), ("cb_gru", "W", "W"), ("rnn", "W", "W")):
        model = network(name)
        getattr(model.cell, parameter).zero_()
        x, _ = sequences(data, WINDOW, images=200)
        intact = answering(data, model(x), 200)
        assert memory.lesion(model, intact, WINDOW, what, 200) == 1
        other = {"K r": "W", "W": "P_z x"}[what]
        if other in memory.lesions(model, data):
            assert memory.lesion(model, intact, WINDOW, other, 200) < 1


def test_a_shuffled_delay_changes_nothing_where_only_the_last_input_is_read():
    data, model = datasets.load(WAITING), network("rnn")
    x, _ = sequences(data, WINDOW, images=200)
    assert memory.lesion(model, answering(data, model(x), 200), WINDOW, "r shuffled", 200) < 1
    model.cell.W.zero_()
    assert memory.lesion(model, answering(data, model(x), 200), WINDOW, "r shuffled", 200) == 1


def test_drops_are_what_each_lesion_takes():
    data, model = datasets.load(WAITING), network("stp")
    frame = memory.drops(model, data, WINDOW, images=100).set_index("lesion")
    assert list(frame.index) == memory.lesions(model, data)
    left = memory.lesion(model, data, WINDOW, "UX", 100)
    assert frame.at["UX", "intact"] - frame.at["UX", "drop"] == pytest.approx(left)


def test_a_refitted_readout_makes_up_for_a_shift(data):
    model = network("cb_gru", Task(), 16)
    accuracy = {
        readout: memory.lesion(model, data, WINDOW, "P_z x", 600, readout)
        for readout in memory.READOUTS
    }
    assert accuracy["refitted"] > accuracy["trained"] + 0.1


@pytest.mark.parametrize(
    ("name", "what", "words"),
    [
        ("rnn", "z", "what is 'z'.*None, W for vanilla RNN"),
        ("cb", "UX", "what is 'UX'.*z, K r, P_z x, W for CB"),
        ("stp", "r shuffled", "what is 'r shuffled'.*UX for STP nonDale.*needs a delay"),
    ],
)
def test_a_lesion_of_what_a_cell_lacks_is_refused(name, what, words, data):
    with pytest.raises(ValueError, match=words):
        memory.lesion(network(name, Task()), data, WINDOW, what)
    with pytest.raises(ValueError, match="readout is 'own'"):
        memory.lesion(network(name, Task()), data, WINDOW, None, readout="own")


class Linear(cells.Cell):
    """v_t = A v_{t-1} + P x_t + b; in the tests only."""

    name, label, variables = "linear", "linear", ("v", "z")
    z_max = 1.0

    def initialise(self, initialisation, generator):
        self.A = self.uniform(self.hidden_size, self.hidden_size, generator=generator)
        self.P = self.uniform(self.hidden_size, self.input_size, generator=generator)
        self.b = self.uniform(self.hidden_size, generator=generator)

    def input_weights(self):
        return self.P, self.b

    def recurrent_weights(self):
        return (self.A,)

    def initial_state(self, batch, theta):
        return VoltageState(self.b.new_zeros(batch, self.hidden_size))

    def presynaptic(self, state, theta):
        return (state.v,)

    def update(self, state, a, g, theta):
        return VoltageState(a[0] + g)

    def observe(self, previous, state, a, g, theta):
        return {"v": state.v, "z": a[0] + g}  # no sigmoid: it cannot be held


@pytest.fixture
def linear(monkeypatch):
    monkeypatch.setitem(cells.CELLS, "linear", Linear)
    return network("linear", Task(), 6)


def test_what_a_users_own_cell_cannot_do_is_refused(linear, data):
    assert memory.lesions(linear, data) == ["K r", "P_z x"]
    with pytest.raises(ValueError, match=r"what is 'z'.*None, K r, P_z x for linear"):
        memory.lesion(linear, data, WINDOW, "z")


# --- decoding


def test_the_current_input_is_decoded_and_one_beyond_a_reset_is_not(linear, data):
    linear.cell.A.zero_()  # every step forgets all
    linear.cell.P.copy_(torch.eye(8)[:6])
    frame = memory.decode(linear, data, WINDOW, "pixels", "v", [0, 1, 16], images=300)
    score = frame.groupby("lag")["score"].mean()
    assert list(score.index) == [0, 1, 16] and frame["pixels"].tolist()[::5] == [0, 8, 128]
    assert score[0] > 0.6 and score[[1, 16]].max() < 0.3
    model = network("linear", Task(), 8)
    model.cell.A.zero_()
    model.cell.P.copy_(torch.eye(8))
    whole = memory.decode(model, data, WINDOW, "pixels", "v", [0], images=300, step=17)
    assert whole["score"].min() > 0.99


def test_folds_keep_images_apart(data):
    model, noise = network("gru", Task(), 48), torch.Generator().manual_seed(0)
    labels = torch.randint(10, data.labels["test"].shape, generator=noise)
    data = replace(data, labels={**data.labels, "test": labels})
    frame = memory.decode(model, data, WINDOW, "class", "h", [0], images=60)
    assert len(frame) == 5 and frame["score"].mean() < 0.35  # 48 units fit 60 labels by heart


def test_class_and_colour_are_decoded_from_each_signal(data):
    model = network("stp", Task(first_rows=6, delay=64), 24)
    data = datasets.load(Task(first_rows=6, delay=64))
    for source in ("r", "UX"):
        frame = memory.decode(model, data, WINDOW, "class", source, [0, 8, 18], images=300)
        score = frame.groupby("lag")["score"].mean()
        assert score[8] > 0.2 and set(frame["source"]) == {source}
    colour = memory.decode(model, data, WINDOW, "colour", "v", [0, 5], images=300)
    assert colour.groupby("lag")["pixels"].first().to_dict() == {0: 64, 5: 64 + 5 * 16}
    blank = memory.decode(model, data, WINDOW, "pixels", "v", [7, 8], images=300)
    assert (
        blank[blank["lag"] == 7]["score"].isna().all()
        and blank[blank["lag"] == 8]["score"].notna().all()
    )
    early = memory.decode(model, data, WINDOW, "colour", "v", [0], images=300, step=5)
    assert set(early["pixels"]) == {0} and early["score"].mean() > 0.5


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("pixel", "v", [0]), "target is 'pixel'.*pixels, colour, class"),
        (("pixels", "UX", [0]), "source is 'UX'.*v, r, z.*CB"),
        (("pixels", "v", [32]), r"lags is \[32\].*steps from 0 to 31"),
        (("colour", "v", [16]), r"lags is \[16\].*rows from 0 to 15"),
    ],
)
def test_bad_decoding_is_refused(asked, words, data):
    with pytest.raises(ValueError, match=words):
        memory.decode(network("cb", Task()), data, WINDOW, *asked)


# --- slow points


def test_slow_points_of_a_linear_cell_are_known(linear, data):
    rotation = torch.tensor([[0.6, -0.6], [0.6, 0.6]], dtype=torch.float64)
    slow = torch.diag(torch.tensor([0.95, 0.5, 0.0, -0.3], dtype=torch.float64))
    basis = torch.linalg.qr(linear.cell.A).Q
    linear.cell.A.copy_(basis @ torch.block_diag(slow, rotation) @ basis.T)
    points = memory.slow_points(linear, data, WINDOW, starts=5)
    assert points["starts"].tolist() == [5] * 6 and points["speed"].max() < 1e-6
    assert not points["edge"].any()
    root = 0.6 * 2**0.5
    np.testing.assert_allclose(abs(points["imag"]), [0, 0.6, 0.6, 0, 0, 0], atol=1e-9)
    expected = -8 / np.log([0.95, root, root, 0.5, 0.3])
    np.testing.assert_allclose(points["tau"][:5], expected, rtol=1e-6)
    assert abs(points["tau"][5]) < 1


def test_slow_points_have_the_full_state(data):
    points = memory.slow_points(network("stp_dale_cb", Task()), data, WINDOW, starts=3)
    assert points.groupby("point").size().tolist() == [24] * points["point"].nunique()
    assert points.groupby("point")["starts"].first().sum() == 3


def test_live_text_and_audit(tmp_path, capsys):
    configs, store = [tiny.config(cell) for cell in ("cb", "dale_cb")], Store(tmp_path)
    views = [live.Live() for _ in configs]
    for config, view in zip(configs, views, strict=True):
        tiny.execute(config, tmp_path, view)
    assert (
        "100% done, 1 of 1 runs finished; best validation so far: DaleCB" in capsys.readouterr().out
    )
    with live.watch(store, configs) as view:  # stored runs are shown at once
        said = "100% done, 2 of 2 runs finished; best validation so far: CB"
        assert view.progress.lines[0].startswith(said)
    table = audit.constraints(store, [config.key() for config in configs]).set_index(
        ["label", "weights"]
    )
    assert (
        list(table.loc["DaleCB", "sign_violations"]) == [0, 0]
        and table.loc["CB", "sign_violations"].isna().all()
    )
    assert (
        (table["K_min"] > 0).all()
        and table["saturated"].between(0, 1).all()
        and table.loc["DaleCB", "outside"].between(0, 1).all()
    )
    assert table.at[("DaleCB", "initial"), "ei_ratio"] == pytest.approx(1, rel=0.25)


def test_audit_refuses_cells_without_conductances(tmp_path):
    tiny.execute(tiny.config("gru"), tmp_path)
    with pytest.raises(ValueError, match="no conductances K"):
        audit.constraints(Store(tmp_path), [tiny.config("gru").key()])


def test_lesions_of_stored_networks_are_measured_once(tmp_path):
    configs, store = [tiny.config(cell) for cell in ("cb", "rnn")], Store(tmp_path)
    assert memory.stored(tmp_path).empty
    for config in configs:
        tiny.execute(config, tmp_path)
        path = audit.lesions(store, images=100)
    found = memory.stored(tmp_path)
    assert found.groupby("key")["lesion"].apply(list).to_dict() == {
        configs[0].key(): ["z", "K r", "P_z x", "W"],
        configs[1].key(): ["W"],
    }
    assert memory.stored(tmp_path.parent).equals(found)  # as of a bundle in a folder of results
    model = store.load(configs[0].key())
    own = memory.drops(model, datasets.load(configs[0].task), configs[0].window, 100)
    kept = found[found["key"] == configs[0].key()]
    np.testing.assert_allclose(kept["drop"], own["drop"], atol=1e-6)
    before = path.stat().st_mtime_ns
    audit.lesions(store, images=100)
    assert path.stat().st_mtime_ns == before
