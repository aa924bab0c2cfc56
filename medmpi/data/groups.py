"""Whose is a sample? No patient may be on both sides of a split: what a network knows of a patient is no proof.

Guards against the leaks that published CBIS-DDSM results suffer from: splits are made group by group, and splits that
come with the files are refused when they share a group.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .partition import Ids
from .split import stratified_split

if TYPE_CHECKING:
    from .entries import Entry


def group_split(
    labels: NDArray[np.int64] | None,
    groups: NDArray[np.int64],
    positions: Ids,
    *,
    fractions: tuple[float, float],
    seed: int,
) -> tuple[Ids, Ids, Ids]:
    """Ascending (train, first part, second part) of ``positions``, whole groups each.

    Groups are drawn as ``stratified_split`` draws samples, by the class that most of a group's samples have; the
    fractions are of groups. ``labels`` and ``groups`` are those of ``positions``.
    """
    names, index = np.unique(groups, return_inverse=True)
    of_group: NDArray[np.int64] | None = None
    if labels is not None:
        counts = np.zeros((len(names), int(labels.max(initial=0)) + 1), np.int64)
        np.add.at(counts, (index, labels), 1)
        of_group = counts.argmax(1)
    chosen = stratified_split(of_group, np.arange(len(names), dtype=np.int64), fractions=fractions, seed=seed)
    train, first, second = (np.sort(positions[np.isin(index, part)]) for part in chosen)
    return train, first, second


def check_groups(path: str, groups: Mapping[str, Sequence[str] | None]) -> None:
    """DataError when a group has samples in two splits; it says how many and where, and not who (patients' names)."""
    sets = {split: set(names) for split, names in groups.items() if names is not None}
    ordered = list(sets)
    for i, one in enumerate(ordered):
        for other in ordered[i + 1 :]:
            shared = sets[one] & sets[other]
            if shared:
                first = [[*(groups[split] or ())].index(min(shared)) for split in (one, other)]
                raise DataError(
                    path,
                    f"{len(shared)} of {len(sets[one] | sets[other])} patients (or other groups) have images in {one} "
                    f"and in {other}, for example those of {one} image {first[0]} and {other} image {first[1]}",
                    "results would be worthless: move each to one side",
                )


def assign_groups(root: Path, option: str | None, entries: list[Entry]) -> list[Entry]:
    """The entries with the groups that the option ``groups`` gives them."""
    if option in (None, "none"):
        return entries
    if option == "parent":
        return [replace(entry, group=entry.image.parent.relative_to(root).as_posix()) for entry in entries]
    assert option is not None
    table = _table(root, option)
    found = []
    for entry in entries:
        name = entry.image.relative_to(root).as_posix()
        group = table.get(name) or table.get(entry.image.name)
        if group is None:
            raise DataError(entry.image, f"{option} has no line for it", "expected columns file and group")
        found.append(replace(entry, group=group))
    return found


def _table(root: Path, option: str) -> dict[str, str]:
    """File to group, from a CSV with columns file and group (or patient)."""
    path = root / option if not Path(option).is_absolute() and (root / option).exists() else Path(option)
    try:
        with path.open(encoding="utf-8-sig", newline="") as opened:  # spreadsheets begin it with a mark
            rows = [
                {str(k).strip().lower(): str(v or "").strip() for k, v in r.items()} for r in csv.DictReader(opened)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(path, f"the table of groups cannot be read ({error})", "give groups=FILE.csv") from None
    column = next((c for c in ("group", "patient", "patient_id", "patientid") if rows and c in rows[0]), None)
    if column is None or "file" not in rows[0]:
        raise DataError(path, "the table has no columns file and group", "name them so in its first line")
    found: dict[str, str] = {}
    for row in rows:
        if row["file"] and row[column] and found.setdefault(row["file"], row[column]) != row[column]:
            raise DataError(path, f"{row['file']} has two groups", "keep one of its lines")
    return found
