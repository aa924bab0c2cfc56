"""Which files are inputs, in which units they are worked on, and where each result goes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from medmpi.data.dataset import SPLITS
from medmpi.data.folder import SPLIT_FOLDERS, images_below, outside
from medmpi.data.readers import name_of
from medmpi.prepare.options import Options
from medmpi.train.failure import USAGE, Failure

_MASKS = ("masks", "labels")


@dataclass(frozen=True)
class Item:
    """One input file; ``name`` is where its result goes, without suffix, relative to the folder of the results."""

    file: Path
    name: str
    label: str | None = None
    mask: Path | None = None
    split: str | None = None


@dataclass(frozen=True)
class Unit:
    """What one rank does at a time: one file, or the files of one shard. ``target`` is the shard's file.

    ``masks`` says that each image of the shard must have one.
    """

    number: int
    items: tuple[Item, ...]
    target: str | None = None
    split: str | None = None
    masks: bool = False
    preview: bool = False

    @property
    def key(self) -> str:
        """Its name in the book of what is done."""
        return self.target or self.items[0].name


def make_units(options: Options) -> tuple[list[Unit], tuple[str, ...]]:
    """All units in a fixed order, and the classes of the labels. Failure for inputs that are not there."""
    items: list[Item] = []
    if any(Path(text).expanduser().resolve() == Path(options.out).expanduser().resolve() for text in options.inputs):
        raise Failure(f"--out is an input, {options.out}; give another folder", USAGE)
    for text in options.inputs:
        path = Path(text).expanduser()
        if path.is_file():
            items.append(Item(path, name_of(path)))
        elif path.is_dir():
            items += _of_folder(path, Path(options.out).expanduser())
        else:
            raise Failure(f"{path}: no such file or folder", USAGE)
    if not items:
        raise Failure(f"{', '.join(options.inputs)}: no image file there", USAGE)
    items = _unique(items)
    classes: tuple[str, ...] = ()
    if options.format == "png":
        units = [Unit(i, (item,)) for i, item in enumerate(items)]
    else:
        items = _by_split(items)
        masks = any(item.mask is not None for item in items)
        classes = () if masks else _classes(items, options.labels)
        units = _shards(items, options.shard_images, masks)
    wanted = min(options.previews, len(units))
    shown = {i * len(units) // wanted for i in range(wanted)}
    return [replace(u, preview=u.number in shown) for u in units], classes


def _by_split(items: list[Item]) -> list[Item]:
    """The items in the order of the splits whose folders they are in, if there is one for training."""
    found = [SPLIT_FOLDERS.get(item.name.split("/")[0]) if "/" in item.name else None for item in items]
    if "train" not in found:
        return items
    if None in found:
        lost = items[found.index(None)].file
        raise Failure(f"{lost}: some files are in train/, val/ or test/, this one is not; move it", USAGE)
    ordered = []
    for split in SPLITS:
        for item, of in zip(items, found, strict=True):
            if of == split:
                parts = item.name.split("/")
                ordered.append(replace(item, split=split, label=parts[1] if len(parts) > 2 else None))
    return ordered


def _shards(items: list[Item], most: int, masks: bool) -> list[Unit]:
    """Units of at most so many files of one split."""
    units: list[Unit] = []
    for split in (None, *SPLITS):
        here = [item for item in items if item.split == split]
        for number, at in enumerate(range(0, len(here), most)):
            target = f"{split or 'shard'}-{number:05}.h5"
            units.append(Unit(len(units), tuple(here[at : at + most]), target, split, masks))
    return units


def _of_folder(folder: Path, out: Path) -> list[Item]:
    files = outside(images_below(folder), out)
    masks = {
        place.parent / "images" / f.relative_to(place).with_name(name_of(f)): f
        for place in {f for name in _MASKS for f in folder.rglob(name) if f.is_dir() and (f.parent / "images").is_dir()}
        for f in images_below(place)
    }
    taken = set(masks.values())
    items = []
    for file in files:
        if file in taken:
            continue
        key = file.with_name(name_of(file))
        mask = masks.get(key) or masks.get(key.with_name(key.name + "_mask"))
        relative = file.relative_to(folder)
        label = relative.parts[0] if len(relative.parts) > 1 else None
        items.append(Item(file, relative.with_name(name_of(file)).as_posix(), label, mask))
    return items


def _unique(items: list[Item]) -> list[Item]:
    """Files whose results would have the same name keep their suffix, or get a number."""
    counts: dict[str, int] = {}
    for item in items:
        counts[item.name] = counts.get(item.name, 0) + 1
    found, used = [], set()
    for item in items:
        name = item.name if counts[item.name] == 1 else (Path(item.name).parent / item.file.name).as_posix()
        base, number = name, 1
        while name in used:
            number += 1
            name = f"{base}-{number}"
        used.add(name)
        found.append(replace(item, name=name))
    return found


def _classes(items: list[Item], how: str) -> tuple[str, ...]:
    """The class folders, where every file is in one."""
    names = sorted({item.label for item in items if item.label is not None})
    complete = all(item.label is not None for item in items) and len(names) > 1
    if how == "none" or (how == "auto" and not complete):
        return ()
    if not complete:
        raise Failure("--labels folder: expected every file in a class folder of the input, two or more", USAGE)
    untaught = set(names) - {item.label for item in items if item.split in (None, "train")}
    if untaught:
        raise Failure(f"class {min(untaught, key=str)} is in no folder of train/", USAGE)
    return tuple(names)
