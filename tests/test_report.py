"""The report: one file that needs no network, whose selectors change what is shown."""

import json
import re
import shutil
from itertools import pairwise

import frames
import pandas as pd
import pytest

from lib.figures import report, select, summaries

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def study():
    parts = [
        frames.runs(frames.TEN, ["8/4", "16/8", "4/2"]),
        frames.scan(),
        frames.runs(["cb"], ["8/4"], initialisation="notes"),
    ]
    parts += [frames.runs(["gru"], ["8/4"], [0], dataset="digits", epochs=3)]
    runs = pd.concat(parts, ignore_index=True)
    return select.Frames(runs, frames.curves(runs), frames.history(runs.iloc[:1]), {})


@pytest.fixture(scope="module")
def page(study, tmp_path_factory):
    return report.write(study, tmp_path_factory.mktemp("report") / "report.html")


def test_one_small_file_that_asks_nothing_of_the_network(page, study):
    text = page.read_text()
    assert page.stat().st_size < 8 * 2**20
    assert "default-src 'none'" in text and not re.search(
        r"<(script|link|img|iframe)[^>]+(src|href)=", text.split("<script>")[0]
    )
    assert report.write(study, page.with_name("again.html")).read_bytes() == page.read_bytes()


def test_numbers_are_those_of_the_statistics(study):
    shown = report.content(study)
    assert list(shown["tasks"]) == ["sequential CIFAR-10", "digits, demonstration"]
    own = study.runs[
        (study.runs["window"] == "8/4")
        & (study.runs["dataset"] == "cifar10")
        & (study.runs["seed"] != 100)
    ]
    expected = summaries.groups(select.grouped(own)).set_index("group")
    cifar = shown["tasks"]["sequential CIFAR-10"]["windows"]
    for group, entry in cifar["8/4"]["values"]["test_accuracy"].items():
        assert (
            entry["mean"] == pytest.approx(expected.at[group, "mean"], abs=1e-4) and entry["n"] == 3
        )
        assert len(entry["seeds"]) == 3  # the seed of the learning-rate scan is not among them
    digits = shown["tasks"]["digits, demonstration"]["windows"]
    single = digits["8/4"]["values"]["test_accuracy"]["full GRU"]
    assert single["low"] is None and single["n"] == 1
    assert (
        shown["groups"]["CB, notes"]["family"] == "variants"
        and shown["groups"]["CB"]["family"] == "without STP"
    )
    json.dumps(shown, allow_nan=False)


def test_an_empty_store_is_said(study, tmp_path):
    with pytest.raises(ValueError, match="No finished run"):
        report.write(study._replace(runs=study.runs.iloc[:0]), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="Debian's chromium is not installed")
def test_selectors_change_the_plot_with_the_network_off(page):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        tab = browser.new_context(offline=True).new_page()
        said, asked = [], []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        tab.wait_for_selector("#curves .main-svg")

        def drawn(plot):
            return tab.evaluate(
                """plot => JSON.stringify(document.getElementById(plot).data.map(
                    t => [t.name, t.x, t.y, t.z, t.line && t.line.color]))""",
                plot,
            )

        def names():
            return tab.evaluate(
                "document.getElementById('curves').data.map(t => t.name).filter(Boolean)"
            )

        assert re.search(r"is best, .* points .*above", tab.text_content("#headline"))
        assert tab.is_visible("#heat")
        assert "percentage points" in tab.text_content("#why")
        states = [drawn("curves")]
        assert len(names()) == 10 and "CB, notes" not in names()
        for control, value in (
            *(("length", "16"), ("stride", "8"), ("metric", "loss")),
            *(("length", "8"), ("stride", "4"), ("metric", "accuracy while training")),
        ):
            tab.select_option(f"#{control}", value)
            if control == "length":  # 16/4 and 8/8 are not among the runs
                assert "not run" in tab.text_content("#curves")
                assert tab.text_content("#caption").endswith("was not run.")
                assert tab.evaluate("document.getElementById('curves').data.length") == 0
            states.append(drawn("curves"))
        assert all(before != after for before, after in pairwise(states))
        assert "n = 3 seeds" in tab.text_content("#caption") and "54." in tab.text_content("#table")

        tab.click("#none")
        tab.click("summary")
        for cell in ("full GRU", "CB, notes"):
            tab.check(f"input[value='{cell}']")
        assert names() == ["full GRU", "CB, notes"]
        again = browser.new_context(offline=True).new_page()
        again.goto(tab.url)  # a link keeps the view
        again.wait_for_selector("#curves .main-svg")
        assert again.input_value("#metric") == "accuracy while training"
        assert again.is_checked("input[value='CB, notes']")
        assert not again.is_checked("input[value='CB']")
        with tab.expect_download() as download:
            tab.click("#csv")
        rows = pd.read_csv(download.value.path())
        assert list(rows["cell"]) == ["full GRU", "CB, notes"] and set(rows["window"]) == {"8/4"}

        tab.select_option("#task", "digits, demonstration")
        assert "digits, demonstration" in tab.text_content("#caption")
        assert names() == ["full GRU"] and tab.is_hidden("#heat")  # of one window
        assert said == [] and asked == [page.as_uri()]
        browser.close()
