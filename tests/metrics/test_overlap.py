from __future__ import annotations

import pytest

from hftk.config import InputError
from hftk.metrics.overlap import copied_spans, output_facts, repeats


def test_lengths_and_empty_outputs_are_counted():
    facts = output_facts(["a b c", "  ", "d"], [["a b"], ["a b c"], ["d", "d e f"]], None, "en")
    assert facts["rows"] == 3 and facts["empty"] == pytest.approx(1 / 3)
    assert facts["mean_tokens"] == pytest.approx(4 / 3) and facts["mean_reference_tokens"] == 2
    assert facts["length_ratio"] == pytest.approx(4 / 6)
    assert "novel_1grams" not in facts


def test_the_reference_closest_in_length_counts_and_the_shorter_of_two():
    assert output_facts(["a b c"], [["a b c d e f", "a b c d"]], None, "en")["mean_reference_tokens"] == 4
    assert output_facts(["a b c"], [["a b c d", "a b"]], None, "en")["mean_reference_tokens"] == 2


def test_an_output_is_repetitive_from_the_third_time_of_a_4gram_on():
    assert not repeats(["a", "b", "c", "d", "a", "b", "c", "d"])
    assert repeats(["a", "b", "c", "d", "a", "b", "c", "d", "a", "b", "c", "d"])
    # overlaps count
    assert repeats(["ha"] * 6) and not repeats(["ha"] * 5)
    facts = output_facts(["no no no no no no", "yes"], [["x"], ["y"]], None, "en")
    assert facts["repetitive"] == 0.5


def test_novel_ngrams_are_those_that_the_own_source_lacks():
    facts = output_facts(["the cat sat down", "x"], [["r"], ["r"]], ["the cat sat", "y"], "en")
    assert facts["novel_1grams"] == pytest.approx(2 / 5)  # down, x
    assert facts["novel_2grams"] == pytest.approx(1 / 3)
    assert facts["novel_3grams"] == pytest.approx(1 / 2)
    assert facts["novel_4grams"] == 1


def test_copied_spans_are_the_longest_from_the_start_on():
    source = ["a", "b", "c", "d", "e", "f"]
    assert copied_spans(["b", "c", "x", "d", "e", "f", "y", "a"], source) == [2, 3, 1]
    assert copied_spans(["a", "b", "a", "b", "c"], source) == [2, 3]
    assert copied_spans([], source) == [] and copied_spans(source, []) == []
    # a later, longer occurrence wins
    assert copied_spans(["a", "b", "c"], ["a", "b", "x", "a", "b", "c"]) == [3]


def test_coverage_density_and_span_are_those_of_grusky():
    # fragments [2, 3, 1] of 8 tokens, and none of 2 tokens
    facts = output_facts(["b c x d e f y a", "p q"], [["r"], ["r"]], ["a b c d e f", "z"], "en")
    assert facts["copied_coverage"] == pytest.approx((6 / 8 + 0) / 2)
    assert facts["copied_density"] == pytest.approx((4 + 9 + 1) / 8 / 2)
    assert facts["copied_span"] == pytest.approx(2)


def test_a_copy_of_the_source_has_nothing_novel():
    for language, text in (
        ("en", "One two three four five."),
        ("zh", "我们今天去北京"),
        (None, "我们去 Berlin!"),
    ):
        facts = output_facts([text], [[text]], [text], language)
        assert [facts[f"novel_{order}grams"] for order in (1, 2, 3, 4)] == [0] * 4
        assert facts["copied_coverage"] == facts["length_ratio"] == 1
        assert facts["copied_span"] == facts["copied_density"] == facts["mean_tokens"]


def test_case_is_not_seen_and_without_a_language_the_script_decides():
    facts = output_facts(["The 我们!"], [["x"]], ["the 们我!"], None)
    assert facts["mean_tokens"] == 4
    assert facts["novel_1grams"] == 0 and facts["novel_2grams"] == 1


def test_only_empty_outputs_give_none_where_nothing_is_defined():
    facts = output_facts(["", " "], [[""], [""]], ["a", "b"], "en")
    assert facts["empty"] == 1 and facts["mean_tokens"] == 0 and facts["repetitive"] == 0
    for name in (
        "length_ratio",
        "novel_1grams",
        "novel_4grams",
        "copied_coverage",
        "copied_density",
        "copied_span",
    ):
        assert facts[name] is None


def test_bad_input_is_refused():
    with pytest.raises(InputError):
        output_facts([], [], None, None)
    with pytest.raises(ValueError, match="one source per row"):
        output_facts(["a"], [["a"]], [], None)
