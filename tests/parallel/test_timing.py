"""The account of time adds up, and both readings of S0 eq. 12 are what they say."""

from __future__ import annotations

import time

import pytest

from medmpi.parallel import Account, Timer
from medmpi.parallel.timing import imbalance, mean


def test_kinds_add_up_to_wall_time() -> None:
    collective = {"comm": 0.0, "wait": 0.0}
    before = time.perf_counter()
    timer = Timer(collective)
    start = time.perf_counter()
    time.sleep(0.02)
    with timer("io"):
        time.sleep(0.03)
        with timer("comp"):
            time.sleep(0.01)
    time.sleep(0.05)
    collective["comm"] += 0.02  # as a collective operation does that took place meanwhile
    collective["wait"] += 0.01
    end = time.perf_counter()
    account = timer.read()
    assert end - start <= account.total <= time.perf_counter() - before
    assert account.comm == pytest.approx(0.02)
    assert account.wait == pytest.approx(0.01)
    assert account.io >= 0.03
    assert account.comp == pytest.approx(account.total - account.io - 0.03)
    with pytest.raises(ValueError, match="kind is 'gpu'"), timer("gpu"):
        pass


def test_epochs_are_differences() -> None:
    timer = Timer()
    time.sleep(0.01)
    before = time.perf_counter()
    first = timer.read()
    start = time.perf_counter()
    with timer("io"):
        time.sleep(0.02)
    end = time.perf_counter()
    epoch = timer.read() - first
    assert epoch.io >= 0.02
    assert end - start <= epoch.total <= time.perf_counter() - before


def test_allocation_efficiency() -> None:
    account = Account(comp=6.0, comm=2.0, wait=1.0, io=1.0)
    assert account.total == 10.0
    assert account.r_alloc == pytest.approx(0.8)
    assert account.r_alloc_as_printed == pytest.approx(6.2)
    assert Account().r_alloc == 0.0
    slow = Account(comp=18.0)
    assert mean([account, slow]).comp == 12.0
    assert imbalance([account, slow]) == pytest.approx(1.5)
    assert imbalance([Account(), Account()]) == 1.0
