"""A watched folder, and a C-STORE listener whose rank is killed: every image has one result."""

import contextlib
import csv
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from dicom_files import random_pixels, write_dicom
from PIL import Image
from processes import ranks_of

from medmpi.infer.main import main
from medmpi.infer.spool import Incoming, Watched
from medmpi.parallel import launch as launch_module
from medmpi.train.failure import Failure

pytest.importorskip("pydicom")
# pynetdicom leaves the socket of a refused connection to the garbage collector: it is collected here, not in some
# other test that it would fail.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def _no_sockets_left():
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


def _table(out):
    return list(csv.DictReader((out / "results.csv").read_text().splitlines()))


def test_watched_folder(classifier, tmp_path):
    """Files that come before, meanwhile, slowly, and broken; a second start does only what is new."""
    run, _ = classifier
    inbox, out = tmp_path / "inbox", tmp_path / "out"
    inbox.mkdir()
    for i in range(5):
        Image.fromarray(random_pixels((24, 20), seed=i)).save(inbox / f"before{i}.png")

    def bring():
        time.sleep(0.5)
        for i in range(5):
            Image.fromarray(random_pixels((24, 20), seed=10 + i)).save(tmp_path / "x.png")
            os.replace(tmp_path / "x.png", inbox / f"late{i}.png")
            time.sleep(0.02)
        whole = (inbox / "late0.png").read_bytes()
        with (inbox / "slow.png").open("wb") as file:  # written in pieces
            for k in range(4):
                file.write(whole[k * len(whole) // 4 : (k + 1) * len(whole) // 4])
                file.flush()
                time.sleep(0.05 if k != 1 else 0.5)  # once for longer than a file that is whole rests
        (inbox / "broken.png").write_bytes(whole[:-9])

    if launch_module._guard is not None:
        launch_module._guard.stop = False
    thread = threading.Thread(target=bring)
    thread.start()
    assert main([str(run), "--watch", str(inbox), "--out", str(out), "--idle=2.5", "--quiet"]) == 0
    thread.join()
    rows = _table(out)
    good = sorted(Path(r["file"]).name for r in rows if not r["error"])
    assert good == sorted([f"before{i}.png" for i in range(5)] + [f"late{i}.png" for i in range(5)] + ["slow.png"])
    assert [Path(r["file"]).name for r in rows if r["error"]] == ["broken.png"]
    assert len(list(inbox.iterdir())) == 12, "the folder is left as it is"
    Image.fromarray(random_pixels((24, 20), seed=99)).save(inbox / "new.png")
    assert main([str(run), "--watch", str(inbox), "--out", str(out), "--idle=1", "--quiet"]) == 0
    assert len(_table(out)) == 13
    lines = [line for p in (out / "results").glob("*.jsonl") for line in p.read_text().split("\n") if line]
    assert len(lines) == 13, "none was done twice"


def test_a_claim_is_won_once(tmp_path):
    Incoming.prepare(tmp_path, set())
    for i in range(20):
        (tmp_path / "incoming" / f"{i}.dcm").write_bytes(b"x")
    (tmp_path / "incoming" / ".part.tmp").write_bytes(b"x")
    spools = [Incoming(tmp_path, rank, keep=True) for rank in range(2)]
    taken = [[], []]

    def pull(rank):
        while (found := spools[rank].next()) is not None:
            taken[rank].append(found[0])

    threads = [threading.Thread(target=pull, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [f.name for part in taken for f in part]
    assert sorted(names) == sorted(f"{i}.dcm" for i in range(20))
    spools[0].done(taken[0][0]) if taken[0] else spools[1].done(taken[1][0])
    first = (taken[0] or taken[1])[0]
    assert Incoming.prepare(tmp_path, {first.stem}) == 19
    assert spools[0].waiting() == 19
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "a.png").write_bytes(b"x")
    Watched.prepare(tmp_path / "o", set())
    one, two = (Watched(inbox, tmp_path / "o", set()) for _ in range(2))
    assert one.next() is None
    assert two.next() is None
    time.sleep(0.25)
    taken = one.next()
    assert taken is not None
    assert two.next() is None
    assert one.again(*taken[:2]), "it is young"
    assert one.waiting() == 0
    assert one.next() is None, "it gets its time"
    assert one.waiting() == 1
    os.utime(inbox / "a.png", (1e9, 1e9))
    assert not one.again(*taken[:2])


def _listener(run, out, port, *flags):
    beside = Path(sys.executable).with_name("mpirun")
    command = [str(beside) if beside.exists() else "mpirun", "-n", "2", sys.executable, "-m", "medmpi.infer", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    words = [*command, "--listen", str(port), "--out", str(out), *flags]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _send_all(files, port, answers, stop):
    """As a scanner does: one after the other, each again until it has been answered with success."""
    from pydicom import dcmread
    from pynetdicom import AE
    from pynetdicom.sop_class import SecondaryCaptureImageStorage

    entity = AE()
    entity.add_requested_context(SecondaryCaptureImageStorage)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 5
    pending = list(files)
    while pending and not stop.is_set():
        association = entity.associate("127.0.0.1", port)
        if not association.is_established:
            time.sleep(0.1)
            continue
        while pending:
            try:
                status = association.send_c_store(dcmread(pending[0]))
            except (RuntimeError, ValueError):
                break
            if not status or status.Status != 0:
                break
            answers[pending.pop(0)] = int(status.Status)
            time.sleep(0.01)
        if association.is_established:
            association.release()


def _ranks(out):
    return ranks_of("medmpi.infer", str(out))


def test_a_free_port_is_kept_over_restarts(tmp_path, monkeypatch):
    pytest.importorskip("pynetdicom")
    from medmpi.infer import store

    monkeypatch.setattr(store, "_PATIENCE", 0.2)
    (tmp_path / "incoming").mkdir()

    def listen(port):
        return store.Store(tmp_path, port=port, bind="127.0.0.1", ae_title="X", answered=set())

    first = listen(0)
    port = first.port
    with pytest.raises(Failure, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
        listen(port)
    first.close()
    second = listen(0)
    second.close()
    assert second.port == port
    with socket.create_server(("127.0.0.1", port)):  # somebody else has taken it
        third = listen(0)
        third.close()
    assert third.port != port


def test_a_hundred_images_over_a_kill(classifier, tmp_path):
    """C-STORE of 100 images; a rank is killed on the way and the job started again: 100 answers, 100 results."""
    pytest.importorskip("pynetdicom")
    run, _ = classifier
    files = [write_dicom(tmp_path / "in" / f"{i:03}.dcm", random_pixels((64, 64), seed=i), bits=12) for i in range(100)]
    out, port = tmp_path / "out", _free_port()
    answers, stop = {}, threading.Event()
    sender = threading.Thread(target=_send_all, args=(files, port, answers, stop), daemon=True)
    first = _listener(run, out, port)
    sender.start()
    try:
        end = time.monotonic() + 60
        while len(answers) < 30 and time.monotonic() < end and first.poll() is None:
            time.sleep(0.01)
        assert len(answers) >= 30, first.communicate(timeout=10)[0]
        os.kill(_ranks(out)[-1], signal.SIGKILL)
        assert first.wait(timeout=30) != 0
        at_the_kill = len(answers)
        second = _listener(run, out, port, "--idle=2")
        sender.join(timeout=90)
        said = second.communicate(timeout=90)[0]
    finally:
        stop.set()
        for pid in _ranks(out):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert len(answers) == 100, said
    assert at_the_kill < 100
    assert second.returncode == 0, said
    rows = _table(out)
    assert len({r["file"] for r in rows}) == len(rows) == 100
    assert not [r for r in rows if r["error"]]
    assert not list((out / "incoming").iterdir())
    assert not list((out / "claimed").glob("*/*"))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["latency_ms"]["from_arrival"]["p99"] > 0
    assert "ms from arrival to result: mean" in said


def test_what_a_sender_may_send(classifier, tmp_path):
    """Bad pixels are a result with an error; the same image twice is one; C-ECHO is answered; a signal ends the job."""
    pytest.importorskip("pynetdicom")
    from pydicom import dcmread
    from pynetdicom import AE
    from pynetdicom.sop_class import SecondaryCaptureImageStorage, Verification

    run, _ = classifier
    out, port = tmp_path / "out", _free_port()
    good = write_dicom(tmp_path / "a.dcm", random_pixels((64, 64)), bits=12)
    bad = dcmread(write_dicom(tmp_path / "b.dcm", random_pixels((64, 64)), bits=12))
    bad.PixelData = bad.PixelData[:-200]
    job = _listener(run, out, port)
    try:
        entity = AE()
        entity.add_requested_context(SecondaryCaptureImageStorage)
        entity.add_requested_context(Verification)
        end = time.monotonic() + 60
        while not (association := entity.associate("127.0.0.1", port)).is_established and time.monotonic() < end:
            time.sleep(0.1)
        assert association.send_c_echo().Status == 0
        assert [association.send_c_store(d).Status for d in (dcmread(good), dcmread(good), bad)] == [0, 0, 0]
        association.release()
        while len(list((out / "processed").glob("*"))) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        said = job.communicate(timeout=60)[0]
    finally:
        for pid in _ranks(out):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert job.returncode == 0, said
    rows = _table(out)
    assert len(rows) == 2
    assert sorted(bool(r["error"]) for r in rows) == [False, True]
    assert "P1" not in said
    assert np.all([Path(r["file"]).is_file() for r in rows])
    shutil.rmtree(out)
