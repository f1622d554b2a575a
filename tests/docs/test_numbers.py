"""The numbers in the READMEs, the pages and the recipes are those in results/."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def test_the_numbers_are_those_in_results():
    from benchmarks.tables import pages

    found = pages()
    assert {ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "docs/zh/tasks/causal_lm.md"} <= found.keys()
    old = [
        path.name
        for path, fill in found.items()
        if fill(path.read_text(encoding="utf-8")) != path.read_text(encoding="utf-8")
    ]
    assert old == [], "run: python benchmarks/tables.py"


def test_a_wrong_number_is_found_out():
    from benchmarks.tables import pages

    page = ROOT / "docs/tasks/translation.md"
    text = page.read_text(encoding="utf-8")
    wrong = re.sub(r"(multi30k_en_de.yaml` \| test \| bleu \| )\d", r"\g<1>9", text)
    assert wrong != text and pages()[page](wrong) == text


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
    baselines = [
        s for s in record["scores"] if s["when"].startswith("baseline:") and s["name"] == after["name"]
    ]
    best = (max if after["higher_is_better"] else min)(baselines, key=lambda s: s["value"])
    assert f"{best['value']:.3g}" in expected[1]
