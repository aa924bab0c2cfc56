"""Jobs: any executor, any accident, the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medmpi import models, nn
from medmpi.models.saved import ModelSpec
from medmpi.slide import manifest as manifests
from medmpi.slide.claims import Claims
from medmpi.slide.job import execute, make
from medmpi.slide.ledger import Ledger
from medmpi.slide.main import main
from medmpi.slide.store import Store
from tests.conftest import mpirun
from tests.slide.conftest import tissue_slide, write_slide
from tests.slide.scheduler import install
from tests.slurm import command as told
from tests.slurm import slurm, until  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]


def save_model(path: Path, name: str = "valid_cnn", *, seed: int = 1) -> Path:
    """A small classifier with random weights, as medmpi.train would leave it."""
    spec = ModelSpec(name, "classification", ("normal", "tumour"), 3, (32, 32), (0.6, 0.5, 0.5), (0.2, 0.2, 0.2), {})
    graph = spec.build().fuse()
    nn.Parameters(graph, seed=seed)
    nn.checkpoint.save(path, nn.checkpoint.state_dict(graph), spec.to_metadata())
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two slides of a few groups, their stores, a model, and the unbroken run with its heatmaps."""
    folder = tmp_path_factory.mktemp("job")
    for name, shape, seed in (("a", (700, 800), 1), ("b", (600, 900), 2)):
        write_slide(folder / f"{name}.tif", tissue_slide(shape, seed), compression="deflate")
    code = main(["prepare", str(folder), "--out", str(folder / "stores"), "--group-size", "2", "--quiet"])
    assert code == 0
    save_model(folder / "model.safetensors")
    assert run(folder, "whole") == 0
    assert main(["stitch", str(folder / "whole"), "--no-png"]) == 0
    return folder


def arguments(folder, name, *more):
    stores, model = str(folder / "stores"), str(folder / "model.safetensors")
    return ["run", stores, "--out", str(folder / name), "--model", model, "--stride", "16", "--no-tune", *more]


def run(folder, name, *more):
    return main(arguments(folder, name, "--quiet", *more))


def contents(folder: Path) -> dict[str, str]:
    """Name -> digest of every result and heatmap."""
    files = [*folder.glob("results/*/*.safetensors"), *folder.glob("heatmaps/*.h5")]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def environment(**more):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(":")
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def command(*words):
    return [sys.executable, "-m", "medmpi.cli", "slide", *words]


def same_as_whole(folder, name):
    assert main(["stitch", str(folder / name), "--no-png"]) == 0
    assert contents(folder / name) == contents(folder / "whole")
    assert not list((folder / name).rglob("*.tmp*"))
    assert not list((folder / name).glob("claims/*"))


def test_a_finished_run_does_nothing_again(prepared):
    before = {p: p.stat().st_mtime_ns for p in (prepared / "whole").rglob("*.safetensors")}
    assert len(before) > 6
    assert run(prepared, "whole") == 0
    assert {p: p.stat().st_mtime_ns for p in (prepared / "whole").rglob("*.safetensors")} == before


def test_truncated_and_foreign_results_are_done_again(prepared):
    """A result that is there is not believed: it must be whole and of this job (CLAM#227)."""
    assert run(prepared, "cut") == 0
    paths = sorted((prepared / "cut").rglob("*.safetensors"))
    paths[0].write_bytes(paths[0].read_bytes()[:-100])
    flipped = bytearray(paths[1].read_bytes())
    flipped[-20] ^= 1
    paths[1].write_bytes(flipped)
    paths[2].write_bytes(paths[3].read_bytes())
    assert main(["status", str(prepared / "cut")]) == 0
    assert main(["status", str(prepared / "cut"), "--verify"]) == 85
    assert main(["stitch", str(prepared / "cut"), "--no-png"]) == 3
    assert run(prepared, "cut") == 0
    same_as_whole(prepared, "cut")


def test_another_job_is_refused_and_no_result_is_mixed(prepared, capsys):
    assert run(prepared, "whole", "--stride", "32") == 3
    assert "holds another job (stride differ)" in capsys.readouterr().err
    other = save_model(prepared / "other.safetensors", seed=5)
    assert run(prepared, "whole", "--model", str(other)) == 3
    assert "model_digest differ" in capsys.readouterr().err


