"""The only time loop: reference path (plain autograd) and fast path (compiled chunks with a
structured backward).

Both paths run the same cell definitions. The reference projects the inputs of all steps in one
product before the loop, the fast path those of a chunk, which stay in the cache. The fast path
keeps the states, the presynaptic signals and what `Cell.saved` names; its backward runs
`Cell.pullback` step by step and forms the gradients of the matrices as one product over a chunk.
"""

import copy
import os
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
from filelock import FileLock
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from lib import cells

CHUNK = 8  # steps in one compiled graph: 16 is no faster and compiles twice as long
# steps of a run above which compiling (about 10 s) costs less than it saves (0.1 to 0.7 ms a step)
PAYS_FROM = 30_000


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
        See `resolve_backend`; "auto" for a model on its own means reference.
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
        if initialisation not in cells.INITIALISATIONS:
            raise ValueError(
                f"initialisation is {initialisation!r}, but must be one of {', '.join(cells.INITIALISATIONS)}."
            )
        self.seeds = None if seeds is None else tuple(seeds)
        self.backend = resolve_backend(backend)
        built = []
        for s in (seed,) if seeds is None else seeds:
            generator = torch.Generator().manual_seed(s)
            cell = cells.get(name)(
                input_size, hidden_size, sequence_length, initialisation, generator, **cell_options
            )
            readout = nn.Linear(cell.readout_size, classes, device="meta").to_empty(device="cpu")
            with torch.no_grad():
                for parameter in readout.parameters():
                    parameter.uniform_(-(hidden_size**-0.5), hidden_size**-0.5, generator=generator)
            built.append((cell, readout))
        self.cell, self.readout = built[0]
        if seeds is not None:
            for module, alike in (
                (self.cell, [c for c, _ in built]),
                (self.readout, [r for _, r in built]),
            ):
                for key in dict(module.named_parameters()):
                    setattr(
                        module,
                        key,
                        nn.Parameter(torch.stack([getattr(m, key).detach() for m in alike])),
                    )

    def forward(self, x, record=False):
        """Logits of a batch of sequences.

        Parameters
        ----------
        x : Tensor (batch, time, features), or (seeds, batch, time, features)
        record : bool
            Also return the trace, a dict of variable to (batch, time, hidden).

        Returns
        -------
        Tensor (batch, classes), or the pair of it and the trace; all with a leading seed axis if
        the model has seeds.
        """
        final, tape = self._run(x, keep=record)
        y = self.cell.output(final)
        logits = y @ self.readout.weight.mT + self.readout.bias.unsqueeze(-2)
        return (logits, self._trace(tape)) if record else logits

    @torch.no_grad()
    def states(self, x):
        """What the read-out reads at every step, (batch, time, n); the seed axis, if any, leads."""
        _, tape = self._run(x, keep=True)
        return _batch_first(self.cell.output(tape.states))

    def _run(self, x, keep):
        (P, b), weights, theta = self._step_weights()
        x = x.movedim(-2, 0)
        if self.seeds is not None and x.dim() == 3:
            x = x.unsqueeze(1).expand(-1, len(self.seeds), -1, -1)
        x = x.contiguous()  # (time, [seeds,] batch, features)
        theta = {name: value.unsqueeze(-2) for name, value in theta.items()}
        initial = self._initial_state(x.shape[-2], theta)
        tape = _Tape(
            cell=self.cell,
            x=x,
            P=P,
            b=b.unsqueeze(-2),
            weights=weights,
            theta=theta,
            initial=initial,
            keep=keep,
        )
        # The gradient with respect to the inputs is wanted in analyses only, and there the
        # reference gives it.
        return (_fast if self.backend == "fast" and not x.requires_grad else _reference)(tape), tape

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
    def _trace(self, tape):
        previous = type(tape.states)(
            *(torch.cat((s[None], f[:-1])) for s, f in zip(tape.initial, tape.states, strict=True))
        )
        a = _products(self.cell.presynaptic(previous, tape.theta), tape.weights)
        observed = self.cell.observe(
            previous, tape.states, a, _project(tape.x, tape.P, tape.b), tape.theta
        )
        return {name: _batch_first(observed[name]) for name in self.cell.variables}


def check_seeds(seeds):
    """Refuse seeds that are negative, repeated or no whole numbers, with one sentence
    (ValueError).
    """
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ValueError(f"Seed {seed!r} is not allowed; seeds are whole numbers from 0 on.")
        if list(seeds).count(seed) > 1:
            raise ValueError(
                f"Seed {seed} is given {list(seeds).count(seed)} times; name each seed once."
            )


