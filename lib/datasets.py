"""Image data sets, one stratified split each: embedded digits, MNIST and CIFAR-10 through
torchvision, and a user's own, as arrays or as a folder of images.

Images stay uint8 on the compute device; a batch is an index selection that is normalised on the way
out.
"""

import hashlib
import http.client
import importlib
import pickle
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock

from lib import paths
from lib.checks import require
from lib.config import Task

if TYPE_CHECKING:
    import torch

# torch and scikit-learn are imported where they are needed: reading the rows of runs starts without
# them.

SPLITS = ("train", "validation", "test")
DOWNLOAD_ERRORS = (OSError, RuntimeError, EOFError, http.client.HTTPException)


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set without loading it.

    ``read(folder)`` gives images and labels for training, or four values, with those for test.
    """

    shape: tuple[int, int, int]  # channels, rows, columns
    class_names: tuple[str, ...]
    read: Callable[[Path], tuple]
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
    images: dict[str, "torch.Tensor"]
    labels: dict[str, "torch.Tensor"]
    mean: "torch.Tensor"
    std: "torch.Tensor"
    class_names: tuple[str, ...]

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.images["train"].shape[1:])

    def batch(self, split: str, index) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Normalised float32 images ``(..., channels, rows, columns)`` and labels ``(...,)`` for an
        ``index`` of any shape ``(...,)``.
        """
        import torch

        index = torch.as_tensor(index, device=self.mean.device)
        images = self.images[split][index].float()
        images.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])
        return images, self.labels[split][index]


def names() -> list[str]:
    """Names of the known data sets, the embedded one first."""
    return list(DATASETS)


def get(name: str) -> DatasetInfo:
    """What is known of a data set; an unknown name is refused (ValueError)."""
    if name not in DATASETS:
        raise ValueError(
            f"Unknown dataset {name!r}; known are {', '.join(DATASETS)}. One of your own must be "
            "registered in this process (--cells-from FILE, or register_dataset)."
        )
    return DATASETS[name]


def is_demonstration(name: str) -> bool:
    """Whether a data set is too small and too easy to conclude from, as the digits are."""
    return name in DATASETS and DATASETS[name].demonstration


def register_dataset(
    name: str, read: Callable[[Path], tuple], shape: tuple[int, int, int], class_names
) -> None:
    """Add a user's own data set; like `lib.cells.register` it acts on this process alone.

    Parameters
    ----------
    name : str
    read : callable
        ``read(folder)`` returns images and labels for training, and images and labels for test.
        Without the latter (two values, or None, None) 20 % of each class become the test set.

        Images ``(n, channels, rows, columns)`` are whole numbers of 0..255, or fractions of 0..1,
        which are stored in 256 levels. Labels are whole numbers from 0, ``(n,)`` or ``(n, 1)``, or
        one-hot ``(n, classes)``. Arrays, lists, tensors and pandas columns will do.
    shape : (channels, rows, columns)
    class_names : sequence of str

    Raises ValueError for what cannot be meant, and for a name of the workbook's own data sets.
    """
    shape, class_names = tuple(shape), tuple(map(str, class_names))
    remedy = "choose another name"
    require(name not in BUILT_IN, "name", name, "none of the workbook's own data sets", remedy)
    sizes = len(shape) == 3 and all(isinstance(n, int | np.integer) and n > 0 for n in shape)
    require(sizes, f"shape of {name}", shape, "(channels, rows, columns) of the images")
    several = len(set(class_names)) == len(class_names) > 1
    require(several, f"class_names of {name}", class_names, "two or more different names")
    DATASETS[name] = DatasetInfo(tuple(map(int, shape)), class_names, read)
    TEXTS.pop(name, None)


