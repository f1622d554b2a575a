from __future__ import annotations

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF, TER

from hftk.config import InputError
from hftk.metrics import translation
from hftk.metrics.bootstrap import _weights, percentile_interval
from hftk.metrics.translation import (
    compare_translations,
    language_code,
    sentence_scores,
    split_tokens,
    translation_metrics,
    translation_scores,
)

NO_INTERVALS = {"resamples": 0, "seed": 0}
WORDS = ["the", "a", "cat,", "dog", "sat.", "on", "mat", "(big)", "U.S.", "3.5", "it's", "red-hot"]
PERFECT = {
    "en": "The quick brown fox jumps over the lazy dog.",
    "de": "Über die Größe der Straßen wird heute gestritten.",
    "zh": "我们今天去北京看长城。",
    "ja": "私たちは今日、東京タワーへ行きます。",
    "ru": "Сегодня мы поедем в Москву на поезде.",
    "hi": "हम आज दिल्ली में ताजमहल देखने जा रहे हैं।",
    "th": "วันนี้เราจะไปเที่ยวกรุงเทพมหานคร",
    "ar": "سنذهب اليوم إلى القاهرة بالقطار السريع.",
    "ko": "우리는 오늘 서울에서 부산까지 기차로 갑니다.",
}


def sacre():
    return {"bleu": BLEU(force=True), "chrf++": CHRF(word_order=2), "ter": TER(case_sensitive=True)}


def streams(references):
    most = max(map(len, references))
    return [[row[k] if k < len(row) else None for row in references] for k in range(most)]


def random_rows(n, seed, most_references=1):
    generator = np.random.default_rng(seed)

    def text(least):
        return " ".join(generator.choice(WORDS, size=generator.integers(least, 14)))

    references = [[text(1) for _ in range(generator.integers(1, most_references + 1))] for _ in range(n)]
    predictions = [row[0] if generator.random() < 0.3 else text(0) for row in references]
    return predictions, references


@pytest.mark.parametrize("most_references", [1, 3])
def test_scores_and_signatures_are_those_of_sacrebleu(most_references):
    predictions, references = random_rows(40, 1, most_references)
    for score in translation_scores(predictions, references, "en", **NO_INTERVALS):
        metric = sacre()[score.name]
        expected = metric.corpus_score(predictions, streams(references)).score
        assert score.value == pytest.approx(expected, abs=1e-9)
        assert score.signature == str(metric.get_signature())
        assert score.interval is None and score.n == 40
        assert score.higher_is_better == (score.name != "ter")


def test_scores_of_one_row_and_of_texts_without_a_match_are_those_of_sacrebleu():
    for prediction, reference in [
        ("a b", "c d"),
        ("", "a b"),
        ("a b", ""),
        ("", ""),
        ("a", "a"),
        ("a b c x", "a b c"),
    ]:
        for score in translation_scores([prediction], [[reference]], None, **NO_INTERVALS):
            expected = sacre()[score.name].corpus_score([prediction], [[reference]]).score
            assert score.value == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("language", PERFECT)
def test_a_perfect_prediction_has_100_in_bleu_and_chrf_and_0_in_ter(language):
    texts = [PERFECT[language]]
    bleu, chrf, ter = translation_scores(texts, [texts], language, **NO_INTERVALS)
    assert bleu.value == pytest.approx(100, abs=1e-9)
    assert chrf.value == pytest.approx(100, abs=1e-9)
    assert ter.value == 0


@pytest.mark.parametrize("language", PERFECT)
def test_a_changed_end_costs_a_part_of_the_score_in_every_script(language):
    text = PERFECT[language]
    bleu, chrf, ter = translation_scores([text[:-3]], [[text]], language, **NO_INTERVALS)
    assert 30 < bleu.value < 100
    assert 30 < chrf.value < 100
    assert 0 < ter.value < 50


