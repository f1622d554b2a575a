"""Code for the client process: a recipe as the shell would run it, and the code that a model card shows."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def code_of(card: bytes) -> str:
    found = re.search(r"^(`{3,})python\n(.*?)\n\1$", card.decode(), re.DOTALL | re.MULTILINE)
    assert found
    return found[2]


def run(recipe: str, words: list[str]) -> str:
    """Code that runs a recipe and prints its exit code."""
    return f"""
import importlib.util, hftk
spec = importlib.util.spec_from_file_location("a_recipe", {str(ROOT / f"recipes/{recipe}.py")!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
try:
    hftk.run(module.main, module.CONFIG, {words!r})
    print("exit code 0")
except SystemExit as end:
    print("exit code", end.code)
"""
