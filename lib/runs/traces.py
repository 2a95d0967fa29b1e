"""Recordings: the variables of every step of some images, bounded in memory, stored beside the run,
read lazily.

A recording says what it would take before it starts. Files are safetensors under
``runs/<key>/traces/``, or in a bundle.
"""

import json

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lib import cells, checks, datasets, files, train, windows
from lib.cells.registry import registered
from lib.config import RunConfig
from lib.files import StoreError, digest
from lib.recurrence import SequenceClassifier
from lib.runs.store import Store

LIMIT = 256 * 2**20  # bytes that one recording may take
DTYPES = {"float16": np.float16, "float32": np.float32}
NOTES = ("images", "labels", "predictions", "rows", "pixels", "units")


class Trace:
    """A recording, in memory or on disk; a variable is read when it is asked for.

    ``trace["z"]`` is ``(images, time, units)``; ``trace.image(i)`` holds every variable of the i-th
    image, float32 ``(time, units)``.

    Attributes
    ----------
    images, labels, predictions : array (images,)
        Number in the test set, class, class that was read out.
    rows, pixels : array (time,)
        Where the window of each step begins: row of the image, raster index of the pixel.
    units : array (units,)
        Hidden units recorded.
    variables : tuple of str
    about : dict
        Run key, weights, dtype, window, and ``step`` of training if recorded during it.
    """

    def __init__(self, source, about):
        self.source, self.about = source, about
        self.variables = tuple(about["variables"])
        for name in NOTES:
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


def size(config, images, variables=None, units=None, dtype="float16"):
    """Bytes that a recording of so many images would take; ``variables`` and ``units`` are lists,
    by default of all.
    """
    variables = cells.get(config.cell.name).variables if variables is None else variables
    units = config.cell.hidden_size if units is None else len(units)
    steps = windows.task_length(config.task, config.window)
    return images * steps * units * len(variables) * np.dtype(DTYPES[dtype]).itemsize


def record(
    run,
    images=range(20),
    variables=None,
    units=None,
    *,
    config=None,
    store=None,
    which="best",
    dtype="float16",
    data=None,
    limit=LIMIT,
    keep=True,
    log=print,
):
    """`Trace` of a trained run on images of the test set; an equal recording that is stored already
    is read instead.

    Parameters
    ----------
    run : str, RunConfig or SequenceClassifier
        Key or configuration of a finished run; or any model, with its ``config``.
    images, variables, units : sequence, optional
        Numbers of images; names and numbers, by default all.
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
    needed = size(config, len(images), variables, units, dtype)
    _check_size(needed, limit, len(images), log)
    model = model or store.load(key, which)
    weights = digest(b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters()))[:12]
    about = _about(config, key, which, weights, variables, dtype)
    name = digest(json.dumps([about, images, units]).encode())[:16]
    for same in store.recordings(key) if key else ():
        if same.stem == name:
            return load(same)
    with registered(config.task, config.cell):
        if not isinstance(data, datasets.Dataset):
            data = datasets.load(config.task, data=data)
        arrays = _arrays(model, config, data, images, units, about)
    return _stored(arrays, about, store, name) if key and keep else Trace(arrays, about)


def load(path):
    """A stored recording; its variables stay on disk until they are asked for (StoreError: the
    file is damaged).
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
    """Recordings of a run that are on disk, those of its training last, in the order of steps."""
    found = [load(path) for path in (store or Store()).recordings(key)]
    return sorted(found, key=lambda trace: -1 if (step := trace.about["step"]) is None else step)


class TraceRecorder(train.Callback):
    """Callback that records at every validation of a training, the one before the first step
    included; `stored` reads what it wrote.

        attempt.execute(config, callbacks=[TraceRecorder(range(10), ("z",))])

    The size of all recordings together is said, and bounded, before the first step.
    """

    def __init__(
        self,
        images=range(20),
        variables=None,
        *,
        store=None,
        dtype="float16",
        limit=LIMIT,
        log=print,
    ):
        self.images, self.variables, self.store = images, variables, store or Store()
        self.dtype, self.limit, self.log = dtype, limit, log

    def on_start(self, state):
        config = state.configs[0]
        self.selection = _selection(config, self.images, self.variables, None, self.dtype)
        images, variables, units = self.selection
        times = len(state.configs) * (len(state.validation_steps) + 1)
        needed = times * size(config, len(images), variables, units, self.dtype)
        _check_size(needed, self.limit, len(images), self.log)

    def on_validation(self, state, record):
        s = [config.seed for config in state.configs].index(record["seed"])
        config, (images, variables, units) = state.configs[s], self.selection
        # one seed, and the reference path: nothing is compiled for it
        model = train.build(config, device=state.device)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state.parameters[name][s])
        which = f"step {state.step}"
        about = _about(config, config.key(), which, None, variables, self.dtype, state.step)
        arrays = _arrays(model, config, state.data, images, units, about)
        _stored(arrays, about, self.store, f"step-{state.step:010d}")


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
        offer = f"images=range({fits}) would fit" if fits else "choose fewer variables"
        raise ValueError(
            f"Recording {images} images would take {needed / 1e6:,.1f} MB, above the limit of "
            f"{limit / 1e6:,.1f} MB; {offer}."
        )
    if log:
        log(f"Recording {images} images: {needed / 1e6:,.1f} MB.")


def _about(config, key, which, weights, variables, dtype, step=None):
    """What a recording says of itself; its name is made of this."""
    about = {"key": key, "which": which, "weights": weights, "split": "test", "dtype": dtype}
    return about | {"window": config.window.label, "variables": variables, "step": step}


@torch.no_grad()
def _arrays(model, config, data, images, units, about):
    """name -> array of a recording."""
    available = len(data.labels["test"])
    if min(images) < 0 or max(images) >= available:
        raise ValueError(
            f"images range from {min(images)} to {max(images)}, but the test set has "
            f"images 0 to {available - 1}."
        )
    parts = {name: [] for name in (*about["variables"], "_labels", "_predictions")}
    for index in torch.tensor(images).split(config.training.batch_size):
        x, labels = windows.sequences(data, config.window, "test", index)
        logits, trace = model(x, record=True)
        for name in about["variables"]:  # at once: memory stays near the recording's size
            values = trace[name][..., units].cpu().numpy()
            parts[name].append(values.astype(DTYPES[about["dtype"]]))
        parts["_labels"].append(labels.cpu().numpy())
        parts["_predictions"].append(logits.argmax(-1).cpu().numpy())
    arrays = {name: np.concatenate(kept) for name, kept in parts.items()}
    for name in about["variables"]:
        if not np.isfinite(arrays[name]).all():
            raise ValueError(
                f"{name} holds values beyond the range of {about['dtype']}; "
                "record it as float32, or look for divergence."
            )
    pixels = windows.task_pixels(config.task, config.window)[:, 0].numpy()
    rows = pixels // datasets.image_shape(config.task)[2]
    arrays |= {"_images": images, "_units": units, "_pixels": pixels, "_rows": rows}
    return arrays | {f"_{name}": np.asarray(arrays[f"_{name}"], np.int64) for name in NOTES}


def _stored(arrays, about, store, name):
    path = files.made(store.folder(about["key"]) / "traces") / f"{name}.safetensors"
    content = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    files.write(path, save(content, {"about": json.dumps(about)}))
    return Trace(path, about)
