import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import hftk
from hftk.config import DataConfig, InputError, ModelConfig, RunConfig
from hftk.launch import output_folder
from hftk.launch.output_folder import prepare_output, read_status, release_output, settle_output, write_status

ROOT = Path(hftk.__file__).parents[1]
STATUS = {"state": "done", "exit_code": 0, "message": "", "pid": 1, "started": "2026-01-02T03:04:05+00:00"}


def config(folder, **settings):
    return RunConfig(output=str(folder), **settings)


def earlier_run(folder, *names, state="done"):
    """A folder as a run leaves it, with files of these names besides."""
    folder.mkdir(parents=True, exist_ok=True)
    write_status(folder, {**STATUS, "state": state})
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
    return folder


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lock(folder, **owner):
    folder.mkdir(parents=True, exist_ok=True)
    mine = {
        "pid": os.getpid(),
        "process_started": psutil.Process().create_time(),
        "host": socket.gethostname(),
    }
    (folder / "run.lock").write_text(json.dumps({**mine, "since": "then", **owner}))


def holder(folder):
    return json.loads((folder / "run.lock").read_text())["pid"]


# --- what is in the folder


def test_a_new_folder_is_made_with_its_parents_and_locked(tmp_path):
    folder = prepare_output(config(tmp_path / "a" / "b"))
    assert holder(folder) == os.getpid()
    release_output(folder)
    assert list(folder.iterdir()) == []


def test_files_of_others_are_kept_and_refused_even_with_overwrite(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    before = content(tmp_path)
    for settings in ({}, {"overwrite": True}):
        with pytest.raises(InputError) as caught:
            prepare_output(config(tmp_path, **settings))
        assert "1 file" in str(caught.value) and "another --output" in str(caught.value)
    assert content(tmp_path) == before


def test_an_earlier_run_is_kept_and_the_ways_on_are_named(tmp_path):
    folder = earlier_run(tmp_path / "out", "model.safetensors", "checkpoints/checkpoint-5/model.safetensors")
    before = content(folder)
    with pytest.raises(InputError) as caught:
        prepare_output(config(folder))
    message = str(caught.value)
    assert "3 files" in message and "2026-01-02T03:04:05" in message and "(done)" in message
    assert "--resume auto" in message and "--overwrite" in message and "another --output" in message
    assert content(folder) == before


def test_resume_accepts_the_folder_as_it_is(tmp_path):
    folder = earlier_run(tmp_path / "out", "checkpoints/checkpoint-5/model.safetensors", "notes.txt")
    before = content(folder)
    inside = folder / "checkpoints" / "checkpoint-5"
    for resume in ("auto", str(inside)):
        release_output(prepare_output(config(folder, resume=resume)))
        assert content(folder) == before
    with pytest.raises(InputError):
        prepare_output(config(folder, resume=str(tmp_path / "elsewhere" / "checkpoint-5")))


def test_resume_does_not_write_over_the_weights_of_another_program(tmp_path):
    (tmp_path / "slurm.log").write_text("log")
    release_output(prepare_output(config(tmp_path, resume="auto")))
    (tmp_path / "model.safetensors").write_text("precious")
    with pytest.raises(InputError, match="no hftk run left"):
        prepare_output(config(tmp_path, resume="auto"))


def test_a_run_that_ended_before_it_made_anything_needs_no_overwrite(tmp_path):
    folder = earlier_run(tmp_path / "out", "config.yaml", state="wrong input")
    release_output(prepare_output(config(folder)))
    (folder / "model.safetensors").write_text("precious")
    with pytest.raises(InputError):
        prepare_output(config(folder))


def test_overwrite_removes_what_a_run_left_and_nothing_else(tmp_path):
    names = (
        "model-00001-of-00002.safetensors",
        "tokenizer.json",
        "record.json",
        "predictions.jsonl",
        "checkpoints/a/b.bin",
    )
    folder = earlier_run(tmp_path / "out", *names)
    (folder / "mine.py").write_text("precious")
    before = content(folder)
    with pytest.raises(InputError, match=r"mine\.py"):
        prepare_output(config(folder, overwrite=True))
    assert content(folder) == before
    (folder / "mine.py").unlink()
    prepare_output(config(folder, overwrite=True))
    settle_output(folder, keep_new=True)
    assert list(content(folder)) == ["run.lock"]
    release_output(folder)


def test_overwrite_brings_the_earlier_run_back_if_the_new_input_is_wrong(tmp_path):
    folder = earlier_run(tmp_path / "out", "model.safetensors", "record.json", "checkpoints/a/b.bin")
    before = content(folder)
    prepare_output(config(folder, overwrite=True))
    assert not (folder / "model.safetensors").exists()
    write_status(folder, {"state": "wrong input", "exit_code": 2, "pid": 1})
    (folder / "config.yaml").write_text("of the new run")
    settle_output(folder, keep_new=False)
    release_output(folder)
    after = content(folder)
    assert read_status(folder)["state"] == "wrong input"
    assert {k: v for k, v in after.items() if k != "status.json"} == {
        k: v for k, v in before.items() if k != "status.json"
    }


def test_an_overwrite_that_was_killed_is_finished_by_the_next(tmp_path):
    folder = earlier_run(tmp_path / "out", "model.safetensors")
    release_output(prepare_output(config(folder, overwrite=True)))
    release_output(prepare_output(config(folder)))
    settle_output(folder, keep_new=True)
    assert list(content(folder)) == []


@pytest.mark.parametrize("mark", ["record.json", "config.yaml"])
def test_a_record_or_a_config_of_hftk_shows_whose_folder_it_is(tmp_path, mark):
    (tmp_path / "model.safetensors").write_text("weights")
    (tmp_path / mark).write_text('{"other": 1}' if mark == "record.json" else "model: a\nlearning_rate: 1\n")
    with pytest.raises(InputError, match="not known to be from one"):
        prepare_output(config(tmp_path, overwrite=True))
    (tmp_path / mark).write_text(
        '{"hftk": "1"}' if mark == "record.json" else "model:\n  size: a\ntrain: {}\noutput: b\n"
    )
    prepare_output(config(tmp_path, overwrite=True))
    settle_output(tmp_path, keep_new=True)
    assert list(content(tmp_path)) == ["run.lock"]
    release_output(tmp_path)


def test_overwrite_never_empties_the_working_directory_or_the_home(tmp_path, monkeypatch):
    folder = earlier_run(tmp_path / "out", "model.safetensors")
    before = content(folder)
    (folder / "sub").mkdir()
    for place in (folder, folder / "sub"):
        monkeypatch.chdir(place)
        with pytest.raises(InputError, match="does not empty"):
            prepare_output(config(folder, overwrite=True))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: folder)
    with pytest.raises(InputError, match="does not empty"):
        prepare_output(config(folder, overwrite=True))
    assert content(folder) == before


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")
def test_overwrite_removes_a_link_and_not_what_it_points_to(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "big.bin").write_text("precious")
    folder = earlier_run(tmp_path / "out", "model.safetensors")
    (folder / "checkpoints").symlink_to(tmp_path / "scratch", target_is_directory=True)
    release_output(prepare_output(config(folder, overwrite=True)))
    settle_output(folder, keep_new=True)
    assert not (folder / "checkpoints").exists()
    assert (tmp_path / "scratch" / "big.bin").exists()


