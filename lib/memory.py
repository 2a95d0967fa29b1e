"""What a trained cell remembers: how far back, and in which of its signals.

Accuracy from parts of the sequence and after a delay, gradients against lag, lesions, decoding of
the past, slow points. Everything takes a model for one seed (`lib.runs.store.Store.load`), a loaded
data set, a window, and of how many images at most of a split; nothing is trained but linear
read-outs of frozen states.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from scipy.optimize import least_squares
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.metrics import make_scorer, r2_score
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch.nn import functional as F

from lib import analysis, files, windows
from lib.checks import one_of, require, whole

BATCH = 250  # images whose states of all steps are held at once
LESIONS = {  # signal -> what stands in its place at every step
    "z": "each unit's mean",
    "K r": "its mean: what the gate receives of other units",
    "P_z x": "its mean: what the gate receives of the image",
    "W": "nothing: no recurrent drive",
    "UX": "each unit's mean",
    "UX shuffled": "that of another image, during the delay",
    "r shuffled": "that of another image, during the delay",
}
FILE = "lesions.parquet"  # what `stored` reads
TABLE = pa.schema(
    {"key": pa.string(), "lesion": pa.string(), "intact": pa.float32(), "drop": pa.float32()}
)
READOUTS = ("trained", "refitted")
CONDITIONS = ("first", "last", "delay")
TARGETS = ("pixels", "colour", "class")
FOLDS = 5
POINTS_ALIKE = 4  # decimals to which two slow points are one
R2 = make_scorer(r2_score, multioutput="variance_weighted")  # over all values of the target
ALPHAS = 10.0 ** np.arange(-3, 6)  # ridge penalties to choose from, of standardised sources


def sequences(data, window, split="test", images=2000):
    """The first images of a split: sequences ``(batch, time, features)``, labels ``(batch,)``."""
    index = torch.arange(min(images, len(data.labels[split])))
    return windows.sequences(data, window, split, index)


def _sequences(model, *of):
    """`sequences` in the precision of a model."""
    x, labels = sequences(*of)
    return x.to(model.readout.weight.dtype), labels


def recall(model, data, window, condition, steps, images=2000):
    """Accuracy of the trained read-out, and of one refitted to the states a condition leaves the
    network in.

    A truncated sequence puts the network where its own read-out never saw it, so that its accuracy
    mixes forgetting with a shift; the refitted read-out says what the frozen state still tells. It
    is fitted on training images and tested on test images, as the other.

    Parameters
    ----------
    condition : {"first", "last", "delay"}
        Only the first ``steps`` are read, only the last, or all and then as many of noise
        (`analysis.delay`).
    steps : sequence of int

    Returns
    -------
    DataFrame
        condition, steps, pixels (steps times stride), readout ("trained" or "refitted"), accuracy
        in 0..1.

    Raises
    ------
    ValueError
        Unknown condition, or steps outside the sequence.
    """
    one_of("condition", condition, CONDITIONS)
    train, labels = _sequences(model, data, window, "train", images)
    test, truth = _sequences(model, data, window, "test", images)
    states = (_states(model, x, condition, steps) for x in (train, test))
    rows = []
    for k, fitted, tested in zip(steps, *states, strict=True):
        with torch.no_grad():
            own = (model.readout(tested).argmax(1) == truth).float().mean().item()
        new = analysis.refitted_accuracy(fitted.cpu(), labels.cpu(), tested.cpu(), truth.cpu())
        about = {"condition": condition, "steps": k, "pixels": k * window.stride}
        rows.append({**about, "readout": "trained", "accuracy": own})
        rows.append({**about, "readout": "refitted", "accuracy": new})
    return pd.DataFrame(rows)


def _states(model, x, condition, steps):
    """What the read-out reads at the end, (batch, n), for each of ``steps``."""
    length = x.shape[-2]
    low, high = (0, np.inf) if condition == "delay" else (1, length)
    allowed = f"from {low} to {high} for {condition!r} of a sequence of {length} steps"
    require(all(low <= k <= high for k in steps), "steps", steps, allowed)
    if condition == "last":
        return [model.states(x[:, -k:])[:, -1] for k in steps]
    at = torch.tensor(steps) - 1  # one pass holds the states of all
    if condition == "delay":
        x, at = analysis.delay(x, max(steps)), at + length
    return torch.cat([model.states(part)[:, at] for part in x.split(BATCH)]).unbind(1)


def gradient_by_lag(model, data, window, images=200):
    """Mean norm of the gradient dL/dx_{T-lag} of each step's input; ``(time,)``, lag 0 first."""
    x, labels = _sequences(model, data, window, "test", images)
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels, reduction="sum"), x)
    return gradient.norm(dim=-1).mean(0).flip(0).cpu().numpy()


