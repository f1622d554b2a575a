"""ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum in every script, equal to rouge_score on ASCII English.

rouge_score's tokenizer keeps [a-z0-9] alone, so that two identical Chinese texts score 0. Here a token is a
run of letters, digits and combining marks of any script that has spaces, or a single character (with its
combining marks) of one that has none. ROUGE-1 and ROUGE-2 are rouge_score's. Its longest common subsequence
takes minutes for a thousand long summaries, so that one is computed here in bits, and follows the same path
through the same table.

As in rouge_score, a perfect prediction scores 100 where it has as many tokens as the n-gram asks for, else 0:
ROUGE-2 of "Yes" against itself is 0, and so is ROUGE-1 of "!!!".

Axes: n (rows); the four scores of :data:`NAMES`.

Sources: Lin, ROUGE (2004); rouge_score's rouge_scorer.py; Hyyro, Bit-parallel LCS-length computation
revisited (AWOCA 2004).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import regex

from hftk.metrics.bootstrap import paired_bootstrap, percentile_interval, resample_sums
from hftk.metrics.comparison import Comparison
from hftk.metrics.translation import check_texts
from hftk.task import Score

Floats = npt.NDArray[np.float64]
Tokens = list[str]

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

# U+30FC and U+FF70, the mark of a long vowel, belong to no single script
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\u30FC\uFF70\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
TOKEN = rf"(?V1)[{_UNSPACED}&&[\p{{L}}\p{{N}}]]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--{_UNSPACED}]+"
"""Pattern of a token, for the package ``regex``."""
_TOKEN = regex.compile(TOKEN)
# soft hyphen, zero-width non-joiner and joiner stand within words and are not seen
_INVISIBLE = str.maketrans("", "", "\u00ad\u200c\u200d")
_SENTENCE_ENDS = (
    regex.compile(r"""([.!?\u2026]+["'\u201d\u2019\u00bb)\]]*)\s+"""),
    regex.compile(
        r"([\u3002\uff01\uff1f\uff61\u0964\u0965\u061f\u06d4]+[\u201d\u2019\u300d\u300f\uff09]*)\s*"
    ),
)


class UnicodeTokenizer:
    """Words and characters of a text, lower-cased, for
    ``rouge_score.rouge_scorer.RougeScorer(tokenizer=...)``.

    Runs of letters, digits and combining marks; for Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan
    letters one token each. The rest separates tokens. Texts are brought to NFC first, so that canonically
    equivalent ones are equal, and soft hyphens, zero-width joiners and non-joiners are taken out. With
    ``stem``, tokens of more than three characters in [a-z0-9] go through Porter's stemmer for English, as in
    rouge_score; others are left as they are.
    """

    def __init__(self, stem: bool = False) -> None:
        self._stem = _porter_stem() if stem else None

    def tokenize(self, text: str) -> Tokens:
        """Tokens of a text; none for a text of punctuation alone."""
        tokens: Tokens = _TOKEN.findall(unicodedata.normalize("NFC", text.translate(_INVISIBLE)).lower())
        if self._stem is None:
            return tokens
        return [self._stem(token) if len(token) > 3 and token.isascii() else token for token in tokens]


def rouge_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    stem: bool = False,
    split_sentences: bool = False,
    resamples: int,
    seed: int,
) -> list[Score]:
    """``rouge1``, ``rouge2``, ``rougeL`` and ``rougeLsum``: F1 x 100 as papers report it, the mean over rows;
    higher is better, 100 is perfect.

    Equal to 100 x rouge_score's on ASCII English, with and without ``stem`` (Porter, English alone).
    predictions: (n,) texts; references: (n,) lists of one text or more, of which each score takes the one
    with the highest F1, as ``score_multi`` does. A prediction without tokens scores 0.

    ``rougeLsum`` matches sentence by sentence, and a newline ends a sentence, as in rouge_score: of texts
    without one it is ``rougeL``. With ``split_sentences``, a text that has no newline is divided first: after
    . ! ? and the ellipsis where a space follows, and after their Chinese, Japanese, Hindi, Arabic and Urdu
    forms anywhere, closing quotes included.

    Intervals: 95 % percentile bootstrap over rows; None below two rows. Raises InputError for no rows, a row
    without references and what is no text.
    """
    rows = rouge_rows(predictions, references, stem=stem, split_sentences=split_sentences)
    drawn = resample_sums(rows, resamples=resamples, seed=seed) / len(rows)
    intervals = [percentile_interval(drawn[:, place]) for place in range(len(NAMES))]
    numbers = {len(row) for row in references}
    fields = [
        f"nrefs:{numbers.pop() if len(numbers) == 1 else 'var'}",
        "case:lc",
        f"stem:{'porter' if stem else 'no'}",
        "tok:words,chars of unspaced scripts",
        f"sents:{'newline or sentence end' if split_sentences else 'newline'}",
        "f1:x100",
        f"bootstrap:rows[{resamples}]" if intervals[0] else "bootstrap:none",
        f"rouge_score:{version('rouge_score')}",
        "hftk",
    ]
    return [
        Score(
            name=name,
            value=float(rows[:, place].mean()),
            higher_is_better=True,
            n=len(rows),
            interval=intervals[place],
            signature="|".join(fields),
        )
        for place, name in enumerate(NAMES)
    ]


