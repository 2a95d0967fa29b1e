"""Data: splits, permutation, normalisation, and files that must be refused. No test reaches the
network.
"""

import os
import pickle
from contextlib import contextmanager
from hashlib import md5
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits

from lib import cells, datasets, explore
from lib.cells.registry import registered
from lib.config import CellSpec, RunConfig, Task, Training, Window
from lib.figures import summaries
from lib.paths import data_dir, project_root
from lib.runs import attempt
from lib.runs.store import Store


@pytest.fixture
def offline(monkeypatch):
    """A download that fails as it does without a network."""

    def urlopen(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)


@pytest.fixture
def small_cifar10(tmp_path, monkeypatch):
    """Six files in CIFAR-10's layout, 20 images each; the value of a pixel says its position,
    plus 7 for every channel.
    """
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    image = (np.arange(1024) % 200)[None] + 7 * np.arange(3)[:, None]
    batch = pickle.dumps(
        {
            "data": np.tile(image.astype(np.uint8).ravel(), (20, 1)),
            "labels": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 2,
        }
    )
    for name in datasets.CIFAR10:
        (base / name).write_bytes(batch)
    sums = dict.fromkeys(datasets.CIFAR10, md5(batch).hexdigest())
    monkeypatch.setattr(datasets, "CIFAR10", sums)
    return tmp_path


