"""The commands in the READMEs are valid, both languages show the same ones, and their numbers are those in results/."""

import json
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest

from hftk.parsing import parse

ROOT = Path(__file__).resolve().parents[2]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
sys.path.insert(0, str(ROOT))


def commands(path):
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if re.match(r"    \S", line)]


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_both_languages_show_the_same_commands_and_code():
    assert commands(READMES[0]) == commands(READMES[1])
    assert python_blocks(READMES[0]) == python_blocks(READMES[1])
    assert len(commands(READMES[0])) == 23 and len(python_blocks(READMES[0])) == 1


@pytest.mark.parametrize("command", [c for c in commands(READMES[0]) if "recipes/" in c])
def test_recipe_commands_are_accepted(command, monkeypatch):
    words = shlex.split(command)
    at, recipe = next((i, w) for i, w in enumerate(words) if re.fullmatch(r"recipes/\w+\.py", w))
    monkeypatch.chdir(ROOT)
    assert parse(import_module(f"recipes.{Path(recipe).stem}").CONFIG, words[at + 1 :])
    for word in words:
        if word.startswith("recipes/"):
            assert (ROOT / word).is_file()


@pytest.mark.parametrize("command", [c for c in commands(READMES[0]) if c.startswith("hftk ")])
def test_hftk_commands_get_as_far_as_the_missing_folder(command, capsys, monkeypatch, tmp_path):
    from hftk.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "more_texts.txt").write_text("A text.\n")
    (tmp_path / "reviews.csv").write_text("body\nA text.\n")
    words = shlex.split(command)
    assert main(words[1:]) == 2
    assert words[2] in capsys.readouterr().err


def test_make_targets_in_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands(READMES[0]):
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", makefile, flags=re.MULTILINE)


def test_the_python_block_runs(monkeypatch, tmp_path, capsys):
    import recipes.gpt2_clm as recipe
    from hftk.config import override

    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n\n".join(f"Text number {n} is about the number {n * n}." for n in range(200)))
    quick = {"data": {"path": "texts.txt", "sample": None}, "train": {"epochs": None, "max_steps": 2}, "eval": {"resamples": 20},
             "model": {"vocab_size": 300, "config": {"n_layer": 1, "n_embd": 8, "n_head": 1}}, "generation": {"max_new_tokens": 2}}  # fmt: skip
    monkeypatch.setattr(recipe, "CONFIG", override(recipe.CONFIG, quick))
    exec(compile(python_blocks(READMES[0])[0], "README.md", "exec"), {})
    assert "perplexity" in capsys.readouterr().out
    assert (tmp_path / "out/mine/report.html").is_file()


@pytest.mark.parametrize("path", READMES, ids=lambda p: p.name)
def test_the_numbers_are_those_in_results(path):
    from benchmarks.tables import WORDS, filled, table

    text = path.read_text(encoding="utf-8")
    assert text == filled(text, table(WORDS[path.name], ROOT / "results"))


@pytest.mark.parametrize("result", ["quickstart", "bert_classification"])
def test_a_recipe_says_what_to_expect_in_numbers_of_its_stored_run(result):
    record = json.loads((ROOT / "results" / f"{result}.json").read_text(encoding="utf-8"))
    recipe = ROOT / "recipes" / ("gpt2_clm.py" if result == "quickstart" else f"{result}.py")
    expected = re.search(r"^Expect +(.*?)\n\n?\"\"\"", recipe.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert expected, "the docstring ends with what to expect"
    after = next(s for s in record["scores"] if s["when"] == "after")
    assert f"{after['name']} of {after['value']:.3g}" in expected[1]
    baselines = [s for s in record["scores"] if s["when"].startswith("baseline:") and s["name"] == after["name"]]
    best = (max if after["higher_is_better"] else min)(baselines, key=lambda s: s["value"])
    assert f"{best['value']:.3g}" in expected[1]