def time_constants(model, data, window, images=200):
    """Time constant of each unit's gate, in pixels: the median of tau over test images and steps,
    ``(hidden,)``; None without a gate.
    """
    x, _ = _sequences(model, data, window, "test", images)
    with torch.no_grad():
        _, trace = model(x, record=True)
    if "z" not in trace:
        return None
    return np.median(analysis.time_constant(trace["z"].cpu().numpy(), window.stride), axis=(0, 1))


def span(frame, share=0.5, chance=0.1):
    """Fewest pixels with which the accuracy of one condition and read-out reaches ``share`` of the
    way from chance to its best; after a delay, the most for which it is still that high.
    """
    bound = chance + share * (frame["accuracy"].max() - chance)
    enough = frame.loc[frame["accuracy"] >= bound, "pixels"]
    return int(enough.max() if (frame["condition"] == "delay").all() else enough.min())


# --- lesions: one signal replaced at every step


class _Step(NamedTuple):
    """A step of a cell; ``inputs`` are the products a and the projected input g, (batch, n)."""

    signals: tuple
    inputs: torch.Tensor
    state: tuple


class _Replaced(NamedTuple):
    """What a lesion puts in the place of inputs, where ``rows`` is true, and of signals.

    ``signals(t, s)`` gives what stands for the presynaptic signals s of step t.
    """

    rows: torch.Tensor | None = None
    values: torch.Tensor | float = 0.0
    signals: Callable | None = None


@torch.no_grad()
def lesions(model, data) -> list[str]:
    """The `LESIONS` that a model allows on a task; shuffled signals need a delay."""
    cell, delay = model.cell, data.task.delay > 0
    gate, plastic = _gate(cell), _is_plastic(cell)
    able = {
        "z": _holds(cell),
        "K r": gate.recurrent.any(),
        "P_z x": gate.projected.any(),
        "W": _drive(cell).any(),
        "UX": plastic,
        "UX shuffled": plastic and delay,
        "r shuffled": delay,
    }
    return [what for what in LESIONS if able[what]]


@torch.no_grad()
def lesion(model, data, window, what, images=2000, readout="trained") -> float:
    """Accuracy with one signal replaced at every step.

    What replaces it comes from the intact network: its mean over training images and steps for
    each unit, or what it is at this step for another image. K and W stand for the recurrent input
    of the gate and of the drive (of the full GRU: of its update gate and its candidate), r for what
    recurrent matrices multiply (of the full GRU and the vanilla RNN: h).

    Parameters
    ----------
    what : str or None
        One of `lesions`; None leaves the network intact.
    readout : {"trained", "refitted"}
        The read-out of the run, or one fitted to states of the lesioned network on training images.

    Returns
    -------
    float
        0..1, on test images.

    Raises
    ------
    ValueError
        The cell has no such signal, or the task no delay in which to shuffle it.
    """
    one_of("readout", readout, READOUTS)
    able = [None, *lesions(model, data)]
    rule = f"one of {', '.join(map(str, able))} for {model.cell.label} on this task"
    remedy = "other cells have the other signals, and shuffling needs a delay"
    require(what in able, "what", what, rule, remedy)
    train, labels = _sequences(model, data, window, "train", images)
    test, truth = _sequences(model, data, window, "test", images)
    start = test.shape[1] - data.task.delay // window.stride
    replaced = _replacement(model, what, train.split(BATCH), start)
    states = _final(model.cell, test, replaced)
    if readout == "trained":
        return (model.readout(states).argmax(1) == truth).float().mean().item()
    fitted = _final(model.cell, train, replaced)
    return analysis.refitted_accuracy(fitted.cpu(), labels.cpu(), states.cpu(), truth.cpu())


