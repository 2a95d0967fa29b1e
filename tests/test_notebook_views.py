"""Figures and tables as notebooks show them."""

import frames
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from lib.figures import notebook


@pytest.fixture
def shown(monkeypatch):
    """What a notebook displays, in order."""
    found = []
    monkeypatch.setattr(notebook, "display", found.append)
    return found


def test_the_caption_comes_below_the_figure(shown):
    figure = plt.figure()
    notebook.show(figure.add_subplot(), frames.runs(["cb"], ["8/4"]), "What is shown.")
    assert shown[0] is figure
    assert shown[1].data.startswith("*What is shown. Data: ") and "H = " in shown[1].data
    assert not plt.fignum_exists(figure.number)  # or it would be shown twice


def test_a_caption_without_runs(shown):
    notebook.show(plt.figure(), lead="Before training.")
    assert shown[1].data == "*Before training.*"


def test_tables_have_labels_units_and_the_order_of_the_paper():
    runs = pd.DataFrame(
        {
            "key": ["a", "b", "c"],
            "label": ["mine", "DaleCB", "vanilla RNN"],
            "test_accuracy": [0.5, 0.123, None],
            "parameters": [5962.0, 10.0, 1.0],
        }
    )
    page = notebook.table(runs).to_html()
    assert "Test (%)" in page and "12.3" in page and "5,962" in page
    assert "nan" not in page.lower() and "key" not in page
    assert page.index("vanilla RNN") < page.index("DaleCB") < page.index("mine")
