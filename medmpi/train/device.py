"""The CUDA device of a rank."""

from __future__ import annotations

from medmpi import kernels as K
from medmpi.train.failure import USAGE, Failure


def take(device: str, precision: str, local_rank: int) -> None:
    """Device number ``local_rank`` of the node for this process, and the precision of its products.

    Where a node has fewer devices than ranks, ranks share them. Failure where there is none.
    """
    if device == "cpu":
        return
    found = K.devices()
    if not found:
        raise Failure(f"--device cuda: {K.missing_device()}; use --device cpu", USAGE)
    K.use_device(local_rank % len(found))
    K.set_precision(precision)
