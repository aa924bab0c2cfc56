"""Images that come as they like, each taken by exactly one rank.

Ranks pull by claims in the file system, not by messages: a claim is one atomic rename or exclusive creation, needs no
meeting of ranks while they wait for images, and what a killed rank had claimed is there when the job is started again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import Protocol

from medmpi.data.folder import images_below, outside
from medmpi.data.readers import name_of
from medmpi.infer.process import state_of

_SETTLED = 0.2  # seconds for which a watched file must not have changed
_YOUNG = 2.0  # seconds after its last change within which a file that cannot be read may still be being written


class Spool(Protocol):
    """Where images come from."""

    def next(self) -> tuple[Path, str, float] | None:
        """An image that is now this rank's: file, name, time of arrival (s since 1970); None if there is none."""

    def home(self, file: Path) -> Path:
        """Where a claimed image will be found later."""

    def done(self, file: Path) -> None:
        """The result of a claimed image is written."""

    def again(self, file: Path, name: str) -> bool:
        """Gives back an image that cannot be read, if it may be so because it is not all there yet."""

    def waiting(self) -> int:
        """Images that nobody has claimed."""


class Incoming:
    """Received files: ``incoming`` -> ``claimed/RANK`` -> ``processed`` (or deleted), by renaming."""

    def __init__(self, out: Path, rank: int, *, keep: bool) -> None:
        self.incoming, self.mine = out / "incoming", out / "claimed" / str(rank)
        self.processed = out / "processed"
        self.keep = keep

    @staticmethod
    def prepare(out: Path, answered: set[str]) -> int:
        """Makes the folders and puts back what was claimed without a result. Before any rank asks; how many."""
        for name in ("incoming", "claimed", "processed"):
            (out / name).mkdir(parents=True, exist_ok=True)
        back = 0
        for file in (out / "claimed").glob("*/*"):
            if file.stem in answered:
                os.replace(file, out / "processed" / file.name)
            else:
                os.replace(file, out / "incoming" / file.name)
                back += 1
        return back

    def next(self) -> tuple[Path, str, float] | None:
        self.mine.mkdir(parents=True, exist_ok=True)
        for entry in self._oldest_first():
            target = self.mine / entry.name
            try:
                arrived = entry.stat().st_mtime
                os.rename(entry.path, target)
            except OSError:  # another rank was faster
                continue
            return target, target.stem, arrived
        return None

    def home(self, file: Path) -> Path:
        return self.processed / file.name

    def done(self, file: Path) -> None:
        if self.keep:
            os.replace(file, self.home(file))
        else:
            file.unlink(missing_ok=True)

    def again(self, file: Path, name: str) -> bool:
        """Never: what is here was written under another name."""
        return False

    def waiting(self) -> int:
        return len(self._oldest_first())

    def _oldest_first(self) -> list[os.DirEntry[str]]:
        found = []
        with os.scandir(self.incoming) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if not entry.name.startswith("."):
                        found.append((entry.stat().st_mtime_ns, entry))
        return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]


class Watched:
    """A folder of somebody else's: nothing in it is moved; a claim is a file of its own.

    A file is taken once it has kept its size and time for a moment, and again if it cannot be read and is that young.
    One that changes later is another image.
    """

    def __init__(self, folder: Path, out: Path, answered: set[str]) -> None:
        self.folder, self.out, self.claims = folder, out, out / "claims"
        self.answered = set(answered)
        self._seen: dict[Path, tuple[list[int], float]] = {}
        self._waiting = 0

    @staticmethod
    def prepare(out: Path, answered: set[str]) -> int:
        """Forgets claims without a result; before any rank asks."""
        claims = out / "claims"
        back = sum(1 for claim in claims.glob("*") if claim.name not in answered) if claims.is_dir() else 0
        shutil.rmtree(claims, ignore_errors=True)
        claims.mkdir(parents=True)
        return back

    def key(self, file: Path) -> str:
        """The name of an image's results: its own, and a digest of its state."""
        state = hashlib.sha256(os.fsencode(f"{file}:{state_of(file)}")).hexdigest()[:12]
        return f"{file.relative_to(self.folder).with_name(name_of(file)).as_posix().replace('/', '__')}-{state}"

    def next(self) -> tuple[Path, str, float] | None:
        now, found = time.monotonic(), None
        self._waiting = 0
        for file in outside(images_below(self.folder), self.out):
            state = state_of(file)
            known = self._seen.get(file)
            if known is None or known[0] != state:
                self._seen[file] = (state, now)
                self._waiting += 1
                continue
            if known[1] == float("-inf"):
                continue
            if now - known[1] < _SETTLED:
                self._waiting += 1
                continue
            self._seen[file] = (state, float("-inf"))  # looked after, by whomever
            key = self.key(file)
            if key in self.answered:
                continue
            try:
                os.close(os.open(self.claims / key, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                continue
            found = file, key, max(state[1] / 1e9, time.time() - 60.0)
            break
        return found

    def home(self, file: Path) -> Path:
        return file

    def done(self, file: Path) -> None:
        """The claim stays, so that no other rank takes the image."""

    def again(self, file: Path, name: str) -> bool:
        state = state_of(file)
        if not 0 <= time.time() - state[1] / 1e9 < _YOUNG:
            return False
        self._seen[file] = (state, time.monotonic() + _YOUNG - _SETTLED)
        (self.claims / name).unlink(missing_ok=True)
        return True

    def waiting(self) -> int:
        return self._waiting
