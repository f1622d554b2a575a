"""The model card: its metadata through huggingface_hub and back, for every recipe's real record; what its
text says."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import card_errors
from huggingface_hub import ModelCard
from made_up_runs import gpt2_run, score

from hftk.config import PublishConfig
from hftk.hub.card import card, metadata
from hftk.hub.folder import public
from hftk.reports.record import RunRecord, load_record
from hftk.task import Score

ROOT = Path(__file__).parents[2]
RECORDS = sorted(
    path
    for path in (ROOT / "results").glob("*.json")
    if "task" in json.loads(path.read_text(encoding="utf-8"))
)
SETTINGS = PublishConfig(repo="somebody/model", license="apache-2.0", language="en,de")
PIPELINES = {
    "causal_lm": "text-generation",
    "classification": "text-classification",
    "summarization": "summarization",
    "translation": "translation",
}


def a_run(task: str, architecture: str, scores: list[Score], **config: Any) -> RunRecord:
    """A record of a task that results/ may not hold."""
    return replace(
        gpt2_run(5), task=task, scores=scores, model={"architecture": architecture}, samples=[], config=config
    )


MADE_UP = [
    a_run(
        "summarization",
        "T5ForConditionalGeneration",
        [score("rouge1", 31.2, higher=True, unit="%"), score("rougeLsum", 25.0, higher=True)],
        language="en",
        source_prefix="summarize: ",
    ),
    a_run(
        "translation",
        "MarianMTModel",
        [score("bleu", 21.5, higher=True), score("chrf++", 44.0, higher=True), score("ter", 60.0)],
        source_language="en_XX",
        target_language="zho_Hans",
    ),
]


def code_of(card: str) -> str:
    """The Python in a card, whatever the length of its fence."""
    found = re.search(r"^(`{3,})python\n(.*?)\n\1$", card, re.DOTALL | re.MULTILINE)
    assert found
    return found[2]


def test_there_are_real_records_to_try() -> None:
    assert len(RECORDS) >= 6


@pytest.mark.parametrize(
    "record",
    [*map(load_record, RECORDS), *MADE_UP],
    ids=lambda record: f"{record.task}-{record.model.get('architecture')}",
)
def test_the_metadata_survive_the_round_trip_and_the_hub_takes_them(
    record: RunRecord, tmp_path: Path
) -> None:
    record = public(record, samples=True)
    text = card(record, tmp_path, SETTINGS, "somebody/model")
    assert card_errors(text) == []
    file = tmp_path / "README.md"
    file.write_text(text, encoding="utf-8")
    back, made = ModelCard.load(file).data, metadata(record, tmp_path, SETTINGS, "somebody/model")
    assert back.to_dict() == made.to_dict() and back.model_name == "model"
    finals = [s for s in record.scores if s.when == "after"]
    assert [(r.metric_name, r.metric_value, r.dataset_split) for r in back.eval_results] == [
        (s.name, s.value, s.split) for s in finals
    ]
    for result, final in zip(back.eval_results, finals, strict=True):
        assert result.metric_args.get("signature", "") == final.signature
        assert tuple(result.metric_args.get("interval_95", ())) == (final.interval or ())
        assert result.verified is None and result.task_type == PIPELINES[record.task] == back.pipeline_tag
    assert (
        back.language == ["en", "de"] and back.license == "apache-2.0" and back.library_name == "transformers"
    )


@pytest.mark.parametrize("record", [*map(load_record, RECORDS), *MADE_UP], ids=lambda record: record.task)
def test_the_text_is_whole_and_its_code_is_python(record: RunRecord, tmp_path: Path) -> None:
    text = card(public(record, samples=True), tmp_path, SETTINGS, "somebody/model")
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert heads[:2] == ["## Scores", "## How to use it"] and heads[-3:] == [
        "## Data",
        "## Training",
        "## Limits",
    ]
    compile(code_of(text), "card", "exec")
    assert "None" not in text.partition("## Data")[2] and "nan" not in text.partition("## Data")[2]


def test_languages_of_the_task_become_iso_codes(tmp_path: Path) -> None:
    assert metadata(MADE_UP[1], tmp_path, PublishConfig(), "a/b").language == ["en", "zho"]
    assert metadata(MADE_UP[0], tmp_path, PublishConfig(), "a/b").language == "en"
    assert metadata(gpt2_run(5), tmp_path, PublishConfig(), "a/b").language is None


def test_a_base_model_is_named_only_where_it_came_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def base(name: str, settings: PublishConfig = SETTINGS, **facts: Any) -> Any:
        run = replace(gpt2_run(5), config={"model": {"name": name}}, model={"pretrained": True, **facts})
        return metadata(run, tmp_path, settings, "a/b").base_model

    monkeypatch.chdir(tmp_path)
    assert (
        base("openai-community/gpt2", from_hub=True) == "openai-community/gpt2"
        and base("gpt2", from_hub=True) == "gpt2"
    )
    assert base("out/gpt2", from_hub=False) is None, "a folder that looks like an id"
    assert (
        base("my_model") is None
        and base("/models/gpt2") is None
        and base("../gpt2") is None
        and base("~/models/x") is None
    )
    assert base("openai-community/gpt2") == "openai-community/gpt2", (
        "records of an earlier version do not say it"
    )
    (tmp_path / "out/gpt2").mkdir(parents=True)
    assert base("out/gpt2") is None
    assert base("out/gpt2", replace(SETTINGS, base_model="openai-community/gpt2")) == "openai-community/gpt2"


def test_the_way_from_the_base_is_named_and_an_unknown_license_is_said(tmp_path: Path) -> None:
    based = replace(SETTINGS, base_model="a/base")

    def relation(settings: PublishConfig = based) -> Any:
        text = card(gpt2_run(5), tmp_path, settings, "a/b")
        assert card_errors(text) == []
        return yaml.safe_load(text.split("---\n")[1]).get("base_model_relation")

    assert relation(SETTINGS) is None and relation() == "finetune"
    (tmp_path / "config.json").write_text('{"quantization_config": {"load_in_8bit": true}}')
    assert relation() == "quantized"
    (tmp_path / "adapter_config.json").write_text("{}")
    assert relation() == "adapter"
    assert "license is unknown" in card(gpt2_run(5), tmp_path, replace(based, license=None), "a/b")
    assert "license is unknown" not in card(gpt2_run(5), tmp_path, based, "a/b")


def test_data_sets_of_the_hub_are_named_with_their_commit(tmp_path: Path) -> None:
    sources = [
        {"split": s, "hub": "stanfordnlp/imdb", "subset": None, "commit": "e6281661"}
        for s in ("train", "test")
    ]
    run = replace(
        gpt2_run(5),
        data={"sources": sources},
        config={"data": {"path": "stanfordnlp/imdb", "subset": "plain_text"}},
    )
    made = metadata(run, tmp_path, SETTINGS, "a/b")
    assert made.datasets == ["stanfordnlp/imdb"]
    result = made.eval_results[0]
    assert (result.dataset_type, result.dataset_config, result.dataset_revision) == (
        "stanfordnlp/imdb",
        "plain_text",
        "e6281661",
    )


def test_the_loopback_hub_does_refuse_what_the_hub_refuses(tmp_path: Path) -> None:
    good = card(gpt2_run(5), tmp_path, replace(SETTINGS, base_model="a/base"), "a/b")
    wrong = {
        "license: apache-2.0": "license: my-own",
        "pipeline_tag: text-generation": "pipeline_tag: writing",
        "base_model: a/base": "base_model: /home/me",
        "type: python_docs": "type: python docs",
        "name: python_docs": "name: ''",
        "value: 61.34": "value: .nan",
        "- en\n": "- English\n",
        "type: text-generation": "type: writing",
        "type: perplexity": "kind: perplexity",
        "base_model_relation: finetune": "base_model_relation: child",
    }
    assert card_errors(good) == []
    for one, other in wrong.items():
        assert one in good and card_errors(good.replace(one, other, 1)), one


def test_a_run_without_scores_or_with_nan_still_has_a_card_that_the_hub_takes(tmp_path: Path) -> None:
    nothing = RunRecord(hftk="0.1.0", task="classification")
    nan = replace(
        gpt2_run(5), scores=[score("perplexity", math.nan, spread=0), score("loss", math.inf, spread=0)]
    )
    for run in (nothing, nan):
        text = card(run, tmp_path, PublishConfig(), "a/b")
        assert card_errors(text) == [] and "model-index" not in text and "## How to use it" in text


@pytest.mark.parametrize(
    "path",
    [
        "数据.csv",
        ".hidden.csv",
        "my texts (2)/a b.csv",
        "données/train.csv",
        "-",
        "C:\\me\\x.csv",
        "a/" * 30 + "train.jsonl",
    ],
)
def test_whatever_the_data_are_called_the_hub_takes_the_card(path: str, tmp_path: Path) -> None:
    text = card(replace(gpt2_run(5), config={"data": {"train": path}}), tmp_path, PublishConfig(), "a/b")
    assert card_errors(text) == [] and "model-index" in text


def test_text_of_the_data_cannot_break_the_card_or_its_code(tmp_path: Path) -> None:
    evil = '```\n---\nlicense: mit\n"""\n\'; import os # <script>|*'
    run = replace(
        gpt2_run(5),
        samples=[{"prompt": evil, "prediction": evil, "reference": evil}],
        command=f"python x.py --data.path '{evil}'",
    )
    text = card(run, tmp_path, PublishConfig(), "a/b")
    assert "license" not in yaml.safe_load(text.split("---\n")[1])
    compile(code_of(text), "card", "exec")


