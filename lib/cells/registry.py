"""Cells by name: those of this package, and a user's own, whose text enters their runs' keys."""

import ast
import bisect
import contextlib
import inspect
import symtable
import sys
from dataclasses import dataclass, field

from lib import checks, datasets

CELLS = {}
SOURCES = {}  # text of the user's own cells, by name
ALL = ("rnn", "simple_gru", "gru", "cb", "cb_gru", "dale_cb", "stp", "stp_dale", "stp_dale_cb")
# W (free, sign, reversal potentials) x STP (no, yes)
DESIGN = ("cb", "dale", "dale_cb", "stp", "stp_dale", "stp_dale_cb")


def register(cell):
    """Make a cell class known under ``cell.name``; usable as a decorator. The last registration of
    a name counts. A class without a ``label`` of its own is called by its name.

    Raises
    ------
    ValueError
        The class lacks a name, takes the name of a built-in cell, or its text is not at hand.
    """
    name = cell.__dict__.get("name")
    if not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(
            f"{cell.__name__}.name is {name!r}, but a cell needs a name that is a plain word; "
            "add name = 'my_cell'."
        )
    if not _built_in(cell):
        if name in CELLS and _built_in(CELLS[name]):
            raise ValueError(
                f"The name {name!r} belongs to a built-in cell; choose another name for "
                f"{cell.__name__}."
            )
        if "label" not in cell.__dict__:
            cell.label = name
        if cell.__module__ != USER:
            SOURCES[name] = _text(cell)
    CELLS[name] = cell
    return cell


USER = "user_cells"  # the module that `register_source` runs a text as


def _built_in(cell):
    return cell.__module__.startswith(f"{__package__}.")


def register_source(text):
    """Run the text of a user's file, in which cells (and data sets) register themselves; ``torch``,
    ``nn``, ``NamedTuple`` and the public names of `lib.cells` are at hand.

    Returns
    -------
    list of str
        Names of the cells the text registered.

    Raises
    ------
    ValueError
        The text does not run, or registers nothing.
    """
    before = _snapshot()
    try:
        exec(compile(text, "<user's cells>", "exec"), {**_at_hand(), "__name__": USER})
    except Exception as error:
        _restore(before, new=False)
        raise ValueError(
            f"The file of the user's own cells does not run: {type(error).__name__}: {error}."
        ) from error
    found, found_sets = (
        [name for name, one in kinds.items() if old.get(name) is not one]
        for (kinds, _), (old, _) in zip(_registries(), before, strict=True)
    )
    if not found + found_sets:
        raise ValueError(
            "The file of the user's own cells registers no cell; put @register above the class."
        )
    SOURCES.update(dict.fromkeys(found, text))
    datasets.TEXTS.update(dict.fromkeys(found_sets, text))
    return found


@contextlib.contextmanager
def registered(task, cell=None):
    """Meanwhile the data set of a task, and a cell, are those of their texts. Afterwards names that
    were known mean what they meant before; new ones stay.
    """
    before = _snapshot()
    try:
        if task.source is not None and datasets.TEXTS.get(task.dataset) != task.source:
            register_source(task.source)
        if cell and cell.source is not None and SOURCES.get(cell.name) != cell.source:
            register_source(cell.source)
        yield
    finally:
        if _snapshot() != before:
            _restore(before)


def _registries():
    return (CELLS, SOURCES), (datasets.DATASETS, datasets.TEXTS)


def _snapshot():
    return [(dict(kinds), dict(texts)) for kinds, texts in _registries()]


def _restore(before, new=True):
    """Undo what was registered since; ``new``: but for names that were not known."""
    for (kinds, texts), (old, old_texts) in zip(_registries(), before, strict=True):
        for name in list(kinds):
            if name in old:
                texts.pop(name, None)
            elif not new:
                del kinds[name]
        kinds.update(old)
        texts.update(old_texts)


def _at_hand():
    """The names that a user's text may use without importing them."""
    package = sys.modules[__package__]
    return {name: getattr(package, name) for name in package.__all__}


@dataclass(eq=False)
class _Statement:
    """A statement at the top level of a file or notebook cell: its text, and the names of the
    module that it binds, that it uses, and whose earlier value it may leave or change.
    """

    node: ast.stmt
    text: str
    binds: set = field(default_factory=set)
    uses: set = field(default_factory=set)
    changes: set = field(default_factory=set)

    def __post_init__(self):
        top = symtable.symtable(self.text, "<user's cells>", "exec")
        for name in top.get_symbols():
            if name.is_assigned() or name.is_imported():
                self.binds.add(name.get_name())
            if name.is_referenced():
                self.uses.add(name.get_name())
        perhaps = isinstance(self.node, ast.AugAssign | ast.If | ast.For | ast.While | ast.Try)
        self.changes = self.binds & (self.binds if perhaps else self.uses)
        if not isinstance(self.node, ast.FunctionDef | ast.ClassDef):
            self.changes |= {name for node in ast.walk(self.node) if (name := _changed(node))}
        inner = top.get_children()
        while inner:
            table = inner.pop()
            inner += table.get_children()
            self.uses |= {name.get_name() for name in table.get_symbols() if name.is_global()}


