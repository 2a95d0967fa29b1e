"""A user's own cells: what their stored text holds, from a notebook and from a file, and the names
that such texts may use.
"""

import importlib
import json
import re
import subprocess
import sys

import pytest
import torch

from lib import cells, train
from lib.config import CellSpec, RunConfig
from lib.paths import project_root
from lib.recurrence import SequenceClassifier
from lib.runs import attempt, sweep
from lib.runs.store import Store

README = (project_root() / "README.md").read_text("utf-8")
(LEAKY,) = re.findall(r"```python\n(class State.*?)```", README, re.S)
HELPERS = """
import math as m

SCALE = m.pi / 4
weights = "a variable of the notebook that no cell needs"


def squash(x):
    return SCALE * torch.tanh(x)


class Pair(NamedTuple):
    h: torch.Tensor
"""
EARLIER = '''
@register
class Earlier(RNN):
    """Needs what stands in an earlier notebook cell, and that needs more."""

    name = "earlier"

    def initial_state(self, batch, theta):
        return Pair(self.W.new_zeros(batch, self.hidden_size))

    def update(self, state, a, g, theta):
        weights = a[0] + g
        return Pair(squash(weights))
'''
CHANGED = """
SCALE = 0.25


class Plain(Earlier):
    name, label = "plain", "in the plain"


register(Plain)
"""
RUN = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
for cell in ["from lib.cells import *", *json.loads(sys.argv[1])]:
    shell.run_cell(cell, store_history=True).raise_error()
import lib.cells
print(json.dumps(lib.cells.SOURCES))
"""


def texts(folder, *notebook):
    """`SOURCES` of a process of its own after the cells of a notebook ran."""
    command = [sys.executable, "-c", RUN, json.dumps(notebook)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "mine.py").write_text(f"from lib.cells import *\n{HELPERS}\n{EARLIER}", "utf-8")
    in_file = "import sys; sys.path.insert(0, '.')\nimport mine\nfile_text = SOURCES.pop('earlier')"
    kept = "SOURCES['file'] = file_text"
    return texts(folder, LEAKY, in_file, HELPERS, EARLIER, CHANGED, kept)


@pytest.fixture(autouse=True)
def unregistered(monkeypatch):
    monkeypatch.setattr(cells.registry, "CELLS", dict(cells.CELLS))
    monkeypatch.setattr(cells.registry, "SOURCES", {})
    for name in ("CELLS", "SOURCES"):
        monkeypatch.setattr(cells, name, getattr(cells.registry, name))


def logits(name, text):
    assert name in cells.register_source(text)
    model = SequenceClassifier(name, 3, 4, 2, 5)
    return model(torch.ones(2, 5, 3))


@pytest.mark.parametrize("source", ["notebook", "file"])
def test_the_cell_of_the_readme_runs_from_notebook_and_file(source, stored):
    text = stored["leaky"] if source == "notebook" else LEAKY
    assert logits("leaky", text).isfinite().all()
    assert cells.get("leaky").label == "leaky RNN"


@pytest.mark.parametrize("key", ["earlier", "file"])
def test_the_text_holds_what_the_class_needs_and_no_more(key, stored):
    text = stored[key]
    order = ("import math as m", "SCALE = m.pi / 4", "def squash", "class Pair", "class Earlier")
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "variable of the notebook" not in text and "from lib.cells" not in text
    assert logits("earlier", text).isfinite().all()
    assert cells.get("earlier").label == "earlier"  # a class without a label


def test_a_name_means_what_it_was_set_to_last(stored):
    assert "SCALE = 0.25" in stored["plain"] and "m.pi" not in stored["plain"]
    assert not torch.equal(logits("plain", stored["plain"]), logits("earlier", stored["earlier"]))
    assert cells.get("plain").label == "in the plain"


CHANGES = """from lib.cells import *
GAIN = 3.0
GAIN = 1.0
GAIN += 0.5
SCALE = 2.0
SCALE = 2 * SCALE
OPTIONS, NAMES, OTHER = {}, [], {}
OPTIONS["dt"] = 0.2
OTHER["x"] = "unneeded"
for name in ("a", "b"):
    NAMES.append(name)
