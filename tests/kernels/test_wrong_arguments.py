"""What a stranger may pass: every function refuses it by the argument's name, or computes; nothing crashes."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from medmpi import kernels as K

RANDOM = np.random.default_rng(0)


def floats(*shape):
    return RANDOM.standard_normal(shape, dtype=np.float32)


def levels(*shape):
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


WINDOW = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}
#: A call of each function with all that it may be given wrongly.
CALLS = {
    "relu": {"x": floats(3, 4), "out": floats(3, 4)},
    "conv2d": {"x": floats(2, 9, 10, 4), "weight": floats(3, 3, 4, 6), "bias": floats(6), **WINDOW, "algo": "auto"},
    "conv2d_backward_data": {
        "dy": floats(2, 9, 10, 6), "weight": floats(3, 3, 4, 6), "x_shape": (2, 9, 10, 4), **WINDOW,
    },
    "conv2d_backward_weight": {
        "dy": floats(2, 9, 10, 6), "x": floats(2, 9, 10, 4), "weight_shape": (3, 3, 4, 6), **WINDOW,
    },
    "conv2d_backward_bias": {"dy": floats(2, 9, 10, 6), "out": floats(6)},
    "conv_transpose2d": {
        "x": floats(2, 5, 5, 4), "weight": floats(3, 3, 6, 4), **WINDOW, "stride": 2, "output_padding": 1,
    },
    "conv_transpose2d_backward_data": {
        "dy": floats(2, 10, 10, 6), "weight": floats(3, 3, 6, 4), "x_shape": (2, 5, 5, 4), **WINDOW, "stride": 2,
        "output_padding": 1, "out": floats(2, 5, 5, 4),
    },
    "convolve2d": {"x": floats(2, 9, 10, 4), "weight": floats(3, 3, 4, 6), "bias": floats(6), **WINDOW},
    "split": {"x": floats(2, 3, 9), "sizes": [4, 5], "axis": -1},
    "crop": {"x": floats(2, 8, 8, 3), "padding": 1, "out": floats(2, 6, 6, 3)},
    "pad": {"x": floats(2, 8, 8, 3), "padding": 1, "value": 0.5},
    "dropout": {"x": floats(4, 5), "p": 0.5, "seed": 1, "offset": 0},
    "accumulate": {"x": floats(4, 5), "out": floats(4, 5), "alpha": 1.0},
    "scale_": {"x": floats(4, 5), "factor": 2.0},
    "fill_": {"x": floats(4, 5), "value": 2.0},
    "gaussian_filter": {"input": floats(16, 16), "sigma": 1.0, "cval": 0.0},
    "gaussian_filter1d": {"input": floats(16, 16), "sigma": 1.0, "axis": 0, "cval": 0.0},
    "median_filter": {"input": floats(16, 16), "size": 3, "out": floats(16, 16)},
    "clahe": {"image": levels(32, 32), "clip_limit": 4.0, "tile_grid": (4, 4)},
    "histogram": {"image": floats(16, 16), "bins": 16, "range": (0.0, 1.0)},
    "otsu_threshold": {"image": floats(16, 16), "bins": 16},
    "rgb_to_hsv": {"image": levels(4, 4, 3), "out": floats(4, 4, 3)},
    "linear": {"x": floats(4, 5), "weight": floats(5, 6), "bias": floats(6)},
    "softmax_cross_entropy": {"logits": floats(3, 5), "labels": np.array([0, 1, 2]), "denominator": 4.0},
    "dice_loss": {"logits": floats(1, 2, 2, 3), "labels": np.zeros((1, 2, 2), np.int64), "smooth": 1e-5},
    "sgd_step": {"value": floats(10), "grad": floats(10), "velocity": floats(10), "lr": 0.1, "momentum": 0.9},
    "adam_step": {"value": floats(9), "grad": floats(9), "m": floats(9), "v": floats(9) ** 2, "lr": 0.1, "step": 1},
    "max_pool2d": {"x": floats(2, 8, 8, 3), "kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1},
    "avg_pool2d": {"x": floats(2, 8, 8, 3), "kernel_size": 2, "stride": 2, "padding": 0},
    "avg_pool2d_backward": {"dy": floats(2, 4, 4, 3), "kernel_size": 2, "x_shape": (2, 8, 8, 3)},
    "adaptive_avg_pool2d": {"x": floats(2, 8, 8, 3), "output_size": 3},
    "global_avg_pool2d_backward": {"dy": floats(2, 3), "x_shape": (2, 8, 8, 3)},
    "batch_norm": {"x": floats(2, 8, 3), "gamma": floats(3), "beta": floats(3), "eps": 1e-5},
    "batch_norm_inference": {
        "x": floats(2, 8, 3), "gamma": floats(3), "beta": floats(3), "mean": floats(3), "var": floats(3) ** 2,
        "eps": 1e-5,
    },
    "batch_norm_apply": {
        "x": floats(2, 8, 3), "gamma": floats(3), "beta": floats(3), "mean": np.zeros(3), "rstd": np.ones(3),
    },
    "batch_norm_deviation": {"m2": np.ones(3), "count": 5.0, "eps": 1e-5},
    "resize": {"x": floats(2, 8, 8, 3), "size": (5, 7), "mode": "bilinear"},
    "resize_backward": {"dy": floats(2, 5, 7, 3), "x_shape": (2, 8, 8, 3), "mode": "bilinear"},
    "empty": {"shape": (2, 3), "dtype": np.float32, "device": "cpu"},
    "set_threads": {"threads": 1},
    "use_backend": {"name": "cpu.generic"},
}  # fmt: skip
INTEGERS = [-(2**63), 1.5, "a", None, 2**31, 2**63, 2**70, (1, 2, 3), math.nan, ((1, 2, 3), (1, 1)), (2**40, 2**40)]
NUMBERS = ["a", 1j, [1.0], np.ones(2)]
SHAPES = [(), (2, 8, 8), (2, -8, 8, 3), (2**40, 2**40, 2**40, 4), (2**63, 1, 1, 1), (2.5, 8, 8, 3), "abcd", None, 5]
LISTS = {"sizes": [[4.5, 4.5], [10, -1], "ab"], "range": [[], [1.0], (math.nan, 1.0)], "dtype": [object, "U5", ">f4"]}


def layouts(array):
    """The same values in other layouts and types."""
    if array.ndim >= 2:
        yield np.asfortranarray(array)
    yield np.repeat(array, 2, axis=-1)[..., ::2]
    yield array[::-1].copy()[::-1]
    yield array.astype(array.dtype.newbyteorder(">"))
    for dtype in ("complex64", "object", "U5", "M8[s]"):
        yield array.astype(dtype)
    yield from (array.tolist(), None, "abc", 3, {}, b"abc", array[None], np.zeros((), array.dtype))


def wrong(name, value):
    """What is given for an argument instead of ``value``."""
    if isinstance(value, np.ndarray):
        return list(layouts(value))
    if name.endswith("shape"):
        return SHAPES
    if name in LISTS:
        return LISTS[name]
    if isinstance(value, str):
        return ["xyz", 3, None]
    return NUMBERS if isinstance(value, float) else INTEGERS


@pytest.mark.parametrize("function", CALLS)
def test_every_argument(function):
    backend, call = K.backend(), getattr(K, function)
    given = CALLS[function]
    refusals = []
    try:
        for name, value in given.items():
            for other in wrong(name, value):
                changed = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in given.items()} | {name: other}
                if name != "out" and function != "accumulate":
                    changed.pop("out", None)
                try:
                    call(**changed)
                except (TypeError, ValueError, MemoryError) as error:
                    if name != "dtype":  # numpy's own words
                        refusals.append((f"{name}={other!r:.60}", str(error)))
    finally:
        K.use_backend(backend)
        K.set_threads(1)
    assert refusals
    assert [refusal for refusal in refusals if not refusal[1].startswith(f"{function}: ")] == []


def test_a_stride_beyond_the_image():
    """It changes nothing, whatever its size; tables by stride would not fit memory."""
    x, weight, dy = floats(1, 9, 10, 4), floats(3, 3, 4, 6), floats(1, 1, 1, 6)
    expected = K.conv2d(x, weight, stride=16)
    for stride in (1 << 20, 2**31 - 1):
        assert np.array_equal(K.conv2d(x, weight, stride=stride), expected)
        assert np.array_equal(K.convolve2d(x, weight, stride=stride), K.convolve2d(x, weight, stride=16))
        data = K.conv2d_backward_data(dy, weight, x_shape=x.shape, stride=stride)
        assert np.array_equal(data, K.conv2d_backward_data(dy, weight, x_shape=x.shape, stride=16))
        found = K.conv2d_backward_weight(dy, x, weight_shape=weight.shape, stride=stride)
        assert np.array_equal(found, K.conv2d_backward_weight(dy, x, weight_shape=weight.shape, stride=16))
    one = floats(1, 1, 4, 6)
    assert np.array_equal(K.conv2d(x, one, dilation=2**31 - 1), K.conv2d(x, one))


def test_complex_numbers_are_no_pairs_of_floats():
    """complex64 takes eight bytes, like float64."""
    x, one = floats(4, 3), np.ones(3, np.float32)
    with pytest.raises(TypeError, match="batch_norm_apply: mean has dtype complex64, expected float64"):
        K.batch_norm_apply(x, one, one, np.zeros(3, np.complex64), np.ones(3))


def test_scratch_that_does_not_fit_memory():
    """A grid of tiles whose tables need 512 MiB more than the process may have."""
    code = """
import resource
import numpy as np
from medmpi import kernels as K
K.set_threads(1)
image = np.ones((200, 200), np.uint16)
out = np.empty_like(image)
used = 4096 * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
try:
    K.clahe(image, tile_grid=64, out=out)
except MemoryError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "no memory left for a kernel's scratch\n", (done.returncode, done.stderr)
