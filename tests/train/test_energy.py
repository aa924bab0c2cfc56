"""Joules by counters that lie in a folder like Linux's."""

from __future__ import annotations

import math

import pytest

from medmpi.train.energy import Energy
from medmpi.train.resources import Usage, summarise


def zone(root, folder, name, used, largest=1000_000_000):
    path = root / folder
    path.mkdir(exist_ok=True)
    (path / "name").write_text(name + "\n")
    (path / "max_energy_range_uj").write_text(f"{largest}\n")
    (path / "energy_uj").write_text(f"{used}\n")
    return path / "energy_uj"


def test_packages_and_memory_are_added_and_counters_start_again(tmp_path):
    first = zone(tmp_path, "intel-rapl:0", "package-0", 900_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 5_000_000)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 1_000_000)
    core = zone(tmp_path, "intel-rapl:0:0", "core", 0)  # a part of its package
    platform = zone(tmp_path, "intel-rapl:2", "psys", 0)  # holds the packages
    energy = Energy.find(root=tmp_path)
    assert energy is not None
    try:
        assert energy.joules() == 0
        first.write_text("100000000")
        second.write_text("12000000")
        memory.write_text("4000000")
        core.write_text("77000000")
        platform.write_text("99000000")
        assert energy.joules() == pytest.approx(200 + 7 + 3)
        assert energy.joules() == 0
        second.unlink()
        assert math.isnan(energy.joules())
    finally:
        energy.stop()


def test_a_gpu_counts_too(tmp_path):
    used = [5.0]
    energy = Energy.find(lambda: used[0], tmp_path)
    assert energy is not None
    used[0] = 25.0
    assert energy.joules() == 20


def test_nothing_to_read(tmp_path):
    assert Energy.find(root=tmp_path / "none") is None
    assert Energy.find(lambda: None, tmp_path) is None
    zone(tmp_path, "intel-rapl:0", "package-0", 0).write_text("unknown")
    assert Energy.find(root=tmp_path) is None


def test_a_job_has_a_sum_only_where_every_node_counts():
    def usage(node, joules):
        return Usage(node, frozenset({0}), 1.0, 1.0, 1, 10, joules=joules)

    assert summarise([usage(0, 3.0), usage(0, None), usage(1, 4.0)])["energy_j"] == 7
    assert "energy_j" not in summarise([usage(0, 3.0), usage(1, None)])
