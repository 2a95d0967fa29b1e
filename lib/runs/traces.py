"""Recordings: the variables of every step of some images, bounded in memory, stored beside the run,
read lazily.

A recording says what it would take before it starts. Files are safetensors under
``runs/<key>/traces/``, or in a bundle.
"""

import json
import math

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lib import cells, checks, datasets, train, windows
from lib.config import RunConfig
from lib.recurrence import SequenceClassifier
from lib.runs import files
from lib.runs.files import StoreError, digest
from lib.runs.store import Store

LIMIT = 256 * 2**20  # bytes that one recording may take
DTYPES = {"float16": np.float16, "float32": np.float32}


class Trace:
    """A recording, in memory or on disk; a variable is read when it is asked for.

    ``trace["z"]`` is ``(images, time, units)``; ``trace.image(i)`` holds every variable of the i-th
    image, float32 ``(time, units)``.

    Attributes
    ----------
    images, labels, predictions : array (images,)
        Number in the split, class, class that was read out.
    rows, pixels : array (time,)
        Where the window of each step begins: row of the image, raster index of the pixel.
    units : array (units,)
        Hidden units recorded.
    variables : tuple of str
    about : dict
        Run key, weights, split, dtype, window, and ``step`` of training if recorded during it.
    """

    def __init__(self, source, about):
        self.source, self.about = source, about
        self.variables = tuple(about["variables"])
        for name in _NOTES:
            setattr(self, name, self._read(f"_{name}"))

    def __getitem__(self, variable):
        if variable not in self.variables:
            raise ValueError(
                f"{variable!r} was not recorded; this recording holds {', '.join(self.variables)}."
            )
        return self._read(variable)

    def image(self, index):
        one = slice(index, index + 1)
        return {name: self._read(name, one)[0].astype(np.float32) for name in self.variables}

    def _read(self, name, part=slice(None)):
        if isinstance(self.source, dict):
            return self.source[name][part]
        with safe_open(self.source, framework="np") as file:
            return file.get_slice(name)[part]


_NOTES = ("images", "labels", "predictions", "rows", "pixels", "units")


def size(config, images, variables=None, units=None, dtype="float16"):
    """Bytes that a recording of so many images would take; ``variables`` and ``units`` are counts
    or lists, default all.
    """
    steps = windows.task_length(config.task, config.window)
    variables = cells.get(config.cell.name).variables if variables is None else variables
    units = config.cell.hidden_size if units is None else units
    counts = [part if isinstance(part, int) else len(part) for part in (images, variables, units)]
    return math.prod(counts) * steps * np.dtype(DTYPES[dtype]).itemsize


def record(
    run,
    images=range(20),
    variables=None,
    units=None,
    *,
    config=None,
    store=None,
    which="best",
    split="test",
    dtype="float16",
    data=None,
    limit=LIMIT,
    keep=True,
    log=print,
):
    """Record a trained run step by step; an equal recording that is stored already is read instead.

    Parameters
    ----------
    run : str, RunConfig or SequenceClassifier
        Key or configuration of a finished run; or any model, with its ``config``.
    images : sequence of int
        Numbers of the images in the split.
    variables : sequence of str, optional
        Default all of the cell.
    units : sequence of int, optional
        Default all.
    which : {"best", "initial", "final"}
        Weights of the run.
    dtype : {"float16", "float32"}
    data : Dataset or path, optional
    limit : int
        Bytes above which the recording is refused before it starts.
    keep : bool
        Store it under the run's ``traces/`` (a model without a run is never stored).
    log : function
        Is told the size before the recording starts.

    Returns
    -------
    Trace

    Raises
    ------
    ValueError
        Unknown run, image, variable or unit; too large: the sentence offers a subset; a value
        beyond the range of float16.
    StoreError
        The run's weights do not match their checksum, or the recording cannot be stored.
    """
    store = store or Store()
    model = run if isinstance(run, SequenceClassifier) else None
    key = None if model else run.key() if isinstance(run, RunConfig) else run
    config = store.config(key) if config is None and key else config
    if config is None or (model and model.seeds is not None):
        raise ValueError(
            "Recording a model needs its config= and one seed; give a run's key, or "
            "record(model, images, config=config)."
        )
    images, variables, units = _selection(config, images, variables, units, dtype)
    _check_size(size(config, images, variables, units, dtype), limit, len(images), log)
    model = model or store.load(key, which)
    weights = digest(b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters()))[:12]
    about = {"key": key, "which": which, "weights": weights, "split": split, "dtype": dtype}
    about |= {"window": config.window.label, "variables": variables, "step": None}
    name = digest(json.dumps([about, images, units]).encode())[:16]
    for same in store.recordings(key) if key else ():
        if same.stem == name:
            return load(same)
    if not isinstance(data, datasets.Dataset):
        data = datasets.load(config.task, data=data)
    kept = key and keep
    path = store.folder(key) / "traces" / f"{name}.safetensors" if kept else None
    return _stored(_run(model, config, data, images, units, about), about, path)


def load(path):
    """A stored recording; its variables stay on disk until they are asked for.

    Raises
    ------
    StoreError
        The file is damaged.
    """
    try:
        with safe_open(path, framework="np") as file:
            about = json.loads(file.metadata()["about"])
        return Trace(path, about)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"The recording {path} is damaged ({error}); delete it and record again."
        ) from error


