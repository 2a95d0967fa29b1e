"""Training: knows no cell, no notebook, no file. Progress, checkpoints and storage are callbacks.

Every per-seed quantity has a leading seed axis of length S, also for one seed, so that there is one
code path.
"""

import contextlib
import hashlib
import json
import math
import time
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from torch.nn import functional as F

from lib import cells, datasets, measures, system, windows
from lib.cells.registry import registered
from lib.checks import number, require, whole
from lib.config import RunConfig
from lib.recurrence import SequenceClassifier, check_seeds


class Callback:
    """What a caller may hook into a training; ``state`` is the `Trainer`."""

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
    summary: dict  # best_epoch, accuracies, test_loss, parameters, seconds, backend, message
    curves: list  # one dict for each validation
    history: list  # long rows: step, epoch, variable, statistic, value
    weights: dict  # "initial", "best" and, unless diverged, "final": name -> tensor
    predictions: dict | None  # columns of the test set with the best state; None if diverged


def check(config):
    """Refuse a configuration that cannot run, before any file is read (ValueError)."""
    task, cell, training = config.task, config.cell, config.training
    for name, value in (("dataset", task.dataset), ("name of the cell", cell.name)):
        require(isinstance(value, str), name, value, "a text")
    require(isinstance(cell.options, dict), "options", cell.options, "a mapping")
    with registered(task, cell):
        datasets.check_task(task)
        windows.check_task_window(task, config.window)
        cells.check_cell(cell)
    for name in ("epochs", "batch_size", "validations_per_epoch"):
        whole(name, getattr(training, name), 1)
    for name in ("learning_rate", "clip_norm"):
        number(name, getattr(training, name))
    whole("seed", config.seed)
    require(config.seed < 2**63, "seed", config.seed, "below 2**63", "choose a smaller one")


def plain(config):
    """The configuration as its key is made, so that a run has one key however it was written: with
    Python's own numbers, and without options at their default. Refused as by `check`.
    """
    values = _own_numbers(config.to_dict())
    for name in ("learning_rate", "clip_norm"):
        if type(values["training"][name]) is int:
            values["training"][name] = float(values["training"][name])
    config = RunConfig.from_dict(values)
    check(config)
    with registered(config.task, config.cell):
        options = cells.get(config.cell.name).changed_options(config.cell.options)
    return replace(config, cell=replace(config.cell, options=options))


def _own_numbers(value):
    if isinstance(value, dict):
        return {name: _own_numbers(part) for name, part in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def steps_per_epoch(config, data):
    """Training steps of an epoch; an incomplete last batch is dropped. A batch that exceeds the
    training set is refused (ValueError).
    """
    batch, examples = config.training.batch_size, len(data.labels["train"])
    rule = f"at most {examples}, the images of the training set of {config.task.dataset}"
    require(batch <= examples, "batch_size", batch, rule, "choose a smaller batch")
    return examples // batch


def build(config, *, seeds=None, device="cpu"):
    """The `SequenceClassifier` of a configuration at its start, or of several seeds of it."""
    task, window, cell = config.task, config.window, config.cell
    with registered(task, cell):
        return SequenceClassifier(
            cell.name,
            datasets.image_shape(task)[0] * window.input_length,
            cell.hidden_size,
            datasets.get(task.dataset).classes,
            windows.task_length(task, window),
            seed=config.seed,
            seeds=seeds,
            initialisation=cell.initialisation,
            **cell.options,
        ).to(device)


def fit(configs, data=None, *, device="cpu", backend="auto", alike=1, callbacks=(), resume=None):
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
        As `SequenceClassifier.prepare`. What "auto" takes depends on what is compiled already; with
        a backend that is named, a second run on the same machine has the same bits.
    alike : int
        Runs that will use the same compiled graphs, this one included; "auto" counts them.
    callbacks : sequence of Callback
    resume : sequence of dict, optional
        `Trainer.snapshot` of each configuration, all of the same step; continues with the bits of a
        run that never stopped.

    Returns
    -------
    list of Outcome

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
                f"Runs {configs[0].key()} and {config.key()} differ in more than the seed; "
                "train them one after the other."
            )
    check_seeds([config.seed for config in configs])
    # A user's cell may draw random numbers: they are the run's own, and the caller's stay as they
    # were.
    devices = [device] if torch.device(device).type == "cuda" else []
    system.keep_memory()
    texts = registered(configs[0].task, configs[0].cell)
    with texts, torch.random.fork_rng(devices=devices), _denormals_are_zero():
        if not isinstance(data, datasets.Dataset):
            data = datasets.load(configs[0].task, data=data, device=device)
        torch.manual_seed(_mix(configs[0].seed, -1))
        return Trainer(configs, data, device, backend, alike, callbacks, resume).run()


