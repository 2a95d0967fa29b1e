"""Synthetic tidy frames with the columns of `lib.runs.store`: plausible numbers, fast to make, the
same at every call.
"""

import hashlib
import json
import zlib

import numpy as np
import pandas as pd

from lib import cells, windows
from lib.figures import select
from lib.runs.status import CONFIGURATION, RESULTS

NINE = cells.ALL
TEN = (*cells.ALL, "dale")
WINDOWS = ("4/4", "4/2", "8/4", "16/4", "16/8")
LEVEL = dict(
    rnn=0.36,
    simple_gru=0.45,
    gru=0.545,
    cb=0.47,
    cb_gru=0.5,
    dale=0.42,
    dale_cb=0.41,
    stp=0.455,
    stp_dale=0.40,
    stp_dale_cb=0.415,
)
BATCHES = 200  # of an epoch
COMMIT = "0123abc"

CONTROLS = (
    {"options": '{"excitatory_fraction": 0.8}'},
    {"options": '{"stp_dt": 0.1}'},
    {"permuted": True},
    {"last_rows": 8},
    {"hidden_size": 61},
)

LONGER = ("rnn", "gru", "cb", "dale_cb")


def runs(names=NINE, shapes=WINDOWS, seeds=(0, 1, 2), **changed) -> pd.DataFrame:
    """One row per finished run; ``changed`` overrides columns, e.g. ``initialisation="notes"``."""
    return pd.DataFrame(
        [_run(name, shape, seed, changed) for name in names for shape in shapes for seed in seeds]
    )


def answered(runs, images=400):
    """Predictions of runs, each right as often as its accuracy says."""
    chance = np.random.default_rng(0).random((len(runs), images))
    right = chance < runs["test_accuracy"].to_numpy()[:, None]
    return pd.DataFrame(
        {
            "key": np.repeat(runs["key"].to_numpy(), images),
            "image": np.tile(np.arange(images), len(runs)),
            "label": 1,
            "prediction": right.ravel().astype(int),
        }
    )


def scan(names=NINE, rates=(0.001, 0.003, 0.01), seed=100) -> pd.DataFrame:
    """A learning-rate scan at 8/4: every cell with both initialisations, the baselines with one."""
    frames = []
    for number, rate in enumerate(rates):
        for policy in ("balanced", "notes"):
            chosen = [
                name
                for name in names
                if policy == "balanced" or cells.get(name).weights != "baseline"
            ]
            frame = runs(chosen, ("8/4",), (seed,), learning_rate=rate, initialisation=policy)
            frame["validation_accuracy"] += (-0.06, 0.0, -0.02)[number] - 0.05 * (policy == "notes")
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def curves(frame: pd.DataFrame) -> pd.DataFrame:
    """Metrics at step 0 and twice per epoch for the runs of `runs`."""
    parts = []
    for row in frame.itertuples():
        noise = np.random.default_rng(zlib.crc32(row.key.encode()))
        epoch = np.arange(0, row.epochs + 0.25, 0.5)
        rise = 1 - np.exp(-epoch / (1.2 + 1.6 * noise.random()))
        accuracy = 0.1 + (row.validation_accuracy - 0.1) * rise + noise.normal(0, 0.006, epoch.size)
        part = pd.DataFrame(
            {"step": (epoch * BATCHES).astype(int), "epoch": epoch, "validation_accuracy": accuracy}
        )
        part["train_accuracy"] = accuracy + 0.02 * rise
        part["validation_loss"], part["train_loss"] = 2.3 - 1.6 * accuracy, 2.3 - 1.7 * accuracy
        part = part.assign(gradient_norm=1 + rise, key=row.key)
        part = part.merge(frame[list(CONFIGURATION)], on="key")
        parts.append(
            part.assign(rate=row.learning_rate * (1 + np.cos(np.pi * epoch / row.epochs)) / 2)
        )
    return pd.concat(parts, ignore_index=True)