def stored(key, store=None):
    """Recordings of a run that are on disk, those made during its training in the order of their
    steps.
    """
    found = [load(path) for path in (store or Store()).recordings(key)]
    steps = [trace.about["step"] for trace in found]
    order = sorted(range(len(found)), key=lambda i: -1 if steps[i] is None else steps[i])
    return [found[i] for i in order]


class TraceRecorder(train.Callback):
    """Callback that records before and after a training and, with ``over``, at its validations.

        attempt.execute(config, callbacks=[TraceRecorder(range(10), ("z",), over=True)])

    The size of all recordings together is said, and bounded, before the first step. `stored` reads
    them.
    """

    def __init__(
        self,
        images=range(20),
        variables=None,
        units=None,
        *,
        over=False,
        store=None,
        split="test",
        dtype="float16",
        limit=LIMIT,
        log=print,
    ):
        self.images, self.variables, self.units = images, variables, units
        self.over, self.store = over, store or Store()
        self.split, self.dtype, self.limit, self.log = split, dtype, limit, log

    def on_start(self, state):
        config = state.configs[0]
        self.selection = _selection(config, self.images, self.variables, self.units, self.dtype)
        times = len(state.configs) * (len(state.validation_steps) + 1 if self.over else 2)
        needed = times * size(config, *self.selection, self.dtype)
        _check_size(needed, self.limit, len(self.selection[0]), self.log)

    def on_validation(self, state, record):
        if not (self.over or state.step in (0, state.steps)):
            return
        s = [config.seed for config in state.configs].index(record["seed"])
        config = state.configs[s]
        images, variables, units = self.selection
        # one seed, and the reference path: nothing is compiled for it
        model = train.build(config, device=state.device)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state.parameters[name][s])
        about = {"key": config.key(), "which": f"step {state.step}", "weights": None}
        about |= {"split": self.split, "dtype": self.dtype, "window": config.window.label}
        about |= {"variables": variables, "step": state.step}
        path = self.store.folder(config.key()) / "traces" / f"step-{state.step:010d}.safetensors"
        _stored(_run(model, config, state.data, images, units, about), about, path)


def _selection(config, images, variables, units, dtype):
    """Lists of images, variables and units, checked."""
    known, hidden = cells.get(config.cell.name).variables, config.cell.hidden_size
    images = [int(image) for image in images]
    units = list(range(hidden)) if units is None else [int(unit) for unit in units]
    variables = list(known) if variables is None else list(variables)
    checks.one_of("dtype", dtype, DTYPES)
    for name in variables:
        if name not in known:
            raise ValueError(
                f"Cell {config.cell.name!r} has no variable {name!r}; "
                f"it records {', '.join(known)}."
            )
    if not images or not variables or not units or min(units) < 0 or max(units) >= hidden:
        raise ValueError(
            "Record at least one image, one variable and one unit, "
            f"with units from 0 to {hidden - 1}."
        )
    return images, variables, units


def _check_size(needed, limit, images, log):
    if needed > limit:
        fits = limit * images // needed
        offer = "choose fewer units, variables or validations"
        if fits:
            offer = f"images=range({fits}) would fit"
        raise ValueError(
            f"Recording {images} images would take {needed / 1e6:,.1f} MB, above the limit of "
            f"{limit / 1e6:,.1f} MB; {offer}."
        )
    if log:
        log(f"Recording {images} images: {needed / 1e6:,.1f} MB.")


@torch.no_grad()
def _run(model, config, data, images, units, about):
    """name -> array of a recording."""
    split, dtype = about["split"], DTYPES[about["dtype"]]
    available = len(data.labels[split])
    if min(images) < 0 or max(images) >= available:
        raise ValueError(
            f"images range from {min(images)} to {max(images)}, but the {split} split has "
            f"images 0 to {available - 1}."
        )
    parts = {name: [] for name in about["variables"]}
    predictions, labels = [], []
    for index in torch.tensor(images).split(config.training.batch_size):
        x, truth = windows.sequences(data, config.window, split, index)
        logits, trace = model(x, record=True)
        for name, kept in parts.items():  # at once: memory stays near the recording's size
            kept.append(trace[name][..., units].cpu().numpy().astype(dtype))
        predictions.append(logits.argmax(-1).cpu().numpy())
        labels.append(truth.cpu().numpy())
    arrays = {name: np.concatenate(kept) for name, kept in parts.items()}
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise ValueError(
                f"{name} holds values beyond the range of {about['dtype']}; "
                "record it as float32, or look for divergence."
            )
    pixels = windows.task_pixels(config.task, config.window)[:, 0].numpy()
    rows = pixels // datasets.image_shape(config.task)[2]
    notes = (images, np.concatenate(labels), np.concatenate(predictions), rows, pixels, units)
    for name, values in zip(_NOTES, notes, strict=True):
        arrays[f"_{name}"] = np.asarray(values, np.int64)
    return arrays


def _stored(arrays, about, path):
    if path is None:
        return Trace(arrays, about)
    with files.explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    content = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    files.write(path, save(content, {"about": json.dumps(about)}))
    return Trace(path, about)
