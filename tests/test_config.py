"""The configuration: what enters the key, what comes back from a dictionary."""

import hashlib
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest

from lib.config import CellSpec, RunConfig, Task, Training, Window

OTHER = RunConfig(
    Task("mnist", True, 8, 3, source="register_dataset(...)", first_rows=8, delay=64),
    Window(4, 2, "snake"),
    CellSpec("stp_dale_cb", 24, "notes", {"dt": 0.3, "excitatory_fraction": 0.8}, "register(...)"),
    Training(3, 20, 0.001, 0.5, 4),
    seed=7,
)


@pytest.mark.parametrize("config", [RunConfig(), OTHER])
def test_dictionary_round_trip_through_json(config):
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.key() == config.key()


def test_missing_fields_take_defaults():
    assert RunConfig.from_dict({"cell": {"name": "gru"}, "seed": 2}) == RunConfig(
        cell=CellSpec("gru"), seed=2
    )


def test_every_field_enters_the_key():
    keys = {RunConfig().key()}
    for name, value in OTHER.to_dict().items():
        changes = (
            [{name: {field: v}} for field, v in value.items()]
            if isinstance(value, dict)
            else [{name: value}]
        )
        for change in changes:
            key = RunConfig.from_dict(change).key()
            assert key not in keys, f"{change} does not change the key"
            keys.add(key)


def test_a_field_that_came_later_leaves_earlier_keys_as_they_are():
    config = replace(OTHER, task=replace(OTHER.task, source=None, first_rows=None, delay=0))
    values = config.to_dict()
    for name in ("source", "first_rows", "delay"):
        del values["task"][name]
    text = json.dumps({"schema": 1, **values}, sort_keys=True, separators=(",", ":"))
    assert config.key() == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert values["cell"]["source"], "a field that was there from the first always enters"


def test_key_is_the_same_in_another_process_and_whatever_the_order_of_options():
    config = replace(RunConfig(), cell=CellSpec(options={"dt": 0.3, "stp_dt": 0.1}))
    assert replace(config, cell=CellSpec(options={"stp_dt": 0.1, "dt": 0.3})).key() == config.key()
    code = (
        f"from lib.config import RunConfig; print(RunConfig.from_dict({config.to_dict()!r}).key())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert printed == config.key()
    assert len(printed) == 16 and int(printed, 16) >= 0


def test_with_seed_changes_the_seed_alone():
    assert OTHER.with_seed(8) == replace(OTHER, seed=8)
    assert len({OTHER.with_seed(s).key() for s in range(20)}) == 20


def test_configurations_are_frozen():
    with pytest.raises(FrozenInstanceError):
        RunConfig().seed = 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"seeds": 1}, ("'seeds'", "configuration", "seed")),
        ({"cell": {"hidden": 3}}, ("'hidden'", "cell", "hidden_size")),
        ({"window": 8}, ("window is 8", "input_length")),
    ],
)
def test_unknown_fields_are_named(values, words):
    with pytest.raises(ValueError) as error:
        RunConfig.from_dict(values)
    assert all(word in str(error.value) for word in words)
