"""``npz:FILE``: numpy archives in the MedMNIST layout, or plain ``images`` and ``labels``.

Nothing in an archive is believed: a member's declared size is checked against what the archive holds and against the
memory before anything is allocated, and pickled objects are refused (they would run code).
"""

from __future__ import annotations

import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dataset import SPLITS, Task
from .errors import DataError
from .npy_member import DEFLATE_RATIO, read_member
from .opened import Opened, Part, check_classes
from .source import ArraySource, Images, memory_limit

_EXPECTED = "expected train_images and train_labels (MedMNIST), or images and labels"


def open_npz(path: str, *, task: Task | None) -> Opened:
    """Images uint8 (n, h, w) or (n, h, w, 1 or 3); labels integer (n,) or (n, 1), or masks (n, h, w) of classes.

    ``groups`` (n,), or with the splits' prefixes, say whose each image is: no group gets into two splits.
    """
    arrays = _read_archive(path)
    names = [s for s in SPLITS if f"{s}_images" in arrays or f"{s}_labels" in arrays]
    prefix = {s: f"{s}_" for s in names} if names else {"train": ""}
    images: dict[str, Images] = {}
    targets: dict[str, NDArray[Any]] = {}
    for split, start in prefix.items():
        for key in (f"{start}images", f"{start}labels"):
            if key not in arrays:
                raise DataError(path, f"array {key} is missing (found: {', '.join(sorted(arrays))})", _EXPECTED)
        images[split] = _images(path, f"{start}images", arrays[f"{start}images"])
        targets[split] = _targets(path, f"{start}labels", arrays[f"{start}labels"], images[split])
    if "train" not in prefix:
        raise DataError(path, f"there is no train split (found: {', '.join(prefix)})", _EXPECTED)
    shape = images["train"].shape[1:]
    for split in prefix:
        if images[split].shape[1:] != shape:
            raise DataError(path, f"{split} images are {images[split].shape[1:]}, train images {shape}", "resize them")
        if targets[split].ndim != targets["train"].ndim:
            raise DataError(path, f"{split} labels are not of the same rank as the train labels", "make them equal")
    found: Task = "classification" if targets["train"].ndim == 1 else "segmentation"
    if task is not None and task != found:
        raise DataError(path, f"it holds a {found} task", f"leave out task={task}")
    groups = {s: _groups(path, f"{start}groups", arrays, len(images[s])) for s, start in prefix.items()}
    flat = {s: (t if t.ndim == 1 else np.unique(t)).astype(np.int64) for s, t in targets.items()}
    count = check_classes(path, flat, what="label" if found == "classification" else "mask value")
    classes = _class_names(path, arrays, count)
    if found == "segmentation":
        parts = {s: Part(ArraySource(images[s], targets[s].astype(np.uint8)), None, groups[s]) for s in prefix}
    else:
        parts = {s: Part(ArraySource(images[s], flat[s]), flat[s], groups[s]) for s in prefix}
    return Opened(path, found, classes, shape[2], (shape[0], shape[1]), parts)


def _read_archive(path: str) -> dict[str, NDArray[Any]]:
    wanted = {f"{s}_{kind}" for s in SPLITS for kind in ("images", "labels", "groups")}
    wanted |= {"images", "labels", "groups", "class_names"}
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}
            budget = memory_limit()
            for name in sorted(wanted & members.keys()):
                info = members[name]
                if info.file_size > DEFLATE_RATIO * (info.compress_size + 1):
                    raise DataError(
                        path, f"{name} claims {info.file_size} bytes from {info.compress_size}", "do not use it"
                    )
                budget -= info.file_size
                if budget < 0:
                    raise DataError(path, f"up to {name} it unpacks to more than half of the memory", "split the file")
                with archive.open(info) as member:
                    arrays[name] = read_member(path, name, member, info.file_size)
            if not arrays:
                raise DataError(path, f"it holds {', '.join(sorted(members)) or 'no arrays'}", _EXPECTED)
    except FileNotFoundError:
        raise DataError(path, "no such file", "check the path after npz:") from None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise DataError(path, f"not a readable npz archive ({error})", "it may be truncated: fetch it again") from error
    return arrays


def _images(path: str, name: str, array: NDArray[Any]) -> Images:
    if array.dtype != np.uint8:
        raise DataError(path, f"{name} is {array.dtype}", "expected uint8 (scale it to 0..255)")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        raise DataError(path, f"{name} has shape {array.shape}", "expected (n, h, w) or (n, h, w, 1 or 3)")
    if 0 in array.shape:
        raise DataError(path, f"{name} is empty: {array.shape}", "expected at least one image with pixels")
    return np.ascontiguousarray(array)


def _targets(path: str, name: str, array: NDArray[Any], images: Images) -> NDArray[Any]:
    if array.dtype.kind not in "biu":
        raise DataError(path, f"{name} is {array.dtype}", "expected whole numbers")
    shape = array.shape
    if array.ndim in (2, 4) and shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 2:
        raise DataError(path, f"{name} has {shape[1]} columns", "expected one label an image")
    if array.ndim not in (1, 3):
        raise DataError(path, f"{name} has shape {shape}", "expected labels (n,) or (n, 1), or masks (n, h, w)")
    if len(array) != len(images):
        raise DataError(path, f"{name} holds {len(array)} entries for {len(images)} images", "expected as many")
    if array.ndim == 3 and array.shape != images.shape[:3]:
        raise DataError(path, f"{name} masks are {array.shape[1:]}, images {images.shape[1:3]}", "resize them")
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        raise DataError(path, f"{name} holds {array.max()}", "expected class numbers from 0")
    if array.ndim == 3 and array.max() > 255:
        raise DataError(path, f"{name} holds the value {array.max()}", "expected classes 0..255, not instances")
    return np.ascontiguousarray(array)


def _groups(path: str, name: str, arrays: dict[str, NDArray[Any]], count: int) -> tuple[str, ...] | None:
    """Whose each image is: numbers or strings (n,); None where the archive does not tell."""
    found = arrays.get(name)
    if found is None:
        return None
    if found.dtype.kind not in "iuUS" or found.shape != (count,):
        raise DataError(path, f"{name} is {found.dtype} {found.shape}", f"expected {count} numbers or strings")
    return tuple(str(g) for g in found.tolist())


def _class_names(path: str, arrays: dict[str, NDArray[Any]], count: int) -> tuple[str, ...]:
    names = arrays.get("class_names")
    if names is None:
        return tuple(str(k) for k in range(count))
    if names.dtype.kind != "U" or names.shape != (count,):
        raise DataError(path, f"class_names is {names.dtype} {names.shape}", f"expected {count} strings")
    return tuple(str(name) for name in names)
