"""The numbers in the READMEs, the pages and the recipes are those in results/."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
sys.path.insert(0, str(ROOT))


@pytest.mark.parametrize("path", READMES, ids=lambda p: p.name)
def test_the_numbers_are_those_in_results(path):
    from benchmarks.tables import WORDS, filled, table

    text = path.read_text(encoding="utf-8")
    assert text == filled(text, table(WORDS[path.name], ROOT / "results"))


@pytest.mark.parametrize("result", ["quickstart", "bert_classification"])
def test_a_recipe_says_what_to_expect_in_numbers_of_its_stored_run(result):
    record = json.loads((ROOT / "results" / f"{result}.json").read_text(encoding="utf-8"))
    recipe = ROOT / "recipes" / ("gpt2_clm.py" if result == "quickstart" else f"{result}.py")
    expected = re.search(
        r"^Expect +(.*?)\n\n?\"\"\"", recipe.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    assert expected, "the docstring ends with what to expect"
    after = next(s for s in record["scores"] if s["when"] == "after")
    assert f"{after['name']} of {after['value']:.3g}" in expected[1]
    baselines = [s for s in record["scores"] if s["when"].startswith("baseline:") and s["name"] == after["name"]]
    best = (max if after["higher_is_better"] else min)(baselines, key=lambda s: s["value"])
    assert f"{best['value']:.3g}" in expected[1]
