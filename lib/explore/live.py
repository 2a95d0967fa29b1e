"""Watching training: one line a run and validation curves that move while runs train; widgets in a
notebook, plain text elsewhere.

`Live` follows a `lib.train.fit` in this process, as its callback; `load_or_run` and `Runner` follow
the store, which runs in other processes write to.
"""

import math
import threading
import time
from contextlib import contextmanager, suppress

import ipywidgets
import pandas as pd
from IPython import get_ipython
from IPython.display import display

from lib import train
from lib.config import RunConfig
from lib.explore.figure import Figure
from lib.explore.view import Axis, Line, Panel
from lib.explore.widgets import EXPECTED, button, row, say
from lib.figures import select, style
from lib.runs import sweep
from lib.runs.status import describe
from lib.runs.store import Store

STATES = ("RUNNING", "PAUSED", "INTERRUPTED", "DONE", "DIVERGED")
LINES = 12  # runs that have a line of their own at the same time


class Interrupted(KeyboardInterrupt):
    """An interrupt that a notebook shows as one line; cells below do not run."""

    def _render_traceback_(self):
        return [str(self)]


class Progress:
    """What is known of runs that train, in words; ``share`` of the work is done, 0..1."""

    def __init__(self, configs):
        rows = [describe(config) for config in configs]
        groups = select.grouped(pd.DataFrame(rows)).drop_duplicates("key").set_index("key")["group"]
        self.rows = {row["key"]: row | {"label": groups[row["key"]]} for row in rows}
        self.best, self.shares = {}, {}
        self.share, self._began = 0.0, None

    def update(self, shares, curves=()):
        """Take in key -> share that is done, and key -> records with ``validation_accuracy``."""
        self.shares |= shares
        for key in curves:
            label = self.rows[key]["label"]
            best = max(record["validation_accuracy"] for record in curves[key])
            self.best[label] = max(self.best.get(label, 0), best)
        self.share = sum(self.shares.values()) / len(self.rows)
        if self._began is None:
            self._began = time.monotonic(), self.share

    @property
    def lines(self):
        """The whole, then each run that has begun and not ended."""
        done = sum(share == 1 for share in self.shares.values())
        whole = f"{self.share:.0%} done, {done} of {len(self.rows)} runs finished{self._left()}"
        if self.best:
            best = ", ".join(f"{label} {value:.1%}" for label, value in self.best.items())
            whole += f"; best validation so far: {best}"
        under_way = [
            f"{self.rows[key]['label']}, seed {self.rows[key]['seed']}: {share:.0%}"
            for key, share in self.shares.items()
            if 0 < share < 1
        ]
        return [whole, *under_way[:LINES]]

    def _left(self):
        began, share = self._began
        if self.share == 1:
            return ""
        if self.share == share:
            return "; starting: processes begin, and a long training is compiled first"
        pace = (time.monotonic() - began) / (self.share - share)
        return f", {sweep.duration(pace * (1 - self.share))} left"


class Watched:
    """Runs as they are shown: their progress and, in a notebook, one validation curve each.

    Outside a notebook ``figure`` is None, and a line is printed at every further tenth of the work.
    """

    def __init__(self, configs):
        self.progress, self.curves, self.figure, self._tenth = Progress(configs), {}, None, -1
        if getattr(get_ipython(), "kernel", None) is not None:
            self.widgets()

    def widgets(self):
        """Show bar, lines of text and curves in the notebook."""
        self.figure = Figure()
        self.bar = ipywidgets.FloatProgress(max=1, layout={"width": "300px"})
        self.text = ipywidgets.HTML()
        display(ipywidgets.VBox([self.bar, self.text, self.figure]))

    def show(self, shares, curves=()):
        """Draw what is known: key -> share of the run that is done, and key -> records with
        ``epoch`` and ``validation_accuracy``; runs left out keep their line.
        """
        self.progress.update(shares, curves)
        self.curves |= dict(curves)
        lines, tenth = self.progress.lines, int(10 * self.progress.share)
        if self.figure is not None:
            self.bar.value, self.text.value = self.progress.share, say(*lines)
            if curves:
                self.figure.show(*self.panel().plotly(360))
        elif tenth > self._tenth:
            self._tenth = tenth
            print("; ".join(lines), flush=True)

    def panel(self):
        """The curves that are known, each cell named once."""
        rows, lines, named = self.progress.rows, [], set()
        for key, records in self.curves.items():
            label, look = rows[key]["label"], style.look(rows[key]["cell"])
            x = [record["epoch"] for record in records]
            y = [100 * record["validation_accuracy"] for record in records]
            hover = f"{label}, seed {rows[key]['seed']}<br>epoch %{{x:.1f}}: %{{y:.1f}} %"
            first = label not in named
            lines.append(Line(x, y, look.colour, label, look.stp, hover=hover, label=first))
            named.add(label)
        top = max(max(line.y) for line in lines)
        epochs = max(run["epochs"] for run in rows.values())
        y = Axis("Accuracy (% of validation set)", (0, max(10, 1.08 * top)))
        return Panel(lines, Axis("Training (epochs)", (0, epochs)), y)