def history(frame: pd.DataFrame) -> pd.DataFrame:
    """Quantiles of parameters and variables over training, in the long form of the store."""
    rows = []
    for row in frame.itertuples():
        noise = np.random.default_rng(zlib.crc32(row.key.encode()) + 1)
        cell = cells.get(row.cell)
        centres = {"W": (0.0, 0.3), "z": (0.04, 0.02), "b_z": (-1.0, 1.0)}
        if cell.weights == "reversal":
            centres |= {"K": (0.05, 0.03), "C": (0.05, 0.03), "v_e": (2.7, 0.0), "v_i": (-2.7, 0.0)}
        if cell.stp:
            centres |= {
                "U_cap": (0.45, 0.1),
                "tau_x": (20.0, 8.0),
                "tau_u": (25.0, 9.0),
                "X": (0.5, 0.2),
                "U": (0.6, 0.1),
            }
        for epoch in np.arange(0, row.epochs + 0.25, 0.5):
            same = {name: getattr(row, name) for name in CONFIGURATION} | {
                "step": int(epoch * BATCHES),
                "epoch": epoch,
            }
            for variable, (centre, width) in centres.items():
                for quantile, offset in zip(
                    ("q05", "q25", "q50", "q75", "q95"), (-1.6, -0.7, 0, 0.7, 1.6), strict=True
                ):
                    value = (
                        centre * (1 + 0.03 * epoch)
                        + offset * width * (1 + 0.05 * epoch)
                        + noise.normal(0, 0.02 * width)
                    )
                    rows.append(
                        {**same, "variable": variable, "statistic": quantile, "value": value}
                    )
            if cell.weights != "baseline":
                saturated = 0.5 * np.exp(-epoch) + 0.05 * noise.random()
                rows.append({**same, "variable": "z", "statistic": "saturated", "value": saturated})
            rows.append(
                {
                    **same,
                    "variable": "W",
                    "statistic": "spectral_radius",
                    "value": 1 + 0.2 * np.log1p(epoch),
                }
            )
            rows.append(
                {**same, "variable": "W", "statistic": "ei_ratio", "value": np.exp(-0.1 * epoch)}
            )
    return pd.DataFrame(rows)


def study(seeds=(0, 1, 2), extra=()) -> select.Frames:
    """The runs of a whole study: nine cells in five windows, `dale` in one, a learning-rate scan,
    controls.
    """
    parts = [
        runs(NINE, seeds=seeds),
        runs(["dale"], ["8/4"], seeds),
        scan(),
        *extra,
    ]
    parts += [runs(["cb", "dale_cb"], ["8/4"], seeds, initialisation="notes")]
    parts += [runs(["stp_dale_cb", "gru"], ["8/4"], seeds, **change) for change in CONTROLS]
    parts += [runs(LONGER, ["8/4"], seeds, epochs=20)]
    every = pd.concat(parts, ignore_index=True)
    main = select.comparison(every)
    main = main[main["window"] == "8/4"]
    made = {
        "commit": COMMIT,
        "python": "3.11.2",
        "numpy": "2.3.0",
        "backend": "fast",
        "fingerprint": {"torch": "2.13.0"},
    }
    return select.Frames(every, curves(main), history(main), dict.fromkeys(every["key"], made))


def ladders(seeds=(1, 2, 3)) -> pd.DataFrame:
    """Every rung of all ladders, each change 1.5 points better than without."""
    parts = [runs(TEN, ["8/4"], seeds)]
    parts += [runs(["dale_cb"], ["8/4"], seeds, initialisation="notes")]
    for ladder in select.LADDERS.values():
        chain = [dict(ladder.changes[:n]) for n in range(2, len(ladder.changes))]
        alone = [{option: value} for option, value in ladder.changes]
        back = [dict(set(ladder.changes) - {change}) for change in ladder.changes]
        for options in (*chain, *alone, *(back[:-1] if ladder.end else [dict(ladder.changes)])):
            parts.append(_optional(ladder.cells[-1], options, seeds, ladder.initialisation))
    parts += [_optional("dale_cb_softplus", {}, seeds)]
    parts += [_optional("stp_dale_cb", dict(select.REPAIRED), seeds)]
    parts += [_optional("cb_gru_bridge", {"read": "rate"}, seeds)]
    return pd.concat(parts, ignore_index=True)


def _optional(name, options, seeds, initialisation="balanced"):
    written = json.dumps(options, sort_keys=True)
    made = runs([name], ["8/4"], seeds, options=written, initialisation=initialisation)
    return made.assign(test_accuracy=made["test_accuracy"] + 0.015 * len(options))


def repaired_design(seeds=(1, 2, 3)) -> pd.DataFrame:
    """The cells of the design W x STP as they are and with all repairs."""
    repaired = dict(select.REPAIRED)
    kinds = [(name, options) for options in ({}, repaired) for name in cells.DESIGN]
    return pd.concat([_optional(*kind, seeds) for kind in kinds], ignore_index=True)


