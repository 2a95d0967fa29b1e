"""The fast path against the reference, the seed axis, and a user's own cell on both paths."""

import os
import subprocess
import sys
import types

import pytest
import torch
from tiny import OWN_CELL

from lib import cells, compiled
from lib.recurrence import SequenceClassifier

torch.set_num_threads(1)
EVERY = cells.names("all,dale")


@pytest.fixture
def own_cell():
    cells.register_source(OWN_CELL)
    yield "two_signals"
    cells.CELLS.pop("two_signals")
    cells.SOURCES.pop("two_signals")


def uncompiled(steps):
    """The two functions of the fast path as they are, without the compiler: their algebra is tested
    for every cell in no time.
    """

    def graphs(tape):
        forward, backward = compiled.functions(
            tape.cell, type(tape.initial), tuple(tape.theta), steps
        )
        return types.SimpleNamespace(forward=forward, backward=backward, steps=steps)

    return graphs


def both(name, x, seeds=None, dtype=torch.float64, hidden=7, generic=False, **options):
    """Logits, trace and gradients of the reference and of the fast path."""
    results = []
    for backend in ("reference", "fast"):
        model = SequenceClassifier(
            name, x.shape[-1], hidden, 4, x.shape[-2], seeds=seeds, backend=backend, **options
        ).to(dtype)
        if generic:
            model.cell.observe_saved = None
            for method in ("saved", "pullback"):
                setattr(
                    model.cell, method, types.MethodType(getattr(cells.Cell, method), model.cell)
                )
        logits, trace = model(x, record=True)
        assert torch.equal(logits, model(x))
        with torch.no_grad():
            torch.testing.assert_close(model(x), logits, rtol=0, atol=0)
        logits.square().sum().backward()
        results.append(
            {"logits": logits, **trace, **{key: p.grad for key, p in model.named_parameters()}}
        )
    return results


def assert_equal(results, tolerance):
    reference, fast = results
    assert reference.keys() == fast.keys()
    for key in reference:
        torch.testing.assert_close(
            fast[key],
            reference[key],
            rtol=tolerance,
            atol=tolerance,
            msg=lambda text, key=key: f"{key}: {text}",
        )


@pytest.mark.parametrize("name", [*EVERY, "two_signals"])
@pytest.mark.parametrize("seeds", [None, (0, 3)])
@pytest.mark.parametrize("generic", [False, True])
def test_structured_backward_equals_autograd(name, seeds, generic, monkeypatch, own_cell):
    monkeypatch.setattr(compiled, "graphs", uncompiled(4))
    assert_equal(
        both(name, torch.randn(3, 10, 6, dtype=torch.float64), seeds, generic=generic), 1e-10
    )


@pytest.mark.parametrize("name", ["cb", "stp_dale_cb", "gru", "two_signals"])
def test_compiled_equals_reference(name, monkeypatch, own_cell):
    monkeypatch.setattr(compiled, "CHUNK", 2)
    x = torch.randn(1, 5, 3)  # batch 1, odd hidden size, a last chunk that is not full
    assert_equal(both(name, x, dtype=torch.float32), 1e-5)


def test_compiled_float64_and_seeds(monkeypatch):
    monkeypatch.setattr(compiled, "CHUNK", 2)
    assert_equal(both("stp", torch.randn(2, 3, 5, 3, dtype=torch.float64), (0, 1)), 1e-10)


