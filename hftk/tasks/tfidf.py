"""Baselines of text classification: the majority class, and TF-IDF with logistic regression (ridge for
numbers).

They answer the question whether a neural model was worth it, and give a second opinion on training labels.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hftk.console import note
from hftk.task import Splits
from hftk.tasks.class_predictions import Answers, labels_in, truth
from hftk.tasks.labels import MULTI, REGRESSION, SINGLE, Labels

if TYPE_CHECKING:
    from datasets import Dataset

MOST_ROWS = 50_000
"""Training rows that TF-IDF is fitted on, at most. More take many minutes and change little."""
UNSPACED = 0.2
"""Share of characters of scripts without blanks from which on character n-grams stand for words."""


class Majority:
    """Answers every row alike: the most frequent class (set of labels), or the mean."""

    def __init__(self, rows: Dataset) -> None:
        self._probabilities: np.ndarray | None = None
        self._labels = labels_in(rows)
        targets = truth(rows, self._labels)
        if self._labels.problem_type == SINGLE:
            share = np.bincount(targets, minlength=len(self._labels.names)) / len(targets)
            self._answer, self._probabilities = np.array(share.argmax()), share
        elif self._labels.problem_type == MULTI:
            sets, counts = np.unique(targets, axis=0, return_counts=True)
            self._answer, self._probabilities = sets[counts.argmax()].astype(bool), targets.mean(0)
        else:
            self._answer = np.array(targets.mean())

    def answer(self, rows: Dataset) -> Answers:
        repeated = None if self._probabilities is None else np.tile(self._probabilities, (len(rows), 1))
        return Answers(chosen=np.repeat(self._answer[None], len(rows), axis=0), probabilities=repeated)


class TfIdf:
    """TF-IDF features and a linear model, by scikit-learn.

    Words and pairs of words, or runs of 1 to 3 characters where the script has no blanks between words. Of a
    pair of texts: both, what they share and in what they differ, and the cosine between them.
    """

    def __init__(
        self, texts: Sequence[str], pairs: Sequence[str] | None, targets: np.ndarray, labels: Labels
    ) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        every = [*texts, *(pairs or ())]
        by_character = _unspaced(every[:2000]) > UNSPACED or not any(re.search(r"\w", text) for text in every)
        self._labels, self._thresholds = labels, np.full(len(labels.names), 0.5)
        how: dict[str, Any] = (
            {"analyzer": "char", "ngram_range": (1, 3)}
            if by_character
            else {"ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"}
        )
        self._vectorizer = TfidfVectorizer(
            sublinear_tf=True, max_features=most_features(labels), dtype=np.float32, **how
        )
        self._vectorizer.fit(every)
        self._model = _linear(labels, len(np.unique(targets)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # classes that are absent from a fold, iterations that ran out
            self._model.fit(self._features(texts, pairs), targets)

    def _features(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Any:
        from scipy.sparse import csr_matrix, hstack

        first = self._vectorizer.transform(texts)
        if pairs is None:
            return first
        second = self._vectorizer.transform(pairs)
        shared = first.multiply(second).tocsr()
        return hstack([first, second, shared, abs(first - second), csr_matrix(shared.sum(1))]).tocsr()

    def scores(self, texts: Sequence[str], pairs: Sequence[str] | None) -> np.ndarray:
        """(rows, labels) probabilities, or (rows,) numbers; a class that was absent in fitting has
        probability 0."""
        features = self._features(texts, pairs)
        if self._labels.problem_type == REGRESSION:
            return np.asarray(self._model.predict(features), np.float64)
        found = np.asarray(self._model.predict_proba(features), np.float64)
        if self._labels.problem_type == MULTI:
            return found[
                :, -len(self._labels.names) :
            ]  # of one label alone, scikit-learn gives its absence too
        everything = np.zeros((len(texts), len(self._labels.names)))
        everything[:, self._model.classes_] = found
        return everything

    def tune(self, rows: Dataset) -> None:
        """Choose the thresholds of several labels on these rows, as it is done for the model."""
        from hftk.metrics.calibration import tune_thresholds
        from hftk.tasks.calibration import ENOUGH_ROWS

        true = truth(rows, self._labels).astype(bool)
        self._thresholds = tune_thresholds(true, self.scores(*_texts(rows)), enough=ENOUGH_ROWS)

    def answer(self, rows: Dataset) -> Answers:
        found = self.scores(*_texts(rows))
        if self._labels.problem_type == REGRESSION:
            return Answers(chosen=found)
        chosen = found.argmax(1) if self._labels.problem_type == SINGLE else found >= self._thresholds
        return Answers(chosen=chosen, probabilities=found)


def most_features(labels: Labels) -> int:
    """Logistic regression over many classes at once keeps about 25 x classes x features numbers: 0.8 GB at
    most."""
    return max(5_000, min(200_000, 4_000_000 // max(1, labels.outputs)))


def fit_tfidf(splits: Splits, *, tune_thresholds: bool = False) -> TfIdf:
    """TF-IDF and a linear model, fitted on the training split; thresholds of several labels tuned on the
    validation split."""
    train, labels = splits.train, labels_in(splits.train)
    if len(train) > MOST_ROWS:
        note(
            f"the TF-IDF baseline is fitted on {MOST_ROWS:,} of {len(train):,} training rows, drawn at random"
        )
        train = train.select(np.sort(np.random.default_rng(0).permutation(len(train))[:MOST_ROWS]))
    fitted = TfIdf(*_texts(train), truth(train, labels), labels)
    if labels.problem_type == MULTI and tune_thresholds and splits.validation is not None:
        fitted.tune(splits.validation)
    return fitted


def cross_validate(rows: Dataset, folds: int = 5) -> np.ndarray:
    """(rows, labels) probabilities (or (rows,) numbers) of TF-IDF models that have not seen the row:
    out-of-fold predictions.

    Row i is in fold i modulo ``folds`` after a shuffle from seed 0.
    """
    labels = labels_in(rows)
    targets = truth(rows, labels)
    texts, pairs = _texts(rows)
    fold = np.random.default_rng(0).permutation(len(rows)) % folds
    found = np.zeros((len(rows), labels.outputs) if labels.problem_type != REGRESSION else len(rows))
    for number in range(folds):
        seen, left_out = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        if not len(left_out):
            continue
        model = TfIdf(_take(texts, seen), _take(pairs, seen), targets[seen], labels)
        found[left_out] = model.scores(_take(texts, left_out), _take(pairs, left_out))
    return found


def _take(values: Any, indices: np.ndarray) -> Any:
    return None if values is None else [values[i] for i in indices.tolist()]


def _texts(rows: Dataset) -> tuple[list[str], list[str] | None]:
    return list(rows["text"]), list(rows["text_pair"]) if "text_pair" in rows.column_names else None


def _linear(labels: Labels, classes: int) -> Any:
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier

    if labels.problem_type == REGRESSION:
        return Ridge(alpha=1.0)
    if labels.problem_type == SINGLE and classes < 2:
        return DummyClassifier()  # rows sorted by class, of which the first were taken
    make: Callable[[], Any] = lambda: LogisticRegression(C=10.0, max_iter=300)  # noqa: E731
    return make() if labels.problem_type == SINGLE else OneVsRestClassifier(make())


def _unspaced(texts: Sequence[str]) -> float:
    """Share of letters that are Chinese, Japanese, Thai, Lao, Khmer or Burmese."""
    letters = [ord(c) for text in texts for c in text[:500] if c.isalpha()]
    ranges = (
        (0x0E00, 0x0EFF),
        (0x1000, 0x109F),
        (0x1780, 0x17FF),
        (0x3040, 0x30FF),
        (0x3400, 0x9FFF),
        (0x20000, 0x323AF),
    )
    return sum(any(a <= c <= b for a, b in ranges) for c in letters) / max(1, len(letters))
