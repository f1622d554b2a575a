"""The task of ``vowels.py``, from the recipe to the model card."""

from __future__ import annotations

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vowels import Vowels, VowelsConfig

import hftk
from hftk.cli import main
from hftk.tasks import table

ROOT = Path(__file__).parents[2]


def recipe(config: VowelsConfig) -> Any:
    """The page of another recipe, with this task."""
    page = runpy.run_path(str(ROOT / "recipes/bert_classification.py"))
    page["main"].__globals__["TASK"] = Vowels
    return page["main"](config)


def test_the_page_on_a_task_of_your_own_shows_this_one_and_it_is_short() -> None:
    code = Path(__file__).with_name("vowels.py").read_text(encoding="utf-8")
    assert code in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 60


def test_a_task_of_your_own_trains_predicts_evaluates_compares_reports_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "_registered", {})
    table.register(Vowels, VowelsConfig)
    texts = ["".join(np.random.default_rng(i).choice(list("abcdei "), 12)) + str(i) for i in range(60)]
    data = tmp_path / "rows.jsonl"
    rows = [{"text": text, "count": sum(c in "aei" for c in text)} for text in texts]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = VowelsConfig(
        data=hftk.DataConfig(path=str(data), test_fraction=0.2, validation_fraction=0.2),
        model=hftk.ModelConfig(size="tiny", tokenizer="characters"),
        train=hftk.TrainConfig(max_steps=4, save_steps=2, per_device_batch_size=8, global_batch_size=8),
        publish=hftk.PublishConfig(repo="me/vowels", dry_run=True),
        output=str(tmp_path / "a"),
    )
    first = recipe(config)
    assert first.task == "vowels"
    for name in ("checkpoint-4", "checkpoint-3"):
        shutil.rmtree(tmp_path / "a" / "checkpoints" / name, ignore_errors=True)
    again = recipe(replace(config, resume="auto"))
    assert again.main_score == first.main_score, "resumed after step 2, it ends as it did"
    recipe(replace(config, output=str(tmp_path / "b"), train=replace(config.train, seed=1)))
    assert "vowels" in (tmp_path / "a" / "report.html").read_text().lower()
    assert "tags" in (card := capsys.readouterr().out) and "- vowels" in card
    assert main(["predict", str(tmp_path / "a"), "--prompt", "a e i"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"index", "text", "prediction"}
    assert main(["evaluate", str(tmp_path / "a"), "--data", str(data), "--json"]) == 0
    assert {score["name"] for score in json.loads(capsys.readouterr().out)} >= {"pearson", "mse"}
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--resamples", "50"]) == 0
    assert "pearson" in capsys.readouterr().out
    assert (
        main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "both.html")])
        == 0
    )
