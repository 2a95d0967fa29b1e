"""Windows against a plain loop, the two stride conventions, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import datasets, windows
from lib.config import Task, Window


@st.composite
def cases(draw):
    channels, rows, columns = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 6)),
        draw(st.integers(2, 9)),
    )
    input_length = draw(st.integers(1, columns // 2))
    return (
        channels,
        rows,
        columns,
        input_length,
        draw(st.integers(1, input_length)),
        draw(st.sampled_from(windows.SCANS)),
    )


def by_loop(image, input_length, stride, scan):
    """The definition, written as a loop over one image (channels, rows, columns)."""
    channels, rows, columns = image.shape
    pixels = []
    for row in range(rows):
        backwards = scan == "snake" and row % 2 == 1
        for column in range(columns - 1, -1, -1) if backwards else range(columns):
            pixels.append([image[channel, row, column].item() for channel in range(channels)])
    steps, start = [], 0
    while start + input_length <= len(pixels):
        steps.append([value for pixel in pixels[start : start + input_length] for value in pixel])
        start += stride
    return torch.tensor(steps)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_sequence_equals_the_loop(case):
    channels, rows, columns, input_length, stride, scan = case
    images = torch.arange(2 * channels * rows * columns, dtype=torch.float32).view(
        2, channels, rows, columns
    )
    sequence = windows.to_sequence(images, input_length, stride, scan)
    for image, steps in zip(images, sequence, strict=True):
        assert torch.equal(steps, by_loop(image, input_length, stride, scan))
    assert sequence.shape[1] == windows.sequence_length(rows, columns, input_length, stride)


@settings(max_examples=50, deadline=None)
@given(cases())
def test_step_pixels_say_where_the_values_come_from(case):
    _, rows, columns, input_length, stride, scan = case
    raster = torch.arange(rows * columns).view(1, 1, rows, columns)
    steps = windows.to_sequence(raster, input_length, stride, scan)[0]
    assert torch.equal(windows.step_pixels(rows, columns, input_length, stride, scan), steps)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_leading_axes_are_free(leading):
    images = torch.rand(*leading, 3, 8, 8)
    sequence = windows.to_sequence(images, 4, 2, "snake")
    assert sequence.shape == (*leading, 31, 12)
    one_by_one = [
        windows.to_sequence(image[None], 4, 2, "snake") for image in images.reshape(-1, 3, 8, 8)
    ]
    assert torch.equal(sequence.reshape(-1, 31, 12), torch.cat(one_by_one))


def test_cifar_step_holds_twelve_values_of_four_interleaved_pixels():
    image = torch.arange(3 * 32 * 32).view(1, 3, 32, 32)
    sequence = windows.to_sequence(image, 4, 4)
    assert sequence.shape == (1, 256, 12)
    assert sequence[0, 1].tolist() == [4, 1028, 2052, 5, 1029, 2053, 6, 1030, 2054, 7, 1031, 2055]


def test_snake_turns_every_second_row():
    assert windows.pixel_order(3, 3, "snake").tolist() == [0, 1, 2, 5, 4, 3, 6, 7, 8]
    assert windows.pixel_order(3, 3).tolist() == list(range(9))


def test_overlaps_are_not_copied():
    images = torch.rand(2, 3, 32, 32)
    sequence = windows.to_sequence(images, 16, 1)
    assert sequence.untyped_storage().nbytes() == images.untyped_storage().nbytes()


def test_gradients_reach_every_pixel_as_often_as_it_is_read():
    images = torch.zeros(1, 1, 4, 8, requires_grad=True)
    windows.to_sequence(images, 4, 2).sum().backward()
    assert images.grad.flatten().tolist() == [1, 1] + [2] * 28 + [1, 1]


@pytest.mark.parametrize(
    ("rows", "columns", "input_length", "stride", "steps"),
    [
        (32, 32, 4, 4, 256),
        (32, 32, 4, 2, 511),
        (32, 32, 8, 4, 255),
        (32, 32, 16, 8, 127),
        (28, 28, 14, 7, 111),
        (16, 16, 8, 4, 63),
    ],
)
def test_sequence_lengths_of_the_comparison(rows, columns, input_length, stride, steps):
    assert windows.sequence_length(rows, columns, input_length, stride) == steps


@pytest.mark.parametrize(
    ("stride", "input_length", "pixels"),
    [
        ("fixed", 16, 4),
        ("half", 16, 8),
        ("half", 2, 1),
        (3, 8, 3),
        ("3", 8, 3),
        (np.int64(3), 8, 3),
    ],
)
def test_strides_resolve_to_pixels(stride, input_length, pixels):
    resolved = windows.resolve_stride(stride, input_length)
    assert resolved == pixels and type(resolved) is int


@pytest.mark.parametrize("stride", ["quarter", "2.5", "", 2.0, True, None, "half"])
def test_strides_that_are_no_whole_pixels_are_refused(stride):
    with pytest.raises(ValueError, match="whole number of pixels"):
        windows.resolve_stride(stride, 5)


def test_conventions_and_their_shared_window():
    table = {
        (8, 4): ("fixed", "half"),
        (4, 4): ("fixed",),
        (16, 8): ("half",),
        (4, 2): ("half",),
        (8, 3): (),
        (5, 2): (),
    }
    assert {window: windows.conventions(*window) for window in table} == table


def test_a_stride_above_half_is_allowed_and_flagged():
    windows.check_window(4, 4, 32)
    assert windows.is_wide(4, 4)
    assert not windows.is_wide(8, 4) and not windows.is_wide(16, 4)


@pytest.mark.parametrize(("columns", "most"), [(32, 16), (28, 14), (16, 8), (9, 4)])
def test_half_a_row_is_the_largest_window(columns, most):
    windows.check_window(most, 4, columns)
    with pytest.raises(ValueError, match=f"input_length is {most + 1}.*at most {most}"):
        windows.check_window(most + 1, 4, columns)


def test_images_of_one_column_have_no_window():
    with pytest.raises(ValueError, match="into one row"):
        windows.check_window(1, 1, 1)


@pytest.mark.parametrize(
    ("input_length", "stride", "scan", "words"),
    [
        (8, 0, "raster", "stride is 0, .*at most 8"),
        (8, -1, "raster", "stride is -1"),
        (8, 9, "raster", "stride is 9, .*at most 8"),
        (0, 1, "raster", "input_length is 0"),
        (8.0, 4, "raster", "input_length is 8.0, .*whole number"),
        (8, 4.5, "raster", "stride is 4.5, .*whole number"),
        (8, True, "raster", "stride is True, .*whole number"),
        (True, 1, "raster", "input_length is True, .*whole number"),
        ("8", 4, "raster", "input_length is '8', .*whole number"),
        (8, 4, "spiral", "scan is 'spiral', .*raster, snake"),
    ],
)
def test_bad_windows_are_refused_in_one_sentence(input_length, stride, scan, words):
    calls = [
        lambda: windows.check_window(input_length, stride, 32, scan),
        lambda: windows.to_sequence(torch.zeros(1, 3, 32, 32), input_length, stride, scan),
        lambda: windows.step_pixels(32, 32, input_length, stride, scan),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=words) as error:
            call()
        assert str(error.value).count("\n") == 0 and str(error.value).endswith(".")


@pytest.mark.parametrize("scan", windows.SCANS)
def test_a_delay_follows_the_image_as_blank_pixels(scan):
    task, window = Task(first_rows=5, delay=24, permuted=True), Window(8, 6, scan)
    data, index = datasets.load(task), torch.arange(3)
    x, labels = windows.sequences(data, window, "test", index)
    images, expected = data.batch("test", index)
    assert torch.equal(labels, expected)
    assert x.shape[1] == windows.task_length(task, window) == (5 * 16 - 8) // 6 + 1 + 24 // 6
    rows = torch.cat((images, torch.zeros(3, 1, 2, 16)), 2)  # two blank rows, of which 24 pixels
    whole = windows.to_sequence(rows, 8, 6, scan)
    assert torch.equal(x, whole[:, : x.shape[1]])
    assert x[:, -2:].abs().max() == 0 < x[:, -4].abs().max()  # a window may straddle both


def test_steps_of_a_delay_read_pixels_beyond_the_image():
    task, window = Task(last_rows=2, delay=16), Window(8, 8)
    pixels = windows.task_pixels(task, window)
    assert pixels.flatten().tolist() == list(range(2 * 16 + 16))


@pytest.mark.parametrize("delay", [4, 129])
def test_a_delay_that_no_steps_fill_is_refused(delay):
    near = delay // 8 * 8
    with pytest.raises(ValueError, match=f"delay is {delay}.*stride of 8.*{near} or {near + 8}"):
        windows.check_task_window(Task(delay=delay), Window(8, 8))
    windows.check_task_window(Task(delay=near), Window(8, 8))
