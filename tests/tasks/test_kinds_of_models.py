"""Two encoders joined, and a prompted decoder: the whole recipe, and the commands on what it leaves."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from made_pairs import make_config, rows_of
from test_prompted import decoder_folder
from test_warm_start import encoder_folder

import hftk
from hftk.cli import main as command

RECIPES = {"summarization": "t5_summarization", "translation": "marian_translation"}
pytestmark = pytest.mark.usefixtures("tiny_runs")


def recipe_of(task: str) -> Any:
    path = Path(__file__).parents[2] / f"recipes/{RECIPES[task]}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path: Path, rows: Any) -> str:
    path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module", params=["joined", "prompted"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp(request.param)
    return (
        encoder_folder(folder, "bert")
        if request.param == "joined"
        else decoder_folder(folder, "gpt2", context=96, chat=True)
    )


@pytest.mark.parametrize("task", RECIPES)
def test_a_run_is_recorded_and_predict_evaluate_and_compare_agree_with_it(
    model: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = write(tmp_path / "train.jsonl", rows_of(40, longest=20)), rows_of(12, seed=9, longest=20)
    held_out = write(tmp_path / "test.jsonl", test)
    recipe, out = recipe_of(task), tmp_path / "out"
    config = make_config(
        out,
        "",
        name=model,
        kind=type(recipe.CONFIG),
        prompt_template="{source}",
        data={"train": train, "test": held_out},
        train={"max_steps": 8, "learning_rate": 0.01, "optimizer": "adamw"},
        eval={"resamples": 20},
    )
    hftk.run(recipe.main, config, [])
    record = json.loads((out / "record.json").read_text(encoding="utf-8"))
    after = {score["name"]: score["value"] for score in record["scores"] if score["when"] == "after"}
    before = {score["name"]: score["value"] for score in record["scores"] if score["when"] == "before"}
    assert after.keys() == before.keys() and after["loss"] < before["loss"]
    lines = [
        json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [line["reference"] for line in lines] == [[text] for text in test["target"]]
    assert all(line["prediction"] == line["prediction"].strip() for line in lines)

    capsys.readouterr()
    assert command(["evaluate", str(out), "--data", held_out, "--json"]) == 0
    found = {score["name"]: score["value"] for score in json.loads(capsys.readouterr().out)}
    assert found == pytest.approx(after, rel=1e-5)
    texts = write(tmp_path / "texts.jsonl", [{"text": text} for text in test["source"]])
    assert command(["predict", str(out), "--file", texts, "--output", str(tmp_path / "said.jsonl")]) == 0
    assert command(["predict", str(out), "--file", texts]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text(encoding="utf-8").splitlines()]
    assert printed == said and [line["prediction"] for line in said] == [line["prediction"] for line in lines]
    assert [line["prompt"] for line in said] == test["source"][:] and not any(
        line["truncated"] for line in said
    )
    assert command(["predict", str(out), "--prompt", "ab" * 80]) == 0
    cut = capsys.readouterr()
    assert json.loads(cut.out)["truncated"] and "they lost their end" in cut.err
    assert command(["compare", str(out), str(out), "--json", "--resamples", "20"]) == 0
    assert all(c["difference"] == 0 for c in json.loads(capsys.readouterr().out)["comparisons"])
