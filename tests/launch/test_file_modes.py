"""The modes of the files that a run writes."""

import os
import stat

import pytest

from hftk.launch.files import set_default_mode


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_a_file_written_as_0600_gets_the_mode_of_the_umask(tmp_path, umask):
    path = tmp_path / "model.safetensors"
    path.touch(mode=0o600)
    before = os.umask(umask)
    try:
        set_default_mode(path)
        assert os.umask(umask) == umask  # the process's own is kept
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
