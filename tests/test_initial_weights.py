"""The initial weights of every cell, bit by bit: results of committed runs rest on them."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch

from lib import cells, paths
from lib.recurrence import SequenceClassifier

# cell, initialisation -> digests for seeds 0 and 1
DIGESTS = {
    ("rnn", "balanced"): ("a7794b5f39052a54", "8d83758dba7c2958"),
    ("rnn", "notes"): ("a7794b5f39052a54", "8d83758dba7c2958"),
    ("simple_gru", "balanced"): ("bbd1d010babbdd2a", "e14ea7e335347b14"),
    ("simple_gru", "notes"): ("bbd1d010babbdd2a", "e14ea7e335347b14"),
    ("gru", "balanced"): ("707b44aabe9c945e", "9e1e2e8fdd93c5fa"),
    ("gru", "notes"): ("707b44aabe9c945e", "9e1e2e8fdd93c5fa"),
    ("cb", "balanced"): ("e9540650772fc572", "8f831005404936fa"),
    ("cb", "notes"): ("be03d9c1807e4d35", "97319b2842528d1e"),
    ("cb_gru", "balanced"): ("67aedb252ffad1ac", "d5ea0c58675f2ba3"),
    ("cb_gru", "notes"): ("6719b00c00ac5be0", "612a543f1586a504"),
    ("dale_cb", "balanced"): ("e2b98367a941dab1", "4ca689653a023d4e"),
    ("dale_cb", "notes"): ("0ba43b998be0d3df", "e152157c5fdc936c"),
    ("stp", "balanced"): ("42ff907be4c8a581", "05b0840b317b427b"),
    ("stp", "notes"): ("2e6d75fbdcbe3b36", "9f8cddf33997d881"),
    ("stp_dale", "balanced"): ("2676dad1f371ea7d", "434ccad13635fccd"),
    ("stp_dale", "notes"): ("fe9a9eb6a290a1ba", "c56b871c21d5a64f"),
    ("stp_dale_cb", "balanced"): ("57dede2d9d2ac3c0", "b3e730c3299101c5"),
    ("stp_dale_cb", "notes"): ("31b8e1a7e88177c5", "978583992ad026b6"),
    ("dale", "balanced"): ("c2a867963237d1ef", "a3a25e003705fbc9"),
    ("dale", "notes"): ("9f833769a651f295", "637e57020b737b41"),
}


def digest(name, initialisation, seed):
    """First 16 hexadecimal digits of the sha256 of all parameters: name, shape and bytes."""
    model = SequenceClassifier(name, 24, 48, 10, 255, seed=seed, initialisation=initialisation)
    total = hashlib.sha256()
    for key, parameter in model.named_parameters():
        total.update(f"{key} {tuple(parameter.shape)}".encode())
        total.update(parameter.detach().numpy().tobytes())
    return total.hexdigest()[:16]


def test_every_cell_is_pinned():
    assert {name for name, _ in DIGESTS} == set(cells.names("all,dale"))


@pytest.fixture(scope="module")
def digests():
    """Those of a process in which MKL rounds alike on processors of all makers."""
    root = str(paths.project_root())
    env = {**os.environ, "MKL_CBWR": "COMPATIBLE", "PYTHONPATH": root}
    said = subprocess.run([sys.executable, __file__], env=env, stdout=subprocess.PIPE, check=True)
    return json.loads(said.stdout)


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="another kind of processor rounds the logarithms of the initialisation differently",
)
@pytest.mark.parametrize(("name", "initialisation"), DIGESTS)
def test_initial_weights_never_change(digests, name, initialisation):
    assert tuple(digests[f"{name} {initialisation}"]) == DIGESTS[name, initialisation]


if __name__ == "__main__":
    made = {" ".join(kind): [digest(*kind, seed) for seed in (0, 1)] for kind in DIGESTS}
    print(json.dumps(made))
