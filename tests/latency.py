"""Times what a reader waits for: from a changed control to the redrawn plots, in a real browser.

python tests/latency.py [RESULTS]      RESULTS: a folder of results, by default results/cifar10
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parent))
import test_browser as browser
from test_browser import control, jupyterlab, opened

from lib import paths

REPEATS = 5
# From the event that a reader's choice makes to the last redraw of a plot, and how often each plot
# was redrawn; over when nothing was redrawn for two seconds.
WATCH = """() => {
    window.redrawn = [];
    for (const plot of document.querySelectorAll('.js-plotly-plot')) {
        plot.watched ??= plot.on(
            'plotly_afterplot', () => window.redrawn.push([performance.now(), plot])) ?? true;
    }
}"""
CHANGE = """(select, value) => {
    window.redrawn = [];
    select.selectedIndex = [...select.options].findIndex(option => option.label === value);
    window.changed = performance.now();
    select.dispatchEvent(new Event('change', {bubbles: true}));
}"""
OVER = """() => performance.now() - Math.max(window.changed + 4000,
    ...window.redrawn.map(([when]) => when)) > 1500"""
READ = """() => {
    const counts = new Map();
    for (const [, plot] of window.redrawn) counts.set(plot, (counts.get(plot) ?? 0) + 1);
    return [Math.max(...window.redrawn.map(([when]) => when)) - window.changed,
            Math.max(...counts.values())];
}"""


def choose(page, label, option):
    """Milliseconds to the last redraw after a choice, and redraws of one plot."""
    page.evaluate(WATCH)
    control(page, label).evaluate(CHANGE, option)
    page.wait_for_function(OVER)
    return page.evaluate(READ)


def options(page, label):
    """What a control offers, the present choice first."""
    select = control(page, label)
    found = select.evaluate("select => [...select.options].map(option => option.label)")
    chosen = select.evaluate("select => select.selectedOptions[0].label")
    return [chosen, *(option for option in found if option != chosen)]


def measure(page, name, label, choices):
    """The first look at each choice, then what was seen before."""
    first = [choose(page, label, choice) for choice in choices[1:]]
    again = [choose(page, label, choices[k % len(choices)]) for k in range(REPEATS)]
    redraws = max(count for _, count in [*first, *again])
    shown = [f"{median(ms for ms, _ in times):.0f} ms" for times in (first, again)]
    print(f"| {name}, {label} | {shown[0]} | {shown[1]} | {redraws} |", flush=True)


def main():
    folder = Path(tempfile.mkdtemp())
    source = Path(sys.argv[1]) if sys.argv[1:] else paths.project_root() / "results" / "cifar10"
    shutil.copytree(source, folder / "results" / source.name)
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    print("| change | first look | seen before | redraws |\n| --- | --- | --- | --- |")
    with jupyterlab(folder) as url, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser.CHROMIUM, args=flags)
        with opened(chromium, url, "board") as (page, _):
            tasks = [task for task in options(page, "Data set") if re.search("permuted|rows", task)]
            measure(page, "board", "Data set", ["cifar10", *tasks[:2]])
            choose(page, "Data set", "cifar10")
            for label in ("Metric", "Results", "Highlight", "Input length"):
                measure(page, "board", label, options(page, label)[:3])
        if (paths.data_dir() / "cifar-10-batches-py").is_dir():
            with opened(chromium, url, "recording") as (page, _):
                for label in ("Variable", "Show", "Image"):
                    measure(page, "recording", label, options(page, label)[:3])
                measure(page, "recording", "Cell", options(page, "Cell")[:2])
        else:
            print(f"A recording needs CIFAR-10, which is not in {paths.data_dir()}: not timed.")
        chromium.close()
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
