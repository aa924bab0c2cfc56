"""What convolutions refuse, and by which words."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import kernels
from tests.kernels.staged import ON_HOST_BACKENDS

pytestmark = ON_HOST_BACKENDS


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "weight takes 4 channels, x has 3", lambda: kernels.conv2d(zeros(1, 5, 5, 3), zeros(3, 3, 4, 2))),
        (ValueError, "expected at least 7 x 7", lambda: kernels.conv2d(zeros(1, 5, 5, 3), zeros(7, 7, 3, 2))),
        (TypeError, "x has dtype float64", lambda: kernels.conv2d(zeros(1, 5, 5, 3, dtype=float), zeros(3, 3, 3, 2))),
        (TypeError, "not C-contiguous", lambda: kernels.conv2d(zeros(3, 5, 5, 1).T, zeros(3, 3, 3, 2))),
        (ValueError, "x has 3 dimensions", lambda: kernels.conv2d(zeros(5, 5, 3), zeros(3, 3, 3, 2))),
        (ValueError, "stride is 0", lambda: kernels.conv2d(zeros(1, 5, 5, 3), zeros(3, 3, 3, 2), stride=0)),
        (TypeError, "stride is 1.5", lambda: kernels.conv2d(zeros(1, 5, 5, 3), zeros(3, 3, 3, 2), stride=1.5)),
        (ValueError, "padding is -1", lambda: kernels.conv2d(zeros(1, 5, 5, 3), zeros(3, 3, 3, 2), padding=-1)),
        (ValueError, "multiple of groups = 2", lambda: kernels.conv2d(zeros(1, 5, 5, 4), zeros(3, 3, 2, 3), groups=2)),
        (ValueError, "algo is 'fast'", lambda: kernels.conv2d(zeros(1, 5, 5, 3), zeros(3, 3, 3, 2), algo="fast")),
        (
            ValueError,
            "expected a 3 x 3 or 5 x 5 filter",
            lambda: kernels.conv2d(zeros(1, 5, 5, 3), zeros(3, 3, 3, 2), stride=2, algo="winograd"),
        ),
        (ValueError, "bias has shape (3,)", lambda: kernels.conv2d(zeros(1, 5, 5, 3), zeros(3, 3, 3, 2), zeros(3))),
        (
            ValueError,
            "out has shape (1, 5, 5, 2), expected (1, 3, 3, 2)",
            lambda: kernels.conv2d(zeros(1, 5, 5, 3), zeros(3, 3, 3, 2), out=zeros(1, 5, 5, 2)),
        ),
        (
            ValueError,
            "dy has shape (1, 4, 4, 2), expected (1, 3, 3, 2)",
            lambda: kernels.conv2d_backward_data(zeros(1, 4, 4, 2), zeros(3, 3, 3, 2), x_shape=(1, 5, 5, 3)),
        ),
        (
            ValueError,
            "output_padding is (1, 1)",
            lambda: kernels.conv_transpose2d(zeros(1, 5, 5, 3), zeros(2, 2, 4, 3), output_padding=1),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_the_argument(error, message, call):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_out_may_not_overlap_x():
    x = zeros(1, 5, 5, 4)
    with pytest.raises(ValueError, match="out overlaps x"):
        kernels.conv2d(x, zeros(1, 1, 4, 4), out=x)
