"""The command line: ``python -m lib COMMAND --help``. It parses and delegates."""

import contextlib
import json
import re
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from lib import checks, files, paths
from lib.config import RunConfig
from lib.files import StoreError
from lib.runs import attempt, sweep
from lib.runs.status import FINISHED
from lib.runs.store import Store

# torch, the cells and the figures are imported where they are needed.

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _option(kind, text, *names):
    return Annotated[kind, typer.Option(*names, help=text)]


def _path(text, *names, kind=typer.Option):
    return Annotated[Path | None, kind(*names, help=text, parser=paths.expanded, metavar="PATH")]


Data = _path("Folder of the image data sets (default: data/, or WORKBOOK_DATA).")
DataFrom = _path("A folder of your own images, one folder a class, or train/ and test/.")
ImageSize = _option(int | None, "Resize images of --data-from to so many rows and columns.")
Results = _path("Folder of the results (default: results/, or WORKBOOK_RESULTS).")
CellsFrom = _path("A Python file that registers your own cells.")
Device = _option(str, "cpu, cuda, or one GPU such as cuda:0.")
Backend = _option(str, "auto, reference or fast.")
Slots = _option(int | None, "Runs side by side (default: one a core).")
START = """Train, watch, and read what came out:

  python -m lib compare   train the nine cells on the embedded digits, and draw them
  python -m lib status    how far every run is
  python -m lib report    results/report.html, to click through

python -m lib --help lists all commands, python -m lib COMMAND --help their options."""


@app.callback(invoke_without_command=True)
def start(context: typer.Context):
    """Train recurrent cells, compare them, and write figures and tables."""
    if context.invoked_subcommand is None:
        print(START)


@app.command()
def compare(
    dataset: _option(str | None, "digits (the default), mnist, cifar10, or your own.") = None,
    cells: _option(str, "all (the nine), design (W x STP), or names joined by commas.") = "all",
    input_length: _option(str, "Pixels a step reads; several joined by commas.") = "8",
    stride: _option(str, "Pixels between steps, fixed (4) or half; joined by commas.") = "4",
    seeds: _option(str, "A number n for seeds 0 to n - 1, or a list such as 0,4.") = "3",
    epochs: int = 20,
    hidden_size: int = 48,
    learning_rate: _option(
        float | None, "For all cells (default: by cell on the digits, from a scan; else 0.01)."
    ) = None,
    batch_size: int = 40,
    initialisation: str = "balanced",
    permuted: _option(bool, "Permute the pixels, the same way always.", "--permuted") = False,
    last_rows: _option(int | None, "Keep only the last rows of every image.") = None,
    cells_from: CellsFrom = None,
    data: Data = None,
    data_from: DataFrom = None,
    image_size: ImageSize = None,
    results: Results = None,
    device: Device = "cpu",
    backend: Backend = "auto",
    slots: Slots = None,
    from_: _path("Only rebuild figures and tables from the runs in this folder.", "--from") = None,
):
    """Train the cells, or reuse their finished runs, and write curves, bars and tables."""
    from lib.figures import paper

    if from_ is not None:
        frames = _collect(Store(from_))
        _say(_figures(frames, from_))
        print(f"Findings: {paper.write_readme(frames, from_)}")
        return
    _own_cells(cells_from)
    data, dataset = _own_data(data_from, image_size, data, dataset)
    configs = sweep.grid(
        dataset=dataset,
        permuted=permuted,
        last_rows=last_rows,
        input_length=_list(input_length),
        stride=_list(stride),
        cells=cells,
        hidden_size=hidden_size,
        initialisation=initialisation,
        seeds=_seeds(seeds),
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
    )
    store = Store(results)
    place = {"data": data, "device": device, "slots": slots}
    sweep.load_or_run(configs, store, confirm=True, backend=backend, **place)
    _figures(_collect(store, key=[config.key() for config in configs]), store.root)


