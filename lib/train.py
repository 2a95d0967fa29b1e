"""Training: knows no cell, no notebook, no file. Progress, checkpoints and storage are callbacks.

Every per-seed quantity has a leading seed axis of length S, also for one seed, so that there is one
code path.
"""

import functools
import hashlib
import math
import operator
import time
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch.nn import functional as F

from lib import cells, datasets, measures, windows
from lib.checks import require
from lib.config import RunConfig
from lib.recurrence import SequenceClassifier

PROBE_IMAGES = PROBE_STEPS = (
    # fixed validation images, and evenly spaced time steps, on which the dynamic variables are
    # followed
    64
)


class Callback:
    """What a caller may hook into a training; `state` is the `Trainer`."""

    def on_start(self, state):
        """Before the first step, after a resumed state was restored."""

    def on_step(self, state):
        """After every training step, and after the validation that it made due."""

    def on_validation(self, state, record):
        """After a validation, once for each seed that has not diverged; `record` is that seed's
        newest row of the curves, with its seed.
        """

    def on_end(self, state):
        """After the last step, before the test set is read."""


@dataclass
class Outcome:
    """What the training of one seed produced."""

    config: RunConfig
    state: str  # "DONE" or "DIVERGED"
    # best_epoch, validation_accuracy, test_accuracy, test_loss, parameters, seconds, ms_per_step,
    # backend, message
    summary: dict
    curves: list  # one dict for each validation
    history: list  # long rows: step, epoch, variable, statistic, value
    weights: dict  # "initial", "best" and, unless diverged, "final": name -> tensor
    predictions: (
        dict | None
    )  # image, label, prediction, probability of the test set with the best state; None if diverged


def check(config):
    """Refuse a configuration that cannot run, before any file is read.

    Raises
    ------
    ValueError
        One sentence that names the value, the rule and the remedy.
    """
    task, window, training = config.task, config.window, config.training
    if task.source is not None and datasets.SOURCES.get(task.dataset) != task.source:
        cells.register_source(task.source)
    datasets.check_task(task)
    windows.check_task_window(task, window)
    if config.cell.source is not None and cells.SOURCES.get(config.cell.name) != config.cell.source:
        cells.register_source(config.cell.source)
    cells.check_cell(config.cell)
    for name, lowest in (("epochs", 1), ("batch_size", 1), ("validations_per_epoch", 1)):
        _check_whole(name, getattr(training, name), lowest)
    for name in ("learning_rate", "clip_norm"):
        value = getattr(training, name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < math.inf
        ):
            raise ValueError(f"{name} is {value!r}, but must be a number above 0.")
    _check_whole("seed", config.seed, 0)
    if config.seed >= 2**63:
        raise ValueError(f"seed is {config.seed}, but must be below 2**63; choose a smaller one.")


def _check_whole(name, value, lowest):
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise ValueError(f"{name} is {value!r}, but must be a whole number of at least {lowest}.")


def steps_per_epoch(config, data):
    """Training steps of an epoch; an incomplete last batch is dropped.

    Raises
    ------
    ValueError
        A batch exceeds the training set.
    """
    batch, examples = config.training.batch_size, len(data.labels["train"])
    rule = f"at most {examples}, the images of the training set of {config.task.dataset}"
    require(batch <= examples, "batch_size", batch, rule, "choose a smaller batch")
    return examples // batch


def build(config, *, backend="reference", seeds=None, device="cpu"):
    """The `SequenceClassifier` of a configuration, at its initialisation; with `seeds` all of them
    side by side.
    """
    window, cell = config.window, config.cell
    return SequenceClassifier(
        cell.name,
        datasets.image_shape(config.task)[0] * window.input_length,
        cell.hidden_size,
        datasets.get(config.task.dataset).classes,
        windows.task_length(config.task, window),
        seed=config.seed,
        seeds=seeds,
        backend=backend,
        initialisation=cell.initialisation,
        **cell.options,
    ).to(device)