def drops(model, data, window, images=2000, readout="trained") -> pd.DataFrame:
    """What accuracy loses by each of the `lesions` of a model, as `lesion` says: a DataFrame of
    lesion, intact (accuracy of the intact network), drop (by how much it is lower); 0..1.
    """
    rest = images, readout
    intact, rows = lesion(model, data, window, None, *rest), []
    for what in lesions(model, data):
        drop = intact - lesion(model, data, window, what, *rest)
        rows.append({"lesion": what, "intact": intact, "drop": drop})
    return pd.DataFrame(rows)


def stored(root) -> pd.DataFrame:
    """The `drops` of stored networks, as `lib.runs.audit.lesions` left them in ``root`` or in a
    bundle there: key, lesion, intact, drop (0..1); no row where none were measured.
    """
    paths = sorted(path for depth in ("", "*/", "*/*/") for path in root.glob(depth + FILE))
    kept = [files.from_parquet(path.read_bytes()) for path in paths]
    frames = [table.to_pandas() for table in (*kept, TABLE.empty_table())]
    return pd.concat(frames, ignore_index=True).drop_duplicates(["key", "lesion"])


def _final(cell, x, replaced):
    """What the read-out reads after the last step, (batch, n)."""
    finals = []
    for part in x.split(BATCH):
        *_, last = _steps(cell, part, replaced(part))
        finals.append(cell.output(last.state))
    return torch.cat(finals)


def _steps(cell, x, replaced=None):
    """The loop over time, one `_Step` after the other."""
    replaced = replaced or _Replaced()
    (P, b), weights, theta = cell()
    theta = {name: value.unsqueeze(0) for name, value in theta.items()}
    sizes = [*(len(w) for w in weights), len(b)]
    state = cell.initial_state(len(x), theta)
    for t, g in enumerate((x @ P.mT + b).unbind(1)):
        signals = cell.presynaptic(state, theta)
        if replaced.signals is not None:
            signals = replaced.signals(t, signals)
        products = (s @ w.mT for s, w in zip(signals, weights, strict=True))
        inputs = torch.cat((*products, g), -1)
        if replaced.rows is not None:
            inputs = torch.where(replaced.rows, replaced.values, inputs)
        *a, g = inputs.split(sizes, -1)
        state = cell.update(state, tuple(a), g, theta)
        yield _Step(signals, inputs, state)


def _replacement(model, what, parts, start):
    """What a lesion replaces, as a function of a batch of sequences.

    ``parts`` are batches of training images, for means; a delay begins at step ``start``.
    """
    cell = model.cell

    def mean(signal):
        each = (torch.stack([signal(step) for step in _steps(cell, part)], 1) for part in parts)
        return _mean(each)

    if what is None:
        replaced = _Replaced()
    elif what == "W":
        replaced = _Replaced(_drive(cell))
    elif what == "K r":
        replaced = _Replaced(_gate(cell).recurrent, mean(lambda step: step.inputs))
    elif what == "P_z x":
        replaced = _Replaced(_gate(cell).projected, mean(lambda step: step.inputs))
    elif what == "z":
        replaced = _held(cell, _mean(model(part, record=True)[1]["z"] for part in parts))
    elif what == "UX":
        efficacy = mean(lambda step: step.state.U * step.state.X)
        replaced = _Replaced(signals=lambda t, s: (s[0], efficacy * s[0]))
    else:
        return lambda x: _Replaced(signals=_of_another_image(cell, x, what, start))
    return lambda x: replaced


