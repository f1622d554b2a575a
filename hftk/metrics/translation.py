"""BLEU, chrF++ and TER by sacreBLEU, with the tokenizer chosen by target language, intervals and paired
tests.

sacreBLEU extracts the statistics of each row (lengths, matches and n-grams, edits) and computes the score of
their sum. A resample is then a weighted sum of rows, and its score is computed for all resamples at once.

A perfect prediction scores 100 in BLEU and chrF++ and 0 in TER, in every script. As in sacreBLEU, BLEU is 0
where no row has four tokens ("Hello world" against itself), since it averages over n-grams up to four.

Axes: n (rows); columns (statistics that a score is made of); lines (resamples).

Sources: Papineni et al., BLEU (ACL 2002); Popovic, chrF++ (WMT 2017); Snover et al., A study of translation
edit rate (AMTA 2006); Post, A call for clarity in reporting BLEU scores (WMT 2018), for sacreBLEU and its
signatures; Koehn, Statistical significance tests for machine translation evaluation (EMNLP 2004), for the
bootstrap.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from hftk.config import InputError, Problem
from hftk.metrics.bootstrap import paired_bootstrap, percentile_interval, resample_sums
from hftk.metrics.comparison import Comparison
from hftk.task import Score

Floats = npt.NDArray[np.float64]

ORDER = 4
"""Longest n-gram of BLEU."""
LANGUAGES = {
    "zh": ("zh", "zho", "chi", "cmn", "yue", "wuu", "lzh", "gan", "hak", "chinese", "mandarin", "cantonese"),
    "ja": ("ja", "jpn", "japanese"),
    "ko": ("ko", "kor", "korean"),
    "th": ("th", "tha", "thai"),
    "lo": ("lo", "lao"),
    "km": ("km", "khm", "khmer"),
    "my": ("my", "mya", "bur", "burmese", "shn"),
    "bo": ("bo", "bod", "tib", "tibetan", "dz", "dzo", "dzongkha"),
}
"""Languages that need a tokenizer other than 13a, and what codes and names they go by."""
TOKENIZERS = {
    "zh": "zh",
    "ja": "ja-mecab",
    "ko": "ko-mecab",
    "th": "char",
    "lo": "char",
    "km": "char",
    "my": "char",
    "bo": "char",
}
"""sacreBLEU's tokenizer for each of them; every other language has 13a."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One of the three metrics for one language; made by :func:`translation_metrics`."""

    name: str
    """bleu, chrf++ or ter."""
    sacrebleu: Any
    """sacreBLEU's metric."""
    values: Callable[[Floats], Floats]
    """Sums of statistics (lines, columns) -> (lines,) scores, equal to sacreBLEU's."""
    higher_is_better: bool = True
    split_characters: bool = False
    """Whether characters are split before sacreBLEU sees the text, since it has no such option."""

    def statistics(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """sacreBLEU's statistics of each row: n lists of one length."""
        if self.split_characters:
            predictions = [" ".join(text) for text in predictions]
            references = [[" ".join(text) for text in row] for row in references]
        most = max(map(len, references))
        # sacreBLEU wants one stream per reference; None stands for a row that has fewer
        streams = [[row[place] if place < len(row) else None for row in references] for place in range(most)]
        # its corpus_score gives the statistics away after adding them up, so this is the method behind it
        found: list[list[float]] = self.sacrebleu._extract_corpus_statistics(predictions, streams)
        return found

    def value(self, statistics: list[list[float]]) -> float:
        """sacreBLEU's score of the rows."""
        return float(self.sacrebleu._aggregate_and_compute(statistics).score)

    @property
    def signature(self) -> str:
        """sacreBLEU's signature; call :meth:`statistics` first, which counts the references."""
        signature = str(self.sacrebleu.get_signature())
        return f"{signature}|split:char" if self.split_characters else signature


def translation_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    language: str | None,
    *,
    resamples: int,
    seed: int,
) -> list[Score]:
    """``bleu``, ``chrf++`` (both from 0 to 100, higher is better) and ``ter`` (edits per 100 tokens of the
    reference, lower is better, may exceed 100), equal to sacreBLEU's ``corpus_score``. Case counts in all
    three.

    predictions: (n,) detokenized texts; references: (n,) lists of one text or more, as many as the row has;
    language: the target language as a code or a name (``de``, ``zh_CN``, ``zho_Hans``, ``Chinese``), None:
    one with spaces.

    Tokens of BLEU: 13a; zh for Chinese; ja-mecab and ko-mecab where they are installed (``pip install
    "sacrebleu[ja]"``, ``"sacrebleu[ko]"``), else single characters, as for Thai, Lao, Khmer, Burmese and
    Tibetan. Those of TER: words; for Chinese and Japanese sacreBLEU's normalization with Asian support (each
    Han character counts, a run of kana counts once); single characters for the other five (``split:char``).
    chrF++ knows no tokens but words between spaces. The signature says which.

    Intervals: 95 % percentile bootstrap over rows; None below two rows or for no resamples. Raises InputError
    for no rows, a row without references and what is no text.
    """
    check_texts(predictions, references)
    scores = []
    for metric in translation_metrics(language):
        statistics = metric.statistics(predictions, references)
        drawn = metric.values(resample_sums(statistics, resamples=resamples, seed=seed))
        scores.append(
            Score(
                name=metric.name,
                value=metric.value(statistics),
                higher_is_better=metric.higher_is_better,
                n=len(statistics),
                interval=percentile_interval(drawn),
                signature=metric.signature,
            )
        )
    return scores


