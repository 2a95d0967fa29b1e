"""Grids of runs, from arguments or from YAML files."""

import inspect
import itertools
import re
from pathlib import Path

import yaml

from lib import checks
from lib.config import CellSpec, RunConfig, Task, Training, Window

# torch and the cells are imported where they are needed.

_TRAINING = Training()
LISTS = (list, tuple, range)
SEVERAL = ("input_length", "stride", "cells")  # fields that take one value or a list
MAPPINGS = ("options", "learning_rate")  # fields that take a mapping
EMPTY = ("last_rows", "first_rows", "options", "learning_rate")  # fields that may be left empty

# Learning rates that a scan chose on validation, with a seed that no comparison uses: data set ->
# cell -> rate; cells not named train at the default. Of the digits by
# notebooks/grids/digits_learning_rate.yaml.
RATES = {
    "digits": {
        "rnn": 0.003,
        "simple_gru": 0.06,
        "gru": 0.01,
        "cb": 0.1,
        "cb_gru": 0.01,
        "dale": 0.1,
        "dale_cb": 0.1,
        "stp": 0.03,
        "stp_dale": 0.06,
        "stp_dale_cb": 0.06,
    }
}


def grid(
    dataset="digits",
    permuted=False,
    last_rows=None,
    first_rows=None,
    delay=0,
    data_seed=0,
    input_length=(8,),
    stride=(4,),
    scan="raster",
    cells="all",
    hidden_size=48,
    initialisation="balanced",
    options=None,
    seeds=(0, 1, 2),
    epochs=_TRAINING.epochs,
    learning_rate=None,
    batch_size=_TRAINING.batch_size,
    clip_norm=_TRAINING.clip_norm,
    validations_per_epoch=_TRAINING.validations_per_epoch,
):
    """List of `RunConfig`: all cells x windows x seeds, checked, in an order in which a part is
    already a fair comparison: all cells at the first window with the first seed, then the other
    seeds, then the next window.

    Parameters are the fields of `lib.config`, the same for all runs, but for

    input_length, stride : int or sequence of int
        Pixels; a stride may be "fixed" or "half", which is resolved for each input length. A window
        that comes up twice counts once.
    cells : str or sequence of str
        As `lib.cells.names`; a cell of the user's own takes its text along.
    options : dict, optional
        Options of cells, given to those cells that have them.
    learning_rate : float or dict, optional
        One for all cells, or cell -> rate, with "default" for those not named. Left out, each cell
        takes what a scan chose for it (`RATES`), or the default of `lib.config.Training`.

    Raises
    ------
    ValueError
        A value is of the wrong kind, or one that `lib.train.check` refuses.
    """
    given = locals().items()
    for name, value in given:
        _check_kind(name, value)

    from lib import cells as registry
    from lib import datasets, recurrence, train, windows

    chosen = registry.names(cells if isinstance(cells, str) else ",".join(map(str, cells)))
    options = options or {}
    known = {option for name in chosen for option in registry.get(name).defaults}
    for option in options:
        if option not in known:
            raise ValueError(
                f"options name {option!r}, which none of the cells {', '.join(chosen)} has; "
                f"their options are: {', '.join(sorted(known)) or 'none'}."
            )
    rates = _rates(learning_rate, dataset, chosen)
    pairs = [
        (length, windows.resolve_stride(step, length))
        for length in _several(input_length)
        for step in _several(stride)
    ]
    recurrence.check_seeds(seeds)
    source = datasets.TEXTS.get(dataset)
    task = Task(dataset, permuted, last_rows, data_seed, source, first_rows, delay)
    configs = []
    for (length, step), seed, name in itertools.product(dict.fromkeys(pairs), seeds, chosen):
        kind = registry.get(name)
        own = {option: value for option, value in options.items() if option in kind.defaults}
        cell = CellSpec(name, hidden_size, initialisation, own, registry.SOURCES.get(name))
        training = Training(epochs, batch_size, rates[name], clip_norm, validations_per_epoch)
        config = RunConfig(task, Window(length, step, scan), cell, training, seed)
        configs.append(train.plain(config))
    return unique(configs)


def _rates(learning_rate, dataset, chosen):
    """Learning rate of each chosen cell."""
    if learning_rate is None:
        return {name: RATES.get(dataset, {}).get(name, _TRAINING.learning_rate) for name in chosen}
    if not isinstance(learning_rate, dict):
        return dict.fromkeys(chosen, learning_rate)
    for name in learning_rate:
        if name not in (*chosen, "default"):
            raise ValueError(
                f"learning_rate names {name!r}, which is not among the cells: "
                f"{', '.join(chosen)}, or default."
            )
    for name in chosen:
        if name not in learning_rate and "default" not in learning_rate:
            raise ValueError(f"learning_rate has no value for {name!r}; add one, or a default.")
    return {name: learning_rate.get(name, learning_rate.get("default")) for name in chosen}


def unique(configs):
    """These configurations in their order, each once."""
    return list({config.key(): config for config in configs}.values())


def _several(value):
    return list(value) if isinstance(value, LISTS) else [value]


def _check_kind(name, value):
    """Refuse lists and mappings where one value is meant, and what was left empty."""
    inner = []
    if name == "cells":
        named = isinstance(value, (str, *LISTS))
        checks.require(named, name, value, "names of cells, as a text or a list")
    if name == "options":
        holds = value is None or isinstance(value, dict)
        checks.require(holds, name, value, "a mapping, such as {'dt': 0.3}")
    if name == "seeds":
        holds = isinstance(value, LISTS) and len(value) > 0
        checks.require(holds, name, value, "a list, such as [0, 1, 2]")
    elif isinstance(value, dict):
        checks.require(name in MAPPINGS, name, value, "one value", "write it without a mapping")
        inner = [(f"{name}: {key}", part) for key, part in value.items()]
    elif isinstance(value, LISTS):
        remedy = "write several grids, as a list of them, to vary it"
        checks.require(name in SEVERAL and len(value) > 0, name, value, "one value", remedy)
        inner = [(name, part) for part in value]
    elif not (value is None and name in EMPTY):
        inner = [(name, value)]
    for named, part in inner:
        plain = part is not None and not isinstance(part, (*LISTS, dict, set))
        checks.require(plain, named, part, "one value")


# Files


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as everywhere but in YAML 1.1."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path, kind):
    """Content of a YAML file of some kind; what is none is refused (ValueError)."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
        return yaml.load(text, _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no {kind}: {' '.join(str(error).split())}.") from error


def read_grid(path):
    """Runs of a grid file: YAML with the arguments of `grid`, or a list of such mappings; a refusal
    names file, field and value.
    """
    known = inspect.signature(grid).parameters
    content = read_yaml(path, "grid file")
    configs = []
    for values in content if isinstance(content, list) else [content]:
        if not isinstance(values, dict) or not values:
            raise ValueError(
                f"{path}: {values!r} is no grid; write one field a line, such as 'cells: all'."
            )
        for name in values:
            if name not in known:
                raise ValueError(
                    f"{path}: unknown field {name!r}; known fields are {', '.join(known)}."
                )
        try:
            configs += grid(**values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return unique(configs)
