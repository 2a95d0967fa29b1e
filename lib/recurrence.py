"""The only time loop: a cell's step, applied to the inputs of all steps in turn.

The reference path below is plain autograd; `lib.compiled` runs the same cells in compiled chunks.
The reference projects the inputs of all steps in one product before the loop.
"""

import contextlib
import warnings
from types import SimpleNamespace

import torch
from torch import nn

from lib import cells, compiled
from lib.checks import one_of, require, whole

# Time steps of a run, times state variables of its cell, above which the fast path costs less than
# it saves (0.02 to 0.1 ms a step, with plasticity 0.4): loading takes up to 0.1 s, compiling
# 15 to 20 s, which later runs are spared.
PAYS_CACHED, PAYS_COMPILED = 6_000, 100_000
BACKENDS = ("auto", "reference", "fast")


class SequenceClassifier(nn.Module):
    """Recurrent cell and linear read-out of the last step: logits = W_out y_T + b_out.

    Parameters
    ----------
    name : str
        A registered cell.
    input_size, hidden_size, classes, sequence_length : int
        Features per step, hidden units, classes, steps T.
    seed : int
        Fixes the initialisation.
    seeds : tuple of int, optional
        Train several seeds at once: parameters, logits and traces get a leading seed axis.
    backend : {"auto", "reference", "fast"}
        "auto" for a model on its own means reference; `prepare` decides for a run. Where nothing
        can be compiled, the first pass says so and goes on with the reference.
    initialisation : {"balanced", "notes"}
    **cell_options
        Options of the cell, such as ``dt``.

    Raises
    ------
    ValueError
        Unknown cell, option, initialisation or backend; a repeated or negative seed.

    Examples
    --------
    >>> model = SequenceClassifier("cb", 12, 48, 10, 255)
    >>> logits, trace = model(torch.randn(40, 255, 12), record=True)
    >>> logits.shape, trace["z"].shape
    (torch.Size([40, 10]), torch.Size([40, 255, 48]))
    """

    def __init__(
        self,
        name,
        input_size,
        hidden_size,
        classes,
        sequence_length,
        seed=0,
        seeds=None,
        backend="auto",
        initialisation="balanced",
        **cell_options,
    ):
        super().__init__()
        check_seeds((seed,) if seeds is None else seeds)
        one_of("backend", backend, BACKENDS)
        one_of("initialisation", initialisation, cells.INITIALISATIONS)
        self.seeds = None if seeds is None else tuple(seeds)
        self.backend = "fast" if backend == "fast" else "reference"
        built = []
        for s in (seed,) if seeds is None else seeds:
            generator = torch.Generator().manual_seed(s)
            cell = cells.get(name)(
                input_size, hidden_size, sequence_length, initialisation, generator, **cell_options
            )
            with torch.random.fork_rng(devices=[]):  # the meta device would import sympy
                readout = nn.Linear(cell.readout_size, classes)
            with torch.no_grad():
                for parameter in readout.parameters():
                    parameter.uniform_(-(hidden_size**-0.5), hidden_size**-0.5, generator=generator)
            built.append((cell, readout))
        self.cell, self.readout = built[0]
        if seeds is not None:
            for module, *alike in zip(built[0], *built, strict=True):
                for key in dict(module.named_parameters()):
                    together = torch.stack([getattr(m, key).detach() for m in alike])
                    setattr(module, key, nn.Parameter(together))

    def forward(self, x, record=False):
        """Logits (batch, classes) of sequences (batch, time, features).

        With ``record``, True or a tensor of steps, the pair of them and the trace of all or these
        steps, a dict of variable to (batch, time, hidden). If the model has seeds their axis leads,
        in what is returned and, where each seed reads its own, in x.
        """
        some = isinstance(record, torch.Tensor)
        final, tape = self._run(x, keep=some or record)
        logits = self._read(final)
        if not tape.keep:
            return logits
        return logits, self._trace(tape, record if some else slice(None))

    @torch.no_grad()
    def predict(self, batches, record=slice(None), images=0):
        """Logits (sequences, classes) of several batches (batch, time, features), and of the first
        ``images`` sequences the traces at the steps ``record``: for each batch a dict of variable
        to (batch, time, hidden). A seed axis leads. What passes share is made once.
        """
        made, finals, traces = self._step_weights(), [], []
        for x in batches:
            first, images = images, images - x.shape[-3]
            final, tape = self._run(x, keep=first > 0, made=made)
            finals.append(final)
            if tape.keep:
                traces.append(self._trace(tape, record, first))
            del tape  # before the next pass takes its memory
        fields = (torch.cat(field, -2) for field in zip(*finals, strict=True))
        return self._read(type(final)(*fields)), traces

    @torch.no_grad()
    def states(self, x):
        """What the read-out reads at every step, (batch, time, n); the seed axis, if any, leads."""
        _, tape = self._run(x, keep=True)
        return _batch_first(self.cell.output(tape.states)[1:])

    @torch.no_grad()
    def prepare(self, batch, backend, steps=0):
        """Resolve the backend for passes over batches of one size, and load or compile what the
        fast path needs; return "reference" (with a warning, where nothing can be compiled) or
        "fast".

        "auto" is the fast path where it saves more than it costs over the ``steps`` in time of the
        run, or of all runs that will use the same libraries; that depends on whether these are on
        disk already. The two paths agree to rounding, not to the bit.
        """
        one_of("backend", backend, BACKENDS)
        self.backend = "reference"
        tape = self._tape(self.readout.weight.new_zeros(batch, 1, self.cell.input_size), keep=False)
        work = steps * len(tape.initial)
        if backend == "fast" or (backend == "auto" and work >= PAYS_CACHED):
            with self._falling_back():
                if backend == "fast" or work >= PAYS_COMPILED or compiled.cached(tape):
                    compiled.graphs(tape)
                    self.backend = "fast"
        return self.backend

    @contextlib.contextmanager
    def _falling_back(self):
        try:
            yield
        except compiled.Unavailable as error:
            warnings.warn(str(error), stacklevel=4)
            self.backend = "reference"

    def _read(self, final):
        y = self.cell.output(final)
        return y @ self.readout.weight.mT + self.readout.bias.unsqueeze(-2)

    def _run(self, x, keep, made=None):
        tape = self._tape(x, keep, made)
        # The gradient with respect to the inputs is wanted in analyses only, and there the
        # reference gives it.
        if self.backend == "fast" and not x.requires_grad:
            with self._falling_back():
                return compiled.scan(tape, compiled.graphs(tape)), tape
        return _reference(tape), tape

    def _tape(self, x, keep, made=None):
        (P, b), weights, theta = made or self._step_weights()
        x = x.movedim(-2, 0)
        if self.seeds is not None and x.dim() == 3:
            x = x.unsqueeze(1).expand(-1, len(self.seeds), -1, -1)
        x = x.contiguous()  # (time, [seeds,] batch, features)
        theta = {name: value.unsqueeze(-2) for name, value in theta.items()}
        return Tape(
            cell=self.cell,
            x=x,
            P=P,
            b=b.unsqueeze(-2),
            weights=weights,
            theta=theta,
            initial=self._initial_state(x.shape[-2], theta),
            keep=keep,
            saved=None,
        )

    def _step_weights(self):
        if self.seeds is None:
            return self.cell()
        return torch.vmap(lambda parameters: torch.func.functional_call(self.cell, parameters, ()))(
            dict(self.cell.named_parameters())
        )

    def _initial_state(self, batch, theta):
        if self.seeds is None:
            return self.cell.initial_state(batch, theta)
        each = [
            self.cell.initial_state(batch, {k: v[i] for k, v in theta.items()})
            for i in range(len(self.seeds))
        ]
        return type(each[0])(
            *(
                torch.stack([field.expand(batch, -1) for field in fields])
                for fields in zip(*each, strict=True)
            )
        )

    @torch.no_grad()
    def _trace(self, tape, steps, images=None):
        """Recorded variables at ``steps`` of the first ``images`` sequences, or of all."""

        def part(tensor):
            return tensor[steps][..., :images, :]

        def state(fields):
            return type(tape.initial)(*map(part, fields))

        states = state(field[1:] for field in tape.states)
        if tape.saved is None:
            previous = state(field[:-1] for field in tape.states)
            a = _products(self.cell.presynaptic(previous, tape.theta), tape.weights)
            g = _project(part(tape.x), tape.P, tape.b)
            observed = self.cell.observe(previous, states, a, g, tape.theta)
        else:
            observed = self.cell.observe_saved(states, tuple(map(part, tape.saved)))
        return {name: _batch_first(observed[name]) for name in self.cell.variables}