def test_an_interrupted_overwrite_still_knows_whose_folder_it_is(tmp_path, monkeypatch):
    folder = earlier_run(
        tmp_path / "out", "model.safetensors", "report.html", "record.json", "zzz.safetensors"
    )
    moved = []
    replace = os.replace

    def note(path, target):
        moved.append(Path(path).name)
        replace(path, target)

    monkeypatch.setattr(os, "replace", note)
    release_output(prepare_output(config(folder, overwrite=True)))
    named = [
        name
        for name in moved
        if name in ("model.safetensors", "record.json", "zzz.safetensors", "status.json")
    ]
    assert named[-2:] == ["record.json", "status.json"]


# --- places that cannot be written


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("precious")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="file in the way"):
            prepare_output(config(folder))
    with pytest.raises(InputError, match="empty name"):
        prepare_output(config(""))


def test_a_folder_that_cannot_be_written_is_wrong_input(tmp_path, monkeypatch):
    tmp_path.chmod(0o500)
    if os.name == "nt" or os.geteuid() == 0:  # to whom the mode means nothing

        def refuse(self, *_, **__):
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"cannot be written: Permission denied.*out") as caught:
        prepare_output(config(tmp_path / "out"))
    assert "--output" in str(caught.value)
    tmp_path.chmod(0o700)