def test_compiled_gives_the_same_bits_twice(monkeypatch):
    monkeypatch.setattr(compiled, "CHUNK", 2)
    x = torch.randn(3, 5, 3)
    first, again = (both("cb", x, dtype=torch.float32)[1] for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize("name", ["rnn", "stp_dale_cb"])
def test_seeds_side_by_side_equal_seeds_alone(name):
    x = torch.randn(2, 4, 9, 3, dtype=torch.float64)
    together = SequenceClassifier(name, 3, 6, 4, 9, seeds=(2, 5)).double()
    logits, trace = together(x, record=True)
    shared = together(x[0])
    for i, seed in enumerate((2, 5)):
        alone = SequenceClassifier(name, 3, 6, 4, 9, seed=seed).double()
        expected, expected_trace = alone(x[i], record=True)
        torch.testing.assert_close(logits[i], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(shared[i], alone(x[0]), rtol=0, atol=1e-12)
        for variable, values in expected_trace.items():
            torch.testing.assert_close(trace[variable][i], values, rtol=0, atol=1e-12)


def test_one_poisoned_seed_leaves_the_others_alone():
    x = torch.randn(4, 9, 3)
    clean, poisoned = (SequenceClassifier("cb", 3, 6, 4, 9, seeds=(0, 1, 2)) for _ in range(2))
    with torch.no_grad():
        poisoned.cell.W[1, 0, 0] = float("nan")
    for model in (clean, poisoned):
        model(x).square().sum((1, 2)).sum().backward()
    for a, b in zip(clean.parameters(), poisoned.parameters(), strict=True):
        assert torch.equal(a.grad[[0, 2]], b.grad[[0, 2]])
    assert poisoned.cell.W.grad[1].isnan().any()


def test_a_changed_step_loses_the_derivative_by_hand():
    class Rectified(cells.CB):
        name = "rectified"

        def presynaptic(self, state, theta):
            return (torch.relu(state.v),)

    assert Rectified.pullback is cells.Cell.pullback and not Rectified.additive


def test_a_step_that_is_mixed_in_loses_the_derivative_by_hand():
    class Slow:
        def update(self, state, a, g, theta):
            return cells.VoltageState(0.5 * state.v + 0.5 * (a[0] + g).chunk(2, -1)[1])

    class Mixed(Slow, cells.CB):
        name = "mixed"

    class Heir(Mixed):
        name = "heir"

    class Own(Slow, cells.CB):
        name, pullback = "own", cells.ConductanceCell.pullback

    assert Mixed.pullback is Heir.pullback is cells.Cell.pullback and not Heir.additive
    assert Own.pullback is cells.ConductanceCell.pullback


def test_what_a_cell_records_of_its_own_is_what_it_observes():
    """`observe_saved` belongs to the `observe` and the `saved` that it was written for."""

    class Observes(cells.CB):
        name = "observes"

        def observe(self, previous, state, a, g, theta):
            return {**super().observe(previous, state, a, g, theta), "r": state.v}

    class Changed(cells.CB):
        name = "changed"

        def update(self, state, a, g, theta):
            return cells.VoltageState(super().update(state, a, g, theta).v / 2)

    class Saves(cells.CB):
        name = "saves"

        def saved(self, previous, state, signals, a, g, theta):
            return (torch.sigmoid(self._products(a, g)[0]), g)

    assert Observes.observe_saved is Changed.observe_saved is Saves.observe_saved is None
    assert cells.STPDaleCB.observe_saved is cells.ConductanceCell.observe_saved


@pytest.mark.parametrize("backend", ["reference", "fast"])
@pytest.mark.parametrize(("name", "seeds"), [("gru", None), ("stp_dale_cb", None), ("cb", (0, 3))])
def test_several_batches_are_predicted_as_one_by_one(name, seeds, backend, monkeypatch):
    monkeypatch.setattr(compiled, "graphs", uncompiled(4))
    model = SequenceClassifier(name, 3, 6, 4, 9, seeds=seeds, backend=backend).double()
    batches, steps = torch.randn(4, 5, 9, 3, dtype=torch.float64).unbind(), torch.tensor([0, 4, 8])
    logits, traces = model.predict(iter(batches), steps, images=7)
    assert not model.predict(batches)[1] and [t["z"].shape[-3] for t in traces] == [5, 2]
    for i, x in enumerate(batches):
        expected, trace = model(x, record=steps)
        torch.testing.assert_close(logits[..., 5 * i : 5 * i + 5, :], expected, rtol=0, atol=1e-12)
        for variable, values in traces[i].items() if i < 2 else ():
            first = trace[variable][..., : values.shape[-3], :, :]
            torch.testing.assert_close(values, first, rtol=0, atol=1e-12)


def test_gradient_of_the_input_is_at_hand():
    x = torch.randn(2, 5, 3, requires_grad=True)
    SequenceClassifier("cb", 3, 6, 4, 5, backend="fast")(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_states_are_what_the_readout_reads():
    model = SequenceClassifier("dale_cb", 3, 6, 4, 5)
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(model.readout(model.states(x)[:, -1]), model(x))


def small(backend="auto", **options):
    return SequenceClassifier("cb", 3, 4, 2, 5, backend=backend, **options)


def test_backend_is_resolved(monkeypatch):
    monkeypatch.setattr(compiled, "graphs", uncompiled(4))
    monkeypatch.setattr(compiled, "cached", lambda tape: False)
    assert small().prepare(2, "auto", 10_000) == "reference"
    assert small().prepare(2, "auto", 10**7) == "fast"
    assert small().prepare(2, "reference", 10**7) == "reference"
    monkeypatch.setattr(compiled, "cached", lambda tape: True)
    assert small().prepare(2, "auto", 10_000) == "fast"
    assert small().prepare(2, "auto", 100) == "reference"
    for make in (small, lambda backend: small().prepare(2, backend)):
        with pytest.raises(ValueError, match="backend is 'quick'"):
            make("quick")


PASS = """
import sys, torch
from lib import compiled
from lib.recurrence import SequenceClassifier
torch.set_num_threads(1)
compiled.CHUNK = 1
model = SequenceClassifier("cb", 3, 4, 2, 5, backend="fast")
model(torch.ones(2, 5, 3)).sum().backward()
print("torch._dynamo" in sys.modules, *compiled.counts.values(), model.backend)
print(model.cell.W.grad.sum().item().hex())
"""


def test_a_second_process_loads_what_the_first_compiled_and_mends_damage(tmp_path):
    def libraries():
        return sorted((tmp_path / "workbook").glob("[0-9a-f]*.so"))

    def run_pass():
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", PASS]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.split()

    first = run_pass()
    assert first[:4] == ["True", "2", "0", "fast"]
    assert run_pass() == ["False", "0", "2", *first[3:]]  # nor does it import the compiler
    made = libraries()[0].read_bytes()
    libraries()[0].write_bytes(made[: len(made) // 2])
    assert run_pass() == ["True", "1", "1", *first[3:]]
    assert len(libraries()) == 2


def test_a_digest_says_what_a_library_depends_on(own_cell):
    def digests(name="cb", batch=2, hidden=4, **options):
        model = SequenceClassifier(name, 3, hidden, 2, 5, **options)
        return [graph.digest for graph in compiled.traced(model._tape(torch.ones(batch, 1, 3), 0))]

    assert digests() == digests(seed=1) == digests("dale_cb")  # W is made before the loop
    assert digests("two_signals") == digests("two_signals", seed=1)  # nor do values enter with vjp
    others = digests(dt=0.2), digests(batch=3), digests(hidden=5), digests("stp")
    assert len({tuple(digest) for digest in others} | {tuple(digests())}) == 5


def test_a_digest_tells_apart_wiring_and_constants():
    def digest(step, saved=lambda a, g: (*a, g)):
        class Changed(cells.RNN):
            name = "changed"

            def update(self, state, a, g, theta):
                return type(state)(step(state.h, a[0], g))

            def saved(self, previous, state, signals, a, g, theta):
                return saved(a, g)

            pullback = cells.Cell.pullback

        model = SequenceClassifier("rnn", 3, 4, 2, 5)
        model.cell.__class__ = Changed
        tape = model._tape(torch.ones(2, 1, 3), 0)
        return tuple(graph.digest for graph in compiled.traced(tape))

    constant = torch.tensor([0.5, 0.5, 0.5, 0.5])
    same = digest(lambda h, a, g: torch.tanh(a - g)), digest(lambda h, x, y: torch.tanh(x - y))
    others = (
        digest(lambda h, a, g: torch.tanh(g - a)),
        digest(lambda h, a, g: torch.tanh(h - g)),
        digest(lambda h, a, g: torch.tanh(a - g), lambda a, g: (g, *a)),
        digest(lambda h, a, g: torch.tanh(a - constant * g)),
        digest(lambda h, a, g: torch.tanh(a - 2 * constant * g)),
        digest(lambda h, a, g: torch.tanh(a - (constant + 1e-7) * g)),
    )
    assert same[0] == same[1] and len({forward for forward, _ in (*same, *others)}) == 7


@pytest.mark.parametrize("trouble", ["no compiler", "failing compiler", "no folder"])
def test_where_nothing_can_be_compiled_the_reference_path_runs(trouble, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    if trouble == "no folder":
        (tmp_path / "workbook").write_text("a file stands where the folder should be")
    else:
        monkeypatch.setenv("CXX", "no-such-compiler" if trouble == "no compiler" else "false")
    x, model = torch.randn(2, 5, 3), small("fast")
    with pytest.warns(UserWarning, match="cannot be compiled .*the slower reference path") as said:
        logits = model(x)
        model(x)
    assert model.backend == "reference" and len(said) == 1
    torch.testing.assert_close(logits, small("reference")(x), rtol=0, atol=0)
    with pytest.warns(UserWarning, match="slower reference path"):
        assert small().prepare(2, "auto", 10**7) == "reference"


def test_a_trial_library_that_was_cut_short_is_built_again(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "whole"))
    compiled.check_compiler()
    (whole,) = (tmp_path / "whole" / "workbook").iterdir()
    cut = tmp_path / "cut" / "workbook" / whole.name
    cut.parent.mkdir(parents=True)
    cut.write_bytes(b"")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cut"))
    compiled.check_compiler()
    assert cut.stat().st_size


@pytest.mark.parametrize(
    ("seeds", "message"),
    [((-1,), "seed is -1"), ((1, 1), "name each seed once"), ((0.5,), "seed is 0.5")],
)
def test_bad_seeds_are_refused(seeds, message):
    with pytest.raises(ValueError, match=message):
        SequenceClassifier("cb", 3, 6, 4, 5, seeds=seeds)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize("name", EVERY)
def test_gpu_equals_cpu(name):
    x = torch.randn(3, 10, 6)
    results = []
    for device, backend in (("cpu", "reference"), ("cuda", "fast")):
        model = SequenceClassifier(name, 6, 7, 4, 10, seeds=(0, 1), backend=backend).to(device)
        logits = model(x.to(device))
        logits.square().sum().backward()
        results.append([logits.cpu(), *(p.grad.cpu() for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