def resolve_backend(backend, steps=0, device="cpu"):
    """Turn "auto" into "fast" where compiling pays over the ``steps`` of a run, else "reference".

    Without a C++ compiler (needed on a CPU) the fast path falls back to the reference with a
    warning.

    Raises
    ------
    ValueError
        Unknown backend.
    """
    if backend not in ("auto", "reference", "fast"):
        raise ValueError(f"backend is {backend!r}, but must be auto, reference or fast.")
    wanted = backend if backend != "auto" else ("fast" if steps >= PAYS_FROM else "reference")
    compiler = os.environ.get("CXX") or next(
        (c for c in ("g++", "clang++") if shutil.which(c)), "g++"
    )
    if wanted == "fast" and torch.device(device).type == "cpu" and not shutil.which(compiler):
        warnings.warn(
            f"The fast path needs a C++ compiler, and {compiler} was not found: using the slower reference path.",
            stacklevel=2,
        )
        return "reference"
    return wanted


class _Tape(SimpleNamespace):
    """One pass: cell, x, P, b, weights, theta, initial state; afterwards the states (time leads),
    if they are kept.
    """


def _batch_first(steps):
    return steps.movedim(0, -2)


def _project(x, P, b):
    """g = P x + b of all steps in one product: x (time, [seeds,] batch, features), b ([seeds,] 1,
    G).
    """
    return x @ P.mT + b if P.dim() == 3 else nn.functional.linear(x, P, b[0])


def _products(signals, weights):
    return tuple(s @ w.mT for s, w in zip(signals, weights, strict=True))


def _reference(tape):
    cell, state, states = tape.cell, tape.initial, []
    for g in _project(tape.x, tape.P, tape.b):
        state = cell.update(
            state, _products(cell.presynaptic(state, tape.theta), tape.weights), g, tape.theta
        )
        states.append(state)
    if tape.keep:
        tape.states = type(state)(*(torch.stack(fields) for fields in zip(*states, strict=True)))
    return state


def _fast(tape):
    final = _Scan.apply(tape, tape.P, tape.b, *tape.weights, *tape.theta.values(), *tape.initial)
    if tape.keep:
        fields = zip(*(chunk[0] for chunk in tape.chunks), strict=True)
        tape.states = type(tape.initial)(
            *(torch.cat([f[1:] for f in field])[: len(tape.x)] for field in fields)
        )
    return type(tape.initial)(*final)


class _Scan(torch.autograd.Function):
    """The loop in compiled chunks. The last chunk is padded; a padded step reaches no output and
    gets no gradient.

    The input projection and its gradient are formed chunk by chunk too, while their operands are in
    the cache: neither g nor its gradient is ever held for all steps.
    """

    @staticmethod
    def forward(ctx, tape, P, b, *tensors):
        ctx.tape, ctx.graphs = tape, _compiled(tape)
        P, b, *tensors = (
            t.contiguous() for t in (P, b, *tensors)
        )  # the graphs are compiled for contiguous operands
        weights, theta, state = _split(
            tensors, (len(tape.weights), len(tape.theta), len(tape.initial))
        )
        ctx.constants = weights, theta
        columns = tuple(w.mT.contiguous() for w in weights)
        steps, tape.chunks = ctx.graphs.steps, []
        for start in range(0, len(tape.x), steps):
            x = tape.x[start : start + steps]
            ctx.last = len(x)
            if ctx.last < steps:
                x = torch.cat((x, x.new_zeros(steps - ctx.last, *x.shape[1:])))
            states, signals, saved = ctx.graphs.forward(x, P, b, columns, theta, state)
            state = tuple(field[ctx.last] for field in states)
            if tape.keep or any(ctx.needs_input_grad):
                tape.chunks.append((states, signals, saved, x))
        return tuple(field.clone() for field in state)

    @staticmethod
    def backward(ctx, *grad_final):
        tape, graphs, (weights, theta) = ctx.tape, ctx.graphs, ctx.constants
        grad_final = tuple(x.contiguous() for x in grad_final)
        adjoint = tuple(torch.zeros_like(x) for x in grad_final)
        sums = tuple(torch.zeros_like(t) for t in (tape.P.contiguous(), tape.b, *weights, *theta))
        nowhere = tape.x.new_zeros(graphs.steps)
        inject = nowhere.clone()
        inject[ctx.last - 1] = 1
        for chunk in reversed(tape.chunks):
            adjoint, sums = graphs.backward(
                *chunk, weights, theta, adjoint, inject, grad_final, sums
            )
            inject = nowhere
        return None, *sums, *adjoint


def _split(tensors, sizes):
    parts = iter(tensors)
    return tuple(tuple(next(parts) for _ in range(size)) for size in sizes)


