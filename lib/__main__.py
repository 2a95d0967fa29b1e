"""The command line: ``python -m lib COMMAND --help``. It parses and delegates."""

import contextlib
import json
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from lib import paths

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _option(text, *names):
    return typer.Option(*names, help=text, parser=paths.expanded, metavar="PATH")


Data = Annotated[
    Path | None, _option("Folder of the image data sets (default: data/, or WORKBOOK_DATA).")
]
DataFrom = Annotated[
    Path | None, _option("A folder of your own images, one folder a class, or train/ and test/.")
]
ImageSize = Annotated[
    int | None, typer.Option(help="Resize the images of --data-from to so many rows and columns.")
]
Results = Annotated[
    Path | None, _option("Folder of the results (default: results/, or WORKBOOK_RESULTS).")
]
Cells = Annotated[
    str, typer.Option(help="all (the nine), design (W x STP), or names joined by commas.")
]
CellsFrom = Annotated[Path | None, _option("A Python file that registers your own cells.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or one GPU such as cuda:0.")]
Backend = Annotated[str, typer.Option(help="auto, reference or fast.")]
Slots = Annotated[int | None, typer.Option(help="Runs side by side (default: one a core).")]
Where = Annotated[str, typer.Option(help="local, slurm, or the address of a Dask scheduler.")]
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
    dataset: Annotated[
        str | None,
        typer.Option(help="digits (embedded, the default), mnist, cifar10, or one of your own."),
    ] = None,
    cells: Cells = "all",
    input_length: Annotated[
        str, typer.Option(help="Pixels a step reads; several joined by commas.")
    ] = "8",
    stride: Annotated[
        str,
        typer.Option(help="Pixels between steps, or fixed (4) or half; several joined by commas."),
    ] = "4",
    seeds: Annotated[
        str, typer.Option(help="A number n for seeds 0 to n - 1, or a list such as 0,4.")
    ] = "3",
    epochs: int = 20,
    hidden_size: int = 48,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="For all cells (default: by cell on the digits, from a scan; else 0.01)."
        ),
    ] = None,
    batch_size: int = 40,
    initialisation: str = "balanced",
    permuted: Annotated[
        bool, typer.Option("--permuted", help="Permute the pixels, the same way in every image.")
    ] = False,
    last_rows: Annotated[
        int | None, typer.Option(help="Keep only the last rows of every image.")
    ] = None,
    cells_from: CellsFrom = None,
    data: Data = None,
    data_from: DataFrom = None,
    image_size: ImageSize = None,
    results: Results = None,
    device: Device = "cpu",
    backend: Backend = "auto",
    slots: Slots = None,
    from_: Annotated[
        Path | None,
        _option("Only rebuild figures and tables from the runs in this folder.", "--from"),
    ] = None,
):
    """Train the cells, or reuse their finished runs, and write curves, bars and tables."""
    from lib.figures import paper
    from lib.runs import sweep
    from lib.runs.store import Store

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
        input_length=[_whole("input-length", part) for part in input_length.split(",")],
        stride=[
            int(part) if part.strip().lstrip("-").isdigit() else part.strip()
            for part in stride.split(",")
        ],
        cells=cells,
        hidden_size=hidden_size,
        initialisation=initialisation,
        seeds=_seeds(seeds),
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
    )
    store = Store(results)
    sweep.load_or_run(
        configs, store, confirm=True, data=data, device=device, backend=backend, slots=slots
    )
    _figures(_collect(store, key=[config.key() for config in configs]), store.root)


@app.command()
def run(
    config: Annotated[
        Path,
        typer.Argument(
            help="JSON file of one configuration.", parser=paths.expanded, metavar="PATH"
        ),
    ],
    data: Data = None,
    results: Results = None,
    device: Device = "cpu",
    backend: Backend = "auto",
    threads: int = 1,
):
    """Train one configuration in this process; a second call resumes or reuses it."""
    from lib.explore import live
    from lib.runs import attempt

    try:
        configs = [json.loads(config.read_text(encoding="utf-8-sig"))]
    except (OSError, ValueError) as error:
        raise ValueError(f"{config} is no configuration: {error}.") from error
    request = {
        "configs": configs,
        "data": data,
        "results": results,
        "device": device,
        "backend": backend,
        "threads": threads,
    }
    raise typer.Exit(attempt.run_request(request, [live.Live()]))


