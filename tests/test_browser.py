"""The widget notebooks in a real browser: JupyterLab, driven by Playwright in Debian's Chromium.

Notebooks run as committed, but with the shrunken settings of their metadata, on a small store that
holds three windows.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nbformat
import pytest

from lib import paths
from lib.runs import attempt
from lib.runs.grid import grid
from lib.runs.store import Store

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="Chromium is not installed (Debian package chromium)"
    ),
]

NOTEBOOKS = paths.project_root() / "notebooks"
ARTIFACTS = Path(__file__).parent / "artifacts"
CELLS = ("cb", "dale_cb", "stp_dale_cb")
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
    "@jupyterlab/notebook-extension/tracker": {
        "windowingMode": "none",
        "autoStartDefaultKernel": True,
    },
}
IDLE = """() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel
    ?.status === 'idle'"""
DRAWN = """() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => ({
    traces: plot._fullData.map(({type, name, fill, x, y, z, source}) => ({
        type, name, source, fill: fill ?? 'none', x: [...x ?? []], y: [...y ?? []],
        z: [...z ?? []].map(row => [...row])})),
    x: plot._fullLayout.xaxis.range, y: plot._fullLayout.yaxis.range,
    notes: plot._fullLayout.annotations.map(note => note.text),
    shapes: plot._fullLayout.shapes.map(({x0, y0}) => [x0, y0]),
    width: plot.offsetWidth, ground: plot._fullLayout.paper_bgcolor,
    ink: plot._fullLayout.font.color,
}))"""
PAGES = {  # notebooks of these tests alone
    "board": "explore.Board(store)",
    "saved": "explore.Board(store)",  # with what it shows, of a kernel that is gone afterwards
    "recording": "explore.TraceExplorer(store, cell='STPDaleCB', input_length=8)",
    "choice": """from lib.runs.grid import grid
configs = grid(cells=["cb", "gru"], hidden_size=8, epochs=1, seeds=[0])
choice = explore.WindowControls(store, configs)
choice.widget
explore.Board(choice.cache, choice)""",
    "again": """choice = explore.WindowControls(store)
choice.listen(lambda: setattr(choice.message, "value", f"{len(choice._listeners)} listen"))
choice.widget
explore.Board(choice.cache, choice)""",
    "long": """from lib.runs.grid import grid
choice = explore.WindowControls(store, grid(cells=["cb"], hidden_size=8, epochs=900, seeds=[0]))
choice.widget
explore.Board(choice.cache, choice)""",
    "live": """from lib.runs.grid import grid
