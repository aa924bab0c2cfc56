"""Every second of a run is charged once, unequal ranks are reported as such, and the timeline shows all of it."""

import json
import time

import pytest
import tiny

from medmpi.parallel import Account
from medmpi.train import slow
from medmpi.train.clock import bottleneck
from medmpi.train.log import read_metrics

KINDS = ("t_comp", "t_comm", "t_wait", "t_io")


def test_the_accounts_add_up_to_the_wall_time(tmp_path):
    start = time.perf_counter()
    assert tiny.train("--out", tmp_path) == 0
    wall = time.perf_counter() - start
    table = json.loads((tmp_path / "timing.json").read_text())
    (rank,) = table["ranks"]
    assert sum(rank[kind] for kind in KINDS) == pytest.approx(rank["wall_s"], rel=0.02)
    assert rank["accounted"] == pytest.approx(1, abs=0.02)
    assert rank["wall_s"] < wall
    rows = read_metrics(tmp_path / "metrics.csv")
    for row in rows:
        assert sum(float(row[kind]) for kind in KINDS) == pytest.approx(float(row["time_s"]), rel=1e-6)
    # all but the last checkpoint and the start belongs to some epoch
    assert sum(float(row["time_s"]) for row in rows) == pytest.approx(rank["wall_s"], rel=0.5)
    comp, comm, total = float(rows[0]["t_comp"]), float(rows[0]["t_comm"]), float(rows[0]["time_s"])
    assert float(rows[0]["r_alloc"]) == pytest.approx((comp + comm) / total)
    assert float(rows[0]["r_alloc_literal"]) == pytest.approx(comp + comm / total)


@pytest.mark.mpi_skip
@pytest.mark.timeout(2 * tiny.PATIENCE)
def test_a_threefold_imbalance_is_reported_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv(slow.VARIABLE, "1:3")
    flags = ("--data=phantom:size=16,samples=1200", "--batch-size=48", "--width=16", "--epochs=2", "--timeline=3")
    done = tiny.launch(2, "--out", tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "timing.json").read_text())
    for rank in table["ranks"]:
        assert sum(rank[kind] for kind in KINDS) == pytest.approx(rank["wall_s"], rel=0.02)
    fast, slower = table["ranks"]
    assert slower["t_comp"] > 1.8 * fast["t_comp"], table
    assert fast["t_wait"] > slower["t_wait"], table
    assert table["imbalance"] == pytest.approx(slower["t_comp"] / ((fast["t_comp"] + slower["t_comp"]) / 2), rel=1e-6)
    assert "bottleneck: rank 1 on" in done.stdout
    assert "--balance would give it less of each batch" in done.stdout

    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    assert {e["pid"] for e in spans} == {0, 1}
    assert {e["cat"] for e in spans} == {"comp", "comm", "wait", "io"}
    for rank in (0, 1):
        mine = [e for e in spans if e["pid"] == rank]
        assert sum(e["name"] == "forward and backward" for e in mine) == 3
        layers = [e for e in mine if e["name"].endswith(" backward") and e["name"] != "forward and backward"]
        named = {e["name"].removesuffix(" backward") for e in layers}
        assert {"conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.0.bn2", "fc"} <= named
        outer = sum(e["dur"] for e in mine if e["name"] == "forward and backward")
        assert 0 < sum(e["dur"] for e in layers) < outer
        assert all(e["ts"] >= 0 and e["dur"] >= 0 for e in mine)


def test_bottlenecks_are_named():
    even = [Account(comp=1.0, wait=0.1), Account(comp=1.1)]
    assert bottleneck(even, ["a", "b"], "try this") is None
    starved = bottleneck([Account(comp=1.0, io=1.0)], ["a"], "try this")
    assert starved is not None
    assert "50 % of the epoch went to reading data" in starved
    uneven = bottleneck([Account(comp=1.0, wait=2.0), Account(comp=3.0)], ["a", "b"], "try this")
    assert uneven is not None
    assert "rank 1 on b computed for 3.0 s of the epoch, the ranks' mean is 2.0 s (imbalance 1.50); try this" in uneven
    assert bottleneck([Account()], ["a"], "try this") is None