def compare_translations(
    a: Sequence[str],
    b: Sequence[str],
    references: Sequence[Sequence[str]],
    language: str | None,
    *,
    resamples: int,
    seed: int,
) -> list[Comparison]:
    """BLEU, chrF++ and TER of two systems on the same rows, by the paired bootstrap (Koehn 2004).

    a, b: (n,) predictions; the rest, and errors, as in :func:`translation_scores`. The same seed gives the
    same resamples for both systems and all three metrics.
    """
    check_texts(a, references)
    check_texts(b, references)
    comparisons = []
    for metric in translation_metrics(language):
        rows_a, rows_b = (
            np.array(metric.statistics(system, references), dtype=np.float64) for system in (a, b)
        )
        value_a, value_b = (float(metric.values(rows.sum(axis=0)[None])[0]) for rows in (rows_a, rows_b))
        found = paired_bootstrap(
            _weighted(metric, rows_a), _weighted(metric, rows_b), len(rows_a), resamples=resamples, seed=seed
        )
        comparisons.append(
            Comparison(
                name=metric.name,
                a=value_a,
                b=value_b,
                difference=found.difference,
                interval=found.interval,
                p_value=found.p_value,
                higher_is_better=metric.higher_is_better,
            )
        )
    return comparisons


def sentence_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    language: str | None,
    *,
    name: str = "chrf++",
) -> Floats:
    """(n,) scores of single rows, equal to sacreBLEU's ``sentence_score``: for ordering rows, not for
    averaging.

    name: ``chrf++``, ``ter``, or ``bleu``, which here leaves out the n-grams that a prediction is too short
    for (effective order). The rest, and errors, as in :func:`translation_scores`; ValueError for another
    name.
    """
    check_texts(predictions, references)
    metrics = {metric.name: metric for metric in translation_metrics(language, effective_order=True)}
    if name not in metrics:
        raise ValueError(f"expected one of {', '.join(metrics)}, found {name!r}")
    metric = metrics[name]
    return np.array([metric.value([row]) for row in metric.statistics(predictions, references)])


def translation_metrics(language: str | None, *, effective_order: bool = False) -> list[Metric]:
    """BLEU, chrF++ and TER as :func:`translation_scores` sets them up for a target language."""
    from sacrebleu.metrics import CHRF, TER

    code = language_code(language)
    asian = code in ("zh", "ja")
    return [
        Metric(name="bleu", sacrebleu=_bleu(language, effective_order), values=bleu_values),
        Metric(name="chrf++", sacrebleu=CHRF(word_order=2), values=chrf_values),
        Metric(
            name="ter",
            sacrebleu=TER(case_sensitive=True, normalized=asian, asian_support=asian),
            values=ter_values,
            higher_is_better=False,
            split_characters=TOKENIZERS.get(code) == "char",
        ),
    ]


def split_tokens(texts: Sequence[str], language: str | None) -> list[list[str]]:
    """Tokens of each text as BLEU counts them in that language."""
    bleu = _bleu(language, effective_order=False)
    return [bleu._preprocess_segment(text).split() for text in texts]


def language_code(language: str | None) -> str:
    """Key of :data:`LANGUAGES` for a code or name such as ``zh``, ``zh_CN``, ``zho_Hans``, ``>>cmn<<``,
    ``__zh__`` or ``Chinese``; "" for every other language and None."""
    parts = re.findall("[a-z]+", (language or "").lower())
    return next((code for code, names in LANGUAGES.items() if parts and parts[0] in names), "")


