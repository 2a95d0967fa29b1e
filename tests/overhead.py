"""What the engine of a sweep costs: wall time of all slots beyond the training time of the runs, as
a share of the latter.

``python tests/overhead.py`` trains 60 runs of about 30 s each on 2 slots (a quarter of an hour) in
a temporary results folder.
"""

import argparse
import tempfile
import time
from pathlib import Path

from lib.config import CellSpec, RunConfig, Training, Window
from lib.runs import sweep
from lib.runs.store import Store


def configuration(seed, epochs):
    return RunConfig(
        window=Window(2, 1), cell=CellSpec("cb"), training=Training(epochs=epochs), seed=seed
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--slots", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # Compiles once, and tells how many epochs take the wanted time beside as many others as
        # there are slots.
        trial = sweep.sweep(
            [configuration(seed, 20) for seed in range(options.slots)],
            Store(Path(folder) / "trial"),
            slots=options.slots,
        )
        epochs = max(1, round(20 * options.seconds / trial.seconds.mean()))
        start = time.perf_counter()
        runs = sweep.sweep(
            [configuration(seed, epochs) for seed in range(options.runs)],
            Store(folder),
            slots=options.slots,
        )
        wall = time.perf_counter() - start
    trained = runs.seconds.sum()
    print(
        f"{len(runs)} runs of {runs.seconds.mean():.1f} s ({epochs} epochs) on "
        f"{options.slots} slots: {wall:.0f} s of wall time, "
        f"{trained:.0f} s of training, overhead {wall * options.slots / trained - 1:.1%}"
    )


if __name__ == "__main__":
    main()
