from __future__ import annotations

import pytest

from hftk.config import InputError
from hftk.data.columns import Incomplete, WrongTypes, is_missing, map_columns
from hftk.task import Column


def test_roles_find_their_usual_names_in_order(classification):
    sample = {"sentence": ["a"], "label": [0], "text": ["b"], "id": [1]}
    assert map_columns(sample, classification.columns, {}, "x")[0] == {"text": "text", "label": "label"}


def test_other_capitals_are_found_too(lm):
    assert map_columns({"Text": ["a"], "ID": ["b"]}, lm.columns, {}, "x")[0] == {"text": "Text"}


def test_a_given_column_wins_and_frees_no_other_for_the_same_role(classification):
    sample = {"text": ["a"], "body": ["b"], "label": [0]}
    assert map_columns(sample, classification.columns, {"text": "body"}, "x")[0] == {
        "text": "body",
        "label": "label",
    }


def test_the_only_column_of_texts_is_taken_and_said(lm):
    mapping, remarks = map_columns(
        {"body": ["a", None], "n": [1, 2], "doc_id": ["x", "y"]}, lm.columns, {}, "x.csv"
    )
    assert mapping == {"text": "body"} and "only column of texts" in remarks[0]


def test_it_is_not_taken_where_the_texts_may_be_nested(lm, refusal):
    refusal(map_columns, {"title": ["a"], "messages": [[{"role": "user"}]]}, lm.columns, {}, "x")
    refusal(map_columns, {"id": ["a"]}, lm.columns, {}, "x")


def test_a_missing_column_shows_those_there_are_and_what_to_type(classification, refusal):
    message = refusal(map_columns, {"en": ["a"], "de": ["b"]}, classification.columns, {}, "x.csv")
    assert (
        "found en, de" in message
        and "--data.columns.text NAME" in message
        and "--data.columns.label NAME" in message
    )


def test_wrong_names_are_corrected_all_at_once(classification, refusal):
    message = refusal(
        map_columns,
        {"review": ["a"], "label": [0]},
        classification.columns,
        {"text": "reveiw", "labell": "x"},
        "x.csv",
    )
    assert (
        "did you mean review?" in message
        and "did you mean label?" in message
        and "the roles are text, text_pair, label" in message
    )


def test_two_roles_on_one_column_are_refused(classification, refusal):
    message = refusal(
        map_columns,
        {"text": ["a"], "label": [0]},
        classification.columns,
        {"text": "text", "label": "text"},
        "x",
    )
    assert "column text is asked for twice, as text and as label" in message


def test_only_the_wanted_roles_are_needed(classification):
    assert map_columns({"text": ["a"]}, classification.columns, {}, "x", roles={"text"})[0] == {
        "text": "text"
    }


def test_values_that_are_not_text_are_counted_with_their_first_rows(lm):
    wrong = WrongTypes({"text": "tokens"}, lm.columns, "data.path")
    wrong.look({"text": ["a", None, float("nan")]}, "x.jsonl", 1)
    assert not wrong
    wrong.look({"text": ["a", 3, ["b"], ["c"], ["d"]]}, "x.jsonl", 101)
    assert wrong
    with pytest.raises(
        InputError,
        match=r"found int and list in 4 rows \(first: row 102 of x.jsonl, row 103 of x.jsonl, row 104",
    ):
        raise wrong.error()


STRICT = {
    "text": Column(usual_names=(), incomplete="error"),
    "label": Column(usual_names=(), kind="label", identity=False, incomplete="error"),
}
NAN = float("nan")


@pytest.mark.parametrize(
    "value, missing",
    [
        (None, True),
        (NAN, True),
        ("", True),
        (" \n", True),
        (0, False),
        (False, False),
        ([], False),
        ("a", False),
    ],
)
def test_what_counts_as_missing(value, missing):
    assert is_missing(value) is missing


def test_incomplete_rows_are_counted_over_chunks_with_the_first_ones():
    found = Incomplete({"text": "body", "label": "class"}, STRICT, "auto")
    found.look({"text": ["a", " "], "label": [0, NAN]}, "x.csv", 1)
    found.look({"text": ["", "b", None, ""], "label": [1, 1, "", None]}, "x.csv", 101)
    texts, labels = found.problems()
    assert texts.setting == "data.columns.text" and labels.setting == "data.columns.label"
    assert (
        texts.message
        == "expected text in every row, found 4 empty in column body (first: row 2 of x.csv, row 101 of"
        " x.csv, row 103 of x.csv)"
    )
    assert (
        "expected a label in every row, found 3 missing in column class (first: row 2 of x.csv, row 103"
        in labels.message
    )
    assert "--data.incomplete drop" in texts.fix


@pytest.mark.parametrize(
    "policy, told", [("auto", {"text", "label"}), ("drop", set()), ("error", {"text", "label", "text_pair"})]
)
def test_the_policy_says_which_columns_must_be_complete(policy, told):
    columns = {**STRICT, "text_pair": Column(usual_names=(), required=False)}
    found = Incomplete({role: role for role in columns}, columns, policy)
    found.look({role: [None] for role in columns}, "x", 1)
    assert {problem.setting.removeprefix("data.columns.") for problem in found.problems()} == told


def test_complete_rows_are_no_problem():
    found = Incomplete({"text": "text", "label": "label"}, STRICT, "error")
    found.look({"text": ["a"], "label": [0]}, "x", 1)
    assert found.problems() == []