@app.command()
def run(
    config: _path("JSON file of one configuration.", kind=typer.Argument),
    data: Data = None,
    results: Results = None,
    device: Device = "cpu",
    backend: Backend = "auto",
    threads: int = 1,
):
    """Train one configuration in this process; a second call resumes or reuses it."""
    from lib import train
    from lib.explore import live

    try:
        values = json.loads(config.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{config} is no configuration: {error}.") from error
    checks.whole("--threads", threads, 1)
    configs = (train.plain(RunConfig.from_dict(values)).to_dict(),)
    request = attempt.Request(configs, results, data, device, backend, threads)
    raise typer.Exit(attempt.run_request(request, [live.Live()]))


@app.command(name="sweep")
def sweep_(
    grid: _path("YAML file, such as notebooks/grids/smoke.yaml.", kind=typer.Argument),
    where: _option(str, "local, slurm, or the address of a Dask scheduler.") = "local",
    dry_run: _option(bool, "Say what would run, and how long.", "--dry-run") = False,
    cluster: _path("YAML file of SLURM settings, such as notebooks/grids/slurm.yaml.") = None,
    cells_from: CellsFrom = None,
    data: Data = None,
    data_from: DataFrom = None,
    image_size: ImageSize = None,
    results: Results = None,
    device: Device = "cpu",
    slots: Slots = None,
):
    """Train every run of a grid that has no result yet; what is interrupted goes on at the next
    call.
    """
    _own_cells(cells_from)
    data, _ = _own_data(data_from, image_size, data)
    configs, store = sweep.read_grid(grid), Store(results)
    settings = sweep.read_cluster(cluster) if cluster else None
    sweep.check(configs, where, device, slots=slots, cluster=settings)
    print(sweep.preview(configs, store, slots, device))
    if not dry_run:
        runs = sweep.sweep(
            configs, store, where=where, data=data, device=device, slots=slots, cluster=settings
        )
        print(runs.state.value_counts().to_string())
        raise typer.Exit(int(not runs.state.isin(FINISHED).all()))


@app.command()
def status(
    results: Results = None,
    all_: _option(bool, "One line a run, not a group.", "--all") = False,
):
    """How far the runs are, and their accuracies, by group."""
    store = Store(results)
    shown = sweep.status(store=store) if all_ else sweep.overview(store)
    print(shown.to_string(index=False) if len(shown) else f"No runs under {store.root}.")
    if not all_:
        _say(store.damaged().values(), "DAMAGED: ")


@app.command()
def cancel(key: str, results: Results = None):
    """Stop a run; its state stays saved."""
    sweep.cancel(key, Store(results))


@app.command()
def export(results: Results = None, journal: str = "report"):
    """Write results/overleaf/ and results/overleaf.zip from the finished runs."""
    from lib.figures import paper

    store = Store(results)
    with files.staged(store.root) as folder:
        path, left_out = paper.overleaf(_collect(store), folder, journal=journal)
    _say(left_out)
    print(f"Upload {store.root / path.name} to Overleaf.")


@app.command()
def report(results: Results = None):
    """Write results/report.html: the interactive comparison in one file."""
    from lib.figures import report

    store = Store(results)
    with files.staged(store.root) as folder:
        path = report.write(_collect(store), folder / "report.html")
    print(f"Open {store.root / path.name} in a browser.")


@app.command()
def lesions(results: Results = None, data: Data = None):
    """Measure what stored networks lose when one signal is replaced, for tables of `compare`."""
    from lib.runs import audit

    print(f"Measured: {audit.lesions(Store(results), data)}")


def _own_cells(path):
    if path is not None:
        from lib import cells

        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(
                f"The file of your own cells, {path}, cannot be read: {reason}."
            ) from error
        cells.register_source(text)


def _own_data(folder, size, data, dataset=None):
    """Folder of the data and name of the data set; an image folder is registered."""
    if folder is None:
        if size is not None:
            raise ValueError("--image-size is for the images of --data-from; name their folder.")
        return data, dataset or "digits"
    if data is not None:
        raise ValueError("--data and --data-from name two folders of data; give one of them.")
    from lib import folders

    return folder, folders.register_folder(folder, dataset, size)


def _list(text):
    """Whole numbers, and words as they are; what they may be is for the grid to say."""
    parts = [part.strip() for part in text.split(",")]
    return [int(part) if re.fullmatch(r"-?\d+", part) else part for part in parts if part]


def _seeds(text):
    parts = _list(text)
    if "," in text or not parts:
        return parts
    checks.whole("--seeds", parts[0], 1, "give their number, or a list such as 0,4")
    return list(range(parts[0]))


def _collect(store, **filters):
    """Frames of the runs; says what is left out because it is damaged, and ends if that is all."""
    from lib.figures import select

    frames = select.collect(store, **filters)
    damaged = list(store.damaged(**filters).values())
    if damaged and frames.runs.empty:
        raise StoreError(damaged[0])
    _say(damaged)
    return frames


def _figures(frames, out):
    """Write figures and tables; sentences on what the runs do not allow, for those who want all."""
    from lib.figures import paper

    left_out = paper.write(frames, out)
    print((out / "tables" / "summary.md").read_text(encoding="utf-8"))
    print(f"Figures: {out / 'figures'}  Tables: {out / 'tables'}")
    return left_out


def _say(sentences, before="Left out: "):
    for sentence in sentences:
        print(before + sentence)


def _stop(number, frame):
    raise SystemExit("Stopped. Running trainings are saved; the same command goes on from there.")


def main():
    """Run the command line; a refused value is one sentence and exit code 2, an unusable results
    folder 3.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stream that somebody put in their place
            stream.reconfigure(errors="replace")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        app()
    except ValueError as error:
        code, said = attempt.INVALID, error
    except (StoreError, OSError) as error:
        code, said = attempt.UNUSABLE, error
    except RuntimeError as error:
        code, said = attempt.FAILED, error
    print(said, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