@pytest.fixture
def small_mnist(tmp_path):
    """The four extracted MNIST files, black images (the files have holes, so they cost no time)."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 60_000), ("t10k", 10_000)):
        header = b"".join(i.to_bytes(4, "big") for i in (0x803, n, 28, 28))
        with open(raw / f"{part}-images-idx3-ubyte", "wb") as file:
            file.write(header)
            file.truncate(16 + n * 784)
        labels = (np.arange(n) % 10).astype(np.uint8).tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            b"".join(i.to_bytes(4, "big") for i in (0x801, n)) + labels
        )
    return tmp_path


def pixels(data):
    """All images of all splits, sorted, as bytes: what there is, whatever the order."""
    return sorted(
        image.numpy().tobytes() for split in datasets.SPLITS for image in data.images[split]
    )


# --- digits: split, seed, permutation, crop


def test_digits_are_the_real_ones_enlarged():
    data = datasets.load(Task())
    assert {split: tuple(x.shape) for split, x in data.images.items()} == {
        "train": (1149, 1, 16, 16),
        "validation": (288, 1, 16, 16),
        "test": (360, 1, 16, 16),
    }
    assert all(x.dtype == torch.uint8 for x in data.images.values()) and all(
        y.dtype == torch.int64 for y in data.labels.values()
    )
    small = sorted(
        (image[0, ::2, ::2] // 15).numpy().tobytes()
        for split in datasets.SPLITS
        for image in data.images[split]
    )
    assert small == sorted(image.astype(np.uint8).tobytes() for image in load_digits().images)
    assert torch.equal(data.images["train"][:, :, ::2, ::2], data.images["train"][:, :, 1::2, 1::2])
    assert (
        data.shape == datasets.image_shape(Task())
        and data.classes == 10
        and len(data.class_names) == 10
    )


def test_split_is_stratified_disjoint_and_fixed_by_the_data_seed():
    data, again, other = (
        datasets.load(Task()),
        datasets.load(Task()),
        datasets.load(Task(data_seed=1)),
    )
    whole = torch.cat(list(data.labels.values())).bincount() / 1797
    for split in datasets.SPLITS:
        assert torch.equal(data.images[split], again.images[split]) and torch.equal(
            data.labels[split], again.labels[split]
        )
        assert not torch.equal(data.images[split], other.images[split])
        assert (data.labels[split].bincount() / len(data.labels[split]) - whole).abs().max() < 0.005
    assert pixels(data) == pixels(other)  # nothing is lost or doubled


def test_normalisation_comes_from_the_training_split():
    data = datasets.load(Task())
    images, labels = data.batch("train", torch.arange(1149))
    assert images.dtype == torch.float32 and labels.shape == (1149,)
    assert abs(images.double().mean()) < 1e-5 and abs(images.double().std(correction=0) - 1) < 1e-5
    raw = data.images["train"].double()
    assert torch.allclose(data.mean.double(), raw.mean((0, 2, 3)), rtol=1e-6)
    assert torch.allclose(data.std.double(), raw.std((0, 2, 3), correction=0), rtol=1e-6)
    test, _ = data.batch("test", torch.arange(3))
    assert torch.allclose(test, (data.images["test"][:3].float() - data.mean) / data.std)


def test_batches_select_with_any_leading_axes():
    data = datasets.load(Task())
    index = torch.tensor([[0, 5, 7], [1, 1, 2]])
    images, labels = data.batch("validation", index)
    assert images.shape == (2, 3, 1, 16, 16) and labels.shape == (2, 3)
    alone, label = data.batch("validation", [5])
    assert torch.equal(images[0, 1], alone[0]) and labels[0, 1] == label[0]


def test_permutation_is_one_reordering_of_the_pixels_of_all_splits():
    plain, permuted = datasets.load(Task()), datasets.load(Task(permuted=True))
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    for split in datasets.SPLITS:
        assert torch.equal(
            plain.images[split].flatten(2)[..., order], permuted.images[split].flatten(2)
        )
        assert torch.equal(plain.labels[split], permuted.labels[split])
    other = datasets.load(Task(permuted=True, data_seed=1))
    assert pixels(other) != pixels(permuted)
    assert torch.equal(permuted.mean, plain.mean)


def test_last_rows_keeps_the_end_of_every_image():
    plain, cropped = datasets.load(Task()), datasets.load(Task(last_rows=3))
    assert torch.equal(cropped.images["test"], plain.images["test"][:, :, -3:])
    assert cropped.shape == datasets.image_shape(Task(last_rows=3)) == (1, 3, 16)
    both = datasets.load(Task(last_rows=3, permuted=True))  # permutes what is kept
    assert torch.equal(
        both.images["test"].flatten(1).sort(1)[0], cropped.images["test"].flatten(1).sort(1)[0]
    )


def test_first_rows_keeps_the_start_of_every_image():
    task = Task(first_rows=3, delay=32)
    plain, cropped = datasets.load(Task()), datasets.load(task)
    assert torch.equal(cropped.images["test"], plain.images["test"][:, :, :3])
    assert cropped.shape == datasets.image_shape(task) == (1, 3, 16)


def test_moments_are_exact_and_a_constant_channel_is_only_centred():
    images = torch.zeros(2500, 2, 3, 3, dtype=torch.uint8)
    images[:, 1] = torch.randint(256, (2500, 3, 3), generator=torch.Generator().manual_seed(0))
    mean, std = datasets._moments(images)
    assert (mean[0], std[0]) == (0, 1)
    assert torch.isclose(mean[1].double(), images[:, 1].double().mean()) and torch.isclose(
        std[1].double(), images[:, 1].double().std(correction=0)
    )


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (Task("imagenet"), "'imagenet'.*digits, mnist, cifar10"),
        (Task(permuted=1), "permuted is 1"),
        (Task(last_rows=0), "last_rows is 0.*1 to 16"),
        (Task(last_rows=17), "last_rows is 17.*1 to 16"),
        (Task(last_rows=True), "last_rows is True"),
        (Task(last_rows=2.0), "last_rows is 2.0"),
        (Task(first_rows=17), "first_rows is 17.*1 to 16"),
        (Task(first_rows=4, last_rows=4), "first_rows is 4.*last_rows.*first rows or the last"),
        (Task(delay=-4), "delay is -4.*pixels from 0"),
        (Task(delay=True), "delay is True"),
        (Task(delay=8.0), "delay is 8.0"),
        (Task(data_seed=-1), "data_seed is -1"),
        (Task(data_seed=2**32), "data_seed is 4294967296"),
    ],
)
def test_bad_tasks_are_refused_before_any_file_is_read(task, words):
    with pytest.raises(ValueError, match=words):
        datasets.check_task(task)
    with pytest.raises(ValueError, match=words):
        datasets.load(task, "/nowhere")


# --- a user's own data


def own(labels, shape=(1, 4, 6), dtype=np.uint8):
    images = np.random.default_rng(0).integers(0, 256, (len(labels), *shape)).astype(dtype)
    return lambda folder: (images, np.asarray(labels), None, None)


def test_own_data_set_is_split_like_the_digits(monkeypatch):
    monkeypatch.setattr(datasets, "DATASETS", dict(datasets.DATASETS))
    datasets.register_dataset("own", own([0, 1] * 50), (1, 4, 6), ("left", "right"))
    data = datasets.load(Task("own", last_rows=2))
    assert [len(y) for y in data.labels.values()] == [64, 16, 20]
    assert (
        data.shape == (1, 2, 6)
        and data.class_names == ("left", "right")
        and "own" in datasets.names()
    )


PIXELS = np.random.default_rng(1).integers(0, 256, (100, 1, 4, 6))
PIXELS[0, 0, 0, :2] = 0, 255
HALF = np.arange(100) % 2


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (PIXELS.astype(np.uint8), HALF[:, None]),  # as Keras gives them
        (PIXELS.astype(">i4"), HALF.astype(">i8")),  # as of IDX and HDF5 files
        (PIXELS.astype(np.float64), np.eye(2)[HALF]),
        ((PIXELS / 255).astype(np.float32), HALF.astype(bool)),
        (PIXELS.tolist(), HALF.tolist()),
        (list(PIXELS), pd.Series(HALF)),
        (torch.as_tensor(PIXELS), torch.as_tensor(HALF)),
        (PIXELS.astype(np.uint8)[::-1][::-1], HALF.astype(np.uint8)),
    ],
)
def test_what_readers_return_is_converted(monkeypatch, images, labels):
    monkeypatch.setattr(datasets, "DATASETS", {})
    datasets.register_dataset("own", lambda folder: (images, labels), (1, 4, 6), ("a", "b"))
    split_off = datasets.load(Task("own"))
    assert {split: len(y) for split, y in split_off.labels.items()} == {
        "train": 64,
        "validation": 16,
        "test": 20,
    }
    made = images, labels, images, labels
    datasets.register_dataset("own", lambda folder: made, (1, 4, 6), ("a", "b"))
    test = datasets.load(Task("own"))
    assert test.images["test"].dtype == torch.uint8 and test.labels["test"].dtype == torch.int64
    assert (test.images["test"].numpy() == PIXELS).all()
    assert (test.labels["test"].numpy() == HALF).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("digits", None, (1, 8, 8), "ab"), "name is 'digits'"),
        (("own", None, (8, 8), "ab"), r"shape of own is \(8, 8\).*channels, rows, columns"),
        (("own", None, (1, 8, 0), "ab"), "shape of own"),
        (("own", None, (1, 8, 8), ["a"]), "two or more different names"),
        (("own", None, (1, 8, 8), ["a", "a"]), "two or more different names"),
    ],
)
def test_a_data_set_that_cannot_be_registered(arguments, words):
    with pytest.raises(ValueError, match=words):
        datasets.register_dataset(*arguments)
    assert "own" not in datasets.names()


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (own([0, 2] * 50), "labels from 0 to 1"),
        (own([0, -1] * 50), "labels from 0 to 1"),
        (own([0.0, 1.0] * 50), "whole labels"),
        (own([0, 1] * 50, shape=(4, 6)), r"shape \(n, 1, 4, 6\)"),
        (own([0] * 100), "No image .* 'right'"),
        (own([0, 1] * 2), "4 images of 2 classes, too few"),
        (own([]), "0 images and 0 labels"),
        (lambda folder: None, "returns NoneType"),
        (lambda folder: own([0, 1] * 50)(folder)[:3], "returns ndarray, ndarray, NoneType"),
        (lambda folder: (PIXELS / 100, HALF), "float64 from 0 to 2.55"),
        (lambda folder: (PIXELS - 200.0, HALF), "float64 from -200 to 55"),
        (lambda folder: (PIXELS[:-1], HALF), "99 images and 100 labels of the training set"),
        (lambda folder: ([*PIXELS[:-1], HALF], HALF), "images .* no array"),
        (lambda folder: (PIXELS, HALF, PIXELS[:0], HALF[:0]), "0 labels of the test set"),
        (lambda folder: (PIXELS, np.array(list("ab") * 50)), "<U1 of shape"),
        (lambda folder: 1 / 0, "own cannot be read from .*ZeroDivisionError.*--data"),
        (lambda folder: open("/nowhere/own.npz"), "own cannot be read .*/nowhere/own.npz"),
    ],
)
def test_own_data_set_that_is_not_what_it_says(monkeypatch, read, words):
    monkeypatch.setattr(datasets, "DATASETS", {})
    datasets.register_dataset("own", read, (1, 4, 6), ("left", "right"))
    with pytest.raises(ValueError, match=words):
        datasets.load(Task("own"))


# --- CIFAR-10


def test_cifar10_keeps_the_test_set_and_takes_a_tenth_for_validation(small_cifar10):
    data = datasets.load(Task("cifar10"), small_cifar10)
    assert [len(y) for y in data.labels.values()] == [90, 10, 20]
    assert data.labels["validation"].bincount().tolist() == [1] * 10
    assert data.labels["test"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 2
    assert data.images["train"][0, :, 2, 3].tolist() == [
        67,
        74,
        81,
    ]  # channel, row, column are where they belong


def test_cifar10_permutation_keeps_the_channels_of_a_pixel_together(small_cifar10):
    image = datasets.load(Task("cifar10", permuted=True), small_cifar10).images["train"][0].int()
    assert torch.equal(image[1] - image[0], torch.full((32, 32), 7)) and torch.equal(
        image[2] - image[0], torch.full((32, 32), 14)
    )
    assert not torch.equal(image[0].flatten(), torch.arange(1024, dtype=torch.int32) % 200)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
@pytest.mark.parametrize("alone", [True, False])
def test_wrong_cifar10_file_is_named_and_never_unpickled(small_cifar10, offline, name, alone):
    base, trap = small_cifar10 / "cifar-10-batches-py", small_cifar10 / "trap"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(trap),)

    if alone:
        for path in base.iterdir():
            path.unlink()
    (base / name).write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match=f"{name} is damaged.*delete it"):
        datasets.load(Task("cifar10"), small_cifar10)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("name", "host"), [("cifar10", "cs.toronto.edu"), ("mnist", "ossci-datasets")]
)
def test_missing_data_say_how_to_get_them(tmp_path, offline, name, host):
    with pytest.raises(ValueError) as error:
        datasets.load(Task(name), tmp_path)
    message = str(error.value)
    assert (
        host in message
        and str(tmp_path) in message
        and "--data" in message
        and "WORKBOOK_DATA" in message
        and "\n" not in message
    )


def test_missing_data_in_a_place_that_cannot_be_written(tmp_path, offline):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="could not be downloaded"):
        datasets.load(Task("cifar10"), tmp_path / "file")


def test_files_of_cifar10_are_those_that_torchvision_downloads(tmp_path, offline):
    cifar = datasets.torchvision_datasets().CIFAR10
    assert datasets.CIFAR10 == dict([*cifar.train_list, *cifar.test_list])
    with pytest.raises(ValueError, match=f"into .*{cifar.base_folder}, from {cifar.url}"):
        datasets.load(Task("cifar10"), tmp_path)


def test_real_cifar10(real_cifar10):
    data = datasets.load(Task("cifar10"), real_cifar10)
    assert {split: len(x) for split, x in data.images.items()} == {
        "train": 45_000,
        "validation": 5_000,
        "test": 10_000,
    }
    assert (
        data.labels["validation"].bincount().tolist() == [500] * 10
        and data.labels["test"].bincount().tolist() == [1000] * 10
    )
    assert torch.allclose(
        data.mean / 255, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-3
    )  # the constants everyone uses
    assert torch.allclose(data.std / 255, torch.tensor([0.2470, 0.2435, 0.2616]), atol=1e-3)
    assert data.labels["test"][:4].tolist() == [3, 8, 8, 0]  # cat, ship, ship, airplane


# --- MNIST


@pytest.mark.filterwarnings("error")
def test_mnist_reads_the_extracted_files(small_mnist):
    data = datasets.load(Task("mnist"), small_mnist)
    assert {split: tuple(x.shape) for split, x in data.images.items()} == {
        "train": (54_000, 1, 28, 28),
        "validation": (6_000, 1, 28, 28),
        "test": (10_000, 1, 28, 28),
    }
    assert data.labels["validation"].bincount().tolist() == [600] * 10
    assert data.labels["test"][:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


@contextmanager
def bytes_of(path):
    content = bytearray(path.read_bytes())
    yield content
    path.write_bytes(content)


def magic(content):
    content[3] = 0x08


def count(content):
    content[7] += 1


def truncated(content):
    del content[-1]


def longer(content):
    content.append(0)


def empty(content):
    content.clear()


def label(content):
    content[100] = 10


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("train-images-idx3-ubyte", magic, "header"),
        ("t10k-images-idx3-ubyte", count, "header"),
        ("t10k-images-idx3-ubyte", truncated, "7840015 bytes, not 7840016"),
        ("t10k-labels-idx1-ubyte", longer, "10009 bytes, not 10008"),
        ("train-labels-idx1-ubyte", empty, "header"),
        ("train-labels-idx1-ubyte", label, "label 10"),
    ],
)
def test_broken_mnist_file_is_named(small_mnist, offline, name, damage, words):
    with bytes_of(small_mnist / "MNIST" / "raw" / name) as content:
        damage(content)
    with pytest.raises(ValueError, match=f"{name} is damaged: .*{words}.*delete it"):
        datasets.load(Task("mnist"), small_mnist)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_folder_where_a_file_is_expected_is_named(small_mnist, offline, name):
    path = small_mnist / "MNIST" / "raw" / name
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match=f"{name} cannot be read .Is a directory.*move"):
        datasets.load(Task("mnist"), small_mnist)


@pytest.mark.filterwarnings("error")
def test_the_data_folder_may_lie_in_the_home_folder(small_mnist, monkeypatch):
    monkeypatch.setenv("HOME", str(small_mnist.parent))
    place = f"~/{small_mnist.name}"
    assert datasets.load(Task("mnist"), place).classes == 10
    monkeypatch.setenv("WORKBOOK_DATA", place)
    assert data_dir() == small_mnist


# --- the torchvision guard


def guard(monkeypatch, outcomes, modules=()):
    """Run the guard with an import that gives `outcomes` in turn; say what it returned, defined,
    and left in sys.modules.
    """
    defined, modules = [], dict.fromkeys(modules)

    def import_module(name):
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(datasets, "importlib", SimpleNamespace(import_module=import_module))
    monkeypatch.setattr(datasets, "sys", SimpleNamespace(modules=modules))
    monkeypatch.setattr(datasets, "_missing_schemas", lambda: defined.append(True))
    return datasets.torchvision_datasets(), defined, list(modules)


def test_guard_does_nothing_where_torchvision_loads(monkeypatch):
    module = ModuleType("torchvision.datasets")
    assert guard(monkeypatch, [module], ["torch", "torchvision.extension"]) == (
        module,
        [],
        ["torch", "torchvision.extension"],
    )


def test_guard_defines_the_schemas_and_forgets_the_failed_import(monkeypatch):
    module, failure = (
        ModuleType("torchvision.datasets"),
        RuntimeError("operator torchvision::nms does not exist"),
    )
    names = [
        "torch",
        "torchvision.extension",
        "torchvision._autograd_registrations",
        "torchvisionary",
    ]
    assert guard(monkeypatch, [failure, module], names) == (
        module,
        [True],
        ["torch", "torchvisionary"],
    )


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("PyTorch has CUDA Version=13.0 and torchvision has 12.8"),
        ImportError("no torchvision"),
    ],
)
def test_guard_passes_other_failures_on(monkeypatch, failure):
    with pytest.raises(type(failure), match=str(failure)):
        guard(monkeypatch, [failure])


def test_guard_here():
    first = datasets.torchvision_datasets()
    assert (
        first is datasets.torchvision_datasets() and Path(first.__file__).parent.name == "datasets"
    )
    assert torch.ops.torchvision.nms.default.name() == "torchvision::nms"


# --- after the training, where nobody registers the data set again

SIGNALS = """
import numpy as np
from lib.datasets import register_dataset

