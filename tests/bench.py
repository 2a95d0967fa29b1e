"""Benchmarks: forward and backward pass of every cell against the libraries, the bare products and
the notes' style of loop.

Everything runs in one process on one thread, interleaved; the table shows medians. ``make bench``
runs it; ``--json FILE`` writes the same numbers for machines (README's table is made from
results/bench.json); the optional extra ``bench`` adds jax.lax.scan under jit.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import torch
from notes_loop import NotesLoop

from lib import cells, datasets, system
from lib.config import CellSpec, RunConfig, Task, Training, Window
from lib.recurrence import SequenceClassifier
from lib.runs import sweep
from lib.runs.store import Store
from lib.train import Trainer


def interleaved(functions, repeats):
    """Median milliseconds of each function, called in turn."""
    times = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def both_ways(module, *inputs):
    """A forward and backward pass as a function without arguments."""

    def run():
        module.zero_grad(set_to_none=True)
        out = module(*inputs)
        out = out[0] if isinstance(out, tuple) else out
        out.sum().backward()

    return run


class LastStep(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0][-1]


def bare_products(cell, x):
    """The matrix products of one forward and backward pass, and nothing else. x: (time, batch,
    features).
    """
    with torch.no_grad():
        (P, b), weights, _ = cell()
    steps, batch = x.shape[:2]
    rows = x.flatten(0, 1)
    signals = torch.randn(steps * batch, cell.hidden_size)
    signal, grads = signals[:batch].clone(), [torch.randn(batch, len(w)) for w in weights]
    grad_rows = [g.repeat(steps, 1) for g in grads]
    grad_g = torch.randn(steps * batch, len(P))

    def run():
        with torch.no_grad():
            torch.addmm(b, rows, P.mT)
            for _ in range(steps):
                for w in weights:
                    signal @ w.mT
            for _ in range(steps):
                for grad, w in zip(grads, weights, strict=True):
                    grad @ w
            for grad in grad_rows:
                grad.mT @ signals
            grad_g.mT @ rows

    return run


def jax_scan(name, cell, x):
    """CB or full GRU through jax.lax.scan under jit, forward and backward; None without jax or for
    another cell.
    """
    try:
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None
    if name not in ("cb", "gru"):
        return None
    with torch.no_grad():
        (P, b), (W,), theta = cell()
    parameters = [
        jnp.asarray(t.detach().numpy()) for t in (P, b, W, theta.get("bias_hn", torch.zeros(1)))
    ]
    inputs = jnp.asarray(x.numpy())

    def loss(parameters):
        P, b, W, bias = parameters

        def cb(v, g):
            gate, drive = jnp.split(jax.nn.sigmoid(v) @ W.T + g, 2, -1)
            return (1 - 0.1 * jax.nn.sigmoid(gate)) * v + 0.1 * drive, None

        def gru(h, g):
            (a_r, a_u, a_n), (g_r, g_u, g_n) = jnp.split(h @ W.T, 3, -1), jnp.split(g, 3, -1)
            u = jax.nn.sigmoid(a_u + g_u)
            return (1 - u) * jnp.tanh(g_n + jax.nn.sigmoid(a_r + g_r) * (a_n + bias)) + u * h, None

        g = inputs @ P.T + b
        return jax.lax.scan(
            {"cb": cb, "gru": gru}[name], jnp.zeros((x.shape[1], cell.hidden_size)), g
        )[0].sum()

    step = jax.jit(jax.grad(loss))
    jax.block_until_ready(step(parameters))
    return lambda: jax.block_until_ready(step(parameters))


def processor():
    """Name of the processor, as far as the system tells."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(
                line.split(":")[1].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def passes(names, steps, batch, features, hidden, repeats):
    """Rows of the table: one cell each, milliseconds of a forward and backward pass and ratios."""
    x = torch.randn(batch, steps, features)
    time_first = x.movedim(1, 0).contiguous()
    pixels = torch.randn(batch, 4 * (steps - 1) + features)
    rows = []
    for name in names:
        functions = {
            "nn.GRU": both_ways(LastStep(torch.nn.GRU(features, hidden)), time_first),
            "nn.RNN": both_ways(LastStep(torch.nn.RNN(features, hidden)), time_first),
        }
        started = {}
        for backend in ("reference", "fast"):
            model = SequenceClassifier(name, features, hidden, 10, steps, backend=backend)
            functions[backend] = both_ways(model, x)
            start = time.perf_counter()
            functions[backend]()
            started[backend] = time.perf_counter() - start
        functions["products"] = bare_products(model.cell, time_first)
        if isinstance(model.cell, cells.ConductanceCell):
            functions["notes"] = both_ways(NotesLoop(name, features, hidden), pixels, features, 4)
        scan = jax_scan(name, model.cell, time_first)
        if scan:
            functions["jax"] = scan
        for function in functions.values():
            function()
        row = {"cell": name, **interleaved(functions, repeats), "first call s": started["fast"]}
        row |= {
            "fast/GRU": row["fast"] / row["nn.GRU"],
            "fast/products": row["fast"] / row["products"],
            "reference/fast": row["reference"] / row["fast"],
        }
        if "notes" in row:
            row["fast/notes"] = row["fast"] / row["notes"]
        rows.append(row)
        show(row, header=len(rows) == 1)
    return rows


