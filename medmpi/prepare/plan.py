"""Which files are inputs, in which units they are worked on, and where each result goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medmpi.data.folder import images_below
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


@dataclass(frozen=True)
class Unit:
    """What one rank does at a time: one file, or the files of one shard. ``target`` is the shard's file."""

    number: int
    items: tuple[Item, ...]
    target: str | None = None
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
    classes = _classes(items, options.labels) if options.format == "hdf5" else ()
    if options.format == "png":
        units = [Unit(i, (item,)) for i, item in enumerate(items)]
    else:
        n = options.shard_images
        units = [Unit(i, tuple(items[i * n : (i + 1) * n]), f"shard-{i:05}.h5") for i in range(-(-len(items) // n))]
    wanted = min(options.previews, len(units))
    shown = {i * len(units) // wanted for i in range(wanted)}
    return [Unit(u.number, u.items, u.target, u.number in shown) for u in units], classes


def _of_folder(folder: Path, out: Path) -> list[Item]:
    files = [f for f in images_below(folder) if not f.resolve().is_relative_to(out.resolve())]
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
        found.append(Item(item.file, name, item.label, item.mask))
    return found


def _classes(items: list[Item], how: str) -> tuple[str, ...]:
    """The class folders, where every file is in one."""
    names = sorted({item.label for item in items if item.label is not None})
    complete = all(item.label is not None for item in items) and len(names) > 1
    split = {"train", "val", "test"} & set(names)
    if how == "none" or (how == "auto" and (not complete or split)):
        return ()
    if not complete or split:
        raise Failure("--labels folder: expected every file in a class folder of the input, two or more", USAGE)
    return tuple(names)
