"""The command line: one comparison end to end, a user's own cell, refused values, and what README
and environment say.
"""

import json
import re
import subprocess
import sys
import tomllib

import bench
import pytest
import yaml
from tiny import OWN_CELL, config, contents

from lib import __main__ as command
from lib import cells, paths
from lib.config import RunConfig
from lib.runs.store import Store

TINY = [
    "compare",
    "--input-length",
    "8",
    "--stride",
    "8",
    "--hidden-size",
    "4",
    "--epochs",
    "1",
    "--backend",
    "reference",
]


def call(monkeypatch, *arguments):
    """Exit code of the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["lib", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        command.main()
    return end.value.code or 0


def test_compare_trains_reuses_and_rebuilds(tmp_path, monkeypatch, capsys):
    (tmp_path / "own.py").write_text(OWN_CELL)
    arguments = [
        *TINY,
        "--cells",
        "rnn,dale_cb,two_signals",
        "--cells-from",
        tmp_path / "own.py",
        "--seeds",
        "2",
        "--results",
        tmp_path / "results",
    ]
    try:
        assert call(monkeypatch, *arguments) == 0
        runs = Store(tmp_path / "results").runs()
        assert sorted(zip(runs.cell, runs.seed, strict=True)) == [
            (c, s) for c in ("dale_cb", "rnn", "two_signals") for s in (0, 1)
        ]
        assert set(runs.state) == {"DONE"}
        shown = capsys.readouterr().out
        assert all(
            label in shown
            for label in ("vanilla RNN", "DaleCB", "two signals", "Parameters", "ms/step")
        )
        finished = contents(tmp_path / "results" / "runs")
        written = contents(tmp_path / "results" / "figures")
        assert {
            "learning_curves.pdf",
            "learning_curves.png",
            "accuracy_bars.pdf",
            "accuracy_bars.png",
        } <= set(written)
        assert call(monkeypatch, *arguments) == 0
        assert "are missing" not in capsys.readouterr().out
        assert call(monkeypatch, "compare", "--from", tmp_path / "results") == 0
        assert contents(tmp_path / "results" / "figures") == written
        assert contents(tmp_path / "results" / "runs") == finished
    finally:
        cells.CELLS.pop("two_signals", None)
        cells.SOURCES.pop("two_signals", None)


def test_run_trains_one_configuration(tmp_path):
    path = tmp_path / "config.json"
    command = [sys.executable, "-m", "lib", "run", path, "--results", tmp_path]
    for text, code, said in (
        ("{", 2, "config.json is no configuration"),
        (json.dumps(config("rnn").to_dict()), 0, "100% done"),
    ):
        path.write_text(text)
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == code and said in ended.stdout + ended.stderr
    assert Store(tmp_path).status(config("rnn").key())["state"] == "DONE"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cells", "lstm"], "Unknown cell 'lstm'; known cells are rnn, simple_gru, gru, cb"),
        (["--seeds", "1,1"], "1"),
        (["--seeds", "-3"], "--seeds is -3"),
        (["--seeds", "x"], "--seeds is 'x'"),
        (["--input-length", "9"], "9"),
        (["--input-length", "2.5"], "--input-length is '2.5'"),
        (["--stride", "0"], "0"),
        (["--stride", "third"], "third"),
        (["--hidden-size", "1", "--cells", "dale_cb"], "leaves no"),
        (["--epochs", "0"], "epochs is 0"),
        (["--dataset", "imagenet"], "imagenet"),
        (["--cells-from", "nowhere.py"], "nowhere.py"),
    ],
)
def test_refused_values_are_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, *TINY, *arguments, "--results", tmp_path) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_missing_data_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    arguments = [
        *TINY,
        "--dataset",
        "cifar10",
        "--cells",
        "rnn",
        "--results",
        tmp_path / "r",
        "--data",
        tmp_path / "empty",
    ]
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # no download in a test
    assert call(monkeypatch, *arguments) != 0
    assert "cifar" in capsys.readouterr().err.lower()


def test_configuration_round_trip():
    assert RunConfig.from_dict(json.loads(json.dumps(RunConfig().to_dict()))) == RunConfig()


def test_environment_installs_what_pyproject_pins():
    environment = yaml.safe_load((paths.project_root() / "environment.yml").read_text())
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert pip == ["-e .[dev]"] and "python=3.11" in environment["dependencies"]
    project = tomllib.loads((paths.project_root() / "pyproject.toml").read_text())["project"]
    assert {"torch==2.13.0", "torchvision==0.28.0"} <= set(project["dependencies"])


def test_commands_of_the_readme_exist():
    text = (paths.project_root() / "README.md").read_text()
    makefile = (paths.project_root() / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", text, re.MULTILINE)) <= targets
    known = {c.name or c.callback.__name__ for c in command.app.registered_commands}
    lines = re.findall(r"^python -m lib (.+)$", text.replace("\\\n", " "), re.MULTILINE)
    assert lines
    for line in lines:
        name, *words = line.split("#")[0].split()
        assert name in known
        shown = subprocess.run(
            [sys.executable, "-m", "lib", name, "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert all(word in shown for word in words if word.startswith("--")), line
    assert len(text.splitlines()) <= 150


def test_speed_table_of_the_readme_is_that_of_a_run():
    results = json.loads((paths.project_root() / "results" / "bench.json").read_text())
    assert bench.markdown(results) in (paths.project_root() / "README.md").read_text()
