"""A run trained again from its folder: the same bits, what is due where they cannot be, and what is found out."""

import json
import shutil

import pytest
import tiny

from medmpi import cli
from medmpi.nn import checkpoint
from medmpi.parallel.run import find_mpirun
from medmpi.train.compare import CompareError, read
from medmpi.train.reproduce import digest, judge, may_differ, started

pytestmark = pytest.mark.mpi_skip
LAST = "checkpoints/last.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one rank."""
    folder = tmp_path_factory.mktemp("reproduce") / "first"
    assert tiny.train(f"--out={folder}", "--quiet", "--epochs=2") == 0
    return folder


@pytest.fixture
def copy(run, tmp_path):
    """The same folder under another name."""
    return shutil.copytree(run, tmp_path / "second")


def verdict(run, other, why=(), tolerance=0.05):
    return judge(read(run), read(other), (run / LAST, other / LAST), why, tolerance)


def test_the_same_bits(run, tmp_path, capfd):
    assert cli.main(["reproduce", str(run), "--out", str(tmp_path / "again")]) == 0
    said = capfd.readouterr().out
    assert "reproduced bit for bit: weights have SHA-256" in said
    assert "| epoch 2 |" in said
    assert "test loss" in said


@pytest.mark.skipif(find_mpirun() is None, reason="no mpirun")
def test_other_ranks_and_few_steps(run, tmp_path, capfd):
    flags = ["-n", "2", "--max-steps", "4", "--out", str(tmp_path / "again"), "--tolerance", "0.5"]
    assert cli.main(["reproduce", str(run), *flags]) == 0
    said = capfd.readouterr().out
    assert "reproduced within 0.5" in said or "reproduced to all digits" in said
    assert "not compared" in said


def test_other_weights(run, copy):
    tensors, about = checkpoint.load(copy / LAST)
    name = sorted(tensors)[0]
    tensors = {**tensors, name: tensors[name].copy()}
    tensors[name].reshape(-1)[0] += 1e-3
    checkpoint.save(copy / LAST, tensors, {"step": about["step"]})
    found = verdict(run, copy)
    assert not found.same
    assert "weights differ by" in found.text
    assert verdict(run, copy, ["another machine"]).same
    assert digest(tensors) != digest(checkpoint.load(run / LAST)[0])


def test_other_losses(run, copy):
    text = (copy / "metrics.csv").read_text().splitlines()
    cells = text[1].split(",")
    cells[3] = str(1.5 * float(cells[3]))
    (copy / "metrics.csv").write_text("\n".join([text[0], ",".join(cells), *text[2:], ""]))
    assert not verdict(run, copy).same
    found = verdict(run, copy, ["another machine"])
    assert not found.same
    assert "not reproduced within 0.05: losses differ by up to 0.33" in found.text


def test_why_bits_may_differ(run):
    first, start = read(run), started(run)
    assert start.ranks == 1
    assert start.kernels
    assert may_differ(first, start, 1) == []
    assert may_differ(first, start, 3) == ["1 ranks then, 3 now, without --reproducible"]
    first.settings.update(reproducible=True)
    assert may_differ(first, start, 3) == []
    first.settings.update(reproducible=False, balance=True)
    assert len(may_differ(first, start, 1)) == 1


def test_wrong_folders(run, copy, tmp_path, capsys):
    assert cli.main(["reproduce", str(tmp_path)]) == 1
    assert "is no run folder" in capsys.readouterr().err
    log = copy / "log-rank0.jsonl"
    for text in ("", "{", json.dumps({"event": "start"}), "[]\n"):
        log.write_text(text)
        with pytest.raises(CompareError, match="log-rank0"):
            started(copy)
    shutil.copy(run / log.name, log)
    (copy / LAST).write_bytes(b"no weights")
    with pytest.raises(CompareError, match="safetensors"):
        verdict(run, copy)


def test_a_training_that_fails(copy, capfd):
    """Its exit code and its line are passed on; here the folder for it holds a run."""
    assert cli.main(["reproduce", str(copy), "--out", str(copy)]) == 2
    said = capfd.readouterr().err
    assert "holds a run already" in said
    assert "ended with exit code 2" in said


def test_wrong_arguments(run):
    for flags in (["--ranks", "0"], ["--max-steps", "0"], ["--tolerance", "-1"], ["--tolerance", "nan"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["reproduce", str(run), *flags])
        assert ended.value.code == 2
