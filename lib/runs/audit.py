"""What stored weights show: whether trained cells keep their constraints and where gate and voltage
stand; what accuracy loses where one signal is replaced.
"""

import math

import pandas as pd

from lib import files, memory
from lib.cells.registry import registered

STATES = ("initial", "best")
MEASURED = (("W", "spectral_radius"), ("z", "saturated"), ("v", "outside"))  # while it trained


def constraints(store, keys):
    """Audit finished runs at initialisation and at their best validation (ValueError: a run's cell
    has no conductances K).

    Columns of the frame are label, seed, weights ("initial" or "best"), K_min, sign_violations
    (weights of W against Dale's sign; nan without one), ei_ratio (sum of the excitatory over that
    of the inhibitory weights), spectral_radius, and of 64 validation images the shares 0..1
    ``saturated`` (z > 0.95 z_max) and ``outside`` (v outside [v_i, v_e]; nan without reversal
    potentials).
    """
    rows = []
    for run in store.runs(key=list(keys)).itertuples():
        history = store.history(key=run.key)
        for which, epoch in zip(STATES, (0.0, run.best_epoch), strict=True):
            cell = store.load(run.key, which).cell
            values = {name: value.detach() for name, value in cell.constrained().items()}
            if "K" not in values:
                raise ValueError(
                    f"Run {run.key} is of {run.label}, which has no conductances K; "
                    "audit runs of the conductance family."
                )
            W, signs = values["W"], cell.signs
            now = history[history["epoch"] == epoch].set_index(["variable", "statistic"])["value"]
            wrong = math.nan if signs is None else float((W * signs < 0).sum())
            row = {
                "label": run.label,
                "seed": run.seed,
                "weights": which,
                "K_min": values["K"].min().item(),
                "sign_violations": wrong,
                "ei_ratio": (W.clamp(min=0).sum() / -W.clamp(max=0).sum()).item(),
            }
            rows.append(row | {name: now.get((of, name), math.nan) for of, name in MEASURED})
    return pd.DataFrame(rows)


def lesions(store, data=None, images=1000):
    """Measure what every finished run whose weights are stored loses by its `memory.lesions`, on so
    many test images of the folder ``data``; what was measured before is kept. Returns the path of
    the file, below the folder of the store, that `memory.stored` reads.
    """
    from lib import datasets

    path, loaded, measured = store.root / memory.FILE, {}, [memory.stored(store.root)]
    runs = store.runs(state="DONE")
    for key in runs.loc[~runs["key"].isin(measured[0]["key"]), "key"]:
        try:
            model = store.load(key)
        except ValueError:  # its weights were not packed
            continue
        config = store.config(key)
        if config.task not in loaded:
            with registered(config.task):
                loaded[config.task] = datasets.load(config.task, data)
        found = memory.drops(model, loaded[config.task], config.window, images)
        measured.append(found.assign(key=key))
        files.write(path, files.to_parquet(pd.concat(measured).to_dict("list"), memory.TABLE))
    return path
