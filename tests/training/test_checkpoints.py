"""A checkpoint that exists is whole; a damaged one is named, passed over and left alone; the last good one is
never deleted."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hftk.config import InputError
from hftk.training import checkpoints
from hftk.training.checkpoints import (
    FOLDER,
    MANIFEST,
    STAGING,
    choose,
    damage,
    newest_whole,
    rotate,
    seal,
    step_of,
)

FILES = {
    "model.safetensors": bytes(range(256)) * 40,
    "trainer_state.json": b'{"global_step": 1}',
    "nested/rng_state.pth": b"random",
}


def stage(output: Path, step: int, files: dict[str, bytes] = FILES) -> tuple[Path, Path]:
    """Files as a trainer leaves them before sealing, and the name that the checkpoint is to have."""
    staged = output / FOLDER / STAGING / f"checkpoint-{step}"
    for name, content in files.items():
        path = staged / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return staged, output / FOLDER / f"checkpoint-{step}"


def save(output: Path, *steps: int) -> list[Path]:
    folders = []
    for step in steps:
        staged, final = stage(output, step)
        seal(staged, final, {"step": step})
        folders.append(final)
    return folders


def names(output: Path) -> list[str]:
    return sorted(p.name for p in (output / FOLDER).iterdir() if p.name != STAGING)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


HARM: dict[str, Callable[[Path], Any]] = {
    "truncated": truncate,
    "emptied": empty,
    "flipped": flip_a_bit,
    "deleted": Path.unlink,
}
FOUND = {
    "truncated": "bytes instead of",
    "emptied": "has 0 bytes instead of",
    "flipped": "SHA-256 differs",
    "deleted": "is missing",
}


# --- Sealing and damage


def test_a_sealed_checkpoint_is_whole_and_keeps_its_files_and_facts(tmp_path: Path) -> None:
    (folder,) = save(tmp_path, 12)
    assert damage(folder) == "" and step_of(folder) == 12
    assert {name: folder.joinpath(name).read_bytes() for name in FILES} == FILES
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["step"] == 12 and sorted(manifest["files"]) == sorted(FILES)
    assert not list((tmp_path / FOLDER / STAGING).iterdir())


@pytest.mark.parametrize("name", list(FILES))
@pytest.mark.parametrize("harm", list(HARM))
def test_damage_to_any_file_is_found_and_named(tmp_path: Path, harm: str, name: str) -> None:
    (folder,) = save(tmp_path, 1)
    HARM[harm](folder / name)
    problem = damage(folder)
    assert name in problem and FOUND[harm] in problem
    assert bool(damage(folder, contents=False)) == (harm != "flipped")


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"null", b"[]", b"{}", b'{"files": 3}', b'{"files": {"a": {}}}', b"\xff\xfe"]
)
def test_a_missing_or_damaged_manifest_is_damage_and_no_crash(tmp_path: Path, content: bytes | None) -> None:
    (folder,) = save(tmp_path, 1)
    (folder / MANIFEST).unlink()
    if content is not None:
        (folder / MANIFEST).write_bytes(content)
    assert "manifest" in damage(folder)
    assert newest_whole(tmp_path)[0] is None


def test_no_bit_of_a_manifest_can_change_unseen(tmp_path: Path) -> None:
    staged, final = stage(tmp_path, 1, {"é.bin": b"x"})
    seal(staged, final, {"step": 1, "of": "Zürich"})
    manifest = final / MANIFEST
    whole = manifest.read_bytes()
    assert b"\\u00e9" in whole, "whose letters mean the same in upper case"
    for place in range(len(whole)):
        for bit in range(8):
            manifest.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            assert "manifest" in damage(final) or "é.bin" in damage(final), (place, bit)
    for length in range(len(whole)):
        manifest.write_bytes(whole[:length])
        assert "manifest" in damage(final)
    manifest.write_bytes(whole)
    assert damage(final) == ""


@pytest.mark.parametrize(
    "name",
    ["optimizer.bin", "pytorch_model.bin", "model-00001-of-00002.safetensors", "sub/adapter_config.json"],
)
def test_a_file_that_would_be_loaded_and_was_not_written_is_damage(tmp_path: Path, name: str) -> None:
    (folder,) = save(tmp_path, 1)
    (folder / "notes.txt").write_text("the good one")
    (folder / ".nfs.json").write_text("of a network disk")
    assert damage(folder) == "" == damage(folder, contents=False)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    assert damage(folder) == damage(folder, contents=False) == f"{name} was added after it was written"


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_folder_in_the_place_of_a_file_is_damage(tmp_path: Path, name: str) -> None:
    (folder,) = save(tmp_path, 1)
    (folder / name).unlink()
    (folder / name).mkdir()
    assert ("manifest" if name == MANIFEST else f"{name} is no file") in damage(folder)


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")
def test_links_are_as_good_as_what_they_lead_to(tmp_path: Path) -> None:
    old, new = save(tmp_path, 1, 2)
    away = tmp_path / "another disk"
    shutil.move(old, away)
    old.symlink_to(away, target_is_directory=True)
    (new / "model.safetensors").unlink()
    (new / "model.safetensors").symlink_to(away / "model.safetensors")
    assert damage(old) == damage(new) == ""
    (away / "model.safetensors").write_bytes(b"other")
    assert "model.safetensors" in damage(old) and "model.safetensors" in damage(new)
    (away / "model.safetensors").unlink()
    assert "is missing" in damage(old) and "is missing" in damage(new)


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")
def test_rotation_takes_away_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    for step in (1, 2):
        (old,) = save(tmp_path, step)
        away = tmp_path / f"another disk {step}"
        shutil.move(old, away)
        old.symlink_to(away, target_is_directory=True)
        save(tmp_path, 10)
        rotate(tmp_path, keep=1, best=None)
        assert names(tmp_path) == ["checkpoint-10"] and contents(away).keys() == {*FILES, MANIFEST}


def test_a_file_that_cannot_be_read_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder,) = save(tmp_path, 1)

    def refuse(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoints, "hash_file", refuse)
    assert "cannot be read" in damage(folder) and "Input/output error" in damage(folder)


def test_the_hash_without_python_3_11_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder,) = save(tmp_path, 1)
    monkeypatch.delattr("hashlib.file_digest", raising=False)
    assert damage(folder) == ""


def test_an_attempt_that_was_cut_off_after_its_manifest_can_be_made_again(tmp_path: Path) -> None:
    staged, final = stage(tmp_path, 5)
    (staged / MANIFEST).write_text('{"files": {}, "of": "the attempt before"}')
    seal(staged, final, {})
    assert damage(final) == ""


def test_a_whole_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 5)
    staged, final = stage(tmp_path, 5, {"model.safetensors": b"new"})
    seal(staged, final, {})
    assert (
        names(tmp_path) == ["checkpoint-5"]
        and (final / "model.safetensors").read_bytes() == b"new"
        and damage(final) == ""
    )


def test_a_damaged_checkpoint_of_the_same_step_is_kept_for_its_owner(tmp_path: Path) -> None:
    for _ in range(2):
        (folder,) = save(tmp_path, 5)
        truncate(folder / "model.safetensors")
    save(tmp_path, 5)
    assert names(tmp_path) == ["checkpoint-5", "damaged-checkpoint-5", "damaged-checkpoint-5-2"]
    assert newest_whole(tmp_path) == (tmp_path / FOLDER / "checkpoint-5", [])


# --- A write that fails


@pytest.mark.parametrize("place", ["write", "sync", "rename"])
def test_a_write_that_fails_leaves_the_older_checkpoints_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    old = save(tmp_path, 1, 2)
    before = [contents(p) for p in old]
    staged, final = stage(tmp_path, 3)

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(
            *{"write": (Path, "write_bytes"), "sync": (os, "fsync"), "rename": (os, "replace")}[place], full
        )
        with pytest.raises(OSError, match="No space left"):
            seal(staged, final, {"step": 3})
    assert not final.exists() and [contents(p) for p in old] == before
    assert newest_whole(tmp_path) == (old[-1], [])
    seal(staged, final, {"step": 3})  # and once there is room again, it is written after all
    assert newest_whole(tmp_path)[0] == final


def test_a_disk_that_syncs_no_folders_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = os.fsync

    def sync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")
        synced(handle)

    monkeypatch.setattr(os, "fsync", sync)
    assert damage(save(tmp_path, 1)[0]) == ""


# --- Which one to continue from


def test_the_newest_is_by_step_and_not_by_name_or_time(tmp_path: Path) -> None:
    save(tmp_path, 1000, 9, 200)
    (tmp_path / FOLDER / "checkpoint-5000").write_text("a file")
    (tmp_path / FOLDER / "checkpoint-x").mkdir()
    assert [step_of(c) for c in checkpoints.checkpoints(tmp_path)] == [9, 200, 1000]
    assert choose("auto", tmp_path) == (tmp_path / FOLDER / "checkpoint-1000", [])


@pytest.mark.parametrize("harm", list(HARM))
def test_a_damaged_newest_one_is_named_and_the_older_one_used(tmp_path: Path, harm: str) -> None:
    old, new = save(tmp_path, 10, 20)
    HARM[harm](new / "model.safetensors")
    before = contents(new)
    chosen, told = choose("auto", tmp_path)
    assert chosen == old and len(told) == 1
    assert str(new) in told[0] and "model.safetensors" in told[0] and FOUND[harm] in told[0]
    assert contents(new) == before


def test_an_unsealed_checkpoint_is_none(tmp_path: Path) -> None:
    (old,) = save(tmp_path, 10)
    stage(tmp_path, 20)
    assert choose("auto", tmp_path) == (old, [])


def test_never_and_auto_without_checkpoints_start_anew(tmp_path: Path) -> None:
    assert choose("auto", tmp_path) == (None, [])
    save(tmp_path, 10)
    assert choose("never", tmp_path) == (None, [])


def test_auto_with_nothing_but_damaged_ones_stops_and_names_them(tmp_path: Path) -> None:
    for folder in save(tmp_path, 10, 20):
        empty(folder / "model.safetensors")
    with pytest.raises(InputError) as error:
        choose("auto", tmp_path)
    assert "no checkpoint is whole" in str(error.value) and "--overwrite" in str(error.value)
    assert "checkpoint-10" in str(error.value) and "checkpoint-20" in str(error.value)


def test_a_path_is_taken_if_it_is_whole(tmp_path: Path) -> None:
    old, _ = save(tmp_path, 10, 20)
    assert choose(str(old), tmp_path) == (old, [])
    elsewhere = tmp_path / "moved" / "mine"
    shutil.copytree(old, elsewhere)
    assert choose(str(elsewhere), tmp_path / "other") == (elsewhere, [])


def test_a_path_that_will_not_do_says_why_and_what_to_type(tmp_path: Path) -> None:
    old, new = save(tmp_path, 10, 20)
    flip_a_bit(new / "model.safetensors")
    cases = {
        str(new): "SHA-256 differs",
        str(tmp_path / FOLDER / "checkpoint-30"): "there is no such folder",
        str(tmp_path): "it has no manifest",
    }
    for path, reason in cases.items():
        with pytest.raises(InputError) as error:
            choose(path, tmp_path)
        assert reason in str(error.value) and f"use --resume {old} or --resume auto" in str(error.value)
    with pytest.raises(InputError, match="start anew with --resume never --overwrite"):
        choose("nowhere", tmp_path / "nothing")


# --- Rotation


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    save(tmp_path, 5, 10, 100, 20)
    rotate(tmp_path, keep=2, best=10)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-100", "checkpoint-20"]
    rotate(tmp_path, keep=1, best=100)
    assert names(tmp_path) == ["checkpoint-100"]
    rotate(tmp_path, keep=3, best=None)
    assert names(tmp_path) == ["checkpoint-100"]


@pytest.mark.parametrize("harm", ["truncated", "emptied", "deleted"])
def test_damaged_ones_do_not_count_and_are_never_deleted(tmp_path: Path, harm: str) -> None:
    folders = save(tmp_path, 1, 2, 3, 4)
    for broken in (folders[0], folders[3]):
        HARM[harm](broken / "model.safetensors")
    rotate(tmp_path, keep=1, best=None)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]


def test_one_with_a_flipped_bit_or_no_manifest_is_not_deleted_either(tmp_path: Path) -> None:
    folders = save(tmp_path, 1, 2, 3)
    flip_a_bit(folders[0] / "model.safetensors")
    (folders[1] / MANIFEST).unlink()
    rotate(tmp_path, keep=1, best=None)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_a_deletion_that_is_cut_off_leaves_nothing_that_looks_like_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        rotate(tmp_path, keep=1, best=None)
    assert [step_of(c) for c in checkpoints.checkpoints(tmp_path)] == [2]
    save(tmp_path, 1)
    rotate(tmp_path, keep=1, best=None)
    assert names(tmp_path) == ["checkpoint-2"]
