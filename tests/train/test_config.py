"""Flags and settings files: what is taken, what is refused and in which words."""

import dataclasses
import subprocess
import sys

import pytest

from medmpi.train.config import ConfigError, build_parser, parse, parse_augment, read_toml, to_toml
from medmpi.train.options import Options


def test_defaults_need_nothing():
    assert parse([]) == Options()


def test_a_flag_wins_over_the_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('epochs = 7\nbatch-size = 8\nmodel = "unet"\nsync_batchnorm = false\nimage-size = [32, 48]\n')
    options = parse([str(path), "--epochs", "9"])
    assert (options.epochs, options.batch_size, options.model) == (9, 8, "unet")
    assert options.sync_batchnorm is False
    assert options.image_size == (32, 48)
    assert parse(["--config", str(path)]).epochs == 7


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--milestones", "3,5", "--schedule", "step", "--gamma", "0.5"],
        ["--image-size", "64x32", "--clip-norm", "1e-3", "--augment", "crop:2,rotate:10", "--nesterov"],
        ["--name", 'with "quotes" and \\', "--no-sync-batchnorm", "--max-steps", "5", "--timeout", "12.5"],
    ],
)
def test_resolved_settings_read_back_the_same(tmp_path, argv):
    options = parse(argv)
    path = tmp_path / "config.toml"
    path.write_text(to_toml(options, ["medmpi"]), encoding="utf-8")
    assert parse([str(path)]) == options


def test_every_field_survives_the_file(tmp_path):
    """A field added later with a type that the writer or the reader does not know fails here."""
    path = tmp_path / "config.toml"
    path.write_text(to_toml(Options()), encoding="utf-8")
    unset = {f.name for f in dataclasses.fields(Options) if f.default is None} | {"resume"}
    assert set(read_toml(path)) == {f.name for f in dataclasses.fields(Options)} - unset


def test_resume_takes_the_settings_of_the_run_folder(tmp_path):
    (tmp_path / "config.toml").write_text("epochs = 3\nbatch-size = 5\n")
    options = parse(["--resume", "--out", str(tmp_path), "--epochs", "6"])
    assert (options.epochs, options.batch_size, options.resume) == (6, 5, True)
    assert parse(["--out", str(tmp_path)]).batch_size == Options().batch_size


def test_a_switch_does_not_swallow_the_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("epochs = 7\n")
    options = parse(["--resume", str(path)])
    assert options.resume
    assert options.epochs == 7
    assert parse(["--resume", "false"]).resume is False


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lerning-rate", "1"], "unknown flag '--lerning-rate'"),
        (["--epoch", "1"], "unknown flag '--epoch'; did you mean '--epochs'?"),
        (["--batchsize=8"], "unknown flag '--batchsize'; did you mean '--batch-size'?"),
        (["--model", "resnet81"], "did you mean 'resnet18'?"),
        (["--lr", "fast"], "--lr is 'fast', expected a number"),
        (["--lr", "0"], "--lr is 0, expected a number above 0"),
        (["--lr", "nan"], "--lr is nan, expected a number above 0"),
        (["--epochs", "1.5"], "--epochs is '1.5', expected a whole number"),
        (["--epochs=-1"], "--epochs is -1, expected a whole number at least 0"),
        (["--epochs"], "--epochs: expected one argument"),
        (["--momentum", "1.5"], "at least 0.0 and below 1"),
        (["--device", "cuda", "--stages", "2"], "--stages works on the CPU alone so far, expected --device cpu"),
        (["--device", "cuda", "--reproducible"], "--reproducible works on the CPU alone"),
        (["--precision", "bf16"], "--precision bf16 needs --device cuda"),
        (["--schedule", "step"], "needs --milestones"),
        (["--schedule", "step", "--milestones", "5,3"], "expected rising epochs"),
        (["--sync-batchnorm=maybe"], "expected true or false"),
        (["--augment", "crop,flop"], "unknown 'flop', expected flip, vflip"),
        (["--augment", "crop:-1"], "expected a whole number of at least 0"),
        (["--augment", "zoom:much"], "zoom has strength 'much', expected a number"),
        (["--augment", "flip:2"], "flip has strength '2', expected none"),
        (["--name", "../x"], "expected a plain folder name"),
        (["train"], "expected a settings file named *.toml"),
        (["missing.toml"], "missing.toml: No such file or directory"),
        (["a.toml", "b.toml"], "unexpected argument 'b.toml'"),
    ],
)
def test_wrong_settings_are_one_line(argv, message):
    with pytest.raises(ConfigError) as error:
        parse(argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epohcs = 3\n", "unknown key 'epohcs'; did you mean 'epochs'?"),
        ('epochs = "many"\n', "epochs is 'many', expected a whole number"),
        ("epochs = true\n", "epochs is True, expected a whole number"),
        ("epochs = 2.5\n", "epochs is 2.5, expected a whole number"),
        ("model = 18\n", "model is 18, expected text"),
        ("epochs = \n", "not valid TOML"),
        ("[data]\n", "data is {}, expected text"),
    ],
)
def test_wrong_files_are_one_line_with_their_path(tmp_path, text, message):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        parse([str(path)])
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_augment_strengths():
    assert parse_augment("none") == {}
    assert parse_augment("flip,crop") == {"flip": 1.0, "crop": 2.0}
    assert parse_augment("crop:2, rotate:30") == {"crop": 2.0, "rotate": 30.0}


def test_help_explains_every_flag():
    text = build_parser("medmpi train").format_help()
    for field in dataclasses.fields(Options):
        assert "--" + field.name.replace("_", "-") in text


def test_settings_load_without_numpy_or_mpi():
    """--help must be immediate: numpy and MPI take longer than the rest of it."""
    code = (
        "import sys, medmpi.train.config; sys.exit(any(m in sys.modules for m in ('numpy', 'mpi4py', 'jsonargparse')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
