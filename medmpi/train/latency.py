"""How long one image takes (S0 fig. 4: segmentation time against 40 ms)."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from medmpi import kernels, nn

if TYPE_CHECKING:
    from medmpi.train.job import Job

_TIMES, _SECONDS = 7, 1.0  # as many, but not much longer


def single_image_ms(job: Job) -> float:
    """Milliseconds from one normalised image to its logits, the median of a few; the network as it is being trained.

    NaN where the network is spread over several ranks.
    """
    if job.options.stages > 1 or job.options.tiles > 1:
        return float("nan")
    image = np.zeros((1, *job.dataset.image_size, job.dataset.channels), np.float32)
    context = nn.Context(train=False)
    if job.options.device != "cpu":
        image = kernels.to_device(image)
    job.graph.forward(image, context=context)
    taken: list[float] = []
    while len(taken) < _TIMES and sum(taken) < _SECONDS:
        start = time.perf_counter()
        kernels.to_host(job.graph.forward(image, context=context)[0][0])
        taken.append(time.perf_counter() - start)
    return 1000 * median(taken)
