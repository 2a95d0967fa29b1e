"""Watching training: validation curves and a progress bar that move while runs train; widgets in a
notebook, plain text elsewhere.

`Live` follows a `lib.train.fit` in this process, as its callback; `load_or_run` follows the store,
which runs in other processes write to.
"""

import threading
import time

from IPython import get_ipython
from IPython.display import display

from lib import train
from lib.config import RunConfig
from lib.explore import controls
from lib.figures import style
from lib.runs.attempt import describe
from lib.runs.store import Store, StoreError

STATES = ("RUNNING", "PAUSED", "INTERRUPTED", "DONE", "DIVERGED")


class View:
    """One validation curve a run, one bar and one line of text for all.

    Attributes
    ----------
    figure : plotly FigureWidget or None
        None outside a notebook, where the line of text is printed at every further tenth of the
        work.
    message : str
        The line of text.
    """

    def __init__(self, configs):
        self.rows = {config.key(): describe(config) for config in configs}
        self.figure, self.message, self._best, self._tenth = None, "", {}, -1
        if getattr(get_ipython(), "kernel", None) is not None:
            self.widgets()

    def widgets(self):
        """Show bar, line of text and curves in the notebook."""
        import ipywidgets
        import plotly.graph_objects as go

        labels, lines = [row["label"] for row in self.rows.values()], []
        for number, row in enumerate(self.rows.values()):
            own = style.look(row["cell"], row["label"])
            hover = f"{row['label']}, seed {row['seed']}<br>epoch %{{x:.1f}}: %{{y:.1f}} %<extra></extra>"
            key = {
                "name": row["label"],
                "legendgroup": row["label"],
                "showlegend": row["label"] not in labels[:number],
            }
            lines.append(
                go.Scatter(
                    x=[],
                    y=[],
                    line={"color": own.colour, "dash": own.dash},
                    hovertemplate=hover,
                    **key,
                )
            )
        epochs = max(row["epochs"] for row in self.rows.values())
        layout = {
            "template": style.plotly_template(),
            "xaxis": {"title": "Training (epochs)", "range": [0, epochs]},
        }
        layout["height"] = max(340, 130 + 30 * len(set(labels)))  # the whole legend
        layout["yaxis"] = {"title": "Accuracy (% of the validation set)", "rangemode": "tozero"}
        self.figure = go.FigureWidget(lines, {**layout, "showlegend": True})
        self.bar = ipywidgets.FloatProgress(max=1, layout={"width": "300px"})
        self.text = ipywidgets.HTML()  # a Label would cut a long line
        display(ipywidgets.VBox([self.bar, self.text, self.figure]))

    def show(self, progress, curves=()):
        """Draw what is known.

        Parameters
        ----------
        progress : dict
            key -> share of the run that is done, 0..1.
        curves : dict
            key -> list of records with ``epoch`` and ``validation_accuracy``; runs left out keep
            their line.
        """
        for key in curves:
            label = self.rows[key]["label"]
            self._best[label] = max(
                self._best.get(label, 0), *(record["validation_accuracy"] for record in curves[key])
            )
        share = sum(progress.values()) / len(self.rows)
        done = sum(value == 1 for value in progress.values())
        self.message = f"{share:.0%} done, {done} of {len(self.rows)} runs finished"
        if self._best:
            self.message += "; best validation so far: " + ", ".join(
                f"{label} {value:.1%}" for label, value in self._best.items()
            )
        if self.figure is None:
            if int(10 * share) > self._tenth:
                self._tenth = int(10 * share)
                print(self.message, flush=True)
            return
        self.bar.value, self.text.value = share, controls.say(self.message)
        with self.figure.batch_update():
            for line, key in zip(self.figure.data, self.rows, strict=True):
                if key in curves:
                    line.x = [record["epoch"] for record in curves[key]]
                    line.y = [100 * record["validation_accuracy"] for record in curves[key]]


class Live:
    """Callback of `lib.train.fit` that shows its progress: ``fit(config, callbacks=[Live()])``."""

    def on_start(self, state):
        self.view, self._shown = View(state.configs), 0.0
        self._show(state, state.curves)

    def on_step(self, state):
        if time.perf_counter() - self._shown > 0.25:  # the bar need not cost more than the training
            self._show(state, ())

    def on_validation(self, state, record):
        self._show(state, state.curves)

    def on_end(self, state):
        self._show(state, state.curves)

    def _show(self, state, curves):
        keys, self._shown = list(self.view.rows), time.perf_counter()
        known = {key: rows for key, rows in zip(keys, curves, strict=False) if rows}
        self.view.show(dict.fromkeys(keys, state.step / state.steps), known)


class Watch:
    """Context in which a thread shows what the store knows of some runs, whichever process trains
    them.

    It only reads: however the work in the context ends, the store is as the runs left it, and the
    view shows that state.
    """

    def __init__(self, store, configs):
        self.store, self.view, self._end = store, View(configs), threading.Event()

    def __enter__(self):
        self.look()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._end.set()
        self._thread.join()
        self.look()
        return False

    def _follow(self):
        pause = 1.0
        while not self._end.wait(pause):
            started = time.perf_counter()
            self.look()
            pause = max(1.0, 10 * (time.perf_counter() - started))

    def look(self):
        """Read the store once and show it."""
        keys = list(self.view.rows)
        try:
            progress = {key: (self.store.status(key) or {}).get("progress") or 0.0 for key in keys}
            frame = self.store.curves(key=keys, state=list(STATES))
        except (
            OSError,
            StoreError,
        ):  # a file that is being replaced, or damaged: whoever trains will say so
            return
        self.view.show(
            progress, {key: part.to_dict("records") for key, part in frame.groupby("key")}
        )


def load_or_run(configs, store=None, **options):
    """`Store.load_or_run` with a view of the training while it lasts; stored runs are shown at
    once.

    Interrupting the kernel stops the training: finished runs stay, the others go on from their last
    validation next time.
    """
    store, configs = (
        store or Store(),
        [configs] if isinstance(configs, RunConfig) else list(configs),
    )
    for config in configs:
        train.check(config)
    with Watch(store, configs):
        return store.load_or_run(configs, **options)
