"""Runs small enough to train inside a test, and what a result must not change."""

import itertools
import os
import shutil
import signal
import time
from pathlib import Path

import torch

from lib import files
from lib.config import CellSpec, RunConfig, Training, Window
from lib.files import TABLES
from lib.runs import attempt, checkpoints
from lib.runs.attempt import Attempt, publish
from lib.runs.status import RESULTS
from lib.runs.store import Store
from lib.train import Outcome

torch.set_num_threads(1)  # as child processes do
FAMILIES = (
    "gru",
    "cb",
    "dale_cb",
    "stp_dale_cb",
)  # baseline, free, reversal potentials, all constraints with plasticity
COMPARED = (
    "initial.safetensors",
    "best.safetensors",
    "final.safetensors",
    "curves.parquet",
    "history.parquet",
    "predictions.parquet",
)


def config(cell="cb", seed=0, epochs=1, **options):
    """28 steps an epoch, validations at 14 and 28, 32 time steps: under a second."""
    return RunConfig(
        window=Window(8, 8),
        cell=CellSpec(cell, 6, options=options),
        training=Training(epochs=epochs),
        seed=seed,
    )


def execute(configs, root, *callbacks):
    return attempt.execute(configs, Store(root), backend="reference", callbacks=callbacks)


def bits(root, key):
    """What two equal runs share to the last bit: weights, metrics, predictions (wall-clock times
    and logs do not).
    """
    result = Store(root).folder(key) / "result"
    return {name: (result / name).read_bytes() for name in COMPARED if (result / name).exists()}


def contents(folder):
    """Every file below a folder, byte for byte."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


class At:
    """Callback that acts once, after a given step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step(self, state):
        if state.step == self.step:
            self.action()

    def on_start(self, state): ...
    def on_validation(self, state, record): ...
    def on_end(self, state): ...


def train_until(configs, root, step, number=signal.SIGKILL):
    """In a child process: train and send this process a signal after a step; ends with the exit
    code of `lib.runs.attempt`.
    """
    try:
        execute(configs, root, At(step, lambda: os.kill(os.getpid(), number)))
    except KeyboardInterrupt:
        os._exit(attempt.PAUSED)


def until(condition, seconds=300):
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def copy(source, target):
    shutil.copytree(source, target, dirs_exist_ok=True)


def remove(folder):
    shutil.rmtree(folder)


def many(root, count, validations=40):
    """A store of synthetic finished runs, written without waiting for the disk."""
    for number in range(count):
        finished(root, config(FAMILIES[number % 4], seed=number), validations)
    return Store(root)


def finished(root, config, validations=1):
    """A synthetic finished run: every result is 0.5."""
    steps = [{"step": 14 * k, "epoch": k / 2} for k in range(validations + 1)]
    curves = [dict.fromkeys(TABLES["curves"].names, 0.5) | step for step in steps]
    history = [{"variable": "K", "statistic": "q50", "value": 0.1} | step for step in steps]
    results = dict.fromkeys(RESULTS, 0.5) | {"message": "", "backend": "reference"}
    weights = {"best": {"w": torch.zeros(4, 4)}}
    fsync, os.fsync = os.fsync, lambda descriptor: None
    try:
        made = Attempt(Store(root).folder(config.key()), config)
        made.log("made up")
        files.write(made.folder / "environment.json", b"{}")
        made.finish(Outcome(config, "DONE", results, curves, history, weights, None))
        assert publish(made.folder)
    finally:
        os.fsync = fsync


def outcome(config):
    """A made-up result."""
    curves = [dict.fromkeys(TABLES["curves"].names, 0)]
    weights = {which: {"w": torch.zeros(3)} for which in ("initial", "best", "final")}
    summary = {name: 0.5 for name in RESULTS} | {"message": "", "backend": "reference"}
    predictions = {name: [0] for name in TABLES["predictions"].names}
    return Outcome(config, "DONE", summary, curves, [], weights, predictions)


def checkpoint_and_publish(root, config, operations):
    """Save two checkpoints and publish; die before the given number of file operations are done."""
    count = itertools.count()

    def counted(function):
        def wrapped(*arguments, **options):
            if next(count) == operations:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return wrapped

    for name in ("replace", "rename", "fsync", "unlink", "mkdir", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    one = Attempt(Store(root).folder(config.key()), config)
    files.write(one.folder / "environment.json", b"{}")
    for step in (10, 20, 30):
        content = {"key": config.key(), "step": step, "w": torch.full((3,), float(step))}
        checkpoints.save(one.folder / "checkpoints", step, content)
    one.metrics(outcome(config).curves, [])
    one.finish(outcome(config))
    publish(one.folder)


# A cell of a user's own, with two presynaptic signals.
OWN_CELL = '''
class Pair(NamedTuple):
    h: torch.Tensor
    m: torch.Tensor


@register
class TwoSignals(Cell):
    """h' = tanh(W h + V m + P x + b); m' = m + k (h - m)."""

    name, label, variables = "two_signals", "two signals", ("h", "m")

    def initialise(self, initialisation, generator):
        H = self.hidden_size
        for key in ("W", "V"):
            setattr(self, key, self.uniform(H, H, generator=generator))
        self.P = self.uniform(self.hidden_size, self.input_size, generator=generator)
        self.b, self.k = (self.uniform(self.hidden_size, generator=generator) for _ in range(2))

    def input_weights(self):
        return self.P, self.b

    def recurrent_weights(self):
        return self.W, self.V

    def pointwise(self):
        return {"k": torch.sigmoid(self.k)}

    def initial_state(self, batch, theta):
        nothing = self.b.new_zeros(batch, self.hidden_size)
        return Pair(nothing, theta["k"].expand_as(nothing))

    def presynaptic(self, state, theta):
        return state.h, state.m

    def update(self, state, a, g, theta):
        return Pair(torch.tanh(a[0] + a[1] + g), state.m + theta["k"] * (state.h - state.m))
'''
