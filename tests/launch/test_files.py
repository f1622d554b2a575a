import os
from pathlib import Path

import pytest

from hftk.launch import files


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch):
    files.write_atomically(tmp_path / "a", "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(tmp_path / "a", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_what_a_killed_process_left_is_removed_and_the_rest_is_not(tmp_path):
    kept = (".clock.12.tmp", ".saving.tmp", ".mine.tmp", "record.json", "a.12.tmp")
    for name in (*kept, ".record.json.12.tmp", ".run.lock.12.tmp", ".predictions.jsonl.3.tmp"):
        (tmp_path / name).touch()
    files.remove_unfinished(tmp_path, "predictions.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        (*kept, ".record.json.12.tmp", ".run.lock.12.tmp")
    )
    files.remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.skipif(os.name == "nt", reason="no folder is synced there")
def test_a_new_folder_and_those_above_it_are_synced_into_what_was_there(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync", lambda path: synced.append(Path(path)))
    files.make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a/b/c").is_dir()
    assert set(synced) == {tmp_path / "a" / "b", tmp_path / "a", tmp_path}
    files.make_folder(tmp_path / "a" / "b" / "c")
    assert len(synced) == 3, "nothing new"
