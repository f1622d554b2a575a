"""A task of one's own: the vowels of a text, counted by regression, from the recipe to the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hftk
from hftk.cli import main
from hftk.metrics.regression import regression_scores
from hftk.task import Column, Features, Outputs, Score, Task
from hftk.tasks import table


@dataclass(frozen=True, kw_only=True)
class VowelsConfig(hftk.RunConfig):
    """Settings of the toy."""


class Vowels(Task):
    name = "vowels"
    columns: Mapping[str, Column] = {
        "text": Column(usual_names=("text",)),
        "count": Column(usual_names=("count",), kind="any", identity=False),
    }
    auto_model = "AutoModelForSequenceClassification"

    def model_settings(self, splits: Any) -> dict[str, Any]:
        return {"num_labels": 1}

    def encode(self, rows: Any, tokenizer: Any, *, max_length: int, training: bool) -> Features:
        ids = [
            np.array(i)
            for i in tokenizer(list(rows["text"]), truncation=True, max_length=max_length)["input_ids"]
        ]
        columns: dict[str, Any] = {"input_ids": ids}
        if "count" in rows.column_names:
            columns["labels"] = [np.float32(count) for count in rows["count"]]
        return Features(columns=columns, rows=np.arange(len(ids)), lengths=np.array([len(i) for i in ids]))

    def loss(self, model: Any, batch: Any) -> Any:
        return {"items": (self.outputs(model, batch)["loss"].sum(), self.items(batch)["items"])}

    def outputs(self, model: Any, batch: Any) -> Any:
        found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
        return {
            "prediction": found,
            **({"loss": (found - batch["labels"]) ** 2} if "labels" in batch else {}),
        }

    def scores(self, outputs: Outputs) -> list[Score]:
        true = np.array(list(outputs.rows["count"]), float)
        return regression_scores(true, outputs["prediction"], **outputs.bootstrap)


def recipe(config: VowelsConfig) -> Any:
    task = Vowels(config)
    hftk.check(config, task)
    splits = hftk.load_splits(config.data, task)
    model, tokenizer = hftk.load_model(config.model, task, splits)
    trained = hftk.fit(task, model, tokenizer, splits, config)
    after = hftk.evaluate(task, trained.model, tokenizer, splits.held_out, config.eval, output=config.output)
    result = hftk.record(config, splits, trained, None, after)
    hftk.write_report(result, config.output)
    hftk.publish(result, config)
    return result


def test_a_task_of_60_lines_trains_predicts_evaluates_compares_reports_and_resumes(
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
    again = recipe(replace(config, resume="auto"))
    assert first.task == "vowels" and again.main_score == first.main_score
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
