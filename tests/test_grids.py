"""Grid files whose runs are trained: their cells' texts are part of the keys, and must stay."""

import hashlib
from dataclasses import replace

import pytest

from lib.paths import project_root
from lib.runs import sweep

GRIDS = project_root() / "notebooks" / "grids"


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("floors.py", "4151589c9d65aea9d341485ee77e69d43299ea724530259bac4552fd6953d88e"),
        ("free_input.py", "ea3ca7b130edacc5ec1d90cdf1801c750ef0c0d4e36229af2f71c8292932ed50"),
        ("ladder.py", "4bbe32e03b72bde6a5d3e3f6c7694299e37a58d866edf2471ed0e82d2ea3a06c"),
        ("repairs.py", "a6b96155959c23203c13b12b2ca614beac3b0b64036d3984229130b34c7b76d1"),
        ("variants.py", "64520a9b886f591b6770a61568ba0278e509a16f7bbfb4dcfdc075f627bc1d0a"),
    ],
)
def test_the_text_of_trained_cells_stays(name, digest):
    assert hashlib.sha256((GRIDS / name).read_bytes()).hexdigest() == digest, (
        f"runs of {name} are stored under the old text; put new cells into a file of their own"
    )


def test_growth_is_of_kinds_of_the_headline_at_rates_about_theirs():
    headline, growth = (
        sweep.read_grid(GRIDS / f"cifar10_{name}.yaml") for name in ("headline", "growth")
    )
    rates = [0.03, 0.01, 0.003, 0.001]
    alike = [replace(run, training=replace(run.training, epochs=40)) for run in headline]
    allowed = {
        replace(run, training=replace(run.training, learning_rate=rate)).key()
        for run in alike
        for rate in rates[rates.index(run.training.learning_rate) - 1 :]
    }
    longest = [run for run in growth if run.training.epochs == 40]
    assert len(longest) == (2 * 7 + 3 + 2) * 3 + 1 and {run.key() for run in longest} <= allowed
    assert [run.training.epochs for run in growth if run not in longest] == [5] * 2 * 3
