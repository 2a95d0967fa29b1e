"""Folders of images, one folder a class, as data sets; as torchvision's ImageFolder reads them."""

import hashlib
import io
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from lib import datasets
from lib.checks import require, whole

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
GREY, DEEP = ("1", "L"), ("I", "F")  # modes of PIL; DEEP holds more than 8 bits a value
# Part of the keys of runs: it says what the images are, and not where they lie.
TEXT = """from lib.folders import register_images

register_images({name!r}, {digest!r}, shape={shape!r}, class_names={class_names!r})
"""


def register_folder(folder, name=None, size=None) -> str:
    """Add the images of a folder as a data set, and return its name.

    ``folder`` holds one folder of images for each class, or ``train`` and ``test`` that hold those;
    without ``test``, 20 % of the images of each class become the test set. Images are grey if all
    files are, else RGB. The key of a run holds a digest of the files, so that images that changed
    are never taken for those that were trained on; it does not hold where they lie: hand the same
    folder on as ``data``.

    The default ``name`` is that of the folder. With a ``size`` every image is resized to so many
    rows and columns (bilinear, as torchvision's Resize); without, all must have one size. Raises
    ValueError, which names the folder or the file that is not as it must be.
    """
    folder = Path(folder).expanduser().absolute()
    name = name or folder.name
    if size is not None:
        whole("image size", size, 1)
    parts = _files(folder)
    modes, sizes, digest = _look(folder, parts)
    if size is None and len(sizes) > 1:
        (first, path), (other, another) = list(sizes.items())[:2]
        raise ValueError(
            f"{path} has {first[0]} x {first[1]} pixels, but {another} has {other[0]} x {other[1]};"
            " give all images one size, or have them resized (--image-size 32)."
        )
    columns, rows = next(iter(sizes)) if size is None else (size, size)
    about = {
        "name": name,
        "digest": digest,
        "shape": (1 if modes <= set(GREY) else 3, rows, columns),
        "class_names": tuple(dict.fromkeys(label for label, _ in parts[0])),
    }
    register_images(**about)
    datasets.TEXTS[name] = TEXT.format(**about)
    return name


def register_images(name, digest, shape, class_names):
    """Add a folder of images as `register_folder` found it; reading it refuses other images."""
    read = partial(_read, digest=digest, shape=shape, class_names=class_names)
    datasets.register_dataset(name, read, shape, class_names)


def _read(folder, digest, shape, class_names):
    parts = _files(folder)
    *_, found = _look(folder, parts)
    if found != digest:
        raise ValueError(
            f"the images in {folder} are not those that these runs are of: files were added, "
            "removed or changed. Name the folder that holds those, or train on these as a data set "
            "of their own (--data-from)."
        )
    arrays = []
    for part in parts:
        arrays.append(np.stack([_pixels(path, shape) for _, path in part]))
        arrays.append(np.array([class_names.index(label) for label, _ in part]))
    return arrays


def _files(folder):
    """(class, path) of the images for training and, where there is a folder ``test``, for test."""
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}; name the one that holds your images.")
    found = {path.name for path in _folders(folder)}
    if "train" not in found or not _folders(folder / "train"):
        return [_classes(folder)]
    if found == {"train"}:
        return [_classes(folder / "train")]
    require(
        found == {"train", "test"},
        f"the folders in {folder}",
        sorted(found),
        "train and test alone",
        "move images for validation into train, of which a tenth becomes the validation set",
    )
    train, test = _classes(folder / "train"), _classes(folder / "test")
    unknown = {label for label, _ in test} - {label for label, _ in train}
    if unknown:
        raise ValueError(
            f"{folder / 'test' / min(unknown)} is a class that {folder / 'train'} does not have."
        )
    return [train, test]


def _classes(folder):
    files = []
    for inner in _folders(folder):
        within = (path.relative_to(inner).as_posix() for path in inner.rglob("*"))
        shown = (path for path in within if "/." not in f"/{path}")
        found = sorted(path for path in shown if path.lower().endswith(SUFFIXES))
        if not found:
            raise ValueError(
                f"{inner} holds no image ({', '.join(SUFFIXES)}); delete it, or fill it: every "
                "folder is a class."
            )
        files += [(inner.name, inner / path) for path in found]
    if not files:
        raise ValueError(
            f"{folder} holds no folders; put the images of each class into a folder of its name."
        )
    return files


def _folders(folder):
    found = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(found, key=lambda path: path.name)  # paths sort differently on Windows


def _look(folder, parts):
    """Modes of the images, (columns, rows) each with its first image, and a digest of names and
    bytes.
    """
    modes, sizes, content = set(), {}, hashlib.sha256()
    for _, path in chain(*parts):
        try:
            data = path.read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                mode, size = image.mode, image.size
        except Exception as error:  # of the file, or of what is no image: any, by its format
            said = "it is no image, or damaged" if isinstance(error, OSError) else error
            reason = str(getattr(error, "strerror", None) or said).rstrip(".")
            raise ValueError(f"{path} cannot be read: {reason}; delete or replace it.") from error
        if mode.startswith(DEEP):
            raise ValueError(f"{path} has more than 8 bits a value; save it with 8 bits.")
        modes.add(mode)
        sizes.setdefault(size, path)
        content.update(f"{path.relative_to(folder).as_posix()}\0{len(data)}\0".encode() + data)
    return modes, sizes, content.hexdigest()[:16]


def _pixels(path, shape):
    channels, rows, columns = shape
    try:
        with Image.open(path) as image:
            pixels = image.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # a part of the file is missing, or was changed
        raise ValueError(f"{path} is damaged: {error}; delete or replace it.") from error
    if pixels.size != (columns, rows):
        pixels = pixels.resize((columns, rows), Image.Resampling.BILINEAR)
    return np.asarray(pixels).reshape(rows, columns, channels).transpose(2, 0, 1)
