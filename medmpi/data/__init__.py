"""Data sets as one spec string, partitioned without overlap, augmented by sample id, loaded ahead by threads."""

from .augment import Augment, EpochAugment
from .dataset import Dataset, Split, Task, class_counts, examples
from .errors import DataError
from .loader import Batch, Loader, Transform
from .normalise import normalise
from .open import open_dataset
from .partition import epoch_order, global_batches, share
from .split import stratified_split

__all__ = [
    "Augment",
    "Batch",
    "DataError",
    "Dataset",
    "EpochAugment",
    "Loader",
    "Split",
    "Task",
    "Transform",
    "class_counts",
    "epoch_order",
    "examples",
    "global_batches",
    "normalise",
    "open_dataset",
    "share",
    "stratified_split",
]