def _changed(node):
    """Name whose value an assignment to a part of it, or a call of its method alone, changes."""
    called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    part, inner = node.value.func if called else node, ast.Subscript | ast.Attribute
    if not (isinstance(part, inner) and (called or not isinstance(part.ctx, ast.Load))):
        return None
    while isinstance(part, inner):
        part = part.value
    return getattr(part, "id", None)


def _text(cell):
    """Text that registers a class typed into a notebook or a file: the class, after what it needs
    of the module around it (classes, functions, assignments, imports), in the order written.
    """
    module, at_hand = sys.modules.get(cell.__module__), _at_hand()
    written = _written(module)
    named = [one for one in written if getattr(one.node, "name", None) == cell.__name__]
    if not named:
        raise ValueError(
            f"The text of class {cell.__name__} is not at hand, but enters the key of its runs; "
            "define it at the top level of a notebook cell or a file."
        )
    own = named[-1]
    made = {}  # name -> its last definition, and what changed it since
    for one in written:
        made |= {name: [one] for name in one.binds - one.changes}
        for name in one.changes:
            made.setdefault(name, []).append(one)
    needed, waiting = {own}, [own]
    while waiting:
        for name in waiting.pop().uses & made.keys() - {cell.__name__}:
            if not (name in at_hand and getattr(module, name, None) is at_hand[name]):
                waiting += set(made[name]) - needed
                needed.update(made[name])
    parts = [one.text for one in written if one in needed and one is not own] + [own.text]
    if not own.text.startswith("@"):
        parts[-1] += f"\nregister({cell.__name__})\n"
    return "\n\n".join(parts)


def _written(module):
    """The statements of a notebook, in the order in which its cells ran, or of a module's file."""
    try:
        notebook = vars(module).get("In") if "get_ipython" in vars(module) else None
        texts = notebook or [inspect.getsource(module)]
    except (OSError, TypeError):
        return []
    statements = []
    for text in texts:
        lines = text.splitlines(keepends=True)
        with contextlib.suppress(SyntaxError):  # a notebook cell that never ran
            for node in ast.parse(text).body:
                first = min(part.lineno for part in (node, *getattr(node, "decorator_list", ())))
                part = "".join(lines[first - 1 : node.end_lineno]).rstrip() + "\n"
                statements.append(_Statement(node, part))
    return statements


def get(name):
    """Class of a registered cell; an unknown name is refused (ValueError)."""
    if name not in CELLS:
        raise ValueError(f"Unknown cell {name!r}; known cells are {', '.join(CELLS)}.")
    return CELLS[name]


def names(selection="all"):
    """Cell names of a selection: ``"all"`` (the nine of the notes), ``"design"`` (W x STP), or
    names joined by commas, each known and once (ValueError).
    """
    groups = {"all": ALL, "design": DESIGN}
    parts = [part.strip() for part in selection.split(",")]
    chosen = [name for part in parts for name in groups.get(part, (part,))]
    for name in chosen:
        get(name)
        if chosen.count(name) > 1:
            raise ValueError(
                f"Cell {name!r} is named {chosen.count(name)} times; name each cell once."
            )
    return chosen


def check_cell(spec):
    """Refuse a `lib.config.CellSpec` that cannot be built, before any work starts (ValueError)."""
    cell = get(spec.name)
    checks.whole("hidden_size", spec.hidden_size, 1)
    cell.check_options(spec.hidden_size, spec.options)
    cell.check_initialisation(spec.initialisation, spec.options)


def parameter_count(model):
    """Trainable parameters of a model for one seed by role: a dict of ``gate``, ``drive``,
    ``input``, ``plasticity``, ``readout`` and ``total``. K counts as gate also where the drive
    shares it.
    """
    count = model.cell.parameters_by_role()
    count["readout"] = sum(parameter.numel() for parameter in model.readout.parameters())
    return {**count, "total": sum(count.values())}


def matching_hidden_size(name, target, input_size, classes, **options):
    """Hidden size at which cell ``name`` with its read-out comes closest to ``target`` trainable
    parameters; the smaller of two equals.
    """
    kind = get(name)

    def total(hidden_size):
        cell = kind(input_size, hidden_size, **options)
        readout = classes * (cell.readout_size + 1)
        return sum(parameter.numel() for parameter in cell.parameters()) + readout

    for low in range(1, target + 1):
        with contextlib.suppress(ValueError):  # too few units for Dale's law
            kind.check_options(low, options)
            break
    else:
        kind.check_options(target, options)  # no size will do: say why
    high = low
    while total(high) < target:
        high *= 2
    above = bisect.bisect_left(range(high), target, low, key=total)
    return min((max(above - 1, low), above), key=lambda size: abs(total(size) - target))