def test_fewer_than_four_tokens_have_a_bleu_of_0_as_in_sacrebleu():
    assert translation_scores(["Hello world"], [["Hello world"]], "en", **NO_INTERVALS)[0].value == 0


def test_vectorised_values_equal_those_of_sacrebleu_for_every_resample():
    predictions, references = random_rows(6, 2, 2)
    for metric in translation_metrics(None):
        rows = np.array(metric.statistics(predictions, references), dtype=np.float64)
        sums = np.concatenate(
            [weights @ rows for weights in _weights(6, 200, 0)] + [np.zeros((1, rows.shape[1]))]
        )
        expected = [metric.sacrebleu._compute_score_from_stats(line.tolist()).score for line in sums]
        assert metric.values(sums) == pytest.approx(expected, abs=1e-9)


def test_bleu_of_sums_without_longer_matches_is_smoothed_as_in_sacrebleu():
    sums = np.array(
        [
            [9, 9, 5, 0, 0, 0, 9, 8, 7, 6],
            [9, 12, 5, 2, 0, 0, 9, 8, 7, 6],
            [3, 2, 3, 2, 1, 0, 3, 2, 1, 0],
            [0, 4, 0, 0, 0, 0, 0, 0, 0, 0],
            [9, 9, 0, 0, 0, 0, 9, 8, 7, 6],
            [4, 4, 4, 3, 2, 1, 4, 3, 2, 1],
        ],
        dtype=float,
    )
    expected = [BLEU()._compute_score_from_stats(line.tolist()).score for line in sums]
    assert translation.bleu_values(sums) == pytest.approx(expected, abs=1e-9)


def test_intervals_equal_a_plain_loop_over_resampled_rows():
    predictions, references = random_rows(12, 3)
    drawn = {name: [] for name in sacre()}
    for line in np.concatenate(list(_weights(12, 40, 7))):
        rows = np.repeat(np.arange(12), line.astype(int))
        for name, metric in sacre().items():
            resampled = streams([references[row] for row in rows])
            drawn[name].append(metric.corpus_score([predictions[row] for row in rows], resampled).score)
    for score in translation_scores(predictions, references, "en", resamples=40, seed=7):
        assert score.interval == pytest.approx(percentile_interval(drawn[score.name]), abs=1e-9)


def test_the_same_seed_gives_the_same_interval_and_one_row_gives_none():
    predictions, references = random_rows(10, 4)
    once, again = (translation_scores(predictions, references, "en", resamples=50, seed=3) for _ in range(2))
    assert once == again and all(score.interval for score in once)
    assert all(s.interval is None for s in translation_scores(["a"], [["a"]], "en", resamples=50, seed=3))


def test_the_tokenizer_follows_the_target_language():
    def tokenizer(language):
        return (
            translation_scores(["x"], [["x"]], language, **NO_INTERVALS)[0]
            .signature.split("tok:")[1]
            .split("|")[0]
        )

    assert {tokenizer(language) for language in (None, "", "de", "fr_XX", "eng_Latn", "English")} == {"13a"}
    assert {tokenizer(language) for language in ("zh", "zh_CN", "zho_Hans", ">>cmn_Hans<<", "Chinese")} == {
        "zh"
    }
    assert {tokenizer(language) for language in ("th", "tha_Thai", "lo", "km_KH", "mya_Mymr", "bo")} == {
        "char"
    }
    for language, name in (("ja", "ja-mecab"), ("kor_Hang", "ko-mecab")):
        assert tokenizer(language) == "char" or tokenizer(language).startswith(name)


def test_japanese_falls_back_to_characters_where_mecab_is_missing(monkeypatch):
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_ja_mecab.MeCab", None)
    score = translation_scores([PERFECT["ja"]], [[PERFECT["ja"]]], "ja", **NO_INTERVALS)[0]
    assert "tok:char" in score.signature and score.value == pytest.approx(100)


