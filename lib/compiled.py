"""The fast path: the time loop in compiled chunks with a structured backward, and the libraries
they are compiled to.

The input projection and its gradient are formed chunk by chunk, while their operands are in the
processor's cache. The states, the presynaptic signals and what `Cell.saved` names are kept; the
backward runs `Cell.pullback` step by step and forms the gradients of the matrices as one product
over a chunk.

Each of the two functions is traced to a graph, compiled ahead of time to a shared library, and kept
on disk under a digest of its operations: cells whose steps are the same share a library, and a
changed step, option or shape has another one. A later process runs two steps and loads.

This is the only module that uses private parts of torch.
"""

import contextlib
import ctypes
import functools
import hashlib
import itertools
import os
import platform
import subprocess
import sys
import tempfile
import warnings
import weakref
from pathlib import Path
from types import SimpleNamespace

import torch
from filelock import FileLock, Timeout
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

CHUNK = 8  # steps in one compiled graph: 16 is no faster and compiles twice as long
# For torch's inductor; part of every digest. A precompiled header costs more than it saves for ten
# graphs, and whether the compiler knows the processor's instructions shows when it compiles.
OPTIONS = {
    "compile_threads": 1,
    "cpp.vec_isa_ok": True,
    "aot_inductor.precompile_headers": False,
    "aot_inductor.enable_line_tables": False,
}
DEFAULT_COMPILER = "clang++" if sys.platform == "darwin" else "g++"  # as torch's inductor
TRIAL = """#include <omp.h>
#include <vector>
extern "C" int trial() { return std::vector<int>{1}[0]; }
"""

counts = {"compiled": 0, "found": 0}  # libraries that this process compiled, and found on disk


class Unavailable(RuntimeError):
    """The fast path cannot be used here; one sentence says why."""


# The loop


def scan(tape, graphs):
    """Run a pass (`lib.recurrence.Tape`) through its compiled graphs and return the final state."""
    tensors = tape.P, tape.b, *tape.weights, *tape.theta.values(), *tape.initial
    tape.chunks, tape.graded = [], torch.is_grad_enabled()
    final = _Scan.apply(tape, graphs, *tensors) if tape.graded else _forward(tape, graphs, *tensors)
    if tape.keep:
        states, _, saved, _ = (zip(*parts, strict=True) for parts in zip(*tape.chunks, strict=True))
        whole = [torch.cat([f[0][:1], *(x[1:] for x in f)])[: len(tape.x) + 1] for f in states]
        tape.states = type(tape.initial)(*whole)
        if tape.cell.observe_saved:
            tape.saved = [torch.cat(field)[: len(tape.x)] for field in saved]
    if not tape.graded:
        tape.chunks = None  # their memory is wanted again
    return type(tape.initial)(*final)


def _forward(tape, graphs, *tensors):
    """The fields of the final state. The last chunk is padded; a padded step reaches no output and
    gets no gradient.
    """
    # The graphs are compiled for contiguous operands.
    P, b, *tensors = (t.contiguous() for t in tensors)
    weights, theta, state = _split(tensors, tape)
    columns = tuple(w.mT.contiguous() for w in weights)
    for x in tape.x.split(graphs.steps):
        last = len(x)
        if last < graphs.steps:
            x = torch.cat((x, x.new_zeros(graphs.steps - last, *x.shape[1:])))
        states, signals, saved = graphs.forward(x, P, b, columns, theta, state)
        state = tuple(field[last] for field in states)
        if tape.graded:
            tape.chunks.append((states, signals, saved, x))
        elif tape.keep:
            tape.chunks.append((states, (), saved if tape.cell.observe_saved else (), ()))
    return tuple(field.clone() for field in state)  # a view would hold the last chunk


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tape, graphs, *tensors):
        ctx.tape, ctx.graphs = tape, graphs
        return _forward(tape, graphs, *tensors)

    @staticmethod
    def backward(ctx, *grad_final):
        tape, graphs = ctx.tape, ctx.graphs
        weights = tuple(w.contiguous() for w in tape.weights)
        theta = tuple(value.contiguous() for value in tape.theta.values())
        grad_final = tuple(x.contiguous() for x in grad_final)
        adjoint = tuple(torch.zeros_like(x) for x in grad_final)
        sums = tuple(torch.zeros_like(t) for t in (tape.P.contiguous(), tape.b, *weights, *theta))
        nowhere = tape.x.new_zeros(graphs.steps)
        inject = nowhere.clone()
        inject[(len(tape.x) - 1) % graphs.steps] = 1
        for chunk in reversed(tape.chunks):
            adjoint, sums = graphs.backward(
                *chunk, weights, theta, adjoint, inject, grad_final, sums
            )
            inject = nowhere
        return None, None, *sums, *adjoint


def _split(tensors, tape):
    """Weights, theta and initial state of a pass, from all of them in a row."""
    parts = iter(tensors)
    sizes = (len(tape.weights), len(tape.theta), len(tape.initial))
    return tuple(tuple(next(parts) for _ in range(size)) for size in sizes)


def functions(cell, state_type, names, steps):
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