def fit(configs, data=None, *, device="cpu", backend="auto", callbacks=(), resume=None):
    """Train one configuration, or several equal but for the seed side by side.

    Adam with the gradient norm of each seed clipped and a cosine schedule over all steps;
    validation at step 0 and `validations_per_epoch` times an epoch; the best validation state is
    kept and meets the test set once. A seed whose loss or gradient is no longer finite ends as
    DIVERGED; the others go on.

    Parameters
    ----------
    configs : RunConfig or sequence of RunConfig
    data : Dataset, path or None
        A loaded data set, or the folder to load it from.
    device : str
    backend : {"auto", "reference", "fast"}
        "auto" is resolved once, from all time steps of the run.
    callbacks : sequence of Callback
    resume : sequence of dict, optional
        `Trainer.snapshot` of each configuration, all of the same step; continues with the bits of a
        run that never stopped.

    Returns
    -------
    list of Outcome
        One for each configuration.

    Raises
    ------
    ValueError
        As `check`; configurations differ in more than the seed; a seed stands twice; a batch
        exceeds the training set.
    """
    configs = [configs] if isinstance(configs, RunConfig) else list(configs)
    for config in configs:
        check(config)
        if config.with_seed(configs[0].seed) != configs[0]:
            raise ValueError(
                f"Runs {configs[0].key()} and {config.key()} differ in more than the seed; train them one after the other."
            )
    seeds = [config.seed for config in configs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds are {seeds}, but each may stand only once.")
    if not isinstance(data, datasets.Dataset):
        data = datasets.load(configs[0].task, data=data, device=device)
    # A user's cell may draw random numbers: they are the run's own, and the caller's stay as they
    # were.
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(_mix(configs[0].seed, -1))
        return Trainer(configs, data, device, backend, callbacks, resume).run()


def _mix(seed, epoch):
    """A seed for a random generator that no other (seed, epoch) shares in practice; 31 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed},{epoch}".encode()).digest()[:4]) >> 1


class Trainer:
    """The state of a training, as callbacks see it.

    Attributes
    ----------
    configs : list of RunConfig
    step, steps, steps_per_epoch : int
        Training steps done, of the whole run, of one epoch (an incomplete last batch is dropped).
    model : SequenceClassifier
    backend : str
        Resolved: "reference" or "fast".
    curves, history : list of list of dict
        For each seed, the rows recorded so far.
    diverged_step : list of int or None
        For each seed, as known at the last validation.
    validated : bool
        Whether the newest step ended with a validation.
    seconds : float
        Time spent, over all attempts, as one seed's share.
    """

    def __init__(self, configs, data, device="cpu", backend="auto", callbacks=(), resume=None):
        self.configs, self.data, self.device, self.callbacks = configs, data, device, callbacks
        self.training, self.window = configs[0].training, configs[0].window
        self.steps_per_epoch = steps_per_epoch(configs[0], data)
        self.steps = self.training.epochs * self.steps_per_epoch
        parts = self.training.validations_per_epoch
        self.validation_steps = {
            round(k * self.steps_per_epoch / parts)
            for k in range(1, self.training.epochs * parts + 1)
        }
        one = len(configs) == 1
        length = windows.task_length(configs[0].task, self.window)
        seeds = None if one else tuple(c.seed for c in configs)
        self.model = build(configs[0], seeds=seeds, device=device)
        self.backend = self.model.prepare(self.training.batch_size, backend, self.steps * length)
        self.probe = (
            self.model if one else build(configs[0], device=device)
        )  # one seed at a time, to read constrained parameters
        # Views with a leading seed axis: writing to them writes to the model.
        self.parameters = {
            name: p.data.unsqueeze(0) if one else p.data
            for name, p in self.model.named_parameters()
        }
        fused = torch.device(device).type in ("cpu", "cuda")
        self.optimiser = torch.optim.Adam(
            self.model.parameters(), lr=self.training.learning_rate, fused=fused
        )
        self.step, self.order, self.validated, self._seconds, self._segments = (
            0,
            None,
            False,
            0.0,
            [],
        )
        self.curves, self.history = [[] for _ in configs], [[] for _ in configs]
        self.diverged_step, self._best_step = [None] * len(configs), [0] * len(configs)
        self._initial, self._best = self._copy(), self._copy()
        self._diverged = torch.full((len(configs),), -1, device=device)
        self._reset_sums()
        self._started, self._segment_start, self._segment_step = time.perf_counter(), None, 0
        if resume is not None:
            self._restore(resume)

    @property
    def seconds(self):
        return self._seconds + (time.perf_counter() - self._started) / len(self.configs)

    @property
    def ms_per_step(self):
        """Milliseconds one seed's batch takes in training: median over the stretches between
        validations.
        """
        return 1e3 * median(self._segments) / len(self.configs) if self._segments else math.nan

    def run(self):
        """Train to the end and return the list of `Outcome`."""
        self._call("on_start")
        if self.step == 0:
            self.validate()
        while self.step < self.steps and None in self.diverged_step:
            self.train_step()
            if (
                self._segment_start is None
            ):  # the first step of a process may compile, which is not what a step takes
                self._segment_start, self._segment_step = time.perf_counter(), self.step
            self.validated = self.step in self.validation_steps
            if self.validated:
                self.validate()
            self._call("on_step")
        self._call("on_end")
        return self._outcomes()

    def learning_rate(self, step):
        """Cosine schedule from the configured rate at step 0 to 0 at the end."""
        return self.training.learning_rate * (1 + math.cos(math.pi * step / self.steps)) / 2

    def sequence(self, split, index):
        """Sequences (..., time, features) and labels (...) of the images at `index` (...) of a
        split.
        """
        return windows.sequences(self.data, self.window, split, index)

    def train_step(self):
        """One batch of every seed. Nothing here waits for the device."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if position == 0:
            self.order = self._permutations(epoch)
        batch = self.training.batch_size
        index = self.order[:, position * batch : (position + 1) * batch]
        x, labels = self.sequence("train", index if len(self.configs) > 1 else index[0])
        logits = self.model(x).flatten(0, -2)
        loss = (
            F.cross_entropy(logits, labels.flatten(), reduction="none")
            .view(len(self.configs), -1)
            .mean(1)
        )
        self.optimiser.zero_grad(set_to_none=True)
        loss.sum().backward()
        norm = self._clip()
        self.optimiser.param_groups[0]["lr"] = self.learning_rate(self.step)
        self.optimiser.step()
        self.step += 1
        loss = loss.detach()
        finite = torch.isfinite(loss + norm)
        self._diverged = torch.where(finite | (self._diverged >= 0), self._diverged, self.step)
        correct = (
            (logits.detach().argmax(1) == labels.flatten())
            .view(len(self.configs), -1)
            .float()
            .mean(1)
        )
        self._sums += torch.stack((loss, correct, norm))
        self._count += 1

    def _clip(self):
        """Scale the gradient of each seed to at most `clip_norm`; return the norms before, (S,)."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(
            torch.cat([g.reshape(len(self.configs), -1) for g in gradients], 1), dim=1
        )
        scale = (self.training.clip_norm / (norm + 1e-6)).clamp_(max=1)
        torch._foreach_mul_(
            gradients,
            [
                scale.view(-1, *[1] * (g.dim() - 1)) if len(scale) > 1 else scale[0]
                for g in gradients
            ],
        )
        return norm

    def _permutations(self, epoch):
        """Order of the training images in this epoch for each seed, (S, images); drawn on the CPU,
        so that devices agree.
        """
        examples = len(self.data.labels["train"])
        orders = [
            torch.randperm(examples, generator=torch.Generator().manual_seed(_mix(c.seed, epoch)))
            for c in self.configs
        ]
        return torch.stack(orders).to(self.device)

    def _reset_sums(self):
        self._sums = torch.zeros(
            3, len(self.configs), dtype=torch.float64, device=self.device
        )  # loss, accuracy, gradient norm
        self._count = 0

    # Validation and what is recorded with it

    @torch.no_grad()
    def predict(self, split):
        """Logits (S, images, classes) of a whole split."""
        index = torch.arange(len(self.data.labels[split]))
        logits = torch.cat([self.model(x) for x in self._batches(split, index)], -2)
        return logits.view(len(self.configs), -1, logits.shape[-1])[:, : len(index)]

    def _batches(self, split, index):
        """Sequences of the images at `index`, in batches of the training size (the last one
        padded), so that compiled graphs are shared.
        """
        batch = self.training.batch_size
        padded = index[torch.arange(-(-len(index) // batch) * batch) % len(index)].to(self.device)
        return (self.sequence(split, part)[0] for part in padded.split(batch))

    def _loss_and_accuracy(self, logits, split):
        """Mean loss and accuracy (S,) of logits (S, images, classes)."""
        labels = self.data.labels[split].expand(len(logits), -1)
        loss = (
            F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            .view(len(logits), -1)
            .mean(1)
        )
        return loss, (logits.argmax(-1) == labels).float().mean(1)

    @torch.no_grad()
    def validate(self):
        """Record curves and history, keep the best state of each seed, notice divergence."""
        sums = (self._sums / self._count if self._count else self._sums * math.nan).tolist()
        if (
            self._segment_start is not None and self.step > self._segment_step
        ):  # the line above waited for the device
            self._segments.append(
                (time.perf_counter() - self._segment_start) / (self.step - self._segment_step)
            )
        loss, accuracy = (
            values.tolist()
            for values in self._loss_and_accuracy(self.predict("validation"), "validation")
        )
        diverged = self._diverged.tolist()
        for s in range(len(self.configs)):
            if self.diverged_step[s] is None and (diverged[s] >= 0 or not math.isfinite(loss[s])):
                self.diverged_step[s] = diverged[s] if diverged[s] >= 0 else self.step
        alive = [s for s in range(len(self.configs)) if self.diverged_step[s] is None]
        position = {"step": self.step, "epoch": self.step / self.steps_per_epoch}
        rate = self.learning_rate(
            max(self.step - 1, 0)
        )  # of the newest step; the curves also carry the configured learning_rate
        for s in alive:
            record = dict(
                zip(
                    ("train_loss", "train_accuracy", "gradient_norm"),
                    (row[s] for row in sums),
                    strict=True,
                )
            )
            record |= position | {
                "validation_loss": loss[s],
                "validation_accuracy": accuracy[s],
                "rate": rate,
            }
            if not self.curves[s] or accuracy[s] > max(
                row["validation_accuracy"] for row in self.curves[s]
            ):
                self._best_step[s] = self.step
                for name, value in self.parameters.items():
                    self._best[name][s] = value[s]
            self.curves[s].append(record)
        for s, rows in self._measure(alive):
            self.history[s] += [position | row for row in rows]
        self._reset_sums()
        for s in alive:
            self._call("on_validation", {"seed": self.configs[s].seed, **self.curves[s][-1]})
        if self.step:
            self._segment_start, self._segment_step = time.perf_counter(), self.step

    def _measure(self, seeds):
        """Yield (s, rows of variable, statistic, value): parameters, and dynamics on fixed
        validation images and steps.
        """
        available = len(self.data.labels["validation"])
        images = torch.linspace(0, available - 1, min(PROBE_IMAGES, available)).long()
        traces = []
        for x in self._batches("validation", images):
            steps = (
                torch.linspace(0, x.shape[-2] - 1, min(PROBE_STEPS, x.shape[-2]))
                .long()
                .to(self.device)
            )
            traces.append(
                {
                    name: value.index_select(-2, steps).cpu()
                    for name, value in self.model(x, record=True)[1].items()
                }
            )
        trace = {name: torch.cat([part[name] for part in traces], -3) for name in traces[0]}
        trace = {
            name: value.view(len(self.configs), -1, *value.shape[-2:])[:, : len(images)].numpy()
            for name, value in trace.items()
        }
        for s in seeds:
            if self.probe is not self.model:
                for name, parameter in self.probe.named_parameters():
                    parameter.copy_(self.parameters[name][s])
            cell = self.probe.cell
            constrained = {
                name: value.detach().cpu().numpy() for name, value in cell.constrained().items()
            }
            dynamics = measures.dynamic_rows(
                cell, constrained, {name: value[s] for name, value in trace.items()}
            )
            yield s, [*measures.parameter_rows(cell, constrained), *dynamics]

    # Resuming: a snapshot is of one seed, whatever the arrangement

    def snapshot(self, s):
        """All that the seed at position `s` needs to go on: plain values and tensors only, on the
        CPU.
        """
        one = len(self.configs) == 1

        def part(value):
            return value if one or not value.dim() else value[s]

        state = {
            "step": self.step,
            "order": self.order[s].int(),
            "random": torch.get_rng_state(),
            "model": {name: value[s] for name, value in self.parameters.items()},
            "optimiser": {
                name: {k: part(v) for k, v in self.optimiser.state[p].items()}
                for name, p in self.model.named_parameters()
            },
            "initial": {name: value[s] for name, value in self._initial.items()},
            "best": {name: value[s] for name, value in self._best.items()},
            "best_step": self._best_step[s],
            "diverged": int(self._diverged[s]),
            "diverged_step": self.diverged_step[s],
            "sums": self._sums[:, s],
            "count": self._count,
            "curves": list(self.curves[s]),
            "history": list(self.history[s]),
            "seconds": self.seconds,
            "segments": list(self._segments),
        }
        if torch.device(self.device).type == "cuda":
            state["random_device"] = torch.cuda.get_rng_state(self.device)
        return _map_tensors(lambda tensor: tensor.to("cpu", copy=True), state)

    def _restore(self, snapshots):
        """Inverse of `snapshot`, for all seeds."""
        first = snapshots[0]
        if len({snapshot["step"] for snapshot in snapshots}) > 1:
            raise ValueError(
                "The seeds to resume stopped at different steps; resume them from a step they share, or one by one."
            )

        def joined(*names):
            values = [functools.reduce(operator.getitem, names, snapshot) for snapshot in snapshots]
            return torch.stack(values).to(self.device)

        self.step, self._count, self._segments = (
            first["step"],
            first["count"],
            list(first["segments"]),
        )
        self._seconds = first["seconds"]
        self.order = joined("order").long()
        for name, p in self.model.named_parameters():
            self.parameters[name].copy_(joined("model", name))
            self._initial[name].copy_(joined("initial", name))
            self._best[name].copy_(joined("best", name))
            state = first["optimiser"][name]
            # The count of steps is shared, everything else has the parameter's shape.
            self.optimiser.state[p] = {
                k: joined("optimiser", name, k).view_as(p) for k in state if k != "step"
            }
            if state:
                self.optimiser.state[p]["step"] = state["step"].to(self.device, copy=True)
        self._best_step = [snapshot["best_step"] for snapshot in snapshots]
        self._diverged = torch.tensor(
            [snapshot["diverged"] for snapshot in snapshots], device=self.device
        )
        self.diverged_step = [snapshot["diverged_step"] for snapshot in snapshots]
        self._sums = joined("sums").T.clone()
        self.curves = [list(snapshot["curves"]) for snapshot in snapshots]
        self.history = [list(snapshot["history"]) for snapshot in snapshots]
        torch.set_rng_state(first["random"])
        if "random_device" in first and torch.device(self.device).type == "cuda":
            torch.cuda.set_rng_state(first["random_device"], self.device)

    def _copy(self):
        return {name: value.clone() for name, value in self.parameters.items()}

    def _call(self, hook, *arguments):
        for callback in self.callbacks:
            getattr(callback, hook)(self, *arguments)

    # The end

    @torch.no_grad()
    def _outcomes(self):
        """Read the test set, once, with the best states."""
        weights = {"initial": self._initial, "best": self._best, "final": self._copy()}
        for name, value in self.parameters.items():
            value.copy_(self._best[name])
        logits = self.predict("test")
        loss, accuracy = (values.tolist() for values in self._loss_and_accuracy(logits, "test"))
        probability, prediction = (values.cpu().numpy() for values in logits.softmax(-1).max(-1))
        labels = self.data.labels["test"].cpu().numpy()
        for name, value in self.parameters.items():  # the model is left as training left it
            value.copy_(weights["final"][name])
        outcomes = []
        for s, config in enumerate(self.configs):
            failed = self.diverged_step[s] is not None
            best = (
                next(row for row in self.curves[s] if row["step"] == self._best_step[s])
                if self.curves[s]
                else {}
            )
            summary = {
                "best_epoch": best.get("epoch", math.nan),
                "validation_accuracy": best.get("validation_accuracy", math.nan),
                "test_accuracy": math.nan if failed else accuracy[s],
                "test_loss": math.nan if failed else loss[s],
                "parameters": sum(value[s].numel() for value in self.parameters.values()),
                "seconds": self.seconds,
                "ms_per_step": self.ms_per_step,
                "backend": self.backend,
                "message": self._divergence(s) if failed else "",
            }
            kept = {
                which: {n: v[s].cpu().clone() for n, v in w.items()} for which, w in weights.items()
            }
            if failed:
                del kept["final"]  # not finite
            predictions = {
                "image": np.arange(len(labels)),
                "label": labels,
                "prediction": prediction[s],
                "probability": probability[s],
            }
            state = "DIVERGED" if failed else "DONE"
            outcomes.append(
                Outcome(
                    config,
                    state,
                    summary,
                    self.curves[s],
                    self.history[s],
                    kept,
                    None if failed else predictions,
                )
            )
        return outcomes

    def _divergence(self, s):
        last = self.curves[s][-1] if self.curves[s] else None
        good = (
            f"; at step {last['step']} the validation accuracy was {last['validation_accuracy']:.1%}"
            if last
            else ""
        )
        return f"Loss or gradient was no longer finite at step {self.diverged_step[s]}{good}."


def _map_tensors(function, value):
    """`value` with `function` applied to every tensor in nested dicts."""
    if isinstance(value, dict):
        return {key: _map_tensors(function, inner) for key, inner in value.items()}
    return function(value) if isinstance(value, torch.Tensor) else value