def bleu_values(sums: Floats) -> Floats:
    """BLEU of (lines, 10) sums: length of predictions and of the closest references, matches, n-grams.

    Exponential smoothing: the k-th order without a match counts as 1 / 2^k matches. 0 without any match, and
    where there is no n-gram of the longest order.
    """
    length, reference = sums[:, 0], sums[:, 1]
    matches, ngrams = sums[:, 2 : 2 + ORDER], sums[:, 2 + ORDER :]
    missed = (matches == 0) & (ngrams > 0)
    smoothed = np.where(missed, 0.5 ** missed.cumsum(axis=1), matches)
    with np.errstate(divide="ignore", invalid="ignore"):
        brevity = np.where(length < reference, np.exp(1 - reference / length), 1.0)
        scores = 100 * brevity * np.exp(np.log(smoothed / ngrams).mean(axis=1))
    return np.where((ngrams > 0).all(axis=1) & (matches > 0).any(axis=1), scores, 0.0)


def chrf_values(sums: Floats) -> Floats:
    """chrF++ of (lines, 3 x 8) sums: n-grams of predictions, of references, and matches, for 6 character
    orders and 2 word orders. F2 of the mean precision and recall over orders for which both sides have
    n-grams."""
    predicted, reference, matches = sums.reshape(len(sums), sums.shape[1] // 3, 3).transpose(
        2, 0, 1
    )  # (lines, orders) each
    counted = (predicted > 0) & (reference > 0)
    orders = np.maximum(counted.sum(axis=1), 1)
    precision = (counted * matches / np.maximum(predicted, 1)).sum(axis=1) / orders
    recall = (counted * matches / np.maximum(reference, 1)).sum(axis=1) / orders
    below = 4 * precision + recall
    return 500 * precision * recall / np.where(below > 0, below, 1)


def ter_values(sums: Floats) -> Floats:
    """TER of (lines, 2) sums: edits, and length of the references (their mean, where a row has several)."""
    edits, length = sums[:, 0], sums[:, 1]
    return 100 * np.where(length > 0, edits / np.where(length > 0, length, 1), edits > 0)


def check_texts(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """InputError unless there are n > 0 predictions and n lists of one reference or more, all of them
    texts."""
    problem = _find_problem(predictions, references)
    if problem:
        raise InputError(problem)


def _find_problem(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Problem | None:
    if not len(predictions):
        fix = "give a split with at least one row, for example --data.test FILE"
        return Problem(setting="", message="expected at least one row to score, found 0", fix=fix)
    if len(predictions) != len(references):
        found = f"found {len(predictions)} predictions and {len(references)} rows of references"
        fix = "give one list of references per prediction, in the same order"
        return Problem(
            setting="", message=f"expected as many rows of references as predictions, {found}", fix=fix
        )
    fix = (
        'write the references of one row as a list of texts, such as ["a reference"]; an empty text is'
        " allowed"
    )
    for place, (prediction, row) in enumerate(zip(predictions, references, strict=True)):
        if not isinstance(prediction, str):
            found = f"found {type(prediction).__name__} in row {place}"
            return Problem(
                setting="", message=f"expected a text as prediction, {found}", fix='write "" for no output'
            )
        if isinstance(row, str) or not len(row) or not all(isinstance(text, str) for text in row):
            found = f"found {row!r:.60} in row {place}"
            return Problem(setting="", message=f"expected a list of one reference or more, {found}", fix=fix)
    return None


def _bleu(language: str | None, effective_order: bool) -> Any:
    """sacreBLEU's BLEU with the tokenizer for the language; ``char`` where MeCab or its dictionary is
    missing."""
    from sacrebleu.metrics import BLEU

    tokenizer = TOKENIZERS.get(language_code(language), "13a")
    make = partial(
        BLEU, force=True, effective_order=effective_order
    )  # force: no warning about tokenized texts
    try:
        return make(tokenize=tokenizer)
    except (RuntimeError, AssertionError):  # not installed; installed with another dictionary
        if not tokenizer.endswith("-mecab"):
            raise
        return make(tokenize="char")


def _weighted(metric: Metric, rows: Floats) -> Callable[[Floats], Floats]:
    return lambda weights: metric.values(weights @ rows)