# Graphs, and the libraries they are compiled to

_GRAPHS = weakref.WeakKeyDictionary()  # cell -> shape and kind of its inputs -> graphs
_LOADED = {}  # digest -> library


def graphs(tape):
    """Compiled ``forward`` and ``backward`` for a pass's cell and shapes.

    They are loaded from disk, or compiled first. Of processes that want the same two at once each
    compiles one, or waits for the other. Raises Unavailable where that fails.
    """
    known = _GRAPHS.setdefault(tape.cell, {})
    key = tape.x.shape[1:], tape.x.dtype, tape.x.device, CHUNK
    if key not in known:
        pair = traced(tape)
        with _explained():
            missing = [graph for graph in pair if not graph.load()]
            if missing and tape.x.device.type == "cpu":
                check_compiler()
            while missing:
                missing.sort(key=Graph.busy)
                missing.pop(0).build()
        forward, backward = (graph.function() for graph in pair)
        known[key] = SimpleNamespace(forward=forward, backward=backward, steps=CHUNK)
    return known[key]


def cached(tape):
    """Whether the libraries of a pass are on disk or loaded, so that nothing is compiled for it;
    raises Unavailable where they are there and cannot be loaded.
    """
    with _explained():
        return all(graph.load() for graph in traced(tape))


@contextlib.contextmanager
def _explained():
    try:
        yield
    except Unavailable:
        raise
    except Exception as error:
        # Compiler, linker, loader and file system fail in more ways than can be listed.
        lines = f"{type(error).__name__}: {error}".strip().splitlines()
        raise Unavailable(
            f"The fast path cannot be compiled ({lines[0][:200]}); "
            "the slower reference path is used."
        ) from error


def traced(tape):
    """The two graphs of a pass, not yet compiled."""
    return Graph("forward", tape), Graph("backward", tape)


class _Operations(TorchDispatchMode):
    """What is done with tensors while this is entered: a text for each operation. Tensors are
    numbered as they come; one that is neither an input nor a result is a constant.
    """

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # there is nothing to skip, and asked to, torch imports its compiler

    def __init__(self, inputs):
        super().__init__()
        self.said, self._numbers, self._held = [], {}, []  # held: an id stands for a living object
        for tensor in inputs:
            self._number(tensor)

    def _number(self, tensor):
        self._numbers[id(tensor)] = len(self._held)
        self._held.append(tensor)

    def name(self, value):
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in self._numbers:
            self._number(value)
            self.said.append(f"{value.dtype} {value.tolist()}")
        return f"%{self._numbers[id(value)]}"

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.said.append(f"{operation} {tree_map(self.name, (args, kwargs))}")
        out = operation(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and id(tensor) not in self._numbers:
                self._number(tensor)
        return out


class Graph:
    """One of the `functions` of a pass, "forward" or "backward", with its tuples flattened.

    ``digest`` is the sha256 of all that its library depends on: operations and constants, shapes
    and kinds of the inputs, threads, processor, torch and the options of its compiler. All steps
    are alike, so that two of them tell; all are traced where they are compiled.
    """

    def __init__(self, which, tape):
        self._which, self._tape = which, tape
        self.device = tape.x.device
        function, inputs = self._flattened(2)
        kinds = [(tuple(t.shape), str(t.dtype), t.device.type) for t in inputs]
        build = torch.__version__, torch.version.git_version, torch.get_num_threads(), OPTIONS
        with torch.no_grad(), _Operations(inputs) as operations:
            results = function(*inputs)
        told = operations.said, [*map(operations.name, results)], CHUNK, kinds, build, processor()
        self.digest = hashlib.sha256(str(told).encode()).hexdigest()

    @torch.no_grad()
    def _flattened(self, steps):
        """The function for so many steps, from a list of tensors to a list, and example inputs."""
        tape = self._tape
        rest = (t.contiguous() for t in (*tape.weights, *tape.theta.values(), *tape.initial))
        P, b = tape.P.contiguous(), tape.b.contiguous()
        weights, theta, state = _split(rest, tape)
        forward, backward = functions(tape.cell, type(tape.initial), tuple(tape.theta), steps)
        x = tape.x.new_zeros(steps, *tape.x.shape[1:])
        columns = tuple(w.mT.contiguous() for w in weights)
        function, example = forward, (x, P, b, columns, theta, state)
        if self._which == "backward":
            chunk, inject, sums = forward(*example), x.new_zeros(steps), (P, b, *weights, *theta)
            function, example = backward, (*chunk, x, weights, theta, state, inject, state, sums)
        flat, layout = tree_flatten(example)

        def flattened(*tensors):
            out = function(*tree_unflatten(tensors, layout))
            self._sizes = [len(part) for part in out]
            return [tensor for part in out for tensor in part]

        return flattened, tuple(tensor.detach() for tensor in flat)

    @torch.no_grad()
    def _traced(self):
        """The module that is compiled, and example inputs."""
        from torch.fx.experimental.proxy_tensor import make_fx  # imports torch's compiler

        function, inputs = self._flattened(CHUNK)
        return make_fx(function, tracing_mode="fake")(*inputs), inputs

    def function(self):
        """The compiled function; its library must have been loaded."""
        run, ends = _LOADED[self.digest], list(itertools.accumulate(self._sizes))
        parts = [slice(end - size, end) for size, end in zip(self._sizes, ends, strict=True)]

        def call(*arguments):
            # By hand: torch's pytree takes 14 us for this, a twentieth of a chunk.
            flat = []
            for argument in arguments:
                flat += argument if isinstance(argument, tuple) else (argument,)
            out = run(flat)
            return [tuple(out[part]) for part in parts]

        return call

    def load(self):
        """Whether the library is loaded now; one on disk is, unless it is damaged."""
        if self.digest in _LOADED or self.device.type != "cpu":
            return self.digest in _LOADED
        for path in folder().glob(f"{self.digest[:32]}-*.so"):
            if hashlib.sha256(path.read_bytes()).hexdigest() == path.stem.split("-")[1]:
                self._open(path)
                counts["found"] += 1
                return True
            path.unlink(missing_ok=True)  # truncated or damaged: compiled anew
        return False

    def busy(self):
        """Whether another process compiles this graph at the moment."""
        try:
            with self._lock(timeout=0):
                return False
        except Timeout:
            return True

    def build(self):
        """Compile and load, unless another process did so meanwhile."""
        with self._lock():
            if self.load():
                return
            module, inputs = self._traced()
            if self.device.type == "cpu":
                self._open(self._compile(module, inputs))
            else:
                self._compile_for_device(module, inputs)
            counts["compiled"] += 1

    def _open(self, path):
        _LOADED[self.digest] = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1).run

    def _lock(self, timeout=-1):
        folder().mkdir(parents=True, exist_ok=True)
        return FileLock(folder() / f"{self.digest[:32]}.lock", timeout)

    def _compile(self, module, inputs):
        """Path of a new library of the cache; its name carries its own sha256, and it appears whole
        or not at all.
        """
        from torch import _inductor  # takes seconds to import, and most processes never compile

        with tempfile.TemporaryDirectory(dir=folder()) as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = Path(scratch) / "graph.so"
            options = OPTIONS | {"aot_inductor.output_path": str(path)}
            made = Path(_inductor.aot_compile(module, inputs, options=options))
            content = hashlib.sha256(made.read_bytes()).hexdigest()
            return made.replace(folder() / f"{self.digest[:32]}-{content}.so")

    def _compile_for_device(self, module, inputs):
        """On a GPU torch keeps the kernels in a cache of its own, which asks for this mode."""
        from torch._guards import TracingContext, tracing
        from torch._inductor.compile_fx import compile_fx_inner
        from torch._inductor.decomposition import select_decomp_table
        from torch._subclasses import FakeTensorMode
        from torch.fx.experimental.proxy_tensor import make_fx
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        mode = FakeTensorMode(shape_env=ShapeEnv())
        fake = [mode.from_tensor(tensor, static_shapes=True) for tensor in inputs]
        with mode, tracing(TracingContext(mode)):
            module = make_fx(module, decomposition_table=select_decomp_table())(*fake)
            _LOADED[self.digest] = compile_fx_inner(module, fake)