def _mean(parts):
    """Mean over images and steps of batches (images, steps, n), (n,)."""
    total, count = 0, 0
    for part in parts:
        total = total + part.sum((0, 1))
        count += part.shape[0] * part.shape[1]
    return total / count


def _of_another_image(cell, x, what, start):
    """Signals that from step ``start`` on are those of the next image in the intact network."""
    steps, plastic = list(_steps(cell, x)), _is_plastic(cell)

    def signals(t, own):
        if t < start:
            return own
        other = tuple(s.roll(1, 0) for s in steps[t].signals)
        if not plastic:
            return other
        if what == "r shuffled":
            r, efficacy = other[0], own[1] / own[0].clamp(min=torch.finfo(x.dtype).tiny)
        else:
            r, efficacy = own[0], (steps[t].state.U * steps[t].state.X).roll(1, 0)
        return r, efficacy * r

    return signals


class _Gate(NamedTuple):
    """Which inputs (n,) the gate z is made of, and the sign in which it grows with each."""

    recurrent: torch.Tensor
    projected: torch.Tensor
    sign: torch.Tensor


def _gate(cell):
    """The inputs that the recorded z depends on, found by its derivative; none without a gate."""
    (_, b), weights, _ = cell()
    recurrent = sum(len(w) for w in weights)
    inputs = b.new_zeros(1, recurrent + len(b))
    slope = torch.zeros_like(inputs[0])
    if "z" in cell.variables:
        with torch.enable_grad():
            inputs.requires_grad_()
            z = _first_gate(cell, inputs)
            (slope,) = torch.autograd.grad(z.sum(), inputs, materialize_grads=True)
    is_recurrent = torch.arange(inputs.shape[1], device=b.device) < recurrent
    gate = slope.flatten() != 0
    return _Gate(gate & is_recurrent, gate & ~is_recurrent, slope.flatten().sign())


def _first_gate(cell, inputs):
    """The gate (1, H) that inputs (1, n) open at the initial state."""
    (_, b), weights, theta = cell()
    theta = {name: value.unsqueeze(0) for name, value in theta.items()}
    *a, g = inputs.split([*(len(w) for w in weights), len(b)], -1)
    before = cell.initial_state(1, theta)
    after = cell.update(before, tuple(a), g, theta)
    return cell.observe(before, after, tuple(a), g, theta)["z"]


def _held(cell, z):
    """The gate held at z (H,): what it receives is replaced by the logit of z."""
    gate = _gate(cell)
    values = torch.zeros_like(gate.sign)
    logit = torch.logit((z / cell.z_max).clamp(1e-6, 1 - 1e-6))
    values[gate.projected] = gate.sign[gate.projected] * logit
    return _Replaced(gate.recurrent | gate.projected, values)


def _holds(cell):
    """Whether `_held` holds the gate: it must be a sigmoid of its input, unit by unit."""
    if cell.z_max is None or _gate(cell).projected.sum() != cell.hidden_size:
        return False
    z = cell.z_max * torch.linspace(0.1, 0.9, cell.hidden_size).to(_gate(cell).sign)
    held = _held(cell, z)
    return torch.allclose(_first_gate(cell, held.values[None])[0], z)


def _drive(cell):
    """The inputs that are products of the recurrent matrix W of the equations."""
    _, weights, _ = cell()
    W, gate = cell.constrained().get("W"), _gate(cell).recurrent
    drive, size = torch.zeros_like(gate), cell.hidden_size
    blocks = [block for w in weights for block in w.split(size)]
    for number, block in enumerate(blocks if W is not None else ()):
        rows = slice(number * size, (number + 1) * size)
        drive[rows] = torch.equal(block, W) and not gate[rows].any()
    return drive


