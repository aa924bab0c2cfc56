"""The seeds' tables: what contradicts itself is found, what does not is left alone."""

import pytest

from medmpi.cli import main
from medmpi.evaluation.published import S2_TABLE, SEEDS, impossible, least_mean

pytestmark = pytest.mark.mpi_skip


def test_scores_that_cannot_be():
    """S2-20 and S2-21: the four rows of ResNet-18 are sound, the others are not."""
    assert [bool(impossible(row)) for row in S2_TABLE] == [False] * 4 + [True] * 4
    (first, second) = impossible(S2_TABLE[6])
    assert "F1 71.97 is above the mean of precision and recall, 70.955" in first
    assert "recall 70.84 is not accuracy 72.78" in second


def test_contradictions():
    found = {name: " ".join(make().findings) for name, make in SEEDS.items()}
    assert "ResNet-50: 7.85 times as long with HPC" in found["s2"]
    assert "91.99 at least" in found["s0"]
    assert "validation 59.95 points below" in found["s1"]
    assert "epochs 4, 6, 7, 8" in found["s3"]
    assert "133034 h in 34 h is 3913 times as fast, 3788 is printed" in found["s4"]
    assert "162176" not in found["s4"]
    assert "56 are those of 400" in found["s4"]


def test_tables_are_whole():
    for make in SEEDS.values():
        table = make()
        assert {len(row) for row in table.rows} == {len(table.head)}
    assert least_mean([(1, 2.0), (3, 4.0)]) == 3.5


def test_command(capsys, tmp_path):
    assert main(["reproduce", "s2"]) == 0
    said = capsys.readouterr().out
    assert "| ResNet-50, 20 epochs, HPC" in said
    assert "doubtful: " in said
    assert main(["reproduce", "s9"]) == 1
    assert "is no run folder" in capsys.readouterr().err
    assert main(["reproduce", "s2", "--beside", str(tmp_path)]) == 1
    assert "is no run folder" in capsys.readouterr().err