def test_a_bad_store_fails_its_items_alone_and_they_are_listed(prepared, capsys):
    """Partial failure: the good items are done, the bad ones listed and retried next time, the exit code is 3."""
    folder = prepared
    store = sorted((folder / "stores").glob("b-*.h5"))[0]
    good = store.read_bytes()
    assert main([*arguments(folder, "broken"), "--only-manifest"]) == 0
    try:
        with Store(store) as opened:
            at = opened._file["groups/00001/data"].id.get_chunk_info(0).byte_offset
        damaged = bytearray(good)
        damaged[at + 50] ^= 0xFF
        store.write_bytes(damaged)
        assert run(folder, "broken") == 3
    finally:
        store.write_bytes(good)
    out = capsys.readouterr()
    assert "failed: b-" in out.err
    assert "g00001" in out.err
    ledger = Ledger(folder / "broken", manifests.load(folder / "broken"))
    status = ledger.status()
    assert status.failed
    assert not status.open
    assert all(item.slide.name.startswith("b-") for item in status.failed)
    assert ledger.failure(status.failed[0])["attempts"] == 1
    assert main(["status", str(folder / "broken")]) == 3
    assert main(["stitch", str(folder / "broken"), "--no-png"]) == 3
    assert "groups are missing" in capsys.readouterr().err
    assert run(folder, "broken") == 0
    same_as_whole(folder, "broken")


def test_a_bad_tile_costs_its_patches_and_nothing_else(tmp_path, prepared, capsys):
    """The slide is opened again after a bad tile, the patch noted as failed, the others scored."""
    import tifffile

    path = tmp_path / "bad.tif"
    write_slide(path, tissue_slide((900, 900)), tile=112, compression="jpeg")
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        start, size = page.dataoffsets[2], page.databytecounts[2]
    base = ["--out", str(tmp_path / "out"), "--model", str(prepared / "model.safetensors"), "--stride", "32"]
    with path.open("rb+") as file:
        file.seek(start)
        file.write(b"\x00" * size)
    code = main(["predict", str(path), *base, "--group-size", "4", "--tissue", "all", "--level", "0", "--no-tune"])
    assert code == 3
    out = tmp_path / "out"
    ledger = Ledger(out, manifests.load(out))
    status = ledger.status()
    assert status.failed
    capsys.readouterr()
    words = ["prepare", str(path), "--out", str(tmp_path / "pixels"), "--tissue", "all"]
    for _ in range(2):  # also when it is there already
        assert main(words) == 3
        assert "damaged: " in capsys.readouterr().err
    assert main(["run", str(tmp_path / "pixels"), *base[2:], "--out", str(tmp_path / "run"), "--no-tune"]) == 3
    bad = {(r, c) for item in status.failed for r, c, _ in ledger.failure(item)["bad_patches"]}
    assert (0, 1) in bad
    assert len(bad) <= 6  # its patch and the neighbours whose windows see it
    assert main(["stitch", str(out), "--no-png", "--partial"]) == 0
    assert f"{len(bad)} patches missing" in capsys.readouterr().out