def _is_plastic(cell):
    """Whether the presynaptic signals are r and U X r: Tsodyks-Markram plasticity."""
    if not {"U", "X"} <= set(cell.variables):
        return False
    (P, _), _, _ = cell()
    *_, last = _steps(cell, P.new_zeros(1, 3, P.shape[1]))
    efficacy = last.state.U * last.state.X
    return len(last.signals) == 2 and torch.allclose(last.signals[1], efficacy * last.signals[0])


# --- decoding: what a signal tells of the past


def decode(model, data, window, target, source, lags, images=2000, step=None):
    """How well a linear read-out of one signal gives back the past.

    Ridge regression of standardised signals, fitted on four fifths of the test images and scored on
    the others, in turn; the penalty is chosen on the former alone.

    Parameters
    ----------
    target : {"pixels", "colour", "class"}
        What the network read ``lag`` steps before ``step``; the mean colour of the image row that
        is ``lag`` rows above the last one that was read whole by then; the class, from the signal
        as it was ``lag`` steps before ``step``.
    source : {"r", "v", "h", "z", "X", "U", "UX"}
        The signal, of those that the cell records; UX is the product.
    lags : sequence of int
        Steps, or rows.
    step : int, optional
        The step that lags are counted from; default the last.

    Returns
    -------
    DataFrame
        One row a lag and fold: target, source, lag, pixels (from what is decoded to the last pixel
        that was read), fold, score. The score is R2 over all values of the target, 1 for a perfect
        copy and 0 for no better than the mean, NaN for a blank; of the class, accuracy, 0..1.

    Raises
    ------
    ValueError
        The cell records no such signal, or a lag reaches beyond the sequence.
    """
    one_of("target", target, TARGETS)
    variables = model.cell.variables
    have = [*variables, *["UX"] * ({"U", "X"} <= set(variables))]
    one_of("source", source, have, f"{model.cell.label} records no other")
    x, labels = _sequences(model, data, window, "test", images)
    step = x.shape[1] - 1 if step is None else step
    require(step in range(x.shape[1]), "step", step, f"one of the {x.shape[1]} steps from 0 on")
    read = step * window.stride + window.input_length
    if target == "colour":
        pictures, _ = data.batch("test", torch.arange(len(x)))
        colours, columns = pictures.mean(-1), data.shape[2]
        most = min(read // columns, data.shape[1]) - 1
    else:
        most = step
    rule = f"{'rows' if target == 'colour' else 'steps'} from 0 to {most}, all that was read"
    require(all(lag in range(most + 1) for lag in lags), "lags", lags, rule)
    signal = _signal(model, x, source)
    rows = []
    for lag in lags:
        at, pixels = step, lag * window.stride
        if target == "pixels":
            wanted = x[:, step - lag]
        elif target == "colour":
            wanted, pixels = colours[..., most - lag], read - (most - lag + 1) * columns
        else:
            wanted, at = labels, step - lag
        about = {"target": target, "source": source, "lag": lag, "pixels": pixels}
        scores = _cross_validated(signal[:, at], wanted.cpu().numpy(), target == "class")
        rows += [{**about, "fold": fold, "score": score} for fold, score in enumerate(scores)]
    return pd.DataFrame(rows)


@torch.no_grad()
def _signal(model, x, source):
    """A recorded signal of every step, (images, steps, hidden)."""
    kept = []
    for part in x.split(BATCH):
        _, trace = model(part, record=True)
        kept.append(trace["U"] * trace["X"] if source == "UX" else trace[source])
    return torch.cat(kept).cpu().numpy()


def _cross_validated(signal, wanted, classes):
    """Scores of the folds; every image is in one of them."""
    if not np.ptp(wanted, axis=0).any():
        return [np.nan] * FOLDS
    readout = make_pipeline(StandardScaler(), (RidgeClassifierCV if classes else RidgeCV)(ALPHAS))
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    # as in `analysis.refitted_accuracy`: threads of BLAS and of torch would wait for each other
    with threadpool_limits(1):
        scoring = "accuracy" if classes else R2
        return cross_val_score(readout, signal, wanted, scoring=scoring, cv=folds)


# --- slow points: where the state stays, and how it leaves


def slow_points(model, data, window, starts=16) -> pd.DataFrame:
    """Points of the state space that one step under blank input moves least (Sussillo & Barak
    2013).

    A step maps the full state s (all fields: v, or v, X, U) to F(s). From states of the network
    while it reads test images and then waits as long, |F(s) - s|^2 is minimised within the range of
    each variable over these states (trust region, float64). Around a point, deviations shrink or
    grow along the eigenvectors of the Jacobian of F by its eigenvalues.

    Parameters
    ----------
    starts : int
        How many states to start from, each of another image, evenly spaced over time.

    Returns
    -------
    DataFrame
        One row a point and eigenvalue, slowest point first and largest eigenvalue first: point,
        speed (the length of F(s) - s at the point; 0 at a fixed point), starts (how many ended
        there), edge (whether it lies where the range ends, so that a slower point may lie beyond),
        real, imag, tau (-stride / ln |eigenvalue|, pixels; below 0 where deviations grow).
    """
    whole("starts", starts, 1)
    cell = copy.deepcopy(model.cell).double().requires_grad_(False).cpu()
    x, _ = _sequences(model, data, window, "test", starts)
    (_, b), weights, theta = cell()
    theta = {name: value.unsqueeze(0) for name, value in theta.items()}
    x = F.pad(x.double().cpu(), (0, 0, 0, x.shape[1]))
    states = [step.state for step in _steps(cell, x)]
    kind, sizes = type(states[0]), [field.shape[-1] for field in states[0]]
    times = np.linspace(0, len(states) - 1, len(x)).round().astype(int)
    visited = torch.stack([torch.cat(state, -1) for state in states], 1).numpy()
    low, high = visited.min((0, 1)), visited.max((0, 1))
    margin = 0.1 * (high - low) + 1e-6

    def moved(flat):
        state = kind(*flat.unsqueeze(0).split(sizes, -1))
        signals = cell.presynaptic(state, theta)
        a = tuple(s @ w.mT for s, w in zip(signals, weights, strict=True))
        return torch.cat(cell.update(state, a, b.unsqueeze(0), theta), -1)[0]

    def change(flat):
        return (moved(torch.from_numpy(flat)) - torch.from_numpy(flat)).numpy()

    def jacobian(flat):
        return torch.func.jacrev(moved)(torch.from_numpy(flat)).numpy()

    unit, ends, points = np.eye(len(low)), (low - margin, high + margin), {}
    with threadpool_limits(1):  # more threads only wait for each other
        for start in visited[range(len(x)), times]:
            found = least_squares(
                change, start, lambda s: jacobian(s) - unit, bounds=ends, max_nfev=200
            )
            points.setdefault(tuple(found.x.round(POINTS_ALIKE)), []).append(found)
    frames = []
    for same in points.values():
        eigenvalues = np.linalg.eigvals(jacobian(same[0].x))
        eigenvalues = eigenvalues[np.argsort(-np.abs(eigenvalues), kind="stable")]
        with np.errstate(divide="ignore"):
            tau = -window.stride / np.log(np.abs(eigenvalues))
        values = {"real": eigenvalues.real, "imag": eigenvalues.imag, "tau": tau}
        about = {"speed": np.linalg.norm(same[0].fun), "starts": len(same)}
        about["edge"] = bool(same[0].active_mask.any())
        frames.append(pd.DataFrame({**about, **values}))
    frames.sort(key=lambda frame: frame["speed"].iat[0])
    return pd.concat(frames, keys=range(len(frames)), names=["point"]).reset_index(0)
