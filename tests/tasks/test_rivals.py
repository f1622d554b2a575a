"""The model against its baselines on the same rows: tested, told in words, and only where the rows are the
same."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from made_classifiers import rows_of, task_of

from hftk.cli.compare import compare as compare_runs
from hftk.config import EvalConfig
from hftk.evaluation.evaluate import evaluate_baselines
from hftk.reports import render_html, render_markdown, summary_lines
from hftk.reports.record import RunRecord, save_record
from hftk.task import Outputs, Score, Splits
from hftk.tasks import class_predictions
from hftk.tasks.class_predictions import Answers
from hftk.tasks.labels import MULTI, REGRESSION, SINGLE
from hftk.tasks.significance import BaselineAnswers, compare, compare_with_baselines

CHANCE: dict[str, Any] = {"resamples": 300, "seed": 0}


def texts(count: int) -> list[str]:
    return [f"text {i}" for i in range(count)]


def single(count: int, right: int, rival_right: int) -> tuple[Any, Answers, BaselineAnswers]:
    """Rows of classes 0 and 1; the model has the first ``right`` rows right, the baseline the first
    ``rival_right``."""
    true = np.arange(count) % 2
    rows = rows_of(SINGLE, true.tolist(), texts(count))
    answer = lambda n: Answers(chosen=np.where(np.arange(count) < n, true, 1 - true))  # noqa: E731
    return rows, answer(right), BaselineAnswers(rows, {"tfidf": answer(rival_right)})


def test_a_clear_lead_is_a_real_difference() -> None:
    rows, found, rivals = single(100, 90, 60)
    [section] = compare_with_baselines(found, rivals, rows, **CHANCE)
    line = section["rows"][0]
    assert (line["score"], line["when"], line["model"], line["value"]) == (
        "accuracy",
        "baseline:tfidf",
        0.9,
        0.6,
    )
    assert line["difference"]["value"] == pytest.approx(0.3) and line["difference"]["interval"][0] > 0.15
    assert line["p_value"] == pytest.approx(2 / 301)
    assert "the model is better by 0.300" in section["note"] and "the difference is real" in section["note"]
    assert (
        "McNemar: the model alone has 30 rows right, TF-IDF + logistic regression alone 0, p = 1.86e-09."
        in section["note"]
    )


def test_one_row_more_is_no_real_difference() -> None:
    rows, found, rivals = single(100, 61, 60)
    [section] = compare_with_baselines(found, rivals, rows, **CHANCE)
    assert section["rows"][0]["p_value"] > 0.05 and "may be chance" in section["note"]


@pytest.mark.parametrize(("rows", "p_value"), [(1, None), (2, 0.5), (3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_on_a_handful_of_rows_no_lead_is_called_real_before_an_exact_test_could(
    rows: int, p_value: float | None
) -> None:
    table, found, rivals = single(rows, rows, 0)
    [section] = compare_with_baselines(found, rivals, table, **CHANCE)
    assert section["rows"][0]["p_value"] == p_value
    sets = rows_of(MULTI, [[0]] * rows, texts(rows))
    true = class_predictions.truth(sets, class_predictions.labels_in(sets)) > 0
    [section] = compare_with_baselines(
        Answers(chosen=true), BaselineAnswers(sets, {"tfidf": Answers(chosen=~true)}), sets, **CHANCE
    )
    assert section["rows"][0]["p_value"] == p_value
    assert ("is real" in section["note"]) == (p_value is not None and p_value < 0.05)


def test_equal_answers_are_equal() -> None:
    rows, found, rivals = single(40, 30, 30)
    [section] = compare_with_baselines(found, rivals, rows, **CHANCE)
    assert "equal" in section["note"] and section["rows"][0]["p_value"] == 1


def test_other_rows_are_not_compared() -> None:
    rows, found, rivals = single(10, 8, 6)
    fewer = rows.select(range(9))
    other = rows_of(SINGLE, rows["label"], [*texts(9), "another text"])
    relabelled = rows_of(SINGLE, [*list(rows["label"])[:9], 2], texts(10))
    assert compare_with_baselines(found, None, rows, **CHANCE) == []
    assert compare_with_baselines(Answers(chosen=found.chosen[:9]), rivals, fewer, **CHANCE) == []
    assert (
        compare_with_baselines(found, rivals, other, **CHANCE)
        == []
        == compare_with_baselines(found, rivals, relabelled, **CHANCE)
    )
    assert compare_with_baselines(
        found, rivals, rows_of(SINGLE, rows["label"], texts(10)), **CHANCE
    )  # equal rows from elsewhere


@pytest.mark.parametrize("resamples", [0, 1])
def test_one_row_or_no_resamples_is_compared_without_a_verdict(resamples: int) -> None:
    rows, found, rivals = single(1, 1, 0)
    [section] = compare_with_baselines(found, rivals, rows, resamples=resamples, seed=0)
    assert section["rows"][0]["p_value"] is None and "not tested" in section["note"]
    json.dumps(section)


def test_several_labels_go_by_micro_f1() -> None:
    sets = [[0], [1, 2], [], [0, 1, 2]] * 10
    rows = rows_of(MULTI, sets, texts(40))
    true = class_predictions.truth(rows, class_predictions.labels_in(rows)) > 0
    [section] = compare_with_baselines(
        Answers(chosen=true), BaselineAnswers(rows, {"tfidf": Answers(chosen=~true)}), rows, **CHANCE
    )
    assert section["rows"][0]["score"] == "f1_micro" and section["rows"][0]["difference"]["value"] == 1
    assert section["note"].count("is better by") == 1 and "McNemar" not in section["note"]


def test_numbers_go_by_pearson_and_a_constant_baseline_has_none() -> None:
    numbers = [float(i % 7) + 0.5 for i in range(50)]
    rows = rows_of(REGRESSION, numbers, texts(50))
    noise = np.random.default_rng(0).normal(size=50)
    rivals = BaselineAnswers(
        rows, {"majority": Answers(chosen=np.full(50, 3.0)), "tfidf": Answers(chosen=noise)}
    )
    [section] = compare_with_baselines(Answers(chosen=np.array(numbers) + noise / 10), rivals, rows, **CHANCE)
    lines = {(line["baseline"], line["score"]): line for line in section["rows"]}
    assert lines["TF-IDF + ridge regression", "pearson"]["p_value"] < 0.05
    assert ("the mean", "pearson") not in lines and (
        "the mean",
        "mse",
    ) in lines  # an undefined correlation has no test


def test_the_report_tests_as_hftk_compare_does(tmp_path: Any, capsys: Any) -> None:
    rows, found, rivals = single(60, 50, 41)
    folders = []
    for name, answers in (("model", found), ("tfidf", rivals.answers["tfidf"])):
        folder = tmp_path / name
        save_record(RunRecord(hftk="0", task="classification"), folder)
        chances = np.eye(3)[answers.chosen]
        lines = class_predictions.predictions(
            replace(answers, probabilities=chances), rows, class_predictions.labels_in(rows)
        )
        (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        folders.append(str(folder))
    compare_runs(Namespace(dir_a=folders[0], dir_b=folders[1], resamples=300, seed=0, json=True))
    told = {c["name"]: c for c in json.loads(capsys.readouterr().out)["comparisons"]}
    for one in compare(found, rivals.answers["tfidf"], rows, **CHANCE):
        other = told[one.name]
        if one.name == "accuracy":  # the command names classes by the answers: 2 of the 3 here
            assert (one.difference, list(one.interval)) == (other["difference"], other["interval"])
            mcnemar = 2 * 0.5**9  # 9 rows that only the model has right
            assert one.p_value == max(mcnemar, other["p_value"])


def test_evaluating_baselines_tokenizes_nothing_and_the_analysis_has_the_test() -> None:
    rows = rows_of(SINGLE, [0, 1] * 20, [f"{'good' if i % 2 else 'bad'} {i}" for i in range(40)])
    task = task_of()
    never = SimpleNamespace()  # a tokenizer that can do nothing
    scores = evaluate_baselines(
        task, never, Splits(train=rows, test=rows), EvalConfig(resamples=50), max_length=8
    )  # type: ignore[arg-type]
    assert {score.when for score in scores} == {"baseline:majority", "baseline:tfidf"}
    outputs = {"logits": np.eye(3)[list(rows["label"])]}
    section = task.analysis(
        Outputs(arrays=outputs, features=None, rows=rows, tokenizer=None, resamples=50, seed=0)
    )[0]  # type: ignore[arg-type]
    assert section["title"] == "Against the baselines"
    assert {line["when"] for line in section["rows"]} == {"baseline:majority", "baseline:tfidf"}
    assert (
        task_of().analysis(
            Outputs(arrays=outputs, features=None, rows=rows, tokenizer=None, resamples=50, seed=0)
        )[0]["title"]
        != section["title"]
    )  # type: ignore[arg-type]


def run_of(count: int, right: int, rival_right: int) -> RunRecord:
    rows, found, rivals = single(count, right, rival_right)
    of = {"after": found, "baseline:tfidf": rivals.answers["tfidf"]}
    scores = [
        replace(score, when=when, split="test")
        for when, answers in of.items()
        for score in class_predictions.scores(answers, rows, **CHANCE)
    ]
    return RunRecord(
        hftk="0",
        task="classification",
        scores=scores,
        analysis=compare_with_baselines(found, rivals, rows, **CHANCE),
    )


@pytest.mark.parametrize(
    ("right", "rival", "said"),
    [
        (90, 60, "and better than the TF-IDF baseline's 0.6000 by 0.30 ["),
        (60, 90, "but worse than the TF-IDF baseline's 0.9000 by 0.30 ["),
        (61, 60, ": no real difference (p = "),
        (60, 60, "and equal to the TF-IDF baseline's 0.6000"),
    ],
)
def test_the_closing_lines_say_whether_the_lead_is_real(right: int, rival: int, said: str) -> None:
    record = run_of(100, right, rival)
    line = summary_lines(record)[1]
    assert said in line and (": a real difference (p = 0.0066)." in line) == (abs(right - rival) == 30)
    assert "overlap" not in line and "[-" not in line.partition("real difference")[0].partition("by 0.30")[2]
    again = RunRecord.from_dict(json.loads(json.dumps(record.to_dict())))
    for page in (render_html(again), render_markdown(again)):
        assert "Against the baselines" in page and "McNemar" in page


def test_a_damaged_table_breaks_no_verdict() -> None:
    record = replace(
        run_of(100, 90, 60),
        analysis=[None, {"kind": "table"}, {"kind": "table", "rows": [None, 3, {"when": "baseline:tfidf"}]}],
    )
    rival = Score(
        name="accuracy", value=0.6, higher_is_better=True, n=100, when="baseline:tfidf", split="test"
    )
    assert (
        record.test_against(rival) is None
        and "above the TF-IDF baseline's 0.6000" in summary_lines(record)[1]
    )
