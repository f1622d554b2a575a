"""``hftk push`` before anything is sent; sending is tried in tests/hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hftk.config import PublishConfig
from hftk.config.settings import read_settings
from hftk.reports.record import RunRecord, save_record


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Just enough of a finished run."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    save_record(
        RunRecord(
            hftk="0.1.0",
            task="classification",
            config={"publish": {"repo": "a/own", "license": "mit", "dry_run": True}},
        ),
        tmp_path,
    )
    return tmp_path


def test_every_setting_of_publishing_is_a_flag_and_in_the_help(hftk: Any) -> None:
    shown = " ".join(hftk("push", "--help").out.split())
    for name, setting in read_settings(PublishConfig()).items():
        assert (
            f"--{name} " in shown and setting.meaning.split(",")[0].replace("--publish.", "--")[:30] in shown
        )


def test_settings_of_the_run_are_taken_and_flags_win(hftk: Any, run: Path) -> None:
    result = hftk("push", run, "--dry_run", "--private", "false")
    assert result.code == 0 and "for a/own (PUBLIC)" in result.err and "license: mit" in result.out
    result = hftk("push", run, "--dry_run", "--repo", "b/other", "--license", "apache-2.0")
    assert "for b/other (private)" in result.err and "license: apache-2.0" in result.out


def test_a_dry_run_of_the_recipe_is_no_dry_run_of_the_command(hftk: Any, run: Path) -> None:
    result = hftk("push", run)
    assert result.code == 2 and "HF_HUB_OFFLINE" in result.err and "--publish" not in result.err


def test_all_mistakes_are_told_at_once_in_the_words_of_this_command(hftk: Any, run: Path) -> None:
    result = hftk(
        "push",
        run,
        "--repo",
        "https://huggingface.co/a/b",
        "--license",
        "MIT",
        "--language",
        "English",
        "--private",
        "perhaps",
    )
    assert (
        result.code == 2
        and "4 problems" in result.err
        and "did you mean --repo a/b?" in result.err
        and "--publish" not in result.err
    )


def test_a_folder_without_a_run_or_without_a_repository_is_refused(
    hftk: Any, run: Path, tmp_path: Path
) -> None:
    assert "record.json" in hftk("push", tmp_path.parent, "--repo", "a/b").err
    save_record(replace(RunRecord(hftk="0.1.0", task="classification")), run)
    result = hftk("push", run)
    assert result.code == 2 and "add --repo NAME/MODEL" in result.err
