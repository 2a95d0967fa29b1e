"""The notebooks keep the conventions of the series; `pytest --nbmake notebooks` runs them."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
CODE_CELLS, LINES, FUNCTIONS = 30, 15, 2


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_the_series_is_numbered():
    numbers = [path.name.split("_")[0] for path in NOTEBOOKS]
    assert numbers[0] == "00" and len(set(numbers)) == len(numbers)
    assert all(number.isdigit() and len(number) == 2 for number in numbers)


def test_valid_and_stripped(notebook):
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    for cell in code(notebook):
        assert not cell.outputs and cell.execution_count is None


def test_opens_with_its_question(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert "?" in first.source.splitlines()[0]


def test_says_its_goal_and_time_and_asks_for_one_or_two_predictions(notebook):
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    goal = re.compile(r"^\*\*Goal\*\*: \S.*[.] \*\*Plan\*\* \d+ minutes[.;]", re.MULTILINE)
    assert len(goal.findall(texts[0])) == 1
    asked = sum(source.count("**Predict, then look.** ") for source in texts)
    assert asked in (1, 2)


def test_ends_with_the_way_to_its_neighbours():
    names = [path.name for path in NOTEBOOKS]
    for path, before, after in zip(NOTEBOOKS, ["", *names], [*names[1:], ""], strict=False):
        last = nbformat.read(path, as_version=4).cells[-1]
        assert last.cell_type == "markdown", path.name
        way = last.source.splitlines()[-1]
        assert f"Previous: [{before[:2]} " in way or not before, path.name
        assert f"Next: [{after[:2]} " in way or not after, path.name
        assert (f"]({before})" in way and f"]({after})" in way) or not (before and after), path.name


def test_imports_then_scalar_settings_that_a_test_can_shrink(notebook):
    cells = code(notebook)
    assert all(
        isinstance(node, ast.Import | ast.ImportFrom | ast.Expr)
        for node in ast.parse(cells[0].source).body
    )
    settings = [cell for cell in cells if "mock" in cell.metadata.get("nbmake", {})]
    assert settings == [cells[1]]
    assigned = {}
    for node in ast.parse(settings[0].source).body:
        assert isinstance(node, ast.Assign), ast.unparse(node)
        assigned[node.targets[0].id] = ast.literal_eval(
            node.value
        )  # plain values, nothing computed
    mock = settings[0].metadata["nbmake"]["mock"]
    assert mock and set(mock) <= set(assigned)


def test_thin(notebook):
    cells = code(notebook)
    assert len(cells) <= CODE_CELLS
    assert all(len(cell.source.splitlines()) <= LINES for cell in cells), (
        "a cell has more than 15 lines"
    )
    top = [node for cell in cells for node in ast.parse(cell.source).body]
    assert sum(isinstance(node, ast.FunctionDef) for node in top) <= FUNCTIONS


def test_links_lead_somewhere():
    names = {path.name for path in NOTEBOOKS}
    for path in NOTEBOOKS:
        text = "".join(
            cell.source
            for cell in nbformat.read(path, as_version=4).cells
            if cell.cell_type == "markdown"
        )
        links = [part.split(")")[0] for part in text.split("](")[1:]]
        assert {link for link in links if link.endswith(".ipynb")} <= names, path.name


def test_figures_are_shown_after_one_in_the_style_of_a_journal():
    sources = (
        "import matplotlib.pyplot as plt\nfrom lib.figures import style",
        "with style.context():\n    plt.figure().add_subplot()",
        "plt.figure().add_subplot();",
    )
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources]
    )
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": FOLDER}}).execute()
    shown = [
        ["image/png" in output.get("data", {}) for output in cell.outputs]
        for cell in notebook.cells
    ]
    assert shown == [[], [True], [True]]