class Live:
    """Callback of `lib.train.fit` that shows its progress: ``fit(config, callbacks=[Live()])``."""

    def on_start(self, state):
        self.view = Watched(state.configs)
        self.on_end(state)

    def on_step(self, state):
        if time.perf_counter() - self._shown > 0.25:  # the bar need not cost more than the training
            self._show(state, ())

    def on_validation(self, state, record):
        self.on_end(state)

    def on_end(self, state):
        self._show(state, state.curves)

    def _show(self, state, curves):
        keys, self._shown = list(self.view.progress.rows), time.perf_counter()
        known = {key: rows for key, rows in zip(keys, curves, strict=False) if rows}
        self.view.show(dict.fromkeys(keys, state.step / state.steps), known)


@contextmanager
def watch(store, configs):
    """Context in which a thread shows, in a `Watched`, what the store knows of some runs."""
    view, ended = Watched(configs), threading.Event()

    def look():
        keys = list(view.progress.rows)
        try:
            shares = _shares(store, keys)
            frame = store.curves(key=keys, state=list(STATES))
        except EXPECTED:  # a file that is being replaced, or damaged: whoever trains will say so
            return
        view.show(shares, {key: part.to_dict("records") for key, part in frame.groupby("key")})

    def follow():
        pause = 1.0
        while not ended.wait(pause):
            started = time.perf_counter()
            look()
            pause = max(1.0, 10 * (time.perf_counter() - started))

    look()
    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield view
    finally:
        ended.set()
        thread.join()
        look()


def _shares(store, keys):
    return {key: (store.status(key) or {}).get("progress") or 0.0 for key in keys}


def load_or_run(configs, store=None, **options):
    """`lib.runs.sweep.load_or_run` with a view of the training while it lasts; stored runs are
    shown at once.

    Interrupting the kernel stops the training: finished runs stay, the others go on from their last
    validation next time.
    """
    store = store or Store()
    configs = [configs] if isinstance(configs, RunConfig) else list(configs)
    for config in configs:
        train.check(config)
    try:
        if not sweep.plan(configs, store):
            return sweep.load_or_run(configs, store, **options)
        with watch(store, configs) as view:
            plain = view.figure is None  # else the view says what a bar would
            return sweep.load_or_run(configs, store, **{"progress": plain, **options})
    except KeyboardInterrupt:
        raise Interrupted(
            "Interrupted. Finished runs stay; the others go on from their last validation when "
            "this cell is run again."
        ) from None


class Runner:
    """A button that trains runs in the background, with a line for each, and stops them;
    ``done()`` is called once the training has ended.
    """

    def __init__(self, store, done):
        self.store, self._done, self.configs, self.started = store, done, [], None
        self.button = button("Run", self._clicked, icon="play", button_style="primary")
        self.text = ipywidgets.HTML()
        self.widget = row([self.button, self.text])
        self.offer([])

    @property
    def running(self):
        return self.started is not None and self.started.running

    def offer(self, configs, done=None, otherwise=""):
        """Offer to train these runs, with the time that they take by the rows of finished ones,
        ``done``; where there are none, the button gives way to what is said ``otherwise``.
        """
        if self.running:
            return
        self.configs, said = configs, otherwise
        if configs:
            seconds = math.nan
            with suppress(ValueError):  # a data set of one's own, which this process does not know
                seconds = sweep.estimate(configs, done, sweep.slots_here(len(configs)))
            said = f"takes {sweep.duration(seconds)}, in the background"
            runs = f"{len(configs)} run{'s' * (len(configs) > 1)}"
            self.button.description, self.button.icon = f"Run {runs}", "play"
        self.button.layout.display = None if configs else "none"
        self.widget.layout.display = None if said else "none"
        self.text.value = say(said)

    def _clicked(self):
        if self.running:
            self.button.disabled = True
            self.text.value = say("Stopping: what was reached is saved ...")
            threading.Thread(target=self.started.stop, daemon=True).start()
            return
        self.started = sweep.start(self.configs, self.store)
        self.button.description, self.button.icon = "Stop", "stop"
        threading.Thread(target=self._follow, args=(Progress(self.configs),), daemon=True).start()

    def _follow(self, progress):
        while self.running:
            with suppress(*EXPECTED):  # the next look may succeed
                progress.update(_shares(self.store, list(progress.rows)))
                if not self.button.disabled:
                    self.text.value = say(*progress.lines)
            time.sleep(1)
        kernel = getattr(get_ipython(), "kernel", None)
        if kernel is None:
            self._ended()
        else:  # widgets are changed where the reader's clicks change them
            kernel.io_loop.add_callback(self._ended)

    def _ended(self):
        note = ""
        try:
            runs = self.started.wait()
            failed = runs[runs["state"] == "FAILED"]
            if len(failed):
                note = f"{len(failed)} runs failed; the first: {failed['message'].iloc[0]}"
        except Exception as error:  # whatever ended the sweep, nothing runs any more
            note = str(error) or repr(error)
        self._done()
        self.button.disabled = False
        if note:
            self.widget.layout.display = None
            self.text.value = say(note.partition("\n")[0])


def run_button(path, store=None):
    """A button, as a widget, that trains in the background what a store (default: results/) lacks
    of a grid file, and says how long it takes; ValueError for what is no grid.
    """
    store, configs = store or Store(), sweep.read_grid(path)

    def offer():
        store.reload()
        missing, done = sweep.plan(configs, store), store.rows(state="DONE")
        runner.offer(missing, done, f"Nothing of {path} is missing; run the cells again.")

    runner = Runner(store, offer)
    offer()
    return runner.widget