def delays(seeds=(0, 1, 2), waits=(0, 128, 512)) -> pd.DataFrame:
    """Runs that wait before they answer, of four cells as they are and repaired, one of them also
    with slow plasticity: 5 points are lost with every delay, 2 gained by plasticity.
    """
    repaired, parts = dict(select.REPAIRED), []
    kinds = [(name, {}) for name in ("gru", "cb", "stp", "dale_cb")]
    kinds += [(name, repaired) for name in ("cb", "stp")] + [("stp", {"stp_dt": 0.1})]
    for name, options in kinds:
        text = json.dumps(options, sort_keys=True)
        tasks = [{"delay": delay} for delay in waits] + [{"delay": waits[-1], "first_rows": 8}]
        for number, task in enumerate(tasks):
            own = runs([name], ["16/8"], seeds, options=text, **task)
            level = 0.45 - 0.05 * number + 0.02 * (name == "stp")
            parts.append(own.assign(test_accuracy=level + 0.001 * own["seed"]))
    return pd.concat(parts, ignore_index=True)


def few(names=cells.DESIGN) -> select.Frames:
    """One seed of some cells at one window."""
    return only(runs(names, ["8/4"], [0]))


def only(own) -> select.Frames:
    """Some runs with their curves, without history."""
    nothing = history(own.iloc[:0]).reindex(columns=["key", "variable", "statistic"])
    return select.Frames(own, curves(own), nothing, {})


def trace(steps=64, hidden=24, stp=True, seed=0) -> dict:
    """One image's recording, variable -> (time, hidden), with z inside [0, 0.1]."""
    noise = np.random.default_rng(seed)
    slow = np.linspace(-3, 1.5, hidden)
    drive = np.cumsum(noise.normal(0, 0.3, (steps, 1)), 0) + noise.normal(0, 0.4, (steps, hidden))
    found = {"z": 0.1 / (1 + np.exp(-slow - drive)), "v": drive - drive.mean()}
    found["r"] = 1 / (1 + np.exp(-found["v"]))
    if stp:
        found["X"] = 1 - 0.6 * (1 - np.exp(-np.arange(steps)[:, None] / 12)) * (
            0.6 + 0.4 * found["r"]
        )
        found["U"] = 0.4 + 0.3 * (1 - np.exp(-np.arange(steps)[:, None] / 9)) * found["r"]
    return found


def _run(name, shape, seed, changed):
    length, stride = map(int, shape.split("/"))
    same = dict(
        dataset="cifar10",
        permuted=False,
        last_rows=None,
        data_seed=0,
        input_length=length,
        stride=stride,
        scan="raster",
    )
    same |= (
        dict(
            hidden_size=48,
            initialisation="balanced",
            options="{}",
            epochs=10,
            batch_size=40,
            learning_rate=0.003,
        )
        | changed
    )
    identity = json.dumps(
        [name, shape, seed, {k: v for k, v in same.items()}], sort_keys=True, default=str
    )
    noise = np.random.default_rng(zlib.crc32(identity.encode()))
    pairing = np.random.default_rng(seed).normal(0, 0.008)  # what the cells of one seed share
    label = cells.get(name).label if name in cells.CELLS else name
    accuracy = (
        LEVEL.get(name, 0.44)
        + 0.012 * np.log2(length / 8)
        - 0.008 * (stride == 2)
        + pairing
        + noise.normal(0, 0.008)
    )
    hidden = same["hidden_size"]
    matrices = {"rnn": 1, "gru": 3, "dale_cb": 3, "stp_dale_cb": 3}.get(name, 2)
    row = {
        "key": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "state": "DONE",
        "first_rows": None,
        "delay": 0,
        "source": "",
        "clip_norm": 1.0,
        "validations_per_epoch": 2,
        **same,
        "convention": ", ".join(windows.conventions(length, stride)),
        "window": shape,
        "sequence_length": (1024 - length) // stride + 1,
        "image_shape": (3, 32, 32),
        "class_names": tuple("0123456789"),
        "cell": name,
        "label": label,
        "seed": seed,
        "best_epoch": same["epochs"] - 0.5,
        "validation_accuracy": accuracy + noise.normal(0.004, 0.003),
        "test_accuracy": accuracy,
        "test_loss": 2.3 - 1.6 * accuracy,
        "parameters": hidden * hidden * matrices + hidden * 40,
        "seconds": 300.0,
        "ms_per_step": 8.0 + 4.0 * ("stp" in name) + noise.random(),
        "backend": "fast",
        "progress": 1.0,
        "message": "",
    }
    # Those of the store, all of them and no other.
    return {column: row.pop(column) for column in ("key", "state", *CONFIGURATION[1:], *RESULTS)}
