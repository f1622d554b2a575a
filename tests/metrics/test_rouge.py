from __future__ import annotations

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from hftk.config import InputError
from hftk.metrics.bootstrap import _weights, percentile_interval
from hftk.metrics.rouge import (
    NAMES,
    UnicodeTokenizer,
    compare_rouge,
    mark_sentences,
    rouge_rows,
    rouge_scores,
)

NO_INTERVALS = {"resamples": 0, "seed": 0}
WORDS = [
    "the",
    "The",
    "running",
    "runs",
    "ran",
    "city",
    "cities",
    "happily,",
    "a_b",
    "U.S.",
    "3.5",
    "it's",
    "red-hot",
    "(big)",
    "!!!",
    "cats\tdog",
]
PERFECT = {
    "en": "The quick brown fox jumps over the lazy dog.",
    "de": "Über die Größe der Straßen wird heute gestritten.",
    "zh": "我们今天去北京看长城。",
    "ja": "私たちは今日、東京タワーへ行きます。",
    "ru": "Сегодня мы поедем в Москву на поезде.",
    "hi": "हम आज दिल्ली में ताजमहल देखने जा रहे हैं।",
    "th": "วันนี้เราจะไปเที่ยวกรุงเทพมหานคร",
    "ar": "سنذهب اليوم إلى القاهرة بالقطار السريع.",
}


def random_text(generator, most=40, vocabulary=None):
    chosen = generator.choice(vocabulary or WORDS, size=generator.integers(0, most))
    return "".join(word + ("\n" if generator.random() < 0.15 else " ") for word in chosen)


def random_rows(n, seed, most_references=1, vocabulary=None):
    generator = np.random.default_rng(seed)
    predictions = [random_text(generator, vocabulary=vocabulary) for _ in range(n)]
    numbers = generator.integers(1, most_references + 1, size=n)
    return predictions, [[random_text(generator, vocabulary=vocabulary) for _ in range(k)] for k in numbers]


def reference_rows(predictions, references, stem):
    scorer = RougeScorer(list(NAMES), use_stemmer=stem)
    found = [scorer.score_multi(row, text) for row, text in zip(references, predictions, strict=True)]
    return [[100 * scores[name].fmeasure for name in NAMES] for scores in found]


@pytest.mark.parametrize("stem", [False, True])
@pytest.mark.parametrize("most_references", [1, 3])
def test_english_scores_are_those_of_rouge_score(stem, most_references):
    predictions, references = random_rows(60, 1, most_references)
    expected = np.array(reference_rows(predictions, references, stem))
    assert rouge_rows(predictions, references, stem=stem) == pytest.approx(expected, abs=1e-9)
    scores = rouge_scores(predictions, references, stem=stem, **NO_INTERVALS)
    assert [score.name for score in scores] == list(NAMES)
    assert [score.value for score in scores] == pytest.approx(expected.mean(axis=0), abs=1e-9)


def test_of_several_longest_subsequences_the_one_of_rouge_score_is_taken():
    # two words make many ties, and the union over sentences depends on how they are broken
    predictions, references = random_rows(150, 2, vocabulary=["a", "b"])
    expected = np.array(reference_rows(predictions, references, False))
    assert rouge_rows(predictions, references) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("stem", [False, True])
def test_ascii_tokens_are_those_of_rouge_score(stem):
    text = (
        "".join(map(chr, range(128)))
        + " Running cities' U.S.A. 1,000.50 under_score don't ponies generalizations"
    )
    assert UnicodeTokenizer(stem).tokenize(text) == DefaultTokenizer(stem).tokenize(text)


@pytest.mark.parametrize("language", PERFECT)
def test_a_perfect_prediction_scores_100_in_every_script(language):
    text = PERFECT[language]
    for stem in (False, True):
        scores = rouge_scores([text, text], [[text], ["?", text]], stem=stem, **NO_INTERVALS)
        assert [score.value for score in scores] == pytest.approx([100] * 4, abs=1e-9)


