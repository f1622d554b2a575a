from __future__ import annotations

import pytest

from hftk.config import InputError
from hftk.data.columns import WrongTypes, map_columns


def test_roles_find_their_usual_names_in_order(classification):
    sample = {"sentence": ["a"], "label": [0], "text": ["b"], "id": [1]}
    assert map_columns(sample, classification.columns, {}, "x")[0] == {"text": "text", "label": "label"}


def test_other_capitals_are_found_too(lm):
    assert map_columns({"Text": ["a"], "ID": ["b"]}, lm.columns, {}, "x")[0] == {"text": "Text"}


def test_a_given_column_wins_and_frees_no_other_for_the_same_role(classification):
    sample = {"text": ["a"], "body": ["b"], "label": [0]}
    assert map_columns(sample, classification.columns, {"text": "body"}, "x")[0] == {"text": "body", "label": "label"}


def test_the_only_column_of_texts_is_taken_and_said(lm):
    mapping, remarks = map_columns({"body": ["a", None], "n": [1, 2], "doc_id": ["x", "y"]}, lm.columns, {}, "x.csv")
    assert mapping == {"text": "body"} and "only column of texts" in remarks[0]


def test_it_is_not_taken_where_the_texts_may_be_nested(lm, refusal):
    refusal(map_columns, {"title": ["a"], "messages": [[{"role": "user"}]]}, lm.columns, {}, "x")
    refusal(map_columns, {"id": ["a"]}, lm.columns, {}, "x")


def test_a_missing_column_shows_those_there_are_and_what_to_type(classification, refusal):
    message = refusal(map_columns, {"en": ["a"], "de": ["b"]}, classification.columns, {}, "x.csv")
    assert (
        "found en, de" in message and "--data.columns.text NAME" in message and "--data.columns.label NAME" in message
    )


def test_wrong_names_are_corrected_all_at_once(classification, refusal):
    message = refusal(
        map_columns, {"review": ["a"], "label": [0]}, classification.columns, {"text": "reveiw", "labell": "x"}, "x.csv"
    )
    assert (
        "did you mean review?" in message
        and "did you mean label?" in message
        and "the roles are text, text_pair, label" in message
    )


def test_two_roles_on_one_column_are_refused(classification, refusal):
    message = refusal(
        map_columns, {"text": ["a"], "label": [0]}, classification.columns, {"text": "text", "label": "text"}, "x"
    )
    assert "column text is asked for twice, as text and as label" in message


def test_only_the_wanted_roles_are_needed(classification):
    assert map_columns({"text": ["a"]}, classification.columns, {}, "x", roles={"text"})[0] == {"text": "text"}


def test_values_that_are_not_text_are_counted_with_their_first_rows(lm):
    wrong = WrongTypes({"text": "tokens"}, lm.columns, "data.path")
    wrong.look({"text": ["a", None, float("nan")]}, "x.jsonl", 1)
    assert not wrong
    wrong.look({"text": ["a", 3, ["b"], ["c"], ["d"]]}, "x.jsonl", 101)
    assert wrong
    with pytest.raises(
        InputError, match=r"found int and list in 4 rows \(first: row 102 of x.jsonl, row 103 of x.jsonl, row 104"
    ):
        raise wrong.error()
