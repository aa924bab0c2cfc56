"""The metrics files through starts, kills and resumes, and the report that is made of them."""

import csv
import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from medmpi.train import progress
from medmpi.train.log import COLUMNS, MetricsLog, RankLog, read_metrics
from medmpi.train.report import Content, write_report


def _row(epoch):
    return {"epoch": epoch, "step": epoch * 10, "lr": 0.1 / epoch, "train_loss": 1.0 / epoch, "val_auc": math.nan}


def _write(folder, epochs, finished=0):
    log = MetricsLog(folder, finished_epochs=finished, step=finished * 10)
    for epoch in epochs:
        log.row(_row(epoch), {"val_confusion": [[1, 2], [3, epoch]]})
    log.close()


def test_one_header_and_one_row_per_epoch(tmp_path):
    _write(tmp_path, [1, 2])
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0].split(",") == list(COLUMNS)
    assert len(lines) == 3
    rows = list(csv.DictReader(lines))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["lr"]) == 0.05
    assert rows[0]["val_auc"] == ""  # NaN
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records[1]["val_confusion"] == [[1, 2], [3, 2]]
    assert records[0]["val_auc"] is None


def test_a_resumed_run_cuts_off_what_came_after_its_checkpoint(tmp_path):
    _write(tmp_path, [1, 2, 3])
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4,40,0.0")  # killed while writing
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "st')
    _write(tmp_path, [3, 4], finished=2)
    assert [row["epoch"] for row in read_metrics(tmp_path / "metrics.csv")] == ["1", "2", "3", "4"]
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert (tmp_path / "metrics.csv").read_text().count("epoch") == 1


def test_a_fresh_run_empties_old_files(tmp_path):
    _write(tmp_path, [1, 2])
    _write(tmp_path, [1])
    assert len(read_metrics(tmp_path / "metrics.csv")) == 1


def test_tensorboard_reads_the_events(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _write(tmp_path, [1, 2])
    events = loader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss/train")] == [10, 20]
    assert events.Scalars("loss/train")[1].value == pytest.approx(0.5)
    assert "auc/val" not in events.Tags()["scalars"]


def test_writing_events_does_not_load_torch(tmp_path):
    code = (
        "import sys, pathlib; from medmpi.train.log import MetricsLog\n"
        f"log = MetricsLog(pathlib.Path({str(tmp_path)!r}), finished_epochs=0, step=0)\n"
        "log.row({'epoch': 1, 'step': 1, 'train_loss': 0.5}); log.close(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rank_log_lines_are_json(tmp_path):
    with RankLog(tmp_path, 3) as log:
        log.event("start", threads=2, norm=float("inf"))
    record = json.loads((tmp_path / "log-rank3.jsonl").read_text())
    assert (record["rank"], record["event"], record["threads"], record["norm"]) == (3, "start", 2, None)


def test_report_stands_alone(tmp_path):
    _write(tmp_path, [1, 2, 3])
    test = {"samples": 10, "epoch": 2, "accuracy": 0.9, "f1": 0.8, "confusion": [[4, 1], [0, 5]]}
    test["per_class"] = {"precision": [1.0, 0.8], "support": [5, 5]}
    content = Content(
        title="a <b> & c",
        classes=["normal", "malignant<script>"],
        counts={"train": np.array([5, 6])},
        test=test,
        images=np.zeros((3, 16, 16, 1), np.uint8),
        image_titles=["a", "b", "c"],
        masks=np.ones((3, 16, 16), np.uint8),
        facts=[("ranks", "2")],
    )
    text = write_report(tmp_path, content).read_text()
    assert text.count("<svg ") == 4
    assert "data:image/png;base64," in text
    assert "a &lt;b&gt; &amp; c" in text
    assert "malignant<script>" not in text
    for reference in ('src="http', 'href="http', "<script", "@import"):
        assert reference not in text.replace("http://www.w3.org", "")
    ids = [part.split('"')[0] for part in text.split(' id="')[1:]]
    assert len(ids) == len(set(ids)), "two pictures share an id"
    assert not list(tmp_path.glob(".*"))


def test_report_of_a_run_without_test_split_or_rows(tmp_path):
    text = write_report(tmp_path, Content(title="empty", classes=["a", "b"])).read_text()
    assert "<h1>empty</h1>" in text


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("environment", "launcher", "kind"),
    [
        ({}, "/tmp/log", progress.Bar),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "/tmp/log", progress.Lines),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "pipe:[1]", progress.Lines),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "/dev/pts/3", progress.Bar),
        ({"OMPI_COMM_WORLD_RANK": "0", "MEDMPI_TTY": "1"}, "/tmp/log", progress.Bar),
        ({"MEDMPI_TTY": "0"}, "/dev/pts/3", progress.Lines),
    ],
)
def test_the_bar_is_for_terminals(monkeypatch, environment, launcher, kind):
    """Open MPI's ranks have terminals of their own: what counts is where the launcher writes."""
    for name in ("OMPI_COMM_WORLD_RANK", "MEDMPI_TTY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(progress.os, "readlink", lambda path: launcher)
    assert isinstance(progress.choose(0, quiet=False, stream=_Terminal()), kind)
    assert isinstance(progress.choose(1, quiet=False, stream=_Terminal()), progress.Silent)