def test_limits_say_what_the_numbers_give_reason_for(tmp_path: Path) -> None:
    def limits(scores: list[Score], **changes: Any) -> str:
        return card(
            replace(gpt2_run(5), scores=scores, **changes), tmp_path, PublishConfig(), "a/b"
        ).partition("## Limits")[2]

    after, better, close = (
        score("perplexity", 60.0),
        score("perplexity", 50.0, when="baseline:bigram"),
        score("perplexity", 61.0, when="baseline:bigram"),
    )
    assert "bigram model does at least as well" in limits([after, better])
    assert "the difference may be chance" in limits([after, close])
    assert "no test split" in limits([replace(after, split="validation")]) and "no test split" not in limits(
        [after]
    )
    assert "312" in limits([after]) and "units" not in limits([replace(after, n=5000)])
    assert "random" in limits([after], model={"pretrained": False}) and "No held-out rows" in limits([])
    assert "12 rows" in limits(
        [after], data={"training": {"truncated_rows": 9, "max_length": 128}, "judged": {"truncated_rows": 3}}
    )


def test_energy_is_told_where_codecarbon_measured_it_and_nowhere_else(tmp_path: Path) -> None:
    assert "co2_eq_emissions" not in card(gpt2_run(5), tmp_path, PublishConfig(), "a/b")
    (tmp_path / "emissions.csv").write_text(
        "timestamp,emissions,energy_consumed\n2026-01-01,0.5,1\n2026-01-02,0.0021,0.0052\n"
    )
    text = card(gpt2_run(5), tmp_path, PublishConfig(), "a/b")
    assert (
        yaml.safe_load(text.split("---\n")[1])["co2_eq_emissions"]["emissions"] == 2.1
        and "0.0052 kWh" in text
    )
    (tmp_path / "emissions.csv").write_text("half a line")
    assert "co2_eq_emissions" not in card(gpt2_run(5), tmp_path, PublishConfig(), "a/b")