runs = explore.load_or_run(grid(cells=["cb"], hidden_size=8, epochs=2, seeds=[3]), store)""",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    for length, stride in ((8, 4), (4, 4), (4, 2)):
        window = {"input_length": length, "stride": stride}
        for config in grid(**window, cells=CELLS, hidden_size=8, epochs=1, seeds=[0]):
            attempt.execute(config, Store(folder / "results"), backend="reference")
    with jupyterlab(folder) as url:
        yield url


@contextmanager
def jupyterlab(folder, theme="JupyterLab Light"):
    """A JupyterLab on shrunken copies of the notebooks; gives its address."""
    settings = {**SETTINGS, "@jupyterlab/apputils-extension/themes": {"theme": theme}}
    for name, values in settings.items():
        path = folder / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    (folder / "notebooks").mkdir(exist_ok=True)
    for path in NOTEBOOKS.glob("*.ipynb"):
        nbformat.write(_shrunk(nbformat.read(path, 4)), folder / "notebooks" / path.name)
    start = "from lib import explore\nfrom lib.runs.store import Store\nstore = Store()\n"
    for name, source in PAGES.items():
        cells = [nbformat.v4.new_code_cell(part) for part in (start, *_parts(source))]
        nbformat.write(
            nbformat.v4.new_notebook(cells=cells), folder / "notebooks" / f"{name}.ipynb"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = {
        f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "RUNTIME", "DATA")
    }
    places |= {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
    }
    places |= {
        "IPYTHONDIR": str(folder / "ipython"),
        "WORKBOOK_RESULTS": str(folder / "results"),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--expose-app-in-browser",
        f"--ServerApp.port={port}",
    ]
    command += [
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder / 'notebooks'}",
    ]
    with open(folder / "lab.log", "wb") as log:
        lab = subprocess.Popen(command, env={**os.environ, **places}, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(lambda: urllib.request.urlopen(f"{url}/api/status", timeout=5).status == 200, 60)
        yield url
    finally:
        lab.terminate()
        try:
            lab.wait(20)
        except subprocess.TimeoutExpired:
            lab.kill()
            lab.wait()


def _parts(source):
    """Cells: a line that shows a widget ends one."""
    *above, last = source.rsplit("\nchoice.widget\n", 1)
    return [*(f"{part}\nchoice.widget" for part in above), last]


def _shrunk(notebook):
    """The notebook with the settings that its metadata names for tests."""
    for cell in notebook.cells:
        for name, value in cell.metadata.get("nbmake", {}).get("mock", {}).items():
            cell.source += f"\n{name} = {value!r}"
    return notebook


def _wait(condition, seconds):
    end = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        if time.monotonic() > end:
            raise TimeoutError(f"Not ready within {seconds} s.")
        time.sleep(0.2)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@contextmanager
def opened(browser, url, name, width=1280, height=1000, run=True):
    """A notebook, run from top to bottom: its page, and the errors its console showed."""
    page = browser.new_page(viewport={"width": width, "height": height})
    errors = []
    page.on(
        "console",
        lambda message: errors.append(message.text) if message.type == "error" else None,
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(120_000)
    page.goto(f"{url}/lab/tree/{name}.ipynb?reset")
    page.wait_for_function(IDLE)  # the toolbar says idle before there is a kernel
    page.wait_for_timeout(500)
    if run:
        run_all(page)
    page.wait_for_selector(".js-plotly-plot .main-svg")
    yield page, errors
    if run:  # boards keep their window as long as the kernel lives
        page.evaluate("window.jupyterapp.serviceManager.sessions.shutdownAll()")
    page.close()


def run_all(page):
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function("""() => {
        const prompts = [...document.querySelectorAll(
            '.jp-Notebook .jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.innerText);
        return prompts.length && prompts.every(prompt => /\\[\\d+\\]/.test(prompt));
    }""")


def control(page, label):
    """The last drop-down with a label, an explorer's own."""
    found = page.locator(".widget-dropdown", has_text=re.compile(f"^{label}")).last
    return found.locator("select")


def drawn(page, change=None):
    """What the plots draw; if a change is made, once it is seen and they are at rest again."""
    if change is None:
        return page.evaluate(DRAWN)
    text = f"JSON.stringify(({DRAWN})())"
    before = page.evaluate(text)
    change()
    page.wait_for_function(f"before => {text} !== before", arg=before)
    while before != (before := page.evaluate(text)):
        page.wait_for_timeout(700)
    return page.evaluate(DRAWN)


def choose(page, label, option):
    return drawn(page, lambda: control(page, label).select_option(label=option))


def failed_cells(page):
    return page.locator(
        ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error'], "
        ".jp-RenderedText[data-mime-type*=stderr]"
    )


def without_size(plots):
    return [{k: v for k, v in plot.items() if k not in ("width", "x")} for plot in plots]


@pytest.mark.parametrize("name", ["01_sequences", "07_conductance_over_time", "08_compare"])
def test_widgets_change_what_is_plotted(browser, server, name):
    with opened(browser, server, name) as (page, errors):
        assert failed_cells(page).count() == 0
        page.locator(".js-plotly-plot").last.scroll_into_view_if_needed()
        ARTIFACTS.mkdir(exist_ok=True)
        page.screenshot(path=ARTIFACTS / f"{name}.png")
        at_start = drawn(page)
        shorter = choose(page, "Input length", "4 pixels")
        slower = choose(page, "Stride", "half the input length")
        assert at_start != shorter != slower
        page.screenshot(path=ARTIFACTS / f"{name}-4-2.png")
        assert errors == []


def test_after_a_heat_map_lines_rise_and_are_not_filled(browser, server):
    with opened(browser, server, "recording") as (page, errors):
        start = drawn(page)[-1]
        assert start["traces"][0]["type"] == "heatmap" and start["y"][0] > start["y"][1]
        for show in ("quantiles", "single units"):
            plot = choose(page, "Show", show)[-1]
            assert plot["y"][0] < plot["y"][1]
        assert [trace["fill"] for trace in plot["traces"]] == ["none"] * 6
        choose(page, "Show", "heat map")
        plot = choose(page, "View", "parameters over training")[-1]
        assert plot["y"][0] < plot["y"][1]
        assert len([trace for trace in plot["traces"] if trace["fill"] == "toself"]) == 2
        assert errors == []


def test_a_variable_grows_over_the_image_with_the_steps(browser, server):
    with opened(browser, server, "recording") as (page, errors):
        choose(page, "Over the image", "Conductance z (per step)")

        def pixels(plots):
            (heat,) = [t for plot in plots[1:2] for t in plot["traces"] if t["type"] == "heatmap"]
            return sum(value == value for row in heat["z"] for value in row)

        before = pixels(drawn(page))
        slider = page.locator(".widget-slider", has_text="Step").last.locator(".noUi-handle")
        slider.focus()
        after = drawn(page, lambda: slider.press("PageUp"))
        assert pixels(after) > before == 8
        picture = after[1]["traces"][0]["source"]
        chosen = drawn(page, lambda: click(page, 0, ".imagelayer image", along=0.42))
        assert chosen[1]["traces"][0]["source"] != picture
        assert control(page, "Image").input_value().startswith("8: ")
        assert errors == []


def test_a_page_loaded_again_and_a_second_tab_show_the_same(browser, server):
    with opened(browser, server, "saved") as (page, errors):
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length === 3")
        choose(page, "Metric", "loss")
        before = without_size(drawn(page))
        assert all(plot["traces"] for plot in before)
        page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
        page.wait_for_timeout(1000)
        with opened(browser, server, "saved", run=False) as (again, _):
            again.wait_for_function("document.querySelectorAll('.js-plotly-plot').length === 3")
            again.wait_for_timeout(1000)
            assert without_size(drawn(again)) == before
            changed = choose(again, "Metric", "accuracy")
            page.wait_for_timeout(2000)
            assert without_size(drawn(page)) == without_size(changed)
        page.reload()
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length === 3")
        page.wait_for_timeout(1000)
        assert without_size(drawn(page)) == without_size(changed)
        assert control(page, "Metric").input_value() == "accuracy"
        assert errors == []


@pytest.mark.parametrize("width", [900, 1440, 1920])
def test_figures_take_the_width_of_the_page(browser, server, width):
    with opened(browser, server, "board", width) as (page, _):
        page.wait_for_timeout(1500)
        area = page.locator(".jp-OutputArea-child").last.bounding_box()
        plots = [box.bounding_box() for box in page.locator(".js-plotly-plot").all()]
        right = max(box["x"] + box["width"] for box in plots)
        end = area["x"] + area["width"]
        assert end - 60 < right <= end + 1


# What a theme does while its style is loading, with a page that is hidden for less than a frame.
FLICKER = """async theme => {
    const {style} = document.querySelector('.js-plotly-plot').parentElement;
    style.display = 'none';
    document.body.dataset.jpThemeLight = theme;
    for (let i = 0; i < 9; i++) await null;
    style.display = '';
}"""


def test_figures_are_dark_on_a_dark_page(browser, server):
    with opened(browser, server, "board") as (page, _):
        light = drawn(page)[0]
        for theme in ("false", "true"):
            drawn(page, partial(page.evaluate, FLICKER, theme))
        assert drawn(page)[0]["ink"] == light["ink"]
        page.evaluate(
            "window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab "
            "Dark'})"
        )
        page.wait_for_function(f"ink => ({DRAWN})()[0].ink !== ink", arg=light["ink"])
        dark = drawn(page)[0]
        assert light["ground"] == dark["ground"] == "rgba(0, 0, 0, 0)"
        assert int(light["ink"][1:3], 16) < 80 and int(dark["ink"][1:3], 16) > 180
        page.evaluate(
            "window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab "
            "Light'})"
        )


def click(page, plot, selector, number=0, along=0.5):
    """Click on a mark of a plot, at a share of its width."""
    page.locator(".js-plotly-plot").nth(plot).scroll_into_view_if_needed()
    box = page.locator(".js-plotly-plot").nth(plot).locator(selector).nth(number).bounding_box()
    at = box["x"] + along * box["width"], box["y"] + box["height"] / 2
    page.mouse.move(*at)
    page.wait_for_timeout(300)
    page.mouse.click(*at)


def test_the_board_follows_clicks(browser, server):
    with opened(browser, server, "board") as (page, errors):
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length === 3")
        curves = drawn(page)[0]
        assert set(curves["notes"]) == {"chance", "CB", "DaleCB", "STPDaleCB"}
        curves = drawn(page, lambda: click(page, 1, ".bars path", 1))[0]
        assert set(curves["notes"]) == {"chance", "DaleCB"}
        assert control(page, "Highlight").input_value() == "DaleCB"
        drawn(page, lambda: click(page, 2, ".heatmaplayer image", along=0.1))
        assert control(page, "Input length").input_value() == "4 pixels"
        click(page, 1, ".scatterlayer .points path", 0)
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length >= 6")
        assert drawn(page)[-1]["traces"][0]["type"] == "heatmap"
        assert errors == []


def test_what_was_not_run_is_run_by_the_button_and_the_window_stays(browser, server):
    with opened(browser, server, "choice") as (page, errors):
        assert set(drawn(page)[0]["notes"]) == {"chance", "CB", "DaleCB", "STPDaleCB"}
        page.get_by_role("button", name="Run 1 run").click()
        page.wait_for_function(f"({DRAWN})()[0].notes.includes('full GRU')")
        assert not page.get_by_role("button", name="Run 1 run").is_visible()
        choose(page, "Input length", "4 pixels")
        run_all(page)
        assert control(page, "Input length").input_value() == "4 pixels"
        assert page.get_by_role("button", name="Run 1 run").is_visible()
        assert errors == []


def test_a_cell_that_runs_again_takes_the_place_of_its_earlier_run(browser, server):
    with opened(browser, server, "again") as (page, errors):
        for _ in range(2):
            page.evaluate("""() => {
                window.jupyterapp.shell.currentWidget.content.activeCellIndex = 2;
                return window.jupyterapp.commands.execute('notebook:run-cell');
            }""")
            page.wait_for_function(IDLE)
        choose(page, "Input length", "4 pixels")
        page.get_by_text("2 listen").wait_for()  # this line and the board
        assert errors == []


def test_training_in_the_background_is_stopped_by_its_button(browser, server):
    with opened(browser, server, "long") as (page, errors):
        page.get_by_role("button", name="Run 1 run").click()
        page.locator(".widget-html", has_text=re.compile(r"CB, .*seed 0: [1-9]\d?%")).wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("button", name="Run 1 run").wait_for()
        assert not page.get_by_role("button", name="Stop").is_visible()
        assert errors == []


def test_the_live_view_is_still_there_on_a_page_loaded_again(browser, server):
    with opened(browser, server, "live") as (page, errors):
        (curve,) = drawn(page)[0]["traces"]
        assert curve["name"] == "CB" and curve["x"][-1] == 2 and len(curve["y"]) == len(curve["x"])
        assert min(curve["y"]) >= 0 and max(curve["y"]) <= drawn(page)[0]["y"][1]
        page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
        page.wait_for_timeout(1000)
        page.reload()
        page.wait_for_selector(".js-plotly-plot .main-svg")
        assert drawn(page)[0]["traces"] == [curve]
        assert failed_cells(page).count() == 0 and errors == []


def test_one_change_is_one_redraw(browser, server):
    with opened(browser, server, "board") as (page, _):
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length === 3")
        page.wait_for_timeout(1000)
        page.evaluate("""() => {
            window.redraws = [];
            const plot = document.querySelector('.js-plotly-plot');
            plot.on('plotly_afterplot', () => redraws.push(JSON.stringify(
                [plot._fullLayout.width, plot._fullData.map(({name, y}) => [name, [...y ?? []]])]
            )));
        }""")
        choose(page, "Input length", "4 pixels")
        assert len(page.evaluate("window.redraws")) == 1
        boxes = [
            page.get_by_role("checkbox", name=name, exact=True)
            for name in ("CB", "DaleCB", "STPDaleCB")
        ]
        for box in boxes:
            drawn(page, box.uncheck)
        assert [plot["traces"] for plot in drawn(page)] == [[]]  # says that no cell is chosen
        page.evaluate("window.redraws = []")
        drawn(page, boxes[0].check)  # two plots beside it, which leave it less room
        assert len(drawn(page)) == 3
        # A slow machine may show the new room some frames before or after the new curves: then it
        # draws them one by one, but never anything twice.
        seen = page.evaluate("window.redraws")
        assert len(set(seen)) == len(seen) and 1 <= len(seen) <= 2


def test_an_export_is_offered_for_download(browser, server):
    with opened(browser, server, "recording") as (page, errors):
        page.get_by_role("button", name="Export").last.click()
        page.get_by_role("button", name="Write").last.click()
        link = page.locator("a[download$='.pdf']")
        link.wait_for()
        with page.expect_download() as download:
            link.click()
        assert Path(download.value.path()).read_bytes().startswith(b"%PDF")
        assert errors == []
