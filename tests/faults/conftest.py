"""One fork server for all tests of this folder that kill, started when the first of them wants it."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # interposer, killing, aimed ...


@pytest.fixture(scope="session")
def server():
    import killing
    from interposer import reason_not_to

    if reason_not_to():
        pytest.skip(reason_not_to())
    running = killing.Server()
    yield running
    running.close()
    shutil.rmtree(running.folder)


@pytest.fixture(scope="session")
def firing_range(server, tmp_path_factory):
    """Where runs are killed, with the reference runs that have been made."""
    import aimed

    return aimed.Range(server, tmp_path_factory.mktemp("range"))
