"""Small widgets and what sets them: drop-downs, check boxes with a filter, lines of text."""

import html
from contextlib import contextmanager, suppress

import ipywidgets
import traitlets
from IPython import get_ipython
from ipywidgets import HBox, VBox

from lib.files import StoreError

# What a reader is told in place; anything else is a bug and must show.
EXPECTED = (ValueError, StoreError, OSError)
SPACE = "2px 14px 2px 2px"  # between controls
WIDE = {"description_width": "initial"}
TEXT = "line-height:1.4; color:var(--jp-ui-font-color1, inherit); overflow-wrap:anywhere"


def dropdown(label, options=()):
    layout = {"width": "max-content", "max_width": "100%", "margin": SPACE}
    return ipywidgets.Dropdown(options=options, description=label, style=WIDE, layout=layout)


def integer(label):
    layout = {"width": "130px", "margin": SPACE}
    return ipywidgets.BoundedIntText(0, 0, 10**6, description=label, style=WIDE, layout=layout)


def slider(label, kind=ipywidgets.IntSlider, value=0):
    look = {"description": label, "style": WIDE, "continuous_update": False}
    return kind(value=value, min=0, max=1, **look)


def player(step):
    """A Play button that moves a slider."""
    play = ipywidgets.Play(interval=200, layout={"width": "max-content"})
    ipywidgets.jslink((play, "value"), (step, "value"))
    return play


def button(label, act, **options):
    """A button that calls ``act()``."""
    made = ipywidgets.Button(description=label, layout={"width": "max-content"}, **options)
    made.on_click(lambda _: act())
    return made


def row(children):
    """A row that breaks where the page is narrow."""
    layout = {"flex_flow": "row wrap", "align_items": "center", "width": "100%"}
    return HBox(list(children), layout=layout)


def running():
    """The cell of a notebook that runs, as its page names it, and the number of this run; None
    where there is none.
    """
    shell = get_ipython()
    cell = getattr(shell, "parent_header", {}).get("metadata", {}).get("cellId")
    return cell and (cell, shell.execution_count)


def say(*lines):
    """Lines of text as HTML."""
    text = "<br>".join(html.escape(line) for line in lines if line)
    return f"<div style='{TEXT}'>{text}</div>"


class Holding:
    """What follows controls, and holds still while it sets several of them."""

    _held = False

    @contextmanager
    def _hold(self):
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before


class Checks(Holding, VBox):
    """Check boxes, one an option; ``value`` is the tuple of the ticked ones.

    Options that are not ticked by default appear where a word of theirs is typed into the filter,
    and stay while they are ticked.
    """

    value = traitlets.Tuple()

    def __init__(self):
        self.options = ()
        self.default = ()
        self.boxes, self.rows = {}, []  # what was ever shown; a reader waits for each that is made
        self.box_layout = ipywidgets.Layout(width="max-content", margin=SPACE)
        self.filter = ipywidgets.Text(layout={"width": "260px", "margin": SPACE})
        self.filter.observe(self._arrange, "value")
        super().__init__(layout={"width": "100%"})

    def offer(self, options, default):
        """Offer other options; what was ticked stays so, a default gives way to the default."""
        options, default = tuple(options), tuple(default)
        if options == self.options:
            return
        kept = [option for option in options if option in self.value]
        if self.value == self.default or not kept:
            kept = default
        self.options, self.default = options, default
        count = len(options) - len(default)
        self.filter.placeholder = f"type to find {count} variants, e.g. dt"
        self.value = kept
        self._write()

    def _arrange(self, change=None):
        typed = self.filter.value.lower().strip()
        variants = [option for option in self.options if option not in self.default]
        found = [name for name in variants if typed and typed in name.lower()]
        found += [name for name in variants if name in self.value and name not in found]
        plain = [self._box(name) for name in self.default]
        rows = [plain + [self.filter] * bool(variants), [self._box(name) for name in found]]
        if rows != self.rows:
            self.rows, self.children = rows, [row(boxes) for boxes in rows if boxes]

    def _box(self, name):
        if name not in self.boxes:
            look = {"description": name, "indent": False, "layout": self.box_layout}
            self.boxes[name] = ipywidgets.Checkbox(name in self.value, **look)
            self.boxes[name].observe(self._read, "value")
        return self.boxes[name]

    def _read(self, change):
        if not self._held:
            ticked = {*self.value} ^ {change["owner"].description}
            self.value = tuple(name for name in self.options if name in ticked)

    @traitlets.validate("value")
    def _known(self, proposal):
        if self.options and not set(proposal["value"]) <= set(self.options):
            raise traitlets.TraitError(f"choose among {', '.join(self.options)}")
        return proposal["value"]

    @traitlets.observe("value")
    def _write(self, change=None):
        with self._hold():
            for name, box in self.boxes.items():
                box.value = name in self.value
        self._arrange()


def offer(control, options):
    """Other options, and the same choice where it is still offered."""
    if tuple(options) == tuple(control.options):
        return
    before = control.value
    control.options = options
    values = values_of(control)
    control.value = before if before in values else next(iter(values), None)


def values_of(control):
    """The values that a control offers; none for one without options."""
    options = getattr(control, "options", ())
    return [option[1] if isinstance(option, tuple) else option for option in options]


def span(slider, count):
    """A range slider over so many items; what covered all still does."""
    every = slider.value == (slider.min, slider.max)
    low, high = slider.value
    slider.max = count - 1
    slider.value = (0, count - 1) if every else (min(low, count - 1), min(high, count - 1))


def assign(controls, state, refresh):
    """Set controls by name, in their order, since what one offers may depend on another:
    ``refresh(name)`` comes before each; ValueError for what cannot be set. A cell's plain label
    stands for its first group where the store holds several, such as "CB, rate 0.1".
    """
    for name in state:
        if name not in controls:
            raise ValueError(f"There is no control {name!r}; controls are {', '.join(controls)}.")
    for name in (name for name in controls if name in state):
        with suppress(*EXPECTED):  # told when it is drawn
            refresh(name)
        offered = [str(value) for value in values_of(controls[name])]
        alike = [option for option in offered if option.startswith(f"{state[name]}, ")]
        try:
            controls[name].value = alike[0] if alike and state[name] not in offered else state[name]
        except traitlets.TraitError:
            remedy = f"choose one of {', '.join(offered)}" if offered else "there is no choice yet"
            raise ValueError(
                f"{name} is {state[name]!r}, which is not offered; {remedy}."
            ) from None
