"""Shares that follow speed: complete and disjoint whatever the weights, moved when it pays and left alone otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmpi.parallel import Balance, World
from medmpi.parallel.balance import _limited, split_units
from medmpi.parallel.guard import Guard


@given(
    n=st.integers(0, 400),
    weights=st.lists(st.floats(0.01, 10.0), min_size=1, max_size=9),
    unit=st.integers(1, 7),
)
def test_shares_are_complete_and_nobody_is_left_out(n: int, weights: list[float], unit: int) -> None:
    shares = split_units(n, np.array(weights), unit)
    assert shares.sum() == n
    assert (shares >= 0).all()
    assert (np.cumsum(shares)[:-1] % unit == 0).all() or n < unit * len(weights)
    if -(-n // unit) >= len(weights):
        assert (shares > 0).all()


def test_shares_go_with_the_weights() -> None:
    np.testing.assert_array_equal(split_units(64, np.array([0.75, 0.25])), [48, 16])
    np.testing.assert_array_equal(split_units(64, np.array([0.75, 0.25]), 8), [48, 16])
    np.testing.assert_array_equal(split_units(11, np.full(3, 1 / 3)), [4, 4, 3])


def test_no_rank_gets_more_than_memory_was_planned_for() -> None:
    weights = _limited(np.array([0.9, *[0.0125] * 8]))
    assert weights.max() == pytest.approx(4 / 9)
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(_limited(np.array([0.7, 0.3])), [0.7, 0.3])


class Ranks:
    """Several ranks in this process; ``allgather`` is answered with all of their values."""

    def __init__(self, size: int) -> None:
        self.size, self.rank = size, 0
        self.answer: list[float] = []

    def allgather(self, value: float, operation: str) -> list[float]:
        return [value, *self.answer]


def drive(balance: Balance, ranks: Ranks, per_sample: list[float], windows: int) -> list[str]:
    """Steps of ranks with these speeds; what was changed."""
    changes = []
    for _ in range(8 * windows):
        n = int(balance.shares(64)[0])
        balance.observe(n, n * per_sample[0])
        ranks.answer = per_sample[1:]
        change = balance.adjust()
        if change is not None:
            changes.append(" ".join(map(str, change.shares)))
    return changes


def test_a_slow_rank_gets_less_at_once_and_its_share_back_when_it_recovers() -> None:
    ranks = Ranks(2)
    balance = Balance(ranks, 64)  # type: ignore[arg-type]
    assert drive(balance, ranks, [0.01, 0.03], 3) == ["48 16"]
    changes = drive(balance, ranks, [0.01, 0.01], 9)
    assert 32 <= int(changes[-1].split()[0]) <= 34, changes  # what is left to gain is less than a change costs
    assert len(changes) <= 4


def test_noise_changes_nothing() -> None:
    ranks = Ranks(4)
    balance = Balance(ranks, 64)  # type: ignore[arg-type]
    random = np.random.default_rng(0)
    for _ in range(10):
        speeds = (0.01 * random.uniform(0.97, 1.03, 4)).tolist()
        assert drive(balance, ranks, speeds, 1) == []


def test_without_balance_shares_stay_even() -> None:
    ranks = Ranks(2)
    balance = Balance(ranks, 64, active=False)  # type: ignore[arg-type]
    assert drive(balance, ranks, [0.01, 0.03], 3) == []
    first, part = balance.part(np.arange(63))
    assert (first, len(part)) == (0, 32)
    alone = Balance(World(None, Guard(0, 1, lambda code: None), timeout=30), 8)
    assert not alone.active
    assert len(alone.part(np.arange(5))[1]) == 5
