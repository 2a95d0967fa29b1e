"""What defines a run: frozen dataclasses, their dictionary form and their key."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace

# raise it when the meaning of a field changes, so that old results are never taken for new ones
SCHEMA = 1


def later(default):
    """A field that came after the first results: at its default it does not enter the key."""
    return field(default=default, metadata={"later": True})


@dataclass(frozen=True)
class Task:
    """Which images are classified, and what follows each."""

    dataset: str = "digits"
    permuted: bool = False  # one fixed permutation of the pixels, drawn from data_seed
    last_rows: int | None = None  # keep only the last rows of every image
    data_seed: int = 0  # fixes split and permutation; not the seed of the run, so that runs pair
    source: str | None = later(None)  # text that registers a user's own data set
    first_rows: int | None = later(None)  # keep only the first rows of every image
    delay: int = later(0)  # blank pixels, of the mean colour, that are read after every image


@dataclass(frozen=True)
class Window:
    """How an image becomes a sequence; lengths in pixels."""

    input_length: int = 8
    stride: int = 4
    scan: str = "raster"

    @property
    def label(self) -> str:
        return f"{self.input_length}/{self.stride}"


@dataclass(frozen=True)
class CellSpec:
    """Which recurrent cell, how many units, how initialised."""

    name: str = "cb"
    hidden_size: int = 48
    initialisation: str = "balanced"
    options: dict = field(default_factory=dict)  # what differs from the cell's defaults
    source: str | None = None  # text that registers a user's own cell; part of the key


@dataclass(frozen=True)
class Training:
    """How it is trained: Adam, clipped gradients, cosine schedule over all steps."""

    epochs: int = 20
    batch_size: int = 40
    learning_rate: float = 0.01
    clip_norm: float = 1.0  # upper bound of the gradient norm of one seed
    validations_per_epoch: int = 2


@dataclass(frozen=True)
class RunConfig:
    """One run: a task, a window, a cell, a training, and one seed.

    The seed draws the initialisation and the order of the batches.
    """

    task: Task = Task()
    window: Window = Window()
    cell: CellSpec = CellSpec()
    training: Training = Training()
    seed: int = 0

    def with_seed(self, seed: int) -> "RunConfig":
        return replace(self, seed=seed)

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "RunConfig":
        """Inverse of `to_dict`; missing fields take their defaults.

        Raises
        ------
        ValueError
            A field is unknown; the sentence names it and the known ones.
        """
        return _build(cls, values, "configuration")

    def key(self) -> str:
        """16 hexadecimal digits that identify the result: no paths, no machine."""
        values = {"schema": SCHEMA, **_keyed(self)}
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _keyed(part):
    """What of a configuration enters the key, as a dict."""
    values = {}
    for f in fields(part):
        value = getattr(part, f.name)
        if not ("later" in f.metadata and value == f.default):
            values[f.name] = _keyed(value) if is_dataclass(value) else value
    return values


def _build(cls, values, where):
    known = {f.name: f for f in fields(cls)}
    if not isinstance(values, dict):
        raise ValueError(f"{where} is {values!r}, but must be a mapping of {', '.join(known)}.")
    built = dict(values)
    for name in values:
        if name not in known:
            raise ValueError(
                f"Unknown field {name!r} in {where}; known fields are {', '.join(known)}."
            )
        default = known[name].default
        if is_dataclass(default):
            built[name] = _build(type(default), built[name], name)
    return cls(**built)
