"""Image data sets, one stratified split each: embedded digits, MNIST and CIFAR-10 through
torchvision, and a user's own.

Images stay uint8 on the compute device; a batch is an index selection that is normalised on the way
out.
"""

import hashlib
import http.client
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from lib import paths
from lib.config import Task
from lib.vision import torchvision_datasets

SPLITS = ("train", "validation", "test")
DOWNLOAD_ERRORS = (OSError, RuntimeError, EOFError, http.client.HTTPException)


@dataclass(frozen=True)
class Source:
    """What is known of a data set without loading it."""

    shape: tuple[int, int, int]  # channels, rows, columns
    class_names: tuple[str, ...]
    read: Callable[
        [Path], tuple
    ]  # folder -> train images, train labels, official test images and labels (None: none)
    demonstration: bool = False  # too small and too easy to conclude from; figures say so

    @property
    def classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class Dataset:
    """A loaded task: three splits on one device, cropped and permuted already.

    ``images[split]`` is uint8 ``(n, channels, rows, columns)``, ``labels[split]`` int64 ``(n,)``;
    ``mean`` and ``std`` are float32 ``(channels,)``, of the training split, in units of 0..255.
    """

    task: Task
    images: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]
    mean: torch.Tensor
    std: torch.Tensor
    class_names: tuple[str, ...]

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.images["train"].shape[1:])

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def batch(self, split: str, index) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised float32 images ``(..., channels, rows, columns)`` and labels ``(...,)`` for an
        ``index`` of any shape ``(...,)``.
        """
        index = torch.as_tensor(index, device=self.device)
        images = self.images[split][index].float()
        return images.sub_(self.mean[:, None, None]).div_(self.std[:, None, None]), self.labels[
            split
        ][index]


def names() -> list[str]:
    """Names of the known data sets, the embedded one first."""
    return list(SOURCES)


def source(name: str) -> Source:
    """Look a data set up by name, without loading it."""
    if name not in SOURCES:
        raise ValueError(f"Unknown dataset {name!r}; known are {', '.join(SOURCES)}.")
    return SOURCES[name]


def register_dataset(
    name: str, read: Callable[[Path], tuple], shape: tuple[int, int, int], class_names
) -> None:
    """Add a user's own data set.

    ``read(folder)`` returns four NumPy arrays, uint8 images ``(n, channels, rows, columns)`` and
    integer labels for training and for test; with None, None for the test the split takes 20 % of
    the training images for it. Like `cells.register` it acts on this process alone.
    """
    SOURCES[name] = Source(tuple(shape), tuple(class_names), read)


def check_task(task: Task) -> None:
    """Refuse a task that cannot be meant, before any file is read (ValueError)."""
    rows = source(task.dataset).shape[1]
    if not isinstance(task.permuted, bool):
        raise ValueError(f"permuted is {task.permuted!r}, but must be true or false.")
    if task.last_rows is not None and (
        type(task.last_rows) is not int or not 1 <= task.last_rows <= rows
    ):
        raise ValueError(
            f"last_rows is {task.last_rows!r}, but {task.dataset} has {rows} rows; choose 1 to {rows}, or None for all."
        )
    if type(task.data_seed) is not int or not 0 <= task.data_seed < 2**32:
        raise ValueError(
            f"data_seed is {task.data_seed!r}, but must be a whole number from 0 to 2**32 - 1."
        )


def image_shape(task: Task) -> tuple[int, int, int]:
    """(channels, rows, columns) of the images of a task, without loading it."""
    channels, rows, columns = source(task.dataset).shape
    return channels, task.last_rows or rows, columns


def load(task: Task, data=None, device="cpu") -> Dataset:
    """Load, split, crop and permute a data set.

    The official test set stays the test set, and a stratified tenth of the training set becomes the
    validation set; without an official test set the split is 64/16/20. ``data_seed`` fixes the
    split and the permutation of the pixel positions (channels stay together).

    Parameters
    ----------
    task : Task
    data : path, optional
        Folder of the files, laid out as torchvision does (``cifar-10-batches-py``, ``MNIST/raw``);
        default `paths.data_dir`.
    device : torch device
        Where the images are held.

    Raises
    ------
    ValueError
        The task is invalid, a file is damaged (it is named), or the data are missing and cannot be
        downloaded.
    """
    check_task(task)
    origin = source(task.dataset)
    images, labels, test_images, test_labels = origin.read(
        Path(data or paths.data_dir()).expanduser()
    )
    _check_arrays(task.dataset, origin, images, labels)
    rest, official = np.arange(len(labels)), test_images is not None
    if official:
        _check_arrays(task.dataset, origin, test_images, test_labels)
    else:
        rest, test = _split(rest, labels, 0.2, task.data_seed)
        test_images, test_labels = images[test], labels[test]
    train, validation = _split(rest, labels, 0.1 if official else 0.2, task.data_seed)

    arrays = {
        "train": (images[train], labels[train]),
        "validation": (images[validation], labels[validation]),
    }
    arrays["test"] = test_images, test_labels
    cropped = {
        split: torch.as_tensor(x[:, :, -image_shape(task)[1] :]).contiguous()
        for split, (x, _) in arrays.items()
    }
    if task.permuted:  # after cropping: a permutation of the pixels that are kept
        _, _, rows, columns = cropped["train"].shape
        order = torch.randperm(
            rows * columns, generator=torch.Generator().manual_seed(task.data_seed)
        )
        cropped = {split: x.flatten(2)[..., order].view_as(x) for split, x in cropped.items()}
    mean, std = _moments(cropped["train"])
    return Dataset(
        task,
        {split: x.to(device) for split, x in cropped.items()},
        {
            split: torch.as_tensor(y, dtype=torch.int64, device=device)
            for split, (_, y) in arrays.items()
        },
        mean.to(device),
        std.to(device),
        origin.class_names,
    )


def _split(index, labels, share, seed):
    return train_test_split(index, test_size=share, stratify=labels[index], random_state=seed)


def _moments(images):
    """Mean and standard deviation of every channel, from integer counts: exact whatever the number
    of threads.
    """
    levels, moments = np.arange(256.0), []
    for channel in images.numpy().swapaxes(0, 1):
        counts = sum(
            np.bincount(part.ravel(), minlength=256)
            for part in np.array_split(channel, len(channel) // 1000 + 1)
        )
        mean = counts @ levels / counts.sum()
        moments.append(
            (mean, np.sqrt(counts @ (levels - mean) ** 2 / counts.sum()) or 1.0)
        )  # a constant channel is only centred
    return torch.tensor(moments, dtype=torch.float32).unbind(1)


def _check_arrays(name, origin, images, labels):
    if (
        images.dtype != np.uint8
        or tuple(images.shape[1:]) != origin.shape
        or len(images) != len(labels)
    ):
        raise ValueError(
            f"{name} holds {images.dtype} images of shape {tuple(images.shape)} and {len(labels)} labels, but must hold uint8 images "
            f"of shape (n, {', '.join(map(str, origin.shape))}) and n labels."
        )
    if labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < origin.classes:
        raise ValueError(
            f"{name} must hold whole labels from 0 to {origin.classes - 1}, but they range over {np.unique(labels)[[0, -1]].tolist()}."
        )


# --- the data sets


def _read_digits(folder):
    """scikit-learn's digits, 8 x 8 with values 0..16: enlarged to 16 x 16 (nearest), values 0..240;
    nothing is read from ``folder``.
    """
    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    return images[:, None], digits.target, None, None


def _read_cifar10(folder):
    """CIFAR-10 (A. Krizhevsky, 2009); every file is compared with its published md5 before any of
    them, a pickle, is opened.
    """
    cifar = torchvision_datasets().CIFAR10
    checksums = dict(
        [*cifar.train_list, *cifar.test_list, (cifar.meta["filename"], cifar.meta["md5"])]
    )
    base = folder / cifar.base_folder

    def missing():
        _check_hashes(base, checksums)
        return [name for name in checksums if not (base / name).exists()]

    if missing():
        _download("cifar10", cifar, folder, f"{base}, from {cifar.url}", missing)
    parts = []
    for train in (True, False):
        part = cifar(folder, train=train)
        parts += [part.data.transpose(0, 3, 1, 2), np.asarray(part.targets)]
    return parts


def _check_hashes(base, checksums):
    for name, expected in checksums.items():
        if (base / name).exists() and (
            found := hashlib.md5((base / name).read_bytes(), usedforsecurity=False).hexdigest()
        ) != expected:
            raise ValueError(
                f"{base / name} is damaged (md5 {found}, published {expected}); delete it, so that it is downloaded again."
            )


def _read_mnist(folder):
    """MNIST (Y. LeCun et al.); torchvision hashes the archives only, so the extracted files are
    checked here.
    """
    mnist = torchvision_datasets().MNIST
    raw = folder / "MNIST" / "raw"
    parts = (("train", 60_000), ("t10k", 10_000))
    files = [
        (raw / f"{part}-{kind}-ubyte", n)
        for part, n in parts
        for kind in ("images-idx3", "labels-idx1")
    ]

    def missing():
        return [path.name for path, _ in files if not path.exists()]

    if missing():
        _download("mnist", mnist, folder, f"{raw}, from {mnist.mirrors[0]}", missing)
    return [_read_idx(path, n) for path, n in files]


def _read_idx(path, n):
    """Images ``(n, 1, 28, 28)`` or labels ``(n,)`` of an IDX file: big-endian magic number and
    sizes, then bytes.
    """
    sizes = (n, 28, 28) if "images" in path.name else (n,)
    header = struct.pack(f">{1 + len(sizes)}i", 0x0800 + len(sizes), *sizes)
    content = path.read_bytes()
    if not content.startswith(header):
        problem = "its header is not that of MNIST"
    elif len(content) != len(header) + np.prod(sizes):
        problem = f"it holds {len(content)} bytes, not {len(header) + np.prod(sizes)}"
    elif len(sizes) == 1 and max(content[len(header) :]) > 9:
        problem = f"it holds the label {max(content[len(header) :])}, not only 0 to 9"
    else:
        values = np.frombuffer(
            bytearray(content), np.uint8, offset=len(header)
        )  # a bytearray: torch wants writable memory
        return values.reshape(n, 1, 28, 28) if len(sizes) == 3 else values
    raise ValueError(f"{path} is damaged: {problem}; delete it, so that it is downloaded again.")


def _download(name, torchvision_class, folder, where, missing):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(
            folder / f".{name}.lock"
        ):  # runs start side by side, and one download is enough
            if missing():
                torchvision_class(folder, download=True)
                if missing():
                    raise RuntimeError("the download is incomplete")
    except DOWNLOAD_ERRORS as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{name} lacks {', '.join(missing())} and could not be downloaded ({reason}); put the extracted files into {where}, "
            "or name the folder that holds them (--data, or WORKBOOK_DATA)."
        ) from error


SOURCES = {
    "digits": Source((1, 16, 16), tuple("0123456789"), _read_digits, demonstration=True),
    "mnist": Source((1, 28, 28), tuple("0123456789"), _read_mnist),
    "cifar10": Source(
        (3, 32, 32),
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        _read_cifar10,
    ),
}

TEXTS: dict[
    str, str
] = {}  # text that registered a user's own data set, by name; set by `lib.cells.register_source`
