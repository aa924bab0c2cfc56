"""The four series against their thresholds, the use of the machine, and their figure."""

from __future__ import annotations

import math
import os
import time

import pytest
import tiny

from medmpi.train import dashboard
from medmpi.train.log import read_metrics
from medmpi.train.resources import Gpu, Resources, Usage, summarise
from medmpi.train.thresholds import watch

NAN = math.nan


def columns(**more):
    return {
        "train_accuracy": [0.5, 0.6, 0.7], "train_loss": [1.0, 0.5, 0.1], "val_accuracy": [0.9, 0.95, 0.99],
        "val_loss": [0.4, 0.3, 0.2], "infer_ms": [50.0, 40.0, NAN], "cpu_percent": [99.0, 85.0, 60.0],
        "memory_percent": [1.0, 2.0, 3.0], **more,
    }  # fmt: skip


def test_values_are_counted_on_the_right_side():
    accuracy, loss, latency, use = watch([1, 2, 3], columns(), segmentation=True)
    assert accuracy.summary() == pytest.approx({"mean": 94.66667, "min": 90, "max": 99, "above": 2, "below": 1})
    assert accuracy.good == (False, True, True)
    assert loss.good == (False, True, True)
    assert (loss.summary()["above"], loss.summary()["below"]) == (1, 2)
    assert latency.threshold.title == "segmentation time per image"
    assert (latency.epochs, latency.good) == ((1, 2), (False, True))
    assert use.threshold.title == "CPU utilisation"
    assert use.beside == (("memory", (1.0, 2.0, 3.0)),)


def test_without_validation_training_is_watched():
    found = watch([1, 2, 3], columns(val_accuracy=[NAN] * 3, val_loss=[NAN] * 3, infer_ms=[NAN] * 3))
    assert [w.threshold.title for w in found] == ["training accuracy", "training loss", "CPU utilisation"]


@pytest.mark.parametrize(("load", "title"), [(90.0, "GPU utilisation"), (0.5, "CPU utilisation")])
def test_a_gpu_is_watched_where_it_works(load, title):
    found = watch([1, 2, 3], columns(gpu_percent=[load] * 3, gpu_memory_percent=[10.0] * 3))[-1]
    assert found.threshold.title == title
    assert ("CPU" in dict(found.beside)) == (title == "GPU utilisation")


def test_the_figure_shows_every_point():
    series = watch([1, 2, 3], columns())
    figure = dashboard.draw(series)
    points = [sum(len(c.get_offsets()) for c in axis.collections) for axis in figure.axes]
    assert points == [3, 3, 2, 3]
    head, rows = dashboard.table(series)
    assert all(len(row) == len(head) for row in rows)
    assert rows[0] == ["validation accuracy", "95 %", "94.67 %", "90 %", "99 %", "2", "1"]
    assert "<svg" in dashboard.dashboard(series)


def test_use_of_two_nodes():
    """Ranks that share cores count them once; ranks bound to cores of their own add up."""
    shared = [Usage(0, frozenset({0, 1}), 3.0, 4.0, 100, 1000) for _ in range(2)]
    assert summarise(shared)["cpu_percent"] == pytest.approx(100 * 6 / 8)
    assert summarise(shared)["memory_percent"] == pytest.approx(20)
    bound = [Usage(i // 2, frozenset({i % 2}), 3.0, 4.0, 100, 1000, (50.0, 10.0 * i)) for i in range(4)]
    found = summarise(bound)
    assert found["cpu_percent"] == pytest.approx(75)
    assert (found["gpu_percent"], found["gpu_memory_percent"]) == (50, 15)


def test_a_busy_process_is_seen(world):
    resources = Resources(world)
    try:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
        found = resources.read()
        cores = len(os.sched_getaffinity(0))
        assert 0 < found["cpu_percent"] <= 100 * (1 + 1 / cores)
        assert 10 < found["memory_mib"] < 1e6
        assert ("gpu_percent" in found) == (Gpu.find() is not None)
    finally:
        resources.close()


def test_a_run_writes_them(tmp_path):
    assert tiny.train(f"--out={tmp_path}", "--report", "--quiet") == 0
    for row in read_metrics(tmp_path / "metrics.csv"):
        assert float(row["infer_ms"]) > 0
        assert float(row["cpu_percent"]) > 0
        assert 0 < float(row["memory_percent"]) < 100
    page = (tmp_path / "report.html").read_text()
    assert "Against thresholds" in page
    assert "epochs above" in page
