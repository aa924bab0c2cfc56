"""What the kernel tests share: every backend in turn, and seeded numbers."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import kernels


@pytest.fixture(scope="module", params=[name for name in kernels.backends() if name.startswith("cpu")])
def backend(request):
    """Runs the module's tests on this backend."""
    before = kernels.backend()
    kernels.use_backend(request.param)
    yield request.param
    kernels.use_backend(before)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def with_threads():
    """Calls a function on n threads and leaves the number of threads as it was."""
    before = kernels.threads()

    def call(n, function):
        kernels.set_threads(n)
        try:
            return function()
        finally:
            kernels.set_threads(before)

    return call
