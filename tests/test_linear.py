"""The linear reference: one optimum, chosen on validation images, stored once, read everywhere."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lib import analysis, datasets, paths
from lib.config import Task
from lib.linear import reference


def test_digits(tmp_path, monkeypatch):
    found = reference(Task("digits"), tmp_path)
    assert 0.94 < found.accuracy < 0.99 and found.low < found.accuracy < found.high
    data = datasets.load(Task("digits"))
    assert found.predictions["label"].tolist() == data.labels["test"].tolist()
    right = found.predictions["label"] == found.predictions["prediction"]
    assert right.mean() == found.accuracy
    monkeypatch.setattr(datasets, "load", None)  # from here on it is read
    for task in (Task("digits"), Task("digits", permuted=True), Task("digits", delay=8)):
        assert reference(task, tmp_path).accuracy == found.accuracy
    assert reference(Task("digits"), tmp_path.parent).predictions.equals(found.predictions)


def test_parts_of_images_have_their_own(tmp_path):
    part = reference(Task("digits", last_rows=8), tmp_path)
    assert part.accuracy < reference(Task("digits"), tmp_path).accuracy
    assert sorted(path.stem for path in (tmp_path / "linear").iterdir()) == [
        "digits",
        "digits-last_rows_8",
    ]


def test_a_damaged_file_is_made_again(tmp_path):
    found = reference(Task("digits"), tmp_path)
    path = tmp_path / "linear" / "digits.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert reference(Task("digits"), tmp_path).accuracy == found.accuracy
    assert path.read_bytes() == whole


def test_the_committed_one_is_what_the_code_gives(tmp_path):
    task, results = Task("digits"), paths.project_root() / "results"
    committed, made = reference(task, results), reference(task, tmp_path)
    changed = committed.predictions["prediction"] != made.predictions["prediction"]
    assert changed.sum() <= 1  # another processor rounds otherwise


@pytest.mark.parametrize("part", [{}, {"last_rows": 8}, {"permuted": True}])
def test_that_of_cifar10_is_committed(part, monkeypatch):
    monkeypatch.setattr(datasets, "load", None)
    found = reference(Task("cifar10", **part), paths.project_root() / "results")
    assert found.predictions["image"].tolist() == list(range(10_000))
    assert (np.bincount(found.predictions["label"]) == 1000).all()
    assert 0.1 < found.low < found.accuracy < found.high < found.low + 0.02


def test_it_is_the_softmax_that_gradient_descent_finds(monkeypatch):
    data = datasets.load(Task("digits", last_rows=2))
    monkeypatch.setattr(analysis, "PENALTIES", np.array([0.1]))
    found = analysis.linear_softmax(data)
    x, y = data.batch("train", torch.arange(len(data.labels["train"])))
    w = torch.zeros(10, x[0].numel(), requires_grad=True)
    b = torch.zeros(10, requires_grad=True)
    optimiser = torch.optim.LBFGS([w, b], max_iter=500, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = F.cross_entropy(x.flatten(1) @ w.T + b, y) + 0.05 * (w**2).sum()
        value.backward()
        return value

    optimiser.step(loss)
    x, _ = data.batch("test", torch.arange(len(data.labels["test"])))
    with torch.no_grad():
        probability = (x.flatten(1) @ w.T + b).softmax(1).max(1).values
    assert found["probability"] == pytest.approx(probability.numpy(), abs=0.01)