def check_task(task: Task) -> None:
    """Refuse a task that cannot be meant, before any file is read (ValueError)."""
    rows = get(task.dataset).shape[1]
    require(isinstance(task.permuted, bool), "permuted", task.permuted, "true or false")
    rule = f"a whole number from 1 to {rows}, the rows of {task.dataset}"
    for name in ("first_rows", "last_rows"):
        kept = getattr(task, name)
        fits = kept is None or (type(kept) is int and 1 <= kept <= rows)
        require(fits, name, kept, rule, "None keeps all")
    both = task.first_rows is not None and task.last_rows is not None
    remedy = "keep the first rows or the last"
    require(not both, "first_rows", task.first_rows, "left out where last_rows is given", remedy)
    pixels = type(task.delay) is int and task.delay >= 0
    require(pixels, "delay", task.delay, "a whole number of pixels from 0 on")
    seed = task.data_seed
    whole = type(seed) is int and 0 <= seed < 2**32
    require(whole, "data_seed", seed, "a whole number from 0 to 2**32 - 1")


def image_shape(task: Task) -> tuple[int, int, int]:
    """(channels, rows, columns) of the images of a task, without loading it."""
    channels, rows, columns = get(task.dataset).shape
    return channels, task.first_rows or task.last_rows or rows, columns


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
        of an image folder, that folder itself. Default `paths.data_dir`.
    device : torch device
        Where the images are held.

    Raises
    ------
    ValueError
        The task is invalid, a file is damaged (it is named), the data are missing and cannot be
        downloaded, or a reader's arrays are not what they should be.
    """
    import torch

    check_task(task)
    info = get(task.dataset)
    folder = Path(data or paths.data_dir()).expanduser()
    images, labels, *test = _read(task.dataset, info, folder)
    train, share = np.arange(len(labels)), 0.1 if test else 0.2
    try:
        if not test:
            train, held_out = _split(train, labels, 0.2, task.data_seed)
            test = images[held_out], labels[held_out]
        train, validation = _split(train, labels, share, task.data_seed)
    except ValueError as error:
        raise ValueError(
            f"{task.dataset} holds {len(labels)} images of {info.classes} classes, too few for a "
            "split in which every part has every class; ten images a class are enough."
        ) from error

    images = dict(zip(SPLITS, (images[train], images[validation], test[0]), strict=True))
    labels = dict(zip(SPLITS, (labels[train], labels[validation], test[1]), strict=True))
    kept = slice(task.first_rows) if task.first_rows else slice(-(task.last_rows or 0), None)
    images = {split: torch.as_tensor(x[:, :, kept]).contiguous() for split, x in images.items()}
    if task.permuted:  # after cropping: a permutation of the pixels that are kept
        pixels = images["train"][0, 0].numel()
        order = torch.randperm(pixels, generator=torch.Generator().manual_seed(task.data_seed))
        images = {split: x.flatten(2)[..., order].view_as(x) for split, x in images.items()}
    mean, std = (moment.to(device) for moment in _moments(images["train"]))
    images = {split: x.to(device) for split, x in images.items()}
    labels = {
        split: torch.as_tensor(y, dtype=torch.int64).to(device) for split, y in labels.items()
    }
    return Dataset(task, images, labels, mean, std, info.class_names)


def _split(index, labels, share, seed):
    from sklearn.model_selection import train_test_split

    return train_test_split(index, test_size=share, stratify=labels[index], random_state=seed)


def _moments(images):
    """Mean and standard deviation of every channel, from integer counts: exact whatever the number
    of threads.
    """
    import torch

    levels, moments = np.arange(256.0), []
    for channel in images.numpy().swapaxes(0, 1):
        parts = np.array_split(channel, len(channel) // 1000 + 1)
        counts = sum(np.bincount(part.ravel(), minlength=256) for part in parts)
        mean = counts @ levels / counts.sum()
        std = np.sqrt(counts @ (levels - mean) ** 2 / counts.sum())
        moments.append((mean, std or 1.0))  # a constant channel is only centred
    return torch.tensor(moments, dtype=torch.float32).unbind(1)


# --- what readers return


def _read(name, info, folder):
    """Images and labels for training, and for test where there are any, as uint8 and int64."""
    try:
        made = info.read(folder)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:  # whatever goes wrong in a user's reader
        raise ValueError(
            f"{name} cannot be read from {folder} ({type(error).__name__}: {error}); mend its "
            "reader, or name the folder that holds its files (--data, or WORKBOOK_DATA)."
        ) from error
    made = list(made) if isinstance(made, tuple | list) else [made]
    if len(made) == 4 and made[2] is None and made[3] is None:
        made = made[:2]
    if len(made) not in (2, 4) or any(part is None for part in made):
        raise ValueError(
            f"The reader of {name} returns {', '.join(type(part).__name__ for part in made)}, but "
            "must return images and labels, or images, labels, test images and test labels."
        )
    arrays = []
    for images, labels, of in zip(made[::2], made[1::2], ("training", "test"), strict=False):
        what = f"of the {of} set of {name}"
        arrays += [_images(images, info, what), _labels(labels, info, what)]
        if not len(arrays[-2]) == len(arrays[-1]) > 0:
            raise ValueError(
                f"There are {len(arrays[-2])} images and {len(arrays[-1])} labels {what}, but "
                "there must be one label an image, and at least one; a test set may be left out."
            )
    absent = set(range(info.classes)) - set(arrays[1].tolist())
    if absent:
        raise ValueError(
            f"No image of the training set of {name} is of class {info.class_names[min(absent)]!r};"
            " leave it out of class_names, or add images of it."
        )
    return arrays


def _array(values, what):
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # of a ragged list, of a tensor on a GPU
        raise ValueError(f"The {what} are no array: {error}.") from error


def _images(values, info, what):
    images = _array(values, f"images {what}")
    if images.shape[1:] != info.shape:
        raise ValueError(
            f"The images {what} have the shape {images.shape}, but must have the shape "
            f"(n, {', '.join(map(str, info.shape))}): n, channels, rows, columns."
        )
    if images.dtype == np.uint8 or not images.size:
        return np.require(images, np.uint8, ["C", "W"])  # torch wants writable memory
    numeric = images.dtype.kind in "buif"
    low, high = (float(images.min()), float(images.max())) if numeric else (np.nan, np.nan)
    if images.dtype.kind in "bf" and 0 <= low and high <= 1:
        return np.rint(images * np.float32(255)).astype(np.uint8)
    if 0 <= low and high <= 255 and (images == np.rint(images)).all():
        return images.astype(np.uint8)
    raise ValueError(
        f"The images {what} are {images.dtype} from {low:g} to {high:g}, but must be whole numbers "
        "of 0..255 (uint8), or fractions of 0..1."
    )


def _labels(values, info, what):
    labels = _array(values, f"labels {what}")
    given = f"The labels {what} are {labels.dtype} of shape {labels.shape}"
    one_hot = labels.ndim == 2 and labels.shape[1] == info.classes and labels.dtype.kind in "buif"
    if one_hot and np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all():
        return labels.argmax(1)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or (labels.dtype.kind not in "bui" and labels.size):
        raise ValueError(
            f"{given}, but must be whole labels (n,) from 0 to {info.classes - 1}, or one-hot "
            f"(n, {info.classes})."
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < info.classes:
        raise ValueError(
            f"{given} and range from {labels.min()} to {labels.max()}, but must be labels from 0 "
            f"to {info.classes - 1}: one for each of {', '.join(info.class_names)}."
        )
    return labels.astype(np.int64)


# --- the data sets of the workbook


def _read_digits(folder):
    """scikit-learn's digits, 8 x 8 with values 0..16: enlarged to 16 x 16 (nearest), values 0..240;
    nothing is read from ``folder``.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    return images[:, None], digits.target


