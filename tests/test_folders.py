"""Folders of images as data sets: what is found, what is refused, and a comparison of them."""

import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from lib import __main__, datasets, folders, train
from lib.config import CellSpec, RunConfig, Task, Training, Window
from lib.runs import attempt, sweep
from lib.runs.store import Store


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    for name in ("DATASETS", "TEXTS"):
        monkeypatch.setattr(datasets, name, dict(getattr(datasets, name)))


def picture(path, seed=0, size=(8, 6), mode="RGB"):
    """A file of random pixels; ``size`` is (columns, rows)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def photos(tmp_path):
    """Two classes of ten images, and what must not be taken for a class or an image."""
    for number in range(10):
        picture(tmp_path / "photos" / "cats" / f"{number}.png", number)
        picture(tmp_path / "photos" / "dogs" / "more" / f"{number}.PNG", 100 + number)
    (tmp_path / "photos" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "photos" / "cats" / "._1.png").write_bytes(b"")
    picture(tmp_path / "photos" / "cats" / ".ipynb_checkpoints" / "1-checkpoint.png")
    (tmp_path / "photos" / "dogs" / "notes.txt").write_text("")
    return tmp_path / "photos"


def registered(folder, **options):
    name = folders.register_folder(folder, **options)
    return datasets.load(Task(name), data=folder)


def test_every_folder_is_a_class(photos):
    data = registered(photos)
    assert data.class_names == ("cats", "dogs") and data.shape == (3, 6, 8)
    assert [data.labels[split].tolist().count(1) for split in datasets.SPLITS] == [6, 2, 2]
    with Image.open(photos / "cats" / "3.png") as image:
        first = np.asarray(image).transpose(2, 0, 1)
    found = np.concatenate([data.images[split].numpy() for split in datasets.SPLITS])
    assert len(found) == 20 and (found == first).all((1, 2, 3)).sum() == 1


def test_train_and_test_folders_are_kept_apart(tmp_path):
    for split, count in (("train", 20), ("test", 3)):
        for label in ("a", "b", "c"):
            for number in range(count):
                picture(tmp_path / split / label / f"{number}.jpg", number, mode="L")
    data = registered(tmp_path, name="own")
    assert [len(data.labels[split]) for split in datasets.SPLITS] == [54, 6, 9]
    assert data.labels["test"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert data.shape == (1, 6, 8)


def test_images_are_resized_to_one_size(photos):
    picture(photos / "cats" / "large.png", size=(40, 20))
    with pytest.raises(ValueError, match=r"0.png has 8 x 6 .*large.png has 40 x 20.*--image-size"):
        registered(photos)
    assert registered(photos, size=4).shape == (3, 4, 4)


def test_the_files_enter_the_key_and_where_they_lie_does_not(photos, tmp_path):
    def key():
        folders.register_folder(tmp_path / "photos")
        return RunConfig(Task("photos", source=datasets.TEXTS["photos"])).key()

    first, task = key(), Task("photos", source=datasets.TEXTS["photos"])
    assert str(tmp_path) not in task.source
    (tmp_path / "elsewhere").mkdir()
    photos.rename(tmp_path / "elsewhere" / "pets")
    del datasets.DATASETS["photos"], datasets.TEXTS["photos"]
    train.check(RunConfig(task, Window(2, 2), CellSpec("rnn")))  # registers it, as a child does
    assert datasets.load(task, data=tmp_path / "elsewhere" / "pets").classes == 2
    (tmp_path / "elsewhere" / "pets").rename(photos)
    assert key() == first
    picture(photos / "cats" / "3.png", 7)
    with pytest.raises(ValueError, match=r"photos: the images in .*changed"):
        datasets.load(task, data=photos)
    assert key() != first


def deep(folder):
    Image.fromarray(np.zeros((6, 8), np.uint16)).save(folder / "cats" / "1.png")


def cut(folder):
    path = folder / "cats" / "1.png"
    path.write_bytes(path.read_bytes()[:60])


def no_image(folder):
    (folder / "cats" / "1.png").write_bytes(b"<html>")


def chunk(folder):
    """The second half of the pixels is a chunk of an unknown kind."""
    path = folder / "cats" / "1.png"
    data = path.read_bytes()
    at = data.index(b"IDAT")
    half = data[at : at + 14]
    first = (10).to_bytes(4) + half + zlib.crc32(half).to_bytes(4)
    path.write_bytes(data[: at - 4] + first + (5).to_bytes(4) + bytes([255] * 4) + data[at + 14 :])


def cut_header(folder):
    (folder / "cats" / "1.png").write_bytes(b"P6 4")


def bomb(folder):
    (folder / "cats" / "1.png").write_bytes(b"P6 60000 60000 255\n")


def empty_class(folder):
    (folder / "birds").mkdir()


def validation(folder):
    for split in ("train", "val"):
        picture(folder / split / "cats" / "1.png")


def other_class(folder):
    for path in folder.iterdir():
        path.rename(folder.parent / path.name)
    picture(folder / "train" / "cats" / "1.png")
    picture(folder / "test" / "birds" / "1.png")


def one_class(folder):
    (folder / "dogs").rename(folder.parent / "dogs")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (deep, "1.png has more than 8 bits"),
        (cut, "1.png .*damaged"),
        (chunk, "1.png is damaged: broken PNG file"),
        (cut_header, "1.png cannot be read: Reached EOF"),
        (bomb, "1.png cannot be read: Image size .* bomb DOS attack; delete"),
        (no_image, "1.png cannot be read: it is no image"),
        (empty_class, "birds holds no image"),
        (validation, r"\['cats', 'dogs', 'train', 'val'\], but must be train and test alone"),
        (other_class, "birds is a class that .*train does not have"),
        (one_class, "two or more different names"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused(photos, change, words):
    change(photos)
    with pytest.raises(ValueError, match=words):
        registered(photos)


@pytest.mark.parametrize("name", ["nowhere", "file", "empty"])
def test_what_is_no_folder_of_images_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=name):
        folders.register_folder(tmp_path / name)


# --- on the command line


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["lib", *map(str, arguments)])
    try:
        __main__.main()
    except SystemExit as end:
        return end.code or 0
    return 0


def test_compare_on_a_folder_of_images(photos, tmp_path, monkeypatch, capsys):
    tiny = "--cells rnn --seeds 1 --epochs 1 --hidden-size 2 --input-length 2 --stride 2".split()
    for seed in range(20, 40):
        picture(photos / "cats" / f"{seed}.png", seed, (9, 7))
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = ["compare", *tiny, "--backend", "reference", "--slots", 1, "--image-size", 8]
    arguments += ["--results", tmp_path / "results"]
    assert call(monkeypatch, *arguments, "--data-from", "~/photos") == 2
    said = capsys.readouterr().err
    assert "batch_size is 40, but must be at most 25, the images of the training set" in said
    assert not list((tmp_path / "results" / "runs").iterdir())
    arguments += ["--batch-size", 5]
    assert call(monkeypatch, *arguments, "--data-from", "~/photos") == 0
    (row,) = Store(tmp_path / "results").runs().itertuples()
    assert row.dataset == "photos" and row.class_names == ("cats", "dogs")
    assert row.state == "DONE" and row.image_shape == (3, 8, 8)
    assert (tmp_path / "results" / "figures" / "accuracy_bars.pdf").exists()
    del datasets.DATASETS["photos"], datasets.TEXTS["photos"]
    assert call(monkeypatch, "compare", "--from", tmp_path / "results") == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data-from", "photos", "--data", "."], "--data and --data-from"),
        (["--image-size", "8"], "--image-size is for"),
        (["--data-from", "photos", "--image-size", "0"], "image size is 0"),
        (["--data-from", "photos", "--dataset", "mnist"], "name is 'mnist'"),
        (["--data-from", "nowhere"], "There is no folder"),
    ],
)
def test_refused_options_are_one_sentence(photos, arguments, words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "compare", *arguments, "--results", tmp_path / "results") == 2
    error = capsys.readouterr().err
    assert words in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_a_data_set_of_this_process_alone_is_refused_before_any_run_waits(tmp_path):
    made = np.zeros((40, 1, 4, 4), np.uint8), np.arange(40) % 2
    datasets.register_dataset("mine", lambda folder: made, (1, 4, 4), "ab")
    config = RunConfig(Task("mine"), Window(2, 2), CellSpec("rnn", 2), Training(1, 10))
    for train_all in (attempt.execute, sweep.sweep):
        with pytest.raises(ValueError, match=r"mine is known to this process alone.*register_s"):
            train_all([config], Store(tmp_path))
    assert Store(tmp_path).status(config.key()) is None


def test_data_that_are_missing_are_said_before_any_run_waits(tmp_path, monkeypatch, capsys):
    def urlopen(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    arguments = ["compare", "--dataset", "mnist", "--data", tmp_path / "data"]
    assert call(monkeypatch, *arguments, "--results", tmp_path / "results") == 2
    assert "which could not be downloaded (no network)" in capsys.readouterr().err
    assert not list((tmp_path / "results" / "runs").iterdir())
