from __future__ import annotations

from hftk.data.tables import append, did_you_mean, from_records, height, take


def test_a_column_that_one_side_lacks_is_filled_with_none():
    table = {"a": [1]}
    append(table, {"b": [2, 3]})
    assert table == {"a": [1, None, None], "b": [None, 2, 3]} and height(table) == 3


def test_records_become_columns_and_rows_are_taken_in_order():
    table = from_records([{"a": 1}, {"a": 2, "b": 3}])
    assert table == {"a": [1, 2], "b": [None, 3]} and take(table, [1, 0]) == {"a": [2, 1], "b": [3, None]}
    assert from_records([]) == {} and height({}) == 0


def test_the_nearest_name_is_found_whatever_its_capitals():
    assert (
        did_you_mean("txet", ["Text", "label"]) == " (did you mean Text?)"
        and did_you_mean("xyz", ["Text"]) == ""
    )