@app.command(name="sweep")
def sweep_(
    grid: Annotated[
        Path,
        typer.Argument(
            help="YAML file, such as notebooks/grids/smoke.yaml.",
            parser=paths.expanded,
            metavar="PATH",
        ),
    ],
    where: Where = "local",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, and how long.")
    ] = False,
    cluster: Annotated[
        Path | None, _option("YAML file of SLURM settings, such as notebooks/grids/slurm.yaml.")
    ] = None,
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
    from lib.runs import sweep
    from lib.runs.store import Store

    _own_cells(cells_from)
    data, _ = _own_data(data_from, image_size, data)
    configs, store = sweep.read_grid(grid), Store(results)
    settings = sweep.read_cluster(cluster) if cluster else None
    if not dry_run:
        sweep.check(configs, where, device, slots=slots, cluster=settings)
    print(sweep.preview(configs, store, slots, device))
    if not dry_run:
        runs = sweep.sweep(
            configs, store, where=where, data=data, device=device, slots=slots, cluster=settings
        )
        print(runs.state.value_counts().to_string())
        raise typer.Exit(int(not runs.state.isin(["DONE", "DIVERGED"]).all()))


@app.command()
def status(
    results: Results = None,
    all_: Annotated[bool, typer.Option("--all", help="One line a run, not a group.")] = False,
):
    """How far the runs are, and their accuracies, by group."""
    from lib.runs import sweep
    from lib.runs.store import Store

    store = Store(results)
    shown = sweep.status(store=store) if all_ else sweep.overview(store)
    print(shown.to_string(index=False) if len(shown) else f"No runs under {store.root}.")
    if not all_:
        _say(store.damaged().values(), "DAMAGED: ")


@app.command()
def cancel(key: str, results: Results = None):
    """Stop a run; its state stays saved."""
    from lib.runs import sweep
    from lib.runs.store import Store

    sweep.cancel(key, Store(results))


@app.command()
def export(results: Results = None, journal: str = "report"):
    """Write results/overleaf/ and results/overleaf.zip from the finished runs."""
    from lib.figures import paper
    from lib.runs import files
    from lib.runs.store import Store

    store = Store(results)
    with files.staged(store.root) as folder:
        path, left_out = paper.overleaf(_collect(store), folder, journal=journal)
    _say(left_out)
    print(f"Upload {store.root / path.name} to Overleaf.")


@app.command()
def report(results: Results = None):
    """Write results/report.html: the interactive comparison in one file."""
    from lib.figures import report
    from lib.runs import files
    from lib.runs.store import Store

    store = Store(results)
    with files.staged(store.root) as folder:
        path = report.write(_collect(store), folder / "report.html")
    print(f"Open {store.root / path.name} in a browser.")


def _own_cells(path):
    if path is not None:
        from lib import cells

        try:
            text = path.expanduser().read_text(encoding="utf-8-sig")
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


def _whole(name, text):
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"--{name} is {text!r}, but must be a whole number, or several joined by commas."
        ) from None


def _seeds(text):
    parts = [_whole("seeds", part) for part in text.split(",") if part]
    if len(parts) == 1 and "," not in text:
        if parts[0] < 1:
            raise ValueError(
                f"--seeds is {text}, but must be a number of seeds from 1 on, "
                "or a list such as 0,4."
            )
        return list(range(parts[0]))
    return parts


def _collect(store, **filters):
    """Frames of the runs; says what is left out because it is damaged, and ends if that is all."""
    from lib.figures import select
    from lib.runs.files import StoreError

    frames = select.collect(store, **filters)
    damaged = list(store.damaged(**filters).values())
    if damaged and frames.runs.empty:
        raise StoreError(damaged[0])
    _say(damaged)
    return frames


def _figures(frames, out):
    """Write figures and tables; sentences on what the runs do not allow, for those who want all."""
    from lib.figures import paper
    from lib.runs import files

    with files.staged(out) as folder:
        left_out = paper.write(frames, folder)
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
    from lib.runs.files import StoreError

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stream that somebody put in their place
            stream.reconfigure(errors="replace")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        app()
    except ValueError as error:
        code, said = 2, error
    except (StoreError, OSError) as error:
        code, said = 3, error
    except RuntimeError as error:
        code, said = 1, error
    print(said, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
