"""What a process holds, and what it gives back."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc on Linux")

HELD = 300 * 10**6
PROGRAM = f"""
import numpy as np, psutil
from hftk.launch import launcher
from hftk.training.fit import forget_peak, peak_memory

launcher.keep_memory()
level = peak_memory()
pieces = [np.ones(10**6, dtype=np.uint8) for _ in range({HELD // 10**6})]
last = bytearray(10**5)  # above the pieces: the heap cannot end below it
del pieces
kept = psutil.Process().memory_info().rss
launcher.give_back_memory()
given = kept - psutil.Process().memory_info().rss
before = forget_peak()
print(given, before - level, peak_memory() - level)
"""


def test_freed_memory_is_given_back_and_the_peak_of_what_follows_is_its_own() -> None:
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    given, before, after = map(int, said.split())
    assert given > 0.9 * HELD and before > 0.9 * HELD and after < 0.2 * HELD
