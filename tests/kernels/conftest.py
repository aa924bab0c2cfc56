"""What the kernel tests share: every backend in turn, and seeded numbers."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import kernels
from tests.kernels.staged import BACKENDS, emulated, on_backend


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request):
    """Runs the module's tests on this backend: host arrays, or with ``cuda`` copies of them on the device.

    Where a module's ``LONG_WHEN_EMULATED`` is true ``cuda`` is left to real devices.
    """
    if request.param == "cuda" and getattr(request.module, "LONG_WHEN_EMULATED", False) and emulated():
        pytest.skip("takes minutes on an emulated device")
    with on_backend(request.param):
        yield request.param


@pytest.fixture
def host_backend(backend):
    """Every backend for host arrays: for tests about what numpy and scipy alone have."""
    if backend == "cuda":
        pytest.skip("is about host arrays")
    return backend


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