COLUMNS = (
    "cell",
    "nn.GRU",
    "nn.RNN",
    "notes",
    "reference",
    "fast",
    "products",
    "jax",
    "fast/GRU",
    "fast/products",
    "fast/notes",
    "reference/fast",
    "first call s",
)


def show(row, header):
    if header:
        print("  ".join(f"{c:>11}" for c in COLUMNS))
    values = [row.get(c, "") for c in COLUMNS]
    print(
        "  ".join(f"{v:11.2f}" if isinstance(v, float) else f"{v:>11}" for v in values), flush=True
    )


def cifar_shaped(images=400):
    """Random images in the shape of CIFAR-10: what is timed does not depend on their content, and
    nothing need be downloaded.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = {
        split: torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
        for split in datasets.SPLITS
    }
    labels = {split: torch.arange(images) % 10 for split in datasets.SPLITS}
    return datasets.Dataset(
        Task("cifar10"),
        pixels,
        labels,
        torch.full((3,), 127.5),
        torch.full((3,), 74.0),
        tuple("0123456789"),
    )


def training_step(repeats, name="stp_dale_cb"):
    """One whole training step at CIFAR-10's size, 8/4, H = 48: ours, its share inside the model,
    and the notes' loop.
    """
    data, config = (
        cifar_shaped(),
        RunConfig(Task("cifar10"), Window(8, 4), CellSpec(name), Training(epochs=100)),
    )
    trainer = Trainer([config], data, backend="fast")
    notes = NotesLoop(name, 24, 48)
    readout = torch.nn.Linear(48, 10)
    optimiser = torch.optim.Adam([*notes.parameters(), *readout.parameters()])
    inside = []

    def timed(function):
        def run(*arguments):
            start = time.perf_counter()
            out = function(*arguments)
            inside.append(time.perf_counter() - start)
            return out

        return run

    def ours():
        trainer.train_step()

    def loop():
        images, labels = data.batch("train", torch.randint(400, (40,)))
        loss = torch.nn.functional.cross_entropy(
            readout(notes(images.movedim(1, -1).flatten(1), 24, 12)), labels
        )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*notes.parameters(), *readout.parameters()], 1.0)
        optimiser.step()

    ours(), loop()
    times = interleaved({"ours": ours, "notes": loop}, repeats)
    trainer.model.forward, backward = timed(trainer.model.forward), torch.Tensor.backward
    torch.Tensor.backward = timed(backward)
    try:
        whole = interleaved({"ours": ours}, repeats)["ours"]
    finally:
        torch.Tensor.backward = backward
    share = 1000 * sum(inside) / repeats
    print(
        f"\ntraining step, {name}, CIFAR-10 at 8/4: {times['ours']:.1f} ms, the notes' loop "
        f"{times['notes']:.1f} ms, "
        f"ratio {times['notes'] / times['ours']:.1f}; {share / whole:.0%} inside forward and "
        f"backward of the model"
    )
    return {**times, "share": share / whole}


def scaling(repeats):
    """Time a step and memory against the length of the sequence, CB."""
    functions = {}
    for steps in (256, 1024):
        functions[steps] = both_ways(
            SequenceClassifier("cb", 12, 48, 10, steps, backend="fast"), torch.randn(40, steps, 12)
        )
        functions[steps]()
    times = interleaved(functions, repeats)
    code = (
        "import sys, torch; from lib.recurrence import SequenceClassifier as S; "
        "torch.set_num_threads(1)\n"
    )
    code += "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096\n"
    code += (
        "pass_ = lambda steps: S('cb', 12, 48, 10, steps, "
        "backend='fast')(torch.zeros(40, steps, 12))\n"
    )
    code += (
        "pass_(8).sum().backward(); before = resident(); out = pass_(int(sys.argv[1])); "
        "print(resident() - before)"
    )
    memory = {}
    for steps in (1024, 2048, 4096):
        held = subprocess.run(
            [sys.executable, "-c", code, str(steps)], capture_output=True, text=True, check=True
        ).stdout
        memory[steps] = int(held) / 2**20
    print(
        "\ntime a step, CB: "
        + ", ".join(f"T = {steps}: {1000 * t / steps:.1f} us" for steps, t in times.items())
        + "; memory held by a forward pass: "
        + ", ".join(f"T = {steps}: {m:.0f} MiB" for steps, m in memory.items())
    )
    return {"us a step": {steps: 1000 * t / steps for steps, t in times.items()}, "MiB": memory}


FIRST_PASS = """
import json, sys, time, torch
from lib import compiled
from lib.recurrence import SequenceClassifier
torch.set_num_threads(1)
name, batch, steps, features, hidden = sys.argv[1], *map(int, sys.argv[2:])
model = SequenceClassifier(name, features, hidden, 10, steps, backend="fast")
x, start, busy = torch.randn(batch, steps, features), time.perf_counter(), time.process_time()
model(x).sum().backward()
wall, processor = time.perf_counter() - start, time.process_time() - busy
print(json.dumps({"s": wall, "CPU s": processor, **compiled.counts, "backend": model.backend}))
"""


def first_passes(names, shape):
    """First forward and backward pass of new processes, from an empty and then a full cache.

    What is timed comes after the imports of the workbook; those of torch's compiler are part of it.
    """
    print("\nfirst pass of a new process after its imports, s (in brackets CPU s of that process)")
    rows = []
    for name in names:
        row = {"cell": name}
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
            command = [sys.executable, "-c", FIRST_PASS, name, *map(str, shape)]
            for kind in ("cold", "warm"):
                done = subprocess.run(command, env=environment, capture_output=True, check=True)
                row[kind] = json.loads(done.stdout)
        rows.append(row)
        told = (f"{row[kind]['s']:.2f} ({row[kind]['CPU s']:.2f})" for kind in ("cold", "warm"))
        print(f"{name:>11}  " + "  ".join(f"{value:>15}" for value in told), flush=True)
    return rows


def digits_runs(names):
    """What a run of ``make compare`` takes with a warm cache, and which share of it is training:
    steps times milliseconds a step.
    """
    configs = [RunConfig(cell=CellSpec(name)) for name in names]
    rows = []
    for measured in (False, True):  # the first round compiles
        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder)
            start = time.perf_counter()
            runs = sweep.sweep(configs, store, slots=1, progress=False, backend="fast")
            wall = time.perf_counter() - start
            for run in runs.itertuples() if measured else ():
                trained = store.curves(key=[run.key]).step.max() * run.ms_per_step / 1000
                rows.append({"cell": run.cell, "s": run.seconds, "share": trained / run.seconds})
    print("\na run on the digits, 20 epochs, warm cache: seconds, and the share that is training")
    for row in rows:
        print(f"{row['cell']:>11}  {row['s']:5.1f} s  {row['share']:.2f}")
    seconds = sum(row["s"] for row in rows)
    print(
        f"one after the other, with what surrounds them: {wall:.0f} s; within runs {seconds:.0f} s"
    )
    return {"runs": rows, "wall": wall}


def validations(names):
    """For the digits, a training step and a validation in milliseconds, and the ratio of all
    validations of a run to the training between them.
    """
    rows = []
    print("\non the digits: a training step and a validation, ms; all validations over all steps")
    for name in names:
        config = RunConfig(cell=CellSpec(name))
        trainer = Trainer([config], datasets.load(config.task), backend="fast")
        spent = {"step": [], "validation": []}
        trainer.train_step(), trainer.validate()
        while trainer.step < trainer.steps:
            start = time.perf_counter()
            trainer.train_step()
            spent["step"].append(time.perf_counter() - start)
            if trainer.step in trainer.validation_steps:
                start = time.perf_counter()
                trainer.validate()
                spent["validation"].append(time.perf_counter() - start)
        row = {"cell": name, **{kind: 1000 * statistics.median(s) for kind, s in spent.items()}}
        row["ratio"] = sum(spent["validation"]) / sum(spent["step"])
        rows.append(row)
        print(f"{name:>11}  {row['step']:5.2f}  {row['validation']:5.1f}  {row['ratio']:.2f}")
    return rows


def throughput(seconds=10, name="cb"):
    """Seed-steps a second: four seeds as single-threaded processes, two at once, against one seed
    on two threads.
    """
    code = (
        "import sys, time, torch; sys.path.insert(0, 'tests'); "
        "torch.set_num_threads(int(sys.argv[1])); import bench\n"
        f"trainer = bench.Trainer([bench.RunConfig(bench.Task('cifar10'), bench.Window(8, 4), "
        f"bench.CellSpec('{name}'), "
        "bench.Training(epochs=1000), int(sys.argv[2]))], bench.cifar_shaped(), backend='fast')\n"
        "trainer.train_step(); print('ready', flush=True); sys.stdin.readline(); start = "
        "time.perf_counter(); n = 0\n"
        f"while time.perf_counter() - start < {seconds}: trainer.train_step(); n += 1\n"
        "print(n / (time.perf_counter() - start))"
    )

    def rates(threads, seeds):
        command = [sys.executable, "-c", code, str(threads)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        children = [subprocess.Popen([*command, str(seed)], **pipes) for seed in seeds]
        for child in children:
            child.stdout.readline()
        return (
            sum(float(child.communicate("\n")[0]) for child in children)
            if len(children) == 1
            else sum(_together(children))
        )

    alone, pairs = rates(2, [0]), [rates(1, [0, 1]), rates(1, [2, 3])]
    print(
        f"\nseed-steps a second, {name}: one seed on two threads {alone:.1f}, two "
        f"single-threaded processes {statistics.mean(pairs):.1f}, "
        f"ratio {statistics.mean(pairs) / alone:.2f}"
    )
    return {"alone": alone, "together": statistics.mean(pairs)}


def _together(children):
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    return [float(child.communicate()[0]) for child in children]


README_ROWS = {
    "fast path (ms)": "fast",
    "fast / torch.nn.GRU": "fast/GRU",
    "fast / the notes' loop": "fast/notes",
    "fast / bare products": "fast/products",
}


def markdown(results):
    """README's table of one run, as written by ``--json``: a column for each cell."""
    passes = results["passes"]
    lines = [("", *(cells.get(row["cell"]).label for row in passes)), ("---",) * (1 + len(passes))]
    for label, column in README_ROWS.items():
        values = [row.get(column) for row in passes]
        shown = (
            "" if value is None else f"{value:.2f}" if "/" in column else f"{value:.1f}"
            for value in values
        )
        lines.append((label, *shown))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def shares(results):
    """README's sentences on what a run takes beside its training, of the same run."""

    def span(values, digits=0):
        return f"{min(values):.{digits}f} to {max(values):.{digits}f}"

    first, validated = results["first passes"], results["validations"]
    return (
        f"A first pass takes {span([row['cold']['s'] for row in first])} s where nothing is "
        f"compiled, then {span([row['warm']['s'] for row in first], 2)} s. "
        f"On the digits training is {span([row['share'] for row in results['digits']['runs']], 2)} "
        f"of a run, and validations take {span([row['ratio'] for row in validated], 2)} of that."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", default="all,dale")
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--features", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json")
    # As in training, and alike for all: memory is kept; and gradients that vanish over 256 steps
    # become denormal numbers, which some processors multiply ten times as slowly.
    system.keep_memory()
    torch.set_flush_denormal(True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"forward + backward, ms, medians of {options.repeats} interleaved repeats on one thread")
    shape = (
        f"batch {options.batch}, T = {options.steps}, I = {options.features}, H = {options.hidden}"
    )
    print(f"{shape}; torch {torch.__version__}, {processor()}")
    rows = passes(
        cells.names(options.cells),
        options.steps,
        options.batch,
        options.features,
        options.hidden,
        options.repeats,
    )
    results = {
        "options": {name: value for name, value in vars(options).items() if name != "json"},
        "torch": torch.__version__,
        "processor": processor(),
        "passes": rows,
    }
    shape = options.batch, options.steps, options.features, options.hidden
    results["first passes"] = first_passes(cells.names(options.cells), shape)
    results["digits"] = digits_runs(cells.names(options.cells))
    results["validations"] = validations(cells.names(options.cells))
    if options.hidden != 128:
        print("\nthe same at H = 128")
        results["H = 128"] = passes(
            ["cb"], options.steps, options.batch, options.features, 128, options.repeats
        )
    results["training step"] = training_step(options.repeats)
    results["scaling"] = scaling(options.repeats)
    results["throughput"] = throughput()
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
