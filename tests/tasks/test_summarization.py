"""Summarization: ROUGE by name, sentences in any script, and leading sentences as baselines."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

import hftk
from hftk.task import Outputs, Splits
from hftk.tasks.summarization import split_sentences


def task_of(**settings: Any) -> hftk.Summarization:
    return hftk.Summarization(hftk.SummarizationConfig(**settings))


SENTENCES = {
    "One. Two! Three?": ["One.", "Two!", "Three?"],
    "It costs 3.50 a piece, e.g. here. Cheap": ["It costs 3.50 a piece, e.g.", "here.", "Cheap"],
    "火车八点到。我们走吧！好": ["火车八点到。", "我们走吧！", "好"],
    "他说：“走吧。”我们走了。": ["他说：“走吧。”", "我们走了。"],
    "ट्रेन आई। हम चले।": ["ट्रेन आई।", "हम चले।"],
    "هل وصل القطار؟ نعم.": ["هل وصل القطار؟", "نعم."],
    "A: hello\nB: hi there. Bye\n\n": ["A: hello", "B: hi there.", "Bye"],
    "no end": ["no end"],
    "...": ["..."],
    "": [""],
}


@pytest.mark.parametrize("text", SENTENCES)
def test_sentences_end_where_readers_see_an_end(text: str) -> None:
    assert split_sentences(text) == SENTENCES[text]


def test_the_baselines_are_the_first_sentence_the_first_three_and_the_longest() -> None:
    rows = Dataset.from_dict({"source": ["A b. C d e f. G. H.", "Only one"], "target": ["A b.", "one"]})
    assert task_of().systems(rows) == {
        "lead_1": ["A b.", "Only one"],
        "lead_3": ["A b. C d e f. G.", "Only one"],
        "longest_sentence": ["C d e f.", "Only one"],
    }
    scores = task_of().baselines(
        Splits(train=rows), Outputs(features=None, rows=rows, tokenizer=None, resamples=20, seed=0)
    )  # type: ignore[arg-type]
    assert {score.when for score in scores} == {
        "baseline:lead_1",
        "baseline:lead_3",
        "baseline:longest_sentence",
    }
    value = {(score.when, score.name): score.value for score in scores}
    # lead_1: row 1 perfect; row 2 has one word of two: F1 2/3
    assert value["baseline:lead_1", "rouge1"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert all(score.interval is not None for score in scores)


def test_scores_are_those_of_rouge_score_and_a_stem_counts_where_it_is_asked_for() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    said = ["the cats were sitting", "a dog barked"]
    right = ["the cat sits", "dogs bark"]
    rows = Dataset.from_dict({"source": ["x", "y"], "target": right})
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    for stem in (False, True):
        reference = RougeScorer(names, use_stemmer=stem)
        expected = [
            [reference.score(t, p)[name].fmeasure for t, p in zip(right, said, strict=True)] for name in names
        ]
        found = task_of(stem=stem).text_scores(said, rows, resamples=0, seed=0)
        assert [score.name for score in found] == names
        assert [score.value for score in found] == pytest.approx(
            [100 * sum(v) / 2 for v in expected], abs=1e-9
        )
        assert task_of(stem=stem).sentence_scores(said, rows).tolist() == pytest.approx(
            [100 * v for v in expected[2]], abs=1e-9
        )


@pytest.mark.parametrize(
    "text", ["火车八点钟到达车站", "電車は八時に駅に着きます", "รถไฟมาถึงแปดโมง", "यह ट्रेन आठ बजे आती है"]
)
def test_a_perfect_summary_scores_100_in_every_script(text: str) -> None:
    rows = Dataset.from_dict({"source": ["x"], "target": [text]})
    assert [
        score.value for score in task_of().text_scores([text], rows, resamples=0, seed=0)
    ] == pytest.approx([100] * 4)


def test_of_several_references_the_best_one_counts() -> None:
    rows = Dataset.from_dict(
        {"source": ["x"], "target": ["nothing alike"], "references": [["a b c", "one two three"]]}
    )
    found = {
        score.name: score.value
        for score in task_of().text_scores(["one two three"], rows, resamples=0, seed=0)
    }
    assert set(found.values()) == {100.0}


def test_columns_go_by_their_usual_names() -> None:
    config = hftk.DataConfig(validation_fraction=0.0, test_fraction=0.0)
    rows = [{"dialogue": f"text {i}", "summary": f"t {i}", "id": str(i)} for i in range(9)]
    train = hftk.load_splits(config, task_of(), rows).train
    assert sorted(train.column_names) == ["source", "target"] and set(train["target"]) == {
        f"t {i}" for i in range(9)
    }
