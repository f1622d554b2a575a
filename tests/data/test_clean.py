from __future__ import annotations

import math

from hftk.data.clean import add_counts, clean
from hftk.task import Column

TEXT = {"text": Column(usual_names=("text",))}


def test_each_step_counts_the_rows_it_changed_or_dropped():
    rows = {
        "text": [
            "a\r\nb\rc",
            "nul\x00 and bell\x07, tab\t stays",
            "e\u0301",
            "  ",
            "",
            None,
            math.nan,
            "plain",
        ]
    }
    cleaned, counts = clean(rows, TEXT)
    assert cleaned == {"text": ["a\nb\nc", "nul and bell, tab\t stays", "é", "plain"]}
    assert counts == {
        "missing": {"dropped": 2, "changed": 0},
        "newlines": {"changed": 1},
        "controls": {"changed": 1},
        "unicode": {"changed": 1},
        "empty": {"dropped": 2},
    }


def test_the_rows_handed_in_are_not_edited():
    rows = {"text": ["a\r\n", None]}
    clean(rows, TEXT)
    assert rows == {"text": ["a\r\n", None]}


def test_unicode_none_leaves_the_text_and_nfkc_folds_wide_letters():
    rows = {"text": ["ＡＢＣ e\u0301"]}
    assert clean(rows, TEXT, "none")[0] == rows
    assert clean(rows, TEXT, "NFC")[0] == {"text": ["ＡＢＣ é"]}
    assert clean(rows, TEXT, "NFKC")[0] == {"text": ["ABC é"]}


def test_a_text_of_control_characters_alone_is_empty():
    assert clean({"text": ["\x00\x01"]}, TEXT)[1]["empty"] == {"dropped": 1}


def test_a_lone_surrogate_becomes_the_replacement_character():
    cleaned, counts = clean({"text": ["a\ud83db"]}, TEXT)
    assert cleaned == {"text": ["a\ufffdb"]} and counts["controls"] == {"changed": 1}


def test_only_text_columns_are_touched_and_rows_count_once():
    columns = {
        "text": Column(usual_names=()),
        "text_pair": Column(usual_names=(), required=False),
        "label": Column(usual_names=(), kind="label", identity=False),
    }
    rows = {"text": ["a\r", "b", "c"], "text_pair": ["x\r", None, "z"], "label": ["p\r", "q", ""]}
    cleaned, counts = clean(rows, columns)
    assert cleaned == {"text": ["a\n", "b"], "text_pair": ["x\n", ""], "label": ["p\r", "q"]}
    assert counts["newlines"] == {"changed": 1}
    assert counts["missing"] == {
        "dropped": 1,
        "changed": 1,
    }  # the row without a label, and the pair that became ""


def test_counts_of_chunks_add_up():
    total: dict[str, dict[str, int]] = {}
    for _ in range(2):
        add_counts(total, {"empty": {"dropped": 2}})
    assert total == {"empty": {"dropped": 4}}