def folder():
    """Folder of the compiled libraries, below torch's own compile cache, of which torch and the
    processes that this one starts are told.
    """
    if not os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        user = getattr(os, "getuid", lambda: "user")()
        default = Path(tempfile.gettempdir()) / f"torchinductor_{user}"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(default)
    return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) / "workbook"


@functools.cache
def processor():
    """Model and instructions of the processor, for which a library is compiled."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = {line for line in lines if line.startswith(("model name", "flags"))}
        return "\n".join(sorted(told))
    return f"{platform.machine()} {platform.processor()}"


def check_compiler():
    """Compile and load three lines, once for a compiler: one that is missing or fails shows at once
    (Unavailable).
    """
    compiler = os.environ.get("CXX") or DEFAULT_COMPILER
    with _explained():
        folder().mkdir(parents=True, exist_ok=True)
        kept = folder() / f"trial-{hashlib.sha256(compiler.encode()).hexdigest()[:16]}.so"
        with contextlib.suppress(OSError):  # there is none yet, or a power failure cut it short
            return ctypes.CDLL(str(kept))
        with tempfile.TemporaryDirectory(dir=folder()) as scratch:
            source, library = Path(scratch) / "trial.cpp", Path(scratch) / "trial.so"
            source.write_text(TRIAL)
            options = "-std=c++20", "-fopenmp", "-shared", "-fPIC"
            command = [compiler, *options, source, "-o", library]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                raise OSError(f"{compiler} fails: {made.stderr.strip()}")
            library.replace(kept)
        ctypes.CDLL(str(kept))


def expect():
    """Import what compiling needs, where a compiler was found and has compiled nothing yet: seconds
    that the children forked from this process need not spend.
    """
    with contextlib.suppress(OSError):
        if any(folder().glob("trial-*.so")) and not any(folder().glob("*.lock")):
            from torch._inductor import compile_fx  # noqa: F401