def read(folder):
    if not folder.name == "signals":
        raise ValueError(f"no file {folder / 'signals.npz'}")
    made = np.random.default_rng(0).integers(0, 256, (100, 1, 2, 16))
    return made, np.arange(100) % 4

register_dataset("signals", read, (1, 2, 16), class_names=("up", "down", "rest", "noise"))
"""


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A store of one run on a data set that this process does not know any more."""
    for name in ("DATASETS", "TEXTS"):
        monkeypatch.setattr(datasets, name, dict(getattr(datasets, name)))
    config = RunConfig(
        Task("signals", source=SIGNALS), Window(), CellSpec("cb", 2), Training(1, 20)
    )
    (tmp_path / "signals").mkdir()
    attempt.execute(config, Store(tmp_path), data=tmp_path / "signals", backend="reference")
    del datasets.DATASETS["signals"], datasets.TEXTS["signals"]
    return Store(tmp_path)


def test_a_run_holds_what_reading_needs_of_its_data_set(trained):
    (row,) = trained.runs().itertuples()
    assert row.image_shape == (1, 2, 16)
    assert row.class_names == ("up", "down", "rest", "noise")
    for frame in (trained.runs(), trained.curves()):
        assert summaries.chance(frame) == 25 and "Data: signals" in summaries.caption(frame)
    trained.pack([row.key], "bundle")
    assert Store(trained.root / "bundle").runs().class_names[0] == row.class_names
    assert row.source  # tells versions of the data set apart
    assert explore.WindowControls(trained).task == "signals"
    assert explore.CurveExplorer(trained).frame is not None
    assert "signals" not in datasets.names()


