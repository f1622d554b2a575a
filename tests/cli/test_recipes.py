"""``hftk recipes`` and ``hftk new``."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hftk.cli.new import find_recipes

RECIPES = Path(__file__).parents[2] / "recipes"


def test_every_recipe_is_listed_with_its_purpose(hftk: Any) -> None:
    result = hftk("recipes")
    names = [line.split()[0] for line in result.out.splitlines()]
    assert result.code == 0 and names == sorted(path.stem for path in RECIPES.glob("*.py"))
    assert all(len(line.split()) > 4 for line in result.out.splitlines())


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.py")))
def test_a_copy_is_the_recipe_under_its_own_name(hftk: Any, tmp_path: Path, name: str) -> None:
    target = tmp_path / "my_run.py"
    result = hftk("new", name, target)
    assert (result.code, result.out.strip()) == (0, str(target)), result.err
    copy, recipe = target.read_text(encoding="utf-8"), find_recipes()[name].read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(copy)) or ""
    assert (
        "accelerate launch my_run.py" in docstring
        and f"recipes/{name}.py" not in copy
        and '"out/my_run"' in copy
    )
    assert copy.replace("my_run.py", f"recipes/{name}.py").replace("out/my_run", f"out/{name}") == recipe


def test_a_copy_runs(hftk: Any, tmp_path: Path) -> None:
    assert hftk("new", "gpt2_clm", tmp_path / "my_run.py").code == 0
    shown = subprocess.run(
        [sys.executable, "my_run.py", "--help"],
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0 and "out/my_run" in shown.stdout and "--publish.repo" in shown.stdout, (
        shown.stderr
    )


def test_nothing_is_overwritten_and_mistakes_are_told(hftk: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("# mine")
    (tmp_path / "folder").mkdir()
    for words, says in [
        (("gpt2_clm", tmp_path / "mine.py"), "exists and is not touched"),
        (("gpt2_clm", tmp_path / "folder"), "folder/gpt2_clm.py"),
        (("gpt2_clm", tmp_path / "none/x.py"), "does not exist"),
        (("gpt2", tmp_path / "x.py"), "did you mean gpt2_clm?"),
    ]:
        result = hftk("new", *words)
        assert result.code == 2 and says in result.err
    assert (tmp_path / "mine.py").read_text() == "# mine" and not (tmp_path / "x.py").exists()
