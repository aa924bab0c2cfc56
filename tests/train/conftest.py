"""One world for all MPI tests of a process."""

from __future__ import annotations

import pytest

from medmpi import parallel


@pytest.fixture(scope="session")
def world() -> parallel.World:
    """All ranks of this start."""
    return parallel.start(timeout=30)
