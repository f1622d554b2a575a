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


def test_conflicts_are_repeats_with_another_target():
    table = {"text": ["a", "b", "A", "b"], "label": [0, 1, 5, 1]}
    found = conflicts(Part(table, keys_of(table, COLUMNS), places(table)), COLUMNS)
    assert found == {"rows": 1, "examples": [{"first": {"text": "a", "label": 0}, "other": {"text": "A", "label": 5}}]}


def test_rows_without_a_target_have_no_conflicts():
    table = {"text": ["a", "a"]}
    assert conflicts(Part(table, keys_of(table, COLUMNS), places(table)), COLUMNS)["rows"] == 0
