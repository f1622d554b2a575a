"""What a run meets in its environment: variables without a number, and outputs that cannot encode its text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hftk
from hftk.launch import launcher

ROOT = Path(hftk.__file__).parents[1]
PROGRAM = """
import sys
import hftk
from hftk.console import note
def main(config):
    note("chosen by itself · 选择")
    print("名字")
hftk.run(main, hftk.RunConfig(output=sys.argv[1]), [])
"""


def start(folder: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", **variables}
    command = [sys.executable, "-c", PROGRAM, str(folder / "out")]
    return subprocess.run(command, env=environment, capture_output=True, timeout=120)


@pytest.mark.parametrize("encoding", ["ascii", "cp932", "utf-8"])
def test_an_output_that_cannot_encode_the_text_ends_no_run(tmp_path: Path, encoding: str) -> None:
    done = start(tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert b"chosen by itself" in done.stdout


def test_a_variable_of_a_launcher_without_a_number_is_wrong_input(tmp_path: Path) -> None:
    done = start(tmp_path, WORLD_SIZE="abc")
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert b"WORLD_SIZE, found 'abc'" in done.stderr and b"unset WORLD_SIZE" in done.stderr


def test_numbers_and_absent_variables_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*launcher.RANK, *launcher.WORLD_SIZE, *launcher.LOCAL_RANK):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert list(launcher.malformed_variables()) == []


REFUSED = """
import sys
import hftk
from hftk.config import InputError, Problem
def main(config):
    if config.resume == "auto":
        raise InputError(Problem(setting="resume", message="another run"))
hftk.run(main, hftk.RunConfig(output=sys.argv[1]), sys.argv[2:])
"""


def test_a_refused_resume_leaves_a_finished_run_finished(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    codes = [
        subprocess.run(
            [sys.executable, "-c", REFUSED, str(tmp_path / "out"), *flags], env=environment, timeout=120
        ).returncode
        for flags in ([], ["--resume", "auto"])
    ]
    assert codes == [0, 2]
    assert json.loads((tmp_path / "out/status.json").read_text())["state"] == "done"
