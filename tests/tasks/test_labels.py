"""Labels of every kind become classes in a stable order, and everything wrong with them is told at once, with
rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hftk import console
from hftk.config import DataConfig, InputError, TrainConfig
from hftk.data.load import load_splits
from hftk.task import Splits
from hftk.tasks.class_predictions import labels_in
from hftk.tasks.classification import Classification, ClassificationConfig
from hftk.tasks.labels import MULTI, REGRESSION, SINGLE, LabelColumn, class_name, find_labels, labels_of

Given = dict[str, list[Any]]


def write(
    folder: Path, split: str, labels: list[Any], ending: str = "jsonl", texts: list[str] | None = None
) -> str:
    """One row per label, with its own text unless ``texts`` are given."""
    texts = texts or [f"text {i} of {split}" for i in range(len(labels))]
    path = folder / f"{split}.{ending}"
    with path.open("w", encoding="utf-8", newline="") as file:
        if ending == "csv":
            csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
        else:
            file.writelines(
                json.dumps({"text": t, "label": v}, ensure_ascii=False) + "\n"
                for t, v in zip(texts, labels, strict=True)
            )
    return str(path)


def load(
    folder: Path, given: Given, ending: str = "jsonl", data: dict[str, Any] | None = None, **settings: Any
) -> Splits:
    for split, labels in given.items():
        write(folder, split, labels, ending)
    config = ClassificationConfig(data=DataConfig(path=str(folder), **(data or {})), **settings)
    return load_splits(config.data, Classification(config))


def refuse(
    folder: Path, given: Given, ending: str = "jsonl", data: dict[str, Any] | None = None, **settings: Any
) -> str:
    """The screen that the user sees; short, however many rows are wrong."""
    with pytest.raises(InputError) as caught:
        load(folder, given, ending, data, **settings)
    screen = str(caught.value).replace(f"{folder}/", "")
    for problem in caught.value.problems:
        assert problem.fix
    assert len(screen) < 700 * len(caught.value.problems) and len(caught.value.problems) <= 6
    return screen


# --- Kinds of labels


@pytest.mark.parametrize(
    "ending, labels, names, targets",
    [
        ("jsonl", ["pos", "neg", "pos"], ["neg", "pos"], [1, 0, 1]),
        ("jsonl", [" pos ", "neg", "pos"], ["neg", "pos"], [1, 0, 1]),  # blanks around a label mean nothing
        ("jsonl", [10, 9, 2], ["2", "9", "10"], [2, 1, 0]),
        ("jsonl", [-1, 1, 0], ["-1", "0", "1"], [0, 2, 1]),
        ("jsonl", [1.0, 0.0, 1.0], ["0", "1"], [1, 0, 1]),
        ("jsonl", [True, False, True], ["false", "true"], [1, 0, 1]),
        ("csv", [10, 9, 2], ["2", "9", "10"], [2, 1, 0]),
        ("csv", ["1.0", "0.0", "1.0"], ["0.0", "1.0"], [1, 0, 1]),
        ("csv", ["True", "False", "True"], ["False", "True"], [1, 0, 1]),
        ("jsonl", ["b", "10", "9"], ["9", "10", "b"], [2, 1, 0]),  # numbers come before texts
        ("jsonl", ["Ä", "a", "Z", "中", "é"], ["Z", "a", "Ä", "é", "中"], [2, 1, 0, 4, 3]),  # by code point
    ],
)
def test_one_label_per_row(
    tmp_path: Path, ending: str, labels: list[Any], names: list[str], targets: list[int]
) -> None:
    splits = load(tmp_path, {"train": labels, "test": labels[:1]}, ending)
    assert splits.train.features["label"].names == names
    assert list(splits.train["label"]) == targets and list(splits.test["label"]) == targets[:1]
    assert labels_in(splits.train).problem_type == splits.facts["labels"]["problem_type"] == SINGLE


@pytest.mark.parametrize(
    "ending, labels, separator, targets",
    [
        ("jsonl", [["joy", "love"], ["fear"], []], None, [[1, 2], [0], []]),
        ("jsonl", [[10, 9, 10], [2], []], None, [[1, 2], [0], []]),  # named twice is meant once
        ("jsonl", [[2.0], [1], [2, 3]], None, [[1], [0], [1, 2]]),
        ("jsonl", ["joy, love", "fear", "love"], ",", [[1, 2], [0], [2]]),
        ("csv", ["2|3|", "1", "3"], "|", [[1, 2], [0], [2]]),
        ("csv", ["joy, love", "fear", "love"], ",", [[1, 2], [0], [2]]),
    ],
)
def test_several_labels_per_row(
    tmp_path: Path, ending: str, labels: list[Any], separator: str | None, targets: list[list[int]]
) -> None:
    splits = load(tmp_path, {"train": labels, "test": labels[:1]}, ending, label_separator=separator)
    assert labels_in(splits.train).problem_type == MULTI and "list" in splits.facts["labels"]["reason"]
    assert [list(row) for row in splits.train["label"]] == targets


@pytest.mark.parametrize(
    "ending, labels, numbers",
    [
        ("jsonl", [0.5, 3, -1.25], [0.5, 3.0, -1.25]),
        ("csv", ["0.5", "3", " 1e-3"], [0.5, 3.0, 0.001]),
        ("jsonl", ["4.5", "2", "5.0"], [4.5, 2.0, 5.0]),
    ],
)
def test_numbers_that_are_not_whole_are_a_regression(
    tmp_path: Path, ending: str, labels: list[Any], numbers: list[float]
) -> None:
    splits = load(tmp_path, {"train": labels, "test": labels[:1]}, ending)
    assert labels_in(splits.train).problem_type == REGRESSION and list(splits.train["label"]) == numbers
    found = splits.facts["labels"]
    assert f"such as {numbers[0]:g}" in found["reason"]
    assert found["range"]["train"] == {
        "lowest": min(numbers),
        "mean": pytest.approx(sum(numbers) / 3),
        "highest": max(numbers),
    }


def test_whole_numbers_are_a_regression_when_asked(tmp_path: Path) -> None:
    splits = load(tmp_path, {"train": [1, 2, 5], "test": [7]}, problem_type=REGRESSION)
    assert list(splits.train["label"]) == [1.0, 2.0, 5.0] and list(splits.test["label"]) == [7.0]
    assert splits.facts["labels"]["reason"] == "as asked"


def test_fractions_are_classes_when_asked(tmp_path: Path) -> None:
    splits = load(tmp_path, {"train": ["0.5", "1.5", "0.5"], "test": ["1.5"]}, "csv", problem_type=SINGLE)
    assert splits.train.features["label"].names == ["0.5", "1.5"]


def test_the_problem_type_and_its_reason_are_printed_and_rows_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = load(tmp_path, {"train": ["a", "b", "a"], "validation": ["b"], "test": ["a", "a"]})
    assert (
        "problem_type: single_label_classification: each row has one label, a text" in capsys.readouterr().out
    )
    assert any(line.startswith("problem_type") for line in console.noted())
    counts = {"train": {"a": 2, "b": 1}, "validation": {"a": 0, "b": 1}, "test": {"a": 2, "b": 0}}
    assert splits.facts["labels"]["rows"] == counts and splits.facts["labels"]["classes"] == 2
    assert json.loads(json.dumps(splits.facts))["labels"] == splits.facts["labels"]


def test_the_order_of_classes_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    labels = ["b", "a", "ä", "C", "10", "9"]
    found = []
    for number, order in enumerate((labels, labels[::-1], labels[3:] + labels[:3])):
        (folder := tmp_path / str(number)).mkdir()
        found.append(load(folder, {"train": order, "test": ["a"]}).train.features["label"].names)
    assert found[0] == found[1] == found[2] == ["9", "10", "C", "a", "b", "ä"]


def test_class_names_do_not_depend_on_how_json_writes_a_number() -> None:
    assert [class_name(v) for v in (1, 1.0, True, "1", " x ", 0.5)] == ["1", "1", "true", "1", "x", "0.5"]


# --- Trouble

GOOD: Given = {"train": ["pos", "neg"] * 5, "validation": ["pos"], "test": ["neg", "pos"]}


def test_a_label_in_test_alone_is_told_with_its_rows_and_the_nearest_known_one(tmp_path: Path) -> None:
    screen = refuse(tmp_path, {**GOOD, "test": ["neg", "pso", "pso", "other"]})
    assert (
        "found others in test: pso in 2 rows (row 2 of test.jsonl, row 3 of test.jsonl); other in 1 row"
        in screen
    )
    assert (
        "did you mean pos?" in screen
        and "add training rows with them; the known labels are neg, pos" in screen
    )


def test_labels_that_the_fractions_put_into_test_alone_are_told(tmp_path: Path) -> None:
    labels = [f"rare {i}" if i % 10 == 0 else "often" for i in range(60)]
    screen = refuse(tmp_path, {"rows": labels}, data={"test_fraction": 0.5, "validation_fraction": 0.0})
    assert "found others in test: rare" in screen and "of rows.jsonl" in screen


def test_a_number_among_texts_is_told_with_its_row(tmp_path: Path) -> None:
    screen = refuse(tmp_path, {**GOOD, "train": ["pos", "neg", 0.5, "pos"]})
    assert (
        "found text in 6 rows, and number in 1 row (0.5 in row 3 of train.jsonl)" in screen
        and "in one way" in screen
    )


def test_a_fraction_among_words_of_a_csv_file_is_told_although_all_is_text_there(tmp_path: Path) -> None:
    screen = refuse(tmp_path, {**GOOD, "train": ["pos", "neg", "0.5", "pos", "nan"]}, "csv")
    assert (
        "found words in 6 rows and numbers in 2 rows ('0.5' in row 3 of train.csv, 'nan' in row 5 of"
        " train.csv)" in screen
    )
    assert "if it is right: --problem_type single_label_classification" in screen
    names = load(tmp_path, {}, problem_type=SINGLE).train.features["label"].names
    assert names == ["0.5", "nan", "neg", "pos"]


def test_words_among_numbers_of_a_csv_file_are_told(tmp_path: Path) -> None:
    screen = refuse(tmp_path, {"train": ["4.5", "3.25", "n/a", "2"], "test": ["1"]}, "csv")
    assert "found numbers in 2 rows and words in 1 row ('n/a' in row 3 of train.csv)" in screen


def test_whole_numbers_among_words_are_classes(tmp_path: Path) -> None:
    splits = load(tmp_path, {"train": ["0", "1", "2", "3 or more"], "test": ["1"]}, "csv")
    assert splits.train.features["label"].names == ["0", "1", "2", "3 or more"]


def test_one_number_written_in_two_ways_is_told(tmp_path: Path) -> None:
    assert "found 1 and 1.0" in refuse(tmp_path, {"train": ["1", "0", "1.0"], "test": ["1"]}, "csv")


def test_one_word_written_in_two_ways_is_told(tmp_path: Path) -> None:
    given: Given = {"train": ["Sport", "food", "sport", "SPORT "], "test": ["food"]}
    screen = refuse(tmp_path, given)
    assert (
        "found Sport and sport and SPORT" in screen and "--problem_type single_label_classification" in screen
    )
    assert load(tmp_path, given, problem_type=SINGLE).train.features["label"].names == [
        "SPORT",
        "Sport",
        "food",
        "sport",
    ]


def test_single_letters_may_differ_in_case_alone(tmp_path: Path) -> None:
    splits = load(tmp_path, {"train": ["a", "A", "b"], "test": ["a"]})
    assert splits.train.features["label"].names == ["A", "a", "b"]


@pytest.mark.parametrize("value", [0.5, 3.0])
def test_numbers_that_are_all_alike_teach_nothing(tmp_path: Path, value: float) -> None:
    screen = refuse(tmp_path, {"train": [value] * 4, "test": [1.5]}, problem_type=REGRESSION)
    assert (
        f"expected numbers that differ in the training rows, found {value:g} alone in column label" in screen
    )


def test_a_missing_label_is_told_together_with_a_share_that_leaves_a_split_empty(tmp_path: Path) -> None:
    path = write(tmp_path, "rows", ["a", None, "b"], "jsonl")
    config = ClassificationConfig(data=DataConfig(path=path))
    with pytest.raises(InputError) as caught:
        load_splits(config.data, Classification(config))
    settings = [problem.setting for problem in caught.value.problems]
    assert settings[0] == "data.columns.label" and "data.validation_fraction" in settings


def test_an_id_column_taken_for_the_label_is_told_once_and_shortly(tmp_path: Path) -> None:
    given = {"train": [f"id-{i}" for i in range(10_000)], "test": [f"other-{i}" for i in range(100)]}
    screen = refuse(tmp_path, given)
    assert (
        "found 10,000 in 10,000 training rows: label looks like an identifier" in screen
        and "and 9,992 more" in screen
    )
    assert (
        "--data.columns.label NAME" in screen
        and "if it is right: --problem_type single_label_classification" in screen
    )
    assert "found others" not in screen and "regression" not in screen and len(screen.splitlines()) == 2


def test_whole_numbers_that_are_all_different_may_be_meant_as_a_regression(tmp_path: Path) -> None:
    assert "--problem_type regression" in refuse(tmp_path, {"train": list(range(1000)), "test": [3]})


def test_many_classes_with_rows_enough_pass_and_those_without_pass_by_hand(tmp_path: Path) -> None:
    for name in ("enough", "few"):
        (tmp_path / name).mkdir()
    given: Given = {"train": [f"c{i % 100}" for i in range(300)], "test": ["c0"]}
    assert len(load(tmp_path / "enough", given).train.features["label"].names) == 100
    given = {"train": [f"c{min(i, 99)}" for i in range(299)], "test": ["c0"]}
    assert "found 100 in 299 training rows, 99 of them once" in refuse(tmp_path / "few", given)
    assert len(load(tmp_path / "few", given, problem_type=SINGLE).train.features["label"].names) == 100


def test_one_class_alone_is_told(tmp_path: Path) -> None:
    assert "at least 2 classes in the training rows, found one (pos)" in refuse(
        tmp_path, {"train": ["pos"] * 4, "test": ["pos"]}
    )


def test_missing_labels_are_told_with_rows_and_may_be_dropped(tmp_path: Path) -> None:
    given: Given = {**GOOD, "train": ["pos", float("nan"), "neg", None, "", "pos"]}
    screen = refuse(tmp_path, given)
    assert (
        "expected a label in every row, found 3 missing in column label (first: row 2 of train.jsonl, row 4"
        in screen
    )
    assert "--data.incomplete drop" in screen
    splits = load(tmp_path, given, data={"incomplete": "drop"})
    assert len(splits.train) == 3 and splits.facts["cleaned"]["train"]["missing"]["dropped"] == 3


def test_nan_in_numbers_is_told_and_infinity_too(tmp_path: Path) -> None:
    screen = refuse(tmp_path, {"train": [0.5, float("nan"), 1.5], "test": [1.0, float("inf")]})
    assert "found 1 missing in column label (first: row 2 of train.jsonl)" in screen
    assert (
        "expected numbers for regression in column label, found others in test, in 1 row (inf in row 2 of"
        " test.jsonl)" in screen
    )


def test_texts_in_a_regression_are_told(tmp_path: Path) -> None:
    given = {"train": ["0.5", "high", 2.5, True], "test": ["1"]}
    screen = refuse(tmp_path, given, problem_type=REGRESSION)
    assert "in 2 rows ('high' in row 2 of train.jsonl, True in row 4 of train.jsonl)" in screen


def test_blank_labels_are_told(tmp_path: Path) -> None:
    screen = refuse(tmp_path, {**GOOD, "train": ["pos", "  ", "neg", "pos"]})
    assert (
        "expected a label in every row, found 1 missing in column label (first: row 2 of train.jsonl)"
        in screen
    )


def test_lists_that_hold_something_else_are_told_with_rows(tmp_path: Path) -> None:
    given: Given = {"train": [["a"], ["b", None], [["a"]], ["a", 3], [""], [], ["b"]], "test": [["a"]]}
    screen = refuse(tmp_path, given)
    assert (
        "list of text in 3 rows, and list of NoneType and text in 1 row" in screen
        and "row 2 of train.jsonl" in screen
    )
    soft = {"train": [[0.1, 0.9], [0.75, 0.25]], "test": [[1, 0]]}
    assert "list of fraction in 2 rows ([0.1, 0.9] in row 1" in refuse(tmp_path, soft)


def test_lists_among_single_labels_and_single_labels_among_lists_are_told(tmp_path: Path) -> None:
    assert "text in 3 rows, and list of text in 1 row (['a', 'b'] in row 3" in refuse(
        tmp_path, {"train": ["a", "b", ["a", "b"]], "test": ["a"]}
    )
    assert "and text in 1 row ('a' in row 1 of test" in refuse(
        tmp_path, {"train": [["a"], ["b"]], "test": ["a"]}
    )


def test_dictionaries_are_told(tmp_path: Path) -> None:
    screen = refuse(tmp_path, {"train": [{"a": 1}, {"a": 2}], "test": [{"a": 1}]})
    assert "found no usable one, and dict in 3 rows ({'a': 1} in row 1 of" in screen


def test_a_zero_or_one_for_every_label_is_told(tmp_path: Path) -> None:
    given: Given = {"train": [[0, 1, 1], [1, 0, 0]], "test": [[0, 0, 0]]}
    assert "for each of 3 labels" in refuse(tmp_path, given)
    given = {"train": [[True, False, True], [False, False, False]], "test": [[False, True, True]]}
    assert "for each of 3 labels" in refuse(tmp_path, given)


def test_a_problem_type_that_the_labels_do_not_fit_is_told(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    screen = refuse(tmp_path / "a", {"train": ["a,b", "b"], "test": ["a"]}, problem_type=MULTI)
    assert '--label_separator ","' in screen
    screen = refuse(tmp_path / "b", {"train": [["a"], ["b"]], "test": [["a"]]}, problem_type=SINGLE)
    assert "--problem_type multi_label_classification" in screen


def test_all_trouble_is_on_one_screen(tmp_path: Path) -> None:
    write(tmp_path, "train", ["pos", "neg", 0.5, None, "pos"], texts=["one", "two", "three", "four", " "])
    write(tmp_path, "test", ["neg", "best", "pos"], texts=["five", "six", ""])
    screen = refuse(tmp_path, {})
    for part in (
        "expected text in every row, found 1 empty in column text (first: row 5 of train.jsonl)",
        "expected a label in every row, found 1 missing in column label (first: row 4 of train.jsonl)",
        "expected text in every row, found 1 empty in column text (first: row 3 of test.jsonl)",
        "number in 1 row (0.5 in row 3 of train.jsonl)",
        "found others in test: best in 1 row (row 2 of test.jsonl)",
    ):
        assert part in screen
    assert len(screen.splitlines()) == 10


@pytest.mark.parametrize("wrong", [0.5, "unseen", None, " ", {"a": 1}, [1]])
def test_ten_thousand_wrong_rows_fill_no_more_of_the_screen_than_one(tmp_path: Path, wrong: Any) -> None:
    given: Given = {**GOOD, "train": ["pos", "neg"] * 6000, "test": ["pos", *[wrong] * 10_000]}
    screen = refuse(tmp_path, given)
    assert "10,000" in screen and len(screen.splitlines()) == 2 and len(screen) < 400


def test_long_wrong_labels_are_cut(tmp_path: Path) -> None:
    screen = refuse(tmp_path, {**GOOD, "test": ["word " * 1000, 3]})
    assert len(screen) < 700


def test_settings_that_do_not_fit_the_labels_found_are_told(tmp_path: Path) -> None:
    given: Given = {"train": [0.5, 1.5, 2.5], "test": [1.5]}
    train = TrainConfig(metric_for_best_model="f1_macro", label_smoothing=0.1)
    screen = refuse(tmp_path, given, train=train, class_weights="balanced")
    assert "--train.label_smoothing" in screen and "--class_weights" in screen
    assert "f1_macro is no score of regression" in screen and "choose loss, pearson" in screen


# --- Labels of a model that is there already


def config_of(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{"architectures": ["BertForSequenceClassification"], "problem_type": None, **fields}
    )


def test_labels_of_a_model_are_those_of_its_config() -> None:
    named = labels_of(config_of(num_labels=2, id2label={0: "b", 1: "a"}, problem_type=SINGLE))
    assert named is not None and named.names == ("b", "a") and named.outputs == 2
    unnamed = labels_of(config_of(num_labels=3, id2label={i: f"LABEL_{i}" for i in range(3)}))
    assert unnamed is not None and (unnamed.problem_type, unnamed.names) == (
        SINGLE,
        ("LABEL_0", "LABEL_1", "LABEL_2"),
    )
    number = labels_of(config_of(num_labels=1, id2label={0: "LABEL_0"}))
    assert number is not None and (number.problem_type, number.names, number.outputs) == (REGRESSION, (), 1)
    assert (
        labels_of(config_of(architectures=["BertForMaskedLM"])) is None
        and labels_of(config_of(architectures=None)) is None
    )


def test_rows_are_held_against_the_labels_of_a_model_in_its_own_order() -> None:
    known = labels_of(config_of(num_labels=2, id2label={0: "b", 1: "a"}, problem_type=SINGLE))
    rows = {"rows": LabelColumn(["a", "b", "c"], [("x.csv", i) for i in (1, 2, 3)])}
    labels, problems = find_labels(rows, asked="auto", separator=None, column="label", known=known)
    assert labels is known and "c in 1 row (row 3 of x.csv)" in problems[0].message


# --- Several labels in one text, splits without labels, rare classes


def test_texts_that_join_labels_of_other_rows_are_asked_about(tmp_path: Path) -> None:
    given = {"train": ["joy", "love", "joy,love", "fear", "joy"], "test": ["joy"]}
    screen = refuse(tmp_path, given)
    assert (
        "join several labels by ','" in screen
        and '--label_separator ","' in screen
        and "row 3 of train.jsonl" in screen
    )
    splits = load(tmp_path, given, label_separator=",")
    assert labels_in(splits.train).problem_type == MULTI and splits.train["label"][2] == [1, 2]
    by_hand = load(tmp_path, given, problem_type=SINGLE)
    assert labels_in(by_hand.train).names == ("fear", "joy", "joy,love", "love")


def test_a_comma_in_a_class_name_is_no_question(tmp_path: Path) -> None:
    splits = load(tmp_path, {"train": ["Arts, Music", "Sports", "Sports", "Arts, Music"], "test": ["Sports"]})
    assert labels_in(splits.train).names == ("Arts, Music", "Sports")


def test_lists_written_as_text_in_a_csv_file_are_lists(tmp_path: Path) -> None:
    splits = load(tmp_path, {"train": ['["a", "b"]', "['b']", "[]"], "test": ["['a']"]}, "csv")
    assert labels_in(splits.train).problem_type == MULTI and list(splits.train["label"]) == [[0, 1], [1], []]


def test_with_a_separator_an_empty_cell_is_a_row_without_labels(tmp_path: Path) -> None:
    splits = load(tmp_path, {"train": ["a;b", "", "b"], "test": ["", "a"]}, "csv", label_separator=";")
    assert list(splits.train["label"]) == [[0, 1], [], [1]] and list(splits.test["label"]) == [[], [0]]  # type: ignore[index]


def test_a_test_split_without_any_label_is_left_out(tmp_path: Path) -> None:
    splits = load(tmp_path, {"train": ["a", "b", "a", "b"], "validation": ["a"], "test": [None, None]})
    assert splits.test is None and len(splits.validation or ()) == 1
    assert any(
        "the test split is left out: none of its 2 rows has a label" in line for line in console.noted()
    )


def test_rare_classes_stay_in_training_when_the_split_is_by_fractions(tmp_path: Path) -> None:
    labels = ["a", "b"] * 200 + [f"rare {i}" for i in range(8)]
    for seed in range(6):
        splits = load(
            tmp_path, {"train": labels}, data={"seed": seed, "validation_fraction": 0.2, "test_fraction": 0.2}
        )
        assert len(labels_in(splits.train).names) == 10
        moved = sum(splits.facts["rare"].values())
        assert (
            sum(len(part or ()) for part in (splits.train, splits.validation, splits.test)) == 408
            and moved <= 8
        )
    assert splits.facts["proof"]["overlap"] == 0


def test_a_temperature_needs_a_validation_split(tmp_path: Path) -> None:
    screen = refuse(tmp_path, {"train": ["a", "b", "a"], "test": ["a"]}, temperature_scaling=True)
    assert "the temperature is fitted on a validation split" in screen
