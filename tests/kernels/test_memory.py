"""Planned arenas and recordings of kernel calls."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import kernels as K


def some_step(rng: np.random.Generator, sizes: list[int], arena: K.Arena) -> None:
    """Makes arrays that die in an order of their own, and checks that nobody writes over a living one."""
    order = np.random.default_rng(len(sizes)).permutation(len(sizes))
    with arena:
        living: dict[int, tuple[np.ndarray, float]] = {}
        for i, size in enumerate(sizes):
            value = float(rng.random())
            array = K.empty((size,))
            array.fill(value)
            living[i] = array, value
            del array
            if i % 2:
                gone = next(j for j in order if j in living)
                kept, expected = living.pop(gone)
                assert (kept == np.float32(expected)).all()
                del kept
        for array, value in living.values():
            assert (array == np.float32(value)).all()
        living.clear()
        del array


SIZES = [int(s) for s in np.random.default_rng(0).integers(1, 5000, 60)]


def test_arrays_of_a_plan_do_not_overlap():
    arena = K.Arena()
    rng = np.random.default_rng(0)
    for _ in range(4):
        some_step(rng, SIZES, arena)
    assert 0 < arena.nbytes() < 1.5 * 4 * sum(SIZES)
    blocks = K.memory_statistics()["fresh_blocks"]
    some_step(rng, SIZES, arena)
    assert K.memory_statistics()["fresh_blocks"] == blocks


def test_a_plan_takes_less_than_all_arrays_together():
    arena = K.Arena()
    for _ in range(2):
        with arena:
            a = K.empty((1 << 20,))
            for _ in range(6):
                b = K.empty((1 << 20,))
                a = b
                del b
            del a
    assert arena.nbytes() <= 3 * (4 << 20)


def test_other_sizes_are_served_and_planned_anew_when_they_stay():
    arena = K.Arena()
    rng = np.random.default_rng(0)
    for sizes in (SIZES, SIZES, SIZES[:20], SIZES, SIZES[::-1], SIZES[::-1], SIZES[::-1], SIZES[::-1], SIZES[::-1]):
        some_step(rng, sizes, arena)
    assert arena.nbytes() > 0


def test_a_plan_serves_smaller_arrays_and_grows_for_larger_ones():
    """Tiles of one network differ in size: what was planned for the largest is for all."""
    arena = K.Arena()
    rng = np.random.default_rng(0)

    def scaled(factor: float) -> list[int]:
        return [max(1, int(size * factor)) for size in SIZES]

    some_step(rng, SIZES, arena)
    planned, blocks = arena.nbytes(), K.memory_statistics()["fresh_blocks"]
    for factor in (0.5, 0.1, 0.9, 1.0):
        some_step(rng, scaled(factor), arena)
    assert (arena.nbytes(), K.memory_statistics()["fresh_blocks"]) == (planned, blocks)
    for factor in (2.0, 0.7):
        some_step(rng, scaled(factor), arena)
    blocks = K.memory_statistics()["fresh_blocks"]
    assert arena.nbytes() > 1.9 * planned
    mixed = [max(1, int(size * f)) for size, f in zip(SIZES, rng.uniform(0.1, 2.0, len(SIZES)), strict=True)]
    for sizes in (mixed, scaled(2.0), scaled(0.3)):
        some_step(rng, sizes, arena)
    assert K.memory_statistics()["fresh_blocks"] == blocks


def test_a_pass_that_grows_and_then_strays_leaves_a_sound_plan():
    arena = K.Arena()
    rng = np.random.default_rng(0)
    larger = [size * 2 for size in SIZES]
    for sizes in (SIZES, larger[:20], SIZES, larger[:7], larger, [int(s * 1.5) for s in SIZES], SIZES):
        some_step(rng, sizes, arena)


def test_an_array_that_outlives_its_pass_keeps_its_values():
    arena = K.Arena()
    kept = []
    for number in range(6):
        with arena:
            a, b = K.empty((1000,)), K.empty((1000,))
            a.fill(number)
            b.fill(-1)
            if number in (3, 4):  # in the first passes nothing outlives, so the plan has a place for it
                kept.append(a)
            del a, b
    assert [set(a.tolist()) for a in kept] == [{3.0}, {4.0}]


def test_one_pass_at_a_time():
    arena = K.Arena()
    with arena, pytest.raises(RuntimeError, match="a pass is on already"), K.Arena():
        pass
    with arena:  # the first one ended all the same
        pass


def test_a_recording_computes_again_on_new_values():
    x, w = np.ones((1, 8, 8, 3), np.float32), np.ones((3, 3, 3, 4), np.float32)
    recording = K.Recording()
    with recording:
        y = K.relu(K.conv2d(x, w, padding=1))
        z = K.add(y, y)
    assert len(recording) == 3
    x[...] = np.random.default_rng(0).standard_normal(x.shape)
    recording.run()
    assert np.array_equal(z, 2 * np.maximum(K.conv2d(x, w, padding=1), 0))


def test_a_recording_keeps_what_it_reads():
    recording = K.Recording()
    with recording:
        y = K.add(np.full(100000, 2.0, np.float32), np.full(100000, 3.0, np.float32))
    noise = [np.random.default_rng(i).random(100000, np.float32) for i in range(8)]
    y.fill(0)
    recording.run()
    assert (y == 5).all()
    assert len(noise) == 8


def test_what_cannot_be_recorded_raises():
    with K.Recording(), pytest.raises(RuntimeError, match="median_filter: cannot be recorded"):
        K.median_filter(np.ones((8, 8), np.float32), 3)
    K.median_filter(np.ones((8, 8), np.float32), 3)