if not NAMES:
    SCALE = 0.0


@register
class Changes(CB):
    name, held = "changes", (GAIN, SCALE, OPTIONS, NAMES)
"""


def test_the_text_holds_what_changed_a_needed_name(tmp_path, monkeypatch):
    (tmp_path / "changes.py").write_text(CHANGES, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("changes")
    text = cells.SOURCES["changes"]
    assert cells.register_source(text) == ["changes"]
    assert cells.get("changes").held == (1.5, 4.0, {"dt": 0.2}, ["a", "b"])
    assert "unneeded" not in text and "3.0" not in text


def test_a_text_alone_is_stored_as_it_stands(stored):
    """The keys of runs of cells that need nothing beside `lib.cells` stay as they were."""
    own = '@register\nclass Same(RNN):\n    name, label = "same", "same"\n'
    assert texts(project_root(), own)["same"] == own


def test_a_class_without_text_is_refused():
    with pytest.raises(ValueError, match="text of class Hidden is not at hand"):
        cells.register(type("Hidden", (cells.RNN,), {"name": "hidden", "__module__": "nowhere"}))


def test_what_registers_nothing_or_takes_a_name_is_refused():
    with pytest.raises(ValueError, match="registers no cell; put @register above the class"):
        cells.register_source("x = 1")
    with pytest.raises(ValueError, match="does not run: NameError: name 'State' is not defined"):
        cells.register_source("State")
    with pytest.raises(ValueError, match="name 'rnn' belongs to a built-in cell"):
        cells.register_source("@register\nclass Mine(RNN):\n    name = 'rnn'\n")
    with pytest.raises(ValueError, match="name is None, but a cell needs a name"):
        cells.register_source("@register\nclass Mine(RNN):\n    pass\n")


def version(number):
    return f"@register\nclass Version(CB):\n    name, number = 'version', {number}\n"


def test_a_text_that_fails_leaves_what_was_registered():
    cells.register_source(version(1))
    with pytest.raises(ValueError, match="does not run: ZeroDivisionError"):
        cells.register_source(version(2) + version(2).replace("version", "fresh") + "1 / 0")
    assert cells.get("version").number == 1 and cells.SOURCES["version"] == version(1)
    assert "fresh" not in cells.CELLS


def test_a_run_of_an_older_version_leaves_the_newest_registered():
    cells.register_source(version(1))
    (config,) = sweep.grid(cells="version", hidden_size=4, seeds=[0])
    cells.register_source(version(2))
    train.check(config)
    assert train.build(config).cell.number == 1
    (newest,) = sweep.grid(cells="version", seeds=[0])
    assert newest.cell.source == version(2) and cells.get("version").number == 2


def test_a_run_without_the_text_of_its_cell_is_refused_before_any_work(tmp_path):
    cells.register_source(version(1))
    config = RunConfig(cell=CellSpec("version", 4))
    for train_all in (attempt.execute, sweep.sweep):
        with pytest.raises(ValueError, match="The cell version is known to this process alone"):
            train_all([config], Store(tmp_path))
    assert not any(tmp_path.iterdir())


def test_names_that_texts_of_cells_may_use_stay():
    frozen = """ALL CB CBGRU CELLS Cell ConductanceCell DESIGN Dale DaleCB GRU INITIALISATIONS
    NamedTuple PlasticState RNN RateState SOURCES SPREAD STP STPDale STPDaleCB SimpleGRU
    VoltageState ast check_cell datasets get inspect matching_hidden_size math names nn
    parameter_count register register_source torch""".split()
    assert set(frozen) <= set(cells.__all__)
    own = "\n".join(f"assert {name} is not None" for name in frozen)
    cells.register_source(f"{own}\n@register\nclass Uses(CB):\n    name = 'uses'\n")
