"""S0 eq. 3: the parts are disjoint and complete, whatever the sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmpi.data import epoch_order, global_batches, share, stratified_split
from medmpi.data.random import Purpose, sample_bits, uniform


@given(n=st.integers(0, 500), seed=st.integers(-(2**40), 2**70), epoch=st.integers(0, 1000))
def test_epoch_order_is_a_permutation_of_its_keys(n, seed, epoch):
    order = epoch_order(n, seed, epoch)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(n))
    assert np.array_equal(order, epoch_order(n, seed, epoch))


def test_epoch_order_changes_with_seed_and_epoch():
    orders = [epoch_order(200, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({order.tobytes() for order in orders}) == 6


def test_epoch_order_is_this_one():
    """Frozen: a resumed run and a machine with another numpy must shuffle alike."""
    assert epoch_order(10, seed=1, epoch=2).tolist() == FROZEN_ORDER


FROZEN_ORDER = [4, 5, 9, 6, 7, 1, 0, 8, 2, 3]


@given(
    n=st.integers(0, 300),
    batch=st.integers(1, 64),
    size=st.integers(1, 9),
    epoch=st.integers(0, 3),
)
def test_ranks_share_every_sample_once(n, batch, size, epoch):
    order = epoch_order(n, 7, epoch)
    seen = []
    for ids in global_batches(order, batch):
        parts = [share(ids, rank, size) for rank in range(size)]
        lengths = [len(part) for _, part in parts]
        assert max(lengths) - min(lengths) <= 1
        assert np.array_equal(np.concatenate([part for _, part in parts]), ids)
        for first, part in parts:
            assert np.array_equal(ids[first : first + len(part)], part)
        seen.extend(ids.tolist())
    assert sorted(seen) == list(range(n))


@given(n=st.integers(0, 100), size=st.integers(1, 9), unit=st.integers(1, 9))
def test_shares_of_whole_units(n, size, unit):
    ids = np.arange(n)
    parts = [share(ids, rank, size, unit=unit) for rank in range(size)]
    assert np.array_equal(np.concatenate([part for _, part in parts]), ids)
    assert all(first % unit == 0 for first, part in parts if len(part))
    lengths = [len(part) for _, part in parts]
    assert max(lengths) - min(lengths) <= unit


def test_drop_last_drops_only_the_last():
    batches = global_batches(np.arange(10), 4, drop_last=True)
    assert [b.tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [len(b) for b in global_batches(np.arange(10), 4)] == [4, 4, 2]


@pytest.mark.parametrize(("rank", "size"), [(-1, 2), (2, 2), (0, 0)])
def test_share_refuses_a_rank_outside(rank, size):
    with pytest.raises(ValueError, match="share: rank"):
        share(np.arange(3), rank, size)


def test_bad_arguments():
    with pytest.raises(ValueError, match="unit is 0"):
        share(np.arange(3), 0, 1, unit=0)
    with pytest.raises(ValueError, match="epoch_order"):
        epoch_order(-1, 0, 0)
    with pytest.raises(ValueError, match="global_batches"):
        global_batches(np.arange(3), 0)
    with pytest.raises(ValueError, match="stratified_split"):
        stratified_split(None, np.arange(3), fractions=(0.6, 0.5), seed=0)


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=200),
    first=st.sampled_from([0.0, 0.1, 0.25]),
    second=st.sampled_from([0.0, 0.1, 0.3]),
    seed=st.integers(0, 5),
)
def test_stratified_split_is_a_partition_with_equal_shares(labels, first, second, seed):
    classes = np.array(labels, dtype=np.int64)
    positions = np.arange(len(labels), dtype=np.int64) * 3
    parts = stratified_split(classes, positions, fractions=(first, second), seed=seed)
    assert np.array_equal(np.sort(np.concatenate(parts)), positions)
    for part in parts:
        assert np.array_equal(part, np.sort(part))
    for k in np.unique(classes):
        total = int((classes == k).sum())
        counts = [int((classes[part // 3] == k).sum()) for part in parts]
        assert counts[0] >= 1
        for fraction, count in zip((first, second), counts[1:], strict=True):
            assert abs(count - fraction * total) <= 1
            assert fraction == 0 or total < 3 or count >= 1


def _philox4x32(counter, key):
    """Philox4x32-10 as the paper writes it, one counter in plain integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_reference_philox_has_the_published_values():
    """Known-answer vectors of Random123 (kat_vectors, philox4x32 10)."""
    assert _philox4x32([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert _philox4x32([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@given(sample=st.integers(0, 2**63 - 1), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**32 - 1))
def test_sample_bits_are_philox(sample, seed, epoch):
    bits = sample_bits(np.array([5, sample]), 6, seed=seed, epoch=epoch, purpose=Purpose.AUGMENT)
    expected = []
    for block in range(2):
        counter = [sample & 0xFFFFFFFF, sample >> 32, epoch, int(Purpose.AUGMENT) << 24 | block]
        expected += _philox4x32(counter, [seed & 0xFFFFFFFF, seed >> 32])
    assert bits.shape == (2, 6)
    assert bits[1].tolist() == expected[:6]


def test_uniform_stays_below_one():
    assert uniform(np.array([0, 2**32 - 1], dtype=np.uint32)).tolist() == [0.0, 1 - 2.0**-24]
