"""Group sizes and the cost of a job, against S4's tables."""

from __future__ import annotations

import pytest

from medmpi.slide.cost import S4_PREPARE, S4_SECONDS, estimate, finish_time
from medmpi.slide.main import main
from medmpi.slide.tune import GroupSpeed, best, measure


def test_the_seed_s_own_cluster():
    """399 slides, 10.84 million patches, 4,000 cores in tasks of 7: tables I to III within 5 %."""
    patches = [10_840_000 // 399] * 399
    found = estimate(
        patches, cores=4000, stride=16, group_size=400, window_seconds=S4_SECONDS, cores_per_task=7, start_seconds=0,
        prepare_seconds=S4_PREPARE * 3600,
    )  # fmt: skip
    assert found.predict_core_hours == pytest.approx(133_034, rel=0.01)
    assert found.predict_hours == pytest.approx(34, rel=0.05)
    assert found.prepare_core_hours == pytest.approx(354, rel=0.001)
    assert found.groups == pytest.approx(27_280, rel=0.01)
    assert 0.9 < found.efficiency <= 1


def test_list_scheduling_by_hand():
    assert finish_time([3, 3, 2, 2, 2], 2) == 7
    assert finish_time([5], 10) == 5
    assert finish_time([], 3) == 0
    with pytest.raises(ValueError, match="0 tasks"):
        finish_time([1], 0)


def test_one_task_cannot_be_split():
    found = estimate([400], cores=100, stride=16, group_size=400, window_seconds=0.01, start_seconds=0)
    assert found.predict_hours == pytest.approx(400 * 196 * 0.01 / 3600)
    small = estimate([400], cores=100, stride=16, group_size=4, window_seconds=0.01, start_seconds=0)
    assert small.predict_hours == pytest.approx(found.predict_hours / 100)
    with pytest.raises(ValueError, match="at least the 7"):
        estimate([1], cores=4, stride=16, group_size=4, window_seconds=1, cores_per_task=7)


def test_groups_are_measured_and_nothing_is_left(tmp_path):
    found = measure(tmp_path, (5, 50), repeats=1, cell_bytes=20_000)
    assert [s.size for s in found] == [5, 50]
    assert found[1].gain > 2  # one read against fifty
    assert not list(tmp_path.iterdir())


def test_the_smallest_of_the_fast_sizes():
    speeds = [GroupSpeed(100, 0, 0.2, 1), GroupSpeed(400, 0, 0.41, 1), GroupSpeed(1600, 0, 1.6, 1)]
    assert best(speeds).size == 400
    assert best(speeds, largest=200).size == 100
    with pytest.raises(ValueError, match="at most 10"):
        best(speeds, largest=10)


def test_from_the_command_line(tmp_path, capsys):
    words = ["tune-groups", str(tmp_path), "--sizes", "10", "--repeats", "1"]
    assert main([*words, "--cores", "4000", "--cores-per-task", "7"]) == 2
    assert "needs --stores, or --slides" in capsys.readouterr().err
    words += ["--cores", "4000", "--slides", "399", "--patches", "27166", "--windows-per-second", "4.43"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "group size: 10 patches" in said
    assert "core-hours" in said
    assert main(["tune-groups", str(tmp_path / "none")]) == 3
