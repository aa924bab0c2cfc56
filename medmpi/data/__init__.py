"""Data sets as one spec string, partitioned without overlap, augmented by sample id, loaded ahead by threads."""

from .augment import Augment, EpochAugment
from .dataset import Dataset, Split, Task, class_counts, examples
from .errors import DataError
from .groups import check_groups
from .loader import Batch, Loader, Transform
from .medical import Levels, MedicalImage, to_levels
from .normalise import normalise
from .open import open_dataset
from .partition import epoch_order, global_batches, share
from .readers import read_header, read_image, read_mask
from .reading import Reading
from .split import stratified_split

__all__ = [
    "Augment",
    "Batch",
    "DataError",
    "Dataset",
    "EpochAugment",
    "Levels",
    "Loader",
    "MedicalImage",
    "Reading",
    "Split",
    "Task",
    "Transform",
    "check_groups",
    "class_counts",
    "epoch_order",
    "examples",
    "global_batches",
    "normalise",
    "open_dataset",
    "read_header",
    "read_image",
    "read_mask",
    "share",
    "stratified_split",
    "to_levels",
]
