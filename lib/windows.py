"""How an image becomes a sequence: scan order and sliding windows, all lengths in pixels."""

from numbers import Integral

import torch

from lib.checks import one_of, require

FIXED_STRIDE = 4  # pixels; on CIFAR-10 that is 12 values: 4 pixels x 3 channels
CONVENTIONS = ("fixed", "half")
SCANS = ("raster", "snake")


def resolve_stride(stride, input_length: int) -> int:
    """Stride in pixels of a number or of a named convention.

    ``fixed`` is always 4 pixels, ``half`` is half the input length. Whether the stride suits the
    image is for `check_window` to say.

    Raises
    ------
    ValueError
        The stride is neither, or half of an odd input length is asked for.
    """
    if stride == "fixed":
        return FIXED_STRIDE
    if stride == "half":
        even = _is_whole(input_length) and input_length % 2 == 0
        rule = "even, so that half of it is a whole number of pixels"
        require(even, "input_length", input_length, rule, "or give the stride in pixels")
        return int(input_length) // 2
    if isinstance(stride, str) and stride.isdecimal():
        return int(stride)
    rule = f"a whole number of pixels, or {' or '.join(CONVENTIONS)}"
    require(_is_whole(stride), "stride", stride, rule)
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
    """Refuse windows that the comparison does not allow on rows of ``columns`` pixels.

    Raises
    ------
    ValueError
        A length is not a whole number, ``input_length`` exceeds half a row, ``stride`` is not in
        1..input_length, or ``scan`` is unknown.
    """
    most = columns // 2
    fits = _is_whole(input_length) and 1 <= input_length <= most
    rule = f"a whole number of pixels from 1 to half a row of {columns}"
    remedy = f"choose at most {most}" if most else "turn images of one column into one row"
    require(fits, "input_length", input_length, rule, remedy)
    fits = _is_whole(stride) and 1 <= stride <= input_length
    rule = "a whole number of pixels from 1 to the input_length, or pixels are skipped"
    require(fits, "stride", stride, rule, f"choose at most {input_length}")
    one_of("scan", scan, SCANS)


def sequence_length(rows: int, columns: int, input_length: int, stride: int) -> int:
    """Number of time steps, T = (pixels - input_length) // stride + 1.

    Pixels after the last whole window are not read.
    """
    check_window(input_length, stride, columns)
    return (rows * columns - input_length) // stride + 1


def pixel_order(rows: int, columns: int, scan: str = "raster") -> torch.Tensor:
    """Raster index of the pixels in the order in which they are read, ``(pixels,)``.

    ``snake`` reverses every second row.
    """
    one_of("scan", scan, SCANS)
    order = torch.arange(rows * columns).view(rows, columns)
    if scan == "snake":
        order[1::2] = order[1::2].flip(1)
    return order.flatten()


def step_pixels(
    rows: int, columns: int, input_length: int, stride: int, scan: str = "raster"
) -> torch.Tensor:
    """Raster index of the pixels that each step reads, ``(time, input_length)``."""
    check_window(input_length, stride, columns, scan)
    return pixel_order(rows, columns, scan).unfold(0, input_length, stride)


def to_sequence(
    images: torch.Tensor, input_length: int, stride: int, scan: str = "raster"
) -> torch.Tensor:
    """Slide a window over the pixels of images.

    A strided view on one interleaved copy, without a loop and without repeating the overlaps: do
    not write into it.

    Parameters
    ----------
    images : tensor (..., channels, rows, columns)
        Any leading axes, for example ``(batch,)`` or ``(seeds, batch)``.
    input_length, stride : int
        In pixels.
    scan : {"raster", "snake"}
        Order in which the pixels are read.

    Returns
    -------
    tensor (..., time, channels * input_length)
        Pixel by pixel, the channels of a pixel side by side.

    Raises
    ------
    ValueError
        As `check_window`.
    """
    channels, rows, columns = images.shape[-3:]
    check_window(input_length, stride, columns, scan)
    pixels = images.flatten(-2)
    if scan != "raster":
        pixels = pixels.index_select(-1, pixel_order(rows, columns, scan).to(images.device))
    return (
        pixels.transpose(-1, -2).flatten(-2).unfold(-1, channels * input_length, channels * stride)
    )


def _is_whole(value):
    return isinstance(value, Integral) and not isinstance(value, bool)
