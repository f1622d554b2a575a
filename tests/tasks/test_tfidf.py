"""Baselines score what can be worked out, learn what can be learnt from words, and help to find labels that
are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, List, Value
from datasets import Features as Types

from hftk import console
from hftk.config import ModelConfig
from hftk.models.load import load_model
from hftk.task import Outputs, Splits
from hftk.tasks import label_errors, tfidf
from hftk.tasks.class_predictions import Answers, labels_in, scores, truth
from hftk.tasks.classification import Classification, ClassificationConfig
from hftk.tasks.labels import MULTI, REGRESSION, SINGLE
from hftk.tasks.tfidf import Majority, TfIdf, cross_validate, fit_tfidf

NAMES = ["cat", "dog", "fish"]
WORDS = {
    "cat": "purrs meows whiskers mouse",
    "dog": "barks fetches kennel bone",
    "fish": "swims gills water coral",
}


def rows_of(
    texts: Sequence[str],
    labels: Sequence[Any],
    pairs: Sequence[str] | None = None,
    names: Sequence[str] = NAMES,
) -> Dataset:
    """The kind of problem follows from the first label."""
    classes = ClassLabel(names=list(names))
    first = labels[0]
    kind = (
        List(classes)
        if isinstance(first, list)
        else Value("float64")
        if isinstance(first, float)
        else classes
    )
    table = {"text": list(texts)} | ({"text_pair": list(pairs)} if pairs is not None else {})
    return Dataset.from_dict(
        {**table, "label": list(labels)},
        features=Types({**{r: Value("string") for r in table}, "label": kind}),
    )


def animals(count: int, seed: int = 0) -> Dataset:
    """Rows whose words tell the class, among words that tell nothing."""
    r = np.random.default_rng(seed)
    labels = r.integers(0, 3, count).tolist()
    noise = [f"word{i}" for i in range(30)]
    texts = [
        " ".join([*r.choice(noise, 3), *r.choice(WORDS[NAMES[label]].split(), 2), str(i)])
        for i, label in enumerate(labels)
    ]
    return rows_of(texts, labels)


def values(answers: Answers, rows: Dataset) -> dict[str, float]:
    return {score.name: score.value for score in scores(answers, rows, resamples=0, seed=0)}


# --- Majority


def test_the_majority_scores_the_share_of_its_class() -> None:
    train, test = rows_of(list("abcde"), [1, 1, 1, 0, 2]), rows_of(list("vwxyz"), [1, 0, 0, 2, 1])
    found = values(Majority(train).answer(test), test)
    assert found["accuracy"] == pytest.approx(2 / 5) and found["balanced_accuracy"] == pytest.approx(1 / 3)
    assert found["f1_macro"] == pytest.approx((2 * 2 / (5 + 2)) / 3) and found["matthews_corrcoef"] == 0


def test_the_majority_of_several_labels_is_the_most_frequent_set() -> None:
    train, test = rows_of(list("abcd"), [[0], [0, 2], [0, 2], []]), rows_of(list("xyz"), [[0, 2], [0], [1]])
    answer = Majority(train).answer(test)
    assert answer.chosen.tolist() == [[True, False, True]] * 3 and answer.probabilities is not None
    assert answer.probabilities[0].tolist() == pytest.approx([0.75, 0, 0.5])
    assert values(answer, test)["subset_accuracy"] == pytest.approx(1 / 3)


def test_the_majority_of_numbers_is_their_mean() -> None:
    train, test = rows_of(list("abc"), [0.0, 1.0, 5.0]), rows_of(list("xy"), [1.0, 5.0])
    answer = Majority(train).answer(test)
    assert answer.chosen.tolist() == [2.0, 2.0] and values(answer, test)["mse"] == pytest.approx((1 + 9) / 2)


# --- TF-IDF


def test_words_that_tell_the_class_are_learnt() -> None:
    train, test = animals(150), animals(60, seed=1)
    found = values(fit_tfidf(Splits(train=train)).answer(test), test)
    assert found["accuracy"] > 0.95 > 0.6 > values(Majority(train).answer(test), test)["accuracy"]


def test_probabilities_sum_to_one_and_an_absent_class_has_none() -> None:
    train = rows_of(["purrs", "barks", "meows", "bone"], [0, 1, 0, 1])
    found = fit_tfidf(Splits(train=train)).scores(["purrs bone", "nothing known"], None)
    assert found.shape == (2, 3) and found.sum(1) == pytest.approx([1, 1]) and found[:, 2].tolist() == [0, 0]


def test_scripts_without_blanks_are_told_by_their_characters() -> None:
    good, bad = (
        ["房间很干净，服务很好", "早餐很好吃，很满意", "服务好，下次还来"],
        ["房间很脏，太差了", "服务差，不满意", "早餐太差，再也不来"],
    )
    train = rows_of(good + bad, [0] * 3 + [1] * 3)
    assert fit_tfidf(Splits(train=train)).answer(
        rows_of(["这里很好", "这里太差"], [0, 1])
    ).chosen.tolist() == [0, 1]


def test_texts_without_a_word_are_no_crash() -> None:
    train = rows_of(["!!!", "???", "!!", "??"], [0, 1, 0, 1])
    assert fit_tfidf(Splits(train=train)).answer(rows_of(["!", "?"], [0, 1])).chosen.tolist() == [0, 1]


def test_pairs_are_told_by_what_they_share() -> None:
    r = np.random.default_rng(0)
    words = [f"w{i}" for i in range(40)]

    def make(count: int) -> Dataset:
        labels = r.integers(0, 2, count).tolist()
        first = [list(r.choice(words, 6)) for _ in labels]
        second = [
            list(r.permutation(a)) if label else list(r.choice(words, 6))
            for a, label in zip(first, labels, strict=True)
        ]
        return rows_of([" ".join(a) for a in first], labels, [" ".join(b) for b in second])

    train, test = make(200), make(60)
    assert values(fit_tfidf(Splits(train=train)).answer(test), test)["accuracy"] > 0.85


def test_numbers_are_learnt_by_ridge_regression() -> None:
    texts = [" ".join(["good"] * a + ["bad"] * b) for a in range(4) for b in range(4) if a + b]
    train = rows_of(texts, [float(text.count("good") - text.count("bad")) for text in texts])
    found = values(fit_tfidf(Splits(train=train)).answer(train), train)
    assert found["pearson"] > 0.8 and found["r2"] > 0.5


def several(count: int, seed: int) -> Dataset:
    """Each row has the rare label 0 with the word rare, half of the time, and label 1 with the word often."""
    r = np.random.default_rng(seed)
    texts, labels = [], []
    for i in range(count):
        said = [word for word, share in (("rare", 0.2), ("often", 0.6)) if r.random() < share]
        texts.append(" ".join([*said, f"n{i}"]))
        labels.append(
            [n for n, word in enumerate(("rare", "often")) if word in said and (n or r.random() < 0.5)]
        )
    if not labels[0]:
        texts, labels = texts[::-1], labels[::-1]
    return rows_of(texts, labels)


def test_thresholds_of_several_labels_are_tuned_on_the_validation_split_alone() -> None:
    train, validation, test = several(200, 0), several(200, 1), several(200, 2)
    plain = fit_tfidf(Splits(train=train, validation=validation))
    tuned = fit_tfidf(Splits(train=train, validation=validation), tune_thresholds=True)
    np.testing.assert_array_equal(
        plain.scores(list(test["text"]), None), tuned.scores(list(test["text"]), None)
    )
    assert (
        values(tuned.answer(validation), validation)["f1_macro"]
        > values(plain.answer(validation), validation)["f1_macro"]
    )
    untuned = fit_tfidf(Splits(train=train), tune_thresholds=True)
    assert np.array_equal(untuned.answer(test).chosen, plain.answer(test).chosen)


def test_one_label_that_may_be_absent_is_learnt() -> None:
    train = rows_of(
        ["spam offer", "hello you", "offer now", "hello there"], [[0], [], [0], []], names=["spam"]
    )
    answer = fit_tfidf(Splits(train=train)).answer(train)
    assert answer.probabilities is not None and answer.probabilities.shape == (4, 1)
    assert answer.chosen[:, 0].tolist() == [True, False, True, False]


def test_large_sets_are_thinned_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfidf, "MOST_ROWS", 90)
    rows = animals(300)
    by_class = rows.select(np.argsort(rows["label"], kind="stable"))  # the first 90 rows are cats
    found = values(fit_tfidf(Splits(train=by_class)).answer(rows), rows)
    assert (
        found["accuracy"] > 0.9
        and "fitted on 90 of 300 training rows, drawn at random" in console.noted()[-1]
    )


def test_the_task_names_its_baselines_and_gives_intervals() -> None:
    train, test = animals(90), animals(40, seed=1)
    task = Classification(ClassificationConfig())
    found = task.baselines(
        Splits(train=train), Outputs(features=None, rows=test, tokenizer=None, resamples=50, seed=0)
    )  # type: ignore[arg-type]
    accuracy = {score.when: score for score in found if score.name == "accuracy"}
    assert set(accuracy) == {"baseline:majority", "baseline:tfidf"}
    share = np.mean(truth(test, labels_in(test)) == np.bincount(truth(train, labels_in(train))).argmax())
    assert accuracy["baseline:majority"].value == pytest.approx(share)
    assert all(
        score.interval and score.interval[0] <= score.value <= score.interval[1]
        for score in accuracy.values()
    )


# --- Cross-validation


def test_out_of_fold_answers_are_of_models_that_have_not_seen_the_row() -> None:
    """Texts whose only word stands nowhere else: a model that had seen the row would know the answer."""
    rows = rows_of([f"unique{i}" for i in range(60)], np.random.default_rng(0).integers(0, 3, 60).tolist())
    true = truth(rows, labels_in(rows))
    seen = TfIdf(list(rows["text"]), None, true, labels_in(rows)).scores(list(rows["text"]), None)
    assert (seen.argmax(1) == true).mean() == 1 and (cross_validate(rows).argmax(1) == true).mean() < 0.6


def test_out_of_fold_answers_are_good_where_words_tell_and_the_same_each_time() -> None:
    rows = animals(150)
    found = cross_validate(rows)
    assert (found.argmax(1) == truth(rows, labels_in(rows))).mean() > 0.9 and found.sum(1) == pytest.approx(
        np.ones(150)
    )
    np.testing.assert_array_equal(found, cross_validate(rows))


@pytest.mark.parametrize(
    "labels, shape", [([[0], [], [1], [0, 1], []] * 4, (20, 3)), ([0.5, 1.0, 2.0, 0.0] * 5, (20,))]
)
def test_out_of_fold_answers_of_other_kinds_have_their_shape(
    labels: list[Any], shape: tuple[int, ...]
) -> None:
    found = cross_validate(rows_of([f"text {i % 7}" for i in range(20)], labels))
    assert found.shape == shape and np.isfinite(found).all()


def test_where_one_class_alone_was_seen_it_is_the_answer() -> None:
    rows = rows_of(["a b", "a c", "d e"], [1, 1, 1])
    assert cross_validate(rows).tolist() == [[0, 1, 0]] * 3
    assert cross_validate(rows_of(["a", "b"], [0, 1])).argmax(1).tolist() == [1, 0]  # fewer rows than folds


# --- Suspicious labels


def logits_for(classes: np.ndarray, sure: float = 2.0) -> np.ndarray:
    return sure * np.eye(3)[classes]


def flip(rows: Dataset, which: Sequence[int]) -> Dataset:
    wrong = [(label + 1) % 3 if i in which else label for i, label in enumerate(rows["label"])]
    return rows_of(list(rows["text"]), wrong)


def test_planted_wrong_labels_are_found_and_stand_first() -> None:
    clean = animals(200)
    planted = [3, 50, 77, 120, 199]
    rows = flip(clean, planted)
    right = truth(clean, labels_in(clean))

    def look(split: str, indices: Any = None) -> Any:
        assert split == "train" and indices is None  # few enough rows: all
        return rows, {"logits": logits_for(right)}

    (section,) = label_errors.find_label_errors(Splits(train=rows), look, most=20)
    lines = section["rows"]
    assert {line["row"] for line in lines[:5]} == set(planted) and section["split"] == "train"
    for line in lines[:5]:
        assert (
            line["prediction"]
            == NAMES[clean["label"][line["row"]]]
            != line["label"]
            == NAMES[rows["label"][line["row"]]]
        )
        assert line["text"] == clean["text"][line["row"]] and line["probability_of_label"] < 0.5
    doubts = [line["probability_of_label"] for line in lines]
    assert doubts == sorted(doubts)
    (short,) = label_errors.find_label_errors(Splits(train=rows), look, most=2)
    assert len(short["rows"]) == 2 and short["note"].startswith(f"{len(lines)} of 200")


def test_one_opinion_alone_makes_no_suspicion() -> None:
    clean = animals(200)
    rows = flip(clean, [3, 50])
    given = truth(rows, labels_in(rows))
    assert not label_errors.find_label_errors(
        Splits(train=rows), lambda *_: (rows, {"logits": logits_for(given)}), most=20
    )[0]["rows"]
    clean_truth = truth(clean, labels_in(clean))
    off = (clean_truth + 1) % 3  # the model believes nothing, the words are right
    sections = label_errors.find_label_errors(
        Splits(train=clean), lambda *_: (clean, {"logits": logits_for(off)}), most=20
    )
    assert len(sections[0]["rows"]) < 5


def test_the_label_proposed_is_never_the_one_that_is_doubted() -> None:
    own, other = np.array([[0.45, 0.55, 0.0]]), np.array([[0.45, 0.0, 0.55]])
    belief, label = label_errors._single(np.array([0]), own, other)
    assert belief.tolist() == pytest.approx([0.45]) and label[0] != 0


def test_of_several_labels_the_least_believed_decision_is_told() -> None:
    true = np.array([[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0]])
    own = np.array([[0.1, 0.2, 0.1], [0.9, 0.8, 0.1], [0.9, 0.8, 0.1], [0.3, 0.7, 0.1]])
    other = np.array([[0.3, 0.1, 0.1], [0.9, 0.9, 0.1], [0.9, 0.2, 0.1], [0.4, 0.7, 0.1]])
    belief, label, probability = label_errors._several(true, own, other, None)
    assert belief.tolist() == pytest.approx([0.2, 0.15, np.inf, np.inf]) and label[:2].tolist() == [0, 1]
    assert probability[:2].tolist() == pytest.approx([0.2, 0.15])


def test_decisions_about_several_labels_go_by_tuned_thresholds() -> None:
    true = np.array([[1.0], [0], [1], [1], [0], [0], [0]])
    own = np.array(
        [[0.1], [0.3], [0.3], [0.3], [0.05], [0.05], [0.05]]
    )  # a rare label: the model never reaches 0.5
    other = np.array(
        [[0.1], [0.4], [0.45], [0.38], [0.1], [0.1], [0.1]]
    )  # best F1 with a threshold below 0.38
    belief, _, probability = label_errors._several(true, own, other, None)
    assert np.isfinite(belief).tolist() == [True, False, False, False, False, False, False]
    belief, label, probability = label_errors._several(true, own, other, [0.2])
    assert (
        np.isfinite(belief).tolist() == [True, True, False, False, False, False, False]
        and label.tolist() == [0] * 7
    )
    assert probability[:2].tolist() == pytest.approx([0.1, 0.65])  # of the decision: present, and absent
    assert (belief[:2] < 0.5).all()


def test_a_doubt_about_several_labels_needs_to_be_as_sure_as_of_rows_labelled_so() -> None:
    true = np.array([[1.0], [1], [0], [0], [0]])
    for probability, doubted in ((0.79, False), (0.81, True)):
        opinion = np.array(
            [[0.7], [0.9], [probability], [0.1], [0.1]]
        )  # the mean of those that have it is 0.8
        belief, _, _ = label_errors._several(true, opinion, opinion, None)
        assert np.isfinite(belief).tolist() == [False, False, doubted, False, False]
    never = label_errors._several(np.zeros((3, 1)), np.full((3, 1), 0.9), np.full((3, 1), 0.9), None)
    assert not np.isfinite(never[0]).any()  # nothing says how sure one is of a label that no row has


@pytest.mark.parametrize("threshold", [0.0, 1e-9, 0.2, 0.5, 0.999, 1.0])
def test_a_probability_is_centred_at_its_threshold_and_keeps_its_order(threshold: float) -> None:
    probabilities = np.sort(
        np.append(np.random.default_rng(0).random(200), [0.0, threshold, np.nextafter(threshold, 0), 1.0])
    )[:, None]
    probabilities = probabilities.clip(0, 1)
    found = label_errors._centred(probabilities, np.array([threshold]))
    assert (np.diff(found[:, 0]) >= 0).all() and (found >= 0).all() and (found <= 1).all()
    assert ((found >= 0.5) == (probabilities >= threshold)).all()


def test_planted_missing_labels_of_several_are_found() -> None:
    r = np.random.default_rng(0)
    sets = [[i for i in range(3) if r.random() < 0.5] for _ in range(200)]
    texts = [
        " ".join([*(r.choice(WORDS[NAMES[i]].split()) for i in row), f"n{n}"]) for n, row in enumerate(sets)
    ]
    first = next(i for i, row in enumerate(sets) if len(row) == 2)
    given = [row[1:] if i == first else row for i, row in enumerate(sets)]
    rows = rows_of(texts, given)
    present = np.array([[i in row for i in range(3)] for row in sets])
    outputs = {"logits": np.where(present, 3.0, -3.0), "chosen": present}
    (section,) = label_errors.find_label_errors(Splits(train=rows), lambda *_: (rows, outputs), most=20)
    (tuned,) = label_errors.find_label_errors(
        Splits(train=rows), lambda *_: (rows, outputs), most=20, thresholds=[0.1, 0.9, 0.5]
    )
    assert tuned["rows"][0]["row"] == first
    line = section["rows"][0]
    assert (
        line["row"] == first
        and line["prediction"] == NAMES[sets[first][0]]
        and line["label"] == NAMES[sets[first][1]]
    )


def test_numbers_have_no_suspicious_labels() -> None:
    def look(split: str, indices: Any = None) -> Any:
        raise AssertionError("no forward pass is needed")

    assert label_errors.find_label_errors(Splits(train=rows_of(["a"], [0.5])), look, most=20) == []


def test_finish_looks_for_suspicious_labels_unless_told_not_to() -> None:
    rows = animals(30)
    task = Classification(ClassificationConfig(suspicious_labels=0))
    fields = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 1, "intermediate_size": 16}
    model, _ = load_model(ModelConfig(size="tiny", config=fields, vocab_size=100), task, Splits(train=rows))
    assert task.after_training(model, Splits(train=rows), lambda *_: None) == []  # type: ignore[arg-type, return-value]
    task = Classification(ClassificationConfig())
    right = truth(rows, labels_in(rows))
    sections = task.after_training(
        model, Splits(train=rows), lambda *_: (rows, {"logits": logits_for(right)})
    )
    assert [section["title"] for section in sections] == ["Suspicious labels"] and not sections[0]["rows"]


def test_the_kinds_are_told_from_the_columns_types() -> None:
    found = [labels_in(rows_of(["a"], [label])).problem_type for label in (0, [0], 0.5)]
    assert found == [SINGLE, MULTI, REGRESSION]


def test_conflicting_labels_are_shown_with_split_and_row() -> None:
    pair = {
        "first": {"text": "a", "label": "x"},
        "other": {"text": "A", "label": "y"},
        "places": [["train", "train.csv", 3], ["test", "test.csv", 7]],
    }
    facts = {
        "conflicts": {"train": {"rows": 0, "examples": []}, "train and test": {"rows": 1, "examples": [pair]}}
    }
    (section,) = label_errors.find_conflicts(Splits(train=animals(3), facts=facts))
    assert section["rows"] == [
        {
            "text": "a",
            "label": "x",
            "place": "train: row 3 of train.csv",
            "other": "y",
            "other_place": "test: row 7 of test.csv",
        }
    ]
    assert "another label: 1 in train and test." in section["note"]
    assert label_errors.find_conflicts(Splits(train=animals(3))) == []


def test_a_training_split_of_one_class_has_a_baseline_that_answers_it() -> None:
    train, test = rows_of(["cat purr", "cat mew"], [1, 1]), animals(6)
    scores = Classification(ClassificationConfig()).baselines(
        Splits(train=train),
        Outputs(features=None, rows=test, tokenizer=None, resamples=0, seed=0),  # type: ignore[arg-type]
    )
    accuracy = {score.when: score.value for score in scores if score.name == "accuracy"}
    assert (
        accuracy["baseline:tfidf"] == accuracy["baseline:majority"] == np.mean(np.array(test["label"]) == 1)
    )


def test_rows_of_a_sorted_file_that_lack_classes_are_noted(capsys: pytest.CaptureFixture[str]) -> None:
    Classification(ClassificationConfig()).model_settings(
        Splits(train=rows_of(["cat purr", "cat mew"], [1, 1]))
    )
    assert "hold 1 of the 3 classes" in capsys.readouterr().out
    Classification(ClassificationConfig()).model_settings(Splits(train=animals(9)))
    assert "classes" not in capsys.readouterr().out