def compare_rouge(
    a: Sequence[str],
    b: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    stem: bool = False,
    split_sentences: bool = False,
    resamples: int,
    seed: int,
) -> list[Comparison]:
    """ROUGE of two systems on the same rows, by the paired bootstrap; a, b: (n,) predictions, the rest as in
    :func:`rouge_scores`."""
    rows_a, rows_b = (
        rouge_rows(system, references, stem=stem, split_sentences=split_sentences) for system in (a, b)
    )
    comparisons = []
    for place, name in enumerate(NAMES):
        column_a, column_b = rows_a[:, place], rows_b[:, place]
        # paired rows: the difference of means is the mean of differences
        found = paired_bootstrap(
            lambda weights, rows=column_a - column_b: weights @ rows / len(rows),  # type: ignore[misc]
            lambda weights: np.zeros(len(weights)),
            len(column_a),
            resamples=resamples,
            seed=seed,
        )
        comparisons.append(
            Comparison(
                name=name,
                a=float(column_a.mean()),
                b=float(column_b.mean()),
                difference=found.difference,
                interval=found.interval,
                p_value=found.p_value,
            )
        )
    return comparisons


def rouge_rows(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    stem: bool = False,
    split_sentences: bool = False,
) -> Floats:
    """(n, 4) F1 x 100 of each row in the order of :data:`NAMES`; arguments and errors as in
    :func:`rouge_scores`."""
    check_texts(predictions, references)
    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = UnicodeTokenizer(stem)
    ngrams = RougeScorer(NAMES[:2], tokenizer=tokenizer)
    rows = np.empty((len(predictions), len(NAMES)))
    for place, (prediction, targets) in enumerate(zip(predictions, references, strict=True)):
        found = ngrams.score_multi(targets, prediction)
        rows[place, :2] = [found[name].fmeasure for name in NAMES[:2]]
        tokens, sentences = tokenizer.tokenize(prediction), _sentences(prediction, tokenizer, split_sentences)
        rows[place, 2] = max(_longest_f1(tokenizer.tokenize(target), tokens) for target in targets)
        rows[place, 3] = max(
            _summary_f1(_sentences(target, tokenizer, split_sentences), sentences) for target in targets
        )
    return 100 * rows


def mark_sentences(text: str) -> str:
    """The text with a newline after each sentence, or as it is where it has newlines already; see
    :func:`rouge_scores`."""
    if "\n" in text:
        return text
    for end in _SENTENCE_ENDS:
        text = end.sub(r"\1\n", text)
    return text


def _sentences(text: str, tokenizer: UnicodeTokenizer, split_sentences: bool) -> list[Tokens]:
    marked = mark_sentences(text) if split_sentences else text
    return [tokenizer.tokenize(sentence) for sentence in marked.split("\n") if sentence]


def _longest_f1(reference: Tokens, prediction: Tokens) -> float:
    """F1 of the longest common subsequence of two texts."""
    steps = _subsequence_steps(reference, _places(prediction), len(prediction))
    return _f1(steps[-1].bit_count(), len(reference), len(prediction))


def _summary_f1(reference: list[Tokens], prediction: list[Tokens]) -> float:
    """F1 of the union of longest common subsequences, sentence by sentence (Lin 2004, section 3.2); a token
    counts as often as both texts have it, as in ROUGE 1.5.5."""
    left_reference = Counter(token for sentence in reference for token in sentence)
    left_prediction = Counter(token for sentence in prediction for token in sentence)
    places = [_places(sentence) for sentence in prediction]
    hits = 0
    for sentence in reference:
        common: set[int] = set()
        for other, found in zip(prediction, places, strict=True):
            common.update(_common_places(sentence, other, found))
        for place in sorted(common):
            token = sentence[place]
            if left_reference[token] > 0 and left_prediction[token] > 0:
                hits += 1
                left_reference[token] -= 1
                left_prediction[token] -= 1
    return _f1(hits, sum(map(len, reference)), sum(map(len, prediction)))


def _places(tokens: Tokens) -> dict[str, int]:
    """Token to the places where it stands, as bits."""
    places: dict[str, int] = {}
    for place, token in enumerate(tokens):
        places[token] = places.get(token, 0) | 1 << place
    return places


def _subsequence_steps(reference: Tokens, places: dict[str, int], length: int) -> list[int]:
    """Rows 0 to len(reference) of the table of longest common subsequences, each as bits (Hyyro 2004).

    Bit j of row i is set where the length for i tokens of the reference grows from j to j + 1 tokens of the
    prediction.
    """
    full = (1 << length) - 1
    flat, steps = full, [0]
    for token in reference:
        matched = flat & places.get(token, 0)
        flat = (flat + matched | flat - matched) & full
        steps.append(full & ~flat)
    return steps


def _common_places(reference: Tokens, prediction: Tokens, places: dict[str, int]) -> list[int]:
    """Places in the reference of one longest common subsequence: the one that rouge_score finds, for there
    may be several, and their union depends on it."""
    steps = _subsequence_steps(reference, places, len(prediction))
    left = steps[-1].bit_count()
    found = []
    i, j = len(reference), len(prediction)
    while left:
        if reference[i - 1] == prediction[j - 1]:
            found.append(i - 1)
            i, j, left = i - 1, j - 1, left - 1
        elif (steps[i - 1] & (1 << j) - 1).bit_count() < left:
            j -= 1
        else:
            i -= 1
    return found


def _f1(hits: int, reference: int, prediction: int) -> float:
    return 2 * hits / (reference + prediction) if hits else 0.0


def _porter_stem() -> Any:
    from nltk.stem.porter import PorterStemmer

    # a corpus has few distinct words, and the stemmer is slow
    return lru_cache(maxsize=2**16)(PorterStemmer().stem)