def test_an_explorer_says_that_the_images_are_not_at_hand_and_shows_the_rest(trained):
    away = explore.TraceExplorer(trained, data=trained.root)
    assert "The images of signals are not at hand" in away.message.value
    away.set(view="parameters over training")
    assert away.frame is not None
    here = explore.TraceExplorer(trained, data=trained.root / "signals")
    assert here.frame is not None and any(
        "down" in text for text, _ in here.controls["image"].options
    )


def test_runs_from_before_their_data_set_was_stored_with_them_take_it_from_the_registry():
    runs = Store(project_root() / "results" / "cifar10" / "grid").runs()
    assert set(runs.image_shape) == {(3, 32, 32)} and summaries.chance(runs) == 10


def test_explorers_open_on_narrow_images(tmp_path, monkeypatch):
    for name in ("DATASETS", "TEXTS"):
        monkeypatch.setattr(datasets, name, dict(getattr(datasets, name)))
    narrow = SIGNALS.replace("2, 16", "2, 8").replace('"signals"', '"narrow"')
    config = RunConfig(
        Task("narrow", source=narrow), Window(4, 2), CellSpec("rnn", 2), Training(1, 20)
    )
    (tmp_path / "narrow").mkdir()
    attempt.execute(config, Store(tmp_path), data=tmp_path / "narrow", backend="reference")
    opened = explore.CurveExplorer(Store(tmp_path))
    assert opened.controls["input_length"].value == 4


def test_an_older_version_is_read_by_its_text_and_the_newest_stays(trained):
    newest = SIGNALS.replace("(100, 1, 2, 16)", "(80, 1, 2, 16)")
    cells.register_source(newest.replace("np.arange(100)", "np.arange(80)"))
    (config,) = (trained.config(key) for key in trained.runs()["key"])
    folder = trained.root / "signals"
    with registered(config.task):
        assert len(datasets.load(config.task, data=folder).labels["train"]) == 64
    assert datasets.TEXTS["signals"] != SIGNALS
    assert len(datasets.load(Task("signals"), data=folder).labels["train"]) == 51
