"""Starting from other weights, freezing, rates by layer, and the comparison, from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny

from medmpi import cli, models, nn
from medmpi.nn import checkpoint
from medmpi.train.config import parse
from medmpi.train.failure import Failure
from medmpi.train.initial import blocks, layer_rates
from medmpi.train.transfer import Column, table

FOUR = "--data=phantom:size=16,samples=48,classes=4,channels=3"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run on grey images of three classes."""
    folder = tmp_path_factory.mktemp("source") / "run"
    assert tiny.train("--epochs=1", f"--out={folder}", "--quiet") == 0
    return folder


def weights(folder, name="last"):
    return checkpoint.load(folder / "checkpoints" / f"{name}.safetensors")[0]


def test_features_stay_and_the_head_learns(source, tmp_path, capsys):
    assert tiny.train(FOUR, f"--init={source}", "--freeze=features", f"--out={tmp_path / 'a'}") == 0
    said = capsys.readouterr().out
    assert "100.0% of the network below its head" in said
    assert "conv1.weight adapted" in said
    assert "new head, for other classes: fc.weight, fc.bias" in said
    before, after = weights(source, "best"), weights(tmp_path / "a")
    assert after["fc.weight"].shape[0] == 4
    for name, value in before.items():
        if not name.startswith(("fc.", "conv1.")):
            np.testing.assert_array_equal(after[name], value, err_msg=name)


def test_another_network_is_warned_of(source, tmp_path, capsys):
    assert tiny.train(FOUR, f"--init={source}", "--model=resnet34", "--epochs=1", "--quiet", f"--out={tmp_path}") == 0
    assert "the rest is random; is it the same --model" in capsys.readouterr().err


def test_two_ranks_freeze_as_one(source, tmp_path):
    flags = [f"--init={source}", "--freeze=layer1,layer3", "--layer-lr=0.5", "--epochs=1", "--reproducible"]
    for ranks in (1, 2):
        done = tiny.launch(ranks, *flags, f"--out={tmp_path / str(ranks)}")
        assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value, err_msg=name)


def test_a_resumed_run_needs_no_start(source, tmp_path, capsys):
    copy = tmp_path / "start.safetensors"
    copy.write_bytes((source / "checkpoints" / "best.safetensors").read_bytes())
    flags = [f"--init={copy}", "--freeze=features", f"--out={tmp_path / 'run'}"]
    assert tiny.train(*flags, "--max-steps=4") == 0
    copy.unlink()
    assert tiny.train(*flags, "--resume", "--max-steps=8") == 0
    assert "resumed at" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--init=weights.pth"], "a pickle, which can run code"),
        (["--init=nowhere"], "nowhere does not exist"),
        (["--init={other}"], "nothing in it fits"),
        (["--init={text}"], "expected a whole safetensors file"),
        (["--freeze=layr1"], "did you mean 'layer1'"),
        (["--freeze=features,fc"], "leaves nothing to train"),
        (["--layer-lr=fast"], "expected a factor"),
        (["--layer-lr=layer1=x"], "expected a factor"),
        (["--freeze=layer1", "--layer-lr=layer1=1"], "no layer 'layer1' that is trained"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    checkpoint.save("other.safetensors", {"a.b": np.zeros(3, np.float32)})
    (tmp_path / "text.safetensors").write_text("hello")
    words = [flag.format(other="other.safetensors", text="text.safetensors") for flag in flags]
    assert tiny.train(*words, "--out=run") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "inception_v1", "unet", "mini_xception"])
def test_rates_fall_from_the_head_to_the_input(name):
    graph = models.build(name, classes=2, channels=1, image_size=32).fuse()
    names = [node.name for node in graph.nodes if node.layer.parameter_specs()]
    found = blocks(graph)
    assert sorted(name for group in found for name in group) == sorted(names)
    assert len(found) >= 4
    rates = layer_rates(graph, "0.5")
    assert rates[nn.head_of(graph).name] == 1
    assert rates[names[0]] == min(rates.values()) == 0.5 ** (len(found) - 1)
    if name == "resnet18":
        assert found[0] == ["conv1", "bn1"]
        assert layer_rates(graph, "layer1=0.1,fc=2")["layer1.0.conv1"] == 0.1
    with pytest.raises(Failure, match="no layer 'nothing'"):
        layer_rates(graph, "nothing=2")


def test_comparison(source, tmp_path, capsys):
    out = tmp_path / "comparison"
    words = [*tiny.FLAGS, FOUR, "--epochs=2", f"--init={source}", f"--out={out}", "--quiet", "--scratch"]
    assert cli.main(["transfer", *words]) == 0
    said = capsys.readouterr().out
    for row in ("train accuracy", "validation accuracy", "test accuracy", "train minus test"):
        assert f"| {row}" in said
    found = json.loads((out / "transfer.json").read_text())["columns"]
    assert [column["name"] for column in found] == ["feature extraction", "fine-tuning", "from scratch"]
    test = json.loads((out / "fine-tuning" / "test.json").read_text())
    assert found[1]["accuracy"]["test"] == pytest.approx(test["accuracy"])
    assert found[1]["f1"] == pytest.approx(test["f1"])
    assert found[0]["trained"] == 32 * 4 + 4 < found[1]["trained"] == found[2]["trained"]
    assert cli.main(["transfer", *words]) == 2
    assert "holds a comparison already" in capsys.readouterr().err


def test_masks_are_transferred_too(tmp_path, capsys):
    flags = ["--model=unet", "--task=segmentation", "--width=4", "--epochs=1", "--batch-size=12", "--threads=1"]
    flags += ["--data=phantom:size=16,samples=24", "--no-report", "--quiet", f"--out={tmp_path}"]
    assert cli.main(["transfer", "--pretrain=phantom:size=16,samples=24,channels=3", *flags]) == 0
    columns = json.loads((tmp_path / "transfer.json").read_text())["columns"]
    assert columns[0]["trained"] < columns[1]["trained"]
    assert 0 < columns[1]["f1"] <= 1
    assert "Dice" in capsys.readouterr().out


def test_overfitting_is_called_out():
    columns = [
        Column("fine-tuning", 10, 1, {"train": 0.9561, "val": 0.3704, "test": float("nan")}, float("nan"), 1.0),
        Column("feature extraction", 10, 1, {"train": 0.80, "val": 0.79, "test": 0.81}, 0.9, 1.0),
    ]
    text = table(columns, "resnet18", "x", "y")
    assert "fine-tuning: OVERFITS, train accuracy is 58.6 points above validation" in text
    assert "feature extraction: does not overfit" in text
    assert "no such split" in text
    shifted = Column("fine-tuning", 10, 1, {"train": 0.96, "val": 0.95, "test": 0.86}, 0.9, 1.0)
    assert "test split is of another kind" in table([shifted], "resnet18", "x", "y")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either --init FILE or --pretrain SPEC"),
        (["--init=a", "--pretrain=phantom"], "either --init FILE or --pretrain SPEC"),
        (["--init=a", "--freeze=fc"], "leave it out"),
        (["--init=a", "--epocks=3"], "did you mean '--epochs'"),
    ],
)
def test_wrong_words(words, message, capsys):
    assert cli.main(["transfer", *words]) == 2
    assert message in capsys.readouterr().err


def test_settings_are_written_back():
    options = parse(["--freeze=features", "--layer-lr=0.5", "--init=a.safetensors"])
    assert (options.freeze, options.layer_lr, options.init) == ("features", "0.5", "a.safetensors")
