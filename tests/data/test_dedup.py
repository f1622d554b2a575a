from __future__ import annotations

from hftk.data.dedup import conflicts, drop_repeats, keys_of, normalized
from hftk.data.tables import Part
from hftk.task import Column

COLUMNS = {"text": Column(usual_names=()), "label": Column(usual_names=(), kind="label", identity=False)}


def places(table):
    return [("rows", row) for row in range(1, len(next(iter(table.values()))) + 1)]


def test_normalization_folds_case_width_and_white_space():
    assert normalized(" ＨＥＬＬＯ \n\t Straße ") == "hello strasse"
    assert normalized("ﬁn") == "fin"


def test_rows_are_the_same_by_their_normalized_inputs_alone():
    keys = keys_of({"text": ["A b", "a  B", "a c"], "label": [0, 1, 0]}, COLUMNS)
    assert keys[0] == keys[1] != keys[2]


def test_moving_a_letter_across_columns_gives_another_key():
    two = {"a": Column(usual_names=()), "b": Column(usual_names=())}
    first, second = keys_of({"a": ["ab", "a"], "b": ["c", "bc"]}, two)
    assert first != second


def test_values_that_are_not_text_are_compared_too():
    columns = {"messages": Column(usual_names=(), kind="any")}
    keys = keys_of(
        {"messages": [[{"role": "user", "content": "Hi"}], [{"content": "hi", "role": "user"}], []]}, columns
    )
    assert keys[0] == keys[1] != keys[2]


def test_the_first_of_several_repeats_is_kept():
    table = {"text": ["a", "b", "A", "c", "b"], "label": [0, 1, 2, 3, 4]}
    part, dropped = drop_repeats(Part(table, keys_of(table, COLUMNS), places(table)))
    assert part.table == {"text": ["a", "b", "c"], "label": [0, 1, 3]} and dropped == 2
    assert part.keys == keys_of(part.table, COLUMNS)


def part_of(texts, labels=None, file="rows"):
    table = {"text": texts} | ({"label": labels} if labels is not None else {})
    return Part(table, keys_of(table, COLUMNS), [(file, row) for row in range(1, len(texts) + 1)])


def test_conflicts_are_repeats_with_another_target():
    found = conflicts({"train": part_of(["a", "b", "A", "b"], [0, 1, 5, 1])}, COLUMNS)
    pair = {
        "first": {"text": "a", "label": 0},
        "other": {"text": "A", "label": 5},
        "places": [["train", "rows", 1], ["train", "rows", 3]],
    }
    assert found == {"train": {"rows": 1, "examples": [pair]}}


def test_conflicts_between_splits_are_told_by_split_and_row():
    parts = {
        "train": part_of(["a", "b", "c"], [0, 1, 2], "train.csv"),
        "validation": part_of(["x", "c"], [0, 0], "dev.csv"),
        "test": part_of(["B ", "A", "c", "a"], [0, 0, 2, 9], "test.csv"),
    }
    found = conflicts(parts, COLUMNS)
    assert {where: pair["rows"] for where, pair in found.items()} == {
        "train": 0,
        "validation": 0,
        "test": 1,
        "train and validation": 1,
        "train and test": 2,
        "validation and test": 1,
    }
    example = found["train and test"]["examples"][0]
    assert example["first"] == {"text": "b", "label": 1} and example["other"] == {"text": "B ", "label": 0}
    assert example["places"] == [["train", "train.csv", 2], ["test", "test.csv", 1]]


def test_two_splits_that_agree_are_not_listed():
    assert list(conflicts({"train": part_of(["a"], [0]), "test": part_of(["a", "z"], [0, 1])}, COLUMNS)) == [
        "train",
        "test",
    ]


def test_the_order_of_several_labels_is_no_conflict():
    found = conflicts(
        {"train": part_of(["a", "a", "b", "b"], [["x", "y"], ["y", "x"], ["x"], ["x", "y"]])}, COLUMNS
    )
    assert found["train"]["rows"] == 1 and found["train"]["examples"][0]["places"][1][2] == 4


def test_rows_without_a_target_have_no_conflicts():
    assert conflicts({"train": part_of(["a", "a"])}, COLUMNS)["train"]["rows"] == 0
