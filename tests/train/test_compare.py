"""Runs beside each other: the arithmetic, what must match, wrong folders."""

from __future__ import annotations

import pytest
import tiny

from medmpi import cli
from medmpi.train.compare import CompareError, differing, read, tables


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A sequential run, the same on two ranks, and one of another width."""
    folder = tmp_path_factory.mktemp("runs")
    assert tiny.train(f"--out={folder / 'one'}", "--quiet") == 0
    done = tiny.launch(2, f"--out={folder / 'two'}", "--quiet")
    assert done.returncode == 0, done.stderr
    assert tiny.train(f"--out={folder / 'other'}", "--quiet", "--width=2", "--epochs=2") == 0
    return folder


def test_tables(runs, capsys, tmp_path):
    one, two = read(runs / "one"), read(runs / "two")
    assert (one.ranks, two.ranks) == (1, 2)
    assert differing([one, two]) == []
    (_, _, summary), (_, _, accuracy), (_, _, seconds) = tables([one, two])
    figures = {row[0]: row[1:] for row in summary}
    mean = [sum(run.column("time_s")) / 3 for run in (one, two)]
    assert figures["speed-up over one"] == ["1.00x", f"{mean[0] / mean[1]:.2f}x"]
    assert figures["efficiency per rank"] == ["100 %", f"{100 * mean[0] / mean[1] / 2:.0f} %"]
    assert len(accuracy) == 3
    assert seconds[-1][0] == "mean"
    target = tmp_path / "compare.html"
    assert cli.main(["compare", str(runs / "one"), str(runs / "two"), "--to", str(target)]) == 0
    assert "speed-up over one" in capsys.readouterr().out
    assert "<svg" in target.read_text()


def test_other_work_is_called_out(runs, capsys):
    assert cli.main(["compare", str(runs / "one"), str(runs / "other")]) == 0
    said = capsys.readouterr().out
    assert "did not do the same work: --width differs: 4, 2" in said
    assert "--epochs differs: 3, 2" in said


def test_wrong_folders(runs, tmp_path, capsys):
    with pytest.raises(CompareError, match="is no run folder"):
        read(tmp_path)
    assert cli.main(["compare", str(runs / "one"), str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    (tmp_path / "metrics.csv").write_text("epoch,step\n")
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(CompareError, match="no finished epoch"):
        read(tmp_path)
    (tmp_path / "metrics.csv").write_text("epoch,step\n1,2\n")
    with pytest.raises(CompareError, match="number of ranks cannot be read"):
        read(tmp_path)
    (tmp_path / "log-rank0.jsonl").write_text('{"event": "done"}\n')
    with pytest.raises(CompareError, match="does not say on how many ranks"):
        read(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compare", str(runs / "one")])