def check_seeds(seeds):
    """Refuse seeds that are negative, repeated or no whole numbers (ValueError)."""
    for seed in seeds:
        whole("seed", seed)
    require(len(set(seeds)) == len(seeds), "seeds", seeds, "different", "name each seed once")


class Tape(SimpleNamespace):
    """One pass: cell, x, P, b, weights, theta, initial state; afterwards, if they are kept, the
    states from the initial one on (time leads), and, where the cell's `observe_saved` wants it,
    what the fast path has saved of each step.
    """


def _batch_first(steps):
    return steps.movedim(0, -2)


def _project(x, P, b):
    """g = P x + b of all steps at once: x (time, [seeds,] batch, features), b ([seeds,] 1, G)."""
    return x @ P.mT + b if P.dim() == 3 else nn.functional.linear(x, P, b[0])


def _products(signals, weights):
    return tuple(s @ w.mT for s, w in zip(signals, weights, strict=True))


def _reference(tape):
    cell, state, states = tape.cell, tape.initial, [tape.initial]
    for g in _project(tape.x, tape.P, tape.b):
        state = cell.update(
            state, _products(cell.presynaptic(state, tape.theta), tape.weights), g, tape.theta
        )
        states.append(state)
    if tape.keep:
        tape.states = type(state)(*(torch.stack(fields) for fields in zip(*states, strict=True)))
    return state
