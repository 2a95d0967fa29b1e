"""How an image becomes a sequence: scan order and sliding windows, all lengths in pixels."""

import torch

from lib import datasets
from lib.checks import is_whole, one_of, require
from lib.config import Task, Window

FIXED_STRIDE = 4  # pixels; on CIFAR-10 that is 12 values: 4 pixels x 3 channels
CONVENTIONS = ("fixed", "half")
SCANS = ("raster", "snake")


def resolve_stride(stride, input_length: int) -> int:
    """Stride in pixels of a number or of a named convention.

    ``fixed`` is always 4 pixels, ``half`` is half the input length, which must be even. Whether the
    stride suits the image is for `check_window` to say. Raises ValueError.
    """
    if stride == "fixed":
        return FIXED_STRIDE
    if stride == "half":
        even = is_whole(input_length) and input_length % 2 == 0
        rule = "even, so that half of it is a whole number of pixels"
        require(even, "input_length", input_length, rule, "or give the stride in pixels")
        return int(input_length) // 2
    if isinstance(stride, str) and stride.isdecimal():
        return int(stride)
    rule = f"a whole number of pixels, or {' or '.join(CONVENTIONS)}"
    require(is_whole(stride), "stride", stride, rule)
    return int(stride)


def conventions(input_length: int, stride: int) -> tuple[str, ...]:
    """Names of the stride conventions that this window satisfies; 8/4 satisfies both."""
    return tuple(
        name
        for name, pixels in zip(CONVENTIONS, (FIXED_STRIDE, input_length / 2), strict=True)
        if stride == pixels
    )


def is_wide(input_length: int, stride: int) -> bool:
    """Whether the stride exceeds half the input length, as in 4/4: allowed, but to be flagged."""
    return 2 * stride > input_length


def check_window(input_length: int, stride: int, columns: int, scan: str = "raster") -> None:
    """Refuse windows that the comparison does not allow on rows of ``columns`` pixels (ValueError):
    ``input_length`` exceeds half a row, ``stride`` is not in 1..input_length, ``scan`` is unknown.
    """
    most = columns // 2
    fits = is_whole(input_length) and 1 <= input_length <= most
    rule = f"a whole number of pixels from 1 to half a row of {columns}"
    remedy = f"choose at most {most}" if most else "turn images of one column into one row"
    require(fits, "input_length", input_length, rule, remedy)
    fits = is_whole(stride) and 1 <= stride <= input_length
    rule = "a whole number of pixels from 1 to the input_length, or pixels are skipped"
    require(fits, "stride", stride, rule, f"choose at most {input_length}")
    one_of("scan", scan, SCANS)


def sequence_length(rows: int, columns: int, input_length: int, stride: int) -> int:
    """Time steps, T = (pixels - input_length) // stride + 1; what is left over is not read."""
    check_window(input_length, stride, columns)
    return (rows * columns - input_length) // stride + 1


def pixel_order(rows: int, columns: int, scan: str = "raster") -> torch.Tensor:
    """Raster index of the pixels as they are read, (pixels,); ``snake`` turns every second row."""
    one_of("scan", scan, SCANS)
    order = torch.arange(rows * columns).view(rows, columns)
    if scan == "snake":
        order[1::2] = order[1::2].flip(1)
    return order.flatten()


def step_pixels(
    rows: int, columns: int, input_length: int, stride: int, scan: str = "raster", delay: int = 0
) -> torch.Tensor:
    """Raster index of the pixels that each step reads, ``(time, input_length)``.

    The blank pixels of a ``delay`` are numbered on from the last of the image.
    """
    check_window(input_length, stride, columns, scan)
    blank = rows * columns + torch.arange(delay)
    order = torch.cat((pixel_order(rows, columns, scan), blank))
    return order.unfold(0, input_length, stride)


def to_sequence(
    images: torch.Tensor, input_length: int, stride: int, scan: str = "raster", delay: int = 0
) -> torch.Tensor:
    """Slide a window over the pixels of images ``(..., channels, rows, columns)``.

    ``delay`` pixels of value 0 follow each. The result is ``(..., time, channels * input_length)``,
    pixel by pixel, the channels of a pixel side by side: a strided view on one copy that does not
    repeat the overlaps, so do not write into it. Bad windows are refused as `check_window` says.
    """
    channels, rows, columns = images.shape[-3:]
    check_window(input_length, stride, columns, scan)
    pixels = images.flatten(-2)
    if scan != "raster":
        pixels = pixels.index_select(-1, pixel_order(rows, columns, scan).to(images.device))
    if delay:
        pixels = torch.nn.functional.pad(pixels, (0, delay))
    return (
        pixels.transpose(-1, -2).flatten(-2).unfold(-1, channels * input_length, channels * stride)
    )


# --- of a task: its images, and the blank that follows them


def check_task_window(task: Task, window: Window) -> None:
    """Refuse a window that does not suit the images of a task, or its delay (ValueError)."""
    columns = datasets.image_shape(task)[2]
    check_window(window.input_length, window.stride, columns, window.scan)
    rule = f"a multiple of the stride of {window.stride} pixels, so that steps fill it"
    below = task.delay // window.stride * window.stride
    remedy = f"choose {below} or {below + window.stride}"
    require(task.delay % window.stride == 0, "delay", task.delay, rule, remedy)


def task_length(task: Task, window: Window) -> int:
    """Number of time steps of a task: `sequence_length` of its images, and those of its delay."""
    _, rows, columns = datasets.image_shape(task)
    steps = sequence_length(rows, columns, window.input_length, window.stride)
    return steps + task.delay // window.stride


def task_pixels(task: Task, window: Window) -> torch.Tensor:
    """`step_pixels` of every step of a task, ``(time, input_length)``."""
    _, rows, columns = datasets.image_shape(task)
    shape = rows, columns, window.input_length, window.stride
    return step_pixels(*shape, window.scan, task.delay)


def sequences(
    data: datasets.Dataset, window: Window, split: str, index
) -> tuple[torch.Tensor, torch.Tensor]:
    """What networks read of a task, in training, test and analysis alike: sequences ``(..., time,
    features)`` and labels ``(...)`` of the images of a split at ``index``, int ``(...)``.

    The blank of a delay is 0, which is the mean of each channel over the training images.
    """
    images, labels = data.batch(split, index)
    shape = window.input_length, window.stride, window.scan
    return to_sequence(images, *shape, data.task.delay), labels