def _read_cifar10(folder):
    """CIFAR-10 (A. Krizhevsky, 2009); every file is compared with its published md5 before any of
    them, a pickle, is opened. torchvision, which takes seconds to import, only downloads them.
    """
    base = folder / "cifar-10-batches-py"
    contents = {}

    def missing():
        absent = [name for name in CIFAR10 if not (base / name).exists()]
        for name in CIFAR10:
            if name in absent or name in contents:
                continue
            content = _content(base / name)
            found = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if found != CIFAR10[name]:
                raise ValueError(
                    f"{base / name} is damaged (md5 {found}, published {CIFAR10[name]}); delete "
                    "it, so that it is downloaded again."
                )
            contents[name] = content
        return absent

    if missing():
        _download("cifar10", folder, base, missing)
    *train, test = (pickle.loads(contents[name], encoding="latin1") for name in CIFAR10)
    images = np.concatenate([batch["data"] for batch in train]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([batch["labels"] for batch in train])
    return images, labels, test["data"].reshape(-1, 3, 32, 32), np.asarray(test["labels"])


def _content(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); it must be a file that you may read: move "
            "what is there away, so that it is downloaded again, or change its permissions."
        ) from error


def _read_mnist(folder):
    """MNIST (Y. LeCun et al.); torchvision hashes the archives only, so the extracted files are
    checked here.
    """
    raw = folder / "MNIST" / "raw"
    files = [
        (raw / f"{part}-{kind}-ubyte", n)
        for part, n in (("train", 60_000), ("t10k", 10_000))
        for kind in ("images-idx3", "labels-idx1")
    ]

    def missing():
        return [path.name for path, _ in files if not path.exists()]

    if missing():
        _download("mnist", folder, raw, missing)
    return [_read_idx(path, n) for path, n in files]


