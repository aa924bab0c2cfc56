"""JSON files that are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medmpi.data import DataError
from medmpi.files import write_whole


def write_json(path: Path, content: Any) -> None:
    """JSON with sorted keys: the same content is the same bytes."""
    write_whole(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file; DataError names the file and what it should have been."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(path, "no such file", f"expected {what}") from None
    except (OSError, ValueError) as error:
        raise DataError(path, error, f"expected {what}") from error
