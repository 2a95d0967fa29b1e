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
from pathlib import Path

import nbformat
import pytest

from lib import paths
from lib.config import CellSpec, RunConfig, Training, Window
from lib.runs import attempt
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
    "@jupyterlab/notebook-extension/tracker": {
        "windowingMode": "none",
        "autoStartDefaultKernel": True,
    },
}
IDLE = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
PLOTTED = """() => [...document.querySelectorAll('.js-plotly-plot')].map(
    plot => JSON.stringify(plot._fullData.map(trace => [trace.visible, trace.x, trace.y, trace.z])))"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    for length, stride in ((8, 4), (4, 4), (4, 2)):
        for cell in CELLS:
            config = RunConfig(
                window=Window(length, stride), cell=CellSpec(cell, 8), training=Training(epochs=1)
            )
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


@contextmanager
def opened(url, name, width=1280, height=1000):
    """A notebook that was run from top to bottom: its page, and the errors its console showed."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": width, "height": height})
        errors = []
        page.on(
            "console",
            lambda message: errors.append(message.text) if message.type == "error" else None,
        )
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script(
            "AbortSignal.timeout = (timeout => () => timeout.call(AbortSignal, 0))(AbortSignal.timeout)"
        )
        page.set_default_timeout(120_000)
        page.goto(f"{url}/lab/tree/{name}.ipynb?reset")
        page.wait_for_function(
            IDLE
        )  # the indicator in the toolbar says idle before there is a kernel
        page.wait_for_timeout(500)
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_function("""() => {
            const prompts = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.innerText);
            return prompts.length && prompts.every(prompt => /\\[\\d+\\]/.test(prompt));
        }""")
        page.wait_for_selector(".js-plotly-plot .main-svg")
        yield page, errors
        browser.close()


def choose(page, label, option):
    """Choose in the last drop-down with a label, an explorer's own; returns what the plots show
    once its own changed.
    """
    before = page.evaluate(PLOTTED)
    page.locator(".widget-dropdown", has_text=re.compile(f"^{label}")).last.locator(
        "select"
    ).select_option(label=option)
    page.wait_for_function(f"before => ({PLOTTED})().at(-1) !== before", arg=before[-1])
    return page.evaluate(PLOTTED)


def failed_cells(page):
    return page.locator(
        ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error'], .jp-RenderedText[data-mime-type*=stderr]"
    )


@pytest.mark.parametrize("name", ["01_sequences", "07_conductance_over_time", "08_compare"])
def test_widgets_change_what_is_plotted(server, name):
    with opened(server, name) as (page, errors):
        assert failed_cells(page).count() == 0
        page.locator(".js-plotly-plot").last.scroll_into_view_if_needed()
        ARTIFACTS.mkdir(exist_ok=True)
        page.screenshot(path=ARTIFACTS / f"{name}.png")
        at_start = page.evaluate(PLOTTED)
        shorter = choose(page, "Input length", "4 pixels")
        slower = choose(page, "Stride", "half the input length")
        assert at_start[-1] != shorter[-1] != slower[-1]
        page.screenshot(path=ARTIFACTS / f"{name}-4-2.png")
        assert errors == []
