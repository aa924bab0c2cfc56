"""Real data beside the checkout, and files written for a test."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def real_data():
    """The folder of a real data set, or a skip that says what is missing."""

    def find(name):
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"no real data: {path} does not exist")
        return path

    return find
