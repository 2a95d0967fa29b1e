"""What all explorers share: controls, figures that follow them, code and files of what is seen.

What cannot be shown is said in place: an empty store, what was never run, a damaged run.
"""

import html
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from types import MappingProxyType

import ipywidgets
import matplotlib.pyplot as plt

from lib import paths
from lib.explore import view as views
from lib.explore.choice import NotRun, WindowControls
from lib.explore.export import Form
from lib.explore.figure import Figure
from lib.explore.widgets import EXPECTED, Holding, assign, button, row, say
from lib.figures import style
from lib.figures.export import export_figure
from lib.files import digest

PLACE = ("task", "input_length", "stride")


class Explorer(Holding, ABC):
    """Controls and figures in one container.

    Attributes
    ----------
    widget : container to display
    controls : dict of name -> control
    figures : list of Figure
        One for each panel of the view.
    view : lib.explore.view.View or None
        What is shown; None when nothing is.
    """

    # An explorer's own function of a figure's number and a point (`Figure.on_click`).
    clicked = None
    given = MappingProxyType({})  # what it was made with beside its controls, for its code
    of_runs = True  # below the window controls given, or its own of a store

    def __init__(self, controls, state, store=None, choice=None):
        shared = choice is not None
        if self.of_runs:
            place = {name: state.pop(name) for name in PLACE if name in state}
            if not shared:
                choice = WindowControls(store, **place)
            elif place:
                choice.set(**place)
        self.choice, self.view = choice, None
        self.controls = {**(choice.controls if choice else {}), **controls}
        self.own = list(controls)
        self.figures = []
        self.canvas = row([])
        self.message = ipywidgets.HTML()
        self.extra = ipywidgets.VBox(layout={"width": "100%"})
        self.buttons = {
            "code": button("Show code", self._show_code),
            "export": button("Export", self._open_export),
        }
        if choice and not shared:
            self.buttons["reload"] = button("Read the store again", choice.cache.reload)
        above = [] if shared or choice is None else [choice.widget]
        below = [self.canvas, self.message, row(self.buttons.values()), self.extra]
        self.widget = ipywidgets.VBox([*above, *self.arrange(), *below], layout={"width": "100%"})
        assign(self.controls, state, self.refresh)
        for name in self.own:
            self.controls[name].observe(self._changed, "value")
        if choice:
            choice.listen(self._changed)
        self.update()

    def _repr_mimebundle_(self, **options):
        return self.widget._repr_mimebundle_(**options)

    def arrange(self):
        """Rows of the explorer's own controls, above the figures."""
        return [row(self.controls[name] for name in self.own)]

    @abstractmethod
    def refresh(self, name=None):
        """Fit what the controls offer to each other, at least as far as one of a name needs it."""

    @abstractmethod
    def look(self):
        """The `View` of what the controls say; what `EXPECTED` names is told in place."""

    @property
    def frame(self):
        """The first table of what is drawn, ``view.tables`` has all; None when nothing is shown."""
        return self.view and next(iter(self.view.tables.values()))

    def update(self):
        """Draw what the controls say."""
        try:
            with self._hold():
                self.refresh()
            self.view = self.look()
        except EXPECTED as error:
            self.view = None
            self._tell(str(error))
            nothing = "not run" if isinstance(error, NotRun) else "nothing to show"
            self._show([views.words(nothing)])
        else:
            self._tell(self.view.note)
            panels = self.view.panels
            drawn = [panel.plotly(self.view.height) for panel in panels]
            self._show(drawn, [panel.share for panel in panels])

    def _show(self, drawn, shares=(1,)):
        """Draw (traces, layout) of each panel, with its share of the width; figures are made once,
        and those beyond hidden.
        """
        while len(self.figures) < len(drawn):
            figure = Figure()
            if self.clicked:
                figure.on_click(partial(self.clicked, len(self.figures)))
            self.figures.append(figure)
        figures, before = self.figures[: len(drawn)], self.canvas.children
        for figure, panel, share in zip(figures, drawn, shares, strict=True):
            figure.layout.flex = f"{share:g} 1 {round(390 * share)}px"
            if figure not in before:
                figure.show(*panel)
        self.canvas.children = figures  # first, so that those before are drawn at their new width
        for figure, panel in zip(figures, drawn, strict=True):
            if figure in before:
                figure.show(*panel)

    def set(self, **state):
        """Set controls by name, then draw once."""
        place = {name: state.pop(name) for name in PLACE if self.choice and name in state}
        try:
            with self._hold():
                if place:
                    self.choice.set(**place)
                assign(self.controls, state, self.refresh)
        finally:  # what was set before something was refused is shown
            self.update()

    def code(self):
        """Code that makes this view again."""
        state = {name: control.value for name, control in self.controls.items()}
        given = {name: value for name, value in self.given.items() if value is not None}
        values = [f"{name}={value!r}" for name, value in {**given, **state}.items()]
        store = ["store"] if self.choice else []
        return f"explore.{type(self).__name__}({', '.join([*store, *values])})"

    def paper(self, journal="notebook", width="text", height=3.0):
        """The current view as a matplotlib figure, in rows of this height where the width holds no
        more panels; ValueError when nothing is shown.
        """
        if self.view is None:
            raise ValueError(
                "Nothing is shown, so there is nothing to draw or export; choose a combination "
                "that was run."
            )
        return self.view.matplotlib(journal, width, height)

    def export(self, folder=None, kinds=("pdf",), journal="report", width="text", height=2.6):
        """Write the current view, what is drawn as CSV (one a table) and the figure as PDF, PNG,
        SVG or PGF, by default to ``views`` of the results folder; the rest as `paper`. Returns the
        paths.
        """
        root = self.choice.cache.store.root if self.choice else paths.results_dir()
        folder = Path(folder or root / "views")
        kind = type(self).__name__.removesuffix("Explorer").lower()
        name = f"{kind}-{digest(self.code().encode())[:8]}"
        figure = self.paper(journal, width, height)
        written, tables = [], self.view.tables
        folder.mkdir(parents=True, exist_ok=True)
        for what, table in tables.items():
            written.append(folder / f"{name}{f'-{what}' * (len(tables) > 1)}.csv")
            table.to_csv(written[-1], index=False)
        if "svg" in kinds:
            written.append(folder / f"{name}.svg")
            with style.context(journal, width, height):
                figure.savefig(written[-1])
        formats = [kind for kind in kinds if kind != "svg"]
        written += export_figure(figure, name, width, journal, folder=folder, formats=formats)
        plt.close(figure)
        return written

    def _show_code(self):
        self.message.value = f"<pre>{html.escape(self.code())}</pre>"

    def _open_export(self):
        self.extra.children = () if self.extra.children else (Form(self).widget,)

    def _tell(self, note):
        damaged = self.choice.cache.problems if self.choice else {}
        lines = [f"Left out, run {key}: {text}" for key, text in damaged.items()]
        self.message.value = say(note, *lines)

    def _changed(self, change=None):
        if not self._held:
            self.update()
