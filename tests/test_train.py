"""Training: deterministic, resumable to the bit, seeds side by side without touching each other."""

import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from lib import cells, datasets, measures, train, windows
from lib.config import CellSpec, RunConfig, Task, Training, Window
from lib.runs import traces


@pytest.fixture(scope="module")
def data():
    return datasets.load(Task())


def fit(configs, data, *callbacks, **options):
    return train.fit(configs, data, backend="reference", callbacks=callbacks, **options)


def same(one, other):
    """Bitwise equality of outcomes in all that a result promises."""
    assert one.state == other.state
    for which in one.weights.keys() | other.weights.keys():
        for name, value in one.weights[which].items():
            assert torch.equal(value, other.weights[which][name]), (which, name)
    np.testing.assert_equal(one.curves, other.curves)
    np.testing.assert_equal(one.history, other.history)
    np.testing.assert_equal(one.predictions, other.predictions)


class Keep(train.Callback):
    """Takes a snapshot of every seed after one step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, state):
        if state.step == self.step:
            self.snapshots = [state.snapshot(s) for s in range(len(state.configs))]


def test_learns_and_reports(data):
    outcome = fit(
        RunConfig(window=Window(8, 8), cell=CellSpec("gru", 16), training=Training(epochs=3)), data
    )[0]
    first, last = outcome.curves[0], outcome.curves[-1]
    assert [row["step"] for row in outcome.curves] == [0, 14, 28, 42, 56, 70, 84]
    assert first["validation_accuracy"] < 0.3 < 0.5 < last["validation_accuracy"]
    assert math.isnan(first["train_loss"]) and last["train_loss"] < outcome.curves[1]["train_loss"]
    best = max(outcome.curves, key=lambda row: row["validation_accuracy"])
    assert (
        outcome.summary["best_epoch"] == best["epoch"]
        and outcome.summary["validation_accuracy"] == best["validation_accuracy"]
    )
    right = outcome.predictions["label"] == outcome.predictions["prediction"]
    assert outcome.summary["test_accuracy"] == pytest.approx(right.mean()) and len(right) == len(
        data.labels["test"]
    )


def test_same_bits_whatever_ran_before(data):
    one = fit(tiny.config("stp_dale_cb"), data)[0]
    fit(tiny.config("gru", seed=5), data)
    torch.rand(3)
    same(one, fit(tiny.config("stp_dale_cb"), data)[0])


@pytest.mark.parametrize("before", [False, True])
def test_denormal_numbers_are_zero_while_it_trains_and_then_as_before(data, before):
    class Look(train.Callback):
        def on_step(self, state):
            seen.append((torch.tensor([1e-39]) * 1).item())

    seen = []
    torch.set_flush_denormal(before)
    fit(tiny.config(), data, Look())
    after = (torch.tensor([1e-39]) * 1).item()
    torch.set_flush_denormal(False)
    assert set(seen) == {0.0} and (after == 0) == before


def test_leaves_the_callers_random_numbers_alone(data):
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    fit(tiny.config(), data)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(("seeds", "step"), [((0,), 17), ((0, 1), 14), ((0, 1), 30), ((0,), 28)])
def test_resumed_equals_uninterrupted(data, seeds, step):
    configs = [tiny.config("stp_dale_cb", seed, epochs=2) for seed in seeds]
    keep = Keep(step)
    whole = fit(configs, data, keep)
    resumed = fit(configs, data, resume=keep.snapshots)
    for one, other in zip(whole, resumed, strict=True):
        same(one, other)


def test_snapshot_is_a_copy(data):
    keep = Keep(14)
    fit(tiny.config(), data, keep)
    before = {name: value.clone() for name, value in keep.snapshots[0]["tensors"].items()}
    fit(tiny.config(), data, resume=keep.snapshots)
    assert all(
        torch.equal(value, before[name]) for name, value in keep.snapshots[0]["tensors"].items()
    )
    assert keep.snapshots[0]["step"] == 14


def test_seeds_side_by_side_follow_seeds_alone(data):
    configs = [tiny.config("dale_cb", seed) for seed in (3, 0)]
    for config, together in zip(configs, fit(configs, data), strict=True):
        alone = fit(config, data)[0]
        for name, value in alone.weights["initial"].items():
            assert torch.equal(value, together.weights["initial"][name])
        for name, value in alone.weights["final"].items():
            torch.testing.assert_close(value, together.weights["final"][name], rtol=1e-3, atol=1e-4)
        for one, other in zip(alone.curves, together.curves, strict=True):
            assert one.keys() == other.keys()
            assert one["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-4)
            assert one["gradient_norm"] == pytest.approx(
                other["gradient_norm"], rel=1e-3, nan_ok=True
            )
        assert [row["variable"] for row in alone.history] == [
            row["variable"] for row in together.history
        ]
        np.testing.assert_allclose(
            [r["value"] for r in alone.history],
            [r["value"] for r in together.history],
            rtol=1e-2,
            atol=1e-3,
        )


class Poison(train.Callback):
    """Spoils the read-out of one seed after a step."""

    def __init__(self, seed_position, step, value=math.nan):
        self.position, self.step, self.value = seed_position, step, value

    def on_step(self, state):
        if state.step == self.step:
            state.parameters["readout.weight"][self.position].mul_(self.value)


def test_a_diverging_seed_does_not_touch_the_others(data):
    configs = [tiny.config("stp_dale_cb", seed) for seed in (0, 1, 2)]
    healthy = fit(configs, data)
    poisoned = fit(configs, data, Poison(1, 20))
    same(healthy[0], poisoned[0])
    same(healthy[2], poisoned[2])
    ill = poisoned[1]
    assert ill.state == "DIVERGED" and ill.predictions is None and "final" not in ill.weights
    assert "step 21;" in ill.summary["message"] and math.isnan(ill.summary["test_accuracy"])
    assert [row["step"] for row in ill.curves] == [0, 14]
    assert all(value.isfinite().all() for value in ill.weights["best"].values())


def test_a_seed_that_diverged_stays_so(data):
    """Also when only the validation noticed, and later numbers are finite again."""

    class Blind(train.Trainer):
        def validate(self):
            with pytest.MonkeyPatch.context() as patch:
                if self.step == 14:
                    ill = torch.tensor([math.inf, 1.0]), torch.zeros(2)
                    patch.setattr(measures, "scores", lambda *given: ill)
                super().validate()

    outcomes = Blind(
        [tiny.config(epochs=2), tiny.config(seed=1, epochs=2)], data, backend="reference"
    ).run()
    assert [outcome.state for outcome in outcomes] == ["DIVERGED", "DONE"]
    assert [row["step"] for row in outcomes[0].curves] == [0] and "step 14;" in outcomes[0].summary[
        "message"
    ]


def test_all_diverged_ends_early(data):
    steps = []

    class Count(train.Callback):
        def on_step(self, state):
            steps.append(state.step)

    outcome = fit(tiny.config(epochs=5), data, Poison(0, 3), Count())[0]
    assert outcome.state == "DIVERGED" and steps[-1] == 14


def test_infinite_gradient_diverges_though_the_loss_is_finite(data):
    outcome = fit(tiny.config("rnn"), data, Poison(0, 20, 1e25))[0]
    assert outcome.state == "DIVERGED" and "step 21;" in outcome.summary["message"]


def test_resumed_after_a_seed_diverged(data):
    configs = [tiny.config(seed=seed, epochs=2) for seed in (0, 1)]
    keep = Keep(28)
    whole = fit(configs, data, Poison(1, 20), keep)
    for one, other in zip(whole, fit(configs, data, resume=keep.snapshots), strict=True):
        same(one, other)


def test_gradient_is_clipped_for_each_seed(data):
    class Norms(train.Callback):
        def __init__(self):
            self.norms = []

        def on_step(self, state):
            squares = sum(p.grad.reshape(2, -1).square().sum(1) for p in state.model.parameters())
            self.norms.append(squares.sqrt())

    norms = Norms()
    configs = [
        RunConfig(
            window=Window(8, 8), cell=CellSpec("cb", 6), training=Training(1, clip_norm=0.1), seed=s
        )
        for s in (0, 1)
    ]
    outcomes = fit(configs, data, norms)
    assert torch.stack(norms.norms).max() <= 0.1 + 1e-5
    assert (
        min(row["gradient_norm"] for o in outcomes for row in o.curves[1:]) > 0.1
    )  # recorded before clipping


def test_batches_cover_the_epoch_once_and_differ_by_seed_and_epoch(data):
    seen = []

    class Orders(train.Callback):
        def on_step(self, state):
            if state.step % state.steps_per_epoch == 1:
                seen.append(state.order.clone())

    fit([tiny.config(seed=seed, epochs=2) for seed in (0, 1)], data, Orders())
    first, second = seen
    every = torch.arange(len(data.labels["train"]))
    assert all(torch.equal(order.sort().values, every) for order in (*first, *second))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], second[0])


def test_cosine_schedule(data):
    outcome = fit(tiny.config(epochs=2), data)[0]
    rates = [row["rate"] for row in outcome.curves]
    expected = [
        0.01 * (1 + math.cos(math.pi * max(step - 1, 0) / 56)) / 2 for step in (0, 14, 28, 42, 56)
    ]
    assert rates == pytest.approx(expected)


def test_history_follows_parameters_and_dynamics(data):
    model_rows = {
        (r["variable"], r["statistic"]): r["value"]
        for r in fit(tiny.config("stp_dale_cb"), data)[0].history
        if r["step"] == 28
    }
    for variable in (
        "K",
        "C",
        "W_E",
        "W_I",
        "b_z",
        "v_e",
        "v_i",
        "U_cap",
        "tau_x",
        "tau_u",
        "z",
        "r",
        "v",
        "U",
        "X",
        "UX",
    ):
        values = [model_rows[variable, q] for q in ("q05", "q25", "q50", "q75", "q95")]
        assert values == sorted(values)
    assert (
        model_rows["W_E", "q05"] > 0 > model_rows["W_I", "q95"]
        and model_rows["W", "sign_violations"] == 0
    )
    assert (
        0 < model_rows["z", "q95"] <= 0.1
        and 0 <= model_rows["z", "saturated"] <= 1
        and 0 <= model_rows["v", "outside"] <= 1
    )
    assert 9 < model_rows["tau_x", "q05"] and model_rows["tau_u", "q95"] < 1000
    gru = {(r["variable"], r["statistic"]) for r in fit(tiny.config("gru"), data)[0].history}
    assert {("W", "spectral_radius"), ("h", "q50"), ("z", "saturated")} <= gru and (
        "K",
        "q50",
    ) not in gru


def test_history_equals_the_model(data):
    outcome = fit(tiny.config("cb_gru"), data)[0]
    rows = {(r["variable"], r["statistic"]): r["value"] for r in outcome.history if r["step"] == 28}
    W = outcome.weights["final"]["cell.W"]
    assert rows["W", "spectral_radius"] == pytest.approx(
        torch.linalg.eigvals(W).abs().max().item(), rel=1e-5
    )
    assert rows["W", "ei_ratio"] == pytest.approx(
        (W[W > 0].sum() / -W[W < 0].sum()).item(), rel=1e-5
    )
    assert rows["W", "q25"] == pytest.approx(W.quantile(0.25).item(), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": Window(8, 0)}, "stride"),
        ({"window": Window(8, 9)}, "stride"),
        ({"window": Window(9, 4)}, "input_length"),
        ({"cell": CellSpec("lstm")}, "Unknown cell 'lstm'"),
        ({"cell": CellSpec("dale_cb", 8, options={"excitatory_fraction": 1.0})}, "inhibitory"),
        ({"cell": CellSpec(["cb"])}, r"name of the cell is \['cb'\], but must be a text"),
        ({"cell": CellSpec(options=None)}, "options is None, but must be a mapping"),
        ({"task": Task(["digits"])}, r"dataset is \['digits'\], but must be a text"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": True}, "seed is True"),
        ({"seed": 2**63}, "below"),
        ({"task": Task("imagenet")}, "imagenet"),
        ({"training": Training(epochs=0)}, "epochs is 0"),
        ({"training": Training(batch_size=2.5)}, "batch_size is 2.5"),
        ({"training": Training(learning_rate=float("nan"))}, "learning_rate is nan"),
        ({"training": Training(clip_norm=-1)}, "clip_norm is -1"),
        ({"training": Training(validations_per_epoch=0)}, "validations_per_epoch is 0"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(change, words):
    with pytest.raises(ValueError, match=words) as error:
        train.check(RunConfig(**change))
    assert "\n" not in str(error.value)


def test_configurations_that_cannot_train_together(data):
    with pytest.raises(ValueError, match="differ in more than the seed"):
        train.fit([tiny.config("cb"), tiny.config("gru", seed=1)], data)
    with pytest.raises(ValueError, match="name each seed once"):
        train.fit([tiny.config(), tiny.config()], data)
    with pytest.raises(ValueError, match="smaller batch"):
        train.fit(RunConfig(training=Training(batch_size=10**6)), data)
    keep = Keep(14), Keep(17)
    for seed, one in enumerate(keep):
        fit(tiny.config(seed=seed), data, one)
    with pytest.raises(ValueError, match="different steps"):
        fit([tiny.config(seed=0), tiny.config(seed=1)], data, resume=[k.snapshots[0] for k in keep])


@pytest.mark.parametrize("backend", ["reference", "fast"])
def test_training_test_and_recording_read_the_delay(backend):
    config = RunConfig(
        Task(first_rows=4, delay=32), Window(8, 8), CellSpec("cb", 6), Training(epochs=1)
    )
    data = datasets.load(config.task)
    outcome = train.fit(config, data, backend=backend)[0]
    model = train.build(config)
    assert model.cell.sequence_length == 12
    model.load_state_dict(outcome.weights["best"])
    x, labels = windows.sequences(data, config.window, "test", range(len(data.labels["test"])))
    assert x.shape[1] == 12 and not x[:, 8:].any()
    accuracy = (model(x).argmax(1) == labels).float().mean().item()
    assert outcome.summary["test_accuracy"] == pytest.approx(accuracy, abs=0.01)
    trace = traces.record(model, range(2), config=config, data=data, log=None)
    assert trace["v"].shape[1] == 12 == trace.pixels.size
    with pytest.raises(ValueError, match="delay is 4"):
        train.check(replace(config, task=Task(delay=4)))


@pytest.mark.parametrize("name", ["gru", "cb", "stp_dale_cb"])
def test_what_is_followed_is_left_as_it_was(name):
    cell = train.build(RunConfig(cell=CellSpec(name, 8))).cell
    before = {key: value.clone() for key, value in cell.state_dict().items()}
    constrained = {key: value.detach().numpy() for key, value in cell.constrained().items()}
    assert list(measures.parameter_rows(cell, constrained))
    assert all(torch.equal(value, before[key]) for key, value in cell.state_dict().items())


@pytest.mark.parametrize("shape", [(1,), (2,), (7, 3, 5), (300, 301)])
@pytest.mark.parametrize("spread", [1.0, 1e-3, 0.0])
def test_quantiles_are_those_of_numpy(shape, spread):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32) * np.float32(spread)
    rows = list(measures.dynamic_rows(cells.get("rnn"), {}, {"h": values}))
    expected = np.quantile(values, list(measures.QUANTILES.values()))
    np.testing.assert_allclose([row["value"] for row in rows], expected, rtol=1e-6, atol=1e-6)
    values.flat[0] = np.nan
    rows = measures.dynamic_rows(cells.get("rnn"), {}, {"h": values})
    assert all(math.isnan(row["value"]) for row in rows)
