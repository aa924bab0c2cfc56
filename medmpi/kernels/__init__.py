"""The kernel library: functions on C-contiguous NHWC float32 arrays, usable on their own.

Names and meaning follow ``torch.nn.functional`` and ``scipy.ndimage`` where those have the operation. Results are new
arrays unless ``out`` is given; their memory comes from a pool and returns to it when the array dies.
"""

from . import _load  # noqa: F401  (finds _core and sets the OpenMP defaults; first)
from .activation import relu, relu_backward
from .arrays import DeviceArray, empty, synchronize, to_device, to_host
from .batchnorm import (
    batch_norm,
    batch_norm_add_sums,
    batch_norm_apply,
    batch_norm_backward,
    batch_norm_backward_apply,
    batch_norm_backward_reduce,
    batch_norm_deviation,
    batch_norm_from_running,
    batch_norm_inference,
    batch_norm_statistics,
    batch_norm_track,
)
from .clahe import clahe
from .color import hsv_to_rgb, rgb_to_gray, rgb_to_hsv
from .control import (
    backend,
    backends,
    devices,
    missing_device,
    precision,
    set_precision,
    set_threads,
    threads,
    use_backend,
    use_device,
)
from .conv2d import (
    WeightCache,
    conv2d,
    conv2d_backward_bias,
    conv2d_backward_data,
    conv2d_backward_weight,
    conv_transpose2d,
    conv_transpose2d_backward_data,
    conv_transpose2d_backward_weight,
    convolve2d,
    sum_channels,
)
from .copy import (
    concat,
    crop,
    nchw_to_nhwc,
    nhwc_to_nchw,
    pad,
    split,
)
from .dropout import (
    dropout,
    dropout_backward,
)
from .elementwise import (
    accumulate,
    add,
    all_finite,
    fill_,
    normalize,
    scale_,
    sum_squares,
)
from .filter import gaussian_filter, gaussian_filter1d
from .histogram import histogram, otsu_threshold
from .linear import linear, linear_backward_bias, linear_backward_data, linear_backward_weight
from .loss import (
    dice_loss,
    softmax,
    softmax_cross_entropy,
)
from .median import median_filter
from .memory import Arena, Recording, device_memory_statistics, memory_statistics, reset_peak_memory, trim_memory
from .optimizer import (
    adam_step,
    sgd_step,
)
from .pool import (
    MaxPoolIndices,
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
)
from .resize import resize, resize_backward
from .warp import warp

__all__ = [
    "Arena",
    "DeviceArray",
    "MaxPoolIndices",
    "Recording",
    "WeightCache",
    "accumulate",
    "adam_step",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "add",
    "all_finite",
    "avg_pool2d",
    "avg_pool2d_backward",
    "backend",
    "backends",
    "batch_norm",
    "batch_norm_add_sums",
    "batch_norm_apply",
    "batch_norm_backward",
    "batch_norm_backward_apply",
    "batch_norm_backward_reduce",
    "batch_norm_deviation",
    "batch_norm_from_running",
    "batch_norm_inference",
    "batch_norm_statistics",
    "batch_norm_track",
    "clahe",
    "concat",
    "conv2d",
    "conv2d_backward_bias",
    "conv2d_backward_data",
    "conv2d_backward_weight",
    "conv_transpose2d",
    "conv_transpose2d_backward_data",
    "conv_transpose2d_backward_weight",
    "convolve2d",
    "crop",
    "device_memory_statistics",
    "devices",
    "dice_loss",
    "dropout",
    "dropout_backward",
    "empty",
    "fill_",
    "gaussian_filter",
    "gaussian_filter1d",
    "global_avg_pool2d",
    "global_avg_pool2d_backward",
    "histogram",
    "hsv_to_rgb",
    "linear",
    "linear_backward_bias",
    "linear_backward_data",
    "linear_backward_weight",
    "max_pool2d",
    "max_pool2d_backward",
    "median_filter",
    "memory_statistics",
    "missing_device",
    "nchw_to_nhwc",
    "nhwc_to_nchw",
    "normalize",
    "otsu_threshold",
    "pad",
    "precision",
    "relu",
    "relu_backward",
    "reset_peak_memory",
    "resize",
    "resize_backward",
    "rgb_to_gray",
    "rgb_to_hsv",
    "scale_",
    "set_precision",
    "set_threads",
    "sgd_step",
    "softmax",
    "softmax_cross_entropy",
    "split",
    "sum_channels",
    "sum_squares",
    "synchronize",
    "threads",
    "to_device",
    "to_host",
    "trim_memory",
    "use_backend",
    "use_device",
    "warp",
]