@pytest.mark.parametrize("language", PERFECT)
def test_a_part_of_the_reference_scores_between_0_and_100(language):
    text = PERFECT[language]
    assert (
        (rouge_rows([text[: len(text) // 2]], [[text]]) > 20) & (rouge_rows([text[:-2]], [[text]]) <= 100)
    ).all()


def test_texts_too_short_for_an_ngram_score_0_as_in_rouge_score():
    assert rouge_rows(["Yes"], [["Yes"]]).tolist() == [[100, 0, 100, 100]]
    assert rouge_rows(["!!!"], [["!!!"]]).tolist() == [[0, 0, 0, 0]]
    assert rouge_rows(["", "a"], [["a"], [""]]).tolist() == [[0] * 4] * 2


def test_tokens_are_words_with_their_marks_or_single_characters():
    tokenize = UnicodeTokenizer().tokenize
    assert tokenize("Über Größe") == ["über", "größe"]
    assert tokenize("हिन्दी में!") == ["हिन्दी", "में"]
    assert tokenize("我有iPhone 15，好。") == ["我", "有", "iphone", "15", "好"]
    assert tokenize("コーヒーを飲む") == ["コ", "ー", "ヒ", "ー", "を", "飲", "む"]
    assert tokenize("กี่คน") == ["กี่", "ค", "น"]
    assert tokenize("مرحبا، كيف") == ["مرحبا", "كيف"]
    assert tokenize("안녕하세요 여러분") == ["안녕하세요", "여러분"]
    assert tokenize("naïve") == tokenize("nai\u0308ve") == ["naïve"]
    assert tokenize("می\u200cخواهم") == ["میخواهم"]


def test_the_english_stemmer_leaves_other_scripts_alone():
    assert UnicodeTokenizer(stem=True).tokenize("größer running Поезда") == ["größer", "run", "поезда"]


def test_sentences_end_at_newlines_only_unless_asked_otherwise():
    reference, prediction = "It rains. We stay home.", "We stay home. It rains."
    plain, split = (
        rouge_rows([prediction], [[reference]], split_sentences=split)[0] for split in (False, True)
    )
    assert plain[3] == plain[2] == pytest.approx(60)
    assert split[2] == plain[2] and split[3] == pytest.approx(100)
    marked = RougeScorer(["rougeLsum"]).score("It rains.\nWe stay home.", "We stay home.\nIt rains.")
    assert split[3] == pytest.approx(100 * marked["rougeLsum"].fmeasure)
    chinese = rouge_rows(["我们在家。下雨了。"], [["下雨了。我们在家。"]], split_sentences=True)[0]
    assert chinese[3] == pytest.approx(100) and chinese[2] < 100


def test_sentence_ends_of_several_scripts_are_marked():
    assert mark_sentences('He said "no." Then 3.5 km... Why?') == 'He said "no."\nThen 3.5 km...\nWhy?'
    assert mark_sentences("你好！再见。") == "你好！\n再见。\n"
    assert mark_sentences("यह है। वह है।") == "यह है।\nवह है।\n"
    assert mark_sentences("كيف؟ جيد.") == "كيف؟\nجيد."
    assert mark_sentences("One. Two.\nThree. Four.") == "One. Two.\nThree. Four."


def test_intervals_equal_a_plain_loop_over_resampled_rows():
    predictions, references = random_rows(9, 3)
    rows = rouge_rows(predictions, references)
    drawn = []
    for line in np.concatenate(list(_weights(9, 50, 4))):
        drawn.append(rows[np.repeat(np.arange(9), line.astype(int))].mean(axis=0))
    for place, score in enumerate(rouge_scores(predictions, references, resamples=50, seed=4)):
        expected = percentile_interval([values[place] for values in drawn])
        assert score.interval == pytest.approx(expected, abs=1e-9)
        low, high = score.interval
        assert low <= score.value <= high


def test_the_signature_says_what_was_done():
    first = rouge_scores(["a b", "c"], [["a b"], ["c", "d"]], stem=True, resamples=10, seed=0)[0]
    assert first.signature.startswith(
        "nrefs:var|case:lc|stem:porter|tok:words,chars of unspaced scripts|sents:newline|"
    )
    assert "bootstrap:rows[10]" in first.signature and "f1:x100" in first.signature
    one = rouge_scores(["a b"], [["a b"]], split_sentences=True, resamples=10, seed=0)[0]
    assert (
        one.interval is None
        and "bootstrap:none" in one.signature
        and "sents:newline or sentence end" in one.signature
    )


def test_a_better_system_is_found_better():
    generator = np.random.default_rng(5)
    references = [[random_text(generator) + "end of text"] for _ in range(40)]
    good, bad = [row[0] for row in references], [row[0][: len(row[0]) // 3] for row in references]
    for found in compare_rouge(good, bad, references, resamples=200, seed=0):
        assert found.a == pytest.approx(100) and found.difference == pytest.approx(found.a - found.b)
        assert found.interval[0] > 0 and found.p_value < 0.05
    assert all(found.p_value == 1 for found in compare_rouge(bad, bad, references, resamples=200, seed=0))


@pytest.mark.parametrize(
    ("predictions", "references"), [([], []), (["a"], []), (["a"], ["a"]), (["a"], [[]])]
)
def test_bad_input_is_refused(predictions, references):
    with pytest.raises(InputError):
        rouge_scores(predictions, references, **NO_INTERVALS)
    with pytest.raises(InputError):
        compare_rouge(predictions, predictions, references, **NO_INTERVALS)
