"""A DICOM C-STORE listener (PS3.4 B) through pynetdicom (extra ``infer``).

An image is answered with success once it lies on disk, synced and renamed: from then on no kill loses it, and a sender
that got no answer sends again. Sending an image twice is harmless.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medmpi.files import write_whole
from medmpi.train.failure import ERROR, Failure

_SUCCESS, _NO_ROOM, _CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
PORT = "port"
"""The file that says on which port the listener was last."""
_PATIENCE = 5.0  # seconds for which a port may be in use
_LARGEST = 2 << 30
_UID = re.compile(r"[0-9.]{1,64}")


class Store:
    """Listens in threads; received files go to ``incoming``."""

    def __init__(self, out: Path, *, port: int, bind: str, ae_title: str, answered: set[str]) -> None:
        try:
            from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
            from pynetdicom.sop_class import Verification  # type: ignore[attr-defined, unused-ignore]
        except ImportError:
            raise Failure("listening needs pynetdicom: pip install 'medmpi[infer]'") from None
        self.incoming, self.out = out / "incoming", out
        self._known = answered
        self._lock = threading.Lock()
        self.received = self.refused = 0
        entity = AE(ae_title=ae_title)
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
        entity.add_supported_context(Verification)
        entity.maximum_associations = 32
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_C_ECHO, _echo)]

        def start(number: int) -> Any:
            return entity.start_server((bind, number), block=False, evt_handlers=handlers)

        self._server: Any = self._start(start, bind, port)
        self.port = int(self._server.socket.getsockname()[1])
        write_whole(out / PORT, f"{self.port}\n")

    def _start(self, start: Callable[[int], Any], bind: str, port: int) -> Any:
        """Port 0 is the one of the last start if it is free. A listener that is just ending is waited for."""
        if port == 0:
            with contextlib.suppress(OSError, ValueError, OverflowError):
                return start(int((self.out / PORT).read_text()))
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                return start(port)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > end:
                    raise Failure(f"cannot listen on {bind}:{port}: {error.strerror or error}", ERROR) from None
                time.sleep(0.1)

    def _store(self, event: Any) -> int:
        """Writes one image and gives the status of the answer."""
        try:
            uid = str(event.request.AffectedSOPInstanceUID)
            if not _UID.fullmatch(uid):
                raise ValueError("the SOP instance UID is malformed")
            content = event.encoded_dataset()
            if len(content) > _LARGEST:
                raise ValueError("the image is too large")
        except Exception:  # whatever a sender may have sent
            self.refused += 1
            return _CANNOT_UNDERSTAND
        target = self.incoming / f"{uid}.dcm"
        temporary = self.incoming / f".{uid}.{threading.get_ident()}.tmp"
        try:
            with self._lock:
                if uid in self._known:
                    return _SUCCESS
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            with self._lock:
                if uid not in self._known:
                    os.utime(temporary)  # the time of arrival, from which latencies count
                    os.replace(temporary, target)
                    self._known.add(uid)
                    self.received += 1
        except OSError:
            self.refused += 1
            return _NO_ROOM
        finally:
            temporary.unlink(missing_ok=True)
        return _SUCCESS

    def close(self) -> None:
        """Takes no more images; associations under way are ended."""
        self._server.shutdown()


def _echo(event: Any) -> int:
    return _SUCCESS