def test_claims_are_exclusive_and_end_with_their_process(tmp_path):
    claims = Claims(tmp_path)
    with claims.hold("x") as first, claims.hold("x") as second:
        assert first
        assert not second
    code = (
        "import sys, time; from pathlib import Path; from medmpi.slide.claims import Claims\n"
        "with Claims(Path(sys.argv[1])).hold('x') as mine: print(mine, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=environment(), text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "True"
    with claims.hold("x") as mine:
        assert not mine
    process.kill()
    process.wait()
    process.stdout.close()
    with claims.hold("x") as mine:  # no waiting: the process is gone
        assert mine
    elsewhere = tmp_path / "y.claim"
    elsewhere.write_text(json.dumps({"host": "another", "pid": 1, "start": "1"}))
    with claims.hold("y") as mine:
        assert not mine
    os.utime(elsewhere, (time.time() - 1000, time.time() - 1000))
    with claims.hold("y") as mine:
        assert mine
    assert not list(tmp_path.glob(".*"))


def test_an_item_in_other_hands_is_left_and_said(prepared, capsys):
    stores = sorted((prepared / "stores").glob("*.h5"))
    folder = prepared / "busy"
    manifest = make(folder, stores, str(prepared / "model.safetensors"), stride=16, tune=False)
    item = manifest.items()[0]
    with Claims(folder / "claims").hold(item.key.replace("/", "-")):
        assert execute(folder) == 85
    assert f"in other hands: {item.key}" in capsys.readouterr().err
    assert execute(folder) == 0
    same_as_whole(prepared, "busy")


@pytest.mark.parametrize("seed", range(2))
def test_kill_9_of_one_process_costs_one_item(prepared, seed):
    """Killed at random moments, started again: only what is missing is done, and the bytes are the same."""
    name, rng = f"kill-{seed}", random.Random(seed)
    for _ in range(4):
        process = subprocess.Popen(command(*arguments(prepared, name)), env=environment(), stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.4, 1.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run(prepared, name) == 0
    same_as_whole(prepared, name)


def test_ranks_pull_items_and_survive_a_kill(prepared):
    """Two ranks; one is killed; the rerun does what is missing; the result is the unbroken one, byte for byte."""
    words = [mpirun(), "-n", "2", *command(*arguments(prepared, "mpi"))]
    process = subprocess.Popen(
        words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    time.sleep(1.5)
    ranks = [
        int(p.name) for p in Path("/proc").iterdir()
        if p.name.isdecimal() and _says(p / "cmdline", str(prepared / "mpi")) and _says(p / "environ", "PMI_RANK=1")
    ]  # fmt: skip
    for rank in ranks:
        os.kill(rank, signal.SIGKILL)
    process.wait(timeout=400)
    again = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=400, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    same_as_whole(prepared, "mpi")


def _says(path: Path, text: str) -> bool:
    try:
        return text in path.read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return False


@pytest.mark.parametrize("scheduler", ["slurm", "sge", "pbs"])
def test_array_jobs_do_the_open_items_without_mpi(prepared, tmp_path, scheduler):
    """The generated scripts run under a stand-in that knows task ids and limits; a task is killed, a rerun mends it."""
    name = f"array-{scheduler}"
    assert main([*arguments(prepared, name), "--only-manifest"]) == 0
    items = len(manifests.load(prepared / name).items())
    assert 12 < items <= 16
    (tmp_path / "mpi4py.py").write_text("raise ImportError('array tasks import no MPI')")
    bin_folder, state = install(tmp_path, scheduler, limit=3, kill={1})
    env = environment(PATH=f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    env["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{env['PYTHONPATH']}"
    words = ["submit", str(prepared / name), "--scheduler", scheduler, "--cores", "1", "--max-tasks", "3"]
    words += ["--items-per-task", "4", "--max-running", "2"]
    first = subprocess.run(command(*words), env=env, capture_output=True, text=True, timeout=400, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    jobs = [json.loads(line) for line in state.read_text().splitlines()]
    arrays = jobs[:-1]
    assert sum(job["tasks"] for job in arrays) == -(-items // 4)
    assert len(arrays) == 2  # hierarchical: several arrays within the limit
    assert max(job["tasks"] for job in arrays) <= 3
    assert jobs[-1]["kind"] == "single"  # stitching, behind all arrays
    assert jobs[-1]["after"] == [job["id"] for job in arrays]
    assert jobs[-1]["codes"] == [3]  # a task was killed: it says so
    assert main(["status", str(prepared / name)]) in (3, 85)
    second = subprocess.run(command(*words), env=env, capture_output=True, text=True, timeout=400, check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    jobs = [json.loads(line) for line in state.read_text().splitlines()][len(jobs) :]
    assert [job["tasks"] for job in jobs if "after" not in job] == [1]
    assert main(["status", str(prepared / name)]) == 0
    same_as_whole(prepared, name)
    third = subprocess.run(command(*words), env=env, capture_output=True, text=True, timeout=400, check=False)
    assert "nothing to submit" in third.stdout


@pytest.mark.timeout(900)
def test_a_real_slurm_runs_the_arrays(prepared, slurm):  # noqa: F811
    """Slurm's own daemons do the arrays, then the stitching; of a damaged run they do what is missing alone."""
    name, heatmaps = "real", prepared / "real" / "heatmaps"
    assert main([*arguments(prepared, name), "--only-manifest"]) == 0
    items = len(manifests.load(prepared / name).items())
    words = ["submit", str(prepared / name), "--scheduler", "slurm", "--cores", "1", "--mem", "512MiB", "--time", "10"]
    words += ["--max-tasks", "3", "--items-per-task", "4"]
    for missing in (items, 2):
        before = {p: p.stat().st_mtime_ns for p in (prepared / name / "results").rglob("*.safetensors")}
        done = subprocess.run(command(*words), env=slurm, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        tasks = -(-missing // 4)
        assert f"submitted {-(-tasks // 3)} array jobs" in done.stdout
        over = until(lambda: not told(slurm, "squeue", "-h"), 300)
        logs = "".join(p.read_text() for p in (prepared / name / "logs").glob("*.out"))
        assert over, told(slurm, "squeue") + logs
        assert len(list(heatmaps.glob("*.heatmap.h5"))) == 2, logs
        assert all(p.stat().st_mtime_ns == at for p, at in before.items())
        same_as_whole(prepared, name)
        for path in sorted((prepared / name / "results").rglob("*.safetensors"))[1:3]:
            path.unlink()
        for path in heatmaps.iterdir():
            path.unlink()


def test_a_refused_array_stops_the_submission(prepared, tmp_path):
    """More tasks than the scheduler takes: its refusal is shown and the command fails."""
    assert main([*arguments(prepared, "refused"), "--only-manifest"]) == 0
    bin_folder, _ = install(tmp_path, "slurm", limit=2, kill=set())
    env = environment(PATH=f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    words = command("submit", str(prepared / "refused"), "--scheduler", "slurm")
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 1
    assert "Invalid job array specification" in done.stderr


def test_windows_must_find_their_context(prepared, capsys):
    slide, stores = str(prepared / "a.tif"), prepared / "narrow"
    assert main(["prepare", slide, "--out", str(stores), "--context", "8", "--pixels", "none", "--quiet"]) == 0
    words = ["run", str(stores), "--out", str(prepared / "narrow-run"), "--model", str(prepared / "model.safetensors")]
    assert main(words) == 3
    assert "prepare it with --context 16" in capsys.readouterr().err
    assert not (prepared / "narrow-run").exists()


def test_commands_say_what_is_wrong(tmp_path, capsys):
    assert main(["stich"]) == 2
    assert "did you mean 'stitch'?" in capsys.readouterr().err
    assert main([]) == 2
    assert main(["status", str(tmp_path)]) == 3
    assert "manifest.json: no such file" in capsys.readouterr().err
    assert main(["prepare", str(tmp_path), "--out", str(tmp_path / "x")]) == 3
    assert "there are no slides" in capsys.readouterr().err
    assert main(["prepare", str(tmp_path), "--out", str(tmp_path), "--least-tissue", "2"]) == 2


def test_the_engine_is_told_and_refused_before_any_work(prepared, tmp_path, capsys):
    assert main(arguments(prepared, "told")) == 0
    assert "shared convolution: exact" in capsys.readouterr().out
    model = save_model(tmp_path / "padded.safetensors", "resnet18")
    words = arguments(prepared, "padded")
    words[words.index("--model") + 1] = str(model)
    assert main([*words, "--engine", "shared"]) == 2
    assert "pads with zeros" in capsys.readouterr().err
    assert not (prepared / "padded").exists()


def test_a_missing_model_is_noticed_before_slides_are_prepared(prepared, tmp_path, capsys):
    words = ["predict", str(prepared / "a.tif"), "--out", str(tmp_path / "out"), "--stride", "64"]
    assert main([*words, "--model", str(tmp_path / "none.safetensors")]) == 3
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_slides_that_fail_or_hold_nothing_are_kept_apart(tmp_path, prepared, capsys):
    import numpy as np

    write_slide(tmp_path / "good.tif", tissue_slide((500, 500)))
    write_slide(tmp_path / "glass.tif", np.full((500, 500, 3), 245, np.uint8))
    (tmp_path / "broken.svs").write_bytes(b"nothing")
    words = ["prepare", str(tmp_path), "--out", str(tmp_path / "stores")]
    assert main(words) == 3
    out = capsys.readouterr()
    assert "1 done, 0 kept, 1 skipped, 0 damaged, 1 failed" in out.out
    assert "broken.svs" in out.err
    job = ["run", str(tmp_path / "stores"), "--out", str(tmp_path / "run"), "--model"]
    job += [str(prepared / "model.safetensors"), "--stride", "64", "--no-tune"]
    assert main(job) == 3  # not without a word
    assert "could not be prepared" in capsys.readouterr().err
    assert main([*job, "--skip-bad"]) == 0
    assert "skipped slide: broken" in capsys.readouterr().out
    job[3] = str(tmp_path / "run2")
    (tmp_path / "broken.svs").unlink()
    for record in (tmp_path / "stores").glob("*.failed.json"):
        record.unlink()
    assert main(words) == 0
    assert main(job) == 0
    assert "skipped slide: glass" in capsys.readouterr().out


def test_models_is_a_registered_network():
    assert "valid_cnn" in models.MODELS
