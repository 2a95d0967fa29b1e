"""The command line: one comparison end to end, a user's own cell, refused values, and what README
and environment say.
"""

import io
import json
import re
import subprocess
import sys
import tomllib

import bench
import pytest
import tiny
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
    (tmp_path / "own.py").write_text(OWN_CELL, "utf-8-sig")  # with a byte-order mark
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
    written = config("rnn").to_dict()
    written["training"]["clip_norm"] = 1  # as 1.0
    for text, code, said in (
        ("{", 2, "config.json is no configuration"),
        ('{"cell": {"options": null}}', 2, "options is None, but must be a mapping"),
        (json.dumps(written), 0, "100% done"),
    ):
        path.write_text(text)
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == code and said in ended.stdout + ended.stderr
    assert Store(tmp_path).status(config("rnn").key())["state"] == "DONE"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cells", "lstm"], "Unknown cell 'lstm'; known cells are rnn, simple_gru, gru, cb"),
        (["--seeds", "1,1"], "name each seed once"),
        (["--seeds", "-3"], "--seeds is -3"),
        (["--seeds", "x"], "--seeds is 'x'"),
        (["--input-length", "9"], "input_length is 9, but"),
        (["--input-length", "2.5"], "input_length is '2.5', but"),
        (["--stride", "0"], "stride is 0, but"),
        (["--stride=--5"], "stride is '--5', but"),
        (["--stride", "third"], "stride is 'third', but"),
        (["--hidden-size", "1", "--cells", "dale_cb"], "leaves no"),
        (["--epochs", "0"], "epochs is 0"),
        (["--dataset", "imagenet"], "'imagenet'"),
        (["--cells-from", "nowhere.py"], "The file of your own cells, nowhere.py, cannot be read"),
        (["--device", "gpu"], "device is 'gpu', but must be cpu, cuda, or one GPU"),
        (["--device", "cuda:99"], "device is 'cuda:99', but must be"),
        (["--backend", "fest"], "backend is 'fest', but must be one of auto, reference, fast"),
        (["--slots", "0"], "slots is 0, but must be a whole number of at least 1"),
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


def test_a_newcomer_is_told_three_commands(monkeypatch, capsys):
    assert call(monkeypatch) == 0
    said = capsys.readouterr().out
    assert all(f"python -m lib {name}" in said for name in ("compare", "status", "report"))


def test_status_is_a_line_a_group_or_a_run(tmp_path, monkeypatch, capsys):
    tiny.many(tmp_path, 4, validations=1)
    tiny.finished(tmp_path, config("cb", seed=9, epochs=2))
    assert call(monkeypatch, "status", "--results", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 5 and sum("epochs 2" in line for line in lines) == 1
    assert all("1 DONE" in line and "50.0%" in line for line in lines[1:])
    assert call(monkeypatch, "status", "--all", "--results", tmp_path) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 5 and "epochs" in head.split() and "options" not in head.split()


def test_what_is_damaged_is_said_with_what_is_left(tmp_path, monkeypatch, capsys):
    store = tiny.many(tmp_path, 3, validations=1)
    keys = list(store.runs()["key"])
    for number, key in enumerate(keys[:2]):
        bundle = store.pack([key], f"bundle{number}")
        tiny.remove(store.folder(key))
    (bundle / "runs.json").write_bytes((bundle / "runs.json").read_bytes().replace(b"\n", b"\r\n"))
    monkeypatch.setattr("lib.figures.report.write", lambda frames, path: path)
    assert call(monkeypatch, "report", "--results", tmp_path) == 0
    said = capsys.readouterr().out
    assert said.count("Left out: ") == 1 and "bundle1" in said and "git checkout" in said
    assert call(monkeypatch, "status", "--results", tmp_path) == 0
    assert "DAMAGED: " in capsys.readouterr().out
    assert call(monkeypatch, "report", "--results", bundle) == 3
    assert "does not match its manifest" in capsys.readouterr().err


def test_a_terminal_without_the_letters_gets_replacements(tmp_path, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", out)
    assert call(monkeypatch, "cancel", "Zürich–Bern", "--results", tmp_path) == 2
    out.flush()
    assert b"'Z?rich?Bern'" in out.buffer.getvalue()


def test_tilde_is_the_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBOOK_RESULTS", "~/results")
    monkeypatch.setenv("WORKBOOK_DATA", "~/data")
    assert paths.results_dir() == Store().root == tmp_path / "results"
    assert paths.data_dir() == tmp_path / "data"
    tiny.many(tmp_path / "r", 1, validations=1)
    assert call(monkeypatch, "status", "--results", "~/r") == 0
    assert "1 DONE" in capsys.readouterr().out
    (tmp_path / "g.yaml").write_text("{cells: rnn, seeds: [0], epochs: 1}")
    assert call(monkeypatch, "sweep", "~/g.yaml", "--dry-run", "--results", "~/r") == 0
    capsys.readouterr()
    assert call(monkeypatch, "sweep", "~/g.yaml", "--cells-from", "~/none.py") == 2
    assert str(tmp_path / "none.py") in capsys.readouterr().err
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("wrong", ["--slots=-1", "--where=mars", "--device=toaster"])
def test_a_dry_run_refuses_what_the_sweep_would(wrong, tmp_path, monkeypatch, capsys):
    (tmp_path / "g.yaml").write_text("{cells: rnn, seeds: [0], epochs: 1}")
    arguments = "sweep", tmp_path / "g.yaml", "--dry-run", "--results", tmp_path
    assert call(monkeypatch, *arguments, wrong) == 2
    assert wrong.rpartition("=")[2] in capsys.readouterr().err


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


def test_speed_in_the_readme_is_that_of_a_run():
    results = json.loads((paths.project_root() / "results" / "bench.json").read_text())
    readme = (paths.project_root() / "README.md").read_text()
    assert bench.markdown(results) in readme and bench.shares(results) in readme