def test_language_codes_and_names_are_recognized():
    found = [
        language_code(name) for name in ("zh-TW", "yue_Hant", "__ja__", "ja_XX", "ko_KR", "Thai", "de", None)
    ]
    assert found == ["zh", "zh", "ja", "ja", "ko", "th", "", ""]


def test_ter_counts_han_characters_in_chinese_and_characters_in_thai():
    chinese = translation_scores(["我们今天去"], [["我们今天来"]], "zh", **NO_INTERVALS)[2]
    assert chinese.value == pytest.approx(20) and "asian:yes" in chinese.signature
    thai = translation_scores(["กขคง"], [["กขคจ"]], "th", **NO_INTERVALS)[2]
    assert thai.value == pytest.approx(25) and thai.signature.endswith("|split:char")


def test_case_counts():
    for score in translation_scores(["THE CAT SAT ON IT"], [["the cat sat on it"]], "en", **NO_INTERVALS):
        assert score.value == (100 if score.name == "ter" else 0)


def test_sentence_scores_are_those_of_sacrebleu():
    predictions, references = random_rows(20, 5, 3)
    metrics = {**sacre(), "bleu": BLEU(effective_order=True)}
    for name, metric in metrics.items():
        expected = [metric.sentence_score(p, r).score for p, r in zip(predictions, references, strict=True)]
        assert sentence_scores(predictions, references, "en", name=name) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match=r"chrf\+\+"):
        sentence_scores(predictions, references, "en", name="meteor")


def test_tokens_are_those_that_bleu_counts():
    assert split_tokens(["Hello, world!"], "en") == [["Hello", ",", "world", "!"]]
    assert split_tokens(["我去iPhone店"], "zh") == [["我", "去", "iPhone", "店"]]
    assert split_tokens(["กข"], "th") == [["ก", "ข"]]


def test_a_better_system_is_found_better_and_an_equal_one_is_not():
    _, references = random_rows(60, 6)
    good = [row[0] for row in references]
    bad = [" ".join(text.split()[::2]) for text in good]
    for found in compare_translations(good, bad, references, "en", resamples=200, seed=0):
        assert found.p_value < 0.05
        assert (found.difference > 0) == found.higher_is_better
        assert found.difference == pytest.approx(found.a - found.b)
        low, high = found.interval
        assert low <= found.difference <= high and low * high > 0
    for found in compare_translations(bad, bad, references, "en", resamples=200, seed=0):
        assert found.p_value == 1 and found.interval == (0, 0)


def test_differences_equal_a_plain_loop_over_the_same_resamples():
    a, references = random_rows(8, 7)
    b = [row[0][::-1] for row in references]
    found = compare_translations(a, b, references, "en", resamples=30, seed=2)[0]
    differences = []
    for line in np.concatenate(list(_weights(8, 30, 2))):
        rows = np.repeat(np.arange(8), line.astype(int))
        stream = streams([references[row] for row in rows])
        value_a, value_b = (
            BLEU(force=True).corpus_score([s[row] for row in rows], stream).score for s in (a, b)
        )
        differences.append(value_a - value_b)
    assert found.interval == pytest.approx(percentile_interval(differences), abs=1e-9)


@pytest.mark.parametrize(
    ("predictions", "references", "said"),
    [
        ([], [], "at least one row"),
        (["a"], [], "1 predictions and 0 rows"),
        (["a"], ["a"], "found 'a' in row 0"),
        (["a", "b"], [["a"], []], "found \\[\\] in row 1"),
        ([None], [["a"]], "found NoneType in row 0"),
        (["a"], [[None]], "found \\[None\\] in row 0"),
    ],
)
def test_bad_input_is_refused_with_what_was_expected(predictions, references, said):
    with pytest.raises(InputError, match=said):
        translation_scores(predictions, references, "en", **NO_INTERVALS)
    with pytest.raises(InputError, match=said):
        sentence_scores(predictions, references, "en")
    with pytest.raises(InputError, match=said):
        compare_translations(predictions, predictions, references, "en", **NO_INTERVALS)