@contextlib.contextmanager
def _denormals_are_zero():
    """Processors take ten times as long for numbers below 1e-38, of which the gradients over a long
    delay are full. Afterwards they are what they were.
    """
    before = (torch.tensor(1e-39) * 1).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _mix(seed, epoch):
    """A seed for a random generator that no other (seed, epoch) shares in practice; 31 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed},{epoch}".encode()).digest()[:4]) >> 1


class Clock:
    """Time of a training: all of it, and that of the steps between validations."""

    def __init__(self):
        self.before, self.stretches = 0.0, []  # seconds of earlier attempts; seconds a step
        self._started, self.mark = time.perf_counter(), None  # mark: where the stretch began

    @property
    def seconds(self):
        return self.before + time.perf_counter() - self._started

    def begin(self, step):
        """A stretch of training steps begins after this one."""
        self.mark = step, time.perf_counter()

    def end(self, step):
        """It ends; the device has done its work."""
        if self.mark is not None and step > self.mark[0]:
            first, start = self.mark
            self.stretches.append((time.perf_counter() - start) / (step - first))


class Trainer:
    """The state of a training, as callbacks see it.

    Attributes
    ----------
    configs : list of RunConfig
    step, steps, steps_per_epoch : int
        Training steps done, of the whole run, of one epoch.
    model : SequenceClassifier
    backend : str
        Resolved: "reference" or "fast".
    curves, history : list of list of dict
        For each seed, the rows recorded so far.
    diverged_step : list of int or None
        For each seed, as known at the last validation.
    validated : bool
        Whether the newest step ended with a validation.
    parameters : dict of str to Tensor
        Views of the model's with a leading seed axis: writing to them writes to the model.
    """

    # What a seed needs to go on, beside its tensors: values that all seeds share, and its own.
    SHARED = ("step", "count")
    OWN = ("best_step", "diverged_step", "curves", "history")

    def __init__(
        self, configs, data, device="cpu", backend="auto", alike=1, callbacks=(), resume=None
    ):
        self.clock = Clock()
        self.configs, self.data, self.device, self.callbacks = configs, data, device, callbacks
        self.training, seeds = configs[0].training, len(configs)
        self.steps_per_epoch = steps_per_epoch(configs[0], data)
        self.steps = self.training.epochs * self.steps_per_epoch
        parts = self.training.validations_per_epoch
        self.validation_steps = {
            round(k * self.steps_per_epoch / parts)
            for k in range(1, self.training.epochs * parts + 1)
        }
        length = alike * windows.task_length(configs[0].task, configs[0].window)
        together = tuple(config.seed for config in configs) if seeds > 1 else None
        self.model = build(configs[0], seeds=together, device=device)
        self.backend = self.model.prepare(self.training.batch_size, backend, self.steps * length)
        self.single = build(configs[0]) if together else self.model
        self.parameters = {name: self._view(p.data) for name, p in self.model.named_parameters()}
        self.optimiser = self._adam()
        self.step, self.order, self.validated = 0, None, False
        self.curves, self.history = [[] for _ in configs], [[] for _ in configs]
        self.diverged_step, self.best_step = [None] * seeds, [0] * seeds
        self.initial, self.best = self._copy(), self._copy()
        self.diverged = torch.full((seeds,), -1, device=device)
        # Loss, accuracy and gradient norm, summed over the steps since the last validation.
        self.sums = torch.zeros(seeds, 3, dtype=torch.float64, device=device)
        self.count = 0
        if resume is not None:
            self._restore(resume)

    def _adam(self):
        """The optimiser, its state made beforehand, so that it is saved like all other tensors."""
        rate = self.training.learning_rate
        optimiser = torch.optim.Adam(self.model.parameters(), lr=rate, fused=True)
        for parameter in self.model.parameters():
            optimiser.state[parameter] = {
                "step": torch.zeros((), device=self.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return optimiser

    def _view(self, tensor):
        return tensor.unsqueeze(0) if len(self.configs) == 1 else tensor

    def _copy(self):
        return {name: value.clone() for name, value in self.parameters.items()}

    def _call(self, hook, *arguments):
        for callback in self.callbacks:
            getattr(callback, hook)(self, *arguments)

    @property
    def seconds(self):
        """Time spent, over all attempts, as one seed's share."""
        return self.clock.seconds / len(self.configs)

    @property
    def ms_per_step(self):
        """Milliseconds a step of one seed takes: median over the stretches between validations."""
        stretches = self.clock.stretches
        return 1e3 * median(stretches) / len(self.configs) if stretches else math.nan

    # The loop

    def run(self):
        """Train to the end and return the list of `Outcome`."""
        self._call("on_start")
        if self.step == 0:
            self.validate()
        while self.step < self.steps and None in self.diverged_step:
            self.train_step()
            if self.clock.mark is None:  # after the first step, which may compile
                self.clock.begin(self.step)
            self.validated = self.step in self.validation_steps
            if self.validated:
                self.validate()
            self._call("on_step")
        self._call("on_end")
        return self._outcomes()

    def learning_rate(self, step):
        """Cosine schedule from the configured rate at step 0 to 0 at the end."""
        return self.training.learning_rate * (1 + math.cos(math.pi * step / self.steps)) / 2

    def train_step(self):
        """One batch of every seed. Nothing here waits for the device."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if position == 0 or self.order is None:
            self.order = self._permutations(epoch)
        batch, seeds = self.training.batch_size, len(self.configs)
        index = self.order[:, position * batch : (position + 1) * batch]
        index = index if seeds > 1 else index[0]
        x, labels = windows.sequences(self.data, self.configs[0].window, "train", index)
        logits, labels = self.model(x).flatten(0, -2), labels.flatten()
        loss = F.cross_entropy(logits, labels, reduction="none").view(seeds, -1).mean(1)
        self.optimiser.zero_grad(set_to_none=True)
        loss.sum().backward()
        norm = self._clip()
        self.optimiser.param_groups[0]["lr"] = self.learning_rate(self.step)
        self.optimiser.step()
        self.step += 1
        loss = loss.detach()
        finite = torch.isfinite(loss + norm)
        self.diverged = torch.where(finite | (self.diverged >= 0), self.diverged, self.step)
        correct = (logits.detach().argmax(1) == labels).view(seeds, -1).float().mean(1)
        self.sums += torch.stack((loss, correct, norm), 1)
        self.count += 1

    def _clip(self):
        """Scale the gradient of each seed to at most `clip_norm`; return the norms before, (S,)."""
        seeds = len(self.configs)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.reshape(seeds, -1) for gradient in gradients], 1)
        norm = torch.linalg.vector_norm(flat, dim=1)
        scale = (self.training.clip_norm / (norm + 1e-6)).clamp_(max=1)
        factors = [
            scale.view(-1, *[1] * (gradient.dim() - 1)) if seeds > 1 else scale[0]
            for gradient in gradients
        ]
        torch._foreach_mul_(gradients, factors)
        return norm

    def _permutations(self, epoch):
        """Order of the training images in this epoch for each seed, (S, images); drawn on the CPU,
        so that devices agree.
        """
        examples = len(self.data.labels["train"])
        generators = [torch.Generator().manual_seed(_mix(c.seed, epoch)) for c in self.configs]
        orders = [torch.randperm(examples, generator=generator) for generator in generators]
        return torch.stack(orders).to(self.device)

    # Validation

    def validate(self):
        """Record curves and history, keep the best state of each seed, notice divergence."""
        means = (self.sums / self.count if self.count else self.sums * math.nan).tolist()
        self.clock.end(self.step)  # the line above waited for the device
        _, trace, loss, accuracy = self._predicted("validation", probe=True)
        position = {"step": self.step, "epoch": self.step / self.steps_per_epoch}
        alive = []
        for s, diverged in enumerate(self.diverged.tolist()):
            if self.diverged_step[s] is None and (diverged >= 0 or not math.isfinite(loss[s])):
                self.diverged_step[s] = diverged if diverged >= 0 else self.step
            if self.diverged_step[s] is not None:
                continue
            alive.append(s)
            best = max((row["validation_accuracy"] for row in self.curves[s]), default=-1)
            if accuracy[s] > best:
                self.best_step[s] = self.step
                for name, value in self.parameters.items():
                    self.best[name][s] = value[s]
            trained = zip(("train_loss", "train_accuracy", "gradient_norm"), means[s], strict=True)
            validated = {"validation_loss": loss[s], "validation_accuracy": accuracy[s]}
            rate = self.learning_rate(max(self.step - 1, 0))  # of the newest step
            self.curves[s].append({**dict(trained), **position, **validated, "rate": rate})
            followed = self._followed(s, {name: values[s] for name, values in trace.items()})
            self.history[s] += [position | row for row in followed]
        self.sums.zero_()
        self.count = 0
        for s in alive:
            self._call("on_validation", {"seed": self.configs[s].seed, **self.curves[s][-1]})
        if self.step:
            self.clock.begin(self.step)

    def _predicted(self, split, probe=False):
        """Logits and recorded variables of a split, loss and accuracy of each seed."""
        logits, trace = measures.predict(self.model, self.data, self.configs[0], split, probe)
        loss, accuracy = measures.scores(logits, self.data.labels[split])
        return logits, trace, loss.tolist(), accuracy.tolist()

    @torch.no_grad()
    def _followed(self, s, trace):
        """Rows of the parameters and recorded variables of one seed."""
        if self.single is not self.model:
            for name, parameter in self.single.named_parameters():
                parameter.copy_(self.parameters[name][s])
        cell = self.single.cell
        constrained = {name: v.detach().cpu().numpy() for name, v in cell.constrained().items()}
        yield from measures.parameter_rows(cell, constrained)
        yield from measures.dynamic_rows(cell, constrained, trace)

    # Resuming: a snapshot is of one seed, whatever the arrangement

    def _tensors(self):
        """All tensors that training changes, by name; the seed axis leads."""
        parts = {"model": self.parameters, "initial": self.initial, "best": self.best}
        for moment in ("exp_avg", "exp_avg_sq"):
            parts[moment] = {
                name: self._view(self.optimiser.state[parameter][moment])
                for name, parameter in self.model.named_parameters()
            }
        named = {f"{part} {name}": v for part, own in parts.items() for name, v in own.items()}
        return named | {"diverged": self.diverged, "sums": self.sums}

    def snapshot(self, s):
        """All that the seed at position `s` needs to go on: plain values and tensors only, on the
        CPU.
        """
        random = {"cpu": torch.get_rng_state()}
        if torch.device(self.device).type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            **{name: getattr(self, name) for name in self.SHARED},
            # As text: the many small values of the rows would be pickled one by one.
            "own": json.dumps({name: getattr(self, name)[s] for name in self.OWN}),
            "tensors": {k: v[s].to("cpu", copy=True) for k, v in self._tensors().items()},
            "seconds": self.seconds,
            "stretches": list(self.clock.stretches),
            "random": random,
        }

    def _restore(self, snapshots):
        """Inverse of `snapshot`, for all seeds."""
        first = snapshots[0]
        if len({snapshot["step"] for snapshot in snapshots}) > 1:
            raise ValueError(
                "The seeds to resume stopped at different steps; resume them from a step they "
                "share, or one by one."
            )
        for name in self.SHARED:
            setattr(self, name, first[name])
        own = [json.loads(snapshot["own"]) for snapshot in snapshots]
        for name in self.OWN:
            setattr(self, name, [values[name] for values in own])
        for name, tensor in self._tensors().items():
            tensor.copy_(torch.stack([snapshot["tensors"][name] for snapshot in snapshots]))
        for state in self.optimiser.state.values():
            state["step"].fill_(self.step)
        self.clock.before = first["seconds"] * len(snapshots)
        self.clock.stretches = list(first["stretches"])
        torch.set_rng_state(first["random"]["cpu"])
        if "cuda" in first["random"] and torch.device(self.device).type == "cuda":
            torch.cuda.set_rng_state(first["random"]["cuda"], self.device)

    # The end

    @torch.no_grad()
    def _outcomes(self):
        """Read the test set, once, with the best states."""
        final = self._copy()
        self._set(self.best)
        logits, _, loss, accuracy = self._predicted("test")
        probability, prediction = (values.cpu().numpy() for values in logits.softmax(-1).max(-1))
        self._set(final)  # the model is left as training left it
        labels = self.data.labels["test"].cpu().numpy()
        images = {"image": np.arange(len(labels)), "label": labels}
        outcomes = []
        for s, config in enumerate(self.configs):
            failed = self.diverged_step[s] is not None
            best = next((row for row in self.curves[s] if row["step"] == self.best_step[s]), {})
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
            weights = {"initial": self.initial, "best": self.best}
            predictions = None
            if not failed:
                weights["final"] = final
                predicted = {"prediction": prediction[s], "probability": probability[s]}
                predictions = images | predicted
            own = {k: {n: v[s].cpu().clone() for n, v in w.items()} for k, w in weights.items()}
            rows = self.curves[s], self.history[s]
            state = "DIVERGED" if failed else "DONE"
            outcomes.append(Outcome(config, state, summary, *rows, own, predictions))
        return outcomes

    def _set(self, values):
        for name, value in self.parameters.items():
            value.copy_(values[name])

    def _divergence(self, s):
        said = f"Loss or gradient was no longer finite at step {self.diverged_step[s]}"
        for last in self.curves[s][-1:]:
            accuracy = last["validation_accuracy"]
            said += f"; at step {last['step']} the validation accuracy was {accuracy:.1%}"
        return f"{said}."