def _graphs(cell, state_type, names, steps):
    """The two functions that are compiled, for ``steps`` steps of a cell whose theta has ``names``;
    tensors lead with time.
    """

    def forward(x, P, b, columns, theta, initial):
        g, theta = x @ P.mT + b, dict(zip(names, theta, strict=True))
        state, states, signals, saved = state_type(*initial), [state_type(*initial)], [], []
        for t in range(steps):
            previous, s = state, cell.presynaptic(state, theta)
            a = tuple(signal @ column for signal, column in zip(s, columns, strict=True))
            state = cell.update(previous, a, g[t], theta)
            states.append(state)
            signals.append(s)
            saved.append(cell.saved(previous, state, s, a, g[t], theta))
        return tuple(
            tuple(torch.stack(fields) for fields in zip(*kept, strict=True))
            for kept in (states, signals, saved)
        )

    def backward(states, signals, saved, x, weights, theta, adjoint, inject, grad_final, sums):
        # theta's gradient is summed over steps element by element, and over the batch only once.
        wide = {
            name: value.expand(adjoint[0].shape) for name, value in zip(names, theta, strict=True)
        }
        grad_theta = {name: torch.zeros_like(adjoint[0]) for name in names}
        grad_g, grad_a = [], []

        def transpose(grad):
            return tuple(x @ w for x, w in zip(grad, weights, strict=True))

        for t in reversed(range(steps)):
            adjoint = state_type(
                *(x + inject[t] * y for x, y in zip(adjoint, grad_final, strict=True))
            )
            previous, state = (state_type(*(f[i] for f in states)) for i in (t, t + 1))
            kept = tuple(x[t] for x in saved)
            adjoint, d_a, d_g, d_theta = cell.pullback(
                previous, state, tuple(s[t] for s in signals), kept, adjoint, wide, transpose
            )
            grad_theta = {name: value + d_theta[name] for name, value in grad_theta.items()}
            grad_g.insert(0, d_g)
            grad_a.insert(0, d_a)
        grad_g = torch.stack(grad_g)
        if cell.additive:
            grad_a = grad_g.split([w.shape[-2] for w in weights], -1)
        else:
            grad_a = tuple(torch.stack(x) for x in zip(*grad_a, strict=True))
        rows = _rows(grad_g)
        partial = (
            rows.mT @ _rows(x),
            rows.sum(-2, keepdim=True),
            *(_rows(d).mT @ _rows(s) for d, s in zip(grad_a, signals, strict=True)),
            *(d.sum(-2, keepdim=True) for d in grad_theta.values()),
        )
        return tuple(adjoint), tuple(x + y for x, y in zip(sums, partial, strict=True))

    return forward, backward


def _rows(x):
    """(time, [seeds,] batch, n) to ([seeds,] time * batch, n)."""
    return x.movedim(0, -3).flatten(-3, -2)


_COMPILED: dict = {}


@torch.no_grad()
def _compiled(tape):
    """Compiled graphs for a pass's cell and shapes, made once in a process; other processes wait,
    then read the disk cache.
    """
    cell, x = tape.cell, tape.x
    constants = tuple(getattr(cell, option) for option in cell.defaults)
    key = (
        type(cell),
        cell.hidden_size,
        constants,
        x.shape[1:],
        tape.P.shape,
        x.dtype,
        x.device,
        CHUNK,
    )
    if key not in _COMPILED:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        template = copy.copy(cell)  # only its fixed numbers are read: keep no parameters alive
        template._parameters = {}
        forward, backward = _graphs(template, type(tape.initial), tuple(tape.theta), CHUNK)
        P, b, *rest = (
            t.contiguous()
            for t in (tape.P, tape.b, *tape.weights, *tape.theta.values(), *tape.initial)
        )
        weights, theta, state = _split(
            rest, (len(tape.weights), len(tape.theta), len(tape.initial))
        )
        inputs = (
            x.new_zeros(CHUNK, *x.shape[1:]),
            P,
            b,
            tuple(w.mT.contiguous() for w in weights),
            theta,
            state,
        )
        with FileLock(Path(cache_dir()) / f"workbook-{cell.name}-{cell.hidden_size}.lock"):
            forward = _compile(forward, inputs)
            chunk = (*forward(*inputs), inputs[0])
            backward = _compile(
                backward,
                (
                    *chunk,
                    weights,
                    theta,
                    state,
                    x.new_zeros(CHUNK),
                    state,
                    (P, b, *weights, *theta),
                ),
            )
        _COMPILED[key] = SimpleNamespace(forward=forward, backward=backward, steps=CHUNK)
    return _COMPILED[key]


def _compile(function, example):
    """Compile a function of nested tuples of tensors for the shapes of an example.

    Traced by make_fx and handed to the inductor directly: the call then costs 20 us less than
    through torch.compile, and a start with a warm disk cache takes a third of the time, since
    nothing is traced twice and no guards are evaluated.
    """
    # Imported here, since the compiler takes seconds to import and most processes never need it.
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    flat, layout = tree_flatten(example)
    shape_of = {}

    def flattened(*tensors):
        out, shape_of["out"] = tree_flatten(function(*tree_unflatten(tensors, layout)))
        return out

    flat = [t.detach() for t in flat]
    cpp = flat[0].device.type == "cpu"
    with config.patch(cpp_wrapper=cpp, compile_threads=1):
        graph = make_fx(flattened, decomposition_table=select_decomp_table(), tracing_mode="fake")(
            *flat
        )
        compiled = compile_fx_inner(
            graph,
            [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"],
            cpp_wrapper=cpp,
        )
    out = shape_of["out"]

    def call(*arguments):
        return tree_unflatten(compiled(tree_leaves(arguments)), out)

    return call