def _read_idx(path, n):
    """Images ``(n, 1, 28, 28)`` or labels ``(n,)`` of an IDX file: big-endian magic number and
    sizes, then bytes.
    """
    sizes = (n, 28, 28) if "images" in path.name else (n,)
    header = struct.pack(f">{1 + len(sizes)}i", 0x0800 + len(sizes), *sizes)
    content = _content(path)
    length = len(header) + np.prod(sizes)
    if not content.startswith(header):
        problem = "its header is not that of MNIST"
    elif len(content) != length:
        problem = f"it holds {len(content)} bytes, not {length}"
    elif len(sizes) == 1 and max(content[len(header) :]) > 9:
        problem = f"it holds the label {max(content[len(header) :])}, not only 0 to 9"
    else:
        values = np.frombuffer(content, np.uint8, offset=len(header))
        return values.reshape(n, 1, 28, 28) if len(sizes) == 3 else values
    raise ValueError(f"{path} is damaged: {problem}; delete it, so that it is downloaded again.")


def _download(name, folder, where, missing):
    torchvision_class = getattr(torchvision_datasets(), name.upper())
    source = getattr(torchvision_class, "url", None) or torchvision_class.mirrors[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Runs start side by side, and one download is enough.
        with FileLock(folder / f".{name}.lock"):
            if missing():
                torchvision_class(folder, download=True)
                if missing():
                    raise RuntimeError("the download is incomplete")
    except DOWNLOAD_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise ValueError(
            f"{folder} lacks {', '.join(missing())}, which could not be downloaded ({reason}); put "
            f"the extracted files into {where}, from {source}, or name the folder that holds them "
            "(--data, or WORKBOOK_DATA)."
        ) from error


def torchvision_datasets():
    """The module ``torchvision.datasets``, its import repaired only where it is broken.

    torchvision's CUDA wheel cannot load its library beside a CPU build of torch; its import then
    fails with ``operator torchvision::nms does not exist``, although data sets need no operator.
    """
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error) or "does not exist" not in str(error):
            raise
    # The failed import leaves submodules that belong to a package which no longer exists.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _missing_schemas()
    return importlib.import_module("torchvision.datasets")


@cache  # the schemas live as long as the Library object, and may be defined only once
def _missing_schemas():
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


# Published md5 of the batches, those of the training set first.
CIFAR10 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
BUILT_IN = {
    "digits": DatasetInfo((1, 16, 16), tuple("0123456789"), _read_digits, demonstration=True),
    "mnist": DatasetInfo((1, 28, 28), tuple("0123456789"), _read_mnist),
    "cifar10": DatasetInfo((3, 32, 32), tuple(_CIFAR10_CLASSES.split()), _read_cifar10),
}
DATASETS = dict(BUILT_IN)
# Name of a user's own data set -> text that registers it, which is part of the keys of its runs.
TEXTS = {}