def test_a_full_disk_leaves_no_lock_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(InputError, match="No space left"):
        prepare_output(config(tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


# --- one run at a time


def test_a_folder_that_another_run_writes_to_is_refused(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    folder = earlier_run(tmp_path / "out", "model.safetensors", state="running")
    lock(folder, pid=process.pid, process_started=psutil.Process(process.pid).create_time())
    try:
        for settings in ({}, {"resume": "auto"}, {"overwrite": True}):
            with pytest.raises(InputError, match=f"process {process.pid} on"):
                prepare_output(config(folder, **settings))
        release_output(folder)  # not ours to release
        assert holder(folder) == process.pid
    finally:
        process.kill()
        process.wait()
    release_output(prepare_output(config(folder, resume="auto")))


HOLDER = """
import sys, time
from hftk.config import RunConfig
from hftk.launch.output_folder import prepare_output
prepare_output(RunConfig(output=sys.argv[1]))
print("ready", flush=True)
time.sleep(60)
"""


def test_a_live_run_is_seen_whatever_its_process_number_and_the_clock_say(tmp_path):
    """As between two PID namespaces with one host name, and after a clock step: the lock file names a process
    that is not there."""
    folder = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        lock(folder, pid=2**22 + 1)
        with pytest.raises(InputError, match="another run"):
            prepare_output(config(folder))
    finally:
        process.kill()
        process.wait()
    release_output(prepare_output(config(folder)))


def test_the_lock_of_a_number_that_another_process_has_now_is_stale(tmp_path):
    lock(tmp_path, process_started=psutil.Process().create_time() - 1000)
    assert holder(prepare_output(config(tmp_path))) == os.getpid()
    release_output(tmp_path)


def test_a_lock_from_another_machine_holds_as_long_as_it_is_touched(tmp_path, capsys):
    lock(tmp_path, host="elsewhere", pid=1)
    over = threading.Event()

    def touch():
        while not over.wait(0.2):
            os.utime(tmp_path / "run.lock")

    owner = threading.Thread(target=touch)
    owner.start()
    with pytest.raises(InputError, match="on elsewhere"):
        prepare_output(config(tmp_path))
    over.set()
    owner.join()
    assert "waiting to see whether it still runs" in capsys.readouterr().out


def test_a_lock_from_another_machine_is_waited_for_until_it_is_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(output_folder, "SILENT_SECONDS", 0.5)
    lock(tmp_path, host="elsewhere", pid=1)
    started = time.monotonic()
    assert holder(prepare_output(config(tmp_path))) == os.getpid()
    assert time.monotonic() - started > 0.3
    release_output(tmp_path)


def test_a_lock_from_another_machine_that_is_long_silent_is_stale(tmp_path):
    lock(tmp_path, host="elsewhere", pid=1)
    long_ago = time.time() - output_folder.SILENT_SECONDS - 1
    os.utime(tmp_path / "run.lock", (long_ago, long_ago))
    assert holder(prepare_output(config(tmp_path))) == os.getpid()
    release_output(tmp_path)


def test_a_lock_is_kept_alive_for_other_machines(tmp_path, monkeypatch):
    monkeypatch.setattr(output_folder, "HEARTBEAT_SECONDS", 0.02)
    folder = prepare_output(config(tmp_path))
    os.utime(folder / "run.lock", (0, 0))
    deadline = time.monotonic() + 5
    while (folder / "run.lock").stat().st_mtime == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    release_output(folder)


def test_a_half_written_lock_is_waited_for_and_then_stale(tmp_path):
    (tmp_path / "run.lock").touch()
    with pytest.raises(InputError, match="being started"):
        prepare_output(config(tmp_path))
    os.utime(tmp_path / "run.lock", (0, 0))
    release_output(prepare_output(config(tmp_path)))


RACE = """
import sys, time
from hftk.config import DataConfig, InputError, ModelConfig, RunConfig
from hftk.launch.output_folder import prepare_output, read_status, release_output, settle_output, write_status
for folder in sys.argv[2:]:
    while time.time() < float(sys.argv[1]):
        pass
    try:
        prepare_output(RunConfig(output=folder))
        print(folder)
    except InputError:
        pass
time.sleep(0.5)
"""


def test_of_several_runs_that_find_one_stale_lock_one_alone_gets_it(tmp_path):
    folders = [tmp_path / str(number) for number in range(30)]
    for folder in folders:
        lock(folder, pid=2**22 + 1)  # above what Linux gives out
    start = time.time() + 1.0
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(start), *map(str, folders)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for _ in range(3)
    ]
    won = [line for racer in racers for line in racer.communicate(timeout=30)[0].split()]
    assert sorted(won) == sorted(map(str, folders))


# --- status.json


def test_a_status_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    write_status(tmp_path, STATUS)

    def crash(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="Input/output"):
        write_status(tmp_path, {**STATUS, "state": "failed"})
    assert read_status(tmp_path)["state"] == "done"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_status_holds_no_token(tmp_path):
    write_status(
        tmp_path, {**STATUS, "message": "401 for hf_abcdefghijklmnopqrstuvwx at https://me:pw123@host/x"}
    )
    text = (tmp_path / "status.json").read_text()
    assert "hf_abc" not in text and "pw123" not in text


def test_what_is_no_status_of_ours_is_none(tmp_path):
    assert read_status(tmp_path) is None
    for text in ("", "[1]", '{"state": "done"}', "\x00"):
        (tmp_path / "status.json").write_text(text)
        assert read_status(tmp_path) is None


# --- paths in the settings


def test_an_output_folder_with_an_input_of_the_run_is_refused_whatever_the_flags(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("precious")
    for name in ("texts", "texts/a.txt"):
        for flags in ({}, {"resume": "auto"}, {"overwrite": True}):
            with pytest.raises(InputError, match="without inputs of the run"):
                prepare_output(
                    config(tmp_path / "texts", data=DataConfig(path=str(tmp_path / name)), **flags)
                )
    model = earlier_run(tmp_path / "model", "model.safetensors")
    with pytest.raises(InputError, match=r"--model\.name"):
        prepare_output(config(model, model=ModelConfig(name=str(model)), overwrite=True))
    assert (model / "model.safetensors").read_text() == "precious"


@pytest.mark.parametrize("path", ("n" * 300, "~nosuchuser/x", "/dev/null"))
def test_an_output_that_cannot_be_a_folder_is_an_error_of_the_input(path):
    with pytest.raises(InputError, match="output"):
        prepare_output(config(path))
